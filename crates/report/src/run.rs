//! What a run folder says, checked.

use crate::Error;
use crate::lines::{json, json_lines};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

/// Largest side of a picture of a mask.
const SIDE: usize = 64;
/// Layers a network may have.
const LAYERS: usize = 1000;
/// Lines a log of numbers may have.
const LOG_LINES: usize = 1_000_000;
/// Lines with pictures, which are much larger.
const PICTURE_LINES: usize = 20_000;

/// One training run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of its folder.
    pub name: String,
    /// Settings that the page names.
    pub config: Config,
    /// All settings, as written.
    pub settings: Map<String, Value>,
    /// One entry per epoch done.
    pub epochs: Vec<Epoch>,
    /// The sparse layers, in the network's order.
    pub layers: Vec<Layer>,
    /// Whether the run has `masks.jsonl`.
    pub has_masks: bool,
    /// The outcome, if training has ended.
    pub outcome: Option<Outcome>,
}

/// Settings of a run, from `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Network.
    pub model: String,
    /// Data set.
    pub dataset: String,
    /// Training method.
    pub method: Method,
    /// SRigL without neuron ablation.
    #[serde(default)]
    pub no_ablation: bool,
    /// Share of zeros asked for.
    pub sparsity: f64,
    /// Salient weights a neuron needs.
    pub gamma_sal: f64,
    /// Seed.
    pub seed: u64,
    /// Epochs asked for.
    pub epochs: u64,
}

/// Training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// No sparsity.
    Dense,
    /// A random mask that never changes.
    Static,
    /// Drop by magnitude, grow at random.
    Set,
    /// Drop by magnitude, grow by gradient.
    Rigl,
    /// RigL with constant fan-in and neuron ablation.
    Srigl,
}

/// One line of `metrics.jsonl`. A number that is missing, infinite or out of range is `None`.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Epochs done.
    pub epoch: u64,
    /// Steps done.
    pub step: u64,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Mean loss on the training images.
    pub train_loss: Option<f64>,
    /// Accuracy on the test images, 0 to 1.
    pub test_accuracy: Option<f64>,
    /// Share of zeros.
    pub sparsity: Option<f64>,
    /// Seconds the epoch took.
    pub seconds: Option<f64>,
}

/// What is known of one sparse layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Module path.
    pub name: String,
    /// Topology updates, by step.
    pub updates: Vec<Update>,
    /// Snapshots of the mask, by step.
    pub snapshots: Vec<Snapshot>,
}

/// One line of `topology.jsonl`.
#[derive(Clone, Debug)]
pub struct Update {
    /// Step of the update.
    pub step: u64,
    /// Share of neurons with at least one active weight.
    pub active: f64,
    /// Share of weights that have been active at least once.
    pub itop: Option<f64>,
}

/// One line of `masks.jsonl`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Step after which it was taken.
    pub step: u64,
    /// Neurons of the layer.
    pub neurons: u64,
    /// Inputs of each neuron without sparsity.
    pub dense_fan_in: u64,
    /// The mask, pooled.
    pub picture: Picture,
    /// Pairs (fan-in, neurons that have it), by fan-in.
    pub fan_in: Vec<(u64, u64)>,
}

/// A mask pooled to at most 64 × 64 cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows: neurons.
    pub height: usize,
    /// Columns: inputs.
    pub width: usize,
    /// Row by row, the share of active weights in 255ths.
    pub density: Vec<u8>,
}

/// The outcome of a finished run, from `result.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Outcome {
    /// Accuracy after the last epoch.
    pub test_accuracy: f64,
    /// Best accuracy after any epoch.
    pub best_test_accuracy: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Share of zeros.
    pub sparsity: f64,
    /// The data.
    pub data: Data,
}

/// The data a run used.
#[derive(Clone, Debug, Deserialize)]
pub struct Data {
    /// Name of the data set.
    pub name: String,
    /// Generated, not real.
    pub synthetic: bool,
}

#[derive(Deserialize)]
struct EpochLine {
    epoch: u64,
    step: u64,
    lr: Option<f64>,
    train_loss: Option<f64>,
    test_accuracy: Option<f64>,
    sparsity: Option<f64>,
    seconds: Option<f64>,
}

#[derive(Deserialize)]
struct TopologyLine {
    step: u64,
    layer: String,
    neurons: u64,
    active: u64,
    itop: Option<f64>,
}

