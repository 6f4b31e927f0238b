//! Topology updates of layers and models by any method, and what to report of them.

use crate::methods::{Gradients, LayerShare};
use crate::select::{Key, neurons_per_block};
use crate::{
    Distribution, Error, InitialMask, LayerSpec, Mask, Method, Stream, global_magnitude_sparsities,
    layer_sparsities, sparsity_of_count, target_weights,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// One layer as an update sees it. All slices are row-major `[N · M]`, rows are neurons.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// `W`. Values at inactive positions are ignored.
    pub weights: &'a [f32],
    /// `G` at every position: what the method's [`Gradients`](crate::methods::Gradients) say it is. Methods that look at none do not
    /// look at its values.
    pub grads: &'a [f32],
    /// The present topology.
    pub mask: &'a Mask,
    /// The sparsity `S` that the layer shall have after the update ([`Method::sparsity_at`]); a layer with 0 is dense and never changes.
    pub sparsity: f64,
    /// Whether its neurons may be ablated; false for layers the user excludes, such as the classifier.
    pub ablate: bool,
}

/// One layer of which only the active weights are there, as an update sees it.
#[derive(Clone, Copy, Debug)]
pub struct ActiveLayer<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// `W` at the active positions, one row (neuron) after the other.
    pub values: &'a [f32],
    /// The present topology.
    pub mask: &'a Mask,
    /// As [`Layer::sparsity`].
    pub sparsity: f64,
    /// As [`Layer::ablate`].
    pub ablate: bool,
    /// `∂L/∂W` at the active positions, for methods that ask for [`Gradients::Active`](crate::methods::Gradients); otherwise empty.
    pub grads: &'a [f32],
    /// The neurons that its rows stand for.
    pub members: Members,
}

/// How many neurons a row of a layer stands for, which are one to the method if they share their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members {
    /// Each but the last.
    pub each: usize,
    /// The last.
    pub last: usize,
}

impl Default for Members {
    /// One.
    fn default() -> Self {
        Self { each: 1, last: 1 }
    }
}

/// The dense gradient `G = ∂L/∂W`, row-major `[N · M]`.
pub enum DenseGradient<'a> {
    /// All of it.
    All(&'a [f32]),
    /// Whoever writes that of some neurons, in ascending order, `[neurons · M]`; each may be asked for more than once.
    Rows(&'a mut dyn FnMut(&[usize], &mut [f32])),
}

impl std::fmt::Debug for DenseGradient<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::All(_) => "All",
            Self::Rows(_) => "Rows",
        })
    }
}

