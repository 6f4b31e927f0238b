//! `srigl bench layer`.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use condensed::{
    CondensedWeight, ConvKernel, Engine, LinearKernel, Network, Node, Op, Shape, Weight, Window, ops,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use serde_json::json;
use sparsity_core::methods::{AnyMethod, StructuredStatic};
use sparsity_core::{LayerSpec, Mask, Purpose, Stream, WeightInit, initial_mask, initialise_weights};
use srigl_tensors::memory;

use super::csr::{Csr, dense_times_vector, im2col, transpose};
use super::peer::Offer;
use super::{Case, Contender, MeasureArgs, Saved, compare, device, fastest, save, training};

/// Time one linear layer or convolution: dense, compressed sparse rows (CSR), condensed
///
/// The dense contender is the fastest dense way of several, chosen in the warm-up.
#[derive(Args)]
#[command(after_help = "\
A convolution pads by half its kernel. --save-weights writes `weight` (dense, with zeros), `bias` and `input`.

With --training each call goes forward and backward: to the gradients by input, weights and bias. The dense contender is then
Burn's layer, `masked` the same with a mask over its gradient, and `condensed` the kernels that compute with active weights
alone.

Examples:
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 1 --threads 1
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 256 --threads 4 --json
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 256 --device cuda --torch python3
  srigl bench layer --in 3072 --out 768 --sparsity 0.9 --batch 256 --group 4
  srigl bench layer --conv 64 64 3 --size 56 --stride 1 --sparsity 0.95 --onnxruntime python3
  srigl bench layer --conv 128 128 3 --size 16 --sparsity 0.9 --batch 64 --training --torch python3")]
