//! A method of which groups of neurons share their inputs.
//!
//! A group is one neuron to the method, whose |W| and |G| are the sums of its neurons': saliency, ablation and growth are the method's
//! own. A last group of fewer neurons counts as much as the others: its sums are scaled.

use super::{AnyMethod, GROUP, Method, MethodInfo, Settings};
use crate::topology::{ActiveLayer, DenseGradient, Members};
use crate::{Error, LayerSpec, Mask, NmPattern, Stream, mask, target_weights};
use rayon::prelude::*;
use std::ops::Range;

/// So many neurons at a time read the same inputs; the last ones may be fewer.
#[derive(Debug)]
pub(super) struct GroupShared {
    pub method: AnyMethod,
    pub group: usize,
}

impl GroupShared {
    /// The layer `[⌈N/G⌉, M]` of groups.
    fn reduced(&self, layer: &LayerSpec) -> LayerSpec {
        let mut reduced = layer.clone();
        reduced.dims[0] = layer.neurons().div_ceil(self.group);
        reduced
    }

    /// The neurons of a group.
    fn members(&self, group: usize, neurons: usize) -> Range<usize> {
        group * self.group..neurons.min((group + 1) * self.group)
    }

    /// The mask `[N, M]` whose neurons have their groups' inputs.
    fn expanded(&self, groups: &Mask, neurons: usize) -> Mask {
        let mut mask = Mask::empty(neurons, groups.dense_fan_in());
        let (words, width) = mask.rows_mut();
        let rows = words.par_chunks_mut(width).enumerate();
        rows.for_each(|(neuron, row)| row.copy_from_slice(groups.row(neuron / self.group)));
        mask
    }

    /// What a group of so many neurons counts.
    fn scale(&self, members: usize) -> f32 {
        self.group as f32 / members as f32
    }

    /// Sums of magnitudes of rows `[neurons, M]`, group by group, into `[groups, M]`; all groups but the last are whole.
    fn add_up(&self, rows: &[f32], inputs: usize, sums: &mut [f32]) {
        let groups = rows.par_chunks(self.group * inputs);
        sums.par_chunks_mut(inputs).zip(groups).for_each(|(sums, rows)| {
            sums.fill(0.0);
            for row in rows.chunks_exact(inputs) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.abs());
            }
            let scale = self.scale(rows.len() / inputs);
            if scale != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= scale);
            }
        });
    }

    /// The inputs that any neuron of each group has, with the sums of their |W|.
    fn active_sums(&self, layer: &ActiveLayer) -> (Mask, Vec<f32>) {
        let [neurons, inputs] = layer.mask.shape();
        let starts = layer.rows();
        let sums = (0..neurons.div_ceil(self.group)).into_par_iter().map(|group| {
            let mut row = vec![0; inputs.div_ceil(64)];
            let mut sums = vec![0.0f32; inputs];
            for neuron in self.members(group, neurons) {
                row.iter_mut().zip(layer.mask.row(neuron)).for_each(|(row, word)| *row |= word);
                let values = &layer.values[starts[neuron]..starts[neuron + 1]];
                layer.mask.inputs(neuron).zip(values).for_each(|(input, value)| sums[input] += value.abs());
            }
            let scale = self.scale(self.members(group, neurons).len());
            let values: Vec<f32> = mask::set_bits(&row).map(|input| sums[input] * scale).collect();
            (row, values)
        });
        let (rows, values): (Vec<Vec<u64>>, Vec<Vec<f32>>) = sums.collect();
        let mut mask = Mask::empty(rows.len(), inputs);
        let (words, width) = mask.rows_mut();
        words.chunks_mut(width).zip(&rows).for_each(|(words, row)| words.copy_from_slice(row));
        (mask, values.concat())
    }
}

/// An error that counts neurons, not groups.
fn of_neurons(error: Error, layer: &LayerSpec) -> Error {
    match error {
        Error::FanInZero { layer: name, sparsity, .. } => {
            let (target, active) = (target_weights(layer.weights(), sparsity), layer.neurons());
            Error::FanInZero { layer: name, sparsity, target, active }
        }
        other => other,
    }
}

