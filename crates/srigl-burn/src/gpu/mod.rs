//! Condensed layers on GPUs: CubeCL kernels behind operations of Burn's Cube backend.

pub mod groups;
pub mod kernels;
pub(crate) mod training;

use crate::condensed_ops::lock;
use crate::place::Place;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Int, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
pub(crate) use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use condensed::CondensedWeight;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use groups::{GROUP, Groups, Layout, index_words, most_of};
use std::sync::Mutex;

/// Batches up to this size are bound by reading the weights and take [`kernels::rows`].
const SMALL_BATCH: usize = 8;

/// Bytes of shared memory with which units of [`kernels::tiles`] add up what they have of a bunch.
fn exchange(shared_memory: usize, bunch: usize) -> usize {
    if bunch == 1 { 0 } else { (shared_memory / 8).min(16 << 10) }
}

/// Inputs of a chunk of [`kernels::tiles`], for a device with so much memory to share in a cube and bunches of at most `most`
/// neurons: half of the memory, so that two cubes fit on a multiprocessor where there are more cubes than these, and whole lines
/// of 32 inputs.
pub fn chunk_of(shared_memory: usize, dtype: DType, inputs: usize, most: usize) -> usize {
    let column = (kernels::QUADS as usize + 1) * GROUP * dtype.size();
    let bytes = shared_memory / 2 - exchange(shared_memory, most);
    (bytes / column / 32 * 32).clamp(32, inputs.next_multiple_of(32).max(32))
}

/// Units of a cube of [`kernels::tiles`] at most, on a device with so much memory to share in a cube and at most `most_units`
/// units in one.
pub fn tile_units(shared_memory: usize, bunch: usize, most_units: usize) -> usize {
    let sums = GROUP * size_of::<f32>();
    if bunch == 1 { most_units } else { most_units.min(exchange(shared_memory, bunch) / sums) }
}

/// Neurons, or seats, of a cube of [`kernels::tiles`] on a device with so many multiprocessors and at most `most_units` units in
/// a cube. `reads` is the fan-in of a neuron, divided by the neurons of a bunch.
///
/// Cubes start in waves of one on each multiprocessor. In its wave a cube copies its inputs, at 64 bytes a cycle, and then
/// reads them once for each weight, at 128; the fewest cycles win. More neurons share a copy, fewer leave no
/// multiprocessor without work.
pub fn tile_neurons(
    neurons: usize,
    batch: usize,
    inputs: usize,
    reads: usize,
    multiprocessors: usize,
    most_units: usize,
) -> u32 {
    let samples = kernels::QUADS as usize * GROUP;
    let cycles = |tile: usize| {
        let cubes = neurons.div_ceil(tile) * batch.div_ceil(samples);
        cubes.div_ceil(multiprocessors) * (tile * reads + 2 * inputs)
    };
    let fits = |tile: &usize| tile * kernels::QUADS as usize <= most_units;
    let tiles = [16, 32, 48, 64, 96, 128].into_iter().filter(fits);
    tiles.min_by_key(|tile| cycles(*tile)).unwrap_or(16) as u32
}

/// The device of a tensor that the kernels run on; `None` for others and under autodiff.
pub(crate) fn device(device: &Device) -> Option<CubeDevice> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.clone()),
        _ => None,
    }
}

/// The tensor in a type that the kernels compute in: its own if that is f16, bf16 or f32.
pub(crate) fn in_kernel_type<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 | DType::F32 => tensor,
        _ => tensor.cast(FloatDType::F32),
    }
}

/// The tensor in the type that a layer's input had.
pub(crate) fn in_type<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype { tensor } else { tensor.cast(dtype) }
}

/// A layer's weights on the devices that it has run on, `K` apart from device and type telling them apart.
#[derive(Debug)]
pub(crate) struct Copies<K, W>(Mutex<Vec<Copy<K, W>>>);

#[derive(Debug)]
struct Copy<K, W> {
    key: K,
    device: Device,
    dtype: DType,
    weight: W,
}

/// Copies of weights that a layer keeps; the oldest goes when another is made.
const COPIES: usize = 8;

