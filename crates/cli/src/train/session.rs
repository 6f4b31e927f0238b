//! The training loop.

use super::TrainConfig;
use super::batches::{correct, evaluate, tensors};
use super::checkpoint::{Checkpoint, Progress};
use super::folder::{DataUsed, JsonLines, LayerResult, RunFolder, RunResult, write_atomically};
use super::masks;
use crate::data::{Batch, Loader};
use crate::model::WithModel;
use crate::weights;
use anyhow::{Result, bail};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor};
use condensed::architectures::mask_name;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;
use srigl_burn::{NormClipping, Topology, UpdateReport, state_dict};
use srigl_models::Classifier;
use srigl_models::torchvision_name;
use std::time::Instant;

/// Losses are read back from the device and shown every so many steps.
const READ_EVERY: usize = 16;

/// Trains until the last epoch and writes the run folder.
pub fn train(
    config: &TrainConfig,
    folder: &RunFolder,
    loader: &Loader,
    device_name: &str,
    device: &Device,
    quiet: bool,
) -> Result<RunResult> {
    device.seed(config.seed);
    let training = device.clone().autodiff();
    config.model.check(loader.shape())?;
    let session = Session { config, folder, loader, device_name, device, quiet };
    config.model.with(loader.shape(), loader.classes(), &training, session)
}

struct Session<'a> {
    config: &'a TrainConfig,
    folder: &'a RunFolder,
    loader: &'a Loader,
    device_name: &'a str,
    device: &'a Device,
    quiet: bool,
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
struct EpochMetrics {
    epoch: usize,
    step: u64,
    lr: f64,
    train_loss: f64,
    train_accuracy: f64,
    test_loss: f64,
    test_accuracy: f64,
    sparsity: f64,
    images_per_second: f64,
    seconds: f64,
}

/// One line of `topology.jsonl`.
#[derive(Serialize)]
struct TopologyLine {
    step: u64,
    layer: String,
    #[serde(flatten)]
    report: UpdateReport,
    itop: f64,
}

/// What changes while training.
struct State<M> {
    model: M,
    optim: ModuleOptimizer,
    topology: Topology,
    clipping: Option<NormClipping>,
    progress: Progress,
    metrics: JsonLines,
    updates: JsonLines,
    masks: JsonLines,
    /// Loss `[1]`, correct predictions `[1]` and size of batches not read back yet.
    unread: Vec<(Tensor<1>, Tensor<1, Int>, usize)>,
    started: Instant,
}

impl WithModel for Session<'_> {
    type Output = Result<RunResult>;

    fn run<M: Classifier>(self, model: M) -> Result<RunResult> {
        let (config, loader) = (self.config, self.loader);
        let steps_per_epoch = loader.train_images().div_ceil(config.batch_size);
        let total_steps = (steps_per_epoch * config.epochs) as u64;
        let total_steps = config.limit_steps.map_or(total_steps, |limit| limit.min(total_steps));

        let mut state = self.start(model, total_steps)?;
        let bar = self.progress_bar(total_steps, state.progress.step);
        while state.progress.step < total_steps {
            let epoch = state.progress.epoch;
            let done = state.progress.step_in_epoch;
            let batches = loader.train_epoch(config.seed, epoch, config.batch_size, done);
            let (epoch_started, first_step) = (Instant::now(), state.progress.step);
            let left = (total_steps - state.progress.step) as usize;
            for batch in batches.take(left) {
                state = self.step(state, &batch?, total_steps)?;
                if state.unread.len() >= READ_EVERY {
                    state.read_back()?;
                    self.show(&bar, &state, epoch_started, first_step);
                }
                let due =
                    config.checkpoint_every.is_some_and(|every| state.progress.step.is_multiple_of(every));
                if due && state.progress.step_in_epoch < steps_per_epoch && state.progress.step < total_steps
                {
                    self.checkpoint(&mut state)?;
                }
            }
            state.read_back()?;
            self.finish_epoch(&mut state, &bar, (epoch_started, first_step), total_steps)?;
        }
        bar.finish_and_clear();
        self.finish(&state)
    }
}

