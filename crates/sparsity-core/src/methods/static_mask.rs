//! Static sparse training: the initial mask forever.

use super::{AnyMethod, Method, MethodInfo, Needs, Variant};
use crate::{Error, Layer, LayerSpec, Mask, Stream, unstructured_mask};

/// A random unstructured mask that never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticMask;

pub(super) static INFO: MethodInfo = MethodInfo {
    name: "static",
    about: "A random unstructured mask that never changes",
    needs: Needs { sparsity: true, updates: false, dense_gradients: false },
    constant_fan_in: false,
    settings: &[],
    variants: &[Variant { name: "static", label: "static", settings: &[], flag: None }],
    build: |_| AnyMethod::from(StaticMask),
};

impl Method for StaticMask {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        unstructured_mask(layer, sparsity, stream)
    }

    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(layer.mask.clone())
    }
}
