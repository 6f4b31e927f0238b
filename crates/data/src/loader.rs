//! Batches for training and testing, made ahead by threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::augment::{Draws, Rest, Workspace, erase, normalise};
use super::mix::Mix;
use super::picture::{self, Picture, PictureError};
use super::prefetch::Prefetch;
use super::{Augment, ImageFolder, Images, Source, Transform};
use srigl_tensors::memory::{self, TooLarge};

/// The most threads that make batches.
pub const MAX_WORKERS: usize = 1024;

/// How a [`Loader`] works. None of it changes what the images look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads that make batches ahead, at most [`MAX_WORKERS`]; with 0, each is made by who asks for it. Batches are the
    /// same.
    pub workers: usize,
    /// What to do about a picture that cannot be read.
    pub on_broken: OnBroken,
    /// Images to train on, all if not given: the first ones in memory; in a folder, which is sorted by class,
    /// as many at equal distances.
    pub train_limit: Option<usize>,
    /// Images to test on, likewise.
    pub test_limit: Option<usize>,
    /// Leaves out the last batch of a training epoch if it is not full, unless it is the only one.
    pub drop_last: bool,
}

impl Default for Options {
    /// Two workers, failing at broken pictures, all images.
    fn default() -> Self {
        Self { workers: 2, on_broken: OnBroken::Fail, train_limit: None, test_limit: None, drop_last: false }
    }
}

/// What to do about a picture that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBroken {
    /// End with an error that names it.
    Fail,
    /// Name it on standard error, once, and leave it out; its batch gets smaller, the others stay the same.
    /// A batch of which nothing is left comes all the same, empty.
    Skip,
}

/// Images and their labels. Without any where all of its pictures are broken and left out, see
/// [`OnBroken::Skip`]: pass over such a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Normalised pixels, `[batch, channels, height, width]`.
    pub images: Vec<f32>,
    /// The class of each image, `[batch]`.
    pub labels: Vec<u32>,
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Which image of the split each is, `[batch]`.
    pub indices: Vec<usize>,
    /// What the images are mixed with, if the transform's `mix` says so and they are for training.
    pub mix: Option<Mix>,
}

/// A size that batches cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchSizeError {
    /// It is 0.
    #[error("the batch size (`--batch-size`) is 0, but must be at least 1")]
    Zero,
    /// So many batches as are made ahead do not fit into memory.
    #[error(
        "{batches} batches of {size} images of {}x{}x{} values at once do not fit ({source}); \
         lower `--batch-size`, `--image-size` or `--workers`",
        shape[0], shape[1], shape[2]
    )]
    TooLarge {
        /// How many there are at once: one in use, one waiting, and one in the making by each worker.
        batches: usize,
        /// Images in each.
        size: usize,
        /// Channels, height, width.
        shape: [usize; 3],
        /// What they would take.
        source: TooLarge,
    },
}

/// Batches in order, made ahead. Ends after the first error. Dropping it ends its threads.
pub struct Batches(Prefetch<Batch>);

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        self.0.next()
    }
}

/// Makes batches of a data set.
pub struct Loader {
    shared: Arc<Shared>,
    workers: usize,
    drop_last: bool,
}

struct Shared {
    source: Source,
    transform: Transform,
    shape: [usize; 3],
    /// Normalised value of each pixel, `[channels, 256]`.
    table: Vec<[f32; 256]>,
    on_broken: OnBroken,
    /// The most bytes that making one picture may take: each worker makes one at a time.
    picture_budget: u64,
    /// Images in use, to train on and to test on.
    counts: [usize; 2],
    reported: Mutex<HashSet<(Part, usize)>>,
}

/// Which split an image is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Train,
    Test,
}

/// Which images to make a batch of, and how.
struct Plan {
    part: Part,
    /// Seed and epoch of training images; test images are not augmented.
    random: Option<(u64, u64)>,
    /// Images in the order in which they are shown.
    order: Vec<usize>,
    batch_size: usize,
}

