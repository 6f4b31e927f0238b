//! The paper's layer figure: how long one layer takes in dense, CSR and condensed form, and in other engines;
//! beside those also a convolution and whole models.
//!
//! See `peers/README.md` for how the timings are made.

mod case;
mod render;

use crate::peers::{Environment, Peers, Prepared, Request, Timing};
use crate::published::LayerTimings;
use crate::report::Report;
use crate::runner::{bench, srigl_binary};
use anyhow::{Context, Result, ensure};
use case::{Case, Engine, Measured, Measurement, cases};
use render::{milliseconds, report};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Largest relative error with which an engine counts as computing the same.
const TOLERANCE: f64 = 1e-4;
/// Timed repetitions of another engine in one round.
const REPETITIONS: std::ops::RangeInclusive<u64> = 5..=2000;

/// What to time.
pub struct Options {
    /// The other engines too.
    pub peers: bool,
    /// Fewer cases, rounds and repetitions.
    pub quick: bool,
    /// Interpreter with PyTorch and ONNX Runtime instead of an environment made here.
    pub torch_python: Option<PathBuf>,
    /// Interpreter with DeepSparse instead of an environment made here.
    pub deepsparse_python: Option<PathBuf>,
    /// Cores of this machine, at least 1.
    pub cores: usize,
}

/// What `srigl bench … --json` prints, as far as it is read.
#[derive(Debug, Deserialize)]
struct Bench {
    sparsity: f64,
    batch: usize,
    threads: usize,
    results: Vec<BenchResult>,
}

#[derive(Debug, Deserialize)]
struct BenchResult {
    name: Engine,
    engine: String,
    #[serde(flatten)]
    timing: Timing,
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
            ensure!(ms.is_finite() && ms > 0.0, "{}: {ms} ms is no time", result.name.label());
        }
        let condensed = self.results.iter().any(|result| result.name == Engine::Condensed);
        ensure!(condensed, "`srigl bench` did not time the condensed form");
        Ok(self)
    }
}

/// Times every case. Problems: cases and engines that failed or compute something else.
///
/// # Errors
/// If there is no `srigl` or the published file cannot be read.
pub fn reproduce(options: &Options) -> Result<Report> {
    let published = LayerTimings::read()?;
    let srigl = srigl_binary(None)?;
    let temp = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut problems = Vec::new();
    let mut skipped = Vec::new();
    let mut peers = if options.peers { start_peers(options, temp.path(), &mut skipped) } else { Vec::new() };
    let cases = cases(options.quick, options.peers, options.cores);
    let mut timer = Timer {
        srigl: &srigl,
        weights: temp.path().join("layer.safetensors"),
        samples: if options.quick { 20 } else { 40 },
        rounds: if options.quick { 2 } else { 5 },
        budget_ms: if options.quick { 100.0 } else { 250.0 },
        peers: &mut peers,
        problems: &mut problems,
        skipped: &mut skipped,
    };
    let mut measured = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let results = timer.measure(case);
        let result = Measured { case: *case, results };
        let outcome =
            result.ms(Engine::Condensed).map_or("failed".into(), |ms| format!("{} ms", milliseconds(ms)));
        let (label, took) = (case.label(), start.elapsed().as_secs_f64());
        eprintln!("[{:>3}/{}] {label}: condensed {outcome}, took {took:.1} s", index + 1, cases.len());
        measured.push(result);
    }
    let rounds = timer.rounds;
    Ok(report(options, &published, &measured, rounds, skipped, problems))
}

/// Starts the environments that can be had; says in `skipped` which cannot.
fn start_peers(options: &Options, temp: &Path, skipped: &mut Vec<String>) -> Vec<Peers> {
    let root = crate::workspace_root();
    let mut running = Vec::new();
    for environment in Environment::ALL {
        let given = match environment {
            Environment::Torch => &options.torch_python,
            Environment::DeepSparse => &options.deepsparse_python,
        };
        let python = match given {
            Some(python) => Ok(python.clone()),
            None => environment.python(&root.join("target/peers").join(environment.name())),
        };
        let log = temp.join(format!("{}.log", environment.name()));
        let script = root.join("xtask/peers/timings.py");
        match python.and_then(|python| Peers::start(environment, &python, &script, &log)) {
            Ok(peers) => {
                let missing = peers.missing.iter();
                skipped.extend(missing.map(|(engine, why)| format!("{engine} is skipped: {why}")));
                running.push(peers);
            }
            Err(error) => {
                // The report is no place for pip's output.
                eprintln!("{} is skipped: {error:#}", environment.name());
                let first = format!("{error:#}").lines().next().unwrap_or_default().to_string();
                skipped.push(format!("{} is skipped: {}", environment.name(), without_paths(&first)));
            }
        }
    }
    running
}

