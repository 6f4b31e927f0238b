//! Bit-packed masks `[neurons, dense fan-in]`.

use crate::Error;

/// A topology of one layer: one bit per weight, 1 = active, rows are neurons.
///
/// Rows start at a fresh 64-bit word, so that rows can be worked on in parallel; the padding
/// bits at a row's end are always 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mask {
    neurons: usize,
    dense_fan_in: usize,
    words: Vec<u64>,
}

impl Mask {
    /// All weights inactive, `[neurons, dense_fan_in]`.
    pub fn empty(neurons: usize, dense_fan_in: usize) -> Self {
        let words = vec![0; neurons * dense_fan_in.div_ceil(64)];
        Self { neurons, dense_fan_in, words }
    }

    /// All weights active, `[neurons, dense_fan_in]`.
    pub fn full(neurons: usize, dense_fan_in: usize) -> Self {
        let mut mask = Self::empty(neurons, dense_fan_in);
        for neuron in 0..neurons {
            let row = mask.row_mut(neuron);
            row.fill(u64::MAX);
            if !dense_fan_in.is_multiple_of(64) {
                *row.last_mut().expect("dense_fan_in > 0") = (1 << (dense_fan_in % 64)) - 1;
            }
        }
        mask
    }

    /// From one byte per weight, row-major `[neurons, dense_fan_in]`.
    ///
    /// # Errors
    /// [`Error::MaskSize`] if the length does not fit, [`Error::MaskValue`] for a byte other than 0 or 1.
    pub fn from_bytes(neurons: usize, dense_fan_in: usize, bytes: &[u8]) -> Result<Self, Error> {
        if Some(bytes.len()) != neurons.checked_mul(dense_fan_in) {
            return Err(Error::MaskSize { neurons, dense_fan_in, got: bytes.len() });
        }
        if let Some(position) = bytes.iter().position(|&b| b > 1) {
            return Err(Error::MaskValue { position, value: bytes[position] });
        }
        let mut mask = Self::empty(neurons, dense_fan_in);
        for (position, _) in bytes.iter().enumerate().filter(|(_, b)| **b == 1) {
            mask.activate(position / dense_fan_in, position % dense_fan_in);
        }
        Ok(mask)
    }

