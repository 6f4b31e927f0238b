//! Networks, methods and optimizers as a run's configuration names them.

use anyhow::Result;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, Optimizer, RmsPropConfig, SgdConfig};
use burn::tensor::Tensor;
use srigl_burn::{Mask, Sparsified, SparsityConfig, WeightInit};
use srigl_models::{ModelInfo, ModelSpec};
use srigl_run::{Config, InitialMaskFrom, ModelArgs, OptimizerName, Steps, Storage};

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
    let info = ModelInfo::named(&args.name)?;
    let spec = ModelSpec { info, images, classes, width, patch, dropout: args.dropout };
    spec.check()?;
    Ok(spec)
}

/// How a run of so many steps makes its network sparse.
///
/// # Errors
/// If a setting of its method is out of range.
pub fn sparsity_config(config: &Config, steps: &Steps) -> Result<SparsityConfig, sparsity_core::Error> {
    let sparsity = SparsityConfig::new(config.sparsity, config.end_step(steps.total));
    let by_default = match config.weights {
        Some(_) => WeightInit::Keep,
        None => WeightInit::KaimingNormal,
    };
    let no_ablation = match &config.no_ablation_layers[..] {
        [] => None,
        [none] if none == "none" => Some(Vec::new()),
        layers => Some(layers.to_vec()),
    };
    Ok(sparsity
        .with_method(config.method.build()?)
        .with_distribution(config.shared())
        .with_keep_dense(config.keep_dense.clone())
        .with_no_ablation(no_ablation)
        .with_delta_t(steps.delta_t)
        .with_drop_fraction(config.drop_fraction)
        .with_drop_schedule(config.drop_schedule)
        .with_grad_accumulation(steps.grad_accumulation)
        .with_weight_init(config.weight_init.unwrap_or(by_default))
        // What is not said is decided where weights are read, or random.
        .with_initial_mask(config.initial_mask.and_then(InitialMaskFrom::drawn))
        .with_condensed(config.storage.map(|storage| storage == Storage::Condensed))
        .with_seed(config.seed))
}

/// Where the masks of a run come from.
#[derive(Clone, Debug)]
pub enum Masks<'a> {
    /// The settings.
    Settings,
    /// These, by the names of layers.
    Given(Vec<(String, Mask)>),
    /// The gradients of a first batch.
    Gradients(&'a GradientsParams),
}

/// The two lines: makes a model sparse as a run wants it, with the optimizer that keeps it so.
///
/// # Errors
/// As [`SparsityConfig::sparsify_masked`].
pub fn sparsify<M: Module>(
    config: &Config,
    model: M,
    steps: &Steps,
    masks: Masks,
) -> Result<Sparsified<M>, srigl_burn::Error> {
    let decay_config = |decay: f64| (decay > 0.0).then(|| WeightDecayConfig::new(decay as f32));
    let [beta_1, beta_2] = config.betas.map(|beta| beta as f32);
    match config.optimizer {
        OptimizerName::Sgd => sparsify_with(config, model, steps, masks, |decay| {
            let momentum = MomentumConfig::new().with_momentum(config.momentum).with_dampening(0.0);
            let momentum = momentum.with_nesterov(config.nesterov);
            let momentum = (config.momentum > 0.0).then_some(momentum);
            SgdConfig::new().with_momentum(momentum).with_weight_decay(decay_config(decay)).build()
        }),
        OptimizerName::Adam => sparsify_with(config, model, steps, masks, |decay| {
            let adam = AdamConfig::new().with_epsilon(EPSILON).with_beta_1(beta_1).with_beta_2(beta_2);
            adam.with_weight_decay(decay_config(decay)).build()
        }),
        OptimizerName::Adamw => sparsify_with(config, model, steps, masks, |decay| {
            let adam = AdamWConfig::new().with_epsilon(EPSILON).with_beta_1(beta_1).with_beta_2(beta_2);
            adam.with_weight_decay(decay as f32).build()
        }),
        OptimizerName::Rmsprop => sparsify_with(config, model, steps, masks, |decay| {
            let rmsprop = RmsPropConfig::new().with_alpha(0.9).with_epsilon(0.0316);
            let rmsprop = rmsprop.with_momentum(config.momentum as f32);
            rmsprop.with_weight_decay(decay_config(decay)).build()
        }),
    }
}

