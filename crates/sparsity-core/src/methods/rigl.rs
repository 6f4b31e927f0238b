//! RigL (Evci et al. 2020, arXiv 1911.11134): drop the smallest weights of a layer, grow where the gradient is largest.

use super::unstructured::{drop_smallest, dropped, grow_largest_gradients};
use super::{AnyMethod, Method, MethodInfo, Needs, Variant};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, LayerSpec, Mask, Stream, unstructured_mask};

/// Drop by magnitude, grow by gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rigl;

pub(super) static INFO: MethodInfo = MethodInfo {
    name: "rigl",
    about: "Drop by magnitude, grow by gradient",
    needs: Needs { sparsity: true, updates: true, dense_gradients: true },
    constant_fan_in: false,
    settings: &[],
    variants: &[Variant { name: "rigl", label: "RigL", settings: &[], flag: None }],
    build: |_| AnyMethod::from(Rigl),
};

impl Method for Rigl {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        unstructured_mask(layer, sparsity, stream)
    }

    /// Keeps the top `n − K` active weights by |W| and grows the top `K = ⌊n·α_t⌋` of |G| among the rest.
    fn update_active(
        &self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        alpha: f64,
        _stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let k = dropped(layer.mask, alpha);
        let mut mask = drop_smallest(layer, k);
        Some(grow_largest_gradients(layer, &mut mask, gradient, k).map(|()| mask))
    }
}
