//! Topology updates of layers and models by any method, and what to report of them.

use crate::random::Stream;
use crate::srigl::SriglSettings;
use crate::unstructured::Growth;
use crate::{ConstantFanInMask, Error, LayerSpec, Mask, init, srigl, unstructured};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A sparse training method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The initial unstructured mask forever.
    Static,
    /// SET: drop by magnitude, grow at random (Mocanu et al. 2018).
    Set,
    /// RigL: drop by magnitude, grow by gradient (Evci et al. 2020).
    Rigl,
    /// SRigL: RigL with constant fan-in and neuron ablation (Lasby et al. 2024).
    Srigl(SriglSettings),
}

impl Method {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] for a `γ_sal` that is negative or not finite.
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Method::Srigl(SriglSettings { gamma_sal, .. })
                if !(gamma_sal.is_finite() && *gamma_sal >= 0.0) =>
            {
                let allowed = "0 (no ablation), a fraction below 1, or a count";
                Err(Error::Setting { name: "gamma_sal", value: *gamma_sal, allowed })
            }
            _ => Ok(()),
        }
    }

    /// The random initial mask of one layer: constant fan-in for SRigL, unstructured otherwise.
    ///
    /// # Errors
    /// [`Error::FanInZero`] if no weight would be left, [`Error::Sparsity`] outside `[0, 1)`.
    pub fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        match self {
            _ if sparsity == 0.0 => Ok(Mask::full(layer.neurons(), layer.dense_fan_in())),
            Method::Srigl(_) => {
                init::constant_fan_in_mask(layer, sparsity, stream).map(ConstantFanInMask::into_mask)
            }
            _ => init::unstructured_mask(layer, sparsity, stream),
        }
    }
}

/// One layer as an update sees it. All slices are row-major `[N · M]`, rows are neurons.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// `W`. Values at inactive positions are ignored.
    pub weights: &'a [f32],
    /// The dense gradient `G = ∂L/∂W` at every position. SET does not look at its values.
    pub grads: &'a [f32],
    /// The present topology.
    pub mask: &'a Mask,
    /// The layer's target sparsity `S`; a layer with 0 is dense and never changes.
    pub sparsity: f64,
    /// Whether its neurons may be ablated; false for layers the user excludes, such as the classifier.
    pub ablate: bool,
}

impl Layer<'_> {
    fn check(&self) -> Result<(), Error> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::Sparsity(self.sparsity));
        }
        if self.mask.positions() == 0 || self.mask.positions() >= u32::MAX as usize {
            let (layer, positions) = (self.name.to_string(), self.mask.positions());
            return Err(Error::TooLarge { layer, positions });
        }
        for (what, values) in [("weight", self.weights), ("gradient", self.grads)] {
            let (layer, expected, got) = (self.name.to_string(), self.mask.positions(), values.len());
            if got != expected {
                return Err(Error::Length { layer, what, expected, got });
            }
            if let Some(i) = first_not_finite(values) {
                let (neuron, input) = (i / self.mask.dense_fan_in(), i % self.mask.dense_fan_in());
                return Err(Error::NotFinite { layer, what, value: values[i], neuron, input });
            }
        }
        Ok(())
    }
}

fn first_not_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1 << 16;
    // Branch-free inside a chunk, so that it vectorises.
    let bad = |chunk: &[f32]| chunk.iter().fold(false, |bad, v| bad | !v.is_finite());
    let chunk = values.par_chunks(CHUNK).position_first(bad)?;
    values[chunk * CHUNK..].iter().position(|v| !v.is_finite()).map(|i| chunk * CHUNK + i)
}

/// A new topology of one layer with its report.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The new mask.
    pub mask: Mask,
    /// What changed.
    pub report: UpdateReport,
}

/// What one update did to one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateReport {
    /// The layer after the update.
    #[serde(flatten)]
    pub stats: LayerStats,
    /// Positions active before and inactive now.
    pub pruned: usize,
    /// Positions inactive before and active now.
    pub grown: usize,
}

