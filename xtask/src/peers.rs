//! The other engines: Python processes that time PyTorch, ONNX Runtime and DeepSparse on the same weights.
//!
//! [`Environment::python`] finds or makes a virtual environment, [`Peers`] talks to `peers/timings.py` in it.
//! The requests and answers are described at the top of that script.

use crate::runner::{shell_line, tail};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// How long one run takes, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Half of the runs are faster.
    pub median_ms: f64,
    /// One in ten is faster.
    pub p10_ms: f64,
    /// Nine in ten are faster.
    pub p90_ms: f64,
    /// Timed runs.
    pub samples: u64,
}

/// A virtual environment and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// PyTorch and ONNX Runtime.
    Torch,
    /// DeepSparse, which needs an older Python and older packages.
    DeepSparse,
}

impl Environment {
    /// All of them, in the order of the columns.
    pub const ALL: [Self; 2] = [Self::Torch, Self::DeepSparse];

    /// Name for folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::DeepSparse => "deepsparse",
        }
    }

    /// The modules that `timings.py` shall offer.
    fn engines(self) -> &'static [&'static str] {
        match self {
            Self::Torch => &["torch", "onnxruntime"],
            Self::DeepSparse => &["deepsparse"],
        }
    }

    /// What pip installs, one call for each line: one that fails does not prevent the next.
    fn packages(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Torch => &[&["numpy", "torch", "torchvision"], &["numpy", "onnx", "onnxruntime"]],
            Self::DeepSparse => &[&["deepsparse==1.8.0"]],
        }
    }

    /// Interpreters to try, and the minor versions of Python 3 that will do.
    fn interpreters(self) -> (&'static [&'static str], std::ops::RangeInclusive<u32>) {
        match self {
            Self::Torch => (&["python3"], 9..=u32::MAX),
            Self::DeepSparse => (&["python3.11", "python3.10", "python3.9", "python3.8", "python3"], 8..=11),
        }
    }

    /// The interpreter of the virtual environment `folder`, which is made and filled unless it is complete.
    ///
    /// # Errors
    /// If there is no fitting Python or nothing could be installed.
    pub fn python(self, folder: &Path) -> Result<PathBuf> {
        let python = folder.join("bin/python");
        let wanted = serde_json::to_string(self.packages()).expect("names can be printed");
        // Written last, so an interrupted installation is taken up again.
        let marker = folder.join("installed.json");
        if python.exists() && std::fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
            return Ok(python);
        }
        let (candidates, minors) = self.interpreters();
        let base = candidates
            .iter()
            .find(|candidate| python_minor(candidate).is_some_and(|minor| minors.contains(&minor)))
            .with_context(|| {
                let newest =
                    if *minors.end() == u32::MAX { String::new() } else { format!(" to 3.{}", minors.end()) };
                format!("none of {} is Python 3.{}{newest}", candidates.join(", "), minors.start())
            })?;
        eprintln!("installing {} for comparison, once", self.engines().join(" and "));
        succeed(Command::new(base).args(["-m", "venv", "--clear"]).arg(folder))?;
        let mut errors = Vec::new();
        for packages in self.packages() {
            let mut pip = Command::new(&python);
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(*packages);
            errors.extend(succeed(&mut pip).err());
        }
        match errors.pop() {
            None => std::fs::write(&marker, wanted)
                .with_context(|| format!("cannot write {}", marker.display()))?,
            Some(error) if errors.len() + 1 == self.packages().len() => return Err(error),
            // The script says which module is missing.
            Some(error) => eprintln!("{error:#}"),
        }
        Ok(python)
    }
}

/// `minor` of `3.minor`; `None` if there is no such interpreter or it does not start.
fn python_minor(interpreter: &str) -> Option<u32> {
    let script = "import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else -1)";
    let output = Command::new(interpreter).args(["-c", script]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Runs a command silently.
fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", shell_line(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}\n{}", shell_line(command), output.status, tail(&stderr, 5));
    Ok(())
}

