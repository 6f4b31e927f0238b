//! CIFAR-10 and CIFAR-100, in their binary form, which is records of label bytes and 3x32x32 pixels, and in that
//! for Python, which torchvision downloads: pickles of numpy arrays (see [`pickle`](super::pickle)).
//!
//! The files of either may lie loose, in the folder that the published archive unpacks to, or in the archive
//! itself. All numbers of images are known, so a file that is cut short or damaged in length is never taken.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::pickle::{Pickle, PickleError};
use super::printable::shown;
use super::{DataSet, Split};
use srigl_tensors::memory::{self, TooLarge};
use srigl_tensors::printable;

/// Height and width of every image, in pixels.
pub const SIDE: usize = 32;

/// Bytes of an image: red, green and blue planes of 32 rows of 32.
const PIXELS: usize = 3 * SIDE * SIDE;

/// The longest list of class names that is read, in bytes.
const MAX_NAMES: u64 = 1 << 16;

/// What can be wrong with the files of CIFAR.
#[derive(Debug, thiserror::Error)]
pub enum CifarError {
    /// Neither the archives nor the files are there.
    #[error("`{}` has neither `{}` nor `{}` nor `{file}`", shown(dir), archives[0], archives[1])]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The archives it could have: binary, for Python.
        archives: [&'static str; 2],
        /// The first file it lacks.
        file: &'static str,
    },
    /// One of the files is not there.
    #[error("`{}` lacks `{file}`; get it again", shown(place))]
    Incomplete {
        /// The folder or archive.
        place: PathBuf,
        /// The file it lacks.
        file: &'static str,
    },
    /// There is a folder, pipe or device in place of a file.
    #[error("`{}` is no regular file but a folder, pipe or device; remove it", shown(.0))]
    NoFile(PathBuf),
    /// A file cannot be opened, read or decompressed.
    #[error("cannot read `{}` ({source}); check that it is readable, or get it again", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// A file has another length than the published one.
    #[error(
        "`{}` is {found} bytes long, not {expected}; it is damaged or another file, get it again",
        shown(path)
    )]
    Size {
        /// The file, within the archive if it is in one.
        path: PathBuf,
        /// Its length; one more than it should be if it is any longer.
        found: u64,
        /// The length of the published file.
        expected: u64,
    },
    /// A pickle or an archive is far longer than the published one.
    #[error("`{}` holds more than {limit} bytes; it is damaged or another file, get it again", shown(path))]
    TooLong {
        /// The file, within the archive if it is in one.
        path: PathBuf,
        /// The most bytes that are read, decompressed.
        limit: u64,
    },
    /// The set takes more memory than there is.
    #[error("the files of `{}` do not fit: {source}", shown(place))]
    Memory {
        /// The folder or archive.
        place: PathBuf,
        /// What they would take.
        source: TooLarge,
    },
    /// A pickle cannot be read.
    #[error("`{}` is broken ({source}); get it again", shown(path))]
    Pickle {
        /// The file, within the archive if it is in one.
        path: PathBuf,
        /// What is wrong with it.
        source: PickleError,
    },
    /// A pickle has other numbers of images, pixels or labels than the published one.
    #[error(
        "`{}` holds {} images of {} bytes and {labels} labels, not {expected} of {PIXELS}; \
         it is another file, get it again",
        shown(path), shape[0], shape[1]
    )]
    Shape {
        /// The file, within the archive if it is in one.
        path: PathBuf,
        /// Images, and bytes in each.
        shape: [usize; 2],
        /// How many labels there are.
        labels: usize,
        /// How many images there should be, and labels.
        expected: usize,
    },
    /// A label is not a class.
    #[error(
        "`{}`: label {index} is {label}, but there are only {classes} classes; get it again",
        shown(path)
    )]
    Label {
        /// The file.
        path: PathBuf,
        /// Which label, from 0.
        index: usize,
        /// Its value.
        label: i64,
        /// How many classes there are.
        classes: usize,
    },
    /// The list of class names has another length.
    #[error(
        "`{}` names {found} classes, not {classes}; remove it to number them, or get it again",
        shown(path)
    )]
    Names {
        /// The file.
        path: PathBuf,
        /// How many names it has.
        found: usize,
        /// How many classes there are.
        classes: usize,
    },
}

