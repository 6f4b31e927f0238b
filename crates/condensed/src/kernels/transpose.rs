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
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_stride + columns, "input too short");
    assert!(to.len() >= (columns - 1) * to_stride + rows, "output too short");
    assert!(isa.available());
    let (whole_rows, whole_columns) = (rows - rows % 8, columns - columns % 8);
    // Sixteen columns at a time, a cache line of each row: rows whose distance is a large power of two would
    // drive each other out of the cache before the second half of a line is read.
    for line in (0..whole_columns).step_by(16) {
        for r in (0..whole_rows).step_by(8) {
            for c in (line..whole_columns.min(line + 16)).step_by(8) {
                let (from, to) = (&from[r * from_stride + c..], &mut to[c * to_stride + r..]);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: the block of 8 × 8 lies in both slices, as asserted, and the machine has AVX2.
                    Isa::Avx512 | Isa::Avx2 => unsafe {
                        block(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride);
                    },
                    _ => copy(from, from_stride, to, to_stride, 8, 8),
                }
            }
        }
    }
    // What is left: the last columns, and the last rows of the others.
    if whole_columns < columns {
        let (from, to) = (&from[whole_columns..], &mut to[whole_columns * to_stride..]);
        copy(from, from_stride, to, to_stride, rows, columns - whole_columns);
    }
    if whole_rows < rows {
        let (from, to) = (&from[whole_rows * from_stride..], &mut to[whole_rows..]);
        copy(from, from_stride, to, to_stride, rows - whole_rows, whole_columns);
    }
}

fn copy(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize, rows: usize, columns: usize) {
    for c in 0..columns {
        for r in 0..rows {
            to[c * to_stride + r] = from[r * from_stride + c];
        }
    }
}

/// A block of 8 × 8 in registers.
///
/// # Safety
/// Eight rows of eight floats are readable at `from` and writable at `to`; the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: promised by the caller.
    let row: [__m256; 8] = std::array::from_fn(|r| unsafe { _mm256_loadu_ps(from.add(r * from_stride)) });
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
            _mm256_storeu_ps(to.add(i * to_stride), first);
            _mm256_storeu_ps(to.add((i + 4) * to_stride), second);
        }
    }
}
