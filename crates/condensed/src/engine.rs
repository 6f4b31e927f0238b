//! Whole networks, planned once and run many times.

use crate::buffer::Buffer;
use crate::layers::{from_planes, to_planes};
use crate::math::{self, Strides};
use crate::planes::{PlaneLayer, Scratch};
use crate::{Error, Isa, LinearKernel, Network, Node, Op, Shape, Weight, Window};
use rayon::prelude::*;

/// A network ready to run on a CPU.
///
/// Made from a [`Network`] once: kernels and layouts are chosen layer by layer, additions and ReLUs join
/// the layers before them, and results that are never alive together share memory. Running allocates
/// nothing once the largest batch has been seen.
///
/// Planned for the threads of the rayon pool that [`new`](Self::new) runs on, and to be run on the same; results
/// do not depend on their number. A call from outside a pool waits for a thread of the pool to wake up, so
/// many short calls are better made inside `pool.install`.
#[derive(Debug)]
pub struct Engine {
    input: Shape,
    output: Shape,
    steps: Vec<Step>,
    memory: Vec<Buffer>,
    scratch: Scratch,
    scores: Buffer,
}

/// One operation on results in memory.
#[derive(Debug)]
struct Step {
    action: Action,
    /// What it reads, and where that lies. An addition's second operand, or a residual, is the second.
    inputs: Vec<Place>,
    output: Place,
    /// Whether negative results become 0.
    relu: bool,
}

/// A result in memory: `[batch][features][stride]`, or `[batch][features]` for vectors.
#[derive(Clone, Copy, Debug)]
struct Place {
    buffer: usize,
    shape: Shape,
}

impl Place {
    fn is_vector(&self) -> bool {
        self.shape.positions() == 1
    }

    /// Floats between planes.
    fn stride(&self) -> usize {
        if self.is_vector() { 1 } else { self.shape.stride() }
    }

    /// Floats of one sample.
    fn sample(&self) -> usize {
        self.shape.features * self.stride()
    }
}

#[derive(Debug)]
enum Action {
    Planes(Box<PlaneLayer>),
    Vector(Box<LinearKernel>),
    /// A linear layer without a mask, `[N, M]`.
    Dense(Vec<f32>, Vec<f32>),
    Affine(Vec<f32>, Vec<f32>),
    Relu,
    Gelu,
    HardSigmoid,
    HardSwish,
    Add,
    /// Planes times the numbers of a vector.
    Scale,
    MaxPool(Window),
    GlobalAvgPool,
    Flatten,
    LayerNorm(Vec<f32>, Vec<f32>, f32),
    /// Embeddings `[features][tokens]`, the class token added to the first.
    Tokens(Vec<f32>),
    Attention(usize),
    ClassToken,
}

