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
//!   U16 if `M ≤ 2^16`, else U32;
//! - `NAME.pointers` (U32) `[A + 1]`, if the fan-in varies: row `a` has the values `pointers[a]..pointers[a + 1]`.
//!
//! Other tensors, metadata or attributes are refused. The same network gives the same bytes.
//!
//! [safetensors]: https://huggingface.co/docs/safetensors

use crate::{CondensedWeight, Error, FanIn, Indices, Network, Node, Op, Shape, Weight, Window};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

const FORMAT: &str = "srigl-condensed";
const VERSION: &str = "1";

/// Bytes that hold the length of the header, at the start of a file.
const LENGTH_BYTES: usize = 8;

/// Longest header that is read or written, in bytes.
const MAX_HEADER: usize = 16 << 20;

/// The network in the bytes of a file. All is checked first: the format to the last byte, each tensor, and
/// that the nodes fit together.
///
/// # Errors
/// [`Error::File`], [`Error::Tensor`] or [`Error::Node`], whichever is wrong first.
pub fn from_bytes(bytes: &[u8]) -> Result<Network, Error> {
    let Parsed { mut metadata, mut tensors } = Header::parse(bytes)?;
    let mut entry = |key: &str| {
        let missing = || {
            Error::File(format!(
                "it is not a condensed network: its metadata has no `{key}`; make a condensed file of it first"
            ))
        };
        metadata.remove(key).ok_or_else(missing)
    };
    let format = entry("format")?;
    if format != FORMAT {
        return Err(Error::File(format!(
            "its format is {format:?}, not {FORMAT:?}; make a condensed file first"
        )));
    }
    let version = entry("version")?;
    if version != VERSION {
        return Err(Error::File(format!(
            "it has version {version:?} of the format, but only {VERSION:?} is known; read it with the program \
             that wrote it, or update this one"
        )));
    }
    let network = entry("network")?;
    if let Some(key) = metadata.keys().next() {
        return Err(Error::File(format!("its metadata has {key:?}, which version {VERSION} does not know")));
    }
    let nodes: Vec<NodeRecord> = serde_json::from_str(&network).map_err(|e| {
        Error::File(format!("its list of layers is damaged: {}; write it again", printable(&e)))
    })?;
    let nodes = nodes.into_iter().map(|node| node.read(&mut tensors)).collect::<Result<_, _>>()?;
    if let Some(name) = tensors.0.into_keys().next() {
        let what = "no layer has such a tensor; remove it, or write the file again".into();
        return Err(Error::Tensor { name: printable(&name), what });
    }
    let network = Network { nodes };
    network.shapes()?;
    Ok(network)
}

/// The file of a network.
///
/// # Errors
/// What [`Network::shapes`] finds wrong; [`Error::File`] if the header would be too long, [`Error::Node`] if a
/// name has control characters.
pub fn to_bytes(network: &Network) -> Result<Vec<u8>, Error> {
    network.shapes()?;
    network.nodes.iter().try_for_each(|node| check_name(&node.name))?;
    let mut tensors = Vec::new();
    let nodes: Vec<NodeRecord> =
        network.nodes.iter().map(|node| NodeRecord::new(node, &mut tensors)).collect();
    // Wide types first: every tensor is aligned.
    tensors.sort_by(|a, b| (Reverse(a.dtype), &a.name).cmp(&(Reverse(b.dtype), &b.name)));

    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.data.len();
        let info =
            TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
        (tensor.name.clone(), info)
    });
    let json = |e: serde_json::Error| Error::File(format!("cannot write its header: {e}"));
    let network = serde_json::to_string(&nodes).map_err(json)?;
    let metadata = [("format", FORMAT), ("version", VERSION), ("network", &network)];
    let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string())).into();
    let mut header = serde_json::to_vec(&Header { metadata, tensors: infos.collect() }).map_err(json)?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    if header.len() > MAX_HEADER {
        return Err(Error::File(format!(
            "its header would have {} bytes, more than {MAX_HEADER}",
            header.len()
        )));
    }
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + header.len() + end);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    tensors.iter().for_each(|tensor| bytes.extend(&tensor.data));
    Ok(bytes)
}

