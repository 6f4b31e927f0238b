//! Activation functions, in place, and their gradients.

use crate::math::{at_least, in_parallel, normal_cdf_and_density, vectorised};
use rayon::prelude::*;

/// Numbers of a part that one thread works on.
const PART: usize = 1 << 14;

/// Runs on parts of both, in parallel.
fn in_parts(to: &mut [f32], from: &[f32], run: impl Fn(&mut [f32], &[f32]) + Send + Sync) {
    to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| run(to, from));
}

/// `max(x, 0)`, in place; NaN stays.
pub fn relu(x: &mut [f32]) {
    in_parallel(x, crate::math::relu);
}

/// Makes the gradient `dy` by [`relu`]'s result `y` that by its input.
///
/// # Panics
/// If they have different lengths.
pub fn relu_gradient(y: &[f32], dy: &mut [f32]) {
    assert_eq!(y.len(), dy.len(), "a gradient for each result");
    in_parts(dy, y, |dy, y| keep_positive(y, dy));
}

/// `x · Φ(x)` with the normal distribution's Φ, to within 1e-7 (Hendrycks and Gimpel 2016).
///
/// # Panics
/// If the slices have different lengths.
pub fn gelu(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a result for each input");
    in_parts(y, x, |y, x| {
        y.copy_from_slice(x);
        crate::math::gelu(y);
    });
}

/// Makes the gradient `dy` by [`gelu`]'s result that by its input `x`.
///
/// # Panics
/// If they have different lengths.
pub fn gelu_gradient(x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "a gradient for each input");
    in_parts(dy, x, |dy, x| times_gelu_slope(x, dy));
}

/// `x` times its hard sigmoid `x/6 + 1/2` within 0 and 1 (Howard et al. 2019).
///
/// # Panics
/// If the slices have different lengths.
pub fn hard_swish(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a result for each input");
    in_parts(y, x, |y, x| {
        y.copy_from_slice(x);
        crate::math::hard_swish(y);
    });
}

/// Makes the gradient `dy` by [`hard_swish`]'s result that by its input `x`.
///
/// # Panics
/// If they have different lengths.
pub fn hard_swish_gradient(x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "a gradient for each input");
    in_parts(dy, x, |dy, x| times_hard_swish_slope(x, dy));
}

vectorised! {
    /// `dy · (x/3 + 1/2)` between -3 and 3, 0 below, `dy` above.
    fn times_hard_swish_slope(x: &[f32], dy: &mut [f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            let inside = *dy * (x / 3.0 + 0.5);
            let outside = if *x >= 3.0 { *dy } else { 0.0 };
            *dy = if (*x <= -3.0) | (*x >= 3.0) { outside } else { inside };
        }
    }
}

vectorised! {
    /// Keeps gradients where the result is positive or NaN.
    pub(super) fn keep_positive(y: &[f32], dy: &mut [f32]) {
        for (dy, y) in dy.iter_mut().zip(y) {
            *dy = if *y <= 0.0 { 0.0 } else { *dy };
        }
    }
}

vectorised! {
    /// `dy · (Φ(x) + x · φ(x))`.
    fn times_gelu_slope(x: &[f32], dy: &mut [f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            // Beyond, the slope is 0 or 1 to the last bit; infinity times density 0 would be NaN.
            let near = at_least(if *x > 14.0 { 14.0 } else { *x }, -14.0);
            let (cdf, density) = normal_cdf_and_density(near);
            *dy *= cdf + near * density;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_stays_and_its_gradient_too() {
        let mut x = [f32::NAN, -1.0, 0.0, 2.0, f32::INFINITY, f32::NEG_INFINITY];
        relu(&mut x);
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [0.0, 0.0, 2.0, f32::INFINITY, 0.0]);
        let mut dy = [1.0; 6];
        relu_gradient(&x, &mut dy);
        assert_eq!(dy, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn the_slope_of_hard_swish_is_that_of_its_difference() {
        let x: Vec<f32> = (-1000..1000).map(|i| i as f32 * 0.005 + 0.001).collect();
        let mut slope = vec![2.0; x.len()];
        hard_swish_gradient(&x, &mut slope);
        let mut y = vec![0.0; x.len()];
        hard_swish(&x, &mut y);
        let exact = |x: f64| x * (x / 6.0 + 0.5).clamp(0.0, 1.0);
        for ((x, y), slope) in x.iter().zip(y).zip(slope) {
            let x = f64::from(*x);
            assert!((f64::from(y) - exact(x)).abs() < 1e-6);
            assert!(
                (f64::from(slope) - (exact(x + 1e-4) - exact(x - 1e-4)) / 1e-4).abs() < 1e-4,
                "{x}: {slope}"
            );
        }
        let mut far = [1.0; 3];
        hard_swish_gradient(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN], &mut far);
        assert!(far[0] == 1.0 && far[1] == 0.0 && far[2].is_nan());
    }

    #[test]
    fn the_slope_of_gelu_is_that_of_its_difference() {
        let x: Vec<f32> = (-600..600).map(|i| i as f32 * 0.01 + 0.003).collect();
        let mut slope = vec![1.0; x.len()];
        gelu_gradient(&x, &mut slope);
        // Φ by its series in double precision, φ by its formula.
        let exact = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / (2.0 * n as f64);
                sum += term / (2 * n + 1) as f64;
            }
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 + sum / (2.0 * std::f64::consts::PI).sqrt() + x * density
        };
        let mut y = vec![f32::NAN; x.len()];
        gelu(&x, &mut y);
        let differences = y.windows(2).zip(x.windows(2)).map(|(y, x)| (y[1] - y[0]) / (x[1] - x[0]));
        for ((x, slope), difference) in x.iter().zip(slope).zip(differences.chain([1.0])) {
            let exact = exact(f64::from(*x));
            assert!((f64::from(slope) - exact).abs() < 1e-6, "{x}: {slope} for {exact}");
            assert!((slope - difference).abs() < 0.01, "{x}: {slope}, and {difference} to the next");
        }
        let mut far = [2.0, 2.0, 2.0, f32::NAN];
        gelu_gradient(&[f32::INFINITY, f32::NEG_INFINITY, -80.0, f32::NAN], &mut far);
        assert_eq!(far[..3], [2.0, 0.0, 0.0]);
        assert!(far[3].is_nan());
    }
}
