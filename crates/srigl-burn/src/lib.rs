//! Dynamic sparse training for [Burn](burn): train networks that are 80–99 % sparse from the first step.
//!
//! Two lines sparsify a training script. The model and the optimizer that come back are Burn's own, so the
//! training loop, gradient accumulation, records and Burn's `Learner` stay as they are:
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig, Relu};
//! use burn::optim::{GradientsParams, SgdConfig, momentum::MomentumConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use srigl_burn::{Sparsified, SparsityConfig};
//!
//! #[derive(Module, Debug)]
//! struct Net {
//!     fc1: Linear,
//!     fc2: Linear,
//! }
//!
//! # fn main() -> Result<(), srigl_burn::Error> {
//! let device = Device::flex().autodiff();
//! let net = Net {
//!     fc1: LinearConfig::new(64, 32).init(&device),
//!     fc2: LinearConfig::new(32, 10).init(&device),
//! };
//!
//! let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new())).build();
//! let srigl = SparsityConfig::new(0.8, 75).with_delta_t(10);
//! let Sparsified { model: mut net, mut optim, .. } = srigl.sparsify(net, sgd)?;
//!
//! for _ in 0..100 {
//!     let x = Tensor::<2>::random([16, 64], Distribution::Default, &device);
//!     let y = net.fc2.forward(Relu::new().forward(net.fc1.forward(x)));
//!     let grads = GradientsParams::from_grads(y.powf_scalar(2.0).mean().backward(), &net);
//!     net = optim.step(0.01, net, grads);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! After every `step` each inactive weight is exactly 0 and so are its optimizer moments; every `ΔT` steps the
//! topology is updated from the weights and the dense gradients. Masks, step count, schedule and random state are
//! part of the optimizer's record, so `optim.save(…)`/`optim.load(…)` resume them.
//!
//! To resume, build and `sparsify` again, then load both records with [`Sparsified::load_records`]. Gradient clipping
//! is set with [`SparsityConfig::with_grad_clipping`]: Burn's `build()` drops that of an optimizer's configuration, and
//! here it acts on the masked gradients.
//!
//! Other methods differ by the configuration alone: [`methods`] has them, and how to write one. N:M patterns and groups of neurons that
//! share their inputs are structures of a method: `AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR)`.
//!
//! [`SparseLinear`] and [`SparseConv2d`] in place of Burn's layers compute with active weights alone while they train, on CPUs and,
//! if asked, on GPUs: no dense weight or moment exists, and on CPUs a step takes a fraction of the time. [`fused`] has what lies between them.
//!
//! After training, [`CondensedLinear`] and [`CondensedConv2d`] run a sparse layer in condensed form, on the CPU and, with
//! the feature `cuda`, on GPUs: `CondensedLinear::from_linear(&net.fc1, &mask)`, with the masks of [`Topology::layers`].
//! [`CondensedNetwork`] runs a whole condensed file.

#![forbid(unsafe_code)]

mod active_weight;
mod clipping;
mod condensed_conv;
mod condensed_linear;
mod condensed_network;
mod condensed_ops;
mod config;
mod conv_geometry;
mod discover;
mod error;
mod export;
pub mod fused;
// Hidden, and public for the tests of the unpublished crate `gpu-rig` alone.
#[cfg(feature = "gpu")]
#[doc(hidden)]
pub mod gpu;
mod label_output;
mod layout;
mod lowering;
mod memory;
mod optimizer;
mod place;
mod records;
mod sparse_layers;
mod sparse_ops;
mod topology;

pub use clipping::NormClipping;
pub use condensed;
pub use condensed_conv::CondensedConv2d;
pub use condensed_linear::CondensedLinear;
pub use condensed_network::CondensedNetwork;
pub use config::{Sparsified, SparsityConfig};
pub use discover::sparse_layers;
pub use error::Error;
pub use export::{NamedTensor, state_dict};
pub use label_output::LabelOutput;
pub use lowering::{Lower, Lowering, Value, lower};
pub use optimizer::{SparseOptimizer, SparseState};
pub use records::dense_record;
pub use sparse_layers::{SparseConv2d, SparseLinear};
pub use sparsity_core;
pub use sparsity_core::methods::{self, AnyMethod};
pub use sparsity_core::{
    Distribution, DropSchedule, InitialMask, LayerSpec, LayerStats, Mask, NmPattern, UpdateReport, WeightInit,
};
pub use topology::{Topology, TopologyEvent, TopologyLayer, Updates};

// The README's Rust is tested with the examples here.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/from-pytorch.md")]
struct FromPytorch;
