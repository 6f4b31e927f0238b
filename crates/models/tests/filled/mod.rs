//! Models with given numbers and masks.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use srigl_burn::{Mask, sparse_layers};
use srigl_models::torchvision_name;

/// What a number is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weight of a layer.
    Weight,
    /// Bias of a layer.
    Bias,
    NormScale,
    /// Also mean.
    NormShift,
    Variance,
    Embedding,
}

/// The model with the values that `value` gives for a parameter's name in torchvision, kind and dimensions
/// `[out, in, …]`.
pub fn fill<M: Module>(model: M, device: &Device, value: impl FnMut(&str, Kind, &[usize]) -> Vec<f32>) -> M {
    model.map(&mut Fill { path: vec![], device, value })
}

/// Masks of all layers: `active` of a weight's name in torchvision and number of positions.
pub fn masks<M: Module>(model: &M, mut active: impl FnMut(&str, usize) -> Vec<u8>) -> Vec<(String, Mask)> {
    let mask = |layer: srigl_burn::LayerSpec| {
        let bytes = active(&torchvision_name(&format!("{}.weight", layer.name)), layer.weights());
        let mask = Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &bytes).unwrap();
        (layer.name, mask)
    };
    sparse_layers(model).unwrap().into_iter().map(mask).collect()
}

struct Fill<'a, F> {
    path: Vec<(String, String)>,
    device: &'a Device,
    value: F,
}

impl<F: FnMut(&str, Kind, &[usize]) -> Vec<f32>> ModuleMapper for Fill<'_, F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (field, container) = self.path.last().expect("in a module");
        let (kind, field) = match field.as_str() {
            "gamma" => (Kind::NormScale, "weight"),
            "beta" => (Kind::NormShift, "bias"),
            "running_mean" => (Kind::NormShift, "running_mean"),
            "running_var" => (Kind::Variance, "running_var"),
            "weight" => (Kind::Weight, "weight"),
            "bias" => (Kind::Bias, "bias"),
            other => (Kind::Embedding, other),
        };
        let modules = self.path[..self.path.len() - 1].iter().map(|(name, _)| name.as_str());
        let path = modules.chain([field]).collect::<Vec<_>>().join(".");
        let transposed = kind == Kind::Weight && container == "Struct:SparseLinear";
        let mut dims = param.dims();
        if transposed {
            dims.reverse();
        }
        let values = (self.value)(&torchvision_name(&path), kind, &dims);
        let tensor = Tensor::<D>::from_data(TensorData::new(values, dims), self.device);
        param.map(|_| if transposed { tensor.swap_dims(0, 1) } else { tensor })
    }
}
