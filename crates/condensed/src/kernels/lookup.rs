//! The kernel for single vectors on machines that can look values up in registers.
//!
//! A sparse dot product reads its inputs one by one; two loads a weight bound it. Here one lane of a
//! register is one neuron, and the inputs are cut into blocks of two or four registers: the inputs of a whole
//! register of weights come from a table lookup (`vpermt2ps`) in them, and index and value from one load each.
//! The price is padding: in each block all neurons of a group get as many weights as the one with most,
//! at random masks about twice as many at 90 % sparsity, and still fewer loads.
//!
//! Within a group, blocks are ordered by that number, so that loops have constant lengths and their
//! branches are predicted.

use super::{Isa, simd};
use crate::CondensedWeight;
use crate::buffer::Buffer;
use simd::Table;
use std::ops::Range;

/// Weights of a linear layer in groups of one register of neurons.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    isa: Isa,
    /// Registers of one block of inputs.
    registers: usize,
    inputs: usize,
    groups: Vec<Group>,
    /// For each run, blocks of inputs, by their first input.
    blocks: Vec<u32>,
    /// For each step, one place in the block per lane.
    places: Vec<u8>,
    /// For each step, one value per lane; 0 where the lane has no weight left.
    values: Buffer,
}

#[derive(Clone, Debug)]
struct Group {
    /// (steps per block, blocks)
    runs: Vec<(u32, u32)>,
    first_block: usize,
    first_step: usize,
}

/// Measured: `docs/performance.md`.
const STEP: f64 = 3.0;

impl Lookup {
    /// Whether the instruction set has table lookups.
    pub fn supported(isa: Isa) -> bool {
        matches!(isa, Isa::Avx512 | Isa::Avx2)
    }

    /// Packs `weight` if the instruction set has lookups and padding does not cost more than they save:
    /// a step of all lanes costs about as much as [`STEP`] weights one by one. So the streams have at most
    /// `lanes / STEP` places for each weight.
    pub fn new_if_faster(isa: Isa, weight: &CondensedWeight) -> Option<Self> {
        if !Self::supported(isa) {
            return None;
        }
        // Counted before anything is packed: at a fan-in of 1 there may be a step for each weight.
        let (lanes, block) = (isa.lanes(), registers(isa, weight) * isa.lanes());
        let mut steps = 0;
        for rows in groups(weight, lanes) {
            cells(weight, rows, block, |_, cell| steps += most(cell));
        }
        (steps as f64 * STEP < weight.values().len() as f64).then(|| Self::new(isa, weight))
    }

    /// Packs the active neurons of `weight`, in blocks that suit its density.
    fn new(isa: Isa, weight: &CondensedWeight) -> Self {
        assert!(Self::supported(isa) && isa.available());
        let lanes = isa.lanes();
        let registers = registers(isa, weight);
        let block = registers * lanes;
        let mut this = Self {
            isa,
            registers,
            inputs: weight.inputs(),
            groups: Vec::new(),
            blocks: Vec::new(),
            places: Vec::new(),
            values: Buffer::default(),
        };
        let mut values = Vec::new();
        for rows in groups(weight, lanes) {
            let mut filled: Vec<(usize, Vec<Range<usize>>)> = Vec::new();
            cells(weight, rows, block, |b, cell| filled.push((b, cell.to_vec())));
            filled.sort_by_key(|(_, cell)| most(cell));
            let mut group =
                Group { runs: Vec::new(), first_block: this.blocks.len(), first_step: values.len() / lanes };
            for same in filled.chunk_by(|a, b| most(&a.1) == most(&b.1)) {
                let count = most(&same[0].1);
                group.runs.push((count as u32, same.len() as u32));
                for (b, cell) in same {
                    this.blocks.push((b * block) as u32);
                    for step in 0..count {
                        for lane in 0..lanes {
                            let at = cell.get(lane).and_then(|span| span.clone().nth(step));
                            let weight = |at| (weight.pattern().input(at) % block, weight.values()[at]);
                            let (place, value) = at.map_or((0, 0.0), weight);
                            this.places.push(place as u8);
                            values.push(value);
                        }
                    }
                }
            }
            this.groups.push(group);
        }
        this.values = Buffer::from(&values[..]);
        this
    }

    /// Floats that an input vector must have: a multiple of the block.
    pub fn padded_inputs(&self) -> usize {
        self.inputs.next_multiple_of(self.registers * self.isa.lanes())
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        let runs: usize = self.groups.iter().map(|g| 16 + g.runs.len() * 8).sum();
        self.places.len() * 5 + self.blocks.len() * 4 + runs
    }

    /// `Σ value · x[input]` for the active neurons of one group, zeros in unused lanes. `x` must be finite: padding
    /// multiplies some inputs by 0.
    ///
    /// # Panics
    /// If `x` is not [`padded_inputs`](Self::padded_inputs) long or `out` not one register.
    pub fn run(&self, group: usize, x: &[f32], out: &mut [f32]) {
        assert!(x.len() >= self.padded_inputs());
        assert_eq!(out.len(), self.isa.lanes());
        let group = &self.groups[group];
        // SAFETY: the instruction set was checked by `new`, which also made the streams: blocks start at
        // multiples of their size below `padded_inputs`, and runs count blocks and steps there are.
        unsafe {
            match (self.isa, self.registers) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512, 2) => avx512::<2>(self, group, x, out),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512, 4) => avx512::<4>(self, group, x, out),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, 2) => avx2(self, group, x, out),
                _ => unreachable!("refused by `new`"),
            }
        }
    }
}