impl<K, W> Default for Copies<K, W> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, W: Clone> Copies<K, W> {
    /// The copy for a device and type, made if there is none yet.
    pub fn get(&self, key: K, place: &Place, make: impl FnOnce() -> W) -> W {
        let known = |copies: &[Copy<K, W>]| {
            let copy = copies
                .iter()
                .find(|copy| copy.key == key && copy.device == *place.device && copy.dtype == place.dtype);
            copy.map(|copy| copy.weight.clone())
        };
        if let Some(weight) = known(&lock(&self.0)) {
            return weight;
        }
        // Made without the lock: no thread may wait for it inside Burn.
        let weight = make();
        let mut copies = lock(&self.0);
        if let Some(weight) = known(&copies) {
            return weight;
        }
        if copies.len() == COPIES {
            copies.remove(0);
        }
        let device = place.device.clone();
        copies.push(Copy { key, device, dtype: place.dtype, weight: weight.clone() });
        weight
    }
}

/// Weights on a device, in one float type.
#[derive(Debug, Clone)]
struct DeviceWeight {
    /// `[groups · bunch · 4]`.
    values: Tensor<1>,
    /// Two to a word if packed, of the bits of a u32.
    indices: Tensor<1, Int>,
    /// As [`Groups`] has them.
    starts: Tensor<1, Int>,
    bias: Tensor<1>,
    layout: Layout,
}

impl DeviceWeight {
    fn new(groups: Groups, values: &[f32], bias: &[f32], place: &Place) -> Self {
        let floats = |values: Vec<f32>| {
            let length = values.len();
            place.tensor(values, [length])
        };
        Self {
            values: floats(groups.place(values)),
            indices: words(groups.indices, place.device),
            starts: words(groups.starts, place.device),
            // Not empty, also of a layer without neurons.
            bias: floats(if bias.is_empty() { vec![0.0] } else { bias.to_vec() }),
            layout: groups.layout,
        }
    }
}

/// A tensor's integers are signed; the kernels take the same bits as words.
fn signed(words: Vec<u32>) -> TensorData {
    let length = words.len();
    TensorData::new(words.into_iter().map(u32::cast_signed).collect::<Vec<i32>>(), [length])
}

fn words(words: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(signed(words), (device, DType::I32))
}

/// Weights of a linear layer.
#[derive(Debug, Clone)]
pub(crate) struct LinearWeight {
    weight: DeviceWeight,
    plan: LinearPlan,
}

impl LinearWeight {
    /// Inputs lie in chunks that a tile of the device's shared memory holds.
    pub fn new(weight: &CondensedWeight, bias: &[f32], place: &Place, cube: &CubeDevice) -> Self {
        let pattern = weight.pattern();
        let chunk = chunk_on(cube, place.dtype, pattern.inputs(), most_of(pattern));
        let groups = Groups::linear(pattern, chunk);
        let plan = LinearPlan::new(&groups, chunk, pattern.len() / pattern.active().len().max(1));
        Self { weight: DeviceWeight::new(groups, weight.values(), bias, place), plan }
    }

    /// `[batch, M]` → `[batch, N]`.
    pub fn run(&self, input: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.clone();
        Tensor::from_dispatch(Dispatch::gpu_condensed_linear(
            input.into_dispatch(),
            weight.values.into_dispatch(),
            weight.bias.into_dispatch(),
            weight.indices.into_dispatch(),
            weight.starts.into_dispatch(),
            self.plan.clone(),
        ))
    }
}

/// Weights of a convolution on images of one size.
#[derive(Debug, Clone)]
pub(crate) struct ConvWeight(DeviceWeight);

impl ConvWeight {
    /// `offset` gives the place of an input `(neuron, input)` in a padded image of `image` values, from the corner of
    /// the window.
    pub fn new(
        weight: &CondensedWeight,
        bias: &[f32],
        place: &Place,
        image: usize,
        offset: impl Fn(usize, usize) -> u32,
    ) -> Self {
        let groups = Groups::convolution(weight.pattern(), image, offset);
        Self(DeviceWeight::new(groups, weight.values(), bias, place))
    }

