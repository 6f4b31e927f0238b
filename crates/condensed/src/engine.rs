//! Whole networks, planned once and run many times.

use crate::buffer::{Buffer, Room, Scratch, floats};
use crate::ops::Run;
use crate::planes::PlaneLayer;
use crate::shape::{from_planes, to_planes};
use crate::{Error, Isa, Network, Node, Op, Shape, tuning};
use rayon::prelude::*;
use srigl_tensors::memory::{self, TooLarge};
use std::fmt;

/// A network ready to run on a CPU.
///
/// Made from a [`Network`] once: kernels and layouts are chosen layer by layer, additions and ReLUs join
/// the layers before them, and results that are never alive together share memory. Running allocates
/// nothing once the largest batch has been seen, and before that asks the [budget](memory::limit).
///
/// NaN and infinities go through as in PyTorch, but for absent weights: see
/// [`LinearKernel::run`](crate::LinearKernel::run).
///
/// Samples of a batch go through networks of images one by one, on as many threads as there are, so that a result is the same in
/// whatever batch its sample is. Where layers on vectors have more than a small part of the work, the batch goes layer by layer.
///
/// Planned for the threads of the rayon pool that [`new`](Self::new) runs on, and to be run on the same; results
/// do not depend on their number. A call from outside a pool waits for a thread of the pool to wake up, so
/// many short calls are better made inside `pool.install`.
///
/// ```no_run
/// let network = condensed::load("small.safetensors")?;
/// let mut engine = condensed::Engine::new(&network)?;
/// let batch = 8;
/// let images = vec![0.5; batch * engine.input_shape().len()];
/// let mut logits = vec![0.0; batch * engine.output_shape().len()];
/// engine.run(batch, &images, &mut logits)?;
/// # Ok::<(), condensed::Error>(())
/// ```
pub struct Engine {
    input: Shape,
    output: Shape,
    /// Name of the input.
    name: String,
    steps: Vec<Step>,
    /// Buffers for results.
    buffers: usize,
    /// Whether samples go through the network one by one, several at once.
    by_sample: bool,
    lanes: Vec<Lane>,
    /// The largest batch that there is memory for.
    room_for: usize,
}

/// Memory that samples go through the network in.
#[derive(Clone, Debug, Default)]
struct Lane {
    results: Vec<Buffer>,
    scratch: Scratch,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("input", &self.input)
            .field("output", &self.output)
            .field("steps", &self.steps.len())
            .field("bytes", &self.bytes())
            .finish()
    }
}

/// One operation on results in memory.
#[derive(Debug)]
struct Step {
    /// Name of its node.
    name: String,
    action: Box<dyn Run>,
    /// Whether the result starts as a copy of the input, or lies where it lay.
    in_place: bool,
    /// What it reads, and where that lies. An addition's second operand, or a residual, is the second.
    inputs: Vec<Place>,
    output: Place,
    /// Whether negative results become 0.
    relu: bool,
}

/// A result in memory: `[batch][features][stride]`, or `[batch][features]` for vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    buffer: usize,
    pub shape: Shape,
}

impl Place {
    pub fn is_vector(&self) -> bool {
        self.shape.positions() == 1
    }

    /// Floats between planes.
    pub fn stride(&self) -> usize {
        if self.is_vector() { 1 } else { self.shape.stride() }
    }

    /// Floats of one sample.
    pub fn sample(&self) -> usize {
        self.shape.features * self.stride()
    }
}

/// What an operation is planned for.
pub(crate) struct Planning {
    /// Shape of its (first) input.
    pub input: Shape,
    pub isa: Isa,
    pub threads: usize,
}

/// What an operation is run on.
pub(crate) struct Call<'a> {
    pub batch: usize,
    pub from: Place,
    pub to: Place,
    /// The input, and more memory behind it. Operations in place find it in `out`.
    pub x: &'a [f32],
    /// The second input, or what is to be added.
    pub second: Option<&'a [f32]>,
    /// Room for the result, and more behind it.
    pub out: &'a mut [f32],
    /// Whether a layer with weights is to make negative results 0.
    pub relu: bool,
    pub scratch: &'a mut Scratch,
}

