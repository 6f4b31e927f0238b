//! One way through a layer: from inputs to results, or from gradients by results to gradients by inputs.

use super::layout::Layout;
use crate::buffer::floats;
use crate::kernels::{Isa, Reads, are_shared};
use crate::planes::{block, counts};
use crate::shape::{MAX_RESULT, at_most};
use crate::tuning::{PACKED, PART, SHARED, SUMS};
use crate::{NodeError, Pattern, Shape, Window};
use rayon::prelude::*;
use std::ops::Range;

/// What a pass reads.
#[derive(Debug)]
pub(super) struct Field {
    /// Planes that there are.
    pub planes: usize,
    pub layout: Layout,
    /// Slots from a window to the one in the next row; those of a row follow each other.
    row: usize,
}

impl Field {
    /// Slots from the first window to another.
    pub fn window(&self, row: usize, column: usize) -> usize {
        row * self.row + column
    }

    /// The slot of a position that the windows of stride 1 of a backward pass read.
    pub fn position(&self, row: usize, column: usize) -> usize {
        self.layout.first() + self.window(row, column)
    }
}

/// A pass.
#[derive(Debug)]
pub(super) struct Pass {
    pub field: Field,
    result: Shape,
    /// The result's rows and columns are those of so many phases in turn.
    steps: [usize; 2],
    phases: Vec<Phase>,
    /// For each weight, in the order in which the kernels read them, its place among the layer's values.
    places: Places,
    /// Rows of each phase that are computed before they are put in their places.
    band: usize,
    /// Results of a band.
    sums: Layout,
}

/// Every so many rows and columns of the result: a convolution of stride 1 of what the pass reads.
#[derive(Debug)]
struct Phase {
    /// Rows and columns of it.
    size: [usize; 2],
    /// Slots of a block of the planes that it reads.
    block: usize,
    parts: Vec<Part>,
}

/// What a phase is made from.
struct Plan {
    size: [usize; 2],
    /// Rows and columns that a window reads.
    window: [usize; 2],
}

/// The weights of some planes of the result.
#[derive(Debug)]
pub(super) struct Part {
    pub reads: Reads,
    pub planes: Range<usize>,
    /// Which of the pass's weights are its.
    pub weights: Range<usize>,
    /// The first place that one of them has among the layer's values.
    first: usize,
}

/// Places, counted from the first one of their part: in 16 bits, if all fit.
#[derive(Debug)]
enum Places {
    /// The kernels read values where they are.
    Rows,
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Places {
    /// Of parts whose places are known.
    fn new<'a>(places: &'a [u32], parts: impl Iterator<Item = &'a Part> + Clone) -> Self {
        fn near<'a, T: Copy>(
            places: &'a [u32],
            parts: impl Iterator<Item = &'a Part>,
            cast: impl Fn(u32) -> T,
        ) -> Vec<T> {
            let near = parts.flat_map(|part| {
                places[part.weights.clone()].iter().map(move |place| place - part.first as u32)
            });
            near.map(cast).collect()
        }
        let reach = |part: &Part| {
            let last = places[part.weights.clone()].iter().max();
            last.map_or(0, |last| *last as usize - part.first)
        };
        match parts.clone().all(|part| reach(part) <= u16::MAX.into()) {
            true => Self::U16(near(places, parts, |place| place as u16)),
            false => Self::U32(near(places, parts, |place| place)),
        }
    }
}

/// A weight: the slot that it reads, and its place among the layer's values.
type Weight = (usize, u32);

/// Where the weights of planes of the result lie.
struct Rows {
    weights: Vec<Weight>,
    /// Where those of each plane end.
    ends: Vec<usize>,
}

impl Rows {
    /// For so many planes. `each` says the plane of every weight, and the weight: twice, the same ones.
    fn new(planes: usize, mut each: impl FnMut(&mut dyn FnMut(usize, Weight))) -> Self {
        let mut ends = vec![0; planes];
        each(&mut |plane, _| ends[plane] += 1);
        let mut all = 0;
        for end in &mut ends {
            (*end, all) = (all, all + *end);
        }
        let mut weights = vec![(0, 0); all];
        each(&mut |plane, weight| {
            weights[ends[plane]] = weight;
            ends[plane] += 1;
        });
        Self { weights, ends }
    }

