//! Layers on planes: convolutions, and linear layers on tokens or batches.

use crate::buffer::Buffer;
use crate::kernels::{Isa, Tiles};
use crate::{Shape, Window};
use rayon::prelude::*;

/// Floats a plane of `positions` takes: whole cache lines, but for vectors, whose planes are one number.
pub(crate) fn plane_stride(positions: usize) -> usize {
    if positions == 1 { 1 } else { positions.next_multiple_of(16) }
}

/// Input that fits the first-level cache beside weights and sums, in floats.
const CACHED: usize = 8192;

/// Weights that a neuron should have in a block, lest the visit cost more than the work.
const VISIT: usize = 8;

/// A sparse layer between planes: `out[n][p] = bias[n] + Σ w · x[channel][p + tap]`.
#[derive(Clone, Debug)]
pub(crate) struct PlaneLayer {
    isa: Isa,
    /// Neurons in equal parts, one for each thread.
    parts: Vec<Tiles>,
    part_neurons: usize,
    neurons: usize,
    gather: Option<Gather>,
    /// Positions of an output plane as the kernel computes them, columns beyond the image included.
    wide_positions: usize,
    /// Registers of each tile but the last.
    vectors: usize,
    height: usize,
    width: usize,
    /// From one output row to the next in wide positions.
    row_stride: usize,
}

/// How the input of a convolution with padding or stride is laid out first: zeros around each plane, and
/// for a stride `s` the positions of each of the `s²` phases together, so that every tap of every window
/// reads a contiguous run.
#[derive(Clone, Debug)]
struct Gather {
    input: Shape,
    stride: [usize; 2],
    padding: [usize; 2],
    /// Phases that some tap reads, as (vertical, horizontal).
    phases: Vec<[usize; 2]>,
    phase_height: usize,
    phase_width: usize,
}

impl Gather {
    fn phase_size(&self) -> usize {
        self.phase_height * self.phase_width
    }

    fn channel_stride(&self) -> usize {
        self.phases.len() * self.phase_size()
    }

    /// Copies one image.
    fn run(&self, x: &[f32], packed: &mut [f32]) {
        let Shape { height, width, .. } = self.input;
        let stride = plane_stride(height * width);
        packed
            .par_chunks_exact_mut(self.channel_stride())
            .zip(x.par_chunks_exact(stride))
            .with_min_len(16)
            .for_each(|(packed, plane)| {
                for (&[py, px], phase) in self.phases.iter().zip(packed.chunks_exact_mut(self.phase_size())) {
                    for (qy, row) in phase.chunks_exact_mut(self.phase_width).enumerate() {
                        let y =
                            (qy * self.stride[0] + py).checked_sub(self.padding[0]).filter(|&y| y < height);
                        let Some(y) = y else {
                            row.fill(0.0);
                            continue;
                        };
                        let line = &plane[y * width..(y + 1) * width];
                        // The columns `x = q · stride + px − padding` that lie in the image.
                        let first =
                            self.padding[1].saturating_sub(px).div_ceil(self.stride[1]).min(row.len());
                        let start =
                            first * self.stride[1] + px - self.padding[1].min(first * self.stride[1] + px);
                        let count =
                            width.saturating_sub(start).div_ceil(self.stride[1]).min(row.len() - first);
                        row[..first].fill(0.0);
                        row[first + count..].fill(0.0);
                        let row = &mut row[first..first + count];
                        if self.stride[1] == 1 {
                            row.copy_from_slice(&line[start..start + count]);
                        } else {
                            for (to, from) in
                                row.iter_mut().zip(line[start.min(width)..].iter().step_by(self.stride[1]))
                            {
                                *to = *from;
                            }
                        }
                    }
                }
            });
    }
}

/// Weights of a layer, one row for each neuron: (input, value) with inputs ascending.
pub(crate) type Rows = Vec<Vec<(usize, f32)>>;

