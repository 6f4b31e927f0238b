use super::pass::{Field, Geometry, Part, Pass, each_part, tile};
use crate::buffer::{Buffer, floats};
use crate::kernels::{Isa, SAMPLED, Strips};
use crate::math::{self, Strides};
use crate::shape::{MAX_RESULT, at_most};
use crate::tuning::{BATCH_TILE, PAIR, SAMPLERS, SHARED, SHEAF};
use crate::{Error, NodeError, Pattern, Shape, Window};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// A linear layer or a 2-d convolution that trains in condensed form.
///
/// Samples are one after the other, as in Burn and PyTorch: `x` is `[batch, C, H, W]`, `y` `[batch, N, H', W']`; of a linear
/// layer `[batch, M]` and `[batch, N]`. Values are those of the pattern's weights, one row after the other: `[active neurons,
/// k]` with constant fan-in. Ablated neurons give their bias.
///
/// ```
/// use condensed::Pattern;
/// use condensed::training::{Layer, Scratch};
///
/// // Of two inputs the neuron reads the second.
/// let layer = Layer::linear(&Pattern::from_mask(&[false, true], 1, 2)?)?;
/// let mut scratch = Scratch::default();
/// let (values, x) = ([2.0], [7.0, 1.0, 7.0, 3.0]);
/// let mut y = [0.0; 2];
/// layer.forward(&values, Some(&[0.5]), 2, &x, &mut y, &mut scratch)?;
/// assert_eq!(y, [2.5, 6.5]);
///
/// let (dy, mut dx, mut dvalues) = ([1.0, -1.0], [0.0; 4], [0.0]);
/// layer.backward(&values, 2, &x, &dy, Some(&mut dx), &mut dvalues, &mut scratch)?;
/// assert_eq!((dx, dvalues), ([0.0, 2.0, 0.0, -2.0], [-2.0]));
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Debug)]
pub struct Layer {
    /// Neurons, the inputs that each could have, and active weights.
    size: [usize; 3],
    isa: Isa,
    geometry: Geometry,
    /// Images that are worked on together.
    images: usize,
    /// Groups of them whose gradients by values are summed together.
    sheaf: usize,
    /// The slots that the first window reads in a plane.
    taps: Vec<usize>,
    forward: Pass,
    backward: Backward,
}

/// From gradients by results to gradients by inputs.
#[derive(Debug)]
enum Backward {
    /// Each input gathers the gradients of those that read it.
    Gathering(Pass),
    /// Neurons that read the same inputs spread theirs over them, as the forward pass read them. Only there is how the gradients
    /// lie.
    Spreading(Field),
}

/// Input and gradient by the result of a backward pass, as [`Layer::add_dense_gradient`] reads them.
#[derive(Clone, Debug)]
pub struct LaidOut {
    batch: usize,
    inputs: Vec<f32>,
    gradients: Vec<f32>,
}

/// Gradients by the results of some neurons.
struct Results<'a> {
    count: usize,
    /// Of these neurons and others, laid out.
    gradients: Cow<'a, [f32]>,
    /// How many there are, and which is the first that counts.
    all: usize,
    first: usize,
}

/// Neurons whose dense gradients are computed together.
const NEURONS: usize = 64;

/// Memory that layers use while they run. One is enough for all layers that run one after the other; after the first call of
/// each, none allocates.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Inputs, laid out.
    inputs: Buffer,
    /// Gradients by results, laid out.
    gradients: Buffer,
    /// Results of bands.
    sums: Buffer,
    /// Values in the kernels' order.
    values: Buffer,
    /// Gradients by values, of each chunk.
    dvalues: Buffer,
}

