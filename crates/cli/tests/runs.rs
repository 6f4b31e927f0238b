//! Runs that cannot be lost: checkpoints that are damaged, inputs that change, starts that are refused, runs that are extended.

mod common;

use common::{Bench, write_images};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

impl Bench {
    /// A small run on the generated data set: 16 steps an epoch.
    fn train(&self, line: &str) -> Output {
        let common =
            "train --dataset glyphs --train-limit 512 --test-limit 100 --batch-size 32 --delta-t 5 --lr 0.05";
        self.srigl(&format!("{common} {line}"))
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// As if it had been killed after its last checkpoint.
    fn unfinish(&self, run: &str) {
        for file in ["result.json", "model.safetensors"] {
            fs::remove_file(self.path(run).join(file)).unwrap();
        }
    }

    fn assert_same_model(&self, a: &str, b: &str) {
        let model = |run: &str| fs::read(self.path(run).join("model.safetensors")).unwrap();
        assert!(model(a) == model(b), "{a} and {b} differ");
    }
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// The one sentence of a command that fails.
fn refused(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {text}", output.status);
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_costs_what_came_after_the_one_before() {
    let bench = Bench::new();
    said(&bench.train("--epochs 3 --out straight"));
    said(&bench.train("--epochs 3 --out run"));
    bench.unfinish("run");
    let (last, previous) =
        (bench.path("run/checkpoint.safetensors"), bench.path("run/checkpoint.previous.safetensors"));
    flip_a_bit(&last);
    let text = said(&bench.srigl("eval run"));
    assert!(text.contains("checksum") && text.contains("after step 32 (epoch 2)"), "{text}");
    let text = said(&bench.train("--epochs 3 --out run --resume"));
    assert!(text.contains("after step 32 (epoch 2); the epoch logged since is trained again"), "{text}");
    bench.assert_same_model("straight", "run");
    assert_eq!(bench.lines("run/metrics.jsonl").len(), 3);

    // The damaged one has not taken the place of the good one.
    bench.unfinish("run");
    fs::remove_file(&last).unwrap();
    let text = said(&bench.train("--epochs 3 --out run --resume"));
    assert!(text.contains("checkpoint.safetensors is missing: going on"), "{text}");
    bench.assert_same_model("straight", "run");

    // Without a whole one, nothing is begun anew in silence.
    bench.unfinish("run");
    flip_a_bit(&last);
    fs::write(&previous, "").unwrap();
    for command in ["eval run", "train --dataset glyphs --out run --resume"] {
        let flags = if command.starts_with("train") {
            " --train-limit 512 --test-limit 100 --batch-size 32 --delta-t 5 --lr 0.05 --epochs 3"
        } else {
            ""
        };
        let text = refused(&bench.srigl(&format!("{command}{flags}")));
        assert!(text.contains("no checkpoint of the run can be used: remove"), "{text}");
    }
    fs::remove_file(&previous).unwrap();
    let text = refused(&bench.train("--epochs 3 --out run --resume"));
    assert!(text.contains("the only checkpoint of the run cannot be used: remove"), "{text}");
    fs::remove_file(&last).unwrap();
    let text = said(&bench.train("--epochs 3 --out run --resume"));
    assert!(text.contains("it starts again, and the 3 epochs of metrics.jsonl with it"), "{text}");
    bench.assert_same_model("straight", "run");
}

#[test]
fn a_run_is_extended_and_says_what_that_does() {
    let bench = Bench::new();
    let text = refused(&bench.train("--epochs 2 --out run --extend-to 4"));
    assert!(text.contains("--resume"), "{text}");
    let text = refused(&bench.train("--epochs 2 --out run --resume --extend-to 4"));
    assert!(text.contains("no checkpoint yet; start it with --epochs 4"), "{text}");
    assert!(!bench.path("run").exists());
    said(&bench.train("--epochs 2 --out run"));
    let text = refused(&bench.train("--epochs 2 --out run --resume --extend-to 2"));
    assert!(text.contains("has 2 epochs already"), "{text}");
    assert!(bench.path("run/result.json").exists());

    let text = said(&bench.train("--epochs 2 --out run --resume --extend-to 4"));
    assert!(
        text.contains("4 epochs instead of 2, from step 32 on: the learning rate goes on at 2.5"),
        "{text}"
    );
    assert!(text.contains("the topology changes until step 48 instead of 24, so it changes again"), "{text}");
    let config = bench.json("run/config.json");
    assert_eq!((&config["epochs"], &config["extended"][0]["epochs"]), (&4.into(), &2.into()));
    assert_eq!(config["extended"][0]["step"], 32);
    assert_eq!(bench.json("run/result.json")["epochs"], 4);
    let steps: Vec<u64> = bench
        .lines("run/topology.jsonl")
        .iter()
        .filter(|line| line["layer"] == "fc1")
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [5, 10, 15, 20, 35, 40, 45]);
    let rates: Vec<f64> =
        bench.lines("run/metrics.jsonl").iter().map(|line| line["lr"].as_f64().unwrap()).collect();
    assert!(rates[1] < 1e-3 && rates[2] > 5e-3 && rates[3] < 1e-3, "{rates:?}");

    // The command line it was started with still fits, as does that which extended it.
    for line in ["--epochs 2 --out run --resume", "--epochs 2 --out run --resume --extend-to 4"] {
        assert!(said(&bench.train(line)).contains("is finished already"));
    }
    refused(&bench.train("--epochs 3 --out run --resume"));
    // It resumes as any run.
    let model = fs::read(bench.path("run/model.safetensors")).unwrap();
    bench.unfinish("run");
    fs::remove_file(bench.path("run/checkpoint.safetensors")).unwrap();
    said(&bench.train("--epochs 2 --out run --resume"));
    assert!(fs::read(bench.path("run/model.safetensors")).unwrap() == model);
    said(&bench.srigl("report run -o page.html"));
}

#[test]
fn weights_may_be_gone_or_elsewhere_but_not_others() {
    let bench = Bench::new();
    said(&bench.train("--epochs 1 --method dense --out dense"));
    fs::copy(bench.path("dense/model.safetensors"), bench.path("w.safetensors")).unwrap();
    said(&bench.train("--epochs 2 --weights w.safetensors --out straight"));

    said(&bench.train("--epochs 2 --weights w.safetensors --out run"));
    let absolute = bench.path("w.safetensors");
    let again = format!("--epochs 2 --weights {} --out run --resume", absolute.display());
    bench.unfinish("run");
    said(&bench.train(&again));
    // Other contents are noticed, wherever they come from.
    bench.unfinish("run");
    fs::copy(bench.path("straight/model.safetensors"), &absolute).unwrap();
    assert!(refused(&bench.train(&again)).contains("was started from other --weights"));
    fs::remove_file(&absolute).unwrap();
    said(&bench.train("--epochs 2 --weights w.safetensors --out run --resume"));
    bench.assert_same_model("straight", "run");
    bench.unfinish("run");
    assert!(refused(&bench.train("--epochs 2 --out run --resume")).contains("another --weights"));
}

#[test]
fn settings_that_are_left_out_and_other_devices_are_noticed() {
    let bench = Bench::new();
    let vit = "--model vit-tiny --epochs 2 --train-limit 64 --out run";
    let common = "train --dataset glyphs --test-limit 20 --batch-size 32 --lr 0.01";
    said(&bench.srigl(&format!("{common} {vit} --width 16 --patch 4")));
    bench.unfinish("run");
    for flags in ["--width 16", "--patch 4", "--width 16 --patch 4 --dropout 0.1"] {
        let text = refused(&bench.srigl(&format!("{common} {vit} {flags} --resume")));
        assert!(text.contains("was trained with another --"), "{flags}: {text}");
    }
    fs::remove_file(bench.path("run/checkpoint.safetensors")).unwrap();
    let text = said(&bench.srigl(&format!("{common} {vit} --width 16 --patch 4 --resume --device ndarray")));
    assert!(text.contains("with --device ndarray and was trained on flex so far"), "{text}");
    let devices: Vec<Value> =
        bench.lines("run/metrics.jsonl").into_iter().map(|line| line["device"].clone()).collect();
    assert_eq!(devices, ["flex", "ndarray"]);
}

#[test]
fn another_folder_of_images_is_noticed_and_a_moved_one_is_the_same() {
    let bench = Bench::new();
    write_images(&bench.path("images"), 4);
    let train = |more: &str| {
        bench.srigl(&format!(
            "train --dataset image-folder --model resnet18-small --width 4 --image-size 32 --batch-size 4 --epochs 2 --sparsity 0.5 \
             --quiet --out run {more}"
        ))
    };
    said(&train("--data images"));
    bench.unfinish("run");
    fs::rename(bench.path("images"), bench.path("moved")).unwrap();
    said(&train("--data moved --resume"));
    bench.unfinish("run");
    fs::rename(bench.path("moved/train/a/0.png"), bench.path("moved/train/a/zero.png")).unwrap();
    let text = refused(&train("--data moved --resume"));
    assert!(text.contains("was started on other images of image-folder, though as many"), "{text}");
    fs::remove_file(bench.path("moved/train/a/zero.png")).unwrap();
    let text = refused(&train("--data moved --resume"));
    assert!(text.contains("(8 training and 8 test images, 2 classes)"), "{text}");
    assert!(text.contains("(7 training and 8 test images, 2 classes) now"), "{text}");
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    let bench = Bench::new();
    write_images(&bench.path("images"), 4);
    for class in ["a", "b"] {
        fs::write(bench.path(&format!("images/train/{class}/1.png")), "no picture").unwrap();
    }
    fs::write(bench.path("file"), "not a folder").unwrap();
    let before = fs::read_dir(bench.path("")).unwrap().count();
    for (line, part) in [
        ("--model mnist-cnn --dataset image-folder --data images --image-size 1 --epochs 1", "image"),
        ("--warmup-epochs 5 --epochs 4", "longer than the run"),
        ("--model vit-tiny --patch 5 --dataset glyphs --epochs 1", "patch"),
        ("--weights none.safetensors --epochs 1", "none.safetensors"),
        ("--no-ablation-layers nothing --epochs 1", "nothing"),
        ("--data nowhere --dataset cifar10 --epochs 1", "nowhere"),
        // A picture of the first epoch is broken: the folder has been made by then.
        (
            "--dataset image-folder --data images --model resnet18-small --width 4 --image-size 32 --batch-size 8 --epochs 1 --sparsity 0.5",
            "1.png",
        ),
    ] {
        let text = refused(&bench.srigl(&format!("train {line} --quiet --out deep/er/run")));
        assert!(text.contains(part), "{line}: {text}");
        assert!(!bench.path("deep").exists(), "{line}");
    }
    let text = refused(&bench.train("--epochs 1 --out file/run"));
    assert!(text.contains("file"), "{text}");
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), before);
    // A folder that was there stays.
    fs::create_dir(bench.path("mine")).unwrap();
    refused(&bench.train("--epochs 1 --weights none --out mine"));
    assert_eq!(fs::read_dir(bench.path("mine")).unwrap().count(), 0);
}