    /// Those of each plane, by what they read.
    fn sorted(&mut self) -> Vec<&[Weight]> {
        let (mut rest, mut start) = (self.weights.as_mut_slice(), 0);
        let mut rows = Vec::with_capacity(self.ends.len());
        for &end in &self.ends {
            let (row, after) = rest.split_at_mut(end - start);
            row.sort_unstable();
            rows.push(&*row);
            (rest, start) = (after, end);
        }
        rows
    }
}

/// Bytes of a weight, and of a row of them, while passes are made: sorted rows, offsets and places, both ways.
const WEIGHT: usize = 96;
const ROW: usize = 64;

/// How the windows of a layer lie over its images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub window: Window,
    pub groups: usize,
    pub input: Shape,
    pub output: Shape,
}

impl Geometry {
    /// Bytes that passes of this pattern take while they are made; `u64::MAX` may be more.
    pub fn bytes(&self, pattern: &Pattern) -> u64 {
        let Self { window, input, output, .. } = self;
        let phases = window.stride[0].min(input.height) * window.stride[1].min(input.width);
        let sizes = [
            floats(&[pattern.len(), WEIGHT]),
            floats(&[phases, input.features, ROW]),
            floats(&[output.features, ROW]),
            floats(&[self.taps(), WEIGHT]),
            floats(&[input.positions(), 2 * WEIGHT]),
            floats(&[output.positions(), 2 * WEIGHT]),
        ];
        sizes.into_iter().fold(0, u64::saturating_add)
    }

    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Calls `each` for each weight with result, channel, tap and place among the values.
    fn weights(&self, pattern: &Pattern, mut each: impl FnMut(usize, usize, usize, u32)) {
        let taps = self.taps();
        let (channels, neurons) =
            (self.input.features / self.groups, (self.output.features / self.groups).max(1));
        for (row, &neuron) in pattern.active().iter().enumerate() {
            let neuron = neuron as usize;
            let first = neuron / neurons * channels;
            for (input, place) in pattern.row(row) {
                // A division takes longer than all else.
                let (channel, tap) = if taps == 1 { (input, 0) } else { (input / taps, input % taps) };
                each(neuron, first + channel, tap, place as u32);
            }
        }
    }

    /// From inputs to results. Images have zeros around them, and columns that are read by the same windows lie side by side.
    ///
    /// Also the slots that the first window reads in a plane.
    pub fn forward(
        &self,
        isa: Isa,
        pattern: &Pattern,
        images: usize,
    ) -> Result<(Pass, Vec<usize>), NodeError> {
        let Self { window, input, output, .. } = *self;
        let Window { kernel, stride, padding, dilation } = window;
        let size = [input.height, input.width];
        // As many rows and columns as windows read, or images have.
        let padded: [usize; 2] = std::array::from_fn(|axis| {
            let windows = [output.height, output.width][axis] - 1;
            let read = windows * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1;
            read.max(padding[axis] + size[axis])
        });
        let columns = padded[1].div_ceil(stride[1]);
        let line = stride[1].min(padded[1]) * columns;
        let slot =
            move |row: usize, column: usize| row * line + column % stride[1] * columns + column / stride[1];
        let positions: Vec<usize> = (0..size[0] * size[1])
            .map(|p| slot(p / size[1] + padding[0], p % size[1] + padding[1]))
            .collect();
        at_most(MAX_RESULT, &[input.features, padded[0], line + 1]).map_err(NodeError::Gathered)?;
        let layout = Layout::new(input.features, padded[0] * line, &positions);
        let taps: Vec<usize> = (0..self.taps())
            .map(|tap| slot(tap / kernel[1] * dilation[0], tap % kernel[1] * dilation[1]))
            .collect();
        let rows = Rows::new(output.features, |put| {
            self.weights(pattern, |neuron, channel, tap, place| {
                put(neuron, (channel * layout.slots + taps[tap], place));
            });
        });
        let field = Field { planes: input.features, layout, row: stride[0] * line };
        let phases = vec![Plan { size: [output.height, output.width], window: kernel }];
        Ok((Pass::new(isa, field, output, [1, 1], (phases, rows), images), taps))
    }

