//! A window on the topology of a model in training.

use burn::tensor::Tensor;
use sparsity_core::methods::{GradientPositions, LayerShare};
use sparsity_core::{Error, LayerStats, Mask, UpdateReport, itop_rate};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Follows the topology while the optimizer updates it: a cheap handle, shared by all its clones.
///
/// The masks themselves belong to the optimizer's state; this points to the latest.
#[derive(Clone, Debug)]
pub struct Topology(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    layers: Vec<TopologyLayer>,
    /// Where events go.
    observers: Vec<Weak<Mutex<Vec<TopologyEvent>>>>,
    /// Counts changes of masks.
    version: u64,
    /// By which factor the gradients of the step under way were clipped, for each layer until its optimizer has it.
    clipped_by: Vec<Option<Tensor<1>>>,
    /// Layers whose failed updates have been told.
    warned: BTreeSet<String>,
    /// What sparse layers have told of themselves after their last two steps before updates that redistribute weights, and after which.
    shares: Vec<[Option<(u64, LayerShare)>; 2]>,
    /// The sparsities of sparse layers after the last such update's step, if it could be worked out: the same for all of them.
    redistributed: Option<(u64, Option<Vec<f64>>)>,
    /// The positions that get gradient, where these are others than those of the mask.
    gradient: Vec<Option<GradientPositions>>,
}

/// One sparse layer.
#[derive(Clone, Debug)]
pub struct TopologyLayer {
    /// Module path, such as `encoder.fc1`.
    pub name: String,
    /// Target sparsity; 0 for a layer kept dense.
    pub sparsity: f64,
    /// The present mask `[N, M]`, rows are neurons.
    pub mask: Arc<Mask>,
    /// Every position that has been active at least once.
    pub ever_active: Arc<Mask>,
    /// Whether it trains in condensed form.
    pub condensed: bool,
}

/// Topology updates since [`Topology::updates`] was called, for whoever holds this.
#[derive(Debug)]
pub struct Updates(Arc<Mutex<Vec<TopologyEvent>>>);

