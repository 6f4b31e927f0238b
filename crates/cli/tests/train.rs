//! `srigl train` and `eval` through the real binary.

mod common;

use common::timeless;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A small run on the generated data set.
fn srigl(arguments: &str, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let common =
        "train --dataset glyphs --train-limit 1024 --test-limit 500 --batch-size 64 --delta-t 5 --quiet";
    command.args(common.split(' ')).args(arguments.split_whitespace()).arg("--out").arg(out);
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn error_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    // Runs that have begun may have said something before.
    let mut lines = text.lines().skip_while(|line| line.starts_with("note: "));
    let error = lines.next().unwrap_or_default();
    assert!(error.starts_with("srigl: ") || error.starts_with("error: "), "{text}");
    text
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Everything a run leaves that must not depend on the machine.
fn assert_same_run(a: &Path, b: &Path) {
    let model = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    assert!(model(a) == model(b), "models differ");
    for log in ["metrics.jsonl", "topology.jsonl"] {
        assert_eq!(timeless(&a.join(log)), timeless(&b.join(log)), "{log}");
    }
}

#[test]
fn a_run_leaves_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let output =
        run(srigl("--sparsity 0.95 --gamma-sal 0.9 --epochs 3 --lr 0.05 --json", &out).stdin(Stdio::null()));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, json(&out.join("result.json")));
    assert_eq!(printed["data"]["name"], "glyphs");
    assert_eq!(printed["data"]["synthetic"], true);
    assert!(printed["test_accuracy"].as_f64().unwrap() > 0.2, "learns something: {printed}");
    assert!((printed["sparsity"].as_f64().unwrap() - 0.95).abs() < 0.01);
    assert_eq!(json(&out.join("config.json"))["gamma_sal"], 0.9);

    // 16 steps an epoch, 48 in all, updates every 5th before step 36.
    assert_eq!(timeless(&out.join("metrics.jsonl")).len(), 3);
    let updates = timeless(&out.join("topology.jsonl"));
    let steps: Vec<u64> =
        updates.iter().filter(|u| u["layer"] == "fc1").map(|u| u["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [5, 10, 15, 20, 25, 30, 35]);
    assert!(updates.iter().all(|u| u["fan_in"].is_u64() && u["itop"].is_f64()), "constant fan-in throughout");

    // The exported model is one that `srigl mask inspect` understands, and the masks are those of the result.
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let output = run(inspect.args(["mask", "inspect", "--json"]).arg(out.join("model.safetensors")));
    let inspected: Value = serde_json::from_slice(&output.stdout).unwrap();
    for layer in printed["layers"].as_array().unwrap() {
        let layers = inspected["layers"].as_array().unwrap();
        let found = layers.iter().find(|l| l["name"] == layer["name"]).unwrap();
        for key in ["neurons", "active", "nnz", "fan_in"] {
            assert_eq!(found[key], layer[key], "{key} of {}", layer["name"]);
        }
    }

    let mut eval = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let output = run(eval.arg("eval").arg(&out).arg("--json"));
    let evaluated: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(evaluated["test_accuracy"], printed["test_accuracy"]);
}

/// The process is killed at arbitrary moments, again and again, and resumed; the outcome is that of a run in one go.
/// The network has dropout, so the random state of the device counts too.
#[test]
fn a_killed_run_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    let arguments = "--model mnist-cnn --train-limit 256 --test-limit 100 --epochs 3 --gamma-sal 0.9 --grad-accumulation 2";
    let command = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        command.args("train --dataset glyphs --batch-size 32 --delta-t 5 --lr 0.05 --quiet".split(' '));
        command.args(arguments.split(' ')).arg("--out").arg(out);
        command
    };
    let started = Instant::now();
    run(&mut command(&straight));
    let duration = started.elapsed();

    // The worst moment: after the last checkpoint, before the result.
    for file in ["result.json", "model.safetensors"] {
        fs::remove_file(straight.join(file)).unwrap();
    }
    fs::write(straight.join(".tmpAb12Cd"), "half").unwrap();
    run(command(&straight).arg("--resume"));
    assert!(!straight.join(".tmpAb12Cd").exists());
    let again = dir.path().join("again");
    run(&mut command(&again));
    assert_same_run(&straight, &again);

    let mut kills = 0;
    // Kill after growing parts of the time a whole run takes, until one run gets through.
    for attempt in 1.. {
        let mut child = command(&killed).args(["--resume", "--checkpoint-every", "2"]).spawn().unwrap();
        let patience =
            Instant::now() + duration.mul_f64(0.17 * f64::from(attempt)) + Duration::from_millis(40);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > patience {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        match status {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => kills += 1,
        }
    }
    assert!(kills > 0, "the run was never interrupted");
    assert_same_run(&straight, &killed);
    let left: Vec<String> =
        fs::read_dir(&killed).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.contains(&"result.json".to_string()), "{left:?}");
}

