//! Operations that layers before them can take over.

use crate::{CondensedWeight, Error, FanIn, Network, Op, Weight};

impl Network {
    /// Folds each [`Op::Affine`] (a batch norm) into the linear layer or convolution before it, if nobody
    /// else reads that layer's result: `s·(W x + b) + t = (s·W) x + (s·b + t)`.
    ///
    /// # Errors
    /// [`Error::Weight`] if a folded weight is not finite.
    pub fn fold(mut self) -> Result<Self, Error> {
        let mut readers = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);
        // Where each node's result is found in the folded network.
        let mut places: Vec<usize> = Vec::with_capacity(self.nodes.len());
        let mut nodes: Vec<crate::Node> = Vec::with_capacity(self.nodes.len());
        for mut node in std::mem::take(&mut self.nodes) {
            if let (Op::Affine { scale, shift }, &[input]) = (&node.op, &node.inputs[..])
                && readers[input] == 1
                && let Op::Linear { weight, bias } | Op::Conv2d { weight, bias, .. } =
                    &mut nodes[places[input]].op
            {
                scale_rows(weight, scale)?;
                for ((bias, scale), shift) in bias.iter_mut().zip(scale).zip(shift) {
                    *bias = *bias * scale + shift;
                }
                places.push(places[input]);
                continue;
            }
            node.inputs.iter_mut().for_each(|input| *input = places[*input]);
            places.push(nodes.len());
            nodes.push(node);
        }
        Ok(Self { nodes })
    }
}

fn scale_rows(weight: &mut Weight, scale: &[f32]) -> Result<(), Error> {
    match weight {
        Weight::Dense(values) => {
            let inputs = values.len() / scale.len().max(1);
            for (row, scale) in values.chunks_mut(inputs.max(1)).zip(scale) {
                row.iter_mut().for_each(|w| *w *= scale);
            }
        }
        Weight::Condensed(sparse) => {
            let (neurons, active) = (sparse.neurons(), sparse.active().to_vec());
            let mut values = Vec::with_capacity(sparse.values().len());
            for (row, &neuron) in active.iter().enumerate() {
                values.extend(sparse.row(row).map(|(_, value)| value * scale[neuron as usize]));
            }
            let indices = (0..values.len()).map(|i| sparse.indices().get(i) as u32).collect();
            let fan_in: FanIn = sparse.fan_in().clone();
            *sparse = CondensedWeight::new(neurons, sparse.inputs(), active, fan_in, indices, values)?;
        }
    }
    Ok(())
}
