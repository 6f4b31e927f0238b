//! What structure masks have: told from the masks alone.

use crate::{Mask, NmPattern, mask};

/// The structure of a mask beside its fan-ins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// The pattern of the fewest inputs, up to 32 and half of all, whose groups are all full in neurons that have weights; or 2:4, if
    /// no four inputs have more than two.
    pub nm: Option<NmPattern>,
    /// How many neurons that have weights share their inputs, one such group after the other; 1 if they do not.
    pub group: usize,
}

impl Structure {
    /// That of a mask.
    ///
    /// ```
    /// use sparsity_core::{Mask, Structure};
    ///
    /// let mask = Mask::from_bytes(2, 8, &[1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 0])?;
    /// let Structure { nm, group } = Structure::of(&mask);
    /// assert_eq!((nm, group), ("1:4".parse().ok(), 2));
    /// # Ok::<(), sparsity_core::Error>(())
    /// ```
    pub fn of(mask: &Mask) -> Self {
        let mut rows = StructureOfRows::new(mask.dense_fan_in());
        (0..mask.neurons()).for_each(|neuron| rows.add(mask.row(neuron)));
        rows.structure()
    }
}

impl Mask {
    /// Whether neurons read the same inputs, `group` at a time; the last ones may be fewer.
    ///
    /// # Panics
    /// If `group` is 0.
    pub fn shares_inputs(&self, group: usize) -> bool {
        (0..self.neurons()).all(|neuron| self.inputs(neuron).eq(self.inputs(neuron / group * group)))
    }
}

/// The most inputs of a group that is looked for.
const MOST: usize = 32;

/// The structure of rows that come one after the other.
#[derive(Clone, Debug)]
pub struct StructureOfRows {
    inputs: usize,
    /// For groups of 2, 3, … inputs, how many of them all whole ones have; `None` once they differ.
    full: Vec<Option<usize>>,
    two_of_four: bool,
    last: Vec<u64>,
    /// Rows with weights.
    rows: usize,
    /// The largest number that divides the places where rows change.
    group: usize,
}

impl StructureOfRows {
    /// For rows of so many inputs.
    pub fn new(inputs: usize) -> Self {
        let full = vec![Some(0); MOST.min(inputs / 2).saturating_sub(1)];
        Self { inputs, full, two_of_four: true, last: Vec::new(), rows: 0, group: 0 }
    }

    /// Adds a row: a bit for each input, in words of 64, the lowest first.
    ///
    /// # Panics
    /// If there are not as many words.
    pub fn add(&mut self, row: &[u64]) {
        assert_eq!(row.len(), self.inputs.div_ceil(64), "words of a row");
        if row.iter().all(|word| *word == 0) {
            return;
        }
        if row != self.last {
            self.group = gcd(self.group, self.rows);
            self.last = row.to_vec();
            let is_first = self.rows == 0;
            for (full, m) in self.full.iter_mut().zip(2..) {
                *full = full.and_then(|known| full_groups(row, self.inputs, m, (!is_first).then_some(known)));
            }
            let of_four = |first: usize| mask::count_within(row, first..self.inputs.min(first + 4));
            self.two_of_four &= (0..self.inputs).step_by(4).all(|first| of_four(first) <= 2);
        }
        self.rows += 1;
    }

    /// That of all rows so far.
    pub fn structure(&self) -> Structure {
        let full = self.full.iter().zip(2..).find_map(|(n, m)| NmPattern::new((*n)?, m).ok());
        let two_of_four =
            || (self.rows > 0 && self.inputs >= 4 && self.two_of_four).then_some(NmPattern::TWO_OF_FOUR);
        // All rows alike are one group.
        let group = if self.group == 0 { self.rows.max(1) } else { self.group };
        Structure { nm: full.or_else(two_of_four), group }
    }
}

/// How many inputs each whole group of `m` has, as many as are `known` of other rows; `None` if they differ, or a rest has fewer than it
/// could.
fn full_groups(row: &[u64], inputs: usize, m: usize, known: Option<usize>) -> Option<usize> {
    let n = known.unwrap_or_else(|| mask::count_within(row, 0..m));
    let count = |first: usize| mask::count_within(row, first..inputs.min(first + m));
    let is_full = |first: usize| count(first) == n.min(inputs - first);
    (0..inputs).step_by(m).all(is_full).then_some(n)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{AnyMethod, Rigl, Srigl, StaticMask};
    use crate::{LayerSpec, Stream};

    fn mask(method: impl Into<AnyMethod>, dims: [usize; 2], sparsity: f64) -> Mask {
        let stream = Stream { seed: 3, layer: 0, step: 0 };
        method.into().initial_mask(&LayerSpec::new("fc", dims).unwrap(), sparsity, stream).unwrap()
    }

    #[test]
    fn structures_that_masks_were_made_with_are_found() {
        for (nm, inputs) in [("2:4", 24), ("1:4", 27), ("3:5", 23), ("1:32", 64), ("7:8", 70), ("1:2", 9)] {
            let nm: NmPattern = nm.parse().unwrap();
            let found = Structure::of(&mask(AnyMethod::from(Rigl).with_nm(nm).unwrap(), [20, inputs], 0.5));
            assert_eq!(found, Structure { nm: Some(nm), group: 1 });
        }
        for group in [2, 3, 4, 16] {
            let method = AnyMethod::from(Srigl::default()).with_group(group).unwrap();
            let shared = mask(method.clone(), [50, 40], 0.6);
            let found = Structure::of(&shared);
            assert_eq!((found.group, found.nm), (group, None));
            assert!(shared.shares_inputs(group) && !shared.shares_inputs(group + 1));
            let found = Structure::of(&mask(
                AnyMethod::from(Srigl::default())
                    .with_nm(NmPattern::TWO_OF_FOUR)
                    .unwrap()
                    .with_group(group)
                    .unwrap(),
                [50, 40],
                0.5,
            ));
            assert_eq!(found, Structure { nm: Some(NmPattern::TWO_OF_FOUR), group });
        }
    }

    #[test]
    fn others_are_not_taken_for_them() {
        let none = Structure { nm: None, group: 1 };
        assert_eq!(Structure::of(&mask(StaticMask, [50, 40], 0.5)), none);
        assert_eq!(Structure::of(&Mask::empty(3, 8)), none);
        assert_eq!(Structure::of(&Mask::empty(0, 0)), none);
        // One group of all inputs is no pattern.
        assert_eq!(Structure::of(&mask(Srigl::default(), [50, 27], 0.8)), none);
        // Three of the first four inputs.
        let rows = [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1, 0, 0]];
        assert_eq!(Structure::of(&Mask::from_bytes(2, 8, rows.as_flattened()).unwrap()), none);
        // All inputs of all neurons are no pattern, but a group.
        assert_eq!(Structure::of(&Mask::full(6, 8)), Structure { nm: None, group: 6 });
    }

    #[test]
    fn neurons_without_weights_do_not_count() {
        let rows = [[1, 0, 1, 0, 0], [0; 5], [1, 0, 1, 0, 0], [0, 1, 0, 1, 1], [0, 1, 0, 1, 1], [0; 5]];
        let found = Structure::of(&Mask::from_bytes(6, 5, rows.as_flattened()).unwrap());
        assert_eq!(found.group, 2);
        assert_eq!(found.nm, Some(NmPattern::TWO_OF_FOUR), "not full, but no four have more");
        // The last group may be smaller.
        let rows = [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 0]];
        assert_eq!(Structure::of(&Mask::from_bytes(7, 2, rows.as_flattened()).unwrap()).group, 3);
    }
}
