//! The models of the reproductions, as plain Burn modules. They know nothing of sparsity.
//!
//! All of them are classifiers of images `[batch, channels, height, width]` into logits `[batch, classes]`.

#![forbid(unsafe_code)]

mod mlp;
mod mnist_cnn;
mod resnet;
mod resnet8;

use burn::module::Module;
use burn::tensor::Tensor;

pub use mlp::{Mlp, MlpConfig};
pub use mnist_cnn::{MnistCnn, MnistCnnConfig};
pub use resnet::{BasicBlock, Bottleneck, ResNet, ResNet18, ResNet50, ResNetConfig, ResidualBlock};
pub use resnet8::{ResNet8, ResNet8Config};

/// An image classifier.
pub trait Classifier: Module {
    /// Logits `[batch, classes]` of images `[batch, channels, height, width]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}
