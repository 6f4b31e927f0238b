//! Operations: one file each, and one list of them.
//!
//! A file says all that is to be known of its operation: the shape of its result, its form in a file, what folding may do
//! with it, how the engine runs it, and what it costs. To add one, write a file and a line in the list below.

mod add;
mod affine;
mod attention;
mod class_token;
mod conv2d;
mod flatten;
mod gelu;
mod global_avg_pool;
mod hard_sigmoid;
mod hard_swish;
mod input;
mod layer_norm;
mod linear;
mod max_pool;
mod relu;
mod scale;
mod tokens;
mod weights;

use crate::buffer::Room;
use crate::engine::{Call, Place, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape, Weight};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// What an operation costs for one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Multiplications by weights. Activations, normalisations and pooling count as nothing.
    pub multiplications: u64,
    /// Bytes of weights, indices and other parameters.
    pub bytes: u64,
}

/// What is to be known of an operation.
pub(crate) trait Operation: Debug {
    /// How many results it reads.
    fn inputs(&self) -> usize {
        1
    }

    /// The shape of its result, or what does not fit. There are [`inputs`](Self::inputs) inputs.
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError>;

    /// For a sample of shape `input` and a result of shape `output`.
    fn cost(&self, input: Shape, output: Shape) -> Cost {
        let _ = (input, output);
        Cost::default()
    }

    /// Its place in the engine.
    fn plan(&self, planning: &Planning) -> Result<Box<dyn Run>, Error>;

    /// Bytes that it takes at most when it is planned, beside the network's own. Measured before anything is allocated;
    /// `u64::MAX` stands for more than a number holds.
    fn packed(&self, input: Shape) -> u64 {
        self.cost(input, input).bytes
    }

    /// Numbers that a device other than the engine may make of one sample on the way to a result of shape `output`.
    fn gathered(&self, input: Shape, output: Shape) -> u64 {
        let _ = (input, output);
        0
    }

    /// Whether a sample takes less time in a batch, since weights serve several at once.
    fn gains_from_batch(&self, input: Shape) -> bool {
        let _ = input;
        false
    }

    /// Whether its result may take the place of its input in memory, and starts as a copy of it otherwise.
    fn in_place(&self) -> bool {
        false
    }

    /// The layer with weights that it is; such layers also add a second result and cut off below zero in the engine.
    fn layer(&self) -> Option<Layer<'_>> {
        None
    }

    /// The same, to be changed.
    fn layer_mut(&mut self) -> Option<LayerMut<'_>> {
        None
    }

    /// Scale and shift of each feature, if that is all it does.
    fn scale_and_shift(&self) -> Option<(&[f32], &[f32])> {
        None
    }

    /// What it makes of features that are constant: `(neuron, value)` for each feature. Their number may change.
    /// `positions` are those of its input.
    fn pass_constants(&self, features: &mut Vec<(usize, Option<f32>)>, positions: usize) -> Passing {
        let _ = (features, positions);
        Passing::Stops
    }

    /// Drops the parameters of features that do not stay, if it has some. There may be several features to each of
    /// `kept`.
    fn keep_features(&mut self, kept: &[bool]) {
        let _ = kept;
    }
}

/// An operation's form in a file: attributes in the header, and tensors.
pub(crate) trait Stored: Sized {
    /// What the header says beside its name.
    type Attributes: Serialize + DeserializeOwned;

    /// Hands over the tensors and returns the attributes.
    fn write(&self, node: &mut NodeWriter) -> Self::Attributes;

    /// The operation, with its tensors taken from the file.
    fn read(attributes: Self::Attributes, node: &mut NodeTensors) -> Result<Self, Error>;
}

/// The effect of an operation on constant features.
pub(crate) enum Passing {
    /// They are constant behind it, too.
    Through,
    /// It multiplies each by weights of its own.
    Ends,
    /// They must not be removed.
    Stops,
}

/// An operation as the engine runs it.
pub(crate) trait Run: Debug + Send + Sync {
    /// Computes the result of a batch. The scratch memory has [`room`](Self::room).
    fn run(&self, call: Call);

    /// The scratch memory that a batch takes.
    fn room(&self, from: Place, to: Place, batch: usize) -> Room {
        let _ = (from, to, batch);
        Room::default()
    }

    /// Bytes of the parameters as the kernels read them.
    fn bytes(&self) -> usize {
        0
    }
}

