//! What a block of labels computes for a tile of samples.

use super::labels::LabelLoss;
use crate::math::{exp, vectorised};

/// Samples side by side.
pub(super) const TILE: usize = 64;
/// One number of each sample of a tile.
pub(super) type Lanes = [f32; TILE];
/// Inputs whose lanes stay in the first-level cache while the labels of a group pass.
const CHUNK: usize = 64;

/// The labels of a block and the inputs that they read.
#[derive(Clone, Copy)]
pub(super) struct Labels<'a> {
    /// `[groups, fan_in]`, ascending within a group.
    pub indices: &'a [u16],
    /// Values `[labels, fan_in]`.
    pub values: &'a [f32],
    /// `[labels]`.
    pub biases: &'a [f32],
    pub fan_in: usize,
    /// Labels that share inputs.
    pub group: usize,
    /// The block's first label.
    pub first: usize,
}

/// What a tile of samples means to a block of labels.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Features, `[inputs]`.
    pub x: &'a [Lanes],
    /// Pairs of the block's labels and samples of any tile.
    pub pairs: &'a [(u32, u32)],
    /// The first sample, and how many there are.
    pub first: usize,
    pub count: usize,
    pub loss: LabelLoss,
    /// What a sample's gradient counts.
    pub scale: f32,
}

/// Memory of a thread.
#[derive(Default)]
pub(super) struct Work {
    /// Features that a group reads, side by side, and the gradient by them: `[fan_in]`.
    x: Vec<Lanes>,
    dx: Vec<Lanes>,
    /// Logits of a group, then the gradient by them: `[group]`.
    z: Vec<Lanes>,
    /// Labels of a group whose gradient is not 0.
    active: Vec<usize>,
}

/// Where a group finds its features.
#[derive(Clone, Copy, PartialEq)]
enum Features {
    /// Each weight looks for its own, for there is but one label.
    Apart,
    /// Among all, in their order: the group reads all.
    All,
    /// Copied side by side for the labels of the group.
    Gathered,
}

impl Labels<'_> {
    fn features(&self, inputs: usize) -> Features {
        match self.group {
            _ if self.fan_in == inputs => Features::All,
            1 => Features::Apart,
            _ => Features::Gathered,
        }
    }
}

/// Adds products of `values` and features to the logits of a label. Feature `k` is where `row[k]` says if they are `APART`.
#[inline(always)]
fn add_products<const APART: bool>(row: &[u16], values: &[f32], x: &[Lanes], z: &mut Lanes) {
    for (k, (input, value)) in row.iter().zip(values).enumerate() {
        let x = &x[if APART { usize::from(*input) } else { k }];
        for lane in 0..TILE {
            z[lane] += value * x[lane];
        }
    }
}

/// The logits of some labels with the same inputs.
#[inline(always)]
fn logits<const APART: bool>(row: &[u16], values: &[f32], biases: &[f32], x: &[Lanes], z: &mut [Lanes]) {
    let fan_in = row.len();
    z.iter_mut().zip(biases).for_each(|(z, bias)| *z = [*bias; TILE]);
    for first in (0..fan_in).step_by(CHUNK) {
        let chunk = first..fan_in.min(first + CHUNK);
        let x = if APART { x } else { &x[chunk.clone()] };
        for (z, values) in z.iter_mut().zip(values.chunks_exact(fan_in)) {
            add_products::<APART>(&row[chunk.clone()], &values[chunk.clone()], x, z);
        }
    }
}

/// The logits of a group, into `work.z`. Its features are in `work.x` afterwards if they are to be gathered.
#[inline(always)]
fn logits_of_group(
    features: Features,
    row: &[u16],
    values: &[f32],
    biases: &[f32],
    x: &[Lanes],
    work: &mut Work,
) {
    work.z.resize(biases.len(), [0.0; TILE]);
    match features {
        Features::Apart => logits::<true>(row, values, biases, x, &mut work.z),
        Features::All => logits::<false>(row, values, biases, x, &mut work.z),
        Features::Gathered => {
            work.x.clear();
            work.x.extend(row.iter().map(|input| x[usize::from(*input)]));
            logits::<false>(row, values, biases, &work.x, &mut work.z);
        }
    }
}

