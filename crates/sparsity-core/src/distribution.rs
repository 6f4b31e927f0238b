//! Layer sparsities from one global sparsity: uniform, ER, ERK.

use crate::Error;
use serde::{Deserialize, Serialize};

/// Name and weight shape of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// The layer's name, used in errors and logs.
    pub name: String,
    /// `[out, in]` or `[out, in, kh, kw]`, in the order of PyTorch.
    pub dims: Vec<usize>,
    /// Kept dense whatever the global sparsity.
    pub keep_dense: bool,
}

impl LayerSpec {
    /// A layer that may be sparse. `dims` is `[out, in, …]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer than two dimensions or an empty one, [`Error::TooLarge`] from 2³² weights on.
    pub fn new(name: impl Into<String>, dims: impl Into<Vec<usize>>) -> Result<Self, Error> {
        let (layer, dims) = (name.into(), dims.into());
        if dims.len() < 2 || dims.contains(&0) {
            return Err(Error::Shape { layer, dims });
        }
        let positions = dims.iter().try_fold(1usize, |product, d| product.checked_mul(*d));
        match positions {
            Some(positions) if positions < u32::MAX as usize => {
                Ok(Self { name: layer, dims, keep_dense: false })
            }
            _ => Err(Error::TooLarge { layer, positions: positions.unwrap_or(usize::MAX) }),
        }
    }

    /// The same layer, kept dense.
    pub fn dense(mut self) -> Self {
        self.keep_dense = true;
        self
    }

    /// Number of neurons `N`.
    pub fn neurons(&self) -> usize {
        self.dims[0]
    }

    /// Dense fan-in `M = in·kh·kw`.
    pub fn dense_fan_in(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Number of weights `N·M`.
    pub fn weights(&self) -> usize {
        self.dims.iter().product()
    }
}

/// How a global sparsity is shared among layers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// The same sparsity for every sparse layer.
    Uniform,
    /// Erdős–Rényi: density ∝ `(in + out) / (in · out)` (Mocanu et al. 2018).
    Er,
    /// Erdős–Rényi kernel: density ∝ `(Σ dims / Π dims) ^ power` (RigL, Evci et al. 2020).
    Erk {
        /// 1 in the paper.
        power: f64,
    },
}

impl Distribution {
    /// All by the names of command lines and files, each with what it does.
    pub const NAMES: [(&'static str, &'static str, Self); 3] = [
        ("erk", "Erdős–Rényi kernel: small layers stay denser", Self::Erk { power: 1.0 }),
        ("er", "Erdős–Rényi over input and output channels, whatever the kernel size", Self::Er),
        ("uniform", "The same sparsity everywhere", Self::Uniform),
    ];
}

impl Default for Distribution {
    fn default() -> Self {
        Self::Erk { power: 1.0 }
    }
}

/// The sparsity of every layer, in order, such that all layers together have the global `sparsity`.
///
/// Layers with `keep_dense` get 0, and the others make up for them, whatever the distribution.
///
/// # Errors
/// [`Error::Sparsity`] outside `[0, 1)`; [`Error::TooManyDense`] if the other layers cannot make up for the dense ones;
/// [`Error::Setting`] for an ERK power that is not finite; [`Error::NoWeights`] if it or the sparsity leaves a layer none.
pub fn layer_sparsities(
    layers: &[LayerSpec],
    sparsity: f64,
    distribution: Distribution,
) -> Result<Vec<f64>, Error> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::Sparsity(sparsity));
    }
    if sparsity > 0.0 && !layers.is_empty() && layers.iter().all(|l| l.keep_dense) {
        let total = layers.iter().map(LayerSpec::weights).sum();
        return Err(Error::TooManyDense { sparsity, dense: total, total });
    }
    match distribution {
        Distribution::Uniform => uniform(layers, sparsity),
        Distribution::Er => {
            let score = |l: &LayerSpec| (l.dims[0] + l.dims[1]) as f64 / (l.dims[0] * l.dims[1]) as f64;
            erdos_renyi(layers, sparsity, &layers.iter().map(score).collect::<Vec<_>>())
        }
        Distribution::Erk { power } if !power.is_finite() => {
            Err(Error::Setting { name: "ERK power", value: power, allowed: "finite" })
        }
        Distribution::Erk { power } => {
            let score =
                |l: &LayerSpec| (l.dims.iter().sum::<usize>() as f64 / l.weights() as f64).powf(power);
            erdos_renyi(layers, sparsity, &layers.iter().map(score).collect::<Vec<_>>())
        }
    }
}

