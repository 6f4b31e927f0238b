//! Random initial masks and sparse-aware initial weights.

use crate::random::{Purpose, Stream};
use crate::{ConstantFanInMask, Error, LayerSpec, Mask};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// `A = ⌊N·M·(1−S)⌋`, the number of weights a layer of `positions` = N·M may have.
pub fn target_weights(positions: usize, sparsity: f64) -> usize {
    (positions as f64 * (1.0 - sparsity)).floor() as usize
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
    let target = target_weights(n * m, sparsity);
    let fan_in = target / n;
    if fan_in == 0 {
        return Err(Error::FanInZero { layer: layer.name.clone(), sparsity, target, active: n });
    }
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
    pub const NAMES: [(&'static str, &'static str, Self); 4] = [
        ("keep", "The weights of the file", Self::Keep),
        (
            "kaiming-normal",
            "Normal, standard deviation √(2/k) for k active weights of the neuron",
            Self::KaimingNormal,
        ),
        ("kaiming-uniform", "Uniform in ±√(6/k)", Self::KaimingUniform),
        ("torch-default", "Uniform in ±√(1/k)", Self::TorchDefault),
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
