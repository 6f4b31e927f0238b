//! N:M patterns: of `m` consecutive inputs a neuron reads at most `n` (Zhou et al. 2021, arXiv 2102.04010).

use crate::random::Purpose;
use crate::select::{Key, keep_largest};
use crate::topology::check_values;
use crate::{Error, LayerSpec, Mask, Stream, mask, sparsity_of_count};
use rayon::prelude::*;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// At most `n` of `m` consecutive inputs of a neuron: 2:4 is what tensor cores take.
///
/// A row of inputs that is no multiple of `m` ends in a group of fewer, as if it went on with zeros: of these few inputs at most
/// `n` may be active, too. Inputs of a convolution are in the order `[in, kh, kw]`.
///
/// ```
/// use sparsity_core::NmPattern;
///
/// let pattern: NmPattern = "2:4".parse()?;
/// assert_eq!(pattern.capacity(16), 8);
/// // Two groups of four inputs, and one of the ninth.
/// assert_eq!(pattern.capacity(9), 5);
/// # Ok::<(), sparsity_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmPattern {
    n: usize,
    m: usize,
}

impl NmPattern {
    /// 2:4.
    pub const TWO_OF_FOUR: Self = Self { n: 2, m: 4 };

    /// At most `n` of `m` consecutive inputs.
    ///
    /// # Errors
    /// [`Error::Nm`] unless 0 < `n` < `m` ≤ 65536.
    pub fn new(n: usize, m: usize) -> Result<Self, Error> {
        match 0 < n && n < m && m <= 1 << 16 {
            true => Ok(Self { n, m }),
            false => Err(Error::Nm { given: format!("{n}:{m}") }),
        }
    }

    /// `n`.
    pub fn n(self) -> usize {
        self.n
    }

    /// `1 − n/m`: the sparsity of neurons whose inputs are a multiple of `m`.
    pub fn share_of_zeros(self) -> f64 {
        1.0 - self.n as f64 / self.m as f64
    }

    /// The most inputs that a neuron of dense fan-in `inputs` may have.
    pub fn capacity(self, inputs: usize) -> usize {
        inputs / self.m * self.n + (inputs % self.m).min(self.n)
    }

    /// The sparsity of a layer whose groups are all full; 0 for one that the pattern does not restrict.
    pub fn sparsity(self, layer: &LayerSpec) -> f64 {
        sparsity_of_count(layer.weights(), layer.neurons() * self.capacity(layer.dense_fan_in()))
    }

    /// Whether a mask has the pattern, and all groups of neurons that have weights are full.
    pub fn fills(self, mask: &Mask) -> bool {
        let is_full = |neuron| [0, self.capacity(mask.dense_fan_in())].contains(&mask.fan_in(neuron));
        self.holds(mask) && (0..mask.neurons()).all(is_full)
    }

    /// Whether a mask has the pattern.
    pub fn holds(self, mask: &Mask) -> bool {
        let in_group = |neuron, group| mask::count_within(mask.row(neuron), group);
        (0..mask.neurons())
            .all(|neuron| self.groups(mask.dense_fan_in()).all(|group| in_group(neuron, group) <= self.n))
    }

    /// The groups of a row.
    fn groups(self, inputs: usize) -> impl Iterator<Item = Range<usize>> {
        (0..inputs).step_by(self.m).map(move |first| first..inputs.min(first + self.m))
    }

    /// How many inputs a group may have.
    fn room(self, group: &Range<usize>) -> usize {
        self.n.min(group.len())
    }

    /// A mask `[N, M]` whose groups draw their inputs uniformly without replacement.
    pub(crate) fn random_mask(self, layer: &LayerSpec, stream: Stream) -> Mask {
        self.rows(layer.neurons(), layer.dense_fan_in(), |neuron, row| {
            let mut rng = stream.rng(Purpose::Mask, neuron);
            for group in self.groups(layer.dense_fan_in()) {
                for input in rand::seq::index::sample(&mut rng, group.len(), self.room(&group)) {
                    mask::set_bit(row, group.start + input);
                }
            }
        })
    }

