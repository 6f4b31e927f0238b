//! `srigl mask`: topologies for users of any framework, over safetensors files.
//!
//! A layer is a tensor `NAME.weight` of two or more dimensions, `[out, in, …]`; `NAME.mask` and `NAME.grad` go
//! with it. [`Store`] reads and writes such files, `sparsity-core` computes, [`table`] prints.
//!
//! The random numbers of a layer depend on the seed and on its place among all layers, kept dense or not, in
//! the order of their names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use globset::Glob;
use rayon::prelude::*;
use safetensors::Dtype;
use sparsity_core::methods::MethodInfo;
use sparsity_core::{
    Distribution, Layer, LayerSpec, Mask, Stream, WeightInit, initial_mask, initialise_weights,
    layer_sparsities, settle_weights, update_layer,
};
use srigl_run::{MethodArgs, Store, named_parser, print, read_file};

mod table;

use table::{Change, MaskedLayer, PlannedLayer, Report};

/// Arguments of `srigl mask`.
#[derive(Args)]
#[command(after_help = "\
A layer is a tensor NAME.weight of two or more dimensions, [out, in, …], as PyTorch, candle and others store \
them; its rows are neurons. Embeddings look like layers too: keep them dense. All other tensors, of any type, \
and the file's metadata pass through unchanged.