impl Loader {
    /// Makes batches of `source` with `transform`.
    ///
    /// # Errors
    /// The transform does not fit the images, see [`Transform::check`]; a limit is 0; more workers than [`MAX_WORKERS`].
    pub fn new(source: Source, transform: Transform, options: Options) -> Result<Self> {
        let Options { workers, on_broken, train_limit, test_limit, drop_last } = options;
        ensure!(train_limit != Some(0) && test_limit != Some(0), "image limits must be at least 1");
        ensure!(
            workers <= MAX_WORKERS,
            "{workers} workers (`--workers`), but there can be {MAX_WORKERS} at most"
        );
        let (channels, size, counts) = match &source {
            Source::Memory(Images { channels, height, width, train, test, .. }) => {
                (*channels, Some([*height, *width]), [train.len(), test.len()])
            }
            Source::Folder(ImageFolder { train, test, .. }) => (3, None, [train.len(), test.len()]),
        };
        let shape = transform.check(channels, size)?;
        let table = transform.normalise.table(channels);
        let limit = |count: usize, limit: Option<usize>| limit.unwrap_or(count).min(count);
        let counts = [limit(counts[0], train_limit), limit(counts[1], test_limit)];
        let picture_budget = memory::limit() / workers.max(1) as u64;
        let reported = Mutex::default();
        let shared = Shared { source, transform, shape, table, on_broken, picture_budget, counts, reported };
        Ok(Self { shared: Arc::new(shared), workers, drop_last })
    }

    /// Images to train on.
    pub fn train_images(&self) -> usize {
        self.shared.counts[0]
    }

    /// Whether batches may have this size: [`Loader::train_epoch`] and [`Loader::eval`] give nothing but this error
    /// otherwise.
    ///
    /// # Errors
    /// Any [`BatchSizeError`].
    pub fn check(&self, batch_size: usize) -> Result<(), BatchSizeError> {
        if batch_size == 0 {
            return Err(BatchSizeError::Zero);
        }
        let shape = self.shape();
        let images = self.train_images().max(self.test_images());
        let size = batch_size.min(images);
        let batches = (self.workers + 2).min(images.div_ceil(size));
        let values = [batches, size, shape[0], shape[1], shape[2], size_of::<f32>()];
        memory::check(memory::product(&values)).map_err(|source| BatchSizeError::TooLarge {
            batches,
            size,
            shape,
            source,
        })
    }

    /// Batches in an epoch of training, at least one. For a size of 0 they are those of 1.
    pub fn steps_per_epoch(&self, batch_size: usize) -> usize {
        let batch_size = batch_size.max(1);
        match self.drop_last {
            true => (self.train_images() / batch_size).max(1),
            false => self.train_images().div_ceil(batch_size),
        }
    }

    /// Images to test on.
    pub fn test_images(&self) -> usize {
        self.shared.counts[1]
    }

    /// Channels, height and width of images in batches.
    pub fn shape(&self) -> [usize; 3] {
        self.shared.shape
    }

    /// How many classes there are.
    pub fn classes(&self) -> usize {
        self.shared.source.class_names().len()
    }

    /// Where the images are.
    pub fn source(&self) -> &Source {
        &self.shared.source
    }

