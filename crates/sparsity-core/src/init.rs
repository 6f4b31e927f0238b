//! Initial masks, at random or by the magnitude of given weights, and sparse-aware initial weights.

use crate::random::{Purpose, Stream};
use crate::select::{RowScratch, largest_of_row, magnitude, mark_largest};
use crate::topology::check_values;
use crate::{ConstantFanInMask, Error, LayerSpec, Mask, mask};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// `A = ⌊N·M·(1−S)⌋`, the number of weights a layer of `positions` = N·M may have.
pub fn target_weights(positions: usize, sparsity: f64) -> usize {
    (positions as f64 * (1.0 - sparsity)).floor() as usize
}

/// A sparsity `S` for which [`target_weights`] is `count` of `positions`.
///
/// ```
/// use sparsity_core::{sparsity_of_count, target_weights};
///
/// assert_eq!(target_weights(30_000, sparsity_of_count(30_000, 2_347)), 2_347);
/// ```
pub fn sparsity_of_count(positions: usize, count: usize) -> f64 {
    let mut sparsity = 1.0 - count as f64 / positions as f64;
    // The quotient may be rounded, and the product's floor then lies one below.
    while target_weights(positions, sparsity) < count {
        sparsity = sparsity.next_down();
    }
    sparsity
}

/// Where the initial mask of a layer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialMask {
    /// Drawn at random.
    #[default]
    Random,
    /// The largest |W| of given weights, layer by layer.
    Magnitude,
    /// The largest |W| over all layers together, which also shares the sparsity among them.
    GlobalMagnitude,
    /// The largest |W · ∂L/∂W| over all layers together on one batch (SNIP, Lee et al. 2019).
    Sensitivity,
}

impl InitialMask {
    /// Whether it shares the sparsity among the layers itself.
    pub fn is_global(self) -> bool {
        matches!(self, Self::GlobalMagnitude | Self::Sensitivity)
    }
}

/// The mask of the `A` largest |W| of a layer with `weights` `[N · M]`.
///
/// # Errors
/// [`Error::FanInZero`] if `A = 0`, [`Error::Sparsity`] outside `[0, 1)`, [`Error::Length`] and [`Error::NotFinite`] for
/// weights that do not fit or have diverged.
pub fn magnitude_mask(layer: &LayerSpec, weights: &[f32], sparsity: f64) -> Result<Mask, Error> {
    check_sparsity(sparsity)?;
    let (n, m) = (layer.neurons(), layer.dense_fan_in());
    check_values(&layer.name, [n, m], "weight", weights)?;
    let target = target_weights(n * m, sparsity);
    if target == 0 {
        return Err(Error::FanInZero { layer: layer.name.clone(), sparsity, target, active: n });
    }
    let mut mask = Mask::empty(n, m);
    mark_largest(weights, target, &mut mask);
    Ok(mask)
}

/// The mask of the `k0 = ⌊A/N⌋` largest |W| of each neuron of a layer with `weights` `[N · M]`.
///
/// # Errors
/// [`Error::FanInZero`] if `k0 = 0`; otherwise as [`magnitude_mask`].
pub fn constant_fan_in_magnitude_mask(
    layer: &LayerSpec,
    weights: &[f32],
    sparsity: f64,
) -> Result<ConstantFanInMask, Error> {
    check_sparsity(sparsity)?;
    let (n, m) = (layer.neurons(), layer.dense_fan_in());
    check_values(&layer.name, [n, m], "weight", weights)?;
    let fan_in = initial_fan_in(layer, sparsity)?;
    let mut mask = Mask::empty(n, m);
    let (words, width) = mask.rows_mut();
    words.par_chunks_mut(width).enumerate().for_each_init(RowScratch::default, |scratch, (neuron, row)| {
        let keys = largest_of_row(&weights[neuron * m..][..m], 0, fan_in, &[], scratch);
        keys.iter().for_each(|key| mask::set_bit(row, key.position()));
    });
    ConstantFanInMask::try_from(mask)
}

