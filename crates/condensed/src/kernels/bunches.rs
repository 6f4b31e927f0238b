//! The kernels for neurons that read the same inputs.
//!
//! A *bunch* is up to six such neurons. What they read is loaded once and multiplied by a weight of each, so there are fewer
//! loads than products: registers hold the sums of all neurons of a bunch at some positions.

#![expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over registers, which the compiler unrolls"
)]

use super::tiles::{Input, Offset, Offsets, Output, Strips, Weights, any_offsets};
use super::{Isa, simd};
use crate::tuning::PAIR;
use simd::Simd;
use std::ops::Range;

/// Neurons of a bunch at most: sums of so many, at two registers of positions each, and their factors fill the registers of AVX2.
const MOST: usize = 6;

/// Which inputs the weights of some bunches read, in the order in which the kernels read them: for each offset the weights of
/// all neurons of the bunch.
#[derive(Clone, Debug)]
pub(super) struct Bunches {
    blocks: Vec<Block>,
    runs: Vec<Run>,
    rows: Vec<u32>,
    /// For each row where its first weight in the block lies among all.
    starts: Vec<u32>,
    /// Whether the other weights of a row in a block follow the first, or those of a bunch lie side by side.
    in_rows: bool,
    offsets: Offsets,
    weights: usize,
}

/// Weights whose inputs lie close together.
#[derive(Clone, Debug)]
struct Block {
    /// Added to all offsets.
    base: usize,
    /// One past the largest offset.
    end: usize,
    runs: Range<usize>,
}

/// Bunches of as many neurons, with as many offsets in one block.
#[derive(Clone, Copy, Debug)]
struct Run {
    bunches: u32,
    neurons: u32,
    count: u32,
    /// Where its rows, offsets and weights begin.
    row: usize,
    offset: usize,
    weight: usize,
}

/// Neurons of a bunch, and which of the weights of each are in a block.
type Span<'a> = (&'a Vec<usize>, Range<usize>);

/// All rows in bunches: those that follow each other and have the same offsets, but for empty ones between them, are cut into as few
/// as possible.
fn bunches_of<T>(rows: &[&[(usize, T)]]) -> Vec<Vec<usize>> {
    let same = |a: &usize, b: &usize| {
        let (a, b) = (rows[*a], rows[*b]);
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0)
    };
    let (empty, filled): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|row| rows[*row].is_empty());
    let groups = empty.chunks(rows.len().max(1)).chain(filled.chunk_by(same));
    groups.flat_map(|group| evenly(group, MOST).map(<[usize]>::to_vec)).collect()
}

/// Whether so many rows are like their neighbours that bunches of them are faster than single ones: on average more than two.
pub(super) fn are_worth_it<T>(rows: &[&[(usize, T)]]) -> bool {
    let bunches = bunches_of(rows);
    let filled = bunches.iter().filter(|bunch| !rows[bunch[0]].is_empty());
    let (count, neurons) = filled.fold((0, 0), |(count, neurons), bunch| (count + 1, neurons + bunch.len()));
    neurons > PAIR * count
}

/// Cuts a list into as few parts as possible, of `most` at most, which are about as long: even numbers, for which sums of products fill
/// registers, where there is a choice.
fn evenly<T>(mut list: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let parts = list.len().div_ceil(most);
        let even = list.len().div_ceil(parts.max(1)).next_multiple_of(2);
        let (part, rest) = list.split_at(even.min(list.len()));
        list = rest;
        (!part.is_empty()).then_some(part)
    })
}

impl Bunches {
    /// Packs `rows`: for each neuron its weights as (offset of the input run, something), offsets ascending and
    /// below `reach`. Also returns what `rows` has beside the offsets, in the kernels' order.
    pub fn new<T: Copy>(rows: &[&[(usize, T)]], block: usize, reach: usize) -> (Self, Vec<T>) {
        let bunches = bunches_of(rows);
        let mut this = Self {
            blocks: Vec::new(),
            runs: Vec::new(),
            rows: Vec::new(),
            starts: Vec::new(),
            in_rows: false,
            offsets: Offsets::new(block),
            weights: 0,
        };
        let (mut beside, mut next) = (Vec::new(), vec![0; bunches.len()]);
        for base in (0..reach.max(1)).step_by(block) {
            let mut spans: Vec<Span> = Vec::with_capacity(bunches.len());
            for (bunch, next) in bunches.iter().zip(&mut next) {
                let start = *next;
                *next += rows[bunch[0]][start..].iter().take_while(|w| w.0 < base + block).count();
                spans.push((bunch, start..*next));
            }
            // The first block also writes the bias, so every neuron takes part in it.
            spans.retain(|(_, span)| base == 0 || !span.is_empty());
            spans.sort_by_key(|(bunch, span)| (bunch.len(), span.len()));
            let first = this.runs.len();
            for same in spans.chunk_by(|a, b| (a.0.len(), a.1.len()) == (b.0.len(), b.1.len())) {
                this.push_run(rows, base, same, &mut beside);
            }
            let last =
                |(bunch, span): &Span| rows[bunch[0]][span.clone()].last().map_or(0, |w| w.0 + 1 - base);
            let end = spans.iter().map(last).max().unwrap_or(0);
            this.blocks.push(Block { base, end, runs: first..this.runs.len() });
        }
        this.weights = beside.len();
        (this, beside)
    }

