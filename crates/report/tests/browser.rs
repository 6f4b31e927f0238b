//! The page in a real browser: no script errors, sliders that move pictures, no sideways scrolling.
//!
//! Skipped without Chromium, unless `SRIGL_REQUIRE_BROWSER=1`.

mod folders;

use folders::{EPOCHS, Fake, fifty_layers, three_layers};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs when all of the page is loaded and leaves what it finds in the document. It waits for nothing, so it is done
/// when the page's load event is.
const PROBE: &str = r#"
const found = { errors: window.errors, network: performance.getEntriesByType("resource").length };
const shades = (img, frame, frames) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight / frames];
  const context = canvas.getContext("2d");
  context.drawImage(img, 0, -frame * canvas.height);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return data.filter((value, i) => i % 4 == 3 && value > 0).length;
};
addEventListener("load", () => {
  try {
    for (const details of document.querySelectorAll("details")) details.open = true;
    found.svgs = document.querySelectorAll("figure svg").length;
    found.unnamed = document.querySelectorAll("svg[role=img]:not([aria-label]), img:not([alt]), figure:not(:has(figcaption))").length;
    found.blank = [...document.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().height < 20).length;
    found.width = document.documentElement.scrollWidth;
    found.window = innerWidth;
    found.paper = getComputedStyle(document.body).backgroundColor;
    found.images = document.images.length;
    found.sliders = [];
    for (const slider of document.querySelectorAll("input[type=range]")) {
      const box = slider.closest(".masks"), img = box.querySelector("img"), frames = Number(slider.max) + 1;
      const states = [];
      for (const value of [0, 1]) {
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
        const moved = img.parentElement.getBoundingClientRect().top - img.getBoundingClientRect().top;
        states.push({
          text: slider.nextElementSibling.textContent, spoken: slider.getAttribute("aria-valuetext"),
          frame: moved / img.parentElement.clientHeight, shades: shades(img, value, frames),
        });
      }
      found.sliders.push({ frames, label: slider.labels.length, states });
    }
    const link = document.querySelector("tbody a:last-of-type");
    found.link = document.querySelector(link.getAttribute("href")).tagName;
  } catch (error) {
    found.errors.push(String(error));
  }
  document.documentElement.dataset.found = JSON.stringify(found);
});
"#;

/// Collects what goes wrong, from before the page's own script on.
const WATCH: &str = r#"<script>window.errors = [];
addEventListener("error", event => errors.push(String(event.message)));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective + event.blockedURI));
</script>"#;

fn chromium() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CHROMIUM") {
        return Some(path.into());
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file())
}

/// Loads a page in a window of some width and returns what the probe found.
fn probe(browser: &Path, html: &str, width: u32, dark: bool) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let html = html.replacen("<body>", &format!("<body>{WATCH}"), 1);
    std::fs::write(&page, html.replacen("</body>", &format!("<script>{PROBE}</script></body>"), 1)).unwrap();
    // A headless window is never narrower than 500 pixels; a frame is as narrow as one likes. The outer page is written
    // out after its load event, which comes after the frame's.
    let frame = folder.path().join("frame.html");
    let scheme = if dark { "dark" } else { "light" };
    std::fs::write(
        &frame,
        format!(
            "<!doctype html><html style='color-scheme:{scheme}'><body>\
             <iframe src='page.html' style='width:{width}px;height:800px;border:0;color-scheme:{scheme}' \
             onload='document.body.dataset.found = frames[0].document.documentElement.dataset.found'></iframe>"
        ),
    )
    .unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--allow-file-access-from-files", "--window-size=1600,1000"])
        .args(["--timeout=60000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(format!("file://{}", frame.display()))
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", browser.display()));
    let dom = String::from_utf8_lossy(&output.stdout);
    let found = dom.split("data-found=\"").nth(1).and_then(|rest| rest.split('"').next());
    let errors = String::from_utf8_lossy(&output.stderr);
    let found = found.unwrap_or_else(|| panic!("the probe left nothing in {dom:.2000}\n{errors}"));
    serde_json::from_str(&found.replace("&quot;", "\"").replace("&amp;", "&")).unwrap()
}

#[test]
fn the_page_works() {
    let Some(browser) = chromium() else {
        assert!(
            std::env::var("SRIGL_REQUIRE_BROWSER").is_err(),
            "there is no chromium, chromium-browser or google-chrome on the PATH: install one or set CHROMIUM"
        );
        eprintln!("skipped: there is no Chromium");
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let fake = |name, method, sparsity, seed, layers: &[(String, usize, usize)]| {
        Fake { name, method, sparsity, seed, layers: layers.to_vec(), epochs: EPOCHS, masks: true }
            .write(root.path())
    };
    let (small, large) = (three_layers(), fifty_layers());
    let evil = vec![("</script><img src=x onerror=alert(1)>".repeat(9), 40, 50)];
    let folders = [
        fake("dense", "dense", 0.9, 0, &small),
        fake("rigl-0.9", "rigl", 0.9, 0, &small),
        fake("srigl-0.9", "srigl", 0.9, 0, &small),
        fake("srigl-0.95", "srigl", 0.95, 1, &small),
        fake("a-name-without-any-place-to-break-it-that-goes-on-and-on", "srigl", 0.9, 2, &large),
        fake("'\"><b>", "srigl", 0.8, 0, &evil),
    ];
    let html = srigl_report::page(&srigl_report::read(&folders).unwrap());

    for (width, dark) in [(360, false), (1400, false), (1400, true)] {
        let found = probe(&browser, &html, width, dark);
        assert_eq!(found["errors"], serde_json::json!([]), "{found:#}");
        assert_eq!(found["network"], 0, "{found:#}");
        assert_eq!((&found["unnamed"], &found["blank"]), (&0.into(), &0.into()), "{found:#}");
        assert_eq!(found["window"], width);
        assert!(found["width"].as_u64().unwrap() <= u64::from(width), "{found:#}");
        assert_eq!(found["paper"], if dark { "rgb(21, 23, 26)" } else { "rgb(251, 251, 249)" });
        // Three curves, one comparison; per sparse run two figures over time and a histogram per layer.
        let layers = 3 * small.len() + large.len() + 1;
        assert_eq!(found["svgs"], 4 + 5 * 2 + layers, "{found:#}");
        assert_eq!(found["images"], layers);
        assert_eq!(found["link"], "DETAILS");
        let sliders = found["sliders"].as_array().unwrap();
        assert_eq!(sliders.len(), 5);
        for slider in sliders {
            assert_eq!((&slider["frames"], &slider["label"]), (&11.into(), &1.into()));
            for (value, step) in [(0, "step 0"), (1, "step 200")] {
                let state = &slider["states"][value];
                assert_eq!((&state["text"], &state["spoken"]), (&step.into(), &step.into()));
                let frame = state["frame"].as_f64().unwrap();
                assert!((frame - value as f64).abs() < 0.05, "{found:#}");
                assert!(state["shades"].as_u64() > Some(20), "{found:#}");
            }
        }
    }
}
