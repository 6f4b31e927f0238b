//! Mean over all positions.

use super::{Operation, Passing, Run, vector};
use crate::engine::{Call, Planning};
use crate::{Error, NodeError, Shape};

#[derive(Debug)]
pub(crate) struct GlobalAvgPool;

impl Operation for GlobalAvgPool {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        Ok(vector(inputs[0].features))
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(Self))
    }

    fn pass_constants(&self, _features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
        Passing::Through
    }
}

impl Run for GlobalAvgPool {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, .. } = call;
        let planes = x.chunks_exact(from.stride()).map(|plane| &plane[..from.shape.positions()]);
        for (out, plane) in out[..batch * to.sample()].iter_mut().zip(planes) {
            *out = plane.iter().sum::<f32>() / plane.len() as f32;
        }
    }
}
