//! JSON files and JSON lines of bounded size, and logs that can be cut back.

use crate::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use srigl_tensors::{hex, regular};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Lines a log of numbers may have.
pub const LOG_LINES: usize = 1_000_000;

/// Bytes that no file of settings or results, and no line of a log, comes near.
const LIMIT: u64 = 16 << 20;

/// Reads a JSON file, if there is one.
pub fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let mut text = Vec::new();
    let read = regular::open(path).and_then(|(file, _)| file.take(LIMIT + 1).read_to_end(&mut text));
    match read {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::Run { path: path.into(), cause }),
        Ok(_) => {}
    }
    let wrong = |what| Error::File { path: path.into(), what };
    if text.len() as u64 > LIMIT {
        return Err(wrong(format!("is larger than {} MiB", LIMIT >> 20)));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string()))
}

/// Hands each of at most `most` JSON lines to `take` and says whether there is such a file.
///
/// A last line without its end is one that a training was writing when it was killed, and is left out.
pub fn json_lines<T: DeserializeOwned>(
    path: &Path,
    most: usize,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Result<bool, Error> {
    let unreadable = |cause| Error::Run { path: path.into(), cause };
    let file = match regular::open(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(unreadable)?.0,
    };
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        reader.by_ref().take(LIMIT).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        let wrong = |what| Error::Line { path: path.into(), line, what };
        if bytes.len() as u64 == LIMIT {
            return Err(wrong(format!("is longer than {} MiB", LIMIT >> 20)));
        }
        if bytes.last() != Some(&b'\n') {
            break;
        }
        if line > most {
            return Err(wrong(format!("is more than the {most} lines a run writes")));
        }
        let value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        take(value).map_err(wrong)?;
    }
    Ok(true)
}

/// Adds all that can be read to a digest, and says how many bytes that were.
pub(crate) fn hash(mut from: impl Read, sha: &mut Sha256) -> io::Result<u64> {
    let (mut part, mut sum) = (vec![0; 1 << 20], 0);
    loop {
        match from.read(&mut part)? {
            0 => return Ok(sum),
            bytes => {
                sha.update(&part[..bytes]);
                sum += bytes as u64;
            }
        }
    }
}

/// Where a log stood when a checkpoint was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "AnyLogEnd")]
pub struct LogEnd {
    /// Its length; later lines are cut off on resume.
    pub bytes: u64,
    /// SHA-256 of these bytes, in hexadecimal digits; checkpoints of earlier versions have none.
    pub sha256: Option<String>,
}

/// As this version and earlier ones write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyLogEnd {
    Bytes(u64),
    Checked { bytes: u64, sha256: Option<String> },
}

impl From<AnyLogEnd> for LogEnd {
    fn from(end: AnyLogEnd) -> Self {
        match end {
            AnyLogEnd::Bytes(bytes) => Self { bytes, sha256: None },
            AnyLogEnd::Checked { bytes, sha256 } => Self { bytes, sha256 },
        }
    }
}

/// A JSON lines file that can be cut back to where a checkpoint was taken. A symbolic link is followed.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Of all bytes so far.
    sha: Sha256,
}

impl JsonLines {
    /// Opens a log, which is to be cut off at its `end` before anything is written.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be opened, [`Error::File`] if it is missing, shorter or does not begin as it did.
    pub fn open(path: PathBuf, end: &LogEnd) -> Result<Self, Error> {
        let open = || -> io::Result<(File, Sha256, bool)> {
            // To open a pipe would wait for a reader.
            if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
                return Err(io::Error::other("it is not a regular file"));
            }
            let file = OpenOptions::new().create(end.bytes == 0).append(true).read(true).open(&path)?;
            let mut sha = Sha256::new();
            let whole = hash((&file).take(end.bytes), &mut sha)? == end.bytes;
            let same = end.sha256.as_ref().is_none_or(|sha256| hex(&sha.clone().finalize()) == *sha256);
            Ok((file, sha, whole && same))
        };
        match open() {
            Ok((file, sha, true)) => Ok(Self { path, file, bytes: end.bytes, sha }),
            Ok((.., false)) => {
                let what = format!(
                    "its first {} bytes are not those that the last checkpoint was taken with",
                    end.bytes
                );
                Err(Error::File { path, what })
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound && end.bytes > 0 => {
                Err(Error::File { path, what: "it is missing".into() })
            }
            Err(cause) => Err(Error::Write { path, cause }),
        }
    }

    /// Drops what comes after its end.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn cut(self) -> Result<Self, Error> {
        match self.file.set_len(self.bytes) {
            Ok(()) => Ok(self),
            Err(cause) => Err(self.cannot(cause)),
        }
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be written.
    pub fn write<T: Serialize>(&mut self, line: &T) -> Result<(), Error> {
        let line = serde_json::to_string(line).map_err(io::Error::from).and_then(|line| {
            let line = line + "\n";
            self.file.write_all(line.as_bytes())?;
            self.sha.update(&line);
            Ok(line.len())
        });
        self.bytes += line.map_err(|cause| self.cannot(cause))? as u64;
        Ok(())
    }

