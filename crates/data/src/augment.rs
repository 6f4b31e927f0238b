//! What is done to an image before the model sees it, as settings that can be written into a recipe.
//!
//! Everything follows torchvision's transforms on PIL images, in the order of its reference recipes: crop,
//! resize, flip, jitter and automatic augmentation on 8 bits per channel, then normalisation, erasing, and
//! the mixing of a batch. Resizing is bilinear with antialiasing.

use anyhow::{Context, Result, bail, ensure};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::Source;
use super::auto_augment::AutoAugment;
use super::mix::Mixing;
use super::picture::Picture;
use srigl_tensors::memory::{self, TooLarge};

/// Mean of each channel of ImageNet's training pixels, scaled to [0, 1], as torchvision has it.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of each channel of ImageNet's training pixels, as torchvision has it.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The largest height and width that images are resized to, in pixels.
pub const MAX_SIZE: usize = 4096;

/// All that is done to images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Transform {
    /// To training images.
    #[serde(default)]
    pub train: Augment,
    /// To test images; nothing if not given.
    #[serde(default)]
    pub eval: Option<CentreCrop>,
    /// To all images, after that.
    pub normalise: Normalise,
    /// To batches of training images, last; nothing if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mixing>,
}

/// Random changes to training images. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Augment {
    /// Which part of the image is taken.
    pub crop: Crop,
    /// Mirrors half of the images, left to right.
    pub flip: bool,
    /// Changes the colours; not if not given.
    pub jitter: Option<Jitter>,
    /// Makes a random series of changes; none if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto: Option<AutoAugment>,
    /// Erases a box, once normalised; none if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erase: Option<Erase>,
}

/// Which part of a training image is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Crop {
    /// All of it.
    #[default]
    Whole,
    /// As much as the image has, anywhere within it and a border: `RandomCrop(padding=border)`.
    Pad {
        /// Width of the border, in pixels.
        border: usize,
        /// What the border shows; black if not given.
        #[serde(default, skip_serializing_if = "PadMode::is_black")]
        mode: PadMode,
    },
    /// A square anywhere within the image, once that has one of two sizes: `Resize(side)`, with either of
    /// `sides` half of the time, then `RandomCrop(size)`.
    Scaled {
        /// What the shorter side is resized to, in pixels.
        sides: [usize; 2],
        /// Height and width of the square, in pixels; at most the smaller of `sides`.
        size: usize,
    },
    /// A part of random size and shape, resized: `RandomResizedCrop(size)`.
    Resized {
        /// Height and width to resize to, in pixels.
        size: usize,
        /// Share of the image's area that the part has, from and to; torchvision's default is 0.08 to 1.
        #[serde(default = "default_scale")]
        scale: [f64; 2],
        /// Width divided by height of the part, from and to; torchvision's default is 3/4 to 4/3.
        #[serde(default = "default_ratio")]
        ratio: [f64; 2],
    },
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

/// What the border around an image shows: `padding_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PadMode {
    /// Nothing: `constant`.
    #[default]
    Black,
    /// The image mirrored at its outermost pixels: `reflect`.
    Reflect,
}

impl PadMode {
    fn is_black(&self) -> bool {
        *self == Self::Black
    }
}

/// A box of random size, shape and place becomes 0, the mean of what is normalised: `RandomErasing`. Its
/// area is 0.02 to 0.33 of the image, its height 0.3 to 3.3 of its width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Erase {
    /// Share of the images that this happens to, 0 to 1.
    pub probability: f64,
}

/// Least and largest share of an image's area that is erased.
const ERASE_SCALE: [f64; 2] = [0.02, 0.33];

/// Least and largest height of what is erased, divided by its width.
const ERASE_RATIO: [f64; 2] = [0.3, 3.3];

/// Random changes of colour: `ColorJitter`. Each strength `s` draws a factor from `[max(0, 1 - s), 1 + s]`,
/// 1 changing nothing; the three are applied in random order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Jitter {
    /// Strength of the blend with black.
    pub brightness: f32,
    /// Strength of the blend with the mean grey of the image.
    pub contrast: f32,
    /// Strength of the blend with the grey image.
    pub saturation: f32,
}

/// The middle of an image: `Resize(resize)`, then `CenterCrop(crop)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CentreCrop {
    /// What the shorter side is resized to, in pixels.
    pub resize: usize,
    /// Height and width of the middle that is taken, in pixels; at most `resize`.
    pub crop: usize,
}

/// Makes pixels, scaled to [0, 1], `(pixel - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Normalise {
    /// Mean of each channel, or one for all: `[channels]` or `[1]`.
    pub mean: Vec<f32>,
    /// Standard deviation, likewise.
    pub std: Vec<f32>,
}

impl Transform {
    /// What is usual for a set: nothing for grey images, a border of 4 pixels and flips for CIFAR, and for
    /// folders what ImageNet is trained with at 224 pixels. Images in memory are normalised with the mean
    /// and standard deviation of each channel, folders with [`IMAGENET_MEAN`] and [`IMAGENET_STD`].
    pub fn standard(source: &Source) -> Self {
        match source {
            Source::Memory(images) => {
                let (mean, std) = images.channel_mean_std().into_iter().unzip();
                let train = match images.channels {
                    1 => Augment::default(),
                    _ => Augment {
                        crop: Crop::Pad { border: 4, mode: PadMode::Black },
                        flip: true,
                        ..Augment::default()
                    },
                };
                Self { train, eval: None, normalise: Normalise { mean, std }, mix: None }
            }
            Source::Folder(_) => Self::imagenet(224, 256),
        }
    }

