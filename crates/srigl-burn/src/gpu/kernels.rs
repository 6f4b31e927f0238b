//! The kernels, in CubeCL. Sums are taken in f32 whatever the type of inputs and weights.
//!
//! Weights come in groups of four, `values[g]` with the inputs that they read. The groups of neuron `n` whose
//! inputs lie in chunk `c` are `starts[n · chunks + c] .. starts[n · chunks + c + 1]`; the chunks of a neuron
//! follow each other, and the neurons too. An ablated neuron has no groups, and gives its bias.
//!
//! Where neurons read the same inputs, a *bunch* of two or four of them stands for a neuron: a group then has four weights of
//! each, `values[g · bunch ..][.. bunch]`, and its inputs are read once for all of them. A bunch has as many seats; behind the
//! starts, `starts` has the neuron of each, of which there is none where a seat is empty. A bunch of one neuron has its number.

// The macro's code, not ours.
#![allow(missing_docs, clippy::too_many_arguments)]

use super::groups::{BUNCH, NOWHERE};
use cubecl::prelude::*;

/// Units for each neuron in [`rows`], which adds them up in five levels.
pub const LANES: u32 = 32;
/// Neurons of a cube in [`rows`] and [`pixels`].
pub const ROWS: u32 = 8;
/// Units side by side in the batch in [`tiles`], each with a vector of four samples.
pub const QUADS: u32 = 8;
/// Units side by side over pixels in [`pixels`], each of which has four.
pub const PIXELS: u32 = 32;

/// The input that a weight of a group reads, of the words that hold all four: two with a pair of 16-bit indices, or
/// four.
#[cube]
fn index<const L: u32, I: Size>(words: Vector<u32, I>, #[comptime] packed: bool) -> u32 {
    if comptime!(packed) {
        let word = words.extract(comptime!((L / 2) as usize));
        if comptime!(L.is_multiple_of(2)) { word & 0xffffu32 } else { word >> 16u32 }
    } else {
        words.extract(comptime!(L as usize))
    }
}

/// The neuron of a seat; [`NOWHERE`] if it is empty or there is no such seat.
#[cube]
fn neuron_of(starts: &[u32], seat: u32, seats: u32, chunks: u32, #[comptime] bunch: usize) -> u32 {
    if comptime!(bunch == 1) {
        seat
    } else {
        let mut neuron = u32::cast_from(NOWHERE);
        if seat < seats {
            neuron = starts[(seats / comptime!(bunch as u32) * chunks + 1 + seat) as usize];
        }
        neuron
    }
}

/// The values of a group, for each neuron of a bunch.
#[cube]
fn values_of<F: Float, V: Size>(
    values: &[Vector<F, V>],
    group: usize,
    #[comptime] bunch: usize,
) -> Array<Vector<F, V>> {
    let mut weights = Array::<Vector<F, V>>::new(bunch);
    #[unroll]
    for seat in 0..bunch {
        weights[seat] = values[group * bunch + seat];
    }
    weights
}

/// Adds the four products of a group to the sum of each neuron, one after the other, for inputs from `first` on.
#[cube]
fn add_group<F: Float, V: Size, I: Size>(
    sums: &mut Array<f32>,
    input: &[F],
    first: u32,
    values: &Array<Vector<F, V>>,
    words: Vector<u32, I>,
    #[comptime] packed: bool,
    #[comptime] bunch: usize,
) {
    let x0 = f32::cast_from(input[(first + index::<0, I>(words, packed)) as usize]);
    let x1 = f32::cast_from(input[(first + index::<1, I>(words, packed)) as usize]);
    let x2 = f32::cast_from(input[(first + index::<2, I>(words, packed)) as usize]);
    let x3 = f32::cast_from(input[(first + index::<3, I>(words, packed)) as usize]);
    #[unroll]
    for seat in 0..bunch {
        let w = Vector::<f32, V>::cast_from(values[seat]);
        let mut sum = sums[seat];
        sum += w.extract(0usize) * x0;
        sum += w.extract(1usize) * x1;
        sum += w.extract(2usize) * x2;
        sum += w.extract(3usize) * x3;
        sums[seat] = sum;
    }
}

