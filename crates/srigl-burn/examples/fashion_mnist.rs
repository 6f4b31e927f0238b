//! Train a network that is 95 % sparse from the first step, in a loop of one's own:
//! `cargo run -p srigl-burn --example fashion_mnist`.

mod common;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, SgdConfig, momentum::MomentumConfig};
use burn::tensor::Device;
use srigl_burn::methods::Srigl;
use srigl_burn::{Sparsified, SparsityConfig};
use srigl_models::{Classifier, MlpConfig};

const EPOCHS: usize = 2;
const BATCH: usize = 128;

fn main() -> anyhow::Result<()> {
    let images = common::fashion_mnist()?;
    let device = Device::flex().autodiff();
    let steps = (images.train_images().div_ceil(BATCH) * EPOCHS) as u64;

    // The two lines. On small layers γ_sal is larger than the paper's 0.3, or nothing is ablated.
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new().with_dampening(0.0))).build();
    let srigl = SparsityConfig::new(0.95, steps * 3 / 4)
        .with_method(Srigl { gamma_sal: 0.9, ..Default::default() }.into());
    let Sparsified { mut model, mut optim, topology } =
        srigl.sparsify(MlpConfig::new().init(&device), sgd)?;

    let updates = topology.updates();
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    for epoch in 0..EPOCHS {
        for batch in images.train_epoch(0, epoch, BATCH, 0) {
            let (x, labels) = common::tensors(batch?, &device);
            let loss = loss_of.forward(model.forward(x), labels);
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optim.step(0.05, model, grads);
        }
        let changed: usize =
            updates.drain().iter().filter_map(|u| u.report.as_ref().ok()).map(|r| r.grown).sum();
        let accuracy = common::accuracy(&model.valid(), &images)?;
        println!("epoch {}: test accuracy {:.2} %, {changed} weights moved", epoch + 1, 100.0 * accuracy);
    }
    for layer in topology.layers() {
        let stats = layer.stats();
        println!("{}: {} of {} neurons, fan-in {:?}", layer.name, stats.active, stats.neurons, stats.fan_in);
    }
    Ok(())
}
