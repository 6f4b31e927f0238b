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

use super::{Isa, simd};
use simd::Simd;
use std::ops::Range;

/// Weights of some neurons, in the order in which the kernel reads them.
///
/// Offsets are counted in units, whose size in floats is given when the kernel runs.
#[derive(Clone, Debug)]
pub(crate) struct Tiles {
    bias: Vec<f32>,
    blocks: Vec<Block>,
    runs: Vec<Run>,
    rows: Vec<u32>,
    offsets: Offsets,
    values: Vec<f32>,
    /// One past the last unit of the input that position 0 reads.
    reach: usize,
}

/// Weights whose inputs lie close together.
#[derive(Clone, Debug)]
struct Block {
    /// Added to all offsets.
    base: usize,
    runs: Range<usize>,
}

/// Rows with the same number of weights in one block.
#[derive(Clone, Copy, Debug)]
struct Run {
    rows: u32,
    weights: u32,
}

#[derive(Clone, Debug)]
enum Offsets {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Offsets {
    fn len(&self) -> usize {
        match self {
            Self::U8(offsets) => offsets.len(),
            Self::U16(offsets) => offsets.len(),
            Self::U32(offsets) => offsets.len(),
        }
    }
}

/// Registers of a tile that [`Tiles::sample`] takes at most: they and eight sums are all that most machines have.
pub(crate) const SAMPLED: usize = 8;

/// Weights whose values change, as in training.
#[derive(Clone, Debug)]
pub(crate) struct Changing {
    tiles: Tiles,
    /// For each value of the tiles its place among the layer's.
    places: Vec<u32>,
}

impl Changing {
    /// Packs `rows`: for each neuron its weights as (offset of the input run, place of its value), offsets ascending.
    pub fn new(rows: &[Vec<(usize, u32)>], block: usize) -> Self {
        let (tiles, places) = Tiles::arrange(rows, block);
        let values = vec![0.0; places.len()];
        Self { tiles: Tiles { values, ..tiles }, places }
    }

    /// Takes the layer's values, and the biases of these neurons if they have any.
    pub fn set(&mut self, values: &[f32], bias: Option<&[f32]>) {
        for (value, place) in self.tiles.values.iter_mut().zip(&self.places) {
            *value = values[*place as usize];
        }
        match bias {
            Some(bias) => self.tiles.bias.copy_from_slice(bias),
            None => self.tiles.bias.fill(0.0),
        }
    }

    /// To run them.
    pub fn tiles(&self) -> &Tiles {
        &self.tiles
    }

    /// Weights.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts what [`Tiles::sample`] has summed in the places of the layer's values, of which `gradient` begins with `first`.
    pub fn place(&self, sums: &[f32], first: usize, gradient: &mut [f32]) {
        for (sum, place) in sums.iter().zip(&self.places) {
            gradient[*place as usize - first] = *sum;
        }
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        self.tiles.bytes() + self.places.len() * 4
    }
}

impl Tiles {
    /// Packs `rows`: for each neuron its weights as (offset of the input run, value), offsets ascending.
    /// Inputs whose offsets share `offset / block` are one block.
    pub fn new(rows: &[Vec<(usize, f32)>], bias: &[f32], block: usize) -> Self {
        assert_eq!(rows.len(), bias.len());
        let (tiles, values) = Self::arrange(rows, block);
        Self { values, bias: bias.to_vec(), ..tiles }
    }

    /// The same without values and with biases of 0, and in the order of values what `rows` has in their place.
    fn arrange<T: Copy>(rows: &[Vec<(usize, T)>], block: usize) -> (Self, Vec<T>) {
        let reach = rows.iter().flatten().map(|w| w.0 + 1).max().unwrap_or(0);
        let mut places = Vec::new();
        let mut this = Self {
            bias: vec![0.0; rows.len()],
            blocks: Vec::new(),
            runs: Vec::new(),
            rows: Vec::new(),
            offsets: match block {
                0..=0x100 => Offsets::U8(Vec::new()),
                0x101..=0x1_0000 => Offsets::U16(Vec::new()),
                _ => Offsets::U32(Vec::new()),
            },
            values: Vec::new(),
            reach,
        };
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
            let first = this.runs.len();
            for same in order.chunk_by(|&a, &b| spans[a].len() == spans[b].len()) {
                this.runs.push(Run { rows: same.len() as u32, weights: spans[same[0]].len() as u32 });
                for &n in same {
                    this.rows.push(n as u32);
                    for &(offset, place) in &rows[n][spans[n].clone()] {
                        match &mut this.offsets {
                            Offsets::U8(o) => o.push((offset - base) as u8),
                            Offsets::U16(o) => o.push((offset - base) as u16),
                            Offsets::U32(o) => o.push((offset - base) as u32),
                        }
                        places.push(place);
                    }
                }
            }
            if base == 0 || this.runs.len() > first {
                this.blocks.push(Block { base, runs: first..this.runs.len() });
            }
        }
        (this, places)
    }

