use crate::Error;
use condensed::training::{
    AdamStep, LabelLayer, LabelLoss, LabelMoments, LabelScratch, LabelSizes, SeenGradients,
};
use rand::RngExt;
use sparsity_core::{Purpose, Stream, random_row, rigl_row, set_row};

/// The output layer: a dense head of the most frequent labels, if it is wanted, and a sparse tail of all others.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The head, or the tail, or both in this order.
    pub(crate) layers: Vec<LabelLayer>,
    /// The label at each position, those of the head first.
    pub(crate) order: Vec<u32>,
    /// The position of each label.
    positions: Vec<u32>,
}

/// Adam's moments of an [`Output`].
#[derive(Debug, PartialEq)]
pub(crate) struct OutputMoments(pub(crate) Vec<LabelMoments>);

/// How the tail is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutputSizes {
    pub hidden: usize,
    pub fan_in: usize,
    pub group: usize,
    /// Labels of the dense head.
    pub head: usize,
}

impl OutputSizes {
    /// Labels of the dense head: all of them if the others would read all features, too.
    pub fn head(self, labels: usize) -> usize {
        if self.fan_in == self.hidden { labels } else { self.head.min(labels) }
    }

    /// Sizes of head and tail.
    pub fn layers(self, labels: usize) -> Vec<LabelSizes> {
        let Self { hidden, fan_in, group, .. } = self;
        let head = self.head(labels);
        let dense = LabelSizes { inputs: hidden, labels: head, fan_in: hidden, group: Output::HEAD_GROUP };
        let sparse = LabelSizes { inputs: hidden, labels: labels - head, fan_in, group };
        [dense, sparse].into_iter().filter(|sizes| sizes.labels > 0).collect()
    }
}

impl Output {
    /// Labels of a dense head that are computed together.
    pub(crate) const HEAD_GROUP: usize = 32;

    /// Random weights and inputs. `bias` says each label's.
    pub(crate) fn random(
        sizes: OutputSizes,
        order: Vec<u32>,
        seed: u64,
        bias: impl Fn(u32) -> f32 + Sync,
    ) -> Result<Self, Error> {
        let stream = Stream { seed, layer: 1, step: 0 };
        let mut first = 0;
        let layer = |sizes: LabelSizes| {
            let labels = &order[first..first + sizes.labels];
            first += sizes.labels;
            let most = 1.0 / (sizes.fan_in as f32).sqrt();
            let inputs = |group: usize, row: &mut [u16]| random_row(row, sizes.inputs, stream, group);
            let weights = |position: usize, values: &mut [f32]| {
                let mut rng = stream.rng(Purpose::Weights, labels[position] as usize);
                values.iter_mut().for_each(|value| *value = rng.random_range(-most..most));
                bias(labels[position])
            };
            LabelLayer::new(sizes, inputs, weights)
        };
        let layers: Result<Vec<LabelLayer>, condensed::Error> =
            sizes.layers(order.len()).into_iter().map(layer).collect();
        Ok(Self::new(layers?, order))
    }

    /// Layers whose labels come in this order, a permutation.
    pub(crate) fn new(layers: Vec<LabelLayer>, order: Vec<u32>) -> Self {
        let mut positions = vec![0; order.len()];
        order.iter().enumerate().for_each(|(position, label)| positions[*label as usize] = position as u32);
        Self { layers, order, positions }
    }

    /// Labels.
    pub fn labels(&self) -> usize {
        self.order.len()
    }

