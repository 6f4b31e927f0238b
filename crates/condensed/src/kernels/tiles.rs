//! The kernel for everything but single vectors: linear layers on batches or tokens, and convolutions.
//!
//! All of them are one sum. With the input laid out so that each (input, tap) is a contiguous run of
//! positions, an active weight multiplies such a run by a number: `out[n][p] += w · x[offset + p]` for
//! every position `p`. A *tile* of positions is held in registers while the weights of a neuron pass by:
//! one broadcast and one fused multiply-add per register and weight.
//!
//! The inputs are cut into *blocks* whose part of the tile stays in the first-level cache. Within a block
//! neurons are ordered by how many weights they have there, so that the inner loop's length, and with it
//! the branch at its end, is the same many times in a row.
//!
//! Neurons that read the same inputs are worked on in bunches, if most do (`bunches.rs`).

use super::bunches::{Bunches, are_worth_it};
use super::{Isa, simd};
use simd::Simd;
use std::ops::Range;

/// Which inputs the weights of some neurons read, in the order in which the kernel reads them.
///
/// Offsets are counted in units, whose size in floats is given when the kernel runs.
#[derive(Clone, Debug)]
pub(crate) struct Reads {
    neurons: usize,
    /// Units of a block.
    block: usize,
    /// One past the last unit of the input that position 0 reads.
    reach: usize,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// Each neuron by itself.
    Singles(Singles),
    /// Neurons that read the same together.
    Bunches(Bunches),
}

/// What each neuron reads.
#[derive(Clone, Debug)]
struct Singles {
    blocks: Vec<Block>,
    runs: Vec<Run>,
    rows: Vec<u32>,
    offsets: Offsets,
}

/// Weights of some neurons: what they read, and their values in that order.
#[derive(Clone, Debug)]
pub(crate) struct Tiles {
    reads: Reads,
    values: Vec<f32>,
    bias: Vec<f32>,
}

/// Weights whose inputs lie close together.
#[derive(Clone, Debug)]
struct Block {
    /// Added to all offsets.
    base: usize,
    runs: Range<usize>,
    /// Where its rows and its weights begin.
    row: usize,
    weight: usize,
}

/// Rows with the same number of weights in one block.
#[derive(Clone, Copy, Debug)]
struct Run {
    rows: u32,
    weights: u32,
}

/// Runs an expression on the offsets, whatever their type.
macro_rules! any_offsets {
    ($offsets:expr, $name:ident => $run:expr) => {
        match $offsets {
            Offsets::U8($name) => $run,
            Offsets::U16($name) => $run,
            Offsets::U32($name) => $run,
        }
    };
}
pub(super) use any_offsets;

/// Offsets within a block, in the smallest type that holds them all.
#[derive(Clone, Debug)]
pub(super) enum Offsets {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Offsets {
    /// None yet, for blocks of so many units.
    pub fn new(block: usize) -> Self {
        match block {
            0..=0x100 => Self::U8(Vec::new()),
            0x101..=0x1_0000 => Self::U16(Vec::new()),
            _ => Self::U32(Vec::new()),
        }
    }

    /// Adds one that is below the size of a block.
    pub fn push(&mut self, offset: usize) {
        match self {
            Self::U8(o) => o.push(offset as u8),
            Self::U16(o) => o.push(offset as u16),
            Self::U32(o) => o.push(offset as u32),
        }
    }

    pub fn len(&self) -> usize {
        any_offsets!(self, offsets => offsets.len())
    }

    pub fn bytes(&self) -> usize {
        any_offsets!(self, offsets => size_of_val(offsets.as_slice()))
    }
}

/// Tiles of the same positions of images that do not lie side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strips {
    pub count: usize,
    /// Registers of each.
    pub vectors: usize,
    /// Floats from one to the next, of what neurons read and of their gradients.
    pub x: usize,
    pub y: usize,
}

/// Registers of a tile that [`Reads::sample`] takes at most: they and eight sums are all that most machines have.
pub(crate) const SAMPLED: usize = 8;

