//! Files that are whole or absent, whatever happens while they are written.
//!
//! A file is written beside its name, synced to the disk, and renamed; then its folder is synced (by the crate
//! [`atomic_write_file`]), so that the name survives a power cut, too. This adds what may be replaced:
//!
//! - A device, a FIFO, a socket or a folder never is. To rename a file over `/dev/null` would succeed, and harm.
//! - A symbolic link stays, and the file that it leads to is replaced or made.
//!
//! ```
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("numbers");
//! srigl_tensors::atomic::write(&path, b"1 2 3")?;
//! assert_eq!(std::fs::read(&path)?, b"1 2 3");
//! assert!(srigl_tensors::atomic::write(folder.path(), b"1 2 3").is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

use atomic_write_file::AtomicWriteFile;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Links that are followed one after the other; as many as Linux follows.
const MOST_LINKS: usize = 40;

/// A file that is complete and on the disk, but does not have its name yet. Dropped, it disappears.
#[derive(Debug)]
pub struct Staged(AtomicWriteFile);

/// Has `write` fill a file that will be called `path`.
///
/// # Errors
/// If that fails, the folder is not there, or `path` is something else than a file or leads to it. Nothing is left
/// behind then. The error does not name `path`.
pub fn stage(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Staged> {
    let mut file = AtomicWriteFile::open(target(path)?)?;
    write(&mut file)?;
    file.sync_all()?;
    Ok(Staged(file))
}

impl Staged {
    /// Gives it its name; what had the name before is replaced at once.
    ///
    /// # Errors
    /// If it cannot be renamed, or the folder not be synced.
    pub fn commit(self) -> io::Result<()> {
        self.0.commit()
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`stage`] and [`Staged::commit`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    stage(path, |file| file.write_all(bytes))?.commit()
}

/// The file that [`stage`] would write for `path`: where its links lead to. It need not be there.
///
/// # Errors
/// If something else than a file is there, or no folder for it.
pub fn target(path: &Path) -> io::Result<PathBuf> {
    let path = end_of_links(path)?;
    let folder = folder(&path);
    if !folder.is_dir() {
        let name = crate::printable(&folder.display());
        return Err(io::Error::other(match folder.exists() {
            true => format!("`{name}` is not a folder"),
            false => format!("there is no folder `{name}`; make it first"),
        }));
    }
    Ok(path)
}

/// The file that `path` leads to.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..=MOST_LINKS {
        // What the system finds behind all links, since those of `/proc` do not say where they lead.
        if fs::metadata(&path).is_ok_and(|kind| !kind.is_file()) {
            return Err(io::Error::other("it is there already, and not a regular file"));
        }
        match fs::symlink_metadata(&path) {
            Ok(kind) if kind.is_symlink() => path = folder(&path).join(fs::read_link(&path)?),
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("it leads through too many symbolic links"))
}

/// The folder that `path` lies in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
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

    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_they_lead_to_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/file"), "old").unwrap();
        // Relative links are seen from their folder; the second leads to the first.
        symlink("file", at("below/first")).unwrap();
        symlink("below/first", at("second")).unwrap();
        // Nothing there yet.
        symlink(at("below/later"), at("dangling")).unwrap();
        for (link, file) in [("second", "below/file"), ("dangling", "below/later")] {
            write(&at(link), b"new").unwrap();
            assert!(at(link).is_symlink() && at("below/first").is_symlink());
            assert!(!at(file).is_symlink());
            assert_eq!(fs::read(at(file)).unwrap(), b"new");
        }

        symlink("/dev/null", at("device")).unwrap();
        symlink("below", at("folder")).unwrap();
        symlink("circle", at("circle")).unwrap();
        symlink("none/file", at("lost")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, expected) in [
            ("device", "not a regular file"),
            ("folder", "not a regular file"),
            ("socket", "not a regular file"),
            ("circle", "too many"),
            ("lost", "there is no folder"),
        ] {
            let error = write(&at(name), b"x").unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 8, "nothing is left behind");
    }
}
