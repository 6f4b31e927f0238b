//! Finds the weights that can be sparse in any Burn module.

use crate::layout::Layout;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sparsity_core::LayerSpec;

/// A weight that can be sparse.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub spec: LayerSpec,
    pub layout: Layout,
}

impl Found {
    /// Path of the parameter; the layer's name is that of its module.
    pub fn parameter_path(&self) -> String {
        parameter_path(&self.spec.name)
    }
}

/// `conv1` → `conv1.weight`; a bare `Linear` as the whole module has the name `weight`.
fn parameter_path(layer: &str) -> String {
    if layer == BARE { "weight".into() } else { format!("{layer}.weight") }
}

const BARE: &str = "weight";

/// The linear and convolution weights of a module in the order of its fields, as `[out, in, …]`; names are module
/// paths (`encoder.fc1`). Embeddings, norms, biases and transposed convolutions are not among them and stay
/// dense. Attention projections are linear layers.
///
/// # Errors
/// A weight with an empty dimension or of 2³² elements or more.
pub fn sparse_layers<M: Module>(module: &M) -> Result<Vec<LayerSpec>, crate::Error> {
    Ok(find(module)?.into_iter().map(|found| found.spec).collect())
}

pub(crate) fn find<M: Module>(module: &M) -> Result<Vec<Found>, crate::Error> {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.found.into_iter().collect::<Result<_, _>>().map_err(Into::into)
}

/// Follows the module path, with the type that contains each field.
#[derive(Default)]
struct Visitor {
    path: Vec<String>,
    containers: Vec<String>,
    found: Vec<Result<Found, sparsity_core::Error>>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_string());
        self.containers.push(container_type.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let layout = self.containers.last().and_then(|container| Layout::of_container(container));
        let (Some(layout), Some("weight")) = (layout, self.path.last().map(String::as_str)) else {
            return;
        };
        let module = self.path[..self.path.len() - 1].join(".");
        let name = if module.is_empty() { BARE.to_string() } else { module };
        let spec = LayerSpec::new(name, layout.out_in_dims(&param.val().dims()));
        self.found.push(spec.map(|spec| Found { spec, layout }));
    }
}
