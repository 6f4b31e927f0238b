//! Sparse training on a GPU against the CPU: the same masks, bit for bit, from equal numbers.
//!
//! With `--features webgpu` on Mesa's software device, with `cuda` on the first GPU (docs/cuda.md).
#![cfg(feature = "gpu")]

mod devices;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer, RmsPropConfig, SgdConfig};
use burn::tensor::{Device, Distribution as Random, Tensor, TensorData, Tolerance};
use devices::gpus;
use srigl_burn::methods::{Rigl, Set, Srigl};
use srigl_burn::{
    AnyMethod, Distribution, Mask, SparseConv2d, SparseLinear, Sparsified, SparsityConfig, state_dict,
};
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

#[derive(Module, Debug)]
struct SparseNet {
    conv: SparseConv2d,
    fc: SparseLinear,
}

/// Some steps of layers whose gradients by weights are sums of products of given numbers, which are exact whatever rounds
/// products to TF32 or joins them with sums.
fn train_layers(method: &AnyMethod, groups: usize, condensed: bool, device: &Device) -> Course {
    let device = device.clone().autodiff();
    let conv = Conv2dConfig::new([8, 48], [3, 3])
        .with_padding(PaddingConfig2d::Explicit(1, 0, 1, 0))
        .with_stride([2, 1])
        .with_groups(groups)
        .init(&device);
    let net = SparseNet { conv: conv.into(), fc: LinearConfig::new(200, 70).init(&device).into() };
    let config = SparsityConfig::new(0.8, 30)
        .with_method(method.clone())
        .with_distribution(Distribution::Uniform)
        .with_condensed(Some(condensed))
        .with_delta_t(3)
        .with_grad_accumulation(2);
    let Sparsified { model: mut net, mut optim, topology } =
        config.sparsify(net, SgdConfig::new().build()).unwrap();
    assert_eq!(net.conv.pattern().is_some() && net.fc.pattern().is_some(), condensed);
    let updates = topology.updates();
    let mut masks = Vec::new();
    for step in 0..12 {
        let images = net.conv.forward(exact([3, 8, 6, 5], 4 * step, &device));
        let loss = (images * exact([3, 48, 3, 3], 4 * step + 1, &device)).sum();
        let rows = net.fc.forward(exact([20, 200], 4 * step + 2, &device));
        let loss = loss + (rows * exact([20, 70], 4 * step + 3, &device)).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &net);
        net = optim.step(0.25, net, grads);
        masks.push(topology.layers().into_iter().map(|layer| layer.mask).collect());
    }
    let updates = updates.drain();
    assert!(updates.iter().all(|update| update.report.is_ok()), "{updates:?}");
    let weights = state_dict(&net).into_iter().filter(|tensor| tensor.name.ends_with("weight"));
    (masks, weights.map(|tensor| tensor.values).collect())
}

#[test]
fn condensed_training_on_a_gpu_is_masked_training_on_the_cpu() {
    let srigl_without_ablation = Srigl { gamma_sal: 0.0, ..Default::default() };
    let groups_of_four = srigl().with_group(4).unwrap();
    let methods = [srigl(), srigl_without_ablation.into(), Rigl.into(), Set.into(), groups_of_four];
    for (method, groups) in methods.iter().map(|method| (method, 1)).chain([(&srigl(), 2)]) {
        let (masks, weights) = train_layers(method, groups, false, &Device::flex());
        assert_ne!(masks.first(), masks.last(), "{method:?} moves nothing");
        for gpu in gpus() {
            let (on_gpu, weights_on_gpu) = train_layers(method, groups, true, &gpu);
            assert_eq!(on_gpu, masks, "{method:?} on {gpu:?}");
            assert_eq!(weights_on_gpu, weights, "{method:?} on {gpu:?}");
        }
    }
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Random::Default, device)
}

fn on<const D: usize>(tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
    Tensor::from_data(tensor.to_data(), device)
}

