//! The condensed form of one weight matrix.

use crate::{Error, WeightError};
use std::fmt;

/// Which weights of a matrix `[N, M]` are active, in condensed form (SRigL, figure 1): for each active neuron (row) the
/// input (column) that each of its weights reads.
///
/// With constant fan-in `k` the indices are a matrix `[groups, k]`: active neurons that follow each other and read the same
/// inputs are a group, and share a row. [`group`](Self::group) of them do, which the constructors find; mostly 1. Any other mask
/// is stored with one row pointer per active neuron.
///
/// Built only by checked constructors: active neurons ascend and are `< N`, rows are not empty, and their indices ascend and
/// are `< M`. Kernels rely on it.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    neurons: usize,
    inputs: usize,
    active: Vec<u32>,
    fan_in: FanIn,
    /// Active neurons that share a row of indices.
    group: usize,
    indices: Indices,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (active, weights) = (self.active.len(), self.len());
        write!(f, "{{ neurons: {}, active: {active}, ", self.neurons)?;
        match self.fan_in {
            FanIn::Constant(k) => write!(f, "fan_in: {k}, ")?,
            FanIn::Varying(_) => write!(f, "fan_in: varies, ")?,
        }
        if self.group > 1 {
            write!(f, "group: {}, ", self.group)?;
        }
        write!(f, "inputs: {}, weights: {weights} }}", self.inputs)
    }
}

/// A sparse weight matrix `[N, M]` in condensed form: a [`Pattern`] and the values of its weights, which are finite.
#[derive(Clone, PartialEq)]
pub struct CondensedWeight {
    pattern: Pattern,
    values: Vec<f32>,
}

impl fmt::Debug for CondensedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CondensedWeight {:?}", self.pattern)
    }
}

/// Weights of a layer, one row for each neuron: (input, value) with inputs ascending.
pub(crate) type Rows = Vec<Vec<(usize, f32)>>;

/// The weights of a linear layer or a convolution.
#[derive(Clone, PartialEq)]
pub enum Weight {
    /// All of them, row-major `[N, M]`.
    Dense(Vec<f32>),
    /// The active ones.
    Condensed(CondensedWeight),
}

impl Weight {
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(values) => values.len() * 4,
            Self::Condensed(weight) => weight.bytes(),
        }
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(values) => write!(f, "Dense {{ weights: {} }}", values.len()),
            Self::Condensed(weight) => weight.fmt(f),
        }
    }
}

/// How many weights each active neuron has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FanIn {
    /// The same number `k` for all.
    Constant(usize),
    /// Row pointers `[active neurons + 1]`, as in CSR: neuron `a` has the weights `p[a]..p[a + 1]`.
    Varying(Vec<u32>),
}

/// Input indices in the smallest type that can hold `M - 1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Indices {
    /// `M ≤ 2^8`.
    U8(Vec<u8>),
    /// `M ≤ 2^16`.
    U16(Vec<u16>),
    /// Larger.
    U32(Vec<u32>),
}

