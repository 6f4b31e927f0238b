//! The page's structure, without a browser.

mod folders;

use folders::{EPOCHS, Fake, fifty_layers, three_layers};

fn fake(name: &'static str, method: &'static str, sparsity: f64, seed: u64) -> Fake {
    Fake { name, method, sparsity, seed, layers: three_layers(), epochs: EPOCHS, masks: true }
}

fn page(fakes: &[Fake]) -> String {
    let root = tempfile::tempdir().unwrap();
    let folders: Vec<_> = fakes.iter().map(|fake| fake.write(root.path())).collect();
    srigl_report::page(&srigl_report::read(&folders).unwrap())
}

/// Every tag that is opened is closed, in order; returns how often each occurs.
fn tags(html: &str) -> std::collections::HashMap<String, usize> {
    let mut counts = std::collections::HashMap::new();
    let mut open = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        let name: String =
            tag.trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing tag at {:.60}", &rest[..60.min(rest.len())]);
        } else if tag.starts_with('!') {
            continue;
        } else {
            *counts.entry(name.clone()).or_default() += 1;
            // Style and script hold no tags.
            if name == "style" || name == "script" {
                let close = rest.find(&format!("</{name}>")).expect("it ends");
                rest = &rest[close..];
                rest = &rest[rest.find('>').unwrap()..];
            } else if !tag.ends_with('/') && !["meta", "img", "input"].contains(&&*name) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "open: {open:?}");
    counts
}

#[test]
fn parts() {
    let mut unfinished = fake("half", "srigl", 0.9, 3);
    unfinished.epochs = 5;
    let html = page(&[
        fake("dense", "dense", 0.9, 0),
        fake("rigl-90", "rigl", 0.9, 0),
        fake("rigl-95", "rigl", 0.95, 0),
        fake("srigl-90-a", "srigl", 0.9, 0),
        fake("srigl-90-b", "srigl", 0.9, 1),
        fake("static-90", "static", 0.9, 0),
        unfinished,
    ]);
    let tags = tags(&html);
    assert_eq!((tags["details"], tags["tr"], tags["h1"]), (7, 8, 1));
    // Six sparse runs of three layers.
    assert_eq!((tags["img"], tags["input"]), (18, 6));
    assert!(html.contains("<strong class=\"synthetic\">SYNTHETIC</strong>"));
    assert!(html.contains("mlp on glyphs (SYNTHETIC)"));
    assert!(html.contains("SRigL with ablation") && html.contains("5 of 20, unfinished"));
    assert!(html.contains("Dense: no masks to show.") && html.contains("never change"));
    assert_eq!(html.matches(" open><summary>").count(), 1);
    assert!(!html.contains("masks.jsonl"));
    assert!(html.split('"').all(|part| part.starts_with("data:") || !part.contains("NaN")));
}

#[test]
fn without_masks() {
    let html = page(&[Fake { masks: false, ..fake("old", "rigl", 0.9, 0) }]);
    let tags = tags(&html);
    assert!(!tags.contains_key("img") && !tags.contains_key("input"));
    assert_eq!(html.matches("masks.jsonl").count(), 1);
    assert!(html.contains("ITOP rate") && !html.contains("Accuracy against sparsity"));
}

#[test]
fn nothing_is_loaded() {
    let html = page(&[fake("a", "srigl", 0.9, 0)]);
    for foreign in ["http:", "https:", "<link", "@import", "url(", " src=\"/", "fetch("] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn names_do_not_break_out() {
    let evil = "</script><script>alert(1)</script>'\"><img src=x onerror=alert(1)>";
    let layers = vec![(evil.to_string(), 20, 30), (evil.repeat(1000), 20, 30)];
    let html = page(&[Fake { layers, ..fake("<i>'", "srigl", 0.9, 0) }]);
    let tags = tags(&html);
    assert_eq!((tags["script"], tags["img"]), (1, 2));
    assert!(!tags.contains_key("i"));
    assert!(html.len() < 100_000, "{} bytes", html.len());
}

#[test]
fn the_same_runs_give_the_same_bytes() {
    let runs = || [fake("a", "srigl", 0.9, 0), fake("b", "rigl", 0.9, 0)];
    assert!(page(&runs()) == page(&runs()));
}

#[test]
fn twenty_large_runs_fit() {
    let root = tempfile::tempdir().unwrap();
    let folder = Fake { layers: fifty_layers(), ..fake("large", "srigl", 0.9, 0) }.write(root.path());
    let run = srigl_run::Run::read(&folder).unwrap();
    let html = srigl_report::page(&vec![run; 20]);
    assert!(html.len() < 8_000_000, "{} bytes", html.len());
}

#[test]
fn written_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let folder = fake("a", "srigl", 0.9, 0).write(root.path());
    let runs = srigl_report::read(&[folder.clone(), folder]).unwrap();
    assert_eq!(runs.len(), 1);
    let path = root.path().join("report.html");
    srigl_report::write(&runs, &path).unwrap();
    srigl_report::write(&runs, &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), srigl_report::page(&runs));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2);
    let error = srigl_report::write(&runs, &root.path().join("none/report.html")).unwrap_err().to_string();
    assert!(error.contains("none/report.html") && error.contains("make it first"), "{error}");
    assert!(matches!(srigl_report::read(&[]), Err(srigl_report::Error::NoRuns)));
}
