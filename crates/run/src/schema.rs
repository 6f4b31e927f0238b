//! The lines and objects in a run's files.

use crate::Storage;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sparsity_core::{LayerStats, UpdateReport};

/// One line of `metrics.jsonl`. A number that is missing or not finite is `None`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Epoch {
    /// Epochs done.
    pub epoch: usize,
    /// Optimizer steps done.
    pub step: u64,
    /// Learning rate of the last step.
    pub lr: Option<f64>,
    /// Mean loss on the training images.
    pub train_loss: Option<f64>,
    /// Accuracy on the training images while they were trained on, 0 to 1.
    pub train_accuracy: Option<f64>,
    /// Mean loss on the test images.
    pub test_loss: Option<f64>,
    /// Accuracy on the test images, 0 to 1.
    pub test_accuracy: Option<f64>,
    /// Share of the test images whose class is among the five most likely, 0 to 1.
    #[serde(default)]
    pub test_top5: Option<f64>,
    /// Share of zeros.
    pub sparsity: Option<f64>,
    /// Training images per second.
    pub images_per_second: Option<f64>,
    /// Seconds the epoch took.
    pub seconds: Option<f64>,
    /// On which device its last step was taken.
    #[serde(default)]
    pub device: Option<String>,
    /// How its sparse layers were stored.
    #[serde(default)]
    pub storage: Option<Storage>,
}

/// One line of `topology.jsonl`: a topology update of one layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopologyLine {
    /// Optimizer step, counting from 1.
    pub step: u64,
    /// Module path of the layer.
    pub layer: String,
    /// What changed.
    #[serde(flatten)]
    pub report: UpdateReport,
    /// Share of positions that have been active at least once.
    pub itop: f64,
}

impl TopologyLine {
    /// Share of neurons with at least one active weight.
    pub fn active(&self) -> f64 {
        self.report.stats.active as f64 / self.report.stats.neurons as f64
    }

    /// Checks numbers that are read from a file.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (neurons, active) = (self.report.stats.neurons, self.report.stats.active);
        if neurons == 0 || active > neurons {
            return Err(format!("{active} of {neurons} neurons cannot be active"));
        }
        if !(0.0..=1.0).contains(&self.itop) {
            return Err(format!("itop is {:e}, but must be in [0, 1]", self.itop));
        }
        Ok(())
    }
}

/// One line of `masks.jsonl`: a layer's mask after a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MaskLine {
    /// Step after which it was drawn.
    pub step: u64,
    /// Module path of the layer.
    pub layer: String,
    /// Neurons of the layer.
    pub neurons: u64,
    /// Inputs of each neuron without sparsity.
    pub dense_fan_in: u64,
    /// The mask, pooled.
    pub picture: Picture,
    /// Pairs (fan-in, neurons that have it), by fan-in.
    pub fan_in: Vec<(u64, u64)>,
}

impl MaskLine {
    /// Share of neurons with at least one active weight.
    pub fn active(&self) -> f64 {
        1.0 - self.ablated() as f64 / self.neurons as f64
    }

    /// Neurons without active weights.
    pub fn ablated(&self) -> u64 {
        self.fan_in.iter().filter(|(fan_in, _)| *fan_in == 0).map(|(_, count)| count).sum()
    }

    /// Checks counts that are read from a file, and sorts them.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let counted = self.fan_in.iter().try_fold(0u64, |sum, (_, count)| sum.checked_add(*count));
        if self.neurons == 0 || counted != Some(self.neurons) {
            return Err(format!("fan_in does not count {} neurons", self.neurons));
        }
        if let Some((most, _)) = self.fan_in.iter().find(|(fan_in, _)| *fan_in > self.dense_fan_in) {
            return Err(format!("a fan-in is {most}, but there are {} inputs", self.dense_fan_in));
        }
        self.fan_in.sort_unstable();
        Ok(())
    }
}

/// A mask pooled to at most 64 × 64 cells; in JSON the cells are Base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Rows: neurons.
    pub height: usize,
    /// Columns: inputs.
    pub width: usize,
    /// Row by row, the share of active weights in 255ths.
    pub density: Vec<u8>,
}