/// The files of a set.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Binary, and for Python.
    forms: [Form; 2],
    classes: usize,
    /// Images in each file to train on, and in the one to test on.
    images: [usize; 2],
}

/// One of the forms that a set is published in.
#[derive(Clone, Copy)]
struct Form {
    kind: Kind,
    /// As it is published.
    archive: &'static str,
    /// The folder that the archive holds.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// The class names.
    names: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    /// So many bytes before the pixels of an image; the last of them is its class. One class name a line.
    Binary { label_bytes: usize },
    /// Pickles of a dictionary with the pixels under `data`, and the labels and the class names under these names.
    Pickle { labels: &'static str, names: &'static str },
}

const CIFAR10: Layout = Layout {
    forms: [
        Form {
            kind: Kind::Binary { label_bytes: 1 },
            archive: "cifar-10-binary.tar.gz",
            folder: "cifar-10-batches-bin",
            train: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
            test: "test_batch.bin",
            names: "batches.meta.txt",
        },
        Form {
            kind: Kind::Pickle { labels: "labels", names: "label_names" },
            archive: "cifar-10-python.tar.gz",
            folder: "cifar-10-batches-py",
            train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
            test: "test_batch",
            names: "batches.meta",
        },
    ],
    classes: 10,
    images: [10_000, 10_000],
};

const CIFAR100: Layout = Layout {
    forms: [
        Form {
            kind: Kind::Binary { label_bytes: 2 },
            archive: "cifar-100-binary.tar.gz",
            folder: "cifar-100-binary",
            train: &["train.bin"],
            test: "test.bin",
            names: "fine_label_names.txt",
        },
        Form {
            kind: Kind::Pickle { labels: "fine_labels", names: "fine_label_names" },
            archive: "cifar-100-python.tar.gz",
            folder: "cifar-100-python",
            train: &["train"],
            test: "test",
            names: "meta",
        },
    ],
    classes: 100,
    images: [50_000, 10_000],
};

/// File contents by name, each with the path to show in errors.
type Files = HashMap<&'static str, (PathBuf, Vec<u8>)>;

impl Layout {
    /// The files of `set`; none if it is not of this family.
    pub fn of(set: DataSet) -> Option<Self> {
        match set {
            DataSet::Cifar10 => Some(CIFAR10),
            DataSet::Cifar100 => Some(CIFAR100),
            _ => None,
        }
    }

    /// Whether anything of the set lies in `dir`.
    pub fn is_in(&self, dir: &Path) -> bool {
        self.forms.iter().any(|form| form.folder_in(dir).is_some() || dir.join(form.archive).exists())
    }

    /// Reads the training and the test split and the class names `[classes]` from files in `dir`, in its
    /// sub-folder of the published name, or in the published archive there, whichever is found first; of two
    /// forms the binary one. Classes are numbered if the list of names is not there.
    ///
    /// # Errors
    /// Any [`CifarError`].
    pub fn read(&self, dir: &Path) -> Result<(Split, Split, Vec<String>), CifarError> {
        let archive = |form: &Form| Some(dir.join(form.archive)).filter(|path| path.exists());
        let folder = self.forms.iter().find_map(|form| Some((form, form.folder_in(dir)?)));
        let (form, place, files) = if let Some((form, folder)) = folder {
            let files = self.loose_files(form, &folder)?;
            (form, folder, files)
        } else if let Some((form, path)) = self.forms.iter().find_map(|form| Some((form, archive(form)?))) {
            let files = self.archived_files(form, &path)?;
            (form, path, files)
        } else {
            let archives = self.forms.map(|form| form.archive);
            return Err(CifarError::Missing { dir: dir.into(), archives, file: self.forms[0].train[0] });
        };
        self.splits(form, place, &files)
    }

