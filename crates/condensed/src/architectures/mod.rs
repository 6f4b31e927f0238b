//! The networks of the experiments, built from named tensors in PyTorch's names and layout.
//!
//! | name | network | tensors named as in | image |
//! |---|---|---|---|
//! | `mlp` | perceptron 784-300-100-classes | `srigl train` (`fc1.weight`, …) | 1 × 28 × 28 |
//! | `mnist-cnn` | two 3×3 convolutions, two linear layers | `srigl train` | 1 × 28 × 28 |
//! | `resnet8` | three basic blocks of 16, 32, 64 channels | `srigl train` (`layer2.downsample.1.weight`, …) | 1 × 28 × 28 |
//! | `resnet18`, `resnet50` | residual networks for ImageNet | torchvision | 3 × 224 × 224 |
//! | `resnet18-small` | the same with a 3×3 stem and no pooling, for CIFAR | torchvision | 3 × 32 × 32 |
//! | `wrn-22-2` | wide residual network | the SRigL paper's code (`block1.layer.0.conv1.weight`, …) | 3 × 32 × 32 |
//! | `mobilenet-v3-large`, `mobilenet-v3-small` | MobileNetV3 | torchvision | 3 × 224 × 224 |
//! | `vit-b-16` | vision transformer | torchvision 0.13 or later | 3 × 224 × 224 |
//! | `vit-tiny` | the same with 2 layers of 64 features, for tests | torchvision | 3 × 32 × 32 |
//!
//! The number of classes and channels of images, the width of `resnet18`, `resnet18-small` and `resnet50`, and patches, token
//! and perceptron sizes of vision transformers are those of the tensors.
//!
//! Images come as the network was trained on them: scaling and normalisation of pixels is the caller's.
//!
//! Masks go by the names that `srigl` writes, which [`mask_name`] gives.

mod graph;
mod mobilenet;
mod resnet;
mod small;
mod vit;

use crate::{Error, Network, Shape};
use graph::{Graph, Value};
use std::collections::BTreeMap;

/// One tensor of a trained network.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Dimensions, `[out, in, …]` for weights.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
    /// Which values are active, for sparse weights; of the same length.
    pub mask: Option<Vec<bool>>,
}

/// A tensor that an architecture needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// PyTorch's name.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: TensorKind,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// Weights `[out, in, …]` of a linear layer or convolution; the only ones that can be sparse.
    Weight,
    /// Bias of a linear layer or convolution.
    Bias,
    /// γ of a normalisation.
    NormScale,
    /// β of a normalisation.
    NormShift,
    /// Mean of a batch normalisation, not a parameter.
    RunningMean,
    /// Variance of a batch normalisation, not a parameter.
    RunningVariance,
    /// Class token or position embeddings.
    Embedding,
}

struct Architecture {
    name: &'static str,
    /// Channels of images, if the first layer's weight does not tell.
    channels: usize,
    /// The first layer, if it is a convolution.
    stem: &'static str,
    /// Height and width if the caller names none.
    image: [usize; 2],
    /// The last layer; its rows are the classes.
    head: &'static str,
    /// Images to logits, for a number of classes.
    layers: fn(&mut Graph, Value, usize) -> Value,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "mlp", channels: 1, stem: "", image: [28, 28], head: "fc3", layers: small::mlp },
    Architecture {
        name: "mnist-cnn",
        channels: 1,
        stem: "conv1",
        image: [28, 28],
        head: "fc2",
        layers: small::mnist_cnn,
    },
    Architecture {
        name: "resnet8",
        channels: 1,
        stem: "conv1",
        image: [28, 28],
        head: "fc",
        layers: resnet::resnet8,
    },
    Architecture {
        name: "resnet18",
        channels: 3,
        stem: "conv1",
        image: [224, 224],
        head: "fc",
        layers: resnet::resnet18,
    },
    Architecture {
        name: "resnet50",
        channels: 3,
        stem: "conv1",
        image: [224, 224],
        head: "fc",
        layers: resnet::resnet50,
    },
    Architecture {
        name: "resnet18-small",
        channels: 3,
        stem: "conv1",
        image: [32, 32],
        head: "fc",
        layers: resnet::resnet18_small,
    },
    Architecture {
        name: "wrn-22-2",
        channels: 3,
        stem: "conv1",
        image: [32, 32],
        head: "fc",
        layers: resnet::wrn_22_2,
    },
    Architecture {
        name: "mobilenet-v3-large",
        channels: 3,
        stem: "features.0.0",
        image: [224, 224],
        head: "classifier.3",
        layers: mobilenet::large,
    },
    Architecture {
        name: "mobilenet-v3-small",
        channels: 3,
        stem: "features.0.0",
        image: [224, 224],
        head: "classifier.3",
        layers: mobilenet::small,
    },
    Architecture {
        name: "vit-b-16",
        channels: 3,
        stem: "conv_proj",
        image: [224, 224],
        head: "heads.head",
        layers: vit::vit_b_16,
    },
    Architecture {
        name: "vit-tiny",
        channels: 3,
        stem: "conv_proj",
        image: [32, 32],
        head: "heads.head",
        layers: vit::vit_tiny,
    },
];