    /// From gradients by results to gradients by inputs: the rows and columns of the input that the same taps read are a
    /// convolution of stride 1 of the results, which have zeros around them.
    pub fn backward(&self, isa: Isa, pattern: &Pattern, images: usize) -> Result<Pass, NodeError> {
        let Self { window, input, output, .. } = *self;
        let Window { kernel, stride, padding, dilation } = window;
        let size = [input.height, input.width];
        let steps: [usize; 2] = std::array::from_fn(|axis| stride[axis].min(size[axis]));
        // The first result that a phase's first position reads through a tap, if it reads any.
        let first = move |axis: usize, phase: usize, tap: usize| {
            let at = (phase + padding[axis]) as isize - (tap * dilation[axis]) as isize;
            let stride = stride[axis] as isize;
            (at.rem_euclid(stride) == 0).then_some(at.div_euclid(stride))
        };
        let count = |axis: usize, phase: usize| (size[axis] - phase).div_ceil(stride[axis]);
        let all = |axis: usize| {
            (0..steps[axis]).flat_map(move |phase| {
                (0..kernel[axis]).filter_map(move |tap| Some((phase, first(axis, phase, tap)?)))
            })
        };
        let before: [usize; 2] =
            std::array::from_fn(|axis| all(axis).map(|(_, at)| (-at).max(0) as usize).max().unwrap_or(0));
        let padded: [usize; 2] = std::array::from_fn(|axis| {
            let read = all(axis).map(|(phase, at)| before[axis].wrapping_add_signed(at) + count(axis, phase));
            read.max().unwrap_or(0).max(before[axis] + [output.height, output.width][axis])
        });
        let line = padded[1];
        let positions: Vec<usize> = (0..output.positions())
            .map(|p| (p / output.width + before[0]) * line + p % output.width + before[1])
            .collect();
        at_most(MAX_RESULT, &[output.features, padded[0], line + 1]).map_err(NodeError::Gathered)?;
        let layout = Layout::new(output.features, padded[0] * line, &positions);
        // For each tap the phases that read it, and the slot in a plane.
        let reads = |tap: usize| {
            let tap = [tap / kernel[1], tap % kernel[1]];
            let of_axis = move |axis: usize| {
                (0..steps[axis]).filter_map(move |phase| Some((phase, first(axis, phase, tap[axis])?)))
            };
            of_axis(0).flat_map(move |(row_phase, row)| {
                of_axis(1).map(move |(column_phase, column)| {
                    let row = before[0].wrapping_add_signed(row);
                    let column = before[1].wrapping_add_signed(column);
                    (row_phase * steps[1] + column_phase, row * line + column)
                })
            })
        };
        let taps: Vec<Vec<(usize, usize)>> = (0..self.taps()).map(|tap| reads(tap).collect()).collect();
        // The planes of one phase after those of another.
        let rows = Rows::new(steps[0] * steps[1] * input.features, |put| {
            self.weights(pattern, |neuron, channel, tap, place| {
                for &(phase, slot) in &taps[tap] {
                    put(phase * input.features + channel, (neuron * layout.slots + slot, place));
                }
            });
        });
        let phases = (0..steps[0] * steps[1]).map(|phase| {
            let phase = [phase / steps[1], phase % steps[1]];
            Plan {
                size: std::array::from_fn(|axis| count(axis, phase[axis])),
                window: std::array::from_fn(|axis| kernel[axis].div_ceil(stride[axis])),
            }
        });
        let field = Field { planes: output.features, layout, row: line };
        let phases = phases.collect();
        Ok(Pass::new(isa, field, input, steps, (phases, rows), images))
    }

    /// How gradients by results lie that nobody reads beyond them.
    pub fn results(&self) -> Field {
        let Shape { features, height, width } = self.output;
        let positions: Vec<usize> = (0..height * width).collect();
        Field { planes: features, layout: Layout::new(features, height * width, &positions), row: width }
    }
}

/// Positions of a tile, so that all tiles of a row are about as wide.
pub(super) fn tile(most: usize, columns: usize) -> usize {
    columns.div_ceil(columns.div_ceil(most.max(1)).max(1))
}

