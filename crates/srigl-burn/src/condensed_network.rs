//! Whole condensed networks on Burn's devices.

use crate::layout::Layout;
use crate::place::Place;
use crate::{CondensedConv2d, CondensedLinear};
use burn::tensor::activation::{gelu, relu};
use burn::tensor::module::{attention, conv2d, layer_norm, linear, max_pool2d};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, FloatDType, Tensor};
use condensed::{Error, Network, Op, Shape, Weight, Window, ops};
use srigl_tensors::memory;

/// A [`Network`] of the crate [`condensed`] as Burn operations on one device: what [`condensed::Engine`] computes on
/// CPUs, for GPUs.
///
/// Condensed weights run in [`CondensedLinear`] and [`CondensedConv2d`], dense ones in Burn's own layers. Fold the
/// network first ([`Network::fold`]), so that normalisations are gone and ablated neurons too.
///
/// ```
/// use burn::tensor::{Device, FloatDType, Tensor};
/// use condensed::{CondensedWeight, Network, Node, Shape, Weight, ops};
/// use srigl_burn::CondensedNetwork;
///
/// // One neuron of two inputs, which reads the second.
/// let weight = CondensedWeight::from_masked(&[0.0, 3.0], &[false, true], 1, 2)?;
/// let layer = ops::Linear { weight: Weight::Condensed(weight), bias: vec![0.5] };
/// let input = ops::Input(Shape { features: 2, height: 1, width: 1 });
/// let network = Network::new(vec![Node::new("input", input, []), Node::new("layer", layer, [0])])?;
///
/// let device = Device::flex();
/// let network = CondensedNetwork::new(&network, FloatDType::F32, &device)?;
/// let y = network.forward(Tensor::from_data([[[[7.0]], [[2.0]]]], &device));
/// assert_eq!(y.into_data().try_into_vec::<f32>().unwrap(), [6.5]);
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Debug)]
pub struct CondensedNetwork {
    nodes: Vec<Node>,
    dtype: FloatDType,
}

#[derive(Debug)]
struct Node {
    step: Step,
    inputs: Vec<usize>,
    /// Of the result.
    shape: Shape,
    /// How many times the result is read.
    readers: usize,
}

/// An [`Op`] with its numbers on the device. Norms, tokens and embeddings are shaped to broadcast over
/// `[batch, positions, features]`, affine ones over `[batch, features, height, width]`.
#[derive(Debug)]
enum Step {
    Input,
    Linear { weight: Tensor<2>, bias: Tensor<1> },
    CondensedLinear(CondensedLinear),
    Conv2d { weight: Tensor<4>, bias: Tensor<1>, options: ConvOptions<2> },
    CondensedConv2d(CondensedConv2d),
    Affine { scale: Tensor<4>, shift: Tensor<4> },
    Relu,
    Gelu,
    HardSigmoid,
    HardSwish,
    Add,
    Scale,
    MaxPool(Window),
    GlobalAvgPool,
    Flatten,
    LayerNorm { scale: Tensor<1>, shift: Tensor<1>, epsilon: f64 },
    Tokens { class: Tensor<3>, positions: Tensor<3> },
    Attention { heads: usize },
    ClassToken,
}

/// A result, in the order in which it was made: what follows mostly wants the same.
#[derive(Clone, Debug)]
enum Value {
    /// `[batch, features, height, width]`
    Planes(Tensor<4>),
    /// `[batch, positions, features]`
    Rows(Tensor<3>),
}

/// Whether a condensed weight may be made dense: a few bytes can stand for a matrix of any size.
fn check_weight(node: &condensed::Node) -> Result<(), Error> {
    let (Op::Linear(ops::Linear { weight, .. }) | Op::Conv2d(ops::Conv2d { weight, .. })) = &node.op else {
        return Ok(());
    };
    let Weight::Condensed(weight) = weight else { return Ok(()) };
    let bytes = memory::product(&[weight.neurons(), weight.inputs(), size_of::<f32>()]);
    memory::check(bytes).map_err(|what| Error::Memory {
        what,
        node: node.name.clone(),
        bytes: bytes.unwrap_or(u64::MAX),
    })
}

impl CondensedNetwork {
    /// A network that computes on a device in `dtype`; sums of condensed layers are taken in f32. Dense weights are
    /// copied to the device now, condensed ones in the first call.
    ///
    /// # Errors
    /// [`Error::Node`] for an operation that only the engine for CPUs knows; [`Error::Memory`] if a single sample would take
    /// more than the budget, see [`Network::check_memory`], or the weights of a layer would, which some devices need dense.
    pub fn new(network: &Network, dtype: FloatDType, device: &Device) -> Result<Self, Error> {
        network.check_memory(1)?;
        network.nodes().iter().try_for_each(check_weight)?;
        let shapes = network.shapes();
        let mut nodes: Vec<Node> = Vec::with_capacity(shapes.len());
        for (node, &shape) in network.nodes().iter().zip(shapes) {
            let input = node.inputs.first().map_or(shape, |&input| shapes[input]);
            node.inputs.iter().for_each(|&input| nodes[input].readers += 1);
            let step = Step::new(node, input, &Place { device, dtype: dtype.into() })?;
            nodes.push(Node { step, inputs: node.inputs.clone(), shape, readers: 0 });
        }
        Ok(Self { nodes, dtype })
    }

