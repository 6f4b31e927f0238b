//! Wraps any Burn optimizer for one sparse weight.

use crate::active_weight::{Capture, Passes, Told, tell};
use crate::layout::Layout;
use crate::topology::{Topology, TopologyEvent};
use burn::grad_clipping::GradientClipping;
use burn::optim::momentum::{Momentum, MomentumConfig, MomentumState};
use burn::optim::{
    AdamState, AdamWState, LearningRate, Optimizer, RecordState, SgdState, StateSink, StateSource,
};
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use rayon::prelude::*;
use sparsity_core::methods::{AnyMethod, GradientPositions, Gradients, LayerShare, Updates};
use sparsity_core::{
    ActiveLayer, DenseGradient, DropSchedule, Error, Layer, Mask, Members, Stream, UpdateSchedule, itop_rate,
    sparsities_of_shares, sparsity_of_count, target_weights, update_active_layer, update_layer,
};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// What never changes about one sparse weight.
#[derive(Debug)]
pub(crate) struct SparseWeight {
    pub name: String,
    /// Index among the layers of the topology; selects the random stream.
    pub index: usize,
    pub layout: Layout,
    pub sparsity: f64,
    pub ablate: bool,
    pub method: AnyMethod,
    pub initial_mask: Arc<Mask>,
    /// Of a layer that trains in condensed form: what its backward passes leave.
    pub capture: Option<Arc<Capture>>,
    /// The first values `[N · M]` of inactive weights, if the method keeps them; 0 elsewhere.
    pub hidden: OnceLock<Vec<f32>>,
}

impl SparseWeight {
    /// The sparsity that its target weights have: what a record of these leads to, too.
    fn target_sparsity(&self) -> f64 {
        let positions = self.initial_mask.positions();
        sparsity_of_count(positions, target_weights(positions, self.sparsity))
    }

    /// Values that a layer has room for in condensed form: its topology never has more.
    pub fn room(&self) -> usize {
        room(&self.initial_mask, self.sparsity)
    }
}

impl SparseWeight {
    /// The positions that get gradient, by the method; active ones always do.
    ///
    /// # Panics
    /// If the method's positions have another shape than its mask.
    pub fn gradient_positions(&self, mask: &Mask, weights: &dyn Fn() -> Vec<f32>) -> GradientPositions {
        let Self { method, name, sparsity, .. } = self;
        let positions = method.gradient_positions(mask, *sparsity, weights);
        let GradientPositions::Superset(mut superset) = positions else { return positions };
        let what = method.info().name;
        assert_eq!(
            superset.shape(),
            mask.shape(),
            "layer `{name}`: positions of method `{what}` and their mask"
        );
        superset.union_with(mask);
        GradientPositions::Superset(superset)
    }
}

/// Values that a layer of this initial mask and sparsity has room for in condensed form.
pub(crate) fn room(initial: &Mask, sparsity: f64) -> usize {
    initial.nnz().max(target_weights(initial.positions(), sparsity))
}

/// A mask from a record's bytes, if they are one.
pub(crate) fn mask_of_bytes(bytes: &[u8], neurons: usize, inputs: usize) -> Option<Mask> {
    let words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
    Mask::from_words(neurons, inputs, words.collect()).ok()
}

/// Burn optimizer for one sparse weight: the inner optimizer sees masked gradients only, and every `ΔT` steps
/// the mask is updated. [`SparsityConfig::sparsify`](crate::SparsityConfig::sparsify) sets one up per layer.
#[derive(Clone)]
pub struct SparseOptimizer<O> {
    pub(crate) inner: O,
    pub(crate) weight: Arc<SparseWeight>,
    pub(crate) schedule: UpdateSchedule,
    pub(crate) seed: u64,
    pub(crate) clipping: Option<GradientClipping>,
    pub(crate) topology: Topology,
}

/// State of one sparse weight of rank `D`: all that a run needs to go on exactly where it stopped.
///
/// It owns the weight's mask, so that copies of an optimizer, as data-parallel training makes them, go their own ways;
/// [`Topology`] points to it.
#[derive(Clone)]
pub struct SparseState<S, const D: usize> {
    /// State of the inner optimizer; its moments are 0 wherever the weight gets no gradient.
    pub inner: Option<S>,
    /// The present mask `[N, M]`.
    pub mask: Arc<Mask>,
    /// Positions that have been active at least once.
    pub ever_active: Arc<Mask>,
    /// Optimizer steps taken.
    pub step: u64,
    /// The schedule; the random state is the seed, since streams depend on `(seed, layer, step)` alone.
    pub schedule: UpdateSchedule,
    /// Seed of random growth.
    pub seed: u64,
    /// Sum of the gradients gathered for the next update: dense, or in condensed form those of active weights.
    pub dense_grad: Option<Tensor<D>>,
    /// The inactive weights' values, 0 elsewhere, if the method keeps them.
    pub hidden: Option<Tensor<D>>,
    /// The positions that get gradient beside the mask's, if the method has such; `None` before the first step.
    gradient: Option<GradientPositions>,
    /// What the layer has told the others after this step, before an update that redistributes weights.
    share: Option<LayerShare>,
    /// The masks on the device, made when they are first needed.
    on_device: Option<OnDevice<D>>,
    /// Of a layer that trains in condensed form: the backward passes that the next update adds up.
    passes: Passes,
}

/// Masks as tensors of the weight's shape.
#[derive(Clone)]
struct OnDevice<const D: usize> {
    /// True where the mask is 0.
    inactive: Tensor<D, Bool>,
    /// True where there is no gradient; `None` if there is some everywhere.
    frozen: Option<Tensor<D, Bool>>,
}

