//! CIFAR-10 and CIFAR-100 in their binary form: records of label bytes and 3x32x32 pixels.
//!
//! The files may lie loose, in the folder that the published archive unpacks to, or in the archive
//! itself. All sizes are known, so a file that is cut short or damaged in length is never taken.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{DataSet, Split};

/// Height and width of every image, in pixels.
pub const SIDE: usize = 32;

/// Bytes of an image: red, green and blue planes of 32 rows of 32.
const PIXELS: usize = 3 * SIDE * SIDE;

/// The longest list of class names that is read, in bytes.
const MAX_NAMES: u64 = 1 << 16;

/// What can be wrong with the files of CIFAR.
#[derive(Debug, thiserror::Error)]
pub enum CifarError {
    /// Neither the archive nor the files are there.
    #[error("`{dir}` has neither `{archive}` nor `{file}`")]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The archive it could have.
        archive: &'static str,
        /// The first file it lacks.
        file: &'static str,
    },
    /// A file cannot be opened, read or decompressed.
    #[error("cannot read `{path}` ({source}); check that it is readable, or get it again")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// A file has another length than the published one.
    #[error("`{path}` is {found} bytes long, not {expected}; it is damaged or another file, get it again")]
    Size {
        /// The file, within the archive if it is in one.
        path: PathBuf,
        /// Its length; one more than it should be if it is any longer.
        found: u64,
        /// The length of the published file.
        expected: u64,
    },
    /// A label is not a class.
    #[error("`{path}`: label {index} is {label}, but there are only {classes} classes; get it again")]
    Label {
        /// The file.
        path: PathBuf,
        /// Which label, from 0.
        index: usize,
        /// Its value.
        label: u8,
        /// How many classes there are.
        classes: usize,
    },
    /// The list of class names has another length.
    #[error("`{path}` names {found} classes, not {classes}; remove it to number them, or get it again")]
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
    /// As it is published.
    archive: &'static str,
    /// The folder that the archive holds.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// One class name a line.
    names: &'static str,
    /// Bytes before the pixels of an image; the last of them is its class.
    label_bytes: usize,
    classes: usize,
    /// Images in each file to train on, and in the one to test on.
    images: [usize; 2],
}

const CIFAR10: Layout = Layout {
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
    label_bytes: 1,
    classes: 10,
    images: [10_000, 10_000],
};

