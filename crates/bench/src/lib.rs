//! Condensed layers, networks and training steps against dense ones and against PyTorch, timed side by side: what
//! `srigl bench` does.

#![forbid(unsafe_code)]

mod csr;
mod device;
mod layer;
mod model;
mod peer;
mod report;
mod train;
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use peer::{OnnxArgs, Peer, Peers, Skipped, TorchArgs};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use report::{Report, Timing};
use safetensors::tensor::Dtype;
use srigl_run::{Store, print};

/// Arguments of `srigl bench`.
#[derive(Args)]
#[command(after_help = "\
All weights are random from --seed, with the same number of inputs for each neuron. The contenders take turns in \
one process, after a warm-up; each sample is the mean of as many calls as fill some milliseconds. Before they \
are timed, they must agree with the dense result.

With --device the contenders are Burn's dense layers and the condensed ones on that device, in f32 and bf16 where it \
has it. With --torch PyTorch takes turns, too, dense and CSR (on CUDA: cuBLAS, cuDNN and cuSPARSE), with --onnxruntime and \
--deepsparse those engines on the CPU. Inputs are on the device \
before the clock runs and results stay there; a sample ends when the device is idle. On a GPU short calls are bound by the \
program that makes them, so `device ms` is what the GPU's own clock says of one call, queued behind a copy that also \
clears the caches. Memory's rate is that of a large copy.

Examples:
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1
  srigl bench layer --conv 64 64 3 --size 56 --sparsity 0.9 --json
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 256 --device cuda --torch python3
  srigl bench model resnet50 --sparsity 0.9 --threads 2
  srigl bench train vit-b-16 --sparsity 0.9 --batch 64 --device cuda --torch python3")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Layer(layer::LayerArgs),
    Model(model::ModelArgs),
    Train(train::TrainArgs),
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
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    onnx: OnnxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where to measure.
#[derive(Args)]
struct PlaceArgs {
    /// Run in Burn on a device: flex, ndarray, cuda or cuda:N; without it, in the engine for CPUs
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    #[command(flatten)]
    torch: TorchArgs,
}

impl PlaceArgs {
    fn device(&self) -> Result<Option<Device>> {
        self.device.as_deref().map(srigl_train::device::parse).transpose()
    }

    /// Whether the device is a GPU, whose memory and clock are worth a look.
    fn is_gpu(&self) -> bool {
        self.device.as_deref().is_some_and(|device| device.starts_with("cuda"))
    }

    /// PyTorch in a process of its own, if it is asked for.
    fn torch(&self, threads: usize) -> Result<Option<Peer>> {
        self.torch.start(self.device.as_deref(), threads)
    }
}

impl MeasureArgs {
    fn check(&self) -> Result<()> {
        srigl_run::check_sparsity(self.sparsity)?;
        ensure!(self.batch > 0, "--batch must be at least 1");
        srigl_run::check_threads(self.threads)?;
        let rounds = self.rounds.unwrap_or(1);
        ensure!((1..=MOST_ROUNDS).contains(&rounds), "--rounds is {rounds}, but must be 1 to {MOST_ROUNDS}");
        Ok(())
    }

    /// The engines beside ours.
    fn peers(&self) -> Result<Peers> {
        Peers::start(&self.place.torch, &self.onnx, self.place.device.as_deref(), self.threads)
    }

    /// The threads that our contenders run on.
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
        BenchCommand::Train(args) => train::run(&args),
    }
}

/// So many calls on an input, leaving the result of the last in the output; returns the seconds they took.
type Run = Box<dyn FnMut(usize, &[f32], &mut [f32]) -> Result<f64>>;

/// Copies a result from where `run` left it.
type Read = Box<dyn FnMut(&mut [f32]) -> Result<()>>;

/// Seconds of one call by the clock of a GPU whose caches are cold.
type DeviceTime = Box<dyn FnMut() -> Result<f64>>;

/// One way to compute the result.
struct Contender {
    /// `dense`, `csr` or `condensed`, with a float type if it is not f32; `torch …`, `onnxruntime`, `deepsparse`.
    name: String,
    /// What runs, for people.
    engine: String,
    run: Run,
    /// Leaves the last result of `run` in the output, which is elsewhere until then. Not timed.
    read: Option<Read>,
    device_time: Option<DeviceTime>,
    /// Largest difference to the right result, relative to its norm.
    tolerance: f64,
    /// Whether it is another engine, which may fail.
    is_peer: bool,
    /// Whether it has threads of its own on these cores, which may go on looking for work after a call.
    has_threads: bool,
    /// Bytes that a call must read or write at least, for a memory's share in the time.
    bytes: Option<usize>,
}

