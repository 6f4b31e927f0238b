//! Clipping the joint norm of all gradients.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, Distribution, Tensor};
use srigl_burn::methods::{Dense, Rigl, SrSte, Srigl, TopKast};
use srigl_burn::{AnyMethod, NmPattern, NormClipping, Sparsified, SparsityConfig};

#[derive(Module, Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}

impl Net {
    fn grads(&self, device: &Device) -> GradientsParams {
        let x = Tensor::<2>::random([16, 20], Distribution::Default, device);
        let loss = self.fc2.forward(self.fc1.forward(x)).powf_scalar(2.0).sum();
        GradientsParams::from_grads(loss.backward(), self)
    }

    /// Gradients of all parameters, in order; weights outside their masks count as 0 if `masked`.
    fn values(&self, grads: &GradientsParams, masked: bool) -> Vec<f32> {
        let weight = |param: &Param<Tensor<2>>| {
            let grad = grads.get::<2>(param.id).unwrap();
            let inactive = param.val().inner().equal_elem(0.0);
            if masked { grad.mask_fill(inactive, 0.0) } else { grad }
        };
        let bias = |linear: &Linear| grads.get::<1>(linear.bias.as_ref().unwrap().id).unwrap();
        let flat = |tensor: Tensor<1>| -> Vec<f32> { tensor.into_data().try_into_vec().unwrap() };
        let mut values = Vec::new();
        for linear in [&self.fc1, &self.fc2] {
            values.extend(flat(weight(&linear.weight).flatten(0, 1)));
            values.extend(flat(bias(linear)));
        }
        values
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// The net of a method after some steps, and how its gradients are clipped.
fn clipped(method: impl Into<AnyMethod>, max_norm: f32) {
    let device = Device::flex().autodiff();
    device.seed(1);
    let linear = |from, to| LinearConfig::new(from, to).init(&device);
    let net = Net { fc1: linear(20, 30), fc2: linear(30, 10) };
    let method = method.into();
    let masked = method.info().sparse;
    let config = SparsityConfig::new(0.6, 100).with_method(method).with_delta_t(2);
    let Sparsified { model: mut net, mut optim, topology } =
        config.sparsify(net, SgdConfig::new().build()).unwrap();
    let mut clipping = NormClipping::new(max_norm, topology);
    // Steps 2 and 4 change the masks; step 5 moves the weights that have grown away from 0.
    for _ in 0..5 {
        let grads = net.grads(&device);
        let grads = clipping.clip(&net, grads);
        net = optim.step(1e-3, net, grads);
    }
    let grads = net.grads(&device);
    let (all, counted) = (net.values(&grads, false), net.values(&grads, masked));
    assert!(!masked || norm(&counted) < 0.95 * norm(&all), "masks matter here");
    let factor = (f64::from(max_norm) / (norm(&counted) + 1e-6)).min(1.0);
    let grads = clipping.clip(&net, grads);
    for (clipped, before) in net.values(&grads, false).iter().zip(&all) {
        let expected = f64::from(*before) * factor;
        let error = (f64::from(*clipped) - expected).abs();
        assert!(error <= 1e-5 * expected.abs() + 1e-9, "{clipped}, not {expected}");
    }
}

#[test]
fn the_joint_norm_is_clipped() {
    clipped(Dense, 0.5);
}

#[test]
fn sparse_weights_count_with_their_masked_gradients() {
    clipped(Srigl::default(), 0.5);
    clipped(Rigl, 0.5);
}

#[test]
fn small_gradients_stay_as_they_are() {
    clipped(Srigl::default(), 1e6);
}

/// A layer that is the whole module has masks, too.
#[test]
fn a_bare_layer_counts_with_its_masked_gradient() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let layer = LinearConfig::new(20, 30).with_bias(false).init(&device);
    let config = SparsityConfig::new(0.8, 100).with_method(Rigl.into());
    let Sparsified { model: layer, topology, .. } = config.sparsify(layer, SgdConfig::new().build()).unwrap();
    let x = Tensor::<2>::random([16, 20], Distribution::Default, &device);
    let grads = GradientsParams::from_grads(layer.forward(x).powf_scalar(2.0).sum().backward(), &layer);
    let values = |tensor: Tensor<2>| -> Vec<f32> { tensor.into_data().try_into_vec().unwrap() };
    let before = grads.get::<2>(layer.weight.id).unwrap();
    let masked = before.clone().mask_fill(layer.weight.val().inner().equal_elem(0.0), 0.0);
    let factor = 0.5 / norm(&values(masked));
    let clipped = NormClipping::new(0.5, topology).clip(&layer, grads).get::<2>(layer.weight.id).unwrap();
    for (clipped, before) in values(clipped).iter().zip(values(before)) {
        assert!((f64::from(*clipped) - f64::from(before) * factor).abs() < 1e-6);
    }
}

/// The square of 300 is no number in half precision.
#[test]
fn the_norm_of_half_precision_gradients_is_taken_in_f32() {
    let device = Device::flex().autodiff();
    let layer = LinearConfig::new(4, 4).with_bias(false).init(&device);
    let topology = SparsityConfig::new(0.0, 1).with_method(Dense.into());
    let Sparsified { model: layer, topology, .. } =
        topology.sparsify(layer, SgdConfig::new().build()).unwrap();
    let mut grads = GradientsParams::new();
    let half = Tensor::<2>::full([4, 4], 300.0, &Device::flex()).cast(DType::F16);
    grads.register(layer.weight.id, half);
    let clipped = NormClipping::new(1.0, topology).clip(&layer, grads).get::<2>(layer.weight.id).unwrap();
    assert_eq!(clipped.dtype(), DType::F16);
    let values: Vec<f32> = clipped.cast(DType::F32).into_data().try_into_vec().unwrap();
    // 16 numbers of the same size: each a quarter of the norm.
    assert!(values.iter().all(|value| (value - 0.25).abs() < 1e-3), "{values:?}");
}

/// What straight-through estimators move counts, whether the network sees it or not.
#[test]
fn weights_that_get_gradient_count() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let top_kast = TopKast { backward: 3.0, decay: 0.0 };
    for method in [AnyMethod::from(SrSte { nm: NmPattern::new(1, 5).unwrap(), decay: 0.0 }), top_kast.into()]
    {
        let layer = LinearConfig::new(20, 30).with_bias(false).init(&device);
        let config = SparsityConfig::new(0.8, 100).with_method(method.clone()).with_delta_t(2);
        let Sparsified { model: mut layer, mut optim, topology } =
            config.sparsify(layer, SgdConfig::new().build()).unwrap();
        let mut clipping = NormClipping::new(0.5, topology.clone());
        for step in 0..4 {
            let x = Tensor::<2>::random([16, 20], Distribution::Default, &device);
            let grads =
                GradientsParams::from_grads(layer.forward(x).powf_scalar(2.0).sum().backward(), &layer);
            let before = grads.get::<2>(layer.weight.id).unwrap();
            let values = |tensor: Tensor<2>| -> Vec<f32> { tensor.into_data().try_into_vec().unwrap() };
            let grads = clipping.clip(&layer, grads);
            let after = grads.get::<2>(layer.weight.id).unwrap();
            let factor = f64::from(values(after)[7]) / f64::from(values(before.clone())[7]);
            // The norm of what counted.
            let counted = 0.5 / factor;
            let all = norm(&values(before.clone()));
            let seen = values(before.mask_fill(layer.weight.val().inner().equal_elem(0.0), 0.0));
            match method.info().name {
                "sr-ste" => assert!((counted / all - 1.0).abs() < 1e-4, "step {step}: {counted} of {all}"),
                _ => assert!(
                    counted > 1.2 * norm(&seen) && counted < 0.95 * all,
                    "step {step}: {counted} of {all}"
                ),
            }
            layer = optim.step(1e-3, layer, grads);
        }
    }
}