impl ActiveLayer<'_> {
    /// `A`, of all neurons.
    pub(crate) fn target(&self) -> usize {
        target_weights(self.neurons() * self.mask.dense_fan_in(), self.sparsity)
    }

    /// Neurons that all rows stand for.
    pub(crate) fn neurons(&self) -> usize {
        (0..self.mask.neurons()).map(|row| self.neurons_of(row)).sum()
    }

    /// Neurons that a row stands for.
    pub(crate) fn neurons_of(&self, row: usize) -> usize {
        if row + 1 == self.mask.neurons() { self.members.last } else { self.members.each }
    }

    /// The fan-in `⌊A / neurons⌋` of all neurons of the rows that are `active`.
    ///
    /// # Errors
    /// [`Error::FanInZero`] if that is 0.
    pub(crate) fn shared_fan_in(&self, active: impl Fn(usize) -> bool) -> Result<usize, Error> {
        let rows = (0..self.mask.neurons()).filter(|row| active(*row));
        let (target, active) = (self.target(), rows.map(|row| self.neurons_of(row)).sum());
        match target.checked_div(active) {
            Some(fan_in) if fan_in > 0 => Ok(fan_in),
            _ => {
                let (layer, sparsity) = (self.name.to_string(), self.sparsity);
                Err(Error::FanInZero { layer, sparsity, target, active })
            }
        }
    }

    /// Where each neuron's values begin, and the last's end.
    pub(crate) fn rows(&self) -> Vec<usize> {
        let ends = (0..self.mask.neurons()).scan(0, |end, neuron| {
            *end += self.mask.fan_in(neuron);
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The weights of a neuron with their positions in the layer.
    pub(crate) fn keys(&self, rows: &[usize], neuron: usize) -> impl Iterator<Item = Key> + use<'_> {
        let first = neuron * self.mask.dense_fan_in();
        let values = &self.values[rows[neuron]..rows[neuron + 1]];
        self.mask.inputs(neuron).zip(values).map(move |(input, value)| Key::new(*value, first + input))
    }

    /// Calls `each` with some of these neurons and their dense gradient, in order.
    pub(crate) fn each_block(
        &self,
        gradient: &mut DenseGradient,
        neurons: &[usize],
        mut each: impl FnMut(&[usize], &[f32]),
    ) -> Result<(), Error> {
        let inputs = self.mask.dense_fan_in();
        let mut rows = Vec::new();
        // As many neurons as rows stand for.
        let rows_of_block = (neurons_per_block(inputs) / self.members.each).max(1);
        for block in neurons.chunks(rows_of_block) {
            let is_run = block.is_sorted_by(|a, b| a + 1 == *b);
            match gradient {
                DenseGradient::All(all) if is_run => {
                    each(block, &all[block[0] * inputs..][..block.len() * inputs])
                }
                DenseGradient::All(all) => {
                    rows.resize(block.len() * inputs, 0.0);
                    let rows_of = rows.par_chunks_mut(inputs).zip(block);
                    rows_of.for_each(|(row, neuron)| row.copy_from_slice(&all[neuron * inputs..][..inputs]));
                    each(block, &rows);
                }
                DenseGradient::Rows(write) => {
                    rows.resize(block.len() * inputs, 0.0);
                    write(block, &mut rows);
                    let place = |bad: usize| (block[bad / inputs], bad % inputs);
                    check_finite(self.name, "gradient", &rows, place)?;
                    each(block, &rows);
                }
            }
        }
        Ok(())
    }

    fn check(&self, has_grads: bool) -> Result<(), Error> {
        check_layer(self.name, self.sparsity, self.mask)?;
        let place = |bad: usize| {
            let mut positions = (0..self.mask.neurons())
                .flat_map(|neuron| self.mask.inputs(neuron).map(move |input| (neuron, input)));
            positions.nth(bad).unwrap_or_default()
        };
        let expected = self.mask.nnz();
        let grads = has_grads.then_some(("active gradient", "gradient", self.grads));
        for (what, kind, values) in
            [Some(("active weight", "weight", self.values)), grads].into_iter().flatten()
        {
            let got = values.len();
            if got != expected {
                return Err(Error::Length { layer: self.name.into(), what, expected, got });
            }
            check_finite(self.name, kind, values, place)?;
        }
        Ok(())
    }
}

fn check_layer(name: &str, sparsity: f64, mask: &Mask) -> Result<(), Error> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::Sparsity(sparsity));
    }
    let positions = mask.positions();
    if positions == 0 || positions >= u32::MAX as usize {
        return Err(Error::TooLarge { layer: name.to_string(), positions });
    }
    Ok(())
}

impl Layer<'_> {
    /// Calls `run` with the active weights alone, and the gradient; with `grads`, that of active weights, too.
    pub(crate) fn active<T>(&self, grads: bool, run: impl FnOnce(&ActiveLayer, DenseGradient) -> T) -> T {
        let Self { name, mask, sparsity, ablate, .. } = *self;
        let values = active_values(mask, self.weights);
        let grads = if grads { active_values(mask, self.grads) } else { Cow::default() };
        let members = Members::default();
        let layer = ActiveLayer { name, values: &values, mask, sparsity, ablate, grads: &grads, members };
        run(&layer, DenseGradient::All(self.grads))
    }

    fn check(&self) -> Result<(), Error> {
        check_layer(self.name, self.sparsity, self.mask)?;
        for (what, values) in [("weight", self.weights), ("gradient", self.grads)] {
            check_values(self.name, self.mask.shape(), what, values)?;
        }
        Ok(())
    }
}