impl Picture {
    /// Height and width of the largest picture, in cells.
    pub const SIDE: usize = 64;
}

#[derive(Serialize, Deserialize)]
struct PictureText {
    height: usize,
    width: usize,
    density: String,
}

impl Serialize for Picture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let density = BASE64_STANDARD.encode(&self.density);
        PictureText { height: self.height, width: self.width, density }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Picture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let PictureText { height, width, density } = PictureText::deserialize(deserializer)?;
        let wrong = |what: String| Err(D::Error::custom(what));
        let side = Self::SIDE;
        if !(1..=side).contains(&height) || !(1..=side).contains(&width) {
            return wrong(format!("picture is {height} × {width}, but sides must be 1 to {side}"));
        }
        let density = match BASE64_STANDARD.decode(density) {
            Ok(density) => density,
            Err(error) => return wrong(format!("picture: {error}")),
        };
        if density.len() != height * width {
            return wrong(format!("picture has {} cells, not {height} × {width}", density.len()));
        }
        Ok(Self { height, width, density })
    }
}

/// The outcome of a finished run, `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// Accuracy on the test images after the last epoch, 0 to 1.
    pub test_accuracy: f64,
    /// Best such accuracy after any epoch.
    pub best_test_accuracy: f64,
    /// Share of the test images whose class is among the five most likely, after the last epoch.
    #[serde(default)]
    pub test_top5: Option<f64>,
    /// Epochs trained.
    pub epochs: usize,
    /// Seconds of training, over all interruptions.
    pub seconds: f64,
    /// Share of zeros over all layers that count.
    pub sparsity: f64,
    /// Device it was trained on.
    pub device: String,
    /// What it started from, if from weights of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_from: Option<StartedFrom>,
    /// Data it was trained on.
    pub data: DataUsed,
    /// Topology at the end; empty for dense training.
    pub layers: Vec<LayerResult>,
}

impl RunResult {
    /// Checks the numbers that must be shares.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares = [
            ("test_accuracy", self.test_accuracy),
            ("best_test_accuracy", self.best_test_accuracy),
            ("sparsity", self.sparsity),
        ];
        match shares.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            Some((name, value)) => Err(format!("{name} is {value:e}, but must be in [0, 1]")),
            None => Ok(()),
        }
    }
}

/// The weights of a file that a run started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartedFrom {
    /// The name of the file, without its folder.
    pub file: String,
    /// Where the first masks came from.
    pub initial_mask: String,
    /// Share of zeros at the start.
    pub sparsity: f64,
    /// Accuracy on the test images before the first step, 0 to 1.
    pub test_accuracy: f64,
    /// What was guessed of the file.
    pub notes: Vec<String>,
}

/// The data a run used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataUsed {
    /// Name of the data set.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Generated, not real.
    pub synthetic: bool,
    /// Training images used.
    pub train_images: usize,
    /// Test images used.
    pub test_images: usize,
}

impl DataUsed {
    /// Name and origin of the images of a loader.
    pub fn new(loader: &srigl_data::Loader) -> Self {
        let source = loader.source();
        Self {
            name: source.set().to_string(),
            source: source.origin(),
            synthetic: source.set().is_synthetic(),
            train_images: loader.train_images(),
            test_images: loader.test_images(),
        }
    }

    /// In a few words, with a warning where it is due.
    pub fn describe(&self) -> String {
        let synthetic = if self.synthetic { " (SYNTHETIC)" } else { "" };
        format!("{}{synthetic}, {} images", self.name, self.train_images)
    }

    /// The source without a path of this machine, which has no place in a report.
    pub fn public_source(&self) -> &str {
        let path = self.source.contains(['/', '\\']) && !self.source.starts_with("http");
        if path { "local files" } else { &self.source }
    }
}