    /// Images `[batch, C, H, W]` → `[batch, N, H', W']`.
    pub fn run(&self, input: Tensor<4>, shape: ConvShape) -> Tensor<4> {
        let weight = self.0.clone();
        let plan = ConvPlan { shape, layout: weight.layout };
        Tensor::from_dispatch(Dispatch::gpu_condensed_conv2d(
            input.into_dispatch(),
            weight.values.into_dispatch(),
            weight.bias.into_dispatch(),
            weight.indices.into_dispatch(),
            weight.starts.into_dispatch(),
            plan,
        ))
    }
}

/// What a launch of the linear kernels must know besides its tensors.
#[derive(Debug, Clone)]
pub(crate) struct LinearPlan {
    layout: Layout,
    chunk: usize,
    /// Weights of an active neuron, on average.
    fan_in: usize,
}

impl LinearPlan {
    /// For weights in these groups, which stay within chunks of `chunk` inputs.
    fn new(groups: &Groups, chunk: usize, fan_in: usize) -> Self {
        Self { layout: groups.layout, chunk, fan_in }
    }
}

/// [`chunk_of`] on a device.
fn chunk_on(cube: &CubeDevice, dtype: DType, inputs: usize, most: usize) -> usize {
    chunk_of(cube.client().properties().hardware.max_shared_memory_size, dtype, inputs, most)
}

/// How images become those that a kernel reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Padding {
    /// Zeros on the vertical and the horizontal axis before an image; where negative, what is left out of it.
    pub before: [isize; 2],
    /// Height and width of what comes out.
    pub size: [usize; 2],
    /// Distance of the image's pixels in it, with zeros in between.
    pub step: [usize; 2],
}

/// What a convolution does with an image, besides its weights.
#[derive(Debug, Clone)]
pub(crate) struct ConvShape {
    pub neurons: usize,
    pub padding: Padding,
    pub stride: [usize; 2],
    /// Height and width of the result.
    pub output: [usize; 2],
}

/// What a launch of the convolution's kernel must know besides its tensors.
#[derive(Debug, Clone)]
pub(crate) struct ConvPlan {
    shape: ConvShape,
    layout: Layout,
}

/// What a launch of [`kernels::sampled`] must know besides its tensors.
#[derive(Debug, Clone)]
pub(crate) struct SamplePlan {
    /// How images are read; `None` for a linear layer, whose tensors come transposed.
    pub images: Option<Window>,
    pub layout: Layout,
    pub groups: usize,
    /// Groups of the bunch that has most.
    pub most: usize,
    /// Numbers of the result.
    pub values: usize,
}

/// How a convolution's windows lie on its images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub padding: Padding,
    pub stride: [usize; 2],
}

/// The kernels as operations of Burn's Cube backend, with or without fusion.
#[backend_extension(Cube, Fusion)]
pub(crate) trait GpuOps: Backend {
    /// `[batch, M]` → `[batch, N]`.
    #[fusion(dtype = input, shape = Shape::new([input[0], plan.layout.neurons]))]
    fn gpu_condensed_linear(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        indices: IntTensor<Self>,
        starts: IntTensor<Self>,
        plan: LinearPlan,
    ) -> FloatTensor<Self>;

    /// `[batch, C, H, W]` → `[batch, N, H', W']`.
    #[fusion(
        dtype = input,
        shape = Shape::new([input[0], plan.shape.neurons, plan.shape.output[0], plan.shape.output[1]])
    )]
    fn gpu_condensed_conv2d(
        input: FloatTensor<Self>,
        values: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        indices: IntTensor<Self>,
        starts: IntTensor<Self>,
        plan: ConvPlan,
    ) -> FloatTensor<Self>;

    /// Values `[room]` at the places of a layer's groups, `[places]`.
    #[fusion(dtype = values, shape = Shape::new([*places]))]
    fn gpu_place(values: FloatTensor<Self>, order: IntTensor<Self>, places: usize) -> FloatTensor<Self>;

    /// The gradient `[values]` by a layer's values, from its input and the gradient by its result.
    #[fusion(dtype = input, shape = Shape::new([plan.values]))]
    fn gpu_value_gradient(
        input: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        indices: IntTensor<Self>,
        starts: IntTensor<Self>,
        places: IntTensor<Self>,
        plan: SamplePlan,
    ) -> FloatTensor<Self>;
}