impl<O: Optimizer> Optimizer for SparseOptimizer<O> {
    type State<const D: usize> = SparseState<O::State<D>, D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let is_new = state.is_none();
        let mut state = state.unwrap_or_else(|| self.initial_state());
        if let Some(capture) = &self.weight.capture {
            return self.step_condensed(capture, lr, tensor, grad, state);
        }
        let OnDevice { inactive, frozen } = self.on_device(&mut state, &tensor);
        if is_new {
            self.check_start(&tensor, &inactive);
        }
        state.step += 1;
        let clipped_by = self.topology.take_clipped(self.weight.index);
        self.gather(&mut state, &grad, clipped_by);

        let mut grad = match frozen.clone() {
            Some(frozen) => grad.mask_fill(frozen, 0.0),
            None => grad,
        };
        grad = self.decay_inactive(grad, frozen.as_ref(), &state);
        // Clipping comes after masking: gradients of weights that do not exist have no say in the norm.
        if let Some(clipping) = &self.clipping {
            grad = clipping.clip_gradient(grad);
        }
        let all = Self::unhide(tensor, &mut state);
        // Weight decay would move values that get no gradient: the optimizer sees zeros in their place.
        let (seen, kept) = match frozen.filter(|_| self.weight.method.keeps_inactive_weights()) {
            Some(frozen) => (all.clone().mask_fill(frozen.clone(), 0.0), Some((frozen, all))),
            None => (all, None),
        };
        let (tensor, inner) = self.inner.step(lr, seen, grad, state.inner.take());
        state.inner = inner;
        let tensor = match kept {
            Some((frozen, all)) => tensor.mask_where(frozen, all),
            None => tensor,
        };
        // Optimizers that mix positions (Muon, say) would revive inactive weights.
        let mut tensor = self.hide(tensor, inactive, &mut state);

        if self.is_update(&state) {
            tensor = self.update_topology(tensor, &mut state);
        }
        self.tell_share(&mut state);
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.inner = state.inner.map(|inner| O::to_device(inner, device));
        state.dense_grad = state.dense_grad.map(|grad| grad.to_device(device));
        state.hidden = state.hidden.map(|hidden| hidden.to_device(device));
        state.on_device = state.on_device.map(|OnDevice { inactive, frozen }| OnDevice {
            inactive: inactive.to_device(device),
            frozen: frozen.map(|frozen| frozen.to_device(device)),
        });
        state
    }
}

impl<O: Optimizer> SparseOptimizer<O> {
    fn initial_state<const D: usize>(&self) -> SparseState<O::State<D>, D> {
        SparseState {
            inner: None,
            mask: self.weight.initial_mask.clone(),
            ever_active: self.weight.initial_mask.clone(),
            step: 0,
            schedule: self.schedule,
            seed: self.seed,
            dense_grad: None,
            hidden: None,
            gradient: None,
            share: None,
            on_device: None,
            passes: Passes::default(),
        }
    }

    /// Whether the mask is about to change after this step.
    fn is_update<S, const D: usize>(&self, state: &SparseState<S, D>) -> bool {
        match self.weight.method.info().updates {
            Updates::Never => false,
            Updates::Scheduled => state.schedule.is_update(state.step),
            Updates::EachStep => true,
        }
    }

    /// Adds the gradient of a step to what the next update looks at, as it was before clipping.
    fn gather<S, const D: usize>(
        &self,
        state: &mut SparseState<S, D>,
        grad: &Tensor<D>,
        clipped_by: Option<Tensor<1>>,
    ) {
        let kept = match self.weight.method.info().gradients {
            Gradients::Momentum { beta } => beta,
            Gradients::Active | Gradients::Dense if state.schedule.gathers_gradient(state.step) => 1.0,
            _ => return,
        };
        let grad = match clipped_by {
            Some(factor) => grad.clone() / factor.cast(grad.dtype()).reshape([1; D]),
            None => grad.clone(),
        };
        state.dense_grad = Some(match state.dense_grad.take() {
            Some(sum) if kept == 1.0 => sum + grad,
            Some(sum) => sum * kept + grad,
            None => grad,
        });
    }

    /// Adds `λ·W` of the inactive weights that get gradient, if the method wants that.
    fn decay_inactive<S, const D: usize>(
        &self,
        grad: Tensor<D>,
        frozen: Option<&Tensor<D, Bool>>,
        state: &SparseState<S, D>,
    ) -> Tensor<D> {
        let decay = self.weight.method.inactive_decay(self.weight.target_sparsity());
        let Some(hidden) = state.hidden.as_ref().filter(|_| decay > 0.0) else { return grad };
        let decayed = hidden.clone() * decay;
        grad + match frozen {
            Some(frozen) => decayed.mask_fill(frozen.clone(), 0.0),
            None => decayed,
        }
    }

    /// One step before an update that redistributes weights, tells the other layers how much momentum this one has: when they come
    /// to the update, all of them must know.
    fn tell_share<S, const D: usize>(&self, state: &mut SparseState<S, D>) {
        let method = &self.weight.method;
        state.share = None;
        if !state.schedule.is_update(state.step + 1) || method.redistribute(&[]).is_none() {
            return;
        }
        let Some(momentum) = &state.dense_grad else { return };
        let mut active = self.weight.layout.to_rows(momentum.clone());
        state.mask.apply(&mut active);
        let share = LayerShare::new(&state.mask, &active);
        state.share = share.importance.is_finite().then_some(share);
        if let Some(share) = state.share {
            self.topology.share(self.weight.index, state.step, share);
        }
    }

    /// The sparsity that the layer shall have after an update.
    fn sparsity_now<S, const D: usize>(&self, state: &SparseState<S, D>, alpha: f64) -> f64 {
        let SparseWeight { method, index, sparsity, .. } = &*self.weight;
        if method.redistribute(&[]).is_some() {
            let redistribute = |shares: &[LayerShare]| sparsities_of_shares(&**method, alpha, shares);
            // Where not all are known, each keeps as many weights as it has.
            let kept = || sparsity_of_count(state.mask.positions(), state.mask.nnz());
            return self.topology.redistributed(*index, state.step, redistribute).unwrap_or_else(kept);
        }
        match method.starts_dense() {
            true => method.sparsity_at(self.weight.target_sparsity(), state.schedule.progress_at(state.step)),
            false => *sparsity,
        }
    }

