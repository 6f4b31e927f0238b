//! The two-line integration.

use crate::active_weight::{self, Capture, Told, VALUES, tell};
use crate::discover::{Found, ModulePath, find};
use crate::optimizer::{SparseOptimizer, SparseWeight, loaded_masks};
use crate::records;
use crate::topology::{Topology, TopologyLayer};
use crate::{Error, InitialMask, WeightInit};
use burn::config::Config;
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup};
use burn::optim::{GradientsParams, ModuleOptimizer, Optimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use burn::tensor::{Int, Tensor};
use globset::{Glob, GlobMatcher};
use sparsity_core::methods::{AnyMethod, Srigl};
use sparsity_core::{
    Distribution, DropSchedule, LayerSpec, Mask, Method, Stream, UpdateSchedule, initial_masks,
    initialise_weights, sparsity_of_count,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

/// Configuration of sparse training; the defaults are the SRigL paper's.
///
/// Patterns are globs over module paths such as `encoder.layers.0.fc1` (`*` also crosses dots).
///
/// ```
/// use srigl_burn::SparsityConfig;
/// use srigl_burn::methods::{Rigl, Srigl};
///
/// // 90 % zeros; the topology stays fixed from step 7500 on.
/// let srigl = SparsityConfig::new(0.9, 7_500).with_delta_t(200);
/// let without_ablation = srigl.clone().with_method(Srigl { gamma_sal: 0.0, ..Default::default() }.into());
/// let rigl = srigl.with_method(Rigl.into());
/// ```
#[derive(Config, Debug)]
pub struct SparsityConfig {
    /// Global sparsity in `[0, 1)`: share of zeros over all linear and convolution weights. A method with an N:M pattern does not
    /// look at it.
    pub sparsity: f64,
    /// `T_end`: the topology stays fixed from this step on (the paper: 75 % of all steps).
    pub end_step: u64,
    /// The method with its settings.
    #[config(default = "AnyMethod::from(Srigl::default())")]
    pub method: AnyMethod,
    /// How the global sparsity is shared among layers.
    #[config(default = "Distribution::Erk { power: 1.0 }")]
    pub distribution: Distribution,
    /// `ΔT`: optimizer steps between topology updates.
    #[config(default = 100)]
    pub delta_t: u64,
    /// `α`: drop fraction at the start.
    #[config(default = 0.3)]
    pub drop_fraction: f64,
    /// How it falls until `T_end`, by default along a half cosine.
    #[config(default = "DropSchedule::Cosine")]
    pub drop_schedule: DropSchedule,
    /// The dense gradient of an update is the mean over this many last steps.
    #[config(default = 1)]
    pub grad_accumulation: u64,
    /// How the active weights are initialised. `WeightInit::Keep` starts from those that the module has. Methods that choose among
    /// dense weights, such as pruning by magnitude, choose among those of a dense layer that are drawn so.
    #[config(default = "WeightInit::KaimingNormal")]
    pub weight_init: WeightInit,
    /// Where the initial masks come from. Default: the method's choice; where that is random masks, the largest weights of each
    /// layer if `weight_init` keeps them. For masks of your own see [`sparsify_masked`](Self::sparsify_masked).
    pub initial_mask: Option<InitialMask>,
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
    /// Whether the layers [`SparseLinear`](crate::SparseLinear) and [`SparseConv2d`](crate::SparseConv2d) train in condensed
    /// form, where the device has kernels and the method needs no other weights. They and all others are masked otherwise.
    /// Default: yes on CPUs, where that is faster; no on GPUs, where all that is known is that it saves memory.
    /// Optimizers see the values of such a layer as one row, so those that look at matrices, such as Muon, need `false`. The dense
    /// gradient of an update is that of all backward passes since the step before, whatever becomes of their gradients; copies of
    /// a layer share what is kept for it.
    pub condensed: Option<bool>,
    /// Gradient clipping, as in the configuration of Burn's optimizers; on sparse weights it sees the masked gradient.
    pub grad_clipping: Option<GradientClippingConfig>,
}

/// A module that has become sparse, with what keeps it so.
pub struct Sparsified<M> {
    /// The module with sparse weights.
    pub model: M,
    /// Burn's optimizer; it keeps masks, step, schedule and random state.
    pub optim: ModuleOptimizer,
    /// A window on the masks.
    pub topology: Topology,
}

impl SparsityConfig {
    /// Makes a module sparse and returns it with the optimizer that keeps it so.
    ///
    /// `optim` is a bare Burn optimizer: `SgdConfig::new().build()`, `AdamWConfig::new().build()`, … In Burn a bare
    /// optimizer has no gradient clipping; set it with `with_grad_clipping` here, not on the optimizer.
    ///
    /// The weights are drawn anew (see `weight_init`), so to resume, load the records after this, with
    /// [`Sparsified::load_records`].
    ///
    /// Frozen parameters ([`Module::no_grad`], on a device that computes gradients) are left alone: they are neither drawn
    /// anew nor masked, and do not count towards the global sparsity.
    ///
    /// # Errors
    /// Settings out of range, patterns that match nothing, or a layer that would be left without weights.
    pub fn sparsify<M: Module, O: Optimizer>(&self, module: M, optim: O) -> Result<Sparsified<M>, Error> {
        self.sparsify_by(module, optim, Masks::Drawn(None))
    }

    /// The same with masks by the gradients of a first batch on the dense module, as SNIP wants them: the weights with the largest
    /// `|W · ∂L/∂W|` over all layers stay ([`InitialMask::Sensitivity`]). They keep the values that the module has.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::optim::{GradientsParams, SgdConfig};
    /// use burn::tensor::{Device, Tensor};
    /// use srigl_burn::SparsityConfig;
    /// use srigl_burn::methods::Snip;
    ///
    /// # fn main() -> Result<(), srigl_burn::Error> {
    /// let device = Device::flex().autodiff();
    /// let layer = LinearConfig::new(8, 4).init(&device);
    /// let loss = layer.forward(Tensor::<2>::ones([2, 8], &device)).powi_scalar(2).mean();
    /// let gradients = GradientsParams::from_grads(loss.backward(), &layer);
    /// let config = SparsityConfig::new(0.75, 0).with_method(Snip.into());
    /// let sparse = config.sparsify_by_gradients(layer, SgdConfig::new().build(), &gradients)?;
    /// assert_eq!(sparse.topology.layers()[0].mask.nnz(), 8);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`sparsify`](Self::sparsify); [`Error::NoGradient`] for a layer without one.
    pub fn sparsify_by_gradients<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
        gradients: &GradientsParams,
    ) -> Result<Sparsified<M>, Error> {
        let config =
            self.clone().with_initial_mask(Some(InitialMask::Sensitivity)).with_weight_init(WeightInit::Keep);
        config.sparsify_by(module, optim, Masks::Drawn(Some(gradients)))
    }

    /// The same with given masks, by the names of layers: a topology that comes from somewhere. The sparsity of each layer
    /// is that of its mask, whatever `sparsity` says; layers without a mask stay dense.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::optim::SgdConfig;
    /// use burn::tensor::Device;
    /// use srigl_burn::{Mask, SparsityConfig, WeightInit};
    ///
    /// # fn main() -> Result<(), srigl_burn::Error> {
    /// let layer = LinearConfig::new(3, 2).init(&Device::flex().autodiff());
    /// let mask = Mask::from_bytes(2, 3, &[1, 0, 1, 0, 1, 1])?;
    /// let config = SparsityConfig::new(0.0, 75).with_weight_init(WeightInit::Keep);
    /// let sparse = config.sparsify_masked(layer, SgdConfig::new().build(), [("weight".to_string(), mask)])?;
    /// assert_eq!(sparse.topology.layers()[0].mask.nnz(), 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`sparsify`](Self::sparsify); [`Error::GivenMask`] for a mask of no layer, or one that does not fit.
    pub fn sparsify_masked<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
        masks: impl IntoIterator<Item = (String, Mask)>,
    ) -> Result<Sparsified<M>, Error> {
        self.sparsify_by(module, optim, Masks::Given(masks.into_iter().collect()))
    }

    fn sparsify_by<M: Module, O: Optimizer>(
        &self,
        module: M,
        optim: O,
        masks: Masks,
    ) -> Result<Sparsified<M>, Error> {
        let mut all_parameters = ModuleOptimizer::from(optim.clone());
        let clipping = self.grad_clipping.as_ref().map(GradientClippingConfig::init);
        if let Some(clipping) = clipping.clone() {
            all_parameters = all_parameters.with_grad_clipping(clipping);
        }
        if !self.method.info().sparse {
            let topology = Topology::new(Vec::new());
            return Ok(Sparsified { model: module, optim: all_parameters, topology });
        }
        self.method.check()?;
        let schedule = self.schedule();
        schedule.validate()?;
        if self.method.starts_dense() && schedule.last_update().is_none() {
            let SparsityConfig { delta_t, end_step, .. } = *self;
            return Err(Error::NoUpdate { method: self.method.info().name, delta_t, end_step });
        }
        let plan = self.plan(&module, masks)?;

        let topology_layer = |weight: &Arc<SparseWeight>| TopologyLayer {
            name: weight.name.clone(),
            sparsity: weight.sparsity,
            mask: weight.initial_mask.clone(),
            ever_active: weight.initial_mask.clone(),
            condensed: weight.capture.is_some(),
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
            let path = match weight.capture {
                Some(_) => format!("{path}.{VALUES}"),
                None => path.clone(),
            };
            // Clipping is the wrapper's business, after masking.
            optimizers.with_group(ParamGroup::from_path(path), sparse, None)
        });
        let weights = sparse.into_iter().collect();
        let mut initialise = Initialise { path: Vec::new(), weights, config: self, topology: &topology };
        Ok(Sparsified { model: module.map(&mut initialise), optim, topology })
    }

    /// When topologies are updated.
    pub fn schedule(&self) -> UpdateSchedule {
        UpdateSchedule {
            delta_t: self.delta_t,
            drop_fraction: self.drop_fraction,
            drop_schedule: self.drop_schedule,
            end_step: self.end_step,
            grad_accumulation: self.grad_accumulation,
        }
    }

    /// Parameter path, target sparsity and initial mask of every layer that counts towards the global sparsity.
    fn plan<M: Module>(&self, module: &M, masks: Masks) -> Result<Vec<(String, Arc<SparseWeight>)>, Error> {
        let mut found = find(module)?;
        let names: Vec<String> = found.iter().map(|f| f.spec.name.clone()).collect();
        let include = Patterns::new("include", &self.include, &names)?;
        let exclude = Patterns::new("exclude", &self.exclude, &names)?;
        let keep_dense = Patterns::new("keep_dense", &self.keep_dense, &names)?;
        let no_ablation = match &self.no_ablation {
            Some(patterns) => Patterns::new("no_ablation", patterns, &names)?,
            None => Patterns::only(names.last()),
        };

        found.retain(|f| !f.frozen && (self.include.is_empty() || include.matches(f)) && !exclude.matches(f));
        found.iter_mut().for_each(|f| f.spec.keep_dense = keep_dense.matches(f));
        if found.iter().all(|f| f.spec.keep_dense) {
            return Err(Error::NoLayers);
        }
        let masks = match masks {
            Masks::Given(masks) => given_masks(&*self.method, &found, masks)?,
            Masks::Drawn(gradients) => self.initial_masks(module, &found, gradients)?,
        };
        let weight = |(index, (found, (sparsity, mask))): (usize, (Found, (f64, Mask)))| {
            let weight = SparseWeight {
                name: found.spec.name.clone(),
                index,
                layout: found.layout,
                sparsity,
                ablate: !no_ablation.matches(&found),
                method: self.method.clone(),
                // A layer that stays dense is Burn's.
                capture: (found.condenses.is_some_and(|usual| self.condensed.unwrap_or(usual))
                    && sparsity > 0.0
                    && self.method.trains_active_weights_alone())
                .then(|| Capture::new(self.method.info().gradients.are_dense())),
                initial_mask: Arc::new(mask),
                hidden: OnceLock::new(),
            };
            (found.parameter_path(), Arc::new(weight))
        };
        Ok(found.into_iter().zip(masks).enumerate().map(weight).collect())
    }

    /// Sparsity and initial mask of each layer.
    fn initial_masks<M: Module>(
        &self,
        module: &M,
        found: &[Found],
        gradients: Option<&GradientsParams>,
    ) -> Result<Vec<(f64, Mask)>, Error> {
        let specs: Vec<LayerSpec> = found.iter().map(|f| f.spec.clone()).collect();
        let initial = self.initial_mask();
        let mut rows = match initial {
            InitialMask::Random => HashMap::new(),
            _ => Rows::of(module, found, gradients),
        };
        let mut weights = Vec::new();
        for (index, found) in found.iter().enumerate() {
            let Values { weights: mut values, gradient } =
                rows.remove(&found.parameter_path()).unwrap_or_default();
            if initial != InitialMask::Random && !found.spec.keep_dense {
                self.draw_dense(&mut values, &found.spec, index);
            }
            if initial == InitialMask::Sensitivity && !found.spec.keep_dense {
                let gradient =
                    gradient.ok_or_else(|| Error::NoGradient { layer: found.spec.name.clone() })?;
                values.iter_mut().zip(gradient).for_each(|(value, gradient)| *value *= gradient);
            }
            weights.push(values);
        }
        let target = (self.sparsity, self.distribution);
        Ok(initial_masks(&*self.method, &specs, &weights, initial, target, self.seed)?)
    }

    /// Where initial masks come from.
    fn initial_mask(&self) -> InitialMask {
        self.initial_mask.unwrap_or_else(|| self.method.info().initial_with(self.weight_init))
    }

    /// All weights `[N · M]` of a layer, as they are before some are chosen: those that it has, or drawn as those of a dense layer.
    fn draw_dense(&self, values: &mut [f32], spec: &LayerSpec, index: usize) {
        if self.method.starts_from_dense_weights() {
            let stream = Stream { seed: self.seed, layer: index as u64, step: 0 };
            let all = Mask::full(spec.neurons(), spec.dense_fan_in());
            initialise_weights(values, &all, self.weight_init, stream);
        }
    }
}

