//! Single layers, ready to run.

use crate::buffer::{Room, Scratch, floats};
use crate::kernels::{Isa, Lookup, Tiles, dot_rows, transpose_part};
use crate::planes::{PlaneLayer, block};
use crate::shape::{MAX_RESULT, at_most, to_planes};
use crate::tuning::{BATCH, BATCH_TILE, PAIR, SHARED};
use crate::{CondensedWeight, Error, NodeError, Shape, WeightError, Window, math};
use rayon::prelude::*;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// A linear layer `y = W x + b` in condensed form.
///
/// Packs the weights for single vectors and for batches when each is first asked for. Runs on the current
/// rayon pool; results do not depend on the number of threads.
///
/// ```
/// use condensed::{CondensedWeight, LinearKernel};
///
/// let weight = CondensedWeight::from_masked(&[0.0, 2.0], &[false, true], 1, 2)?;
/// let layer = LinearKernel::new(&weight, &[0.5])?;
/// let mut y = [0.0; 2];
/// layer.run(2, &[7.0, 1.0, 7.0, 3.0], &mut y);
/// assert_eq!(y, [2.5, 6.5]);
/// # Ok::<(), condensed::Error>(())
/// ```
pub struct LinearKernel {
    weight: CondensedWeight,
    bias: Vec<f32>,
    isa: Isa,
    single: OnceLock<Option<Lookup>>,
    /// Neurons in equal parts, one for each thread.
    batch: OnceLock<Vec<Tiles>>,
    scratch: Spare,
}

impl fmt::Debug for LinearKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinearKernel").field("weight", &self.weight).field("isa", &self.isa).finish()
    }
}

