//! What RigL and SET share: dropping the smallest weights of a layer.

use crate::select::{Candidates, Scores};
use crate::{Layer, Mask};

/// `K = ⌊n·α_t⌋`: how many of the `n` active weights are dropped.
pub fn dropped(mask: &Mask, alpha: f64) -> usize {
    (mask.nnz() as f64 * alpha).floor() as usize
}

/// The mask without the `k` smallest active |W|.
pub fn drop_smallest(layer: &Layer, k: usize) -> Mask {
    let neurons = layer.mask.neurons();
    let weights = Scores { values: layer.weights, neurons, candidates: Candidates::Active(layer.mask) };
    let mut kept = Mask::empty(neurons, layer.mask.dense_fan_in());
    weights.mark_largest(layer.mask.nnz() - k, &mut kept);
    kept
}
