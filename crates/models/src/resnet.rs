use crate::{Classifier, ModelInfo, ModelSpec, Size};
use burn::config::Config;
use burn::module::{Initializer, Module, ModuleDisplay};
use burn::nn::conv::Conv2dConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Configuration of [`ResNet18`] and [`ResNet50`].
#[derive(Config, Debug)]
pub struct ResNetConfig {
    /// Channels of an image.
    #[config(default = 3)]
    pub channels: usize,
    /// Number of classes.
    #[config(default = 1000)]
    pub classes: usize,
    /// Channels after the first convolution; each stage but the first doubles them.
    #[config(default = 64)]
    pub width: usize,
    /// For images of about 32×32: a first convolution of 3×3 and stride 1, and no pooling after it.
    #[config(default = false)]
    pub small_images: bool,
}

/// A residual network (He et al. 2016) with the module paths and shapes of torchvision.
#[derive(Module, Debug)]
pub struct ResNet<B> {
    /// 7×7 and stride 2, or 3×3 and stride 1 for small images.
    pub conv1: SparseConv2d,
    /// Batch normalisation after `conv1`.
    pub bn1: BatchNorm,
    /// 3×3 and stride 2; none for small images.
    pub maxpool: Option<MaxPool2d>,
    /// `width · expansion` channels.
    pub layer1: Vec<B>,
    /// Twice as many, half the resolution.
    pub layer2: Vec<B>,
    /// Twice as many, half the resolution.
    pub layer3: Vec<B>,
    /// Twice as many, half the resolution.
    pub layer4: Vec<B>,
    /// `[classes, 8 · width · expansion]`.
    pub fc: SparseLinear,
}

/// 18 layers: stages of 2, 2, 2 and 2 basic blocks.
pub type ResNet18 = ResNet<BasicBlock>;

/// 50 layers: stages of 3, 4, 6 and 3 bottlenecks.
pub type ResNet50 = ResNet<Bottleneck>;

/// What a [`ResNet`] repeats.
pub trait ResidualBlock: Module + ModuleDisplay + Lower + 'static {
    /// Channels of its result over its inner width.
    const EXPANSION: usize;
    /// A block for `from` channels, with `width` channels inside.
    fn new(from: usize, width: usize, stride: usize, device: &Device) -> Self;
    /// `[batch, from, h, w]` to `[batch, width · EXPANSION, h/stride, w/stride]`.
    fn forward(&self, input: Tensor<4>) -> Tensor<4>;
}

/// Two 3×3 convolutions with batch normalisation, and a shortcut.
#[derive(Module, Debug)]
pub struct BasicBlock {
    /// 3×3, may be strided.
    pub conv1: SparseConv2d,
    /// Batch normalisation after `conv1`.
    pub bn1: BatchNorm,
    /// 3×3, stride 1.
    pub conv2: SparseConv2d,
    /// Batch normalisation after `conv2`.
    pub bn2: BatchNorm,
    /// 1×1 shortcut with its normalisation, if the shape changes.
    pub downsample: Option<(SparseConv2d, BatchNorm)>,
}

/// Convolutions of 1×1, 3×3 and 1×1 with batch normalisation, and a shortcut. The stride is in the 3×3 convolution
/// ("v1.5"), as in torchvision.
#[derive(Module, Debug)]
pub struct Bottleneck {
    /// 1×1.
    pub conv1: SparseConv2d,
    /// Batch normalisation after `conv1`.
    pub bn1: BatchNorm,
    /// 3×3, may be strided.
    pub conv2: SparseConv2d,
    /// Batch normalisation after `conv2`.
    pub bn2: BatchNorm,
    /// 1×1, to four times as many channels.
    pub conv3: SparseConv2d,
    /// Batch normalisation after `conv3`.
    pub bn3: BatchNorm,
    /// 1×1 shortcut with its normalisation, if the shape changes.
    pub downsample: Option<(SparseConv2d, BatchNorm)>,
}

/// A convolution without bias, padded by half its kernel, with torchvision's initial weights.
pub(crate) fn conv(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> SparseConv2d {
    let same = kernel / 2;
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(same, same, same, same))
        .with_bias(false)
        .with_initializer(Initializer::KaimingNormal { gain: 2f64.sqrt(), fan_out_only: true })
        .init(device)
        .into()
}

/// 1×1 where the shape changes.
fn downsample([from, to]: [usize; 2], stride: usize, device: &Device) -> Option<(SparseConv2d, BatchNorm)> {
    let needed = from != to || stride != 1;
    needed.then(|| (conv([from, to], 1, stride, device), BatchNormConfig::new(to).init(device)))
}