A file for `srigl mask step` from PyTorch, after loss.backward():
  from safetensors.torch import load_file, save_file
  old = load_file(\"old.safetensors\")  # by srigl mask init or step
  masks = {name: mask for name, mask in old.items() if name.endswith(\".mask\")}
  grads = {name.replace(\".mask\", \".grad\"): model.get_parameter(
      name.replace(\".mask\", \".weight\")).grad for name in masks}
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
/// Looks only at shapes, so that weights of any type will do.
#[derive(Args)]
#[command(after_help = "\
Examples:
  srigl mask plan model.safetensors --sparsity 0.9
  srigl mask plan vit.safetensors --sparsity 0.8 --distribution uniform \\
      --keep-dense head --keep-dense '*embed*'")]
struct PlanArgs {
    /// The safetensors file with tensors NAME.weight
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Add a random mask to each layer, and zero the weights outside
///
/// Adds NAME.mask (U8, 0 or 1) of the shape of NAME.weight. Layers kept dense get a mask of ones.
#[derive(Args)]
#[command(after_help = "\
The file from PyTorch:
  safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")

Examples:
  srigl mask init model.safetensors -o sparse.safetensors --sparsity 0.9 --seed 1
  srigl mask init model.safetensors -o sparse.safetensors --sparsity 0.9 \\
      --method rigl --keep-dense head --weight-init kaiming-normal")]
struct InitArgs {
    /// The safetensors file with tensors NAME.weight (F32) and no masks
    file: PathBuf,
    /// The file to write; may be the same file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    // srigl draws the same number of inputs for each neuron; the others draw positions anywhere in the layer.
    #[command(flatten)]
    method: MethodArgs<false>,
    #[command(flatten)]
    target: TargetArgs,
    /// Seed of masks and weights; a layer's depend on its place in the order of names too
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
/// Reads NAME.weight, NAME.grad (F32) and NAME.mask (U8 or BOOL); writes the new NAME.weight and NAME.mask, and no
/// gradients. Weights outside the old mask count as 0, whatever the file says, and new ones start at 0. Layers
/// kept dense need neither gradient nor mask and pass unchanged; set and static need no gradients.
#[derive(Args)]
#[command(after_help = "\
`srigl mask --help` shows how to write the file from PyTorch.

The gradient is dense: ∂loss/∂weight at every position. PyTorch's p.grad is that if the zeros are in the \
weight itself; it is not if the model multiplies by the mask. After the step, zero the optimizer's state too \
where the new mask is 0.

The drop fraction usually decays over the first T = 75 % of the training: α/2 · (1 + cos(π·t/T)), α = 0.3.

Examples:
  srigl mask step now.safetensors -o new.safetensors --sparsity 0.9 \\
      --drop-fraction 0.3 --no-ablate head
  srigl mask step now.safetensors -o new.safetensors --sparsity 0.9 \\
      --drop-fraction 0.2 --method set --step 400")]
struct StepArgs {
    /// The safetensors file with tensors NAME.weight, NAME.grad and NAME.mask
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
    /// srigl: ablate no neurons in layers of this name, such as the classifier; may be repeated
    #[arg(long, value_name = "GLOB")]
    no_ablate: Vec<String>,
    /// set: seed of the random growth
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// set: number of the optimizer step; another step draws other positions
    #[arg(long, value_name = "N", default_value_t = 1)]
    step: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show shapes, densities, fan-ins and active neurons
///
/// Where a layer has no mask, its non-zero weights count as active.
#[derive(Args)]
#[command(after_help = "\
Examples:
  srigl mask inspect sparse.safetensors
  srigl mask inspect sparse.safetensors --json | jq '.layers[] | {name, active, fan_in}'")]
struct InspectArgs {
    /// The safetensors file with tensors NAME.weight (F32), and NAME.mask (U8 or BOOL) if it has them
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How sparse the model shall be, and where.
#[derive(Args)]
struct TargetArgs {
    /// Share of zeros in all layers together, in [0, 1)
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    sparsity: f64,
    /// How layers share it: erk and er spare small layers (er ignores kernel sizes), uniform does not
    #[arg(long, value_parser = named_parser(&Distribution::NAMES), default_value = "erk")]
    distribution: Distribution,
    /// Keep layers of this name dense; the others make up for them. A pattern such as 'encoder.*.qkv' matches
    /// NAME, without .weight; may be repeated
    #[arg(long, value_name = "GLOB")]
    keep_dense: Vec<String>,
}

impl TargetArgs {
    /// The layers with what is kept dense, and their sparsities.
    fn layer_sparsities(&self, file: &Store) -> Result<(Vec<LayerSpec>, Vec<f64>)> {
        let mut layers = file.layers()?;
        let keep_dense = matching("--keep-dense", &self.keep_dense, &layers)?;
        layers.iter_mut().zip(keep_dense).for_each(|(layer, dense)| layer.keep_dense = dense);
        let sparsities = layer_sparsities(&layers, self.sparsity, self.distribution)?;
        Ok((layers, sparsities))
    }
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
    let bytes = read_file(&args.file)?;
    let (layers, sparsities) = args.target.layer_sparsities(&Store::parse(&args.file, &bytes)?)?;
    let planned = layers.iter().zip(sparsities).map(|(layer, sparsity)| PlannedLayer::new(layer, sparsity));
    let report = Report::plan(planned.collect());
    table::print(&report, args.json)?;
    for layer in report.layers.iter().filter(|l| l.fan_in == 0) {
        eprintln!(
            "note: layer `{}` has fewer weights than neurons; srigl needs it dense or less sparse",
            layer.name
        );
    }
    Ok(())
}

fn init(args: &InitArgs) -> Result<()> {
    let bytes = read_file(&args.file)?;
    let mut file = Store::parse(&args.file, &bytes)?;
    let (layers, sparsities) = args.target.layer_sparsities(&file)?;
    let method = args.method.build()?;

    let mut reports = Vec::new();
    for (i, (layer, sparsity)) in layers.iter().zip(sparsities).enumerate() {
        if file.has_mask(layer) {
            return Err(file
                .error(format!(
                    "tensor `{}.mask` is there already; update it with `srigl mask step`, or remove it to start anew",
                    layer.name
                ))
                .into());
        }
        let stream = Stream { seed: args.seed, layer: i as u64, step: 0 };
        let mask = initial_mask(&*method, layer, sparsity, stream)?;
        if sparsity == 0.0 {
            check_dense(&file, layer)?;
        } else {
            let mut weights = file.weights(layer)?;
            initialise_weights(&mut weights, &mask, args.weight_init, stream);
            file.set_weights(layer, &weights);
        }
        file.set_mask(layer, &mask, Dtype::U8);
        reports.push(MaskedLayer::new(layer, &mask, true));
    }
    finish(&Report::masks(reports), args.json, &file, &args.output)
}

fn step(args: &StepArgs) -> Result<()> {
    let method = args.method.build()?;
    // Here too, not only in the update: there may be no layer to update.
    let fraction = args.drop_fraction;
    ensure!((0.0..=1.0).contains(&fraction), "drop fraction {fraction} is outside [0, 1]");

    let bytes = read_file(&args.file)?;
    let mut file = Store::parse(&args.file, &bytes)?;
    let (layers, sparsities) = args.target.layer_sparsities(&file)?;
    let no_ablate = matching("--no-ablate", &args.no_ablate, &layers)?;
    let inputs = layers.iter().zip(&sparsities).map(|(layer, sparsity)| match sparsity {
        0.0 => check_dense(&file, layer).map(|()| None),
        _ => SparseLayer::read(&file, layer, args.method.info()).map(Some),
    });
    let inputs: Vec<Option<SparseLayer>> = inputs.collect::<Result<_>>()?;

    let update = |(i, input): (usize, Option<SparseLayer>)| {
        let update = |input: SparseLayer| {
            let (name, sparsity, ablate) = (&layers[i].name, sparsities[i], !no_ablate[i]);
            let (weights, grads, mask) = (&input.weights, &input.grads, &input.mask);
            let layer = Layer { name, weights, grads, mask, sparsity, ablate };
            let stream = Stream { seed: args.seed, layer: i as u64, step: args.step };
            let update = update_layer(&*method, fraction, &layer, stream)?;
            Ok((input, update))
        };
        input.map(update).transpose()
    };
    // All results, then the first error: which one is reported must not depend on threads.
    let updates: Vec<Result<_>> = inputs.into_par_iter().enumerate().map(update).collect();

    let mut reports = Vec::new();
    for (layer, update) in layers.iter().zip(updates) {
        file.remove_grads(layer);
        let Some((mut input, update)) = update? else {
            let mask = mask_of_dense(&file, layer)?;
            let change = Change { pruned: 0, grown: 0 };
            reports.push(MaskedLayer::new(layer, &mask, file.has_mask(layer)).with_change(change));
            continue;
        };
        settle_weights(&mut input.weights, &input.mask, &update.mask);
        file.set_weights(layer, &input.weights);
        file.set_mask(layer, &update.mask, input.mask_type);
        let change = Change { pruned: update.report.pruned, grown: update.report.grown };
        reports.push(MaskedLayer::new(layer, &update.mask, true).with_change(change));
    }
    finish(&Report::masks(reports), args.json, &file, &args.output)
}

/// What `step` reads of a sparse layer.
struct SparseLayer {
    weights: Vec<f32>,
    grads: Vec<f32>,
    mask: Mask,
    mask_type: Dtype,
}

impl SparseLayer {
    fn read(file: &Store, layer: &LayerSpec, method: &MethodInfo) -> Result<Self> {
        let name = &layer.name;
        let weights = file.weights(layer)?;
        let grads = match file.grads(layer)? {
            Some(grads) => grads,
            None if method.needs.dense_gradients => {
                let missing =
                    format!("tensor `{name}.grad` is missing; add the dense gradient of `{name}.weight`");
                return Err(file.error(missing).into());
            }
            None => vec![0.0; weights.len()], // unused
        };
        let Some((mask, mask_type)) = file.mask(layer)? else {
            let missing = format!("tensor `{name}.mask` is missing; `srigl mask init` makes one");
            return Err(file.error(missing).into());
        };
        Ok(Self { weights, grads, mask, mask_type })
    }
}

fn inspect(args: &InspectArgs) -> Result<()> {
    let bytes = read_file(&args.file)?;
    let file = Store::parse(&args.file, &bytes)?;
    let report = |layer: &LayerSpec| {
        let weights = file.weights(layer)?;
        let (mask, has_mask) = match file.mask(layer)? {
            Some((mask, _)) => (mask, true),
            None => (non_zero(layer, &weights)?, false),
        };
        Ok(MaskedLayer::new(layer, &mask, has_mask))
    };
    let layers = file.layers()?.iter().map(report).collect::<Result<_>>()?;
    table::print(&Report::masks(layers), args.json)
}

/// Which layers have a name that one of the globs matches.
///
/// # Errors
/// For a glob that is malformed or matches nothing, which is a mistake more often than not.
fn matching(option: &str, globs: &[String], layers: &[LayerSpec]) -> Result<Vec<bool>> {
    let mut matched = vec![false; layers.len()];
    for glob in globs {
        let matcher = Glob::new(glob).with_context(|| format!("{option} {glob}"))?.compile_matcher();
        let hits: Vec<bool> = layers.iter().map(|layer| matcher.is_match(&layer.name)).collect();
        if !hits.contains(&true) {
            let names: Vec<String> = layers.iter().take(8).map(|l| format!("`{}`", l.name)).collect();
            let more = if layers.len() > names.len() { ", …" } else { "" };
            bail!("{option} {glob}: no layer has such a name; there are {}{more}", names.join(", "));
        }
        matched.iter_mut().zip(hits).for_each(|(matched, hit)| *matched |= hit);
    }
    Ok(matched)
}

/// Nothing is computed with the weights of a dense layer, so they may have any type; but no method goes on with
/// a model that has diverged.
fn check_dense(file: &Store, layer: &LayerSpec) -> Result<()> {
    if file.is_f32(layer) {
        file.weights(layer)?;
    }
    Ok(())
}

/// The mask that a dense layer has in the file, or else ones.
fn mask_of_dense(file: &Store, layer: &LayerSpec) -> Result<Mask> {
    let full = || Mask::full(layer.neurons(), layer.dense_fan_in());
    Ok(file.mask(layer)?.map_or_else(full, |(mask, _)| mask))
}

/// The positions that are not zero.
fn non_zero(layer: &LayerSpec, weights: &[f32]) -> Result<Mask> {
    let bytes: Vec<u8> = weights.iter().map(|w| u8::from(*w != 0.0)).collect();
    Ok(Mask::from_bytes(layer.neurons(), layer.dense_fan_in(), &bytes)?)
}

/// Prints the report and writes the output: both, or an error and no output.
fn finish(report: &Report<MaskedLayer>, json: bool, file: &Store, output: &Path) -> Result<()> {
    let staged = file.stage(output)?;
    table::print(report, json)?;
    staged.commit()?;
    if !json {
        print::line(&format!("wrote `{}`", output.display()))?;
    }
    Ok(())
}
