//! Run folders of sparse training: what their files hold, and the one way to read and write them.
//!
//! [`mod@file`] has their names and what is in them.
//!
//! [`RunFolder`] makes and finds them, [`Run::read`] reads a whole folder with suspicion, and [`atomic`] writes files
//! that are whole or absent. No tensor library.

#![forbid(unsafe_code)]

pub mod atomic;
mod config;
mod error;
pub mod exact;
pub mod file;
mod folder;
mod inputs;
mod lines;
mod lock;
mod masks;
mod method;
pub mod print;
mod read;
mod schema;
mod store;

pub use config::{
    Config, Extension, InitialMaskFrom, LrSchedule, ModelArgs, OptimizerName, Steps, Storage,
    check_initial_mask, check_sparsity, check_threads, differing_setting, named_parser,
};
pub use error::Error;
pub use folder::{Damage, Found, RunFolder};
pub use inputs::Inputs;
pub use lines::{JsonLines, LogEnd};
pub use lock::Lock;
pub use masks::mask_line;
pub use method::MethodArgs;
pub use read::{Layer, Run};
pub use schema::{DataUsed, Epoch, LayerResult, MaskLine, Picture, RunResult, StartedFrom, TopologyLine};
pub use store::{FileLayer, LayerNames, Store, Tensor, mask_name, printable, read_file, zeros_tell_a_mask};