impl UpdateReport {
    /// Compares two masks of one layer.
    pub fn new(before: &Mask, after: &Mask) -> Self {
        let (pruned, grown) = (before.count_not_in(after), after.count_not_in(before));
        Self { stats: LayerStats::new(after), pruned, grown }
    }
}

/// Statistics of one layer's topology.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerStats {
    /// `N`.
    pub neurons: usize,
    /// Neurons with at least one active weight.
    pub active: usize,
    /// Indices of the others.
    pub ablated: Vec<usize>,
    /// Fan-in that all active neurons share; `None` if they differ.
    pub fan_in: Option<usize>,
    /// Smallest fan-in of an active neuron; 0 if there is none.
    pub fan_in_min: usize,
    /// Largest fan-in.
    pub fan_in_max: usize,
    /// Active weights.
    pub nnz: usize,
    /// Share of inactive weights.
    pub sparsity: f64,
}

impl LayerStats {
    /// Counts a mask.
    pub fn new(mask: &Mask) -> Self {
        let fan_ins: Vec<usize> = (0..mask.neurons()).map(|i| mask.fan_in(i)).collect();
        let ablated = mask.ablated();
        let fan_in_min = fan_ins.iter().copied().filter(|k| *k > 0).min().unwrap_or(0);
        let fan_in_max = fan_ins.iter().copied().max().unwrap_or(0);
        Self {
            neurons: mask.neurons(),
            active: mask.neurons() - ablated.len(),
            ablated,
            fan_in: (fan_in_min == fan_in_max).then_some(fan_in_max),
            fan_in_min,
            fan_in_max,
            nnz: fan_ins.iter().sum(),
            sparsity: 1.0 - mask.density(),
        }
    }
}

/// One topology update of one layer: a pure function of its arguments, whatever the thread count.
///
/// `alpha` is the drop fraction `α_t` (see [`UpdateSchedule`](crate::UpdateSchedule)); `stream` feeds SET's random growth.
/// The weights are not touched: see [`settle_weights`].
///
/// # Errors
/// Sizes that do not fit, values that are not finite, settings out of range, or a fan-in of 0.
pub fn update_layer(method: &Method, alpha: f64, layer: &Layer, stream: Stream) -> Result<Update, Error> {
    method.validate()?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Setting { name: "drop fraction", value: alpha, allowed: "in [0, 1]" });
    }
    layer.check()?;
    let mask = match method {
        _ if layer.sparsity == 0.0 => layer.mask.clone(),
        Method::Static => layer.mask.clone(),
        Method::Set => unstructured::update(layer, Growth::Random(stream), alpha),
        Method::Rigl => unstructured::update(layer, Growth::Gradient, alpha),
        Method::Srigl(settings) => srigl::update(layer, settings, alpha)?.into_mask(),
    };
    let report = UpdateReport::new(layer.mask, &mask);
    Ok(Update { mask, report })
}

/// [`update_layer`] for all layers of a model in parallel; layer `i` uses stream `(seed, i, step)`.
///
/// # Errors
/// The first layer's that fails; no layer is changed then.
pub fn update_topology(
    method: &Method,
    alpha: f64,
    layers: &[Layer],
    seed: u64,
    step: u64,
) -> Result<Vec<Update>, Error> {
    let update = |(i, layer)| update_layer(method, alpha, layer, Stream { seed, layer: i as u64, step });
    let updates: Vec<Result<Update, Error>> = layers.par_iter().enumerate().map(update).collect();
    updates.into_iter().collect()
}

/// Step 9: sets to exactly 0 what is inactive now and what was inactive before. A weight that was dropped and
/// grown in the same update keeps its value. Works for optimizer moments too. `weights` is `[N · M]`.
pub fn settle_weights(weights: &mut [f32], before: &Mask, after: &Mask) {
    before.apply(weights);
    after.apply(weights);
}

/// The ITOP rate: share of positions that have been active at least once (Liu et al. 2021).
/// `ever_active` is the union of all masks so far.
pub fn itop_rate(ever_active: &Mask) -> f64 {
    ever_active.density()
}
