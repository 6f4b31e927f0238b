//! Single neurons of constant fan-in, for layers of so many that no mask of all is made: a row is the inputs of a neuron,
//! ascending.

use crate::select::{Key, keep_largest};
use crate::{Purpose, Stream};

/// Fills a row with inputs, uniformly without replacement: those of [`constant_fan_in_mask`](crate::constant_fan_in_mask) for the
/// same stream.
///
/// # Panics
/// If the row is longer than there are inputs, or these are more than 65 536.
///
/// ```
/// use sparsity_core::{Stream, random_row};
///
/// let mut row = [0u16; 3];
/// random_row(&mut row, 10, Stream { seed: 1, layer: 0, step: 0 }, 7);
/// assert!(row.is_sorted() && row[2] < 10);
/// ```
pub fn random_row(row: &mut [u16], inputs: usize, stream: Stream, neuron: usize) {
    assert!(inputs <= 1 << 16, "at most 65536 inputs");
    let mut rng = stream.rng(Purpose::Mask, neuron);
    let drawn = rand::seq::index::sample(&mut rng, inputs, row.len());
    row.iter_mut().zip(drawn).for_each(|(to, input)| *to = input as u16);
    row.sort_unstable();
}

/// SET within a neuron (Mocanu et al. 2018; Schultheis & Babbar 2023): keeps the inputs of all but the `⌊k·α⌋` smallest of its `k`
/// weights by |W| (of equal ones the later go), and draws as many others to `next`, uniformly among all that are not kept.
///
/// # Panics
/// If `row`, `values` and `next` differ in length, the row is longer than there are inputs, these are more than 65 536, or `alpha` is
/// not in `[0, 1]`.
pub fn set_row(
    row: &[u16],
    values: &[f32],
    inputs: usize,
    alpha: f64,
    stream: Stream,
    neuron: usize,
    next: &mut [u16],
) {
    let (old, new) = prune_row(row, values, inputs, alpha, next);
    let mut rng = stream.rng(Purpose::Growth, neuron);
    let mut ranks = rand::seq::index::sample(&mut rng, inputs - old.len(), new.len()).into_vec();
    ranks.sort_unstable();
    // The r-th input that is not kept lies as many places further as there are kept ones before it.
    let mut before = 0;
    for (to, rank) in new.iter_mut().zip(ranks) {
        while before < old.len() && usize::from(old[before]) <= rank + before {
            before += 1;
        }
        *to = (rank + before) as u16;
    }
    next.sort_unstable();
}

/// RigL within a neuron (Evci et al. 2020): keeps what [`set_row`] keeps, and grows as many others to `next`, those with the largest
/// |gradient| of all that are not kept (of equal ones the earlier). `gradient` has one number for each input.
///
/// # Panics
/// As [`set_row`].
///
/// ```
/// use sparsity_core::rigl_row;
///
/// let mut next = [0; 2];
/// rigl_row(&[1, 3], &[0.5, -0.1], &[0.0, 9.0, -2.0, 1.0], 0.5, &mut next);
/// assert_eq!(next, [1, 2]);
/// ```
pub fn rigl_row(row: &[u16], values: &[f32], gradient: &[f32], alpha: f64, next: &mut [u16]) {
    let (old, new) = prune_row(row, values, gradient.len(), alpha, next);
    let candidates =
        gradient.iter().enumerate().filter(|(input, _)| old.binary_search(&(*input as u16)).is_err());
    let mut grown: Vec<Key> = candidates.map(|(input, gradient)| Key::new(*gradient, input)).collect();
    keep_largest(&mut grown, new.len());
    new.iter_mut().zip(grown).for_each(|(to, key)| *to = key.position() as u16);
    next.sort_unstable();
}

