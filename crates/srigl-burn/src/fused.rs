//! What networks do between sparse layers, with forward and backward passes that go over memory as few times as they can.
//!
//! Each function does what Burn's module does and has its gradients. On `Device::flex()` and `Device::ndarray()` it runs
//! [`condensed::training`], on rayon's current thread pool; elsewhere, and on other float types, Burn's own operations.
//!
//! ```
//! use burn::nn::conv::Conv2dConfig;
//! use burn::nn::pool::MaxPool2dConfig;
//! use burn::nn::BatchNormConfig;
//! use burn::tensor::{Device, Distribution, Tensor};
//! use srigl_burn::{SparseConv2d, fused};
//!
//! let device = Device::flex().autodiff();
//! let conv = SparseConv2d::from(Conv2dConfig::new([3, 8], [3, 3]).init(&device));
//! let (norm, pool) = (BatchNormConfig::new(8).init(&device), MaxPool2dConfig::new([2, 2]).init());
//! let x = Tensor::<4>::random([2, 3, 10, 10], Distribution::Default, &device);
//! let y = fused::max_pool2d(&pool, fused::batch_norm_relu(&norm, conv.forward(x)));
//! assert_eq!(y.dims(), [2, 8, 4, 4]);
//! let gradients = y.sum().backward();
//! assert!(norm.gamma.grad(&gradients).is_some());
//! ```

// Burn deprecates the NdArray backend, but users of it are served as well.
#![allow(deprecated)]

use crate::active_weight::numbers_of;
use crate::conv_geometry::ConvGeometry;
use crate::memory::{give, take};
use crate::sparse_ops::{InMemory, tensor, trains_on_cpu};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchTensor, Flex, NdArray, TensorMetadata, backend_extension,
};
use burn::nn::pool::MaxPool2d;
use burn::nn::{BatchNorm, Dropout, LayerNorm};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};
use condensed::Shape;
use condensed::training::{self, Attention, MaxPool, Moments};
use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

/// `max(x, 0)`; NaN stays.
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !runs(&x) {
        return burn::tensor::activation::relu(x);
    }
    let dims = x.dims();
    run(x, vec![], dims, Arc::new(Relu))
}

/// `x · Φ(x)`, to within 1e-7.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !runs(&x) {
        return burn::tensor::activation::gelu(x);
    }
    let dims = x.dims();
    run(x, vec![], dims, Arc::new(Pointwise { function: training::gelu, gradient: training::gelu_gradient }))
}

/// `x` times its hard sigmoid, `x/6 + 1/2` within 0 and 1.
pub fn hard_swish<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !runs(&x) {
        return x.clone() * (x / 6.0 + 0.5).clamp(0.0, 1.0);
    }
    let dims = x.dims();
    run(
        x,
        vec![],
        dims,
        Arc::new(Pointwise { function: training::hard_swish, gradient: training::hard_swish_gradient }),
    )
}

/// [`Dropout::forward`], with a choice that one number of the device's generator seeds.
pub fn dropout<const D: usize>(module: &Dropout, x: Tensor<D>) -> Tensor<D> {
    if !module.training.is_enabled() || !x.device().is_autodiff() || module.prob == 0.0 || !runs(&x) {
        return module.forward(x);
    }
    let device = x.device().without_autodiff();
    let seed = Tensor::<1, Int>::random([1], Distribution::Default, &device);
    let seed = numbers_of(seed)[0] as u64;
    let dims = x.dims();
    run(x, vec![], dims, Arc::new(DropSome { share: module.prob, seed }))
}

/// [`MaxPool2d::forward`].
pub fn max_pool2d(module: &MaxPool2d, x: Tensor<4>) -> Tensor<4> {
    let [batch, features, height, width] = x.dims();
    let geometry = ConvGeometry {
        kernel_size: module.kernel_size,
        stride: module.stride,
        dilation: module.dilation,
        groups: 1,
        padding: module.padding.clone(),
    };
    let pool = geometry
        .even_padding(height, width)
        .and_then(|padding| MaxPool::new(geometry.window(padding), Shape { features, height, width }).ok());
    match pool {
        Some(pool) if runs(&x) && !module.ceil_mode => {
            let Shape { features, height, width } = pool.output_shape();
            run(x, vec![], [batch, features, height, width], Arc::new(Pool { pool, taps: OnceLock::new() }))
        }
        _ => module.forward(x),
    }
}

