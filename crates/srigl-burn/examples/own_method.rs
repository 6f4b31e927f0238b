//! A sparse training method of one's own, without a fork: `cargo run -p srigl-burn --example own_method`.
//!
//! It drops as SET does, and grows at random while it drops much, by gradient later.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};
use srigl_burn::methods::{Gradients, Growth, Kept, Method, MethodInfo, Set, Updates};
use srigl_burn::sparsity_core::ActiveLayer;
use srigl_burn::{Sparsified, SparsityConfig};

#[derive(Debug)]
struct Curious;

static INFO: MethodInfo =
    MethodInfo { updates: Updates::Scheduled, gradients: Gradients::Dense, ..MethodInfo::new("curious") };

impl Method for Curious {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn keep(&self, layer: &ActiveLayer, alpha: f64) -> Option<Kept> {
        let growth = if alpha > 0.15 { Growth::Random } else { Growth::Gradient };
        Set.keep(layer, alpha).map(|kept| Kept { growth, ..kept })
    }
}

#[derive(Module, Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

fn main() -> Result<(), srigl_burn::Error> {
    let device = Device::flex().autodiff();
    let net =
        Net { fc1: LinearConfig::new(64, 32).init(&device), fc2: LinearConfig::new(32, 10).init(&device) };
    let config = SparsityConfig::new(0.8, 75).with_delta_t(10).with_method(Curious.into());
    let Sparsified { model: mut net, mut optim, topology } =
        config.sparsify(net, SgdConfig::new().build())?;
    let updates = topology.updates();
    for _ in 0..100 {
        let x = Tensor::<2>::random([16, 64], Distribution::Default, &device);
        let y = net.fc2.forward(Relu::new().forward(net.fc1.forward(x)));
        let grads = GradientsParams::from_grads(y.powi_scalar(2).mean().backward(), &net);
        net = optim.step(0.01, net, grads);
    }
    for event in updates.drain() {
        let grown = event.report?.grown;
        println!("step {}: {grown} weights of {} are new", event.step, event.layer);
    }
    Ok(())
}
