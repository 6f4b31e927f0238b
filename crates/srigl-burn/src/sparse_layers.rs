//! Layers that train in condensed form.

use crate::active_weight::{ActiveWeight, Weight};
use crate::conv_geometry::{BySize, ConvGeometry, pad_if_uneven};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::layout::Layout;
#[cfg(feature = "gpu")]
use crate::place::Place;
use crate::sparse_ops::{SparseCall, SparseOps, trains_on_cpu};
use burn::backend::Dispatch;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param, ParamId};
use burn::nn::conv::Conv2d;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::module::{conv2d, linear};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use condensed::training::Layer;
use condensed::{CondensedWeight, Error, Pattern, Shape, WeightError};
use rand::RngExt;
use sparsity_core::{Mask, Purpose, Stream, random_row};
use srigl_tensors::memory;
use std::sync::Arc;

/// A linear layer that trains in condensed form once it is sparse: `y = x · Wᵀ + b` over the last dimension.
///
/// Made from Burn's layer, it is that layer until [`sparsify`](crate::SparsityConfig::sparsify) turns it sparse, or
/// [`from_linear`](Self::from_linear) does so with a mask that stays. From then on its parameter holds the values of active
/// weights alone: no dense weight exists, nor a dense gradient, and an optimizer keeps moments of active weights alone.
/// Topology updates compute the dense gradient of some neurons at a time; only where more than eight backward passes add up for
/// one update, or a record is taken between them, is it kept whole. Records hold values and positions, so that they
/// bring their topology along.
///
/// On `Device::flex()` and `Device::ndarray()`, with autodiff or without, a sparse layer runs the kernels of
/// [`condensed::training`], on rayon's current thread pool, in f32. On GPUs, with the feature `cuda` (or `webgpu`), it runs
/// CubeCL kernels in f32. There `sparsify` turns a layer sparse if
/// [`SparsityConfig::condensed`](crate::SparsityConfig::condensed) asks for it; otherwise, and on any other device, it masks the
/// layer as it does Burn's.
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
/// assert_eq!(layer.parameter().grad(&gradients).unwrap().into_data().as_slice(), Ok(&[3.0f32, 3.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct SparseLinear {
    pub(crate) weight: Weight<2>,
    /// Bias `[N]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl From<Linear> for SparseLinear {
    fn from(Linear { weight, bias, .. }: Linear) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }
}

impl SparseLinear {
    /// A sparse layer with the weights of `layer` that `mask` `[out, in]` selects; their parameters keep their identities.
    ///
    /// # Errors
    /// [`Error::Weight`] if the mask has another shape or an active weight is not finite, [`Error::TrainingMemory`] if there
    /// is no memory for it.
    pub fn from_linear(layer: &Linear, mask: &Mask) -> Result<Self, Error> {
        let weight = ActiveWeight::new(Layout::InOut, &layer.weight, mask, mask.nnz(), Arc::default())?;
        Layer::linear(&weight.pattern())?;
        Ok(Self { weight: Weight::Sparse(weight), bias: layer.bias.clone() })
    }

