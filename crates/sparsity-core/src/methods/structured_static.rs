//! Static sparse training with a structure: each neuron keeps the inputs it has drawn.

use super::{AnyMethod, Method, MethodInfo, Nm, Variant};

/// A random mask with constant fan-in that never changes (an option of the authors' code).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StructuredStatic;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "A random mask with constant fan-in that never changes",
    constant_fan_in: true,
    nm: Nm::Allowed,
    variants: &[Variant { name: "structured-static", label: "structured static", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(StructuredStatic)),
    ..MethodInfo::new("structured-static")
};

impl Method for StructuredStatic {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }
}
