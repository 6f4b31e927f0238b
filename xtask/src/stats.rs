//! Mean and confidence interval of a few runs.

use serde::Serialize;

/// Mean of some runs and the half-width of its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Number of runs.
    pub runs: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// `t · s / √runs`, with `s` the sample standard deviation (divisor `runs − 1`) and `t` the two-sided 95 %
    /// quantile of Student's distribution with `runs − 1` degrees of freedom. None for a single run.
    pub ci95: Option<f64>,
}

impl Summary {
    /// Summarises `values`; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let runs = values.len();
        if runs == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / runs as f64;
        let ci95 = (runs > 1).then(|| {
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (runs - 1) as f64;
            student_t_975(runs - 1) * (variance / runs as f64).sqrt()
        });
        Some(Self { runs, mean, ci95 })
    }
}

/// The 0.975 quantile of Student's t with `degrees ≥ 1` degrees of freedom.
///
/// Tabulated up to 30; beyond, the expansion in `1/degrees` about the normal quantile `z`
/// (Cornish and Fisher), `z + (z³ + z)/(4d) + (5z⁵ + 16z³ + 3z)/(96d²)`, good to 1e-4.
fn student_t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788,
        2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639,
        2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
    ];
    if let Some(&t) = TABLE.get(degrees - 1) {
        return t;
    }
    let (z, d) = (1.959_964_f64, degrees as f64);
    z + (z.powi(3) + z) / (4.0 * d) + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * d * d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_runs_by_hand() {
        // Mean 3, s² = 2.5, s/√5 = √0.5, t(4) = 2.7764.
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((summary.runs, summary.mean), (5, 3.0));
        assert!((summary.ci95.unwrap() - 2.7764 * 0.5_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn one_run_has_no_interval_and_none_no_mean() {
        assert_eq!(Summary::of(&[0.5]), Some(Summary { runs: 1, mean: 0.5, ci95: None }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn quantiles_fall_towards_the_normal_one_without_a_step() {
        assert!((student_t_975(31) - 2.0395).abs() < 1e-4);
        assert!((student_t_975(100) - 1.9840).abs() < 1e-4);
        assert!((1..500).all(|d| student_t_975(d) > student_t_975(d + 1)));
    }
}
