//! Methods, masks and topology updates.

use crate::refused;
use crate::threads::detached;
use globset::Glob;
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rayon::prelude::*;
use sparsity_core::counting::{self, CountedLayer, LayerKind};
use sparsity_core::methods::{
    AnyMethod, GradientPositions, Gradients, METHODS, MethodInfo, SettingKind, Settings, Updates, Value,
};
use sparsity_core::{
    Distribution, DropSchedule, InitialMask, Layer, LayerSpec, LayerStats, Mask, Stream, Structure,
    WeightInit,
};
use std::collections::BTreeMap;

/// The one of this name in a table of names.
fn named<T: Copy>(what: &str, name: &str, names: &[(&str, &str, T)]) -> PyResult<T> {
    let found = names.iter().find(|(known, ..)| *known == name);
    found.map(|(.., value)| *value).ok_or_else(|| {
        let known = names.iter().map(|(known, ..)| *known).collect::<Vec<_>>().join(", ");
        refused(format_args!("no {what} `{name}`; known are {known}"))
    })
}

const INITIAL: [(&str, &str, InitialMask); 4] = [
    ("random", "", InitialMask::Random),
    ("magnitude", "", InitialMask::Magnitude),
    ("global-magnitude", "", InitialMask::GlobalMagnitude),
    ("sensitivity", "", InitialMask::Sensitivity),
];

fn distribution(name: &str) -> PyResult<Distribution> {
    named("distribution", name, &Distribution::NAMES)
}

fn weight_init(name: &str) -> PyResult<WeightInit> {
    named("weight init", name, &WeightInit::NAMES)
}

/// A mask `[N, M]` of as many bytes, 0 or 1.
fn mask_of(bytes: &[u8], neurons: usize) -> PyResult<Mask> {
    let fan_in = bytes.len().checked_div(neurons).unwrap_or(0);
    Mask::from_bytes(neurons, fan_in, bytes).map_err(refused)
}

/// A value of a setting.
#[derive(FromPyObject, IntoPyObject)]
pub enum Setting {
    Number(f64),
    Word(String),
}

impl From<Setting> for Value {
    fn from(setting: Setting) -> Self {
        match setting {
            Setting::Number(number) => Self::Number(number),
            Setting::Word(word) => Self::Word(word),
        }
    }
}

impl From<Value> for Setting {
    fn from(value: Value) -> Self {
        match value {
            Value::Number(number) => Self::Number(number),
            Value::Word(word) => Self::Word(word),
        }
    }
}

/// A sparse training method with its settings.
#[pyclass(frozen, module = "srigl.core")]
pub struct Method(AnyMethod);

#[pymethods]
impl Method {
    #[new]
    fn new(name: &str, settings: BTreeMap<String, Setting>) -> PyResult<Self> {
        let settings = settings.into_iter().map(|(name, value)| (name, value.into())).collect();
        let method = MethodInfo::named(name).and_then(|info| info.build(&Settings(settings)));
        method.map(Self).map_err(refused)
    }

