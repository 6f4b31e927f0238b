//! Whole networks through the engine, against plain loops.

mod reference;

use condensed::{CondensedWeight, Engine, Isa, Network, Node, Op, Shape, Weight, Window, ops};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn check(network: &Network, batch: usize, rng: &mut SmallRng, tolerance: f64) {
    let (input, output) = (network.input_shape(), network.output_shape());
    let x = floats(batch * input.len(), rng);
    let want: Vec<f64> =
        x.chunks(input.len()).flat_map(|x| reference::run(network, x)).map(f64::from).collect();
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!(norm > 1e-3, "a result of zeros proves nothing");
    for isa in Isa::all() {
        for (network, what) in [(network.clone(), "as built"), (network.clone().fold().unwrap(), "folded")] {
            let mut engine = Engine::with_isa(&network, isa).unwrap();
            let mut got = vec![f32::NAN; batch * output.len()];
            for run in 0..2 {
                engine.run(batch, &x, &mut got).unwrap();
                let error =
                    got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
                assert!(error <= tolerance * norm, "{isa:?}, {what}, run {run}: {} of {norm}", error);
            }
        }
    }
}

/// Dense layers of odd shapes.
fn odd(rng: &mut SmallRng) -> Network {
    let node = |name: &str, op, inputs: &[usize]| Node { name: name.into(), op, inputs: inputs.to_vec() };
    let window = |kernel, stride, padding| Window { kernel, stride, padding, dilation: [1, 1] };
    let conv = |n: usize, fan_in: usize, window, groups, rng: &mut SmallRng| {
        Op::Conv2d(ops::Conv2d {
            weight: Weight::Dense(floats(n * fan_in, rng)),
            bias: floats(n, rng),
            window,
            groups,
        })
    };
    let linear = |n: usize, m: usize, rng: &mut SmallRng| {
        Op::Linear(ops::Linear { weight: Weight::Dense(floats(n * m, rng)), bias: floats(n, rng) })
    };
    Network::new(vec![
        node("input", Op::Input(ops::Input(Shape { features: 4, height: 9, width: 7 })), &[]),
        node("grouped", conv(6, 2 * 6, window([3, 2], [2, 1], [1, 1]), 2, rng), &[0]),
        node("linear", linear(6, 6, rng), &[1]),
        node("add", Op::Add, &[2, 1]),
        node("relu", Op::Relu, &[3]),
        node("twice", Op::Add, &[4, 4]),
        node(
            "norm",
            Op::LayerNorm(ops::LayerNorm { scale: floats(6, rng), shift: floats(6, rng), epsilon: 1e-5 }),
            &[5],
        ),
        node("affine", Op::Affine(ops::Affine { scale: floats(6, rng), shift: floats(6, rng) }), &[5]),
        node("sum", Op::Add, &[6, 7]),
        node("pool", Op::MaxPool(ops::MaxPool(window([3, 3], [2, 2], [1, 1]))), &[8]),
        node("whole", conv(5, 6 * 12, window([3, 4], [1, 1], [0, 0]), 1, rng), &[9]),
        node("point", conv(5, 5, window([1, 1], [1, 1], [0, 0]), 1, rng), &[10]),
        node("head", linear(3, 5, rng), &[11]),
    ])
    .unwrap()
}

#[test]
fn dense_layers_and_odd_shapes_agree() {
    let mut rng = SmallRng::seed_from_u64(5);
    let network = odd(&mut rng);
    assert_eq!(network.shapes()[10], Shape { features: 5, height: 1, width: 1 });
    check(&network, 1, &mut rng, 1e-5);
    check(&network, 5, &mut rng, 1e-5);
}

/// Maxima over windows of every step, also of images wider than a row is put together for.
#[test]
fn pools_of_any_window_agree() {
    let rng = &mut SmallRng::seed_from_u64(6);
    for (kernel, stride, padding, dilation) in [
        ([3, 3], [2, 2], [1, 1], [1, 1]),
        ([2, 2], [2, 2], [0, 0], [1, 1]),
        ([1, 4], [1, 2], [0, 3], [1, 2]),
        ([5, 2], [1, 1], [2, 1], [2, 3]),
        ([3, 3], [3, 3], [1, 1], [1, 1]),
        ([2, 5], [3, 4], [0, 2], [2, 1]),
    ] {
        let window = Window { kernel, stride, padding, dilation };
        for (height, width) in [(17, 9), (9, 16), (9, 17), (11, 1024), (11, 1025), (11, 1100)] {
            let image = Shape { features: if width < 100 { 9 } else { 1 }, height, width };
            let node = |name: &str, op, inputs| Node { name: name.into(), op, inputs };
            let input = node("input", Op::Input(ops::Input(image)), vec![]);
            let pool = node("pool", Op::MaxPool(ops::MaxPool(window)), vec![0]);
            check(&Network::new(vec![input, pool]).unwrap(), 2, rng, 0.0);
        }
    }
}

