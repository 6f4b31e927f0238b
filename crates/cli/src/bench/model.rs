//! `srigl bench model`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use condensed::architectures::{self, NamedTensor, TensorKind, TensorSpec, mask_name};
use condensed::{Engine, Network};
use rand::RngExt;
use rayon::ThreadPool;
use safetensors::tensor::Dtype;
use serde_json::json;
use sparsity_core::{
    Distribution, Error, LayerSpec, Mask, Purpose, Stream, WeightInit, constant_fan_in_mask,
    initialise_weights, layer_sparsities,
};

use super::{Case, Contender, MeasureArgs, Saved, compare, device, save};

/// Time a whole model: with all weights, and condensed
///
/// A layer whose neurons would have no inputs stays dense, and the others make up for it.
#[derive(Args)]
#[command(after_help = "\
--save-weights writes the tensors in PyTorch's names with NAME.mask, for `srigl condense` and `srigl predict`.

Examples:
  srigl bench model resnet50 --sparsity 0.9 --batch 1 --threads 1
  srigl bench model vit-b-16 --sparsity 0.8 --distribution erk --batch 8 --threads 4 --json
  srigl bench model resnet50 --sparsity 0.9 --batch 64 --device cuda --torch python3")]
pub struct ModelArgs {
    /// mlp, mnist-cnn, resnet8, resnet18, resnet50, vit-b-16, …
    name: String,
    /// How the sparsity is shared among layers
    #[arg(long, value_enum, default_value = "uniform")]
    distribution: DistributionName,
    #[command(flatten)]
    measure: MeasureArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum DistributionName {
    /// The same sparsity everywhere
    Uniform,
    /// Erdős–Rényi kernel: small layers are spared
    Erk,
}

pub fn run(args: &ModelArgs) -> Result<()> {
    let measure = &args.measure;
    measure.check()?;
    let device = measure.place.device()?;
    // ImageNet for the networks that are known from there.
    let small = ["mlp", "mnist-cnn", "resnet8", "vit-tiny"].contains(&args.name.as_str());
    let classes = if small { 10 } else { 1000 };
    let tensors = random_tensors(&args.name, classes, measure.sparsity, args.distribution, measure.seed)?;
    let sparsity = sparsity_of(&tensors);
    save(measure, || tensors.iter().flat_map(saved).collect())?;

    let weights: Vec<Saved> = match measure.place.torch {
        Some(_) => tensors.iter().map(|(name, t)| Saved::floats(name, &t.shape, &t.values)).collect(),
        None => Vec::new(),
    };
    let dense_tensors =
        tensors.iter().map(|(name, t)| (name.clone(), NamedTensor { mask: None, ..t.clone() }));
    let dense = architectures::build(&args.name, dense_tensors.collect(), None)?.fold()?;
    let sparse = architectures::build(&args.name, tensors, None)?.fold()?;
    let shapes = dense.shapes()?;
    let outputs = measure.batch * shapes.last().map_or(0, |shape| shape.len());
    let mut rng = Stream { seed: measure.seed, layer: 0, step: 1 }.rng(Purpose::Weights, 0);
    let input: Vec<f32> =
        (0..measure.batch * shapes[0].len()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    let image = [shapes[0].features, shapes[0].height, shapes[0].width];

    let pool = measure.pool()?;
    let mut want = None;
    let contenders = match &device {
        None => vec![
            contender(
                "dense",
                "engine with all weights (direct convolutions, gemm)",
                &dense,
                measure,
                &pool,
            )?,
            contender("condensed", "engine", &sparse, measure, &pool)?,
        ],
        Some(device) => {
            // On all cores: not what is timed.
            let mut result = vec![0.0; outputs];
            Engine::new(&dense)?.run(measure.batch, &input, &mut result)?;
            want = Some(result);
            let place = device::Place { device, is_gpu: measure.place.is_gpu() };
            let mut contenders = device::model(&dense, &sparse, measure.batch, &input, place)?;
            if let Some(torch) = measure.place.torch(measure.threads)? {
                let [channels, height, width] = image;
                let input = Saved::floats("input", &[measure.batch, channels, height, width], &input);
                contenders.extend(torch.model(&args.name, weights, input)?);
            }
            contenders
        }
    };
    let distribution = match args.distribution {
        DistributionName::Uniform => "uniform",
        DistributionName::Erk => "erk",
    };
    let shape =
        json!({ "model": args.name, "distribution": distribution, "classes": classes, "image": image });
    drop((dense, sparse));
    let case = Case { what: "model", shape, actual_sparsity: sparsity, input, want, outputs, memory: None };
    compare(case, measure, contenders)
}

fn contender(
    name: &str,
    what: &str,
    network: &Network,
    measure: &MeasureArgs,
    pool: &Arc<ThreadPool>,
) -> Result<Contender> {
    let (pool, batch) = (pool.clone(), measure.batch);
    let mut engine = pool.install(|| Engine::new(network))?;
    let words = format!("{what}, {:.1} MB of weights", engine.bytes() as f64 / 1e6);
    Ok(Contender::new(name, words, move |calls, x, y| {
        pool.install(|| (0..calls).try_for_each(|_| Ok(engine.run(batch, x, y)?)))
    }))
}

/// Random weights with masks of constant fan-in, and normalisations that keep the size of activations.
fn random_tensors(
    model: &str,
    classes: usize,
    sparsity: f64,
    distribution: DistributionName,
    seed: u64,
) -> Result<BTreeMap<String, NamedTensor>> {
    let specs = architectures::specs(model, classes)?;
    let weights: Vec<&TensorSpec> = specs.iter().filter(|spec| spec.kind == TensorKind::Weight).collect();
    let layers = weights.iter().map(|spec| LayerSpec::new(&spec.name, spec.shape.clone()));
    let masks = masks(layers.collect::<Result<_, _>>()?, sparsity, distribution, seed)?;
    let mut masks = masks.into_iter();
    let mut tensors = BTreeMap::new();
    for (i, spec) in specs.iter().enumerate() {
        let stream = Stream { seed, layer: i as u64, step: 0 };
        let mut rng = stream.rng(Purpose::Growth, 0);
        let mut values = vec![0.0; spec.shape.iter().product()];
        let mut mask = None;
        match spec.kind {
            TensorKind::Weight => {
                let positions = masks.next().expect("one for each weight");
                initialise_weights(&mut values, &positions, WeightInit::KaimingNormal, stream);
                let bits: Vec<bool> = positions.to_bytes().iter().map(|byte| *byte == 1).collect();
                mask = Some(bits).filter(|bits| bits.contains(&false));
            }
            TensorKind::NormScale | TensorKind::RunningVariance => values.fill(1.0),
            TensorKind::NormShift | TensorKind::RunningMean => {}
            TensorKind::Bias | TensorKind::Embedding => {
                values.iter_mut().for_each(|v| *v = 0.02 * (rng.random::<f32>() * 2.0 - 1.0));
            }
        }
        tensors.insert(spec.name.clone(), NamedTensor { shape: spec.shape.clone(), values, mask });
    }
    Ok(tensors)
}

/// One mask for each layer.
fn masks(
    mut layers: Vec<LayerSpec>,
    sparsity: f64,
    distribution: DistributionName,
    seed: u64,
) -> Result<Vec<Mask>, Error> {
    let distribution = match distribution {
        DistributionName::Uniform => Distribution::Uniform,
        DistributionName::Erk => Distribution::default(),
    };
    loop {
        let sparsities = layer_sparsities(&layers, sparsity, distribution)?;
        let mask = |(i, (layer, sparsity)): (usize, (&LayerSpec, f64))| match sparsity {
            0.0 => Ok(Mask::full(layer.neurons(), layer.dense_fan_in())),
            _ => {
                let stream = Stream { seed, layer: i as u64, step: 0 };
                constant_fan_in_mask(layer, sparsity, stream).map(|mask| mask.into_mask())
            }
        };
        match layers.iter().zip(sparsities).enumerate().map(mask).collect() {
            Err(Error::FanInZero { layer, .. }) => {
                let layer = layers.iter_mut().find(|l| l.name == layer).expect("it was just tried");
                layer.keep_dense = true;
            }
            result => return result,
        }
    }
}

/// Share of zeros in all weights of layers.
fn sparsity_of(tensors: &BTreeMap<String, NamedTensor>) -> f64 {
    let layers = || tensors.iter().filter(|(name, t)| name.ends_with("weight") && t.shape.len() > 1);
    let weights: usize = layers().map(|(_, tensor)| tensor.values.len()).sum();
    let zeros: usize =
        layers().filter_map(|(_, t)| t.mask.as_ref()).flatten().filter(|active| !**active).count();
    zeros as f64 / weights as f64
}

/// A tensor and its mask.
fn saved((name, tensor): (&String, &NamedTensor)) -> Vec<Saved> {
    let mut saved = vec![Saved::floats(name, &tensor.shape, &tensor.values)];
    if let Some(mask) = &tensor.mask {
        let data = mask.iter().map(|active| u8::from(*active)).collect();
        saved.push(Saved { name: mask_name(name), dtype: Dtype::U8, shape: tensor.shape.clone(), data });
    }
    saved
}