    /// What ImageNet is trained with, at `size` pixels: random resized crops and flips; to test, the middle
    /// of images whose shorter side is resized to `resize` pixels.
    pub fn imagenet(size: usize, resize: usize) -> Self {
        let crop = Crop::Resized { size, scale: default_scale(), ratio: default_ratio() };
        Self {
            train: Augment { crop, flip: true, ..Augment::default() },
            eval: Some(CentreCrop { resize, crop: size }),
            normalise: Normalise { mean: IMAGENET_MEAN.to_vec(), std: IMAGENET_STD.to_vec() },
            mix: None,
        }
    }

    /// Checks the settings for images with so many `channels`, all of size `[height, width]` if that is
    /// given, and returns the shape of what comes out, `[channels, height, width]`.
    ///
    /// # Errors
    /// A setting out of its range; training and test images that come out in different sizes; images of
    /// various sizes that are not made equal.
    pub fn check(&self, channels: usize, size: Option<[usize; 2]>) -> Result<[usize; 3]> {
        self.train.check(size)?;
        if let Some(CentreCrop { resize, crop }) = self.eval {
            ensure!(
                (1..=resize).contains(&crop) && resize <= MAX_SIZE,
                "`eval` resizes to {resize} and crops to {crop}, but needs 1 <= crop <= resize <= {MAX_SIZE}"
            );
        }
        self.normalise.check(channels)?;
        if let Some(mix) = self.mix {
            mix.check()?;
        }
        let train = match self.train.crop {
            Crop::Scaled { size, .. } | Crop::Resized { size, .. } => Some([size; 2]),
            Crop::Whole | Crop::Pad { .. } => size,
        };
        let eval = self.eval.map(|eval| [eval.crop; 2]).or(size);
        let train =
            train.context("the pictures differ in size; set `train.crop` to `resized` or `scaled`")?;
        let eval = eval.context("the pictures differ in size; set `eval` to a centre crop")?;
        ensure!(
            train == eval,
            "training images come out as {}x{}, but test images as {}x{}; set `train.crop` and `eval` alike",
            train[0],
            train[1],
            eval[0],
            eval[1]
        );
        Ok([channels, train[0], train[1]])
    }
}

impl Augment {
    fn check(&self, size: Option<[usize; 2]>) -> Result<()> {
        match self.crop {
            Crop::Whole => {}
            Crop::Pad { border, mode } => {
                let Some([height, width]) = size else {
                    bail!("the pictures differ in size, so they cannot be padded; crop them `resized`");
                };
                let most = match mode {
                    PadMode::Black => height.min(width),
                    // The outermost pixels are not repeated.
                    PadMode::Reflect => height.min(width).saturating_sub(1),
                };
                ensure!(border <= most, "the border of `crop` is {border}, but can be {most} at most");
            }
            Crop::Scaled { sides, size } => {
                let [small, large] = [sides[0].min(sides[1]), sides[0].max(sides[1])];
                ensure!(
                    (1..=small).contains(&size) && large <= MAX_SIZE,
                    "`crop` resizes to {} or {} and takes {size} pixels, but needs \
                     1 <= size <= sides <= {MAX_SIZE}",
                    sides[0],
                    sides[1]
                );
            }
            Crop::Resized { size, scale, ratio } => {
                ensure!((1..=MAX_SIZE).contains(&size), "`size` is {size}, but must be 1 to {MAX_SIZE}");
                let [from, to] = scale;
                ensure!(
                    0.0 < from && from <= to && to <= 1.0,
                    "`scale` is {from} to {to}, but must lie in (0, 1] and not fall"
                );
                let [from, to] = ratio;
                ensure!(
                    0.0 < from && from <= to && to.is_finite(),
                    "`ratio` is {from} to {to}, but must be positive and not fall"
                );
            }
        }
        if let Some(Jitter { brightness, contrast, saturation }) = self.jitter {
            for (name, strength) in
                [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)]
            {
                ensure!(
                    strength.is_finite() && strength >= 0.0,
                    "`{name}` is {strength}, but must not be negative"
                );
            }
        }
        if let Some(Erase { probability }) = self.erase {
            ensure!(
                (0.0..=1.0).contains(&probability),
                "the probability to `erase` is {probability}, but must be 0 to 1"
            );
        }
        Ok(())
    }
}

impl Normalise {
    /// Leaves the values in [0, 1]: mean 0, standard deviation 1.
    pub fn none() -> Self {
        Self { mean: vec![0.0], std: vec![1.0] }
    }

    fn check(&self, channels: usize) -> Result<()> {
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            ensure!(
                values.len() == 1 || values.len() == channels,
                "`{name}` has {} values, but the images have {channels} channels",
                values.len()
            );
            ensure!(values.iter().all(|value| value.is_finite()), "`{name}` must be finite");
        }
        ensure!(
            self.std.iter().all(|&std| std > 0.0),
            "`std` must be positive; where it is that of the images, they are all alike"
        );
        // Both ends of what a pixel can be.
        let is_finite = |row: &[f32; 256]| row[0].is_finite() && row[255].is_finite();
        ensure!(
            self.table(channels).iter().all(is_finite),
            "with this `mean` and `std`, pixels become larger than numbers can be"
        );
        Ok(())
    }

    /// Normalised value of each possible pixel, `[channels, 256]`.
    pub(crate) fn table(&self, channels: usize) -> Vec<[f32; 256]> {
        let of = |values: &[f32], c: usize| values[c.min(values.len() - 1)];
        let row = |c| {
            let (mean, std) = (of(&self.mean, c), of(&self.std, c));
            std::array::from_fn(|pixel| (pixel as f32 / 255.0 - mean) / std)
        };
        (0..channels).map(row).collect()
    }
}

