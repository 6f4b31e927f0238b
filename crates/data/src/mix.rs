//! Training images mixed with their neighbours in the batch: torchvision's `MixUp` and `CutMix`.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::augment::{Draws, Part};

/// How batches are mixed. If both ways are given, each batch goes one of them at random:
/// `RandomChoice([MixUp(alpha), CutMix(alpha)])`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mixing {
    /// For blending whole images, `MixUp`: the share of the image itself is drawn from Beta(alpha, alpha).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixup_alpha: Option<f64>,
    /// For a box of the other image in the image, `CutMix`: likewise the share outside the box, before it
    /// is clipped to the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutmix_alpha: Option<f64>,
}

/// What the images of a batch were mixed with. The target of image `i` is
/// `share * onehot(batch.labels[i]) + (1 - share) * onehot(mix.labels[i])`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// The class of what was mixed into each image, `[batch]`: that of the image before it.
    pub labels: Vec<u32>,
    /// How much of each image is its own, 0 to 1; the same for all.
    pub share: f32,
}

impl Mixing {
    pub(crate) fn check(&self) -> Result<()> {
        let Self { mixup_alpha, cutmix_alpha } = *self;
        ensure!(
            mixup_alpha.is_some() || cutmix_alpha.is_some(),
            "`mix` has neither `mixup-alpha` nor `cutmix-alpha`; give one, or leave `mix` out"
        );
        for (name, alpha) in [("mixup-alpha", mixup_alpha), ("cutmix-alpha", cutmix_alpha)] {
            let good = alpha.is_none_or(|alpha| alpha > 0.0 && alpha.is_finite());
            ensure!(good, "`{name}` is {}, but must be positive", alpha.unwrap_or_default());
        }
        Ok(())
    }

    /// Mixes `[batch, channels, height, width]` images, at least one; `shape` is that of one.
    pub(crate) fn apply(
        &self,
        images: &mut [f32],
        labels: &[u32],
        shape: [usize; 3],
        draws: &mut Draws,
    ) -> Mix {
        let mixup = self.mixup_alpha.filter(|_| self.cutmix_alpha.is_none() || draws.coin());
        let share = match (mixup, self.cutmix_alpha) {
            (Some(alpha), _) => {
                // As torchvision, which draws 32-bit numbers.
                let share = symmetric_beta(alpha, draws) as f32;
                blend(images, shape, share);
                share
            }
            (None, Some(alpha)) => {
                let share = symmetric_beta(alpha, draws);
                let (x, y) = (draws.below(shape[2]), draws.below(shape[1]));
                let part = box_around(x, y, share, [shape[1], shape[2]]);
                paste(images, shape, part);
                let area = (part.height * part.width) as f64 / (shape[1] * shape[2]) as f64;
                (1.0 - area) as f32
            }
            (None, None) => 1.0, // `check` does not let this pass
        };
        let mut labels = labels.to_vec();
        labels.rotate_right(1);
        Mix { labels, share }
    }
}

/// Draws from Beta(alpha, alpha), by the formula for Student's t distribution with `2 alpha` degrees of
/// freedom (Bailey 1994), of which it is a function: exact, for any alpha, from two uniform numbers.
fn symmetric_beta(alpha: f64, draws: &mut Draws) -> f64 {
    let (u, v) = (draws.within(0.0, 1.0), draws.within(0.0, 1.0));
    let cos = (std::f64::consts::TAU * v).cos();
    // t^2 / (2 alpha); infinite where u is small, then the result is 0 or 1.
    let square = (u.powf(-1.0 / alpha) - 1.0) * cos * cos;
    0.5 + (0.25 / (1.0 + 1.0 / square)).sqrt().copysign(cos)
}

/// Makes each image `share` of itself and the rest of the image before it; the first follows the last.
fn blend(images: &mut [f32], shape: [usize; 3], share: f32) {
    let rest = 1.0 - share;
    with_previous(images, shape, |image, previous| {
        for (to, from) in image.iter_mut().zip(previous) {
            *to = from * rest + *to * share;
        }
    });
}

/// Replaces `part` of each image by that of the image before it; the first follows the last.
fn paste(images: &mut [f32], shape: [usize; 3], part: Part) {
    let [_, height, width] = shape;
    with_previous(images, shape, |image, previous| {
        let planes = image.chunks_exact_mut(height * width).zip(previous.chunks_exact(height * width));
        for (to, from) in planes {
            for y in part.top..part.top + part.height {
                let row = y * width + part.left..y * width + part.left + part.width;
                to[row.clone()].copy_from_slice(&from[row]);
            }
        }
    });
}

/// Changes each image by what the one before it was.
fn with_previous(images: &mut [f32], shape: [usize; 3], change: impl Fn(&mut [f32], &[f32])) {
    let size: usize = shape.iter().product();
    let count = images.len() / size;
    let last = images[(count - 1) * size..].to_vec();
    // From the back, where nothing that is still needed has changed.
    for i in (1..count).rev() {
        let (before, image) = images[(i - 1) * size..(i + 1) * size].split_at_mut(size);
        change(image, before);
    }
    change(&mut images[..size], &last);
}

