//! Sparse training on a GPU against the CPU: the same masks, bit for bit, from equal numbers.
//!
//! With `--features webgpu` on Mesa's software device, with `cuda` on the first GPU (docs/cuda.md).
#![cfg(feature = "gpu")]

mod devices;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, RmsPropConfig, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use devices::gpus;
use srigl_burn::methods::{Rigl, Set, Srigl};
use srigl_burn::{AnyMethod, Distribution, Mask, Sparsified, SparsityConfig, state_dict};
use std::sync::Arc;

#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    fc: Linear,
}

/// Multiples of 1/64 in [-1, 1).
fn exact<const D: usize>(dims: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    let value = |i: usize| {
        let mut x = (seed as u64) << 32 ^ i as u64;
        for _ in 0..3 {
            x = (x ^ x >> 29).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        (x >> 57) as f32 / 64.0 - 1.0
    };
    let values: Vec<f32> = (0..dims.iter().product()).map(value).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// Masks of all layers after each step, and the last weights `[out, in, …]` by layer.
type Course = (Vec<Vec<Arc<Mask>>>, Vec<Vec<f32>>);

fn srigl() -> AnyMethod {
    Srigl { gamma_sal: 0.9, ..Default::default() }.into()
}

/// Some steps with given gradients.
fn train<O: Optimizer>(method: &AnyMethod, optim: O, device: &Device) -> Course {
    let device = device.clone().autodiff();
    let net = Net {
        conv: Conv2dConfig::new([8, 48], [3, 3]).init(&device),
        fc: LinearConfig::new(200, 70).init(&device),
    };
    let config = SparsityConfig::new(0.8, 30)
        .with_method(method.clone())
        .with_distribution(Distribution::Uniform)
        .with_delta_t(3)
        .with_grad_accumulation(2);
    let Sparsified { model: mut net, mut optim, topology } = config.sparsify(net, optim).unwrap();
    let updates = topology.updates();
    let mut masks = Vec::new();
    for step in 0..12 {
        // The gradient of Σ c·w is c.
        let c = exact([48, 8, 3, 3], 2 * step, &device);
        let loss = (net.conv.weight.val() * c).sum();
        let c = exact([200, 70], 2 * step + 1, &device);
        let loss = loss + (net.fc.weight.val() * c).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &net);
        // A power of two: products with the gradients are exact, whether or not a device fuses them with sums.
        net = optim.step(0.25, net, grads);
        masks.push(topology.layers().into_iter().map(|layer| layer.mask).collect());
    }
    let updates = updates.drain();
    assert!(updates.iter().all(|update| update.report.is_ok()), "{updates:?}");
    let weights = state_dict(&net).into_iter().filter(|tensor| tensor.name.ends_with("weight"));
    (masks, weights.map(|tensor| tensor.values).collect())
}

#[test]
fn masks_on_a_gpu_are_those_of_the_cpu() {
    for method in &[srigl(), Rigl.into(), Set.into()] {
        let (masks, weights) = train(method, SgdConfig::new().build(), &Device::flex());
        assert_ne!(masks.first(), masks.last(), "{method:?} moves nothing");
        for gpu in gpus() {
            let (on_gpu, weights_on_gpu) = train(method, SgdConfig::new().build(), &gpu);
            assert_eq!(on_gpu, masks, "{method:?} on {gpu:?}");
            assert_eq!(weights_on_gpu, weights, "{method:?} on {gpu:?}");
        }
    }
}

/// Moments that stay on the device (AdamW, SGD) and moments that go through the record (RMSprop): grown weights start
/// from zero and inactive ones stay there.
#[test]
fn inactive_weights_are_zero_on_a_gpu() {
    fn check<O: Optimizer>(optim: O) {
        for gpu in gpus() {
            let (masks, weights) = train(&srigl(), optim.clone(), &gpu);
            for (mask, weights) in masks.last().unwrap().iter().zip(weights) {
                let mut masked = weights.clone();
                mask.apply(&mut masked);
                assert_eq!(masked, weights);
                assert!(weights.iter().any(|weight| *weight != 0.0));
            }
        }
    }
    check(AdamWConfig::new().with_weight_decay(0.1).build());
    check(SgdConfig::new().with_momentum(Some(MomentumConfig::new())).build());
    check(RmsPropConfig::new().with_momentum(0.9).build());
}
