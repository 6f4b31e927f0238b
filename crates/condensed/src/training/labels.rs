//! The output layer of extreme classification: hundreds of thousands of labels, each of which reads a few features.

use super::adam::AdamStep;
use crate::math::{exp, vectorised};
use crate::{Error, WeightError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use srigl_tensors::memory;
use std::ops::Range;

/// Samples side by side.
const TILE: usize = 64;
/// One number of each sample of a tile.
type Lanes = [f32; TILE];
/// Labels of a block. Its weights stay in the second-level cache while all samples pass.
const BLOCK: usize = 256;
/// Parts of the labels whose gradients by the features are added up apart, so that the sums do not depend on threads.
const PARTS: usize = 16;

/// A loss summed over all labels, each of which a sample has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelLoss {
    /// `ln(1 + e^z) − y z`, the binary cross-entropy of a logit `z`; `y` is 1 for labels that a sample has, otherwise 0.
    #[serde(rename = "bce")]
    BinaryCrossEntropy,
    /// `max(0, 1 − s z)²`; `s` is 1 for labels that a sample has, otherwise −1.
    SquaredHinge,
}

/// A linear layer of many outputs, labels, each of which reads `fan_in` of `inputs` features and has a bias: the output layer of
/// extreme classification with constant fan-in (Schultheis & Babbar 2023, arXiv 2306.03725).
///
/// Nothing of `[batch, labels]` ever exists. A block of labels computes logits, losses and gradients of all samples, and its weights
/// move before the next block's turn, so there is no gradient of all weights either. Results do not depend on threads.
///
/// ```
/// use condensed::training::{AdamStep, LabelLayer, LabelLoss, LabelMoments, LabelScratch};
///
/// // Two labels of three features; the first reads features 0 and 2, the second 1 and 2.
/// let mut layer = LabelLayer::new(3, 2, 2, |label, inputs, _values| {
///     inputs.copy_from_slice(&[label as u16, 2]);
///     0.0
/// })?;
/// let mut moments = LabelMoments::new(&layer)?;
/// let mut scratch = LabelScratch::default();
/// // Two samples: the first has label 0, the second label 1.
/// let (x, labels, mut dx) = ([1.0, 0.0, 0.5, 0.0, 1.0, 0.5], [&[0][..], &[1]], [0.0; 6]);
/// for step in 1..=100 {
///     let adam = AdamStep::new(0.1, step);
///     layer.step(&mut moments, adam, LabelLoss::BinaryCrossEntropy, &x, &labels, &mut dx, &mut scratch)?;
/// }
/// let best = layer.top(1, &x, &mut scratch)?;
/// assert_eq!((best[0][0].0, best[1][0].0), (0, 1));
/// # Ok::<(), condensed::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LabelLayer {
    inputs: usize,
    labels: usize,
    fan_in: usize,
    blocks: Vec<Block>,
}

/// Some labels, one after the other.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    /// `[labels, fan_in]`, ascending within a label.
    indices: Vec<u16>,
    /// Values `[labels, fan_in]`, then biases `[labels]`.
    numbers: Vec<f32>,
}

/// Adam's moments of all values and biases of a [`LabelLayer`].
#[derive(Clone, Debug, PartialEq)]
pub struct LabelMoments {
    /// First and second of each block, in the order of its numbers.
    blocks: Vec<[Vec<f32>; 2]>,
}

/// Memory that layers use while they run.
#[derive(Debug, Default)]
pub struct LabelScratch {
    /// Features, `[tiles, inputs]`.
    x: Vec<Lanes>,
    /// Gradients by the features, `[parts, tiles, inputs]`.
    dx: Vec<Lanes>,
    /// Samples that have a label, by label: label and sample.
    pairs: Vec<(u32, u32)>,
}

impl LabelLoss {
    /// Names in command lines and files, and what they mean.
    pub const NAMES: [(&'static str, &'static str, Self); 2] = [
        ("bce", "Binary cross-entropy of logits", Self::BinaryCrossEntropy),
        (
            "squared-hinge",
            "Half the time, since most labels of a point soon cost nothing",
            Self::SquaredHinge,
        ),
    ];
}

