//! Normalisation, forward and backward.

use super::activation::keep_positive;
use crate::math::{add_to, relu, sum, vectorised};
use rayon::prelude::*;

/// Batch normalisation (Ioffe and Szegedy 2015) of `[batch, C, positions]`, and what follows it in residual networks:
/// `y = max(γ · (x - μ) / √(σ² + ε) + β + residual, 0)`, the last two if they are asked for.
///
/// ```
/// use condensed::training::BatchNorm;
///
/// let norm = BatchNorm { channels: 1, positions: 2, epsilon: 0.0, relu: true };
/// let (x, gamma) = ([1.0, 3.0, 1.0, 3.0], [2.0]);
/// let mut y = [0.0; 4];
/// let moments = norm.forward(&x, &gamma, &[0.5], None, &mut y);
/// assert_eq!((moments.mean[0], moments.variance[0]), (2.0, 1.0));
/// assert_eq!(y, [0.0, 2.5, 0.0, 2.5]);
///
/// let (mut dy, mut dgamma, mut dbeta) = ([1.0, 1.0, 1.0, 3.0], [0.0], [0.0]);
/// norm.backward(&x, &moments, &gamma, &[0.5], &mut dy, None, &mut dgamma, &mut dbeta);
/// assert_eq!((dgamma, dbeta, dy), ([4.0], [4.0], [0.0, -2.0, 0.0, 2.0]));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// `C`.
    pub channels: usize,
    /// Of an image's plane.
    pub positions: usize,
    /// `ε`.
    pub epsilon: f32,
    /// Whether negative results become 0.
    pub relu: bool,
}

/// Mean `μ` and variance `σ²` `[C]` of the channels; the variance is that of the batch itself, without Bessel's correction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// `μ`.
    pub mean: Vec<f32>,
    /// `σ²`.
    pub variance: Vec<f32>,
}

impl BatchNorm {
    /// Normalises by the moments of the batch, and returns them.
    ///
    /// # Panics
    /// If a slice has another length than the sizes say.
    pub fn forward(
        &self,
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) -> Moments {
        self.check(x.len(), &[y.len(), residual.map_or(x.len(), <[f32]>::len)], &[gamma, beta]);
        let each = by_channel(y, self.channels, self.positions).into_par_iter().enumerate();
        let moments = each.map(|(channel, y)| {
            let (mean, variance) = self.moments(x, channel);
            self.normalise(x, channel, (mean, variance), (gamma[channel], beta[channel]), residual, y);
            (mean, variance)
        });
        let (mean, variance) = moments.collect::<Vec<_>>().into_iter().unzip();
        Moments { mean, variance }
    }