impl Engine {
    /// Plans `network`.
    ///
    /// # Errors
    /// What [`Network::shapes`] finds wrong.
    pub fn new(network: &Network) -> Result<Self, Error> {
        Self::with_isa(network, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// What [`Network::shapes`] finds wrong, or if the machine lacks the instruction set.
    pub fn with_isa(network: &Network, isa: Isa) -> Result<Self, Error> {
        let shapes = network.shapes()?;
        let threads = rayon::current_num_threads();
        let steps = fuse(network);
        let mut last_use = vec![0; network.nodes.len()];
        for (index, step) in steps.iter().enumerate() {
            step.inputs.iter().for_each(|&input| last_use[input] = index);
        }
        last_use[network.nodes.len() - 1] = usize::MAX;

        let mut buffers = 1;
        let mut free = Vec::new();
        let mut home = vec![0; network.nodes.len()];
        let mut planned = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let place = |node: usize, home: &[usize]| Place { buffer: home[node], shape: shapes[node] };
            let inputs: Vec<Place> = step.inputs.iter().map(|&node| place(node, &home)).collect();
            let dead = |node: usize| last_use[node] == index;
            let node = &network.nodes[step.node];
            let pointwise =
                matches!(node.op, Op::Affine { .. } | Op::Relu | Op::Gelu | Op::HardSigmoid | Op::HardSwish);
            let in_place = pointwise && dead(step.inputs[0]);
            home[step.result] = if in_place {
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
                action: action(node, shapes[node.inputs[0]], isa, threads)?,
                inputs,
                output: place(step.result, &home),
                relu: step.relu,
            });
        }
        Ok(Self {
            input: shapes[0],
            output: shapes[shapes.len() - 1],
            steps: planned,
            memory: vec![Buffer::default(); buffers],
            scratch: Scratch::default(),
            scores: Buffer::default(),
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
        let floats = |values: &[&[f32]]| values.iter().map(|v| v.len() * 4).sum();
        let step = |step: &Step| match &step.action {
            Action::Planes(layer) => layer.bytes(),
            Action::Vector(layer) => layer.bytes(),
            Action::Dense(a, b) | Action::Affine(a, b) | Action::LayerNorm(a, b, _) => floats(&[a, b]),
            Action::Tokens(embeddings) => floats(&[embeddings]),
            _ => 0,
        };
        self.steps.iter().map(step).sum()
    }

    /// `[batch, C, H, W]` → `[batch, features]`, both row-major.
    ///
    /// # Errors
    /// [`Error::Input`] if a slice does not have that length.
    pub fn run(&mut self, batch: usize, input: &[f32], output: &mut [f32]) -> Result<(), Error> {
        let wrong = |what, got, shape: Shape| {
            Err(Error::Input(format!("{what} has {got} numbers, not {batch} samples of {shape:?}")))
        };
        if Some(input.len()) != batch.checked_mul(self.input.len()) {
            return wrong("input", input.len(), self.input);
        }
        if Some(output.len()) != batch.checked_mul(self.output.len()) {
            return wrong("output", output.len(), self.output);
        }
        if batch == 0 {
            return Ok(());
        }
        let Self { steps, memory, scratch, scores, .. } = self;
        let first = Place { buffer: 0, shape: self.input };
        memory[0].grow(batch * first.sample() + PlaneLayer::SLACK);
        if first.is_vector() {
            memory[0][..input.len()].copy_from_slice(input);
        } else {
            let images = input.chunks_exact(self.input.len());
            for (image, planes) in images.zip(memory[0].chunks_exact_mut(first.sample())) {
                to_planes(image, self.input, planes);
            }
        }
        for step in &*steps {
            step.run(batch, memory, scratch, scores);
        }
        let last = steps.last().map_or(first, |step| step.output);
        let result = &memory[last.buffer];
        if last.is_vector() {
            output.copy_from_slice(&result[..output.len()]);
        } else {
            let samples = output.chunks_exact_mut(self.output.len());
            for (sample, planes) in samples.zip(result.chunks_exact(last.sample())) {
                from_planes(planes, self.output, sample);
            }
        }
        Ok(())
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

/// Joins additions and ReLUs to the layers whose results nobody else reads.
fn fuse(network: &Network) -> Vec<Fused> {
    let mut readers = vec![Vec::new(); network.nodes.len()];
    for (index, node) in network.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| readers[input].push(index));
    }
    let mut done = vec![false; network.nodes.len()];
    let mut steps = Vec::new();
    for (index, node) in network.nodes.iter().enumerate().skip(1) {
        if done[index] {
            continue;
        }
        let mut step = Fused { node: index, inputs: node.inputs.clone(), result: index, relu: false };
        if matches!(node.op, Op::Linear { .. } | Op::Conv2d { .. }) {
            if let [reader] = readers[step.result][..]
                && network.nodes[reader].op == Op::Add
                && let Some(&other) = network.nodes[reader].inputs.iter().find(|&&i| i != index)
                && other < index
            {
                step.inputs.push(other);
                step.result = reader;
            }
            if let [reader] = readers[step.result][..]
                && network.nodes[reader].op == Op::Relu
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

/// Chooses layout and kernel of one node by the shape of its input.
fn action(node: &Node, input: Shape, isa: Isa, threads: usize) -> Result<Action, Error> {
    let vector = input.positions() == 1;
    Ok(match &node.op {
        Op::Input(_) => unreachable!("only the first node, by `Network::shapes`"),
        Op::Linear { weight: Weight::Condensed(weight), bias } if vector => {
            Action::Vector(Box::new(LinearKernel::with_isa(weight, bias, isa)?))
        }
        Op::Linear { weight: Weight::Condensed(weight), bias } => {
            let rows = crate::layers::rows_of(weight);
            let plane = (input.positions(), input.stride());
            Action::Planes(Box::new(PlaneLayer::linear(isa, &rows, bias, plane, threads)))
        }
        Op::Linear { weight: Weight::Dense(weight), bias } if vector => {
            Action::Dense(transposed(weight, bias.len()), bias.clone())
        }
        Op::Linear { weight: Weight::Dense(weight), bias } => {
            let plane = (input.positions(), input.stride());
            Action::Planes(Box::new(PlaneLayer::dense_linear(isa, weight, bias, plane)))
        }
        Op::Conv2d { weight, bias, window, groups } => {
            let layer = match weight {
                Weight::Dense(weight) => {
                    PlaneLayer::dense_conv(isa, weight, bias, window, *groups, input, threads)
                }
                Weight::Condensed(weight) => {
                    let rows = crate::layers::rows_of(weight);
                    PlaneLayer::conv(isa, &rows, bias, window, *groups, input, threads)
                }
            };
            Action::Planes(Box::new(layer))
        }
        Op::Affine { scale, shift } => Action::Affine(scale.clone(), shift.clone()),
        Op::Relu => Action::Relu,
        Op::Gelu => Action::Gelu,
        Op::HardSigmoid => Action::HardSigmoid,
        Op::HardSwish => Action::HardSwish,
        Op::Add => Action::Add,
        Op::Scale => Action::Scale,
        Op::MaxPool(window) => Action::MaxPool(*window),
        Op::GlobalAvgPool => Action::GlobalAvgPool,
        Op::Flatten => Action::Flatten,
        Op::LayerNorm { scale, shift, epsilon } => Action::LayerNorm(scale.clone(), shift.clone(), *epsilon),
        Op::Tokens { class, positions } => {
            let (features, tokens) = (class.len(), positions.len() / class.len().max(1));
            let mut embeddings = vec![0.0; features * tokens];
            for (feature, row) in embeddings.chunks_exact_mut(tokens).enumerate() {
                for (token, value) in row.iter_mut().enumerate() {
                    *value = positions[token * features + feature];
                }
                row[0] += class[feature];
            }
            Action::Tokens(embeddings)
        }
        Op::Attention { heads } => Action::Attention(*heads),
        Op::ClassToken => Action::ClassToken,
    })
}

impl Step {
    fn run(&self, batch: usize, memory: &mut [Buffer], scratch: &mut Scratch, scores: &mut Buffer) {
        let (from, to) = (self.inputs[0], self.output);
        let mut out = std::mem::take(&mut memory[to.buffer]);
        out.grow(batch * to.sample() + PlaneLayer::SLACK);
        // In place, `x` is empty: `out` has the input already.
        let x = &memory[from.buffer];
        let second = self.inputs.get(1).map(|place| &memory[place.buffer][..batch * place.sample()]);
        self.compute(batch, x, second, &mut out, scratch, scores);
        memory[to.buffer] = out;
    }

    fn compute(
        &self,
        batch: usize,
        x: &Buffer,
        second: Option<&[f32]>,
        out: &mut Buffer,
        scratch: &mut Scratch,
        scores: &mut Buffer,
    ) {
        let (from, to) = (self.inputs[0], self.output);
        let (size, result) = (from.sample(), to.sample());
        let total = batch * result;
        // Pointwise operations work on `out`, where their input lies already or is copied to.
        let pointwise = |out: &mut [f32]| {
            if from.buffer != to.buffer {
                out[..total].copy_from_slice(&x[..total]);
            }
        };
        match &self.action {
            Action::Planes(layer) => {
                for sample in 0..batch {
                    let second = second.map(|s| &s[sample * result..][..result]);
                    let out = &mut out[sample * result..][..result];
                    layer.run(&x[sample * size..], out, second, self.relu, scratch);
                }
            }
            Action::Vector(layer) => {
                layer.run(batch, &x[..batch * size], &mut out[..total]);
                self.finish(&mut out[..total], second);
            }
            Action::Dense(weight, bias) => {
                dense(weight, bias, batch, x, &mut out[..total]);
                self.finish(&mut out[..total], second);
            }
            Action::Affine(scale, shift) => {
                pointwise(out);
                for sample in out[..total].chunks_exact_mut(result) {
                    for ((plane, scale), shift) in sample.chunks_exact_mut(to.stride()).zip(scale).zip(shift)
                    {
                        math::affine(plane, *scale, *shift);
                    }
                }
            }
            Action::Relu => {
                pointwise(out);
                math::in_parallel(&mut out[..total], math::relu);
            }
            Action::Gelu => {
                pointwise(out);
                math::in_parallel(&mut out[..total], math::gelu);
            }
            Action::HardSigmoid => {
                pointwise(out);
                math::in_parallel(&mut out[..total], math::hard_sigmoid);
            }
            Action::HardSwish => {
                pointwise(out);
                math::in_parallel(&mut out[..total], math::hard_swish);
            }
            Action::Scale => {
                let planes = out[..total].chunks_exact_mut(to.stride()).zip(x.chunks_exact(from.stride()));
                for ((out, plane), factor) in planes.zip(second.expect("checked")) {
                    out.iter_mut().zip(plane).for_each(|(out, x)| *out = x * factor);
                }
            }
            Action::Add => math::add(&x[..total], second.expect("checked"), &mut out[..total]),
            Action::MaxPool(window) => {
                for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(result)).take(batch) {
                    max_pool(window, from, to, x, out);
                }
            }
            Action::GlobalAvgPool => {
                let planes = x.chunks_exact(from.stride()).map(|plane| &plane[..from.shape.positions()]);
                for (out, plane) in out[..total].iter_mut().zip(planes) {
                    *out = plane.iter().sum::<f32>() / plane.len() as f32;
                }
            }
            Action::Flatten => {
                if from.is_vector() {
                    out[..total].copy_from_slice(&x[..total]);
                } else {
                    for (out, x) in out[..total].chunks_exact_mut(result).zip(x.chunks_exact(size)) {
                        from_planes(x, from.shape, out);
                    }
                }
            }
            Action::LayerNorm(scale, shift, epsilon) => {
                for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(result)).take(batch) {
                    if from.is_vector() {
                        layer_norm_vector(x, out, scale, shift, *epsilon);
                    } else {
                        math::layer_norm(x, out, from.stride(), scale, shift, *epsilon);
                    }
                }
            }
            Action::Tokens(embeddings) => {
                let (tokens, patches) = (to.shape.positions(), from.shape.positions());
                for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(result)).take(batch) {
                    let planes = x.chunks_exact(from.stride()).zip(embeddings.chunks_exact(tokens));
                    for (out, (plane, embedding)) in out.chunks_exact_mut(to.stride()).zip(planes) {
                        out[0] = embedding[0];
                        math::add(&plane[..patches], &embedding[1..], &mut out[1..tokens]);
                    }
                }
            }
            Action::Attention(heads) => {
                for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(result)).take(batch) {
                    attention(*heads, to, x, out, scores);
                }
            }
            Action::ClassToken => {
                for (out, plane) in out[..total].iter_mut().zip(x.chunks_exact(from.stride())) {
                    *out = plane[0];
                }
            }
        }
    }

    /// Residual and ReLU after layers whose kernels do not do it.
    fn finish(&self, out: &mut [f32], residual: Option<&[f32]>) {
        if let Some(residual) = residual {
            out.iter_mut().zip(residual).for_each(|(out, r)| *out += r);
        }
        if self.relu {
            math::relu(out);
        }
    }
}

/// A matrix with so many rows, column by column.
fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}

