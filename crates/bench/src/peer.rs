//! `--torch`, `--onnxruntime` and `--deepsparse PYTHON`: Python processes that take turns with ours. `peer.py` describes
//! what is said.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::device::{BF16_TOLERANCE, TF32_TOLERANCE, layer_bytes};
use super::layer::Layer;
use super::{Contender, Saved, TOLERANCE, write};

const SCRIPT: &str = include_str!("peer.py");

/// The interpreter with PyTorch.
#[derive(Args)]
pub struct TorchArgs {
    /// An interpreter with PyTorch, which then takes turns on the same device (python3, say)
    #[arg(long, value_name = "PYTHON")]
    torch: Option<PathBuf>,
}

/// Interpreters with engines that only run networks, on the CPU.
#[derive(Args)]
pub struct OnnxArgs {
    /// An interpreter with ONNX Runtime and onnx, which then takes turns; for a model, --torch writes what it reads
    #[arg(long, value_name = "PYTHON", conflicts_with = "device")]
    onnxruntime: Option<PathBuf>,
    /// The same with DeepSparse and onnx
    #[arg(long, value_name = "PYTHON", conflicts_with = "device")]
    deepsparse: Option<PathBuf>,
}

impl TorchArgs {
    /// PyTorch, if it is asked for. `device` is a name that `srigl` knows; without one, it is the CPU.
    pub fn start(&self, device: Option<&str>, threads: usize) -> Result<Option<Peer>> {
        let device = device.filter(|device| device.starts_with("cuda")).unwrap_or("cpu");
        self.torch.as_ref().map(|python| Peer::start("torch", python, device, threads)).transpose()
    }
}

/// The engines beside ours, in processes of their own.
pub struct Peers {
    torch: Option<Peer>,
    others: Vec<Peer>,
    /// Whether contenders in bf16 are wanted.
    half: bool,
}

/// What peers offer.
#[derive(Default)]
pub struct Offer {
    /// They are ready.
    pub contenders: Vec<Contender>,
    /// They cannot run this.
    pub skipped: Vec<Skipped>,
}

/// A contender that cannot run this.
#[derive(Clone, Deserialize, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

impl Peers {
    /// Starts all that are asked for.
    pub fn start(torch: &TorchArgs, onnx: &OnnxArgs, device: Option<&str>, threads: usize) -> Result<Self> {
        let engines = [("onnxruntime", &onnx.onnxruntime), ("deepsparse", &onnx.deepsparse)];
        let asked = engines.into_iter().filter_map(|(engine, python)| Some((engine, python.as_ref()?)));
        Ok(Self {
            torch: torch.start(device, threads)?,
            others: asked
                .map(|(engine, python)| Peer::start(engine, python, "cpu", threads))
                .collect::<Result<_>>()?,
            half: device.is_some(),
        })
    }

    /// Whether anybody is asked for.
    pub fn any(&self) -> bool {
        self.torch.is_some() || !self.others.is_empty()
    }

    /// A layer, dense and in each sparse form that an engine has; `saved` are `weight`, `bias` and `input`.
    ///
    /// `numbers` are those of input and output together. For `training` there is the `gradient` by the result, too.
    pub fn layer(
        &self,
        saved: &[Saved],
        (stride, padding): (usize, usize),
        layer: &Layer,
        numbers: usize,
        training: bool,
    ) -> Offer {
        let todo = if training { "train_layer" } else { "layer" };
        let request = json!({ "do": todo, "stride": stride, "padding": padding, "half": self.half });
        let mut offer = Offer::default();
        for peer in self.torch.iter().chain(&self.others) {
            offer.extend(peer.with_file(saved, request.clone()));
        }
        for contender in &mut offer.contenders {
            let float = if contender.name.contains("bf16") { 2 } else { 4 };
            let index = ["csr", "condensed"].iter().any(|form| contender.name.contains(form)).then_some(4);
            contender.bytes = Some(layer_bytes(layer, numbers, float, index));
        }
        offer
    }

    /// A network of torchvision.
    ///
    /// # Errors
    /// Without PyTorch the others have no network to read.
    pub fn model(&self, name: &str, weights: Vec<Saved>, input: Saved) -> Result<Offer> {
        let saved: Vec<Saved> = weights.into_iter().chain([input]).collect();
        let mut request = json!({ "do": "model", "model": name, "half": self.half });
        let mut offer = Offer::default();
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        if let Some(torch) = &self.torch {
            offer.extend(torch.with_file(&saved, request.clone()));
        }
        if !self.others.is_empty() {
            let torch = self.torch.as_ref();
            let torch = torch
                .context("--onnxruntime and --deepsparse read a model that --torch writes: give it, too")?;
            request["onnx"] = folder.path().join("model.onnx").to_string_lossy().into();
            request["do"] = "export".into();
            let exported = torch.ask_with_file::<Value>(&saved, request.clone());
            request["do"] = "model".into();
            for peer in &self.others {
                offer.extend(match &exported {
                    Ok(_) => peer.with_file(&saved, request.clone()),
                    Err(error) => peer.skipped(&format!("PyTorch cannot write the model: {error:#}")),
                });
            }
        }
        Ok(offer)
    }
}

