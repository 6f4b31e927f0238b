//! Sum of two results of one shape.

use super::{Operation, Run};
use crate::engine::{Call, Planning};
use crate::{Error, NodeError, Shape, math};

#[derive(Debug)]
pub(crate) struct Add;

impl Operation for Add {
    fn inputs(&self) -> usize {
        2
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        match inputs[0] == inputs[1] {
            true => Ok(inputs[0]),
            false => Err(NodeError::Add { first: inputs[0], second: inputs[1] }),
        }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(Self))
    }
}

impl Run for Add {
    fn run(&self, call: Call) {
        let total = call.batch * call.to.sample();
        math::add(&call.x[..total], call.second.expect("two inputs"), &mut call.out[..total]);
    }
}