    /// One epoch of training images, shuffled and augmented, without its first `skip_batches` batches. The
    /// last batch may be smaller, unless [`Options::drop_last`] leaves it out. What a batch holds depends on
    /// the seed, the epoch and its place alone. If [`Loader::check`] refuses their size, there is that error in place of
    /// the first batch, and no other.
    pub fn train_epoch(&self, seed: u64, epoch: usize, batch_size: usize, skip_batches: usize) -> Batches {
        let mut order: Vec<usize> = (0..self.train_images()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
        order.truncate(self.steps_per_epoch(batch_size).saturating_mul(batch_size));
        let plan = Plan { part: Part::Train, random: Some((seed, epoch as u64)), order, batch_size };
        self.batches(plan, skip_batches)
    }

    /// The test images in order, as the transform's `eval` has them. The last batch may be smaller. A size that
    /// [`Loader::check`] refuses gives its error, as in [`Loader::train_epoch`].
    pub fn eval(&self, batch_size: usize) -> Batches {
        let order = (0..self.test_images()).collect();
        self.batches(Plan { part: Part::Test, random: None, order, batch_size }, 0)
    }

    /// Images per second of an epoch of training batches without training, after one that warms up.
    ///
    /// # Errors
    /// Those of the batches.
    pub fn rate(&self, batch_size: usize) -> Result<f64> {
        let mut rate = 0.0;
        for epoch in 0..2 {
            let (start, mut images) = (Instant::now(), 0);
            for batch in self.train_epoch(0, epoch, batch_size, 0) {
                images += batch?.labels.len();
            }
            rate = images as f64 / start.elapsed().as_secs_f64();
        }
        Ok(rate)
    }

    fn batches(&self, plan: Plan, skip: usize) -> Batches {
        if let Err(error) = self.check(plan.batch_size) {
            return Batches(Prefetch::new(1, 0, move |_, _| Err(error.into())));
        }
        let count = plan.order.len().div_ceil(plan.batch_size).saturating_sub(skip);
        let shared = self.shared.clone();
        Batches(Prefetch::new(count, self.workers, move |i, stop| shared.batch(&plan, i + skip, stop)))
    }
}

impl Shared {
    fn batch(&self, plan: &Plan, number: usize, stop: &AtomicBool) -> Result<Batch> {
        let start = number * plan.batch_size;
        let chosen = &plan.order[start..plan.order.len().min(start + plan.batch_size)];
        let size: usize = self.shape.iter().product();
        let mut batch = Batch {
            images: vec![0.0; chosen.len() * size],
            labels: Vec::with_capacity(chosen.len()),
            shape: self.shape,
            indices: Vec::with_capacity(chosen.len()),
            mix: None,
        };
        let (mut workspace, mut file) = (Workspace::new(self.picture_budget), Vec::new());
        for &choice in chosen {
            if stop.load(Ordering::Relaxed) {
                bail!("nobody wants this batch");
            }
            let to = &mut batch.images[batch.labels.len() * size..][..size];
            match &self.source {
                Source::Memory(images) => {
                    let split = if plan.part == Part::Train { &images.train } else { &images.test };
                    let size = images.channels * images.height * images.width;
                    let pixels = &split.images[choice * size..][..size];
                    if self.is_plain(plan.part) {
                        self.copy(pixels, to);
                    } else {
                        interleave(pixels, images, &mut workspace.picture);
                        self.finish(choice, plan.random, &mut workspace, to)?;
                    }
                    batch.labels.push(split.labels[choice].into());
                    batch.indices.push(choice);
                }
                Source::Folder(folder) => {
                    let listing = if plan.part == Part::Train { &folder.train } else { &folder.test };
                    let index = choice * listing.len() / self.counts[plan.part as usize];
                    let path = folder.root.join(&listing.paths[index]);
                    let read = picture::read(&path, &mut file, &mut workspace.picture, self.picture_budget);
                    // A picture may be whole, and yet too narrow to be cropped.
                    let done = read.and_then(|()| {
                        let finished = self.finish(index, plan.random, &mut workspace, to);
                        finished.map_err(|error| match error.downcast_ref::<TooLarge>() {
                            Some(&source) => PictureError::TooLarge { path, source },
                            None => PictureError::Broken { path, what: format!("{error:#}") },
                        })
                    });
                    match done {
                        Err(error) => self.broken(error, plan.part, index)?,
                        Ok(()) => {
                            batch.labels.push(listing.labels[index]);
                            batch.indices.push(index);
                        }
                    }
                }
            }
        }
        batch.images.truncate(batch.labels.len() * size);
        if let (Some(mixing), Some((seed, epoch))) = (self.transform.mix, plan.random)
            && !batch.labels.is_empty()
        {
            let mut draws = Draws::of_batch(seed, epoch, number as u64);
            batch.mix = Some(mixing.apply(&mut batch.images, &batch.labels, self.shape, &mut draws));
        }
        Ok(batch)
    }

    /// Whether images of this split are shown as they are.
    fn is_plain(&self, part: Part) -> bool {
        match part {
            Part::Train => self.transform.train == Augment::default(),
            Part::Test => self.transform.eval.is_none(),
        }
    }