    fn splits(
        &self,
        form: &Form,
        place: PathBuf,
        files: &Files,
    ) -> Result<(Split, Split, Vec<String>), CifarError> {
        for file in form.train.iter().chain([&form.test]) {
            if !files.contains_key(file) {
                return Err(CifarError::Incomplete { place, file });
            }
        }
        let train = self.split(form, &place, files, form.train, self.images[0])?;
        let test = self.split(form, &place, files, &[form.test], self.images[1])?;
        Ok((train, test, self.class_names(form, files)?))
    }

    /// The names to read, each with the most bytes that it may have.
    fn limits(&self, form: &Form) -> Vec<(&'static str, u64)> {
        let mut limits: Vec<_> =
            form.train.iter().map(|name| (*name, form.kind.limit(self.images[0]))).collect();
        limits.extend([(form.test, form.kind.limit(self.images[1])), (form.names, MAX_NAMES)]);
        limits
    }

    /// Whether there is memory for the files, and for what becomes of them. Both are there for a while.
    fn check_memory(&self, form: &Form, place: &Path) -> Result<(), CifarError> {
        let files: u64 = self.limits(form).iter().map(|(_, limit)| limit).sum();
        let images = form.train.len() * self.images[0] + self.images[1];
        let bytes = memory::product(&[images, PIXELS + 1]).and_then(|split| split.checked_add(files));
        memory::check(bytes).map_err(|source| CifarError::Memory { place: place.into(), source })
    }

