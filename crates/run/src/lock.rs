//! A run folder has one writer.

use crate::file::LOCK;
use crate::{Error, printable};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// How often a file that its holder removes is opened anew.
const TRIES: usize = 100;

/// The right to write into a run folder, until it is dropped or the process ends in whatever way. Where the file system
/// knows no locks, everybody gets it.
#[derive(Debug)]
#[must_use = "the folder is free again when this is dropped"]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Files and folders to remove if the run never takes a step: see [`abandon`](Self::abandon).
    made: [Vec<PathBuf>; 2],
}

impl Lock {
    /// Takes the folder, which must exist.
    pub(crate) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(LOCK);
        for _ in 0..TRIES {
            let failed = |cause| Error::Write { path: path.clone(), cause };
            let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = open.map_err(failed)?;
            if !is_had(file.try_lock()).map_err(failed)? {
                let mut holder = String::new();
                // What cannot be read is not told.
                _ = file.take(200).read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".into() } else { printable(&holder) };
                return Err(Error::Locked { path: folder.to_path_buf(), holder });
            }
            // The holder before may have removed the file between opening and locking it: then somebody else can lock
            // the next one.
            if !is_at(&file, &path) {
                continue;
            }
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(whoami().as_bytes())
            };
            // Made first: it takes the file away again if that cannot be written.
            let mut lock = Self { file, path: path.clone(), made: Default::default() };
            write(&mut lock.file).map_err(failed)?;
            return Ok(lock);
        }
        let cause = io::Error::other("it is replaced again and again");
        Err(Error::Write { path, cause })
    }

    /// Has [`abandon`](Self::abandon) remove these files and, afterwards, folders.
    pub(crate) fn abandons(&mut self, files: Vec<PathBuf>, folders: Vec<PathBuf>) {
        self.made = [files, folders];
    }

    /// Gives the folder back as it was before [`RunFolder::create`](crate::RunFolder::create) made or filled it, so that a
    /// start that is refused leaves nothing behind. A run that had begun before stays as it is.
    pub fn abandon(mut self) {
        let [files, folders] = std::mem::take(&mut self.made);
        // While it is locked: whoever comes next finds no run.
        files.iter().for_each(|file| _ = fs::remove_file(file));
        drop(self);
        // If they are empty; nobody else's go.
        folders.iter().for_each(|folder| _ = fs::remove_dir(folder));
    }

    /// Whether [`RunFolder::create`](crate::RunFolder::create) has begun a new run.
    pub fn is_of_new_run(&self) -> bool {
        !self.made[0].is_empty()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked: whoever has opened it meanwhile finds another file in its place and tries again.
        // Somebody may have removed it, and another made a new one.
        if cfg!(unix) && is_at(&self.file, &self.path) {
            _ = fs::remove_file(&self.path);
        }
        _ = self.file.unlock();
    }
}

/// Whether the file is the one of that name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, there) = (file.metadata().map(id), fs::metadata(path).map(id));
    ours.is_ok_and(|ours| there.is_ok_and(|there| ours == there))
}

/// Elsewhere the file is never removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Whether the lock is had, by what came of trying; false if somebody else has it.
fn is_had(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(cause)) if has_no_locks(&cause) => Ok(true),
        Err(TryLockError::Error(cause)) => Err(cause),
    }
}

/// Whether a file system says that it cannot lock, as network file systems may.
fn has_no_locks(cause: &io::Error) -> bool {
    // ENOLCK, which std does not name.
    cause.kind() == io::ErrorKind::Unsupported
        || (cfg!(target_os = "linux") && cause.raw_os_error() == Some(37))
}

/// This process, for people.
fn whoami() -> String {
    let process = format!("process {}", std::process::id());
    match fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(host) => format!("{process} on {}", host.trim()),
        Err(_) => process,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        let Err(Error::Locked { holder, .. }) = Lock::take(folder.path()) else { panic!("taken twice") };
        assert!(holder.starts_with(&format!("process {}", std::process::id())), "{holder}");
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(Lock::take(folder.path()).unwrap());
    }

    #[test]
    fn what_a_killed_process_has_left_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        fs::write(&path, "process 1 on a machine of long ago").unwrap();
        drop(Lock::take(folder.path()).unwrap());
        // Whoever holds it writes what they like.
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        fs::write(&path, "process \u{1b}[2J").unwrap();
        let Err(error) = Lock::take(folder.path()) else { panic!("taken twice") };
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn everybody_gets_it_where_there_are_no_locks() {
        let failed = |cause| is_had(Err(TryLockError::Error(cause)));
        assert!(failed(io::ErrorKind::Unsupported.into()).unwrap());
        assert_eq!(failed(io::Error::from_raw_os_error(37)).is_ok(), cfg!(target_os = "linux"), "ENOLCK");
        assert!(failed(io::Error::from_raw_os_error(5)).is_err(), "EIO");
        assert!(!is_had(Err(TryLockError::WouldBlock)).unwrap() && is_had(Ok(())).unwrap());
    }

    #[test]
    #[cfg(unix)]
    fn somebody_elses_lock_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let lock = Lock::take(folder.path()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_has_been_replaced_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let file = File::create(&path).unwrap();
        assert!(is_at(&file, &path));
        // The old file is open, so the new one cannot get its number.
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, &path));
        File::create(&path).unwrap();
        assert!(!is_at(&file, &path));
    }
}
