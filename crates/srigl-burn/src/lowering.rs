//! From a Burn module to a condensed network.

use crate::active_weight::{self, ActiveWeight};
use crate::condensed_ops::condense;
use crate::conv_geometry::ConvGeometry;
use crate::discover::ModulePath;
use crate::layout::Layout;
use crate::{SparseConv2d, SparseLinear};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::conv::Conv2d;
use burn::nn::pool::MaxPool2d;
use burn::nn::{BatchNorm, LayerNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;
use condensed::{Error, Network, Node, NodeError, Op, Shape, Weight, Window, ops};
use sparsity_core::Mask;
use std::collections::HashMap;

/// A module that says, next to its `forward`, how it becomes a condensed network.
///
/// `lower` repeats `forward` with values of a graph in place of tensors. Layers are handed over whole, so weights,
/// windows and names are said once, by the module; masks are found by the layers' names.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig, Relu};
/// use burn::tensor::{Device, Tensor};
/// use srigl_burn::condensed::{Engine, Shape};
/// use srigl_burn::{Lower, Lowering, Mask, Value, lower};
///
/// #[derive(Module, Debug)]
/// struct Net {
///     fc1: Linear,
///     fc2: Linear,
/// }
///
/// impl Net {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.fc2.forward(Relu::new().forward(self.fc1.forward(x)))
///     }
/// }
///
/// impl Lower for Net {
///     fn lower(&self, graph: &mut Lowering, x: Value) -> Value {
///         let x = graph.linear(&self.fc1, x);
///         let x = graph.relu(x);
///         graph.linear(&self.fc2, x)
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::flex();
/// let net = Net {
///     fc1: LinearConfig::new(8, 4).init(&device),
///     fc2: LinearConfig::new(4, 2).init(&device),
/// };
/// // Layers without a mask stay dense. After training, masks are those of `Topology::layers`.
/// let masks = [("fc1".to_string(), Mask::full(4, 8))];
/// let network = lower(&net, Shape { features: 8, height: 1, width: 1 }, masks, str::to_string)?;
///
/// let mut logits = [0.0; 2];
/// Engine::new(&network.fold()?)?.run(1, &[0.5; 8], &mut logits)?;
/// let same = net.forward(Tensor::from_data([[0.5; 8]], &device)).into_data().try_into_vec::<f32>().unwrap();
/// assert!((logits[0] - same[0]).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
pub trait Lower: Module {
    /// The result of the module for the input `x`.
    fn lower(&self, graph: &mut Lowering, x: Value) -> Value;
}

/// A condensed network in the making.
#[derive(Debug)]
pub struct Lowering {
    /// Names of the layers by the id of their first parameter.
    names: HashMap<u64, String>,
    /// Masks by the same ids.
    masks: HashMap<u64, Mask>,
    nodes: Vec<Node>,
    /// The first layer that cannot be lowered.
    problem: Option<Error>,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    node: usize,
    /// Shape of one sample.
    pub shape: Shape,
}

/// The condensed network of a module for samples of shape `input`: layers that have a mask are condensed, others stay
/// dense.
///
/// `masks` are by module paths, as in [`Topology::layers`](crate::Topology::layers). `rename` gives parameters their names
/// in PyTorch, such as `fc1.weight`, from their paths in the module; nodes are named after them.
///
/// # Errors
/// [`Error::Node`] for the first layer that does not fit its input, or whose weight is not finite or has another shape
/// than its mask.
pub fn lower<M: Lower>(
    module: &M,
    input: Shape,
    masks: impl IntoIterator<Item = (String, Mask)>,
    rename: impl Fn(&str) -> String,
) -> Result<Network, Error> {
    let mut paths = Paths::default();
    module.visit(&mut paths);
    let masks: HashMap<String, Mask> = masks.into_iter().collect();
    let mut graph = Lowering {
        names: HashMap::new(),
        masks: HashMap::new(),
        nodes: vec![Node::new("input", ops::Input(input), [])],
        problem: None,
    };
    for (id, module, field) in paths.found {
        let path = if module.is_empty() { field } else { format!("{module}.{field}") };
        let renamed = rename(&path);
        let name = renamed.strip_suffix("weight").map_or(&*renamed, |name| name.trim_end_matches(['.', '_']));
        if let Some(mask) = masks.get(&module) {
            graph.masks.insert(id, mask.clone());
        }
        graph.names.insert(id, name.to_string());
    }
    module.lower(&mut graph, Value { node: 0, shape: input });
    match graph.problem {
        Some(problem) => Err(problem),
        None => Network::new(graph.nodes),
    }
}

/// Ids of float parameters, with the path of their module and their names in PyTorch.
#[derive(Default)]
struct Paths {
    path: ModulePath,
    found: Vec<(u64, String, String)>,
}

impl ModuleVisitor for Paths {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // The values of a sparse weight stand for it.
        let weight = self.path.of_active_weight().and_then(|(_, weight)| weight.split_last());
        let field = weight.map(|(field, module)| (module, field.as_str()));
        if let Some((module, field)) =
            field.or_else(|| self.path.field().map(|(module, field, _)| (module, field)))
        {
            let field = crate::export::torch_field(field).to_string();
            self.found.push((param.id.val(), module.join("."), field));
        }
    }
}

