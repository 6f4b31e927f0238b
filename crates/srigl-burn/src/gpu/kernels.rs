//! The kernels, in CubeCL. Sums are taken in f32 whatever the type of inputs and weights.
//!
//! Weights come in groups of four, `values[g]` with the inputs that they read. The groups of neuron `n` whose
//! inputs lie in chunk `c` are `starts[n · chunks + c] .. starts[n · chunks + c + 1]`; the chunks of a neuron
//! follow each other, and the neurons too. An ablated neuron has no groups, and gives its bias.

// The macro's code, not ours.
#![allow(missing_docs, clippy::too_many_arguments)]

use cubecl::prelude::*;

/// Units that share a neuron in [`rows`], which adds them up in five levels.
pub const LANES: u32 = 32;
/// Neurons per cube in [`rows`] and [`pixels`].
pub const ROWS: u32 = 8;
/// Units side by side in the batch in [`tiles`], each with a vector of four samples.
pub const QUADS: u32 = 8;
/// Neurons per cube in [`tiles`].
pub const TILE_NEURONS: u32 = 32;
/// Pixels per cube in [`pixels`].
pub const PIXELS: u32 = 32;

/// The inputs that the four weights of a group read: two 16-bit indices in a word, or four words.
#[cube]
fn index<const L: u32>(indices: &[u32], group: usize, #[comptime] packed: bool) -> usize {
    if comptime!(packed) {
        let word = indices[group * 2usize + comptime!((L / 2) as usize)];
        if comptime!(L % 2 == 0) { (word & 0xffffu32) as usize } else { (word >> 16u32) as usize }
    } else {
        indices[group * 4usize + comptime!(L as usize)] as usize
    }
}

/// Small batches: 32 units take turns through the groups of a neuron, then add up. Bound by the bytes of the
/// weights; a warp reads 512 bytes of values in a row.
///
/// `input` `[batch, M]`, `output` `[batch, N]`. Cubes: (N / 8, batch).
#[cube(launch)]
pub fn rows<F: Float, V: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[u32],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    inputs: u32,
    neurons: u32,
    chunks: u32,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut partial = Shared::<[f32]>::new_slice(comptime!((LANES * ROWS) as usize));
    let neuron = CUBE_POS_X * ROWS + UNIT_POS_Y;
    let sample = (CUBE_POS_Y * inputs) as usize;
    let mut sum = 0.0f32;
    if neuron < neurons {
        let end = starts[((neuron + 1) * chunks) as usize];
        let mut group = starts[(neuron * chunks) as usize] + UNIT_POS_X;
        while group < end {
            let g = group as usize;
            let w = Vector::<f32, V>::cast_from(values[g]);
            sum += w.extract(0usize) * f32::cast_from(input[sample + index::<0>(indices, g, packed)]);
            sum += w.extract(1usize) * f32::cast_from(input[sample + index::<1>(indices, g, packed)]);
            sum += w.extract(2usize) * f32::cast_from(input[sample + index::<2>(indices, g, packed)]);
            sum += w.extract(3usize) * f32::cast_from(input[sample + index::<3>(indices, g, packed)]);
            group += LANES;
        }
    }
    let at = (UNIT_POS_Y * LANES + UNIT_POS_X) as usize;
    partial[at] = sum;
    sync_cube();
    for level in 1..6u32 {
        let half = 32u32 >> level;
        if UNIT_POS_X < half {
            let both = partial[at] + partial[at + half as usize];
            partial[at] = both;
        }
        sync_cube();
    }
    if UNIT_POS_X == 0 {
        if neuron < neurons {
            let sum = partial[at] + f32::cast_from(bias[neuron as usize]);
            output[(CUBE_POS_Y * neurons + neuron) as usize] = F::cast_from(sum);
        }
    }
}

