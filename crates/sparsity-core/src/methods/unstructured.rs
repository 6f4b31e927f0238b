//! What methods without a structure are made of: dropping and growing weights of a whole layer.

use crate::select::{Largest, keep_in_mask};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, Mask, Purpose, Stream, mask};

/// `K = ⌊n·α_t⌋`: how many of the `n` active weights are dropped.
pub fn dropped(mask: &Mask, alpha: f64) -> usize {
    (mask.nnz() as f64 * alpha).floor() as usize
}

/// The mask without the `k` smallest active |W|.
pub fn drop_smallest(layer: &ActiveLayer, k: usize) -> Mask {
    drop_least(layer, layer.values, k)
}

/// The mask without the `k` active weights of the least |score|, of which there is one for each active weight.
pub fn drop_least(layer: &ActiveLayer, scores: &[f32], k: usize) -> Mask {
    keep_in_mask(layer.mask, &layer.rows(), scores, layer.values.len() - k)
}

/// Activates the `n` largest |G| among the inactive positions.
///
/// # Errors
/// [`Error::NotFinite`] for a gradient that is not.
pub fn grow_largest_gradients(
    layer: &ActiveLayer,
    mask: &mut Mask,
    mut gradient: DenseGradient,
    n: usize,
) -> Result<(), Error> {
    let mut largest = Largest::new(n);
    let all: Vec<usize> = (0..mask.neurons()).collect();
    layer.each_block(&mut gradient, &all, |neurons, block| largest.offer_rows(neurons, block, Some(mask)))?;
    largest.mark(mask);
    Ok(())
}

/// Activates `n` of the inactive positions, uniformly without replacement.
pub fn grow_at_random(mask: &mut Mask, stream: Stream, n: usize) {
    let free = mask.positions() - mask.nnz();
    let mut rng = stream.rng(Purpose::Growth, 0);
    let mut ranks = rand::seq::index::sample(&mut rng, free, n).into_vec();
    ranks.sort_unstable();
    let (mut ranks, mut rank, inputs) = (ranks.into_iter().peekable(), 0, mask.dense_fan_in());
    for neuron in 0..mask.neurons() {
        rank = mask::activate_free(mask.row_mut(neuron), inputs, rank, &mut ranks);
    }
}