    #[getter]
    fn name(&self) -> &'static str {
        self.0.info().name
    }

    #[getter]
    fn label(&self) -> String {
        self.0.label()
    }

    #[getter]
    fn settings(&self) -> BTreeMap<String, Setting> {
        self.0.settings().0.into_iter().map(|(name, value)| (name, value.into())).collect()
    }

    #[getter]
    fn sparse(&self) -> bool {
        self.0.info().sparse
    }

    /// `never`, `scheduled` or `each-step`.
    #[getter]
    fn updates(&self) -> &'static str {
        match self.0.info().updates {
            Updates::Never => "never",
            Updates::Scheduled => "scheduled",
            Updates::EachStep => "each-step",
        }
    }

    /// `none`, `active`, `dense` or `momentum`.
    #[getter]
    fn gradients(&self) -> &'static str {
        match self.0.info().gradients {
            Gradients::None => "none",
            Gradients::Active => "active",
            Gradients::Dense => "dense",
            Gradients::Momentum { .. } => "momentum",
        }
    }

    /// How much of the sum of gradients is left after each step, where updates look at that.
    #[getter]
    fn momentum(&self) -> f64 {
        match self.0.info().gradients {
            Gradients::Momentum { beta } => beta,
            _ => 0.0,
        }
    }

    #[getter]
    fn keeps_inactive_weights(&self) -> bool {
        self.0.keeps_inactive_weights()
    }

    #[getter]
    fn starts_from_dense_weights(&self) -> bool {
        self.0.starts_from_dense_weights()
    }

    #[getter]
    fn starts_dense(&self) -> bool {
        self.0.starts_dense()
    }

    /// Where initial masks come from, with weights initialised so.
    fn initial_with(&self, init: &str) -> PyResult<&'static str> {
        let initial = self.0.info().initial_with(weight_init(init)?);
        Ok(INITIAL.iter().find(|(.., known)| *known == initial).map_or("random", |(name, ..)| name))
    }

    fn sparsity_at(&self, sparsity: f64, progress: f64) -> f64 {
        self.0.sparsity_at(sparsity, progress)
    }

    fn inactive_decay(&self, sparsity: f64) -> f64 {
        self.0.inactive_decay(sparsity)
    }

    /// The positions that get gradient as bytes; those of the mask, or all, by name.
    fn gradient_positions<'py>(
        &self,
        py: Python<'py>,
        mask: PyReadonlyArray1<'py, u8>,
        neurons: usize,
        sparsity: f64,
        weights: PyReadonlyArray1<'py, f32>,
    ) -> PyResult<(&'static str, Option<Bound<'py, PyArray1<u8>>>)> {
        let (mask, weights) = (mask_of(mask.as_slice()?, neurons)?, weights.as_slice()?);
        let positions = detached(py, || {
            let positions = self.0.gradient_positions(&mask, sparsity, &|| weights.to_vec());
            match positions {
                GradientPositions::Superset(mut superset) => {
                    superset.union_with(&mask);
                    GradientPositions::Superset(superset)
                }
                other => other,
            }
        });
        Ok(match positions {
            GradientPositions::Active => ("active", None),
            GradientPositions::All => ("all", None),
            GradientPositions::Superset(mask) => ("superset", Some(PyArray1::from_vec(py, mask.to_bytes()))),
        })
    }
}

/// Name, one line about it, and settings (name, about, default) of each method.
#[pyfunction]
#[expect(clippy::type_complexity, reason = "a table")]
pub fn methods() -> Vec<(&'static str, &'static str, Vec<(&'static str, &'static str, Setting)>)> {
    let setting = |setting: &'static sparsity_core::methods::Setting| {
        let default = match setting.kind {
            SettingKind::Number(number) => Setting::Number(number),
            SettingKind::Word(words) => Setting::Word(words[0].into()),
        };
        (setting.name, setting.about, default)
    };
    METHODS.iter().map(|info| (info.name, info.about, info.settings.iter().map(setting).collect())).collect()
}

/// When topologies are updated, and how much of them. Steps count from 1.
#[pyclass(frozen, module = "srigl.core")]
pub struct UpdateSchedule(sparsity_core::UpdateSchedule);

#[pymethods]
impl UpdateSchedule {
    #[new]
    #[pyo3(signature = (end_step, *, delta_t = 100, drop_fraction = 0.3, drop_schedule = "cosine", grad_accumulation = 1))]
    fn new(
        end_step: u64,
        delta_t: u64,
        drop_fraction: f64,
        drop_schedule: &str,
        grad_accumulation: u64,
    ) -> PyResult<Self> {
        let drop_schedule = named("drop schedule", drop_schedule, &DropSchedule::NAMES)?;
        let schedule = sparsity_core::UpdateSchedule {
            delta_t,
            drop_fraction,
            drop_schedule,
            end_step,
            grad_accumulation,
        };
        schedule.validate().map_err(refused)?;
        Ok(Self(schedule))
    }

    #[getter]
    fn end_step(&self) -> u64 {
        self.0.end_step
    }

    #[getter]
    fn delta_t(&self) -> u64 {
        self.0.delta_t
    }

    #[getter]
    fn grad_accumulation(&self) -> u64 {
        self.0.grad_accumulation
    }

    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((u64,), Bound<'py, PyDict>)> {
        let settings = PyDict::new(py);
        settings.set_item("delta_t", self.0.delta_t)?;
        settings.set_item("drop_fraction", self.0.drop_fraction)?;
        let name = DropSchedule::NAMES.iter().find(|(.., schedule)| *schedule == self.0.drop_schedule);
        settings.set_item("drop_schedule", name.map_or("cosine", |(name, ..)| name))?;
        settings.set_item("grad_accumulation", self.0.grad_accumulation)?;
        Ok(((self.0.end_step,), settings))
    }

    /// Whether the topology is updated after a step.
    fn is_update(&self, step: u64) -> bool {
        self.0.is_update(step)
    }

    /// Whether the dense gradient of a step enters the mean of the next update.
    fn gathers_gradient(&self, step: u64) -> bool {
        self.0.gathers_gradient(step)
    }

