//! Single layers, ready to run.

use crate::buffer::Buffer;
use crate::kernels::{Isa, Lookup, Tiles, dot_rows, transpose_part};
use crate::planes::{PlaneLayer, Rows, Scratch, block, plane_stride};
use crate::{CondensedWeight, Error, Shape, Window};
use rayon::prelude::*;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Vectors that a tile of a batch holds.
const BATCH_TILE: usize = 64;

/// From this batch on, tiles are faster than one vector after the other (measured, `docs/performance.md`).
const BATCH: usize = 4;

/// A linear layer `y = W x + b` in condensed form.
///
/// Packs the weights for single vectors and for batches when each is first asked for. Runs on the current
/// rayon pool; results do not depend on the number of threads.
#[derive(Debug)]
pub struct LinearKernel {
    weight: CondensedWeight,
    bias: Vec<f32>,
    isa: Isa,
    single: OnceLock<Option<Lookup>>,
    /// Neurons in equal parts, one for each thread.
    batch: OnceLock<Vec<Tiles>>,
    scratch: Spare<LinearScratch>,
}

#[derive(Debug, Default)]
struct LinearScratch {
    columns: Buffer,
    sums: Buffer,
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
    /// [`Error::Weight`] if the bias has another length or the machine lacks the instruction set.
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

