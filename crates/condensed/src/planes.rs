//! Layers on planes: convolutions, and linear layers on tokens.

use crate::buffer::{Room, Scratch, floats};
use crate::kernels::{Isa, SharedPlanes, Tiles, are_shared, prefetch};
use crate::math::{self, Strides};
use crate::tuning::{self, GEMM, SHARED, TILE_FLOATS, VISIT};
use crate::weight::Rows;
use crate::{Shape, Window};
use rayon::prelude::*;

/// Floats a plane of `positions` takes: whole cache lines, but for vectors, whose planes are one number.
pub(crate) fn plane_stride(positions: usize) -> usize {
    if positions == 1 { 1 } else { positions.next_multiple_of(16) }
}

/// A layer between planes: `out[n][p] = bias[n] + Σ w · x[channel][p + tap]`.
#[derive(Clone)]
pub(crate) struct PlaneLayer {
    isa: Isa,
    weights: Weights,
    neurons: usize,
    gather: Option<Gather>,
    /// Floats from one output plane to the next.
    output_stride: usize,
    /// Rows and columns of an output plane.
    height: usize,
    width: usize,
    /// From one row to the next as the kernel computes them, columns beyond the image included.
    row_stride: usize,
}

impl std::fmt::Debug for PlaneLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PlaneLayer {{ neurons: {}, bytes: {} }}", self.neurons, self.bytes())
    }
}

#[derive(Clone)]
enum Weights {
    Sparse {
        /// Neurons in equal parts, one for each thread.
        parts: Vec<Tiles>,
        part_neurons: usize,
        /// Floats for one unit of offsets.
        unit: usize,
        /// Registers of each tile but the last.
        vectors: usize,
    },
    Dense {
        bias: Vec<f32>,
        /// For each tap its first position in a channel, and its weights `[neurons, channels]`.
        taps: Vec<(usize, Vec<f32>)>,
        channels: usize,
        channel_stride: usize,
    },
}

/// How the input of a convolution with padding, stride or several taps is laid out first.
///
/// A *sheet* is a copy of a channel with zeros around it, of every `stride`-th row and column only, shifted so
/// that the first column some tap reads is column 0. Every tap of every window then reads a contiguous run in
/// one of the sheets; rows are whole registers, so that no load crosses a cache line.
#[derive(Clone, Debug)]
struct Gather {
    input: Shape,
    /// Floats from one input plane to the next.
    input_stride: usize,
    window: Window,
    /// First row, below the stride, and first column in the padded image.
    sheets: Vec<[usize; 2]>,
    height: usize,
    width: usize,
    row_stride: usize,
}

impl Gather {
    fn sheet_size(&self) -> usize {
        self.height * self.row_stride
    }

    fn channel_stride(&self) -> usize {
        self.sheets.len() * self.sheet_size()
    }

    /// Copies one image.
    fn run(&self, x: &[f32], packed: &mut [f32]) {
        let channels = packed.par_chunks_exact_mut(self.channel_stride());
        let planes = x.par_chunks(self.input_stride);
        channels.zip(planes).with_min_len(tuning::SHEETS_PER_TASK).for_each(|(sheets, plane)| {
            // Nearly all of it is written again, but one long fill costs less than one for each border.
            sheets.fill(0.0);
            for (&[top, left], to) in self.sheets.iter().zip(sheets.chunks_exact_mut(self.sheet_size())) {
                // The rows `row · stride + top − padding` that lie in the image, and likewise the columns.
                let rows = self.window.inside(0, top, self.input.height, self.height);
                let columns = self.window.inside(1, left, self.input.width, self.width);
                if rows.2 == 0 || columns.2 == 0 {
                    continue;
                }
                let from = &plane[rows.1 * self.input.width + columns.1..];
                let to = &mut to[rows.0 * self.row_stride + columns.0..];
                let from_stride = self.window.stride[0] * self.input.width;
                copy_rows(from, from_stride, self.window.stride[1], to, self.row_stride, rows.2, columns.2);
            }
        });
    }
}

math::vectorised! {
    /// Copies rows of every `step`-th number; at least one column.
    fn copy_rows(
        from: &[f32],
        from_stride: usize,
        step: usize,
        to: &mut [f32],
        to_stride: usize,
        rows: usize,
        columns: usize
    ) {
        for row in 0..rows {
            let to = &mut to[row * to_stride..][..columns];
            let from = &from[row * from_stride..];
            if step == 1 {
                copy(&from[..columns], to);
            } else {
                let from = &from[..(columns - 1) * step + 1];
                to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, x)| *to = *x);
            }
        }
    }
}

