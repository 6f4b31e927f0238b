//! Sparse training methods: one file each behind the trait [`Method`], and one table of them, [`METHODS`].
//!
//! A method is written in its own file and listed in [`METHODS`]; command lines, configurations, reports and
//! charts read names, labels and settings from there.

mod dense;
mod global_magnitude;
mod gmp;
mod group_shared;
mod magnitude;
mod mest;
mod restricted;
mod rigl;
mod set;
mod snfs;
mod snip;
mod sr_ste;
mod srigl;
mod static_mask;
mod structured_set;
mod structured_static;
mod top_kast;
mod unstructured;

pub use dense::Dense;
pub use global_magnitude::GlobalMagnitude;
pub use gmp::Gmp;
pub use magnitude::Magnitude;
pub use mest::Mest;
pub use rigl::Rigl;
pub use set::Set;
pub use snfs::Snfs;
pub use snip::Snip;
pub use sr_ste::SrSte;
pub use srigl::{Srigl, ThresholdBase};
pub use static_mask::StaticMask;
pub use structured_set::StructuredSet;
pub use structured_static::StructuredStatic;
pub use top_kast::TopKast;

use crate::{
    ActiveLayer, DenseGradient, Error, InitialMask, Layer, LayerSpec, Mask, Members, NmPattern, Stream,
    WeightInit, constant_fan_in_magnitude_mask, constant_fan_in_mask, magnitude_mask, unstructured_mask,
};
use group_shared::GroupShared;
use restricted::Restricted;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

/// All methods, in the order of tables and legends.
pub static METHODS: &[&MethodInfo] = &[
    &dense::INFO,
    &static_mask::INFO,
    &set::INFO,
    &rigl::INFO,
    &srigl::INFO,
    &structured_static::INFO,
    &structured_set::INFO,
    &magnitude::INFO,
    &global_magnitude::INFO,
    &snip::INFO,
    &gmp::INFO,
    &snfs::INFO,
    &mest::INFO,
    &top_kast::INFO,
    &sr_ste::INFO,
];

/// A sparse training method: how its masks start and change.
///
/// Implement it for a method of your own, in any crate: [`update_layer`](crate::update_layer) and `sparsify` of `srigl-burn`
/// take any. A row in [`METHODS`] makes it known by name.
///
/// ```
/// use sparsity_core::methods::{Gradients, Growth, Kept, Method, MethodInfo, Updates};
/// use sparsity_core::{ActiveLayer, Mask};
///
/// /// Forgets all weights at each update, and grows where the gradient is largest.
/// #[derive(Debug)]
/// struct Amnesia;
///
/// static INFO: MethodInfo =
///     MethodInfo { updates: Updates::Scheduled, gradients: Gradients::Dense, ..MethodInfo::new("amnesia") };
///
/// impl Method for Amnesia {
///     fn info(&self) -> &'static MethodInfo {
///         &INFO
///     }
///     fn keep(&self, layer: &ActiveLayer, _alpha: f64) -> Option<Kept> {
///         Some(Kept { mask: Mask::empty(layer.mask.neurons(), layer.mask.dense_fan_in()), growth: Growth::Gradient })
///     }
/// }
/// ```
pub trait Method: Debug + Send + Sync {
    /// What is true of the method whatever its settings; its row in [`METHODS`].
    fn info(&self) -> &'static MethodInfo;

    /// The values of [`MethodInfo::settings`], and of the structure.
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

    /// The pattern that its masks have, if they have one. The sparsity of a layer follows from it.
    fn nm(&self) -> Option<NmPattern> {
        None
    }

    /// Neurons in a row that share their inputs.
    fn group(&self) -> usize {
        1
    }

