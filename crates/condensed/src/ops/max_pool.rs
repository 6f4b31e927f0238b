//! Maximum over windows.

use super::{Operation, Passing, Run, Stored};
use crate::engine::{Call, Place, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape, Window, math};
use rayon::prelude::*;

/// Maximum over each window; padding never wins, and NaN always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool(pub Window);

impl Operation for MaxPool {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        let (input, window) = (inputs[0], &self.0);
        let (_, [height, width]) = window.check(input)?;
        // Else some window has no tap in the image: it lies beside it, or steps over it.
        let size = [input.height, input.width];
        let misses = |axis: usize| {
            let (padding, dilation) = (window.padding[axis], window.dilation[axis]);
            padding >= window.kernel[axis] || padding > 0 && dilation > size[axis]
        };
        match misses(0) || misses(1) {
            true => Err(NodeError::InPadding),
            false => Ok(Shape { height, width, ..input }),
        }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(*self))
    }

    fn pass_constants(&self, _features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
        Passing::Through
    }
}

impl Run for MaxPool {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, .. } = call;
        for (x, out) in x.chunks_exact(from.sample()).zip(out.chunks_exact_mut(to.sample())).take(batch) {
            self.pool(from, to, x, out);
        }
    }
}

/// Columns of an image whose rows are put together first; of a wider one each tap is read by itself.
const LINE: usize = 1 << 10;

impl MaxPool {
    fn pool(&self, from: Place, to: Place, x: &[f32], out: &mut [f32]) {
        let Window { kernel, stride, padding, dilation } = self.0;
        let width = from.shape.width;
        let planes = out.par_chunks_exact_mut(to.stride()).zip(x.par_chunks_exact(from.stride()));
        planes.with_min_len(crate::tuning::PLANES_PER_TASK).for_each(|(out, plane)| {
            let mut line = [0.0; LINE];
            for (oy, row) in out[..to.shape.positions()].chunks_exact_mut(to.shape.width).enumerate() {
                row.fill(f32::NEG_INFINITY);
                // The taps whose rows lie in the image.
                let top = oy * stride[0];
                let first = padding[0].saturating_sub(top).div_ceil(dilation[0]);
                let end = (from.shape.height + padding[0]).saturating_sub(top).div_ceil(dilation[0]);
                let lines = (first..end.min(kernel[0])).map(|ky| {
                    let y = top + ky * dilation[0] - padding[0];
                    &plane[y * width..][..width]
                });
                if width > LINE {
                    lines.for_each(|line| self.pool_line(line, row));
                } else {
                    let line = &mut line[..width];
                    line.fill(f32::NEG_INFINITY);
                    lines.for_each(|from| math::larger_of(line, from));
                    self.pool_line(line, row);
                }
            }
        });
    }

    /// The maximum over each window of one row.
    fn pool_line(&self, line: &[f32], row: &mut [f32]) {
        let Window { kernel, stride, dilation, .. } = self.0;
        let columns = row.len();
        let taps = (0..kernel[1]).map(|kx| self.0.inside(1, kx * dilation[1], line.len(), columns));
        match stride[1] {
            1 => taps.for_each(|(first, read, count)| {
                math::larger_of(&mut row[first..first + count], &line[read..read + count]);
            }),
            // Even and odd columns apart, so that the taps of neighbours lie side by side.
            2 if line.len() <= LINE => {
                let mut halves = [[0.0; LINE / 2]; 2];
                let [even, odd] = &mut halves;
                math::split(line, even, odd);
                taps.for_each(|(first, read, count)| {
                    let taps = &halves[read % 2][read / 2..][..count];
                    math::larger_of(&mut row[first..first + count], taps);
                });
            }
            stride => taps.for_each(|(first, read, count)| {
                let taps = line[read..].iter().step_by(stride);
                for (most, x) in row[first..first + count].iter_mut().zip(taps) {
                    *most = math::larger(*most, *x);
                }
            }),
        }
    }
}

impl Stored for MaxPool {
    type Attributes = Window;

    fn write(&self, _node: &mut NodeWriter) -> Window {
        self.0
    }

    fn read(window: Window, _node: &mut NodeTensors) -> Result<Self, Error> {
        Ok(Self(window))
    }
}