impl Indices {
    /// Stores `indices` for a matrix with `inputs` columns. All must be `< inputs`.
    pub fn new(indices: Vec<u32>, inputs: usize) -> Self {
        if inputs <= 1 << 8 {
            Self::U8(indices.into_iter().map(|i| i as u8).collect())
        } else if inputs <= 1 << 16 {
            Self::U16(indices.into_iter().map(|i| i as u16).collect())
        } else {
            Self::U32(indices)
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::U32(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index at position `i`.
    pub fn get(&self, i: usize) -> usize {
        match self {
            Self::U8(v) => v[i] as usize,
            Self::U16(v) => v[i] as usize,
            Self::U32(v) => v[i] as usize,
        }
    }

    /// All of them, little-endian.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::U8(v) => v.clone(),
            Self::U16(v) => v.iter().flat_map(|i| i.to_le_bytes()).collect(),
            Self::U32(v) => v.iter().flat_map(|i| i.to_le_bytes()).collect(),
        }
    }

    /// Bytes of one index.
    pub fn width(&self) -> usize {
        match self {
            Self::U8(_) => 1,
            Self::U16(_) => 2,
            Self::U32(_) => 4,
        }
    }
}

/// How many rows of `k` indices that follow each other are the same, each time but the last, where there may be fewer; and one of
/// each.
fn shared(indices: Vec<u32>, k: usize) -> (usize, Vec<u32>) {
    let rows: Vec<&[u32]> = indices.chunks_exact(k.max(1)).collect();
    let starts = (1..rows.len()).filter(|row| rows[*row] != rows[row - 1]);
    match starts.fold(0, greatest_divisor) {
        _ if rows.len() < 2 => (1, indices),
        1 => (1, indices),
        0 => (rows.len(), rows[0].to_vec()),
        group => (group, rows.into_iter().step_by(group).flatten().copied().collect()),
    }
}

/// The greatest common divisor of two numbers.
fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

impl Pattern {
    /// Checks and stores which weights of a matrix `[neurons, inputs]` there are: `active` neurons, their `fan_in`, and the
    /// `indices` of all rows one after the other.
    ///
    /// # Errors
    /// [`Error::Weight`] if any promise of the type would not hold.
    pub fn new(
        neurons: usize,
        inputs: usize,
        active: Vec<u32>,
        fan_in: FanIn,
        indices: Vec<u32>,
    ) -> Result<Self, Error> {
        let bad = |error: WeightError| Err(Error::Weight(error));
        if neurons > u32::MAX as usize || inputs > u32::MAX as usize {
            return bad(WeightError::TooLarge { neurons, inputs });
        }
        if let Some(pair) = active.windows(2).find(|pair| pair[0] >= pair[1]) {
            return bad(WeightError::ActiveOrder { before: pair[0], after: pair[1] });
        }
        if let Some(&last) = active.last().filter(|&&last| last as usize >= neurons) {
            return bad(WeightError::Active { neuron: last, neurons });
        }
        match &fan_in {
            FanIn::Constant(k) => {
                if *k == 0 && !active.is_empty() {
                    return bad(WeightError::FanInZero);
                }
                if *k > inputs {
                    return bad(WeightError::FanIn { fan_in: *k, inputs });
                }
                if active.len().checked_mul(*k) != Some(indices.len()) {
                    return bad(WeightError::Values {
                        values: indices.len(),
                        active: active.len(),
                        fan_in: *k,
                    });
                }
            }
            FanIn::Varying(pointers) => {
                let fits = pointers.len() == active.len() + 1
                    && pointers[0] == 0
                    && pointers.windows(2).all(|p| p[0] < p[1])
                    && pointers.last().is_some_and(|&p| p as usize == indices.len());
                if !fits {
                    return bad(WeightError::Pointers);
                }
            }
        }
        if let Some(index) = indices.iter().find(|&&i| i as usize >= inputs) {
            return bad(WeightError::Index { index: *index, inputs });
        }
        let (group, indices) = match fan_in {
            FanIn::Constant(k) => shared(indices, k),
            FanIn::Varying(_) => (1, indices),
        };
        let pattern = Self { neurons, inputs, active, fan_in, group, indices: Indices::new(indices, inputs) };
        for row in (0..pattern.active.len()).step_by(group) {
            let range = pattern.index_range(row);
            if (range.start + 1..range.end).any(|i| pattern.indices.get(i - 1) >= pattern.indices.get(i)) {
                return bad(WeightError::IndexOrder { neuron: pattern.active[row] });
            }
        }
        Ok(pattern)
    }

    /// The pattern of a mask `[neurons, inputs]` (row-major). The fan-in is constant if the mask's is; otherwise rows get
    /// pointers.
    ///
    /// # Errors
    /// [`Error::Weight`] if the length is not `neurons · inputs`.
    pub fn from_mask(mask: &[bool], neurons: usize, inputs: usize) -> Result<Self, Error> {
        if neurons.checked_mul(inputs) != Some(mask.len()) {
            let (weights, bits) = (mask.len(), mask.len());
            return Err(WeightError::Mask { weights, bits, neurons, inputs }.into());
        }
        let rows = mask.chunks_exact(inputs.max(1));
        let rows = rows.map(|row| (0..inputs as u32).filter(|&input| row[input as usize]));
        Self::from_rows(neurons, inputs, rows)
    }

    /// The pattern of a matrix `[neurons, inputs]` whose neurons read these inputs, each ascending. The fan-in is constant if
    /// all neurons that have any have as many; otherwise rows get pointers.
    ///
    /// # Errors
    /// [`Error::Weight`] if any promise of the type would not hold.
    pub fn from_rows(
        neurons: usize,
        inputs: usize,
        rows: impl IntoIterator<Item: IntoIterator<Item = u32>>,
    ) -> Result<Self, Error> {
        let (mut active, mut pointers, mut indices) = (Vec::new(), vec![0u32], Vec::new());
        for (neuron, row) in rows.into_iter().enumerate() {
            let before = indices.len();
            indices.extend(row);
            if indices.len() > before {
                active.push(neuron as u32);
                pointers.push(indices.len() as u32);
            }
        }
        let k = pointers.get(1).map_or(0, |&p| p);
        let constant = pointers.windows(2).all(|p| p[1] - p[0] == k);
        let fan_in = if constant { FanIn::Constant(k as usize) } else { FanIn::Varying(pointers) };
        Self::new(neurons, inputs, active, fan_in, indices)
    }

