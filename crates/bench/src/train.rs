//! `srigl bench train`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution as Random, FloatDType, Int, IntDType, Tensor};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use srigl_burn::methods::{AnyMethod, Dense, Srigl};
use srigl_burn::{Distribution, Sparsified, SparsityConfig};
use srigl_models::{Classifier, ModelInfo, ModelSpec, WithModel};
use srigl_run::print;
use srigl_tensors::memory::{Size, of_process};
use srigl_train::memory::{check_results, check_weights};

use super::device::failed;
use super::report::quantile;
use super::{Contender, MOST_ROUNDS, PlaceArgs};

/// Time training steps: dense, with SRigL over masks and in condensed form, and what a topology update takes
///
/// `dense` and `masked` compute with all weights, `sparse` with the active ones alone.
///
/// Images are random numbers on the device; the time of a step does not depend on them. The optimizer and the
/// distribution of sparsity are those of the paper's recipe for the kind of network: SGD with momentum and ERK, AdamW and
/// uniform for vision transformers.
#[derive(Args)]
#[command(after_help = "\
Steps of the contenders take turns, and each ends when the device is idle. The masks change every 10 steps here, to see \
a few updates; the overhead shares them out over the paper's 100 steps. What is made of new masks in the step after an \
update counts as the update's. On CPUs each contender then takes a few steps in a \
process of its own, for the most memory that it needs beside what the process has before.

Examples:
  srigl bench train mnist-cnn --sparsity 0.9 --batch 128
  srigl bench train resnet50 --sparsity 0.9 --batch 128 --device cuda --torch python3
  srigl bench train vit-b-16 --sparsity 0.9 --batch 64 --device cuda --float bf16 --json")]
pub struct TrainArgs {
    /// Network
    #[arg(value_parser = PossibleValuesParser::new(srigl_models::names()))]
    name: String,
    /// Share of zeros, in [0, 1)
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    sparsity: f64,
    /// Images per step
    #[arg(long, value_name = "B", default_value_t = 64)]
    batch: usize,
    /// Type of weights, activations and gradients
    #[arg(long, value_enum, default_value = "f32")]
    float: Float,
    /// Steps of each contender, after 10 that are not timed; rounded up to a multiple of 10
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Take a few steps of this contender alone, and print the memory that they take
    #[arg(long, value_name = "CONTENDER", hide = true)]
    memory_of: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Float {
    F32,
    Bf16,
}

/// Steps between updates here.
const UPDATE_EVERY: usize = 10;

/// ΔT of the paper, over which the time of an update is shared out.
const DELTA_T: f64 = 100.0;

/// What is printed.
#[derive(Serialize)]
struct Report {
    model: &'static str,
    sparsity: f64,
    batch: usize,
    float: &'static str,
    device: String,
    steps: usize,
    parameters: usize,
    results: Vec<StepTiming>,
}

/// The steps of one contender, without those that update the masks and those after them.
#[derive(Serialize)]
struct StepTiming {
    name: String,
    engine: String,
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
    images_per_second: f64,
    /// The most memory that steps take, beside what the process had before.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_bytes: Option<u64>,
    /// How many times as fast a step is as that of each other contender, by its name.
    speedup: BTreeMap<String, f64>,
    #[serde(flatten)]
    update: Option<UpdateTiming>,
}

/// A topology update of all layers.
#[derive(Serialize)]
struct UpdateTiming {
    /// What a step with one and the step after it, which makes kernels of the new masks, take longer than the others' median.
    update_ms: f64,
    /// That as a share of ΔT = 100 steps.
    update_share: f64,
}

pub fn run(args: &TrainArgs) -> Result<()> {
    srigl_run::check_sparsity(args.sparsity)?;
    ensure!(args.batch > 0, "--batch must be at least 1");
    let steps = 1..=MOST_ROUNDS;
    ensure!(steps.contains(&args.steps), "--steps is {}, but must be 1 to {MOST_ROUNDS}", args.steps);
    let mut device = args.place.device()?.unwrap_or_else(Device::flex);
    if args.float == Float::Bf16 {
        ensure!(device.supports_dtype(FloatDType::BF16), "this device has no bf16: leave out --float");
        device.configure((FloatDType::BF16, IntDType::I32)).context("cannot compute in bf16")?;
    }
    let spec = ModelInfo::named(&args.name)?.usual();
    let work = Work { args, device: &device, spec, before: of_process("VmRSS") };
    spec.with(&device.clone().autodiff(), work)?
}

struct Work<'a> {
    args: &'a TrainArgs,
    device: &'a Device,
    spec: ModelSpec,
    /// Memory of this process before there was a network.
    before: Option<u64>,
}

/// What a contender in a process of its own prints.
#[derive(Deserialize, Serialize)]
struct Memory {
    peak_bytes: u64,
}

