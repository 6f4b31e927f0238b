//! SET (Mocanu et al. 2018): drop the smallest weights of a layer, grow at random.

use super::unstructured::{drop_smallest, dropped, grow_at_random};
use super::{AnyMethod, Method, MethodInfo, Needs, Variant};
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, LayerSpec, Mask, Stream, unstructured_mask};

/// Drop by magnitude, grow at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set;

pub(super) static INFO: MethodInfo = MethodInfo {
    name: "set",
    about: "Drop by magnitude, grow at random",
    needs: Needs { sparsity: true, updates: true, dense_gradients: false },
    constant_fan_in: false,
    settings: &[],
    variants: &[Variant { name: "set", label: "SET", settings: &[], flag: None }],
    build: |_| AnyMethod::from(Set),
};

impl Method for Set {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        unstructured_mask(layer, sparsity, stream)
    }

    /// Keeps the top `n − K` active weights by |W| and grows `K = ⌊n·α_t⌋` others at random.
    fn update_active(
        &self,
        layer: &ActiveLayer,
        _gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let k = dropped(layer.mask, alpha);
        let mut mask = drop_smallest(layer, k);
        grow_at_random(&mut mask, stream, k);
        Some(Ok(mask))
    }
}
