//! A two-dimensional convolution in condensed form.

use crate::condensed_ops::{CondensedOps, DenseCopies, bias_values, condense, has_kernels};
use crate::conv_geometry::{BySize, ConvGeometry, pad_if_uneven};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::layout::Layout;
#[cfg(feature = "gpu")]
use crate::place::Place;
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::conv::Conv2d;
use burn::tensor::module::conv2d;
use burn::tensor::{FloatDType, Tensor};
use condensed::{CondensedWeight, ConvKernel, Error, FanIn, Shape, Window};
use sparsity_core::Mask;
use std::sync::Arc;

/// A trained sparse convolution in condensed form, for inference, on images `[batch, C, H, W]`.
///
/// On `Device::flex()` and `Device::ndarray()` it runs the kernels of the [`condensed`] crate, on rayon's
/// current thread pool. With the feature `cuda` (or `webgpu`) it runs CubeCL kernels on the GPU, in f16, bf16
/// or f32 with sums in f32, and weights rounded to the input's type. On any other device, and on an autodiff
/// device, it runs Burn's dense operation on a copy of the weights with their zeros, so results are right
/// everywhere and gradients reach the input.
///
/// A kernel is made for one image size when that size is first seen; the last few are kept. The weights
/// are fixed: an optimizer does not see them, and Burn's records do not hold them. Clones share them.
///
/// ```
/// use burn::nn::conv::Conv2dConfig;
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::{CondensedConv2d, Mask};
///
/// let device = Device::flex();
/// let conv = Conv2dConfig::new([2, 8], [3, 3]).init(&device);
/// // `[out channels, in channels · 3 · 3]`; after training, masks come from `Topology::layers`.
/// let condensed = CondensedConv2d::from_conv(&conv, &Mask::full(8, 18))?;
/// assert_eq!(condensed.forward(Tensor::ones([1, 2, 6, 6], &device)).dims(), [1, 8, 4, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct CondensedConv2d {
    #[module(skip)]
    layer: Arc<Layer>,
}

#[derive(Debug)]
struct Layer {
    weight: CondensedWeight,
    bias: Vec<f32>,
    geometry: ConvGeometry,
    kernels: BySize<ConvKernel>,
    dense: DenseCopies<4>,
    /// By the size of padded images.
    #[cfg(feature = "gpu")]
    on_gpus: gpu::Copies<[usize; 2], gpu::ConvWeight>,
}

impl CondensedConv2d {
    /// A convolution with `weight` `[out channels, in channels / groups · kh · kw]` and a bias
    /// `[out channels]`; without one it is 0.
    ///
    /// # Errors
    /// [`Error::Weight`] if weight, bias, window and groups do not fit each other.
    pub fn new(
        weight: CondensedWeight,
        bias: Option<&[f32]>,
        window: Window,
        groups: usize,
    ) -> Result<Self, Error> {
        let bias = bias.map_or_else(|| vec![0.0; weight.neurons()], <[f32]>::to_vec);
        Self::build(weight, bias, ConvGeometry::of_window(window, groups))
    }

    /// Condenses a trained convolution. `mask` `[out, in / groups · kh · kw]` may be of any kind;
    /// [`fan_in`](Self::fan_in) tells whether it was structured. Weights that it does not select are left
    /// out, whatever their value.
    ///
    /// # Errors
    /// [`Error::Weight`] if the mask has another shape or an active weight is not finite.
    pub fn from_conv(conv: &Conv2d, mask: &Mask) -> Result<Self, Error> {
        let weight = condense(Layout::OutIn, conv.weight.val(), mask)?;
        let bias = bias_values(conv.bias.as_ref().map(|bias| bias.val()), weight.neurons());
        Self::build(weight, bias, ConvGeometry::of(conv))
    }

