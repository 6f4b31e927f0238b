//! Sparse training methods: one file each behind the trait [`Method`], and one table of them, [`METHODS`].
//!
//! A method is written in its own file and listed in [`METHODS`]; command lines, configurations, reports and
//! charts read names, labels and settings from there.

mod dense;
mod rigl;
mod set;
mod srigl;
mod static_mask;
mod structured_static;
mod unstructured;

pub use dense::Dense;
pub use rigl::Rigl;
pub use set::Set;
pub use srigl::{Srigl, ThresholdBase};
pub use static_mask::StaticMask;
pub use structured_static::StructuredStatic;

use crate::{
    ActiveLayer, DenseGradient, Error, Layer, LayerSpec, Mask, Stream, constant_fan_in_magnitude_mask,
    magnitude_mask,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

/// All methods, in the order of tables and legends.
pub static METHODS: &[&MethodInfo] =
    &[&dense::INFO, &static_mask::INFO, &set::INFO, &rigl::INFO, &srigl::INFO, &structured_static::INFO];

/// A sparse training method: how its masks start and change.
///
/// Implement it for a method of your own: [`update_layer`](crate::update_layer) and the optimizer of `srigl-burn`
/// take any. A row in [`METHODS`] makes it known by name.
pub trait Method: Debug + Send + Sync {
    /// What is true of the method whatever its settings; its row in [`METHODS`].
    fn info(&self) -> &'static MethodInfo;

    /// The values of [`MethodInfo::settings`].
    fn settings(&self) -> Settings {
        Settings::default()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] names the setting that is out of range.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The initial mask `[N, M]` of a layer with 0 < `sparsity` < 1.
    ///
    /// # Errors
    /// [`Error::FanInZero`] if no weight would be left, [`Error::Sparsity`] outside `[0, 1)`.
    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error>;

    /// The initial mask `[N, M]` that keeps the largest of given `weights` `[N · M]`: of each neuron with constant fan-in,
    /// otherwise of the layer.
    ///
    /// # Errors
    /// As [`initial_mask`](Self::initial_mask).
    fn magnitude_mask(&self, layer: &LayerSpec, weights: &[f32], sparsity: f64) -> Result<Mask, Error> {
        match self.info().constant_fan_in {
            true => Ok(constant_fan_in_magnitude_mask(layer, weights, sparsity)?.into_mask()),
            false => magnitude_mask(layer, weights, sparsity),
        }
    }

    /// The new mask `[N, M]` of a layer, a pure function of the arguments: `alpha` is the drop fraction `α_t`, and
    /// `stream` feeds random choices. The layer has been checked. Never called unless [`Needs::updates`].
    ///
    /// By default that of [`update_active`](Self::update_active).
    ///
    /// # Errors
    /// If the layer cannot keep its sparsity, such as [`Error::FanInZero`].
    ///
    /// # Panics
    /// If the method has neither.
    fn update(&self, layer: &Layer, alpha: f64, stream: Stream) -> Result<Mask, Error> {
        let mask = layer.active(|layer, gradient| self.update_active(layer, gradient, alpha, stream));
        mask.unwrap_or_else(|| panic!("method `{}` has no update", self.info().name))
    }

    /// The same from the active weights alone, and the dense gradient some neurons at a time: what layers are trained with
    /// that have no other weights. `None` for methods that must see all.
    ///
    /// # Errors
    /// As [`update`](Self::update), and [`Error::NotFinite`] for a gradient that is not.
    fn update_active(
        &self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let _ = (layer, gradient, alpha, stream);
        None
    }

    /// Which positions the optimizer may move until the next update, given the mask until then. `weights` computes
    /// the present values `[N · M]`, which may be expensive.
    fn gradient_positions(
        &self,
        mask: &Mask,
        sparsity: f64,
        weights: &dyn Fn() -> Vec<f32>,
    ) -> GradientPositions {
        let _ = (mask, sparsity, weights);
        GradientPositions::Active
    }

    /// Whether weights that are inactive keep their values and have them when they become active again. The network
    /// computes with zeros in their places all the same.
    fn keeps_inactive_weights(&self) -> bool {
        false
    }
}

/// The positions of a weight that receive gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GradientPositions {
    /// Those of the mask: of the present network.
    Active,
    /// Those of this larger mask `[N, M]` (the backward set of Top-KAST).
    Superset(Mask),
    /// All (straight-through estimators).
    All,
}

