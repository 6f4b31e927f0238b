//! What a network computes, with fewer operations: batch norms join the layers before them, and ablated neurons
//! leave.

use crate::{CondensedWeight, Error, FanIn, Network, Node, Op, Shape, Weight, math};
use std::iter::repeat_n;

impl Network {
    /// The same function with fewer operations, up to rounding. The output keeps its shape. Two things happen:
    ///
    /// **Batch norms are folded.** An [`Op::Affine`] joins the [`Op::Linear`] or [`Op::Conv2d`] before it if
    /// nobody else reads that layer: `s·(W x + b) + t = (s·W) x + (s·b + t)`. The layer keeps its name.
    ///
    /// **Ablated neurons leave.** The result of a neuron without weights is its bias at every position, a
    /// constant `c`. If the layer has one reader, which has one reader, and so on through [`Op::Relu`],
    /// [`Op::Gelu`], [`Op::HardSigmoid`], [`Op::HardSwish`], [`Op::Affine`], [`Op::MaxPool`], [`Op::GlobalAvgPool`], [`Op::Flatten`] and
    /// [`Op::ClassToken`] (all of which map constants to constants) up to a linear layer or a convolution,
    /// then the neuron is removed, and so are the weights that read it; what they added, `Σ w·c`, joins the
    /// bias of their layer. A row that loses its last weight is ablated in turn. This is exact, except at the
    /// border of a convolution with zero padding, where `c` does not reach all taps: such a convolution only
    /// lets neurons go whose `c` is 0 when it arrives, as it is after a ReLU if it was not positive.
    ///
    /// What reads or follows an addition, a normalisation, tokens or attention stays as it is, and so do
    /// convolutions with groups. A layer keeps at least one neuron. A layer that loses weights may lose its
    /// constant fan-in. Where a folded number would not be finite, nothing is folded.
    ///
    /// # Errors
    /// What [`shapes`](Self::shapes) finds wrong.
    pub fn fold(self) -> Result<Self, Error> {
        self.shapes()?;
        let mut network = self.fold_affine();
        // These stay as they are, whatever leaves.
        let positions: Vec<usize> = network.shapes()?.iter().map(Shape::positions).collect();
        for layer in 0..network.nodes.len() {
            network.remove_ablated(layer, &positions)?;
        }
        Ok(network)
    }

