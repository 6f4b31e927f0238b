//! SRigL (Lasby et al., ICLR 2024, arXiv 2305.02299, section 3.1): RigL with constant fan-in and neuron ablation, one
//! topology update of one layer step by step.
//!
//! `N` neurons, `M` dense fan-in, `A = ⌊N·M·(1−S)⌋` target weights, `n` active weights, `α_t` drop fraction.

use super::{
    AnyMethod, Gradients, Growth, Kept, Method, MethodInfo, Nm, Setting, SettingKind, Settings, Updates,
    Value, Variant,
};
use crate::select::{Key, Largest, RowScratch, keep_largest, largest_of_row};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{ConstantFanInMask, Error, Mask, Stream, mask};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Constant fan-in and neuron ablation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Srigl {
    /// `γ_sal`: below 1 the share of [`ThresholdBase`] that must be salient in a neuron; from 1 on the number
    /// of salient weights itself; 0 turns ablation off. On small layers a larger value than the paper's is needed,
    /// since the threshold rounds down.
    pub gamma_sal: f64,
    /// What a fractional `γ_sal` is a share of.
    pub threshold_base: ThresholdBase,
}

impl Default for Srigl {
    /// `γ_sal` = 0.3 of `k0`, as in the paper.
    fn default() -> Self {
        Self { gamma_sal: GAMMA_SAL, threshold_base: ThresholdBase::SparseFanIn }
    }
}

/// The paper's `γ_sal`.
const GAMMA_SAL: f64 = 0.3;

/// What a fractional `γ_sal` is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThresholdBase {
    /// `k0 = ⌊A/N⌋`, the fan-in with all neurons active (the paper's experiments).
    #[default]
    SparseFanIn,
    /// `M`, the dense fan-in (an option of the authors' code).
    DenseFanIn,
}

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "RigL with constant fan-in and neuron ablation",
    updates: Updates::Scheduled,
    gradients: Gradients::Dense,
    constant_fan_in: true,
    ablates: true,
    nm: Nm::Allowed,
    settings: &[
        Setting {
            name: "gamma_sal",
            about: "Salient weights a neuron needs, or it is ablated: a share of its fan-in below 1, a count from 1 on, \
                    0 for no ablation",
            kind: SettingKind::Number(GAMMA_SAL),
        },
        Setting {
            name: "threshold_base",
            about: "The fan-in that gamma-sal is a share of: that with all neurons active, as in the paper, or that of \
                    the dense layer",
            kind: SettingKind::Word(&["sparse-fan-in", "dense-fan-in"]),
        },
    ],
    variants: &[
        Variant { name: "srigl", label: "SRigL with ablation", settings: &[], flag: None },
        Variant {
            name: "srigl-no-ablation",
            label: "SRigL without ablation",
            settings: &[("gamma_sal", 0.0)],
            flag: Some("no_ablation"),
        },
    ],
    build: Some(|settings| {
        let threshold_base = match settings.is_word("threshold_base", "dense-fan-in") {
            true => ThresholdBase::DenseFanIn,
            false => ThresholdBase::SparseFanIn,
        };
        AnyMethod::from(Srigl { gamma_sal: settings.number("gamma_sal", GAMMA_SAL), threshold_base })
    }),
    ..MethodInfo::new("srigl")
};

impl Method for Srigl {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn settings(&self) -> Settings {
        let base = match self.threshold_base {
            ThresholdBase::SparseFanIn => "sparse-fan-in",
            ThresholdBase::DenseFanIn => "dense-fan-in",
        };
        Settings::of([("gamma_sal", self.gamma_sal.into()), ("threshold_base", Value::from(base))])
    }

    fn check(&self) -> Result<(), Error> {
        if self.gamma_sal.is_finite() && self.gamma_sal >= 0.0 {
            return Ok(());
        }
        let allowed = "0 (no ablation), a fraction below 1, or a count";
        Err(Error::Setting { name: "gamma_sal", value: self.gamma_sal, allowed })
    }

    /// Steps 1 and 2 with all neurons.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        let weights = Weights { layer, rows: layer.rows() };
        let mask = largest_weights(&weights, &quota(&weights, alpha), &vec![false; layer.mask.neurons()]);
        Some(Kept { mask, growth: Growth::Gradient })
    }

    fn update_active(
        &self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        alpha: f64,
        _stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        Some(update(layer, gradient, self, alpha).map(ConstantFanInMask::into_mask))
    }
}

