use crate::math::{split, vectorised};
use crate::ops::{self, Operation};
use crate::{Error, NodeError, Shape, Window};
use rayon::prelude::*;
use std::ops::Range;

/// Max-pooling of images `[batch, C, H, W]` that remembers which tap of each window was the largest. NaN is the largest, padding
/// never, and of equal ones the first.
///
/// ```
/// use condensed::training::MaxPool;
/// use condensed::{Shape, Window};
///
/// let window = Window { kernel: [2, 2], stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
/// let pool = MaxPool::new(window, Shape { features: 1, height: 2, width: 4 })?;
/// let (mut y, mut taps) = ([0.0; 2], [0; 2]);
/// pool.forward(&[1.0, 2.0, 3.0, 3.0, 4.0, 0.0, 1.0, 2.0], &mut y, &mut taps);
/// assert_eq!((y, taps), ([4.0, 3.0], [2, 0]));
/// let mut dx = [0.0; 8];
/// pool.backward(&[5.0, 6.0], &taps, &mut dx);
/// assert_eq!(dx, [0.0, 0.0, 6.0, 0.0, 5.0, 0.0, 0.0, 0.0]);
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    window: Window,
    input: Shape,
    output: Shape,
}

/// Taps that a byte can tell apart.
const MOST_TAPS: usize = 256;

impl MaxPool {
    /// For images of shape `input` `[C, H, W]`.
    ///
    /// # Errors
    /// [`Error::Node`] if the window does not fit the image, a window could lie in padding alone, or it has more than 256 taps.
    pub fn new(window: Window, input: Shape) -> Result<Self, Error> {
        let misfit = |what| Error::Node { node: "max-pooling".into(), what };
        let output = ops::MaxPool(window).output_shape(&[input]).map_err(misfit)?;
        let taps = window.kernel[0] * window.kernel[1];
        if taps > MOST_TAPS {
            return Err(misfit(NodeError::Taps { taps, most: MOST_TAPS }));
        }
        Ok(Self { window, input, output })
    }

    /// Shape of an image.
    pub fn input_shape(&self) -> Shape {
        self.input
    }

    /// Shape of a sample of the result.
    pub fn output_shape(&self) -> Shape {
        self.output
    }