/// Runs that start from weights keep of them what their checkpoints need, whatever the method makes of a sparsity.
#[test]
fn runs_from_weights_resume_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let command = |flags: &str, out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        let data =
            "train --dataset glyphs --train-limit 512 --test-limit 100 --batch-size 32 --delta-t 3 --quiet";
        command.args(data.split(' ')).args(flags.split(' ')).arg("--out").arg(out);
        command
    };
    let dense = dir.path().join("dense");
    run(&mut command("--method dense --epochs 1", &dense));
    for (i, method) in [
        "gmp --sparsity 0.83",
        "top-kast --sparsity 0.83",
        "snip --sparsity 0.8",
        "snfs --sparsity 0.8",
        "mest --nm 1:3",
    ]
    .into_iter()
    .enumerate()
    {
        let flags = format!("--method {method} --epochs 2 --weights {}/model.safetensors", dense.display());
        let [straight, stopped] = ["straight", "stopped"].map(|name| dir.path().join(format!("{name}-{i}")));
        run(&mut command(&flags, &straight));
        let mut child = command(&flags, &stopped).args(["--checkpoint-every", "5"]).spawn().unwrap();
        let start = Instant::now();
        while !stopped.join("checkpoint.safetensors").exists() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        run(command(&flags, &stopped).args(["--checkpoint-every", "5", "--resume"]));
        assert_same_run(&straight, &stopped);
    }
}

/// Masks of a file get the structure that a run asks for at its first update, or are refused.
#[test]
fn masks_of_a_file_get_their_structure_or_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let train = |flags: &str, name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        let data = "train --dataset glyphs --train-limit 256 --test-limit 100 --batch-size 32 --delta-t 2 --epochs 1";
        command.args(data.split(' ')).args(flags.split(' ')).arg("--out").arg(dir.path().join(name));
        command
    };
    run(&mut train("--method rigl --sparsity 0.9 --quiet", "sparse"));
    let weights = format!("--weights {}/sparse/model.safetensors", dir.path().display());
    for (i, storage) in ["condensed", "masked"].into_iter().enumerate() {
        let name = format!("nm-{i}");
        let output = run(&mut train(&format!("--method rigl --nm 1:4 {weights} --storage {storage}"), &name));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("have no full pattern 1:4") && said.contains("first update gives it"),
            "{said}"
        );
        let result = json(&dir.path().join(name).join("result.json"));
        assert!((result["sparsity"].as_f64().unwrap() - 0.75).abs() < 0.01, "{storage}");
    }
    let error = error_of(&mut train(&format!("--method static --nm 1:4 {weights}"), "refused"));
    assert!(error.contains("full pattern 1:4, which the masks of the file do not have"), "{error}");
    let error = error_of(&mut train(&format!("--method gmp --initial-mask file {weights}"), "refused"));
    assert!(error.contains("starts with all weights"), "{error}");
    let output = run(&mut train(&format!("--method gmp --sparsity 0.8 {weights}"), "gmp"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("all weights may be trained at first"), "{said}");
    let result = json(&dir.path().join("gmp/result.json"));
    assert!((result["sparsity"].as_f64().unwrap() - 0.8).abs() < 0.01);
    assert!(!dir.path().join("refused").exists());
    let error = error_of(&mut train("--method sr-ste --sparsity 0.8", "refused"));
    assert!(error.contains("follows from its pattern, 2:4"), "{error}");
    let error = error_of(&mut train("--method snip --weight-init torch-default", "refused"));
    assert!(error.contains("--weight-init"), "{error}");
}

