//! What asks for too much memory or time is refused at once. The budget is one for the process, so these tests have a file
//! of their own, and all set the same.

use condensed::{
    CondensedWeight, ConvKernel, Engine, Error, FanIn, LinearKernel, Network, Node, Op, Shape, Weight,
    Window, load, ops,
};
use srigl_tensors::memory;
use std::path::Path;
use std::time::{Duration, Instant};

const BUDGET: u64 = 100 << 20;

/// Far more than any of this takes on a busy machine, and far less than it would take otherwise.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Runs a network, folded, with a batch.
fn run(network: Network, batch: usize) -> Result<(), Error> {
    let mut engine = Engine::new(&network.fold()?)?;
    let x = vec![0.0; batch * engine.input_shape().len()];
    engine.run(batch, &x, &mut vec![0.0; batch * engine.output_shape().len()])
}

fn at_once<T>(what: &str, run: impl FnOnce() -> T) -> T {
    memory::set_limit(BUDGET);
    let start = Instant::now();
    let result = run();
    assert!(start.elapsed() < AT_ONCE, "{what} took {:?}", start.elapsed());
    result
}

/// Refused for this layer, before anything is allocated.
#[track_caller]
fn refused<T>(node: &str, run: impl FnOnce() -> Result<T, Error>) {
    let Err(error) = at_once(node, run) else { panic!("`{node}` should be refused") };
    let text = error.to_string();
    assert!(text.contains("it would take") && text.contains("104.9 MB are allowed"), "{text}");
    assert!(matches!(error, Error::Memory { node: name, .. } if name == node), "{text}");
}

fn network(input: [usize; 3], nodes: &[(&str, Op, &[usize])]) -> Network {
    let [features, height, width] = input;
    let mut all = vec![Node::new("input", ops::Input(Shape { features, height, width }), [])];
    all.extend(nodes.iter().map(|(name, op, inputs)| Node::new(*name, op.clone(), *inputs)));
    Network::new(all).unwrap()
}

fn window(kernel: [usize; 2], padding: [usize; 2]) -> Window {
    Window { kernel, stride: [1; 2], padding, dilation: [1; 2] }
}

/// A layer with one weight.
fn sparse(neurons: usize, inputs: usize) -> Weight {
    let weight = CondensedWeight::new(neurons, inputs, vec![0], FanIn::Constant(1), vec![0], vec![1.0]);
    Weight::Condensed(weight.unwrap())
}

fn linear(neurons: usize, inputs: usize) -> Op {
    ops::Linear { weight: sparse(neurons, inputs), bias: vec![0.0; neurons] }.into()
}

/// One channel to one.
fn conv(window: Window) -> Op {
    let inputs = window.kernel[0] * window.kernel[1];
    ops::Conv2d { weight: sparse(1, inputs), bias: vec![0.0], window, groups: 1 }.into()
}

/// Also those of the folder `CONDENSED_HOSTILE`, if it is set.
#[test]
fn hostile_files_are_refused_or_run_at_once() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile")];
    folders.extend(std::env::var_os("CONDENSED_HOSTILE").map(Into::into));
    for file in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        let name = path.display().to_string();
        if let Err(error) = at_once(&name, || load(&path).and_then(|network| run(network, 1))) {
            assert!(!error.to_string().contains(char::is_control), "{name}: {error}");
        }
    }
}

#[test]
fn results_alive_at_the_same_time_are_summed() {
    // Each takes 4 MB, and all are read in the end.
    let branches = |count: usize| {
        let mut nodes = vec![("conv".to_string(), conv(window([1; 2], [512; 2])), vec![0])];
        nodes.extend((0..count).map(|i| (format!("branch{i}"), Op::HardSigmoid, vec![1])));
        let mut last = 2;
        for i in 1..count {
            nodes.push((format!("add{i}"), Op::Add, vec![last, 2 + i]));
            last = nodes.len();
        }
        nodes.push(("pool".into(), Op::GlobalAvgPool, vec![last]));
        let nodes: Vec<_> =
            nodes.iter().map(|(name, op, inputs)| (&**name, op.clone(), &inputs[..])).collect();
        network([1; 3], &nodes)
    };
    at_once("few", || run(branches(4), 1)).unwrap();
    let many = branches(40);
    refused("conv", || many.check_memory(1));
    refused("conv", || Engine::new(&many)?.run(1, &[1.0], &mut [0.0]));
}

