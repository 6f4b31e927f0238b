//! Folded networks compute what they computed before, with fewer operations and neurons.

#[path = "random/mod.rs"]
mod random;
mod reference;

use condensed::{CondensedWeight, FanIn, Network, Node, Op, Shape, Weight, Window, ops};
use proptest::prelude::*;

fn assert_same(network: &Network, folded: &Network, input: &[f32]) {
    let (want, got) = (reference::run(network, input), reference::run(folded, input));
    assert_eq!(want.len(), got.len(), "{folded:?}");
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    assert!(error <= 1e-4 * (1.0 + norm(&mut want.iter().copied())), "{want:?}, then {got:?}: {folded:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn result_stays(seed in any::<u64>()) {
        let (network, input) = random::network(seed);
        let folded = network.clone().fold().unwrap();
        assert_same(&network, &folded, &input);
        prop_assert!(folded.nodes().len() <= network.nodes().len());
        // Nothing is left to do, but for what rounding has made 0.
        prop_assert_eq!(folded.clone().fold().unwrap().nodes().len(), folded.nodes().len());
    }
}

/// Rows of a condensed weight; `None` is no weight.
fn sparse<const M: usize>(rows: &[[Option<f32>; M]]) -> Weight {
    let values: Vec<f32> = rows.iter().flatten().map(|w| w.unwrap_or(0.0)).collect();
    let mask: Vec<bool> = rows.iter().flatten().map(Option::is_some).collect();
    Weight::Condensed(CondensedWeight::from_masked(&values, &mask, rows.len(), M).unwrap())
}

/// Three neurons of two inputs; the second is ablated, with the result `bias`.
fn ablated(bias: f32) -> Op {
    Op::Linear(ops::Linear {
        weight: sparse(&[[Some(1.0), Some(-2.0)], [None, None], [Some(0.5), None]]),
        bias: vec![0.25, bias, -0.5],
    })
}

fn conv(features: usize, kernel: usize, padding: usize) -> Op {
    let window = Window { kernel: [kernel; 2], stride: [1; 2], padding: [padding; 2], dilation: [1; 2] };
    let weight = (0..2 * features * kernel * kernel).map(|i| (i % 7) as f32 - 3.0).collect();
    Op::Conv2d(ops::Conv2d { weight: Weight::Dense(weight), bias: vec![1.0, 2.0], window, groups: 1 })
}

fn dense(neurons: usize, features: usize) -> Op {
    let weight = (0..neurons * features).map(|i| (i % 5) as f32 - 2.0).collect();
    Op::Linear(ops::Linear { weight: Weight::Dense(weight), bias: vec![1.0; neurons] })
}

const IMAGE: Shape = Shape { features: 2, height: 3, width: 4 };

/// Operations one after the other.
fn chain(ops: impl IntoIterator<Item = Op>) -> Network {
    rewired(ops, &[])
}

/// The operations where some nodes read others than the one before.
fn rewired(ops: impl IntoIterator<Item = Op>, inputs: &[(usize, &[usize])]) -> Network {
    let ops = [Op::Input(ops::Input(IMAGE))].into_iter().chain(ops).enumerate();
    let node = |(i, op): (usize, Op)| {
        let other = inputs.iter().find(|(node, _)| *node == i).map(|(_, inputs)| inputs.to_vec());
        Node { name: format!("n{i}"), op, inputs: other.unwrap_or(i.checked_sub(1).into_iter().collect()) }
    };
    Network::new(ops.map(node).collect()).unwrap()
}

/// Folds, checks that the result stays, and returns the network with the neurons of each node.
fn fold(network: &Network) -> (Network, Vec<usize>) {
    let folded = network.clone().fold().unwrap();
    let input: Vec<f32> = (0..IMAGE.len()).map(|i| (i as f32).sin()).collect();
    assert_same(network, &folded, &input);
    let features = folded.shapes().iter().map(|shape| shape.features).collect();
    (folded, features)
}

fn affine(scale: &[f32], shift: &[f32]) -> Op {
    Op::Affine(ops::Affine { scale: scale.to_vec(), shift: shift.to_vec() })
}