    /// A sparse layer whose neurons read `fan_in` inputs each, drawn at random; its topology stays. Values and bias are drawn as
    /// PyTorch draws those of a dense layer with so many inputs, uniformly between `±1/√fan_in`. No dense weight is made, so that
    /// there may be hundreds of thousands of outputs; of a layer of labels, [`LabelOutput`](crate::LabelOutput) makes no `[batch, N]`
    /// either.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::tensor::{Device, Tensor};
    /// use srigl_burn::SparseLinear;
    ///
    /// let device = Device::flex();
    /// let layer = SparseLinear::with_fan_in(&LinearConfig::new(768, 10_000), 32, 0, &device)?;
    /// assert_eq!(layer.forward(Tensor::<2>::ones([2, 768], &device)).dims(), [2, 10_000]);
    /// assert_eq!(layer.parameter().dims(), [10_000 * 32]);
    /// # Ok::<(), srigl_burn::condensed::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Weight`] if the fan-in is 0 or larger than the inputs, or these are more than 65 536; [`Error::TrainingMemory`] if there is no
    /// memory for it.
    pub fn with_fan_in(
        config: &LinearConfig,
        fan_in: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self, Error> {
        let (inputs, neurons) = (config.d_input, config.d_output);
        if inputs > 1 << 16 {
            return Err(WeightError::Inputs { inputs, most: 1 << 16 }.into());
        }
        if fan_in == 0 || fan_in > inputs {
            return Err(WeightError::FanIn { fan_in, inputs }.into());
        }
        let mask = memory::product(&[neurons, inputs.div_ceil(64), 8]);
        memory::check(mask).map_err(Error::TrainingMemory)?;
        let mut values =
            memory::filled(0.0, neurons.saturating_mul(fan_in)).map_err(Error::TrainingMemory)?;
        let (stream, most) = (Stream { seed, layer: 0, step: 0 }, 1.0 / (fan_in as f32).sqrt());
        let mut row = vec![0; fan_in];
        let mut mask = Mask::empty(neurons, inputs);
        for (neuron, values) in values.chunks_exact_mut(fan_in).enumerate() {
            random_row(&mut row, inputs, stream, neuron);
            row.iter().for_each(|input| mask.activate(neuron, usize::from(*input)));
            let mut rng = stream.rng(Purpose::Weights, neuron);
            values.iter_mut().for_each(|value| *value = rng.random_range(-most..most));
        }
        let weight = ActiveWeight::of_values(Layout::InOut, [neurons, inputs], mask, values, device);
        Layer::linear(&weight.pattern())?;
        let bias = config.bias.then(|| {
            let mut rng = stream.rng(Purpose::Weights, neurons);
            let bias: Vec<f32> = (0..neurons).map(|_| rng.random_range(-most..most)).collect();
            Param::from_tensor(Tensor::from_data(TensorData::new(bias, [neurons]), device))
        });
        Ok(Self { weight: Weight::Sparse(weight), bias })
    }

    /// `[…, M]` → `[…, N]`, in the input's float type.
    ///
    /// # Panics
    /// If the last dimension is not `M`, or what the layer needs beside its input exceeds the memory that there may be.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let weight = match &self.weight {
            Weight::Dense(weight) => {
                return linear(input, weight.val(), self.bias.as_ref().map(|bias| bias.val()));
            }
            Weight::Sparse(weight) => weight,
        };
        let (neurons, inputs) = (weight.mask().neurons(), weight.mask().dense_fan_in());
        let mut dims = input.dims();
        assert_eq!(dims[D - 1], inputs, "the last dimension is the layer's input");
        #[cfg(feature = "gpu")]
        if let Some(output) = self.forward_on_gpu(weight, &input) {
            return output;
        }
        if !trains_on_cpu(&input.device()) {
            return linear(input, weight.dense(), self.bias.as_ref().map(|bias| bias.val()));
        }
        dims[D - 1] = neurons;
        let vector = Shape { features: inputs, height: 1, width: 1 };
        let layer = weight.topology.layers.get(vector, |_| Layer::linear(&weight.pattern()));
        let batch = dims[..D - 1].iter().product();
        let call = SparseCall { layer, capture: weight.capture.clone(), batch, dims: dims.to_vec() };
        run(input, weight.values.val(), self.bias.as_ref(), call)
    }

    /// `None` on other devices, and for nothing: in Burn's reshape a 0 stands for another dimension.
    #[cfg(feature = "gpu")]
    fn forward_on_gpu<const D: usize>(
        &self,
        weight: &ActiveWeight<2>,
        input: &Tensor<D>,
    ) -> Option<Tensor<D>> {
        let device = input.device().without_autodiff();
        let cube = gpu::device(&device).filter(|_| !input.dims().contains(&0))?;
        let (neurons, inputs) = (weight.mask().neurons(), weight.mask().dense_fan_in());
        let dtype = input.dtype();
        let vector = Shape { features: inputs, height: 1, width: 1 };
        let place = Place { device: &device, dtype: FloatDType::F32.into() };
        let values = weight.values.val().cast(FloatDType::F32);
        let layer = weight.topology.on_gpus.get(vector, &place, || {
            gpu::training::Layer::linear(&weight.pattern(), values.dims()[0], &device, &cube).into()
        });
        let mut dims = input.dims();
        let batch = dims[..D - 1].iter().product();
        dims[D - 1] = neurons;
        let input = input.clone().cast(FloatDType::F32).reshape([batch, inputs]);
        let bias = bias_or_zeros(self.bias.as_ref(), neurons, &input.device());
        let output = layer.run(input, values, bias, weight.capture.clone(), [batch, neurons]);
        Some(output.reshape(dims).cast(dtype))
    }

    /// The identity of the weight's parameter.
    pub fn id(&self) -> ParamId {
        self.weight.id()
    }

    /// The present weight in Burn's dimensions, `[in, out]`; of a sparse layer made for this call.
    pub fn weight(&self) -> Tensor<2> {
        self.weight.dense()
    }

    /// Which weights are active, made for this call; `None` while the layer is dense.
    pub fn pattern(&self) -> Option<Pattern> {
        self.weight.sparse().map(ActiveWeight::pattern)
    }

    /// The present weights `[N, M]`; `None` while the layer is dense.
    ///
    /// # Errors
    /// [`Error::Weight`] if one is not finite.
    pub fn condensed(&self) -> Result<Option<CondensedWeight>, Error> {
        self.weight.sparse().map(ActiveWeight::condensed).transpose()
    }

    /// The parameter of a sparse layer: its values, one neuron after the other, and zeros for weights that there could be.
    ///
    /// # Panics
    /// If the layer is dense.
    pub fn parameter(&self) -> Tensor<1> {
        self.weight.sparse().expect("a sparse layer").values.val()
    }
}

