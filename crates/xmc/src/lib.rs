//! Extreme classification: points with sparse features and a few of hundreds of thousands of labels, learned on one ordinary
//! machine.
//!
//! A [`Network`] adds up the rows of a point's features in an embedding, and its labels read a few of the sums each
//! ([`LabelLayer`](condensed::training::LabelLayer): constant fan-in, as Schultheis & Babbar 2023, arXiv 2306.03725, and Ullah et
//! al. 2024, arXiv 2411.03171, have it). [`Training`] moves what a batch touches alone, and gives labels other inputs, by SET or by gradient.
//! [`Points`] come from the extreme classification repository's text files, [`Rankings`] measures.
//!
//! ```
//! use srigl_xmc::{Network, NetworkConfig, Points, Training, TrainingConfig, synth};
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("train.txt");
//! let plan = synth::Plan { points: 500, features: 300, labels: 40, ..Default::default() };
//! plan.write(0, &mut std::fs::File::create(&file)?)?;
//! let points = Points::read(&file, |_| {})?;
//!
//! let config = TrainingConfig { epochs: 2, ..Default::default() };
//! let network = NetworkConfig { hidden: 64, fan_in: 16, ..Default::default() }.build(&points)?;
//! let mut training = Training::new(network, config, points.len())?;
//! while let Some(batch) = training.next() {
//!     let loss = training.step(&points.batch(&batch)?)?;
//!     assert!(loss.is_finite());
//! }
//! let best = training.network().top(5, &points.batch(&[0, 1])?)?;
//! assert_eq!((best.len(), best[0].len()), (2, 5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod data;
pub mod debian;
mod dense;
mod error;
mod file;
mod groups;
mod metrics;
mod network;
mod output;
mod run;
pub mod synth;
mod training;

pub use data::{Batch, Points};
pub use error::{Error, LineError};
pub use metrics::{Measured, Rankings, inverse_propensities};
pub use network::{Network, NetworkConfig};
pub use output::Output;
pub use run::{DataSet, Epoch, LoggedRun, Observer, Run, RunResult, Settings};
pub use training::{Growth, Training, TrainingConfig};
