//! What `srigl bench layer` and `model` print.

use serde::Serialize;

use super::Contender;
use crate::mask::table;

/// All of it.
#[derive(Serialize)]
pub struct Report {
    pub what: &'static str,
    pub shape: serde_json::Value,
    pub sparsity: f64,
    /// Share of zeros that the masks really have: fan-ins are whole numbers.
    pub actual_sparsity: f64,
    pub batch: usize,
    pub threads: usize,
    /// Burn's device; `None` for the engine for CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub seed: u64,
    pub rounds: usize,
    pub results: Vec<Timing>,
    pub speedup_over_dense: f64,
    /// What the device's memory moved in a large copy, read and written bytes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_gigabytes_per_second: Option<f64>,
}

/// The samples of one contender.
#[derive(Serialize)]
pub struct Timing {
    pub name: String,
    pub median_ms: f64,
    pub p10_ms: f64,
    pub p90_ms: f64,
    pub samples: usize,
    pub engine: String,
    /// The least bytes of a call over its median time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gigabytes_per_second: Option<f64>,
}

impl Timing {
    /// Seconds of each sample, in any order.
    pub fn new(contender: &Contender, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| 1e3 * samples[((samples.len() - 1) as f64 * share).round() as usize];
        Self {
            name: contender.name.clone(),
            median_ms: at(0.5),
            p10_ms: at(0.1),
            p90_ms: at(0.9),
            samples: samples.len(),
            engine: contender.engine.clone(),
            gigabytes_per_second: contender.bytes.map(|bytes| bytes as f64 / (at(0.5) * 1e6)),
        }
    }
}

/// Median time of the contender of that name in milliseconds, NaN without one.
pub fn median(results: &[Timing], name: &str) -> f64 {
    results.iter().find(|result| result.name == name).map_or(f64::NAN, |result| result.median_ms)
}

impl Report {
    pub fn text(&self) -> String {
        let (dense, condensed) = (median(&self.results, "dense"), median(&self.results, "condensed"));
        let row = |r: &Timing| {
            let times = [r.median_ms, r.p10_ms, r.p90_ms].map(|ms| format!("{ms:.4}"));
            let mut row = vec![r.name.clone(), r.engine.clone()];
            row.extend(times);
            row.push(format!("{:.2}", dense / r.median_ms));
            row.push(format!("{:.2}", r.median_ms / condensed));
            if let Some(memory) = self.memory_gigabytes_per_second {
                let share = |rate: f64| format!("{rate:.0} ({:.1} %)", 100.0 * rate / memory);
                row.push(r.gigabytes_per_second.map_or(String::new(), share));
            }
            row
        };
        let mut header =
            vec!["contender", "engine", "median ms", "p10", "p90", "over dense", "condensed over it"];
        let memory = self.memory_gigabytes_per_second.map(|rate| {
            header.push("GB/s (of memory's)");
            format!(", memory {rate:.0} GB/s")
        });
        let place = match &self.device {
            Some(device) => format!("on {device}"),
            None => format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" }),
        };
        format!(
            "{}\n{} {}, sparsity {} (masks: {:.4}), batch {}, {place}, {} rounds, seed {}{}",
            table::table(&header, self.results.iter().map(row)),
            self.what,
            self.shape,
            self.sparsity,
            self.actual_sparsity,
            self.batch,
            self.rounds,
            self.seed,
            memory.unwrap_or_default()
        )
    }
}