    /// Images `[batch, C, H, W]` → `[batch, features · height · width]` of the last node, in the network's type.
    ///
    /// # Panics
    /// If the images have another shape than the network's input, or lie on another device than its weights.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let [batch, features, height, width] = images.dims();
        let (input, output) = (self.nodes[0].shape, self.nodes[self.nodes.len() - 1].shape);
        assert_eq!(
            Shape { features, height, width },
            input,
            "the images' shape is that of the network's input"
        );
        if batch == 0 {
            // In Burn's reshape a 0 stands for another dimension.
            return Tensor::zeros([0, output.len()], (&images.device(), self.dtype.into()));
        }
        let mut readers: Vec<usize> = self.nodes.iter().map(|node| node.readers).collect();
        let mut results: Vec<Option<Value>> = vec![Some(Value::Planes(images.cast(self.dtype)))];
        for node in &self.nodes[1..] {
            let inputs = node.inputs.iter().map(|&input| {
                readers[input] -= 1;
                // The last reader takes it, so that its memory is free again.
                let kept = &mut results[input];
                let value = if readers[input] == 0 { kept.take() } else { kept.clone() };
                (value.expect("kept until its last reader"), self.nodes[input].shape)
            });
            let inputs: Vec<(Value, Shape)> = inputs.collect();
            results.push(Some(node.step.run(inputs, node.shape)));
        }
        let last = results.pop().flatten().expect("nobody reads the last");
        last.planes(output).reshape([batch, output.len()])
    }
}

impl Step {
    fn new(node: &condensed::Node, input: Shape, place: &Place) -> Result<Self, Error> {
        Ok(match &node.op {
            Op::Input(_) => Self::Input,
            Op::Linear(ops::Linear { weight: Weight::Condensed(weight), bias }) => {
                Self::CondensedLinear(CondensedLinear::new(weight, Some(bias))?)
            }
            Op::Linear(ops::Linear { weight: Weight::Dense(weight), bias }) => {
                let dims = [input.features, bias.len()];
                Self::Linear {
                    weight: Layout::InOut.tensor_of_rows(weight.clone(), dims, (place.device, place.dtype)),
                    bias: place.tensor(bias.clone(), [bias.len()]),
                }
            }
            Op::Conv2d(ops::Conv2d { weight: Weight::Condensed(weight), bias, window, groups }) => {
                Self::CondensedConv2d(CondensedConv2d::new(weight.clone(), Some(bias), *window, *groups)?)
            }
            Op::Conv2d(ops::Conv2d { weight: Weight::Dense(weight), bias, window, groups }) => {
                let [kernel_height, kernel_width] = window.kernel;
                let dims = [bias.len(), input.features / groups, kernel_height, kernel_width];
                let options = ConvOptions::new(window.stride, window.padding, window.dilation, *groups);
                Self::Conv2d {
                    weight: place.tensor(weight.clone(), dims),
                    bias: place.tensor(bias.clone(), [bias.len()]),
                    options,
                }
            }
            Op::Affine(ops::Affine { scale, shift }) => {
                let dims = [1, input.features, 1, 1];
                Self::Affine {
                    scale: place.tensor(scale.clone(), dims),
                    shift: place.tensor(shift.clone(), dims),
                }
            }
            Op::Relu => Self::Relu,
            Op::Gelu => Self::Gelu,
            Op::HardSigmoid => Self::HardSigmoid,
            Op::HardSwish => Self::HardSwish,
            Op::Add => Self::Add,
            Op::Scale => Self::Scale,
            Op::MaxPool(ops::MaxPool(window)) => Self::MaxPool(*window),
            Op::GlobalAvgPool => Self::GlobalAvgPool,
            Op::Flatten => Self::Flatten,
            Op::LayerNorm(ops::LayerNorm { scale, shift, epsilon }) => Self::LayerNorm {
                scale: place.tensor(scale.clone(), [input.features]),
                shift: place.tensor(shift.clone(), [input.features]),
                epsilon: f64::from(*epsilon),
            },
            Op::Tokens(ops::Tokens { class, positions }) => Self::Tokens {
                class: place.tensor(class.clone(), [1, 1, input.features]),
                positions: place.tensor(positions.clone(), [1, input.positions() + 1, input.features]),
            },
            Op::Attention(ops::Attention { heads }) => Self::Attention { heads: *heads },
            Op::ClassToken => Self::ClassToken,
            _ => {
                return Err(Error::Node { node: node.name.clone(), what: condensed::NodeError::Unsupported });
            }
        })
    }