    /// The step of a layer that trains in condensed form: `tensor` has the values of active weights, and zeros for weights
    /// that there could be.
    fn step_condensed<const D: usize>(
        &self,
        capture: &Capture,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        mut state: SparseState<O::State<D>, D>,
    ) -> (Tensor<D>, Option<SparseState<O::State<D>, D>>) {
        let SparseWeight { index, name, method, .. } = &*self.weight;
        let gradients = method.info().gradients;
        assert!(
            state.mask.nnz() <= tensor.shape().num_elements(),
            "layer `{name}`: the optimizer's record has a mask of {} weights, and the layer room for {}; it was saved for \
             another model",
            state.mask.nnz(),
            tensor.shape().num_elements()
        );
        if !self.topology.shows(*index, &state.mask) {
            self.topology.publish(*index, &state.mask, &state.ever_active);
        }
        if let Some(sum) = state.dense_grad.take() {
            // Of a record.
            match gradients {
                Gradients::Active => state.dense_grad = Some(of_active(sum, &state.mask, &tensor)),
                _ => state.passes = Passes::of_sum(Layout::OutIn.to_rows(sum)),
            }
        }
        state.step += 1;
        let clipped_by = self.topology.take_clipped(*index);
        let captured = capture.take();
        match gradients {
            Gradients::Active => self.gather(&mut state, &grad, clipped_by),
            // What was captured is as it was before clipping.
            _ if gradients.are_dense() && state.schedule.gathers_gradient(state.step) => {
                state.passes.extend(captured);
            }
            _ => {}
        }
        let grad = match &self.clipping {
            Some(clipping) => clipping.clip_gradient(grad),
            None => grad,
        };
        let (mut tensor, inner) = self.inner.step(lr, tensor, grad, state.inner.take());
        state.inner = inner;
        let (before, mut after) = (state.mask.clone(), None);
        if self.is_update(&state) {
            (tensor, after) = self.update_condensed(tensor, &mut state);
        }
        capture.want(gradients.are_dense() && state.schedule.gathers_gradient(state.step + 1));
        tell(Told::Stepped { layer: name.clone(), before, after });
        (tensor, Some(state))
    }

    /// Values and captured passes in, new mask out; values and moments move to their new places. The mask is returned if the
    /// update has succeeded.
    fn update_condensed<const D: usize>(
        &self,
        tensor: Tensor<D>,
        state: &mut SparseState<O::State<D>, D>,
    ) -> (Tensor<D>, Option<Arc<Mask>>) {
        let weight = &*self.weight;
        let values = Layout::OutIn.to_rows(tensor.clone());
        let (passes, before) = (std::mem::take(&mut state.passes), state.mask.clone());
        let inputs = before.dense_fan_in();
        let mut grads = match state.dense_grad.take() {
            Some(sum) => Layout::OutIn.to_rows(sum.div_scalar(gathered(state))),
            None => vec![0.0; before.nnz()],
        };
        grads.truncate(before.nnz());
        // Their sum, since what it is divided by changes no order.
        let mut rows = |neurons: &[usize], to: &mut [f32]| passes.write(neurons, inputs, to);
        let layer = ActiveLayer {
            name: &weight.name,
            values: &values[..before.nnz()],
            mask: &before,
            sparsity: weight.sparsity,
            ablate: weight.ablate,
            grads: &grads,
            members: Members::default(),
        };
        let alpha = state.schedule.drop_fraction_at(state.step);
        let stream = Stream { seed: state.seed, layer: weight.index as u64, step: state.step };
        let gradient = DenseGradient::Rows(&mut rows);
        let update = match weight.method.info().gradients.are_dense() && passes.is_empty() {
            true => Err(Error::NoGradient { layer: weight.name.clone() }),
            false => update_active_layer(&*weight.method, alpha, &layer, gradient, stream),
        };

        let (step, layer) = (state.step, weight.name.clone());
        let (tensor, mask, report) = match update.map(|update| update.expect("checked by `sparsify`")) {
            Ok(update) => {
                let mask = Arc::new(update.mask);
                let moves = Moves::new(&before, &mask, values.len());
                Arc::make_mut(&mut state.ever_active).union_with(&mask);
                state.mask = mask.clone();
                state.inner = state.inner.take().map(|inner| moves.moments(inner, &tensor));
                self.topology.publish(weight.index, &mask, &state.ever_active);
                (moves.tensor(values, &tensor), Some(mask), Ok(update.report))
            }
            Err(error) => (tensor, None, Err(error)),
        };
        let itop = itop_rate(&state.ever_active);
        self.topology.record(TopologyEvent { step, layer, report, itop });
        (tensor, mask)
    }

    /// Checks that a weight without a state is one that has been sparsified, and not trained since.
    ///
    /// # Panics
    /// If not: its masks are lost, and those that it would get now have nothing to do with its values. Burn's `Learner` and
    /// `ModuleOptimizer` leave out records that do not fit, and go on without a word.
    fn check_start<const D: usize>(&self, tensor: &Tensor<D>, inactive: &Tensor<D, Bool>) {
        let alive = tensor.clone().not_equal_elem(0.0).bool_and(inactive.clone()).any();
        assert!(
            !alive.into_scalar::<bool>(),
            "layer `{}` has weights where its mask has none, and no state: the optimizer's record of this model was not loaded \
             or does not fit; to start from trained weights, load them before `sparsify`, with `WeightInit::Keep`",
            self.weight.name
        );
    }

