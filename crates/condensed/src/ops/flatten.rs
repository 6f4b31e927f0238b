//! All features and positions as one vector.

use super::{Operation, Passing, Run, vector};
use crate::engine::{Call, Planning};
use crate::shape::from_planes;
use crate::{Error, NodeError, Shape};
use std::iter::repeat_n;

#[derive(Debug)]
pub(crate) struct Flatten;

impl Operation for Flatten {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        Ok(vector(inputs[0].len()))
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(Self))
    }

    fn pass_constants(&self, features: &mut Vec<(usize, Option<f32>)>, positions: usize) -> Passing {
        *features = features.iter().flat_map(|&feature| repeat_n(feature, positions)).collect();
        Passing::Through
    }
}

impl Run for Flatten {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, .. } = call;
        let out = &mut out[..batch * to.sample()];
        if from.is_vector() {
            out.copy_from_slice(&x[..out.len()]);
        } else {
            for (out, x) in out.chunks_exact_mut(to.sample()).zip(x.chunks_exact(from.sample())) {
                from_planes(x, from.shape, out);
            }
        }
    }
}