/// The sparsities of all layers that keep the largest |W| over all of them: `weights` are those of each layer,
/// `[N · M]`, which are not read where a layer is kept dense. Layers with `keep_dense` get 0, and the others make up for them. Among equal magnitudes the earlier
/// layer and the lower index come first.
///
/// # Errors
/// [`Error::Sparsity`] outside `[0, 1)`, [`Error::TooManyDense`] if the other layers cannot make up for the dense
/// ones, and [`Error::NoneOfLargest`] for a layer that would be left without weights.
pub fn global_magnitude_sparsities(
    layers: &[LayerSpec],
    weights: &[Vec<f32>],
    sparsity: f64,
) -> Result<Vec<f64>, Error> {
    check_sparsity(sparsity)?;
    for (layer, values) in layers.iter().zip(weights).filter(|(layer, _)| !layer.keep_dense) {
        check_values(&layer.name, [layer.neurons(), layer.dense_fan_in()], "weight", values)?;
    }
    let total: usize = layers.iter().map(LayerSpec::weights).sum();
    let dense: usize = layers.iter().filter(|layer| layer.keep_dense).map(LayerSpec::weights).sum();
    let target = target_weights(total, sparsity).saturating_sub(dense);
    let chosen = || layers.iter().zip(weights).filter(|(layer, _)| !layer.keep_dense);
    let mut all: Vec<u32> = chosen().flat_map(|(_, values)| values.iter().copied().map(magnitude)).collect();
    if target == 0 || target > all.len() {
        return Err(Error::TooManyDense { sparsity, dense, total });
    }
    let (larger, &mut boundary, _) = all.select_nth_unstable_by(target - 1, |a, b| b.cmp(a));
    let mut ties = target - larger.iter().filter(|value| **value > boundary).count();
    let sparsity_of = |(layer, values): (&LayerSpec, &Vec<f32>)| {
        if layer.keep_dense {
            return Ok(0.0);
        }
        let equal = values.iter().filter(|value| magnitude(**value) == boundary).count().min(ties);
        ties -= equal;
        let count = equal + values.iter().filter(|value| magnitude(**value) > boundary).count();
        if count == 0 {
            return Err(Error::NoneOfLargest { layer: layer.name.clone(), target });
        }
        Ok(sparsity_of_count(layer.weights(), count))
    };
    layers.iter().zip(weights).map(sparsity_of).collect()
}

/// `k0 = ⌊A/N⌋`.
fn initial_fan_in(layer: &LayerSpec, sparsity: f64) -> Result<usize, Error> {
    let target = target_weights(layer.weights(), sparsity);
    match target / layer.neurons() {
        0 => {
            let (layer, active) = (layer.name.clone(), layer.neurons());
            Err(Error::FanInZero { layer, sparsity, target, active })
        }
        fan_in => Ok(fan_in),
    }
}

/// SRigL's initial mask: each neuron draws `k0 = ⌊A/N⌋` inputs uniformly without replacement.
///
/// # Errors
/// [`Error::FanInZero`] if `k0 = 0`, [`Error::Sparsity`] outside `[0, 1)`.
pub fn constant_fan_in_mask(
    layer: &LayerSpec,
    sparsity: f64,
    stream: Stream,
) -> Result<ConstantFanInMask, Error> {
    check_sparsity(sparsity)?;
    let (n, m) = (layer.neurons(), layer.dense_fan_in());
    let fan_in = initial_fan_in(layer, sparsity)?;
    let mut mask = Mask::empty(n, m);
    let (words, width) = mask.rows_mut();
    words.par_chunks_mut(width).enumerate().for_each(|(neuron, row)| {
        let mut rng = stream.rng(Purpose::Mask, neuron);
        for input in rand::seq::index::sample(&mut rng, m, fan_in) {
            row[input / 64] |= 1 << (input % 64);
        }
    });
    ConstantFanInMask::try_from(mask)
}

/// The initial mask of RigL, SET and static training: `A` positions uniformly over the layer.
///
/// # Errors
/// [`Error::FanInZero`] if `A = 0`, [`Error::Sparsity`] outside `[0, 1)`.
pub fn unstructured_mask(layer: &LayerSpec, sparsity: f64, stream: Stream) -> Result<Mask, Error> {
    check_sparsity(sparsity)?;
    let (n, m) = (layer.neurons(), layer.dense_fan_in());
    let target = target_weights(n * m, sparsity);
    if target == 0 {
        return Err(Error::FanInZero { layer: layer.name.clone(), sparsity, target, active: n });
    }
    let mut mask = Mask::empty(n, m);
    let mut rng = stream.rng(Purpose::Mask, 0);
    for position in rand::seq::index::sample(&mut rng, n * m, target) {
        mask.activate(position / m, position % m);
    }
    Ok(mask)
}

fn check_sparsity(sparsity: f64) -> Result<(), Error> {
    if (0.0..1.0).contains(&sparsity) { Ok(()) } else { Err(Error::Sparsity(sparsity)) }
}