#[test]
fn a_run_folder_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let arguments = "--model mnist-cnn --epochs 6 --resume";
    let mut first = srigl(arguments, &out).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !out.join("config.json").exists() {
        assert!(Instant::now() < patience, "the run does not start");
        std::thread::sleep(Duration::from_millis(3));
    }
    let error = error_of(&mut srigl(arguments, &out));
    let expected = format!("is being written by process {}", first.id());
    assert!(error.contains(&expected), "{error}");
    // Killed, it holds nothing any more.
    first.kill().unwrap();
    first.wait().unwrap();
    run(&mut srigl(arguments, &out));
    assert!(out.join("result.json").exists() && !out.join("run.lock").exists());
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    run(&mut srigl("--sparsity 0.95 --gamma-sal 0.9 --epochs 2 --threads 1", &one));
    run(&mut srigl("--sparsity 0.95 --gamma-sal 0.9 --epochs 2 --threads 3", &two));
    assert_same_run(&one, &two);
}

/// Training with the active weights alone takes the same path, whatever the number of threads and wherever it stops.
#[test]
fn condensed_training_is_masked_training() {
    let dir = tempfile::tempdir().unwrap();
    for (i, method) in
        ["--gamma-sal 0.9", "--method rigl --optimizer adamw --lr 0.001"].into_iter().enumerate()
    {
        let train = |name: &str, flags: &str| {
            let out = dir.path().join(format!("{name}-{i}"));
            let line =
                format!("--model mnist-cnn --sparsity 0.9 --epochs 2 --limit-steps 22 {method} {flags}");
            let output = run(srigl(&line, &out).arg("--storage").arg(name));
            (out, String::from_utf8(output.stderr).unwrap())
        };
        let (masked, _) = train("masked", "");
        let (condensed, said) = train("condensed", "--threads 2");
        assert!(said.contains("sparse layers train in condensed form"), "{said}");
        let masks = |out: &Path| fs::read(out.join("masks.jsonl")).unwrap();
        assert!(masks(&masked) == masks(&condensed), "masks differ");
        let accuracy = |out: &Path| json(&out.join("result.json"))["test_accuracy"].as_f64().unwrap();
        assert!((accuracy(&masked) - accuracy(&condensed)).abs() < 0.05);

        // Another number of threads, and stopped in the middle.
        let out = dir.path().join(format!("stopped-{i}"));
        let line =
            format!("--model mnist-cnn --sparsity 0.9 --epochs 2 --limit-steps 22 {method} --threads 1");
        let mut stopped = srigl(&line, &out);
        let mut stopped =
            stopped.args(["--storage", "condensed", "--checkpoint-every", "3"]).spawn().unwrap();
        let start = Instant::now();
        while !out.join("checkpoint.safetensors").exists() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stopped.kill().unwrap();
        stopped.wait().unwrap();
        let eval = |weights: &Path| {
            let mut eval = Command::new(env!("CARGO_BIN_EXE_srigl"));
            run(eval.args(["eval", "--json"]).arg(weights)).stdout
        };
        // What there is so far can be read, and a copy goes on with masks.
        eval(&out);
        let other = dir.path().join(format!("other-{i}"));
        fs::create_dir(&other).unwrap();
        for entry in fs::read_dir(&out).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
        }
        let output = run(srigl(&line, &other).args(["--storage", "masked", "--resume"]));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("sparse layers are masked"), "{said}");
        assert!(masks(&masked) == masks(&other), "masks differ");

        run(srigl(&line, &out).args(["--storage", "condensed", "--checkpoint-every", "3", "--resume"]));
        assert_same_run(&condensed, &out);

        // The file is one that all read.
        let result: Value = serde_json::from_slice(&eval(&condensed)).unwrap();
        assert_eq!(result["test_accuracy"].as_f64(), Some(accuracy(&condensed)));
    }
}

