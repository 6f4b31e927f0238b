//! A safetensors file seen as layers: read with suspicion, edited in memory, written whole or not at all.
//!
//! Nothing here trusts the file. Its header is checked against its size before anything is allocated for it,
//! and a tensor's type, shape and values are checked when it is asked for.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo};
use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use sparsity_core::{Error as Refused, LayerSpec, Mask};

/// Bytes that hold the length of the header, at the start of a file.
const LENGTH_BYTES: usize = 8;

/// Longest header that readers accept.
const MAX_HEADER: usize = 100_000_000;

/// What a layer's tensors are called: `NAME.weight` and so on.
const WEIGHT: &str = ".weight";
const GRAD: &str = ".grad";
const MASK: &str = ".mask";

/// All bytes of a file.
///
/// # Errors
/// If it cannot be read, or is something that may have no end, such as a device.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read `{}`", path.display());
    let kind = fs::metadata(path).with_context(cannot)?;
    ensure!(kind.is_file(), "{}: it is not a regular file", cannot());
    fs::read(path).with_context(cannot)
}

/// The tensors of one file, by name.
pub struct Checkpoint<'a> {
    path: &'a Path,
    metadata: Option<BTreeMap<String, String>>,
    tensors: BTreeMap<String, Tensor<'a>>,
}

/// A tensor of any type: the bytes of the file until it is replaced.
struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Checkpoint<'a> {
    /// The tensors in the `bytes` of the file `path`.
    ///
    /// # Errors
    /// If the bytes are not a safetensors file, to the last byte.
    pub fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let broken = |cause: &dyn Display| {
            // The cause may quote the file: nothing of it may steer the terminal.
            let cause = cause.to_string().replace(char::is_control, "\u{fffd}");
            anyhow!("`{}` is not a safetensors file, or a damaged one: {cause}", path.display())
        };
        let (length, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
        let (json, data) = bytes[LENGTH_BYTES..].split_at(length);
        serde_json::from_slice::<DistinctNames>(json).map_err(|e| broken(&e))?;

        let tensor = |(name, info): (String, &TensorInfo)| {
            let (start, end) = info.data_offsets;
            let (dtype, shape) = (info.dtype, info.shape.clone());
            (name, Tensor { dtype, shape, data: Cow::Borrowed(&data[start..end]) })
        };
        let tensors = header.tensors().into_iter().map(tensor).collect();
        let metadata = header.metadata().clone().map(BTreeMap::from_iter);
        Ok(Self { path, metadata, tensors })
    }

    /// The layers, sorted by name: each tensor `NAME.weight` of two or more dimensions is one. (A tensor called
    /// just `weight` has no `NAME` and is none.)
    ///
    /// # Errors
    /// If there is none, or one has an empty dimension, too many weights or an unprintable name.
    pub fn layers(&self) -> Result<Vec<LayerSpec>> {
        let mut layers = Vec::new();
        for (tensor, Tensor { shape, .. }) in &self.tensors {
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
            let count = self.tensors.len();
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
        self.tensors.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice(), t.data.as_ref()))
    }

    /// The entry `key` of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether the layer's weights are F32.
    pub fn is_f32(&self, layer: &LayerSpec) -> bool {
        self.tensors.get(&tensor_name(layer, WEIGHT)).is_some_and(|tensor| tensor.dtype == Dtype::F32)
    }

    /// The layer's weights.
    ///
    /// # Errors
    /// If they are not F32, or one is NaN or infinite.
    pub fn weights(&self, layer: &LayerSpec) -> Result<Vec<f32>> {
        let weights = self.floats(layer, WEIGHT, "weight")?;
        weights.ok_or_else(|| self.error(format!("tensor `{}` is missing", tensor_name(layer, WEIGHT))))
    }

    /// The layer's dense gradient, if the file has it.
    ///
    /// # Errors
    /// If it is not F32, has another shape than the weights, or one value is NaN or infinite.
    pub fn grads(&self, layer: &LayerSpec) -> Result<Option<Vec<f32>>> {
        self.floats(layer, GRAD, "gradient")
    }

    /// The layer's mask and its type, if the file has it.
    ///
    /// # Errors
    /// If it is neither U8 nor BOOL, has another shape than the weights, or a value is neither 0 nor 1.
    pub fn mask(&self, layer: &LayerSpec) -> Result<Option<(Mask, Dtype)>> {
        let Some(tensor) = self.tensor(layer, MASK, &[Dtype::U8, Dtype::BOOL])? else { return Ok(None) };
        let mask = Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &tensor.data)
            .map_err(|e| self.error(format!("tensor `{}`: {e}", tensor_name(layer, MASK))))?;
        Ok(Some((mask, tensor.dtype)))
    }

    /// Whether the file has a mask for the layer.
    pub fn has_mask(&self, layer: &LayerSpec) -> bool {
        self.tensors.contains_key(&tensor_name(layer, MASK))
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
        self.tensors.remove(&tensor_name(layer, GRAD));
    }

    /// Writes everything to a temporary file beside `output`, as [`stage`] does.
    ///
    /// # Errors
    /// If that fails. Nothing is left behind then.
    pub fn stage(&self, output: &Path) -> Result<Staged> {
        stage(output, |file| self.write(file))
    }

    /// The format: length of the header, header, data. Not `safetensors::serialize`: it would hold all of it
    /// in memory once more, and order the metadata differently on each run.
    fn write(&self, file: &mut fs::File) -> Result<()> {
        // As that crate does it: wide types first, so that every tensor is aligned.
        let mut ordered: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        ordered.sort_by_key(|(name, tensor)| (Reverse(tensor.dtype), *name));
        let (mut tensors, mut end) = (BTreeMap::new(), 0);
        for (name, tensor) in &ordered {
            let start = end;
            end += tensor.data.len();
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            tensors.insert(name.as_str(), TensorInfo { dtype, shape, data_offsets: (start, end) });
        }
        let mut header = serde_json::to_vec(&Header { metadata: self.metadata.as_ref(), tensors })?;
        header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
        ensure!(header.len() <= MAX_HEADER, "its header would be longer than the format allows");

        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        ordered.iter().try_for_each(|(_, tensor)| file.write_all(&tensor.data))?;
        Ok(())
    }

    fn floats(&self, layer: &LayerSpec, suffix: &str, what: &'static str) -> Result<Option<Vec<f32>>> {
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
    fn tensor(&self, layer: &LayerSpec, suffix: &str, types: &[Dtype]) -> Result<Option<&Tensor<'a>>> {
        let name = tensor_name(layer, suffix);
        let Some(tensor) = self.tensors.get(&name) else { return Ok(None) };
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
        let tensor = Tensor { dtype, shape: layer.dims.clone(), data: Cow::Owned(data) };
        self.tensors.insert(tensor_name(layer, suffix), tensor);
    }

    /// An error about this file.
    pub fn error(&self, cause: impl Display) -> Error {
        anyhow!("`{}`: {cause}", self.path.display())
    }
}

