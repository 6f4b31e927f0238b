//! One training step against PyTorch: loss, gradients of the first and the last layer, and the running statistics of
//! batch normalisation (`fixtures/training_step.py`).

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use srigl_models::{Classifier, ResNetConfig, VitConfig, torchvision_name};
use std::collections::HashMap;

const BATCH: usize = 8;
/// Burn estimates running variances without Bessel's correction, PyTorch with it; images this large leave 128 values a
/// channel in the last stage, and the difference far below the tolerance.
const SIDE: usize = 128;

/// `count` numbers in [-1, 1) from a hash of a name and the position, as in the fixture.
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

/// Where a visitor is, and what torchvision calls the parameter there.
#[derive(Default)]
struct Place(Vec<(String, String)>);

impl Place {
    fn field(&self) -> &str {
        &self.0.last().expect("in a module").0
    }

    fn is_linear_weight(&self) -> bool {
        self.field() == "weight"
            && self.0.last().is_some_and(|(_, container)| container == "Struct:SparseLinear")
    }

    fn name(&self) -> String {
        let mut fields: Vec<&str> = self.0.iter().map(|(field, _)| field.as_str()).collect();
        let last = fields.last_mut().expect("in a module");
        *last = match *last {
            "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        torchvision_name(&fields.join("."))
    }
}

/// Gives each parameter the fixture's value.
#[derive(Default)]
struct Fill(Place);

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.0.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.0.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let linear = self.0.is_linear_weight();
        let mut dims = param.dims();
        if linear {
            dims.reverse();
        }
        let size: usize = dims.iter().product();
        let bound = (6.0 / (size / dims[0]) as f64).sqrt();
        let value = |u: f64| match self.0.field() {
            "running_var" => 1.0 + 0.5 * u,
            "gamma" => 1.0 + 0.3 * u,
            "class_token" | "pos_embedding" => u,
            "weight" => u * bound,
            _ => 0.1 * u,
        };
        let values: Vec<f32> = uniform(&self.0.name(), size).map(|u| value(u) as f32).collect();
        param.map(|old| {
            let tensor = Tensor::<D>::from_data(TensorData::new(values, dims), &old.device());
            let tensor = if linear { tensor.swap_dims(0, 1) } else { tensor };
            tensor.detach().set_require_grad(old.is_require_grad())
        })
    }
}

/// Gradients and running statistics by torchvision's name, in PyTorch's layout.
struct Read<'a> {
    place: Place,
    grads: &'a GradientsParams,
    gradients: HashMap<String, Vec<f32>>,
    statistics: HashMap<String, Vec<f32>>,
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.0.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.place.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            let grad = if self.place.is_linear_weight() { grad.swap_dims(0, 1) } else { grad };
            self.gradients.insert(self.place.name(), grad.into_data().try_into_vec().unwrap());
        }
        if self.place.field().starts_with("running") {
            self.statistics.insert(self.place.name(), param.val().into_data().try_into_vec().unwrap());
        }
    }
}

#[derive(serde::Deserialize)]
struct Told {
    name: String,
    first: Vec<f64>,
    norm: f64,
}

impl Told {
    fn check(&self, found: &HashMap<String, Vec<f32>>) {
        let values = &found[&self.name];
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((norm / self.norm - 1.0).abs() < 1e-3, "{}: norm {norm}, not {}", self.name, self.norm);
        let typical = self.norm / (values.len() as f64).sqrt();
        for (value, expected) in values.iter().zip(&self.first) {
            let error = (f64::from(*value) - expected).abs() / typical.max(expected.abs());
            assert!(error < 1e-3, "{}: {value}, not {expected}", self.name);
        }
    }
}

#[derive(serde::Deserialize)]
struct Step {
    name: String,
    loss: f64,
    gradients: Vec<Told>,
    statistics: Vec<Told>,
}

fn check<M: Classifier>(model: M, device: &Device) {
    let name = if std::any::type_name::<M>().contains("VisionTransformer") { "vit-tiny" } else { "resnet18" };
    let steps: Vec<Step> = serde_json::from_str(include_str!("fixtures/training_step.json")).unwrap();
    let step = steps.into_iter().find(|step| step.name == name).unwrap();

    let model = model.map(&mut Fill::default());
    let images: Vec<f32> = uniform("images", BATCH * 3 * SIDE * SIDE).map(|u| u as f32).collect();
    let images = Tensor::<4>::from_data(TensorData::new(images, [BATCH, 3, SIDE, SIDE]), device);
    let labels = Tensor::<1, Int>::arange(0..BATCH as i64, device);
    let loss = CrossEntropyLossConfig::new().with_smoothing(Some(0.1)).init(device);
    let loss = loss.forward(model.forward(images), labels);
    let value = f64::from(loss.clone().into_scalar::<f32>());
    assert!((value / step.loss - 1.0).abs() < 1e-3, "{name}: loss {value}, not {}", step.loss);

    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let (gradients, statistics) = Default::default();
    let mut read = Read { place: Place::default(), grads: &grads, gradients, statistics };
    model.visit(&mut read);
    // Running statistics are brought up to date when a model leaves training.
    model.valid().visit(&mut read);
    step.gradients.iter().for_each(|told| told.check(&read.gradients));
    step.statistics.iter().for_each(|told| told.check(&read.statistics));
}

#[test]
fn a_step_of_resnet18_is_that_of_pytorch() {
    let device = Device::flex().autodiff();
    check(ResNetConfig::new().with_classes(10).resnet18(&device), &device);
}

#[test]
fn a_step_of_the_tiny_transformer_is_that_of_pytorch() {
    let device = Device::flex().autodiff();
    let config = VitConfig::new().with_image([SIDE, SIDE]).with_patch(8).with_layers(2).with_heads(4);
    check(config.with_features(64).with_mlp(128).with_classes(10).init(&device), &device);
}
