//! Layers that train in condensed form, as operations of Burn's CPU backends with backward passes of their own.

// Burn deprecates the NdArray backend, but users of it are served as well.
#![allow(deprecated)]

use crate::active_weight::{Capture, DensePass};
use crate::condensed_ops::{has_kernels, lock};
use crate::memory;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, NdArray, TensorMetadata, backend_extension, read_sync};
use burn::tensor::{Device, TensorData};
use condensed::training::{LaidOut, Layer, Scratch};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock};

/// A call of a layer.
#[derive(Clone, Debug)]
pub(crate) struct SparseCall {
    pub layer: Arc<Layer>,
    /// What its backward pass leaves for topology updates.
    pub capture: Arc<Capture>,
    /// Samples.
    pub batch: usize,
    /// Of the result.
    pub dims: Vec<usize>,
}

/// Sparse layers as an operation; `Dispatch` calls that of the tensor's own backend.
#[backend_extension(Flex, NdArray, Autodiff)]
pub(crate) trait SparseOps: Backend {
    /// `y = W x + b` in f32, where `W` has these values at the layer's active positions.
    fn sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        call: SparseCall,
    ) -> FloatTensor<Self>;
}

/// A backend whose tensors lie in memory.
pub(crate) trait InMemory: Backend {
    /// The numbers of an f32 tensor, row-major; copied only if they do not lie so.
    fn numbers(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;

    /// The same for whoever changes them; copied also if the tensor shares them.
    fn into_numbers(tensor: FloatTensor<Self>) -> Vec<f32> {
        let data = read_sync(Self::float_into_data(tensor)).expect("CPU tensors can be read at any time");
        data.try_into_vec().expect("modules cast to f32")
    }

    /// Keeps the memory of a tensor that is not needed any more, if nobody else has it.
    fn recycle(tensor: FloatTensor<Self>);
}

impl InMemory for Flex {
    fn numbers(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match tensor.as_slice() {
            Some(numbers) => numbers.into(),
            None => Self::into_numbers(tensor.clone()).into(),
        }
    }

    fn recycle(tensor: FloatTensor<Self>) {
        if tensor.is_unique() && tensor.as_slice::<f32>().is_some() {
            memory::give(Self::into_numbers(tensor));
        }
    }
}

impl InMemory for NdArray {
    fn numbers(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        Self::into_numbers(tensor.clone()).into()
    }

    // Its memory is not ours.
    fn recycle(_tensor: FloatTensor<Self>) {}
}

/// Memory of layers that run at the same time: each takes one, and puts it back.
static SCRATCH: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

/// # Panics
/// If the layer needs more memory than there may be.
fn with_scratch(run: impl FnOnce(&mut Scratch) -> Result<(), condensed::Error>) {
    let mut scratch = lock(&SCRATCH).pop().unwrap_or_default();
    run(&mut scratch).unwrap_or_else(|error| panic!("{error}"));
    lock(&SCRATCH).push(scratch);
}

/// A new tensor.
pub(crate) fn tensor<B: Backend>(numbers: Vec<f32>, dims: Vec<usize>, device: &B::Device) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(numbers, dims), device)
}

fn forward<B: InMemory>(
    input: FloatTensor<B>,
    values: FloatTensor<B>,
    bias: FloatTensor<B>,
    SparseCall { layer, batch, dims, .. }: SparseCall,
) -> FloatTensor<B> {
    let mut output = memory::take(dims.iter().product());
    with_scratch(|scratch| {
        let (values, bias) = (B::numbers(&values), B::numbers(&bias));
        let values = &values[..layer.weights()];
        layer.forward(values, Some(&bias), batch, &B::numbers(&input), &mut output, scratch)
    });
    tensor::<B>(output, dims, &input.device())
}

impl SparseOps for Flex {
    fn sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        call: SparseCall,
    ) -> FloatTensor<Self> {
        forward::<Self>(input, values, bias, call)
    }
}

impl SparseOps for NdArray {
    fn sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        call: SparseCall,
    ) -> FloatTensor<Self> {
        forward::<Self>(input, values, bias, call)
    }
}

/// What a backward pass leaves: nothing is copied, or laid out, before the update that asks for it.
#[derive(Debug)]
struct CpuPass<B: InMemory> {
    layer: Arc<Layer>,
    batch: usize,
    /// Input and gradient by the result; there until the end.
    tensors: Option<[FloatTensor<B>; 2]>,
    laid_out: OnceLock<LaidOut>,
}