fn tensor_name(layer: &LayerSpec, suffix: &str) -> String {
    format!("{}{suffix}", layer.name)
}

/// Has `write` fill a temporary file beside `output`, down to the disk.
///
/// # Errors
/// If that fails, for example because the disk is full. Nothing is left behind then.
pub fn stage(output: &Path, write: impl FnOnce(&mut fs::File) -> Result<()>) -> Result<Staged> {
    let cannot = || format!("cannot write `{}`", output.display());
    // To rename a file over `/dev/null` would succeed, and harm.
    let occupied = fs::metadata(output).is_ok_and(|kind| !kind.is_file());
    ensure!(!occupied, "{}: it is there already, and not a regular file", cannot());
    let folder = match output.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    ensure!(folder.is_dir(), "{}: there is no folder `{}`; make it first", cannot(), folder.display());

    let mut builder = tempfile::Builder::new();
    #[cfg(unix)] // temporary files are private by default; this one is to be an ordinary file
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(cannot)?;
    write(file.as_file_mut()).with_context(cannot)?;
    file.as_file().sync_all().with_context(cannot)?;
    Ok(Staged { file, output: output.to_path_buf() })
}

/// An output that is complete and on the disk, but does not have its name yet. Dropped, it disappears.
pub struct Staged {
    file: tempfile::NamedTempFile,
    output: PathBuf,
}

impl Staged {
    /// Gives it its name; what had the name before is replaced at once.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn commit(self) -> Result<()> {
        let renamed: io::Result<fs::File> = self.file.persist(&self.output).map_err(|e| e.error);
        renamed.with_context(|| format!("cannot write `{}`", self.output.display())).map(drop)
    }
}

/// The JSON at the start of a file.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// A header that names no tensor twice. The format forbids it, but most readers take the last one silently.
struct DistinctNames;

impl<'de> Deserialize<'de> for DistinctNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = DistinctNames;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DistinctNames, A::Error> {
                let mut seen = BTreeSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if let Some(name) = seen.replace(name) {
                        return Err(de::Error::custom(format!("tensor `{name}` is there twice")));
                    }
                }
                Ok(DistinctNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}