/// A short copy: whole registers, the last of which may overlap the one before.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    fn parts<const N: usize>(from: &[f32], to: &mut [f32]) {
        for (from, to) in from.as_chunks::<N>().0.iter().zip(to.as_chunks_mut::<N>().0) {
            *to = *from;
        }
        if let (Some(from), Some(to)) = (from.last_chunk::<N>(), to.last_chunk_mut::<N>()) {
            *to = *from;
        }
    }
    match to.len() {
        16.. => parts::<16>(from, to),
        8.. => parts::<8>(from, to),
        4.. => parts::<4>(from, to),
        _ => parts::<1>(from, to),
    }
}

/// How a convolution reads its input.
struct Plan {
    gather: Option<Gather>,
    /// Where each tap starts in a channel.
    taps: Vec<usize>,
    channel_stride: usize,
    /// Floats of a channel that a tile reads beyond its own positions, and sheets it reads them from.
    halo: usize,
    sheets: usize,
    height: usize,
    width: usize,
    row_stride: usize,
}

impl Plan {
    fn new(isa: Isa, window: &Window, input: Shape) -> Self {
        let Window { kernel, stride, dilation, .. } = *window;
        let [height, width] = window.output_size(input).expect("checked before");
        if window.reads_in_place() {
            let channel_stride = plane_stride(input.positions());
            let (taps, row_stride) = (vec![0], width);
            return Self {
                gather: None,
                taps,
                channel_stride,
                halo: 0,
                sheets: 1,
                height,
                width,
                row_stride,
            };
        }
        // For each tap its sheet, and the row in it that the first window reads.
        let places: Vec<([usize; 2], usize)> = (0..kernel[0] * kernel[1])
            .map(|tap| {
                let (row, column) = (tap / kernel[1] * dilation[0], tap % kernel[1] * dilation[1]);
                ([row % stride[0], column], row / stride[0])
            })
            .collect();
        let mut sheets: Vec<[usize; 2]> = places.iter().map(|place| place.0).collect();
        sheets.sort_unstable();
        sheets.dedup();
        let last = places.iter().map(|place| place.1).max().unwrap_or(0);
        let row_stride = width.next_multiple_of(if width <= 8 { 8 } else { isa.lanes() });
        let input_stride = plane_stride(input.positions());
        let (window, height_read) = (*window, height + last);
        let gather = Gather { input, input_stride, window, sheets, height: height_read, width, row_stride };
        let start = |&(sheet, row): &([usize; 2], usize)| {
            let index = gather.sheets.binary_search(&sheet).expect("made of the taps");
            index * gather.sheet_size() + row * row_stride
        };
        Self {
            taps: places.iter().map(start).collect(),
            channel_stride: gather.channel_stride(),
            halo: last * row_stride,
            sheets: gather.sheets.len(),
            gather: Some(gather),
            height,
            width,
            row_stride,
        }
    }
}

impl PlaneLayer {
    /// A sparse linear layer at each of `positions`, planes `stride` floats apart.
    pub fn linear(
        isa: Isa,
        rows: &Rows,
        bias: &[f32],
        (positions, stride): (usize, usize),
        parts: usize,
    ) -> Self {
        let vectors = vectors(isa, positions);
        let inputs = rows.iter().filter_map(|row| row.last()).map(|w| w.0 + 1).max().unwrap_or(1);
        let are_shared = are_shared(rows);
        let block = block(counts(rows), inputs, at_a_time(isa, are_shared, vectors));
        let weights = Weights::sparse(rows, bias, parts, (block, are_shared), stride, vectors);
        Self::on_positions(isa, weights, bias.len(), positions)
    }

    /// The same with all weights `[N, M]`.
    pub fn dense_linear(isa: Isa, weight: &[f32], bias: &[f32], (positions, stride): (usize, usize)) -> Self {
        let weights = Weights::Dense {
            bias: bias.to_vec(),
            taps: vec![(0, weight.to_vec())],
            channels: weight.len() / bias.len().max(1),
            channel_stride: stride,
        };
        Self::on_positions(isa, weights, bias.len(), positions)
    }

