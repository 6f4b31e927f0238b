//! The CUDA C++ of the kernels, run on a CPU: a C++ compiler takes it as it is, with `cuda_on_cpu.cpp` for what the
//! language lacks. Sanitizers watch, since nothing else checks indices on NVIDIA GPUs.

use super::source::{FLOATS, SHARED, Source, pad, pixels, place, rows, sampled, tile, tiles};
use burn::tensor::{Bytes, DType, TensorData};
use condensed::training::{Layer, Scratch};
use condensed::{CondensedWeight, ConvKernel, LinearKernel, Shape, Window};
use rand::rngs::SmallRng;
use rand::seq::index::sample;
use rand::{RngExt, SeedableRng};
use srigl_burn::gpu::groups::{Groups, Layout, most_of, which};
use srigl_burn::gpu::{chunk_of, kernels};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const SHIM: &str = include_str!("cuda_on_cpu.cpp");

/// Finds reads and writes of memory that is not there.
const ADDRESSES: &str = "address,undefined";
/// Finds units that read what others have not surely written.
const RACES: &str = "thread";

/// A kernel as a program for this machine.
struct Program {
    folder: TempDir,
    dtype: DType,
}

impl Program {
    /// `None`, and a word about it, if there is no C++ compiler.
    fn new(source: &Source, dtype: DType, sanitizer: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        // The shim has what CUDA's headers and NVRTC have, integers among it.
        let theirs = |line: &&str| {
            line.starts_with("#include") || line.starts_with("typedef") && line.ends_with("_t;")
        };
        let lines = source.text.lines().filter(|line| !theirs(line));
        write("kernel.cu", &lines.collect::<Vec<_>>().join("\n"));
        write("cuda_on_cpu.cpp", SHIM);
        let kernel = word_before(&source.text, "(", source.text.find("extern \"C\" __global__").unwrap());
        let mut main = "#include \"cuda_on_cpu.cpp\"\n".to_string();
        if let Some(at) = source.text.find("extern __shared__") {
            let shared = word_before(&source.text, "[]", at);
            main += &format!("alignas(128) char {shared}[{}];\n", source.shared);
        }
        main += "#include \"kernel.cu\"\n";
        main += &format!("int main(int, char **arguments) {{ run({kernel}, arguments); }}\n");
        write("main.cpp", &main);
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let mut command = Command::new(&compiler);
        command.args(["-std=c++20", "-O1", "-g", "-pthread", &format!("-fsanitize={sanitizer}")]);
        command.args(["-fno-sanitize-recover=all", "main.cpp", "-o", "kernel"]).current_dir(folder.path());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                let required = std::env::var_os("SRIGL_REQUIRE_CXX").is_some();
                assert!(!required, "no C++ compiler {}: {error}", compiler.display());
                println!("{} is not run: {}: {error}", source.name, compiler.display());
                return None;
            }
        };
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", source.name);
        Some(Self { folder, dtype })
    }

    /// The result of `outputs` numbers of a kernel that reads weights. Floats are rounded to its type on their way.
    fn run(
        &self,
        grid: [usize; 3],
        cube: [u32; 2],
        scalars: &[usize],
        buffers: Buffers,
        outputs: usize,
    ) -> Option<Vec<f32>> {
        let Buffers { input, groups, values, bias } = buffers;
        let [input, values, bias] = [input, &groups.place(values), bias].map(|values| self.bytes(values));
        let Groups { indices, starts, .. } = groups;
        self.launch(grid, cube, scalars, &[input, values, words(indices), words(starts), bias], outputs)
    }

    /// `None`, and a word about it, where the kernel of this machine keeps the sanitizer from starting.
    fn launch(
        &self,
        grid: [usize; 3],
        cube: [u32; 2],
        scalars: &[usize],
        buffers: &[Vec<u8>],
        outputs: usize,
    ) -> Option<Vec<f32>> {
        let path = |name: &str| self.folder.path().join(name);
        let paths: Vec<PathBuf> = (0..buffers.len()).map(|i| path(&format!("buffer{i}"))).collect();
        paths.iter().zip(buffers).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        let mut command = Command::new(path("kernel"));
        command.args(grid.iter().map(usize::to_string)).args(cube.iter().map(u32::to_string));
        command.arg(scalars.len().to_string()).args(scalars.iter().map(usize::to_string));
        command.arg((outputs * self.dtype.size()).to_string()).args(&paths).arg(path("output"));
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        if log.contains("unexpected memory mapping") {
            println!("a sanitizer does not start here: {log}");
            return None;
        }
        assert!(output.status.success(), "{command:?}: {log}");
        Some(self.floats(&path("output"), outputs))
    }

    fn bytes(&self, values: &[f32]) -> Vec<u8> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        data.convert_dtype(self.dtype).as_bytes().to_vec()
    }

    fn floats(&self, path: &Path, count: usize) -> Vec<f32> {
        let bytes = std::fs::read(path).unwrap();
        let data = TensorData::from_bytes(Bytes::from_bytes_vec(bytes), [count], self.dtype);
        data.convert::<f32>().try_into_vec().unwrap()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What a kernel reads.
struct Buffers<'a> {
    input: &'a [f32],
    groups: &'a Groups,
    values: &'a [f32],
    bias: &'a [f32],
}

