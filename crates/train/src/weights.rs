//! The weights of a model in a file of any framework, as Burn and `condensed` take them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use condensed::{Network, Shape};
use safetensors::tensor::Dtype;
use sparsity_core::Mask;
use srigl_burn::{Topology, lower, sparse_layers, state_dict};
use srigl_models::{Classifier, ModelInfo, ModelSpec, WithModel, torchvision_name};
use srigl_run::{Store, mask_name, printable, read_file, zeros_tell_a_mask};

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Dimensions, as in PyTorch.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
    /// Which values are active, if not all are.
    pub mask: Option<Vec<bool>>,
}

/// The tensors of a model by name, with their masks.
#[derive(Debug)]
pub struct Weights {
    /// All floating-point tensors but masks and gradients. Where there is a mask, values outside are 0.
    pub tensors: BTreeMap<String, NamedTensor>,
    /// The weights whose masks were told by their zeros, sorted.
    pub masks_from_zeros: Vec<String>,
    /// What was guessed, in a few words each: prefixes taken off, tensors left out.
    pub notes: Vec<String>,
}

impl Weights {
    /// Takes the tensors of a file that are a network's: weights of any floating-point type with their masks (U8 or BOOL,
    /// `NAME.mask` of `NAME.weight`) and all others. Prefixes of wrappers (`module.`, `_orig_mod.`, `model.` and any other)
    /// are taken off where the network's names then are there. Gradients, PyTorch's counters of batches and tensors of
    /// optimizers are left out. A mask of ones alone is none.
    ///
    /// # Errors
    /// If a tensor has another type, is not finite, or a mask does not fit its weight or has none; or if two prefixes fit
    /// equally well.
    pub fn of(file: &Store, info: &ModelInfo) -> Result<Self> {
        let mut notes = file.notes().to_vec();
        let names = fitting_names(file, info, &mut notes)?;
        // Before anything is read: the file may be of another network, and huge.
        if !names.contains_key(info.stem) {
            let (model, stem) = (info.name, info.stem);
            return Err(file
                .error(format!(
                    "the tensors do not fit `{model}`: `{stem}` is missing; is it of another --model?"
                ))
                .into());
        }
        file.check_memory(names.values().copied())?;
        let is_mask = |name: &str| name.ends_with(".mask");
        let mut masks: BTreeMap<&str, &str> =
            names.iter().filter(|(name, _)| is_mask(name)).map(|(name, stored)| (*name, *stored)).collect();
        let (mut tensors, mut masks_from_zeros) = (BTreeMap::new(), Vec::new());
        for (&name, &stored) in &names {
            let Some(tensor) = file.get(stored) else { continue };
            let is_parameter = tensor.is_float() || name.ends_with("weight") || name.ends_with("bias");
            if is_mask(name) || name.ends_with(".grad") || !is_parameter {
                continue;
            }
            let mut values = file.finite_floats(stored, tensor)?;
            let can_be_sparse = tensor.shape.len() >= 2 && name.ends_with("weight");
            let mask = match masks.remove(mask_name(name).as_str()) {
                Some(mask) => Some(bits(file, stored, &tensor.shape, mask)?),
                None if can_be_sparse => {
                    let mask: Vec<bool> = values.iter().map(|v| *v != 0.0).collect();
                    let zeros = mask.iter().filter(|active| !**active).count();
                    let sparse = zeros_tell_a_mask(zeros, mask.len());
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
            tensors.insert(name.to_string(), NamedTensor { shape: tensor.shape.clone(), values, mask });
        }
        if let Some(name) = masks.values().next() {
            return Err(file
                .error(format!("`{}` is the mask of no tensor; add the weight or remove it", printable(name)))
                .into());
        }
        Ok(Self { tensors, masks_from_zeros, notes })
    }

    /// The weights of a network in the file `path`.
    ///
    /// # Errors
    /// As [`Store::open`] and [`of`](Self::of).
    pub fn open(path: &Path, info: &ModelInfo) -> Result<Self> {
        Self::of(&Store::open(path)?, info)
    }

    /// How many classes the network of these weights tells apart, if it has a classifier.
    pub fn classes(&self, info: &ModelInfo) -> Option<usize> {
        self.tensors.get(info.head)?.shape.first().copied()
    }

    /// Whether a weight has a mask.
    pub fn is_sparse(&self) -> bool {
        self.tensors.values().any(|tensor| tensor.mask.is_some())
    }
}

/// The names of a network's tensors, and under which each is stored. A prefix fits if the network's first weight and its
/// last bias are there with it.
fn fitting_names<'f>(
    file: &'f Store,
    info: &ModelInfo,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<&'f str, &'f str>> {
    let with = |required: &dyn Fn(&str) -> bool| -> Vec<&'f str> {
        let prefix =
            |name: &'f str| name.strip_suffix(info.stem).filter(|p| p.is_empty() || p.ends_with('.'));
        let prefixes = file.tensors().filter_map(|(name, _)| prefix(name));
        prefixes.filter(|prefix| required(prefix)).collect()
    };
    let has_head = |prefix: &str| file.get(&format!("{prefix}{}", info.head)).is_some();
    let mut prefixes = with(&has_head);
    if prefixes.is_empty() {
        // A network without its classifier: the outermost place where it begins.
        prefixes = with(&|_| true);
        prefixes.sort_by_key(|prefix| (prefix.len(), *prefix));
        prefixes.truncate(1);
    }
    let chosen = match KNOWN_PREFIXES.iter().find_map(|known| prefixes.iter().find(|prefix| *prefix == known))
    {
        Some(known) => *known,
        None if prefixes.len() < 2 => prefixes.first().copied().unwrap_or(""),
        None => {
            let found = prefixes.iter().map(|prefix| format!("`{}`", printable(prefix))).collect::<Vec<_>>();
            let message = format!(
                "it has several networks of this kind, named {}; keep one of them in the file",
                found.join(", ")
            );
            return Err(file.error(message).into());
        }
    };
    // Other networks of this kind, beside the chosen one or within its prefix.
    let is_inside = |other: &str| other.len() > chosen.len() && other.starts_with(chosen);
    let of_others = |name: &str| prefixes.iter().any(|other| is_inside(other) && name.starts_with(other));
    let (mut names, mut left_out) = (BTreeMap::new(), Vec::new());
    for (name, _) in file.tensors() {
        match name.strip_prefix(chosen) {
            Some(stripped) if !of_others(name) => {
                names.insert(stripped, name);
            }
            _ => left_out.push(name),
        }
    }
    if !chosen.is_empty() {
        notes.push(format!("the prefix `{}` is taken off {} names", printable(&chosen), names.len()));
    }
    if let Some(first) = left_out.first() {
        let count = left_out.len();
        notes.push(format!(
            "{count} tensors outside the network are left out, such as `{}`",
            printable(first)
        ));
    }
    Ok(names)
}

/// Prefixes in the order in which they are preferred: none, then those of data-parallel and compiled modules and of common
/// training scripts.
const KNOWN_PREFIXES: [&str; 12] = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "module.model.",
    "model.module.",
    "state_dict.",
    "model_state_dict.",
    "model._orig_mod.",
    "_orig_mod.module.",
    "net.",
    "network.",
];

