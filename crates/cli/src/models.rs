//! `srigl models`.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use sparsity_core::counting::{CountedLayer, inference_cost};
use srigl_models::{MODELS, ModelInfo};
use srigl_run::print;

/// Arguments of `srigl models`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ModelsArgs {
    /// A model: lists its layers with weights, for its usual images
    name: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str =
    "FLOPs are multiplications and additions of one image, counted as by the authors of RigL and \
SRigL; products of attention, which have no weights, are left out.

Examples:
  srigl models
  srigl models resnet50 --json";

/// Lists the models, or the layers of one.
pub fn run(args: ModelsArgs) -> Result<()> {
    match &args.name {
        None if args.json => print::json(&MODELS.iter().map(facts).collect::<Vec<_>>())?,
        None => {
            let rows = MODELS.iter().map(|info| {
                vec![
                    info.name.into(),
                    info.about.into(),
                    print::shape(&info.images),
                    info.classes.to_string(),
                ]
            });
            print::line(&print::table(&["model", "what", "image", "classes"], rows).to_string())?;
        }
        Some(name) => {
            let info = ModelInfo::named(name)?;
            let layers = info.usual().layers()?;
            if args.json {
                print::json(&layers_json(info, &layers)?)?;
            } else {
                print::line(&layers_text(info, &layers)?)?;
            }
        }
    }
    Ok(())
}

fn facts(info: &&ModelInfo) -> Value {
    json!({ "model": info.name, "about": info.about, "image": info.images, "classes": info.classes })
}

fn layers_json(info: &ModelInfo, layers: &[CountedLayer]) -> Result<Value> {
    let mut value = facts(&info);
    let layer = |layer: &CountedLayer| json!({ "name": layer.name, "dims": layer.dims, "positions": layer.out_positions });
    value["layers"] = layers.iter().map(layer).collect();
    value["flops"] = inference_cost(layers, &vec![0.0; layers.len()])?.flops().into();
    Ok(value)
}

fn layers_text(info: &ModelInfo, layers: &[CountedLayer]) -> Result<String> {
    let mut rows = Vec::new();
    for layer in layers {
        let weights: usize = layer.dims.iter().product();
        rows.push(vec![
            layer.name.clone(),
            print::shape(&layer.dims),
            layer.out_positions.to_string(),
            weights.to_string(),
            format!("{:.0}", layer.cost(0.0)?.flops()),
        ]);
    }
    let weights: usize = layers.iter().map(|layer| layer.dims.iter().product::<usize>()).sum();
    let flops = inference_cost(layers, &vec![0.0; layers.len()])?.flops();
    Ok(format!(
        "{}\n{}: {}; {} layers, {weights} weights, {flops:.4e} FLOPs for an image of {}",
        print::table(&["layer", "weight", "positions", "weights", "FLOPs"], rows.into_iter()),
        info.name,
        info.about,
        layers.len(),
        print::shape(&info.images)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo xtask reproduce flops` reads this; its tests read the file.
    #[test]
    fn resnet50_is_printed_as_it_was() {
        let info = ModelInfo::named("resnet50").unwrap();
        let layers = layers_json(info, &info.usual().layers().unwrap()).unwrap();
        let text = serde_json::to_string_pretty(&layers).unwrap();
        assert!(
            text + "\n" == include_str!("../tests/fixtures/resnet50.json"),
            "`srigl models resnet50 --json` > it"
        );
    }
}
