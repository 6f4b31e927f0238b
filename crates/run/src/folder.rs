//! The run folder.

use crate::lines::{LOG_LINES, json, json_lines};
use crate::lock::{self, Lock};
use crate::{Config, Error, RunResult, TopologyLine, atomic};
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

    /// The folder of a new run, which [`create`](Self::create) makes, or of one to resume.
    ///
    /// # Errors
    /// [`Error::Exists`] if it holds a run that is not to be resumed, [`Error::OtherSettings`] if that has other settings,
    /// [`Error::Foreign`] if it holds something else.
    pub fn open(path: &Path, config: &Config, resume: bool) -> Result<Self, Error> {
        let folder = Self { path: path.to_path_buf() };
        if folder.file("config.json").exists() {
            if !resume {
                return Err(Error::Exists { path: folder.path });
            }
            folder.compare(config)?;
        } else if path.exists() && !(path.is_dir() && folder.entries()?.iter().all(|entry| is_ours(entry))) {
            return Err(Error::Foreign { path: folder.path });
        }
        Ok(folder)
    }

    /// The folder of an existing run with its settings.
    ///
    /// # Errors
    /// [`Error::Run`] if there is none, [`Error::File`] if its settings are damaged.
    pub fn existing(path: &Path) -> Result<(Self, Config), Error> {
        let folder = Self { path: path.to_path_buf() };
        let config = folder.read("config.json")?;
        Ok((folder, config))
    }

    /// Makes the folder, takes it and writes its `config.json`, once the settings are known to work. Nobody else can write
    /// into it until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process writes into it, [`Error::OtherSettings`] if one has started another run since
    /// [`open`](Self::open), [`Error::Write`] if writing fails.
    pub fn create(&self, config: &Config) -> Result<Lock, Error> {
        fs::create_dir_all(&self.path).map_err(|cause| Error::Write { path: self.path.clone(), cause })?;
        let lock = Lock::take(&self.path)?;
        self.remove_temporary_files()?;
        if self.file("config.json").exists() {
            self.compare(config)?;
        } else {
            self.write_json("config.json", config)?;
        }
        Ok(lock)
    }

    /// Whether the run in the folder has these settings.
    fn compare(&self, config: &Config) -> Result<(), Error> {
        let before: Config = self.read("config.json")?;
        match before.differing_key(config) {
            Some(key) => Err(Error::OtherSettings { path: self.path.clone(), key }),
            None => Ok(()),
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

/// Files that are written at once.
const WHOLE_FILES: [&str; 5] =
    ["config.json", "checkpoint.safetensors", "best.safetensors", "model.safetensors", "result.json"];

/// Whether a file may lie in the folder of a run that has not got its settings yet.
fn is_ours(path: &Path) -> bool {
    is_temporary(path) || path.file_name().is_some_and(|name| name == lock::FILE)
}

/// Whether a file is one of an atomic write that has not got its name yet, by this version or an earlier one.
fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.starts_with(".tmp") || WHOLE_FILES.iter().any(|file| name.starts_with(&format!(".{file}.")))
    })
}