    /// Normalises `[channels, height, width]` pixels.
    fn copy(&self, pixels: &[u8], to: &mut [f32]) {
        let plane = self.shape[1] * self.shape[2];
        let planes = pixels.chunks_exact(plane).zip(to.chunks_exact_mut(plane));
        for ((from, to), table) in planes.zip(&self.table) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = table[usize::from(*from)];
            }
        }
    }

    /// Transforms and normalises the picture in the workspace, image `index` of its split.
    fn finish(
        &self,
        index: usize,
        random: Option<(u64, u64)>,
        workspace: &mut Workspace,
        to: &mut [f32],
    ) -> Result<()> {
        let mut rest = Rest::default();
        if let Some((seed, epoch)) = random {
            let mut draws = Draws::new(seed, epoch, index as u64);
            rest = workspace.augment(&self.transform.train, &mut draws)?;
        } else if let Some(eval) = self.transform.eval {
            workspace.centre_crop(eval)?;
        }
        normalise(&workspace.picture, rest.flip, &self.table, to);
        if let Some(part) = rest.erase {
            erase(to, part, [self.shape[1], self.shape[2]]);
        }
        Ok(())
    }

    /// Reports picture `index` of a split, once, or passes its error on. That there is no memory for it is no fault of a
    /// picture's: results must not depend on that.
    fn broken(&self, error: PictureError, part: Part, index: usize) -> Result<()> {
        if self.on_broken == OnBroken::Fail || matches!(error, PictureError::TooLarge { .. }) {
            return Err(error.into());
        }
        if self.reported.lock().expect("nothing panics under the lock").insert((part, index)) {
            srigl_tensors::say(&format_args!("left out: {error}"));
        }
        Ok(())
    }
}