    /// One byte per weight, 0 or 1, row-major `[neurons · dense_fan_in]`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.positions()];
        for neuron in 0..self.neurons {
            for input in self.inputs(neuron) {
                bytes[neuron * self.dense_fan_in + input] = 1;
            }
        }
        bytes
    }

    /// From the packed words of [`Mask::words`].
    ///
    /// # Errors
    /// [`Error::MaskSize`] if there are too many or few words, or if a padding bit is set.
    pub fn from_words(neurons: usize, dense_fan_in: usize, words: Vec<u64>) -> Result<Self, Error> {
        let wrong = Error::MaskSize { neurons, dense_fan_in, got: words.len() };
        if Some(words.len()) != neurons.checked_mul(dense_fan_in.div_ceil(64)) {
            return Err(wrong);
        }
        let mask = Self { neurons, dense_fan_in, words };
        let padded = |neuron| mask.row(neuron).last().is_some_and(|w| w >> (dense_fan_in % 64) != 0);
        if !dense_fan_in.is_multiple_of(64) && (0..neurons).any(padded) {
            return Err(wrong);
        }
        Ok(mask)
    }

    /// The packed bits: `⌈dense_fan_in / 64⌉` words a row, lowest bit first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// `[N, M]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.neurons, self.dense_fan_in]
    }

    /// Number of rows `N`.
    pub fn neurons(&self) -> usize {
        self.neurons
    }

    /// Number of columns `M`.
    pub fn dense_fan_in(&self) -> usize {
        self.dense_fan_in
    }

    /// Number of positions `N·M`.
    pub fn positions(&self) -> usize {
        self.neurons * self.dense_fan_in
    }

    /// Whether the weight at `[neuron, input]` is active.
    pub fn is_active(&self, neuron: usize, input: usize) -> bool {
        assert!(input < self.dense_fan_in, "input {input} of {}", self.dense_fan_in);
        self.row(neuron)[input / 64] >> (input % 64) & 1 == 1
    }

    /// Activates the weight at `[neuron, input]`.
    pub fn activate(&mut self, neuron: usize, input: usize) {
        assert!(input < self.dense_fan_in, "input {input} of {}", self.dense_fan_in);
        self.row_mut(neuron)[input / 64] |= 1 << (input % 64);
    }

    /// The active inputs of a neuron, in ascending order.
    pub fn inputs(&self, neuron: usize) -> impl Iterator<Item = usize> + '_ {
        set_bits(self.row(neuron))
    }

    /// Number of active weights of a neuron.
    pub fn fan_in(&self, neuron: usize) -> usize {
        count(self.row(neuron))
    }

    /// Number of active weights.
    pub fn nnz(&self) -> usize {
        count(&self.words)
    }

    /// Number of neurons with at least one active weight.
    pub fn active_neurons(&self) -> usize {
        self.neurons - self.ablated().len()
    }

    /// The neurons without an active weight, in ascending order.
    pub fn ablated(&self) -> Vec<usize> {
        (0..self.neurons).filter(|&neuron| self.row(neuron).iter().all(|w| *w == 0)).collect()
    }

    /// Share of active weights.
    pub fn density(&self) -> f64 {
        self.nnz() as f64 / self.positions().max(1) as f64
    }

    /// Number of positions active here and inactive in `other` (of the same shape).
    pub fn count_not_in(&self, other: &Mask) -> usize {
        assert_eq!((self.neurons, self.dense_fan_in), (other.neurons, other.dense_fan_in));
        self.words.iter().zip(&other.words).map(|(a, b)| (a & !b).count_ones() as usize).sum()
    }

    /// Activates every position that is active in `other` (of the same shape).
    pub fn union_with(&mut self, other: &Mask) {
        assert_eq!((self.neurons, self.dense_fan_in), (other.neurons, other.dense_fan_in));
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    /// Sets every weight that is not active to exactly 0. `weights` is `[neurons · dense_fan_in]`.
    pub fn apply(&self, weights: &mut [f32]) {
        assert_eq!(weights.len(), self.positions());
        for (neuron, row) in weights.chunks_exact_mut(self.dense_fan_in.max(1)).enumerate() {
            for (word, chunk) in self.row(neuron).iter().zip(row.chunks_mut(64)) {
                for (bit, weight) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *weight = 0.0;
                    }
                }
            }
        }
    }

    /// The words of one neuron.
    pub(crate) fn row(&self, neuron: usize) -> &[u64] {
        let width = self.row_words();
        &self.words[neuron * width..][..width]
    }

    /// The words of all neurons, to be written row by row.
    pub(crate) fn rows_mut(&mut self) -> (&mut [u64], usize) {
        let width = self.row_words();
        (&mut self.words, width)
    }

    pub(crate) fn row_mut(&mut self, neuron: usize) -> &mut [u64] {
        let width = self.row_words();
        &mut self.words[neuron * width..][..width]
    }

    fn row_words(&self) -> usize {
        self.dense_fan_in.div_ceil(64)
    }
}

/// Sets a bit.
pub(crate) fn set_bit(words: &mut [u64], bit: usize) {
    words[bit / 64] |= 1 << (bit % 64);
}

/// Clears a bit.
pub(crate) fn clear_bit(words: &mut [u64], bit: usize) {
    words[bit / 64] &= !(1 << (bit % 64));
}

/// Whether a bit is set.
pub(crate) fn has_bit(words: &[u64], bit: usize) -> bool {
    words[bit / 64] >> (bit % 64) & 1 == 1
}

/// Number of set bits.
pub(crate) fn count(words: &[u64]) -> usize {
    words.iter().map(|w| w.count_ones() as usize).sum()
}

/// Number of set bits in a range.
pub(crate) fn count_within(words: &[u64], bits: std::ops::Range<usize>) -> usize {
    let mut count = 0;
    let mut first = bits.start;
    while first < bits.end {
        // To the end of the word, or of the range.
        let here = (64 - first % 64).min(bits.end - first);
        let word = words[first / 64] >> (first % 64) & (u64::MAX >> (64 - here));
        count += word.count_ones() as usize;
        first += here;
    }
    count
}