/// Where masks come from.
enum Masks<'a> {
    /// By the configuration, with gradients if they are chosen by these.
    Drawn(Option<&'a GradientsParams>),
    /// By the names of layers.
    Given(BTreeMap<String, Mask>),
}

/// The given masks in the order of the layers, each with its sparsity: its own, or that of the pattern that it will get.
fn given_masks(
    method: &dyn Method,
    found: &[Found],
    mut masks: BTreeMap<String, Mask>,
) -> Result<Vec<(f64, Mask)>, Error> {
    let sparsity = |spec: &LayerSpec, mask: &Mask| match method.nm().filter(|_| method.info().changes()) {
        Some(nm) => nm.sparsity(spec),
        None => sparsity_of_count(mask.positions(), mask.nnz()),
    };
    let mask = |found: &Found| {
        let spec = &found.spec;
        let given = masks.remove(&spec.name).filter(|_| !spec.keep_dense);
        let expected = [spec.neurons(), spec.dense_fan_in()];
        match given {
            Some(mask) if mask.shape() != expected => {
                let what = format!("a mask {:?} does not fit weights {expected:?}", mask.shape());
                Err(Error::GivenMask { layer: spec.name.clone(), what })
            }
            Some(mask) if mask.nnz() == 0 => Err(Error::GivenMask {
                layer: spec.name.clone(),
                what: "its mask has no active weight".into(),
            }),
            Some(mask) => Ok(match sparsity(spec, &mask) {
                0.0 => (0.0, Mask::full(expected[0], expected[1])),
                sparsity => (sparsity, mask),
            }),
            None => Ok((0.0, Mask::full(expected[0], expected[1]))),
        }
    };
    let result = found.iter().map(mask).collect::<Result<_, _>>()?;
    match masks.pop_first() {
        Some((layer, _)) => Err(Error::GivenMask {
            layer,
            what: "there is a mask for it, but no such layer can be sparse".into(),
        }),
        None => Ok(result),
    }
}