impl Pass {
    /// Of phases, each with its rows and columns, and the rows and columns that a window reads, and the weights of the planes of
    /// all phases.
    fn new(
        isa: Isa,
        field: Field,
        result: Shape,
        steps: [usize; 2],
        (phases, mut weights): (Vec<Plan>, Rows),
        unit: usize,
    ) -> Self {
        let weights = weights.sorted();
        let mut places = Vec::new();
        let most = isa.lanes() * isa.accumulators() / unit;
        let rows = phases.iter().map(|phase| phase.size[0]).max().unwrap_or(1);
        let phase = |(Plan { size, window }, rows): (Plan, &[&[Weight]])| {
            let tile = tile(most, size[1]) * unit;
            let are_shared = are_shared(rows);
            let tile = if are_shared { tile.min(SHARED * isa.lanes()) } else { tile };
            let read = window[0] * (tile + (window[1] - 1) * unit);
            let block = block(counts(rows), field.planes, read) * field.layout.slots;
            let parts: Vec<_> =
                rows.par_chunks(PART).map(|rows| Reads::new(rows, block, are_shared)).collect();
            let part = |(index, (reads, of_part)): (usize, (Reads, Vec<u32>))| {
                let (plane, start) = (index * PART, places.len());
                let first = of_part.iter().min().map_or(0, |first| *first as usize);
                places.extend(of_part);
                let planes = plane..rows.len().min(plane + PART);
                Part { reads, planes, weights: start..places.len(), first }
            };
            Phase { size, block, parts: parts.into_iter().enumerate().map(part).collect() }
        };
        let rows_of_phases = (0..).map(|phase| &weights[phase * result.features..][..result.features]);
        let mut phases: Vec<Phase> = phases.into_iter().zip(rows_of_phases).map(phase).collect();
        let places = match read_rows(&mut phases, &places) {
            true => Places::Rows,
            false => Places::new(&places, phases.iter().flat_map(|phase| &phase.parts)),
        };
        let columns = result.width.div_ceil(steps[1]);
        let row = steps[0] * steps[1] * columns;
        let band = (SUMS / (PART.min(result.features).max(1) * row * unit)).clamp(1, rows);
        let positions: Vec<usize> = (0..(band * steps[0]).min(result.height))
            .flat_map(|row| (0..result.width).map(move |column| (row, column)))
            .map(|(row, column)| (row * steps[1] + column % steps[1]) * columns + column / steps[1])
            .collect();
        let sums = Layout::new(result.features, band * row, &positions);
        Self { field, result, steps, phases, places, band, sums }
    }

    /// The parts of the only phase of a forward pass.
    pub fn parts(&self) -> &[Part] {
        &self.phases[0].parts
    }

    /// Slots of a block of what a forward pass reads.
    pub fn block(&self) -> usize {
        self.phases[0].block
    }

    /// Whether all neurons of a forward pass are worked on with those that read the same.
    pub fn is_shared(&self) -> bool {
        self.parts().iter().all(|part| part.reads.are_shared())
    }

    /// Planes of the result, and slots of their sums.
    pub fn sums(&self) -> [usize; 2] {
        [self.result.features, self.sums.slots]
    }

    /// The layer's values as the kernels read them, with memory for them.
    pub fn pack<'a>(&self, values: &'a [f32], packed: &'a mut [f32]) -> &'a [f32] {
        fn pack<T: Copy + Into<u32> + Sync>(places: &[T], values: &[f32], packed: &mut [f32]) {
            packed.par_chunks_mut(PACKED).zip(places.par_chunks(PACKED)).for_each(|(packed, places)| {
                let places = places.iter().map(|place| (*place).into() as usize);
                packed.iter_mut().zip(places).for_each(|(packed, place)| *packed = values[place]);
            });
        }
        for Phase { parts, .. } in &self.phases {
            let weights =
                parts.first().map_or(0..0, |first| first.weights.start..parts[parts.len() - 1].weights.end);
            each_part(parts, &mut packed[weights], &|part, packed| {
                let values = &values[part.first..];
                match &self.places {
                    Places::Rows => {}
                    Places::U16(places) => pack(&places[part.weights.clone()], values, packed),
                    Places::U32(places) => pack(&places[part.weights.clone()], values, packed),
                }
            });
        }
        if matches!(self.places, Places::Rows) { values } else { packed }
    }

    /// Of numbers in the kernels' order those of a part's weights, put among the part's of the layer; of a forward pass, whose
    /// parts are those of neurons that follow each other.
    pub fn unpack(&self, part: &Part, numbers: &[f32], to: &mut [f32]) {
        let numbers = &numbers[part.weights.clone()];
        match &self.places {
            Places::Rows => part.reads.put_in_rows(numbers, to),
            Places::U16(places) => {
                let places = &places[part.weights.clone()];
                numbers.iter().zip(places).for_each(|(number, place)| to[usize::from(*place)] = *number);
            }
            Places::U32(places) => {
                let places = &places[part.weights.clone()];
                numbers.iter().zip(places).for_each(|(number, place)| to[*place as usize] = *number);
            }
        }
    }