/// The new mask of one layer. `alpha` is the drop fraction `α_t`.
fn update(
    layer: &ActiveLayer,
    mut gradient: DenseGradient,
    settings: &Srigl,
    alpha: f64,
) -> Result<ConstantFanInMask, Error> {
    let weights = Weights { layer, rows: layer.rows() };
    let quota = quota(&weights, alpha);
    let mut ablated = vec![false; layer.mask.neurons()];
    let largest = largest_weights(&weights, &quota, &ablated);
    let mut candidates = Candidates::none(&largest);
    if layer.ablate && settings.gamma_sal > 0.0 {
        // Where the gradient has to be computed, once should be enough.
        let expected = if let DenseGradient::Rows(_) = gradient { usual_fan_in(layer) } else { 0 };
        let top = candidates.find_all(layer, &mut gradient, expected, Largest::new(quota.drop))?;
        let salient = salient_weights_per_neuron(&largest, top);
        let threshold = ablation_threshold(layer, settings);
        ablated = ablated_neurons(&salient, feasible_threshold(&salient, threshold, rows_needed(layer)));
    }
    let fan_in = new_fan_in(layer, &ablated)?;
    candidates.complete(layer, &mut gradient, fan_in, &ablated)?;
    let kept = match ablated.contains(&true) {
        true => largest_weights(&weights, &quota, &ablated),
        false => largest.clone(),
    };
    let mask = pruned_and_grown(&weights, kept, &candidates, &ablated, fan_in);
    ConstantFanInMask::try_from(mask)
}

/// The active weights of a layer.
struct Weights<'a> {
    layer: &'a ActiveLayer<'a>,
    /// Where each neuron's values begin, and the last's end.
    rows: Vec<usize>,
}

impl Weights<'_> {
    /// Those of a neuron that are not exactly zero. One that is says nothing, and its gradient decides.
    fn non_zero(&self, neuron: usize) -> impl Iterator<Item = Key> + use<'_> {
        self.layer.keys(&self.rows, neuron).filter(|key| !key.is_zero())
    }

    /// Marks the `n` largest that are not zero, outside the skipped neurons.
    fn mark_largest(&self, n: usize, skip: impl Fn(usize) -> bool + Sync, mask: &mut Mask) {
        let mut largest = Largest::new(n);
        let rows = 0..self.layer.mask.neurons();
        largest.offer(rows, |neuron| {
            self.non_zero(neuron).filter({
                let skipped = skip(neuron);
                move |_| !skipped
            })
        });
        largest.mark(mask);
    }
}

/// Of each neuron the positions with the largest |G| that it may grow.
///
/// What a neuron keeps of the layer's largest weights it keeps whoever is ablated, and then perhaps more: so they are looked for
/// elsewhere, and there need not be more than what is missing from the fan-in.
struct Candidates<'a> {
    /// The layer's largest weights with all neurons.
    kept: &'a Mask,
    /// In no order.
    of: Vec<Vec<Key>>,
}

/// How many weights a neuron is likely to have after the update: ablation may give it more than it has.
fn usual_fan_in(layer: &ActiveLayer) -> usize {
    let most = (0..layer.mask.neurons()).map(|neuron| layer.mask.fan_in(neuron)).max().unwrap_or(0);
    most + most / 4 + 8
}

impl<'a> Candidates<'a> {
    fn none(kept: &'a Mask) -> Self {
        Self { kept, of: vec![Vec::new(); kept.neurons()] }
    }

    /// One pass over the dense gradient, which also offers all of it to `top`. Finds enough for `fan_in` weights in each neuron
    /// that is active now; few of the others come back.
    fn find_all(
        &mut self,
        layer: &ActiveLayer,
        gradient: &mut DenseGradient,
        fan_in: usize,
        mut top: Largest,
    ) -> Result<Largest, Error> {
        let all: Vec<usize> = (0..layer.mask.neurons()).collect();
        layer.each_block(gradient, &all, |neurons, block| {
            top.offer_rows(neurons, block, None);
            self.find(neurons, block, |neuron| if layer.mask.fan_in(neuron) > 0 { fan_in } else { 0 });
        })?;
        Ok(top)
    }