    /// Normalises by moments that are known.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn apply(
        &self,
        x: &[f32],
        moments: &Moments,
        gamma: &[f32],
        beta: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let Moments { mean, variance } = moments;
        self.check(
            x.len(),
            &[y.len(), residual.map_or(x.len(), <[f32]>::len)],
            &[gamma, beta, mean, variance],
        );
        by_channel(y, self.channels, self.positions).into_par_iter().enumerate().for_each(|(channel, y)| {
            let moments = (mean[channel], variance[channel]);
            self.normalise(x, channel, moments, (gamma[channel], beta[channel]), residual, y);
        });
    }

    /// From the gradient `dy` by the result of [`forward`](Self::forward): `dy` becomes the gradient by `x`. With a residual come
    /// the result `y` and room for the gradient by the residual; without, what ReLU has kept follows from `x`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    #[expect(clippy::too_many_arguments, reason = "as many as a backward pass has")]
    pub fn backward(
        &self,
        x: &[f32],
        moments: &Moments,
        gamma: &[f32],
        beta: &[f32],
        dy: &mut [f32],
        residual: Option<(&[f32], &mut [f32])>,
        dgamma: &mut [f32],
        dbeta: &mut [f32],
    ) {
        let Moments { mean, variance } = moments;
        let (y, dresidual) = residual.unzip();
        let lens =
            [y.map_or(x.len(), <[f32]>::len), dresidual.as_ref().map_or(x.len(), |residual| residual.len())];
        self.check(x.len(), &[dy.len(), lens[0], lens[1]], &[gamma, beta, dgamma, dbeta, mean, variance]);
        let mut of_residual = by_channel(dresidual.unwrap_or_default(), self.channels, self.positions);
        let each = by_channel(dy, self.channels, self.positions).into_par_iter().zip(&mut of_residual);
        let each = each.zip(dgamma).zip(dbeta).enumerate();
        each.for_each(|(channel, (((mut dy, dresidual), dgamma), dbeta))| {
            let mean = mean[channel];
            let scale = 1.0 / (variance[channel] + self.epsilon).sqrt();
            let (mut sum_of, mut sum_with_x) = (0.0, 0.0);
            let mut y = y.map(|y| self.planes(y, channel));
            for (dy, x) in dy.iter_mut().zip(self.planes(x, channel)) {
                match y.as_mut().and_then(|planes| planes.next()) {
                    _ if !self.relu => {}
                    Some(y) => keep_positive(y, dy),
                    None => keep_where_positive(x, dy, [mean, gamma[channel] * scale, beta[channel]]),
                }
                sum_of += f64::from(sum(dy));
                sum_with_x += f64::from(sum_of_products(dy, x, mean));
            }
            for (dresidual, dy) in dresidual.iter_mut().zip(&dy) {
                dresidual.copy_from_slice(dy);
            }
            *dgamma = (sum_with_x * f64::from(scale)) as f32;
            *dbeta = sum_of as f32;
            let count = (dy.len() * self.positions) as f64;
            let shift = (sum_of / count) as f32;
            let slope = (sum_with_x / count * f64::from(scale * scale)) as f32;
            for (dy, x) in dy.iter_mut().zip(self.planes(x, channel)) {
                centre(dy, x, [mean, slope, shift, gamma[channel] * scale]);
            }
        });
    }

    /// A channel's planes, one image after the other.
    fn planes<'a>(&self, x: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> {
        x.chunks_exact(self.positions).skip(channel).step_by(self.channels)
    }

    fn moments(&self, x: &[f32], channel: usize) -> (f32, f32) {
        let count = (x.len() / self.channels) as f64;
        let mean = self.planes(x, channel).map(|x| f64::from(sum(x))).sum::<f64>() / count;
        let mean = mean as f32;
        let squares = self.planes(x, channel).map(|x| f64::from(sum_of_squares(x, mean)));
        (mean, (squares.sum::<f64>() / count) as f32)
    }

    /// Writes a channel of the result.
    fn normalise(
        &self,
        x: &[f32],
        channel: usize,
        (mean, variance): (f32, f32),
        (gamma, beta): (f32, f32),
        residual: Option<&[f32]>,
        y: Vec<&mut [f32]>,
    ) {
        let scale = gamma * (1.0 / (variance + self.epsilon).sqrt());
        let mut residual = residual.map(|residual| self.planes(residual, channel));
        for (x, y) in self.planes(x, channel).zip(y) {
            scaled(x, y, [mean, scale, beta]);
            if let Some(residual) = residual.as_mut().and_then(|planes| planes.next()) {
                add_to(y, residual);
            }
            if self.relu {
                relu(y);
            }
        }
    }

    fn check(&self, x: usize, images: &[usize], channels: &[&[f32]]) {
        assert!(x.is_multiple_of(self.channels * self.positions), "x [batch, C, positions] of {self:?}");
        assert!(images.iter().all(|len| *len == x), "images [batch, C, positions] of {self:?}");
        assert!(channels.iter().all(|of| of.len() == self.channels), "numbers [C] of {self:?}");
    }
}