/// Small batches: 32 units for each neuron take turns through its groups, or those of its bunch, then add up. Bound by the
/// bytes of the weights; a warp reads 512 bytes of values in a row, or as many times more as a bunch has neurons.
///
/// `input` `[batch, M]`, `output` `[batch, N]`. Cubes: (seats / 8, batch).
#[cube(launch)]
pub fn rows<F: Float, V: Size, I: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[Vector<u32, I>],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    inputs: u32,
    neurons: u32,
    seats: u32,
    chunks: u32,
    #[comptime] bunch: usize,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut partial = Shared::<[f32]>::new_slice(comptime!((LANES * ROWS) as usize));
    let size = comptime!(bunch as u32);
    let seat = CUBE_POS_X * ROWS + UNIT_POS_Y;
    let neuron = neuron_of(starts, seat, seats, chunks, bunch);
    let turn = seat % size;
    let sample = CUBE_POS_Y * inputs;
    let mut sums = Array::<f32>::new(bunch);
    #[unroll]
    for s in 0..bunch {
        sums[s] = 0.0f32;
    }
    if seat < seats {
        let row = seat / size;
        let end = starts[((row + 1) * chunks) as usize];
        let mut group = starts[(row * chunks) as usize] + turn * LANES + UNIT_POS_X;
        while group < end {
            let g = group as usize;
            let weights = values_of::<F, V>(values, g, bunch);
            add_group::<F, V, I>(&mut sums, input, sample, &weights, indices[g], packed, bunch);
            group += LANES * size;
        }
    }
    let at = (UNIT_POS_Y * LANES + UNIT_POS_X) as usize;
    let first = ((UNIT_POS_Y - turn) * LANES + UNIT_POS_X) as usize;
    // The units of a bunch's neurons have parts of the sums of all of them, and add them up one after the other.
    #[unroll]
    for unit in 0..bunch {
        if turn == unit as u32 {
            #[unroll]
            for s in 0..bunch {
                let to = first + s * comptime!(LANES as usize);
                let mut sum = sums[s];
                if unit > 0 {
                    sum += partial[to];
                }
                partial[to] = sum;
            }
        }
        sync_cube();
    }
    for level in 1..6u32 {
        let half = 32u32 >> level;
        if UNIT_POS_X < half {
            let both = partial[at] + partial[at + half as usize];
            partial[at] = both;
        }
        sync_cube();
    }
    if UNIT_POS_X == 0 && neuron < neurons {
        let sum = partial[at] + f32::cast_from(bias[neuron as usize]);
        output[(CUBE_POS_Y * neurons + neuron) as usize] = F::cast_from(sum);
    }
}

/// Four samples of an input, one below the other; those beyond the batch are read as the last one, and unused.
#[cube]
fn four_samples<F: Float, V: Size>(
    input: &[F],
    at: u32,
    sample: u32,
    last_sample: u32,
    inputs: u32,
) -> Vector<F, V> {
    let mut samples = Vector::<F, V>::cast_from(0.0f32);
    samples.insert(0usize, input[(min(sample, last_sample) * inputs + at) as usize]);
    samples.insert(1usize, input[(min(sample + 1, last_sample) * inputs + at) as usize]);
    samples.insert(2usize, input[(min(sample + 2, last_sample) * inputs + at) as usize]);
    samples.insert(3usize, input[(min(sample + 3, last_sample) * inputs + at) as usize]);
    samples
}

/// Adds the products of a group for four samples to the sums of each neuron, in a tile whose first input is `offset` away. Its
/// values are those from `from` on.
#[cube]
fn add_tiled<F: Float, V: Size, I: Size>(
    sums: &mut Array<Vector<f32, V>>,
    tile: &Shared<[Vector<F, V>]>,
    offset: u32,
    values: &Array<Vector<F, V>>,
    from: usize,
    words: Vector<u32, I>,
    #[comptime] packed: bool,
    #[comptime] bunch: usize,
) {
    let x0 = tile[(index::<0, I>(words, packed) * (QUADS + 1) + offset) as usize];
    let x1 = tile[(index::<1, I>(words, packed) * (QUADS + 1) + offset) as usize];
    let x2 = tile[(index::<2, I>(words, packed) * (QUADS + 1) + offset) as usize];
    let x3 = tile[(index::<3, I>(words, packed) * (QUADS + 1) + offset) as usize];
    #[unroll]
    for seat in 0..bunch {
        let w = Vector::<f32, V>::cast_from(values[from + seat]);
        let mut sum = sums[seat];
        sum += Vector::<f32, V>::cast_from(w.extract(0usize)) * Vector::<f32, V>::cast_from(x0);
        sum += Vector::<f32, V>::cast_from(w.extract(1usize)) * Vector::<f32, V>::cast_from(x1);
        sum += Vector::<f32, V>::cast_from(w.extract(2usize)) * Vector::<f32, V>::cast_from(x2);
        sum += Vector::<f32, V>::cast_from(w.extract(3usize)) * Vector::<f32, V>::cast_from(x3);
        sums[seat] = sum;
    }
}