impl PlaneLayer {
    /// A linear layer at each of `positions`, planes `stride` floats apart.
    pub fn linear(
        isa: Isa,
        rows: &Rows,
        bias: &[f32],
        (positions, stride): (usize, usize),
        parts: usize,
    ) -> Self {
        let offsets = rows.iter().map(|row| row.iter().map(|&(i, v)| (i * stride, v)).collect()).collect();
        Self::new(isa, &offsets, bias, parts, None, [1, positions, positions], stride, 0)
    }

    /// A convolution of images of shape `input`. Rows are `[in channels / groups · kh · kw]`.
    pub fn conv(
        isa: Isa,
        rows: &Rows,
        bias: &[f32],
        window: &Window,
        groups: usize,
        input: Shape,
        parts: usize,
    ) -> Self {
        let Window { kernel, stride, padding, dilation } = *window;
        let extent = |axis: usize, size: usize| {
            (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1
        };
        let (height, width) = (extent(0, input.height), extent(1, input.width));
        let plain = kernel == [1, 1] && stride == [1, 1] && padding == [0, 0];
        let tap = |axis: usize, k: usize| {
            let at = k * dilation[axis];
            (at % stride[axis], at / stride[axis])
        };
        let gather = (!plain).then(|| {
            let mut phases: Vec<[usize; 2]> = (0..kernel[0] * kernel[1])
                .map(|t| [tap(0, t / kernel[1]).0, tap(1, t % kernel[1]).0])
                .collect();
            phases.sort();
            phases.dedup();
            let size = |axis: usize, out: usize| {
                out + tap(axis, kernel[axis] - 1)
                    .1
                    .max((0..kernel[axis]).map(|k| tap(axis, k).1).max().unwrap_or(0))
            };
            Gather {
                input,
                stride,
                padding,
                phases,
                phase_height: size(0, height),
                phase_width: size(1, width),
            }
        });
        let (channel_stride, row_stride, reach) = match &gather {
            None => (plane_stride(input.height * input.width), width, 0),
            Some(g) => (g.channel_stride(), g.phase_width, g.channel_stride() - g.phase_size() / 2),
        };
        let channels = input.features / groups;
        let neurons_per_group = (rows.len() / groups).max(1);
        let offsets = rows
            .iter()
            .enumerate()
            .map(|(n, row)| {
                let mut row: Vec<(usize, f32)> = row
                    .iter()
                    .map(|&(i, value)| {
                        let (channel, t) = (i / (kernel[0] * kernel[1]), i % (kernel[0] * kernel[1]));
                        let channel = n / neurons_per_group * channels + channel;
                        let inside = gather.as_ref().map_or(0, |g| {
                            let ((py, qy), (px, qx)) = (tap(0, t / kernel[1]), tap(1, t % kernel[1]));
                            let phase = g.phases.iter().position(|&p| p == [py, px]).expect("made of taps");
                            phase * g.phase_size() + qy * g.phase_width + qx
                        });
                        (channel * channel_stride + inside, value)
                    })
                    .collect();
                row.sort_by_key(|w| w.0);
                row
            })
            .collect();
        Self::new(isa, &offsets, bias, parts, gather, [height, width, row_stride], channel_stride, reach)
    }

    #[expect(clippy::too_many_arguments, reason = "the two constructors above are the interface")]
    fn new(
        isa: Isa,
        offsets: &Rows,
        bias: &[f32],
        parts: usize,
        gather: Option<Gather>,
        [height, width, row_stride]: [usize; 3],
        channel_stride: usize,
        reach: usize,
    ) -> Self {
        let wide_positions = ((height - 1) * row_stride + width).max(1);
        let registers = wide_positions.div_ceil(isa.lanes());
        let most = isa.accumulators().min(112 / isa.lanes());
        let vectors = registers.div_ceil(registers.div_ceil(most));
        // Channels whose part of a tile fits the cache, or more where the layer is very sparse.
        let weights: usize = offsets.iter().map(Vec::len).sum();
        let channels =
            offsets.iter().filter_map(|row| row.last()).map(|w| w.0 / channel_stride + 1).max().unwrap_or(1);
        let visits = (VISIT * channels * offsets.len()).div_ceil(weights.max(1));
        let footprint = (vectors * isa.lanes() + reach).min(channel_stride.max(1));
        let block = (CACHED / footprint).max(visits).max(1) * channel_stride;
        let part_neurons = offsets.len().div_ceil(parts.max(1)).max(1);
        Self {
            isa,
            parts: offsets
                .chunks(part_neurons)
                .zip(bias.chunks(part_neurons))
                .map(|(rows, bias)| Tiles::new(rows, bias, block))
                .collect(),
            part_neurons,
            neurons: offsets.len(),
            gather,
            wide_positions,
            vectors,
            height,
            width,
            row_stride,
        }
    }

    /// Floats between output planes.
    pub fn output_stride(&self) -> usize {
        plane_stride(self.height * self.width)
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Tiles::bytes).sum()
    }

