//! `xtask reproduce` as a user runs it, with a fake `srigl` in place of the real one.
#![cfg(unix)]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A shell script that takes the flags of `srigl train` and writes a result. Each call appends its flags to
/// `calls.log` beside it. SRigL at 95 % fails while `fail` exists beside it; data are synthetic while `synthetic` does.
const FAKE_SRIGL: &str = r#"#!/bin/sh
here=$(dirname "$0")
[ "$1" = data ] || echo "threads=$RAYON_NUM_THREADS $*" >> "$here/calls.log"
method=; sparsity=0; seed=0; out=; epochs=0; ablation=yes; resume=no
if [ "$1" = data ]; then
    [ -e "$5/fine" ] || { echo "srigl: $5 has no train folder" >&2; exit 1; }
    exit 0
fi
[ "$1" = models ] && exec cat "$here/$2.json"
[ "$1" = train ] || { echo "not train: $1" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case "$1" in
        --method) method=$2 ;;
        --sparsity) sparsity=$2 ;;
        --seed) seed=$2 ;;
        --out) out=$2 ;;
        --epochs) epochs=$2 ;;
        --no-ablation) ablation=no ;;
        --resume) resume=yes ;;
    esac
    shift
done
if [ -e "$here/fail" ] && [ $method = srigl ] && [ $ablation = yes ] && [ $sparsity = 0.95 ]; then
    echo "error: layer fc1: fan-in would be 0" >&2
    exit 3
fi
[ $resume = yes ] || exit 4
if [ -d "$out" ] && [ -n "$(ls -A "$out")" ] && [ ! -e "$out/config.json" ]; then
    echo "error: $out exists and is not a run folder" >&2
    exit 5
fi
mkdir -p "$out" && echo "{}" > "$out/config.json"
[ -e "$out/checkpoint" ] && echo "continued $out" >> "$here/calls.log"
[ -e "$here/synthetic" ] && synthetic=true || synthetic=false
case $sparsity in 0) a=0.88 ;; 0.8) a=0.87 ;; 0.9) a=0.86 ;; 0.95) a=0.85 ;; *) a=0.82 ;; esac
cat > "$out/result.json" <<END
{"test_accuracy": ${a}$seed, "best_test_accuracy": 0.9, "epochs": $epochs, "seconds": 1.0, "sparsity": $sparsity, "device": "flex",
 "data": {"name": "fashion-mnist", "source": "made by a test", "synthetic": $synthetic,
          "train_images": 60000, "test_images": 10000},
 "layers": [{"name": "fc1", "neurons": 300, "active": 15$seed, "ablated": [], "fan_in": null, "sparsity": 0.99, "itop": 0.4, "fan_in_min": 5, "fan_in_max": 7, "nnz": 900, "weights": 235200},
            {"name": "fc2", "neurons": 100, "active": 100, "ablated": [], "fan_in": 6, "sparsity": 0.98, "itop": 0.4, "fan_in_min": 6, "fan_in_max": 6, "nnz": 600, "weights": 30000}]}
END
cat > "$out/topology.jsonl" <<END
{"step": 100, "layer": "fc1", "neurons": 100, "active": 100, "ablated": [], "fan_in": 6, "fan_in_min": 6, "fan_in_max": 6, "nnz": 600, "sparsity": 0.98, "pruned": 1, "grown": 1, "itop": 0.1}
{"step": 100, "layer": "fc2", "neurons": 100, "active": 100, "ablated": [], "fan_in": 6, "fan_in_min": 6, "fan_in_max": 6, "nnz": 600, "sparsity": 0.98, "pruned": 1, "grown": 1, "itop": 0.2}
{"step": 200, "layer": "fc1", "neurons": 100, "active": 100, "ablated": [], "fan_in": 6, "fan_in_min": 6, "fan_in_max": 6, "nnz": 600, "sparsity": 0.98, "pruned": 1, "grown": 1, "itop": 0.3}
{"step": 200, "layer": "fc2", "neurons": 100, "active": 100, "ablated": [], "fan_in": 6, "fan_in_min": 6, "fan_in_max": 6, "nnz": 600, "sparsity": 0.98, "pruned": 1, "grown": 1, "itop": 0.4}
END
"#;