/// [`BatchNorm::forward`].
pub fn batch_norm(module: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    normalise(module, x, None, false)
}

/// ReLU of batch normalisation.
pub fn batch_norm_relu(module: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    normalise(module, x, None, true)
}

/// ReLU of a shortcut and batch normalisation: the end of a residual block.
pub fn batch_norm_add_relu(module: &BatchNorm, x: Tensor<4>, shortcut: Tensor<4>) -> Tensor<4> {
    normalise(module, x, Some(shortcut), true)
}

fn normalise(module: &BatchNorm, x: Tensor<4>, residual: Option<Tensor<4>>, relu: bool) -> Tensor<4> {
    let dims = x.dims();
    let [_, channels, height, width] = dims;
    let trains = module.training.is_enabled();
    // With moments of its own and gradients, a layer is frozen; planes of one pixel are rows of a matrix.
    let is_frozen = x.device().is_autodiff() && !trains;
    let fits = height * width > 1 && channels == module.gamma.dims()[0];
    if !runs(&x) || is_frozen || !fits || module.gamma.val().dtype() != DType::F32 {
        let y = module.forward(x);
        let y = match residual {
            Some(residual) => y + residual,
            None => y,
        };
        return if relu { burn::tensor::activation::relu(y) } else { y };
    }
    let known = (!x.device().is_autodiff()).then(|| {
        let numbers = |x: Tensor<1>| x.into_data().try_into_vec().expect("f32");
        Moments { mean: numbers(module.running_mean.value()), variance: numbers(module.running_var.value()) }
    });
    let norm =
        training::BatchNorm { channels, positions: height * width, epsilon: module.epsilon as f32, relu };
    let op = Arc::new(Normalise { norm, has_residual: residual.is_some(), known, found: OnceLock::new() });
    let (gamma, beta) = (module.gamma.val(), module.beta.val());
    let mut others = vec![gamma.into_dispatch(), beta.into_dispatch()];
    others.extend(residual.map(Tensor::into_dispatch));
    let y = run(x, others, dims, op.clone());
    if let Some(Moments { mean, variance }) = op.found.get() {
        for (state, found) in [(&module.running_mean, mean), (&module.running_var, variance)] {
            let before = state.value_sync();
            let found = Tensor::from_data(TensorData::new(found.clone(), [channels]), &before.device());
            state.update((before * (1.0 - module.momentum) + found * module.momentum).detach());
        }
    }
    y
}

/// [`LayerNorm::forward`]; `epsilon` is that of the module, which does not tell it.
pub fn layer_norm<const D: usize>(module: &LayerNorm, epsilon: f64, x: Tensor<D>) -> Tensor<D> {
    let (dims, gamma) = (x.dims(), module.gamma.val());
    let features = gamma.dims()[0];
    if !runs(&x) || dims[D - 1] != features || gamma.dtype() != DType::F32 {
        return module.forward(x);
    }
    let beta = match &module.beta {
        Some(beta) => beta.val(),
        None => Tensor::zeros([features], &x.device()),
    };
    let norm = training::LayerNorm { epsilon: epsilon as f32 };
    run(x, vec![gamma.into_dispatch(), beta.into_dispatch()], dims, Arc::new(norm))
}