/// The identifier that ends where `end` is first found after `from`.
fn word_before<'a>(text: &'a str, end: &str, from: usize) -> &'a str {
    // `__launch_bounds__(…)` is not meant.
    let from = text[from..].find(')').map_or(from, |at| from + at + 1);
    let end = from + text[from..].find(end).unwrap();
    let start = text[..end].rfind(|c: char| !c.is_alphanumeric() && c != '_').unwrap() + 1;
    &text[start..end]
}

fn floats(count: usize, rng: &mut SmallRng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Some in a hundred weights, every fifth neuron ablated. So many of the others at a time read the same inputs.
fn weight(neurons: usize, inputs: usize, percent: u32, group: usize, rng: &mut SmallRng) -> CondensedWeight {
    let mut mask = vec![false; neurons * inputs];
    let mut read = vec![false; inputs];
    for (i, neuron) in (0..neurons).filter(|neuron| neuron % 5 != 4).enumerate() {
        if group == 1 {
            read.fill_with(|| rng.random_ratio(percent, 100));
        } else if i % group == 0 {
            read.fill(false);
            sample(rng, inputs, inputs * percent as usize / 100).into_iter().for_each(|i| read[i] = true);
        }
        mask[neuron * inputs..][..inputs].copy_from_slice(&read);
    }
    let weight =
        CondensedWeight::from_masked(&floats(neurons * inputs, rng), &mask, neurons, inputs).unwrap();
    assert_eq!(weight.pattern().group(), group);
    weight
}

fn assert_close(got: &[f32], want: &[f32], dtype: DType, what: &str) {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let error = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    let tolerance = match dtype {
        DType::F32 => 1e-6,
        DType::F16 => 1e-3,
        _ => 1e-2,
    };
    assert!(error <= tolerance * norm(&mut want.iter().copied()), "{what} {dtype:?}: {error:e}");
}

#[test]
fn linear_kernels_compute_what_those_of_cpus_do() {
    let rng = &mut SmallRng::seed_from_u64(1);
    let (neurons, inputs) = (73, 3000);
    // Float types, indices of 16 bits or more, neurons that share inputs, and what to look for.
    let cases = FLOATS.map(|dtype| (dtype, true, 1, ADDRESSES));
    for (dtype, packed, group, sanitizer) in cases.into_iter().chain([
        (DType::F32, false, 1, ADDRESSES),
        (DType::F32, true, 1, RACES),
        (DType::F16, true, 2, ADDRESSES),
        (DType::F32, false, 3, ADDRESSES),
        (DType::F32, true, 4, RACES),
    ]) {
        let weight = weight(neurons, inputs, 10, group, rng);
        let (pattern, bias) = (weight.pattern(), floats(neurons, rng));
        let chunk = chunk_of(SHARED, dtype, 3072, most_of(pattern));
        let span = if packed { inputs } else { 1 << 20 };
        let rows_of = pattern.rows(which);
        let groups = Groups::new(rows_of, inputs, chunk, span, most_of(pattern), |_, input| input as u32);
        let Layout { bunch, seats, chunks, .. } = groups.layout;
        assert!(groups.layout.packed == packed && chunks > 1);
        assert_eq!(bunch, group.next_power_of_two());
        for (batch, source) in [(3, rows(dtype, packed, bunch)), (77, tiles(dtype, packed, bunch))] {
            let Some(program) = Program::new(&source, dtype, sanitizer) else { return };
            let input = floats(batch * inputs, rng);
            let mut want = vec![0.0; batch * neurons];
            LinearKernel::new(&weight, &bias).unwrap().run(batch, &input, &mut want);
            let values = weight.values();
            let buffers = Buffers { input: &input, groups: &groups, values, bias: &bias };
            let got = if source.name.starts_with("rows") {
                let grid = [seats.div_ceil(kernels::ROWS as usize), batch, 1];
                let scalars = [inputs, neurons, seats, chunks];
                program.run(grid, [kernels::LANES, kernels::ROWS], &scalars, buffers, want.len())
            } else {
                let tile = tile(bunch);
                let grid = [batch.div_ceil(32), seats.div_ceil(tile as usize), 1];
                let scalars = [batch, inputs, neurons, seats, chunks];
                program.run(grid, [kernels::QUADS, tile], &scalars, buffers, want.len())
            };
            if let Some(got) = got {
                assert_close(&got, &want, dtype, &source.name);
            }
        }
    }
}

/// Channels last in memory, rows of seven values for five, and more zeros on one side than on the other.
#[test]
fn padding_takes_images_in_any_order() {
    let [batch, channels, height, width] = [2, 3, 4, 5];
    let [top, bottom, left, right] = [1, 0, 2, 1];
    let (row, pixel) = (7 * channels, channels);
    let memory: Vec<f32> = (1..=batch * height * row).map(|i| i as f32).collect();
    let (padded_height, padded_width) = (height + top + bottom, width + left + right);
    let mut want = vec![0.0; batch * channels * padded_height * padded_width];
    for (at, value) in want.iter_mut().enumerate() {
        let (x, line) = (at % padded_width, at / padded_width);
        let (y, plane) = (line % padded_height, line / padded_height);
        if (left..left + width).contains(&x) && (top..top + height).contains(&y) {
            let image = plane / channels * height * row + plane % channels;
            *value = memory[image + (y - top) * row + (x - left) * pixel];
        }
    }
    for dtype in FLOATS {
        let Some(program) = Program::new(&pad(dtype), dtype, ADDRESSES) else { return };
        let total = want.len();
        let strides = [height * row, 1, row, pixel];
        let shape = [channels, height, width, padded_height, padded_width, top, left, 1, 1, total];
        let scalars: Vec<usize> = strides.into_iter().chain(shape).collect();
        let buffers = [program.bytes(&memory)];
        let got = program.launch([total.div_ceil(256), 1, 1], [256, 1], &scalars, &buffers, total);
        assert_eq!(got.unwrap(), want, "{dtype:?}");
    }
}

#[test]
fn convolution_kernels_compute_what_those_of_cpus_do() {
    let rng = &mut SmallRng::seed_from_u64(2);
    let (batch, neurons) = (2, 22);
    let window = Window { kernel: [3, 3], stride: [2, 1], padding: [0, 0], dilation: [1, 2] };
    let image = Shape { features: 5, height: 11, width: 13 };
    // Too large for indices of 16 bits.
    let large = Shape { features: 3, height: 152, width: 150 };
    for (image, packed, group) in [(image, true, 1), (large, false, 1), (image, true, 2), (image, true, 4)] {
        let weight = weight(neurons, image.features * 9, 30, group, rng);
        let bias = floats(neurons, rng);
        let input = floats(batch * image.len(), rng);
        let [height, width] = window.output_size(image).unwrap();
        let mut want = vec![0.0; batch * neurons * height * width];
        ConvKernel::new(&weight, &bias, window, 1, image).unwrap().run(batch, &input, &mut want);
        let offset = |_: usize, input: usize| {
            let (channel, y, x) = (input / 9, input / 3 % 3, input % 3);
            ((channel * image.height + y) * image.width + 2 * x) as u32
        };
        let groups = Groups::convolution(weight.pattern(), image.len(), offset);
        let Layout { bunch, seats, .. } = groups.layout;
        assert_eq!((groups.layout.packed, bunch), (packed, group));
        for dtype in FLOATS {
            let source = pixels(dtype, packed, bunch);
            let Some(program) = Program::new(&source, dtype, ADDRESSES) else { return };
            let pixels = height * width;
            let total = batch * pixels;
            let blocks = total.div_ceil(4 * kernels::PIXELS as usize);
            // The last block is only partly there.
            let grid = [2, (seats / bunch).div_ceil(kernels::ROWS as usize), blocks.div_ceil(2)];
            let scalars = [image.len(), image.width, 2, 1, neurons, seats, pixels, width, total];
            let values = weight.values();
            let buffers = Buffers { input: &input, groups: &groups, values, bias: &bias };
            let got = program.run(grid, [kernels::PIXELS, kernels::ROWS], &scalars, buffers, want.len());
            assert_close(&got.unwrap(), &want, dtype, &source.name);
        }
    }
}

/// Pixels two rows and three columns apart, and an image that loses its first row.
#[test]
fn padding_spreads_pixels_and_crops_images() {
    let (height, width, step) = (3, 4, [2, 3]);
    let image: Vec<f32> = (1..=height * width).map(|i| i as f32).collect();
    let Some(program) = Program::new(&pad(DType::F32), DType::F32, ADDRESSES) else { return };
    let (padded_height, padded_width, left) = (6, 12, 1);
    let mut want = vec![0.0; padded_height * padded_width];
    for (i, value) in image.iter().enumerate() {
        let (y, x) = (i / width * step[0], i % width * step[1] + left);
        if y >= 1 {
            want[(y - 1) * padded_width + x] = *value;
        }
    }
    let top = -1i32 as u32 as usize;
    let strides = [image.len(), image.len(), width, 1];
    let shape = [1, height, width, padded_height, padded_width, top, left, step[0], step[1], want.len()];
    let scalars: Vec<usize> = strides.into_iter().chain(shape).collect();
    let buffers = [program.bytes(&image)];
    let got = program.launch([1, 1, 1], [256, 1], &scalars, &buffers, want.len());
    assert_eq!(got.unwrap(), want);
}

#[test]
fn values_are_placed_and_parts_added() {
    let Some(program) = Program::new(&place(DType::F32), DType::F32, ADDRESSES) else { return };
    let source = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0];
    let order = [2, u32::MAX, 0, 3];
    let buffers = [program.bytes(&source), words(&order)];
    let got = program.launch([1, 1, 1], [256, 1], &[2, 3, 4], &buffers, 4);
    assert_eq!(got.unwrap(), [33.0, 0.0, 11.0, 0.0]);
}

