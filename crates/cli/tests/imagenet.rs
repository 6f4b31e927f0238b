//! A folder of images as ImageNet's, generated, through the real binaries: training, evaluation, and
//! `cargo xtask reproduce imagenet` to a rendered table.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Writes pictures of three classes, each with its own colour: twelve to train on and six to test on.
fn write_images(root: &Path) {
    for (part, count) in [("train", 4), ("val", 2)] {
        for (class, colour) in [("n01", [200, 40, 40]), ("n02", [40, 200, 40]), ("n03", [40, 40, 200])] {
            let folder = root.join(part).join(class);
            fs::create_dir_all(&folder).unwrap();
            for number in 0..count {
                // Sizes differ, as those of photographs do.
                let (width, height) = (60 + 7 * number, 50 + 3 * number);
                let pixel = |i: u32| colour.map(|c: u8| c.wrapping_add((i * 37 % 29) as u8));
                let pixels: Vec<u8> = (0..width * height).flat_map(pixel).collect();
                let file = fs::File::create(folder.join(format!("{number}.png"))).unwrap();
                let mut encoder = png::Encoder::new(file, width, height);
                encoder.set_color(png::ColorType::Rgb);
                encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
            }
        }
    }
}

fn srigl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_srigl")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Flags that make a ResNet-18 small enough for a test.
const SMALL: [&str; 6] = ["--model", "resnet18-small", "--image-size", "32", "--batch-size", "5"];

#[test]
fn a_folder_of_images_is_trained_on_and_resumed_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    write_images(&dir.path().join("images"));
    let train = |out: &str, more: &[&str]| {
        let (images, out) = (path("images"), path(out));
        let fixed = ["train", "--dataset", "image-folder", "--data", &images, "--out", &out, "--quiet"];
        let schedule = [
            "--epochs",
            "2",
            "--sparsity",
            "0.6",
            "--delta-t",
            "2",
            "--resume",
            "--clip-norm",
            "1",
            "--width",
            "4",
        ];
        srigl(&[&fixed[..], &SMALL[..], &schedule[..], more].concat())
    };
    succeeds(&train("whole", &["--workers", "3"]));
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("whole/result.json")).unwrap()).unwrap();
    assert_eq!(result["data"]["train_images"], 12);
    assert_eq!(result["data"]["test_images"], 6);

    // Stopped in the second epoch: the checkpoint after step 4, and then a picture that cannot be read.
    let spoiled = dir.path().join("images/train/n02/1.png");
    let good = fs::read(&spoiled).unwrap();
    let stop = |spoil: bool| {
        let bytes = if spoil { b"no picture".to_vec() } else { good.clone() };
        fs::write(&spoiled, bytes).unwrap();
    };
    stop(true);
    let output = train("resumed", &["--workers", "2", "--checkpoint-every", "1"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("1.png"), "{}", text(&output.stderr));
    stop(false);
    succeeds(&train("resumed", &["--workers", "0"]));
    for file in ["model.safetensors", "best.safetensors", "topology.jsonl", "masks.jsonl"] {
        let read = |run: &str| fs::read(dir.path().join(run).join(file)).unwrap();
        assert!(read("whole") == read("resumed"), "{file} differs");
    }

    // Left out, on request.
    stop(true);
    let output = train("skipped", &["--skip-broken"]);
    succeeds(&output);
    assert!(text(&output.stderr).contains("1.png"), "{}", text(&output.stderr));

    stop(false);
    let eval = srigl(&["eval", &path("whole"), "--data", &path("images"), "--json"]);
    let eval: serde_json::Value = serde_json::from_str(&succeeds(&eval)).unwrap();
    assert_eq!(eval["test_accuracy"], result["test_accuracy"]);
}