    /// The drop fraction of a step.
    fn drop_fraction_at(&self, step: u64) -> f64 {
        self.0.drop_fraction_at(step)
    }

    /// The step of the last update, if there is one.
    fn last_update(&self) -> Option<u64> {
        self.0.last_update()
    }

    /// How much of the way to the last update lies behind a step, 0 to 1.
    fn progress_at(&self, step: u64) -> f64 {
        self.0.progress_at(step)
    }
}

/// Name, shape `[out, in, …]`, and whether it stays dense.
type Spec = (String, Vec<usize>, bool);

fn specs(layers: Vec<Spec>) -> PyResult<Vec<LayerSpec>> {
    let spec = |(name, dims, keep_dense): Spec| {
        let spec = LayerSpec::new(name, dims).map_err(refused)?;
        Ok(if keep_dense { spec.dense() } else { spec })
    };
    layers.into_iter().map(spec).collect()
}

/// The sparsity of each layer.
#[pyfunction]
pub fn layer_sparsities(layers: Vec<Spec>, sparsity: f64, distribution: &str) -> PyResult<Vec<f64>> {
    sparsity_core::layer_sparsities(&specs(layers)?, sparsity, self::distribution(distribution)?)
        .map_err(refused)
}

/// The sparsity of the weights that a layer of this sparsity has: their number is whole.
#[pyfunction]
pub fn target_sparsity(positions: usize, sparsity: f64) -> f64 {
    sparsity_core::sparsity_of_count(positions, sparsity_core::target_weights(positions, sparsity))
}

/// Sparsity and mask of each layer.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "as many as there are settings")]
pub fn initial_masks<'py>(
    py: Python<'py>,
    method: &Method,
    layers: Vec<Spec>,
    weights: Vec<Option<PyReadonlyArray1<'py, f32>>>,
    from: &str,
    sparsity: f64,
    distribution: &str,
    seed: u64,
) -> PyResult<Vec<(f64, Bound<'py, PyArray1<u8>>)>> {
    let (specs, from) = (specs(layers)?, named("initial mask", from, &INITIAL)?);
    let target = (sparsity, self::distribution(distribution)?);
    let copy = |weights: &Option<PyReadonlyArray1<f32>>| match weights {
        Some(weights) => Ok(weights.as_slice()?.to_vec()),
        None => Ok(Vec::new()),
    };
    let weights = weights.iter().map(copy).collect::<PyResult<Vec<_>>>()?;
    let masks =
        detached(py, || sparsity_core::initial_masks(&*method.0, &specs, &weights, from, target, seed));
    let masks = masks.map_err(refused)?.into_iter();
    Ok(masks.map(|(sparsity, mask)| (sparsity, PyArray1::from_vec(py, mask.to_bytes()))).collect())
}

/// Weights with the active ones drawn anew, or those that they are, and zeros elsewhere.
#[pyfunction]
pub fn initial_weights<'py>(
    py: Python<'py>,
    mask: PyReadonlyArray1<'py, u8>,
    neurons: usize,
    weights: PyReadonlyArray1<'py, f32>,
    init: &str,
    seed: u64,
    layer: u64,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let (mask, init) = (mask_of(mask.as_slice()?, neurons)?, weight_init(init)?);
    let mut weights = weights.as_slice()?.to_vec();
    if weights.len() != mask.positions() {
        return Err(refused(format_args!(
            "{} weights for a mask of {} positions",
            weights.len(),
            mask.positions()
        )));
    }
    detached(py, || {
        sparsity_core::initialise_weights(&mut weights, &mask, init, Stream { seed, layer, step: 0 });
    });
    Ok(PyArray1::from_vec(py, weights))
}

/// A layer as an update sees it.
#[derive(FromPyObject)]
pub struct State<'py> {
    index: u64,
    name: String,
    neurons: usize,
    weights: PyReadonlyArray1<'py, f32>,
    grads: Option<PyReadonlyArray1<'py, f32>>,
    mask: PyReadonlyArray1<'py, u8>,
    sparsity: f64,
    ablate: bool,
}

/// New mask and what changed as JSON, or what is wrong.
type Updated<'py> = (Option<Bound<'py, PyArray1<u8>>>, String);

