//! Layers that train in condensed form on GPUs, as operations with backward passes of their own.

// As many as a layer has tensors; the macro repeats an attribute of the function where no lint expects it.
#![allow(clippy::too_many_arguments)]

use super::groups::{Groups, Row, most_of, transposed};
use super::{
    ConvPlan, ConvShape, CubeDevice, GpuOps, LinearPlan, Padding, SamplePlan, Window, chunk_on, signed, words,
};
use crate::active_weight::{Capture, DensePass};
use crate::conv_geometry::ConvGeometry;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchTensor, TensorMetadata, backend_extension, read_sync,
};
use burn::tensor::{DType, Device, FloatDType, Int, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use condensed::Pattern;
use std::sync::Arc;

/// A sparse layer on a device, for images of one size: its pattern as the kernels of both directions read it.
#[derive(Debug)]
pub(crate) struct Layer {
    forward: Side,
    backward: Side,
    /// The place of each value among the groups of `forward`.
    places: Tensor<1, Int>,
    plan: Arc<Plan>,
}

/// One direction.
#[derive(Debug)]
struct Side {
    /// Which value each place has.
    order: Tensor<1, Int>,
    indices: Tensor<1, Int>,
    starts: Tensor<1, Int>,
}

/// What launches must know besides their tensors.
#[derive(Debug)]
struct Plan {
    /// Neurons and the inputs that each could have.
    size: [usize; 2],
    forward: Product,
    backward: Product,
    /// Places of both directions.
    places: [usize; 2],
    /// For the gradient by values.
    sample: SamplePlan,
    /// Of a convolution.
    geometry: Option<ImageGeometry>,
}

/// A product of weights and the numbers that they read.
#[derive(Clone, Debug)]
enum Product {
    Linear(LinearPlan),
    Conv(ConvPlan),
}

/// A call of a layer.
#[derive(Clone, Debug)]
pub(crate) struct GpuCall {
    plan: Arc<Plan>,
    /// What its backward pass leaves for topology updates.
    capture: Arc<Capture>,
    /// Of the result.
    dims: Vec<usize>,
}

/// A convolution on images of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageGeometry {
    channels: usize,
    /// Height and width without and with padding, and of the result.
    image: [usize; 2],
    padded: [usize; 2],
    output: [usize; 2],
    before: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

impl ImageGeometry {
    /// # Panics
    /// If the window is larger than the padded image.
    pub fn new(geometry: &ConvGeometry, [channels, height, width]: [usize; 3]) -> Self {
        let [(top, bottom), (left, right)] = geometry.padding(height, width);
        let padded = [height + top + bottom, width + left + right];
        let output = std::array::from_fn(|axis| {
            let reach = (geometry.kernel_size[axis] - 1) * geometry.dilation[axis] + 1;
            assert!(reach <= padded[axis], "a window of {reach} on {} padded pixels", padded[axis]);
            (padded[axis] - reach) / geometry.stride[axis] + 1
        });
        Self {
            channels,
            image: [height, width],
            padded,
            output,
            before: [top, left],
            kernel: geometry.kernel_size,
            stride: geometry.stride,
            dilation: geometry.dilation,
            groups: geometry.groups,
        }
    }

    /// Height and width of the result.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// How images are padded for the windows.
    pub fn padding(&self) -> Padding {
        let before = self.before.map(|zeros| zeros as isize);
        Padding { before, size: self.padded, step: [1; 2] }
    }

    /// Values of a padded image.
    pub fn padded_image(&self) -> usize {
        self.channels * self.padded[0] * self.padded[1]
    }

    /// Channel, row and column that an input of a neuron is in the window, with dilation.
    fn tap(&self, neurons: usize, neuron: usize, input: usize) -> [usize; 3] {
        let [height, width] = self.kernel;
        let (channel, y, x) = (input / (height * width), input / width % height, input % width);
        let group = neuron / (neurons / self.groups);
        [group * (self.channels / self.groups) + channel, y * self.dilation[0], x * self.dilation[1]]
    }

    /// The place in a padded image that an input of a neuron reads, from the corner of the window.
    pub fn offset(&self, neurons: usize, neuron: usize, input: usize) -> u32 {
        let [channel, y, x] = self.tap(neurons, neuron, input);
        ((channel * self.padded[0] + y) * self.padded[1] + x) as u32
    }

    /// What a window reaches beyond its corner.
    fn reach(&self) -> [usize; 2] {
        std::array::from_fn(|axis| (self.kernel[axis] - 1) * self.dilation[axis])
    }

    /// How gradients by results are padded so that windows over them give gradients by inputs.
    fn backward_padding(&self) -> Padding {
        let reach = self.reach();
        Padding {
            before: std::array::from_fn(|axis| reach[axis] as isize - self.before[axis] as isize),
            size: std::array::from_fn(|axis| self.image[axis] + reach[axis]),
            step: self.stride,
        }
    }
}

impl Layer {
    /// A linear layer with `room` values.
    pub fn linear(pattern: &Pattern, room: usize, device: &Device, cube: &CubeDevice) -> Self {
        let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
        let chunk = |inputs, most| chunk_on(cube, DType::F32, inputs, most);
        let (chunk_forward, chunk_backward) = (chunk(inputs, most_of(pattern)), chunk(neurons, 1));
        let forward = Groups::linear(pattern, chunk_forward);
        let columns = transposed(pattern, inputs, |neuron, input| (input, neuron));
        let read = columns.iter().filter(|column| !column.is_empty()).count();
        let backward = Groups::new(columns, neurons, chunk_backward, neurons, 1, |_, neuron| neuron as u32);
        let plan = |groups: &Groups, chunk, rows: usize| {
            Product::Linear(LinearPlan::new(groups, chunk, pattern.len() / rows.max(1)))
        };
        let products =
            [plan(&forward, chunk_forward, pattern.active().len()), plan(&backward, chunk_backward, read)];
        Self::new([neurons, inputs], [forward, backward], products, room, None, device)
    }

    /// A convolution with `room` values.
    pub fn conv2d(pattern: &Pattern, room: usize, geometry: ImageGeometry, device: &Device) -> Self {
        let neurons = pattern.neurons();
        let offset = |neuron, input| geometry.offset(neurons, neuron, input);
        let forward = Groups::convolution(pattern, geometry.padded_image(), offset);

        // Windows over gradients by results read them the other way round.
        let [reach_y, reach_x] = geometry.reach();
        let padding = geometry.backward_padding();
        let [height, width] = padding.size;
        let columns = transposed(pattern, geometry.channels, |neuron, input| {
            let [channel, y, x] = geometry.tap(neurons, neuron, input);
            (channel, (neuron * height + reach_y - y) * width + reach_x - x)
        });
        let image = neurons * height * width;
        let backward = Groups::new(columns, image, image.max(1), image, 1, |_, at| at as u32);
        let plan = |groups: &Groups, neurons, padding, stride, output| {
            let shape = ConvShape { neurons, padding, stride, output };
            Product::Conv(ConvPlan { shape, layout: groups.layout })
        };
        let products = [
            plan(&forward, neurons, geometry.padding(), geometry.stride, geometry.output),
            plan(&backward, geometry.channels, padding, [1; 2], geometry.image),
        ];
        Self::new([neurons, pattern.inputs()], [forward, backward], products, room, Some(geometry), device)
    }

    fn new(
        size: [usize; 2],
        groups: [Groups; 2],
        [forward, backward]: [Product; 2],
        room: usize,
        geometry: Option<ImageGeometry>,
        device: &Device,
    ) -> Self {
        let places = groups[0].places(room);
        let sample = sample_plan(&groups[0], geometry, room);
        let plan = Plan {
            size,
            forward,
            backward,
            places: [0, 1].map(|side| groups[side].order.len()),
            sample,
            geometry,
        };
        let [forward, backward] = groups.map(|Groups { order, indices, starts, .. }| Side {
            order: words(order, device),
            indices: words(indices, device),
            starts: words(starts, device),
        });
        Self { forward, backward, places: words(places, device), plan: Arc::new(plan) }
    }

    /// `[batch, M]` → `[batch, N]`, or images.
    pub fn run<const D: usize>(
        &self,
        input: Tensor<D>,
        values: Tensor<1>,
        bias: Tensor<1>,
        capture: Arc<Capture>,
        dims: [usize; D],
    ) -> Tensor<D> {
        let int = |tensor: &Tensor<1, Int>| -> DispatchTensor { tensor.clone().into_dispatch() };
        let call = GpuCall { plan: self.plan.clone(), capture, dims: dims.to_vec() };
        Tensor::from_dispatch(Dispatch::gpu_sparse_layer(
            input.into_dispatch(),
            values.into_dispatch(),
            bias.into_dispatch(),
            int(&self.forward.order),
            int(&self.forward.indices),
            int(&self.forward.starts),
            int(&self.places),
            int(&self.backward.order),
            int(&self.backward.indices),
            int(&self.backward.starts),
            call,
        ))
    }
}

fn sample_plan(groups: &Groups, geometry: Option<ImageGeometry>, values: usize) -> SamplePlan {
    SamplePlan {
        images: geometry.map(|g| Window { padding: g.padding(), stride: g.stride }),
        layout: groups.layout,
        groups: groups.count(),
        most: groups.most(),
        values,
    }
}

/// Sparse layers as an operation of Burn's Cube backend, with or without fusion.
#[backend_extension(Cube, Fusion, Autodiff)]
pub(crate) trait GpuTraining: Backend {
    /// `y = W x + b` in f32, where `W` has these values at the layer's active positions.
    #[fusion(dtype = input, shape = Shape::from(call.dims.clone()))]
    fn gpu_sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        order: IntTensor<Self>,
        indices: IntTensor<Self>,
        starts: IntTensor<Self>,
        places: IntTensor<Self>,
        backward_order: IntTensor<Self>,
        backward_indices: IntTensor<Self>,
        backward_starts: IntTensor<Self>,
        call: GpuCall,
    ) -> FloatTensor<Self>;
}

