//! How the windows of a convolution lie over its images, as Burn says it.

use crate::condensed_ops::lock;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use burn::tensor::ops::{ConvOptions, PadMode};
use condensed::{Error, Shape, Window};
use std::sync::{Arc, Mutex};

/// Window, padding and groups of a layer.
#[derive(Clone, Debug)]
pub struct ConvGeometry {
    pub kernel_size: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
    pub padding: PaddingConfig2d,
}

/// Zeros `(before, after)` on the vertical and the horizontal axis.
pub(crate) type Padding = [(usize, usize); 2];

impl ConvGeometry {
    /// That of a layer of Burn.
    pub fn of(conv: &Conv2d) -> Self {
        let Conv2d { kernel_size, stride, dilation, groups, padding, .. } = conv;
        Self {
            kernel_size: *kernel_size,
            stride: *stride,
            dilation: *dilation,
            groups: *groups,
            padding: padding.clone(),
        }
    }

    /// With the padding of a window.
    pub fn of_window(window: Window, groups: usize) -> Self {
        let Window { kernel, stride, padding: [vertical, horizontal], dilation } = window;
        let padding = PaddingConfig2d::Explicit(vertical, horizontal, vertical, horizontal);
        Self { kernel_size: kernel, stride, dilation, groups, padding }
    }

    /// With padding that is the same before and after.
    pub fn window(&self, padding: [usize; 2]) -> Window {
        Window { kernel: self.kernel_size, stride: self.stride, padding, dilation: self.dilation }
    }

    /// Channels of the images, if a filter has so many weights.
    pub fn channels(&self, fan_in: usize) -> usize {
        let taps = self.kernel_size[0].saturating_mul(self.kernel_size[1]).max(1);
        (fan_in / taps).saturating_mul(self.groups)
    }

    /// The smallest image that the window fits without padding.
    pub fn smallest_image(&self, fan_in: usize) -> Shape {
        let reach = |axis: usize| {
            self.kernel_size[axis].saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1)
        };
        Shape { features: self.channels(fan_in), height: reach(0), width: reach(1) }
    }

    /// The zeros around an image.
    pub fn padding(&self, height: usize, width: usize) -> Padding {
        // As Burn has it: the output is the input's size over the stride, and dilation does not count.
        let same = |axis: usize, size: usize| {
            let outputs = size.div_ceil(self.stride[axis]);
            let reach = outputs.saturating_sub(1) * self.stride[axis] + self.kernel_size[axis];
            let missing = if outputs == 0 { 0 } else { reach.saturating_sub(size) };
            (missing / 2, missing - missing / 2)
        };
        match self.padding {
            PaddingConfig2d::Valid => [(0, 0), (0, 0)],
            PaddingConfig2d::Same => [same(0, height), same(1, width)],
            PaddingConfig2d::Explicit(top, left, bottom, right) => [(top, bottom), (left, right)],
        }
    }

    /// The padding of each axis if it is the same before and after.
    pub fn even_padding(&self, height: usize, width: usize) -> Option<[usize; 2]> {
        symmetric(self.padding(height, width))
    }

    /// Window and image for a kernel, which pads both sides alike: where the layer does not, images come padded, as
    /// [`pad_if_uneven`] does it.
    pub fn on(&self, image: Shape) -> (Window, Shape) {
        let padding = self.padding(image.height, image.width);
        match symmetric(padding) {
            Some(padding) => (self.window(padding), image),
            None => {
                let [(top, bottom), (left, right)] = padding;
                let (height, width) = (image.height + top + bottom, image.width + left + right);
                (self.window([0, 0]), Shape { height, width, ..image })
            }
        }
    }

    /// Burn's options.
    pub fn options(&self, padding: Padding) -> ConvOptions<2> {
        ConvOptions::new_with_padding(self.stride, padding, self.dilation, self.groups)
    }
}

/// The images with their padding, if it is not the same before and after.
pub(crate) fn pad_if_uneven(images: Tensor<4>, padding: Padding) -> Tensor<4> {
    if symmetric(padding).is_some() { images } else { images.pad(padding, PadMode::Constant(0.0)) }
}

/// The padding of each axis if it is the same before and after.
fn symmetric(padding: Padding) -> Option<[usize; 2]> {
    padding.iter().all(|(before, after)| before == after).then(|| padding.map(|(before, _)| before))
}

/// What a layer makes for each image size, the oldest first.
#[derive(Debug)]
pub(crate) struct BySize<T>(Mutex<Vec<(Shape, Arc<T>)>>);

impl<T> Default for BySize<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Image sizes that a layer keeps something for.
const SIZES: usize = 8;

impl<T> BySize<T> {
    /// What there is for images of this shape, made if there is none yet.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn get(&self, image: Shape, make: impl FnOnce(Shape) -> Result<T, Error>) -> Arc<T> {
        let known = |all: &[(Shape, Arc<T>)]| {
            all.iter().find(|(shape, _)| *shape == image).map(|(_, made)| made.clone())
        };
        if let Some(made) = known(&lock(&self.0)) {
            return made;
        }
        let made = Arc::new(make(image).unwrap_or_else(|error| panic!("{error}")));
        // Made without the lock, so another thread may have been first.
        let mut all = lock(&self.0);
        if let Some(made) = known(&all) {
            return made;
        }
        if all.len() == SIZES {
            all.remove(0);
        }
        all.push((image, made.clone()));
        made
    }
}
