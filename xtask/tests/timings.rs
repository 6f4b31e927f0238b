//! `xtask reproduce timings` as a user runs it, with a fake `srigl` and fake Python interpreters.
#![cfg(unix)]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Takes the flags of `srigl bench`, logs them and prints times: 8 ms dense, 4 ms CSR, 2 ms condensed; with PyTorch, 20 ms
/// for it and none for its condensed form, with ONNX Runtime a result that is a little wrong. The layer at 99 % fails while `fail`
/// exists beside it.
const FAKE_SRIGL: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "srigl $*" >> "$here/calls.log"
[ "$1" = "bench" ] || { echo "not bench" >&2; exit 2; }
result() { echo "{\"name\":\"$1\",\"median_ms\":$2,\"p10_ms\":$2,\"p90_ms\":$2,\"samples\":9,\"engine\":\"$3\",\"relative_error\":$4}"; }
others= skipped=
while [ $# -gt 0 ]; do
    case "$1" in
        --sparsity) sparsity=$2 ;;
        --batch) batch=$2 ;;
        --threads) threads=$2 ;;
        --torch)
            others="$others,$(result 'torch f32' 20 'PyTorch 2' 1e-7)"
            skipped='{"name":"torch condensed","why":"too large"}' ;;
        --onnxruntime) others="$others,$(result onnxruntime 20 Gemm 5e-4)" ;;
    esac
    shift
done
if [ -e "$here/fail" ] && [ $sparsity = 0.99 ]; then echo "error: no such layer" >&2; exit 3; fi
echo "{\"what\":\"layer\",\"shape\":{},\"sparsity\":$sparsity,\"batch\":$batch,\"threads\":$threads,\"rounds\":1,
      \"results\":[$(result dense 8 fake 0),$(result csr 4 fake 0),$(result condensed 2 fake 0)$others],
      \"skipped\":[$skipped],\"speedup_over_dense\":4}"
"#;

/// Has PyTorch and, unless `bare` exists beside it, ONNX Runtime.
const FAKE_PYTHON: &str = r#"#!/bin/sh
case "$2" in *onnxruntime*) [ ! -e "$(dirname "$0")/bare" ] || { echo "No module named onnx" >&2; exit 1; } ;; esac
"#;

struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for (name, script) in [("srigl", FAKE_SRIGL), ("python", FAKE_PYTHON)] {
            std::fs::write(stage.path(name), script).unwrap();
            std::fs::set_permissions(stage.path(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `xtask reproduce timings --quick … --out STAGE/out`.
    fn timings(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["reproduce", "timings", "--quick"])
            .args(args)
            .arg("--out")
            .arg(self.path("out"))
            .env("SRIGL_BIN", self.path("srigl"))
            .output()
            .unwrap()
    }

    /// The same beside the fake PyTorch; there is no DeepSparse.
    fn peers(&self) -> Output {
        let (python, missing) = (self.path("python"), self.path("no-python"));
        self.timings(&[
            "--peers",
            "--peers-python",
            python.to_str().unwrap(),
            "--deepsparse-python",
            missing.to_str().unwrap(),
        ])
    }

    fn calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.path("calls.log")).unwrap().lines().map(String::from).collect()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path("out").join(name)).unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_peers_only_srigl_runs() {
    let stage = Stage::new();
    let output = stage.timings(&["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let calls = stage.calls();
    assert_eq!(calls.len(), 4, "a call for each case");
    assert!(calls[0].contains("--in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1"), "{}", calls[0]);
    assert!(calls.iter().all(|call| !call.contains("--torch")));

    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["cases"].as_array().unwrap().len(), 4);
    assert_eq!(json["cases"][0]["results"][0]["condensed_is_faster_by"], 4.0);
    assert_eq!(json["cases"][0]["results"][0]["samples"], 9);
    let table = stage.read("table.md");
    assert!(table.contains("| 90 % | 1 | 8.00 | 4.00 | 2.00 |"), "{table}");
    // Ours, then the paper's.
    assert!(table.contains("| 90 % | 1 | 4.00× | 2.00× | 3.40× | 2.50× |"), "{table}");
    assert!(!table.contains("Targets"), "{table}");
    assert!(stage.read("timings.svg").starts_with("<svg"));
}

#[test]
fn wrong_or_missing_engines_are_no_numbers() {
    let stage = Stage::new();
    let output = stage.peers();
    let stderr = stderr(&output);
    // ONNX Runtime computes something else in each case: five layers, and two models where there are two cores.
    let cores = std::thread::available_parallelism().unwrap().get();
    let cases = if cores >= 2 { 7 } else { 5 };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr.matches("ONNX Runtime (Gemm) is off the dense result by 5.0e-4").count(),
        cases,
        "{stderr}"
    );
    let python = stage.path("python").display().to_string();
    let asked = format!("--rounds 20 --torch {python} --onnxruntime {python} --json");
    let calls = stage.calls();
    assert_eq!(calls.len(), cases);
    assert!(calls.iter().all(|call| call.ends_with(&asked)), "{calls:?}");

    let table = stage.read("table.md");
    assert!(table.contains("| sparsity | batch | dense | CSR | condensed | PyTorch dense |\n"), "{table}");
    assert!(table.contains("| PyTorch dense | ≥ 3.4 | 10.0× | met |"), "{table}");
    assert!(table.contains("| 99 % | 1 | 1 | PyTorch dense | ≥ 20 | 10.0× | missed |"), "{table}");
    assert!(table.contains("| ONNX Runtime | ≥ 4 | not measured |"), "{table}");
    assert!(table.contains("- deepsparse is skipped: cannot start …"), "{table}");
    assert_eq!(table.matches("- torch condensed is skipped: too large").count(), 1, "{table}");
    let written = table + &stage.read("results.json") + &stage.read("timings.svg");
    assert!(!written.contains(stage.0.path().to_str().unwrap()), "no path of this machine in the report");
}

#[test]
fn an_engine_that_is_missing_and_a_case_that_fails_are_named() {
    let stage = Stage::new();
    std::fs::write(stage.path("bare"), "").unwrap();
    std::fs::write(stage.path("fail"), "").unwrap();
    let output = stage.peers();
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(stderr.contains("99 %, batch 1, 1 thread failed: exit status: 3"), "{stderr}");
    assert!(stderr.contains("error: no such layer"), "{stderr}");
    let table = stage.read("table.md");
    assert!(table.contains("- onnxruntime is skipped: No module named onnx"), "{table}");
    assert!(table.contains("| 90 % | 1 | 8.00 | 4.00 | 2.00 | 20.0 |"), "the others go on: {table}");
    assert!(table.contains("| 99 % | 1 | failed | failed | failed | failed |"), "{table}");
}

#[test]
fn other_tables_refuse_the_options() {
    let stage = Stage::new();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("reproduce").args(args).output().unwrap();
        assert!(!output.status.success());
        stderr(&output)
    };
    assert!(run(&["flops", "--peers"]).contains("--peers belongs to the tables `timings` and `xmc`"));
    assert!(run(&["quick", "--quick"]).contains("--quick belongs to the tables `timings` and `xmc`"));
    assert!(run(&["timings", "--peers-python", "p"]).contains("--peers"));
    assert!(stderr(&stage.timings(&["--seeds", "2"])).contains("--seeds has no effect"));
}