impl Lowering {
    /// The name of the module that has the parameter of this identity, less `levels` of its last components.
    ///
    /// # Panics
    /// If the parameter is not one of the module that is lowered.
    pub fn name_around(&self, parameter: ParamId, levels: usize) -> String {
        let name = self.name(parameter.val());
        let mut parts: Vec<&str> = name.split('.').collect();
        parts.truncate(parts.len().saturating_sub(levels));
        parts.join(".")
    }

    fn name(&self, id: u64) -> &str {
        self.names.get(&id).expect("a parameter of the module that is lowered")
    }

    /// A linear layer, at each position on its own: Burn's [`Linear`] or [`SparseLinear`].
    pub fn linear<L: LinearLayer>(&mut self, layer: &L, x: Value) -> Value {
        let layer = layer.parts();
        let name = self.name(layer.id.val()).to_string();
        let weight = self.weight(Layout::InOut, &layer);
        let bias = bias_of(layer.bias, layer.neurons);
        let shape = Shape { features: layer.neurons, ..x.shape };
        self.push(name, ops::Linear { weight, bias }, [x], shape)
    }

    /// A convolution of images: Burn's [`Conv2d`] or [`SparseConv2d`].
    pub fn conv2d<L: ConvLayer>(&mut self, layer: &L, x: Value) -> Value {
        let (layer, ConvGeometry { kernel_size, stride, dilation, groups, padding }) = layer.parts();
        let name = self.name(layer.id.val()).to_string();
        let weight = self.weight(Layout::OutIn, &layer);
        let bias = bias_of(layer.bias, layer.neurons);
        let window = window(kernel_size, stride, &padding, dilation);
        let shape = Shape { features: layer.neurons, ..slide(x, window) };
        self.push(name, ops::Conv2d { weight, bias, window, groups }, [x], shape)
    }

