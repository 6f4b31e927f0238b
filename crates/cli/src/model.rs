//! Models by name.

use burn::tensor::Device;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use srigl_models::{
    Mlp, MlpConfig, MnistCnn, MnistCnnConfig, ResNet8, ResNet8Config, ResNet18, ResNet50, ResNetConfig,
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
        }
    }

    /// Initialises the model for images of so many channels and hands it over. The perceptron and the small CNN
    /// take 28×28 images of one channel, whatever `channels` says.
    pub fn with<W: WithModel>(self, channels: usize, classes: usize, device: &Device, work: W) -> W::Output {
        let resnet = ResNetConfig::new().with_channels(channels).with_classes(classes);
        match self {
            Self::Mlp => work.run::<Mlp>(MlpConfig::new().with_classes(classes).init(device)),
            Self::MnistCnn => work.run::<MnistCnn>(MnistCnnConfig::new().with_classes(classes).init(device)),
            Self::Resnet8 => {
                let config = ResNet8Config::new().with_channels(channels).with_classes(classes);
                work.run::<ResNet8>(config.init(device))
            }
            Self::Resnet18 => work.run::<ResNet18>(resnet.resnet18(device)),
            Self::Resnet50 => work.run::<ResNet50>(resnet.resnet50(device)),
        }
    }
}