fn close<const D: usize>(got: &Tensor<D>, want: &Tensor<D>, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    got.to_data().assert_approx_eq::<f32>(&want.to_data(), Tolerance::rel_abs(1e-4, 1e-4));
}

/// Every third neuron without weights, the others with some of their inputs.
fn some(neurons: usize, inputs: usize) -> Mask {
    let bit = |i: usize| u8::from(i / inputs % 3 != 2 && (i * i + i / 3).is_multiple_of(4));
    Mask::from_bytes(neurons, inputs, &(0..neurons * inputs).map(bit).collect::<Vec<_>>()).unwrap()
}

/// Every fifth neuron and more without weights; so many of the others at a time read the same inputs.
fn shared(neurons: usize, inputs: usize, group: usize) -> Mask {
    let mut mask = Mask::empty(neurons, inputs);
    let active = (0..neurons).filter(|neuron| neuron % 5 != 4 && !(20..38).contains(neuron));
    for (i, neuron) in active.enumerate() {
        let first = i / group % 4;
        (0..inputs / 4).for_each(|i| mask.activate(neuron, 4 * i + first));
    }
    mask
}

/// Of linear layers of one chunk of inputs and of many, and of a few samples and many.
#[test]
fn sparse_linear_layers_have_the_gradients_of_the_cpu() {
    let cpu = Device::flex().autodiff();
    for (batch, inputs, neurons, has_bias, group) in [
        (3, 10, 7, true, None),
        (70, 3000, 40, true, None),
        (9, 33, 2500, false, None),
        (2100, 65, 9, true, None),
        (1, 33, 63, true, Some(1)),
        (7, 33, 77, true, Some(2)),
        (8, 3000, 77, false, Some(3)),
        (9, 3000, 63, true, Some(4)),
        (33, 65, 77, true, Some(8)),
        (64, 40, 77, true, Some(16)),
        (2100, 40, 11, true, Some(4)),
    ] {
        let what = format!("{batch} × {inputs} → {neurons}, groups of {group:?}");
        let mask = group.map_or_else(|| some(neurons, inputs), |group| shared(neurons, inputs, group));
        let dense = LinearConfig::new(inputs, neurons).with_bias(has_bias).init(&cpu);
        let (x, dy) = (random([1, batch, inputs], &cpu), random([1, batch, neurons], &cpu));
        let run = |device: &Device| {
            let move_to = |p: &Param<Tensor<1>>| Param::from_tensor(on(&p.val(), device));
            let dense = Linear {
                weight: Param::from_tensor(on(&dense.weight.val(), device)),
                bias: dense.bias.as_ref().map(move_to),
            };
            let layer = SparseLinear::from_linear(&dense, &mask).unwrap();
            group.iter().for_each(|group| assert_eq!(layer.pattern().unwrap().group(), *group));
            let x = on(&x, device).require_grad();
            let y = layer.forward(x.clone());
            let grads = (y.clone() * on(&dy, device)).sum().backward();
            let bias = layer.bias.as_ref().map(|bias| bias.val().grad(&grads).unwrap());
            (y.inner(), x.grad(&grads).unwrap(), layer.parameter().grad(&grads).unwrap(), bias)
        };
        let want = run(&cpu);
        for gpu in gpus() {
            let got = run(&gpu.autodiff());
            close(&got.0, &want.0, &what);
            close(&got.1, &want.1, &what);
            close(&got.2, &want.2, &what);
            assert_eq!(got.3.is_some(), has_bias);
            got.3.iter().zip(&want.3).for_each(|(got, want)| close(got, want, &what));
        }
    }
}

