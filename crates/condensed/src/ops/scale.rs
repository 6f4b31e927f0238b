//! Planes times one number each.

use super::{Operation, Run, vector};
use crate::engine::{Call, Planning};
use crate::{Error, NodeError, Shape};

#[derive(Debug)]
pub(crate) struct Scale;

impl Operation for Scale {
    fn inputs(&self) -> usize {
        2
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        match inputs[1] == vector(inputs[0].features) {
            true => Ok(inputs[0]),
            false => Err(NodeError::Scale { planes: inputs[0], factors: inputs[1] }),
        }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(Self))
    }
}

impl Run for Scale {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, second, out, .. } = call;
        let out = &mut out[..batch * to.sample()];
        let planes = out.chunks_exact_mut(to.stride()).zip(x.chunks_exact(from.stride()));
        for ((out, plane), factor) in planes.zip(second.expect("two inputs")) {
            out.iter_mut().zip(plane).for_each(|(out, x)| *out = x * factor);
        }
    }
}