/// Words with a path of this machine in them have no place in a report.
fn without_paths(text: &str) -> String {
    let words = text.split(' ').map(|word| if word.starts_with('/') { "…" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Times cases, one round after the other.
struct Timer<'a> {
    srigl: &'a Path,
    /// Where `srigl` saves the weights for the others.
    weights: PathBuf,
    /// Samples that `srigl` takes of each of its forms in one round.
    samples: u64,
    rounds: usize,
    /// Time for the repetitions of one engine in one round.
    budget_ms: f64,
    peers: &'a mut Vec<Peers>,
    problems: &'a mut Vec<String>,
    skipped: &'a mut Vec<String>,
}

/// An engine that is being timed, with a [`Timing`] for each round so far.
struct Running {
    engine: Engine,
    how: String,
    relative_error: Option<f64>,
    repetitions: u64,
    rounds: Vec<Timing>,
}

impl Timer<'_> {
    /// Rounds of `srigl` and then every other engine, so that all see the same moods of the machine.
    fn measure(&mut self, case: &Case) -> Vec<Measurement> {
        let mut ours: Vec<Running> = Vec::new();
        // Of every environment in use, its engines.
        let mut others: Vec<Vec<Running>> = Vec::new();
        for round in 0..self.rounds {
            let mut args = case.args();
            args.extend(["--rounds".into(), self.samples.to_string()]);
            if round == 0 && !self.peers.is_empty() {
                args.extend(["--save-weights".into(), self.weights.to_string_lossy().into_owned()]);
            }
            let result =
                bench::<Bench>(self.srigl, &args, case.threads).and_then(|result| result.check(case));
            let result = match result {
                Ok(result) => result,
                Err(error) => {
                    self.problems.push(format!("{} failed: {error:#}", case.label()));
                    return Vec::new();
                }
            };
            for BenchResult { name, engine, timing } in result.results {
                match ours.iter_mut().find(|running| running.engine == name) {
                    Some(running) => running.rounds.push(timing),
                    None => ours.push(Running {
                        engine: name,
                        how: format!("srigl, {engine}"),
                        relative_error: None,
                        repetitions: 0,
                        rounds: vec![timing],
                    }),
                }
            }
            if round == 0 {
                others = self.prepare(case);
            }
            self.time(case, &mut others);
        }
        let mut results: Vec<Measurement> = ours
            .into_iter()
            .chain(others.into_iter().flatten())
            // An engine that ended halfway was not timed beside the others.
            .filter(|running| running.rounds.len() == self.rounds)
            .map(|running| Measurement {
                engine: running.engine,
                how: running.how,
                relative_error: running.relative_error,
                timing: over_rounds(&running.rounds),
            })
            .collect();
        results.sort_by_key(|result| result.engine);
        results
    }

    /// Hands the saved weights to every environment; those that end are dropped.
    fn prepare(&mut self, case: &Case) -> Vec<Vec<Running>> {
        let mut all = Vec::new();
        let (model, padding) = (case.subject.model(), case.subject.padding());
        let request = Request { model, weights: &self.weights, threads: case.threads, stride: 1, padding };
        self.peers.retain_mut(|peers| match peers.prepare(&request) {
            Ok(prepared) => {
                let running = prepared.into_iter().filter_map(|prepared| {
                    to_run(prepared, self.budget_ms)
                        .map_err(|refused| match refused {
                            Refused::Wrong(why) => self.problems.push(format!("{}: {why}", case.label())),
                            // Its cells stay empty; the reason is told once.
                            Refused::Skipped(why) if self.skipped.contains(&why) => (),
                            Refused::Skipped(why) => self.skipped.push(why),
                        })
                        .ok()
                });
                all.push(running.collect());
                true
            }
            Err(error) => {
                self.problems.push(format!("{}: {error:#}", case.label()));
                false
            }
        });
        all
    }

    /// One round of every engine of every environment; those that end are dropped.
    fn time(&mut self, case: &Case, others: &mut Vec<Vec<Running>>) {
        let mut index = 0;
        while index < self.peers.len() {
            let peers = &mut self.peers[index];
            let outcome = others[index].iter_mut().try_for_each(|running| {
                let name = json!(running.engine);
                let name = name.as_str().expect("an engine is written as its name");
                running.rounds.push(peers.time(name, running.repetitions)?);
                Ok::<(), anyhow::Error>(())
            });
            match outcome {
                Ok(()) => index += 1,
                Err(error) => {
                    self.problems.push(format!("{}: {error:#}", case.label()));
                    self.peers.remove(index);
                    others.remove(index);
                }
            }
        }
    }
}

/// Why an engine is not timed.
#[derive(Debug, PartialEq)]
enum Refused {
    /// It computes something else.
    Wrong(String),
    /// It cannot run this case.
    Skipped(String),
}

/// Decides whether an engine is timed, and how often in a round.
fn to_run(prepared: Prepared, budget_ms: f64) -> Result<Running, Refused> {
    let engine_of = |name: String| {
        serde_json::from_value::<Engine>(json!(name))
            .map_err(|_| Refused::Wrong(format!("timings.py offers `{name}`, which has no column")))
    };
    match prepared {
        Prepared::Skipped { name, skipped } => {
            let engine = engine_of(name)?.label();
            Err(Refused::Skipped(format!("{engine} is skipped: {}", without_paths(&skipped))))
        }
        Prepared::Ready { name, engine: how, relative_error, once_ms } => {
            let engine = engine_of(name)?;
            if !relative_error.is_finite() || relative_error > TOLERANCE {
                return Err(Refused::Wrong(format!(
                    "{} ({how}) is off the plain result by {relative_error:.1e} and was not timed",
                    engine.label()
                )));
            }
            let repetitions = (budget_ms / once_ms) as u64;
            let repetitions = repetitions.clamp(*REPETITIONS.start(), *REPETITIONS.end());
            Ok(Running { engine, how, relative_error: Some(relative_error), repetitions, rounds: Vec::new() })
        }
    }
}

/// Medians over rounds of their medians and deciles.
fn over_rounds(rounds: &[Timing]) -> Timing {
    let median = |value: fn(&Timing) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    };
    Timing {
        median_ms: median(|timing| timing.median_ms),
        p10_ms: median(|timing| timing.p10_ms),
        p90_ms: median(|timing| timing.p90_ms),
        samples: rounds.iter().map(|timing| timing.samples).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(ms: f64) -> Timing {
        Timing { median_ms: ms, p10_ms: ms / 2.0, p90_ms: ms * 2.0, samples: 10 }
    }

    fn case(sparsity: f64, batch: usize) -> Case {
        Case { subject: case::PAPER_LAYER, sparsity, batch, threads: 1 }
    }

    fn ready(name: &str, relative_error: f64, once_ms: f64) -> Prepared {
        Prepared::Ready { name: name.into(), engine: "PyTorch 2".into(), relative_error, once_ms }
    }

    #[test]
    fn what_srigl_prints_must_answer_the_question() {
        let text = r#"{"what": "layer", "shape": {}, "sparsity": 0.9, "batch": 1, "threads": 1, "rounds": 3,
            "results": [{"name": "condensed", "median_ms": 0.5, "p10_ms": 0.4, "p90_ms": 0.6, "samples": 9, "engine": "words"}],
            "speedup_over_dense": 2.0}"#;
        let check = |text: &str, batch| {
            let bench: Bench = serde_json::from_str(text).unwrap();
            bench.check(&case(0.9, batch)).map_err(|error| error.to_string())
        };
        let good = check(text, 1).unwrap();
        assert_eq!((good.results[0].timing.p90_ms, good.results[0].timing.samples), (0.6, 9));
        assert!(check(text, 16).unwrap_err().contains("batch 1"));
        assert!(check(&text.replace("0.5", "0.0"), 1).unwrap_err().contains("no time"));
        assert!(check(&text.replace("\"condensed\"", "\"csr\""), 1).unwrap_err().contains("condensed form"));
        assert!(serde_json::from_str::<Bench>(&text.replace("\"condensed\"", "\"magic\"")).is_err());
    }

    #[test]
    fn rounds_are_summarised_by_medians() {
        let odd = over_rounds(&[timing(3.0), timing(1.0), timing(100.0)]);
        assert_eq!(odd, Timing { median_ms: 3.0, p10_ms: 1.5, p90_ms: 6.0, samples: 30 });
        assert_eq!(over_rounds(&[timing(1.0), timing(2.0)]).median_ms, 1.5);
    }

    #[test]
    fn a_wrong_engine_is_not_timed() {
        let running = to_run(ready("torch-dense", 1e-6, 2.0), 100.0).ok().unwrap();
        assert_eq!((running.engine, running.repetitions), (Engine::TorchDense, 50));
        assert_eq!(to_run(ready("deepsparse", 1e-6, 1e3), 100.0).ok().unwrap().repetitions, 5);
        let refused = |prepared| to_run(prepared, 100.0).err().unwrap();
        assert!(
            matches!(refused(ready("torch-dense", 0.1, 2.0)), Refused::Wrong(why) if why.contains("1.0e-1"))
        );
        assert!(matches!(refused(ready("torch-dense", f64::NAN, 2.0)), Refused::Wrong(_)));
        assert!(matches!(refused(ready("abacus", 0.0, 2.0)), Refused::Wrong(why) if why.contains("abacus")));
        let skipped = Prepared::Skipped { name: "deepsparse".into(), skipped: "cannot read /a/b now".into() };
        assert_eq!(refused(skipped), Refused::Skipped("DeepSparse is skipped: cannot read … now".into()));
    }
}