/// Makes `[channels, height, width]` pixels of `images` a picture.
fn interleave(pixels: &[u8], images: &Images, picture: &mut Picture) {
    let Images { height, width, channels, .. } = *images;
    picture.reshape(height, width, channels);
    for (c, plane) in pixels.chunks_exact(height * width).enumerate() {
        let to = picture.pixels.iter_mut().skip(c).step_by(channels);
        to.zip(plane).for_each(|(to, from)| *to = *from);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use jpeg_encoder::{ColorType, Encoder};
    use sha2::{Digest, Sha256};
    use tempfile::TempDir;

    use super::*;
    use crate::{AutoAugment, CentreCrop, Crop, DataSet, Erase, Jitter, Mixing, Normalise, PadMode, Split};

    /// 30 training and 7 test images of 3x8x8 pixels.
    fn colours() -> Source {
        let split = |count: usize| Split {
            images: (0..count * 192).map(|i| (i * 7 % 251) as u8).collect(),
            labels: (0..count).map(|i| (i % 3) as u8).collect(),
        };
        let names = ["a", "b", "c"].map(String::from).to_vec();
        let splits = (split(30), split(7));
        Source::Memory(Images::new(DataSet::Cifar10, String::new(), splits, names, [3, 8, 8]))
    }

    /// Everything at once.
    fn augmented() -> Transform {
        let jitter = Some(Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4 });
        let crop = Crop::Resized { size: 6, scale: [0.3, 1.0], ratio: [0.75, 1.5] };
        Transform {
            train: Augment { crop, flip: true, jitter, ..Augment::default() },
            eval: Some(CentreCrop { resize: 7, crop: 6 }),
            normalise: Normalise { mean: vec![0.5], std: vec![0.25] },
            mix: None,
        }
    }

    /// What else there is.
    fn mixed(auto: AutoAugment) -> Transform {
        Transform {
            train: Augment {
                crop: Crop::Scaled { sides: [7, 10], size: 6 },
                flip: true,
                auto: Some(auto),
                erase: Some(Erase { probability: 0.5 }),
                ..Augment::default()
            },
            mix: Some(Mixing { mixup_alpha: Some(0.2), cutmix_alpha: Some(1.0) }),
            ..augmented()
        }
    }

    fn options(workers: usize) -> Options {
        Options { workers, ..Options::default() }
    }

    fn all(batches: Batches) -> Vec<Batch> {
        batches.map(Result::unwrap).collect()
    }

    /// Twelve pictures of various sizes to train on and four to test on, in two classes.
    fn pictures() -> TempDir {
        let dir = TempDir::new().unwrap();
        for i in 0..16 {
            let split = if i < 12 { "train" } else { "val" };
            let folder = dir.path().join(split).join(["one", "two"][i % 2]);
            fs::create_dir_all(&folder).unwrap();
            let (width, height) = (20 + i * 3, 40 - i);
            let pixels: Vec<u8> = (0..width * height * 3).map(|p| (p * i / 11) as u8).collect();
            let encoder = Encoder::new_file(folder.join(format!("{i:02}.jpg")), 90).unwrap();
            encoder.encode(&pixels, width as u16, height as u16, ColorType::Rgb).unwrap();
        }
        dir
    }

    fn folder(dir: &Path) -> Source {
        crate::open(DataSet::ImageFolder, Some(dir), false).unwrap()
    }

    #[test]
    fn workers_do_not_show() {
        let dir = pictures();
        let make: [&dyn Fn() -> Source; 2] = [&colours, &|| folder(dir.path())];
        let transforms = [augmented(), mixed(AutoAugment::Imagenet), mixed(AutoAugment::Rand)];
        for (source, transform) in make.iter().flat_map(|make| transforms.iter().map(move |t| (make, t))) {
            let alone = Loader::new(source(), transform.clone(), options(0)).unwrap();
            let train = all(alone.train_epoch(5, 2, 4, 0));
            let eval = all(alone.eval(3));
            assert_eq!(train.iter().map(|batch| batch.labels.len()).sum::<usize>(), alone.train_images());
            assert_eq!(eval.iter().map(|batch| batch.labels.len()).sum::<usize>(), alone.test_images());
            assert!(train.iter().all(|batch| batch.images.iter().all(|value| value.abs() <= 2.0)));
            assert!(train.iter().all(|batch| batch.mix.is_some() == transform.mix.is_some()));
            assert!(eval.iter().all(|batch| batch.mix.is_none()));
            for workers in [1, 2, 5] {
                let loader = Loader::new(source(), transform.clone(), options(workers)).unwrap();
                assert_eq!(all(loader.train_epoch(5, 2, 4, 0)), train);
                assert_eq!(all(loader.eval(3)), eval);
            }
        }
    }

    #[test]
    fn resuming_shows_the_rest() {
        for transform in [augmented(), mixed(AutoAugment::Rand)] {
            let loader = Loader::new(colours(), transform, options(2)).unwrap();
            let whole = all(loader.train_epoch(1, 3, 4, 0));
            for skip in [1, 5, 7, 8, 100] {
                assert_eq!(all(loader.train_epoch(1, 3, 4, skip)), whole[skip.min(8)..]);
            }
        }
    }

    /// Images of runs made before there were settings that draw after these.
    #[test]
    fn augmented_images_are_what_they_were() {
        let mut transform = augmented();
        transform.train.crop = Crop::Pad { border: 2, mode: PadMode::Black };
        transform.eval = None;
        let loader = Loader::new(colours(), transform, options(0)).unwrap();
        let mut digest = Sha256::new();
        for batch in all(loader.train_epoch(1, 3, 4, 0)) {
            batch.images.iter().for_each(|value| digest.update(value.to_le_bytes()));
        }
        let start = digest.finalize()[..4].to_vec();
        assert_eq!(start, [35, 123, 194, 145]);
    }

    #[test]
    fn incomplete_batches_are_dropped() {
        let dropping = Options { drop_last: true, ..options(2) };
        let keeping = Loader::new(colours(), augmented(), options(2)).unwrap();
        let loader = Loader::new(colours(), augmented(), dropping).unwrap();
        for (batch_size, kept, dropped) in [(4, 8, 7), (10, 3, 3), (30, 1, 1), (31, 1, 1)] {
            assert_eq!(keeping.steps_per_epoch(batch_size), kept);
            assert_eq!(loader.steps_per_epoch(batch_size), dropped);
            let whole = all(keeping.train_epoch(1, 0, batch_size, 0));
            assert_eq!(whole.len(), kept);
            assert_eq!(all(loader.train_epoch(1, 0, batch_size, 0)), whole[..dropped]);
            assert!(all(loader.train_epoch(1, 0, batch_size, dropped)).is_empty());
        }
        assert_eq!(all(loader.eval(4)).len(), 2, "tests lack nothing");
    }

    /// Every image is mixed with the one before it in the batch.
    #[test]
    fn batches_are_mixed() {
        let plain = Transform { mix: None, ..mixed(AutoAugment::Rand) };
        let plain = Loader::new(colours(), plain, options(1)).unwrap();
        let mixup = Mixing { mixup_alpha: Some(1.0), cutmix_alpha: None };
        let transform = Transform { mix: Some(mixup), ..mixed(AutoAugment::Rand) };
        let loader = Loader::new(colours(), transform, options(1)).unwrap();
        for (batch, plain) in
            all(loader.train_epoch(1, 0, 4, 0)).iter().zip(all(plain.train_epoch(1, 0, 4, 0)))
        {
            let count = batch.labels.len();
            let Mix { labels, share } = batch.mix.clone().unwrap();
            assert_eq!(batch.labels, plain.labels);
            for (i, label) in labels.into_iter().enumerate() {
                let other = (i + count - 1) % count;
                assert_eq!(label, plain.labels[other]);
                for p in 0..108 {
                    let expected =
                        plain.images[other * 108 + p] * (1.0 - share) + plain.images[i * 108 + p] * share;
                    assert_eq!(batch.images[i * 108 + p], expected);
                }
            }
        }
    }

    /// What an image looks like depends on (seed, epoch, index), not on its batch.
    #[test]
    fn images_do_not_depend_on_their_batch() {
        let loader = Loader::new(colours(), augmented(), options(1)).unwrap();
        let values = |batch_size| -> Vec<f32> {
            all(loader.train_epoch(1, 3, batch_size, 0)).into_iter().flat_map(|batch| batch.images).collect()
        };
        assert_eq!(values(4), values(30));
        let by_index = |seed, epoch| {
            let batch = all(loader.train_epoch(seed, epoch, 30, 0)).remove(0);
            let at = batch.indices.iter().position(|&i| i == 0).unwrap();
            batch.images[at * 108..][..108].to_vec()
        };
        assert_eq!(by_index(1, 3), by_index(1, 3));
        assert_ne!(by_index(1, 3), by_index(1, 4));
        assert_ne!(by_index(1, 3), by_index(2, 3));
    }

    /// Order and pixels of runs made before there was a loader.
    #[test]
    fn plain_images_are_what_they_were() {
        let (train, _) = crate::glyphs::generate();
        let images = crate::load(DataSet::Glyphs, None).unwrap();
        let (mean, std) = images.mean_std();
        let source = Source::Memory(images);
        let transform = Transform::standard(&source);
        let limits = Options { train_limit: Some(1000), test_limit: Some(10), ..options(2) };
        let loader = Loader::new(source, transform, limits).unwrap();
        assert_eq!((loader.train_images(), loader.test_images()), (1000, 10));
        assert_eq!((loader.shape(), loader.classes()), ([1, 28, 28], 10));

        let mut order: Vec<usize> = (0..1000).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(42);
        rng.set_stream(7);
        order.shuffle(&mut rng);
        let batches = all(loader.train_epoch(42, 7, 64, 0));
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices, order);
        for batch in &batches {
            assert_eq!(batch.shape, [1, 28, 28]);
            for (&index, image) in batch.indices.iter().zip(batch.images.chunks_exact(784)) {
                let pixels = &train.images[index * 784..][..784];
                let expected = pixels.iter().map(|p| (f32::from(*p) / 255.0 - mean) / std);
                assert!(image.iter().copied().eq(expected));
            }
            let labels = batch.indices.iter().map(|&i| u32::from(train.labels[i]));
            assert!(batch.labels.iter().copied().eq(labels));
        }
    }

    #[test]
    fn padded_crops_are_pieces_of_the_image() {
        let source = colours();
        let transform = Transform::standard(&source);
        assert_eq!(transform.train.crop, Crop::Pad { border: 4, mode: PadMode::Black });
        let table = transform.normalise.table(3);
        let Source::Memory(images) = colours() else { unreachable!() };
        let loader = Loader::new(source, transform, options(1)).unwrap();
        for batch in all(loader.train_epoch(0, 0, 30, 0)) {
            for (&index, image) in batch.indices.iter().zip(batch.images.chunks_exact(192)) {
                let pixel = |c: usize, y: i32, x: i32| match (0..8).contains(&y) && (0..8).contains(&x) {
                    true => images.train.images[index * 192 + c * 64 + y as usize * 8 + x as usize],
                    false => 0,
                };
                let is = |down: i32, right: i32, flip: bool| {
                    (0..192).all(|i| {
                        let (c, y, x) = (i / 64, i as i32 % 64 / 8, i as i32 % 8);
                        let x = if flip { 7 - x } else { x };
                        image[i] == table[c][usize::from(pixel(c, y + down, x + right))]
                    })
                };
                let found = (-4..=4).any(|down| {
                    (-4..=4).any(|right| [false, true].into_iter().any(|flip| is(down, right, flip)))
                });
                assert!(found, "image {index} is no shift of the original");
            }
        }
    }

    #[test]
    fn broken_pictures_are_left_out_or_fatal() {
        let dir = pictures();
        let whole = Loader::new(folder(dir.path()), augmented(), options(2)).unwrap();
        let whole = all(whole.train_epoch(1, 0, 5, 0));
        let broken = dir.path().join("train/two/03.jpg");
        let bytes = fs::read(&broken).unwrap();
        fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
        let index = 7; // 00 02 04 06 08 10, then 01 03

        for workers in [0, 3] {
            let loader = Loader::new(folder(dir.path()), augmented(), options(workers)).unwrap();
            let error = loader.train_epoch(1, 0, 5, 0).find_map(Result::err).unwrap();
            assert!(format!("{error:#}").contains("train/two/03.jpg` is broken"), "{error:#}");

            let skip = Options { on_broken: OnBroken::Skip, ..options(workers) };
            let loader = Loader::new(folder(dir.path()), augmented(), skip).unwrap();
            for _ in 0..2 {
                for (batch, whole) in all(loader.train_epoch(1, 0, 5, 0)).iter().zip(&whole) {
                    let kept: Vec<usize> =
                        (0..whole.indices.len()).filter(|&i| whole.indices[i] != index).collect();
                    let size = whole.shape.iter().product();
                    assert!(batch.indices.iter().eq(kept.iter().map(|&i| &whole.indices[i])));
                    let images: Vec<&[f32]> = whole.images.chunks_exact(size).collect();
                    assert!(batch.images.chunks_exact(size).eq(kept.iter().map(|&i| images[i])));
                    assert_eq!(batch.labels.len(), kept.len());
                }
            }
            assert_eq!(loader.shared.reported.lock().unwrap().len(), 1);
            // A batch of nothing else is empty and ends nothing.
            let single = all(loader.train_epoch(1, 0, 1, 0));
            assert_eq!(single.len(), 12);
            let empty: Vec<&Batch> = single.iter().filter(|batch| batch.labels.is_empty()).collect();
            assert_eq!(empty.len(), 1);
            assert!(empty[0].images.is_empty() && empty[0].indices.is_empty());
            // Nor is it mixed.
            let loader = Loader::new(folder(dir.path()), mixed(AutoAugment::Rand), skip).unwrap();
            let single = all(loader.train_epoch(1, 0, 1, 0));
            assert!(single.iter().all(|batch| batch.mix.is_some() != batch.labels.is_empty()));
        }
    }

    #[test]
    fn limits_of_folders_keep_all_classes() {
        let dir = pictures();
        let limits = Options { train_limit: Some(4), test_limit: Some(100), ..options(0) };
        let loader = Loader::new(folder(dir.path()), augmented(), limits).unwrap();
        assert_eq!((loader.train_images(), loader.test_images()), (4, 4));
        let mut indices = all(loader.train_epoch(0, 0, 4, 0)).remove(0).indices;
        indices.sort_unstable();
        assert_eq!(indices, [0, 3, 6, 9]);
        assert!(Loader::new(colours(), augmented(), Options { test_limit: Some(0), ..limits }).is_err());
    }

    /// Too narrow to be cropped, but whole.
    #[test]
    fn a_picture_that_does_not_fit_is_left_out() {
        let dir = pictures();
        let mut encoded = Vec::new();
        let mut encoder = png::Encoder::new(&mut encoded, 1 << 16, 1);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&[7; 1 << 16]).unwrap();
        fs::write(dir.path().join("val/one/narrow.png"), encoded).unwrap();
        for on_broken in [OnBroken::Fail, OnBroken::Skip] {
            let loader =
                Loader::new(folder(dir.path()), augmented(), Options { on_broken, ..options(2) }).unwrap();
            let count = loader.test_images();
            let images: Result<Vec<Batch>> = loader.eval(3).collect();
            match on_broken {
                OnBroken::Fail => {
                    let error = images.unwrap_err().to_string();
                    assert!(error.contains("narrow.png") && error.contains("too narrow"), "{error}");
                }
                OnBroken::Skip => {
                    let images: usize = images.unwrap().iter().map(|batch| batch.labels.len()).sum();
                    assert_eq!(images, count - 1);
                }
            }
        }
    }

    #[test]
    fn numbers_at_their_extremes() {
        let most = usize::MAX;
        let error = Loader::new(colours(), augmented(), options(most)).err().unwrap().to_string();
        assert!(error.contains("18446744073709551615 workers"), "{error}");
        let limits = Options { train_limit: Some(most), test_limit: Some(most), ..options(MAX_WORKERS) };
        let loader = Loader::new(colours(), augmented(), limits).unwrap();
        assert_eq!((loader.steps_per_epoch(0), loader.steps_per_epoch(most)), (30, 1));
        assert_eq!(loader.check(0), Err(BatchSizeError::Zero));
        for mut batches in [loader.train_epoch(u64::MAX, most, 0, most), loader.eval(0)] {
            let error = batches.next().unwrap().unwrap_err().to_string();
            assert!(error.contains("`--batch-size`"), "{error}");
            assert!(batches.next().is_none());
        }
        assert_eq!(loader.train_epoch(u64::MAX, most, 7, most).count(), 0);
        assert_eq!(all(loader.train_epoch(u64::MAX, most, most, 0))[0].labels.len(), 30);
        assert_eq!(all(loader.eval(most)).len(), 1);
    }

    #[test]
    fn settings_at_their_extremes() {
        for alpha in [f64::MAX, f64::MIN_POSITIVE] {
            let crop = Crop::Resized { size: 8, scale: [1e-300, 1.0], ratio: [1e-300, 1e300] };
            let train = Augment {
                crop,
                jitter: Some(Jitter { brightness: f32::MAX, contrast: f32::MAX, saturation: f32::MAX }),
                auto: Some(AutoAugment::Rand),
                erase: Some(Erase { probability: 1.0 }),
                ..Augment::default()
            };
            let normalise = Normalise { mean: vec![1e30], std: vec![1e-5] };
            let mix = Some(Mixing { mixup_alpha: Some(alpha), cutmix_alpha: Some(alpha) });
            let transform = Transform { train, eval: None, normalise, mix };
            let loader = Loader::new(colours(), transform, options(1)).unwrap();
            for batch in all(loader.train_epoch(0, 0, 2, 0)) {
                assert!(batch.images.iter().all(|value| value.is_finite()));
                assert!((0.0..=1.0).contains(&batch.mix.unwrap().share));
            }
        }
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let crop = Transform::imagenet(4096, 4096);
        let mut source = ImageFolder::open(pictures().path(), false).unwrap();
        let count = 1 << 16;
        source.train.paths.resize(count, "x".into());
        source.train.labels.resize(count, 0);
        let loader = Loader::new(Source::Folder(source), crop, options(2)).unwrap();
        let error = loader.check(1 << 14).unwrap_err();
        let BatchSizeError::TooLarge { batches: 4, size, shape: [3, 4096, 4096], source } = error else {
            panic!("{error}")
        };
        assert_eq!((size, source.bytes), (1 << 14, Some(4 * (3 << 40))));
        let error = error.to_string();
        assert!(error.contains("13.2 TB") && error.contains("`--batch-size`"), "{error}");
    }

    #[test]
    fn dropping_ends_early() {
        let loader = Loader::new(colours(), augmented(), options(3)).unwrap();
        for epoch in 0..50 {
            let mut batches = loader.train_epoch(0, epoch, 2, 0);
            batches.next().unwrap().unwrap();
        }
        assert_eq!(Arc::strong_count(&loader.shared), 1, "no thread is left");
    }
}
