//! Run folders of `srigl train` as one self-contained HTML page, and in [`xmc`] those of `srigl xmc train`.
//!
//! [`read`] takes what a training has logged, [`page`] draws it, [`write()`] puts it in a file. The page loads
//! nothing: its figures are SVG and PNG drawn here, and a dozen lines of script move the sliders.
//!
//! ```no_run
//! let runs = srigl_report::read(&["runs/rigl".into(), "runs/srigl".into()])?;
//! srigl_report::write(&runs, "report.html".as_ref())?;
//! # Ok::<(), srigl_report::Error>(())
//! ```
//!
//! [`chart`] also draws the figures of `cargo xtask reproduce`.
//!
//! Nothing in a run folder is trusted: numbers out of range are left out of the figures or refused, and text is
//! escaped.

pub mod chart;
mod comparison;
mod curves;
mod error;
mod fan_in;
mod html;
mod layers;
mod masks;
mod page;
pub mod xmc;

pub use error::Error;
pub use page::page;
use srigl_run::{Run, atomic};
use std::path::{Path, PathBuf};

/// Reads run folders; one that is named twice is read once.
///
/// # Errors
/// If there is none, or one is not a run folder.
pub fn read(folders: &[PathBuf]) -> Result<Vec<Run>, Error> {
    let mut seen = Vec::new();
    let mut runs = Vec::new();
    for folder in folders {
        let path = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        if !seen.contains(&path) {
            runs.push(Run::read(folder)?);
            seen.push(path);
        }
    }
    if runs.is_empty() { Err(Error::NoRuns) } else { Ok(runs) }
}

/// Writes the page so that readers see the old or the new one, never half of it.
///
/// # Errors
/// If the file cannot be written; its folder must exist.
pub fn write(runs: &[Run], path: &Path) -> Result<(), Error> {
    Ok(atomic::write(path, page(runs).as_bytes())?)
}
