//! Networks as files, read with suspicion and written whole or not at all.
//!
//! A file is in the [safetensors] format: the length of a header (8 bytes, little-endian), the header (JSON), the
//! data. Its `__metadata__` has three entries:
//!
//! | key       | value                                                                     |
//! |-----------|---------------------------------------------------------------------------|
//! | `format`  | `srigl-condensed`                                                         |
//! | `version` | `1`                                                                       |
//! | `network` | JSON: a list of nodes `{"name": …, "op": …, "inputs": [places in the list]}` |
//!
//! An operation without attributes is its name, such as `"relu"`; others have theirs in an object. These
//! exist, with the tensors of a node called `NAME`, all F32 unless noted:
//!
//! | `op`                                                                        | tensors                        |
//! |-----------------------------------------------------------------------------|--------------------------------|
//! | `{"input": {"features": 3, "height": 32, "width": 32}}`                     |                                |
//! | `{"linear": {"weight": FORM}}`                                              | weights, `NAME.bias` `[N]`     |
//! | `{"conv2d": {"weight": FORM, "window": WINDOW, "groups": 1}}`               | weights, `NAME.bias` `[N]`     |
//! | `"affine"`                                                                  | `NAME.scale`, `NAME.shift` `[features]` |
//! | `"relu"`, `"gelu"`, `"hard_sigmoid"`, `"hard_swish"`, `"add"`, `"scale"`     |                                |
//! | `"global_avg_pool"`, `"flatten"`, `"class_token"`                           |                                |
//! | `{"max_pool": WINDOW}`                                                      |                                |
//! | `{"layer_norm": {"epsilon": 1e-6}}`                                         | `NAME.scale`, `NAME.shift` `[features]` |
//! | `"tokens"`                                                                  | `NAME.class` `[features]`, `NAME.positions` `[tokens, features]` |
//! | `{"attention": {"heads": 12}}`                                              |                                |
//!
//! `WINDOW` is `{"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}`, vertical first.
//! `FORM` is `"dense"`, with weights `NAME.weight` `[N, M]`, or `{"condensed": {"inputs": M}}`, with
//!
//! - `NAME.active` (U32) `[A]`: the neurons that have weights, ascending;
//! - `NAME.values` `[A, k]`, or `[nnz]` if the fan-in varies;
//! - `NAME.indices`, of the same shape: the input that each value reads, ascending in each row; U8 if `M ≤ 2^8`,
//!   U16 if `M ≤ 2^16`, else U32. With `{"condensed": {"inputs": M, "group": G}}`, which needs constant fan-in, every `G` active
//!   neurons share a row, the last ones maybe fewer, and the shape is `[⌈A / G⌉, k]`;
//! - `NAME.pointers` (U32) `[A + 1]`, if the fan-in varies: row `a` has the values `pointers[a]..pointers[a + 1]`.
//!
//! Other tensors, metadata or attributes are refused. The same network gives the same bytes.
//!
//! [safetensors]: https://huggingface.co/docs/safetensors

use crate::ops::OpRecord;
use crate::{Error, FileError, Network, Node, NodeError, TensorError};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use srigl_tensors::{RawTensor, Refused, TensorFile, atomic, printable, regular};
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT: &str = "srigl-condensed";
const VERSION: &str = "1";

/// Longest header that is read or written, in bytes.
const MAX_HEADER: usize = 16 << 20;

/// Whether the metadata of a safetensors file says that it is a condensed network.
pub fn is_condensed(metadata: &BTreeMap<String, String>) -> bool {
    metadata.get("format").is_some_and(|format| format == FORMAT)
}