    /// The largest of each window, and which tap it was.
    ///
    /// # Panics
    /// If the slices have lengths of other shapes, or `taps` another than `y`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], taps: &mut [u8]) {
        self.check(x.len(), y.len(), taps.len());
        let [from, to] = [self.input, self.output].map(|shape| shape.positions());
        let columns = self.output.width;
        let inside: Vec<_> = (0..self.window.kernel[1]).map(|tap| self.inside(tap)).collect();
        let planes = x.par_chunks(from).zip(y.par_chunks_mut(to)).zip(taps.par_chunks_mut(to));
        planes.for_each_init(
            || (vec![0.0; 2 * self.input.width], vec![0; columns]),
            |(line, largest), ((x, y), taps)| {
                let rows = y.chunks_exact_mut(columns).zip(taps.chunks_exact_mut(columns)).enumerate();
                for (row, (y, taps)) in rows {
                    self.pool_row((row, &inside), x, y, line, largest);
                    taps.iter_mut().zip(&*largest).for_each(|(tap, largest)| *tap = *largest as u8);
                }
            },
        );
    }

    /// One row of results, whose taps lie in the image in these columns, and its taps as whole numbers.
    fn pool_row(
        &self,
        (row, inside): (usize, &[Range<usize>]),
        x: &[f32],
        y: &mut [f32],
        line: &mut [f32],
        largest: &mut [u32],
    ) {
        let Window { kernel, stride, dilation, .. } = self.window;
        let width = self.input.width;
        largest.fill(NONE);
        for vertical in 0..kernel[0] {
            let Some(from) = self.at(0, row, vertical).filter(|from| *from < self.input.height) else {
                continue;
            };
            let from = &x[from * width..][..width];
            let halves = width.div_ceil(2);
            if stride[1] == 2 {
                let (even, odd) = line.split_at_mut(halves);
                split(from, even, &mut odd[..width / 2]);
            }
            for (horizontal, columns) in inside.iter().enumerate().filter(|(_, columns)| !columns.is_empty())
            {
                let tap = (vertical * kernel[1] + horizontal) as u32;
                let (y, largest) = (&mut y[columns.clone()], &mut largest[columns.clone()]);
                let first = columns.start * stride[1] + horizontal * dilation[1] - self.window.padding[1];
                match stride[1] {
                    1 => take_larger(y, largest, &from[first..], tap),
                    2 => take_larger(y, largest, &line[first % 2 * halves + first / 2..], tap),
                    stride => {
                        for ((y, largest), x) in
                            y.iter_mut().zip(largest).zip(from[first..].iter().step_by(stride))
                        {
                            take_one(y, largest, *x, tap);
                        }
                    }
                }
            }
        }
    }

    /// The row or column of the image that a tap of a result reads, if it does not lie before the image.
    fn at(&self, axis: usize, result: usize, tap: usize) -> Option<usize> {
        let Window { stride, padding, dilation, .. } = self.window;
        (result * stride[axis] + tap * dilation[axis]).checked_sub(padding[axis])
    }

    /// The columns of results whose tap lies in the image.
    fn inside(&self, tap: usize) -> Range<usize> {
        let is_before = |column: &usize| self.at(1, *column, tap).is_none();
        let is_not_after = |column: &usize| self.at(1, *column, tap).is_none_or(|at| at < self.input.width);
        let first = (0..self.output.width).take_while(is_before).count();
        first..(0..self.output.width).take_while(is_not_after).count()
    }

    /// The gradient `dx` by the images from that by the result.
    ///
    /// # Panics
    /// If the slices have lengths of other shapes, or `taps` are not those that [`forward`](Self::forward) has written.
    pub fn backward(&self, dy: &[f32], taps: &[u8], dx: &mut [f32]) {
        self.check(dx.len(), dy.len(), taps.len());
        let Window { kernel, stride, padding, dilation } = self.window;
        let [from, to] = [self.input, self.output].map(|shape| shape.positions());
        let (width, columns) = (self.input.width, self.output.width);
        let offsets: Vec<usize> = (0..kernel[0] * kernel[1])
            .map(|tap| tap / kernel[1] * dilation[0] * width + tap % kernel[1] * dilation[1])
            .collect();
        let before = padding[0] * width + padding[1];
        let planes = dx.par_chunks_mut(from).zip(dy.par_chunks(to)).zip(taps.par_chunks(to));
        planes.for_each(|((dx, dy), taps)| {
            dx.fill(0.0);
            let rows = dy.chunks_exact(columns).zip(taps.chunks_exact(columns)).enumerate();
            for (row, (dy, taps)) in rows {
                let first = row * stride[0] * width;
                for (column, (dy, tap)) in dy.iter().zip(taps).enumerate() {
                    dx[first + column * stride[1] + offsets[usize::from(*tap)] - before] += dy;
                }
            }
        });
    }

    fn check(&self, x: usize, y: usize, taps: usize) {
        let (from, to) = (self.input.len(), self.output.len());
        let is_batch = x.is_multiple_of(from.max(1)) && x / from.max(1) * to == y;
        assert!(is_batch && y == taps, "x [batch, {:?}], y and taps [batch, {:?}]", self.input, self.output);
    }
}

/// No tap yet.
const NONE: u32 = u32::MAX;

#[inline(always)]
fn take_one(y: &mut f32, largest: &mut u32, x: f32, tap: u32) {
    let is_larger = (x > *y) | x.is_nan() | (*largest == NONE);
    *y = if is_larger { x } else { *y };
    *largest = if is_larger { tap } else { *largest };
}

