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
        _ => blocks((from, from_at), (to, to_at), rows, columns, |from, row, to, column| {
            for (c, at) in column.into_iter().enumerate() {
                to[at..at + 8].iter_mut().zip(row).for_each(|(to, row)| *to = from[row + c]);
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
    blocks(from, to, rows, columns, |from, row, to, column| {
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        // SAFETY: eight floats lie in the slices at each of these places, as `blocks` says; the machine has AVX2.
        unsafe { block(row.map(|at| from.add(at)), column.map(|at| to.add(at))) };
    });
}

/// Rows whose places are worked out and checked at a time.
const PANEL: usize = 64;

/// Calls `run` for all blocks of 8 × 8, of which the last may overlap those before, with the places in `from` where eight floats
/// of its rows begin, and those in `to` of its columns. They lie in the slices, whatever the functions return.
#[inline(always)]
fn blocks(
    (from, from_at): (&[f32], impl Fn(usize) -> usize),
    (to, to_at): (&mut [f32], impl Fn(usize) -> usize),
    rows: usize,
    columns: usize,
    run: impl Fn(&[f32], [usize; 8], &mut [f32], [usize; 8]),
) {
    for panel in (0..rows).step_by(PANEL) {
        let (panel, end) = (panel.min(rows - 8), (panel + PANEL).min(rows));
        let mut places = [0; PANEL];
        let places = &mut places[..end - panel];
        let last = from.len().checked_sub(columns).expect("input too short");
        for (place, row) in places.iter_mut().zip(panel..) {
            *place = from_at(row);
            assert!(*place <= last, "input too short");
        }
        let last = to.len().checked_sub(end).expect("output too short");
        let eight = |column: usize| -> [usize; 8] {
            std::array::from_fn(|i| {
                let at = to_at(column + i);
                assert!(at <= last, "output too short");
                at + panel
            })
        };
        // Sixteen columns at a time, a cache line of each row: rows whose distance is a large power of two would
        // drive each other out of the cache before the second half of a line is read.
        for line in (0..columns).step_by(16) {
            let halves = [line, line + 8].map(|column| column.min(columns - 8));
            let halves = halves.map(|column| (column, eight(column)));
            let halves = &halves[..(columns - line).div_ceil(8).min(2)];
            for first in (0..places.len()).step_by(8).map(|row| row.min(places.len() - 8)) {
                let rows: &[usize; 8] = places[first..].first_chunk().expect("eight rows at least");
                for &(column, at) in halves {
                    run(from, rows.map(|row| row + column), to, at.map(|at| at + first));
                }
            }
        }
    }
}

/// A block of 8 × 8 in registers.
///
/// # Safety
/// Eight floats are readable at each of `from` and writable at each of `to`; the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn block(from: [*const f32; 8], to: [*mut f32; 8]) {
    use std::arch::x86_64::*;
    let mut row = [_mm256_setzero_ps(); 8];
    for (row, from) in row.iter_mut().zip(from) {
        // SAFETY: promised by the caller.
        *row = unsafe { _mm256_loadu_ps(from) };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row has its own place, and each column, with gaps between them.
    fn check(isa: Isa, rows: usize, columns: usize) {
        let (from_stride, to_stride) = (columns + 3, rows + 2);
        let from: Vec<f32> = (0..rows * from_stride).map(|i| i as f32).collect();
        let mut to = vec![-1.0; columns * to_stride];
        transpose(isa, (&from, |r| r * from_stride), (&mut to, |c| c * to_stride), rows, columns);
        for (i, value) in to.iter().enumerate() {
            let (column, row) = (i / to_stride, i % to_stride);
            let want = if row < rows { (row * from_stride + column) as f32 } else { -1.0 };
            assert_eq!(*value, want, "{isa:?}, {rows} × {columns}: row {row}, column {column}");
        }
    }

    #[test]
    fn every_size_around_blocks_lines_and_panels() {
        for isa in Isa::all() {
            for rows in [1, 7, 8, 9, 15, 63, 64, 65, 71, 72, 73, 130] {
                for columns in [1, 7, 8, 9, 15, 16, 17, 24, 25, 31, 33] {
                    check(isa, rows, columns);
                }
            }
        }
    }

    #[test]
    fn what_lies_outside_is_neither_read_nor_written() {
        let panics = |from: usize, to: usize, last: usize| {
            let (from, mut to) = (vec![1.0; from], vec![0.0; to]);
            let run = std::panic::AssertUnwindSafe(|| {
                // The last row, or the last column, lies elsewhere.
                let from_at = |r| if r == 8 { last } else { r * 9 };
                transpose(Isa::best(), (&from, from_at), (&mut to, |c| c * 9), 9, 9);
            });
            std::panic::catch_unwind(run).is_err()
        };
        assert!(!panics(81, 81, 72));
        assert!(panics(80, 81, 72) && panics(81, 80, 72) && panics(81, 81, 73) && panics(81, 81, usize::MAX));
        assert!(panics(8, 81, 72) && panics(81, 8, 72));
    }
}