/// Activates those inactive positions of a row of `inputs` whose ranks among all inactive ones, ascending, come next, if they are
/// below `first` plus the number of inactive ones, which is returned.
pub(crate) fn activate_free(
    row: &mut [u64],
    inputs: usize,
    first: usize,
    ranks: &mut std::iter::Peekable<impl Iterator<Item = usize>>,
) -> usize {
    let mut rank = first;
    for (index, word) in row.iter_mut().enumerate() {
        let there = (inputs - index * 64).min(64);
        let mut free = !*word & (u64::MAX >> (64 - there));
        let end = rank + free.count_ones() as usize;
        while let Some(next) = ranks.next_if(|next| *next < end) {
            for _ in rank..next {
                free &= free - 1;
            }
            *word |= free & free.wrapping_neg();
            free &= free - 1;
            rank = next + 1;
        }
        rank = end;
    }
    rank
}

/// Indices of the set bits, ascending.
pub(crate) fn set_bits(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().enumerate().flat_map(|(i, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(i * 64 + bit)
        })
    })
}

/// A mask in which every active neuron has the same fan-in `k`: the structure that SRigL promises
/// and condensed layers need. It cannot be built from a mask that lacks it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConstantFanInMask {
    mask: Mask,
    fan_in: usize,
}

impl ConstantFanInMask {
    /// The fan-in `k` of every active neuron; 0 if all are ablated.
    pub fn fan_in(&self) -> usize {
        self.fan_in
    }

    /// The mask itself.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Gives the mask up.
    pub fn into_mask(self) -> Mask {
        self.mask
    }
}

impl TryFrom<Mask> for ConstantFanInMask {
    type Error = Error;