/// The same sparsity everywhere, raised for the layers kept dense.
fn uniform(layers: &[LayerSpec], sparsity: f64) -> Result<Vec<f64>, Error> {
    let total: usize = layers.iter().map(LayerSpec::weights).sum();
    let sparse: usize = layers.iter().filter(|l| !l.keep_dense).map(LayerSpec::weights).sum();
    // With nothing kept dense `raised` may differ from the plain value in the last bit, and the floors would move.
    let raised = if sparse == total { sparsity } else { sparsity * total as f64 / sparse as f64 };
    if raised >= 1.0 {
        return Err(Error::TooManyDense { sparsity, dense: total - sparse, total });
    }
    Ok(layers.iter().map(|l| if l.keep_dense { 0.0 } else { raised }).collect())
}

/// Density `ε·score`, with `ε` solving for the global count; layers that would exceed density 1 become
/// dense one at a time, largest score first.
fn erdos_renyi(layers: &[LayerSpec], sparsity: f64, scores: &[f64]) -> Result<Vec<f64>, Error> {
    let without_weights = |layer: usize| Error::NoWeights { layer: layers[layer].name.clone() };
    let total: usize = layers.iter().map(LayerSpec::weights).sum();
    let mut dense: Vec<bool> = layers.iter().map(|l| l.keep_dense || sparsity == 0.0).collect();
    loop {
        let sparse: Vec<usize> = (0..layers.len()).filter(|&i| !dense[i]).collect();
        // Lowest index first among equals: `max_by` would take the last.
        let Some(&largest) = sparse.iter().rev().max_by(|&&a, &&b| scores[a].total_cmp(&scores[b])) else {
            return Ok(vec![0.0; layers.len()]);
        };
        let dense_weights: usize = (0..layers.len()).filter(|&i| dense[i]).map(|i| layers[i].weights()).sum();
        let budget = total as f64 * (1.0 - sparsity) - dense_weights as f64;
        if budget <= 0.0 {
            return Err(Error::TooManyDense { sparsity, dense: dense_weights, total });
        }
        let epsilon = budget / sparse.iter().map(|&i| scores[i] * layers[i].weights() as f64).sum::<f64>();
        let density = epsilon * scores[largest];
        if !density.is_finite() {
            // Scores that underflow, or overflow.
            return Err(without_weights(largest));
        }
        if density > 1.0 {
            dense[largest] = true;
            continue;
        }
        let sparsity_of = |i: usize| match dense[i] {
            true => Ok(0.0),
            false => Some(1.0 - epsilon * scores[i]).filter(|s| *s < 1.0).ok_or_else(|| without_weights(i)),
        };
        return (0..layers.len()).map(sparsity_of).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mlp() -> Vec<LayerSpec> {
        [("fc1", [300, 784]), ("fc2", [100, 300]), ("fc3", [10, 100])]
            .map(|(name, dims)| LayerSpec::new(name, dims).unwrap())
            .to_vec()
    }

    fn global(layers: &[LayerSpec], sparsities: &[f64]) -> f64 {
        let zeros: f64 = layers.iter().zip(sparsities).map(|(l, s)| l.weights() as f64 * s).sum();
        zeros / layers.iter().map(LayerSpec::weights).sum::<usize>() as f64
    }

    #[test]
    fn a_layer_keeps_weights_or_is_named() {
        let refused = |power, sparsity| match layer_sparsities(&mlp(), sparsity, Distribution::Erk { power })
        {
            Err(Error::NoWeights { layer }) => layer,
            other => panic!("{power}, {sparsity}: {other:?}"),
        };
        assert_eq!(refused(50.0, 0.9), "fc1");
        // The scores themselves underflow, or overflow.
        assert!(
            [1e4, -1e4, 1e300, -1e300]
                .map(|power| refused(power, 0.9))
                .iter()
                .all(|layer| layer.starts_with("fc"))
        );
        let infinite = layer_sparsities(&mlp(), 0.9, Distribution::Erk { power: f64::INFINITY });
        assert!(matches!(infinite, Err(Error::Setting { name: "ERK power", .. })));
    }

    #[test]
    fn erk_and_er_keep_the_global_sparsity_and_agree_on_linear_layers() {
        for sparsity in [0.5, 0.8, 0.9, 0.99] {
            let erk = layer_sparsities(&mlp(), sparsity, Distribution::default()).unwrap();
            assert!((global(&mlp(), &erk) - sparsity).abs() < 1e-12);
            assert_eq!(erk, layer_sparsities(&mlp(), sparsity, Distribution::Er).unwrap());
        }
    }

    #[test]
    fn erk_by_hand() {
        // Scores 5/6 and 7/12; weights 6 and 12; each layer's weight × score is Σ dims: 5 and 7.
        let layers = [LayerSpec::new("a", [2, 3]).unwrap(), LayerSpec::new("b", [3, 4]).unwrap()];
        let s = layer_sparsities(&layers, 0.5, Distribution::default()).unwrap();
        assert!((s[0] - (1.0 - 9.0 / 12.0 * 5.0 / 6.0)).abs() < 1e-12);
        assert!((s[1] - (1.0 - 9.0 / 12.0 * 7.0 / 12.0)).abs() < 1e-12);
    }

    #[test]
    fn every_distribution_makes_up_for_dense_layers_or_says_that_it_cannot() {
        for distribution in Distribution::NAMES.map(|(.., distribution)| distribution) {
            let mut layers = mlp();
            let refused = |layers: &[LayerSpec]| {
                let result = layer_sparsities(layers, 0.9, distribution);
                assert!(matches!(result, Err(Error::TooManyDense { .. })), "{result:?}");
            };
            layers[2].keep_dense = true;
            let s = layer_sparsities(&layers, 0.9, distribution).unwrap();
            assert!((global(&layers, &s) - 0.9).abs() < 1e-12);
            assert_eq!((s[2], s[0] > 0.9), (0.0, true));
            layers[0].keep_dense = true;
            refused(&layers);
            layers[1].keep_dense = true;
            refused(&layers);
        }
    }

    #[test]
    fn erk_makes_a_layer_dense_that_would_have_more_weights_than_it_can() {
        // ε·(1 + 1)/(1·1) = 2ε is above 1 for any ε of the 50 weights; the other layer makes up for it.
        let layers = [LayerSpec::new("a", [1, 1]).unwrap(), LayerSpec::new("b", [9, 11]).unwrap()];
        let s = layer_sparsities(&layers, 0.5, Distribution::default()).unwrap();
        assert_eq!(s[0], 0.0);
        assert!((s[1] - 50.0 / 99.0).abs() < 1e-12);
    }

    #[test]
    fn uniform_gives_up_where_nothing_would_be_left_of_the_others() {
        // Half of the weights are dense, so the other half would be all zeros.
        let [a, b] = ["a", "b"].map(|name| LayerSpec::new(name, [4, 4]).unwrap());
        let refused = layer_sparsities(&[a.dense(), b], 0.5, Distribution::Uniform);
        assert_eq!(refused, Err(Error::TooManyDense { sparsity: 0.5, dense: 16, total: 32 }));
    }

    #[test]
    fn without_sparsity_all_layers_may_be_kept_dense() {
        let layers = mlp().into_iter().map(LayerSpec::dense).collect::<Vec<_>>();
        for (_, _, distribution) in Distribution::NAMES {
            assert_eq!(layer_sparsities(&layers, 0.0, distribution).unwrap(), [0.0; 3]);
        }
    }

    #[test]
    fn uniform_without_dense_layers_is_the_global_sparsity_to_the_last_bit() {
        let layers = [LayerSpec::new("a", [64, 784]).unwrap(), LayerSpec::new("b", [100, 300]).unwrap()];
        assert_eq!(layer_sparsities(&layers, 0.99, Distribution::Uniform).unwrap(), [0.99; 2]);
    }

    #[test]
    fn bad_input_is_refused() {
        for sparsity in [-0.1, 1.0, f64::NAN] {
            assert!(matches!(layer_sparsities(&mlp(), sparsity, Distribution::Er), Err(Error::Sparsity(_))));
        }
        // Scores of 1 would hide it: 1 to any power is 1.
        let square = [LayerSpec::new("a", [2, 2]).unwrap()];
        for power in [f64::NAN, f64::INFINITY] {
            let erk = layer_sparsities(&square, 0.5, Distribution::Erk { power });
            assert!(matches!(erk, Err(Error::Setting { allowed: "finite", .. })), "{power}: {erk:?}");
        }
        assert!(LayerSpec::new("x", [3]).is_err());
        assert!(LayerSpec::new("x", [3, 0]).is_err());
        assert!(matches!(LayerSpec::new("x", [usize::MAX, 2]), Err(Error::TooLarge { .. })));
        assert_eq!(layer_sparsities(&mlp(), 0.0, Distribution::default()).unwrap(), [0.0; 3]);
    }
}