#[test]
fn sparse_convolutions_have_the_gradients_of_the_cpu() {
    let cpu = Device::flex().autodiff();
    let padded = |top, left, bottom, right| PaddingConfig2d::Explicit(top, left, bottom, right);
    let configs = [
        Conv2dConfig::new([4, 6], [3, 3]).with_padding(padded(1, 1, 1, 1)),
        Conv2dConfig::new([4, 6], [3, 2]).with_stride([2, 3]).with_bias(false),
        Conv2dConfig::new([4, 6], [2, 2]).with_padding(PaddingConfig2d::Same),
        Conv2dConfig::new([4, 6], [2, 2]).with_groups(2).with_dilation([2, 1]),
        // More padding than the window reaches, and pixels that no window reads.
        Conv2dConfig::new([4, 6], [1, 1]).with_stride([2, 2]).with_padding(padded(1, 0, 2, 1)),
        Conv2dConfig::new([4, 40], [3, 3]).with_stride([2, 2]).with_padding(padded(0, 1, 1, 0)),
    ];
    let shares = [
        (Conv2dConfig::new([4, 77], [3, 3]).with_padding(padded(1, 1, 1, 1)), 2),
        (Conv2dConfig::new([4, 42], [3, 2]).with_stride([2, 3]), 3),
        (Conv2dConfig::new([4, 13], [3, 3]).with_stride([2, 2]).with_padding(padded(0, 1, 1, 0)), 4),
        (Conv2dConfig::new([4, 12], [2, 2]).with_groups(2).with_dilation([2, 1]), 4),
    ];
    let cases = configs.iter().map(|config| (config, None));
    let cases = cases.chain(shares.iter().map(|(config, group)| (config, Some(*group))));
    for (config, group, size) in
        cases.flat_map(|(config, group)| [(config, group, [7, 6]), (config, group, [33, 40])])
    {
        let what = format!("{config} on {size:?}, groups of {group:?}");
        let dense: Conv2d = config.init(&cpu);
        let dims = dense.weight.dims();
        let (neurons, inputs) = (dims[0], dims[1] * dims[2] * dims[3]);
        let mask = group.map_or_else(|| some(neurons, inputs), |group| shared(neurons, inputs, group));
        let x = random([3, 4, size[0], size[1]], &cpu);
        let dy = random(dense.forward(x.clone()).dims(), &cpu);
        let run = |device: &Device| {
            let mut conv = dense.clone();
            conv.weight = Param::from_tensor(on(&dense.weight.val(), device));
            conv.bias = dense.bias.as_ref().map(|bias| Param::from_tensor(on(&bias.val(), device)));
            let layer = SparseConv2d::from_conv(&conv, &mask).unwrap();
            group.iter().for_each(|group| assert_eq!(layer.pattern().unwrap().group(), *group));
            let x = on(&x, device).require_grad();
            let y = layer.forward(x.clone());
            let grads = (y.clone() * on(&dy, device)).sum().backward();
            let bias = layer.bias.as_ref().map(|bias| bias.val().grad(&grads).unwrap());
            (y.inner(), x.grad(&grads).unwrap(), layer.parameter().grad(&grads).unwrap(), bias)
        };
        let want = run(&cpu);
        for gpu in gpus() {
            let got = run(&gpu.autodiff());
            close(&got.0, &want.0, &what);
            close(&got.1, &want.1, &what);
            close(&got.2, &want.2, &what);
            got.3.iter().zip(&want.3).for_each(|(got, want)| close(got, want, &what));
        }
    }
}

/// The kernels read a bias as it lies in memory.
#[test]
fn a_bias_may_be_a_view() {
    let layer = |device: &Device| {
        let weight = exact([20, 70], 1, device);
        let bias = Tensor::<1>::ones([1], device).expand([70]);
        let dense = Linear { weight: Param::from_tensor(weight), bias: Some(Param::from_tensor(bias)) };
        let layer = SparseLinear::from_linear(&dense, &some(70, 20)).unwrap();
        layer.forward(exact::<2>([40, 20], 2, device))
    };
    let want = layer(&Device::flex());
    gpus().iter().for_each(|gpu| close(&layer(gpu), &want, "a layer with the same bias for all neurons"));
}
