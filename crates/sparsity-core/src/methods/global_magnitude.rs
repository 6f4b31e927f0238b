//! One-shot magnitude pruning over all layers together, which also shares the sparsity among them.

use super::{AnyMethod, Method, MethodInfo, Variant};
use crate::InitialMask;

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
}
