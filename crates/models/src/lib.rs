//! The models of the reproductions, as plain Burn modules. They know nothing of sparsity.
//!
//! All of them are classifiers of images `[batch, channels, height, width]` into logits `[batch, classes]`. A network is
//! one file: the module, its `forward`, how it lowers to a condensed network, and what [`MODELS`] says of it.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use srigl_models::{Classifier, ModelInfo, ResNetConfig, WithModel};
//!
//! // By type …
//! let device = Device::flex();
//! let net = ResNetConfig::new().with_small_images(true).with_width(8).with_classes(10).resnet18(&device);
//! assert_eq!(net.forward(Tensor::ones([1, 3, 32, 32], &device)).dims(), [1, 10]);
//!
//! // … or by name.
//! struct Parameters;
//! impl WithModel for Parameters {
//!     type Output = usize;
//!     fn run<M: Classifier>(self, model: M) -> usize {
//!         model.num_params()
//!     }
//! }
//! assert_eq!(ModelInfo::named("mlp")?.usual().with(&device, Parameters)?, 266_610);
//! # Ok::<(), srigl_models::Error>(())
//! ```

#![forbid(unsafe_code)]

mod layers;
mod mlp;
mod mnist_cnn;
mod mobilenet;
mod resnet;
mod resnet8;
mod table;
mod vit;
mod wide_resnet;

use burn::module::Module;
use burn::tensor::Tensor;
use srigl_burn::Lower;

pub use mlp::{Mlp, MlpConfig};
pub use mnist_cnn::{MnistCnn, MnistCnnConfig};
pub use mobilenet::{
    BlockLayer, HardSwish, InvertedResidual, MobileNetV3, MobileNetV3Config, SqueezeExcitation, Stage,
};
pub use resnet::{BasicBlock, Bottleneck, ResNet, ResNet18, ResNet50, ResNetConfig, ResidualBlock};
pub use resnet8::{ResNet8, ResNet8Config};
pub use table::{Error, MODELS, ModelInfo, ModelSpec, Size, WithModel, names};
pub use vit::{Encoder, EncoderLayer, Heads, SelfAttention, VisionTransformer, VitConfig};
pub use wide_resnet::{WideBlock, WideResNet, WideResNetConfig, WideStage};

/// An image classifier, which can be lowered to a condensed network.
pub trait Classifier: Module + Lower + 'static {
    /// Logits `[batch, classes]` of images `[batch, channels, height, width]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2>;
}

/// The name that torchvision gives to a parameter with this path in PyTorch's terms (`fc.weight`, not `fc.gamma`).
///
/// They differ in vision transformers: `encoder.layers.0` is `encoder.layers.encoder_layer_0`, and the weight of
/// `in_proj` is the parameter `in_proj_weight`. The variants of Burn's enums (`features.0.Conv.0`) have no place in
/// torchvision's names. Wide residual networks, which torchvision has not, are named as by the authors of SRigL.
pub fn torchvision_name(path: &str) -> String {
    let is_variant = |field: &&str| field.starts_with(|c: char| c.is_ascii_uppercase());
    let path = path.split('.').filter(|field| !is_variant(field)).collect::<Vec<_>>().join(".");
    let path = path.replace("encoder.layers.", "encoder.layers.encoder_layer_");
    path.replace("self_attention.in_proj.", "self_attention.in_proj_")
        .replace("conv_shortcut", "convShortcut")
}

#[cfg(test)]
mod tests {
    use super::torchvision_name;

    #[test]
    fn names_are_torchvisions() {
        let same = ["fc.weight", "layer1.0.downsample.0.weight", "heads.head.bias", "encoder.ln.weight"];
        assert_eq!(same.map(torchvision_name), same);
        assert_eq!(
            torchvision_name("encoder.layers.11.self_attention.in_proj.bias"),
            "encoder.layers.encoder_layer_11.self_attention.in_proj_bias"
        );
        assert_eq!(torchvision_name("features.1.Block.block.0.Conv.1.bias"), "features.1.block.0.1.bias");
        assert_eq!(
            torchvision_name("block1.layer.0.conv_shortcut.weight"),
            "block1.layer.0.convShortcut.weight"
        );
        assert_eq!(
            torchvision_name("encoder.layers.0.mlp.3.weight"),
            "encoder.layers.encoder_layer_0.mlp.3.weight"
        );
    }
}
