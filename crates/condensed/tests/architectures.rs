//! Architectures: their tensors, graphs and errors, and their logits against PyTorch's (`fixtures/logits.py`).

mod reference;

use condensed::architectures::{NamedTensor, TensorKind, TensorSpec, build, mask_name, names, specs};
use condensed::{Error, Network, Op, Shape, Weight};
use std::collections::{BTreeMap, HashSet};

/// `count` numbers in [-1, 1) from a hash of a name and the position, as in `fixtures/logits.py`.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed =
        name.bytes().fold(0x811C_9DC5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..count as u32).map(move |i| {
        let mut x = i.wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        f64::from(x >> 8) / f64::from(1 << 23) - 1.0
    })
}

/// The tensor of `fixtures/logits.py`, except that values which the mask hides are not zero.
fn tensor(spec: &TensorSpec, sparse: bool) -> NamedTensor {
    let size = spec.shape.iter().product::<usize>();
    let fan_in = size / spec.shape[0];
    let value = |u: f64| match spec.kind {
        TensorKind::Weight => u * ((if sparse { 24.0 } else { 6.0 }) / fan_in as f64).sqrt(),
        TensorKind::Bias | TensorKind::NormShift | TensorKind::RunningMean => 0.1 * u,
        TensorKind::NormScale => 1.0 + 0.3 * u,
        TensorKind::RunningVariance => 1.0 + 0.5 * u,
        TensorKind::Embedding => u,
    };
    NamedTensor {
        shape: spec.shape.clone(),
        values: uniform(&spec.name, size).map(|u| value(u) as f32).collect(),
        mask: (sparse && spec.kind == TensorKind::Weight)
            .then(|| uniform(&format!("{} active", spec.name), size).map(|u| u < -0.5).collect()),
    }
}

fn tensors(name: &str, sparse: bool) -> BTreeMap<String, NamedTensor> {
    specs(name, 10).unwrap().iter().map(|spec| (spec.name.clone(), tensor(spec, sparse))).collect()
}

fn weights(network: &Network) -> impl Iterator<Item = &Weight> {
    network.nodes.iter().filter_map(|node| match &node.op {
        Op::Linear { weight, .. } | Op::Conv2d { weight, .. } => Some(weight),
        _ => None,
    })
}

#[derive(serde::Deserialize)]
struct Run {
    name: String,
    image: [usize; 3],
    sparse: bool,
    logits: Vec<f64>,
}

