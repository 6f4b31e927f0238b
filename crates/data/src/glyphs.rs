//! Glyphs: a generated set of ten classes, for when no real images are at hand.
//!
//! Each image is a stroke drawing of its class, rotated, sheared, scaled and shifted at random, with
//! random stroke width, softness and contrast, under stray strokes and noise. Image `i` is drawn from
//! random stream `i` of one fixed seed, with nothing but `+ - * /` and `sqrt`, which IEEE 754 rounds
//! exactly: the bytes are the same on every machine, and a test pins them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Split;

/// Names of the classes, by label.
pub const CLASS_NAMES: [&str; 10] = ["T", "L", "cross", "Z", "ring", "triangle", "Y", "U", "H", "arrow"];

/// Training images; a multiple of ten, so that the classes are balanced.
pub const TRAIN: usize = 12_000;

/// Test images; likewise.
pub const TEST: usize = 2_000;

/// Height and width of an image in pixels.
const SIDE: usize = 28;

const SEED: u64 = 0x676c_7970_6873; // "glyphs"

type Point = [f32; 2];

/// The polylines of each glyph, by label; `x` to the right and `y` down, both within [-1, 1].
const STROKES: [&[&[Point]]; 10] = [
    &[&[[-0.8, -0.9], [0.8, -0.9]], &[[0.0, -0.9], [0.0, 0.9]]],
    &[&[[-0.6, -0.9], [-0.6, 0.9], [0.7, 0.9]]],
    &[&[[-0.8, -0.8], [0.8, 0.8]], &[[-0.8, 0.8], [0.8, -0.8]]],
    &[&[[-0.7, -0.9], [0.7, -0.9], [-0.7, 0.9], [0.7, 0.9]]],
    &[&[
        [0.9, 0.0],
        [0.64, 0.64],
        [0.0, 0.9],
        [-0.64, 0.64],
        [-0.9, 0.0],
        [-0.64, -0.64],
        [0.0, -0.9],
        [0.64, -0.64],
        [0.9, 0.0],
    ]],
    &[&[[0.0, -0.9], [0.85, 0.8], [-0.85, 0.8], [0.0, -0.9]]],
    &[&[[-0.75, -0.9], [0.0, 0.0], [0.75, -0.9]], &[[0.0, 0.0], [0.0, 0.9]]],
    &[&[[-0.75, -0.9], [-0.75, 0.4], [-0.4, 0.85], [0.4, 0.85], [0.75, 0.4], [0.75, -0.9]]],
    &[&[[-0.7, -0.9], [-0.7, 0.9]], &[[0.7, -0.9], [0.7, 0.9]], &[[-0.7, 0.0], [0.7, 0.0]]],
    &[&[[0.0, 0.9], [0.0, -0.9]], &[[-0.65, -0.25], [0.0, -0.9], [0.65, -0.25]]],
];

/// The training and the test split, always the same.
pub fn generate() -> (Split, Split) {
    (split(0, TRAIN), split(TRAIN, TEST))
}

/// Images `first..first + count`; image `i` is of class `i % 10`.
fn split(first: usize, count: usize) -> Split {
    let mut images = vec![0; count * SIDE * SIDE];
    let labels: Vec<u8> = (first..first + count).map(|i| (i % 10) as u8).collect();
    for (i, image) in images.chunks_exact_mut(SIDE * SIDE).enumerate() {
        draw(labels[i].into(), (first + i) as u64, image);
    }
    Split { images, labels }
}

/// Draws a glyph of class `label` from random stream `stream` into `image`, `[28, 28]`.
fn draw(label: usize, stream: u64, image: &mut [u8]) {
    let mut random = Random::new(stream);
    let transform = Transform::random(&mut random);
    let pen = Pen { radius: random.within(0.6, 1.5), softness: random.within(0.8, 2.0) };
    let background = random.within(0.0, 50.0);
    let ink = random.within(90.0, 205.0);

    let mut coverage = [0.0; SIDE * SIDE];
    for line in STROKES[label] {
        for ends in line.windows(2) {
            pen.stroke(transform.apply(ends[0]), transform.apply(ends[1]), 1.0, &mut coverage);
        }
    }
    // Stray strokes, short and anywhere, some as dark as the glyph: where ink lies is not enough to
    // tell the class, how it hangs together is.
    for _ in 0..2 + random.below(3) {
        let from = [random.within(1.0, 27.0), random.within(1.0, 27.0)];
        let to = [from[0] + random.within(-9.0, 9.0), from[1] + random.within(-9.0, 9.0)];
        let strength = random.within(0.5, 1.0);
        pen.stroke(from, to, strength, &mut coverage);
    }
    for (pixel, covered) in image.iter_mut().zip(coverage) {
        let value = background + ink * covered + 22.0 * random.bell();
        *pixel = value.clamp(0.0, 255.0) as u8;
    }
}

