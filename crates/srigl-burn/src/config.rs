//! The two-line integration.

use crate::discover::{Found, find};
use crate::optimizer::{SparseOptimizer, SparseWeight};
use crate::topology::{Topology, TopologyLayer};
use crate::{Error, WeightInit};
use burn::config::Config;
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, ModuleMapper, Param, ParamGroup};
use burn::optim::{ModuleOptimizer, Optimizer};
use burn::tensor::Tensor;
use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};
use sparsity_core::{
    Distribution, Mask, Method, SriglSettings, Stream, ThresholdBase, UpdateSchedule, initialise_weights,
    layer_sparsities,
};
use std::collections::HashMap;
use std::sync::Arc;

/// How a network is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SparseMethod {
    /// Not sparse at all: module and optimizer come back as they are.
    Dense,
    /// A random unstructured mask that never changes.
    Static,
    /// SET: random growth (Mocanu et al. 2018).
    Set,
    /// RigL: growth by gradient (Evci et al. 2020).
    Rigl,
    /// SRigL: constant fan-in and neuron ablation (Lasby et al. 2024).
    #[default]
    Srigl,
}

/// Configuration of sparse training; the defaults are the paper's.
///
/// Patterns are globs over module paths such as `encoder.layers.0.fc1` (`*` also crosses dots).
#[derive(Config, Debug)]
pub struct SriglConfig {
    /// Global sparsity in `[0, 1)`: share of zeros over all linear and convolution weights.
    pub sparsity: f64,
    /// The method.
    #[config(default = "SparseMethod::Srigl")]
    pub method: SparseMethod,
    /// `γ_sal`: below 1 the share of the threshold base that must be salient in a neuron, from 1 on the number of
    /// salient weights, 0 for no ablation. On small layers a larger value than the paper's is needed, since the
    /// threshold rounds down.
    #[config(default = 0.3)]
    pub gamma_sal: f64,
    /// What a fractional `γ_sal` is a share of.
    #[config(default = "ThresholdBase::SparseFanIn")]
    pub threshold_base: ThresholdBase,
    /// How the global sparsity is shared among layers.
    #[config(default = "Distribution::Erk { power: 1.0 }")]
    pub distribution: Distribution,
    /// `ΔT`: optimizer steps between topology updates.
    #[config(default = 100)]
    pub delta_t: u64,
    /// `α`: drop fraction at the start; it falls to 0 along a half cosine.
    #[config(default = 0.3)]
    pub drop_fraction: f64,
    /// `T_end`: the topology stays fixed from this step on (the paper: 75 % of all steps). There is no default:
    /// dynamic methods refuse 0.
    #[config(default = 0)]
    pub end_step: u64,
    /// The dense gradient of an update is the mean over this many last steps.
    #[config(default = 1)]
    pub grad_accumulation: u64,
    /// How the active weights are initialised.
    #[config(default = "WeightInit::KaimingNormal")]
    pub weight_init: WeightInit,
    /// Seed of masks, initial weights and random growth.
    #[config(default = 0)]
    pub seed: u64,
    /// If not empty, only matching layers are touched at all.
    #[config(default = "Vec::new()")]
    pub include: Vec<String>,
    /// Matching layers are not touched and do not count towards the global sparsity.
    #[config(default = "Vec::new()")]
    pub exclude: Vec<String>,
    /// Matching layers stay dense; the others make up for them.
    #[config(default = "Vec::new()")]
    pub keep_dense: Vec<String>,
    /// In matching layers no neuron is ablated. Default: the last layer, which is taken for the classifier.
    pub no_ablation: Option<Vec<String>>,
    /// Gradient clipping, as in the configuration of Burn's optimizers; on sparse weights it sees the masked gradient.
    pub grad_clipping: Option<GradientClippingConfig>,
}