/// The values and gradients `[N · M]` of layers, by the paths of their parameters.
struct Rows<'a> {
    path: ModulePath,
    found: &'a [Found],
    gradients: Option<&'a GradientsParams>,
    rows: HashMap<String, Values>,
}

/// Those of one layer.
#[derive(Default)]
struct Values {
    weights: Vec<f32>,
    gradient: Option<Vec<f32>>,
}

impl<'a> Rows<'a> {
    fn of<M: Module>(
        module: &M,
        found: &'a [Found],
        gradients: Option<&'a GradientsParams>,
    ) -> HashMap<String, Values> {
        let mut rows = Rows { path: ModulePath::default(), found, gradients, rows: HashMap::new() };
        module.visit(&mut rows);
        rows.rows
    }
}

impl ModuleVisitor for Rows<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((module, field, Some(layout))) = self.path.field() else { return };
        let path = module.iter().map(String::as_str).chain([field]).collect::<Vec<_>>().join(".");
        if self.found.iter().any(|found| found.parameter_path() == path) {
            let gradient = self.gradients.and_then(|all| all.get::<D>(param.id));
            let gradient = gradient.map(|gradient| layout.to_rows(gradient));
            self.rows.insert(path, Values { weights: layout.to_rows(param.val()), gradient });
        }
    }
}

