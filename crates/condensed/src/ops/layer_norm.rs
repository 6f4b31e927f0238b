//! Normalisation over the features of each position.

use super::{Cost, Operation, Run, Stored, check_floats};
use crate::engine::{Call, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape, math};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Normalisation over the features of each position: `(x − mean) / √(variance + ε) · scale + shift`.
#[derive(Clone, PartialEq)]
pub struct LayerNorm {
    /// `[features]`
    pub scale: Vec<f32>,
    /// `[features]`
    pub shift: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

impl fmt::Debug for LayerNorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerNorm {{ features: {}, epsilon: {} }}", self.scale.len(), self.epsilon)
    }
}

impl Operation for LayerNorm {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        check_floats("scale", &self.scale, inputs[0].features)?;
        check_floats("shift", &self.shift, inputs[0].features)?;
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return Err(NodeError::Epsilon(self.epsilon));
        }
        Ok(inputs[0])
    }

    fn cost(&self, _input: Shape, _output: Shape) -> Cost {
        Cost { multiplications: 0, bytes: 8 * self.scale.len() as u64 }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(self.clone()))
    }
}

impl Run for LayerNorm {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, .. } = call;
        for (x, out) in x.chunks_exact(from.sample()).zip(out.chunks_exact_mut(to.sample())).take(batch) {
            if from.is_vector() {
                self.normalise_vector(x, out);
            } else {
                math::layer_norm(x, out, from.stride(), &self.scale, &self.shift, self.epsilon);
            }
        }
    }

    fn bytes(&self) -> usize {
        4 * (self.scale.len() + self.shift.len())
    }
}

impl LayerNorm {
    fn normalise_vector(&self, x: &[f32], out: &mut [f32]) {
        let count = x.len() as f32;
        let mean = x.iter().sum::<f32>() / count;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
        let norm = 1.0 / (variance + self.epsilon).sqrt();
        for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(&self.scale).zip(&self.shift) {
            *out = (x - mean) * norm * scale + shift;
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attributes {
    // As f64, which JSON keeps exactly enough.
    epsilon: f64,
}

impl Stored for LayerNorm {
    type Attributes = Attributes;

    fn write(&self, node: &mut NodeWriter) -> Attributes {
        node.vector("scale", &self.scale);
        node.vector("shift", &self.shift);
        Attributes { epsilon: f64::from(self.epsilon) }
    }

    fn read(attributes: Attributes, node: &mut NodeTensors) -> Result<Self, Error> {
        let epsilon = attributes.epsilon as f32;
        Ok(Self { scale: node.vector("scale")?, shift: node.vector("shift")?, epsilon })
    }
}
