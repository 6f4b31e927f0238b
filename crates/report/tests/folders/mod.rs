//! Run folders with generated values, in the formats of `srigl train`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A run to write.
pub struct Fake {
    /// Folder.
    pub name: &'static str,
    /// `--method`.
    pub method: &'static str,
    /// `--sparsity`.
    pub sparsity: f64,
    /// `--seed`.
    pub seed: u64,
    /// Names of layers and numbers of neurons and inputs.
    pub layers: Vec<(String, usize, usize)>,
    /// Epochs done, of [`EPOCHS`].
    pub epochs: u64,
    /// Whether it has `masks.jsonl`.
    pub masks: bool,
}

/// Epochs asked for.
pub const EPOCHS: u64 = 20;
/// Steps of an epoch.
const STEPS: u64 = 100;

/// A small network.
pub fn three_layers() -> Vec<(String, usize, usize)> {
    vec![("fc1".into(), 300, 784), ("fc2".into(), 100, 300), ("fc3".into(), 10, 100)]
}

/// As many layers as ResNet-50 has.
pub fn fifty_layers() -> Vec<(String, usize, usize)> {
    let width = |i: usize| 64 << (i / 14);
    (0..54)
        .map(|i| (format!("layer{}.{}.conv{}", i / 14 + 1, i % 14 / 3, i % 3 + 1), width(i), 9 * width(i)))
        .collect()
}

/// Numbers that look random, 0 to 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

impl Fake {
    /// Writes the run into a folder of `root`.
    pub fn write(&self, root: &Path) -> PathBuf {
        let folder = root.join(self.name);
        fs::create_dir_all(&folder).unwrap();
        let mut noise = Noise(self.seed + 7 * self.name.len() as u64);
        let mut config = serde_json::to_value(srigl_run::Config::default()).unwrap();
        for (key, value) in [
            ("dataset", json!("glyphs")),
            ("method", json!(self.method)),
            ("sparsity", json!(self.sparsity)),
            ("seed", json!(self.seed)),
            ("epochs", json!(EPOCHS)),
        ] {
            config[key] = value;
        }
        fs::write(folder.join("config.json"), config.to_string()).unwrap();

        let mut metrics = String::new();
        let mut accuracy = 0.0;
        for epoch in 1..=self.epochs {
            let t = epoch as f64 / EPOCHS as f64;
            accuracy = 0.95 - 0.4 * (-4.0 * t).exp() - 0.1 * self.sparsity.powi(8) + 0.01 * noise.next();
            let line = json!({
                "epoch": epoch, "step": epoch * STEPS, "lr": 0.05 * (1.0 + (std::f64::consts::PI * t).cos()),
                "train_loss": 2.3 * (-3.0 * t).exp() + 0.1 * noise.next(), "train_accuracy": accuracy,
                "test_loss": 0.3, "test_accuracy": accuracy, "sparsity": self.sparsity,
                "images_per_second": 5000.0, "seconds": 12.5,
            });
            writeln!(metrics, "{line}").unwrap();
        }
        fs::write(folder.join("metrics.jsonl"), metrics).unwrap();

        if self.method != "dense" {
            self.write_topology(&folder, &mut noise);
        }
        if self.epochs == EPOCHS {
            let result = json!({
                "test_accuracy": accuracy, "best_test_accuracy": accuracy + 0.01, "epochs": EPOCHS,
                "seconds": 250.0, "sparsity": self.sparsity, "device": "flex", "layers": [],
                "data": { "name": "glyphs", "source": "generated", "synthetic": true,
                          "train_images": 9, "test_images": 9 },
            });
            fs::write(folder.join("result.json"), result.to_string()).unwrap();
        }
        folder
    }

    fn write_topology(&self, folder: &Path, noise: &mut Noise) {
        let (mut topology, mut masks) = (String::new(), String::new());
        let end = self.epochs * STEPS;
        for step in (0..=end).step_by(STEPS as usize) {
            let t = step as f64 / (EPOCHS * STEPS) as f64;
            for (l, (name, neurons, inputs)) in self.layers.iter().enumerate() {
                let ablated = if self.method == "srigl" {
                    0.05 * (l % 7) as f64 * (1.0 - (-4.0 * t).exp())
                } else {
                    0.0
                };
                let ablated = (ablated * *neurons as f64) as usize;
                if step > 0 && self.method != "static" {
                    let itop = (1.0 - self.sparsity) * (1.0 + 3.0 * t);
                    let line = json!({
                        "step": step, "layer": name, "neurons": neurons, "active": neurons - ablated,
                        "ablated": (0..ablated).collect::<Vec<_>>(), "fan_in": null, "fan_in_min": 1, "fan_in_max": 2, "nnz": 1, "sparsity": 0.9,
                        "pruned": 1, "grown": 1, "itop": itop,
                    });
                    writeln!(topology, "{line}").unwrap();
                }
                if step % (2 * STEPS) == 0 {
                    writeln!(masks, "{}", self.mask(step, name, *neurons, *inputs, ablated, noise)).unwrap();
                }
            }
        }
        fs::write(folder.join("topology.jsonl"), topology).unwrap();
        if self.masks {
            fs::write(folder.join("masks.jsonl"), masks).unwrap();
        }
    }

    fn mask(
        &self,
        step: u64,
        name: &str,
        neurons: usize,
        inputs: usize,
        ablated: usize,
        noise: &mut Noise,
    ) -> serde_json::Value {
        let (height, width) = (neurons.min(64), inputs.min(64));
        let exact = neurons <= 64 && inputs <= 64;
        let empty_rows = ablated * height / neurons;
        let mut density = Vec::new();
        for cell in 0..height * width {
            let share = (1.0 - self.sparsity) * 2.0 * noise.next();
            let share = if exact { f64::from(u8::from(share > 1.0 - self.sparsity)) } else { share };
            density.push(if cell / width < empty_rows { 0 } else { (255.0 * share) as u8 });
        }
        let fan_in = ((1.0 - self.sparsity) * inputs as f64) as usize + 1;
        let mut counts = std::collections::BTreeMap::from([(0, ablated)]);
        for _ in ablated..neurons {
            let spread = if self.method == "srigl" {
                1.0
            } else {
                0.3 + 0.5 * (noise.next() + noise.next() + noise.next())
            };
            *counts.entry(((fan_in as f64 * spread) as usize).min(inputs)).or_default() += 1;
        }
        counts.retain(|_, count| *count > 0);
        json!({
            "step": step, "layer": name, "neurons": neurons, "dense_fan_in": inputs,
            "picture": { "height": height, "width": width, "density": STANDARD.encode(density) },
            "fan_in": counts.into_iter().collect::<Vec<_>>(),
        })
    }
}
