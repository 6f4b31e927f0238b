use crate::resnet::lower_conv_norm;
use crate::{Classifier, ModelInfo, ModelSpec};
use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Configuration of [`MobileNetV3`].
#[derive(Config, Debug)]
pub struct MobileNetV3Config {
    /// Channels of an image.
    #[config(default = 3)]
    pub channels: usize,
    /// Number of classes.
    #[config(default = 1000)]
    pub classes: usize,
    /// Share of numbers dropped in training before the last layer; the authors of SRigL train with 0.
    #[config(default = 0.2)]
    pub dropout: f64,
}

/// MobileNetV3 (Howard et al. 2019) with the shapes of torchvision; [`torchvision_name`] tells the names.
///
/// [`torchvision_name`]: crate::torchvision_name
#[derive(Module, Debug)]
pub struct MobileNetV3 {
    /// A convolution, blocks, and a last convolution.
    pub features: Vec<Stage>,
    /// Two linear layers, at the places that torchvision gives them.
    pub classifier: (SparseLinear, HardSwish, Dropout, SparseLinear),
}

/// An element of [`MobileNetV3::features`].
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are a few dozen")]
pub enum Stage {
    /// With its normalisation; a hard swish follows.
    Conv((SparseConv2d, BatchNorm)),
    /// A block.
    Block(InvertedResidual),
}

/// Expansion (1×1), depthwise convolution, squeeze-and-excitation and projection (1×1), the first and the third not in
/// all blocks; with a shortcut where the shape stays.
#[derive(Module, Debug)]
pub struct InvertedResidual {
    /// In this order.
    pub block: Vec<BlockLayer>,
    hard_swish: bool,
    shortcut: bool,
}

/// An element of [`InvertedResidual::block`].
#[derive(Module, Debug)]
pub enum BlockLayer {
    /// With its normalisation; the block's activation follows all but the last.
    Conv((SparseConv2d, BatchNorm)),
    /// Squeeze-and-excitation.
    Squeeze(SqueezeExcitation),
}

/// Weighs channels by what all positions have on average (Hu et al. 2018).
#[derive(Module, Debug)]
pub struct SqueezeExcitation {
    /// 1×1, to fewer channels.
    pub fc1: SparseConv2d,
    /// 1×1, back.
    pub fc2: SparseConv2d,
}

/// `x · hard_sigmoid(x)`.
#[derive(Module, Debug)]
pub struct HardSwish;

impl HardSwish {
    /// Elementwise.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fused::hard_swish(x)
    }
}

/// `x/6 + 1/2`, within 0 and 1.
fn hard_sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

/// A block of the paper's tables 1 and 2.
struct Row {
    kernel: usize,
    expanded: usize,
    to: usize,
    squeeze: bool,
    hard_swish: bool,
    stride: usize,
}

const fn row(
    kernel: usize,
    expanded: usize,
    to: usize,
    squeeze: bool,
    hard_swish: bool,
    stride: usize,
) -> Row {
    Row { kernel, expanded, to, squeeze, hard_swish, stride }
}

const LARGE: [Row; 15] = [
    row(3, 16, 16, false, false, 1),
    row(3, 64, 24, false, false, 2),
    row(3, 72, 24, false, false, 1),
    row(5, 72, 40, true, false, 2),
    row(5, 120, 40, true, false, 1),
    row(5, 120, 40, true, false, 1),
    row(3, 240, 80, false, true, 2),
    row(3, 200, 80, false, true, 1),
    row(3, 184, 80, false, true, 1),
    row(3, 184, 80, false, true, 1),
    row(3, 480, 112, true, true, 1),
    row(3, 672, 112, true, true, 1),
    row(5, 672, 160, true, true, 2),
    row(5, 960, 160, true, true, 1),
    row(5, 960, 160, true, true, 1),
];

const SMALL: [Row; 11] = [
    row(3, 16, 16, true, false, 2),
    row(3, 72, 24, false, false, 2),
    row(3, 88, 24, false, false, 1),
    row(5, 96, 40, true, true, 2),
    row(5, 240, 40, true, true, 1),
    row(5, 240, 40, true, true, 1),
    row(5, 120, 48, true, true, 1),
    row(5, 144, 48, true, true, 1),
    row(5, 288, 96, true, true, 2),
    row(5, 576, 96, true, true, 1),
    row(5, 576, 96, true, true, 1),
];

/// Channels of the first convolution.
const STEM: usize = 16;

impl MobileNetV3Config {
    /// Initialises the large network on a device.
    pub fn large(&self, device: &Device) -> MobileNetV3 {
        self.init(&LARGE, 1280, device)
    }

    /// Initialises the small network on a device.
    pub fn small(&self, device: &Device) -> MobileNetV3 {
        self.init(&SMALL, 1024, device)
    }

