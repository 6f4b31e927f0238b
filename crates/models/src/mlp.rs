use crate::{Classifier, ModelInfo, ModelSpec};
use burn::config::Config;
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseLinear, Value, fused};

/// Configuration of [`Mlp`].
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Pixels times channels of an image.
    #[config(default = 784)]
    pub inputs: usize,
    /// Number of classes.
    #[config(default = 10)]
    pub classes: usize,
}

/// Multilayer perceptron inputs-300-100-classes with ReLU (LeNet-300-100).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[300, inputs]`.
    pub fc1: SparseLinear,
    /// `[100, 300]`.
    pub fc2: SparseLinear,
    /// `[classes, 100]`.
    pub fc3: SparseLinear,
}

impl MlpConfig {
    /// Initialises the model on a device.
    pub fn init(&self, device: &Device) -> Mlp {
        Mlp {
            fc1: LinearConfig::new(self.inputs, 300).init(device).into(),
            fc2: LinearConfig::new(300, 100).init(device).into(),
            fc3: LinearConfig::new(100, self.classes).init(device).into(),
        }
    }
}

impl Classifier for Mlp {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = fused::relu(self.fc1.forward(images.flatten(1, 3)));
        self.fc3.forward(fused::relu(self.fc2.forward(x)))
    }
}

impl Lower for Mlp {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let x = graph.flatten(images);
        let x = graph.linear(&self.fc1, x);
        let x = graph.relu(x);
        let x = graph.linear(&self.fc2, x);
        let x = graph.relu(x);
        graph.linear(&self.fc3, x)
    }
}

/// Its row in the table.
pub(crate) static INFO: ModelInfo = ModelInfo {
    name: "mlp",
    about: "784-300-100-10",
    images: [1, 28, 28],
    classes: 10,
    stem: "fc1.weight",
    head: "fc3.bias",
    width: None,
    patch: None,
    dropout: false,
    check: |_| Ok(()),
};

pub(crate) fn init(spec: &ModelSpec, device: &Device) -> Mlp {
    let inputs = spec.images.iter().product();
    MlpConfig::new().with_inputs(inputs).with_classes(spec.classes).init(device)
}
