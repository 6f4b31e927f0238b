//! Layers against a plain product, over random shapes and every instruction set of this machine.

use condensed::{CondensedWeight, ConvKernel, FanIn, Isa, LinearKernel, Shape, Window};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Few cases under Miri, which is slow.
fn cases() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 200 })
    }
}

/// A matrix with zeros: every row has `fan_in` weights, or a random number of them; some rows none.
fn random_weight(
    neurons: usize,
    inputs: usize,
    fan_in: Option<usize>,
    ablated: f64,
    rng: &mut SmallRng,
) -> CondensedWeight {
    let mut mask = vec![false; neurons * inputs];
    for row in mask.chunks_mut(inputs.max(1)) {
        if rng.random_bool(ablated) {
            continue;
        }
        let k = fan_in.unwrap_or_else(|| rng.random_range(0..=inputs)).min(inputs);
        for input in rand::seq::index::sample(rng, inputs, k) {
            row[input] = true;
        }
    }
    let weights = floats(neurons * inputs, rng);
    CondensedWeight::from_masked(&weights, &mask, neurons, inputs).unwrap()
}

/// Every `group` neurons that are not ablated read the same `fan_in` inputs, the last ones maybe fewer.
fn grouped_weight(
    [neurons, inputs, fan_in, group]: [usize; 4],
    ablated: f64,
    rng: &mut SmallRng,
) -> CondensedWeight {
    let mut mask = vec![false; neurons * inputs];
    let mut active: Vec<_> = mask.chunks_mut(inputs).filter(|_| !rng.random_bool(ablated)).collect();
    for rows in active.chunks_mut(group) {
        let read = rand::seq::index::sample(rng, inputs, fan_in.min(inputs));
        rows.iter_mut().for_each(|row| read.iter().for_each(|input| row[input] = true));
    }
    let weights = floats(neurons * inputs, rng);
    CondensedWeight::from_masked(&weights, &mask, neurons, inputs).unwrap()
}

fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Relative error of the whole result.
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!(error <= 1e-5 * norm + 1e-6, "{what}: error {error} of {norm}");
}

fn linear_reference(weight: &CondensedWeight, bias: &[f32], batch: usize, x: &[f32]) -> Vec<f64> {
    let (n, m) = (weight.neurons(), weight.inputs());
    let dense = weight.to_dense();
    let mut out = Vec::with_capacity(batch * n);
    for b in 0..batch {
        for neuron in 0..n {
            let products = (0..m).map(|i| f64::from(dense[neuron * m + i]) * f64::from(x[b * m + i]));
            out.push(products.sum::<f64>() + f64::from(bias[neuron]));
        }
    }
    out
}

fn check_linear(weight: &CondensedWeight, batch: usize, rng: &mut SmallRng) {
    let bias = floats(weight.neurons(), rng);
    let x = floats(batch * weight.inputs(), rng);
    let want = linear_reference(weight, &bias, batch, &x);
    for isa in Isa::all() {
        let layer = LinearKernel::with_isa(weight, &bias, isa).unwrap();
        let mut got = vec![f32::NAN; batch * weight.neurons()];
        layer.run(batch, &x, &mut got);
        assert_close(&got, &want, &format!("{isa:?}"));
        // And again, with memory that has been used.
        layer.run(batch, &x, &mut got);
        assert_close(&got, &want, &format!("{isa:?}, second run"));
    }
}

