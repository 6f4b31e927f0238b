//! Layers that train in condensed form.

use crate::condensed_ops::condense;
use crate::conv_geometry::{BySize, ConvGeometry, pad_if_uneven};
use crate::layout::Layout;
use crate::sparse_ops::{SparseOps, trains_condensed};
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::Linear;
use burn::nn::conv::Conv2d;
use burn::tensor::module::{conv2d, linear};
use burn::tensor::{Device, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};
use condensed::training::Layer;
use condensed::{CondensedWeight, Error, Pattern, Shape};
use sparsity_core::Mask;
use std::sync::Arc;

/// A sparse linear layer that trains in condensed form: `y = x · Wᵀ + b` over the last dimension.
///
/// Its parameter `weight` holds the values of the active weights alone, one neuron after the other: `[active neurons · k]` with
/// constant fan-in `k`. Neither a dense weight nor a dense gradient exists at any time, and an optimizer keeps moments of
/// active weights alone.
///
/// On `Device::flex()` and `Device::ndarray()`, with autodiff or without, it runs the kernels of [`condensed::training`], on
/// rayon's current thread pool, in f32. On any other device it runs Burn's dense operation on weights that are made for each
/// call, so results and gradients are right everywhere.
///
/// The topology is fixed.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::{Mask, SparseLinear};
///
/// let device = Device::flex().autodiff();
/// let layer = LinearConfig::new(4, 2).init(&device);
/// // Two neurons with one input each.
/// let mask = Mask::from_bytes(2, 4, &[0, 1, 0, 0, 0, 0, 0, 1])?;
/// let layer = SparseLinear::from_linear(&layer, &mask)?;
/// let loss = layer.forward(Tensor::<2>::ones([3, 4], &device)).sum();
/// let gradients = loss.backward();
/// assert_eq!(layer.weight.val().grad(&gradients).unwrap().into_data().as_slice(), Ok(&[3.0f32, 3.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct SparseLinear {
    /// Values of the active weights, one neuron after the other.
    pub weight: Param<Tensor<1>>,
    /// Bias `[N]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    layer: Arc<Layer>,
}

impl SparseLinear {
    /// A layer with the weights of `layer` that `mask` `[out, in]` selects; their parameters keep their identities.
    ///
    /// # Errors
    /// [`Error::Weight`] if the mask has another shape or an active weight is not finite, [`Error::TrainingMemory`] if there is no
    /// memory for it.
    pub fn from_linear(layer: &Linear, mask: &Mask) -> Result<Self, Error> {
        let (weight, pattern) = values(Layout::InOut, &layer.weight, mask)?;
        Ok(Self { weight, bias: layer.bias.clone(), layer: Arc::new(Layer::linear(pattern)?) })
    }

    /// `[…, M]` → `[…, N]`, in the input's float type.
    ///
    /// # Panics
    /// If the last dimension is not `M`, or what the layer needs beside its input exceeds the memory that there may be.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let (inputs, neurons) = (self.pattern().inputs(), self.pattern().neurons());
        let mut dims = input.dims();
        assert_eq!(dims[D - 1], inputs, "the last dimension is the layer's input");
        let device = input.device();
        if !trains_condensed(&device) {
            let weight = dense(self.weight.val(), self.pattern(), &device).reshape([neurons, inputs]);
            return linear(input, weight.transpose(), self.bias.as_ref().map(|bias| bias.val()));
        }
        dims[D - 1] = neurons;
        run(input, self.weight.val(), self.bias.as_ref(), &self.layer, dims)
    }

    /// Which weights are active.
    pub fn pattern(&self) -> &Pattern {
        self.layer.pattern()
    }

    /// The present weights `[N, M]`.
    ///
    /// # Errors
    /// [`Error::Weight`] if one is not finite.
    pub fn condensed(&self) -> Result<CondensedWeight, Error> {
        condensed_weight(self.pattern(), self.weight.val())
    }
}

/// A sparse convolution that trains in condensed form, on images `[batch, C, H, W]`. All that [`SparseLinear`] says holds.
///
/// What the kernels need is made for one image size when that size is first seen; the last few are kept.
///
/// ```
/// use burn::nn::conv::Conv2dConfig;
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::{Mask, SparseConv2d};
///
/// let device = Device::flex().autodiff();
/// let conv = Conv2dConfig::new([2, 8], [3, 3]).init(&device);
/// let sparse = SparseConv2d::from_conv(&conv, &Mask::full(8, 18))?;
/// assert_eq!(sparse.forward(Tensor::ones([1, 2, 6, 6], &device)).dims(), [1, 8, 4, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct SparseConv2d {
    /// Values of the active weights, one output channel after the other.
    pub weight: Param<Tensor<1>>,
    /// Bias `[out channels]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    topology: Arc<ConvTopology>,
}

#[derive(Debug)]
struct ConvTopology {
    pattern: Pattern,
    geometry: ConvGeometry,
    layers: BySize<Layer>,
}

impl SparseConv2d {
    /// A layer with the weights of `conv` that `mask` `[out, in / groups · kh · kw]` selects; their parameters keep their
    /// identities.
    ///
    /// # Errors
    /// As [`SparseLinear::from_linear`].
    pub fn from_conv(conv: &Conv2d, mask: &Mask) -> Result<Self, Error> {
        let (weight, pattern) = values(Layout::OutIn, &conv.weight, mask)?;
        let geometry = ConvGeometry::of(conv);
        // What does not fit on the smallest image fits on none.
        let image = geometry.smallest_image(pattern.inputs());
        Layer::conv2d(pattern.clone(), geometry.window([0, 0]), geometry.groups, image)?;
        let topology = Arc::new(ConvTopology { pattern, geometry, layers: BySize::default() });
        Ok(Self { weight, bias: conv.bias.clone(), topology })
    }