    fn build(weight: CondensedWeight, bias: Vec<f32>, geometry: ConvGeometry) -> Result<Self, Error> {
        // What does not fit on the smallest image fits on none.
        let image = geometry.smallest_image(weight.inputs());
        ConvKernel::new(&weight, &bias, geometry.window([0, 0]), geometry.groups, image)?;
        Ok(Self {
            layer: Arc::new(Layer {
                weight,
                bias,
                geometry,
                kernels: BySize::default(),
                dense: DenseCopies::default(),
                #[cfg(feature = "gpu")]
                on_gpus: gpu::Copies::default(),
            }),
        })
    }

    /// `[batch, C, H, W]` → `[batch, C', H', W']`, in the input's float type; sums are taken in f32.
    ///
    /// # Panics
    /// If the channels are not the layer's, or the window is larger than the padded image.
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let layer = &*self.layer;
        let (dtype, device) = (input.dtype(), input.device());
        let [_, channels, height, width] = input.dims();
        assert_eq!(channels, layer.channels(), "channels of the image and of the layer");
        #[cfg(feature = "gpu")]
        if gpu::device(&device).is_some() {
            return layer.forward_on_gpu(input);
        }
        let padding = layer.geometry.padding(height, width);
        let input = input.cast(FloatDType::F32);
        let output = if has_kernels(&device) {
            let kernel = layer.kernels.get(Shape { features: channels, height, width }, |image| {
                let (window, image) = layer.geometry.on(image);
                ConvKernel::new(&layer.weight, &layer.bias, window, layer.geometry.groups, image)
            });
            let input = pad_if_uneven(input, padding);
            Tensor::from_dispatch(Dispatch::condensed_conv2d(input.into_dispatch(), &kernel))
        } else {
            let [kh, kw] = layer.geometry.kernel_size;
            let dims = [layer.weight.neurons(), channels / layer.geometry.groups, kh, kw];
            let (weight, bias) = layer.dense.on(&device, &layer.weight, &layer.bias, Layout::OutIn, dims);
            conv2d(input, weight, Some(bias), layer.geometry.options(padding))
        };
        output.cast(dtype)
    }

    /// The weights `[out channels, in channels / groups · kh · kw]`.
    pub fn weight(&self) -> &CondensedWeight {
        &self.layer.weight
    }

    /// The bias `[out channels]`.
    pub fn bias(&self) -> &[f32] {
        &self.layer.bias
    }

    /// Whether all active neurons (channels) have the same number of weights, and how many.
    pub fn fan_in(&self) -> &FanIn {
        self.layer.weight.fan_in()
    }
}

impl Layer {
    /// Channels of the images.
    fn channels(&self) -> usize {
        self.geometry.channels(self.weight.inputs())
    }

    #[cfg(feature = "gpu")]
    fn forward_on_gpu(&self, input: Tensor<4>) -> Tensor<4> {
        let (dtype, device) = (input.dtype(), input.device());
        let input = gpu::in_kernel_type(input);
        let [_, channels, height, width] = input.dims();
        let geometry = gpu::training::ImageGeometry::new(&self.geometry, [channels, height, width]);
        let padding = geometry.padding();
        let place = Place { device: &device, dtype: input.dtype() };
        let neurons = self.weight.neurons();
        let weight = self.on_gpus.get(padding.size, &place, || {
            let offset = |neuron, input| geometry.offset(neurons, neuron, input);
            gpu::ConvWeight::new(&self.weight, &self.bias, &place, geometry.padded_image(), offset)
        });
        let (stride, output) = (self.geometry.stride, geometry.output());
        gpu::in_type(weight.run(input, gpu::ConvShape { neurons, padding, stride, output }), dtype)
    }
}

impl ModuleDisplay for CondensedConv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let layer = &*self.layer;
        content
            .add("ch_in", &layer.channels())
            .add("ch_out", &layer.weight.neurons())
            .add("kernel_size", &format!("{:?}", layer.geometry.kernel_size))
            .add("stride", &format!("{:?}", layer.geometry.stride))
            .add("dilation", &format!("{:?}", layer.geometry.dilation))
            .add("groups", &layer.geometry.groups)
            .add_debug_attribute("padding", &layer.geometry.padding)
            .add("active", &layer.weight.active().len())
            .add("weights", &layer.weight.values().len())
            .optional()
    }
}