    fn try_from(mask: Mask) -> Result<Self, Error> {
        let mut fan_in = 0;
        for neuron in 0..mask.neurons {
            let got = mask.fan_in(neuron);
            if fan_in != 0 && got != 0 && got != fan_in {
                return Err(Error::NotConstantFanIn { neuron, expected: fan_in, got });
            }
            fan_in = fan_in.max(got);
        }
        Ok(Self { mask, fan_in })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_round_trip() {
        let bytes: Vec<u8> = (0..3 * 70).map(|i| u8::from(i % 3 == 0)).collect();
        let mask = Mask::from_bytes(3, 70, &bytes).unwrap();
        assert_eq!(mask.to_bytes(), bytes);
        assert_eq!(Mask::from_words(3, 70, mask.words().to_vec()).unwrap(), mask);
        assert_eq!(mask.nnz(), 70);
        assert!(mask.is_active(0, 0) && !mask.is_active(0, 1));
    }

    #[test]
    fn hostile_sizes_and_values_are_refused() {
        assert!(matches!(Mask::from_bytes(usize::MAX, 2, &[0]), Err(Error::MaskSize { .. })));
        assert!(matches!(Mask::from_bytes(1, 2, &[0, 2]), Err(Error::MaskValue { position: 1, value: 2 })));
        assert!(Mask::from_words(1, 3, vec![0b1000]).is_err(), "padding bit");
        assert!(Mask::from_words(1, 64, vec![u64::MAX]).is_ok());
        assert!(Mask::from_words(usize::MAX, 65, vec![]).is_err());
    }

    #[test]
    fn full_masks_have_clean_padding() {
        for m in [1, 63, 64, 65, 128] {
            let mask = Mask::full(2, m);
            assert_eq!(mask.nnz(), 2 * m);
            assert!(Mask::from_words(2, m, mask.words().to_vec()).is_ok());
        }
    }

    #[test]
    fn constant_fan_in_is_checked_and_skips_ablated_neurons() {
        let mask = Mask::from_bytes(3, 3, &[1, 1, 0, 0, 0, 0, 0, 1, 1]).unwrap();
        assert_eq!((mask.ablated(), mask.active_neurons()), (vec![1], 2));
        assert_eq!(ConstantFanInMask::try_from(mask).unwrap().fan_in(), 2);
        let mask = Mask::from_bytes(2, 3, &[1, 1, 0, 1, 0, 0]).unwrap();
        let refused = ConstantFanInMask::try_from(mask);
        assert!(matches!(refused, Err(Error::NotConstantFanIn { neuron: 1, expected: 2, got: 1 })));
    }

    #[test]
    fn bits_of_a_range_are_counted_across_words() {
        let row: Vec<u8> = (0..200).map(|i| u8::from(i % 3 == 0 || i % 7 == 1)).collect();
        let mask = Mask::from_bytes(1, 200, &row).unwrap();
        for (first, last) in
            [(0, 0), (0, 1), (3, 64), (63, 65), (60, 140), (64, 128), (127, 129), (0, 200), (199, 200)]
        {
            let expected = row[first..last].iter().filter(|bit| **bit == 1).count();
            assert_eq!(count_within(mask.row(0), first..last), expected, "{first}..{last}");
        }
    }

    #[test]
    fn inactive_positions_are_activated_by_their_ranks() {
        for inputs in [1, 5, 64, 65, 130] {
            let row: Vec<u8> = (0..inputs).map(|i| u8::from(i % 3 == 1)).collect();
            let mut mask = Mask::from_bytes(1, inputs, &row).unwrap();
            let free: Vec<usize> = (0..inputs).filter(|i| row[*i] == 0).collect();
            // Of ranks from 100 on, those of the first, the last and every fourth.
            let mut ranks: Vec<usize> = (100..100 + free.len()).step_by(4).chain([99 + free.len()]).collect();
            ranks.dedup();
            let mut all = ranks.iter().copied().chain([100 + free.len()]).peekable();
            assert_eq!(activate_free(mask.row_mut(0), inputs, 100, &mut all), 100 + free.len());
            assert_eq!(all.next(), Some(100 + free.len()), "not of this row");
            let mut expected = row.clone();
            ranks.iter().for_each(|rank| expected[free[rank - 100]] = 1);
            assert_eq!(mask.to_bytes(), expected);
        }
    }

    #[test]
    fn masks_are_compared_joined_and_applied_position_by_position() {
        let bytes = |step: usize| (0..2 * 70).map(|i| u8::from(i % step == 0)).collect::<Vec<u8>>();
        let [mut twos, threes] = [2, 3].map(|step| Mask::from_bytes(2, 70, &bytes(step)).unwrap());
        assert_eq!(twos.shape(), [2, 70]);
        assert_eq!((twos.density(), twos.count_not_in(&threes), threes.count_not_in(&twos)), (0.5, 46, 23));
        assert_eq!((twos.fan_in(0), twos.active_neurons()), (35, 2));
        assert!((0..140).all(|i| threes.is_active(i / 70, i % 70) == (i % 3 == 0)));
        let mut weights: Vec<f32> = vec![-1.0; 140];
        threes.apply(&mut weights);
        // An inactive weight is +0.0, whatever it was.
        let expected = bytes(3).into_iter().map(|active| if active == 1 { (-1.0_f32).to_bits() } else { 0 });
        assert!(weights.iter().map(|w| w.to_bits()).eq(expected));
        twos.union_with(&threes);
        let either: Vec<u8> = bytes(2).iter().zip(bytes(3)).map(|(a, b)| a | b).collect();
        assert_eq!(twos.to_bytes(), either);
    }

    #[test]
    fn a_neuron_that_is_ablated_first_does_not_set_the_fan_in() {
        let of = |rows: [[u8; 2]; 3]| {
            ConstantFanInMask::try_from(Mask::from_bytes(3, 2, rows.as_flattened()).unwrap())
        };
        assert_eq!(of([[0, 0], [1, 1], [0, 0]]).unwrap().fan_in(), 2);
        assert_eq!(of([[0, 0]; 3]).unwrap().fan_in(), 0);
        let refused = of([[0, 0], [1, 0], [1, 1]]);
        assert!(matches!(refused, Err(Error::NotConstantFanIn { neuron: 2, expected: 1, got: 2 })));
    }
}
