use crate::{Classifier, ModelInfo, ModelSpec};
use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::Conv2dConfig;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Dropout, DropoutConfig, LinearConfig};
use burn::tensor::{Device, Tensor};
use srigl_burn::{Lower, Lowering, SparseConv2d, SparseLinear, Value, fused};

/// Configuration of [`MnistCnn`].
#[derive(Config, Debug)]
pub struct MnistCnnConfig {
    /// Channels of an image of 28×28 pixels.
    #[config(default = 1)]
    pub channels: usize,
    /// Number of classes.
    #[config(default = 10)]
    pub classes: usize,
}

/// The MNIST network of the SRigL paper (PyTorch's MNIST example): two 3×3 convolutions (32, 64), max-pooling,
/// two linear layers (9216 → 128 → classes), dropout 0.25 and 0.5.
#[derive(Module, Debug)]
pub struct MnistCnn {
    /// `[32, channels, 3, 3]`.
    pub conv1: SparseConv2d,
    /// `[64, 32, 3, 3]`.
    pub conv2: SparseConv2d,
    /// `[128, 9216]`.
    pub fc1: SparseLinear,
    /// `[classes, 128]`.
    pub fc2: SparseLinear,
    pool: MaxPool2d,
    dropout1: Dropout,
    dropout2: Dropout,
}

impl MnistCnnConfig {
    /// Initialises the model on a device.
    pub fn init(&self, device: &Device) -> MnistCnn {
        MnistCnn {
            conv1: Conv2dConfig::new([self.channels, 32], [3, 3]).init(device).into(),
            conv2: Conv2dConfig::new([32, 64], [3, 3]).init(device).into(),
            fc1: LinearConfig::new(9216, 128).init(device).into(),
            fc2: LinearConfig::new(128, self.classes).init(device).into(),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            dropout1: DropoutConfig::new(0.25).init(),
            dropout2: DropoutConfig::new(0.5).init(),
        }
    }
}

impl Classifier for MnistCnn {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = fused::relu(self.conv1.forward(images));
        // ReLU of the largest is the largest ReLU, and takes a quarter of the time.
        let x = fused::relu(fused::max_pool2d(&self.pool, self.conv2.forward(x)));
        let x = fused::dropout(&self.dropout1, x).flatten(1, 3);
        let x = fused::relu(self.fc1.forward(x));
        self.fc2.forward(fused::dropout(&self.dropout2, x))
    }
}

impl Lower for MnistCnn {
    fn lower(&self, graph: &mut Lowering, images: Value) -> Value {
        let x = graph.conv2d(&self.conv1, images);
        let x = graph.relu(x);
        let x = graph.conv2d(&self.conv2, x);
        let x = graph.relu(x);
        let x = graph.max_pool2d("pool", &self.pool, x);
        let x = graph.flatten(x);
        let x = graph.linear(&self.fc1, x);
        let x = graph.relu(x);
        graph.linear(&self.fc2, x)
    }
}

/// Its row in the table.
pub(crate) static INFO: ModelInfo = ModelInfo {
    name: "mnist-cnn",
    about: "Two 3×3 convolutions (32, 64) and two linear layers (9216 → 128 → 10)",
    images: [1, 28, 28],
    classes: 10,
    stem: "conv1.weight",
    head: "fc2.bias",
    width: None,
    patch: None,
    dropout: false,
    check: |spec| match spec.images {
        [_, 28, 28] => Ok(()),
        [_, height, width] => Err(format!(
            "takes images of 28×28 pixels, not {height}×{width}; --image-size sets that of image folders"
        )),
    },
};

pub(crate) fn init(spec: &ModelSpec, device: &Device) -> MnistCnn {
    MnistCnnConfig::new().with_channels(spec.images[0]).with_classes(spec.classes).init(device)
}
