//! Layers that train in condensed form, against Burn's dense ones with a mask.

mod devices;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, Device, Distribution, FloatDType, Tensor, TensorData, Tolerance};
use srigl_burn::{Mask, SparseConv2d, SparseLinear};

/// Those with kernels, and GPUs, which run dense operations.
fn devices() -> impl Iterator<Item = Device> {
    devices::all().into_iter().map(Device::autodiff)
}

/// A mask with every third bit, but for the second row, which has none.
fn mask(neurons: usize, inputs: usize) -> Mask {
    let bits: Vec<u8> = (0..neurons * inputs).map(|i| u8::from(i % 3 == 0 && i / inputs != 1)).collect();
    Mask::from_bytes(neurons, inputs, &bits).unwrap()
}

/// True where the mask is.
fn active<const D: usize>(mask: &Mask, dims: [usize; D], device: &Device) -> Tensor<D, Bool> {
    let bits: Vec<bool> = mask.to_bytes().iter().map(|byte| *byte == 1).collect();
    Tensor::from_data(TensorData::new(bits, dims), device)
}

fn close<const D: usize>(got: &Tensor<D>, want: &Tensor<D>) {
    got.to_data().assert_approx_eq::<f32>(&want.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

/// The numbers at the mask's positions, neuron by neuron.
fn at_mask(rows: Tensor<2>, mask: &Mask) -> Tensor<1> {
    let device = rows.device();
    let rows: Vec<f32> = rows.into_data().try_into_vec().unwrap();
    let at: Vec<f32> =
        rows.into_iter().zip(mask.to_bytes()).filter(|(_, bit)| *bit == 1).map(|(x, _)| x).collect();
    let count = at.len();
    Tensor::from_data(TensorData::new(at, [count]), &device)
}

/// Makes the weights 0 where the mask is.
fn masked(mut layer: Linear, mask: &Mask, device: &Device) -> Linear {
    let [inputs, neurons] = layer.weight.dims();
    let inactive = active(mask, [neurons, inputs], device).transpose().bool_not();
    let weight = layer.weight.val().mask_fill(inactive, 0.0).detach().require_grad();
    layer.weight = Param::initialized(layer.weight.id, weight);
    layer
}

#[test]
fn linear_layers_have_the_results_and_gradients_of_masked_ones() {
    for device in devices() {
        for has_bias in [true, false] {
            let mask = mask(7, 10);
            let dense = LinearConfig::new(10, 7).with_bias(has_bias).init(&device);
            let dense = masked(dense, &mask, &device);
            let sparse = SparseLinear::from_linear(&dense, &mask).unwrap();
            assert_eq!(sparse.weight.dims(), [mask.nnz()]);
            let random = |dims: [usize; 3]| Tensor::<3>::random(dims, Distribution::Default, &device);
            let (x, weight_of_result) = (random([2, 5, 10]).require_grad(), random([2, 5, 7]));
            let (x_of_sparse, seen) = (x.clone().detach().require_grad(), weight_of_result.clone());
            let (y, y_of_sparse) = (dense.forward(x.clone()), sparse.forward(x_of_sparse.clone()));
            close(&y_of_sparse, &y);
            let gradients = (y * weight_of_result).sum().backward();
            let of_sparse = (y_of_sparse * seen).sum().backward();
            close(&x_of_sparse.grad(&of_sparse).unwrap(), &x.grad(&gradients).unwrap());
            let dense_gradient = dense.weight.val().grad(&gradients).unwrap().transpose();
            close(&sparse.weight.val().grad(&of_sparse).unwrap(), &at_mask(dense_gradient, &mask));
            assert_eq!(sparse.bias.is_some(), has_bias);
            if let (Some(bias), Some(of_dense)) = (&sparse.bias, &dense.bias) {
                close(&bias.val().grad(&of_sparse).unwrap(), &of_dense.val().grad(&gradients).unwrap());
            }
        }
    }
}

fn convs() -> [Conv2dConfig; 5] {
    [
        Conv2dConfig::new([4, 6], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)),
        Conv2dConfig::new([4, 6], [3, 2]).with_stride([2, 1]).with_bias(false),
        Conv2dConfig::new([4, 6], [2, 2]).with_padding(PaddingConfig2d::Same),
        Conv2dConfig::new([4, 6], [2, 2]).with_groups(2).with_dilation([2, 1]),
        Conv2dConfig::new([4, 6], [1, 1]).with_stride([2, 2]),
    ]
}

#[test]
fn convolutions_have_the_results_and_gradients_of_masked_ones() {
    for device in devices() {
        for config in convs() {
            let mut dense: Conv2d = config.init(&device);
            let dims = dense.weight.dims();
            let mask = mask(dims[0], dims[1] * dims[2] * dims[3]);
            let inactive = active(&mask, dims, &device).bool_not();
            let weight = dense.weight.val().mask_fill(inactive, 0.0).detach().require_grad();
            dense.weight = Param::initialized(dense.weight.id, weight);
            let sparse = SparseConv2d::from_conv(&dense, &mask).unwrap();
            // Another size makes other kernels of the same layer.
            for size in [[7, 6], [9, 5], [7, 6]] {
                let x = Tensor::<4>::random([3, 4, size[0], size[1]], Distribution::Default, &device);
                let (x, x_of_sparse) = (x.clone().require_grad(), x.require_grad());
                let (y, y_of_sparse) = (dense.forward(x.clone()), sparse.forward(x_of_sparse.clone()));
                close(&y_of_sparse, &y);
                let weight_of_result = Tensor::random(y.dims(), Distribution::Default, &device);
                let gradients = (y * weight_of_result.clone()).sum().backward();
                let of_sparse = (y_of_sparse * weight_of_result).sum().backward();
                close(&x_of_sparse.grad(&of_sparse).unwrap(), &x.grad(&gradients).unwrap());
                let dense_gradient = dense.weight.val().grad(&gradients).unwrap();
                let dense_gradient = dense_gradient.reshape([mask.neurons(), mask.dense_fan_in()]);
                close(&sparse.weight.val().grad(&of_sparse).unwrap(), &at_mask(dense_gradient, &mask));
                if let (Some(bias), Some(of_dense)) = (&sparse.bias, &dense.bias) {
                    close(&bias.val().grad(&of_sparse).unwrap(), &of_dense.val().grad(&gradients).unwrap());
                }
            }
        }
    }
}

/// Only what is asked for is computed, and other float types go through f32.
#[test]
fn inference_frozen_inputs_and_half_precision() {
    let device = Device::flex();
    let mask = mask(6, 8);
    let layer = SparseLinear::from_linear(&LinearConfig::new(8, 6).init(&device), &mask).unwrap();
    let x = Tensor::<2>::random([4, 8], Distribution::Default, &device);
    let y = layer.forward(x.clone());
    let half = layer.forward(x.clone().cast(FloatDType::BF16));
    assert_eq!(half.dtype(), burn::tensor::DType::BF16);
    half.cast(FloatDType::F32)
        .to_data()
        .assert_approx_eq::<f32>(&y.to_data(), Tolerance::rel_abs(2e-2, 2e-2));
    let training = layer.train();
    let x = Tensor::from_inner(x);
    assert!(!x.is_require_grad());
    let gradients = training.forward(x).sum().backward();
    assert_eq!(training.weight.val().grad(&gradients).unwrap().dims(), [mask.nnz()]);
}

/// Burn's optimizers and records see a parameter like any other.
#[test]
fn optimizers_and_records_work_on_the_values() {
    let device = Device::flex().autodiff();
    let mask = mask(5, 9);
    let dense = LinearConfig::new(9, 5).init(&device);
    let mut layer = SparseLinear::from_linear(&dense, &mask).unwrap();
    assert_eq!(layer.num_params(), mask.nnz() + 5);
    let mut optim = AdamConfig::new().init();
    let (x, target) = (Tensor::<2>::ones([2, 9], &device), Tensor::<2>::ones([2, 5], &device) * 3.0);
    let loss = |layer: &SparseLinear| (layer.forward(x.clone()) - target.clone()).powf_scalar(2.0).mean();
    let first: f32 = loss(&layer).into_scalar();
    for _ in 0..200 {
        let gradients = GradientsParams::from_grads(loss(&layer).backward(), &layer);
        layer = optim.step(0.05, layer, gradients);
    }
    assert!(loss(&layer).into_scalar::<f32>() < 0.01 * first);
    let weight = layer.condensed().unwrap();
    assert_eq!((weight.neurons(), weight.inputs(), weight.values().len()), (5, 9, mask.nnz()));

    let other = SparseLinear::from_linear(&dense, &mask).unwrap().load_record(layer.clone().into_record());
    close(&other.forward(x.clone()), &layer.forward(x));
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let layer = LinearConfig::new(8, 6).init(&device);
    let error = SparseLinear::from_linear(&layer, &mask(8, 6)).unwrap_err().to_string();
    assert!(error.contains("[8, 6]") && error.contains("[6, 8]"), "{error}");
    assert!(SparseConv2d::from_conv(&Conv2dConfig::new([2, 4], [3, 3]).init(&device), &mask(4, 17)).is_err());
}
