//! Runs: trainings in a folder, which can be interrupted and go on.

use crate::network::check_sizes;
use crate::{Error, Measured, Network, NetworkConfig, Points, Training, TrainingConfig};
use serde::{Deserialize, Serialize};
use srigl_run::{Damage, Found, JsonLines, LogEnd, RunFolder, differing_setting, file};
use srigl_tensors::memory::of_process;
use std::path::Path;
use std::time::Instant;

/// What a run trains and on what: the same settings and points give the same network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The network.
    pub network: NetworkConfig,
    /// How it is trained.
    pub training: TrainingConfig,
    /// Points to train on.
    pub train: DataSet,
    /// Points to measure on.
    pub test: DataSet,
}

/// Which points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as those of `Points`")]
pub struct DataSet {
    pub points: usize,
    pub features: usize,
    pub labels: usize,
    pub dense: bool,
    pub sha256: String,
}

impl From<&Points> for DataSet {
    fn from(points: &Points) -> Self {
        let (sha256, [features, labels]) =
            (points.sha256().to_string(), [points.features(), points.labels()]);
        Self { points: points.len(), features, labels, dense: points.is_dense(), sha256 }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1 on.
    pub epoch: usize,
    /// The mean over its steps of the loss: the sum over labels, the mean over points.
    pub train_loss: f64,
    /// Of the test points.
    #[serde(flatten)]
    pub measured: Measured,
    /// That its steps took.
    pub seconds: f64,
}

/// What `result.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Of the test points, after the last epoch.
    #[serde(flatten)]
    pub measured: Measured,
    /// Of the last epoch.
    pub train_loss: f64,
    /// Weights and biases.
    pub parameters: usize,
    /// Of training alone.
    pub seconds_per_epoch: f64,
    /// The process's most memory so far, in units of 10⁶ bytes; `None` where the system does not tell.
    pub peak_rss_mb: Option<f64>,
    /// What the run was started with.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What is beside the network in a checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// Where `metrics.jsonl` ends.
    metrics: LogEnd,
    /// Of all epochs so far.
    #[serde(with = "srigl_run::exact")]
    seconds: f64,
    /// Of the last epoch.
    #[serde(with = "srigl_run::exact")]
    train_loss: f64,
}

/// A training to go on with.
type Resumed = Found<(Training, State), Error>;

/// Is told how a training goes.
pub trait Observer {
    /// Something that should not go unnoticed.
    fn note(&mut self, text: &str);
    /// Training begins after so many of all steps.
    fn started(&mut self, _step: u64, _steps: u64) {}
    /// A step was taken, with this loss.
    fn stepped(&mut self, _step: u64, _loss: f64) {}
    /// An epoch has ended.
    fn epoch(&mut self, _epoch: &Epoch) {}
}

/// A training in a run folder: `config.json` with the [`Settings`], `metrics.jsonl`, checkpoints after each epoch, and at the end
/// `model.safetensors`, a [`Network`], and `result.json`.
#[derive(Clone, Debug)]
pub struct Run {
    folder: RunFolder,
    settings: Settings,
    resume: bool,
}

impl Run {
    /// A new run in a folder that is new or empty, or with `resume` the one that is in it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting out of range; [`Error::Sizes`] if test points have features or labels that training points have not;
    /// [`Error::Run`] if the folder has a run that is not to be resumed or of other
    /// settings or points, or something else.
    pub fn open(path: &Path, settings: Settings, resume: bool) -> Result<Self, Error> {
        settings.training.check()?;
        let (train, test) = (&settings.train, &settings.test);
        check_sizes([test.features, test.labels], [train.features, train.labels], train.dense || test.dense)?;
        let run = Self { folder: RunFolder::at(path), settings, resume };
        if let Some(before) = run.folder.settings(resume)? {
            run.compare(&before)?;
        }
        Ok(run)
    }

