//! Condensed modules on every device of the build, against Burn's dense modules with masked weights on the CPU. (On a
//! GPU dense products of f32 may round their inputs to TF32.)

mod devices;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use condensed::{CondensedWeight, ConvKernel, FanIn, LinearKernel, Shape, Window};
use rayon::prelude::*;
use srigl_burn::{CondensedConv2d, CondensedLinear, Mask, Sparsified, SparsityConfig};

/// The two CPU devices with kernels and one that takes the dense path; then the GPU of the build.
fn devices() -> Vec<Device> {
    [devices::cpus(), vec![Device::flex().autodiff()], devices::gpus()].concat()
}

/// Well-mixed bits of two numbers.
fn hash(a: usize, b: usize) -> u64 {
    let mut x = (a as u64) << 32 ^ b as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..3 {
        x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    x ^ x >> 32
}

/// Numbers in `[-1, 1)`.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (hash(seed, i) % 20_011) as f32 / 10_005.5 - 1.0).collect()
}

fn tensor<const D: usize>(dims: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(dims.iter().product(), seed), dims), device)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Fan-in `k`, every third neuron ablated.
    Constant(usize),
    /// Fan-in `k`, so many active neurons at a time read the same inputs. Every fifth neuron and more are ablated.
    Shared(usize, usize),
    /// One weight in so many.
    Unstructured(u64),
    AllAblated,
    Full,
}

fn mask(n: usize, m: usize, kind: Kind) -> Mask {
    let mut mask = Mask::empty(n, m);
    let mut active = 0;
    for neuron in 0..n {
        match kind {
            Kind::Shared(..) if neuron % 5 == 4 || (20..38).contains(&neuron) => {}
            Kind::Shared(group, k) => {
                let mut inputs: Vec<usize> = (0..m).collect();
                inputs.sort_by_key(|&input| hash(active / group, input));
                inputs[..k].iter().for_each(|&input| mask.activate(neuron, input));
                active += 1;
            }
            Kind::Constant(_) if neuron % 3 == 2 => {}
            Kind::Constant(k) => {
                let mut inputs: Vec<usize> = (0..m).collect();
                inputs.sort_by_key(|&input| hash(neuron, input));
                inputs[..k].iter().for_each(|&input| mask.activate(neuron, input));
            }
            Kind::Unstructured(one_in) => (0..m)
                .filter(|&input| hash(neuron, input).is_multiple_of(one_in))
                .for_each(|input| mask.activate(neuron, input)),
            Kind::AllAblated => {}
            Kind::Full => (0..m).for_each(|input| mask.activate(neuron, input)),
        }
    }
    mask
}

/// `‖a − b‖ ≤ 1e-5 · ‖b‖`, shapes and types alike.
fn assert_close<const D: usize>(a: &Tensor<D>, b: &Tensor<D>, what: &str) {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{what}");
    let read = |t: &Tensor<D>| t.to_data().convert::<f64>().try_into_vec::<f64>().unwrap();
    let (a, b) = (read(a), read(b));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (error, size) = (norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)), norm(&mut b.iter().copied()));
    assert!(error <= 1e-5 * size, "{what}: error {error:e} of {size:e}");
}

/// A linear layer with random weights everywhere, and the same with those of the mask alone.
fn linear_pair(m: usize, n: usize, bias: bool, mask: &Mask, device: &Device) -> (Linear, Linear) {
    let mut layer = LinearConfig::new(m, n).with_bias(bias).init(device);
    let rows = values(n * m, 1);
    let weight = |rows: Vec<f32>| {
        Param::from_tensor(Tensor::<2>::from_data(TensorData::new(rows, [n, m]), device).transpose())
    };
    layer.weight = weight(rows.clone());
    layer.bias = layer.bias.map(|_| Param::from_tensor(tensor([n], 2, device)));
    let mut masked = rows;
    mask.apply(&mut masked);
    let dense = Linear { weight: weight(masked), bias: layer.bias.clone() };
    (layer, dense)
}