    /// Rows `N`, ablated ones included.
    pub fn neurons(&self) -> usize {
        self.neurons
    }

    /// Columns `M`, the dense fan-in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The neurons that have weights, ascending.
    pub fn active(&self) -> &[u32] {
        &self.active
    }

    /// Weights per active neuron.
    pub fn fan_in(&self) -> &FanIn {
        &self.fan_in
    }

    /// Active neurons of a group, which read the same inputs; 1 if there are no groups. The last group may have fewer.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Input indices of all groups `[groups, k]`, or of all rows, one after the other, if the fan-in varies.
    pub fn indices(&self) -> &Indices {
        &self.indices
    }

    /// The input that a weight reads, by its place among all.
    pub fn input(&self, place: usize) -> usize {
        match self.fan_in {
            FanIn::Constant(k) if self.group > 1 => self.indices.get(place / k / self.group * k + place % k),
            _ => self.indices.get(place),
        }
    }

    /// Active weights.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        match self.fan_in {
            FanIn::Constant(k) => self.active.len() * k,
            FanIn::Varying(_) => self.indices.len(),
        }
    }

    /// Where the weights of the `row`-th active neuron lie among all.
    pub fn row_range(&self, row: usize) -> std::ops::Range<usize> {
        match &self.fan_in {
            FanIn::Constant(k) => row * k..(row + 1) * k,
            FanIn::Varying(pointers) => pointers[row] as usize..pointers[row + 1] as usize,
        }
    }

    /// Where the indices of the `row`-th active neuron lie in [`indices`](Self::indices).
    pub(crate) fn index_range(&self, row: usize) -> std::ops::Range<usize> {
        self.row_range(row / self.group)
    }

    /// The weights of the `row`-th active neuron as (input, place among all), inputs ascending.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.index_range(row).map(|i| self.indices.get(i)).zip(self.row_range(row))
    }

    /// For all neurons, ablated ones included, the weights as (input, what `of` says of the weight's place among all).
    pub fn rows<T>(&self, of: impl Fn(usize) -> T) -> Vec<Vec<(usize, T)>> {
        let mut rows: Vec<Vec<(usize, T)>> = (0..self.neurons).map(|_| Vec::new()).collect();
        for (row, &neuron) in self.active.iter().enumerate() {
            rows[neuron as usize] = self.row(row).map(|(input, place)| (input, of(place))).collect();
        }
        rows
    }

    /// Bytes that indices, active neurons and row pointers take.
    pub fn bytes(&self) -> usize {
        let pointers = match &self.fan_in {
            FanIn::Constant(_) => 0,
            FanIn::Varying(pointers) => pointers.len() * 4,
        };
        self.indices.len() * self.indices.width() + self.active.len() * 4 + pointers
    }
}

impl CondensedWeight {
    /// Checks and stores a matrix `[neurons, inputs]`: `active` neurons, their `fan_in`, and the
    /// `indices` and `values` of all rows one after the other.
    ///
    /// # Errors
    /// [`Error::Weight`] if any promise of the type would not hold.
    pub fn new(
        neurons: usize,
        inputs: usize,
        active: Vec<u32>,
        fan_in: FanIn,
        indices: Vec<u32>,
        values: Vec<f32>,
    ) -> Result<Self, Error> {
        if indices.len() != values.len() {
            return Err(WeightError::Indices { indices: indices.len(), values: values.len() }.into());
        }
        let pattern = Pattern::new(neurons, inputs, active, fan_in, indices)?;
        Self::of(pattern, values)
    }

    /// Condenses `weights` `[neurons, inputs]` (row-major) where `mask` is true. The fan-in is constant
    /// if the mask's is; otherwise rows get pointers.
    ///
    /// # Errors
    /// [`Error::Weight`] if a length is not `neurons · inputs` or an active weight is not finite.
    pub fn from_masked(weights: &[f32], mask: &[bool], neurons: usize, inputs: usize) -> Result<Self, Error> {
        let size = neurons.checked_mul(inputs);
        if size != Some(weights.len()) || size != Some(mask.len()) {
            return Err(
                WeightError::Mask { weights: weights.len(), bits: mask.len(), neurons, inputs }.into()
            );
        }
        let pattern = Pattern::from_mask(mask, neurons, inputs)?;
        let values: Vec<f32> =
            weights.iter().zip(mask).filter(|(_, active)| **active).map(|(value, _)| *value).collect();
        Self::of(pattern, values)
    }