    fn compare(&self, before: &Settings) -> Result<(), srigl_run::Error> {
        // As they would be read: a number may have another last bit then.
        let read = serde_json::to_string(&self.settings).and_then(|text| serde_json::from_str(&text));
        let now: Settings = read.unwrap_or_else(|_| self.settings.clone());
        self.folder.compare(match () {
            () if now.train != before.train => Some("train".into()),
            () if now.test != before.test => Some("test".into()),
            () => differing_setting(&now, before, &[]),
        })
    }

    /// The result of a run that is finished, if its network is there and whole: [`train`](Self::train) makes it again otherwise.
    ///
    /// # Errors
    /// [`Error::Run`] if it is damaged.
    pub fn result(&self) -> Result<Option<RunResult>, Error> {
        match Network::read(&self.folder.file(file::MODEL)).is_ok() {
            true => Ok(self.folder.read_json(file::RESULT)?),
            false => Ok(None),
        }
    }

    /// Trains to the end, from the last checkpoint on if there is one.
    ///
    /// # Errors
    /// [`Error::Run`] if another process writes into the folder, or it cannot be written; [`Error::Checkpoint`] if there is no
    /// checkpoint that is whole; and those of [`NetworkConfig::build`], [`Training`] and [`Points::batch`]. A run that has not come to its
    /// first checkpoint leaves nothing behind.
    pub fn train(
        &self,
        train: &Points,
        test: &Points,
        observer: &mut impl Observer,
    ) -> Result<RunResult, Error> {
        // What does not fit is refused before a folder is made.
        let made = if self.folder.has_run() { None } else { Some(self.fresh(train)?) };
        // Somebody else may have made a run there meanwhile.
        let lock = self.folder.make(|| match self.folder.settings::<Settings>(self.resume)? {
            Some(before) => self.compare(&before),
            None => self.folder.write_json(file::CONFIG, &self.settings),
        })?;
        let is_new = lock.is_of_new_run();
        let trained = self.latest(train.len()).and_then(|found| {
            let (training, state, lost) = match found {
                Some(((training, state), lost)) => (training, state, lost),
                None => (made.map_or_else(|| self.fresh(train), Ok)?, State::default(), None),
            };
            self.go_on(training, state, lost, train, test, observer)
        });
        let is_saved =
            || [file::CHECKPOINT, file::PREVIOUS].iter().any(|name| self.folder.file(name).exists());
        match trained {
            Err(error) if is_new && !is_saved() => {
                lock.abandon();
                Err(error)
            }
            trained => trained,
        }
    }

    /// A training that begins.
    fn fresh(&self, train: &Points) -> Result<Training, Error> {
        Training::new(self.settings.network.build(train)?, self.settings.training, train.len())
    }

    /// The last checkpoint that is whole, and what is wrong with the one behind it.
    fn latest(&self, points: usize) -> Result<Option<Resumed>, Error> {
        let read = |path: &Path| match Training::read(path, self.settings.training, points) {
            Ok((training, state)) => {
                let state = serde_json::from_str(&state);
                let wrong =
                    |error: serde_json::Error| Error::Model { path: path.into(), what: error.to_string() };
                Ok(state.map(|state| (training, state)).map_err(wrong))
            }
            Err(damaged @ Error::Model { .. }) => Ok(Err(damaged)),
            Err(error) => Err(error),
        };
        self.folder.latest_checkpoint(read).map_err(|damage| Box::new(damage).into())
    }

