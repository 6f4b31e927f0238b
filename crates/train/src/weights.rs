//! The weights of a model in a file of any framework, as Burn and `condensed` take them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use condensed::{Network, Shape};
use pytorch_reader::{DType, PytorchReader};
use safetensors::tensor::{Dtype, TensorView};
use sparsity_core::Mask;
use srigl_burn::{Topology, lower, sparse_layers, state_dict};
use srigl_models::{Classifier, ModelSpec, WithModel, torchvision_name};
use srigl_run::{Store, mask_name};

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
    pub fn of(file: &Store) -> Result<Self> {
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
            let mut values = finite_floats(file, name, dtype, data)?;
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
            return Err(file
                .error(format!("`{name}` is the mask of no tensor; add the weight or remove it"))
                .into());
        }
        Ok(Self { tensors, masks_from_zeros })
    }
}

/// The values of an F32 tensor.
///
/// # Errors
/// If it has another type, or a value is NaN or infinite.
pub fn finite_floats(file: &Store, name: &str, dtype: Dtype, data: &[u8]) -> Result<Vec<f32>> {
    if dtype != Dtype::F32 {
        return Err(file
            .error(format!("tensor {name:?} is {dtype}, but must be F32; convert it first"))
            .into());
    }
    let values: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(file.error(format!("tensor {name:?} is {} at position {i}", values[i])).into()),
        None => Ok(values),
    }
}

fn bits(
    file: &Store,
    weight: &str,
    shape: &[usize],
    (dtype, mask_shape, data): (Dtype, &[usize], &[u8]),
) -> Result<Vec<bool>> {
    let name = mask_name(weight);
    let wrong = |what: String| Err(file.error(format!("tensor {name:?} {what}")).into());
    if !matches!(dtype, Dtype::U8 | Dtype::BOOL) {
        return wrong(format!("is {dtype}, but must be U8 or BOOL; convert it first"));
    }
    if mask_shape != shape {
        return wrong(format!(
            "has shape {mask_shape:?}, but {weight:?} has {shape:?}; they must be the same"
        ));
    }
    if let Some(i) = data.iter().position(|byte| *byte > 1) {
        return wrong(format!("has {} at position {i}; only 0 and 1 may be", data[i]));
    }
    Ok(data.iter().map(|byte| *byte == 1).collect())
}

/// What the file of a model holds.
pub enum Model {
    /// A condensed network.
    Condensed(Network),
    /// Named tensors, dense or with masks.
    Weights(Weights),
}

impl Model {
    /// The model in the `bytes` of the file `path`.
    ///
    /// # Errors
    /// If they are neither a condensed network nor a safetensors file with F32 weights.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let file = Store::parse(path, bytes)?;
        if file.metadata().is_some_and(condensed::file::is_condensed) {
            return Ok(Self::Condensed(condensed::from_bytes(bytes).map_err(|e| file.error(e))?));
        }
        Weights::of(&file).map(Self::Weights)
    }
}

/// The bytes of a safetensors file; a file of PyTorch's `torch.save` (`.pt`, `.pth`) is turned into one.
///
/// # Errors
/// If the file cannot be read, or is a PyTorch file that holds no tensors.
pub fn read_weights(path: &Path) -> Result<Vec<u8>> {
    let bytes = srigl_run::read_file(path)?;
    // A zip archive, or the pickled number that older files start with. A safetensors file starts with the length of its
    // header, which these bytes would make larger than any.
    let pytorch = bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0x80, 0x02, 0x8a, 0x0a]);
    if !pytorch {
        return Ok(bytes);
    }
    from_pytorch(path, bytes.len())
        .with_context(|| format!("`{}` is a PyTorch file that cannot be used", path.display()))
}

/// Training scripts keep the weights under one of these keys, beside the optimizer's state.
const STATE_KEYS: [&str; 2] = ["model", "state_dict"];

fn from_pytorch(path: &Path, size: usize) -> Result<Vec<u8>> {
    let mut reader = PytorchReader::new(path)?;
    let starts = |key: &&str| reader.keys().iter().any(|name| name.starts_with(&format!("{key}.")));
    if let Some(key) = STATE_KEYS.into_iter().find(starts) {
        reader = PytorchReader::with_top_level_key(path, key)?;
    }
    let mut total = 0_usize;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in reader.tensors() {
        // Strides can make a small storage look huge.
        total = total.saturating_add(tensor.byte_len());
        ensure!(total <= 4 * size, "tensor {name:?} is larger than the file");
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
            other => bail!("tensor {name:?} is {other:?}; convert it to 32-bit floats first"),
        };
        tensors.insert(name.clone(), (dtype, tensor.shape().to_vec(), tensor.read()?));
    }
    ensure!(!tensors.is_empty(), "it holds no tensors; save a state_dict");
    let mut views = Vec::new();
    for (name, (dtype, shape, data)) in &tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), data)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// A Burn module with the parameters of the file `path`.
///
/// # Errors
/// If the file cannot be read, or as [`fill_module`].
pub fn load_module<M: Module>(module: M, path: &Path, device: &Device) -> Result<M> {
    let bytes = read_weights(path)?;
    let weights = Weights::of(&Store::parse(path, &bytes)?)?;
    fill_module(module, &weights.tensors, device).with_context(|| format!("`{}`", path.display()))
}

/// Replaces all parameters of a Burn module by tensors in torchvision's names and PyTorch's layout: the inverse of
/// `srigl_burn::state_dict`.
///
/// # Errors
/// If tensors are missing, unexpected or have another shape: it names them all.
pub fn fill_module<M: Module>(
    module: M,
    tensors: &BTreeMap<String, NamedTensor>,
    device: &Device,
) -> Result<M> {
    let unused = tensors.keys().map(String::as_str).collect();
    let mut loader = Loader { tensors, device, path: vec![], unused, problems: vec![] };
    let module = module.map(&mut loader);
    let unexpected = loader.unused.iter().map(|name| format!("`{name}` is unexpected"));
    let problems: Vec<String> = loader.problems.into_iter().chain(unexpected).collect();
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
        let model = fill_module(model, self.tensors, self.device).map_err(|error| {
            anyhow::anyhow!("{}", error.to_string().replace("the model", &format!("`{name}`")))
        })?;
        let mut masked: BTreeSet<&str> = self
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.mask.is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        let mut masks = Vec::new();
        for layer in sparse_layers(&model)? {
            let weight = torchvision_name(&format!("{}.weight", layer.name));
            masked.remove(weight.as_str());
            if let Some(bits) = self.tensors.get(&weight).and_then(|tensor| tensor.mask.as_ref()) {
                let bytes: Vec<u8> = bits.iter().map(|active| u8::from(*active)).collect();
                masks.push((
                    layer.name.clone(),
                    Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &bytes)?,
                ));
            }
        }
        if let Some(name) = masked.pop_first() {
            bail!("`{name}` has a mask, but only weights of layers can be sparse");
        }
        let [features, height, width] = self.spec.images;
        Ok(lower(&model, Shape { features, height, width }, masks, torchvision_name)?)
    }
}

/// All parameters of a module in torchvision's names, with the masks of its sparse layers, to be written to `path`.
pub fn model_tensors<'a, M: Module>(path: &'a Path, model: &M, topology: &Topology) -> Store<'a> {
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
        let transposed =
            field == "weight" && self.path.last().is_some_and(|(_, around)| around == "Struct:Linear");
        let mut dims = param.dims();
        if transposed {
            dims.reverse();
        }
        self.unused.remove(name.as_str());
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
