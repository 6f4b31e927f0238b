//! What a run folder says, checked.

use crate::lines::json_lines;
use crate::{Config, Epoch, Error, MaskLine, RunFolder, RunResult, TopologyLine, file};
use std::collections::HashMap;
use std::path::Path;

/// Layers a network may have.
const LAYERS: usize = 1000;
/// Lines with pictures, which are much larger.
const PICTURE_LINES: usize = 20_000;

/// One training run, finished or not.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of its folder.
    pub name: String,
    /// Settings.
    pub config: Config,
    /// One entry per epoch done. Numbers out of range are `None`.
    pub epochs: Vec<Epoch>,
    /// The sparse layers, in the network's order.
    pub layers: Vec<Layer>,
    /// Whether the run has `masks.jsonl`.
    pub has_masks: bool,
    /// The outcome, if training has ended.
    pub outcome: Option<RunResult>,
}

/// What is known of one sparse layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Module path.
    pub name: String,
    /// Topology updates, by step.
    pub updates: Vec<TopologyLine>,
    /// Snapshots of the mask, by step.
    pub snapshots: Vec<MaskLine>,
}

impl Run {
    /// Reads a run folder, finished or not.
    ///
    /// # Errors
    /// If it has no `config.json`, or a file in it does not hold what it should.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let (files, config) = RunFolder::existing(folder)?;
        let epochs = files.metrics()?.into_iter().map(sane).collect();
        // Masks first: their first snapshot names the layers in the network's order.
        let mut layers = Layers::default();
        let has_masks = json_lines(&folder.join(file::MASKS), PICTURE_LINES, |line| layers.snapshot(line))?;
        for line in files.topology()? {
            let path = || files.file(file::TOPOLOGY);
            layers
                .named(line.layer.clone())
                .map_err(|what| Error::File { path: path(), what })?
                .updates
                .push(line);
        }