#[test]
fn batches_count() {
    let inputs = 1 << 18;
    let head = ops::Linear { weight: Weight::Dense(vec![0.5; inputs]), bias: vec![0.0] };
    let network = network([inputs, 1, 1], &[("head", head.into(), &[0])]);
    let mut engine = Engine::new(&network).unwrap();
    refused("input", || network.check_memory(1000));
    refused("input", || network.check_memory(usize::MAX));
    let images = vec![1.0; 200 * inputs];
    refused("input", || engine.run(200, &images, &mut [0.0; 200]));
    assert_eq!(engine.memory(usize::MAX), None);
    // What fits is found by asking, and the refusal has done no harm.
    let most = (1..1000).take_while(|&batch| engine.memory(batch).unwrap() <= BUDGET).last().unwrap();
    assert!((90..100).contains(&most), "{most}");
    engine.run(most, &images[..most * inputs], &mut vec![0.0; most]).unwrap();
    network.check_memory(most).unwrap();
}

#[test]
fn images_take_memory_for_as_many_as_there_are_threads() {
    let network =
        network([1; 3], &[("conv", conv(window([1; 2], [250; 2])), &[0]), ("pool", Op::GlobalAvgPool, &[1])]);
    refused("conv", || network.check_memory(1000));
    refused("conv", || network.check_memory(usize::MAX));
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let memory = |threads, batch| {
        pool(threads).install(|| {
            let mut engine = Engine::new(&network).unwrap();
            let mut means = vec![0.0; batch];
            at_once("conv", || engine.run(batch, &vec![1.0; batch], &mut means)).unwrap();
            assert!(means.iter().all(|mean| *mean > 0.0));
            engine.memory(batch).unwrap()
        })
    };
    assert_eq!(memory(1, 40), memory(1, 1));
    assert_eq!(memory(3, 40), 3 * memory(1, 1));
    assert_eq!(memory(3, 2), 2 * memory(1, 1));
    pool(100).install(|| {
        let mut engine = Engine::new(&network).unwrap();
        assert_eq!(engine.memory(usize::MAX), engine.memory(100));
        refused("conv", || engine.run(100, &[1.0; 100], &mut [0.0; 100]));
    });
}

#[test]
fn one_large_result_or_what_is_made_on_the_way_is_refused() {
    // 1 GB of numbers that a list of nodes names in 100 bytes.
    refused("fc", || run(network([1 << 28, 1, 1], &[("fc", linear(1, 1 << 28), &[0])]), 1));
    refused("input", || {
        Engine::new(&network([1 << 27, 1, 2], &[("relu", Op::Relu, &[0])]))?.run(
            1,
            &vec![0.0; 1 << 28],
            &mut vec![0.0; 1 << 28],
        )
    });
    let attention = network([3, 1, 1 << 14], &[("attention", ops::Attention { heads: 1 }.into(), &[0])]);
    refused("attention", || attention.check_memory(1));
    refused("attention", || Engine::new(&attention)?.run(1, &vec![0.0; 3 << 14], &mut vec![0.0; 1 << 14]));
    // 2^20 windows, each of which gathers 2^5 numbers.
    let gathered = network([1, 1, 1 << 20], &[("conv", conv(window([1, 32], [0; 2])), &[0])]);
    refused("conv", || gathered.check_memory(1));
    // Features of a constant neuron, one for each of 2^26 positions.
    let flat = network(
        [1, 1 << 13, 1 << 13],
        &[("fc", linear(2, 1), &[0]), ("flat", Op::Flatten, &[1]), ("out", linear(1, 2 << 26), &[2])],
    );
    refused("flat", || flat.fold());
}

