//! `srigl condense`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use condensed::{Network, Op, Weight};
use serde::Serialize;
use srigl_models::{ModelInfo, ModelSpec};
use srigl_run::{RunFolder, atomic, print};
use srigl_train::{Model, NamedTensor, Weights, condense};

/// Arguments of `srigl condense`.
#[derive(Args)]
#[command(after_help = "\
A file of weights holds tensors in PyTorch's names and layout: NAME.weight [out, in, …] of any floating-point type, with \
NAME.mask (U8 or BOOL, 0 or 1) for sparse ones, as `srigl train` and `srigl mask` write them, or with NAME.weight_orig and \
NAME.weight_mask, as torch.nn.utils.prune does. Where a weight has no mask but \
half of it or more is exactly 0, its zeros tell the mask, and the report says so.

Batch normalisations are folded into the convolutions before them. The file is read by `srigl predict` and by \
the crate `condensed`.

Examples:
  srigl condense runs/srigl95 -o srigl95.condensed.safetensors
  srigl condense sparse.safetensors --model resnet50 -o resnet50.condensed.safetensors --json")]
pub struct CondenseArgs {
    /// Run folder of `srigl train`, or a file with the weights of --model: safetensors, an index of shards or PyTorch's .pt
    source: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// mlp, mnist-cnn, resnet8, resnet18, resnet50, vit-b-16, …; a run folder knows its own
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Height and width of the images, such as 28x28 [default: those of the run, or the model's usual ones]
    #[arg(long, value_name = "HxW", value_parser = image_size)]
    image: Option<[usize; 2]>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Condenses the model of a run or file.
///
/// # Errors
/// For a source that is damaged or does not fit the model, or an output that cannot be written; no output is
/// left then.
pub fn run(args: CondenseArgs) -> Result<()> {
    let Source { path, model, image } = source(&args)?;
    let Model::Tensors(file) = Model::open(&path)? else {
        bail!("`{}` is condensed already", path.display());
    };
    let weights = Weights::of(&file, ModelInfo::named(&model)?)?;
    let dense_bytes = weights.tensors.values().map(|tensor| tensor.values.len() * 4).sum();
    let shapes = shapes(&weights.tensors);
    let spec = spec(&model, &weights.tensors, image)?;
    let network = condense(&spec, &weights.tensors).with_context(|| format!("`{}`", path.display()))?;
    let mut layers = layers(&network, &shapes);
    let network = network.fold().with_context(|| format!("`{}`", path.display()))?;
    for layer in &mut layers {
        layer.complete(&network, &weights.masks_from_zeros);
    }
    let condensed = condensed::to_bytes(&network)?;
    let report = Report {
        model,
        bytes_before: dense_bytes,
        bytes_after: condensed.len(),
        output: &args.output,
        layers,
    };

    let staged = atomic::stage(&args.output, |file| file.write_all(&condensed))?;
    print::notes(&weights.notes);
    print::either(args.json, &report, Report::text)?;
    staged.commit()?;
    if !args.json {
        print::line(&format!("wrote `{}`", args.output.display()))?;
    }
    Ok(())
}

/// The network of this name with the sizes that its tensors have.
pub fn spec(
    model: &str,
    tensors: &BTreeMap<String, NamedTensor>,
    image: Option<[usize; 2]>,
) -> Result<ModelSpec> {
    let spec = ModelInfo::named(model)?.of_tensors(|name| Some(tensors.get(name)?.shape.clone()));
    let spec = image.map_or(spec, |image| spec.with_image(image));
    spec.check()?;
    Ok(spec)
}

/// What is condensed.
struct Source {
    /// The file of weights.
    path: PathBuf,
    /// The model's name.
    model: String,
    /// Height and width of images, unless they are the model's usual ones.
    image: Option<[usize; 2]>,
}

/// `28x28`, height first.
fn image_size(text: &str) -> Result<[usize; 2], String> {
    let sides =
        text.split_once('x').and_then(|(height, width)| Some([height.parse().ok()?, width.parse().ok()?]));
    sides.ok_or_else(|| "must be height and width, such as 28x28".to_string())
}

fn source(args: &CondenseArgs) -> Result<Source> {
    let name = args.source.display();
    if !args.source.is_dir() {
        let known = srigl_models::names().join(", ");
        let model = args.model.clone().with_context(|| {
            format!("`{name}` does not say which model it is of: add --model with one of {known}")
        })?;
        return Ok(Source { path: args.source.clone(), model, image: args.image });
    }
    let (folder, config) = RunFolder::existing(&args.source)?;
    let model = config.model.name.clone();
    if let Some(other) = args.model.as_ref().filter(|other| **other != model) {
        bail!("`{name}` is a run of {model}, not of {other}: leave out --model");
    }
    Ok(Source { path: folder.model(false)?, model, image: args.image.or(Some(config.image_size())) })
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    output: &'a Path,
    /// All parameters and statistics as F32.
    bytes_before: usize,
    /// The whole condensed file.
    bytes_after: usize,
    /// Layers with weights, in the order in which they run.
    layers: Vec<LayerReport>,
}

#[derive(Serialize)]
struct LayerReport {
    name: String,
    /// `[out, in, …]`, before anything was removed.
    shape: Vec<usize>,
    /// Whether it was condensed; other layers stay dense.
    condensed: bool,
    /// Whether its zeros told its mask.
    mask_from_zeros: bool,
    /// Weights of each active neuron, if all have the same number.
    fan_in: Option<usize>,
    fan_in_min: usize,
    fan_in_max: usize,
    /// Neurons without weights.
    ablated: usize,
    /// Neurons that the condensed network does not have.
    removed: usize,
    /// Weights and bias, dense F32.
    bytes_before: usize,
    /// Weights and bias in the condensed network.
    bytes_after: usize,
}

/// Dimensions of all weights, by the name of the layer.
fn shapes(tensors: &BTreeMap<String, NamedTensor>) -> BTreeMap<String, Vec<usize>> {
    let layer =
        |name: &String| name.strip_suffix("weight").map(|layer| layer.trim_end_matches(['.', '_']).into());
    tensors.iter().filter_map(|(name, tensor)| Some((layer(name)?, tensor.shape.clone()))).collect()
}

/// Weight and bias of a layer.
fn parameters(op: &Op) -> Option<(&Weight, &[f32])> {
    match op {
        Op::Linear(layer) => Some((&layer.weight, &layer.bias)),
        Op::Conv2d(layer) => Some((&layer.weight, &layer.bias)),
        _ => None,
    }
}

fn layers(network: &Network, shapes: &BTreeMap<String, Vec<usize>>) -> Vec<LayerReport> {
    let layer = |node: &condensed::Node| {
        let (weight, bias) = parameters(&node.op)?;
        let (neurons, shape) = (bias.len(), shapes.get(&node.name));
        let size = match weight {
            Weight::Dense(values) => values.len(),
            Weight::Condensed(sparse) => neurons * sparse.inputs(),
        };
        let fan_ins = match weight {
            Weight::Dense(values) => vec![values.len() / neurons.max(1)],
            Weight::Condensed(sparse) => {
                (0..sparse.active().len()).map(|i| sparse.row_range(i).len()).collect()
            }
        };
        let (min, max) = (fan_ins.iter().min().copied(), fan_ins.iter().max().copied());
        let ablated = match weight {
            Weight::Dense(_) => 0,
            Weight::Condensed(sparse) => neurons - sparse.active().len(),
        };
        Some(LayerReport {
            name: node.name.clone(),
            shape: shape.cloned().unwrap_or_else(|| vec![neurons, size / neurons.max(1)]),
            condensed: matches!(weight, Weight::Condensed(_)),
            mask_from_zeros: false,
            fan_in: min.filter(|_| min == max),
            fan_in_min: min.unwrap_or(0),
            fan_in_max: max.unwrap_or(0),
            ablated,
            removed: neurons,
            bytes_before: 4 * (size + neurons),
            bytes_after: 0,
        })
    };
    network.nodes().iter().filter_map(layer).collect()
}

impl LayerReport {
    /// Adds what became of it.
    fn complete(&mut self, network: &Network, masks_from_zeros: &[String]) {
        let node = network.nodes().iter().find(|node| node.name == self.name);
        if let Some((weight, bias)) = node.and_then(|node| parameters(&node.op)) {
            self.removed -= bias.len();
            self.bytes_after = weight.bytes() + bias.len() * 4;
        }
        let names = [format!("{}.weight", self.name), format!("{}_weight", self.name)];
        self.mask_from_zeros = names.iter().any(|name| masks_from_zeros.contains(name));
    }
}

impl Report<'_> {
    fn text(&self) -> String {
        let header = ["layer", "shape", "fan-in", "ablated", "removed", "bytes before", "bytes after"];
        let row = |l: &LayerReport| {
            let fan_in = match (l.condensed, l.fan_in) {
                (false, _) => "dense".to_string(),
                (true, Some(k)) => k.to_string(),
                (true, None) if l.ablated == l.shape[0] => "none".to_string(),
                (true, None) => format!("varies {}…{}", l.fan_in_min, l.fan_in_max),
            };
            let mut row = vec![l.name.clone(), print::shape(&l.shape), fan_in];
            row.extend([l.ablated, l.removed, l.bytes_before, l.bytes_after].map(|n| n.to_string()));
            row
        };
        let sum = |field: fn(&LayerReport) -> usize| self.layers.iter().map(field).sum::<usize>().to_string();
        let mut total = vec!["layers".to_string(), String::new(), String::new()];
        total.extend([
            sum(|l| l.ablated),
            sum(|l| l.removed),
            sum(|l| l.bytes_before),
            sum(|l| l.bytes_after),
        ]);
        let mut whole = vec!["whole file".to_string()];
        whole.resize(5, String::new());
        whole.extend([self.bytes_before.to_string(), self.bytes_after.to_string()]);
        let mut text = print::table(&header, self.layers.iter().map(row).chain([total, whole])).to_string();
        let guessed: Vec<&str> =
            self.layers.iter().filter(|l| l.mask_from_zeros).map(|l| l.name.as_str()).collect();
        if !guessed.is_empty() {
            text += &format!("\nno mask in the file, so zeros count as inactive: {}", guessed.join(", "));
        }
        text + &format!(
            "\n{}: {:.1} times smaller",
            self.model,
            self.bytes_before as f64 / self.bytes_after as f64
        )
    }
}