/// Large batches: a cube holds 32 samples of one chunk of the inputs at a time in shared memory, transposed, so
/// that a weight is read once for 32 samples and eight units read the 128 bytes of an input side by side. Bound
/// by the reads of shared memory, four bytes per multiplication in f32, or as much less as a bunch has neurons.
///
/// A cube has eight units for a neuron also where neurons come in bunches: the units of a bunch take turns through its groups,
/// each adds to sums of all its neurons, and in the end has those of its own.
///
/// Rows of the tile are nine vectors apart, so that in f32 neither its transposed writes nor its reads collide in a
/// bank. In half precision, rows of two neurons do at times.
///
/// `input` `[batch, M]`, `output` `[batch, N]`. Cubes of 8 × `tile_neurons` units: (batch / 32, seats / `tile_neurons`).
#[cube(launch)]
pub fn tiles<F: Float, V: Size, I: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[Vector<u32, I>],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    batch: u32,
    inputs: u32,
    neurons: u32,
    seats: u32,
    chunks: u32,
    #[comptime] tile_neurons: u32,
    #[comptime] chunk: u32,
    #[comptime] bunch: usize,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut tile = Shared::<[Vector<F, V>]>::new_slice(comptime!((chunk * (QUADS + 1)) as usize));
    let size = comptime!(bunch as u32);
    let seat = CUBE_POS_Y * tile_neurons + UNIT_POS_Y;
    let neuron = neuron_of(starts, seat, seats, chunks, bunch);
    let turn = seat % size;
    let first_sample = CUBE_POS_X * (QUADS * 4);
    let last_sample = batch - 1;
    let mut sums = Array::<Vector<f32, V>>::new(bunch);
    #[unroll]
    for s in 0..bunch {
        let mut sum = Vector::<f32, V>::cast_from(0.0f32);
        if turn == s as u32 && neuron < neurons {
            sum = Vector::<f32, V>::cast_from(f32::cast_from(bias[neuron as usize]));
        }
        sums[s] = sum;
    }
    for c in 0..chunks {
        let first_input = c * chunk;
        let length = min(inputs - first_input, chunk);
        // 32 units take 32 neighbouring inputs of four samples, and ask for four such parts before any has come.
        let column = UNIT_POS % 32;
        let step = comptime!(tile_neurons * QUADS / 32);
        let last = first_input + length - 1;
        let mut part = UNIT_POS / 32;
        while part / QUADS * 32 < length {
            let (a, b) = (part, part + step);
            let (c, d) = (b + step, b + 2 * step);
            let (a_at, a_row) = (a / QUADS * 32 + column, a % QUADS);
            let (b_at, b_row) = (b / QUADS * 32 + column, b % QUADS);
            let (c_at, c_row) = (c / QUADS * 32 + column, c % QUADS);
            let (d_at, d_row) = (d / QUADS * 32 + column, d % QUADS);
            let first = first_sample;
            let a = four_samples::<F, V>(
                input,
                min(first_input + a_at, last),
                first + a_row * 4,
                last_sample,
                inputs,
            );
            let b = four_samples::<F, V>(
                input,
                min(first_input + b_at, last),
                first + b_row * 4,
                last_sample,
                inputs,
            );
            let c = four_samples::<F, V>(
                input,
                min(first_input + c_at, last),
                first + c_row * 4,
                last_sample,
                inputs,
            );
            let d = four_samples::<F, V>(
                input,
                min(first_input + d_at, last),
                first + d_row * 4,
                last_sample,
                inputs,
            );
            if a_at < length {
                tile[(a_at * (QUADS + 1) + a_row) as usize] = a;
            }
            if b_at < length {
                tile[(b_at * (QUADS + 1) + b_row) as usize] = b;
            }
            if c_at < length {
                tile[(c_at * (QUADS + 1) + c_row) as usize] = c;
            }
            if d_at < length {
                tile[(d_at * (QUADS + 1) + d_row) as usize] = d;
            }
            part += 4 * step;
        }
        sync_cube();
        if seat < seats {
            let row = seat / size;
            let mut group = starts[(row * chunks + c) as usize] + turn;
            let end = starts[(row * chunks + c + 1) as usize];
            // Wraps; so does the sum, back again.
            let offset = UNIT_POS_X - first_input * (QUADS + 1);
            // Values of four neurons, or of as many groups, are on their way before the first is used.
            let ahead = comptime!(BUNCH / bunch);
            while group + comptime!(((ahead - 1) * bunch) as u32) < end {
                let mut weights = Array::<Vector<F, V>>::new(BUNCH);
                let mut words = Array::<Vector<u32, I>>::new(ahead);
                #[unroll]
                for i in 0..ahead {
                    #[unroll]
                    for s in 0..bunch {
                        weights[i * bunch + s] = values[(group as usize + i * bunch) * bunch + s];
                    }
                }
                #[unroll]
                for i in 0..ahead {
                    words[i] = indices[group as usize + i * bunch];
                }
                #[unroll]
                for i in 0..ahead {
                    let from = i * bunch;
                    add_tiled::<F, V, I>(&mut sums, &tile, offset, &weights, from, words[i], packed, bunch);
                }
                group += comptime!(BUNCH as u32);
            }
            if comptime!(ahead > 1) {
                while group < end {
                    let g = group as usize;
                    let weights = values_of::<F, V>(values, g, bunch);
                    add_tiled::<F, V, I>(
                        &mut sums, &tile, offset, &weights, 0usize, indices[g], packed, bunch,
                    );
                    group += size;
                }
            }
        }
        sync_cube();
    }
    let mut sum = sums[0usize];
    if comptime!(bunch > 1) {
        let mut partial = Shared::<[Vector<f32, V>]>::new_slice(comptime!((tile_neurons * QUADS) as usize));
        let first = ((UNIT_POS_Y - turn) * QUADS + UNIT_POS_X) as usize;
        // As in `rows`.
        #[unroll]
        for unit in 0..bunch {
            if turn == unit as u32 {
                #[unroll]
                for s in 0..bunch {
                    let to = first + s * comptime!(QUADS as usize);
                    let mut sum = sums[s];
                    if unit > 0 {
                        sum += partial[to];
                    }
                    partial[to] = sum;
                }
            }
            sync_cube();
        }
        sum = partial[(UNIT_POS_Y * QUADS + UNIT_POS_X) as usize];
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

/// Images with zeros around them, and between pixels that are `step` apart, one row after the other: what [`pixels`] and
/// [`sampled`] read. `top` and `left` may be negative, as the same bits of a word: then the image is cropped.
///
/// `input` `[batch, C, H, W]` in any order, by its strides; `output` `[batch, C, Hp, Wp]`, `total` values.
#[cube(launch)]
pub fn pad<F: Float>(
    input: &[F],
    output: &mut [F],
    stride_sample: u32,
    stride_channel: u32,
    stride_y: u32,
    stride_x: u32,
    channels: u32,
    height: u32,
    width: u32,
    padded_height: u32,
    padded_width: u32,
    top: u32,
    left: u32,
    step_y: u32,
    step_x: u32,
    total: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS as u32;
    if at < total {
        let line = at / padded_width;
        let plane = line / padded_height;
        // What lies before the image wraps, and so is beyond it as well.
        let x = at % padded_width - left;
        let y = line % padded_height - top;
        let (row, column) = (y / step_y, x / step_x);
        let is_pixel = row * step_y == y && column * step_x == x;
        let mut value = F::cast_from(0.0f32);
        if is_pixel && row < height && column < width {
            let (sample, channel) = (plane / channels, plane % channels);
            let from = sample * stride_sample + channel * stride_channel + row * stride_y + column * stride_x;
            value = input[from as usize];
        }
        output[at as usize] = value;
    }
}

/// Convolutions over padded images: a unit has four pixels of one bunch, so that a group of weights is read once for them. The
/// weights' indices are offsets into the padded image from the corner of the window, so units of neighbouring pixels read
/// neighbouring values. Pixels are counted through all images.
///
/// `input` `[batch, C · Hp · Wp]`, `output` `[batch, N, H' · W']`. Cubes: (blocks of 128 pixels, bunches / 8, more of
/// those blocks).
#[cube(launch)]
pub fn pixels<F: Float, V: Size, I: Size>(
    input: &[F],
    values: &[Vector<F, V>],
    indices: &[Vector<u32, I>],
    starts: &[u32],
    bias: &[F],
    output: &mut [F],
    image: u32,
    width: u32,
    stride_y: u32,
    stride_x: u32,
    neurons: u32,
    seats: u32,
    out_pixels: u32,
    out_width: u32,
    total: u32,
    #[comptime] bunch: usize,
    #[comptime] packed: bool,
    #[define(F)] _dtype: ElemType,
) {
    let first = (CUBE_POS_Z * CUBE_COUNT_X + CUBE_POS_X) * comptime!(PIXELS * 4) + UNIT_POS_X;
    let size = comptime!(bunch as u32);
    let row = CUBE_POS_Y * ROWS + UNIT_POS_Y;
    if first < total && row * size < seats {
        // Beyond the last image the last pixel is read, and unused.
        let last = total - 1;
        let p0 = first;
        let p1 = min(first + PIXELS, last);
        let p2 = min(first + 2 * PIXELS, last);
        let p3 = min(first + 3 * PIXELS, last);
        let c0 = corner_of(p0, image, width, stride_y, stride_x, out_pixels, out_width);
        let c1 = corner_of(p1, image, width, stride_y, stride_x, out_pixels, out_width);
        let c2 = corner_of(p2, image, width, stride_y, stride_x, out_pixels, out_width);
        let c3 = corner_of(p3, image, width, stride_y, stride_x, out_pixels, out_width);
        let start = starts[row as usize];
        let end = starts[(row + 1) as usize];
        let mut s0 = Array::<f32>::new(bunch);
        let mut s1 = Array::<f32>::new(bunch);
        let mut s2 = Array::<f32>::new(bunch);
        let mut s3 = Array::<f32>::new(bunch);
        #[unroll]
        for s in 0..bunch {
            let neuron = neuron_of(starts, row * size + s as u32, seats, 1, bunch);
            let mut start = 0.0f32;
            if neuron < neurons {
                start = f32::cast_from(bias[neuron as usize]);
            }
            s0[s] = start;
            s1[s] = start;
            s2[s] = start;
            s3[s] = start;
        }
        for group in start..end {
            let g = group as usize;
            let (weights, words) = (values_of::<F, V>(values, g, bunch), indices[g]);
            add_group::<F, V, I>(&mut s0, input, c0, &weights, words, packed, bunch);
            add_group::<F, V, I>(&mut s1, input, c1, &weights, words, packed, bunch);
            add_group::<F, V, I>(&mut s2, input, c2, &weights, words, packed, bunch);
            add_group::<F, V, I>(&mut s3, input, c3, &weights, words, packed, bunch);
        }
        #[unroll]
        for s in 0..bunch {
            let neuron = neuron_of(starts, row * size + s as u32, seats, 1, bunch);
            if neuron < neurons {
                output[place_of(p0, neuron, neurons, out_pixels) as usize] = F::cast_from(s0[s]);
                if first + PIXELS < total {
                    output[place_of(p1, neuron, neurons, out_pixels) as usize] = F::cast_from(s1[s]);
                }
                if first + 2 * PIXELS < total {
                    output[place_of(p2, neuron, neurons, out_pixels) as usize] = F::cast_from(s2[s]);
                }
                if first + 3 * PIXELS < total {
                    output[place_of(p3, neuron, neurons, out_pixels) as usize] = F::cast_from(s3[s]);
                }
            }
        }
    }
}

/// The corner of a pixel's window in padded images.
#[cube]
fn corner_of(
    at: u32,
    image: u32,
    width: u32,
    stride_y: u32,
    stride_x: u32,
    out_pixels: u32,
    out_width: u32,
) -> u32 {
    let sample = at / out_pixels;
    let pixel = at - sample * out_pixels;
    let y = pixel / out_width;
    let x = pixel - y * out_width;
    sample * image + y * stride_y * width + x * stride_x
}

/// Where a neuron's result for a pixel, counted through all images, lies in `[batch, N, H' · W']`.
#[cube]
fn place_of(at: u32, neuron: u32, neurons: u32, out_pixels: u32) -> u32 {
    let sample = at / out_pixels;
    (sample * neurons + neuron) * out_pixels + at - sample * out_pixels
}

/// Numbers in another order, each the sum of `parts` numbers that lie `length` apart; 0 where `order` is not below `length`.
///
/// `source` `[parts, length]`, `order` and `output` `[total]`.
#[cube(launch)]
pub fn place<F: Float>(
    source: &[F],
    order: &[u32],
    output: &mut [F],
    parts: u32,
    length: u32,
    total: u32,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS as u32;
    if at < total {
        let from = order[at as usize];
        let mut sum = F::cast_from(0.0f32);
        if from < length {
            for part in 0..parts {
                sum += source[(part * length + from) as usize];
            }
        }
        output[at as usize] = sum;
    }
}

/// The gradient by values: for each weight the sum, over the results of its neuron, of their gradients and what the weight read.
/// Units side by side take neighbouring results, each for the weights of a group, and add up; `part` results belong to one
/// cube, and [`place`] adds the parts.
///
/// `input` is images as [`pixels`] reads them, or, if `flat`, `[M, batch]` of a linear layer, where an index counts `batch`
/// numbers. `gradient` is `[batch, N, H' · W']` or `[N, batch]`; `output` `[parts, groups, bunch]`.
/// Cubes: (bunches, most groups of a bunch / 8, parts).
#[cube(launch)]
pub fn sampled<F: Float, V: Size, I: Size>(
    input: &[F],
    gradient: &[F],
    indices: &[Vector<u32, I>],
    starts: &[u32],
    output: &mut [Vector<F, V>],
    image: u32,
    width: u32,
    stride_y: u32,
    stride_x: u32,
    neurons: u32,
    seats: u32,
    out_pixels: u32,
    out_width: u32,
    chunks: u32,
    groups: u32,
    results: u32,
    part: u32,
    #[comptime] bunch: usize,
    #[comptime] packed: bool,
    #[comptime] flat: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut partial = Shared::<[Vector<f32, V>]>::new_slice(comptime!((LANES * ROWS) as usize));
    let row = CUBE_POS_X;
    let group = starts[(row * chunks) as usize] + CUBE_POS_Y * ROWS + UNIT_POS_Y;
    let is_there = group < starts[((row + 1) * chunks) as usize];
    // Those of empty seats are those of the last one, and unused.
    let mut of = Array::<u32>::new(bunch);
    let mut sums = Array::<Vector<f32, V>>::new(bunch);
    #[unroll]
    for s in 0..bunch {
        let neuron = neuron_of(starts, row * comptime!(bunch as u32) + s as u32, seats, chunks, bunch);
        of[s] = min(neuron, neurons - 1);
        sums[s] = Vector::<f32, V>::cast_from(0.0f32);
    }
    if is_there {
        let words = indices[group as usize];
        let mut scale = 1u32;
        if comptime!(flat) {
            scale = results;
        }
        let i0 = index::<0, I>(words, packed) * scale;
        let i1 = index::<1, I>(words, packed) * scale;
        let i2 = index::<2, I>(words, packed) * scale;
        let i3 = index::<3, I>(words, packed) * scale;
        let start = CUBE_POS_Z * part;
        let end = start + min(results - start, part);
        let mut at = start + UNIT_POS_X;
        while at < end {
            let mut corner = at;
            if comptime!(!flat) {
                corner = corner_of(at, image, width, stride_y, stride_x, out_pixels, out_width);
            }
            let mut read = Vector::<f32, V>::cast_from(0.0f32);
            read.insert(0usize, f32::cast_from(input[(corner + i0) as usize]));
            read.insert(1usize, f32::cast_from(input[(corner + i1) as usize]));
            read.insert(2usize, f32::cast_from(input[(corner + i2) as usize]));
            read.insert(3usize, f32::cast_from(input[(corner + i3) as usize]));
            #[unroll]
            for s in 0..bunch {
                let mut result = of[s] * results + at;
                if comptime!(!flat) {
                    result = place_of(at, of[s], neurons, out_pixels);
                }
                let mut sum = sums[s];
                sum += read * Vector::<f32, V>::cast_from(f32::cast_from(gradient[result as usize]));
                sums[s] = sum;
            }
            at += LANES;
        }
    }
    let at = (UNIT_POS_Y * LANES + UNIT_POS_X) as usize;
    #[unroll]
    for s in 0..bunch {
        partial[at] = sums[s];
        sync_cube();
        for level in 1..6u32 {
            let half = 32u32 >> level;
            if UNIT_POS_X < half {
                let both = partial[at] + partial[at + half as usize];
                partial[at] = both;
            }
            sync_cube();
        }
        if UNIT_POS_X == 0 && is_there {
            let to = (CUBE_POS_Z * groups + group) as usize * bunch + s;
            output[to] = Vector::<F, V>::cast_from(partial[at]);
        }
    }
}