fn shortcut(downsample: &Option<(SparseConv2d, BatchNorm)>, input: Tensor<4>) -> Tensor<4> {
    match downsample {
        Some((conv, norm)) => fused::batch_norm(norm, conv.forward(input)),
        None => input,
    }
}

impl ResidualBlock for BasicBlock {
    const EXPANSION: usize = 1;

    fn new(from: usize, width: usize, stride: usize, device: &Device) -> Self {
        let norm = || BatchNormConfig::new(width).init(device);
        Self {
            conv1: conv([from, width], 3, stride, device),
            bn1: norm(),
            conv2: conv([width, width], 3, 1, device),
            bn2: norm(),
            downsample: downsample([from, width], stride, device),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let x = fused::batch_norm_relu(&self.bn1, self.conv1.forward(input.clone()));
        let x = self.conv2.forward(x);
        fused::batch_norm_add_relu(&self.bn2, x, shortcut(&self.downsample, input))
    }
}

impl ResidualBlock for Bottleneck {
    const EXPANSION: usize = 4;

    fn new(from: usize, width: usize, stride: usize, device: &Device) -> Self {
        let norm = |channels| BatchNormConfig::new(channels).init(device);
        let to = width * Self::EXPANSION;
        Self {
            conv1: conv([from, width], 1, 1, device),
            bn1: norm(width),
            conv2: conv([width, width], 3, stride, device),
            bn2: norm(width),
            conv3: conv([width, to], 1, 1, device),
            bn3: norm(to),
            downsample: downsample([from, to], stride, device),
        }
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let x = fused::batch_norm_relu(&self.bn1, self.conv1.forward(input.clone()));
        let x = fused::batch_norm_relu(&self.bn2, self.conv2.forward(x));
        let x = self.conv3.forward(x);
        fused::batch_norm_add_relu(&self.bn3, x, shortcut(&self.downsample, input))
    }
}

/// The input itself, or a 1×1 convolution of it. In a block it comes before the last convolution beside it, which then adds
/// it while it writes its result.
fn lower_shortcut(
    downsample: &Option<(SparseConv2d, BatchNorm)>,
    graph: &mut Lowering,
    input: Value,
) -> Value {
    match downsample {
        Some((conv, norm)) => lower_conv_norm(graph, conv, norm, input),
        None => input,
    }
}

/// A convolution and its normalisation.
pub(crate) fn lower_conv_norm(
    graph: &mut Lowering,
    conv: &SparseConv2d,
    norm: &BatchNorm,
    x: Value,
) -> Value {
    let x = graph.conv2d(conv, x);
    graph.batch_norm(norm, x)
}

impl Lower for BasicBlock {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let block = graph.name_around(self.conv1.id(), 1);
        let x = lower_conv_norm(graph, &self.conv1, &self.bn1, input);
        let x = graph.relu(x);
        let skip = lower_shortcut(&self.downsample, graph, input);
        let x = lower_conv_norm(graph, &self.conv2, &self.bn2, x);
        let x = graph.add(format!("{block}.add"), x, skip);
        graph.relu(x)
    }
}

impl Lower for Bottleneck {
    fn lower(&self, graph: &mut Lowering, input: Value) -> Value {
        let block = graph.name_around(self.conv1.id(), 1);
        let x = lower_conv_norm(graph, &self.conv1, &self.bn1, input);
        let x = graph.relu(x);
        let x = lower_conv_norm(graph, &self.conv2, &self.bn2, x);
        let x = graph.relu(x);
        let skip = lower_shortcut(&self.downsample, graph, input);
        let x = lower_conv_norm(graph, &self.conv3, &self.bn3, x);
        let x = graph.add(format!("{block}.add"), x, skip);
        graph.relu(x)
    }
}

impl ResNetConfig {
    /// Initialises a network of 18 layers on a device.
    pub fn resnet18(&self, device: &Device) -> ResNet18 {
        self.init([2, 2, 2, 2], device)
    }

    /// Initialises a network of 50 layers on a device.
    pub fn resnet50(&self, device: &Device) -> ResNet50 {
        self.init([3, 4, 6, 3], device)
    }