impl Method for GroupShared {
    fn info(&self) -> &'static MethodInfo {
        self.method.info()
    }

    fn settings(&self) -> Settings {
        let mut settings = self.method.settings();
        settings.0.insert(GROUP.into(), (self.group as f64).into());
        settings
    }

    fn check(&self) -> Result<(), Error> {
        self.method.check()
    }

    fn nm(&self) -> Option<NmPattern> {
        self.method.nm()
    }

    fn group(&self) -> usize {
        self.group
    }

    fn initial_mask(&self, layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
        let groups = self.method.initial_mask(&self.reduced(layer), sparsity, stream);
        let groups = groups.map_err(|error| of_neurons(error, layer))?;
        Ok(self.expanded(&groups, layer.neurons()))
    }

    fn magnitude_mask(&self, layer: &LayerSpec, weights: &[f32], sparsity: f64) -> Result<Mask, Error> {
        let (reduced, inputs) = (self.reduced(layer), layer.dense_fan_in());
        let mut sums = vec![0.0; reduced.weights()];
        self.add_up(weights, inputs, &mut sums);
        let groups = self.method.magnitude_mask(&reduced, &sums, sparsity);
        let groups = groups.map_err(|error| of_neurons(error, layer))?;
        Ok(self.expanded(&groups, layer.neurons()))
    }

    fn update_active(
        &self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let [neurons, inputs] = layer.mask.shape();
        let (mask, values) = self.active_sums(layer);
        let last = self.members(neurons.div_ceil(self.group) - 1, neurons).len();
        let members = Members { each: self.group, last };
        let groups = ActiveLayer { values: &values, mask: &mask, members, ..*layer };
        let updated = match gradient {
            DenseGradient::All(all) => {
                let mut sums = vec![0.0; mask.positions()];
                self.add_up(all, inputs, &mut sums);
                self.method.update_active(&groups, DenseGradient::All(&sums), alpha, stream)?
            }
            DenseGradient::Rows(write) => {
                let mut rows = Vec::new();
                let mut sums = |groups: &[usize], to: &mut [f32]| {
                    let members: Vec<usize> =
                        groups.iter().flat_map(|group| self.members(*group, neurons)).collect();
                    rows.resize(members.len() * inputs, 0.0);
                    write(&members, &mut rows);
                    self.add_up(&rows, inputs, to);
                };
                self.method.update_active(&groups, DenseGradient::Rows(&mut sums), alpha, stream)?
            }
        };
        Some(updated.map(|groups| self.expanded(&groups, neurons)).map_err(|error| match error {
            // The first neuron of the group.
            Error::NotFinite { layer, what, value, neuron, input } => {
                Error::NotFinite { layer, what, value, neuron: neuron * self.group, input }
            }
            other => other,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{Rigl, Srigl};

    #[test]
    fn a_smaller_last_group_counts_as_if_it_was_whole() {
        let groups = GroupShared { method: Rigl.into(), group: 2 };
        let mut sums = [f32::NAN; 4];
        groups.add_up(&[1.0, -2.0, -3.0, 4.0, -5.0, 6.0], 2, &mut sums);
        assert_eq!(sums, [4.0, 6.0, 10.0, 12.0]);
    }

    #[test]
    fn what_is_wrong_in_a_gradient_is_of_the_first_neuron_of_its_group() {
        let mask = Mask::from_bytes(8, 2, &[1, 0].repeat(8)).unwrap();
        let layer = ActiveLayer {
            name: "fc",
            values: &[1.0; 8],
            mask: &mask,
            sparsity: 0.5,
            ablate: false,
            grads: &[],
            members: Members::default(),
        };
        let groups = GroupShared { method: Srigl::default().into(), group: 2 };
        let update = |nan: Option<usize>| {
            let mut write = |neurons: &[usize], rows: &mut [f32]| {
                for (neuron, row) in neurons.iter().zip(rows.chunks_mut(2)) {
                    row.fill(if Some(*neuron) == nan { f32::NAN } else { 1.0 });
                }
            };
            let stream = Stream { seed: 1, layer: 0, step: 0 };
            groups.update_active(&layer, DenseGradient::Rows(&mut write), 0.5, stream).unwrap()
        };
        assert!(update(None).is_ok());
        for nan in [6, 7] {
            let error = update(Some(nan)).unwrap_err();
            assert!(matches!(error, Error::NotFinite { neuron: 6, input: 0, .. }), "{error}");
        }
    }
}
