//! `srigl bench`: condensed layers and models against dense ones, timed side by side.

mod csr;
mod device;
mod layer;
mod model;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::ThreadPool;
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use crate::mask::table;

/// Arguments of `srigl bench`.
#[derive(Args)]
#[command(after_help = "\
All weights are random from --seed, with the same number of inputs for each neuron. The contenders take turns in \
one process, after a warm-up; each sample is the mean of as many calls as fill some milliseconds. Before they \
are timed, they must agree with the dense result.

Examples:
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1
  srigl bench layer --conv 64 64 3 --size 56 --sparsity 0.9 --json
  srigl bench model resnet50 --sparsity 0.9 --threads 2")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Layer(layer::LayerArgs),
    Model(model::ModelArgs),
}

/// How to measure.
#[derive(Args)]
struct MeasureArgs {
    /// Share of zeros, in [0, 1)
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    sparsity: f64,
    /// Samples per call
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Threads of every contender
    #[arg(long, value_name = "T", default_value_t = 1)]
    threads: usize,
    /// Samples of each contender; the default takes a few seconds
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Seed of weights, masks and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Also write the weights that were run, as a safetensors file
    #[arg(long, value_name = "FILE")]
    save_weights: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl MeasureArgs {
    fn check(&self) -> Result<()> {
        let sparsity = self.sparsity;
        ensure!((0.0..1.0).contains(&sparsity), "--sparsity is {sparsity}, but must be in [0, 1)");
        ensure!(self.batch > 0, "--batch must be at least 1");
        ensure!(self.threads > 0, "--threads must be at least 1");
        ensure!(self.rounds != Some(0), "--rounds must be at least 1");
        Ok(())
    }

    /// The threads that all contenders run on.
    fn pool(&self) -> Result<Arc<ThreadPool>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
        pool.map(Arc::new).with_context(|| format!("cannot start {} threads", self.threads))
    }
}

/// Runs `srigl bench`.
///
/// # Errors
/// For settings that make no layer, a file that cannot be written, or contenders that disagree.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Layer(args) => layer::run(&args),
        BenchCommand::Model(args) => model::run(&args),
    }
}

/// Calls on an input, leaving the result of the last in the output.
type Run = Box<dyn FnMut(usize, &[f32], &mut [f32]) -> Result<()>>;

/// Copies a result from the device's memory.
type Read = Box<dyn FnMut(&mut [f32]) -> Result<()>>;

/// One way to compute the result.
struct Contender {
    /// `dense`, `csr` or `condensed`, with a float type if it is not f32.
    name: &'static str,
    /// What runs, for people.
    engine: String,
    run: Run,
    /// Leaves the last result of `run` in the output, which is on a device until then. Not timed.
    read: Option<Read>,
    /// Largest difference to the dense result, relative to its norm.
    tolerance: f64,
    /// Bytes that a call must read or write at least, for a memory's share in the time.
    bytes: Option<usize>,
}

impl Contender {
    fn new(
        name: &'static str,
        engine: impl Into<String>,
        run: impl FnMut(usize, &[f32], &mut [f32]) -> Result<()> + 'static,
    ) -> Self {
        let run = Box::new(run);
        Self { name, engine: engine.into(), run, read: None, tolerance: TOLERANCE, bytes: None }
    }

    /// Seconds per call, over `calls` of them.
    fn time(&mut self, calls: usize, input: &[f32], output: &mut [f32]) -> Result<f64> {
        let start = Instant::now();
        (self.run)(calls, input, output)?;
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    }

    /// Warms up until a call takes its usual time, and returns that in seconds.
    fn warm_up(&mut self, input: &[f32], output: &mut [f32]) -> Result<f64> {
        let start = Instant::now();
        let mut fastest = f64::INFINITY;
        let mut calls = 0;
        while calls < 3 || start.elapsed() < WARM_UP {
            fastest = fastest.min(self.time(1, input, output)?);
            calls += 1;
        }
        Ok(fastest)
    }
}

const WARM_UP: Duration = Duration::from_millis(100);

/// A sample is as many calls as take at least this long, so that the clock does not matter.
const SAMPLE_SECONDS: f64 = 0.005;

/// What all rounds together take by default.
const ALL_SECONDS: f64 = 3.0;

/// Largest difference between contenders, relative to the norm of the result.
const TOLERANCE: f64 = 1e-3;

/// What is printed.
#[derive(Serialize)]
struct Report {
    what: &'static str,
    shape: serde_json::Value,
    sparsity: f64,
    /// Share of zeros that the masks really have: fan-ins are whole numbers.
    actual_sparsity: f64,
    batch: usize,
    threads: usize,
    seed: u64,
    rounds: usize,
    results: Vec<Timing>,
    speedup_over_dense: f64,
}

/// The samples of one contender.
#[derive(Serialize)]
struct Timing {
    name: &'static str,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    samples: usize,
    engine: String,
    /// The least bytes of a call over its median time.
    #[serde(skip_serializing_if = "Option::is_none")]
    gigabytes_per_second: Option<f64>,
}

