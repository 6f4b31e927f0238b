//! A file of tensors seen as layers: read with suspicion, edited in memory, written whole or not at all.
//!
//! Nothing here trusts the file. Its header is checked against its size before anything is allocated for it, numbers are
//! read when they are asked for, and a tensor's type, shape and values are checked then.

mod layers;
mod open;
mod pickle;
mod tensor;

use crate::atomic::{self, Staged};
use crate::{Error, RunFolder};
pub use layers::{FileLayer, LayerNames};
pub(crate) use open::weights_digest;
use safetensors::tensor::Dtype;
use sparsity_core::{Error as Refused, Mask};
pub use srigl_tensors::printable;
use srigl_tensors::{memory, regular};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
pub use tensor::Tensor;
use tensor::{Data, FLOATS, encode, zero_inactive};

/// Longest header that readers accept, in bytes.
const MAX_HEADER: usize = 100_000_000;

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
    format!("{}.mask", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Name of the dense gradient of a weight.
fn grad_name(weight: &str) -> String {
    format!("{}.grad", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Whether so many zeros among the values of a weight tell its mask: half of them or more, but not all, which is a weight
/// that has not been trained yet, as torchvision's heads.
pub fn zeros_tell_a_mask(zeros: usize, values: usize) -> bool {
    zeros < values && 2 * zeros >= values
}

/// All bytes of a file.
///
/// # Errors
/// [`Error::Read`] if it cannot be read, is something that may have no end, such as a device, or takes more memory than the
/// [budget](srigl_tensors::memory).
pub fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    regular::read(path).map_err(|cause| Error::Read { path: path.to_path_buf(), cause })
}

/// The tensors of one file, by name.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    metadata: Option<BTreeMap<String, String>>,
    tensors: BTreeMap<String, Tensor>,
    notes: Vec<String>,
}

impl Store {
    /// A file without tensors, to be filled and written.
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_path_buf(), metadata: None, tensors: BTreeMap::new(), notes: Vec::new() }
    }

    /// What was guessed when it was read, in a few words each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Checks that these tensors may be in memory at the same time, each with its numbers as F32.
    ///
    /// # Errors
    /// [`Error::Tensors`] if they take more than the [budget](srigl_tensors::memory).
    pub fn check_memory<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<(), Error> {
        let numbers = names.into_iter().filter_map(|name| self.get(name)).map(|tensor| tensor.len() as u64);
        let bytes =
            numbers.map(|count| count.checked_mul(4)).try_fold(0u64, |sum, bytes| sum.checked_add(bytes?));
        memory::check(bytes)
            .map_err(|error| self.error(format!("its tensors are too large together: {error}")))
    }

    /// The file's metadata.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata.as_ref()
    }

    /// Adds or replaces a tensor with these bytes.
    pub fn insert(&mut self, name: impl Into<String>, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.insert(name.into(), Tensor { dtype, shape, data: Data::Bytes(bytes) });
    }

    /// The numbers of a tensor, little-endian.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read any more.
    pub fn bytes<'t>(&self, tensor: &'t Tensor) -> Result<std::borrow::Cow<'t, [u8]>, Error> {
        tensor.bytes().map_err(|cause| self.cannot_read(cause))
    }

    /// The numbers of a tensor of floats, of any of the types F32, F16, BF16 and F64.
    ///
    /// # Errors
    /// If it has another type, or a value is NaN or infinite.
    pub fn finite_floats(&self, name: &str, tensor: &Tensor) -> Result<Vec<f32>, Error> {
        let values = tensor.floats().map_err(|cause| self.cannot_read(cause))?;
        let values = values.ok_or_else(|| {
            self.error(format!(
                "tensor {name:?} is {}, but must be {}; convert it first",
                tensor.dtype,
                floats()
            ))
        })?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(self.error(format!("tensor {name:?} is {} at position {i}", values[i]))),
            None => Ok(values),
        }
    }

    /// Whether the layer's weights are floats.
    pub fn has_floats(&self, layer: &FileLayer) -> bool {
        self.tensors.get(&layer.weight).is_some_and(Tensor::is_float)
    }

    /// The layer's weights `[N · M]`.
    ///
    /// # Errors
    /// If they are no floats, or one is NaN or infinite.
    pub fn weights(&self, layer: &FileLayer) -> Result<Vec<f32>, Error> {
        let weights = self.floats(layer, &layer.weight, "weight")?;
        weights.ok_or_else(|| self.error(format!("tensor `{}` is missing", layer.weight)))
    }

    /// The layer's dense gradient `[N · M]`, if the file has it.
    ///
    /// # Errors
    /// If it is no floats, has another shape than the weights, or one value is NaN or infinite.
    pub fn grads(&self, layer: &FileLayer) -> Result<Option<Vec<f32>>, Error> {
        self.floats(layer, &layer.grad(), "gradient")
    }

    /// The layer's mask and its type, if the file has it.
    ///
    /// # Errors
    /// If it is neither U8 nor BOOL, has another shape than the weights, or a value is neither 0 nor 1.
    pub fn mask(&self, layer: &FileLayer) -> Result<Option<(Mask, Dtype)>, Error> {
        let name = layer.mask();
        let Some(tensor) = self.of_layer(layer, &name, &[Dtype::U8, Dtype::BOOL])? else { return Ok(None) };
        let bytes = layer.as_rows(&self.bytes(tensor)?);
        let mask = Mask::from_bytes(layer.spec.neurons(), layer.spec.dense_fan_in(), &bytes)
            .map_err(|e| self.error(format!("tensor `{name}`: {e}")))?;
        Ok(Some((mask, tensor.dtype)))
    }

    /// Whether the file has a mask for the layer.
    pub fn has_mask(&self, layer: &FileLayer) -> bool {
        self.tensors.contains_key(&layer.mask())
    }

    /// Replaces the layer's weights, in the type that they have.
    pub fn set_weights(&mut self, layer: &FileLayer, weights: &[f32]) {
        if let Some(tensor) = self.tensors.get_mut(&layer.weight) {
            tensor.data = Data::Bytes(encode(tensor.dtype, &layer.in_file_order(weights)));
        }
    }

    /// Makes the layer's weights 0 where any of the masks is 0. The others stay as they are, bit for bit.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read any more.
    pub fn mask_weights(&mut self, layer: &FileLayer, masks: &[&Mask]) -> Result<(), Error> {
        let Some(tensor) = self.tensors.get(&layer.weight) else { return Ok(()) };
        let mut bytes = self.bytes(tensor)?.into_owned();
        for mask in masks {
            zero_inactive(&mut bytes, tensor.dtype, &layer.in_file_order(&mask.to_bytes()));
        }
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        self.insert(layer.weight.clone(), dtype, shape, bytes);
        Ok(())
    }

    /// Adds or replaces the layer's mask, as U8 or BOOL.
    pub fn set_mask(&mut self, layer: &FileLayer, mask: &Mask, dtype: Dtype) {
        self.insert(
            layer.mask(),
            dtype,
            layer.file_shape(),
            layer.in_file_order(&mask.to_bytes()).into_owned(),
        );
    }

    /// Makes weights 0 outside their masks, and takes the masks and gradients out. A tensor without a weight that it
    /// belongs to is neither.
    ///
    /// # Errors
    /// If a mask is neither U8 nor BOOL, or has another shape than its weight.
    pub fn apply_masks(&mut self) -> Result<(), Error> {
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        for name in names {
            let (mask, grad) = (mask_name(&name), grad_name(&name));
            if self.tensors.get(&name).is_none_or(|tensor| tensor.shape.len() < 2) {
                continue;
            }
            self.tensors.remove(&grad);
            let Some(mask_tensor) = self.tensors.remove(&mask) else { continue };
            let weight = self.tensors.get_mut(&name).expect("one of the names");
            if !matches!(mask_tensor.dtype, Dtype::U8 | Dtype::BOOL) || mask_tensor.shape != weight.shape {
                let (dtype, got, want) = (mask_tensor.dtype, mask_tensor.shape, weight.shape.clone());
                return Err(self.error(format!(
                    "tensor `{}` is {dtype} {got:?}, but must be U8 or BOOL {want:?}, as its weight is",
                    printable(&mask)
                )));
            }
            let values = Box::new(weight.clone());
            weight.data = Data::Masked { values, mask: Box::new(mask_tensor) };
        }
        Ok(())
    }

    /// Renames all tensors, and drops those for which `name` has none.
    pub fn rename(&mut self, name: impl Fn(&str) -> Option<String>) {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors.into_iter().filter_map(|(old, tensor)| Some((name(&old)?, tensor))).collect();
    }

    /// Drops the layer's gradient.
    pub fn remove_grads(&mut self, layer: &FileLayer) {
        self.tensors.remove(&layer.grad());
    }

    /// Writes everything to a file that will be called `output`, as [`atomic::stage`] does.
    ///
    /// # Errors
    /// As [`atomic::stage`]; [`Error::Read`] if this file cannot be read any more. Nothing is left behind then.
    pub fn stage(&self, output: &Path) -> Result<Staged, Error> {
        self.staged(|write| atomic::stage(output, write))
    }

    /// Writes everything to a file of a run.
    ///
    /// # Errors
    /// As [`RunFolder::stage`]; [`Error::Read`] if this file cannot be read any more. Nothing is left behind then.
    pub fn stage_in(&self, folder: &RunFolder, name: &str) -> Result<Staged, Error> {
        self.staged(|write| folder.stage(name, write))
    }

    fn staged(
        &self,
        stage: impl FnOnce(&mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> Result<Staged, Error>,
    ) -> Result<Staged, Error> {
        let mut unread = None;
        let staged = stage(&mut |to| {
            let tensors = self.tensors().map(|(name, t)| (name, t.dtype, t.shape.as_slice()));
            let order = srigl_tensors::write_header(self.metadata.as_ref(), tensors, MAX_HEADER, to)?;
            for name in order {
                let mut written = Ok(());
                let read = self.tensors[name].chunks(&mut |chunk| {
                    written = to.write_all(chunk);
                    match &written {
                        Ok(()) => Ok(()),
                        Err(cause) => Err(cause.kind().into()),
                    }
                });
                written?;
                if let Err(cause) = read {
                    let kind = cause.kind();
                    unread = Some(cause);
                    return Err(kind.into());
                }
            }
            Ok(())
        });
        match unread {
            Some(cause) => Err(self.cannot_read(cause)),
            None => staged,
        }
    }

    fn floats(&self, layer: &FileLayer, name: &str, what: &'static str) -> Result<Option<Vec<f32>>, Error> {
        let Some(tensor) = self.of_layer(layer, name, &FLOATS)? else { return Ok(None) };
        let values = tensor.floats().map_err(|cause| self.cannot_read(cause))?;
        let values = layer.as_rows(&values.expect("of a type of floats"));
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let (neuron, input) = (i / layer.spec.dense_fan_in(), i % layer.spec.dense_fan_in());
            let (layer, value) = (layer.spec.name.clone(), values[i]);
            return Err(self.error(Refused::NotFinite { layer, what, value, neuron, input }));
        }
        Ok(Some(values))
    }

    /// A tensor of a layer if the file has it; its type is one of `types`, and its shape the layer's.
    fn of_layer(&self, layer: &FileLayer, name: &str, types: &[Dtype]) -> Result<Option<&Tensor>, Error> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        if !types.contains(&tensor.dtype) {
            let types: Vec<String> = types.iter().map(Dtype::to_string).collect();
            let (got, types) = (tensor.dtype, types.join(" or "));
            return Err(
                self.error(format!("tensor `{name}` is {got}, but must be {types}; convert it first"))
            );
        }
        if tensor.shape != layer.file_shape() {
            let (got, weight) = (&tensor.shape, &layer.weight);
            return Err(self.error(format!(
                "tensor `{name}` has shape {got:?}, but `{weight}` has {:?}; they must be the same",
                layer.file_shape()
            )));
        }
        Ok(Some(tensor))
    }

    /// An error about this file.
    pub fn error(&self, cause: impl Display) -> Error {
        Error::Tensors { path: self.path.clone(), what: cause.to_string() }
    }

    fn cannot_read(&self, cause: io::Error) -> Error {
        Error::Read { path: self.path.clone(), cause }
    }
}

/// The types of floats, for people.
fn floats() -> String {
    FLOATS.map(|dtype| dtype.to_string()).join(" or ")
}
