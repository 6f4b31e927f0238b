//! What sparse libraries do: compressed sparse rows, without knowing that the fan-in is constant.

use condensed::{CondensedWeight, Shape, Window};
use rayon::prelude::*;

/// A matrix `[N, M]` in compressed sparse rows.
pub struct Csr {
    pointers: Vec<u32>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

/// Columns of a block of the right-hand side that a row works on at once.
const BLOCK: usize = 256;

impl Csr {
    pub fn new(weight: &CondensedWeight) -> Self {
        let (mut pointers, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        let mut active = weight.active().iter().enumerate().peekable();
        for neuron in 0..weight.neurons() {
            if let Some((row, _)) = active.next_if(|(_, active)| **active as usize == neuron) {
                for (column, value) in weight.row(row) {
                    columns.push(column as u32);
                    values.push(value);
                }
            }
            pointers.push(values.len() as u32);
        }
        Self { pointers, columns, values }
    }

    fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.pointers[row] as usize..self.pointers[row + 1] as usize;
        (&self.columns[range.clone()], &self.values[range])
    }

    /// `out = W x + b` for one vector, rows in parallel.
    pub fn times_vector(&self, bias: &[f32], x: &[f32], out: &mut [f32]) {
        let part = out.len().div_ceil(rayon::current_num_threads());
        out.par_chunks_mut(part).enumerate().for_each(|(i, out)| {
            for (j, out) in out.iter_mut().enumerate() {
                let (columns, values) = self.row(i * part + j);
                // Independent sums, so that additions need not wait for each other.
                let mut sums = [0.0f32; 4];
                let (blocks, rest) = values.as_chunks::<4>();
                let (indices, other) = columns.as_chunks::<4>();
                for (values, columns) in blocks.iter().zip(indices) {
                    for ((sum, value), column) in sums.iter_mut().zip(values).zip(columns) {
                        *sum += value * x[*column as usize];
                    }
                }
                let rest: f32 =
                    rest.iter().zip(other).map(|(value, column)| value * x[*column as usize]).sum();
                *out = bias[i * part + j] + sums.iter().sum::<f32>() + rest;
            }
        });
    }

