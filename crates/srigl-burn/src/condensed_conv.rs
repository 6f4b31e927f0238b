//! A two-dimensional convolution in condensed form.

use crate::condensed_ops::{CondensedOps, DenseCopies, bias_values, condense, has_kernels, lock};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::layout::Layout;
#[cfg(feature = "gpu")]
use crate::place::Place;
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, PadMode};
use burn::tensor::{FloatDType, Tensor};
use condensed::{CondensedWeight, ConvKernel, Error, FanIn, Shape, Window};
use sparsity_core::Mask;
use std::sync::{Arc, Mutex};

/// Image sizes whose kernels a layer keeps.
const SIZES: usize = 8;

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
    kernel_size: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    padding: PaddingConfig2d,
    /// By the image's shape before padding, oldest first.
    kernels: Mutex<Vec<(Shape, Arc<ConvKernel>)>>,
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
        let [vertical, horizontal] = window.padding;
        Self::build(Layer {
            bias: bias.map_or_else(|| vec![0.0; weight.neurons()], <[f32]>::to_vec),
            weight,
            kernel_size: window.kernel,
            stride: window.stride,
            dilation: window.dilation,
            groups,
            padding: PaddingConfig2d::Explicit(vertical, horizontal, vertical, horizontal),
            kernels: Mutex::default(),
            dense: DenseCopies::default(),
            #[cfg(feature = "gpu")]
            on_gpus: gpu::Copies::default(),
        })
    }

    /// Condenses a trained convolution. `mask` `[out, in / groups · kh · kw]` may be of any kind;
    /// [`fan_in`](Self::fan_in) tells whether it was structured. Weights that it does not select are left
    /// out, whatever their value.
    ///
    /// # Errors
    /// [`Error::Weight`] if the mask has another shape or an active weight is not finite.
    pub fn from_conv(conv: &Conv2d, mask: &Mask) -> Result<Self, Error> {
        let weight = condense(Layout::OutIn, conv.weight.val(), mask)?;
        Self::build(Layer {
            bias: bias_values(conv.bias.as_ref().map(|bias| bias.val()), weight.neurons()),
            weight,
            kernel_size: conv.kernel_size,
            stride: conv.stride,
            dilation: conv.dilation,
            groups: conv.groups,
            padding: conv.padding.clone(),
            kernels: Mutex::default(),
            dense: DenseCopies::default(),
            #[cfg(feature = "gpu")]
            on_gpus: gpu::Copies::default(),
        })
    }

    fn build(layer: Layer) -> Result<Self, Error> {
        // The smallest image that the window fits shows what does not fit on any.
        let reach = |axis: usize| {
            layer.kernel_size[axis].saturating_sub(1).saturating_mul(layer.dilation[axis]).saturating_add(1)
        };
        let image = Shape { features: layer.channels(), height: reach(0), width: reach(1) };
        ConvKernel::new(&layer.weight, &layer.bias, layer.window([0, 0]), layer.groups, image)?;
        Ok(Self { layer: Arc::new(layer) })
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
        let padding = layer.padding(height, width);
        #[cfg(feature = "gpu")]
        if gpu::device(&device).is_some() {
            return layer.forward_on_gpu(input, padding);
        }
        let input = input.cast(FloatDType::F32);
        let output = if has_kernels(&device) {
            let kernel = layer.kernel(Shape { features: channels, height, width });
            let input =
                if symmetric(padding).is_some() { input } else { input.pad(padding, PadMode::Constant(0.0)) };
            Tensor::from_dispatch(Dispatch::condensed_conv2d(input.into_dispatch(), &kernel))
        } else {
            let [kh, kw] = layer.kernel_size;
            let dims = [layer.weight.neurons(), channels / layer.groups, kh, kw];
            let (weight, bias) = layer.dense.on(&device, &layer.weight, &layer.bias, Layout::OutIn, dims);
            let options = ConvOptions::new_with_padding(layer.stride, padding, layer.dilation, layer.groups);
            conv2d(input, weight, Some(bias), options)
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
        let taps = self.kernel_size[0].saturating_mul(self.kernel_size[1]).max(1);
        (self.weight.inputs() / taps).saturating_mul(self.groups)
    }

    fn window(&self, padding: [usize; 2]) -> Window {
        Window { kernel: self.kernel_size, stride: self.stride, padding, dilation: self.dilation }
    }

    /// Zeros `(before, after)` on the vertical and the horizontal axis.
    fn padding(&self, height: usize, width: usize) -> [(usize, usize); 2] {
        // As Burn has it: the output is the input's size over the stride, and dilation does not count.
        let same = |axis: usize, size: usize| {
            let outputs = size.div_ceil(self.stride[axis]);
            let reach = outputs.saturating_sub(1) * self.stride[axis] + self.kernel_size[axis];
            let missing = if outputs == 0 { 0 } else { reach.saturating_sub(size) };
            (missing / 2, missing - missing / 2)
        };
        match self.padding {
            PaddingConfig2d::Valid => [(0, 0), (0, 0)],
            PaddingConfig2d::Same => [same(0, height), same(1, width)],
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
        }
    }

    #[cfg(feature = "gpu")]
    fn forward_on_gpu(&self, input: Tensor<4>, padding: [(usize, usize); 2]) -> Tensor<4> {
        let (dtype, device) = (input.dtype(), input.device());
        let input = gpu::in_kernel_type(input);
        let [_, channels, height, width] = input.dims();
        let [(top, bottom), (left, right)] = padding;
        // Of padded images.
        let [height, width] = [height + top + bottom, width + left + right];
        let output: [usize; 2] = std::array::from_fn(|axis| {
            let reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1;
            let size = [height, width][axis];
            assert!(reach <= size, "a window of {reach} on {size} padded pixels");
            (size - reach) / self.stride[axis] + 1
        });
        let place = Place { device: &device, dtype: input.dtype() };
        let weight = self.on_gpus.get([height, width], &place, || {
            let [kh, kw] = self.kernel_size;
            let (group_inputs, group_neurons) = (channels / self.groups, self.weight.neurons() / self.groups);
            let offset = |neuron: usize, input: usize| {
                let (channel, y, x) = (input / (kh * kw), input / kw % kh, input % kw);
                let channel = neuron / group_neurons * group_inputs + channel;
                ((channel * height + y * self.dilation[0]) * width + x * self.dilation[1]) as u32
            };
            gpu::ConvWeight::new(&self.weight, &self.bias, &place, channels * height * width, offset)
        });
        let (neurons, stride) = (self.weight.neurons(), self.stride);
        gpu::in_type(weight.run(input, gpu::ConvShape { neurons, padding, stride, output }), dtype)
    }

    /// The kernel for images of this shape, before padding.
    fn kernel(&self, image: Shape) -> Arc<ConvKernel> {
        let known = |kernels: &[(Shape, Arc<ConvKernel>)]| {
            kernels.iter().find(|(shape, _)| *shape == image).map(|(_, kernel)| kernel.clone())
        };
        if let Some(kernel) = known(&lock(&self.kernels)) {
            return kernel;
        }
        let padding = self.padding(image.height, image.width);
        // Kernels pad both sides alike; otherwise the image comes padded.
        let (padding, padded) = match symmetric(padding) {
            Some(padding) => (padding, image),
            None => {
                let [(top, bottom), (left, right)] = padding;
                let (height, width) = (image.height + top + bottom, image.width + left + right);
                ([0, 0], Shape { height, width, ..image })
            }
        };
        let kernel = ConvKernel::new(&self.weight, &self.bias, self.window(padding), self.groups, padded);
        let kernel = Arc::new(kernel.unwrap_or_else(|error| panic!("{error}")));
        // Made without the lock, so another thread may have been first.
        let mut kernels = lock(&self.kernels);
        if let Some(kernel) = known(&kernels) {
            return kernel;
        }
        if kernels.len() == SIZES {
            kernels.remove(0);
        }
        kernels.push((image, kernel.clone()));
        kernel
    }
}

/// The padding of each axis if it is the same before and after.
fn symmetric(padding: [(usize, usize); 2]) -> Option<[usize; 2]> {
    padding.iter().all(|(before, after)| before == after).then(|| padding.map(|(before, _)| before))
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
            .add("kernel_size", &format!("{:?}", layer.kernel_size))
            .add("stride", &format!("{:?}", layer.stride))
            .add("dilation", &format!("{:?}", layer.dilation))
            .add("groups", &layer.groups)
            .add_debug_attribute("padding", &layer.padding)
            .add("active", &layer.weight.active().len())
            .add("weights", &layer.weight.values().len())
            .optional()
    }
}
