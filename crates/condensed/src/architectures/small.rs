//! The networks without residual connections, as `srigl-models` defines them.

use super::graph::{Graph, Value, window};

pub(super) fn mlp(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let x = graph.flatten(images);
    let x = graph.linear("fc1", x, 300);
    let x = graph.relu(x);
    let x = graph.linear("fc2", x, 100);
    let x = graph.relu(x);
    graph.linear("fc3", x, classes)
}

pub(super) fn mnist_cnn(graph: &mut Graph, images: Value, classes: usize) -> Value {
    let x = graph.conv("conv1", images, 32, window(3, 1, 0));
    let x = graph.relu(x);
    let x = graph.conv("conv2", x, 64, window(3, 1, 0));
    let x = graph.relu(x);
    let x = graph.max_pool("pool", x, window(2, 2, 0));
    let x = graph.flatten(x);
    let x = graph.linear("fc1", x, 128);
    let x = graph.relu(x);
    graph.linear("fc2", x, classes)
}