/// Reads a file.
///
/// # Errors
/// What [`from_bytes`] finds wrong, or if `path` cannot be read or is not a regular file. The text starts with
/// the path.
pub fn load(path: &Path) -> Result<Network, Error> {
    let name = path.display();
    let cannot = |e: io::Error| Error::File(format!("cannot read `{name}`: {e}"));
    // A device may have no end.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(Error::File(format!("cannot read `{name}`: it is not a regular file")));
    }
    from_bytes(&fs::read(path).map_err(cannot)?).map_err(|e| {
        // A network that does not fit together was not written by `save`. Other errors say what to do.
        let fix = if matches!(e, Error::Node { .. }) { "; the file is damaged, write it again" } else { "" };
        Error::File(format!("`{name}`: {e}{fix}"))
    })
}

/// Writes a file: beside `path` first, so that no reader ever sees a part of it. What was there is replaced.
///
/// # Errors
/// What [`to_bytes`] finds wrong, or if the file cannot be written; what was there stays then. The text starts
/// with the path.
pub fn save(network: &Network, path: &Path) -> Result<(), Error> {
    let name = path.display();
    let bytes = to_bytes(network).map_err(|e| Error::File(format!("`{name}`: {e}")))?;
    let cannot = |e: io::Error| Error::File(format!("cannot write `{name}`: {e}"));
    // To rename a file over `/dev/null` would succeed, and harm.
    if fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
        return Err(Error::File(format!(
            "cannot write `{name}`: it is there already, and not a regular file"
        )));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)] // temporary files are private by default; this one is to be an ordinary file
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(cannot)?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(cannot)?;
    file.persist(path).map_err(|e| cannot(e.error))?;
    Ok(())
}

/// The JSON at the start of a file.
#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header, and checks that the tensors fill the rest of the bytes one after the other.
    /// Returns metadata and tensors.
    ///
    /// Not by `SafeTensors::read_metadata`: it takes the last of two tensors with one name, and adds offsets
    /// before it has compared them with the size of the file.
    fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Error> {
        let broken = |cause: &dyn fmt::Display| {
            Error::File(format!("it is not a safetensors file, or a damaged one: {}", printable(cause)))
        };
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(broken(&"it has less than 8 bytes"));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER as u64 {
            return Err(broken(&format!("a header of {length} bytes, more than {MAX_HEADER}")));
        }
        let Some((header, data)) = rest.split_at_checked(length as usize) else {
            return Err(broken(&format!("a header of {length} bytes, but only {} follow", rest.len())));
        };
        let header: Self = serde_json::from_slice(header).map_err(|e| broken(&e))?;

        let mut ordered: Vec<(String, TensorInfo)> = header.tensors.into_iter().collect();
        ordered.sort_by_key(|(_, info)| info.data_offsets);
        let (mut tensors, mut at) = (BTreeMap::new(), 0);
        for (name, info) in ordered {
            let (start, end) = info.data_offsets;
            if start != at {
                return Err(broken(&format!(
                    "tensor `{name}` starts at {start}, but the one before ends at {at}"
                )));
            }
            let Some(data) = data.get(start..end) else {
                return Err(broken(&format!(
                    "tensor `{name}` lies at {start} to {end}, but the data has {} bytes",
                    data.len()
                )));
            };
            let count = info.shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
            let bits = count.and_then(|count| count.checked_mul(info.dtype.bitsize()));
            if bits.is_none_or(|bits| data.len().checked_mul(8) != Some(bits)) {
                return Err(broken(&format!(
                    "tensor `{name}` has {} bytes for {} {:?}",
                    data.len(),
                    info.dtype,
                    info.shape
                )));
            }
            at = end;
            tensors.insert(name, (info, data));
        }
        if at != data.len() {
            return Err(broken(&format!("{} bytes follow the last tensor", data.len() - at)));
        }
        Ok(Parsed { metadata: header.metadata, tensors: Tensors(tensors) })
    }
}

