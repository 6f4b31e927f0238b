//! Whether a training has the memory that its settings ask for.

use anyhow::{Context, Result};
use burn::module::Module;
use condensed::Shape;
use srigl_burn::lower;
use srigl_data::Loader;
use srigl_models::{Classifier, torchvision_name};
use srigl_run::{Config, OptimizerName};
use srigl_tensors::memory;

/// Checks the weights of a model, before Burn has made any of them: each with its gradient and what the optimizer keeps.
///
/// # Errors
/// If they take more than the budget.
pub(crate) fn check_weights<M: Module>(model: &M, config: &Config) -> Result<()> {
    let moments = match config.optimizer {
        OptimizerName::Sgd => usize::from(config.momentum > 0.0),
        OptimizerName::Adam | OptimizerName::Adamw | OptimizerName::Rmsprop => 2,
    };
    let weights = model.num_params();
    memory::check(memory::product(&[weights, 2 + moments, size_of::<f32>()])).with_context(|| {
        format!(
            "the {weights} weights of `{}` with gradients and moments are too many; take a smaller --width, or raise \
             --max-memory",
            config.model.name
        )
    })
}

/// Checks the results of all layers for a batch, which the backward pass needs at once. What backends need beside comes on
/// top.
///
/// # Errors
/// If they take more than the budget, or the model does not fit the images.
pub(crate) fn check_results<M: Classifier>(model: &M, loader: &Loader, config: &Config) -> Result<()> {
    let [features, height, width] = loader.shape();
    let network = lower(model, Shape { features, height, width }, [], torchvision_name)?;
    let numbers = network.shapes().iter().fold(0usize, |sum, shape| sum.saturating_add(shape.len()));
    let most = config.batch_size.min(loader.train_images());
    let images = config.micro_batch.map_or(most, |images| images.min(most));
    memory::check(memory::product(&[numbers, images, size_of::<f32>()])).with_context(|| {
        format!(
            "the results of all layers of `{}` for {images} images are too large; take a smaller --batch-size or \
             --micro-batch, or raise --max-memory",
            config.model.name
        )
    })
}
