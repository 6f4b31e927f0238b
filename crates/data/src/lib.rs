//! Image classification data sets, augmentation, and the loader that feeds training.
//!
//! [`open`] finds a set: in memory ([`Images`]) or as a folder of pictures ([`ImageFolder`]). It looks
//! where real images may lie and downloads them where it can; only for MNIST and Fashion-MNIST it falls back
//! on generated glyphs, and says so loudly. A [`Loader`] makes batches of it with a [`Transform`], on any
//! number of threads and always the same: what a batch holds depends on the seed, the epoch and its place
//! in the epoch alone.
//!
//! Files that are read are checked by [`idx`], [`cifar`], [`folder`] and [`picture`], downloads by
//! checksum in [`fetch`].
//!
//! ```no_run
//! use srigl_data::{DataSet, Loader, Options, Transform};
//!
//! let source = srigl_data::open(DataSet::Cifar10, None, false)?;
//! let transform = Transform::standard(&source);
//! let loader = Loader::new(source, transform, Options::default())?;
//! for batch in loader.train_epoch(42, 0, 128, 0) {
//!     let batch = batch?;
//!     println!("{} images of shape {:?}", batch.labels.len(), batch.shape);
//! }
//! # anyhow::Ok(())
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub mod augment;
pub mod auto_augment;
pub mod cifar;
pub mod fetch;
pub mod folder;
pub mod glyphs;
pub mod idx;
pub mod loader;
pub mod mix;
mod palette_tiff;
pub mod pickle;
pub mod picture;
mod prefetch;
mod printable;

/// What the fuzz targets call: the readers of files, over bytes.
#[doc(hidden)]
pub mod fuzzing {
    pub use super::cifar::fuzz as cifar;
    pub use super::idx::fuzz as idx;
    pub use super::picture::fuzz as picture;
}

pub use augment::{Augment, CentreCrop, Crop, Erase, Jitter, Normalise, PadMode, Transform};
pub use auto_augment::AutoAugment;
pub use folder::ImageFolder;
pub use loader::{Batch, BatchSizeError, Batches, Loader, OnBroken, Options};
pub use mix::{Mix, Mixing};

use fetch::Remote;

/// A data set by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataSet {
    /// Fashion-MNIST: 60 000 + 10 000 pictures of clothes.
    FashionMnist,
    /// MNIST: 60 000 + 10 000 handwritten digits.
    Mnist,
    /// Glyphs: 12 000 + 2 000 generated drawings; needs no files.
    Glyphs,
    /// CIFAR-10: 50 000 + 10 000 small colour photographs of 10 classes.
    Cifar10,
    /// CIFAR-100: 50 000 + 10 000 small colour photographs of 100 classes.
    Cifar100,
    /// EMNIST by class: 697 932 + 116 323 digits, capital and small letters of 62 classes.
    EmnistByclass,
    /// EMNIST by merge: the same, in 47 classes, as some capital and small letters look alike.
    EmnistBymerge,
    /// EMNIST balanced: 112 800 + 18 800 of these 47 classes, as many of each.
    EmnistBalanced,
    /// EMNIST letters: 124 800 + 20 800 letters of 26 classes, capital or small.
    EmnistLetters,
    /// EMNIST digits: 240 000 + 40 000 digits.
    EmnistDigits,
    /// EMNIST MNIST: 60 000 + 10 000 digits.
    EmnistMnist,
    /// Any folder of pictures sorted by class, such as ImageNet.
    ImageFolder,
}

impl DataSet {
    /// The sets of EMNIST, in torchvision's order. Their images are transposed, as they are stored.
    pub const EMNIST: [Self; 6] = [
        Self::EmnistByclass,
        Self::EmnistBymerge,
        Self::EmnistBalanced,
        Self::EmnistLetters,
        Self::EmnistDigits,
        Self::EmnistMnist,
    ];

    /// Whether the images are generated, not real.
    pub fn is_synthetic(self) -> bool {
        self == Self::Glyphs
    }

