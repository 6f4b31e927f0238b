//! The other engines: `srigl bench` lets PyTorch, ONNX Runtime and DeepSparse take turns with ours, each in a Python
//! process. Here are the interpreters that have them.

use crate::runner::{shell_line, tail};
use anyhow::{Context, Result, ensure};
use srigl_run::print;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A virtual environment and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// PyTorch and ONNX Runtime.
    Torch,
    /// DeepSparse, which needs an older Python and older packages.
    DeepSparse,
    /// napkinxc, label trees for extreme classification.
    Napkinxc,
}

impl Environment {
    /// Those of `srigl bench`, in the order of the columns.
    pub const ALL: [Self; 2] = [Self::Torch, Self::DeepSparse];

    /// Name for folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::DeepSparse => "deepsparse",
            Self::Napkinxc => "napkinxc",
        }
    }

    /// The engines that it has, by their modules; `srigl bench` has options of these names.
    fn engines(self) -> &'static [&'static str] {
        match self {
            Self::Torch => &["torch", "onnxruntime"],
            Self::DeepSparse => &["deepsparse"],
            Self::Napkinxc => &["napkinxc"],
        }
    }

    /// What pip installs, one call for each line: one that fails does not prevent the next.
    fn packages(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Torch => &[&["numpy", "torch", "torchvision"], &["numpy", "onnx", "onnxruntime"]],
            Self::DeepSparse => &[&["deepsparse==1.8.0"]],
            Self::Napkinxc => &[&["numpy", "scipy", "napkinxc==0.7.2"]],
        }
    }

    /// Interpreters to try, and the minor versions of Python 3 that will do.
    fn interpreters(self) -> (&'static [&'static str], std::ops::RangeInclusive<u32>) {
        match self {
            Self::Torch | Self::Napkinxc => (&["python3"], 9..=u32::MAX),
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
        print::say(&format!("installing {} for comparison, once", self.engines().join(" and ")));
        succeed(Command::new(base).args(["-m", "venv", "--clear"]).arg(folder))?;
        let mut errors = Vec::new();
        for packages in self.packages() {
            let mut pip = Command::new(&python);
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(*packages);
            errors.extend(succeed(&mut pip).err());
        }
        match errors.pop() {
            None => srigl_run::atomic::write(&marker, wanted.as_bytes())?,
            Some(error) if errors.len() + 1 == self.packages().len() => return Err(error),
            // Asking for the engine says which module is missing.
            Some(error) => print::say(&format!("{error:#}")),
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

/// Runs a command silently and returns what it has printed.
///
/// # Errors
/// If it cannot be started or fails, with the end of its error output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", shell_line(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}\n{}", shell_line(command), output.status, tail(&stderr, 5));
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// Interpreters that have other engines.
#[derive(Default)]
pub struct Peers {
    /// Option of `srigl bench` and interpreter.
    engines: Vec<(&'static str, PathBuf)>,
    /// Whether PyTorch has torchvision, from which the models are.
    has_models: bool,
    /// Which engines cannot be had, and why.
    pub missing: Vec<String>,
}

impl Peers {
    /// Looks what there is; `given` is an interpreter to use instead of an environment under `folder`.
    pub fn find(folder: &Path, given: impl Fn(Environment) -> Option<PathBuf>) -> Self {
        let mut peers = Self::default();
        for environment in Environment::ALL {
            let made = || environment.python(&folder.join(environment.name()));
            let python = given(environment).map_or_else(made, Ok);
            for engine in environment.engines() {
                match python
                    .as_ref()
                    .map_err(|error| format!("{error:#}"))
                    .and_then(|python| asked(python, engine))
                {
                    Ok(python) => {
                        peers.has_models |= *engine == "torch" && asked(&python, "torchvision").is_ok();
                        peers.engines.push((engine, python));
                    }
                    Err(why) => {
                        // The report is no place for pip's output.
                        print::say(&format!("{engine} is skipped: {why}"));
                        let first = why.lines().next().unwrap_or_default();
                        peers.missing.push(format!("{engine} is skipped: {}", without_paths(first)));
                    }
                }
            }
        }
        peers
    }

    /// Options of `srigl bench` for a whole model or a layer. What ONNX engines read of a model, PyTorch writes.
    pub fn args(&self, is_model: bool) -> Vec<String> {
        let engines = self.engines.iter().filter(|_| self.has_models || !is_model);
        engines.flat_map(|(engine, python)| [format!("--{engine}"), python.display().to_string()]).collect()
    }
}

/// The interpreter, if it has the module and what that needs here.
fn asked(python: &Path, module: &str) -> Result<PathBuf, String> {
    let onnx = if module.starts_with("torch") { "" } else { "onnx, " };
    let mut command = Command::new(python);
    command.args(["-c", &format!("import numpy, {onnx}{module}")]);
    match succeed(&mut command) {
        Ok(_) => Ok(python.into()),
        Err(error) => {
            // Python's last line says what is missing.
            let text = format!("{error:#}");
            Err(text.trim_end().lines().last().unwrap_or_default().trim_start_matches([' ', '|']).to_string())
        }
    }
}

/// Words with a path of this machine in them have no place in a report.
pub fn without_paths(text: &str) -> String {
    let words = text.split(' ').map(|word| if word.starts_with('/') { "…" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_that_is_missing_has_no_version() {
        assert_eq!(python_minor("no-such-python"), None);
    }

    #[test]
    fn a_missing_engine_is_told_and_not_asked_for() {
        let peers = Peers::find(Path::new("nowhere"), |_| Some("no-such-python".into()));
        assert!(peers.args(false).is_empty());
        assert_eq!(peers.missing.len(), 3);
        assert!(peers.missing[0].starts_with("torch is skipped: "), "{:?}", peers.missing);
        assert_eq!(without_paths("cannot read /a/b now"), "cannot read … now");
    }

    #[test]
    fn without_pytorch_there_is_no_model_to_read() {
        let engines = vec![("onnxruntime", PathBuf::from("p")), ("deepsparse", "q".into())];
        let mut peers = Peers { engines, has_models: false, missing: vec![] };
        assert!(peers.args(true).is_empty());
        assert_eq!(peers.args(false), ["--onnxruntime", "p", "--deepsparse", "q"]);
        peers.engines.insert(0, ("torch", "p".into()));
        peers.has_models = true;
        assert_eq!(peers.args(true).len(), 6);
    }
}
