//! The layout in which the kernels read weights.

use condensed::Pattern;

/// Weights of a group.
pub const GROUP: usize = 4;

/// Neurons of a bunch at most.
pub const BUNCH: usize = 4;

/// Words of a group's indices.
pub fn index_words(packed: bool) -> usize {
    if packed { GROUP / 2 } else { GROUP }
}

/// Where a place's value is that no weight has: it is 0.
pub const NOWHERE: u32 = u32::MAX;

/// Weights in groups of four, as [`kernels`](super::kernels) says.
#[derive(Debug, PartialEq)]
pub struct Groups {
    /// Which of the pattern's weights each place has, or [`NOWHERE`]. `[groups · bunch · 4]`
    pub order: Vec<u32>,
    /// The input that each place of a neuron reads, two to a word if `packed`. `[groups · 4]`
    pub indices: Vec<u32>,
    /// `[bunches · chunks + 1]`, then, of bunches of more than one neuron, the neuron of each seat or [`NOWHERE`].
    pub starts: Vec<u32>,
    pub layout: Layout,
}

/// What launches must know of groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    pub neurons: usize,
    /// Neurons that a bunch has seats for: 1, 2 or 4.
    pub bunch: usize,
    /// Of all bunches; some may be empty, if `bunch` is not 1.
    pub seats: usize,
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

/// Neurons of a bunch at most, where a pattern's neurons share inputs.
pub fn most_of(pattern: &Pattern) -> usize {
    if pattern.group() > 1 { BUNCH } else { 1 }
}

impl Groups {
    /// Weights of a linear layer, whose groups stay within chunks of `chunk` inputs.
    pub fn linear(pattern: &Pattern, chunk: usize) -> Self {
        let (inputs, most) = (pattern.inputs(), most_of(pattern));
        Self::new(pattern.rows(which), inputs, chunk, inputs, most, |_, input| input as u32)
    }

    /// Weights of a convolution on padded images of `image` values, at the places that `offset` gives to
    /// `(neuron, input)`.
    pub fn convolution(pattern: &Pattern, image: usize, offset: impl Fn(usize, usize) -> u32) -> Self {
        let (inputs, most) = (pattern.inputs(), most_of(pattern));
        Self::new(pattern.rows(which), inputs, inputs.max(1), image, most, offset)
    }

