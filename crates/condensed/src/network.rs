//! A network as a list of operations, each on the results of earlier ones.

use crate::CondensedWeight;

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
