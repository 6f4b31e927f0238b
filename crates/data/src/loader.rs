//! Batches for training and testing, made ahead by threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::augment::{Draws, Workspace, normalise};
use super::picture::{self, Picture, PictureError};
use super::prefetch::Prefetch;
use super::{Augment, ImageFolder, Images, Source, Transform};

/// How a [`Loader`] works. None of it changes what the images look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads that make batches ahead; with 0, each is made by who asks for it. Batches are the same.
    pub workers: usize,
    /// What to do about a picture that cannot be read.
    pub on_broken: OnBroken,
    /// Images to train on, all if not given: the first ones in memory; in a folder, which is sorted by class,
    /// as many at equal distances.
    pub train_limit: Option<usize>,
    /// Images to test on, likewise.
    pub test_limit: Option<usize>,
}

impl Default for Options {
    /// Two workers, failing at broken pictures, all images.
    fn default() -> Self {
        Self { workers: 2, on_broken: OnBroken::Fail, train_limit: None, test_limit: None }
    }
}

/// What to do about a picture that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBroken {
    /// End with an error that names it.
    Fail,
    /// Name it on standard error, once, and leave it out; its batch gets smaller, the others stay the same.
    Skip,
}

/// Images and their labels.
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
}

struct Shared {
    source: Source,
    transform: Transform,
    shape: [usize; 3],
    /// Normalised value of each pixel, `[channels, 256]`.
    table: Vec<[f32; 256]>,
    on_broken: OnBroken,
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
    /// The transform does not fit the images, see [`Transform::check`]; a limit is 0.
    pub fn new(source: Source, transform: Transform, options: Options) -> Result<Self> {
        let Options { workers, on_broken, train_limit, test_limit } = options;
        ensure!(train_limit != Some(0) && test_limit != Some(0), "image limits must be at least 1");
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
        let reported = Mutex::default();
        let shared = Shared { source, transform, shape, table, on_broken, counts, reported };
        Ok(Self { shared: Arc::new(shared), workers })
    }

    /// Images to train on.
    pub fn train_images(&self) -> usize {
        self.shared.counts[0]
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
    /// last batch may be smaller. What a batch holds depends on the seed, the epoch and its place alone.
    pub fn train_epoch(&self, seed: u64, epoch: usize, batch_size: usize, skip_batches: usize) -> Batches {
        let mut order: Vec<usize> = (0..self.train_images()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        order.shuffle(&mut rng);
        let plan = Plan { part: Part::Train, random: Some((seed, epoch as u64)), order, batch_size };
        self.batches(plan, skip_batches)
    }

    /// The test images in order, as the transform's `eval` has them. The last batch may be smaller.
    pub fn eval(&self, batch_size: usize) -> Batches {
        let order = (0..self.test_images()).collect();
        self.batches(Plan { part: Part::Test, random: None, order, batch_size }, 0)
    }

    /// Images per second of an epoch of training batches that nobody trains on, after one that warms up.
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
        assert!(plan.batch_size > 0, "batches must have at least one image");
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
        };
        let (mut workspace, mut file) = (Workspace::default(), Vec::new());
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
                    match picture::read(&path, &mut file, &mut workspace.picture) {
                        Err(error) => self.broken(error, plan.part, index)?,
                        Ok(()) => {
                            self.finish(index, plan.random, &mut workspace, to)
                                .with_context(|| format!("`{}`", path.display()))?;
                            batch.labels.push(listing.labels[index]);
                            batch.indices.push(index);
                        }
                    }
                }
            }
        }
        ensure!(!batch.labels.is_empty(), "all {} pictures of a batch are broken", chosen.len());
        batch.images.truncate(batch.labels.len() * size);
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
        let mut flip = false;
        if let Some((seed, epoch)) = random {
            let mut draws = Draws::new(seed, epoch, index as u64);
            flip = workspace.augment(&self.transform.train, &mut draws)?;
        } else if let Some(eval) = self.transform.eval {
            workspace.centre_crop(eval)?;
        }
        normalise(&workspace.picture, flip, &self.table, to);
        Ok(())
    }

    /// Reports picture `index` of a split, once, or passes its error on.
    fn broken(&self, error: PictureError, part: Part, index: usize) -> Result<()> {
        if self.on_broken == OnBroken::Fail {
            return Err(error.into());
        }
        if self.reported.lock().expect("nothing panics under the lock").insert((part, index)) {
            eprintln!("left out: {error}");
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