impl LabelLayer {
    /// A layer of so many labels. `fill` is called for each label, on several threads, with its `fan_in` inputs, which are to be
    /// ascending, and its values, which are 0; it returns the bias.
    ///
    /// # Errors
    /// [`Error::Weight`] if there are no labels or more than 65 536 inputs, a fan-in of none or of more than there are, or inputs that are not
    /// ascending; [`Error::TrainingMemory`] if it takes more than the [budget](memory::limit).
    pub fn new(
        inputs: usize,
        labels: usize,
        fan_in: usize,
        fill: impl Fn(usize, &mut [u16], &mut [f32]) -> f32 + Sync,
    ) -> Result<Self, Error> {
        if labels == 0 || labels > u32::MAX as usize || inputs > 1 << 16 {
            return Err(WeightError::Labels { labels, inputs }.into());
        }
        if fan_in == 0 || fan_in > inputs {
            return Err(WeightError::FanIn { fan_in, inputs }.into());
        }
        let bytes = memory::product(&[labels, fan_in + 1, size_of::<u16>() + size_of::<f32>()]);
        memory::check(bytes).map_err(Error::TrainingMemory)?;
        let blocks = (0..labels.div_ceil(BLOCK)).into_par_iter().map(|block| {
            let first = block * BLOCK;
            let count = BLOCK.min(labels - first);
            let (mut indices, mut numbers) = (vec![0; count * fan_in], vec![0.0; count * (fan_in + 1)]);
            let (values, biases) = numbers.split_at_mut(count * fan_in);
            let rows = indices.chunks_exact_mut(fan_in).zip(values.chunks_exact_mut(fan_in));
            for (label, ((row, values), bias)) in (first..).zip(rows.zip(biases)) {
                *bias = fill(label, row, values);
                check_row(label, row, inputs)?;
            }
            Ok(Block { indices, numbers })
        });
        let blocks: Result<Vec<Block>, Error> = blocks.collect();
        Ok(Self { inputs, labels, fan_in, blocks: blocks? })
    }

    /// Features.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Features that each label reads.
    pub fn fan_in(&self) -> usize {
        self.fan_in
    }

    /// Inputs, values and bias of a label.
    ///
    /// # Panics
    /// If there is no such label.
    pub fn label(&self, label: usize) -> (&[u16], &[f32], f32) {
        let (block, row) = (&self.blocks[label / BLOCK], label % BLOCK);
        let here = row * self.fan_in..(row + 1) * self.fan_in;
        (&block.indices[here.clone()], &block.numbers[here], block.numbers[block.indices.len() + row])
    }

    /// One step of Adam by the mean over samples of the loss, which is returned. `x` is `[batch, inputs]`, `has` says which labels
    /// each sample has, and `dx` gets the gradient by `x`.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if what it needs beside them is more than the [budget](memory::limit).
    ///
    /// # Panics
    /// If a slice has another length than the batch, `has`, says, a sample has a label that is not there or one twice, or `moments`
    /// are of another layer.
    #[expect(clippy::too_many_arguments, reason = "as many as a step has")]
    pub fn step(
        &mut self,
        moments: &mut LabelMoments,
        adam: AdamStep,
        loss: LabelLoss,
        x: &[f32],
        has: &[&[u32]],
        dx: &mut [f32],
        scratch: &mut LabelScratch,
    ) -> Result<f64, Error> {
        assert!(moments.fit(self), "moments of another layer");
        self.pass(loss, x, has, dx, scratch, &mut moments.blocks, |[first, second], numbers, gradient| {
            adam.apply(numbers, gradient, first, second);
        })
    }

