use crate::math::{self, Strides, vectorised};
use rayon::prelude::*;

/// Multi-head self-attention (Vaswani et al. 2017) between a joint projection `[batch, tokens, 3 · d]` of queries, keys and
/// values and the output's `[batch, tokens, d]`: `softmax(Q Kᵀ / √(d / heads)) V` for each head.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Heads; each has `d / heads` features.
    pub heads: usize,
    /// Tokens of a sample.
    pub tokens: usize,
    /// `d`.
    pub features: usize,
}

impl Attention {
    /// Writes the result, and the softmax `[batch, heads, keys, queries]` for the backward pass.
    ///
    /// # Panics
    /// If a slice has another length than the sizes say, or `heads` does not divide `d`.
    pub fn forward(&self, qkv: &[f32], y: &mut [f32], softmax: &mut [f32]) {
        let size = self.check(qkv.len(), y.len(), softmax.len());
        let tokens = self.tokens;
        let each = self.by_head(y, 1).into_par_iter().zip(softmax.par_chunks_mut(tokens * tokens));
        each.enumerate().for_each_init(
            || (vec![0.0; tokens * size], vec![0.0; tokens]),
            |(result, sums), (index, (y, softmax))| {
                let [q, k, v] = self.parts(qkv, index);
                let (sizes, scale) = ([tokens, tokens, size], 1.0 / (size as f32).sqrt());
                math::matmul(
                    sizes,
                    softmax,
                    self.square(),
                    k,
                    self.joint(),
                    q,
                    turned(self.joint()),
                    scale,
                    1,
                );
                math::softmax_columns(softmax, tokens, sums);
                let rows = Strides { row: size, column: 1 };
                let sizes = [tokens, size, tokens];
                math::matmul(sizes, result, rows, softmax, turned(self.square()), v, self.joint(), 1.0, 1);
                y.into_iter()
                    .zip(result.chunks_exact(size))
                    .for_each(|(y, result)| y.copy_from_slice(result));
            },
        );
    }

    /// The gradient `dqkv` by the projection from that by the result.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn backward(&self, qkv: &[f32], softmax: &[f32], dy: &[f32], dqkv: &mut [f32]) {
        let size = self.check(qkv.len(), dy.len(), softmax.len());
        assert_eq!(dqkv.len(), qkv.len(), "dqkv");
        let tokens = self.tokens;
        let each = self.by_head(dqkv, 3).into_par_iter().zip(softmax.par_chunks(tokens * tokens));
        each.enumerate().for_each_init(
            || (vec![0.0; tokens * tokens], vec![0.0; tokens], vec![0.0; 3 * tokens * size]),
            |(dscores, sums, result), (index, (mut dqkv, softmax))| {
                let [q, k, v] = self.parts(qkv, index);
                let dy = &dy[index / self.heads * tokens * self.features + index % self.heads * size..];
                let (of_dy, rows) =
                    (Strides { row: self.features, column: 1 }, Strides { row: size, column: 1 });
                let (square, joint) = (self.square(), self.joint());
                let (dq, dkv) = result.split_at_mut(tokens * size);
                let (dk, dv) = dkv.split_at_mut(tokens * size);
                let sizes = [tokens, size, tokens];
                math::matmul(sizes, dv, rows, softmax, square, dy, of_dy, 1.0, 1);
                math::matmul([tokens, tokens, size], dscores, square, v, joint, dy, turned(of_dy), 1.0, 1);
                softmax_gradient(softmax, dscores, sums);
                let scale = 1.0 / (size as f32).sqrt();
                math::matmul(sizes, dq, rows, dscores, turned(square), k, joint, scale, 1);
                math::matmul(sizes, dk, rows, dscores, square, q, joint, scale, 1);
                // Slices are token by token, of each the query's, the key's and the value's.
                for (token, of_token) in dqkv.chunks_exact_mut(3).enumerate() {
                    for (to, from) in of_token.iter_mut().zip([&*dq, &*dk, &*dv]) {
                        to.copy_from_slice(&from[token * size..][..size]);
                    }
                }
            },
        );
    }

    /// Queries, keys and values of a sample's head, up to the end of all.
    fn parts<'a>(&self, qkv: &'a [f32], index: usize) -> [&'a [f32]; 3] {
        let (sample, head, size) = (index / self.heads, index % self.heads, self.features / self.heads);
        let first = sample * self.tokens * 3 * self.features + head * size;
        [0, 1, 2].map(|part| &qkv[first + part * self.features..])
    }

    /// For each sample's head the slices of its tokens, of which each has so many `parts`.
    fn by_head<'a>(&self, x: &'a mut [f32], parts: usize) -> Vec<Vec<&'a mut [f32]>> {
        let Self { heads, tokens, features } = *self;
        let samples = x.len() / (tokens * parts * features).max(1);
        let mut all: Vec<Vec<_>> = (0..samples * heads).map(|_| Vec::with_capacity(tokens * parts)).collect();
        for (index, slice) in x.chunks_exact_mut(features / heads).enumerate() {
            all[index / (tokens * parts * heads) * heads + index % heads].push(slice);
        }
        all
    }

    fn joint(&self) -> Strides {
        Strides { row: 3 * self.features, column: 1 }
    }

    fn square(&self) -> Strides {
        Strides { row: self.tokens, column: 1 }
    }

    fn check(&self, qkv: usize, y: usize, softmax: usize) -> usize {
        let Self { heads, tokens, features } = *self;
        assert!(features.is_multiple_of(heads) && tokens > 0, "heads divide the features of {self:?}");
        let samples = y / (tokens * features);
        assert_eq!(y, samples * tokens * features, "y [batch, tokens, d] of {self:?}");
        assert_eq!(qkv, 3 * y, "qkv [batch, tokens, 3 d] of {self:?}");
        assert_eq!(
            softmax,
            samples * heads * tokens * tokens,
            "softmax [batch, heads, tokens, tokens] of {self:?}"
        );
        features / heads
    }
}

