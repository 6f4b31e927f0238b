use crate::buffer::{Buffer, floats};
use crate::kernels::{Changing, Isa, SAMPLED, transpose_part};
use crate::math::{self, Strides};
use crate::planes::block;
use crate::tuning::{BATCH_TILE, PART};
use crate::{Error, Pattern};
use rayon::prelude::*;
use srigl_tensors::memory::TooLarge;
use std::ops::Range;

/// A linear layer `[batch, M]` → `[batch, N]` that trains in condensed form.
///
/// Values are those of the pattern's weights, one row after the other: `[active neurons, k]` with constant fan-in.
///
/// ```
/// use condensed::{Pattern, training::Linear};
///
/// // Of two inputs the neuron reads the second.
/// let mut layer = Linear::new(Pattern::from_mask(&[false, true], 1, 2)?)?;
/// let (values, x) = ([2.0], [7.0, 1.0, 7.0, 3.0]);
/// let mut y = [0.0; 2];
/// layer.forward(&values, Some(&[0.5]), 2, &x, &mut y)?;
/// assert_eq!(y, [2.5, 6.5]);
///
/// let (dy, mut dx, mut dvalues) = ([1.0, -1.0], [0.0; 4], [0.0]);
/// layer.backward(&values, 2, &x, &dy, Some(&mut dx), &mut dvalues)?;
/// assert_eq!((dx, dvalues), ([0.0, 2.0, 0.0, -2.0], [-2.0]));
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Debug)]
pub struct Linear {
    pattern: Pattern,
    isa: Isa,
    /// Neurons in parts, each with its place among the values.
    forward: Vec<Part>,
    /// Inputs in parts: the transposed weights.
    backward: Vec<Part>,
    scratch: Scratch,
}

/// Some rows of a matrix.
#[derive(Debug)]
struct Part {
    weights: Changing,
    rows: Range<usize>,
    /// Where its weights lie among the layer's values; nothing that the transposed ones know.
    values: Range<usize>,
}

/// Memory kept between calls.
#[derive(Debug, Default)]
struct Scratch {
    /// Inputs or their gradients, tile by tile, `[M, tile]` each.
    inputs: Buffer,
    /// Results or their gradients, tile by tile, `[N, tile]` each.
    results: Buffer,
    /// Gradients of values, in the order of the forward parts.
    sums: Buffer,
}

