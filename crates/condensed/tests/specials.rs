//! NaN and infinities, in every place of the input of every operation, against the reference.

mod reference;

use condensed::{CondensedWeight, Engine, Isa, Network, Node, Op, Shape, Weight, Window, ops};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const VECTOR: Shape = Shape { features: 70, height: 1, width: 1 };
const IMAGE: Shape = Shape { features: 3, height: 5, width: 7 };
const CHANNELS: Shape = Shape { features: 18, height: 4, width: 5 };
const TOKENS: Shape = Shape { features: 12, height: 1, width: 19 };

fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    // None near 0, so that no rounding decides what becomes of an infinity.
    (0..count).map(|_| rng.random_range(0.2..1.0) * if rng.random() { 1.0 } else { -1.0 }).collect()
}

fn weight(neurons: usize, inputs: usize, sparse: bool, rng: &mut SmallRng) -> Weight {
    let values = floats(neurons * inputs, rng);
    if !sparse {
        return Weight::Dense(values);
    }
    // Half of the weights; the first neuron has none.
    let mask: Vec<bool> = (0..values.len()).map(|i| i >= inputs && rng.random()).collect();
    Weight::Condensed(CondensedWeight::from_masked(&values, &mask, neurons, inputs).unwrap())
}

fn linear(n: usize, m: usize, sparse: bool, rng: &mut SmallRng) -> Op {
    Op::Linear(ops::Linear { weight: weight(n, m, sparse, rng), bias: floats(n, rng) })
}

fn conv(input: Shape, window: Window, sparse: bool, rng: &mut SmallRng) -> Op {
    let fan_in = input.features * window.kernel[0] * window.kernel[1];
    let (weight, bias) = (weight(input.features, fan_in, sparse, rng), floats(input.features, rng));
    Op::Conv2d(ops::Conv2d { weight, bias, window, groups: 1 })
}

fn window(kernel: [usize; 2], stride: usize, padding: usize) -> Window {
    Window { kernel, stride: [stride; 2], padding: [padding; 2], dilation: [1; 2] }
}

/// Each operation alone; layers also with what is fused into them.
fn networks(rng: &mut SmallRng) -> Vec<Network> {
    let mut networks = Vec::new();
    let mut add = |shape: Shape, nodes: &[(Op, &[usize])]| {
        let mut all = vec![Node::new("input", ops::Input(shape), [])];
        for (index, (op, inputs)) in nodes.iter().enumerate() {
            all.push(Node::new(format!("n{index}"), op.clone(), *inputs));
        }
        networks.push(Network::new(all).unwrap());
    };
    for shape in [VECTOR, IMAGE] {
        for op in [Op::Relu, Op::Gelu, Op::HardSigmoid, Op::HardSwish, Op::GlobalAvgPool, Op::Flatten] {
            add(shape, &[(op, &[0])]);
        }
        let features = shape.features;
        let (scale, shift) = (floats(features, rng), floats(features, rng));
        add(shape, &[(ops::Affine { scale: scale.clone(), shift: shift.clone() }.into(), &[0])]);
        add(shape, &[(ops::LayerNorm { scale, shift, epsilon: 0.1 }.into(), &[0])]);
        add(shape, &[(Op::Relu, &[0]), (Op::Add, &[0, 1])]);
        add(shape, &[(Op::GlobalAvgPool, &[0]), (Op::Scale, &[0, 1])]);
    }
    add(IMAGE, &[(Op::ClassToken, &[0])]);
    let (class, positions) = (floats(3, rng), floats(3 * 36, rng));
    add(IMAGE, &[(ops::Tokens { class, positions }.into(), &[0])]);
    add(TOKENS, &[(ops::Attention { heads: 2 }.into(), &[0])]);
    for window in [window([2, 2], 2, 0), window([3, 3], 1, 1), window([3, 2], 2, 1)] {
        add(IMAGE, &[(ops::MaxPool(window).into(), &[0])]);
    }
    for sparse in [true, false] {
        let layers = [
            (VECTOR, linear(70, 70, sparse, rng)),
            (TOKENS, linear(12, 12, sparse, rng)),
            (CHANNELS, conv(CHANNELS, window([3, 3], 1, 1), sparse, rng)),
            (CHANNELS, conv(CHANNELS, window([1, 1], 1, 0), sparse, rng)),
            (IMAGE, conv(IMAGE, window([3, 3], 1, 1), sparse, rng)),
        ];
        for (shape, op) in layers {
            let layer = || (op.clone(), &[0][..]);
            add(shape, &[layer()]);
            add(shape, &[layer(), (Op::Relu, &[1])]);
            add(shape, &[layer(), (Op::Add, &[1, 0])]);
            add(shape, &[layer(), (Op::Add, &[1, 0]), (Op::Relu, &[2])]);
        }
        add(IMAGE, &[(conv(IMAGE, window([3, 2], 2, 1), sparse, rng), &[0]), (Op::Relu, &[1])]);
    }
    networks
}

