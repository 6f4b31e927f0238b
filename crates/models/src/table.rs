//! One table of all networks: a file each, and a row here.

use crate::{
    Classifier, Mlp, MnistCnn, MobileNetV3, ResNet8, ResNet18, ResNet50, VisionTransformer, WideResNet,
};
use crate::{mlp, mnist_cnn, mobilenet, resnet, resnet8, vit, wide_resnet};
use burn::tensor::Device;

/// What is to be known of a network before it is made.
#[derive(Debug)]
pub struct ModelInfo {
    /// The name in command lines and files, such as `resnet50`.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Its usual images `[channels, height, width]`.
    pub images: [usize; 3],
    /// Classes of the data set it is known from.
    pub classes: usize,
    /// The weight of its first layer, in torchvision's names; the second dimension is the images' channels.
    pub stem: &'static str,
    /// The bias of its last layer: one number for each class.
    pub head: &'static str,
    /// A number of features that can be chosen.
    pub width: Option<Size>,
    /// A size of patches that can be chosen.
    pub patch: Option<Size>,
    /// Whether the share of dropped numbers can be chosen.
    pub dropout: bool,
    /// What does not fit it, beside sizes that it does not have.
    pub check: fn(&ModelSpec) -> Result<(), String>,
}

/// A size that can be chosen.
#[derive(Debug)]
pub struct Size {
    /// The usual one.
    pub usual: usize,
    /// A tensor of the network's files that has the size as a dimension.
    pub tensor: &'static str,
    /// Which dimension that is.
    pub dimension: usize,
}

/// A network with all its sizes.
#[derive(Clone, Copy, Debug)]
pub struct ModelSpec {
    /// Which network.
    pub info: &'static ModelInfo,
    /// Its images `[channels, height, width]`.
    pub images: [usize; 3],
    /// Classes.
    pub classes: usize,
    /// Features, if they are to be others than the usual.
    pub width: Option<usize>,
    /// Height and width of a patch, if they are to be others than the usual.
    pub patch: Option<usize>,
    /// Share of numbers dropped in training, if it is to be another than the usual.
    pub dropout: Option<f64>,
}

/// Why there is no such network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No network has this name.
    #[error("there is no model `{name}`, only {}", names().join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The network has no such size.
    #[error("{model} has no --{size}; leave it out")]
    NoSize {
        /// Its name.
        model: &'static str,
        /// `width`, `patch` or `dropout`.
        size: &'static str,
    },
    /// The sizes do not fit each other.
    #[error("{model} {what}")]
    Misfit {
        /// Its name.
        model: &'static str,
        /// What does not fit.
        what: String,
    },
}

/// What is done with a model whose type is known only at run time.
pub trait WithModel {
    /// Result of the work.
    type Output;
    /// Works with a freshly initialised model.
    fn run<M: Classifier>(self, model: M) -> Self::Output;
}

/// Makes the table and what depends on the type of a network: a line has its facts, its type and what makes it.
macro_rules! models {
    ($($info:path => $model:ty, $init:path;)*) => {
        /// All networks.
        pub static MODELS: &[&ModelInfo] = &[$(&$info),*];

        impl ModelSpec {
            /// Initialises the model on a device and hands it over.
            ///
            /// # Errors
            /// As [`check`](Self::check).
            pub fn with<W: WithModel>(&self, device: &Device, work: W) -> Result<W::Output, Error> {
                self.check()?;
                $(if std::ptr::eq(self.info, &$info) {
                    return Ok(work.run::<$model>($init(self, device)));
                })*
                Err(Error::Unknown { name: self.info.name.into() })
            }
        }
    };
}