    /// The masks on the weight's device.
    fn on_device<const D: usize>(
        &self,
        state: &mut SparseState<O::State<D>, D>,
        tensor: &Tensor<D>,
    ) -> OnDevice<D> {
        if state.on_device.is_none() {
            // First step, or first step after a record was loaded.
            let weight = &self.weight;
            assert!(
                state.mask.positions() == tensor.shape().num_elements(),
                "layer `{}`: the optimizer's record has a mask of {} positions for a weight of shape {:?}; it was \
                 saved for another model",
                weight.name,
                state.mask.positions(),
                tensor.dims()
            );
            if let Some(hidden) = weight.hidden.get().filter(|_| state.step == 0) {
                let hidden = weight.layout.tensor_of_rows(hidden.clone(), tensor.dims(), &tensor.device());
                state.hidden = Some(hidden.cast(tensor.dtype()));
            }
            if state.gradient.is_none() {
                let all = || match &state.hidden {
                    Some(hidden) => tensor.clone() + hidden.clone(),
                    None => tensor.clone(),
                };
                let values = || weight.layout.to_rows(all());
                state.gradient = Some(self.weight.gradient_positions(&state.mask, &values));
            }
            // A record's numbers have the device's usual type.
            state.hidden = state.hidden.take().map(|hidden| hidden.cast(tensor.dtype()));
            state.dense_grad = state.dense_grad.take().map(|grad| grad.cast(tensor.dtype()));
            self.topology.publish(weight.index, &state.mask, &state.ever_active);
            self.publish_gradient(state);
            self.move_masks(state, tensor.dims(), &tensor.device());
        }
        state.on_device.clone().expect("just made")
    }

    /// Tells those who clip which positions get gradient.
    fn publish_gradient<S, const D: usize>(&self, state: &SparseState<S, D>) {
        if let Some(positions) = &state.gradient {
            self.topology.publish_gradient(self.weight.index, positions);
        }
    }

    /// Copies the state's masks to the device.
    fn move_masks<const D: usize>(
        &self,
        state: &mut SparseState<O::State<D>, D>,
        dims: [usize; D],
        device: &Device,
    ) {
        let copy = |mask: &Mask| self.weight.layout.inactive(mask, dims, device);
        let inactive = copy(&state.mask);
        let frozen = match &state.gradient {
            None | Some(GradientPositions::Active) => Some(inactive.clone()),
            Some(GradientPositions::Superset(mask)) => Some(copy(mask)),
            Some(GradientPositions::All) => None,
        };
        state.on_device = Some(OnDevice { inactive, frozen });
    }

    /// The weight that the network sees: 0 where it is inactive. What was there is kept, if the method wants it.
    fn hide<const D: usize>(
        &self,
        tensor: Tensor<D>,
        inactive: Tensor<D, Bool>,
        state: &mut SparseState<O::State<D>, D>,
    ) -> Tensor<D> {
        if self.weight.method.keeps_inactive_weights() {
            state.hidden = Some(tensor.clone().mask_fill(inactive.clone().bool_not(), 0.0));
        }
        tensor.mask_fill(inactive, 0.0)
    }

    /// The weight with what [`hide`](Self::hide) has kept.
    fn unhide<const D: usize>(tensor: Tensor<D>, state: &mut SparseState<O::State<D>, D>) -> Tensor<D> {
        match state.hidden.take() {
            Some(hidden) => tensor + hidden,
            None => tensor,
        }
    }

    /// Weights and dense gradients in, new mask out; weights and moments settle on it.
    fn update_topology<const D: usize>(
        &self,
        tensor: Tensor<D>,
        state: &mut SparseState<O::State<D>, D>,
    ) -> Tensor<D> {
        let weight = &self.weight;
        let tensor = Self::unhide(tensor, state);
        let gathered = gathered(state);
        let grads = match weight.method.info().gradients {
            Gradients::Momentum { .. } => state.dense_grad.clone(),
            _ => state.dense_grad.take().map(|sum| sum.div_scalar(gathered)),
        };
        let (weights, grads) = match grads {
            Some(grads) => {
                let [weights, grads] = weight.layout.read_rows([tensor.clone(), grads]);
                (weights, grads)
            }
            None => (weight.layout.to_rows(tensor.clone()), vec![0.0; state.mask.positions()]),
        };
        let alpha = state.schedule.drop_fraction_at(state.step);
        let sparsity = self.sparsity_now(state, alpha);
        let layer = Layer {
            name: &weight.name,
            weights: &weights,
            grads: &grads,
            mask: &state.mask,
            sparsity,
            ablate: weight.ablate,
        };
        let stream = Stream { seed: state.seed, layer: weight.index as u64, step: state.step };
        let update = update_layer(&*weight.method, alpha, &layer, stream);

        let (step, layer) = (state.step, weight.name.clone());
        let report = match update {
            Ok(update) => {
                Arc::make_mut(&mut state.ever_active).union_with(&update.mask);
                state.mask = Arc::new(update.mask);
                state.gradient = Some(self.weight.gradient_positions(&state.mask, &|| weights.clone()));
                self.topology.publish(weight.index, &state.mask, &state.ever_active);
                self.publish_gradient(state);
                self.move_masks(state, tensor.dims(), &tensor.device());
                Ok(update.report)
            }
            Err(error) => Err(error),
        };
        // Of masks that change with each step, some are told.
        if report.is_err() || step.is_multiple_of(state.schedule.delta_t) {
            let itop = itop_rate(&state.ever_active);
            self.topology.record(TopologyEvent { step, layer, report, itop });
        }

        // Weights and moments that were inactive before are 0 already, so the new mask is enough.
        let OnDevice { inactive, frozen } = state.on_device.clone().expect("made at the start of the step");
        if let Some(frozen) = frozen {
            state.inner = state.inner.take().map(|inner| mask_moments(inner, &frozen, tensor.dtype()));
        }
        self.hide(tensor, inactive, state)
    }
}

/// How many steps' gradients have been added up for the update at hand.
fn gathered<S, const D: usize>(state: &SparseState<S, D>) -> f64 {
    state.schedule.grad_accumulation.min(state.step) as f64
}

