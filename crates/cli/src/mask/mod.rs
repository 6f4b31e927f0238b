//! `srigl mask`: topologies for users of any framework, over files of tensors.
//!
//! A layer is a tensor `NAME.weight` of two or more dimensions; `NAME.mask` and `NAME.grad` go with it. [`Store`] reads and
//! writes such files and knows which tensors are layers, `sparsity-core` computes, [`table`] prints.
//!
//! The random numbers of a layer depend on the seed and on its place among all layers, kept dense or not, in
//! the order of their names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use globset::Glob;
use rayon::prelude::*;
use safetensors::Dtype;
use sparsity_core::methods::{AnyMethod, Gradients, MethodInfo, StaticMask};
use sparsity_core::{
    Distribution, InitialMask, Layer, LayerSpec, LayerStats, Mask, NmPattern, Stream, WeightInit,
    initial_masks, initialise_weights, method_sparsities, redistributed_sparsities, update_layer,
};
use srigl_run::{
    FileLayer, InitialMaskFrom, LayerNames, MethodArgs, Store, check_initial_mask, named_parser, print,
    zeros_tell_a_mask,
};

mod table;

use table::{Change, MaskedLayer, PlannedLayer, Report};

/// Arguments of `srigl mask`.
#[derive(Args)]
#[command(after_help = "\
A layer is a tensor NAME.weight of two or more dimensions, [out, in, …], as PyTorch, candle and others store \
them; its rows are neurons. Attention's in_proj_weight is the layer in_proj. Embeddings, told by their names, are no \
layers. Weights may be F32, F16, BF16 or F64, and keep their type; all other tensors and the file's metadata pass \
through unchanged.

Files may be safetensors, an index of shards (model.safetensors.index.json), or PyTorch's .pt; what is written is \
safetensors.

