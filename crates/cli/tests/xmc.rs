//! `srigl xmc` through the real binary.

mod common;

use common::Bench;
use serde_json::Value;
use std::fs;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A folder with made-up points to train and test on.
fn made_up() -> Bench {
    let bench = Bench::new();
    for (seed, points, file) in [(1, 2000, "train.txt"), (2, 400, "test.txt")] {
        let sizes = format!("--points {points} --features 500 --labels 300");
        assert!(bench.srigl(&format!("xmc synth {sizes} --seed {seed} -o {file}")).status.success());
    }
    bench
}

#[test]
fn a_network_learns_is_measured_and_predicts() {
    let bench = made_up();
    let train = "xmc train --train train.txt --test test.txt --hidden 128 --fan-in 16 --batch-size 64 --delta-t 20 --epochs 5";
    let output = bench.srigl(&format!("{train} --out run --threads 2 --json"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("epoch 5/5: train loss "));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result, bench.json("run/result.json"));
    assert!(result["p_at_1"].as_f64().unwrap() > 0.7, "{result}");
    assert_eq!(result["parameters"], 500 * 128 + 128 + 300 * 17);
    assert!(result["seconds_per_epoch"].as_f64().unwrap() > 0.0);

    // What `eval` measures is what training did, and what is told from predictions.
    let output = bench.srigl("xmc eval run --test test.txt --json");
    assert!(output.status.success(), "{}", stderr(&output));
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, value) in measured.as_object().unwrap() {
        assert_eq!(*value, result[name], "{name}");
    }
    let output = bench.srigl("xmc predict run --input test.txt --top 3 -o best.txt");
    assert!(output.status.success(), "{}", stderr(&output));
    let [best, test] = ["best.txt", "test.txt"].map(|file| fs::read_to_string(bench.path(file)).unwrap());
    let mut hits = [0; 2];
    for (best, point) in best.lines().zip(test.lines().skip(1)) {
        let labels: Vec<&str> = point.split(' ').next().unwrap().split(',').collect();
        let ranked: Vec<&str> = best.split(' ').map(|word| word.split(':').next().unwrap()).collect();
        assert_eq!(ranked.len(), 3);
        hits[0] += usize::from(labels.contains(&ranked[0]));
        hits[1] += ranked.iter().filter(|label| labels.contains(*label)).count();
    }
    assert_eq!(best.lines().count(), 400);
    let close =
        |hits: usize, of: f64, name: &str| (hits as f64 / of - measured[name].as_f64().unwrap()).abs() < 1e-9;
    assert!(close(hits[0], 400.0, "p_at_1") && close(hits[1], 1200.0, "p_at_3"));

    // Any number of threads, the same network.
    assert!(bench.srigl(&format!("{train} --out again --threads 1 --quiet")).status.success());
    let [first, second] =
        ["run", "again"].map(|run| fs::read(bench.path(run).join("model.safetensors")).unwrap());
    assert!(first == second);
}

