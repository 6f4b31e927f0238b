//! Everything a training's result depends on.

use crate::MethodArgs;
use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use sparsity_core::methods::{AnyMethod, METHODS};
use sparsity_core::{Distribution, DropSchedule, InitialMask, WeightInit};
use srigl_data::{
    Augment, AutoAugment, Crop, DataSet, Erase, Jitter, Loader, Mixing, Normalise, OnBroken, Options,
    PadMode, Source, Transform,
};
use std::f64::consts::PI;
use std::path::PathBuf;

/// Topology updates after which the masks are drawn, spread over a run.
const PICTURED_UPDATES: u64 = 12;

/// More threads than any machine that this runs on has; each takes some megabytes.
const MAX_THREADS: usize = 1024;

/// The first setting of two structures that differs, as a flag without its dashes; those named in `elsewhere` do not count.
pub fn differing_setting<C: Serialize>(now: &C, before: &C, elsewhere: &[&str]) -> Option<String> {
    let settings = |config: &C| serde_json::to_value(config).unwrap_or_default();
    differing(&settings(now), &settings(before), elsewhere)
}

fn differing(now: &serde_json::Value, before: &serde_json::Value, elsewhere: &[&str]) -> Option<String> {
    let (now, before) = (now.as_object()?, before.as_object()?);
    // A setting that is not there has its default.
    let mut keys = now.keys().chain(before.keys()).filter(|key| !elsewhere.contains(&key.as_str()));
    let key = keys.find(|key| now.get(*key) != before.get(*key))?;
    let within = now.get(key).zip(before.get(key)).and_then(|(now, before)| differing(now, before, &[]));
    Some(within.unwrap_or_else(|| key.replace('_', "-")))
}

/// Checks the value of `--sparsity`.
///
/// # Errors
/// If it is not in `[0, 1)`.
pub fn check_sparsity(sparsity: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&sparsity), "--sparsity is {sparsity:?}, but must be in [0, 1)");
    Ok(())
}

/// Checks that a method has a use for `--initial-mask`.
///
/// # Errors
/// If it is given and the method starts with all weights.
pub fn check_initial_mask(method: &AnyMethod, given: Option<InitialMaskFrom>) -> Result<()> {
    ensure!(
        given.is_none() || !method.starts_dense(),
        "--initial-mask: --method {} starts with all weights; leave it out",
        method.info().name
    );
    Ok(())
}

/// Checks `--threads` of any command.
///
/// # Errors
/// If there are none, or too many.
pub fn check_threads(threads: usize) -> Result<()> {
    ensure!((1..=MAX_THREADS).contains(&threads), "--threads is {threads}, but must be 1 to {MAX_THREADS}");
    Ok(())
}

/// A parser of command lines for values that have names, each with what it does.
pub fn named_parser<T: Copy + Send + Sync + 'static>(
    names: &'static [(&'static str, &'static str, T)],
) -> impl TypedValueParser<Value = T> {
    let possible = names.iter().map(|(name, about, _)| PossibleValue::new(*name).help(*about));
    PossibleValuesParser::new(possible).map(|given| {
        let found = names.iter().find(|(name, ..)| *name == given);
        found.expect("one of the possible values").2
    })
}

/// A network by name, with the sizes that can be chosen. The crate `srigl-models` knows the names.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelArgs {
    /// Network.
    #[arg(long = "model", id = "model", default_value = "mlp")]
    #[serde(rename = "model")]
    pub name: String,
    /// ResNet-18 and -50: channels after the first convolution [default: 64]. Vision transformers: numbers of a token
    /// [default: 768; vit-tiny: 64].
    #[arg(long, value_name = "FEATURES", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u16>,
    /// Vision transformers: height and width of a patch [default: 16; vit-tiny: 8].
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<u16>,
    /// MobileNetV3 and vision transformers: share of numbers dropped in training [default: 0.2 before MobileNetV3's
    /// classifier, as in torchvision; 0 in vision transformers].
    #[arg(long, value_name = "SHARE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
}

/// The names of [`Distribution::NAMES`] in files.
mod distribution {
    use super::Distribution;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Distribution, serializer: S) -> Result<S::Ok, S::Error> {
        let found = Distribution::NAMES.iter().find(|(.., known)| known == value);
        serializer.serialize_str(found.map_or("erk", |(name, ..)| name))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Distribution, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Distribution::NAMES.iter().find(|(known, ..)| *known == name);
        found.map(|(.., value)| *value).ok_or_else(|| D::Error::custom(format!("no distribution `{name}`")))
    }
}

