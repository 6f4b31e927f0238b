//! The largest magnitudes of a layer, without sorting it.
//!
//! Magnitudes are compared by their bit pattern, which is exact for finite values. Among equal ones the lower
//! position comes first, so every selection is the one a stable sort would make, whatever the thread count.

use crate::{Mask, mask};
use rayon::prelude::*;

/// Bit pattern of |x|; monotone in |x| for finite values.
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A value and its position: the larger magnitude is larger, and of equal ones the lower position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    pub fn new(value: f32, position: usize) -> Self {
        Self(u64::from(magnitude(value)) << 32 | u64::from(!(position as u32)))
    }

    pub fn position(self) -> usize {
        !(self.0 as u32) as usize
    }

    fn magnitude(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn is_zero(self) -> bool {
        self.magnitude() == 0
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
    /// How many values of whole rows have a magnitude with these first bits; empty before the first.
    counts: Vec<usize>,
}

/// Bits of a magnitude that are not counted by: what is left is exponent and three bits more.
const REST: u32 = 20;

/// Keys beside the largest that are kept until they are sorted out.
const SPARE: usize = 1 << 16;

impl Largest {
    pub fn new(n: usize) -> Self {
        Self { n, keys: Vec::new(), least: None, counts: Vec::new() }
    }

    /// Offers keys of several rows, made by `row` of each.
    pub fn offer<I: Iterator<Item = Key> + Send>(
        &mut self,
        rows: std::ops::Range<usize>,
        row: impl Fn(usize) -> I + Sync + Send,
    ) {
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

    /// Offers all of `values`, the rows of these neurons; but for what is marked in `except`.
    pub fn offer_rows(&mut self, neurons: &[usize], values: &[f32], except: Option<&Mask>) {
        if self.n == 0 || values.is_empty() {
            return;
        }
        let inputs = values.len() / neurons.len();
        if except.is_none() {
            self.count(values);
        }
        let least = self.least.unwrap_or(Key(0));
        let of_row = |mut keys: Vec<Key>, (&neuron, values): (&usize, &[f32])| {
            let marked = except.map(|mask| mask.row(neuron));
            for (word, chunk) in values.chunks(64).enumerate() {
                let free = marked.map_or(u64::MAX, |marked| !marked[word]);
                // Most lie below what is known, and are left out 64 at a time.
                for bit in
                    mask::set_bits(&[free & bits(chunk, |value| magnitude(*value) >= least.magnitude())])
                {
                    let key = Key::new(chunk[bit], neuron * inputs + word * 64 + bit);
                    if key > least {
                        keys.push(key);
                    }
                }
            }
            keys
        };
        let rows = neurons.par_iter().zip(values.par_chunks(inputs));
        let pieces: Vec<Vec<Key>> = rows.fold(Vec::new, of_row).collect();
        pieces.iter().for_each(|keys| self.keys.extend_from_slice(keys));
        if self.keys.len() >= 2 * self.n + SPARE {
            self.sort_out();
        }
    }

    /// Counts values that are all offered, for a bound below which none of the largest is: most need not be looked at twice.
    fn count(&mut self, values: &[f32]) {
        let none = || vec![0usize; 1 << (31 - REST)];
        let count = |mut counts: Vec<usize>, values: &[f32]| {
            values.iter().for_each(|value| counts[(magnitude(*value) >> REST) as usize] += 1);
            counts
        };
        if self.counts.is_empty() {
            self.counts = none();
        }
        let pieces: Vec<Vec<usize>> = values.par_chunks(1 << 16).fold(none, count).collect();
        for piece in pieces {
            self.counts.iter_mut().zip(piece).for_each(|(all, count)| *all += count);
        }
        let mut above = 0;
        let bound = self.counts.iter().rposition(|count| {
            above += count;
            above >= self.n
        });
        // What lies right below the last position of the least such magnitude.
        let below = bound.map(|first| Key(((first as u64) << (32 + REST)).saturating_sub(1)));
        self.least = self.least.max(below);
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

/// The magnitude of the `n`-th largest of `values`, and how many of those that are equal to it are among the `n` largest. `n` is at
/// least 1, and at most their number.
pub(crate) fn nth_largest(values: &[f32], n: usize) -> (u32, usize) {
    /// Bits of a magnitude, from the highest on, that tell values apart one after the other.
    const DIGITS: [u32; 3] = [11, 10, 10];
    let (mut prefix, mut rest, mut left) = (0u32, 31, n);
    for digit in DIGITS {
        rest -= digit;
        let (bins, known) = (1usize << digit, prefix);
        let count = |mut counts: Vec<usize>, values: &[f32]| {
            for value in values {
                let place = magnitude(*value) >> rest;
                if place >> digit == known {
                    counts[place as usize & (bins - 1)] += 1;
                }
            }
            counts
        };
        let pieces: Vec<Vec<usize>> = values.par_chunks(1 << 17).fold(|| vec![0; bins], count).collect();
        let of_bin = |bin: usize| pieces.iter().map(|piece| piece[bin]).sum::<usize>();
        let mut bin = bins - 1;
        while left > of_bin(bin) {
            left -= of_bin(bin);
            bin -= 1;
        }
        prefix = prefix << digit | bin as u32;
    }
    (prefix, left)
}

/// The mask of the `n` largest of `values`, one for each active position of `mask` in their order; those of a neuron begin where
/// `starts` says.
pub(crate) fn keep_in_mask(mask: &Mask, starts: &[usize], values: &[f32], n: usize) -> Mask {
    let inputs = mask.dense_fan_in();
    let mut kept = Mask::empty(mask.neurons(), inputs);
    let row = |neuron: usize| &values[starts[neuron]..starts[neuron + 1]];
    each_row_of_largest(&mut kept, values, row, n, |neuron, bound, to| {
        let values = row(neuron);
        if values.len() == inputs {
            return bound.mark(values, to);
        }
        let mut bound = bound;
        for (input, value) in mask.inputs(neuron).zip(values) {
            if bound.takes(magnitude(*value)) {
                mask::set_bit(to, input);
            }
        }
    });
    kept
}

/// Activates the `n` largest of `values` `[N · M]`.
pub(crate) fn mark_largest(values: &[f32], n: usize, mask: &mut Mask) {
    let inputs = mask.dense_fan_in();
    let row = |neuron: usize| &values[neuron * inputs..][..inputs];
    each_row_of_largest(mask, values, row, n, |neuron, bound, to| bound.mark(row(neuron), to));
}

/// What is among the largest of a row.
#[derive(Clone, Copy)]
struct Bound {
    least: u32,
    /// How many of those that are equal to it: the first ones.
    ties: usize,
}

impl Bound {
    fn takes(&mut self, rank: u32) -> bool {
        let is_tie = rank == self.least && self.ties > 0;
        self.ties -= usize::from(is_tie);
        rank > self.least || is_tie
    }

    /// Sets the bits of those of a row with all inputs, 64 at a time.
    fn mark(mut self, values: &[f32], to: &mut [u64]) {
        for (word, chunk) in to.iter_mut().zip(values.chunks(64)) {
            *word |= bits(chunk, |value| magnitude(*value) > self.least);
            if self.ties > 0 {
                let equal = bits(chunk, |value| magnitude(*value) == self.least);
                let here = mask::set_bits(&[equal]).take(self.ties).fold(0, |here, bit| here | 1 << bit);
                self.ties -= u64::count_ones(here) as usize;
                *word |= here;
            }
        }
    }
}

/// Calls `mark` with the row of each neuron, and with what is among the `n` largest of all values there.
fn each_row_of_largest<'a>(
    mask: &mut Mask,
    values: &[f32],
    row: impl Fn(usize) -> &'a [f32] + Sync,
    n: usize,
    mark: impl Fn(usize, Bound, &mut [u64]) + Sync,
) {
    if n == 0 || values.is_empty() {
        return;
    }
    let (least, mut left) = nth_largest(values, n.min(values.len()));
    let equal = |neuron: usize| row(neuron).iter().filter(|value| magnitude(**value) == least).count();
    let equal: Vec<usize> = (0..mask.neurons()).into_par_iter().map(equal).collect();
    // How many of the equal ones each row may keep: the first come first.
    let ties = equal.into_iter().map(|equal| {
        let here = equal.min(left);
        left -= here;
        here
    });
    let ties: Vec<usize> = ties.collect();
    let (words, width) = mask.rows_mut();
    let rows = words.par_chunks_mut(width.max(1)).zip(ties).enumerate();
    rows.for_each(|(neuron, (to, ties))| mark(neuron, Bound { least, ties }, to));
}

/// Memory that [`largest_of_row`] uses, which spares allocations for each row.
#[derive(Default)]
pub(crate) struct RowScratch {
    ranks: Vec<u32>,
    maxima: Vec<u32>,
    keys: Vec<Key>,
}

/// The `n` largest of the row `values`, whose positions begin with `first`, outside what is marked in `except`; all if there are
/// fewer. In no order.
pub(crate) fn largest_of_row(
    values: &[f32],
    first: usize,
    n: usize,
    except: &[u64],
    scratch: &mut RowScratch,
) -> Vec<Key> {
    let n = n.min(values.len());
    if n == 0 {
        return Vec::new();
    }
    let RowScratch { ranks, maxima, keys: found } = scratch;
    // One more than the magnitude, so that nothing that may be chosen is as low as what may not.
    ranks.clear();
    ranks.extend(values.iter().map(|value| magnitude(*value) + 1));
    mask::set_bits(except).for_each(|marked| ranks[marked] = 0);
    // If `n` values, each from a group of its own, are at least so large, then what is smaller is not among the `n` largest.
    // Groups of so many that twice as many as needed are left; value `i` of each part of the row is in group `i`.
    let groups = ranks.len() / (ranks.len() / (2 * n)).clamp(1, 16);
    let mut parts = ranks.chunks_exact(groups);
    maxima.clear();
    maxima.extend_from_slice(parts.next().unwrap_or(&[]));
    for part in parts {
        maxima.iter_mut().zip(part).for_each(|(most, rank)| *most = (*most).max(*rank));
    }
    let (_, &mut bound, _) = maxima.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
    let bound = bound.max(1);
    found.clear();
    for (word, chunk) in ranks.chunks(64).enumerate() {
        let key = |bit: usize| Key::new(values[word * 64 + bit], first + word * 64 + bit);
        found.extend(mask::set_bits(&[bits(chunk, |rank| *rank >= bound)]).map(key));
    }
    keep_largest(found, n);
    // No longer than it is: many may be equal to the bound.
    found.to_vec()
}

/// One bit for each of up to 64 numbers: whether it passes the test.
///
/// The results go through bytes, since comparing into bytes vectorises and shifting bit by bit does not.
/// The factor moves byte `i` of eight to bit `56 + i`.
fn bits<T>(numbers: &[T], pass: impl Fn(&T) -> bool) -> u64 {
    let mut bytes = [0u8; 64];
    for (byte, number) in bytes.iter_mut().zip(numbers) {
        *byte = u8::from(pass(number));
    }
    let (eights, _) = bytes.as_chunks();
    let pack = |eight: [u8; 8]| u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    eights.iter().rev().fold(0, |word, eight| word << 8 | pack(*eight))
}

/// Neurons that are worth several tasks, and few enough that their dense gradient is small.
pub(crate) fn neurons_per_block(inputs: usize) -> usize {
    (1usize << 18).div_ceil(inputs.max(1))
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
            except in 0usize..600,
            seed in proptest::collection::vec(-4i8..4, 900),
        ) {
            let values: Vec<f32> = (0..neurons * m).map(|i| value(kind, i, seed[i])).collect();
            prop_assert_eq!(by_selection(&values, neurons, n), by_sorting(&values, n));
            let marked = |keys: &[Key]| {
                let mut marked = vec![0; values.len()];
                keys.iter().for_each(|key| marked[key.position() - 7] = 1);
                marked
            };
            let all = Mask::full(neurons, m);
            let starts: Vec<usize> = (0..=neurons).map(|neuron| neuron * m).collect();
            prop_assert_eq!(keep_in_mask(&all, &starts, &values, n).to_bytes(), by_sorting(&values, n));
            let mut keys: Vec<Key> = values.iter().enumerate().map(|(i, value)| Key::new(*value, 7 + i)).collect();
            keep_largest(&mut keys, n);
            prop_assert_eq!(marked(&keys), by_sorting(&values, n));
            let scratch = &mut RowScratch { maxima: vec![3], ranks: vec![9], keys: vec![Key::new(9.0, 1)] };
            prop_assert_eq!(marked(&largest_of_row(&values, 7, n, &[], scratch)), by_sorting(&values, n));
            // Without the largest, or without every third.
            let largest = by_sorting(&values, except);
            let thirds: Vec<u8> = (0..values.len()).map(|i| u8::from(i % 3 == except % 3)).collect();
            for except in [largest, thirds] {
                let mut words = vec![0u64; values.len().div_ceil(64)];
                (0..values.len()).filter(|i| except[*i] == 1).for_each(|i| words[i / 64] |= 1 << (i % 64));
                let free: Vec<usize> = (0..values.len()).filter(|i| except[*i] == 0).collect();
                let of_free: Vec<f32> = free.iter().map(|i| values[*i]).collect();
                let mut want = vec![0; values.len()];
                free.iter().zip(by_sorting(&of_free, n)).for_each(|(i, marked)| want[*i] = marked);
                let found = largest_of_row(&values, 7, n, &words, scratch);
                prop_assert!(found.capacity() <= n);
                prop_assert_eq!(marked(&found), want);
            }
        }
    }

    #[test]
    fn of_nothing_nothing_is_the_largest() {
        let mut largest = Largest::new(3);
        largest.offer_rows(&[], &[], None);
        let mut mask = Mask::empty(1, 4);
        largest.mark(&mut mask);
        assert_eq!(mask.nnz(), 0);
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
        assert_eq!(neurons_per_block(m), 2);
        let values: Vec<f32> = (0..neurons * m).map(|i| ((i * 7919) % 1000) as f32).collect();
        // With few wanted, most are left out as soon as they come.
        for n in [1, 1000, 200_000] {
            assert!(by_selection(&values, neurons, n) == by_sorting(&values, n), "{n}");
        }
    }

    /// Keys `1, 2, …` at these positions.
    fn keys_at(positions: std::ops::Range<usize>) -> impl Iterator<Item = Key> {
        positions.map(|position| Key::new(1.0 + position as f32, position))
    }

    #[test]
    fn keys_are_sorted_out_when_there_are_twice_as_many_as_wanted_and_some_to_spare() {
        let (n, room) = (100, 2 * 100 + (1 << 16));
        // So close together that counting tells nothing of them.
        let values: Vec<f32> = (0..room + 10).map(|i| 1.0 + i as f32 * f32::EPSILON).collect();
        let offer_values = |largest: &mut Largest, positions: std::ops::Range<usize>| {
            largest.offer_rows(&positions.clone().collect::<Vec<_>>(), &values[positions], None);
        };
        let offer_keys = |largest: &mut Largest, positions: std::ops::Range<usize>| {
            largest.offer(positions, |position| keys_at(position..position + 1));
        };
        for of_values in [true, false] {
            let offer = |largest: &mut Largest, positions| match of_values {
                true => offer_values(largest, positions),
                false => offer_keys(largest, positions),
            };
            let mut largest = Largest::new(n);
            offer(&mut largest, 0..room - 1);
            assert_eq!(largest.keys.len(), room - 1, "one less than would be sorted out");
            offer(&mut largest, room - 1..room);
            assert_eq!(largest.keys.len(), n);
            // From now on what is smaller than all of them is left out, and what is larger is not.
            offer(&mut largest, 0..50);
            assert_eq!(largest.keys.len(), n);
            offer(&mut largest, room..room + 10);
            assert_eq!(largest.keys.len(), n + 10);
            let mut mask = Mask::empty(room + 10, 1);
            largest.mark(&mut mask);
            let marked: Vec<usize> = (0..room + 10).filter(|neuron| mask.fan_in(*neuron) == 1).collect();
            assert_eq!(marked, (room + 10 - n..room + 10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn values_that_cannot_be_among_the_largest_are_not_kept() {
        let values: Vec<f32> = (0..4097).map(|i| i as f32).collect();
        let mut largest = Largest::new(300);
        let neurons: Vec<usize> = (0..4097).collect();
        largest.offer_rows(&neurons[..200], &values[..200], None);
        assert_eq!((largest.keys.len(), largest.least), (200, None), "fewer than wanted");
        largest.offer_rows(&neurons[200..], &values[200..], None);
        // Of 4096 and 257 that begin as 3840 does there are too few: those from 3584 on.
        assert_eq!(largest.least.map(Key::magnitude), Some(3584f32.to_bits() - 1));
        assert_eq!(largest.keys.len(), 200 + 4097 - 3584);
        let mut mask = Mask::empty(4097, 1);
        largest.mark(&mut mask);
        let marked: Vec<usize> = (0..4097).filter(|neuron| mask.fan_in(*neuron) == 1).collect();
        assert_eq!(marked, (3797..4097).collect::<Vec<_>>());
    }
}