    /// The initial mask `[N, M]` of a layer with 0 < `sparsity` < 1, by default drawn at random: of each group with a pattern, of each
    /// neuron with constant fan-in, otherwise of the layer.
    ///
    /// # Errors
    /// [`Error::FanInZero`] if no weight would be left, [`Error::Sparsity`] outside `[0, 1)`.
    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        match (self.nm(), self.info().constant_fan_in) {
            (Some(nm), _) => Ok(nm.random_mask(layer, stream)),
            (None, true) => Ok(constant_fan_in_mask(layer, sparsity, stream)?.into_mask()),
            (None, false) => unstructured_mask(layer, sparsity, stream),
        }
    }

    /// The initial mask `[N, M]` that keeps the largest of given `weights` `[N · M]`: of each group with a pattern, of each neuron
    /// with constant fan-in, otherwise of the layer.
    ///
    /// # Errors
    /// As [`initial_mask`](Self::initial_mask).
    fn magnitude_mask(&self, layer: &LayerSpec, weights: &[f32], sparsity: f64) -> Result<Mask, Error> {
        match (self.nm(), self.info().constant_fan_in) {
            (Some(nm), _) => nm.largest(layer, weights),
            (None, true) => Ok(constant_fan_in_magnitude_mask(layer, weights, sparsity)?.into_mask()),
            (None, false) => magnitude_mask(layer, weights, sparsity),
        }
    }

    /// The sparsity that a layer shall have after a `progress` of 0 to 1 on the way from the first step to the last update,
    /// if it shall have `sparsity` in the end.
    fn sparsity_at(&self, sparsity: f64, progress: f64) -> f64 {
        let _ = progress;
        sparsity
    }

    /// The weights that each of these layers shall have after an update, whose layers have dropped theirs and shall grow as many
    /// together. `None` if each grows as many as it drops.
    fn redistribute(&self, layers: &[LayerShare]) -> Option<Vec<usize>> {
        let _ = layers;
        None
    }

    /// The new mask `[N, M]` of a layer, a pure function of the arguments: `alpha` is the drop fraction `α_t`, and
    /// `stream` feeds random choices. The layer has been checked. Never called unless [`MethodInfo::updates`].
    ///
    /// By default that of [`update_active`](Self::update_active).
    ///
    /// # Errors
    /// If the layer cannot keep its sparsity, such as [`Error::FanInZero`].
    ///
    /// # Panics
    /// If the method has neither.
    fn update(&self, layer: &Layer, alpha: f64, stream: Stream) -> Result<Mask, Error> {
        let grads = self.info().gradients == Gradients::Active;
        let mask = layer.active(grads, |layer, gradient| self.update_active(layer, gradient, alpha, stream));
        mask.unwrap_or_else(|| panic!("method `{}` has no update", self.info().name))
    }

    /// The same from the active weights alone, and the dense gradient some neurons at a time: what layers are trained with
    /// that have no other weights. `None` for methods that must see all.
    ///
    /// By default it grows as many weights as [`keep`](Self::keep) drops, anywhere in the layer.
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
        self.keep(layer, alpha).map(|kept| kept.grown(layer, gradient, layer.mask.nnz(), stream))
    }

    /// The first half of an update: the weights that stay, and how others grow. `None` for methods that do not drop and grow.
    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        let _ = (layer, alpha);
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

    /// Whether all weights of a layer are drawn before some are chosen: where masks come from weights, or all are kept.
    fn starts_from_dense_weights(&self) -> bool {
        self.info().initial != InitialMask::Random || self.keeps_inactive_weights()
    }

    /// Whether layers become sparse while they train.
    fn starts_dense(&self) -> bool {
        self.sparsity_at(1.0, 0.0) < 1.0
    }

    /// `λ`: to the gradient of a weight that is inactive and gets gradient, `λ·W` is added.
    fn inactive_decay(&self, sparsity: f64) -> f64 {
        let _ = sparsity;
        0.0
    }
}

/// What a method keeps of a mask at an update, and how it grows others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The weights that stay, `[N, M]`.
    pub mask: Mask,
    /// How others grow.
    pub growth: Growth,
}

/// How weights grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Where |G| is largest.
    Gradient,
    /// At random.
    Random,
}

impl Kept {
    /// The mask with others grown, anywhere in the layer, until it has `weights`.
    fn grown(
        self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        weights: usize,
        stream: Stream,
    ) -> Result<Mask, Error> {
        let Self { mut mask, growth } = self;
        let n = weights.saturating_sub(mask.nnz());
        match growth {
            Growth::Gradient => unstructured::grow_largest_gradients(layer, &mut mask, gradient, n)?,
            Growth::Random => unstructured::grow_at_random(&mut mask, stream, n),
        }
        Ok(mask)
    }
}

