//! Batches to tensors, and evaluation.

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use srigl_data::{Batch, Loader};
use srigl_models::Classifier;

/// Images `from..to` of a batch `[images, channels, height, width]` and their labels `[images]`.
pub(crate) fn tensors(batch: &Batch, from: usize, to: usize, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let [c, h, w] = batch.shape;
    let pixels = batch.images[from * c * h * w..to * c * h * w].to_vec();
    let labels: Vec<i32> = batch.labels[from..to].iter().map(|label| *label as i32).collect();
    let images = Tensor::from_data(TensorData::new(pixels, [to - from, c, h, w]), device);
    (images, Tensor::from_data(TensorData::new(labels, [to - from]), device))
}

/// Number of correct predictions in a batch, `[1]`.
pub(crate) fn correct(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1, Int> {
    logits.argmax(1).squeeze_dim(1).equal(labels).int().sum()
}

/// Numbers of the images that are evaluated at once, at most; 1000 of CIFAR's.
const EVALUATED: usize = 3_072_000;

/// Mean cross-entropy and accuracy (0 to 1) of a model in evaluation mode, on the test images.
///
/// # Errors
/// Images that cannot be read.
pub fn evaluate<M: Classifier>(model: &M, loader: &Loader, device: &Device) -> Result<(f64, f64)> {
    let loss = burn::nn::loss::CrossEntropyLossConfig::new().init(device);
    let (mut loss_sum, mut hits, mut images) = (0.0, 0, 0);
    let size: usize = loader.shape().iter().product();
    for batch in loader.eval((EVALUATED / size).clamp(1, 1000)) {
        let batch = batch?;
        let count = batch.labels.len();
        let (pixels, labels) = tensors(&batch, 0, count, device);
        let logits = model.forward(pixels);
        loss_sum +=
            f64::from(loss.forward(logits.clone(), labels.clone()).into_scalar::<f32>()) * count as f64;
        hits += correct(logits, labels).into_scalar::<i64>();
        images += count;
    }
    Ok((loss_sum / images as f64, hits as f64 / images as f64))
}