    fn loose_files(&self, form: &Form, folder: &Path) -> Result<Files, CifarError> {
        self.check_memory(form, folder)?;
        let mut files = Files::new();
        for (name, limit) in self.limits(form) {
            let path = folder.join(name);
            // Of a pipe there might never be an end.
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(read_error(&path)(error)),
                Ok(metadata) if !metadata.is_file() => return Err(CifarError::NoFile(path)),
                Ok(_) => {}
            }
            let bytes = File::open(&path).and_then(|file| read_up_to(file, limit + 1));
            let bytes = bytes.map_err(read_error(&path))?;
            files.insert(name, (path, bytes));
        }
        Ok(files)
    }

    /// The files of the published folder; whatever else the archive holds is passed over, and nothing is
    /// unpacked to disk.
    fn archived_files(&self, form: &Form, path: &Path) -> Result<Files, CifarError> {
        if !fs::metadata(path).map_err(read_error(path))?.is_file() {
            return Err(CifarError::NoFile(path.into()));
        }
        self.check_memory(form, path)?;
        let file = File::open(path).map_err(read_error(path))?;
        self.unpacked(form, path, MultiGzDecoder::new(BufReader::new(file)))
    }

    /// As [`Layout::archived_files`], from the decompressed archive.
    fn unpacked(&self, form: &Form, path: &Path, tar: impl Read) -> Result<Files, CifarError> {
        let limits = self.limits(form);
        // Twice what it should hold, and something for a read-me.
        let total = 2 * limits.iter().map(|(_, limit)| limit).sum::<u64>() + (1 << 20);
        let too_long = || CifarError::TooLong { path: path.into(), limit: total };
        let read_error = || read_error(path);
        let mut archive = tar::Archive::new(tar.take(total));
        let mut files = Files::new();
        // Raw, as otherwise the name of an entry may be of any length, and is read into memory.
        for entry in archive.entries().map_err(read_error())?.raw(true) {
            let entry = entry.map_err(read_error())?;
            if entry.size() > total {
                return Err(too_long());
            }
            let inner = entry.path().map_err(read_error())?.into_owned();
            let wanted = limits.iter().find(|(name, _)| inner == Path::new(form.folder).join(name));
            if let Some(&(name, limit)) = wanted {
                let bytes = read_up_to(entry, limit + 1).map_err(read_error())?;
                files.insert(name, (path.join(inner), bytes));
            }
        }
        // To the end of the compressed stream, which is where its checksum is.
        let mut stream = archive.into_inner();
        io::copy(&mut stream, &mut io::sink()).map_err(read_error())?;
        if stream.limit() == 0 { Err(too_long()) } else { Ok(files) }
    }

    fn split(
        &self,
        form: &Form,
        place: &Path,
        files: &Files,
        names: &[&str],
        images: usize,
    ) -> Result<Split, CifarError> {
        let memory_error = |source| CifarError::Memory { place: place.into(), source };
        let pixels = memory::with_capacity(names.len() * images * PIXELS).map_err(memory_error)?;
        let mut split = Split { images: pixels, labels: Vec::new() };
        for name in names {
            let (path, bytes) = &files[name];
            match form.kind {
                Kind::Binary { label_bytes } => {
                    self.add_records(&mut split, path, bytes, images, label_bytes)?
                }
                Kind::Pickle { labels, .. } => self.add_pickle(&mut split, path, bytes, images, labels)?,
            }
        }
        Ok(split)
    }

    fn add_records(
        &self,
        split: &mut Split,
        path: &Path,
        bytes: &[u8],
        images: usize,
        label_bytes: usize,
    ) -> Result<(), CifarError> {
        let record = label_bytes + PIXELS;
        let (found, expected) = (bytes.len() as u64, (images * record) as u64);
        if found != expected {
            return Err(CifarError::Size { path: path.into(), found, expected });
        }
        for (index, record) in bytes.chunks_exact(record).enumerate() {
            split.labels.push(self.class(path, index, record[label_bytes - 1].into())?);
            split.images.extend_from_slice(&record[label_bytes..]);
        }
        Ok(())
    }

    fn add_pickle(
        &self,
        split: &mut Split,
        path: &Path,
        bytes: &[u8],
        images: usize,
        labels: &'static str,
    ) -> Result<(), CifarError> {
        let pickle = open_pickle(path, bytes, Kind::pickle_limit(images))?;
        let labels = pickle.ints(labels).map_err(pickle_error(path))?;
        let array = pickle.array("data").map_err(pickle_error(path))?;
        if [array.rows, array.columns, labels.len()] != [images, PIXELS, images] {
            let (shape, labels) = ([array.rows, array.columns], labels.len());
            return Err(CifarError::Shape { path: path.into(), shape, labels, expected: images });
        }
        for (index, label) in labels.into_iter().enumerate() {
            split.labels.push(self.class(path, index, label)?);
        }
        match array.is_fortran {
            false => split.images.extend_from_slice(array.bytes),
            true => {
                let row = |row| array.bytes.iter().skip(row).step_by(images);
                split.images.extend((0..images).flat_map(row));
            }
        }
        Ok(())
    }

    /// A label that is one of the classes.
    fn class(&self, path: &Path, index: usize, label: i64) -> Result<u8, CifarError> {
        match u8::try_from(label) {
            Ok(class) if usize::from(class) < self.classes => Ok(class),
            _ => Err(CifarError::Label { path: path.into(), index, label, classes: self.classes }),
        }
    }

    fn class_names(&self, form: &Form, files: &Files) -> Result<Vec<String>, CifarError> {
        let Some((path, bytes)) = files.get(form.names) else {
            return Ok((0..self.classes).map(|class| class.to_string()).collect());
        };
        let names = match form.kind {
            Kind::Binary { .. } => {
                let text = String::from_utf8_lossy(bytes);
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                lines.map(String::from).collect()
            }
            Kind::Pickle { names, .. } => {
                let pickle = open_pickle(path, bytes, MAX_NAMES)?;
                pickle.texts(names).map_err(pickle_error(path))?
            }
        };
        if names.len() != self.classes {
            return Err(CifarError::Names { path: path.clone(), found: names.len(), classes: self.classes });
        }
        Ok(names)
    }
}

