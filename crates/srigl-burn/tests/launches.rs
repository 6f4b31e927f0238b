//! Sparse steps on a GPU launch as many kernels as dense ones: masking is fused with the optimizer.
//!
//! In a file of its own, since a process has one log of launches.
#![cfg(feature = "gpu")]

mod devices;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution as Random, Tensor};
use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::profiling::ProfilingLogLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use srigl_burn::methods::{Dense, Srigl};
use srigl_burn::{AnyMethod, Distribution, Sparsified, SparsityConfig};
use std::path::Path;

#[derive(Module, Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

/// Kernels that ten training steps launch.
fn launches<O: Optimizer>(method: impl Into<AnyMethod>, optim: O, gpu: &Device, log: &Path) -> usize {
    let device = gpu.clone().autodiff();
    let net =
        Net { fc1: LinearConfig::new(64, 64).init(&device), fc2: LinearConfig::new(64, 64).init(&device) };
    let config = SparsityConfig::new(0.5, 100)
        .with_method(method.into())
        .with_distribution(Distribution::Uniform)
        .with_delta_t(100);
    let Sparsified { model: mut net, mut optim, .. } = config.sparsify(net, optim).unwrap();
    let x = Tensor::<2>::random([16, 64], Random::Default, &device);
    let mut before = 0;
    for step in 0..15 {
        // Masks go to the device in the first step.
        if step == 5 {
            before = lines(log);
        }
        let y = net.fc2.forward(relu(net.fc1.forward(x.clone())));
        let grads = GradientsParams::from_grads(y.powf_scalar(2.0).mean().backward(), &net);
        net = optim.step(0.01, net, grads);
        gpu.sync().unwrap();
    }
    lines(log) - before
}

fn lines(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap().lines().count()
}

#[test]
fn masking_launches_no_kernels_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("launches");
    let mut config = CubeClRuntimeConfig::default();
    config.profiling.logger.level = ProfilingLogLevel::Minimal;
    config.profiling.logger.file = Some(log.clone());
    // Which product is the fastest does not matter, and finding out takes minutes on CUDA.
    config.autotune.level = AutotuneLevel::Minimal;
    CubeClRuntimeConfig::set(config);
    for gpu in devices::gpus() {
        let sgd = || SgdConfig::new().with_momentum(Some(MomentumConfig::new())).build();
        let dense = launches(Dense, sgd(), &gpu, &log);
        assert!(dense > 100, "{dense} launches in ten steps");
        assert_eq!(launches(Srigl::default(), sgd(), &gpu, &log), dense, "SGD");
        let adamw = || AdamWConfig::new().build();
        let dense = launches(Dense, adamw(), &gpu, &log);
        assert_eq!(launches(Srigl::default(), adamw(), &gpu, &log), dense, "AdamW");
    }
}