impl Offer {
    fn extend(&mut self, other: Self) {
        self.contenders.extend(other.contenders);
        self.skipped.extend(other.skipped);
    }
}

/// One engine in a process of its own, on one device.
#[derive(Clone)]
pub struct Peer {
    process: Rc<RefCell<Process>>,
    /// Whether single calls are timed by the device's clock, too.
    on_device: bool,
}

struct Process {
    /// As in options.
    engine: &'static str,
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

#[derive(Deserialize)]
struct Timed {
    seconds: f64,
}

impl Peer {
    /// Starts an engine, which is also the option's name.
    fn start(engine: &'static str, python: &Path, device: &str, threads: usize) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, engine, device, &threads.to_string()])
            // Extensions bring an OpenMP of their own.
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start --{engine} {}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.context("a process without output")?);
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let mut process = Process { engine, child, requests, answers, folder };
        process.answer::<Value>().with_context(|| format!("--{engine} {}", python.display()))?;
        Ok(Self { process: Rc::new(RefCell::new(process)), on_device: device != "cpu" })
    }

    /// Training steps of a network of torchvision on random images; PyTorch only.
    pub fn train(&self, name: &str, batch: usize, float: &str, image: [usize; 3]) -> Result<Vec<Contender>> {
        let request = json!({ "do": "train", "model": name, "batch": batch, "float": float, "image": image });
        let offer = self.offer(self.process.borrow_mut().ask(&request)?);
        match offer.skipped.first() {
            None => Ok(offer.contenders),
            Some(Skipped { name, why }) => bail!("{name}: {why}"),
        }
    }

    /// What it offers for a request with tensors; nothing if it fails.
    fn with_file(&self, saved: &[Saved], request: Value) -> Offer {
        match self.ask_with_file(saved, request) {
            Ok(contenders) => self.offer(contenders),
            Err(error) => self.skipped(&format!("{error:#}")),
        }
    }

    fn skipped(&self, why: &str) -> Offer {
        let skipped = Skipped { name: self.process.borrow().engine.into(), why: why.into() };
        Offer { contenders: Vec::new(), skipped: vec![skipped] }
    }

    fn ask_with_file<T: for<'a> Deserialize<'a>>(&self, saved: &[Saved], mut request: Value) -> Result<T> {
        let path = self.process.borrow().folder.path().join("case.safetensors");
        write(&path, saved)?;
        request["file"] = path.to_string_lossy().into();
        let answer = self.process.borrow_mut().ask(&request);
        std::fs::remove_file(&path)?;
        answer
    }

    fn offer(&self, Contenders { contenders, skipped }: Contenders) -> Offer {
        Offer { contenders: contenders.into_iter().map(|ready| self.contender(ready)).collect(), skipped }
    }

    fn contender(&self, Ready { name, engine }: Ready) -> Contender {
        let (peer, of) = (self.clone(), name.clone());
        let mut contender = Contender::timed(&name, engine, move |calls, _, _| {
            let timed: Timed =
                peer.process.borrow_mut().ask(&json!({ "do": "time", "name": of, "calls": calls }))?;
            ensure!(timed.seconds > 0.0, "Python says that `{of}` took {} s", timed.seconds);
            Ok(timed.seconds)
        });
        let (peer, of) = (self.clone(), name.clone());
        contender.read = Some(Box::new(move |output| peer.process.borrow_mut().read(&of, output)));
        if self.on_device {
            let (peer, of) = (self.clone(), name.clone());
            contender.device_time = Some(Box::new(move || {
                let timed: Timed = peer.process.borrow_mut().ask(&json!({ "do": "device", "name": of }))?;
                Ok(timed.seconds)
            }));
        }
        contender.is_peer = true;
        contender.has_threads = !self.on_device;
        contender.tolerance = match name.as_str() {
            "torch tf32" => TF32_TOLERANCE,
            "torch bf16" => BF16_TOLERANCE,
            _ => TOLERANCE,
        };
        contender
    }
}

#[derive(Deserialize)]
struct Contenders {
    contenders: Vec<Ready>,
    skipped: Vec<Skipped>,
}

impl Peer {
    /// The most bytes that training has taken in its process, beside what was there before.
    pub fn training_memory(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct Memory {
            bytes: u64,
        }
        Ok(self.process.borrow_mut().ask::<Memory>(&json!({ "do": "memory" }))?.bytes)
    }
}

impl Process {
    fn ask<T: for<'a> Deserialize<'a>>(&mut self, request: &Value) -> Result<T> {
        let requests = self.requests.as_mut().with_context(|| format!("{} has ended", self.engine))?;
        writeln!(requests, "{request}").with_context(|| format!("{} has ended", self.engine))?;
        self.answer()
    }

    fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended without a word: {}", self.engine, self.child.wait()?);
        }
        let says = || format!("{} says {}", self.engine, line.trim_end());
        match serde_json::from_str(&line).with_context(says)? {
            Answer::Error { error } => bail!("{}: {error}", self.engine),
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