impl Singles {
    /// Packs `rows`, whose offsets are below `reach`.
    fn new<T: Copy>(rows: &[&[(usize, T)]], block: usize, reach: usize) -> (Self, Vec<T>) {
        let mut beside = Vec::new();
        let mut this =
            Self { blocks: Vec::new(), runs: Vec::new(), rows: Vec::new(), offsets: Offsets::new(block) };
        let mut next = vec![0; rows.len()];
        for base in (0..reach.max(1)).step_by(block) {
            let spans: Vec<Range<usize>> = rows
                .iter()
                .zip(&mut next)
                .map(|(row, next)| {
                    let start = *next;
                    *next += row[start..].iter().take_while(|w| w.0 < base + block).count();
                    start..*next
                })
                .collect();
            let mut order: Vec<usize> = (0..rows.len()).collect();
            // The first block also writes the bias, so every neuron takes part in it.
            order.retain(|&n| base == 0 || !spans[n].is_empty());
            order.sort_by_key(|&n| spans[n].len());
            let (first, row, weight) = (this.runs.len(), this.rows.len(), beside.len());
            for same in order.chunk_by(|&a, &b| spans[a].len() == spans[b].len()) {
                this.runs.push(Run { rows: same.len() as u32, weights: spans[same[0]].len() as u32 });
                for &n in same {
                    this.rows.push(n as u32);
                    for &(offset, thing) in &rows[n][spans[n].clone()] {
                        this.offsets.push(offset - base);
                        beside.push(thing);
                    }
                }
            }
            this.blocks.push(Block { base, runs: first..this.runs.len(), row, weight });
        }
        (this, beside)
    }

    /// Bytes of all streams.
    fn bytes(&self) -> usize {
        self.offsets.bytes()
            + self.rows.len() * 4
            + self.runs.len() * size_of::<Run>()
            + self.blocks.len() * size_of::<Block>()
    }
}

/// Whether so many of these rows are like their neighbours that they are better worked on together.
pub(crate) fn are_shared<T>(rows: &[impl AsRef<[(usize, T)]>]) -> bool {
    let rows: Vec<&[(usize, T)]> = rows.iter().map(AsRef::as_ref).collect();
    are_worth_it(&rows)
}

impl Reads {
    /// Packs `rows`: for each neuron its weights as (offset of the input run, something), offsets ascending. Inputs whose
    /// offsets share `offset / block` are one block. Neurons that read the same are worked on together if `are_shared`: that is
    /// asked for those of all parts of a layer, as sums of both forms have another order.
    ///
    /// Also returns what `rows` has beside the offsets, in the kernel's order.
    pub fn new<T: Copy>(rows: &[impl AsRef<[(usize, T)]>], block: usize, are_shared: bool) -> (Self, Vec<T>) {
        let rows: Vec<&[(usize, T)]> = rows.iter().map(AsRef::as_ref).collect();
        let reach = rows.iter().filter_map(|row| row.last()).map(|w| w.0 + 1).max().unwrap_or(0);
        let (form, beside) = if are_shared {
            let (bunches, beside) = Bunches::new(&rows, block, reach);
            (Form::Bunches(bunches), beside)
        } else {
            let (singles, beside) = Singles::new(&rows, block, reach);
            (Form::Singles(singles), beside)
        };
        (Self { neurons: rows.len(), block, reach, form }, beside)
    }

    /// Whether neurons that read the same are worked on together. Others have no [`spread`](Self::spread).
    pub fn are_shared(&self) -> bool {
        matches!(self.form, Form::Bunches(_))
    }

    /// Where the weights of each neuron begin if the kernels could read them row by row, as their `places` may say.
    pub fn starts_in_rows(&self, places: &[u32]) -> Option<Vec<u32>> {
        match &self.form {
            Form::Bunches(bunches) => bunches.starts_in_rows(places),
            Form::Singles(_) => None,
        }
    }

    /// Values lie row by row from now on, as [`starts_in_rows`](Self::starts_in_rows) found them.
    pub fn read_rows(&mut self, starts: Vec<u32>) {
        if let Form::Bunches(bunches) = &mut self.form {
            bunches.read_rows(starts);
        }
    }

