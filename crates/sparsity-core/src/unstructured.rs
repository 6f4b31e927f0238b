//! RigL and SET: drop the smallest active weights of a layer, grow as many elsewhere in it.

use crate::select::{Candidates, Scores};
use crate::topology::Layer;
use crate::{Mask, random};
use rayon::prelude::*;

/// How new weights are chosen: all that differs between RigL and SET.
#[derive(Clone, Copy)]
pub(crate) enum Growth {
    /// RigL (Evci et al. 2020): largest |G|.
    Gradient,
    /// SET (Mocanu et al. 2018): uniformly at random.
    Random(random::Stream),
}

/// The new mask of one layer: its top `n − K` active weights by |W|, and `K = ⌊n·α_t⌋` others.
pub(crate) fn update(layer: &Layer, growth: Growth, alpha: f64) -> Mask {
    let active = layer.mask.nnz();
    let drop = (active as f64 * alpha).floor() as usize;
    let mut mask = kept_weights(layer, active - drop);
    match growth {
        Growth::Gradient => grow_by_gradient(&mut mask, layer.grads, drop),
        Growth::Random(stream) => grow_at_random(&mut mask, stream, drop),
    }
    mask
}

/// The top `keep` active weights by |W|.
fn kept_weights(layer: &Layer, keep: usize) -> Mask {
    let neurons = layer.mask.neurons();
    let weights = Scores { values: layer.weights, neurons, candidates: Candidates::Active(layer.mask) };
    let largest = weights.largest(keep);
    let mut kept = Mask::empty(neurons, layer.mask.dense_fan_in());
    let (words, width) = kept.rows_mut();
    words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| weights.mark(&largest, neuron, row));
    kept
}

/// Activates the `n` largest |G| among the positions not kept.
fn grow_by_gradient(mask: &mut Mask, grads: &[f32], n: usize) {
    let kept = mask.clone();
    let scores = Scores { values: grads, neurons: kept.neurons(), candidates: Candidates::NotIn(&kept) };
    let largest = scores.largest(n);
    let (words, width) = mask.rows_mut();
    words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| scores.mark(&largest, neuron, row));
}

/// Activates `n` of the positions not kept, uniformly without replacement.
fn grow_at_random(mask: &mut Mask, stream: random::Stream, n: usize) {
    let free = mask.positions() - mask.nnz();
    let mut rng = stream.rng(random::Purpose::Growth, 0);
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
