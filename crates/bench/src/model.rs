//! `srigl bench model`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::Args;
use condensed::{Engine, Network};
use rand::RngExt;
use rayon::ThreadPool;
use safetensors::tensor::Dtype;
use serde_json::json;
use sparsity_core::{
    Distribution, Error, LayerSpec, Mask, Purpose, Stream, WeightInit, constant_fan_in_mask,
    initialise_weights, layer_sparsities,
};

use srigl_burn::{sparse_layers, state_dict};
use srigl_models::{Classifier, ModelInfo, WithModel, torchvision_name};
use srigl_run::{mask_name, named_parser};
use srigl_tensors::memory;
use srigl_train::memory::check_weights;
use srigl_train::{NamedTensor, condense};

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
    #[arg(long, value_parser = named_parser(&Distribution::NAMES), default_value = "uniform")]
    distribution: Distribution,
    #[command(flatten)]
    measure: MeasureArgs,
}

pub fn run(args: &ModelArgs) -> Result<()> {
    let measure = &args.measure;
    measure.check()?;
    let device = measure.place.device()?;
    let spec = ModelInfo::named(&args.name)?.usual();
    let random = Random {
        name: spec.info.name,
        sparsity: measure.sparsity,
        distribution: args.distribution,
        seed: measure.seed,
    };
    let tensors = spec.with(&Device::flex(), random)??;
    let sparsity = sparsity_of(&tensors);

    let peers = measure.peers()?;
    let weights: Vec<Saved> = match peers.any() {
        true => tensors.iter().map(|(name, t)| Saved::floats(name, &t.shape, &t.values)).collect(),
        false => Vec::new(),
    };
    let dense_tensors =
        tensors.iter().map(|(name, t)| (name.clone(), NamedTensor { mask: None, ..t.clone() }));
    let dense = condense(&spec, &dense_tensors.collect())?.fold()?;
    let sparse = condense(&spec, &tensors)?.fold()?;
    // What is between them is checked by whoever computes it.
    let sample = dense.input_shape().len().max(dense.output_shape().len());
    memory::check(memory::product(&[measure.batch, sample, size_of::<f32>()]))
        .with_context(|| format!("the images or results of --batch {} are too large", measure.batch))?;
    save(measure, || tensors.iter().flat_map(saved).collect())?;
    drop(tensors);
    let outputs = measure.batch * dense.output_shape().len();
    let mut rng = Stream { seed: measure.seed, layer: 0, step: 1 }.rng(Purpose::Weights, 0);
    let input: Vec<f32> =
        (0..measure.batch * dense.input_shape().len()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    let image = spec.images;

    let pool = measure.pool()?;
    let mut want = None;
    let mut contenders = match &device {
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
            device::model(&dense, &sparse, measure.batch, &input, place)?
        }
    };
    let mut skipped = Vec::new();
    if peers.any() {
        let [channels, height, width] = image;
        let input = Saved::floats("input", &[measure.batch, channels, height, width], &input);
        let offer = peers.model(&args.name, weights, input)?;
        contenders.extend(offer.contenders);
        skipped = offer.skipped;
    }
    let name = Distribution::NAMES.iter().find(|(.., known)| *known == args.distribution);
    let (distribution, classes) = (name.map(|(name, ..)| *name), spec.classes);
    let shape =
        json!({ "model": args.name, "distribution": distribution, "classes": classes, "image": image });
    drop((dense, sparse));
    let case =
        Case { what: "model", shape, actual_sparsity: sparsity, input, want, outputs, memory: None, skipped };
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

/// Makes random weights with masks of constant fan-in, and normalisations that keep the size of activations.
struct Random {
    name: &'static str,
    sparsity: f64,
    distribution: Distribution,
    seed: u64,
}

impl WithModel for Random {
    type Output = Result<BTreeMap<String, NamedTensor>>;

    fn run<M: Classifier>(self, model: M) -> Self::Output {
        let Self { name, sparsity, distribution, seed } = self;
        // As tensors, dense and condensed, and as the engines pack both.
        check_weights(&model, name, 6)?;
        let layers = sparse_layers(&model)?;
        let names: Vec<String> = layers.iter().map(|layer| format!("{}.weight", layer.name)).collect();
        let masks: BTreeMap<_, _> =
            names.into_iter().zip(masks(layers, sparsity, distribution, seed)?).collect();
        let mut tensors = BTreeMap::new();
        for (i, tensor) in state_dict(&model).into_iter().enumerate() {
            let stream = Stream { seed, layer: i as u64, step: 0 };
            let (mut values, mut mask) = (tensor.values, None);
            let field = tensor.name.rsplit('.').next().unwrap_or_default();
            if let Some(positions) = masks.get(&tensor.name) {
                initialise_weights(&mut values, positions, WeightInit::KaimingNormal, stream);
                let bits: Vec<bool> = positions.to_bytes().iter().map(|byte| *byte == 1).collect();
                mask = Some(bits).filter(|bits| bits.contains(&false));
            } else if matches!(field, "weight" | "running_var") {
                // Normalisations: layers have masks.
                values.fill(1.0);
            } else if field == "running_mean" {
                values.fill(0.0);
            } else {
                let mut rng = stream.rng(Purpose::Growth, 0);
                values.iter_mut().for_each(|v| *v = 0.02 * (rng.random::<f32>() * 2.0 - 1.0));
            }
            tensors.insert(torchvision_name(&tensor.name), NamedTensor { shape: tensor.dims, values, mask });
        }
        Ok(tensors)
    }
}

/// One mask for each layer.
fn masks(
    mut layers: Vec<LayerSpec>,
    sparsity: f64,
    distribution: Distribution,
    seed: u64,
) -> Result<Vec<Mask>, Error> {
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
