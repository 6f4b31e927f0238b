//! Fashion-MNIST as tensors, for the examples.

#![allow(dead_code, reason = "each example uses a part")]

use burn::tensor::{Device, Int, Tensor, TensorData};
use srigl_data::{Batch, DataSet, Loader, Options, Transform};
use srigl_models::Classifier;

/// The images: from the Debian package `dataset-fashion-mnist`, from a download, or else generated ones.
pub fn fashion_mnist() -> anyhow::Result<Loader> {
    let source = srigl_data::open(DataSet::FashionMnist, None, false)?;
    if source.set().is_synthetic() {
        println!("SYNTHETIC images stand in for Fashion-MNIST");
    }
    let transform = Transform::standard(&source);
    Loader::new(source, transform, Options::default())
}

/// Images `[batch, 1, 28, 28]` and labels `[batch]`.
pub fn tensors(batch: Batch, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let (n, [channels, height, width]) = (batch.labels.len(), batch.shape);
    let labels: Vec<i32> = batch.labels.iter().map(|label| *label as i32).collect();
    (
        Tensor::from_data(TensorData::new(batch.images, [n, channels, height, width]), device),
        Tensor::from_data(TensorData::new(labels, [n]), device),
    )
}

/// Share of test images that a model classifies correctly.
pub fn accuracy<M: Classifier>(model: &M, images: &Loader) -> anyhow::Result<f64> {
    let mut correct = 0;
    for batch in images.eval(1000) {
        let (x, labels) = tensors(batch?, &Device::flex());
        correct += model.forward(x).argmax(1).squeeze_dim(1).equal(labels).int().sum().into_scalar::<i64>();
    }
    Ok(correct as f64 / images.test_images() as f64)
}