/// What is true of a method whatever its settings.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name in command lines and files, such as `srigl`.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What it cannot do without.
    pub needs: Needs,
    /// Whether all active neurons of a layer have the same fan-in.
    pub constant_fan_in: bool,
    /// Its settings.
    pub settings: &'static [Setting],
    /// The kinds of runs that tables and charts tell apart, at least one. A method is of the last whose settings it
    /// has.
    pub variants: &'static [Variant],
    /// The method with these settings; those not given are the defaults.
    pub build: fn(&Settings) -> AnyMethod,
}

/// What a method cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// A sparsity; false for dense training alone.
    pub sparsity: bool,
    /// Topology updates and their schedule.
    pub updates: bool,
    /// Dense gradients at updates.
    pub dense_gradients: bool,
}

/// A setting of a method. Names are unique in [`METHODS`].
#[derive(Debug)]
pub struct Setting {
    /// The name in files (`gamma_sal`); with dashes, the flag on command lines.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// What it may be, and is by default.
    pub kind: SettingKind,
}

/// What a setting may be.
#[derive(Debug)]
pub enum SettingKind {
    /// A number, with its default.
    Number(f64),
    /// One of these words; the first is the default.
    Word(&'static [&'static str]),
}

impl Setting {
    /// The default value.
    pub fn default(&self) -> Value {
        match self.kind {
            SettingKind::Number(number) => Value::Number(number),
            SettingKind::Word(words) => Value::Word(words[0].to_string()),
        }
    }

    /// Whether it may have this value; a method may still find a number out of range.
    pub fn takes(&self, value: &Value) -> bool {
        match (&self.kind, value) {
            (SettingKind::Number(_), Value::Number(_)) => true,
            (SettingKind::Word(words), Value::Word(word)) => words.contains(&word.as_str()),
            _ => false,
        }
    }
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(f64),
    /// A word.
    Word(String),
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(word: &str) -> Self {
        Self::Word(word.into())
    }
}

/// Values of settings by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub BTreeMap<String, Value>);

impl Settings {
    /// These settings.
    pub fn of<const N: usize>(values: [(&str, Value); N]) -> Self {
        Self(values.map(|(name, value)| (name.to_string(), value)).into())
    }

    /// The number of this name, or `default`.
    fn number(&self, name: &str, default: f64) -> f64 {
        match self.0.get(name) {
            Some(Value::Number(number)) => *number,
            _ => default,
        }
    }

    /// Whether the word of this name is this one.
    fn is_word(&self, name: &str, word: &str) -> bool {
        matches!(self.0.get(name), Some(Value::Word(given)) if given == word)
    }
}

/// A kind of runs that tables and charts tell apart.
#[derive(Debug)]
pub struct Variant {
    /// The name in recipes and files, such as `srigl-no-ablation`.
    pub name: &'static str,
    /// The name for people, such as `SRigL without ablation`.
    pub label: &'static str,
    /// The settings that make it, numbers all.
    pub settings: &'static [(&'static str, f64)],
    /// A flag of command lines that stands for these settings.
    pub flag: Option<&'static str>,
}

impl MethodInfo {
    /// The method of this name.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`] lists the names.
    pub fn named(name: &str) -> Result<&'static Self, Error> {
        let found = METHODS.iter().find(|info| info.name == name);
        found.copied().ok_or_else(|| Error::UnknownMethod { name: name.into() })
    }

    /// The method with these settings; those not given are the defaults.
    ///
    /// # Errors
    /// [`Error::UnknownSetting`] for a setting that it does not have or a word that it does not know,
    /// [`Error::Setting`] for a number out of range.
    pub fn build(&self, settings: &Settings) -> Result<AnyMethod, Error> {
        for (name, value) in &settings.0 {
            let known = self.settings.iter().find(|setting| setting.name == name);
            if !known.is_some_and(|setting| setting.takes(value)) {
                return Err(Error::UnknownSetting {
                    method: self.name,
                    name: name.clone(),
                    value: value.clone(),
                });
            }
        }
        let method = (self.build)(settings);
        method.check()?;
        Ok(method)
    }

    /// The variant that these settings make.
    fn variant_of(&self, settings: &Settings) -> &'static Variant {
        let has = |variant: &&Variant| {
            let given = |name, default| settings.number(name, default);
            variant.settings.iter().all(|(name, value)| given(name, f64::NAN) == *value)
        };
        self.variants.iter().rev().find(has).unwrap_or(&self.variants[0])
    }
}

