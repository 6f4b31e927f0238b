//! Batch normalisation in evaluation mode.

use super::{Cost, Operation, Passing, Run, Stored, check_floats, keep};
use crate::engine::{Call, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape, math};
use std::fmt;

/// Batch normalisation in evaluation mode: `features · scale + shift` per channel, with scale
/// `γ / √(variance + ε)` and shift `β − mean · scale`. Folded into a layer before it where possible.
#[derive(Clone, PartialEq)]
pub struct Affine {
    /// `[features]`
    pub scale: Vec<f32>,
    /// `[features]`
    pub shift: Vec<f32>,
}

impl fmt::Debug for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Affine {{ features: {} }}", self.scale.len())
    }
}

impl Operation for Affine {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        check_floats("scale", &self.scale, inputs[0].features)?;
        check_floats("shift", &self.shift, inputs[0].features)?;
        Ok(inputs[0])
    }

    fn cost(&self, _input: Shape, _output: Shape) -> Cost {
        Cost { multiplications: 0, bytes: 8 * self.scale.len() as u64 }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn in_place(&self) -> bool {
        true
    }

    fn scale_and_shift(&self) -> Option<(&[f32], &[f32])> {
        Some((&self.scale, &self.shift))
    }

    fn pass_constants(&self, features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
        for (((_, constant), scale), shift) in features.iter_mut().zip(&self.scale).zip(&self.shift) {
            *constant = constant.map(|c| c * scale + shift);
        }
        Passing::Through
    }

    fn keep_features(&mut self, kept: &[bool]) {
        // Flattened features are several to a neuron.
        let each = self.scale.len() / kept.len();
        self.scale = keep(&self.scale, |i| kept[i / each]);
        self.shift = keep(&self.shift, |i| kept[i / each]);
    }
}

impl Run for Affine {
    fn run(&self, call: Call) {
        let Call { batch, to, out, .. } = call;
        for sample in out[..batch * to.sample()].chunks_exact_mut(to.sample()) {
            let planes = sample.chunks_exact_mut(to.stride());
            for ((plane, scale), shift) in planes.zip(&self.scale).zip(&self.shift) {
                math::affine(plane, *scale, *shift);
            }
        }
    }

    fn bytes(&self) -> usize {
        4 * (self.scale.len() + self.shift.len())
    }
}

impl Stored for Affine {
    type Attributes = ();

    fn write(&self, node: &mut NodeWriter) {
        node.vector("scale", &self.scale);
        node.vector("shift", &self.shift);
    }

    fn read((): (), node: &mut NodeTensors) -> Result<Self, Error> {
        Ok(Self { scale: node.vector("scale")?, shift: node.vector("shift")? })
    }
}