    /// Another pass over the rows of those neurons that stay and have too few for `fan_in` weights.
    fn complete(
        &mut self,
        layer: &ActiveLayer,
        gradient: &mut DenseGradient,
        fan_in: usize,
        ablated: &[bool],
    ) -> Result<(), Error> {
        let fan_in = fan_in.min(layer.mask.dense_fan_in());
        let reach = |neuron: usize| self.kept.fan_in(neuron) + self.of[neuron].len();
        let short = (0..ablated.len()).filter(|neuron| !ablated[*neuron] && reach(*neuron) < fan_in);
        let short: Vec<usize> = short.collect();
        layer.each_block(gradient, &short, |neurons, block| self.find(neurons, block, |_| fan_in))
    }

    /// Finds enough for so many weights in each of these neurons, whose dense gradient is `block`.
    fn find(&mut self, neurons: &[usize], block: &[f32], fan_in: impl Fn(usize) -> usize + Sync) {
        let (kept, inputs) = (self.kept, self.kept.dense_fan_in());
        let rows = neurons.par_iter().zip(block.par_chunks(inputs));
        let found = rows.map_init(RowScratch::default, |scratch, (&neuron, values)| {
            let missing = fan_in(neuron).saturating_sub(kept.fan_in(neuron));
            largest_of_row(values, neuron * inputs, missing, kept.row(neuron), scratch)
        });
        let found: Vec<Vec<Key>> = found.collect();
        neurons.iter().zip(found).for_each(|(neuron, found)| self.of[*neuron] = found);
    }
}

/// How many weights of the layer are kept and how many dropped.
struct Quota {
    keep: usize,
    drop: usize,
}

/// Step 1: `K = ⌊n·α_t⌋`, `n_keep = n − K`; if fewer than that are non-zero, exactly those are kept.
fn quota(weights: &Weights, alpha: f64) -> Quota {
    let active = weights.layer.values.len();
    let keep = active - (active as f64 * alpha).floor() as usize;
    let keep = keep.min(weights.layer.values.iter().filter(|value| **value != 0.0).count());
    Quota { keep, drop: active - keep }
}

/// Step 2: the number `s_i` of salient weights of each neuron: in the layer's top `n_keep` by |W| or in its
/// top `K` by |G|.
fn salient_weights_per_neuron(top_weights: &Mask, top_grads: Largest) -> Vec<usize> {
    let mut salient = top_weights.clone();
    top_grads.mark(&mut salient);
    (0..salient.neurons()).map(|neuron| salient.fan_in(neuron)).collect()
}

/// Step 3: `τ = max(1, ⌊γ_sal·k0⌋)`, or `γ_sal` itself from 1 on.
fn ablation_threshold(layer: &ActiveLayer, settings: &Srigl) -> usize {
    if settings.gamma_sal >= 1.0 {
        return settings.gamma_sal.ceil() as usize;
    }
    let base = match settings.threshold_base {
        ThresholdBase::SparseFanIn => layer.target() / layer.neurons(),
        ThresholdBase::DenseFanIn => layer.mask.dense_fan_in(),
    };
    ((settings.gamma_sal * base as f64).floor() as usize).max(1)
}

/// `⌊A/M⌋`, in rows.
fn rows_needed(layer: &ActiveLayer) -> usize {
    layer.target() / (layer.mask.dense_fan_in() * layer.members.each)
}

/// Step 4: lowers `τ` until more rows stay than are needed, which can hold `A` weights.
fn feasible_threshold(salient: &[usize], threshold: usize, needed: usize) -> usize {
    let mut sorted = salient.to_vec();
    let (_, nth, _) = sorted.select_nth_unstable_by(needed.min(salient.len() - 1), |a, b| b.cmp(a));
    threshold.min(*nth)
}

/// Step 5: every neuron with `s_i < τ`, whether it was active before or not.
fn ablated_neurons(salient: &[usize], threshold: usize) -> Vec<bool> {
    salient.iter().map(|s| *s < threshold).collect()
}

/// Step 6: `k' = ⌊A / (N − ablated)⌋`.
fn new_fan_in(layer: &ActiveLayer, ablated: &[bool]) -> Result<usize, Error> {
    layer.shared_fan_in(|row| !ablated[row])
}