impl Layer {
    /// A linear layer of this pattern `[N, M]`.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if it takes more than the [budget](srigl_tensors::memory::limit).
    pub fn linear(pattern: &Pattern) -> Result<Self, Error> {
        Self::linear_with_isa(pattern, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// As [`linear`](Self::linear), or [`Error::Isa`] if the machine lacks the instruction set.
    pub fn linear_with_isa(pattern: &Pattern, isa: Isa) -> Result<Self, Error> {
        let vector = |features| Shape { features, height: 1, width: 1 };
        let (input, output) = (vector(pattern.inputs()), vector(pattern.neurons()));
        let window = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };
        Self::new(pattern, Geometry { window, groups: 1, input, output }, isa)
    }

    /// A convolution of images of shape `input` `[C, H, W]`; the pattern is `[N, C / groups · kh · kw]`.
    ///
    /// # Errors
    /// [`Error::Node`] if sizes do not fit each other, [`Error::TrainingMemory`] as [`linear`](Self::linear).
    pub fn conv2d(pattern: &Pattern, window: Window, groups: usize, input: Shape) -> Result<Self, Error> {
        Self::conv2d_with_isa(pattern, window, groups, input, Isa::best())
    }

    /// The same with the kernels of one instruction set.
    ///
    /// # Errors
    /// As [`conv2d`](Self::conv2d), or [`Error::Isa`] if the machine lacks the instruction set.
    pub fn conv2d_with_isa(
        pattern: &Pattern,
        window: Window,
        groups: usize,
        input: Shape,
        isa: Isa,
    ) -> Result<Self, Error> {
        let misfit = |what| Error::Node { node: "convolution".into(), what };
        let (output, fan_in) = window.convolution(input, groups, pattern.neurons()).map_err(misfit)?;
        if fan_in != pattern.inputs() {
            let (neurons, inputs) = (pattern.neurons(), pattern.inputs());
            return Err(misfit(NodeError::WeightShape { neurons, inputs, expected: neurons, fan_in }));
        }
        for shape in [input, output] {
            at_most(MAX_RESULT, &[shape.features, shape.height, shape.width])
                .map_err(|_| misfit(NodeError::Result(shape)))?;
        }
        Self::new(pattern, Geometry { window, groups, input, output }, isa)
    }

    fn new(pattern: &Pattern, geometry: Geometry, isa: Isa) -> Result<Self, Error> {
        if !isa.available() {
            return Err(Error::Isa(isa));
        }
        let is_shared = pattern.group() > PAIR;
        let images = images(isa, geometry.output.width, is_shared);
        srigl_tensors::memory::check(Some(geometry.bytes(pattern))).map_err(Error::TrainingMemory)?;
        let misfit = |what| Error::Node { node: "convolution".into(), what };
        let gathering = || geometry.backward(isa, pattern, images);
        let (forward, backward) =
            rayon::join(|| geometry.forward(isa, pattern, images), || (!is_shared).then(gathering));
        let (forward, taps) = forward.map_err(misfit)?;
        let backward = match backward {
            None if forward.is_shared() => Backward::Spreading(geometry.results()),
            backward => Backward::Gathering(backward.unwrap_or_else(gathering).map_err(misfit)?),
        };
        let size = [pattern.neurons(), pattern.inputs(), pattern.len()];
        let sheaf = if is_shared { sheaf(isa, images, geometry.output.width) } else { 1 };
        Ok(Self { size, isa, geometry, images, sheaf, taps, forward, backward })
    }

    /// Rows `N`, ablated ones included.
    pub fn neurons(&self) -> usize {
        self.size[0]
    }

    /// The dense fan-in `M`.
    pub fn inputs(&self) -> usize {
        self.size[1]
    }

    /// Active weights.
    pub fn weights(&self) -> usize {
        self.size[2]
    }

    /// Shape of a sample of the result.
    pub fn output_shape(&self) -> Shape {
        self.geometry.output
    }

    /// How inputs lie, laid out.
    fn inputs_field(&self) -> &Field {
        &self.forward.field
    }

    /// How gradients by results lie, laid out.
    fn gradients_field(&self) -> &Field {
        match &self.backward {
            Backward::Gathering(pass) => &pass.field,
            Backward::Spreading(gradients) => gradients,
        }
    }

    /// `y = W x + b`; `bias` is `[N]`.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if what it needs beside them is more than the [budget](srigl_tensors::memory::limit).
    ///
    /// # Panics
    /// If a slice has another length than pattern and batch say.
    pub fn forward(
        &self,
        values: &[f32],
        bias: Option<&[f32]>,
        batch: usize,
        x: &[f32],
        y: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        self.check(values.len(), batch, x.len(), y.len());
        assert!(bias.is_none_or(|bias| bias.len() == self.neurons()), "bias [N]");
        let wave = self.wave(batch, usize::MAX);
        let laid_out = self.floats_of(self.inputs_field(), wave);
        let sums = self.floats(self.forward.sums(), wave);
        scratch.grow([laid_out, 0, sums, floats(&[values.len()]), 0])?;
        let Scratch { inputs, sums, values: packed, .. } = scratch;
        let packed = &mut packed[..values.len()];
        let packed = self.forward.pack(values, packed);
        for first in (0..batch).step_by(wave.max(1)) {
            let images = first..batch.min(first + wave);
            let (x, y) = (of(x, batch, &images), of_mut(y, batch, &images));
            self.product(&self.forward, (packed, bias), images.len(), x, (inputs, sums), y);
        }
        Ok(())
    }

    /// From `x` and the gradient `dy` of a loss by the result: the gradient `dx` by the input, if it is asked for, and that by
    /// the values.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    #[expect(clippy::too_many_arguments, reason = "as many as a backward pass has")]
    pub fn backward(
        &self,
        values: &[f32],
        batch: usize,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dvalues: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        self.check(values.len(), batch, x.len(), dy.len());
        assert_eq!(dvalues.len(), values.len(), "dvalues");
        if let Some(dx) = &dx {
            assert_eq!(dx.len(), x.len(), "dx");
        }
        let chunks = self.chunks();
        let wave = self.wave(batch, chunks);
        let inputs = self.floats_of(self.inputs_field(), wave);
        let gradients = self.floats_of(self.gradients_field(), wave);
        let sums = match &self.backward {
            Backward::Gathering(pass) => self.floats(pass.sums(), wave),
            Backward::Spreading(_) => inputs,
        };
        let packed = floats(&[values.len()]);
        scratch.grow([inputs, gradients, sums, packed, floats(&[chunks, values.len()])])?;
        let Scratch { inputs, gradients, sums, values: packed, dvalues: sampled } = scratch;
        let (packed, sampled) = (&mut packed[..values.len()], &mut sampled[..chunks * values.len()]);
        let packed = match &self.backward {
            Backward::Gathering(pass) => pass.pack(values, packed),
            Backward::Spreading(_) => self.forward.pack(values, packed),
        };
        sampled.fill(0.0);
        let mut dx = dx;
        for first in (0..batch).step_by(wave.max(1)) {
            let images = first..batch.min(first + wave);
            let (x, dy, count) = (of(x, batch, &images), of(dy, batch, &images), images.len());
            let dx = dx.as_deref_mut().map(|dx| of_mut(dx, batch, &images));
            match (&self.backward, dx) {
                (Backward::Gathering(pass), Some(dx)) => {
                    self.product(pass, (packed, None), count, dy, (gradients, sums), dx);
                }
                (Backward::Spreading(field), Some(dx)) => {
                    self.lay_out_of(field, count, dy, gradients);
                    self.spread(packed, count, gradients, sums, dx);
                }
                (_, None) => self.lay_out_of(self.gradients_field(), count, dy, gradients),
            }
            self.lay_out_of(self.inputs_field(), count, x, inputs);
            self.sample(first / self.images, count, inputs, gradients, sampled);
        }
        self.place(sampled, dvalues);
        Ok(())
    }

    /// The gradient `[N]` by the bias.
    ///
    /// # Panics
    /// If a slice has another length than pattern and batch say.
    pub fn bias_gradient(&self, batch: usize, dy: &[f32], dbias: &mut [f32]) {
        let Shape { features, height, width } = self.geometry.output;
        let positions = height * width;
        assert_eq!(dbias.len(), features, "dbias [N]");
        assert_eq!(Some(dy.len()), batch.checked_mul(features * positions), "dy");
        if positions == 1 {
            dbias.fill(0.0);
            dy.chunks_exact(features.max(1)).for_each(|row| math::add_to(dbias, row));
            return;
        }
        dbias.par_iter_mut().enumerate().for_each(|(neuron, dbias)| {
            let planes = dy.chunks_exact(positions).skip(neuron).step_by(features);
            *dbias = planes.map(math::sum).sum();
        });
    }

    /// What dense gradients are made of: the input and the gradient by the result of a backward pass, laid out.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if that is more than the [budget](srigl_tensors::memory::limit).
    ///
    /// # Panics
    /// If a slice has another length than the batch says.
    pub fn lay_out(&self, batch: usize, x: &[f32], dy: &[f32]) -> Result<LaidOut, Error> {
        self.check(self.weights(), batch, x.len(), dy.len());
        let [inputs, gradients] = self.laid_out(batch);
        let one = |field: &Field, from: &[f32], floats: u64| {
            let floats = usize::try_from(floats).unwrap_or(usize::MAX);
            let mut to = srigl_tensors::memory::with_capacity(floats).map_err(Error::TrainingMemory)?;
            if self.is_linear() {
                to.extend_from_slice(from);
            } else {
                to.resize(floats, 0.0);
                self.lay_out_of(field, batch, from, &mut to);
            }
            Ok::<_, Error>(to)
        };
        let inputs = one(self.inputs_field(), x, inputs)?;
        Ok(LaidOut { batch, inputs, gradients: one(self.gradients_field(), dy, gradients)? })
    }

    /// Floats of laid out inputs and gradients. Rows of a linear layer are factors as they are.
    fn laid_out(&self, batch: usize) -> [u64; 2] {
        let Geometry { input, output, .. } = self.geometry;
        match self.is_linear() {
            true => [input, output].map(|shape| floats(&[batch, shape.features])),
            false => [self.inputs_field(), self.gradients_field()].map(|field| self.floats_of(field, batch)),
        }
    }

    /// Whether it is a matrix product, for some channels each.
    fn is_linear(&self) -> bool {
        let Geometry { window: Window { kernel, padding, .. }, input, .. } = self.geometry;
        input.positions() == 1 && kernel == [1; 2] && padding == [0; 2]
    }

    /// Adds the gradient by all weights of some neurons, active or not, `[neurons, M]` or `[neurons, C / groups, kh, kw]`: what
    /// topology updates look at.
    ///
    /// # Panics
    /// If `gradient` has another length than pattern and neurons say, `neurons` are not the layer's in ascending order, or `pass`
    /// is of another layer.
    pub fn add_dense_gradient(&self, neurons: &[usize], pass: &LaidOut, gradient: &mut [f32]) {
        let Geometry { groups, input, output, .. } = self.geometry;
        let (batch, fan_in) = (pass.batch, self.inputs());
        let is_ours = [pass.inputs.len() as u64, pass.gradients.len() as u64] == self.laid_out(batch);
        assert!(is_ours, "a backward pass of this layer");
        let ascending = neurons.is_sorted_by(|a, b| a < b);
        assert!(ascending && neurons.last().is_none_or(|last| *last < output.features), "neurons");
        assert_eq!(Some(gradient.len()), neurons.len().checked_mul(fan_in), "gradient [neurons, M]");
        if gradient.is_empty() || batch == 0 {
            return;
        }
        for group in 0..groups {
            let (channels, filters) = (input.features / groups, output.features / groups);
            let [first, end] =
                [group, group + 1].map(|group| neurons.partition_point(|n| *n < group * filters));
            if first < end {
                let gradient = &mut gradient[first * fan_in..end * fan_in];
                let results = self.results_of(&neurons[first..end], pass);
                self.add_products(&results, group * channels..(group + 1) * channels, pass, gradient);
            }
        }
    }

    /// The gradients by the results of some neurons: those that are there if the neurons are one after the other, or a copy.
    fn results_of<'a>(&self, neurons: &[usize], pass: &'a LaidOut) -> Results<'a> {
        let (all, first) = (self.geometry.output.features, neurons[0]);
        if neurons.is_sorted_by(|a, b| a + 1 == *b) {
            return Results { count: neurons.len(), gradients: Cow::Borrowed(&pass.gradients), all, first };
        }
        let mut gradients = Vec::with_capacity(pass.gradients.len() / all * neurons.len());
        if self.is_linear() {
            for sample in pass.gradients.chunks_exact(all) {
                gradients.extend(neurons.iter().map(|neuron| sample[*neuron]));
            }
        } else {
            let field = self.gradients_field();
            for group in 0..self.groups(pass.batch) {
                gradients.resize(group * self.region(field, neurons.len(), pass.batch), 0.0);
                let images = &pass.gradients[group * self.region(field, all, pass.batch)..];
                let plane = field.layout.slots * self.group(group, pass.batch).1;
                neurons
                    .iter()
                    .for_each(|neuron| gradients.extend_from_slice(&images[neuron * plane..][..plane]));
            }
        }
        Results { count: neurons.len(), gradients: Cow::Owned(gradients), all: neurons.len(), first: 0 }
    }

    /// Adds the gradient by all weights of some neurons, which read these channels.
    fn add_products(&self, results: &Results, channels: Range<usize>, pass: &LaidOut, gradient: &mut [f32]) {
        let (fan_in, taps) = (self.inputs(), self.taps.len());
        let parts = results.count.div_ceil(NEURONS);
        let part = |part: usize| part * NEURONS..results.count.min((part + 1) * NEURONS);
        if self.is_linear() {
            let input = self.geometry.input.features;
            return math::add_matmul_in_tiles(
                [results.count, channels.len(), pass.batch],
                gradient,
                (&results.gradients[results.first..], Strides { row: 1, column: results.all }),
                (&pass.inputs[channels.start..], Strides { row: input, column: 1 }),
            );
        }
        if taps == 1 {
            let parts = gradient.par_chunks_mut(NEURONS * fan_in).enumerate();
            return parts.for_each(|(index, gradient)| {
                self.add_products_of_tap(0, (results, part(index)), channels.clone(), pass, gradient);
            });
        }
        // Each part's products of a tap side by side; the same parts for any number of threads.
        let products = (0..parts * taps).into_par_iter().map(|task| {
            let part = part(task / taps);
            let mut products = vec![0.0; part.len() * channels.len()];
            self.add_products_of_tap(task % taps, (results, part), channels.clone(), pass, &mut products);
            products
        });
        let products: Vec<Vec<f32>> = products.collect();
        let rows = gradient.par_chunks_mut(fan_in).enumerate();
        rows.for_each(|(neuron, row)| {
            let of_part = &products[neuron / NEURONS * taps..][..taps];
            for (tap, products) in of_part.iter().enumerate() {
                let products = &products[neuron % NEURONS * channels.len()..][..channels.len()];
                let row = row[tap..].iter_mut().step_by(taps);
                row.zip(products).for_each(|(row, product)| *row += product);
            }
        });
    }

    /// Adds `dyᵀ · x` `[part, channels]` of a tap, of which that of all positions and images is the sum, for a part of the
    /// neurons.
    fn add_products_of_tap(
        &self,
        tap: usize,
        (results, part): (&Results, Range<usize>),
        channels: Range<usize>,
        &LaidOut { batch, ref inputs, .. }: &LaidOut,
        products: &mut [f32],
    ) {
        let (forward, backward) = (self.inputs_field(), self.gradients_field());
        let output = self.geometry.output;
        let rows = Strides { row: channels.len(), column: 1 };
        let Shape { height, width, .. } = output;
        for group in 0..self.groups(batch) {
            let (_, unit) = self.group(group, batch);
            let x = &inputs[group * self.region(forward, forward.planes, batch)..];
            let dy = &results.gradients[group * self.region(backward, results.all, batch)..];
            let [x_plane, dy_plane] = [forward, backward].map(|field| field.layout.slots * unit);
            for row in 0..height {
                let slot = forward.window(row, 0) + self.taps[tap];
                math::add_matmul(
                    [part.len(), channels.len(), width * unit],
                    products,
                    rows,
                    &dy[(results.first + part.start) * dy_plane + backward.position(row, 0) * unit..],
                    Strides { row: dy_plane, column: 1 },
                    &x[channels.start * x_plane + slot * unit..],
                    Strides { row: 1, column: x_plane },
                    1,
                );
            }
        }
    }

    fn check(&self, values: usize, batch: usize, x: usize, y: usize) {
        let Geometry { input, output, .. } = self.geometry;
        assert_eq!(values, self.weights(), "values");
        assert_eq!(Some(x), batch.checked_mul(input.len()), "x [batch, {input:?}]");
        assert_eq!(Some(y), batch.checked_mul(output.len()), "y [batch, {output:?}]");
    }

    /// Groups of images that are worked on together.
    fn groups(&self, batch: usize) -> usize {
        batch.div_ceil(self.images)
    }

    /// The images of a group, and the floats of a slot.
    fn group(&self, group: usize, batch: usize) -> (usize, usize) {
        let images = self.images.min(batch - group * self.images);
        // Groups of a sheaf are alike.
        let alike = if self.sheaf > 1 { self.images.min(batch) } else { images };
        (images, alike.next_multiple_of(self.isa.lanes()))
    }

    /// Floats from one laid out group to the next, of so many planes.
    fn region(&self, field: &Field, planes: usize, batch: usize) -> usize {
        self.group(0, batch).1 * (planes * field.layout.slots + self.gap())
    }

    /// Slots between groups: those of a sheaf are read together, and at distances of large powers of two they would share few places
    /// in the cache.
    fn gap(&self) -> usize {
        usize::from(self.sheaf > 1)
    }

    /// Floats that all groups of so many planes and slots take.
    fn floats(&self, [planes, slots]: [usize; 2], batch: usize) -> u64 {
        let unit = if batch == 0 { 0 } else { self.group(0, batch).1 };
        floats(&[self.groups(batch), unit, planes, slots])
    }

    /// The same of all that is laid out.
    fn floats_of(&self, field: &Field, batch: usize) -> u64 {
        let gaps = self.floats([self.gap(), 1], batch);
        self.floats([field.planes, field.layout.slots], batch).saturating_add(gaps)
    }

    /// Images of a wave: a group for each thread, so that what is laid out of it stays in the cache; at most so many groups.
    fn wave(&self, batch: usize, most: usize) -> usize {
        // A power of two, as the number of chunks is.
        let sheaves: usize = 1 << rayon::current_num_threads().min(most).ilog2();
        batch.min(sheaves * self.sheaf * self.images)
    }

    /// Chunks of groups whose gradients by values are summed by themselves, so that the order of sums does not depend on the
    /// number of threads: every so many groups.
    fn chunks(&self) -> usize {
        1 << (SAMPLERS / self.forward.parts().len().max(1)).max(1).ilog2()
    }

    /// Lays out what a pass reads.
    fn lay_out_of(&self, field: &Field, batch: usize, from: &[f32], to: &mut [f32]) {
        if from.is_empty() {
            return;
        }
        let region = self.region(field, field.planes, batch);
        let from = from.par_chunks(self.images * (from.len() / batch));
        from.zip(to.par_chunks_mut(region)).enumerate().for_each(|(group, (from, to))| {
            let (images, unit) = self.group(group, batch);
            let to = &mut to[..field.planes * field.layout.slots * unit];
            field.layout.fill(self.isa, images, from, to, unit);
        });
    }

    /// One way through the layer, with memory for what it reads and for sums.
    fn product(
        &self,
        pass: &Pass,
        weights: (&[f32], Option<&[f32]>),
        batch: usize,
        from: &[f32],
        (laid_out, sums): (&mut [f32], &mut [f32]),
        to: &mut [f32],
    ) {
        if to.is_empty() {
            return self.lay_out_of(&pass.field, batch, from, laid_out);
        }
        let [results, kept] = pass.sums();
        if from.is_empty() {
            // Nothing is read, so there is no window to run.
            let bias = |plane: usize| weights.1.map_or(0.0, |bias| bias[plane % results]);
            let planes = to.chunks_exact_mut(to.len() / batch / results).enumerate();
            return planes.for_each(|(plane, to)| to.fill(bias(plane)));
        }
        let (region, image) = (self.region(&pass.field, pass.field.planes, batch), from.len() / batch);
        let sums = sums.par_chunks_mut(results * kept * self.group(0, batch).1);
        let to = to.par_chunks_mut(self.images * (to.len() / batch));
        let from = from.par_chunks(self.images * image).zip(laid_out.par_chunks_mut(region));
        from.zip(to.zip(sums)).enumerate().for_each(|(group, ((from, laid_out), (to, sums)))| {
            let (images, unit) = self.group(group, batch);
            let laid_out = &mut laid_out[..pass.field.planes * pass.field.layout.slots * unit];
            pass.field.layout.fill(self.isa, images, from, laid_out, unit);
            pass.run(self.isa, weights, (laid_out, images, unit), sums, to);
        });
    }

    /// The gradient by the inputs from laid out gradients of neurons that read the same inputs, with memory for what is laid out of it.
    /// Neurons one after the other, so that the order of sums does not depend on the number of threads.
    fn spread(&self, values: &[f32], batch: usize, dy: &[f32], laid_out: &mut [f32], dx: &mut [f32]) {
        if dx.is_empty() {
            return;
        }
        let (field, gradients) = (self.inputs_field(), self.gradients_field());
        let positions = self.geometry.input.positions();
        let regions = laid_out.par_chunks_mut(self.region(field, field.planes, batch));
        let dx = dx.par_chunks_mut(self.images * (dx.len() / batch));
        regions.zip(dx).enumerate().for_each(|(group, (laid_out, dx))| {
            let (images, unit) = self.group(group, batch);
            let laid_out = &mut laid_out[..field.planes * field.layout.slots * unit];
            let dy = &dy[group * self.region(gradients, gradients.planes, batch)..];
            let blocks = laid_out.par_chunks_mut(self.forward.block() * unit).enumerate();
            blocks.for_each(|(block, dx)| self.spread_block(values, (dy, unit), block, dx));
            let to = (dx, field.planes * positions, positions);
            field.layout.read(self.isa, (images, unit), (laid_out, field.planes, positions), to);
        });
    }

    /// The same for a block of inputs.
    fn spread_block(&self, values: &[f32], (dy, unit): (&[f32], usize), block: usize, dx: &mut [f32]) {
        let (field, gradients) = (self.inputs_field(), self.gradients_field());
        let Shape { height, width, .. } = self.geometry.output;
        let (plane, registers) = (gradients.layout.slots * unit, unit / self.isa.lanes());
        let tile = tile(self.isa.accumulators() / registers, width);
        dx.fill(0.0);
        for part in self.forward.parts() {
            let (values, dy) = (&values[part.weights.clone()], &dy[part.planes.start * plane..]);
            for row in 0..height {
                for first in (0..width).step_by(tile) {
                    let vectors = tile.min(width - first) * registers;
                    let dy = &dy[gradients.position(row, first) * unit..];
                    let dx = &mut dx[field.window(row, first) * unit..];
                    part.reads.spread(self.isa, vectors, block, values, (dy, plane), (dx, unit));
                }
            }
        }
    }

    /// Adds the gradient by the values to the sums of each chunk, from laid out inputs and gradients of groups from `first` on, a sheaf
    /// to each.
    fn sample(&self, first: usize, batch: usize, x: &[f32], dy: &[f32], sums: &mut [f32]) {
        let (isa, weights) = (self.isa, self.weights());
        if weights == 0 {
            return;
        }
        let Shape { height, width, .. } = self.geometry.output;
        let (forward, backward) = (self.inputs_field(), self.gradients_field());
        let [x_region, dy_region] = [forward, backward].map(|field| self.region(field, field.planes, batch));
        let of_part = |sheaf: usize, part: &Part, sums: &mut [f32]| {
            let group = sheaf * self.sheaf;
            let (_, unit) = self.group(group, batch);
            let count = self.sheaf.min(self.groups(batch) - group);
            let (x, dy) = (&x[group * x_region..], &dy[group * dy_region..]);
            let plane = backward.layout.slots * unit;
            let dy = &dy[part.planes.start * plane..];
            let registers = unit / isa.lanes();
            let tile = tile(SAMPLED / registers, width);
            for row in 0..height {
                for first in (0..width).step_by(tile) {
                    let vectors = tile.min(width - first) * registers;
                    let x = &x[forward.window(row, first) * unit..];
                    let dy = &dy[backward.position(row, first) * unit..];
                    let strips = Strips { count, vectors, x: x_region, y: dy_region };
                    part.reads.sample(isa, strips, (x, unit), (dy, plane), sums);
                }
            }
        };
        let sums = &mut sums[first / self.sheaf % self.chunks() * weights..];
        let sheaves = self.groups(batch).div_ceil(self.sheaf);
        sums.par_chunks_mut(weights).enumerate().take(sheaves).for_each(|(sheaf, sums)| {
            each_part(self.forward.parts(), sums, &|part, sums| of_part(sheaf, part, sums));
        });
    }

    /// Adds up the sums of all chunks, in the places of the layer's values.
    fn place(&self, sums: &mut [f32], dvalues: &mut [f32]) {
        let (first, others) = sums.split_at_mut(dvalues.len());
        each_part(self.forward.parts(), first, &|part, sums| {
            let chunks = others.chunks_exact(dvalues.len().max(1));
            chunks.for_each(|chunk| math::add_to(sums, &chunk[part.weights.clone()]));
        });
        each_part(self.forward.parts(), dvalues, &|part, dvalues| {
            self.forward.unpack(part, first, dvalues);
        });
    }
}