/// What a file consists of.
struct Parsed<'a> {
    metadata: BTreeMap<String, String>,
    tensors: Tensors<'a>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads a header that names nothing twice. Most readers take the last one silently.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut metadata, mut tensors) = (None, BTreeMap::new());
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == "__metadata__" {
                metadata.replace(map.next_value::<Distinct>()?.0).is_some()
            } else {
                tensors.insert(name.clone(), map.next_value()?).is_some()
            };
            if twice {
                return Err(de::Error::custom(format!("tensor `{name}` is there twice")));
            }
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// Texts by distinct keys.
struct Distinct(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("metadata: texts by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("metadata `{key}` is there twice")));
                    }
                }
                Ok(Distinct(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Tensors with their data, by name. A node takes those that are its own.
struct Tensors<'a>(BTreeMap<String, (TensorInfo, &'a [u8])>);

impl<'a> Tensors<'a> {
    /// A tensor of a node: its shape, and its data in units of `N` bytes.
    fn take<const N: usize>(
        &mut self,
        node: &str,
        suffix: &str,
        dtype: Dtype,
        rank: usize,
    ) -> Result<(Vec<usize>, &'a [[u8; N]]), Error> {
        let name = format!("{node}.{suffix}");
        let wrong = |what: String| Err(Error::Tensor { name: name.clone(), what });
        let Some((info, data)) = self.0.remove(&name) else {
            return wrong("it is missing; write the file again".into());
        };
        if info.dtype != dtype {
            return wrong(format!("it is {}, but must be {dtype}", info.dtype));
        }
        if info.shape.len() != rank {
            return wrong(format!("it has shape {:?}, but must have {rank} dimensions", info.shape));
        }
        Ok((info.shape, data.as_chunks().0))
    }

