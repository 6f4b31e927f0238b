//! One-shot magnitude pruning, layer by layer: the largest weights of each layer stay, whose weights are trained or as they were
//! drawn (a control of Frankle et al. 2021, arXiv 2009.08576).

use super::{AnyMethod, Method, MethodInfo, Nm, Variant};
use crate::InitialMask;

/// The largest |W| of each layer, forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Magnitude;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "The largest initial weights of each layer, forever",
    initial: InitialMask::Magnitude,
    nm: Nm::Allowed,
    variants: &[Variant { name: "magnitude", label: "magnitude", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Magnitude)),
    ..MethodInfo::new("magnitude")
};

impl Method for Magnitude {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }
}
