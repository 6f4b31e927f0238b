//! A network as a list of operations, each on the results of earlier ones.

use crate::{CondensedWeight, Error};
use std::collections::BTreeSet;

/// Shape of one sample between two operations: `features` planes of `height × width` positions.
/// A vector has one position, and tokens `[features, tokens]` have height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Channels of an image, width of a vector or of each token.
    pub features: usize,
    /// Rows of each plane.
    pub height: usize,
    /// Columns of each plane, or tokens.
    pub width: usize,
}

/// A network: `nodes[0]` is the input, the last node the output, and every node reads earlier ones.
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
    /// Sum of two results of one shape.
    Add,
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

/// Most numbers that one result may have.
const MAX_RESULT: usize = 1 << 31;

impl Network {
    /// Checks everything about the network and returns the shape of each node's result.
    ///
    /// # Errors
    /// [`Error::Node`] for the first node that does not fit: an input that is not an earlier node, a
    /// parameter of another size than its input asks for or not finite, a window larger than the image.
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
        Ok(shapes)
    }
}

impl Op {
    /// The shape of the result, or what does not fit.
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let expected = match self {
            Self::Input(_) => 0,
            Self::Add => 2,
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
                let taps = window.kernel[0].checked_mul(window.kernel[1]);
                let fan_in =
                    taps.and_then(|t| t.checked_mul(input.features / groups)).ok_or("kernel too large")?;
                check_weight(weight, bias, fan_in)?;
                let [height, width] = window.output_size(input).map_err(|e| e.to_string())?;
                // Bounds the padded image as well.
                if input.features.checked_mul((height + 1) * (width + 1)).is_none_or(|size| size > MAX_RESULT)
                {
                    return Err("its padded input would be too large".into());
                }
                Shape { features: neurons, height, width }
            }
            Self::Affine { scale, shift } => {
                check_floats("scale", scale, input.features)?;
                check_floats("shift", shift, input.features)?;
                input
            }
            Self::Relu | Self::Gelu => input,
            Self::Add => {
                if inputs[1] != input {
                    return Err(format!("it adds {input:?} and {:?}", inputs[1]));
                }
                input
            }
            Self::MaxPool(window) => {
                if (0..2).any(|axis| window.padding[axis] >= window.kernel[axis]) {
                    return Err("a window may lie in the padding alone".into());
                }
                let [height, width] = window.output_size(input).map_err(|e| e.to_string())?;
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
                Shape { features: input.features / 3, ..input }
            }
        })
    }
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
