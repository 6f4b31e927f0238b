//! Regular files and nothing else: a device may have no end, and to open a pipe would wait for somebody to write into it.

use crate::memory;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The file at `path`, opened, and its size in bytes.
///
/// # Errors
/// If it cannot be opened, or is something else than a regular file or a link to one.
pub fn open(path: &Path) -> io::Result<(File, u64)> {
    // Before it is opened.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// All its bytes. What is appended meanwhile stays out.
///
/// # Errors
/// As [`open`]; if it cannot be read, or takes more memory than the [budget](memory).
///
/// ```
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("numbers"), "1 2 3")?;
/// assert_eq!(srigl_tensors::regular::read(&folder.path().join("numbers"))?, b"1 2 3");
/// assert!(srigl_tensors::regular::read(folder.path()).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let (file, size) = open(path)?;
    let mut bytes = memory::with_capacity(size as usize).map_err(io::Error::other)?;
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes)
}
