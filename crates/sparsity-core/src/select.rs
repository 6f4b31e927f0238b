//! The largest `n` of millions of magnitudes in O(n), with ties going to the lower flat index.
//!
//! Magnitudes of finite floats order like the integers of their bit patterns without the sign. A histogram
//! over the upper 16 bits finds the bin that holds the `n`-th largest; only that bin is looked at closely.

use crate::Mask;
use rayon::prelude::*;

/// Bit pattern of |x|; monotone in |x| for finite values.
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

const BIN_SHIFT: u32 = 15;
const BINS: usize = 1 << 16;

/// The positions among which the largest are sought.
#[derive(Clone, Copy)]
pub(crate) enum Candidates<'a> {
    /// Every position.
    All,
    /// Active positions with a non-zero value, in neurons that are not skipped.
    NonZero { mask: &'a Mask, skip: &'a [bool] },
    /// Active positions, whatever their value.
    Active(&'a Mask),
    /// Positions inactive in this mask.
    NotIn(&'a Mask),
}

/// Magnitudes of one layer, `[neurons, dense fan-in]`.
#[derive(Clone, Copy)]
pub(crate) struct Scores<'a> {
    pub values: &'a [f32],
    pub neurons: usize,
    pub candidates: Candidates<'a>,
}

impl Scores<'_> {
    fn dense_fan_in(&self) -> usize {
        self.values.len() / self.neurons
    }

    /// Calls `each(magnitude)` for each candidate of one neuron.
    #[inline(always)]
    fn of_neuron(&self, neuron: usize, mut each: impl FnMut(u32)) {
        let m = self.dense_fan_in();
        let row = &self.values[neuron * m..][..m];
        match self.candidates {
            Candidates::All => row.iter().for_each(|v| each(magnitude(*v))),
            Candidates::Active(mask) => mask.inputs(neuron).for_each(|j| each(magnitude(row[j]))),
            Candidates::NonZero { skip, .. } if skip[neuron] => {}
            Candidates::NonZero { mask, .. } => {
                mask.inputs(neuron).map(|j| magnitude(row[j])).filter(|s| *s != 0).for_each(each)
            }
            Candidates::NotIn(mask) => {
                for (word, chunk) in mask.row(neuron).iter().zip(row.chunks(64)) {
                    for (_, value) in chunk.iter().enumerate().filter(|(bit, _)| word >> bit & 1 == 0) {
                        each(magnitude(*value));
                    }
                }
            }
        }
    }

    /// Neurons in groups large enough to be worth a task.
    fn blocks(&self) -> impl ParallelIterator<Item = std::ops::Range<usize>> + use<'_> {
        let neurons = self.neurons;
        let block = (1usize << 18).div_ceil(self.dense_fan_in().max(1));
        (0..neurons.div_ceil(block)).into_par_iter().map(move |b| b * block..((b + 1) * block).min(neurons))
    }

    /// The number of candidates.
    pub fn count(&self) -> usize {
        let count = |neuron| {
            let mut n = 0;
            self.of_neuron(neuron, |_| n += 1);
            n
        };
        self.blocks().map(|block| block.map(count).sum::<usize>()).sum()
    }

    /// The boundary of the `n` largest candidates (all of them if there are fewer).
    pub fn largest(&self, n: usize) -> Largest {
        if n == 0 {
            return Largest { boundary: u32::MAX, ties: Ties::None };
        }
        let histogram = self
            .blocks()
            .fold(
                || vec![0u32; BINS],
                |mut bins, block| {
                    block.for_each(|neuron| self.of_neuron(neuron, |s| bins[(s >> BIN_SHIFT) as usize] += 1));
                    bins
                },
            )
            .reduce(
                || vec![0u32; BINS],
                |mut a, b| {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    a
                },
            );
        // Walk down from the largest bin to the one where the n-th largest lies.
        let mut before = 0;
        let bin = (0..BINS).rev().find(|&bin| {
            before += histogram[bin] as usize;
            before >= n
        });
        let Some(bin) = bin else {
            return Largest { boundary: 0, ties: Ties::All };
        };
        before -= histogram[bin] as usize;

        let mut inside: Vec<u32> = self
            .blocks()
            .flat_map_iter(|block| {
                let mut found = Vec::new();
                for neuron in block {
                    self.of_neuron(neuron, |s| {
                        if (s >> BIN_SHIFT) as usize == bin {
                            found.push(s);
                        }
                    });
                }
                found
            })
            .collect();
        let wanted = n - before;
        let (larger, &mut boundary, _) = inside.select_nth_unstable_by(wanted - 1, |a, b| b.cmp(a));
        let ties_wanted = wanted - larger.iter().filter(|s| **s > boundary).count();
        let ties_found = inside.iter().filter(|s| **s == boundary).count();
        let ties = if ties_wanted == ties_found { Ties::All } else { self.first_ties(boundary, ties_wanted) };
        Largest { boundary, ties }
    }

    /// Lets the first `wanted` candidates equal to `boundary` pass, in flat order.
    fn first_ties(&self, boundary: u32, mut wanted: usize) -> Ties {
        let quota = (0..self.neurons).map(|neuron| {
            let mut equal = 0;
            self.of_neuron(neuron, |s| equal += usize::from(s == boundary));
            let quota = equal.min(wanted);
            wanted -= quota;
            quota
        });
        Ties::Quota(quota.collect())
    }

    /// Activates the `n` largest candidates in a mask of the same shape.
    pub fn mark_largest(&self, n: usize, mask: &mut Mask) {
        let largest = self.largest(n);
        let (words, width) = mask.rows_mut();
        words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| self.mark(&largest, neuron, row));
    }

    /// Marks in `row` the candidates of `neuron` that are among the `largest`.
    pub fn mark(&self, largest: &Largest, neuron: usize, row: &mut [u64]) {
        let (lowest, mut quota) = match &largest.ties {
            Ties::None => return,
            Ties::All => (largest.boundary, 0),
            Ties::Quota(quota) => (largest.boundary + 1, quota[neuron]),
        };
        let m = self.dense_fan_in();
        for (w, (word, chunk)) in row.iter_mut().zip(self.values[neuron * m..][..m].chunks(64)).enumerate() {
            let candidates = self.candidates_of_word(neuron, w, chunk);
            if candidates == 0 {
                continue;
            }
            *word |= candidates & bits(chunk, |s| s >= lowest);
            if quota > 0 {
                let ties = first_bits(candidates & bits(chunk, |s| s == largest.boundary), quota);
                quota -= ties.count_ones() as usize;
                *word |= ties;
            }
        }
    }

    /// The candidates among the 64 positions (`chunk`) of word `w` of a neuron. Bits past a row's end may be set.
    fn candidates_of_word(&self, neuron: usize, w: usize, chunk: &[f32]) -> u64 {
        match self.candidates {
            Candidates::All => u64::MAX,
            Candidates::Active(mask) => mask.row(neuron)[w],
            Candidates::NotIn(mask) => !mask.row(neuron)[w],
            Candidates::NonZero { skip, .. } if skip[neuron] => 0,
            Candidates::NonZero { mask, .. } => mask.row(neuron)[w] & bits(chunk, |s| s != 0),
        }
    }
}