/// Initial weights that know about sparsity: `k` is the neuron's own number of active weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightInit {
    /// Keep the weights the layer has, and zero the inactive ones.
    Keep,
    /// Normal with standard deviation `√(2/k)` (He; the paper's).
    #[default]
    KaimingNormal,
    /// Uniform in `±√(6/k)` (He).
    KaimingUniform,
    /// Uniform in `±√(1/k)`: PyTorch's default for linear layers and convolutions.
    TorchDefault,
    /// Normal with standard deviation `2/k`: what the authors' `grad_flow_init` computes, which passes the
    /// variance as standard deviation.
    GradFlowAsCoded,
}

impl WeightInit {
    /// Those that command lines offer, by name, each with what it does.
    pub const NAMES: [(&'static str, &'static str, Self); 5] = [
        ("keep", "The weights of the file", Self::Keep),
        (
            "kaiming-normal",
            "Normal, standard deviation √(2/k) for k active weights of the neuron",
            Self::KaimingNormal,
        ),
        ("kaiming-uniform", "Uniform in ±√(6/k)", Self::KaimingUniform),
        ("torch-default", "Uniform in ±√(1/k)", Self::TorchDefault),
        (
            "grad-flow-as-coded",
            "Normal, standard deviation 2/k: what the authors' sweeps start from",
            Self::GradFlowAsCoded,
        ),
    ];
}