fn conv_pair(config: &Conv2dConfig, mask: &Mask, device: &Device) -> (Conv2d, Conv2d) {
    let mut layer = config.init(device);
    let dims = layer.weight.dims();
    let rows = values(dims.iter().product(), 3);
    let weight = |rows| Param::from_tensor(Tensor::from_data(TensorData::new(rows, dims), device));
    layer.weight = weight(rows.clone());
    layer.bias = layer.bias.map(|_| Param::from_tensor(tensor([dims[0]], 4, device)));
    let mut masked = rows;
    mask.apply(&mut masked);
    let dense = Conv2d { weight: weight(masked), ..layer.clone() };
    (layer, dense)
}

#[test]
fn linear_layers_agree_with_dense_ones() {
    let cases = [
        (1, 1, Kind::Full),
        (7, 5, Kind::Constant(3)),
        (33, 1, Kind::Constant(4)),
        (65, 64, Kind::Constant(1)),
        (784, 300, Kind::Constant(77)),
        (256, 10, Kind::Constant(25)),
        (257, 19, Kind::Unstructured(10)),
        (300, 100, Kind::Unstructured(2)),
        (40, 12, Kind::AllAblated),
        (50, 31, Kind::Full),
    ];
    for device in devices() {
        for (m, n, kind) in cases {
            let mask = mask(n, m, kind);
            for bias in [true, false] {
                let (layer, _) = linear_pair(m, n, bias, &mask, &device);
                let (_, dense) = linear_pair(m, n, bias, &mask, &Device::flex());
                let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
                for batch in [1, 2, 3, 4, 64, 71] {
                    let what = format!("{device:?} [{n}, {m}] {kind:?} bias {bias} batch {batch}");
                    let x = |device| tensor([batch, m], batch, device);
                    assert_close(&condensed.forward(x(&device)), &dense.forward(x(&Device::flex())), &what);
                }
            }
        }
    }
}

/// Groups that bunches of two or four neurons fill or not, the last one smaller; one chunk of inputs and many.
#[test]
fn neurons_that_share_inputs_agree_with_dense_layers() {
    for device in devices() {
        for (group, (m, k)) in [1, 2, 3, 4, 8, 16].into_iter().flat_map(|g| [(g, (40, 9)), (g, (1500, 140))])
        {
            // 36 and 47 active neurons.
            for n in [63, 77] {
                let mask = mask(n, m, Kind::Shared(group, k));
                let (layer, _) = linear_pair(m, n, true, &mask, &device);
                let (_, dense) = linear_pair(m, n, true, &mask, &Device::flex());
                let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
                assert_eq!(condensed.weight().pattern().group(), group);
                for batch in [1, 7, 8, 9, 33, 64] {
                    let what = format!("{device:?} [{n}, {m}] groups of {group} batch {batch}");
                    let x = |device| tensor([batch, m], batch, device);
                    assert_close(&condensed.forward(x(&device)), &dense.forward(x(&Device::flex())), &what);
                }
            }
        }
    }
}

#[test]
fn linear_layers_take_any_number_of_dimensions() {
    let mask = mask(6, 10, Kind::Constant(3));
    let cpu = Device::flex();
    let (_, dense) = linear_pair(10, 6, true, &mask, &cpu);
    for device in devices() {
        let (layer, _) = linear_pair(10, 6, true, &mask, &device);
        let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
        let what = format!("{device:?}");
        let x = |device| tensor([10], 5, device);
        assert_close(&condensed.forward(x(&device)), &dense.forward(x(&cpu)), &what);
        let x = |device| tensor([2, 3, 4, 10], 6, device);
        assert_close(&condensed.forward(x(&device)), &dense.forward(x(&cpu)), &what);
        // Not contiguous, and with another owner.
        let x = |device| tensor([2, 10, 3], 7, device).swap_dims(1, 2);
        assert_close(&condensed.forward(x(&device)), &dense.forward(x(&cpu)), &what);
        // A view into the middle of a larger tensor.
        let x = |device| tensor([9, 12], 8, device).slice([3..8, 1..11]);
        assert_close(&condensed.forward(x(&device)), &dense.forward(x(&cpu)), &what);
    }
}

