//! Proposition 3.1: the variance of the output norm of a sparse layer, formula against simulation.

use crate::report::{Report, Table};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Bernoulli, Distribution, StandardNormal, Uniform};
use rayon::prelude::*;
use serde_json::json;
use sparsity_core::variance::{bernoulli, constant_fan_in, constant_per_layer};

/// Width `n` of the layer.
const WIDTH: usize = 64;
/// Average fan-ins `k`.
const FAN_INS: [usize; 5] = [2, 4, 8, 16, 32];
/// Independent draws of (mask, weights, input, bits) per row.
const DRAWS: u64 = 40_000;
/// Seed of the simulation; each draw has its own stream, so threads do not matter.
const SEED: u64 = 0;
/// Largest distance between formula and simulation that passes, in standard errors.
const TOLERANCE: f64 = 4.0;

/// How a mask is drawn.
#[derive(Clone, Copy, Debug)]
enum MaskKind {
    Bernoulli,
    ConstantPerLayer,
    ConstantFanIn,
}

impl MaskKind {
    const ALL: [Self; 3] = [Self::Bernoulli, Self::ConstantPerLayer, Self::ConstantFanIn];

    fn label(self) -> &'static str {
        match self {
            Self::Bernoulli => "Bernoulli",
            Self::ConstantPerLayer => "constant per layer",
            Self::ConstantFanIn => "constant fan-in",
        }
    }

    /// `Var(‖z‖²)` by Proposition 3.1.
    fn formula(self, n: usize, k: usize) -> f64 {
        let (n, k) = (n as f64, k as f64);
        match self {
            Self::Bernoulli => bernoulli(n, k),
            Self::ConstantPerLayer => constant_per_layer(n, k),
            Self::ConstantFanIn => constant_fan_in(n, k),
        }
    }

    /// The active flat positions of an `[n, n]` mask with average fan-in `k`.
    fn draw(self, n: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        match self {
            Self::Bernoulli => {
                let active = Bernoulli::new(k as f64 / n as f64).expect("k ≤ n");
                (0..n * n).filter(|_| active.sample(rng)).collect()
            }
            Self::ConstantPerLayer => choose(n * n, n * k, rng),
            Self::ConstantFanIn => (0..n)
                .flat_map(|row| choose(n, k, rng).into_iter().map(move |column| row * n + column))
                .collect(),
        }
    }
}

/// A mean over draws and its standard error.
struct Estimate {
    mean: f64,
    standard_error: f64,
}

impl Estimate {
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { mean, standard_error: (variance / count).sqrt() }
    }
}

/// Simulates every mask kind and fan-in. Problems: formulas more than 4 standard errors off.
pub fn reproduce() -> Report {
    let mut table = Table {
        caption: format!("Var(‖z‖²) at width n = {WIDTH}"),
        header: ["mask", "k", "formula", "simulation", "(formula − simulation) / standard error"]
            .map(String::from)
            .to_vec(),
        ..Table::default()
    };
    let mut problems = Vec::new();
    let mut rows = Vec::new();
    for kind in MaskKind::ALL {
        for k in FAN_INS {
            let formula = kind.formula(WIDTH, k);
            let simulation = simulate(kind, WIDTH, k, DRAWS);
            let distance = (formula - simulation.mean) / simulation.standard_error;
            table.rows.push(vec![
                kind.label().into(),
                k.to_string(),
                format!("{formula:.5}"),
                format!("{:.5} ± {:.5}", simulation.mean, simulation.standard_error),
                format!("{distance:+.2}"),
            ]);
            rows.push(json!({
                "mask": kind.label(), "n": WIDTH, "k": k, "formula": formula,
                "simulation": simulation.mean, "standard_error": simulation.standard_error,
            }));
            if distance.abs() > TOLERANCE {
                problems.push(format!(
                    "{} mask, k = {k}: the formula gives {formula:.5}, the simulation {:.5} ± {:.5}; one of them \
                     is wrong",
                    kind.label(),
                    simulation.mean,
                    simulation.standard_error
                ));
            }
        }
    }
    table.notes.push("Simulation: mean over draws ± standard error of that mean.".into());
    Report {
        title: "Variance of the output norm of a sparse layer at initialisation (Proposition 3.1)".into(),
        facts: vec![
            "`cargo xtask reproduce variance`".into(),
            "z = √(2/k)·(W∘I)(ξ∘u): u uniform on the unit sphere, ξ fair bits, W standard normal, I the mask"
                .into(),
            "E‖z‖² = 1 for each mask, so Var(‖z‖²) is estimated without bias by the mean of (‖z‖² − 1)²"
                .into(),
            format!("{DRAWS} independent draws of (I, W, u, ξ) per row, ChaCha8, seed {SEED}"),
        ],
        json: json!({ "table": "variance", "draws": DRAWS, "seed": SEED, "rows": rows }),
        tables: vec![table],
        chart: None,
        problems,
    }
}

/// Estimates `Var(‖z‖²) = E(‖z‖² − 1)²`.
fn simulate(kind: MaskKind, n: usize, k: usize, draws: u64) -> Estimate {
    let squared_deviations: Vec<f64> = (0..draws)
        .into_par_iter()
        .map(|draw| {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            rng.set_stream(draw);
            (squared_norm(kind, n, k, &mut rng) - 1.0).powi(2)
        })
        .collect();
    Estimate::of(&squared_deviations)
}

/// One draw of `‖z‖²`.
fn squared_norm(kind: MaskKind, n: usize, k: usize, rng: &mut ChaCha8Rng) -> f64 {
    // ξ∘u: a normal vector scaled to length 1, then half of it switched off.
    let mut input: Vec<f64> = (0..n).map(|_| StandardNormal.sample(rng)).collect();
    let norm = input.iter().map(|x| x * x).sum::<f64>().sqrt();
    let bit = Bernoulli::new(0.5).expect("a probability");
    for x in &mut input {
        *x = if bit.sample(rng) { *x / norm } else { 0.0 };
    }
    let mut output = vec![0.0; n];
    for position in kind.draw(n, k, rng) {
        let weight: f64 = StandardNormal.sample(rng);
        output[position / n] += weight * input[position % n];
    }
    2.0 / k as f64 * output.iter().map(|z| z * z).sum::<f64>()
}

/// `count` of `0..total`, uniformly without replacement (the first steps of a Fisher–Yates shuffle).
fn choose(total: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut items: Vec<usize> = (0..total).collect();
    for i in 0..count {
        let j = Uniform::new(i, total).expect("count ≤ total").sample(rng);
        items.swap(i, j);
    }
    items.truncate(count);
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_the_promised_counts() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (n, k) = (8, 3);
        for kind in MaskKind::ALL {
            let mask = kind.draw(n, k, &mut rng);
            let distinct: std::collections::BTreeSet<_> = mask.iter().copied().collect();
            assert_eq!(distinct.len(), mask.len());
            assert!(mask.iter().all(|&position| position < n * n));
            match kind {
                MaskKind::Bernoulli => {}
                MaskKind::ConstantPerLayer => assert_eq!(mask.len(), n * k),
                MaskKind::ConstantFanIn => {
                    assert!((0..n).all(|row| mask.iter().filter(|&&p| p / n == row).count() == k));
                }
            }
        }
    }

    #[test]
    fn formulas_agree_with_a_small_simulation() {
        for kind in MaskKind::ALL {
            let estimate = simulate(kind, 8, 2, 20_000);
            let distance = (estimate.mean - kind.formula(8, 2)) / estimate.standard_error;
            assert!(distance.abs() < TOLERANCE, "{kind:?}: {distance}");
        }
    }
}