/// The network in the bytes of a file. All is checked first: the format to the last byte, each tensor, and
/// that the nodes fit together.
///
/// # Errors
/// [`Error::File`], [`Error::Tensor`] or [`Error::Node`], whichever is wrong first.
pub fn from_bytes(bytes: &[u8]) -> Result<Network, Error> {
    let file = TensorFile::parse(bytes, MAX_HEADER).map_err(|refused| {
        Error::File(match refused {
            Refused::Damaged(what) => FileError::Damaged(what),
            Refused::TooLarge(cause) => FileError::TooLarge(cause),
            // Memory can be read.
            Refused::Unreadable(cause) => FileError::Damaged(cause.to_string()),
        })
    })?;
    let mut metadata = file.metadata.unwrap_or_default();
    let mut entry = |key| metadata.remove(key).ok_or(Error::File(FileError::NoMetadata { key }));
    let format = entry("format")?;
    if format != FORMAT {
        return Err(Error::File(FileError::Format { format, expected: FORMAT }));
    }
    let version = entry("version")?;
    if version != VERSION {
        return Err(Error::File(FileError::Version { version, known: VERSION }));
    }
    let network = entry("network")?;
    if let Some((key, _)) = metadata.pop_first() {
        return Err(Error::File(FileError::UnknownMetadata { key, version: VERSION }));
    }
    let nodes: Vec<NodeRecord> =
        serde_json::from_str(&network).map_err(|e| Error::File(FileError::Layers(printable(&e))))?;
    let mut tensors = file.tensors;
    let nodes = nodes.into_iter().map(|node| node.read(&mut tensors)).collect::<Result<_, _>>()?;
    if let Some((name, _)) = tensors.pop_first() {
        return Err(Error::Tensor { name, what: TensorError::Unknown });
    }
    Network::new(nodes)
}

/// The file of a network.
///
/// # Errors
/// [`Error::File`] if the header would be too long, [`Error::Node`] if a name has control characters.
pub fn to_bytes(network: &Network) -> Result<Vec<u8>, Error> {
    network.nodes().iter().try_for_each(|node| check_name(&node.name))?;
    let mut file = TensorFile::default();
    let record = |node: &Node| {
        let mut writer = NodeWriter { name: &node.name, file: &mut file };
        NodeRecord { name: node.name.clone(), op: node.op.write(&mut writer), inputs: node.inputs.clone() }
    };
    let nodes: Vec<NodeRecord> = network.nodes().iter().map(record).collect();
    let header = |e: &dyn std::fmt::Display| Error::File(FileError::Header(printable(e)));
    let network = serde_json::to_string(&nodes).map_err(|e| header(&e))?;
    let metadata = [("format", FORMAT), ("version", VERSION), ("network", &network)];
    file.metadata = Some(metadata.map(|(key, value)| (key.to_string(), value.to_string())).into());
    let mut bytes = Vec::new();
    file.write(MAX_HEADER, &mut bytes).map_err(|e| header(&e))?;
    Ok(bytes)
}

/// Reads a file.
///
/// # Errors
/// [`Error::In`] with what [`from_bytes`] finds wrong, or [`Error::Read`] if `path` cannot be read, is not a regular file
/// or larger than the [budget](srigl_tensors::memory::limit).
pub fn load(path: impl AsRef<Path>) -> Result<Network, Error> {
    let path = path.as_ref();
    let bytes = regular::read(path).map_err(|cause| Error::Read { path: path.into(), cause })?;
    from_bytes(&bytes).map_err(|error| Error::In { path: path.into(), error: Box::new(error) })
}

/// Writes a file: beside `path` first, so that no reader ever sees a part of it. What was there is replaced, as
/// [`atomic`] says.
///
/// # Errors
/// [`Error::In`] with what [`to_bytes`] finds wrong, or [`Error::Write`] if the file cannot be written; what was there
/// stays then.
pub fn save(network: &Network, path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let bytes = to_bytes(network).map_err(|error| Error::In { path: path.into(), error: Box::new(error) })?;
    atomic::write(path, &bytes).map_err(|cause| Error::Write { path: path.into(), cause })
}

/// The tensors of a file. A node takes those that are its own.
type Tensors<'a> = BTreeMap<String, RawTensor<'a>>;

