//! What can go wrong, each with the layer, the cause and the fix.

use crate::methods::{METHODS, Value};

/// Errors of this crate. A layer is named wherever one is to blame.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The global or layer sparsity is not in `[0, 1)`.
    #[error("sparsity {0:?} is outside [0, 1)")]
    Sparsity(f64),

    /// A weight tensor needs at least two dimensions, none of them zero.
    #[error("layer `{layer}`: shape {dims:?} is not a weight [out, in, …] with non-zero dimensions")]
    Shape {
        /// The layer.
        layer: String,
        /// Its dimensions.
        dims: Vec<usize>,
    },

    /// More positions than an index of 32 bits can name.
    #[error("layer `{layer}`: {positions} positions are more than the 2^32 − 1 supported")]
    TooLarge {
        /// The layer.
        layer: String,
        /// `N·M`.
        positions: usize,
    },

    /// Two inputs of one layer do not have the same size.
    #[error("layer `{layer}`: {what} has {got} values, but its mask has {expected} positions")]
    Length {
        /// The layer.
        layer: String,
        /// `weight` or `gradient`.
        what: &'static str,
        /// Positions of the mask, `N·M`.
        expected: usize,
        /// Values found.
        got: usize,
    },

    /// A method made a mask of another shape than its layer has.
    #[error("layer `{layer}`: method `{method}` made a mask {got:?} for weights {expected:?}")]
    MethodMask {
        /// The layer.
        layer: String,
        /// The method's name.
        method: &'static str,
        /// `[N, M]` of the layer.
        expected: [usize; 2],
        /// `[N, M]` of the mask.
        got: [usize; 2],
    },

    /// There is no dense gradient to update a layer by.
    #[error("layer `{layer}`: no gradient was gathered for this update")]
    NoGradient {
        /// The layer.
        layer: String,
    },

    /// A weight or gradient is NaN or infinite.
    #[error("layer `{layer}`: {what} is {value} at neuron {neuron}, input {input}; masks need finite values")]
    NotFinite {
        /// The layer.
        layer: String,
        /// `weight` or `gradient`.
        what: &'static str,
        /// The value.
        value: f32,
        /// Row.
        neuron: usize,
        /// Column.
        input: usize,
    },

    /// A mask byte is neither 0 nor 1.
    #[error("mask value {value} at position {position}: only 0 and 1 are allowed")]
    MaskValue {
        /// Flat index.
        position: usize,
        /// The byte.
        value: u8,
    },

    /// The number of mask bytes or words does not fit `[neurons, dense fan-in]`.
    #[error("a mask of {neurons} neurons with dense fan-in {dense_fan_in} does not have {got} entries")]
    MaskSize {
        /// Rows.
        neurons: usize,
        /// Columns.
        dense_fan_in: usize,
        /// Entries found.
        got: usize,
    },

    /// Active neurons differ in their number of active weights.
    #[error("not constant fan-in: neuron {neuron} has {got} active weights where others have {expected}")]
    NotConstantFanIn {
        /// The first neuron that differs.
        neuron: usize,
        /// Fan-in of the active neurons before it.
        expected: usize,
        /// Its own.
        got: usize,
    },

    /// Step 6: `⌊A / active neurons⌋ = 0`.
    #[error(
        "layer `{layer}`: fan-in would be 0 at sparsity {sparsity:.6} ({target} weights for {active} active \
         neurons); keep it dense or lower the sparsity"
    )]
    FanInZero {
        /// The layer.
        layer: String,
        /// Its sparsity.
        sparsity: f64,
        /// `A`.
        target: usize,
        /// Active neurons that would share them.
        active: usize,
    },

    /// A layer that none of the largest weights of all layers lies in.
    #[error(
        "none of the {target} largest of all layers lies in layer `{layer}`; keep it dense, lower the sparsity, or choose layer by layer"
    )]
    NoneOfLargest {
        /// The layer.
        layer: String,
        /// Weights that all layers together may have.
        target: usize,
    },

    /// Fewer weights than are to be kept have a gradient.
    #[error(
        "only {sensitive} weights have a product |W · ∂L/∂W| other than 0, and {target} are to be kept by it: no gradient comes through a layer \
         whose weights are 0, as some classifiers start; begin with trained weights, or choose others by magnitude"
    )]
    Insensitive {
        /// Weights with such a product.
        sensitive: usize,
        /// Weights to keep.
        target: usize,
    },

    /// The layers kept dense hold more weights than the global sparsity allows.
    #[error(
        "global sparsity {sparsity} cannot be reached: layers kept dense hold {dense} of {total} weights; \
         keep fewer layers dense or lower the sparsity"
    )]
    TooManyDense {
        /// Global sparsity.
        sparsity: f64,
        /// Weights in dense layers.
        dense: usize,
        /// All weights.
        total: usize,
    },

    /// A setting is out of its range.
    #[error("{name} is {value:?}, but must be {allowed}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range in words.
        allowed: &'static str,
    },

    /// A layer would have a sparsity of 1.
    #[error("layer `{layer}` would have no weights; lower the sparsity, or bring the ERK power nearer to 0")]
    NoWeights {
        /// The layer.
        layer: String,
    },

    /// An N:M pattern that is none.
    #[error("`{given}` is no N:M pattern; give two whole numbers such as 2:4, with 0 < N < M ≤ 65536")]
    Nm {
        /// What was given.
        given: String,
    },

    /// A method's masks cannot have a structure.
    #[error("method `{method}` cannot have {what}")]
    Structure {
        /// The method.
        method: &'static str,
        /// The structure.
        what: &'static str,
    },

    /// No method has this name.
    #[error("there is no method `{name}`; known are {}", names())]
    UnknownMethod {
        /// The name asked for.
        name: String,
    },

    /// A method does not have this setting, or the setting not this value.
    #[error("method `{method}` has no setting `{name}` = {}", word(value))]
    UnknownSetting {
        /// The method.
        method: &'static str,
        /// The setting.
        name: String,
        /// The value given.
        value: Value,
    },
}

fn names() -> String {
    METHODS.iter().map(|info| info.name).collect::<Vec<_>>().join(", ")
}

fn word(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Word(word) => word.clone(),
    }
}
