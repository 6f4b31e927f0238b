//! What networks do between their sparse layers, on planes `[features][stride]`.
//!
//! NaN and infinities go through as in PyTorch. `f32::max` would turn NaN into a number, so it is not used on data.

use crate::kernels::SharedPlanes;
use crate::tuning;
use rayon::prelude::*;

/// Defines a function that is compiled for each x86-64 level and chosen when it runs, so that the compiler
/// vectorises plain loops with the registers the machine has. `pulp` in its place was not shown to be as fast.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? { body($($arg),*) }
                match crate::Isa::best() {
                    // SAFETY: the instruction set was found on this machine.
                    crate::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    crate::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// `least` if `x` is less. NaN stays.
#[inline(always)]
pub(crate) fn at_least(x: f32, least: f32) -> f32 {
    if x < least { least } else { x }
}

/// The larger one, or NaN if there is one.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if (b > a) | b.is_nan() { b } else { a }
}

/// `e^x` to about 2 units in the last place, for `x ≤ 88`; 0 below -87, where it is hardly a normal number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 2^n · e^r with |r| ≤ ln 2 / 2; the shift rounds to whole numbers.
    const SHIFT: f32 = 12_582_912.0;
    let n = x * std::f32::consts::LOG2_E + SHIFT;
    let bits = n.to_bits() << 23;
    let n = n - SHIFT;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let e = f32::from_bits(e.to_bits().wrapping_add(bits));
    // The last is 0, or NaN if `x` is.
    if x >= -87.0 { e } else { at_least(x, 0.0) }
}

/// The normal distribution's `Φ(x)`, absolute error below 1e-7 (Abramowitz and Stegun 7.1.26 has 7.5e-8 for Φ), and its density.
#[inline(always)]
pub(crate) fn normal_cdf_and_density(x: f32) -> (f32, f32) {
    /// `1 / √(2 π)`.
    const HIGHEST: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let e = exp(-z * z);
    let tail = 0.5 * p * t * e;
    (if x < 0.0 { tail } else { 1.0 - tail }, HIGHEST * e)
}

vectorised! {
    /// `x · Φ(x)`, in place.
    pub(crate) fn gelu(x: &mut [f32]) {
        for x in x {
            *x *= normal_cdf_and_density(*x).0;
        }
    }
}

vectorised! {
    /// `x/6 + 1/2`, within 0 and 1, in place.
    pub(crate) fn hard_sigmoid(x: &mut [f32]) {
        for x in x {
            *x = (*x / 6.0 + 0.5).clamp(0.0, 1.0);
        }
    }
}

vectorised! {
    /// Each number times its hard sigmoid, in place.
    pub(crate) fn hard_swish(x: &mut [f32]) {
        for x in x {
            *x *= (*x / 6.0 + 0.5).clamp(0.0, 1.0);
        }
    }
}

vectorised! {
    /// `max(x, 0)`, in place.
    pub(crate) fn relu(x: &mut [f32]) {
        for x in x {
            // To add 0 changes at most the sign of 0. Without it this becomes a loop of masked stores, three times as slow.
            *x = at_least(*x + 0.0, 0.0);
        }
    }
}

vectorised! {
    /// The larger one at each place, or NaN if there is one.
    pub(crate) fn larger_of(most: &mut [f32], x: &[f32]) {
        most.iter_mut().zip(x).for_each(|(most, x)| *most = larger(*most, *x));
    }
}

vectorised! {
    /// Numbers at even and at odd places.
    pub(crate) fn split(x: &[f32], even: &mut [f32], odd: &mut [f32]) {
        let (pairs, last) = x.as_chunks::<2>();
        for ((even, odd), pair) in even.iter_mut().zip(odd).zip(pairs) {
            (*even, *odd) = (pair[0], pair[1]);
        }
        if let (Some(last), Some(even)) = (last.first(), even.get_mut(pairs.len())) {
            *even = *last;
        }
    }
}