    /// Adds bunches of as many neurons with as many weights in a block, and what they have beside the offsets.
    fn push_run<T: Copy>(&mut self, rows: &[&[(usize, T)]], base: usize, same: &[Span], beside: &mut Vec<T>) {
        let [bunches, neurons, count] = [same.len(), same[0].0.len(), same[0].1.len()].map(|n| n as u32);
        let (row, offset, weight) = (self.rows.len(), self.offsets.len(), beside.len());
        self.runs.push(Run { bunches, neurons, count, row, offset, weight });
        for (bunch, span) in same {
            self.rows.extend(bunch.iter().map(|neuron| *neuron as u32));
            let end = u32::try_from(beside.len() + bunch.len()).expect("fewer than 2^32 weights");
            self.starts.extend(end - neurons..end);
            for at in span.clone() {
                self.offsets.push(rows[bunch[0]][at].0 - base);
                beside.extend(bunch.iter().map(|neuron| rows[*neuron][at].1));
            }
        }
    }

    /// Where the first weight of each row and block lies if all lie row by row, as their `places` may say: `None` otherwise.
    pub fn starts_in_rows(&self, places: &[u32]) -> Option<Vec<u32>> {
        let (first, last) = (places.iter().min()?, places.iter().max()?);
        let are_all = ((last - first) as usize) < places.len() && places.len() == self.weights;
        let start = |start: &u32| places.get(*start as usize).map_or(0, |place| place - first);
        let starts: Vec<u32> = self.starts.iter().map(start).collect();
        let are_rows = self.rows_of_weights().all(|(row, weights)| {
            weights.zip(first + starts[row]..).all(|(weight, place)| places[weight] == place)
        });
        (are_all && are_rows).then_some(starts)
    }

    /// Values lie row by row from now on, as [`starts_in_rows`](Self::starts_in_rows) found them.
    pub fn read_rows(&mut self, starts: Vec<u32>) {
        (self.starts, self.in_rows) = (starts, true);
    }

    /// Numbers in the kernels' order, row by row.
    pub fn put_in_rows(&self, numbers: &[f32], rows: &mut [f32]) {
        for (row, weights) in self.rows_of_weights() {
            let to = &mut rows[self.starts[row] as usize..];
            to.iter_mut().zip(weights).for_each(|(to, weight)| *to = numbers[weight]);
        }
    }

    /// For each row and block its weights in the kernels' order.
    fn rows_of_weights(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = usize>)> {
        self.runs.iter().flat_map(|run| {
            let (neurons, count) = (run.neurons as usize, run.count as usize);
            (0..run.bunches as usize * neurons).map(move |row| {
                let first = run.weight + row / neurons * neurons * count + row % neurons;
                (run.row + row, (first..).step_by(neurons).take(count))
            })
        })
    }

    /// One past the largest offset of a block, and of one that is not there.
    pub fn end(&self, block: usize) -> usize {
        self.blocks.get(block).map_or(0, |block| block.end)
    }

    /// Weights of all neurons.
    pub fn weights(&self) -> usize {
        self.weights
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        self.offsets.bytes()
            + (self.rows.len() + self.starts.len()) * 4
            + self.runs.len() * size_of::<Run>()
            + self.blocks.len() * size_of::<Block>()
    }

    /// See `Reads::run`.
    ///
    /// # Safety
    /// The instruction set and the blocks are there; all runs of `vectors` registers lie in `x` and `out`; there are as many
    /// values as the streams say, and a bias for each neuron.
    pub unsafe fn run(
        &self,
        isa: Isa,
        vectors: usize,
        blocks: Range<usize>,
        weights: Weights,
        x: Input,
        out: Output,
    ) {
        // SAFETY: passed on from the caller.
        any_offsets!(&self.offsets, offsets => unsafe {
            by_isa!(isa: run(self, blocks, offsets, vectors, weights, x, out))
        });
    }