impl<M: Module> Sparsified<M> {
    /// Goes on where the records were taken: loads the model's, then the optimizer's, whose states belong to the
    /// parameter ids in it. The topology shows the record's masks at once. Records of a masked layer fit one that trains in
    /// condensed form, and the other way round: weights, moments and gathered gradients move to their new places.
    ///
    /// # Errors
    /// [`Error::ModelRecord`] if the model's does not fit; [`Error::OptimizerRecord`] if the optimizer's has no masks,
    /// or others than a layer's weight has room for; [`Error::OptimizerRecordParts`] if a part of it fits nothing;
    /// [`Error::OtherMask`] if the weights are not those of the masks: no topology starts anew in silence.
    ///
    /// # Panics
    /// If the positions of a sparse layer's weights are not those of any layer of its shape.
    pub fn load_records(self, model: ModuleRecord, optim: OptimizerRecord) -> Result<Self, Error> {
        self.load(model, optim, None)
    }

    /// The same with a schedule of topology updates that takes the place of the record's, for a training that gets more
    /// steps than it was started with.
    ///
    /// # Errors
    /// As [`load_records`](Self::load_records), and for a schedule out of range.
    pub fn load_records_and_reschedule(
        self,
        model: ModuleRecord,
        optim: OptimizerRecord,
        schedule: UpdateSchedule,
    ) -> Result<Self, Error> {
        schedule.validate()?;
        self.load(model, optim, Some(schedule))
    }

