//! Files with all a run needs to go on exactly where it stopped: the last, and the one before it.

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sparsity_core::UpdateSchedule;
use srigl_burn::{Sparsified, dense_record};
use srigl_run::{Inputs, LogEnd, RunFolder, StartedFrom, printable, read_file};
use srigl_tensors::hex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where a run stands, and the records of its model and optimizer (which holds masks and topology state).
pub struct Checkpoint {
    /// Position and running sums.
    pub progress: Progress,
    model: Vec<u8>,
    optimizer: Vec<u8>,
}

/// The checkpoint that a run goes on from.
pub struct Latest {
    /// The last one that is whole.
    pub checkpoint: Checkpoint,
    /// If it is not the last one that was written: what became of that, in a sentence.
    pub lost: Option<String>,
}

/// Position of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps taken.
    pub step: u64,
    /// Epochs finished.
    pub epoch: usize,
    /// Steps taken in the epoch under way.
    pub step_in_epoch: usize,
    /// Images of this epoch that the sums below count.
    #[serde(default)]
    pub images: usize,
    /// Sum of the training loss over the images of this epoch.
    #[serde(with = "srigl_run::exact")]
    pub loss_sum: f64,
    /// Correct predictions in this epoch.
    pub correct: u64,
    /// Best test accuracy after an epoch so far.
    #[serde(with = "srigl_run::exact")]
    pub best_test_accuracy: f64,
    /// What the run started from, if from weights of a file.
    #[serde(default)]
    pub started_from: Option<StartedFrom>,
    /// Target weights `A` of each sparse layer where they come from that file: going on does not need it.
    #[serde(default)]
    pub targets: BTreeMap<String, usize>,
    /// Seconds spent in training so far, over all interruptions.
    pub seconds: f64,
    /// What the run was started on; `None` in checkpoints of earlier versions.
    #[serde(default)]
    pub inputs: Option<Inputs>,
    /// The data set's name, in their place.
    #[serde(default, skip_serializing)]
    pub(crate) data: Option<String>,
    /// What of `metrics.jsonl` belongs to this state.
    #[serde(alias = "metrics_bytes")]
    pub metrics: LogEnd,
    /// The same for `topology.jsonl`.
    #[serde(alias = "topology_bytes")]
    pub topology: LogEnd,
    /// The same for `masks.jsonl`.
    #[serde(default, alias = "masks_bytes")]
    pub masks: LogEnd,
}

impl Checkpoint {
    /// Takes the records of a model and its optimizer.
    ///
    /// # Errors
    /// If they cannot be recorded.
    pub fn new<M: Module>(progress: Progress, model: &M, optim: &ModuleOptimizer) -> Result<Self> {
        // The running statistics of normalisations lag one update behind, until this brings them up to date.
        drop(model.valid());
        let model = model.clone().into_record().into_bytes().context("cannot record the model")?;
        let optimizer = optim.to_record().into_bytes().context("cannot record the optimizer")?;
        Ok(Self { progress, model: model.to_vec(), optimizer: optimizer.to_vec() })
    }