    /// See `Reads::spread`.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn spread(
        &self,
        isa: Isa,
        vectors: usize,
        block: usize,
        values: *const f32,
        y: Input,
        dx: Output,
    ) {
        // SAFETY: passed on from the caller.
        any_offsets!(&self.offsets, offsets => unsafe {
            by_isa!(isa: spread_block(self, block, offsets, vectors, values, y, dx))
        });
    }

    /// See `Reads::sample`.
    ///
    /// # Safety
    /// As [`run`](Self::run), with a sum for each value.
    pub unsafe fn sample(&self, isa: Isa, strips: Strips, x: Input, y: Input, sums: *mut f32) {
        // SAFETY: passed on from the caller.
        any_offsets!(&self.offsets, offsets => unsafe {
            by_isa!(isa: sample(self, offsets, strips, x, y, sums))
        });
    }

    /// The runs of a block, those with as many neurons together.
    fn runs(&self, block: &Block) -> impl Iterator<Item = &[Run]> {
        self.runs[block.runs.clone()].chunk_by(|a, b| a.neurons == b.neurons)
    }

    /// What a run reads.
    fn stream<O>(&self, run: &Run, offsets: &[O]) -> Stream<O> {
        Stream {
            rows: self.rows[run.row..].as_ptr(),
            starts: self.starts[run.row..].as_ptr(),
            step: if self.in_rows { 1 } else { run.neurons as usize },
            offsets: offsets[run.offset..].as_ptr(),
            bunches: run.bunches as usize,
            count: run.count as usize,
        }
    }
}

/// Calls a function with the kernels of an instruction set.
macro_rules! by_isa {
    ($isa:ident: $function:ident $arguments:tt) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => $function::<simd::x86::Avx512, _> $arguments,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $function::<simd::x86::Avx2, _> $arguments,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => $function::<simd::arm::Neon, _> $arguments,
            _ => $function::<simd::Portable, _> $arguments,
        }
    };
}
use by_isa;

/// The kernels of an instruction set, each a function of its own, so that its sums stay in registers.
trait Kernels: Simd {
    /// See [`sum`].
    ///
    /// # Safety
    /// As in [`run`].
    unsafe fn sum<O: Offset, const B: usize, const V: usize>(
        stream: Stream<O>,
        values: *const f32,
        start: Start,
        x: Input,
        out: Output,
    );

    /// See [`spread`].
    ///
    /// # Safety
    /// As in [`spread_block`].
    unsafe fn spread<O: Offset, const B: usize, const V: usize>(
        stream: Stream<O>,
        values: *const f32,
        y: Input,
        dx: Output,
    );

    /// See [`totals`].
    ///
    /// # Safety
    /// As in [`sample`].
    unsafe fn totals<O: Offset, const B: usize>(
        stream: Stream<O>,
        strips: Strips,
        x: Input,
        y: Input,
        sums: *mut f32,
    );
}

