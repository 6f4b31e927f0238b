//! Results have the same bits for any number of threads.

#[path = "random/mod.rs"]
mod random;

use condensed::{CondensedWeight, Engine, Isa, Network, Node, Op, Shape, Weight, Window, ops};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rayon::ThreadPool;

fn pools() -> Vec<ThreadPool> {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    (1..=16).map(pool).collect()
}

/// Runs a network on `batch` inputs with 1 to 16 threads, prepared anew for each.
fn check(pools: &[ThreadPool], network: &Network, batch: usize, input: &[f32]) {
    let run = |pool: &ThreadPool| -> Vec<u32> {
        let mut output = vec![f32::NAN; batch * network.output_shape().len()];
        pool.install(|| Engine::new(network).unwrap().run(batch, input, &mut output)).unwrap();
        output.iter().map(|value| value.to_bits()).collect()
    };
    let alone = run(&pools[0]);
    for pool in &pools[1..] {
        assert!(run(pool) == alone, "{} threads, {batch} inputs: {network:?}", pool.current_num_threads());
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn random_networks_do_not_depend_on_the_number_of_threads() {
    let pools = pools();
    for seed in 0..150 {
        let (network, input) = random::network(seed);
        check(&pools, &network, 1, &input);
        check(&pools, &network, 5, &input.repeat(5));
    }
}

/// Large enough that every layer is shared among threads, with shares that do not divide it.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn large_layers_do_not_depend_on_the_number_of_threads() {
    let rng = &mut SmallRng::seed_from_u64(4);
    let mut floats = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let condensed = |neurons: usize, inputs: usize, floats: &mut dyn FnMut(usize) -> Vec<f32>| {
        let values = floats(neurons * inputs);
        // A fifth of the inputs, others from neuron to neuron.
        let mask: Vec<bool> =
            (0..neurons * inputs).map(|i| (i / inputs + i % inputs).is_multiple_of(5)).collect();
        Weight::Condensed(CondensedWeight::from_masked(&values, &mask, neurons, inputs).unwrap())
    };
    let window = Window { kernel: [3; 2], stride: [1; 2], padding: [1; 2], dilation: [1; 2] };
    let shape = Shape { features: 13, height: 19, width: 17 };
    let (inputs, hidden) = (45 * 19 * 17, 301);
    let conv = condensed(45, 13 * 9, &mut floats);
    let linear = condensed(hidden, inputs, &mut floats);
    let conv = Op::Conv2d(ops::Conv2d { weight: conv, bias: floats(45), window, groups: 1 });
    let linear = Op::Linear(ops::Linear { weight: linear, bias: floats(hidden) });
    let head = Op::Linear(ops::Linear { weight: Weight::Dense(floats(7 * hidden)), bias: floats(7) });
    let steps = [
        ("input", Op::Input(ops::Input(shape))),
        ("conv", conv),
        ("relu", Op::Relu),
        ("flat", Op::Flatten),
        ("linear", linear),
        ("gelu", Op::Gelu),
        ("head", head),
    ];
    let node = |(i, (name, op)): (usize, (&str, Op))| Node {
        name: name.into(),
        op,
        inputs: i.checked_sub(1).into_iter().collect(),
    };
    let network = Network::new(steps.into_iter().enumerate().map(node).collect()).unwrap();
    let input = floats(11 * shape.len());
    let pools = pools();
    for batch in [1, 11] {
        check(&pools, &network, batch, &input[..batch * shape.len()]);
    }
}

/// Memory is made for the largest batch so far and the threads of that time; neither may show in a result.
#[test]
#[cfg_attr(miri, ignore = "too large")]
fn batches_come_in_any_order_and_from_pools_of_any_size() {
    let rng = &mut SmallRng::seed_from_u64(5);
    let (inputs, neurons, most) = (1003, 71, 140);
    let mask: Vec<bool> = (0..neurons * inputs).map(|_| rng.random_range(0..10) == 0).collect();
    let values: Vec<f32> = mask.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
    let weight = CondensedWeight::from_masked(&values, &mask, neurons, inputs).unwrap();
    let layer = ops::Linear { weight: Weight::Condensed(weight), bias: vec![0.5; neurons] };
    let shape = Shape { features: inputs, height: 1, width: 1 };
    let nodes = vec![Node::new("input", ops::Input(shape), []), Node::new("layer", layer, [0])];
    let network = Network::new(nodes).unwrap();
    let batches = [129, 128, 65, 64, 33, 25, 4, 3, 1, 40, 140, 8];
    // Each batch begins with another sample, so that results of earlier ones are wrong.
    let x: Vec<f32> = (0..(most + batches.len()) * inputs).map(|_| rng.random_range(-1.0..1.0)).collect();
    let pools = [1, 2, 3, 16].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for isa in Isa::all() {
        let run = |engine: &mut Engine, i: usize| {
            let mut y = vec![f32::NAN; batches[i] * neurons];
            engine.run(batches[i], &x[i * inputs..][..batches[i] * inputs], &mut y).unwrap();
            y
        };
        let fresh = |i| pools[0].install(|| run(&mut Engine::with_isa(&network, isa).unwrap(), i));
        let want: Vec<Vec<f32>> = (0..batches.len()).map(fresh).collect();
        for (planned, later) in
            pools.iter().flat_map(|planned| pools.iter().map(move |later| (planned, later)))
        {
            let mut engine = planned.install(|| Engine::with_isa(&network, isa).unwrap());
            for (i, batch) in batches.into_iter().enumerate() {
                // The memory grows in both pools.
                let pool = if i % 2 == 0 { planned } else { later };
                let got = pool.install(|| run(&mut engine, i));
                assert!(got == want[i], "{isa:?}, batch {batch}, pools {planned:?} and {later:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too large")]
fn an_image_has_the_same_result_in_any_batch() {
    let rng = &mut SmallRng::seed_from_u64(6);
    let shape = Shape { features: 5, height: 11, width: 9 };
    let mut floats = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let window = Window { kernel: [3; 2], stride: [1; 2], padding: [1; 2], dilation: [1; 2] };
    let conv = ops::Conv2d { weight: Weight::Dense(floats(40 * 45)), bias: floats(40), window, groups: 1 };
    let head = ops::Linear { weight: Weight::Dense(floats(3 * 40)), bias: floats(3) };
    let nodes = vec![
        Node::new("input", ops::Input(shape), []),
        Node::new("conv", conv, [0]),
        Node::new("pool", Op::GlobalAvgPool, [1]),
        Node::new("head", head, [2]),
    ];
    let network = Network::new(nodes).unwrap();
    let images = floats(7 * shape.len());
    let mut engine = Engine::new(&network).unwrap();
    let mut alone = [0.0; 7 * 3];
    for (image, y) in images.chunks(shape.len()).zip(alone.chunks_mut(3)) {
        engine.run(1, image, y).unwrap();
    }
    for batch in [7, 2, 5] {
        let mut together = vec![0.0; batch * 3];
        engine.run(batch, &images[..batch * shape.len()], &mut together).unwrap();
        assert_eq!(together, alone[..batch * 3]);
    }
}