    fn init(&self, rows: &[Row], hidden: usize, device: &Device) -> MobileNetV3 {
        let mut features = vec![Stage::Conv(conv_norm([self.channels, STEM], 3, 2, 1, device))];
        let mut from = STEM;
        for row in rows {
            features.push(Stage::Block(block(from, row, device)));
            from = row.to;
        }
        let last = 6 * from;
        features.push(Stage::Conv(conv_norm([from, last], 1, 1, 1, device)));
        let linear = |from, to| {
            let normal = Initializer::Normal { mean: 0.0, std: 0.01 };
            let linear = LinearConfig::new(from, to).with_initializer(normal).init(device);
            SparseLinear::from(Linear { bias: Some(Initializer::Zeros.init([to], device)), ..linear })
        };
        let dropout = DropoutConfig::new(self.dropout).init();
        let classifier = (linear(last, hidden), HardSwish, dropout, linear(hidden, self.classes));
        MobileNetV3 { features, classifier }
    }
}

fn block(from: usize, row: &Row, device: &Device) -> InvertedResidual {
    let &Row { kernel, expanded, to, squeeze, hard_swish, stride } = row;
    let mut block = Vec::new();
    if expanded != from {
        block.push(BlockLayer::Conv(conv_norm([from, expanded], 1, 1, 1, device)));
    }
    block.push(BlockLayer::Conv(conv_norm([expanded, expanded], kernel, stride, expanded, device)));
    if squeeze {
        let squeezed = squeezed_channels(expanded);
        let conv = |[from, to]: [usize; 2]| {
            let config = Conv2dConfig::new([from, to], [1, 1]).with_initializer(fan_out(to, 1));
            SparseConv2d::from(Conv2d {
                bias: Some(Initializer::Zeros.init([to], device)),
                ..config.init(device)
            })
        };
        let squeeze = SqueezeExcitation { fc1: conv([expanded, squeezed]), fc2: conv([squeezed, expanded]) };
        block.push(BlockLayer::Squeeze(squeeze));
    }
    block.push(BlockLayer::Conv(conv_norm([expanded, to], 1, 1, 1, device)));
    InvertedResidual { block, hard_swish, shortcut: stride == 1 && from == to }
}

/// A quarter, as the nearest multiple of 8 that is not below nine tenths of it.
fn squeezed_channels(expanded: usize) -> usize {
    let quarter = expanded / 4;
    let rounded = ((quarter + 4) / 8 * 8).max(8);
    if 10 * rounded < 9 * quarter { rounded + 8 } else { rounded }
}

/// What torchvision draws the weights of a convolution from: normal with a variance of 2 over `to·kernel²`, which is not
/// divided by the number of groups.
fn fan_out(to: usize, kernel: usize) -> Initializer {
    Initializer::Normal { mean: 0.0, std: (2.0 / (to * kernel * kernel) as f64).sqrt() }
}

/// A convolution without bias, padded by half its kernel, and its normalisation.
fn conv_norm(
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    device: &Device,
) -> (SparseConv2d, BatchNorm) {
    let same = kernel / 2;
    let conv = Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(same, same, same, same))
        .with_groups(groups)
        .with_bias(false)
        .with_initializer(fan_out(channels[1], kernel));
    let norm = BatchNormConfig::new(channels[1]).with_epsilon(0.001).with_momentum(0.01);
    (conv.init(device).into(), norm.init(device))
}

impl SqueezeExcitation {
    /// `[batch, channels, h, w]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mean = x.clone().mean_dims(&[2, 3]);
        x * hard_sigmoid(self.fc2.forward(fused::relu(self.fc1.forward(mean))))
    }
}

impl InvertedResidual {
    /// `[batch, from, h, w]` to `[batch, to, h/stride, w/stride]`.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let mut x = input.clone();
        for (i, layer) in self.block.iter().enumerate() {
            x = match layer {
                BlockLayer::Conv((conv, norm)) => {
                    let x = conv.forward(x);
                    match (i + 1 == self.block.len(), self.hard_swish) {
                        (true, _) => fused::batch_norm(norm, x),
                        (false, true) => fused::hard_swish(fused::batch_norm(norm, x)),
                        (false, false) => fused::batch_norm_relu(norm, x),
                    }
                }
                BlockLayer::Squeeze(squeeze) => squeeze.forward(x),
            };
        }
        if self.shortcut { x + input } else { x }
    }
}

impl Classifier for MobileNetV3 {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = images;
        for stage in &self.features {
            x = match stage {
                Stage::Conv((conv, norm)) => fused::hard_swish(fused::batch_norm(norm, conv.forward(x))),
                Stage::Block(block) => block.forward(x),
            };
        }
        let (hidden, hard_swish, dropout, head) = &self.classifier;
        let x: Tensor<2> = x.mean_dims(&[2, 3]).flatten(1, 3);
        head.forward(fused::dropout(dropout, hard_swish.forward(hidden.forward(x))))
    }
}

impl Lower for SqueezeExcitation {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let name = graph.name_around(self.fc1.id(), 1);
        let x = graph.global_avg_pool(format!("{name}.avgpool"), input);
        let x = graph.conv2d(&self.fc1, x);
        let x = graph.relu(x);
        let x = graph.conv2d(&self.fc2, x);
        let factors = graph.hard_sigmoid(x);
        graph.scale(format!("{name}.scale"), input, factors)
    }
}