pub struct LayerArgs {
    /// Inputs of a linear layer
    #[arg(long = "in", value_name = "M", requires = "outputs", required_unless_present = "conv")]
    inputs: Option<usize>,
    /// Outputs of a linear layer
    #[arg(long = "out", value_name = "N", requires = "inputs")]
    outputs: Option<usize>,
    /// A convolution: input channels, output channels, kernel size
    #[arg(long, num_args = 3, value_names = ["C_IN", "C_OUT", "K"], requires = "size", conflicts_with = "inputs")]
    conv: Option<Vec<usize>>,
    /// Height and width of the convolution's images
    #[arg(long, value_name = "HW", requires = "conv")]
    size: Option<usize>,
    /// Step between the convolution's windows
    #[arg(long, value_name = "S", requires = "conv", default_value_t = 1)]
    stride: usize,
    /// So many neurons in a row share their inputs; a contender `apart` has the same ones in an order in which none lies beside another of
    /// its group
    #[arg(long, value_name = "G", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    group: u32,
    /// Forward and backward, as in training; --torch brings SparseProp, too, if the interpreter has it
    #[arg(long, conflicts_with_all = ["device", "onnxruntime", "deepsparse"])]
    training: bool,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// Largest tensor, in numbers: 4 GiB.
const MAX_NUMBERS: usize = 1 << 30;

pub fn run(args: &LayerArgs) -> Result<()> {
    let measure = &args.measure;
    measure.check()?;
    let device = measure.place.device()?;
    let dims = match (&args.conv, args.inputs, args.outputs) {
        (Some(conv), ..) => vec![conv[1], conv[0], conv[2], conv[2]],
        (None, Some(inputs), Some(outputs)) => vec![outputs, inputs],
        _ => unreachable!("clap asks for one of them"),
    };
    let kind = if args.conv.is_some() { "conv" } else { "linear" };
    let spec = LayerSpec::new(kind, dims)?;
    ensure!(spec.weights() <= MAX_NUMBERS, "{:?} has too many weights to time", spec.dims);
    // Dense, its mask, and both once more for the contenders.
    memory::check(memory::product(&[spec.weights(), 4 * size_of::<f32>()]))
        .context("the weights are too large; take a smaller layer, or raise --max-memory")?;
    let stream = Stream { seed: measure.seed, layer: 0, step: 0 };
    let mask = if measure.sparsity == 0.0 {
        Mask::full(spec.neurons(), spec.dense_fan_in())
    } else {
        let method = AnyMethod::from(StructuredStatic).with_group(args.group as usize)?;
        initial_mask(&*method, &spec, measure.sparsity, stream)?
    };
    let mut weights = vec![0.0; spec.weights()];
    initialise_weights(&mut weights, &mask, WeightInit::KaimingNormal, stream);
    let bits: Vec<bool> = mask.to_bytes().iter().map(|byte| *byte == 1).collect();
    let sparse = CondensedWeight::from_masked(&weights, &bits, spec.neurons(), spec.dense_fan_in())?;
    let mut rng = stream.rng(Purpose::Growth, 0);
    let bias = uniform(spec.neurons(), &mut rng);
    let layer = Layer { spec, weights, sparse, bias, batch: measure.batch, group: args.group as usize };

    let (shape, sample, window) = match &args.conv {
        Some(conv) => {
            let size = args.size.context("a convolution needs --size")?;
            let (kernel, padding) = ([conv[2]; 2], [conv[2] / 2; 2]);
            let window = Window { kernel, stride: [args.stride; 2], padding, dilation: [1, 1] };
            let sample = Shape { features: conv[0], height: size, width: size };
            let shape = json!({ "conv": conv, "size": size, "stride": args.stride, "padding": padding[0] });
            (shape, sample, Some(window))
        }
        None => {
            let inputs = layer.spec.dense_fan_in();
            let shape = json!({ "in": inputs, "out": layer.spec.neurons() });
            (shape, Shape { features: inputs, height: 1, width: 1 }, None)
        }
    };
    let output = match &window {
        Some(window) => window.output_size(sample)?,
        None => [1, 1],
    };
    let patches = output[0].saturating_mul(output[1]);
    let count = |sizes: [usize; 4]| sizes.into_iter().try_fold(1usize, |all, n| all.checked_mul(n));
    let outputs = count([layer.spec.neurons(), output[0], output[1], layer.batch]);
    let inputs = count([sample.features, sample.height, sample.width, layer.batch]);
    let columns = layer.spec.dense_fan_in().checked_mul(patches);
    let fits = |size: Option<usize>| size.filter(|size| (1..=MAX_NUMBERS).contains(size));
    let (Some(outputs), Some(inputs), Some(_)) = (fits(outputs), fits(inputs), fits(columns)) else {
        anyhow::bail!(
            "inputs or outputs would be empty or have more than {MAX_NUMBERS} numbers: use a smaller shape or --batch"
        );
    };
    let input = uniform(inputs, &mut rng);
    let gradient = uniform(if args.training { outputs } else { 0 }, &mut rng);
    let saved = || {
        let mut dims = vec![layer.batch, sample.features];
        if window.is_some() {
            dims.extend([sample.height, sample.width]);
        }
        let mut saved = vec![
            Saved::floats("weight", &layer.spec.dims, &layer.weights),
            Saved::floats("bias", &[layer.bias.len()], &layer.bias),
            Saved::floats("input", &dims, &input),
        ];
        if args.training {
            dims[1] = layer.spec.neurons();
            dims.iter_mut().skip(2).zip(output).for_each(|(dim, size)| *dim = size);
            saved.push(Saved::floats("gradient", &dims, &gradient));
        }
        saved
    };
    let weights = measure.save_weights.is_some().then(&saved);

    let pool = measure.pool()?;
    let mut memory = None;
    let mut want = None;
    let peers = measure.peers()?;
    let (stride, padding) = window.map_or((1, 0), |w| (w.stride[0], w.padding[0]));
    let offer = match peers.any() {
        true => peers.layer(&saved(), (stride, padding), &layer, input.len() + outputs, args.training),
        false => Offer::default(),
    };
    let step = training::Step { layer: &layer, sample, window, input: &input, gradient: &gradient };
    let outputs = if args.training { step.outputs() } else { outputs };
    let mut contenders = match (device, window) {
        _ if args.training => step.contenders(&pool)?,
        (Some(device), window) => {
            let place = device::Place { device: &device, is_gpu: measure.place.is_gpu() };
            if place.is_gpu {
                memory = Some(device::memory_rate(&device)?);
            }
            want = Some(layer.on_cpu(window, sample, &input, outputs)?);
            device::layer(&layer, sample, window, &input, outputs, place)?
        }
        (None, Some(window)) => layer.conv(&pool, sample, window, &input, outputs)?,
        (None, None) => layer.linear(&pool, &input, outputs)?,
    };
    contenders.extend(offer.contenders);
    // Once it is known that they can be run.
    if let Some(weights) = weights {
        save(measure, || weights)?;
    }
    let case = Case {
        what: if args.training { "training of a layer" } else { "layer" },
        shape,
        actual_sparsity: 1.0 - mask.density(),
        input,
        want,
        outputs,
        memory,
        skipped: offer.skipped,
    };
    compare(case, measure, contenders)
}

/// Uniform numbers in [-1, 1).
fn uniform(count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

pub struct Layer {
    pub spec: LayerSpec,
    pub weights: Vec<f32>,
    pub sparse: CondensedWeight,
    pub bias: Vec<f32>,
    pub batch: usize,
    /// Neurons in a row that share their inputs.
    pub group: usize,
}

/// A layer's neurons in an order in which none lies beside another of its group.
pub struct Apart {
    pub sparse: CondensedWeight,
    pub bias: Vec<f32>,
    /// For each place the neuron that is there.
    order: Vec<usize>,
}

impl Apart {
    /// The other way round.
    pub fn scatter(&self, numbers: &mut [f32], block: usize) {
        for sample in numbers.chunks_exact_mut(self.order.len() * block) {
            let there = sample.to_vec();
            for (to, &neuron) in sample.chunks_exact_mut(block).zip(&self.order) {
                to.copy_from_slice(&there[neuron * block..][..block]);
            }
        }
    }

    /// Puts what each neuron has, `block` numbers, back into the layer's order; of several samples one after the other.
    pub fn restore(&self, numbers: &mut [f32], block: usize) {
        for sample in numbers.chunks_exact_mut(self.order.len() * block) {
            let moved = sample.to_vec();
            for (from, &neuron) in moved.chunks_exact(block).zip(&self.order) {
                sample[neuron * block..][..block].copy_from_slice(from);
            }
        }
    }
}

impl Layer {
    /// The contender `apart`, if there are groups: an `engine` of neurons that have `block` results each.
    fn contender_apart(
        &self,
        block: usize,
        engine: impl Fn(&str, &CondensedWeight, &[f32]) -> Result<Contender>,
    ) -> Result<Option<Contender>> {
        let Some(apart) = self.apart()? else { return Ok(None) };
        let mut contender = engine("apart", &apart.sparse, &apart.bias)?;
        contender.read = Some(Box::new(move |y| {
            apart.restore(y, block);
            Ok(())
        }));
        Ok(Some(contender))
    }

    /// The layer with its neurons apart, if there are groups.
    pub fn apart(&self) -> Result<Option<Apart>> {
        let (neurons, inputs) = (self.spec.neurons(), self.spec.dense_fan_in());
        if self.group == 1 {
            return Ok(None);
        }
        let places = (0..self.group).flat_map(|member| (member..neurons).step_by(self.group));
        let order: Vec<usize> = places.collect();
        let weights: Vec<f32> =
            order.iter().flat_map(|neuron| &self.weights[neuron * inputs..][..inputs]).copied().collect();
        let active: Vec<bool> = weights.iter().map(|weight| *weight != 0.0).collect();
        let sparse = CondensedWeight::from_masked(&weights, &active, neurons, inputs)?;
        let bias = order.iter().map(|neuron| self.bias[*neuron]).collect();
        Ok(Some(Apart { sparse, bias, order }))
    }

    /// The result by the kernels for CPUs.
    fn on_cpu(
        &self,
        window: Option<Window>,
        sample: Shape,
        input: &[f32],
        outputs: usize,
    ) -> Result<Vec<f32>> {
        let mut output = vec![0.0; outputs];
        match window {
            None => LinearKernel::new(&self.sparse, &self.bias)?.run(self.batch, input, &mut output),
            Some(window) => {
                let kernel = ConvKernel::new(&self.sparse, &self.bias, window, 1, sample)?;
                kernel.run(self.batch, input, &mut output);
            }
        }
        Ok(output)
    }

    /// The engine on a network of this layer alone.
    fn engine(&self, input: Shape, op: Op) -> Result<Engine> {
        let node = |name: &str, op, inputs| Node { name: name.into(), op, inputs };
        let nodes = vec![node("input", Op::Input(ops::Input(input)), vec![]), node("layer", op, vec![0])];
        Ok(Engine::new(&Network::new(nodes)?)?)
    }

    fn linear(self, pool: &Arc<ThreadPool>, input: &[f32], outputs: usize) -> Result<Vec<Contender>> {
        let (batch, inputs, neurons) = (self.batch, self.spec.dense_fan_in(), self.spec.neurons());
        let shape = Shape { features: inputs, height: 1, width: 1 };
        let op =
            Op::Linear(ops::Linear { weight: Weight::Dense(self.weights.clone()), bias: self.bias.clone() });
        let mut engine = pool.install(|| self.engine(shape, op))?;
        let threads = pool.clone();
        let mut dense = vec![Contender::new("dense", "gemm", move |calls, x, y| {
            threads.install(|| (0..calls).try_for_each(|_| Ok(engine.run(batch, x, y)?)))
        })];
        if batch == 1 {
            let (pool, weights, bias) = (pool.clone(), self.weights.clone(), self.bias.clone());
            dense.push(Contender::new("dense", "row by row", move |calls, x, y| {
                pool.install(|| (0..calls).for_each(|_| dense_times_vector(&weights, &bias, x, y)));
                Ok(())
            }));
        }
        let dense = fastest(dense, input, outputs)?;

        let (csr, bias, threads) = (Csr::new(&self.sparse), self.bias.clone(), pool.clone());
        let (mut columns, mut result) = (vec![0.0; batch * inputs], vec![0.0; batch * neurons]);
        let words = if batch == 1 { "row by row" } else { "transposed batch, row by row" };
        let csr = Contender::new("csr", words, move |calls, x, y| {
            threads.install(|| {
                for _ in 0..calls {
                    if batch == 1 {
                        csr.times_vector(&bias, x, y);
                    } else {
                        transpose(x, inputs, &mut columns);
                        csr.times_matrix(&bias, &columns, batch, &mut result);
                        transpose(&result, batch, y);
                    }
                }
            });
            Ok(())
        });

        let engine = |name: &str, sparse: &CondensedWeight, bias: &[f32]| {
            let kernel = pool.install(|| LinearKernel::new(sparse, bias))?;
            let pool = pool.clone();
            Ok(Contender::new(name, "LinearKernel", move |calls, x, y| {
                pool.install(|| (0..calls).for_each(|_| kernel.run(batch, x, y)));
                Ok(())
            }))
        };
        let mut contenders = vec![dense, csr, engine("condensed", &self.sparse, &self.bias)?];
        contenders.extend(self.contender_apart(1, engine)?);
        Ok(contenders)
    }

    fn conv(
        self,
        pool: &Arc<ThreadPool>,
        shape: Shape,
        window: Window,
        input: &[f32],
        outputs: usize,
    ) -> Result<Vec<Contender>> {
        let (batch, fan_in, neurons) = (self.batch, self.spec.dense_fan_in(), self.spec.neurons());
        let size = window.output_size(shape)?;
        let (sample, positions) = (shape.len(), size[0] * size[1]);
        let result = neurons * positions;
        let op = Op::Conv2d(ops::Conv2d {
            weight: Weight::Dense(self.weights.clone()),
            bias: self.bias.clone(),
            window,
            groups: 1,
        });
        let mut engine = pool.install(|| self.engine(shape, op))?;
        let threads = pool.clone();
        let direct = Contender::new("dense", "direct convolution with all weights", move |calls, x, y| {
            threads.install(|| (0..calls).try_for_each(|_| Ok(engine.run(batch, x, y)?)))
        });
        // Patches are positions of a linear layer.
        let patches = Shape { features: fan_in, height: 1, width: positions };
        let op =
            Op::Linear(ops::Linear { weight: Weight::Dense(self.weights.clone()), bias: self.bias.clone() });
        let mut engine = pool.install(|| self.engine(patches, op))?;
        let (threads, mut columns) = (pool.clone(), vec![0.0; fan_in * positions]);
        let gemm = Contender::new("dense", "im2col and gemm", move |calls, x, y| {
            threads.install(|| {
                for _ in 0..calls {
                    for (x, y) in x.chunks_exact(sample).zip(y.chunks_exact_mut(result)) {
                        im2col(x, shape, &window, size, &mut columns);
                        engine.run(1, &columns, y)?;
                    }
                }
                Ok(())
            })
        });
        let dense = fastest(vec![direct, gemm], input, outputs)?;

        let (csr, bias, threads) = (Csr::new(&self.sparse), self.bias.clone(), pool.clone());
        let mut columns = vec![0.0; fan_in * positions];
        let csr = Contender::new("csr", "im2col, row by row", move |calls, x, y| {
            threads.install(|| {
                for _ in 0..calls {
                    for (x, y) in x.chunks_exact(sample).zip(y.chunks_exact_mut(result)) {
                        im2col(x, shape, &window, size, &mut columns);
                        csr.times_matrix(&bias, &columns, positions, y);
                    }
                }
            });
            Ok(())
        });

        let engine = |name: &str, sparse: &CondensedWeight, bias: &[f32]| {
            let kernel = pool.install(|| ConvKernel::new(sparse, bias, window, 1, shape))?;
            let pool = pool.clone();
            Ok(Contender::new(name, "ConvKernel", move |calls, x, y| {
                pool.install(|| (0..calls).for_each(|_| kernel.run(batch, x, y)));
                Ok(())
            }))
        };
        let mut contenders = vec![dense, csr, engine("condensed", &self.sparse, &self.bias)?];
        contenders.extend(self.contender_apart(positions, engine)?);
        Ok(contenders)
    }
}