    /// One pass over all labels; `change` gets each block's numbers and the gradient by them.
    #[expect(clippy::too_many_arguments, reason = "as many as a pass has")]
    fn pass<S: Send>(
        &mut self,
        loss: LabelLoss,
        x: &[f32],
        has: &[&[u32]],
        dx: &mut [f32],
        scratch: &mut LabelScratch,
        states: &mut [S],
        change: impl Fn(&mut S, &mut [f32], &[f32]) + Sync,
    ) -> Result<f64, Error> {
        let (inputs, fan_in, batch) = (self.inputs, self.fan_in, has.len());
        assert_eq!(dx.len(), x.len(), "dx [batch, inputs]");
        let tiles = self.lay_out(batch, x, scratch)?;
        let LabelScratch { x, dx: sums, pairs } = scratch;
        let (x, part) = (&x[..], self.blocks.len().div_ceil(PARTS));
        let parts = self.blocks.len().div_ceil(part);
        room(sums, &[parts, tiles, inputs])?;
        self.sort(has, pairs);
        let pairs = &pairs[..];
        let scale = 1.0 / batch.max(1) as f32;
        let of_parts = self.blocks.par_chunks_mut(part).zip(states.par_chunks_mut(part));
        let of_parts = of_parts.zip(sums.par_chunks_mut((tiles * inputs).max(1))).enumerate();
        let losses = of_parts.map(|(index, ((blocks, states), sums))| {
            sums.fill([0.0; TILE]);
            let (mut total, mut gradient) = (0.0, Vec::new());
            for (at, (block, state)) in blocks.iter_mut().zip(states).enumerate() {
                let first = (index * part + at) * BLOCK;
                gradient.clear();
                gradient.resize(block.numbers.len(), 0.0);
                let here = block.pairs(first, fan_in, pairs);
                for (tile, (x, dx)) in x.chunks_exact(inputs).zip(sums.chunks_exact_mut(inputs)).enumerate() {
                    let count = TILE.min(batch - tile * TILE);
                    let indices = &block.indices;
                    let of_tile =
                        Tile { first, here, samples: tile * TILE..tile * TILE + count, loss, scale };
                    total += gradients(indices, &block.numbers, x, of_tile, &mut gradient, dx);
                }
                change(state, &mut block.numbers, &gradient);
            }
            total
        });
        let losses: Vec<f64> = losses.collect();
        let sums = &sums[..];
        dx.par_chunks_mut(inputs).enumerate().for_each(|(sample, dx)| {
            let (tile, lane) = (sample / TILE, sample % TILE);
            for (input, dx) in dx.iter_mut().enumerate() {
                let parts = sums[tile * inputs + input..].iter().step_by(tiles * inputs);
                *dx = parts.map(|lanes| lanes[lane]).sum();
            }
        });
        Ok(losses.iter().sum::<f64>() * f64::from(scale))
    }

    /// The `k` labels with the largest logits of each sample, largest first, and these; of equal ones the lower label comes first.
    /// Fewer if there are fewer labels or logits that are not numbers.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    ///
    /// # Panics
    /// If `x` is not `[batch, inputs]`.
    pub fn top(
        &self,
        k: usize,
        x: &[f32],
        scratch: &mut LabelScratch,
    ) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let (inputs, batch) = (self.inputs, x.len() / self.inputs);
        self.lay_out(batch, x, scratch)?;
        let k = k.min(self.labels);
        let room = memory::product(&[batch.next_multiple_of(TILE), PARTS, k, size_of::<(u32, f32)>()]);
        memory::check(room).map_err(Error::TrainingMemory)?;
        let x = &scratch.x[..];
        let part = self.blocks.len().div_ceil(PARTS);
        let parts = self.blocks.par_chunks(part).enumerate().map(|(index, blocks)| {
            let mut best = vec![Vec::new(); batch.next_multiple_of(TILE)];
            let mut least = vec![[f32::NEG_INFINITY; TILE]; batch.div_ceil(TILE)];
            for (at, block) in blocks.iter().enumerate() {
                let first = (index * part + at) * BLOCK;
                let tiles = x.chunks_exact(inputs).zip(best.chunks_exact_mut(TILE)).zip(&mut least);
                for ((x, best), least) in tiles {
                    best_of(&block.indices, &block.numbers, x, first, k, best, least);
                }
            }
            best
        });
        let parts: Vec<Vec<Vec<(u32, f32)>>> = parts.collect();
        let of_sample = |sample: usize| {
            let mut best: Vec<(u32, f32)> =
                parts.iter().flat_map(|part| part[sample].iter().copied()).collect();
            // Zeros of both signs are equal, and NaN is not among them.
            best.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("numbers"));
            best.truncate(k);
            best
        };
        Ok((0..batch).map(of_sample).collect())
    }

    /// Gives labels other inputs. `choose` is called for each label, on several threads, with its inputs and values, and writes as
    /// many inputs, ascending. Weights that stay keep value and moments; what is new starts with none.
    ///
    /// # Errors
    /// [`Error::Weight`] if inputs are not ascending or not there. The layer is not changed where that happens.
    ///
    /// # Panics
    /// If `moments` are of another layer.
    pub fn rewire(
        &mut self,
        moments: &mut LabelMoments,
        choose: impl Fn(usize, &[u16], &[f32], &mut [u16]) + Sync,
    ) -> Result<(), Error> {
        assert!(moments.fit(self), "moments of another layer");
        let (fan_in, inputs) = (self.fan_in, self.inputs);
        let blocks = self.blocks.par_iter_mut().zip(&mut moments.blocks).enumerate();
        blocks.try_for_each_init(
            || vec![0; fan_in],
            |next, (index, (block, [first, second]))| {
                let values = block.indices.len();
                let moments =
                    first[..values].chunks_exact_mut(fan_in).zip(second[..values].chunks_exact_mut(fan_in));
                let rows = block.indices.chunks_exact_mut(fan_in).zip(block.numbers.chunks_exact_mut(fan_in));
                for (label, ((row, values), (first, second))) in (index * BLOCK..).zip(rows.zip(moments)) {
                    choose(label, row, values, next);
                    check_row(label, next, inputs)?;
                    [values, first, second].into_iter().for_each(|numbers| follow(numbers, row, next));
                    row.copy_from_slice(next);
                }
                Ok(())
            },
        )
    }

    /// Lays features out in tiles and says how many there are.
    fn lay_out(&self, batch: usize, x: &[f32], scratch: &mut LabelScratch) -> Result<usize, Error> {
        assert_eq!(Some(x.len()), batch.checked_mul(self.inputs), "x [batch, inputs]");
        let tiles = batch.div_ceil(TILE);
        room(&mut scratch.x, &[tiles, self.inputs])?;
        let of_tiles = scratch.x.par_chunks_mut(self.inputs).zip(x.par_chunks(TILE * self.inputs));
        of_tiles.for_each(|(tile, x)| {
            tile.fill([0.0; TILE]);
            for (lane, x) in x.chunks_exact(self.inputs).enumerate() {
                tile.iter_mut().zip(x).for_each(|(lanes, x)| lanes[lane] = *x);
            }
        });
        Ok(tiles)
    }

    /// Labels and the samples that have them, by label.
    fn sort(&self, has: &[&[u32]], pairs: &mut Vec<(u32, u32)>) {
        pairs.clear();
        let of_sample = |(sample, labels): (usize, &&[u32])| {
            labels.iter().map(move |label| (*label, sample as u32)).collect::<Vec<_>>()
        };
        pairs.extend(has.iter().enumerate().flat_map(of_sample));
        pairs.sort_unstable();
        assert!(pairs.is_sorted_by(|a, b| a < b), "a sample has a label twice");
        assert!(pairs.last().is_none_or(|(label, _)| (*label as usize) < self.labels), "labels");
    }
}