fn same(got: f32, want: f32) -> bool {
    if want.is_finite() {
        (got - want).abs() <= 1e-4 * (1.0 + want.abs())
    } else {
        got == want || got.is_nan() && want.is_nan()
    }
}

#[test]
fn special_values_go_through_as_in_pytorch() {
    // Thousands of short runs, which need not wait for other threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(check_special_values);
}

fn check_special_values() {
    const SPECIAL: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let mut rng = SmallRng::seed_from_u64(1);
    let mut seen = 0;
    for network in networks(&mut rng) {
        let (size, result) = (network.input_shape().len(), network.output_shape().len());
        let mut engines: Vec<_> =
            Isa::all().map(|isa| (isa, Engine::with_isa(&network, isa).unwrap())).collect();
        let clean = floats(size, &mut rng);
        let usual = reference::run(&network, &clean);
        // One special value in each place, and many at once.
        let step = if cfg!(miri) { 29 } else { 1 };
        let single = (0..size).step_by(step).flat_map(|at| SPECIAL.map(|value| vec![(at, value)]));
        let share = |rng: &mut SmallRng, of: u32| {
            let all = (0..size).filter(|_| rng.random_ratio(1, of)).collect::<Vec<_>>();
            all.into_iter().map(|at| (at, SPECIAL[rng.random_range(0..3)])).collect()
        };
        let many = [2, 10, 30].map(|of| share(&mut rng, of));
        for places in single.chain(many) {
            let mut x = clean.clone();
            places.iter().for_each(|&(at, value)| x[at] = value);
            let want = reference::run(&network, &x);
            seen += want.iter().filter(|v| !v.is_finite()).count();
            for (isa, engine) in &mut engines {
                // Alone, and in a batch whose other samples must not notice.
                for batch in [1, 5] {
                    let mut all = clean.repeat(batch);
                    all[batch / 2 * size..][..size].copy_from_slice(&x);
                    let mut got = vec![0.0; batch * result];
                    engine.run(batch, &all, &mut got).unwrap();
                    for (sample, got) in got.chunks(result).enumerate() {
                        let want = if sample == batch / 2 { &want } else { &usual };
                        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                            assert!(
                                same(got, want),
                                "{isa:?}, batch {batch}, {places:?}: result {i} is {got}, not {want}: {network:?}"
                            );
                        }
                    }
                }
            }
        }
    }
    assert!(seen > 1000, "special values do not arrive");
}

/// A sum that overflows in both directions is NaN, and a ReLU does not hide it.
#[test]
fn overflow_is_not_hidden() {
    for sparse in [true, false] {
        let values = vec![10.0, -10.0];
        let weight = match sparse {
            true => Weight::Condensed(CondensedWeight::from_masked(&values, &[true; 2], 1, 2).unwrap()),
            false => Weight::Dense(values),
        };
        for shape in [Shape { features: 2, height: 1, width: 1 }, Shape { features: 2, height: 1, width: 3 }]
        {
            let layer = ops::Linear { weight: weight.clone(), bias: vec![0.0] };
            let nodes = vec![
                Node::new("input", ops::Input(shape), []),
                Node::new("fc", layer, [0]),
                Node::new("relu", Op::Relu, [1]),
            ];
            let network = Network::new(nodes).unwrap();
            for isa in Isa::all() {
                for batch in [1, 6] {
                    let mut y = vec![0.0; batch * shape.width];
                    let mut engine = Engine::with_isa(&network, isa).unwrap();
                    engine.run(batch, &vec![3e38; batch * shape.len()], &mut y).unwrap();
                    assert!(y.iter().all(|y| !y.is_finite()), "{isa:?} {shape:?} {batch}: {y:?}");
                }
            }
        }
    }
}