/// The random numbers of one image or batch in one epoch: they depend on nothing else, so neither the
/// number of threads nor the point where a run was resumed shows. By hand, because `rand` may change its
/// samplers between versions.
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    /// Those of image `index`.
    pub(crate) fn new(seed: u64, epoch: u64, index: u64) -> Self {
        Self::keyed([seed, epoch, index], *b"augment.")
    }

    /// Those of batch `number`.
    pub(crate) fn of_batch(seed: u64, epoch: u64, number: u64) -> Self {
        Self::keyed([seed, epoch, number], *b"mix-ups.")
    }

    fn keyed([seed, epoch, number]: [u64; 3], purpose: [u8; 8]) -> Self {
        let mut key = [0; 32];
        let words = [seed, epoch, number, u64::from_le_bytes(purpose)];
        for (to, word) in key.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[low, high)`.
    pub(crate) fn within(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        low + (high - low) * unit
    }

    /// Uniform in `0..n`, as near as 32 bits allow; `n` is below 2^32.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.0.next_u32() >> 31 == 1
    }
}

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// What is left to do once an image is augmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Mirror it. [`normalise`] does that on the way.
    pub(crate) flip: bool,
    /// Erase this part, after that.
    pub(crate) erase: Option<Part>,
}

/// Memory that is kept from image to image.
pub(crate) struct Workspace {
    resizer: Resizer,
    /// The most bytes that a step may take.
    budget: u64,
    /// The image that is worked on.
    pub(crate) picture: Picture,
    /// What the next step makes of it.
    next: Picture,
}

impl Workspace {
    /// One whose steps take `budget` bytes at most.
    pub(crate) fn new(budget: u64) -> Self {
        let (picture, next) = Default::default();
        Self { resizer: Resizer::default(), budget, picture, next }
    }

    /// Changes [`Workspace::picture`] at random.
    ///
    /// New settings draw last, so that a seed means the same where they are not used.
    pub(crate) fn augment(&mut self, augment: &Augment, draws: &mut Draws) -> Result<Rest> {
        match augment.crop {
            Crop::Whole => {}
            Crop::Pad { border, mode } => {
                let (down, right) = (draws.below(2 * border + 1), draws.below(2 * border + 1));
                match mode {
                    PadMode::Black => self.shift(border, down, right),
                    PadMode::Reflect => self.shift_reflected(border, down, right),
                }
            }
            Crop::Scaled { sides, size } => {
                let [height, width] = self.resize_shorter(sides[draws.below(sides.len())])?;
                let (top, left) = (draws.below(height - size + 1), draws.below(width - size + 1));
                self.cut(Part { top, left, height: size, width: size });
            }
            Crop::Resized { size, scale, ratio } => {
                let part = random_part(&self.picture, scale, ratio, draws);
                self.resize(part, [size; 2])?;
            }
        }
        let mut flip = augment.flip && draws.coin();
        if let Some(strengths) = augment.jitter {
            jitter(&mut self.picture, strengths, draws);
        }
        if let Some(auto) = augment.auto {
            // Turning a picture and mirroring it gives something else than the other way round.
            if std::mem::take(&mut flip) {
                mirror(&mut self.picture);
            }
            auto.apply(&mut self.picture, &mut self.next, draws);
        }
        let Picture { height, width, .. } = self.picture;
        let erase = augment.erase.and_then(|erase| erased_part(erase, height, width, draws));
        Ok(Rest { flip, erase })
    }

    /// Makes [`Workspace::picture`] its middle.
    pub(crate) fn centre_crop(&mut self, CentreCrop { resize, crop }: CentreCrop) -> Result<()> {
        let size = self.resize_shorter(resize)?;
        // Python rounds halves to even.
        let start = |side: usize| ((side - crop) as f64 / 2.0).round_ties_even() as usize;
        let part = Part { top: start(size[0]), left: start(size[1]), height: crop, width: crop };
        self.cut(part);
        Ok(())
    }

    /// Resizes the image so that its shorter side becomes `side`: `Resize(side)`. Returns its height and
    /// width.
    fn resize_shorter(&mut self, side: usize) -> Result<[usize; 2]> {
        let Picture { height, width, .. } = self.picture;
        let long = |long: usize, short: usize| side * long / short;
        let size = match height < width {
            true => [side, long(width, height)],
            false => [long(height, width), side],
        };
        let longest = size[0].max(size[1]);
        ensure!(longest <= 1 << 16, "{height}x{width} pixels are too narrow to be resized and cropped");
        if size != [height, width] {
            self.resize(Part { top: 0, left: 0, height, width }, size)?;
        }
        Ok(size)
    }

    fn cut(&mut self, part: Part) {
        let Picture { width, channels, ref pixels, .. } = self.picture;
        self.next.reshape(part.height, part.width, channels);
        let rows = self.next.pixels.chunks_exact_mut(part.width * channels);
        for (to, y) in rows.zip(part.top..) {
            to.copy_from_slice(&pixels[(y * width + part.left) * channels..][..part.width * channels]);
        }
        std::mem::swap(&mut self.picture, &mut self.next);
    }

    /// Moves the image within a black border: it comes out in its size, from row `down` and column `right`
    /// of the image with the border around it.
    fn shift(&mut self, border: usize, down: usize, right: usize) {
        let Picture { height, width, channels, ref pixels } = self.picture;
        self.next.reshape(height, width, channels);
        self.next.pixels.fill(0);
        let overlap = |shift: usize, side: usize| {
            let to = border.saturating_sub(shift);
            let from = shift.saturating_sub(border);
            (from, to, side - from - to)
        };
        let (from_row, to_row, rows) = overlap(down, height);
        let (from_column, to_column, columns) = overlap(right, width);
        for row in 0..rows {
            let from = ((from_row + row) * width + from_column) * channels;
            let to = ((to_row + row) * width + to_column) * channels;
            let count = columns * channels;
            self.next.pixels[to..][..count].copy_from_slice(&pixels[from..][..count]);
        }
        std::mem::swap(&mut self.picture, &mut self.next);
    }

    /// As [`Workspace::shift`], with a border that mirrors the image; `border` is less than its sides.
    fn shift_reflected(&mut self, border: usize, down: usize, right: usize) {
        let Picture { height, width, channels, ref pixels } = self.picture;
        self.next.reshape(height, width, channels);
        let reflect = |at: usize, side: usize| match at < border {
            true => border - at,
            false if at - border < side => at - border,
            false => 2 * (side - 1) - (at - border),
        };
        let rows = self.next.pixels.chunks_exact_mut(width * channels);
        for (to, row) in rows.zip(down..) {
            let from = &pixels[reflect(row, height) * width * channels..][..width * channels];
            for (to, column) in to.chunks_exact_mut(channels).zip(right..) {
                to.copy_from_slice(&from[reflect(column, width) * channels..][..channels]);
            }
        }
        std::mem::swap(&mut self.picture, &mut self.next);
    }

    /// Makes the image `part` of it, resized to `[height, width]`; pixels outside the part do not count.
    fn resize(&mut self, part: Part, size: [usize; 2]) -> Result<()> {
        let (from, to) = (&self.picture, &mut self.next);
        // What comes out, the image between resizing its columns and its rows, and the weights of its pixels.
        let pixels = size[0].saturating_mul(size[1].saturating_add(from.width));
        let weights = WEIGHT_BYTES * (from.height + from.width) as u64;
        let bytes = memory::product(&[pixels, from.channels]).and_then(|bytes| bytes.checked_add(weights));
        if bytes.is_none_or(|bytes| bytes > self.budget.min(MAX_RESIZED)) {
            let [height, width] = size;
            let what = format!("{}x{} pixels cannot become {height}x{width}", from.height, from.width);
            // Whether a picture is left out does not depend on the machine.
            ensure!(bytes.is_some_and(|bytes| bytes <= MAX_RESIZED), "{what}");
            return Err(TooLarge { bytes, limit: self.budget }).context(what);
        }
        to.reshape(size[0], size[1], from.channels);
        // With types of pixels named: `resize`, which looks at them as it runs, compiles code for every type.
        match from.channels {
            1 => resize::<U8>(&mut self.resizer, from, part, to)?,
            _ => resize::<U8x3>(&mut self.resizer, from, part, to)?,
        }
        std::mem::swap(&mut self.picture, &mut self.next);
        Ok(())
    }
}

/// The most bytes for resizing, on any machine.
const MAX_RESIZED: u64 = 1 << 30;

/// Bytes that resizing takes for each row and column of an image: two weights, in two forms.
const WEIGHT_BYTES: u64 = 32;

fn resize<P: PixelTrait>(resizer: &mut Resizer, from: &Picture, part: Part, to: &mut Picture) -> Result<()> {
    let side = |side: usize| side as u32; // pictures have at most 2^27 pixels
    let from = TypedImageRef::<P>::from_buffer(side(from.width), side(from.height), &from.pixels)?;
    let (left, top) = (side(part.left), side(part.top));
    let from = TypedCroppedImage::from_ref(&from, left, top, side(part.width), side(part.height))?;
    let (width, height) = (side(to.width), side(to.height));
    let mut to = TypedImage::<P>::from_buffer(width, height, &mut to.pixels)?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Ok(resizer.resize_typed(&from, &mut to, &options)?)
}

/// A part of random size, shape and place: torchvision's `RandomResizedCrop.get_params`.
fn random_part(picture: &Picture, scale: [f64; 2], ratio: [f64; 2], draws: &mut Draws) -> Part {
    let (height, width) = (picture.height, picture.width);
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..10 {
        let area = (height * width) as f64 * draws.within(scale[0], scale[1]);
        let aspect = draws.within(log_ratio[0], log_ratio[1]).exp();
        let part_width = (area * aspect).sqrt().round_ties_even() as usize;
        let part_height = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&part_width) && (1..=height).contains(&part_height) {
            let top = draws.below(height - part_height + 1);
            let left = draws.below(width - part_width + 1);
            return Part { top, left, height: part_height, width: part_width };
        }
    }
    // The image is long and narrow: its middle, as long as the ratio allows.
    let aspect = width as f64 / height as f64;
    let (part_height, part_width) = if aspect < ratio[0] {
        (((width as f64 / ratio[0]).round_ties_even() as usize).clamp(1, height), width)
    } else if aspect > ratio[1] {
        (height, ((height as f64 * ratio[1]).round_ties_even() as usize).clamp(1, width))
    } else {
        (height, width)
    };
    let (top, left) = ((height - part_height) / 2, (width - part_width) / 2);
    Part { top, left, height: part_height, width: part_width }
}

/// Which part of an image is erased, if any: torchvision's `RandomErasing.get_params`.
fn erased_part(erase: Erase, height: usize, width: usize, draws: &mut Draws) -> Option<Part> {
    let happens = draws.within(0.0, 1.0) < erase.probability;
    let log_ratio = ERASE_RATIO.map(f64::ln);
    let tries = if happens { 10 } else { 0 };
    let size = (0..tries).find_map(|_| {
        let share = draws.within(ERASE_SCALE[0], ERASE_SCALE[1]);
        let log_aspect = draws.within(log_ratio[0], log_ratio[1]);
        erased_size(height, width, share, log_aspect)
    });
    size.map(|[part_height, part_width]| {
        let (top, left) = (draws.below(height - part_height + 1), draws.below(width - part_width + 1));
        Part { top, left, height: part_height, width: part_width }
    })
}

/// Height and width of a part with this share of an image's area and this height by width; none if that
/// does not fit.
fn erased_size(height: usize, width: usize, share: f64, log_aspect: f64) -> Option<[usize; 2]> {
    let (area, aspect) = ((height * width) as f64 * share, log_aspect.exp());
    let part_height = (area * aspect).sqrt().round_ties_even() as usize;
    let part_width = (area / aspect).sqrt().round_ties_even() as usize;
    (part_height < height && part_width < width).then_some([part_height, part_width])
}

/// Mirrors a picture, left to right.
fn mirror(picture: &mut Picture) {
    for row in picture.pixels.chunks_exact_mut(picture.width * picture.channels) {
        row.reverse();
        for pixel in row.chunks_exact_mut(picture.channels) {
            pixel.reverse();
        }
    }
}

fn jitter(picture: &mut Picture, strengths: Jitter, draws: &mut Draws) {
    let mut order = [0, 1, 2];
    for last in [2, 1] {
        order.swap(last, draws.below(last + 1));
    }
    let strengths = [strengths.brightness, strengths.contrast, strengths.saturation];
    let factors = strengths.map(|strength| {
        let strength = f64::from(strength);
        draws.within((1.0 - strength).max(0.0), 1.0 + strength) as f32
    });
    for change in order {
        let factor = factors[change];
        if strengths[change] > 0.0 {
            match change {
                0 => brightness(picture, factor),
                1 => contrast(picture, factor),
                _ => saturation(picture, factor),
            }
        }
    }
}

/// `from + factor * (to - from)`, as PIL rounds it.
pub(crate) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    (from + factor * (to - from)) as u8 // saturates
}

/// The grey value of a pixel, as PIL rounds it.
fn grey(pixel: &[u8]) -> u8 {
    match *pixel {
        [r, g, b] => {
            ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
        }
        _ => pixel[0],
    }
}

pub(crate) fn brightness(picture: &mut Picture, factor: f32) {
    for value in &mut picture.pixels {
        *value = blend(0, *value, factor);
    }
}

pub(crate) fn contrast(picture: &mut Picture, factor: f32) {
    let pixels = picture.pixels.chunks_exact(picture.channels);
    let count = pixels.len() as f64;
    let sum: u64 = pixels.map(|pixel| u64::from(grey(pixel))).sum();
    let mean = (sum as f64 / count + 0.5) as u8;
    for value in &mut picture.pixels {
        *value = blend(mean, *value, factor);
    }
}

pub(crate) fn saturation(picture: &mut Picture, factor: f32) {
    for pixel in picture.pixels.chunks_exact_mut(picture.channels) {
        let grey = grey(pixel);
        for value in pixel {
            *value = blend(grey, *value, factor);
        }
    }
}

/// Writes `[channels, height, width]` normalised values of a picture to `to`, mirrored or not.
pub(crate) fn normalise(picture: &Picture, flip: bool, table: &[[f32; 256]], to: &mut [f32]) {
    let Picture { height, width, channels, ref pixels } = *picture;
    for (to, (c, table)) in to.chunks_exact_mut(height * width).zip(table.iter().enumerate()) {
        for (to, from) in to.chunks_exact_mut(width).zip(pixels.chunks_exact(width * channels)) {
            let from = from.iter().skip(c).step_by(channels).map(|value| table[usize::from(*value)]);
            match flip {
                true => to.iter_mut().rev().zip(from).for_each(|(to, from)| *to = from),
                false => to.iter_mut().zip(from).for_each(|(to, from)| *to = from),
            }
        }
    }
}

/// Sets `part` of `[channels, height, width]` values to 0.
pub(crate) fn erase(to: &mut [f32], part: Part, [height, width]: [usize; 2]) {
    for plane in to.chunks_exact_mut(height * width) {
        for row in plane.chunks_exact_mut(width).skip(part.top).take(part.height) {
            row[part.left..][..part.width].fill(0.0);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::Path;

    use serde::de::DeserializeOwned;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::picture::tests::{difference, fixture};

    /// An entry of `tests/fixtures/recorded.json`, written by `tests/record_fixtures.py`.
    pub(crate) fn recorded<T: DeserializeOwned>(name: &str) -> T {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recorded.json");
        let mut all: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        serde_json::from_value(all[name].take()).unwrap()
    }

    /// The start of the SHA-256 of a picture's pixels.
    pub(crate) fn digest(picture: &Picture) -> String {
        srigl_tensors::hex(&Sha256::digest(&picture.pixels)[..8])
    }

    #[test]
    fn resizing_keeps_to_the_budget() {
        let long = || Picture { height: 1, width: 1 << 20, channels: 3, pixels: vec![0; 3 << 20] };
        let mut small = Workspace { picture: long(), ..Workspace::new(1 << 26) };
        let whole = Part { top: 0, left: 0, height: 1, width: 1 << 20 };
        // Its rows are made first: 64 times as much as it is.
        let error = small.resize(whole, [64; 2]).unwrap_err();
        assert!(error.downcast_ref::<TooLarge>().is_some());
        let error = format!("{error:#}");
        assert!(error.contains("1x1048576 pixels cannot become 64x64: it would take 234.9 MB"), "{error}");
        // What is too much on any machine is the picture's fault.
        let error = small.resize(whole, [4096; 2]).unwrap_err();
        assert!(error.downcast_ref::<TooLarge>().is_none(), "{error:#}");
        small.resize(whole, [4, 4]).unwrap();
        assert_eq!(small.picture.pixels, [0; 48]);
    }

    fn workspace(picture: Picture) -> Workspace {
        Workspace { picture, ..Workspace::new(u64::MAX) }
    }

    #[test]
    fn centre_crops_are_torchvisions() {
        for name in ["wide", "tall"] {
            for (resize, crop) in [(24, 20), (40, 37)] {
                let mut workspace = workspace(fixture(&format!("{name}.png")));
                workspace.centre_crop(CentreCrop { resize, crop }).unwrap();
                let expected = fixture(&format!("{name}-centre-{resize}-{crop}.png"));
                let (most, mean) = difference(&workspace.picture, &expected);
                assert!(most <= 1 && mean < 0.25, "{name} {resize}: at most {most}, on average {mean}");
            }
        }
    }

    #[test]
    fn resized_parts_are_torchvisions() {
        for name in ["wide", "tall"] {
            for (top, left, height, width) in [(5, 0, 40, 30), (20, 11, 9, 8), (0, 3, 6, 30)] {
                let mut workspace = workspace(fixture(&format!("{name}.png")));
                workspace.resize(Part { top, left, height, width }, [16, 16]).unwrap();
                let expected = fixture(&format!("{name}-part-{top}-{left}-{height}-{width}.png"));
                let (most, mean) = difference(&workspace.picture, &expected);
                assert!(most <= 1 && mean < 0.25, "{name} {top}: at most {most}, on average {mean}");
            }
        }
    }

    #[test]
    fn colours_change_as_in_torchvision() {
        type Change = fn(&mut Picture, f32);
        let changes: [(&str, Change); 3] =
            [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)];
        for (name, change) in changes {
            for factor in [0.3, 1.6] {
                let mut picture = fixture("wide.png");
                change(&mut picture, factor);
                let expected = fixture(&format!("wide-{name}-{factor}.png"));
                let (most, _) = difference(&picture, &expected);
                assert_eq!(most, 0, "{name} {factor}");
            }
        }
    }

    /// A picture whose pixels all differ.
    fn numbered(height: usize, width: usize) -> Picture {
        let pixels = (0..height * width * 3).map(|i| i as u8).collect();
        Picture { height, width, channels: 3, pixels }
    }

    #[test]
    fn shifts_are_exact() {
        let picture = numbered(5, 7);
        let border = 2;
        for down in 0..=2 * border {
            for right in 0..=2 * border {
                let mut workspace = workspace(picture.clone());
                workspace.shift(border, down, right);
                for y in 0..5 {
                    for x in 0..7 {
                        let (from_y, from_x) = (y + down, x + right);
                        let inside =
                            (border..5 + border).contains(&from_y) && (border..7 + border).contains(&from_x);
                        let expected = match inside {
                            true => &picture.pixels[((from_y - border) * 7 + from_x - border) * 3..][..3],
                            false => &[0; 3],
                        };
                        assert_eq!(&workspace.picture.pixels[(y * 7 + x) * 3..][..3], expected);
                    }
                }
            }
        }
    }

    #[derive(Deserialize)]
    struct Reflected {
        picture: String,
        border: usize,
        down: usize,
        right: usize,
        digest: String,
    }

    #[test]
    fn reflected_borders_are_torchvisions() {
        let all: Vec<Reflected> = recorded("reflected");
        assert_eq!(all.len(), 12);
        for Reflected { picture, border, down, right, digest: expected } in all {
            let mut workspace = workspace(fixture(&picture));
            workspace.shift_reflected(border, down, right);
            assert_eq!(digest(&workspace.picture), expected, "{picture}: {border} {down} {right}");
        }
    }

    #[test]
    fn scaled_crops_are_torchvisions() {
        for (name, side, top, left) in [("wide", 30, 9, 17), ("tall", 40, 30, 2)] {
            let mut workspace = workspace(fixture(&format!("{name}.png")));
            workspace.resize_shorter(side).unwrap();
            workspace.cut(Part { top, left, height: 20, width: 20 });
            let expected = fixture(&format!("{name}-scaled-{side}-{top}-{left}.png"));
            let (most, mean) = difference(&workspace.picture, &expected);
            assert!(most <= 1 && mean < 0.25, "{name} {side}: at most {most}, on average {mean}");
        }
    }

    #[test]
    fn scaled_crops_draw_side_then_place() {
        let crop = Crop::Scaled { sides: [30, 45], size: 20 };
        let augment = Augment { crop, ..Augment::default() };
        let mut larger = 0;
        for index in 0..100 {
            let mut draws = Draws::new(1, 2, index);
            let mut expected = workspace(fixture("tall.png"));
            let side = [30, 45][draws.below(2)];
            let [height, width] = expected.resize_shorter(side).unwrap();
            let (top, left) = (draws.below(height - 19), draws.below(width - 19));
            expected.cut(Part { top, left, height: 20, width: 20 });
            larger += usize::from(side == 45);

            let mut ours = workspace(fixture("tall.png"));
            ours.augment(&augment, &mut Draws::new(1, 2, index)).unwrap();
            assert_eq!(ours.picture, expected.picture);
        }
        assert!((30..70).contains(&larger), "{larger}");
    }

    /// Where pictures are changed as a whole, they are mirrored before.
    #[test]
    fn flips_come_before_automatic_augmentation() {
        let with = |auto| Augment { flip: true, auto, ..Augment::default() };
        let mut flips = 0;
        for index in 0..50 {
            let mut plain = workspace(fixture("wide-centre-24-20.png"));
            let rest = plain.augment(&with(None), &mut Draws::new(4, 0, index)).unwrap();
            if rest.flip {
                mirror(&mut plain.picture);
                flips += 1;
            }
            let mut draws = Draws::new(4, 0, index);
            draws.coin();
            AutoAugment::Rand.apply(&mut plain.picture, &mut Picture::default(), &mut draws);

            let mut whole = workspace(fixture("wide-centre-24-20.png"));
            let rest = whole.augment(&with(Some(AutoAugment::Rand)), &mut Draws::new(4, 0, index));
            assert_eq!(rest.unwrap(), Rest::default());
            assert_eq!(whole.picture, plain.picture);
        }
        assert!((15..35).contains(&flips), "{flips}");
    }

    #[derive(Deserialize)]
    struct Erased {
        height: usize,
        width: usize,
        share: f64,
        log_aspect: f64,
        /// None if it does not fit.
        size: Option<[usize; 2]>,
    }

    #[test]
    fn erased_sizes_are_torchvisions() {
        let all: Vec<Erased> = recorded("erased");
        assert!(all.len() > 50 && all.iter().any(|one| one.size.is_none()));
        for Erased { height, width, share, log_aspect, size } in all {
            let ours = erased_size(height, width, share, log_aspect);
            assert_eq!(ours, size, "{height}x{width}: {share} {log_aspect}");
        }
    }

    #[test]
    fn erased_parts_keep_their_bounds() {
        let parts = |probability, height, width| -> Vec<Part> {
            let part =
                |index| erased_part(Erase { probability }, height, width, &mut Draws::new(1, 2, index));
            (0..1000).filter_map(part).collect()
        };
        for (height, width) in [(224, 224), (32, 32), (20, 40)] {
            let all = parts(1.0, height, width);
            assert!(all.len() > 990, "{}", all.len());
            assert!(all.iter().all(|part| part.top + part.height <= height));
            assert!(all.iter().all(|part| part.left + part.width <= width));
            let areas = all.iter().map(|part| (part.height * part.width) as f64 / (height * width) as f64);
            let mean = areas.sum::<f64>() / all.len() as f64;
            assert!((0.16..0.19).contains(&mean), "{mean}"); // uniform in 0.02 to 0.33
        }
        assert!((160..240).contains(&parts(0.2, 32, 32).len()));
        assert!(parts(0.0, 32, 32).is_empty());
        assert!(parts(1.0, 1, 1).iter().all(|part| part.height * part.width == 0));
    }

    #[test]
    fn erases_exactly() {
        let mut values = [1.0; 2 * 3 * 4];
        erase(&mut values, Part { top: 1, left: 1, height: 2, width: 2 }, [3, 4]);
        for (i, value) in values.into_iter().enumerate() {
            let (y, x) = (i / 4 % 3, i % 4);
            let inside = (1..3).contains(&y) && (1..3).contains(&x);
            assert_eq!(value, if inside { 0.0 } else { 1.0 });
        }
    }

    #[test]
    fn without_normalisation_values_are_shares() {
        let table = Normalise::none().table(3);
        Normalise::none().check(3).unwrap();
        assert!(table.iter().all(|row| (0..256).all(|value| row[value] == value as f32 / 255.0)));
    }

    #[test]
    fn normalises_and_flips_exactly() {
        let picture = numbered(2, 3);
        let normalise_with = Normalise { mean: vec![0.5, 0.25, 0.0], std: vec![0.5, 0.25, 2.0] };
        let table = normalise_with.table(3);
        let (mut plain, mut mirrored) = ([0.0; 18], [0.0; 18]);
        normalise(&picture, false, &table, &mut plain);
        normalise(&picture, true, &table, &mut mirrored);
        for c in 0..3 {
            for y in 0..2 {
                for x in 0..3 {
                    let pixel = ((y * 3 + x) * 3 + c) as f32 / 255.0;
                    let expected = (pixel - normalise_with.mean[c]) / normalise_with.std[c];
                    assert_eq!(plain[(c * 2 + y) * 3 + x], expected);
                    assert_eq!(mirrored[(c * 2 + y) * 3 + 2 - x], expected);
                }
            }
        }
    }

    #[test]
    fn random_parts_keep_their_bounds() {
        let (scale, ratio) = (default_scale(), default_ratio());
        for (height, width) in [(375, 500), (500, 375), (1, 1), (2, 900), (900, 2)] {
            let picture = Picture { height, width, channels: 3, pixels: Vec::new() };
            let mut areas = Vec::new();
            for index in 0..500 {
                let part = random_part(&picture, scale, ratio, &mut Draws::new(1, 2, index));
                assert!(part.height >= 1 && part.top + part.height <= height);
                assert!(part.width >= 1 && part.left + part.width <= width);
                areas.push((part.height * part.width) as f64 / (height * width) as f64);
            }
            if height.min(width) > 100 {
                let mean = areas.iter().sum::<f64>() / 500.0;
                // Uniform in 0.08 to 1, less the large parts that do not fit.
                assert!((0.38..0.54).contains(&mean), "{mean}");
            }
        }
    }

    /// The random stream is part of what a seed means.
    #[test]
    fn draws_are_pinned() {
        let mut draws = Draws::new(1, 2, 3);
        let first = (draws.below(1000), draws.coin(), draws.within(0.0, 1.0));
        assert_eq!(first, (456, false, 0.141_960_728_032_187_07));
        assert_ne!(Draws::new(1, 2, 3).0.next_u64(), Draws::of_batch(1, 2, 3).0.next_u64());
        assert_ne!(Draws::new(1, 2, 3).0.next_u64(), Draws::new(1, 3, 2).0.next_u64());
    }

    #[test]
    fn settings_can_be_written_down() {
        for transform in [
            Transform::imagenet(224, 256),
            Transform {
                train: Augment {
                    crop: Crop::Pad { border: 4, mode: PadMode::Reflect },
                    flip: true,
                    jitter: Some(Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4 }),
                    auto: Some(AutoAugment::Imagenet),
                    erase: Some(Erase { probability: 0.2 }),
                },
                eval: None,
                normalise: Normalise { mean: vec![0.5], std: vec![0.25] },
                mix: Some(Mixing { mixup_alpha: Some(0.2), cutmix_alpha: Some(1.0) }),
            },
            Transform {
                train: Augment {
                    crop: Crop::Scaled { sides: [256, 480], size: 224 },
                    auto: Some(AutoAugment::Rand),
                    ..Augment::default()
                },
                ..Transform::imagenet(224, 256)
            },
        ] {
            let text = serde_json::to_string(&transform).unwrap();
            assert_eq!(serde_json::from_str::<Transform>(&text).unwrap(), transform, "{text}");
        }
        let text = r#"{"train": {"crop": {"resized": {"size": 64}}, "flip": true},
            "eval": {"resize": 72, "crop": 64}, "normalise": {"mean": [0.5], "std": [0.5]}}"#;
        let transform: Transform = serde_json::from_str(text).unwrap();
        assert_eq!(transform.check(3, None).unwrap(), [3, 64, 64]);
        assert!(serde_json::from_str::<Augment>(r#"{"flipp": true}"#).is_err());
    }

    /// Recipes from before there were these settings, and without them, stay as they were.
    #[test]
    fn settings_that_are_not_used_are_not_written() {
        let crop = Crop::Pad { border: 4, mode: PadMode::Black };
        let text = r#"{"train":{"crop":{"pad":{"border":4}},"flip":true,"jitter":null},"eval":null,"#;
        let text = format!("{text}{}", r#""normalise":{"mean":[0.5],"std":[0.25]}}"#);
        let transform = Transform {
            train: Augment { crop, flip: true, ..Augment::default() },
            eval: None,
            normalise: Normalise { mean: vec![0.5], std: vec![0.25] },
            mix: None,
        };
        assert_eq!(serde_json::to_string(&transform).unwrap(), text);
        assert_eq!(serde_json::from_str::<Transform>(&text).unwrap(), transform);
    }

    #[test]
    fn wrong_settings() {
        let good = Transform::imagenet(32, 36);
        good.check(3, Some([32, 32])).unwrap();
        let fails = |change: fn(&mut Transform), size: Option<[usize; 2]>, part: &str| {
            let mut transform = good.clone();
            change(&mut transform);
            let error = transform.check(3, size).unwrap_err().to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        };
        fails(|t| t.train.crop = Crop::Whole, None, "differ in size");
        fn pad(border: usize, mode: PadMode) -> Crop {
            Crop::Pad { border, mode }
        }
        fails(|t| t.train.crop = pad(4, PadMode::Black), None, "cannot be padded");
        fails(|t| t.train.crop = pad(33, PadMode::Black), Some([32, 40]), "32 at most");
        fails(|t| t.train.crop = pad(32, PadMode::Reflect), Some([32, 40]), "31 at most");
        fails(|t| t.train.crop = Crop::Scaled { sides: [40, 31], size: 32 }, None, "size <= sides");
        fails(|t| t.train.crop = Crop::Scaled { sides: [32, 5000], size: 32 }, None, "size <= sides");
        fails(|t| t.train.erase = Some(Erase { probability: 1.5 }), None, "erase");
        fails(|t| t.mix = Some(Mixing::default()), None, "neither");
        fails(|t| t.mix = Some(Mixing { mixup_alpha: Some(0.0), cutmix_alpha: None }), None, "`mixup-alpha`");
        fails(|t| t.eval = None, None, "centre crop");
        fails(|t| t.eval = None, Some([28, 28]), "28x28");
        fails(|t| t.eval = Some(CentreCrop { resize: 30, crop: 32 }), None, "crop <= resize");
        fails(|t| t.normalise.std[1] = 0.0, None, "positive");
        fails(|t| t.normalise.std[1] = 1e-40, None, "larger than numbers can be");
        for size in [0, usize::MAX] {
            let error = Transform::imagenet(size, size).check(3, None).unwrap_err().to_string();
            assert!(error.contains(&format!("`size` is {size}, but must be 1 to 4096")), "{error}");
        }
        fails(|t| t.normalise.mean.truncate(2), None, "2 values");
        fails(|t| t.train.jitter = Some(Jitter { contrast: -1.0, ..Default::default() }), None, "contrast");
        fails(
            |t| t.train.crop = Crop::Resized { size: 32, scale: [0.0, 1.0], ratio: [1.0, 1.0] },
            None,
            "`scale`",
        );
        fails(
            |t| t.train.crop = Crop::Resized { size: 32, scale: [0.5, 1.0], ratio: [1.0, f64::NAN] },
            None,
            "`ratio`",
        );
    }
}