    fn load(
        self,
        model: ModuleRecord,
        optim: OptimizerRecord,
        schedule: Option<UpdateSchedule>,
    ) -> Result<Self, Error> {
        let Self { model: module, optim: optimizer, topology } = self;
        let (model, optim) = records::fitting(&module, &topology.layers(), model, optim)?;
        let model = module.try_load_record(model).map_err(|e| Error::ModelRecord(e.to_string()))?;
        let all = optim.len();
        let (optim, masks) = loaded_masks(schedule, || optimizer.load_record(optim));
        let mut ids = ParamIds::default();
        model.visit(&mut ids);
        for (index, layer) in topology.layers().iter().enumerate().filter(|(_, layer)| layer.sparsity > 0.0) {
            let path = crate::discover::parameter_path(&layer.name);
            let id = ids.found.get(&path).or_else(|| ids.found.get(&format!("{path}.{VALUES}")));
            match id.and_then(|id| masks.get(id)) {
                Some(loaded) if loaded.mask.shape() == layer.mask.shape() => {
                    topology.publish(index, &loaded.mask, &loaded.ever_active);
                    if let Some((step, share)) = loaded.share {
                        topology.share(index, step, share);
                    }
                    if let Some(positions) = &loaded.gradient {
                        topology.publish_gradient(index, positions);
                    }
                }
                // Before its first gradient a layer has no state, only its first mask. Its weights will tell.
                None if all == 0 || !masks.is_empty() => {}
                _ => return Err(Error::OptimizerRecord { layer: layer.name.clone() }),
            }
        }
        let loaded = optim.to_record().len();
        if loaded < all {
            return Err(Error::OptimizerRecordParts { lost: all - loaded, all });
        }
        let mut alive = Alive { path: ModulePath::default(), topology: &topology, found: None };
        model.visit(&mut alive);
        match alive.found {
            Some(layer) => Err(Error::OtherMask { layer }),
            None => Ok(Self { model, optim, topology }),
        }
    }
}

