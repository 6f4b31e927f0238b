//! Learned and random series of changes to 8-bit pictures: torchvision's `AutoAugment` and `RandAugment`.
//!
//! Every operation gives the very pixels that torchvision gives on PIL images, with its default settings:
//! nearest pixels, black where nothing is.

use serde::{Deserialize, Serialize};

use super::augment::{Draws, blend, brightness, contrast, saturation};
use super::picture::Picture;
use Operation::{
    AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Invert, Posterize, Rotate, Sharpness,
    ShearX, ShearY, Solarize, TranslateX, TranslateY,
};

/// Which series of changes is made to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoAugment {
    /// One of 25 pairs of operations that were learned on ImageNet: `AutoAugment(AutoAugmentPolicy.IMAGENET)`.
    Imagenet,
    /// Two of 14 operations, with magnitude 9 of 0 to 30: `RandAugment(num_ops=2, magnitude=9)`.
    Rand,
}

/// A change to a picture, by torchvision's name. Most have a magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Identity,
    /// Moves rows, in pixels per row.
    ShearX,
    /// Moves columns, in pixels per column.
    ShearY,
    /// Moves the picture to the right, in pixels.
    TranslateX,
    /// Moves the picture down, in pixels.
    TranslateY,
    /// Turns it around its middle, in degrees, counter-clockwise.
    Rotate,
    /// The next four blend it with black, its grey version, its mean grey, or a smoothed version; by 0, not
    /// at all.
    Brightness,
    Color,
    Contrast,
    Sharpness,
    /// Keeps so many bits of each value.
    Posterize,
    /// Inverts values that are not below this one.
    Solarize,
    /// Stretches the values of each channel to 0 to 255.
    AutoContrast,
    /// Makes all values of a channel equally frequent.
    Equalize,
    Invert,
}

/// What `RandAugment` chooses from, in torchvision's order.
const RAND: [Operation; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];
const RAND_OPERATIONS: usize = 2;
const RAND_LEVEL: usize = 9;
const RAND_LEVELS: usize = 31;