/// Draws the active weights of a layer anew and sets the others to 0. `weights` is `[N · M]`.
pub fn initialise_weights(weights: &mut [f32], mask: &Mask, init: WeightInit, stream: Stream) {
    assert_eq!(weights.len(), mask.positions());
    if init == WeightInit::Keep {
        return mask.apply(weights);
    }
    weights.par_chunks_mut(mask.dense_fan_in()).enumerate().for_each(|(neuron, row)| {
        let mut rng = stream.rng(Purpose::Weights, neuron);
        let k = mask.fan_in(neuron) as f64;
        row.fill(0.0);
        for input in mask.inputs(neuron) {
            let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
            row[input] = match init {
                WeightInit::Keep => unreachable!("returned above"),
                WeightInit::KaimingNormal => (normal() * (2.0 / k).sqrt()) as f32,
                WeightInit::GradFlowAsCoded => (normal() * 2.0 / k) as f32,
                WeightInit::KaimingUniform => ((rng.random::<f64>() * 2.0 - 1.0) * (6.0 / k).sqrt()) as f32,
                WeightInit::TorchDefault => ((rng.random::<f64>() * 2.0 - 1.0) * (1.0 / k).sqrt()) as f32,
            };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    const STREAM: Stream = Stream { seed: 1, layer: 0, step: 0 };

    #[test]
    fn initial_masks_have_the_right_counts() {
        let layer = LayerSpec::new("fc", [100, 300]).unwrap();
        let srigl = constant_fan_in_mask(&layer, 0.987, STREAM).unwrap();
        assert_eq!((srigl.fan_in(), srigl.mask().nnz()), (3, 300));
        assert_eq!(unstructured_mask(&layer, 0.987, STREAM).unwrap().nnz(), 390);
        assert_eq!(unstructured_mask(&layer, 0.0, STREAM).unwrap().nnz(), 30_000);
    }

    #[test]
    fn a_layer_that_would_be_empty_is_named() {
        let layer = LayerSpec::new("head", [10, 20]).unwrap();
        let error = constant_fan_in_mask(&layer, 0.96, STREAM).unwrap_err().to_string();
        assert!(error.starts_with("layer `head`: fan-in would be 0 at sparsity 0.96"), "{error}");
        assert!(unstructured_mask(&layer, 0.999, STREAM).is_err());
    }

    #[test]
    fn no_mask_has_a_sparsity_outside_the_range() {
        let (layer, weights) = (LayerSpec::new("fc", [2, 3]).unwrap(), vec![1.0; 6]);
        for sparsity in [-0.1, 1.0, f64::NAN] {
            let refused = [
                constant_fan_in_mask(&layer, sparsity, STREAM).err(),
                unstructured_mask(&layer, sparsity, STREAM).err(),
                magnitude_mask(&layer, &weights, sparsity).err(),
                constant_fan_in_magnitude_mask(&layer, &weights, sparsity).err(),
                global_magnitude_sparsities(from_ref(&layer), from_ref(&weights), sparsity).err(),
            ];
            assert!(refused.iter().all(|error| matches!(error, Some(Error::Sparsity(_)))), "{refused:?}");
        }
    }

    #[test]
    fn magnitude_masks_keep_the_largest_weights() {
        let layer = LayerSpec::new("fc", [3, 4]).unwrap();
        let weights = [0.1, -9.0, 8.0, 0.2, 3.0, -2.0, 1.0, 0.0, 0.5, 0.5, -0.5, 0.4];
        let mask = magnitude_mask(&layer, &weights, 0.5).unwrap();
        assert_eq!(mask.to_bytes(), [0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0]);
        // Ties go to the lower index.
        let mask = constant_fan_in_magnitude_mask(&layer, &weights, 0.5).unwrap().into_mask();
        assert_eq!(mask.to_bytes(), [0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0]);
        assert!(constant_fan_in_magnitude_mask(&layer, &weights, 0.8).is_err());
        assert!(magnitude_mask(&layer, &weights, 0.99).is_err());
    }

    #[test]
    fn global_magnitudes_share_the_sparsity() {
        let spec = |name: &str| LayerSpec::new(name, [2, 3]).unwrap();
        let (a, b) = ([5.0, 4.0, 3.0, 2.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]);
        let counts = |layers: &[LayerSpec], weights: &[&[f32]], sparsity| -> Result<Vec<usize>, Error> {
            let weights: Vec<Vec<f32>> = weights.iter().map(|values| values.to_vec()).collect();
            let sparsities = global_magnitude_sparsities(layers, &weights, sparsity)?;
            Ok(sparsities.iter().map(|s| target_weights(6, *s)).collect())
        };
        let layers = [spec("a"), spec("b")];
        assert_eq!(counts(&layers, &[&a, &b], 0.25).unwrap(), [6, 3]);
        // Of the three weights of magnitude 1 the earlier layer's come first, and none is left for the other.
        let empty = counts(&layers, &[&a, &b], 0.5).unwrap_err();
        assert!(matches!(&empty, Error::NoneOfLargest { layer, .. } if layer == "b"), "{empty}");
        // Of three such weights all are there.
        assert_eq!(counts(&layers, &[&a, &b], sparsity_of_count(12, 7)).unwrap(), [6, 1]);
        assert_eq!(counts(&layers, &[&a, &b], 0.0).unwrap(), [6, 6]);
        let layers = [spec("a").dense(), spec("b")];
        assert_eq!(counts(&layers, &[&a, &b], 0.25).unwrap(), [6, 3]);
        assert!(matches!(counts(&layers, &[&a, &b], 0.5), Err(Error::TooManyDense { .. })));
    }

    #[test]
    fn counts_have_their_sparsity() {
        for positions in [6, 49, 1000, 30_000, 2_359_296] {
            for count in (1..=positions).step_by(positions / 50 + 1) {
                assert_eq!(target_weights(positions, sparsity_of_count(positions, count)), count);
            }
        }
    }

    #[test]
    fn streams_are_independent_of_each_other() {
        let layer = LayerSpec::new("fc", [64, 64]).unwrap();
        let mask = |stream| constant_fan_in_mask(&layer, 0.9, stream).unwrap();
        assert_eq!(mask(STREAM), mask(STREAM));
        assert_ne!(mask(STREAM), mask(Stream { seed: 2, ..STREAM }));
        assert_ne!(mask(STREAM), mask(Stream { layer: 1, ..STREAM }));
    }

    #[test]
    fn weights_follow_their_own_fan_in() {
        let layer = LayerSpec::new("fc", [400, 500]).unwrap();
        let mask = constant_fan_in_mask(&layer, 0.9, STREAM).unwrap().into_mask();
        let k = mask.fan_in(0) as f64;
        let expected = [
            (WeightInit::KaimingNormal, (2.0 / k).sqrt()),
            (WeightInit::KaimingUniform, (2.0 / k).sqrt()),
            (WeightInit::TorchDefault, (1.0 / (3.0 * k)).sqrt()),
            (WeightInit::GradFlowAsCoded, 2.0 / k),
        ];
        for (init, std) in expected {
            let mut weights = vec![7.0; 400 * 500];
            initialise_weights(&mut weights, &mask, init, STREAM);
            assert_eq!(weights.iter().filter(|w| **w != 0.0).count(), mask.nnz());
            let square: f64 = weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / mask.nnz() as f64;
            assert!((square.sqrt() / std - 1.0).abs() < 0.02, "{init:?}: {} against {std}", square.sqrt());
        }
        let mut kept = vec![7.0; 400 * 500];
        initialise_weights(&mut kept, &mask, WeightInit::Keep, STREAM);
        assert_eq!(kept.iter().filter(|w| **w == 7.0).count(), mask.nnz());
    }
}