    /// A layer that reads its input where it lies.
    fn on_positions(isa: Isa, weights: Weights, neurons: usize, positions: usize) -> Self {
        Self {
            isa,
            weights,
            neurons,
            gather: None,
            output_stride: plane_stride(positions),
            height: 1,
            width: positions,
            row_stride: positions,
        }
    }

    /// A sparse convolution of images of shape `input`. Rows are `[in channels / groups · kh · kw]`.
    pub fn conv(
        isa: Isa,
        rows: &Rows,
        bias: &[f32],
        window: &Window,
        groups: usize,
        input: Shape,
        parts: usize,
    ) -> Self {
        let plan = Plan::new(isa, window, input);
        let (taps, group_channels) = (plan.taps.len(), input.features / groups);
        let group_neurons = (rows.len() / groups).max(1);
        // Planes are units where nothing lies between them, which makes offsets small.
        let unit = if plan.gather.is_none() { plan.channel_stride } else { 1 };
        let offsets: Rows = rows
            .iter()
            .enumerate()
            .map(|(n, row)| {
                let first = n / group_neurons * group_channels;
                let offset = |i: usize| (first + i / taps) * plan.channel_stride + plan.taps[i % taps];
                let mut row: Vec<_> = row.iter().map(|&(i, value)| (offset(i) / unit, value)).collect();
                row.sort_by_key(|w| w.0);
                row
            })
            .collect();
        let vectors = vectors(isa, (plan.height - 1) * plan.row_stride + plan.width);
        let are_shared = are_shared(&offsets);
        let tile = at_a_time(isa, are_shared, vectors);
        let read = (plan.sheets * (tile + plan.halo)).min(plan.channel_stride);
        let channels = block(counts(rows), input.features, read);
        let block = channels * plan.channel_stride / unit;
        let weights = Weights::sparse(&offsets, bias, parts, (block, are_shared), unit, vectors);
        Self::planned(isa, weights, rows.len(), plan)
    }

    /// Whether a dense convolution is a product of matrices for each tap.
    pub fn by_products(groups: usize, input: Shape) -> bool {
        groups == 1 && input.features >= GEMM
    }

    /// The same with all weights `[N, C · kh · kw]`.
    pub fn dense_conv(
        isa: Isa,
        weight: &[f32],
        bias: &[f32],
        window: &Window,
        groups: usize,
        input: Shape,
        parts: usize,
    ) -> Self {
        let taps = window.kernel[0] * window.kernel[1];
        if !Self::by_products(groups, input) {
            let row = |row: &[f32]| row.iter().copied().enumerate().collect();
            let rows: Rows = weight.chunks_exact(weight.len() / bias.len().max(1)).map(row).collect();
            return Self::conv(isa, &rows, bias, window, groups, input, parts);
        }
        let plan = Plan::new(isa, window, input);
        let of_tap = |tap| weight.iter().skip(tap).step_by(taps).copied().collect();
        let weights = Weights::Dense {
            bias: bias.to_vec(),
            taps: plan.taps.iter().enumerate().map(|(tap, &start)| (start, of_tap(tap))).collect(),
            channels: input.features,
            channel_stride: plan.channel_stride,
        };
        Self::planned(isa, weights, bias.len(), plan)
    }

    fn planned(isa: Isa, weights: Weights, neurons: usize, plan: Plan) -> Self {
        let Plan { gather, height, width, row_stride, .. } = plan;
        let output_stride = plane_stride(height * width);
        Self { isa, weights, neurons, gather, output_stride, height, width, row_stride }
    }

    /// Output planes follow each other without gaps from now on, as do input planes if the answer is `true`.
    pub fn pack(&mut self) -> bool {
        self.output_stride = self.height * self.width;
        if let Some(gather) = &mut self.gather {
            gather.input_stride = gather.input.positions();
        }
        self.gather.is_some()
    }

