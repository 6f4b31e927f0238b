//! Networks lowered to condensed form: against `forward`, and against PyTorch's logits (`fixtures/logits.py`).

mod filled;
#[path = "../../condensed/tests/reference/mod.rs"]
mod reference;

use burn::tensor::{Device, Tensor, TensorData};
use condensed::{Engine, Network, Op, Shape, Weight};
use filled::{Kind, fill, masks};
use srigl_burn::{Mask, lower};
use srigl_models::{Classifier, Error, MODELS, ModelInfo, ModelSpec, WithModel, torchvision_name};

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

/// A model with the numbers of `fixtures/logits.py`, except that values which the masks hide are not zero; what
/// `forward` gives without masks, and the condensed network.
struct Lowered {
    network: Network,
    /// Logits of Burn, unless there are masks.
    forward: Option<Vec<f32>>,
}

struct Work {
    spec: ModelSpec,
    sparse: bool,
}

fn image(spec: &ModelSpec) -> Vec<f32> {
    uniform("image", spec.images.iter().product()).map(|u| u as f32).collect()
}

impl WithModel for Work {
    type Output = Lowered;

    fn run<M: Classifier>(self, model: M) -> Lowered {
        let device = Device::flex();
        let Self { spec, sparse } = self;
        let model = fill(model, &device, |name, kind, dims| {
            let size = dims.iter().product::<usize>();
            let fan_in = size / dims[0];
            let value = |u: f64| match kind {
                Kind::Weight => u * (if sparse { 24.0_f64 } else { 6.0 } / fan_in as f64).sqrt(),
                Kind::Bias | Kind::NormShift => 0.1 * u,
                Kind::NormScale => 1.0 + 0.3 * u,
                Kind::Variance => 1.0 + 0.5 * u,
                Kind::Embedding => u,
            };
            uniform(name, size).map(|u| value(u) as f32).collect()
        });
        let masks = masks(&model, |name, size| {
            uniform(&format!("{name} active"), size).map(|u| u8::from(!sparse || u < -0.5)).collect()
        });
        let [features, height, width] = spec.images;
        let network = lower(&model, Shape { features, height, width }, masks, torchvision_name).unwrap();
        let forward = (!sparse).then(|| {
            let images = TensorData::new(image(&spec), [1, features, height, width]);
            let logits = model.forward(Tensor::from_data(images, &device));
            logits.into_data().try_into_vec().unwrap()
        });
        Lowered { network, forward }
    }
}

fn lowered(name: &str, images: [usize; 3], sparse: bool) -> Lowered {
    let spec = ModelSpec { images, classes: 10, ..ModelInfo::named(name).unwrap().usual() };
    spec.with(&Device::flex(), Work { spec, sparse }).unwrap()
}

/// Images that the large networks take in a moment.
fn small(info: &ModelInfo) -> [usize; 3] {
    let [channels, height, width] = info.images;
    [channels, height.min(64), width.min(64)]
}

fn distance(got: &[f32], want: &[f64]) -> f64 {
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!(norm > 1e-3, "results near 0 prove nothing");
    got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum::<f64>().sqrt() / norm
}

/// The one description of a network is right in both of its halves.
#[test]
fn every_model_computes_condensed_what_it_computes_in_burn() {
    for info in MODELS {
        let images = small(info);
        let Lowered { network, forward } = lowered(info.name, images, false);
        let want: Vec<f64> = forward.unwrap().iter().map(|v| f64::from(*v)).collect();
        let spec = ModelSpec { images, ..info.usual() };
        for (network, what) in [(network.clone(), "as lowered"), (network.fold().unwrap(), "folded")] {
            let mut got = vec![0.0; want.len()];
            Engine::new(&network).unwrap().run(1, &image(&spec), &mut got).unwrap();
            let error = distance(&got, &want);
            println!("{}, {what}: {error:.1e}", info.name);
            assert!(error < 1e-3, "{}, {what}: {error}", info.name);
        }
    }
}