vectorised! {
    /// Whether there is neither NaN nor infinity.
    pub(crate) fn all_finite(x: &[f32]) -> bool {
        // On the bits without the sign, since the largest of integers may be found in any order.
        let most = x.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
        most < f32::INFINITY.to_bits()
    }
}

vectorised! {
    /// `x · scale + shift`, in place.
    pub(crate) fn affine(x: &mut [f32], scale: f32, shift: f32) {
        for x in x {
            *x = *x * scale + shift;
        }
    }
}

vectorised! {
    /// `out = a + b`.
    pub(crate) fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

vectorised! {
    /// Softmax down the columns of `scores`, planes of `stride` floats; `sums` has one plane.
    pub(crate) fn softmax_columns(scores: &mut [f32], stride: usize, sums: &mut [f32]) {
        let most = &mut *sums;
        most.fill(f32::NEG_INFINITY);
        for plane in scores.chunks_exact(stride) {
            for (m, s) in most.iter_mut().zip(plane) {
                // NaN makes its column NaN further down.
                *m = m.max(*s);
            }
        }
        for plane in scores.chunks_exact_mut(stride) {
            for (s, m) in plane.iter_mut().zip(&*most) {
                *s = exp(*s - m);
            }
        }
        sums.fill(0.0);
        for plane in scores.chunks_exact(stride) {
            for (sum, s) in sums.iter_mut().zip(plane) {
                *sum += s;
            }
        }
        for sum in &mut *sums {
            *sum = 1.0 / *sum;
        }
        for plane in scores.chunks_exact_mut(stride) {
            for (s, sum) in plane.iter_mut().zip(&*sums) {
                *s *= sum;
            }
        }
    }
}

/// Columns that one pass of a normalisation takes.
const COLUMNS: usize = 16;

vectorised! {
    /// Layer normalisation over the features of [`COLUMNS`] positions from `first` on.
    fn normalise_columns(x: &[f32], out: &mut [f32], stride: usize, first: usize, scale: &[f32], shift: &[f32], epsilon: f32) {
        let features = scale.len() as f32;
        let (mut mean, mut variance) = ([0.0f32; COLUMNS], [0.0f32; COLUMNS]);
        let planes = || x.chunks_exact(stride).map(|plane| &plane[first..first + COLUMNS]);
        for plane in planes() {
            for (m, x) in mean.iter_mut().zip(plane) {
                *m += x;
            }
        }
        mean.iter_mut().for_each(|m| *m /= features);
        for plane in planes() {
            for ((v, m), x) in variance.iter_mut().zip(&mean).zip(plane) {
                *v += (x - m) * (x - m);
            }
        }
        variance.iter_mut().for_each(|v| *v = 1.0 / (*v / features + epsilon).sqrt());
        for (((plane, out), scale), shift) in planes().zip(out.chunks_exact_mut(stride)).zip(scale).zip(shift) {
            for (((x, out), m), v) in plane.iter().zip(&mut out[first..first + COLUMNS]).zip(&mean).zip(&variance) {
                *out = (x - m) * v * scale + shift;
            }
        }
    }
}

/// Layer normalisation over the features of each position.
pub(crate) fn layer_norm(
    x: &[f32],
    out: &mut [f32],
    stride: usize,
    scale: &[f32],
    shift: &[f32],
    epsilon: f32,
) {
    for first in (0..stride).step_by(COLUMNS) {
        normalise_columns(x, out, stride, first, scale, shift, epsilon);
    }
}

/// Calls `run` on parts of `x`, in parallel where that pays.
pub(crate) fn in_parallel(x: &mut [f32], run: impl Fn(&mut [f32]) + Send + Sync) {
    let part = x.len().div_ceil(rayon::current_num_threads()).next_multiple_of(16).max(1 << 13);
    if x.len() <= part {
        run(x);
    } else {
        x.par_chunks_mut(part).for_each(run);
    }
}

/// A matrix in memory: from one row and from one column to the next.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub row: usize,
    pub column: usize,
}