/// Puts the inputs that stay into the front of `next`, ascending, which is returned with the room for others.
fn prune_row<'a>(
    row: &[u16],
    values: &[f32],
    inputs: usize,
    alpha: f64,
    next: &'a mut [u16],
) -> (&'a mut [u16], &'a mut [u16]) {
    assert!(row.len() == values.len() && row.len() == next.len() && row.len() <= inputs, "lengths");
    assert!(
        inputs <= 1 << 16 && (0.0..=1.0).contains(&alpha),
        "at most 65536 inputs, and a share of the weights"
    );
    let dropped = (row.len() as f64 * alpha).floor() as usize;
    let mut kept: Vec<Key> =
        values.iter().enumerate().map(|(place, value)| Key::new(*value, place)).collect();
    keep_largest(&mut kept, row.len() - dropped);
    let (old, new) = next.split_at_mut(kept.len());
    old.iter_mut().zip(kept).for_each(|(to, key)| *to = row[key.position()]);
    old.sort_unstable();
    (old, new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerSpec, constant_fan_in_mask};
    use proptest::prelude::*;

    #[test]
    fn random_rows_are_those_of_a_mask() {
        let stream = Stream { seed: 5, layer: 2, step: 0 };
        let layer = LayerSpec::new("fc", [20, 50]).unwrap();
        let mask = constant_fan_in_mask(&layer, 0.79, stream).unwrap().into_mask();
        for neuron in 0..20 {
            let mut row = [0; 10];
            random_row(&mut row, 50, stream, neuron);
            let inputs: Vec<usize> = mask.inputs(neuron).collect();
            assert_eq!(row.map(usize::from).to_vec(), inputs);
        }
    }

    proptest! {
        #[test]
        fn the_smallest_go_and_others_come(
            inputs in 1usize..40,
            k in 0usize..40,
            alpha in 0.0..=1.0,
            seed in 0u64..1000,
        ) {
            let k = k.min(inputs);
            let stream = Stream { seed, layer: 0, step: 3 };
            let mut row = vec![0; k];
            random_row(&mut row, inputs, stream, 1);
            let values: Vec<f32> = (0..k).map(|i| ((i as u64 * 7 + seed) % 5) as f32 - 2.0).collect();
            let mut next = vec![u16::MAX; k];
            set_row(&row, &values, inputs, alpha, stream, 1, &mut next);
            prop_assert!(next.is_sorted_by(|a, b| a < b));
            prop_assert!(next.iter().all(|input| usize::from(*input) < inputs));
            // By a stable sort.
            let mut order: Vec<usize> = (0..k).collect();
            order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
            order.truncate(k - (k as f64 * alpha).floor() as usize);
            let kept: Vec<u16> = order.iter().map(|place| row[*place]).collect();
            prop_assert!(kept.iter().all(|input| next.contains(input)));

            let gradient: Vec<f32> = (0..inputs).map(|i| ((i as u64 * 5 + seed) % 7) as f32 - 3.0).collect();
            rigl_row(&row, &values, &gradient, alpha, &mut next);
            let mut others: Vec<u16> = (0..inputs as u16).filter(|input| !kept.contains(input)).collect();
            others.sort_by(|a, b| gradient[usize::from(*b)].abs().total_cmp(&gradient[usize::from(*a)].abs()));
            let mut want = [&kept[..], &others[..k - kept.len()]].concat();
            want.sort_unstable();
            prop_assert_eq!(next, want);
        }
    }

    #[test]
    fn every_input_that_is_not_kept_is_drawn_as_often() {
        // Of inputs 1, 4 and 5 the second is dropped; seven may come.
        let mut counts = [0; 9];
        for step in 0..7000 {
            let mut next = [0; 3];
            let stream = Stream { seed: 1, layer: 0, step };
            set_row(&[1, 4, 5], &[3.0, 0.5, -2.0], 9, 0.34, stream, 0, &mut next);
            next.iter().for_each(|input| counts[usize::from(*input)] += 1);
        }
        assert_eq!([counts[1], counts[5]], [7000; 2]);
        let drawn = [0, 2, 3, 4, 6, 7, 8].map(|input| counts[input]);
        assert!(drawn.iter().all(|count| (850..1150).contains(count)), "{drawn:?}");
    }
}