    /// The result, of shape `to`, for results with their shapes.
    fn run(&self, inputs: Vec<(Value, Shape)>, to: Shape) -> Value {
        let mut inputs = inputs.into_iter();
        let mut input = || inputs.next().expect("as many as `Network::shapes` has checked");
        let (value, from) = input();
        match self {
            Self::Input => unreachable!("it reads nothing"),
            Self::Linear { weight, bias } => {
                Value::Rows(linear(value.rows(), weight.clone(), Some(bias.clone())))
            }
            Self::CondensedLinear(layer) => Value::Rows(layer.forward(value.rows())),
            Self::Conv2d { weight, bias, options } => {
                let bias = Some(bias.clone());
                Value::Planes(conv2d(value.planes(from), weight.clone(), bias, options.clone()))
            }
            Self::CondensedConv2d(layer) => Value::Planes(layer.forward(value.planes(from))),
            Self::Affine { scale, shift } => {
                Value::Planes(value.planes(from) * scale.clone() + shift.clone())
            }
            Self::Relu | Self::Gelu | Self::HardSigmoid | Self::HardSwish => match value {
                Value::Planes(x) => Value::Planes(self.activate(x)),
                Value::Rows(x) => Value::Rows(self.activate(x)),
            },
            Self::Add => match (value, input().0) {
                (Value::Rows(a), b) => Value::Rows(a + b.rows()),
                (a, b) => Value::Planes(a.planes(from) + b.planes(from)),
            },
            Self::Scale => {
                let (factors, shape) = input();
                Value::Planes(value.planes(from) * factors.planes(shape))
            }
            Self::MaxPool(window) => {
                let options = MaxPoolOptions::new(window.kernel)
                    .with_stride(window.stride)
                    .with_padding(window.padding)
                    .with_dilation(window.dilation);
                Value::Planes(max_pool2d(value.planes(from), options))
            }
            Self::GlobalAvgPool => match value {
                Value::Planes(x) => Value::Planes(x.flatten::<3>(2, 3).mean_dim(2).unsqueeze_dim(3)),
                Value::Rows(x) => Value::Rows(x.mean_dim(1)),
            },
            Self::Flatten => {
                let planes = value.planes(from);
                let batch = planes.dims()[0];
                Value::Rows(planes.reshape([batch, 1, to.features]))
            }
            Self::LayerNorm { scale, shift, epsilon } => match value {
                Value::Planes(x) => Value::Planes(normalise(x, scale, shift, *epsilon)),
                Value::Rows(x) => Value::Rows(layer_norm(x, scale.clone(), Some(shift.clone()), *epsilon)),
            },
            Self::Tokens { class, positions } => {
                let patches = value.rows();
                let class = class.clone().expand([patches.dims()[0], 1, to.features]);
                Value::Rows(Tensor::cat(vec![class, patches], 1) + positions.clone())
            }
            Self::Attention { heads } => Value::Rows(attend(value.rows(), *heads)),
            Self::ClassToken => Value::Rows(value.rows().slice_dim(1, 0..1)),
        }
    }

    fn activate<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let hard_sigmoid = |x: Tensor<D>| (x / 6.0 + 0.5).clamp(0.0, 1.0);
        match self {
            Self::Relu => relu(x),
            Self::Gelu => gelu(x),
            Self::HardSigmoid => hard_sigmoid(x),
            Self::HardSwish => x.clone() * hard_sigmoid(x),
            _ => unreachable!("no activation"),
        }
    }
}

/// Normalisation over the features of planes. Burn's is over the last dimension, and where fusion has a kernel that
/// reduces what it transposes, Burn 0.22.1 panics.
fn normalise(x: Tensor<4>, scale: &Tensor<1>, shift: &Tensor<1>, epsilon: f64) -> Tensor<4> {
    let per_feature = |numbers: &Tensor<1>| numbers.clone().reshape([1, -1, 1, 1]);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + epsilon).sqrt() * per_feature(scale) + per_feature(shift)
}

/// Queries, keys and values `[batch, tokens, 3 · d]` → `[batch, tokens, d]`.
fn attend(joint: Tensor<3>, heads: usize) -> Tensor<3> {
    let [batch, tokens, features] = joint.dims();
    let size = features / 3 / heads;
    // Queries, keys and values `[batch, heads, tokens, size]`.
    let part = |i: usize| {
        let features = i * heads * size..(i + 1) * heads * size;
        joint.clone().slice_dim(2, features).reshape([batch, tokens, heads, size]).swap_dims(1, 2)
    };
    let mixed = attention(part(0), part(1), part(2), None, None, AttentionModuleOptions::default());
    mixed.swap_dims(1, 2).reshape([batch, tokens, heads * size])
}

impl Value {
    fn planes(self, shape: Shape) -> Tensor<4> {
        match self {
            Self::Planes(x) => x,
            Self::Rows(x) => {
                let x = if shape.positions() == 1 { x } else { x.swap_dims(1, 2) };
                let batch = x.dims()[0];
                x.reshape([batch, shape.features, shape.height, shape.width])
            }
        }
    }

    fn rows(self) -> Tensor<3> {
        match self {
            Self::Planes(x) => match x.dims() {
                // No transposed view where there is nothing to transpose.
                [batch, features, 1, 1] => x.reshape([batch, 1, features]),
                _ => x.flatten::<3>(2, 3).swap_dims(1, 2),
            },
            Self::Rows(x) => x,
        }
    }
}
