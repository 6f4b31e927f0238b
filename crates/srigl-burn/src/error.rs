//! Errors of setting up sparse training.

/// Why a module cannot be sparsified as configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the method itself: sparsity out of range, a fan-in of 0, … with the layer's name.
    #[error(transparent)]
    Sparsity(#[from] sparsity_core::Error),

    /// The module has no linear or convolution weight that the patterns select.
    #[error(
        "no sparse layer: the module has no linear or convolution weight that include/exclude/keep_dense leave over"
    )]
    NoLayers,

    /// A pattern that is no glob.
    #[error("pattern `{pattern}` in {option}: {reason}")]
    Pattern {
        /// The option it was given in.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A pattern that selects no layer, most likely a typo.
    #[error("pattern `{pattern}` in {option} matches none of the layers {layers:?}")]
    UnusedPattern {
        /// The option it was given in.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// Names of all linear and convolution layers.
        layers: Vec<String>,
    },

    /// Masks are chosen by gradients, and a layer has none.
    #[error(
        "layer `{layer}` has no gradient to choose its weights by; give those of a first batch to `sparsify_by_gradients`"
    )]
    NoGradient {
        /// The layer.
        layer: String,
    },

    /// A method that starts dense has no update that would make the layers sparse.
    #[error(
        "method `{method}` starts dense, and there is no update every {delta_t} steps before step {end_step} that would prune; \
         train longer or update more often"
    )]
    NoUpdate {
        /// The method's name.
        method: &'static str,
        /// `ΔT`.
        delta_t: u64,
        /// `T_end`.
        end_step: u64,
    },

    /// A given mask cannot be used.
    #[error("layer `{layer}`: {what}")]
    GivenMask {
        /// The layer.
        layer: String,
        /// Why.
        what: String,
    },

    /// A model's record does not fit the model.
    #[error("the record does not fit the model: {0}")]
    ModelRecord(String),

    /// Burn left out a part of an optimizer's record, since it does not fit.
    #[error(
        "{lost} of {all} tensors of the optimizer's record fit nothing: it was saved for another model or optimizer"
    )]
    OptimizerRecordParts {
        /// Tensors left out.
        lost: usize,
        /// All tensors of the record.
        all: usize,
    },

    /// A model's weights are not 0 where the masks that come with them are.
    #[error(
        "layer `{layer}` has weights where its mask has none: the optimizer's record is missing, or of another moment than \
         the model's; load both of one checkpoint"
    )]
    OtherMask {
        /// The layer.
        layer: String,
    },

    /// An optimizer's record does not have a sparse layer's masks.
    #[error(
        "the optimizer's record has no masks that fit layer `{layer}`; it was saved for another model or optimizer"
    )]
    OptimizerRecord {
        /// The layer.
        layer: String,
    },
}
