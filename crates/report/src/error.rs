use std::path::PathBuf;

/// Why a report was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No run folder was given.
    #[error("there is no run to report: name at least one folder of `srigl train --out`")]
    NoRuns,
    /// A file of a run cannot be read.
    #[error("cannot read {path}: {source}; is this a run folder of `srigl train`?")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of a run does not hold what it should.
    #[error("{path}: {what}; restore the file or train the run again")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A line of a log of a run does not hold what it should.
    #[error("{path}, line {line}: {what}; remove the line or train the run again")]
    Line {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The page cannot be written.
    #[error("cannot write {path}: {source}; choose a folder that exists and is writable")]
    Write {
        /// The page.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