#[test]
fn affine_joins_the_layer_before() {
    for layer in [ablated(0.7), dense(3, 2), conv(2, 2, 1)] {
        let bias = if matches!(layer, Op::Conv2d(ops::Conv2d { .. })) { 2 } else { 3 };
        let network = chain([layer, affine(&[-2.0, 0.0, 0.5][..bias], &[1.0, -1.0, 3.0][..bias]), Op::Relu]);
        let (folded, _) = fold(&network);
        let names: Vec<&str> = folded.nodes().iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["n0", "n1", "n3"]);
        assert_eq!(folded.nodes()[2].inputs, [1]);
    }
    // Two in a row.
    assert_eq!(
        fold(&chain([dense(2, 2), affine(&[2.0; 2], &[1.0; 2]), affine(&[3.0; 2], &[1.0; 2])])).1.len(),
        2
    );
}

#[test]
fn affine_stays_where_others_read_the_layer() {
    let network = rewired([dense(2, 2), affine(&[2.0; 2], &[1.0; 2]), Op::Add], &[(3, &[1, 2])]);
    assert_eq!(fold(&network).0, network);
    let network = chain([Op::Relu, affine(&[2.0; 2], &[1.0; 2])]);
    assert_eq!(fold(&network).0, network);
}

#[test]
fn affine_stays_where_it_would_overflow() {
    let network = chain([
        Op::Linear(ops::Linear { weight: Weight::Dense(vec![1e30, 0.0]), bias: vec![0.0] }),
        affine(&[1e30], &[0.0]),
        affine(&[0.0], &[0.0]),
    ]);
    assert_eq!(network.clone().fold().unwrap(), network);
}

#[test]
fn ablated_neurons_leave_through_pointwise_operations() {
    let pool = || {
        Op::MaxPool(ops::MaxPool(Window {
            kernel: [2; 2],
            stride: [1; 2],
            padding: [1; 2],
            dilation: [1; 2],
        }))
    };
    let scale = || affine(&[-1.0, -2.0, 3.0], &[0.5, 0.25, 0.0]);
    for (between, consumer) in [
        (vec![], dense(2, 3)),
        (vec![], conv(3, 2, 0)),
        (vec![Op::Gelu, pool()], dense(4, 3)),
        (vec![Op::Relu, scale()], conv(3, 2, 0)),
        (vec![Op::Relu, scale(), Op::Gelu, Op::GlobalAvgPool], dense(4, 3)),
        (vec![Op::Gelu, Op::ClassToken, Op::Flatten], dense(4, 3)),
    ] {
        let network = chain([ablated(0.7)].into_iter().chain(between).chain([consumer]));
        let (_, features) = fold(&network);
        assert_eq!(features[1..features.len() - 1], vec![2; features.len() - 2], "{network:?}");
    }
}

#[test]
fn ablated_neurons_leave_through_flatten() {
    let scale: Vec<f32> = (0..36).map(|i| i as f32 / 10.0 - 1.0).collect();
    let network = chain([ablated(0.7), Op::Relu, Op::Flatten, affine(&scale, &scale), dense(3, 36)]);
    assert_eq!(fold(&network).1, [2, 2, 2, 24, 24, 3]);
}

#[test]
fn ablated_neurons_stay_at_padded_borders() {
    // 0.7 does not reach the taps in the padding; 0 is what they see.
    assert_eq!(fold(&chain([ablated(0.7), Op::Relu, conv(3, 3, 1)])).1, [2, 3, 3, 2]);
    assert_eq!(fold(&chain([ablated(-0.7), Op::Relu, conv(3, 3, 1)])).1, [2, 2, 2, 2]);
    // Of one neuron's values, only some are 0.
    let scale: Vec<f32> = (0..36).map(|i| if i == 23 { 0.0 } else { 1.0 }).collect();
    let network = chain([ablated(0.7), Op::Flatten, affine(&scale, &[0.0; 36]), conv(36, 3, 1)]);
    assert_eq!(fold(&network).1, [2, 3, 36, 36, 2]);
}