const CIFAR100: Layout = Layout {
    archive: "cifar-100-binary.tar.gz",
    folder: "cifar-100-binary",
    train: &["train.bin"],
    test: "test.bin",
    names: "fine_label_names.txt",
    label_bytes: 2,
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
        [self.folder, self.archive, self.test].iter().any(|name| dir.join(name).exists())
    }

    /// Reads the training and the test split and the class names `[classes]` from files in `dir`, in its
    /// sub-folder of the published name, or in the published archive there, whichever is found first.
    /// Classes are numbered if the list of names is not there.
    ///
    /// # Errors
    /// Any [`CifarError`].
    pub fn read(&self, dir: &Path) -> Result<(Split, Split, Vec<String>), CifarError> {
        let archive = dir.join(self.archive);
        let loose =
            [dir.to_path_buf(), dir.join(self.folder)].into_iter().find(|d| d.join(self.test).exists());
        let files = match loose {
            Some(folder) => self.loose_files(&folder)?,
            None if archive.exists() => self.archived_files(&archive)?,
            None => {
                return Err(CifarError::Missing {
                    dir: dir.into(),
                    archive: self.archive,
                    file: self.train[0],
                });
            }
        };
        for name in self.train.iter().chain([&self.test]) {
            if !files.contains_key(name) {
                return Err(CifarError::Missing { dir: dir.into(), archive: self.archive, file: name });
            }
        }
        let train = self.split(&files, self.train)?;
        let test = self.split(&files, &[self.test])?;
        Ok((train, test, self.class_names(&files)?))
    }

    /// The names to read, each with the most bytes that it may have.
    fn limits(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let size = |images: usize| (images * (self.label_bytes + PIXELS)) as u64;
        let train = self.train.iter().map(move |name| (*name, size(self.images[0])));
        train.chain([(self.test, size(self.images[1])), (self.names, MAX_NAMES)])
    }

    fn loose_files(&self, folder: &Path) -> Result<Files, CifarError> {
        let mut files = Files::new();
        for (name, limit) in self.limits() {
            let path = folder.join(name);
            if path.exists() {
                let bytes = File::open(&path).and_then(|file| read_up_to(file, limit + 1));
                let bytes = bytes.map_err(read_error(&path))?;
                files.insert(name, (path, bytes));
            }
        }
        Ok(files)
    }

    /// The files of the published folder; whatever else the archive holds is passed over, and nothing is
    /// unpacked to disk.
    fn archived_files(&self, path: &Path) -> Result<Files, CifarError> {
        let mut files = Files::new();
        let mut read = || -> io::Result<()> {
            let mut archive = tar::Archive::new(MultiGzDecoder::new(BufReader::new(File::open(path)?)));
            for entry in archive.entries()? {
                let entry = entry?;
                let inner = entry.path()?.into_owned();
                let wanted = self.limits().find(|(name, _)| inner == Path::new(self.folder).join(name));
                if let Some((name, limit)) = wanted {
                    files.insert(name, (path.join(inner), read_up_to(entry, limit + 1)?));
                }
            }
            // To the end of the compressed stream, which is where its checksum is.
            io::copy(&mut archive.into_inner(), &mut io::sink())?;
            Ok(())
        };
        read().map_err(read_error(path))?;
        Ok(files)
    }

    fn split(&self, files: &Files, names: &[&str]) -> Result<Split, CifarError> {
        let record = self.label_bytes + PIXELS;
        let images = if names == [self.test] { self.images[1] } else { self.images[0] };
        let mut split = Split { images: Vec::new(), labels: Vec::new() };
        split.images.reserve_exact(names.len() * images * PIXELS);
        for name in names {
            let (path, bytes) = &files[name];
            let (found, expected) = (bytes.len() as u64, (images * record) as u64);
            if found != expected {
                return Err(CifarError::Size { path: path.clone(), found, expected });
            }
            for (index, record) in bytes.chunks_exact(record).enumerate() {
                let label = record[self.label_bytes - 1];
                if usize::from(label) >= self.classes {
                    let (path, classes) = (path.clone(), self.classes);
                    return Err(CifarError::Label { path, index, label, classes });
                }
                split.labels.push(label);
                split.images.extend_from_slice(&record[self.label_bytes..]);
            }
        }
        Ok(split)
    }

    fn class_names(&self, files: &Files) -> Result<Vec<String>, CifarError> {
        let Some((path, bytes)) = files.get(self.names) else {
            return Ok((0..self.classes).map(|class| class.to_string()).collect());
        };
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let names: Vec<String> = lines.map(String::from).collect();
        if names.len() != self.classes {
            return Err(CifarError::Names { path: path.clone(), found: names.len(), classes: self.classes });
        }
        Ok(names)
    }
}