/// One topology update of each layer, all in parallel; layer `index` uses the random stream `(seed, index, step)`.
#[pyfunction]
pub fn update<'py>(
    py: Python<'py>,
    method: &Method,
    alpha: f64,
    layers: Vec<State<'py>>,
    seed: u64,
    step: u64,
) -> PyResult<Vec<Updated<'py>>> {
    let masks = layers
        .iter()
        .map(|layer| mask_of(layer.mask.as_slice()?, layer.neurons))
        .collect::<PyResult<Vec<_>>>()?;
    // Methods that look at no gradients look at no values.
    let longest = masks.iter().zip(&layers).filter(|(_, layer)| layer.grads.is_none());
    let none = vec![0.0; longest.map(|(mask, _)| mask.positions()).max().unwrap_or(0)];
    let mut views = Vec::new();
    for (layer, mask) in layers.iter().zip(&masks) {
        let grads = match &layer.grads {
            Some(grads) => grads.as_slice()?,
            None => &none[..mask.positions()],
        };
        let weights = layer.weights.as_slice()?;
        let State { name, sparsity, ablate, .. } = layer;
        views.push(Layer { name, weights, grads, mask, sparsity: *sparsity, ablate: *ablate });
    }
    let indices: Vec<u64> = layers.iter().map(|layer| layer.index).collect();
    let updates = detached(py, || {
        let sparsities = match method.0.redistribute(&[]).is_some() {
            true => sparsity_core::redistributed_sparsities(&*method.0, alpha, &views)?,
            false => views.iter().map(|layer| layer.sparsity).collect(),
        };
        let update = |((layer, index), sparsity): ((&Layer, &u64), &f64)| {
            let layer = Layer { sparsity: *sparsity, ..*layer };
            sparsity_core::update_layer(&*method.0, alpha, &layer, Stream { seed, layer: *index, step })
        };
        Ok(views.par_iter().zip(&indices).zip(&sparsities).map(update).collect::<Vec<_>>())
    });
    let updated = |update: Result<sparsity_core::Update, sparsity_core::Error>| match update {
        Ok(update) => {
            let report = serde_json::to_string(&update.report).expect("numbers");
            (Some(PyArray1::from_vec(py, update.mask.to_bytes())), report)
        }
        Err(error) => (None, error.to_string()),
    };
    Ok(updates.map_err(|error: sparsity_core::Error| refused(error))?.into_iter().map(updated).collect())
}

/// Counts of a mask as JSON, with N:M and groups if it has them.
#[pyfunction]
pub fn layer_stats(py: Python<'_>, mask: PyReadonlyArray1<'_, u8>, neurons: usize) -> PyResult<String> {
    let mask = mask_of(mask.as_slice()?, neurons)?;
    let (stats, structure) = detached(py, || (LayerStats::new(&mask), Structure::of(&mask)));
    let mut stats = serde_json::to_value(stats).expect("numbers");
    stats["nm"] = structure.nm.map(|nm| nm.to_string()).into();
    stats["group"] = structure.group.into();
    Ok(stats.to_string())
}

/// Multiplications, additions and parameters of layers (shape, positions of the output, sparsity); those of four dimensions are
/// convolutions.
#[pyfunction]
pub fn inference_cost(layers: Vec<(Vec<usize>, usize, f64)>) -> PyResult<(f64, f64, f64)> {
    let mut sparsities = Vec::new();
    let mut counted = Vec::new();
    for (dims, out_positions, sparsity) in layers {
        let LayerSpec { name, dims, .. } = LayerSpec::new("", dims).map_err(refused)?;
        let kind = if dims.len() == 2 { LayerKind::Linear } else { LayerKind::Conv };
        counted.push(CountedLayer { name, kind, dims, out_positions });
        sparsities.push(sparsity);
    }
    let cost = counting::inference_cost(&counted, &sparsities).map_err(refused)?;
    Ok((cost.multiplications, cost.additions, cost.parameters))
}

/// Floating-point operations of a sparse training.
#[pyfunction]
pub fn training_flops(dense: f64, sparse: f64, delta_t: usize, images: f64) -> f64 {
    counting::training_flops(dense, sparse, delta_t, images)
}

/// Which names match a pattern of several; each pattern must match one.
#[pyfunction]
pub fn matching(option: &str, patterns: Vec<String>, names: Vec<String>) -> PyResult<Vec<bool>> {
    let mut matched = vec![false; names.len()];
    for pattern in &patterns {
        let glob =
            Glob::new(pattern).map_err(|error| refused(format_args!("{option}: {error}")))?.compile_matcher();
        let mut any = false;
        for (matched, _) in matched.iter_mut().zip(&names).filter(|(_, name)| glob.is_match(name)) {
            (*matched, any) = (true, true);
        }
        if !any {
            let known = names.join(", ");
            return Err(refused(format_args!("{option}: `{pattern}` matches no layer; there are {known}")));
        }
    }
    Ok(matched)
}
