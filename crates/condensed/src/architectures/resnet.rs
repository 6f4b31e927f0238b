//! Residual networks. In a block, the shortcut comes before the last convolution beside it.

use super::graph::{BATCH_NORM_EPSILON, Graph, Value, window};

/// That of `srigl-models`: one basic block a stage.
pub(super) fn resnet8(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let x = conv_norm(graph, ["conv1", "bn1"], images, 16, 3, 1);
    let x = graph.relu(x);
    let x = basic_block(graph, "layer1", x, 16, 1);
    let x = basic_block(graph, "layer2", x, 32, 2);
    let x = basic_block(graph, "layer3", x, 64, 2);
    let x = graph.global_average("avgpool", x);
    graph.linear("fc", x, classes)
}

pub(super) fn resnet18(graph: &mut Graph, images: Value, classes: usize) -> Value {
    torchvision(graph, images, basic_block, [2, 2, 2, 2], 1, classes, false)
}

/// For images of about 32×32: a 3×3 stem of stride 1, and no pooling.
pub(super) fn resnet18_small(graph: &mut Graph, images: Value, classes: usize) -> Value {
    torchvision(graph, images, basic_block, [2, 2, 2, 2], 1, classes, true)
}

pub(super) fn resnet50(graph: &mut Graph, images: Value, classes: usize) -> Value {
    torchvision(graph, images, bottleneck, [3, 4, 6, 3], 4, classes, false)
}

/// A block by its name, its input, output channels and stride.
type Block = fn(&mut Graph, &str, Value, usize, usize) -> Value;

/// Four stages of `blocks`; the first has `width · expansion` channels, each other one twice those before it.
fn torchvision(
    graph: &mut Graph,
    images: Value,
    block: Block,
    blocks: [usize; 4],
    expansion: usize,
    classes: usize,
    small_images: bool,
) -> Value {
    let width = graph.size("conv1.weight", 0, 64);
    let (kernel, stride) = if small_images { (3, 1) } else { (7, 2) };
    let x = conv_norm(graph, ["conv1", "bn1"], images, width, kernel, stride);
    let mut x = graph.relu(x);
    if !small_images {
        x = graph.max_pool("maxpool", x, window(3, 2, 1));
    }
    for (stage, count) in blocks.into_iter().enumerate() {
        let channels = (width << stage) * expansion;
        for i in 0..count {
            let name = format!("layer{}.{i}", stage + 1);
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            x = block(graph, &name, x, channels, stride);
        }
    }
    let x = graph.global_average("avgpool", x);
    graph.linear("fc", x, classes)
}

fn basic_block(graph: &mut Graph, name: &str, input: Value, channels: usize, stride: usize) -> Value {
    let layer = |layer| format!("{name}.{layer}");
    let x = conv_norm(graph, [&layer("conv1"), &layer("bn1")], input, channels, 3, stride);
    let x = graph.relu(x);
    let skip = shortcut(graph, name, input, channels, stride);
    let x = conv_norm(graph, [&layer("conv2"), &layer("bn2")], x, channels, 3, 1);
    let x = graph.add(&layer("add"), x, skip);
    graph.relu(x)
}

/// With the stride in the 3×3 convolution ("v1.5"), as in torchvision.
fn bottleneck(graph: &mut Graph, name: &str, input: Value, channels: usize, stride: usize) -> Value {
    let layer = |layer| format!("{name}.{layer}");
    let x = conv_norm(graph, [&layer("conv1"), &layer("bn1")], input, channels / 4, 1, 1);
    let x = graph.relu(x);
    let x = conv_norm(graph, [&layer("conv2"), &layer("bn2")], x, channels / 4, 3, stride);
    let x = graph.relu(x);
    let skip = shortcut(graph, name, input, channels, stride);
    let x = conv_norm(graph, [&layer("conv3"), &layer("bn3")], x, channels, 1, 1);
    let x = graph.add(&layer("add"), x, skip);
    graph.relu(x)
}

/// The input itself, or a 1×1 convolution of it where the block changes its shape.
fn shortcut(graph: &mut Graph, block: &str, input: Value, channels: usize, stride: usize) -> Value {
    if stride == 1 && input.shape.features == channels {
        return input;
    }
    let layers = [0, 1].map(|i| format!("{block}.downsample.{i}"));
    conv_norm(graph, [&layers[0], &layers[1]], input, channels, 1, stride)
}

/// A convolution without bias, padded by half its kernel, and batch normalisation.
fn conv_norm(
    graph: &mut Graph,
    [conv, norm]: [&str; 2],
    x: Value,
    channels: usize,
    kernel: usize,
    stride: usize,
) -> Value {
    let x = graph.conv_without_bias(conv, x, channels, window(kernel, stride, kernel / 2));
    graph.batch_norm(norm, x, BATCH_NORM_EPSILON)
}

/// Channels of the three stages of a wide residual network twice as wide as the usual one.
const WIDE: [usize; 3] = [32, 64, 128];

/// Blocks of each of them.
const WIDE_BLOCKS: usize = 3;

/// The wide network of the SRigL paper, named as by its authors.
pub(super) fn wrn_22_2(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let mut x = graph.conv_without_bias("conv1", images, 16, window(3, 1, 1));
    for (stage, channels) in WIDE.into_iter().enumerate() {
        for i in 0..WIDE_BLOCKS {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            x = wide_block(graph, &format!("block{}.layer.{i}", stage + 1), x, channels, stride);
        }
    }
    let x = graph.batch_norm("bn1", x, BATCH_NORM_EPSILON);
    let x = graph.relu(x);
    let x = graph.global_average("avgpool", x);
    graph.linear("fc", x, classes)
}

/// Normalisation and ReLU before each convolution; a shortcut of its own starts after the first.
fn wide_block(graph: &mut Graph, name: &str, input: Value, channels: usize, stride: usize) -> Value {
    let layer = |layer| format!("{name}.{layer}");
    let x = graph.batch_norm(&layer("bn1"), input, BATCH_NORM_EPSILON);
    let normed = graph.relu(x);
    let x = graph.conv_without_bias(&layer("conv1"), normed, channels, window(3, stride, 1));
    let x = graph.batch_norm(&layer("bn2"), x, BATCH_NORM_EPSILON);
    let x = graph.relu(x);
    let skip = match input.shape.features == channels {
        true => input,
        false => graph.conv_without_bias(&layer("convShortcut"), normed, channels, window(1, stride, 0)),
    };
    let x = graph.conv_without_bias(&layer("conv2"), x, channels, window(3, 1, 1));
    graph.add(&layer("add"), x, skip)
}
