//! The models of the reproductions, as plain Burn modules. They know nothing of sparsity.
//!
//! All of them are classifiers of images `[batch, channels, height, width]` into logits `[batch, classes]`.

#![forbid(unsafe_code)]

mod mlp;
mod mnist_cnn;
mod resnet;
mod resnet8;
mod vit;

use burn::module::Module;
use burn::tensor::Tensor;

pub use mlp::{Mlp, MlpConfig};
pub use mnist_cnn::{MnistCnn, MnistCnnConfig};
pub use resnet::{BasicBlock, Bottleneck, ResNet, ResNet18, ResNet50, ResNetConfig, ResidualBlock};
pub use resnet8::{ResNet8, ResNet8Config};
pub use vit::{Encoder, EncoderLayer, Heads, SelfAttention, VisionTransformer, VitConfig};

/// An image classifier.
pub trait Classifier: Module {
    /// Logits `[batch, classes]` of images `[batch, channels, height, width]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}

/// The name that torchvision gives to a parameter with this path in PyTorch's terms (`fc.weight`, not `fc.gamma`).
///
/// They differ only in vision transformers: `encoder.layers.0` is `encoder.layers.encoder_layer_0`, and the weight of
/// `in_proj` is the parameter `in_proj_weight`.
pub fn torchvision_name(path: &str) -> String {
    let path = path.replace("encoder.layers.", "encoder.layers.encoder_layer_");
    path.replace("self_attention.in_proj.", "self_attention.in_proj_")
}

#[cfg(test)]
mod tests {
    use super::torchvision_name;

    #[test]
    fn names_differ_only_in_transformers() {
        let same = ["fc.weight", "layer1.0.downsample.0.weight", "heads.head.bias", "encoder.ln.weight"];
        assert_eq!(same.map(torchvision_name), same);
        assert_eq!(
            torchvision_name("encoder.layers.11.self_attention.in_proj.bias"),
            "encoder.layers.encoder_layer_11.self_attention.in_proj_bias"
        );
        assert_eq!(
            torchvision_name("encoder.layers.0.mlp.3.weight"),
            "encoder.layers.encoder_layer_0.mlp.3.weight"
        );
    }
}