/// What a method that redistributes weights among layers knows of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerShare {
    /// `N·M`.
    pub positions: usize,
    /// Active weights before the update.
    pub active: usize,
    /// Those that stay.
    pub kept: usize,
    /// The mean of |G| over the active weights; what [`Gradients`] says G is.
    pub importance: f64,
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
    /// Whether its networks are sparse; false for dense training alone.
    pub sparse: bool,
    /// When its masks change.
    pub updates: Updates,
    /// The gradients that its updates look at.
    pub gradients: Gradients,
    /// Where initial masks come from if nobody says.
    pub initial: InitialMask,
    /// Whether all active neurons of a layer have the same fan-in.
    pub constant_fan_in: bool,
    /// Whether it ablates neurons that are not worth it.
    pub ablates: bool,
    /// Whether its masks may have an N:M pattern.
    pub nm: Nm,
    /// Its settings.
    pub settings: &'static [Setting],
    /// The kinds of runs that tables and charts tell apart, at least one. A method is of the last whose settings it
    /// has.
    pub variants: &'static [Variant],
    /// The method with these settings; those not given are the defaults. `None` for one that is no row of [`METHODS`].
    pub build: Option<fn(&Settings) -> AnyMethod>,
}

/// When masks change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updates {
    /// Never.
    Never,
    /// Every `ΔT` steps, before `T_end`.
    Scheduled,
    /// After each step.
    EachStep,
}

/// The gradients that updates look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gradients {
    /// None.
    None,
    /// `∂L/∂W` of active weights.
    Active,
    /// `∂L/∂W` at every position.
    Dense,
    /// The sum of those of all steps so far, `m ← β·m + ∂L/∂W`, at every position.
    Momentum {
        /// How much of the sum is left after each step.
        beta: f64,
    },
}

impl Gradients {
    /// Whether they are those of every position.
    pub fn are_dense(self) -> bool {
        matches!(self, Self::Dense | Self::Momentum { .. })
    }
}

/// Whether masks may have an N:M pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nm {
    /// They cannot.
    Never,
    /// They may.
    Allowed,
    /// They always have one, 2:4 if nobody says.
    Always,
}

impl MethodInfo {
    /// A method of this name that has no settings and no structure, looks at no gradients and never changes its masks. To be
    /// completed: `MethodInfo { updates: Updates::Scheduled, ..MethodInfo::new("mine") }`.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            about: "",
            sparse: true,
            updates: Updates::Never,
            gradients: Gradients::None,
            initial: InitialMask::Random,
            constant_fan_in: false,
            ablates: false,
            nm: Nm::Never,
            settings: &[],
            variants: &[],
            build: None,
        }
    }

    /// Where initial masks come from if nobody says, with weights initialised so: [`initial`](Self::initial), but where random masks
    /// would be put over weights that are kept, the largest of each layer.
    pub fn initial_with(&self, weights: WeightInit) -> InitialMask {
        match (self.initial, weights) {
            (InitialMask::Random, WeightInit::Keep) => InitialMask::Magnitude,
            (initial, _) => initial,
        }
    }

    /// Whether its masks change.
    pub fn changes(&self) -> bool {
        self.updates != Updates::Never
    }

    /// Whether groups of neurons may share their inputs.
    pub fn takes_groups(&self) -> bool {
        self.constant_fan_in && self.sparse
    }
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

    /// The method with these settings; those not given are the defaults. `nm`, such as `2:4`, and `group`, a number, are settings
    /// of all methods that may have the structure.
    ///
    /// # Errors
    /// [`Error::UnknownSetting`] for a setting that it does not have or a word that it does not know,
    /// [`Error::Setting`] for a number out of range, [`Error::Nm`] for a pattern that is none, [`Error::UnknownMethod`] for one that is
    /// no row of [`METHODS`].
    pub fn build(&self, settings: &Settings) -> Result<AnyMethod, Error> {
        let build = self.build.ok_or_else(|| Error::UnknownMethod { name: self.name.into() })?;
        let (mut nm, mut group) = (None, 1.0);
        for (name, value) in &settings.0 {
            let known = self.settings.iter().find(|setting| setting.name == name);
            match (name.as_str(), value) {
                (NM, Value::Word(word)) => nm = Some(word.parse()?),
                (GROUP, Value::Number(number)) => group = *number,
                _ if known.is_some_and(|setting| setting.takes(value)) => {}
                _ => return Err(self.unknown(name, value)),
            }
        }
        let method = build(settings);
        let method = match nm {
            Some(nm) => method.with_nm(nm)?,
            None => method,
        };
        if group.fract() != 0.0 {
            return Err(outside(group));
        }
        let method = method.with_group(group as usize)?;
        method.check()?;
        Ok(method)
    }

    fn unknown(&self, name: &str, value: &Value) -> Error {
        Error::UnknownSetting { method: self.name, name: name.into(), value: value.clone() }
    }

    /// The variant that these settings make.
    fn variant_of(&self, settings: &Settings) -> &'static Variant {
        let has = |variant: &&Variant| {
            let given = |name, default| settings.number(name, default);
            variant.settings.iter().all(|(name, value)| given(name, f64::NAN) == *value)
        };
        let none = || self.variants.first().unwrap_or(&UNNAMED);
        self.variants.iter().rev().find(has).unwrap_or_else(none)
    }
}

