//! The extension module `srigl._native`: what the Python package `srigl` computes in Rust.
//!
//! Arrays come in as flat, contiguous NumPy arrays (the package sees to that), and no data is copied on the way. Python's lock
//! is released while something is computed.

mod engine;
mod layer;
mod masks;
mod threads;

use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

create_exception!(srigl, Error, PyValueError, "What does not fit: a setting, a shape, a layer or a file.");

/// An error of this package's own, with the text of a library's.
fn refused(error: impl std::fmt::Display) -> PyErr {
    Error::new_err(error.to_string())
}

/// An error of a condensed network: of files that cannot be read or written Python's own.
fn refused_network(error: condensed::Error) -> PyErr {
    match error {
        condensed::Error::Read { .. } | condensed::Error::Write { .. } => {
            PyOSError::new_err(error.to_string())
        }
        _ => refused(error),
    }
}

/// See the crate.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::Error;
    #[pymodule_export]
    use super::engine::{Engine, Network};
    #[pymodule_export]
    use super::layer::TrainingLayer;
    #[pymodule_export]
    use super::masks::{
        Method, UpdateSchedule, inference_cost, initial_masks, initial_weights, layer_sparsities,
        layer_stats, matching, methods, target_sparsity, training_flops, update,
    };
}
