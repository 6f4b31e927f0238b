//! SRigL on a candle tensor: a linear layer learns a sparse teacher, its topology moving as it trains.
//!
//! `cargo run -p sparsity-core --example candle`
//!
//! What sparse training adds to a dense loop is four lines, marked ①…④; the rest is candle as ever.

use candle_core::{DType, Device, Result, Tensor, Var};
use sparsity_core::{
    ConstantFanInMask, Layer, LayerSpec, Mask, Method, Stream, UpdateSchedule, WeightInit,
    initialise_weights, settle_weights, update_layer,
};

const NEURONS: usize = 64;
const INPUTS: usize = 256;
const SPARSITY: f64 = 0.9;
const STEPS: u64 = 2000;
const LEARNING_RATE: f64 = 2.0;

fn main() -> Result<()> {
    let device = Device::Cpu;
    let method = Method::Srigl(Default::default()); // γ_sal = 0.3, as in the paper
    let spec = LayerSpec::new("fc", [NEURONS, INPUTS]).map_err(candle_core::Error::wrap)?;
    let mut schedule = UpdateSchedule::new(STEPS * 3 / 4); // every 100 steps in the first 75 % of training

    // The teacher: half of its neurons use 40 inputs each, the others nothing, so there is something to ablate.
    let teacher = teacher(&device)?;

    // ① Draw a random mask with constant fan-in, and initial weights for it.
    let start = Stream { seed: 1, layer: 0, step: 0 };
    let mut mask = method.initial_mask(&spec, SPARSITY, start).map_err(candle_core::Error::wrap)?;
    let mut weights = vec![0.0; spec.weights()];
    initialise_weights(&mut weights, &mask, WeightInit::default(), start);

    let weight = Var::from_vec(weights, (NEURONS, INPUTS), &device)?;
    let mut mask_tensor = to_tensor(&mask, &device)?;
    println!("{:>5}{:>9}{:>8}{:>8}{:>8}{:>7}", "step", "loss", "fan-in", "active", "pruned", "grown");

    schedule.delta_t = 200;
    for step in 1..=STEPS {
        let x = Tensor::randn(0f32, 1.0, (128, INPUTS), &device)?;
        let error = (x.matmul(&weight.t()?)? - x.matmul(&teacher.t()?)?)?;
        let loss = error.sqr()?.mean_all()?;
        // The weights are zero where inactive, so plain autograd yields the dense gradient.
        let grads = loss.backward()?;
        let grad = grads.get(&weight).expect("the loss depends on the weight");

        // ② Mask the gradient before the optimizer step (here plain SGD), so inactive weights stay zero.
        weight.set(&(weight.as_tensor() - ((grad * &mask_tensor)? * LEARNING_RATE)?)?)?;

        if schedule.is_update(step) {
            // ③ New mask from the weights and the dense gradient.
            let (mut w, g) = (to_vec(&weight)?, to_vec(grad)?);
            let layer = Layer {
                name: &spec.name,
                weights: &w,
                grads: &g,
                mask: &mask,
                sparsity: SPARSITY,
                ablate: true, // false for a classifier: its neurons are the classes
            };
            let stream = Stream { step, ..start };
            let update = update_layer(&method, schedule.drop_fraction_at(step), &layer, stream)
                .map_err(candle_core::Error::wrap)?;

            // ④ Zero what is inactive or new. (Settle your optimizer's moments the same way.)
            settle_weights(&mut w, &mask, &update.mask);
            weight.set(&Tensor::from_vec(w, (NEURONS, INPUTS), &device)?)?;
            (mask, mask_tensor) = (update.mask, to_tensor(&update.mask, &device)?);
        }
    }
    Ok(())
}
