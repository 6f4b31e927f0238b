use srigl_tensors::memory::TooLarge;
use srigl_tensors::printable;
use std::io;
use std::path::PathBuf;

/// What is wrong with a data set or a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`: {cause}", printable(&path.display()))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A line of a data set is not what it should be.
    #[error("`{}`, line {line}: {what}", printable(&path.display()))]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1 on.
        line: u64,
        /// What is wrong.
        what: LineError,
    },
    /// Points are kept in a temporary file, which cannot be written or read.
    #[error("cannot keep the data set's points in a temporary file: {0}; TMPDIR names a folder for it")]
    Spool(io::Error),
    /// More memory than the [budget](srigl_tensors::memory::limit).
    #[error("{what}: {cause}")]
    Memory {
        /// What would take it.
        what: &'static str,
        /// How much.
        cause: TooLarge,
    },
    /// The output layer.
    #[error(transparent)]
    Layer(#[from] condensed::Error),
    /// Test points have other features or labels than the network.
    #[error("the points have {got} {what}, the network {expected}")]
    Sizes {
        /// `features` or `labels`.
        what: &'static str,
        /// Of the points.
        got: usize,
        /// Of the network.
        expected: usize,
    },
    /// Points have dense features and the network has not, or the other way round.
    #[error(
        "the network {} dense features and the points {}: these come from a safetensors file (--test-features, or --input of predict)",
        if *network { "has" } else { "does not have" },
        if *network { "do not" } else { "do" }
    )]
    Dense {
        /// Whether the network has.
        network: bool,
    },
    /// A file of tensors does not hold a network, a training or features.
    #[error("`{}`: {}", printable(&path.display()), printable(what))]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of a run.
    #[error(transparent)]
    Run(#[from] srigl_run::Error),
    /// Checkpoints of a run.
    #[error(transparent)]
    Checkpoint(#[from] Box<srigl_run::Damage<Error>>),
    /// A package index of which no data set can be made.
    #[error(
        "a package index of {0} packages with dependencies, of which fewer than two share words and dependencies with others"
    )]
    Packages(usize),
    /// A setting is out of range.
    #[error("{name} must be {allowed}, not {value}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// Logits are infinite or no numbers.
    #[error(
        "logits are not finite: the points' values or the network's weights are too large; a lower learning rate keeps these small"
    )]
    Logits,
    /// The loss is not a number any more.
    #[error("the loss is {loss} after {step} steps: training has diverged; take a lower learning rate")]
    Diverged {
        /// The loss.
        loss: f64,
        /// The step.
        step: u64,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum LineError {
    #[error(
        "the first line must say how many points, features and labels there are, such as `1000 5000 200`"
    )]
    Header,
    #[error("a data set without {0}")]
    Empty(&'static str),
    #[error("{0} are more than 2^32 - 1")]
    TooMany(&'static str),
    #[error("the file ends after {got} of {expected} points: it is cut short, or its first line is wrong")]
    Short { got: u64, expected: u64 },
    #[error("more than the {0} points that the first line says")]
    Long(u64),
    #[error("a point without labels")]
    NoLabels,
    #[error("`{}` is no label", printable(.0))]
    Label(String),
    #[error("label {label} of {labels}; they count from 0")]
    LabelRange { label: u64, labels: usize },
    #[error("`{}` is no feature and value, such as `17:0.5`", printable(.0))]
    Feature(String),
    #[error("feature {feature} of {features}; they count from 0")]
    FeatureRange { feature: u64, features: usize },
    #[error("feature {feature} has the value {value}")]
    NotFinite { feature: u64, value: f32 },
    #[error("{features} features, but the file with dense ones has {columns}")]
    DenseFeatures { features: u64, columns: usize },
    #[error("a point with features, though there is a file with dense ones")]
    BothFeatures,
    #[error("longer than {} MiB", .0 >> 20)]
    Length(u64),
}