/// Runs the kernels of a product.
fn run<B: GpuOps>(
    product: &Product,
    input: FloatTensor<B>,
    values: FloatTensor<B>,
    bias: FloatTensor<B>,
    indices: IntTensor<B>,
    starts: IntTensor<B>,
) -> FloatTensor<B> {
    match product.clone() {
        Product::Linear(plan) => B::gpu_condensed_linear(input, values, bias, indices, starts, plan),
        Product::Conv(plan) => B::gpu_condensed_conv2d(input, values, bias, indices, starts, plan),
    }
}

impl GpuTraining for CubeBackend {
    fn gpu_sparse_layer(
        input: CubeTensor,
        values: CubeTensor,
        bias: CubeTensor,
        order: CubeTensor,
        indices: CubeTensor,
        starts: CubeTensor,
        _places: CubeTensor,
        _backward_order: CubeTensor,
        _backward_indices: CubeTensor,
        _backward_starts: CubeTensor,
        call: GpuCall,
    ) -> CubeTensor {
        let values = Self::gpu_place(values, order, call.plan.places[0]);
        run::<Self>(&call.plan.forward, input, values, bias, indices, starts)
    }
}

/// The backward pass.
#[derive(Debug)]
struct GpuLayerBackward;

/// What it keeps.
#[derive(Clone, Debug)]
struct State<B: Backend> {
    input: NodeId,
    values: NodeId,
    indices: IntTensor<B>,
    starts: IntTensor<B>,
    places: IntTensor<B>,
    backward_order: IntTensor<B>,
    backward_indices: IntTensor<B>,
    backward_starts: IntTensor<B>,
    call: GpuCall,
}

