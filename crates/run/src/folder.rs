//! The run folder.

use crate::atomic::{self, Staged};
use crate::lines::{LOG_LINES, json, json_lines};
use crate::lock::Lock;
use crate::{Config, Epoch, Error, Inputs, RunResult, Store, TopologyLine, file, printable, read_file};
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong with the checkpoints of a run.
#[derive(Debug, thiserror::Error)]
pub enum Damage<E> {
    /// One cannot be read; it may be whole.
    #[error("{0}")]
    Unreadable(E),
    /// The last one is gone.
    #[error("{} is missing", file::CHECKPOINT)]
    Missing,
    /// The last one is damaged, but not the one before.
    #[error("{0}")]
    Last(E),
    /// There is but one.
    #[error("the only checkpoint of the run cannot be used: remove {name} to start again from the first step: {0}", name = file::CHECKPOINT)]
    Only(E),
    /// All are.
    #[error(
        "no checkpoint of the run can be used: remove {last} and {before} to start again from the first step: {0}",
        last = file::CHECKPOINT,
        before = file::PREVIOUS
    )]
    All(E),
}

/// A checkpoint, and what is wrong with the last one if it is the one before.
pub type Found<T, E> = (T, Option<Damage<E>>);

/// Folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A folder, whatever is in it.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// The folder of a new run, which [`create`](Self::create) makes, or of one to resume, with the settings to go on with:
    /// a run may have been extended since it was started.
    ///
    /// # Errors
    /// As [`settings`](Self::settings); [`Error::OtherSettings`] if a run to resume has other settings.
    pub fn open(path: &Path, config: &Config, resume: bool) -> Result<(Self, Config), Error> {
        let folder = Self { path: path.to_path_buf() };
        let Some(before) = folder.settings::<Config>(resume)? else { return Ok((folder, config.clone())) };
        let config = config.going_on_with(&before);
        folder.compare(config.differing_key(&before))?;
        Ok((folder, config))
    }

    /// The settings of the run that is to be resumed; `None` if there is none, and one can be made.
    ///
    /// # Errors
    /// [`Error::Exists`] if it holds a run that is not to be resumed, [`Error::File`] if that one's settings are damaged,
    /// [`Error::Foreign`] if it holds something else.
    pub fn settings<C: DeserializeOwned>(&self, resume: bool) -> Result<Option<C>, Error> {
        if self.has_run() {
            return if resume {
                self.read(file::CONFIG).map(Some)
            } else {
                Err(Error::Exists { path: self.path.clone() })
            };
        }
        if self.path.exists() && !(self.path.is_dir() && self.entries()?.iter().all(|entry| is_ours(entry))) {
            return Err(Error::Foreign { path: self.path.clone() });
        }
        Ok(None)
    }

    /// The folder of an existing run with its settings, which are checked as those of a new run.
    ///
    /// # Errors
    /// [`Error::Run`] if there is none, [`Error::File`] if its settings are damaged or out of range.
    pub fn existing(path: &Path) -> Result<(Self, Config), Error> {
        let folder = Self { path: path.to_path_buf() };
        if path.exists() && !path.is_dir() {
            return Err(Error::Run { path: folder.path, cause: io::Error::other("it is not a folder") });
        }
        let config: Config = folder.read(file::CONFIG)?;
        match config.validate() {
            Ok(()) => Ok((folder, config)),
            Err(what) => Err(Error::File { path: folder.file(file::CONFIG), what: what.to_string() }),
        }
    }

    /// What the run was started on; `None` if the file about that is gone, or the run of an earlier version.
    ///
    /// # Errors
    /// [`Error::File`] if it is damaged.
    pub fn inputs(&self) -> Result<Option<Inputs>, Error> {
        self.read_json(file::INPUTS)
    }

    /// Checks that a run that is to go on has the inputs it had, as far as that is known.
    ///
    /// # Errors
    /// [`Error::OtherInputs`] if not.
    pub fn check_inputs(&self, now: &Inputs, before: Option<&Inputs>) -> Result<(), Error> {
        match before.and_then(|before| now.differs(before)) {
            Some(what) => Err(Error::OtherInputs { path: self.path.clone(), what }),
            None => Ok(()),
        }
    }

    /// Writes down what a run was started on, if that is not there.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn keep_inputs(&self, _lock: &Lock, inputs: &Inputs) -> Result<(), Error> {
        match self.file(file::INPUTS).exists() {
            true => Ok(()),
            false => self.write_json(file::INPUTS, inputs),
        }
    }

    /// Whether a file is one that only the run in its folder replaces.
    pub(crate) fn owns(path: &Path) -> bool {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
        // Folders of other programs have a config.json, too.
        let is_run = || {
            folder.join(file::CONFIG).exists()
                && [file::INPUTS, file::METRICS, file::LOCK, file::CHECKPOINT]
                    .iter()
                    .any(|name| folder.join(name).exists())
        };
        let of_runs = file::WHOLE.iter().chain(&file::LOGS).chain(&[file::LOCK]);
        of_runs.into_iter().any(|of_run| name == *of_run) && is_run()
    }

    /// Makes the folder, takes it, and writes its `inputs.json` and `config.json`, once both are known to work. Nobody else
    /// can write into it until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes into it; [`Error::OtherSettings`] or [`Error::OtherInputs`] if one has
    /// started another run since [`open`](Self::open); [`Error::Write`] if writing fails. Nothing is left behind then.
    pub fn create(&self, config: &Config, inputs: &Inputs) -> Result<Lock, Error> {
        self.make(|| {
            if !self.has_run() {
                self.write_json(file::INPUTS, inputs)?;
                return self.write_json(file::CONFIG, config);
            }
            let before: Config = self.read(file::CONFIG)?;
            self.compare(config.differing_key(&before))?;
            self.check_inputs(inputs, self.inputs()?.as_ref())
        })
    }

    /// Makes the folder, takes it, and has `fill` write its settings or compare them with those that are there. Nobody else can
    /// write into it until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes into it, [`Error::Write`] if nothing can be written, and what `fill` says. Nothing
    /// is left behind then.
    pub fn make(&self, fill: impl FnOnce() -> Result<(), Error>) -> Result<Lock, Error> {
        let there = self.path.ancestors().find(|folder| folder.symlink_metadata().is_ok());
        if let Some(file) = there.filter(|there| !there.is_dir()) {
            let cause = io::Error::other(format!("`{}` is not a folder", printable(&file.display())));
            return Err(Error::Write { path: self.path.clone(), cause });
        }
        let missing =
            self.path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let folders: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        let taken = fs::create_dir_all(&self.path)
            .map_err(|cause| Error::Write { path: self.path.clone(), cause })
            .and_then(|()| Lock::take(&self.path));
        let mut lock = match taken {
            Ok(lock) => lock,
            Err(error) => {
                folders.iter().for_each(|folder| _ = fs::remove_dir(folder));
                return Err(error);
            }
        };
        if !self.has_run() {
            let files = [file::CONFIG, file::INPUTS].into_iter().chain(file::LOGS);
            lock.abandons(files.map(|name| self.file(name)).collect(), folders);
        }
        match self.clear().and_then(|()| fill()) {
            Ok(()) => Ok(lock),
            Err(error) => {
                lock.abandon();
                Err(error)
            }
        }
    }

    /// Removes what a killed process has left, and checks that all files of a run can be written: better now than after hours of
    /// training.
    fn clear(&self) -> Result<(), Error> {
        self.remove_temporary_files()?;
        for path in file::WHOLE.iter().chain(&file::LOGS).map(|name| self.file(name)) {
            srigl_tensors::atomic::target(&path).map_err(|cause| Error::Write { path, cause })?;
        }
        Ok(())
    }

    /// Writes a checkpoint; the last one becomes the one before. Whenever the process ends, one of the two is whole.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn save_checkpoint(
        &self,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let staged = self.stage(file::CHECKPOINT, write)?;
        self.rename_checkpoint(file::PREVIOUS)?;
        staged.commit()
    }

    /// Puts a last checkpoint that is damaged aside, so that it never takes the place of the one before.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn put_checkpoint_aside(&self) -> Result<(), Error> {
        self.rename_checkpoint(file::DAMAGED)
    }

    /// Gives the last checkpoint, if there is one, another name.
    fn rename_checkpoint(&self, name: &str) -> Result<(), Error> {
        let (last, other) = (self.file(file::CHECKPOINT), self.file(name));
        let failed = |cause| Error::Write { path: other.clone(), cause };
        if !last.exists() {
            return Ok(());
        }
        if last.is_symlink() || other.is_symlink() {
            // Links stay, and with them where people want their checkpoints.
            let bytes = read_file(&last)?;
            self.stage(name, |file| file.write_all(&bytes))?.commit()?;
            return srigl_tensors::atomic::target(&last).and_then(fs::remove_file).map_err(failed);
        }
        fs::rename(&last, &other).map_err(failed)
    }

    /// The last checkpoint that is whole, as `read` finds them, and what is wrong with the last one if it is the one before;
    /// `None` if there never was one. `read` says with an outer error that it could not read a file: that may be whole.
    ///
    /// # Errors
    /// What `read` says, of a file that cannot be read or if all that there are are damaged.
    pub fn latest_checkpoint<T, E>(
        &self,
        read: impl Fn(&Path) -> Result<Result<T, E>, E>,
    ) -> Result<Option<Found<T, E>>, Damage<E>> {
        let read = |name: &str| {
            let path = self.file(name);
            match path.try_exists() {
                Ok(false) => Ok(None),
                _ => read(&path).map(Some).map_err(Damage::Unreadable),
            }
        };
        let damage = match read(file::CHECKPOINT)? {
            Some(Ok(checkpoint)) => return Ok(Some((checkpoint, None))),
            Some(Err(damage)) => Some(damage),
            None => None,
        };
        match (damage, read(file::PREVIOUS)?) {
            (None, None) => Ok(None),
            (damage, Some(Ok(checkpoint))) => {
                Ok(Some((checkpoint, Some(damage.map_or(Damage::Missing, Damage::Last)))))
            }
            (Some(damage), None) => Err(Damage::Only(damage)),
            (Some(damage), Some(Err(_))) | (None, Some(Err(damage))) => Err(Damage::All(damage)),
        }
    }

    /// Gives a run the settings of a longer one. It loses its result: it is not finished any more.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn extend(&self, _lock: &Lock, config: &Config) -> Result<(), Error> {
        // In this order: between the two, the run is as it was, but for the result, which it would make again.
        self.remove_file(file::RESULT)?;
        self.write_json(file::CONFIG, config)
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// [`Error::Locked`] if a process writes into it, [`Error::Write`] if it cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        let _lock = Lock::take(&self.path)?;
        fs::remove_dir_all(&self.path).map_err(|cause| Error::Write { path: self.path.clone(), cause })
    }

    /// Whether there is a run in it.
    pub fn has_run(&self) -> bool {
        self.file(file::CONFIG).exists()
    }

    /// Refuses to go on with a run that has another setting of this name.
    ///
    /// # Errors
    /// [`Error::OtherSettings`] if there is one.
    pub fn compare(&self, differing_key: Option<String>) -> Result<(), Error> {
        match differing_key {
            Some(key) => Err(Error::OtherSettings { path: self.path.clone(), key }),
            None => Ok(()),
        }
    }

    fn remove_file(&self, name: &str) -> Result<(), Error> {
        let path = self.file(name);
        // A link stays.
        match srigl_tensors::atomic::target(&path).and_then(fs::remove_file) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::Write { path, cause }),
            _ => Ok(()),
        }
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Has `write` fill the file `name` of the run, as [`atomic::stage`] does others.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn stage(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<Staged, Error> {
        atomic::stage_any(&self.file(name), write)
    }

    /// Writes a JSON file of the run.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn write_json<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        match serde_json::to_vec_pretty(value) {
            Ok(text) => self.stage(name, |to| to.write_all(&text))?.commit(),
            Err(error) => Err(Error::Write { path: self.file(name), cause: error.into() }),
        }
    }

    /// What a JSON file of the run holds; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Run`] if it cannot be read, [`Error::File`] if it is damaged.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        json(&self.file(name))
    }

    /// The result of a finished run.
    ///
    /// # Errors
    /// [`Error::Remade`] if it is damaged or a share in it is none, [`Error::Run`] if it cannot be read.
    pub fn result(&self) -> Result<Option<RunResult>, Error> {
        let path = self.file(file::RESULT);
        let result: Result<Option<RunResult>, String> = match json(&path) {
            Err(Error::File { what, .. }) => Err(what),
            read => Ok(read?),
        };
        let checked = result.and_then(|result| {
            result.as_ref().map_or(Ok(()), RunResult::check)?;
            Ok(result)
        });
        checked.map_err(|what| Error::Remade { path, what })
    }

    /// The file of the finished run's model, or, with `best`, of that after the best epoch so far.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if the run has not come so far, [`Error::Remade`] or [`Error::Lost`] if the file is gone, and as
    /// [`result`](Self::result).
    pub fn model(&self, best: bool) -> Result<PathBuf, Error> {
        let finished = self.result()?.is_some();
        let path = self.file(if best { file::BEST } else { file::MODEL });
        match (path.exists(), finished) {
            (true, true) => Ok(path),
            (true, false) if best => Ok(path),
            (_, false) => Err(Error::Unfinished { path: self.path.clone() }),
            (false, true) if best => Err(Error::Lost { path }),
            (false, true) => Err(Error::Remade { path, what: "it is missing".into() }),
        }
    }

    /// Takes away the lock file that a process has left which was killed; one that is held stays.
    pub fn clear_lock(&self) {
        if self.file(file::LOCK).exists() {
            drop(Lock::take(&self.path));
        }
    }

    /// Whether the model of a finished run is gone or damaged.
    ///
    /// # Errors
    /// [`Error::Read`] if it cannot be read: it may be whole.
    pub fn has_lost_model(&self) -> Result<bool, Error> {
        match Store::open(&self.file(file::MODEL)) {
            Ok(_) => Ok(false),
            Err(Error::Damaged { .. } | Error::PyTorch { .. }) => Ok(true),
            Err(Error::Read { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The epochs so far; none if there is no log.
    ///
    /// # Errors
    /// [`Error::Line`] names a line that is damaged.
    pub fn metrics(&self) -> Result<Vec<Epoch>, Error> {
        self.read_lines(file::METRICS)
    }

    /// The lines of a log; none if there is no such file.
    ///
    /// # Errors
    /// [`Error::Line`] names a line that is damaged.
    pub fn read_lines<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, Error> {
        let mut lines = Vec::new();
        json_lines(&self.file(name), LOG_LINES, |line: T| {
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    /// The topology updates so far; none if there is no log.
    ///
    /// # Errors
    /// [`Error::Line`] names a line that is damaged.
    pub fn topology(&self) -> Result<Vec<TopologyLine>, Error> {
        let mut lines = Vec::new();
        json_lines(&self.file(file::TOPOLOGY), LOG_LINES, |line: TopologyLine| {
            line.check()?;
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let missing =
            || Error::Run { path: self.file(name), cause: io::Error::other("there is no such file") };
        self.read_json(name)?.ok_or_else(missing)
    }

    /// Removes what a process that was killed in the middle of an atomic write has left in this run.
    fn remove_temporary_files(&self) -> Result<(), Error> {
        for path in self.entries()?.into_iter().filter(|entry| is_temporary(entry)) {
            fs::remove_file(&path).map_err(|cause| Error::Write { path, cause })?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<PathBuf>, Error> {
        let list = || fs::read_dir(&self.path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>();
        list().map_err(|cause| Error::Run { path: self.path.clone(), cause })
    }
}

/// Whether a file may lie in the folder of a run that has not got its settings yet.
fn is_ours(path: &Path) -> bool {
    is_temporary(path) || path.file_name().is_some_and(|name| name == file::LOCK || name == file::INPUTS)
}

/// Whether a file is one of an atomic write that has not got its name yet, by this version or an earlier one.
fn is_temporary(path: &Path) -> bool {
    // Those of earlier versions were `.tmp` and six letters or digits.
    let early = |name: &str| {
        name.strip_prefix(".tmp")
            .is_some_and(|rest| rest.len() == 6 && rest.chars().all(|c| c.is_ascii_alphanumeric()))
    };
    let name = path.file_name().and_then(|name| name.to_str());
    name.filter(|_| path.is_file()).is_some_and(|name| {
        early(name) || file::WHOLE.iter().any(|file| name.starts_with(&format!(".{file}.")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(seed: u64) -> Config {
        Config { seed, ..Config::default() }
    }

    fn inputs(digest: &str) -> Inputs {
        Inputs {
            data: "d".into(),
            classes: 2,
            train_images: 7,
            test_images: 1,
            digest: digest.into(),
            weights: Some("w1".into()),
        }
    }

    /// A path in a folder that is gone when the first is dropped.
    fn path() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        (folder, path)
    }

    #[test]
    fn a_new_run_gets_its_settings_and_is_found_again() {
        let (_parent, path) = path();
        assert!(matches!(RunFolder::existing(&path), Err(Error::Run { .. })));
        let (folder, _) = RunFolder::open(&path, &config(1), false).unwrap();
        assert!(!path.exists(), "opened, but not made");
        drop(folder.create(&config(1), &inputs("1")).unwrap());
        let (found, settings) = RunFolder::existing(&path).unwrap();
        assert_eq!((found.file("x"), settings), (path.join("x"), config(1)));
        assert_eq!(RunFolder::at(&path).file("x"), path.join("x"));
    }

    #[test]
    fn a_run_goes_on_with_its_inputs_only() {
        let (_parent, path) = path();
        let folder = RunFolder::at(&path);
        drop(folder.create(&config(1), &inputs("1")).unwrap());
        assert!(matches!(folder.create(&config(1), &inputs("2")), Err(Error::OtherInputs { .. })));
        let gone = Inputs { weights: None, ..inputs("1") };
        let check = |now: &Inputs| folder.check_inputs(now, folder.inputs().unwrap().as_ref());
        check(&gone).unwrap();
        let other = Inputs { weights: Some("w2".into()), ..inputs("1") };
        let error = check(&other).unwrap_err().to_string();
        assert!(error.contains("other --weights"), "{error}");
        let error = check(&Inputs { train_images: 8, ..inputs("1") }).unwrap_err().to_string();
        assert!(
            error.contains("d (7 training and 1 test images, 2 classes), but the data is d (8"),
            "{error}"
        );
        // One of an earlier version does not say, until it is told.
        fs::remove_file(path.join("inputs.json")).unwrap();
        let lock = folder.create(&config(1), &inputs("2")).unwrap();
        assert_eq!(folder.inputs().unwrap(), None);
        folder.keep_inputs(&lock, &inputs("2")).unwrap();
        folder.keep_inputs(&lock, &inputs("3")).unwrap();
        assert!(check(&inputs("2")).is_ok() && check(&inputs("1")).is_err());
    }

    #[test]
    fn places_where_nothing_can_be_written_are_found_at_the_start() {
        let (_parent, path) = path();
        let folder = RunFolder::at(&path);
        for name in [file::MODEL, file::PREVIOUS, file::MASKS] {
            fs::create_dir_all(path.join(name)).unwrap();
            let error = folder.create(&config(1), &inputs("1")).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("not a regular file"), "{error}");
            assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing is left behind");
            fs::remove_dir(path.join(name)).unwrap();
        }
        fs::write(path.join("file"), "").unwrap();
        let below = path.join("file/run/deep");
        let error = RunFolder::at(&below).create(&config(1), &inputs("1")).unwrap_err().to_string();
        assert!(error.ends_with("file` is not a folder"), "{error}");
        let error = RunFolder::existing(&path.join("file")).unwrap_err().to_string();
        assert!(error.contains("it is not a folder"), "{error}");
    }

    #[test]
    fn files_of_a_run_are_replaced_by_the_run_alone() {
        let (_parent, path) = path();
        // A folder of another program, at first.
        fs::create_dir(&path).unwrap();
        fs::write(path.join(file::CONFIG), "{}").unwrap();
        atomic::write(&path.join(file::MODEL), b"").unwrap();
        fs::remove_file(path.join(file::CONFIG)).unwrap();
        let folder = RunFolder::at(&path);
        let _lock = folder.create(&config(1), &inputs("1")).unwrap();
        for name in file::WHOLE.iter().chain(&file::LOGS).chain(&[file::LOCK]) {
            let refused = atomic::write(&path.join(name), b"");
            assert!(matches!(refused, Err(Error::OfRun { .. })), "{name}");
        }
        atomic::write(&path.join("export.safetensors"), b"").unwrap();
        #[cfg(unix)]
        {
            let link = |from: PathBuf, to: &Path| std::os::unix::fs::symlink(from, to).unwrap();
            let (to_run, elsewhere) = (path.with_file_name("link"), path.with_file_name("elsewhere"));
            link(path.join(file::METRICS), &to_run);
            link(elsewhere, &path.join(file::BEST));
            for path in [to_run, path.join(file::BEST)] {
                assert!(matches!(atomic::write(&path, b""), Err(Error::OfRun { .. })), "{path:?}");
            }
        }
        folder.stage(file::MODEL, |to| to.write_all(b"x")).unwrap().commit().unwrap();
    }

    #[test]
    fn what_a_killed_process_has_left_is_cleared() {
        let (_parent, path) = path();
        let folder = RunFolder::at(&path);
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        folder.clear_lock();
        assert!(path.join(file::LOCK).exists(), "it is held");
        drop(lock);
        fs::write(path.join(file::LOCK), "process 1").unwrap();
        folder.clear_lock();
        assert!(!path.join(file::LOCK).exists());
    }

    #[test]
    fn a_run_is_removed_as_a_whole_unless_it_is_written() {
        let (parent, path) = path();
        let folder = RunFolder::at(&path);
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        assert!(matches!(folder.clone().remove(), Err(Error::Locked { .. })) && folder.has_run());
        drop(lock);
        folder.remove().unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn models_are_those_of_finished_runs() {
        let (_parent, path) = path();
        let folder = RunFolder::at(&path);
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        let best = || folder.model(true).map_err(|error| error.to_string());
        let model = || folder.model(false).map_err(|error| error.to_string());
        assert!(best().is_err() && model().unwrap_err().contains("is not finished"));
        let empty = b"\x02\0\0\0\0\0\0\0{}";
        for name in [file::BEST, file::MODEL] {
            folder.stage(name, |to| to.write_all(empty)).unwrap().commit().unwrap();
        }
        // As of a run that was extended.
        assert_eq!(best().unwrap(), path.join(file::BEST));
        assert!(model().unwrap_err().contains("is not finished"));
        folder.write_json(file::RESULT, &result()).unwrap();
        assert_eq!(model().unwrap(), path.join(file::MODEL));
        assert!(!folder.has_lost_model().unwrap());
        fs::remove_file(path.join(file::BEST)).unwrap();
        assert!(best().unwrap_err().contains("best.safetensors is gone: only to train the run again"));
        fs::write(path.join(file::MODEL), "damaged").unwrap();
        assert!(folder.has_lost_model().unwrap());
        fs::remove_file(path.join(file::MODEL)).unwrap();
        assert!(folder.has_lost_model().unwrap());
        fs::create_dir(path.join(file::MODEL)).unwrap();
        assert!(folder.has_lost_model().is_err(), "that is something else");
        fs::remove_dir(path.join(file::MODEL)).unwrap();
        assert!(
            model().unwrap_err().contains("model.safetensors: it is missing; `srigl train … --resume` makes")
        );
        drop(lock);
    }

    /// Of a finished run.
    fn result() -> serde_json::Value {
        serde_json::json!({
            "test_accuracy": 0.25, "best_test_accuracy": 0.5, "epochs": 3, "seconds": 2.0, "sparsity": 0.9,
            "device": "flex", "layers": [],
            "data": {"name": "d", "source": "s", "synthetic": true, "train_images": 7, "test_images": 1},
        })
    }

    #[test]
    fn an_abandoned_start_leaves_nothing_behind() {
        let (parent, _) = path();
        let path = parent.path().join("deep/er/run");
        let folder = RunFolder::at(&path);
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        assert!(lock.is_of_new_run());
        fs::write(path.join("metrics.jsonl"), "").unwrap();
        lock.abandon();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        // What was there before stays: a folder, and above all a run.
        fs::create_dir_all(&path).unwrap();
        folder.create(&config(1), &inputs("1")).unwrap().abandon();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        drop(folder.create(&config(1), &inputs("1")).unwrap());
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        assert!(!lock.is_of_new_run());
        lock.abandon();
        assert!(folder.has_run() && path.join("inputs.json").exists());
    }

    #[test]
    fn an_extended_run_goes_on_with_the_command_line_it_was_started_with() {
        let (_parent, path) = path();
        let folder = RunFolder::at(&path);
        let (first, longer) = (config(1), config(1).extended_to(9, 100).unwrap());
        let lock = folder.create(&first, &inputs("1")).unwrap();
        fs::write(path.join("result.json"), "{}").unwrap();
        folder.extend(&lock, &longer).unwrap();
        assert!(!path.join("result.json").exists(), "it is not finished any more");
        folder.extend(&lock, &longer).unwrap();
        fs::create_dir(path.join("result.json")).unwrap();
        assert!(folder.extend(&lock, &longer).is_err(), "what cannot be removed is told");
        fs::remove_dir(path.join("result.json")).unwrap();
        drop(lock);
        for epochs in [first.epochs, 9] {
            let (_, found) = RunFolder::open(&path, &Config { epochs, ..config(1) }, true).unwrap();
            assert_eq!(found, longer, "{epochs}");
        }
        let other = RunFolder::open(&path, &Config { epochs: 5, ..config(1) }, true);
        assert!(matches!(other, Err(Error::OtherSettings { key, .. }) if key == "epochs"));
        assert!(longer.extended_to(9, 200).is_err(), "no more than it has");
        assert!(Config { limit_steps: Some(5), ..first }.extended_to(9, 5).is_err());
    }

    #[test]
    fn a_run_goes_on_with_its_settings_only() {
        let (_parent, path) = path();
        drop(RunFolder::at(&path).create(&config(1), &inputs("1")).unwrap());
        let open = |seed, resume| RunFolder::open(&path, &config(seed), resume);
        assert!(matches!(open(1, false), Err(Error::Exists { .. })));
        assert!(matches!(open(2, true), Err(Error::OtherSettings { key, .. }) if key == "seed"));
        let (folder, _) = open(1, true).unwrap();
        // Somebody else may have started another run meanwhile.
        assert!(matches!(folder.create(&config(2), &inputs("1")), Err(Error::OtherSettings { .. })));
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        assert!(matches!(folder.create(&config(1), &inputs("1")), Err(Error::Locked { .. })));
        drop(lock);
        drop(folder.create(&config(1), &inputs("1")).unwrap());
    }

    #[test]
    fn folders_of_others_are_left_alone() {
        let (_parent, path) = path();
        let is_foreign = || matches!(RunFolder::open(&path, &config(1), false), Err(Error::Foreign { .. }));
        fs::write(&path, "a file").unwrap();
        assert!(is_foreign());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!is_foreign(), "empty");
        for ours in [file::LOCK, ".tmpAb12Cd", ".config.json.Ab12"] {
            fs::write(path.join(ours), "").unwrap();
            assert!(!is_foreign(), "{ours}");
        }
        for other in ["notes.txt", ".config", "config.json.Ab12"] {
            fs::write(path.join(other), "").unwrap();
            assert!(is_foreign(), "{other}");
            fs::remove_file(path.join(other)).unwrap();
        }
    }

    #[test]
    fn what_a_killed_write_has_left_is_removed() {
        let (_parent, path) = path();
        fs::create_dir(&path).unwrap();
        for name in [".tmpAb12Cd", ".result.json.Ab12", "metrics.jsonl", "tmp"] {
            fs::write(path.join(name), "").unwrap();
        }
        let _lock = RunFolder::at(&path).create(&config(1), &inputs("1")).unwrap();
        let mut left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["config.json", "inputs.json", "metrics.jsonl", file::LOCK, "tmp"]);
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let (parent, _) = path();
        let folder = RunFolder::at(parent.path());
        assert!(folder.result().unwrap().is_none(), "not finished");
        let mut result = result();
        folder.write_json("result.json", &result).unwrap();
        let read = folder.result().unwrap().unwrap();
        assert_eq!((read.test_accuracy, read.epochs, read.data.train_images), (0.25, 3, 7));
        result["sparsity"] = 2.0.into();
        folder.write_json("result.json", &result).unwrap();
        let error = folder.result().unwrap_err().to_string();
        assert!(error.contains("result.json: sparsity is 2e0"), "{error}");
        assert!(error.ends_with("`srigl train … --resume` makes it again"), "{error}");
    }

    /// A folder with these checkpoints, the last one and the one before, and what is found in it: a checkpoint is whole if it has an
    /// even number of bytes, and cannot be read if it is empty.
    fn found(last: Option<&str>, before: Option<&str>) -> Result<Option<(String, Option<String>)>, String> {
        let (_parent, path) = path();
        fs::create_dir(&path).unwrap();
        for (name, text) in [(file::CHECKPOINT, last), (file::PREVIOUS, before)] {
            text.into_iter().for_each(|text| fs::write(path.join(name), text).unwrap());
        }
        let read = |path: &Path| match fs::read_to_string(path).unwrap() {
            text if text.is_empty() => Err("unreadable".to_string()),
            text if text.len() % 2 == 0 => Ok(Ok(text)),
            text => Ok(Err(format!("{text} is damaged"))),
        };
        let found = RunFolder::at(&path).latest_checkpoint(read);
        found
            .map(|found| found.map(|(text, damage)| (text, damage.map(|damage| damage.to_string()))))
            .map_err(|damage| damage.to_string())
    }

    #[test]
    fn the_last_checkpoint_that_is_whole_is_found() {
        let whole =
            |text: &str, damage: Option<&str>| Ok(Some((text.to_string(), damage.map(str::to_string))));
        assert_eq!(found(None, None), Ok(None));
        assert_eq!(found(Some("22"), None), whole("22", None));
        assert_eq!(found(Some("22"), Some("1")), whole("22", None));
        assert_eq!(found(Some("2"), Some("11")), whole("11", Some("2 is damaged")));
        let missing = format!("{} is missing", file::CHECKPOINT);
        assert_eq!(found(None, Some("11")), whole("11", Some(&missing)));
        let refused = |last, before| found(last, before).unwrap_err();
        assert!(refused(Some("2"), None).contains("the only checkpoint"));
        let all = refused(Some("2"), Some("1"));
        assert!(
            all.contains("no checkpoint of the run can be used") && all.contains("2 is damaged"),
            "{all}"
        );
        assert!(refused(None, Some("1")).contains("1 is damaged"));
        // It may be whole, so the one before does not take its place.
        assert_eq!(refused(Some(""), Some("11")), "unreadable");
        assert_eq!(refused(Some("2"), Some("")), "unreadable");
    }

    #[test]
    fn two_checkpoints_are_kept() {
        let (_parent, path) = path();
        fs::create_dir(&path).unwrap();
        let folder = RunFolder::at(&path);
        let save = |text: &str| folder.save_checkpoint(|file| file.write_all(text.as_bytes()));
        let texts = |names: &[&str]| -> Vec<Option<String>> {
            names.iter().map(|name| fs::read_to_string(path.join(name)).ok()).collect()
        };
        let kept = || texts(&[file::CHECKPOINT, file::PREVIOUS, file::DAMAGED]);
        let some = |text: &str| Some(text.to_string());
        folder.put_checkpoint_aside().unwrap();
        save("one").unwrap();
        assert_eq!(kept(), [some("one"), None, None]);
        save("two").unwrap();
        save("three").unwrap();
        assert_eq!(kept(), [some("three"), some("two"), None]);
        // A write that fails changes nothing.
        let failed = folder.save_checkpoint(|_| Err(io::Error::other("full")));
        assert!(matches!(failed, Err(Error::Write { .. })));
        assert_eq!(kept(), [some("three"), some("two"), None]);
        folder.put_checkpoint_aside().unwrap();
        assert_eq!(kept(), [None, some("two"), some("three")]);
        save("four").unwrap();
        assert_eq!(kept(), [some("four"), some("two"), some("three")]);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "nothing else is left");
    }

    /// Either of the two may be a link to where people want their checkpoints.
    #[test]
    #[cfg(unix)]
    fn links_to_checkpoints_stay() {
        for linked in [file::CHECKPOINT, file::PREVIOUS] {
            let (parent, path) = path();
            fs::create_dir(&path).unwrap();
            let elsewhere = parent.path().join("elsewhere");
            fs::write(&elsewhere, "one").unwrap();
            std::os::unix::fs::symlink(&elsewhere, path.join(linked)).unwrap();
            let folder = RunFolder::at(&path);
            let save = |text: &str| folder.save_checkpoint(|file| file.write_all(text.as_bytes())).unwrap();
            save("two");
            save("three");
            let text = |name: &str| fs::read_to_string(path.join(name)).unwrap();
            assert_eq!([text(file::CHECKPOINT), text(file::PREVIOUS)], ["three", "two"], "{linked}");
            assert!(path.join(linked).is_symlink(), "{linked}");
            assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text(linked));
        }
    }

    #[test]
    fn files_of_writes_that_were_cut_off_are_known_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let is_temporary = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            is_temporary(&path)
        };
        assert!(is_temporary(".tmpaB3xY9") && is_temporary(&format!(".{}.aB3", file::CHECKPOINT)));
        for other in [".tmpaB3xY", ".tmpaB3xY-", ".tmpaB3xY90", "tmpaB3xY9", ".other.aB3", file::CHECKPOINT] {
            assert!(!is_temporary(other), "{other}");
        }
        assert!(!super::is_temporary(folder.path()), "a folder");
    }
}
