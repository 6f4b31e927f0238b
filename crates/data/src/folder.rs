//! Folders of pictures sorted by class, as ImageNet comes:
//!
//! ```text
//! DIR/train/CLASS/*.jpg        jpg, jpeg or png, in any case
//! DIR/val/CLASS/*.jpg          or all pictures directly in DIR/val, with
//! DIR/val_labels.txt           lines `NAME CLASS` or `NAME,CLASS ...`, or
//! DIR/LOC_val_solution.csv     such lines under the header `ImageId,PredictionString`
//! ```
//!
//! Labels number the folders of `train` in the order of their names. `NAME` is a file name with or without
//! its extension; what follows `CLASS` in a line is not read. Names that begin with a dot are passed over,
//! links are followed. Listings are sorted, so they are the same on every machine. Pictures are not opened
//! here.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Label files that a flat `val` may have.
pub const LABEL_FILES: [&str; 2] = ["val_labels.txt", "LOC_val_solution.csv"];

/// What can be wrong with an image folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A folder or label file cannot be read.
    #[error("cannot read `{path}` ({source}); an image folder has `train/CLASS/*.jpg` and `val`")]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `train` has no sub-folders.
    #[error("`{0}` has no folders of classes; put the pictures of each class into a folder of its name")]
    NoClasses(PathBuf),
    /// A class has no pictures.
    #[error("`{0}` has no jpg, jpeg or png files; add some, or remove the folder")]
    EmptyClass(PathBuf),
    /// A flat `val` has no pictures.
    #[error("`{0}` has neither folders of classes nor jpg, jpeg or png files; add pictures to test on")]
    NoImages(PathBuf),
    /// A class is not one to train on.
    #[error("{place} is of class `{class}`, which `train` does not have; remove it, or add the class there")]
    UnknownClass {
        /// The folder, or the file and line.
        place: String,
        /// The class.
        class: String,
    },
    /// A class name is not text.
    #[error("the name of `{0}` is not valid UTF-8; rename the folder")]
    ClassName(PathBuf),
    /// A flat `val` has no label file.
    #[error(
        "the pictures in `{0}` have no classes; put them into folders of classes, or write lines \
         `NAME CLASS` into `val_labels.txt` beside it"
    )]
    NoLabels(PathBuf),
    /// A line of a label file is wrong.
    #[error("`{path}`, line {line}: {what}; lines are `NAME CLASS`")]
    Label {
        /// The label file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A picture has no line in the label file.
    #[error("`{labels}` has no line for `{image}`; add `NAME CLASS`, or remove the picture")]
    Unlabelled {
        /// The label file.
        labels: PathBuf,
        /// The picture.
        image: PathBuf,
    },
}

/// The pictures of a split.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Where they are, below the root: `[count]`.
    pub paths: Vec<PathBuf>,
    /// The class of each: `[count]`.
    pub labels: Vec<u32>,
}

impl Listing {
    /// How many pictures there are; never 0 in an open folder.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// How many pictures each class has: `[classes]`.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }

    fn push(&mut self, path: PathBuf, label: u32) {
        self.paths.push(path);
        self.labels.push(label);
    }
}

/// A folder of pictures, listed.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    /// The folder.
    pub root: PathBuf,
    /// Names of the classes: the sorted folders of `train`, `[classes]`.
    pub class_names: Vec<String>,
    /// To train on, by class and name.
    pub train: Listing,
    /// To test on: `val`, by class and name, or by name if it is flat.
    pub test: Listing,
}

impl ImageFolder {
    /// Lists `train` and `val` in `root`.
    ///
    /// # Errors
    /// Any [`FolderError`].
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        let mut class_names = Vec::new();
        let mut train = Listing::default();
        let folder = root.join("train");
        for class in Entries::read(&folder)?.folders {
            let name = class.to_str().ok_or_else(|| FolderError::ClassName(folder.join(&class)))?;
            list_class(root, &Path::new("train").join(&class), class_names.len() as u32, &mut train)?;
            class_names.push(name.to_string());
        }
        if class_names.is_empty() {
            return Err(FolderError::NoClasses(folder));
        }
        let label_of: HashMap<&str, u32> = class_names.iter().map(String::as_str).zip(0..).collect();
        let test = list_val(root, &label_of)?;
        Ok(Self { root: root.to_path_buf(), class_names, train, test })
    }
}