    /// Writes the checkpoint into a run folder, where the last one becomes the one before. Whenever the process ends, one of
    /// the two is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, folder: &RunFolder) -> Result<()> {
        let state = serde_json::to_string(&self.progress)?;
        let digest = digest(&state, self.parts());
        let metadata = HashMap::from([("state".into(), state), ("sha256".into(), digest)]);
        let mut tensors = Vec::new();
        for (name, bytes) in PARTS.into_iter().zip(self.parts()) {
            tensors.push((name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?));
        }
        let bytes = safetensors::serialize(tensors, Some(metadata))?;
        Ok(folder.save_checkpoint(|file| file.write_all(&bytes))?)
    }

    /// The last checkpoint of a run folder that is whole; `None` if there never was one.
    ///
    /// # Errors
    /// If all that there are are damaged.
    pub fn latest(folder: &RunFolder) -> Result<Option<Latest>> {
        // What cannot be read now may be whole: only what is read and wrong is damaged.
        let latest = folder.latest_checkpoint(|path| {
            let bytes = read_file(path).map_err(anyhow::Error::from)?;
            Ok(Self::parse(path, &bytes))
        })?;
        Ok(latest.map(|(checkpoint, damage)| {
            let Progress { step, epoch, .. } = checkpoint.progress;
            let lost = damage.map(|damage| {
                format!("{damage}: going on from the checkpoint before it, after step {step} (epoch {epoch})")
            });
            Latest { checkpoint, lost }
        }))
    }

    /// The checkpoint in the bytes of a file, if it is whole.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let read = || -> Result<Self> {
            let (_, header) = SafeTensors::read_metadata(bytes)?;
            let metadata = header.metadata().clone().unwrap_or_default();
            let field = |name: &str| metadata.get(name).with_context(|| format!("it has no {name}"));
            let (state, expected) = (field("state")?, field("sha256")?);
            let file = SafeTensors::deserialize(bytes)?;
            let part = |name| -> Result<Vec<u8>> { Ok(file.tensor(name)?.data().to_vec()) };
            let checkpoint = Self {
                progress: serde_json::from_str(state)?,
                model: part("model")?,
                optimizer: part("optimizer")?,
            };
            // Earlier versions kept the masks once more, beside those in the optimizer's record.
            let topology = file.tensor("topology").map(|tensor| tensor.data().to_vec());
            let parts = checkpoint.parts().into_iter().chain(topology.as_deref().ok());
            ensure!(digest(state, parts) == *expected, "its checksum does not match");
            Ok(checkpoint)
        };
        read().map_err(|error| {
            anyhow::anyhow!(
                "checkpoint {} is damaged or foreign: {}",
                path.display(),
                printable(&format!("{error:#}"))
            )
        })
    }

    /// Loads the model's parameters.
    ///
    /// # Errors
    /// If the record does not fit the model.
    pub fn load_model<M: Module>(&self, model: M) -> Result<M> {
        let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(self.model.clone()))?;
        Ok(model.try_load_record(dense_record(record)?)?)
    }

    /// Loads model and optimizer, with masks, step, schedule and random state; `schedule` takes the place of that of a run
    /// that has been extended.
    ///
    /// # Errors
    /// If a record does not fit, or a part of the optimizer's has found no place.
    pub fn load<M: Module>(
        &self,
        sparse: Sparsified<M>,
        schedule: Option<UpdateSchedule>,
    ) -> Result<Sparsified<M>> {
        let bytes = |bytes: &Vec<u8>| Bytes::from_bytes_vec(bytes.clone());
        let model = ModuleRecord::from_bytes(bytes(&self.model))?;
        let optim = OptimizerRecord::from_bytes(bytes(&self.optimizer))?;
        Ok(match schedule {
            Some(schedule) => sparse.load_records_and_reschedule(model, optim, schedule)?,
            None => sparse.load_records(model, optim)?,
        })
    }

    fn parts(&self) -> [&[u8]; 2] {
        [&self.model, &self.optimizer]
    }
}

impl Progress {
    /// The data set that the run was started on, as far as its checkpoint says.
    pub fn data(&self) -> Option<&str> {
        self.inputs.as_ref().map(|inputs| &*inputs.data).or(self.data.as_deref())
    }
}

/// Names of the parts in the file.
const PARTS: [&str; 2] = ["model", "optimizer"];

fn digest<'a>(state: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sha = Sha256::new();
    for part in [state.as_bytes()].into_iter().chain(parts) {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    hex(&sha.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_they_were_written() {
        let mut sum = 0.1;
        for _ in 0..20_000 {
            sum = (sum * 1.618_033_988_749_895 + 0.707) % 10.0;
            let progress = Progress { loss_sum: sum, best_test_accuracy: sum / 3.0, ..Progress::default() };
            let read: Progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
            assert_eq!(read, progress);
        }
        // As earlier versions have written them, and before the first epoch.
        let written = serde_json::to_value(Progress::default()).unwrap();
        let mut earlier = written.clone();
        (earlier["loss_sum"], earlier["best_test_accuracy"]) = (2.5.into(), (-1).into());
        let read: Progress = serde_json::from_value(earlier).unwrap();
        assert_eq!((read.loss_sum, read.best_test_accuracy), (2.5, -1.0));
    }
}
