//! Static sparse training: the initial mask forever. With random masks over trained weights, random pruning: the control of
//! pruning methods.

use super::{AnyMethod, Method, MethodInfo, Nm, Variant};

/// A random unstructured mask that never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaticMask;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "A random unstructured mask that never changes",
    nm: Nm::Allowed,
    variants: &[Variant { name: "static", label: "static", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(StaticMask)),
    ..MethodInfo::new("static")
};

impl Method for StaticMask {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }
}