/// The first layer with weights that are not 0 where its mask is.
struct Alive<'a> {
    path: ModulePath,
    topology: &'a Topology,
    found: Option<String>,
}

impl ModuleVisitor for Alive<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((layer, layout)) = self.path.layer() else { return };
        let Some(mask) = self.topology.sparse_mask(&layer).filter(|_| self.found.is_none()) else { return };
        let rows = layout.to_rows(param.val());
        let mut masked = rows.clone();
        mask.apply(&mut masked);
        // NaN is not equal to itself, but active.
        if rows.iter().zip(&masked).any(|(value, kept)| value.to_bits() != kept.to_bits() && *value != 0.0) {
            self.found = Some(layer);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let Some(layer) = self.path.positions_of() else { return };
        let Some(mask) = self.topology.sparse_mask(&layer).filter(|_| self.found.is_none()) else { return };
        if !active_weight::are_positions_of(param.val(), &mask) {
            self.found = Some(layer);
        }
    }
}

/// Ids of all float parameters by their paths.
#[derive(Default)]
struct ParamIds {
    path: Vec<String>,
    found: HashMap<String, String>,
}

impl ModuleVisitor for ParamIds {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(self.path.join("."), param.id.val().to_string());
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
struct Initialise<'a> {
    path: Vec<String>,
    weights: HashMap<String, Arc<SparseWeight>>,
    config: &'a SparsityConfig,
    topology: &'a Topology,
}

impl Initialise<'_> {
    /// The values `[N · M]` of a layer that has these.
    fn draw(&self, weight: &SparseWeight, values: &mut [f32]) {
        let (config, mask): (_, &Mask) = (self.config, &weight.initial_mask);
        if !config.method.starts_from_dense_weights() {
            let stream = Stream { seed: config.seed, layer: weight.index as u64, step: 0 };
            return initialise_weights(values, mask, config.weight_init, stream);
        }
        let spec = LayerSpec::new(weight.name.clone(), mask.shape()).expect("it has been found");
        config.draw_dense(values, &spec, weight.index);
        let mut hidden = values.to_vec();
        self.topology.publish_gradient(weight.index, &weight.gradient_positions(mask, &|| hidden.clone()));
        mask.apply(values);
        if config.method.keeps_inactive_weights() {
            hidden
                .iter_mut()
                .zip(&*values)
                .filter(|(_, seen)| **seen != 0.0)
                .for_each(|(hidden, _)| *hidden = 0.0);
            let _ = weight.hidden.set(hidden);
        }
    }
}

impl ModuleMapper for Initialise<'_> {
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
        let param = param.map(|tensor| {
            let (dims, device, dtype) = (tensor.dims(), tensor.device(), tensor.dtype());
            let requires_grad = tensor.is_require_grad();
            let mut rows = weight.layout.to_rows(tensor);
            self.draw(weight, &mut rows);
            let tensor: Tensor<D> = weight.layout.tensor_of_rows(rows, dims, &device);
            tensor.cast(dtype).detach().set_require_grad(requires_grad)
        });
        if let Some(capture) = &weight.capture {
            let (mask, capture) = (weight.initial_mask.clone(), capture.clone());
            tell(Told::Sparsified { mask, room: weight.room(), capture });
        }
        param
    }
}
