//! What a network computes, with fewer operations: batch norms join the layers before them, and ablated neurons
//! leave.

use crate::engine::Use;
use crate::ops::{Layer, LayerMut, Operation, Passing, keep};
use crate::{CondensedWeight, Error, FanIn, Network, Node, Shape, Weight};

impl Network {
    /// The same function with fewer operations, up to rounding. The output keeps its shape. Two things happen:
    ///
    /// **Batch norms are folded.** An [`Affine`] joins the [`Linear`] or [`Conv2d`] before it if
    /// nothing else uses that layer's result: `s·(W x + b) + t = (s·W) x + (s·b + t)`. The layer keeps its name.
    ///
    /// **Ablated neurons leave.** The result of a neuron without weights is its bias at every position, a
    /// constant `c`. If the layer has one reader, which has one reader, and so on through operations that map
    /// constants to constants (activations, normalisation, pooling, flattening) up to a linear layer or a convolution,
    /// then the neuron is removed, and so are the weights that read it; what they added, `Σ w·c`, joins the
    /// bias of their layer. A row that loses its last weight is ablated in turn. This is exact, except at the
    /// border of a convolution with zero padding, where `c` does not reach all taps: such a convolution only
    /// lets neurons go whose `c` is 0 when it arrives, as it is after a ReLU if it was not positive.
    ///
    /// What reads or follows an addition, a normalisation, tokens or attention stays as it is, and so do
    /// convolutions with groups. A layer keeps at least one neuron. A layer that loses weights may lose its
    /// constant fan-in. Where a folded number would not be finite, nothing is folded.
    ///
    /// [`Affine`]: crate::ops::Affine
    /// [`Linear`]: crate::ops::Linear
    /// [`Conv2d`]: crate::ops::Conv2d
    ///
    /// # Errors
    /// [`Error::Memory`] if the list of a layer's inputs would take more than the [budget](srigl_tensors::memory::limit).
    pub fn fold(self) -> Result<Self, Error> {
        let readers = self.readers();
        let network = Self::new(fold_affine(self.into_nodes(), &readers))?;
        let shapes = network.shapes().to_vec();
        let readers = network.readers();
        let mut nodes = network.into_nodes();
        for layer in 0..nodes.len() {
            remove_ablated(&mut nodes, layer, &readers, &shapes)?;
        }
        Self::new(nodes)
    }
}

/// Joins operations that only scale and shift to the layers before them.
fn fold_affine(nodes: Vec<Node>, readers: &[Vec<usize>]) -> Vec<Node> {
    // Where each node's result is found in the folded network.
    let mut places: Vec<usize> = Vec::with_capacity(nodes.len());
    let mut folded: Vec<Node> = Vec::with_capacity(nodes.len());
    for mut node in nodes {
        if let (Some((scale, shift)), &[input]) = (node.op.operation().scale_and_shift(), &node.inputs[..])
            && readers[input].len() == 1
            && let Some(LayerMut { weight, bias }) =
                folded[places[input]].op.operation_mut().and_then(Operation::layer_mut)
            && let Some(scaled) = scale_rows(weight, scale)
            && let Some(shifted) = finite(bias.iter().zip(scale).zip(shift).map(|((b, s), t)| b * s + t))
        {
            (*weight, *bias) = (scaled, shifted);
            places.push(places[input]);
            continue;
        }
        node.inputs.iter_mut().for_each(|input| *input = places[*input]);
        places.push(folded.len());
        folded.push(node);
    }
    folded
}

/// Bytes for each input of a layer whose columns leave, at most.
const COLUMN: u64 = 64;

/// Removes what can be removed of the ablated neurons of the node `layer`. `shapes` are those of the results before
/// anything left: the positions stay, and features only become fewer.
fn remove_ablated(
    nodes: &mut [Node],
    layer: usize,
    readers: &[Vec<usize>],
    shapes: &[Shape],
) -> Result<(), Error> {
    let Some(Layer { weight: Weight::Condensed(weight), bias, whole: true, .. }) =
        nodes[layer].op.operation().layer()
    else {
        return Ok(());
    };
    // Of each feature on the way: the neuron it comes from, and its value if that is constant.
    let mut features: Vec<(usize, Option<f32>)> = bias.iter().map(|&c| Some(c)).enumerate().collect();
    weight.active().iter().for_each(|&neuron| features[neuron as usize].1 = None);
    if features.iter().all(|(_, constant)| constant.is_none()) {
        return Ok(());
    }
    let neurons = features.len();
    let mut between = Vec::new();
    let mut at = layer;
    let consumer = loop {
        let [reader] = readers[at][..] else { return Ok(()) };
        // Flattened features are as many as numbers, and a file of a few bytes may have many.
        let bytes = (shapes[reader].features.max(shapes[at].features) as u64).saturating_mul(COLUMN);
        Use { all: bytes, most: (&nodes[reader].name, bytes) }.check()?;
        match nodes[reader].op.operation().pass_constants(&mut features, shapes[at].positions()) {
            Passing::Through => between.push(reader),
            Passing::Ends => break reader,
            Passing::Stops => return Ok(()),
        }
        at = reader;
    };

    let padded = nodes[consumer].op.operation().layer().is_some_and(|layer| layer.padded);
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
    let Some(LayerMut { weight, bias }) = nodes[consumer].op.operation_mut().and_then(Operation::layer_mut)
    else {
        unreachable!("constants end at layers with weights");
    };
    let Some((less, shifted)) = remove_columns(weight, bias, &constants)? else { return Ok(()) };
    (*weight, *bias) = (less, shifted);
    for node in between {
        if let Some(operation) = nodes[node].op.operation_mut() {
            operation.keep_features(&kept);
        }
    }
    if let Some(LayerMut { weight: Weight::Condensed(weight), bias }) =
        nodes[layer].op.operation_mut().and_then(Operation::layer_mut)
    {
        *bias = keep(bias, |neuron| kept[neuron]);
        *weight = remove_rows(weight, &kept)?;
    }
    Ok(())
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
            let scaled = CondensedWeight::of(weight.pattern().clone(), finite(values)?);
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
    let mut places = Vec::with_capacity(constants.len());
    let mut left = 0;
    for constant in constants {
        places.push(left);
        left += if constant.is_none() { taps } else { 0 };
    }
    let place = |column: usize| places[column / taps] + column % taps;
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
                rows[neuron] = kept.map(|(column, value)| (place(column), value)).collect();
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