/// The pairs of `AutoAugment`: operation, probability, and level where the operation has magnitudes.
const IMAGENET: [[(Operation, f64, usize); 2]; 25] = [
    [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
    [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Equalize, 0.4, 0), (Rotate, 0.8, 8)],
    [(Solarize, 0.6, 3), (Equalize, 0.6, 0)],
    [(Posterize, 0.8, 5), (Equalize, 1.0, 0)],
    [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
    [(Equalize, 0.6, 0), (Posterize, 0.4, 6)],
    [(Rotate, 0.8, 8), (Color, 0.4, 0)],
    [(Rotate, 0.4, 9), (Equalize, 0.6, 0)],
    [(Equalize, 0.0, 0), (Equalize, 0.8, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Rotate, 0.8, 8), (Color, 1.0, 2)],
    [(Color, 0.8, 8), (Solarize, 0.8, 7)],
    [(Sharpness, 0.4, 7), (Invert, 0.6, 0)],
    [(ShearX, 0.6, 5), (Equalize, 1.0, 0)],
    [(Color, 0.4, 0), (Equalize, 0.6, 0)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
];
const IMAGENET_LEVELS: usize = 10;

impl AutoAugment {
    /// Changes `picture` at random; `spare` is overwritten.
    pub(crate) fn apply(self, picture: &mut Picture, spare: &mut Picture, draws: &mut Draws) {
        match self {
            Self::Imagenet => {
                let pair = draws.below(IMAGENET.len());
                let chances = [draws.within(0.0, 1.0), draws.within(0.0, 1.0)];
                let positive = [draws.coin(), draws.coin()];
                apply_pair(picture, spare, pair, chances, positive);
            }
            Self::Rand => {
                for _ in 0..RAND_OPERATIONS {
                    let operation = RAND[draws.below(RAND.len())];
                    let positive = !(operation.is_signed() && draws.coin());
                    let level = [RAND_LEVEL, RAND_LEVELS];
                    operation.apply_level(picture, spare, level, positive);
                }
            }
        }
    }
}

/// Applies the two operations of a pair whose chances are within their probability.
fn apply_pair(
    picture: &mut Picture,
    spare: &mut Picture,
    pair: usize,
    chances: [f64; 2],
    positive: [bool; 2],
) {
    for (i, (operation, probability, level)) in IMAGENET[pair].into_iter().enumerate() {
        if chances[i] <= probability {
            operation.apply_level(picture, spare, [level, IMAGENET_LEVELS], positive[i]);
        }
    }
}

impl Operation {
    /// Whether half of the magnitudes drawn are negative.
    fn is_signed(self) -> bool {
        !matches!(self, Identity | Posterize | Solarize | AutoContrast | Equalize | Invert)
    }

    /// The magnitude of level `[level, levels]`, from 0 to `levels - 1`, for pictures of this size.
    fn magnitude(self, [level, levels]: [usize; 2], height: usize, width: usize) -> f64 {
        let up_to = |end: f64| linspace(0.0, end as f32, level, levels);
        // torchvision's authors had pictures of 331 pixels.
        let move_by = |side: usize| up_to(150.0 / 331.0 * side as f64);
        match self {
            ShearX | ShearY => up_to(0.3),
            TranslateX => move_by(width),
            TranslateY => move_by(height),
            Rotate => up_to(30.0),
            Brightness | Color | Contrast | Sharpness => up_to(0.9),
            Posterize => {
                let fewer = level as f32 / ((levels - 1) as f32 / 4.0);
                f64::from(8.0 - fewer.round_ties_even())
            }
            Solarize => linspace(255.0, 0.0, level, levels),
            Identity | AutoContrast | Equalize | Invert => 0.0,
        }
    }

    fn apply_level(self, picture: &mut Picture, spare: &mut Picture, level: [usize; 2], positive: bool) {
        let magnitude = self.magnitude(level, picture.height, picture.width);
        let sign = if self.is_signed() && !positive { -1.0 } else { 1.0 };
        self.apply(picture, spare, sign * magnitude);
    }

    /// Changes `picture`; `spare` is overwritten.
    fn apply(self, picture: &mut Picture, spare: &mut Picture, magnitude: f64) {
        let factor = (1.0 + magnitude) as f32;
        // By way of degrees, as torchvision does: the last digits may decide where a pixel comes from.
        let shear = magnitude.atan().to_degrees().to_radians();
        match self {
            Identity => {}
            ShearX => affine(picture, spare, [1.0, shear.tan(), 0.0, 0.0, 1.0, 0.0]),
            ShearY => affine(picture, spare, [1.0, 0.0, 0.0, shear.sin() / shear.cos(), 1.0, 0.0]),
            TranslateX => affine(picture, spare, [1.0, 0.0, -magnitude.trunc(), 0.0, 1.0, 0.0]),
            TranslateY => affine(picture, spare, [1.0, 0.0, 0.0, 0.0, 1.0, -magnitude.trunc()]),
            Rotate => rotate(picture, spare, magnitude),
            Brightness => brightness(picture, factor),
            Color => saturation(picture, factor),
            Contrast => contrast(picture, factor),
            Sharpness => sharpness(picture, spare, factor),
            Posterize => {
                let mask = 0xff_u8 << (8 - magnitude as u32);
                look_up(picture, |_| std::array::from_fn(|value| value as u8 & mask));
            }
            Solarize => {
                look_up(picture, |_| {
                    std::array::from_fn(|value| {
                        if (value as f64) < magnitude { value as u8 } else { 255 - value as u8 }
                    })
                })
            }
            AutoContrast => look_up(picture, stretched),
            Equalize => look_up(picture, equalized),
            Invert => look_up(picture, |_| std::array::from_fn(|value| 255 - value as u8)),
        }
    }
}

/// Value `i` of `n` from `start` to `end`, both included, with the rounding of `torch.linspace`.
fn linspace(start: f32, end: f32, i: usize, n: usize) -> f64 {
    let step = (end - start) / (n - 1) as f32;
    let value = match i < n / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((n - 1 - i) as f32, end),
    };
    f64::from(value)
}

/// Gives pixel `(x, y)` the one that lies at `(a x + b y + c, d x + e y + f)`, measured from middle to
/// middle of pixels, or black. In PIL's fixed-point numbers of 16 bits after the point.
fn affine(picture: &mut Picture, spare: &mut Picture, [a, b, c, d, e, f]: [f64; 6]) {
    let Picture { height, width, channels, ref pixels } = *picture;
    spare.reshape(height, width, channels);
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let (right, down) = ([fixed(a), fixed(d)], [fixed(b), fixed(e)]);
    let mut row_start = [fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5)];
    for row in spare.pixels.chunks_exact_mut(width * channels) {
        let [mut x, mut y] = row_start;
        for to in row.chunks_exact_mut(channels) {
            // Numbers below 0 become too large ones.
            let (from_x, from_y) = ((x >> 16) as usize, (y >> 16) as usize);
            match from_x < width && from_y < height {
                true => to.copy_from_slice(&pixels[(from_y * width + from_x) * channels..][..channels]),
                false => to.fill(0),
            }
            (x, y) = (x + right[0], y + right[1]);
        }
        row_start = [row_start[0] + down[0], row_start[1] + down[1]];
    }
    std::mem::swap(picture, spare);
}