/// Adds the pictures of a class in folder `class` below `root`.
fn list_class(root: &Path, class: &Path, label: u32, listing: &mut Listing) -> Result<(), FolderError> {
    let images = Entries::read(&root.join(class))?.images;
    if images.is_empty() {
        return Err(FolderError::EmptyClass(root.join(class)));
    }
    for image in images {
        listing.push(class.join(image), label);
    }
    Ok(())
}

fn list_val(root: &Path, label_of: &HashMap<&str, u32>) -> Result<Listing, FolderError> {
    let folder = root.join("val");
    let entries = Entries::read(&folder)?;
    let mut listing = Listing::default();
    for class in &entries.folders {
        let known = class.to_str().and_then(|name| label_of.get(name));
        let label = *known.ok_or_else(|| FolderError::UnknownClass {
            place: format!("`{}`", folder.join(class).display()),
            class: class.to_string_lossy().into_owned(),
        })?;
        list_class(root, &Path::new("val").join(class), label, &mut listing)?;
    }
    if !entries.folders.is_empty() {
        return Ok(listing);
    }
    if entries.images.is_empty() {
        return Err(FolderError::NoImages(folder));
    }
    let labels = LABEL_FILES.iter().map(|name| root.join(name)).find(|path| path.is_file());
    let labels = labels.ok_or(FolderError::NoLabels(folder))?;
    let label_of_name = read_labels(&labels, label_of)?;
    for image in entries.images {
        let path = Path::new("val").join(&image);
        let names = [Some(&*image), path.file_stem()];
        let label = names.into_iter().flatten().find_map(|name| label_of_name.get(name.to_str()?));
        let label = *label
            .ok_or_else(|| FolderError::Unlabelled { labels: labels.clone(), image: root.join(&path) })?;
        listing.push(path, label);
    }
    Ok(listing)
}

/// The label of each name in a label file.
fn read_labels(path: &Path, label_of: &HashMap<&str, u32>) -> Result<HashMap<String, u32>, FolderError> {
    let text = fs::read_to_string(path).map_err(read_error(path))?;
    let mut labels = HashMap::new();
    for (line, text) in (1..).zip(text.lines()) {
        let mut words = text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        let Some(name) = words.next() else { continue };
        if line == 1 && name == "ImageId" {
            continue;
        }
        let wrong = |what: String| FolderError::Label { path: path.into(), line, what };
        let class = words.next().ok_or_else(|| wrong(format!("`{name}` has no class")))?;
        let label = *label_of.get(class).ok_or_else(|| FolderError::UnknownClass {
            place: format!("`{name}` in line {line} of `{}`", path.display()),
            class: class.to_string(),
        })?;
        if labels.insert(name.to_string(), label).is_some_and(|before| before != label) {
            return Err(wrong(format!("`{name}` has two classes")));
        }
    }
    Ok(labels)
}

/// What is in a folder, sorted by name.
struct Entries {
    folders: Vec<OsString>,
    images: Vec<OsString>,
}

impl Entries {
    fn read(path: &Path) -> Result<Self, FolderError> {
        let mut entries = Self { folders: Vec::new(), images: Vec::new() };
        let mut list = || -> io::Result<()> {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let name = entry.file_name();
                if name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                let kind = entry.file_type()?;
                // A link that leads nowhere is kept as a picture, and reported when it is to be shown.
                let is_folder = match kind.is_symlink() {
                    true => fs::metadata(entry.path()).is_ok_and(|target| target.is_dir()),
                    false => kind.is_dir(),
                };
                if is_folder {
                    entries.folders.push(name);
                } else if is_image(&name) {
                    entries.images.push(name);
                }
            }
            Ok(())
        };
        list().map_err(read_error(path))?;
        entries.folders.sort();
        entries.images.sort();
        Ok(entries)
    }
}