#[derive(Deserialize)]
struct MaskLine {
    step: u64,
    layer: String,
    neurons: u64,
    dense_fan_in: u64,
    picture: PictureLine,
    fan_in: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct PictureLine {
    height: usize,
    width: usize,
    density: String,
}

impl Run {
    /// Reads a run folder, finished or not.
    ///
    /// # Errors
    /// If it has no `config.json`, or a file in it does not hold what it should.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let missing = || Error::Read { path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
        let settings: Map<String, Value> = json(&path)?.ok_or_else(missing)?;
        let config = Config::from_settings(&settings).map_err(|what| Error::File { path, what })?;

        let mut epochs = Vec::new();
        json_lines(&folder.join("metrics.jsonl"), LOG_LINES, |line: EpochLine| {
            epochs.push(line.into());
            Ok(())
        })?;
        // Masks first: their first snapshot names the layers in the network's order.
        let mut layers = Layers::default();
        let has_masks = json_lines(&folder.join("masks.jsonl"), PICTURE_LINES, |line| layers.snapshot(line))?;
        json_lines(&folder.join("topology.jsonl"), LOG_LINES, |line| layers.update(line))?;

        let path = folder.join("result.json");
        let outcome: Option<Outcome> = json(&path)?;
        if let Some(outcome) = &outcome {
            outcome.check().map_err(|what| Error::File { path, what })?;
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, config, settings, epochs, layers: layers.sorted(), has_masks, outcome })
    }

    /// Name of the data.
    pub fn data(&self) -> &str {
        self.outcome.as_ref().map_or(&self.config.dataset, |outcome| &outcome.data.name)
    }

    /// Whether the data is generated, not real.
    pub fn is_synthetic(&self) -> bool {
        self.outcome.as_ref().map_or(self.config.dataset == "glyphs", |outcome| outcome.data.synthetic)
    }

    /// Test accuracy after the last epoch done.
    pub fn accuracy(&self) -> Option<f64> {
        let logged = || self.epochs.last().and_then(|epoch| epoch.test_accuracy);
        self.outcome.as_ref().map(|outcome| outcome.test_accuracy).or_else(logged)
    }

    /// Best test accuracy after any epoch.
    pub fn best_accuracy(&self) -> Option<f64> {
        let logged = || self.epochs.iter().filter_map(|epoch| epoch.test_accuracy).reduce(f64::max);
        self.outcome.as_ref().map(|outcome| outcome.best_test_accuracy).or_else(logged)
    }

    /// Sparsity at the end, or after the last epoch done.
    pub fn sparsity(&self) -> Option<f64> {
        let logged = || self.epochs.last().and_then(|epoch| epoch.sparsity);
        self.outcome.as_ref().map(|outcome| outcome.sparsity).or_else(logged)
    }

    /// Seconds of training so far.
    pub fn seconds(&self) -> f64 {
        let logged = || self.epochs.iter().filter_map(|epoch| epoch.seconds).sum();
        self.outcome.as_ref().map_or_else(logged, |outcome| outcome.seconds)
    }
}

impl Config {
    fn from_settings(settings: &Map<String, Value>) -> Result<Self, String> {
        let config = Self::deserialize(Value::Object(settings.clone())).map_err(|error| error.to_string())?;
        if !(0.0..1.0).contains(&config.sparsity) {
            return Err(format!("sparsity is {:e}, but must be in [0, 1)", config.sparsity));
        }
        Ok(config)
    }

    /// `γ_sal` in force; `None` if the method has none.
    pub fn gamma_sal(&self) -> Option<f64> {
        let gamma_sal = if self.no_ablation { 0.0 } else { self.gamma_sal };
        (self.method == Method::Srigl).then_some(gamma_sal)
    }

    /// The method in words.
    pub fn method_in_words(&self) -> &'static str {
        match (self.method, self.gamma_sal()) {
            (Method::Dense, _) => "dense",
            (Method::Static, _) => "static mask",
            (Method::Set, _) => "SET",
            (Method::Rigl, _) => "RigL",
            (Method::Srigl, Some(gamma_sal)) if gamma_sal > 0.0 => "SRigL with ablation",
            (Method::Srigl, _) => "SRigL without ablation",
        }
    }
}

impl Outcome {
    fn check(&self) -> Result<(), String> {
        let shares = [
            ("test_accuracy", self.test_accuracy),
            ("best_test_accuracy", self.best_test_accuracy),
            ("sparsity", self.sparsity),
        ];
        match shares.iter().find(|(_, value)| share(Some(*value)).is_none()) {
            Some((name, value)) => Err(format!("{name} is {value:e}, but must be in [0, 1]")),
            None => Ok(()),
        }
    }
}

