//! What can be wrong.

use crate::{Isa, Shape, Window};
use srigl_tensors::memory::{Size, TooLarge};
use srigl_tensors::printable;
use std::io;
use std::path::PathBuf;

/// Why a condensed layer, network or file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight matrix breaks a promise of [`CondensedWeight`](crate::CondensedWeight).
    #[error("condensed weight: {0}")]
    Weight(WeightError),
    /// A node of a network does not fit its inputs or its own parameters.
    #[error("layer `{}`: {what}", printable(node))]
    Node {
        /// Name of the node.
        node: String,
        /// What does not fit.
        what: NodeError,
    },
    /// A network would take more memory than the [budget](srigl_tensors::memory::limit).
    #[error("{what}; layer `{}` takes most, {}", printable(node), Size(*bytes))]
    Memory {
        /// What all nodes together would take, and the budget.
        what: TooLarge,
        /// Name of the node that would take most.
        node: String,
        /// What that node would take; `u64::MAX` may be more.
        bytes: u64,
    },
    /// What a layer that trains needs beside inputs and results would take more memory than the
    /// [budget](srigl_tensors::memory::limit).
    #[error("{0}; take a smaller batch")]
    TrainingMemory(TooLarge),
    /// The bytes are not a condensed network.
    #[error("{0}")]
    File(FileError),
    /// A tensor of a file is missing, or not what its layer needs.
    #[error("tensor `{}`: {what}", printable(name))]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        what: TensorError,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`: {cause}", printable(&path.display()))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {cause}", printable(&path.display()))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file does not hold what it should.
    #[error("`{}`: {error}{}", printable(&path.display()), fix(error))]
    In {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// An input or output of [`Engine::run`](crate::Engine::run) has another length than the batch.
    #[error("{what} has {got} numbers, not {batch} samples of {shape:?}")]
    Input {
        /// `input` or `output`.
        what: &'static str,
        /// Numbers found.
        got: usize,
        /// Samples asked for.
        batch: usize,
        /// Of one sample.
        shape: Shape,
    },
    /// The machine lacks an instruction set.
    #[error("this machine has no {0:?}")]
    Isa(Isa),
}

/// A network that does not fit together was not written by `save`. Other errors say what to do.
fn fix(error: &Error) -> &'static str {
    match error {
        Error::Node {
            what: NodeError::Padded(_) | NodeError::Gathered(_) | NodeError::Scores { .. },
            ..
        } => "",
        Error::Node { .. } => "; the file is damaged, write it again",
        _ => "",
    }
}

impl From<WeightError> for Error {
    fn from(error: WeightError) -> Self {
        Self::Weight(error)
    }
}

/// What is wrong with a weight matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum WeightError {
    #[error("a matrix [{neurons}, {inputs}] has more than 2^32 rows or columns")]
    TooLarge { neurons: usize, inputs: usize },
    #[error("{labels} labels of {inputs} features: there must be a label, and at most 65536 features")]
    Labels { labels: usize, inputs: usize },
    #[error("a fan-in drawn from {inputs} inputs; from at most {most} it can be")]
    Inputs { inputs: usize, most: usize },
    #[error("groups of {group} labels: from 1 to {most} may share inputs")]
    Group { group: usize, most: usize },
    #[error("{indices} indices for {values} values")]
    Indices { indices: usize, values: usize },
    #[error("active neurons must ascend, but {after} follows {before}")]
    ActiveOrder { before: u32, after: u32 },
    #[error("active neuron {neuron} of a matrix with {neurons} rows")]
    Active { neuron: u32, neurons: usize },
    #[error("an active neuron has fan-in 0")]
    FanInZero,
    #[error("fan-in {fan_in} of a matrix with {inputs} columns")]
    FanIn { fan_in: usize, inputs: usize },
    #[error("{values} values for {active} active neurons of fan-in {fan_in}")]
    Values { values: usize, active: usize, fan_in: usize },
    #[error("row pointers do not rise from 0 to the number of values")]
    Pointers,
    #[error("value {0}")]
    NotFinite(f32),
    #[error("input index {index} of a matrix with {inputs} columns")]
    Index { index: u32, inputs: usize },
    #[error("input indices of neuron {neuron} do not ascend")]
    IndexOrder { neuron: u32 },
    #[error("{weights} weights and {bits} mask bits for a matrix [{neurons}, {inputs}]")]
    Mask { weights: usize, bits: usize, neurons: usize, inputs: usize },
    #[error("mask [{}, {}] for weights [{neurons}, {inputs}]", mask[0], mask[1])]
    MaskShape { mask: [usize; 2], neurons: usize, inputs: usize },
    #[error("bias has {got} entries for {neurons} neurons")]
    Bias { got: usize, neurons: usize },
}