impl Lower for InvertedResidual {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let mut x = input;
        let mut name = String::new();
        for (i, layer) in self.block.iter().enumerate() {
            x = match layer {
                BlockLayer::Conv((conv, norm)) => {
                    name = graph.name_around(conv.id(), 3);
                    let x = lower_conv_norm(graph, conv, norm, x);
                    match (i + 1 == self.block.len(), self.hard_swish) {
                        (true, _) => x,
                        (false, true) => graph.hard_swish(x),
                        (false, false) => graph.relu(x),
                    }
                }
                BlockLayer::Squeeze(squeeze) => squeeze.lower(graph, x),
            };
        }
        if self.shortcut { graph.add(format!("{name}.add"), x, input) } else { x }
    }
}

impl Lower for MobileNetV3 {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let mut x = images;
        for stage in &self.features {
            x = match stage {
                Stage::Conv((conv, norm)) => {
                    let x = lower_conv_norm(graph, conv, norm, x);
                    graph.hard_swish(x)
                }
                Stage::Block(block) => block.lower(graph, x),
            };
        }
        let (hidden, _, _, head) = &self.classifier;
        let x = graph.global_avg_pool("avgpool", x);
        let x = graph.linear(hidden, x);
        let x = graph.hard_swish(x);
        graph.linear(head, x)
    }
}

/// Its row in the table.
pub(crate) static LARGE_INFO: ModelInfo = ModelInfo {
    name: "mobilenet-v3-large",
    about: "MobileNetV3, large",
    images: [3, 224, 224],
    classes: 1000,
    stem: "features.0.0.weight",
    head: "classifier.3.bias",
    width: None,
    patch: None,
    dropout: true,
    check: |_| Ok(()),
};

/// Its row in the table.
pub(crate) static SMALL_INFO: ModelInfo = ModelInfo {
    name: "mobilenet-v3-small",
    about: "MobileNetV3, small",
    images: [3, 224, 224],
    classes: 1000,
    stem: "features.0.0.weight",
    head: "classifier.3.bias",
    width: None,
    patch: None,
    dropout: true,
    check: |_| Ok(()),
};

fn config(spec: &ModelSpec) -> MobileNetV3Config {
    let config = MobileNetV3Config::new().with_channels(spec.images[0]).with_classes(spec.classes);
    spec.dropout.map_or(config.clone(), |share| config.with_dropout(share))
}

pub(crate) fn init_large(spec: &ModelSpec, device: &Device) -> MobileNetV3 {
    config(spec).large(device)
}

pub(crate) fn init_small(spec: &ModelSpec, device: &Device) -> MobileNetV3 {
    config(spec).small(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_torchvisions() {
        let device = Device::flex();
        // Burn counts running means and variances as well.
        let statistics = |net: &MobileNetV3| -> usize {
            let norm = |norm: &BatchNorm| 2 * norm.gamma.val().dims()[0];
            let layer = |layer: &BlockLayer| if let BlockLayer::Conv((_, n)) = layer { norm(n) } else { 0 };
            let stage = |stage: &Stage| match stage {
                Stage::Conv((_, n)) => norm(n),
                Stage::Block(block) => block.block.iter().map(layer).sum(),
            };
            net.features.iter().map(stage).sum()
        };
        let large = MobileNetV3Config::new().large(&device);
        assert_eq!(large.num_params() - statistics(&large), 5_483_032);
        let small = MobileNetV3Config::new().small(&device);
        assert_eq!(small.num_params() - statistics(&small), 2_542_856);
        assert_eq!(small.forward(Tensor::ones([2, 3, 64, 48], &device)).dims(), [2, 1000]);
    }

    /// Standard deviation over all values.
    fn deviation<const D: usize>(values: Tensor<D>) -> f64 {
        f64::from(values.clone().square().mean().sqrt().into_scalar::<f32>())
    }

    /// As `torchvision.models.mobilenet_v3_small()` starts: depthwise convolutions as if they had no groups, biases 0.
    #[test]
    fn initial_weights_are_torchvisions() {
        let device = Device::flex();
        device.seed(1);
        let net = MobileNetV3Config::new().small(&device);
        let Stage::Block(block) = &net.features[4] else { panic!("a block") };
        let BlockLayer::Conv((depthwise, _)) = &block.block[1] else { panic!("a depthwise convolution") };
        assert_eq!(depthwise.weight().dims(), [96, 1, 5, 5]);
        let (got, expected) = (deviation(depthwise.weight()), (2.0 / (96.0 * 25.0_f64)).sqrt());
        assert!((got / expected - 1.0).abs() < 0.05, "{got}, not {expected}");
        let BlockLayer::Squeeze(squeeze) = &block.block[2] else { panic!("squeeze-and-excitation") };
        let (got, expected) = (deviation(squeeze.fc1.weight()), (2.0 / 24.0_f64).sqrt());
        assert!((got / expected - 1.0).abs() < 0.05, "{got}, not {expected}");
        let biases = [&squeeze.fc1.bias, &squeeze.fc2.bias, &net.classifier.0.bias, &net.classifier.3.bias];
        assert!(biases.iter().all(|bias| deviation(bias.as_ref().unwrap().val()) == 0.0));
    }
}