impl Session<'_> {
    /// A new run, or the state of the last checkpoint.
    fn start<M: Classifier>(&self, model: M, total_steps: u64) -> Result<State<M>> {
        let model = match &self.config.weights {
            Some(path) => weights::load_module(model, path, self.device)?,
            None => model,
        };
        let (mut model, mut optim, topology) = self.config.sparsify(model, total_steps)?;
        self.folder.create(self.config)?;
        let path = self.folder.file("checkpoint.safetensors");
        let data = self.loader.source().set().to_string();
        let mut progress = Progress { data: data.clone(), ..Default::default() };
        if path.exists() {
            let checkpoint = Checkpoint::load(&path)?;
            if checkpoint.progress.data != data {
                let before = &checkpoint.progress.data;
                bail!(
                    "the run was started on {before}, but the data is {data} now: provide {before} with --data"
                );
            }
            model = checkpoint.load_model(model)?;
            optim = checkpoint.load_optimizer(optim)?;
            checkpoint.load_topology(&topology)?;
            progress = checkpoint.progress;
        }
        let metrics = JsonLines::open(self.folder.file("metrics.jsonl"), progress.metrics_bytes)?;
        let updates = JsonLines::open(self.folder.file("topology.jsonl"), progress.topology_bytes)?;
        let mut masks = JsonLines::open(self.folder.file("masks.jsonl"), progress.masks_bytes)?;
        if progress.step == 0 {
            masks::write_pictures(&mut masks, 0, &topology)?;
        }
        let (unread, started) = (Vec::new(), Instant::now());
        let clipping = self.config.clip_norm.map(|norm| NormClipping::new(norm, topology.clone()));
        Ok(State { model, optim, topology, clipping, progress, metrics, updates, masks, unread, started })
    }

    fn step<M: Classifier>(&self, mut state: State<M>, batch: &Batch, total_steps: u64) -> Result<State<M>> {
        let step = state.progress.step + 1;
        // Dropout draws from the device's generator: a seed per step makes any step a place to resume at.
        self.device.seed(self.config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(step));
        let device = self.device.clone().autodiff();
        let smoothing = (self.config.label_smoothing > 0.0).then_some(self.config.label_smoothing);
        let loss_of = CrossEntropyLossConfig::new().with_smoothing(smoothing).init(&device);
        let mut accumulator = GradientsAccumulator::new();
        let images = batch.labels.len();
        let micro_batch = self.config.micro_batch.unwrap_or(images);
        for from in (0..images).step_by(micro_batch) {
            let to = images.min(from + micro_batch);
            let (pixels, labels) = tensors(batch, from, to, &device);
            let logits = state.model.forward(pixels);
            let loss = loss_of.forward(logits.clone(), labels.clone());
            state.unread.push((loss.clone().inner(), correct(logits.inner(), labels.inner()), to - from));
            let share = (to - from) as f64 / images as f64;
            let loss = if share < 1.0 { loss * share } else { loss };
            accumulator.accumulate(&state.model, GradientsParams::from_grads(loss.backward(), &state.model));
        }
        let mut grads = accumulator.grads();
        if let Some(clipping) = &mut state.clipping {
            grads = clipping.clip(&state.model, grads);
        }
        state.model = state.optim.step(self.config.lr_at(step, total_steps), state.model, grads);
        state.progress.step = step;
        state.progress.step_in_epoch += 1;
        for event in state.topology.drain_events() {
            let (step, layer, itop) = (event.step, event.layer, event.itop);
            match event.report {
                Ok(report) => state.updates.write(&TopologyLine { step, layer, report, itop })?,
                Err(error) => bail!("step {step}: {error}; training has diverged, try a lower --lr"),
            }
        }
        if self.config.is_pictured(step, total_steps) {
            masks::write_pictures(&mut state.masks, step, &state.topology)?;
        }
        Ok(state)
    }

    fn finish_epoch<M: Classifier>(
        &self,
        state: &mut State<M>,
        bar: &ProgressBar,
        (epoch_started, first_step): (Instant, u64),
        total_steps: u64,
    ) -> Result<()> {
        let seconds = epoch_started.elapsed().as_secs_f64();
        let images = (state.progress.step - first_step) as f64 * self.config.batch_size as f64;
        let (test_loss, test_accuracy) = evaluate(&state.model.valid(), self.loader, self.device)?;
        let progress = &mut state.progress;
        progress.epoch += 1;
        progress.step_in_epoch = 0;
        let best = test_accuracy > progress.best_test_accuracy;
        progress.best_test_accuracy = progress.best_test_accuracy.max(test_accuracy);
        let line = EpochMetrics {
            epoch: progress.epoch,
            step: progress.step,
            lr: self.config.lr_at(progress.step, total_steps),
            train_loss: progress.loss_sum / progress.images as f64,
            train_accuracy: progress.correct as f64 / progress.images as f64,
            test_loss,
            test_accuracy,
            sparsity: state.topology.sparsity(),
            images_per_second: images / seconds,
            seconds,
        };
        (progress.loss_sum, progress.correct, progress.images) = (0.0, 0, 0);
        if !self.quiet {
            let text = format!(
                "epoch {}/{}: train loss {:.4}, test accuracy {:.2} %, {:.0} images/s",
                line.epoch,
                self.config.epochs,
                line.train_loss,
                100.0 * line.test_accuracy,
                line.images_per_second
            );
            bar.suspend(|| eprintln!("{text}"));
        }
        state.metrics.write(&line)?;
        if best {
            self.write_model(state, "best.safetensors")?;
        }
        self.checkpoint(state)
    }

    fn checkpoint<M: Classifier>(&self, state: &mut State<M>) -> Result<()> {
        state.read_back()?;
        state.progress.metrics_bytes = state.metrics.sync()?;
        state.progress.topology_bytes = state.updates.sync()?;
        state.progress.masks_bytes = state.masks.sync()?;
        let mut progress = state.progress.clone();
        progress.seconds += state.started.elapsed().as_secs_f64();
        let checkpoint = Checkpoint::new(progress, &state.model, &state.optim, &state.topology)?;
        checkpoint.save(&self.folder.file("checkpoint.safetensors"))
    }

    /// The model in PyTorch's layout with its masks.
    fn write_model<M: Classifier>(&self, state: &State<M>, file: &str) -> Result<()> {
        let layers = state.topology.layers();
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for tensor in state_dict(&state.model.valid()) {
            let bytes = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let name = torchvision_name(&tensor.name);
            if let Some(layer) = layers.iter().find(|layer| format!("{}.weight", layer.name) == tensor.name) {
                tensors.push((mask_name(&name), Dtype::U8, tensor.dims.clone(), layer.mask.to_bytes()));
            }
            tensors.push((name, Dtype::F32, tensor.dims, bytes));
        }
        let mut views = Vec::new();
        for (name, dtype, dims, bytes) in &tensors {
            views.push((name, TensorView::new(*dtype, dims.clone(), bytes)?));
        }
        write_atomically(&self.folder.file(file), &safetensors::serialize(views, None)?)
    }

    /// The last model, then the result.
    fn finish<M: Classifier>(&self, state: &State<M>) -> Result<RunResult> {
        let (_, test_accuracy) = evaluate(&state.model.valid(), self.loader, self.device)?;
        let layers = state.topology.layers();
        self.write_model(state, "model.safetensors")?;
        let result = RunResult {
            test_accuracy,
            best_test_accuracy: state.progress.best_test_accuracy,
            epochs: state.progress.epoch,
            seconds: state.progress.seconds + state.started.elapsed().as_secs_f64(),
            sparsity: state.topology.sparsity(),
            device: self.device_name.to_string(),
            data: DataUsed::new(self.loader),
            layers: layers.iter().map(LayerResult::new).collect(),
        };
        write_atomically(
            &self.folder.file("result.json"),
            serde_json::to_string_pretty(&result)?.as_bytes(),
        )?;
        Ok(result)
    }

    fn progress_bar(&self, total_steps: u64, step: u64) -> ProgressBar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style =
            ProgressStyle::with_template("{bar:24} {pos}/{len} steps, {msg}, {eta} left").expect("valid");
        ProgressBar::with_draw_target(Some(total_steps), target).with_style(style).with_position(step)
    }

    fn show<M>(&self, bar: &ProgressBar, state: &State<M>, started: Instant, first_step: u64) {
        let progress = &state.progress;
        let images = progress.images as f64;
        let new_images = (progress.step - first_step) as f64 * self.config.batch_size as f64;
        bar.set_position(progress.step);
        bar.set_message(format!(
            "loss {:.3}, accuracy {:.1} %, sparsity {:.1} %, {:.0} images/s",
            progress.loss_sum / images,
            100.0 * progress.correct as f64 / images,
            100.0 * state.topology.sparsity(),
            new_images / started.elapsed().as_secs_f64()
        ));
    }
}

impl<M> State<M> {
    /// Adds the losses and hits of the last steps to the sums, in order. Two copies from the device, for all of them.
    fn read_back(&mut self) -> Result<()> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let (mut losses, mut hits, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for (loss, correct, images) in std::mem::take(&mut self.unread) {
            losses.push(loss);
            hits.push(correct);
            sizes.push(images);
        }
        let losses = Tensor::cat(losses, 0).into_data().convert::<f32>();
        let hits = Tensor::cat(hits, 0).into_data().convert::<i64>();
        for ((loss, hits), images) in losses.iter::<f32>().zip(hits.iter::<i64>()).zip(sizes) {
            if !loss.is_finite() {
                bail!(
                    "the loss is {loss} by step {}: training has diverged, try a lower --lr",
                    self.progress.step
                );
            }
            self.progress.loss_sum += f64::from(loss) * images as f64;
            self.progress.correct += hits as u64;
            self.progress.images += images;
        }
        Ok(())
    }
}
