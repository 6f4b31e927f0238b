//! A network as a list of operations, each on the results of earlier ones.

use crate::{CondensedWeight, Error};
use std::collections::BTreeSet;

/// Shape of one sample between two operations: `features` planes of `height × width` positions.
/// A vector has one position, and tokens `[features, tokens]` have height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Channels of an image, width of a vector or of each token.
    pub features: usize,
    /// Rows of each plane.
    pub height: usize,
    /// Columns of each plane, or tokens.
    pub width: usize,
}

/// A network: `nodes[0]` is the input, the last node the output, every node reads earlier ones, and every node
/// but the last is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Operations in the order in which they run.
    pub nodes: Vec<Node>,
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

/// What a node computes, on one sample `[features, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The sample given to the network.
    Input(Shape),
    /// A linear layer over the features, at each position on its own.
    Linear {
        /// Weights `[out features, in features]`.
        weight: Weight,
        /// Bias `[out features]`.
        bias: Vec<f32>,
    },
    /// A two-dimensional convolution, as in PyTorch.
    Conv2d {
        /// Weights `[out channels, in channels / groups · kh · kw]`.
        weight: Weight,
        /// Bias `[out channels]`.
        bias: Vec<f32>,
        /// Window.
        window: Window,
        /// Groups of channels that do not mix.
        groups: usize,
    },
    /// Batch normalisation in evaluation mode: `features · scale + shift` per channel, with scale
    /// `γ / √(variance + ε)` and shift `β − mean · scale`. Folded into a convolution before it where possible.
    Affine {
        /// `[features]`
        scale: Vec<f32>,
        /// `[features]`
        shift: Vec<f32>,
    },
    /// `max(x, 0)`.
    Relu,
    /// `x · Φ(x)`, exact (by the error function).
    Gelu,
    /// `x/6 + 1/2`, within 0 and 1.
    HardSigmoid,
    /// `x` times its hard sigmoid.
    HardSwish,
    /// Sum of two results of one shape.
    Add,
    /// The first result, `[features, h, w]`, each plane times its number in the second, `[features, 1, 1]`.
    Scale,
    /// Maximum over each window; padding never wins.
    MaxPool(Window),
    /// Mean over all positions: `[features, h, w]` → `[features, 1, 1]`.
    GlobalAvgPool,
    /// All features and positions as one vector, `[features · h · w, 1, 1]`.
    Flatten,
    /// Normalisation over the features of each position.
    LayerNorm {
        /// `[features]`
        scale: Vec<f32>,
        /// `[features]`
        shift: Vec<f32>,
        /// Added to the variance.
        epsilon: f32,
    },
    /// Positions as tokens after one class token, plus position embeddings:
    /// `[features, h, w]` → `[features, 1, h · w + 1]`.
    Tokens {
        /// Class token `[features]`.
        class: Vec<f32>,
        /// Position embeddings `[h · w + 1, features]`.
        positions: Vec<f32>,
    },
    /// Multi-head self-attention between a joint input projection and the output projection:
    /// `[3 · d, 1, tokens]` (queries, keys, values) → `[d, 1, tokens]`.
    Attention {
        /// Heads; each has `d / heads` features.
        heads: usize,
    },
    /// The first position: `[features, h, w]` → `[features, 1, 1]`.
    ClassToken,
}

/// The weights of a linear layer or a convolution.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// All of them, row-major `[N, M]`.
    Dense(Vec<f32>),
    /// The active ones.
    Condensed(CondensedWeight),
}

/// Sliding window of a convolution or pooling, `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Zeros around the image, on both sides.
    pub padding: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
}

/// Most numbers that one result, or what a layer makes of its input, may have.
const MAX_RESULT: usize = 1 << 28;

/// Most taps of a window.
const MAX_TAPS: usize = 1 << 20;

