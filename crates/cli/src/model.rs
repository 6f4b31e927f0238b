//! Models by name.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use srigl_models::{
    Mlp, MlpConfig, MnistCnn, MnistCnnConfig, MobileNetV3, MobileNetV3Config, ResNet8, ResNet8Config,
    ResNet18, ResNet50, ResNetConfig, VisionTransformer, VitConfig, WideResNet, WideResNetConfig,
};

/// `--model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// 784-300-100-10.
    Mlp,
    /// Two 3×3 convolutions (32, 64) and two linear layers (9216 → 128 → 10).
    MnistCnn,
    /// The smallest residual network of the CIFAR family.
    Resnet8,
    /// ResNet-18 for ImageNet.
    Resnet18,
    /// ResNet-18 for images of about 32×32: a 3×3 stem of stride 1, no pooling after it.
    Resnet18Small,
    /// ResNet-50 for ImageNet.
    Resnet50,
    /// Wide ResNet of 22 layers, twice as wide, for images of about 32×32.
    #[value(name = "wrn-22-2")]
    #[serde(rename = "wrn-22-2")]
    Wrn22,
    /// MobileNetV3, large.
    #[value(name = "mobilenet-v3-large")]
    #[serde(rename = "mobilenet-v3-large")]
    MobilenetV3Large,
    /// MobileNetV3, small.
    #[value(name = "mobilenet-v3-small")]
    #[serde(rename = "mobilenet-v3-small")]
    MobilenetV3Small,
    /// Two layers of 64 features, patches of 8×8 unless --patch says otherwise.
    VitTiny,
    /// ViT-B/16.
    #[value(name = "vit-b-16")]
    #[serde(rename = "vit-b-16")]
    VitB16,
}

/// A network by name, with the sizes that can be chosen.
#[derive(Args, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelArgs {
    /// Network.
    #[arg(long = "model", id = "model", value_enum, default_value = "mlp")]
    #[serde(rename = "model")]
    pub name: ModelName,
    /// ResNet-18 and -50: channels after the first convolution [default: 64]. Vision transformers: numbers of a token
    /// [default: 768; vit-tiny: 64].
    #[arg(long, value_name = "FEATURES", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u16>,
    /// Vision transformers: height and width of a patch [default: 16; vit-tiny: 8].
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<u16>,
}

/// What is done with a model whose type is known only at run time.
pub trait WithModel {
    /// Result of the work.
    type Output;
    /// Works with a freshly initialised model.
    fn run<M: srigl_models::Classifier>(self, model: M) -> Self::Output;
}

impl ModelName {
    /// The name in commands and in [`condensed::architectures`], such as `mnist-cnn`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mlp => "mlp",
            Self::MnistCnn => "mnist-cnn",
            Self::Resnet8 => "resnet8",
            Self::Resnet18 => "resnet18",
            Self::Resnet18Small => "resnet18-small",
            Self::Resnet50 => "resnet50",
            Self::Wrn22 => "wrn-22-2",
            Self::MobilenetV3Large => "mobilenet-v3-large",
            Self::MobilenetV3Small => "mobilenet-v3-small",
            Self::VitTiny => "vit-tiny",
            Self::VitB16 => "vit-b-16",
        }
    }

    /// Which of [`ModelArgs`]' sizes it has.
    fn has_width(self) -> bool {
        matches!(self, Self::Resnet18 | Self::Resnet18Small | Self::Resnet50) || self.is_vit()
    }

    fn is_vit(self) -> bool {
        matches!(self, Self::VitTiny | Self::VitB16)
    }
}

impl ModelArgs {
    /// The configuration of a vision transformer for images `[channels, height, width]`.
    fn vit(self, [channels, height, width]: [usize; 3]) -> Option<VitConfig> {
        let config = VitConfig::new().with_channels(channels).with_image([height, width]);
        let config = match self.name {
            ModelName::VitTiny => {
                config.with_patch(8).with_layers(2).with_heads(4).with_features(64).with_mlp(128)
            }
            ModelName::VitB16 => config,
            _ => return None,
        };
        let patch = self.patch.map_or(config.patch, usize::from);
        let features = self.width.map_or(config.features, usize::from);
        let mlp = config.mlp / config.features * features;
        Some(config.with_patch(patch).with_features(features).with_mlp(mlp))
    }

    /// Refuses images `[channels, height, width]` that the model cannot take, and sizes that it does not have.
    pub fn check(self, shape: [usize; 3]) -> Result<()> {
        let name = self.name.name();
        ensure!(self.width.is_none() || self.name.has_width(), "{name} has no --width; leave it out");
        ensure!(self.patch.is_none() || self.name.is_vit(), "{name} has no --patch; leave it out");
        if let Some(VitConfig { patch, image: [height, width], features, heads, .. }) = self.vit(shape) {
            ensure!(
                features % heads == 0,
                "{name} has {heads} heads, which do not divide --width {features}"
            );
            ensure!(
                height % patch == 0 && width % patch == 0,
                "{name} cuts images into patches of {patch}×{patch}, which do not fill {height}×{width}; choose \
                 another --patch"
            );
        }
        Ok(())
    }

    /// Initialises the model for images `[channels, height, width]` and hands it over. The perceptron and the small
    /// CNN take 28×28 images of one channel, whatever `shape` says; others need [`check`](Self::check) first.
    pub fn with<W: WithModel>(
        self,
        shape: [usize; 3],
        classes: usize,
        device: &Device,
        work: W,
    ) -> W::Output {
        let resnet = ResNetConfig::new().with_channels(shape[0]).with_classes(classes);
        let resnet = resnet.with_width(self.width.map_or(64, usize::from));
        let mobilenet = MobileNetV3Config::new().with_channels(shape[0]).with_classes(classes);
        match self.name {
            ModelName::Mlp => work.run::<Mlp>(MlpConfig::new().with_classes(classes).init(device)),
            ModelName::MnistCnn => {
                work.run::<MnistCnn>(MnistCnnConfig::new().with_classes(classes).init(device))
            }
            ModelName::Resnet8 => {
                let config = ResNet8Config::new().with_channels(shape[0]).with_classes(classes);
                work.run::<ResNet8>(config.init(device))
            }
            ModelName::Resnet18 => work.run::<ResNet18>(resnet.resnet18(device)),
            ModelName::Resnet18Small => work.run::<ResNet18>(resnet.with_small_images(true).resnet18(device)),
            ModelName::Resnet50 => work.run::<ResNet50>(resnet.resnet50(device)),
            ModelName::Wrn22 => {
                let config = WideResNetConfig::new().with_channels(shape[0]).with_classes(classes);
                work.run::<WideResNet>(config.init(device))
            }
            ModelName::MobilenetV3Large => work.run::<MobileNetV3>(mobilenet.large(device)),
            ModelName::MobilenetV3Small => work.run::<MobileNetV3>(mobilenet.small(device)),
            ModelName::VitTiny | ModelName::VitB16 => {
                let config = self.vit(shape).expect("is one").with_classes(classes);
                work.run::<VisionTransformer>(config.init(device))
            }
        }
    }
}