/// Of a method that names none.
static UNNAMED: Variant = Variant { name: "custom", label: "custom", settings: &[], flag: None };

/// The names of structures among settings: an N:M pattern, and neurons that share their inputs.
pub const NM: &str = "nm";
/// See [`NM`].
pub const GROUP: &str = "group";
const MORE_THAN_GROUP: usize = (1 << 16) + 1;

fn outside(group: f64) -> Error {
    Error::Setting { name: GROUP, value: group, allowed: "a whole number from 1 to 65536" }
}

/// A method whose type is known only at run time, for instance one chosen by name, with the structure of its masks. As JSON it is
/// an object of its `name` and its settings.
///
/// ```
/// use sparsity_core::NmPattern;
/// use sparsity_core::methods::{AnyMethod, Rigl, Srigl};
///
/// let two_of_four = AnyMethod::from(Rigl).with_nm(NmPattern::TWO_OF_FOUR)?;
/// // Groups of four neurons that read the same inputs.
/// let groups = AnyMethod::from(Srigl::default()).with_group(4)?;
/// assert_eq!(groups.label(), "SRigL with ablation, groups of 4");
/// # Ok::<(), sparsity_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AnyMethod(Arc<dyn Method>);

impl AnyMethod {
    /// The kind of runs it makes; its label is the name for people.
    pub fn variant(&self) -> &'static Variant {
        self.info().variant_of(&self.settings())
    }

    /// The name for people, with the structure.
    pub fn label(&self) -> String {
        let mut label = self.variant().label.to_string();
        label += &self.nm().map(|nm| format!(" {nm}")).unwrap_or_default();
        label += &if self.group() > 1 { format!(", groups of {}", self.group()) } else { String::new() };
        label
    }

    /// The same with masks of this pattern: initial masks have it, drops are the method's, and growth fills the groups. Neurons
    /// are not ablated, since the others would have no room for their weights.
    ///
    /// # Errors
    /// [`Error::Structure`] for a method whose masks cannot have one.
    pub fn with_nm(self, nm: NmPattern) -> Result<Self, Error> {
        let info = self.info();
        let has_structure = self.group() > 1 || self.nm().is_some() && info.nm == Nm::Allowed;
        match (info.nm, info.build) {
            _ if has_structure => {}
            (Nm::Always, Some(build)) => {
                let mut settings = self.settings();
                settings.0.insert(NM.into(), Value::Word(nm.to_string()));
                return Ok(build(&settings));
            }
            (Nm::Allowed, _) if self.is_plain() && (!info.changes() || self.drops_and_grows()) => {
                return Ok(Restricted { method: self, nm }.into());
            }
            _ => {}
        }
        Err(Error::Structure { method: info.name, what: "an N:M pattern" })
    }

    /// Whether it has none of what a structure around it would hide: weights beside the active ones, and a sparsity of its own.
    fn is_plain(&self) -> bool {
        !self.keeps_inactive_weights() && !self.starts_dense() && self.redistribute(&[]).is_none()
    }

    /// Whether it says what it keeps.
    fn drops_and_grows(&self) -> bool {
        probe(|layer, _, _| self.keep(layer, 0.0).is_some())
    }

    /// Whether layers can be trained by it that have no weights but active ones, never more than at the start, and no gradient of others
    /// but at updates.
    pub fn trains_active_weights_alone(&self) -> bool {
        let remembers = matches!(self.info().gradients, Gradients::Momentum { .. });
        let moves = self.gradient_positions(&Mask::full(1, 2), 0.5, &|| vec![1.0, 2.0]);
        self.is_plain()
            && !remembers
            && moves == GradientPositions::Active
            && (!self.info().changes() || self.sees_active_weights())
    }

    /// Whether it can do with active weights and their neurons' gradients.
    fn sees_active_weights(&self) -> bool {
        probe(|layer, gradient, stream| self.update_active(layer, gradient, 0.0, stream).is_some())
    }

    /// The same with `group` neurons at a time that share their inputs; with 1, itself. Saliency, ablation and growth are those of
    /// the sums of |W| and |G| over a group. The last group is smaller where the neurons are no multiple.
    ///
    /// # Errors
    /// [`Error::Structure`] for a method without constant fan-in, [`Error::Setting`] unless 0 < `group` ≤ 65536.
    pub fn with_group(self, group: usize) -> Result<Self, Error> {
        match group {
            0 | MORE_THAN_GROUP.. => Err(outside(group as f64)),
            1 => Ok(self),
            _ => {
                let info = self.info();
                let can_be_summed = self.is_plain() && info.gradients != Gradients::Active;
                match info.takes_groups()
                    && self.group() == 1
                    && can_be_summed
                    && (!info.changes() || self.sees_active_weights())
                {
                    true => Ok(GroupShared { method: self, group }.into()),
                    false => Err(Error::Structure { method: info.name, what: "groups that share inputs" }),
                }
            }
        }
    }
}

