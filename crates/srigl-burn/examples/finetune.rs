//! From a dense network to a sparse one: train dense, keep the weights, go on at 80 % sparsity:
//! `cargo run -p srigl-burn --example finetune`.
//!
//! The mask keeps the largest weights of each neuron. The accuracy falls at first; one more epoch brings it back.

mod common;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};
use burn::tensor::Device;
use srigl_burn::{Sparsified, SparsityConfig, WeightInit};
use srigl_data::Loader;
use srigl_models::{Classifier, Mlp, MlpConfig};

const BATCH: usize = 128;

fn train(
    mut model: Mlp,
    mut optim: ModuleOptimizer,
    images: &Loader,
    epoch: usize,
    steps: usize,
) -> anyhow::Result<Mlp> {
    let device = Device::flex().autodiff();
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    for batch in images.train_epoch(0, epoch, BATCH, 0).take(steps) {
        let (x, labels) = common::tensors(batch?, &device);
        let loss = loss_of.forward(model.forward(x), labels);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optim.step(0.02, model, grads);
    }
    Ok(model)
}

fn main() -> anyhow::Result<()> {
    let images = common::fashion_mnist()?;
    let device = Device::flex().autodiff();
    let sgd = || SgdConfig::new().with_momentum(Some(MomentumConfig::new().with_dampening(0.0))).build();

    let dense = train(MlpConfig::new().init(&device), sgd().into(), &images, 0, usize::MAX)?;
    println!("dense: {:.2} %", 100.0 * common::accuracy(&dense.valid(), &images)?);

    // `Keep` leaves the active weights as they are, and the largest are active.
    let config = SparsityConfig::new(0.8, 350).with_weight_init(WeightInit::Keep).with_delta_t(25);
    let Sparsified { model, optim, topology } = config.sparsify(dense, sgd())?;
    println!(
        "masked to {:.1} %: {:.2} %",
        100.0 * topology.sparsity(),
        100.0 * common::accuracy(&model.valid(), &images)?
    );
    let tuned = train(model, optim, &images, 1, usize::MAX)?;
    println!("after one more epoch: {:.2} %", 100.0 * common::accuracy(&tuned.valid(), &images)?);
    Ok(())
}