impl GpuOps for CubeBackend {
    fn gpu_condensed_linear(
        input: CubeTensor,
        values: CubeTensor,
        bias: CubeTensor,
        indices: CubeTensor,
        starts: CubeTensor,
        plan: LinearPlan,
    ) -> CubeTensor {
        // A bias of training is whatever tensor its parameter is.
        let (input, bias) = (into_contiguous(input), into_contiguous(bias));
        let (batch, inputs) = (input.meta.shape()[0], input.meta.shape()[1]);
        let Layout { neurons, bunch, seats, packed, chunks } = plan.layout;
        let output = empty(&input, [batch, neurons].into());
        if output.meta.num_elements() == 0 {
            return output;
        }
        check_addresses(&input, &output);
        let (client, dtype) = (input.client.clone(), dtype_to_storage_type(input.dtype));
        if batch <= SMALL_BATCH {
            kernels::rows::launch(
                &client,
                CubeCount::Static((seats as u32).div_ceil(kernels::ROWS), batch as u32, 1),
                CubeDim::new_2d(kernels::LANES, kernels::ROWS),
                GROUP,
                index_words(packed),
                input.into_buffer_arg(),
                values.into_buffer_arg(),
                indices.into_buffer_arg(),
                starts.into_buffer_arg(),
                bias.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                inputs as u32,
                neurons as u32,
                seats as u32,
                chunks as u32,
                bunch,
                packed,
                dtype,
            );
        } else {
            let hardware = &client.properties().hardware;
            let multiprocessors = hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
            let units =
                tile_units(hardware.max_shared_memory_size, bunch, hardware.max_units_per_cube as usize);
            let tile = tile_neurons(seats, batch, inputs, plan.fan_in / bunch, multiprocessors, units);
            let samples = kernels::QUADS * GROUP as u32;
            kernels::tiles::launch(
                &client,
                CubeCount::Static((batch as u32).div_ceil(samples), (seats as u32).div_ceil(tile), 1),
                CubeDim::new_2d(kernels::QUADS, tile),
                GROUP,
                index_words(packed),
                input.into_buffer_arg(),
                values.into_buffer_arg(),
                indices.into_buffer_arg(),
                starts.into_buffer_arg(),
                bias.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                batch as u32,
                inputs as u32,
                neurons as u32,
                seats as u32,
                chunks as u32,
                tile,
                plan.chunk as u32,
                bunch,
                packed,
                dtype,
            );
        }
        output
    }

    fn gpu_condensed_conv2d(
        input: CubeTensor,
        values: CubeTensor,
        bias: CubeTensor,
        indices: CubeTensor,
        starts: CubeTensor,
        plan: ConvPlan,
    ) -> CubeTensor {
        let ConvPlan { shape, layout: Layout { bunch, seats, packed, .. } } = plan;
        let bias = into_contiguous(bias);
        let batch = input.meta.shape()[0];
        let [height_out, width_out] = shape.output;
        let output = empty(&input, [batch, shape.neurons, height_out, width_out].into());
        if output.meta.num_elements() == 0 {
            return output;
        }
        let input = padded(input, shape.padding);
        check_addresses(&input, &output);
        let [channels, height, width] = std::array::from_fn(|axis| input.meta.shape()[axis + 1]);
        let image = channels * height * width;
        let (client, dtype) = (input.client.clone(), dtype_to_storage_type(input.dtype));
        let (neurons, out_pixels) = (shape.neurons as u32, (height_out * width_out) as u32);
        let total = batch as u32 * out_pixels;
        let blocks = total.div_ceil(4 * kernels::PIXELS);
        // An axis of cubes ends at 65 535 on some devices.
        let across = blocks.min(u16::MAX.into());
        kernels::pixels::launch(
            &client,
            CubeCount::Static(
                across,
                ((seats / bunch) as u32).div_ceil(kernels::ROWS),
                blocks.div_ceil(across),
            ),
            CubeDim::new_2d(kernels::PIXELS, kernels::ROWS),
            GROUP,
            index_words(packed),
            input.into_buffer_arg(),
            values.into_buffer_arg(),
            indices.into_buffer_arg(),
            starts.into_buffer_arg(),
            bias.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            image as u32,
            width as u32,
            shape.stride[0] as u32,
            shape.stride[1] as u32,
            neurons,
            seats as u32,
            out_pixels,
            width_out as u32,
            total,
            bunch,
            packed,
            dtype,
        );
        output
    }

