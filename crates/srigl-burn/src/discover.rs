//! Finds the weights that can be sparse in any Burn module.

use crate::active_weight;
use crate::layout::Layout;
use crate::sparse_ops::trains_condensed;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sparsity_core::LayerSpec;

/// A weight that can be sparse.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub spec: LayerSpec,
    pub layout: Layout,
    /// Its parameter requires no gradient on a device that computes gradients.
    pub frozen: bool,
    /// Whether its layer trains in condensed form if nobody says; `None` if it cannot.
    pub condenses: Option<bool>,
}

impl Found {
    /// Path of the parameter; the layer's name is that of its module.
    pub fn parameter_path(&self) -> String {
        parameter_path(&self.spec.name)
    }
}

/// `conv1` → `conv1.weight`; a bare `Linear` as the whole module has the name `weight`.
pub(crate) fn parameter_path(layer: &str) -> String {
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

/// Where a visitor is: the path of field names, and the type that contains each field.
#[derive(Default)]
pub(crate) struct ModulePath {
    fields: Vec<String>,
    containers: Vec<String>,
}

impl ModulePath {
    pub fn enter(&mut self, field: &str, container: &str) {
        self.fields.push(field.to_string());
        self.containers.push(container.to_string());
    }

    pub fn exit(&mut self) {
        self.fields.pop();
        self.containers.pop();
    }

    /// The module's path, the field in it, and the layout if that field is the weight of a layer that can be
    /// sparse. `None` outside any module.
    pub fn field(&self) -> Option<(&[String], &str, Option<Layout>)> {
        let (field, module) = self.fields.split_last()?;
        let layout = Layout::of_container(self.containers.last()?).filter(|_| field == "weight");
        Some((module, field, layout))
    }

    /// Whether the innermost module is a layer that trains in condensed form.
    pub fn condenses(&self) -> bool {
        self.containers.last().is_some_and(|container| Layout::condenses(container))
    }

    /// What the innermost field is of a weight that trains in condensed form, and the path of that weight.
    pub fn of_active_weight(&self) -> Option<(&str, &[String])> {
        let (field, weight) = self.fields.split_last()?;
        (self.containers.last()? == active_weight::CONTAINER).then_some((field, weight))
    }

    /// The name of the layer whose positions of active weights this is.
    pub fn positions_of(&self) -> Option<String> {
        let (field, weight) = self.of_active_weight()?;
        let (_, module) = weight.split_last()?;
        let name = || if module.is_empty() { BARE.to_string() } else { module.join(".") };
        (field == active_weight::POSITIONS).then(name)
    }

    /// The name of the layer whose weight this is, and its layout. `None` elsewhere.
    pub fn layer(&self) -> Option<(String, Layout)> {
        let (module, _, layout) = self.field()?;
        let module = module.join(".");
        Some((if module.is_empty() { BARE.to_string() } else { module }, layout?))
    }
}

#[derive(Default)]
struct Visitor {
    path: ModulePath,
    found: Vec<Result<Found, sparsity_core::Error>>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((name, layout)) = self.path.layer() else { return };
        let weight = param.val();
        let frozen = weight.device().is_autodiff() && !weight.is_require_grad();
        let spec = LayerSpec::new(name, layout.out_in_dims(&weight.dims()));
        let condenses = self.path.condenses().then(|| trains_condensed(&weight.device())).flatten();
        self.found.push(spec.map(|spec| Found { spec, layout, frozen, condenses }));
    }
}
