//! Models by name.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use srigl_models::{
    Mlp, MlpConfig, MnistCnn, MnistCnnConfig, ResNet8, ResNet8Config, ResNet18, ResNet50, ResNetConfig,
    VisionTransformer, VitConfig,
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
    /// ResNet-50 for ImageNet.
    Resnet50,
    /// Two layers of 64 features, patches of 8×8; for tests.
    VitTiny,
    /// ViT-B/16.
    #[value(name = "vit-b-16")]
    #[serde(rename = "vit-b-16")]
    VitB16,
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
            Self::Resnet50 => "resnet50",
            Self::VitTiny => "vit-tiny",
            Self::VitB16 => "vit-b-16",
        }
    }

    /// The configuration of a vision transformer for images `[channels, height, width]`.
    fn vit(self, [channels, height, width]: [usize; 3]) -> Option<VitConfig> {
        let config = VitConfig::new().with_channels(channels).with_image([height, width]);
        match self {
            Self::VitTiny => {
                let config = config.with_patch(8).with_layers(2).with_heads(4);
                Some(config.with_features(64).with_mlp(128))
            }
            Self::VitB16 => Some(config),
            _ => None,
        }
    }

    /// Refuses images `[channels, height, width]` that the model cannot take.
    pub fn check(self, shape: [usize; 3]) -> Result<()> {
        if let Some(VitConfig { patch, image: [height, width], .. }) = self.vit(shape) {
            ensure!(
                height % patch == 0 && width % patch == 0,
                "{} cuts images into patches of {patch}×{patch}, which do not fill {height}×{width}",
                self.name()
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
        match self {
            Self::Mlp => work.run::<Mlp>(MlpConfig::new().with_classes(classes).init(device)),
            Self::MnistCnn => work.run::<MnistCnn>(MnistCnnConfig::new().with_classes(classes).init(device)),
            Self::Resnet8 => {
                let config = ResNet8Config::new().with_channels(shape[0]).with_classes(classes);
                work.run::<ResNet8>(config.init(device))
            }
            Self::Resnet18 => work.run::<ResNet18>(resnet.resnet18(device)),
            Self::Resnet50 => work.run::<ResNet50>(resnet.resnet50(device)),
            Self::VitTiny | Self::VitB16 => {
                let config = self.vit(shape).expect("is one").with_classes(classes);
                work.run::<VisionTransformer>(config.init(device))
            }
        }
    }
}
