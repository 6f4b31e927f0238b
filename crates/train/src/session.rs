//! The training loop.

use crate::batches::{evaluate, gradients};
use crate::memory::{check_results, check_weights};
use crate::optimizers::moments;
use crate::start::{start, start_again};
use crate::{Checkpoint, Latest, Progress, device, model_spec, model_tensors, sparsity_config};
use anyhow::{Result, bail, ensure};
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Int, Tensor};
use sparsity_core::methods::Gradients;
use srigl_burn::{NormClipping, Sparsified, Topology, Updates};
use srigl_data::{Batch, Loader};
use srigl_models::{Classifier, WithModel};
use srigl_run::{
    Config, DataUsed, Epoch, Inputs, JsonLines, LayerResult, Lock, RunFolder, RunResult, Steps, Storage,
    TopologyLine, file, mask_line,
};
use std::time::Instant;

/// Less than any accuracy.
const NONE_YET: f64 = -1.0;

/// Losses are read back from the device and shown every so many steps.
const READ_EVERY: usize = 16;

/// One training of a run folder.
#[derive(Clone, Copy)]
pub struct Session<'a> {
    /// Everything the result depends on.
    pub config: &'a Config,
    /// Where the run is kept.
    pub folder: &'a RunFolder,
    /// Batches of the images.
    pub loader: &'a Loader,
    /// `flex`, `ndarray`, `cuda` or `cuda:N`.
    pub device: &'a str,
    /// So many epochs instead of the configuration's, from the last checkpoint on.
    pub extend_to: Option<usize>,
}

/// What is told of a training while it runs.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Optimizer steps taken.
    pub step: u64,
    /// Mean loss on the training images of this epoch so far.
    pub loss: f64,
    /// Accuracy on them, 0 to 1.
    pub accuracy: f64,
    /// Share of zeros.
    pub sparsity: f64,
    /// Training images per second in this epoch.
    pub images_per_second: f64,
}

/// Somebody who watches a training.
pub trait Observer {
    /// Something about the run that was not said by its settings, in a sentence.
    fn note(&mut self, text: &str) {
        let _ = text;
    }

    /// Training is about to go on after `step` of `steps`.
    fn started(&mut self, step: u64, steps: u64) {
        let _ = (step, steps);
    }

    /// Some steps have been taken.
    fn stepped(&mut self, standing: &Standing) {
        let _ = standing;
    }

    /// An epoch is over.
    fn epoch(&mut self, epoch: &Epoch) {
        let _ = epoch;
    }

    /// All epochs are over.
    fn finished(&mut self) {}
}

/// An observer that does nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Observer for Silent {}

impl Session<'_> {
    /// Trains until the last epoch and writes the run folder.
    ///
    /// # Errors
    /// Settings that do not fit the images, files that cannot be read or written, and training that has diverged.
    pub fn train(&self, observer: &mut dyn Observer) -> Result<RunResult> {
        let device = device::parse(self.device)?;
        device.seed(self.config.seed);
        let spec = model_spec(&self.config.model, self.loader.shape(), self.loader.classes())?;
        self.loader.check(self.config.batch_size)?;
        let inputs = Inputs::new(self.loader, self.config.weights.as_deref())?;
        // Nobody may move a run on between reading its checkpoint and going on from it. The folder of a new run is made when
        // its start is known to work.
        let lock = match self.folder.has_run() {
            true => Some(self.folder.create(self.config, &inputs)?),
            false => None,
        };
        let latest = Checkpoint::latest(self.folder)?;
        let mut config = match (self.extend_to, &latest) {
            (None, _) => self.config.clone(),
            (Some(epochs), Some(latest)) => {
                self.config.extended_to(epochs, latest.checkpoint.progress.step)?
            }
            (Some(epochs), None) => {
                let run = self.folder.has_run();
                bail!(match run {
                    true => "--extend-to: the run has no checkpoint to go on from".to_string(),
                    false =>
                        format!("--extend-to: the run has no checkpoint yet; start it with --epochs {epochs}"),
                })
            }
        };
        // An extended run that falls back to before its extension is extended from there.
        let step = latest.as_ref().map_or(0, |latest| latest.checkpoint.progress.step);
        for extension in config.extended.iter_mut().filter(|extension| extension.step > step) {
            observer.note(&format!(
                "the run was extended after step {}: what was trained of it without is lost, and its schedules are those of {} \
                 epochs from step {step} on",
                extension.step, config.epochs
            ));
            extension.step = step;
        }
        let session = Session { config: &config, ..*self };
        let loop_ = Loop { session, before: self.config, inputs, device: &device, observer, moved: false };
        spec.with(&device.clone().autodiff(), Training { loop_, lock, latest })?
    }
}

