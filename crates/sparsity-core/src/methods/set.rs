//! SET (Mocanu et al. 2018): drop the smallest weights of a layer, grow at random.

use super::unstructured::{drop_smallest, dropped};
use super::{AnyMethod, Growth, Kept, Method, MethodInfo, Nm, Updates, Variant};
use crate::topology::ActiveLayer;

/// Drop by magnitude, grow at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Drop by magnitude, grow at random",
    updates: Updates::Scheduled,
    nm: Nm::Allowed,
    variants: &[Variant { name: "set", label: "SET", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Set)),
    ..MethodInfo::new("set")
};

impl Method for Set {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    /// Keeps the top `n − K` active weights by |W|; `K = ⌊n·α_t⌋` others grow at random.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        Some(Kept { mask: drop_smallest(layer, dropped(layer.mask, alpha)), growth: Growth::Random })
    }
}
