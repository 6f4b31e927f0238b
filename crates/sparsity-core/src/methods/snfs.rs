//! SNFS, or sparse momentum (Dettmers & Zettlemoyer 2019, arXiv 1907.04840): drop by magnitude, share among layers and grow by
//! momentum.

use super::{AnyMethod, Gradients, LayerShare, Method, MethodInfo, Rigl, Updates, Variant};
use crate::init::target_weights;
use crate::topology::{ActiveLayer, DenseGradient};
use crate::{Error, Mask, Stream};

/// Drop by magnitude, grow where the momentum of dense gradients is largest; layers with more of it get more of the weights that all
/// have dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snfs;

/// The momentum of the optimizer in the authors' experiments.
const BETA: f64 = 0.9;

pub(super) static INFO: MethodInfo = MethodInfo {
    about: "Drop by magnitude, grow by momentum, in the layers that have most",
    updates: Updates::Scheduled,
    gradients: Gradients::Momentum { beta: BETA },
    variants: &[Variant { name: "snfs", label: "SNFS", settings: &[], flag: None }],
    build: Some(|_| AnyMethod::from(Snfs)),
    ..MethodInfo::new("snfs")
};

impl Method for Snfs {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    /// Keeps what RigL keeps, and grows the largest momenta until the layer has `A` weights.
    fn update_active(
        &self,
        layer: &ActiveLayer,
        gradient: DenseGradient,
        alpha: f64,
        stream: Stream,
    ) -> Option<Result<Mask, Error>> {
        let target = target_weights(layer.mask.positions(), layer.sparsity);
        Rigl.keep(layer, alpha).map(|kept| kept.grown(layer, gradient, target, stream))
    }

    /// Of the `Σ K` weights that all layers have dropped, each gets a share in proportion to the mean momentum of its active weights; what
    /// it has no room for goes to the others.
    fn redistribute(&self, layers: &[LayerShare]) -> Option<Vec<usize>> {
        let mut weights: Vec<usize> = layers.iter().map(|layer| layer.kept).collect();
        let mut left: usize = layers.iter().map(|layer| layer.active - layer.kept).sum();
        while left > 0 {
            let room = |i: usize| layers[i].positions - weights[i];
            let open: Vec<usize> = (0..layers.len()).filter(|i| room(*i) > 0).collect();
            let importance = |i: &usize| layers[*i].importance.max(f64::MIN_POSITIVE);
            let total: f64 = open.iter().map(importance).sum();
            let shares: Vec<usize> = open
                .iter()
                .map(|i| ((left as f64 * importance(i) / total).floor() as usize).min(room(*i)))
                .collect();
            let given: usize = shares.iter().sum();
            if given == 0 {
                // Fewer are left than there are layers: one each, to the most important first.
                let mut order = open;
                order.sort_by(|a, b| importance(b).total_cmp(&importance(a)));
                order.iter().take(left).for_each(|i| weights[*i] += 1);
                left = left.saturating_sub(order.len());
                if order.is_empty() {
                    break;
                }
            } else {
                open.iter().zip(shares).for_each(|(i, share)| weights[*i] += share);
                left -= given;
            }
        }
        Some(weights)
    }
}
