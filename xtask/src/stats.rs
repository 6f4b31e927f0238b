//! Mean and confidence interval of a few runs.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;

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
        let ci95 = (runs > 1).then(|| {
            let student = StudentsT::new(0.0, 1.0, (runs - 1) as f64).expect("a positive number of degrees");
            student.inverse_cdf(0.975) * values.std_dev() / (runs as f64).sqrt()
        });
        Some(Self { runs, mean: values.iter().sum::<f64>() / runs as f64, ci95 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_runs_by_hand() {
        // Mean 3, s² = 2.5, s/√5 = √0.5, t(4) = 2.7764.
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((summary.runs, summary.mean), (5, 3.0));
        assert!((summary.ci95.unwrap() - 2.7764 * 0.5_f64.sqrt()).abs() < 1e-4);
    }

    #[test]
    fn one_run_has_no_interval_and_none_no_mean() {
        assert_eq!(Summary::of(&[0.5]), Some(Summary { runs: 1, mean: 0.5, ci95: None }));
        assert_eq!(Summary::of(&[]), None);
    }
}