impl LinearKernel {
    /// A layer with `weight` `[N, M]` and `bias` `[N]`.
    ///
    /// # Errors
    /// [`Error::Weight`] if the bias has another length.
    pub fn new(weight: &CondensedWeight, bias: &[f32]) -> Result<Self, Error> {
        Self::with_isa(weight, bias, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// [`Error::Weight`] if the bias has another length, [`Error::Isa`] if the machine lacks the instruction set.
    pub fn with_isa(weight: &CondensedWeight, bias: &[f32], isa: Isa) -> Result<Self, Error> {
        check(weight.neurons(), bias, isa)?;
        Ok(Self {
            weight: weight.clone(),
            bias: bias.to_vec(),
            isa,
            single: OnceLock::new(),
            batch: OnceLock::new(),
            scratch: Spare::default(),
        })
    }

    /// The weights.
    pub fn weight(&self) -> &CondensedWeight {
        &self.weight
    }

    /// The bias `[N]`.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Bytes of the weights: as stored, and as packed for what has been run.
    pub fn bytes(&self) -> usize {
        let single = self.single.get().and_then(Option::as_ref).map_or(0, Lookup::bytes);
        let batch = self.batch.get().map_or(0, |parts| parts.iter().map(Tiles::bytes).sum());
        self.weight.bytes() + self.bias.len() * 4 + single + batch
    }

    /// `[batch, M]` → `[batch, N]`, both row-major. An absent weight is not a weight of 0: an input that is NaN or
    /// infinite has no effect on neurons that do not read it, while a dense product would make them NaN.
    ///
    /// # Panics
    /// If a slice does not have that length, or what the kernel needs beside them exceeds the
    /// [budget](srigl_tensors::memory::limit).
    pub fn run(&self, batch: usize, input: &[f32], output: &mut [f32]) {
        self.scratch.with(&self.room(batch), |scratch| self.run_in(batch, input, output, scratch));
    }

    /// What [`run_in`](Self::run_in) needs for a batch and for all smaller ones.
    pub(crate) fn room(&self, batch: usize) -> Room {
        // Single vectors are padded to a block of lookups, and neurons to a register.
        let (inputs, neurons) = (self.weight.inputs().next_multiple_of(64), self.weight.neurons());
        let (columns, sums) = (inputs as u64, neurons.next_multiple_of(16) as u64);
        if batch < BATCH {
            return Room { columns, sums, ..Room::default() };
        }
        let width = batch.min(self.most()).next_multiple_of(self.isa.lanes());
        let threads = rayon::current_num_threads();
        let tiles = self.tiles(batch).min(threads);
        let blocks = floats(&[threads, self.block(), width]);
        // All inputs at once, where threads share a tile.
        let whole = if threads > 1 { floats(&[tiles, inputs, width]) } else { 0 };
        Room {
            columns: columns.max(blocks).max(whole),
            sums: sums.max(floats(&[tiles, neurons, width])),
            ..Room::default()
        }
    }

    /// Vectors of a tile at most.
    fn most(&self) -> usize {
        self.tile().min(self.isa.lanes() * self.isa.accumulators())
    }

    /// Vectors of a tile that the cache has room for.
    fn tile(&self) -> usize {
        if self.is_shared() { SHARED * self.isa.lanes() } else { BATCH_TILE }
    }

    /// Whether neurons that share inputs are worked on together.
    fn is_shared(&self) -> bool {
        self.weight.pattern().group() > PAIR
    }

    /// Tiles of a batch, an even number from two on, so that two threads have as much to do. Depends on nothing but the batch,
    /// as sums in one or two registers have another order.
    fn tiles(&self, batch: usize) -> usize {
        match batch.div_ceil(self.most()) {
            1 => 1,
            tiles => tiles.next_multiple_of(2),
        }
    }

    /// Inputs that are laid out at a time.
    fn block(&self) -> usize {
        let (neurons, inputs) = (self.weight.neurons(), self.weight.inputs());
        block((neurons, self.weight.values().len()), inputs, self.tile())
    }

    fn parts(&self) -> &[Tiles] {
        self.batch.get_or_init(|| {
            let (rows, block) = (self.weight.rows(), self.block());
            let part = rows.len().div_ceil(rayon::current_num_threads());
            let parts = rows.chunks(part).zip(self.bias.chunks(part));
            parts.map(|(rows, bias)| Tiles::new(rows, bias, block, self.is_shared())).collect()
        })
    }
    /// As [`run`](Self::run), in memory of the caller.
    pub(crate) fn run_in(&self, batch: usize, input: &[f32], output: &mut [f32], scratch: &mut Scratch) {
        let (inputs, neurons) = (self.weight.inputs(), self.weight.neurons());
        assert_eq!(Some(input.len()), batch.checked_mul(inputs), "input [batch, M]");
        assert_eq!(Some(output.len()), batch.checked_mul(neurons), "output [batch, N]");
        if inputs == 0 || neurons == 0 {
            output.chunks_mut(neurons.max(1)).for_each(|out| out.copy_from_slice(&self.bias));
            return;
        }
        if batch < BATCH {
            for (x, out) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(neurons)) {
                self.run_single(x, out, scratch);
            }
        } else {
            self.run_tiles(batch.div_ceil(self.tiles(batch)), input, output, scratch);
        }
    }

    fn run_single(&self, x: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let active = self.weight.active();
        let threads = rayon::current_num_threads();
        let lookup = self.single.get_or_init(|| Lookup::new_if_faster(self.isa, &self.weight));
        // Its padding multiplies by 0 what a lane does not read.
        let lookup = lookup.as_ref().filter(|_| math::all_finite(x));
        let Scratch { columns, sums, .. } = scratch;
        let lanes = lookup.map_or(16, |_| self.isa.lanes());
        let padded = active.len().next_multiple_of(lanes);
        let sums = &mut sums[..padded];
        // A part is whole registers of neurons.
        let part = (padded / lanes).div_ceil(threads).max(1) * lanes;
        match lookup {
            Some(lookup) => {
                // To copy is faster than loads that cross cache lines.
                let x = if x.len() == lookup.padded_inputs() && x.as_ptr().align_offset(64) == 0 {
                    x
                } else {
                    let columns = &mut columns[..lookup.padded_inputs()];
                    columns[..x.len()].copy_from_slice(x);
                    columns[x.len()..].fill(0.0);
                    columns
                };
                in_parts(sums, part, |first, sums| {
                    for (group, sums) in sums.chunks_exact_mut(lanes).enumerate() {
                        lookup.run(first / lanes + group, x, sums);
                    }
                });
            }
            None => in_parts(&mut sums[..active.len()], part, |first, sums| {
                dot_rows(self.isa, &self.weight, first..first + sums.len(), x, sums);
            }),
        }
        if active.len() == out.len() {
            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&self.bias) {
                *out = *sum + bias;
            }
        } else {
            out.copy_from_slice(&self.bias);
            for (&neuron, sum) in active.iter().zip(sums) {
                out[neuron as usize] += *sum;
            }
        }
    }