    fn go_on(
        &self,
        mut training: Training,
        mut state: State,
        lost: Option<Damage<Error>>,
        train: &Points,
        test: &Points,
        observer: &mut impl Observer,
    ) -> Result<RunResult, Error> {
        let metrics = self.folder.file(file::METRICS);
        let mut metrics = JsonLines::open(metrics, &state.metrics)?.cut()?;
        // All is well; nothing has been changed before.
        if let Some(damage) = lost {
            let step = training.steps_taken();
            observer.note(&format!("{damage}: going on from the checkpoint before it, after step {step}"));
            self.folder.put_checkpoint_aside()?;
        }
        observer.started(training.steps_taken(), training.steps());
        let (mut sum, mut seconds, mut measured) = (0.0, 0.0, None);
        while let Some(batch) = training.next() {
            let start = Instant::now();
            let loss = training.step(&train.batch(&batch)?)?;
            seconds += start.elapsed().as_secs_f64();
            sum += loss;
            let step = training.steps_taken();
            observer.stepped(step, loss);
            if !step.is_multiple_of(training.steps_per_epoch()) {
                continue;
            }
            let rankings = training.network().evaluate(test, Measured::RANKED, Measured::CHUNK, |_| {})?;
            let epoch = Epoch {
                epoch: (step / training.steps_per_epoch()) as usize,
                train_loss: sum / training.steps_per_epoch() as f64,
                measured: Measured::new(&rankings),
                seconds,
            };
            metrics.write(&epoch)?;
            training.check()?;
            state = State {
                metrics: metrics.sync()?,
                seconds: state.seconds + seconds,
                train_loss: epoch.train_loss,
            };
            let text = serde_json::to_string(&state).map_err(|error| self.unwritten(error.into()))?;
            self.folder.save_checkpoint(|to| training.write(&text, to))?;
            observer.epoch(&epoch);
            (sum, seconds, measured) = (0.0, 0.0, Some(epoch.measured));
        }
        let network = training.finish()?;
        let measured = match measured {
            Some(measured) => measured,
            // After the last step there was no time for more.
            None => Measured::new(&network.evaluate(test, Measured::RANKED, Measured::CHUNK, |_| {})?),
        };
        let result = RunResult {
            measured,
            train_loss: state.train_loss,
            parameters: network.parameters(),
            seconds_per_epoch: state.seconds / self.settings.training.epochs as f64,
            peak_rss_mb: of_process("VmHWM").map(|bytes| bytes as f64 / 1e6),
            settings: self.settings.clone(),
        };
        self.folder.stage(file::MODEL, |to| network.write(to))?.commit()?;
        self.folder.write_json(file::RESULT, &result)?;
        Ok(result)
    }

    fn unwritten(&self, cause: std::io::Error) -> srigl_run::Error {
        srigl_run::Error::Write { path: self.folder.file(file::CHECKPOINT), cause }
    }
}

/// What a run has logged, finished or not.
#[derive(Clone, Debug)]
pub struct LoggedRun {
    /// Name of the folder.
    pub name: String,
    /// What it was started with.
    pub settings: Settings,
    /// Its epochs so far.
    pub epochs: Vec<Epoch>,
    /// Its result, if it is finished.
    pub result: Option<RunResult>,
}

impl LoggedRun {
    /// Whether a folder holds a run of `srigl xmc train`.
    pub fn is_in(path: &Path) -> bool {
        matches!(RunFolder::at(path).read_json::<Settings>(file::CONFIG), Ok(Some(_)))
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// If it has no such run, or a file of it is damaged.
    pub fn read(path: &Path) -> Result<Self, srigl_run::Error> {
        let folder = RunFolder::at(path);
        let settings = folder.read_json(file::CONFIG)?.ok_or_else(|| srigl_run::Error::Run {
            path: folder.file(file::CONFIG),
            cause: std::io::Error::other("there is no such file"),
        })?;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        let (epochs, result) = (folder.read_lines(file::METRICS)?, folder.read_json(file::RESULT)?);
        Ok(Self { name, settings, epochs, result })
    }

    /// The mean over the epochs so far of what their steps took; `None` if there is none.
    pub fn seconds_per_epoch(&self) -> Option<f64> {
        let seconds: f64 = self.epochs.iter().map(|epoch| epoch.seconds).sum();
        (!self.epochs.is_empty()).then_some(seconds / self.epochs.len() as f64)
    }
}