/// What does not fit at a node of a network.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum NodeError {
    #[error("this operation runs only in the engine for CPUs")]
    Unsupported,
    #[error("every node needs a name of its own")]
    Name,
    #[error("a name must have no control characters")]
    ControlCharacters,
    #[error("it reads node {input}, which does not come before it ({index})")]
    Order { input: usize, index: usize },
    #[error("the first node, and no other, is the input")]
    Input,
    #[error("it reads {got} results instead of {expected}")]
    Inputs { got: usize, expected: usize },
    #[error("a result of {0} is empty or too large")]
    Result(Shape),
    #[error("a network has at least one node")]
    Empty,
    #[error("nobody reads its result; remove it, or make it the last")]
    Unread,
    #[error("{what} has {got} numbers instead of {expected}")]
    Count { what: &'static str, got: usize, expected: usize },
    #[error("{what} has the value {value}")]
    NotFinite { what: &'static str, value: f32 },
    #[error("too many weights")]
    TooManyWeights,
    #[error("weight [{neurons}, {inputs}] for {expected} neurons of dense fan-in {fan_in}")]
    WeightShape { neurons: usize, inputs: usize, expected: usize, fan_in: usize },
    #[error("condensed weight: {0}")]
    Weight(#[from] WeightError),
    #[error("{groups} groups do not divide {inputs} and {outputs} channels")]
    Groups { groups: usize, inputs: usize, outputs: usize },
    #[error("{window} does not fit images of {height} × {width}")]
    Window { window: Window, height: usize, width: usize },
    #[error("a number of 2^24 or more in {window}")]
    WindowNumber { window: Window },
    #[error("a kernel of {taps} taps is more than {most}")]
    Taps { taps: usize, most: usize },
    #[error("its padded input is too large: {0}; use less padding")]
    Padded(TooLarge),
    #[error("its window gathers too much of one sample: {0}; use a smaller kernel")]
    Gathered(TooLarge),
    #[error("a window may lie in the padding alone; use less padding")]
    InPadding,
    #[error("it adds {first:?} and {second:?}")]
    Add { first: Shape, second: Shape },
    #[error("it scales {planes:?} by {factors:?}")]
    Scale { planes: Shape, factors: Shape },
    #[error("epsilon is {0}")]
    Epsilon(f32),
    #[error("{features} features are not queries, keys and values of {heads} heads")]
    Heads { features: usize, heads: usize },
    #[error("attention of {heads} heads between {tokens} tokens is too large: {what}")]
    Scores { heads: usize, tokens: usize, what: TooLarge },
}

/// What is wrong with the bytes of a file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum FileError {
    #[error("it is not a safetensors file, or a damaged one: {0}")]
    Damaged(String),
    #[error("{0}")]
    TooLarge(TooLarge),
    #[error("it is not a condensed network: its metadata has no `{key}`; make a condensed file of it first")]
    NoMetadata { key: &'static str },
    #[error("its format is {format:?}, not {expected:?}; make a condensed file first")]
    Format { format: String, expected: &'static str },
    #[error(
        "it has version {version:?} of the format, but only {known:?} is known; read it with the program that wrote \
         it, or update this one"
    )]
    Version { version: String, known: &'static str },
    #[error("its metadata has {key:?}, which version {version} does not know")]
    UnknownMetadata { key: String, version: &'static str },
    #[error("its list of layers is damaged: {0}; write it again")]
    Layers(String),
    #[error("cannot write its header: {0}")]
    Header(String),
}

/// What is wrong with a tensor of a file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum TensorError {
    #[error("it is missing; write the file again")]
    Missing,
    #[error("no layer has such a tensor; remove it, or write the file again")]
    Unknown,
    #[error("it is {got}, but must be {expected}")]
    Type { got: safetensors::Dtype, expected: safetensors::Dtype },
    #[error("it has shape {shape:?}, but must have {rank} dimensions")]
    Rank { shape: Vec<usize>, rank: usize },
    #[error("value {value} at position {at}; weights must be finite")]
    NotFinite { value: f32, at: usize },
    #[error("it has {got} rows, but the bias {bias}")]
    RowsOfBias { got: usize, bias: usize },
    #[error("it has shape {got:?}, but the values {values:?}")]
    OtherShape { got: Vec<usize>, values: Vec<usize> },
    #[error(
        "it has shape {got:?}, but values {values:?} in groups of {group} neurons have one row for each group"
    )]
    GroupShape { got: Vec<usize>, values: Vec<usize>, group: usize },
    #[error("groups of {group}, but {neurons} active neurons of constant fan-in")]
    Group { group: usize, neurons: usize },
    #[error("it has {got} rows for {neurons} neurons")]
    Rows { got: usize, neurons: usize },
    #[error("a fan-in of {got}, but only {inputs} inputs")]
    FanIn { got: usize, inputs: usize },
    #[error("it has {got} columns, but the class token {class}")]
    Columns { got: usize, class: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_nodes_do_not_fit_is_to_be_written_again() {
        let said = |what: NodeError| {
            let error = Box::new(Error::Node { node: "fc".into(), what });
            Error::In { path: "a".into(), error }.to_string()
        };
        assert_eq!(
            said(NodeError::Name),
            "`a`: layer `fc`: every node needs a name of its own; the file is damaged, write it again"
        );
        // Of which the text itself says what to do.
        let large = TooLarge { bytes: Some(2), limit: 1 };
        assert!(said(NodeError::Padded(large)).ends_with("use less padding"));
        let other = Error::In { path: "a".into(), error: Box::new(Error::Isa(Isa::Avx512)) };
        assert_eq!(other.to_string(), "`a`: this machine has no Avx512");
    }
}