/// The planes of each channel, one image after the other.
fn by_channel(x: &mut [f32], channels: usize, positions: usize) -> Vec<Vec<&mut [f32]>> {
    let batch = x.len() / (channels * positions).max(1);
    let mut all: Vec<Vec<_>> = (0..channels).map(|_| Vec::with_capacity(batch)).collect();
    let planes = x.chunks_exact_mut(positions.max(1)).enumerate();
    planes.for_each(|(index, plane)| all[index % channels].push(plane));
    all
}

/// Layer normalisation (Ba et al. 2016) over the last dimension of `[rows, M]`: `y = γ · (x - μ) / √(σ² + ε) + β`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// `ε`.
    pub epsilon: f32,
}

/// Parts of the rows whose gradients are added up separately; fixed, so that the sum does not depend on threads.
const PARTS: usize = 16;

impl LayerNorm {
    /// Normalises each row; `gamma` and `beta` are `[M]`.
    ///
    /// # Panics
    /// If a slice has another length than the sizes say.
    pub fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
        let features = gamma.len();
        assert!(
            x.len().is_multiple_of(features) && x.len() == y.len() && beta.len() == features,
            "[rows, M]"
        );
        y.par_chunks_mut(features).zip(x.par_chunks(features)).for_each(|(y, x)| {
            let (mean, scale) = self.moments(x);
            scaled(x, y, [mean, scale, 0.0]);
            scale_and_shift(y, gamma, beta);
        });
    }

    /// From the gradient `dy` by the result: `dy` becomes the gradient by `x`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn backward(&self, x: &[f32], gamma: &[f32], dy: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let features = gamma.len();
        assert!(x.len().is_multiple_of(features) && x.len() == dy.len(), "[rows, M]");
        assert!(dgamma.len() == features && dbeta.len() == features, "[M]");
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        let part = (x.len() / features).div_ceil(PARTS).max(1) * features;
        let parts = dy.par_chunks_mut(part).zip(x.par_chunks(part)).map(|(dy, x)| {
            let (mut dgamma, mut dbeta) = (vec![0.0; features], vec![0.0; features]);
            let mut normal = vec![0.0; features];
            for (dy, x) in dy.chunks_exact_mut(features).zip(x.chunks_exact(features)) {
                let (mean, scale) = self.moments(x);
                scaled(x, &mut normal, [mean, scale, 0.0]);
                add_to(&mut dbeta, dy);
                add_products(&mut dgamma, dy, &normal);
                multiply(dy, gamma);
                let shift = sum(dy) / features as f32;
                let slope = sum_of_products(dy, &normal, 0.0) / features as f32;
                centre(dy, &normal, [0.0, slope, shift, scale]);
            }
            (dgamma, dbeta)
        });
        for (of_gamma, of_beta) in parts.collect::<Vec<_>>() {
            add_to(dgamma, &of_gamma);
            add_to(dbeta, &of_beta);
        }
    }

    /// Mean and `1 / √(σ² + ε)`.
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let mean = sum(x) / x.len() as f32;
        (mean, 1.0 / (sum_of_squares(x, mean) / x.len() as f32 + self.epsilon).sqrt())
    }
}

vectorised! {
    /// `(x - mean) · scale + shift`.
    fn scaled(x: &[f32], y: &mut [f32], numbers: [f32; 3]) {
        let [mean, scale, shift] = numbers;
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale + shift);
    }
}

vectorised! {
    /// Keeps gradients where [`scaled`] is positive or NaN.
    fn keep_where_positive(x: &[f32], dy: &mut [f32], numbers: [f32; 3]) {
        let [mean, scale, shift] = numbers;
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = if (x - mean) * scale + shift <= 0.0 { 0.0 } else { *dy };
        }
    }
}

vectorised! {
    /// `dy ← (dy - shift - (x - mean) · slope) · scale`.
    fn centre(dy: &mut [f32], x: &[f32], numbers: [f32; 4]) {
        let [mean, slope, shift, scale] = numbers;
        dy.iter_mut().zip(x).for_each(|(dy, x)| *dy = (*dy - shift - (x - mean) * slope) * scale);
    }
}

