/// Why a report was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No run folder was given.
    #[error("there is no run to report: name at least one folder of `srigl train --out`")]
    NoRuns,
    /// A file of a run cannot be read, or the page not be written.
    #[error(transparent)]
    Run(#[from] srigl_run::Error),
}