#[test]
fn logits_are_those_of_pytorch() {
    let runs: Vec<Run> = serde_json::from_str(include_str!("fixtures/logits.json")).unwrap();
    for Run { name, image, sparse, logits: want } in runs {
        let network = build(&name, tensors(&name, sparse), Some([image[1], image[2]])).unwrap();
        assert!(weights(&network).all(|weight| matches!(weight, Weight::Condensed(_)) == sparse));
        let pixels: Vec<f32> = uniform("image", image.iter().product()).map(|u| u as f32).collect();
        let got = reference::run(&network, &pixels);
        assert_eq!(got.len(), want.len(), "{name}");
        let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
        let distance = got.iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum::<f64>().sqrt();
        println!("{name}, sparse {sparse}: relative error {:.1e}", distance / norm);
        // Squeezing and many thin layers amplify the rounding of weights to f32.
        let tolerance = if name.starts_with("mobilenet") { 1e-5 } else { 1e-6 };
        assert!(distance <= tolerance * norm, "{name}, sparse {sparse}: {got:?} instead of {want:?}");
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let count = |name, classes| -> usize {
        let trained =
            |spec: &&TensorSpec| !matches!(spec.kind, TensorKind::RunningMean | TensorKind::RunningVariance);
        let specs = specs(name, classes).unwrap();
        specs.iter().filter(trained).map(|spec| spec.shape.iter().product::<usize>()).sum()
    };
    // Those of `crates/models`, and torchvision's.
    assert_eq!(count("mlp", 10), 266_610);
    assert_eq!(count("mnist-cnn", 10), 1_199_882);
    assert_eq!(count("resnet18", 1000), 11_689_512);
    assert_eq!(count("resnet50", 1000), 25_557_032);
    assert_eq!(count("vit-b-16", 1000), 86_567_656);
    assert_eq!(count("mobilenet-v3-large", 1000), 5_483_032);
    assert_eq!(count("mobilenet-v3-small", 1000), 2_542_856);
    assert_eq!(count("wrn-22-2", 10), 1_079_642);
}

#[test]
fn specs_are_what_build_asks_for() {
    for name in names() {
        let specs = specs(name, 7).unwrap();
        assert_eq!(specs.iter().map(|s| &s.name).collect::<HashSet<_>>().len(), specs.len(), "{name}");
        for spec in &specs {
            // Batch normalisations have a mean beside the weight.
            let mean = spec.name.replace("weight", "running_mean");
            let normalisation = specs.iter().any(|other| other.name == mean) || spec.name.contains("ln");
            let weight = spec.name.ends_with("weight") && !normalisation;
            assert_eq!(spec.kind == TensorKind::Weight, weight, "{name}: {spec:?}");
        }
        if *name == "vit-b-16" || *name == "resnet50" {
            continue; // large; `vit-tiny` and `resnet18` are the same code
        }
        let zeros = specs.iter().map(|spec| {
            let values = vec![0.0; spec.shape.iter().product()];
            (spec.name.clone(), NamedTensor { shape: spec.shape.clone(), values, mask: None })
        });
        let network = build(name, zeros.collect(), None).unwrap();
        let output = *network.shapes().unwrap().last().unwrap();
        assert_eq!(output, Shape { features: 7, height: 1, width: 1 }, "{name}");
    }
}

fn shape_of(network: &Network, node: &str) -> [usize; 3] {
    let position = network.nodes.iter().position(|n| n.name == node).unwrap_or_else(|| panic!("no `{node}`"));
    let Shape { features, height, width } = network.shapes().unwrap()[position];
    [features, height, width]
}

#[test]
fn shapes_are_those_of_the_papers() {
    let resnet = build("resnet18", tensors("resnet18", false), None).unwrap();
    assert_eq!(shape_of(&resnet, "input"), [3, 224, 224]);
    assert_eq!(shape_of(&resnet, "conv1"), [64, 112, 112]);
    assert_eq!(shape_of(&resnet, "maxpool"), [64, 56, 56]);
    assert_eq!(shape_of(&resnet, "layer2.0.downsample.1"), [128, 28, 28]);
    assert_eq!(shape_of(&resnet, "layer4.1.add"), [512, 7, 7]);
    assert_eq!(shape_of(&resnet, "fc"), [10, 1, 1]);

    let resnet = build("resnet50", tensors("resnet50", true), Some([64, 96])).unwrap();
    assert_eq!(shape_of(&resnet, "layer2.0.conv1"), [128, 16, 24]);
    assert_eq!(shape_of(&resnet, "layer2.0.conv2"), [128, 8, 12]);
    assert_eq!(shape_of(&resnet, "layer4.2.conv3"), [2048, 2, 3]);

    let vit = build("vit-tiny", tensors("vit-tiny", false), None).unwrap();
    assert_eq!(shape_of(&vit, "conv_proj"), [64, 4, 4]);
    assert_eq!(shape_of(&vit, "encoder.layers.encoder_layer_1.self_attention.in_proj"), [192, 1, 17]);
    assert_eq!(shape_of(&vit, "encoder.layers.encoder_layer_1.mlp.0"), [128, 1, 17]);
}

/// What the engine needs in order to add a shortcut while it writes the other branch's last layer.
#[test]
fn shortcuts_come_before_the_last_layer_beside_them() {
    for (name, shortcuts) in [("resnet8", 3), ("resnet18", 8), ("resnet50", 16), ("vit-tiny", 4)] {
        let network = build(name, tensors(name, true), None).unwrap();
        let adds: Vec<_> = network.nodes.iter().filter(|node| node.op == Op::Add).collect();
        assert_eq!(adds.len(), shortcuts, "{name}");
        for add in adds {
            let [branch, shortcut] = add.inputs[..] else { panic!("{add:?}") };
            // The branch ends in a layer, perhaps with its normalisation.
            let last = match network.nodes[branch].op {
                Op::Affine { .. } => network.nodes[branch].inputs[0],
                _ => branch,
            };
            assert!(matches!(network.nodes[last].op, Op::Conv2d { .. } | Op::Linear { .. }));
            assert!(shortcut < last, "{name}: `{}`", add.name);
        }
    }
}

fn message(result: Result<Network, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn all_that_is_wrong_with_tensors_is_told() {
    let mut broken = tensors("resnet8", true);
    broken.remove("conv1.weight");
    broken.insert("conv1.weigth".into(), tensor(&specs("mlp", 10).unwrap()[0], false));
    broken.get_mut("bn1.bias").unwrap().shape = vec![4, 4];
    broken.get_mut("layer1.bn2.weight").unwrap().mask = Some(vec![true; 16]);
    broken.get_mut("layer1.conv1.weight").unwrap().mask.as_mut().unwrap().pop();
    broken.get_mut("layer2.downsample.0.weight").unwrap().values.pop();
    let active = broken.get_mut("fc.weight").unwrap();
    let first = active.mask.as_ref().unwrap().iter().position(|&bit| bit).unwrap();
    active.values[first] = f32::NAN;
    let message = message(build("resnet8", broken, None));
    for part in [
        "`resnet8`",
        "`conv1.weight` is missing",
        "`conv1.weigth` is unexpected",
        "`bn1.bias` has shape [4, 4] instead of [16]",
        "`layer1.bn2.weight` has a mask",
        "`layer1.conv1.weight` cannot be condensed (condensed weight: 2304 weights and 2303 mask bits",
        "`layer2.downsample.0.weight` has 511 values for the shape [32, 16, 1, 1]",
        "`fc.weight` cannot be condensed (condensed weight: value NaN)",
    ] {
        assert!(message.contains(part), "{part} not in: {message}");
    }
    assert_eq!(message.matches('`').count(), 2 * (1 + 1 + 7), "nothing else is wrong: {message}");
}

#[test]
fn a_missing_head_is_no_more_than_missing() {
    let mut broken = tensors("mlp", false);
    broken.remove("fc3.weight");
    let only = message(build("mlp", broken.clone(), None));
    assert_eq!(only, "tensor `fc3.weight`: the tensors do not fit `mlp`: `fc3.weight` is missing");
    broken.remove("fc3.bias");
    let both = message(build("mlp", broken, None));
    assert!(both.ends_with(": `fc3.weight` is missing, `fc3.bias` is missing"), "{both}");
}

#[test]
fn batch_counters_are_ignored() {
    let mut all = tensors("resnet8", false);
    let counter = NamedTensor { shape: vec![], values: vec![3.0], mask: None };
    all.insert("bn1.num_batches_tracked".into(), counter);
    assert_eq!(
        build("resnet8", all, None).unwrap(),
        build("resnet8", tensors("resnet8", false), None).unwrap()
    );
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let refused = |name: &str, image, part: &str| {
        let message = message(build(name, tensors(name, false), Some(image)));
        assert!(message.contains(part), "{part} not in: {message}");
    };
    refused("vit-tiny", [32, 40], "`encoder.pos_embedding` has shape [1, 17, 64] instead of [1, 21, 64]");
    refused("vit-tiny", [32, 36], "layer `conv_proj`: patches of 8 × 8 do not fill images of 32 × 36");
    refused("mnist-cnn", [28, 3], "layer `conv2`");
    refused("mlp", [28, 30], "`fc1.weight` has shape [300, 784] instead of [300, 840]");
    refused("resnet8", [0, 28], "images of 0 × 28");
    refused("resnet8", [28, usize::MAX], "sides must be 1 to 65536");
}

#[test]
fn values_that_make_no_network_are_refused() {
    let mut broken = tensors("resnet8", false);
    broken.get_mut("layer1.bn1.running_var").unwrap().values[3] = -1.0;
    assert!(message(build("resnet8", broken, None)).starts_with("layer `layer1.bn1`"));
    let empty = specs("mlp", 10).unwrap().into_iter().map(|mut spec| {
        if spec.name.starts_with("fc3") {
            spec.shape[0] = 0;
        }
        let values = vec![0.0; spec.shape.iter().product()];
        (spec.name, NamedTensor { shape: spec.shape, values, mask: None })
    });
    assert!(message(build("mlp", empty.collect(), None)).contains("fc3"));
}

#[test]
fn unknown_names_are_answered_with_the_known() {
    for message in
        [message(build("alexnet", BTreeMap::new(), None)), specs("alexnet", 10).unwrap_err().to_string()]
    {
        for name in names() {
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
    }
    assert!(specs("mlp", 0).is_err());
}

#[test]
fn masks_have_the_names_that_srigl_writes() {
    assert_eq!(mask_name("fc1.weight"), "fc1.mask");
    assert_eq!(mask_name("weight"), "weight.mask");
    assert_eq!(mask_name("self_attention.in_proj_weight"), "self_attention.in_proj_weight.mask");
}