/// The active neurons, one register of them after the other.
fn groups(weight: &CondensedWeight, lanes: usize) -> impl Iterator<Item = Range<usize>> {
    let active = weight.active().len();
    (0..active).step_by(lanes).map(move |first| first..(first + lanes).min(active))
}

/// Calls `run(block, cell)` for each block of inputs of which some of the `rows` have weights, in order. A cell has a
/// range of weights for each row. The time is in proportion to the weights, not to the inputs.
fn cells(
    weight: &CondensedWeight,
    rows: Range<usize>,
    block: usize,
    mut run: impl FnMut(usize, &[Range<usize>]),
) {
    let block_of = |at: usize| weight.pattern().input(at) / block;
    let mut left: Vec<Range<usize>> = rows.map(|row| weight.row_range(row)).collect();
    let mut cell = Vec::with_capacity(left.len());
    let next = |span: &Range<usize>| (!span.is_empty()).then(|| block_of(span.start));
    while let Some(first) = left.iter().filter_map(next).min() {
        cell.clear();
        for span in &mut left {
            let start = span.start;
            while next(span) == Some(first) {
                span.start += 1;
            }
            cell.push(start..span.start);
        }
        run(first, &cell);
    }
}

/// Steps of a cell: weights of the row that has most.
fn most(cell: &[Range<usize>]) -> usize {
    cell.iter().map(Range::len).max().unwrap_or(0)
}

/// Larger blocks need less padding, and a lookup twice as many instructions: better where weights are few.
fn registers(isa: Isa, weight: &CondensedWeight) -> usize {
    let cells = weight.active().len() * weight.inputs().div_ceil(2 * isa.lanes());
    if isa == Isa::Avx512 && weight.values().len() < 2 * cells { 4 } else { 2 }
}

/// # Safety
/// As in [`Lookup::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(lookup: &Lookup, group: &Group, x: &[f32], out: &mut [f32])
where
    simd::x86::Avx512: Table<R>,
{
    // SAFETY: passed on from the caller.
    unsafe { dot_group::<simd::x86::Avx512, R>(lookup, group, x, out) }
}

/// # Safety
/// As in [`Lookup::run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(lookup: &Lookup, group: &Group, x: &[f32], out: &mut [f32]) {
    // SAFETY: passed on from the caller.
    unsafe { dot_group::<simd::x86::Avx2, 2>(lookup, group, x, out) }
}

/// Where a group's streams have been read to.
#[derive(Clone, Copy)]
struct Cursor<S> {
    block: *const u32,
    place: *const u8,
    value: *const f32,
    /// Several sums, so that additions need not wait for each other.
    sums: [S; 4],
}

/// # Safety
/// As in [`Lookup::run`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn dot_group<S: Table<R>, const R: usize>(lookup: &Lookup, group: &Group, x: &[f32], out: &mut [f32]) {
    // SAFETY: the streams hold what the group says, by construction.
    unsafe {
        let mut cursor = Cursor {
            block: lookup.blocks.as_ptr().add(group.first_block),
            place: lookup.places.as_ptr().add(group.first_step * S::LANES),
            value: lookup.values.as_ptr().add(group.first_step * S::LANES),
            sums: [S::splat(0.0); 4],
        };
        macro_rules! unrolled {
            ($steps:expr, $blocks:expr, $($n:literal)*) => {
                match $steps {
                    $($n => run::<S, R, $n>(&mut cursor, $n, $blocks, x.as_ptr()),)*
                    steps => run::<S, R, 0>(&mut cursor, steps, $blocks, x.as_ptr()),
                }
            };
        }
        for &(steps, blocks) in &group.runs {
            unrolled!(steps, blocks, 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        let [a, b, c, d] = cursor.sums;
        a.add(b).add(c.add(d)).store(out.as_mut_ptr());
    }
}

/// Blocks with the same number of steps; `STEPS` is that number, or 0 for any.
///
/// # Safety
/// As in [`Lookup::run`].
#[inline(always)]
unsafe fn run<S: Table<R>, const R: usize, const STEPS: usize>(
    cursor: &mut Cursor<S>,
    steps: u32,
    blocks: u32,
    x: *const f32,
) {
    let steps = if STEPS == 0 { steps as usize } else { STEPS };
    let Cursor { mut block, mut place, mut value, mut sums } = *cursor;
    for _ in 0..blocks {
        // SAFETY: the streams are long enough and blocks lie in `x`, by construction.
        unsafe {
            let x = x.add(*block as usize);
            let table = S::table(x);
            for step in 0..steps {
                let inputs = S::lookup(table, place.add(step * S::LANES));
                sums[step % 4] = sums[step % 4].add_product(inputs, S::load(value.add(step * S::LANES)));
            }
            block = block.add(1);
            place = place.add(steps * S::LANES);
            value = value.add(steps * S::LANES);
        }
    }
    *cursor = Cursor { block, place, value, sums };
}
