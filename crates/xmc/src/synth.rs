//! Data sets of any size, made up: few labels are frequent and most are rare, and some features tell of each.

use rand::seq::index::sample;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use std::io::{self, BufWriter, Write};

/// What a data set is made of. It is synthetic: nothing is to be learned from it but whether a machine is fast and large enough and
/// a method finds what was put in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Points.
    pub points: usize,
    /// Features that they may have.
    pub features: usize,
    /// Labels that they may have.
    pub labels: usize,
    /// Labels of a point, about; at least one.
    pub labels_per_point: f64,
    /// Features that tell of each label.
    pub features_per_label: usize,
    /// Features of a point that tell of nothing.
    pub noise: usize,
    /// How fast frequencies fall: label `i` is drawn as often as `i^-power`.
    pub power: f64,
    /// Of which features belong to which label. Training and test points need the same.
    pub structure: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            points: 10_000,
            features: 5_000,
            labels: 1_000,
            labels_per_point: 3.0,
            features_per_label: 8,
            noise: 10,
            power: 0.9,
            structure: 0,
        }
    }
}

impl Plan {
    /// Writes points in the format of the extreme classification repository; other seeds make other points.
    ///
    /// # Errors
    /// What `to` says.
    ///
    /// # Panics
    /// If there are no labels, or `power` is negative or not a number.
    pub fn write(&self, seed: u64, to: &mut impl Write) -> io::Result<()> {
        let mut to = BufWriter::new(to);
        writeln!(to, "{} {} {}", self.points, self.features, self.labels)?;
        let frequencies = Zipf::new(self.labels as f64, self.power).expect("at least one label");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..self.points {
            let extra = self.labels_per_point - 1.0;
            let count = 1 + (extra.max(0.0) * 2.0 * rng.random::<f64>()).round() as usize;
            let mut labels: Vec<usize> = (0..count)
                .map(|_| (frequencies.sample(&mut rng) as usize).clamp(1, self.labels) - 1)
                .collect();
            labels.sort_unstable();
            labels.dedup();
            let mut features = Vec::new();
            for label in &labels {
                // Most of those that tell of the label, some of them loudly.
                for feature in self.features_of(*label) {
                    if rng.random_bool(0.7) {
                        features.push((feature, 1.0 + rng.random::<f64>()));
                    }
                }
            }
            let noise = sample(&mut rng, self.features, self.noise.min(self.features));
            features.extend(noise.into_iter().map(|feature| (feature, rng.random::<f64>())));
            features.sort_by_key(|(feature, _)| *feature);
            features.dedup_by_key(|(feature, _)| *feature);
            let norm = features.iter().map(|(_, value)| value * value).sum::<f64>().sqrt().max(1e-9);
            let names: Vec<String> = labels.iter().map(usize::to_string).collect();
            write!(to, "{}", names.join(","))?;
            for (feature, value) in features {
                write!(to, " {feature}:{:.4}", value / norm)?;
            }
            writeln!(to)?;
        }
        to.flush()
    }

    /// The features that tell of a label.
    fn features_of(&self, label: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.structure);
        rng.set_stream(label as u64 + 1);
        sample(&mut rng, self.features, self.features_per_label.min(self.features)).into_vec()
    }
}
