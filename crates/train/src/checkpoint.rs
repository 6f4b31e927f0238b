//! One file with all a run needs to go on exactly where it stopped.

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use srigl_burn::Sparsified;
use srigl_run::StartedFrom;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where a run stands, and the records of its model and optimizer (which holds masks and topology state).
pub struct Checkpoint {
    /// Position and running sums.
    pub progress: Progress,
    model: Vec<u8>,
    optimizer: Vec<u8>,
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
    pub loss_sum: f64,
    /// Correct predictions in this epoch.
    pub correct: u64,
    /// Best test accuracy after an epoch so far.
    pub best_test_accuracy: f64,
    /// What the run started from, if from weights of a file.
    #[serde(default)]
    pub started_from: Option<StartedFrom>,
    /// Target weights `A` of each sparse layer where they come from that file: going on does not need it.
    #[serde(default)]
    pub targets: BTreeMap<String, usize>,
    /// Seconds spent in training so far, over all interruptions.
    pub seconds: f64,
    /// The data set in use.
    pub data: String,
    /// Bytes of `metrics.jsonl` that belong to this state; later ones are cut off on resume.
    pub metrics_bytes: u64,
    /// The same for `topology.jsonl`.
    pub topology_bytes: u64,
    /// The same for `masks.jsonl`.
    #[serde(default)]
    pub masks_bytes: u64,
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

    /// Writes the checkpoint in one go: a reader sees the old file or the new one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let state = serde_json::to_string(&self.progress)?;
        let digest = digest(&state, self.parts());
        let metadata = HashMap::from([("state".into(), state), ("sha256".into(), digest)]);
        let mut tensors = Vec::new();
        for (name, bytes) in PARTS.into_iter().zip(self.parts()) {
            tensors.push((name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?));
        }
        let bytes = safetensors::serialize(tensors, Some(metadata))?;
        Ok(srigl_run::atomic::write(path, &bytes)?)
    }

    /// Reads a checkpoint and checks that it is whole.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> Result<Self> {
            let bytes = std::fs::read(path)?;
            let (_, header) = SafeTensors::read_metadata(&bytes)?;
            let metadata = header.metadata().clone().unwrap_or_default();
            let field = |name: &str| metadata.get(name).with_context(|| format!("it has no {name}"));
            let (state, expected) = (field("state")?, field("sha256")?);
            let file = SafeTensors::deserialize(&bytes)?;
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
        read().with_context(|| {
            format!(
                "checkpoint {} is damaged or foreign; delete the run folder to start over",
                path.display()
            )
        })
    }

    /// Loads the model's parameters.
    ///
    /// # Errors
    /// If the record does not fit the model.
    pub fn load_model<M: Module>(&self, model: M) -> Result<M> {
        let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(self.model.clone()))?;
        Ok(model.try_load_record(record)?)
    }

    /// Loads model and optimizer, with masks, step, schedule and random state.
    ///
    /// # Errors
    /// If a record does not fit, or has no masks for a sparse layer.
    pub fn load<M: Module>(&self, sparse: Sparsified<M>) -> Result<Sparsified<M>> {
        let bytes = |bytes: &Vec<u8>| Bytes::from_bytes_vec(bytes.clone());
        let model = ModuleRecord::from_bytes(bytes(&self.model))?;
        Ok(sparse.load_records(model, OptimizerRecord::from_bytes(bytes(&self.optimizer))?)?)
    }

    fn parts(&self) -> [&[u8]; 2] {
        [&self.model, &self.optimizer]
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
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