/// Runs the same steps of one contender in a process of its own, and returns the memory that they take.
fn memory_of(args: &TrainArgs, contender: &str) -> Result<Option<u64>> {
    if of_process("VmHWM").is_none() {
        return Ok(None);
    }
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let (sparsity, batch) = (args.sparsity.to_string(), args.batch.to_string());
    command.args(["bench", "train", &args.name, "--sparsity", &sparsity, "--batch", &batch]);
    command
        .args(["--memory-of", contender])
        .env("RAYON_NUM_THREADS", rayon::current_num_threads().to_string());
    command.args(args.place.device.iter().flat_map(|device| ["--device", device]));
    let output = command.output().context("cannot measure memory in another process")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the steps of `{contender}` in another process: {said}");
    Ok(Some(serde_json::from_slice::<Memory>(&output.stdout).context("another process")?.peak_bytes))
}

impl WithModel for Work<'_> {
    type Output = Result<()>;

    fn run<M: Classifier>(self, model: M) -> Result<()> {
        let (args, parameters) = (self.args, model.num_params());
        let (name, image) = (self.spec.info.name, self.spec.images);
        // Contenders, each with its moments: one of SGD with momentum, two of AdamW.
        check_weights(&model, name, 3 * (2 + if self.is_transformer() { 2 } else { 1 }))?;
        check_results(&model, name, image, args.batch)?;
        let all = [
            ("dense", "Burn", Dense.into(), false),
            ("masked", "Burn, SRigL over masks", self.srigl().into(), false),
            ("sparse", "condensed SRigL", self.srigl().into(), true),
        ];
        let wanted =
            |(name, ..): &&(&str, _, _, _)| args.memory_of.as_ref().is_none_or(|wanted| wanted == name);
        let mut contenders = Vec::new();
        for (name, engine, method, condensed) in all.iter().filter(wanted) {
            contenders.push(self.contender(
                name,
                engine,
                model.clone(),
                AnyMethod::clone(method),
                *condensed,
            )?);
        }
        drop(model);
        if args.memory_of.is_some() {
            take_turns(&mut contenders, 2, true)?;
            let peak_bytes = of_process("VmHWM").context("this system does not tell")?;
            let peak_bytes = peak_bytes.saturating_sub(self.before.unwrap_or(0));
            return Ok(print::json(&Memory { peak_bytes })?);
        }
        let float = if args.float == Float::Bf16 { "bf16" } else { "f32" };
        let torch = args.place.torch(rayon::current_num_threads())?;
        if let Some(torch) = &torch {
            contenders.extend(torch.train(self.spec.info.name, args.batch, float, self.spec.images)?);
        }
        let samples = take_turns(&mut contenders, args.steps.next_multiple_of(UPDATE_EVERY), args.json)?;

        let mut results: Vec<StepTiming> = contenders
            .iter()
            .zip(&samples)
            .map(|(contender, samples)| StepTiming::new(contender, samples, args.batch))
            .collect();
        drop(contenders);
        if !args.place.is_gpu() {
            for result in &mut results {
                result.peak_bytes = match &torch {
                    Some(torch) if result.name.starts_with("torch") => Some(torch.training_memory()?),
                    _ => memory_of(args, &result.name)?,
                };
            }
        }
        let medians: Vec<(String, f64)> = results.iter().map(|r| (r.name.clone(), r.median_ms)).collect();
        for result in &mut results {
            let others = medians.iter().filter(|(name, _)| *name != result.name);
            result.speedup = others.map(|(name, ms)| (name.clone(), ms / result.median_ms)).collect();
        }
        let report = Report {
            model: self.spec.info.name,
            sparsity: args.sparsity,
            batch: args.batch,
            float,
            device: args.place.device.clone().unwrap_or_else(|| "flex".into()),
            steps: samples[0].len() - 1,
            parameters,
            results,
        };
        Ok(print::either(args.json, &report, Report::text)?)
    }
}

