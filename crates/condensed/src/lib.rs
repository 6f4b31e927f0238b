//! Sparse networks in condensed form: storage, CPU kernels, and an engine for whole networks.
//!
//! A layer trained with SRigL has a constant fan-in: every active neuron has the same number `k` of
//! weights. [`CondensedWeight`] stores such a matrix as values and input indices `[active neurons, k]`;
//! [`LinearKernel`] and [`ConvKernel`] run it, and [`Engine`] runs whole [`Network`]s.
//!
//! ```
//! use condensed::{CondensedWeight, LinearKernel};
//!
//! // Two neurons of three inputs, fan-in 1.
//! let weight = CondensedWeight::from_masked(
//!     &[0.0, 2.0, 0.0, 0.0, 0.0, 3.0],
//!     &[false, true, false, false, false, true],
//!     2,
//!     3,
//! )?;
//! let layer = LinearKernel::new(&weight, &[0.5, 0.0])?;
//! let mut y = [0.0; 2];
//! layer.run(1, &[1.0, 1.0, 1.0], &mut y);
//! assert_eq!(y, [2.5, 3.0]);
//! # Ok::<(), condensed::Error>(())
//! ```

mod buffer;
mod engine;
mod error;
pub mod file;
mod fold;
mod kernels;
mod layers;
mod math;
mod network;
pub mod ops;
mod planes;
mod shape;
pub mod training;
mod tuning;
mod weight;

pub use engine::Engine;
pub use error::{Error, FileError, NodeError, TensorError, WeightError};
pub use file::{from_bytes, load, save, to_bytes};
pub use kernels::Isa;
pub use layers::{ConvKernel, LinearKernel};
pub use network::{Network, Node};
pub use ops::Op;
pub use shape::{Shape, Window};
pub use weight::{CondensedWeight, FanIn, Indices, Pattern, Weight};
