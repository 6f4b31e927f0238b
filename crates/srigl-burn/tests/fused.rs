//! The operations between sparse layers give what Burn's modules give, forward and backward.

// Users of the NdArray backend are served as well.
#![allow(deprecated)]

use burn::module::{Module, Param};
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{BatchNorm, BatchNormConfig, DropoutConfig, LayerNorm, LayerNormConfig, PaddingConfig2d};
use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::{Device, Distribution, FloatDType, Tensor, TensorData, Tolerance};
use srigl_burn::fused;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The backends that have kernels, with autodiff.
fn devices() -> [Device; 2] {
    [Device::flex().autodiff(), Device::ndarray().autodiff()]
}

/// Burn has one generator for all threads, so tests draw from it one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    let alone = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
    devices().iter().for_each(|device| device.seed(11));
    alone
}

fn random<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(dims, Distribution::Uniform(-4.0, 4.0), device)
}

fn assert_near(ours: TensorData, theirs: TensorData) {
    ours.assert_approx_eq::<f32>(&theirs, Tolerance::rel_abs(1e-4, 1e-4));
}

/// Compares results and gradients by all inputs, of which the result is a function `f` here and `g` in Burn.
fn assert_same<const D: usize, const R: usize>(
    inputs: &[Tensor<D>],
    f: impl Fn(&[Tensor<D>]) -> Tensor<R>,
    g: impl Fn(&[Tensor<D>]) -> Tensor<R>,
) {
    let device = inputs[0].device();
    device.seed(3);
    let weights = random(g(inputs).dims(), &device);
    let of = |f: &dyn Fn(&[Tensor<D>]) -> Tensor<R>| {
        let inputs: Vec<_> = inputs.iter().map(|input| input.clone().detach().require_grad()).collect();
        let y = f(&inputs);
        let mut gradients = (y.clone() * weights.clone()).sum().backward();
        let by = inputs.iter().map(|input| input.grad_remove(&mut gradients).unwrap().into_data());
        (y.into_data(), by.collect::<Vec<_>>())
    };
    let ((y, by), (expected, expected_by)) = (of(&f), of(&g));
    assert_near(y, expected);
    by.into_iter().zip(expected_by).for_each(|(ours, theirs)| assert_near(ours, theirs));
}

#[test]
fn activations_are_burns() {
    let _alone = alone();
    for device in devices() {
        let x = [random([3, 5, 7, 2], &device)];
        assert_same(&x, |x| fused::relu(x[0].clone()), |x| relu(x[0].clone()));
        // By its formula: NdArray's own gradient is that of an approximation.
        let exact = |x: &[Tensor<4>]| x[0].clone() * ((x[0].clone() / 2f64.sqrt()).erf() + 1.0) * 0.5;
        assert_same(&x, |x| fused::gelu(x[0].clone()), exact);
        let hard_swish = |x: &[Tensor<4>]| x[0].clone() * (x[0].clone() / 6.0 + 0.5).clamp(0.0, 1.0);
        assert_same(&x, |x| fused::hard_swish(x[0].clone()), hard_swish);
        // What a caller still holds stays as it is.
        let x = random([4, 9], &device);
        let before = x.clone().into_data();
        let _ = fused::relu(x.clone());
        x.into_data().assert_eq(&before, true);
        // A view of another tensor.
        let x = random([4, 9], &device);
        assert_same(&[x], |x| fused::relu(x[0].clone().transpose()), |x| relu(x[0].clone().transpose()));
    }
}

#[test]
fn max_pooling_is_burns() {
    let _alone = alone();
    let same = |size: usize| PaddingConfig2d::Explicit(size, size, size, size);
    let configs = [
        MaxPool2dConfig::new([2, 2]).with_strides([2, 2]),
        MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).with_padding(same(1)),
        MaxPool2dConfig::new([3, 2]).with_strides([1, 3]).with_dilation([2, 1]),
        // Those that only Burn does.
        MaxPool2dConfig::new([2, 2]).with_strides([1, 1]).with_padding(PaddingConfig2d::Same),
        MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).with_ceil_mode(true),
    ];
    for device in devices() {
        for pool in configs.iter().map(MaxPool2dConfig::init) {
            let x = random([2, 3, 9, 11], &device);
            let theirs = |x: &[Tensor<4>]| pool.forward(x[0].clone());
            assert_same(&[x], |x| fused::max_pool2d(&pool, x[0].clone()), theirs);
        }
    }
}

