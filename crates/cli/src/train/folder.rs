//! The run folder: `config.json`, `metrics.jsonl`, `topology.jsonl`, `masks.jsonl`, `checkpoint.safetensors`,
//! `best.safetensors` and, when all is done, `model.safetensors` and `result.json`.

use super::TrainConfig;
use crate::data::Loader;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use srigl_burn::LayerStats;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folder of one run.
pub struct RunFolder {
    path: PathBuf,
}

/// The outcome of a run, `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// Accuracy on the test images after the last epoch, 0 to 1.
    pub test_accuracy: f64,
    /// Best such accuracy after any epoch.
    pub best_test_accuracy: f64,
    /// Epochs trained.
    pub epochs: usize,
    /// Seconds of training, over all interruptions.
    pub seconds: f64,
    /// Share of zeros over all layers that count.
    pub sparsity: f64,
    /// Device it was trained on.
    pub device: String,
    /// Data it was trained on.
    pub data: DataUsed,
    /// Topology at the end; empty for dense training.
    pub layers: Vec<LayerResult>,
}

/// The data a run used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataUsed {
    /// Name of the data set.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Generated, not real.
    pub synthetic: bool,
    /// Training images used.
    pub train_images: usize,
    /// Test images used.
    pub test_images: usize,
}

impl DataUsed {
    /// Name and origin of the images of a loader.
    pub fn new(loader: &Loader) -> Self {
        let source = loader.source();
        Self {
            name: source.set().to_string(),
            source: source.origin(),
            synthetic: source.set().is_synthetic(),
            train_images: loader.train_images(),
            test_images: loader.test_images(),
        }
    }

    /// In a few words, with a warning where it is due.
    pub fn describe(&self) -> String {
        let synthetic = if self.synthetic { " (SYNTHETIC)" } else { "" };
        format!("{}{synthetic}, {} images", self.name, self.train_images)
    }
}

/// Topology of one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerResult {
    /// Module path.
    pub name: String,
    /// Positions `N·M`.
    pub weights: usize,
    /// Counts.
    #[serde(flatten)]
    pub stats: LayerStats,
    /// Share of positions that have been active at least once.
    pub itop: f64,
}

impl LayerResult {
    /// Of a layer in training.
    pub fn new(layer: &srigl_burn::TopologyLayer) -> Self {
        let (stats, itop) = (layer.stats(), layer.itop());
        Self { name: layer.name.clone(), weights: layer.mask.positions(), stats, itop }
    }
}

impl RunFolder {
    /// The folder of a new run, which [`create`](Self::create) makes, or of one to resume.
    pub fn open(path: &Path, config: &TrainConfig, resume: bool) -> Result<Self> {
        let folder = Self { path: path.to_path_buf() };
        let written = folder.file("config.json");
        if written.exists() {
            if !resume {
                bail!(
                    "{} holds a run already: add --resume to continue it, or choose another --out",
                    path.display()
                );
            }
            let before = read_config(&written)?;
            if let Some(key) = differing_key(&before, config)? {
                let run = path.display();
                bail!(
                    "{run} was trained with another --{key}: resume with the same settings, or choose another --out"
                );
            }
            folder.remove_temporary_files()?;
        } else if path.exists()
            && !(path.is_dir() && folder.entries()?.iter().all(|entry| is_temporary(entry)))
        {
            bail!("{} exists and is not a run folder: choose another --out", path.display());
        }
        Ok(folder)
    }

    /// Makes the folder and writes its `config.json`, once the settings are known to work.
    pub fn create(&self, config: &TrainConfig) -> Result<()> {
        let path = self.file("config.json");
        if path.exists() {
            return Ok(());
        }
        write_atomically(&path, serde_json::to_string_pretty(config)?.as_bytes())
    }

    /// Removes what a process killed in the middle of an atomic write has left in this run.
    fn remove_temporary_files(&self) -> Result<()> {
        for path in self.entries()?.iter().filter(|entry| is_temporary(entry)) {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<PathBuf>> {
        let list =
            || fs::read_dir(&self.path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>();
        list().with_context(|| format!("cannot list {}", self.path.display()))
    }

    /// Opens the folder of an existing run with its settings.
    pub fn existing(path: &Path) -> Result<(Self, TrainConfig)> {
        let folder = Self { path: path.to_path_buf() };
        let config = read_config(&folder.file("config.json"))?;
        Ok((folder, config))
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The result of a finished run.
    pub fn result(&self) -> Result<Option<RunResult>> {
        let path = self.file("result.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let result =
            serde_json::from_str(&text).with_context(|| format!("{} is not a result", path.display()))?;
        Ok(Some(result))
    }
}

/// Whether a file is one of an atomic write that has not got its name yet.
fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp"))
}

fn read_config(path: &Path) -> Result<TrainConfig> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; is this a run folder?", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a run's configuration", path.display()))
}

fn differing_key(before: &TrainConfig, now: &TrainConfig) -> Result<Option<String>> {
    let (before, now) = (serde_json::to_value(before)?, serde_json::to_value(now)?);
    let keys = now.as_object().into_iter().flat_map(|map| map.keys());
    // When checkpoints are written does not change the result.
    let different = |key: &&String| *key != "checkpoint_every" && before[key.as_str()] != now[key.as_str()];
    Ok(keys.filter(different).map(|key| key.replace('_', "-")).next())
}

/// Writes a file of a run so that it is either whole or not there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::data::write_atomic(path, |file| {
        file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
    })
}

/// A JSON lines file that can be cut back to where a checkpoint was taken.
pub struct JsonLines {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl JsonLines {
    /// Opens a log and drops what comes after its first `bytes` bytes.
    pub fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(bytes)?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { path, file, bytes })
    }

    /// Appends one line.
    pub fn write<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let line = serde_json::to_string(line)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes all lines durable and returns the length.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_data().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self.bytes)
    }
}