impl Contender {
    fn new(
        name: &str,
        engine: impl Into<String>,
        mut run: impl FnMut(usize, &[f32], &mut [f32]) -> Result<()> + 'static,
    ) -> Self {
        Self::timed(name, engine, move |calls, input, output| {
            let start = Instant::now();
            run(calls, input, output)?;
            Ok(start.elapsed().as_secs_f64())
        })
    }

    /// One that looks at the clock itself.
    fn timed(
        name: &str,
        engine: impl Into<String>,
        run: impl FnMut(usize, &[f32], &mut [f32]) -> Result<f64> + 'static,
    ) -> Self {
        let run = Box::new(run);
        Self {
            name: name.into(),
            engine: engine.into(),
            run,
            read: None,
            device_time: None,
            tolerance: TOLERANCE,
            is_peer: false,
            has_threads: false,
            bytes: None,
        }
    }

    /// Seconds per call, over `calls` of them.
    fn time(&mut self, calls: usize, input: &[f32], output: &mut [f32]) -> Result<f64> {
        Ok((self.run)(calls, input, output)? / calls as f64)
    }

    /// Brings the last result into the output, if it is not there.
    fn read(&mut self, output: &mut [f32]) -> Result<()> {
        self.read.as_mut().map_or(Ok(()), |read| read(output))
    }

    /// Compares a result with the right one: their difference, relative to the right one's norm.
    fn check(&self, got: &[f32], want: &[f32]) -> Result<f64> {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut want.iter().map(|w| f64::from(*w)));
        let difference = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
        let hint = if self.is_peer { "" } else { ": a bug, please report it" };
        ensure!(
            difference <= self.tolerance * size && size > 0.0,
            "the result of `{}` differs from the right one by {difference} of {size}{hint}",
            self.name
        );
        Ok(difference / size)
    }

    /// Whether it stays after this outcome: another engine that failed is left out, and one of ours ends it all.
    fn keep(&self, outcome: Result<()>, skipped: &mut Vec<Skipped>) -> Result<bool> {
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if self.is_peer => {
                skipped.push(Skipped { name: self.name.clone(), why: format!("{error:#}") });
                Ok(false)
            }
            Err(error) => Err(error),
        }
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

/// More than anybody waits for.
const MOST_ROUNDS: usize = 1_000_000;

/// How long the threads of other engines look for work before they sleep; at least ONNX Runtime's take milliseconds.
const REST: Duration = Duration::from_millis(15);

const WARM_UP: Duration = Duration::from_millis(100);

/// A sample is as many calls as take at least this long, so that the clock does not matter.
const SAMPLE_SECONDS: f64 = 0.005;

/// What all rounds together take by default.
const ALL_SECONDS: f64 = 3.0;

/// Largest difference between contenders, relative to the norm of the result.
const TOLERANCE: f64 = 1e-3;

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

/// What the contenders compute.
struct Case {
    /// `layer` or `model`.
    what: &'static str,
    shape: serde_json::Value,
    /// Share of zeros that the masks really have: fan-ins are whole numbers.
    actual_sparsity: f64,
    input: Vec<f32>,
    /// The right result, if not that of the first contender.
    want: Option<Vec<f32>>,
    outputs: usize,
    /// Gigabytes per second that the device's memory moves.
    memory: Option<f64>,
    /// Contenders that cannot run it.
    skipped: Vec<Skipped>,
}