#[test]
fn what_does_not_fit_is_said_and_leaves_nothing_behind() {
    let bench = made_up();
    fs::write(bench.path("nan.txt"), "1 500 300\n3 7:NaN\n").unwrap();
    fs::write(bench.path("wide.txt"), "1 501 300\n3 7:1\n").unwrap();
    let refused = |[train, test]: [&str; 2], flags: &str, expected: &str| {
        let line = format!("xmc train --train {train}.txt --test {test}.txt --out run --epochs 1 {flags}");
        let output = bench.srigl(&line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{flags}: {said}");
        assert!(said.contains(expected), "{flags}: {said}");
        assert!(!bench.path("run").exists(), "{flags}");
    };
    let files = ["train", "test"];
    refused(["nan", "test"], "", "`nan.txt`, line 2: feature 7 has the value NaN");
    refused(["train", "wide"], "", "`wide.txt`: the points have 501 features, the network 500");
    refused(["none", "test"], "", "cannot read `none.txt`");
    refused(files, "--fan-in 769", "--fan-in must be from 1 to --hidden, 768, not 769");
    refused(files, "--fan-in 0", "--fan-in must be from 1");
    refused(files, "--group 0", "--group must be from 1 to 256, not 0");
    refused(files, "--group 257", "--group must be from 1 to 256, not 257");
    refused(files, "--hidden 0", "--hidden must be from 1 to 65536");
    refused(files, "--hidden 65537", "--hidden must be from 1 to 65536");
    refused(files, "--batch-size 0", "batch size must be at least 1, not 0");
    refused(files, "--lr NaN", "learning rate must be positive, not NaN");
    refused(files, "--dropout 1", "dropout must be from 0 to less than 1, not 1");
    refused(files, "--drop-fraction 1.5", "drop fraction must be from 0 to 1, not 1.5");
    refused(
        files,
        "--hidden 60000 --max-memory 10MB",
        "a network of so many features and labels, and its moments: it would take",
    );
    refused(files, "--lr 1e38 --batch-size 100", "training has diverged; take a lower learning rate");
    // In its only step.
    refused(files, "--lr 1e300 --batch-size 2000", "logits are not finite");
    refused(
        files,
        "--hidden 60000 --batch-size 2000 --max-memory 400MB",
        "the hidden layer of a batch; take a smaller one",
    );
    let output = bench.srigl("xmc train --train train.txt --test test.txt --epochs 1 --out train.txt/run");
    assert!(!output.status.success() && stderr(&output).contains("`train.txt` is not a folder"));
    // At their extremes.
    let most = u64::MAX;
    let output = bench.srigl(&format!(
        "xmc train --train train.txt --test test.txt --out run --epochs 1 --batch-size {most} --delta-t {most} --seed {most} --hidden 8 --fan-in 2 --quiet"
    ));
    assert!(output.status.success(), "{}", stderr(&output));
    let again = bench.srigl("xmc train --train train.txt --test test.txt --out run");
    assert!(stderr(&again).contains("run holds a run already: add --resume to continue it"));
    let other = bench.srigl("xmc train --train train.txt --test test.txt --out run --resume");
    assert!(stderr(&other).contains("run was trained with another --"), "{}", stderr(&other));
    // What belongs to a run, or is the input, is not replaced.
    let output = bench.srigl("xmc predict run --input test.txt -o run/model.safetensors");
    assert!(stderr(&output).contains("belongs to the run in its folder"), "{}", stderr(&output));
    let output = bench.srigl("xmc predict run --input test.txt -o test.txt");
    assert!(stderr(&output).contains("-o `test.txt` is the input; take another name"));

    fs::write(bench.path("run/model.safetensors"), "no network").unwrap();
    for line in ["xmc eval run --test test.txt", "xmc predict run --input test.txt -o best.txt"] {
        let output = bench.srigl(line);
        assert!(
            !output.status.success() && stderr(&output).contains("model.safetensors`"),
            "{}",
            stderr(&output)
        );
    }
    assert!(!bench.path("best.txt").exists());
    let output = bench.srigl("xmc synth --labels 0 -o none.txt");
    assert!(stderr(&output).contains("--labels must be from 1 to 4294967295"));
}

/// Dense features in a safetensors file: the same network as of a text that has all of them.
#[test]
fn dense_features_come_from_a_tensor() {
    let bench = Bench::new();
    let (points, columns) = (120, 6);
    let number =
        |point: usize, column: usize| ((point * (column + 3) + point / 7 * column) % 16) as f32 / 8.0 - 1.0;
    let label =
        |point: usize| (0..columns).max_by_key(|column| (number(point, *column) * 8.0) as i32).unwrap();
    let (mut text, mut labels, mut data) =
        (format!("{points} {columns} {columns}\n"), String::new(), Vec::new());
    labels.push_str(&text);
    for point in 0..points {
        text += &label(point).to_string();
        labels += &format!("{}\n", label(point));
        for column in 0..columns {
            text += &format!(" {column}:{}", number(point, column));
            data.extend(number(point, column).to_le_bytes());
        }
        text += "\n";
    }
    let header = format!(
        r#"{{"x":{{"dtype":"F32","shape":[{points},{columns}],"data_offsets":[0,{}]}}}}"#,
        data.len()
    );
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    for (name, bytes) in
        [("text.txt", text.as_bytes()), ("labels.txt", labels.as_bytes()), ("x.safetensors", &bytes)]
    {
        fs::write(bench.path(name), bytes).unwrap();
    }
    let flags = "--hidden 32 --fan-in 8 --batch-size 20 --epochs 20 --dropout 0 --quiet";
    let sparse = bench.srigl(&format!("xmc train --train text.txt --test text.txt {flags} --out sparse"));
    assert!(sparse.status.success(), "{}", stderr(&sparse));
    let features = "--train-features x.safetensors --test-features x.safetensors";
    let dense = bench.srigl(&format!(
        "xmc train --train labels.txt --test labels.txt {features} {flags} --out dense --json"
    ));
    assert!(dense.status.success(), "{}", stderr(&dense));
    let metrics = |run: &str| common::timeless(&bench.path(run).join("metrics.jsonl"));
    assert_eq!(metrics("sparse"), metrics("dense"));
    let result: Value = serde_json::from_slice(&dense.stdout).unwrap();
    assert!(result["p_at_1"].as_f64().unwrap() > 0.8, "{result}");
    for (line, output) in
        [("predict sparse --input text.txt", "s.txt"), ("predict dense --input x.safetensors", "d.txt")]
    {
        let predicted = bench.srigl(&format!("xmc {line} -o {output}"));
        assert!(predicted.status.success(), "{}", stderr(&predicted));
    }
    assert_eq!(fs::read(bench.path("s.txt")).unwrap(), fs::read(bench.path("d.txt")).unwrap());
    let measured = bench.srigl("xmc eval dense --test labels.txt --test-features x.safetensors --json");
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert_eq!(measured["p_at_1"], result["p_at_1"]);
    // Forgotten, they are asked for.
    let forgotten = bench.srigl("xmc eval dense --test labels.txt");
    let said = stderr(&forgotten);
    assert!(said.contains("`labels.txt`: the network has dense features and the points do not"), "{said}");
    // As many features as the network has, not fewer.
    let header = r#"{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    let narrow = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 24]].concat();
    fs::write(bench.path("narrow.safetensors"), narrow).unwrap();
    let refused = bench.srigl("xmc predict dense --input narrow.safetensors -o none.txt");
    assert!(stderr(&refused).contains("the points have 3 features, the network 6"), "{}", stderr(&refused));
    let half =
        bench.srigl("xmc train --train labels.txt --train-features x.safetensors --test text.txt --out no");
    assert_eq!(half.status.code(), Some(2), "one without the other");
}

/// A page of curves, of runs of one kind.
#[test]
fn runs_are_drawn() {
    let bench = made_up();
    let train = "xmc train --train train.txt --test test.txt --hidden 32 --epochs 2 --quiet";
    for flags in ["--out a", "--dense --out b"] {
        assert!(bench.srigl(&format!("{train} {flags}")).status.success());
    }
    let output = bench.srigl("report a b -o page.html");
    assert!(output.status.success(), "{}", stderr(&output));
    let page = fs::read_to_string(bench.path("page.html")).unwrap();
    for text in ["Extreme classification", "P@1", "squared-hinge", "2000"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("unfinished"));
    fs::remove_file(bench.path("b/result.json")).unwrap();
    assert!(bench.srigl("report b -o page.html").status.success());
    assert!(fs::read_to_string(bench.path("page.html")).unwrap().contains("2 of 2, unfinished"));
    fs::create_dir(bench.path("other")).unwrap();
    let mixed = bench.srigl("report a other -o page.html");
    assert!(stderr(&mixed).contains("have nothing to compare"), "{}", stderr(&mixed));
    // A damaged log is told with its line.
    fs::write(bench.path("a/metrics.jsonl"), "{\"epoch\": 1}\n").unwrap();
    assert!(stderr(&bench.srigl("report a -o page.html")).contains("metrics.jsonl, line 1: "));
}

#[test]
fn debian_packages_are_points() {
    let bench = Bench::new();
    let package = |i: usize| {
        format!(
            "Package: tool{i}\nDepends: libc6, lib{}\nDescription: a tool of kind{} that helps\n",
            i % 5,
            i % 5
        )
    };
    fs::write(bench.path("Packages"), (0..100).map(package).collect::<Vec<_>>().join("\n")).unwrap();
    let output = bench.srigl("xmc debian --index Packages --seed 3 -o sets/debian");
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with("wrote 100 packages with ") && said.contains(" and 6 packages that they depend on"),
        "{said}"
    );
    let flags = "--hidden 32 --fan-in 8 --batch-size 20 --epochs 30 --dropout 0 --quiet --json";
    let train = bench.srigl(&format!(
        "xmc train --train sets/debian/train.txt --test sets/debian/test.txt {flags} --out run"
    ));
    let result: Value = serde_json::from_slice(&train.stdout).unwrap();
    // All depend on libc6.
    assert!(result["p_at_1"].as_f64().unwrap() > 0.9, "{result}");
    fs::write(bench.path("Packages"), "no packages").unwrap();
    let output = bench.srigl("xmc debian --index Packages -o none");
    assert!(
        !output.status.success() && stderr(&output).contains("a package index of 0 packages"),
        "{}",
        stderr(&output)
    );
    assert!(!bench.path("none").exists());
}