    /// Values and biases.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(LabelLayer::parameters).sum()
    }

    /// The hidden features that a label reads, ascending.
    ///
    /// # Panics
    /// If there is no such label.
    pub fn inputs(&self, label: usize) -> &[u16] {
        let mut position = self.positions[label] as usize;
        for layer in &self.layers {
            let sizes = layer.sizes();
            if position < sizes.labels {
                return layer.inputs(position / sizes.group);
            }
            position -= sizes.labels;
        }
        unreachable!("layers have all labels")
    }

    /// Whether all weights and biases are numbers.
    pub(crate) fn is_finite(&self) -> bool {
        let is_finite =
            |layer: &LabelLayer| (0..layer.sizes().labels).all(|label| are_finite(layer.weights(label)));
        self.layers.iter().all(is_finite)
    }

    /// The positions within each layer of the labels that each point has: `[layers][points]`.
    fn places(&self, labels: &[&[u32]]) -> Vec<Vec<Vec<u32>>> {
        let mut first = 0;
        let of_layer = |layer: &LabelLayer| {
            let here = first..first + layer.sizes().labels as u32;
            first = here.end;
            let of_point = |labels: &&[u32]| {
                let positions = labels.iter().map(|label| self.positions[*label as usize]);
                positions
                    .filter(|position| here.contains(position))
                    .map(|position| position - here.start)
                    .collect()
            };
            labels.iter().map(of_point).collect()
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// One step of Adam; see [`LabelLayer::step`].
    #[expect(clippy::too_many_arguments, reason = "as many as a step has")]
    pub(crate) fn step(
        &mut self,
        moments: &mut OutputMoments,
        adam: AdamStep,
        loss: LabelLoss,
        x: &[f32],
        labels: &[&[u32]],
        dx: &mut [f32],
        scratch: &mut LabelScratch,
    ) -> Result<f64, Error> {
        let (places, mut total, mut sum) = (self.places(labels), 0.0, Vec::new());
        for ((layer, moments), has) in self.layers.iter_mut().zip(&mut moments.0).zip(&places) {
            let has: Vec<&[u32]> = has.iter().map(Vec::as_slice).collect();
            total += layer.step(moments, adam, loss, x, &has, dx, scratch)?;
            match sum.is_empty() {
                true if places.len() > 1 => sum = dx.to_vec(),
                true => {}
                false => dx.iter_mut().zip(&sum).for_each(|(dx, sum)| *dx += sum),
            }
        }
        Ok(total)
    }

    /// Gradients of the labels that points have, of each layer; `None` for a dense one.
    pub(crate) fn seen_gradients(
        &self,
        loss: LabelLoss,
        x: &[f32],
        labels: &[&[u32]],
        scratch: &mut LabelScratch,
    ) -> Result<Vec<Option<SeenGradients>>, Error> {
        let places = self.places(labels);
        let layers = self.layers.iter().zip(&places).map(|(layer, has)| {
            let has: Vec<&[u32]> = has.iter().map(Vec::as_slice).collect();
            let is_sparse = layer.sizes().fan_in < layer.sizes().inputs;
            Ok(is_sparse.then(|| layer.seen_gradients(loss, x, &has, scratch)).transpose()?)
        });
        layers.collect()
    }

    /// Gives the labels of the tail other inputs: SET, or RigL where there is a gradient.
    pub(crate) fn rewire(
        &mut self,
        moments: &mut OutputMoments,
        drop_fraction: f64,
        stream: Stream,
        gradients: &[Option<SeenGradients>],
    ) -> Result<(), Error> {
        for (at, (layer, moments)) in self.layers.iter_mut().zip(&mut moments.0).enumerate() {
            let LabelSizes { inputs, fan_in, .. } = layer.sizes();
            if fan_in == inputs {
                continue;
            }
            let gradients = gradients.get(at).and_then(Option::as_ref);
            layer.rewire(moments, |group, row, magnitudes, next| {
                match gradients.and_then(|gradients| gradients.of(group)) {
                    Some(gradient) => rigl_row(row, magnitudes, gradient, drop_fraction, next),
                    None => set_row(row, magnitudes, inputs, drop_fraction, stream, group, next),
                }
            })?;
        }
        Ok(())
    }

    /// The `k` labels with the largest logits of each point, largest first, and these.
    pub(crate) fn top(&self, k: usize, x: &[f32]) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let (mut first, scratch) = (0, &mut LabelScratch::default());
        let mut all: Vec<Vec<(u32, f32)>> = Vec::new();
        for layer in &self.layers {
            let mut best = layer.top(k, x, scratch)?;
            best.iter_mut().flatten().for_each(|(label, _)| *label = self.order[first + *label as usize]);
            first += layer.sizes().labels;
            match all.is_empty() {
                true => all = best,
                false => all.iter_mut().zip(best).for_each(|(all, best)| all.extend(best)),
            }
        }
        for best in &mut all {
            best.sort_by(|(a, x), (b, y)| y.partial_cmp(x).expect("numbers").then(a.cmp(b)));
            best.truncate(k);
        }
        Ok(all)
    }
}

/// Whether values and bias of a label are numbers.
fn are_finite((values, bias): (&[f32], f32)) -> bool {
    bias.is_finite() && values.iter().all(|value| value.is_finite())
}

impl OutputMoments {
    /// Whether all are numbers.
    pub fn is_finite(&self) -> bool {
        let is_finite = |moments: &LabelMoments| {
            (0..moments.labels()).all(|label| (0..2).all(|moment| are_finite(moments.weights(moment, label))))
        };
        self.0.iter().all(is_finite)
    }

    pub fn new(output: &Output) -> Result<Self, Error> {
        let moments: Result<Vec<LabelMoments>, condensed::Error> =
            output.layers.iter().map(LabelMoments::new).collect();
        Ok(Self(moments?))
    }
}