impl Block {
    /// Those pairs whose labels are here.
    fn pairs<'a>(&self, first: usize, fan_in: usize, pairs: &'a [(u32, u32)]) -> &'a [(u32, u32)] {
        let end = first + self.indices.len() / fan_in;
        let [start, end] = [first, end].map(|label| pairs.partition_point(|pair| (pair.0 as usize) < label));
        &pairs[start..end]
    }
}

impl LabelMoments {
    /// Those of a layer that has not been trained.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if they take more than the [budget](memory::limit).
    pub fn new(layer: &LabelLayer) -> Result<Self, Error> {
        let bytes = memory::product(&[layer.labels, layer.fan_in + 1, 2, size_of::<f32>()]);
        memory::check(bytes).map_err(Error::TrainingMemory)?;
        let zeros = |block: &Block| [vec![0.0; block.numbers.len()], vec![0.0; block.numbers.len()]];
        Ok(Self { blocks: layer.blocks.iter().map(zeros).collect() })
    }

    fn fit(&self, layer: &LabelLayer) -> bool {
        let of_block = |([first, second], block): (&[Vec<f32>; 2], &Block)| {
            first.len() == block.numbers.len() && second.len() == block.numbers.len()
        };
        self.blocks.len() == layer.blocks.len() && self.blocks.iter().zip(&layer.blocks).all(of_block)
    }
}

/// What a tile of samples means to a block of labels.
struct Tile<'a> {
    /// The block's first label.
    first: usize,
    /// Pairs of the block's labels and samples of any tile.
    here: &'a [(u32, u32)],
    samples: Range<usize>,
    loss: LabelLoss,
    /// What a sample's gradient counts.
    scale: f32,
}

fn check_row(label: usize, row: &[u16], inputs: usize) -> Result<(), Error> {
    if !row.is_sorted_by(|a, b| a < b) {
        return Err(WeightError::IndexOrder { neuron: label as u32 }.into());
    }
    match row.last() {
        Some(&last) if usize::from(last) >= inputs => {
            Err(WeightError::Index { index: last.into(), inputs }.into())
        }
        _ => Ok(()),
    }
}

/// Moves the numbers of a label's weights to where they are among the `next` inputs; those of new inputs are 0.
fn follow(numbers: &mut [f32], row: &[u16], next: &[u16]) {
    let before = numbers.to_vec();
    for (number, input) in numbers.iter_mut().zip(next) {
        *number = row.binary_search(input).map_or(0.0, |at| before[at]);
    }
}

