//! Files that are whole or absent, whatever happens while they are written.
//!
//! The crate [`atomic_write_file`] does the work; this adds what may be replaced, and errors that name the file.

use crate::Error;
use atomic_write_file::AtomicWriteFile;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that is complete and on the disk, but does not have its name yet. Dropped, it disappears.
#[derive(Debug)]
pub struct Staged {
    file: AtomicWriteFile,
    path: PathBuf,
}

/// Has `write` fill a file that will be called `path`.
///
/// # Errors
/// [`Error::Write`] if that fails, the folder is not there, or `path` is something else than a file. Nothing is left
/// behind then.
pub fn stage(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Staged, Error> {
    let cannot = |cause| Error::Write { path: path.to_path_buf(), cause };
    // To rename a file over `/dev/null` would succeed, and harm.
    if fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
        return Err(cannot(io::Error::other("it is there already, and not a regular file")));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(cannot(io::Error::other(format!(
            "there is no folder `{}`; make it first",
            folder.display()
        ))));
    }
    let stage = || {
        let mut file = AtomicWriteFile::open(path)?;
        write(&mut file)?;
        file.sync_all()?;
        Ok(file)
    };
    stage().map_err(cannot).map(|file| Staged { file, path: path.to_path_buf() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_or_dropped_write_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"old").unwrap();
        assert!(stage(&path, |_| Err(io::Error::other("no"))).is_err());
        drop(stage(&path, |file| file.write_all(b"new")).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        stage(&path, |file| file.write_all(b"new")).unwrap().commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), b"x").unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = write(&folder.path().join("none/file"), b"x").unwrap_err().to_string();
        assert!(error.contains("there is no folder") && error.contains("make it first"), "{error}");
    }

    #[test]
    fn a_name_without_a_folder_is_in_the_present_one() {
        // Staged and dropped, it leaves nothing in this crate's folder.
        drop(stage(Path::new("never-committed"), |file| file.write_all(b"x")).unwrap());
    }
}
