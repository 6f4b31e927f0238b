//! One-shot magnitude pruning over all layers together, which also shares the sparsity among them.

use super::{AnyMethod, Method, MethodInfo, Variant};
use crate::{Error, InitialMask, LayerSpec, Mask, Stream, unstructured_mask};

/// The largest |W| of all layers, forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalMagnitude;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "The largest initial weights of all layers together, forever",
    initial: InitialMask::GlobalMagnitude,
    variants: &[Variant { name: "global-magnitude", label: "global magnitude", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(GlobalMagnitude)),
    ..MethodInfo::new("global-magnitude")
};

impl Method for GlobalMagnitude {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        unstructured_mask(layer, sparsity, stream)
    }
}
