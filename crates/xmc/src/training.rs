use crate::output::OutputMoments;
use crate::{Batch, Error, Network};
use condensed::training::{AdamStep, LabelLoss, LabelScratch, dropout};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sparsity_core::Stream;
use srigl_tensors::memory;

/// What an update gives labels for the inputs that it takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Growth {
    /// Any others (SET, as Schultheis & Babbar 2023).
    Random,
    /// Those with the largest gradients, for labels that the step's points have (RigL); any others for the rest.
    Gradient,
}

impl Growth {
    /// Names in command lines and files, and what they mean.
    pub const NAMES: [(&'static str, &'static str, Self); 2] = [
        ("random", "Any others (SET)", Self::Random),
        (
            "gradient",
            "Those with the largest gradients, for labels that the step's points have (RigL)",
            Self::Gradient,
        ),
    ];
}

/// How a network is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Times that all points pass.
    pub epochs: usize,
    /// Points of a step.
    pub batch_size: usize,
    /// Learning rate of Adam at the start; it falls to 0 in a straight line.
    #[serde(rename = "lr")]
    pub learning_rate: f64,
    /// Share of the hidden layer that is dropped.
    pub dropout: f64,
    /// The loss.
    pub loss: LabelLoss,
    /// Steps from one topology update to the next; 0 for none.
    pub delta_t: u64,
    /// Share of each label's weights that an update replaces.
    pub drop_fraction: f64,
    /// What comes in their place.
    pub growth: Growth,
    /// Of batches, dropout and topology.
    pub seed: u64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 6,
            batch_size: 256,
            learning_rate: 1e-2,
            dropout: 0.3,
            loss: LabelLoss::SquaredHinge,
            delta_t: 300,
            drop_fraction: 0.15,
            growth: Growth::Random,
            seed: 0,
        }
    }
}

impl TrainingConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let settings = [
            ("epochs", self.epochs as f64, "at least 1", self.epochs > 0),
            ("batch size", self.batch_size as f64, "at least 1", self.batch_size > 0),
            (
                "learning rate",
                self.learning_rate,
                "positive",
                self.learning_rate > 0.0 && self.learning_rate.is_finite(),
            ),
            ("dropout", self.dropout, "from 0 to less than 1", (0.0..1.0).contains(&self.dropout)),
            ("drop fraction", self.drop_fraction, "from 0 to 1", (0.0..=1.0).contains(&self.drop_fraction)),
        ];
        match settings.into_iter().find(|(.., is_right)| !is_right) {
            Some((name, value, allowed, _)) => Err(Error::Setting { name, value, allowed }),
            None => Ok(()),
        }
    }
}

/// Share of the steps after which the topology stays.
const STOP: f64 = 2.0 / 3.0;

/// A network under training. What a batch does not touch costs nothing but in the output layer.
#[derive(Debug)]
pub struct Training {
    network: Network,
    config: TrainingConfig,
    points: usize,
    step: u64,
    /// Points in the order of the epoch under way.
    order: Vec<u32>,
    embedding: [Vec<f32>; 2],
    bias: [Vec<f32>; 2],
    output: OutputMoments,
    scratch: LabelScratch,
}

impl Training {
    /// Begins to train a network on so many points.
    ///
    /// # Errors
    /// [`Error::Setting`] for a setting out of range, [`Error::Memory`] and [`Error::Layer`] if the moments take more than the
    /// [budget](memory::limit).
    pub fn new(network: Network, config: TrainingConfig, points: usize) -> Result<Self, Error> {
        let zeros = || {
            let zeros = memory::filled(0.0, network.embedding.len());
            zeros.map_err(|cause| Error::Memory { what: "moments of an embedding of all features", cause })
        };
        let embedding = [zeros()?, zeros()?];
        let bias = [(); 2].map(|()| vec![0.0; network.hidden()]);
        let output = OutputMoments::new(&network.output)?;
        Self::restored(network, config, points, 0, embedding, bias, output)
    }

    /// A training of so many steps, with its moments.
    pub(crate) fn restored(
        network: Network,
        config: TrainingConfig,
        points: usize,
        step: u64,
        embedding: [Vec<f32>; 2],
        bias: [Vec<f32>; 2],
        output: OutputMoments,
    ) -> Result<Self, Error> {
        config.check()?;
        let (order, scratch) = (Vec::new(), LabelScratch::default());
        Ok(Self { network, config, points, step, order, embedding, bias, output, scratch })
    }

    /// Adam's moments of embedding, bias and output layer.
    pub(crate) fn moments(&self) -> (&[Vec<f32>; 2], &[Vec<f32>; 2], &OutputMoments) {
        (&self.embedding, &self.bias, &self.output)
    }

    /// The network as it is now.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Checks that all weights and moments are numbers.
    ///
    /// # Errors
    /// [`Error::Diverged`] if not.
    pub fn check(&self) -> Result<(), Error> {
        let moments = self.embedding.iter().chain(&self.bias).flatten();
        let is_finite =
            self.network.is_finite() && moments.copied().all(f32::is_finite) && self.output.is_finite();
        match is_finite {
            true => Ok(()),
            false => Err(Error::Diverged { loss: f64::NAN, step: self.step }),
        }
    }

    /// The network alone, without moments.
    ///
    /// # Errors
    /// [`Error::Diverged`] if not all its weights are numbers.
    pub fn finish(self) -> Result<Network, Error> {
        match self.network.is_finite() {
            true => Ok(self.network),
            false => Err(Error::Diverged { loss: f64::NAN, step: self.step }),
        }
    }