vectorised! {
    fn take_larger(y: &mut [f32], largest: &mut [u32], x: &[f32], tap: u32) {
        for ((y, largest), x) in y.iter_mut().zip(largest).zip(x) {
            take_one(y, largest, *x, tap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first tap of the largest number, and its place in the plane.
    fn by_search(pool: &MaxPool, x: &[f32], row: usize, column: usize) -> (u8, usize) {
        let (Window { kernel, .. }, Shape { height, width, .. }) = (pool.window, pool.input);
        let taps = (0..kernel[0]).flat_map(|i| (0..kernel[1]).map(move |j| (i, j)));
        let places = taps.filter_map(|(i, j)| {
            let place = (pool.at(0, row, i)?, pool.at(1, column, j)?);
            (place.0 < height && place.1 < width)
                .then_some(((i * kernel[1] + j) as u8, place.0 * width + place.1))
        });
        places.reduce(|best, next| if x[next.1] > x[best.1] { next } else { best }).unwrap()
    }

    proptest! {
        #[test]
        fn each_gradient_goes_to_the_first_of_the_largest(
            kernel in [1..4usize, 1..4usize], stride in [1..4usize, 1..4usize], padding in [0..2usize, 0..2usize],
            dilation in [1..3usize, 1..3usize], size in [1..12usize, 1..12usize], seed: u64,
        ) {
            let input = Shape { features: 3, height: size[0], width: size[1] };
            let Ok(pool) = MaxPool::new(Window { kernel, stride, padding, dilation }, input) else { return Ok(()) };
            let output = pool.output_shape();
            // Few values, so that many are equal.
            let number = |i: usize| (seed.wrapping_mul(i as u64 + 1) >> 60) as f32 - 8.0;
            let x: Vec<f32> = (0..2 * input.len()).map(number).collect();
            let (mut y, mut taps) = (vec![f32::NAN; 2 * output.len()], vec![0; 2 * output.len()]);
            pool.forward(&x, &mut y, &mut taps);
            let dy: Vec<f32> = (0..y.len()).map(|i| 1.0 + i as f32).collect();
            let mut expected = vec![0.0; x.len()];
            for plane in 0..6 {
                let x = &x[plane * input.positions()..][..input.positions()];
                for at in 0..output.positions() {
                    let (tap, place) = by_search(&pool, x, at / output.width, at % output.width);
                    let result = plane * output.positions() + at;
                    prop_assert_eq!((y[result], taps[result]), (x[place], tap));
                    expected[plane * input.positions() + place] += dy[result];
                }
            }
            let mut dx = vec![f32::NAN; x.len()];
            pool.backward(&dy, &taps, &mut dx);
            prop_assert_eq!(dx, expected);
        }
    }

    #[test]
    fn nan_is_the_largest_and_negative_infinity_is_a_number() {
        let window = Window { kernel: [1, 2], stride: [1, 2], padding: [0; 2], dilation: [1; 2] };
        let pool = MaxPool::new(window, Shape { features: 1, height: 1, width: 6 }).unwrap();
        let (mut y, mut taps) = ([0.0; 3], [9; 3]);
        let low = f32::NEG_INFINITY;
        pool.forward(&[1.0, f32::NAN, f32::NAN, 2.0, low, low], &mut y, &mut taps);
        assert!(y[0].is_nan() && y[1].is_nan() && y[2] == low);
        assert_eq!(taps, [1, 0, 0]);
    }

    #[test]
    fn sizes_must_fit() {
        let window = Window { kernel: [2; 2], stride: [2; 2], padding: [0; 2], dilation: [1; 2] };
        let pool = MaxPool::new(window, Shape { features: 3, height: 2, width: 4 }).unwrap();
        let fits = |x: usize, y: usize, taps: usize| {
            let run = || pool.forward(&vec![0.0; x], &mut vec![0.0; y], &mut vec![0; taps]);
            std::panic::catch_unwind(run).is_ok()
        };
        assert!(fits(48, 12, 12));
        assert!(!fits(47, 12, 12) && !fits(49, 12, 12) && !fits(48, 6, 6) && !fits(48, 12, 11));
    }
}