fn turned(strides: Strides) -> Strides {
    Strides { row: strides.column, column: strides.row }
}

vectorised! {
    /// `dscores ← softmax · (dscores - Σ softmax · dscores)`, where the sum is that of each column.
    fn softmax_gradient(softmax: &[f32], dscores: &mut [f32], sums: &mut [f32]) {
        sums.fill(0.0);
        let columns = sums.len();
        for (s, d) in softmax.chunks_exact(columns).zip(dscores.chunks_exact(columns)) {
            sums.iter_mut().zip(s).zip(d).for_each(|((sum, s), d)| *sum += s * d);
        }
        for (s, d) in softmax.chunks_exact(columns).zip(dscores.chunks_exact_mut(columns)) {
            d.iter_mut().zip(s).zip(&*sums).for_each(|((d, s), sum)| *d = s * (*d - sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// `Σ weights · y` and `y`, in double precision and one number after the other.
    fn plainly(attention: &Attention, qkv: &[f64], weights: &[f32]) -> (f64, Vec<f64>) {
        let Attention { heads, tokens, features } = *attention;
        let size = features / heads;
        let samples = qkv.len() / (3 * tokens * features);
        let mut y = vec![0.0; samples * tokens * features];
        for sample in 0..samples {
            let at = |part: usize, token: usize, feature: usize| {
                qkv[((sample * tokens + token) * 3 + part) * features + feature]
            };
            for (head, query) in (0..heads).flat_map(|head| (0..tokens).map(move |query| (head, query))) {
                let own = head * size..(head + 1) * size;
                let score = |key: usize| own.clone().map(|f| at(0, query, f) * at(1, key, f)).sum::<f64>();
                let scores: Vec<f64> =
                    (0..tokens).map(|key| (score(key) / (size as f64).sqrt()).exp()).collect();
                let sum: f64 = scores.iter().sum();
                for feature in own.clone() {
                    let mixed =
                        scores.iter().enumerate().map(|(key, score)| score / sum * at(2, key, feature));
                    y[(sample * tokens + query) * features + feature] = mixed.sum();
                }
            }
        }
        (y.iter().zip(weights).map(|(y, weight)| y * f64::from(*weight)).sum(), y)
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let mut random = StdRng::seed_from_u64(5);
        let mut numbers =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.random_range(-2.0..2.0)).collect() };
        for (samples, heads, tokens, features) in [(1, 1, 1, 1), (1, 1, 3, 2), (3, 2, 4, 6), (2, 3, 5, 12)] {
            let attention = Attention { heads, tokens, features };
            let (qkv, dy) = (numbers(samples * tokens * 3 * features), numbers(samples * tokens * features));
            let (mut y, mut softmax) =
                (vec![f32::NAN; dy.len()], vec![f32::NAN; samples * heads * tokens * tokens]);
            attention.forward(&qkv, &mut y, &mut softmax);
            let wide: Vec<f64> = qkv.iter().map(|x| f64::from(*x)).collect();
            let near = |ours: f32, exact: f64| (f64::from(ours) - exact).abs() < 1e-5 * exact.abs().max(1.0);
            let (_, exact) = plainly(&attention, &wide, &dy);
            assert!(y.iter().zip(exact).all(|(ours, exact)| near(*ours, exact)), "{attention:?}");
            let mut dqkv = vec![f32::NAN; qkv.len()];
            attention.backward(&qkv, &softmax, &dy, &mut dqkv);
            for (place, ours) in dqkv.iter().enumerate() {
                let at = |step: f64| {
                    let mut qkv = wide.clone();
                    qkv[place] += step;
                    plainly(&attention, &qkv, &dy).0
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!(near(*ours, slope), "{attention:?}, {place}: {ours} for {slope}");
            }
        }
    }

    #[test]
    fn sizes_must_fit() {
        let fits = |heads: usize, qkv: usize, y: usize, softmax: usize| {
            let attention = Attention { heads, tokens: 2, features: 4 };
            let run = || attention.forward(&vec![0.0; qkv], &mut vec![0.0; y], &mut vec![0.0; softmax]);
            std::panic::catch_unwind(run).is_ok()
        };
        assert!(fits(2, 48, 16, 16), "two samples");
        assert!(!fits(3, 48, 16, 24) && !fits(2, 47, 16, 16) && !fits(2, 48, 17, 16) && !fits(2, 48, 16, 15));
    }
}