/// A temporary folder with the fake in it.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        std::fs::write(stage.path("srigl"), FAKE_SRIGL).unwrap();
        std::fs::set_permissions(stage.path("srigl"), PermissionsExt::from_mode(0o755)).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `xtask reproduce TABLE … --out STAGE/out`.
    fn reproduce(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .arg("reproduce")
            .args(args)
            .arg("--out")
            .arg(self.path("out"))
            .env("SRIGL_BIN", self.path("srigl"))
            .output()
            .unwrap()
    }

    /// The calls of the fake since the last time this was asked.
    fn calls(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("calls.log")).unwrap_or_default();
        std::fs::remove_file(self.path("calls.log")).ok();
        log.lines().map(String::from).collect()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("out").join(name)).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn quick_runs_every_cell_once_and_writes_the_report() {
    let stage = Stage::new();
    let output = stage.reproduce(&["quick", "--jobs", "3"]);
    assert!(output.status.success(), "{}", stderr(&output));

    let calls = stage.calls();
    assert_eq!(calls.len(), 21);
    let dense: Vec<_> = calls.iter().filter(|call| call.contains("--method dense")).collect();
    assert_eq!(dense.len(), 1);
    assert!(!dense[0].contains("--sparsity"));
    assert_eq!(calls.iter().filter(|call| call.contains("--no-ablation")).count(), 4);
    assert!(calls.iter().all(|call| call.contains(" --resume")));
    let gamma_sal = |call: &String| {
        if call.contains("--sparsity 0.99 ") { "--gamma-sal 6 " } else { "--gamma-sal 0.3 " }
    };
    assert!(calls.iter().all(|call| call.contains(gamma_sal(call))));

    assert_eq!(names(&stage.path("out")), ["accuracy.svg", "results.json", "runs", "table.md"]);
    let table = stage.read("table.md");
    assert!(
        table.starts_with("# quick") && table.contains("fashion-mnist (source: made by a test)"),
        "{table}"
    );
    // Ours, then the paper's RigL, SRigL without and with ablation on another task.
    let row =
        "| 99 % |  | 82.00 | 82.00 | 82.00 | 82.00 | 82.00 |  | 92.88 ± 0.14 | 91.47 ± 0.28 | 92.79 ± 0.09 |";
    assert!(table.contains(row), "{table}");
    // Ours of the last and of the best epoch, then theirs.
    assert!(table.contains("| 99 % | static | 82.00 | 90.00 | 81.7 ± 0.5 |"), "{table}");
    assert!(
        table.contains("Theirs are of the last epoch, so compare with ours of the last epoch"),
        "{table}"
    );
    assert!(table.contains("Accuracy of the best epoch, mlp"), "{table}");
    assert!(table.contains("| SRigL with ablation | 99 % | 62.5 % | 150 of 300 | 100 of 100 |"), "{table}");
    let written = table + &stage.read("results.json") + &stage.read("accuracy.svg");
    assert!(!written.contains(stage.0.path().to_str().unwrap()), "no path of this machine in the report");
}