/// Reads `limit` bytes, or fewer at the end.
fn read_up_to(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> CifarError {
    move |source| CifarError::Read { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    /// CIFAR-10 and CIFAR-100 with files of two and one images.
    fn small() -> [Layout; 2] {
        [CIFAR10, CIFAR100].map(|layout| Layout { images: [2, 1], ..layout })
    }

    /// Every file of a set: image `i` of a file is all `i + 1`, its class 9 - `i`, its superclass 77.
    fn contents(layout: &Layout) -> Vec<(&'static str, Vec<u8>)> {
        let image = |i: u8| [&[77, 9 - i][2 - layout.label_bytes..], &[i + 1; PIXELS]].concat();
        let file = |count: usize| (0..count as u8).flat_map(image).collect::<Vec<u8>>();
        let mut files: Vec<_> = layout.train.iter().map(|name| (*name, file(layout.images[0]))).collect();
        files.push((layout.test, file(layout.images[1])));
        let names: String = (0..layout.classes).map(|class| format!("class {class}\n")).collect();
        files.push((layout.names, (names + "\n").into_bytes()));
        files
    }

    fn write(dir: &Path, files: &[(&str, Vec<u8>)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, bytes) in files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn archive(layout: &Layout, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("{}/{name}", layout.folder), &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn reads_files_folders_and_archives() {
        for layout in small() {
            let files = contents(&layout);
            let dir = TempDir::new().unwrap();
            let places = ["loose", "folder", "archive"].map(|name| dir.path().join(name));
            write(&places[0], &files);
            write(&places[1].join(layout.folder), &files);
            write(&places[2], &[(layout.archive, archive(&layout, &files))]);
            for place in places {
                assert!(layout.is_in(&place));
                let (train, test, names) = layout.read(&place).unwrap();
                assert_eq!(train.labels, [9, 8].repeat(layout.train.len()));
                assert_eq!(train.images.len(), train.labels.len() * PIXELS);
                assert_eq!(train.images[PIXELS - 1..=PIXELS], [1, 2]);
                assert_eq!((test.labels, test.images), (vec![9], vec![1; PIXELS]));
                assert_eq!((names.len(), &names[3][..]), (layout.classes, "class 3"));
            }
        }
    }

    /// The error after `damage` to file `name`, both loose and in an archive.
    fn error_after(layout: &Layout, name: &str, damage: impl Fn(&mut Vec<u8>)) -> CifarError {
        let mut files = contents(layout);
        damage(&mut files.iter_mut().find(|file| file.0 == name).unwrap().1);
        let dir = TempDir::new().unwrap();
        write(dir.path(), &[(layout.archive, archive(layout, &files))]);
        let packed = layout.read(dir.path()).unwrap_err();
        write(dir.path(), &files);
        let loose = layout.read(dir.path()).unwrap_err();
        assert_eq!(std::mem::discriminant(&packed), std::mem::discriminant(&loose));
        assert!(packed.to_string().contains(layout.archive), "{packed}");
        for error in [&packed, &loose] {
            assert!(error.to_string().contains(name), "{error}");
        }
        loose
    }

    #[test]
    fn damaged_files() {
        for layout in small() {
            for name in [layout.train[0], layout.test] {
                let short = error_after(&layout, name, |bytes| bytes.truncate(bytes.len() - 1));
                assert!(matches!(short, CifarError::Size { .. }), "{short}");
                let empty = error_after(&layout, name, Vec::clear);
                assert!(matches!(empty, CifarError::Size { found: 0, .. }), "{empty}");
                let long = error_after(&layout, name, |bytes| bytes.resize(1 << 20, 0));
                let CifarError::Size { found, expected, .. } = long else { panic!("{long}") };
                assert_eq!(found, expected + 1, "no more is read than is needed");
                let label = error_after(&layout, name, |bytes| bytes[layout.label_bytes - 1] = 100);
                assert!(matches!(label, CifarError::Label { index: 0, label: 100, .. }), "{label}");
            }
            let names = error_after(&layout, layout.names, |bytes| bytes.truncate(10));
            assert!(matches!(names, CifarError::Names { .. }), "{names}");
        }
    }

    #[test]
    fn damaged_archives() {
        let [layout, _] = small();
        let good = archive(&layout, &contents(&layout));
        let mut wrong_checksum = good.clone();
        let at = good.len() - 5;
        wrong_checksum[at] ^= 1;
        for bytes in [wrong_checksum, good[..good.len() / 2].to_vec(), b"not an archive".to_vec(), Vec::new()]
        {
            let dir = TempDir::new().unwrap();
            write(dir.path(), &[(layout.archive, bytes)]);
            let error = layout.read(dir.path()).unwrap_err();
            assert!(matches!(error, CifarError::Read { .. } | CifarError::Missing { .. }), "{error}");
            assert!(error.to_string().contains(layout.archive), "{error}");
        }
    }

    #[test]
    fn missing_files() {
        let [layout, _] = small();
        let dir = TempDir::new().unwrap();
        assert!(!layout.is_in(dir.path()));
        let error = layout.read(dir.path()).unwrap_err();
        assert!(matches!(error, CifarError::Missing { file: "data_batch_1.bin", .. }), "{error}");
        write(dir.path(), &contents(&layout));
        fs::remove_file(dir.path().join("data_batch_4.bin")).unwrap();
        let error = layout.read(dir.path()).unwrap_err();
        assert!(matches!(error, CifarError::Missing { file: "data_batch_4.bin", .. }), "{error}");
    }

    #[test]
    fn classes_without_names_are_numbered() {
        let [_, layout] = small();
        let dir = TempDir::new().unwrap();
        write(dir.path(), &contents(&layout));
        fs::remove_file(dir.path().join(layout.names)).unwrap();
        let (_, _, names) = layout.read(dir.path()).unwrap();
        assert_eq!(names[99], "99");
    }
}