A file for `srigl mask step` from PyTorch, after loss.backward():
  from safetensors.torch import load_file, save_file
  old = load_file(\"old.safetensors\")  # by srigl mask init or step
  masks = {name: mask for name, mask in old.items() if name.endswith(\".mask\")}
  layers = [name.removesuffix(\".mask\") for name in masks]
  weight = lambda name: name if name.endswith(\"_weight\") else name + \".weight\"
  grads = {name + \".grad\": model.get_parameter(weight(name)).grad for name in layers}
  save_file(model.state_dict() | masks | grads, \"now.safetensors\")

Examples:
  srigl mask plan model.safetensors --sparsity 0.9
  srigl mask init model.safetensors -o old.safetensors --sparsity 0.9 --seed 1
  srigl mask step now.safetensors -o new.safetensors --sparsity 0.9 --drop-fraction 0.3
  srigl mask inspect new.safetensors")]
pub struct MaskArgs {
    #[command(subcommand)]
    command: MaskCommand,
}

#[derive(Subcommand)]
enum MaskCommand {
    Plan(PlanArgs),
    Init(InitArgs),
    Step(StepArgs),
    Inspect(InspectArgs),
}

/// Show the sparsity of each layer that a global sparsity leads to
///
/// Looks only at shapes: reads no more than the header of a file of any size, with weights of any type.
#[derive(Args)]
#[command(after_help = "\
Examples:
  srigl mask plan model.safetensors --sparsity 0.9
  srigl mask plan vit.safetensors --sparsity 0.8 --distribution uniform --keep-dense head
  srigl mask plan model.safetensors --nm 2:4
  srigl mask plan gpt2.safetensors --sparsity 0.8 --transposed 'h.*.c_*'
  srigl mask plan model.safetensors.index.json --sparsity 0.5")]
struct PlanArgs {
    /// The file with tensors NAME.weight
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Of M consecutive inputs a neuron reads at most N, as 2:4; the sparsity follows from it
    #[arg(long, value_name = "N:M")]
    nm: Option<NmPattern>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Add a mask to each layer, and zero the weights outside
///
/// Adds NAME.mask (U8, 0 or 1) of the shape of NAME.weight. Layers kept dense get a mask of ones. A file that has masks, or
/// zeros in half of a weight or more, keeps that topology; otherwise the largest weights of each layer stay, or those that the
/// method chooses: snip looks at NAME.grad. Of top-kast and sr-ste, weights outside keep their values.
#[derive(Args)]
#[command(after_help = "\
The file from PyTorch:
  safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")

Examples:
  srigl mask init model.safetensors -o sparse.safetensors --sparsity 0.9
  srigl mask init model.safetensors -o sparse.safetensors --sparsity 0.9 --initial-mask random --seed 1
  srigl mask init model.safetensors -o sparse.safetensors --method rigl --nm 2:4 --initial-mask random --seed 1
  srigl mask init model.safetensors -o sparse.safetensors --method srigl --sparsity 0.9 --group 4
  srigl mask init with-grads.safetensors -o sparse.safetensors --method snip --sparsity 0.9
  srigl mask init model.safetensors -o sparse.safetensors --sparsity 0.9 \\
      --method rigl --keep-dense head --weight-init kaiming-normal")]
struct InitArgs {
    /// The file with tensors NAME.weight
    file: PathBuf,
    /// The file to write; may be the same file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    // srigl draws the same number of inputs for each neuron; the others draw positions anywhere in the layer.
    #[command(flatten)]
    method: MethodArgs<false>,
    #[command(flatten)]
    target: TargetArgs,
    /// Where the masks come from [default: file if it has masks, or zeros in half of a weight or more; otherwise the method's
    /// choice, which for most is magnitude with --weight-init keep, random without]
    #[arg(long, value_enum, value_name = "FROM")]
    initial_mask: Option<InitialMaskFrom>,
    /// Seed of random masks and weights; a layer's depend on its place in the order of names too
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What the active weights of sparse layers start from
    #[arg(long, value_parser = named_parser(&WeightInit::NAMES), default_value = "keep")]
    weight_init: WeightInit,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Update the mask of each layer once, from its weights and dense gradients
///
/// Reads NAME.weight, NAME.grad and NAME.mask (U8 or BOOL); writes the new NAME.weight and NAME.mask, and no
/// gradients. Weights outside the old mask count as 0, whatever the file says, and new ones start at 0; of top-kast and sr-ste all
/// count, and stay. Layers kept dense need neither gradient nor mask and pass unchanged; methods that look at no gradients need none.
/// gmp prunes to --sparsity, which is to be that of the moment. snfs takes NAME.grad for the momentum, and moves weights between
/// layers.
#[derive(Args)]
#[command(after_help = "\
`srigl mask --help` shows how to write the file from PyTorch.

The gradient is dense: ∂loss/∂weight at every position. PyTorch's p.grad is that if the zeros are in the \
weight itself; it is not if the model multiplies by the mask. After the step, zero the optimizer's state too \
where the new mask is 0.

The drop fraction usually decays over the first T = 75 % of the training: α/2 · (1 + cos(π·t/T)), α = 0.3.

Examples:
  srigl mask step now.safetensors -o new.safetensors --sparsity 0.9 \\
      --drop-fraction 0.3 --no-ablate 'head*'
  srigl mask step now.safetensors -o new.safetensors --method rigl --nm 2:4 --drop-fraction 0.3
  srigl mask step now.safetensors -o new.safetensors --sparsity 0.9 \\
      --drop-fraction 0.2 --method set --step 400")]
struct StepArgs {
    /// The file with tensors NAME.weight, NAME.grad and NAME.mask
    file: PathBuf,
    /// The file to write; may be the same file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    method: MethodArgs<false>,
    #[command(flatten)]
    target: TargetArgs,
    /// Share of the active weights to drop and grow, in [0, 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    drop_fraction: f64,
    /// srigl: ablate no neurons in layers of this name; may be repeated, and `none` spares none [default: what looks like
    /// the classifier]
    #[arg(long, value_name = "GLOB", visible_alias = "no-ablation-layers")]
    no_ablate: Vec<String>,
    /// Methods that grow at random: seed of the growth
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Methods that grow at random: number of the optimizer step; another step draws other positions
    #[arg(long, value_name = "N", default_value_t = 1)]
    step: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show shapes, densities, fan-ins and active neurons
///
/// Where a layer has no mask, its non-zero weights count as active. The structure is told, too: N:M if of M consecutive inputs no
/// neuron has more than N, and groups of neurons that share their inputs. Memory does not grow with a safetensors file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  srigl mask inspect sparse.safetensors
  srigl mask inspect sparse.safetensors --json | jq '.layers[] | {name, active, fan_in}'")]
struct InspectArgs {
    /// The file with tensors NAME.weight, and NAME.mask (U8 or BOOL) if it has them
    file: PathBuf,
    #[command(flatten)]
    names: NameArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which tensors are layers.
#[derive(Args)]
struct NameArgs {
    /// Layers of this name are stored as [in, out], as GPT-2's Conv1D and Keras do; may be repeated
    #[arg(long, value_name = "GLOB")]
    transposed: Vec<String>,
    /// Tensors of this name are no layers, whatever they look like; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
}

impl NameArgs {
    /// The layers of a file and what was guessed about it.
    fn layers(&self, file: &Store) -> Result<(Vec<FileLayer>, Vec<String>)> {
        let names = LayerNames { transposed: self.transposed.clone(), exclude: self.exclude.clone() };
        let (layers, guessed) = file.layers(&names)?;
        Ok((layers, file.notes().iter().cloned().chain(guessed).collect()))
    }
}

/// How sparse the model shall be, and where.
#[derive(Args)]
struct TargetArgs {
    /// Share of zeros in all layers together, in [0, 1); needed unless weights have a pattern N:M
    #[arg(long, value_name = "S", allow_negative_numbers = true, conflicts_with = "nm")]
    sparsity: Option<f64>,
    /// How layers share it: erk and er spare small layers (er ignores kernel sizes), uniform does not
    #[arg(long, value_parser = named_parser(&Distribution::NAMES), default_value = "erk")]
    distribution: Distribution,
    /// Keep layers of this name dense; the others make up for them. A pattern such as 'encoder.*.qkv' matches
    /// NAME, without .weight; may be repeated
    #[arg(long, value_name = "GLOB")]
    keep_dense: Vec<String>,
    #[command(flatten)]
    names: NameArgs,
}

impl TargetArgs {
    /// The layers with what is kept dense, and what was guessed.
    fn layers(&self, file: &Store) -> Result<(Vec<FileLayer>, Vec<String>)> {
        // Here too: a file may have masks, to which the sparsity does not matter.
        self.sparsity.map_or(Ok(()), srigl_run::check_sparsity)?;
        let (mut layers, notes) = self.names.layers(file)?;
        let keep_dense = matching("--keep-dense", &self.keep_dense, &layers)?;
        layers.iter_mut().zip(keep_dense).for_each(|(layer, dense)| layer.spec.keep_dense = dense);
        Ok((layers, notes))
    }

    /// Asks for a sparsity, unless it follows from a pattern.
    fn check(&self, method: &AnyMethod) {
        if self.sparsity.is_none() && method.nm().is_none() {
            let missing = "--sparsity <S> or --nm <N:M> is required\n";
            clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, missing).exit();
        }
    }

    /// The global sparsity and how layers share it. A pattern is not shared.
    fn target(&self) -> (f64, Distribution) {
        (self.sparsity.unwrap_or_default(), self.distribution)
    }

    /// The sparsity of each layer by a method.
    fn sparsities(&self, method: &AnyMethod, layers: &[FileLayer]) -> Result<Vec<f64>> {
        let (sparsity, distribution) = self.target();
        Ok(method_sparsities(&**method, &specs(layers), sparsity, distribution)?)
    }
}

/// Says that a pattern has been given together with a sparsity, or which one is meant.
fn note_pattern(method: &AnyMethod, target: &TargetArgs, notes: &mut Vec<String>) {
    if let (Some(nm), Some(_)) = (method.nm(), target.sparsity) {
        notes.push(format!(
            "the sparsity is that of {nm}; --nm gives another pattern, and --sparsity is not used"
        ));
    }
}

fn specs(layers: &[FileLayer]) -> Vec<LayerSpec> {
    layers.iter().map(|layer| layer.spec.clone()).collect()
}

/// Runs `srigl mask`.
///
/// # Errors
/// For a file or setting that does not fit, or an output that cannot be written; no output is left then.
pub fn run(args: MaskArgs) -> Result<()> {
    match args.command {
        MaskCommand::Plan(args) => plan(&args),
        MaskCommand::Init(args) => init(&args),
        MaskCommand::Step(args) => step(&args),
        MaskCommand::Inspect(args) => inspect(&args),
    }
}

fn plan(args: &PlanArgs) -> Result<()> {
    let mut method = AnyMethod::from(StaticMask);
    if let Some(nm) = args.nm {
        method = method.with_nm(nm)?;
    }
    args.target.check(&method);
    let file = Store::open(&args.file)?;
    let (layers, notes) = args.target.layers(&file)?;
    let sparsities = args.target.sparsities(&method, &layers)?;
    let planned =
        layers.iter().zip(sparsities).map(|(layer, sparsity)| PlannedLayer::new(&layer.spec, sparsity));
    let report = Report::plan(planned.collect(), notes);
    table::print(&report, args.json)?;
    print::notes(&report.notes);
    for layer in report.layers.iter().filter(|l| l.fan_in == 0) {
        print::note(&format!(
            "layer `{}` has fewer weights than neurons; srigl needs it dense or less sparse",
            layer.name
        ));
    }
    Ok(())
}

fn init(args: &InitArgs) -> Result<()> {
    let method = args.method.build()?;
    args.target.check(&method);
    check_initial_mask(&method, args.initial_mask)?;
    let mut file = Store::open(&args.file)?;
    let (layers, mut notes) = args.target.layers(&file)?;
    file.check_memory(layers.iter().map(|layer| layer.weight.as_str()))?;
    note_pattern(&method, &args.target, &mut notes);
    if args.weight_init != WeightInit::Keep && method.starts_from_dense_weights() {
        draw_dense(args, &mut file, &layers)?;
    }
    let masks = starting_masks(args, &file, &layers, &method, &mut notes)?;
    note_kept(&method, &mut notes);

    let mut reports = Vec::new();
    for (i, (layer, mask)) in layers.iter().zip(masks).enumerate() {
        if mask.nnz() == mask.positions() {
            check_dense(&file, layer)?;
        } else if method.keeps_inactive_weights() {
            file.weight_fan_ins(layer)?;
        } else if args.weight_init == WeightInit::Keep || method.starts_from_dense_weights() {
            file.weight_fan_ins(layer)?;
            file.mask_weights(layer, &[&mask])?;
        } else {
            let mut weights = file.weights(layer)?;
            let stream = Stream { seed: args.seed, layer: i as u64, step: 0 };
            initialise_weights(&mut weights, &mask, args.weight_init, stream);
            file.set_weights(layer, &weights);
        }
        file.set_mask(layer, &mask, Dtype::U8);
        reports.push(MaskedLayer::of_mask(&layer.spec, &mask, true));
    }
    finish(&Report::masks(reports, notes), args.json, &file, &args.output)
}

/// Draws all weights of the layers that are not kept dense.
fn draw_dense(args: &InitArgs, file: &mut Store, layers: &[FileLayer]) -> Result<()> {
    for (i, layer) in layers.iter().enumerate().filter(|(_, layer)| !layer.spec.keep_dense) {
        let mut weights = file.weights(layer)?;
        let stream = Stream { seed: args.seed, layer: i as u64, step: 0 };
        let all = Mask::full(layer.spec.neurons(), layer.spec.dense_fan_in());
        initialise_weights(&mut weights, &all, args.weight_init, stream);
        file.set_weights(layer, &weights);
    }
    Ok(())
}

/// Says that weights outside the masks are not zero.
fn note_kept(method: &AnyMethod, notes: &mut Vec<String>) {
    if method.keeps_inactive_weights() {
        notes.push(
            "weights outside the masks keep their values: multiply by the mask in the forward pass".into(),
        );
    }
}

/// The mask of each layer to start from; says where they come from.
fn starting_masks(
    args: &InitArgs,
    file: &Store,
    layers: &[FileLayer],
    method: &AnyMethod,
    notes: &mut Vec<String>,
) -> Result<Vec<Mask>> {
    let of_file = match args.initial_mask {
        None if method.starts_dense() => None,
        None | Some(InitialMaskFrom::File) => masks_of_file(file, layers, notes)?,
        Some(_) => None,
    };
    if let Some(masks) = of_file {
        check_structure(method, layers, &masks)?;
        notes.push("the masks are those of the file, whatever --sparsity says".into());
        return Ok(masks);
    }
    let by_default = method.info().initial_with(args.weight_init).into();
    let from = args.initial_mask.unwrap_or(by_default);
    let Some(drawn) = from.drawn() else {
        bail!("--initial-mask file, but the file has neither masks nor zeros");
    };
    notes.push(match drawn {
        _ if method.starts_dense() => "all weights are active at first".into(),
        InitialMask::Random => "the masks are random".into(),
        _ if method.nm().is_some() => {
            format!("the masks keep {}, within each group of inputs", from.words(false))
        }
        _ => format!("the masks keep {}", from.words(method.info().constant_fan_in)),
    });
    let weights = layers.iter().map(|layer| match drawn {
        _ if drawn == InitialMask::Random || layer.spec.keep_dense => Ok(Vec::new()),
        InitialMask::Sensitivity => products(file, layer),
        _ => Ok(file.weights(layer)?),
    });
    let weights: Vec<Vec<f32>> = weights.collect::<Result<_>>()?;
    let masks = initial_masks(&**method, &specs(layers), &weights, drawn, args.target.target(), args.seed)?;
    Ok(masks.into_iter().map(|(_, mask)| mask).collect())
}

/// Refuses masks of a file without the structure that was asked for.
fn check_structure(method: &AnyMethod, layers: &[FileLayer], masks: &[Mask]) -> Result<()> {
    for (layer, mask) in layers.iter().zip(masks).filter(|(_, mask)| mask.nnz() < mask.positions()) {
        let (name, group) = (&layer.spec.name, method.group());
        let advice = "--initial-mask magnitude or random makes others";
        if let Some(nm) = method.nm() {
            ensure!(nm.holds(mask), "the mask of `{name}` in the file has no pattern {nm}; {advice}");
        }
        ensure!(
            mask.shares_inputs(group),
            "neurons of `{name}` do not share inputs, {group} at a time, by the file's mask; {advice}"
        );
    }
    Ok(())
}

/// `W · ∂L/∂W` of each weight.
fn products(file: &Store, layer: &FileLayer) -> Result<Vec<f32>> {
    let mut weights = file.weights(layer)?;
    let Some(grads) = file.grads(layer)? else { return Err(missing_grads(file, layer)) };
    weights.iter_mut().zip(grads).for_each(|(weight, grad)| *weight *= grad);
    Ok(weights)
}

fn missing_grads(file: &Store, layer: &FileLayer) -> anyhow::Error {
    let (grad, weight) = (layer.grad(), &layer.weight);
    file.error(format!("tensor `{grad}` is missing; add the dense gradient of `{weight}`")).into()
}

/// The masks that the file has, or that its zeros tell; ones for other layers and those kept dense. `None` if it has none.
fn masks_of_file(file: &Store, layers: &[FileLayer], notes: &mut Vec<String>) -> Result<Option<Vec<Mask>>> {
    let (mut masks, mut by_zeros, mut found) = (Vec::new(), Vec::new(), false);
    for layer in layers {
        let (n, m) = (layer.spec.neurons(), layer.spec.dense_fan_in());
        let mut mask = Mask::full(n, m);
        if !layer.spec.keep_dense {
            if let Some((given, _)) = file.mask(layer)? {
                (mask, found) = (given, true);
            } else if file.has_floats(layer) {
                let active: usize = file.weight_fan_ins(layer)?.iter().sum();
                if zeros_tell_a_mask(n * m - active, n * m) {
                    let bytes: Vec<u8> = file.weights(layer)?.iter().map(|w| u8::from(*w != 0.0)).collect();
                    (mask, found) = (Mask::from_bytes(n, m, &bytes)?, true);
                    by_zeros.push(layer.spec.name.as_str());
                }
            }
        }
        masks.push(mask);
    }
    if !by_zeros.is_empty() {
        notes.push(format!("no mask in the file, so zeros count as inactive: {}", by_zeros.join(", ")));
    }
    Ok(found.then_some(masks))
}

fn step(args: &StepArgs) -> Result<()> {
    let method = args.method.build()?;
    args.target.check(&method);
    // Here too, not only in the update: there may be no layer to update.
    let fraction = args.drop_fraction;
    ensure!((0.0..=1.0).contains(&fraction), "--drop-fraction is {fraction:?}, but must be in [0, 1]");

    let mut file = Store::open(&args.file)?;
    let (layers, mut notes) = args.target.layers(&file)?;
    file.check_memory(layers.iter().map(|layer| layer.weight.as_str()))?;
    note_pattern(&method, &args.target, &mut notes);
    note_kept(&method, &mut notes);
    let sparsities = args.target.sparsities(&method, &layers)?;
    let no_ablate = spared(&args.no_ablate, &layers, &method, &mut notes)?;
    let inputs = layers.iter().zip(&sparsities).map(|(layer, sparsity)| match sparsity {
        0.0 => check_dense(&file, layer).map(|()| None),
        _ => SparseLayer::read(&file, layer, method.info()).map(Some),
    });
    let inputs: Vec<Option<SparseLayer>> = inputs.collect::<Result<_>>()?;

    let sparse =
        |i: usize| inputs[i].as_ref().map(|input| input.layer(&layers[i], sparsities[i], !no_ablate[i]));
    let there: Vec<Layer> = (0..layers.len()).filter_map(sparse).collect();
    let mut redistributed = redistributed_sparsities(&*method, fraction, &there)?.into_iter();
    let targets: Vec<Option<f64>> =
        inputs.iter().map(|input| input.as_ref().and_then(|_| redistributed.next())).collect();
    let update = |(i, sparsity): (usize, Option<f64>)| {
        let update = |layer: Layer| {
            let layer = Layer { sparsity: sparsity.unwrap_or(layer.sparsity), ..layer };
            let stream = Stream { seed: args.seed, layer: i as u64, step: args.step };
            Ok(update_layer(&*method, fraction, &layer, stream)?)
        };
        sparse(i).map(update).transpose()
    };
    // All results, then the first error: which one is reported must not depend on threads.
    let updates: Vec<Result<_>> = targets.into_par_iter().enumerate().map(update).collect();

    let mut reports = Vec::new();
    for ((layer, update), input) in layers.iter().zip(updates).zip(&inputs) {
        file.remove_grads(layer);
        let Some((input, update)) = input.as_ref().zip(update?) else {
            let mask = mask_of_dense(&file, layer)?;
            let change = Change { pruned: 0, grown: 0 };
            let report = MaskedLayer::of_mask(&layer.spec, &mask, file.has_mask(layer));
            reports.push(report.with_change(change));
            continue;
        };
        // Weights that are not in both masks are 0, grown ones too.
        if !method.keeps_inactive_weights() {
            file.mask_weights(layer, &[&input.mask, &update.mask])?;
        }
        file.set_mask(layer, &update.mask, input.mask_type);
        let change = Change { pruned: update.report.pruned, grown: update.report.grown };
        let report = MaskedLayer::of_mask(&layer.spec, &update.mask, true);
        reports.push(report.with_change(change));
    }
    finish(&Report::masks(reports, notes), args.json, &file, &args.output)
}

/// In which layers no neuron is ablated.
fn spared(
    no_ablate: &[String],
    layers: &[FileLayer],
    method: &AnyMethod,
    notes: &mut Vec<String>,
) -> Result<Vec<bool>> {
    let mut spared = vec![false; layers.len()];
    match no_ablate {
        [none] if none == "none" => {}
        [] => {
            let ablates = method.info().ablates && method.nm().is_none();
            if let Some(i) = Store::classifier(layers) {
                spared[i] = true;
                if ablates && method.variant().flag.is_none() {
                    notes.push(format!(
                        "`{}` is taken for the classifier and loses no neurons; --no-ablate chooses others, or `none`",
                        layers[i].spec.name
                    ));
                }
            }
        }
        globs => spared = matching("--no-ablate", globs, layers)?,
    }
    Ok(spared)
}

/// What `step` reads of a sparse layer.
struct SparseLayer {
    weights: Vec<f32>,
    grads: Vec<f32>,
    mask: Mask,
    mask_type: Dtype,
}

impl SparseLayer {
    fn layer<'a>(&'a self, of: &'a FileLayer, sparsity: f64, ablate: bool) -> Layer<'a> {
        let Self { weights, grads, mask, .. } = self;
        Layer { name: &of.spec.name, weights, grads, mask, sparsity, ablate }
    }

    fn read(file: &Store, layer: &FileLayer, method: &MethodInfo) -> Result<Self> {
        let weights = file.weights(layer)?;
        let grads = match file.grads(layer)? {
            Some(grads) => grads,
            None if method.gradients != Gradients::None => return Err(missing_grads(file, layer)),
            None => vec![0.0; weights.len()], // unused
        };
        let Some((mask, mask_type)) = file.mask(layer)? else {
            let missing = format!("tensor `{}` is missing; `srigl mask init` makes one", layer.mask());
            return Err(file.error(missing).into());
        };
        Ok(Self { weights, grads, mask, mask_type })
    }
}

fn inspect(args: &InspectArgs) -> Result<()> {
    let file = Store::open(&args.file)?;
    let (layers, notes) = args.names.layers(&file)?;
    let report = |layer: &FileLayer| {
        let non_zero = file.weight_fan_ins(layer)?;
        let masked = file.mask_fan_ins(layer)?;
        let has_mask = masked.is_some();
        let stats = LayerStats::of_fan_ins(&masked.unwrap_or(non_zero), layer.spec.dense_fan_in());
        Ok(MaskedLayer::new(&layer.spec, stats, file.structure(layer)?, has_mask))
    };
    let reports = layers.iter().map(report).collect::<Result<_>>()?;
    let report = Report::masks(reports, notes);
    table::print(&report, args.json)?;
    print::notes(&report.notes);
    Ok(())
}

/// Which layers have a name that one of the globs matches.
///
/// # Errors
/// For a glob that is malformed or matches nothing, which is a mistake more often than not.
fn matching(option: &str, globs: &[String], layers: &[FileLayer]) -> Result<Vec<bool>> {
    let mut matched = vec![false; layers.len()];
    for glob in globs {
        let matcher = Glob::new(glob).with_context(|| format!("{option} {glob}"))?.compile_matcher();
        let hits: Vec<bool> = layers.iter().map(|layer| matcher.is_match(&layer.spec.name)).collect();
        if !hits.contains(&true) {
            let names: Vec<String> = layers.iter().take(8).map(|l| format!("`{}`", l.spec.name)).collect();
            let more = if layers.len() > names.len() { ", …" } else { "" };
            bail!("{option} {glob}: no layer has such a name; there are {}{more}", names.join(", "));
        }
        matched.iter_mut().zip(hits).for_each(|(matched, hit)| *matched |= hit);
    }
    Ok(matched)
}

/// Nothing is computed with the weights of a dense layer, so they may have any type; but no method goes on with
/// a model that has diverged.
fn check_dense(file: &Store, layer: &FileLayer) -> Result<()> {
    if file.has_floats(layer) {
        file.weight_fan_ins(layer)?;
    }
    Ok(())
}

/// The mask that a dense layer has in the file, or else ones.
fn mask_of_dense(file: &Store, layer: &FileLayer) -> Result<Mask> {
    let full = || Mask::full(layer.spec.neurons(), layer.spec.dense_fan_in());
    Ok(file.mask(layer)?.map_or_else(full, |(mask, _)| mask))
}

/// Prints the report and writes the output: both, or an error and no output.
fn finish(report: &Report<MaskedLayer>, json: bool, file: &Store, output: &Path) -> Result<()> {
    let staged = file.stage(output)?;
    table::print(report, json)?;
    staged.commit()?;
    print::notes(&report.notes);
    if !json {
        print::line(&format!("wrote `{}`", output.display()))?;
    }
    Ok(())
}