impl Network {
    /// Checks everything about the network and returns the shape of each node's result.
    ///
    /// # Errors
    /// [`Error::Node`] for the first node that does not fit: an input that is not an earlier node, a
    /// parameter of another size than its input asks for or not finite, a window larger than the image, a
    /// result that nobody reads.
    pub fn shapes(&self) -> Result<Vec<Shape>, Error> {
        let mut shapes: Vec<Shape> = Vec::new();
        let mut names = BTreeSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let wrong = |what: String| Error::Node { node: node.name.clone(), what };
            if node.name.is_empty() || !names.insert(&node.name) {
                return Err(wrong("every node needs a name of its own".into()));
            }
            if let Some(input) = node.inputs.iter().find(|&&input| input >= index) {
                return Err(wrong(format!("it reads node {input}, which does not come before it ({index})")));
            }
            let inputs: Vec<Shape> = node.inputs.iter().map(|&input| shapes[input]).collect();
            if (index == 0) != matches!(node.op, Op::Input(_)) {
                return Err(wrong("the first node, and no other, is the input".into()));
            }
            let shape = node.op.output_shape(&inputs).map_err(wrong)?;
            let size = shape.features.checked_mul(shape.height).and_then(|s| s.checked_mul(shape.width));
            if size.is_none_or(|size| size == 0 || size > MAX_RESULT) {
                return Err(wrong(format!("a result of shape {shape:?} is empty or too large")));
            }
            shapes.push(shape);
        }
        if shapes.is_empty() {
            return Err(Error::Node { node: String::new(), what: "a network has at least one node".into() });
        }
        // The engine and `fold` rely on it: what computes last is the output.
        let read: BTreeSet<usize> = self.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        if let Some(index) = (0..shapes.len() - 1).find(|index| !read.contains(index)) {
            let what = "nobody reads its result; remove it, or make it the last".into();
            return Err(Error::Node { node: self.nodes[index].name.clone(), what });
        }
        Ok(shapes)
    }
}

impl Op {
    /// The shape of the result, or what does not fit.
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let expected = match self {
            Self::Input(_) => 0,
            Self::Add | Self::Scale => 2,
            _ => 1,
        };
        if inputs.len() != expected {
            return Err(format!("it reads {} results instead of {expected}", inputs.len()));
        }
        if let Self::Input(shape) = self {
            return Ok(*shape);
        }
        let input = inputs[0];
        let vector = |features| Shape { features, height: 1, width: 1 };
        Ok(match self {
            Self::Input(shape) => *shape,
            Self::Linear { weight, bias } => {
                check_weight(weight, bias, input.features)?;
                Shape { features: bias.len(), ..input }
            }
            Self::Conv2d { weight, bias, window, groups } => {
                let (groups, neurons) = (*groups, bias.len());
                if groups == 0 || !input.features.is_multiple_of(groups) || !neurons.is_multiple_of(groups) {
                    return Err(format!(
                        "{groups} groups do not divide {} and {neurons} channels",
                        input.features
                    ));
                }
                let (taps, [height, width]) = check_window(window, input)?;
                let fan_in = taps.checked_mul(input.features / groups).ok_or("kernel too large")?;
                check_weight(weight, bias, fan_in)?;
                Shape { features: neurons, height, width }
            }
            Self::Affine { scale, shift } => {
                check_floats("scale", scale, input.features)?;
                check_floats("shift", shift, input.features)?;
                input
            }
            Self::Relu | Self::Gelu | Self::HardSigmoid | Self::HardSwish => input,
            Self::Add => {
                if inputs[1] != input {
                    return Err(format!("it adds {input:?} and {:?}", inputs[1]));
                }
                input
            }
            Self::Scale => {
                if inputs[1] != vector(input.features) {
                    return Err(format!("it scales {input:?} by {:?}", inputs[1]));
                }
                input
            }
            Self::MaxPool(window) => {
                let (_, [height, width]) = check_window(window, input)?;
                // Else some window has no tap in the image: it lies beside it, or steps over it.
                let size = [input.height, input.width];
                let misses = |axis: usize| {
                    let (padding, dilation) = (window.padding[axis], window.dilation[axis]);
                    padding >= window.kernel[axis] || padding > 0 && dilation > size[axis]
                };
                if misses(0) || misses(1) {
                    return Err("a window may lie in the padding alone; use less padding".into());
                }
                Shape { height, width, ..input }
            }
            Self::GlobalAvgPool | Self::ClassToken => vector(input.features),
            Self::Flatten => vector(input.len()),
            Self::LayerNorm { scale, shift, epsilon } => {
                check_floats("scale", scale, input.features)?;
                check_floats("shift", shift, input.features)?;
                if !(epsilon.is_finite() && *epsilon >= 0.0) {
                    return Err(format!("epsilon is {epsilon}"));
                }
                input
            }
            Self::Tokens { class, positions } => {
                let tokens = input.positions() + 1;
                check_floats("class token", class, input.features)?;
                check_floats("position embeddings", positions, tokens * input.features)?;
                Shape { features: input.features, height: 1, width: tokens }
            }
            Self::Attention { heads } => {
                if !input.features.is_multiple_of(3)
                    || *heads == 0
                    || !(input.features / 3).is_multiple_of(*heads)
                {
                    return Err(format!(
                        "{} features are not queries, keys and values of {heads} heads",
                        input.features
                    ));
                }
                // Scores `[heads, tokens, tokens]`.
                let tokens = input.positions();
                let scores = tokens.checked_mul(tokens).and_then(|size| size.checked_mul(*heads));
                if scores.is_none_or(|size| size > MAX_RESULT) {
                    return Err(format!("attention of {heads} heads between {tokens} tokens is too large"));
                }
                Shape { features: input.features / 3, ..input }
            }
        })
    }
}