/// Of batch normalisation and what follows, for a shortcut or none.
fn burns_batch_norm(norm: &BatchNorm, x: &[Tensor<4>], with_relu: bool) -> Tensor<4> {
    let y = norm.forward(x[0].clone());
    let y = if x.len() == 2 { y + x[1].clone() } else { y };
    if with_relu { relu(y) } else { y }
}

fn our_batch_norm(norm: &BatchNorm, x: &[Tensor<4>], with_relu: bool) -> Tensor<4> {
    match x {
        [x, shortcut] => fused::batch_norm_add_relu(norm, x.clone(), shortcut.clone()),
        [x] if with_relu => fused::batch_norm_relu(norm, x.clone()),
        x => fused::batch_norm(norm, x[0].clone()),
    }
}

#[test]
fn batch_normalisation_is_burns() {
    let _alone = alone();
    for device in devices() {
        for (shortcut, with_relu, size) in
            [(false, false, [6, 5]), (false, true, [6, 5]), (true, true, [7, 7]), (false, true, [1, 1])]
        {
            let random_norm = |norm: BatchNorm| BatchNorm {
                gamma: Param::from_tensor(random([3], &device)),
                beta: Param::from_tensor(random([3], &device)),
                ..norm
            };
            let norm = || random_norm(BatchNormConfig::new(3).init(&device));
            device.seed(1);
            let ours = norm();
            device.seed(1);
            let theirs = norm();
            let x = || random([4, 3, size[0], size[1]], &device);
            let inputs = if shortcut { vec![x(), x()] } else { vec![x()] };
            assert_same(
                &inputs,
                |x| our_batch_norm(&ours, x, with_relu),
                |x| burns_batch_norm(&theirs, x, with_relu),
            );
            // Burn's was called once more, for the dimensions.
            our_batch_norm(&ours, &inputs, with_relu);
            for (ours, theirs) in
                [(&ours.running_mean, &theirs.running_mean), (&ours.running_var, &theirs.running_var)]
            {
                assert_near(ours.value_sync().into_data(), theirs.value_sync().into_data());
            }
            // Gradients by scale and shift.
            let gradients = |y: Tensor<4>, norm: &BatchNorm| {
                let gradients = (y.clone() * y).sum().backward();
                [&norm.gamma, &norm.beta].map(|param| param.grad(&gradients).unwrap().into_data())
            };
            let of_ours = gradients(our_batch_norm(&ours, &inputs, with_relu), &ours);
            let of_theirs = gradients(burns_batch_norm(&theirs, &inputs, with_relu), &theirs);
            of_ours.into_iter().zip(of_theirs).for_each(|(ours, theirs)| assert_near(ours, theirs));
            // Frozen in place, and for inference: by running moments.
            let inner = inputs.iter().map(|x| x.clone().inner()).collect::<Vec<_>>();
            let (ours, theirs) = (ours.valid(), theirs.valid());
            let (y, expected) =
                (our_batch_norm(&ours, &inner, with_relu), burns_batch_norm(&theirs, &inner, with_relu));
            assert_near(y.into_data(), expected.into_data());
        }
    }
}

#[test]
fn a_frozen_normalisation_keeps_its_moments() {
    let _alone = alone();
    let device = Device::flex().autodiff();
    let norm = BatchNormConfig::new(3).init(&device).freeze();
    let x = random([4, 3, 5, 5], &device);
    let y = fused::batch_norm_relu(&norm, x.clone());
    assert_near(y.into_data(), relu(norm.forward(x)).into_data());
    assert_eq!(norm.running_mean.value_sync().into_data().iter::<f32>().collect::<Vec<_>>(), [0.0; 3]);
}