    /// Floats that the kernel may read beyond the last plane.
    pub const SLACK: usize = 128;

    /// One image: `x` has the input planes and [`SLACK`](Self::SLACK) more floats, `out` the output planes. Adds
    /// `residual` (planes like `out`), then cuts off below zero if `relu`.
    pub fn run(
        &self,
        x: &[f32],
        out: &mut [f32],
        residual: Option<&[f32]>,
        relu: bool,
        scratch: &mut Scratch,
    ) {
        let Scratch { packed, tiles } = scratch;
        let x = match &self.gather {
            None => x,
            Some(gather) => {
                let size = gather.input.features * gather.channel_stride();
                packed.grow(size + Self::SLACK);
                gather.run(x, &mut packed[..size]);
                packed
            }
        };
        let stride = self.output_stride();
        let chunk = self.part_neurons * stride;
        tiles.resize_with(tiles.len().max(self.parts.len()), Buffer::default);
        let finish = |index: usize, out: &mut [f32], tile: &mut Buffer| {
            let part = &self.parts[index];
            let residual = residual.map(|r| &r[index * chunk..][..out.len()]);
            self.run_part(part, x, out, residual, relu, tile);
        };
        let out = &mut out[..self.neurons * stride];
        if self.parts.len() == 1 {
            finish(0, out, &mut tiles[0]);
        } else {
            out.par_chunks_mut(chunk)
                .zip(tiles)
                .enumerate()
                .for_each(|(i, (out, tile))| finish(i, out, tile));
        }
    }

    fn run_part(
        &self,
        part: &Tiles,
        x: &[f32],
        out: &mut [f32],
        residual: Option<&[f32]>,
        relu: bool,
        tile: &mut Buffer,
    ) {
        let lanes = self.isa.lanes();
        let registers = self.wide_positions.div_ceil(lanes);
        let stride = self.output_stride();
        tile.grow(part.neurons() * self.vectors * lanes);
        for first in (0..registers).step_by(self.vectors) {
            let vectors = self.vectors.min(registers - first);
            let (start, width) = (first * lanes, vectors * lanes);
            part.run(self.isa, vectors, &x[start..], tile);
            let end = (start + width).min(self.wide_positions);
            for neuron in 0..part.neurons() {
                let sums = &tile[neuron * width..][..width];
                // The tile holds whole and partial rows of the image.
                let mut at = start;
                while at < end {
                    let (y, column) = (at / self.row_stride, at % self.row_stride);
                    let next = ((y + 1) * self.row_stride).min(end);
                    if column < self.width {
                        let count = (self.width - column).min(next - at);
                        let place = neuron * stride + y * self.width + column;
                        let sums = &sums[at - start..][..count];
                        let out = &mut out[place..][..count];
                        match (residual, relu) {
                            (None, false) => out.copy_from_slice(sums),
                            (None, true) => out.iter_mut().zip(sums).for_each(|(o, s)| *o = s.max(0.0)),
                            (Some(r), false) => {
                                out.iter_mut().zip(sums).zip(&r[place..]).for_each(|((o, s), r)| *o = s + r);
                            }
                            (Some(r), true) => {
                                out.iter_mut()
                                    .zip(sums)
                                    .zip(&r[place..])
                                    .for_each(|((o, s), r)| *o = (s + r).max(0.0));
                            }
                        }
                    }
                    at = next;
                }
            }
        }
    }
}

/// Memory that layers use while they run, kept between calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    packed: Buffer,
    tiles: Vec<Buffer>,
}