/// Multi-head self-attention: from queries, keys and values side by side, `[batch, tokens, 3 · d]`, to `[batch, tokens, d]`.
///
/// # Panics
/// If `heads` does not divide `d`, or 3 the last dimension.
pub fn attention(qkv: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, tokens, joint] = qkv.dims();
    let features = joint / 3;
    assert!(
        joint == 3 * features && features.is_multiple_of(heads),
        "{heads} heads of queries, keys and values"
    );
    if runs(&qkv) {
        let attention = Attention { heads, tokens, features };
        let op = Attend { attention, softmax: OnceLock::new() };
        return run(qkv, vec![], [batch, tokens, features], Arc::new(op));
    }
    let size = features / heads;
    let qkv = qkv.reshape([batch, tokens, 3, heads, size]);
    let part = |i: usize| {
        let part = qkv.clone().slice_dim(2, i..i + 1).reshape([batch, tokens, heads, size]);
        part.swap_dims(1, 2)
    };
    let scores = part(0).matmul(part(1).swap_dims(2, 3)) / (size as f64).sqrt();
    let mixed: Tensor<4> = softmax(scores, 3).matmul(part(2));
    mixed.swap_dims(1, 2).reshape([batch, tokens, features])
}

/// Whether the operations here run on this tensor.
fn runs<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && trains_on_cpu(&x.device()) && !x.dims().contains(&0)
}

/// An operation on f32 in memory. What the backward pass needs beside tensors, the forward pass leaves in it.
pub(crate) trait Fused: Debug + Send + Sync {
    /// Whether the result takes the place of the only input.
    fn is_in_place(&self) -> bool {
        false
    }

    /// Whether the backward pass reads the inputs and the result; it gets no numbers of others.
    fn reads(&self) -> Reads;

    /// The result.
    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32>;

    /// The gradients by all inputs from that by the result.
    fn backward(&self, inputs: &[Cow<'_, [f32]>], y: &[f32], dy: Vec<f32>) -> Vec<Vec<f32>>;
}

/// What a backward pass reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads {
    inputs: bool,
    result: bool,
}

const NOTHING: Reads = Reads { inputs: false, result: false };
const INPUTS: Reads = Reads { inputs: true, result: false };
const RESULT: Reads = Reads { inputs: false, result: true };

#[derive(Debug)]
struct Relu;

impl Fused for Relu {
    fn is_in_place(&self) -> bool {
        true
    }

    fn reads(&self) -> Reads {
        RESULT
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [x] = of(inputs);
        let mut x = x.into_owned();
        training::relu(&mut x);
        x
    }

    fn backward(&self, _inputs: &[Cow<'_, [f32]>], y: &[f32], mut dy: Vec<f32>) -> Vec<Vec<f32>> {
        training::relu_gradient(y, &mut dy);
        vec![dy]
    }
}

/// A function of each number, whose slope follows from its argument.
#[derive(Debug)]
struct Pointwise {
    function: fn(&[f32], &mut [f32]),
    gradient: fn(&[f32], &mut [f32]),
}

impl Fused for Pointwise {
    fn reads(&self) -> Reads {
        INPUTS
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let mut y = take(inputs[0].len());
        (self.function)(&inputs[0], &mut y);
        y
    }

    fn backward(&self, inputs: &[Cow<'_, [f32]>], _y: &[f32], mut dy: Vec<f32>) -> Vec<Vec<f32>> {
        (self.gradient)(&inputs[0], &mut dy);
        vec![dy]
    }
}

#[derive(Debug)]
struct DropSome {
    share: f64,
    seed: u64,
}

impl Fused for DropSome {
    fn is_in_place(&self) -> bool {
        true
    }

    fn reads(&self) -> Reads {
        NOTHING
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [x] = of(inputs);
        let mut x = x.into_owned();
        training::dropout(&mut x, self.share, self.seed);
        x
    }

    fn backward(&self, _inputs: &[Cow<'_, [f32]>], _y: &[f32], mut dy: Vec<f32>) -> Vec<Vec<f32>> {
        training::dropout(&mut dy, self.share, self.seed);
        vec![dy]
    }
}

#[derive(Debug)]
struct Pool {
    pool: MaxPool,
    taps: OnceLock<Vec<u8>>,
}

impl Fused for Pool {
    fn reads(&self) -> Reads {
        NOTHING
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [x] = of(inputs);
        let results = x.len() / self.pool.input_shape().len() * self.pool.output_shape().len();
        let (mut y, mut taps) = (take(results), vec![0; results]);
        self.pool.forward(&x, &mut y, &mut taps);
        self.taps.set(taps).expect("an operation runs once");
        y
    }

