//! Builds a network layer by layer, and knows which tensors each layer has.

use super::{NamedTensor, TensorKind, TensorSpec};
use crate::{CondensedWeight, Error, Network, Node, Op, Shape, Weight, Window};
use std::collections::BTreeMap;

/// ε of batch normalisation, the default of PyTorch and Burn.
pub(super) const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Sizes of networks that are read from the shapes of tensors; far above any in use.
const MAX_SIZE: usize = 1 << 14;

/// A network in the making. Layers take their tensors as they are added. What is wrong with tensors is collected,
/// and the layer gets empty ones; so without any tensors the specs are still complete.
pub(super) struct Graph {
    tensors: BTreeMap<String, NamedTensor>,
    specs: Vec<TensorSpec>,
    nodes: Vec<Node>,
    /// Name of a tensor, and what is wrong with it.
    problems: Vec<(String, String)>,
    /// The first layer that does not fit the images.
    misfit: Option<Error>,
}

/// The result of a node.
#[derive(Clone, Copy)]
pub(super) struct Value {
    node: usize,
    pub shape: Shape,
}

/// A square window.
pub(super) fn window(kernel: usize, stride: usize, padding: usize) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2], dilation: [1; 2] }
}

impl Graph {
    pub fn new(tensors: BTreeMap<String, NamedTensor>) -> Self {
        Self { tensors, specs: Vec::new(), nodes: Vec::new(), problems: Vec::new(), misfit: None }
    }

    /// First dimension of a tensor that no layer has taken yet.
    pub fn rows(&self, tensor: &str) -> Option<usize> {
        self.tensors.get(tensor)?.shape.first().copied()
    }

    /// A size of the network that the file decides: a dimension of a tensor that no layer has taken yet. `usual` if there
    /// is none, or it makes no sense; then the error is that the tensor has another shape.
    pub fn size(&self, tensor: &str, dimension: usize, usual: usize) -> usize {
        let size = self.tensors.get(tensor).and_then(|tensor| tensor.shape.get(dimension).copied());
        size.filter(|size| (1..=MAX_SIZE).contains(size)).unwrap_or(usual)
    }

    pub fn into_specs(self) -> Vec<TensorSpec> {
        self.specs
    }

    /// The network, if nothing is wrong with the tensors of `architecture`.
    pub fn into_network(mut self, architecture: &str) -> Result<Network, Error> {
        if let Some(misfit) = self.misfit {
            return Err(misfit);
        }
        let others = self.tensors.into_keys().filter(|name| !name.ends_with("num_batches_tracked"));
        self.problems.extend(others.map(|name| (name, "is unexpected".into())));
        if let Some((name, _)) = self.problems.first() {
            let all = self.problems.iter().map(|(name, what)| format!("`{name}` {what}")).collect::<Vec<_>>();
            let what = format!("the tensors do not fit `{architecture}`: {}", all.join(", "));
            return Err(Error::Tensor { name: name.clone(), what });
        }
        let network = Network { nodes: self.nodes };
        network.shapes()?;
        Ok(network)
    }

    /// Samples of this shape.
    pub fn input(&mut self, shape: Shape) -> Value {
        self.push("input".into(), Op::Input(shape), vec![], shape)
    }

    /// Linear layer with tensors `NAME.weight` and `NAME.bias`.
    pub fn linear(&mut self, name: &str, x: Value, features: usize) -> Value {
        self.linear_of(name, [format!("{name}.weight"), format!("{name}.bias")], x, features)
    }

    /// Projection to queries, keys and values with tensors `NAME_weight` and `NAME_bias`.
    pub fn joint_projection(&mut self, name: &str, x: Value) -> Value {
        self.linear_of(name, [format!("{name}_weight"), format!("{name}_bias")], x, 3 * x.shape.features)
    }

    fn linear_of(&mut self, name: &str, [weight, bias]: [String; 2], x: Value, features: usize) -> Value {
        let weight = self.weight(weight, &[features, x.shape.features]);
        let bias = self.vector(bias, &[features], TensorKind::Bias);
        let shape = Shape { features, ..x.shape };
        self.push(name.into(), Op::Linear { weight, bias }, vec![x.node], shape)
    }