impl SriglConfig {
    /// Makes a module sparse and returns it with the optimizer that keeps it so.
    ///
    /// `optim` is a bare Burn optimizer: `SgdConfig::new().build()`, `AdamWConfig::new().build()`, … In Burn a bare
    /// optimizer has no gradient clipping; set it with `with_grad_clipping` here, not on the optimizer.
    ///
    /// The weights are drawn anew (see `weight_init`), so to resume, load the records after this: first the model's,
    /// then the optimizer's, whose state belongs to the parameter ids in the model's record.
    ///
    /// # Errors
    /// Settings out of range, patterns that match nothing, or a layer that would be left without weights.
    pub fn sparsify<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
    ) -> Result<(M, ModuleOptimizer), Error> {
        let (module, optim, _) = self.set_up(module, optim)?;
        Ok((module, optim))
    }

    /// Like [`sparsify`](Self::sparsify), with a [`Topology`] to watch masks and updates.
    ///
    /// # Errors
    /// As [`sparsify`](Self::sparsify).
    pub fn sparsify_observed<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
    ) -> Result<(M, ModuleOptimizer, Topology), Error> {
        let (module, optim, topology) = self.set_up(module, optim)?;
        topology.observe();
        Ok((module, optim, topology))
    }

    fn set_up<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
    ) -> Result<(M, ModuleOptimizer, Topology), Error> {
        let mut all_parameters = ModuleOptimizer::from(optim.clone());
        let clipping = self.grad_clipping.as_ref().map(GradientClippingConfig::init);
        if let Some(clipping) = clipping.clone() {
            all_parameters = all_parameters.with_grad_clipping(clipping);
        }
        let Some(method) = self.core_method() else {
            return Ok((module, all_parameters, Topology::new(Vec::new())));
        };
        method.validate()?;
        let schedule = self.schedule()?;
        let plan = self.plan(&module, method)?;

        let topology_layer = |weight: &Arc<SparseWeight>| TopologyLayer {
            name: weight.name.clone(),
            sparsity: weight.sparsity,
            mask: weight.initial_mask.clone(),
            ever_active: weight.initial_mask.clone(),
        };
        let topology = Topology::new(plan.iter().map(|(_, weight)| topology_layer(weight)).collect());
        let sparse: Vec<_> = plan.into_iter().filter(|(_, weight)| weight.sparsity > 0.0).collect();
        let optim = sparse.iter().fold(all_parameters, |optimizers, (path, weight)| {
            let sparse = SparseOptimizer {
                inner: optim.clone(),
                weight: weight.clone(),
                schedule,
                seed: self.seed,
                clipping: clipping.clone(),
                topology: topology.clone(),
            };
            // Clipping is the wrapper's business, after masking.
            optimizers.with_group(ParamGroup::from_path(path), sparse, None)
        });
        let weights = sparse.into_iter().collect();
        let mut initialise =
            Initialise { path: Vec::new(), weights, init: self.weight_init, seed: self.seed };
        Ok((module.map(&mut initialise), optim, topology))
    }

    fn core_method(&self) -> Option<Method> {
        match self.method {
            SparseMethod::Dense => None,
            SparseMethod::Static => Some(Method::Static),
            SparseMethod::Set => Some(Method::Set),
            SparseMethod::Rigl => Some(Method::Rigl),
            SparseMethod::Srigl => {
                let (gamma_sal, threshold_base) = (self.gamma_sal, self.threshold_base);
                Some(Method::Srigl(SriglSettings { gamma_sal, threshold_base }))
            }
        }
    }

    fn schedule(&self) -> Result<UpdateSchedule, Error> {
        if self.end_step == 0 && self.method != SparseMethod::Static {
            return Err(Error::NoEndStep);
        }
        let schedule = UpdateSchedule {
            delta_t: self.delta_t,
            drop_fraction: self.drop_fraction,
            end_step: self.end_step,
            grad_accumulation: self.grad_accumulation,
        };
        schedule.validate()?;
        Ok(schedule)
    }

    /// Parameter path, target sparsity and initial mask of every layer that counts towards the global sparsity.
    fn plan<M: Module>(&self, module: &M, method: Method) -> Result<Vec<(String, Arc<SparseWeight>)>, Error> {
        let mut found = find(module)?;
        let names: Vec<String> = found.iter().map(|f| f.spec.name.clone()).collect();
        let include = Patterns::new("include", &self.include, &names)?;
        let exclude = Patterns::new("exclude", &self.exclude, &names)?;
        let keep_dense = Patterns::new("keep_dense", &self.keep_dense, &names)?;
        let no_ablation = match &self.no_ablation {
            Some(patterns) => Patterns::new("no_ablation", patterns, &names)?,
            None => Patterns::only(names.last()),
        };

        found.retain(|f| (self.include.is_empty() || include.matches(f)) && !exclude.matches(f));
        found.iter_mut().for_each(|f| f.spec.keep_dense = keep_dense.matches(f));
        if found.iter().all(|f| f.spec.keep_dense) {
            return Err(Error::NoLayers);
        }
        let specs: Vec<_> = found.iter().map(|f| f.spec.clone()).collect();
        let sparsities = layer_sparsities(&specs, self.sparsity, self.distribution)?;
        let weight = |(index, (found, sparsity)): (usize, (Found, f64))| {
            let stream = Stream { seed: self.seed, layer: index as u64, step: 0 };
            let weight = SparseWeight {
                name: found.spec.name.clone(),
                index,
                layout: found.layout,
                sparsity,
                ablate: !no_ablation.matches(&found),
                method,
                initial_mask: method.initial_mask(&found.spec, sparsity, stream)?,
            };
            Ok((found.parameter_path(), Arc::new(weight)))
        };
        found.into_iter().zip(sparsities).enumerate().map(weight).collect()
    }
}