impl<B: InMemory> Drop for CpuPass<B> {
    fn drop(&mut self) {
        self.tensors.take().into_iter().flatten().for_each(B::recycle);
    }
}

impl<B: InMemory> DensePass for CpuPass<B> {
    fn size(&self) -> [usize; 2] {
        [self.layer.neurons(), self.layer.inputs()]
    }

    fn add_dense_gradient(&self, neurons: &[usize], to: &mut [f32]) {
        let laid_out = self.laid_out.get_or_init(|| {
            let [x, dy] = self.tensors.as_ref().expect("taken on drop").each_ref().map(B::numbers);
            self.layer.lay_out(self.batch, &x, &dy).unwrap_or_else(|error| panic!("{error}"))
        });
        self.layer.add_dense_gradient(neurons, laid_out, to);
    }
}

/// The backward pass.
#[derive(Debug)]
struct SparseLayerBackward;

impl<B: InMemory + SparseOps> Backward<B, 3> for SparseLayerBackward {
    /// Where input and values are kept, and the call.
    type State = (NodeId, NodeId, SparseCall);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [of_input, of_values, of_bias] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (input, values, SparseCall { layer, capture, batch, .. }) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(input);
        let values: FloatTensor<B> = checkpointer.retrieve_node_output(values);
        let device = x.device();
        let (x_dims, values_dims) = (x.shape().to_vec(), values.shape().to_vec());
        let (x_tensor, dy_tensor) = (x, dy);
        let (x, values, dy) = (B::numbers(&x_tensor), B::numbers(&values), B::numbers(&dy_tensor));
        if let Some(node) = of_bias {
            let mut dbias = vec![0.0; layer.neurons()];
            layer.bias_gradient(batch, &dy, &mut dbias);
            let dims = vec![dbias.len()];
            grads.register::<B>(node.id, tensor::<B>(dbias, dims, &device));
        }
        if of_input.is_none() && of_values.is_none() {
            return;
        }
        let mut dx = of_input.is_some().then(|| memory::take(x.len()));
        let mut dvalues = vec![0.0; values.len()];
        with_scratch(|scratch| {
            let weights = layer.weights();
            let (values, dvalues) = (&values[..weights], &mut dvalues[..weights]);
            layer.backward(values, batch, &x, &dy, dx.as_deref_mut(), dvalues, scratch)
        });
        drop((x, dy));
        if of_values.is_some() && capture.is_wanted() {
            let (tensors, laid_out) = (Some([x_tensor, dy_tensor]), OnceLock::new());
            capture.put(Arc::new(CpuPass::<B> { layer, batch, tensors, laid_out }));
        } else {
            B::recycle(dy_tensor);
            B::recycle(x_tensor);
        }
        if let (Some(node), Some(dx)) = (of_input, dx) {
            grads.register::<B>(node.id, tensor::<B>(dx, x_dims, &device));
        }
        if let Some(node) = of_values {
            grads.register::<B>(node.id, tensor::<B>(dvalues, values_dims, &device));
        }
    }
}

impl<B: InMemory + SparseOps, C: CheckpointStrategy> SparseOps for Autodiff<B, C> {
    fn sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        call: SparseCall,
    ) -> FloatTensor<Self> {
        let nodes = [input.node(), values.node(), bias.node()];
        match SparseLayerBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&input), prep.checkpoint(&values), call.clone());
                let output = B::sparse_layer(
                    input.into_primitive(),
                    values.into_primitive(),
                    bias.into_primitive(),
                    call,
                );
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::sparse_layer(
                input.into_primitive(),
                values.into_primitive(),
                bias.into_primitive(),
                call,
            )),
        }
    }
}

/// Whether [`SparseOps`] runs on tensors of this device, with autodiff or without.
pub(crate) fn trains_on_cpu(device: &Device) -> bool {
    has_kernels(&device.clone().without_autodiff())
}

/// Whether layers train in condensed form on this device if nobody says; `None` if they cannot.
pub(crate) fn trains_condensed(device: &Device) -> Option<bool> {
    #[cfg(feature = "gpu")]
    if crate::gpu::device(&device.clone().without_autodiff()).is_some() {
        return Some(false);
    }
    trains_on_cpu(device).then_some(true)
}