/// Settings of a run, kept as `config.json`: same settings and data, same result. The flags of `srigl train` are its fields.
///
/// ```
/// use srigl_run::Config;
///
/// let config = Config { epochs: 10, sparsity: 0.95, ..Config::default() };
/// assert_eq!(config.title(), "mlp SRigL with ablation");
/// assert_eq!(config.lr_at(1, 1000), 0.1);
/// ```
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Network.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Data set; `glyphs` is generated and needs no files.
    #[arg(long, value_enum, default_value = "fashion-mnist")]
    pub dataset: DataSet,

    /// Training method with its settings.
    #[command(flatten)]
    #[serde(flatten)]
    pub method: MethodArgs,
    /// Share of zeros over all linear and convolution weights, in [0, 1).
    #[arg(long, default_value_t = 0.9, conflicts_with = "nm")]
    pub sparsity: f64,
    /// How the sparsity is shared among layers.
    #[arg(long, value_parser = named_parser(&Distribution::NAMES), default_value = "erk")]
    #[serde(with = "distribution")]
    pub distribution: Distribution,
    /// erk: the power of its scores; 0 shares the sparsity evenly.
    #[arg(long, default_value_t = 1.0, value_name = "POWER")]
    #[serde(default = "one")]
    pub erk_power: f64,
    /// Layers kept dense (glob over module paths, repeatable).
    #[arg(long, value_name = "GLOB")]
    pub keep_dense: Vec<String>,
    /// srigl: layers in which no neuron is ablated (glob over module paths, repeatable), or `none` [default: the classifier].
    #[arg(long, value_name = "GLOB")]
    #[serde(default)]
    pub no_ablation_layers: Vec<String>,
    /// Steps between topology updates.
    #[arg(long, default_value_t = 100)]
    pub delta_t: u64,
    /// Share of the weights that the first update replaces.
    #[arg(long, default_value_t = 0.3)]
    pub drop_fraction: f64,
    /// How that share falls until updates end.
    #[arg(long, value_parser = named_parser(&DropSchedule::NAMES), default_value = "cosine")]
    #[serde(default)]
    pub drop_schedule: DropSchedule,
    /// Topology updates end after this share of all steps.
    #[arg(long, default_value_t = 0.75)]
    pub end_fraction: f64,
    /// Steps whose dense gradients are averaged for an update.
    #[arg(long, default_value_t = 1)]
    pub grad_accumulation: u64,

    /// What sparse layers are while they train: `condensed` computes with the active weights alone, `masked` with all weights and
    /// a mask. The masks are the same. A run may go on with the other one [default: condensed on CPUs, masked on GPUs].
    #[arg(long, value_enum)]
    #[serde(default = "Storage::of_old_runs")]
    pub storage: Option<Storage>,

    /// Passes over the training images.
    #[arg(long, default_value_t = 4)]
    pub epochs: usize,
    /// Images per optimizer step.
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Images per forward pass, whose gradients are added up to those of the batch, where memory is short. Batch
    /// normalisation sees these [default: the batch].
    #[arg(long, value_name = "IMAGES")]
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Optimizer.
    #[arg(long, value_enum, default_value = "sgd")]
    pub optimizer: OptimizerName,
    /// Learning rate at the start, or after the warm-up.
    #[arg(long, default_value_t = 0.1)]
    pub lr: f64,
    /// Momentum of SGD and RMSprop.
    #[arg(long, default_value_t = 0.9)]
    pub momentum: f64,
    /// SGD: Nesterov's momentum, as in the authors' code.
    #[arg(long)]
    #[serde(default)]
    pub nesterov: bool,
    /// Adam and AdamW: decay of the means of gradients and of their squares.
    #[arg(long, value_name = "B1,B2", value_parser = betas, default_value = "0.9,0.999")]
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Weight decay.
    #[arg(long, default_value_t = 1e-4)]
    pub weight_decay: f64,
    /// No weight decay on biases and normalisations.
    #[arg(long)]
    #[serde(default)]
    pub decay_weights_only: bool,
    /// Scale the gradients where the norm of all of them together is larger.
    #[arg(long, value_name = "NORM")]
    #[serde(default)]
    pub clip_norm: Option<f32>,
    /// How the learning rate falls.
    #[arg(long, value_enum, default_value = "cosine")]
    pub lr_schedule: LrSchedule,
    /// Epochs at the start in which the learning rate rises linearly from 0.
    #[arg(long, default_value_t = 0, value_name = "EPOCHS")]
    #[serde(default)]
    pub warmup_epochs: usize,
    /// `step`: epochs after which the learning rate falls, such as 30,70,90.
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',', conflicts_with = "lr_every")]
    #[serde(default)]
    pub lr_milestones: Vec<usize>,
    /// `step`: the learning rate falls every so many epochs.
    #[arg(long, value_name = "EPOCHS")]
    #[serde(default)]
    pub lr_every: Option<usize>,
    /// `step`: factor by which the learning rate falls.
    #[arg(long, default_value_t = 0.1, value_name = "FACTOR")]
    #[serde(default = "default_lr_factor")]
    pub lr_factor: f64,
    /// Label smoothing.
    #[arg(long, default_value_t = 0.0)]
    pub label_smoothing: f32,

    /// Seed of everything random: initial weights and masks, order of images, dropout, growth.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Show training images as they are. Otherwise colour photographs are cropped and flipped at random: CIFAR within a
    /// border of 4 pixels, image folders by random resized crops.
    #[arg(long)]
    #[serde(default)]
    pub no_augment: bool,
    /// Operations on whole pictures, as torchvision's: `imagenet` is AutoAugment's policy of that name, `rand` is RandAugment.
    #[arg(long, value_enum, value_name = "POLICY", conflicts_with = "no_augment")]
    #[serde(default)]
    pub auto_augment: Option<AutoAugment>,
    /// Share of the training images in which a random rectangle is erased.
    #[arg(long, value_name = "SHARE", conflicts_with = "no_augment")]
    #[serde(default)]
    pub random_erase: Option<f64>,
    /// Mix images and labels of each batch by mixup, with shares from Beta(A, A). Beside --cutmix-alpha, one of both at
    /// random.
    #[arg(long, value_name = "A", conflicts_with = "no_augment")]
    #[serde(default)]
    pub mixup_alpha: Option<f64>,
    /// Paste rectangles of other images into those of a batch by CutMix, with areas from Beta(A, A).
    #[arg(long, value_name = "A", conflicts_with = "no_augment")]
    #[serde(default)]
    pub cutmix_alpha: Option<f64>,
    /// Image folders: resize the shorter side to one of these sizes at random and crop anywhere, instead of random resized
    /// crops.
    #[arg(long, value_name = "SIDE,SIDE", value_parser = two_sides, conflicts_with = "no_augment")]
    #[serde(default)]
    pub resize_from: Option<[usize; 2]>,
    /// What lies in the border of CIFAR's images.
    #[arg(long, value_enum, default_value = "black")]
    #[serde(default)]
    pub pad_mode: PadMode,
    /// Leave pixels in [0, 1] instead of subtracting the mean and dividing by the deviation.
    #[arg(long)]
    #[serde(default)]
    pub no_normalise: bool,
    /// Leave out the last batch of an epoch if it is smaller than the others.
    #[arg(long)]
    #[serde(default)]
    pub drop_last: bool,
    /// Image folders: classes may have no pictures.
    #[arg(long)]
    #[serde(default)]
    pub allow_empty: bool,
    /// Also change brightness, contrast and saturation at random, each by up to this factor more or less.
    #[arg(long, value_name = "STRENGTH", conflicts_with = "no_augment")]
    #[serde(default)]
    pub color_jitter: Option<f32>,
    /// Height and width that images of an image folder get; for tests they are resized to 8/7 of it and their middle
    /// is taken [default: 224].
    #[arg(long, value_name = "PIXELS")]
    #[serde(default)]
    pub image_size: Option<usize>,
    /// Leave out images that cannot be read, naming each, instead of stopping at the first.
    #[arg(long)]
    #[serde(default)]
    pub skip_broken: bool,
    /// Start from these weights, named as torchvision names them: safetensors, an index of shards or PyTorch's .pt.
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// The classifier of --weights is of other classes: start with a new one.
    #[arg(long, requires = "weights")]
    #[serde(default)]
    pub new_head: bool,
    /// Where the first masks come from [default: with --weights those of the file, or if it has none the largest weights
    /// of each layer; otherwise random].
    #[arg(long, value_enum, value_name = "FROM")]
    #[serde(default)]
    pub initial_mask: Option<InitialMaskFrom>,
    /// What the active weights of sparse layers start from [default: keep with --weights, otherwise kaiming-normal].
    #[arg(long, value_parser = named_parser(&WeightInit::NAMES))]
    #[serde(default)]
    pub weight_init: Option<WeightInit>,
    /// Take at most so many steps; schedules fit into them, and updates of the topology come as much closer.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    #[serde(default)]
    pub limit_steps: Option<u64>,
    /// Use only that many training images.
    #[arg(long)]
    pub train_limit: Option<usize>,
    /// Use only that many test images.
    #[arg(long)]
    pub test_limit: Option<usize>,
    /// Also write a checkpoint every so many steps, not only after each epoch.
    #[arg(long, value_name = "STEPS")]
    pub checkpoint_every: Option<u64>,
    /// When the run got more epochs than it was started with, oldest first.
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extended: Vec<Extension>,
}

