//! Clipping the norm of all gradients together.

use crate::discover::ModulePath;
use crate::layout::Layout;
use crate::topology::Topology;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Tensor};
use std::collections::HashMap;

/// Scales all gradients by the same factor so that their joint norm is at most a given one, as PyTorch's
/// `clip_grad_norm_` does; Burn's own clipping looks at one parameter at a time. Sparse weights count with the gradients that
/// they get: those of active weights, or of more where a method says so. What a method adds to them (its decay of inactive weights) comes later. The norm is taken in f32, whatever the gradients are in.
///
/// For training loops that hold the gradients: call [`clip`](Self::clip) between the backward pass and the
/// optimizer's step. Nothing is copied from the device. The dense gradients that topology updates gather are those before
/// clipping, as in the authors' code: the sparse optimizer divides by the factor.
pub struct NormClipping {
    max_norm: f32,
    topology: Topology,
    /// Version of the topology that `inactive` shows.
    version: Option<u64>,
    /// By layer: true where there is no gradient, in the order of the parameter's values.
    inactive: HashMap<String, Tensor<1, Bool>>,
}

impl NormClipping {
    /// Clips to `max_norm`, with the masks of `topology`.
    pub fn new(max_norm: f32, topology: Topology) -> Self {
        Self { max_norm, topology, version: None, inactive: HashMap::new() }
    }

    /// The gradients of a module's parameters, scaled by `min(1, max_norm / (norm + 10⁻⁶))`.
    pub fn clip<M: Module>(&mut self, module: &M, grads: GradientsParams) -> GradientsParams {
        let version = self.topology.version();
        if self.version != Some(version) {
            self.inactive.clear();
            self.version = Some(version);
        }
        let mut norm = SquaredNorm { clipping: self, grads: &grads, path: ModulePath::default(), sum: None };
        module.visit(&mut norm);
        let Some(sum) = norm.sum else { return grads };
        let factor = (sum.sqrt() + 1e-6).recip().mul_scalar(self.max_norm).clamp_max(1.0);
        self.topology.clipped(&factor);
        let mut scale = Scale { factor, grads, scaled: GradientsParams::new() };
        module.visit(&mut scale);
        scale.scaled
    }

    /// Where the layer `name` gets no gradient, unless it does everywhere.
    fn inactive<const D: usize>(
        &mut self,
        name: &str,
        layout: Layout,
        grad: &Tensor<D>,
    ) -> Option<Tensor<1, Bool>> {
        if !self.inactive.contains_key(name) {
            let mask = self.topology.gradient_mask(name)?;
            let inactive = layout.inactive(&mask, [mask.positions()], &grad.device());
            self.inactive.insert(name.to_string(), inactive);
        }
        self.inactive.get(name).cloned()
    }
}

struct SquaredNorm<'a> {
    clipping: &'a mut NormClipping,
    grads: &'a GradientsParams,
    path: ModulePath,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.get::<D>(param.id) else { return };
        let layer = self.path.layer();
        let mask = layer.and_then(|(layer, layout)| self.clipping.inactive(&layer, layout, &grad));
        let values = grad.shape().num_elements();
        // The squares of half-precision numbers would overflow, or vanish.
        let mut grad: Tensor<1> = grad.reshape([values]).cast(DType::F32);
        if let Some(inactive) = mask {
            grad = grad.mask_fill(inactive, 0.0);
        }
        let squares = grad.square().sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + squares,
            None => squares,
        });
    }
}

struct Scale {
    factor: Tensor<1>,
    grads: GradientsParams,
    scaled: GradientsParams,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            let factor = self.factor.clone().cast(grad.dtype()).reshape([1; D]);
            self.scaled.register(param.id, grad * factor);
        }
    }
}
