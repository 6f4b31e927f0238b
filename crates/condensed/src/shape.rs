//! Shapes of samples and windows.

use crate::NodeError;
use crate::planes::plane_stride;
use srigl_tensors::memory::{self, TooLarge};
use std::fmt;

/// Most numbers that one result, a padded input or the scores of attention may have, on any machine: 1 GiB.
pub(crate) const MAX_RESULT: usize = 1 << 28;

/// Most numbers that a convolution may gather of one sample, on any machine: 256 MiB. Networks that people use stay below
/// 2^22.
const MAX_GATHERED: usize = 1 << 26;

/// Most taps of a window.
const MAX_TAPS: usize = 1 << 20;

/// Numbers in the widest register.
const MOST_LANES: usize = 16;

/// Shape of one sample between two operations: `features` planes of `height × width` positions.
/// A vector has one position, and tokens `[features, tokens]` have height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Channels of an image, width of a vector or of each token.
    pub features: usize,
    /// Rows of each plane.
    pub height: usize,
    /// Columns of each plane, or tokens.
    pub width: usize,
}

/// Sliding window of a convolution or pooling, `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Zeros around the image, on both sides.
    pub padding: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { features, height, width } = self;
        write!(f, "{features} features of {height} × {width}")
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, stride, padding, dilation } = self;
        let [k, s, p, d] = [kernel, stride, padding, dilation].map(|[v, h]| match v == h {
            true => v.to_string(),
            false => format!("{v} × {h}"),
        });
        write!(f, "a window of kernel {k}, stride {s}, padding {p} and dilation {d}")
    }
}

impl Shape {
    /// Positions of one plane.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Numbers in one sample.
    #[expect(clippy::len_without_is_empty, reason = "a count, not a collection")]
    pub fn len(&self) -> usize {
        self.features * self.positions()
    }

    /// Floats between planes in the engine.
    pub(crate) fn stride(&self) -> usize {
        plane_stride(self.positions())
    }
}

impl Window {
    /// Height and width of the result on images of shape `input`.
    ///
    /// # Errors
    /// [`NodeError::Window`] if a size is 0, too large, or the window larger than the padded image.
    pub fn output_size(&self, input: Shape) -> Result<[usize; 2], NodeError> {
        let size = |axis: usize, size: usize| {
            let reach = self.kernel[axis].checked_sub(1)?.checked_mul(self.dilation[axis])?.checked_add(1)?;
            let padded = self.padding[axis].checked_mul(2)?.checked_add(size)?;
            let positive = self.stride[axis] > 0 && self.dilation[axis] > 0 && padded < 1 << 24;
            positive.then(|| padded.checked_sub(reach).map(|room| room / self.stride[axis] + 1))?
        };
        match (size(0, input.height), size(1, input.width)) {
            (Some(height), Some(width)) => Ok([height, width]),
            _ => Err(NodeError::Window { window: *self, height: input.height, width: input.width }),
        }
    }

    /// Taps of the window, and height and width of the result on images of shape `input`.
    pub(crate) fn check(&self, input: Shape) -> Result<(usize, [usize; 2]), NodeError> {
        let Window { kernel, stride, padding, dilation } = *self;
        if [kernel, stride, padding, dilation].as_flattened().iter().any(|&number| number >= 1 << 24) {
            return Err(NodeError::WindowNumber { window: *self });
        }
        let taps = kernel[0].saturating_mul(kernel[1]);
        if taps > MAX_TAPS {
            return Err(NodeError::Taps { taps, most: MAX_TAPS });
        }
        let size = self.output_size(input)?;
        let padded = [input.features, input.height + 2 * padding[0], input.width + 2 * padding[1]];
        at_most(MAX_RESULT, &padded).map_err(NodeError::Padded)?;
        Ok((taps, size))
    }

    /// The result of a convolution of images of shape `input` in `groups` with so many filters, and the weights of a filter.
    pub(crate) fn convolution(
        &self,
        input: Shape,
        groups: usize,
        filters: usize,
    ) -> Result<(Shape, usize), NodeError> {
        if groups == 0 || !input.features.is_multiple_of(groups) || !filters.is_multiple_of(groups) {
            return Err(NodeError::Groups { groups, inputs: input.features, outputs: filters });
        }
        let (taps, [height, width]) = self.check(input)?;
        let fan_in = taps.checked_mul(input.features / groups).ok_or(NodeError::TooManyWeights)?;
        Ok((Shape { features: filters, height, width }, fan_in))
    }