    fn gpu_place(values: CubeTensor, order: CubeTensor, places: usize) -> CubeTensor {
        let values = into_contiguous(values);
        let room = values.meta.num_elements();
        place(values, order, 1, room, places)
    }

    fn gpu_value_gradient(
        input: CubeTensor,
        gradient: CubeTensor,
        indices: CubeTensor,
        starts: CubeTensor,
        places: CubeTensor,
        plan: SamplePlan,
    ) -> CubeTensor {
        let gradient = into_contiguous(gradient);
        let gradients = gradient.meta.shape().to_vec();
        let (input, image, width, stride, out_width) = match plan.images {
            Some(Window { padding, stride }) => {
                let input = padded(input, padding);
                let [height, width] = padding.size;
                let image = input.meta.shape()[1] * height * width;
                (input, image, width, stride, gradients[3])
            }
            None => (into_contiguous(input), 0, 0, [0; 2], 0),
        };
        // `[batch, N, H', W']`, or `[N, batch]` of a linear layer.
        let (neurons, results, out_pixels) = match gradients[..] {
            [batch, neurons, height, width] => (neurons, batch * height * width, height * width),
            _ => (gradients[0], gradients[1], 1),
        };
        check_addresses(&input, &gradient);
        let (client, dtype) = (input.client.clone(), dtype_to_storage_type(input.dtype));
        let multiprocessors =
            client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
        let Layout { bunch, seats, packed, chunks, .. } = plan.layout;
        let cubes = seats / bunch * plan.most.div_ceil(kernels::ROWS as usize);
        let (parts, part) = parts(cubes, results, multiprocessors);
        if cubes == 0 || results == 0 {
            return zeros_client(client, input.device.clone(), Shape::new([plan.values]), input.dtype);
        }
        let length = plan.groups * bunch * GROUP;
        let output = empty(&input, [parts * length].into());
        kernels::sampled::launch(
            &client,
            CubeCount::Static(
                (seats / bunch) as u32,
                plan.most.div_ceil(kernels::ROWS as usize) as u32,
                parts as u32,
            ),
            CubeDim::new_2d(kernels::LANES, kernels::ROWS),
            GROUP,
            index_words(packed),
            input.into_buffer_arg(),
            gradient.into_buffer_arg(),
            indices.into_buffer_arg(),
            starts.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            image as u32,
            width as u32,
            stride[0] as u32,
            stride[1] as u32,
            neurons as u32,
            seats as u32,
            out_pixels as u32,
            out_width as u32,
            chunks as u32,
            plan.groups as u32,
            results as u32,
            part as u32,
            bunch,
            packed,
            plan.images.is_none(),
            dtype,
        );
        place(output, places, parts, length, plan.values)
    }
}

/// Parts in which [`kernels::sampled`] takes results, and the length of one: enough cubes to fill the device, no cube with
/// little to add up.
fn parts(cubes: usize, results: usize, multiprocessors: usize) -> (usize, usize) {
    const CUBES: usize = 8;
    const LEAST: usize = 1024;
    let wanted = (CUBES * multiprocessors).div_ceil(cubes.max(1));
    let parts = wanted.clamp(1, results.div_ceil(LEAST).max(1));
    let part = results.div_ceil(parts).next_multiple_of(kernels::LANES as usize).max(1);
    (results.div_ceil(part).max(1), part)
}

