//! Random streams that depend on what they are for, never on the order of work.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream is drawn for; keeps the uses of one seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial masks.
    Mask,
    /// Initial weights.
    Weights,
    /// Random growth (SET).
    Growth,
}

/// The random stream of one layer at one step: a pure function of these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Seed of the whole run.
    pub seed: u64,
    /// Index of the layer among the sparse layers.
    pub layer: u64,
    /// Optimizer step, 0 for initialisation.
    pub step: u64,
}

impl Stream {
    /// The generator for one purpose and one neuron, independent of all others.
    pub fn rng(&self, purpose: Purpose, neuron: usize) -> ChaCha8Rng {
        let mut seed = [0; 32];
        for (bytes, value) in seed.chunks_mut(8).zip([self.seed, self.layer, self.step, purpose as u64]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(neuron as u64);
        rng
    }
}