/// Limits that hold on any machine.
#[test]
fn windows_that_gather_too_much_are_refused() {
    let refused = |window: Window, image: [usize; 3]| {
        let [features, height, width] = image;
        let input = Node::new("input", ops::Input(Shape { features, height, width }), []);
        let nodes = vec![input, Node::new("cv", conv(window), [0])];
        let error = at_once("cv", || Network::new(nodes)).unwrap_err().to_string();
        assert!(error.contains("layer `cv`") && error.contains("are allowed; use"), "{error}");
        error
    };
    let error = refused(window([1, 1 << 19], [0, 1 << 19]), [1; 3]);
    assert!(error.contains("would take 1.1 TB of memory, but 268.4 MB are allowed"), "{error}");
    let error = refused(window([1, 1 << 15], [0, 1 << 15]), [1; 3]);
    assert!(error.contains("would take 4.3 GB of memory, but 268.4 MB are allowed"), "{error}");
    refused(window([1, 1 << 19], [0; 2]), [1, 1, 1 << 20]);
    // Rows far apart, each with its own sheet: as many as the stride allows.
    let far = Window { stride: [1 << 13, 1], ..window([1 << 13, 2], [1 << 13, 1 << 10]) };
    refused(Window { dilation: [1, 1 << 10], ..far }, [1, 1, 1 << 11]);
    refused(Window { dilation: [1 << 22; 2], ..window([2; 2], [1 << 22; 2]) }, [1; 3]);
}

#[test]
fn windows_of_many_taps_take_time_in_proportion() {
    let many = 1 << 18;
    for window in [window([many, 1], [many - 1, 0]), window([1, 1 << 10], [0, 1 << 10])] {
        let [height, width] = [if window.kernel[0] > 1 { 2 } else { 1 }, 1];
        at_once("cv", || run(network([1, height, width], &[("cv", conv(window), &[0])]), 1)).unwrap();
    }
    for kernel in [[many, 1], [1, many]] {
        let pool = ops::MaxPool(window(kernel, kernel.map(|size| size - 1)));
        at_once("pool", || run(network([1, 2, 2], &[("pool", pool.into(), &[0])]), 1)).unwrap();
    }
}

/// A table of lookups would take more than the weights by far, or far more time.
#[test]
fn weights_are_packed_in_time_in_proportion() {
    for (neurons, inputs, fan_in) in
        [(1 << 17, 1 << 17, 1), (1 << 17, 300, 1), (16, 1 << 20, 3), (1 << 14, 1 << 20, 2)]
    {
        let indices = (0..neurons)
            .flat_map(|n| (0..fan_in).map(move |i| (n * 7919 % (inputs / fan_in)) + i * (inputs / fan_in)));
        let weight = CondensedWeight::new(
            neurons,
            inputs,
            (0..neurons as u32).collect(),
            FanIn::Constant(fan_in),
            indices.map(|i| i as u32).collect(),
            vec![1.0; neurons * fan_in],
        )
        .unwrap();
        at_once(&format!("{neurons} × {inputs}"), || {
            let layer = LinearKernel::new(&weight, &vec![0.0; neurons]).unwrap();
            for batch in [1, 4] {
                let mut y = vec![0.0; batch * neurons];
                layer.run(batch, &vec![1.0; batch * inputs], &mut y);
                assert!(y.iter().all(|&y| y == fan_in as f32));
            }
            assert!(layer.bytes() < 10 * weight.bytes(), "{} of {}", layer.bytes(), weight.bytes());
        });
    }
}

/// Images of 4 MB are copied once.
#[test]
fn a_convolution_by_itself_takes_memory_in_proportion() {
    let image = Shape { features: 16, height: 256, width: 256 };
    let Weight::Condensed(weight) = sparse(1, 16) else { unreachable!() };
    let layer = ConvKernel::new(&weight, &[1.0], window([1; 2], [0; 2]), 1, image).unwrap();
    let mut y = vec![0.0; 1 << 16];
    at_once("conv", || layer.run(1, &vec![2.0; 16 << 16], &mut y));
    assert!(y.iter().all(|y| *y == 3.0));
}

#[test]
fn many_nodes_take_time_in_proportion() {
    let count = 50_000;
    let relus: Vec<Node> = (0..count).map(|i| Node::new(format!("relu{i}"), Op::Relu, [i])).collect();
    // Each has a neuron that may leave.
    let layers = (0..count).map(|i| Node::new(format!("fc{i}"), linear(2, 2), [i])).collect();
    for nodes in [relus, layers] {
        let input = Node::new("input", ops::Input(Shape { features: 2, height: 1, width: 1 }), []);
        let network = Network::new([vec![input], nodes].concat()).unwrap();
        at_once("a chain", || run(network, 1)).unwrap();
    }
}