/// A training that is about to begin or to go on.
struct Training<'a> {
    loop_: Loop<'a>,
    /// Of a run that has begun.
    lock: Option<Lock>,
    latest: Option<Latest>,
}

impl WithModel for Training<'_> {
    type Output = Result<RunResult>;

    fn run<M: Classifier>(self, model: M) -> Result<RunResult> {
        let Self { mut loop_, lock, latest } = self;
        let Session { config, folder, loader, .. } = loop_.session;
        let steps = config.steps(loader.steps_per_epoch(config.batch_size))?;
        let name = &config.model.name;
        let method = config.method.build()?;
        // Weights that are kept beside those of the network, here and on the host, and a sum of all gradients.
        let kept = if method.keeps_inactive_weights() { 2 } else { 0 };
        let sum = usize::from(matches!(method.info().gradients, Gradients::Momentum { .. }));
        check_weights(&model, name, 2 + moments(config) + kept + sum)?;
        let batch = config.batch_size.min(loader.train_images());
        let images = config.micro_batch.map_or(batch, |images| images.min(batch));
        check_results(&model, name, loader.shape(), images)?;
        let start = match latest {
            Some(latest) => loop_.go_on(model, &steps, latest)?,
            None => loop_.begin(model, &steps)?,
        };
        let lock = match lock {
            Some(lock) => lock,
            None => {
                let lock = folder.create(config, &loop_.inputs)?;
                // Somebody may have begun the same run meanwhile: it is to be resumed, not begun again.
                ensure!(lock.is_of_new_run(), srigl_run::Error::Exists { path: folder.file("") });
                lock
            }
        };
        let result = loop_.train(start, &steps, &lock);
        if result.is_err() && !loop_.moved {
            lock.abandon();
        }
        result
    }
}

/// Where a training starts.
struct Start<M> {
    sparse: Sparsified<M>,
    progress: Progress,
    /// Whether the last checkpoint could not be used.
    lost: bool,
}

struct Loop<'a> {
    session: Session<'a>,
    /// The settings of the run so far.
    before: &'a Config,
    inputs: Inputs,
    device: &'a Device,
    observer: &'a mut dyn Observer,
    /// Whether a step has been taken.
    moved: bool,
}

/// What changes while training.
struct State<M> {
    model: M,
    optim: ModuleOptimizer,
    topology: Topology,
    events: Updates,
    clipping: Option<NormClipping>,
    progress: Progress,
    metrics: JsonLines,
    updates: JsonLines,
    masks: JsonLines,
    /// Loss `[1]`, correct predictions `[1]` and size of batches not read back yet.
    unread: Vec<(Tensor<1>, Tensor<1, Int>, usize)>,
    started: Instant,
}