/// A method whose type is known only at run time, for instance one chosen by name. As JSON it is an object of
/// its `name` and its settings.
#[derive(Clone, Debug)]
pub struct AnyMethod(Arc<dyn Method>);

impl AnyMethod {
    /// The kind of runs it makes; its label is the name for people.
    pub fn variant(&self) -> &'static Variant {
        self.info().variant_of(&self.settings())
    }
}

impl<M: Method + 'static> From<M> for AnyMethod {
    fn from(method: M) -> Self {
        Self(Arc::new(method))
    }
}

impl Deref for AnyMethod {
    type Target = dyn Method;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for AnyMethod {
    fn eq(&self, other: &Self) -> bool {
        (self.info().name, self.settings()) == (other.info().name, other.settings())
    }
}

#[derive(Serialize, Deserialize)]
struct NameAndSettings {
    name: String,
    #[serde(flatten)]
    settings: Settings,
}

impl Serialize for AnyMethod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.info().name.to_string();
        NameAndSettings { name, settings: self.settings() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AnyMethod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let NameAndSettings { name, settings } = NameAndSettings::deserialize(deserializer)?;
        MethodInfo::named(&name).and_then(|info| info.build(&settings)).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_table_is_consistent() {
        let mut names = HashSet::new();
        let mut variants = HashSet::new();
        let mut settings = HashSet::new();
        for info in METHODS {
            assert!(names.insert(info.name), "{} is there twice", info.name);
            assert!(!info.variants.is_empty() && info.variants.iter().all(|v| variants.insert(v.name)));
            assert!(info.settings.iter().all(|setting| settings.insert(setting.name)));
            let method = info.build(&Settings::default()).unwrap();
            assert!(std::ptr::eq(method.info(), *info), "{} builds another method", info.name);
            assert_eq!(method.variant().name, info.variants[0].name, "the first variant is the default");
            // Its settings are those of the table, and the defaults the table's.
            let defaults = info.settings.iter().map(|s| (s.name.to_string(), s.default())).collect();
            assert_eq!(method.settings(), Settings(defaults));
            for variant in info.variants {
                let settings = variant.settings.iter().map(|(name, v)| (name.to_string(), Value::Number(*v)));
                let method = info.build(&Settings(settings.collect())).unwrap();
                assert_eq!(method.variant().name, variant.name);
            }
        }
    }

    #[test]
    fn methods_move_active_weights_alone_unless_they_say_otherwise() {
        for info in METHODS {
            let method = info.build(&Settings::default()).unwrap();
            assert!(!method.keeps_inactive_weights(), "{}", info.name);
            let positions = method.gradient_positions(&Mask::full(1, 1), 0.5, &|| panic!("not needed"));
            assert_eq!(positions, GradientPositions::Active, "{}", info.name);
        }
    }

    #[test]
    fn methods_are_the_same_if_names_and_settings_are() {
        let [srigl, other] =
            [0.3, 0.9].map(|gamma_sal| AnyMethod::from(Srigl { gamma_sal, ..Srigl::default() }));
        assert_eq!(srigl, AnyMethod::from(Srigl::default()));
        assert_ne!(srigl, other);
        assert_ne!(AnyMethod::from(Rigl), AnyMethod::from(Set));
    }

    #[test]
    fn a_method_is_its_name_and_settings_in_json() {
        let method = AnyMethod::from(Srigl { gamma_sal: 0.9, threshold_base: ThresholdBase::DenseFanIn });
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(json, r#"{"name":"srigl","gamma_sal":0.9,"threshold_base":"dense-fan-in"}"#);
        assert_eq!(serde_json::from_str::<AnyMethod>(&json).unwrap(), method);
        let refused = |json: &str| serde_json::from_str::<AnyMethod>(json).unwrap_err().to_string();
        assert!(refused(r#"{"name":"magic"}"#).contains("no method `magic`; known are dense, static, set"));
        assert!(refused(r#"{"name":"rigl","gamma_sal":0.9}"#).contains("has no setting `gamma_sal` = 0.9"));
        assert!(refused(r#"{"name":"srigl","gamma_sal":-1}"#).contains("gamma_sal is -1"));
        assert!(refused(r#"{"name":"srigl","threshold_base":"x"}"#).contains("`threshold_base` = x"));
    }
}
