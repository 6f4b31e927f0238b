//! Positions as tokens.

use super::{Cost, Operation, Run, Stored, check_floats};
use crate::engine::{Call, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::{Error, NodeError, Shape, TensorError, math};
use std::fmt;

/// Positions as tokens after one class token, plus position embeddings:
/// `[features, h, w]` → `[features, 1, h · w + 1]`.
#[derive(Clone, PartialEq)]
pub struct Tokens {
    /// Class token `[features]`.
    pub class: Vec<f32>,
    /// Position embeddings `[h · w + 1, features]`.
    pub positions: Vec<f32>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = self.class.len();
        let tokens = self.positions.len() / features.max(1);
        write!(f, "Tokens {{ features: {features}, tokens: {tokens} }}")
    }
}

impl Operation for Tokens {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        let features = inputs[0].features;
        let width = inputs[0].positions() + 1;
        check_floats("class token", &self.class, features)?;
        check_floats("position embeddings", &self.positions, width * features)?;
        Ok(Shape { features, height: 1, width })
    }

    fn cost(&self, _input: Shape, _output: Shape) -> Cost {
        Cost { multiplications: 0, bytes: 4 * (self.class.len() + self.positions.len()) as u64 }
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        let features = self.class.len();
        let tokens = self.positions.len() / features.max(1);
        let mut embeddings = vec![0.0; features * tokens];
        for (feature, row) in embeddings.chunks_exact_mut(tokens).enumerate() {
            for (token, value) in row.iter_mut().enumerate() {
                *value = self.positions[token * features + feature];
            }
            row[0] += self.class[feature];
        }
        Ok(Box::new(Embeddings { values: embeddings, tokens }))
    }
}

/// `[features][tokens]`, the class token added to the first.
struct Embeddings {
    values: Vec<f32>,
    tokens: usize,
}

impl fmt::Debug for Embeddings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embeddings {{ tokens: {} }}", self.tokens)
    }
}

impl Run for Embeddings {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, .. } = call;
        let patches = from.shape.positions();
        for (x, out) in x.chunks_exact(from.sample()).zip(out.chunks_exact_mut(to.sample())).take(batch) {
            let planes = x.chunks_exact(from.stride()).zip(self.values.chunks_exact(self.tokens));
            for (out, (plane, embedding)) in out.chunks_exact_mut(to.stride()).zip(planes) {
                out[0] = embedding[0];
                math::add(&plane[..patches], &embedding[1..], &mut out[1..self.tokens]);
            }
        }
    }

    fn bytes(&self) -> usize {
        4 * self.values.len()
    }
}

impl Stored for Tokens {
    type Attributes = ();

    fn write(&self, node: &mut NodeWriter) {
        let features = self.class.len();
        node.vector("class", &self.class);
        node.floats("positions", &[self.positions.len() / features, features], &self.positions);
    }

    fn read((): (), node: &mut NodeTensors) -> Result<Self, Error> {
        let class = node.vector("class")?;
        let (shape, positions) = node.floats("positions", 2)?;
        if shape[1] != class.len() {
            return Err(node.wrong("positions", TensorError::Columns { got: shape[1], class: class.len() }));
        }
        Ok(Self { class, positions })
    }
}