    /// The name in commands, settings and folders, such as `fashion-mnist`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FashionMnist => "fashion-mnist",
            Self::Mnist => "mnist",
            Self::Glyphs => "glyphs",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::EmnistByclass => "emnist-byclass",
            Self::EmnistBymerge => "emnist-bymerge",
            Self::EmnistBalanced => "emnist-balanced",
            Self::EmnistLetters => "emnist-letters",
            Self::EmnistDigits => "emnist-digits",
            Self::EmnistMnist => "emnist-mnist",
            Self::ImageFolder => "image-folder",
        }
    }

    /// What torchvision calls this set of EMNIST, such as `byclass`; none if it is another.
    fn emnist_split(self) -> Option<&'static str> {
        self.name().strip_prefix("emnist-")
    }

    /// Whether glyphs may stand in where the set is not to be had.
    fn falls_back(self) -> bool {
        matches!(self, Self::FashionMnist | Self::Mnist)
    }
}

impl std::fmt::Display for DataSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Labelled images, for training or for testing.
#[derive(Clone, Debug)]
pub struct Split {
    /// Pixels, 0 black to 255 white: `[count, channels * height * width]`.
    pub images: Vec<u8>,
    /// The class of each image: `[count]`, each below the number of classes.
    pub labels: Vec<u8>,
}

impl Split {
    /// How many images there are; never 0 in a loaded set.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// How many images each class has: `[classes]`.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Images {
    /// Which set this is: [`DataSet::Glyphs`] where the one asked for was not to be had.
    pub set: DataSet,
    /// Where the images came from, for people.
    pub source: String,
    /// To train on.
    pub train: Split,
    /// To test on.
    pub test: Split,
    /// Labels lie in `0..classes`.
    pub classes: usize,
    /// What each label stands for: `[classes]`.
    pub class_names: Vec<String>,
    /// Colour channels; 1 is grey.
    pub channels: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
}

impl Images {
    /// A set of two splits with images of `shape` `[channels, height, width]` and labels below the number
    /// of `class_names`.
    pub fn new(
        set: DataSet,
        source: String,
        (train, test): (Split, Split),
        class_names: Vec<String>,
        [channels, height, width]: [usize; 3],
    ) -> Self {
        Self { set, source, train, test, classes: class_names.len(), class_names, channels, height, width }
    }

    /// Mean and (population) standard deviation of the training pixels, scaled to [0, 1].
    pub fn mean_std(&self) -> (f32, f32) {
        mean_std([&self.train.images[..]])
    }

    /// Mean and (population) standard deviation of each channel of the training pixels, scaled to [0, 1]:
    /// `[channels]`.
    pub fn channel_mean_std(&self) -> Vec<(f32, f32)> {
        let plane = self.height * self.width;
        let channel = |c| mean_std(self.train.images.chunks_exact(plane).skip(c).step_by(self.channels));
        (0..self.channels).map(channel).collect()
    }
}

fn mean_std<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (f32, f32) {
    let (mut count, mut sum, mut squares) = (0, 0.0_f64, 0.0_f64);
    for part in parts {
        count += part.len();
        // Sums of whole numbers below 2^53 are exact.
        for &pixel in part {
            let pixel = f64::from(pixel);
            sum += pixel;
            squares += pixel * pixel;
        }
    }
    let mean = sum / count as f64;
    let variance = (squares / count as f64 - mean * mean).max(0.0);
    ((mean / 255.0) as f32, (variance.sqrt() / 255.0) as f32)
}

/// Where the images of a [`Loader`] are.
pub enum Source {
    /// In memory.
    Memory(Images),
    /// In files.
    Folder(ImageFolder),
}

impl Source {
    /// Which set this is.
    pub fn set(&self) -> DataSet {
        match self {
            Self::Memory(images) => images.set,
            Self::Folder(_) => DataSet::ImageFolder,
        }
    }

    /// Where the images came from, for people.
    pub fn origin(&self) -> String {
        match self {
            Self::Memory(images) => images.source.clone(),
            Self::Folder(folder) if folder.test_folder != "val" => {
                format!("{} (train, {})", printable::shown(&folder.root), folder.test_folder)
            }
            Self::Folder(folder) => printable::shown(&folder.root),
        }
    }

    /// What each label stands for: `[classes]`.
    pub fn class_names(&self) -> &[String] {
        match self {
            Self::Memory(images) => &images.class_names,
            Self::Folder(folder) => &folder.class_names,
        }
    }

    /// How many training and test images each class has: `[classes]` each.
    pub fn class_counts(&self) -> (Vec<usize>, Vec<usize>) {
        let classes = self.class_names().len();
        match self {
            Self::Memory(images) => (images.train.class_counts(classes), images.test.class_counts(classes)),
            Self::Folder(folder) => (folder.train.class_counts(classes), folder.test.class_counts(classes)),
        }
    }

