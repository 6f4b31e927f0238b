//! A linear layer in condensed form.

use crate::condensed_ops::{CondensedOps, DenseCopies, bias_values, condense, has_kernels};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::layout::Layout;
#[cfg(feature = "gpu")]
use crate::place::Place;
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::Linear;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Tensor};
use condensed::{CondensedWeight, Error, FanIn, LinearKernel};
use sparsity_core::Mask;
use std::sync::Arc;

/// A trained sparse linear layer in condensed form, for inference: `y = x · Wᵀ + b` over the last dimension.
///
/// On `Device::flex()` and `Device::ndarray()` it runs the kernels of the [`condensed`] crate, on rayon's
/// current thread pool. With the feature `cuda` (or `webgpu`) it runs CubeCL kernels on the GPU, in f16, bf16
/// or f32 with sums in f32; weights are rounded to the input's type and stay on the device after the first
/// call. On any other device, and on an autodiff device, it runs Burn's dense operation on a copy of the
/// weights with their zeros, so results are right everywhere and gradients reach the input.
///
/// The weights are fixed: an optimizer does not see them, and Burn's records do not hold them. Clones share
/// them.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::{CondensedLinear, Mask};
///
/// let device = Device::flex();
/// let layer = LinearConfig::new(4, 2).init(&device);
/// // Two neurons with one input each; after training, masks come from `Topology::layers`.
/// let mask = Mask::from_bytes(2, 4, &[0, 1, 0, 0, 0, 0, 0, 1])?;
/// let condensed = CondensedLinear::from_linear(&layer, &mask)?;
/// assert_eq!(condensed.weight().values().len(), 2);
/// assert_eq!(condensed.forward(Tensor::<2>::ones([3, 4], &device)).dims(), [3, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CondensedLinear {
    #[module(skip)]
    kernel: Arc<LinearKernel>,
    #[module(skip)]
    dense: Arc<DenseCopies<2>>,
    #[cfg(feature = "gpu")]
    #[module(skip)]
    on_gpus: Arc<gpu::Copies<(), gpu::LinearWeight>>,
}

impl CondensedLinear {
    /// A layer with `weight` `[N, M]` and a bias `[N]`; without one it is 0.
    ///
    /// # Errors
    /// [`Error::Weight`] if the bias has another length.
    pub fn new(weight: &CondensedWeight, bias: Option<&[f32]>) -> Result<Self, Error> {
        let zeros = vec![0.0; if bias.is_none() { weight.neurons() } else { 0 }];
        let kernel = LinearKernel::new(weight, bias.unwrap_or(&zeros))?;
        Ok(Self {
            kernel: Arc::new(kernel),
            dense: Arc::default(),
            #[cfg(feature = "gpu")]
            on_gpus: Arc::default(),
        })
    }

    /// Condenses a trained layer. `mask` `[out, in]` may be of any kind; [`fan_in`](Self::fan_in) tells
    /// whether it was structured. Weights that it does not select are left out, whatever their value.
    ///
    /// # Errors
    /// [`Error::Weight`] if the mask has another shape or an active weight is not finite.
    pub fn from_linear(layer: &Linear, mask: &Mask) -> Result<Self, Error> {
        let weight = condense(Layout::InOut, layer.weight.val(), mask)?;
        let bias = bias_values(layer.bias.as_ref().map(|bias| bias.val()), weight.neurons());
        Self::new(&weight, Some(&bias))
    }

    /// `[…, M]` → `[…, N]`, in the input's float type; sums are taken in f32.
    ///
    /// # Panics
    /// If the last dimension is not `M`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let (dtype, device) = (input.dtype(), input.device());
        let inputs = self.weight().inputs();
        assert_eq!(input.dims()[D - 1], inputs, "the last dimension is the layer's input");
        #[cfg(feature = "gpu")]
        if let Some(cube) = gpu::device(&device) {
            return self.forward_on_gpu(input, &cube);
        }
        let input = input.cast(FloatDType::F32);
        let output = if has_kernels(&device) {
            Tensor::from_dispatch(Dispatch::condensed_linear(input.into_dispatch(), &self.kernel))
        } else {
            let dims = [inputs, self.weight().neurons()];
            let (weight, bias) = self.dense.on(&device, self.weight(), self.bias(), Layout::InOut, dims);
            linear(input, weight, Some(bias))
        };
        output.cast(dtype)
    }

    #[cfg(feature = "gpu")]
    fn forward_on_gpu<const D: usize>(&self, input: Tensor<D>, cube: &gpu::CubeDevice) -> Tensor<D> {
        let (dtype, device) = (input.dtype(), input.device());
        let input = gpu::in_kernel_type(input);
        let place = Place { device: &device, dtype: input.dtype() };
        let weight =
            self.on_gpus.get((), &place, || gpu::LinearWeight::new(self.weight(), self.bias(), &place, cube));
        let mut dims = input.dims();
        let batch = dims[..D - 1].iter().product();
        let inputs = std::mem::replace(&mut dims[D - 1], self.weight().neurons());
        if batch == 0 {
            // In Burn's reshape a 0 stands for another dimension.
            return Tensor::zeros(dims, (&device, dtype));
        }
        let output = weight.run(input.reshape([batch, inputs]));
        gpu::in_type(output.reshape(dims), dtype)
    }

    /// The weights `[N, M]`.
    pub fn weight(&self) -> &CondensedWeight {
        self.kernel.weight()
    }

    /// The bias `[N]`.
    pub fn bias(&self) -> &[f32] {
        self.kernel.bias()
    }

    /// Whether all active neurons have the same number of weights, and how many.
    pub fn fan_in(&self) -> &FanIn {
        self.weight().fan_in()
    }
}

impl ModuleDisplay for CondensedLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let weight = self.weight();
        content
            .add("d_input", &weight.inputs())
            .add("d_output", &weight.neurons())
            .add("active", &weight.active().len())
            .add("weights", &weight.values().len())
            .optional()
    }
}