    /// The mask `[N, M]` of the largest |W| of each group, by weights `[N · M]`; of equal ones the first.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::NotFinite`] for weights that do not fit or have diverged.
    pub fn largest(self, layer: &LayerSpec, weights: &[f32]) -> Result<Mask, Error> {
        let inputs = layer.dense_fan_in();
        check_values(&layer.name, [layer.neurons(), inputs], "weight", weights)?;
        Ok(self.project(weights, layer.neurons(), inputs))
    }

    /// The same of weights that have been checked.
    pub(crate) fn project(self, weights: &[f32], neurons: usize, inputs: usize) -> Mask {
        self.rows(neurons, inputs, |neuron, row| {
            let values = &weights[neuron * inputs..][..inputs];
            let mut keys = Vec::with_capacity(self.m.min(inputs));
            for group in self.groups(inputs) {
                keys.clear();
                keys.extend(group.clone().map(|input| Key::new(values[input], input)));
                keep_largest(&mut keys, self.n);
                keys.iter().for_each(|key| mask::set_bit(row, key.position()));
            }
        })
    }

    /// A mask, row by row.
    fn rows(self, neurons: usize, inputs: usize, of: impl Fn(usize, &mut [u64]) + Sync) -> Mask {
        let mut mask = Mask::empty(neurons, inputs);
        let (words, width) = mask.rows_mut();
        words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| of(neuron, row));
        mask
    }

    /// Drops from the row of a neuron the smallest weights of groups that have too many, whose positions begin with `first`.
    pub(crate) fn prune(self, keys: impl Iterator<Item = Key>, first: usize, inputs: usize, row: &mut [u64]) {
        let crowded = |group: &Range<usize>| mask::count_within(row, group.clone()) > self.n;
        let crowded: Vec<Range<usize>> = self.groups(inputs).filter(crowded).collect();
        if crowded.is_empty() {
            return;
        }
        let keys: Vec<Key> = keys.collect();
        for group in crowded {
            let input = |key: &Key| key.position() - first;
            let here = |key: &&Key| group.contains(&input(key)) && mask::has_bit(row, input(key));
            let mut of_group: Vec<Key> = keys.iter().filter(here).copied().collect();
            keep_largest(&mut of_group, self.n);
            group.clone().for_each(|input| mask::clear_bit(row, input));
            of_group.iter().for_each(|key| mask::set_bit(row, input(key)));
        }
    }

    /// Fills the groups of a row by the largest |G| of the inputs that are free.
    pub(crate) fn fill_by_gradient(self, gradient: &[f32], row: &mut [u64]) {
        let mut keys = Vec::with_capacity(self.m.min(gradient.len()));
        for group in self.groups(gradient.len()) {
            let missing = self.missing(&group, row);
            if missing > 0 {
                keys.clear();
                let free = group.filter(|input| !mask::has_bit(row, *input));
                keys.extend(free.map(|input| Key::new(gradient[input], input)));
                keep_largest(&mut keys, missing);
                keys.iter().for_each(|key| mask::set_bit(row, key.position()));
            }
        }
    }

    /// Fills the groups of a neuron's row at random.
    pub(crate) fn fill_at_random(self, stream: Stream, neuron: usize, inputs: usize, row: &mut [u64]) {
        let mut rng = stream.rng(Purpose::Growth, neuron);
        let mut free = Vec::with_capacity(self.m.min(inputs));
        for group in self.groups(inputs) {
            let missing = self.missing(&group, row);
            if missing == 0 {
                continue;
            }
            free.clear();
            free.extend(group.filter(|input| !mask::has_bit(row, *input)));
            for place in rand::seq::index::sample(&mut rng, free.len(), missing) {
                mask::set_bit(row, free[place]);
            }
        }
    }

    fn missing(self, group: &Range<usize>, row: &[u64]) -> usize {
        self.room(group).saturating_sub(mask::count_within(row, group.clone()))
    }
}

impl fmt::Display for NmPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.n, self.m)
    }
}

impl FromStr for NmPattern {
    type Err = Error;