/// A training that is killed at any time, and again, goes on to the network that it would have made.
#[test]
fn a_killed_training_goes_on() {
    let bench = made_up();
    let train = "xmc train --train train.txt --test test.txt --hidden 128 --fan-in 16 --group 4 --dense-head 20 --growth gradient \
                 --batch-size 64 --delta-t 20 --epochs 4 --quiet";
    assert!(bench.srigl(&format!("{train} --out whole")).status.success());
    let checkpoint = bench.path("killed/checkpoint.safetensors");
    let mut child = bench.command(&format!("{train} --out killed")).spawn().unwrap();
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // Nobody else may write meanwhile.
    let other = bench.srigl(&format!("{train} --out killed --resume"));
    let is_running = child.try_wait().unwrap().is_none();
    assert!(
        !is_running || stderr(&other).contains("killed is being written by process"),
        "{}",
        stderr(&other)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let output = bench.srigl(&format!("{train} --out killed --resume"));
    assert!(output.status.success(), "{}", stderr(&output));
    let file = |run: &str, name: &str| fs::read(bench.path(run).join(name)).unwrap();
    assert!(file("whole", "model.safetensors") == file("killed", "model.safetensors"));
    let lines = |run: &str| common::timeless(&bench.path(run).join("metrics.jsonl"));
    assert_eq!(lines("whole"), lines("killed"));
    assert_eq!(lines("whole").len(), 4);

    // A damaged checkpoint falls back to the one before it, and says so.
    fs::remove_file(bench.path("killed/result.json")).unwrap();
    let mut bytes = fs::read(&checkpoint).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&checkpoint, bytes).unwrap();
    let output = bench.srigl(&format!("{train} --out killed --resume"));
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("its checksum does not match: going on from the checkpoint before it, after step"),
        "{said}"
    );
    assert!(file("whole", "model.safetensors") == file("killed", "model.safetensors"));
    assert!(bench.path("killed/checkpoint.damaged.safetensors").exists());

    // Other points, or other settings, are another run.
    let refused = |line: &str, expected: &str| {
        let said = stderr(&bench.srigl(&format!("{line} --out killed --resume")));
        assert!(said.contains(expected), "{said}");
    };
    refused(&train.replace("--train train.txt", "--train test.txt"), "was trained with another --train");
    refused(&train.replace("--fan-in 16", "--fan-in 15"), "was trained with another --fan-in");
    refused(&train.replace("--epochs 4", "--epochs 5 --lr 1e-3"), "was trained with another --");
    let output = bench.srigl(&format!("{train} --out killed --resume"));
    assert!(stderr(&output).contains("killed is finished already"));
    // A flipped bit in the network is told, and mended.
    let model = bench.path("killed/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&model, bytes).unwrap();
    let output = bench.srigl("xmc eval killed --test test.txt");
    assert!(stderr(&output).contains("killed/model.safetensors`: "), "{}", stderr(&output));
    assert!(bench.srigl(&format!("{train} --out killed --resume")).status.success());
    assert!(file("whole", "model.safetensors") == file("killed", "model.safetensors"));
}
