//! The first position.

use super::{Operation, Passing, Run, vector};
use crate::engine::{Call, Planning};
use crate::{Error, NodeError, Shape};

#[derive(Debug)]
pub(crate) struct ClassToken;

impl Operation for ClassToken {
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

impl Run for ClassToken {
    fn run(&self, call: Call) {
        let out = &mut call.out[..call.batch * call.to.sample()];
        for (out, plane) in out.iter_mut().zip(call.x.chunks_exact(call.from.stride())) {
            *out = plane[0];
        }
    }
}
