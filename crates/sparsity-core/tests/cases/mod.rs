//! Random layers for property tests.

use proptest::prelude::*;
use sparsity_core::methods::{Srigl, ThresholdBase};
use sparsity_core::{Error, Layer, Mask, Method, Stream, update_layer};
use std::collections::BTreeSet;

pub const STREAM: Stream = Stream { seed: 7, layer: 0, step: 100 };

/// One random layer, large enough for rows of several words, small enough for thousands of cases.
#[derive(Clone, Debug)]
pub struct Case {
    pub neurons: usize,
    pub m: usize,
    pub weights: Vec<f32>,
    pub grads: Vec<f32>,
    pub active: Vec<u8>,
    pub sparsity: f64,
    pub alpha: f64,
    pub settings: Srigl,
    pub ablate: bool,
}

impl Case {
    pub fn mask(&self) -> Mask {
        Mask::from_bytes(self.neurons, self.m, &self.active).unwrap()
    }

    pub fn layer<'a>(&'a self, mask: &'a Mask) -> Layer<'a> {
        let (weights, grads) = (&self.weights, &self.grads);
        Layer { name: "fc", weights, grads, mask, sparsity: self.sparsity, ablate: self.ablate }
    }

    pub fn update(&self, method: &dyn Method) -> Result<Mask, Error> {
        let mask = self.mask();
        update_layer(method, self.alpha, &self.layer(&mask), STREAM).map(|update| update.mask)
    }

    /// `A = ⌊N·M·(1−S)⌋`.
    pub fn target(&self) -> usize {
        ((self.neurons * self.m) as f64 * (1.0 - self.sparsity)).floor() as usize
    }

    /// `n`, the number of active weights, and `K = ⌊n·α⌋`, the number to drop.
    pub fn active_and_dropped(&self) -> (usize, usize) {
        let n = self.active.iter().filter(|a| **a == 1).count();
        (n, (n as f64 * self.alpha).floor() as usize)
    }
}

/// Values of one layer: many ties (also between signs), few ties, or mostly zeros of both signs.
fn values(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let ties = (-3i8..=3).prop_map(f32::from);
    let spread = (-1e3f32..1e3).prop_map(|x| x * x * x);
    let zeros = prop_oneof![6 => Just(0.0f32), 2 => Just(-0.0f32), 1 => -1.0f32..1.0];
    let vec = move |value: BoxedStrategy<f32>| proptest::collection::vec(value, count);
    prop_oneof![vec(ties.boxed()), vec(spread.boxed()), vec(zeros.boxed())]
}

/// Which weights are active: any share of them, and sometimes whole neurons ablated.
fn active(neurons: usize, m: usize) -> impl Strategy<Value = Vec<u8>> {
    let dead = proptest::collection::vec(prop::bool::weighted(0.2), neurons);
    let active =
        (0.0..=1.0).prop_flat_map(move |p| proptest::collection::vec(prop::bool::weighted(p), neurons * m));
    (dead, active).prop_map(move |(dead, active)| {
        active.iter().enumerate().map(|(i, a)| u8::from(*a && !dead[i / m])).collect()
    })
}

fn settings() -> impl Strategy<Value = Srigl> {
    let gamma_sal = prop_oneof![
        1 => Just(0.0),
        5 => 0.0..1.0,
        2 => (1u8..20).prop_map(f64::from),
    ];
    let base = prop_oneof![Just(ThresholdBase::SparseFanIn), Just(ThresholdBase::DenseFanIn)];
    (gamma_sal, base).prop_map(|(gamma_sal, threshold_base)| Srigl { gamma_sal, threshold_base })
}

pub fn cases() -> impl Strategy<Value = Case> {
    let alpha = prop_oneof![1 => Just(0.0), 1 => Just(1.0), 6 => 0.0..1.0];
    let shape = (1usize..12, prop_oneof![1usize..20, 60usize..140]);
    (shape, 0.01..0.99, alpha, settings(), any::<bool>()).prop_flat_map(
        |((neurons, m), sparsity, alpha, settings, ablate)| {
            let count = neurons * m;
            (values(count), values(count), active(neurons, m)).prop_map(move |(weights, grads, active)| {
                Case { neurons, m, weights, grads, active, sparsity, alpha, settings, ablate }
            })
        },
    )
}

/// The first `n` of `positions` (ascending) by |value|; `sort_by` is stable, so ties stay in flat order.
pub fn top(values: &[f32], positions: impl IntoIterator<Item = usize>, n: usize) -> BTreeSet<usize> {
    let mut order: Vec<usize> = positions.into_iter().collect();
    order.sort_by(|&a, &b| values[b].abs().partial_cmp(&values[a].abs()).unwrap());
    order.into_iter().take(n).collect()
}

/// What RigL and SET keep: the top `n − K` active weights.
pub fn kept(case: &Case) -> BTreeSet<usize> {
    let (n, drop) = case.active_and_dropped();
    let active = (0..case.active.len()).filter(|&p| case.active[p] == 1);
    top(&case.weights, active, n - drop)
}
