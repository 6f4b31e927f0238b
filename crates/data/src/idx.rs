//! The IDX format of the MNIST family (MNIST, Fashion-MNIST, EMNIST): a magic number, the dimensions, the bytes.
//!
//! Images are as they are stored. Those of EMNIST are stored transposed: rows are columns of the letter. So they
//! are shown by torchvision, too.
//!
//! Nothing in a file is trusted: what the header promises is checked before it is read, no more than
//! it promises is ever held in memory, and every way a file can be wrong is an [`IdxError`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::printable::shown;
use super::{DataSet, Split};
use srigl_tensors::memory::{self, TooLarge};

/// Height and width of every image, in pixels.
pub const SIDE: usize = 28;

/// The four files of MNIST and Fashion-MNIST: training images and labels, test images and labels. Each may
/// be compressed, with `.gz` at the end of its name.
pub const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// The largest body a header may declare, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// What can be wrong with an IDX file.
#[derive(Debug, thiserror::Error)]
pub enum IdxError {
    /// There is no such file.
    #[error("`{}` is missing, with and without `.gz`", shown(.0))]
    Missing(PathBuf),
    /// It cannot be opened, read or decompressed.
    #[error("cannot read `{}` ({source}); check that it is readable, or get it again", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// It does not begin as an IDX file of bytes with the right number of dimensions does.
    #[error("`{}` begins with {found:02x?}, not {expected:02x?}; it is another kind of file", shown(path))]
    Magic {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        found: [u8; 4],
        /// What they should be.
        expected: [u8; 4],
    },
    /// The header declares more than 2^30 bytes.
    #[error("`{}` claims dimensions {dims:?}, more than 1 GiB; it is damaged, get it again", shown(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The declared dimensions.
        dims: Vec<u32>,
    },
    /// The header declares more bytes than there is memory for.
    #[error("`{}` does not fit: {source}", shown(path))]
    Memory {
        /// The file.
        path: PathBuf,
        /// What it would take.
        source: TooLarge,
    },
    /// It ends early.
    #[error("`{}` ends after {found} of {expected} bytes; it is cut short, get it again", shown(path))]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Uncompressed bytes there are.
        found: u64,
        /// Uncompressed bytes there should be.
        expected: u64,
    },
    /// It goes on after the last declared byte.
    #[error("`{}` goes on after its {expected} bytes; it is damaged, get it again", shown(path))]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Uncompressed bytes there should be.
        expected: u64,
    },
    /// It holds no images or labels.
    #[error("`{}` holds nothing; get it again", shown(.0))]
    Empty(PathBuf),
    /// Its images have another size.
    #[error("`{}` holds images of {height}x{width} pixels, not {SIDE}x{SIDE}", shown(path))]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Declared height.
        height: u32,
        /// Declared width.
        width: u32,
    },
    /// A label is not a class.
    #[error(
        "`{}`: label {index} is {label}, but those of {set} are {} to {}; is this the right file?",
        shown(path), first_label(*set), usize::from(first_label(*set)) + classes(*set) - 1
    )]
    Label {
        /// The file.
        path: PathBuf,
        /// Which label, from 0.
        index: usize,
        /// Its value.
        label: u8,
        /// The set it should be of.
        set: DataSet,
    },
    /// Images and labels do not belong together.
    #[error(
        "`{}` holds {image_count} images, but `{}` {label_count} labels; get both from the same place",
        shown(images),
        shown(labels)
    )]
    Counts {
        /// The file of images.
        images: PathBuf,
        /// How many it holds.
        image_count: usize,
        /// The file of labels.
        labels: PathBuf,
        /// How many it holds.
        label_count: usize,
    },
}

/// What each label of a set of this format stands for, as in torchvision: `[classes]`.
///
/// EMNIST's `bymerge` and `balanced` have one class for a capital and a small letter that look alike.
pub fn class_names(set: DataSet) -> Vec<String> {
    const FASHION: [&str; 10] = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ];
    let letters = match set {
        DataSet::FashionMnist => return FASHION.map(String::from).to_vec(),
        DataSet::EmnistByclass => "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        DataSet::EmnistBymerge | DataSet::EmnistBalanced => "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt",
        DataSet::EmnistLetters => "abcdefghijklmnopqrstuvwxyz",
        _ => "0123456789",
    };
    letters.chars().map(String::from).collect()
}