/// Makes room for so many lanes.
fn room(lanes: &mut Vec<Lanes>, sizes: &[usize]) -> Result<(), Error> {
    let count = memory::product(sizes);
    memory::check(count.and_then(|count| count.checked_mul(size_of::<Lanes>() as u64)))
        .map_err(Error::TrainingMemory)?;
    lanes.resize(count.unwrap_or_default() as usize, [0.0; TILE]);
    Ok(())
}

/// The logits of a label.
#[inline(always)]
fn logits(row: &[u16], values: &[f32], bias: f32, x: &[Lanes]) -> Lanes {
    let mut z = [bias; TILE];
    for (input, value) in row.iter().zip(values) {
        let x = &x[usize::from(*input)];
        for lane in 0..TILE {
            z[lane] += value * x[lane];
        }
    }
    z
}

/// Losses of logits of labels that no sample has, and their gradients.
#[inline(always)]
fn absent(loss: LabelLoss, z: &Lanes) -> (Lanes, Lanes) {
    let (mut losses, mut slopes) = ([0.0; TILE], [0.0; TILE]);
    match loss {
        LabelLoss::BinaryCrossEntropy => {
            for lane in 0..TILE {
                let e = exp(-z[lane].abs());
                // ln(1 + e) by the series of atanh at t = e / (2 + e), at most 1/3.
                let t = e / (2.0 + e);
                let tt = t * t;
                let ln = 2.0
                    * t
                    * (1.0
                        + tt * (1.0 / 3.0
                            + tt * (0.2 + tt * (1.0 / 7.0 + tt * (1.0 / 9.0 + tt * (1.0 / 11.0))))));
                losses[lane] = if z[lane] > 0.0 { z[lane] + ln } else { ln };
                let share = 1.0 / (1.0 + e);
                slopes[lane] = if z[lane] > 0.0 { share } else { e * share };
            }
        }
        LabelLoss::SquaredHinge => {
            for lane in 0..TILE {
                // NaN stays.
                let over = if z[lane] <= -1.0 { 0.0 } else { 1.0 + z[lane] };
                losses[lane] = over * over;
                slopes[lane] = 2.0 * over;
            }
        }
    }
    (losses, slopes)
}

/// Loss and gradient of a logit of a label that the sample has.
fn present(loss: LabelLoss, z: f32) -> (f32, f32) {
    match loss {
        // ln(1 + e^z) − z = ln(1 + e^−z).
        LabelLoss::BinaryCrossEntropy => ((-z.abs()).exp().ln_1p() + (-z).max(0.0), -1.0 / (1.0 + z.exp())),
        LabelLoss::SquaredHinge => {
            let under = if z >= 1.0 { 0.0 } else { 1.0 - z };
            (under * under, -2.0 * under)
        }
    }
}

vectorised! {
    /// The loss of a block's labels and a tile of samples. Adds the gradient by its numbers, and that by the features.
    fn gradients(indices: &[u16], numbers: &[f32], x: &[Lanes], tile: Tile, gradient: &mut [f32], dx: &mut [Lanes]) -> f64 {
        let (values, biases) = numbers.split_at(indices.len());
        let (dvalues, dbiases) = gradient.split_at_mut(indices.len());
        let fan_in = indices.len() / biases.len();
        let count = tile.samples.len();
        let mut here = tile.here;
        let mut total = 0.0;
        for (label, bias) in biases.iter().enumerate() {
            let weights = label * fan_in..(label + 1) * fan_in;
            let (row, values) = (&indices[weights.clone()], &values[weights.clone()]);
            let z = logits(row, values, *bias, x);
            let (mut losses, mut slopes) = absent(tile.loss, &z);
            let number = (tile.first + label) as u32;
            let of_label = here.iter().take_while(|pair| pair.0 == number).count();
            for (_, sample) in &here[..of_label] {
                if let Some(lane) = (*sample as usize).checked_sub(tile.samples.start).filter(|lane| *lane < count) {
                    (losses[lane], slopes[lane]) = present(tile.loss, z[lane]);
                }
            }
            here = &here[of_label..];
            total += f64::from(losses[..count].iter().sum::<f32>());
            slopes[count..].fill(0.0);
            // Those of the hinge often are.
            if slopes.iter().all(|slope| *slope == 0.0) {
                continue;
            }
            slopes.iter_mut().for_each(|slope| *slope *= tile.scale);
            dbiases[label] += slopes.iter().sum::<f32>();
            for ((input, value), dvalue) in row.iter().zip(values).zip(&mut dvalues[weights]) {
                let (x, dx) = (&x[usize::from(*input)], &mut dx[usize::from(*input)]);
                let mut sums = [0.0; 16];
                for at in (0..TILE).step_by(16) {
                    for lane in 0..16 {
                        sums[lane] += slopes[at + lane] * x[at + lane];
                        dx[at + lane] += slopes[at + lane] * value;
                    }
                }
                *dvalue += sums.iter().sum::<f32>();
            }
        }
        total
    }
}