/// ε of Adam and AdamW in PyTorch; Burn's default is 1e-5.
const EPSILON: f32 = 1e-8;

/// Numbers that the optimizer keeps for each weight.
pub(crate) fn moments(config: &Config) -> usize {
    match config.optimizer {
        OptimizerName::Sgd => usize::from(config.momentum > 0.0),
        OptimizerName::Adam | OptimizerName::Adamw | OptimizerName::Rmsprop => 2,
    }
}

/// With the optimizer that `build` makes for a weight decay.
fn sparsify_with<M: Module, O: Optimizer>(
    config: &Config,
    model: M,
    steps: &Steps,
    masks: Masks,
    build: impl Fn(f64) -> O,
) -> Result<Sparsified<M>, srigl_burn::Error> {
    let (settings, optim) = (sparsity_config(config, steps)?, build(config.weight_decay));
    let mut sparse = match masks {
        Masks::Given(masks) => settings.sparsify_masked(model, optim, masks)?,
        Masks::Settings => settings.sparsify(model, optim)?,
        Masks::Gradients(gradients) => settings.sparsify_by_gradients(model, optim, gradients)?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, TensorData};

    /// The weights `[0.5, -1, 2]` after three steps with given gradients at a learning rate of 0.1.
    fn after_three_steps(config: Config) -> Vec<f32> {
        let device = Device::flex().autodiff();
        let layer = LinearConfig::new(3, 1).with_bias(false).init(&device);
        let layer = Linear {
            weight: layer.weight.map(|_| Tensor::from_data([[0.5], [-1.0], [2.0]], &device).require_grad()),
            ..layer
        };
        let config = Config { lr: 0.1, ..config };
        let steps = Steps { total: 3, planned: 3, delta_t: 1, grad_accumulation: 1 };
        let Sparsified { mut model, mut optim, .. } =
            sparsify(&config, layer, &steps, Masks::Settings).unwrap();
        for t in 0..3 {
            let grad = [1e-6 * (t + 1) as f32, -0.2, 0.5 * (t as f32 - 1.0)];
            let mut grads = GradientsParams::new();
            let grad = Tensor::<2>::from_data(TensorData::new(grad.to_vec(), [3, 1]), &Device::flex());
            grads.register(model.weight.id, grad);
            model = optim.step(config.lr, model, grads);
        }
        model.weight.val().into_data().try_into_vec().unwrap()
    }

    /// `torch.optim.SGD` and `AdamW` of PyTorch 2.15 with the same settings. Burn's own ε would move the first weight,
    /// whose gradients are tiny, far less.
    #[test]
    fn steps_are_pytorchs() {
        let flags = |flags: &str| {
            #[derive(clap::Parser)]
            struct Cli {
                #[command(flatten)]
                config: Config,
            }
            let words = ["x", "--method", "dense", "--weight-decay", "0.01"].into_iter();
            <Cli as clap::Parser>::parse_from(words.chain(flags.split_whitespace())).config
        };
        for (config, expected) in [
            (flags("--nesterov"), [0.495_981, -0.831_262_9, 2.060_365_2]),
            (flags(""), [0.497_196_44, -0.882_290_7, 2.074_099_8]),
            (flags("--optimizer adamw --betas 0.8,0.95"), [0.205_222_93, -0.697_302_8, 2.139_352]),
        ] {
            let weights = after_three_steps(config);
            for (got, want) in weights.iter().zip(expected) {
                assert!((got - want).abs() < 3e-6, "{weights:?}, not {expected:?}");
            }
        }
    }
}