impl<B: GpuOps> Backward<B, 3> for GpuLayerBackward {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [of_input, of_values, of_bias] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let plan = &state.call.plan;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(state.input);
        let values: FloatTensor<B> = checkpointer.retrieve_node_output(state.values);
        if let Some(node) = of_bias {
            grads.register::<B>(node.id, bias_gradient::<B>(dy.clone()));
        }
        if let Some(node) = of_input {
            let zeros = B::float_zeros([inputs_of(plan)].into(), &dy.device(), FloatDType::F32);
            let values = B::gpu_place(values, state.backward_order, plan.places[1]);
            let (indices, starts) = (state.backward_indices, state.backward_starts);
            grads
                .register::<B>(node.id, run::<B>(&plan.backward, dy.clone(), values, zeros, indices, starts));
        }
        if let Some(node) = of_values {
            if state.call.capture.is_wanted() {
                let pass = DevicePass::<B> { x: x.clone(), dy: dy.clone(), plan: plan.clone() };
                state.call.capture.put(Arc::new(pass));
            }
            let (x, dy) = to_sample::<B>(plan, x, dy);
            let State { indices, starts, places, .. } = state;
            let gradient = B::gpu_value_gradient(x, dy, indices, starts, places, plan.sample.clone());
            grads.register::<B>(node.id, gradient);
        }
    }
}

/// Numbers of what the backward product adds to.
fn inputs_of(plan: &Plan) -> usize {
    plan.geometry.map_or(plan.size[1], |geometry| geometry.channels)
}

