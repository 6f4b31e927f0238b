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
    /// Somebody holds a handle to drain events with.
    observed: bool,
    /// Counts changes of masks.
    version: u64,
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
        Self(Arc::new(Mutex::new(State { layers, events: Vec::new(), observed: false, version: 0 })))
    }

    /// From now on events are kept until they are drained.
    pub(crate) fn observe(&self) {
        self.lock().observed = true;
    }

    /// All layers that count towards the global sparsity, in the order of the module's fields.
    ///
    /// After a record is loaded into the optimizer, its masks show here from the next step on, or at once with
    /// [`restore`](Self::restore).
    pub fn layers(&self) -> Vec<TopologyLayer> {
        self.lock().layers.clone()
    }

    /// The masks of all layers as bytes, for a checkpoint beside the optimizer's record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = self.lock();
        let masks = state.layers.iter().flat_map(|layer| [&layer.mask, &layer.ever_active]);
        masks.flat_map(|mask| mask.words()).flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Shows the masks of [`to_bytes`](Self::to_bytes). The optimizer has its own, from its record.
    ///
    /// # Errors
    /// If the bytes are not those of a topology of the same layers; nothing changes then.
    pub fn restore(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = self.lock();
        let mut words = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
        let mut masks = Vec::new();
        for layer in &state.layers {
            for mask in [&layer.mask, &layer.ever_active] {
                let words = words.by_ref().take(mask.words().len()).collect();
                masks.push(Mask::from_words(mask.neurons(), mask.dense_fan_in(), words)?);
            }
        }
        if words.next().is_some() || !bytes.len().is_multiple_of(8) {
            let (neurons, dense_fan_in) = (0, 0);
            return Err(Error::MaskSize { neurons, dense_fan_in, got: bytes.len() });
        }
        let mut masks = masks.into_iter();
        for layer in &mut state.layers {
            layer.mask = masks.next().expect("two masks a layer");
            layer.ever_active = masks.next().expect("two masks a layer");
        }
        state.version += 1;
        Ok(())
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
        let mut state = self.lock();
        let layer = &mut state.layers[index];
        layer.mask.clone_from(mask);
        layer.ever_active.clone_from(ever_active);
        state.version += 1;
    }

    /// Counts the changes of masks so far.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The mask of a layer, unless it is dense.
    pub(crate) fn sparse_mask(&self, name: &str) -> Option<Mask> {
        let state = self.lock();
        let layer = state.layers.iter().find(|layer| layer.name == name)?;
        (layer.sparsity > 0.0).then(|| layer.mask.clone())
    }

    pub(crate) fn record(&self, event: TopologyEvent) {
        let mut state = self.lock();
        if state.observed {
            state.events.push(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the masks half-written: they are replaced whole.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
