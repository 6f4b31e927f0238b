//! A linear layer.

use super::weights::{self, Form};
use super::{Cost, Layer, LayerMut, Operation, Passing, Run, Stored};
use crate::buffer::Room;
use crate::engine::{Call, Place, Planning};
use crate::file::{NodeTensors, NodeWriter};
use crate::math::{self, Strides};
use crate::planes::PlaneLayer;
use crate::{Error, LinearKernel, NodeError, Shape, Weight};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A linear layer over the features, at each position on its own: `y = W x + b`. Absent weights are not weights of 0: see
/// [`LinearKernel::run`].
#[derive(Clone, PartialEq)]
pub struct Linear {
    /// Weights `[out features, in features]`.
    pub weight: Weight,
    /// Bias `[out features]`.
    pub bias: Vec<f32>,
}

impl fmt::Debug for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linear {{ features: {}, weight: {:?} }}", self.bias.len(), self.weight)
    }
}

impl Operation for Linear {
    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape, NodeError> {
        weights::check(&self.weight, &self.bias, inputs[0].features)?;
        Ok(Shape { features: self.bias.len(), ..inputs[0] })
    }

    fn cost(&self, input: Shape, _output: Shape) -> Cost {
        weights::cost(&self.weight, &self.bias, input.positions())
    }

    /// Chooses layout and kernel by the shape of the input.
    fn plan(&self, planning: &Planning) -> Result<Box<dyn Run>, Error> {
        let &Planning { input, isa, threads } = planning;
        let plane = (input.positions(), input.stride());
        Ok(match &self.weight {
            Weight::Condensed(weight) if input.positions() == 1 => {
                Box::new(LinearKernel::with_isa(weight, &self.bias, isa)?)
            }
            Weight::Condensed(weight) => {
                Box::new(PlaneLayer::linear(isa, &weight.rows(), &self.bias, plane, threads))
            }
            Weight::Dense(weight) if input.positions() == 1 => {
                Box::new(DenseVector { weight: transposed(weight, self.bias.len()), bias: self.bias.clone() })
            }
            Weight::Dense(weight) => Box::new(PlaneLayer::dense_linear(isa, weight, &self.bias, plane)),
        })
    }

    fn packed(&self, _input: Shape) -> u64 {
        weights::packed(&self.weight, &self.bias, true)
    }

    fn gains_from_batch(&self, input: Shape) -> bool {
        input.positions() == 1
    }

    fn layer(&self) -> Option<Layer<'_>> {
        Some(Layer { weight: &self.weight, bias: &self.bias, padded: false, whole: true })
    }

    fn layer_mut(&mut self) -> Option<LayerMut<'_>> {
        Some(LayerMut { weight: &mut self.weight, bias: &mut self.bias })
    }

    fn pass_constants(&self, _features: &mut Vec<(usize, Option<f32>)>, _positions: usize) -> Passing {
        Passing::Ends
    }
}

impl Run for LinearKernel {
    fn run(&self, call: Call) {
        let Call { batch, from, to, x, second, out, relu, scratch } = call;
        let out = &mut out[..batch * to.sample()];
        self.run_in(batch, &x[..batch * from.sample()], out, scratch);
        finish(out, second, relu);
    }

    fn room(&self, _from: Place, _to: Place, batch: usize) -> Room {
        LinearKernel::room(self, batch)
    }

    fn bytes(&self) -> usize {
        LinearKernel::bytes(self)
    }
}

/// A dense layer of vectors; the weights `[M, N]`, column by column of the matrix.
struct DenseVector {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl fmt::Debug for DenseVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DenseVector {{ features: {} }}", self.bias.len())
    }
}

impl Run for DenseVector {
    /// `out[b][n] = bias[n] + Σ x[b][m] · w[m][n]`.
    fn run(&self, call: Call) {
        let Call { batch, to, x, second, out, relu, .. } = call;
        let out = &mut out[..batch * to.sample()];
        let n = self.bias.len().max(1);
        let m = self.weight.len() / n;
        for out in out.chunks_exact_mut(n) {
            out.copy_from_slice(&self.bias);
        }
        let rows = |row| Strides { row, column: 1 };
        let threads = rayon::current_num_threads();
        math::add_matmul([batch, n, m], out, rows(n), x, rows(m), &self.weight, rows(n), threads);
        finish(out, second, relu);
    }

    fn bytes(&self) -> usize {
        4 * (self.weight.len() + self.bias.len())
    }
}

/// Residual and ReLU after kernels that do not do it.
fn finish(out: &mut [f32], residual: Option<&[f32]>, relu: bool) {
    if let Some(residual) = residual {
        out.iter_mut().zip(residual).for_each(|(out, r)| *out += r);
    }
    if relu {
        math::relu(out);
    }
}

/// A matrix with so many rows, column by column.
fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attributes {
    weight: Form,
}

impl Stored for Linear {
    type Attributes = Attributes;

    fn write(&self, node: &mut NodeWriter) -> Attributes {
        node.vector("bias", &self.bias);
        Attributes { weight: weights::write(&self.weight, self.bias.len(), node) }
    }

    fn read(attributes: Attributes, node: &mut NodeTensors) -> Result<Self, Error> {
        let bias = node.vector("bias")?;
        Ok(Self { weight: weights::read(attributes.weight, bias.len(), node)?, bias })
    }
}