/// A sum of gradients of active weights like `values`: a record of a masked layer has that of all.
fn of_active<const D: usize>(sum: Tensor<D>, mask: &Mask, values: &Tensor<D>) -> Tensor<D> {
    if sum.dims() == values.dims() {
        return sum;
    }
    let (all, inputs) = (Layout::OutIn.to_rows(sum), mask.dense_fan_in());
    let of_neuron = |neuron| mask.inputs(neuron).map(move |input| neuron * inputs + input);
    let positions = (0..mask.neurons()).flat_map(of_neuron);
    let mut active: Vec<f32> = positions.map(|position| all.get(position).copied().unwrap_or(0.0)).collect();
    active.resize(values.shape().num_elements(), 0.0);
    Tensor::from_data(TensorData::new(active, values.dims()), (&values.device(), values.dtype()))
}

/// Where the values of a layer in condensed form go when its topology changes.
struct Moves {
    /// For each new place the old one; `None` for weights that are new, and for room.
    from: Vec<Option<usize>>,
}

impl Moves {
    fn new(before: &Mask, after: &Mask, room: usize) -> Self {
        let mut end = 0;
        let starts = (0..after.neurons()).map(|neuron| {
            let start = end;
            end += before.fan_in(neuron);
            start
        });
        let starts: Vec<usize> = starts.collect();
        let of_neuron = |neuron: usize| {
            let mut olds = (starts[neuron]..).zip(before.inputs(neuron)).peekable();
            after.inputs(neuron).map(move |input| {
                while olds.next_if(|(_, old)| *old < input).is_some() {}
                olds.next_if(|(_, old)| *old == input).map(|(place, _)| place)
            })
        };
        let mut from: Vec<_> = (0..after.neurons()).into_par_iter().flat_map_iter(of_neuron).collect();
        assert!(from.len() <= room, "a topology of {} weights in a layer with room for {room}", from.len());
        from.resize(room, None);
        Self { from }
    }

    fn values(&self, values: &[f32]) -> Vec<f32> {
        self.from.par_iter().map(|from| from.map_or(0.0, |from| values[from])).collect()
    }

    /// A tensor like another.
    fn tensor<const D: usize>(&self, values: Vec<f32>, like: &Tensor<D>) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values(&values), like.dims()), (&like.device(), like.dtype()))
    }

    /// Every tensor of an optimizer state that has the values' shape.
    fn moments<S: RecordState, const D: usize>(&self, state: S, like: &Tensor<D>) -> S {
        map_record(state, &like.device(), |data| {
            if data.shape() != &like.shape() {
                return data;
            }
            let dtype = data.dtype();
            let numbers: Vec<f32> = data.convert::<f32>().try_into_vec().expect("converted to f32");
            TensorData::new(self.values(&numbers), like.dims()).convert_dtype(dtype)
        })
    }
}

/// What a record says of a layer's topology.
pub(crate) struct LoadedLayer {
    pub mask: Arc<Mask>,
    pub ever_active: Arc<Mask>,
    pub gradient: Option<GradientPositions>,
    /// After which step it was told.
    pub share: Option<(u64, LayerShare)>,
}

/// Those of all layers by parameter id.
type LoadedMasks = HashMap<String, LoadedLayer>;

/// A loading of records, for `state_unflatten`: Burn hands it neither the optimizer nor the layer.
#[derive(Default)]
struct Loading {
    /// Those that the records have brought.
    masks: LoadedMasks,
    /// The schedule that takes the place of the record's.
    schedule: Option<UpdateSchedule>,
}

thread_local! {
    static LOADING: RefCell<Option<Loading>> = const { RefCell::new(None) };
}

/// Calls `load`, which loads records into optimizers on this thread, and returns its result with the topologies that the
/// records have. A `schedule` takes the place of theirs.
pub(crate) fn loaded_masks<T>(
    schedule: Option<UpdateSchedule>,
    load: impl FnOnce() -> T,
) -> (T, LoadedMasks) {
    LOADING.set(Some(Loading { masks: LoadedMasks::new(), schedule }));
    let result = load();
    (result, LOADING.take().unwrap_or_default().masks)
}

/// Zeroes every tensor of an optimizer state that has the weight's shape where the mask is 0.
fn mask_moments<S: RecordState, const D: usize>(mut state: S, inactive: &Tensor<D, Bool>, dtype: DType) -> S {
    let masked = |moment: &Tensor<D>| moment.clone().mask_fill(inactive.clone(), 0.0);
    let any = &mut state as &mut dyn Any;
    // The moments of these optimizers can be reached: they need not leave the device.
    if let Some(sgd) = any.downcast_mut::<SgdState<D>>() {
        let zeros = Tensor::zeros(inactive.dims(), (&inactive.device(), dtype));
        let momentum = sgd.momentum.take();
        sgd.momentum = momentum.map(|momentum| MomentumState::new(masked(&velocity(momentum, zeros))));
        return state;
    }
    let adam = match any.downcast_mut::<AdamState<D>>() {
        Some(adam) => Some(&mut adam.momentum),
        None => any.downcast_mut::<AdamWState<D>>().map(|adam| &mut adam.momentum),
    };
    let Some(adam) = adam else { return mask_record(state, inactive) };
    let moments = [&mut adam.moment_1, &mut adam.moment_2].into_iter().chain(&mut adam.max_moment_2);
    moments.for_each(|moment| *moment = masked(moment));
    state
}

/// Momentum's private velocity: what it makes of a gradient of 0 if nothing decays.
fn velocity<const D: usize>(momentum: MomentumState<D>, zeros: Tensor<D>) -> Tensor<D> {
    let reader = Momentum::new(&MomentumConfig::new().with_momentum(1.0).with_dampening(0.0));
    reader.transform(zeros, Some(momentum)).0
}

/// The same for any optimizer: a state is opaque but for its record, so the record is taken apart and put together
/// again, through the host's memory.
fn mask_record<S: RecordState, const D: usize>(state: S, inactive: &Tensor<D, Bool>) -> S {
    let device = inactive.device();
    map_record(state, &device, |data| {
        if data.shape() != &inactive.shape() {
            return data;
        }
        let dtype = data.dtype();
        let moment = Tensor::<D>::from_data(data, (&device, dtype));
        moment.mask_fill(inactive.clone(), 0.0).into_data()
    })
}