    fn backward(&self, _inputs: &[Cow<'_, [f32]>], _y: &[f32], dy: Vec<f32>) -> Vec<Vec<f32>> {
        let mut dx = take(dy.len() / self.pool.output_shape().len() * self.pool.input_shape().len());
        self.pool.backward(&dy, self.taps.get().expect("the forward pass comes first"), &mut dx);
        give(dy);
        vec![dx]
    }
}

/// Batch normalisation and what follows it, by moments that are known or those of the batch.
#[derive(Debug)]
struct Normalise {
    norm: training::BatchNorm,
    has_residual: bool,
    known: Option<Moments>,
    found: OnceLock<Moments>,
}

impl Fused for Normalise {
    fn reads(&self) -> Reads {
        Reads { inputs: true, result: self.has_residual }
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [x, gamma, beta] = [0, 1, 2].map(|i| &*inputs[i]);
        let residual = inputs.get(3).map(|residual| &**residual);
        let mut y = take(x.len());
        match &self.known {
            Some(known) => self.norm.apply(x, known, gamma, beta, residual, &mut y),
            None => {
                let found = self.norm.forward(x, gamma, beta, residual, &mut y);
                self.found.set(found).expect("an operation runs once");
            }
        }
        y
    }

    fn backward(&self, inputs: &[Cow<'_, [f32]>], y: &[f32], mut dy: Vec<f32>) -> Vec<Vec<f32>> {
        let [x, gamma, beta] = [0, 1, 2].map(|i| &*inputs[i]);
        let mut dresidual = inputs.get(3).map(|residual| take(residual.len()));
        let (mut dgamma, mut dbeta) = (vec![0.0; gamma.len()], vec![0.0; gamma.len()]);
        let moments = self.found.get().expect("the forward pass comes first");
        let residual = dresidual.as_deref_mut().map(|dresidual| (y, dresidual));
        self.norm.backward(x, moments, gamma, beta, &mut dy, residual, &mut dgamma, &mut dbeta);
        [dy, dgamma, dbeta].into_iter().chain(dresidual).collect()
    }
}

impl Fused for training::LayerNorm {
    fn reads(&self) -> Reads {
        INPUTS
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [x, gamma, beta] = of(inputs);
        let mut y = take(x.len());
        training::LayerNorm::forward(self, &x, &gamma, &beta, &mut y);
        y
    }

    fn backward(&self, inputs: &[Cow<'_, [f32]>], _y: &[f32], mut dy: Vec<f32>) -> Vec<Vec<f32>> {
        let (x, gamma) = (&inputs[0], &inputs[1]);
        let (mut dgamma, mut dbeta) = (vec![0.0; gamma.len()], vec![0.0; gamma.len()]);
        training::LayerNorm::backward(self, x, gamma, &mut dy, &mut dgamma, &mut dbeta);
        vec![dy, dgamma, dbeta]
    }
}

#[derive(Debug)]
struct Attend {
    attention: Attention,
    softmax: OnceLock<Vec<f32>>,
}

impl Fused for Attend {
    fn reads(&self) -> Reads {
        INPUTS
    }

    fn forward(&self, inputs: Vec<Cow<'_, [f32]>>) -> Vec<f32> {
        let [qkv] = of(inputs);
        let Attention { heads, tokens, features } = self.attention;
        let mut y = take(qkv.len() / 3);
        let mut softmax = take(y.len() / features * heads * tokens);
        self.attention.forward(&qkv, &mut y, &mut softmax);
        self.softmax.set(softmax).expect("an operation runs once");
        y
    }

