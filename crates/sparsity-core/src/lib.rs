//! Masks, layer sparsities, schedules and topology updates for dynamic sparse training: SRigL (constant fan-in
//! and neuron ablation, Lasby et al., ICLR 2024), RigL, SET and others ([`methods`]), with N:M patterns ([`NmPattern`]) or
//! neurons that share their inputs. Masks start at random or from given weights.
//!
//! Slices in, masks out: there is no tensor library here, so any framework can use it. A weight tensor is a
//! row-major slice `[N, M]` whose rows are neurons: a linear layer `[out, in]` or a convolution
//! `[out, in·kh·kw]`, as PyTorch and candle store them. (Frameworks that store `[in, out]` transpose first.)
//!
//! ```
//! use sparsity_core::{Distribution, Layer, LayerSpec, Stream, UpdateSchedule, WeightInit, methods::Srigl};
//! use sparsity_core::{initial_mask, initialise_weights, layer_sparsities, settle_weights, update_topology};
//!
//! # fn main() -> Result<(), sparsity_core::Error> {
//! // 1. Share a global sparsity of 90 % among the layers.
//! let specs = [LayerSpec::new("fc1", [100, 784])?, LayerSpec::new("fc2", [10, 100])?];
//! let sparsities = layer_sparsities(&specs, 0.9, Distribution::default())?;
//!
//! // 2. Random masks with constant fan-in, and weights that know about them.
//! let method = Srigl::default();
//! let mut masks = Vec::new();
//! let mut weights: Vec<Vec<f32>> = specs.iter().map(|s| vec![0.0; s.weights()]).collect();
//! for (i, spec) in specs.iter().enumerate() {
//!     let stream = Stream { seed: 1, layer: i as u64, step: 0 };
//!     masks.push(initial_mask(&method, spec, sparsities[i], stream)?);
//!     initialise_weights(&mut weights[i], &masks[i], WeightInit::default(), stream);
//! }
//!
//! // 3. Train: multiply gradients by the mask before each optimizer step …
//! let schedule = UpdateSchedule::new(750);
//! for step in 1..=1000 {
//!     // … and every ΔT steps, update all topologies from the weights and the dense gradients.
//!     if schedule.is_update(step) {
//!         let grads: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.1; w.len()]).collect(); // yours
//!         let layers: Vec<Layer> = (0..specs.len())
//!             .map(|i| Layer {
//!                 name: &specs[i].name,
//!                 weights: &weights[i],
//!                 grads: &grads[i],
//!                 mask: &masks[i],
//!                 sparsity: sparsities[i],
//!                 ablate: i + 1 < specs.len(), // not the classifier
//!             })
//!             .collect();
//!         let updates = update_topology(&method, schedule.drop_fraction_at(step), &layers, 1, step)?;
//!         for (i, update) in updates.into_iter().enumerate() {
//!             settle_weights(&mut weights[i], &masks[i], &update.mask);
//!             masks[i] = update.mask;
//!         }
//!     }
//! }
//! assert!((1.0 - masks[0].density() - sparsities[0]).abs() < 0.01);
//! # Ok(())
//! # }
//! ```
//!
//! Updates are pure functions: the same weights, gradients, masks, settings and seed give the same masks
//! for any number of threads.

#![forbid(unsafe_code)]

mod distribution;
mod error;
mod init;
mod mask;
pub mod methods;
mod nm;
mod random;
mod rows;
mod schedule;
mod select;
mod structure;
mod topology;

pub mod counting;
pub mod variance;

pub use distribution::{Distribution, LayerSpec, layer_sparsities};
pub use error::Error;
pub use init::{
    InitialMask, WeightInit, constant_fan_in_magnitude_mask, constant_fan_in_mask,
    global_magnitude_sparsities, initialise_weights, magnitude_mask, sparsity_of_count, target_weights,
    unstructured_mask,
};
pub use mask::{ConstantFanInMask, Mask};
pub use methods::{AnyMethod, METHODS, Method};
pub use nm::NmPattern;
pub use random::{Purpose, Stream};
pub use rows::{random_row, rigl_row, set_row};
pub use schedule::{DropSchedule, UpdateSchedule};
pub use structure::{Structure, StructureOfRows};
pub use topology::{
    ActiveLayer, DenseGradient, Layer, LayerStats, Members, Update, UpdateReport, initial_mask,
    initial_mask_by_magnitude, initial_masks, itop_rate, method_sparsities, redistributed_sparsities,
    settle_weights, sparsities_of_shares, update_active_layer, update_layer, update_topology,
};
