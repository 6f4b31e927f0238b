//! No sparsity: the baseline, under a name like the others.

use super::{AnyMethod, Method, MethodInfo, Needs, Variant};
use crate::{Error, Layer, LayerSpec, Mask, Stream};

/// No sparsity: every weight is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dense;

pub(super) static INFO: MethodInfo = MethodInfo {
    name: "dense",
    about: "No sparsity",
    needs: Needs { sparsity: false, updates: false, dense_gradients: false },
    constant_fan_in: true,
    settings: &[],
    variants: &[Variant { name: "dense", label: "dense", settings: &[], flag: None }],
    build: |_| AnyMethod::from(Dense),
};

impl Method for Dense {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, _sparsity: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(Mask::full(layer.neurons(), layer.dense_fan_in()))
    }

    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(layer.mask.clone())
    }
}