    /// Batch normalisation with its running statistics.
    pub fn batch_norm(&mut self, norm: &BatchNorm, x: Value) -> Value {
        let name = self.name(norm.gamma.id.val()).to_string();
        let [gamma, beta, mean, variance] = [
            norm.gamma.val(),
            norm.beta.val(),
            norm.running_mean.value_sync(),
            norm.running_var.value_sync(),
        ]
        .map(floats);
        let scale =
            |gamma: f32, variance: f32| f64::from(gamma) / (f64::from(variance) + norm.epsilon).sqrt();
        let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(&g, &v)| scale(g, v)).collect();
        let shift =
            beta.iter().zip(&mean).zip(&scale).map(|((&b, &m), s)| (f64::from(b) - f64::from(m) * s) as f32);
        let shift = shift.collect();
        let scale = scale.iter().map(|&s| s as f32).collect();
        self.push(name, ops::Affine { scale, shift }, [x], x.shape)
    }

    /// Layer normalisation over the features; Burn's layer does not tell its `epsilon`.
    pub fn layer_norm(&mut self, norm: &LayerNorm, epsilon: f32, x: Value) -> Value {
        let name = self.name(norm.gamma.id.val()).to_string();
        let scale = floats(norm.gamma.val());
        let shift = norm.beta.as_ref().map_or_else(|| vec![0.0; scale.len()], |beta| floats(beta.val()));
        self.push(name, ops::LayerNorm { scale, shift, epsilon }, [x], x.shape)
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: Value) -> Value {
        self.after(x, "relu", Op::Relu, x.shape)
    }

    /// `x · Φ(x)`.
    pub fn gelu(&mut self, x: Value) -> Value {
        self.after(x, "gelu", Op::Gelu, x.shape)
    }

    /// `x/6 + 1/2`, within 0 and 1.
    pub fn hard_sigmoid(&mut self, x: Value) -> Value {
        self.after(x, "hard_sigmoid", Op::HardSigmoid, x.shape)
    }

    /// `x` times its hard sigmoid.
    pub fn hard_swish(&mut self, x: Value) -> Value {
        self.after(x, "hard_swish", Op::HardSwish, x.shape)
    }

    /// The planes of `x` times `factors`, one for each.
    pub fn scale(&mut self, name: impl Into<String>, x: Value, factors: Value) -> Value {
        self.push(name, Op::Scale, [x, factors], x.shape)
    }

    /// Maximum over each window.
    pub fn max_pool2d(&mut self, name: impl Into<String>, pool: &MaxPool2d, x: Value) -> Value {
        let window = window(pool.kernel_size, pool.stride, &pool.padding, pool.dilation);
        self.push(name, ops::MaxPool(window), [x], slide(x, window))
    }

    /// Mean over all positions.
    pub fn global_avg_pool(&mut self, name: impl Into<String>, x: Value) -> Value {
        self.push(name, Op::GlobalAvgPool, [x], Shape { height: 1, width: 1, ..x.shape })
    }

    /// All features and positions as one vector.
    pub fn flatten(&mut self, x: Value) -> Value {
        let shape = Shape { features: x.shape.len(), height: 1, width: 1 };
        self.after(x, "flatten", Op::Flatten, shape)
    }

    /// Sum of two results of one shape. For the engine to add while it writes a branch's last layer, `y` is made before
    /// that layer.
    pub fn add(&mut self, name: impl Into<String>, x: Value, y: Value) -> Value {
        self.push(name, Op::Add, [x, y], x.shape)
    }

    /// Positions as tokens after the class token `[1, 1, features]`, plus embeddings `[1, tokens, features]`.
    pub fn tokens(&mut self, class: &Param<Tensor<3>>, positions: &Param<Tensor<3>>, x: Value) -> Value {
        let (class, positions) = (floats(class.val()), floats(positions.val()));
        let shape = Shape { features: x.shape.features, height: 1, width: x.shape.positions() + 1 };
        self.after(x, "tokens", ops::Tokens { class, positions }, shape)
    }

    /// Self-attention between one projection to queries, keys and values, and the output projection.
    pub fn attention(&mut self, name: impl Into<String>, heads: usize, x: Value) -> Value {
        let shape = Shape { features: x.shape.features / 3, ..x.shape };
        self.push(name, ops::Attention { heads }, [x], shape)
    }

    /// The first position.
    pub fn class_token(&mut self, x: Value) -> Value {
        self.after(x, "class_token", Op::ClassToken, Shape { height: 1, width: 1, ..x.shape })
    }

    /// A node named after the one it reads.
    fn after(&mut self, x: Value, what: &str, op: impl Into<Op>, shape: Shape) -> Value {
        let name = format!("{}.{what}", self.nodes[x.node].name);
        self.push(name, op, [x], shape)
    }

    fn push<const N: usize>(
        &mut self,
        name: impl Into<String>,
        op: impl Into<Op>,
        inputs: [Value; N],
        shape: Shape,
    ) -> Value {
        self.nodes.push(Node::new(name, op, inputs.map(|input| input.node)));
        Value { node: self.nodes.len() - 1, shape }
    }

    /// The weight of a layer, condensed if it is sparse or has a mask that is not all ones.
    fn weight<const D: usize>(&mut self, layout: Layout, layer: &Parts<D>) -> Weight {
        let id = layer.id.val();
        let condensed = match (&layer.sparse, self.masks.get(&id)) {
            (Some(weight), _) => weight.condensed(),
            (None, Some(mask)) if mask.nnz() < mask.positions() => condense(layout, layer.dense(), mask),
            _ => return Weight::Dense(layout.to_rows(layer.dense())),
        };
        match condensed {
            Ok(weight) => Weight::Condensed(weight),
            Err(error) => {
                let node = self.name(id).to_string();
                self.problem.get_or_insert(match error {
                    Error::Weight(what) => Error::Node { node, what: NodeError::Weight(what) },
                    other => other,
                });
                Weight::Dense(layout.to_rows(layer.dense()))
            }
        }
    }
}

