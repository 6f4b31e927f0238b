//! Top-KAST (Jayakumar et al. 2020, arXiv 2106.03517): forward with the largest weights, gradient for a larger set of them.

use super::{
    AnyMethod, GradientPositions, Method, MethodInfo, Setting, SettingKind, Settings, Updates, Variant,
};
use crate::init::target_weights;
use crate::select::mark_largest;
use crate::topology::Layer;
use crate::{Error, InitialMask, Mask, Stream};

/// Forward with the set A of the `A` largest |W| of a layer, gradient for the set B of the `b·A` largest. The others keep their
/// values. No dense gradient is ever needed.
///
/// The weights of B that are not in A are decayed more strongly, by `λ/D` with the density `D` of A, so that they must be useful
/// to stay: the paper's exploration regulariser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopKast {
    /// `b`: weights of B for each of A, at least 1.
    pub backward: f64,
    /// `λ`: decay of weights in B but not in A, divided by the density of A.
    pub decay: f64,
}

/// As in the paper's runs of ResNet-50: 90 % sparse forward and 80 % backward, or 95 % and 90 %.
const BACKWARD: f64 = 2.0;
const DECAY: f64 = 1e-4;

impl Default for TopKast {
    /// `b` = 2 and `λ` = 10⁻⁴.
    fn default() -> Self {
        Self { backward: BACKWARD, decay: DECAY }
    }
}

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Forward with the largest weights, gradient for more of them",
    updates: Updates::Scheduled,
    initial: InitialMask::Magnitude,
    settings: &[
        Setting {
            name: "backward",
            about: "Weights that get gradient for each that the forward pass uses",
            kind: SettingKind::Number(BACKWARD),
        },
        Setting {
            name: "exploration_decay",
            about: "Decay of weights that get gradient and are not used, divided by the density of those that are",
            kind: SettingKind::Number(DECAY),
        },
    ],
    variants: &[Variant { name: "top-kast", label: "Top-KAST", settings: &[], flag: None }],
    build: Some(|settings| {
        AnyMethod::from(TopKast {
            backward: settings.number("backward", BACKWARD),
            decay: settings.number("exploration_decay", DECAY),
        })
    }),
    ..MethodInfo::new("top-kast")
};

/// The `n` largest |W|.
fn largest(weights: &[f32], n: usize, [neurons, inputs]: [usize; 2]) -> Mask {
    let mut mask = Mask::empty(neurons, inputs);
    mark_largest(weights, n, &mut mask);
    mask
}

impl Method for TopKast {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn settings(&self) -> Settings {
        Settings::of([("backward", self.backward.into()), ("exploration_decay", self.decay.into())])
    }

    fn check(&self) -> Result<(), Error> {
        let setting = |name, value, allowed| Err(Error::Setting { name, value, allowed });
        if !(self.backward.is_finite() && self.backward >= 1.0) {
            return setting("backward", self.backward, "at least 1");
        }
        if !(self.decay.is_finite() && self.decay >= 0.0) {
            return setting("exploration_decay", self.decay, "0 or more");
        }
        Ok(())
    }

    /// The set A: the top `A` of |W|, active or not.
    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        let target = target_weights(layer.mask.positions(), layer.sparsity);
        Ok(largest(layer.weights, target, layer.mask.shape()))
    }

    /// The set B.
    fn gradient_positions(
        &self,
        mask: &Mask,
        _sparsity: f64,
        weights: &dyn Fn() -> Vec<f32>,
    ) -> GradientPositions {
        let n = (mask.nnz() as f64 * self.backward).floor() as usize;
        GradientPositions::Superset(largest(&weights(), n.min(mask.positions()), mask.shape()))
    }

    fn keeps_inactive_weights(&self) -> bool {
        true
    }

    fn inactive_decay(&self, sparsity: f64) -> f64 {
        self.decay / (1.0 - sparsity)
    }
}