/// A convolution that trains in condensed form once it is sparse, on images `[batch, C, H, W]`. All that [`SparseLinear`] says
/// holds.
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
    pub(crate) weight: Weight<4>,
    /// Bias `[out channels]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) geometry: ConvGeometry,
    /// The kernels of all weights, for each image size; for a dense layer.
    #[module(skip)]
    all: Arc<BySize<Layer>>,
}

/// Weights of the largest dense convolution that runs these kernels with all its weights, and the least images. There they are
/// faster than Burn's, eleven times with one channel; larger ones are about as fast, and their patterns would take memory, and of
/// fewer images, which lie innermost, registers stay half empty.
const ALL: (usize, usize) = (1 << 17, 8);

impl From<Conv2d> for SparseConv2d {
    fn from(conv: Conv2d) -> Self {
        let geometry = ConvGeometry::of(&conv);
        Self { weight: Weight::Dense(conv.weight), bias: conv.bias, geometry, all: Arc::default() }
    }
}

impl SparseConv2d {
    /// A sparse layer with the weights of `conv` that `mask` `[out, in / groups · kh · kw]` selects; their parameters keep
    /// their identities.
    ///
    /// # Errors
    /// As [`SparseLinear::from_linear`].
    pub fn from_conv(conv: &Conv2d, mask: &Mask) -> Result<Self, Error> {
        let weight = ActiveWeight::new(Layout::OutIn, &conv.weight, mask, mask.nnz(), Arc::default())?;
        let geometry = ConvGeometry::of(conv);
        // What does not fit on the smallest image fits on none.
        let pattern = weight.pattern();
        let image = geometry.smallest_image(pattern.inputs());
        Layer::conv2d(&pattern, geometry.window([0, 0]), geometry.groups, image)?;
        Ok(Self { weight: Weight::Sparse(weight), bias: conv.bias.clone(), geometry, all: Arc::default() })
    }

    /// `[batch, C, H, W]` → `[batch, C', H', W']`, in the input's float type.
    ///
    /// # Panics
    /// If the channels are not the layer's, the window is larger than the padded image, or as [`SparseLinear::forward`].
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let geometry = &self.geometry;
        let [batch, channels, height, width] = input.dims();
        let padding = geometry.padding(height, width);
        let (neurons, fan_in) = self.size();
        assert_eq!(channels, geometry.channels(fan_in), "channels of the image and of the layer");
        let pays = neurons.saturating_mul(fan_in) <= ALL.0 && batch >= ALL.1;
        #[cfg(feature = "gpu")]
        if let Some(output) = self.forward_on_gpu(&input) {
            return output;
        }
        if !trains_on_cpu(&input.device()) || self.weight.sparse().is_none() && !pays {
            let bias = self.bias.as_ref().map(|bias| bias.val());
            return conv2d(input, self.weight.dense(), bias, geometry.options(padding));
        }
        let kernels = |layers: &BySize<Layer>, pattern: &dyn Fn() -> Pattern| {
            layers.get(Shape { features: channels, height, width }, |image| {
                let (window, image) = geometry.on(image);
                Layer::conv2d(&pattern(), window, geometry.groups, image)
            })
        };
        let (values, capture, layer) = match &self.weight {
            Weight::Dense(weight) => {
                let layer = kernels(&self.all, &|| all_of(neurons, fan_in));
                (weight.val().reshape([neurons * fan_in]), Arc::default(), layer)
            }
            Weight::Sparse(weight) => {
                let layer = kernels(&weight.topology.layers, &|| weight.pattern());
                (weight.values.val(), weight.capture.clone(), layer)
            }
        };
        let Shape { features, height, width } = layer.output_shape();
        let dims = [batch, features, height, width];
        let call = SparseCall { layer, capture, batch, dims: dims.to_vec() };
        run(pad_if_uneven(input, padding), values, self.bias.as_ref(), call)
    }

    /// `None` on other devices, while the layer is dense, and for nothing.
    #[cfg(feature = "gpu")]
    fn forward_on_gpu(&self, input: &Tensor<4>) -> Option<Tensor<4>> {
        let weight = self.weight.sparse()?;
        let device = input.device().without_autodiff();
        gpu::device(&device).filter(|_| !input.dims().contains(&0))?;
        let [batch, channels, height, width] = input.dims();
        let geometry = gpu::training::ImageGeometry::new(&self.geometry, [channels, height, width]);
        let place = Place { device: &device, dtype: FloatDType::F32.into() };
        let values = weight.values.val().cast(FloatDType::F32);
        let layer = weight.topology.on_gpus.get(Shape { features: channels, height, width }, &place, || {
            gpu::training::Layer::conv2d(&weight.pattern(), values.dims()[0], geometry, &device).into()
        });
        let neurons = weight.mask().neurons();
        let [height, width] = geometry.output();
        let (dtype, input) = (input.dtype(), input.clone().cast(FloatDType::F32));
        let bias = bias_or_zeros(self.bias.as_ref(), neurons, &input.device());
        let dims = [batch, neurons, height, width];
        Some(layer.run(input, values, bias, weight.capture.clone(), dims).cast(dtype))
    }

    /// Neurons, and weights that each has when all are active.
    fn size(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Dense(weight) => {
                let dims = weight.dims();
                (dims[0], dims[1..].iter().product())
            }
            Weight::Sparse(weight) => (weight.mask().neurons(), weight.mask().dense_fan_in()),
        }
    }

    /// The identity of the weight's parameter.
    pub fn id(&self) -> ParamId {
        self.weight.id()
    }

    /// The present weight in Burn's dimensions, `[out, in / groups, kh, kw]`; of a sparse layer made for this call.
    pub fn weight(&self) -> Tensor<4> {
        self.weight.dense()
    }

    /// Which weights are active, made for this call; `None` while the layer is dense.
    pub fn pattern(&self) -> Option<Pattern> {
        self.weight.sparse().map(ActiveWeight::pattern)
    }

    /// The present weights `[out channels, in channels / groups · kh · kw]`; `None` while the layer is dense.
    ///
    /// # Errors
    /// [`Error::Weight`] if one is not finite.
    pub fn condensed(&self) -> Result<Option<CondensedWeight>, Error> {
        self.weight.sparse().map(ActiveWeight::condensed).transpose()
    }

    /// As [`SparseLinear::parameter`].
    ///
    /// # Panics
    /// If the layer is dense.
    pub fn parameter(&self) -> Tensor<1> {
        self.weight.sparse().expect("a sparse layer").values.val()
    }
}