    /// Numbers in the kernels' order, as [`sample`](Self::sample) has them, row by row.
    pub fn put_in_rows(&self, numbers: &[f32], rows: &mut [f32]) {
        if let Form::Bunches(bunches) = &self.form {
            bunches.put_in_rows(numbers, rows);
        }
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Singles(singles) => singles.bytes(),
            Form::Bunches(bunches) => bunches.bytes(),
        }
    }

    /// Blocks of inputs.
    pub fn blocks(&self) -> usize {
        self.reach.max(1).div_ceil(self.block)
    }

    fn weights(&self) -> usize {
        match &self.form {
            Form::Singles(singles) => singles.offsets.len(),
            Form::Bunches(bunches) => bunches.weights(),
        }
    }

    /// One tile: `out[n · stride + p] = bias[n] + Σ value · x[offset · unit + p]` for `p < width`, where `width` is `vectors`
    /// registers. Values are in the kernel's order; without `bias` it is 0.
    ///
    /// # Panics
    /// If a slice is too short, or the instruction set is not there.
    pub fn run(
        &self,
        isa: Isa,
        vectors: usize,
        weights: (&[f32], Option<&[f32]>),
        x: (&[f32], usize),
        out: (&mut [f32], usize),
    ) {
        self.run_blocks(isa, vectors, 0..self.blocks(), weights, x, out);
    }

    /// What [`run`](Self::run) does for some blocks of inputs, of which `x` has those from their first on. The first block
    /// of all writes `out`, the others add to it.
    fn run_blocks(
        &self,
        isa: Isa,
        vectors: usize,
        blocks: Range<usize>,
        (values, bias): (&[f32], Option<&[f32]>),
        (x, unit): (&[f32], usize),
        (out, stride): (&mut [f32], usize),
    ) {
        let width = vectors * isa.lanes();
        let origin = blocks.start * self.block;
        let reach = self.reach.min(blocks.end * self.block);
        assert!(isa.available() && vectors >= 1);
        assert!(reach <= origin || x.len() >= (reach - 1 - origin) * unit + width, "input too short");
        assert!(self.neurons == 0 || out.len() >= (self.neurons - 1) * stride + width, "output too short");
        assert!(bias.is_none_or(|bias| bias.len() == self.neurons), "bias");
        assert!(blocks.start < blocks.end && blocks.end <= self.blocks(), "blocks");
        assert_eq!(values.len(), self.weights(), "values");
        let weights = (values.as_ptr(), bias.map(<[f32]>::as_ptr));
        let (x, out) = ((x.as_ptr(), unit), (out.as_mut_ptr(), stride));
        // SAFETY: the instruction set is there, the blocks are; every row is below `neurons`, every offset plus its block's base
        // below `reach`, so all runs of `width` floats lie in `x` and `out`; there are as many values as the streams say, and as
        // many biases as neurons.
        unsafe {
            match &self.form {
                Form::Singles(singles) => any_offsets!(&singles.offsets, offsets => {
                    dispatch(singles, blocks, offsets, isa, vectors, weights, x, out)
                }),
                Form::Bunches(bunches) => bunches.run(isa, vectors, blocks, weights, x, out),
            }
        }
    }

    /// The sums of products that gradients of values are, for one tile of each strip:
    /// `sums[i] += Σ y[n · stride + p] · x[offset · unit + p]` over `p < width` for each weight `i` of neuron `n`, in the kernel's
    /// order. `width` is as many registers as strips have.
    ///
    /// # Panics
    /// If a slice is too short, or the instruction set is not there.
    pub fn sample(
        &self,
        isa: Isa,
        strips: Strips,
        (x, unit): (&[f32], usize),
        (y, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        let (width, last) = (strips.vectors * isa.lanes(), strips.count - 1);
        assert!(isa.available() && strips.vectors >= 1);
        let reach = last * strips.x + self.reach.saturating_sub(1) * unit + width;
        assert!(self.reach == 0 || x.len() >= reach, "input too short");
        let reach = last * strips.y + self.neurons.saturating_sub(1) * stride + width;
        assert!(self.neurons == 0 || y.len() >= reach, "gradient too short");
        assert_eq!(sums.len(), self.weights(), "sums");
        let (x, y, sums) = (x.as_ptr(), y.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the instruction set is there; every row is below `neurons`, every offset plus its block's base below `reach`,
        // so all runs of `width` floats lie in `x` and `y`, in each strip; there are as many sums as the streams say.
        unsafe {
            match &self.form {
                Form::Singles(singles) => any_offsets!(&singles.offsets, offsets => {
                    for strip in 0..strips.count {
                        let (x, y) = ((x.add(strip * strips.x), unit), (y.add(strip * strips.y), stride));
                        dispatch_sample(singles, offsets, isa, strips.vectors, x, y, sums);
                    }
                }),
                Form::Bunches(bunches) => bunches.sample(isa, strips, (x, unit), (y, stride), sums),
            }
        }
    }

    /// The gradient by the inputs of one block, which `dx` has alone, for one tile:
    /// `dx[offset · unit + p] += Σ value · y[n · stride + p]` for `p < width`. Does nothing if there is no such block.
    ///
    /// # Panics
    /// If a slice is too short, the instruction set is not there, or neurons are not [shared](Self::are_shared).
    pub fn spread(
        &self,
        isa: Isa,
        vectors: usize,
        block: usize,
        values: &[f32],
        (y, stride): (&[f32], usize),
        (dx, unit): (&mut [f32], usize),
    ) {
        let Form::Bunches(bunches) = &self.form else { panic!("neurons by themselves") };
        let (width, end) = (vectors * isa.lanes(), bunches.end(block));
        if end == 0 {
            return;
        }
        assert!(isa.available() && vectors >= 1);
        assert!(dx.len() >= (end - 1) * unit + width, "gradient by the input too short");
        assert!(self.neurons == 0 || y.len() >= (self.neurons - 1) * stride + width, "gradient too short");
        assert_eq!(values.len(), self.weights(), "values");
        // SAFETY: the instruction set is there, and the block, as it has offsets, which are below `end`; every row is below
        // `neurons`, so all runs of `width` floats lie in `dx` and `y`; there are as many values as the streams say.
        unsafe {
            bunches.spread(
                isa,
                vectors,
                block,
                values.as_ptr(),
                (y.as_ptr(), stride),
                (dx.as_mut_ptr(), unit),
            )
        }
    }
}

impl Tiles {
    /// Packs `rows`: for each neuron its weights as (offset of the input run, value), offsets ascending.
    /// `block` and `are_shared` as for [`Reads::new`].
    pub fn new(rows: &[Vec<(usize, f32)>], bias: &[f32], block: usize, are_shared: bool) -> Self {
        assert_eq!(rows.len(), bias.len());
        let (reads, values) = Reads::new(rows, block, are_shared);
        Self { reads, values, bias: bias.to_vec() }
    }

    /// Neurons.
    pub fn neurons(&self) -> usize {
        self.bias.len()
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        self.reads.bytes() + (self.values.len() + self.bias.len()) * 4
    }

    /// One tile: `out[n · width + p] = bias[n] + Σ value · x[offset · unit + p]` for `p < width`, where
    /// `width` is `vectors` registers.
    ///
    /// # Panics
    /// If `x` or `out` is too short, or the instruction set is not there.
    pub fn run(&self, isa: Isa, vectors: usize, x: &[f32], unit: usize, out: &mut [f32]) {
        let out = (out, vectors * isa.lanes());
        self.reads.run(isa, vectors, (&self.values, Some(&self.bias)), (x, unit), out);
    }

    /// The same for the inputs of one block, which `x` has alone, registers of one next to those of the other. To be called for
    /// one block after the other; there is nothing to do for one that no neuron reads.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_block(&self, isa: Isa, vectors: usize, block: usize, x: &[f32], out: &mut [f32]) {
        let width = vectors * isa.lanes();
        if block < self.reads.blocks() {
            let weights = (&self.values[..], Some(&self.bias[..]));
            self.reads.run_blocks(isa, vectors, block..block + 1, weights, (x, width), (out, width));
        }
    }
}