#[test]
fn batches_may_be_empty() {
    let (linear_mask, conv_mask) = (mask(6, 10, Kind::Constant(3)), mask(4, 18, Kind::Constant(5)));
    for device in devices() {
        let (layer, _) = linear_pair(10, 6, true, &linear_mask, &device);
        let condensed = CondensedLinear::from_linear(&layer, &linear_mask).unwrap();
        let x = Tensor::<2>::zeros([0, 10], &device);
        assert_eq!(condensed.forward(x).dims(), [0, 6]);
        let x = Tensor::<3>::zeros([3, 0, 10], &device);
        assert_eq!(condensed.forward(x).dims(), [3, 0, 6]);

        let (conv, _) = conv_pair(&Conv2dConfig::new([2, 4], [3, 3]), &conv_mask, &device);
        let condensed = CondensedConv2d::from_conv(&conv, &conv_mask).unwrap();
        let x = Tensor::<4>::zeros([0, 2, 8, 9], &device);
        assert_eq!(condensed.forward(x).dims(), [0, 4, 6, 7]);
    }
}

#[test]
fn convolutions_agree_with_dense_ones() {
    let config = Conv2dConfig::new;
    let explicit = |top, left, bottom, right| PaddingConfig2d::Explicit(top, left, bottom, right);
    let cases = [
        (config([1, 1], [1, 1]), [1, 1], Kind::Full),
        (config([3, 8], [3, 3]), [9, 7], Kind::Constant(4)),
        (config([3, 8], [3, 3]).with_padding(PaddingConfig2d::Same), [9, 7], Kind::Constant(4)),
        (config([4, 6], [4, 2]).with_padding(PaddingConfig2d::Same), [8, 8], Kind::Constant(5)),
        (
            config([4, 6], [3, 3]).with_padding(PaddingConfig2d::Same).with_stride([2, 2]),
            [8, 11],
            Kind::Constant(5),
        ),
        (config([5, 7], [3, 5]).with_padding(explicit(1, 2, 1, 2)), [10, 12], Kind::Unstructured(7)),
        (config([5, 7], [3, 3]).with_padding(explicit(0, 2, 1, 1)), [10, 12], Kind::Constant(11)),
        (
            config([3, 4], [7, 7]).with_padding(explicit(3, 3, 3, 3)).with_stride([2, 2]),
            [32, 32],
            Kind::Constant(14),
        ),
        (config([8, 16], [1, 1]).with_stride([2, 3]), [9, 9], Kind::Constant(2)),
        (
            config([4, 6], [3, 3]).with_dilation([2, 3]).with_padding(explicit(2, 3, 2, 3)),
            [13, 15],
            Kind::Constant(7),
        ),
        (config([4, 6], [3, 2]).with_groups(2).with_padding(explicit(1, 1, 1, 1)), [6, 5], Kind::Constant(3)),
        (config([6, 12], [3, 3]).with_groups(6), [6, 6], Kind::Unstructured(3)),
        (config([4, 63], [3, 3]), [9, 7], Kind::Shared(2, 7)),
        (
            config([4, 50], [3, 3]).with_padding(explicit(1, 0, 1, 2)).with_stride([2, 3]),
            [20, 31],
            Kind::Shared(3, 7),
        ),
        (config([4, 77], [3, 2]).with_padding(PaddingConfig2d::Same), [8, 8], Kind::Shared(4, 6)),
        (config([4, 77], [1, 1]).with_stride([2, 3]), [9, 9], Kind::Shared(16, 2)),
        // Neurons that share inputs read different channels.
        (config([6, 12], [3, 3]).with_groups(3), [6, 6], Kind::Shared(8, 5)),
        (config([6, 12], [3, 3]).with_groups(6), [6, 6], Kind::Full),
        (config([3, 5], [3, 3]), [5, 5], Kind::AllAblated),
        (config([3, 5], [3, 3]).with_bias(false), [5, 6], Kind::Full),
    ];
    for device in devices() {
        for (config, [height, width], kind) in &cases {
            let [channels, neurons] = config.channels;
            let taps = config.kernel_size[0] * config.kernel_size[1];
            let mask = mask(neurons, channels / config.groups * taps, *kind);
            let (layer, _) = conv_pair(config, &mask, &device);
            let (_, dense) = conv_pair(config, &mask, &Device::flex());
            let condensed = CondensedConv2d::from_conv(&layer, &mask).unwrap();
            for batch in [1, 3] {
                let what = format!("{device:?} {config} [{height}, {width}] {kind:?} batch {batch}");
                let x = |device| tensor([batch, channels, *height, *width], batch, device);
                assert_close(&condensed.forward(x(&device)), &dense.forward(x(&Device::flex())), &what);
            }
        }
    }
}