/// `out[b][n] = bias[n] + Σ x[b][m] · w[m][n]`.
fn dense(weight: &[f32], bias: &[f32], batch: usize, x: &[f32], out: &mut [f32]) {
    let n = bias.len().max(1);
    let m = weight.len() / n;
    for out in out.chunks_exact_mut(n) {
        out.copy_from_slice(bias);
    }
    let rows = |row| Strides { row, column: 1 };
    let threads = rayon::current_num_threads();
    math::add_matmul([batch, n, m], out, rows(n), x, rows(m), weight, rows(n), threads);
}

fn max_pool(window: &Window, from: Place, to: Place, x: &[f32], out: &mut [f32]) {
    let Window { kernel, stride, padding, dilation } = *window;
    // The input row or column that tap `k` of output `o` reads, if it lies in the image.
    let tap = |axis: usize, o: usize, k: usize, size: usize| {
        (o * stride[axis] + k * dilation[axis]).checked_sub(padding[axis]).filter(|&i| i < size)
    };
    let planes = out.par_chunks_exact_mut(to.stride()).zip(x.par_chunks_exact(from.stride()));
    planes.with_min_len(8).for_each(|(out, plane)| {
        for (oy, row) in out[..to.shape.positions()].chunks_exact_mut(to.shape.width).enumerate() {
            row.fill(f32::NEG_INFINITY);
            for y in (0..kernel[0]).filter_map(|k| tap(0, oy, k, from.shape.height)) {
                let line = &plane[y * from.shape.width..][..from.shape.width];
                for k in 0..kernel[1] {
                    for (ox, most) in row.iter_mut().enumerate() {
                        if let Some(x) = tap(1, ox, k, from.shape.width) {
                            *most = most.max(line[x]);
                        }
                    }
                }
            }
        }
    });
}

