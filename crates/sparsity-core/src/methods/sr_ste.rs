//! SR-STE (Zhou et al. 2021, arXiv 2102.04010): N:M training from dense weights with a straight-through estimator.

use super::{
    AnyMethod, GradientPositions, Method, MethodInfo, NM, Nm, Setting, SettingKind, Settings, Updates, Value,
    Variant,
};
use crate::topology::Layer;
use crate::{Error, InitialMask, Mask, NmPattern, Stream};

/// Dense weights `W`, of which the network sees the `N` largest of each group of `M`, chosen anew after each step. Their gradient goes
/// to all weights, and `λ·W` is added to that of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SrSte {
    /// The pattern.
    pub nm: NmPattern,
    /// `λ_W`.
    pub decay: f64,
}

/// The paper's `λ_W`.
const DECAY: f64 = 2e-4;

impl Default for SrSte {
    /// 2:4 and `λ_W` = 2·10⁻⁴.
    fn default() -> Self {
        Self { nm: NmPattern::TWO_OF_FOUR, decay: DECAY }
    }
}

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "N:M from dense weights by a straight-through estimator",
    updates: Updates::EachStep,
    initial: InitialMask::Magnitude,
    nm: Nm::Always,
    settings: &[Setting {
        name: "ste_decay",
        about: "Decay of the weights that the network does not see",
        kind: SettingKind::Number(DECAY),
    }],
    variants: &[Variant { name: "sr-ste", label: "SR-STE", settings: &[], flag: None }],
    build: Some(|settings| {
        let nm = match settings.0.get(NM) {
            Some(Value::Word(word)) => word.parse().unwrap_or(NmPattern::TWO_OF_FOUR),
            _ => NmPattern::TWO_OF_FOUR,
        };
        AnyMethod::from(SrSte { nm, decay: settings.number("ste_decay", DECAY) })
    }),
    ..MethodInfo::new("sr-ste")
};

impl Method for SrSte {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn settings(&self) -> Settings {
        Settings::of([(NM, Value::Word(self.nm.to_string())), ("ste_decay", self.decay.into())])
    }

    fn check(&self) -> Result<(), Error> {
        if self.decay.is_finite() && self.decay >= 0.0 {
            return Ok(());
        }
        Err(Error::Setting { name: "ste_decay", value: self.decay, allowed: "0 or more" })
    }

    fn nm(&self) -> Option<NmPattern> {
        Some(self.nm)
    }

    /// The `N` largest |W| of each group, whether the network has seen them or not.
    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        let [neurons, inputs] = layer.mask.shape();
        Ok(self.nm.project(layer.weights, neurons, inputs))
    }

    fn gradient_positions(
        &self,
        _mask: &Mask,
        _sparsity: f64,
        _weights: &dyn Fn() -> Vec<f32>,
    ) -> GradientPositions {
        GradientPositions::All
    }

    fn keeps_inactive_weights(&self) -> bool {
        true
    }

    fn inactive_decay(&self, _sparsity: f64) -> f64 {
        self.decay
    }
}
