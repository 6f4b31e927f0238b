//! [`srigl_tensors::atomic`] with errors that name the file.

use crate::{Error, RunFolder};
use srigl_tensors::atomic;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is complete and on the disk, but does not have its name yet. Dropped, it disappears.
#[derive(Debug)]
pub struct Staged {
    file: atomic::Staged,
    path: PathBuf,
}

/// Has `write` fill a file that will be called `path`.
///
/// # Errors
/// [`Error::Write`] as [`atomic::stage`]; [`Error::OfRun`] if it is a file of a run, which only the run replaces.
pub fn stage(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Staged, Error> {
    if RunFolder::owns(path) || atomic::target(path).is_ok_and(|path| RunFolder::owns(&path)) {
        return Err(Error::OfRun { path: path.to_path_buf() });
    }
    stage_any(path, write)
}

/// The same for any file, also of a run.
pub(crate) fn stage_any(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Staged, Error> {
    let path = path.to_path_buf();
    match atomic::stage(&path, write) {
        Ok(file) => Ok(Staged { file, path }),
        Err(cause) => Err(Error::Write { path, cause }),
    }
}

impl Staged {
    /// Gives it its name; what had the name before is replaced at once.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be renamed.
    pub fn commit(self) -> Result<(), Error> {
        let Self { file, path } = self;
        file.commit().map_err(|cause| Error::Write { path, cause })
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`stage`] and [`Staged::commit`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    stage(path, |file| file.write_all(bytes))?.commit()
}