        let outcome = files.result()?;
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, config, epochs, layers: layers.sorted(), has_masks, outcome })
    }

    /// Name of the data.
    pub fn data(&self) -> &str {
        self.outcome.as_ref().map_or(self.config.dataset.name(), |outcome| &outcome.data.name)
    }

    /// Whether the data is generated, not real.
    pub fn is_synthetic(&self) -> bool {
        self.outcome.as_ref().map_or(self.config.dataset.is_synthetic(), |outcome| outcome.data.synthetic)
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

/// The line without numbers that cannot be drawn.
fn sane(line: Epoch) -> Epoch {
    // Beyond this, differences overflow.
    let sane = |value: Option<f64>| value.filter(|v| v.abs() < 1e100);
    Epoch {
        lr: sane(line.lr),
        train_loss: sane(line.train_loss),
        train_accuracy: share(line.train_accuracy),
        test_loss: sane(line.test_loss),
        test_accuracy: share(line.test_accuracy),
        sparsity: share(line.sparsity),
        images_per_second: sane(line.images_per_second),
        seconds: sane(line.seconds),
        ..line
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

    fn snapshot(&mut self, mut line: MaskLine) -> Result<(), String> {
        line.check()?;
        let layer = self.named(line.layer.clone())?;
        let (before, now) = (layer.snapshots.last().map(|line| &line.picture), &line.picture);
        if let Some(before) = before.filter(|b| (b.height, b.width) != (now.height, now.width)) {
            return Err(format!(
                "picture is {} × {}, but was {} × {}",
                now.height, now.width, before.height, before.width
            ));
        }
        layer.snapshots.push(line);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MASK: &str = r#"{"step":0,"layer":"fc","neurons":2,"dense_fan_in":3,
        "picture":{"height":2,"width":3,"density":"AP8AAAAA"},"fan_in":[[1,1],[0,1]]}"#;

    fn config() -> String {
        let config = Config { dataset: srigl_data::DataSet::Glyphs, ..Config::default() };
        serde_json::to_string(&config).unwrap()
    }

    fn read(files: &[(&str, &str)]) -> Result<Run, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Run::read(folder.path()).map_err(|error| error.to_string())
    }

    fn topology_line(active: usize) -> String {
        format!(
            "{{\"step\":8,\"layer\":\"fc\",\"neurons\":2,\"active\":{active},\"ablated\":[1],\"fan_in\":3,\"fan_in_min\":3,\
             \"fan_in_max\":3,\"nnz\":3,\"sparsity\":0.5,\"pruned\":1,\"grown\":1,\"itop\":0.5}}\n"
        )
    }

    fn line(text: &str) -> String {
        text.replace('\n', " ") + "\n"
    }

    #[test]
    fn an_unfinished_run() {
        let run = read(&[("config.json", &config())]).unwrap();
        assert!(run.is_synthetic() && run.outcome.is_none() && !run.has_masks);
        assert_eq!(run.config.method.variant().label, "SRigL with ablation");
        assert_eq!((run.accuracy(), run.seconds()), (None, 0.0));
    }

    #[test]
    fn all_files() {
        let metrics = "{\"epoch\":1,\"step\":9,\"lr\":0.1,\"train_loss\":null,\"test_accuracy\":7,\
                       \"sparsity\":0.9,\"seconds\":2}\n";
        let topology = &topology_line(1);
        let result = r#"{"test_accuracy":0.5,"best_test_accuracy":0.6,"epochs":1,"seconds":3.5,"sparsity":0.9,
            "device":"flex","layers":[],
            "data":{"name":"drawn","source":"s","synthetic":false,"train_images":1,"test_images":1}}"#;
        let run = read(&[
            ("config.json", &config()),
            ("metrics.jsonl", metrics),
            ("masks.jsonl", &line(MASK)),
            ("topology.jsonl", topology),
            ("result.json", result),
        ])
        .unwrap();
        assert_eq!((run.epochs[0].train_loss, run.epochs[0].test_accuracy), (None, None));
        let layer = &run.layers[0];
        assert_eq!((layer.updates[0].active(), layer.updates[0].itop), (0.5, 0.5));
        assert_eq!((layer.snapshots[0].active(), layer.snapshots[0].ablated()), (0.5, 1));
        assert_eq!(layer.snapshots[0].picture.density, [0, 255, 0, 0, 0, 0]);
        assert_eq!((run.data(), run.is_synthetic(), run.accuracy()), ("drawn", false, Some(0.5)));
    }

    #[test]
    fn what_is_refused() {
        let mask = |from: &str, to: &str| {
            assert!(MASK.contains(from));
            read(&[("config.json", &config()), ("masks.jsonl", &line(&MASK.replace(from, to)))]).unwrap_err()
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
        let changed =
            |from: &str, to: &str| read(&[("config.json", &config().replace(from, to))]).unwrap_err();
        assert!(
            changed("\"sparsity\":0.9", "\"sparsity\":1.5")
                .contains("sparsity is 1.5, but must be in [0, 1)")
        );
        assert!(changed("srigl", "magic").contains("no method `magic`"));
        assert!(read(&[]).unwrap_err().contains("is this a run folder of `srigl train`?"));
        let error = read(&[("config.json", &config()), ("topology.jsonl", &topology_line(3))]).unwrap_err();
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
    /// A run with two epochs, of which the first was the better one.
    fn two_epochs() -> String {
        let line = |epoch: u32, accuracy: f64, sparsity: f64| {
            format!(
                "{{\"epoch\":{epoch},\"step\":9,\"test_accuracy\":{accuracy},\"sparsity\":{sparsity},\"seconds\":2.5}}\n"
            )
        };
        line(1, 0.75, 0.8) + &line(2, 0.5, 0.9)
    }

    #[test]
    fn an_unfinished_run_is_known_by_its_epochs() {
        let run = read(&[("config.json", &config()), ("metrics.jsonl", &two_epochs())]).unwrap();
        assert_eq!((run.accuracy(), run.best_accuracy()), (Some(0.5), Some(0.75)));
        assert_eq!((run.sparsity(), run.seconds()), (Some(0.9), 5.0));
        assert_eq!((run.data(), run.is_synthetic()), ("glyphs", true));
        assert_eq!(run.config.own_settings()["dataset"], "glyphs");
        let real = config().replace("glyphs", "mnist");
        let run = read(&[("config.json", &real)]).unwrap();
        assert_eq!((run.data(), run.is_synthetic()), ("mnist", false));
        assert_eq!((run.accuracy(), run.best_accuracy(), run.sparsity()), (None, None, None));
    }

    #[test]
    fn a_finished_run_is_known_by_its_result() {
        let result = r#"{"test_accuracy":0.25,"best_test_accuracy":0.375,"epochs":2,"seconds":7.5,"sparsity":0.625,
            "device":"flex","layers":[],
            "data":{"name":"drawn","source":"s","synthetic":true,"train_images":1,"test_images":1}}"#;
        let files = [
            ("config.json", &*config().replace("glyphs", "mnist")),
            ("metrics.jsonl", &two_epochs()),
            ("result.json", result),
        ];
        let run = read(&files).unwrap();
        assert_eq!((run.accuracy(), run.best_accuracy()), (Some(0.25), Some(0.375)));
        assert_eq!((run.sparsity(), run.seconds()), (Some(0.625), 7.5));
        assert_eq!((run.data(), run.is_synthetic()), ("drawn", true));
    }

    #[test]
    fn numbers_that_cannot_be_drawn_are_left_out() {
        let numbers = ["lr", "train_loss", "test_loss", "images_per_second", "seconds"];
        let shares = ["train_accuracy", "test_accuracy", "sparsity"];
        let drawn = |value: f64| {
            let mut line = serde_json::json!({"epoch": 1, "step": 2});
            for name in numbers.iter().chain(&shares) {
                line[name] = value.into();
            }
            serde_json::to_value(sane(serde_json::from_value(line).unwrap())).unwrap()
        };
        for (value, as_number, as_share) in [
            (0.0, true, true),
            (1.0, true, true),
            (-0.5, true, false),
            (1.5, true, false),
            (-1e100, false, false),
        ] {
            let line = drawn(value);
            let kept = |name: &&str| line[*name] == value;
            assert!(numbers.iter().all(|name| kept(name) == as_number), "{line}");
            assert!(shares.iter().all(|name| kept(name) == as_share), "{line}");
            assert_eq!((&line["epoch"], &line["step"]), (&1.into(), &2.into()));
        }
    }

    #[test]
    fn lines_of_a_layer_are_sorted_and_its_pictures_are_of_one_size() {
        let mask = |step: u32| line(&MASK.replace("\"step\":0", &format!("\"step\":{step}")));
        let topology = topology_line(1) + &topology_line(1).replace("\"step\":8", "\"step\":4");
        let masks = mask(9) + &mask(0) + &mask(9);
        let files = [("config.json", &*config()), ("masks.jsonl", &masks), ("topology.jsonl", &topology)];
        let run = read(&files).unwrap();
        assert!(run.has_masks && run.layers.len() == 1);
        let layer = &run.layers[0];
        assert_eq!(layer.updates.iter().map(|line| line.step).collect::<Vec<_>>(), [4, 8]);
        assert_eq!(layer.snapshots.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 9]);

        let turned = MASK.replace("\"height\":2,\"width\":3", "\"height\":3,\"width\":2");
        let error =
            read(&[("config.json", &config()), ("masks.jsonl", &(mask(0) + &line(&turned)))]).unwrap_err();
        assert!(error.contains("line 2: picture is 3 × 2, but was 2 × 3"), "{error}");
    }
}
