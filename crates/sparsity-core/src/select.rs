//! The largest magnitudes of a layer, without sorting it.
//!
//! Magnitudes are compared by their bit pattern, which is exact for finite values. Among equal ones the lower
//! position comes first, so every selection is the one a stable sort would make, whatever the thread count.

use crate::Mask;
use rayon::prelude::*;

/// Bit pattern of |x|; monotone in |x| for finite values.
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A value and its position: the larger magnitude is larger, and of equal ones the lower position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    pub fn new(value: f32, position: usize) -> Self {
        Self(u64::from(magnitude(value)) << 32 | u64::from(!(position as u32)))
    }

    pub fn position(self) -> usize {
        !(self.0 as u32) as usize
    }

    pub fn is_zero(self) -> bool {
        self.0 >> 32 == 0
    }
}

/// Moves the `n` largest to the front, in any order, and drops the others.
pub(crate) fn keep_largest(keys: &mut Vec<Key>, n: usize) {
    if n < keys.len() {
        if n > 0 {
            keys.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
        }
        keys.truncate(n);
    }
}

/// The `n` largest of keys that come in pieces.
#[derive(Debug)]
pub(crate) struct Largest {
    n: usize,
    keys: Vec<Key>,
    /// Nothing below is among them.
    least: Option<Key>,
}

/// Keys beside the largest that are kept until they are sorted out.
const SPARE: usize = 1 << 16;

impl Largest {
    pub fn new(n: usize) -> Self {
        Self { n, keys: Vec::new(), least: None }
    }

    /// Offers keys of several rows, made by `row` of each.
    pub fn offer<I: Iterator<Item = Key>>(
        &mut self,
        rows: std::ops::Range<usize>,
        row: impl Fn(usize) -> I + Sync + Send,
    ) where
        I: Send,
    {
        if self.n == 0 {
            return;
        }
        let least = self.least;
        let passes = |key: &Key| least.is_none_or(|least| *key > least);
        self.keys.par_extend(rows.into_par_iter().flat_map_iter(|i| row(i).filter(passes)));
        if self.keys.len() >= 2 * self.n + SPARE {
            self.sort_out();
        }
    }

    fn sort_out(&mut self) {
        keep_largest(&mut self.keys, self.n);
        if self.keys.len() == self.n {
            self.least = self.keys.iter().min().copied();
        }
    }

    /// Activates them in a mask, whose positions they have.
    pub fn mark(mut self, mask: &mut Mask) {
        self.sort_out();
        let inputs = mask.dense_fan_in();
        for position in self.keys.into_iter().map(Key::position) {
            mask.activate(position / inputs, position % inputs);
        }
    }
}

/// Activates the `n` largest of `values` `[N · M]`.
pub(crate) fn mark_largest(values: &[f32], n: usize, mask: &mut Mask) {
    let (neurons, inputs) = (mask.neurons(), mask.dense_fan_in());
    let mut largest = Largest::new(n);
    for rows in blocks(neurons, inputs) {
        largest.offer(rows, |neuron| row_keys(neuron * inputs, &values[neuron * inputs..][..inputs]));
    }
    largest.mark(mask);
}

/// Keys of values that begin at a position.
pub(crate) fn row_keys(first: usize, values: &[f32]) -> impl Iterator<Item = Key> {
    values.iter().enumerate().map(move |(i, value)| Key::new(*value, first + i))
}

/// Neurons in groups that are worth several tasks, and few enough that their dense gradient is small.
pub(crate) fn blocks(neurons: usize, inputs: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let block = (1usize << 18).div_ceil(inputs.max(1));
    (0..neurons).step_by(block).map(move |first| first..(first + block).min(neurons))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by a full stable sort.
    fn by_sorting(values: &[f32], n: usize) -> Vec<u8> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(magnitude(values[i])));
        let mut marked = vec![0; values.len()];
        order.iter().take(n).for_each(|&i| marked[i] = 1);
        marked
    }

    /// Values of which many are equal, also between signs; of which few are; or that differ in the last bit.
    fn value(kind: i32, i: usize, seed: i8) -> f32 {
        let seed = f32::from(seed);
        match kind {
            0 => seed,
            1 => seed + (i as f32).sin(),
            _ => (1.0 + seed.abs() * f32::EPSILON).copysign(seed),
        }
    }

    fn by_selection(values: &[f32], neurons: usize, n: usize) -> Vec<u8> {
        let mut mask = Mask::empty(neurons, values.len() / neurons);
        mark_largest(values, n, &mut mask);
        mask.to_bytes()
    }

    proptest! {
        #[test]
        fn selection_is_a_stable_sort(
            neurons in 1usize..6,
            m in 1usize..150,
            n in 0usize..600,
            kind in 0..3,
            seed in proptest::collection::vec(-4i8..4, 900),
        ) {
            let values: Vec<f32> = (0..neurons * m).map(|i| value(kind, i, seed[i])).collect();
            prop_assert_eq!(by_selection(&values, neurons, n), by_sorting(&values, n));
            let mut keys: Vec<Key> = row_keys(0, &values).collect();
            keep_largest(&mut keys, n);
            let mut kept = vec![0; values.len()];
            keys.iter().for_each(|key| kept[key.position()] = 1);
            prop_assert_eq!(kept, by_sorting(&values, n));
        }
    }

    #[test]
    fn of_two_equal_values_at_the_boundary_the_first_is_in() {
        assert_eq!(by_selection(&[1.0 + f32::EPSILON, 1.0, -1.0], 1, 2), [1, 1, 0]);
        assert!(Key::new(-0.0, 3).is_zero() && !Key::new(f32::from_bits(1), 3).is_zero());
    }

    #[test]
    fn several_blocks_are_searched_as_one() {
        // Blocks of two neurons, the last of one.
        let (neurons, m) = (5, 1 << 17);
        assert_eq!(blocks(neurons, m).map(|block| block.len()).collect::<Vec<_>>(), [2, 2, 1]);
        let values: Vec<f32> = (0..neurons * m).map(|i| ((i * 7919) % 1000) as f32).collect();
        // With few wanted, most are left out as soon as they come.
        for n in [1, 1000, 200_000] {
            assert!(by_selection(&values, neurons, n) == by_sorting(&values, n), "{n}");
        }
    }
}