/// Of convolutions with indices of 16 bits or more, and of linear layers, in several parts.
#[test]
fn sampled_gradients_are_those_of_cpus() {
    let rng = &mut SmallRng::seed_from_u64(3);
    let (batch, neurons) = (3, 22);
    let window = Window { kernel: [3, 3], stride: [2, 1], padding: [0, 0], dilation: [1, 2] };
    let image = Shape { features: 5, height: 11, width: 13 };
    let linear = Shape { features: 50, height: 1, width: 1 };
    for (flat, packed, group, sanitizer) in [
        (false, true, 1, ADDRESSES),
        (false, false, 1, ADDRESSES),
        (true, true, 1, ADDRESSES),
        (true, false, 1, ADDRESSES),
        (true, true, 1, RACES),
        (false, true, 4, ADDRESSES),
        (true, false, 2, ADDRESSES),
        (true, true, 4, RACES),
    ] {
        let batch = if flat { 70 } else { batch };
        let shape = if flat { linear } else { image };
        let fan_in = if flat { 50 } else { image.features * 9 };
        let weight = weight(neurons, fan_in, 40, group, rng);
        let pattern = weight.pattern();
        let layer = match flat {
            true => Layer::linear(pattern).unwrap(),
            false => Layer::conv2d(pattern, window, 1, image).unwrap(),
        };
        let output = layer.output_shape();
        let (input, gradient) = (floats(batch * shape.len(), rng), floats(batch * output.len(), rng));
        let mut want = vec![0.0; pattern.len()];
        let scratch = &mut Scratch::default();
        layer.backward(weight.values(), batch, &input, &gradient, None, &mut want, scratch).unwrap();

        let offset = |_: usize, input: usize| {
            let (channel, y, x) = (input / 9, input / 3 % 3, input % 3);
            ((channel * image.height + y) * image.width + 2 * x) as u32
        };
        let span = if packed { 1 << 16 } else { 1 << 20 };
        let groups = match flat {
            true => {
                let rows = pattern.rows(which);
                Groups::new(rows, fan_in, 32, span, most_of(pattern), |_, input| input as u32)
            }
            false => Groups::convolution(pattern, span, offset),
        };
        let Layout { bunch, seats, chunks, .. } = groups.layout;
        assert!(groups.layout.packed == packed && bunch == group && (chunks > 1) == flat);
        let (results, pixels) = (batch * output.height * output.width, output.height * output.width);
        let (input, gradient) = match flat {
            true => (transpose(&input, fan_in), transpose(&gradient, neurons)),
            false => (input, gradient),
        };
        let part = 64;
        let parts = results.div_ceil(part);
        for dtype in FLOATS {
            let source = sampled(dtype, packed, flat, bunch);
            let Some(program) = Program::new(&source, dtype, sanitizer) else { return };
            let grid = [seats / bunch, groups.most().div_ceil(kernels::ROWS as usize), parts];
            let [image, width, stride_y, stride_x] =
                if flat { [0; 4] } else { [image.len(), image.width, 2, 1] };
            let shape = [image, width, stride_y, stride_x, neurons, seats, pixels, output.width];
            let rest = [chunks, groups.count(), results, part];
            let scalars: Vec<usize> = shape.into_iter().chain(rest).collect();
            let [input, gradient] = [&input, &gradient].map(|numbers| program.bytes(numbers));
            let buffers = [input, gradient, words(&groups.indices), words(&groups.starts)];
            let cube = [kernels::LANES, kernels::ROWS];
            let length = groups.order.len();
            let Some(sums) = program.launch(grid, cube, &scalars, &buffers, parts * length) else { continue };
            let places = groups.places(pattern.len());
            let sum = |place: &u32| sums.iter().skip(*place as usize).step_by(length).sum();
            let got: Vec<f32> = places.iter().map(sum).collect();
            assert_close(&got, &want, dtype, &source.name);
        }
    }
}

/// `[rows, columns]` the other way round.
fn transpose(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}
