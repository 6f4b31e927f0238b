//! Rows to columns, for batches of vectors.

use super::Isa;

/// `to[c · to_stride + r] = from[r · from_stride + c]` for `rows` rows and `columns` columns.
///
/// # Panics
/// If a slice is too short.
pub(crate) fn transpose_part(
    isa: Isa,
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
    rows: usize,
    columns: usize,
) {
    transpose(isa, (from, |r| r * from_stride), (to, |c| c * to_stride), rows, columns);
}

/// `to[to_at(c) + r] = from[from_at(r) + c]` for `rows` rows and `columns` columns.
///
/// # Panics
/// If a slice is too short.
pub(crate) fn transpose(
    isa: Isa,
    (from, from_at): (&[f32], impl Fn(usize) -> usize),
    (to, to_at): (&mut [f32], impl Fn(usize) -> usize),
    rows: usize,
    columns: usize,
) {
    assert!(isa.available());
    if rows < 8 || columns < 8 {
        for c in 0..columns {
            let to = &mut to[to_at(c)..][..rows];
            to.iter_mut().enumerate().for_each(|(r, to)| *to = from[from_at(r) + c]);
        }
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has AVX2.
        Isa::Avx512 | Isa::Avx2 => unsafe { avx2((from, from_at), (to, to_at), rows, columns) },
        _ => blocks((from, from_at), (to, to_at), rows, columns, |from, to, at| {
            for (c, at) in at.into_iter().enumerate() {
                to[at..at + 8].iter_mut().zip(from).for_each(|(to, row)| *to = row[c]);
            }
        }),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(
    from: (&[f32], impl Fn(usize) -> usize),
    to: (&mut [f32], impl Fn(usize) -> usize),
    rows: usize,
    columns: usize,
) {
    blocks(from, to, rows, columns, |from, to, at| {
        assert!(at.iter().all(|at| at + 8 <= to.len()), "output too short");
        let (to, mut columns) = (to.as_mut_ptr(), [std::ptr::null_mut(); 8]);
        for (column, at) in columns.iter_mut().zip(at) {
            // SAFETY: lies in `to`, as asserted.
            *column = unsafe { to.add(at) };
        }
        // SAFETY: eight floats are borrowed at each of `from`, and lie in `to` at each of `columns`; the machine has AVX2.
        unsafe { block(from, columns) };
    });
}

/// Calls `run` with eight rows, from some column on, and the places of their columns: for all blocks of 8 × 8, of which the
/// last may overlap those before.
#[inline(always)]
fn blocks(
    (from, from_at): (&[f32], impl Fn(usize) -> usize),
    (to, to_at): (&mut [f32], impl Fn(usize) -> usize),
    rows: usize,
    columns: usize,
    run: impl Fn([&[f32; 8]; 8], &mut [f32], [usize; 8]),
) {
    // Sixteen columns at a time, a cache line of each row: rows whose distance is a large power of two would
    // drive each other out of the cache before the second half of a line is read.
    let mut line = 0;
    while line < columns {
        let mut row = 0;
        while row < rows {
            let first_row = row.min(rows - 8);
            let mut column = line;
            while column < columns.min(line + 16) {
                let first = column.min(columns - 8);
                let mut block = [&[0.0; 8]; 8];
                let mut at = [0; 8];
                for i in 0..8 {
                    block[i] = from[from_at(first_row + i) + first..].first_chunk().expect("input too short");
                    at[i] = to_at(first + i) + first_row;
                }
                run(block, to, at);
                column += 8;
            }
            row += 8;
        }
        line += 16;
    }
}

/// A block of 8 × 8 in registers.
///
/// # Safety
/// Eight floats are writable at each of `to`; the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn block(from: [&[f32; 8]; 8], to: [*mut f32; 8]) {
    use std::arch::x86_64::*;
    let mut row = [_mm256_setzero_ps(); 8];
    for (row, from) in row.iter_mut().zip(from) {
        // SAFETY: eight floats.
        *row = unsafe { _mm256_loadu_ps(from.as_ptr()) };
    }
    // Pairs of rows, then fours, then all eight.
    let low = |i: usize| _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
    let high = |i: usize| _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
    let four = |first: usize| {
        let (a, b) = (low(first), low(first + 1));
        let (c, d) = (high(first), high(first + 1));
        [
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
            _mm256_shuffle_ps::<0x44>(c, d),
            _mm256_shuffle_ps::<0xee>(c, d),
        ]
    };
    let (top, bottom) = (four(0), four(2));
    for i in 0..4 {
        let first = _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]);
        let second = _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]);
        // SAFETY: promised by the caller.
        unsafe {
            _mm256_storeu_ps(to[i], first);
            _mm256_storeu_ps(to[i + 4], second);
        }
    }
}