    /// The nodes that read each node; a node that reads one twice is there twice.
    fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| readers[input].push(index));
        }
        readers
    }

    fn fold_affine(self) -> Self {
        let readers = self.readers();
        // Where each node's result is found in the folded network.
        let mut places: Vec<usize> = Vec::with_capacity(self.nodes.len());
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        for mut node in self.nodes {
            if let (Op::Affine { scale, shift }, &[input]) = (&node.op, &node.inputs[..])
                && readers[input].len() == 1
                && let Op::Linear { weight, bias } | Op::Conv2d { weight, bias, .. } =
                    &mut nodes[places[input]].op
                && let Some(scaled) = scale_rows(weight, scale)
                && let Some(shifted) = finite(bias.iter().zip(scale).zip(shift).map(|((b, s), t)| b * s + t))
            {
                (*weight, *bias) = (scaled, shifted);
                places.push(places[input]);
                continue;
            }
            node.inputs.iter_mut().for_each(|input| *input = places[*input]);
            places.push(nodes.len());
            nodes.push(node);
        }
        Self { nodes }
    }

    /// Removes what can be removed of the ablated neurons of the node `layer`; `positions` has those of each
    /// node's result.
    fn remove_ablated(&mut self, layer: usize, positions: &[usize]) -> Result<(), Error> {
        let (Op::Linear { weight: Weight::Condensed(weight), bias }
        | Op::Conv2d { weight: Weight::Condensed(weight), bias, groups: 1, .. }) = &self.nodes[layer].op
        else {
            return Ok(());
        };
        // Of each feature on the way: the neuron it comes from, and its value if that is constant.
        let mut features: Vec<(usize, Option<f32>)> = bias.iter().map(|&c| Some(c)).enumerate().collect();
        weight.active().iter().for_each(|&neuron| features[neuron as usize].1 = None);
        if features.iter().all(|(_, constant)| constant.is_none()) {
            return Ok(());
        }
        let (neurons, readers) = (features.len(), self.readers());
        let mut at = layer;
        let mut affines = Vec::new();
        let consumer = loop {
            let [reader] = readers[at][..] else { return Ok(()) };
            let constants = features.iter_mut().enumerate();
            let constants = constants.filter_map(|(f, (_, constant))| constant.as_mut().map(|c| (f, c)));
            match &self.nodes[reader].op {
                Op::Relu => constants.for_each(|(_, c)| *c = c.max(0.0)),
                Op::Gelu => constants.for_each(|(_, c)| math::gelu(std::slice::from_mut(c))),
                Op::HardSigmoid => constants.for_each(|(_, c)| math::hard_sigmoid(std::slice::from_mut(c))),
                Op::HardSwish => constants.for_each(|(_, c)| math::hard_swish(std::slice::from_mut(c))),
                Op::Affine { scale, shift } => {
                    constants.for_each(|(f, c)| *c = *c * scale[f] + shift[f]);
                    affines.push(reader);
                }
                Op::MaxPool(_) | Op::GlobalAvgPool | Op::ClassToken => {}
                Op::Flatten => {
                    features = features.iter().flat_map(|&f| repeat_n(f, positions[at])).collect();
                }
                Op::Linear { .. } | Op::Conv2d { groups: 1, .. } => break reader,
                _ => return Ok(()),
            }
            at = reader;
        };

        let padded =
            matches!(&self.nodes[consumer].op, Op::Conv2d { window, .. } if window.padding != [0, 0]);
        let mut kept = vec![false; neurons];
        for &(neuron, constant) in &features {
            kept[neuron] |= !constant.is_some_and(|c| c.is_finite() && (c == 0.0 || !padded));
        }
        if !kept.contains(&true) {
            kept[0] = true;
        }
        if !kept.contains(&false) {
            return Ok(());
        }

        let constants: Vec<Option<f32>> =
            features.iter().map(|&(neuron, constant)| constant.filter(|_| !kept[neuron])).collect();
        let (Op::Linear { weight, bias } | Op::Conv2d { weight, bias, .. }) = &mut self.nodes[consumer].op
        else {
            unreachable!("the consumer is a layer with weights");
        };
        let Some((less, shifted)) = remove_columns(weight, bias, &constants)? else { return Ok(()) };
        (*weight, *bias) = (less, shifted);
        for affine in affines {
            if let Op::Affine { scale, shift } = &mut self.nodes[affine].op {
                // Flattened features are several to a neuron.
                let each = scale.len() / neurons;
                *scale = keep(scale, |i| kept[i / each]);
                *shift = keep(shift, |i| kept[i / each]);
            }
        }
        if let Op::Linear { weight: Weight::Condensed(weight), bias }
        | Op::Conv2d { weight: Weight::Condensed(weight), bias, .. } = &mut self.nodes[layer].op
        {
            *bias = keep(bias, |neuron| kept[neuron]);
            *weight = remove_rows(weight, &kept)?;
        }
        Ok(())
    }
}

/// The elements at the places that stay.
fn keep(values: &[f32], kept: impl Fn(usize) -> bool) -> Vec<f32> {
    values.iter().enumerate().filter(|&(i, _)| kept(i)).map(|(_, &v)| v).collect()
}

/// All of the values, if they are finite.
fn finite(values: impl Iterator<Item = f32>) -> Option<Vec<f32>> {
    values.map(|v| v.is_finite().then_some(v)).collect()
}

