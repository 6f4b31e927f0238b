//! SRigL on a candle tensor: a linear layer learns a sparse teacher, and its topology moves as it trains.
//!
//! `cargo run --manifest-path examples/candle/Cargo.toml`
//!
//! What sparse training adds to a dense loop is marked ① to ④; the rest is candle as ever.

use candle_core::{Device, Error, Result, Tensor, Var};
use sparsity_core::{
    ConstantFanInMask, Layer, LayerSpec, Mask, Stream, UpdateSchedule, WeightInit, initial_mask,
    initialise_weights, methods::Srigl, settle_weights, update_layer,
};

const DEVICE: Device = Device::Cpu;
const NEURONS: usize = 32;
const INPUTS: usize = 128;
const SPARSITY: f64 = 0.9;
const STEPS: u64 = 2000;
const LEARNING_RATE: f64 = 2.0;

fn main() -> Result<()> {
    let method = Srigl::default(); // γ_sal = 0.3, as in the paper
    let schedule = UpdateSchedule { delta_t: 200, ..UpdateSchedule::new(STEPS * 3 / 4) };
    let spec = LayerSpec::new("fc", [NEURONS, INPUTS]).map_err(Error::wrap)?;
    let teacher = teacher()?;

    // ① A random mask with constant fan-in, and initial weights that suit it. Candle stores `[out, in]`, so
    //   rows are neurons already; a convolution `[out, in, kh, kw]` is `[out, in·kh·kw]` here.
    let start = Stream { seed: 1, layer: 0, step: 0 };
    let mut mask = initial_mask(&method, &spec, SPARSITY, start).map_err(Error::wrap)?;
    let mut weights = vec![0.0; spec.weights()];
    initialise_weights(&mut weights, &mask, WeightInit::default(), start);
    let mut mask_tensor = to_tensor(&mask)?;
    let weight = Var::from_tensor(&Tensor::from_vec(weights, (NEURONS, INPUTS), &DEVICE)?)?;

    println!("{:>5} {:>8} {:>7} {:>7} {:>7} {:>6}", "step", "loss", "fan-in", "active", "pruned", "grown");
    println!("{:5} {:8} {:7} {NEURONS:7}", 0, "", mask.fan_in(0));
    for step in 1..=STEPS {
        let x = Tensor::randn(0f32, 1.0, (64, INPUTS), &DEVICE)?;
        let error = (x.matmul(&weight.t()?)? - x.matmul(&teacher.t()?)?)?;
        let loss = error.sqr()?.mean_all()?;
        // The weights themselves are zero where inactive, so autograd gives the dense gradient.
        let grads = loss.backward()?;
        let grad = grads.get(&weight).expect("the loss depends on the weight");

        // ② Mask the gradient before the optimizer step (plain SGD here): inactive weights stay zero.
        weight.set(&(weight.as_tensor() - ((grad * &mask_tensor)? * LEARNING_RATE)?)?)?;

        if schedule.is_update(step) {
            // ③ A new mask, from the weights and the dense gradient.
            let (mut weights, gradients) = (to_vec(&weight)?, to_vec(grad)?);
            let layer = Layer {
                name: &spec.name,
                weights: &weights,
                grads: &gradients,
                mask: &mask,
                sparsity: SPARSITY,
                ablate: true, // false for a classifier, whose neurons are the classes
            };
            let alpha = schedule.drop_fraction_at(step);
            let update =
                update_layer(&method, alpha, &layer, Stream { step, ..start }).map_err(Error::wrap)?;

            // ④ Zero what is inactive or new. Moments of an optimizer are settled the same way.
            settle_weights(&mut weights, &mask, &update.mask);
            weight.set(&Tensor::from_vec(weights, (NEURONS, INPUTS), &DEVICE)?)?;
            (mask, mask_tensor) = (update.mask.clone(), to_tensor(&update.mask)?);

            // Every neuron that is left has the same number of weights, or this conversion fails.
            let fan_in = ConstantFanInMask::try_from(update.mask).map_err(Error::wrap)?.fan_in();
            assert_eq!(update.report.stats.fan_in, Some(fan_in));
            let (loss, active) = (loss.to_scalar::<f32>()?, update.report.stats.active);
            let (pruned, grown) = (update.report.pruned, update.report.grown);
            println!("{step:5} {loss:8.4} {fan_in:7} {active:7} {pruned:7} {grown:6}");
        }
    }
    Ok(())
}

/// A layer to imitate: three neurons of four use 12 inputs each, the others none, so there is much to ablate.
fn teacher() -> Result<Tensor> {
    let mut teacher = vec![0.0f32; NEURONS * INPUTS];
    for neuron in (0..NEURONS).filter(|neuron| neuron % 4 != 0) {
        (0..12).for_each(|i| teacher[neuron * INPUTS + (neuron * 7 + i * i) % INPUTS] = 0.3);
    }
    Tensor::from_vec(teacher, (NEURONS, INPUTS), &DEVICE)
}

/// `[N, M]` of ones and zeros.
fn to_tensor(mask: &Mask) -> Result<Tensor> {
    let values: Vec<f32> = mask.to_bytes().into_iter().map(f32::from).collect();
    Tensor::from_vec(values, (mask.neurons(), mask.dense_fan_in()), &DEVICE)
}

/// Row-major values.
fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