fn bits(file: &Store, weight: &str, shape: &[usize], name: &str) -> Result<Vec<bool>> {
    let wrong = |what: String| Err(file.error(format!("tensor {name:?} {what}")).into());
    let Some(mask) = file.get(name) else { return wrong("is missing".into()) };
    if !matches!(mask.dtype, Dtype::U8 | Dtype::BOOL) {
        return wrong(format!("is {}, but must be U8 or BOOL; convert it first", mask.dtype));
    }
    if mask.shape != shape {
        return wrong(format!(
            "has shape {:?}, but {weight:?} has {shape:?}; they must be the same",
            mask.shape
        ));
    }
    let data = file.bytes(mask)?;
    if let Some(i) = data.iter().position(|byte| *byte > 1) {
        return wrong(format!("has {} at position {i}; only 0 and 1 may be", data[i]));
    }
    Ok(data.iter().map(|byte| *byte == 1).collect())
}

/// What the file of a model holds.
pub enum Model {
    /// A condensed network.
    Condensed(Network),
    /// Named tensors, dense or with masks: see [`Weights::of`].
    Tensors(Store),
}

impl Model {
    /// The model in the file `path`.
    ///
    /// # Errors
    /// If it is neither a condensed network nor a file of tensors.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Store::open(path)?;
        if file.metadata().is_some_and(condensed::file::is_condensed) {
            let network = condensed::from_bytes(&read_file(path)?);
            return Ok(Self::Condensed(network.map_err(|e| file.error(e))?));
        }
        Ok(Self::Tensors(file))
    }
}

/// Tensors that do not fit, as many as are named.
const SHOWN: usize = 6;

/// Replaces all parameters of a Burn module by tensors in torchvision's names and PyTorch's layout: the inverse of
/// `srigl_burn::state_dict`.
///
/// Parameters named in `fresh` stay as they are.
///
/// # Errors
/// If tensors are missing, unexpected or have another shape: it names the first of them.
pub fn fill_module<M: Module>(
    module: M,
    tensors: &BTreeMap<String, NamedTensor>,
    fresh: &[String],
    device: &Device,
) -> Result<M> {
    let unused = tensors.keys().map(String::as_str).collect();
    let mut loader = Loader { tensors, fresh, device, path: vec![], unused, problems: vec![] };
    let module = module.map(&mut loader);
    let unexpected = loader.unused.iter().map(|name| format!("`{}` is unexpected", printable(name)));
    let mut problems: Vec<String> = loader.problems.into_iter().chain(unexpected).collect();
    if problems.len() > SHOWN {
        let more = problems.len() - SHOWN;
        problems.truncate(SHOWN);
        problems.push(format!("and {more} more; is it of another --model, or another --width?"));
    }
    ensure!(problems.is_empty(), "the tensors do not fit the model: {}", problems.join(", "));
    Ok(module)
}