    /// Positions of an output plane as the kernel computes them.
    fn wide_positions(&self) -> usize {
        (self.height - 1) * self.row_stride + self.width
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Sparse { parts, .. } => parts.iter().map(Tiles::bytes).sum(),
            Weights::Dense { bias, taps, .. } => {
                4 * (bias.len() + taps.iter().map(|tap| tap.1.len()).sum::<usize>())
            }
        }
    }

    /// What [`run`](Self::run) needs.
    pub fn room(&self) -> Room {
        let packed = self.gather.as_ref().map_or(0, |gather| {
            floats(&[gather.input.features, gather.channel_stride()]).saturating_add(Self::SLACK as u64)
        });
        match &self.weights {
            Weights::Sparse { parts, .. } => {
                Room { packed, tiles: floats(&[parts.len(), self.tile()]), ..Room::default() }
            }
            Weights::Dense { .. } => {
                let wide = floats(&[self.neurons, self.wide_positions().next_multiple_of(16)]);
                Room { packed, wide, ..Room::default() }
            }
        }
    }

    /// Floats of the sums of one tile of a part of the neurons, in whole cache lines.
    fn tile(&self) -> usize {
        match &self.weights {
            Weights::Sparse { part_neurons, vectors, .. } => {
                (part_neurons * vectors * self.isa.lanes()).next_multiple_of(16)
            }
            Weights::Dense { .. } => 0,
        }
    }

    /// Floats that the kernel may read beyond the last plane.
    pub const SLACK: usize = 128;

    /// One image: `x` has the input planes and [`SLACK`](Self::SLACK) more floats, `out` the output planes, and
    /// `scratch` the [`room`](Self::room). Adds
    /// `residual` (planes like `out`), then cuts off below zero if `relu`. Numbers between planes are whatever.
    pub fn run(
        &self,
        x: &[f32],
        out: &mut [f32],
        residual: Option<&[f32]>,
        relu: bool,
        scratch: &mut Scratch,
    ) {
        let Scratch { packed, tiles, wide, .. } = scratch;
        let x = match &self.gather {
            None => x,
            Some(gather) => {
                let size = gather.input.features * gather.channel_stride();
                gather.run(x, &mut packed[..size]);
                packed
            }
        };
        let stride = self.output_stride;
        let out = &mut out[..self.neurons * stride];
        match &self.weights {
            Weights::Sparse { parts, vectors, .. } => {
                let planes = SharedPlanes::new(out, stride);
                let residual = residual.map(|r| &r[..self.neurons * stride]);
                // As many tasks for each thread as there are tiles: at first its own positions, so that it reads few inputs of
                // others; some of the neurons where there are fewer tiles than threads.
                let count = self.wide_positions().div_ceil(vectors * self.isa.lanes());
                let run = |thread: usize, sums: &mut [f32]| {
                    for task in thread * count..(thread + 1) * count {
                        let (tile, part) = (task / parts.len(), task % parts.len());
                        self.run_task((tile, part), x, &planes, residual, relu, sums);
                    }
                };
                let tile = self.tile();
                if parts.len() == 1 {
                    run(0, &mut tiles[..tile]);
                } else {
                    let sums = tiles[..parts.len() * tile].par_chunks_exact_mut(tile);
                    sums.enumerate().for_each(|(thread, sums)| run(thread, sums));
                }
            }
            Weights::Dense { bias, taps, channels, channel_stride } => {
                let positions = self.wide_positions();
                let row = positions.next_multiple_of(16);
                for (plane, bias) in wide.chunks_exact_mut(row).zip(bias) {
                    plane.fill(*bias);
                }
                for (start, weights) in taps {
                    math::add_matmul(
                        [self.neurons, positions, *channels],
                        wide,
                        Strides { row, column: 1 },
                        weights,
                        Strides { row: *channels, column: 1 },
                        &x[*start..],
                        Strides { row: *channel_stride, column: 1 },
                        rayon::current_num_threads(),
                    );
                }
                let planes = out.par_chunks_exact_mut(stride).zip(wide.par_chunks_exact(row));
                planes.enumerate().with_min_len(tuning::FINISHED_PER_TASK).for_each(|(n, (out, sums))| {
                    let residual = residual.map_or(&[][..], |r| &r[n * stride..][..stride]);
                    finish(out, sums, residual, relu, 0, positions, self.width, self.row_stride);
                });
            }
        }
    }

    /// Some positions of some neurons.
    fn run_task(
        &self,
        (tile, part): (usize, usize),
        x: &[f32],
        planes: &SharedPlanes,
        residual: Option<&[f32]>,
        relu: bool,
        sums: &mut [f32],
    ) {
        let Weights::Sparse { parts, part_neurons, unit, vectors } = &self.weights else { return };
        let (lanes, positions, stride) = (self.isa.lanes(), self.wide_positions(), self.output_stride);
        let first = tile * vectors;
        let vectors = (*vectors).min(positions.div_ceil(lanes) - first);
        let (start, width) = (first * lanes, vectors * lanes);
        let end = (start + width).min(positions);
        parts[part].run(self.isa, vectors, &x[start..], *unit, sums);
        let place = |position: usize| {
            let (row, column) = (position / self.row_stride, position % self.row_stride);
            row * self.width + column.min(self.width)
        };
        let places = place(start)..place(end);
        let first = part * part_neurons;
        for (n, sums) in (first..).zip(sums.chunks_exact(width).take(parts[part].neurons())) {
            planes.prefetch(n + AHEAD, places.clone());
            if let Some(next) = residual.and_then(|r| r.get((n + AHEAD) * stride + places.start..)) {
                prefetch(next.as_ptr(), places.len());
            }
            let residual = residual.map_or(&[][..], |r| &r[n * stride..][places.clone()]);
            // SAFETY: tasks have different neurons or different positions.
            let out = unsafe { planes.part(n, places.clone()) };
            finish(out, sums, residual, relu, start, end, self.width, self.row_stride);
        }
    }
}

