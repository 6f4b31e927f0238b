//! The kernel for single vectors: one dot product per neuron.

use super::Isa;
use crate::{CondensedWeight, Indices};
use std::ops::Range;

/// `out[i] = bias[a] + Σ value · x[index]` for the active neurons `a` in `rows`.
///
/// # Panics
/// If `x` does not have the weight's inputs, or `out` a place for each row.
pub(crate) fn dot_rows(isa: Isa, weight: &CondensedWeight, rows: Range<usize>, x: &[f32], out: &mut [f32]) {
    assert!(isa.available());
    assert_eq!(x.len(), weight.inputs());
    assert_eq!(out.len(), rows.len());
    assert!(rows.end <= weight.active().len());
    match weight.indices() {
        Indices::U8(indices) => dispatch(isa, weight, indices, rows, x, out),
        Indices::U16(indices) => dispatch(isa, weight, indices, rows, x, out),
        Indices::U32(indices) => dispatch(isa, weight, indices, rows, x, out),
    }
}

fn dispatch<I: Index>(
    isa: Isa,
    weight: &CondensedWeight,
    indices: &[I],
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    // SAFETY: `CondensedWeight` promises indices below its inputs, which is the length of `x`; the
    // instruction set was checked.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => fused(weight, indices, rows, x, out),
            _ => plain(weight, indices, rows, x, out),
        }
    }
}

/// # Safety
/// All indices are below `x.len()`, and the machine has FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fused<I: Index>(
    weight: &CondensedWeight,
    indices: &[I],
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    for (row, out) in rows.zip(out) {
        let (values, indices) =
            (&weight.values()[weight.row_range(row)], &indices[weight.pattern().index_range(row)]);
        // SAFETY: passed on from the caller.
        *out = unsafe { dot(values, indices, x, f32::mul_add) };
    }
}

/// # Safety
/// All indices are below `x.len()`.
unsafe fn plain<I: Index>(
    weight: &CondensedWeight,
    indices: &[I],
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    for (row, out) in rows.zip(out) {
        let (values, indices) =
            (&weight.values()[weight.row_range(row)], &indices[weight.pattern().index_range(row)]);
        // SAFETY: passed on from the caller.
        *out = unsafe { dot(values, indices, x, |a, b, c| a * b + c) };
    }
}

trait Index: Copy {
    fn get(self) -> usize;
}

impl Index for u8 {
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

impl Index for u16 {
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

impl Index for u32 {
    #[inline(always)]
    fn get(self) -> usize {
        self as usize
    }
}

/// Eight sums, so that additions need not wait for each other.
///
/// # Safety
/// All indices are below `x.len()`.
#[inline(always)]
unsafe fn dot<I: Index>(values: &[f32], indices: &[I], x: &[f32], fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (values, values_rest) = values.as_chunks::<8>();
    let (indices, indices_rest) = indices.as_chunks::<8>();
    for (values, indices) in values.iter().zip(indices) {
        for i in 0..8 {
            // SAFETY: the caller promises the index.
            sums[i] = fma(values[i], unsafe { *x.get_unchecked(indices[i].get()) }, sums[i]);
        }
    }
    for i in 0..values_rest.len() {
        // SAFETY: as above.
        sums[i] = fma(values_rest[i], unsafe { *x.get_unchecked(indices_rest[i].get()) }, sums[i]);
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}
