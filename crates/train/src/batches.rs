//! Batches to tensors, and evaluation.

use anyhow::{Result, ensure};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use srigl_data::{Batch, Loader};
use srigl_models::Classifier;
use srigl_run::Config;
use srigl_tensors::memory;

/// Images `from..to` of a batch `[images, channels, height, width]` and their labels `[images]`.
pub(crate) fn tensors(batch: &Batch, from: usize, to: usize, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let [c, h, w] = batch.shape;
    let pixels = batch.images[from * c * h * w..to * c * h * w].to_vec();
    let labels = label_tensor(&batch.labels[from..to], device);
    let images = Tensor::from_data(TensorData::new(pixels, [to - from, c, h, w]), device);
    (images, labels)
}

/// Labels as a tensor `[images]`.
pub(crate) fn label_tensor(labels: &[u32], device: &Device) -> Tensor<1, Int> {
    let labels: Vec<i32> = labels.iter().map(|label| *label as i32).collect();
    let count = labels.len();
    Tensor::from_data(TensorData::new(labels, [count]), device)
}

/// Number of correct predictions in a batch, `[1]`.
pub(crate) fn correct(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1, Int> {
    logits.argmax(1).squeeze_dim(1).equal(labels).int().sum()
}

/// The gradients of a model's mean loss on a batch, which is not empty. `each` is told loss `[1]`, correct predictions `[1]` and size of
/// each part of it that goes through the model at once.
pub(crate) fn gradients<M: Classifier>(
    config: &Config,
    model: &M,
    batch: &Batch,
    device: &Device,
    mut each: impl FnMut(Tensor<1>, Tensor<1, Int>, usize),
) -> GradientsParams {
    let device = device.clone().autodiff();
    let smoothing = (config.label_smoothing > 0.0).then_some(config.label_smoothing);
    let loss_of = CrossEntropyLossConfig::new().with_smoothing(smoothing).init(&device);
    let mut accumulator = GradientsAccumulator::new();
    let images = batch.labels.len();
    let micro_batch = config.micro_batch.unwrap_or(images);
    for from in (0..images).step_by(micro_batch) {
        let to = images.min(from + micro_batch);
        let (pixels, labels) = tensors(batch, from, to, &device);
        let logits = model.forward(pixels);
        let mut loss = loss_of.forward(logits.clone(), labels.clone());
        if let Some(mix) = &batch.mix {
            let others = loss_of.forward(logits.clone(), label_tensor(&mix.labels[from..to], &device));
            loss = loss * mix.share + others * (1.0 - mix.share);
        }
        each(loss.clone().inner(), correct(logits.inner(), labels.inner()), to - from);
        let share = (to - from) as f64 / images as f64;
        let loss = if share < 1.0 { loss * share } else { loss };
        accumulator.accumulate(model, GradientsParams::from_grads(loss.backward(), model));
    }
    accumulator.grads()
}

/// Numbers of the images that are evaluated at once, at most; 1000 of CIFAR's.
const EVALUATED: usize = 3_072_000;

/// How well a model does on the test images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Share of the images whose class is the most likely one.
    pub top1: f64,
    /// Share of the images whose class is among the five most likely; `None` with five classes or fewer.
    pub top5: Option<f64>,
}

/// Evaluates a model, in evaluation mode, on the test images.
///
/// # Errors
/// Images that cannot be read, or none of which could be.
pub fn evaluate<M: Classifier>(model: &M, loader: &Loader, device: &Device) -> Result<Accuracy> {
    let loss = CrossEntropyLossConfig::new().init(device);
    let (mut loss_sum, mut hits, mut hits5, mut images) = (0.0, 0, 0, 0);
    let size: usize = loader.shape().iter().product();
    let five = loader.classes() > 5;
    // As many at once as there is memory for.
    let images_at_once = memory::halved((EVALUATED / size).clamp(1, 1000), |size| loader.check(size).is_ok());
    for batch in loader.eval(images_at_once) {
        let batch = batch?;
        let count = batch.labels.len();
        if count == 0 {
            continue;
        }
        let (pixels, labels) = tensors(&batch, 0, count, device);
        let logits = model.forward(pixels);
        loss_sum +=
            f64::from(loss.forward(logits.clone(), labels.clone()).into_scalar::<f32>()) * count as f64;
        if five {
            hits5 += among_five(logits.clone(), labels.clone()).into_scalar::<i64>();
        }
        hits += correct(logits, labels).into_scalar::<i64>();
        images += count;
    }
    ensure!(images > 0, "none of the test images could be read");
    let share = |hits: i64| hits as f64 / images as f64;
    Ok(Accuracy { loss: loss_sum / images as f64, top1: share(hits), top5: five.then(|| share(hits5)) })
}

/// In how many rows of logits fewer than five others come before that of the label, `[1]`: larger ones, and of equal ones
/// those of lower classes, as `argmax` has it. NaN comes after nothing.
fn among_five(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1, Int> {
    let [rows, classes] = logits.dims();
    let labels: Tensor<2, Int> = labels.unsqueeze_dim(1);
    let of_label = logits.clone().gather(1, labels.clone());
    let class = Tensor::<1, Int>::arange(0..classes as i64, &logits.device()).unsqueeze::<2>();
    let lower_class = class.expand([rows, classes]).lower(labels);
    let equal = logits.clone().equal(of_label.clone());
    let not_larger = logits.lower(of_label).bool_or(equal.clone());
    let before = not_larger.bool_not().bool_or(equal.bool_and(lower_class));
    let before: Tensor<1, Int> = before.int().sum_dim(1).squeeze_dim(1);
    before.lower_elem(5).int().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_guesses_are_allowed() {
        let device = Device::flex();
        let row = [0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.05];
        let logits = Tensor::<2>::from_data([row, row, row], &device);
        let labels = Tensor::<1, Int>::from_data([5, 0, 1], &device);
        assert_eq!(among_five(logits.clone(), labels.clone()).into_scalar::<i64>(), 2);
        assert_eq!(correct(logits, labels).into_scalar::<i64>(), 1);
        // Equal logits are no knowledge, and NaN is none at all.
        let labels = || Tensor::<1, Int>::from_data([0, 4, 5, 6], &device);
        let equal = Tensor::<2>::zeros([4, 7], &device);
        assert_eq!(among_five(equal.clone(), labels()).into_scalar::<i64>(), 2);
        assert_eq!(among_five(equal / 0.0, labels()).into_scalar::<i64>(), 0);
    }
}
