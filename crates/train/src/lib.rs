//! Sparse training as a library: what `srigl train` does, for programs.
//!
//! A [`Session`] trains a [`Config`](srigl_run::Config) into a run folder and goes on where it was interrupted, bit for bit.
//! [`Weights`] are those of a file of any framework; [`fill_module`] puts them into a Burn module and
//! [`condense`] makes a condensed network of them.
//!
//! ```no_run
//! use srigl_run::{Config, RunFolder};
//! use srigl_train::{Session, Silent};
//!
//! # fn main() -> anyhow::Result<()> {
//! let folder = std::path::Path::new("runs/first");
//! let (_, config) = RunFolder::existing(folder)?;
//! let source = srigl_data::open(config.dataset, None, false)?;
//! let loader = config.loader(source, 0)?;
//! let (folder, config) = RunFolder::open(folder, &config, true)?;
//! let session =
//!     Session { config: &config, folder: &folder, loader: &loader, device: "flex", extend_to: None };
//! let result = session.train(&mut Silent)?;
//! println!("{:.2} %", 100.0 * result.test_accuracy);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod batches;
mod checkpoint;
pub mod device;
pub mod memory;
mod optimizers;
mod session;
mod start;
mod weights;

pub use batches::{Accuracy, evaluate};
pub use checkpoint::{Checkpoint, Latest, Progress};
pub use optimizers::{Masks, model_spec, sparsify, sparsity_config};
pub use session::{Observer, Session, Silent, Standing};
pub use weights::{Model, NamedTensor, Weights, condense, fill_module, masks_of, model_tensors};