impl Form {
    /// The folder of the files, if they lie in `dir` or in its sub-folder of the published name. What has the name
    /// of a file but is a folder does not count: `test` may be anything.
    fn folder_in(&self, dir: &Path) -> Option<PathBuf> {
        let is_there = |folder: &PathBuf| {
            let test = folder.join(self.test);
            test.exists() && !test.is_dir()
        };
        [dir.to_path_buf(), dir.join(self.folder)].into_iter().find(is_there)
    }
}

impl Kind {
    /// The most bytes that a file of so many images may have.
    fn limit(self, images: usize) -> u64 {
        match self {
            Self::Binary { label_bytes } => (images * (label_bytes + PIXELS)) as u64,
            Self::Pickle { .. } => Self::pickle_limit(images),
        }
    }

    /// Python 3 writes bytes for Python 2 as text, which may be twice as long; beside them are labels, and the
    /// names of the files that the images once were.
    fn pickle_limit(images: usize) -> u64 {
        (images * (2 * PIXELS + 256)) as u64 + (1 << 16)
    }
}

/// Reads `bytes` as all files of a set cut to two images, as its names, and as an archive, for the fuzz target. `choice` is
/// the set and its form.
#[doc(hidden)]
pub fn fuzz(choice: u8, bytes: &[u8]) {
    let layout = [CIFAR10, CIFAR100][usize::from(choice) % 2];
    let layout = Layout { images: [2, 2], ..layout };
    let form = &layout.forms[usize::from(choice) / 2 % 2];
    let read = |files: &Files| {
        if let Ok((train, test, names)) = layout.splits(form, PathBuf::new(), files) {
            assert_eq!(names.len(), layout.classes);
            for split in [train, test] {
                assert_eq!(split.images.len(), split.len() * PIXELS);
                assert!(split.labels.iter().all(|&label| usize::from(label) < layout.classes));
            }
        }
    };
    let files = form.train.iter().chain([&form.test]);
    let mut files: Files = files.map(|name| (*name, (PathBuf::new(), bytes.to_vec()))).collect();
    read(&files);
    files.insert(form.names, (PathBuf::new(), bytes.to_vec()));
    _ = layout.class_names(form, &files);
    if let Ok(files) = layout.unpacked(form, Path::new("archive"), bytes) {
        read(&files);
    }
}

/// Opens a pickle of which no more than one byte above the limit was read.
fn open_pickle<'a>(path: &Path, bytes: &'a [u8], limit: u64) -> Result<Pickle<'a>, CifarError> {
    if bytes.len() as u64 > limit {
        return Err(CifarError::TooLong { path: path.into(), limit });
    }
    Pickle::read(bytes).map_err(pickle_error(path))
}

fn pickle_error(path: &Path) -> impl FnOnce(PickleError) -> CifarError {
    move |source| CifarError::Pickle { path: path.into(), source }
}