#[test]
fn ablated_neurons_stay_where_something_else_needs_them() {
    let window = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
    let depthwise = Op::Conv2d(ops::Conv2d {
        weight: Weight::Dense(vec![2.0; 3]),
        bias: vec![0.0; 3],
        window,
        groups: 3,
    });
    let norm = Op::LayerNorm(ops::LayerNorm { scale: vec![1.0; 3], shift: vec![0.0; 3], epsilon: 0.1 });
    let tokens = Op::Tokens(ops::Tokens { class: vec![0.0; 3], positions: vec![0.0; 39] });
    for between in [depthwise, norm, tokens, Op::Attention(ops::Attention { heads: 1 })] {
        let consumer = dense(2, if matches!(between, Op::Attention(ops::Attention { .. })) { 1 } else { 3 });
        let network = chain([ablated(0.0), between, consumer]);
        assert_eq!(fold(&network).0, network);
    }
    // The output, a residual, and two readers.
    for network in [
        chain([ablated(0.0)]),
        rewired([ablated(0.0), Op::Relu, Op::Add, dense(2, 3)], &[(3, &[1, 2])]),
        rewired([ablated(0.0), dense(2, 3), dense(2, 3), Op::Add], &[(3, &[1]), (4, &[2, 3])]),
    ] {
        assert_eq!(fold(&network).0, network);
    }
}

#[test]
fn what_reads_only_constants_is_ablated_in_turn() {
    // Its neurons read: only the ablated one, all, none.
    let second = Op::Linear(ops::Linear {
        weight: sparse(&[[None, Some(2.0), None], [Some(1.0), Some(1.0), Some(1.0)], [None, None, None]]),
        bias: vec![-1.0, 0.0, 4.0],
    });
    let (folded, features) = fold(&chain([ablated(3.0), Op::Relu, second, dense(2, 3)]));
    assert_eq!(features, [2, 2, 2, 1, 2]);
    let Op::Linear(ops::Linear { weight: Weight::Condensed(weight), bias }) = &folded.nodes()[3].op else {
        panic!("{folded:?}")
    };
    assert_eq!((weight.inputs(), weight.neurons(), weight.fan_in()), (2, 1, &FanIn::Constant(2)));
    assert_eq!(weight.row(0).collect::<Vec<_>>(), [(0, 1.0), (1, 1.0)]);
    assert_eq!(bias, &[3.0]);
}

#[test]
fn one_neuron_stays() {
    let first =
        Op::Linear(ops::Linear { weight: sparse(&[[None, None], [None, None]]), bias: vec![1.0, -2.0] });
    let (_, features) = fold(&chain([first, Op::Relu, dense(2, 2)]));
    assert_eq!(features, [2, 1, 1, 2]);
}

#[test]
fn fan_in_may_vary_afterwards() {
    let second = Op::Linear(ops::Linear {
        weight: sparse(&[[Some(1.0), Some(2.0), None], [Some(3.0), None, Some(4.0)]]),
        bias: vec![0.0; 2],
    });
    let (folded, _) = fold(&chain([ablated(3.0), second]));
    let Op::Linear(ops::Linear { weight: Weight::Condensed(weight), bias }) = &folded.nodes()[2].op else {
        panic!("{folded:?}")
    };
    assert_eq!(weight.fan_in(), &FanIn::Varying(vec![0, 1, 3]));
    assert_eq!(weight.row(1).collect::<Vec<_>>(), [(0, 3.0), (1, 4.0)]);
    assert_eq!(bias, &[6.0, 0.0]);
}

#[test]
fn invalid_networks_are_refused() {
    let input = Node { name: "n0".into(), op: Op::Input(ops::Input(IMAGE)), inputs: vec![] };
    let layer = Node { name: "n1".into(), op: dense(2, 3), inputs: vec![0] };
    assert!(Network::new(vec![input, layer]).unwrap_err().to_string().contains("`n1`"));
}

/// The random networks of the first test have something to fold.
#[test]
fn random_networks_shrink() {
    let (mut shorter, mut thinner) = (0, 0);
    for seed in 0..500 {
        let (network, _) = random::network(seed);
        let folded = network.clone().fold().unwrap();
        let features = |n: &Network| n.shapes().iter().map(|shape| shape.features).sum::<usize>();
        shorter += usize::from(folded.nodes().len() < network.nodes().len());
        thinner += usize::from(
            folded.nodes().len() == network.nodes().len() && features(&folded) < features(&network),
        );
    }
    assert!(shorter > 50 && thinner > 50, "{shorter} lost a node, {thinner} only neurons");
}
