//! Random small networks with all operations.

use condensed::{CondensedWeight, Network, Node, Op, Shape, Weight, Window, ops};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// A valid network of up to a dozen operations, and an input for it.
pub fn network(seed: u64) -> (Network, Vec<f32>) {
    let rng = &mut SmallRng::seed_from_u64(seed);
    let shape = Shape {
        features: rng.random_range(1..5),
        height: rng.random_range(1..6),
        width: rng.random_range(1..6),
    };
    let input = Node { name: "input".into(), op: Op::Input(ops::Input(shape)), inputs: vec![] };
    let mut nodes = vec![input];
    let mut shapes = vec![shape];
    for index in 0..rng.random_range(1..20) {
        let last = shapes.len() - 1;
        // Mostly a chain, sometimes a branch.
        let from = if rng.random_bool(0.9) { last } else { rng.random_range(0..=last) };
        let op = op(shapes[from], rng);
        let inputs = if op == Op::Add {
            let fitting: Vec<usize> = (0..=last).filter(|&i| shapes[i] == shapes[from]).collect();
            vec![*fitting.choose(rng).expect("itself"), from]
        } else {
            vec![from]
        };
        let alone = [(Op::Input(ops::Input(shapes[from])), vec![]), (op.clone(), vec![0; inputs.len()])];
        let node = |(op, inputs): (Op, _)| Node { name: format!("{inputs:?}"), op, inputs };
        let Ok(alone) = Network::new(alone.map(node).into()) else { continue };
        if alone.output_shape().len() < 500 {
            nodes.push(Node { name: format!("layer{index}"), op, inputs });
            shapes.push(alone.output_shape());
        }
    }
    remove_unread(&mut nodes);
    let network = Network::new(nodes).expect("made of operations that fit");
    (network, floats(shape.len(), rng))
}

/// Removes the nodes whose results do not reach the output.
fn remove_unread(nodes: &mut Vec<Node>) {
    for index in (0..nodes.len() - 1).rev() {
        if !nodes.iter().any(|node| node.inputs.contains(&index)) {
            nodes.remove(index);
            let inputs = nodes.iter_mut().flat_map(|node| &mut node.inputs);
            inputs.filter(|input| **input > index).for_each(|input| *input -= 1);
        }
    }
}

/// Numbers in [-1, 1), a few of them 0.
fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| if rng.random_bool(0.1) { 0.0 } else { rng.random_range(-1.0..1.0) }).collect()
}

/// An operation that may fit its input.
fn op(from: Shape, rng: &mut SmallRng) -> Op {
    let Shape { features, .. } = from;
    let window = Window {
        kernel: [rng.random_range(1..4), rng.random_range(1..4)],
        stride: [rng.random_range(1..3), rng.random_range(1..3)],
        padding: if rng.random() { [0, 0] } else { [rng.random_range(0..2), rng.random_range(0..2)] },
        dilation: [rng.random_range(1..3), rng.random_range(1..3)],
    };
    match rng.random_range(0..20) {
        0..4 => {
            let neurons = if rng.random_bool(0.2) { 3 * features } else { rng.random_range(1..8) };
            Op::Linear(ops::Linear { weight: weight(neurons, features, rng), bias: floats(neurons, rng) })
        }
        4..8 => {
            let groups = if rng.random_bool(0.3) { features } else { 1 };
            let neurons = groups * rng.random_range(1..5);
            let fan_in = features / groups * window.kernel[0] * window.kernel[1];
            let (weight, bias) = (weight(neurons, fan_in, rng), floats(neurons, rng));
            Op::Conv2d(ops::Conv2d { weight, bias, window, groups })
        }
        8..11 => Op::Affine(ops::Affine { scale: floats(features, rng), shift: floats(features, rng) }),
        11 | 12 => Op::Relu,
        13 => [Op::Gelu, Op::HardSigmoid, Op::HardSwish][rng.random_range(0..3)].clone(),
        14 => Op::Add,
        15 => Op::MaxPool(ops::MaxPool(window)),
        16 => {
            let (scale, shift) = (floats(features, rng), floats(features, rng));
            Op::LayerNorm(ops::LayerNorm { scale, shift, epsilon: 0.1 })
        }
        17 => Op::Flatten,
        18 => Op::Attention(ops::Attention { heads: if (features / 3).is_multiple_of(2) { 2 } else { 1 } }),
        _ => match rng.random_range(0..3) {
            0 => Op::GlobalAvgPool,
            1 => Op::ClassToken,
            _ => {
                let tokens = from.positions() + 1;
                Op::Tokens(ops::Tokens {
                    class: floats(features, rng),
                    positions: floats(tokens * features, rng),
                })
            }
        },
    }
}

/// Dense, of constant fan-in or of any; some share inputs, and a third of the neurons is ablated.
fn weight(neurons: usize, inputs: usize, rng: &mut SmallRng) -> Weight {
    let scale = 1.0 / (inputs as f32).sqrt();
    let values: Vec<f32> = floats(neurons * inputs, rng).iter().map(|v| v * scale).collect();
    if rng.random_bool(0.2) {
        return Weight::Dense(values);
    }
    let fan_in: Option<usize> = rng.random::<bool>().then(|| rng.random_range(1..=inputs));
    let mut mask = vec![false; values.len()];
    let group = if rng.random_bool(0.3) { rng.random_range(2..5) } else { 1 };
    let mut active: Vec<_> = mask.chunks_mut(inputs).filter(|_| rng.random_bool(0.67)).collect();
    for rows in active.chunks_mut(group) {
        let k = fan_in.unwrap_or_else(|| rng.random_range(0..=inputs));
        let read = rand::seq::index::sample(rng, inputs, k);
        rows.iter_mut().for_each(|row| read.iter().for_each(|i| row[i] = true));
    }
    Weight::Condensed(CondensedWeight::from_masked(&values, &mask, neurons, inputs).unwrap())
}