/// Runs [`kernels::place`].
fn place(source: CubeTensor, order: CubeTensor, parts: usize, length: usize, total: usize) -> CubeTensor {
    let output = empty(&source, [total].into());
    if total == 0 {
        return output;
    }
    let (client, dtype) = (source.client.clone(), dtype_to_storage_type(source.dtype));
    let dim = CubeDim::new_1d(256);
    kernels::place::launch(
        &client,
        calculate_cube_count_elemwise(&client, total, dim),
        dim,
        source.into_buffer_arg(),
        order.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        parts as u32,
        length as u32,
        total as u32,
        dtype,
    );
    output
}

/// The kernels count in 32 bits.
fn check_addresses(input: &CubeTensor, output: &CubeTensor) {
    for tensor in [input, output] {
        let (shape, most) = (tensor.meta.shape(), u32::MAX as usize);
        assert!(
            tensor.meta.num_elements() <= most,
            "condensed layers on GPUs take and give up to {most} numbers at a time, not {shape:?}: use smaller batches"
        );
    }
}

/// Images with zeros around and between their pixels, in the order of their dimensions.
fn padded(input: CubeTensor, padding: Padding) -> CubeTensor {
    let [batch, channels, height, width] = std::array::from_fn(|axis| input.meta.shape()[axis]);
    let same = Padding { before: [0; 2], size: [height, width], step: [1; 2] };
    if padding == same && input.is_contiguous() {
        return input;
    }
    let strides: [u32; 4] = std::array::from_fn(|axis| input.meta.strides()[axis] as u32);
    let Padding { before: [top, left], size: [padded_height, padded_width], step } = padding;
    let output = empty(&input, [batch, channels, padded_height, padded_width].into());
    check_addresses(&input, &output);
    let total = output.meta.num_elements();
    if total == 0 {
        return output;
    }
    let (client, dtype) = (input.client.clone(), dtype_to_storage_type(input.dtype));
    let dim = CubeDim::new_1d(256);
    kernels::pad::launch(
        &client,
        calculate_cube_count_elemwise(&client, total, dim),
        dim,
        input.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        strides[0],
        strides[1],
        strides[2],
        strides[3],
        channels as u32,
        height as u32,
        width as u32,
        padded_height as u32,
        padded_width as u32,
        top as u32,
        left as u32,
        step[0] as u32,
        step[1] as u32,
        total as u32,
        dtype,
    );
    output
}

/// Memory for a result beside `like`, of its type.
fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, like.dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_leave_no_multiprocessor_of_an_h100_without_work() {
        // 128 cubes on 132 multiprocessors.
        assert_eq!(tile_neurons(768, 256, 3072, 307, 132, 1024), 48);
        // Many neurons with few weights: copying counts, so more of them share it.
        assert!(tile_neurons(4096, 256, 3072, 31, 132, 1024) > 48);
        // A device that allows 256 units in a cube.
        assert!(tile_neurons(768, 256, 3072, 307, 1, 256) <= 32);
        assert_eq!(tile_neurons(1, 9, 1, 1, 1, 64), 16);
    }

    #[test]
    fn chunks_fit_twice_into_shared_memory() {
        for dtype in [DType::F32, DType::F16] {
            for bunch in [1, 2, 4] {
                let chunk = chunk_of(227 << 10, dtype, 100_000, bunch);
                let tile = chunk * (kernels::QUADS as usize + 1) * GROUP * dtype.size();
                assert!(2 * (tile + exchange(227 << 10, bunch)) <= 227 << 10);
                assert!(chunk.is_multiple_of(32) && chunk > 600, "{chunk}");
            }
        }
        assert_eq!(chunk_of(16 << 10, DType::F32, 3, 1), 32);
    }

    #[test]
    fn what_units_exchange_fits_beside_the_smallest_tile() {
        for shared in [16, 32, 48, 227].map(|kib| kib << 10) {
            let bytes = |units: usize| units * GROUP * size_of::<f32>();
            let units = tile_units(shared, 4, 1024);
            // The fewest units of a cube.
            assert!(units >= 16 * kernels::QUADS as usize);
            let tile = chunk_of(shared, DType::F32, 4000, 4) * (kernels::QUADS as usize + 1) * bytes(1);
            assert!(tile + bytes(units) <= shared / 2, "{tile} and {units} of {shared}");
            assert_eq!(tile_units(shared, 1, 1024), 1024);
        }
    }
}