/// Values and biases of the weights.
pub(super) type Weights = (*const f32, Option<*const f32>);

/// Numbers, and floats from one to the next.
pub(super) type Input = (*const f32, usize);
pub(super) type Output = (*mut f32, usize);

/// Calls the kernel for so many registers.
macro_rules! by_vectors {
    ($vectors:ident: $isa:ident::$kernel:ident [$($n:literal)*] $arguments:tt) => {
        match $vectors {
            // SAFETY: passed on from the caller.
            $($n => unsafe { $isa::$kernel::<O, $n> $arguments },)*
            _ => panic!("no kernel for tiles of {} registers", $vectors),
        }
    };
}

/// # Safety
/// As in [`Reads::run_blocks`].
#[expect(clippy::too_many_arguments, reason = "one call, made in `run_blocks`")]
unsafe fn dispatch<O: Offset>(
    singles: &Singles,
    blocks: Range<usize>,
    offsets: &[O],
    isa: Isa,
    vectors: usize,
    weights: Weights,
    x: Input,
    out: Output,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            by_vectors!(vectors: avx512::run [1 2 3 4 5 6 7 8 9 10 11 12 13 14] (singles, blocks, offsets, weights, x, out))
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            by_vectors!(vectors: avx2::run [1 2 3 4 5 6 7 8 9 10 11 12] (singles, blocks, offsets, weights, x, out))
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            by_vectors!(vectors: neon::run [1 2 3 4 5 6 7 8] (singles, blocks, offsets, weights, x, out))
        }
        _ => by_vectors!(vectors: portable::run [1 2 3 4] (singles, blocks, offsets, weights, x, out)),
    }
}