#[test]
fn the_best_model_is_there_after_the_first_epoch_however_bad() {
    let bench = Bench::new();
    let accuracy_of = |seed| {
        let out = format!("run{seed}");
        let line = "train --dataset glyphs --train-limit 32 --test-limit 1 --epochs 1 --lr 1e-9 --quiet";
        said(&bench.srigl(&format!("{line} --seed {seed} --out {out}")));
        assert!(bench.path(&out).join("best.safetensors").exists(), "seed {seed}");
        bench.json(&format!("{out}/result.json"))["test_accuracy"].as_f64().unwrap()
    };
    assert!((0..20).any(|seed| accuracy_of(seed) == 0.0), "one that is never right");
}

#[test]
fn what_a_finished_run_has_lost_is_made_again() {
    let bench = Bench::new();
    let train = "--epochs 2 --out run --resume --quiet";
    said(&bench.train("--epochs 2 --out run"));
    let files = ["model.safetensors", "best.safetensors"].map(|name| bench.path("run").join(name));
    let whole = files.clone().map(|file| fs::read(file).unwrap());
    let evaluated = |expected: &str| {
        let json: Value = serde_json::from_slice(&bench.srigl("eval run --json").stdout).unwrap();
        assert_eq!(json["test_accuracy"], bench.json("run/result.json")[expected]);
    };
    evaluated("test_accuracy");

    // Evaluating a finished run needs no checkpoint.
    let checkpoints = ["checkpoint.safetensors", "checkpoint.previous.safetensors"];
    let kept = checkpoints.map(|name| fs::read(bench.path("run").join(name)).unwrap());
    checkpoints.iter().for_each(|name| fs::remove_file(bench.path("run").join(name)).unwrap());
    evaluated("test_accuracy");
    let text = refused(&bench.srigl("eval run/config.json"));
    assert!(text.contains("it is not a folder"), "{text}");
    checkpoints
        .iter()
        .zip(kept)
        .for_each(|(name, bytes)| fs::write(bench.path("run").join(name), bytes).unwrap());

    let text = said(&bench.train(train));
    assert!(text.contains("is finished already"), "{text}");
    fs::write(bench.path("run/result.json"), "{ torn").unwrap();
    for line in ["eval run", "export run -o e.safetensors", "condense run -o c.safetensors"] {
        let text = refused(&bench.srigl(line));
        assert!(text.contains("result.json") && text.contains("--resume` makes it again"), "{text}");
    }
    let text = said(&bench.train(train));
    assert!(text.contains("result.json") && text.contains("makes it again"), "{text}");
    evaluated("test_accuracy");

    // The result stays what it was, whatever makes the model again.
    let result = fs::read(bench.path("run/result.json")).unwrap();
    fs::remove_file(&files[0]).unwrap();
    let text = refused(&bench.srigl("export run -o e.safetensors"));
    assert!(
        text.contains("model.safetensors: it is missing; `srigl train … --resume` makes it again"),
        "{text}"
    );
    let text = said(&bench.train(&format!("{train} --device ndarray")));
    assert!(text.contains("model.safetensors is gone or damaged: it is made again"), "{text}");
    assert!(fs::read(&files[0]).unwrap() == whole[0]);
    assert!(fs::read(bench.path("run/result.json")).unwrap() == result);

    // There is no second copy of the best one, and nothing to make the last one from: logs are not begun anew.
    fs::remove_file(&files[1]).unwrap();
    let text = refused(&bench.srigl("export run --best -o e.safetensors"));
    assert!(text.contains("best.safetensors is gone: only to train the run again"), "{text}");
    assert!(said(&bench.train(train)).contains("is finished already"));
    checkpoints.iter().for_each(|name| fs::remove_file(bench.path("run").join(name)).unwrap());
    fs::write(&files[0], "no model").unwrap();
    let log = fs::read(bench.path("run/metrics.jsonl")).unwrap();
    let text = said(&bench.train(train));
    assert!(text.contains("there is no checkpoint to make it from"), "{text}");
    fs::write(bench.path("run/result.json"), "{ torn").unwrap();
    let text = refused(&bench.train(train));
    assert!(text.contains("makes it again from the last checkpoint, but there is none"), "{text}");
    assert!(fs::read(bench.path("run/metrics.jsonl")).unwrap() == log);
}