/// Row `n` times `scale[n]`, if that is finite.
fn scale_rows(weight: &Weight, scale: &[f32]) -> Option<Weight> {
    Some(match weight {
        Weight::Dense(values) => {
            let inputs = values.len() / scale.len();
            Weight::Dense(finite(values.iter().enumerate().map(|(i, w)| w * scale[i / inputs]))?)
        }
        Weight::Condensed(weight) => {
            let rows = weight.active().iter().enumerate();
            let values =
                rows.flat_map(|(row, &n)| weight.row(row).map(move |(_, value)| value * scale[n as usize]));
            let indices = (0..weight.indices().len()).map(|i| weight.indices().get(i) as u32).collect();
            let (neurons, inputs, active) = (weight.neurons(), weight.inputs(), weight.active().to_vec());
            let values = finite(values)?;
            let scaled =
                CondensedWeight::new(neurons, inputs, active, weight.fan_in().clone(), indices, values);
            Weight::Condensed(scaled.expect("only finite values have changed"))
        }
    })
}

/// The weight without the neurons that do not stay, all ablated.
fn remove_rows(weight: &CondensedWeight, kept: &[bool]) -> Result<CondensedWeight, Error> {
    let mut rows = weight.active().iter().enumerate().peekable();
    let mut left = Vec::new();
    for (neuron, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
        let row = rows.next_if(|(_, active)| **active as usize == neuron);
        left.push(row.map(|(row, _)| weight.row(row).collect()).unwrap_or_default());
    }
    condense(&left, weight.inputs())
}

/// Weight and bias of a layer that reads no constants any more: `constants[f]` is the value of input feature
/// `f` if it goes. `None` if the bias would not be finite.
fn remove_columns(
    weight: &Weight,
    bias: &[f32],
    constants: &[Option<f32>],
) -> Result<Option<(Weight, Vec<f32>)>, Error> {
    let inputs = match weight {
        Weight::Dense(values) => values.len() / bias.len(),
        Weight::Condensed(weight) => weight.inputs(),
    };
    // A convolution has several columns for each feature.
    let taps = inputs / constants.len();
    let constant = |column: usize| constants[column / taps];
    let mut places = Vec::with_capacity(inputs);
    let mut left = 0;
    for column in 0..inputs {
        places.push(left);
        left += usize::from(constant(column).is_none());
    }
    let fixed = |row: &mut dyn Iterator<Item = (usize, f32)>| -> f64 {
        row.filter_map(|(column, w)| constant(column).map(|c| f64::from(w) * f64::from(c))).sum()
    };
    let mut sums: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
    let weight = match weight {
        Weight::Dense(values) => {
            let mut kept = Vec::with_capacity(bias.len() * left);
            for (row, sum) in values.chunks_exact(inputs).zip(&mut sums) {
                *sum += fixed(&mut row.iter().copied().enumerate());
                kept.extend(keep(row, |column| constant(column).is_none()));
            }
            Weight::Dense(kept)
        }
        Weight::Condensed(weight) => {
            let mut rows = vec![Vec::new(); bias.len()];
            for (row, &neuron) in weight.active().iter().enumerate() {
                let neuron = neuron as usize;
                sums[neuron] += fixed(&mut weight.row(row));
                let kept = weight.row(row).filter(|(column, _)| constant(*column).is_none());
                rows[neuron] = kept.map(|(column, value)| (places[column], value)).collect();
            }
            Weight::Condensed(condense(&rows, left)?)
        }
    };
    Ok(finite(sums.into_iter().map(|sum| sum as f32)).map(|bias| (weight, bias)))
}

/// Condenses rows of (input, value), one for each neuron.
fn condense(rows: &[Vec<(usize, f32)>], inputs: usize) -> Result<CondensedWeight, Error> {
    let filled = || rows.iter().enumerate().filter(|(_, row)| !row.is_empty());
    let active: Vec<u32> = filled().map(|(neuron, _)| neuron as u32).collect();
    let fan_in = filled().next().map_or(0, |(_, row)| row.len());
    let fan_in = if filled().all(|(_, row)| row.len() == fan_in) {
        FanIn::Constant(fan_in)
    } else {
        let ends = filled().scan(0, |end, (_, row)| {
            *end += row.len() as u32;
            Some(*end)
        });
        FanIn::Varying([0].into_iter().chain(ends).collect())
    };
    let (indices, values) = rows.iter().flatten().map(|&(input, value)| (input as u32, value)).unzip();
    CondensedWeight::new(rows.len(), inputs, active, fan_in, indices, values)
}