/// Of several ways to the same result, the one that is fastest here.
fn fastest(contenders: Vec<Contender>, input: &[f32], outputs: usize) -> Result<Contender> {
    let mut output = vec![0.0; outputs];
    let mut best: Option<(f64, Contender)> = None;
    for mut contender in contenders {
        let seconds = contender.warm_up(input, &mut output)?;
        if best.as_ref().is_none_or(|(fastest, _)| seconds < *fastest) {
            best = Some((seconds, contender));
        }
    }
    best.map(|(_, contender)| contender).context("nothing to run")
}

/// Times the contenders, the first of which is the dense one, and prints the report.
fn compare(
    (what, shape): (&'static str, serde_json::Value),
    actual_sparsity: f64,
    args: &MeasureArgs,
    mut contenders: Vec<Contender>,
    input: &[f32],
    outputs: usize,
) -> Result<()> {
    let mut output = vec![0.0; outputs];
    let mut want = Vec::new();
    let mut calls = Vec::new();
    let mut round_seconds = 0.0;
    for contender in &mut contenders {
        let seconds = contender.warm_up(input, &mut output)?;
        if let Some(read) = &mut contender.read {
            read(&mut output)?;
        }
        let count = (SAMPLE_SECONDS / seconds).ceil().max(1.0);
        round_seconds += count * seconds;
        calls.push(count as usize);
        if want.is_empty() {
            want = output.clone();
        }
        check_agreement(contender, &output, &want)?;
    }
    let rounds = args.rounds.unwrap_or((ALL_SECONDS / round_seconds).clamp(5.0, 200.0) as usize);

    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(rounds as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:40} round {pos}/{len} {eta}")?);
    let mut samples = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..rounds {
        // Another one goes first each time, so that none always follows the same.
        for turn in 0..contenders.len() {
            let i = (round + turn) % contenders.len();
            // What the one before left in the caches is not this one's.
            contenders[i].time(1, input, &mut output)?;
            samples[i].push(contenders[i].time(calls[i], input, &mut output)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let timing = |(contender, mut samples): (&Contender, Vec<f64>)| {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| 1e3 * samples[((samples.len() - 1) as f64 * share).round() as usize];
        Timing {
            name: contender.name,
            median_ms: at(0.5),
            p10_ms: at(0.1),
            p90_ms: at(0.9),
            samples: samples.len(),
            engine: contender.engine.clone(),
            gigabytes_per_second: contender.bytes.map(|bytes| bytes as f64 / (at(0.5) * 1e6)),
        }
    };
    let results: Vec<Timing> = contenders.iter().zip(samples).map(timing).collect();
    let median = |name: &str| results.iter().find(|r| r.name == name).map_or(f64::NAN, |r| r.median_ms);
    let report = Report {
        what,
        shape,
        sparsity: args.sparsity,
        actual_sparsity,
        batch: args.batch,
        threads: args.threads,
        seed: args.seed,
        rounds,
        speedup_over_dense: median("dense") / median("condensed"),
        results,
    };
    table::line(&if args.json { serde_json::to_string_pretty(&report)? } else { report.text() })
}

fn check_agreement(contender: &Contender, got: &[f32], want: &[f32]) -> Result<()> {
    let name = contender.name;
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut want.iter().map(|w| f64::from(*w)));
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    ensure!(
        difference <= contender.tolerance * size && size > 0.0,
        "the result of `{name}` differs from the dense one by {difference} of {size}: a bug, please report it"
    );
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let dense = self.results.iter().find(|r| r.name == "dense").map_or(f64::NAN, |r| r.median_ms);
        let ms = |value: f64| format!("{value:.4}");
        let row = |r: &Timing| {
            let times = [r.median_ms, r.p10_ms, r.p90_ms].map(ms);
            [
                vec![r.name.to_string(), r.engine.clone()],
                times.to_vec(),
                vec![format!("{:.2}", dense / r.median_ms)],
                r.gigabytes_per_second.iter().map(|rate| format!("{rate:.0}")).collect(),
            ]
            .concat()
        };
        let mut header = vec!["contender", "engine", "median ms", "p10", "p90", "speed-up"];
        if self.results.iter().any(|r| r.gigabytes_per_second.is_some()) {
            header.push("GB/s");
        }
        format!(
            "{}\n{} {}, sparsity {} (masks: {:.4}), batch {}, {} thread{}, {} rounds, seed {}",
            table::table(&header, self.results.iter().map(row)),
            self.what,
            self.shape,
            self.sparsity,
            self.actual_sparsity,
            self.batch,
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.rounds,
            self.seed
        )
    }
}

/// A tensor to save.
struct Saved {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Saved {
    fn floats(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), data }
    }
}

/// Writes what was run, if asked to.
fn save(args: &MeasureArgs, tensors: impl FnOnce() -> Vec<Saved>) -> Result<()> {
    let Some(path) = &args.save_weights else { return Ok(()) };
    let tensors = tensors();
    let mut views = Vec::new();
    for tensor in &tensors {
        views.push((&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data)?));
    }
    let file = safetensors::serialize(views, None)?;
    crate::mask::model::stage(path, |output| Ok(output.write_all(&file)?))?.commit()
}