impl From<EpochLine> for Epoch {
    fn from(line: EpochLine) -> Self {
        // Beyond this, differences overflow.
        let sane = |value: Option<f64>| value.filter(|v| v.abs() < 1e100);
        Self {
            epoch: line.epoch,
            step: line.step,
            lr: sane(line.lr),
            train_loss: sane(line.train_loss),
            test_accuracy: share(line.test_accuracy),
            sparsity: share(line.sparsity),
            seconds: sane(line.seconds),
        }
    }
}

/// A value that is a share.
fn share(value: Option<f64>) -> Option<f64> {
    value.filter(|v| (0.0..=1.0).contains(v))
}

/// Layers in the order they are first named.
#[derive(Default)]
struct Layers {
    layers: Vec<Layer>,
    index: HashMap<String, usize>,
}

impl Layers {
    fn named(&mut self, name: String) -> Result<&mut Layer, String> {
        let next = self.layers.len();
        let i = *self.index.entry(name).or_insert_with_key(|name| {
            self.layers.push(Layer { name: name.clone(), updates: vec![], snapshots: vec![] });
            next
        });
        if i >= LAYERS { Err(format!("names more than {LAYERS} layers")) } else { Ok(&mut self.layers[i]) }
    }

    fn update(&mut self, line: TopologyLine) -> Result<(), String> {
        let TopologyLine { step, layer, neurons, active, itop } = line;
        if neurons == 0 || active > neurons {
            return Err(format!("{active} of {neurons} neurons cannot be active"));
        }
        let active = active as f64 / neurons as f64;
        self.named(layer)?.updates.push(Update { step, active, itop: share(itop) });
        Ok(())
    }

    fn snapshot(&mut self, line: MaskLine) -> Result<(), String> {
        let MaskLine { step, layer, neurons, dense_fan_in, picture, mut fan_in } = line;
        let counted = fan_in.iter().try_fold(0u64, |sum, (_, count)| sum.checked_add(*count));
        if neurons == 0 || counted != Some(neurons) {
            return Err(format!("fan_in does not count {neurons} neurons"));
        }
        if let Some((most, _)) = fan_in.iter().find(|(fan_in, _)| *fan_in > dense_fan_in) {
            return Err(format!("a fan-in is {most}, but there are {dense_fan_in} inputs"));
        }
        fan_in.sort_unstable();
        let picture = Picture::decode(picture)?;
        let layer = self.named(layer)?;
        if let Some(before) = layer.snapshots.last()
            && (before.picture.height, before.picture.width) != (picture.height, picture.width)
        {
            return Err(format!(
                "picture is {} × {}, but was {} × {}",
                picture.height, picture.width, before.picture.height, before.picture.width
            ));
        }
        layer.snapshots.push(Snapshot { step, neurons, dense_fan_in, picture, fan_in });
        Ok(())
    }

    fn sorted(mut self) -> Vec<Layer> {
        for layer in &mut self.layers {
            layer.updates.sort_by_key(|update| update.step);
            layer.snapshots.sort_by_key(|snapshot| snapshot.step);
            layer.snapshots.dedup_by_key(|snapshot| snapshot.step);
        }
        self.layers
    }
}

impl Picture {
    fn decode(line: PictureLine) -> Result<Self, String> {
        let PictureLine { height, width, density } = line;
        if !(1..=SIDE).contains(&height) || !(1..=SIDE).contains(&width) {
            return Err(format!("picture is {height} × {width}, but sides must be 1 to {SIDE}"));
        }
        let density = STANDARD.decode(density).map_err(|error| format!("picture: {error}"))?;
        if density.len() != height * width {
            return Err(format!("picture has {} cells, not {height} × {width}", density.len()));
        }
        Ok(Self { height, width, density })
    }
}

impl Snapshot {
    /// Share of neurons with at least one active weight.
    pub fn active(&self) -> f64 {
        1.0 - self.ablated() as f64 / self.neurons as f64
    }