    /// `[batch, M]` → `[batch, N]`, both row-major.
    ///
    /// # Panics
    /// If a slice does not have that length.
    pub fn run(&self, batch: usize, input: &[f32], output: &mut [f32]) {
        let (inputs, neurons) = (self.weight.inputs(), self.weight.neurons());
        assert_eq!(input.len(), batch * inputs, "input [batch, M]");
        assert_eq!(output.len(), batch * neurons, "output [batch, N]");
        if inputs == 0 || neurons == 0 {
            output.chunks_mut(neurons.max(1)).for_each(|out| out.copy_from_slice(&self.bias));
            return;
        }
        let mut scratch = self.scratch.take();
        if batch < BATCH {
            for (x, out) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(neurons)) {
                self.run_single(x, out, &mut scratch);
            }
        } else {
            let tile = BATCH_TILE.min(self.isa.lanes() * self.isa.accumulators());
            for (x, out) in input.chunks(tile * inputs).zip(output.chunks_mut(tile * neurons)) {
                self.run_tile(x, out, &mut scratch);
            }
        }
        self.scratch.put(scratch);
    }

    fn run_single(&self, x: &[f32], out: &mut [f32], scratch: &mut LinearScratch) {
        let active = self.weight.active();
        let threads = rayon::current_num_threads();
        let lookup = self.single.get_or_init(|| Lookup::new_if_faster(self.isa, &self.weight));
        let LinearScratch { columns, sums, .. } = scratch;
        let lanes = lookup.as_ref().map_or(16, |_| self.isa.lanes());
        let padded = active.len().next_multiple_of(lanes);
        sums.grow(padded);
        let sums = &mut sums[..padded];
        // A part is whole registers of neurons.
        let part = (padded / lanes).div_ceil(threads).max(1) * lanes;
        match lookup {
            Some(lookup) => {
                // To copy is faster than loads that cross cache lines.
                let x = if x.len() == lookup.padded_inputs() && x.as_ptr().align_offset(64) == 0 {
                    x
                } else {
                    columns.grow(lookup.padded_inputs());
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

    /// At most [`BATCH_TILE`] vectors: inputs and outputs `[inputs][batch]` while the kernel runs.
    fn run_tile(&self, x: &[f32], out: &mut [f32], scratch: &mut LinearScratch) {
        let (inputs, neurons) = (self.weight.inputs(), self.weight.neurons());
        let part = neurons.div_ceil(rayon::current_num_threads());
        let parts = self.batch.get_or_init(|| {
            let rows = rows_of(&self.weight);
            let block = block(&rows, inputs, BATCH_TILE);
            let parts = rows.chunks(part).zip(self.bias.chunks(part));
            parts.map(|(rows, bias)| Tiles::new(rows, bias, block)).collect()
        });
        let part = parts[0].neurons();
        let batch = x.len() / inputs;
        let vectors = batch.div_ceil(self.isa.lanes());
        let width = vectors * self.isa.lanes();
        let LinearScratch { columns, sums } = scratch;
        columns.grow(inputs * width);
        sums.grow(neurons * width);
        let sums = &mut sums[..neurons * width];
        transpose(self.isa, (x, inputs), (columns, width), batch, inputs);
        in_parts(sums, part * width, |first, sums| {
            parts[first / (part * width)].run(self.isa, vectors, columns, width, sums);
        });
        transpose(self.isa, (sums, width), (out, neurons), neurons, batch);
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
#[derive(Debug)]
pub struct ConvKernel {
    input: Shape,
    output: Shape,
    layer: PlaneLayer,
    /// Whether the layer reads images as they are.
    packed: bool,
    scratch: Spare<ConvScratch>,
}

#[derive(Debug, Default)]
struct ConvScratch {
    x: Buffer,
    planes: Scratch,
}

impl ConvKernel {
    /// A convolution with `weight` `[out channels, in channels / groups · kh · kw]` on images of shape `input`.
    ///
    /// # Errors
    /// [`Error::Weight`] if weight, bias, window, groups and input do not fit each other.
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
    /// As [`new`](Self::new), or if the machine lacks the instruction set.
    pub fn with_isa(
        weight: &CondensedWeight,
        bias: &[f32],
        window: Window,
        groups: usize,
        input: Shape,
        isa: Isa,
    ) -> Result<Self, Error> {
        check(weight.neurons(), bias, isa)?;
        let [height, width] = window.output_size(input)?;
        let wrong = |what: String| Err(Error::Weight(what));
        if groups == 0 || !input.features.is_multiple_of(groups) || !weight.neurons().is_multiple_of(groups) {
            return wrong(format!(
                "{groups} groups do not divide {} and {} channels",
                input.features,
                weight.neurons()
            ));
        }
        if input.features / groups * window.kernel[0] * window.kernel[1] != weight.inputs() {
            return wrong(format!(
                "dense fan-in {} for {} channels in {groups} groups and kernel {:?}",
                weight.inputs(),
                input.features,
                window.kernel
            ));
        }
        let mut layer = PlaneLayer::conv(
            isa,
            &rows_of(weight),
            bias,
            &window,
            groups,
            input,
            rayon::current_num_threads(),
        );
        let output = Shape { features: weight.neurons(), height, width };
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
    /// If a slice does not have that length.
    pub fn run(&self, batch: usize, input: &[f32], output: &mut [f32]) {
        assert_eq!(input.len(), batch * self.input.len(), "input [batch, C, H, W]");
        assert_eq!(output.len(), batch * self.output.len(), "output [batch, C', H', W']");
        if self.output.len() == 0 {
            return;
        }
        let mut scratch = self.scratch.take();
        let ConvScratch { x, planes } = &mut scratch;
        let images = input.chunks_exact(self.input.len());
        for (image, result) in images.zip(output.chunks_exact_mut(self.output.len())) {
            let image = if self.packed {
                image
            } else {
                x.grow(self.input.features * self.input.stride() + PlaneLayer::SLACK);
                to_planes(image, self.input, x);
                &x[..]
            };
            self.layer.run(image, result, None, false, planes);
        }
        self.scratch.put(scratch);
    }
}

/// Memory kept between calls, one piece for each call at the same time.
///
/// The lock is not held while a layer runs: rayon may start another call of it on the same thread.
#[derive(Debug, Default)]
struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    fn take(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put(&self, spare: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
    }
}

impl Shape {
    /// Positions of one plane.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Numbers in one sample.
    #[expect(clippy::len_without_is_empty, reason = "a count, not a collection")]
    pub fn len(&self) -> usize {
        self.features * self.positions()
    }

    /// Floats between planes in the engine.
    pub(crate) fn stride(&self) -> usize {
        plane_stride(self.positions())
    }
}

impl Window {
    /// Height and width of the result on images of shape `input`.
    ///
    /// # Errors
    /// [`Error::Weight`] if a size is 0, too large, or the window larger than the padded image.
    pub fn output_size(&self, input: Shape) -> Result<[usize; 2], Error> {
        let size = |axis: usize, size: usize| {
            let reach = self.kernel[axis].checked_sub(1)?.checked_mul(self.dilation[axis])?.checked_add(1)?;
            let padded = self.padding[axis].checked_mul(2)?.checked_add(size)?;
            let positive = self.stride[axis] > 0 && self.dilation[axis] > 0 && padded < 1 << 24;
            positive.then(|| padded.checked_sub(reach).map(|room| room / self.stride[axis] + 1))?
        };
        match (size(0, input.height), size(1, input.width)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => Err(Error::Weight(format!(
                "{self:?} does not fit images of {} × {}",
                input.height, input.width
            ))),
        }
    }
}

/// Copies a sample `[features, height, width]` into planes of whole cache lines.
pub(crate) fn to_planes(sample: &[f32], shape: Shape, planes: &mut [f32]) {
    for (plane, to) in sample.chunks_exact(shape.positions()).zip(planes.chunks_exact_mut(shape.stride())) {
        to[..plane.len()].copy_from_slice(plane);
    }
}

/// The other way.
pub(crate) fn from_planes(planes: &[f32], shape: Shape, sample: &mut [f32]) {
    for (plane, to) in planes.chunks_exact(shape.stride()).zip(sample.chunks_exact_mut(shape.positions())) {
        to.copy_from_slice(&plane[..shape.positions()]);
    }
}

/// All neurons' weights, ablated neurons with none.
pub(crate) fn rows_of(weight: &CondensedWeight) -> Rows {
    let mut rows = vec![Vec::new(); weight.neurons()];
    for (row, &neuron) in weight.active().iter().enumerate() {
        rows[neuron as usize] = weight.row(row).collect();
    }
    rows
}

fn check(neurons: usize, bias: &[f32], isa: Isa) -> Result<(), Error> {
    if bias.len() != neurons {
        return Err(Error::Weight(format!("bias has {} entries for {neurons} neurons", bias.len())));
    }
    if !isa.available() {
        return Err(Error::Weight(format!("this machine has no {isa:?}")));
    }
    Ok(())
}
