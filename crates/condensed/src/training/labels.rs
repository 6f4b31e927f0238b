//! The output layer of extreme classification: hundreds of thousands of labels, each of which reads a few features.

use super::adam::AdamStep;
use super::label_kernels::{Labels, Lanes, TILE, Tile, Work, best_of, dense_gradients, gradients};
use crate::{Error, WeightError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use srigl_tensors::memory;

/// Labels of a block, at most. Its weights stay in the second-level cache while all samples pass.
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

    /// Its name among [`NAMES`](Self::NAMES).
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(.., loss)| *loss == self).map_or("", |(name, ..)| name)
    }
}

/// Sizes of a [`LabelLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelSizes {
    /// Features, at most 65 536.
    pub inputs: usize,
    /// Labels.
    pub labels: usize,
    /// Features that each label reads.
    pub fan_in: usize,
    /// Labels, one after the other, that read the same features, at most 256. The last group may have fewer.
    pub group: usize,
}

impl LabelSizes {
    /// Groups of labels.
    pub fn groups(&self) -> usize {
        self.labels.div_ceil(self.group.max(1))
    }

    /// Labels of a block: whole groups.
    fn block(&self) -> usize {
        BLOCK / self.group * self.group
    }

    fn check(&self) -> Result<(), Error> {
        let Self { inputs, labels, fan_in, group } = *self;
        if labels == 0 || labels > u32::MAX as usize || inputs > 1 << 16 {
            return Err(WeightError::Labels { labels, inputs }.into());
        }
        if fan_in == 0 || fan_in > inputs {
            return Err(WeightError::FanIn { fan_in, inputs }.into());
        }
        if group == 0 || group > BLOCK {
            return Err(WeightError::Group { group, most: BLOCK }.into());
        }
        Ok(())
    }
}

/// A linear layer of many outputs, labels, each of which reads `fan_in` of `inputs` features and has a bias: the output layer of
/// extreme classification with constant fan-in (Schultheis & Babbar 2023, arXiv 2306.03725). A `group` of labels may read the same
/// features, which are fetched once for all of them (HASTE, 2026, arXiv 2606.01117).
///
/// Nothing of `[batch, labels]` ever exists. A block of labels computes logits, losses and gradients of all samples, and its weights
/// move before the next block's turn, so there is no gradient of all weights either. Results do not depend on threads.
///
/// ```
/// use condensed::training::{AdamStep, LabelLayer, LabelLoss, LabelMoments, LabelScratch, LabelSizes};
///
/// // Two labels of three features; the first reads features 0 and 2, the second 1 and 2.
/// let sizes = LabelSizes { inputs: 3, labels: 2, fan_in: 2, group: 1 };
/// let inputs = |group: usize, row: &mut [u16]| row.copy_from_slice(&[group as u16, 2]);
/// let mut layer = LabelLayer::new(sizes, inputs, |_label, _values| 0.0)?;
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
    sizes: LabelSizes,
    blocks: Vec<Block>,
}

/// Some groups of labels, one after the other.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    /// `[groups, fan_in]`, ascending within a group.
    indices: Vec<u16>,
    /// Values `[labels, fan_in]`, then biases `[labels]`.
    numbers: Vec<f32>,
}

/// Adam's moments of all values and biases of a [`LabelLayer`].
#[derive(Clone, Debug, PartialEq)]
pub struct LabelMoments {
    sizes: LabelSizes,
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

/// What the weights of labels that a batch has would have for gradients if the labels read all features.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenGradients {
    inputs: usize,
    /// Groups of the labels, ascending.
    groups: Vec<usize>,
    /// `[groups, inputs]`.
    sums: Vec<f32>,
}

impl SeenGradients {
    /// The sums of magnitudes over the labels of a group that samples have, `[inputs]`; `None` if none has one.
    pub fn of(&self, group: usize) -> Option<&[f32]> {
        let at = self.groups.binary_search(&group).ok()?;
        Some(&self.sums[at * self.inputs..(at + 1) * self.inputs])
    }
}