    /// The weights of a pattern, one row after the other.
    ///
    /// # Errors
    /// [`Error::Weight`] if there are not as many values, or one is not finite.
    pub fn of(pattern: Pattern, values: Vec<f32>) -> Result<Self, Error> {
        if values.len() != pattern.len() {
            return Err(WeightError::Indices { indices: pattern.len(), values: values.len() }.into());
        }
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(WeightError::NotFinite(*value).into()),
            None => Ok(Self { pattern, values }),
        }
    }

    /// The matrix `[N, M]`, row-major, zeros where no weight is active.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.neurons() * self.inputs()];
        for row in 0..self.active().len() {
            let start = self.active()[row] as usize * self.inputs();
            for (input, value) in self.row(row) {
                dense[start + input] = value;
            }
        }
        dense
    }

    /// Which weights are active.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Rows `N`, ablated ones included.
    pub fn neurons(&self) -> usize {
        self.pattern.neurons
    }

    /// Columns `M`, the dense fan-in.
    pub fn inputs(&self) -> usize {
        self.pattern.inputs
    }

    /// The neurons that have weights, ascending.
    pub fn active(&self) -> &[u32] {
        &self.pattern.active
    }

    /// Weights per active neuron.
    pub fn fan_in(&self) -> &FanIn {
        &self.pattern.fan_in
    }

    /// As [`Pattern::indices`].
    pub fn indices(&self) -> &Indices {
        &self.pattern.indices
    }

    /// Values of all rows, one row after the other.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Where the weights of the `row`-th active neuron lie in [`values`](Self::values).
    pub fn row_range(&self, row: usize) -> std::ops::Range<usize> {
        self.pattern.row_range(row)
    }

    /// The weights of the `row`-th active neuron as (input, value), inputs ascending.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.pattern.row(row).map(|(input, place)| (input, self.values[place]))
    }

    /// All neurons' weights, ablated neurons with none.
    pub(crate) fn rows(&self) -> Rows {
        self.pattern.rows(|i| self.values[i])
    }

    /// Bytes that values, indices, active neurons and row pointers take.
    pub fn bytes(&self) -> usize {
        self.values.len() * 4 + self.pattern.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condensed(inputs: usize, rows: &[&[usize]]) -> CondensedWeight {
        let mut mask = vec![false; rows.len() * inputs];
        for (neuron, row) in rows.iter().enumerate() {
            row.iter().for_each(|input| mask[neuron * inputs + input] = true);
        }
        CondensedWeight::from_masked(&vec![1.0; mask.len()], &mask, rows.len(), inputs).unwrap()
    }

    #[test]
    fn bytes_are_those_of_values_indices_neurons_and_pointers() {
        // Two active neurons of three.
        let rows: [&[usize]; 3] = [&[0, 1, 2], &[], &[1, 2, 3]];
        for (inputs, width) in [(200, 1), (300, 2), (70_000, 4)] {
            let weight = condensed(inputs, &rows);
            assert_eq!(weight.indices().width(), width);
            assert_eq!(weight.bytes(), 6 * 4 + 6 * width + 2 * 4);
            assert_eq!(Weight::Condensed(weight.clone()).bytes(), weight.bytes());
        }
        let varying = condensed(200, &[&[0, 1], &[7]]);
        assert_eq!(varying.bytes(), 3 * 4 + 3 + 2 * 4 + 3 * 4);
        assert_eq!(Weight::Dense(vec![0.0; 5]).bytes(), 20);
    }

    #[test]
    fn two_rows_may_be_a_group() {
        let weight = condensed(9, &[&[2, 5], &[2, 5]]);
        assert_eq!((weight.pattern().group(), weight.indices()), (2, &Indices::U8(vec![2, 5])));
        let apart = condensed(9, &[&[2, 5], &[2, 6]]);
        assert_eq!((apart.pattern().group(), apart.indices().len()), (1, 4));
        assert!(!apart.indices().is_empty() && condensed(9, &[&[]]).indices().is_empty());
    }

    #[test]
    fn masks_and_weights_have_one_length() {
        for (weights, bits) in [(4, 3), (3, 4), (3, 3)] {
            let wrong = CondensedWeight::from_masked(&vec![1.0; weights], &vec![true; bits], 2, 2);
            assert!(matches!(wrong, Err(Error::Weight(WeightError::Mask { .. }))), "{weights}, {bits}");
        }
    }

    #[test]
    fn numbers_are_not_printed() {
        let weight = condensed(200, &[&[0, 1], &[7, 9]]);
        let text = format!("{:?} {:?}", Weight::Dense(vec![0.0; 5]), Weight::Condensed(weight));
        assert!(text.starts_with("Dense { weights: 5 } CondensedWeight { neurons: 2, "), "{text}");
    }
}
