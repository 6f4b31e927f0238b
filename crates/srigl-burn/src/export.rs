//! Parameters under PyTorch's names and in PyTorch's layout, for files that other tools read.

use crate::active_weight::{POSITIONS, numbers_of};
use crate::discover::ModulePath;
use crate::layout::Layout;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor};

/// One parameter or running statistic of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Module path with PyTorch's last component: `fc1.weight`, `bn1.bias`, `bn1.running_mean`.
    pub name: String,
    /// `[out, in, …]` for linear layers and convolutions.
    pub dims: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// All float parameters of a module, in the order of its fields. Linear weights are transposed to `[out, in]`, and
/// Burn's `gamma` and `beta` of a normalisation are called `weight` and `bias`.
pub fn state_dict<M: Module>(module: &M) -> Vec<NamedTensor> {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.tensors
}

/// What PyTorch calls a field of a module: Burn's `gamma` and `beta` of a normalisation are `weight` and `bias`.
pub(crate) fn torch_field(field: &str) -> &str {
    match field {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    }
}

#[derive(Default)]
struct Visitor {
    path: ModulePath,
    tensors: Vec<NamedTensor>,
    /// Positions of the active weights that the last tensor has the values of.
    positions: Vec<i64>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((_, weight)) = self.path.of_active_weight() {
            // Where they belong is said next.
            let (name, values) = (weight.join("."), Layout::OutIn.to_rows(param.val()));
            return self.tensors.push(NamedTensor { name, dims: vec![values.len()], values });
        }
        let Some((module, field, layout)) = self.path.field() else {
            return;
        };
        let layout = layout.unwrap_or(Layout::OutIn);
        let field = torch_field(field);
        let name = module.iter().map(String::as_str).chain([field]).collect::<Vec<_>>().join(".");
        let tensor = param.val();
        let dims = layout.out_in_dims(&tensor.dims());
        self.tensors.push(NamedTensor { name, dims, values: layout.to_rows(tensor) });
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let Some((field, _)) = self.path.of_active_weight() else { return };
        let numbers = numbers_of(param.val());
        if field == POSITIONS {
            self.positions = numbers;
        } else if let Some(tensor) = self.tensors.last_mut() {
            tensor.dims = numbers.into_iter().map(|size| size as usize).collect();
            let values = std::mem::replace(&mut tensor.values, vec![0.0; tensor.dims.iter().product()]);
            for (position, value) in self.positions.iter().zip(values) {
                // Room for weights that there could be has no position.
                if let Ok(position) = usize::try_from(*position) {
                    tensor.values[position] = value;
                }
            }
        }
    }
}
