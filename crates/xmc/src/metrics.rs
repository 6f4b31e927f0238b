//! How good rankings of labels are: precision, nDCG and propensity-scored precision at 1 to k, as napkinxc has them.

use serde::{Deserialize, Serialize};

/// Inverse propensities `[labels]` of labels that so many of `points` training points have: `1 + C (n + B)^−A` with
/// `C = (ln N − 1)(B + 1)^A` (Jain et al. 2016). A = 0.55 and B = 1.5 unless a data set is known to need others.
///
/// Of fewer than three points the formula makes negative numbers of some; `C` is 0 then.
pub fn inverse_propensities(counts: &[u32], points: usize) -> Vec<f64> {
    const A: f64 = 0.55;
    const B: f64 = 1.5;
    let c = ((points.max(1) as f64).ln() - 1.0).max(0.0) * (B + 1.0).powf(A);
    counts.iter().map(|count| 1.0 + c * (f64::from(*count) + B).powf(-A)).collect()
}

/// Sums over points, from which the mean comes.
#[derive(Clone, Debug)]
pub struct Rankings {
    inverse: Vec<f64>,
    points: usize,
    /// At 1, 2, …, k.
    hits: Vec<f64>,
    gains: Vec<f64>,
    scored: Vec<f64>,
    best: Vec<f64>,
}

impl Rankings {
    /// Of the `k` best labels each; labels have these inverse propensities.
    pub fn new(k: usize, inverse_propensities: Vec<f64>) -> Self {
        let zeros = || vec![0.0; k];
        let [hits, gains, scored, best] = [zeros(), zeros(), zeros(), zeros()];
        Self { inverse: inverse_propensities, points: 0, hits, gains, scored, best }
    }

    /// Adds a point that has these labels, `ranked` best first. Fewer than `k` count as if the others were wrong.
    ///
    /// # Panics
    /// If a label has no propensity.
    pub fn add(&mut self, labels: &[u32], ranked: &[u32]) {
        self.points += 1;
        let mut propensities: Vec<f64> = labels.iter().map(|label| self.inverse[*label as usize]).collect();
        propensities.sort_by(|a, b| b.total_cmp(a));
        let [mut hits, mut gain, mut ideal, mut scored, mut best] = [0.0; 5];
        for place in 0..self.hits.len() {
            let discount = 1.0 / (place as f64 + 2.0).log2();
            if let Some(propensity) = propensities.get(place) {
                ideal += discount;
                best += propensity;
            }
            if let Some(label) = ranked.get(place).filter(|label| labels.contains(label)) {
                hits += 1.0;
                gain += discount;
                scored += self.inverse[*label as usize];
            }
            let count = (place + 1) as f64;
            self.hits[place] += hits / count;
            self.gains[place] += if ideal > 0.0 { gain / ideal } else { 0.0 };
            self.scored[place] += scored / count;
            self.best[place] += best / count;
        }
    }

    fn mean(&self, sums: &[f64]) -> Vec<f64> {
        sums.iter().map(|sum| sum / self.points.max(1) as f64).collect()
    }

    /// P@1 … P@k: the share of labels among the first that a point has.
    pub fn precision(&self) -> Vec<f64> {
        self.mean(&self.hits)
    }

    /// nDCG@1 … nDCG@k: the same with earlier places counting more, over what could be had.
    pub fn ndcg(&self) -> Vec<f64> {
        self.mean(&self.gains)
    }

    /// PSP@1 … PSP@k: precision with rare labels counting more, over what could be had of all points together.
    pub fn propensity_scored(&self) -> Vec<f64> {
        let of_best = |(sum, best): (&f64, &f64)| if *best > 0.0 { sum / best } else { 0.0 };
        self.scored.iter().zip(&self.best).map(of_best).collect()
    }
}

/// Rankings at 1, 3 and 5, as shares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Measured {
    pub p_at_1: f64,
    pub p_at_3: f64,
    pub p_at_5: f64,
    pub ndcg_at_1: f64,
    pub ndcg_at_3: f64,
    pub ndcg_at_5: f64,
    pub psp_at_1: f64,
    pub psp_at_3: f64,
    pub psp_at_5: f64,
}

impl Measured {
    /// Labels that are to be ranked.
    pub const RANKED: usize = 5;
    /// Points that are ranked at once.
    pub const CHUNK: usize = 512;

    /// Of rankings of [`RANKED`](Self::RANKED) labels.
    ///
    /// # Panics
    /// If they are of fewer.
    pub fn new(rankings: &Rankings) -> Self {
        let (p, n, s) = (rankings.precision(), rankings.ndcg(), rankings.propensity_scored());
        Self {
            p_at_1: p[0],
            p_at_3: p[2],
            p_at_5: p[4],
            ndcg_at_1: n[0],
            ndcg_at_3: n[2],
            ndcg_at_5: n[4],
            psp_at_1: s[0],
            psp_at_3: s[2],
            psp_at_5: s[4],
        }
    }
}