/// `out = scale · a · b` with `a` `[m, k]` and `b` `[k, n]`, by the `gemm` crate.
#[expect(clippy::too_many_arguments, reason = "as few as a matrix product has")]
pub(crate) fn matmul(
    sizes: [usize; 3],
    out: &mut [f32],
    out_strides: Strides,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    scale: f32,
    threads: usize,
) {
    product(sizes, (out, out_strides), (a, a_strides), (b, b_strides), [0.0, scale], threads);
}

vectorised! {
    /// Adds numbers to others.
    pub(crate) fn add_to(to: &mut [f32], from: &[f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

vectorised! {
    /// The sum of all, sixteen at a time.
    pub(crate) fn sum(x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<16>();
        let mut sums = [0.0; 16];
        chunks.iter().for_each(|chunk| sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x));
        sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
    }
}

/// `out += a · b`, likewise.
#[expect(clippy::too_many_arguments, reason = "as few as a matrix product has")]
pub(crate) fn add_matmul(
    sizes: [usize; 3],
    out: &mut [f32],
    out_strides: Strides,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    threads: usize,
) {
    product(sizes, (out, out_strides), (a, a_strides), (b, b_strides), [1.0, 1.0], threads);
}

/// `out += a · b` `[m, n]`, rows of `out` one after the other, in tiles that threads share out. Which tiles there are depends on
/// the sizes alone, and so does the result.
pub(crate) fn add_matmul_in_tiles(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
) {
    check([m, n, k], (out, Strides { row: n, column: 1 }), (a, a_strides), (b, b_strides));
    if [m, n, k].contains(&0) {
        return;
    }
    let [down, across] = [m.div_ceil(tuning::PRODUCT[0]), n.div_ceil(tuning::PRODUCT[1])];
    let [rows, columns] = [m.div_ceil(down), n.div_ceil(across)];
    let matrix = SharedPlanes::new(out, n);
    (0..down * across).into_par_iter().for_each(|tile| {
        let (row, column) = (tile / across * rows, tile % across * columns);
        // None is empty: tiles are no larger than those that their number comes from.
        let size = [rows.min(m - row), columns.min(n - column), k];
        let (a, b) = (&a[row * a_strides.row..], &b[column * b_strides.column..]);
        let out = (matrix.at(row, column), Strides { row: n, column: 1 });
        // SAFETY: all lie in the matrices, which lie in their slices, as checked; no other tile has these numbers of `out`.
        unsafe { multiply(size, out, (a, a_strides), (b, b_strides), [1.0, 1.0], 1) };
    });
}

/// `out = keep · out + scale · a · b`.
fn product(
    sizes: [usize; 3],
    (out, out_strides): (&mut [f32], Strides),
    a: (&[f32], Strides),
    b: (&[f32], Strides),
    scales: [f32; 2],
    threads: usize,
) {
    check(sizes, (out, out_strides), a, b);
    // SAFETY: all three matrices lie in their slices, as checked, and `out` is borrowed mutably.
    unsafe { multiply(sizes, (out.as_mut_ptr(), out_strides), a, b, scales, threads) };
}

/// Whether `[m, n]`, `[m, k]` and `[k, n]` lie in their slices.
fn check(
    [m, n, k]: [usize; 3],
    (out, out_strides): (&[f32], Strides),
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
) {
    let fits = |len: usize, rows: usize, columns: usize, s: Strides| {
        rows == 0 || columns == 0 || (rows - 1) * s.row + (columns - 1) * s.column < len
    };
    assert!(
        fits(out.len(), m, n, out_strides)
            && fits(a.len(), m, k, a_strides)
            && fits(b.len(), k, n, b_strides),
        "matrices"
    );
}

/// `out = keep · out + scale · a · b`.
///
/// # Safety
/// The matrices lie in their slices, and `out` where nobody else reads or writes.
unsafe fn multiply(
    [m, n, k]: [usize; 3],
    (out, out_strides): (*mut f32, Strides),
    (a, a_strides): (&[f32], Strides),
    (b, b_strides): (&[f32], Strides),
    [keep, scale]: [f32; 2],
    threads: usize,
) {
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: promised by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            out_strides.column as isize,
            out_strides.row as isize,
            keep != 0.0,
            a.as_ptr(),
            a_strides.column as isize,
            a_strides.row as isize,
            b.as_ptr(),
            b_strides.column as isize,
            b_strides.row as isize,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_normal_distribution_are_accurate() {
        let each = if cfg!(miri) { 100 } else { 1 };
        for i in (-8700..=8700).step_by(each) {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 3e-7 * want, "exp({x}) = {}", exp(x));
        }
        assert_eq!([exp(-1e30), exp(f32::NEG_INFINITY), exp(-87.1)], [0.0; 3]);
        // The bits of NaN are many.
        for bits in [0x7fc0_0000, 0x7fc0_0001, 0xffff_ffff, 0x7f80_0001] {
            assert!(
                exp(f32::from_bits(bits)).is_nan() && normal_cdf_and_density(f32::from_bits(bits)).0.is_nan()
            );
        }
        // Φ by integration of the density from 0, in steps of 1e-4.
        let (mut cdf, step) = (0.5f64, 1e-4);
        for i in 0..60_000 {
            let x = f64::from(i) * step;
            if (i as usize).is_multiple_of(each) {
                let near = normal_cdf_and_density(x as f32).0;
                assert!((f64::from(near) - cdf).abs() < 3e-7, "Φ({x}) = {near}, not {cdf}");
                let other = normal_cdf_and_density(-x as f32).0;
                assert!((f64::from(other) - (1.0 - cdf)).abs() < 3e-7, "Φ(-{x}) = {other}");
            }
            let middle = x + step / 2.0;
            cdf += step * (-middle * middle / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        }
    }

    /// Three by three tiles, of matrices in either order.
    #[test]
    fn tiles_make_the_whole_product() {
        let [m, n, k] = if cfg!(miri) { [3, 5, 2] } else { [400, 1100, 3] };
        let number = |i: usize, j: usize| ((7 * i + 5 * j) % 11) as f32 - 5.0;
        let matrix = |rows: usize, columns: usize, s: Strides| {
            let mut numbers = vec![0.0; rows * columns];
            (0..rows * columns).for_each(|place| {
                let (i, j) = (place / columns, place % columns);
                numbers[i * s.row + j * s.column] = number(i, j);
            });
            numbers
        };
        let by_rows = |columns| Strides { row: columns, column: 1 };
        let by_columns = |rows| Strides { row: 1, column: rows };
        for (a, b) in [(by_rows(k), by_rows(n)), (by_columns(m), by_columns(k))] {
            let mut out = vec![1.0; m * n];
            add_matmul_in_tiles([m, n, k], &mut out, (&matrix(m, k, a), a), (&matrix(k, n, b), b));
            for (place, got) in out.iter().enumerate() {
                let (i, j) = (place / n, place % n);
                let want = 1.0 + (0..k).map(|l| number(i, l) * number(l, j)).sum::<f32>();
                assert_eq!(*got, want, "{i}, {j}");
            }
        }
    }

    #[test]
    fn matrices_lie_in_their_slices() {
        let fits = |m: usize, n: usize, [out, a, b]: [usize; 3]| {
            let (out, a, b) = (vec![0.0; out], vec![0.0; a], vec![0.0; b]);
            let strides = |row| Strides { row, column: 2 };
            std::panic::catch_unwind(|| {
                check([m, n, 4], (&out, strides(10)), (&a, strides(8)), (&b, strides(7)))
            })
            .is_ok()
        };
        // Last numbers at 2 · 10 + 4 · 2, 2 · 8 + 3 · 2 and 3 · 7 + 4 · 2.
        assert!(fits(3, 5, [29, 23, 30]));
        for short in [[28, 23, 30], [29, 22, 30], [29, 23, 29]] {
            assert!(!fits(3, 5, short), "{short:?}");
        }
        // Without rows or columns there is nothing to read.
        assert!(fits(0, 5, [0, 0, 30]) && fits(3, 0, [0, 23, 0]));
    }
}