/// One `--extend-to`. Its schedules are those of the longer run from then on, so the run is another than one that had the
/// epochs from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Epochs that the run had before.
    pub epochs: usize,
    /// Optimizer steps taken until then.
    pub step: u64,
}

/// `--optimizer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerName {
    /// SGD with momentum.
    Sgd,
    /// Adam.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
    /// RMSprop with momentum, α = 0.9 and ε = 0.0316, as in torchvision's recipes.
    Rmsprop,
}

/// `--storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// Dense weights, of which a mask makes most 0.
    Masked,
    /// The active weights alone.
    Condensed,
}

impl Storage {
    /// Of runs from before there was a choice.
    fn of_old_runs() -> Option<Self> {
        Some(Self::Masked)
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Masked => "masked",
            Self::Condensed => "condensed",
        }
    }
}

/// `--initial-mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialMaskFrom {
    /// The largest weights of each layer, of each neuron with constant fan-in.
    Magnitude,
    /// The largest weights of all layers together.
    GlobalMagnitude,
    /// The weights that a first batch is most sensitive to, of all layers together: those with the largest |W · ∂loss/∂W|.
    Sensitivity,
    /// At random.
    Random,
    /// The masks of the file, or its exact zeros.
    File,
}

impl From<InitialMask> for InitialMaskFrom {
    fn from(drawn: InitialMask) -> Self {
        match drawn {
            InitialMask::Magnitude => Self::Magnitude,
            InitialMask::GlobalMagnitude => Self::GlobalMagnitude,
            InitialMask::Sensitivity => Self::Sensitivity,
            InitialMask::Random => Self::Random,
        }
    }
}

impl InitialMaskFrom {
    /// How masks are made, unless they are the file's.
    pub fn drawn(self) -> Option<InitialMask> {
        match self {
            Self::Magnitude => Some(InitialMask::Magnitude),
            Self::GlobalMagnitude => Some(InitialMask::GlobalMagnitude),
            Self::Sensitivity => Some(InitialMask::Sensitivity),
            Self::Random => Some(InitialMask::Random),
            Self::File => None,
        }
    }

    /// What is active, in a few words, for a method with or without constant fan-in.
    pub fn words(self, constant_fan_in: bool) -> &'static str {
        match self {
            Self::Magnitude if constant_fan_in => "the largest weights of each neuron",
            Self::Magnitude => "the largest weights of each layer",
            Self::GlobalMagnitude => "the largest weights of all layers",
            Self::Sensitivity => "the weights of all layers with the largest |W · ∂loss/∂W|",
            Self::Random => "random",
            Self::File => "that of the file",
        }
    }
}

/// How many steps a run takes, and when its topology changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Optimizer steps of the run.
    pub total: u64,
    /// Those of all its epochs, which `--limit-steps` may cut short.
    pub planned: u64,
    /// `ΔT`, as much shorter as the run is.
    pub delta_t: u64,
    /// Steps whose dense gradients are averaged, at most `ΔT`.
    pub grad_accumulation: u64,
}

/// `--lr-schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// Half a cosine down to 0.
    Cosine,
    /// The same all along.
    Constant,
    /// Falls at milestones.
    Step,
}

fn default_lr_factor() -> f64 {
    0.1
}

fn one() -> f64 {
    1.0
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

/// `256,480`.
fn two_sides(text: &str) -> Result<[usize; 2], String> {
    let sides =
        text.split_once(',').and_then(|(a, b)| Some([a.trim().parse().ok()?, b.trim().parse().ok()?]));
    sides.ok_or_else(|| "must be two sizes, such as 256,480".into())
}

/// `0.9,0.999`.
fn betas(text: &str) -> Result<[f64; 2], String> {
    let (first, second) = text.split_once(',').ok_or("must be two numbers, such as 0.9,0.999")?;
    let beta = |text: &str| text.trim().parse::<f64>().ok().filter(|beta| (0.0..1.0).contains(beta));
    match (beta(first), beta(second)) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err("must be two numbers in [0, 1), such as 0.9,0.999".into()),
    }
}