fn classes(set: DataSet) -> usize {
    class_names(set).len()
}

/// The label of the first class in files of `set`: 1 in EMNIST's letters, otherwise 0.
fn first_label(set: DataSet) -> u8 {
    u8::from(set == DataSet::EmnistLetters)
}

/// The four files of `set`, as [`NAMES`] are those of MNIST.
pub fn names(set: DataSet) -> [String; 4] {
    let Some(split) = set.emnist_split() else { return NAMES.map(String::from) };
    ["train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1"]
        .map(|part| format!("emnist-{split}-{part}-ubyte"))
}

/// The folder that has files of `set`: `dir`, its sub-folder named after the set, or those that torchvision and
/// the publishers' archives make: `dir/MNIST/raw`, `dir/raw`, and for EMNIST `gzip` in any of them. `dir` if none
/// has.
pub fn find_folder(set: DataSet, dir: &Path) -> PathBuf {
    let torchvision = match set {
        DataSet::FashionMnist => "FashionMNIST",
        DataSet::Mnist => "MNIST",
        _ => "EMNIST",
    };
    let raw = Path::new(torchvision).join("raw");
    let mut folders = vec![dir.to_path_buf(), dir.join(set.name()), dir.join("raw"), dir.join(raw)];
    if set.emnist_split().is_some() {
        folders.insert(2, dir.join("emnist"));
        folders.extend(folders.clone().iter().map(|folder| folder.join("gzip")));
    }
    let names = names(set);
    let has_files = |folder: &PathBuf| names.iter().any(|name| locate(folder, name).is_ok());
    folders.into_iter().find(has_files).unwrap_or_else(|| dir.to_path_buf())
}

/// The path of file `name` in `dir`, compressed or not.
///
/// # Errors
/// [`IdxError::Missing`].
pub fn locate(dir: &Path, name: &str) -> Result<PathBuf, IdxError> {
    let plain = dir.join(name);
    [dir.join(format!("{name}.gz")), plain.clone()]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or(IdxError::Missing(plain))
}

/// Reads a file of images, `[count, 28, 28]`, and the file of their labels, `[count]`, which are made to begin
/// at 0.
///
/// # Errors
/// Any but [`IdxError::Missing`].
pub fn read_split(set: DataSet, images: &Path, labels: &Path) -> Result<Split, IdxError> {
    let split = Split { images: images_of(Idx::open(images)?)?, labels: labels_of(set, Idx::open(labels)?)? };
    let image_count = split.images.len() / (SIDE * SIDE);
    if image_count != split.labels.len() {
        return Err(IdxError::Counts {
            images: images.into(),
            image_count,
            labels: labels.into(),
            label_count: split.labels.len(),
        });
    }
    Ok(split)
}

fn images_of(idx: Idx<3>) -> Result<Vec<u8>, IdxError> {
    let [_, height, width] = idx.dims;
    if [height, width] != [SIDE as u32; 2] {
        return Err(IdxError::ImageSize { path: idx.path.into(), height, width });
    }
    idx.body()
}

fn labels_of(set: DataSet, idx: Idx<1>) -> Result<Vec<u8>, IdxError> {
    let path = idx.path;
    let mut labels = idx.body()?;
    let (first, classes) = (first_label(set), classes(set));
    for (index, label) in labels.iter_mut().enumerate() {
        let class = label.checked_sub(first).filter(|&class| usize::from(class) < classes);
        *label = class.ok_or_else(|| IdxError::Label { path: path.into(), index, label: *label, set })?;
    }
    Ok(labels)
}