/// The pattern of a dense matrix.
fn all_of(neurons: usize, inputs: usize) -> Pattern {
    let rows = (0..neurons).map(|_| 0..inputs as u32);
    Pattern::from_rows(neurons, inputs, rows).expect("as many as a layer of Burn has")
}

/// The kernels.
fn run<const D: usize>(
    input: Tensor<D>,
    values: Tensor<1>,
    bias: Option<&Param<Tensor<1>>>,
    call: SparseCall,
) -> Tensor<D> {
    let dtype = input.dtype();
    let bias = bias_or_zeros(bias, call.layer.neurons(), &input.device());
    let values = values.cast(FloatDType::F32).into_dispatch();
    let input = input.cast(FloatDType::F32).into_dispatch();
    Tensor::<D>::from_dispatch(Dispatch::sparse_layer(input, values, bias.into_dispatch(), call)).cast(dtype)
}

/// The bias `[N]` in f32, zeros if there is none.
fn bias_or_zeros(bias: Option<&Param<Tensor<1>>>, neurons: usize, device: &Device) -> Tensor<1> {
    match bias {
        Some(bias) => bias.val().cast(FloatDType::F32),
        None => Tensor::zeros([neurons], (device, FloatDType::F32.into())),
    }
}

fn one_line() -> Option<DisplaySettings> {
    DisplaySettings::new().with_new_line_after_attribute(false).optional()
}

/// How many neurons and weights are active.
fn active<const D: usize>(content: Content, weight: &Weight<D>) -> Content {
    let Some(mask) = weight.sparse().map(ActiveWeight::mask) else { return content };
    content.add("active", &mask.active_neurons()).add("weights", &mask.nnz())
}

impl ModuleDisplay for SparseLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [inputs, neurons] = match &self.weight {
            Weight::Dense(weight) => weight.dims(),
            Weight::Sparse(weight) => [weight.mask().dense_fan_in(), weight.mask().neurons()],
        };
        active(content.add("d_input", &inputs).add("d_output", &neurons), &self.weight).optional()
    }
}

impl ModuleDisplay for SparseConv2d {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let geometry = &self.geometry;
        let (neurons, fan_in) = self.size();
        let content = content
            .add("ch_in", &geometry.channels(fan_in))
            .add("ch_out", &neurons)
            .add("kernel_size", &format!("{:?}", geometry.kernel_size))
            .add("stride", &format!("{:?}", geometry.stride))
            .add("dilation", &format!("{:?}", geometry.dilation))
            .add("groups", &geometry.groups)
            .add_debug_attribute("padding", &geometry.padding);
        active(content, &self.weight).optional()
    }
}
