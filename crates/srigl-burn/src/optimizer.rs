//! Wraps any Burn optimizer for one sparse weight.

use crate::layout::Layout;
use crate::topology::{Topology, TopologyEvent};
use burn::grad_clipping::GradientClipping;
use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use sparsity_core::{Layer, Mask, Method, Stream, UpdateSchedule, itop_rate, update_layer};
use std::sync::Arc;

/// What never changes about one sparse weight.
#[derive(Debug)]
pub(crate) struct SparseWeight {
    pub name: String,
    /// Index among the layers of the topology; selects the random stream.
    pub index: usize,
    pub layout: Layout,
    pub sparsity: f64,
    pub ablate: bool,
    pub method: Method,
    pub initial_mask: Mask,
}

/// Burn optimizer for one sparse weight: the inner optimizer sees masked gradients only, and every `ΔT` steps
/// the mask is updated. [`SriglConfig::sparsify`](crate::SriglConfig::sparsify) sets one up per layer.
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
#[derive(Clone)]
pub struct SparseState<S, const D: usize> {
    /// State of the inner optimizer; its moments are 0 wherever the mask is.
    pub inner: Option<S>,
    /// The present mask `[N, M]`.
    pub mask: Mask,
    /// Positions that have been active at least once.
    pub ever_active: Mask,
    /// Optimizer steps taken.
    pub step: u64,
    /// The schedule; the random state is the seed, since streams depend on `(seed, layer, step)` alone.
    pub schedule: UpdateSchedule,
    /// Seed of random growth.
    pub seed: u64,
    /// Sum of the dense gradients gathered for the next update.
    pub dense_grad: Option<Tensor<D>>,
    /// True where the mask is 0, on the device; made from the mask when it is first needed.
    inactive: Option<Tensor<D, Bool>>,
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
        let mut state = state.unwrap_or_else(|| self.initial_state());
        let inactive = self.inactive(&mut state, &tensor);
        state.step += 1;
        if state.schedule.gathers_gradient(state.step) && self.weight.method != Method::Static {
            state.dense_grad = Some(match state.dense_grad.take() {
                Some(sum) => sum + grad.clone(),
                None => grad.clone(),
            });
        }

        // Clipping comes after masking: gradients of weights that do not exist have no say in the norm.
        let mut grad = grad.mask_fill(inactive.clone(), 0.0);
        if let Some(clipping) = &self.clipping {
            grad = clipping.clip_gradient(grad);
        }
        let (tensor, inner) = self.inner.step(lr, tensor, grad, state.inner.take());
        state.inner = inner;
        // Optimizers that mix positions (Muon, say) would revive inactive weights.
        let mut tensor = tensor.mask_fill(inactive, 0.0);

        if state.schedule.is_update(state.step) && self.weight.method != Method::Static {
            tensor = self.update_topology(tensor, &mut state);
        }
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.inner = state.inner.map(|inner| O::to_device(inner, device));
        state.dense_grad = state.dense_grad.map(|grad| grad.to_device(device));
        state.inactive = state.inactive.map(|inactive| inactive.to_device(device));
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
            inactive: None,
        }
    }

    fn inactive<const D: usize>(
        &self,
        state: &mut SparseState<O::State<D>, D>,
        tensor: &Tensor<D>,
    ) -> Tensor<D, Bool> {
        if state.inactive.is_none() {
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
            state.inactive = Some(weight.layout.inactive(&state.mask, tensor.dims(), &tensor.device()));
            self.topology.publish(weight.index, &state.mask, &state.ever_active);
        }
        state.inactive.clone().expect("just made")
    }

    /// Weights and dense gradients in, new mask out; weights and moments settle on it.
    fn update_topology<const D: usize>(
        &self,
        tensor: Tensor<D>,
        state: &mut SparseState<O::State<D>, D>,
    ) -> Tensor<D> {
        let weight = &self.weight;
        let gathered = state.schedule.grad_accumulation.min(state.step) as f64;
        let dense_grad = state.dense_grad.take().expect("gathered in this very step").div_scalar(gathered);
        let layer = Layer {
            name: &weight.name,
            weights: &weight.layout.to_rows(tensor.clone()),
            grads: &weight.layout.to_rows(dense_grad),
            mask: &state.mask,
            sparsity: weight.sparsity,
            ablate: weight.ablate,
        };
        let alpha = state.schedule.drop_fraction_at(state.step);
        let stream = Stream { seed: state.seed, layer: weight.index as u64, step: state.step };
        let update = update_layer(&weight.method, alpha, &layer, stream);

        let (step, layer) = (state.step, weight.name.clone());
        let update = match update {
            Ok(update) => update,
            Err(error) => {
                let itop = itop_rate(&state.ever_active);
                self.topology.record(TopologyEvent { step, layer, report: Err(error), itop });
                return tensor;
            }
        };
        state.ever_active.union_with(&update.mask);
        state.mask = update.mask;
        self.topology.publish(weight.index, &state.mask, &state.ever_active);
        let itop = itop_rate(&state.ever_active);
        self.topology.record(TopologyEvent { step, layer, report: Ok(update.report), itop });

        // Weights and moments that were inactive before are 0 already, so the new mask is enough.
        let inactive = weight.layout.inactive(&state.mask, tensor.dims(), &tensor.device());
        state.inner = state.inner.take().map(|inner| mask_moments(inner, &inactive));
        state.inactive = Some(inactive.clone());
        tensor.mask_fill(inactive, 0.0)
    }
}

