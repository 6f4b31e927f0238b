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

impl MaxPool {
    fn pool(&self, from: Place, to: Place, x: &[f32], out: &mut [f32]) {
        let Window { kernel, stride, padding, dilation } = self.0;
        let planes = out.par_chunks_exact_mut(to.stride()).zip(x.par_chunks_exact(from.stride()));
        planes.with_min_len(crate::tuning::PLANES_PER_TASK).for_each(|(out, plane)| {
            for (oy, row) in out[..to.shape.positions()].chunks_exact_mut(to.shape.width).enumerate() {
                row.fill(f32::NEG_INFINITY);
                // The taps whose rows lie in the image.
                let top = oy * stride[0];
                let first = padding[0].saturating_sub(top).div_ceil(dilation[0]);
                let end = (from.shape.height + padding[0]).saturating_sub(top).div_ceil(dilation[0]);
                for ky in first..end.min(kernel[0]) {
                    let y = top + ky * dilation[0] - padding[0];
                    let line = &plane[y * from.shape.width..][..from.shape.width];
                    for kx in 0..kernel[1] {
                        let (first, read, count) = self.0.inside(1, kx * dilation[1], line.len(), row.len());
                        let taps = line[read..].iter().step_by(stride[1]);
                        for (most, x) in row[first..first + count].iter_mut().zip(taps) {
                            *most = math::larger(*most, *x);
                        }
                    }
                }
            }
        });
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
