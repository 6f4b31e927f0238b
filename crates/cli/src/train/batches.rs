//! Images to tensors, in an order that depends on the seed alone.

use crate::data::Split;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use srigl_models::Classifier;

/// Batches of one split, normalised with the mean and standard deviation of the training pixels.
pub struct Batches<'a> {
    split: &'a Split,
    count: usize,
    /// Channels, height, width.
    shape: [usize; 3],
    /// Normalised value of each possible pixel.
    pixel: [f32; 256],
}

impl<'a> Batches<'a> {
    /// The first `limit` images of a split with images of `shape` `[channels, height, width]`.
    pub fn new(split: &'a Split, limit: Option<usize>, shape: [usize; 3], (mean, std): (f32, f32)) -> Self {
        let pixel = std::array::from_fn(|p| (p as f32 / 255.0 - mean) / std);
        Self { split, count: limit.unwrap_or(usize::MAX).min(split.len()), shape, pixel }
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.count
    }

    /// The order of images in one epoch.
    pub fn order(&self, seed: u64, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.count).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
        order
    }

    /// Images `[batch, channels, height, width]` and labels `[batch]`.
    pub fn get(&self, indices: &[usize], device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
        let size: usize = self.shape.iter().product();
        let image = |i: &usize| &self.split.images[i * size..][..size];
        let pixels: Vec<f32> = indices.iter().flat_map(image).map(|p| self.pixel[usize::from(*p)]).collect();
        let labels: Vec<i32> = indices.iter().map(|i| i32::from(self.split.labels[*i])).collect();
        let [c, h, w] = self.shape;
        let images = Tensor::from_data(TensorData::new(pixels, [indices.len(), c, h, w]), device);
        (images, Tensor::from_data(TensorData::new(labels, [indices.len()]), device))
    }
}

/// Number of correct predictions in a batch, `[1]`.
pub fn correct(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1, Int> {
    logits.argmax(1).squeeze_dim(1).equal(labels).int().sum()
}

/// Mean cross-entropy and accuracy (0 to 1) of a model in evaluation mode.
pub fn evaluate<M: Classifier>(model: &M, batches: &Batches, device: &Device) -> (f64, f64) {
    let loss = burn::nn::loss::CrossEntropyLossConfig::new().init(device);
    let (mut loss_sum, mut hits) = (0.0, 0);
    let indices: Vec<usize> = (0..batches.images()).collect();
    for chunk in indices.chunks(1000) {
        let (images, labels) = batches.get(chunk, device);
        let logits = model.forward(images);
        loss_sum +=
            f64::from(loss.forward(logits.clone(), labels.clone()).into_scalar::<f32>()) * chunk.len() as f64;
        hits += correct(logits, labels).into_scalar::<i64>();
    }
    (loss_sum / batches.images() as f64, hits as f64 / batches.images() as f64)
}