/// Times the contenders, the first of which is the dense one, and prints the report. One of another engine that fails or
/// computes something else is left out.
fn compare(case: Case, args: &MeasureArgs, contenders: Vec<Contender>) -> Result<()> {
    let Case { what, shape, actual_sparsity, input, mut want, outputs, memory, mut skipped } = case;
    let mut output = vec![0.0; outputs];
    let rest = if contenders.iter().any(|contender| contender.has_threads) { REST } else { Duration::ZERO };
    let mut runners = Vec::new();
    let mut round_seconds = 0.0;
    for contender in contenders {
        let mut runner = Runner::new(contender);
        let outcome = runner.prepare(&input, &mut output, &mut want);
        if runner.contender.keep(outcome, &mut skipped)? {
            round_seconds += runner.seconds_of_round() + rest.as_secs_f64();
            runners.push(runner);
        }
    }
    let rounds = args.rounds.unwrap_or((ALL_SECONDS / round_seconds).clamp(5.0, 200.0) as usize);

    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(rounds as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:40} round {pos}/{len} {eta}")?);
    let mut order = ChaCha8Rng::seed_from_u64(args.seed);
    for _ in 0..rounds {
        // In another order each time, so that none always follows the same.
        let mut turns: Vec<usize> = (0..runners.len()).collect();
        turns.shuffle(&mut order);
        for i in turns {
            std::thread::sleep(rest);
            let outcome = runners[i].sample(&input, &mut output);
            runners[i].stays = runners[i].contender.keep(outcome, &mut skipped)?;
        }
        runners.retain(|runner| runner.stays);
        bar.inc(1);
    }
    bar.finish_and_clear();
    // A device says nothing of calls that it could not make, until their results are read.
    let want = want.unwrap_or_default();
    let mut results = Vec::new();
    for mut runner in runners {
        let outcome = match runner.contender.read {
            Some(_) => runner.contender.time(1, &input, &mut output).and_then(|_| {
                runner.contender.read(&mut output)?;
                runner.contender.check(&output, &want).map(drop)
            }),
            None => Ok(()),
        };
        if runner.contender.keep(outcome, &mut skipped)? {
            results.push(Timing::new(&runner.contender, &runner.samples, runner.relative_error));
        }
    }
    let report = Report {
        what,
        shape,
        sparsity: args.sparsity,
        actual_sparsity,
        batch: args.batch,
        threads: args.threads,
        device: args.place.device.clone(),
        seed: args.seed,
        rounds,
        speedup_over_dense: report::median(&results, "dense") / report::median(&results, "condensed"),
        memory_gigabytes_per_second: memory,
        results,
        skipped,
    };
    Ok(print::either(args.json, &report, Report::text)?)
}

/// A contender and what is known of it.
struct Runner {
    contender: Contender,
    /// How many calls make a sample.
    calls: usize,
    /// Difference to the right result, relative to its norm.
    relative_error: f64,
    samples: Samples,
    /// Whether it has not failed.
    stays: bool,
}

impl Runner {
    fn new(contender: Contender) -> Self {
        Self { contender, calls: 1, relative_error: 0.0, samples: Samples::default(), stays: true }
    }

    /// Warms up and compares the result; that of the first is the right one, unless there is one.
    fn prepare(&mut self, input: &[f32], output: &mut [f32], want: &mut Option<Vec<f32>>) -> Result<()> {
        let seconds = self.contender.warm_up(input, output)?;
        self.calls = (SAMPLE_SECONDS / seconds).ceil().max(1.0) as usize;
        self.samples.once = seconds;
        self.contender.read(output)?;
        self.relative_error = self.contender.check(output, want.get_or_insert_with(|| output.to_vec()))?;
        Ok(())
    }

    /// About how long a sample takes.
    fn seconds_of_round(&self) -> f64 {
        (self.calls + 1) as f64 * self.samples.once
    }

    fn sample(&mut self, input: &[f32], output: &mut [f32]) -> Result<()> {
        // What the one before left in the caches is not this one's.
        self.contender.time(1, input, output)?;
        self.samples.seconds.push(self.contender.time(self.calls, input, output)?);
        if let Some(device_time) = &mut self.contender.device_time {
            self.samples.on_device.push(device_time()?);
        }
        Ok(())
    }
}

/// What was measured of a contender.
#[derive(Clone, Default)]
struct Samples {
    /// Seconds of a call in the warm-up.
    once: f64,
    /// Seconds of a call.
    seconds: Vec<f64>,
    /// By the GPU's clock.
    on_device: Vec<f64>,
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
    write(path, &tensors())
}

/// Writes a safetensors file.
fn write(path: &Path, tensors: &[Saved]) -> Result<()> {
    let mut store = Store::empty(path);
    for tensor in tensors {
        store.insert(&tensor.name, tensor.dtype, tensor.shape.clone(), tensor.data.clone());
    }
    Ok(store.stage(path)?.commit()?)
}