    /// Weights of these rows of `inputs` inputs each, in bunches of `most` neurons at most. Indices are below `span`.
    pub fn new(
        rows: impl IntoIterator<Item = Row>,
        inputs: usize,
        chunk: usize,
        span: usize,
        most: usize,
        offset: impl Fn(usize, usize) -> u32,
    ) -> Self {
        let rows: Vec<Row> = rows.into_iter().collect();
        let chunks = inputs.div_ceil(chunk).max(1);
        let packed = span <= 1 << 16;
        let (bunch, bunches) = bunches(&rows, most, &offset);
        let (mut order, mut indices, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        for neurons in &bunches {
            let weights = &rows[neurons[0]];
            for c in 0..chunks {
                // Inputs ascend.
                let from = weights.partition_point(|(input, _)| *input < c * chunk);
                let to = weights.partition_point(|(input, _)| *input < (c + 1) * chunk);
                for first in (from..to).step_by(GROUP) {
                    // A group is filled up with zeros that read the last of its own inputs.
                    let place = |i: usize| (first + i).min(to - 1);
                    indices.extend((0..GROUP).map(|i| offset(neurons[0], weights[place(i)].0)));
                    for seat in 0..bunch {
                        let weight = |i: usize| match neurons.get(seat) {
                            Some(&neuron) if first + i < to => rows[neuron][first + i].1,
                            _ => NOWHERE,
                        };
                        order.extend((0..GROUP).map(weight));
                    }
                }
                starts.push((indices.len() / GROUP) as u32);
            }
        }
        if bunch > 1 {
            starts.extend(bunches.iter().flat_map(|neurons| {
                let seat = |seat| neurons.get(seat).map_or(NOWHERE, |neuron: &usize| *neuron as u32);
                (0..bunch).map(seat).collect::<Vec<u32>>()
            }));
        }
        // No buffer is empty, also where all neurons are ablated.
        order.resize(order.len().max(bunch * GROUP), NOWHERE);
        indices.resize(indices.len().max(GROUP), 0);
        if packed {
            indices = indices.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect();
        }
        let layout = Layout { neurons: rows.len(), bunch, seats: bunch * bunches.len(), packed, chunks };
        Self { order, indices, starts, layout }
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

    /// Groups of all bunches.
    pub fn count(&self) -> usize {
        self.order.len() / GROUP / self.layout.bunch
    }

    /// Groups of the bunch that has most.
    pub fn most(&self) -> usize {
        let Layout { seats, bunch, chunks, .. } = self.layout;
        let starts: Vec<u32> =
            self.starts[..=seats / bunch * chunks].iter().step_by(chunks).copied().collect();
        starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

/// All rows in bunches, and how many rows each has seats for: `most`, or fewer, so that a third of the seats at most are empty.
///
/// Rows of a bunch follow each other and read the same, but for empty rows between them, which come last.
fn bunches(rows: &[Row], most: usize, offset: &impl Fn(usize, usize) -> u32) -> (usize, Vec<Vec<usize>>) {
    let alone = || (1, (0..rows.len()).map(|row| vec![row]).collect());
    if most == 1 {
        return alone();
    }
    let read_the_same = |a: &usize, b: &usize| {
        let reads = |row: usize| rows[row].iter().map(move |(input, _)| (*input, offset(row, *input)));
        reads(*a).eq(reads(*b))
    };
    let (empty, filled): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|row| rows[*row].is_empty());
    let runs: Vec<&[usize]> = filled.chunk_by(read_the_same).collect();
    let seats = |bunch| runs.iter().map(|run| run.len().next_multiple_of(bunch)).sum::<usize>();
    let sizes = std::iter::successors(Some(most), |bunch| Some(bunch / 2)).take_while(|bunch| *bunch > 1);
    match sizes.into_iter().find(|bunch| 2 * seats(*bunch) <= 3 * filled.len()) {
        Some(bunch) => {
            let runs = runs.into_iter().chain([&empty[..]]);
            (bunch, runs.flat_map(|run| run.chunks(bunch)).map(<[usize]>::to_vec).collect())
        }
        None => alone(),
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
            layout: Layout { neurons: 3, bunch: 1, seats: 3, packed: true, chunks: 2 },
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

    /// Groups of four, with an ablated neuron within the first and a last one of three.
    #[test]
    fn neurons_that_read_the_same_are_bunched() {
        let rows = |a: &[u32], b: &[u32]| {
            let (a, b) = (a.to_vec(), b.to_vec());
            [a.clone(), vec![], a.clone(), a.clone(), a, b.clone(), b.clone(), b, vec![]]
        };
        let pattern = Pattern::from_rows(9, 8, rows(&[0, 1, 3, 4, 5], &[0, 1, 2, 6, 7])).unwrap();
        assert_eq!(pattern.group(), 4);
        let groups = Groups::linear(&pattern, 5);
        let n = NOWHERE;
        assert_eq!(groups.layout, Layout { neurons: 9, bunch: 4, seats: 12, packed: true, chunks: 2 });
        #[rustfmt::skip]
        let order = [
            0, 1, 2, 3,    5, 6, 7, 8,    10, 11, 12, 13, 15, 16, 17, 18,
            4, n, n, n,    9, n, n, n,    14, n, n, n,    19, n, n, n,
            20, 21, 22, n, 25, 26, 27, n, 30, 31, 32, n,  n, n, n, n,
            23, 24, n, n,  28, 29, n, n,  33, 34, n, n,   n, n, n, n,
        ];
        assert_eq!(groups.order, order);
        let indices =
            [0x1_0000, 0x4_0003, 0x5_0005, 0x5_0005, 0x1_0000, 0x2_0002, 0x7_0006, 0x7_0007].as_slice();
        assert_eq!(groups.indices, indices);
        // Bunches of neurons with weights come first.
        assert_eq!(groups.starts, [0, 1, 2, 3, 4, 4, 4, 0, 2, 3, 4, 5, 6, 7, n, 1, 8, n, n]);
        assert_eq!((groups.count(), groups.most()), (4, 2));
        assert_eq!(groups.places(36)[19..26], [28, 32, 33, 34, 48, 49, 36]);
        assert_eq!(groups.places(36)[34..], [57, n]);

        // With fan-ins of several sizes no pattern says what is shared.
        let pattern = Pattern::from_rows(9, 8, rows(&[0, 1], &[2])).unwrap();
        assert_eq!(Groups::linear(&pattern, 5).layout.bunch, 1);
    }

    #[test]
    fn a_bunch_has_few_empty_seats() {
        let bunch = |group: usize, neurons: usize| {
            let row = |neuron: usize| vec![(neuron / group) as u32];
            let pattern = Pattern::from_rows(neurons, neurons, (0..neurons).map(row)).unwrap();
            let Layout { bunch, seats, .. } = Groups::linear(&pattern, 32).layout;
            (bunch, seats)
        };
        assert_eq!([1, 2, 3, 4, 5, 6].map(|group| bunch(group, 31).0), [1, 2, 4, 4, 2, 4]);
        assert_eq!([8, 16].map(|group| bunch(group, 31)), [(4, 32); 2]);
    }

    /// As in convolutions of several groups of channels.
    #[test]
    fn neurons_that_read_other_places_are_not_bunched() {
        let pattern = Pattern::from_mask(&[true; 24], 6, 4).unwrap();
        assert_eq!(pattern.group(), 6);
        let bunch = |neurons: usize| {
            let groups = Groups::convolution(&pattern, 100, |n, input| (n / neurons * 4 + input) as u32);
            groups.layout.bunch
        };
        assert_eq!([1, 2, 3, 6].map(bunch), [1, 2, 4, 4]);
    }

    #[test]
    fn an_input_has_the_weights_that_read_it() {
        let pattern = Pattern::from_rows(3, 3, [vec![0, 2], vec![], vec![0, 1]]).unwrap();
        let columns = transposed(&pattern, 3, |neuron, input| (input, neuron));
        assert_eq!(columns, [vec![(0, 0), (2, 2)], vec![(2, 3)], vec![(0, 1)]]);
    }
}
