//! What `srigl mask` prints: one record per layer, as JSON or as a table with a total.

use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;
use sparsity_core::{LayerSpec, LayerStats, Mask, Structure, target_weights};
use srigl_run::print::{self, shape, table};

/// Records of all layers of a file.
#[derive(Serialize)]
pub struct Report<L> {
    /// Share of inactive weights in all layers together.
    pub sparsity: f64,
    /// The layers, sorted by name.
    pub layers: Vec<L>,
    /// What was guessed, in a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What `plan` says of a layer.
#[derive(Serialize)]
pub struct PlannedLayer {
    /// Its name, without `.weight`.
    pub name: String,
    shape: Vec<usize>,
    neurons: usize,
    dense_fan_in: usize,
    /// `N·M`.
    weights: usize,
    /// The layer's share of the global sparsity.
    sparsity: f64,
    /// `A = ⌊N·M·(1−S)⌋`, the weights that may be active.
    nnz: usize,
    /// `k0 = ⌊A/N⌋`, the fan-in that SRigL starts with.
    pub fan_in: usize,
}

impl PlannedLayer {
    /// The plan for a layer of this sparsity.
    pub fn new(layer: &LayerSpec, sparsity: f64) -> Self {
        let nnz = target_weights(layer.weights(), sparsity);
        Self {
            name: layer.name.clone(),
            shape: layer.dims.clone(),
            neurons: layer.neurons(),
            dense_fan_in: layer.dense_fan_in(),
            weights: layer.weights(),
            sparsity,
            nnz,
            fan_in: nnz / layer.neurons(),
        }
    }
}

/// What `init`, `step` and `inspect` say of a layer's topology.
#[derive(Serialize)]
pub struct MaskedLayer {
    name: String,
    shape: Vec<usize>,
    /// Whether the file has a mask for it. If not, `inspect` takes the non-zero weights for active.
    has_mask: bool,
    #[serde(flatten)]
    stats: LayerStats,
    density: f64,
    constant_fan_in: bool,
    /// Of M consecutive inputs at most N are active.
    nm: Option<String>,
    /// Neurons that share their inputs.
    group: usize,
    #[serde(flatten)]
    change: Option<Change>,
}

/// What an update changed.
#[derive(Serialize)]
pub struct Change {
    /// Positions active before and inactive now.
    pub pruned: usize,
    /// Positions inactive before and active now.
    pub grown: usize,
}

impl MaskedLayer {
    /// The statistics of a layer's mask.
    pub fn of_mask(layer: &LayerSpec, mask: &Mask, has_mask: bool) -> Self {
        Self::new(layer, LayerStats::new(mask), Some(Structure::of(mask)), has_mask)
    }

    /// The statistics of a layer's topology.
    pub fn new(layer: &LayerSpec, stats: LayerStats, structure: Option<Structure>, has_mask: bool) -> Self {
        // A dense layer's neurons all read the same inputs.
        let structure = structure.filter(|_| stats.nnz < layer.weights());
        Self {
            name: layer.name.clone(),
            shape: layer.dims.clone(),
            has_mask,
            density: stats.nnz as f64 / layer.weights() as f64,
            constant_fan_in: stats.fan_in.is_some(),
            nm: structure.and_then(|structure| structure.nm).map(|nm| nm.to_string()),
            group: structure.map_or(1, |structure| structure.group),
            stats,
            change: None,
        }
    }

