//! A window on the topology of a model in training.

use sparsity_core::{Error, LayerStats, Mask, UpdateReport, itop_rate};
use std::sync::{Arc, Mutex, MutexGuard};

/// Follows the topology while the optimizer updates it: a cheap handle, shared by all its clones.
#[derive(Clone, Debug)]
pub struct Topology(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    layers: Vec<TopologyLayer>,
    events: Vec<TopologyEvent>,
}

/// One sparse layer.
#[derive(Clone, Debug)]
pub struct TopologyLayer {
    /// Module path, such as `encoder.fc1`.
    pub name: String,
    /// Target sparsity; 0 for a layer kept dense.
    pub sparsity: f64,
    /// The present mask `[N, M]`, rows are neurons.
    pub mask: Mask,
    /// Every position that has been active at least once.
    pub ever_active: Mask,
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
        Self(Arc::new(Mutex::new(State { layers, events: Vec::new() })))
    }

    /// All layers that count towards the global sparsity, in the order of the module's fields.
    ///
    /// After a record is loaded into the optimizer, its masks show here from the next step on.
    pub fn layers(&self) -> Vec<TopologyLayer> {
        self.lock().layers.clone()
    }

    /// Takes the updates made since the last call, oldest first.
    pub fn drain_events(&self) -> Vec<TopologyEvent> {
        std::mem::take(&mut self.lock().events)
    }

    /// Share of zeros over all layers; 0 for dense training, which has none here.
    pub fn sparsity(&self) -> f64 {
        let state = self.lock();
        let total: usize = state.layers.iter().map(|l| l.mask.positions()).sum();
        let nnz: usize = state.layers.iter().map(|l| l.mask.nnz()).sum();
        (total - nnz) as f64 / total.max(1) as f64
    }

    pub(crate) fn publish(&self, index: usize, mask: &Mask, ever_active: &Mask) {
        let layer = &mut self.lock().layers[index];
        layer.mask.clone_from(mask);
        layer.ever_active.clone_from(ever_active);
    }

    pub(crate) fn record(&self, event: TopologyEvent) {
        self.lock().events.push(event);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the masks half-written: they are replaced whole.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