/// Taps of the window, and height and width of the result.
fn check_window(window: &Window, input: Shape) -> Result<(usize, [usize; 2]), String> {
    let Window { kernel, stride, padding, dilation } = *window;
    if [kernel, stride, padding, dilation].as_flattened().iter().any(|&number| number >= 1 << 24) {
        return Err(format!("a number of 2^24 or more in the window {window:?}"));
    }
    let taps = kernel[0] * kernel[1];
    if taps > MAX_TAPS {
        return Err(format!("a kernel of {taps} taps is more than {MAX_TAPS}"));
    }
    let size = window.output_size(input).map_err(|e| e.to_string())?;
    let padded = (input.height + 2 * padding[0]) * (input.width + 2 * padding[1]);
    if padded.checked_mul(input.features).is_none_or(|size| size > MAX_RESULT) {
        return Err("its padded input would be too large; use less padding".into());
    }
    Ok((taps, size))
}

fn check_floats(what: &str, values: &[f32], count: usize) -> Result<(), String> {
    if values.len() != count {
        return Err(format!("{what} has {} numbers instead of {count}", values.len()));
    }
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => Err(format!("{what} has the value {value}")),
        None => Ok(()),
    }
}

fn check_weight(weight: &Weight, bias: &[f32], fan_in: usize) -> Result<(), String> {
    check_floats("bias", bias, bias.len())?;
    match weight {
        Weight::Dense(values) => {
            let count = bias.len().checked_mul(fan_in).ok_or("too many weights")?;
            check_floats("weight", values, count)
        }
        Weight::Condensed(weight) if (weight.neurons(), weight.inputs()) != (bias.len(), fan_in) => {
            Err(format!(
                "weight [{}, {}] for {} neurons of dense fan-in {fan_in}",
                weight.neurons(),
                weight.inputs(),
                bias.len()
            ))
        }
        Weight::Condensed(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: Shape = Shape { features: 2, height: 4, width: 4 };

    fn window(kernel: usize) -> Window {
        Window { kernel: [kernel; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] }
    }

    fn conv(window: Window, groups: usize) -> Op {
        let fan_in = IMAGE.features / groups * window.kernel[0] * window.kernel[1];
        Op::Conv2d { weight: Weight::Dense(vec![1.0; 6 * fan_in]), bias: vec![0.0; 6], window, groups }
    }

    /// The shape that `op` makes of one image, or what is wrong with it.
    fn shape(op: Op) -> Result<[usize; 3], String> {
        shapes(vec![(Op::Input(IMAGE), vec![]), (op, vec![0])])
    }

    fn shapes(nodes: Vec<(Op, Vec<usize>)>) -> Result<[usize; 3], String> {
        let node = |(i, (op, inputs)): (usize, _)| Node { name: format!("n{i}"), op, inputs };
        let network = Network { nodes: nodes.into_iter().enumerate().map(node).collect() };
        let shapes = network.shapes().map_err(|e| e.to_string())?;
        let Shape { features, height, width } = *shapes.last().expect("a node");
        Ok([features, height, width])
    }

    #[test]
    fn shapes_follow_operations() {
        let vector = |n: usize| vec![1.0; n];
        for (op, expected) in [
            (Op::Linear { weight: Weight::Dense(vector(6)), bias: vector(3) }, [3, 4, 4]),
            (conv(window(3), 1), [6, 2, 2]),
            (conv(Window { padding: [1, 0], stride: [2, 1], ..window(3) }, 2), [6, 2, 2]),
            (conv(Window { padding: [1; 2], dilation: [2; 2], ..window(2) }, 1), [6, 4, 4]),
            (Op::Affine { scale: vector(2), shift: vector(2) }, [2, 4, 4]),
            (Op::Relu, [2, 4, 4]),
            (Op::Gelu, [2, 4, 4]),
            (Op::HardSwish, [2, 4, 4]),
            (Op::MaxPool(Window { padding: [1; 2], stride: [2; 2], ..window(3) }), [2, 2, 2]),
            (Op::GlobalAvgPool, [2, 1, 1]),
            (Op::ClassToken, [2, 1, 1]),
            (Op::Flatten, [32, 1, 1]),
            (Op::LayerNorm { scale: vector(2), shift: vector(2), epsilon: 0.0 }, [2, 4, 4]),
            (Op::Tokens { class: vector(2), positions: vector(34) }, [2, 1, 17]),
        ] {
            assert_eq!(shape(op.clone()), Ok(expected), "{op:?}");
        }
        let tokens = (Op::Input(Shape { features: 12, height: 1, width: 5 }), vec![]);
        assert_eq!(shapes(vec![tokens.clone(), (Op::Attention { heads: 2 }, vec![0])]), Ok([4, 1, 5]));
        assert_eq!(shapes(vec![tokens.clone(), (Op::Add, vec![0, 0])]), Ok([12, 1, 5]));
        assert_eq!(shapes(vec![tokens]), Ok([12, 1, 5]));
    }

    #[test]
    fn parameters_must_fit() {
        let huge = usize::MAX / 2;
        let sparse = |n, m| Weight::Condensed(CondensedWeight::from_masked(&[], &[], n, m).unwrap());
        let linear = |weight, n: usize| Op::Linear { weight, bias: vec![0.0; n] };
        let empty_conv = |kernel, groups| Op::Conv2d {
            weight: sparse(0, 2),
            bias: vec![],
            window: Window { kernel, ..window(1) },
            groups,
        };
        let norm = |epsilon| Op::LayerNorm { scale: vec![1.0; 2], shift: vec![0.0; 2], epsilon };
        let infinite = Op::Linear { weight: Weight::Dense(vec![0.0; 2]), bias: vec![f32::INFINITY] };
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
            (conv(Window { padding: [1 << 22; 2], stride: [1 << 23; 2], ..window(1) }, 1), "padded input"),
            (empty_conv([1 << 11; 2], 1), "more than 1048576"),
            (empty_conv([1; 2], 0), "0 groups do not divide"),
            (empty_conv([1; 2], 3), "3 groups do not divide"),
            (Op::Affine { scale: vec![1.0; 2], shift: vec![0.0] }, "shift has 1 numbers instead of 2"),
            (Op::MaxPool(Window { padding: [3; 2], ..window(3) }), "in the padding alone"),
            // Taps at -1 and 4 of an image with rows 0 to 3.
            (Op::MaxPool(Window { padding: [1; 2], dilation: [5; 2], ..window(2) }), "in the padding alone"),
            (norm(-1.0), "epsilon is -1"),
            (norm(f32::NAN), "epsilon is NaN"),
            (Op::Tokens { class: vec![0.0; 2], positions: vec![0.0; 32] }, "has 32 numbers instead of 34"),
            (Op::Attention { heads: 1 }, "2 features are not queries"),
            (Op::Add, "reads 1 results instead of 2"),
            (Op::Scale, "reads 1 results instead of 2"),
        ] {
            let error = shape(op.clone()).expect_err(expected);
            assert!(error.contains(expected) && error.contains("`n1`"), "{op:?}: {error}");
        }
        // The scores of attention are tokens squared.
        let tokens = Op::Input(Shape { features: 3, height: 1, width: 1 << 20 });
        let error = shapes(vec![(tokens, vec![]), (Op::Attention { heads: 1 }, vec![0])]).unwrap_err();
        assert!(error.contains("between 1048576 tokens is too large"), "{error}");
    }

    #[test]
    fn nodes_must_fit() {
        let input = |features, height, width| (Op::Input(Shape { features, height, width }), vec![]);
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
            let nodes = vec![node("x", Op::Input(IMAGE), vec![]), node(name, Op::Relu, vec![0])];
            let error = Network { nodes }.shapes().unwrap_err().to_string();
            assert!(error.contains("a name of its own"), "{error}");
        }
    }
}