/// Those of `values` `[N · M]` at the active positions, one row after the other.
fn active_values<'a>(mask: &Mask, values: &'a [f32]) -> Cow<'a, [f32]> {
    if mask.nnz() == mask.positions() {
        return values.into();
    }
    let inputs = mask.dense_fan_in();
    let row = |neuron: usize| mask.inputs(neuron).map(move |input| values[neuron * inputs + input]);
    (0..mask.neurons()).into_par_iter().flat_map_iter(row).collect::<Vec<f32>>().into()
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
        Self::of_fan_ins(&fan_ins, mask.dense_fan_in())
    }

    /// The same from the number of active weights of each neuron `[N]`, of a dense fan-in `M`.
    pub fn of_fan_ins(fan_ins: &[usize], dense_fan_in: usize) -> Self {
        let ablated: Vec<usize> = (0..fan_ins.len()).filter(|i| fan_ins[*i] == 0).collect();
        let fan_in_min = fan_ins.iter().copied().filter(|k| *k > 0).min().unwrap_or(0);
        let fan_in_max = fan_ins.iter().copied().max().unwrap_or(0);
        let nnz = fan_ins.iter().sum();
        Self {
            neurons: fan_ins.len(),
            active: fan_ins.len() - ablated.len(),
            ablated,
            fan_in: (fan_in_min == fan_in_max).then_some(fan_in_max),
            fan_in_min,
            fan_in_max,
            nnz,
            sparsity: 1.0 - nnz as f64 / (fan_ins.len() * dense_fan_in).max(1) as f64,
        }
    }
}

/// The initial mask `[N, M]` of one layer by a method; all ones where the sparsity is 0.
///
/// # Errors
/// [`Error::FanInZero`] if no weight would be left, [`Error::Sparsity`] outside `[0, 1)`, [`Error::MethodMask`] if the
/// method's mask does not fit.
pub fn initial_mask(
    method: &dyn Method,
    layer: &LayerSpec,
    sparsity: f64,
    stream: Stream,
) -> Result<Mask, Error> {
    if sparsity == 0.0 {
        return Ok(Mask::full(layer.neurons(), layer.dense_fan_in()));
    }
    let mask = method.initial_mask(layer, sparsity, stream)?;
    check_shape(method, &layer.name, &mask, [layer.neurons(), layer.dense_fan_in()])?;
    Ok(mask)
}

/// The sparsity of every layer by a method: that of its N:M pattern, if it has one, or by how `sparsity` is shared.
///
/// # Errors
/// As [`layer_sparsities`].
pub fn method_sparsities(
    method: &dyn Method,
    layers: &[LayerSpec],
    sparsity: f64,
    distribution: Distribution,
) -> Result<Vec<f64>, Error> {
    match method.nm() {
        Some(nm) => Ok(layers.iter().map(|l| if l.keep_dense { 0.0 } else { nm.sparsity(l) }).collect()),
        None => layer_sparsities(layers, sparsity, distribution),
    }
}

/// Sparsity and initial mask `[N, M]` of every layer: how `sparsity` is shared and where masks come from. `weights` are those
/// of each layer, `[N · M]`, or by [`InitialMask::Sensitivity`] the products `W · ∂L/∂W`; they are not read for random masks, nor where
/// a layer is kept dense. A layer's random stream depends on its place. With an N:M pattern each group keeps its largest.
///
/// # Errors
/// As [`method_sparsities`], [`global_magnitude_sparsities`], [`initial_mask`] and [`initial_mask_by_magnitude`].
pub fn initial_masks(
    method: &dyn Method,
    layers: &[LayerSpec],
    weights: &[Vec<f32>],
    from: InitialMask,
    (sparsity, distribution): (f64, Distribution),
    seed: u64,
) -> Result<Vec<(f64, Mask)>, Error> {
    if from == InitialMask::Sensitivity && method.nm().is_none() {
        check_sensitivity(layers, weights, sparsity)?;
    }
    let sparsities = match from.is_global() && method.nm().is_none() {
        true => global_magnitude_sparsities(layers, weights, sparsity)?,
        false => method_sparsities(method, layers, sparsity, distribution)?,
    };
    let mask = |(i, sparsity): (usize, f64)| {
        let mask = match from {
            InitialMask::Random => {
                initial_mask(method, &layers[i], sparsity, Stream { seed, layer: i as u64, step: 0 })?
            }
            _ if sparsity == 0.0 => Mask::full(layers[i].neurons(), layers[i].dense_fan_in()),
            _ => initial_mask_by_magnitude(method, &layers[i], &weights[i], sparsity)?,
        };
        Ok((sparsity, mask))
    };
    sparsities.into_iter().enumerate().map(mask).collect()
}