/// Reads `bytes` as a file of images and as one of labels of `set`, for the fuzz target.
#[doc(hidden)]
pub fn fuzz(set: DataSet, bytes: &[u8]) {
    for path in ["plain", "packed.gz"].map(Path::new) {
        if let Ok(images) = Idx::read(path, bytes).and_then(images_of) {
            assert!(!images.is_empty() && images.len() % (SIDE * SIDE) == 0);
        }
        if let Ok(labels) = Idx::read(path, bytes).and_then(|idx| labels_of(set, idx)) {
            assert!(labels.iter().all(|&label| usize::from(label) < classes(set)));
        }
    }
}

/// A file whose header, with `D` dimensions, has been read.
struct Idx<'a, const D: usize> {
    path: &'a Path,
    reader: Box<dyn Read + 'a>,
    dims: [u32; D],
}

impl<'a, const D: usize> Idx<'a, D> {
    fn open(path: &'a Path) -> Result<Self, IdxError> {
        let file = BufReader::new(File::open(path).map_err(read_error(path))?);
        Self::read(path, file)
    }

    /// Reads the header. `path` is what the file is called; that tells whether it is compressed.
    fn read(path: &'a Path, file: impl BufRead + 'a) -> Result<Self, IdxError> {
        let is_gzip = path.extension().is_some_and(|extension| extension == "gz");
        let mut reader: Box<dyn Read + 'a> = match is_gzip {
            true => Box::new(MultiGzDecoder::new(file)),
            false => Box::new(file),
        };
        // Two zeros, 8 for unsigned bytes, the number of dimensions.
        let magic = [0, 0, 8, D as u8];
        let mut header = Vec::new();
        reader.by_ref().take(Self::HEADER).read_to_end(&mut header).map_err(read_error(path))?;
        if let Some(&found) = header.first_chunk::<4>()
            && found != magic
        {
            return Err(IdxError::Magic { path: path.into(), found, expected: magic });
        }
        if (header.len() as u64) < Self::HEADER {
            return Err(IdxError::Truncated {
                path: path.into(),
                found: header.len() as u64,
                expected: Self::HEADER,
            });
        }
        let dims = std::array::from_fn(|d| {
            let at = 4 + 4 * d;
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        });
        Ok(Self { path, reader, dims })
    }

    /// Bytes before the body.
    const HEADER: u64 = 4 + 4 * D as u64;

    /// Reads exactly the bytes that the header declares, to the end of the file.
    fn body(mut self) -> Result<Vec<u8>, IdxError> {
        let path = self.path;
        let product = self.dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim.into()));
        let size = match product {
            Some(0) => return Err(IdxError::Empty(path.into())),
            Some(size) if size <= MAX_BYTES => size,
            _ => {
                return Err(IdxError::TooLarge { path: path.into(), dims: self.dims.to_vec() });
            }
        };
        let memory_error = |source| IdxError::Memory { path: path.into(), source };
        // One byte more tells a longer file, and takes gzip to its checksum.
        let mut body = memory::with_capacity(size as usize + 1).map_err(memory_error)?;
        self.reader.by_ref().take(size + 1).read_to_end(&mut body).map_err(read_error(path))?;
        let found = Self::HEADER + body.len() as u64;
        let expected = Self::HEADER + size;
        if found < expected {
            return Err(IdxError::Truncated { path: path.into(), found, expected });
        }
        if found > expected {
            return Err(IdxError::TrailingBytes { path: path.into(), expected });
        }
        Ok(body)
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> IdxError {
    move |source| IdxError::Read { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    const IMAGES: [u8; 4] = [0, 0, 8, 3];
    const LABELS: [u8; 4] = [0, 0, 8, 1];

    fn idx(magic: [u8; 4], dims: &[u32], body: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_vec();
        bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(body);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn with_file<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    fn read_images(path: &Path) -> Result<Vec<u8>, IdxError> {
        images_of(Idx::open(path)?)
    }

    fn read_labels(set: DataSet, path: &Path) -> Result<Vec<u8>, IdxError> {
        labels_of(set, Idx::open(path)?)
    }

    fn mnist_labels(path: &Path) -> Result<Vec<u8>, IdxError> {
        read_labels(DataSet::Mnist, path)
    }

    /// Reads labels from these bytes, plain and compressed, which must fail alike.
    fn labels_error(bytes: &[u8]) -> IdxError {
        let plain = with_file("labels", bytes, mnist_labels).unwrap_err();
        let packed = with_file("labels.gz", &gzip(bytes), mnist_labels).unwrap_err();
        assert_eq!(std::mem::discriminant(&plain), std::mem::discriminant(&packed));
        assert!(packed.to_string().contains("labels.gz"), "{packed}");
        plain
    }

    fn images_error(bytes: &[u8]) -> IdxError {
        with_file("images", bytes, read_images).unwrap_err()
    }

    #[test]
    fn reads_plain_and_compressed() {
        let body = [1_u8; 2 * SIDE * SIDE];
        let images = idx(IMAGES, &[2, 28, 28], &body);
        assert_eq!(with_file("i", &images, read_images).unwrap(), body);
        let labels = idx(LABELS, &[2], &[0, 9]);
        let packed = gzip(&labels);
        assert_eq!(with_file("l.gz", &packed, mnist_labels).unwrap(), [0, 9]);
    }

    #[test]
    fn locates_either_name() {
        let dir = TempDir::new().unwrap();
        let error = locate(dir.path(), "a").unwrap_err();
        assert!(matches!(error, IdxError::Missing(_)), "{error}");
        fs::create_dir(dir.path().join("a.gz")).unwrap(); // a folder does not count
        fs::write(dir.path().join("a"), "").unwrap();
        assert_eq!(locate(dir.path(), "a").unwrap(), dir.path().join("a"));
    }

    #[test]
    fn wrong_magic() {
        let error = labels_error(&idx(IMAGES, &[1, 28, 28], &[0; 784]));
        assert!(matches!(error, IdxError::Magic { .. }), "{error}");
        let error = labels_error(b"<html>404</html>");
        assert!(matches!(error, IdxError::Magic { .. }), "{error}");
    }

    #[test]
    fn too_large() {
        let most = u32::MAX;
        let error = labels_error(&idx(LABELS, &[most], &[]));
        assert!(matches!(error, IdxError::TooLarge { .. }), "{error}");
        let error = images_error(&idx(IMAGES, &[most, 28, 28], &[]));
        assert!(matches!(error, IdxError::TooLarge { .. }), "{error}");
        // The product wraps around 64 bits to 0.
        let dims = [1 << 31, 1 << 31, 4];
        let error = with_file("i", &idx(IMAGES, &dims, &[]), |path| {
            Idx::<3>::open(path).and_then(Idx::body).unwrap_err()
        });
        assert!(matches!(error, IdxError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn truncated() {
        for bytes in [&[][..], &[0, 0], &[0, 0, 8, 1, 0]] {
            let error = labels_error(bytes);
            assert!(matches!(error, IdxError::Truncated { .. }), "{error}");
        }
        // The count lies, just within the limit: only what is there is read.
        let error = labels_error(&idx(LABELS, &[1 << 30], &[1, 2, 3]));
        assert!(matches!(error, IdxError::Truncated { found: 11, .. }), "{error}");
    }

    #[test]
    fn trailing_bytes() {
        let error = labels_error(&idx(LABELS, &[2], &[1, 2, 3]));
        assert!(matches!(error, IdxError::TrailingBytes { .. }), "{error}");
        // A gzip bomb: 64 MiB of zeros behind a header that declares two bytes.
        let mut bytes = idx(LABELS, &[2], &[1, 2]);
        bytes.resize(64 << 20, 0);
        let error = with_file("l.gz", &gzip(&bytes), mnist_labels).unwrap_err();
        assert!(matches!(error, IdxError::TrailingBytes { .. }), "{error}");
    }

    #[test]
    fn nothing_in_it() {
        let error = labels_error(&idx(LABELS, &[0], &[]));
        assert!(matches!(error, IdxError::Empty(_)), "{error}");
        let error = images_error(&idx(IMAGES, &[0, 28, 28], &[]));
        assert!(matches!(error, IdxError::Empty(_)), "{error}");
    }

    #[test]
    fn image_size() {
        let error = images_error(&idx(IMAGES, &[1, 28, 27], &[0; 28 * 27]));
        assert!(matches!(error, IdxError::ImageSize { width: 27, .. }), "{error}");
    }

    #[test]
    fn label_out_of_range() {
        let error = labels_error(&idx(LABELS, &[3], &[0, 9, 10]));
        assert!(matches!(error, IdxError::Label { index: 2, label: 10, .. }), "{error}");
    }

    #[test]
    fn labels_of_emnist() {
        let read = |set, labels: &[u8]| {
            let bytes = idx(LABELS, &[labels.len() as u32], labels);
            with_file("l", &bytes, |path| read_labels(set, path))
        };
        for (set, classes) in DataSet::EMNIST.into_iter().zip([62, 47, 47, 26, 10, 10]) {
            let first = u8::from(classes == 26);
            assert_eq!(class_names(set).len(), usize::from(classes), "{set}");
            assert_eq!(read(set, &[first, first + classes - 1]).unwrap(), [0, classes - 1], "{set}");
            let error = read(set, &[first, first + classes]).unwrap_err();
            assert!(matches!(error, IdxError::Label { index: 1, .. }), "{error}");
        }
        let error = read(DataSet::EmnistLetters, &[0]).unwrap_err().to_string();
        assert!(error.contains("label 0 is 0, but those of emnist-letters are 1 to 26"), "{error}");
        assert_eq!(class_names(DataSet::EmnistLetters)[25], "z");
        assert_eq!(class_names(DataSet::EmnistByclass)[35..37], ["Z", "a"]);
        assert_eq!(class_names(DataSet::EmnistBalanced)[36..40], ["a", "b", "d", "e"]);
    }

    #[test]
    fn finds_the_folders_of_torchvision() {
        let emnist = "emnist-letters-test-images-idx3-ubyte.gz";
        for (set, file, folders) in [
            (DataSet::Mnist, NAMES[2], &["", "mnist", "raw", "MNIST/raw"][..]),
            (DataSet::FashionMnist, NAMES[1], &["", "fashion-mnist", "raw", "FashionMNIST/raw"]),
            (DataSet::EmnistLetters, emnist, &["", "emnist-letters", "emnist", "raw", "EMNIST/raw"]),
            (DataSet::EmnistLetters, emnist, &["gzip", "emnist/gzip", "raw/gzip", "EMNIST/raw/gzip"]),
        ] {
            for folder in folders {
                let dir = TempDir::new().unwrap();
                let folder = dir.path().join(folder);
                fs::create_dir_all(&folder).unwrap();
                assert_eq!(find_folder(set, dir.path()), dir.path());
                fs::write(folder.join(file), "").unwrap();
                assert_eq!(find_folder(set, dir.path()), folder);
                assert_eq!(find_folder(DataSet::EmnistDigits, dir.path()), dir.path());
            }
        }
    }

    #[test]
    fn counts_differ() {
        let images = idx(IMAGES, &[1, 28, 28], &[0; 784]);
        let labels = idx(LABELS, &[2], &[0, 1]);
        let error = with_file("i", &images, |images| {
            with_file("l", &labels, |labels| read_split(DataSet::Mnist, images, labels).unwrap_err())
        });
        assert!(matches!(error, IdxError::Counts { .. }), "{error}");
    }

    #[test]
    fn corrupt_gzip() {
        let good = gzip(&idx(LABELS, &[3], &[1, 2, 3]));
        let last = good.len() - 1;
        let mut wrong_checksum = good.clone();
        wrong_checksum[last - 4] ^= 1;
        let mut rubbish_behind = good.clone();
        rubbish_behind.extend(b"rubbish");
        let cases = [&good[..last], &wrong_checksum, &rubbish_behind, b"not gzip at all"];
        for bytes in cases {
            let error = with_file("l.gz", bytes, mnist_labels).unwrap_err();
            assert!(matches!(error, IdxError::Read { .. }), "{error}");
        }
    }

    #[test]
    fn unreadable() {
        let error = mnist_labels(Path::new("/no/such/file")).unwrap_err();
        assert!(matches!(error, IdxError::Read { .. }), "{error}");
    }
}