/// From glyph coordinates to pixels: rotation, shear, scale and shift.
struct Transform {
    matrix: [Point; 2],
    shift: Point,
}

impl Transform {
    fn random(random: &mut Random) -> Self {
        // t = tan(angle / 2) gives the sine and cosine without calling either, whose last bit differs
        // between machines. 0.2 is 22.6 degrees.
        let t = random.within(-0.2, 0.2);
        let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
        let shear = random.within(-0.3, 0.3);
        let (width, height) = (random.within(5.0, 9.5), random.within(5.0, 9.5));
        Self {
            matrix: [
                [cos * width, (cos * shear - sin) * height],
                [sin * width, (sin * shear + cos) * height],
            ],
            shift: [random.within(10.5, 17.5), random.within(10.5, 17.5)],
        }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        [0, 1].map(|k| self.matrix[k][0] * x + self.matrix[k][1] * y + self.shift[k])
    }
}

/// A round pen: full coverage within `radius` pixels, fading to none over `softness` more.
struct Pen {
    radius: f32,
    softness: f32,
}

impl Pen {
    /// Adds the segment `from`–`to` to `coverage` `[28, 28]`: the stronger of old and new stays.
    fn stroke(&self, from: Point, to: Point, strength: f32, coverage: &mut [f32]) {
        let reach = self.radius + self.softness;
        // `as` saturates, so a segment that lies outside the image clips to its edge.
        let range = |k: usize| {
            let low = (from[k].min(to[k]) - reach).max(0.0) as usize;
            let high = (from[k].max(to[k]) + reach + 1.0).max(0.0) as usize;
            low.min(SIDE)..high.min(SIDE)
        };
        let along = [to[0] - from[0], to[1] - from[1]];
        let length2 = (along[0] * along[0] + along[1] * along[1]).max(1e-6);
        for y in range(1) {
            for x in range(0) {
                let here = [x as f32 + 0.5 - from[0], y as f32 + 0.5 - from[1]];
                let t = (here[0] * along[0] + here[1] * along[1]) / length2;
                let t = t.clamp(0.0, 1.0);
                let off = [here[0] - t * along[0], here[1] - t * along[1]];
                let distance = (off[0] * off[0] + off[1] * off[1]).sqrt();
                let covered = ((reach - distance) / self.softness).clamp(0.0, 1.0) * strength;
                let pixel = &mut coverage[y * SIDE + x];
                *pixel = pixel.max(covered);
            }
        }
    }
}

/// The random numbers of one image.
struct Random(ChaCha8Rng);

impl Random {
    fn new(stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Uniform in `[low, high)`. By hand, because `rand` may change its samplers between versions.
    fn within(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32;
        low + (high - low) * unit
    }

    /// Uniform in `0..n`, as near as 32 bits allow.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// About normal, mean 0 and standard deviation 1: the sum of four uniform bytes.
    fn bell(&mut self) -> f32 {
        let sum: u32 = self.0.next_u32().to_le_bytes().map(u32::from).iter().sum();
        (sum as f32 - 510.0) / 147.8
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn bytes_are_pinned() {
        let (train, test) = generate();
        let mut hash = Sha256::new();
        for split in [&train, &test] {
            hash.update(&split.images);
            hash.update(&split.labels);
        }
        let hash = srigl_tensors::hex(&hash.finalize());
        assert_eq!(hash, "e883878fdccf7218e42bbf169174d6e35921115c0a6ef38a673db0426107c2f4");
    }

    #[test]
    fn order_does_not_matter() {
        let whole = split(0, 20);
        let tail = split(10, 10);
        assert_eq!(whole.images[10 * SIDE * SIDE..], tail.images);
        assert_eq!(whole.labels[10..], tail.labels);
    }

    #[test]
    fn classes_are_balanced() {
        let (train, test) = generate();
        assert_eq!(train.class_counts(10), [TRAIN / 10; 10]);
        assert_eq!(test.class_counts(10), [TEST / 10; 10]);
    }
}