#[test]
fn layer_normalisation_is_burns() {
    let _alone = alone();
    for device in devices() {
        for with_bias in [true, false] {
            let config = LayerNormConfig::new(6).with_epsilon(1e-3).with_bias(with_bias);
            let mut norm: LayerNorm = config.init(&device);
            norm.gamma = Param::from_tensor(random([6], &device));
            let x = [random([4, 5, 6], &device)];
            let ours = |x: &[Tensor<3>]| fused::layer_norm(&norm, 1e-3, x[0].clone());
            assert_same(&x, ours, |x| norm.forward(x[0].clone()));
            let gradients = |y: Tensor<3>| {
                let gradients = (y.clone() * y).sum().backward();
                [Some(&norm.gamma), norm.beta.as_ref()]
                    .map(|param| param.map(|param| param.grad(&gradients).unwrap().into_data()))
            };
            let (ours, theirs) = (gradients(ours(&x)), gradients(norm.forward(x[0].clone())));
            for (ours, theirs) in ours.into_iter().zip(theirs) {
                assert_eq!(ours.is_some(), theirs.is_some());
                ours.zip(theirs).into_iter().for_each(|(ours, theirs)| assert_near(ours, theirs));
            }
        }
    }
}

#[test]
fn attention_is_that_of_products_and_softmax() {
    let _alone = alone();
    let composed = |qkv: Tensor<3>, heads: usize| {
        let [batch, tokens, joint] = qkv.dims();
        let size = joint / 3 / heads;
        let part = |i: usize| {
            let features = i * heads * size..(i + 1) * heads * size;
            let part: Tensor<4> = qkv.clone().slice_dim(2, features).reshape([batch, tokens, heads, size]);
            part.swap_dims(1, 2)
        };
        let scores = part(0).matmul(part(1).transpose()) / (size as f64).sqrt();
        softmax(scores, 3).matmul(part(2)).swap_dims(1, 2).reshape([batch, tokens, heads * size])
    };
    for device in devices() {
        for (batch, tokens, features, heads) in [(1, 1, 4, 1), (3, 7, 12, 3), (2, 17, 16, 2)] {
            let qkv = random([batch, tokens, 3 * features], &device);
            let ours = |x: &[Tensor<3>]| fused::attention(x[0].clone(), heads);
            assert_same(&[qkv], ours, |x| composed(x[0].clone(), heads));
        }
    }
}

#[test]
fn dropout_scales_what_it_keeps_and_is_seeded_by_the_device() {
    let _alone = alone();
    for device in devices() {
        let dropout = DropoutConfig::new(0.25).init();
        let run = || {
            device.seed(5);
            let x = Tensor::<2>::ones([100, 100], &device).require_grad();
            let y = fused::dropout(&dropout, x.clone());
            let gradients = y.clone().sum().backward();
            // Ones give the same as gradients of ones.
            y.clone().into_data().assert_eq(&x.grad(&gradients).unwrap().into_data(), true);
            y.into_data().try_into_vec::<f32>().unwrap()
        };
        let y = run();
        assert!(y.iter().all(|y| *y == 0.0 || *y == (1.0 / 0.75) as f32));
        let kept = y.iter().filter(|y| **y > 0.0).count();
        assert!((7200..7800).contains(&kept), "{kept} of 10000");
        assert_eq!(y, run());
        // Without autodiff, or frozen, nothing is dropped.
        let ones = Tensor::<2>::ones([4, 4], &device.clone().without_autodiff());
        assert_eq!(fused::dropout(&dropout, ones.clone()).into_data(), ones.into_data());
    }
}

#[test]
fn other_float_types_are_burns() {
    let _alone = alone();
    let x = random([2, 3], &Device::flex()).cast(FloatDType::F64);
    assert_eq!(fused::gelu(x.clone()).into_data(), gelu(x.clone()).into_data());
    assert_eq!(fused::relu(x.clone()).into_data(), relu(x).into_data());
}

/// Inputs without numbers.
#[test]
fn nothing_gives_nothing() {
    let _alone = alone();
    let x = Tensor::<4>::empty([0, 3, 4, 4], &Device::flex());
    assert_eq!(fused::relu(x.clone()).dims(), [0, 3, 4, 4]);
    let norm = BatchNormConfig::new(3).init(&Device::flex());
    assert_eq!(fused::batch_norm_relu(&norm, x).dims(), [0, 3, 4, 4]);
}
