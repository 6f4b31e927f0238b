//! The data sets, from `srigl-data`, and the command that looks at them.

pub mod command;

pub use srigl_data::*;