/// One bit for each of up to 64 values: whether its magnitude passes the test.
///
/// The results go through bytes, since comparing into bytes vectorises and shifting bit by bit does not.
/// The factor moves byte `i` of eight to bit `56 + i`.
fn bits(values: &[f32], pass: impl Fn(u32) -> bool) -> u64 {
    let mut bytes = [0u8; 64];
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = u8::from(pass(magnitude(*value)));
    }
    let (eights, _) = bytes.as_chunks();
    let pack = |eight: [u8; 8]| u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    eights.iter().rev().fold(0, |word, eight| word << 8 | pack(*eight))
}

/// The lowest `n` set bits of a word.
fn first_bits(word: u64, n: usize) -> u64 {
    let mut rest = word;
    for _ in 0..n.min(64) {
        rest &= rest.wrapping_sub(1);
    }
    word & !rest
}

/// What separates the largest magnitudes from the others.
pub(crate) struct Largest {
    /// Candidates with a larger magnitude are in.
    boundary: u32,
    ties: Ties,
}

/// Which candidates exactly at the boundary are in.
enum Ties {
    None,
    All,
    /// That many of each neuron, lowest input first.
    Quota(Vec<usize>),
}

/// Keeps in `row` (marked inputs of one neuron with `values`) only the `n` largest magnitudes,
/// `1 ≤ n ≤` the number of marked.
pub(crate) fn keep_largest_of_row(row: &mut [u64], values: &[f32], n: usize) {
    // Orders by magnitude, then by lower input.
    let key = |j: usize| u64::from(magnitude(values[j])) << 32 | u64::from(!(j as u32));
    let mut keys: Vec<u64> = crate::mask::set_bits(row).map(key).collect();
    keys.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
    row.fill(0);
    for key in &keys[..n] {
        let input = !(*key as u32) as usize;
        row[input / 64] |= 1 << (input % 64);
    }
}