/// The tensors of one node, to be taken from a file.
pub(crate) struct NodeTensors<'a, 'b> {
    node: &'a str,
    tensors: &'a mut Tensors<'b>,
}

impl NodeTensors<'_, '_> {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.node
    }

    /// An error about a tensor of the node.
    pub fn wrong(&self, suffix: &str, what: TensorError) -> Error {
        Error::Tensor { name: format!("{}.{suffix}", self.node), what }
    }

    /// Whether the file has a tensor of the node.
    pub fn has(&self, suffix: &str) -> bool {
        self.tensors.contains_key(&format!("{}.{suffix}", self.node))
    }

    /// A tensor of the node: its shape, and its numbers of `N` bytes each.
    pub fn numbers<const N: usize, T>(
        &mut self,
        suffix: &str,
        expected: Dtype,
        rank: usize,
        number: impl Fn([u8; N]) -> T,
    ) -> Result<(Vec<usize>, Vec<T>), Error> {
        let Some(tensor) = self.tensors.remove(&format!("{}.{suffix}", self.node)) else {
            return Err(self.wrong(suffix, TensorError::Missing));
        };
        if tensor.dtype != expected {
            return Err(self.wrong(suffix, TensorError::Type { got: tensor.dtype, expected }));
        }
        if tensor.shape.len() != rank {
            return Err(self.wrong(suffix, TensorError::Rank { shape: tensor.shape, rank }));
        }
        let numbers = tensor.data.as_chunks().0.iter().map(|bytes| number(*bytes)).collect();
        Ok((tensor.shape, numbers))
    }

    /// Finite floats, with their shape.
    pub fn floats(&mut self, suffix: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let (shape, values) = self.numbers(suffix, Dtype::F32, rank, f32::from_le_bytes)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(self.wrong(suffix, TensorError::NotFinite { value: values[at], at })),
            None => Ok((shape, values)),
        }
    }

    /// Finite floats in one dimension.
    pub fn vector(&mut self, suffix: &str) -> Result<Vec<f32>, Error> {
        self.floats(suffix, 1).map(|(_, values)| values)
    }

    /// Whole numbers in one dimension.
    pub fn words(&mut self, suffix: &str) -> Result<Vec<u32>, Error> {
        self.numbers(suffix, Dtype::U32, 1, u32::from_le_bytes).map(|(_, values)| values)
    }
}

/// Takes the tensors of one node for a file.
pub(crate) struct NodeWriter<'a> {
    name: &'a str,
    file: &'a mut TensorFile<'static>,
}

impl NodeWriter<'_> {
    /// A tensor of the node.
    pub fn add(&mut self, suffix: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) {
        let tensor = RawTensor { dtype, shape: shape.to_vec(), data: data.into() };
        self.file.tensors.insert(format!("{}.{suffix}", self.name), tensor);
    }

    /// Floats of this shape.
    pub fn floats(&mut self, suffix: &str, shape: &[usize], values: &[f32]) {
        self.add(suffix, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    /// Floats in one dimension.
    pub fn vector(&mut self, suffix: &str, values: &[f32]) {
        self.floats(suffix, &[values.len()], values);
    }

    /// Whole numbers in one dimension.
    pub fn words(&mut self, suffix: &str, values: &[u32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.add(suffix, Dtype::U32, &[values.len()], bytes);
    }
}

/// A node as in the list of the header.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeRecord {
    name: String,
    op: OpRecord,
    inputs: Vec<usize>,
}

impl NodeRecord {
    /// The node, with its tensors taken from the file.
    fn read(self, tensors: &mut Tensors) -> Result<Node, Error> {
        check_name(&self.name)?;
        let op = self.op.read(&mut NodeTensors { node: &self.name, tensors })?;
        Ok(Node { name: self.name, op, inputs: self.inputs })
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.contains(char::is_control) {
        true => Err(Error::Node { node: name.into(), what: NodeError::ControlCharacters }),
        false => Ok(()),
    }
}
