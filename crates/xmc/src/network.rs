use crate::groups::order;
use crate::output::{Output, OutputSizes};
use crate::{Batch, Error, Points, Rankings, inverse_propensities};
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sparsity_core::{Purpose, Stream};
use srigl_tensors::memory;

/// An embedding of features, whose rows add up to a point's hidden layer, and an output layer of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// `[features, hidden]`.
    pub(crate) embedding: Vec<f32>,
    /// `[hidden]`.
    pub(crate) bias: Vec<f32>,
    pub(crate) output: Output,
    /// Training points that have each label, `[labels]`, and all of them.
    pub(crate) counts: Vec<u32>,
    pub(crate) points: usize,
    /// Whether features are dense.
    pub(crate) dense: bool,
}

/// How wide a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Width of the hidden layer, at most 65 536.
    pub hidden: usize,
    /// How many of its numbers each label reads.
    pub fan_in: usize,
    /// Labels that read the same numbers, each with weights of its own, at most 256; groups are of labels that points have together.
    pub group: usize,
    /// How many of the most frequent labels read all numbers; all labels if there are no more.
    pub dense_head: usize,
    /// Of initial weights and inputs.
    pub seed: u64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { hidden: 768, fan_in: 32, group: 1, dense_head: 0, seed: 0 }
    }
}

/// Standard deviation of initial embeddings. PyTorch's 1 leaves Adam no time to change them.
const EMBEDDING: f32 = 0.01;

impl NetworkConfig {
    /// A network with random weights for these points. Each label's bias is the logit of its share of them, so that training does not
    /// begin with teaching that most labels are rare.
    ///
    /// # Errors
    /// [`Error::Memory`] and [`Error::Layer`] if it takes more than the [budget](memory::limit) or the fan-in does not fit.
    pub fn build(&self, points: &Points) -> Result<Network, Error> {
        let Self { hidden, fan_in, group, dense_head: head, seed } = *self;
        let sizes = OutputSizes { hidden, fan_in, group, head };
        // With Adam's two moments, which training needs: all of it at once, so that nobody is surprised later.
        let mut all = memory::product(&[points.features(), hidden, 3, size_of::<f32>()]);
        for layer in sizes.layers(points.labels()) {
            let bytes = memory::product(&[layer.labels, layer.fan_in.saturating_add(1), 14]);
            all = all.zip(bytes).and_then(|(all, bytes)| all.checked_add(bytes));
        }
        let what = "a network of so many features and labels, and its moments";
        memory::check(all).map_err(|cause| Error::Memory { what, cause })?;
        let room = |cause| Error::Memory { what: "an embedding of all features", cause };
        let initial = Normal::new(0.0, EMBEDDING).expect("a positive deviation");
        let mut embedding = memory::filled(0.0, points.features().saturating_mul(hidden)).map_err(room)?;
        embedding.par_chunks_mut(hidden.max(1)).enumerate().for_each(|(feature, row)| {
            let mut rng = Stream { seed, layer: 0, step: 0 }.rng(Purpose::Weights, feature);
            row.iter_mut().for_each(|weight| *weight = initial.sample(&mut rng));
        });
        let counts = points.label_counts()?;
        let order = order(points, &counts, sizes.head(points.labels()), group)?;
        let output = Output::random(sizes, order, seed, |label| {
            let share = (f64::from(counts[label as usize]) + 0.5) / (points.len() as f64 + 1.0);
            (share / (1.0 - share)).ln() as f32
        })?;
        let (bias, dense) = (vec![0.0; hidden], points.is_dense());
        Ok(Network { embedding, bias, output, counts, points: points.len(), dense })
    }
}

impl Network {
    /// Whether all weights and biases are numbers: those of a training that has diverged are not.
    pub fn is_finite(&self) -> bool {
        let is_finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        is_finite(&self.embedding) && is_finite(&self.bias) && self.output.is_finite()
    }

    /// Width of the hidden layer.
    pub fn hidden(&self) -> usize {
        self.bias.len()
    }

    /// Features that points may have.
    pub fn features(&self) -> usize {
        self.embedding.len() / self.bias.len()
    }