/// Adds the gradient by the values of the `active` labels of a group, and that by its features.
#[inline(always)]
fn add_gradients<const APART: bool>(
    row: &[u16],
    values: &[f32],
    x: &[Lanes],
    slopes: &[Lanes],
    active: &[usize],
    dvalues: &mut [f32],
    dx: &mut [Lanes],
) {
    let fan_in = row.len();
    for first in (0..fan_in).step_by(CHUNK) {
        let chunk = first..fan_in.min(first + CHUNK);
        for label in active {
            let (slopes, here) = (&slopes[*label], label * fan_in + chunk.start..label * fan_in + chunk.end);
            let weights = values[here.clone()].iter().zip(&mut dvalues[here]);
            for ((k, input), (value, dvalue)) in chunk.clone().zip(&row[chunk.clone()]).zip(weights) {
                let at = if APART { usize::from(*input) } else { k };
                let (x, dx) = (&x[at], &mut dx[at]);
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
    }
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

/// The loss of a label, whose logits become the gradient by them. `pairs` are those from this label on, and afterwards those behind it.
#[inline(always)]
fn slopes(label: usize, tile: &Tile<'_>, pairs: &mut &[(u32, u32)], z: &mut Lanes) -> f64 {
    let (mut losses, mut slopes) = absent(tile.loss, z);
    let of_label = pairs.iter().take_while(|pair| pair.0 as usize == label).count();
    for (_, sample) in &pairs[..of_label] {
        let lane = (*sample as usize).checked_sub(tile.first).filter(|lane| *lane < tile.count);
        if let Some(lane) = lane {
            (losses[lane], slopes[lane]) = present(tile.loss, z[lane]);
        }
    }
    *pairs = &pairs[of_label..];
    slopes[tile.count..].fill(0.0);
    slopes.iter_mut().for_each(|slope| *slope *= tile.scale);
    *z = slopes;
    f64::from(losses[..tile.count].iter().sum::<f32>())
}

vectorised! {
    /// The loss of a block's labels and a tile of samples. Adds the gradient by values and biases, and that by the features.
    pub(super) fn gradients(labels: Labels<'_>, tile: Tile<'_>, work: &mut Work, gradient: &mut [f32], dx: &mut [Lanes]) -> f64 {
        let (dvalues, dbiases) = gradient.split_at_mut(labels.values.len());
        let (fan_in, features) = (labels.fan_in, labels.features(tile.x.len()));
        let (mut pairs, mut total) = (tile.pairs, 0.0);
        let values = labels.values.chunks(labels.group * fan_in).zip(labels.biases.chunks(labels.group));
        let gradients = dvalues.chunks_mut(labels.group * fan_in).zip(dbiases.chunks_mut(labels.group));
        let groups = labels.indices.chunks_exact(fan_in).zip(values).zip(gradients);
        for (group, ((row, (values, biases)), (dvalues, dbiases))) in groups.enumerate() {
            logits_of_group(features, row, values, biases, tile.x, work);
            work.active.clear();
            for (label, (z, dbias)) in work.z.iter_mut().zip(dbiases).enumerate() {
                total += slopes(labels.first + group * labels.group + label, &tile, &mut pairs, z);
                // Those of the hinge often are.
                if z.iter().any(|slope| *slope != 0.0) {
                    *dbias += z.iter().sum::<f32>();
                    work.active.push(label);
                }
            }
            if work.active.is_empty() {
                continue;
            }
            let (slopes, active) = (&work.z, &work.active);
            match features {
                Features::Apart => add_gradients::<true>(row, values, tile.x, slopes, active, dvalues, dx),
                Features::All => add_gradients::<false>(row, values, tile.x, slopes, active, dvalues, dx),
                Features::Gathered => {
                    work.dx.clear();
                    work.dx.resize(fan_in, [0.0; TILE]);
                    add_gradients::<false>(row, values, &work.x, slopes, active, dvalues, &mut work.dx);
                    for (input, from) in row.iter().zip(&work.dx) {
                        let to = &mut dx[usize::from(*input)];
                        for lane in 0..TILE {
                            to[lane] += from[lane];
                        }
                    }
                }
            }
        }
        total
    }
}

vectorised! {
    /// Adds the gradient by all weights that the labels `wanted`, ascending, would have if they read all features, to their rows of
    /// `gradients` `[wanted, inputs]`.
    pub(super) fn dense_gradients(labels: Labels<'_>, tile: Tile<'_>, wanted: &[u32], work: &mut Work, gradients: &mut [f32]) {
        let (fan_in, features) = (labels.fan_in, labels.features(tile.x.len()));
        for (label, gradient) in wanted.iter().zip(gradients.chunks_exact_mut(tile.x.len())) {
            let label = *label as usize;
            let within = label - labels.first;
            let row = &labels.indices[within / labels.group * fan_in..][..fan_in];
            let values = &labels.values[within * fan_in..][..fan_in];
            logits_of_group(features, row, values, &labels.biases[within..=within], tile.x, work);
            let mut pairs = &tile.pairs[tile.pairs.partition_point(|pair| (pair.0 as usize) < label)..];
            let z = &mut work.z[0];
            slopes(label, &tile, &mut pairs, z);
            for (gradient, x) in gradient.iter_mut().zip(tile.x) {
                let mut sums = [0.0; 16];
                for at in (0..TILE).step_by(16) {
                    for lane in 0..16 {
                        sums[lane] += z[at + lane] * x[at + lane];
                    }
                }
                *gradient += sums.iter().sum::<f32>();
            }
        }
    }
}

vectorised! {
    /// Puts a block's labels among the `k` best of each sample of a tile, `least` of which is to be beaten.
    pub(super) fn best_of(labels: Labels<'_>, x: &[Lanes], k: usize, work: &mut Work, best: &mut [Vec<(u32, f32)>], least: &mut Lanes) {
        let (fan_in, features) = (labels.fan_in, labels.features(x.len()));
        let values = labels.values.chunks(labels.group * fan_in).zip(labels.biases.chunks(labels.group));
        for (group, (row, (values, biases))) in labels.indices.chunks_exact(fan_in).zip(values).enumerate() {
            logits_of_group(features, row, values, biases, x, work);
            for (label, z) in work.z.iter().enumerate() {
                let is_any = z.iter().zip(&*least).fold(false, |any, (z, least)| any | (z > least));
                if !is_any {
                    continue;
                }
                for lane in 0..TILE {
                    if z[lane] > least[lane] {
                        let (best, label) = (&mut best[lane], labels.first + group * labels.group + label);
                        let at = best.partition_point(|(_, other)| *other >= z[lane]);
                        best.insert(at, (label as u32, z[lane]));
                        best.truncate(k);
                        if best.len() == k {
                            least[lane] = best.last().map_or(f32::INFINITY, |(_, z)| *z);
                        }
                    }
                }
            }
        }
    }
}