#[test]
fn every_method_optimizer_and_cpu_device_trains() {
    let dir = tempfile::tempdir().unwrap();
    for (i, arguments) in [
        "--method dense",
        "--method static",
        "--method set",
        "--method rigl --distribution uniform",
        "--method srigl --no-ablation --optimizer adamw --lr 0.001",
        "--method srigl --optimizer adam --lr 0.001 --device ndarray",
        "--method srigl --optimizer rmsprop --lr 0.0005 --distribution er --label-smoothing 0.1",
        "--method srigl --model resnet8 --train-limit 128 --lr-schedule constant",
        "--method structured-static",
        "--method structured-set --group 4",
        "--method magnitude",
        "--method global-magnitude",
        "--method snip",
        "--method snip --model resnet8 --train-limit 128 --micro-batch 16",
        "--method gmp",
        "--method snfs --drop-schedule linear",
        "--method mest --drop-schedule inverse-power",
        "--method top-kast --drop-schedule constant",
        "--method sr-ste --nm 1:5",
        "--method rigl --nm 1:5",
        "--method srigl --initial-mask sensitivity",
    ]
    .iter()
    .enumerate()
    {
        let out = dir.path().join(i.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
        command.args(
            "train --dataset glyphs --test-limit 100 --batch-size 64 --delta-t 2 --epochs 1 --quiet"
                .split(' '),
        );
        if !arguments.contains("--nm") {
            command.args(["--sparsity", "0.8"]);
        }
        if !arguments.contains("--train-limit") {
            command.args(["--train-limit", "512"]);
        }
        run(command.args(arguments.split(' ')).arg("--out").arg(&out));
        let result = json(&out.join("result.json"));
        let sparsity = result["sparsity"].as_f64().unwrap();
        let expected = if arguments.contains("dense") { 0.0 } else { 0.8 };
        // Constant fan-in rounds down, by up to one weight a neuron.
        assert!((sparsity - expected).abs() < 0.05, "{arguments}: {sparsity}");
    }
}

#[test]
fn mistakes_are_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = |name: &str| dir.path().join(name);
    let error = error_of(&mut srigl("--sparsity 1.5", &fresh("a")));
    assert!(error.contains("--sparsity is 1.5"), "{error}");
    let error = error_of(&mut srigl("--sparsity 0.9999", &fresh("b")));
    assert!(error.contains("layer `fc") && error.contains("fan-in would be 0"), "{error}");
    let error = error_of(&mut srigl("--device cuda", &fresh("c")));
    assert!(error.contains("without CUDA") || cfg!(feature = "cuda"), "{error}");
    let error = error_of(&mut srigl("--device tpu", &fresh("d")));
    assert!(error.contains("unknown device `tpu`"), "{error}");
    let error = error_of(&mut srigl("--lr 1e30 --epochs 2", &fresh("e")));
    assert!(error.contains("diverged"), "{error}");
    assert!(!fresh("e").join("result.json").exists());
    let error = error_of(&mut srigl("--keep-dense fc9", &fresh("f")));
    assert!(error.contains("fc9"), "{error}");
    let error = error_of(&mut srigl("--method gmp --end-fraction 0 --epochs 1", &fresh("g")));
    assert!(error.contains("`gmp` starts dense") && error.contains("train longer"), "{error}");
    let error = error_of(&mut srigl("--method snfs --nm 2:4", &fresh("h")));
    assert!(error.contains("`snfs` cannot have an N:M pattern"), "{error}");
    for name in ["a", "b", "c", "d", "f", "g", "h"] {
        assert!(!fresh(name).exists(), "{name}: a mistake leaves no folder behind");
    }

    let out = fresh("run");
    run(&mut srigl("--epochs 1", &out));
    let error = error_of(&mut srigl("--epochs 1", &out));
    assert!(error.contains("--resume"), "{error}");
    let error = error_of(&mut srigl("--epochs 2 --resume", &out));
    assert!(error.contains("--epochs"), "{error}");
    run(&mut srigl("--epochs 1 --resume", &out));

    // A damaged checkpoint is noticed, by resume and by eval.
    fs::remove_file(out.join("result.json")).unwrap();
    let path = out.join("checkpoint.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = error_of(&mut srigl("--epochs 1 --resume", &out));
    assert!(error.contains("checkpoint") && error.contains("damaged"), "{error}");
    fs::write(&path, &bytes[..100]).unwrap();
    let mut eval = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let error = error_of(eval.arg("eval").arg(&out));
    assert!(error.contains("damaged"), "{error}");

    let occupied = fresh("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("thesis.tex"), "precious").unwrap();
    let error = error_of(&mut srigl("--epochs 1", &occupied));
    assert!(error.contains("not a run folder"), "{error}");
    fs::write(occupied.join(".tmp-notes"), "precious too").unwrap();
    error_of(&mut srigl("--epochs 1", &occupied));
    assert!(occupied.join(".tmp-notes").exists(), "nothing is removed from a folder that is not a run's");
}

/// Real images, where the Debian package `dataset-fashion-mnist` is installed; CI installs it and insists.
/// Settings of methods in `config.json` are checked like all others.
#[test]
fn a_damaged_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(&mut srigl("--sparsity 0.9 --epochs 1", &out));
    let config = json(&out.join("config.json"));
    for (key, value) in [
        ("gamma_sal", Value::from("x")),
        ("no_ablation", "yes".into()),
        ("threshold_base", "foo".into()),
        ("method", "sgd".into()),
    ] {
        let mut damaged = config.clone();
        damaged[key] = value;
        fs::write(out.join("config.json"), damaged.to_string()).unwrap();
        let error = error_of(Command::new(env!("CARGO_BIN_EXE_srigl")).arg("eval").arg(&out));
        assert!(error.contains(key) && error.contains("config.json"), "{error}");
    }
    let no_steps = ["train", "--method", "dense", "--delta-t", "0", "--out", "none"];
    assert!(error_of(Command::new(env!("CARGO_BIN_EXE_srigl")).args(no_steps)).contains("--delta-t"));

    // A log that somebody shortened is not filled with zeros.
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    fs::remove_file(out.join("result.json")).unwrap();
    fs::write(out.join("metrics.jsonl"), "").unwrap();
    let error = error_of(&mut srigl("--sparsity 0.9 --epochs 1 --resume", &out));
    assert!(error.contains("metrics.jsonl") && error.contains("checkpoint"), "{error}");
}

#[test]
fn fashion_mnist_is_learnt() {
    if !Path::new("/usr/share/datasets/fashion-mnist").is_dir() {
        assert!(std::env::var_os("SRIGL_REQUIRE_DATA").is_none(), "Fashion-MNIST is not installed");
        eprintln!("skipped: the Debian package dataset-fashion-mnist is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    let arguments = "train --dataset fashion-mnist --epochs 1 --sparsity 0.95 --gamma-sal 0.3 --quiet";
    run(command.args(arguments.split(' ')).arg("--out").arg(&out));
    let result = json(&out.join("result.json"));
    assert_eq!(result["data"]["synthetic"], false);
    assert!(result["test_accuracy"].as_f64().unwrap() > 0.8, "{result}");
}
