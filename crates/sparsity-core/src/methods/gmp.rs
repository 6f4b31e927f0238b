//! Gradual magnitude pruning (Zhu & Gupta 2017, arXiv 1710.01878): from dense to sparse while training.

use super::unstructured::drop_smallest;
use super::{AnyMethod, Method, MethodInfo, Updates, Variant};
use crate::init::target_weights;
use crate::topology::Layer;
use crate::{Error, LayerSpec, Mask, Stream};

/// Starts dense; at each update the smallest weights go until the layer has the sparsity of the moment,
/// `S·(1 − (1 − t/t₁)³)` with `t₁` the last update's step. What has gone does not come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gmp;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Gradual magnitude pruning: from dense to sparse while training",
    updates: Updates::Scheduled,
    variants: &[Variant { name: "gmp", label: "GMP", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Gmp)),
    ..MethodInfo::new("gmp")
};

impl Method for Gmp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    /// All weights.
    fn initial_mask(&self, layer: &LayerSpec, _sparsity: f64, _stream: Stream) -> Result<Mask, Error> {
        Ok(Mask::full(layer.neurons(), layer.dense_fan_in()))
    }

    /// All weights, too.
    fn magnitude_mask(&self, layer: &LayerSpec, _weights: &[f32], _sparsity: f64) -> Result<Mask, Error> {
        Ok(Mask::full(layer.neurons(), layer.dense_fan_in()))
    }

    /// `S·(1 − (1 − progress)³)`.
    fn sparsity_at(&self, sparsity: f64, progress: f64) -> f64 {
        sparsity * (1.0 - (1.0 - progress).powi(3))
    }

    /// Keeps the top `A` active weights by |W|.
    fn update(&self, layer: &Layer, _alpha: f64, _stream: Stream) -> Result<Mask, Error> {
        let target = target_weights(layer.mask.positions(), layer.sparsity);
        if target == 0 {
            let active = layer.mask.active_neurons();
            return Err(Error::FanInZero {
                layer: layer.name.into(),
                sparsity: layer.sparsity,
                target,
                active,
            });
        }
        let surplus = layer.mask.nnz().saturating_sub(target);
        Ok(layer.active(false, |layer, _| drop_smallest(layer, surplus)))
    }
}