    /// Whether its features are dense.
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// The output layer.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Inverse propensities of all labels, by the points that it was made for.
    pub fn inverse_propensities(&self) -> Vec<f64> {
        inverse_propensities(&self.counts, self.points)
    }

    /// Weights and biases; of the output layer the active ones.
    pub fn parameters(&self) -> usize {
        self.embedding.len() + self.bias.len() + self.output.parameters()
    }

    /// The hidden layer of each point, `[points, hidden]`: ReLU of the bias and the rows of its features, times their values.
    pub(crate) fn hidden_layer(&self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let width = self.hidden();
        let mut hidden = self.of_points(batch.len())?;
        hidden.par_chunks_mut(width).enumerate().for_each(|(point, hidden)| {
            hidden.copy_from_slice(&self.bias);
            let (features, values) = batch.features(point);
            for (feature, value) in features.iter().zip(values) {
                let row = &self.embedding[*feature as usize * width..][..width];
                hidden.iter_mut().zip(row).for_each(|(hidden, weight)| *hidden += value * weight);
            }
            hidden.iter_mut().for_each(|hidden| *hidden = if *hidden < 0.0 { 0.0 } else { *hidden });
        });
        Ok(hidden)
    }

    /// Zeros `[points, hidden]`.
    pub(crate) fn of_points(&self, points: usize) -> Result<Vec<f32>, Error> {
        let numbers = points.saturating_mul(self.hidden());
        let zeros = memory::filled(0.0, numbers);
        zeros
            .map_err(|cause| Error::Memory { what: "the hidden layer of a batch; take a smaller one", cause })
    }

    /// The `k` labels with the largest logits of each point, largest first, and these.
    ///
    /// # Errors
    /// [`Error::Memory`] and [`Error::Layer`] if that takes more memory than the [budget](memory::limit), [`Error::Logits`] if the best are
    /// not finite.
    ///
    /// # Panics
    /// If a point has a feature that the network does not.
    pub fn top(&self, k: usize, batch: &Batch) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let best = self.output.top(k, &self.hidden_layer(batch)?)?;
        // NaN is never among the best.
        let wanted = k.min(self.output.labels());
        let is_right =
            |best: &Vec<(u32, f32)>| best.len() == wanted && best.iter().all(|(_, z)| z.is_finite());
        if best.iter().all(is_right) { Ok(best) } else { Err(Error::Logits) }
    }

    /// Ranks the `k` best labels of all points, `batch` at once. `progress` is told how many are done.
    ///
    /// # Errors
    /// As [`top`](Self::top) and [`Points::batch`]; [`Error::Sizes`] as [`check`](Self::check).
    pub fn evaluate(
        &self,
        points: &Points,
        k: usize,
        batch: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Rankings, Error> {
        self.check(points)?;
        let mut rankings = Rankings::new(k, self.inverse_propensities());
        for first in (0..points.len()).step_by(batch.max(1)) {
            let end = points.len().min(first.saturating_add(batch.max(1)));
            let batch = points.batch(&(first..end).collect::<Vec<_>>())?;
            for (point, best) in self.top(k, &batch)?.into_iter().enumerate() {
                let ranked: Vec<u32> = best.into_iter().map(|(label, _)| label).collect();
                rankings.add(batch.labels(point), &ranked);
            }
            progress(end);
        }
        Ok(rankings)
    }

    /// Checks that points have no features and labels that it does not.
    ///
    /// # Errors
    /// [`Error::Sizes`] if they do, [`Error::Dense`] if only one of both has dense features.
    pub fn check(&self, points: &Points) -> Result<(), Error> {
        if points.is_dense() != self.dense {
            return Err(Error::Dense { network: self.dense });
        }
        let expected = [self.features(), self.output.labels()];
        check_sizes([points.features(), points.labels()], expected, points.is_dense())
    }
}

/// Checks that there are not more features and labels than expected, and of dense features as many.
pub(crate) fn check_sizes(got: [usize; 2], expected: [usize; 2], is_dense: bool) -> Result<(), Error> {
    for ((what, exactly), (got, expected)) in
        [("features", is_dense), ("labels", false)].into_iter().zip(got.into_iter().zip(expected))
    {
        if got > expected || exactly && got != expected {
            return Err(Error::Sizes { what, got, expected });
        }
    }
    Ok(())
}
