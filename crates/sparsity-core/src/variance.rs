//! How much the output norm of a sparse layer varies at initialisation (Proposition 3.1 of SRigL).
//!
//! One layer of width `n` and average fan-in `k`: `z = √(2/k) · (W ∘ I) (ξ ∘ u)`, where
//! - `u`, `[n]`, is uniform on the unit sphere: the input,
//! - `ξ`, `[n]`, is a vector of fair bits: which inputs a ReLU lets through,
//! - `W`, `[n, n]`, is standard normal and `I`, `[n, n]`, is the mask.
//!
//! However the mask is drawn, `E‖z‖² = 1`. The functions below give `Var(‖z‖²)` for three ways of drawing it.
//! Constant fan-in varies least, which is the paper's argument that its structure costs nothing at
//! initialisation. All three agree for a dense layer, `k = n`.
//!
//! `cargo xtask reproduce variance` checks each against a simulation.

/// `Var(‖z‖²)` if each weight is active with probability `k/n`, independently:
/// `V_B = (5n − 8 + 18·n/k) / (n·(n + 2))`.
///
/// `n`: width, at least 1. `k`: average fan-in, in `(0, n]`.
pub fn bernoulli(n: f64, k: f64) -> f64 {
    (5.0 * n - 8.0 + 18.0 * n / k) / (n * (n + 2.0))
}

/// `Var(‖z‖²)` if `n·k` positions of the layer are active, drawn uniformly without replacement:
/// `((n² + 7n − 8)·C + 18·n/k − n² − 2n) / (n·(n + 2))` with `C = (n − 1/k) / (n − 1/n)`.
///
/// `n`: width, at least 2. `k`: average fan-in, in `(0, n]`.
pub fn constant_per_layer(n: f64, k: f64) -> f64 {
    let c = (n - 1.0 / k) / (n - 1.0 / n);
    ((n * n + 7.0 * n - 8.0) * c + 18.0 * n / k - n * n - 2.0 * n) / (n * (n + 2.0))
}

/// `Var(‖z‖²)` if every neuron has exactly `k` active inputs, drawn uniformly without replacement:
/// `V_B − 3·(n − k) / (k·n·(n + 2))` with `V_B` from [`bernoulli`].
///
/// `n`: width, at least 1. `k`: fan-in, in `(0, n]`.
pub fn constant_fan_in(n: f64, k: f64) -> f64 {
    bernoulli(n, k) - 3.0 * (n - k) / (k * n * (n + 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dense_layer_does_not_depend_on_how_its_mask_was_drawn() {
        for n in [2.0, 16.0, 1000.0] {
            let dense = bernoulli(n, n);
            assert!((constant_fan_in(n, n) - dense).abs() < 1e-12);
            assert!((constant_per_layer(n, n) - dense).abs() < 1e-9);
        }
    }

    #[test]
    fn a_single_weight_by_hand() {
        // n = k = 1: ‖z‖² = 2·w²·ξ, so E = 1 and Var = 4·E[w⁴]·½ − 1 = 4·3·½ − 1 = 5.
        assert_eq!(bernoulli(1.0, 1.0), 5.0);
        assert_eq!(constant_fan_in(1.0, 1.0), 5.0);
    }

    #[test]
    fn four_neurons_of_fan_in_two_by_hand() {
        // V_B = (20 − 8 + 36) / 24; C = 3.5 / 3.75, so (36·C + 36 − 16 − 8) / 24 = 45.6 / 24; 3·2 / (2·4·6) = 1/8.
        assert_eq!(bernoulli(4.0, 2.0), 2.0);
        assert!((constant_per_layer(4.0, 2.0) - 1.9).abs() < 1e-12);
        assert_eq!(constant_fan_in(4.0, 2.0), 2.0 - 0.125);
    }

    #[test]
    fn more_structure_means_less_variance() {
        for (n, k) in [(16.0, 1.0), (64.0, 4.0), (512.0, 32.0)] {
            assert!(constant_fan_in(n, k) < constant_per_layer(n, k));
            assert!(constant_per_layer(n, k) < bernoulli(n, k));
        }
    }
}
