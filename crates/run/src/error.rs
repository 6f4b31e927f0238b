use srigl_tensors::memory::TooLarge;
use srigl_tensors::printable;
use std::io;
use std::path::{Path, PathBuf};

/// A path without characters that steer a terminal.
fn shown(path: &Path) -> String {
    printable(&path.display())
}

/// Why a file of a run was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a run cannot be read.
    #[error("cannot read {}: {cause}; is this a run folder of `srigl train`?", shown(path))]
    Run {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file of a run does not hold what it should.
    #[error("{}: {what}; restore the file or train the run again", shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A line of a log of a run does not hold what it should.
    #[error("{}, line {line}: {what}; restore the file or train the run again", shown(path))]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Any other file cannot be read.
    #[error("cannot read `{}`: {cause}", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {cause}", shown(path))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is no safetensors file, or a tensor in it is not what it should be.
    #[error("`{}`: {what}", shown(path))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of `torch.save` cannot be used.
    #[error("`{}` is a PyTorch file that cannot be used: {what}", shown(path))]
    PyTorch {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// A file is no safetensors file.
    #[error("`{}` is not a safetensors file, or a damaged one: {what}", shown(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is no memory for a file.
    #[error("`{}`: {cause}; raise --max-memory", shown(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it would take.
        cause: TooLarge,
    },
    /// A file belongs to a run, which would be damaged if something else took its place.
    #[error("`{}` belongs to the run in its folder: choose another name or folder", shown(path))]
    OfRun {
        /// The file.
        path: PathBuf,
    },
    /// A file of a run that it can make again is gone or damaged.
    #[error("{}: {what}; `srigl train … --resume` makes it again", shown(path))]
    Remade {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of a run is gone that it cannot make again.
    #[error("{} is gone: only to train the run again would make it", shown(path))]
    Lost {
        /// The file.
        path: PathBuf,
    },
    /// A run has not come to its last epoch.
    #[error("{} is not finished: finish it with `srigl train … --resume`", shown(path))]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds a run already.
    #[error("{} holds a run already: add --resume to continue it, or choose another --out", shown(path))]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes into the folder.
    #[error("{} is being written by {holder}: wait until it ends, or choose another --out", shown(path))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Who that is.
        holder: String,
    },
    /// The folder holds something else.
    #[error("{} exists and is not a run folder: choose another --out", shown(path))]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// A run is to go on with other images, or from other weights.
    #[error("{} {what}: provide the same as before, or choose another --out", shown(path))]
    OtherInputs {
        /// The folder.
        path: PathBuf,
        /// What is other, in a sentence of which the folder is the subject.
        what: String,
    },
    /// A run is to go on with other settings.
    #[error(
        "{} was trained with another --{key}: resume with the same settings, or choose another --out",
        shown(path)
    )]
    OtherSettings {
        /// The folder.
        path: PathBuf,
        /// The first setting that differs, as a flag without its dashes.
        key: String,
    },
}