impl Weights {
    fn sparse(
        rows: &Rows,
        bias: &[f32],
        parts: usize,
        (block, are_shared): (usize, bool),
        unit: usize,
        vectors: usize,
    ) -> Self {
        let part_neurons = rows.len().div_ceil(parts.max(1)).max(1);
        let parts = rows.chunks(part_neurons).zip(bias.chunks(part_neurons));
        Self::Sparse {
            parts: parts.map(|(rows, bias)| Tiles::new(rows, bias, block, are_shared)).collect(),
            part_neurons,
            unit,
            vectors,
        }
    }
}

/// Registers of a tile, so that all tiles of a plane are about as wide.
fn vectors(isa: Isa, positions: usize) -> usize {
    let registers = positions.div_ceil(isa.lanes());
    let most = isa.accumulators().min(TILE_FLOATS / isa.lanes());
    registers.div_ceil(registers.div_ceil(most))
}

/// Of a tile of so many registers, the floats that pass before the next ones do.
fn at_a_time(isa: Isa, are_shared: bool, vectors: usize) -> usize {
    isa.lanes() * if are_shared { vectors.min(SHARED) } else { vectors }
}

/// Channels of a block: as many as fit the cache with the `read` floats that a tile reads of each, or more
/// where the layer, of so many neurons and weights, is very sparse.
pub(crate) fn block((neurons, weights): (usize, usize), channels: usize, read: usize) -> usize {
    let visits = (VISIT * channels * neurons).div_ceil(weights.max(1));
    // No more than there are, or sizes in floats might not fit a number.
    (tuning::cached_floats() / read.max(1)).max(visits).min(channels).max(1)
}

/// Neurons, and weights of all.
pub(crate) fn counts<T>(rows: &[impl AsRef<[(usize, T)]>]) -> (usize, usize) {
    (rows.len(), rows.iter().map(|row| row.as_ref().len()).sum())
}

/// Planes that are asked for before they are written.
const AHEAD: usize = 6;

math::vectorised! {
    /// Moves positions `start..end` of a plane that has `row_stride` of them in a row to those of one that has `width`,
    /// which `out` begins with, and adds `residual`, likewise, unless it is empty.
    #[expect(clippy::too_many_arguments, reason = "as many as a step of a layer has")]
    fn finish(
        out: &mut [f32],
        sums: &[f32],
        residual: &[f32],
        relu: bool,
        start: usize,
        end: usize,
        width: usize,
        row_stride: usize
    ) {
        let mut column = start % row_stride;
        let (mut place, mut at) = (0, start);
        while at < end {
            let next = (at + row_stride - column).min(end);
            if column < width {
                let count = (width - column).min(next - at);
                // Whole registers where there is room; the next row overwrites what was too much.
                let whole = count.next_multiple_of(16);
                let room = place + whole <= out.len() && at - start + whole <= sums.len();
                let all = if room { whole } else { count };
                let (out, sums) = (&mut out[place..place + all], &sums[at - start..][..all]);
                match (residual, relu) {
                    ([], false) => out.copy_from_slice(sums),
                    ([], true) => out.iter_mut().zip(sums).for_each(|(o, s)| *o = math::at_least(*s, 0.0)),
                    (r, relu) => {
                        let least = if relu { 0.0 } else { f32::NEG_INFINITY };
                        let r = &r[place..place + all];
                        out.iter_mut().zip(sums).zip(r).for_each(|((o, s), r)| *o = math::at_least(s + r, least));
                    }
                }
                place += count;
            }
            (column, at) = (0, next);
        }
    }
}