/// Asks what a method does with the smallest layer.
fn probe(ask: impl FnOnce(&ActiveLayer, DenseGradient, Stream) -> bool) -> bool {
    let (mask, values) = (Mask::full(1, 2), [1.0, 2.0]);
    let members = Members::default();
    let layer = ActiveLayer {
        name: "",
        values: &values,
        mask: &mask,
        sparsity: 0.5,
        ablate: false,
        grads: &values,
        members,
    };
    ask(&layer, DenseGradient::All(&values), Stream { seed: 0, layer: 0, step: 0 })
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
        let mut settings = HashSet::from([NM, GROUP]);
        for info in METHODS {
            assert!(names.insert(info.name), "{} is there twice", info.name);
            assert!(!info.about.is_empty(), "{}", info.name);
            assert!(!info.variants.is_empty() && info.variants.iter().all(|v| variants.insert(v.name)));
            assert!(info.settings.iter().all(|setting| settings.insert(setting.name)));
            let method = info.build(&Settings::default()).unwrap();
            assert!(std::ptr::eq(method.info(), *info), "{} builds another method", info.name);
            assert_eq!(method.variant().name, info.variants[0].name, "the first variant is the default");
            // Its settings are those of the table, and the defaults the table's.
            let mut defaults: Settings =
                Settings(info.settings.iter().map(|s| (s.name.to_string(), s.default())).collect());
            if info.nm == Nm::Always {
                defaults.0.insert(NM.into(), "2:4".into());
            }
            assert_eq!(method.settings(), defaults);
            for variant in info.variants {
                let settings = variant.settings.iter().map(|(name, v)| (name.to_string(), Value::Number(*v)));
                let method = info.build(&Settings(settings.collect())).unwrap();
                assert_eq!(method.variant().name, variant.name);
            }
        }
    }

    #[test]
    fn two_methods_train_dense_weights_beside_the_mask() {
        let keeps =
            METHODS.iter().filter(|info| info.build(&Settings::default()).unwrap().keeps_inactive_weights());
        assert_eq!(keeps.map(|info| info.name).collect::<Vec<_>>(), ["top-kast", "sr-ste"]);
    }

    #[test]
    fn methods_are_told_apart() {
        let all = |asked: fn(&AnyMethod) -> bool| -> Vec<&str> {
            let asked = |info: &&&MethodInfo| asked(&info.build(&Settings::default()).unwrap());
            METHODS.iter().filter(asked).map(|info| info.name).collect()
        };
        assert_eq!(
            all(|method| method.starts_from_dense_weights()),
            ["magnitude", "global-magnitude", "snip", "top-kast", "sr-ste"]
        );
        assert_eq!(all(|method| method.starts_dense()), ["gmp"]);
        assert_eq!(all(|method| method.info().ablates), ["srigl"]);
        assert_eq!(all(|method| method.inactive_decay(0.5) != 0.0), ["top-kast", "sr-ste"]);
        assert_eq!(all(|method| method.info().gradients.are_dense()), ["rigl", "srigl", "snfs"]);
        let initial = |info: &MethodInfo, weights| info.initial_with(weights);
        assert_eq!(initial(&rigl::INFO, WeightInit::Keep), InitialMask::Magnitude);
        assert_eq!(initial(&rigl::INFO, WeightInit::KaimingNormal), InitialMask::Random);
        assert_eq!(initial(&snip::INFO, WeightInit::Keep), InitialMask::Sensitivity);
    }

    /// A method of which one thing or another is different.
    #[derive(Clone, Copy, Debug, Default)]
    struct Own {
        never_updates: bool,
        remembers: bool,
        keeps_inactive: bool,
        starts_dense: bool,
        redistributes: bool,
        moves_all: bool,
        /// What it drops and grows.
        drops: bool,
        /// It has an update of active weights.
        sees_active: bool,
    }

    const OWN: MethodInfo = MethodInfo {
        updates: Updates::Scheduled,
        constant_fan_in: true,
        nm: Nm::Allowed,
        ..MethodInfo::new("own")
    };
    static SCHEDULED: MethodInfo = OWN;
    static NEVER: MethodInfo = MethodInfo { updates: Updates::Never, ..OWN };
    static REMEMBERS: MethodInfo = MethodInfo { gradients: Gradients::Momentum { beta: 0.5 }, ..OWN };

    impl Method for Own {
        fn info(&self) -> &'static MethodInfo {
            match (self.never_updates, self.remembers) {
                (true, _) => &NEVER,
                (_, true) => &REMEMBERS,
                _ => &SCHEDULED,
            }
        }
        fn sparsity_at(&self, sparsity: f64, progress: f64) -> f64 {
            if self.starts_dense { sparsity * progress } else { sparsity }
        }
        fn redistribute(&self, layers: &[LayerShare]) -> Option<Vec<usize>> {
            self.redistributes.then(|| layers.iter().map(|layer| layer.active).collect())
        }
        fn keep(&self, layer: &ActiveLayer, _: f64) -> Option<Kept> {
            self.drops.then(|| Kept { mask: layer.mask.clone(), growth: Growth::Random })
        }
        fn update_active(
            &self,
            layer: &ActiveLayer,
            _: DenseGradient,
            _: f64,
            _: Stream,
        ) -> Option<Result<Mask, Error>> {
            self.sees_active.then(|| Ok(layer.mask.clone()))
        }
        fn gradient_positions(&self, _: &Mask, _: f64, _: &dyn Fn() -> Vec<f32>) -> GradientPositions {
            if self.moves_all { GradientPositions::All } else { GradientPositions::Active }
        }
        fn keeps_inactive_weights(&self) -> bool {
            self.keeps_inactive
        }
    }

    /// Whether a method may have a pattern, may have groups, and may train active weights alone.
    #[test]
    fn what_a_method_may_have_follows_from_what_it_does() {
        let may = |own: Own| {
            let own = AnyMethod::from(own);
            let (nm, group) = (own.clone().with_nm(NmPattern::TWO_OF_FOUR), own.clone().with_group(2));
            for refused in [nm.as_ref().err(), group.as_ref().err()].into_iter().flatten() {
                assert!(matches!(refused, Error::Structure { method: "own", .. }), "{refused}");
            }
            (nm.is_ok(), group.is_ok(), own.trains_active_weights_alone())
        };
        let plain = Own { drops: true, sees_active: true, ..Own::default() };
        assert_eq!(may(plain), (true, true, true));
        assert_eq!(may(Own { keeps_inactive: true, ..plain }), (false, false, false));
        assert_eq!(may(Own { starts_dense: true, ..plain }), (false, false, false));
        assert_eq!(may(Own { redistributes: true, ..plain }), (false, false, false));
        assert_eq!(may(Own { remembers: true, ..plain }), (true, true, false));
        assert_eq!(may(Own { moves_all: true, ..plain }), (true, true, false));
        assert_eq!(may(Own { drops: false, ..plain }), (false, true, true));
        assert_eq!(may(Own { sees_active: false, ..plain }), (true, false, false));
        // What never updates need not say how.
        assert_eq!(may(Own { never_updates: true, ..Own::default() }), (true, true, true));
        assert_eq!(
            may(Own { never_updates: true, starts_dense: true, ..Own::default() }),
            (false, false, false)
        );
    }

    #[test]
    fn a_structure_is_given_once_and_groups_last() {
        let refused = |method: Result<AnyMethod, Error>| matches!(method, Err(Error::Structure { .. }));
        for method in [AnyMethod::from(Srigl::default()), StructuredStatic.into()] {
            let (nm, group) = (method.clone().with_nm(NmPattern::TWO_OF_FOUR), method.with_group(4).unwrap());
            assert!(refused(nm.clone().unwrap().with_nm(NmPattern::TWO_OF_FOUR)));
            assert!(refused(group.clone().with_nm(NmPattern::TWO_OF_FOUR)));
            assert!(refused(group.with_group(4)));
            assert_eq!(nm.unwrap().with_group(4).unwrap().group(), 4);
        }
        // A method that always has a pattern takes another.
        let sr_ste = AnyMethod::from(SrSte::default()).with_nm(NmPattern::new(1, 8).unwrap()).unwrap();
        assert_eq!(sr_ste.nm(), NmPattern::new(1, 8).ok());
    }

    #[test]
    fn structures_are_settings_of_methods_that_may_have_them() {
        let layer = LayerSpec::new("fc", [8, 16]).unwrap();
        let stream = Stream { seed: 1, layer: 0, step: 0 };
        for info in METHODS {
            let build = |settings| info.build(&settings);
            let nm = build(Settings::of([(NM, "1:4".into())]));
            match info.nm {
                Nm::Never => assert!(matches!(nm, Err(Error::Structure { .. })), "{}", info.name),
                _ => {
                    let nm = nm.unwrap();
                    assert_eq!(
                        (nm.nm(), nm.settings().0.get(NM)),
                        (NmPattern::new(1, 4).ok(), Some(&"1:4".into()))
                    );
                    let masks = crate::initial_masks(
                        &*nm,
                        std::slice::from_ref(&layer),
                        &[vec![1.0; 128]],
                        info.initial,
                        (0.9, Default::default()),
                        1,
                    );
                    let (sparsity, mask) = &masks.unwrap()[0];
                    assert!(
                        NmPattern::new(1, 4).unwrap().holds(mask) && mask.nnz() == 32 && *sparsity == 0.75
                    );
                }
            }
            let group = build(Settings::of([(GROUP, 4.0.into())]));
            match info.takes_groups() {
                false => assert!(matches!(group, Err(Error::Structure { .. })), "{}", info.name),
                true => {
                    let group = group.unwrap();
                    assert_eq!(group.group(), 4);
                    let mask = group.initial_mask(&layer, 0.75, stream).unwrap();
                    let rows = mask.words();
                    assert!(
                        rows[..4].iter().all(|row| *row == rows[0])
                            && rows[4..].iter().all(|row| *row == rows[4])
                    );
                    assert_ne!(rows[0], rows[4]);
                    // Both.
                    let both = build(Settings::of([(NM, "1:4".into()), (GROUP, 4.0.into())])).unwrap();
                    assert!(
                        both.nm().is_some()
                            && both.group() == 4
                            && both.label().ends_with(" 1:4, groups of 4")
                    );
                }
            }
        }
        let wrong = |name, value: Value| rigl::INFO.build(&Settings::of([(name, value)])).unwrap_err();
        assert!(matches!(wrong(NM, "4:4".into()), Error::Nm { .. }));
        assert!(matches!(wrong(NM, 2.0.into()), Error::UnknownSetting { .. }));
        for number in [0.0, -1.0, 1.5, f64::NAN, 1e9] {
            assert!(matches!(wrong(GROUP, number.into()), Error::Setting { name: GROUP, .. }), "{number}");
        }
        assert_eq!(rigl::INFO.build(&Settings::of([(GROUP, 1.0.into())])).unwrap(), Rigl.into());
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
        let grouped =
            AnyMethod::from(Srigl::default()).with_nm(NmPattern::TWO_OF_FOUR).unwrap().with_group(4).unwrap();
        let json = serde_json::to_string(&grouped).unwrap();
        let structure = r#""group":4.0,"nm":"2:4""#;
        assert!(json.contains(structure), "{json}");
        assert_eq!(serde_json::from_str::<AnyMethod>(&json).unwrap(), grouped);
        assert_ne!(grouped, AnyMethod::from(Srigl::default()));
    }
}