#[test]
fn the_best_model_of_an_extended_run_is_of_one_of_its_epochs() {
    let bench = Bench::new();
    said(&bench.train("--epochs 3 --out run --quiet"));
    // As if the third epoch had been the best by far, and its checkpoint lost.
    fs::remove_file(bench.path("run/checkpoint.safetensors")).unwrap();
    let log = bench.path("run/metrics.jsonl");
    let mut lines = bench.lines("run/metrics.jsonl");
    lines[2]["test_accuracy"] = 1.0.into();
    fs::write(
        &log,
        fs::read_to_string(&log)
            .unwrap()
            .lines()
            .take(2)
            .map(|line| line.to_string() + "\n")
            .collect::<String>(),
    )
    .unwrap();
    fs::write(&log, fs::read_to_string(&log).unwrap() + &lines[2].to_string() + "\n").unwrap();
    let text = said(&bench.train("--epochs 3 --out run --quiet --resume --extend-to 5"));
    assert!(text.contains("best.safetensors is of an epoch that is lost"), "{text}");
    let accuracy = |line: &Value| line["test_accuracy"].as_f64().unwrap();
    let best = bench.lines("run/metrics.jsonl")[2..].iter().map(accuracy).reduce(f64::max).unwrap();
    assert_eq!(bench.json("run/result.json")["best_test_accuracy"], best);
}