/// # Safety
/// As in [`Reads::sample`].
unsafe fn dispatch_sample<O: Offset>(
    singles: &Singles,
    offsets: &[O],
    isa: Isa,
    vectors: usize,
    x: Input,
    y: Input,
    sums: *mut f32,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_vectors!(vectors: avx512::sample [1 2 3 4 5 6 7 8] (singles, offsets, x, y, sums)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_vectors!(vectors: avx2::sample [1 2 3 4 5 6 7 8] (singles, offsets, x, y, sums)),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => by_vectors!(vectors: neon::sample [1 2 3 4 5 6 7 8] (singles, offsets, x, y, sums)),
        _ => by_vectors!(vectors: portable::sample [1 2 3 4 5 6 7 8] (singles, offsets, x, y, sums)),
    }
}

/// The kernels of an instruction set, in a module of its name.
macro_rules! kernels {
    ($($(#[$attribute:meta])* mod $name:ident: $simd:ty $(, enable $features:literal)?;)*) => {
        $(
            $(#[$attribute])*
            mod $name {
                use super::*;

                /// # Safety
                /// As in [`Reads::run_blocks`].
                $(#[target_feature(enable = $features)])?
                pub unsafe fn run<O: Offset, const V: usize>(
                    singles: &Singles,
                    blocks: Range<usize>,
                    offsets: &[O],
                    weights: Weights,
                    x: Input,
                    out: Output,
                ) {
                    // SAFETY: passed on from the caller.
                    unsafe { tile::<$simd, O, V>(singles, blocks, offsets, weights, x, out) }
                }

                /// # Safety
                /// As in [`Reads::sample`].
                $(#[target_feature(enable = $features)])?
                pub unsafe fn sample<O: Offset, const V: usize>(
                    singles: &Singles,
                    offsets: &[O],
                    x: Input,
                    y: Input,
                    sums: *mut f32,
                ) {
                    // SAFETY: passed on from the caller.
                    unsafe { super::sample::<$simd, O, V>(singles, offsets, x, y, sums) }
                }
            }
        )*
    };
}

kernels! {
    #[cfg(target_arch = "x86_64")]
    mod avx512: simd::x86::Avx512, enable "avx512f";
    #[cfg(target_arch = "x86_64")]
    mod avx2: simd::x86::Avx2, enable "avx2,fma";
    #[cfg(target_arch = "aarch64")]
    mod neon: simd::arm::Neon;
    mod portable: simd::Portable;
}

pub(super) trait Offset: Copy + Into<u32> {
    /// Four offsets by as few loads as possible.
    ///
    /// # Safety
    /// Four are readable at `from`.
    unsafe fn four(from: *const Self) -> [usize; 4];
}

impl Offset for u8 {
    #[inline(always)]
    unsafe fn four(from: *const Self) -> [usize; 4] {
        // SAFETY: passed on from the caller.
        let all = u32::from_le(unsafe { from.cast::<u32>().read_unaligned() });
        std::array::from_fn(|i| (all >> (8 * i)) as u8 as usize)
    }
}

impl Offset for u16 {
    #[inline(always)]
    unsafe fn four(from: *const Self) -> [usize; 4] {
        // SAFETY: passed on from the caller.
        let all = u64::from_le(unsafe { from.cast::<u64>().read_unaligned() });
        std::array::from_fn(|i| (all >> (16 * i)) as u16 as usize)
    }
}

impl Offset for u32 {
    #[inline(always)]
    unsafe fn four(from: *const Self) -> [usize; 4] {
        // SAFETY: passed on from the caller.
        unsafe { from.cast::<[u32; 4]>().read_unaligned() }.map(|o| o as usize)
    }
}

/// # Safety
/// As in [`Reads::run_blocks`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn tile<S: Simd, O: Offset, const V: usize>(
    singles: &Singles,
    blocks: Range<usize>,
    offsets: &[O],
    (value, bias): Weights,
    (x, unit): Input,
    (out, stride): Output,
) {
    let first = &singles.blocks[blocks.start];
    let (origin, mut row) = (first.base, singles.rows[first.row..].as_ptr());
    let mut offset = offsets[first.weight..].as_ptr();
    // SAFETY: there are as many values as offsets.
    let mut value = unsafe { value.add(first.weight) };
    for index in blocks {
        let block = &singles.blocks[index];
        // SAFETY: the streams hold what blocks and runs say, by construction, and the caller promises
        // that all runs of positions lie in `x` and `out`.
        unsafe {
            let x = x.add((block.base - origin) * unit);
            for run in &singles.runs[block.runs.clone()] {
                for _ in 0..run.rows {
                    let neuron = *row as usize;
                    row = row.add(1);
                    let out = out.add(neuron * stride);
                    let mut sums: [S; V] = if index == 0 {
                        [S::splat(bias.map_or(0.0, |bias| *bias.add(neuron))); V]
                    } else {
                        std::array::from_fn(|v| S::load(out.add(v * S::LANES)))
                    };
                    // One or two registers would wait for the sum of the weight before.
                    let mut others = [S::splat(0.0); V];
                    // Loads are what bounds this loop, so values and offsets are loaded by fours.
                    for _ in 0..run.weights / 4 {
                        let (weights, offsets) = (S::splat_four(value), O::four(offset));
                        for (i, (weight, offset)) in weights.into_iter().zip(offsets).enumerate() {
                            let x = x.add(offset * unit);
                            let sums = if V <= 2 && i % 2 == 1 { &mut others } else { &mut sums };
                            for (v, sum) in sums.iter_mut().enumerate() {
                                *sum = sum.add_product(weight, S::load(x.add(v * S::LANES)));
                            }
                        }
                        value = value.add(4);
                        offset = offset.add(4);
                    }
                    for _ in 0..run.weights % 4 {
                        let weight = S::splat(*value);
                        let x = x.add((*offset).into() as usize * unit);
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = sum.add_product(weight, S::load(x.add(v * S::LANES)));
                        }
                        value = value.add(1);
                        offset = offset.add(1);
                    }
                    for (v, (sum, other)) in sums.into_iter().zip(others).enumerate() {
                        let sum = if V <= 2 { sum.add(other) } else { sum };
                        sum.store(out.add(v * S::LANES));
                    }
                }
            }
        }
    }
}

/// # Safety
/// As in [`Reads::sample`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn sample<S: Simd, O: Offset, const V: usize>(
    singles: &Singles,
    offsets: &[O],
    (x, unit): Input,
    (y, stride): Input,
    mut sum: *mut f32,
) {
    let (mut row, mut offset) = (singles.rows.as_ptr(), offsets.as_ptr());
    for block in &singles.blocks {
        // SAFETY: as in `tile`.
        unsafe {
            let x = x.add(block.base * unit);
            for run in &singles.runs[block.runs.clone()] {
                for _ in 0..run.rows {
                    let y = y.add(*row as usize * stride);
                    row = row.add(1);
                    if run.weights == 0 {
                        continue;
                    }
                    let y: [S; V] = std::array::from_fn(|v| S::load(y.add(v * S::LANES)));
                    for _ in 0..run.weights / 4 {
                        let [a, b, c, d] = O::four(offset);
                        let four = [
                            products(&y, x.add(a * unit)),
                            products(&y, x.add(b * unit)),
                            products(&y, x.add(c * unit)),
                            products(&y, x.add(d * unit)),
                        ];
                        S::add_totals(four, sum);
                        (sum, offset) = (sum.add(4), offset.add(4));
                    }
                    let rest = run.weights as usize % 4;
                    if rest > 0 {
                        // One sum over all lanes of four registers costs as much as one of one.
                        let mut four = [S::splat(0.0); 4];
                        for products_of in &mut four[..rest] {
                            *products_of = products(&y, x.add((*offset).into() as usize * unit));
                            offset = offset.add(1);
                        }
                        let mut totals = [0.0; 4];
                        S::add_totals(four, totals.as_mut_ptr());
                        for total in &totals[..rest] {
                            *sum += total;
                            sum = sum.add(1);
                        }
                    }
                }
            }
        }
    }
}

/// The products of registers with as many at `x`, summed lane by lane; in two sums, so that they need not wait for each other.
///
/// # Safety
/// As in [`sample`].
#[inline(always)]
unsafe fn products<S: Simd, const V: usize>(y: &[S; V], x: *const f32) -> S {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut sums = [S::splat(0.0); 2];
        for (v, y) in y.iter().enumerate() {
            sums[v % 2] = sums[v % 2].add_product(*y, S::load(x.add(v * S::LANES)));
        }
        sums[0].add(sums[1])
    }
}
