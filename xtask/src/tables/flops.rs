//! FLOPs and parameters of ResNet-50, from its shapes alone, beside the published table.

use crate::published::{Resnet50Cost, resnet50_cost};
use crate::report::{Report, Table};
use anyhow::Result;
use serde_json::json;
use sparsity_core::counting::{CountedLayer, dense_training_flops, inference_cost, training_flops};
use sparsity_core::{Distribution, LayerSpec, layer_sparsities};

/// Largest relative error that passes.
const TOLERANCE: f64 = 1e-4;

/// Training images of the published numbers: 100 epochs of ILSVRC-2012.
const TRAINING_IMAGES: f64 = 100.0 * 1_281_167.0;

/// Steps between topology updates of the published numbers.
const DELTA_T: usize = 100;

/// Counts ResNet-50 at every published density. Problems: whatever is off by more than 0.01 %.
///
/// # Errors
/// If the published file cannot be read or ERK has no solution for a density.
pub fn reproduce() -> Result<Report> {
    let layers = resnet50();
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

/// The convolutions and the classifier of torchvision's ResNet-50 at 224×224, input first, by its names.
///
/// Bottlenecks of widths 64, 128, 256, 512 (outputs four times as wide), with the stride in the 3×3
/// convolution of the first bottleneck of stages 2 to 4.
fn resnet50() -> Vec<CountedLayer> {
    let mut layers = vec![CountedLayer::conv("conv1", [64, 3, 7, 7], 112 * 112)];
    // After the max-pool: 64 channels of 56×56.
    let (mut channels, mut side) = (64, 56);
    for (stage, (width, blocks)) in [(64, 3), (128, 4), (256, 6), (512, 3)].into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            let (before, after) = (side * side, (side / stride) * (side / stride));
            layers.extend([
                CountedLayer::conv(format!("{name}.conv1"), [width, channels, 1, 1], before),
                CountedLayer::conv(format!("{name}.conv2"), [width, width, 3, 3], after),
                CountedLayer::conv(format!("{name}.conv3"), [4 * width, width, 1, 1], after),
            ]);
            if block == 0 {
                let name = format!("{name}.downsample.0");
                layers.push(CountedLayer::conv(name, [4 * width, channels, 1, 1], after));
            }
            (channels, side) = (4 * width, side / stride);
        }
    }
    layers.push(CountedLayer::linear("fc", [1000, channels]));
    layers
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resnet50_has_the_weights_of_torchvision() {
        let layers = resnet50();
        assert_eq!(layers.len(), 54);
        let weights: usize = layers.iter().map(|layer| layer.dims.iter().product::<usize>()).sum();
        // torchvision's 25 557 032 parameters less 53 120 of batch norm and 1000 biases.
        assert_eq!(weights, 25_502_912);
    }

    #[test]
    fn all_published_numbers_are_met() {
        let report = reproduce().unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        assert_eq!(report.tables[0].rows.len(), 7);
    }
}
