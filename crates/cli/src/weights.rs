//! The weights of a model in a safetensors file of any framework, as `condensed` takes them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use condensed::architectures::{NamedTensor, mask_name};
use safetensors::Dtype;

use crate::mask::model::Checkpoint;

/// From this share of exact zeros on, a weight without a mask counts as sparse.
const SPARSE_ENOUGH: f64 = 0.5;

/// The tensors of a model by name, with their masks.
pub struct Weights {
    /// All floating-point tensors but masks and gradients. Where there is a mask, values outside are 0.
    pub tensors: BTreeMap<String, NamedTensor>,
    /// The weights whose masks were told by their zeros, sorted.
    pub masks_from_zeros: Vec<String>,
}

impl Weights {
    /// Takes the tensors of a file: weights with their masks (U8 or BOOL, `NAME.mask` of `NAME.weight`) and all
    /// others, F32. Gradients and PyTorch's counters of batches are left out. A mask of ones alone is none.
    ///
    /// # Errors
    /// If a tensor has another type, is not finite, or a mask does not fit its weight or has none.
    pub fn of(file: &Checkpoint) -> Result<Self> {
        let is_mask = |name: &str| name.ends_with(".mask");
        let mut masks: BTreeMap<&str, (Dtype, &[usize], &[u8])> = file
            .tensors()
            .filter(|(name, ..)| is_mask(name))
            .map(|(name, dtype, shape, data)| (name, (dtype, shape, data)))
            .collect();
        let (mut tensors, mut masks_from_zeros) = (BTreeMap::new(), Vec::new());
        for (name, dtype, shape, data) in file.tensors() {
            if is_mask(name) || name.ends_with(".grad") || name.ends_with("num_batches_tracked") {
                continue;
            }
            let mut values = floats(file, name, dtype, data)?;
            let can_be_sparse = shape.len() >= 2 && name.ends_with("weight");
            let mask = match masks.remove(mask_name(name).as_str()) {
                Some(mask) => Some(bits(file, name, shape, mask)?),
                None if can_be_sparse => {
                    let mask: Vec<bool> = values.iter().map(|v| *v != 0.0).collect();
                    let zeros = mask.iter().filter(|active| !**active).count();
                    let sparse = zeros > 0 && zeros as f64 >= SPARSE_ENOUGH * mask.len() as f64;
                    if sparse {
                        masks_from_zeros.push(name.to_string());
                    }
                    sparse.then_some(mask)
                }
                None => None,
            };
            let mask = mask.filter(|mask| mask.contains(&false));
            if let Some(mask) = &mask {
                values.iter_mut().zip(mask).filter(|(_, active)| !**active).for_each(|(v, _)| *v = 0.0);
            }
            tensors.insert(name.to_string(), NamedTensor { shape: shape.to_vec(), values, mask });
        }
        if let Some(name) = masks.keys().next() {
            return Err(file.error(format!("`{name}` is the mask of no tensor; add the weight or remove it")));
        }
        Ok(Self { tensors, masks_from_zeros })
    }
}

/// The values of an F32 tensor.
///
/// # Errors
/// If it has another type, or a value is NaN or infinite.
pub fn floats(file: &Checkpoint, name: &str, dtype: Dtype, data: &[u8]) -> Result<Vec<f32>> {
    if dtype != Dtype::F32 {
        return Err(file.error(format!("tensor {name:?} is {dtype}, but must be F32; convert it first")));
    }
    let values: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(file.error(format!("tensor {name:?} is {} at position {i}", values[i]))),
        None => Ok(values),
    }
}

fn bits(
    file: &Checkpoint,
    weight: &str,
    shape: &[usize],
    (dtype, mask_shape, data): (Dtype, &[usize], &[u8]),
) -> Result<Vec<bool>> {
    let name = mask_name(weight);
    if !matches!(dtype, Dtype::U8 | Dtype::BOOL) {
        return Err(
            file.error(format!("tensor {name:?} is {dtype}, but must be U8 or BOOL; convert it first"))
        );
    }
    if mask_shape != shape {
        return Err(file.error(format!(
            "tensor {name:?} has shape {mask_shape:?}, but {weight:?} has {shape:?}; they must be the same"
        )));
    }
    if let Some(i) = data.iter().position(|byte| *byte > 1) {
        return Err(
            file.error(format!("tensor {name:?} has {} at position {i}; only 0 and 1 may be", data[i]))
        );
    }
    Ok(data.iter().map(|byte| *byte == 1).collect())
}

/// What the file of a model holds.
pub enum Model {
    /// A condensed network.
    Condensed(condensed::Network),
    /// Named tensors, dense or with masks.
    Weights(Weights),
}

impl Model {
    /// The model in the `bytes` of the file `path`.
    ///
    /// # Errors
    /// If they are neither a condensed network nor a safetensors file with F32 weights.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file = Checkpoint::parse(path, bytes)?;
        if file.metadata("format") == Some("srigl-condensed") {
            return Ok(Self::Condensed(condensed::from_bytes(bytes).map_err(|e| file.error(e))?));
        }
        Weights::of(&file).map(Self::Weights)
    }
}
