//! Networks, methods and optimizers as a run's configuration names them.

use anyhow::Result;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, Optimizer, RmsPropConfig, SgdConfig};
use burn::tensor::Tensor;
use srigl_burn::{Sparsified, SparsityConfig, WeightInit};
use srigl_models::{ModelInfo, ModelSpec};
use srigl_run::{Config, ModelArgs, OptimizerName};

/// The network of a configuration, for images `[channels, height, width]`.
///
/// # Errors
/// If there is none of this name, or not with these sizes or for these images.
pub fn model_spec(
    args: &ModelArgs,
    images: [usize; 3],
    classes: usize,
) -> Result<ModelSpec, srigl_models::Error> {
    let (width, patch) = (args.width.map(usize::from), args.patch.map(usize::from));
    let spec = ModelSpec { info: ModelInfo::named(&args.name)?, images, classes, width, patch };
    spec.check()?;
    Ok(spec)
}

/// How a run makes its network sparse.
///
/// # Errors
/// If a setting of its method is out of range.
pub fn sparsity_config(config: &Config, total_steps: u64) -> Result<SparsityConfig, sparsity_core::Error> {
    let sparsity = SparsityConfig::new(config.sparsity, config.end_step(total_steps));
    Ok(sparsity
        .with_method(config.method.build()?)
        .with_distribution(config.distribution)
        .with_keep_dense(config.keep_dense.clone())
        .with_delta_t(config.delta_t)
        .with_drop_fraction(config.drop_fraction)
        .with_grad_accumulation(config.grad_accumulation)
        .with_weight_init(match config.weights {
            Some(_) => WeightInit::Keep,
            None => WeightInit::KaimingNormal,
        })
        .with_seed(config.seed))
}

/// The two lines: makes a model sparse as a run wants it, with the optimizer that keeps it so.
///
/// # Errors
/// As [`SparsityConfig::sparsify`].
pub fn sparsify<M: Module>(
    config: &Config,
    model: M,
    total_steps: u64,
) -> Result<Sparsified<M>, srigl_burn::Error> {
    let decay_config = |decay: f64| (decay > 0.0).then(|| WeightDecayConfig::new(decay as f32));
    match config.optimizer {
        OptimizerName::Sgd => sparsify_with(config, model, total_steps, |decay| {
            let momentum = MomentumConfig::new().with_momentum(config.momentum).with_dampening(0.0);
            let momentum = (config.momentum > 0.0).then_some(momentum);
            SgdConfig::new().with_momentum(momentum).with_weight_decay(decay_config(decay)).build()
        }),
        OptimizerName::Adam => sparsify_with(config, model, total_steps, |decay| {
            AdamConfig::new().with_weight_decay(decay_config(decay)).build()
        }),
        OptimizerName::Adamw => sparsify_with(config, model, total_steps, |decay| {
            AdamWConfig::new().with_weight_decay(decay as f32).build()
        }),
        OptimizerName::Rmsprop => sparsify_with(config, model, total_steps, |decay| {
            let rmsprop = RmsPropConfig::new().with_alpha(0.9).with_epsilon(0.0316);
            let rmsprop = rmsprop.with_momentum(config.momentum as f32);
            rmsprop.with_weight_decay(decay_config(decay)).build()
        }),
    }
}

/// With the optimizer that `build` makes for a weight decay.
fn sparsify_with<M: Module, O: Optimizer>(
    config: &Config,
    model: M,
    total_steps: u64,
    build: impl Fn(f64) -> O,
) -> Result<Sparsified<M>, srigl_burn::Error> {
    let mut sparse = sparsity_config(config, total_steps)?.sparsify(model, build(config.weight_decay))?;
    if config.decay_weights_only {
        let mut paths = BiasAndNorm::default();
        sparse.model.visit(&mut paths);
        sparse.optim = sparse.optim.with_group(ParamGroup::from_paths(paths.found), build(0.0), None);
    }
    Ok(sparse)
}

/// The paths of a module's biases and of the parameters of its normalisations.
#[derive(Default)]
struct BiasAndNorm {
    path: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for BiasAndNorm {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        // Burn calls the weight and bias of a normalisation gamma and beta.
        if self.path.last().is_some_and(|field| matches!(field.as_str(), "bias" | "gamma" | "beta")) {
            self.found.push(self.path.join("."));
        }
    }
}
