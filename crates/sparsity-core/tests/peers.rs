//! Updates and masks beside those that other projects' own code makes (`peers/record.py` says which, and how to record them).

use serde_json::Value;
use sparsity_core::methods::{
    Gmp, GradientPositions, LayerShare, Mest, Rigl, Set, Snfs, SrSte, StaticMask, TopKast,
};
use sparsity_core::{
    Distribution, InitialMask, Layer, LayerSpec, Mask, Method, NmPattern, Stream, UpdateSchedule,
    initial_mask_by_magnitude, initial_masks, update_layer,
};
use std::path::Path;

const STREAM: Stream = Stream { seed: 1, layer: 0, step: 100 };

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/peers/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    file(name)["cases"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|bit| bit.as_u64().unwrap() as u8).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn spec(value: &Value) -> LayerSpec {
    let dims: Vec<usize> =
        value["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    LayerSpec::new(value["name"].as_str().unwrap_or("fc"), dims).unwrap()
}

fn mask(spec: &LayerSpec, value: &Value) -> Mask {
    Mask::from_bytes(spec.neurons(), spec.dense_fan_in(), &bytes(value)).unwrap()
}

fn products(layer: &Value) -> Vec<f32> {
    floats(&layer["weight"]).iter().zip(floats(&layer["grad"])).map(|(w, g)| w * g).collect()
}

/// JaxPruner's masks by magnitude and by |W · G|, of each layer or of all; its `normalised` scores are divided by the layer's norm.
#[test]
fn masks_by_scores_are_jaxpruners() {
    let file = file("masks");
    let layers = file["layers"].as_array().unwrap();
    let specs: Vec<LayerSpec> = layers.iter().map(spec).collect();
    for case in file["cases"].as_array().unwrap() {
        let method = case["method"].as_str().unwrap();
        let scores = layers.iter().map(|layer| match method.ends_with("saliency") {
            true => products(layer),
            false => floats(&layer["weight"]),
        });
        let norm = |scores: &[f32]| scores.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>().sqrt() as f32;
        let scores: Vec<Vec<f32>> = match case["normalised"].as_bool() {
            Some(true) => scores.map(|s| s.iter().map(|x| x / norm(&s)).collect()).collect(),
            _ => scores.collect(),
        };
        let got: Vec<Mask> = match method.starts_with("global") {
            true => {
                let from = if method.ends_with("saliency") {
                    InitialMask::Sensitivity
                } else {
                    InitialMask::GlobalMagnitude
                };
                let target = (number(&case["sparsity"]), Distribution::Uniform);
                let masks = initial_masks(&StaticMask, &specs, &scores, from, target, 0).unwrap();
                masks.into_iter().map(|(_, mask)| mask).collect()
            }
            false => {
                let sparsities = case["sparsities"].as_array().unwrap();
                let of_layer = |i: usize| {
                    initial_mask_by_magnitude(&StaticMask, &specs[i], &scores[i], number(&sparsities[i]))
                        .unwrap()
                };
                (0..specs.len()).map(of_layer).collect()
            }
        };
        for (i, mask) in got.iter().enumerate() {
            assert_eq!(mask.to_bytes(), bytes(&case["masks"][i]), "{method}, layer {i}");
        }
    }
}

/// JaxPruner's polynomial schedule, whose steps count from 0, and its cosine.
#[test]
fn schedules_are_jaxpruners() {
    for case in cases("schedules") {
        let steps = case["steps"].as_array().unwrap().iter().map(number);
        let (end, start) = (number(&case["end"]), case["start"].as_f64().unwrap_or(0.0));
        for (step, value) in steps.zip(floats(&case["values"])) {
            let got = match case["schedule"].as_str().unwrap() {
                "polynomial" => {
                    let progress = ((step + 1.0 - start) / (end - start)).clamp(0.0, 1.0);
                    Gmp.sparsity_at(number(&case["sparsity"]), progress)
                }
                _ => {
                    let drop_fraction = number(&case["alpha"]);
                    UpdateSchedule { drop_fraction, ..UpdateSchedule::new(end as u64) }
                        .drop_fraction_at(step as u64)
                }
            };
            assert!((got - f64::from(value)).abs() < 1e-6, "{case}: {got} instead of {value}");
        }
    }
}

/// JaxPruner's N:M masks of consecutive inputs; its convolutions group channels, ours all inputs in their order.
#[test]
fn patterns_are_jaxpruners() {
    let mut tried = 0;
    for case in cases("nm").iter().filter(|case| case["shape"].as_array().unwrap().len() == 2) {
        let [n, m] = ["n", "m"].map(|key| case[key].as_u64().unwrap() as usize);
        let mask = NmPattern::new(n, m).unwrap().largest(&spec(case), &floats(&case["weight"])).unwrap();
        assert_eq!(mask.to_bytes(), bytes(&case["mask"]), "{n}:{m}");
        tried += 1;
    }
    assert_eq!(tried, 3);
}

/// One update of a layer.
fn update(method: &dyn Method, case: &Value, alpha: f64, sparsity: f64, grads: &Value) -> Mask {
    let spec = spec(case);
    let weights = floats(&case["weight"]);
    let grads = if grads.is_null() { weights.clone() } else { floats(grads) };
    let mask = &mask(&spec, &case["mask"]);
    let layer = Layer { name: "fc", weights: &weights, grads: &grads, mask, sparsity, ablate: true };
    update_layer(method, alpha, &layer, STREAM).unwrap().mask
}

/// Whether all positions of `kept` are active.
fn has(mask: &Mask, kept: &Value) -> bool {
    mask.to_bytes().iter().zip(bytes(kept)).all(|(active, kept)| kept == 0 || *active == 1)
}

/// JaxPruner's RigL, and what its SET keeps.
#[test]
fn updates_are_jaxpruners() {
    for case in cases("dynamic") {
        let alpha = number(&case["drop_fraction"]);
        match case["method"].as_str().unwrap() {
            "rigl" => {
                let mask = update(&Rigl, &case, alpha, 0.5, &case["grad"]);
                assert_eq!(mask.to_bytes(), bytes(&case["mask_after"]));
            }
            _ => {
                let mask = update(&Set, &case, alpha, 0.5, &Value::Null);
                assert!(has(&mask, &case["kept"]));
                assert_eq!(mask.nnz(), bytes(&case["mask"]).iter().filter(|bit| **bit == 1).count());
            }
        }
    }
}

/// What a mutation of the authors' MEST keeps.
#[test]
fn mest_keeps_what_its_authors_keep() {
    for case in cases("mest") {
        let count = |key: &str| bytes(&case[key]).iter().filter(|bit| **bit == 1).count();
        let (active, kept) = (count("mask"), count("kept"));
        let alpha = (active - kept) as f64 / active as f64 + 1e-9;
        let mask = update(&Mest { lambda: number(&case["lambda"]) }, &case, alpha, 0.5, &case["grad"]);
        assert!(has(&mask, &case["kept"]) && mask.nnz() == active, "{case}");
    }
}

/// SNIP's mask of one batch.
#[test]
fn sensitivities_are_snips() {
    for case in cases("snip") {
        let layers = case["layers"].as_array().unwrap();
        let specs: Vec<LayerSpec> = layers.iter().map(spec).collect();
        let products: Vec<Vec<f32>> = layers.iter().map(products).collect();
        let target = (number(&case["sparsity"]), Distribution::Uniform);
        let masks =
            initial_masks(&StaticMask, &specs, &products, InitialMask::Sensitivity, target, 0).unwrap();
        for ((_, mask), layer) in masks.iter().zip(layers) {
            assert_eq!(mask.to_bytes(), bytes(&layer["mask"]), "{}", layer["name"]);
        }
    }
}

/// The masks that SR-STE's authors project their weights with.
#[test]
fn projections_are_those_of_sr_ste() {
    let mut steps = 0;
    for case in cases("sr_ste").iter().filter(|case| case["layer"] == "linear") {
        let [n, m] = ["n", "m"].map(|key| case[key].as_u64().unwrap() as usize);
        let (method, spec) = (SrSte { nm: NmPattern::new(n, m).unwrap(), ..SrSte::default() }, spec(case));
        assert_eq!(method.inactive_decay(0.5), number(&case["decay"]));
        let mut weights = floats(&case["weight"]);
        for step in case["steps"].as_array().unwrap() {
            let mask = Mask::empty(spec.neurons(), spec.dense_fan_in());
            let layer = Layer {
                name: "fc",
                weights: &weights,
                grads: &weights,
                mask: &mask,
                sparsity: 0.5,
                ablate: true,
            };
            let new = update_layer(&method, 0.0, &layer, STREAM).unwrap().mask;
            assert_eq!(new.to_bytes(), bytes(&step["mask"]));
            weights = floats(&step["weight_after"]);
            steps += 1;
        }
    }
    assert_eq!(steps, 7);
}

/// JaxPruner's straight-through estimators see the same weights.
#[test]
fn projections_are_jaxpruners() {
    for case in cases("ste") {
        let spec = spec(&case);
        let mut weights = floats(&case["weight"]);
        for step in case["steps"].as_array().unwrap() {
            let mask = match case["pattern"].as_str().unwrap() {
                "2:4" => NmPattern::TWO_OF_FOUR.largest(&spec, &weights),
                _ => initial_mask_by_magnitude(&StaticMask, &spec, &weights, number(&case["sparsity"])),
            };
            let mut seen = weights.clone();
            mask.unwrap().apply(&mut seen);
            assert_eq!(seen, floats(&step["forward_weight"]));
            weights = floats(&step["weight_after"]);
        }
    }
}

/// The sets A and B of torch_topkast.
#[test]
fn sets_are_those_of_top_kast() {
    for case in cases("top_kast") {
        let [forward, backward] = ["forward_sparsity", "backward_sparsity"].map(|key| number(&case[key]));
        let method = TopKast { backward: (1.0 - backward) / (1.0 - forward), ..TopKast::default() };
        for step in case["steps"].as_array().unwrap() {
            let (spec, weights) = (spec(&case), floats(&step["weight"]));
            let before = &Mask::empty(spec.neurons(), spec.dense_fan_in());
            let layer = Layer {
                name: "fc",
                weights: &weights,
                grads: &weights,
                mask: before,
                sparsity: forward,
                ablate: true,
            };
            let mask = update_layer(&method, 0.0, &layer, STREAM).unwrap().mask;
            assert_eq!(mask.to_bytes(), bytes(&step["forward_mask"]));
            let positions = method.gradient_positions(&mask, forward, &|| weights.clone());
            let GradientPositions::Superset(superset) = positions else { panic!("{positions:?}") };
            assert_eq!(superset.to_bytes(), bytes(&step["backward_mask"]));
        }
    }
}

/// Shares and growth of the authors' SNFS. They round numbers of weights up where we round down, and let the total drift: shares are
/// equal, and counts but for one weight a layer.
#[test]
fn shares_are_those_of_snfs() {
    let all = cases("snfs");
    for case in all.iter().filter(|case| ["plain", "shares differ"].contains(&case["case"].as_str().unwrap()))
    {
        let layers = case["steps"][0]["layers"].as_array().unwrap();
        let share = |layer: &Value| {
            let mask = mask(&spec(layer), &layer["mask"]);
            let active = mask.to_bytes();
            let momentum: Vec<f32> = floats(&layer["momentum"])
                .into_iter()
                .zip(active)
                .filter(|(_, a)| *a == 1)
                .map(|(m, _)| m)
                .collect();
            let share = LayerShare::new(&mask, &momentum);
            LayerShare { kept: share.active - number(&layer["removed"]) as usize, ..share }
        };
        let shares: Vec<LayerShare> = layers.iter().map(share).collect();
        let total: f64 = shares.iter().map(|share| share.importance).sum();
        let weights = Snfs.redistribute(&shares).unwrap();
        for ((layer, share), weights) in layers.iter().zip(&shares).zip(weights) {
            assert!((share.importance / total - number(&layer["share"])).abs() < 1e-6);
            let theirs = number(&layer["regrowth"]).floor() as usize;
            assert!((weights - share.kept).abs_diff(theirs) <= 1, "{weights} instead of {theirs}");
            // With their counts, the masks are theirs.
            let count = share.kept + theirs;
            let sparsity = sparsity_core::sparsity_of_count(share.positions, count);
            let alpha = (share.active - share.kept) as f64 / share.active as f64 + 1e-9;
            let mask = update(&Snfs, layer, alpha, sparsity, &layer["momentum"]);
            assert_eq!(mask.to_bytes(), bytes(&layer["mask_after"]));
        }
    }
}
