//! `srigl predict`: tensor in, tensor out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use clap::Args;
use condensed::{Engine, Network, Shape};
use safetensors::tensor::Dtype;
use srigl_burn::CondensedNetwork;
use srigl_models::{Classifier, ModelInfo, WithModel};
use srigl_run::{Store, print};
use srigl_tensors::memory;
use srigl_train::{Model, NamedTensor, Weights, condense, device, fill_module};

/// Samples that go through a network at once at most, so that memory does not grow with the file.
const CHUNK: usize = 64;

/// Arguments of `srigl predict`.
#[derive(Args)]
#[command(after_help = "\
The input is a safetensors file with a tensor `input` of any floating-point type, [batch, channels, height, width] or [batch, inputs]; \
the output has `logits` [batch, classes]. The numbers go into the network as they are: `srigl train` and `srigl \
eval` standardise pixels, (pixel / 255 - mean) / deviation with both of all training pixels, and whoever wants a \
run's predictions does the same first.

A condensed file runs in the engine for CPUs, or with --device in Burn, on a GPU for example. Weights of other files do \
with --condensed; without, they run dense in Burn.

Examples:
  srigl condense runs/srigl95 -o small.safetensors
  srigl predict --weights small.safetensors --input x.safetensors -o y.safetensors --threads 1
  srigl predict --weights small.safetensors --input x.safetensors -o y.safetensors --device cuda
  srigl predict --model mnist-cnn --weights runs/srigl95/model.safetensors --input x.safetensors \\
      -o y.safetensors
  srigl predict --model resnet50 --weights resnet50.safetensors --condensed --input x.safetensors \\
      -o y.safetensors")]
