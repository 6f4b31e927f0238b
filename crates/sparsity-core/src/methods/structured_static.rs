//! Static sparse training with a structure: each neuron keeps the inputs it has drawn.

use super::{AnyMethod, Method, MethodInfo, Needs, Variant};
use crate::{Error, Layer, LayerSpec, Mask, Stream, constant_fan_in_mask};

/// A random mask with constant fan-in that never changes (an option of the authors' code).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StructuredStatic;

pub(super) static INFO: MethodInfo = MethodInfo {
    name: "structured-static",
    about: "A random mask with constant fan-in that never changes",
    needs: Needs { sparsity: true, updates: false, dense_gradients: false },
    constant_fan_in: true,
    settings: &[],
    variants: &[Variant { name: "structured-static", label: "structured static", settings: &[], flag: None }],
    build: |_| AnyMethod::from(StructuredStatic),
};

impl Method for StructuredStatic {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        Ok(constant_fan_in_mask(layer, sparsity, stream)?.into_mask())
    }

    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(layer.mask.clone())
    }
}
