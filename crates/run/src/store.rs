//! A safetensors file seen as layers: read with suspicion, edited in memory, written whole or not at all.
//!
//! Nothing here trusts the file. Its header is checked against its size before anything is allocated for it,
//! and a tensor's type, shape and values are checked when it is asked for.

use crate::Error;
use crate::atomic::{self, Staged};
use safetensors::tensor::Dtype;
use sparsity_core::{Error as Refused, LayerSpec, Mask};
pub use srigl_tensors::printable;
use srigl_tensors::{RawTensor, TensorFile};
use std::borrow::Cow;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

/// Longest header that readers accept, in bytes.
const MAX_HEADER: usize = 100_000_000;

/// What a layer's tensors are called: `NAME.weight` and so on.
const WEIGHT: &str = ".weight";
const GRAD: &str = ".grad";
const MASK: &str = ".mask";

/// Name of the mask of a weight: a trailing `.weight` goes, then comes `.mask`.
///
/// ```
/// use srigl_run::mask_name;
///
/// assert_eq!(mask_name("layer1.0.conv1.weight"), "layer1.0.conv1.mask");
/// let joint = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight";
/// assert_eq!(mask_name(joint), format!("{joint}.mask"));
/// ```
pub fn mask_name(weight: &str) -> String {
    format!("{}{MASK}", weight.strip_suffix(WEIGHT).unwrap_or(weight))
}

/// All bytes of a file.
///
/// # Errors
/// [`Error::Read`] if it cannot be read, or is something that may have no end, such as a device.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        fs::read(path)
    };
    read().map_err(|cause| Error::Read { path: path.to_path_buf(), cause })
}

/// The tensors of one file, by name.
#[derive(Debug)]
pub struct Store<'a> {
    path: &'a Path,
    file: TensorFile<'a>,
}

impl<'a> Store<'a> {
    /// The tensors in the `bytes` of the file `path`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the bytes are not a safetensors file, to the last byte.
    pub fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self, Error> {
        match TensorFile::parse(bytes, MAX_HEADER) {
            Ok(file) => Ok(Self { path, file }),
            Err(what) => Err(Error::Damaged { path: path.to_path_buf(), what }),
        }
    }

    /// A file without tensors, to be filled and written to `path`.
    pub fn empty(path: &'a Path) -> Self {
        Self { path, file: TensorFile::default() }
    }

    /// The layers, sorted by name: each tensor `NAME.weight` of two or more dimensions is one. (A tensor called
    /// just `weight` has no `NAME` and is none.)
    ///
    /// # Errors
    /// If there is none, or one has an empty dimension, too many weights or an unprintable name.
    pub fn layers(&self) -> Result<Vec<LayerSpec>, Error> {
        let mut layers = Vec::new();
        for (tensor, RawTensor { shape, .. }) in &self.file.tensors {
            let Some(name) = tensor.strip_suffix(WEIGHT).filter(|name| !name.is_empty()) else { continue };
            if shape.len() < 2 {
                continue;
            }
            if name.contains(char::is_control) {
                return Err(self.error(format!("the layer name {name:?} has control characters; rename it")));
            }
            layers.push(LayerSpec::new(name, shape.clone()).map_err(|e| self.error(e))?);
        }
        if layers.is_empty() {
            let count = self.file.tensors.len();
            return Err(self.error(format!(
                "no layers: none of its {count} tensors is a `NAME.weight` with two or more dimensions"
            )));
        }
        // `a.b` is between `a` and `a.weight` as a tensor, but after `a` as a layer.
        layers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(layers)
    }