/// Refuses products of which too few are not 0: the first ones would be chosen, whatever they are.
fn check_sensitivity(layers: &[LayerSpec], products: &[Vec<f32>], sparsity: f64) -> Result<(), Error> {
    let chosen = || layers.iter().zip(products).filter(|(layer, _)| !layer.keep_dense);
    let total: usize = layers.iter().map(LayerSpec::weights).sum();
    let all: usize = chosen().map(|(layer, _)| layer.weights()).sum();
    let target = target_weights(total, sparsity).saturating_sub(total - all);
    let sensitive = chosen().flat_map(|(_, products)| products).filter(|product| **product != 0.0).count();
    if sensitive < target { Err(Error::Insensitive { sensitive, target }) } else { Ok(()) }
}

/// The initial mask `[N, M]` of one layer by a method that keeps the largest of given `weights` `[N · M]`; all ones where
/// the sparsity is 0.
///
/// # Errors
/// As [`initial_mask`]; [`Error::Length`] and [`Error::NotFinite`] for weights that do not fit or have diverged.
pub fn initial_mask_by_magnitude(
    method: &dyn Method,
    layer: &LayerSpec,
    weights: &[f32],
    sparsity: f64,
) -> Result<Mask, Error> {
    check_values(&layer.name, [layer.neurons(), layer.dense_fan_in()], "weight", weights)?;
    if sparsity == 0.0 {
        return Ok(Mask::full(layer.neurons(), layer.dense_fan_in()));
    }
    let mask = method.magnitude_mask(layer, weights, sparsity)?;
    check_shape(method, &layer.name, &mask, [layer.neurons(), layer.dense_fan_in()])?;
    Ok(mask)
}

/// Refuses values that are not one finite number for each of `[N, M]`.
pub(crate) fn check_values(
    layer: &str,
    [n, m]: [usize; 2],
    what: &'static str,
    values: &[f32],
) -> Result<(), Error> {
    let (expected, got) = (n * m, values.len());
    if got != expected {
        return Err(Error::Length { layer: layer.into(), what, expected, got });
    }
    check_finite(layer, what, values, |bad| (bad / m, bad % m))
}

/// Refuses values that are not finite; `place` gives neuron and input of each.
fn check_finite(
    layer: &str,
    what: &'static str,
    values: &[f32],
    place: impl Fn(usize) -> (usize, usize),
) -> Result<(), Error> {
    let Some(bad) = first_not_finite(values) else { return Ok(()) };
    let ((neuron, input), layer) = (place(bad), layer.into());
    Err(Error::NotFinite { layer, what, value: values[bad], neuron, input })
}

/// Refuses a mask that is not `expected`, `[N, M]`.
fn check_shape(method: &dyn Method, layer: &str, mask: &Mask, expected: [usize; 2]) -> Result<(), Error> {
    if mask.shape() == expected {
        return Ok(());
    }
    let got = mask.shape();
    Err(Error::MethodMask { layer: layer.into(), method: method.info().name, expected, got })
}

/// One topology update of one layer: a pure function of its arguments, whatever the thread count.
///
/// `alpha` is the drop fraction `α_t` (see [`UpdateSchedule`](crate::UpdateSchedule)); `stream` feeds SET's random growth.
/// The weights are not touched: see [`settle_weights`].
///
/// # Errors
/// Sizes that do not fit, values that are not finite, settings out of range, or a fan-in of 0.
pub fn update_layer(method: &dyn Method, alpha: f64, layer: &Layer, stream: Stream) -> Result<Update, Error> {
    check_method(method, alpha)?;
    layer.check()?;
    let updates = layer.sparsity > 0.0 && method.info().changes();
    let mask = updates.then(|| method.update(layer, alpha, stream)).transpose()?;
    updated(method, layer.name, layer.mask, mask)
}