    /// Tiles of so many vectors, as many at a time as there are threads. Sums are `[neurons][tile]`.
    fn run_tiles(&self, tile: usize, input: &[f32], output: &mut [f32], scratch: &mut Scratch) {
        let (inputs, neurons) = (self.weight.inputs(), self.weight.neurons());
        let width = tile.next_multiple_of(self.isa.lanes());
        let Scratch { columns, sums, .. } = scratch;
        // There may be more threads than when the memory was made.
        let threads = rayon::current_num_threads().min(sums.len() / (neurons * width));
        let (x_tile, out_tile) = (tile * inputs, tile * neurons);
        for (x, out) in input.chunks(threads * x_tile).zip(output.chunks_mut(threads * out_tile)) {
            let tiles = x.len().div_ceil(x_tile);
            let shared = rayon::current_num_threads() > tiles && columns.len() >= tiles * inputs * width;
            let room = if shared { inputs } else { self.block() } * width;
            let memory = sums.par_chunks_mut(neurons * width).zip(columns.par_chunks_mut(room));
            let chunks = x.par_chunks(x_tile).zip(out.par_chunks_mut(out_tile));
            chunks.zip(memory).for_each(|((x, out), (sums, columns))| {
                match shared {
                    true => self.sum_shared(x, width, columns, sums),
                    false => self.sum_by_blocks(x, width, columns, sums),
                }
                transpose(self.isa, (sums, width), (out, neurons), neurons, x.len() / inputs);
            });
        }
    }

    /// The sums of a tile, whose inputs are laid out `[inputs][tile]` block by block: each is in the first-level cache when it is
    /// read.
    fn sum_by_blocks(&self, x: &[f32], width: usize, columns: &mut [f32], sums: &mut [f32]) {
        let (inputs, block, parts) = (self.weight.inputs(), self.block(), self.parts());
        let (batch, part) = (x.len() / inputs, parts[0].neurons() * width);
        for (index, first) in (0..inputs).step_by(block).enumerate() {
            let count = block.min(inputs - first);
            let columns = &mut columns[..count * width];
            transpose_part(self.isa, &x[first..], inputs, columns, width, batch, count);
            for (part, sums) in parts.iter().zip(sums.chunks_mut(part)) {
                part.run_block(self.isa, width / self.isa.lanes(), index, columns, sums);
            }
        }
    }

    /// The same by several threads, which lay out all inputs and then share the neurons.
    fn sum_shared(&self, x: &[f32], width: usize, columns: &mut [f32], sums: &mut [f32]) {
        let (inputs, parts) = (self.weight.inputs(), self.parts());
        let columns = &mut columns[..inputs * width];
        transpose(self.isa, (x, inputs), (columns, width), x.len() / inputs, inputs);
        in_parts(&mut sums[..self.weight.neurons() * width], parts[0].neurons() * width, |first, sums| {
            let part = first / (parts[0].neurons() * width);
            parts[part].run(self.isa, width / self.isa.lanes(), columns, width, sums);
        });
    }
}

/// Calls `run(first, part)` on parts of `out`, in parallel where there are several.
fn in_parts(out: &mut [f32], part: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() <= part {
        run(0, out);
    } else {
        out.par_chunks_mut(part).enumerate().for_each(|(i, out)| run(i * part, out));
    }
}

/// `to[c · to_stride + r] = from[r · from_stride + c]` for the first `rows` rows and `columns` columns.
fn transpose(
    isa: Isa,
    (from, from_stride): (&[f32], usize),
    (to, to_stride): (&mut [f32], usize),
    rows: usize,
    columns: usize,
) {
    let part = columns.div_ceil(rayon::current_num_threads()).next_multiple_of(8);
    let to = &mut to[..columns.saturating_sub(1) * to_stride + rows];
    if part >= columns {
        transpose_part(isa, from, from_stride, to, to_stride, rows, columns);
    } else {
        to.par_chunks_mut(part * to_stride).enumerate().for_each(|(i, to)| {
            let columns = part.min(columns - i * part);
            transpose_part(isa, &from[i * part..], from_stride, to, to_stride, rows, columns);
        });
    }
}

/// A convolution in condensed form for images of one size, `[batch, C, H, W]` in PyTorch's order.
///
/// Runs on the current rayon pool; results do not depend on the number of threads.
pub struct ConvKernel {
    input: Shape,
    output: Shape,
    layer: PlaneLayer,
    /// Whether the layer reads images as they are.
    packed: bool,
    scratch: Spare,
}