    /// All tensors, sorted by name: name, type, dimensions and bytes.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize], &[u8])> {
        self.file
            .tensors
            .iter()
            .map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice(), t.data.as_ref()))
    }

    /// The file's metadata.
    pub fn metadata(&self) -> Option<&std::collections::BTreeMap<String, String>> {
        self.file.metadata.as_ref()
    }

    /// Whether the layer's weights are F32.
    pub fn is_f32(&self, layer: &LayerSpec) -> bool {
        self.file.tensors.get(&tensor_name(layer, WEIGHT)).is_some_and(|tensor| tensor.dtype == Dtype::F32)
    }

    /// The layer's weights.
    ///
    /// # Errors
    /// If they are not F32, or one is NaN or infinite.
    pub fn weights(&self, layer: &LayerSpec) -> Result<Vec<f32>, Error> {
        let weights = self.floats(layer, WEIGHT, "weight")?;
        weights.ok_or_else(|| self.error(format!("tensor `{}` is missing", tensor_name(layer, WEIGHT))))
    }

    /// The layer's dense gradient, if the file has it.
    ///
    /// # Errors
    /// If it is not F32, has another shape than the weights, or one value is NaN or infinite.
    pub fn grads(&self, layer: &LayerSpec) -> Result<Option<Vec<f32>>, Error> {
        self.floats(layer, GRAD, "gradient")
    }

    /// The layer's mask and its type, if the file has it.
    ///
    /// # Errors
    /// If it is neither U8 nor BOOL, has another shape than the weights, or a value is neither 0 nor 1.
    pub fn mask(&self, layer: &LayerSpec) -> Result<Option<(Mask, Dtype)>, Error> {
        let Some(tensor) = self.tensor(layer, MASK, &[Dtype::U8, Dtype::BOOL])? else { return Ok(None) };
        let mask = Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &tensor.data)
            .map_err(|e| self.error(format!("tensor `{}`: {e}", tensor_name(layer, MASK))))?;
        Ok(Some((mask, tensor.dtype)))
    }

    /// Whether the file has a mask for the layer.
    pub fn has_mask(&self, layer: &LayerSpec) -> bool {
        self.file.tensors.contains_key(&tensor_name(layer, MASK))
    }

    /// Replaces the layer's weights.
    pub fn set_weights(&mut self, layer: &LayerSpec, weights: &[f32]) {
        let mut data = Vec::with_capacity(size_of_val(weights));
        weights.iter().for_each(|w| data.extend(w.to_le_bytes()));
        self.set(layer, WEIGHT, Dtype::F32, data);
    }

    /// Adds or replaces the layer's mask, as U8 or BOOL.
    pub fn set_mask(&mut self, layer: &LayerSpec, mask: &Mask, dtype: Dtype) {
        self.set(layer, MASK, dtype, mask.to_bytes());
    }

    /// Drops the layer's gradient.
    pub fn remove_grads(&mut self, layer: &LayerSpec) {
        self.file.tensors.remove(&tensor_name(layer, GRAD));
    }

    /// Adds or replaces a tensor.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        dtype: Dtype,
        shape: Vec<usize>,
        data: impl Into<Cow<'a, [u8]>>,
    ) {
        self.file.tensors.insert(name.into(), RawTensor { dtype, shape, data: data.into() });
    }

    /// Writes everything to a file that will be called `output`, as [`atomic::stage`] does.
    ///
    /// # Errors
    /// [`Error::Write`] if that fails. Nothing is left behind then.
    pub fn stage(&self, output: &Path) -> Result<Staged, Error> {
        atomic::stage(output, |to| self.file.write(MAX_HEADER, to))
    }

    fn floats(&self, layer: &LayerSpec, suffix: &str, what: &'static str) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.tensor(layer, suffix, &[Dtype::F32])? else { return Ok(None) };
        let (words, _) = tensor.data.as_chunks();
        let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let (neuron, input) = (i / layer.dense_fan_in(), i % layer.dense_fan_in());
            let (layer, value) = (layer.name.clone(), values[i]);
            return Err(self.error(Refused::NotFinite { layer, what, value, neuron, input }));
        }
        Ok(Some(values))
    }

    /// A tensor of a layer if the file has it; its type is one of `types`, and its shape the layer's.
    fn tensor(
        &self,
        layer: &LayerSpec,
        suffix: &str,
        types: &[Dtype],
    ) -> Result<Option<&RawTensor<'a>>, Error> {
        let name = tensor_name(layer, suffix);
        let Some(tensor) = self.file.tensors.get(&name) else { return Ok(None) };
        if !types.contains(&tensor.dtype) {
            let types: Vec<String> = types.iter().map(Dtype::to_string).collect();
            let (got, types) = (tensor.dtype, types.join(" or "));
            return Err(
                self.error(format!("tensor `{name}` is {got}, but must be {types}; convert it first"))
            );
        }
        if tensor.shape != layer.dims {
            let (got, weight) = (&tensor.shape, tensor_name(layer, WEIGHT));
            return Err(self.error(format!(
                "tensor `{name}` has shape {got:?}, but `{weight}` has {:?}; they must be the same",
                layer.dims
            )));
        }
        Ok(Some(tensor))
    }

    fn set(&mut self, layer: &LayerSpec, suffix: &str, dtype: Dtype, data: Vec<u8>) {
        self.insert(tensor_name(layer, suffix), dtype, layer.dims.clone(), data);
    }

    /// An error about this file.
    pub fn error(&self, cause: impl Display) -> Error {
        Error::Tensors { path: self.path.to_path_buf(), what: cause.to_string() }
    }
}

fn tensor_name(layer: &LayerSpec, suffix: &str) -> String {
    format!("{}{suffix}", layer.name)
}