macro_rules! kernels {
    ($($(#[$attribute:meta])* $simd:ty $(, enable $features:literal)?;)*) => {
        $(
            $(#[$attribute])*
            impl Kernels for $simd {
                $(#[target_feature(enable = $features)])?
                unsafe fn sum<O: Offset, const B: usize, const V: usize>(
                    stream: Stream<O>,
                    values: *const f32,
                    start: Start,
                    x: Input,
                    out: Output,
                ) {
                    // SAFETY: passed on from the caller.
                    unsafe { sum::<Self, O, B, V>(stream, values, start, x, out) }
                }

                $(#[target_feature(enable = $features)])?
                unsafe fn spread<O: Offset, const B: usize, const V: usize>(
                    stream: Stream<O>,
                    values: *const f32,
                    y: Input,
                    dx: Output,
                ) {
                    // SAFETY: passed on from the caller.
                    unsafe { spread::<Self, O, B, V>(stream, values, y, dx) }
                }

                $(#[target_feature(enable = $features)])?
                unsafe fn totals<O: Offset, const B: usize>(
                    stream: Stream<O>,
                    strips: Strips,
                    x: Input,
                    y: Input,
                    sums: *mut f32,
                ) {
                    // SAFETY: passed on from the caller.
                    unsafe { totals::<Self, O, B>(stream, strips, x, y, sums) }
                }
            }
        )*
    };
}

kernels! {
    #[cfg(target_arch = "x86_64")]
    simd::x86::Avx512, enable "avx512f";
    #[cfg(target_arch = "x86_64")]
    simd::x86::Avx2, enable "avx2,fma";
    #[cfg(target_arch = "aarch64")]
    simd::arm::Neon;
    simd::Portable;
}

/// What the bunches of a run read: rows of all neurons, and `count` offsets for each bunch.
#[derive(Clone, Copy)]
struct Stream<O> {
    rows: *const u32,
    /// Where the first value of each row lies, and from one value to the next.
    starts: *const u32,
    step: usize,
    offsets: *const O,
    bunches: usize,
    count: usize,
}

/// What sums begin with.
#[derive(Clone, Copy)]
enum Start {
    Bias(Option<*const f32>),
    /// What is there.
    Sums,
}

/// Runs an expression with so many neurons of a bunch as a constant.
macro_rules! by_neurons {
    ($neurons:expr, $name:ident => $run:expr) => {
        by_neurons!(@match $neurons, $name => $run, [1 2 3 4 5 6])
    };
    (@match $neurons:expr, $name:ident => $run:expr, [$($n:literal)*]) => {
        match $neurons {
            $($n => {
                const $name: usize = $n;
                $run
            })*
            _ => unreachable!("as `bunches_of` cuts them"),
        }
    };
}

/// Registers of positions at most for which there is a kernel.
const WIDEST: usize = 6;

/// Registers of positions of `sum`: sums, the fewer factors of a product, and one of the others fit, with one to spare.
const fn summed<S: Simd>(neurons: usize) -> usize {
    let mut most = WIDEST;
    while most > 1 && neurons * most + (if neurons < most { neurons } else { most }) + 2 > S::REGISTERS {
        most -= 1;
    }
    most
}

/// Registers of positions of `spread`: gradients of the neurons, one by what they read and a value fit, with one to spare.
const fn spreadable<S: Simd>(neurons: usize) -> usize {
    match (S::REGISTERS - 2) / (neurons + 1) {
        0 => 1,
        most if most > WIDEST => WIDEST,
        most => most,
    }
}

/// Inputs of `total`, likewise; their sums with neurons are added up by fours.
const fn totalled(neurons: usize) -> usize {
    match neurons {
        1 => 8,
        2 => 6,
        3 => 4,
        _ => 2,
    }
}

/// Runs an expression for some of the registers at a time, about as many each and `$most` at most: `$part` of them as a constant,
/// from `$first` on.
macro_rules! in_parts {
    ($vectors:expr, $most:expr, $first:ident, $part:ident => $run:expr) => {{
        let mut $first = 0;
        while $first < $vectors {
            let left = $vectors - $first;
            let part = left.div_ceil(left.div_ceil($most));
            in_parts!(@match part, $most, $part => $run, [1 2 3 4 5 6]);
            $first += part;
        }
    }};
    (@match $vectors:ident, $most:expr, $part:ident => $run:expr, [$($n:literal)*]) => {
        match $vectors {
            $($n if $n <= $most => {
                const $part: usize = $n;
                $run
            })*
            _ => unreachable!("parts are smaller"),
        }
    };
}

/// # Safety
/// As in [`Bunches::run`].
unsafe fn run<S: Kernels, O: Offset>(
    bunches: &Bunches,
    blocks: Range<usize>,
    offsets: &[O],
    vectors: usize,
    (values, bias): Weights,
    (x, unit): Input,
    (out, stride): Output,
) {
    let origin = bunches.blocks[blocks.start].base;
    for index in blocks {
        let block = &bunches.blocks[index];
        let start = if index == 0 { Start::Bias(bias) } else { Start::Sums };
        // SAFETY: the streams hold what blocks and runs say, by construction, and the caller promises that all runs of positions
        // lie in `x` and `out`.
        unsafe {
            let x = x.add((block.base - origin) * unit);
            for runs in bunches.runs(block) {
                by_neurons!(runs[0].neurons, B => in_parts!(vectors, const { summed::<S>(B) }, first, V => {
                    let (x, out) = ((x.add(first * S::LANES), unit), (out.add(first * S::LANES), stride));
                    for run in runs {
                        S::sum::<O, B, V>(bunches.stream(run, offsets), values, start, x, out);
                    }
                }));
            }
        }
    }
}

/// The sums of `B` neurons at `V` registers of positions.
///
/// # Safety
/// As in [`run`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn sum<S: Simd, O: Offset, const B: usize, const V: usize>(
    stream: Stream<O>,
    values: *const f32,
    start: Start,
    (x, unit): Input,
    (out, stride): Output,
) {
    let (mut row, mut first, mut offset) = (stream.rows, stream.starts, stream.offsets);
    for _ in 0..stream.bunches {
        // SAFETY: as in `run`.
        unsafe {
            let rows: [usize; B] = std::array::from_fn(|b| *row.add(b) as usize);
            row = row.add(B);
            let mut sums = [[S::splat(0.0); V]; B];
            for b in 0..B {
                match start {
                    Start::Bias(bias) => sums[b] = [S::splat(bias.map_or(0.0, |bias| *bias.add(rows[b]))); V],
                    Start::Sums => {
                        for v in 0..V {
                            sums[b][v] = S::load(out.add(rows[b] * stride + v * S::LANES));
                        }
                    }
                }
            }
            let values = values_of::<B>(values, first);
            first = first.add(B);
            let mut at = 0;
            for _ in 0..stream.count {
                add_products(&mut sums, &values, at, x.add((*offset).into() as usize * unit));
                (offset, at) = (offset.add(1), at + stream.step);
            }
            for b in 0..B {
                for v in 0..V {
                    sums[b][v].store(out.add(rows[b] * stride + v * S::LANES));
                }
            }
        }
    }
}

/// Where the values of each of `B` neurons begin.
///
/// # Safety
/// So many starts are there.
#[inline(always)]
unsafe fn values_of<const B: usize>(values: *const f32, starts: *const u32) -> [*const f32; B] {
    // Rows without weights begin anywhere.
    // SAFETY: passed on from the caller.
    std::array::from_fn(|b| values.wrapping_add(unsafe { *starts.add(b) } as usize))
}

/// Adds the products of `B` values with `V` registers at `x`. The fewer of both stay in registers, the others pass by.
///
/// # Safety
/// As in [`sum`].
#[inline(always)]
unsafe fn add_products<S: Simd, const B: usize, const V: usize>(
    sums: &mut [[S; V]; B],
    values: &[*const f32; B],
    at: usize,
    x: *const f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        if B > V {
            let x: [S; V] = std::array::from_fn(|v| S::load(x.add(v * S::LANES)));
            for b in 0..B {
                let value = S::splat(*values[b].add(at));
                for v in 0..V {
                    sums[b][v] = sums[b][v].add_product(value, x[v]);
                }
            }
        } else {
            let values: [S; B] = std::array::from_fn(|b| S::splat(*values[b].add(at)));
            for v in 0..V {
                let x = S::load(x.add(v * S::LANES));
                for b in 0..B {
                    sums[b][v] = sums[b][v].add_product(values[b], x);
                }
            }
        }
    }
}

/// # Safety
/// As in [`Bunches::spread`].
unsafe fn spread_block<S: Kernels, O: Offset>(
    bunches: &Bunches,
    block: usize,
    offsets: &[O],
    vectors: usize,
    values: *const f32,
    (y, stride): Input,
    (dx, unit): Output,
) {
    // SAFETY: as in `run`.
    unsafe {
        for runs in bunches.runs(&bunches.blocks[block]) {
            by_neurons!(runs[0].neurons, B => in_parts!(vectors, const { spreadable::<S>(B) }, first, V => {
                let (y, dx) = ((y.add(first * S::LANES), stride), (dx.add(first * S::LANES), unit));
                for run in runs {
                    S::spread::<O, B, V>(bunches.stream(run, offsets), values, y, dx);
                }
            }));
        }
    }
}

/// Adds the products of the gradients of `B` neurons with their values to what they read, at `V` registers of positions.
///
/// # Safety
/// As in [`spread_block`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn spread<S: Simd, O: Offset, const B: usize, const V: usize>(
    stream: Stream<O>,
    values: *const f32,
    (y, stride): Input,
    (dx, unit): Output,
) {
    let (mut row, mut first, mut offset) = (stream.rows, stream.starts, stream.offsets);
    for _ in 0..stream.bunches {
        // SAFETY: as in `run`.
        unsafe {
            let y: [[S; V]; B] = std::array::from_fn(|b| {
                let y = y.add(*row.add(b) as usize * stride);
                std::array::from_fn(|v| S::load(y.add(v * S::LANES)))
            });
            let values = values_of::<B>(values, first);
            (row, first) = (row.add(B), first.add(B));
            let mut at = 0;
            for _ in 0..stream.count {
                let dx = dx.add((*offset).into() as usize * unit);
                let mut sums: [S; V] = std::array::from_fn(|v| S::load(dx.add(v * S::LANES)));
                for b in 0..B {
                    let value = S::splat(*values[b].add(at));
                    for v in 0..V {
                        sums[v] = sums[v].add_product(value, y[b][v]);
                    }
                }
                for v in 0..V {
                    sums[v].store(dx.add(v * S::LANES));
                }
                (offset, at) = (offset.add(1), at + stream.step);
            }
        }
    }
}

/// # Safety
/// As in [`Bunches::sample`].
unsafe fn sample<S: Kernels, O: Offset>(
    bunches: &Bunches,
    offsets: &[O],
    strips: Strips,
    (x, unit): Input,
    y: Input,
    sums: *mut f32,
) {
    for block in &bunches.blocks {
        for run in &bunches.runs[block.runs.clone()] {
            let stream = bunches.stream(run, offsets);
            // SAFETY: as in `run`.
            unsafe {
                let x = (x.add(block.base * unit), unit);
                by_neurons!(run.neurons, B => S::totals::<O, B>(stream, strips, x, y, sums.add(run.weight)));
            }
        }
    }
}

/// The gradients by the values of `B` neurons, for as many inputs at a time as registers can hold sums.
///
/// # Safety
/// As in [`sample`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn totals<S: Simd, O: Offset, const B: usize>(
    stream: Stream<O>,
    strips: Strips,
    (x, unit): Input,
    (y, stride): Input,
    mut sum: *mut f32,
) {
    let (mut row, mut offset) = (stream.rows, stream.offsets);
    for _ in 0..stream.bunches {
        // SAFETY: as in `run`.
        unsafe {
            let y: [*const f32; B] = std::array::from_fn(|b| y.add(*row.add(b) as usize * stride));
            row = row.add(B);
            let mut left = stream.count;
            macro_rules! inputs {
                ($inputs:literal) => {
                    while left >= $inputs {
                        let x = std::array::from_fn(|i| x.add((*offset.add(i)).into() as usize * unit));
                        total::<S, B, $inputs>(strips, x, y, sum);
                        (offset, sum) = (offset.add($inputs), sum.add($inputs * B));
                        left -= $inputs;
                    }
                };
            }
            match const { totalled(B) } {
                8 => inputs!(8),
                6 => inputs!(6),
                4 => inputs!(4),
                _ => inputs!(2),
            }
            inputs!(1);
        }
    }
}

/// Adds the products of `V` registers of each input and neuron, as far behind the first ones as `at` says.
///
/// # Safety
/// As in [`sample`].
#[inline(always)]
unsafe fn add_at<S: Simd, const B: usize, const I: usize, const V: usize>(
    sums: &mut [[S; B]; I],
    x: &[*const f32; I],
    y: &[*const f32; B],
    at: [usize; 2],
) {
    for v in 0..V {
        // SAFETY: passed on from the caller.
        unsafe {
            let x: [S; I] = std::array::from_fn(|i| S::load(x[i].add(at[0] + v * S::LANES)));
            for b in 0..B {
                let y = S::load(y[b].add(at[1] + v * S::LANES));
                for i in 0..I {
                    sums[i][b] = sums[i][b].add_product(x[i], y);
                }
            }
        }
    }
}

/// The gradients by the values of `B` neurons for `I` inputs.
///
/// # Safety
/// As in [`sample`].
#[inline(always)]
unsafe fn total<S: Simd, const B: usize, const I: usize>(
    strips: Strips,
    x: [*const f32; I],
    y: [*const f32; B],
    sum: *mut f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); B]; I];
        let mut at = [0, 0];
        for _ in 0..strips.count {
            match strips.vectors {
                2 => add_at::<S, B, I, 2>(&mut sums, &x, &y, at),
                vectors => {
                    for v in 0..vectors {
                        add_at::<S, B, I, 1>(&mut sums, &x, &y, at.map(|at| at + v * S::LANES));
                    }
                }
            }
            at = [at[0] + strips.x, at[1] + strips.y];
        }
        let (fours, rest) = sums.as_flattened().as_chunks::<4>();
        for (i, four) in fours.iter().enumerate() {
            S::add_totals(*four, sum.add(i * 4));
        }
        let sum = sum.add(fours.len() * 4);
        for (i, rest) in rest.iter().enumerate() {
            *sum.add(i) += rest.total();
        }
    }
}