/// The layer's top `n_keep` by |W| outside ablated neurons: in step 2 of all neurons, in step 7 those that are kept. A weight that
/// is exactly zero is never among them (as in step 1).
fn largest_weights(weights: &Weights, quota: &Quota, ablated: &[bool]) -> Mask {
    let mut kept = Mask::empty(ablated.len(), weights.layer.mask.dense_fan_in());
    weights.mark_largest(quota.keep, |neuron| ablated[neuron], &mut kept);
    kept
}

/// Steps 7 and 8, neuron by neuron: keep at most `k'` of the neuron's kept weights by |W|, then grow to `k'`
/// by |G| among the other positions.
fn pruned_and_grown(
    weights: &Weights,
    mut mask: Mask,
    candidates: &Candidates,
    ablated: &[bool],
    fan_in: usize,
) -> Mask {
    let inputs = mask.dense_fan_in();
    let (words, width) = mask.rows_mut();
    let rows = words.par_chunks_mut(width).enumerate().filter(|(neuron, _)| !ablated[*neuron]);
    rows.for_each(|(neuron, row)| {
        let input = |key: &Key| key.position() - neuron * inputs;
        let mut kept = mask::count(row);
        if kept > fan_in {
            let mut keys: Vec<Key> =
                weights.non_zero(neuron).filter(|key| mask::has_bit(row, input(key))).collect();
            keep_largest(&mut keys, fan_in);
            row.fill(0);
            keys.iter().for_each(|key| mask::set_bit(row, input(key)));
            kept = fan_in;
        }
        let free = |key: &&Key| !mask::has_bit(row, input(key));
        let mut grown: Vec<Key> = candidates.of[neuron].iter().filter(free).copied().collect();
        keep_largest(&mut grown, fan_in - kept);
        grown.iter().for_each(|key| mask::set_bit(row, input(key)));
    });
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layer, Members};

    #[test]
    fn the_guard_keeps_one_neuron_more_than_could_be_filled() {
        let threshold = |target: usize| feasible_threshold(&[5, 1, 3], 4, target / 4);
        assert_eq!(threshold(3), 4, "⌊3/4⌋ = 0: one neuron is enough, and the first has 5");
        assert_eq!(threshold(4), 3, "⌊4/4⌋ = 1: the second has 3");
        assert_eq!(threshold(8), 1, "⌊8/4⌋ = 2: all stay");
        // There is no fourth.
        assert_eq!(threshold(12), 1, "⌊A/M⌋ = N");
        assert_eq!(feasible_threshold(&[5, 1, 3], 2, 1), 2, "it never rises");
    }

    #[test]
    fn rows_that_stand_for_several_neurons_share_the_weights_of_all() {
        // Groups of 3, 3 and 2 of 8 neurons: A = 8·10·0.4 = 32.
        let (mask, grads, members) = (&Mask::empty(3, 10), &[][..], Members { each: 3, last: 2 });
        let layer =
            ActiveLayer { name: "fc", values: &[], mask, sparsity: 0.6, ablate: true, grads, members };
        assert_eq!((layer.target(), layer.neurons(), rows_needed(&layer)), (32, 8, 1));
        let fan_in = |ablated: [bool; 3]| new_fan_in(&layer, &ablated).unwrap();
        assert_eq!(fan_in([false; 3]), 4);
        assert_eq!(fan_in([false, false, true]), 5, "⌊32/6⌋");
        assert_eq!(fan_in([true, false, false]), 6, "⌊32/5⌋");
        assert!(matches!(
            new_fan_in(&layer, &[true; 3]),
            Err(Error::FanInZero { active: 0, target: 32, .. })
        ));
    }

    #[test]
    fn a_sparsity_of_less_than_half_a_weight_ablates_nothing() {
        // 1 − S is 1 in f64, so A = N·M.
        let (values, mask) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Mask::full(2, 3));
        let layer = Layer {
            name: "fc",
            weights: &values,
            grads: &values,
            mask: &mask,
            sparsity: 1e-17,
            ablate: true,
        };
        let settings = Srigl { gamma_sal: 3.0, ..Srigl::default() };
        assert_eq!(settings.update(&layer, 0.5, Stream { seed: 0, layer: 0, step: 0 }).unwrap(), mask);
    }

    #[test]
    fn a_count_of_salient_weights_is_rounded_up_and_a_share_down() {
        let (mask, grads, members) = (&Mask::empty(3, 20), &[][..], Members::default());
        // A = 32.
        let layer = ActiveLayer {
            name: "fc",
            values: &[],
            mask,
            sparsity: 28.0 / 60.0,
            ablate: true,
            grads,
            members,
        };
        let threshold =
            |gamma_sal, threshold_base| ablation_threshold(&layer, &Srigl { gamma_sal, threshold_base });
        use ThresholdBase::{DenseFanIn, SparseFanIn};
        assert_eq!([1.0, 1.5, 7.0].map(|gamma| threshold(gamma, SparseFanIn)), [1, 2, 7]);
        // k0 = ⌊32/3⌋ = 10, M = 20.
        assert_eq!([0.01, 0.29, 0.3, 0.99].map(|gamma| threshold(gamma, SparseFanIn)), [1, 2, 3, 9]);
        assert_eq!(threshold(0.29, DenseFanIn), 5);
    }

    #[test]
    fn one_pass_over_the_gradient_is_enough_as_a_rule() {
        let passes = |mask: &Mask, sparsity: f64, ablate: bool| {
            // All neurons alike, so that none is ablated.
            let values: Vec<f32> = (0..mask.nnz()).map(|i| 1.0 + (i * 7 % 50) as f32).collect();
            let layer = ActiveLayer {
                name: "fc",
                values: &values,
                mask,
                sparsity,
                ablate,
                grads: &[],
                members: Members::default(),
            };
            let mut calls = 0;
            let mut write = |_: &[usize], rows: &mut [f32]| {
                calls += 1;
                rows.iter_mut().enumerate().for_each(|(i, row)| *row = (i * 7 % 100) as f32);
            };
            update(&layer, DenseGradient::Rows(&mut write), &Srigl::default(), 0.3).unwrap();
            calls
        };
        let mut half = Mask::empty(6, 100);
        (0..6).for_each(|neuron| (0..50).for_each(|input| half.activate(neuron, input)));
        assert_eq!(passes(&half, 0.5, true), 1);
        assert_eq!(passes(&half, 0.5, false), 1);
        // As many candidates as a neuron has weights.
        assert_eq!(passes(&Mask::full(6, 100), 0.0, true), 1);
    }

    #[test]
    fn a_second_pass_reads_the_rows_of_neurons_that_want_more_alone() {
        // Neuron 0 is ablated, 1 and 5 have large weights; the others are about to go.
        let mut mask = Mask::empty(6, 100);
        (1..6).for_each(|neuron| (0..20).for_each(|input| mask.activate(neuron, input)));
        let large = |i: usize| i / 20 == 0 || i / 20 == 4;
        let values: Vec<f32> =
            (0..mask.nnz()).map(|i| if large(i) { 9.0 } else { 1.0 } + i as f32 * 1e-3).collect();
        let layer = ActiveLayer {
            name: "fc",
            values: &values,
            mask: &mask,
            sparsity: 0.83,
            ablate: true,
            grads: &[],
            members: Members::default(),
        };
        let (mut asked, grads) =
            (Vec::new(), |neuron: usize, input: usize| ((neuron + input * 7) % 101) as f32);
        let mut write = |neurons: &[usize], rows: &mut [f32]| {
            asked.push(neurons.to_vec());
            for (row, neuron) in rows.chunks_exact_mut(100).zip(neurons) {
                row.iter_mut().enumerate().for_each(|(input, to)| *to = grads(*neuron, input));
            }
        };
        let settings = Srigl { gamma_sal: 19.0, ..Srigl::default() };
        let after = update(&layer, DenseGradient::Rows(&mut write), &settings, 0.6).unwrap().into_mask();
        let fan_ins: Vec<usize> = (0..6).map(|neuron| after.fan_in(neuron)).collect();
        assert_eq!(fan_ins, [0, 51, 0, 0, 0, 51]);
        assert_eq!(asked, [vec![0, 1, 2, 3, 4, 5], vec![1, 5]]);
    }

    #[test]
    fn a_quarter_more_than_the_largest_fan_in_and_a_few_are_expected() {
        let mut mask = Mask::empty(2, 100);
        (0..40).for_each(|input| mask.activate(1, input));
        let layer = ActiveLayer {
            name: "fc",
            values: &[1.0; 40],
            mask: &mask,
            sparsity: 0.8,
            ablate: true,
            grads: &[],
            members: Members::default(),
        };
        assert_eq!(usual_fan_in(&layer), 40 + 10 + 8);
    }
}