/// Input and gradient as [`GpuOps::gpu_value_gradient`] takes them.
fn to_sample<B: Backend>(
    plan: &Plan,
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    match plan.geometry {
        Some(_) => (x, dy),
        None => (B::float_transpose(x), B::float_transpose(dy)),
    }
}

/// Sums over all but the neurons.
fn bias_gradient<B: Backend>(dy: FloatTensor<B>) -> FloatTensor<B> {
    let dims = dy.shape().to_vec();
    let (batch, neurons) = (dims[0], dims[1]);
    let results = dims[2..].iter().product();
    let dy = B::float_reshape(dy, Shape::new([batch, neurons, results]));
    let sums = B::float_sum_dim(B::float_sum_dim(dy, 2), 0);
    B::float_reshape(sums, Shape::new([neurons]))
}

/// Input and gradient by the result of a backward pass, on a device.
#[derive(Debug)]
struct DevicePass<B: Backend> {
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    plan: Arc<Plan>,
}

impl<B: GpuOps> DevicePass<B> {
    /// The dense gradient of some neurons, `[neurons · M]`.
    fn dense_gradient(&self, neurons: &[usize]) -> FloatTensor<B> {
        let [all, inputs] = self.plan.size;
        let device = self.x.device();
        let int = |words| B::int_from_data(signed(words), &device);
        let numbers = neurons.iter().map(|neuron| *neuron as u32).collect();
        let (x, dy) = (self.x.clone(), B::float_select(self.dy.clone(), 1, int(numbers)));
        let Some(geometry) = self.plan.geometry else {
            return B::float_matmul(B::float_transpose(dy), x);
        };
        // The gradient by values of neurons that have all weights.
        let row =
            |row: usize| -> Row { (0..inputs).map(|input| (input, (row * inputs + input) as u32)).collect() };
        let groups = Groups::new(
            (0..neurons.len()).map(row),
            inputs,
            inputs.max(1),
            geometry.padded_image(),
            1,
            |row, input| geometry.offset(all, neurons[row], input),
        );
        let count = neurons.len() * inputs;
        let plan = sample_plan(&groups, Some(geometry), count);
        let places = groups.places(count);
        B::gpu_value_gradient(x, dy, int(groups.indices), int(groups.starts), int(places), plan)
    }
}

impl<B: GpuOps> DensePass for DevicePass<B> {
    fn size(&self) -> [usize; 2] {
        self.plan.size
    }

    fn add_dense_gradient(&self, neurons: &[usize], to: &mut [f32]) {
        if neurons.is_empty() || self.x.shape().contains(&0) {
            return;
        }
        let data = B::float_into_data(self.dense_gradient(neurons));
        let data = read_sync(data).unwrap_or_else(|error| panic!("cannot read a gradient: {error}"));
        let gradient: Vec<f32> = data.try_into_vec().expect("f32, as inputs and values are cast");
        to.iter_mut().zip(gradient).for_each(|(to, gradient)| *to += gradient);
    }
}

impl<B: GpuOps + GpuTraining, C: CheckpointStrategy> GpuTraining for Autodiff<B, C> {
    fn gpu_sparse_layer(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        order: IntTensor<Self>,
        indices: IntTensor<Self>,
        starts: IntTensor<Self>,
        places: IntTensor<Self>,
        backward_order: IntTensor<Self>,
        backward_indices: IntTensor<Self>,
        backward_starts: IntTensor<Self>,
        call: GpuCall,
    ) -> FloatTensor<Self> {
        let nodes = [input.node(), values.node(), bias.node()];
        let kept = |input_node, values_node| State::<B> {
            input: input_node,
            values: values_node,
            indices: indices.clone(),
            starts: starts.clone(),
            places: places.clone(),
            backward_order: backward_order.clone(),
            backward_indices: backward_indices.clone(),
            backward_starts: backward_starts.clone(),
            call: call.clone(),
        };
        let run = |input: FloatTensor<Self>, values: FloatTensor<Self>, bias: FloatTensor<Self>| {
            B::gpu_sparse_layer(
                input.into_primitive(),
                values.into_primitive(),
                bias.into_primitive(),
                order.clone(),
                indices.clone(),
                starts.clone(),
                places.clone(),
                backward_order.clone(),
                backward_indices.clone(),
                backward_starts.clone(),
                call.clone(),
            )
        };
        match GpuLayerBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = kept(prep.checkpoint(&input), prep.checkpoint(&values));
                prep.finish(state, run(input, values, bias))
            }
            OpsKind::UnTracked(prep) => prep.finish(run(input, values, bias)),
        }
    }
}