/// Large batches: a cube holds 32 samples of one chunk of the inputs at a time in shared memory, transposed, so
/// that a weight is read once for 32 samples and eight units read the 128 bytes of an input side by side. Bound
/// by the reads of shared memory, four bytes per multiplication.
///
/// Rows of the tile are nine vectors apart: neither its transposed writes nor its reads collide in a bank.
///
/// `input` `[batch, M]`, `output` `[batch, N]`. Cubes: (N / 32, batch / 32).
#[cube(launch)]
pub fn tiles<F: Float, V: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[u32],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    batch: u32,
    inputs: u32,
    neurons: u32,
    chunks: u32,
    #[comptime] chunk: u32,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = Shared::<[Vector<F, V>]>::new_slice(comptime!((chunk * (QUADS + 1)) as usize));
    let neuron = CUBE_POS_X * TILE_NEURONS + UNIT_POS_Y;
    let first_sample = CUBE_POS_Y * (QUADS * 4);
    let quad = UNIT_POS_X as usize;
    let mut sum = Vector::<f32, V>::cast_from(0.0f32);
    if neuron < neurons {
        sum = Vector::<f32, V>::cast_from(f32::cast_from(bias[neuron as usize]));
    }
    for c in 0..chunks {
        let first_input = c * chunk;
        let mut at = UNIT_POS;
        while at < chunk * QUADS {
            let column = at % chunk;
            let row = at / chunk;
            let mut samples = Vector::<F, V>::cast_from(0.0f32);
            if first_input + column < inputs {
                #[unroll]
                for i in 0..4u32 {
                    let sample = first_sample + row * 4 + i;
                    if sample < batch {
                        let value = input[(sample * inputs + first_input + column) as usize];
                        samples.insert(i as usize, value);
                    }
                }
            }
            tile[(column * (QUADS + 1) + row) as usize] = samples;
            at += QUADS * TILE_NEURONS;
        }
        sync_cube();
        if neuron < neurons {
            let start = starts[(neuron * chunks + c) as usize] as usize;
            let end = starts[(neuron * chunks + c + 1) as usize] as usize;
            let base = first_input as usize;
            let stride = comptime!((QUADS + 1) as usize);
            for g in start..end {
                let w = Vector::<f32, V>::cast_from(values[g]);
                let x0 = tile[(index::<0>(indices, g, packed) - base) * stride + quad];
                let x1 = tile[(index::<1>(indices, g, packed) - base) * stride + quad];
                let x2 = tile[(index::<2>(indices, g, packed) - base) * stride + quad];
                let x3 = tile[(index::<3>(indices, g, packed) - base) * stride + quad];
                sum += Vector::<f32, V>::cast_from(w.extract(0usize)) * Vector::<f32, V>::cast_from(x0);
                sum += Vector::<f32, V>::cast_from(w.extract(1usize)) * Vector::<f32, V>::cast_from(x1);
                sum += Vector::<f32, V>::cast_from(w.extract(2usize)) * Vector::<f32, V>::cast_from(x2);
                sum += Vector::<f32, V>::cast_from(w.extract(3usize)) * Vector::<f32, V>::cast_from(x3);
            }
        }
        sync_cube();
    }
    if neuron < neurons {
        #[unroll]
        for i in 0..4u32 {
            let sample = first_sample + UNIT_POS_X * 4 + i;
            if sample < batch {
                output[(sample * neurons + neuron) as usize] = F::cast_from(sum.extract(i as usize));
            }
        }
    }
}

/// Convolutions over padded images: a unit has one pixel of one neuron. The weights' indices are offsets into
/// the padded image from the corner of the window, so units of neighbouring pixels read neighbouring values.
///
/// `input` `[batch, C · Hp · Wp]`, `output` `[batch, N, H' · W']`. Cubes: (H' · W' / 32, N / 8, batch).
#[cube(launch)]
pub fn pixels<F: Float, V: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[u32],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    image: u32,
    width: u32,
    stride_y: u32,
    stride_x: u32,
    neurons: u32,
    out_pixels: u32,
    out_width: u32,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let pixel = CUBE_POS_X * PIXELS + UNIT_POS_X;
    let neuron = CUBE_POS_Y * ROWS + UNIT_POS_Y;
    if pixel < out_pixels && neuron < neurons {
        let (y, x) = (pixel / out_width, pixel % out_width);
        let corner = (CUBE_POS_Z * image + y * stride_y * width + x * stride_x) as usize;
        let start = starts[neuron as usize] as usize;
        let end = starts[(neuron + 1) as usize] as usize;
        let mut sum = f32::cast_from(bias[neuron as usize]);
        for g in start..end {
            let w = Vector::<f32, V>::cast_from(values[g]);
            sum += w.extract(0usize) * f32::cast_from(input[corner + index::<0>(indices, g, packed)]);
            sum += w.extract(1usize) * f32::cast_from(input[corner + index::<1>(indices, g, packed)]);
            sum += w.extract(2usize) * f32::cast_from(input[corner + index::<2>(indices, g, packed)]);
            sum += w.extract(3usize) * f32::cast_from(input[corner + index::<3>(indices, g, packed)]);
        }
        output[((CUBE_POS_Z * neurons + neuron) * out_pixels + pixel) as usize] = F::cast_from(sum);
    }
}
