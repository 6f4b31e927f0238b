//! Whether a training has the memory that its settings ask for.

use anyhow::{Context, Result};
use burn::module::Module;
use condensed::Shape;
use srigl_burn::lower;
use srigl_models::{Classifier, torchvision_name};
use srigl_tensors::memory;

/// Checks the weights of a model, before Burn has made any of them: so many numbers for each, itself, its gradient and what the
/// optimizer keeps.
///
/// # Errors
/// If they take more than the budget.
pub fn check_weights<M: Module>(model: &M, name: &str, numbers: usize) -> Result<()> {
    let weights = model.num_params();
    memory::check(memory::product(&[weights, numbers, size_of::<f32>()])).with_context(|| {
        format!(
            "the {weights} weights of `{name}` are too many, each with {numbers} numbers that are needed; take a smaller \
             network, such as with a smaller --width, or raise --max-memory"
        )
    })
}

/// Checks the results of all layers for so many images `[channels, height, width]`, which the backward pass needs at once.
/// What backends need beside comes on top.
///
/// # Errors
/// If they take more than the budget, or the model does not fit the images.
pub fn check_results<M: Classifier>(model: &M, name: &str, image: [usize; 3], images: usize) -> Result<()> {
    let [features, height, width] = image;
    let network = lower(model, Shape { features, height, width }, [], torchvision_name)?;
    let numbers = network.shapes().iter().fold(0usize, |sum, shape| sum.saturating_add(shape.len()));
    memory::check(memory::product(&[numbers, images, size_of::<f32>()])).with_context(|| {
        format!(
            "the results of all layers of `{name}` for {images} images are too large; take a smaller batch (in training also \
             --micro-batch), or raise --max-memory"
        )
    })
}
