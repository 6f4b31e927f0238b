//! How Burn reaches the kernels of the `condensed` crate.

// Burn deprecates the NdArray backend, but users of it are served as well.
#![allow(deprecated)]

use crate::layout::Layout;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, DispatchDevice, Flex, NdArray, TensorMetadata, backend_extension, read_sync};
use burn::tensor::{Device, Tensor, TensorData};
use condensed::{CondensedWeight, ConvKernel, Error, LinearKernel, WeightError};
use sparsity_core::Mask;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The kernels as operations of Burn's CPU backends; `Dispatch` calls that of the tensor's own.
#[backend_extension(Flex, NdArray)]
pub(crate) trait CondensedOps: Backend {
    /// `[…, M]` → `[…, N]` in f32.
    fn condensed_linear(input: FloatTensor<Self>, kernel: &LinearKernel) -> FloatTensor<Self> {
        let mut dims = input.shape().to_vec();
        let inputs = dims.pop().expect("a linear layer's input has a dimension");
        // Not a quotient of lengths, which an empty tensor would leave open.
        let batch = dims.iter().product();
        debug_assert_eq!(inputs, kernel.weight().inputs());
        dims.push(kernel.weight().neurons());
        in_memory::<Self>(input, dims, |input, output| kernel.run(batch, input, output))
    }

    /// `[batch, C, H, W]` → `[batch, C', H', W']` in f32.
    fn condensed_conv2d(input: FloatTensor<Self>, kernel: &ConvKernel) -> FloatTensor<Self> {
        let batch = input.shape()[0];
        let output = kernel.output_shape();
        let dims = vec![batch, output.features, output.height, output.width];
        in_memory::<Self>(input, dims, |input, output| kernel.run(batch, input, output))
    }
}

impl CondensedOps for Flex {}
impl CondensedOps for NdArray {}

/// Runs a kernel on a tensor of a CPU backend. Data is copied only if other tensors share it.
fn in_memory<B: Backend>(
    input: FloatTensor<B>,
    output_dims: Vec<usize>,
    run: impl FnOnce(&[f32], &mut [f32]),
) -> FloatTensor<B> {
    let device = input.device();
    let input = read_sync(B::float_into_data(input)).expect("CPU tensors can be read at any time");
    let mut output = vec![0.0; output_dims.iter().product()];
    run(input.as_slice().expect("modules cast to f32"), &mut output);
    B::float_from_data(TensorData::new(output, output_dims), &device)
}

/// Whether [`CondensedOps`] runs on tensors of this device. On an autodiff device it does not: the kernels
/// compute no gradients.
pub(crate) fn has_kernels(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Flex(_) | DispatchDevice::NdArray(_))
}

/// Dense weights and bias, made once for each device without kernels that asks for them.
#[derive(Debug, Default)]
pub(crate) struct DenseCopies<const D: usize>(Mutex<Vec<(Device, Tensor<D>, Tensor<1>)>>);

impl<const D: usize> DenseCopies<D> {
    /// Weights of Burn's dimensions `dims` and bias on a device, constants for autodiff.
    pub fn on(
        &self,
        device: &Device,
        weight: &CondensedWeight,
        bias: &[f32],
        layout: Layout,
        dims: [usize; D],
    ) -> (Tensor<D>, Tensor<1>) {
        let device = device.clone().without_autodiff();
        let known = |copies: &[(Device, Tensor<D>, Tensor<1>)]| {
            copies.iter().find(|(on, ..)| *on == device).map(|(_, w, b)| (w.clone(), b.clone()))
        };
        if let Some(copy) = known(&lock(&self.0)) {
            return copy;
        }
        // Made without the lock: no thread may wait for it inside Burn.
        let weight = layout.tensor_of_rows(weight.to_dense(), dims, &device);
        let bias = Tensor::from_data(TensorData::new(bias.to_vec(), [bias.len()]), &device);
        let mut copies = lock(&self.0);
        known(&copies).unwrap_or_else(|| {
            copies.push((device, weight.clone(), bias.clone()));
            (weight, bias)
        })
    }
}

/// Condenses a Burn weight of any float type where `mask` `[N, M]` is active.
pub(crate) fn condense<const D: usize>(
    layout: Layout,
    weight: Tensor<D>,
    mask: &Mask,
) -> Result<CondensedWeight, Error> {
    let dims = layout.out_in_dims(&weight.dims());
    let (neurons, inputs) = (dims[0], dims[1..].iter().product());
    let shape = [mask.neurons(), mask.dense_fan_in()];
    if shape != [neurons, inputs] {
        return Err(WeightError::MaskShape { mask: shape, neurons, inputs }.into());
    }
    let bits: Vec<bool> = mask.to_bytes().iter().map(|byte| *byte == 1).collect();
    CondensedWeight::from_masked(&layout.to_rows(weight), &bits, neurons, inputs)
}

/// The bias `[neurons]`, zeros if there is none.
pub(crate) fn bias_values(bias: Option<Tensor<1>>, neurons: usize) -> Vec<f32> {
    bias.map_or_else(|| vec![0.0; neurons], |bias| Layout::OutIn.to_rows(bias))
}

/// A panic of another thread leaves nothing half-written behind these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