#[derive(serde::Deserialize)]
struct Run {
    name: String,
    image: [usize; 3],
    sparse: bool,
    logits: Vec<f64>,
}

fn weights(network: &Network) -> impl Iterator<Item = &Weight> {
    network.nodes().iter().filter_map(|node| match &node.op {
        Op::Linear(layer) => Some(&layer.weight),
        Op::Conv2d(layer) => Some(&layer.weight),
        _ => None,
    })
}

#[test]
fn logits_are_those_of_pytorch() {
    let runs: Vec<Run> = serde_json::from_str(include_str!("fixtures/logits.json")).unwrap();
    for Run { name, image: images, sparse, logits: want } in runs {
        let Lowered { network, .. } = lowered(&name, images, sparse);
        assert!(weights(&network).all(|weight| matches!(weight, Weight::Condensed(_)) == sparse));
        let pixels: Vec<f32> = uniform("image", images.iter().product()).map(|u| u as f32).collect();
        let got = reference::run(&network, &pixels);
        assert_eq!(got.len(), want.len(), "{name}");
        let error = distance(&got, &want);
        println!("{name}, sparse {sparse}: relative error {error:.1e}");
        // Squeezing and many thin layers amplify the rounding of weights to f32.
        let tolerance = if name.starts_with("mobilenet") { 1e-5 } else { 1e-6 };
        assert!(error <= tolerance, "{name}, sparse {sparse}: {got:?} instead of {want:?}");
    }
}

fn shape_of(network: &Network, node: &str) -> [usize; 3] {
    let position =
        network.nodes().iter().position(|n| n.name == node).unwrap_or_else(|| panic!("no `{node}`"));
    let Shape { features, height, width } = network.shapes()[position];
    [features, height, width]
}

#[test]
fn shapes_are_those_of_the_papers() {
    let resnet = lowered("resnet18", [3, 224, 224], true).network;
    assert_eq!(shape_of(&resnet, "input"), [3, 224, 224]);
    assert_eq!(shape_of(&resnet, "conv1"), [64, 112, 112]);
    assert_eq!(shape_of(&resnet, "maxpool"), [64, 56, 56]);
    assert_eq!(shape_of(&resnet, "layer2.0.downsample.1"), [128, 28, 28]);
    assert_eq!(shape_of(&resnet, "layer4.1.add"), [512, 7, 7]);
    assert_eq!(shape_of(&resnet, "fc"), [10, 1, 1]);

    let resnet = lowered("resnet50", [3, 64, 96], true).network;
    assert_eq!(shape_of(&resnet, "layer2.0.conv1"), [128, 16, 24]);
    assert_eq!(shape_of(&resnet, "layer2.0.conv2"), [128, 8, 12]);
    assert_eq!(shape_of(&resnet, "layer4.2.conv3"), [2048, 2, 3]);

    let vit = lowered("vit-tiny", [3, 32, 32], true).network;
    assert_eq!(shape_of(&vit, "conv_proj"), [64, 4, 4]);
    assert_eq!(shape_of(&vit, "encoder.layers.encoder_layer_1.self_attention.in_proj"), [192, 1, 17]);
    assert_eq!(shape_of(&vit, "encoder.layers.encoder_layer_1.mlp.0"), [128, 1, 17]);

    let mobilenet = lowered("mobilenet-v3-small", [3, 64, 64], true).network;
    assert_eq!(shape_of(&mobilenet, "features.1.block.1.scale"), [16, 16, 16]);
    assert_eq!(shape_of(&mobilenet, "features.3.add"), [24, 8, 8]);
}