impl LabelLayer {
    /// A layer of these sizes. `inputs` is called for each group, with room for its features, which are to be ascending, and
    /// `weights` for each label, with its values, which are 0, and returns the bias; both on several threads.
    ///
    /// # Errors
    /// [`Error::Weight`] if there are no labels or more than 65 536 inputs, a fan-in of none or of more than there are, groups of none or of
    /// more than 256, or inputs that are not ascending; [`Error::TrainingMemory`] if it takes more than the [budget](memory::limit).
    pub fn new(
        sizes: LabelSizes,
        inputs: impl Fn(usize, &mut [u16]) + Sync,
        weights: impl Fn(usize, &mut [f32]) -> f32 + Sync,
    ) -> Result<Self, Error> {
        sizes.check()?;
        let LabelSizes { labels, fan_in, group, .. } = sizes;
        let of_groups = memory::product(&[sizes.groups(), fan_in, size_of::<u16>()]);
        let of_labels = memory::product(&[labels, fan_in + 1, size_of::<f32>()]);
        let bytes = of_groups.zip(of_labels).and_then(|(groups, labels)| groups.checked_add(labels));
        memory::check(bytes).map_err(Error::TrainingMemory)?;
        let blocks = (0..labels.div_ceil(sizes.block())).into_par_iter().map(|block| {
            let first = block * sizes.block();
            let count = sizes.block().min(labels - first);
            let mut indices = vec![0; count.div_ceil(group) * fan_in];
            for (of_group, row) in (first / group..).zip(indices.chunks_exact_mut(fan_in)) {
                inputs(of_group, row);
                check_row(of_group, row, sizes.inputs)?;
            }
            let mut numbers = vec![0.0; count * (fan_in + 1)];
            let (values, biases) = numbers.split_at_mut(count * fan_in);
            for (label, (values, bias)) in (first..).zip(values.chunks_exact_mut(fan_in).zip(biases)) {
                *bias = weights(label, values);
            }
            Ok(Block { indices, numbers })
        });
        let blocks: Result<Vec<Block>, Error> = blocks.collect();
        Ok(Self { sizes, blocks: blocks? })
    }

    /// Its sizes.
    pub fn sizes(&self) -> LabelSizes {
        self.sizes
    }

    /// Values and biases.
    pub fn parameters(&self) -> usize {
        self.sizes.labels * (self.sizes.fan_in + 1)
    }