    fn init<B: ResidualBlock>(&self, blocks: [usize; 4], device: &Device) -> ResNet<B> {
        let (kernel, stride) = if self.small_images { (3, 1) } else { (7, 2) };
        let mut from = self.width;
        let mut stage = |index: usize| {
            let width = self.width << index;
            let stride = if index == 0 { 1 } else { 2 };
            let block = |i| {
                let block = B::new(from, width, if i == 0 { stride } else { 1 }, device);
                from = width * B::EXPANSION;
                block
            };
            (0..blocks[index]).map(block).collect()
        };
        ResNet {
            conv1: conv([self.channels, self.width], kernel, stride, device),
            bn1: BatchNormConfig::new(self.width).init(device),
            maxpool: (!self.small_images).then(|| {
                let pool = MaxPool2dConfig::new([3, 3]).with_strides([2, 2]);
                pool.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init()
            }),
            layer1: stage(0),
            layer2: stage(1),
            layer3: stage(2),
            layer4: stage(3),
            fc: LinearConfig::new((self.width << 3) * B::EXPANSION, self.classes).init(device).into(),
        }
    }
}

impl<B: ResidualBlock> Classifier for ResNet<B> {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = fused::batch_norm_relu(&self.bn1, self.conv1.forward(images));
        if let Some(maxpool) = &self.maxpool {
            x = fused::max_pool2d(maxpool, x);
        }
        for block in [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten() {
            x = block.forward(x);
        }
        let pooled: Tensor<2> = x.mean_dims(&[2, 3]).flatten(1, 3);
        self.fc.forward(pooled)
    }
}

impl<B: ResidualBlock> Lower for ResNet<B> {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let x = lower_conv_norm(graph, &self.conv1, &self.bn1, images);
        let mut x = graph.relu(x);
        if let Some(maxpool) = &self.maxpool {
            x = graph.max_pool2d("maxpool", maxpool, x);
        }
        for block in [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten() {
            x = block.lower(graph, x);
        }
        let x = graph.global_avg_pool("avgpool", x);
        graph.linear(&self.fc, x)
    }
}

/// Channels after the first convolution.
const WIDTH: Option<Size> = Some(Size { usual: 64, tensor: "conv1.weight", dimension: 0 });

/// What the rows below share.
const RESNET: ModelInfo = ModelInfo {
    name: "resnet18",
    about: "ResNet-18 for ImageNet",
    images: [3, 224, 224],
    classes: 1000,
    stem: "conv1.weight",
    head: "fc.bias",
    width: WIDTH,
    patch: None,
    dropout: false,
    check: |_| Ok(()),
};

/// Its row in the table.
pub(crate) static RESNET18: ModelInfo = RESNET;

/// Its row in the table.
pub(crate) static RESNET18_SMALL: ModelInfo = ModelInfo {
    name: "resnet18-small",
    about: "ResNet-18 for images of about 32×32: a 3×3 stem of stride 1, no pooling after it",
    images: [3, 32, 32],
    classes: 10,
    ..RESNET
};

/// Its row in the table.
pub(crate) static RESNET50: ModelInfo =
    ModelInfo { name: "resnet50", about: "ResNet-50 for ImageNet", ..RESNET };

fn config(spec: &ModelSpec) -> ResNetConfig {
    let config = ResNetConfig::new().with_channels(spec.images[0]).with_classes(spec.classes);
    config.with_width(spec.width_or_usual())
}

pub(crate) fn init18(spec: &ModelSpec, device: &Device) -> ResNet18 {
    config(spec).resnet18(device)
}

pub(crate) fn init18_small(spec: &ModelSpec, device: &Device) -> ResNet18 {
    config(spec).with_small_images(true).resnet18(device)
}

pub(crate) fn init50(spec: &ModelSpec, device: &Device) -> ResNet50 {
    config(spec).resnet50(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_torchvisions() {
        let device = Device::flex();
        // Burn counts the running mean and variance of normalisations as well: 9 600 and 53 120 numbers.
        assert_eq!(ResNetConfig::new().resnet18(&device).num_params(), 11_689_512 + 9_600);
        assert_eq!(ResNetConfig::new().resnet50(&device).num_params(), 25_557_032 + 53_120);
    }

    #[test]
    fn small_images_keep_their_resolution_at_first() {
        let device = Device::flex();
        let config = ResNetConfig::new().with_small_images(true).with_width(8).with_classes(10);
        let images = Tensor::<4>::ones([2, 3, 32, 32], &device);
        let net = config.resnet18(&device);
        assert_eq!(net.conv1.forward(images.clone()).dims(), [2, 8, 32, 32]);
        assert_eq!(net.forward(images).dims(), [2, 10]);
    }
}