#[test]
fn convolutions_take_images_of_many_sizes() {
    let config = Conv2dConfig::new([2, 3], [3, 3]).with_padding(PaddingConfig2d::Same);
    let mask = mask(3, 18, Kind::Constant(4));
    let device = Device::flex();
    let (layer, dense) = conv_pair(&config, &mask, &device);
    let condensed = CondensedConv2d::from_conv(&layer, &mask).unwrap();
    // More sizes than are kept, twice.
    for size in (4..16).chain(4..16) {
        let x = tensor([1, 2, size, 20 - size], size, &device);
        assert_close(&condensed.forward(x.clone()), &dense.forward(x), &format!("size {size}"));
    }
}

/// Bit for bit: rounding tells which code ran.
#[test]
fn cpu_devices_run_the_kernels_and_autodiff_the_dense_operations() {
    let mask = mask(60, 700, Kind::Constant(70));
    let conv_mask = crate::mask(60, 144, Kind::Constant(30));
    let conv_config = Conv2dConfig::new([16, 60], [3, 3]);
    let bits = |t: Tensor<1>| -> Vec<u32> {
        t.into_data().try_into_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let to_bits = |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
    for (device, kernels) in devices().into_iter().zip([true, true, false]) {
        let (layer, dense) = linear_pair(700, 60, true, &mask, &device);
        let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
        let x = tensor([5, 700], 9, &device);
        let mut expected = vec![0.0; 5 * 60];
        LinearKernel::new(condensed.weight(), condensed.bias()).unwrap().run(
            5,
            &values(5 * 700, 9),
            &mut expected,
        );
        let got = bits(condensed.forward(x.clone()).flatten(0, 1));
        let (expected, dense) = (to_bits(expected), bits(dense.forward(x).flatten(0, 1)));
        assert_ne!(expected, dense, "this test needs sums that round differently");
        assert_eq!(got, if kernels { expected } else { dense }, "linear on {device:?}");

        let (layer, dense) = conv_pair(&conv_config, &conv_mask, &device);
        let condensed = CondensedConv2d::from_conv(&layer, &conv_mask).unwrap();
        let x = tensor([2, 16, 10, 10], 9, &device);
        let window = Window { kernel: [3, 3], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
        let image = Shape { features: 16, height: 10, width: 10 };
        let kernel = ConvKernel::new(condensed.weight(), condensed.bias(), window, 1, image).unwrap();
        let mut expected = vec![0.0; 2 * 60 * 64];
        kernel.run(2, &values(2 * 1600, 9), &mut expected);
        let got = bits(condensed.forward(x.clone()).flatten(0, 3));
        let (expected, dense) = (to_bits(expected), bits(dense.forward(x).flatten(0, 3)));
        assert_ne!(expected, dense, "this test needs sums that round differently");
        assert_eq!(got, if kernels { expected } else { dense }, "convolution on {device:?}");
    }
}

/// GPU kernels with small and large batches and several chunks of inputs: close to the CPU's kernels, but not the
/// dense operation of the device, which rounds differently; and in half precision where the device has it.
#[cfg(feature = "gpu")]
#[test]
fn gpus_run_kernels_of_their_own() {
    let device = devices::gpus().pop().unwrap();
    let read = |t: Tensor<2>| t.into_data().convert::<f32>().try_into_vec::<f32>().unwrap();
    let mut types = vec![FloatDType::F32];
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        if device.supports_dtype(dtype) {
            types.push(dtype);
        } else {
            println!("{device:?} has no {dtype:?}");
        }
    }
    for kind in [Kind::Constant(210), Kind::Shared(2, 210), Kind::Shared(4, 210)] {
        let mask = mask(60, 2100, kind);
        let (layer, dense) = linear_pair(2100, 60, true, &mask, &device);
        let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
        let cpu = CondensedLinear::new(condensed.weight(), Some(condensed.bias())).unwrap();
        for batch in [1, 8, 9, 70] {
            let expected = cpu.forward(tensor([batch, 2100], 9, &Device::flex()));
            let x = tensor([batch, 2100], 9, &device);
            assert_ne!(read(condensed.forward(x.clone())), read(dense.forward(x.clone())), "batch {batch}");
            let expected = read(expected);
            for dtype in &types {
                let got = condensed.forward(x.clone().cast(*dtype));
                assert_eq!(got.dtype(), (*dtype).into());
                let tolerance = if *dtype == FloatDType::F32 { 1e-6 } else { 1e-2 };
                let got = read(got);
                let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
                let error = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
                let size = norm(&mut expected.iter().copied());
                let what = format!("{kind:?} batch {batch} {dtype:?}");
                assert!(error <= tolerance * size, "{what}: {error:e} of {size:e}");
            }
        }
    }
}

#[test]
fn gradients_reach_the_input() {
    let device = Device::flex().autodiff();
    let linear_mask = mask(6, 10, Kind::Constant(3));
    let (layer, dense) = linear_pair(10, 6, true, &linear_mask, &device);
    let condensed = CondensedLinear::from_linear(&layer, &linear_mask).unwrap();
    let gradient = |forward: &dyn Fn(Tensor<2>) -> Tensor<2>| {
        let x = tensor([4, 10], 1, &device).require_grad();
        let gradients = forward(x.clone()).powf_scalar(2.0).sum().backward();
        x.grad(&gradients).unwrap()
    };
    assert_close(&gradient(&|x| condensed.forward(x)), &gradient(&|x| dense.forward(x)), "linear");

    let conv_mask = mask(4, 18, Kind::Constant(5));
    let (layer, dense) = conv_pair(&Conv2dConfig::new([2, 4], [3, 3]), &conv_mask, &device);
    let condensed = CondensedConv2d::from_conv(&layer, &conv_mask).unwrap();
    let gradient = |forward: &dyn Fn(Tensor<4>) -> Tensor<4>| {
        let x = tensor([2, 2, 7, 6], 1, &device).require_grad();
        let gradients = forward(x.clone()).powf_scalar(2.0).sum().backward();
        x.grad(&gradients).unwrap()
    };
    assert_close(&gradient(&|x| condensed.forward(x)), &gradient(&|x| dense.forward(x)), "convolution");
}

/// One module serves a CPU device, an autodiff device and the CPU again.
#[test]
fn modules_follow_their_inputs() {
    let mask = mask(6, 10, Kind::Constant(3));
    let (layer, dense) = linear_pair(10, 6, true, &mask, &Device::flex());
    let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
    let expected = dense.forward(tensor([4, 10], 1, &Device::flex())).into_data();
    for device in devices().into_iter().chain(devices()) {
        let y = condensed.forward(tensor([4, 10], 1, &device));
        assert_eq!(y.device().is_autodiff(), device.is_autodiff());
        let y = Tensor::<2>::from_data(y.into_data(), &Device::flex());
        assert_close(&y, &Tensor::from_data(expected.clone(), &Device::flex()), &format!("{device:?}"));
    }
}

#[test]
fn other_float_types_come_back_as_they_are() {
    let mask = mask(6, 10, Kind::Constant(3));
    for device in devices() {
        let (layer, _) = linear_pair(10, 6, true, &mask, &device);
        let condensed = CondensedLinear::from_linear(&layer, &mask).unwrap();
        let x = tensor([4, 10], 1, &device);
        let y = condensed.forward(x.clone().cast(FloatDType::F64));
        assert_eq!(y.dtype(), DType::F64, "{device:?}");
        assert_close(&y.cast(FloatDType::F32), &condensed.forward(x), &format!("{device:?}"));
    }
}

#[test]
fn fan_in_tells_structured_masks_from_others() {
    let device = Device::flex();
    let structured = mask(9, 40, Kind::Constant(7));
    let (layer, _) = linear_pair(40, 9, true, &structured, &device);
    let fan_in = |mask: &Mask| CondensedLinear::from_linear(&layer, mask).unwrap().fan_in().clone();
    assert_eq!(fan_in(&structured), FanIn::Constant(7));
    assert!(matches!(fan_in(&mask(9, 40, Kind::Unstructured(4))), FanIn::Varying(_)));

    let mask = mask(4, 18, Kind::Constant(5));
    let (conv, _) = conv_pair(&Conv2dConfig::new([2, 4], [3, 3]), &mask, &device);
    let condensed = CondensedConv2d::from_conv(&conv, &mask).unwrap();
    assert_eq!(condensed.fan_in(), &FanIn::Constant(5));
    assert_eq!(condensed.weight().active(), [0, 1, 3]);
}

#[test]
fn modules_can_be_made_from_plain_weights() {
    let device = Device::flex();
    let linear_mask = mask(6, 10, Kind::Constant(3));
    let (_, dense) = linear_pair(10, 6, false, &linear_mask, &device);
    let bits = |mask: &Mask| -> Vec<bool> { mask.to_bytes().iter().map(|b| *b == 1).collect() };
    let weight = CondensedWeight::from_masked(&values(60, 1), &bits(&linear_mask), 6, 10).unwrap();
    let condensed = CondensedLinear::new(&weight, None).unwrap();
    let x = tensor([4, 10], 1, &device);
    assert_close(&condensed.forward(x.clone()), &dense.forward(x), "linear");

    let conv_mask = mask(4, 18, Kind::Constant(5));
    let padding = PaddingConfig2d::Explicit(1, 0, 1, 0);
    let config = Conv2dConfig::new([2, 4], [3, 3]).with_padding(padding).with_stride([1, 2]);
    let (_, dense) = conv_pair(&config, &conv_mask, &device);
    let weight = CondensedWeight::from_masked(&values(72, 3), &bits(&conv_mask), 4, 18).unwrap();
    let window = Window { kernel: [3, 3], stride: [1, 2], padding: [1, 0], dilation: [1, 1] };
    let condensed = CondensedConv2d::new(weight, Some(&values(4, 4)), window, 1).unwrap();
    let x = tensor([2, 2, 7, 6], 1, &device);
    assert_close(&condensed.forward(x.clone()), &dense.forward(x), "convolution");
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::flex();
    let fits = mask(6, 10, Kind::Constant(3));
    let (layer, _) = linear_pair(10, 6, true, &fits, &device);
    let error = CondensedLinear::from_linear(&layer, &mask(10, 6, Kind::Full)).unwrap_err();
    assert_eq!(error.to_string(), "condensed weight: mask [10, 6] for weights [6, 10]");

    let mut rows = values(60, 1);
    let active = (0..10).find(|&input| fits.is_active(0, input)).unwrap();
    let inactive = (0..10).find(|&input| !fits.is_active(0, input)).unwrap();
    rows[inactive] = f32::NAN;
    let with = |rows: &[f32]| {
        let weight = Tensor::<2>::from_data(TensorData::new(rows.to_vec(), [6, 10]), &device);
        Linear { weight: Param::from_tensor(weight.transpose()), bias: None }
    };
    assert!(CondensedLinear::from_linear(&with(&rows), &fits).is_ok(), "an inactive weight does not matter");
    rows[active] = f32::NAN;
    assert!(CondensedLinear::from_linear(&with(&rows), &fits).is_err());

    let weight = CondensedWeight::from_masked(&[1.0; 36], &[true; 36], 4, 9).unwrap();
    let window = Window { kernel: [3, 3], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
    let conv = |bias: &[f32], window, groups| {
        CondensedConv2d::new(weight.clone(), Some(bias), window, groups).is_ok()
    };
    assert!(conv(&[0.0; 4], window, 1) && conv(&[0.0; 4], window, 2));
    assert!(!conv(&[0.0; 3], window, 1));
    assert!(!conv(&[0.0; 4], window, 0));
    assert!(!conv(&[0.0; 4], window, 3));
    assert!(!conv(&[0.0; 4], Window { kernel: [3, 2], ..window }, 1));
    assert!(!conv(&[0.0; 4], Window { kernel: [0, 3], ..window }, 1));
    assert!(!conv(&[0.0; 4], Window { kernel: [usize::MAX; 2], dilation: [usize::MAX; 2], ..window }, 1));
    assert!(!conv(&[0.0; 4], Window { stride: [0, 1], ..window }, 1));
    assert!(CondensedLinear::new(&weight, Some(&[0.0; 5])).is_err());
}

#[test]
#[should_panic(expected = "the last dimension is the layer's input")]
fn inputs_of_another_width_panic() {
    let weight = CondensedWeight::from_masked(&[1.0; 6], &[true; 6], 2, 3).unwrap();
    // The right number of values in all.
    CondensedLinear::new(&weight, None).unwrap().forward(tensor([3, 2], 1, &Device::flex()));
}

/// Kernels run on rayon's pool and keep scratch space: a caller on that pool must not wait for itself.
#[test]
fn modules_can_be_called_from_parallel_iterators() {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let device = Device::flex();
        let linear_mask = mask(256, 512, Kind::Constant(50));
        let (layer, dense) = linear_pair(512, 256, true, &linear_mask, &device);
        let linear = CondensedLinear::from_linear(&layer, &linear_mask).unwrap();
        let conv_mask = mask(32, 144, Kind::Constant(20));
        let (layer, dense_conv) = conv_pair(&Conv2dConfig::new([16, 32], [3, 3]), &conv_mask, &device);
        let conv = CondensedConv2d::from_conv(&layer, &conv_mask).unwrap();
        (0..64).into_par_iter().for_each(|i| {
            let x = tensor([1 + i % 8, 512], i, &device);
            assert_close(&linear.forward(x.clone()), &dense.forward(x), "linear");
            let x = tensor([2, 16, 10 + i % 3, 12], i, &device);
            assert_close(&conv.forward(x.clone()), &dense_conv.forward(x), "convolution");
        });
        done.send(()).unwrap();
    });
    let minute = std::time::Duration::from_secs(60);
    result.recv_timeout(minute).expect("finished without an error or a deadlock");
}