/// The condensed network of these tensors in torchvision's names: weights with a mask are condensed, others stay dense.
///
/// # Errors
/// If tensors are missing, unexpected or have another shape, if something else than a layer's weight has a mask, or as
/// [`lower`].
pub fn condense(spec: &ModelSpec, tensors: &BTreeMap<String, NamedTensor>) -> Result<Network> {
    let device = Device::flex();
    spec.with(&device, Condensing { spec, tensors, device: &device })?
}

struct Condensing<'a> {
    spec: &'a ModelSpec,
    tensors: &'a BTreeMap<String, NamedTensor>,
    device: &'a Device,
}

impl WithModel for Condensing<'_> {
    type Output = Result<Network>;

    fn run<M: Classifier>(self, model: M) -> Result<Network> {
        let name = self.spec.info.name;
        let model = fill_module(model, self.tensors, &[], self.device).map_err(|error| {
            anyhow::anyhow!("{}", error.to_string().replace("the model", &format!("`{name}`")))
        })?;
        let masks = masks_of(&model, self.tensors)?;
        let [features, height, width] = self.spec.images;
        Ok(lower(&model, Shape { features, height, width }, masks, torchvision_name)?)
    }
}

/// The masks of a module's layers among these tensors in torchvision's names, by the names of layers.
///
/// # Errors
/// If something else than a layer's weight has a mask.
pub fn masks_of<M: Module>(
    model: &M,
    tensors: &BTreeMap<String, NamedTensor>,
) -> Result<Vec<(String, Mask)>> {
    let masked = tensors.iter().filter(|(_, tensor)| tensor.mask.is_some());
    let mut masked: BTreeSet<&str> = masked.map(|(name, _)| name.as_str()).collect();
    let mut masks = Vec::new();
    for layer in sparse_layers(model)? {
        let weight = torchvision_name(&format!("{}.weight", layer.name));
        masked.remove(weight.as_str());
        if let Some(bits) = tensors.get(&weight).and_then(|tensor| tensor.mask.as_ref()) {
            let bytes: Vec<u8> = bits.iter().map(|active| u8::from(*active)).collect();
            let mask = Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &bytes)?;
            masks.push((layer.name.clone(), mask));
        }
    }
    if let Some(name) = masked.pop_first() {
        bail!("`{}` has a mask, but only weights of layers can be sparse", printable(&name));
    }
    Ok(masks)
}

/// All parameters of a module in torchvision's names, with the masks of its sparse layers, to be written to `path`.
pub fn model_tensors<M: Module>(path: &Path, model: &M, topology: &Topology) -> Store {
    let layers = topology.layers();
    let mut store = Store::empty(path);
    for tensor in state_dict(model) {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let name = torchvision_name(&tensor.name);
        if let Some(layer) = layers.iter().find(|layer| format!("{}.weight", layer.name) == tensor.name) {
            store.insert(mask_name(&name), Dtype::U8, tensor.dims.clone(), layer.mask.to_bytes());
        }
        store.insert(name, Dtype::F32, tensor.dims, bytes);
    }
    store
}

struct Loader<'a> {
    tensors: &'a BTreeMap<String, NamedTensor>,
    fresh: &'a [String],
    device: &'a Device,
    /// Field names, each with the type of the module around it.
    path: Vec<(String, String)>,
    unused: BTreeSet<&'a str>,
    problems: Vec<String>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((name.to_string(), container_type.to_string()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let fields: Vec<&str> = self.path.iter().map(|(field, _)| field.as_str()).collect();
        let (field, module) = fields.split_last().expect("a parameter lies in a module");
        let field = match *field {
            "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        let name = torchvision_name(&module.iter().copied().chain([field]).collect::<Vec<_>>().join("."));
        // Burn stores the weights of linear layers as [in, out].
        let transposed = field == "weight"
            && self
                .path
                .last()
                .is_some_and(|(_, around)| around == "Struct:Linear" || around == "Struct:SparseLinear");
        let mut dims = param.dims();
        if transposed {
            dims.reverse();
        }
        self.unused.remove(name.as_str());
        if self.fresh.contains(&name) {
            return param;
        }
        let tensor = match self.tensors.get(&name) {
            Some(tensor) if tensor.shape == dims => tensor,
            Some(tensor) => {
                self.problems.push(format!("`{name}` has shape {:?} instead of {dims:?}", tensor.shape));
                return param;
            }
            None => {
                self.problems.push(format!("`{name}` is missing"));
                return param;
            }
        };
        let loaded = Tensor::<D>::from_data(TensorData::new(tensor.values.clone(), dims), self.device);
        param.map(|param| {
            let loaded = if transposed { loaded.swap_dims(0, 1) } else { loaded };
            let loaded = if param.is_autodiff() { Tensor::from_inner(loaded) } else { loaded };
            loaded.set_require_grad(param.is_require_grad())
        })
    }
}
