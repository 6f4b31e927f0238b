//! Multi-head self-attention.

use super::{Cost, Operation, Run, Stored};
use crate::buffer::{Room, floats};
use crate::engine::{Call, Place, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::math::{self, Strides};
use crate::shape::{MAX_RESULT, at_most};
use crate::{Error, NodeError, Shape};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Multi-head self-attention between a joint input projection and the output projection:
/// `[3 · d, 1, tokens]` (queries, keys, values) → `[d, 1, tokens]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Heads; each has `d / heads` features.
    pub heads: usize,
}

impl Operation for Attention {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        let (input, heads) = (inputs[0], self.heads);
        let fits =
            input.features.is_multiple_of(3) && heads != 0 && (input.features / 3).is_multiple_of(heads);
        if !fits {
            return Err(NodeError::Heads { features: input.features, heads });
        }
        // Scores `[heads, tokens, tokens]`.
        let tokens = input.positions();
        at_most(MAX_RESULT, &[heads, tokens, tokens]).map_err(|what| NodeError::Scores {
            heads,
            tokens,
            what,
        })?;
        Ok(Shape { features: input.features / 3, ..input })
    }

    fn cost(&self, _input: Shape, output: Shape) -> Cost {
        // Queries by keys, and scores by values.
        let tokens = output.positions() as u64;
        Cost { multiplications: 2 * tokens * tokens * output.features as u64, bytes: 0 }
    }

    fn gathered(&self, input: Shape, _output: Shape) -> u64 {
        floats(&[self.heads, input.positions(), input.positions()])
    }

    fn plan(&self, _planning: &Planning) -> Result<Box<dyn Run>, Error> {
        Ok(Box::new(*self))
    }
}

impl Run for Attention {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, out, scratch, .. } = call;
        for (x, out) in x.chunks_exact(from.sample()).zip(out.chunks_exact_mut(to.sample())).take(batch) {
            attend(self.heads, to, x, out, &mut scratch.scores);
        }
    }

    fn room(&self, _from: Place, to: Place, _batch: usize) -> Room {
        // Each head has its scores `[keys][queries]` and one plane for sums.
        let scores = floats(&[self.heads, to.shape.positions() + 1, to.stride()]);
        Room { scores, ..Room::default() }
    }
}

impl Stored for Attention {
    type Attributes = Self;

    fn write(&self, _node: &mut NodeWriter) -> Self {
        *self
    }

    fn read(attributes: Self, _node: &mut NodeTensors) -> Result<Self, Error> {
        Ok(attributes)
    }
}

/// `softmax(Kᵀ Q / √d)` weighs `V`, for each head, on planes `[features][tokens]`.
fn attend(heads: usize, to: Place, qkv: &[f32], out: &mut [f32], scores: &mut [f32]) {
    let (stride, tokens) = (to.stride(), to.shape.positions());
    let size = to.shape.features / heads;
    let (q, kv) = qkv.split_at(to.sample());
    let (k, v) = kv.split_at(to.sample());
    let space = (tokens + 1) * stride;
    let rows = Strides { row: stride, column: 1 };
    let columns = Strides { row: 1, column: stride };
    let scale = 1.0 / (size as f32).sqrt();
    out.par_chunks_exact_mut(size * stride).zip(scores.par_chunks_exact_mut(space)).enumerate().for_each(
        |(head, (out, scores))| {
            let part = |x: &'_ [f32]| -> std::ops::Range<usize> {
                debug_assert!(x.len() >= (head + 1) * size * stride);
                head * size * stride..(head + 1) * size * stride
            };
            let (scores, sums) = scores.split_at_mut(tokens * stride);
            math::matmul(
                [tokens, tokens, size],
                scores,
                rows,
                &k[part(k)],
                columns,
                &q[part(q)],
                rows,
                scale,
                1,
            );
            math::softmax_columns(scores, stride, sums);
            math::matmul([size, tokens, tokens], out, rows, &v[part(v)], rows, scores, rows, 1.0, 1);
        },
    );
}