    /// The same with what an update changed.
    pub fn with_change(self, change: Change) -> Self {
        Self { change: Some(change), ..self }
    }
}

/// A report that can be shown to people.
pub trait Tabular: Serialize {
    /// The table, the last row of which is the total.
    fn table(&self) -> Table;
}

impl Report<PlannedLayer> {
    /// The sum of the layers.
    pub fn plan(layers: Vec<PlannedLayer>, notes: Vec<String>) -> Self {
        // Not from the counts, which are rounded down layer by layer.
        let zeros: f64 = layers.iter().map(|l| l.sparsity * l.weights as f64).sum();
        let sparsity = zeros / layers.iter().map(|l| l.weights).sum::<usize>() as f64;
        Self { sparsity, layers, notes }
    }
}

impl Tabular for Report<PlannedLayer> {
    fn table(&self) -> Table {
        let sum =
            |field: fn(&PlannedLayer) -> usize| self.layers.iter().map(field).sum::<usize>().to_string();
        let row = |l: &PlannedLayer| {
            let counts = [l.weights, l.nnz, l.fan_in].map(|count| count.to_string());
            [vec![l.name.clone(), shape(&l.shape), share(l.sparsity)], counts.to_vec()].concat()
        };
        let total =
            ["total".into(), "".into(), share(self.sparsity), sum(|l| l.weights), sum(|l| l.nnz), "".into()];
        table(
            &["layer", "shape", "sparsity", "weights", "active weights", "fan-in"],
            self.layers.iter().map(row).chain([total.to_vec()]),
        )
    }
}

impl Report<MaskedLayer> {
    /// The sum of the layers.
    pub fn masks(layers: Vec<MaskedLayer>, notes: Vec<String>) -> Self {
        let nnz: usize = layers.iter().map(|l| l.stats.nnz).sum();
        let weights: usize = layers.iter().map(|l| l.shape.iter().product::<usize>()).sum();
        Self { sparsity: 1.0 - nnz as f64 / weights as f64, layers, notes }
    }
}

impl Tabular for Report<MaskedLayer> {
    fn table(&self) -> Table {
        let changed = self.layers.iter().any(|l| l.change.is_some());
        let structured = self.layers.iter().any(|l| l.nm.is_some() || l.group > 1);
        let mut header = vec!["layer", "shape", "neurons", "active", "fan-in", "weights", "sparsity"];
        if structured {
            header.push("structure");
        }
        if changed {
            header.extend(["pruned", "grown"]);
        }
        let row = |l: &MaskedLayer| {
            let LayerStats { neurons, active, fan_in_min, fan_in_max, nnz, sparsity, .. } = l.stats;
            let fan_in = match l.stats.fan_in {
                Some(fan_in) => fan_in.to_string(),
                None => format!("{fan_in_min} to {fan_in_max}"),
            };
            let mut row = vec![l.name.clone(), shape(&l.shape), neurons.to_string(), active.to_string()];
            row.extend([fan_in, nnz.to_string(), share(sparsity)]);
            if structured {
                let group = (l.group > 1).then(|| format!("groups of {}", l.group));
                row.push(l.nm.iter().cloned().chain(group).collect::<Vec<_>>().join(", "));
            }
            row.extend(l.change.iter().flat_map(|c| [c.pruned.to_string(), c.grown.to_string()]));
            row
        };
        let sum = |field: fn(&MaskedLayer) -> usize| self.layers.iter().map(field).sum::<usize>().to_string();
        let mut total = vec!["total".to_string(), String::new(), sum(|l| l.stats.neurons)];
        total.extend([sum(|l| l.stats.active), String::new(), sum(|l| l.stats.nnz), share(self.sparsity)]);
        total.extend(structured.then(String::new));
        if changed {
            total.extend([
                sum(|l| l.change.as_ref().map_or(0, |c| c.pruned)),
                sum(|l| l.change.as_ref().map_or(0, |c| c.grown)),
            ]);
        }
        table(&header, self.layers.iter().map(row).chain([total]))
    }
}

/// Prints a report to standard output; as JSON it is all that is printed there.
///
/// # Errors
/// If standard output cannot be written, for example because it is closed.
pub fn print<L>(report: &Report<L>, json: bool) -> Result<()>
where
    Report<L>: Tabular,
{
    Ok(print::either(json, report, |report| report.table().to_string())?)
}

fn share(sparsity: f64) -> String {
    format!("{sparsity:.4}")
}
