//! A plain interpreter of networks: simple loops in f64, with PyTorch's meaning of each operation, also for NaN and
//! infinities. Only absent weights differ: they are not multiplied at all.

use condensed::{Network, Op, Shape, Weight, Window, ops};

/// The network's result for one sample, both `[features, height, width]`, row-major.
///
/// # Panics
/// If the network is not valid or the input not of its shape.
pub fn run(network: &Network, input: &[f32]) -> Vec<f32> {
    let shapes = network.shapes();
    let mut results: Vec<Vec<f64>> = Vec::new();
    for (node, &to) in network.nodes().iter().zip(shapes) {
        let inputs: Vec<&[f64]> = node.inputs.iter().map(|&i| results[i].as_slice()).collect();
        let result = match &node.op {
            Op::Input(_) => input.iter().map(|&v| f64::from(v)).collect(),
            op => compute(op, shapes[node.inputs[0]], to, &inputs),
        };
        assert_eq!(result.len(), to.len(), "result of `{}`", node.name);
        results.push(result);
    }
    results.last().expect("a node").iter().map(|&v| v as f32).collect()
}

fn compute(op: &Op, from: Shape, to: Shape, inputs: &[&[f64]]) -> Vec<f64> {
    let x = inputs[0];
    let positions = from.positions();
    // Channel of a place in `x`.
    let channel = |place: usize| place / positions;
    match op {
        Op::Input(_) => unreachable!("the first node"),
        Op::Linear(ops::Linear { weight, bias }) => {
            let (weight, features) = (dense(weight), from.features);
            let mut out = Vec::new();
            for neuron in 0..to.features {
                for p in 0..positions {
                    let products = (0..features)
                        .filter_map(|f| Some(weight[neuron * features + f]? * x[f * positions + p]));
                    out.push(products.sum::<f64>() + f64::from(bias[neuron]));
                }
            }
            out
        }
        Op::Conv2d(ops::Conv2d { weight, bias, window, groups }) => {
            conv(&dense(weight), bias, window, *groups, from, to, x)
        }
        Op::Affine(ops::Affine { scale, shift }) => {
            let affine =
                |(i, v): (usize, &f64)| v * f64::from(scale[channel(i)]) + f64::from(shift[channel(i)]);
            x.iter().enumerate().map(affine).collect()
        }
        Op::Relu => x.iter().map(|&v| if v < 0.0 { 0.0 } else { v }).collect(),
        Op::Gelu => x.iter().map(|v| v * 0.5 * (1.0 + erf(v / 2f64.sqrt()))).collect(),
        Op::HardSigmoid => x.iter().map(|v| hard_sigmoid(*v)).collect(),
        Op::HardSwish => x.iter().map(|v| v * hard_sigmoid(*v)).collect(),
        Op::Scale => x.iter().enumerate().map(|(i, v)| v * inputs[1][channel(i)]).collect(),
        Op::Add => x.iter().zip(inputs[1]).map(|(a, b)| a + b).collect(),
        Op::MaxPool(ops::MaxPool(window)) => max_pool(window, from, to, x),
        Op::GlobalAvgPool => x.chunks(positions).map(|p| p.iter().sum::<f64>() / positions as f64).collect(),
        Op::Flatten => x.to_vec(),
        Op::LayerNorm(ops::LayerNorm { scale, shift, epsilon }) => {
            let mut out = vec![0.0; x.len()];
            for p in 0..positions {
                let token: Vec<f64> = (0..from.features).map(|f| x[f * positions + p]).collect();
                let mean = token.iter().sum::<f64>() / token.len() as f64;
                let variance = token.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / token.len() as f64;
                for (f, v) in token.iter().enumerate() {
                    let normed = (v - mean) / (variance + f64::from(*epsilon)).sqrt();
                    out[f * positions + p] = normed * f64::from(scale[f]) + f64::from(shift[f]);
                }
            }
            out
        }
        Op::Tokens(ops::Tokens { class, positions: embeddings }) => {
            let tokens = to.positions();
            let mut out = Vec::new();
            for f in 0..to.features {
                for token in 0..tokens {
                    let value = match token {
                        0 => f64::from(class[f]),
                        _ => x[f * positions + token - 1],
                    };
                    out.push(value + f64::from(embeddings[token * to.features + f]));
                }
            }
            out
        }
        Op::Attention(ops::Attention { heads }) => attention(*heads, to, x),
        Op::ClassToken => x.chunks(positions).map(|plane| plane[0]).collect(),
        other => unimplemented!("{other:?}"),
    }
}

