//! What a result depends on beside the settings.

use crate::store::weights_digest;
use serde::{Deserialize, Serialize};
use srigl_data::Loader;
use std::path::Path;

/// The data and weights of a run, kept as `inputs.json`: with the settings, all that its result depends on. Where they lie
/// does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Name of the data set.
    pub data: String,
    /// Classes of the data set.
    pub classes: usize,
    /// Training images, before `--train-limit`.
    pub train_images: usize,
    /// Test images, before `--test-limit`.
    pub test_images: usize,
    /// SHA-256 of the data set: see [`srigl_data::Source::digest`].
    pub digest: String,
    /// SHA-256 of the file of `--weights`, if there is one and it is still there.
    #[serde(default)]
    pub weights: Option<String>,
}

impl Inputs {
    /// The inputs of a run. A file of weights that is gone is left out; whoever needs it will miss it.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn new(loader: &Loader, weights: Option<&Path>) -> anyhow::Result<Self> {
        let source = loader.source();
        let (train, test) = source.class_counts();
        Ok(Self {
            data: source.set().to_string(),
            classes: loader.classes(),
            train_images: train.iter().sum(),
            test_images: test.iter().sum(),
            digest: source.digest(),
            weights: match weights.filter(|path| path.exists()) {
                Some(path) => Some(weights_digest(path)?),
                None => None,
            },
        })
    }

    /// How these differ from what the run has had before, in a sentence. Weights that are gone do not.
    pub(crate) fn differs(&self, before: &Self) -> Option<String> {
        let of = |inputs: &Self| {
            let Self { data, classes, train_images, test_images, .. } = inputs;
            format!("{data} ({train_images} training and {test_images} test images, {classes} classes)")
        };
        if of(self) != of(before) {
            return Some(format!("was started on {}, but the data is {} now", of(before), of(self)));
        }
        if self.digest != before.digest {
            return Some(format!("was started on other images of {}, though as many", self.data));
        }
        let other = before.weights.is_some() && self.weights.is_some() && before.weights != self.weights;
        other.then(|| "was started from other --weights: the file has changed, or is another".into())
    }
}
