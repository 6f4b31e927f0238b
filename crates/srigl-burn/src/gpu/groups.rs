//! The layout in which the kernels read weights.

use condensed::Pattern;

/// Weights of a group.
pub const GROUP: usize = 4;

/// Words of a group's indices.
pub fn index_words(packed: bool) -> usize {
    if packed { GROUP / 2 } else { GROUP }
}

/// Where a place's value is that no weight has: it is 0.
pub const NOWHERE: u32 = u32::MAX;

/// Weights in groups of four, as [`kernels`](super::kernels) says.
#[derive(Debug, PartialEq)]
pub struct Groups {
    /// Which of the pattern's weights each place has, or [`NOWHERE`]. `[groups · 4]`
    pub order: Vec<u32>,
    /// The input that each place reads, two to a word if `packed`.
    pub indices: Vec<u32>,
    /// `[N · chunks + 1]`
    pub starts: Vec<u32>,
    /// Whether indices have 16 bits.
    pub packed: bool,
    /// Chunks of inputs.
    pub chunks: usize,
}

/// The weights of a neuron as (input, which of the pattern's weights), inputs ascending.
pub type Row = Vec<(usize, u32)>;

/// A weight's place among a pattern's, as [`Row`] has it.
pub fn which(place: usize) -> u32 {
    place as u32
}

impl Groups {
    /// Weights of a linear layer, whose groups stay within chunks of `chunk` inputs.
    pub fn linear(pattern: &Pattern, chunk: usize) -> Self {
        Self::new(pattern.rows(which), pattern.inputs(), chunk, pattern.inputs(), |_, input| input as u32)
    }

    /// Weights of a convolution on padded images of `image` values, at the places that `offset` gives to
    /// `(neuron, input)`.
    pub fn convolution(pattern: &Pattern, image: usize, offset: impl Fn(usize, usize) -> u32) -> Self {
        Self::new(pattern.rows(which), pattern.inputs(), pattern.inputs().max(1), image, offset)
    }

    /// Weights of these rows of `inputs` inputs each. Indices are below `span`.
    pub fn new(
        rows: impl IntoIterator<Item = Row>,
        inputs: usize,
        chunk: usize,
        span: usize,
        offset: impl Fn(usize, usize) -> u32,
    ) -> Self {
        let chunks = inputs.div_ceil(chunk).max(1);
        let packed = span <= 1 << 16;
        let (mut order, mut indices, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for (neuron, weights) in rows.into_iter().enumerate() {
            for c in 0..chunks {
                // Inputs ascend.
                let from = weights.partition_point(|(input, _)| *input < c * chunk);
                let to = weights.partition_point(|(input, _)| *input < (c + 1) * chunk);
                for group in weights[from..to].chunks(GROUP) {
                    // A group is filled up with zeros that read the last of its own inputs.
                    for i in 0..GROUP {
                        let (input, weight) = group[i.min(group.len() - 1)];
                        indices.push(offset(neuron, input));
                        order.push(if i < group.len() { weight } else { NOWHERE });
                    }
                }
                starts.push((order.len() / GROUP) as u32);
            }
        }
        // No buffer is empty, also where all neurons are ablated.
        order.resize(order.len().max(GROUP), NOWHERE);
        indices.resize(indices.len().max(GROUP), 0);
        if packed {
            indices = indices.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect();
        }
        Self { order, indices, starts, packed, chunks }
    }

    /// The values of a pattern's weights at their places.
    pub fn place(&self, values: &[f32]) -> Vec<f32> {
        self.order.iter().map(|&weight| values.get(weight as usize).copied().unwrap_or(0.0)).collect()
    }

    /// The place of each of `count` weights; [`NOWHERE`] for those that the pattern does not have.
    pub fn places(&self, count: usize) -> Vec<u32> {
        let mut places = vec![NOWHERE; count];
        for (place, &weight) in self.order.iter().enumerate().filter(|(_, weight)| **weight != NOWHERE) {
            places[weight as usize] = place as u32;
        }
        places
    }

    /// Groups of the neuron that has most.
    pub fn most(&self) -> usize {
        let starts: Vec<u32> = self.starts.iter().step_by(self.chunks).copied().collect();
        starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

/// For each of `count` inputs the weights that read it as (where, which weight): `to` says of `(neuron, input)` which
/// input that is, and where among what the input's gradient reads.
pub fn transposed(pattern: &Pattern, count: usize, to: impl Fn(usize, usize) -> (usize, usize)) -> Vec<Row> {
    let mut columns = vec![Row::new(); count];
    for (neuron, row) in pattern.rows(which).into_iter().enumerate() {
        for (input, weight) in row {
            let (column, at) = to(neuron, input);
            columns[column].push((at, weight));
        }
    }
    columns.iter_mut().for_each(|column| column.sort_unstable());
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_within_neurons_and_chunks() {
        // Neuron 0 reads 0, 1, 2, 3, 4 and 6, neuron 1 nothing, neuron 2 reads 7.
        let pattern = Pattern::from_rows(3, 8, [vec![0, 1, 2, 3, 4, 6], vec![], vec![7]]).unwrap();
        let groups = Groups::linear(&pattern, 5);
        let n = NOWHERE;
        let expected = Groups {
            order: vec![0, 1, 2, 3, 4, n, n, n, 5, n, n, n, 6, n, n, n],
            indices: vec![0x1_0000, 0x3_0002, 0x4_0004, 0x4_0004, 0x6_0006, 0x6_0006, 0x7_0007, 0x7_0007],
            starts: vec![0, 2, 3, 3, 3, 3, 4],
            packed: true,
            chunks: 2,
        };
        assert_eq!(groups, expected);
        assert_eq!((groups.most(), groups.places(8)), (3, vec![0, 1, 2, 3, 4, 8, 12, n]));
        assert_eq!(groups.place(&[1., 2., 3., 4., 5., 6., 7.])[4..9], [5., 0., 0., 0., 6.]);
        let words = Groups::convolution(&pattern, 1 << 20, |neuron, input| (neuron << 17 | input) as u32);
        assert_eq!(words.indices[8..], [2 << 17 | 7; 4]);
        assert_eq!(words.starts, [0, 2, 2, 3]);
    }

    #[test]
    fn no_buffer_is_empty() {
        let pattern = Pattern::from_mask(&[false; 6], 2, 3).unwrap();
        let groups = Groups::linear(&pattern, 32);
        assert_eq!(groups.order, vec![NOWHERE; 4]);
        assert_eq!((groups.indices, groups.starts), (vec![0, 0], vec![0, 0, 0]));
    }

    #[test]
    fn an_input_has_the_weights_that_read_it() {
        let pattern = Pattern::from_rows(3, 3, [vec![0, 2], vec![], vec![0, 1]]).unwrap();
        let columns = transposed(&pattern, 3, |neuron, input| (input, neuron));
        assert_eq!(columns, [vec![(0, 0), (2, 2)], vec![(2, 3)], vec![(0, 1)]]);
    }
}