    /// `[batch, C, H, W]` → `[batch, C', H', W']`, in the input's float type.
    ///
    /// # Panics
    /// If the channels are not the layer's, the window is larger than the padded image, or as [`SparseLinear::forward`].
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let ConvTopology { pattern, geometry, layers } = &*self.topology;
        let [batch, channels, height, width] = input.dims();
        assert_eq!(channels, geometry.channels(pattern.inputs()), "channels of the image and of the layer");
        let padding = geometry.padding(height, width);
        let device = input.device();
        if !trains_condensed(&device) {
            let [kh, kw] = geometry.kernel_size;
            let dims = [pattern.neurons(), channels / geometry.groups, kh, kw];
            let weight = dense(self.weight.val(), pattern, &device).reshape(dims);
            let bias = self.bias.as_ref().map(|bias| bias.val());
            return conv2d(input, weight, bias, geometry.options(padding));
        }
        let layer = layers.get(Shape { features: channels, height, width }, |image| {
            let (window, image) = geometry.on(image);
            Layer::conv2d(pattern.clone(), window, geometry.groups, image)
        });
        let Shape { features, height, width } = layer.output_shape();
        let dims = [batch, features, height, width];
        run(pad_if_uneven(input, padding), self.weight.val(), self.bias.as_ref(), &layer, dims)
    }

    /// Which weights are active.
    pub fn pattern(&self) -> &Pattern {
        &self.topology.pattern
    }

    /// The present weights `[out channels, in channels / groups · kh · kw]`.
    ///
    /// # Errors
    /// [`Error::Weight`] if one is not finite.
    pub fn condensed(&self) -> Result<CondensedWeight, Error> {
        condensed_weight(self.pattern(), self.weight.val())
    }
}

/// The values of a Burn weight where `mask` is active, as its parameter, and where they are.
fn values<const D: usize>(
    layout: Layout,
    weight: &Param<Tensor<D>>,
    mask: &Mask,
) -> Result<(Param<Tensor<1>>, Pattern), Error> {
    let tensor = weight.val();
    let condensed = condense(layout, tensor.clone(), mask)?;
    let values = TensorData::new(condensed.values().to_vec(), [condensed.values().len()]);
    let values = Tensor::from_data(values, (&tensor.device(), tensor.dtype()));
    // Only with autodiff does a parameter say whether it is frozen.
    let trains = tensor.is_require_grad() || !tensor.is_autodiff();
    let values = Param::initialized(weight.id, values).set_require_grad(trains);
    Ok((values, condensed.pattern().clone()))
}

fn condensed_weight(pattern: &Pattern, values: Tensor<1>) -> Result<CondensedWeight, Error> {
    CondensedWeight::of(pattern.clone(), Layout::OutIn.to_rows(values))
}

/// One of the kernels.
fn run<const D: usize>(
    input: Tensor<D>,
    values: Tensor<1>,
    bias: Option<&Param<Tensor<1>>>,
    layer: &Arc<Layer>,
    dims: [usize; D],
) -> Tensor<D> {
    let dtype = input.dtype();
    let bias = match bias {
        Some(bias) => bias.val().cast(FloatDType::F32),
        None => Tensor::zeros([layer.pattern().neurons()], (&input.device(), FloatDType::F32.into())),
    };
    let [values, input] =
        [values.cast(FloatDType::F32).into_dispatch(), input.cast(FloatDType::F32).into_dispatch()];
    let output = Dispatch::sparse_layer(input, values, bias.into_dispatch(), layer.clone(), dims.to_vec());
    Tensor::<D>::from_dispatch(output).cast(dtype)
}

/// The dense weights `[N · M]`, by an operation that has gradients.
fn dense(values: Tensor<1>, pattern: &Pattern, device: &Device) -> Tensor<1> {
    let positions = pattern.active().iter().enumerate().flat_map(|(row, &neuron)| {
        let first = neuron as usize * pattern.inputs();
        pattern.row_range(row).map(move |place| (first + pattern.indices().get(place)) as i64)
    });
    let positions: Vec<i64> = positions.collect();
    let count = positions.len();
    let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [count]), device);
    let zeros = Tensor::zeros([pattern.neurons() * pattern.inputs()], (device, values.dtype()));
    zeros.select_assign(0, positions, values, IndexingUpdateOp::Add)
}

fn one_line() -> Option<DisplaySettings> {
    DisplaySettings::new().with_new_line_after_attribute(false).optional()
}

impl ModuleDisplay for SparseLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let pattern = self.pattern();
        content
            .add("d_input", &pattern.inputs())
            .add("d_output", &pattern.neurons())
            .add("active", &pattern.active().len())
            .add("weights", &pattern.len())
            .optional()
    }
}

impl ModuleDisplay for SparseConv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let (pattern, geometry) = (self.pattern(), &self.topology.geometry);
        content
            .add("ch_in", &geometry.channels(pattern.inputs()))
            .add("ch_out", &pattern.neurons())
            .add("kernel_size", &format!("{:?}", geometry.kernel_size))
            .add("stride", &format!("{:?}", geometry.stride))
            .add("dilation", &format!("{:?}", geometry.dilation))
            .add("groups", &geometry.groups)
            .add_debug_attribute("padding", &geometry.padding)
            .add("active", &pattern.active().len())
            .add("weights", &pattern.len())
            .optional()
    }
}
