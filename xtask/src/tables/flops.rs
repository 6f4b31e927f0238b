//! FLOPs and parameters of ResNet-50, from its shapes alone, beside the published table.

use crate::published::{Resnet50Cost, resnet50_cost};
use crate::report::{Report, Table};
use crate::runner::{srigl_binary, srigl_json};
use anyhow::Result;
use serde::Deserialize;
use serde_json::json;
use sparsity_core::counting::{
    CountedLayer, LayerKind, dense_training_flops, inference_cost, training_flops,
};
use sparsity_core::{Distribution, LayerSpec, layer_sparsities};
use std::path::Path;
use std::process::Command;

/// Largest relative error that passes.
const TOLERANCE: f64 = 1e-4;

/// Training images of the published numbers: 100 epochs of ILSVRC-2012.
const TRAINING_IMAGES: f64 = 100.0 * 1_281_167.0;

/// Steps between topology updates of the published numbers.
const DELTA_T: usize = 100;

/// Counts ResNet-50 at every published density. Problems: whatever is off by more than 0.01 %.
///
/// # Errors
/// If there is no `srigl`, the published file cannot be read or ERK has no solution for a density.
pub fn reproduce() -> Result<Report> {
    let layers = resnet50(&srigl_binary(None)?)?;
    let dense = inference_cost(&layers, &vec![0.0; layers.len()])?.flops();
    let mut table = Table {
        caption: "Cost of ResNet-50 at 224×224, relative error in percent".into(),
        header: vec!["density".into()],
        ..Table::default()
    };
    for what in ["FLOPs", "parameters", "training FLOPs"] {
        table.header.extend([format!("{what}, ours"), "published".into(), "error".into()]);
    }
    let mut problems = Vec::new();
    let mut rows = Vec::new();
    for published in resnet50_cost()? {
        let ours = count(&layers, published.density, dense)?;
        let mut cells = vec![density_label(published.density)];
        let columns = [
            ("FLOPs", ours.flops, published.flops),
            ("parameters", ours.parameters, published.parameters),
            ("training FLOPs", ours.training_flops, published.training_flops),
        ];
        for (what, ours, published_value) in columns {
            let error = ours / published_value - 1.0;
            cells.extend([number(ours), number(published_value), percent_off(error)]);
            if error.abs() > TOLERANCE {
                problems.push(format!(
                    "{what} at density {}: {} instead of {}, off by {} %; the counting rule, the shapes or the \
                     ERK distribution have changed",
                    published.density,
                    number(ours),
                    number(published_value),
                    percent_off(error)
                ));
            }
        }
        table.rows.push(cells);
        rows.push(json!({
            "density": published.density,
            "flops": { "ours": ours.flops, "published": published.flops },
            "parameters": { "ours": ours.parameters, "published": published.parameters },
            "training_flops": { "ours": ours.training_flops, "published": published.training_flops },
        }));
    }
    table.notes.push(
        "What remains is rounding: the published table takes whole zeros per layer, ⌊S·N·M⌋, for the global budget \
         of ERK; ours is not rounded. The two are equal where every ⌊S·N·M⌋ is exact: dense, 0.25 and 0.0625."
            .into(),
    );
    Ok(Report {
        title: "Inference and training cost of ResNet-50".into(),
        facts: vec![
            "`cargo xtask reproduce flops`".into(),
            format!("counted from the shapes of {} layers; nothing is run", layers.len()),
            "layer sparsities: ERK, power 1, over all layers, first convolution and classifier included"
                .into(),
            "training: 100 epochs of 1 281 167 images, ΔT = 100".into(),
        ],
        json: json!({ "table": "flops", "rows": rows }),
        tables: vec![table],
        chart: None,
        problems,
    })
}

/// Our three columns at one density.
fn count(layers: &[CountedLayer], density: f64, dense: f64) -> Result<Resnet50Cost> {
    let specs = layers
        .iter()
        .map(|layer| LayerSpec::new(layer.name.clone(), layer.dims.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let sparsities = layer_sparsities(&specs, 1.0 - density, Distribution::Erk { power: 1.0 })?;
    let cost = inference_cost(layers, &sparsities)?;
    let training_flops = if density < 1.0 {
        training_flops(dense, cost.flops(), DELTA_T, TRAINING_IMAGES)
    } else {
        dense_training_flops(dense, TRAINING_IMAGES)
    };
    Ok(Resnet50Cost { density, flops: cost.flops(), parameters: cost.parameters, training_flops })
}

/// What `srigl models NAME --json` prints, as far as it is read.
#[derive(Deserialize)]
struct Model {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    name: String,
    dims: Vec<usize>,
    positions: usize,
}

/// The layers of ResNet-50 at 224×224, as `srigl` has it.
fn resnet50(srigl: &Path) -> Result<Vec<CountedLayer>> {
    let model: Model = srigl_json(Command::new(srigl).args(["models", "resnet50", "--json"]))?;
    let counted = |Layer { name, dims, positions }: Layer| {
        let kind = if dims.len() == 4 { LayerKind::Conv } else { LayerKind::Linear };
        CountedLayer { name, kind, dims, out_positions: positions }
    };
    Ok(model.layers.into_iter().map(counted).collect())
}

fn density_label(density: f64) -> String {
    if density == 1.0 { "dense".into() } else { density.to_string() }
}

/// A relative error in percent; nothing smaller than the digits shown gets a sign.
fn percent_off(error: f64) -> String {
    let percent = (1e6 * error).round() / 1e4;
    if percent == 0.0 { "0".into() } else { format!("{percent:+.4}") }
}

/// Seven digits: whole numbers below 10⁸, powers of ten above.
fn number(value: f64) -> String {
    if value < 1e8 { format!("{value:.0}") } else { format!("{value:.6e}") }
}