/// A layer with weights.
pub(crate) struct Layer<'a> {
    pub weight: &'a Weight,
    pub bias: &'a [f32],
    /// Whether zeros lie around its input.
    pub padded: bool,
    /// Whether all of its neurons read all features.
    pub whole: bool,
}

/// The same, to be changed.
pub(crate) struct LayerMut<'a> {
    pub weight: &'a mut Weight,
    pub bias: &'a mut Vec<f32>,
}

/// Makes [`Op`] and what depends on the operation.
macro_rules! operations {
    (
        without_numbers { $($(#[$unit_doc:meta])* $unit:ident),* $(,)? }
        without_attributes { $($(#[$plain_doc:meta])* $plain:ident),* $(,)? }
        with_attributes { $($(#[$with_doc:meta])* $with:ident),* $(,)? }
    ) => {
        /// What a node computes, on one sample `[features, height, width]`.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$unit_doc])* $unit,)*
            $($(#[$plain_doc])* $plain($plain),)*
            $($(#[$with_doc])* $with($with),)*
        }

        impl Op {
            pub(crate) fn operation(&self) -> &dyn Operation {
                match self {
                    $(Self::$unit => &$unit,)*
                    $(Self::$plain(op) => op,)*
                    $(Self::$with(op) => op,)*
                }
            }

            /// `None` for an operation without numbers.
            pub(crate) fn operation_mut(&mut self) -> Option<&mut dyn Operation> {
                match self {
                    $(Self::$unit => None,)*
                    $(Self::$plain(op) => Some(op),)*
                    $(Self::$with(op) => Some(op),)*
                }
            }

            /// Its record in a file's header; its tensors go to `node`.
            pub(crate) fn write(&self, node: &mut NodeWriter) -> OpRecord {
                match self {
                    $(Self::$unit => OpRecord::$unit,)*
                    $(Self::$plain(op) => { op.write(node); OpRecord::$plain })*
                    $(Self::$with(op) => OpRecord::$with(op.write(node)),)*
                }
            }
        }

        /// An operation as in the header of a file.
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "snake_case")]
        pub(crate) enum OpRecord {
            $($unit,)*
            $($plain,)*
            $($with(<$with as Stored>::Attributes),)*
        }

        impl OpRecord {
            /// The operation, with its tensors taken from the file.
            pub fn read(self, node: &mut NodeTensors) -> Result<Op, Error> {
                Ok(match self {
                    $(Self::$unit => Op::$unit,)*
                    $(Self::$plain => Op::$plain($plain::read((), node)?),)*
                    $(Self::$with(attributes) => Op::$with($with::read(attributes, node)?),)*
                })
            }
        }

        $(impl From<$plain> for Op {
            fn from(op: $plain) -> Self {
                Self::$plain(op)
            }
        })*
        $(impl From<$with> for Op {
            fn from(op: $with) -> Self {
                Self::$with(op)
            }
        })*
    };
}

use add::Add;
pub use affine::Affine;
pub use attention::Attention;
use class_token::ClassToken;
pub use conv2d::Conv2d;
use flatten::Flatten;
use gelu::Gelu;
use global_avg_pool::GlobalAvgPool;
use hard_sigmoid::HardSigmoid;
use hard_swish::HardSwish;
pub use input::Input;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use max_pool::MaxPool;
use relu::Relu;
use scale::Scale;
pub use tokens::Tokens;

operations! {
    without_numbers {
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
        /// Mean over all positions: `[features, h, w]` → `[features, 1, 1]`.
        GlobalAvgPool,
        /// All features and positions as one vector, `[features · h · w, 1, 1]`.
        Flatten,
        /// The first position: `[features, h, w]` → `[features, 1, 1]`.
        ClassToken,
    }
    without_attributes {
        /// Batch normalisation in evaluation mode.
        Affine,
        /// Positions as tokens, after one class token.
        Tokens,
    }
    with_attributes {
        /// The sample given to the network.
        Input,
        /// A linear layer.
        Linear,
        /// A two-dimensional convolution.
        Conv2d,
        /// Maximum over each window.
        MaxPool,
        /// Normalisation over the features of each position.
        LayerNorm,
        /// Multi-head self-attention.
        Attention,
    }
}

/// A shape of one position.
fn vector(features: usize) -> Shape {
    Shape { features, height: 1, width: 1 }
}

/// Checks that there are `count` numbers and all are finite.
fn check_floats(what: &'static str, values: &[f32], count: usize) -> Result<(), NodeError> {
    if values.len() != count {
        return Err(NodeError::Count { what, got: values.len(), expected: count });
    }
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(NodeError::NotFinite { what, value }),
        None => Ok(()),
    }
}

/// The elements at the places that stay.
pub(crate) fn keep(values: &[f32], kept: impl Fn(usize) -> bool) -> Vec<f32> {
    values.iter().enumerate().filter(|&(i, _)| kept(i)).map(|(_, &v)| v).collect()
}

/// Implements an activation: pointwise, of any shape, by a function on slices.
macro_rules! activation {
    ($name:ident, $function:path) => {
        use super::{Operation, Passing, Run};
        use crate::engine::{Call, Planning};
        use crate::{Error, NodeError, Shape};

        #[derive(Debug)]
        pub(crate) struct $name;

        impl Operation for $name {
            fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
                Ok(inputs[0])
            }

            fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
                Ok(Box::new(Self))
            }

            fn in_place(&self) -> bool {
                true
            }

            fn pass_constants(&self, features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
                let constants = features.iter_mut().filter_map(|(_, constant)| constant.as_mut());
                constants.for_each(|constant| $function(std::slice::from_mut(constant)));
                Passing::Through
            }
        }

        impl Run for $name {
            fn run(&self, call: Call) {
                let total = call.batch * call.to.sample();
                crate::math::in_parallel(&mut call.out[..total], $function);
            }
        }
    };
}
pub(crate) use activation;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CondensedWeight, Engine, Network, Node, Op, Weight, Window, ops, tuning};

    /// Multiplications and bytes, of a sample of six features on 3 × 4 positions.
    #[test]
    fn weights_and_scores_cost() {
        let input = Shape { features: 6, height: 3, width: 4 };
        let cost = |op: Op| {
            let output = op.operation().output_shape(&[input]).unwrap();
            let Cost { multiplications, bytes } = op.operation().cost(input, output);
            assert!(bytes <= op.operation().packed(input), "{op:?}");
            (multiplications, bytes)
        };
        let dense = || Weight::Dense(vec![1.0; 12]);
        let sparse = || {
            let mask: Vec<bool> = (0..12).map(|i| [0, 3, 7, 10].contains(&i)).collect();
            Weight::Condensed(CondensedWeight::from_masked(&[1.0; 12], &mask, 2, 6).unwrap())
        };
        let window = Window { kernel: [1, 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let conv = |weight: Weight| Op::from(ops::Conv2d { weight, bias: vec![0.0; 2], window, groups: 2 });
        let linear = |weight: Weight| Op::from(ops::Linear { weight, bias: vec![0.0; 2] });
        // Twelve positions; values, and two biases.
        assert_eq!(cost(linear(dense())), (12 * 12, 4 * (12 + 2)));
        // Four values and indices, two active neurons.
        assert_eq!(cost(linear(sparse())), (4 * 12, 4 * 4 + 4 + 2 * 4 + 2 * 4));
        // Nine positions.
        assert_eq!(cost(conv(dense())), (12 * 9, 4 * (12 + 2)));
        assert_eq!(cost(conv(sparse())), (4 * 9, 4 * 4 + 4 + 2 * 4 + 2 * 4));
        // Two features of twelve tokens, with keys and with values.
        assert_eq!(cost(ops::Attention { heads: 2 }.into()), (2 * 12 * 12 * 2, 0));
        assert_eq!(cost(ops::Affine { scale: vec![1.0; 6], shift: vec![0.0; 6] }.into()), (0, 48));
        assert_eq!(
            cost(ops::LayerNorm { scale: vec![1.0; 6], shift: vec![0.0; 6], epsilon: 0.0 }.into()),
            (0, 48)
        );
        assert_eq!(cost(ops::Tokens { class: vec![0.0; 6], positions: vec![0.0; 78] }.into()), (0, 4 * 84));
        // As a matrix, or one by one, with what is known of neurons and taps.
        let packed = |op: Op, features: usize| op.operation().packed(Shape { features, ..input });
        assert_eq!(packed(linear(dense()), 6), 12 * 4 + 2 * 96);
        assert_eq!(packed(linear(sparse()), 6), 4 * 48 + 2 * 96);
        assert_eq!(packed(conv(dense()), 6), 12 * 48 + 2 * 96 + 2 * 64);
        let whole = |features: usize| {
            let weight = Weight::Dense(vec![1.0; 2 * 2 * features]);
            Op::from(ops::Conv2d { weight, bias: vec![0.0; 2], window, groups: 1 })
        };
        let few = tuning::GEMM - 1;
        assert_eq!(packed(whole(16), tuning::GEMM), 4 * 16 * 4 + 2 * 96 + 2 * 64);
        assert_eq!(packed(whole(few), few), 4 * few as u64 * 48 + 2 * 96 + 2 * 64);
        for op in
            [Op::Relu, Op::Gelu, Op::GlobalAvgPool, Op::Flatten, Op::ClassToken, ops::MaxPool(window).into()]
        {
            assert_eq!((cost(op.clone()), op.operation().packed(input)), ((0, 0), 0), "{op:?}");
        }
    }

    /// Operations and what the engine makes of them are described by their sizes.
    #[test]
    fn numbers_are_not_printed() {
        let image = Shape { features: 2, height: 3, width: 3 };
        let both = |op: Op, input: Shape| {
            let planning = Planning { input, isa: crate::Isa::Portable, threads: 1 };
            format!("{op:?} {:?}", op.operation().plan(&planning).unwrap())
        };
        let linear = |input: Shape| {
            let weight = Weight::Dense(vec![1.0; 6]);
            both(ops::Linear { weight, bias: vec![0.0; 3] }.into(), input)
        };
        let window = Window { kernel: [1, 1], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let conv = ops::Conv2d { weight: Weight::Dense(vec![1.0; 6]), bias: vec![0.0; 3], window, groups: 1 };
        let vectors = || vec![1.5; 2];
        for (text, expected) in [
            (linear(image), ["features: 3", "PlaneLayer { neurons: 3, bytes: 36 }"]),
            (linear(Shape { height: 1, width: 1, ..image }), ["features: 3", "DenseVector { features: 3 }"]),
            (both(conv.into(), image), ["channels: 3", "PlaneLayer { neurons: 3, bytes: "]),
            (
                both(ops::Affine { scale: vectors(), shift: vectors() }.into(), image),
                ["Affine { features: 2 }"; 2],
            ),
            (
                both(ops::LayerNorm { scale: vectors(), shift: vectors(), epsilon: 0.0 }.into(), image),
                ["LayerNorm { features: 2"; 2],
            ),
            (
                both(ops::Tokens { class: vectors(), positions: vec![0.0; 20] }.into(), image),
                ["Tokens { features: 2, tokens: 10 }", "Embeddings { tokens: 10 }"],
            ),
        ] {
            assert!(expected.iter().all(|expected| text.contains(expected)), "{text}");
        }
    }

    #[test]
    fn parameters_take_bytes_in_the_engine() {
        let bytes_for = |features: usize, side: usize, op: Op| {
            let input = ops::Input(Shape { features, height: side, width: side });
            let nodes = vec![Node::new("input", input, []), Node::new("op", op, [0])];
            Engine::new(&Network::new(nodes).unwrap()).unwrap().bytes()
        };
        let bytes = |op: Op| bytes_for(3, 3, op);
        assert_eq!(bytes(Op::Relu), 0);
        let weight =
            CondensedWeight::from_masked(&[1.0; 6], &[true, false, true, false, true, true], 2, 3).unwrap();
        let stored = weight.bytes();
        let vectors = ops::Linear { weight: Weight::Condensed(weight), bias: vec![0.0; 2] };
        assert_eq!(bytes_for(3, 1, vectors.into()), stored + 4 * 2);
        // Of all positions; a product of matrices for each tap; and of weights one by one.
        let dense = |count: usize| Weight::Dense(vec![1.0; count]);
        assert_eq!(bytes(ops::Linear { weight: dense(9), bias: vec![0.0; 3] }.into()), 4 * (9 + 3));
        let window = Window { kernel: [2, 1], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        let conv = |features: usize| {
            let conv = ops::Conv2d { weight: dense(3 * 2 * features), bias: vec![0.0; 3], window, groups: 1 };
            bytes_for(features, 3, conv.into())
        };
        assert_eq!(conv(tuning::GEMM), 4 * (6 * tuning::GEMM + 3));
        assert!(conv(tuning::GEMM - 1) > 4 * (6 * (tuning::GEMM - 1) + 3));
        assert_eq!(bytes(ops::Affine { scale: vec![2.0; 3], shift: vec![1.0; 3] }.into()), 24);
        assert_eq!(
            bytes(ops::LayerNorm { scale: vec![2.0; 3], shift: vec![1.0; 3], epsilon: 0.0 }.into()),
            24
        );
        // The class is added to its position.
        assert_eq!(bytes(ops::Tokens { class: vec![0.0; 3], positions: vec![0.0; 30] }.into()), 4 * 30);
    }
}
