//! The layout in which the kernels read weights.

use condensed::CondensedWeight;

/// Weights of a group.
pub const GROUP: usize = 4;

/// Words of a group's indices.
pub fn index_words(packed: bool) -> usize {
    if packed { GROUP / 2 } else { GROUP }
}

/// Weights in groups of four, as [`kernels`](super::kernels) says.
#[derive(Debug, PartialEq)]
pub struct Groups {
    /// `[groups · 4]`
    pub values: Vec<f32>,
    /// The input that each value reads, two to a word if `packed`.
    pub indices: Vec<u32>,
    /// `[N · chunks + 1]`
    pub starts: Vec<u32>,
    /// Whether indices have 16 bits.
    pub packed: bool,
    /// Chunks of inputs.
    pub chunks: usize,
}

impl Groups {
    /// Weights of a linear layer, whose groups stay within chunks of `chunk` inputs.
    pub fn linear(weight: &CondensedWeight, chunk: usize) -> Self {
        Self::new(weight, chunk, weight.inputs(), |_, input| input as u32)
    }

    /// Weights of a convolution on padded images of `image` values, at the places that `offset` gives to
    /// `(neuron, input)`.
    pub fn convolution(weight: &CondensedWeight, image: usize, offset: impl Fn(usize, usize) -> u32) -> Self {
        Self::new(weight, weight.inputs().max(1), image, offset)
    }

    /// Indices are below `span`.
    pub fn new(
        weight: &CondensedWeight,
        chunk: usize,
        span: usize,
        offset: impl Fn(usize, usize) -> u32,
    ) -> Self {
        let chunks = weight.inputs().div_ceil(chunk).max(1);
        let packed = span <= 1 << 16;
        let (mut values, mut indices, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        let mut active = weight.active().iter().enumerate().peekable();
        for neuron in 0..weight.neurons() {
            let row = active.next_if(|(_, active)| **active as usize == neuron).map(|(row, _)| row);
            let weights: Vec<(usize, f32)> = row.map_or(Vec::new(), |row| weight.row(row).collect());
            for c in 0..chunks {
                // Inputs ascend.
                let from = weights.partition_point(|(input, _)| *input < c * chunk);
                let to = weights.partition_point(|(input, _)| *input < (c + 1) * chunk);
                for group in weights[from..to].chunks(GROUP) {
                    // A group is filled up with zeros that read the last of its own inputs.
                    for i in 0..GROUP {
                        let (input, value) = group[i.min(group.len() - 1)];
                        indices.push(offset(neuron, input));
                        values.push(if i < group.len() { value } else { 0.0 });
                    }
                }
                starts.push((values.len() / GROUP) as u32);
            }
        }
        // No buffer is empty, also where all neurons are ablated.
        values.resize(values.len().max(GROUP), 0.0);
        indices.resize(indices.len().max(GROUP), 0);
        if packed {
            indices = indices.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect();
        }
        Self { values, indices, starts, packed, chunks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_within_neurons_and_chunks() {
        // Neuron 0 reads 0, 1, 2, 3, 4 and 6, neuron 1 nothing, neuron 2 reads 7.
        let dense: Vec<f32> = (1..=24).map(|i| i as f32).collect();
        let mask = [[true, true, true, true, true, false, true, false], [false; 8], {
            let mut row = [false; 8];
            row[7] = true;
            row
        }];
        let weight = CondensedWeight::from_masked(&dense, mask.as_flattened(), 3, 8).unwrap();
        let groups = Groups::linear(&weight, 5);
        let expected = Groups {
            values: vec![1., 2., 3., 4., 5., 0., 0., 0., 7., 0., 0., 0., 24., 0., 0., 0.],
            indices: vec![0x1_0000, 0x3_0002, 0x4_0004, 0x4_0004, 0x6_0006, 0x6_0006, 0x7_0007, 0x7_0007],
            starts: vec![0, 2, 3, 3, 3, 3, 4],
            packed: true,
            chunks: 2,
        };
        assert_eq!(groups, expected);
        let words = Groups::convolution(&weight, 1 << 20, |neuron, input| (neuron << 17 | input) as u32);
        assert_eq!(words.indices[8..], [2 << 17 | 7; 4]);
        assert_eq!(words.starts, [0, 2, 2, 3]);
    }

    #[test]
    fn no_buffer_is_empty() {
        let weight = CondensedWeight::from_masked(&[1.0; 6], &[false; 6], 2, 3).unwrap();
        let groups = Groups::linear(&weight, 32);
        assert_eq!((groups.values, groups.indices, groups.starts), (vec![0.0; 4], vec![0, 0], vec![0, 0, 0]));
    }
}
