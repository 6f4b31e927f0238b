//! The paper's layer figure: how long one layer takes in dense, CSR and condensed form, and in other engines;
//! beside those also a convolution and whole models. `srigl bench` times, this reads what it prints.
//!
//! See `docs/how-timings-are-made.md` for how the timings are made.

mod case;
mod render;

use crate::peers::{Environment, Peers, without_paths};
use crate::published::LayerTimings;
use crate::report::Report;
use crate::runner::{bench, srigl_binary};
use anyhow::{Result, ensure};
use case::{Case, Engine, Measured, Measurement, Timing, cases};
use render::{milliseconds, report};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Largest relative error with which an engine counts as computing the same.
const TOLERANCE: f64 = 1e-4;

/// What to time.
pub struct Options {
    /// The other engines too.
    pub peers: bool,
    /// Fewer cases and rounds.
    pub quick: bool,
    /// Interpreter with PyTorch and ONNX Runtime instead of an environment made here.
    pub torch_python: Option<PathBuf>,
    /// Interpreter with DeepSparse instead of an environment made here.
    pub deepsparse_python: Option<PathBuf>,
    /// Cores of this machine, at least 1.
    pub cores: usize,
}

impl Options {
    /// Samples of each engine in a case.
    fn rounds(&self) -> usize {
        if self.quick { 20 } else { 40 }
    }
}

/// What `srigl bench … --json` prints, as far as it is read.
#[derive(Debug, Deserialize)]
struct Bench {
    sparsity: f64,
    batch: usize,
    threads: usize,
    results: Vec<BenchResult>,
    #[serde(default)]
    skipped: Vec<Skipped>,
}

#[derive(Debug, Deserialize)]
struct BenchResult {
    name: String,
    engine: String,
    relative_error: f64,
    #[serde(flatten)]
    timing: Timing,
}

#[derive(Debug, Deserialize)]
struct Skipped {
    name: String,
    why: String,
}

impl Bench {
    /// Refuses what does not answer the question.
    fn check(self, case: &Case) -> Result<Self> {
        ensure!(
            (self.sparsity - case.sparsity).abs() < 1e-9
                && (self.batch, self.threads) == (case.batch, case.threads),
            "`srigl bench` timed sparsity {}, batch {}, threads {}",
            self.sparsity,
            self.batch,
            self.threads
        );
        for result in &self.results {
            let ms = result.timing.median_ms;
            ensure!(ms.is_finite() && ms > 0.0, "{}: {ms} ms is no time", result.name);
        }
        let condensed = self.results.iter().any(|result| result.name == "condensed");
        ensure!(condensed, "`srigl bench` did not time the condensed form");
        Ok(self)
    }
}

impl BenchResult {
    /// As a column of the tables; an error if it computes something else.
    fn measurement(self) -> Result<Measurement> {
        let Self { name, engine: how, relative_error, timing } = self;
        let engine = serde_json::from_value::<Engine>(json!(name))?;
        ensure!(
            relative_error <= TOLERANCE,
            "{} ({how}) is off the dense result by {relative_error:.1e}",
            engine.label()
        );
        Ok(Measurement { engine, how, relative_error, timing })
    }
}

/// Times every case. Problems: cases that failed and engines that compute something else.
///
/// # Errors
/// If there is no `srigl` or the published file cannot be read.
pub fn reproduce(options: &Options) -> Result<Report> {
    let published = LayerTimings::read()?;
    let srigl = srigl_binary(None)?;
    let peers = if options.peers { find_peers(options) } else { Peers::default() };
    let (mut problems, mut skipped) = (Vec::new(), peers.missing.clone());
    let cases = cases(options.quick, options.peers, options.cores);
    let mut measured = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let results = measure(&srigl, case, options.rounds(), &peers, &mut problems, &mut skipped);
        let result = Measured { case: *case, results };
        let outcome =
            result.ms(Engine::Condensed).map_or("failed".into(), |ms| format!("{} ms", milliseconds(ms)));
        let (label, took) = (case.label(), start.elapsed().as_secs_f64());
        srigl_run::print::say(&format!(
            "[{:>3}/{}] {label}: condensed {outcome}, took {took:.1} s",
            index + 1,
            cases.len()
        ));
        measured.push(result);
    }
    Ok(report(options, &published, &measured, skipped, problems))
}