#[test]
fn weights_start_a_training_or_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    write_images(&dir.path().join("images"));
    let train = |out: &str, more: &[&str]| {
        let (images, out) = (path("images"), path(out));
        let fixed = ["train", "--dataset", "image-folder", "--data", &images, "--out", &out, "--quiet"];
        srigl(&[&fixed[..], &SMALL[..], &["--method", "dense", "--epochs", "1"], more].concat())
    };
    succeeds(&train("first", &["--width", "4"]));
    let (weights, exported) = (path("first/model.safetensors"), path("exported.safetensors"));
    succeeds(&srigl(&["export", &path("first"), "-o", &exported]));
    // With a learning rate near 0 they hardly change.
    succeeds(&train("second", &["--weights", &exported, "--lr", "1e-12", "--width", "4"]));
    let read = |path: &str| fs::read(path).unwrap();
    let (before, after) = (read(&weights), read(&path("second/model.safetensors")));
    let conv = |bytes: &[u8]| {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let data = file.tensor("layer4.1.conv2.weight").unwrap().data().to_vec();
        data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
    };
    assert!(conv(&before).iter().zip(conv(&after)).all(|(a, b)| (a - b).abs() < 1e-6));

    // A condensed run takes images of the run's size, a condensed file those asked for.
    let condensed = path("condensed.safetensors");
    let file = ["--model", "resnet18-small", "--image", "40x36"];
    let expected = [r#"\"height\":32,\"width\":32"#, r#"\"height\":40,\"width\":36"#];
    for (source, more, size) in
        [("second", &[][..], expected[0]), ("exported.safetensors", &file, expected[1])]
    {
        succeeds(&srigl(&[&["condense", &path(source), "-o", &condensed], more].concat()));
        let file = String::from_utf8_lossy(&read(&condensed)).into_owned();
        assert!(file.contains(size), "{source}");
    }

    let output = train("third", &["--weights", &exported, "--width", "8"]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("`conv1.weight` has shape [4, 3, 3, 3] instead of [8, 3, 3, 3]"), "{error}");
    assert!(!dir.path().join("third").exists(), "nothing is written");
}

#[test]
fn the_imagenet_table_is_rendered() {
    let dir = tempfile::tempdir().unwrap();
    write_images(&dir.path().join("images"));
    let xtask = Path::new(env!("CARGO_BIN_EXE_srigl")).with_file_name("xtask");
    assert!(xtask.exists(), "run the tests of the whole workspace, which build xtask");
    let output = Command::new(xtask)
        .args(["reproduce", "imagenet", "--sparsity", "0.8", "--limit-steps", "3", "--jobs", "2", "--data"])
        .arg(dir.path().join("images"))
        .args(["--set", "model=resnet18", "--set", "batch-size=4", "--set", "image-size=64"])
        .args(["--set", "lr=0.01"])
        .arg("--out")
        .arg(dir.path().join("out"))
        .env("SRIGL_BIN", env!("CARGO_BIN_EXE_srigl"))
        .output()
        .unwrap();
    succeeds(&output);
    let table = fs::read_to_string(dir.path().join("out/table.md")).unwrap();
    assert!(table.contains("12 training and 6 test images"), "{table}");
    for row in ["| 80 % | RigL |", "| 80 % | SRigL with ablation |"] {
        let row = table.lines().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("{table}"));
        assert!(row.contains("75.01") || row.contains("74.98"), "{row}");
    }
    assert!(table.contains("changed by --set"), "{table}");
    assert!(table.contains("cut short after 3 steps"), "{table}");
    // The topology changes all the same: ΔT of 800 has shrunk.
    let updates =
        fs::read_to_string(dir.path().join("out/runs/resnet50-srigl-80-seed0/topology.jsonl")).unwrap();
    assert!(updates.lines().count() > 3, "{updates}");
    let runs = fs::read_dir(dir.path().join("out/runs")).unwrap();
    let finished = runs.filter(|run| run.as_ref().unwrap().path().join("result.json").exists()).count();
    assert_eq!(finished, 4, "dense, RigL, SRigL without and with ablation");
}