/// Topology of one layer at the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerResult {
    /// Module path.
    pub name: String,
    /// Positions `N·M`.
    pub weights: usize,
    /// Counts.
    #[serde(flatten)]
    pub stats: LayerStats,
    /// Share of positions that have been active at least once.
    pub itop: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_out_of_reports() {
        let data = |source: &str| DataUsed {
            name: "d".into(),
            source: source.into(),
            synthetic: false,
            train_images: 1,
            test_images: 1,
        };
        assert_eq!(data("/home/me/data").public_source(), "local files");
        assert_eq!(data("https://a.org/b").public_source(), "https://a.org/b");
        assert_eq!(data("generated (synthetic)").public_source(), "generated (synthetic)");
    }

    fn topology(neurons: usize, active: usize, itop: f64) -> TopologyLine {
        let mut stats = LayerStats::of_fan_ins(&vec![2; neurons], 4);
        stats.active = active;
        TopologyLine {
            step: 1,
            layer: "fc".into(),
            report: UpdateReport { stats, pruned: 0, grown: 0 },
            itop,
        }
    }

    #[test]
    fn topology_lines_count_no_more_than_there_is() {
        assert_eq!(topology(4, 3, 0.5).active(), 0.75);
        for (neurons, active, itop) in [(4, 4, 0.0), (4, 0, 1.0)] {
            topology(neurons, active, itop).check().unwrap();
        }
        assert_eq!(topology(4, 5, 0.5).check().unwrap_err(), "5 of 4 neurons cannot be active");
        assert!(topology(0, 0, 0.5).check().is_err());
        for itop in [-0.1, 1.1, f64::NAN] {
            assert!(topology(4, 4, itop).check().unwrap_err().contains("itop is"), "{itop}");
        }
    }

    fn mask(neurons: u64, fan_in: &[(u64, u64)]) -> MaskLine {
        let picture = Picture { height: 1, width: 1, density: vec![0] };
        let fan_in = fan_in.to_vec();
        MaskLine { step: 1, layer: "fc".into(), neurons, dense_fan_in: 3, picture, fan_in }
    }

    #[test]
    fn mask_lines_count_each_neuron_once() {
        let mut line = mask(8, &[(3, 5), (2, 1), (0, 2)]);
        line.check().unwrap();
        assert_eq!(line.fan_in, [(0, 2), (2, 1), (3, 5)], "sorted");
        assert_eq!((line.ablated(), line.active()), (2, 0.75));
        assert!(mask(8, &[(3, 7)]).check().is_err() && mask(0, &[]).check().is_err());
        assert!(mask(8, &[(4, 8)]).check().unwrap_err().contains("a fan-in is 4"));
    }

    #[test]
    fn pictures_have_a_cell_for_each_row_and_column_up_to_the_largest_side() {
        for (height, width) in [(1, 1), (1, 64), (64, 3)] {
            let picture = Picture { height, width, density: vec![7; height * width] };
            let json = serde_json::to_value(&picture).unwrap();
            assert_eq!(serde_json::from_value::<Picture>(json).unwrap(), picture);
        }
        for (height, width, cells) in [(1, 65, 65), (65, 1, 65), (0, 1, 0), (1, 0, 0), (2, 2, 5), (2, 3, 5)] {
            let picture = Picture { height, width, density: vec![7; cells] };
            let json = serde_json::to_value(&picture).unwrap();
            assert!(serde_json::from_value::<Picture>(json).is_err(), "{picture:?}");
        }
    }

    #[test]
    fn shares_of_a_result_are_shares() {
        let json = |best: f64| {
            serde_json::json!({
                "test_accuracy": 0.0, "best_test_accuracy": best, "epochs": 1, "seconds": 2.0, "sparsity": 1.0,
                "device": "flex", "layers": [],
                "data": {"name": "d", "source": "s", "synthetic": true, "train_images": 7, "test_images": 1},
            })
        };
        let result = |best| serde_json::from_value::<RunResult>(json(best)).unwrap();
        result(1.0).check().unwrap();
        assert!(result(1.5).check().unwrap_err().starts_with("best_test_accuracy is 1.5e0"));
        assert_eq!(result(1.0).data.describe(), "d (SYNTHETIC), 7 images");
        assert_eq!(DataUsed { synthetic: false, ..result(1.0).data }.describe(), "d, 7 images");
    }
}