/// The environments that can be had.
fn find_peers(options: &Options) -> Peers {
    Peers::find(&crate::workspace_root().join("target/peers"), |environment| match environment {
        Environment::Torch => options.torch_python.clone(),
        Environment::DeepSparse => options.deepsparse_python.clone(),
        Environment::Napkinxc => None,
    })
}

/// One case: all engines in turn, in the order of the columns.
fn measure(
    srigl: &Path,
    case: &Case,
    rounds: usize,
    peers: &Peers,
    problems: &mut Vec<String>,
    skipped: &mut Vec<String>,
) -> Vec<Measurement> {
    let mut args = case.args();
    args.extend(["--rounds".into(), rounds.to_string()]);
    args.extend(peers.args(case.subject.is_model()));
    let result = match bench::<Bench>(srigl, &args, case.threads).and_then(|result| result.check(case)) {
        Ok(result) => result,
        Err(error) => {
            problems.push(format!("{} failed: {error:#}", case.label()));
            return Vec::new();
        }
    };
    for Skipped { name, why } in result.skipped {
        // Its cells stay empty; the reason is told once.
        let line = format!("{name} is skipped: {}", without_paths(&why));
        if !skipped.contains(&line) {
            skipped.push(line);
        }
    }
    let mut results = Vec::new();
    for result in result.results {
        match result.measurement() {
            Ok(measurement) => results.push(measurement),
            Err(error) => problems.push(format!("{}: {error:#}", case.label())),
        }
    }
    results.sort_by_key(|result| result.engine);
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = r#"{"what": "layer", "shape": {}, "sparsity": 0.9, "batch": 1, "threads": 1, "rounds": 3,
        "results": [{"name": "condensed", "median_ms": 0.5, "p10_ms": 0.4, "p90_ms": 0.6, "samples": 9,
            "engine": "words", "relative_error": 1e-6},
            {"name": "torch csr linear", "median_ms": 0.25, "p10_ms": 0.2, "p90_ms": 0.3, "samples": 9,
            "engine": "PyTorch 2", "relative_error": 1e-6}],
        "skipped": [{"name": "deepsparse", "why": "no"}], "speedup_over_dense": 2.0}"#;

    #[test]
    fn what_srigl_prints_must_answer_the_question() {
        let check = |text: &str, batch| {
            let bench: Bench = serde_json::from_str(text).unwrap();
            let case = Case { subject: case::PAPER_LAYER, sparsity: 0.9, batch, threads: 1 };
            bench.check(&case).map_err(|error| error.to_string())
        };
        let good = check(PRINTED, 1).unwrap();
        assert_eq!((good.results[0].timing.p90_ms, good.results[0].timing.samples), (0.6, 9));
        assert_eq!(good.skipped[0].name, "deepsparse");
        assert!(check(PRINTED, 16).unwrap_err().contains("batch 1"));
        assert!(check(&PRINTED.replace("0.5", "0.0"), 1).unwrap_err().contains("no time"));
        assert!(
            check(&PRINTED.replace("\"condensed\"", "\"csr\""), 1).unwrap_err().contains("condensed form")
        );
    }

    #[test]
    fn a_wrong_engine_has_no_time() {
        let second = |text: &str| {
            let mut bench: Bench = serde_json::from_str(text).unwrap();
            bench.results.remove(1).measurement().map_err(|error| error.to_string())
        };
        assert_eq!(second(PRINTED).unwrap().engine, Engine::TorchCsrLinear);
        let off = second(&PRINTED.replace("1e-6", "1e-3")).unwrap_err();
        assert!(off.contains("PyTorch CSR, F.linear") && off.contains("1.0e-3"), "{off}");
        assert!(second(&PRINTED.replace("csr linear", "abacus")).unwrap_err().contains("abacus"));
    }
}