    /// Inputs of a group.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn inputs(&self, group: usize) -> &[u16] {
        let per_block = self.sizes.block() / self.sizes.group;
        let (block, row) = (&self.blocks[group / per_block], group % per_block);
        &block.indices[row * self.sizes.fan_in..(row + 1) * self.sizes.fan_in]
    }

    /// Values and bias of a label.
    ///
    /// # Panics
    /// If there is no such label.
    pub fn weights(&self, label: usize) -> (&[f32], f32) {
        of_label(&self.blocks[label / self.sizes.block()].numbers, self.sizes, label)
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
        let (sizes, inputs, batch) = (self.sizes, self.sizes.inputs, has.len());
        assert_eq!(dx.len(), x.len(), "dx [batch, inputs]");
        let tiles = self.lay_out(batch, x, scratch)?;
        let LabelScratch { x, dx: sums, pairs } = scratch;
        let (x, part) = (&x[..], self.blocks.len().div_ceil(PARTS));
        let parts = self.blocks.len().div_ceil(part);
        room(sums, &[parts, tiles, inputs])?;
        sort(has, sizes.labels, pairs);
        let pairs = &pairs[..];
        let scale = 1.0 / batch.max(1) as f32;
        let of_parts = self.blocks.par_chunks_mut(part).zip(states.par_chunks_mut(part));
        let of_parts = of_parts.zip(sums.par_chunks_mut((tiles * inputs).max(1))).enumerate();
        let losses = of_parts.map(|(index, ((blocks, states), sums))| {
            sums.fill([0.0; TILE]);
            let (mut total, mut gradient, work) = (0.0, Vec::new(), &mut Work::default());
            for (at, (block, state)) in blocks.iter_mut().zip(states).enumerate() {
                let labels = block.view(index * part + at, sizes);
                gradient.clear();
                gradient.resize(block.numbers.len(), 0.0);
                let pairs = of_labels(labels.first, labels.biases.len(), pairs);
                for (tile, (x, dx)) in x.chunks_exact(inputs).zip(sums.chunks_exact_mut(inputs)).enumerate() {
                    let (first, count) = (tile * TILE, TILE.min(batch - tile * TILE));
                    let tile = Tile { x, pairs, first, count, loss, scale };
                    total += gradients(labels, tile, work, &mut gradient, dx);
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

    /// The gradients by all weights that the labels which samples have would have if they read all features, of the mean over samples
    /// of the loss: what growth by gradient looks at (RigL). Arguments are those of [`step`](Self::step), before which this is to be
    /// asked for.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn seen_gradients(
        &self,
        loss: LabelLoss,
        x: &[f32],
        has: &[&[u32]],
        scratch: &mut LabelScratch,
    ) -> Result<SeenGradients, Error> {
        let (sizes, inputs, batch) = (self.sizes, self.sizes.inputs, has.len());
        self.lay_out(batch, x, scratch)?;
        sort(has, sizes.labels, &mut scratch.pairs);
        let (x, pairs) = (&scratch.x[..], &scratch.pairs[..]);
        let seen: Vec<u32> = pairs.chunk_by(|a, b| a.0 == b.0).map(|of_label| of_label[0].0).collect();
        let mut of_labels_seen = zeros(seen.len(), inputs)?;
        let mut rest = &mut of_labels_seen[..];
        let by_block = |a: &u32, b: &u32| *a as usize / sizes.block() == *b as usize / sizes.block();
        let mut tasks = Vec::new();
        for seen in seen.chunk_by(by_block) {
            let (here, others) = std::mem::take(&mut rest).split_at_mut(seen.len() * inputs);
            tasks.push((seen, here));
            rest = others;
        }
        let scale = 1.0 / batch.max(1) as f32;
        tasks.into_par_iter().for_each_init(Work::default, |work, (seen, to)| {
            let block = seen[0] as usize / sizes.block();
            let labels = self.blocks[block].view(block, sizes);
            let pairs = of_labels(labels.first, labels.biases.len(), pairs);
            for (tile, x) in x.chunks_exact(inputs).enumerate() {
                let (first, count) = (tile * TILE, TILE.min(batch - tile * TILE));
                let tile = Tile { x, pairs, first, count, loss, scale };
                dense_gradients(labels, tile, seen, work, to);
            }
        });
        let of_groups = seen.chunk_by(|a, b| *a as usize / sizes.group == *b as usize / sizes.group);
        let groups: Vec<usize> = of_groups.clone().map(|seen| seen[0] as usize / sizes.group).collect();
        let (mut sums, mut from) = (zeros(groups.len(), inputs)?, &of_labels_seen[..]);
        for (sum, seen) in sums.chunks_exact_mut(inputs).zip(of_groups) {
            let (here, rest) = from.split_at(seen.len() * inputs);
            for (at, gradient) in here.iter().enumerate() {
                sum[at % inputs] += gradient.abs();
            }
            from = rest;
        }
        Ok(SeenGradients { inputs, groups, sums })
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
        let (sizes, inputs) = (self.sizes, self.sizes.inputs);
        let (batch, k) = (x.len() / inputs, k.min(sizes.labels));
        self.lay_out(batch, x, scratch)?;
        let room = memory::product(&[batch.next_multiple_of(TILE), PARTS, k, size_of::<(u32, f32)>()]);
        memory::check(room).map_err(Error::TrainingMemory)?;
        let x = &scratch.x[..];
        let part = self.blocks.len().div_ceil(PARTS);
        let parts = self.blocks.par_chunks(part).enumerate().map(|(index, blocks)| {
            let mut best = vec![Vec::new(); batch.next_multiple_of(TILE)];
            let mut least = vec![[f32::NEG_INFINITY; TILE]; batch.div_ceil(TILE)];
            let work = &mut Work::default();
            for (at, block) in blocks.iter().enumerate() {
                let labels = block.view(index * part + at, sizes);
                let tiles = x.chunks_exact(inputs).zip(best.chunks_exact_mut(TILE)).zip(&mut least);
                tiles.for_each(|((x, best), least)| best_of(labels, x, k, work, best, least));
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

    /// Gives groups of labels other inputs. `choose` is called for each, on several threads, with its inputs and the sums of their
    /// weights' magnitudes, and writes as many inputs, ascending. Weights that stay keep value and moments; what is new starts with
    /// none.
    ///
    /// # Errors
    /// [`Error::Weight`] if inputs are not ascending or not there. Some groups may have been changed then.
    ///
    /// # Panics
    /// If `moments` are of another layer.
    pub fn rewire(
        &mut self,
        moments: &mut LabelMoments,
        choose: impl Fn(usize, &[u16], &[f32], &mut [u16]) + Sync,
    ) -> Result<(), Error> {
        assert!(moments.fit(self), "moments of another layer");
        let LabelSizes { inputs, fan_in, group, .. } = self.sizes;
        let per_block = self.sizes.block() / group;
        let blocks = self.blocks.par_iter_mut().zip(&mut moments.blocks).enumerate();
        blocks.try_for_each_init(
            || (vec![0.0; fan_in], vec![0; fan_in]),
            |(magnitudes, next), (index, (block, moments))| {
                let count = block.numbers.len() / (fan_in + 1);
                for (of_group, row) in block.indices.chunks_exact_mut(fan_in).enumerate() {
                    let weights = of_group * group * fan_in..count.min((of_group + 1) * group) * fan_in;
                    magnitudes.fill(0.0);
                    for values in block.numbers[weights.clone()].chunks_exact(fan_in) {
                        magnitudes.iter_mut().zip(values).for_each(|(sum, value)| *sum += value.abs());
                    }
                    choose(index * per_block + of_group, row, magnitudes, next);
                    check_row(index * per_block + of_group, next, inputs)?;
                    let [first, second] = &mut *moments;
                    for numbers in [&mut block.numbers, first, second] {
                        numbers[weights.clone()]
                            .chunks_exact_mut(fan_in)
                            .for_each(|numbers| follow(numbers, row, next));
                    }
                    row.copy_from_slice(next);
                }
                Ok(())
            },
        )
    }

    /// Lays features out in tiles and says how many there are.
    fn lay_out(&self, batch: usize, x: &[f32], scratch: &mut LabelScratch) -> Result<usize, Error> {
        let inputs = self.sizes.inputs;
        assert_eq!(Some(x.len()), batch.checked_mul(inputs), "x [batch, inputs]");
        let tiles = batch.div_ceil(TILE);
        room(&mut scratch.x, &[tiles, inputs])?;
        let of_tiles = scratch.x.par_chunks_mut(inputs).zip(x.par_chunks(TILE * inputs));
        of_tiles.for_each(|(tile, x)| {
            tile.fill([0.0; TILE]);
            for (lane, x) in x.chunks_exact(inputs).enumerate() {
                tile.iter_mut().zip(x).for_each(|(lanes, x)| lanes[lane] = *x);
            }
        });
        Ok(tiles)
    }
}

impl Block {
    fn labels(&self, sizes: LabelSizes) -> usize {
        self.numbers.len() / (sizes.fan_in + 1)
    }

    /// The block of this number for the kernels.
    fn view(&self, block: usize, sizes: LabelSizes) -> Labels<'_> {
        let (values, biases) = self.numbers.split_at(self.labels(sizes) * sizes.fan_in);
        let (fan_in, group, first) = (sizes.fan_in, sizes.group, block * sizes.block());
        Labels { indices: &self.indices, values, biases, fan_in, group, first }
    }
}

impl LabelMoments {
    /// Those of a layer that has not been trained.
    ///
    /// # Errors
    /// [`Error::TrainingMemory`] if they take more than the [budget](memory::limit).
    pub fn new(layer: &LabelLayer) -> Result<Self, Error> {
        let bytes = memory::product(&[layer.sizes.labels, layer.sizes.fan_in + 1, 2, size_of::<f32>()]);
        memory::check(bytes).map_err(Error::TrainingMemory)?;
        let zeros = |block: &Block| [(); 2].map(|()| vec![0.0; block.numbers.len()]);
        Ok(Self { sizes: layer.sizes, blocks: layer.blocks.iter().map(zeros).collect() })
    }

    /// Labels of their layer.
    pub fn labels(&self) -> usize {
        self.sizes.labels
    }

    /// Those of the values and of the bias of a label: the first moments (0) or the second ones (1).
    ///
    /// # Panics
    /// If there is no such label or moment.
    pub fn weights(&self, moment: usize, label: usize) -> (&[f32], f32) {
        of_label(&self.blocks[label / self.sizes.block()][moment], self.sizes, label)
    }

    /// Gives labels the moments of an earlier training. `fill` is called for each moment and label, on several threads, with room for those
    /// of its values, and returns that of its bias.
    pub fn restore(&mut self, fill: impl Fn(usize, usize, &mut [f32]) -> f32 + Sync) {
        let sizes = self.sizes;
        self.blocks.par_iter_mut().enumerate().for_each(|(block, moments)| {
            for (moment, numbers) in moments.iter_mut().enumerate() {
                let labels = numbers.len() / (sizes.fan_in + 1);
                let (values, biases) = numbers.split_at_mut(labels * sizes.fan_in);
                let labels = values.chunks_exact_mut(sizes.fan_in).zip(biases);
                for (label, (values, bias)) in (block * sizes.block()..).zip(labels) {
                    *bias = fill(moment, label, values);
                }
            }
        });
    }

    fn fit(&self, layer: &LabelLayer) -> bool {
        self.sizes == layer.sizes
    }
}

/// Values and bias of a label, of the numbers of its block.
fn of_label(numbers: &[f32], sizes: LabelSizes, label: usize) -> (&[f32], f32) {
    let (row, biases) = (label % sizes.block(), numbers.len() / (sizes.fan_in + 1) * sizes.fan_in);
    (&numbers[row * sizes.fan_in..(row + 1) * sizes.fan_in], numbers[biases + row])
}

/// Labels and the samples that have them, by label.
fn sort(has: &[&[u32]], labels: usize, pairs: &mut Vec<(u32, u32)>) {
    pairs.clear();
    for (sample, of_sample) in has.iter().enumerate() {
        pairs.extend(of_sample.iter().map(|label| (*label, sample as u32)));
    }
    pairs.sort_unstable();
    assert!(pairs.is_sorted_by(|a, b| a < b), "a sample has a label twice");
    assert!(pairs.last().is_none_or(|(label, _)| (*label as usize) < labels), "labels");
}

/// The pairs of some labels.
fn of_labels(first: usize, count: usize, pairs: &[(u32, u32)]) -> &[(u32, u32)] {
    let at = |label: usize| pairs.partition_point(|pair| (pair.0 as usize) < label);
    &pairs[at(first)..at(first + count)]
}

fn check_row(group: usize, row: &[u16], inputs: usize) -> Result<(), Error> {
    if !row.is_sorted_by(|a, b| a < b) {
        return Err(WeightError::IndexOrder { neuron: group as u32 }.into());
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

/// A matrix of zeros.
fn zeros(rows: usize, columns: usize) -> Result<Vec<f32>, Error> {
    memory::filled(0.0, rows.saturating_mul(columns)).map_err(Error::TrainingMemory)
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
        fn new([inputs, labels, fan_in, group, batch]: [usize; 5]) -> Self {
            let row = |group: usize, row: &mut [u16]| {
                let rng = &mut SmallRng::seed_from_u64(group as u64);
                let mut chosen = rand::seq::index::sample(rng, inputs, fan_in).into_vec();
                chosen.sort_unstable();
                row.iter_mut().zip(chosen).for_each(|(to, from)| *to = from as u16);
            };
            let weights = |label: usize, values: &mut [f32]| {
                let rng = &mut SmallRng::seed_from_u64(label as u64 + 1_000_000);
                values.iter_mut().for_each(|value| *value = rng.random_range(-1.0..1.0));
                rng.random_range(-2.0..1.0)
            };
            let layer = LabelLayer::new(LabelSizes { inputs, labels, fan_in, group }, row, weights).unwrap();
            let rng = &mut SmallRng::seed_from_u64(7);
            let x = (0..batch * inputs).map(|_| rng.random_range(-1.0..1.0)).collect();
            let has = (0..batch).map(|sample| {
                let count = ((sample + 1) % 4).min(labels);
                rand::seq::index::sample(rng, labels, count).into_iter().map(|label| label as u32).collect()
            });
            Self { layer, x, has: has.collect() }
        }

        fn has(&self) -> Vec<&[u32]> {
            self.has.iter().map(Vec::as_slice).collect()
        }

        fn row(&self, label: usize) -> &[u16] {
            self.layer.inputs(label / self.layer.sizes.group)
        }

        fn logit(&self, sample: usize, label: usize) -> f64 {
            let (row, (values, bias)) = (self.row(label), self.layer.weights(label));
            let x = &self.x[sample * self.layer.sizes.inputs..];
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
            let (sizes, batch) = (self.layer.sizes, self.has.len());
            let (inputs, labels) = (sizes.inputs, sizes.block());
            let (mut total, mut dx) = (0.0, vec![0.0; self.x.len()]);
            let mut gradients: Vec<Vec<f64>> =
                self.layer.blocks.iter().map(|block| vec![0.0; block.numbers.len()]).collect();
            for sample in 0..batch {
                for label in 0..self.layer.sizes.labels {
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
                    let (row, (values, _)) = (self.row(label), self.layer.weights(label));
                    let block = &mut gradients[label / labels];
                    let bias =
                        self.layer.blocks[label / labels].labels(sizes) * sizes.fan_in + label % labels;
                    block[bias] += slope;
                    for (place, (input, value)) in row.iter().zip(values).enumerate() {
                        let at = sample * inputs + usize::from(*input);
                        block[label % labels * sizes.fan_in + place] += slope * f64::from(self.x[at]);
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

    /// Inputs, labels, fan-in, group and batch. Of one sample, part of a tile, a whole one and more; of less than a block, one and several
    /// in several parts; in groups of which the last has fewer, or that do not fill a block of 256; with all inputs, more than a chunk.
    const SIZES: &[[usize; 5]] = &[
        [1, 1, 1, 1, 1],
        [5, 3, 2, 2, 64],
        [7, 256, 7, 1, 3],
        [40, 257, 11, 1, 65],
        [100, 300, 70, 16, 65],
        [100, 300, 70, 1, 10],
        [130, 70, 130, 32, 70],
        [30, 17 * BLOCK + 5, 4, 1, 130],
        [30, 2 * BLOCK + 90, 4, 100, 70],
        [9, 2 * BLOCK, 5, 256, 2],
    ];

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
            let sizes = LabelSizes { inputs: 1, labels: 1, fan_in: 1, group: 1 };
            let weights = |_: usize, values: &mut [f32]| {
                values[0] = 1.0;
                0.0
            };
            let mut layer = LabelLayer::new(sizes, |_, _| {}, weights).unwrap();
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
        let on = |threads, group| {
            let Case { mut layer, x, has } = Case::new([30, 5 * BLOCK + 9, 4, group, 70]);
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
        assert_eq!(on(1, 1), on(3, 1));
        assert_eq!(on(1, 16), on(3, 16));
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
                assert_eq!(best.len(), case.has.len());
                for (sample, best) in best.iter().enumerate() {
                    let mut all: Vec<(u32, f32)> = (0..case.layer.sizes.labels)
                        // Zeros of both signs are equal.
                        .map(|label| (label as u32, case.logit(sample, label) as f32 + 0.0))
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
        // Labels 0 and 1 share inputs, label 2 has its own.
        let sizes = LabelSizes { inputs: 6, labels: 3, fan_in: 3, group: 2 };
        let weights = |label: usize, values: &mut [f32]| {
            values.copy_from_slice(&[1.0, -2.0, 3.0]);
            label as f32
        };
        let mut layer = LabelLayer::new(sizes, |_, row| row.copy_from_slice(&[0, 2, 4]), weights).unwrap();
        let mut moments = LabelMoments::new(&layer).unwrap();
        moments.blocks[0] = [1.0, -1.0].map(|sign| (1..=12).map(|i| sign * i as f32).collect());
        let choose = |group: usize, row: &[u16], magnitudes: &[f32], next: &mut [u16]| {
            assert_eq!(row, [0, 2, 4]);
            assert_eq!(magnitudes, if group == 0 { [2.0, 4.0, 6.0] } else { [1.0, 2.0, 3.0] });
            next.copy_from_slice(if group == 1 { row } else { &[1, 2, 5] });
        };
        layer.rewire(&mut moments, choose).unwrap();
        assert_eq!([layer.inputs(0), layer.inputs(1)], [[1, 2, 5], [0, 2, 4]]);
        assert_eq!(layer.weights(0), (&[0.0, -2.0, 0.0][..], 0.0));
        assert_eq!(layer.weights(1), (&[0.0, -2.0, 0.0][..], 1.0));
        assert_eq!(layer.weights(2), (&[1.0, -2.0, 3.0][..], 2.0));
        let after = [0.0, 2.0, 0.0, 0.0, 5.0, 0.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0];
        assert_eq!(moments.blocks[0], [after.to_vec(), after.map(|moment| -moment).to_vec()]);
        // As they were, from what is told of them.
        let mut restored = LabelMoments::new(&layer).unwrap();
        restored.restore(|moment, label, values| {
            let (of_values, bias) = moments.weights(moment, label);
            values.copy_from_slice(of_values);
            bias
        });
        assert!(restored == moments);
        let twice = layer.rewire(&mut moments, |_, _, _, next| next.fill(1));
        assert_eq!(
            twice.unwrap_err().to_string(),
            "condensed weight: input indices of neuron 0 do not ascend"
        );
    }

    /// Of several blocks, against a plain search in each label's row.
    #[test]
    fn each_group_gets_inputs_of_its_own() {
        for size in [[30, 2 * BLOCK + 90, 4, 100, 1], [30, BLOCK + 5, 4, 1, 1], [9, 2 * BLOCK, 5, 256, 1]] {
            let before = Case::new(size).layer;
            let (sizes, mut layer) = (before.sizes, before.clone());
            let mut moments = LabelMoments::new(&layer).unwrap();
            assert_eq!((moments.labels(), layer.parameters()), (size[1], size[1] * (size[2] + 1)));
            let moment =
                |moment: usize, label: usize, place: usize| (moment * 100_000 + label * 10 + place) as f32;
            moments.restore(|index, label, values| {
                values.iter_mut().enumerate().for_each(|(place, value)| *value = moment(index, label, place));
                -(label as f32)
            });
            let chosen = |group: usize| {
                let mut row = before.inputs(group).to_vec();
                // The first input that it does not have, instead of one that it has.
                let other = (0..30).find(|input| !row.contains(input)).unwrap();
                row[group % sizes.fan_in] = other;
                row.sort_unstable();
                row
            };
            let choose = |group: usize, row: &[u16], magnitudes: &[f32], next: &mut [u16]| {
                assert_eq!(row, before.inputs(group));
                let labels = group * sizes.group..sizes.labels.min((group + 1) * sizes.group);
                let sum = |place: usize| {
                    labels.clone().map(|label: usize| before.weights(label).0[place].abs()).sum::<f32>()
                };
                let sums = (0..sizes.fan_in).map(sum).collect::<Vec<_>>();
                assert!(magnitudes.iter().zip(sums).all(|(ours, sum)| (ours - sum).abs() <= 1e-5 * sum));
                next.copy_from_slice(&chosen(group));
            };
            layer.rewire(&mut moments, choose).unwrap();
            for label in 0..sizes.labels {
                let group = label / sizes.group;
                assert_eq!(layer.inputs(group), chosen(group));
                let (old, (values, bias)) = (before.weights(label), layer.weights(label));
                assert_eq!(bias, old.1);
                for (place, input) in layer.inputs(group).iter().enumerate() {
                    let was = before.inputs(group).iter().position(|old| old == input);
                    assert_eq!(values[place], was.map_or(0.0, |was| old.0[was]));
                    for index in [0, 1] {
                        let (of_values, of_bias) = moments.weights(index, label);
                        assert_eq!(of_values[place], was.map_or(0.0, |was| moment(index, label, was)));
                        assert_eq!(of_bias, -(label as f32));
                    }
                }
            }
        }
    }

    /// The second group of the second of three blocks.
    #[test]
    fn what_is_wrong_is_of_its_group() {
        let mut layer = Case::new([30, 2 * 200 + 1, 4, 100, 1]).layer;
        let mut moments = LabelMoments::new(&layer).unwrap();
        let choose = |group: usize, row: &[u16], _: &[f32], next: &mut [u16]| match group {
            3 => next.fill(1),
            _ => next.copy_from_slice(row),
        };
        let error = layer.rewire(&mut moments, choose).unwrap_err().to_string();
        assert!(error.contains("input indices of neuron 3 do not ascend"), "{error}");
    }

    #[test]
    #[should_panic(expected = "moments of another layer")]
    fn moments_belong_to_their_layer() {
        let other = Case::new([5, 4, 2, 2, 1]).layer;
        let mut layer = Case::new([5, 3, 2, 2, 1]).layer;
        let _ = layer.rewire(&mut LabelMoments::new(&other).unwrap(), |_, _, _, _| {});
    }

    #[test]
    fn sizes_are_those_of_whole_groups() {
        let sizes = |labels, group| LabelSizes { inputs: 1 << 16, labels, fan_in: 1, group };
        let (most, one) = (u32::MAX as usize, sizes(7, 1));
        assert_eq!(
            [(7, 1), (7, 2), (8, 2), (9, 16)].map(|(labels, group)| sizes(labels, group).groups()),
            [7, 4, 4, 1]
        );
        assert_eq!([1, 16, 100, 256].map(|group| sizes(7, group).block()), [256, 256, 200, 256]);
        assert!(sizes(most, 1).check().is_ok() && sizes(most + 1, 1).check().is_err());
        assert!(sizes(7, 256).check().is_ok() && sizes(7, 257).check().is_err());
        assert!(LabelSizes { inputs: (1 << 16) + 1, ..one }.check().is_err());
        assert!(LabelSizes { fan_in: 1 << 16, ..one }.check().is_ok());
        for (name, _, loss) in LabelLoss::NAMES {
            assert_eq!(loss.name(), name);
        }
    }

    #[test]
    fn gradients_of_labels_that_samples_have_are_those_of_dense_weights() {
        let blocks = [10, 700, 3, 1, 2];
        let of_two_blocks = Case { has: vec![vec![1], vec![300]], ..Case::new(blocks) };
        let cases = if cfg!(miri) { &SIZES[..2] } else { SIZES }.iter().map(|&size| (size, Case::new(size)));
        for (size, case) in cases.chain([(blocks, of_two_blocks)]) {
            let LabelSizes { inputs, group, labels, .. } = case.layer.sizes;
            // The same logits from weights of which most are 0.
            let dense = LabelSizes { fan_in: inputs, ..case.layer.sizes };
            let fill = |label: usize, values: &mut [f32]| {
                let (own, bias) = case.layer.weights(label);
                case.row(label)
                    .iter()
                    .zip(own)
                    .for_each(|(input, value)| values[usize::from(*input)] = *value);
                bias
            };
            let all =
                |_: usize, row: &mut [u16]| row.iter_mut().enumerate().for_each(|(k, to)| *to = k as u16);
            let layer = LabelLayer::new(dense, all, fill).unwrap();
            let dense = Case { layer, has: case.has.clone(), ..Case::new(size) };
            for loss in LOSSES {
                let scratch = &mut LabelScratch::default();
                let seen = case.layer.seen_gradients(loss, &case.x, &case.has(), scratch).unwrap();
                let (_, gradients, _) = dense.plainly(loss);
                let gradient = |label: usize, input: usize| {
                    let per_block = dense.layer.sizes.block();
                    gradients[label / per_block][label % per_block * inputs + input]
                };
                let has = |label: usize| case.has.iter().flatten().any(|has| *has as usize == label);
                for of_group in 0..case.layer.sizes.groups() {
                    let of_group_labels = of_group * group..labels.min((of_group + 1) * group);
                    let here: Vec<usize> = of_group_labels.filter(|label| has(*label)).collect();
                    let got = seen.of(of_group);
                    assert_eq!(got.is_some(), !here.is_empty());
                    let sum = |input| here.iter().map(|label| gradient(*label, input).abs()).sum();
                    let want: Vec<f64> = (0..inputs).map(sum).collect();
                    if let Some(got) = got {
                        assert_close(got, &want);
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused_groups = |[inputs, labels, fan_in, group]: [usize; 4], input: u16| {
            let sizes = LabelSizes { inputs, labels, fan_in, group };
            LabelLayer::new(sizes, |_, row| row.fill(input), |_, _| 0.0).unwrap_err().to_string()
        };
        let refused =
            |[inputs, labels, fan_in]: [usize; 3], input| refused_groups([inputs, labels, fan_in, 1], input);
        for group in [0, 257, usize::MAX] {
            let said = format!("groups of {group} labels: from 1 to 256 may share inputs");
            assert!(refused_groups([4, 2, 1, group], 0).contains(&said));
        }
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