/// A running `timings.py`.
pub struct Peers {
    /// Which environment it runs in.
    pub environment: Environment,
    /// Modules that cannot be used, with the reason.
    pub missing: BTreeMap<String, String>,
    child: Child,
    /// `None` only while it is being stopped.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

/// One layer or model to be prepared.
#[derive(Debug, Serialize)]
pub struct Request<'a> {
    /// A network of torchvision, by its name in `srigl`; otherwise it is a layer.
    pub model: Option<&'a str>,
    /// safetensors file with `weight`, `bias` and `input`, or the tensors of the model.
    pub weights: &'a Path,
    /// Threads of every engine.
    pub threads: usize,
    /// Stride of a convolution; of no meaning for a linear layer.
    pub stride: usize,
    /// Zeros added on each side of a convolution's input.
    pub padding: usize,
}

/// What an engine says about what was prepared.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Prepared {
    /// It can be timed.
    Ready {
        /// Name, as in requests.
        name: String,
        /// Version and call, for people.
        engine: String,
        /// `‖result − plain result‖ / ‖plain product‖`.
        relative_error: f64,
        /// About how long one run takes, in milliseconds.
        once_ms: f64,
    },
    /// It cannot run this.
    Skipped {
        /// Name of the engine.
        name: String,
        /// Why.
        skipped: String,
    },
}

#[derive(Deserialize)]
struct Hello {
    versions: BTreeMap<String, String>,
    missing: BTreeMap<String, String>,
}

impl Peers {
    /// Starts `script` with the interpreter `python`; its error output goes to the file `log`.
    ///
    /// # Errors
    /// If it does not start or has no engine at all.
    pub fn start(environment: Environment, python: &Path, script: &Path, log: &Path) -> Result<Self> {
        let stderr = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = Command::new(python)
            .arg(script)
            .args(environment.engines())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut peers =
            Self { environment, missing: BTreeMap::new(), child, requests, answers, log: log.into() };
        let hello: Hello = peers.answer()?;
        if hello.versions.is_empty() {
            let reasons: Vec<&str> = hello.missing.values().map(String::as_str).collect();
            bail!("{}", reasons.join("; "));
        }
        peers.missing = hello.missing;
        Ok(peers)
    }

    /// Builds every engine's form and checks its result.
    ///
    /// # Errors
    /// If the process ends or answers nonsense.
    pub fn prepare(&mut self, request: &Request) -> Result<Vec<Prepared>> {
        #[derive(Deserialize)]
        struct Answer {
            peers: Vec<Prepared>,
        }
        let mut value = json!(request);
        value["do"] = json!("prepare");
        self.ask::<Answer>(&value).map(|answer| answer.peers)
    }

    /// Times so many repetitions of a prepared engine.
    ///
    /// # Errors
    /// If the process ends or answers nonsense.
    pub fn time(&mut self, peer: &str, repetitions: u64) -> Result<Timing> {
        self.ask(&json!({ "do": "time", "peer": peer, "repetitions": repetitions }))
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &serde_json::Value) -> Result<T> {
        let requests = self.requests.as_mut().context("it is being stopped")?;
        // If it has ended, reading the answer fails as well, and that message says why.
        _ = writeln!(requests, "{request}").and_then(|()| requests.flush());
        self.answer()
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("cannot read from timings.py")?;
        serde_json::from_str(&line).map_err(|error| {
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = tail(&String::from_utf8_lossy(&log), 8);
            let what =
                if line.is_empty() { "it ended".into() } else { format!("{error} in {}", line.trim_end()) };
            anyhow!("timings.py ({}): {what}\n{log}", self.environment.name())
        })
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.requests = None;
        _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let ready = r#"{"name": "torch-dense", "engine": "PyTorch", "relative_error": 1e-7, "once_ms": 0.5}"#;
        let Prepared::Ready { name, once_ms, .. } = serde_json::from_str(ready).unwrap() else {
            panic!("not ready")
        };
        assert_eq!((name.as_str(), once_ms), ("torch-dense", 0.5));
        let skipped = r#"{"name": "deepsparse", "skipped": "no licence"}"#;
        assert!(
            matches!(serde_json::from_str(skipped).unwrap(), Prepared::Skipped { skipped, .. } if skipped == "no licence")
        );
    }

    #[test]
    fn an_interpreter_that_is_missing_has_no_version() {
        assert_eq!(python_minor("no-such-python"), None);
    }
}
