//! What `srigl bench layer` and `model` print.

use serde::Serialize;

use super::{Contender, Samples, Skipped};
use srigl_run::print;

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
    /// Contenders that could not run it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
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
    /// Difference to the right result, relative to its norm.
    pub relative_error: f64,
    /// Median of single calls by the clock of the GPU, whose caches are cold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ms: Option<f64>,
    /// The least bytes of a call over that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gigabytes_per_second: Option<f64>,
}

impl Timing {
    pub fn new(contender: &Contender, samples: &Samples, relative_error: f64) -> Self {
        let at = |share| 1e3 * quantile(&samples.seconds, share);
        let device_ms = (!samples.on_device.is_empty()).then(|| 1e3 * quantile(&samples.on_device, 0.5));
        let rate = |(bytes, ms): (usize, f64)| bytes as f64 / (ms * 1e6);
        Self {
            name: contender.name.clone(),
            median_ms: at(0.5),
            p10_ms: at(0.1),
            p90_ms: at(0.9),
            samples: samples.seconds.len(),
            engine: contender.engine.clone(),
            relative_error,
            device_ms,
            gigabytes_per_second: contender.bytes.zip(device_ms).map(rate),
        }
    }
}

/// The value below which that share of the samples lies.
///
/// # Panics
/// If there is none.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// Median time of the contender of that name in milliseconds, NaN without one.
pub fn median(results: &[Timing], name: &str) -> f64 {
    results.iter().find(|result| result.name == name).map_or(f64::NAN, |result| result.median_ms)
}

impl Report {
    pub fn text(&self) -> String {
        let (dense, condensed) = (median(&self.results, "dense"), median(&self.results, "condensed"));
        let on_device = self.results.iter().find(|r| r.name == "condensed").and_then(|r| r.device_ms);
        let mut header =
            vec!["contender", "engine", "median ms", "p10", "p90", "over dense", "condensed over it"];
        if on_device.is_some() {
            header.extend(["device ms", "condensed over it", "GB/s (of memory's)"]);
        }
        let row = |r: &Timing| {
            let times = [r.median_ms, r.p10_ms, r.p90_ms].map(|ms| format!("{ms:.4}"));
            let mut row = vec![r.name.clone(), r.engine.clone()];
            row.extend(times);
            row.push(format!("{:.2}", dense / r.median_ms));
            row.push(format!("{:.2}", r.median_ms / condensed));
            if let Some(condensed) = on_device {
                let share = |rate: f64| {
                    let share = self.memory_gigabytes_per_second.map(|memory| 100.0 * rate / memory);
                    format!("{rate:.0}{}", share.map_or(String::new(), |share| format!(" ({share:.0} %)")))
                };
                row.push(r.device_ms.map_or(String::new(), |ms| format!("{ms:.4}")));
                row.push(r.device_ms.map_or(String::new(), |ms| format!("{:.2}", ms / condensed)));
                row.push(r.gigabytes_per_second.map_or(String::new(), share));
            }
            row
        };
        let memory = self.memory_gigabytes_per_second.map(|rate| format!(", memory {rate:.0} GB/s"));
        let place = match &self.device {
            Some(device) => format!("on {device}"),
            None => format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" }),
        };
        let skipped = self.skipped.iter().map(|Skipped { name, why }| format!("\n{name} is left out: {why}"));
        format!(
            "{}\n{} {}, sparsity {} (masks: {:.4}), batch {}, {place}, {} rounds, seed {}{}{}",
            print::table(&header, self.results.iter().map(row)),
            self.what,
            self.shape,
            self.sparsity,
            self.actual_sparsity,
            self.batch,
            self.rounds,
            self.seed,
            memory.unwrap_or_default(),
            skipped.collect::<String>()
        )
    }
}