impl Default for Config {
    /// What `srigl train` does without flags.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            config: Config,
        }
        <Flags as clap::Parser>::parse_from(["srigl"]).config
    }
}

impl Config {
    /// The sparsity that an N:M pattern leads to, in place of one that was not given. To be called once the settings are read.
    ///
    /// # Errors
    /// If another sparsity was given, too.
    pub fn settle(&mut self) -> Result<()> {
        if let Some(nm) = self.method.nm() {
            let given = self.sparsity;
            ensure!(
                given == Self::default().sparsity || given == nm.share_of_zeros(),
                "--sparsity is {given}, but that of --method {} follows from its pattern, {nm}: give --nm N:M alone",
                self.method.info().name
            );
            self.sparsity = nm.share_of_zeros();
        }
        Ok(())
    }

    /// All settings, but for those of other methods. Runs of before a setting was there have its default.
    pub fn own_settings(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut settings = match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(settings)) => settings,
            _ => serde_json::Map::new(),
        };
        let others = METHODS.iter().filter(|info| info.name != self.method.info().name);
        others.flat_map(|info| info.settings).for_each(|setting| drop(settings.remove(setting.name)));
        settings
    }

    /// Where the masks of a run come from that are not those of a file.
    pub fn masks_from(&self) -> InitialMaskFrom {
        self.initial_mask.unwrap_or_else(|| self.method.info().initial.into())
    }

    /// Checks what the sparsity library does not.
    pub fn validate(&self) -> Result<()> {
        check_sparsity(self.sparsity)?;
        check_initial_mask(&self.method.build()?, self.initial_mask)?;
        ensure!(self.epochs > 0, "--epochs must be at least 1");
        ensure!(self.batch_size > 0, "--batch-size must be at least 1");
        ensure!(self.delta_t > 0, "--delta-t must be at least 1");
        ensure!(self.micro_batch != Some(0), "--micro-batch must be at least 1");
        ensure!(
            self.warmup_epochs <= self.epochs,
            "--warmup-epochs {} is longer than the run of --epochs {}",
            self.warmup_epochs,
            self.epochs
        );
        ensure!(
            self.clip_norm.is_none_or(|norm| norm.is_finite() && norm > 0.0),
            "--clip-norm must be positive"
        );
        let steps = self.lr_every.is_some() || !self.lr_milestones.is_empty();
        ensure!(
            steps == (self.lr_schedule == LrSchedule::Step),
            "--lr-schedule step needs --lr-milestones or --lr-every, and only that has them"
        );
        ensure!(self.lr_every != Some(0), "--lr-every must be at least 1");
        ensure!(
            self.grad_accumulation >= 1 && self.grad_accumulation <= self.delta_t,
            "--grad-accumulation is {}, but must be at least 1 and at most --delta-t {}",
            self.grad_accumulation,
            self.delta_t
        );
        ensure!(
            self.erk_power.is_finite()
                && (self.erk_power == 1.0 || matches!(self.distribution, Distribution::Erk { .. })),
            "--erk-power is {:?}, but must be finite, and only --distribution erk has it",
            self.erk_power
        );
        ensure!(
            !self.nesterov || (self.optimizer == OptimizerName::Sgd && self.momentum > 0.0),
            "--nesterov is for --optimizer sgd with --momentum"
        );
        ensure!(
            self.weights.is_some()
                || matches!(
                    self.initial_mask,
                    None | Some(InitialMaskFrom::Random | InitialMaskFrom::Sensitivity)
                ),
            "--initial-mask looks at weights: add --weights FILE"
        );
        ensure!(
            self.weights.is_some() || self.weight_init != Some(WeightInit::Keep),
            "--weight-init keep keeps the weights of a file: add --weights FILE"
        );
        let from = self.masks_from();
        ensure!(
            from != InitialMaskFrom::Sensitivity || matches!(self.weight_init, None | Some(WeightInit::Keep)),
            "--weight-init: masks by sensitivity keep the network's own weights, by which they are chosen; leave it out"
        );
        ensure!(
            self.model.dropout.is_none_or(|share| (0.0..1.0).contains(&share)),
            "--dropout must be in [0, 1)"
        );
        ensure!(
            self.lr_factor.is_finite() && self.lr_factor > 0.0,
            "--lr-factor is {:?}, but must be positive",
            self.lr_factor
        );
        ensure!(self.lr.is_finite() && self.lr > 0.0, "--lr is {:?}, but must be positive", self.lr);
        ensure!(
            (0.0..1.0).contains(&self.momentum),
            "--momentum is {:?}, but must be in [0, 1)",
            self.momentum
        );
        ensure!(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "--weight-decay is {}, but must not be negative",
            self.weight_decay
        );
        ensure!(
            (0.0..=1.0).contains(&self.end_fraction),
            "--end-fraction is {:?}, but must be in [0, 1]",
            self.end_fraction
        );
        ensure!(
            (0.0..1.0).contains(&self.label_smoothing),
            "--label-smoothing is {:?}, but must be in [0, 1)",
            self.label_smoothing
        );
        ensure!(self.train_limit != Some(0) && self.test_limit != Some(0), "image limits must be at least 1");
        ensure!(self.checkpoint_every != Some(0), "--checkpoint-every must be at least 1");
        Ok(())
    }

    /// What is done to images before the network sees them.
    pub fn transform(&self, source: &Source) -> Result<Transform> {
        let folder = matches!(source, Source::Folder(_));
        ensure!(
            folder || self.image_size.is_none(),
            "--image-size is for image folders; images of {} have their size",
            source.set()
        );
        let size = self.image_size.unwrap_or(224);
        let mut transform = match folder {
            true => Transform::imagenet(size, size.saturating_mul(8) / 7),
            false => Transform::standard(source),
        };
        if self.no_augment {
            ensure!(
                !folder,
                "--no-augment leaves the pictures of an image folder different in size; leave it out"
            );
            transform.train = Augment::default();
        }
        if let Some(sides) = self.resize_from {
            ensure!(folder, "--resize-from is for image folders; images of {} have their size", source.set());
            transform.train.crop = Crop::Scaled { sides, size };
        }
        match &mut transform.train.crop {
            Crop::Pad { mode, .. } => *mode = self.pad_mode,
            _ => ensure!(
                self.pad_mode == PadMode::Black,
                "--pad-mode is for CIFAR, whose images are cropped within a border"
            ),
        }
        if let Some(strength) = self.color_jitter {
            let jitter = Jitter { brightness: strength, contrast: strength, saturation: strength };
            transform.train.jitter = Some(jitter);
        }
        transform.train.auto = self.auto_augment;
        transform.train.erase = self.random_erase.map(|probability| Erase { probability });
        let (mixup_alpha, cutmix_alpha) = (self.mixup_alpha, self.cutmix_alpha);
        let mixes = mixup_alpha.is_some() || cutmix_alpha.is_some();
        transform.mix = mixes.then_some(Mixing { mixup_alpha, cutmix_alpha });
        if self.no_normalise {
            transform.normalise = Normalise::none();
        }
        Ok(transform)
    }

    /// Height and width of the images that the network sees.
    pub fn image_size(&self) -> [usize; 2] {
        let side = match self.dataset {
            DataSet::Cifar10 | DataSet::Cifar100 => 32,
            DataSet::ImageFolder => self.image_size.unwrap_or(224),
            _ => 28,
        };
        [side; 2]
    }

    /// Batches of `source`, made ahead by so many threads.
    pub fn loader(&self, source: Source, workers: usize) -> Result<Loader> {
        let transform = self.transform(&source)?;
        let on_broken = if self.skip_broken { OnBroken::Skip } else { OnBroken::Fail };
        let (train_limit, test_limit, drop_last) = (self.train_limit, self.test_limit, self.drop_last);
        Loader::new(source, transform, Options { workers, on_broken, train_limit, test_limit, drop_last })
    }

    /// In a few words.
    pub fn title(&self) -> String {
        format!("{} {}", self.model.name, self.method.label())
    }

    /// The first setting, as a flag without its dashes, by which a run of these settings cannot go on with what a run of
    /// `before` has left. Where the weights of the start lie, when checkpoints are written, and how sparse layers are stored
    /// does not count.
    pub fn differing_key(&self, before: &Self) -> Option<String> {
        const ELSEWHERE: [&str; 5] = ["checkpoint_every", "epochs", "extended", "storage", "weights"];
        if let Some(key) = differing_setting(self, before, &ELSEWHERE) {
            return Some(key);
        }
        if self.weights.is_some() != before.weights.is_some() {
            return Some("weights".into());
        }
        let same = self.epochs == before.epochs && self.extended == before.extended;
        (!same).then(|| "epochs".into())
    }

    /// These settings with as many epochs as a run of `before` has by now, if it was started with this command line: it may
    /// have been extended since.
    pub fn going_on_with(&self, before: &Self) -> Self {
        let (mut config, extended) = (self.clone(), before.extended.clone());
        if extended.iter().any(|extension| extension.epochs == self.epochs) || self.epochs == before.epochs {
            (config.epochs, config.extended) = (before.epochs, extended);
        }
        config
    }

    /// The settings of this run from step `step` on with more epochs.
    ///
    /// # Errors
    /// If they are not more, or the run is limited in its steps.
    pub fn extended_to(&self, epochs: usize, step: u64) -> Result<Self> {
        ensure!(
            epochs > self.epochs,
            "--extend-to {epochs}, but the run has {} epochs already: give a larger number",
            self.epochs
        );
        ensure!(self.limit_steps.is_none(), "--extend-to has no effect on a run with --limit-steps");
        let mut config = self.clone();
        config.extended.push(Extension { epochs: self.epochs, step });
        config.epochs = epochs;
        Ok(config)
    }

    /// Learning rate of step `step` (from 1) of `total`.
    pub fn lr_at(&self, step: u64, total: u64) -> f64 {
        let epoch = |epochs: usize| epochs as f64 / self.epochs as f64 * total as f64;
        let (done, warmup) = ((step - 1) as f64, epoch(self.warmup_epochs));
        if done < warmup {
            return self.lr * step as f64 / warmup.max(1.0);
        }
        match self.lr_schedule {
            LrSchedule::Constant => self.lr,
            LrSchedule::Cosine => {
                self.lr / 2.0 * (1.0 + (PI * (done - warmup) / (total as f64 - warmup)).cos())
            }
            LrSchedule::Step => {
                let falls = match self.lr_every {
                    Some(every) => (done / epoch(every)) as usize,
                    None => self.lr_milestones.iter().filter(|milestone| done >= epoch(**milestone)).count(),
                };
                self.lr * self.lr_factor.powi(falls as i32)
            }
        }
    }

    /// How many steps a run takes that has so many an epoch.
    ///
    /// # Errors
    /// If they are too many to count.
    pub fn steps(&self, per_epoch: usize) -> Result<Steps> {
        let planned = (per_epoch as u64).checked_mul(self.epochs as u64).with_context(|| {
            format!("--epochs {} of {per_epoch} steps are too many to count", self.epochs)
        })?;
        let total = self.limit_steps.map_or(planned, |limit| limit.min(planned));
        let share = total as f64 / planned.max(1) as f64;
        let mut delta_t = ((self.delta_t as f64 * share).round() as u64).max(1);
        if total < planned {
            // A run that is cut short to try it changes its topology at least twice, if it has the steps.
            delta_t = delta_t.min((self.end_step(total).saturating_sub(1) / 2).max(1));
        }
        Ok(Steps { total, planned, delta_t, grad_accumulation: self.grad_accumulation.min(delta_t) })
    }

    /// How the sparsity is shared, with the power of ERK.
    pub fn shared(&self) -> Distribution {
        match self.distribution {
            Distribution::Erk { .. } => Distribution::Erk { power: self.erk_power },
            other => other,
        }
    }

    /// `T_end`.
    pub fn end_step(&self, total_steps: u64) -> u64 {
        (total_steps as f64 * self.end_fraction) as u64
    }

    /// Whether the masks are drawn after step `step`: after some updates, evenly spread, and at the end.
    pub fn is_pictured(&self, step: u64, steps: &Steps) -> bool {
        if step == steps.total {
            return true;
        }
        let updates = self.end_step(steps.total).saturating_sub(1) / steps.delta_t;
        let picture = |update: u64| update * PICTURED_UPDATES / updates;
        let update = step / steps.delta_t;
        let changes = self.method.info().changes();
        let is_update = step.is_multiple_of(steps.delta_t) && (1..=updates).contains(&update);
        changes && is_update && picture(update) != picture(update - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn config(flags: &str) -> Config {
        Cli::parse_from(["train"].into_iter().chain(flags.split_whitespace())).config
    }

    #[test]
    fn methods_that_start_dense_take_no_initial_mask() {
        use sparsity_core::methods::{Gmp, Rigl};
        let (gmp, rigl) = (AnyMethod::from(Gmp), AnyMethod::from(Rigl));
        let given = Some(InitialMaskFrom::Magnitude);
        assert!(check_initial_mask(&rigl, given).is_ok() && check_initial_mask(&gmp, None).is_ok());
        let error = check_initial_mask(&gmp, given).unwrap_err().to_string();
        assert!(error.contains("--method gmp starts with all weights"), "{error}");
    }

    #[test]
    fn runs_from_before_there_was_a_choice_are_masked() {
        let mut old = serde_json::to_value(config("--storage condensed")).unwrap();
        old.as_object_mut().unwrap().remove("storage").unwrap();
        assert_eq!(serde_json::from_value::<Config>(old).unwrap().storage, Some(Storage::Masked));
        assert_eq!([Storage::Masked, Storage::Condensed].map(Storage::name), ["masked", "condensed"]);
        for storage in [Storage::Masked, Storage::Condensed] {
            assert_eq!(config(&format!("--storage {}", storage.name())).storage, Some(storage));
        }
    }

    #[test]
    fn a_pattern_says_the_sparsity() {
        let settled = |given: Option<f64>| {
            let mut config = config("--method rigl --nm 1:4");
            config.sparsity = given.unwrap_or(config.sparsity);
            config.settle().map(|()| config.sparsity).map_err(|error| error.to_string())
        };
        assert_eq!(settled(None), Ok(0.75));
        assert_eq!(settled(Some(0.75)), Ok(0.75));
        assert!(settled(Some(0.8)).unwrap_err().contains("--sparsity is 0.8"));
        let mut none = config("--sparsity 0.8");
        none.settle().unwrap();
        assert_eq!(none.sparsity, 0.8);
    }

    #[test]
    fn settings_of_other_methods_do_not_count() {
        let [srigl, rigl] = ["--method srigl", "--method rigl"].map(|flags| config(flags).own_settings());
        assert!(srigl.contains_key("gamma_sal") && !rigl.contains_key("gamma_sal"));
        assert!([&srigl, &rigl].iter().all(|own| own.contains_key("sparsity")));
    }

    #[test]
    fn learning_rates_follow_the_recipes() {
        // 10 steps an epoch.
        let imagenet =
            config("--lr 0.2 --epochs 103 --warmup-epochs 5 --lr-schedule step --lr-milestones 30,70,90");
        imagenet.validate().unwrap();
        let lr = |step| (imagenet.lr_at(step, 1030) * 1e6).round() / 1e6;
        assert_eq!(
            [1, 25, 50, 51, 300, 301, 701, 901].map(lr),
            [0.004, 0.1, 0.2, 0.2, 0.2, 0.02, 0.002, 0.0002]
        );

        let mobilenet = config("--lr 0.064 --epochs 600 --lr-schedule step --lr-every 2 --lr-factor 0.973");
        let lr = |step| mobilenet.lr_at(step, 6000);
        assert_eq!([lr(20), lr(21)], [0.064, 0.064 * 0.973]);
        assert!((lr(6000) - 0.064 * 0.973_f64.powi(299)).abs() < 1e-12);

        let vit = config("--lr 3e-3 --epochs 150 --warmup-epochs 16");
        let lr = |step| vit.lr_at(step, 1500);
        assert!((lr(160) - 3e-3).abs() < 1e-12 && (lr(161) - 3e-3).abs() < 1e-12);
        assert!((lr(161 + 670) - 1.5e-3).abs() < 1e-9 && lr(1500) < 1e-7);

        assert!(config("--lr-schedule step").validate().is_err());
        assert!(config("--lr-every 3").validate().is_err());
    }

    #[test]
    fn updates_come_closer_where_steps_are_limited() {
        let steps = |flags: &str, per_epoch| config(flags).steps(per_epoch).unwrap();
        let limited = steps("--epochs 103 --delta-t 800 --grad-accumulation 8 --limit-steps 20", 2502);
        assert_eq!(limited, Steps { total: 20, planned: 257_706, delta_t: 1, grad_accumulation: 1 });
        assert_eq!(steps("--epochs 103 --delta-t 800 --limit-steps 20", 3).delta_t, 7);
        let half = steps("--epochs 2 --delta-t 30 --grad-accumulation 8 --limit-steps 100", 100);
        assert_eq!((half.delta_t, half.grad_accumulation), (15, 8));
        let whole = steps("--epochs 2 --delta-t 30 --limit-steps 900", 100);
        assert_eq!((whole.total, whole.delta_t), (200, 30));
        assert!(config("--epochs 18446744073709551615").steps(100).is_err());
    }

    #[test]
    fn pictures_are_spread_over_the_updates() {
        // 14 updates, one after each ten steps of the first 150 of 200; after the last of them pictures end, but for the end.
        let config = config("--epochs 2 --delta-t 10");
        let steps = config.steps(100).unwrap();
        let pictured: Vec<u64> = (1..=200).filter(|step| config.is_pictured(*step, &steps)).collect();
        assert_eq!(pictured.len(), 1 + PICTURED_UPDATES.min(14) as usize, "{pictured:?}");
        assert_eq!((pictured[pictured.len() - 2], pictured[pictured.len() - 1]), (140, 200), "{pictured:?}");
        assert!(pictured[0] <= 20 && !config.is_pictured(150, &steps), "{pictured:?}");
        // The first comes when a picture's share of the updates is done.
        let many = super::Config { delta_t: 1, ..config };
        let steps = many.steps(100).unwrap();
        let first = (1..).find(|step| many.is_pictured(*step, &steps)).unwrap();
        assert_eq!(first, 149_u64.div_ceil(PICTURED_UPDATES));
    }

    #[test]
    fn a_run_goes_on_with_as_many_epochs_as_it_has() {
        let before = config("--epochs 2");
        assert_eq!(before.differing_key(&before), None);
        let longer = before.extended_to(4, 10).unwrap();
        let other = before.extended_to(4, 20).unwrap();
        // As many epochs, but otherwise extended.
        assert_eq!(longer.differing_key(&other).as_deref(), Some("epochs"));
        assert_eq!(config("--epochs 3").differing_key(&before).as_deref(), Some("epochs"));
    }

    #[test]
    fn threads_and_sparsity_are_within_bounds() {
        assert!([1, MAX_THREADS].map(check_threads).iter().all(Result::is_ok));
        assert!([0, MAX_THREADS + 1, usize::MAX].map(check_threads).iter().all(Result::is_err));
        assert!([0.0, 0.99].map(check_sparsity).iter().all(Result::is_ok));
        assert!([-0.1, 1.0, f64::NAN, f64::INFINITY].map(check_sparsity).iter().all(Result::is_err));
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        for flags in [
            "--nesterov --optimizer adam",
            "--erk-power 2 --distribution uniform",
            "--initial-mask magnitude",
            "--weight-init keep",
            "--grad-accumulation 101",
            "--dropout 1",
        ] {
            assert!(config(flags).validate().is_err(), "{flags}");
        }
        let betas = |text: &str| Cli::try_parse_from(["train", "--betas", text]).map(|cli| cli.config.betas);
        assert_eq!(betas("0.95,0.98").unwrap(), [0.95, 0.98]);
        assert!(betas("0.9").is_err() && betas("0.9,1").is_err());
    }

    #[test]
    fn a_run_that_is_not_cut_short_updates_when_it_was_told_to() {
        // Two updates would fit into 150 steps every 74, but that is for runs that are cut short.
        assert_eq!(config("--epochs 2 --delta-t 90").steps(100).unwrap().delta_t, 90);
        let cut = config("--epochs 2 --delta-t 190 --limit-steps 199").steps(100).unwrap();
        assert_eq!((cut.total, cut.delta_t), (199, 74), "half of the 148 steps before T_end = 149");
    }

    #[test]
    fn warm_up_rises_in_equal_steps_from_the_first() {
        let lr = |flags: &str, step, total| (config(flags).lr_at(step, total) * 1e9).round() / 1e9;
        // Four epochs of ten steps.
        let flags = "--epochs 4 --warmup-epochs 2 --lr 0.4 --lr-schedule constant";
        assert_eq!([1, 2, 20, 21, 40].map(|step| lr(flags, step, 40)), [0.02, 0.04, 0.4, 0.4, 0.4]);
        // Half a step of warm-up is one step of it.
        assert_eq!(lr("--epochs 8 --warmup-epochs 1 --lr 0.4 --lr-schedule constant", 1, 4), 0.4);
        // The cosine falls over what the warm-up leaves: a quarter of the way after five of twenty steps.
        let flags = "--epochs 4 --warmup-epochs 2 --lr 0.4";
        assert_eq!(lr(flags, 26, 40), ((1.0 + (PI / 4.0).cos()) * 0.2 * 1e9).round() / 1e9);
    }

    #[test]
    fn learning_rates_fall_after_the_epochs_they_are_told() {
        let every = config("--epochs 6 --lr 1 --lr-schedule step --lr-every 2 --lr-factor 0.5");
        assert_eq!(
            [1, 20, 21, 40, 41, 60].map(|step| every.lr_at(step, 60)),
            [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
        );
    }

    #[test]
    fn names_stand_for_their_distribution_on_command_lines_and_in_files() {
        for (name, _, distribution) in Distribution::NAMES {
            let config = config(&format!("--distribution {name}"));
            assert_eq!(config.distribution, distribution);
            let json = serde_json::to_value(&config).unwrap();
            assert_eq!(json["distribution"], name);
            assert_eq!(serde_json::from_value::<Config>(json).unwrap(), config);
        }
        let json = serde_json::to_string(&Config::default()).unwrap();
        let error = serde_json::from_str::<Config>(&json.replace("\"erk\"", "\"magic\"")).unwrap_err();
        assert!(error.to_string().starts_with("no distribution `magic`"), "{error}");
        assert_eq!(config("--erk-power 0.5").shared(), Distribution::Erk { power: 0.5 });
        assert_eq!(config("--distribution er").shared(), Distribution::Er);
    }

    #[test]
    fn settings_that_older_runs_lack_are_the_defaults_of_the_flags() {
        let mut json = serde_json::to_value(Config::default()).unwrap();
        let fields = json.as_object_mut().unwrap();
        for key in ["erk_power", "betas", "lr_factor", "nesterov", "micro_batch", "pad_mode", "clip_norm"] {
            assert!(fields.remove(key).is_some(), "{key}");
        }
        assert_eq!(serde_json::from_value::<Config>(json).unwrap(), Config::default());
    }

    #[test]
    fn masks_come_from_where_they_are_said_to() {
        use InitialMaskFrom::{File, GlobalMagnitude, Magnitude, Random};
        for (from, drawn, [free, constant]) in [
            (
                Magnitude,
                Some(InitialMask::Magnitude),
                ["the largest weights of each layer", "the largest weights of each neuron"],
            ),
            (GlobalMagnitude, Some(InitialMask::GlobalMagnitude), ["the largest weights of all layers"; 2]),
            (Random, Some(InitialMask::Random), ["random"; 2]),
            (File, None, ["that of the file"; 2]),
        ] {
            assert_eq!((from.drawn(), from.words(false), from.words(true)), (drawn, free, constant));
        }
    }

    #[test]
    fn a_step_schedule_needs_its_steps_and_no_other_has_them() {
        for (flags, is_right) in [
            ("", true),
            ("--lr-schedule step --lr-every 2", true),
            ("--lr-schedule step --lr-milestones 2", true),
            ("--lr-schedule step", false),
            ("--lr-every 2", false),
            ("--lr-milestones 2", false),
        ] {
            assert_eq!(config(flags).validate().is_ok(), is_right, "{flags}");
        }
    }

    #[test]
    fn a_change_of_settings_is_named_unless_it_cannot_matter() {
        let before = config("");
        assert_eq!(before.differing_key(&config("")), None);
        assert_eq!(before.differing_key(&config("--checkpoint-every 7")), None);
        assert_eq!(before.differing_key(&config("--batch-size 7")), Some("batch-size".into()));
    }

    #[test]
    fn titles_say_network_and_kind_of_run() {
        assert_eq!(config("--model resnet18 --no-ablation").title(), "resnet18 SRigL without ablation");
    }

    #[test]
    fn networks_see_images_of_the_size_of_their_set() {
        let side = |flags: &str| config(flags).image_size();
        assert_eq!(side("--dataset cifar100"), [32; 2]);
        assert_eq!(side("--dataset glyphs"), [28; 2]);
        assert_eq!(side("--dataset image-folder"), [224; 2]);
        assert_eq!(side("--dataset image-folder --image-size 96"), [96; 2]);
    }

    /// Two images of `channels`, in memory.
    fn images(channels: usize) -> Source {
        let split = || srigl_data::Split { images: vec![0; channels * 4], labels: vec![0] };
        let names = vec!["a class".to_string()];
        let splits = (split(), split());
        Source::Memory(srigl_data::Images::new(
            DataSet::Glyphs,
            "here".into(),
            splits,
            names,
            [channels, 2, 2],
        ))
    }

    /// A folder with one picture to train and one to test on.
    fn folder() -> Source {
        let folder = tempfile::tempdir().unwrap();
        for part in ["train", "val"] {
            std::fs::create_dir_all(folder.path().join(part).join("class")).unwrap();
            std::fs::write(folder.path().join(part).join("class/a.png"), "not opened here").unwrap();
        }
        srigl_data::open(DataSet::ImageFolder, Some(folder.path()), false).unwrap()
    }

    #[test]
    fn flags_change_what_is_usual_for_the_images() {
        let transform = |flags: &str, source: &Source| config(flags).transform(source);
        let (grey, colour, folder) = (images(1), images(3), folder());
        for source in [&grey, &colour, &folder] {
            assert_eq!(transform("", source).unwrap(), Transform::standard(source));
        }
        // Pictures to test on are resized to 8/7 of what is taken of them, as 256 is of 224.
        assert_eq!(transform("--image-size 98", &folder).unwrap(), Transform::imagenet(98, 112));
        let reflected = transform("--pad-mode reflect", &colour).unwrap();
        assert_eq!(reflected.train.crop, Crop::Pad { border: 4, mode: PadMode::Reflect });
        let scaled = transform("--resize-from 256,480", &folder).unwrap();
        assert_eq!(scaled.train.crop, Crop::Scaled { sides: [256, 480], size: 224 });
        assert_eq!(transform("--no-augment", &colour).unwrap().train, Augment::default());
        assert_eq!(transform("--no-normalise", &grey).unwrap().normalise, Normalise::none());
        for (flags, mixup_alpha, cutmix_alpha) in [
            ("--mixup-alpha 0.2", Some(0.2), None),
            ("--cutmix-alpha 1", None, Some(1.0)),
            ("--mixup-alpha 0.2 --cutmix-alpha 1", Some(0.2), Some(1.0)),
        ] {
            let mix = transform(flags, &grey).unwrap().mix;
            assert_eq!(mix, Some(Mixing { mixup_alpha, cutmix_alpha }), "{flags}");
        }
        for (flags, source) in [
            ("--image-size 98", &grey),
            ("--resize-from 256,480", &grey),
            ("--pad-mode reflect", &grey),
            ("--no-augment", &folder),
        ] {
            assert!(transform(flags, source).is_err(), "{flags}");
        }
    }

    #[test]
    fn two_sizes_are_read() {
        assert_eq!(two_sides("256, 480").unwrap(), [256, 480]);
        assert!(two_sides("256").is_err() && two_sides("256,x").is_err());
    }

    #[test]
    fn masks_are_drawn_after_updates_spread_over_the_run_and_at_the_end() {
        let drawn = |config: &Config, total| -> Vec<u64> {
            let steps = Steps { total, planned: total, delta_t: config.delta_t, grad_accumulation: 1 };
            (1..=total).filter(|step| config.is_pictured(*step, &steps)).collect()
        };
        assert_eq!(drawn(&config("--delta-t 10"), 40), [10, 20, 40]);
        let many = drawn(&config("--delta-t 2"), 1000);
        assert_eq!(many.len() as u64, PICTURED_UPDATES + 1);
        assert!(many[..12].iter().all(|step| step % 2 == 0 && *step < 750));
        assert_eq!(drawn(&config("--method static"), 1000), [1000]);
        assert_eq!(drawn(&config("--delta-t 2000"), 1000), [1000]);
    }
}
