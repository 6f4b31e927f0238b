//! The sample given to the network.

use super::{Operation, Run, Stored};
use crate::engine::Planning;
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape};

/// The sample given to the network: the first node, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input(pub Shape);

impl Operation for Input {
    fn inputs(&self) -> usize {
        0
    }

    fn output_shape(&self, _inputs: &[Shape]) -> Result<Shape, NodeError> {
        Ok(self.0)
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        unreachable!("only the first node, which the engine fills")
    }
}

impl Stored for Input {
    type Attributes = Shape;

    fn write(&self, _node: &mut NodeWriter) -> Shape {
        self.0
    }

    fn read(shape: Shape, _node: &mut NodeTensors) -> Result<Self, Error> {
        Ok(Self(shape))
    }
}
