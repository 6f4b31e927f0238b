//! What linear layers and convolutions share: their weights.

use super::{Cost, check_floats};
use crate::file::{NodeTensors, NodeWriter};
use crate::{CondensedWeight, Error, FanIn, Indices, NodeError, TensorError, Weight};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// Checks that `weight` has a row for each number of `bias`, of `fan_in` columns.
pub(super) fn check(weight: &Weight, bias: &[f32], fan_in: usize) -> Result<(), NodeError> {
    check_floats("bias", bias, bias.len())?;
    match weight {
        Weight::Dense(values) => {
            let count = bias.len().checked_mul(fan_in).ok_or(NodeError::TooManyWeights)?;
            check_floats("weight", values, count)
        }
        Weight::Condensed(weight) if (weight.neurons(), weight.inputs()) != (bias.len(), fan_in) => {
            let (neurons, inputs) = (weight.neurons(), weight.inputs());
            Err(NodeError::WeightShape { neurons, inputs, expected: bias.len(), fan_in })
        }
        Weight::Condensed(_) => Ok(()),
    }
}

/// Of a layer that computes with each weight at `positions`.
pub(super) fn cost(weight: &Weight, bias: &[f32], positions: usize) -> Cost {
    let weights = match weight {
        Weight::Dense(values) => values.len(),
        Weight::Condensed(weight) => weight.values().len(),
    };
    let bytes = weight.bytes() + 4 * bias.len();
    Cost { multiplications: weights as u64 * positions as u64, bytes: bytes as u64 }
}

/// Bytes that kernels which read weights one by one, and their making, take at most for each weight and neuron: rows
/// twice, lookups, tiles.
const PACKED_WEIGHT: u64 = 48;
const PACKED_NEURON: u64 = 96;

/// Bytes that a layer takes at most when it is planned; `by_products` if dense weights stay a matrix.
pub(super) fn packed(weight: &Weight, bias: &[f32], by_products: bool) -> u64 {
    let (weights, each) = match weight {
        Weight::Dense(values) if by_products => (values.len(), size_of::<f32>() as u64),
        Weight::Dense(values) => (values.len(), PACKED_WEIGHT),
        Weight::Condensed(weight) => (weight.values().len(), PACKED_WEIGHT),
    };
    let neurons = PACKED_NEURON.saturating_mul(bias.len() as u64);
    each.saturating_mul(weights as u64).saturating_add(neurons)
}

/// The form of a weight in a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(crate) enum Form {
    Dense,
    Condensed {
        inputs: usize,
        /// Neurons that share a row of indices.
        #[serde(default = "alone", skip_serializing_if = "is_alone")]
        group: usize,
    },
}

fn alone() -> usize {
    1
}

fn is_alone(group: &usize) -> bool {
    *group == 1
}

/// Hands the tensors of a weight with `neurons` rows over.
pub(super) fn write(weight: &Weight, neurons: usize, node: &mut NodeWriter) -> Form {
    match weight {
        Weight::Dense(values) => {
            node.floats("weight", &[neurons, values.len() / neurons], values);
            Form::Dense
        }
        Weight::Condensed(weight) => {
            let active = weight.active();
            let shape = match weight.fan_in() {
                FanIn::Constant(k) => vec![active.len(), *k],
                FanIn::Varying(pointers) => {
                    node.words("pointers", pointers);
                    vec![weight.values().len()]
                }
            };
            node.words("active", active);
            node.floats("values", &shape, weight.values());
            let group = weight.pattern().group();
            let shape: Vec<usize> = match shape[..] {
                [active, k] => vec![active.div_ceil(group), k],
                _ => shape,
            };
            node.add("indices", index_type(weight.inputs()), &shape, weight.indices().to_bytes());
            Form::Condensed { inputs: weight.inputs(), group }
        }
    }
}

/// The weight of this form with `neurons` rows.
pub(super) fn read(form: Form, neurons: usize, node: &mut NodeTensors) -> Result<Weight, Error> {
    let Form::Condensed { inputs, group } = form else {
        let (shape, values) = node.floats("weight", 2)?;
        if shape[0] != neurons {
            return Err(node.wrong("weight", TensorError::RowsOfBias { got: shape[0], bias: neurons }));
        }
        return Ok(Weight::Dense(values));
    };
    let active = node.words("active")?;
    let constant = !node.has("pointers");
    let rank = if constant { 2 } else { 1 };
    let (shape, values) = node.floats("values", rank)?;
    let (index_shape, indices) = match index_type(inputs) {
        Dtype::U8 => node.numbers("indices", Dtype::U8, rank, |i| u8::from_le_bytes(i).into())?,
        Dtype::U16 => node.numbers("indices", Dtype::U16, rank, |i| u16::from_le_bytes(i).into())?,
        _ => node.numbers("indices", Dtype::U32, rank, u32::from_le_bytes)?,
    };
    if group == 0 || group > 1 && (!constant || group > active.len()) {
        let neurons = if constant { active.len() } else { 0 };
        return Err(node.wrong("indices", TensorError::Group { group, neurons }));
    }
    let mut expected = shape.clone();
    expected[0] = expected[0].div_ceil(group);
    if index_shape != expected {
        return Err(match group {
            1 => node.wrong("indices", TensorError::OtherShape { got: index_shape, values: shape }),
            _ => node.wrong("indices", TensorError::GroupShape { got: index_shape, values: shape, group }),
        });
    }
    let fan_in = if constant {
        if shape[0] != active.len() {
            return Err(node.wrong("values", TensorError::Rows { got: shape[0], neurons: active.len() }));
        }
        if shape[1] > inputs {
            return Err(node.wrong("values", TensorError::FanIn { got: shape[1], inputs }));
        }
        FanIn::Constant(shape[1])
    } else {
        FanIn::Varying(node.words("pointers")?)
    };
    let indices = match (&fan_in, group) {
        (FanIn::Constant(k), 2..) => repeated(&indices, *k, group, values.len()),
        _ => indices,
    };
    CondensedWeight::new(neurons, inputs, active, fan_in, indices, values).map(Weight::Condensed).map_err(
        |error| match error {
            Error::Weight(error) => Error::Node { node: node.name().to_string(), what: error.into() },
            other => other,
        },
    )
}

/// The indices of all neurons, of which `group` share each row of `k`: as many as there are values.
fn repeated(indices: &[u32], k: usize, group: usize, values: usize) -> Vec<u32> {
    let rows = indices.chunks_exact(k.max(1)).flat_map(|row| std::iter::repeat_n(row, group));
    rows.flatten().copied().take(values).collect()
}

/// As [`Indices::new`] chooses.
fn index_type(inputs: usize) -> Dtype {
    match Indices::new(Vec::new(), inputs) {
        Indices::U8(_) => Dtype::U8,
        Indices::U16(_) => Dtype::U16,
        Indices::U32(_) => Dtype::U32,
    }
}