    fn backward(&self, inputs: &[Cow<'_, [f32]>], _y: &[f32], dy: Vec<f32>) -> Vec<Vec<f32>> {
        let mut dqkv = take(inputs[0].len());
        let softmax = self.softmax.get().expect("the forward pass comes first");
        self.attention.backward(&inputs[0], softmax, &dy, &mut dqkv);
        give(dy);
        vec![dqkv]
    }
}

fn of<const N: usize>(inputs: Vec<Cow<'_, [f32]>>) -> [Cow<'_, [f32]>; N] {
    inputs.try_into().unwrap_or_else(|inputs: Vec<_>| panic!("{N} inputs, not {}", inputs.len()))
}

/// A call of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    op: Arc<dyn Fused>,
    /// Tensors that it reads.
    inputs: usize,
    /// Of the result.
    dims: Vec<usize>,
}

/// Operations on f32 in memory; `Dispatch` calls them for the tensors' own backend.
#[backend_extension(Flex, NdArray, Autodiff)]
pub(crate) trait FusedOps: Backend {
    /// The result of `call`, which reads as many of the tensors as it says; Burn passes no lists of them.
    fn fused(
        x: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        fourth: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;
}

/// Tensors that operations can read.
const MOST: usize = 4;

fn run<const F: usize, const D: usize>(
    x: Tensor<F>,
    others: Vec<DispatchTensor>,
    dims: [usize; D],
    op: Arc<dyn Fused>,
) -> Tensor<D> {
    let call = Call { op, inputs: 1 + others.len(), dims: dims.to_vec() };
    let nothing = Tensor::<1>::empty([0], &x.device());
    let mut others = others.into_iter();
    let mut next = || others.next().unwrap_or_else(|| nothing.clone().into_dispatch());
    let (second, third, fourth) = (next(), next(), next());
    Tensor::from_dispatch(Dispatch::fused(x.into_dispatch(), second, third, fourth, call))
}

fn forward<B: InMemory>(tensors: [FloatTensor<B>; MOST], Call { op, inputs, dims }: Call) -> FloatTensor<B> {
    let device = tensors[0].device();
    let y = if op.is_in_place() {
        let [x, ..] = tensors;
        op.forward(vec![B::into_numbers(x).into()])
    } else {
        op.forward(tensors[..inputs].iter().map(B::numbers).collect())
    };
    tensor::<B>(y, dims, &device)
}

impl FusedOps for Flex {
    fn fused(
        x: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        fourth: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        forward::<Self>([x, second, third, fourth], call)
    }
}

impl FusedOps for NdArray {
    fn fused(
        x: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        fourth: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        forward::<Self>([x, second, third, fourth], call)
    }
}

/// The backward pass.
#[derive(Debug)]
struct FusedBackward;

/// What the backward pass reads.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    op: Arc<dyn Fused>,
    /// Dimensions of all inputs.
    dims: Vec<Vec<usize>>,
    inputs: Vec<FloatTensor<B>>,
    result: Option<FloatTensor<B>>,
}

impl<B: InMemory> Backward<B, MOST> for FusedBackward {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, MOST>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let device = dy.device();
        let Saved { op, dims, inputs, result } = ops.state;
        let gradients = {
            let inputs: Vec<_> = inputs.iter().map(B::numbers).collect();
            let result = result.as_ref().map(B::numbers).unwrap_or_default();
            op.backward(&inputs, &result, B::into_numbers(dy))
        };
        inputs.into_iter().chain(result).for_each(B::recycle);
        for ((parent, gradient), dims) in ops.parents.into_iter().zip(gradients).zip(dims) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, tensor::<B>(gradient, dims, &device));
            }
        }
    }
}

impl<B: InMemory + FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn fused(
        x: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        fourth: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let tensors = [x, second, third, fourth];
        let nodes = tensors.each_ref().map(|tensor| tensor.node());
        let tensors = tensors.map(|tensor| tensor.into_primitive());
        let run = |[x, second, third, fourth]: [FloatTensor<B>; MOST], call| {
            B::fused(x, second, third, fourth, call)
        };
        match FusedBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (op, reads) = (call.op.clone(), call.op.reads());
                let inputs = &tensors[..call.inputs];
                let dims = inputs.iter().map(|input| input.shape().to_vec()).collect();
                let inputs = if reads.inputs { inputs.to_vec() } else { Vec::new() };
                let y = run(tensors, call);
                let result = reads.result.then(|| y.clone());
                prep.finish(Saved { op, dims, inputs, result }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(run(tensors, call)),
        }
    }
}
