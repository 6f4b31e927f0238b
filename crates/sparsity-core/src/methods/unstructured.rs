//! What methods without a structure are made of: dropping and growing weights of a whole layer.

use crate::select::{Candidates, Scores};
use crate::{Layer, Mask, Purpose, Stream};

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

/// Activates the `n` largest |G| among the inactive positions.
pub fn grow_largest_gradients(mask: &mut Mask, grads: &[f32], n: usize) {
    let kept = mask.clone();
    let scores = Scores { values: grads, neurons: kept.neurons(), candidates: Candidates::NotIn(&kept) };
    scores.mark_largest(n, mask);
}

/// Activates `n` of the inactive positions, uniformly without replacement.
pub fn grow_at_random(mask: &mut Mask, stream: Stream, n: usize) {
    let free = mask.positions() - mask.nnz();
    let mut rng = stream.rng(Purpose::Growth, 0);
    let mut ranks = rand::seq::index::sample(&mut rng, free, n).into_vec();
    ranks.sort_unstable();
    // The r-th free position, for ascending ranks r, in one pass over the mask.
    let (mut ranks, mut rank) = (ranks.into_iter().peekable(), 0);
    for neuron in 0..mask.neurons() {
        for input in 0..mask.dense_fan_in() {
            if ranks.peek().is_none() {
                return;
            }
            if !mask.is_active(neuron, input) {
                if ranks.next_if_eq(&rank).is_some() {
                    mask.activate(neuron, input);
                }
                rank += 1;
            }
        }
    }
}