/// All weights, `None` for absent ones.
fn dense(weight: &Weight) -> Vec<Option<f64>> {
    match weight {
        Weight::Dense(values) => values.iter().map(|&v| Some(f64::from(v))).collect(),
        Weight::Condensed(weight) => {
            let mut all = vec![None; weight.neurons() * weight.inputs()];
            for (row, &neuron) in weight.active().iter().enumerate() {
                for (input, value) in weight.row(row) {
                    all[neuron as usize * weight.inputs() + input] = Some(f64::from(value));
                }
            }
            all
        }
    }
}

/// Place in a plane of the image that a tap reads, if it is not in the padding.
fn tap(window: &Window, image: Shape, out: [usize; 2], tap: [usize; 2]) -> Option<usize> {
    let at = |axis: usize| {
        let padded = out[axis] * window.stride[axis] + tap[axis] * window.dilation[axis];
        padded.checked_sub(window.padding[axis])
    };
    let (y, x) = (at(0)?, at(1)?);
    (y < image.height && x < image.width).then(|| y * image.width + x)
}

fn conv(
    weight: &[Option<f64>],
    bias: &[f32],
    window: &Window,
    groups: usize,
    from: Shape,
    to: Shape,
    image: &[f64],
) -> Vec<f64> {
    let [kernel_height, kernel_width] = window.kernel;
    let group_inputs = from.features / groups;
    let fan_in = group_inputs * kernel_height * kernel_width;
    let mut out = Vec::new();
    for neuron in 0..to.features {
        let first_input = neuron / (to.features / groups) * group_inputs;
        for oy in 0..to.height {
            for ox in 0..to.width {
                let mut sum = f64::from(bias[neuron]);
                for c in 0..group_inputs {
                    for ky in 0..kernel_height {
                        for kx in 0..kernel_width {
                            let Some(place) = tap(window, from, [oy, ox], [ky, kx]) else { continue };
                            let weight =
                                weight[neuron * fan_in + (c * kernel_height + ky) * kernel_width + kx];
                            let Some(weight) = weight else { continue };
                            sum += weight * image[(first_input + c) * from.positions() + place];
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn max_pool(window: &Window, from: Shape, to: Shape, image: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    for plane in image.chunks(from.positions()) {
        for oy in 0..to.height {
            for ox in 0..to.width {
                let taps = (0..window.kernel[0]).flat_map(|y| (0..window.kernel[1]).map(move |x| [y, x]));
                let values = taps.filter_map(|at| tap(window, from, [oy, ox], at)).map(|place| plane[place]);
                let larger = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
                out.push(values.fold(f64::NEG_INFINITY, larger));
            }
        }
    }
    out
}

/// As `torch.nn.MultiheadAttention` between its two projections.
fn attention(heads: usize, to: Shape, qkv: &[f64]) -> Vec<f64> {
    let (features, tokens) = (to.features, to.positions());
    let size = features / heads;
    let at = |which: usize, feature: usize, token: usize| qkv[(which * features + feature) * tokens + token];
    let mut out = vec![0.0; features * tokens];
    for head in 0..heads {
        let range = head * size..(head + 1) * size;
        for query in 0..tokens {
            let score = |key: usize| {
                let products = range.clone().map(|f| at(0, f, query) * at(1, f, key));
                products.sum::<f64>() / (size as f64).sqrt()
            };
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for f in range.clone() {
                let products = (0..tokens).map(|key| weights[key] * at(2, f, key));
                out[f * tokens + query] = products.sum::<f64>() / total;
            }
        }
    }
    out
}

/// The error function, by a series whose terms are all of one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn hard_sigmoid(x: f64) -> f64 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}