#[test]
fn synthetic_data_are_named_and_not_compared() {
    let stage = Stage::new();
    std::fs::write(stage.path("synthetic"), "").unwrap();
    let output = stage.reproduce(&["quick"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stage.read("table.md");
    assert!(table.starts_with("# SYNTHETIC DATA, not the real images: quick"), "{table}");
    assert!(table.contains("fashion-mnist SYNTHETIC (source: made by a test)"), "{table}");
    assert!(table.contains("| 99 % |  | 82.00 | 82.00 | 82.00 | 82.00 | 82.00 |\n"), "{table}");
    assert!(table.contains("published numbers are left out") && !table.contains("†"), "{table}");
    assert!(!table.contains("Beside the"), "{table}");
}

#[test]
fn a_rerun_keeps_finished_cells_resumes_unfinished_ones_and_refuses_changed_ones() {
    let stage = Stage::new();
    assert!(stage.reproduce(&["quick"]).status.success());
    assert_eq!(stage.calls().len(), 21);
    let first = stage.read("results.json");

    assert!(stage.reproduce(&["quick"]).status.success());
    assert_eq!(stage.calls(), Vec::<String>::new());
    assert_eq!(stage.read("results.json"), first);

    // Interrupted: a checkpoint, but no result.
    let run = stage.path("out/runs/mlp-rigl-90-seed0");
    std::fs::remove_file(run.join("result.json")).unwrap();
    std::fs::write(run.join("checkpoint"), "").unwrap();
    assert!(stage.reproduce(&["quick"]).status.success());
    let calls = stage.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[1].starts_with("continued"), "{calls:?}");

    // Made elsewhere, they are the same runs.
    assert!(stage.reproduce(&["quick", "--device", "other"]).status.success());
    assert_eq!(stage.calls(), Vec::<String>::new());

    // Other settings: nothing is removed unasked, and nothing is trained.
    let output = stage.reproduce(&["quick", "--set", "lr=0.2"]);
    let error = stderr(&output);
    assert!(!output.status.success());
    assert!(error.contains("instead of --lr 0.2 (and 20 more): add --fresh"), "{error}");
    assert_eq!(stage.calls(), Vec::<String>::new());
    assert!(run.join("result.json").exists());
    // Then nothing of the old runs is used, not even the checkpoint.
    assert!(stage.reproduce(&["quick", "--set", "lr=0.2", "--fresh"]).status.success());
    let calls = stage.calls();
    assert_eq!(calls.len(), 21, "{calls:?}");
    assert!(calls.iter().all(|call| call.contains("--lr 0.2")));
}

#[test]
fn a_failed_cell_is_named_and_never_a_number() {
    let stage = Stage::new();
    std::fs::write(stage.path("fail"), "").unwrap();
    let output = stage.reproduce(&["quick", "--seeds", "2", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.calls().len(), 42, "the other cells still run");

    let stderr = stderr(&output);
    assert!(stderr.contains("cell mlp-srigl-95-seed1 failed: exit status: 3"), "{stderr}");
    assert!(stderr.contains("fan-in would be 0"), "{stderr}");
    assert!(stderr.contains("srigl train --method srigl --sparsity 0.95"), "{stderr}");

    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = json["grids"][0]["runs"].as_array().unwrap();
    let failed: Vec<_> = runs.iter().filter(|run| run["failed"] == true).map(|run| &run["cell"]).collect();
    assert_eq!(failed, ["mlp-srigl-95-seed0", "mlp-srigl-95-seed1"]);
    let table = stage.read("table.md");
    assert!(table.contains("| 95 % |  | 85.05 ± 0.64 |"), "t(1) · 0.1/√2 /√2 = 0.64: {table}");
    assert!(table.contains("| failed (2 of 2) |"), "{table}");
    assert!(table.contains("| SRigL with ablation | 95 % | failed (2 of 2) |  |  |"), "{table}");

    // Once the cause is gone, only the failed cells run.
    std::fs::remove_file(stage.path("fail")).unwrap();
    assert!(stage.reproduce(&["quick", "--seeds", "2"]).status.success());
    assert_eq!(stage.calls().len(), 2);
}

#[test]
fn fashion_mnist_has_two_grids() {
    let stage = Stage::new();
    let output = stage.reproduce(&["fashion-mnist", "--seeds", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let calls = stage.calls();
    assert_eq!(calls.len(), 21 + 11);
    assert_eq!(calls.iter().filter(|call| call.contains("--model mnist-cnn")).count(), 11);
    let full = stage.reproduce(&["fashion-mnist", "--seeds", "1", "--full", "--fresh"]);
    assert!(full.status.success(), "{}", stderr(&full));
    assert!(stage.calls().iter().all(|call| !call.contains("limit")));
}

#[test]
fn a_missing_binary_and_options_without_effect_are_refused() {
    let stage = Stage::new();
    std::fs::remove_file(stage.path("srigl")).unwrap();
    let output = stage.reproduce(&["quick"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("SRIGL_BIN is"), "{}", stderr(&output));
    let output = stage.reproduce(&["flops", "--seeds", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--seeds has no effect"), "{}", stderr(&output));
}

#[test]
fn flops_match_the_published_table() {
    let stage = Stage::new();
    // What the real one prints, as a test of it makes sure.
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/cli/tests/fixtures/resnet50.json");
    std::fs::copy(layers, stage.path("resnet50.json")).unwrap();
    let output = stage.reproduce(&["flops", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["rows"].as_array().unwrap().len(), 7);
    assert_eq!(json["rows"][0]["parameters"]["ours"], 25_530_472.0);
    assert_eq!(names(&stage.path("out")), ["results.json", "table.md"]);
}

#[test]
fn figures_are_drawn_from_the_runs_of_a_recipe() {
    let stage = Stage::new();
    let output = stage.reproduce(&["active-neurons"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // RigL and SRigL at four sparsities.
    assert_eq!(stage.calls().len(), 8);
    assert!(stage.read("table.md").contains("| 99 % | 50.00 | 100.00 |"), "{}", stage.read("table.md"));

    // The same runs, but for SET and SRigL without ablation.
    let output = stage.reproduce(&["itop", "--sparsity", "0.9,0.99"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stage.calls().len(), 4);
    // (0.3 · 235 200 + 0.4 · 30 000) / 265 200
    assert!(stage.read("table.md").contains("| 200 | 31.13 | 31.13 | 31.13 | 31.13 |"));
    assert!(stage.read("itop.svg").contains("ITOP rate"));

    assert!(stage.reproduce(&["fan-in"]).status.success());
    assert_eq!(stage.calls().len(), 0);
    // 900 weights of 150 neurons are 6 of 784 inputs.
    assert!(stage.read("table.md").contains("| fc1 | 0.77 (0.64 to 0.89) |"), "{}", stage.read("table.md"));

    let output = stage.reproduce(&["gamma-sweep", "--sparsity", "0.99"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let calls = stage.calls();
    assert_eq!(calls.len(), 5, "{calls:?}");
    for gamma in ["0.1", "0.3", "0.5", "0.7", "0.9"] {
        let flag = format!("--gamma-sal {gamma} ");
        assert_eq!(calls.iter().filter(|call| call.contains(&flag)).count(), 1, "{gamma}: {calls:?}");
    }
    let json: Value = serde_json::from_str(&stage.read("results.json")).unwrap();
    assert_eq!(json["panels"][0]["series"][0]["points"].as_array().unwrap().len(), 5);
    assert!(!stage.reproduce(&["quick", "--recipe", "quick"]).status.success());
}

#[test]
fn tables_of_large_networks_need_data_and_can_be_cut_short() {
    let stage = Stage::new();
    let output = stage.reproduce(&["imagenet"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("train/SYNSET"), "{}", stderr(&output));

    let data = stage.path("data");
    std::fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    let output = stage.reproduce(&["imagenet", "--data", data]);
    assert!(stderr(&output).contains("has no train folder"), "{}", stderr(&output));
    assert_eq!(stage.calls().len(), 0);
    std::fs::write(stage.path("data/fine"), "").unwrap();
    let args = ["imagenet", "--data", data, "--sparsity", "0.9", "--extended", "5", "--limit-steps", "7"];
    let output = stage.reproduce(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let calls = stage.calls();
    assert_eq!(calls.len(), 4);
    for flag in ["--limit-steps 7 ", "--model resnet50 ", "--lr-milestones 150,350,450 ", "--gamma-sal 0.01 "]
    {
        assert!(calls.iter().all(|call| call.contains(flag)), "{flag}: {calls:?}");
    }
    let table = stage.read("table.md");
    assert!(table.contains("| 90 % | SRigL with ablation | 86.00 | 90.00 | 72.71 |"), "{table}");
    assert!(table.contains("changed by --set"), "{table}");

    let output = stage.reproduce(&["vit", "--data", data, "--set", "micro-batch=64"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stage.calls().iter().all(|call| call.contains("--micro-batch 64 ") && call.contains("vit-b-16")));
}
