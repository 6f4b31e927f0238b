//! MEST (Yuan et al. 2021, arXiv 2110.14032), with elastic mutation: drop by weight and gradient, grow at random, less and less.

use super::unstructured::{drop_least, dropped};
use super::{
    AnyMethod, Gradients, Growth, Kept, Method, MethodInfo, Nm, Setting, SettingKind, Settings, Updates,
    Variant,
};
use crate::Error;
use crate::topology::ActiveLayer;
use rayon::prelude::*;

/// Drop the least |W| + λ·|G|, grow at random. Gradients of active weights are all it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mest {
    /// `λ`: what a gradient counts beside a weight.
    pub lambda: f64,
}

/// Ours: we know of none in the paper, and the authors' code has 0 unless told otherwise.
const LAMBDA: f64 = 0.01;

impl Default for Mest {
    /// `λ` = 0.01.
    fn default() -> Self {
        Self { lambda: LAMBDA }
    }
}

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Drop by weight and gradient, grow at random",
    updates: Updates::Scheduled,
    gradients: Gradients::Active,
    nm: Nm::Allowed,
    settings: &[Setting {
        name: "mest_lambda",
        about: "What |G| counts beside |W| when weights are dropped",
        kind: SettingKind::Number(LAMBDA),
    }],
    variants: &[Variant { name: "mest", label: "MEST", settings: &[], flag: None }],
    build: Some(|settings| AnyMethod::from(Mest { lambda: settings.number("mest_lambda", LAMBDA) })),
    ..MethodInfo::new("mest")
};

impl Method for Mest {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn settings(&self) -> Settings {
        Settings::of([("mest_lambda", self.lambda.into())])
    }

    fn check(&self) -> Result<(), Error> {
        // As it is used.
        if (self.lambda as f32).is_finite() && self.lambda >= 0.0 {
            return Ok(());
        }
        Err(Error::Setting { name: "mest_lambda", value: self.lambda, allowed: "0 or more" })
    }

    /// Keeps the top `n − K` active weights by |W| + λ·|G|; `K = ⌊n·α_t⌋` others grow at random.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        let lambda = self.lambda as f32;
        let score = |(value, grad): (&f32, &f32)| value.abs() + lambda * grad.abs();
        let scores: Vec<f32> = layer.values.par_iter().zip(layer.grads).map(score).collect();
        let mask = drop_least(layer, &scores, dropped(layer.mask, alpha));
        Some(Kept { mask, growth: Growth::Random })
    }
}
