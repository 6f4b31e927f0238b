//! A network as a list of operations, each on the results of earlier ones.

use crate::engine::Use;
use crate::shape::MAX_RESULT;
use crate::{Error, NodeError, Op, Shape};
use std::collections::BTreeSet;

/// A network: the first node is the input, the last one the output, every node reads earlier ones, and every node
/// but the last is read. It is checked when it is made.
///
/// ```
/// use condensed::{CondensedWeight, Network, Node, Op, Shape, Weight, ops};
///
/// // One neuron of two inputs, which reads the second.
/// let weight = CondensedWeight::from_masked(&[0.0, 3.0], &[false, true], 1, 2)?;
/// let layer = ops::Linear { weight: Weight::Condensed(weight), bias: vec![0.5] };
/// let input = ops::Input(Shape { features: 2, height: 1, width: 1 });
/// let network = Network::new(vec![
///     Node::new("input", input, []),
///     Node::new("fc", layer, [0]),
///     Node::new("relu", Op::Relu, [1]),
/// ])?;
/// assert_eq!(network.output_shape().len(), 1);
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name, unique in the network: the module path for layers with weights.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Nodes whose results it reads, all earlier than itself.
    pub inputs: Vec<usize>,
}

impl Node {
    /// A node.
    pub fn new(name: impl Into<String>, op: impl Into<Op>, inputs: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), op: op.into(), inputs: inputs.into() }
    }
}

impl Network {
    /// Checks everything about the nodes.
    ///
    /// # Errors
    /// [`Error::Node`] for the first node that does not fit: an input that is not an earlier node, a
    /// parameter of another size than its input asks for or not finite, a window larger than the image, an
    /// unused result.
    pub fn new(nodes: Vec<Node>) -> Result<Self, Error> {
        let shapes = shapes(&nodes)?;
        Ok(Self { nodes, shapes })
    }

    /// The operations in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Gives the nodes up.
    pub fn into_nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// The shape of each node's result.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> Shape {
        self.shapes[0]
    }

    /// Shape of one result.
    pub fn output_shape(&self) -> Shape {
        self.shapes[self.shapes.len() - 1]
    }

    /// Whether the [budget](srigl_tensors::memory::limit) allows to run a batch on something else than the
    /// [`Engine`](crate::Engine), which knows better: [`Engine::memory`](crate::Engine::memory).
    ///
    /// Counted are F32 numbers, of all samples at the same time. While a node computes, these are all results that it or a
    /// later node reads, its own result, and what it may gather on the way: for a convolution each input of each tap at
    /// each position of the result, `[in features, kh, kw, positions]`, for attention the scores `[heads, tokens, tokens]`.
    /// The node where that is most decides. Weights are not counted: the network has them already.
    ///
    /// # Errors
    /// [`Error::Memory`] if not.
    pub fn check_memory(&self, batch: usize) -> Result<(), Error> {
        self.needs(batch).check()
    }

    /// What [`check_memory`](Self::check_memory) counts.
    fn needs(&self, batch: usize) -> Use<'_> {
        let mut last_reader: Vec<usize> = (0..self.nodes.len()).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| last_reader[input] = index);
        }
        // Wide enough for any number of samples of any network.
        let bytes = |numbers: u64| (batch as u128) * u128::from(numbers) * size_of::<f32>() as u128;
        let result = |node: usize| bytes(self.shapes[node].len() as u64);
        let (mut alive, mut all, mut most) = (0, 0, (0, 0));
        for (index, node) in self.nodes.iter().enumerate() {
            let input = node.inputs.first().map_or(self.shapes[index], |&input| self.shapes[input]);
            let gathered = bytes(node.op.operation().gathered(input, self.shapes[index]));
            alive += result(index);
            all = all.max(alive + gathered);
            most = most.max((result(index) + gathered, index));
            let mut read = node.inputs.clone();
            read.dedup();
            let dead = read.into_iter().filter(|&input| last_reader[input] == index);
            alive -= dead.map(result).sum::<u128>();
        }
        let narrow = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        let most = (&*self.nodes[most.1].name, narrow(most.0));
        Use { all: narrow(all), most }
    }

    /// The nodes that read each node; a node that reads one twice is there twice.
    pub(crate) fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| readers[input].push(index));
        }
        readers
    }
}