impl fmt::Debug for ConvKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        write!(f, "ConvKernel {{ input: {:?}, output: {:?}, bytes: {bytes} }}", self.input, self.output)
    }
}

impl ConvKernel {
    /// A convolution with `weight` `[out channels, in channels / groups · kh · kw]` on images of shape `input`.
    ///
    /// # Errors
    /// [`Error::Node`] if weight, window, groups and input do not fit each other, [`Error::Weight`] if the bias does not.
    pub fn new(
        weight: &CondensedWeight,
        bias: &[f32],
        window: Window,
        groups: usize,
        input: Shape,
    ) -> Result<Self, Error> {
        Self::with_isa(weight, bias, window, groups, input, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// As [`new`](Self::new), or [`Error::Isa`] if the machine lacks the instruction set.
    pub fn with_isa(
        weight: &CondensedWeight,
        bias: &[f32],
        window: Window,
        groups: usize,
        input: Shape,
        isa: Isa,
    ) -> Result<Self, Error> {
        check(weight.neurons(), bias, isa)?;
        let misfit = |what| Error::Node { node: "convolution".into(), what };
        let (output, fan_in) = window.convolution(input, groups, weight.neurons()).map_err(misfit)?;
        if fan_in != weight.inputs() {
            let (neurons, inputs) = (weight.neurons(), weight.inputs());
            return Err(misfit(NodeError::WeightShape { neurons, inputs, expected: neurons, fan_in }));
        }
        window.check_gathered(input, [output.height, output.width]).map_err(misfit)?;
        for shape in [input, output] {
            at_most(MAX_RESULT, &[shape.features, shape.height, shape.width])
                .map_err(|_| misfit(NodeError::Result(shape)))?;
        }
        let mut layer =
            PlaneLayer::conv(isa, &weight.rows(), bias, &window, groups, input, rayon::current_num_threads());
        let packed = layer.pack();
        Ok(Self { input, output, layer, packed, scratch: Spare::default() })
    }

    /// Shape of an output image.
    pub fn output_shape(&self) -> Shape {
        self.output
    }

    /// Bytes of the weights as packed.
    pub fn bytes(&self) -> usize {
        self.layer.bytes()
    }

    /// `[batch, C, H, W]` → `[batch, C', H', W']`, both row-major.
    ///
    /// # Panics
    /// As [`LinearKernel::run`].
    pub fn run(&self, batch: usize, input: &[f32], output: &mut [f32]) {
        assert_eq!(Some(input.len()), batch.checked_mul(self.input.len()), "input [batch, C, H, W]");
        assert_eq!(Some(output.len()), batch.checked_mul(self.output.len()), "output [batch, C', H', W']");
        if self.output.len() == 0 {
            return;
        }
        let mut room = self.layer.room();
        if !self.packed {
            room.columns = floats(&[self.input.features, self.input.stride()]) + PlaneLayer::SLACK as u64;
        }
        self.scratch.with(&room, |scratch| {
            let mut planes = std::mem::take(&mut scratch.columns);
            let images = input.chunks_exact(self.input.len());
            for (image, result) in images.zip(output.chunks_exact_mut(self.output.len())) {
                let image = if self.packed {
                    image
                } else {
                    to_planes(image, self.input, &mut planes);
                    &planes[..]
                };
                self.layer.run(image, result, None, false, scratch);
            }
            scratch.columns = planes;
        });
    }
}

/// Memory kept between calls, one piece for each call at the same time.
///
/// The lock is not held while a layer runs: rayon may start another call of it on the same thread.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Scratch>>);

impl Spare {
    /// # Panics
    /// If so much exceeds the budget.
    fn with(&self, room: &Room, run: impl FnOnce(&mut Scratch)) {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        scratch.grow(room).unwrap_or_else(|error| panic!("{error}"));
        run(&mut scratch);
        lock().push(scratch);
    }
}

fn check(neurons: usize, bias: &[f32], isa: Isa) -> Result<(), Error> {
    if bias.len() != neurons {
        return Err(WeightError::Bias { got: bias.len(), neurons }.into());
    }
    if !isa.available() {
        return Err(Error::Isa(isa));
    }
    Ok(())
}
