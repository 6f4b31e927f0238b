//! What weights, gradients, moments and indices take while a network trains, counted by the allocator.
//!
//! In a file of its own, since it counts all that a process has.

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, SgdConfig};
use burn::tensor::{Device, Distribution as Random, Tensor};
use cap::Cap;
use srigl_burn::methods::Srigl;
use srigl_burn::{Distribution, SparseLinear, Sparsified, SparsityConfig, TopologyLayer};
use std::alloc::System;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

#[derive(Module, Debug)]
struct Net {
    layers: Vec<SparseLinear>,
}

/// Bytes for each weight that there could be, after a backward pass, when there are gradients as well as moments. So few samples
/// that their results do not count.
fn bytes_per_weight<O: Optimizer>(layers: usize, width: usize, condensed: bool, optim: O) -> f64 {
    let before = MEMORY.allocated();
    let device = Device::flex().autodiff();
    let layer = |_| SparseLinear::from(LinearConfig::new(width, width).with_bias(false).init(&device));
    let sparsify = SparsityConfig::new(0.9, 100)
        .with_method(Srigl::default().into())
        .with_distribution(Distribution::Uniform)
        .with_condensed(Some(condensed))
        .with_delta_t(2);
    let net = Net { layers: (0..layers).map(layer).collect() };
    let Sparsified { mut model, mut optim, topology } = sparsify.sparsify(net, optim).unwrap();
    let x = Tensor::<2>::random([1, width], Random::Default, &device);
    // The third and the fifth step come after updates, and none of the gradients of the fifth is for one.
    for step in 1..=5 {
        let y = model.layers.iter().fold(x.clone(), |x, layer| layer.forward(x).tanh());
        let gradients = GradientsParams::from_grads(y.square().mean().backward(), &model);
        if step == 5 {
            let bytes = MEMORY.allocated() - before;
            assert_eq!(gradients.len(), layers);
            let grown = |layer: TopologyLayer| layer.ever_active.nnz() > layer.mask.nnz();
            assert!(topology.layers().into_iter().any(grown), "no topology has changed");
            return bytes as f64 / (layers * width * width) as f64;
        }
        model = optim.step(0.01, model, gradients);
    }
    unreachable!("the fifth step returns")
}

#[test]
fn condensed_training_takes_a_fifth_of_the_memory_of_masked_training() {
    // As many sparse layers as ViT-B/16 has.
    const SIZE: (usize, usize) = (48, 512);
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new())).build();
    // What threads and products of matrices take once, whatever they work on.
    bytes_per_weight(2, 64, true, sgd.clone());
    let forms = [true, false];
    let of_sgd = forms.map(|condensed| bytes_per_weight(SIZE.0, SIZE.1, condensed, sgd.clone()));
    let adam = AdamWConfig::new().build();
    let of_adam = forms.map(|condensed| bytes_per_weight(SIZE.0, SIZE.1, condensed, adam.clone()));
    for (name, [condensed, masked]) in [("SGD with momentum", of_sgd), ("AdamW", of_adam)] {
        let ratio = condensed / masked;
        println!("{name}: {condensed:.2} bytes a weight condensed, {masked:.2} masked: {ratio:.3} of it");
        assert!(ratio <= 0.2, "{name}: {ratio}");
    }
}