/// Turns the picture around its middle, counter-clockwise, as `Image.rotate`.
fn rotate(picture: &mut Picture, spare: &mut Picture, degrees: f64) {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (sin, cos) = (round_15(angle.sin()), round_15(angle.cos()));
    let (x, y) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
    let (left, top) = (cos * -x + sin * -y + x, -sin * -x + cos * -y + y);
    affine(picture, spare, [cos, sin, left, -sin, cos, top]);
}

/// Python's `round(value, 15)`.
fn round_15(value: f64) -> f64 {
    format!("{value:.15}").parse().expect("it is a number")
}

/// Blends the picture with a smoothed version of it: `ImageEnhance.Sharpness`.
fn sharpness(picture: &mut Picture, spare: &mut Picture, factor: f32) {
    smooth(picture, spare);
    for (value, smooth) in picture.pixels.iter_mut().zip(&spare.pixels) {
        *value = blend(*smooth, *value, factor);
    }
}

/// Makes `to` the picture with each pixel the mean of itself, five times, and the eight around it:
/// `ImageFilter.SMOOTH`. Pixels at the border stay.
fn smooth(picture: &Picture, to: &mut Picture) {
    let Picture { height, width, channels, ref pixels } = *picture;
    to.reshape(height, width, channels);
    to.pixels.copy_from_slice(pixels);
    let stride = width * channels;
    for y in 1..height.saturating_sub(1) {
        for at in y * stride + channels..((y + 1) * stride).saturating_sub(channels) {
            let three = |at: usize| [at - channels, at, at + channels].map(|at| u32::from(pixels[at]));
            let around: u32 = [at - stride, at, at + stride].into_iter().flat_map(three).sum();
            let sum = around + 4 * u32::from(pixels[at]);
            to.pixels[at] = ((2 * sum + 13) / 26) as u8; // sum / 13, rounded; PIL's floats give the same
        }
    }
}

/// Replaces every value by the one in the table that `table` makes of the histogram of its channel.
fn look_up(picture: &mut Picture, table: impl Fn(&[u32; 256]) -> [u8; 256]) {
    for channel in 0..picture.channels {
        let mut histogram = [0; 256];
        for value in picture.pixels.iter().skip(channel).step_by(picture.channels) {
            histogram[usize::from(*value)] += 1;
        }
        let table = table(&histogram);
        for value in picture.pixels.iter_mut().skip(channel).step_by(picture.channels) {
            *value = table[usize::from(*value)];
        }
    }
}

/// The table that leaves values as they are.
fn unchanged() -> [u8; 256] {
    std::array::from_fn(|value| value as u8)
}

/// The table of `ImageOps.autocontrast`.
fn stretched(histogram: &[u32; 256]) -> [u8; 256] {
    let low = histogram.iter().position(|count| *count > 0).unwrap_or(0);
    let high = histogram.iter().rposition(|count| *count > 0).unwrap_or(0);
    if high <= low {
        return unchanged();
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8) // saturates
}

