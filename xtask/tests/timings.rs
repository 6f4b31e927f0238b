//! `xtask reproduce timings` as a user runs it, with a fake `srigl` and fake Python interpreters.
#![cfg(unix)]

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Takes the flags of `srigl bench`, logs them and prints times: 8 ms dense, 4 ms CSR, 2 ms condensed.
/// The layer at 99 % fails while `fail` exists beside it.
const FAKE_SRIGL: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "srigl $*" >> "$here/calls.log"
[ "$1" = "bench" ] || { echo "not bench" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case "$1" in
        --sparsity) sparsity=$2 ;;
        --batch) batch=$2 ;;
        --threads) threads=$2 ;;
        --save-weights) : > "$2" ;;
    esac
    shift
done
if [ -e "$here/fail" ] && [ $sparsity = 0.99 ]; then echo "error: no such layer" >&2; exit 3; fi
result() { echo "{\"name\":\"$1\",\"median_ms\":$2,\"p10_ms\":$2,\"p90_ms\":$2,\"samples\":9,\"engine\":\"fake\"}"; }
echo "{\"what\":\"layer\",\"shape\":{},\"sparsity\":$sparsity,\"batch\":$batch,\"threads\":$threads,\"rounds\":1,
      \"results\":[$(result dense 8),$(result csr 4),$(result condensed 2)],\"speedup_over_dense\":4}"
"#;

/// Speaks the protocol of `timings.py`: PyTorch dense in 20 ms; ONNX Runtime computes something else. It ends
/// at the first timing while `end` exists beside it.
const FAKE_PYTHON: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo '{"versions": {"torch": "2"}, "missing": {"onnxruntime": "No module named onnx"}}'
while read -r line; do
    case "$line" in
        *'"do":"prepare"'*)
            weights=$(echo "$line" | sed 's/.*"weights":"\([^"]*\)".*/\1/')
            [ -e "$weights" ] || { echo "no weights at $weights" >&2; exit 4; }
            echo "prepare" >> "$here/calls.log"
            echo '{"peers": [{"name": "torch-dense", "engine": "PyTorch 2", "relative_error": 1e-7, "once_ms": 1},
                {"name": "onnx-runtime", "engine": "Gemm", "relative_error": 0.5, "once_ms": 1},
                {"name": "torch-condensed", "skipped": "too large"}]}' | tr -d '\n'
            echo ;;
        *)
            [ -e "$here/end" ] && { echo "out of memory" >&2; exit 9; }
            echo "time $line" >> "$here/calls.log"
            echo '{"median_ms": 20, "p10_ms": 19, "p90_ms": 21, "samples": 100}' ;;
    esac
done
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
    assert_eq!(calls.len(), 4 * 2, "four cases, two rounds");
    assert!(calls[0].contains("--in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1"), "{}", calls[0]);
    assert!(calls.iter().all(|call| !call.contains("--save-weights")));

    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["cases"].as_array().unwrap().len(), 4);
    assert_eq!(json["cases"][0]["results"][0]["condensed_is_faster_by"], 4.0);
    assert_eq!(json["cases"][0]["results"][0]["samples"], 18);
    let table = stage.read("table.md");
    assert!(table.contains("| 90 % | 1 | 8.00 | 4.00 | 2.00 |"), "{table}");
    // Ours, then the paper's.
    assert!(table.contains("| 90 % | 1 | 4.00× | 2.00× | 3.40× | 2.50× |"), "{table}");
    assert!(!table.contains("Targets"), "{table}");
    assert!(stage.read("timings.svg").starts_with("<svg"));
}

#[test]
fn rounds_alternate_and_wrong_or_missing_engines_are_no_numbers() {
    let stage = Stage::new();
    let output = stage.peers();
    let stderr = stderr(&output);
    // ONNX Runtime computes something else in each case: five layers, and two models where there are two cores.
    let cores = std::thread::available_parallelism().unwrap().get();
    let cases = if cores >= 2 { 7 } else { 5 };
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr.matches("ONNX Runtime (Gemm) is off the plain result by 5.0e-1").count(),
        cases,
        "{stderr}"
    );

    let calls: Vec<String> =
        stage.calls().iter().map(|call| call.split(' ').next().unwrap().to_string()).collect();
    assert_eq!(calls[..5], ["srigl", "prepare", "time", "srigl", "time"]);
    assert_eq!(calls.len(), cases * 5);
    // 100 ms of runs of 1 ms.
    assert!(stage.calls()[2].contains("\"repetitions\":100"), "{:?}", stage.calls()[2]);

    let table = stage.read("table.md");
    assert!(table.contains("| sparsity | batch | dense | CSR | condensed | PyTorch dense |\n"), "{table}");
    assert!(table.contains("| PyTorch dense | ≥ 3.4 | 10.0× | met |"), "{table}");
    assert!(table.contains("| 99 % | 1 | 1 | PyTorch dense | ≥ 20 | 10.0× | missed |"), "{table}");
    assert!(table.contains("| ONNX Runtime | ≥ 4 | not measured |"), "{table}");
    assert!(table.contains("- onnxruntime is skipped: No module named onnx"), "{table}");
    assert!(table.contains("- deepsparse is skipped: cannot start …"), "{table}");
    assert!(table.contains("PyTorch condensed is skipped: too large"), "{table}");
    let written = table + &stage.read("results.json") + &stage.read("timings.svg");
    assert!(!written.contains(stage.0.path().to_str().unwrap()), "no path of this machine in the report");
}

#[test]
fn an_engine_that_ends_and_a_case_that_fails_are_named() {
    let stage = Stage::new();
    std::fs::write(stage.path("end"), "").unwrap();
    std::fs::write(stage.path("fail"), "").unwrap();
    let output = stage.peers();
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(stderr.contains("timings.py (torch): it ended\n  | out of memory"), "{stderr}");
    assert!(stderr.contains("99 %, batch 1, 1 thread failed: exit status: 3"), "{stderr}");
    assert!(stderr.contains("error: no such layer"), "{stderr}");
    let table = stage.read("table.md");
    assert!(table.contains("| 90 % | 1 | 8.00 | 4.00 | 2.00 |"), "ours goes on: {table}");
    assert!(table.contains("| 99 % | 1 | failed | failed | failed |"), "{table}");
}

#[test]
fn other_tables_refuse_the_options() {
    let stage = Stage::new();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("reproduce").args(args).output().unwrap();
        assert!(!output.status.success());
        stderr(&output)
    };
    assert!(run(&["flops", "--peers"]).contains("--peers belongs to the table `timings`"));
    assert!(run(&["quick", "--quick"]).contains("--quick belongs to the table `timings`"));
    assert!(run(&["timings", "--peers-python", "p"]).contains("--peers"));
    assert!(stderr(&stage.timings(&["--seeds", "2"])).contains("--seeds has no effect"));
}
