//! Paths as they may be printed.

use srigl_tensors::printable;
use std::path::Path;

/// A path without characters that steer a terminal.
pub(crate) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}
