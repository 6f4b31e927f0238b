use std::io;
use std::path::PathBuf;

/// Why a file of a run was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a run cannot be read.
    #[error("cannot read {}: {cause}; is this a run folder of `srigl train`?", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file of a run does not hold what it should.
    #[error("{}: {what}; restore the file or train the run again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A line of a log of a run does not hold what it should.
    #[error("{}, line {line}: {what}; remove the line or train the run again", path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Any other file cannot be read.
    #[error("cannot read `{}`: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is no safetensors file, or a tensor in it is not what it should be.
    #[error("`{}`: {what}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of `torch.save` cannot be used.
    #[error("`{}` is a PyTorch file that cannot be used: {what}", path.display())]
    PyTorch {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A file is no safetensors file.
    #[error("`{}` is not a safetensors file, or a damaged one: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The folder holds a run already.
    #[error("{} holds a run already: add --resume to continue it, or choose another --out", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes into the folder.
    #[error("{} is being written by {holder}: wait until it ends, or choose another --out", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Who that is.
        holder: String,
    },
    /// The folder holds something else.
    #[error("{} exists and is not a run folder: choose another --out", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// A run is to go on with other settings.
    #[error(
        "{} was trained with another --{key}: resume with the same settings, or choose another --out",
        path.display()
    )]
    OtherSettings {
        /// The folder.
        path: PathBuf,
        /// The first setting that differs, as a flag without its dashes.
        key: String,
    },
}