impl Linear {
    /// A layer of this pattern.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if it takes more than the [budget](srigl_tensors::memory::limit).
    pub fn new(pattern: Pattern) -> Result<Self, Error> {
        Self::with_isa(pattern, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// As [`new`](Self::new), or [`Error::Isa`] if the machine lacks the instruction set.
    pub fn with_isa(pattern: Pattern, isa: Isa) -> Result<Self, Error> {
        if !isa.available() {
            return Err(Error::Isa(isa));
        }
        // Offsets, values, their order and the rows they are made from, both ways.
        srigl_tensors::memory::check(Some(floats(&[pattern.len(), 2 * 32])))
            .map_err(Error::TrainingMemory)?;
        let rows = pattern.rows(|place| place as u32);
        let mut columns = vec![Vec::new(); pattern.inputs()];
        for (neuron, row) in rows.iter().enumerate() {
            row.iter().for_each(|&(input, place)| columns[input].push((neuron, place)));
        }
        let (forward, backward) = (parts(&rows, pattern.inputs()), parts(&columns, pattern.neurons()));
        Ok(Self { pattern, isa, forward, backward, scratch: Scratch::default() })
    }

    /// Which weights are active.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// `y = x · Wᵀ + b`: `x` `[batch, M]`, `y` `[batch, N]`, `bias` `[N]`. Ablated neurons give their bias.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if what it needs beside them is more than the [budget](srigl_tensors::memory::limit).
    ///
    /// # Panics
    /// If a slice does not have that length.
    pub fn forward(
        &mut self,
        values: &[f32],
        bias: Option<&[f32]>,
        batch: usize,
        x: &[f32],
        y: &mut [f32],
    ) -> Result<(), Error> {
        let (inputs, neurons) = (self.pattern.inputs(), self.pattern.neurons());
        assert_eq!(values.len(), self.pattern.len(), "values");
        assert!(bias.is_none_or(|bias| bias.len() == neurons), "bias [N]");
        assert_eq!(Some(x.len()), batch.checked_mul(inputs), "x [batch, M]");
        assert_eq!(Some(y.len()), batch.checked_mul(neurons), "y [batch, N]");
        if inputs == 0 && neurons > 0 {
            y.chunks_exact_mut(neurons).for_each(|y| match bias {
                Some(bias) => y.copy_from_slice(bias),
                None => y.fill(0.0),
            });
            return Ok(());
        }
        self.grow(batch)?;
        let set = |part: &mut Part| {
            let bias = bias.map(|bias| &bias[part.rows.clone()]);
            part.weights.set(values, bias);
        };
        self.forward.par_iter_mut().for_each(set);
        let Self { isa, forward, scratch, .. } = self;
        product(*isa, forward, (x, inputs, &mut scratch.inputs), (y, neurons, &mut scratch.results));
        Ok(())
    }

    /// From `x` `[batch, M]` and the gradient `dy` `[batch, N]` by the result: the gradient `dx` `[batch, M]` by the input, if
    /// it is asked for, and that by the values.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    /// If a slice does not have that length.
    pub fn backward(
        &mut self,
        values: &[f32],
        batch: usize,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dvalues: &mut [f32],
    ) -> Result<(), Error> {
        let (inputs, neurons) = (self.pattern.inputs(), self.pattern.neurons());
        assert_eq!(values.len(), self.pattern.len(), "values");
        assert_eq!(dvalues.len(), self.pattern.len(), "dvalues");
        assert_eq!(Some(x.len()), batch.checked_mul(inputs), "x [batch, M]");
        assert_eq!(Some(dy.len()), batch.checked_mul(neurons), "dy [batch, N]");
        self.grow(batch)?;
        let Self { isa, forward, backward, scratch, .. } = self;
        let Scratch { inputs: columns, results, sums } = scratch;
        if let Some(dx) = dx {
            assert_eq!(dx.len(), x.len(), "dx [batch, M]");
            backward.par_iter_mut().for_each(|part| part.weights.set(values, None));
            product(*isa, backward, (dy, neurons, results), (dx, inputs, columns));
        } else {
            to_columns(*isa, (dy, neurons), results);
        }
        to_columns(*isa, (x, inputs), columns);
        sample(*isa, forward, batch, (columns, inputs), (results, neurons), sums, dvalues);
        Ok(())
    }

    /// The gradient `[N]` by the bias, from `dy` `[batch, N]`.
    ///
    /// # Panics
    /// If a slice does not have that length.
    pub fn bias_gradient(&self, dy: &[f32], dbias: &mut [f32]) {
        assert_eq!(dbias.len(), self.pattern.neurons(), "dbias [N]");
        assert!(dbias.is_empty() || dy.len().is_multiple_of(dbias.len()), "dy [batch, N]");
        dbias.fill(0.0);
        if !dbias.is_empty() {
            dy.chunks_exact(dbias.len()).for_each(|row| math::add_to(dbias, row));
        }
    }

    /// The gradient by all weights of some neurons, active or not, `[neurons, M]`: what topology updates look at.
    ///
    /// # Panics
    /// If a slice does not have the length that `batch` and the pattern say, or `neurons` are not the layer's.
    pub fn dense_gradient(
        &self,
        neurons: Range<usize>,
        batch: usize,
        x: &[f32],
        dy: &[f32],
        gradient: &mut [f32],
    ) {
        let (inputs, all) = (self.pattern.inputs(), self.pattern.neurons());
        assert!(neurons.start <= neurons.end && neurons.end <= all, "neurons");
        assert_eq!(Some(x.len()), batch.checked_mul(inputs), "x [batch, M]");
        assert_eq!(Some(dy.len()), batch.checked_mul(all), "dy [batch, N]");
        assert_eq!(Some(gradient.len()), neurons.len().checked_mul(inputs), "gradient [neurons, M]");
        gradient.fill(0.0);
        if gradient.is_empty() || batch == 0 {
            return;
        }
        math::add_matmul(
            [neurons.len(), inputs, batch],
            gradient,
            Strides { row: inputs, column: 1 },
            &dy[neurons.start..],
            Strides { row: 1, column: all },
            x,
            Strides { row: inputs, column: 1 },
            rayon::current_num_threads(),
        );
    }

    /// Bytes of pattern and packed weights.
    pub fn bytes(&self) -> usize {
        let packed = self.forward.iter().chain(&self.backward).map(|part| part.weights.bytes());
        self.pattern.bytes() + packed.sum::<usize>()
    }

    fn grow(&mut self, batch: usize) -> Result<(), Error> {
        let padded = |rows| floats(&[rows, batch.next_multiple_of(tile(self.isa))]);
        let sizes =
            [padded(self.pattern.inputs()), padded(self.pattern.neurons()), self.pattern.len() as u64];
        let Scratch { inputs, results, sums } = &mut self.scratch;
        let buffers = [inputs, results, sums].into_iter().zip(sizes);
        let mut grown =
            buffers.map(|(buffer, size)| buffer.grow(usize::try_from(size).unwrap_or(usize::MAX)));
        grown.try_for_each(|grown: Result<(), TooLarge>| grown.map_err(Error::TrainingMemory))
    }
}

/// Rows of a matrix with so many columns, in parts.
fn parts(rows: &[Vec<(usize, u32)>], columns: usize) -> Vec<Part> {
    let block = block(rows, columns, BATCH_TILE);
    let mut first = 0;
    let part = |(index, part): (usize, &[Vec<(usize, u32)>])| {
        let weights = Changing::new(part, block);
        let (row, value) = (index * PART, first);
        first += weights.len();
        Part { weights, rows: row..row + part.len(), values: value..first }
    };
    rows.chunks(PART).enumerate().map(part).collect()
}

/// Samples of a tile.
fn tile(isa: Isa) -> usize {
    BATCH_TILE.min(isa.lanes() * isa.accumulators())
}

/// Registers of a tile of so many samples.
fn vectors(isa: Isa, samples: usize) -> usize {
    samples.div_ceil(isa.lanes())
}

/// Samples `[batch, width]` column by column: for each tile of samples `[width, tile]`, with zeros for samples that are not
/// there.
fn to_columns(isa: Isa, (from, width): (&[f32], usize), to: &mut [f32]) {
    if width > 0 {
        let tile = tile(isa);
        let tiles = from.par_chunks(tile * width).zip(to.par_chunks_mut(tile * width));
        tiles.for_each(|(from, to)| tile_to_columns(isa, (from, width), to));
    }
}

fn tile_to_columns(isa: Isa, (from, width): (&[f32], usize), to: &mut [f32]) {
    let samples = from.len() / width;
    let stride = vectors(isa, samples) * isa.lanes();
    let to = &mut to[..width * stride];
    if samples < stride {
        // What is not there is multiplied, too.
        to.fill(0.0);
    }
    transpose_part(isa, from, width, to, stride, samples, width);
}

/// `to = from · Wᵀ + b` for samples `[batch, columns]` and `[batch, rows]`, each with memory to turn them into columns.
fn product(
    isa: Isa,
    parts: &[Part],
    (from, columns, turned): (&[f32], usize, &mut [f32]),
    (to, rows, sums): (&mut [f32], usize, &mut [f32]),
) {
    if rows == 0 || columns == 0 {
        return to.fill(0.0);
    }
    let tile = tile(isa);
    let (from, to) = (from.par_chunks(tile * columns), to.par_chunks_mut(tile * rows));
    let scratch = turned.par_chunks_mut(tile * columns).zip(sums.par_chunks_mut(tile * rows));
    from.zip(to).zip(scratch).for_each(|((from, to), (turned, sums))| {
        let samples = from.len() / columns;
        let vectors = vectors(isa, samples);
        let width = vectors * isa.lanes();
        tile_to_columns(isa, (from, columns), turned);
        let sums = &mut sums[..rows * width];
        let of_parts = parts.par_iter().zip(sums.par_chunks_mut(PART * width));
        of_parts.for_each(|(part, sums)| part.weights.tiles().run(isa, vectors, turned, width, sums));
        transpose_part(isa, sums, width, to, rows, rows, samples);
    });
}

/// The gradient by the values, from inputs `[M, tile]` and gradients by results `[N, tile]` of each tile.
fn sample(
    isa: Isa,
    parts: &[Part],
    batch: usize,
    (x, inputs): (&[f32], usize),
    (dy, neurons): (&[f32], usize),
    sums: &mut [f32],
    gradient: &mut [f32],
) {
    let tile = tile(isa);
    let run = |part: &Part, sums: &mut [f32], gradient: &mut [f32]| {
        sums.fill(0.0);
        for first in (0..batch).step_by(tile) {
            let vectors = vectors(isa, tile.min(batch - first));
            let width = vectors * isa.lanes();
            let x = &x[first * inputs..][..inputs * width];
            let dy = &dy[first * neurons..][part.rows.start * width..part.rows.end * width];
            for from in (0..vectors).step_by(SAMPLED) {
                let (some, from) = (SAMPLED.min(vectors - from), from * isa.lanes());
                part.weights.tiles().sample(isa, some, (&x[from..], width), (&dy[from..], width), sums);
            }
        }
        part.weights.place(sums, part.values.start, gradient);
    };
    each_part(parts, &mut sums[..gradient.len()], gradient, &run);
}

/// Runs on each part with its sums and its part of the gradient, at the same time.
fn each_part(
    parts: &[Part],
    sums: &mut [f32],
    gradient: &mut [f32],
    run: &(impl Fn(&Part, &mut [f32], &mut [f32]) + Sync),
) {
    match parts {
        [] => {}
        [part] => run(part, sums, gradient),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            let at = right[0].values.start - left[0].values.start;
            let ((left_sums, right_sums), (left_gradient, right_gradient)) =
                (sums.split_at_mut(at), gradient.split_at_mut(at));
            rayon::join(
                || each_part(left, left_sums, left_gradient, run),
                || each_part(right, right_sums, right_gradient, run),
            );
        }
    }
}