/// The same from the active weights alone, and the dense gradient some neurons at a time: equal numbers give equal masks.
/// `None` if the method must see all weights.
///
/// # Errors
/// As [`update_layer`].
pub fn update_active_layer(
    method: &dyn Method,
    alpha: f64,
    layer: &ActiveLayer,
    gradient: DenseGradient,
    stream: Stream,
) -> Result<Option<Update>, Error> {
    check_method(method, alpha)?;
    layer.check(method.info().gradients == Gradients::Active)?;
    if let DenseGradient::All(all) = gradient {
        check_values(layer.name, layer.mask.shape(), "gradient", all)?;
    }
    let updates = layer.sparsity > 0.0 && method.info().changes();
    let mask = match updates {
        true => match method.update_active(layer, gradient, alpha, stream) {
            Some(mask) => Some(mask?),
            None => return Ok(None),
        },
        false => None,
    };
    updated(method, layer.name, layer.mask, mask).map(Some)
}

fn check_method(method: &dyn Method, alpha: f64) -> Result<(), Error> {
    method.check()?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Setting { name: "drop fraction", value: alpha, allowed: "in [0, 1]" });
    }
    Ok(())
}

/// The update from a mask to another, if there is one.
fn updated(method: &dyn Method, layer: &str, before: &Mask, after: Option<Mask>) -> Result<Update, Error> {
    let mask = after.unwrap_or_else(|| before.clone());
    check_shape(method, layer, &mask, before.shape())?;
    let report = UpdateReport::new(before, &mask);
    Ok(Update { mask, report })
}

/// [`update_layer`] for all layers of a model in parallel; layer `i` uses stream `(seed, i, step)`. Methods that redistribute weights
/// among layers do so first ([`redistributed_sparsities`]).
///
/// # Errors
/// The first layer's that fails; no layer is changed then.
pub fn update_topology(
    method: &dyn Method,
    alpha: f64,
    layers: &[Layer],
    seed: u64,
    step: u64,
) -> Result<Vec<Update>, Error> {
    let sparsities = redistributed_sparsities(method, alpha, layers)?;
    let update = |(i, (layer, sparsity)): (usize, (&Layer, &f64))| {
        let layer = Layer { sparsity: *sparsity, ..*layer };
        update_layer(method, alpha, &layer, Stream { seed, layer: i as u64, step })
    };
    let updates: Vec<Result<Update, Error>> =
        layers.par_iter().zip(&sparsities).enumerate().map(update).collect();
    updates.into_iter().collect()
}

/// The sparsities that these layers shall have after an update: their own, unless the method moves weights from one to the other. Dense
/// layers stay dense.
///
/// # Errors
/// As [`update_layer`], for settings and layers that do not fit.
pub fn redistributed_sparsities(
    method: &dyn Method,
    alpha: f64,
    layers: &[Layer],
) -> Result<Vec<f64>, Error> {
    check_method(method, alpha)?;
    layers.iter().try_for_each(Layer::check)?;
    let share = |layer: &Layer| LayerShare::new(layer.mask, &active_values(layer.mask, layer.grads));
    let is_sparse = |layer: &&Layer| layer.sparsity > 0.0;
    let shares: Vec<LayerShare> = match method.redistribute(&[]) {
        Some(_) => layers.iter().filter(is_sparse).map(share).collect(),
        None => Vec::new(),
    };
    let mut new = sparsities_of_shares(method, alpha, &shares).unwrap_or_default().into_iter();
    let sparsity = |layer: &Layer| match layer.sparsity {
        0.0 => 0.0,
        sparsity => new.next().unwrap_or(sparsity),
    };
    Ok(layers.iter().map(sparsity).collect())
}

/// The sparsities that sparse layers shall have after an update by a method that redistributes weights among them; `None` if it does
/// not. For those who know the layers one by one: [`redistributed_sparsities`] has them all.
pub fn sparsities_of_shares(method: &dyn Method, alpha: f64, layers: &[LayerShare]) -> Option<Vec<f64>> {
    let kept = |share: &LayerShare| {
        let dropped = (share.active as f64 * alpha).floor() as usize;
        LayerShare { kept: share.active - dropped, ..*share }
    };
    let weights = method.redistribute(&layers.iter().map(kept).collect::<Vec<_>>())?;
    // A layer that has got all of its weights may lose some again: it is not dense. One that has lost all keeps one.
    let sparsity = |(share, n): (&LayerShare, usize)| {
        sparsity_of_count(share.positions, n.max(1)).max(f64::MIN_POSITIVE)
    };
    Some(layers.iter().zip(weights).map(sparsity).collect())
}

