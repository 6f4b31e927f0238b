//! MobileNetV3 (Howard et al. 2019), as in torchvision.

use super::graph::{Graph, Value, window};

const BATCH_NORM_EPSILON: f64 = 1e-3;

/// Channels of the first convolution.
const STEM: usize = 16;

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

pub(super) fn large(graph: &mut Graph, images: Value, classes: usize) -> Value {
    mobilenet(graph, images, &LARGE, 1280, classes)
}

pub(super) fn small(graph: &mut Graph, images: Value, classes: usize) -> Value {
    mobilenet(graph, images, &SMALL, 1024, classes)
}

fn mobilenet(graph: &mut Graph, images: Value, rows: &[Row], hidden: usize, classes: usize) -> Value {
    let x = conv_norm(graph, "features.0", images, STEM, 3, 2);
    let mut x = graph.hard_swish(x);
    for (index, row) in rows.iter().enumerate() {
        x = block(graph, &format!("features.{}", index + 1), x, row);
    }
    let x = conv_norm(graph, &format!("features.{}", rows.len() + 1), x, 6 * x.shape.features, 1, 1);
    let x = graph.hard_swish(x);
    let x = graph.global_average("avgpool", x);
    let x = graph.linear("classifier.0", x, hidden);
    let x = graph.hard_swish(x);
    graph.linear("classifier.3", x, classes)
}

/// Expansion, depthwise convolution, squeeze-and-excitation and projection, numbered as far as they are there.
fn block(graph: &mut Graph, name: &str, input: Value, row: &Row) -> Value {
    let activation = if row.hard_swish { Graph::hard_swish } else { Graph::relu };
    let mut place = 0;
    let mut next = || {
        place += 1;
        format!("{name}.block.{}", place - 1)
    };
    let mut x = input;
    if row.expanded != x.shape.features {
        x = conv_norm(graph, &next(), x, row.expanded, 1, 1);
        x = activation(graph, x);
    }
    let depthwise = next();
    x = graph.depthwise_conv(&format!("{depthwise}.0"), x, window(row.kernel, row.stride, row.kernel / 2));
    x = graph.batch_norm(&format!("{depthwise}.1"), x, BATCH_NORM_EPSILON);
    x = activation(graph, x);
    if row.squeeze {
        x = squeeze_excitation(graph, &next(), x);
    }
    x = conv_norm(graph, &next(), x, row.to, 1, 1);
    let shortcut = row.stride == 1 && input.shape.features == row.to;
    if shortcut { graph.add(&format!("{name}.add"), x, input) } else { x }
}

/// Weighs the channels by what all positions have on average.
fn squeeze_excitation(graph: &mut Graph, name: &str, input: Value) -> Value {
    let layer = |layer| format!("{name}.{layer}");
    let channels = input.shape.features;
    let x = graph.global_average(&layer("avgpool"), input);
    let x = graph.conv(&layer("fc1"), x, squeezed_channels(channels), window(1, 1, 0));
    let x = graph.relu(x);
    let x = graph.conv(&layer("fc2"), x, channels, window(1, 1, 0));
    let factors = graph.hard_sigmoid(x);
    graph.scale(&layer("scale"), input, factors)
}

/// A quarter, as the nearest multiple of 8 that is not below nine tenths of it.
fn squeezed_channels(channels: usize) -> usize {
    let quarter = channels / 4;
    let rounded = ((quarter + 4) / 8 * 8).max(8);
    if 10 * rounded < 9 * quarter { rounded + 8 } else { rounded }
}

/// A convolution without bias, padded by half its kernel, and its normalisation.
fn conv_norm(
    graph: &mut Graph,
    name: &str,
    x: Value,
    channels: usize,
    kernel: usize,
    stride: usize,
) -> Value {
    let x = graph.conv_without_bias(&format!("{name}.0"), x, channels, window(kernel, stride, kernel / 2));
    graph.batch_norm(&format!("{name}.1"), x, BATCH_NORM_EPSILON)
}