fn is_image(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    move |source| FolderError::Read { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A folder with these files, which are empty unless `FILE=TEXT`.
    fn tree(files: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for file in files {
            let (name, text) = file.split_once('=').unwrap_or((file, ""));
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn error_of(files: &[&str]) -> FolderError {
        ImageFolder::open(tree(files).path()).unwrap_err()
    }

    const TRAIN: [&str; 3] = ["train/b/1.JPEG", "train/a/2.jpg", "train/a/10.png"];

    fn with_train<'a>(files: &[&'a str]) -> Vec<&'a str> {
        [&TRAIN, files].concat()
    }

    #[test]
    fn lists_in_order() {
        let dir = tree(&with_train(&["val/b/x.Jpg", "val/a/y.jpeg", "train/a/notes.txt", "train/a/._2.jpg"]));
        let folder = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(folder.class_names, ["a", "b"]);
        let paths = ["train/a/10.png", "train/a/2.jpg", "train/b/1.JPEG"].map(PathBuf::from);
        assert_eq!(folder.train.paths, paths);
        assert_eq!(folder.train.labels, [0, 0, 1]);
        assert_eq!(folder.train.class_counts(2), [2, 1]);
        assert_eq!(folder.test.labels, [0, 1]);
    }

    #[test]
    fn flat_val_with_either_label_file() {
        let images = ["val/x_2.JPEG", "val/x_1.JPEG"];
        for labels in [
            "val_labels.txt=x_1.JPEG b\nx_2.JPEG a\n\n",
            "val_labels.txt=x_1,b\r\nx_2\ta\r\nx_3 a",
            "LOC_val_solution.csv=ImageId,PredictionString\nx_1,b 85 1 499 272\nx_2,a 1 2 3 4 a 5 6 7 8\n",
        ] {
            let dir = tree(&with_train(&[&images[..], &[labels]].concat()));
            let folder = ImageFolder::open(dir.path()).unwrap();
            assert_eq!(folder.test.paths, ["val/x_1.JPEG", "val/x_2.JPEG"].map(PathBuf::from), "{labels}");
            assert_eq!(folder.test.labels, [1, 0], "{labels}");
        }
    }

    #[test]
    fn what_can_be_wrong() {
        let cases: [(&[&str], &str); 12] = [
            (&["val/a/x.png"], "train`"),
            (&["train/x.png", "val/a/x.png"], "train` has no folders"),
            (&TRAIN, "val` (No such"),
            (&with_train(&["train/c/x.txt"]), "train/c` has no jpg"),
            (&with_train(&["val/a/x.txt"]), "val/a` has no jpg"),
            (&with_train(&["val/c/x.png"]), "val/c` is of class `c`"),
            (&with_train(&["val/x.txt"]), "val` has neither"),
            (&with_train(&["val/x.png"]), "val_labels.txt"),
            (&with_train(&["val/x.png", "val_labels.txt=y a"]), "val/x.png`"),
            (&with_train(&["val/x.png", "val_labels.txt=y a\nx"]), "line 2: `x` has no class"),
            (&with_train(&["val/x.png", "val_labels.txt=x c"]), "line 1 of"),
            (&with_train(&["val/x.png", "val_labels.txt=x a\nx b"]), "two classes"),
        ];
        for (files, part) in cases {
            let error = error_of(files).to_string();
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        use std::os::unix::fs::symlink;
        let dir = tree(&with_train(&["val/b/1.png", "elsewhere/3.png"]));
        let root = dir.path();
        symlink(root.join("elsewhere"), root.join("train/c")).unwrap();
        symlink(root.join("elsewhere/3.png"), root.join("train/a/4.png")).unwrap();
        symlink(root.join("train"), root.join("train/b/loop")).unwrap();
        symlink("/no/such/file", root.join("train/b/gone.png")).unwrap();
        let folder = ImageFolder::open(root).unwrap();
        assert_eq!(folder.class_names, ["a", "b", "c"]);
        assert_eq!(folder.train.labels, [0, 0, 0, 1, 1, 2]);
    }
}