impl Updates {
    /// Takes the updates made since the last call, oldest first.
    pub fn drain(&self) -> Vec<TopologyEvent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TopologyLayer {
    /// Counts the present mask.
    pub fn stats(&self) -> LayerStats {
        LayerStats::new(&self.mask)
    }

    /// Share of positions that have been active at least once.
    pub fn itop(&self) -> f64 {
        itop_rate(&self.ever_active)
    }
}

/// One topology update of one layer.
#[derive(Clone, Debug)]
pub struct TopologyEvent {
    /// Optimizer step, counting from 1.
    pub step: u64,
    /// Module path of the layer.
    pub layer: String,
    /// What changed; or why the layer kept its mask this time (weights or gradients that are not finite).
    pub report: Result<UpdateReport, Error>,
    /// The layer's ITOP rate after the update.
    pub itop: f64,
}

impl Topology {
    pub(crate) fn new(layers: Vec<TopologyLayer>) -> Self {
        let clipped_by = vec![None; layers.len()];
        let state = State {
            observers: Vec::new(),
            version: 0,
            clipped_by,
            warned: BTreeSet::new(),
            shares: vec![[None; 2]; layers.len()],
            redistributed: None,
            gradient: vec![None; layers.len()],
            layers,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The updates from now on, for as long as the result lives. Without it, updates that fail are told on standard error.
    ///
    /// ```
    /// # fn main() -> Result<(), srigl_burn::Error> {
    /// # use burn::{nn::LinearConfig, optim::SgdConfig, tensor::Device};
    /// # let net = LinearConfig::new(64, 10).init(&Device::flex().autodiff());
    /// # let sparse = srigl_burn::SparsityConfig::new(0.5, 75).sparsify(net, SgdConfig::new().build())?;
    /// let updates = sparse.topology.updates();
    /// // … train …
    /// for event in updates.drain() {
    ///     match event.report {
    ///         Ok(report) => println!("{}: {} weights grown", event.layer, report.grown),
    ///         Err(error) => println!("the mask stayed as it was: {error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn updates(&self) -> Updates {
        let events = Arc::default();
        self.lock().observers.push(Arc::downgrade(&events));
        Updates(events)
    }

    /// All layers that count towards the global sparsity, in the order of the module's fields.
    ///
    /// After [`Sparsified::load_records`](crate::Sparsified::load_records) these are the masks of the record. Where Burn's
    /// `Learner` loads one, they are from the next step on.
    pub fn layers(&self) -> Vec<TopologyLayer> {
        self.lock().layers.clone()
    }

    /// Share of zeros over all layers; 0 for dense training, which has none here.
    pub fn sparsity(&self) -> f64 {
        let state = self.lock();
        let total: usize = state.layers.iter().map(|l| l.mask.positions()).sum();
        let nnz: usize = state.layers.iter().map(|l| l.mask.nnz()).sum();
        (total - nnz) as f64 / total.max(1) as f64
    }

    /// Points to the masks of the layer `index`.
    pub(crate) fn publish(&self, index: usize, mask: &Arc<Mask>, ever_active: &Arc<Mask>) {
        let mut state = self.lock();
        let layer = &mut state.layers[index];
        layer.mask.clone_from(mask);
        layer.ever_active.clone_from(ever_active);
        state.version += 1;
    }

    /// Whether this is the mask of the layer `index` already.
    pub(crate) fn shows(&self, index: usize, mask: &Arc<Mask>) -> bool {
        Arc::ptr_eq(&self.lock().layers[index].mask, mask)
    }

    /// Counts the changes of masks so far.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The mask of a layer, unless it is dense.
    pub(crate) fn sparse_mask(&self, name: &str) -> Option<Arc<Mask>> {
        let state = self.lock();
        let layer = state.layers.iter().find(|layer| layer.name == name)?;
        (layer.sparsity > 0.0).then(|| layer.mask.clone())
    }

    /// Tells the optimizers of all layers by which factor `[1]` their next gradients are scaled.
    pub(crate) fn clipped(&self, factor: &Tensor<1>) {
        self.lock().clipped_by.iter_mut().for_each(|clipped| *clipped = Some(factor.clone()));
    }

    /// The factor by which the gradient of the layer `index` was scaled, if it was.
    pub(crate) fn take_clipped(&self, index: usize) -> Option<Tensor<1>> {
        self.lock().clipped_by[index].take()
    }

    /// What the layer `index` is after a step before an update, for the others.
    pub(crate) fn share(&self, index: usize, step: u64, share: LayerShare) {
        let shares = &mut self.lock().shares[index];
        *shares = [Some((step, share)), shares[0].filter(|(other, _)| *other != step)];
    }

    /// The sparsity of the layer `index` after the update of a step, by what all sparse layers have told after the step before; `None` if
    /// one has not. `redistribute` is called for the first layer that asks.
    pub(crate) fn redistributed(
        &self,
        index: usize,
        step: u64,
        redistribute: impl FnOnce(&[LayerShare]) -> Option<Vec<f64>>,
    ) -> Option<f64> {
        let mut state = self.lock();
        let sparse: Vec<usize> =
            (0..state.layers.len()).filter(|i| state.layers[*i].sparsity > 0.0).collect();
        if state.redistributed.as_ref().is_none_or(|(of, _)| *of != step) {
            let told = |i: &usize| {
                let of_step = state.shares[*i].iter().flatten().find(|(of, _)| of + 1 == step);
                of_step.map(|(_, share)| *share)
            };
            let shares: Option<Vec<LayerShare>> = sparse.iter().map(told).collect();
            state.redistributed = Some((step, shares.and_then(|shares| redistribute(&shares))));
        }
        let place = sparse.iter().position(|i| *i == index)?;
        let (_, sparsities) = state.redistributed.as_ref()?;
        sparsities.as_ref().and_then(|all| all.get(place)).copied()
    }

    /// The positions of the layer `index` that get gradient from now on.
    pub(crate) fn publish_gradient(&self, index: usize, positions: &GradientPositions) {
        let mut state = self.lock();
        state.gradient[index] = (*positions != GradientPositions::Active).then(|| positions.clone());
        state.version += 1;
    }

    /// The mask of the positions of a layer that get gradient, unless all do.
    pub(crate) fn gradient_mask(&self, name: &str) -> Option<Arc<Mask>> {
        let state = self.lock();
        let index = state.layers.iter().position(|layer| layer.name == name && layer.sparsity > 0.0)?;
        match &state.gradient[index] {
            None | Some(GradientPositions::Active) => Some(state.layers[index].mask.clone()),
            Some(GradientPositions::Superset(mask)) => Some(Arc::new(mask.clone())),
            Some(GradientPositions::All) => None,
        }
    }

    /// Tells all observers. A failed update that nobody observes is told on standard error, once for each layer: a training
    /// whose topology stands still should not look like one that works.
    pub(crate) fn record(&self, event: TopologyEvent) {
        let mut state = self.lock();
        state.observers.retain(|observer| {
            let Some(events) = observer.upgrade() else { return false };
            events.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
            true
        });
        if let Err(error) = &event.report
            && state.observers.is_empty()
            && state.warned.insert(event.layer.clone())
        {
            let step = event.step;
            srigl_tensors::say(&format_args!("warning: step {step}: {error}; the layer keeps its mask"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the masks half-written: they are replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Standard error cannot be read here; what decides about it can.
    #[test]
    fn a_failed_update_that_nobody_observes_is_told_once_for_each_layer() {
        let topology = Topology::new(Vec::new());
        let fail = |layer: &str| {
            let report = Err(Error::Sparsity(2.0));
            topology.record(TopologyEvent { step: 5, layer: layer.into(), report, itop: 0.0 });
            topology.lock().warned.iter().cloned().collect::<Vec<_>>()
        };
        let updates = topology.updates();
        assert!(fail("a").is_empty(), "its observer is told");
        assert_eq!(updates.drain().len(), 1);
        drop(updates);
        assert_eq!(fail("a"), ["a"]);
        assert_eq!(fail("b"), ["a", "b"]);
        assert_eq!(fail("a"), ["a", "b"]);
    }
}
