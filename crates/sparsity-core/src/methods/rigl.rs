//! RigL (Evci et al. 2020, arXiv 1911.11134): drop the smallest weights of a layer, grow where the gradient is largest.

use super::unstructured::{drop_smallest, dropped};
use super::{AnyMethod, Gradients, Growth, Kept, Method, MethodInfo, Nm, Updates, Variant};
use crate::topology::ActiveLayer;

/// Drop by magnitude, grow by gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rigl;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Drop by magnitude, grow by gradient",
    updates: Updates::Scheduled,
    gradients: Gradients::Dense,
    nm: Nm::Allowed,
    variants: &[Variant { name: "rigl", label: "RigL", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Rigl)),
    ..MethodInfo::new("rigl")
};

impl Method for Rigl {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    /// Keeps the top `n − K` active weights by |W|; the top `K = ⌊n·α_t⌋` of |G| among the rest grow.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        Some(Kept { mask: drop_smallest(layer, dropped(layer.mask, alpha)), growth: Growth::Gradient })
    }
}
