use crate::resnet::conv;
use crate::{Classifier, ModelInfo, ModelSpec};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, LinearConfig};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Blocks of a stage in a network of 22 layers: (22 − 4) / 6.
const BLOCKS: usize = 3;

/// Configuration of [`WideResNet`]: by default WRN-22-2.
#[derive(Config, Debug)]
pub struct WideResNetConfig {
    /// Channels of an image of about 32×32 pixels.
    #[config(default = 3)]
    pub channels: usize,
    /// Number of classes.
    #[config(default = 10)]
    pub classes: usize,
    /// The three stages have 16, 32 and 64 times as many channels.
    #[config(default = 2)]
    pub widen: usize,
    /// Share of numbers dropped in training, between the two convolutions of a block.
    #[config(default = 0.3)]
    pub dropout: f64,
}

/// A wide residual network of 22 layers (Zagoruyko and Komodakis 2016), with normalisation and ReLU before each
/// convolution. Modules are named as in the code of the SRigL paper's authors; [`torchvision_name`] tells the one name
/// that differs, `convShortcut`.
///
/// [`torchvision_name`]: crate::torchvision_name
#[derive(Module, Debug)]
pub struct WideResNet {
    /// 3×3, to 16 channels.
    pub conv1: SparseConv2d,
    /// `16 · widen` channels.
    pub block1: WideStage,
    /// Twice as many, half the resolution.
    pub block2: WideStage,
    /// Twice as many, half the resolution.
    pub block3: WideStage,
    /// After the last block.
    pub bn1: BatchNorm,
    /// `[classes, 64 · widen]`.
    pub fc: SparseLinear,
}

/// Three blocks.
#[derive(Module, Debug)]
pub struct WideStage {
    /// The first may be strided.
    pub layer: Vec<WideBlock>,
}

/// Two 3×3 convolutions, each after normalisation and ReLU, and a shortcut.
#[derive(Module, Debug)]
pub struct WideBlock {
    /// Before `conv1`.
    pub bn1: BatchNorm,
    /// 3×3, may be strided.
    pub conv1: SparseConv2d,
    /// Before `conv2`.
    pub bn2: BatchNorm,
    /// 3×3, stride 1.
    pub conv2: SparseConv2d,
    /// 1×1, if the number of channels changes.
    pub conv_shortcut: Option<SparseConv2d>,
    dropout: Dropout,
}

impl WideResNetConfig {
    /// Initialises the network on a device.
    pub fn init(&self, device: &Device) -> WideResNet {
        let stage = |from: usize, to: usize, stride: usize| WideStage {
            layer: (0..BLOCKS)
                .map(|i| {
                    self.block(
                        if i == 0 { [from, to] } else { [to, to] },
                        if i == 0 { stride } else { 1 },
                        device,
                    )
                })
                .collect(),
        };
        let [first, second, third] = [16, 32, 64].map(|channels| channels * self.widen);
        WideResNet {
            conv1: conv([self.channels, 16], 3, 1, device),
            block1: stage(16, first, 1),
            block2: stage(first, second, 2),
            block3: stage(second, third, 2),
            bn1: BatchNormConfig::new(third).init(device),
            fc: LinearConfig::new(third, self.classes).init(device).into(),
        }
    }

    fn block(&self, [from, to]: [usize; 2], stride: usize, device: &Device) -> WideBlock {
        WideBlock {
            bn1: BatchNormConfig::new(from).init(device),
            conv1: conv([from, to], 3, stride, device),
            bn2: BatchNormConfig::new(to).init(device),
            conv2: conv([to, to], 3, 1, device),
            conv_shortcut: (from != to).then(|| conv([from, to], 1, stride, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

impl WideBlock {
    /// `[batch, from, h, w]` to `[batch, to, h/stride, w/stride]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let normed = fused::batch_norm_relu(&self.bn1, input.clone());
        // A shortcut of its own starts after the first normalisation.
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(normed.clone()),
            None => input,
        };
        let x = fused::batch_norm_relu(&self.bn2, self.conv1.forward(normed));
        self.conv2.forward(fused::dropout(&self.dropout, x)) + shortcut
    }
}

impl Classifier for WideResNet {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = self.conv1.forward(images);
        for block in [&self.block1, &self.block2, &self.block3].into_iter().flat_map(|stage| &stage.layer) {
            x = block.forward(x);
        }
        let x = fused::batch_norm_relu(&self.bn1, x);
        self.fc.forward(x.mean_dims(&[2, 3]).flatten(1, 3))
    }
}

impl Lower for WideBlock {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let block = graph.name_around(self.conv1.id(), 1);
        let x = graph.batch_norm(&self.bn1, input);
        let normed = graph.relu(x);
        let x = graph.conv2d(&self.conv1, normed);
        let x = graph.batch_norm(&self.bn2, x);
        let x = graph.relu(x);
        let skip = match &self.conv_shortcut {
            Some(conv) => graph.conv2d(conv, normed),
            None => input,
        };
        let x = graph.conv2d(&self.conv2, x);
        graph.add(format!("{block}.add"), x, skip)
    }
}

impl Lower for WideResNet {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let mut x = graph.conv2d(&self.conv1, images);
        for block in [&self.block1, &self.block2, &self.block3].into_iter().flat_map(|stage| &stage.layer) {
            x = block.lower(graph, x);
        }
        let x = graph.batch_norm(&self.bn1, x);
        let x = graph.relu(x);
        let x = graph.global_avg_pool("avgpool", x);
        graph.linear(&self.fc, x)
    }
}

/// Its row in the table.
pub(crate) static INFO: ModelInfo = ModelInfo {
    name: "wrn-22-2",
    about: "Wide ResNet of 22 layers, twice as wide, for images of about 32×32",
    images: [3, 32, 32],
    classes: 10,
    stem: "conv1.weight",
    head: "fc.bias",
    width: None,
    patch: None,
    dropout: false,
    check: |_| Ok(()),
};

pub(crate) fn init(spec: &ModelSpec, device: &Device) -> WideResNet {
    WideResNetConfig::new().with_channels(spec.images[0]).with_classes(spec.classes).init(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_count_is_that_of_the_authors_network() {
        let net = WideResNetConfig::new().init(&Device::flex());
        // Beside the parameters, Burn counts running means and variances: two for each normalised channel.
        let normalised = (16 + 5 * 32) + (32 + 5 * 64) + (64 + 5 * 128) + 128;
        assert_eq!(net.num_params(), 1_079_642 + 2 * normalised);
        assert_eq!(net.forward(Tensor::ones([2, 3, 32, 32], &Device::flex())).dims(), [2, 10]);
    }
}