    /// Neurons without active weights.
    pub fn ablated(&self) -> u64 {
        self.fan_in.iter().filter(|(fan_in, _)| *fan_in == 0).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const CONFIG: &str = r#"{"model":"mlp","dataset":"glyphs","method":"srigl","no_ablation":false,
        "sparsity":0.9,"gamma_sal":0.3,"seed":1,"epochs":4,"lr":0.1}"#;
    const MASK: &str = r#"{"step":0,"layer":"fc","neurons":2,"dense_fan_in":3,
        "picture":{"height":2,"width":3,"density":"AP8AAAAA"},"fan_in":[[1,1],[0,1]]}"#;

    fn read(files: &[(&str, &str)]) -> Result<Run, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Run::read(folder.path()).map_err(|error| error.to_string())
    }

    fn line(text: &str) -> String {
        text.replace('\n', " ") + "\n"
    }

    #[test]
    fn an_unfinished_run() {
        let run = read(&[("config.json", CONFIG)]).unwrap();
        assert!(run.is_synthetic() && run.outcome.is_none() && !run.has_masks);
        assert_eq!(run.config.method_in_words(), "SRigL with ablation");
        assert_eq!((run.accuracy(), run.seconds()), (None, 0.0));
    }

    #[test]
    fn all_files() {
        let metrics = "{\"epoch\":1,\"step\":9,\"lr\":0.1,\"train_loss\":null,\"test_accuracy\":7,\
                       \"sparsity\":0.9,\"seconds\":2}\n";
        let topology =
            "{\"step\":8,\"layer\":\"fc\",\"neurons\":2,\"active\":1,\"ablated\":[1],\"itop\":0.5}\n";
        let result = r#"{"test_accuracy":0.5,"best_test_accuracy":0.6,"epochs":1,"seconds":3.5,"sparsity":0.9,
            "device":"flex","data":{"name":"drawn","synthetic":false},"layers":[]}"#;
        let run = read(&[
            ("config.json", CONFIG),
            ("metrics.jsonl", metrics),
            ("masks.jsonl", &line(MASK)),
            ("topology.jsonl", topology),
            ("result.json", result),
        ])
        .unwrap();
        assert_eq!((run.epochs[0].train_loss, run.epochs[0].test_accuracy), (None, None));
        let layer = &run.layers[0];
        assert_eq!((layer.updates[0].active, layer.updates[0].itop), (0.5, Some(0.5)));
        assert_eq!((layer.snapshots[0].active(), layer.snapshots[0].ablated()), (0.5, 1));
        assert_eq!(layer.snapshots[0].picture.density, [0, 255, 0, 0, 0, 0]);
        assert_eq!((run.data(), run.is_synthetic(), run.accuracy()), ("drawn", false, Some(0.5)));
    }

    #[test]
    fn what_is_refused() {
        let mask = |from: &str, to: &str| {
            assert!(MASK.contains(from));
            read(&[("config.json", CONFIG), ("masks.jsonl", &line(&MASK.replace(from, to)))]).unwrap_err()
        };
        for (from, to, part) in [
            ("\"height\":2", "\"height\":65", "sides must be 1 to 64"),
            ("\"height\":2", "\"height\":0", "sides must be 1 to 64"),
            ("\"height\":2", "\"height\":1", "has 6 cells, not 1 × 3"),
            ("AP8AAAAA", "AP8A<", "line 1: picture: Invalid"),
            ("[1,1]", "[4,1]", "a fan-in is 4, but there are 3 inputs"),
            ("[1,1]", "[1,18446744073709551615]", "does not count 2 neurons"),
            ("\"neurons\":2", "\"neurons\":0", "does not count 0 neurons"),
            ("\"step\":0", "\"step\":-1", "invalid value"),
        ] {
            let error = mask(from, to);
            assert!(error.contains(part), "{error}");
        }
        let config = |from: &str, to: &str| read(&[("config.json", &CONFIG.replace(from, to))]).unwrap_err();
        assert!(config("0.9", "1.5").contains("sparsity is 1.5e0, but must be in [0, 1)"));
        assert!(config("srigl", "magic").contains("unknown variant `magic`"));
        assert!(read(&[]).unwrap_err().contains("is this a run folder of `srigl train`?"));
        let topology = "{\"step\":8,\"layer\":\"fc\",\"neurons\":2,\"active\":3,\"itop\":0.5}\n";
        let error = read(&[("config.json", CONFIG), ("topology.jsonl", topology)]).unwrap_err();
        assert!(error.contains("3 of 2 neurons cannot be active"), "{error}");
    }

    #[test]
    fn layers_are_limited() {
        let mut layers = Layers::default();
        for i in 0..LAYERS {
            layers.named(i.to_string()).unwrap();
        }
        assert!(layers.named("0".into()).is_ok());
        assert_eq!(layers.named("one more".into()).unwrap_err(), "names more than 1000 layers");
    }
}
