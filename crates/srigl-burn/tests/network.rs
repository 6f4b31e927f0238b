//! Random networks of all operations on Burn's devices, against the engine for CPUs.

mod devices;
#[path = "../../models/tests/filled/mod.rs"]
mod filled;
#[path = "../../condensed/tests/random/mod.rs"]
mod random;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use condensed::{Engine, Network, Shape};
use filled::{Kind, fill, masks};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use srigl_burn::{CondensedNetwork, lower};
use srigl_models::{Classifier, ModelInfo, ModelSpec, WithModel, torchvision_name};

/// Twice the sample, as the engine has it and as Burn on a device has it.
fn both(network: &Network, sample: &[f32], dtype: FloatDType, device: &Device) -> [Vec<f32>; 2] {
    let shape = network.input_shape();
    let input = [sample, sample].concat();
    let mut engine = Engine::new(network).unwrap();
    let mut want = vec![f32::NAN; 2 * engine.output_shape().len()];
    engine.run(2, &input, &mut want).unwrap();

    let images = TensorData::new(input, [2, shape.features, shape.height, shape.width]);
    let burn = CondensedNetwork::new(network, dtype, device).unwrap();
    let got = burn.forward(Tensor::from_data(images, device));
    assert_eq!(got.dims(), [2, want.len() / 2]);
    assert_eq!(got.dtype(), dtype.into());
    [got.into_data().convert::<f32>().try_into_vec().unwrap(), want]
}

/// Relative, but for results near 0.
fn difference([got, want]: &[Vec<f32>; 2]) -> f32 {
    let norm = want.iter().map(|w| w * w).sum::<f32>().sqrt();
    let error = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f32>().sqrt();
    error / (0.01 + norm)
}

/// Matrix products in f32 may round their inputs to TF32 on CUDA, which has 10 bits.
fn tolerance(device: &Device) -> f32 {
    if format!("{device:?}").contains("Cuda") { 1e-2 } else { 1e-3 }
}

#[test]
fn networks_agree_with_the_engine() {
    for device in devices::all() {
        for seed in 0..150 {
            let (network, sample) = random::network(seed);
            for network in [network.clone(), network.fold().unwrap()] {
                let results = both(&network, &sample, FloatDType::F32, &device);
                let wrong = difference(&results);
                assert!(wrong <= tolerance(&device), "{device:?}, seed {seed}: {wrong}: {network:?}");
            }
        }
    }
}

/// A model with random numbers; three in ten weights are active.
struct Random<'a> {
    spec: ModelSpec,
    rng: &'a mut SmallRng,
}

impl WithModel for Random<'_> {
    type Output = Network;

    fn run<M: Classifier>(self, model: M) -> Network {
        let rng = self.rng;
        let model = fill(model, &Device::flex(), |_, kind, dims| {
            let size: usize = dims.iter().product();
            let scale = match kind {
                Kind::Weight => (10.0 / (size / dims[0]) as f32).sqrt(),
                Kind::NormScale | Kind::Variance => 0.3,
                _ => 1.0,
            };
            let shift = if matches!(kind, Kind::NormScale | Kind::Variance) { 1.0 } else { 0.0 };
            (0..size).map(|_| shift + scale * rng.random_range(-1.0..1.0)).collect()
        });
        let masks = masks(&model, |_, size| (0..size).map(|_| u8::from(rng.random_bool(0.3))).collect());
        let [features, height, width] = self.spec.images;
        lower(&model, Shape { features, height, width }, masks, torchvision_name).unwrap()
    }
}

#[test]
fn models_agree_with_the_engine() {
    let rng = &mut SmallRng::seed_from_u64(1);
    for name in ["mnist-cnn", "resnet8", "vit-tiny"] {
        let spec = ModelInfo::named(name).unwrap().usual();
        let network = spec.with(&Device::flex(), Random { spec, rng: &mut *rng }).unwrap().fold().unwrap();
        let sample: Vec<f32> =
            (0..network.input_shape().len()).map(|_| rng.random_range(-1.0..1.0)).collect();
        for device in devices::all() {
            let results = both(&network, &sample, FloatDType::F32, &device);
            let size = results[1].iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!(size > 0.1, "{name}: results near 0 prove nothing");
            let wrong = difference(&results);
            assert!(wrong <= tolerance(&device), "{device:?}, {name}: {wrong}");
        }
    }
}

#[test]
fn networks_run_in_other_float_types() {
    for device in devices::all() {
        for dtype in [FloatDType::F16, FloatDType::BF16].into_iter().filter(|t| device.supports_dtype(*t)) {
            for seed in [2, 3, 5, 7] {
                let (network, sample) = random::network(seed);
                let wrong = difference(&both(&network.fold().unwrap(), &sample, dtype, &device));
                assert!(wrong <= 0.1, "{device:?} {dtype:?}, seed {seed}: {wrong}");
            }
        }
    }
}

#[test]
fn batches_may_be_empty() {
    let (network, _) = random::network(1);
    let input = network.input_shape();
    let burn = CondensedNetwork::new(&network, FloatDType::F32, &Device::flex()).unwrap();
    let images = Tensor::zeros([0, input.features, input.height, input.width], &Device::flex());
    assert_eq!(burn.forward(images).dims(), [0, network.output_shape().len()]);
}

#[test]
#[should_panic(expected = "the images' shape is that of the network's input")]
fn images_of_another_shape_are_refused() {
    let (network, _) = random::network(1);
    let burn = CondensedNetwork::new(&network, FloatDType::F32, &Device::flex()).unwrap();
    burn.forward(Tensor::zeros([1, 1, 99, 1], &Device::flex()));
}