/// Globs over layer names.
struct Patterns(Vec<GlobMatcher>);

impl Patterns {
    fn new(option: &'static str, patterns: &[String], layers: &[String]) -> Result<Self, Error> {
        let compile = |pattern: &String| {
            let glob = Glob::new(pattern).map_err(|e| Error::Pattern {
                option,
                pattern: pattern.clone(),
                reason: e.kind().to_string(),
            })?;
            let matcher = glob.compile_matcher();
            if layers.iter().any(|layer| matcher.is_match(layer)) {
                return Ok(matcher);
            }
            Err(Error::UnusedPattern { option, pattern: pattern.clone(), layers: layers.to_vec() })
        };
        patterns.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    fn only(layer: Option<&String>) -> Self {
        let exact = |name: &String| Glob::new(&globset::escape(name)).expect("escaped").compile_matcher();
        Self(layer.map(exact).into_iter().collect())
    }

    fn matches(&self, found: &Found) -> bool {
        self.0.iter().any(|pattern| pattern.is_match(&found.spec.name))
    }
}

/// Gives each sparse weight its initial values: random on the active positions, exactly 0 elsewhere.
struct Initialise {
    path: Vec<String>,
    weights: HashMap<String, Arc<SparseWeight>>,
    init: WeightInit,
    seed: u64,
}

impl ModuleMapper for Initialise {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(weight) = self.weights.get(&self.path.join(".")) else {
            return param;
        };
        let mask: &Mask = &weight.initial_mask;
        let stream = Stream { seed: self.seed, layer: weight.index as u64, step: 0 };
        param.map(|tensor| {
            let (dims, device, dtype) = (tensor.dims(), tensor.device(), tensor.dtype());
            let requires_grad = tensor.is_require_grad();
            let mut rows = weight.layout.to_rows(tensor);
            initialise_weights(&mut rows, mask, self.init, stream);
            let tensor: Tensor<D> = weight.layout.tensor_of_rows(rows, dims, &device);
            tensor.cast(dtype).detach().set_require_grad(requires_grad)
        })
    }
}