    /// What these images are, wherever they lie: 64 hexadecimal digits, the SHA-256 of the class names and, in their
    /// order, of all pixels and labels, or in a folder of the names below it and the labels of all files. A run that is
    /// resumed with another digest has other images.
    ///
    /// Files are not looked at: a broken one may be replaced by a good one, and a million of them would take minutes.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            // With its length, so that no two lists of parts are alike.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(self.set().name().as_bytes());
        add(&(self.class_names().len() as u64).to_le_bytes());
        self.class_names().iter().for_each(|name| add(name.as_bytes()));
        match self {
            Self::Memory(images) => {
                for number in [images.channels, images.height, images.width] {
                    add(&(number as u64).to_le_bytes());
                }
                for split in [&images.train, &images.test] {
                    add(&split.labels);
                    add(&split.images);
                }
            }
            Self::Folder(folder) => {
                for listing in [&folder.train, &folder.test] {
                    add(&(listing.len() as u64).to_le_bytes());
                    for (path, label) in listing.paths.iter().zip(&listing.labels) {
                        add(path.as_os_str().as_encoded_bytes());
                        add(&label.to_le_bytes());
                    }
                }
            }
        }
        srigl_tensors::hex(&hash.finalize())
    }
}

/// Finds a data set: reads it as [`load`] does, or lists its files if it is [`DataSet::ImageFolder`], whose
/// classes may be without pictures only if `allow_empty`.
///
/// # Errors
/// Those of [`load`] and [`ImageFolder::open`]; an image folder without `dir`.
pub fn open(set: DataSet, dir: Option<&Path>, allow_empty: bool) -> Result<Source> {
    match (set, dir) {
        (DataSet::ImageFolder, Some(dir)) => Ok(Source::Folder(ImageFolder::open(dir, allow_empty)?)),
        (DataSet::ImageFolder, None) => bail!("say where the image folder is with `--data DIR`"),
        _ => Ok(Source::Memory(load(set, dir)?)),
    }
}

/// Loads a data set into memory.
///
/// With `dir`, the files must lie there, in a sub-folder named after the set, or where torchvision puts them, such
/// as `MNIST/raw`. Without, the folder of the Debian package and the user's cache are searched, then the files are
/// downloaded into the cache; if all fails the glyphs are returned instead of Fashion-MNIST and MNIST, announced on
/// standard error.
///
/// # Errors
/// With `dir`: a file is missing or broken, or the set is `glyphs`, which has no files. Without: CIFAR or EMNIST is
/// nowhere to be had. Always: the set is `image-folder`, which [`open`] is for.
pub fn load(set: DataSet, dir: Option<&Path>) -> Result<Images> {
    load_from(set, dir, &Places::standard(set))
}

/// Where a set is looked for when no folder is given.
struct Places {
    /// Where the system keeps the set, read only.
    system: Option<PathBuf>,
    /// The user's cache folder of the set, which downloads go to.
    cache: Option<PathBuf>,
    /// Where it can be downloaded.
    remote: Option<Remote>,
}

impl Places {
    fn standard(set: DataSet) -> Self {
        // Debian packages only this one.
        let system =
            (set == DataSet::FashionMnist).then(|| PathBuf::from("/usr/share/datasets/fashion-mnist"));
        Self { system, cache: cache_dir(set), remote: Remote::of(set) }
    }
}

/// The folder that downloads of a set go to: `$XDG_CACHE_HOME/srigl/NAME`, or `~/.cache/srigl/NAME`; none
/// if the user has no home.
pub fn cache_dir(set: DataSet) -> Option<PathBuf> {
    let folder = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path) // the XDG specification ignores relative ones
    };
    let root = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(root.join("srigl").join(set.name()))
}

fn load_from(set: DataSet, dir: Option<&Path>, places: &Places) -> Result<Images> {
    if set == DataSet::ImageFolder {
        bail!("an image folder does not fit into memory; this needs a set such as `cifar10`");
    }
    if let Some(dir) = dir {
        if set == DataSet::Glyphs {
            bail!("`glyphs` are generated and have no files; leave out `--data`");
        }
        return read_dir(set, dir).with_context(|| {
            format!("cannot load {set} from `{}` ({})", printable::shown(dir), source_of(set))
        });
    }
    if set == DataSet::Glyphs {
        return Ok(generated("generated (synthetic)".to_string()));
    }
    find(set, places).or_else(|failures| {
        if !set.falls_back() {
            bail!("{set} was not found\n{}", where_and_how(set, &failures));
        }
        srigl_tensors::say(&synthetic_notice(set, &failures));
        Ok(generated(format!("generated (synthetic), as {set} was not found")))
    })
}