impl Work<'_> {
    /// Training steps on the same random images, one after the other.
    fn contender<M: Classifier>(
        &self,
        name: &str,
        engine: &str,
        model: M,
        method: AnyMethod,
        condensed: bool,
    ) -> Result<Contender> {
        let Sparsified { model, mut optim, .. } = self.sparsify(model, method, condensed)?;
        let device = self.device.clone();
        let training = device.clone().autodiff();
        let [channels, height, width] = self.spec.images;
        let images = Tensor::random([self.args.batch, channels, height, width], Random::Default, &training);
        let labels = Tensor::<1, Int>::from_data(vec![3; self.args.batch].as_slice(), &training);
        let loss_of = CrossEntropyLossConfig::new().init(&training);
        let mut model = Some(model);
        let last_loss = Rc::new(RefCell::new(None));
        let loss_read = last_loss.clone();
        let mut contender = Contender::timed(name, engine, move |calls, _, _| {
            let start = Instant::now();
            for _ in 0..calls {
                let net = model.take().context("a step before has failed")?;
                let loss = loss_of.forward(net.forward(images.clone()), labels.clone());
                *last_loss.borrow_mut() = Some(loss.clone());
                let grads = GradientsParams::from_grads(loss.backward(), &net);
                model = Some(optim.step(1e-3, net, grads));
            }
            device.sync().map_err(failed)?;
            Ok(start.elapsed().as_secs_f64())
        });
        // A device says nothing of work that it could not do, until a result is read.
        contender.read = Some(Box::new(move |_| {
            let loss = loss_read.borrow_mut().take().context("no step was taken")?.into_scalar::<f32>();
            ensure!(loss.is_finite(), "the loss is {loss}");
            Ok(())
        }));
        Ok(contender)
    }

    /// Whether the paper's recipe is that of vision transformers.
    fn is_transformer(&self) -> bool {
        self.spec.info.patch.is_some()
    }

    fn srigl(&self) -> Srigl {
        match self.is_transformer() {
            true => Srigl { gamma_sal: 0.95, ..Default::default() },
            false => Srigl::default(),
        }
    }

    fn sparsify<M: Classifier>(&self, model: M, method: AnyMethod, condensed: bool) -> Result<Sparsified<M>> {
        let sparsity = SparsityConfig::new(self.args.sparsity, u64::MAX)
            .with_method(method)
            .with_condensed(Some(condensed))
            .with_delta_t(UPDATE_EVERY as u64);
        Ok(if self.is_transformer() {
            let uniform = sparsity.with_distribution(Distribution::Uniform);
            uniform.sparsify(model, AdamWConfig::new().build())?
        } else {
            let momentum = MomentumConfig::new().with_dampening(0.0);
            sparsity.sparsify(model, SgdConfig::new().with_momentum(Some(momentum)).build())?
        })
    }
}

/// Seconds of each contender's steps, after some that are not timed, and of one more, which comes after an update.
fn take_turns(contenders: &mut [Contender], steps: usize, quiet: bool) -> Result<Vec<Vec<f64>>> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new((UPDATE_EVERY + steps + 1) as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:40} step {pos}/{len} {eta}")?);
    let mut samples = vec![Vec::with_capacity(steps); contenders.len()];
    for step in 0..=UPDATE_EVERY + steps {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            let seconds = contender.time(1, &[], &mut [])?;
            if step >= UPDATE_EVERY {
                samples.push(seconds);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for contender in contenders.iter_mut().filter(|contender| !contender.name.starts_with("torch")) {
        contender.read(&mut [])?;
    }
    Ok(samples)
}

impl StepTiming {
    fn new(contender: &Contender, samples: &[f64], batch: usize) -> Self {
        let ordinary: Vec<f64> = samples
            .iter()
            .enumerate()
            .filter(|(i, _)| !(i + 1).is_multiple_of(UPDATE_EVERY) && !i.is_multiple_of(UPDATE_EVERY))
            .map(|(_, seconds)| *seconds)
            .collect();
        let [p10_ms, median_ms, p90_ms] = [0.1, 0.5, 0.9].map(|share| 1e3 * quantile(&ordinary, share));
        let with_update: Vec<f64> = samples
            .windows(2)
            .skip(UPDATE_EVERY - 1)
            .step_by(UPDATE_EVERY)
            .map(|two| two.iter().sum())
            .collect();
        let update = ["masked", "sparse"].contains(&contender.name.as_str()).then(|| {
            let update_ms = 1e3 * quantile(&with_update, 0.5) - 2.0 * median_ms;
            UpdateTiming { update_ms, update_share: update_ms / (DELTA_T * median_ms) }
        });
        Self {
            name: contender.name.clone(),
            engine: contender.engine.clone(),
            median_ms,
            p10_ms,
            p90_ms,
            images_per_second: 1e3 * batch as f64 / median_ms,
            peak_bytes: None,
            speedup: BTreeMap::new(),
            update,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let names = self.results.iter().map(|r| r.name.as_str());
        let others: Vec<&str> = names.filter(|name| *name == "dense" || name.starts_with("torch")).collect();
        let row = |r: &StepTiming| {
            let mut row = vec![r.name.clone(), r.engine.clone()];
            row.extend([r.median_ms, r.p10_ms, r.p90_ms].map(|ms| format!("{ms:.3}")));
            row.push(format!("{:.0}", r.images_per_second));
            row.push(r.peak_bytes.map(|bytes| Size(bytes).to_string()).unwrap_or_default());
            row.extend(others.iter().map(|other| format!("{:.2}", r.speedup.get(*other).unwrap_or(&1.0))));
            let update = |u: &UpdateTiming| format!("{:.1} ms, {:.2} %", u.update_ms, 100.0 * u.update_share);
            row.push(r.update.as_ref().map(update).unwrap_or_default());
            row
        };
        let mut header: Vec<String> =
            ["contender", "engine", "median ms", "p10", "p90", "images/s", "memory"].map(String::from).into();
        header.extend(others.iter().map(|other| format!("over {other}")));
        header.push(format!("update of all layers, of {DELTA_T} steps"));
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        format!(
            "{}\n{} ({} parameters), sparsity {}, batch {}, {}, on {}, {} steps each",
            print::table(&header, self.results.iter().map(row)),
            self.model,
            self.parameters,
            self.sparsity,
            self.batch,
            self.float,
            self.device,
            self.steps
        )
    }
}
