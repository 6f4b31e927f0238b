//! `--torch PYTHON`: a Python process that takes turns with ours. `torch.py` describes what is said.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::device::{BF16_TOLERANCE, TF32_TOLERANCE, layer_bytes};
use super::layer::Layer;
use super::{Contender, Saved, TOLERANCE, write};

const SCRIPT: &str = include_str!("torch.py");

/// PyTorch in a process of its own, on one device.
#[derive(Clone)]
pub struct Torch {
    process: Rc<RefCell<Process>>,
    /// Whether single calls are timed by the device's clock, too.
    on_device: bool,
}

struct Process {
    child: Child,
    /// `None` only while it is being stopped.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// For tensors on their way.
    folder: TempDir,
}

/// What a request is answered with.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Error { error: String },
    Fine(T),
}

/// A contender that is ready.
#[derive(Deserialize)]
struct Ready {
    name: String,
    engine: String,
}

impl Torch {
    /// Starts PyTorch on `device`, by its name in `srigl`.
    pub fn start(python: &Path, device: &str, threads: usize) -> Result<Self> {
        let device = if device.starts_with("cuda") { device } else { "cpu" };
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, device, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start --torch {}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.context("a process without output")?);
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut process = Process { child, requests, answers, folder };
        process.answer::<Value>().with_context(|| format!("--torch {}", python.display()))?;
        Ok(Self { process: Rc::new(RefCell::new(process)), on_device: device != "cpu" })
    }

    /// Dense, in all float types, and CSR; `saved` are `weight`, `bias` and `input`.
    ///
    /// `numbers` are those of input and output together.
    pub fn layer(
        &self,
        saved: &[Saved],
        stride: usize,
        padding: usize,
        layer: &Layer,
        numbers: usize,
    ) -> Result<Vec<Contender>> {
        let request = json!({ "do": "layer", "stride": stride, "padding": padding });
        let mut contenders = self.with_file(saved, request)?;
        for contender in &mut contenders {
            let float = if contender.name.contains("bf16") { 2 } else { 4 };
            let index = contender.name.contains("csr").then_some(4);
            contender.bytes = Some(layer_bytes(layer, numbers, float, index));
        }
        Ok(contenders)
    }

    /// A network of torchvision, in all float types.
    pub fn model(&self, name: &str, weights: Vec<Saved>, input: Saved) -> Result<Vec<Contender>> {
        let saved: Vec<Saved> = weights.into_iter().chain([input]).collect();
        self.with_file(&saved, json!({ "do": "model", "model": name }))
    }

    /// Training steps of a network of torchvision on random images.
    pub fn train(&self, name: &str, batch: usize, float: &str, image: [usize; 3]) -> Result<Vec<Contender>> {
        self.contenders(
            &json!({ "do": "train", "model": name, "batch": batch, "float": float, "image": image }),
        )
    }

    fn with_file(&self, saved: &[Saved], mut request: Value) -> Result<Vec<Contender>> {
        let path = self.process.borrow().folder.path().join("case.safetensors");
        write(&path, saved)?;
        request["file"] = path.to_string_lossy().into();
        let contenders = self.contenders(&request);
        std::fs::remove_file(&path)?;
        contenders
    }

    fn contenders(&self, request: &Value) -> Result<Vec<Contender>> {
        #[derive(Deserialize)]
        struct Contenders {
            contenders: Vec<Ready>,
        }
        let ready: Contenders = self.process.borrow_mut().ask(request)?;
        Ok(ready.contenders.into_iter().map(|ready| self.contender(ready)).collect())
    }

    fn contender(&self, Ready { name, engine }: Ready) -> Contender {
        #[derive(Deserialize)]
        struct Timed {
            seconds: f64,
        }
        let (torch, of) = (self.clone(), name.clone());
        let mut contender = Contender::timed(&name, engine, move |calls, _, _| {
            let timed: Timed =
                torch.process.borrow_mut().ask(&json!({ "do": "time", "name": of, "calls": calls }))?;
            ensure!(timed.seconds > 0.0, "PyTorch says that `{of}` took {} s", timed.seconds);
            Ok(timed.seconds)
        });
        let (torch, of) = (self.clone(), name.clone());
        contender.read = Some(Box::new(move |output| torch.process.borrow_mut().read(&of, output)));
        if self.on_device {
            let (torch, of) = (self.clone(), name.clone());
            contender.device_time = Some(Box::new(move || {
                let timed: Timed = torch.process.borrow_mut().ask(&json!({ "do": "device", "name": of }))?;
                Ok(timed.seconds)
            }));
        }
        contender.tolerance = match name.as_str() {
            "torch tf32" => TF32_TOLERANCE,
            "torch bf16" => BF16_TOLERANCE,
            _ => TOLERANCE,
        };
        contender
    }
}

impl Process {
    fn ask<T: for<'a> Deserialize<'a>>(&mut self, request: &Value) -> Result<T> {
        let requests = self.requests.as_mut().context("PyTorch has ended")?;
        writeln!(requests, "{request}").context("PyTorch has ended")?;
        self.answer()
    }

    fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("it ended without a word: {}", self.child.wait()?);
        }
        match serde_json::from_str(&line).with_context(|| format!("it says {}", line.trim_end()))? {
            Answer::Error { error } => bail!("{error}"),
            Answer::Fine(answer) => Ok(answer),
        }
    }

    /// The last result of a contender.
    fn read(&mut self, name: &str, output: &mut [f32]) -> Result<()> {
        let path = self.folder.path().join("result");
        let _: Value = self.ask(&json!({ "do": "read", "name": name, "file": path.to_string_lossy() }))?;
        let bytes = std::fs::read(&path)?;
        let (numbers, rest) = bytes.as_chunks();
        if numbers.len() != output.len() || !rest.is_empty() {
            return Err(anyhow!("`{name}` gives {} bytes for {} numbers", bytes.len(), output.len()));
        }
        output.iter_mut().zip(numbers).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input.
        self.requests = None;
        let _ = self.child.wait();
    }
}