    /// `out = W x + b` for a matrix `x` `[M, columns]`, rows in parallel, with the widest registers there are.
    pub fn times_matrix(&self, bias: &[f32], x: &[f32], columns: usize, out: &mut [f32]) {
        let arch = pulp::Arch::new();
        let part = bias.len().div_ceil(4 * rayon::current_num_threads()) * columns;
        out.par_chunks_mut(part).enumerate().for_each(|(i, out)| {
            // Not inlined, it would be compiled for every processor, with narrow registers.
            arch.dispatch(
                #[inline(always)]
                || {
                    let first = i * part / columns;
                    for start in (0..columns).step_by(BLOCK) {
                        let width = BLOCK.min(columns - start);
                        for (j, out) in out.chunks_exact_mut(columns).enumerate() {
                            let out = &mut out[start..start + width];
                            out.fill(bias[first + j]);
                            let (indices, values) = self.row(first + j);
                            for (&index, &value) in indices.iter().zip(values) {
                                let x = &x[index as usize * columns + start..][..width];
                                out.iter_mut().zip(x).for_each(|(out, x)| *out += value * x);
                            }
                        }
                    }
                },
            );
        });
    }
}

/// `y = W x + b` with all weights `[N, M]`, a row at a time: for single vectors reading the weights is all the work.
pub fn dense_times_vector(weight: &[f32], bias: &[f32], x: &[f32], out: &mut [f32]) {
    const LANES: usize = 64;
    let arch = pulp::Arch::new();
    let part = out.len().div_ceil(rayon::current_num_threads());
    out.par_chunks_mut(part).enumerate().for_each(|(i, out)| {
        // Not inlined, it would be compiled for every processor, with narrow registers.
        arch.dispatch(
            #[inline(always)]
            || {
                let rows = weight[i * part * x.len()..].chunks_exact(x.len());
                for ((out, row), bias) in out.iter_mut().zip(rows).zip(&bias[i * part..]) {
                    let mut sums = [0.0f32; LANES];
                    let (blocks, rest) = row.as_chunks::<LANES>();
                    let (xs, others) = x.as_chunks::<LANES>();
                    for (w, x) in blocks.iter().zip(xs) {
                        for i in 0..LANES {
                            sums[i] += w[i] * x[i];
                        }
                    }
                    let rest: f32 = rest.iter().zip(others).map(|(w, x)| w * x).sum();
                    *out = bias + sums.iter().sum::<f32>() + rest;
                }
            },
        );
    });
}

/// All patches of an image `[C, H, W]` as columns `[C · kh · kw, H' · W']`, rows in parallel.
pub fn im2col(x: &[f32], input: Shape, window: &Window, [height, width]: [usize; 2], columns: &mut [f32]) {
    let Window { kernel: [kh, kw], stride, padding, dilation } = *window;
    columns.par_chunks_exact_mut(height * width).enumerate().for_each(|(row, out)| {
        let (channel, ky, kx) = (row / (kh * kw), row / kw % kh, row % kw);
        let plane = &x[channel * input.positions()..][..input.positions()];
        for (y, out) in out.chunks_exact_mut(width).enumerate() {
            let line = (y * stride[0] + ky * dilation[0])
                .checked_sub(padding[0])
                .filter(|&y| y < input.height)
                .map(|y| &plane[y * input.width..][..input.width]);
            let Some(line) = line else {
                out.fill(0.0);
                continue;
            };
            for (x, out) in out.iter_mut().enumerate() {
                let at = (x * stride[1] + kx * dilation[1]).checked_sub(padding[1]);
                *out = at.and_then(|at| line.get(at)).copied().unwrap_or(0.0);
            }
        }
    });
}

/// `to` `[columns, rows]` from `from` `[rows, columns]`.
pub fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    // Blocks, so that both sides stay in the cache.
    const B: usize = 16;
    to.par_chunks_mut(B * rows).enumerate().for_each(|(i, to)| {
        for r in (0..rows).step_by(B) {
            for (c, to) in to.chunks_exact_mut(rows).enumerate() {
                for (k, to) in to[r..rows.min(r + B)].iter_mut().enumerate() {
                    *to = from[(r + k) * columns + i * B + c];
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + 11) % 17) as f32 - 8.0).collect()
    }

    /// Small whole numbers: sums are exact in any order.
    #[test]
    fn products_are_those_of_the_dense_matrix() {
        let (n, m, p) = (13, 70, 300);
        let (weights, bias, x) = (numbers(n * m), numbers(n), numbers(m * p));
        let mask: Vec<bool> = (0..n * m).map(|i| i / m != 4 && i % 7 < 3).collect();
        let sparse = CondensedWeight::from_masked(&weights, &mask, n, m).unwrap();
        let (csr, dense) = (Csr::new(&sparse), sparse.to_dense());
        let want = |row: usize, column: usize| -> f32 {
            bias[row] + (0..m).map(|i| dense[row * m + i] * x[i * p + column]).sum::<f32>()
        };
        let mut out = vec![f32::NAN; n * p];
        csr.times_matrix(&bias, &x, p, &mut out);
        assert!((0..n * p).all(|i| out[i] == want(i / p, i % p)));
        let mut vectors = vec![f32::NAN; m * p];
        transpose(&x, p, &mut vectors);
        for product in
            [&|x: &[f32], out: &mut [f32]| csr.times_vector(&bias, x, out), &|x: &[f32], out: &mut [f32]| {
                dense_times_vector(&dense, &bias, x, out)
            }] as [&dyn Fn(&[f32], &mut [f32]); 2]
        {
            let mut out = vec![f32::NAN; n];
            product(&vectors[m..2 * m], &mut out);
            assert!((0..n).all(|row| out[row] == want(row, 1)));
        }
    }

    #[test]
    fn patches_are_what_the_window_sees() {
        let input = Shape { features: 2, height: 5, width: 4 };
        let window = Window { kernel: [3, 3], stride: [2, 1], padding: [1, 1], dilation: [1, 1] };
        let [height, width] = window.output_size(input).unwrap();
        let x = numbers(input.len());
        let mut columns = vec![f32::NAN; 18 * height * width];
        im2col(&x, input, &window, [height, width], &mut columns);
        for (i, got) in columns.iter().enumerate() {
            let (row, y, x_) = (i / (height * width), i / width % height, i % width);
            let (c, sy, sx) = (row / 9, (y * 2 + row / 3 % 3) as isize - 1, (x_ + row % 3) as isize - 1);
            let inside = (0..5).contains(&sy) && (0..4).contains(&sx);
            let want = if inside { x[c * 20 + sy as usize * 4 + sx as usize] } else { 0.0 };
            assert_eq!(*got, want);
        }
    }
}