/// Zeroes every tensor of an optimizer state that has the weight's shape where the mask is 0.
///
/// An optimizer state is opaque but for its record, so the record is taken apart and put together again; that
/// is done at topology updates only.
fn mask_moments<S: RecordState, const D: usize>(state: S, inactive: &Tensor<D, Bool>) -> S {
    let device = inactive.device();
    let mut sink = StateSink::default();
    state.state_flatten("", &mut sink);
    let mut source = StateSource::new(sink.scalars.into_iter().collect());
    for (name, mut data) in sink.tensors {
        if data.shape() == &inactive.shape() {
            let dtype = data.dtype();
            let moment = Tensor::<D>::from_data(data, (&device, dtype));
            data = moment.mask_fill(inactive.clone(), 0.0).into_data();
        }
        source.insert_tensor(name, data);
    }
    S::state_unflatten("", &mut source, &device).unwrap_or(state)
}

impl<S: RecordState, const D: usize> RecordState for SparseState<S, D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        if let Some(inner) = &self.inner {
            inner.state_flatten(&format!("{prefix}.inner"), out);
        }
        for (leaf, mask) in [("mask", &self.mask), ("ever_active", &self.ever_active)] {
            let bytes: Vec<u8> = mask.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            let length = bytes.len();
            out.push_tensor(prefix, leaf, TensorData::new(bytes, [length]));
        }
        if let Some(grad) = &self.dense_grad {
            out.push_tensor(prefix, "dense_grad", grad.to_data());
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
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let integer = |src: &mut StateSource, leaf| u64::try_from(src.take_scalar(prefix, leaf)?).ok();
        let neurons = usize::try_from(integer(src, "neurons")?).ok()?;
        let dense_fan_in = usize::try_from(integer(src, "dense_fan_in")?).ok()?;
        let mask = |src: &mut StateSource, leaf| {
            let bytes = src.take_tensor(prefix, leaf)?.try_into_vec::<u8>().ok()?;
            let words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
            Mask::from_words(neurons, dense_fan_in, words.collect()).ok()
        };
        let schedule = UpdateSchedule {
            delta_t: integer(src, "delta_t")?,
            drop_fraction: f64::try_from(src.take_scalar(prefix, "drop_fraction")?).ok()?,
            end_step: integer(src, "end_step")?,
            grad_accumulation: integer(src, "grad_accumulation")?,
        };
        schedule.validate().ok()?;
        let inner = match integer(src, "has_inner")? {
            0 => None,
            _ => Some(S::state_unflatten(&format!("{prefix}.inner"), src, device)?),
        };
        Some(Self {
            inner,
            mask: mask(src, "mask")?,
            ever_active: mask(src, "ever_active")?,
            step: integer(src, "step")?,
            seed: integer(src, "seed")?,
            schedule,
            dense_grad: src
                .take_tensor(prefix, "dense_grad")
                .filter(|data| data.rank() == D)
                .map(|data| Tensor::from_data(data, device)),
            inactive: None,
        })
    }
}