fn layer_norm_vector(x: &[f32], out: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let count = x.len() as f32;
    let mean = x.iter().sum::<f32>() / count;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    let norm = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
        *out = (x - mean) * norm * scale + shift;
    }
}

/// `softmax(Kᵀ Q / √d)` weighs `V`, for each head, on planes `[features][tokens]`.
fn attention(heads: usize, to: Place, qkv: &[f32], out: &mut [f32], scores: &mut Buffer) {
    let (stride, tokens) = (to.stride(), to.shape.positions());
    let size = to.shape.features / heads;
    let (q, kv) = qkv.split_at(to.sample());
    let (k, v) = kv.split_at(to.sample());
    // Each head has its scores `[keys][queries]` and one plane for sums.
    let space = (tokens + 1) * stride;
    scores.grow(heads * space);
    let rows = Strides { row: stride, column: 1 };
    let columns = Strides { row: 1, column: stride };
    let scale = 1.0 / (size as f32).sqrt();
    out.par_chunks_exact_mut(size * stride).zip(scores.par_chunks_exact_mut(space)).enumerate().for_each(
        |(head, (out, scores))| {
            let part = |x: &'_ [f32]| -> std::ops::Range<usize> {
                debug_assert!(x.len() >= (head + 1) * size * stride);
                head * size * stride..(head + 1) * size * stride
            };
            let (scores, sums) = scores.split_at_mut(tokens * stride);
            math::matmul(
                [tokens, tokens, size],
                scores,
                rows,
                &k[part(k)],
                columns,
                &q[part(q)],
                rows,
                scale,
                1,
            );
            math::softmax_columns(scores, stride, sums);
            math::matmul([size, tokens, tokens], out, rows, &v[part(v)], rows, scores, rows, 1.0, 1);
        },
    );
}