    /// Steps that have been taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.points.div_ceil(self.config.batch_size) as u64
    }

    /// Steps of the whole training.
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch().saturating_mul(self.config.epochs as u64)
    }

    /// The points of the next step, in an order that depends on seed and epoch alone; `None` after the last.
    #[expect(clippy::should_implement_trait, reason = "an iterator would keep the training borrowed")]
    pub fn next(&mut self) -> Option<Vec<usize>> {
        if self.step >= self.steps() {
            return None;
        }
        let (epoch, within) = (self.step / self.steps_per_epoch(), self.step % self.steps_per_epoch());
        if within == 0 || self.order.is_empty() {
            self.order.clear();
            self.order.extend(0..self.points as u32);
            let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
            rng.set_stream(epoch);
            self.order.shuffle(&mut rng);
        }
        let first = within as usize * self.config.batch_size;
        let end = self.points.min(first + self.config.batch_size);
        Some(self.order[first..end].iter().map(|point| *point as usize).collect())
    }

    /// Takes a step on a batch and returns its loss: the sum over labels, the mean over points.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss is not finite; [`Error::Layer`] if a batch takes more memory than the
    /// [budget](memory::limit).
    ///
    /// # Panics
    /// If a point has a feature or label that the network does not.
    pub fn step(&mut self, batch: &Batch) -> Result<f64, Error> {
        let config = self.config;
        let steps = self.steps();
        let share = self.step as f64 / steps.max(1) as f64;
        self.step += 1;
        let adam = AdamStep::new(config.learning_rate * (1.0 - share), self.step);
        let mut hidden = self.network.hidden_layer(batch)?;
        let seed = self.config.seed.wrapping_add(self.step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dropout(&mut hidden, config.dropout, seed);
        let labels: Vec<&[u32]> = (0..batch.len()).map(|point| batch.labels(point)).collect();
        let mut gradient = self.network.of_points(batch.len())?;
        let (output, scratch) = (&mut self.network.output, &mut self.scratch);
        let is_update = config.delta_t > 0
            && self.step.is_multiple_of(config.delta_t)
            && (self.step as f64) < STOP * steps as f64;
        let seen = match config.growth {
            Growth::Gradient if is_update => output.seen_gradients(config.loss, &hidden, &labels, scratch)?,
            _ => Vec::new(),
        };
        let loss =
            output.step(&mut self.output, adam, config.loss, &hidden, &labels, &mut gradient, scratch)?;
        if !loss.is_finite() {
            return Err(Error::Diverged { loss, step: self.step });
        }
        // What is 0 was cut off or dropped; the rest was divided by the share that stays.
        let scale = (1.0 / (1.0 - config.dropout)) as f32;
        gradient.par_iter_mut().zip(hidden).for_each(|(gradient, hidden)| {
            *gradient = if hidden > 0.0 { *gradient * scale } else { 0.0 };
        });
        self.step_embedding(adam, batch, &gradient);
        if is_update {
            let stream = Stream { seed: config.seed, layer: 1, step: self.step };
            self.network.output.rewire(&mut self.output, config.drop_fraction, stream, &seen)?;
        }
        Ok(loss)
    }

    /// Moves the bias, and the rows of features that the batch has, by the gradient by the hidden layer `[points, hidden]`.
    fn step_embedding(&mut self, adam: AdamStep, batch: &Batch, gradient: &[f32]) {
        let width = self.network.hidden();
        let mut of_bias = vec![0.0; width];
        for row in gradient.chunks_exact(width) {
            of_bias.iter_mut().zip(row).for_each(|(sum, gradient)| *sum += gradient);
        }
        let [first, second] = &mut self.bias;
        adam.apply(&mut self.network.bias, &of_bias, first, second);

        let mut uses: Vec<(u32, u32, f32)> = Vec::new();
        for point in 0..batch.len() {
            let (features, values) = batch.features(point);
            uses.extend(features.iter().zip(values).map(|(feature, value)| (*feature, point as u32, *value)));
        }
        uses.sort_by_key(|(feature, _, _)| *feature);
        let uses: Vec<&[(u32, u32, f32)]> = uses.chunk_by(|a, b| a.0 == b.0).collect();
        let features: Vec<usize> = uses.iter().map(|uses| uses[0].0 as usize).collect();
        let [first, second] = &mut self.embedding;
        let [weights, first, second] =
            [&mut self.network.embedding, first, second].map(|numbers| rows(numbers, &features, width));
        let of_features = weights.into_par_iter().zip(first).zip(second).zip(uses);
        of_features.for_each_init(
            || vec![0.0; width],
            |sum, (((weights, first), second), uses)| {
                sum.fill(0.0);
                for (_, point, value) in uses {
                    let row = &gradient[*point as usize * width..][..width];
                    sum.iter_mut().zip(row).for_each(|(sum, gradient)| *sum += value * gradient);
                }
                adam.apply(weights, sum, first, second);
            },
        );
    }
}

/// Some rows of a matrix, ascending, each for itself.
fn rows<'a>(mut numbers: &'a mut [f32], which: &[usize], width: usize) -> Vec<&'a mut [f32]> {
    let mut before = 0;
    let row = |row: &usize| {
        let (found, rest) = std::mem::take(&mut numbers)[(row - before) * width..].split_at_mut(width);
        (numbers, before) = (rest, row + 1);
        found
    };
    which.iter().map(row).collect()
}