/// The table of `ImageOps.equalize`.
fn equalized(histogram: &[u32; 256]) -> [u8; 256] {
    let last = histogram.iter().rfind(|count| **count > 0).copied().unwrap_or(0);
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    if step == 0 {
        return unchanged();
    }
    let mut below = step / 2;
    std::array::from_fn(|value| {
        let level = below / step;
        below += histogram[value];
        level.min(255) as u8
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::augment::tests::{digest, recorded};
    use crate::picture::tests::fixture;

    const ALL: [Operation; 15] = [
        Identity,
        ShearX,
        ShearY,
        TranslateX,
        TranslateY,
        Rotate,
        Brightness,
        Color,
        Contrast,
        Sharpness,
        Posterize,
        Solarize,
        AutoContrast,
        Equalize,
        Invert,
    ];

    fn named(name: &str) -> Operation {
        ALL.into_iter().find(|operation| format!("{operation:?}") == name).unwrap()
    }

    #[derive(Deserialize)]
    struct Magnitudes {
        operation: String,
        height: usize,
        width: usize,
        /// Each of ten levels.
        imagenet: Vec<f32>,
        /// That of `RandAugment`.
        rand: Option<f32>,
    }

    #[test]
    fn magnitudes_are_torchvisions() {
        let all: Vec<Magnitudes> = recorded("magnitudes");
        assert_eq!(all.len(), 3 * 14);
        for Magnitudes { operation, height, width, imagenet, rand } in all {
            let at = |level| named(&operation).magnitude(level, height, width) as f32;
            let levels: Vec<f32> = (0..imagenet.len()).map(|level| at([level, IMAGENET_LEVELS])).collect();
            assert_eq!(levels, imagenet, "{operation} {height}x{width}");
            if let Some(rand) = rand {
                assert_eq!(at([RAND_LEVEL, RAND_LEVELS]), rand, "{operation} {height}x{width}");
            }
        }
    }

    #[derive(Deserialize)]
    struct Applied {
        picture: String,
        operation: String,
        magnitude: f32,
        digest: String,
    }

    #[test]
    fn operations_are_torchvisions() {
        let all: Vec<Applied> = recorded("operations");
        let mut different = Vec::new();
        for Applied { picture: name, operation, magnitude, digest: expected } in &all {
            let (mut picture, mut spare) = (fixture(name), Picture::default());
            named(operation).apply(&mut picture, &mut spare, f64::from(*magnitude));
            if digest(&picture) != *expected {
                different.push(format!("{name} {operation} {magnitude}"));
            }
        }
        assert!(different.is_empty(), "{} of {} differ: {different:#?}", different.len(), all.len());
        assert!(ALL.iter().all(|operation| all.iter().any(|one| named(&one.operation) == *operation)));
    }

    #[derive(Deserialize)]
    struct Pair {
        picture: String,
        pair: usize,
        chances: [f64; 2],
        positive: [bool; 2],
        digest: String,
    }

    #[test]
    fn the_policy_is_torchvisions() {
        let all: Vec<Pair> = recorded("pairs");
        assert!((0..25).all(|pair| all.iter().filter(|one| one.pair == pair).count() >= 5));
        for Pair { picture: name, pair, chances, positive, digest: expected } in all {
            let mut picture = fixture(&name);
            apply_pair(&mut picture, &mut Picture::default(), pair, chances, positive);
            assert_eq!(digest(&picture), expected, "{name}: pair {pair}, {chances:?} {positive:?}");
        }
    }

    #[derive(Deserialize)]
    struct Rand {
        picture: String,
        operation: usize,
        positive: bool,
        digest: String,
    }

    #[test]
    fn rand_augment_is_torchvisions() {
        let all: Vec<Rand> = recorded("rand");
        assert_eq!(all.len(), 2 * (14 + 9));
        for Rand { picture: name, operation, positive, digest: expected } in all {
            let (mut picture, operation) = (fixture(&name), RAND[operation]);
            let level = [RAND_LEVEL, RAND_LEVELS];
            operation.apply_level(&mut picture, &mut Picture::default(), level, positive);
            assert_eq!(digest(&picture), expected, "{name}: {operation:?}, {positive}");
        }
    }

    /// Whatever the shape, the operations return, and keep it.
    #[test]
    fn odd_shapes() {
        for (height, width, channels) in [(1, 1, 3), (1, 5, 1), (2, 2, 3), (7, 1, 1), (3, 9, 1)] {
            let pixels = (0..height * width * channels).map(|i| (i * 19) as u8).collect();
            let original = Picture { height, width, channels, pixels };
            for operation in ALL {
                for positive in [false, true] {
                    let (mut picture, mut spare) = (original.clone(), Picture::default());
                    operation.apply_level(&mut picture, &mut spare, [9, 10], positive);
                    assert_eq!(picture.pixels.len(), original.pixels.len(), "{operation:?}");
                    assert_eq!((picture.height, picture.width), (height, width), "{operation:?}");
                }
            }
        }
    }

    /// What a seed makes of a picture is part of what it means.
    #[test]
    fn results_are_pinned() {
        let digests = [AutoAugment::Imagenet, AutoAugment::Rand].map(|auto| {
            let (mut picture, mut spare) = (fixture("wide.png"), Picture::default());
            auto.apply(&mut picture, &mut spare, &mut Draws::new(1, 2, 4));
            digest(&picture)
        });
        assert_eq!(digests, ["2293066bc5b5941e", "1a07608302eb6de2"]);
    }
}