vectorised! {
    /// `x ← γ x + β`, number by number.
    fn scale_and_shift(x: &mut [f32], gamma: &[f32], beta: &[f32]) {
        x.iter_mut().zip(gamma).zip(beta).for_each(|((x, gamma), beta)| *x = *x * gamma + beta);
    }
}

vectorised! {
    fn multiply(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }
}

vectorised! {
    /// `to += a · b`, number by number.
    fn add_products(to: &mut [f32], a: &[f32], b: &[f32]) {
        to.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to += a * b);
    }
}

vectorised! {
    /// `Σ (x - mean)²`, sixteen at a time.
    fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
        let (chunks, rest) = x.as_chunks::<16>();
        let mut sums = [0.0; 16];
        for chunk in chunks {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += (x - mean) * (x - mean));
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
    }
}

vectorised! {
    /// `Σ a (x - mean)`, sixteen at a time.
    fn sum_of_products(a: &[f32], x: &[f32], mean: f32) -> f32 {
        let ((a, a_rest), (x, x_rest)) = (a.as_chunks::<16>(), x.as_chunks::<16>());
        let mut sums = [0.0; 16];
        for (a, x) in a.iter().zip(x) {
            sums.iter_mut().zip(a).zip(x).for_each(|((sum, a), x)| *sum += a * (x - mean));
        }
        sums.iter().sum::<f32>() + a_rest.iter().zip(x_rest).map(|(a, x)| a * (x - mean)).sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    /// `Σ weights · y` of batch normalisation in double precision.
    fn batch_norm_loss(
        norm: &BatchNorm,
        x: &[f64],
        affine: [&[f64]; 2],
        residual: &[f64],
        weights: &[f32],
    ) -> f64 {
        let of = |channel: usize| {
            let planes = (0..x.len()).filter(move |i| i / norm.positions % norm.channels == channel);
            let count = (x.len() / norm.channels) as f64;
            let mean = planes.clone().map(|i| x[i]).sum::<f64>() / count;
            let variance = planes.clone().map(|i| (x[i] - mean).powi(2)).sum::<f64>() / count;
            let scale = affine[0][channel] / (variance + f64::from(norm.epsilon)).sqrt();
            planes.map(move |i| {
                let y = (x[i] - mean) * scale + affine[1][channel] + residual[i];
                f64::from(weights[i]) * if norm.relu { y.max(0.0) } else { y }
            })
        };
        (0..norm.channels).flat_map(of).sum()
    }

    fn layer_norm_loss(norm: &LayerNorm, x: &[f64], affine: [&[f64]; 2], weights: &[f32]) -> f64 {
        let features = affine[0].len();
        let of = |row: usize| {
            let x = &x[row * features..][..features];
            let mean = x.iter().sum::<f64>() / features as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / features as f64;
            let scale = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
            (0..features).map(move |i| {
                f64::from(weights[row * features + i]) * ((x[i] - mean) * scale * affine[0][i] + affine[1][i])
            })
        };
        (0..x.len() / features).flat_map(of).sum()
    }

    /// The loss's slope by each number.
    fn slopes(x: &[f32], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let at = |i: usize, step: f64| {
            let mut x = x.clone();
            x[i] += step;
            loss(&x)
        };
        (0..x.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    fn assert_near(ours: &[f32], exact: &[f64]) {
        assert_eq!(ours.len(), exact.len());
        for (i, (ours, exact)) in ours.iter().zip(exact).enumerate() {
            assert!(
                (f64::from(*ours) - exact).abs() < 1e-4 * exact.abs().max(1.0),
                "{i}: {ours} for {exact}"
            );
        }
    }

    #[test]
    fn gradients_of_batch_norm_are_those_of_differences() {
        for (positions, relu, has_residual) in
            [(1, false, false), (20, true, true), (33, true, false), (5, false, true)]
        {
            let norm = BatchNorm { channels: 3, positions, epsilon: 1e-2, relu };
            let count = 4 * 3 * positions;
            let (x, residual, weights) = (numbers(count, 1), numbers(count, 2), numbers(count, 3));
            let (gamma, beta) = (numbers(3, 4), numbers(3, 5));
            let given = has_residual.then_some(&residual[..]);
            let residual = if has_residual { wide(&residual) } else { vec![0.0; count] };
            let mut y = vec![0.0; count];
            let moments = norm.forward(&x, &gamma, &beta, given, &mut y);
            let mut again = vec![0.0; count];
            norm.apply(&x, &moments, &gamma, &beta, given, &mut again);
            assert_eq!(y, again);
            let loss = |x: &[f64], gamma: &[f64], beta: &[f64], residual: &[f64]| {
                batch_norm_loss(&norm, x, [gamma, beta], residual, &weights)
            };
            let sum: f64 = y.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
            let (xs, gammas, betas) = (wide(&x), wide(&gamma), wide(&beta));
            assert!((sum - loss(&xs, &gammas, &betas, &residual)).abs() < 1e-4);

            let (mut dy, mut dresidual) = (weights.clone(), vec![0.0; count]);
            let (mut dgamma, mut dbeta) = ([0.0; 3], [0.0; 3]);
            let of_residual = has_residual.then_some((&y[..], &mut dresidual[..]));
            norm.backward(&x, &moments, &gamma, &beta, &mut dy, of_residual, &mut dgamma, &mut dbeta);
            assert_near(&dy, &slopes(&x, |x| loss(x, &gammas, &betas, &residual)));
            assert_near(&dgamma, &slopes(&gamma, |gamma| loss(&xs, gamma, &betas, &residual)));
            assert_near(&dbeta, &slopes(&beta, |beta| loss(&xs, &gammas, beta, &residual)));
            if let Some(given) = given {
                assert_near(&dresidual, &slopes(given, |residual| loss(&xs, &gammas, &betas, residual)));
            }
        }
    }

    #[test]
    fn gradients_of_layer_norm_are_those_of_differences() {
        for (rows, features) in [(1, 5), (7, 40), (40, 17)] {
            let norm = LayerNorm { epsilon: 1e-2 };
            let (x, weights) = (numbers(rows * features, 1), numbers(rows * features, 2));
            let (gamma, beta) = (numbers(features, 3), numbers(features, 4));
            let mut y = vec![0.0; x.len()];
            norm.forward(&x, &gamma, &beta, &mut y);
            let (xs, gammas, betas) = (wide(&x), wide(&gamma), wide(&beta));
            let loss =
                |x: &[f64], gamma: &[f64], beta: &[f64]| layer_norm_loss(&norm, x, [gamma, beta], &weights);
            let sum: f64 = y.iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum();
            assert!((sum - loss(&xs, &gammas, &betas)).abs() < 1e-4);
            let (mut dy, mut dgamma, mut dbeta) = (weights.clone(), vec![0.0; features], vec![0.0; features]);
            norm.backward(&x, &gamma, &mut dy, &mut dgamma, &mut dbeta);
            assert_near(&dy, &slopes(&x, |x| loss(x, &gammas, &betas)));
            assert_near(&dgamma, &slopes(&gamma, |gamma| loss(&xs, gamma, &betas)));
            assert_near(&dbeta, &slopes(&beta, |beta| loss(&xs, &gammas, beta)));
        }
    }

    #[test]
    fn sizes_of_batch_norm_must_fit() {
        let norm = BatchNorm { channels: 3, positions: 2, epsilon: 1e-2, relu: false };
        let fits = |x: usize, y: usize, channels: usize| {
            let (numbers, affine) = (vec![1.0; x], vec![1.0; channels]);
            let run = || drop(norm.forward(&numbers, &affine, &affine, None, &mut vec![0.0; y]));
            std::panic::catch_unwind(run).is_ok()
        };
        assert!(fits(12, 12, 3));
        assert!(!fits(13, 13, 3) && !fits(12, 6, 3) && !fits(12, 12, 4));
    }
}