/// Adds to `row` the `n` largest magnitudes of `values` among positions not marked yet, of which there must
/// be that many. `scratch` spares an allocation per row.
pub(crate) fn add_largest_to_row(row: &mut [u64], values: &[f32], n: usize, scratch: &mut Vec<u32>) {
    if n == 0 {
        return;
    }
    // Marked positions count as 0, where they cannot displace another.
    scratch.clear();
    for (word, chunk) in row.iter().zip(values.chunks(64)) {
        let unmarked = |bit: usize| ((word >> bit & 1) as u32).wrapping_sub(1);
        scratch.extend(chunk.iter().enumerate().map(|(bit, v)| magnitude(*v) & unmarked(bit)));
    }
    let (larger, &mut boundary, _) = scratch.select_nth_unstable_by(n - 1, |a, b| b.cmp(a));
    let mut ties = n - larger.iter().filter(|s| **s > boundary).count();
    for (word, chunk) in row.iter_mut().zip(values.chunks(64)) {
        let marked = *word;
        *word |= bits(chunk, |s| s > boundary);
        if ties > 0 {
            let equal = first_bits(!marked & bits(chunk, |s| s == boundary), ties);
            ties -= equal.count_ones() as usize;
            *word |= equal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by a full stable sort.
    fn by_sorting(values: &[f32], candidates: &[usize], n: usize) -> Vec<u8> {
        let mut order = candidates.to_vec();
        order.sort_by_key(|&i| std::cmp::Reverse(magnitude(values[i])));
        let mut marked = vec![0; values.len()];
        order.iter().take(n).for_each(|&i| marked[i] = 1);
        marked
    }

    /// Values of which many are equal, also between signs; of which few are; or that share a bin of the histogram.
    fn value(kind: i32, i: usize, seed: i8) -> f32 {
        let seed = f32::from(seed);
        match kind {
            0 => seed,
            1 => seed + (i as f32).sin(),
            _ => (1.0 + seed.abs() * f32::EPSILON).copysign(seed),
        }
    }

    fn by_selection(scores: Scores, n: usize) -> Vec<u8> {
        let m = scores.dense_fan_in();
        let mut mask = Mask::empty(scores.neurons, m);
        let largest = scores.largest(n);
        let (words, width) = mask.rows_mut();
        words.chunks_mut(width).enumerate().for_each(|(i, row)| scores.mark(&largest, i, row));
        mask.to_bytes()
    }

    proptest! {
        #[test]
        fn selection_is_a_stable_sort(
            neurons in 1usize..6,
            m in 1usize..150,
            n in 0usize..600,
            kind in 0..3,
            seed in proptest::collection::vec((-4i8..4, any::<bool>()), 900),
        ) {
            let count = neurons * m;
            let values: Vec<f32> = (0..count).map(|i| value(kind, i, seed[i].0)).collect();
            let bytes: Vec<u8> = (0..count).map(|i| u8::from(seed[i].1)).collect();
            let mask = Mask::from_bytes(neurons, m, &bytes).unwrap();
            let skip: Vec<bool> = (0..neurons).map(|i| i == 1).collect();
            let sets: [(Candidates, Vec<usize>); 4] = [
                (Candidates::All, (0..count).collect()),
                (Candidates::Active(&mask), (0..count).filter(|&i| bytes[i] == 1).collect()),
                (Candidates::NotIn(&mask), (0..count).filter(|&i| bytes[i] == 0).collect()),
                (
                    Candidates::NonZero { mask: &mask, skip: &skip },
                    (0..count).filter(|&i| bytes[i] == 1 && values[i] != 0.0 && i / m != 1).collect(),
                ),
            ];
            for (candidates, expected) in sets {
                let scores = Scores { values: &values, neurons, candidates };
                prop_assert_eq!(scores.count(), expected.len());
                prop_assert_eq!(by_selection(scores, n), by_sorting(&values, &expected, n));
            }
        }

        #[test]
        fn rows_are_selected_as_layers_are(
            m in 1usize..150,
            n in 0usize..150,
            kind in 0..3,
            seed in proptest::collection::vec((-4i8..4, any::<bool>()), 150),
        ) {
            let values: Vec<f32> = (0..m).map(|i| value(kind, i, seed[i].0)).collect();
            let bytes: Vec<u8> = (0..m).map(|i| u8::from(seed[i].1)).collect();
            let (marked, free): (Vec<usize>, Vec<usize>) = (0..m).partition(|&i| bytes[i] == 1);
            let after = |change: &mut dyn FnMut(&mut [u64])| {
                let mut mask = Mask::from_bytes(1, m, &bytes).unwrap();
                change(mask.rows_mut().0);
                mask.to_bytes()
            };
            let keep = n.min(marked.len());
            if keep > 0 {
                let kept = after(&mut |row| keep_largest_of_row(row, &values, keep));
                prop_assert_eq!(kept, by_sorting(&values, &marked, keep));
            }
            let add = n.min(free.len());
            let mut both = by_sorting(&values, &free, add);
            marked.iter().for_each(|&i| both[i] = 1);
            prop_assert_eq!(after(&mut |row| add_largest_to_row(row, &values, add, &mut vec![7])), both);
        }
    }

    #[test]
    fn of_two_equal_values_at_the_boundary_the_first_is_in() {
        // All in one bin of the histogram.
        let values = [1.0 + f32::EPSILON, 1.0, 1.0];
        let scores = Scores { values: &values, neurons: 1, candidates: Candidates::All };
        assert_eq!(by_selection(scores, 2), [1, 1, 0]);
    }

    #[test]
    fn several_blocks_are_searched_as_one() {
        // Blocks of two neurons, the last of one.
        let (neurons, m) = (3, 1 << 17);
        let values: Vec<f32> = (0..neurons * m).map(|i| ((i * 7919) % 1000) as f32).collect();
        let all: Vec<usize> = (0..values.len()).collect();
        let scores = Scores { values: &values, neurons, candidates: Candidates::All };
        assert_eq!(scores.blocks().map(|block| block.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(scores.count(), values.len());
        for n in [1, 200_000] {
            assert!(by_selection(scores, n) == by_sorting(&values, &all, n), "{n}");
        }
    }
}
