//! Metrics against what napkinxc says of the same rankings (`fixtures/metrics.py`).

use serde::Deserialize;
use srigl_xmc::{Rankings, inverse_propensities};

#[derive(Deserialize)]
struct Recorded {
    labels: usize,
    train: Vec<Vec<u32>>,
    #[serde(rename = "true")]
    has: Vec<Vec<u32>>,
    ranked: Vec<Vec<u32>>,
    inverse_propensities: Vec<f64>,
    precision: Vec<f64>,
    ndcg: Vec<f64>,
    ps_precision: Vec<f64>,
}

fn assert_close(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter()
        .zip(want)
        .for_each(|(got, want)| assert!((got - want).abs() < 1e-12, "{what}: {got} for {want}"));
}

#[test]
fn they_are_those_of_napkinxc() {
    let recorded: Recorded = serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap();
    let mut counts = vec![0; recorded.labels];
    recorded.train.iter().flatten().for_each(|label| counts[*label as usize] += 1);
    let inverse = inverse_propensities(&counts, recorded.train.len());
    assert_close(&inverse, &recorded.inverse_propensities, "propensities");
    let mut rankings = Rankings::new(5, inverse);
    recorded.has.iter().zip(&recorded.ranked).for_each(|(has, ranked)| rankings.add(has, ranked));
    assert_close(&rankings.precision(), &recorded.precision, "P");
    assert_close(&rankings.ndcg(), &recorded.ndcg, "nDCG");
    assert_close(&rankings.propensity_scored(), &recorded.ps_precision, "PSP");
}

#[test]
fn short_rankings_and_none_at_all_count() {
    let mut rankings = Rankings::new(3, vec![2.0; 4]);
    assert_eq!(rankings.precision(), [0.0; 3]);
    rankings.add(&[0, 1], &[1]);
    assert_eq!(rankings.precision(), [1.0, 0.5, 1.0 / 3.0]);
    assert_eq!(rankings.propensity_scored(), [1.0, 0.5, 0.5]);
    rankings.add(&[2], &[]);
    assert_eq!(rankings.precision()[0], 0.5);
}