/// The box around `(x, y)` that leaves `share` of an image of this height and width, less what lies outside.
fn box_around(x: usize, y: usize, share: f64, [height, width]: [usize; 2]) -> Part {
    let half = 0.5 * (1.0 - share).sqrt();
    let range = |at: usize, side: usize| {
        let half = (half * side as f64) as usize;
        (at.saturating_sub(half), (at + half).min(side))
    };
    let ((top, bottom), (left, right)) = (range(y, height), range(x, width));
    Part { top, left, height: bottom - top, width: right - left }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::tests::recorded;

    const SHAPE: [usize; 3] = [2, 8, 10];

    /// Four images; `tests/record_fixtures.py` has the same.
    fn images() -> Vec<f32> {
        (0..4 * 2 * 8 * 10).map(|i| (i * 37 % 101) as f32 / 8.0 - 6.0).collect()
    }

    #[derive(Deserialize)]
    struct MixedUp {
        share: f32,
        images: Vec<f32>,
        /// The targets of labels 0, 1, 2, 3.
        targets: Vec<Vec<f32>>,
    }

    #[test]
    fn mixup_is_torchvisions() {
        let MixedUp { share, images: expected, targets } = recorded("mixup");
        let mut mixed = images();
        blend(&mut mixed, SHAPE, share);
        assert_eq!(mixed, expected);
        for (i, target) in targets.iter().enumerate() {
            let mut ours = [0.0; 4];
            ours[i] += share;
            ours[(i + 3) % 4] += 1.0 - share;
            assert_eq!(target[..], ours);
        }
    }

    #[derive(Deserialize)]
    struct Cut {
        height: usize,
        width: usize,
        share: f64,
        x: usize,
        y: usize,
        /// Left, top, right, bottom.
        corners: [usize; 4],
        share_adjusted: f32,
    }

    #[test]
    fn boxes_are_torchvisions() {
        let all: Vec<Cut> = recorded("boxes");
        assert!(all.len() >= 40);
        for Cut { height, width, share, x, y, corners: [left, top, right, bottom], share_adjusted } in all {
            let part = box_around(x, y, share, [height, width]);
            assert_eq!(part, Part { top, left, height: bottom - top, width: right - left });
            let area = (part.height * part.width) as f64 / (height * width) as f64;
            assert_eq!((1.0 - area) as f32, share_adjusted);
        }
    }

    #[test]
    fn cutmix_is_torchvisions() {
        let expected: Vec<f32> = recorded("cutmix");
        let mut mixed = images();
        paste(&mut mixed, SHAPE, Part { top: 2, left: 3, height: 4, width: 6 });
        assert_eq!(mixed, expected);
    }

    #[test]
    fn shares_follow_the_beta_distribution() {
        for alpha in [0.01, 0.2, 0.5, 1.0, 3.0, 50.0] {
            let draw = |number| symmetric_beta(alpha, &mut Draws::of_batch(1, 2, number));
            let shares: Vec<f64> = (0..20_000).map(draw).collect();
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
            let moment =
                |power| shares.iter().map(|share| (share - 0.5_f64).powi(power)).sum::<f64>() / 20_000.0;
            let variance = 0.25 / (2.0 * alpha + 1.0);
            let kurtosis = 3.0 - 6.0 / (2.0 * alpha + 3.0);
            let sigma = variance.sqrt();
            assert!(moment(1).abs() < 4.0 * sigma / 20_000_f64.sqrt(), "{alpha}: {}", moment(1));
            assert!((moment(2) / variance - 1.0).abs() < 0.05, "{alpha}: {}", moment(2));
            let fourth = moment(4) / variance.powi(2);
            assert!((fourth / kurtosis - 1.0).abs() < 0.1, "{alpha}: {fourth}");
        }
        // Uniform for alpha 1; the t distribution's quartile for alpha 1/2 is the arcsine's.
        let below = |alpha, limit: f64| {
            let draw = |number| symmetric_beta(alpha, &mut Draws::of_batch(3, 2, number));
            (0..20_000).filter(|&number| draw(number) < limit).count() as f64 / 20_000.0
        };
        assert!((below(1.0, 0.1) - 0.1).abs() < 0.01);
        let arcsine = 2.0 / std::f64::consts::PI * 0.1_f64.sqrt().asin();
        assert!((below(0.5, 0.1) - arcsine).abs() < 0.01);
    }

    /// What a seed means.
    #[test]
    fn shares_are_pinned() {
        assert_eq!(symmetric_beta(0.2, &mut Draws::of_batch(1, 2, 3)), 0.718_757_671_849_731_4);
    }

    #[test]
    fn either_way_is_taken() {
        let both = Mixing { mixup_alpha: Some(0.2), cutmix_alpha: Some(1.0) };
        let mut cut = 0;
        for number in 0..200 {
            let mut mixed = images();
            let mix = both.apply(&mut mixed, &[5, 6, 7, 8], SHAPE, &mut Draws::of_batch(1, 0, number));
            assert_eq!(mix.labels, [8, 5, 6, 7]);
            assert!((0.0..=1.0).contains(&mix.share));
            // Only cut images have nothing but values that were there.
            let original = images();
            cut += usize::from(mixed.iter().all(|value| original.contains(value)) && mix.share < 0.99);
        }
        assert!((60..125).contains(&cut), "{cut}");
    }

    /// An image alone is mixed with itself.
    #[test]
    fn a_batch_of_one_stays() {
        let mut mixed = images()[..160].to_vec();
        paste(&mut mixed, SHAPE, Part { top: 0, left: 0, height: 8, width: 10 });
        blend(&mut mixed, SHAPE, 0.25);
        assert_eq!(mixed, images()[..160]);
    }
}