    /// From `N:M`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match numbers {
            Some((n, m)) => Self::new(n, m),
            None => Err(Error::Nm { given: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_written_or_refused() {
        let pattern: NmPattern = "2:4".parse().unwrap();
        assert_eq!((pattern, pattern.to_string()), (NmPattern::TWO_OF_FOUR, "2:4".into()));
        for wrong in ["", "2", "2:", ":4", "0:4", "4:4", "5:4", "-1:4", "2:4:8", "2.0:4", "a:b", "1:65537"] {
            let error = wrong.parse::<NmPattern>().unwrap_err();
            assert!(matches!(&error, Error::Nm { given } if given == wrong), "{wrong}: {error}");
        }
        assert!("99999999999999999999:4".parse::<NmPattern>().is_err());
    }

    #[test]
    fn the_last_group_may_be_short() {
        let pattern = NmPattern::TWO_OF_FOUR;
        let capacities = [0, 1, 2, 3, 4, 5, 6, 7, 8, 27].map(|inputs| pattern.capacity(inputs));
        assert_eq!(capacities, [0, 1, 2, 2, 2, 3, 4, 4, 4, 14]);
        let layer = |inputs| LayerSpec::new("fc", [3, inputs]).unwrap();
        assert_eq!((pattern.sparsity(&layer(8)), pattern.share_of_zeros()), (0.5, 0.5));
        assert_eq!(pattern.sparsity(&layer(2)), 0.0, "two of two");
        let mask = pattern.random_mask(&layer(7), Stream { seed: 1, layer: 0, step: 0 });
        assert!(pattern.holds(&mask) && (0..3).all(|neuron| mask.fan_in(neuron) == 4));
    }

    #[test]
    fn a_mask_fills_a_pattern_or_has_room() {
        let pattern = NmPattern::new(2, 3).unwrap();
        assert_eq!(pattern.n(), 2);
        let fills =
            |rows: &[[u8; 4]]| pattern.fills(&Mask::from_bytes(rows.len(), 4, rows.as_flattened()).unwrap());
        assert!(fills(&[[1, 1, 0, 1], [0, 1, 1, 1]]));
        assert!(fills(&[[1, 0, 1, 1], [0; 4]]), "a neuron without weights");
        assert!(!fills(&[[1, 0, 0, 1], [0, 1, 1, 1]]), "room for one more");
        assert!(!fills(&[[1, 1, 1, 0], [0, 1, 1, 1]]), "as many, but three of three");
    }

    #[test]
    fn each_group_keeps_its_largest() {
        let layer = LayerSpec::new("fc", [2, 5]).unwrap();
        let weights = [3.0, -4.0, 1.0, 2.0, 0.0, 1.0, 1.0, -1.0, 1.0, 9.0];
        let mask = NmPattern::TWO_OF_FOUR.largest(&layer, &weights).unwrap();
        assert_eq!(mask.to_bytes(), [1, 1, 0, 0, 1, 1, 1, 0, 0, 1]);
        assert!(matches!(NmPattern::TWO_OF_FOUR.largest(&layer, &weights[..9]), Err(Error::Length { .. })));
    }

    #[test]
    fn a_pattern_is_told_from_others() {
        let holds = |row: &[u8]| {
            let mask = Mask::from_bytes(1, row.len(), row).unwrap();
            NmPattern::TWO_OF_FOUR.holds(&mask)
        };
        assert!(holds(&[1, 1, 0, 0, 1, 1]) && holds(&[0; 9]));
        assert!(!holds(&[1, 1, 1, 0]) && !holds(&[0, 0, 0, 0, 1, 1, 1]));
        // Across the border of two words.
        let mut row = vec![0; 70];
        row[62..65].fill(1);
        assert!(holds(&row), "60 to 63, and 64 to 67");
        let mask = Mask::from_bytes(1, 70, &row).unwrap();
        assert!(!NmPattern::new(2, 5).unwrap().holds(&mask), "60 to 64");
    }

    #[test]
    fn a_crowded_group_loses_its_smallest() {
        let mut row = [0b1111_1011u64];
        let keys = [5.0f32, 1.0, 3.0, 2.0, 2.0, 9.0, 2.0];
        let inputs = [0, 1, 3, 4, 5, 6, 7];
        let keys = inputs.into_iter().zip(keys).map(|(input, value)| Key::new(value, 100 + input));
        NmPattern::TWO_OF_FOUR.prune(keys, 100, 8, &mut row);
        assert_eq!(row, [0b0101_1001], "5 and 3; 9 and the first of the 2s");
    }
}