models! {
    mlp::INFO => Mlp, mlp::init;
    mnist_cnn::INFO => MnistCnn, mnist_cnn::init;
    resnet8::INFO => ResNet8, resnet8::init;
    resnet::RESNET18 => ResNet18, resnet::init18;
    resnet::RESNET18_SMALL => ResNet18, resnet::init18_small;
    resnet::RESNET50 => ResNet50, resnet::init50;
    wide_resnet::INFO => WideResNet, wide_resnet::init;
    mobilenet::LARGE_INFO => MobileNetV3, mobilenet::init_large;
    mobilenet::SMALL_INFO => MobileNetV3, mobilenet::init_small;
    vit::TINY => VisionTransformer, vit::init_tiny;
    vit::B16 => VisionTransformer, vit::init_b16;
}

/// The names of all networks.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|info| info.name).collect()
}

impl ModelInfo {
    /// The network of this name.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the names.
    pub fn named(name: &str) -> Result<&'static Self, Error> {
        let found = MODELS.iter().find(|info| info.name == name);
        found.copied().ok_or_else(|| Error::Unknown { name: name.into() })
    }

    /// The network with its usual sizes.
    pub fn usual(&'static self) -> ModelSpec {
        let (images, classes) = (self.images, self.classes);
        ModelSpec { info: self, images, classes, width: None, patch: None, dropout: None }
    }

    /// The network with the sizes that a file's tensors have; `shape` tells a tensor's dimensions.
    /// Where there is no such tensor, the size is the usual one: filling the model then tells what is missing.
    pub fn of_tensors(&'static self, shape: impl Fn(&str) -> Option<Vec<usize>>) -> ModelSpec {
        /// Far above any in use.
        const MOST: usize = 1 << 14;
        let dimension = |tensor: &str, dimension: usize| {
            let size = shape(tensor)?.get(dimension).copied()?;
            (1..=MOST).contains(&size).then_some(size)
        };
        let of = |size: &Option<Size>| {
            let size = size.as_ref()?;
            dimension(size.tensor, size.dimension).filter(|found| *found != size.usual)
        };
        let mut spec = self.usual();
        spec.classes = dimension(self.head, 0).unwrap_or(1);
        (spec.width, spec.patch) = (of(&self.width), of(&self.patch));
        // The first layer of a perceptron reads pixels and not channels.
        if let (Some(channels), Some(4)) = (dimension(self.stem, 1), shape(self.stem).map(|dims| dims.len()))
        {
            spec.images[0] = channels;
        }
        spec
    }
}

impl ModelSpec {
    /// For images of `[height, width]`.
    pub fn with_image(mut self, [height, width]: [usize; 2]) -> Self {
        (self.images[1], self.images[2]) = (height, width);
        self
    }

    /// The features, chosen or usual.
    pub(crate) fn width_or_usual(&self) -> usize {
        self.width.or_else(|| Some(self.info.width.as_ref()?.usual)).unwrap_or(0)
    }

    /// Checks that the network has these sizes, and that they fit each other.
    ///
    /// # Errors
    /// [`Error::NoSize`] or [`Error::Misfit`].
    pub fn check(&self) -> Result<(), Error> {
        let model = self.info.name;
        for (size, given, has) in [
            ("width", self.width.is_some(), self.info.width.is_some()),
            ("patch", self.patch.is_some(), self.info.patch.is_some()),
            ("dropout", self.dropout.is_some(), self.info.dropout),
        ] {
            if given && !has {
                return Err(Error::NoSize { model, size });
            }
        }
        if self.dropout.is_some_and(|share| !(0.0..1.0).contains(&share)) {
            return Err(Error::Misfit { model, what: "needs a --dropout in [0, 1)".into() });
        }
        /// Far above any image, and sizes computed from it do not overflow.
        const MAX_SIDE: usize = 1 << 16;
        if self.images.iter().any(|side| !(1..=MAX_SIDE).contains(side)) || self.classes == 0 {
            let [channels, height, width] = self.images;
            let what = format!(
                "cannot take {channels} channels of {height}×{width} pixels in {} classes: all must be at least 1, and \
                 sides at most {MAX_SIDE}",
                self.classes
            );
            return Err(Error::Misfit { model, what });
        }
        (self.info.check)(self).map_err(|what| Error::Misfit { model, what })
    }
}