/// What the engine needs in order to add a shortcut while it writes the other branch's last layer.
#[test]
fn shortcuts_come_before_the_last_layer_beside_them() {
    for (name, shortcuts) in [("resnet8", 3), ("resnet18", 8), ("resnet50", 16), ("vit-tiny", 4)] {
        let network = lowered(name, small(ModelInfo::named(name).unwrap()), true).network;
        let nodes = network.nodes();
        let adds: Vec<_> = nodes.iter().filter(|node| node.op == Op::Add).collect();
        assert_eq!(adds.len(), shortcuts, "{name}");
        for add in adds {
            let [branch, shortcut] = add.inputs[..] else { panic!("{add:?}") };
            // The branch ends in a layer, perhaps with its normalisation.
            let last =
                if matches!(nodes[branch].op, Op::Affine(_)) { nodes[branch].inputs[0] } else { branch };
            assert!(matches!(nodes[last].op, Op::Conv2d(_) | Op::Linear(_)));
            assert!(shortcut < last, "{name}: `{}`", add.name);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |name: &str, images: [usize; 3], part: &str| {
        let spec = ModelSpec { images, ..ModelInfo::named(name).unwrap().usual() };
        let message = spec.check().unwrap_err().to_string();
        assert!(message.contains(part), "{part} not in: {message}");
    };
    refused("vit-tiny", [3, 32, 36], "patches of 8×8, which do not fill 32×36");
    refused("mnist-cnn", [1, 28, 3], "takes images of 28×28 pixels, not 28×3");
    refused("resnet8", [1, 0, 28], "at least 1");
    refused("resnet8", [1, 28, usize::MAX], "at most 65536");
    let spec = ModelSpec { width: Some(30), ..ModelInfo::named("vit-tiny").unwrap().usual() };
    assert!(spec.check().unwrap_err().to_string().contains("4 heads, which do not divide --width 30"));
    let spec = ModelSpec { patch: Some(4), ..ModelInfo::named("mlp").unwrap().usual() };
    assert_eq!(spec.check(), Err(Error::NoSize { model: "mlp", size: "patch" }));
    let unknown = ModelInfo::named("alexnet").unwrap_err().to_string();
    assert!(MODELS.iter().all(|info| unknown.contains(info.name)), "{unknown}");
}

#[test]
fn sizes_are_those_of_the_tensors() {
    let shapes = [
        ("conv_proj.weight", vec![96, 1, 4, 4]),
        ("class_token", vec![1, 1, 96]),
        ("heads.head.bias", vec![7]),
    ];
    let of = |name: &str| shapes.iter().find(|(known, _)| *known == name).map(|(_, dims)| dims.clone());
    let spec = ModelInfo::named("vit-tiny").unwrap().of_tensors(of);
    assert_eq!((spec.images[0], spec.classes, spec.width, spec.patch), (1, 7, Some(96), Some(4)));
}

/// Weights that are not finite, and masks of another shape, are errors that name the layer.
#[test]
fn values_that_make_no_network_are_refused() {
    use burn::nn::LinearConfig;
    let device = Device::flex();
    let mut net = srigl_models::MlpConfig::new().init(&device);
    let mut fc2 = LinearConfig::new(300, 100).init(&device);
    fc2.weight = fc2.weight.map(|weight| weight.mul_scalar(f32::INFINITY));
    net.fc2 = fc2.into();
    let shape = Shape { features: 1, height: 28, width: 28 };
    let full = |name: &str, n, m, hole: usize| {
        let mut bytes = vec![1; n * m];
        bytes[hole] = 0;
        (name.to_string(), Mask::from_bytes(n, m, &bytes).unwrap())
    };
    for masks in [vec![], vec![full("fc2", 100, 300, 5)]] {
        let error = lower(&net, shape, masks, torchvision_name).unwrap_err().to_string();
        assert!(error.starts_with("layer `fc2`: "), "{error}");
    }
    let error = lower(&net, shape, [full("fc1", 300, 783, 0)], torchvision_name).unwrap_err().to_string();
    assert_eq!(error, "layer `fc1`: condensed weight: mask [300, 783] for weights [300, 784]");
}