const NAMES: [&str; ARCHITECTURES.len()] = {
    let mut names = [""; ARCHITECTURES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ARCHITECTURES[i].name;
        i += 1;
    }
    names
};

/// The architectures that [`build`] and [`specs`] know.
pub fn names() -> &'static [&'static str] {
    &NAMES
}

/// Name of the mask of a weight: a trailing `.weight` goes, then comes `.mask`.
///
/// ```
/// use condensed::architectures::mask_name;
///
/// assert_eq!(mask_name("layer1.0.conv1.weight"), "layer1.0.conv1.mask");
/// let joint = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight";
/// assert_eq!(mask_name(joint), format!("{joint}.mask"));
/// ```
pub fn mask_name(weight: &str) -> String {
    format!("{}.mask", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// The tensors that an architecture needs for its own image size and a number of classes, in the order in which
/// the network uses them.
///
/// # Errors
/// [`Error::Input`] if there is no such architecture or there are no classes.
pub fn specs(name: &str, classes: usize) -> Result<Vec<TensorSpec>, Error> {
    let architecture = find(name)?;
    if classes == 0 {
        return Err(Error::Input(format!("`{name}` needs at least one class")));
    }
    let mut graph = Graph::new(BTreeMap::new());
    architecture.build(&mut graph, architecture.image, classes);
    Ok(graph.into_specs())
}

/// The network `name` with these tensors, for images of `[height, width]` or the architecture's own size.
///
/// Weights with a mask are condensed, the others stay dense. The classes are the rows of the last layer. Batch
/// normalisations are nodes of their own, and PyTorch's `num_batches_tracked` is ignored.
///
/// The nodes of a skip connection come before the last layer of the branch beside it.
///
/// # Errors
/// [`Error::Tensor`] if tensors are missing, have another shape or a mask that does not fit, or are not of this
/// architecture; it has the name of one and tells all. [`Error::Input`] if there is no such architecture or the images
/// are too large or too small; [`Error::Node`] if a layer cannot work with its values or with images of that size.
pub fn build(
    name: &str,
    tensors: BTreeMap<String, NamedTensor>,
    image: Option<[usize; 2]>,
) -> Result<Network, Error> {
    let architecture = find(name)?;
    let image = image.unwrap_or(architecture.image);
    // Far above any image, and sizes computed from it do not overflow.
    const MAX_SIDE: usize = 1 << 16;
    if image.iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
        let [height, width] = image;
        return Err(Error::Input(format!("images of {height} × {width}; sides must be 1 to {MAX_SIDE}")));
    }
    let mut graph = Graph::new(tensors);
    let rows = |tensor: &str| graph.rows(&format!("{}.{tensor}", architecture.head));
    // Without a head any number will do: the error is that it is missing.
    let classes = rows("weight").or(rows("bias")).unwrap_or(1);
    architecture.build(&mut graph, image, classes);
    graph.into_network(name)
}

fn find(name: &str) -> Result<&'static Architecture, Error> {
    ARCHITECTURES.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        Error::Input(format!(
            "there is no architecture `{name}`, only {}",
            NAMES.map(|n| format!("`{n}`")).join(", ")
        ))
    })
}

impl Architecture {
    fn build(&self, graph: &mut Graph, [height, width]: [usize; 2], classes: usize) {
        let features = graph.size(&format!("{}.weight", self.stem), 1, self.channels);
        let images = graph.input(Shape { features, height, width });
        (self.layers)(graph, images, classes);
    }
}
