use crate::Classifier;
use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, Relu};
use burn::tensor::{Device, Tensor};

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
    pub fc1: Linear,
    /// `[100, 300]`.
    pub fc2: Linear,
    /// `[classes, 100]`.
    pub fc3: Linear,
}

impl MlpConfig {
    /// Initialises the model on a device.
    pub fn init(&self, device: &Device) -> Mlp {
        Mlp {
            fc1: LinearConfig::new(self.inputs, 300).init(device),
            fc2: LinearConfig::new(300, 100).init(device),
            fc3: LinearConfig::new(100, self.classes).init(device),
        }
    }
}

impl Classifier for Mlp {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = Relu::new().forward(self.fc1.forward(images.flatten(1, 3)));
        self.fc3.forward(Relu::new().forward(self.fc2.forward(x)))
    }
}