/// Reads `limit` bytes, or fewer at the end.
fn read_up_to(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> CifarError {
    // An archive's errors have names that are in it.
    move |source| CifarError::Read {
        path: path.into(),
        source: io::Error::new(source.kind(), printable(&source)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    /// A layout and one of its forms.
    type Small = (Layout, Form);

    /// CIFAR-10 and CIFAR-100 in both forms, with files of two and one images.
    fn small() -> [Small; 4] {
        let [ten, hundred] = [CIFAR10, CIFAR100].map(|layout| Layout { images: [2, 1], ..layout });
        [(ten, ten.forms[0]), (hundred, hundred.forms[0]), (ten, ten.forms[1]), (hundred, hundred.forms[1])]
    }

    fn binary() -> [Small; 2] {
        let [ten, hundred, ..] = small();
        [ten, hundred]
    }

    /// A text in a pickle.
    fn text(text: &str) -> Vec<u8> {
        [&[b'U', text.len() as u8], text.as_bytes()].concat()
    }

    /// A pickle of images and labels, such as Python 2 writes.
    fn pickle(labels_name: &str, labels: &[u8], pixels: &[u8]) -> Vec<u8> {
        let labels: Vec<u8> = labels.iter().flat_map(|&label| [b'K', label]).collect();
        let array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01(K";
        let dtype = b"M\0\x0ctcnumpy\ndtype\n(U\x02u1K\0K\x01tR\x89T";
        let (rows, length) = ((pixels.len() / PIXELS) as u8, (pixels.len() as u32).to_le_bytes());
        let data = [&array[..], &[rows], dtype, &length, pixels, b"tb"].concat();
        let entries = [text(labels_name), [b"](", &labels[..], b"e"].concat(), text("data"), data].concat();
        [b"\x80\x02}(", &entries[..], b"u."].concat()
    }

    /// Every file of a set: image `i` of a file is all `i + 1`, its class 9 - `i`, its superclass 77.
    fn contents((layout, form): &Small) -> Vec<(&'static str, Vec<u8>)> {
        let names = (0..layout.classes).map(|class| format!("class {class}"));
        let (file, names): (Box<dyn Fn(usize) -> Vec<u8>>, _) = match form.kind {
            Kind::Binary { label_bytes } => {
                let image = move |i: u8| [&[77, 9 - i][2 - label_bytes..], &[i + 1; PIXELS]].concat();
                let names: String = names.map(|name| name + "\n").collect();
                (
                    Box::new(move |count| (0..count as u8).flat_map(image).collect()),
                    (names + "\n").into_bytes(),
                )
            }
            Kind::Pickle { labels, names: key } => {
                let pixels =
                    |count: usize| (0..count as u8).flat_map(|i| [i + 1; PIXELS]).collect::<Vec<_>>();
                let names: Vec<u8> = names.flat_map(|name| text(&name)).collect();
                let names = [b"}", &text(key)[..], b"](", &names, b"es."].concat();
                (Box::new(move |count| pickle(labels, &[9, 8][..count], &pixels(count))), names)
            }
        };
        let mut files: Vec<_> = form.train.iter().map(|name| (*name, file(layout.images[0]))).collect();
        files.extend([(form.test, file(layout.images[1])), (form.names, names)]);
        files
    }

    fn write(dir: &Path, files: &[(&str, Vec<u8>)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, bytes) in files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn archive((_, form): &Small, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("{}/{name}", form.folder), &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn reads_files_folders_and_archives() {
        for small in small() {
            let ((layout, form), files) = (small, contents(&small));
            let dir = TempDir::new().unwrap();
            let places = ["loose", "folder", "archive"].map(|name| dir.path().join(name));
            write(&places[0], &files);
            write(&places[1].join(form.folder), &files);
            write(&places[2], &[(form.archive, archive(&small, &files))]);
            for place in places {
                assert!(layout.is_in(&place));
                let (train, test, names) = layout.read(&place).unwrap();
                assert_eq!(train.labels, [9, 8].repeat(form.train.len()));
                assert_eq!(train.images.len(), train.labels.len() * PIXELS);
                assert_eq!(train.images[PIXELS - 1..=PIXELS], [1, 2]);
                assert_eq!((test.labels, test.images), (vec![9], vec![1; PIXELS]));
                assert_eq!((names.len(), &names[3][..]), (layout.classes, "class 3"));
            }
        }
    }

    /// The error after `damage` to file `name`, both loose and in an archive.
    fn error_after(small: &Small, name: &str, damage: impl Fn(&mut Vec<u8>)) -> CifarError {
        let (layout, form) = small;
        let mut files = contents(small);
        damage(&mut files.iter_mut().find(|file| file.0 == name).unwrap().1);
        let dir = TempDir::new().unwrap();
        write(dir.path(), &[(form.archive, archive(small, &files))]);
        let packed = layout.read(dir.path()).unwrap_err();
        write(dir.path(), &files);
        let loose = layout.read(dir.path()).unwrap_err();
        assert_eq!(std::mem::discriminant(&packed), std::mem::discriminant(&loose));
        assert!(packed.to_string().contains(form.archive), "{packed}");
        for error in [&packed, &loose] {
            assert!(error.to_string().contains(name), "{error}");
        }
        loose
    }

    #[test]
    fn damaged_files() {
        for small in binary() {
            let (_, form) = small;
            let Kind::Binary { label_bytes } = form.kind else { panic!("another form") };
            for name in [form.train[0], form.test] {
                let short = error_after(&small, name, |bytes| bytes.truncate(bytes.len() - 1));
                assert!(matches!(short, CifarError::Size { .. }), "{short}");
                let empty = error_after(&small, name, Vec::clear);
                assert!(matches!(empty, CifarError::Size { found: 0, .. }), "{empty}");
                let long = error_after(&small, name, |bytes| bytes.resize(20_000, 0));
                let CifarError::Size { found, expected, .. } = long else { panic!("{long}") };
                assert_eq!(found, expected + 1, "no more is read than is needed");
                let label = error_after(&small, name, |bytes| bytes[label_bytes - 1] = 100);
                assert!(matches!(label, CifarError::Label { index: 0, label: 100, .. }), "{label}");
            }
            let names = error_after(&small, form.names, |bytes| bytes.truncate(10));
            assert!(matches!(names, CifarError::Names { .. }), "{names}");
        }
    }

    #[test]
    fn damaged_pickles() {
        let [.., ten, hundred] = small();
        for small in [ten, hundred] {
            let (layout, form) = small;
            let Kind::Pickle { labels, .. } = form.kind else { panic!("another form") };
            for name in [form.train[0], form.test] {
                let short = error_after(&small, name, |bytes| bytes.truncate(bytes.len() - 1));
                assert!(matches!(short, CifarError::Pickle { source: PickleError::Ends, .. }), "{short}");
                let long = error_after(&small, name, |bytes| bytes.resize(100_000, 0));
                assert!(matches!(long, CifarError::TooLong { .. }), "{long}");
                let count = if name == form.test { 1 } else { 2 };
                let pixels = vec![0; count * PIXELS];
                let label = error_after(&small, name, |bytes| {
                    *bytes = pickle(labels, &[0, 100][2 - count..], &pixels)
                });
                assert!(matches!(label, CifarError::Label { label: 100, .. }), "{label}");
                let one =
                    error_after(&small, name, |bytes| *bytes = pickle(labels, &[0; 3][..count + 1], &pixels));
                assert!(matches!(one, CifarError::Shape { .. }), "{one}");
                let shape =
                    error_after(&small, name, |bytes| *bytes = pickle(labels, &[0; 3], &[0; 3 * PIXELS]));
                let CifarError::Shape { shape, labels: 3, expected, .. } = shape else { panic!("{shape}") };
                assert_eq!((shape, expected), ([3, PIXELS], count));
                let other =
                    error_after(&small, name, |bytes| *bytes = pickle("others", &[0; 2][..count], &pixels));
                assert!(other.to_string().contains(labels), "{other}");
            }
            let names = error_after(&small, form.names, |bytes| {
                let Kind::Pickle { names, .. } = form.kind else { panic!("another form") };
                *bytes = [b"}", &text(names)[..], b"]s."].concat();
            });
            assert!(
                matches!(names, CifarError::Names { found: 0, classes, .. } if classes == layout.classes)
            );
        }
    }

    /// numpy may store an array column by column.
    #[test]
    fn columns_first() {
        let [.., (layout, form)] = small();
        let mut files = contents(&(layout, form));
        let mut pixels: Vec<u8> = (0..PIXELS).flat_map(|i| [i as u8, 7]).collect();
        let train = pickle("fine_labels", &[1, 2], &pixels);
        let at = train.windows(4).position(|four| four == b"tR\x89T").unwrap();
        files[0].1 = [&train[..at], b"tR\x88T", &train[at + 4..]].concat();
        let dir = TempDir::new().unwrap();
        write(dir.path(), &files);
        let (train, ..) = layout.read(dir.path()).unwrap();
        pixels = (0..PIXELS).map(|i| i as u8).collect();
        pixels.extend([7; PIXELS]);
        assert_eq!(train.images, pixels);
    }

    #[test]
    fn damaged_archives() {
        for small in small() {
            let (layout, form) = small;
            let good = archive(&small, &contents(&small));
            let mut wrong_checksum = good.clone();
            let at = good.len() - 5;
            wrong_checksum[at] ^= 1;
            for bytes in
                [wrong_checksum, good[..good.len() / 2].to_vec(), b"not an archive".to_vec(), Vec::new()]
            {
                let dir = TempDir::new().unwrap();
                write(dir.path(), &[(form.archive, bytes)]);
                let error = layout.read(dir.path()).unwrap_err();
                assert!(matches!(error, CifarError::Read { .. } | CifarError::Incomplete { .. }), "{error}");
                assert!(error.to_string().contains(form.archive), "{error}");
            }
        }
    }

    /// An entry whose name is gigabytes long, and zeros without end behind the entries.
    #[test]
    fn archives_that_are_too_long() {
        let [small, ..] = small();
        let (layout, form) = small;
        let error_of = |bytes: Vec<u8>| {
            let dir = TempDir::new().unwrap();
            write(dir.path(), &[(form.archive, bytes)]);
            layout.read(dir.path()).unwrap_err()
        };
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(6 << 30);
        header.set_cksum();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        io::Write::write_all(&mut gzip, header.as_bytes()).unwrap();
        io::Write::write_all(&mut gzip, &vec![b'a'; 1 << 20]).unwrap();
        let error = error_of(gzip.finish().unwrap());
        assert!(matches!(error, CifarError::TooLong { .. }), "{error}");

        let mut zeros = GzEncoder::new(Vec::new(), Compression::fast());
        io::Write::write_all(&mut zeros, &vec![0; 8 << 20]).unwrap();
        let error = error_of([archive(&small, &contents(&small)), zeros.finish().unwrap()].concat());
        assert!(matches!(error, CifarError::TooLong { .. }), "{error}");
    }

    #[test]
    fn missing_files() {
        for small in small() {
            let (layout, form) = small;
            let dir = TempDir::new().unwrap();
            fs::create_dir(dir.path().join("test")).unwrap(); // a folder does not count
            assert!(!layout.is_in(dir.path()));
            let error = layout.read(dir.path()).unwrap_err();
            let first = layout.forms[0].train[0];
            assert!(matches!(error, CifarError::Missing { file, .. } if file == first), "{error}");
            fs::remove_dir(dir.path().join("test")).unwrap();
            write(dir.path(), &contents(&small));
            let last = form.train[form.train.len() - 1];
            fs::remove_file(dir.path().join(last)).unwrap();
            let error = layout.read(dir.path()).unwrap_err();
            assert!(matches!(error, CifarError::Incomplete { file, .. } if file == last), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened() {
        let [(layout, form), ..] = small();
        for name in [form.test, form.archive] {
            let dir = TempDir::new().unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
            let error = layout.read(dir.path()).unwrap_err();
            assert!(matches!(error, CifarError::Incomplete { .. } | CifarError::NoFile(_)), "{error}");
        }
    }

    #[test]
    fn classes_without_names_are_numbered() {
        for small in small() {
            let (layout, form) = small;
            let dir = TempDir::new().unwrap();
            write(dir.path(), &contents(&small));
            fs::remove_file(dir.path().join(form.names)).unwrap();
            let (_, _, names) = layout.read(dir.path()).unwrap();
            assert_eq!(names.last().unwrap().parse(), Ok(layout.classes - 1));
        }
    }
}