impl LayerShare {
    /// Of a layer with this mask and these gradients of its active weights. Before an update all weights are kept.
    pub fn new(mask: &Mask, grads: &[f32]) -> Self {
        let sum: f64 = grads.iter().map(|g| f64::from(g.abs())).sum();
        let active = mask.nnz();
        Self { positions: mask.positions(), active, kept: active, importance: sum / active.max(1) as f64 }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NmPattern;
    use crate::methods::{AnyMethod, Rigl, Srigl, StaticMask};

    #[test]
    fn the_first_value_that_is_not_finite_is_found_wherever_it_lies() {
        // Three pieces of 2^16, the last of them short.
        let mut values = vec![1.0; (1 << 17) + 7];
        assert_eq!(first_not_finite(&values), None);
        for bad in [(1 << 17) + 6, (1 << 17) + 5, (1 << 16) + 9, (1 << 16) + 3, 1, 0] {
            values[bad] = f32::NAN;
            assert_eq!(first_not_finite(&values), Some(bad));
        }
        assert_eq!(first_not_finite(&[f32::NAN; 3]), Some(0), "where all are bad");
    }

    #[test]
    fn statistics_count_neurons_and_weights() {
        let stats = LayerStats::of_fan_ins(&[3, 0, 2, 0], 5);
        assert_eq!((stats.neurons, stats.active, &stats.ablated[..]), (4, 2, &[1, 3][..]));
        assert_eq!((stats.fan_in, stats.fan_in_min, stats.fan_in_max), (None, 2, 3));
        assert_eq!((stats.nnz, stats.sparsity), (5, 0.75));
        assert_eq!(LayerStats::of_fan_ins(&[0, 4, 4], 5).fan_in, Some(4), "ablated neurons do not count");
        assert_eq!(LayerStats::of_fan_ins(&[], 5).fan_in_max, 0);
    }

    const STREAM: Stream = Stream { seed: 1, layer: 0, step: 0 };

    #[test]
    fn a_layer_without_sparsity_never_changes() {
        let (values, mask) = ([1.0, 2.0, 3.0, 4.0], Mask::from_bytes(2, 2, &[1, 0, 0, 1]).unwrap());
        let layer =
            Layer { name: "fc", weights: &values, grads: &values, mask: &mask, sparsity: 0.0, ablate: true };
        let active = ActiveLayer {
            name: "fc",
            values: &values[..2],
            mask: &mask,
            sparsity: 0.0,
            ablate: true,
            grads: &[],
            members: Members::default(),
        };
        for method in [&Srigl::default() as &dyn Method, &Rigl] {
            assert_eq!(update_layer(method, 1.0, &layer, STREAM).unwrap().mask, mask);
            let update = update_active_layer(method, 1.0, &active, DenseGradient::All(&values), STREAM);
            assert_eq!(update.unwrap().unwrap().mask, mask);
        }
    }

    /// The gradient of a layer of many neurons is asked for in blocks that stay small, and what is wrong in it is found.
    #[test]
    fn gradients_come_some_neurons_at_a_time() {
        const INPUTS: usize = 1 << 12;
        let (mask, neurons) = (Mask::full(300, INPUTS), (0..300).collect::<Vec<_>>());
        let blocks = |each: usize, bad: Option<(usize, usize)>| {
            let layer = ActiveLayer {
                name: "fc",
                values: &[],
                mask: &mask,
                sparsity: 0.5,
                ablate: false,
                grads: &[],
                members: Members { each, last: 1 },
            };
            let mut write = |block: &[usize], rows: &mut [f32]| {
                assert_eq!(rows.len(), block.len() * INPUTS);
                rows.fill(1.0);
                if let Some((row, input)) = bad
                    && let Some(place) = block.iter().position(|neuron| *neuron == row)
                {
                    rows[place * INPUTS + input] = f32::NAN;
                }
            };
            let mut sizes = Vec::new();
            let each_block = |block: &[usize], _: &[f32]| sizes.push(block.len());
            let done = layer.each_block(&mut DenseGradient::Rows(&mut write), &neurons, each_block);
            done.map(|()| sizes)
        };
        assert_eq!(blocks(1, None).unwrap(), [64, 64, 64, 64, 44]);
        assert_eq!(blocks(2, None).unwrap(), [vec![32; 9], vec![12]].concat(), "a row is two neurons");
        let error = blocks(1, Some((70, 9))).unwrap_err();
        assert!(matches!(error, Error::NotFinite { what: "gradient", neuron: 70, input: 9, .. }), "{error}");
    }

    #[test]
    fn a_layer_without_weights_is_refused() {
        let mask = Mask::empty(0, 2);
        let layer = Layer { name: "fc", weights: &[], grads: &[], mask: &mask, sparsity: 0.5, ablate: true };
        assert!(matches!(
            update_layer(&Rigl, 0.5, &layer, STREAM),
            Err(Error::TooLarge { positions: 0, .. })
        ));
    }

    #[test]
    fn first_masks_come_from_where_they_are_said_to() {
        let spec = |name: &str| LayerSpec::new(name, [2, 4]).unwrap();
        let layers = [spec("a").dense(), spec("b"), spec("c")];
        // A dense layer's weights are not looked at.
        let weights = [
            [f32::NAN; 8],
            [1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0],
            [9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4],
        ];
        let weights = weights.map(|values| values.to_vec());
        let masks = |method: &dyn Method, from| {
            initial_masks(method, &layers, &weights, from, (0.25, Distribution::Uniform), 7).unwrap()
        };
        let bytes = |masks: &[(f64, Mask)]| masks.iter().map(|(_, mask)| mask.to_bytes()).collect::<Vec<_>>();

        let random = masks(&StaticMask, InitialMask::Random);
        assert_eq!(random.iter().map(|(sparsity, _)| *sparsity).collect::<Vec<_>>(), [0.0, 0.375, 0.375]);
        for (i, (sparsity, mask)) in random.iter().enumerate() {
            let stream = Stream { seed: 7, layer: i as u64, step: 0 };
            assert_eq!(*mask, initial_mask(&StaticMask, &layers[i], *sparsity, stream).unwrap());
        }
        // Five of eight weights each, or two of each neuron.
        assert_eq!(
            bytes(&masks(&StaticMask, InitialMask::Magnitude)),
            [[1; 8], [0, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 1]]
        );
        assert_eq!(
            bytes(&masks(&Srigl::default(), InitialMask::Magnitude)),
            [[1; 8], [0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
        );
        // Ten of sixteen together: four of `c`, and six of `b`.
        assert_eq!(
            bytes(&masks(&StaticMask, InitialMask::GlobalMagnitude)),
            [[1; 8], [0, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
        );
        // Weights that are 0 are as good as others, unless they are products.
        let zeros =
            [[1.0; 8], [0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]];
        let zeros = zeros.map(|values| values.to_vec());
        let from = |method: &dyn Method, from, sparsity| {
            initial_masks(method, &layers, &zeros, from, (sparsity, Distribution::Uniform), 7)
        };
        assert!(from(&StaticMask, InitialMask::Magnitude, 0.25).is_ok());
        assert!(from(&StaticMask, InitialMask::GlobalMagnitude, 0.25).is_ok());
        let refused = |sparsity| from(&StaticMask, InitialMask::Sensitivity, sparsity).unwrap_err();
        assert!(
            matches!(refused(0.25), Error::Insensitive { sensitive: 7, target: 10 }),
            "{}",
            refused(0.25)
        );
        assert!(matches!(refused(1.0 / 3.0), Error::Insensitive { sensitive: 7, target: 8 }));
        let seven = from(&StaticMask, InitialMask::Sensitivity, 0.375).unwrap();
        assert_eq!(bytes(&seven), [[1; 8], [0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]);
        // Groups choose among what they have.
        let nm = AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR).unwrap();
        assert!(from(&*nm, InitialMask::Sensitivity, 0.25).is_ok());
        let full = initial_mask_by_magnitude(&Srigl::default(), &layers[1], &weights[1], 0.0).unwrap();
        assert_eq!(full, Mask::full(2, 4));
    }
}
