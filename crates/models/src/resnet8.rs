use crate::resnet::{BasicBlock, ResidualBlock, conv, lower_conv_norm};
use crate::{Classifier, ModelInfo, ModelSpec};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, LinearConfig};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Configuration of [`ResNet8`].
#[derive(Config, Debug)]
pub struct ResNet8Config {
    /// Channels of an image of about 28×28 or 32×32 pixels.
    #[config(default = 1)]
    pub channels: usize,
    /// Number of classes.
    #[config(default = 10)]
    pub classes: usize,
    /// Channels of the first stage; doubled in each of the two others.
    #[config(default = 16)]
    pub width: usize,
}

/// The smallest residual network of the CIFAR family (He et al. 2016, section 4.2, n = 1): a 3×3 convolution, three
/// stages of one basic block, global average pooling and a linear layer.
#[derive(Module, Debug)]
pub struct ResNet8 {
    /// 3×3, stride 1.
    pub conv1: SparseConv2d,
    /// Batch normalisation after `conv1`.
    pub bn1: BatchNorm,
    /// `width` channels.
    pub layer1: BasicBlock,
    /// `2·width` channels, half the resolution.
    pub layer2: BasicBlock,
    /// `4·width` channels, a quarter of the resolution.
    pub layer3: BasicBlock,
    /// `[classes, 4·width]`.
    pub fc: SparseLinear,
}

impl ResNet8Config {
    /// Initialises the model on a device.
    pub fn init(&self, device: &Device) -> ResNet8 {
        let width = self.width;
        ResNet8 {
            conv1: conv([self.channels, width], 3, 1, device),
            bn1: BatchNormConfig::new(width).init(device),
            layer1: BasicBlock::new(width, width, 1, device),
            layer2: BasicBlock::new(width, 2 * width, 2, device),
            layer3: BasicBlock::new(2 * width, 4 * width, 2, device),
            fc: LinearConfig::new(4 * width, self.classes).init(device).into(),
        }
    }
}

impl Classifier for ResNet8 {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = fused::batch_norm_relu(&self.bn1, self.conv1.forward(images));
        let x = self.layer3.forward(self.layer2.forward(self.layer1.forward(x)));
        let pooled: Tensor<2> = x.mean_dims(&[2, 3]).flatten(1, 3);
        self.fc.forward(pooled)
    }
}

impl Lower for ResNet8 {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let x = lower_conv_norm(graph, &self.conv1, &self.bn1, images);
        let mut x = graph.relu(x);
        for block in [&self.layer1, &self.layer2, &self.layer3] {
            x = block.lower(graph, x);
        }
        let x = graph.global_avg_pool("avgpool", x);
        graph.linear(&self.fc, x)
    }
}

/// Its row in the table.
pub(crate) static INFO: ModelInfo = ModelInfo {
    name: "resnet8",
    about: "The smallest residual network of the CIFAR family",
    images: [1, 28, 28],
    classes: 10,
    stem: "conv1.weight",
    head: "fc.bias",
    width: None,
    patch: None,
    dropout: false,
    check: |_| Ok(()),
};

pub(crate) fn init(spec: &ModelSpec, device: &Device) -> ResNet8 {
    ResNet8Config::new().with_channels(spec.images[0]).with_classes(spec.classes).init(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MlpConfig, MnistCnnConfig};

    #[test]
    fn every_model_maps_images_to_logits() {
        let device = Device::flex();
        let images = Tensor::<4>::ones([2, 1, 28, 28], &device);
        assert_eq!(MlpConfig::new().init(&device).forward(images.clone()).dims(), [2, 10]);
        assert_eq!(MnistCnnConfig::new().init(&device).forward(images.clone()).dims(), [2, 10]);
        assert_eq!(ResNet8Config::new().init(&device).forward(images).dims(), [2, 10]);
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let device = Device::flex();
        assert_eq!(MlpConfig::new().init(&device).num_params(), 266_610);
        assert_eq!(MnistCnnConfig::new().init(&device).num_params(), 1_199_882);
    }
}