    /// Neurons.
    pub fn neurons(&self) -> usize {
        self.bias.len()
    }

    /// Bytes of all streams.
    pub fn bytes(&self) -> usize {
        let offsets = match &self.offsets {
            Offsets::U8(o) => o.len(),
            Offsets::U16(o) => o.len() * 2,
            Offsets::U32(o) => o.len() * 4,
        };
        self.values.len() * 4 + offsets + (self.rows.len() + self.bias.len()) * 4 + self.runs.len() * 8
    }

    /// The sums of products that gradients of values are, for one tile: `sums[i] += Σ y[n · stride + p] · x[offset · unit + p]`
    /// over `p < width` for each weight `i` of neuron `n`, in the order of values. `width` is `vectors` registers.
    ///
    /// # Panics
    /// If a slice is too short, or the instruction set is not there.
    pub fn sample(
        &self,
        isa: Isa,
        vectors: usize,
        (x, unit): (&[f32], usize),
        (y, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        let width = vectors * isa.lanes();
        let neurons = self.bias.len();
        assert!(isa.available() && vectors >= 1);
        assert!(self.reach == 0 || x.len() >= (self.reach - 1) * unit + width, "input too short");
        assert!(neurons == 0 || y.len() >= (neurons - 1) * stride + width, "gradient too short");
        assert_eq!(sums.len(), self.offsets.len());
        let (x, y, sums) = ((x.as_ptr(), unit), (y.as_ptr(), stride), sums.as_mut_ptr());
        // SAFETY: the instruction set is there; every row is below `bias.len()`, every offset plus its block's base below
        // `reach`, so all runs of `width` floats lie in `x` and `y`; there are as many sums as offsets.
        unsafe {
            match &self.offsets {
                Offsets::U8(offsets) => dispatch_sample(self, offsets, isa, vectors, x, y, sums),
                Offsets::U16(offsets) => dispatch_sample(self, offsets, isa, vectors, x, y, sums),
                Offsets::U32(offsets) => dispatch_sample(self, offsets, isa, vectors, x, y, sums),
            }
        }
    }

    /// One tile: `out[n · width + p] = bias[n] + Σ value · x[offset · unit + p]` for `p < width`, where
    /// `width` is `vectors` registers.
    ///
    /// # Panics
    /// If `x` or `out` is too short, or the instruction set is not there.
    pub fn run(&self, isa: Isa, vectors: usize, x: &[f32], unit: usize, out: &mut [f32]) {
        let width = vectors * isa.lanes();
        assert!(isa.available() && vectors >= 1);
        assert!(self.reach == 0 || x.len() >= (self.reach - 1) * unit + width, "input too short");
        assert!(out.len() >= self.bias.len() * width, "output too short");
        let (x, out) = (x.as_ptr(), out.as_mut_ptr());
        // SAFETY: the instruction set is there; every row is below `bias.len()`, every offset plus its
        // block's base below `reach`, so all runs of `width` floats lie in `x` and `out`.
        unsafe {
            match &self.offsets {
                Offsets::U8(offsets) => dispatch(self, offsets, isa, vectors, x, unit, out),
                Offsets::U16(offsets) => dispatch(self, offsets, isa, vectors, x, unit, out),
                Offsets::U32(offsets) => dispatch(self, offsets, isa, vectors, x, unit, out),
            }
        }
    }
}

/// # Safety
/// As in [`Tiles::run`].
unsafe fn dispatch<O: Offset>(
    tiles: &Tiles,
    offsets: &[O],
    isa: Isa,
    vectors: usize,
    x: *const f32,
    unit: usize,
    out: *mut f32,
) {
    macro_rules! by_vectors {
        ($kernel:ident: $($n:literal)*) => {
            match vectors {
                // SAFETY: passed on from the caller.
                $($n => unsafe { $kernel::<O, $n>(tiles, offsets, x, unit, out) },)*
                _ => panic!("no kernel for tiles of {vectors} registers"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_vectors!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_vectors!(avx2: 1 2 3 4 5 6 7 8 9 10 11 12),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => by_vectors!(neon: 1 2 3 4 5 6 7 8),
        _ => by_vectors!(portable: 1 2 3 4),
    }
}

/// # Safety
/// As in [`Tiles::sample`].
unsafe fn dispatch_sample<O: Offset>(
    tiles: &Tiles,
    offsets: &[O],
    isa: Isa,
    vectors: usize,
    x: (*const f32, usize),
    y: (*const f32, usize),
    sums: *mut f32,
) {
    macro_rules! by_vectors {
        ($kernel:ident: $($n:literal)*) => {
            match vectors {
                // SAFETY: passed on from the caller.
                $($n => unsafe { $kernel::<O, $n>(tiles, offsets, x, y, sums) },)*
                _ => panic!("no kernel for samples of {vectors} registers"),
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_vectors!(sample_avx512: 1 2 3 4 5 6 7 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_vectors!(sample_avx2: 1 2 3 4 5 6 7 8),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => by_vectors!(sample_neon: 1 2 3 4 5 6 7 8),
        _ => by_vectors!(sample_portable: 1 2 3 4 5 6 7 8),
    }
}

macro_rules! kernels {
    ($($(#[$attribute:meta])* $name:ident $sample:ident: $simd:ty;)*) => {
        $(
            /// # Safety
            /// As in [`Tiles::sample`].
            $(#[$attribute])*
            unsafe fn $sample<O: Offset, const V: usize>(
                tiles: &Tiles,
                offsets: &[O],
                x: (*const f32, usize),
                y: (*const f32, usize),
                sums: *mut f32,
            ) {
                // SAFETY: passed on from the caller.
                unsafe { sample::<$simd, O, V>(tiles, offsets, x, y, sums) }
            }

            /// # Safety
            /// As in [`Tiles::run`].
            $(#[$attribute])*
            unsafe fn $name<O: Offset, const V: usize>(
                tiles: &Tiles,
                offsets: &[O],
                x: *const f32,
                unit: usize,
                out: *mut f32,
            ) {
                // SAFETY: passed on from the caller.
                unsafe { tile::<$simd, O, V>(tiles, offsets, x, unit, out) }
            }
        )*
    };
}

kernels! {
    #[cfg(target_arch = "x86_64")] #[target_feature(enable = "avx512f")] avx512 sample_avx512: simd::x86::Avx512;
    #[cfg(target_arch = "x86_64")] #[target_feature(enable = "avx2,fma")] avx2 sample_avx2: simd::x86::Avx2;
    #[cfg(target_arch = "aarch64")] neon sample_neon: simd::arm::Neon;
    portable sample_portable: simd::Portable;
}

trait Offset: Copy + Into<u32> {
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
/// As in [`Tiles::run`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn tile<S: Simd, O: Offset, const V: usize>(
    tiles: &Tiles,
    offsets: &[O],
    x: *const f32,
    unit: usize,
    out: *mut f32,
) {
    let (mut row, mut offset, mut value) = (tiles.rows.as_ptr(), offsets.as_ptr(), tiles.values.as_ptr());
    for (index, block) in tiles.blocks.iter().enumerate() {
        // SAFETY: the streams hold what blocks and runs say, by construction, and the caller promises
        // that all runs of positions lie in `x` and `out`.
        unsafe {
            let x = x.add(block.base * unit);
            for run in &tiles.runs[block.runs.clone()] {
                for _ in 0..run.rows {
                    let neuron = *row as usize;
                    row = row.add(1);
                    let out = out.add(neuron * V * S::LANES);
                    let mut sums: [S; V] = if index == 0 {
                        [S::splat(*tiles.bias.as_ptr().add(neuron)); V]
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
/// As in [`Tiles::sample`], in a function that enables the instruction set of `S`.
#[inline(always)]
unsafe fn sample<S: Simd, O: Offset, const V: usize>(
    tiles: &Tiles,
    offsets: &[O],
    (x, unit): (*const f32, usize),
    (y, stride): (*const f32, usize),
    mut sum: *mut f32,
) {
    let (mut row, mut offset) = (tiles.rows.as_ptr(), offsets.as_ptr());
    for block in &tiles.blocks {
        // SAFETY: as in `tile`.
        unsafe {
            let x = x.add(block.base * unit);
            for run in &tiles.runs[block.runs.clone()] {
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
                    for _ in 0..run.weights % 4 {
                        *sum += products(&y, x.add((*offset).into() as usize * unit)).total();
                        (sum, offset) = (sum.add(1), offset.add(1));
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