    /// Convolution with tensors `NAME.weight` and `NAME.bias`.
    pub fn conv(&mut self, name: &str, x: Value, channels: usize, window: Window) -> Value {
        let weight = self.conv_weight(name, x, channels, window);
        let bias = self.vector(format!("{name}.bias"), &[channels], TensorKind::Bias);
        let shape = Shape { features: channels, ..self.slide(name, x, window) };
        self.push(name.into(), Op::Conv2d { weight, bias, window, groups: 1 }, vec![x.node], shape)
    }

    /// Convolution with the tensor `NAME.weight` alone.
    pub fn conv_without_bias(&mut self, name: &str, x: Value, channels: usize, window: Window) -> Value {
        let (weight, bias) = (self.conv_weight(name, x, channels, window), vec![0.0; channels]);
        let shape = Shape { features: channels, ..self.slide(name, x, window) };
        self.push(name.into(), Op::Conv2d { weight, bias, window, groups: 1 }, vec![x.node], shape)
    }

    /// Convolution of each channel on its own with the tensor `NAME.weight` alone.
    pub fn depthwise_conv(&mut self, name: &str, x: Value, window: Window) -> Value {
        let channels = x.shape.features;
        let [height, width] = window.kernel;
        let weight = self.weight(format!("{name}.weight"), &[channels, 1, height, width]);
        let op = Op::Conv2d { weight, bias: vec![0.0; channels], window, groups: channels };
        let shape = self.slide(name, x, window);
        self.push(name.into(), op, vec![x.node], shape)
    }

    fn conv_weight(&mut self, name: &str, x: Value, channels: usize, window: Window) -> Weight {
        let [height, width] = window.kernel;
        self.weight(format!("{name}.weight"), &[channels, x.shape.features, height, width])
    }

