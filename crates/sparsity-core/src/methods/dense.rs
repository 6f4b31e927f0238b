//! No sparsity: the baseline, under a name like the others.

use super::{AnyMethod, Method, MethodInfo, Variant};
use crate::{Error, LayerSpec, Mask, Stream};

/// No sparsity: every weight is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dense;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "No sparsity",
    sparse: false,
    constant_fan_in: true,
    variants: &[Variant { name: "dense", label: "dense", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Dense)),
    ..MethodInfo::new("dense")
};

impl Method for Dense {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, _sparsity: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(Mask::full(layer.neurons(), layer.dense_fan_in()))
    }
}