/// The shape of each node's result.
fn shapes(nodes: &[Node]) -> Result<Vec<Shape>, Error> {
    let mut shapes: Vec<Shape> = Vec::new();
    let mut names = BTreeSet::new();
    for (index, node) in nodes.iter().enumerate() {
        let wrong = |what| Error::Node { node: node.name.clone(), what };
        if node.name.is_empty() || !names.insert(&node.name) {
            return Err(wrong(NodeError::Name));
        }
        if let Some(&input) = node.inputs.iter().find(|&&input| input >= index) {
            return Err(wrong(NodeError::Order { input, index }));
        }
        let inputs: Vec<Shape> = node.inputs.iter().map(|&input| shapes[input]).collect();
        if (index == 0) != matches!(node.op, Op::Input(_)) {
            return Err(wrong(NodeError::Input));
        }
        let operation = node.op.operation();
        if inputs.len() != operation.inputs() {
            return Err(wrong(NodeError::Inputs { got: inputs.len(), expected: operation.inputs() }));
        }
        let shape = operation.output_shape(&inputs).map_err(wrong)?;
        let size = shape.features.checked_mul(shape.height).and_then(|s| s.checked_mul(shape.width));
        if size.is_none_or(|size| size == 0 || size > MAX_RESULT) {
            return Err(wrong(NodeError::Result(shape)));
        }
        shapes.push(shape);
    }
    if shapes.is_empty() {
        return Err(Error::Node { node: String::new(), what: NodeError::Empty });
    }
    // The engine and `fold` rely on it: what computes last is the output.
    let read: BTreeSet<usize> = nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
    if let Some(index) = (0..shapes.len() - 1).find(|index| !read.contains(index)) {
        return Err(Error::Node { node: nodes[index].name.clone(), what: NodeError::Unread });
    }
    Ok(shapes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CondensedWeight, Weight, Window, ops};

    const IMAGE: Shape = Shape { features: 2, height: 4, width: 4 };

    fn window(kernel: usize) -> Window {
        Window { kernel: [kernel; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] }
    }

    fn conv(window: Window, groups: usize) -> Op {
        let fan_in = IMAGE.features / groups * window.kernel[0] * window.kernel[1];
        Op::Conv2d(ops::Conv2d {
            weight: Weight::Dense(vec![1.0; 6 * fan_in]),
            bias: vec![0.0; 6],
            window,
            groups,
        })
    }

    /// The shape that `op` makes of one image, or what is wrong with it.
    fn shape(op: Op) -> Result<[usize; 3], String> {
        shapes(vec![(Op::Input(ops::Input(IMAGE)), vec![]), (op, vec![0])])
    }

    fn shapes(nodes: Vec<(Op, Vec<usize>)>) -> Result<[usize; 3], String> {
        let node = |(i, (op, inputs)): (usize, _)| Node { name: format!("n{i}"), op, inputs };
        let network = Network::new(nodes.into_iter().enumerate().map(node).collect());
        let Shape { features, height, width } = network.map_err(|e| e.to_string())?.output_shape();
        Ok([features, height, width])
    }

    #[test]
    fn shapes_follow_operations() {
        let vector = |n: usize| vec![1.0; n];
        for (op, expected) in [
            (Op::Linear(ops::Linear { weight: Weight::Dense(vector(6)), bias: vector(3) }), [3, 4, 4]),
            (conv(window(3), 1), [6, 2, 2]),
            (conv(Window { padding: [1, 0], stride: [2, 1], ..window(3) }, 2), [6, 2, 2]),
            (conv(Window { padding: [1; 2], dilation: [2; 2], ..window(2) }, 1), [6, 4, 4]),
            (Op::Affine(ops::Affine { scale: vector(2), shift: vector(2) }), [2, 4, 4]),
            (Op::Relu, [2, 4, 4]),
            (Op::Gelu, [2, 4, 4]),
            (Op::HardSwish, [2, 4, 4]),
            (Op::MaxPool(ops::MaxPool(Window { padding: [1; 2], stride: [2; 2], ..window(3) })), [2, 2, 2]),
            // One tap never misses the image; of two the second lies in its last row.
            (Op::MaxPool(ops::MaxPool(Window { dilation: [9; 2], ..window(1) })), [2, 4, 4]),
            (Op::MaxPool(ops::MaxPool(Window { padding: [1; 2], dilation: [4; 2], ..window(2) })), [2, 2, 2]),
            (Op::GlobalAvgPool, [2, 1, 1]),
            (Op::ClassToken, [2, 1, 1]),
            (Op::Flatten, [32, 1, 1]),
            (Op::LayerNorm(ops::LayerNorm { scale: vector(2), shift: vector(2), epsilon: 0.0 }), [2, 4, 4]),
            (Op::Tokens(ops::Tokens { class: vector(2), positions: vector(34) }), [2, 1, 17]),
        ] {
            assert_eq!(shape(op.clone()), Ok(expected), "{op:?}");
        }
        let tokens = (Op::Input(ops::Input(Shape { features: 12, height: 1, width: 5 })), vec![]);
        assert_eq!(
            shapes(vec![tokens.clone(), (Op::Attention(ops::Attention { heads: 2 }), vec![0])]),
            Ok([4, 1, 5])
        );
        assert_eq!(shapes(vec![tokens.clone(), (Op::Add, vec![0, 0])]), Ok([12, 1, 5]));
        assert_eq!(shapes(vec![tokens]), Ok([12, 1, 5]));
    }

    /// The convolution gathers nine taps of two features at four positions, and results that have been read are gone.
    #[test]
    fn memory_is_that_of_the_node_where_it_is_most() {
        let needs = |batch: usize, relus: usize| {
            let mut nodes =
                vec![Node::new("input", ops::Input(IMAGE), []), Node::new("conv", conv(window(3), 1), [0])];
            nodes.extend((0..relus).map(|i| Node::new(format!("relu{i}"), Op::Relu, [1 + i])));
            let network = Network::new(nodes).unwrap();
            let needs = network.needs(batch);
            (needs.all, needs.most.0.to_string(), needs.most.1)
        };
        let (input, result, gathered) = (2 * 16, 6 * 4, 18 * 4u64);
        let expected = |batch: u64| {
            (batch * 4 * (input + result + gathered), "conv".to_string(), batch * 4 * (result + gathered))
        };
        for relus in [0, 1, 20] {
            assert_eq!(needs(1, relus), expected(1));
            assert_eq!(needs(5, relus), expected(5));
        }
        assert_eq!(needs(usize::MAX, 0), (u64::MAX, "conv".to_string(), u64::MAX));
        // Without anything to gather: two results at a time.
        let nodes = vec![Node::new("input", ops::Input(IMAGE), []), Node::new("relu", Op::Relu, [0])];
        let needs = Network::new(nodes).unwrap();
        let needs = needs.needs(1);
        assert_eq!((needs.all, needs.most), (2 * 128, ("relu", 128)));
    }

    #[test]
    fn parameters_must_fit() {
        let huge = usize::MAX / 2;
        let sparse = |n, m| Weight::Condensed(CondensedWeight::from_masked(&[], &[], n, m).unwrap());
        let linear = |weight, n: usize| Op::Linear(ops::Linear { weight, bias: vec![0.0; n] });
        let empty_conv = |kernel, groups| {
            Op::Conv2d(ops::Conv2d {
                weight: sparse(0, 2),
                bias: vec![],
                window: Window { kernel, ..window(1) },
                groups,
            })
        };
        let norm =
            |epsilon| Op::LayerNorm(ops::LayerNorm { scale: vec![1.0; 2], shift: vec![0.0; 2], epsilon });
        let infinite =
            Op::Linear(ops::Linear { weight: Weight::Dense(vec![0.0; 2]), bias: vec![f32::INFINITY] });
        for (op, expected) in [
            (linear(Weight::Dense(vec![0.0; 5]), 3), "weight has 5 numbers instead of 6"),
            (linear(Weight::Dense(vec![f32::NAN; 6]), 3), "weight has the value NaN"),
            (linear(sparse(0, 2), 3), "weight [0, 2] for 3 neurons of dense fan-in 2"),
            (linear(sparse(0, 2), 0), "is empty or too large"),
            (infinite, "bias has the value inf"),
            (conv(window(5), 1), "does not fit images of 4 × 4"),
            (conv(window(0), 1), "does not fit"),
            (conv(Window { stride: [0, 1], ..window(3) }, 1), "does not fit"),
            (conv(Window { dilation: [1, 0], ..window(3) }, 1), "does not fit"),
            (conv(Window { dilation: [huge; 2], ..window(3) }, 1), "a number of 2^24 or more"),
            (conv(Window { padding: [huge; 2], ..window(3) }, 1), "a number of 2^24 or more"),
            (conv(Window { padding: [1 << 22; 2], stride: [1 << 23; 2], ..window(1) }, 1), "less padding"),
            (empty_conv([1 << 11; 2], 1), "more than 1048576"),
            (empty_conv([1; 2], 0), "0 groups do not divide"),
            (empty_conv([1; 2], 3), "3 groups do not divide"),
            (
                Op::Affine(ops::Affine { scale: vec![1.0; 2], shift: vec![0.0] }),
                "shift has 1 numbers instead of 2",
            ),
            (Op::MaxPool(ops::MaxPool(Window { padding: [3; 2], ..window(3) })), "in the padding alone"),
            // Taps at -1 and 4 of an image with rows 0 to 3.
            (
                Op::MaxPool(ops::MaxPool(Window { padding: [1; 2], dilation: [5; 2], ..window(2) })),
                "in the padding alone",
            ),
            (norm(-1.0), "epsilon is -1"),
            (norm(f32::NAN), "epsilon is NaN"),
            (
                Op::Tokens(ops::Tokens { class: vec![0.0; 2], positions: vec![0.0; 32] }),
                "has 32 numbers instead of 34",
            ),
            (Op::Attention(ops::Attention { heads: 1 }), "2 features are not queries"),
            (Op::Add, "reads 1 results instead of 2"),
            (Op::Scale, "reads 1 results instead of 2"),
        ] {
            let error = shape(op.clone()).expect_err(expected);
            assert!(error.contains(expected) && error.contains("`n1`"), "{op:?}: {error}");
        }
        let six = Op::Input(ops::Input(Shape { features: 6, height: 1, width: 5 }));
        let error = shapes(vec![(six, vec![]), (Op::Attention(ops::Attention { heads: 6 }), vec![0])]);
        assert!(error.unwrap_err().contains("6 features are not queries"), "two features of six heads");
        // The scores of attention are tokens squared.
        let tokens = Op::Input(ops::Input(Shape { features: 3, height: 1, width: 1 << 20 }));
        let error = shapes(vec![(tokens, vec![]), (Op::Attention(ops::Attention { heads: 1 }), vec![0])])
            .unwrap_err();
        assert!(error.contains("between 1048576 tokens is too large"), "{error}");
    }

    #[test]
    fn nodes_must_fit() {
        let input =
            |features, height, width| (Op::Input(ops::Input(Shape { features, height, width })), vec![]);
        let small = || input(2, 4, 4);
        for (nodes, expected) in [
            (vec![], "at least one node"),
            (vec![(Op::Relu, vec![])], "the first node, and no other"),
            (vec![input(0, 1, 1)], "empty or too large"),
            (vec![input(1 << 20, 1 << 20, 1 << 30)], "empty or too large"),
            (vec![input(1 << 16, 1 << 16, 1)], "empty or too large"),
            (vec![small(), small()], "the first node, and no other"),
            (vec![small(), (Op::Relu, vec![1])], "node 1, which does not come before it"),
            (vec![small(), (Op::Relu, vec![2]), (Op::Relu, vec![1])], "node 2, which does not come before"),
            (vec![small(), (Op::Relu, vec![usize::MAX])], "which does not come before it"),
            (vec![small(), (Op::Relu, vec![0, 0])], "reads 2 results instead of 1"),
            (vec![small(), (Op::Flatten, vec![0]), (Op::Add, vec![0, 1])], "it adds"),
            (vec![small(), (Op::Relu, vec![0]), (Op::Scale, vec![0, 1])], "it scales"),
            (vec![small(), (Op::Relu, vec![0]), (Op::Gelu, vec![0])], "layer `n1`: nobody reads its result"),
        ] {
            let error = shapes(nodes).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        let node = |name: &str, op, inputs| Node { name: name.into(), op, inputs };
        for name in ["", "x"] {
            let nodes = vec![node("x", Op::Input(ops::Input(IMAGE)), vec![]), node(name, Op::Relu, vec![0])];
            let error = Network::new(nodes).unwrap_err().to_string();
            assert!(error.contains("a name of its own"), "{error}");
        }
    }
}
