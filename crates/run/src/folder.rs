//! The run folder.

use crate::lines::{LOG_LINES, json, json_lines};
use crate::lock::{self, Lock};
use crate::{Config, Epoch, Error, Inputs, RunResult, TopologyLine, atomic};
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
    /// [`Error::Exists`] if it holds a run that is not to be resumed, [`Error::OtherSettings`] if that has other settings,
    /// [`Error::Foreign`] if it holds something else.
    pub fn open(path: &Path, config: &Config, resume: bool) -> Result<(Self, Config), Error> {
        let folder = Self { path: path.to_path_buf() };
        if folder.has_run() {
            if !resume {
                return Err(Error::Exists { path: folder.path });
            }
            let before: Config = folder.read(CONFIG)?;
            let config = config.going_on_with(&before);
            folder.compare(&config, &before)?;
            return Ok((folder, config));
        }
        if path.exists() && !(path.is_dir() && folder.entries()?.iter().all(|entry| is_ours(entry))) {
            return Err(Error::Foreign { path: folder.path });
        }
        Ok((folder, config.clone()))
    }

    /// The folder of an existing run with its settings, which are checked as those of a new run.
    ///
    /// # Errors
    /// [`Error::Run`] if there is none, [`Error::File`] if its settings are damaged or out of range.
    pub fn existing(path: &Path) -> Result<(Self, Config), Error> {
        let folder = Self { path: path.to_path_buf() };
        let config: Config = folder.read(CONFIG)?;
        match config.validate() {
            Ok(()) => Ok((folder, config)),
            Err(what) => Err(Error::File { path: folder.file(CONFIG), what: what.to_string() }),
        }
    }

    /// Checks that a run that is to go on has the inputs it had; one of an earlier version does not say which.
    ///
    /// # Errors
    /// [`Error::OtherInputs`] if not, [`Error::File`] if the file about them is damaged.
    fn check_inputs(&self, inputs: &Inputs) -> Result<(), Error> {
        let before: Option<Inputs> = json(&self.file(INPUTS))?;
        match before.and_then(|before| inputs.differs(&before)) {
            Some(what) => Err(Error::OtherInputs { path: self.path.clone(), what }),
            None => Ok(()),
        }
    }

    /// Makes the folder, takes it, and writes its `inputs.json` and `config.json`, once both are known to work. Nobody else
    /// can write into it until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes into it; [`Error::OtherSettings`] or [`Error::OtherInputs`] if one has
    /// started another run since [`open`](Self::open); [`Error::Write`] if writing fails. Nothing is left behind then.
    pub fn create(&self, config: &Config, inputs: &Inputs) -> Result<Lock, Error> {
        let missing =
            self.path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let mut made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        let taken = fs::create_dir_all(&self.path)
            .map_err(|cause| Error::Write { path: self.path.clone(), cause })
            .and_then(|()| Lock::take(&self.path));
        let mut lock = match taken {
            Ok(lock) => lock,
            Err(error) => {
                made.iter().for_each(|folder| _ = fs::remove_dir(folder));
                return Err(error);
            }
        };
        if !self.has_run() {
            let files = [CONFIG, INPUTS].into_iter().chain(LOGS);
            made.splice(0..0, files.map(|name| self.file(name)));
            lock.abandons(made);
        }
        match self.fill(config, inputs) {
            Ok(()) => Ok(lock),
            Err(error) => {
                lock.abandon();
                Err(error)
            }
        }
    }

    fn fill(&self, config: &Config, inputs: &Inputs) -> Result<(), Error> {
        self.remove_temporary_files()?;
        if !self.has_run() {
            self.write_json(INPUTS, inputs)?;
            return self.write_json(CONFIG, config);
        }
        let before: Config = self.read(CONFIG)?;
        self.compare(config, &before)?;
        self.check_inputs(inputs)?;
        if !self.file(INPUTS).exists() {
            self.write_json(INPUTS, inputs)?;
        }
        Ok(())
    }

    /// Gives a run the settings of a longer one. It loses its result: it is not finished any more.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn extend(&self, _lock: &Lock, config: &Config) -> Result<(), Error> {
        // In this order: between the two, the run is as it was, but for the result, which it would make again.
        self.remove_file("result.json")?;
        self.write_json(CONFIG, config)
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
        self.file(CONFIG).exists()
    }

    /// Whether a run with the settings `before` can go on with these.
    fn compare(&self, config: &Config, before: &Config) -> Result<(), Error> {
        match config.differing_key(before) {
            Some(key) => Err(Error::OtherSettings { path: self.path.clone(), key }),
            None => Ok(()),
        }
    }

    fn remove_file(&self, name: &str) -> Result<(), Error> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::Write { path, cause }),
            _ => Ok(()),
        }
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a JSON file of the run.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn write_json<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        let path = self.file(name);
        match serde_json::to_vec_pretty(value) {
            Ok(text) => atomic::write(&path, &text),
            Err(error) => Err(Error::Write { path, cause: error.into() }),
        }
    }

    /// The result of a finished run.
    ///
    /// # Errors
    /// [`Error::File`] if it is damaged or a share in it is none.
    pub fn result(&self) -> Result<Option<RunResult>, Error> {
        let path = self.file("result.json");
        let result: Option<RunResult> = json(&path)?;
        match result.as_ref().map_or(Ok(()), RunResult::check) {
            Ok(()) => Ok(result),
            Err(what) => Err(Error::File { path, what }),
        }
    }

    /// The epochs so far; none if there is no log.
    ///
    /// # Errors
    /// [`Error::Line`] names a line that is damaged.
    pub fn metrics(&self) -> Result<Vec<Epoch>, Error> {
        let mut lines = Vec::new();
        json_lines(&self.file("metrics.jsonl"), LOG_LINES, |line: Epoch| {
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
        json_lines(&self.file("topology.jsonl"), LOG_LINES, |line: TopologyLine| {
            line.check()?;
            lines.push(line);
            Ok(())
        })?;
        Ok(lines)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let path = self.file(name);
        json(&path)?.ok_or_else(|| Error::Run { path, cause: io::Error::other("there is no such file") })
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

const CONFIG: &str = "config.json";
const INPUTS: &str = "inputs.json";

/// Files that grow.
const LOGS: [&str; 3] = ["metrics.jsonl", "topology.jsonl", "masks.jsonl"];

/// Files that are written at once.
const WHOLE_FILES: [&str; 6] =
    [CONFIG, INPUTS, "checkpoint.safetensors", "best.safetensors", "model.safetensors", "result.json"];

/// Whether a file may lie in the folder of a run that has not got its settings yet.
fn is_ours(path: &Path) -> bool {
    is_temporary(path) || path.file_name().is_some_and(|name| name == lock::FILE || name == INPUTS)
}

/// Whether a file is one of an atomic write that has not got its name yet, by this version or an earlier one.
fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.starts_with(".tmp") || WHOLE_FILES.iter().any(|file| name.starts_with(&format!(".{file}.")))
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
        folder.check_inputs(&gone).unwrap();
        let other = Inputs { weights: Some("w2".into()), ..inputs("1") };
        let error = folder.check_inputs(&other).unwrap_err().to_string();
        assert!(error.contains("other --weights"), "{error}");
        let error = folder.check_inputs(&Inputs { train_images: 8, ..inputs("1") }).unwrap_err().to_string();
        assert!(
            error.contains("d (7 training and 1 test images, 2 classes), but the data is d (8"),
            "{error}"
        );
        // One of an earlier version does not say, and says from now on.
        fs::remove_file(path.join("inputs.json")).unwrap();
        folder.check_inputs(&inputs("2")).unwrap();
        drop(folder.create(&config(1), &inputs("2")).unwrap());
        assert!(folder.check_inputs(&inputs("1")).is_err());
    }

    #[test]
    fn an_abandoned_start_leaves_nothing_behind() {
        let (parent, _) = path();
        let path = parent.path().join("deep/er/run");
        let folder = RunFolder::at(&path);
        let lock = folder.create(&config(1), &inputs("1")).unwrap();
        fs::write(path.join("metrics.jsonl"), "").unwrap();
        lock.abandon();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        // What was there before stays: a folder, and above all a run.
        fs::create_dir_all(&path).unwrap();
        folder.create(&config(1), &inputs("1")).unwrap().abandon();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        drop(folder.create(&config(1), &inputs("1")).unwrap());
        folder.create(&config(1), &inputs("1")).unwrap().abandon();
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
        for ours in [lock::FILE, ".tmpAb12", ".config.json.Ab12"] {
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
        for name in [".tmpAb12", ".result.json.Ab12", "metrics.jsonl", "tmp"] {
            fs::write(path.join(name), "").unwrap();
        }
        let _lock = RunFolder::at(&path).create(&config(1), &inputs("1")).unwrap();
        let mut left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["config.json", "inputs.json", "metrics.jsonl", lock::FILE, "tmp"]);
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let (parent, _) = path();
        let folder = RunFolder::at(parent.path());
        assert!(folder.result().unwrap().is_none(), "not finished");
        let mut result = serde_json::json!({
            "test_accuracy": 0.25, "best_test_accuracy": 0.5, "epochs": 3, "seconds": 2.0, "sparsity": 0.9,
            "device": "flex", "layers": [],
            "data": {"name": "d", "source": "s", "synthetic": true, "train_images": 7, "test_images": 1},
        });
        folder.write_json("result.json", &result).unwrap();
        let read = folder.result().unwrap().unwrap();
        assert_eq!((read.test_accuracy, read.epochs, read.data.train_images), (0.25, 3, 7));
        result["sparsity"] = 2.0.into();
        folder.write_json("result.json", &result).unwrap();
        let error = folder.result().unwrap_err().to_string();
        assert!(error.contains("result.json: sparsity is 2e0"), "{error}");
    }
}