/// Every operation on several samples at once: so many multiplications are in layers of vectors that the network runs in batches.
#[test]
fn operations_agree_in_batches() {
    let rng = &mut SmallRng::seed_from_u64(8);
    let window = |kernel, stride| Window { kernel, stride, padding: [0; 2], dilation: [1; 2] };
    let linear = |n: usize, m: usize, rng: &mut SmallRng| {
        Op::from(ops::Linear { weight: Weight::Dense(floats(n * m, rng)), bias: floats(n, rng) })
    };
    let sparse = |n: usize, m: usize, rng: &mut SmallRng| {
        let mask: Vec<bool> = (0..n * m).map(|i| (i / m + i % m).is_multiple_of(3)).collect();
        let weight = CondensedWeight::from_masked(&floats(n * m, rng), &mask, n, m).unwrap();
        Op::from(ops::Linear { weight: Weight::Condensed(weight), bias: floats(n, rng) })
    };
    let norm = |rng: &mut SmallRng| {
        Op::from(ops::LayerNorm { scale: floats(4, rng), shift: floats(4, rng), epsilon: 1e-3 })
    };
    let conv = ops::Conv2d {
        weight: Weight::Dense(floats(4 * 36, rng)),
        bias: floats(4, rng),
        window: Window { padding: [1; 2], ..window([3; 2], [1; 2]) },
        groups: 1,
    };
    let nodes: Vec<(&str, Op, &[usize])> = vec![
        ("conv", conv.into(), &[0]),
        ("add", Op::Add, &[1, 0]),
        ("relu", Op::Relu, &[2]),
        ("affine", ops::Affine { scale: floats(4, rng), shift: floats(4, rng) }.into(), &[3]),
        ("pool", ops::MaxPool(window([2; 2], [2; 2])).into(), &[4]),
        ("mean", Op::GlobalAvgPool, &[5]),
        ("gate", sparse(4, 4, rng), &[6]),
        ("sigmoid", Op::HardSigmoid, &[7]),
        ("scale", Op::Scale, &[5, 8]),
        ("tokens", ops::Tokens { class: floats(4, rng), positions: floats(20, rng) }.into(), &[9]),
        ("norm1", norm(rng), &[10]),
        ("qkv", linear(12, 4, rng), &[11]),
        ("attention", ops::Attention { heads: 2 }.into(), &[12]),
        ("flatten", Op::Flatten, &[13]),
        ("wide", sparse(300, 20, rng), &[14]),
        ("gelu", Op::Gelu, &[15]),
        ("narrow", linear(4, 300, rng), &[16]),
        ("norm2", norm(rng), &[17]),
        ("swish", Op::HardSwish, &[18]),
        ("head", linear(3, 4, rng), &[19]),
    ];
    let input = ops::Input(Shape { features: 4, height: 4, width: 4 });
    let nodes = nodes.into_iter().map(|(name, op, inputs)| Node::new(name, op, inputs));
    let network =
        Network::new(std::iter::once(Node::new("input", input, [])).chain(nodes).collect()).unwrap();
    let engine = Engine::new(&network).unwrap();
    assert!(engine.memory(5) > engine.memory(4), "the samples go through it together");
    for batch in [1, 3, 17] {
        check(&network, batch, rng, 1e-5);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut rng = SmallRng::seed_from_u64(3);
    let network = odd(&mut rng);
    let x = floats(network.input_shape().len(), &mut rng);
    let results: Vec<Vec<f32>> = [1, 2, 5]
        .iter()
        .map(|&threads| {
            let mut out = vec![0.0; network.output_shape().len()];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Engine::new(&network).unwrap().run(1, &x, &mut out)).unwrap();
            out
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn networks_that_do_not_fit_are_refused() {
    let input = Node {
        name: "input".into(),
        op: Op::Input(ops::Input(Shape { features: 4, height: 2, width: 2 })),
        inputs: vec![],
    };
    let relu =
        |name: &str, inputs: &[usize]| Node { name: name.into(), op: Op::Relu, inputs: inputs.to_vec() };
    let refused = |nodes: Vec<Node>, want: &str| {
        let error = Network::new(nodes).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    refused(vec![], "at least one node");
    refused(vec![relu("r", &[])], "the first node");
    refused(vec![input.clone(), input.clone()], "name of its own");
    refused(vec![input.clone(), relu("r", &[1])], "does not come before");
    refused(vec![input.clone(), relu("r", &[0, 0])], "reads 2 results instead of 1");
    let linear = |weight| Op::Linear(ops::Linear { weight, bias: vec![0.0; 3] });
    let with = |op| vec![input.clone(), Node { name: "layer".into(), op, inputs: vec![0] }];
    refused(with(linear(Weight::Dense(vec![0.0; 11]))), "`layer`: weight has 11 numbers instead of 12");
    refused(with(linear(Weight::Dense(vec![f32::NAN; 12]))), "NaN");
    let other = CondensedWeight::from_masked(&[1.0; 15], &[true; 15], 3, 5).unwrap();
    refused(with(linear(Weight::Condensed(other))), "weight [3, 5]");
    refused(with(Op::Attention(ops::Attention { heads: 1 })), "not queries, keys and values");
    let huge = Op::Input(ops::Input(Shape { features: usize::MAX, height: 2, width: 2 }));
    refused(vec![Node { name: "input".into(), op: huge, inputs: vec![] }], "too large");
    let window =
        Window { kernel: [usize::MAX; 2], stride: [1; 2], padding: [usize::MAX; 2], dilation: [1; 2] };
    refused(with(Op::MaxPool(ops::MaxPool(window))), "window");
}

#[test]
fn an_engine_says_what_its_weights_take() {
    let shape = Shape { features: 6, height: 1, width: 1 };
    let layer = |neurons: usize, inputs: usize| ops::Linear {
        weight: Weight::Dense(vec![0.5; neurons * inputs]),
        bias: vec![0.0; neurons],
    };
    let nodes = vec![
        Node::new("input", ops::Input(shape), []),
        Node::new("fc1", layer(5, 6), [0]),
        Node::new("fc2", layer(2, 5), [1]),
    ];
    let engine = Engine::new(&Network::new(nodes).unwrap()).unwrap();
    assert_eq!(engine.bytes(), 4 * (5 * 6 + 5 + 2 * 5 + 2));
    let text = format!("{engine:?}");
    assert!(text.starts_with("Engine { input: Shape") && text.contains("steps: 2, bytes: 188"), "{text}");
}