    /// Checks that what a convolution gathers of an image stays small: a sheet for each column of the window and each row
    /// of it within a stride. The window has been checked.
    pub(crate) fn check_gathered(&self, input: Shape, [height, width]: [usize; 2]) -> Result<(), NodeError> {
        if self.reads_in_place() {
            return Ok(());
        }
        let Window { kernel, stride, dilation, .. } = *self;
        let rows = height + (kernel[0] - 1) * dilation[0] / stride[0];
        let sheets = [kernel[0].min(stride[0]), kernel[1]];
        let gathered = [input.features, sheets[0], sheets[1], rows, width.next_multiple_of(MOST_LANES)];
        at_most(MAX_GATHERED, &gathered).map_err(NodeError::Gathered)
    }

    /// Of the places `i < places` that read `i · stride + start − padding`: the first that reads inside an image
    /// of `size`, what it reads, and how many do.
    pub(crate) fn inside(
        &self,
        axis: usize,
        start: usize,
        size: usize,
        places: usize,
    ) -> (usize, usize, usize) {
        let (stride, padding) = (self.stride[axis], self.padding[axis]);
        let first = padding.saturating_sub(start).div_ceil(stride).min(places);
        let read = (first * stride + start).saturating_sub(padding).min(size);
        (first, read, (size - read).div_ceil(stride).min(places - first))
    }

    /// Whether a convolution reads its input where it lies, and gathers nothing.
    pub(crate) fn reads_in_place(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }
}

/// Checks that so many numbers, the product of `sizes`, are no more than `most`.
pub(crate) fn at_most(most: usize, sizes: &[usize]) -> Result<(), TooLarge> {
    let bytes = memory::product(sizes).and_then(|numbers| numbers.checked_mul(size_of::<f32>() as u64));
    let limit = (most * size_of::<f32>()) as u64;
    match bytes {
        Some(bytes) if bytes <= limit => Ok(()),
        bytes => Err(TooLarge { bytes, limit }),
    }
}

/// Copies a sample `[features, height, width]` into planes of whole cache lines.
pub(crate) fn to_planes(sample: &[f32], shape: Shape, planes: &mut [f32]) {
    for (plane, to) in sample.chunks_exact(shape.positions()).zip(planes.chunks_exact_mut(shape.stride())) {
        to[..plane.len()].copy_from_slice(plane);
    }
}

/// The other way.
pub(crate) fn from_planes(planes: &[f32], shape: Shape, sample: &mut [f32]) {
    for (plane, to) in planes.chunks_exact(shape.stride()).zip(sample.chunks_exact_mut(shape.positions())) {
        to.copy_from_slice(&plane[..shape.positions()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Window = Window { kernel: [1; 2], stride: [1; 2], padding: [0; 2], dilation: [1; 2] };

    fn image(height: usize, width: usize) -> Shape {
        Shape { features: 1, height, width }
    }

    #[test]
    fn windows_are_told_in_short() {
        let window = Window { kernel: [3; 2], stride: [2, 1], ..ONE };
        assert_eq!(window.to_string(), "a window of kernel 3, stride 2 × 1, padding 0 and dilation 1");
    }

    /// What is as large as allowed is taken, and one more refused.
    #[test]
    fn limits_are_exact() {
        assert_eq!(ONE.output_size(image((1 << 24) - 1, 1)), Ok([(1 << 24) - 1, 1]));
        assert!(matches!(ONE.output_size(image(1 << 24, 1)), Err(NodeError::Window { .. })));

        let wide = Window { kernel: [1 << 10; 2], ..ONE };
        assert_eq!(wide.check(image(1 << 10, 1 << 10)), Ok((MAX_TAPS, [1, 1])));
        let wider = Window { kernel: [1 << 10, (1 << 10) + 1], ..ONE };
        assert!(matches!(wider.check(image(1 << 10, 1 << 11)), Err(NodeError::Taps { .. })));

        let padded = |padding: [usize; 2]| Window { padding, ..ONE }.check(image(1 << 13, 1 << 13));
        let most = 1 << 12;
        assert_eq!(padded([most; 2]), Ok((1, [1 << 14; 2])));
        assert!(matches!(padded([most + 1, most]), Err(NodeError::Padded(_))));
        assert!(matches!(padded([most, most + 1]), Err(NodeError::Padded(_))));

        // Two sheets of rows, with four more rows than the result: those that the last taps read.
        let gathers = Window { kernel: [3, 1], stride: [2, 1], dilation: [4, 1], ..ONE };
        let rows = MAX_GATHERED / 2 / MOST_LANES;
        let check = |window: Window, rows| window.check_gathered(image(8, 8), [rows, 1]);
        assert_eq!(check(gathers, rows - 4), Ok(()));
        assert!(matches!(check(gathers, rows - 3), Err(NodeError::Gathered(_))));
        assert_eq!(check(ONE, usize::MAX), Ok(()), "what reads in place gathers nothing");
    }
}