fn generated(source: String) -> Images {
    let names = glyphs::CLASS_NAMES.map(String::from).to_vec();
    Images::new(DataSet::Glyphs, source, glyphs::generate(), names, [1, idx::SIDE, idx::SIDE])
}

/// Tries one place after the other; else says what each of them lacked.
fn find(set: DataSet, places: &Places) -> Result<Images, Vec<String>> {
    let mut failures = Vec::new();
    for dir in [&places.system, &places.cache].into_iter().flatten() {
        if !dir.is_dir() {
            failures.push(format!("`{}`: no such folder", printable::shown(dir)));
            continue;
        }
        match read_dir(set, dir) {
            Ok(images) => return Ok(images),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let downloaded = match (&places.cache, &places.remote) {
        (Some(dir), Some(remote)) => fetch::fetch(remote, dir).and_then(|_| read_dir(set, dir)),
        (_, None) => Err(anyhow!("no download: {set} is only published as part of an archive")),
        (None, _) => Err(anyhow!("no download: neither XDG_CACHE_HOME nor HOME is set")),
    };
    downloaded.map_err(|error| {
        failures.push(format!("{error:#}"));
        failures
    })
}

fn synthetic_notice(set: DataSet, failures: &[String]) -> String {
    let rule = "=".repeat(78);
    format!(
        "{rule}\nWARNING: SYNTHETIC IMAGES. {set} was not found; generated `glyphs` take its place.\n\
         Numbers from this run say nothing about {set}.\n\n{}\n{rule}",
        where_and_how(set, failures)
    )
}

/// What each place lacked, and how to get the images.
fn where_and_how(set: DataSet, failures: &[String]) -> String {
    let mut text = String::from("Where it was looked for:\n");
    for failure in failures {
        let _ = writeln!(text, "  - {failure}"); // writing to a String cannot fail
    }
    text += "How to get the real images:\n";
    if set == DataSet::FashionMnist {
        text += "  - apt install dataset-fashion-mnist, or\n";
    }
    let _ = write!(text, "  - give a folder that has the files with --data DIR ({})", source_of(set));
    text
}

/// What makes a folder of the files of `set`.
fn source_of(set: DataSet) -> String {
    match set.emnist_split() {
        Some(split) => format!(
            "`torchvision.datasets.EMNIST(DIR, '{split}', download=True)` makes one, and so does unpacking \
             `gzip.zip` of https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
        ),
        None => format!("`srigl data fetch {set} --data DIR` makes one where there is a network"),
    }
}

/// Reads the files in `dir` or in one of its sub-folders where such a set may lie.
fn read_dir(set: DataSet, dir: &Path) -> Result<Images> {
    if let Some(layout) = cifar::Layout::of(set) {
        let sub = dir.join(set.name());
        let dir = if !layout.is_in(dir) && layout.is_in(&sub) { &sub } else { dir };
        let (train, test, names) = layout.read(dir)?;
        let shape = [3, cifar::SIDE, cifar::SIDE];
        return Ok(Images::new(set, printable::shown(dir), (train, test), names, shape));
    }
    let dir = idx::find_folder(set, dir);
    let mut paths = Vec::new();
    for name in idx::names(set) {
        paths.push(idx::locate(&dir, &name)?);
    }
    let train = idx::read_split(set, &paths[0], &paths[1])?;
    let test = idx::read_split(set, &paths[2], &paths[3])?;
    let shape = [1, idx::SIDE, idx::SIDE];
    Ok(Images::new(set, printable::shown(&dir), (train, test), idx::class_names(set), shape))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use clap::ValueEnum;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    /// An IDX file in memory.
    fn idx_bytes(dims: &[u32], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(body);
        bytes
    }

    /// A complete set of one training and one test image.
    fn write_set(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for name in idx::NAMES {
            let bytes = match name.contains("images") {
                true => idx_bytes(&[1, 28, 28], &[51; idx::SIDE * idx::SIDE]),
                false => idx_bytes(&[1], &[3]),
            };
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// Places that lead nowhere: nothing listens on port 1.
    fn nowhere(cache: Option<PathBuf>) -> Places {
        let mut remote = Remote::of(DataSet::Mnist).unwrap();
        remote.mirror = "http://127.0.0.1:1/".to_string();
        Places { system: None, cache, remote: Some(remote) }
    }

    #[test]
    fn downloads_into_the_cache() {
        let dir = TempDir::new().unwrap();
        write_set(dir.path());
        let contents = idx::NAMES.map(|name| {
            let bytes = fs::read(dir.path().join(name)).unwrap();
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&bytes).unwrap();
            gzip.finish().unwrap()
        });
        let cache = dir.path().join("cache");
        let places = Places { remote: Some(fetch::tests::serve(contents)), ..nowhere(Some(cache.clone())) };
        let images = load_from(DataSet::Mnist, None, &places).unwrap();
        assert_eq!(images.set, DataSet::Mnist);
        assert_eq!(images.source, cache.display().to_string());
        // Now it is there, the network is not asked again.
        let images = load_from(DataSet::Mnist, None, &nowhere(Some(cache))).unwrap();
        assert_eq!(images.set, DataSet::Mnist);
    }

    #[test]
    fn names_agree() {
        for set in DataSet::value_variants() {
            assert_eq!(set.to_possible_value().unwrap().get_name(), set.name());
            assert_eq!(serde_json::to_value(set).unwrap(), set.name());
            assert_eq!(set.to_string(), set.name());
        }
    }

    #[test]
    fn loads_from_a_given_folder_or_its_sub_folder() {
        let dir = TempDir::new().unwrap();
        write_set(&dir.path().join("mnist"));
        let places = nowhere(None);
        for given in [dir.path().to_path_buf(), dir.path().join("mnist")] {
            let images = load_from(DataSet::Mnist, Some(&given), &places).unwrap();
            assert_eq!(images.set, DataSet::Mnist);
            assert_eq!((images.train.len(), images.test.len()), (1, 1));
            assert_eq!(images.mean_std(), (0.2, 0.0));
        }
    }

    #[test]
    fn a_given_folder_never_falls_back() {
        let dir = TempDir::new().unwrap();
        let load = || load_from(DataSet::Mnist, Some(dir.path()), &nowhere(None));
        let error = format!("{:#}", load().unwrap_err());
        assert!(error.contains("train-images-idx3-ubyte"), "{error}");

        write_set(dir.path());
        fs::write(dir.path().join("t10k-labels-idx1-ubyte"), "junk").unwrap();
        let error = format!("{:#}", load().unwrap_err());
        assert!(error.contains("t10k-labels-idx1-ubyte"), "{error}");

        assert!(load_from(DataSet::Glyphs, Some(dir.path()), &nowhere(None)).is_err());
    }

    #[test]
    fn nothing_stands_in_for_cifar() {
        let mut places = nowhere(None);
        places.remote = Remote::of(DataSet::Cifar10);
        let error = format!("{:#}", load_from(DataSet::Cifar10, None, &places).unwrap_err());
        assert!(error.contains("srigl data fetch cifar10"), "{error}");
        let dir = TempDir::new().unwrap();
        let error = load_from(DataSet::Cifar100, Some(dir.path()), &places).unwrap_err();
        let error = format!("{error:#}");
        for part in ["cifar-100-binary.tar.gz", "train.bin", "srigl data fetch cifar100"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn emnist_as_torchvision_leaves_it() {
        let dir = TempDir::new().unwrap();
        let set = DataSet::EmnistLetters;
        let error = load_from(set, Some(dir.path()), &nowhere(None)).unwrap_err();
        let error = format!("{error:#}");
        for part in ["emnist-letters-train-images-idx3-ubyte", "EMNIST(DIR, 'letters', download=True)"] {
            assert!(error.contains(part), "{error}");
        }
        let places = Places { remote: Remote::of(set), ..nowhere(Some(dir.path().join("none"))) };
        let error = load_from(set, None, &places).unwrap_err().to_string();
        assert!(error.contains("archive") && error.contains("download=True"), "{error}");

        let raw = dir.path().join("EMNIST/raw");
        fs::create_dir_all(&raw).unwrap();
        for name in idx::names(set) {
            let bytes = match name.contains("images") {
                true => idx_bytes(&[2, 28, 28], &[51; 2 * idx::SIDE * idx::SIDE]),
                false => idx_bytes(&[2], &[26, 1]),
            };
            fs::write(raw.join(name), bytes).unwrap();
        }
        let images = load_from(set, Some(dir.path()), &nowhere(None)).unwrap();
        assert_eq!((images.set, images.classes), (set, 26));
        assert_eq!(images.test.labels, [25, 0]);
        assert_eq!(images.source, raw.display().to_string());
    }

    #[test]
    fn an_image_folder_must_be_opened() {
        assert!(load(DataSet::ImageFolder, None).is_err());
        let error = open(DataSet::ImageFolder, None, false).err().unwrap().to_string();
        assert!(error.contains("--data"), "{error}");
    }

    #[test]
    fn a_digest_tells_other_images() {
        let dir = TempDir::new().unwrap();
        write_set(dir.path());
        let digest = || open(DataSet::Mnist, Some(dir.path()), false).unwrap().digest();
        let first = digest();
        assert_eq!(first.len(), 64);
        assert_eq!(digest(), first);
        fs::write(dir.path().join(idx::NAMES[3]), idx_bytes(&[1], &[4])).unwrap();
        let label = digest();
        fs::write(dir.path().join(idx::NAMES[2]), idx_bytes(&[1, 28, 28], &[52; 784])).unwrap();
        let digests = [first, label, digest()];
        assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
    }

    #[test]
    fn a_digest_tells_another_listing() {
        let made = |files: &[(&str, usize)]| {
            let dir = TempDir::new().unwrap();
            for (file, size) in files {
                let path = dir.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, vec![0; *size]).unwrap();
            }
            dir
        };
        let digest = |files: &[(&str, usize)]| {
            open(DataSet::ImageFolder, Some(made(files).path()), false).unwrap().digest()
        };
        let files = [("train/a/1.png", 5), ("train/a/2.png", 5), ("val/a/1.png", 5)];
        // Not where the folder is, nor what is beside the pictures or in them.
        let repaired = [("train/a/1.png", 6), files[1], files[2]];
        assert_eq!(digest(&files), digest(&repaired));
        assert_eq!(digest(&files), digest(&[&files[..], &[("train/a/x.txt", 1)]].concat()));
        for other in [
            [("train/a/3.png", 5), files[1], files[2]],
            [("train/b/1.png", 5), ("train/b/2.png", 5), ("val/b/1.png", 5)],
            [files[0], ("val/a/2.png", 5), files[2]],
        ] {
            assert_ne!(digest(&files), digest(&other));
        }
    }

    #[test]
    fn searches_the_system_then_the_cache() {
        let dir = TempDir::new().unwrap();
        let (system, cache) = (dir.path().join("system"), dir.path().join("cache"));
        write_set(&cache);
        let places = Places { system: Some(system.clone()), ..nowhere(Some(cache.clone())) };
        let source = || load_from(DataSet::Mnist, None, &places).unwrap().source;
        assert_eq!(source(), cache.display().to_string());
        write_set(&system);
        assert_eq!(source(), system.display().to_string());
    }

    #[test]
    fn falls_back_to_glyphs_quickly_and_says_why() {
        let dir = TempDir::new().unwrap();
        let cache = dir.path().join("cache");
        let start = std::time::Instant::now();
        let places = nowhere(Some(cache.clone()));
        let images = load_from(DataSet::Mnist, None, &places).unwrap();
        assert!(start.elapsed().as_secs() < 10);
        assert_eq!(images.set, DataSet::Glyphs);
        assert!(images.source.contains("synthetic"), "{}", images.source);

        let failures = find(DataSet::Mnist, &places).unwrap_err();
        let notice = synthetic_notice(DataSet::Mnist, &failures);
        for part in ["SYNTHETIC", "127.0.0.1:1/train-images", "--data DIR"] {
            assert!(notice.contains(part), "{notice}");
        }
        let left: Vec<_> = fs::read_dir(&cache).unwrap().collect();
        assert!(left.is_empty(), "a failed download left {left:?}");
    }

    #[test]
    fn reads_the_debian_package() {
        let dir = Path::new("/usr/share/datasets/fashion-mnist");
        if !dir.is_dir() {
            return; // not installed here
        }
        let images = read_dir(DataSet::FashionMnist, dir).unwrap();
        assert_eq!(images.train.class_counts(10), [6_000; 10]);
        assert_eq!(images.test.class_counts(10), [1_000; 10]);
        let (mean, std) = images.mean_std();
        assert!((mean - 0.2860).abs() < 1e-4, "{mean}"); // as published everywhere
        assert!((std - 0.3530).abs() < 1e-4, "{std}");
    }
}