/// Another data set of the same shape would be evaluated without a word.
#[test]
fn other_data_sets_are_refused_by_eval() {
    let bench = Bench::new();
    said(&bench.train("--epochs 1 --out run"));
    for (file, from, to) in [
        ("inputs.json", "\"glyphs\"", "\"mnist\""),
        // Where that is gone, by the result.
        ("result.json", "\"name\": \"glyphs\"", "\"name\": \"mnist\""),
    ] {
        let path = bench.path("run").join(file);
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(from), "{before}");
        fs::write(&path, before.replace(from, to)).unwrap();
        let text = refused(&bench.srigl("eval run"));
        assert!(text.contains("was trained on mnist, but the data is glyphs"), "{text}");
        fs::write(&path, before).unwrap();
        if file == "inputs.json" {
            fs::remove_file(path).unwrap();
        }
    }
    said(&bench.srigl("eval run"));
}

#[test]
fn logs_and_inputs_belong_to_the_checkpoint() {
    let bench = Bench::new();
    said(&bench.train("--epochs 2 --out straight"));
    said(&bench.train("--epochs 2 --out run"));
    bench.unfinish("run");
    fs::remove_file(bench.path("run/checkpoint.safetensors")).unwrap();
    for log in ["metrics.jsonl", "topology.jsonl", "masks.jsonl"] {
        let path = bench.path("run").join(log);
        let before = fs::read_to_string(&path).unwrap();
        let (first, rest) = before.split_once('\n').unwrap();
        let changed = first.replacen(['1', '4', '7', 'A'], "9", 1) + "\n" + rest;
        let all = || {
            ["metrics.jsonl", "topology.jsonl", "masks.jsonl"]
                .map(|log| fs::read(bench.path("run").join(log)).ok())
        };
        for wrong in [Some(changed), Some(rest.to_string()), None] {
            match &wrong {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let wrong = all();
            let text = refused(&bench.train("--epochs 2 --out run --resume"));
            assert!(text.contains(log) && text.contains("restore the file"), "{text}");
            assert!(all() == wrong, "nothing is lost");
        }
        fs::write(&path, before).unwrap();
    }
    // What a run was started on is in its checkpoints, too.
    fs::remove_file(bench.path("run/inputs.json")).unwrap();
    said(&bench.train("--epochs 2 --out run --resume"));
    assert_eq!(bench.json("run/inputs.json"), bench.json("straight/inputs.json"));
    bench.assert_same_model("straight", "run");

    write_images(&bench.path("images"), 4);
    write_images(&bench.path("others"), 5);
    let train = |data: &str| {
        bench.srigl(&format!(
            "train --dataset image-folder --model resnet18-small --width 4 --image-size 32 --batch-size 4 --epochs 1 \
             --sparsity 0.5 --quiet --out folder --resume --data {data}"
        ))
    };
    said(&train("images"));
    let text = refused(&train("others"));
    assert!(text.contains("(8 training and 8 test images, 2 classes), but the data is"), "{text}");
    assert!(said(&train("images")).contains("is finished already"));
    bench.unfinish("folder");
    fs::remove_file(bench.path("folder/inputs.json")).unwrap();
    let text = refused(&train("others"));
    assert!(text.contains("(8 training and 8 test images, 2 classes), but the data is"), "{text}");
    assert!(!bench.path("folder/inputs.json").exists());
}

#[test]
fn files_of_a_run_are_its_own() {
    let bench = Bench::new();
    said(&bench.train("--epochs 1 --out run"));
    let names = ["config.json", "checkpoint.safetensors", "model.safetensors", "metrics.jsonl"];
    let before = names.map(|name| fs::read(bench.path("run").join(name)).unwrap());
    for name in names {
        for line in [
            "export run -o",
            "condense run -o",
            "report run -o",
            "data sheet glyphs -o",
            "bench layer --in 8 --out 8 --sparsity 0.5 --rounds 1 --save-weights",
            "mask init run/model.safetensors --sparsity 0.5 -o",
        ] {
            let text = refused(&bench.srigl(&format!("{line} run/{name}")));
            assert!(text.contains("belongs to the run in its folder"), "{line}: {text}");
        }
    }
    assert!(names.map(|name| fs::read(bench.path("run").join(name)).unwrap()) == before);
    said(&bench.srigl("export run -o run/export.safetensors"));
    let text = refused(&bench.srigl("data sheet glyphs -o nowhere/sheet.png"));
    assert!(text.contains("there is no folder") && !bench.path("nowhere").exists(), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn nobody_needs_to_read_what_is_said_on_the_side() {
    let bench = Bench::new();
    let unread = |line: &str| {
        let mut command = bench.command(line);
        let output =
            command.stderr(fs::File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
        assert!(output.status.success(), "{line}: {:?}", output.status);
    };
    unread("train --dataset glyphs --train-limit 64 --test-limit 10 --epochs 1 --out run");
    unread("train --dataset glyphs --train-limit 64 --test-limit 10 --epochs 1 --out run --resume");
    unread("eval run");
    unread("mask init run/best.safetensors --sparsity 0.5 -o masked.safetensors");
    unread("mask inspect masked.safetensors");
    // What goes to standard output is what the command is for.
    for line in ["--help", "--version", "train --help", "eval run", "models"] {
        let output =
            bench.command(line).stdout(fs::File::options().write(true).open("/dev/full").unwrap()).output();
        assert_eq!(output.unwrap().status.code(), Some(1), "{line}");
    }
}

#[test]
fn bench_at_its_extremes_gives_a_sentence() {
    let bench = Bench::new();
    let most = u64::MAX;
    for (line, part) in [
        (format!("layer --conv 4 4 3 --size {most}"), "a window of kernel 3, stride 1"),
        (format!("layer --conv 4 4 3 --size 8 --stride {most}"), "in a window of kernel 3"),
        ("layer --conv 4 4 3 --size 8 --stride 0".into(), "stride 0"),
        (format!("layer --conv 4 4 {most} --size 8"), "positions"),
        (format!("layer --in {most} --out {most}"), "positions"),
        (format!("layer --in 8 --out 8 --batch {most}"), "smaller shape or --batch"),
        (format!("layer --in 8 --out 8 --threads {most}"), "--threads"),
        (format!("model mlp --batch {most}"), "--batch"),
        (format!("model mlp --batch {}", 1_u64 << 40), "--batch"),
        (format!("train mlp --batch {most}"), "smaller batch"),
        ("train mlp --batch 1000 --max-memory 1MB".into(), "--max-memory"),
        (format!("train mlp --steps {most}"), "--steps"),
        ("train mlp --steps 0".into(), "--steps"),
        ("layer --in 1000000 --out 64 --max-memory 1MB".into(), "--max-memory"),
        ("model vit-b-16 --max-memory 1MB".into(), "--max-memory"),
        (format!("layer --in 8 --out 8 --rounds {most}"), "--rounds"),
        (format!("model mlp --rounds 1 --save-weights w.safetensors --batch {most}"), "--batch"),
        ("layer --conv 1000000 4 3 --size 8 --rounds 1 --save-weights w.safetensors".into(), "kernel"),
    ] {
        let text = refused(&bench.srigl(&format!("bench {line} --sparsity 0.5")));
        assert!(text.contains(part), "{line}: {text}");
        assert!(!bench.path("w.safetensors").exists(), "{line}");
    }
}

#[test]
fn numbers_at_their_extremes_give_a_sentence() {
    let bench = Bench::new();
    let most = u64::MAX.to_string();
    let counts = [
        "epochs",
        "batch-size",
        "micro-batch",
        "delta-t",
        "grad-accumulation",
        "warmup-epochs",
        "lr-every",
        "image-size",
        "limit-steps",
        "train-limit",
        "test-limit",
        "checkpoint-every",
        "threads",
        "workers",
        "width",
        "patch",
        "seed",
        "extend-to",
        "max-memory",
        "lr-milestones",
    ];
    let shares = [
        "lr",
        "momentum",
        "weight-decay",
        "sparsity",
        "drop-fraction",
        "end-fraction",
        "clip-norm",
        "label-smoothing",
        "gamma-sal",
        "erk-power",
        "lr-factor",
        "dropout",
        "random-erase",
        "mixup-alpha",
        "cutmix-alpha",
        "color-jitter",
    ];
    let pairs = ["betas", "resize-from"];
    let of = |flags: &'static [&'static str], values: Vec<String>| {
        flags.iter().flat_map(move |flag| values.clone().into_iter().map(move |value| (*flag, value)))
    };
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let all = of(counts.to_vec().leak(), words(&["0", &most, "-1", "99999999999999999999"]))
        .chain(of(shares.to_vec().leak(), words(&["0", "-1", "1e308", "nan", "inf"])))
        .chain(of(pairs.to_vec().leak(), words(&["0,0", &format!("{most},{most}"), "nan,nan", ","])));
    for (flag, value) in all {
        let mut flags =
            vec![("train-limit", "64"), ("test-limit", "20"), ("batch-size", "32"), ("epochs", "1")];
        // As `--delta-t 0` of a method that has none.
        flags.push(("method", if flag == "delta-t" { "dense" } else { "srigl" }));
        if matches!(flag, "width" | "patch") {
            flags.push(("model", "vit-tiny"));
        }
        flags.retain(|(name, _)| *name != flag);
        let line: Vec<String> = flags.iter().map(|(name, value)| format!("--{name} {value}")).collect();
        let out = format!("{flag}={value}").replace('/', "");
        let output = bench.srigl(&format!(
            "train --dataset glyphs --quiet {} --{flag}={value} --out {out}",
            line.join(" ")
        ));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0..=2)), "--{flag}={value}: {:?} {text}", output.status);
        assert!(!text.contains("panicked"), "--{flag}={value}: {text}");
        assert!(output.status.success() || !text.trim().is_empty(), "--{flag}={value} says nothing");
    }
}