/// A module of a user's, in which condensed layers stand beside Burn's.
#[derive(Module, Debug)]
struct Net {
    conv: CondensedConv2d,
    fc: CondensedLinear,
    head: Linear,
}

#[test]
fn trained_layers_condense_with_the_masks_of_their_topology() {
    #[derive(Module, Debug)]
    struct Dense {
        conv: Conv2d,
        fc: Linear,
        head: Linear,
    }
    let device = Device::flex().autodiff();
    let net = Dense {
        conv: Conv2dConfig::new([2, 8], [3, 3]).init(&device),
        fc: LinearConfig::new(8 * 16, 32).init(&device),
        head: LinearConfig::new(32, 3).init(&device),
    };
    let srigl = SparsityConfig::new(0.7, 10).with_delta_t(1);
    let Sparsified { model: mut net, mut optim, topology } =
        srigl.sparsify(net, SgdConfig::new().build()).unwrap();
    for step in 0..3 {
        let y = net.conv.forward(tensor([4, 2, 6, 6], step, &device)).flatten::<2>(1, 3);
        let loss = net.head.forward(net.fc.forward(y)).powf_scalar(2.0).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optim.step(0.1, net, gradients);
    }
    let layers = topology.layers();
    let mask = |name: &str| &layers.iter().find(|layer| layer.name == name).unwrap().mask;
    let net = net.valid();
    let condensed = Net {
        conv: CondensedConv2d::from_conv(&net.conv, mask("conv")).unwrap(),
        fc: CondensedLinear::from_linear(&net.fc, mask("fc")).unwrap(),
        head: net.head.clone(),
    };
    // Only Burn's own layer has parameters, and the others survive what Burn does to modules.
    assert_eq!(condensed.num_params(), 32 * 3 + 3);
    let condensed = condensed.clone().to_device(&Device::flex()).no_grad();
    assert!(condensed.to_string().contains("CondensedLinear {d_input: 128, d_output: 32"), "{condensed}");

    let x = tensor([4, 2, 6, 6], 9, &Device::flex());
    let expected = net.conv.forward(x.clone());
    let y = condensed.conv.forward(x);
    assert_close(&y, &expected, "conv");
    let (y, expected) = (y.flatten::<2>(1, 3), expected.flatten::<2>(1, 3));
    assert_close(&condensed.fc.forward(y), &net.fc.forward(expected), "fc");
}
