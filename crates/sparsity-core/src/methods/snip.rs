//! SNIP (Lee et al. 2019, arXiv 1810.02340): before the first step, the weights with the largest |W · ∂L/∂W| on one batch stay, over all
//! layers together.

use super::{AnyMethod, Method, MethodInfo, Variant};
use crate::InitialMask;

/// The weights that a first batch is most sensitive to, forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snip;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "The weights that a first batch is most sensitive to, forever",
    initial: InitialMask::Sensitivity,
    variants: &[Variant { name: "snip", label: "SNIP", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Snip)),
    ..MethodInfo::new("snip")
};

impl Method for Snip {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }
}