    /// Batch normalisation with tensors `NAME.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn batch_norm(&mut self, name: &str, x: Value, epsilon: f64) -> Value {
        let mut channels = |field, kind| self.vector(format!("{name}.{field}"), &[x.shape.features], kind);
        let gamma = channels("weight", TensorKind::NormScale);
        let beta = channels("bias", TensorKind::NormShift);
        let mean = channels("running_mean", TensorKind::RunningMean);
        let variance = channels("running_var", TensorKind::RunningVariance);
        let scale = |gamma: f32, variance: f32| f64::from(gamma) / (f64::from(variance) + epsilon).sqrt();
        let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(&g, &v)| scale(g, v)).collect();
        let shift =
            beta.iter().zip(&mean).zip(&scale).map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32);
        let op = Op::Affine { shift: shift.collect(), scale: scale.iter().map(|&s| s as f32).collect() };
        self.push(name.into(), op, vec![x.node], x.shape)
    }

    /// Layer normalisation with tensors `NAME.weight` and `NAME.bias`.
    pub fn layer_norm(&mut self, name: &str, x: Value, epsilon: f32) -> Value {
        let scale = self.vector(format!("{name}.weight"), &[x.shape.features], TensorKind::NormScale);
        let shift = self.vector(format!("{name}.bias"), &[x.shape.features], TensorKind::NormShift);
        self.push(name.into(), Op::LayerNorm { scale, shift, epsilon }, vec![x.node], x.shape)
    }

    pub fn relu(&mut self, x: Value) -> Value {
        self.after(x, "relu", Op::Relu, x.shape)
    }

    pub fn gelu(&mut self, x: Value) -> Value {
        self.after(x, "gelu", Op::Gelu, x.shape)
    }

    pub fn hard_sigmoid(&mut self, x: Value) -> Value {
        self.after(x, "hard_sigmoid", Op::HardSigmoid, x.shape)
    }

    pub fn hard_swish(&mut self, x: Value) -> Value {
        self.after(x, "hard_swish", Op::HardSwish, x.shape)
    }

    /// The planes of `x` times `factors`.
    pub fn scale(&mut self, name: &str, x: Value, factors: Value) -> Value {
        self.push(name.into(), Op::Scale, vec![x.node, factors.node], x.shape)
    }

    pub fn max_pool(&mut self, name: &str, x: Value, window: Window) -> Value {
        let shape = self.slide(name, x, window);
        self.push(name.into(), Op::MaxPool(window), vec![x.node], shape)
    }

    pub fn global_average(&mut self, name: &str, x: Value) -> Value {
        let shape = Shape { height: 1, width: 1, ..x.shape };
        self.push(name.into(), Op::GlobalAvgPool, vec![x.node], shape)
    }

    pub fn flatten(&mut self, x: Value) -> Value {
        let shape = Shape { features: x.shape.len(), height: 1, width: 1 };
        self.after(x, "flatten", Op::Flatten, shape)
    }

    pub fn add(&mut self, name: &str, x: Value, y: Value) -> Value {
        self.push(name.into(), Op::Add, vec![x.node, y.node], x.shape)
    }

    /// Positions as tokens, after a class token, with tensors of these two names.
    pub fn tokens(&mut self, class: &str, positions: &str, x: Value) -> Value {
        let (features, tokens) = (x.shape.features, x.shape.positions() + 1);
        let class = self.vector(class.into(), &[1, 1, features], TensorKind::Embedding);
        let positions = self.vector(positions.into(), &[1, tokens, features], TensorKind::Embedding);
        let shape = Shape { features, height: 1, width: tokens };
        self.after(x, "tokens", Op::Tokens { class, positions }, shape)
    }

    /// Attention between [`joint_projection`](Self::joint_projection) and the output projection.
    pub fn attention(&mut self, name: &str, x: Value, heads: usize) -> Value {
        let shape = Shape { features: x.shape.features / 3, ..x.shape };
        self.push(name.into(), Op::Attention { heads }, vec![x.node], shape)
    }

    pub fn class_token(&mut self, x: Value) -> Value {
        let shape = Shape { height: 1, width: 1, ..x.shape };
        self.after(x, "class_token", Op::ClassToken, shape)
    }

    /// Notes that a layer cannot work on the images.
    pub fn misfit(&mut self, node: &str, what: String) {
        self.misfit.get_or_insert(Error::Node { node: node.into(), what });
    }

    /// The images `x`, each window one position.
    fn slide(&mut self, name: &str, x: Value, window: Window) -> Shape {
        match window.output_size(x.shape) {
            Ok([height, width]) => Shape { height, width, ..x.shape },
            Err(error) => {
                self.misfit(name, error.to_string());
                x.shape
            }
        }
    }

    /// A node named after the one it reads.
    fn after(&mut self, x: Value, what: &str, op: Op, shape: Shape) -> Value {
        let name = format!("{}.{what}", self.nodes[x.node].name);
        self.push(name, op, vec![x.node], shape)
    }

    fn push(&mut self, name: String, op: Op, inputs: Vec<usize>, shape: Shape) -> Value {
        self.nodes.push(Node { name, op, inputs });
        Value { node: self.nodes.len() - 1, shape }
    }

    /// The weight of a layer `[out, in, …]`: one row for each `out`, condensed if it has a mask.
    fn weight(&mut self, name: String, shape: &[usize]) -> Weight {
        let Some(tensor) = self.take(&name, shape, TensorKind::Weight) else {
            return Weight::Dense(vec![]);
        };
        let Some(mask) = tensor.mask else {
            return Weight::Dense(tensor.values);
        };
        match CondensedWeight::from_masked(&tensor.values, &mask, shape[0], shape[1..].iter().product()) {
            Ok(weight) => Weight::Condensed(weight),
            Err(error) => {
                self.problems.push((name, format!("cannot be condensed ({error})")));
                Weight::Dense(vec![])
            }
        }
    }

    fn vector(&mut self, name: String, shape: &[usize], kind: TensorKind) -> Vec<f32> {
        let Some(tensor) = self.take(&name, shape, kind) else {
            return vec![];
        };
        if tensor.mask.is_some() {
            self.problems.push((name, "has a mask, but only weights of layers can be sparse".into()));
        }
        tensor.values
    }

    fn take(&mut self, name: &str, shape: &[usize], kind: TensorKind) -> Option<NamedTensor> {
        self.specs.push(TensorSpec { name: name.into(), shape: shape.into(), kind });
        let problem = match self.tensors.remove(name) {
            None => "is missing".into(),
            Some(tensor) if tensor.shape != shape => {
                format!("has shape {:?} instead of {shape:?}", tensor.shape)
            }
            Some(tensor) if tensor.values.len() != shape.iter().product::<usize>() => {
                format!("has {} values for the shape {shape:?}", tensor.values.len())
            }
            Some(tensor) => return Some(tensor),
        };
        self.problems.push((name.into(), problem));
        None
    }
}