impl Engine {
    /// Plans `network`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the weights, as the kernels read them, would take more than the [budget](memory::limit).
    pub fn new(network: &Network) -> Result<Self, Error> {
        Self::with_isa(network, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// As [`new`](Self::new), or [`Error::Isa`] if the machine lacks the instruction set.
    pub fn with_isa(network: &Network, isa: Isa) -> Result<Self, Error> {
        if !isa.available() {
            return Err(Error::Isa(isa));
        }
        let (nodes, shapes) = (network.nodes(), network.shapes());
        let packed = |node: &Node| node.op.operation().packed(shapes[node.inputs[0]]);
        Use::sum(nodes[1..].iter().map(|node| (&*node.name, packed(node)))).check()?;
        let threads = rayon::current_num_threads();
        let steps = fuse(network);
        let mut last_use = vec![0; nodes.len()];
        for (index, step) in steps.iter().enumerate() {
            step.inputs.iter().for_each(|&input| last_use[input] = index);
        }
        last_use[nodes.len() - 1] = usize::MAX;

        let mut buffers = 1;
        let mut free = Vec::new();
        let mut home = vec![0; nodes.len()];
        let mut planned = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let place = |node: usize, home: &[usize]| Place { buffer: home[node], shape: shapes[node] };
            let inputs: Vec<Place> = step.inputs.iter().map(|&node| place(node, &home)).collect();
            let dead = |node: usize| last_use[node] == index;
            let node = &nodes[step.node];
            let operation = node.op.operation();
            home[step.result] = if operation.in_place() && dead(step.inputs[0]) {
                home[step.inputs[0]]
            } else {
                free.pop().unwrap_or_else(|| {
                    buffers += 1;
                    buffers - 1
                })
            };
            let mut gone: Vec<usize> = step.inputs.iter().copied().filter(|&input| dead(input)).collect();
            gone.dedup();
            free.extend(gone.into_iter().map(|node| home[node]).filter(|&b| b != home[step.result]));
            planned.push(Step {
                name: node.name.clone(),
                action: operation.plan(&Planning { input: shapes[node.inputs[0]], isa, threads })?,
                in_place: operation.in_place(),
                inputs,
                output: place(step.result, &home),
                relu: step.relu,
            });
        }
        Ok(Self {
            input: shapes[0],
            output: shapes[shapes.len() - 1],
            name: nodes[0].name.clone(),
            steps: planned,
            buffers,
            by_sample: by_sample(network),
            lanes: Vec::new(),
            room_for: 0,
        })
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> Shape {
        self.input
    }

    /// Shape of one result.
    pub fn output_shape(&self) -> Shape {
        self.output
    }

    /// Bytes that the weights take, as the kernels read them.
    pub fn bytes(&self) -> usize {
        self.steps.iter().map(|step| step.action.bytes()).sum()
    }

    /// Bytes that [`run`](Self::run) takes for results and whatever else kernels need beside the weights: `None` if no
    /// number holds it. Grows with the batch, for networks of images up to that of as many samples as there are threads.
    pub fn memory(&self, batch: usize) -> Option<u64> {
        self.needs(batch).1.bytes()
    }

    /// Samples that a lane takes at a time, and lanes.
    fn lanes(&self, batch: usize) -> (usize, usize) {
        if self.by_sample { (1, batch.min(rayon::current_num_threads())) } else { (batch, 1) }
    }

    /// Floats of each buffer and scratch memory of one lane, and what all take and which node most.
    fn needs(&self, batch: usize) -> ((Vec<u64>, Room), Use<'_>) {
        let (batch, lanes) = self.lanes(batch);
        let mut results = vec![0; self.buffers];
        let mut room = Room::default();
        let mut result = |place: Place| {
            let size = floats(&[batch, place.sample()]).saturating_add(PlaneLayer::SLACK as u64);
            results[place.buffer] = size.max(results[place.buffer]);
            size
        };
        let mut most = (&*self.name, result(Place { buffer: 0, shape: self.input }));
        for step in &self.steps {
            let own = step.action.room(step.inputs[0], step.output, batch);
            let size = result(step.output).saturating_add(own.floats());
            room = room.or(&own);
            if size > most.1 {
                most = (&step.name, size);
            }
        }
        let lane = results.iter().fold(room.floats(), |sum, &size| sum.saturating_add(size));
        let bytes = |floats: u64| floats.saturating_mul((lanes * size_of::<f32>()) as u64);
        let used = Use { all: bytes(lane), most: (most.0, bytes(most.1)) };
        ((results, room), used)
    }

    /// Makes room for a batch.
    fn grow(&mut self, batch: usize) -> Result<(), Error> {
        let ((results, room), used) = self.needs(batch);
        used.check()?;
        // The machine may have less than the budget allows.
        let (all, name, bytes) = (used.all, used.most.0.to_string(), used.most.1);
        let lanes = self.lanes(batch).1;
        self.room_for = 0;
        self.lanes.resize_with(lanes, Lane::default);
        self.lanes.iter_mut().try_for_each(|lane| lane.grow(&results, &room)).map_err(|what| {
            let what = TooLarge { bytes: Some(all), ..what };
            Error::Memory { what, node: name.clone(), bytes }
        })?;
        self.room_for = batch;
        Ok(())
    }

    /// `[batch, C, H, W]` → `[batch, features]`, both row-major.
    ///
    /// # Errors
    /// [`Error::Input`] if a slice does not have that length, [`Error::Memory`] if [so much](Self::memory) exceeds the
    /// [budget](memory::limit), or the machine does not give it.
    pub fn run(&mut self, batch: usize, input: &[f32], output: &mut [f32]) -> Result<(), Error> {
        let wrong = |what, got, shape: Shape| Err(Error::Input { what, got, batch, shape });
        if Some(input.len()) != batch.checked_mul(self.input.len()) {
            return wrong("input", input.len(), self.input);
        }
        if Some(output.len()) != batch.checked_mul(self.output.len()) {
            return wrong("output", output.len(), self.output);
        }
        if batch == 0 {
            return Ok(());
        }
        if batch > self.room_for {
            self.grow(batch)?;
        }
        let Self { steps, lanes, by_sample, input: from, output: to, .. } = self;
        let shapes = [*from, *to];
        if *by_sample {
            // Those lanes that there are: there may be more threads now than when memory was made.
            let share = batch.div_ceil(lanes.len().min(rayon::current_num_threads()));
            let inputs = input.par_chunks(share * from.len());
            let outputs = output.par_chunks_mut(share * to.len());
            lanes.par_iter_mut().zip(inputs.zip(outputs)).for_each(|(lane, (input, output))| {
                let samples = input.chunks_exact(shapes[0].len());
                for (input, output) in samples.zip(output.chunks_exact_mut(shapes[1].len())) {
                    lane.run(steps, shapes, (input, output), 1);
                }
            });
        } else {
            lanes[0].run(steps, shapes, (input, output), batch);
        }
        Ok(())
    }
}

impl Lane {
    /// Runs as many samples of these shapes as there is room for.
    fn run(
        &mut self,
        steps: &[Step],
        [from, to]: [Shape; 2],
        (input, output): (&[f32], &mut [f32]),
        batch: usize,
    ) {
        let Self { results, scratch } = self;
        let first = Place { buffer: 0, shape: from };
        if first.is_vector() {
            results[0][..input.len()].copy_from_slice(input);
        } else {
            let images = input.chunks_exact(from.len());
            for (image, planes) in images.zip(results[0].chunks_exact_mut(first.sample())) {
                to_planes(image, from, planes);
            }
        }
        for step in steps {
            step.run(batch, results, scratch);
        }
        let last = steps.last().map_or(first, |step| step.output);
        let result = &results[last.buffer];
        if last.is_vector() {
            output.copy_from_slice(&result[..output.len()]);
        } else {
            let samples = output.chunks_exact_mut(to.len());
            for (sample, planes) in samples.zip(result.chunks_exact(last.sample())) {
                from_planes(planes, to, sample);
            }
        }
    }

    fn grow(&mut self, results: &[u64], room: &Room) -> Result<(), TooLarge> {
        self.results.resize_with(results.len(), Buffer::default);
        let mut buffers = self.results.iter_mut().zip(results);
        buffers.try_for_each(|(buffer, &size)| buffer.grow(size))?;
        self.scratch.grow(room)
    }
}

/// Whether samples should go through a network one by one: few of its multiplications are in layers that gain from a batch.
fn by_sample(network: &Network) -> bool {
    let (nodes, shapes) = (network.nodes(), network.shapes());
    let (mut all, mut gain) = (0u64, 0u64);
    for (node, output) in nodes.iter().zip(shapes).skip(1) {
        let (operation, input) = (node.op.operation(), shapes[node.inputs[0]]);
        let cost = operation.cost(input, *output).multiplications;
        all = all.saturating_add(cost);
        if operation.gains_from_batch(input) {
            gain = gain.saturating_add(cost);
        }
    }
    gain <= all / tuning::BATCH_GAINS
}

/// Bytes that the nodes of a network take, and the node that takes most; `u64::MAX` stands for more than a number holds.
pub(crate) struct Use<'a> {
    pub all: u64,
    pub most: (&'a str, u64),
}

impl<'a> Use<'a> {
    fn sum(nodes: impl Iterator<Item = (&'a str, u64)>) -> Self {
        nodes.fold(Self { all: 0, most: ("", 0) }, |sum, node| Self {
            all: sum.all.saturating_add(node.1),
            most: if node.1 > sum.most.1 { node } else { sum.most },
        })
    }

    fn bytes(&self) -> Option<u64> {
        (self.all < u64::MAX).then_some(self.all)
    }

    /// Whether the budget allows it.
    pub fn check(&self) -> Result<(), Error> {
        let (name, bytes) = self.most;
        memory::check(self.bytes()).map_err(|what| Error::Memory { what, node: name.to_string(), bytes })
    }
}

/// A node with what follows it in the same step.
struct Fused {
    node: usize,
    inputs: Vec<usize>,
    /// The node whose result this step leaves.
    result: usize,
    relu: bool,
}

/// Joins additions and ReLUs to the layers whose results have no other use.
fn fuse(network: &Network) -> Vec<Fused> {
    let (nodes, readers) = (network.nodes(), network.readers());
    let mut done = vec![false; nodes.len()];
    let mut steps = Vec::new();
    for (index, node) in nodes.iter().enumerate().skip(1) {
        if done[index] {
            continue;
        }
        let mut step = Fused { node: index, inputs: node.inputs.clone(), result: index, relu: false };
        if node.op.operation().layer().is_some() {
            if let [reader] = readers[step.result][..]
                && nodes[reader].op == Op::Add
                && let Some(&other) = nodes[reader].inputs.iter().find(|&&i| i != index)
                && other < index
            {
                step.inputs.push(other);
                step.result = reader;
            }
            if let [reader] = readers[step.result][..]
                && nodes[reader].op == Op::Relu
            {
                step.result = reader;
                step.relu = true;
            }
        }
        done[index] = true;
        // All that this step covers, up to its result.
        let mut at = index;
        while at != step.result {
            at = readers[at][0];
            done[at] = true;
        }
        steps.push(step);
    }
    steps
}

impl Step {
    fn run(&self, batch: usize, memory: &mut [Buffer], scratch: &mut Scratch) {
        let (from, to) = (self.inputs[0], self.output);
        let mut out = std::mem::take(&mut memory[to.buffer]);
        // Where the result lies in its input's place, `x` is empty: `out` has the input already.
        let x = &memory[from.buffer];
        if self.in_place && from.buffer != to.buffer {
            let total = batch * to.sample();
            out[..total].copy_from_slice(&x[..total]);
        }
        let second = self.inputs.get(1).map(|place| &memory[place.buffer][..batch * place.sample()]);
        let relu = self.relu;
        self.action.run(Call { batch, from, to, x, second, out: &mut out, relu, scratch });
        memory[to.buffer] = out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Weight, ops};

    #[test]
    fn additions_and_relus_join_the_layer_before_them() {
        let linear = || ops::Linear { weight: Weight::Dense(vec![1.0; 9]), bias: vec![0.0; 3] };
        let input = || ops::Input(Shape { features: 3, height: 1, width: 1 });
        let steps = |nodes: Vec<(Op, Vec<usize>)>| {
            let named = nodes.into_iter().enumerate();
            let nodes = named.map(|(i, (op, inputs))| Node::new(format!("n{i}"), op, inputs)).collect();
            let fused = fuse(&Network::new(nodes).unwrap());
            fused.into_iter().map(|step| (step.node, step.inputs, step.result, step.relu)).collect::<Vec<_>>()
        };
        // A layer, a shortcut around another, and ReLU.
        let all = vec![
            (input().into(), vec![]),
            (linear().into(), vec![0]),
            (linear().into(), vec![1]),
            (Op::Add, vec![2, 1]),
            (Op::Relu, vec![3]),
        ];
        assert_eq!(steps(all), [(1, vec![0], 1, false), (2, vec![1, 1], 4, true)]);
        // What is added comes after the first layer; the second layer takes the addition.
        let both = vec![
            (input().into(), vec![]),
            (linear().into(), vec![0]),
            (linear().into(), vec![0]),
            (Op::Add, vec![1, 2]),
        ];
        assert_eq!(steps(both), [(1, vec![0], 1, false), (2, vec![0, 1], 3, false)]);
        // A result that two read stays, and ReLU is a step of its own.
        let apart = vec![
            (input().into(), vec![]),
            (linear().into(), vec![0]),
            (Op::Relu, vec![1]),
            (linear().into(), vec![2]),
            (Op::Add, vec![3, 1]),
        ];
        assert_eq!(steps(apart), [(1, vec![0], 1, false), (2, vec![1], 2, false), (3, vec![2, 1], 4, false)]);
    }

    #[test]
    fn the_first_of_the_largest_nodes_is_named() {
        let used = Use::sum([("a", 1), ("b", 7), ("c", 3), ("d", 7)].into_iter());
        assert_eq!((used.all, used.most), (18, ("b", 7)));
        let more = Use::sum([("a", u64::MAX), ("b", 7)].into_iter());
        assert_eq!((more.all, more.bytes(), more.most), (u64::MAX, None, ("a", u64::MAX)));
    }
}