    fn floats(&mut self, node: &str, suffix: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let (shape, data) = self.take(node, suffix, Dtype::F32, rank)?;
        let values: Vec<f32> = data.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let what = format!("value {} at position {at}; weights must be finite", values[at]);
            return Err(Error::Tensor { name: format!("{node}.{suffix}"), what });
        }
        Ok((shape, values))
    }

    fn vector(&mut self, node: &str, suffix: &str) -> Result<Vec<f32>, Error> {
        self.floats(node, suffix, 1).map(|(_, values)| values)
    }

    fn words(&mut self, node: &str, suffix: &str) -> Result<Vec<u32>, Error> {
        let (_, data) = self.take(node, suffix, Dtype::U32, 1)?;
        Ok(data.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    fn weight(&mut self, node: &str, form: Form, neurons: usize) -> Result<Weight, Error> {
        let wrong =
            |suffix: &str, what: String| Err(Error::Tensor { name: format!("{node}.{suffix}"), what });
        let Form::Condensed { inputs } = form else {
            let (shape, values) = self.floats(node, "weight", 2)?;
            if shape[0] != neurons {
                return wrong("weight", format!("it has {} rows, but the bias {neurons}", shape[0]));
            }
            return Ok(Weight::Dense(values));
        };
        let active = self.words(node, "active")?;
        let constant = !self.0.contains_key(&format!("{node}.pointers"));
        let rank = if constant { 2 } else { 1 };
        let (shape, values) = self.floats(node, "values", rank)?;
        let (index_shape, indices) = match index_type(inputs) {
            Dtype::U8 => {
                let (shape, data) = self.take(node, "indices", Dtype::U8, rank)?;
                (shape, data.iter().map(|i| u8::from_le_bytes(*i).into()).collect())
            }
            Dtype::U16 => {
                let (shape, data) = self.take(node, "indices", Dtype::U16, rank)?;
                (shape, data.iter().map(|i| u16::from_le_bytes(*i).into()).collect())
            }
            _ => {
                let (shape, data) = self.take(node, "indices", Dtype::U32, rank)?;
                (shape, data.iter().map(|i| u32::from_le_bytes(*i)).collect())
            }
        };
        if index_shape != shape {
            return wrong("indices", format!("it has shape {index_shape:?}, but the values {shape:?}"));
        }
        let fan_in = if constant {
            if shape[0] != active.len() {
                return wrong("values", format!("it has {} rows for {} neurons", shape[0], active.len()));
            }
            if shape[1] > inputs {
                return wrong("values", format!("a fan-in of {}, but only {inputs} inputs", shape[1]));
            }
            FanIn::Constant(shape[1])
        } else {
            FanIn::Varying(self.words(node, "pointers")?)
        };
        CondensedWeight::new(neurons, inputs, active, fan_in, indices, values)
            .map(Weight::Condensed)
            .map_err(|e| Error::Node { node: node.to_string(), what: e.to_string() })
    }
}

/// A tensor to write.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// A node as in the list of the header.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeRecord {
    name: String,
    op: OpRecord,
    inputs: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum OpRecord {
    Input(Shape),
    Linear { weight: Form },
    Conv2d { weight: Form, window: Window, groups: usize },
    Affine,
    Relu,
    Gelu,
    HardSigmoid,
    HardSwish,
    Add,
    Scale,
    MaxPool(Window),
    GlobalAvgPool,
    Flatten,
    // As f64, which JSON keeps exactly enough.
    LayerNorm { epsilon: f64 },
    Tokens,
    Attention { heads: usize },
    ClassToken,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Form {
    Dense,
    Condensed { inputs: usize },
}

impl NodeRecord {
    /// The record of a node, whose tensors join `tensors`.
    fn new(node: &Node, tensors: &mut Vec<Tensor>) -> Self {
        let mut add = |suffix: &str, dtype, shape: &[usize], data: Vec<u8>| {
            tensors.push(Tensor {
                name: format!("{}.{suffix}", node.name),
                dtype,
                shape: shape.to_vec(),
                data,
            });
        };
        let mut floats = |suffix: &str, shape: &[usize], values: &[f32]| {
            add(suffix, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
        };
        let op = match &node.op {
            Op::Input(shape) => OpRecord::Input(*shape),
            Op::Linear { weight, bias } => {
                floats("bias", &[bias.len()], bias);
                OpRecord::Linear { weight: write_weight(weight, bias.len(), &mut add) }
            }
            Op::Conv2d { weight, bias, window, groups } => {
                floats("bias", &[bias.len()], bias);
                let weight = write_weight(weight, bias.len(), &mut add);
                OpRecord::Conv2d { weight, window: *window, groups: *groups }
            }
            Op::Affine { scale, shift } => {
                floats("scale", &[scale.len()], scale);
                floats("shift", &[shift.len()], shift);
                OpRecord::Affine
            }
            Op::Relu => OpRecord::Relu,
            Op::Gelu => OpRecord::Gelu,
            Op::HardSigmoid => OpRecord::HardSigmoid,
            Op::HardSwish => OpRecord::HardSwish,
            Op::Add => OpRecord::Add,
            Op::Scale => OpRecord::Scale,
            Op::MaxPool(window) => OpRecord::MaxPool(*window),
            Op::GlobalAvgPool => OpRecord::GlobalAvgPool,
            Op::Flatten => OpRecord::Flatten,
            Op::LayerNorm { scale, shift, epsilon } => {
                floats("scale", &[scale.len()], scale);
                floats("shift", &[shift.len()], shift);
                OpRecord::LayerNorm { epsilon: f64::from(*epsilon) }
            }
            Op::Tokens { class, positions } => {
                floats("class", &[class.len()], class);
                floats("positions", &[positions.len() / class.len(), class.len()], positions);
                OpRecord::Tokens
            }
            Op::Attention { heads } => OpRecord::Attention { heads: *heads },
            Op::ClassToken => OpRecord::ClassToken,
        };
        Self { name: node.name.clone(), op, inputs: node.inputs.clone() }
    }

    /// The node, with its tensors taken from the file.
    fn read(self, tensors: &mut Tensors) -> Result<Node, Error> {
        check_name(&self.name)?;
        let name = self.name;
        let op = match self.op {
            OpRecord::Input(shape) => Op::Input(shape),
            OpRecord::Linear { weight } => {
                let bias = tensors.vector(&name, "bias")?;
                Op::Linear { weight: tensors.weight(&name, weight, bias.len())?, bias }
            }
            OpRecord::Conv2d { weight, window, groups } => {
                let bias = tensors.vector(&name, "bias")?;
                Op::Conv2d { weight: tensors.weight(&name, weight, bias.len())?, bias, window, groups }
            }
            OpRecord::Affine => {
                Op::Affine { scale: tensors.vector(&name, "scale")?, shift: tensors.vector(&name, "shift")? }
            }
            OpRecord::Relu => Op::Relu,
            OpRecord::Gelu => Op::Gelu,
            OpRecord::HardSigmoid => Op::HardSigmoid,
            OpRecord::HardSwish => Op::HardSwish,
            OpRecord::Add => Op::Add,
            OpRecord::Scale => Op::Scale,
            OpRecord::MaxPool(window) => Op::MaxPool(window),
            OpRecord::GlobalAvgPool => Op::GlobalAvgPool,
            OpRecord::Flatten => Op::Flatten,
            OpRecord::LayerNorm { epsilon } => Op::LayerNorm {
                scale: tensors.vector(&name, "scale")?,
                shift: tensors.vector(&name, "shift")?,
                epsilon: epsilon as f32,
            },
            OpRecord::Tokens => {
                let class = tensors.vector(&name, "class")?;
                let (shape, positions) = tensors.floats(&name, "positions", 2)?;
                if shape[1] != class.len() {
                    let what = format!("it has {} columns, but the class token {}", shape[1], class.len());
                    return Err(Error::Tensor { name: format!("{name}.positions"), what });
                }
                Op::Tokens { class, positions }
            }
            OpRecord::Attention { heads } => Op::Attention { heads },
            OpRecord::ClassToken => Op::ClassToken,
        };
        Ok(Node { name, op, inputs: self.inputs })
    }
}

/// Hands the tensors of a weight to `add`.
fn write_weight(
    weight: &Weight,
    neurons: usize,
    add: &mut impl FnMut(&str, Dtype, &[usize], Vec<u8>),
) -> Form {
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    match weight {
        Weight::Dense(values) => {
            add("weight", Dtype::F32, &[neurons, values.len() / neurons], floats(values));
            Form::Dense
        }
        Weight::Condensed(weight) => {
            let active = weight.active();
            let shape = match weight.fan_in() {
                FanIn::Constant(k) => vec![active.len(), *k],
                FanIn::Varying(pointers) => {
                    add("pointers", Dtype::U32, &[pointers.len()], words(pointers));
                    vec![weight.values().len()]
                }
            };
            let indices = match weight.indices() {
                Indices::U8(indices) => indices.clone(),
                Indices::U16(indices) => indices.iter().flat_map(|i| i.to_le_bytes()).collect(),
                Indices::U32(indices) => words(indices),
            };
            add("active", Dtype::U32, &[active.len()], words(active));
            add("values", Dtype::F32, &shape, floats(weight.values()));
            add("indices", index_type(weight.inputs()), &shape, indices);
            Form::Condensed { inputs: weight.inputs() }
        }
    }
}

/// As [`Indices::new`] chooses.
fn index_type(inputs: usize) -> Dtype {
    match Indices::new(Vec::new(), inputs) {
        Indices::U8(_) => Dtype::U8,
        Indices::U16(_) => Dtype::U16,
        Indices::U32(_) => Dtype::U32,
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.contains(char::is_control) {
        return Err(Error::Node {
            node: printable(&name),
            what: "a name must have no control characters".into(),
        });
    }
    Ok(())
}

/// Nothing that a file says may steer the terminal.
fn printable(text: &dyn fmt::Display) -> String {
    text.to_string().replace(char::is_control, "\u{fffd}")
}