pub struct PredictArgs {
    /// mlp, mnist-cnn, resnet8, resnet18, resnet50, vit-b-16, …; a condensed file needs none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The file with the model's weights, dense, with masks, or condensed: safetensors, an index of shards or PyTorch's .pt
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// The safetensors file with the tensor `input`
    #[arg(long, value_name = "X")]
    input: PathBuf,
    /// The safetensors file to write, with the tensor `logits`
    #[arg(short, long, value_name = "Y")]
    output: PathBuf,
    /// Condense the weights
    #[arg(long)]
    condensed: bool,
    /// Threads to use; default: all cores
    #[arg(long, value_name = "T")]
    pub threads: Option<usize>,
    /// Run in Burn on flex, ndarray, cuda or cuda:N; by default condensed weights run in the engine for CPUs, and
    /// dense ones in Burn on flex
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

/// Predicts.
///
/// # Errors
/// For files that are damaged or do not fit each other, or an output that cannot be written; no output is left
/// then.
pub fn run(args: PredictArgs) -> Result<()> {
    let device = args.device.as_deref().map(device::parse).transpose()?;
    let input = Input::read(&args.input)?;
    let path = &args.weights;
    let (logits, how) = match Model::open(path)? {
        Model::Condensed(network) => {
            run_condensed(&network, &input, device, &args).with_context(|| format!("`{}`", path.display()))?
        }
        Model::Tensors(file) => {
            let name = args.model.as_deref().with_context(|| {
                let known = srigl_models::names().join(", ");
                format!(
                    "`{}` does not say which model it is of: add --model with one of {known}",
                    path.display()
                )
            })?;
            let weights = Weights::of(&file, ModelInfo::named(name)?)?;
            print::notes(&weights.notes);
            let wrong = || format!("`{}`", path.display());
            let spec = crate::condense::spec(name, &weights.tensors, input.image())?;
            if args.condensed {
                let network = condense(&spec, &weights.tensors).with_context(wrong)?;
                run_condensed(&network.fold().with_context(wrong)?, &input, device, &args)
                    .with_context(wrong)?
            } else {
                input.check(spec.images)?;
                let device = device.unwrap_or_else(Device::flex);
                let dense = Dense { tensors: &weights.tensors, input: &input, device: &device };
                (spec.with(&device, dense)?.with_context(wrong)?, in_burn(&args))
            }
        }
    };
    let (batch, classes) = (input.batch(), logits.len() / input.batch());
    if let Some(i) = logits.iter().position(|logit| !logit.is_finite()) {
        bail!(
            "logit {} of sample {} is {}: the input or the weights are too large",
            i % classes,
            i / classes,
            logits[i]
        );
    }
    let data: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut file = Store::empty(&args.output);
    file.insert("logits", Dtype::F32, vec![batch, classes], data);
    let staged = file.stage(&args.output)?;
    print::line(&format!("logits [{batch}, {classes}] by {how}"))?;
    staged.commit()?;
    Ok(print::line(&format!("wrote `{}`", args.output.display()))?)
}

/// What ran, for people.
fn in_burn(args: &PredictArgs) -> String {
    format!("Burn on {}", args.device.as_deref().unwrap_or("flex"))
}

/// Logits of a condensed network, and what computed them.
fn run_condensed(
    network: &Network,
    input: &Input,
    device: Option<Device>,
    args: &PredictArgs,
) -> Result<(Vec<f32>, String)> {
    let Shape { features, height, width } = network.input_shape();
    input.check([features, height, width])?;
    match device {
        None => Ok((run_engine(network, input)?, "the condensed engine".into())),
        Some(device) => Ok((run_on_device(network, input, &device)?, in_burn(args))),
    }
}

/// Samples to predict.
struct Input {
    path: PathBuf,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Input {
    fn read(path: &Path) -> Result<Self> {
        let file = Store::open(path)?;
        let Some(tensor) = file.get("input") else {
            return Err(file.error("tensor `input` is missing").into());
        };
        let shape = &tensor.shape;
        if !matches!(shape.len(), 2 | 4) || shape.contains(&0) {
            return Err(file.error(format!(
                "tensor `input` has shape {shape:?}; it must be [batch, channels, height, width] or [batch, inputs]"
            ))
            .into());
        }
        let values = file.finite_floats("input", tensor)?;
        Ok(Self { path: path.to_path_buf(), shape: shape.clone(), values })
    }

    fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Height and width, if the samples are images.
    fn image(&self) -> Option<[usize; 2]> {
        match self.shape[..] {
            [_, _, height, width] => Some([height, width]),
            _ => None,
        }
    }

    /// Checks that the samples are of shape `[channels, height, width]`, or flat.
    fn check(&self, want: [usize; 3]) -> Result<()> {
        let got = &self.shape[1..];
        let flat = got.len() == 1 && got[0] == want.iter().product::<usize>();
        ensure!(
            flat || got == want,
            "`{}`: tensor `input` has samples of shape {got:?}, but the model takes {want:?}",
            self.path.display()
        );
        Ok(())
    }
}

fn run_engine(network: &Network, input: &Input) -> Result<Vec<f32>> {
    let mut engine = Engine::new(network)?;
    let (sample, result) = (engine.input_shape().len(), engine.output_shape().len());
    let mut logits = memory::filled(0.0, input.batch().saturating_mul(result)).context("the logits")?;
    // As many at once as there is memory for; if not even one, running it says so.
    let chunk = memory::halved(CHUNK, |batch| memory::check(engine.memory(batch)).is_ok());
    for (x, y) in input.values.chunks(chunk * sample).zip(logits.chunks_mut(chunk * result)) {
        engine.run(x.len() / sample, x, y)?;
    }
    Ok(logits)
}

fn run_on_device(network: &Network, input: &Input, device: &Device) -> Result<Vec<f32>> {
    let Shape { features, height, width } = network.input_shape();
    let chunk = memory::halved(CHUNK, |batch| network.check_memory(batch).is_ok());
    let network = CondensedNetwork::new(network, FloatDType::F32, device)?;
    let mut logits = Vec::new();
    for x in input.values.chunks(chunk * features * height * width) {
        let batch = x.len() / (features * height * width);
        let data = TensorData::new(x.to_vec(), [batch, features, height, width]);
        logits.extend(floats(network.forward(Tensor::from_data(data, device)))?);
    }
    Ok(logits)
}

fn floats(logits: Tensor<2>) -> Result<Vec<f32>> {
    logits.into_data().convert::<f32>().try_into_vec().map_err(|error| anyhow!("{error:?}"))
}

/// A prediction by Burn.
struct Dense<'a> {
    tensors: &'a BTreeMap<String, NamedTensor>,
    input: &'a Input,
    device: &'a Device,
}

impl WithModel for Dense<'_> {
    type Output = Result<Vec<f32>>;

    fn run<M: Classifier>(self, model: M) -> Result<Vec<f32>> {
        let model = fill_module(model, self.tensors, &[], self.device)?;
        // Only the perceptron takes inputs without height and width, and it flattens images of any shape.
        let [channels, height, width] = match self.input.shape[1..] {
            [channels, height, width] => [channels, height, width],
            _ => {
                let inputs = self.input.shape[1];
                let side = inputs.isqrt();
                if side * side == inputs { [1, side, side] } else { [inputs, 1, 1] }
            }
        };
        let mut logits = Vec::new();
        for x in self.input.values.chunks(CHUNK * channels * height * width) {
            let batch = x.len() / (channels * height * width);
            let data = TensorData::new(x.to_vec(), [batch, channels, height, width]);
            logits.extend(floats(model.forward(Tensor::from_data(data, self.device)))?);
        }
        Ok(logits)
    }
}