/// What is asked of a layer.
#[derive(Debug)]
pub struct Parts<'a, const D: usize> {
    id: ParamId,
    neurons: usize,
    weight: Option<&'a Param<Tensor<D>>>,
    sparse: Option<&'a ActiveWeight<D>>,
    bias: &'a Option<Param<Tensor<1>>>,
}

impl<'a, const D: usize> Parts<'a, D> {
    fn of_dense(layout: Layout, weight: &'a Param<Tensor<D>>, bias: &'a Option<Param<Tensor<1>>>) -> Self {
        let neurons = layout.out_in_dims(&weight.dims())[0];
        Self { id: weight.id, neurons, weight: Some(weight), sparse: None, bias }
    }

    fn of(layout: Layout, weight: &'a active_weight::Weight<D>, bias: &'a Option<Param<Tensor<1>>>) -> Self {
        match weight {
            active_weight::Weight::Dense(weight) => Self::of_dense(layout, weight, bias),
            active_weight::Weight::Sparse(sparse) => {
                let (id, neurons) = (sparse.values.id, sparse.mask().neurons());
                Self { id, neurons, weight: None, sparse: Some(sparse), bias }
            }
        }
    }

    fn dense(&self) -> Tensor<D> {
        let sparse = || self.sparse.map(ActiveWeight::dense);
        self.weight.map(Param::val).or_else(sparse).expect("one or the other")
    }
}

/// A linear layer that can be lowered; of this crate and Burn alone.
pub trait LinearLayer {
    /// What is asked of it.
    #[doc(hidden)]
    fn parts(&self) -> Parts<'_, 2>;
}

/// A convolution that can be lowered; of this crate and Burn alone.
pub trait ConvLayer {
    /// What is asked of it.
    #[doc(hidden)]
    fn parts(&self) -> (Parts<'_, 4>, ConvGeometry);
}

impl LinearLayer for Linear {
    fn parts(&self) -> Parts<'_, 2> {
        Parts::of_dense(Layout::InOut, &self.weight, &self.bias)
    }
}

impl LinearLayer for SparseLinear {
    fn parts(&self) -> Parts<'_, 2> {
        Parts::of(Layout::InOut, &self.weight, &self.bias)
    }
}

impl ConvLayer for Conv2d {
    fn parts(&self) -> (Parts<'_, 4>, ConvGeometry) {
        (Parts::of_dense(Layout::OutIn, &self.weight, &self.bias), ConvGeometry::of(self))
    }
}

impl ConvLayer for SparseConv2d {
    fn parts(&self) -> (Parts<'_, 4>, ConvGeometry) {
        (Parts::of(Layout::OutIn, &self.weight, &self.bias), self.geometry.clone())
    }
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    Layout::OutIn.to_rows(tensor)
}

fn bias_of(bias: &Option<Param<Tensor<1>>>, neurons: usize) -> Vec<f32> {
    bias.as_ref().map_or_else(|| vec![0.0; neurons], |bias| floats(bias.val()))
}

/// The window of a layer. Padding that is not the same on both sides is said by an impossible window, which
/// [`Network::new`] refuses with the layer's name.
fn window(kernel: [usize; 2], stride: [usize; 2], padding: &PaddingConfig2d, dilation: [usize; 2]) -> Window {
    let same = |axis: usize| dilation[axis] * (kernel[axis] - 1) / 2;
    let padding = match *padding {
        PaddingConfig2d::Valid => [0, 0],
        PaddingConfig2d::Same if kernel.iter().zip(&dilation).all(|(k, d)| (d * (k - 1)) % 2 == 0) => {
            [same(0), same(1)]
        }
        PaddingConfig2d::Explicit(top, left, bottom, right) if top == bottom && left == right => [top, left],
        _ => [usize::MAX, usize::MAX],
    };
    Window { kernel, stride, padding, dilation }
}

/// The images `x`, each window one position.
fn slide(x: Value, window: Window) -> Shape {
    // What does not fit is found again by `Network::new`.
    let [height, width] = window.output_size(x.shape).unwrap_or([1, 1]);
    Shape { height, width, ..x.shape }
}