    /// Makes all lines durable and says where the log ends.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails.
    pub fn sync(&mut self) -> Result<LogEnd, Error> {
        self.file.sync_data().map_err(|cause| self.cannot(cause))?;
        Ok(LogEnd { bytes: self.bytes, sha256: Some(hex(&self.sha.clone().finalize())) })
    }

    fn cannot(&self, cause: io::Error) -> Error {
        Error::Write { path: self.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Result<Vec<u32>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, text).unwrap();
        let mut numbers = Vec::new();
        let take = |n: u32| {
            numbers.push(n);
            if n < 9 { Ok(()) } else { Err("is 9 or more".to_string()) }
        };
        json_lines(&path, 3, take)
            .map_err(|error| error.to_string().replace(&*path.to_string_lossy(), "log"))?;
        Ok(numbers)
    }

    #[test]
    fn lines() {
        assert!(numbers("").unwrap().is_empty());
        assert_eq!(numbers("1\n2\n").unwrap(), [1, 2]);
    }

    #[test]
    fn a_killed_training_leaves_half_a_line() {
        assert_eq!(numbers("1\n2").unwrap(), [1]);
        assert!(numbers("{").unwrap().is_empty());
    }

    #[test]
    fn errors_name_file_line_cause_and_fix() {
        let error = numbers("1\nx\n").unwrap_err();
        assert!(error.starts_with("log, line 2: expected value"), "{error}");
        assert!(error.ends_with("restore the file or train the run again"), "{error}");
        assert!(numbers("9\n").unwrap_err().starts_with("log, line 1: is 9 or more;"));
        assert!(numbers("1\n1\n1\n1\n").unwrap_err().contains("line 4: is more than the 3 lines"));
    }

    #[test]
    fn endless_lines_are_refused() {
        let text = " ".repeat(LIMIT as usize + 10);
        assert!(numbers(&text).unwrap_err().contains("longer than 16 MiB"));
    }

    #[test]
    fn a_missing_file_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(json::<u32>(&folder.path().join("none")).unwrap().is_none());
        assert!(!json_lines(&folder.path().join("none"), 1, |_: u32| Ok(())).unwrap());
        assert!(json::<u32>(folder.path()).is_err());
        assert!(json_lines(folder.path(), 1, |_: u32| Ok(())).is_err());
    }

    #[test]
    fn files_are_read_up_to_the_limit_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let of_size = |size: u64| {
            std::fs::write(&path, " ".repeat(size as usize - 1) + "7").unwrap();
            json::<u32>(&path)
        };
        assert_eq!(of_size(LIMIT).unwrap(), Some(7));
        assert!(of_size(LIMIT + 1).unwrap_err().to_string().contains("larger than 16 MiB"));
    }

    #[test]
    fn a_log_is_cut_back_to_where_the_checkpoint_was_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let read = || std::fs::read_to_string(&path).unwrap();
        let mut log = JsonLines::open(path.clone(), &LogEnd::default()).unwrap();
        log.write(&1).unwrap();
        let checkpoint = log.sync().unwrap();
        log.write(&[2, 3]).unwrap();
        assert_eq!((checkpoint.bytes, log.sync().unwrap().bytes, read()), (2, 8, "1\n[2,3]\n".into()));
        drop(log);

        let log = JsonLines::open(path.clone(), &checkpoint).unwrap();
        assert_eq!(read(), "1\n[2,3]\n", "not yet");
        let mut log = log.cut().unwrap();
        log.write(&4).unwrap();
        let end = log.sync().unwrap();
        assert_eq!((end.bytes, read()), (4, "1\n4\n".into()));
        drop(JsonLines::open(path.clone(), &end).unwrap().cut().unwrap());
        assert_eq!(read(), "1\n4\n", "all of it is kept");
        let earlier: LogEnd = serde_json::from_str("2").unwrap();
        assert_eq!(earlier, LogEnd { bytes: 2, sha256: None }, "of an earlier version");

        let refused = |end: &LogEnd| {
            let before = read();
            let error = JsonLines::open(path.clone(), end).unwrap_err().to_string();
            assert!(error.contains("not those that the last checkpoint was taken with"), "{error}");
            assert_eq!(read(), before, "nothing is lost");
        };
        refused(&LogEnd { bytes: 5, sha256: None });
        std::fs::write(&path, "2\n4\n").unwrap();
        refused(&end);
        std::fs::write(&path, "4\n").unwrap();
        refused(&end);
        fs::remove_file(&path).unwrap();
        let error = JsonLines::open(path.clone(), &end).unwrap_err().to_string();
        assert!(error.contains("it is missing") && !path.exists(), "{error}");
        assert!(JsonLines::open("/dev/null".into(), &LogEnd::default()).is_err(), "no regular file");
        // A log that was empty is not missed, and one that cannot be opened is not missing.
        let new = JsonLines::open(folder.path().join("none/log"), &LogEnd::default()).unwrap_err();
        assert!(matches!(new, Error::Write { .. }), "{new}");
        let there = JsonLines::open(folder.path().into(), &end).unwrap_err();
        assert!(matches!(there, Error::Write { .. }), "{there}");
    }
}
