//! Where sparse training starts: from given weights, given masks, beside frozen parameters.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use srigl_burn::methods::{Rigl, Srigl, StaticMask};
use srigl_burn::{
    AnyMethod, Error, InitialMask, Mask, NormClipping, Sparsified, SparsityConfig, WeightInit, state_dict,
};

#[derive(Module, Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

fn net(device: &Device) -> Net {
    device.seed(3);
    let linear = |from, to| LinearConfig::new(from, to).init(device);
    Net { fc1: linear(20, 30), fc2: linear(30, 10) }
}

/// The weights of a layer, `[N · M]`.
fn weights(net: &Net, layer: &str) -> Vec<f32> {
    let name = format!("{layer}.weight");
    state_dict(net).into_iter().find(|tensor| tensor.name == name).unwrap().values
}

/// The `n` largest of these as mask bytes.
fn largest(values: &[f32], n: usize) -> Vec<u8> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    (0..values.len()).map(|i| u8::from(order[..n].contains(&i))).collect()
}

fn sparsified(config: &SparsityConfig, net: Net) -> Sparsified<Net> {
    config.sparsify(net, SgdConfig::new().build()).unwrap()
}

#[test]
fn kept_weights_start_with_the_largest() {
    let net = net(&Device::flex().autodiff());
    let config = SparsityConfig::new(0.75, 75)
        .with_weight_init(WeightInit::Keep)
        .with_distribution(srigl_burn::Distribution::Uniform);
    let (fc1, fc2) = (weights(&net, "fc1"), weights(&net, "fc2"));
    let rigl = sparsified(&config.clone().with_method(Rigl.into()), net.clone());
    let masks: Vec<Vec<u8>> = rigl.topology.layers().iter().map(|layer| layer.mask.to_bytes()).collect();
    assert_eq!(masks, [largest(&fc1, 150), largest(&fc2, 75)]);
    let kept = |(weight, active): (&f32, &u8)| if *active == 1 { *weight } else { 0.0 };
    let expected: Vec<f32> = fc1.iter().zip(&masks[0]).map(kept).collect();
    assert_eq!(weights(&rigl.model, "fc1"), expected);

    let srigl = sparsified(&config, net.clone());
    let mask = srigl.topology.layers()[0].mask.to_bytes();
    let rows: Vec<u8> = fc1.chunks(20).flat_map(|row| largest(row, 5)).collect();
    assert_eq!(mask, rows, "of each neuron with constant fan-in");

    let global =
        config.clone().with_method(Rigl.into()).with_initial_mask(Some(InitialMask::GlobalMagnitude));
    let global = sparsified(&global, net.clone()).topology.layers();
    let both = largest(&[&fc1[..], &fc2].concat(), 225);
    assert_eq!(global.iter().flat_map(|layer| layer.mask.to_bytes()).collect::<Vec<_>>(), both);

    // Random ones are those that weights drawn anew get.
    let random = config.clone().with_initial_mask(Some(InitialMask::Random));
    let anew = config.with_weight_init(WeightInit::KaimingNormal);
    let masks = |config: &SparsityConfig| sparsified(config, net.clone()).topology.layers()[0].mask.clone();
    assert_eq!(masks(&random), masks(&anew));
}

#[test]
fn given_masks_are_the_topology() {
    let device = Device::flex().autodiff();
    let config = SparsityConfig::new(0.5, 75).with_weight_init(WeightInit::Keep).with_delta_t(2);
    let sparsify =
        |masks: Vec<(String, Mask)>| config.sparsify_masked(net(&device), SgdConfig::new().build(), masks);
    let bytes: Vec<u8> = (0..600).map(|i| u8::from(i % 20 < 3)).collect();
    let mask = Mask::from_bytes(30, 20, &bytes).unwrap();
    let sparse = sparsify(vec![("fc1".into(), mask.clone())]).unwrap();
    let layers = sparse.topology.layers();
    assert_eq!((&*layers[0].mask, layers[0].sparsity), (&mask, 0.85));
    assert_eq!((layers[1].sparsity, layers[1].mask.nnz()), (0.0, 300), "without a mask a layer stays dense");

    // Updates keep its number of weights.
    let Sparsified { mut model, mut optim, topology } = sparse;
    for _ in 0..4 {
        let x = Tensor::<2>::random([16, 20], Distribution::Default, &device);
        let loss = model.fc2.forward(model.fc1.forward(x)).powf_scalar(2.0).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optim.step(1e-3, model, grads);
    }
    let now = &topology.layers()[0];
    assert_ne!(*now.mask, mask);
    assert!(now.mask.nnz() <= 90 && now.mask.nnz() > 90 - now.stats().active, "{}", now.mask.nnz());

    let refused = |masks: Vec<(String, Mask)>| sparsify(masks).err().expect("refused").to_string();
    assert!(refused(vec![("fc9".into(), mask.clone())]).contains("layer `fc9`: there is a mask for it"));
    assert!(refused(vec![("fc2".into(), mask)]).contains("a mask [30, 20] does not fit weights [10, 30]"));
    assert!(refused(vec![("fc1".into(), Mask::empty(30, 20))]).contains("no active weight"));
}

#[test]
fn frozen_parameters_are_left_alone() {
    let device = Device::flex().autodiff();
    let mut net = net(&device);
    net.fc1 = net.fc1.no_grad();
    let before = weights(&net, "fc1");
    for method in [AnyMethod::from(Srigl::default()), StaticMask.into()] {
        let config = SparsityConfig::new(0.75, 75).with_method(method);
        let Sparsified { mut model, mut optim, topology } = sparsified(&config, net.clone());
        let layers = topology.layers();
        assert_eq!(layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>(), ["fc2"]);
        assert!((topology.sparsity() - 0.75).abs() < 0.02, "only fc2 counts: {}", topology.sparsity());
        let x = Tensor::<2>::random([16, 20], Distribution::Default, &device);
        let loss = model.fc2.forward(model.fc1.forward(x)).powf_scalar(2.0).sum();
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optim.step(0.1, model, grads);
        assert_eq!(weights(&model, "fc1"), before);
    }
    let all = net.no_grad();
    let refused = SparsityConfig::new(0.8, 75).sparsify(all, SgdConfig::new().build());
    assert!(matches!(refused, Err(Error::NoLayers)));
}

/// Updates see the gradients of several steps as they were, however much each is clipped.
#[test]
fn dense_gradients_are_gathered_before_clipping() {
    let device = Device::flex().autodiff();
    let net = net(&device);
    let masks = |max_norm: f32| {
        let config = SparsityConfig::new(0.8, 100).with_method(Rigl.into()).with_delta_t(4);
        let config = config.with_grad_accumulation(4);
        let Sparsified { mut model, mut optim, topology } = sparsified(&config, net.clone());
        let mut clipping = NormClipping::new(max_norm, topology.clone());
        for step in 0..4 {
            // Steps of very different size: their mean would be another if each were clipped to the same norm.
            let x: Vec<f32> = (0..320).map(|i| ((i * 37 + step * 101) % 97) as f32 / 97.0 - 0.5).collect();
            let x = Tensor::<2>::from_data(TensorData::new(x, [16, 20]), &device);
            let scale = [1.0, 0.01, 3.0, 0.1][step];
            let loss = model.fc2.forward(model.fc1.forward(x)).powf_scalar(2.0).sum().mul_scalar(scale);
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            let grads = clipping.clip(&model, grads);
            model = optim.step(0.0, model, grads);
        }
        topology.layers().iter().map(|layer| layer.mask.clone()).collect::<Vec<_>>()
    };
    assert_eq!(masks(0.5), masks(1e9));
}
