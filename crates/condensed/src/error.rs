//! What can be wrong.

/// Why a condensed layer, network or file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A weight matrix breaks a promise of [`CondensedWeight`](crate::CondensedWeight).
    #[error("condensed weight: {0}")]
    Weight(String),
    /// A node of a network does not fit its inputs or its own parameters.
    #[error("layer `{node}`: {what}")]
    Node {
        /// Name of the node.
        node: String,
        /// What does not fit.
        what: String,
    },
    /// A file is not a condensed network.
    #[error("{0}")]
    File(String),
    /// A tensor that an architecture needs is missing or has another shape.
    #[error("tensor `{name}`: {what}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// An input does not have the network's shape.
    #[error("input: {0}")]
    Input(String),
}