impl Loop<'_> {
    /// A new run, or one that has not come to its first checkpoint.
    fn begin<M: Classifier>(&mut self, model: M, steps: &Steps) -> Result<Start<M>> {
        let Session { config, folder, loader, .. } = self.session;
        if folder.has_run() {
            let logged = folder.metrics().unwrap_or_default().len();
            self.observer.note(&match logged {
                0 => "the run has no checkpoint: it starts from its first step".into(),
                _ => format!(
                    "the run has no checkpoint any more: it starts again, and the {logged} epochs of metrics.jsonl with it"
                ),
            });
        }
        let start = start(config, model, loader, steps, self.device)?;
        let inputs = Some(self.inputs.clone());
        let mut progress =
            Progress { inputs, started_from: start.from, targets: start.targets, ..Default::default() };
        self.tell_start(&start.sparse, &mut progress, steps)?;
        Ok(Start { sparse: start.sparse, progress, lost: false })
    }

    /// The state of the last checkpoint.
    fn go_on<M: Classifier>(&mut self, model: M, steps: &Steps, latest: Latest) -> Result<Start<M>> {
        let Session { config, folder, .. } = self.session;
        let Latest { mut checkpoint, lost } = latest;
        folder.check_inputs(&self.inputs, checkpoint.progress.inputs.as_ref())?;
        if let Some(data) = checkpoint.progress.data() {
            let now = &self.inputs.data;
            ensure!(
                data == now,
                "the run was started on {data}, but the data is {now} now: provide {data} with --data"
            );
        }
        if checkpoint.progress.inputs.is_none() {
            // Of an earlier version.
            let known = folder.inputs()?;
            if known.is_none() {
                self.observer.note(
                    "inputs.json is missing: it cannot be checked that the images are those that the run was started on",
                );
            }
            checkpoint.progress.inputs = Some(known.unwrap_or_else(|| self.inputs.clone()));
        }
        let logged = folder.metrics().unwrap_or_default();
        if let Some(lost) = &lost {
            let again = logged.iter().filter(|line| line.epoch > checkpoint.progress.epoch).count();
            self.observer.note(&match again {
                0 => lost.clone(),
                1 => format!("{lost}; the epoch logged since is trained again"),
                epochs => format!("{lost}; the {epochs} epochs logged since are trained again"),
            });
        }
        let last_device = logged.iter().rev().find_map(|line| line.device.as_deref());
        if let Some(other) = last_device.filter(|other| *other != self.session.device) {
            self.observer.note(&format!(
                "the run goes on with --device {} and was trained on {other} so far: it is not the run of either (each line \
                 of metrics.jsonl says its device)",
                self.session.device
            ));
        }
        // Its best model may be of an epoch that other schedules replace.
        let best = checkpoint.progress.best_test_accuracy;
        let better = |line: &Epoch| {
            line.epoch > checkpoint.progress.epoch
                && line.test_accuracy.is_some_and(|accuracy| accuracy > best)
        };
        if config.extended != self.before.extended && logged.iter().any(better) {
            self.observer.note(
                "best.safetensors is of an epoch that is lost: the best of the epochs to come takes its place",
            );
            checkpoint.progress.best_test_accuracy = NONE_YET;
        }
        let again = start_again(config, model, steps, &checkpoint.progress.targets)?;
        let schedule = match config.extended[..] {
            [] => None,
            _ => Some(sparsity_config(config, steps)?.schedule()),
        };
        let sparse = checkpoint.load(again, schedule)?;
        Ok(Start { sparse, progress: checkpoint.progress, lost: lost.is_some() })
    }

    /// What more epochs do to the schedules.
    fn tell_extension(&mut self, step: u64, steps: &Steps) -> Result<()> {
        let (before, now) = (self.before, self.session.config);
        let before_steps = before.steps((steps.planned / now.epochs as u64) as usize)?;
        let rate = |config: &Config, steps: &Steps| config.lr_at((step + 1).min(steps.total), steps.total);
        let mut note = format!(
            "{} epochs instead of {}, from step {step} on: the learning rate goes on at {:.3e} instead of {:.3e}",
            now.epochs,
            before.epochs,
            rate(now, steps),
            rate(before, &before_steps)
        );
        if now.method.info().changes() {
            let [was, is] = [before.end_step(before_steps.total), now.end_step(steps.total)];
            let again = if was <= step { ", so it changes again" } else { "" };
            note += &format!("; the topology changes until step {is} instead of {was}{again}");
        }
        note += "; a run with as many epochs from the start would differ";
        self.observer.note(&note);
        Ok(())
    }

    fn train<M: Classifier>(&mut self, start: Start<M>, steps: &Steps, lock: &Lock) -> Result<RunResult> {
        let Session { config, folder, loader, .. } = self.session;
        let Start { sparse: Sparsified { model, optim, topology }, progress, lost } = start;
        let metrics = JsonLines::open(folder.file(file::METRICS), &progress.metrics)?;
        let updates = JsonLines::open(folder.file(file::TOPOLOGY), &progress.topology)?;
        let masks = JsonLines::open(folder.file(file::MASKS), &progress.masks)?;
        // All is well; nothing has been changed before.
        let (metrics, updates, mut masks) = (metrics.cut()?, updates.cut()?, masks.cut()?);
        if lost {
            folder.put_checkpoint_aside()?;
        }
        if let Some(inputs) = &progress.inputs {
            folder.keep_inputs(lock, inputs)?;
        }
        if config.extended != self.before.extended {
            if config.epochs != self.before.epochs {
                self.tell_extension(progress.step, steps)?;
            }
            folder.extend(lock, config)?;
        }
        if progress.step == 0 {
            write_pictures(&mut masks, 0, &topology)?;
        }
        let layers = topology.layers();
        let sparse = layers.iter().filter(|layer| layer.sparsity > 0.0).count();
        let condensed = layers.iter().filter(|layer| layer.condensed).count();
        if sparse > 0 {
            self.observer.note(&match condensed {
                0 if config.storage == Some(Storage::Condensed) => format!(
                    "--storage condensed cannot be had with --method {}: sparse layers are masked",
                    config.method.info().name
                ),
                0 => "sparse layers are masked: they compute with all weights".into(),
                all if all == sparse => {
                    "sparse layers train in condensed form, with active weights alone".into()
                }
                some => {
                    format!("{some} of {sparse} sparse layers train in condensed form, the others are masked")
                }
            });
            let storage = storage_of(&topology);
            let logged = if progress.epoch == 0 { None } else { folder.metrics().ok() };
            let before = logged.iter().flatten().rev().find_map(|line| line.storage);
            if logged.is_some() && before.unwrap_or(Storage::Masked) != storage {
                self.observer.note(&format!(
                    "the run had --storage {} so far, which rounds differently (each line of metrics.jsonl says which it had)",
                    before.unwrap_or(Storage::Masked).name()
                ));
            }
        }
        let (unread, started, events) = (Vec::new(), Instant::now(), topology.updates());
        let clipping = config.clip_norm.map(|norm| NormClipping::new(norm, topology.clone()));
        let mut state = State {
            model,
            optim,
            topology,
            events,
            clipping,
            progress,
            metrics,
            updates,
            masks,
            unread,
            started,
        };
        let (steps_per_epoch, total_steps) = (loader.steps_per_epoch(config.batch_size), steps.total);
        self.observer.started(state.progress.step, total_steps);
        while state.progress.step < total_steps {
            let epoch = state.progress.epoch;
            let done = state.progress.step_in_epoch;
            let batches = loader.train_epoch(config.seed, epoch, config.batch_size, done);
            let (epoch_started, first_step) = (Instant::now(), state.progress.step);
            let left = (total_steps - state.progress.step) as usize;
            for batch in batches.take(left) {
                state = self.step(state, &batch?, steps)?;
                self.moved = true;
                if state.unread.len() >= READ_EVERY {
                    state.read_back()?;
                    let standing = self.standing(&state, epoch_started, first_step);
                    self.observer.stepped(&standing);
                }
                let due =
                    config.checkpoint_every.is_some_and(|every| state.progress.step.is_multiple_of(every));
                if due && state.progress.step_in_epoch < steps_per_epoch && state.progress.step < total_steps
                {
                    self.checkpoint(&mut state)?;
                }
            }
            state.read_back()?;
            let epoch = self.finish_epoch(&mut state, (epoch_started, first_step), total_steps)?;
            self.observer.epoch(&epoch);
        }
        self.observer.finished();
        self.finish(&state)
    }

    /// Says where a new run starts and what its settings do not say.
    fn tell_start<M: Classifier>(
        &mut self,
        sparse: &Sparsified<M>,
        progress: &mut Progress,
        steps: &Steps,
    ) -> Result<()> {
        let Session { config, loader, .. } = self.session;
        if steps.delta_t < config.delta_t && config.method.info().changes() {
            self.observer.note(&format!(
                "{} of {} steps: schedules shrink with them, and the topology changes every {} steps instead of {}",
                steps.total, steps.planned, steps.delta_t, config.delta_t
            ));
        }
        if let Some(from) = &mut progress.started_from {
            for note in &from.notes {
                self.observer.note(&format!("{}: {note}", from.file));
            }
            from.test_accuracy = evaluate(&sparse.model.valid(), loader, self.device)?.top1;
            let mask = match config.method.info().sparse {
                true => format!(", mask: {}, sparsity {:.2} %", from.initial_mask, 100.0 * from.sparsity),
                false => String::new(),
            };
            self.observer.note(&format!(
                "starts from {}{mask}, test accuracy {:.2} % before the first step",
                from.file,
                100.0 * from.test_accuracy
            ));
        }
        Ok(())
    }

    fn step<M: Classifier>(&self, mut state: State<M>, batch: &Batch, steps: &Steps) -> Result<State<M>> {
        let step = state.progress.step + 1;
        state.progress.step = step;
        state.progress.step_in_epoch += 1;
        // All its pictures are broken and left out.
        if batch.labels.is_empty() {
            return Ok(state);
        }
        // Dropout draws from the device's generator: a seed per step makes any step a place to resume at.
        self.device.seed(self.session.config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(step));
        let (config, unread) = (self.session.config, &mut state.unread);
        let mut grads = gradients(config, &state.model, batch, self.device, |loss, correct, images| {
            unread.push((loss, correct, images));
        });
        if let Some(clipping) = &mut state.clipping {
            grads = clipping.clip(&state.model, grads);
        }
        state.model = state.optim.step(self.session.config.lr_at(step, steps.total), state.model, grads);
        for event in state.events.drain() {
            let (step, layer, itop) = (event.step, event.layer, event.itop);
            match event.report {
                Ok(report) => state.updates.write(&TopologyLine { step, layer, report, itop })?,
                Err(error @ sparsity_core::Error::NotFinite { .. }) => {
                    bail!("step {step}: {error}; training has diverged, try a lower --lr")
                }
                Err(error) => bail!("step {step}: {error}"),
            }
        }
        if self.session.config.is_pictured(step, steps) {
            write_pictures(&mut state.masks, step, &state.topology)?;
        }
        Ok(state)
    }

    fn finish_epoch<M: Classifier>(
        &self,
        state: &mut State<M>,
        (epoch_started, first_step): (Instant, u64),
        total_steps: u64,
    ) -> Result<Epoch> {
        let seconds = epoch_started.elapsed().as_secs_f64();
        let images = (state.progress.step - first_step) as f64 * self.session.config.batch_size as f64;
        let accuracy = evaluate(&state.model.valid(), self.session.loader, self.device)?;
        let test_accuracy = accuracy.top1;
        let progress = &mut state.progress;
        progress.epoch += 1;
        progress.step_in_epoch = 0;
        let best = progress.epoch == 1 || test_accuracy > progress.best_test_accuracy;
        progress.best_test_accuracy = progress.best_test_accuracy.max(test_accuracy);
        let line = Epoch {
            epoch: progress.epoch,
            step: progress.step,
            lr: Some(self.session.config.lr_at(progress.step, total_steps)),
            train_loss: Some(progress.loss_sum / progress.images as f64),
            train_accuracy: Some(progress.correct as f64 / progress.images as f64),
            test_loss: Some(accuracy.loss),
            test_accuracy: Some(test_accuracy),
            test_top5: accuracy.top5,
            sparsity: Some(state.topology.sparsity()),
            images_per_second: Some(images / seconds),
            seconds: Some(seconds),
            device: Some(self.session.device.to_string()),
            storage: Some(storage_of(&state.topology)),
        };
        (progress.loss_sum, progress.correct, progress.images) = (0.0, 0, 0);
        state.metrics.write(&line)?;
        if best {
            self.write_model(state, file::BEST)?;
        }
        self.checkpoint(state)?;
        Ok(line)
    }

    fn checkpoint<M: Classifier>(&self, state: &mut State<M>) -> Result<()> {
        state.read_back()?;
        state.progress.metrics = state.metrics.sync()?;
        state.progress.topology = state.updates.sync()?;
        state.progress.masks = state.masks.sync()?;
        let mut progress = state.progress.clone();
        progress.seconds += state.started.elapsed().as_secs_f64();
        let checkpoint = Checkpoint::new(progress, &state.model, &state.optim)?;
        checkpoint.save(self.session.folder)
    }

    /// The model in PyTorch's layout with its masks.
    fn write_model<M: Classifier>(&self, state: &State<M>, name: &str) -> Result<()> {
        let folder = self.session.folder;
        let tensors = model_tensors(&folder.file(name), &state.model.valid(), &state.topology);
        Ok(tensors.stage_in(folder, name)?.commit()?)
    }

    /// The last model, then the result.
    fn finish<M: Classifier>(&self, state: &State<M>) -> Result<RunResult> {
        self.write_model(state, file::MODEL)?;
        // A finished run that had lost its model alone.
        if let Ok(Some(result)) = self.session.folder.result() {
            return Ok(result);
        }
        let accuracy = evaluate(&state.model.valid(), self.session.loader, self.device)?;
        let layers = state.topology.layers().into_iter().map(|layer| LayerResult {
            weights: layer.mask.positions(),
            stats: layer.stats(),
            itop: layer.itop(),
            name: layer.name,
        });
        let result = RunResult {
            test_accuracy: accuracy.top1,
            best_test_accuracy: state.progress.best_test_accuracy,
            test_top5: accuracy.top5,
            epochs: state.progress.epoch,
            seconds: state.progress.seconds + state.started.elapsed().as_secs_f64(),
            sparsity: state.topology.sparsity(),
            device: self.session.device.to_string(),
            started_from: state.progress.started_from.clone(),
            data: DataUsed::new(self.session.loader),
            layers: layers.collect(),
        };
        self.session.folder.write_json(file::RESULT, &result)?;
        Ok(result)
    }

    fn standing<M>(&self, state: &State<M>, started: Instant, first_step: u64) -> Standing {
        let progress = &state.progress;
        let images = progress.images as f64;
        let new_images = (progress.step - first_step) as f64 * self.session.config.batch_size as f64;
        Standing {
            step: progress.step,
            loss: progress.loss_sum / images,
            accuracy: progress.correct as f64 / images,
            sparsity: state.topology.sparsity(),
            images_per_second: new_images / started.elapsed().as_secs_f64(),
        }
    }
}

/// How sparse layers are stored: condensed if any is.
fn storage_of(topology: &Topology) -> Storage {
    match topology.layers().iter().any(|layer| layer.condensed) {
        true => Storage::Condensed,
        false => Storage::Masked,
    }
}

/// Writes a picture of each layer's mask.
fn write_pictures(lines: &mut JsonLines, step: u64, topology: &Topology) -> Result<(), srigl_run::Error> {
    topology.layers().into_iter().try_for_each(|layer| lines.write(&mask_line(step, layer.name, &layer.mask)))
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