    /// From laid out images to results `[images, planes, positions]`.
    pub fn run(
        &self,
        isa: Isa,
        (values, bias): (&[f32], Option<&[f32]>),
        (from, images, unit): (&[f32], usize, usize),
        sums: &mut [f32],
        to: &mut [f32],
    ) {
        let Shape { features: planes, height, width } = self.result;
        let (rows, columns) = (height.div_ceil(self.steps[0]), width.div_ceil(self.steps[1]));
        let registers = unit / isa.lanes();
        let stride = self.sums.slots * unit;
        for first_row in (0..rows).step_by(self.band) {
            let band = first_row..first_row + self.band;
            let parts = sums[..planes * stride].par_chunks_mut(PART * stride).enumerate();
            parts.for_each(|(part, sums)| {
                for (index, Phase { size, parts, .. }) in self.phases.iter().enumerate() {
                    let part = &parts[part];
                    let weights =
                        (&values[part.weights.clone()], bias.map(|bias| &bias[part.planes.clone()]));
                    let tile = tile(isa.accumulators() / registers, size[1]);
                    for row in band.start..band.end.min(size[0]) {
                        let line = (row - band.start) * self.phases.len() + index;
                        for first in (0..size[1]).step_by(tile) {
                            let vectors = tile.min(size[1] - first) * registers;
                            let from = &from[self.field.window(row, first) * unit..];
                            let to = &mut sums[(line * columns + first) * unit..];
                            part.reads.run(isa, vectors, weights, (from, unit), (to, stride));
                        }
                    }
                }
            });
            let result_row = first_row * self.steps[0];
            let positions = (self.band * self.steps[0]).min(height - result_row) * width;
            let to = (&mut to[result_row * width..], planes * height * width, height * width);
            self.sums.read(isa, (images, unit), (sums, planes, positions), to);
        }
    }
}

/// Lets the kernels of all parts read values where they are, if they could.
fn read_rows(phases: &mut [Phase], places: &[u32]) -> bool {
    let [Phase { parts, .. }] = phases else { return false };
    let starts = parts.iter().map(|part| match part.first == part.weights.start {
        true => part.reads.starts_in_rows(&places[part.weights.clone()]),
        false => None,
    });
    let Some(starts) = starts.collect::<Option<Vec<_>>>() else { return false };
    parts.iter_mut().zip(starts).for_each(|(part, starts)| part.reads.read_rows(starts));
    true
}

/// Runs on each part with its numbers, one for each weight, at the same time.
pub(super) fn each_part(parts: &[Part], numbers: &mut [f32], run: &(impl Fn(&Part, &mut [f32]) + Sync)) {
    match parts {
        [] => {}
        [part] => run(part, numbers),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            let (of_left, of_right) = numbers.split_at_mut(right[0].weights.start - left[0].weights.start);
            rayon::join(|| each_part(left, of_left, run), || each_part(right, of_right, run));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(window: Window, input: Shape, filters: usize) -> Geometry {
        let (output, _) = window.convolution(input, 1, filters).unwrap();
        Geometry { window, groups: 1, input, output }
    }

    const ONE: Window = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };

    #[test]
    fn what_passes_take_while_they_are_made_is_counted() {
        let window = Window { kernel: [2, 3], stride: [2, 5], ..ONE };
        let geometry = geometry(window, Shape { features: 3, height: 4, width: 3 }, 5);
        let pattern = Pattern::from_rows(5, 18, [vec![0, 1, 2], vec![], vec![4], vec![], vec![]]).unwrap();
        // Rows of five filters, and of three channels for each of two by three phases; four weights, six taps, twelve
        // positions of an image and two of a result, the other way, too.
        let expected = 64 * (5 + 3 * 2 * 3) + 96 * (4 + 6 + 2 * 12 + 2 * 2);
        assert_eq!(geometry.bytes(&pattern), expected);
    }

    /// 2^28 numbers, and one more column.
    #[test]
    fn planes_that_are_too_large_are_refused() {
        let image = |features| Shape { features, height: 16, width: 16 };
        let pattern = |neurons: usize, inputs| {
            let rows = (0..neurons).map(|neuron| if neuron == 0 { vec![0] } else { vec![] });
            Pattern::from_rows(neurons, inputs, rows).unwrap()
        };
        let many = 1 << 20;
        let forward = geometry(ONE, image(many), 1).forward(Isa::Portable, &pattern(1, many), 16);
        assert!(matches!(forward, Err(NodeError::Gathered(_))));
        let backward = geometry(ONE, image(1), many).backward(Isa::Portable, &pattern(many, 1), 16);
        assert!(matches!(backward, Err(NodeError::Gathered(_))));
    }
}