/// Applies a function to all tensors of an optimizer state.
fn map_record<S: RecordState>(state: S, device: &Device, map: impl Fn(TensorData) -> TensorData) -> S {
    let mut sink = StateSink::default();
    state.state_flatten("", &mut sink);
    let mut source = StateSource::new(sink.scalars.into_iter().collect());
    for (name, data) in sink.tensors {
        source.insert_tensor(name, map(data));
    }
    S::state_unflatten("", &mut source, device)
        .expect("an optimizer state can be rebuilt from its own record")
}

impl<S: RecordState, const D: usize> RecordState for SparseState<S, D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        if let Some(inner) = &self.inner {
            inner.state_flatten(&format!("{prefix}.inner"), out);
        }
        let mut masks = vec![("mask", &*self.mask), ("ever_active", &*self.ever_active)];
        if let Some(GradientPositions::Superset(mask)) = &self.gradient {
            masks.push(("gradient", mask));
        }
        for (leaf, mask) in masks {
            let bytes: Vec<u8> = mask.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            let length = bytes.len();
            out.push_tensor(prefix, leaf, TensorData::new(bytes, [length]));
        }
        let mut dense = self.dense_grad.as_ref().map(Tensor::to_data);
        if !self.passes.is_empty() {
            // Passes are not recorded, but what they add up to is.
            let [neurons, inputs] = self.mask.shape();
            dense = Some(TensorData::new(self.passes.dense(neurons, inputs), [neurons * inputs]));
        }
        for (leaf, data) in [("dense_grad", dense), ("hidden", self.hidden.as_ref().map(Tensor::to_data))] {
            if let Some(data) = data {
                out.push_tensor(prefix, leaf, data);
            }
        }
        for (leaf, value) in [
            ("has_inner", u64::from(self.inner.is_some())),
            ("neurons", self.mask.neurons() as u64),
            ("dense_fan_in", self.mask.dense_fan_in() as u64),
            ("step", self.step),
            ("seed", self.seed),
            ("delta_t", self.schedule.delta_t),
            ("end_step", self.schedule.end_step),
            ("grad_accumulation", self.schedule.grad_accumulation),
        ] {
            out.push_scalar(prefix, leaf, value.into());
        }
        out.push_scalar(prefix, "drop_fraction", self.schedule.drop_fraction.into());
        let of_schedule = |(.., known): &(&str, &str, DropSchedule)| *known == self.schedule.drop_schedule;
        let drop_schedule = DropSchedule::NAMES.iter().position(of_schedule).unwrap_or(0);
        out.push_scalar(prefix, "drop_schedule", (drop_schedule as u64).into());
        if let Some(share) = self.share {
            out.push_scalar(prefix, "share_active", (share.active as u64).into());
            out.push_scalar(prefix, "share_importance", share.importance.into());
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let integer = |src: &mut StateSource, leaf| u64::try_from(src.take_scalar(prefix, leaf)?).ok();
        let neurons = usize::try_from(integer(src, "neurons")?).ok()?;
        let dense_fan_in = usize::try_from(integer(src, "dense_fan_in")?).ok()?;
        let mask = |src: &mut StateSource, leaf| {
            let bytes = src.take_tensor(prefix, leaf)?.try_into_vec::<u8>().ok()?;
            mask_of_bytes(&bytes, neurons, dense_fan_in)
        };
        // A record of before there was a choice has none.
        let drop_schedule = integer(src, "drop_schedule").unwrap_or(0);
        let (_, _, drop_schedule) = *DropSchedule::NAMES.get(usize::try_from(drop_schedule).ok()?)?;
        let number = |src: &mut StateSource, leaf| f64::try_from(src.take_scalar(prefix, leaf)?).ok();
        let schedule = UpdateSchedule {
            delta_t: integer(src, "delta_t")?,
            drop_fraction: number(src, "drop_fraction")?,
            drop_schedule,
            end_step: integer(src, "end_step")?,
            grad_accumulation: integer(src, "grad_accumulation")?,
        };
        schedule.validate().ok()?;
        let inner = match integer(src, "has_inner")? {
            0 => None,
            _ => Some(S::state_unflatten(&format!("{prefix}.inner"), src, device)?),
        };
        let tensor = |src: &mut StateSource, leaf| {
            let data = src.take_tensor(prefix, leaf).filter(|data| data.rank() == D)?;
            Some(Tensor::from_data(data, device))
        };
        let share = integer(src, "share_active").zip(number(src, "share_importance"));
        let share = share.map(|(active, importance)| {
            let (positions, active) = (neurons.saturating_mul(dense_fan_in), active as usize);
            LayerShare { positions, active, kept: active, importance }
        });
        let mut state = Self {
            inner,
            share,
            mask: Arc::new(mask(src, "mask")?),
            ever_active: Arc::new(mask(src, "ever_active")?),
            step: integer(src, "step")?,
            seed: integer(src, "seed")?,
            schedule,
            dense_grad: tensor(src, "dense_grad"),
            hidden: tensor(src, "hidden"),
            gradient: mask(src, "gradient").map(GradientPositions::Superset),
            on_device: None,
            passes: Passes::default(),
        };
        LOADING.with_borrow_mut(|loading| {
            if let Some(loading) = loading {
                let (mask, ever_active) = (state.mask.clone(), state.ever_active.clone());
                let (gradient, share) = (state.gradient.clone(), share.map(|share| (state.step, share)));
                loading.masks.insert(prefix.to_string(), LoadedLayer { mask, ever_active, gradient, share });
                state.schedule = loading.schedule.unwrap_or(state.schedule);
            }
        });
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::TopologyLayer;
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::{AdamConfig, AdamWConfig, RmsPropConfig, SgdConfig};
    use sparsity_core::methods::{Rigl, Set, Srigl, StaticMask};
    use sparsity_core::{LayerSpec, initial_mask, settle_weights};

    const DIMS: [usize; 2] = [24, 16];

    /// A linear layer `[in, out]` = `[24, 16]`, so 16 neurons of dense fan-in 24.
    fn sparse<O: Optimizer>(
        inner: O,
        method: impl Into<AnyMethod>,
        schedule: UpdateSchedule,
    ) -> SparseOptimizer<O> {
        let method = method.into();
        let spec = LayerSpec::new("fc", [DIMS[1], DIMS[0]]).unwrap();
        let mask = initial_mask(&*method, &spec, 0.75, Stream { seed: 5, layer: 0, step: 0 }).unwrap();
        let mask = Arc::new(mask);
        let name = "fc".to_string();
        let layer = TopologyLayer {
            name: name.clone(),
            sparsity: 0.75,
            mask: mask.clone(),
            ever_active: mask.clone(),
            condensed: false,
        };
        let weight = SparseWeight {
            name,
            index: 0,
            layout: Layout::InOut,
            sparsity: 0.75,
            ablate: true,
            method,
            initial_mask: mask,
            capture: None,
            hidden: OnceLock::new(),
        };
        let topology = Topology::new(vec![layer]);
        SparseOptimizer { inner, weight: Arc::new(weight), schedule, seed: 5, clipping: None, topology }
    }

    fn srigl() -> Srigl {
        Srigl { gamma_sal: 0.9, ..Default::default() }
    }

    fn schedule(grad_accumulation: u64) -> UpdateSchedule {
        UpdateSchedule { delta_t: 5, grad_accumulation, ..UpdateSchedule::new(40) }
    }

    /// Deterministic values in [-1, 1) that differ from step to step.
    fn noise(step: u64, device: &Device) -> Tensor<2> {
        let value = |i: u64| {
            let mixed = (i + 1).wrapping_mul(step + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..(DIMS[0] * DIMS[1]) as u64).map(value).collect();
        Tensor::from_data(TensorData::new(values, DIMS), device)
    }

    fn initial_weight<O: Optimizer>(optim: &SparseOptimizer<O>, device: &Device) -> Tensor<2> {
        let inactive = Layout::InOut.inactive(&optim.weight.initial_mask, DIMS, device);
        noise(1000, device).mask_fill(inactive, 0.0)
    }

    /// Tensors of the inner optimizer's state that have the weight's shape.
    fn moments<S: RecordState>(inner: &Option<S>, device: &Device) -> Vec<Tensor<2>> {
        let mut sink = StateSink::default();
        inner.as_ref().unwrap().state_flatten("", &mut sink);
        let tensors = sink.tensors.into_iter().map(|(_, data)| data);
        tensors.filter(|d| d.rank() == 2).map(|d| Tensor::from_data(d, device)).collect()
    }

    #[allow(deprecated)]
    fn devices() -> [Device; 2] {
        [Device::flex(), Device::ndarray()]
    }

    /// Invariants of DESIGN.md after every step, and the moments of grown weights start at 0.
    fn check_invariants<O: Optimizer>(inner: O, moments_expected: usize) {
        for device in devices() {
            for method in [srigl().into(), Rigl.into(), Set.into(), AnyMethod::from(StaticMask)] {
                let info = method.info();
                let optim = sparse(inner.clone(), method.clone(), schedule(1));
                let updates = optim.topology.updates();
                let mut weight = initial_weight(&optim, &device);
                let mut state = None;
                let mut changed = false;
                for step in 1..=50 {
                    let before = optim.topology.layers()[0].mask.clone();
                    let grad = noise(step, &device) + weight.clone().mul_scalar(0.1);
                    let (new_weight, new_state) = optim.step(0.05, weight, grad, state);
                    let new: SparseState<O::State<2>, 2> = new_state.unwrap();
                    let mask = &new.mask;
                    let rows = Layout::InOut.to_rows(new_weight.clone());
                    let moments: Vec<Vec<f32>> =
                        moments(&new.inner, &device).into_iter().map(|m| Layout::InOut.to_rows(m)).collect();
                    assert_eq!(moments.len(), moments_expected);
                    for position in 0..mask.positions() {
                        let (i, j) = (position / mask.dense_fan_in(), position % mask.dense_fan_in());
                        let grown = mask.is_active(i, j) && !before.is_active(i, j);
                        if !mask.is_active(i, j) || grown {
                            assert_eq!(rows[position], 0.0, "{method:?}, step {step}: weight");
                            assert!(
                                moments.iter().all(|m| m[position] == 0.0),
                                "{method:?}, step {step}: moment"
                            );
                        }
                    }
                    if info.constant_fan_in {
                        sparsity_core::ConstantFanInMask::try_from(Mask::clone(mask)).unwrap();
                    }
                    changed |= *mask != before;
                    assert_eq!(new.step, step);
                    (weight, state) = (new_weight, Some(new));
                }
                assert_eq!(changed, info.changes());
                let expected = if info.changes() { 7 } else { 0 };
                assert_eq!(updates.drain().len(), expected, "40 steps, every 5th");
            }
        }
    }

    fn sgd() -> SgdConfig {
        SgdConfig::new()
            .with_momentum(Some(MomentumConfig::new()))
            .with_weight_decay(Some(WeightDecayConfig::new(0.01)))
    }

    #[test]
    fn invariants_hold_with_sgd() {
        check_invariants(sgd().build(), 1);
    }

    #[test]
    fn invariants_hold_with_adam() {
        check_invariants(AdamConfig::new().with_weight_decay(Some(WeightDecayConfig::new(0.01))).build(), 2);
    }

    #[test]
    fn invariants_hold_with_adamw() {
        check_invariants(AdamWConfig::new().with_weight_decay(0.1).build(), 2);
    }

    #[test]
    fn invariants_hold_with_rmsprop() {
        // Mean square, gradient average (zeros unless centered) and momentum.
        check_invariants(RmsPropConfig::new().build(), 3);
    }

    /// Between updates the active weights move exactly as if the inner optimizer trained them alone.
    #[test]
    fn weight_decay_and_clipping_act_on_active_weights_alone() {
        let device = Device::flex();
        let inner = sgd().build();
        let mut optim = sparse(inner.clone(), StaticMask, schedule(1));
        optim.clipping = Some(GradientClipping::Norm(0.5));
        let mut weight = initial_weight(&optim, &device);
        let mut state = None;

        // The same weights without their zeros, as a dense tensor [1, active].
        let mask = &optim.weight.initial_mask;
        let active: Vec<usize> =
            mask.to_bytes().iter().enumerate().filter(|(_, b)| **b == 1).map(|(i, _)| i).collect();
        let pick = |tensor: Tensor<2>| -> Tensor<2> {
            let rows = Layout::InOut.to_rows(tensor);
            let picked: Vec<f32> = active.iter().map(|i| rows[*i]).collect();
            Tensor::from_data(TensorData::new(picked, [1, active.len()]), &Device::flex())
        };
        let mut dense = pick(weight.clone());
        let mut dense_state = None;
        for step in 1..20 {
            let grad = noise(step, &device);
            let dense_grad = GradientClipping::Norm(0.5).clip_gradient(pick(grad.clone()));
            (dense, dense_state) = inner.step(0.1, dense, dense_grad, dense_state);
            (weight, state) = optim.step(0.1, weight, grad, state);
            let tolerance = burn::tensor::Tolerance::<f32>::absolute(1e-6);
            pick(weight.clone()).into_data().assert_approx_eq(&dense.to_data(), tolerance);
        }
    }

    /// An update uses the mean of the last dense gradients: their values at inactive positions decide.
    #[test]
    fn growth_follows_the_mean_of_the_gathered_gradients() {
        let device = Device::flex();
        let optim = sparse(SgdConfig::new().build(), srigl(), schedule(3));
        let mut weight = initial_weight(&optim, &device);
        let mut state: Option<SparseState<_, 2>> = None;
        let mut sum = noise(3, &device).zeros_like();
        for step in 1..=5 {
            if step > 2 {
                sum = sum + noise(step, &device);
            }
            assert_eq!(
                state.as_ref().is_some_and(|s| s.dense_grad.is_some()),
                step > 3,
                "before step {step}"
            );
            (weight, state) = optim.step(0.01, weight, noise(step, &device), state);
        }
        // Redo the fifth step by hand: plain SGD on the masked gradient, then one update of the core library.
        let mask = &optim.weight.initial_mask;
        let mut expected = Layout::InOut.to_rows(initial_weight(&optim, &device));
        for step in 1..=5 {
            let mut grad = Layout::InOut.to_rows(noise(step, &device));
            mask.apply(&mut grad);
            expected.iter_mut().zip(grad).for_each(|(w, g)| *w -= g * 0.01);
        }
        let layer = Layer {
            name: "fc",
            weights: &expected.clone(),
            grads: &Layout::InOut.to_rows(sum.div_scalar(3.0)),
            mask,
            sparsity: 0.75,
            ablate: true,
        };
        let stream = Stream { seed: 5, layer: 0, step: 5 };
        let update = update_layer(&srigl(), optim.schedule.drop_fraction_at(5), &layer, stream).unwrap();
        settle_weights(&mut expected, mask, &update.mask);
        assert_eq!(*state.unwrap().mask, update.mask);
        assert_eq!(Layout::InOut.to_rows(weight), expected);
    }

    /// Moments of these optimizers do not go through the record, and come out as if they did.
    #[test]
    fn moments_on_the_device_are_masked_like_those_of_a_record() {
        fn check<O: Optimizer>(optim: O) {
            let device = Device::flex();
            let inactive = noise(3, &device).lower_scalar(0.2);
            let (_, state) = optim.step(0.1, noise(1, &device), noise(2, &device), None);
            let state = state.unwrap();
            let values = |state: O::State<2>| -> Vec<f32> {
                let moments = moments(&Some(state), &device).into_iter();
                moments.flat_map(|moment| Layout::OutIn.to_rows(moment)).collect()
            };
            let masked = values(mask_moments(state.clone(), &inactive, DType::F32));
            assert_eq!(masked, values(mask_record(state, &inactive)));
            let zeros = masked.iter().filter(|value| **value == 0.0).count();
            assert!(zeros > 0 && zeros < masked.len());
        }
        for amsgrad in [false, true] {
            check(AdamConfig::new().with_amsgrad(amsgrad).build());
            check(AdamWConfig::new().with_amsgrad(amsgrad).build());
        }
        for nesterov in [false, true] {
            let momentum = MomentumConfig::new().with_nesterov(nesterov).with_dampening(0.3);
            check(SgdConfig::new().with_momentum(Some(momentum)).build());
        }
    }

    #[test]
    fn gradients_that_are_not_finite_leave_inactive_weights_and_the_mask_alone() {
        let device = Device::flex();
        let optim = sparse(sgd().build(), srigl(), schedule(1));
        let updates = optim.topology.updates();
        let mut weight = initial_weight(&optim, &device);
        let mut state: Option<SparseState<_, 2>> = None;
        for _ in 0..5 {
            let infinite = noise(1, &device).ones_like().mul_scalar(f32::INFINITY);
            (weight, state) = optim.step(0.1, weight, infinite, state);
        }
        let mask = state.unwrap().mask;
        assert_eq!(mask, optim.weight.initial_mask);
        let rows = Layout::InOut.to_rows(weight);
        let bytes = mask.to_bytes();
        assert!(rows.iter().zip(&bytes).all(|(w, active)| *active == 1 || *w == 0.0));
        let events = updates.drain();
        let error = events[0].report.as_ref().unwrap_err().to_string();
        assert!(error.contains("layer `fc`") && error.contains("finite"), "{error}");
    }
}