/// The numbers of some images of a batch.
fn of<'a>(numbers: &'a [f32], batch: usize, images: &Range<usize>) -> &'a [f32] {
    let image = numbers.len() / batch;
    &numbers[images.start * image..images.end * image]
}

fn of_mut<'a>(numbers: &'a mut [f32], batch: usize, images: &Range<usize>) -> &'a mut [f32] {
    let image = numbers.len() / batch;
    &mut numbers[images.start * image..images.end * image]
}

/// Images that are worked on together: so many that the positions of a row fill registers.
fn images(isa: Isa, width: usize, are_shared: bool) -> usize {
    let most = SAMPLED.min(isa.accumulators()).min(BATCH_TILE / isa.lanes());
    let most = if are_shared { most.min(SHARED) } else { most };
    let together = (most / width.max(1)).max(1);
    isa.lanes() << together.ilog2()
}

/// Groups of so many images whose gradients by values are summed together, as far as they do not fill registers by themselves.
fn sheaf(isa: Isa, images: usize, width: usize) -> usize {
    let registers = images / isa.lanes();
    (SHEAF / (tile(SAMPLED / registers, width) * registers)).max(1)
}

impl Scratch {
    /// At least so many floats each from now on.
    fn grow(&mut self, room: [u64; 5]) -> Result<(), Error> {
        let Self { inputs, gradients, sums, values, dvalues } = self;
        for (buffer, floats) in [inputs, gradients, sums, values, dvalues].into_iter().zip(room) {
            buffer.grow(floats).map_err(Error::TrainingMemory)?;
        }
        Ok(())
    }
}