vectorised! {
    /// Puts a block's labels among the `k` best of each sample of a tile, `least` of which is to be beaten.
    fn best_of(indices: &[u16], numbers: &[f32], x: &[Lanes], first: usize, k: usize, best: &mut [Vec<(u32, f32)>], least: &mut Lanes) {
        let (values, biases) = numbers.split_at(indices.len());
        let fan_in = indices.len() / biases.len();
        for (label, bias) in biases.iter().enumerate() {
            let weights = label * fan_in..(label + 1) * fan_in;
            let z = logits(&indices[weights.clone()], &values[weights], *bias, x);
            let is_any = z.iter().zip(&*least).fold(false, |any, (z, least)| any | (z > least));
            if is_any {
                for lane in (0..TILE).filter(|lane| z[*lane] > least[*lane]).collect::<Vec<_>>() {
                    let best = &mut best[lane];
                    let at = best.partition_point(|(_, other)| *other >= z[lane]);
                    best.insert(at, ((first + label) as u32, z[lane]));
                    best.truncate(k);
                    if best.len() == k {
                        least[lane] = best.last().map_or(f32::INFINITY, |(_, z)| *z);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    const LOSSES: [LabelLoss; 2] = [LabelLoss::BinaryCrossEntropy, LabelLoss::SquaredHinge];

    /// A layer with random inputs, values and biases, a batch of features, and labels that samples have.
    struct Case {
        layer: LabelLayer,
        x: Vec<f32>,
        has: Vec<Vec<u32>>,
    }

    impl Case {
        fn new([inputs, labels, fan_in, batch]: [usize; 4]) -> Self {
            let fill = |label: usize, row: &mut [u16], values: &mut [f32]| {
                let rng = &mut SmallRng::seed_from_u64(label as u64);
                let mut chosen = rand::seq::index::sample(rng, inputs, fan_in).into_vec();
                chosen.sort_unstable();
                row.iter_mut().zip(chosen).for_each(|(to, from)| *to = from as u16);
                values.iter_mut().for_each(|value| *value = rng.random_range(-1.0..1.0));
                rng.random_range(-2.0..1.0)
            };
            let layer = LabelLayer::new(inputs, labels, fan_in, fill).unwrap();
            let rng = &mut SmallRng::seed_from_u64(7);
            let x = (0..batch * inputs).map(|_| rng.random_range(-1.0..1.0)).collect();
            let has = (0..batch).map(|sample| {
                let count = (sample % 4).min(labels);
                rand::seq::index::sample(rng, labels, count).into_iter().map(|label| label as u32).collect()
            });
            Self { layer, x, has: has.collect() }
        }

        fn has(&self) -> Vec<&[u32]> {
            self.has.iter().map(Vec::as_slice).collect()
        }

        fn logit(&self, sample: usize, label: usize) -> f64 {
            let (row, values, bias) = self.layer.label(label);
            let x = &self.x[sample * self.layer.inputs..];
            let products = row.iter().zip(values).map(|(i, v)| f64::from(x[usize::from(*i)]) * f64::from(*v));
            products.sum::<f64>() + f64::from(bias)
        }

        /// Loss, gradient by numbers of all blocks, and gradient by features.
        fn pass(&self, loss: LabelLoss) -> (f64, Vec<Vec<f32>>, Vec<f32>) {
            let (mut dx, mut layer) = (vec![f32::NAN; self.x.len()], self.layer.clone());
            let mut gradients = vec![Vec::new(); layer.blocks.len()];
            let scratch = &mut LabelScratch::default();
            let keep = |to: &mut Vec<f32>, _: &mut [f32], gradient: &[f32]| *to = gradient.to_vec();
            // Twice, the second time with memory that has been used.
            for _ in 0..2 {
                layer.pass(loss, &self.x, &self.has(), &mut dx, scratch, &mut gradients, keep).unwrap();
            }
            let total =
                layer.pass(loss, &self.x, &self.has(), &mut dx, scratch, &mut gradients, keep).unwrap();
            (total, gradients, dx)
        }

        /// The same, one logit after the other, in double precision.
        fn plainly(&self, loss: LabelLoss) -> (f64, Vec<Vec<f64>>, Vec<f64>) {
            let (inputs, batch) = (self.layer.inputs, self.has.len());
            let (mut total, mut dx) = (0.0, vec![0.0; self.x.len()]);
            let mut gradients: Vec<Vec<f64>> =
                self.layer.blocks.iter().map(|block| vec![0.0; block.numbers.len()]).collect();
            for sample in 0..batch {
                for label in 0..self.layer.labels {
                    let (z, y) = (self.logit(sample, label), self.has[sample].contains(&(label as u32)));
                    let (l, slope) = match loss {
                        LabelLoss::BinaryCrossEntropy => {
                            let y = f64::from(u8::from(y));
                            ((1.0 + z.exp()).ln() - y * z, 1.0 / (1.0 + (-z).exp()) - y)
                        }
                        LabelLoss::SquaredHinge => {
                            let s = if y { 1.0 } else { -1.0 };
                            let gap = (1.0 - s * z).max(0.0);
                            (gap * gap, -2.0 * s * gap)
                        }
                    };
                    total += l / batch as f64;
                    let slope = slope / batch as f64;
                    let (row, values, _) = self.layer.label(label);
                    let block = &mut gradients[label / BLOCK];
                    let bias = self.layer.blocks[label / BLOCK].indices.len() + label % BLOCK;
                    block[bias] += slope;
                    for (place, (input, value)) in row.iter().zip(values).enumerate() {
                        let at = sample * inputs + usize::from(*input);
                        block[label % BLOCK * self.layer.fan_in + place] += slope * f64::from(self.x[at]);
                        dx[at] += slope * f64::from(*value);
                    }
                }
            }
            (total, gradients, dx)
        }
    }

    fn assert_close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
        let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        assert!(error <= 3e-6 * norm, "error {error} of {norm}");
    }

    /// Of one sample, part of a tile, a whole one and more; of less than a block, one and several in several parts.
    const SIZES: &[[usize; 4]] =
        &[[1, 1, 1, 1], [5, 3, 2, 64], [7, 256, 7, 3], [40, 257, 11, 65], [30, 17 * BLOCK + 5, 4, 130]];

    #[test]
    fn losses_and_gradients_are_those_of_plain_sums() {
        let sizes = if cfg!(miri) { &SIZES[..2] } else { SIZES };
        for &size in sizes {
            let case = Case::new(size);
            for loss in LOSSES {
                let (total, gradients, dx) = case.pass(loss);
                let (want, want_gradients, want_dx) = case.plainly(loss);
                assert!((total - want).abs() <= 1e-6 * want, "{size:?} {loss:?}: {total} for {want}");
                assert_close(&gradients.concat(), &want_gradients.concat());
                assert_close(&dx, &want_dx);
            }
        }
    }

    #[test]
    fn logits_of_any_size_have_a_loss() {
        for loss in LOSSES {
            let mut layer = LabelLayer::new(1, 1, 1, |_, _, values| {
                values[0] = 1.0;
                0.0
            })
            .unwrap();
            for z in [-1e15, -200.0, -90.0, -1e-20, 0.0, 1e-20, 90.0, 200.0, 1e4] {
                for has in [&[][..], &[0]] {
                    let (mut dx, mut nothing) = ([f32::NAN], [()]);
                    let scratch = &mut LabelScratch::default();
                    let total =
                        layer.pass(loss, &[z], &[has], &mut dx, scratch, &mut nothing, |_, _, _| {}).unwrap();
                    let z = f64::from(z);
                    let signed = if has.is_empty() { z } else { -z };
                    let want = match loss {
                        LabelLoss::BinaryCrossEntropy => signed.max(0.0) + (-z.abs()).exp().ln_1p(),
                        LabelLoss::SquaredHinge => (1.0 + signed).max(0.0).powi(2),
                    };
                    assert!(
                        (total - want).abs() <= 1e-6 * want.abs() + 1e-30,
                        "{loss:?} of {z}: {total} for {want}"
                    );
                    assert!(dx[0].is_finite());
                }
            }
            let mut dx = [0.0];
            let nan = layer.pass(
                loss,
                &[f32::NAN],
                &[&[]],
                &mut dx,
                &mut LabelScratch::default(),
                &mut [()],
                |_, _, _| {},
            );
            assert!(nan.unwrap().is_nan(), "a network that has diverged says so");
        }
    }

    #[test]
    fn any_number_of_threads_trains_the_same() {
        let on = |threads| {
            let Case { mut layer, x, has } = Case::new([30, 5 * BLOCK + 9, 4, 70]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut moments, mut dx) = (LabelMoments::new(&layer).unwrap(), vec![0.0; x.len()]);
                let (scratch, has) =
                    (&mut LabelScratch::default(), has.iter().map(Vec::as_slice).collect::<Vec<_>>());
                let mut losses = Vec::new();
                for step in 1..=3 {
                    let adam = AdamStep::new(0.01, step);
                    let loss = LabelLoss::BinaryCrossEntropy;
                    losses.push(layer.step(&mut moments, adam, loss, &x, &has, &mut dx, scratch).unwrap());
                }
                assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
                (layer, moments, dx, losses)
            })
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn the_best_labels_are_those_of_all_logits_sorted() {
        for &size in if cfg!(miri) { &SIZES[..2] } else { SIZES } {
            let mut case = Case::new(size);
            // Many equal logits.
            for block in &mut case.layer.blocks {
                block.numbers.iter_mut().for_each(|number| *number = (*number * 2.0).round());
            }
            case.x.iter_mut().for_each(|x| *x = (*x * 2.0).round());
            for k in [1, 5, 1000] {
                let best = case.layer.top(k, &case.x, &mut LabelScratch::default()).unwrap();
                for (sample, best) in best.iter().enumerate() {
                    let mut all: Vec<(u32, f32)> = (0..case.layer.labels)
                        .map(|label| (label as u32, case.logit(sample, label) as f32))
                        .collect();
                    all.sort_by(|a, b| b.1.total_cmp(&a.1));
                    all.truncate(k);
                    assert_eq!(*best, all, "{size:?} {k}");
                }
            }
        }
    }

    #[test]
    fn weights_that_stay_keep_value_and_moments() {
        let mut layer = LabelLayer::new(6, 2, 3, |label, row, values| {
            row.copy_from_slice(&[0, 2, 4]);
            values.copy_from_slice(&[1.0, 2.0, 3.0]);
            label as f32
        })
        .unwrap();
        let mut moments = LabelMoments::new(&layer).unwrap();
        moments.blocks[0] = [1.0, -1.0].map(|sign| (1..=8).map(|i| sign * i as f32).collect());
        let choose = |label: usize, row: &[u16], values: &[f32], next: &mut [u16]| {
            assert_eq!((row, values), (&[0, 2, 4][..], &[1.0, 2.0, 3.0][..]));
            next.copy_from_slice(if label == 0 { row } else { &[1, 2, 5] });
        };
        layer.rewire(&mut moments, choose).unwrap();
        assert_eq!(layer.label(0), (&[0, 2, 4][..], &[1.0, 2.0, 3.0][..], 0.0));
        assert_eq!(layer.label(1), (&[1, 2, 5][..], &[0.0, 2.0, 0.0][..], 1.0));
        assert_eq!(moments.blocks[0][0], [1.0, 2.0, 3.0, 0.0, 5.0, 0.0, 7.0, 8.0]);
        assert_eq!(moments.blocks[0][1], [-1.0, -2.0, -3.0, 0.0, -5.0, 0.0, -7.0, -8.0]);
        let twice = layer.rewire(&mut moments, |_, _, _, next| next.fill(1));
        assert_eq!(
            twice.unwrap_err().to_string(),
            "condensed weight: input indices of neuron 0 do not ascend"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |[inputs, labels, fan_in]: [usize; 3], input: u16| {
            let fill = |_: usize, row: &mut [u16], _: &mut [f32]| {
                row.fill(input);
                0.0
            };
            LabelLayer::new(inputs, labels, fan_in, fill).unwrap_err().to_string()
        };
        assert!(refused([4, 2, 0], 0).contains("fan-in 0 of a matrix with 4 columns"));
        assert!(refused([4, 2, 5], 0).contains("fan-in 5 of a matrix with 4 columns"));
        assert!(refused([4, 2, 1], 4).contains("input index 4 of a matrix with 4 columns"));
        assert!(refused([4, 2, 2], 1).contains("neuron 0 do not ascend"));
        assert!(
            refused([70_000, 2, 1], 1)
                .contains("2 labels of 70000 features: there must be a label, and at most 65536")
        );
        assert!(refused([4, 0, 1], 1).contains("0 labels"));
        assert!(
            refused([60_000, u32::MAX as usize, 60_000], 1).contains("more memory")
                || refused([60_000, u32::MAX as usize, 60_000], 1).contains("of memory")
        );
    }
}