fn conv_reference(
    weight: &CondensedWeight,
    bias: &[f32],
    window: Window,
    groups: usize,
    input: Shape,
    [height, width]: [usize; 2],
    x: &[f32],
) -> Vec<f64> {
    let dense = weight.to_dense();
    let [kh, kw] = window.kernel;
    let (channels, per_group) = (input.features / groups, weight.neurons() / groups);
    let mut out = Vec::new();
    for n in 0..weight.neurons() {
        for oy in 0..height {
            for ox in 0..width {
                let mut sum = f64::from(bias[n]);
                for c in 0..channels {
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let y = (oy * window.stride[0] + ky * window.dilation[0])
                                .wrapping_sub(window.padding[0]);
                            let xx = (ox * window.stride[1] + kx * window.dilation[1])
                                .wrapping_sub(window.padding[1]);
                            if y < input.height && xx < input.width {
                                let channel = n / per_group * channels + c;
                                let value = x[(channel * input.height + y) * input.width + xx];
                                let w = dense[n * weight.inputs() + (c * kh + ky) * kw + kx];
                                sum += f64::from(w) * f64::from(value);
                            }
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn check_conv(
    weight: &CondensedWeight,
    window: Window,
    groups: usize,
    input: Shape,
    batch: usize,
    rng: &mut SmallRng,
) {
    let bias = floats(weight.neurons(), rng);
    let size = input.features * input.height * input.width;
    let x = floats(batch * size, rng);
    for isa in Isa::all() {
        let layer = ConvKernel::with_isa(weight, &bias, window, groups, input, isa).unwrap();
        let shape = layer.output_shape();
        let mut want = Vec::new();
        for image in x.chunks(size.max(1)).take(batch) {
            want.extend(conv_reference(
                weight,
                &bias,
                window,
                groups,
                input,
                [shape.height, shape.width],
                image,
            ));
        }
        let mut got = vec![f32::NAN; want.len()];
        layer.run(batch, &x, &mut got);
        assert_close(&got, &want, &format!("{isa:?} {window:?} groups {groups} on {input:?}"));
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn linear_layers_agree_with_the_plain_product(
        neurons in 1usize..70,
        inputs in 1usize..150,
        fan_in in proptest::option::of(1usize..40),
        ablated in prop_oneof![Just(0.0), Just(0.3), Just(1.0)],
        batch in prop_oneof![Just(0usize), Just(1), 2usize..9, 60usize..140],
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let [batch, inputs] = if cfg!(miri) { [batch.min(5), inputs.min(40)] } else { [batch, inputs] };
        let weight = random_weight(neurons, inputs, fan_in, ablated, &mut rng);
        check_linear(&weight, batch, &mut rng);
    }

    #[test]
    fn neurons_that_share_inputs_agree_with_the_plain_product(
        size in [1usize..70, 1usize..150, 1usize..40],
        group in prop::sample::select(vec![1usize, 2, 3, 4, 5, 7, 8, 13, 16]),
        ablated in prop_oneof![Just(0.0), Just(0.3)],
        batch in 1usize..71,
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let batch = if cfg!(miri) { batch.min(5) } else { batch };
        let [neurons, inputs, fan_in] = size;
        let weight = grouped_weight([neurons, inputs, fan_in, group], ablated, &mut rng);
        check_linear(&weight, batch, &mut rng);
    }

    #[test]
    fn convolutions_that_share_inputs_agree_with_the_plain_sum(
        [channels, groups] in [1usize..6, 1usize..3],
        neurons in 1usize..20,
        kernel in [1usize..4, 1usize..4],
        stride in [1usize..4, 1usize..4],
        padding in [0usize..3, 0usize..3],
        [height, width] in [1usize..24, 1usize..24],
        fan_in in 1usize..12,
        group in prop::sample::select(vec![2usize, 3, 4, 8, 16]),
        ablated in prop_oneof![Just(0.0), Just(0.3)],
        seed: u64,
    ) {
        let window = Window { kernel, stride, padding, dilation: [1; 2] };
        let [height, width] = if cfg!(miri) { [height.min(9), width.min(9)] } else { [height, width] };
        let input = Shape { features: channels * groups, height, width };
        prop_assume!(window.output_size(input).is_ok());
        let mut rng = SmallRng::seed_from_u64(seed);
        let size = [neurons * groups, channels * kernel[0] * kernel[1], fan_in, group];
        check_conv(&grouped_weight(size, ablated, &mut rng), window, groups, input, 2, &mut rng);
    }

    #[test]
    fn convolutions_agree_with_the_plain_sum(
        channels in 1usize..6,
        neurons in 1usize..7,
        groups in 1usize..3,
        kernel in prop_oneof![Just([1usize, 1]), Just([3, 3]), Just([7, 7]), (1usize..5, 1usize..5).prop_map(|k| [k.0, k.1])],
        stride in (1usize..4, 1usize..4).prop_map(|s| [s.0, s.1]),
        padding in (0usize..4, 0usize..4).prop_map(|p| [p.0, p.1]),
        dilation in (1usize..3, 1usize..3).prop_map(|d| [d.0, d.1]),
        (height, width) in (1usize..24, 1usize..24),
        fan_in in proptest::option::of(1usize..10),
        ablated in prop_oneof![Just(0.0), Just(0.3), Just(1.0)],
        batch in 0usize..3,
        seed: u64,
    ) {
        let window = Window { kernel, stride, padding, dilation };
        let [height, width] = if cfg!(miri) { [height.min(9), width.min(9)] } else { [height, width] };
        let input = Shape { features: channels * groups, height, width };
        prop_assume!(window.output_size(input).is_ok());
        let mut rng = SmallRng::seed_from_u64(seed);
        let weight = random_weight(neurons * groups, channels * kernel[0] * kernel[1], fan_in, ablated, &mut rng);
        check_conv(&weight, window, groups, input, batch, &mut rng);
    }
}

/// The shapes the timings are about, where blocks and tiles have many parts.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn large_layers_agree() {
    let mut rng = SmallRng::seed_from_u64(7);
    for (neurons, inputs, k) in [(768, 3072, 307), (768, 3072, 31), (1000, 2048, 205), (10, 70_000, 9)] {
        let weight = random_weight(neurons, inputs, Some(k), 0.0, &mut rng);
        assert_eq!(*weight.fan_in(), FanIn::Constant(k));
        for batch in [1, 3, 70] {
            check_linear(&weight, batch, &mut rng);
        }
    }
    for group in [2, 4, 16] {
        let weight = grouped_weight([390, 3072, 307, group], 0.1, &mut rng);
        assert_eq!(
            (weight.pattern().group(), weight.indices().len()),
            (group, weight.active().len().div_ceil(group) * 307)
        );
        check_linear(&weight, 70, &mut rng);
    }
    let square = |size, stride, padding| Window {
        kernel: [size; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        dilation: [1; 2],
    };
    for (channels, neurons, size, window) in [
        (64, 48, 14, square(3, 1, 1)),
        (3, 16, 120, square(7, 2, 3)),
        (32, 40, 28, square(1, 1, 0)),
        (16, 24, 29, square(3, 2, 1)),
        (3, 20, 64, square(16, 16, 0)),
    ] {
        let inputs = channels * window.kernel[0] * window.kernel[1];
        let weight = random_weight(neurons, inputs, Some(inputs.div_ceil(10)), 0.1, &mut rng);
        check_conv(&weight, window, 1, Shape { features: channels, height: size, width: size }, 1, &mut rng);
    }
}

/// Same seed, same result, any thread count.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn results_do_not_depend_on_the_number_of_threads() {
    let rng = &mut SmallRng::seed_from_u64(1);
    let (weight, conv) =
        (random_weight(200, 500, Some(50), 0.1, rng), random_weight(40, 144, Some(20), 0.1, rng));
    same_for_any_number_of_threads(weight, conv, rng);
    for group in [2, 3, 16] {
        let weight = grouped_weight([200, 500, 50, group], 0.1, rng);
        same_for_any_number_of_threads(weight, grouped_weight([40, 144, 20, group], 0.1, rng), rng);
    }
}

/// `weight` is [200, 500], `conv` has 40 filters of 3 × 3 for 16 channels.
fn same_for_any_number_of_threads(weight: CondensedWeight, conv: CondensedWeight, rng: &mut SmallRng) {
    let bias = floats(200, rng);
    let x = floats(100 * 500, rng);
    let window = Window { kernel: [3; 2], stride: [1; 2], padding: [1; 2], dilation: [1; 2] };
    let input = Shape { features: 16, height: 20, width: 20 };
    let image = floats(16 * 400, rng);
    let results: Vec<_> = [1, 2, 3, 8]
        .iter()
        .map(|&threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let linear = LinearKernel::new(&weight, &bias).unwrap();
                let mut single = vec![0.0; 200];
                linear.run(1, &x[..500], &mut single);
                let mut batch = vec![0.0; 100 * 200];
                linear.run(100, &x, &mut batch);
                let mut planes = vec![0.0; 40 * 400];
                ConvKernel::new(&conv, &bias[..40], window, 1, input).unwrap().run(1, &image, &mut planes);
                (single, batch, planes)
            })
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn wrong_parameters_are_refused() {
    let weight = |inputs| {
        CondensedWeight::from_masked(&vec![1.0; 2 * inputs], &vec![true; 2 * inputs], 2, inputs).unwrap()
    };
    let error = LinearKernel::new(&weight(3), &[0.0]).unwrap_err().to_string();
    assert!(error.contains("bias has 1 entries for 2 neurons"), "{error}");

    let window = Window { kernel: [3; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
    let image = |size| Shape { features: 1, height: size, width: size };
    assert!(ConvKernel::new(&weight(9), &[0.0; 2], window, 1, image(3)).is_ok());
    assert!(ConvKernel::new(&weight(9), &[0.0; 2], window, 1, image(2)).is_err());
    assert!(ConvKernel::new(&weight(8), &[0.0; 2], window, 1, image(3)).is_err());
    assert!(
        ConvKernel::new(&weight(9), &[0.0; 2], Window { stride: [0, 1], ..window }, 1, image(3)).is_err()
    );
    assert!(ConvKernel::new(&weight(9), &[0.0; 2], window, 3, image(3)).is_err());
}

#[test]
fn weights_that_break_their_promises_are_refused() {
    let new = |active: &[u32], fan_in: FanIn, indices: &[u32], values: &[f32]| {
        CondensedWeight::new(4, 5, active.to_vec(), fan_in, indices.to_vec(), values.to_vec())
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert_eq!(new(&[0, 3], FanIn::Constant(2), &[0, 1, 0, 4], &[1.0; 4]), Ok(()));
    assert_eq!(new(&[], FanIn::Constant(0), &[], &[]), Ok(()));
    for (got, want) in [
        (new(&[3, 0], FanIn::Constant(2), &[0, 1, 0, 4], &[1.0; 4]), "must ascend"),
        (new(&[0, 4], FanIn::Constant(2), &[0, 1, 0, 4], &[1.0; 4]), "active neuron 4"),
        (new(&[0, 3], FanIn::Constant(2), &[0, 1, 0, 5], &[1.0; 4]), "input index 5"),
        (new(&[0, 3], FanIn::Constant(2), &[1, 0, 0, 4], &[1.0; 4]), "do not ascend"),
        (new(&[0, 3], FanIn::Constant(2), &[1, 1, 0, 4], &[1.0; 4]), "do not ascend"),
        (new(&[0, 3], FanIn::Constant(1), &[1, 1, 0, 4], &[1.0; 4]), "4 values for 2"),
        (new(&[0, 3], FanIn::Constant(0), &[], &[]), "fan-in 0"),
        (new(&[0, 3], FanIn::Constant(2), &[0, 1, 0, 4], &[1.0, f32::NAN, 0.0, 0.0]), "value NaN"),
        (new(&[0, 3], FanIn::Constant(usize::MAX), &[0, 1], &[1.0; 2]), "fan-in 18446744073709551615"),
        (new(&[], FanIn::Constant(6), &[], &[]), "fan-in 6"),
        (new(&[0, 3], FanIn::Varying(vec![0, 2]), &[0, 1], &[1.0; 2]), "row pointers"),
        (new(&[0, 3], FanIn::Varying(vec![0, 2, 1]), &[0], &[1.0; 1]), "row pointers"),
        (new(&[0], FanIn::Constant(2), &[0, 1], &[1.0]), "2 indices for 1 values"),
    ] {
        assert!(got.clone().is_err_and(|e| e.contains(want)), "{got:?} should say {want:?}");
    }
}

#[test]
fn what_a_layer_takes_is_told() {
    let rng = &mut SmallRng::seed_from_u64(3);
    let (weight, bias) = (random_weight(96, 256, Some(32), 0.0, rng), floats(96, rng));
    let layer = LinearKernel::new(&weight, &bias).unwrap();
    assert_eq!(layer.bias(), bias);
    let stored = weight.bytes() + 96 * 4;
    assert_eq!(layer.bytes(), stored);
    // One vector may have a form of its own, and a batch has: values, biases and offsets.
    layer.run(1, &[1.0; 256], &mut [0.0; 96]);
    let single = layer.bytes();
    assert!(single == stored || single >= stored + 96 * 32 * 4);
    layer.run(64, &[1.0; 64 * 256], &mut [0.0; 64 * 96]);
    assert!(layer.bytes() >= single + 96 * 32 * 4);
    assert!(
        format!("{layer:?}").starts_with("LinearKernel { weight: CondensedWeight { neurons: 96, "),
        "{layer:?}"
    );

    let weight = random_weight(8, 36, Some(9), 0.0, rng);
    let window = Window { kernel: [3, 3], stride: [1; 2], padding: [1; 2], dilation: [1; 2] };
    let image = Shape { features: 4, height: 6, width: 6 };
    let conv = ConvKernel::new(&weight, &[0.0; 8], window, 1, image).unwrap();
    assert!(conv.bytes() >= 8 * 9 * 4);
    let text = format!("{conv:?}");
    assert!(
        text.starts_with("ConvKernel { input: Shape") && text.contains(&conv.bytes().to_string()),
        "{text}"
    );
}

/// Layers without inputs give their biases, those without neurons nothing.
#[test]
fn empty_layers_run() {
    for batch in [1, 3, 64] {
        let no_inputs = CondensedWeight::from_masked(&[], &[], 2, 0).unwrap();
        let mut y = vec![0.0; batch * 2];
        LinearKernel::new(&no_inputs, &[0.5, -2.0]).unwrap().run(batch, &[], &mut y);
        assert_eq!(y, [0.5, -2.0].repeat(batch));
        let no_neurons = CondensedWeight::from_masked(&[], &[], 0, 3).unwrap();
        LinearKernel::new(&no_neurons, &[]).unwrap().run(batch, &vec![1.0; batch * 3], &mut []);
    }
}