/// `eval` looks at an edited `config.json` as `train` would have looked at the flags.
#[test]
fn an_edited_configuration_gives_a_sentence() {
    let bench = Bench::new();
    said(&bench.train("--epochs 1 --out run"));
    let config = bench.json("run/config.json");
    let most = Value::from(u64::MAX);
    for (key, value) in [
        ("sparsity", Value::from(2.0)),
        ("epochs", 0.into()),
        ("epochs", most.clone()),
        ("batch_size", 0.into()),
        ("batch_size", most.clone()),
        ("delta_t", 0.into()),
        ("image_size", most.clone()),
        ("micro_batch", 0.into()),
        ("warmup_epochs", most.clone()),
        ("lr_every", 0.into()),
        ("train_limit", 0.into()),
        ("test_limit", most.clone()),
        ("width", 0.into()),
        ("patch", 0.into()),
        ("lr", Value::from(-1.0)),
        ("gamma_sal", Value::from(7.0)),
        ("betas", serde_json::json!([2.0, -1.0])),
        ("dropout", Value::from(1.5)),
        ("model", "\u{1b}[31mred".into()),
        ("extended", serde_json::json!([{ "epochs": u64::MAX, "step": u64::MAX }])),
    ] {
        let mut edited = config.clone();
        edited[key] = value.clone();
        fs::write(bench.path("run/config.json"), edited.to_string()).unwrap();
        for command in [
            "eval run",
            "condense run -o c.safetensors",
            "export run -o e.safetensors",
            "report run -o r.html",
        ] {
            let output = bench.srigl(command);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                matches!(output.status.code(), Some(0..=2)),
                "{key} {value}, {command}: {:?}",
                output.status
            );
            assert!(
                !text.contains("panicked") && !text.contains('\u{1b}'),
                "{key} {value}, {command}: {text}"
            );
        }
    }
}

#[test]
fn memory_has_a_limit() {
    let bench = Bench::new();
    let text = refused(&bench.train("--epochs 1 --max-memory 2MB --out run"));
    assert!(text.contains("of memory, but 2.0 MB are allowed"), "{text}");
    for (flags, part) in [
        (
            "--model vit-tiny --width 1024 --patch 2 --max-memory 300MB",
            "results of all layers of `vit-tiny` for 32 images",
        ),
        ("--model resnet50 --width 1024 --max-memory 2GB", "weights of `resnet50` are too many"),
    ] {
        let text = refused(&bench.train(&format!("--epochs 1 --out run {flags}")));
        assert!(text.contains(part) && text.contains("--max-memory"), "{text}");
    }
    assert!(!bench.path("run").exists());
    said(&bench.train("--epochs 1 --max-memory 1GiB --quiet --out run"));
    let text = refused(
        &bench.srigl("mask init run/model.safetensors -o out.safetensors --sparsity 0.9 --max-memory 100kB"),
    );
    assert!(text.contains("100.0 kB are allowed"), "{text}");
    assert!(!bench.path("out.safetensors").exists());
}
