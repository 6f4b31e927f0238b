//! Folders of pictures sorted by class, as ImageNet comes:
//!
//! ```text
//! DIR/train/CLASS/*.jpg          and in folders below CLASS, at any depth
//! DIR/val/CLASS/*.jpg            or all pictures directly in DIR/val, with
//! DIR/val_labels.txt             lines `NAME CLASS` or `NAME,CLASS ...`, or
//! DIR/LOC_val_solution.csv       such lines under the header `ImageId,PredictionString`
//! ```
//!
//! or as Tiny ImageNet comes, with `train/CLASS/images/*.JPEG`, `val/images/*.JPEG` and the lines in
//! `val/val_annotations.txt`. In place of `val` there may be `valid`, `validation` or `test`.
//!
//! Pictures are the files whose names end as one of [`EXTENSIONS`], in any case. Labels number the folders of
//! `train` in the order of their names. `NAME` is a file name with or without its extension; what follows
//! `CLASS` in a line is not read. Names that begin with a dot are passed over, links are followed. Listings are
//! sorted as torchvision's are, so they are the same on every machine. Pictures are not opened here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::printable::shown;
use srigl_tensors::printable;

/// How the names of pictures end, in small letters: those of torchvision's `ImageFolder`, and `gif`.
pub const EXTENSIONS: [&str; 10] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif"];

/// Label files that a flat `val` may have.
pub const LABEL_FILES: [&str; 2] = ["val_labels.txt", "LOC_val_solution.csv"];

/// The label file of Tiny ImageNet, in `val`, and the folder of its pictures there.
const TINY: (&str, &str) = ("val_annotations.txt", "images");

/// Folders of pictures to test on, the first of which is taken.
const TEST_FOLDERS: [&str; 4] = ["val", "valid", "validation", "test"];

/// The longest label file that is read, in bytes; ImageNet's has 7 MB.
const MAX_LABELS: u64 = 1 << 26;

/// What can be wrong with an image folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A folder or label file cannot be read.
    #[error("cannot read `{}` ({source}); an image folder has `train/CLASS/*.jpg` and `val`", shown(path))]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `train` has no sub-folders.
    #[error(
        "`{}` has no folders of classes; put the pictures of each class into a folder of its name", shown(.0)
    )]
    NoClasses(PathBuf),
    /// A class has no pictures, or no folder.
    #[error(
        "`{}` has no pictures (jpg, png, webp, ...); add some, or go on without them by `--allow-empty`",
        shown(.0)
    )]
    EmptyClass(PathBuf),
    /// There are no pictures at all to train or to test on.
    #[error(
        "`{}` has no pictures (jpg, png, webp, ...), neither in folders of classes nor beside them; add some",
        shown(.0)
    )]
    NoImages(PathBuf),
    /// A class is not one to train on.
    #[error(
        "{} is of class `{}`, which `train` does not have; remove it, or add the class there",
        printable(place),
        printable(class)
    )]
    UnknownClass {
        /// The folder, or the file and line.
        place: String,
        /// The class.
        class: String,
    },
    /// A class name is not text.
    #[error("the name of `{}` is not valid UTF-8; rename the folder", shown(.0))]
    ClassName(PathBuf),
    /// A flat `val` has no label file.
    #[error(
        "the pictures in `{}` have no classes; put them into folders of classes, or write lines \
         `NAME CLASS` into `val_labels.txt` beside it", shown(.0)
    )]
    NoLabels(PathBuf),
    /// A line of a label file is wrong.
    #[error("`{}`, line {line}: {}; lines are `NAME CLASS`", shown(path), printable(what))]
    Label {
        /// The label file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A picture has no line in the label file.
    #[error(
        "`{}` has no line for `{}`; add `NAME CLASS`, or remove the picture",
        shown(labels),
        shown(image)
    )]
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
    /// The files beside them that are not listed.
    pub left_out: LeftOut,
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

/// Files of a split that are not listed, for people: `left out 2 files that are no pictures: 2 .txt (a/x.txt, a/y.txt)`.
/// Hidden ones do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Those that are no pictures, by the end of their names in small letters, with the dot; empty without one.
    pub kinds: BTreeMap<String, Counted>,
    /// Pictures that are in no folder of a class, beside such folders.
    pub unclassed: Counted,
}

/// A number of files, a few of them by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many there are.
    pub count: usize,
    /// The first ones, below the root: at most [`Counted::NAMED`].
    pub names: Vec<PathBuf>,
}

impl Counted {
    /// How many are named.
    pub const NAMED: usize = 3;

    /// The names, for people.
    fn named(&self) -> String {
        let names = self.names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        if self.count > self.names.len() { names + ", …" } else { names }
    }

    fn add(&mut self, path: PathBuf) {
        self.count += 1;
        if self.names.len() < Self::NAMED {
            self.names.push(path);
        }
    }
}

impl LeftOut {
    /// How many files are left out.
    pub fn count(&self) -> usize {
        self.no_pictures() + self.unclassed.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    fn no_pictures(&self) -> usize {
        self.kinds.values().map(|kind| kind.count).sum()
    }

    fn add(&mut self, path: PathBuf) {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let kind = extension.map(|extension| format!(".{extension}")).unwrap_or_default();
        self.kinds.entry(kind).or_default().add(path);
    }
}

impl fmt::Display for LeftOut {
    /// One line; `left out nothing` if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Kinds that are told apart.
        const SHOWN: usize = 6;
        let mut parts = Vec::new();
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.count)); // stable: then by name
        if !kinds.is_empty() {
            let mut list: Vec<String> = kinds
                .iter()
                .take(SHOWN)
                .map(|(name, kind)| match name.is_empty() {
                    true => format!("{} without extension ({})", kind.count, kind.named()),
                    false => format!("{} {} ({})", kind.count, printable(name), kind.named()),
                })
                .collect();
            let others: usize = kinds.iter().skip(SHOWN).map(|(_, kind)| kind.count).sum();
            if others > 0 {
                list.push(format!("{others} others"));
            }
            let files = match self.no_pictures() {
                1 => "1 file that is no picture".to_string(),
                count => format!("{count} files that are no pictures"),
            };
            parts.push(format!("{files}: {}", list.join(", ")));
        }
        match self.unclassed.count {
            0 => {}
            1 => parts.push(format!("1 picture outside the folders of classes ({})", self.unclassed.named())),
            count => parts.push(format!(
                "{count} pictures outside the folders of classes ({})",
                self.unclassed.named()
            )),
        }
        match parts.is_empty() {
            true => f.write_str("left out nothing"),
            false => write!(f, "left out {}", parts.join(" and ")),
        }
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
    /// The folder in `root` of the pictures to test on: `val`, `valid`, `validation` or `test`.
    pub test_folder: &'static str,
}

impl ImageFolder {
    /// Lists `train` and `val` in `root`. With `allow_empty`, there may be classes without pictures in either.
    ///
    /// # Errors
    /// Any [`FolderError`]; [`FolderError::EmptyClass`] only without `allow_empty`.
    pub fn open(root: &Path, allow_empty: bool) -> Result<Self, FolderError> {
        let mut class_names = Vec::new();
        let mut train = Listing::default();
        let folder = root.join("train");
        let entries = Entries::read(&folder)?;
        for class in &entries.folders {
            let name = class.to_str().ok_or_else(|| FolderError::ClassName(folder.join(class)))?;
            let class = Path::new("train").join(class);
            let count = list_class(root, &class, class_names.len() as u32, &mut train)?;
            check_class(root.join(class), count, allow_empty)?;
            class_names.push(name.to_string());
        }
        if class_names.is_empty() {
            return Err(FolderError::NoClasses(folder));
        }
        if train.is_empty() {
            return Err(FolderError::NoImages(folder));
        }
        entries.leave_out(Path::new("train"), &mut train.left_out);
        let test_folder = TEST_FOLDERS.into_iter().find(|name| root.join(name).is_dir()).unwrap_or("val");
        let test = list_test(root, test_folder, &class_names, allow_empty)?;
        Ok(Self { root: root.to_path_buf(), class_names, train, test, test_folder })
    }
}

fn check_class(folder: PathBuf, count: usize, allow_empty: bool) -> Result<(), FolderError> {
    match count {
        0 if !allow_empty => Err(FolderError::EmptyClass(folder)),
        _ => Ok(()),
    }
}

/// Adds the pictures of a class, which are in folder `class` of `root` and in the folders below it. Says how
/// many there are.
fn list_class(root: &Path, class: &Path, label: u32, listing: &mut Listing) -> Result<usize, FolderError> {
    let mut folders = Vec::new();
    let seen = &mut HashSet::new();
    walk(root, class.to_path_buf(), &mut Vec::new(), seen, &mut folders)?;
    // By their whole paths, as torchvision sorts them: `a-b` before `a/b`.
    folders.sort_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
    let before = listing.len();
    for (folder, entries) in folders {
        for image in &entries.images {
            listing.push(folder.join(image), label);
        }
        for other in &entries.others {
            listing.left_out.add(folder.join(other));
        }
    }
    Ok(listing.len() - before)
}

/// Lists `folder` of `root` and the folders below it. `above` are the folders that led here and `seen` the targets
/// of links, both as the system knows them: a link to what holds one of the former would go in circles, and to one
/// of the latter would count its pictures twice.
fn walk(
    root: &Path,
    folder: PathBuf,
    above: &mut Vec<PathBuf>,
    seen: &mut HashSet<PathBuf>,
    folders: &mut Vec<(PathBuf, Entries)>,
) -> Result<(), FolderError> {
    let path = root.join(&folder);
    let entries = Entries::read(&path)?;
    if !entries.folders.is_empty() {
        above.push(path.canonicalize().map_err(read_error(&path))?);
        for inner in &entries.folders {
            if entries.links.contains(inner) {
                let link = path.join(inner);
                let target = link.canonicalize().map_err(read_error(&link))?;
                if above.iter().any(|above| above.starts_with(&target)) || !seen.insert(target) {
                    continue;
                }
            }
            walk(root, folder.join(inner), above, seen, folders)?;
        }
        above.pop();
    }
    folders.push((folder, entries));
    Ok(())
}

fn list_test(
    root: &Path,
    name: &str,
    class_names: &[String],
    allow_empty: bool,
) -> Result<Listing, FolderError> {
    let label_of: HashMap<&str, u32> = class_names.iter().map(String::as_str).zip(0..).collect();
    let folder = root.join(name);
    let entries = Entries::read(&folder)?;
    let (annotations, images) = (folder.join(TINY.0), OsStr::new(TINY.1));
    if entries.folders == [images] && !label_of.contains_key(TINY.1) && annotations.is_file() {
        return list_flat(root, &Path::new(name).join(images), &annotations, &label_of);
    }
    if entries.folders.is_empty() {
        if entries.images.is_empty() {
            return Err(FolderError::NoImages(folder));
        }
        let labels = LABEL_FILES.iter().map(|name| root.join(name)).find(|path| path.is_file());
        return list_flat(root, Path::new(name), &labels.ok_or(FolderError::NoLabels(folder))?, &label_of);
    }
    let mut listing = Listing::default();
    let mut counts = vec![0; class_names.len()];
    for class in &entries.folders {
        let known = class.to_str().and_then(|name| label_of.get(name));
        let label = *known.ok_or_else(|| FolderError::UnknownClass {
            place: format!("`{}`", folder.join(class).display()),
            class: class.to_string_lossy().into_owned(),
        })?;
        counts[label as usize] = list_class(root, &Path::new(name).join(class), label, &mut listing)?;
    }
    for (class, count) in class_names.iter().zip(counts) {
        check_class(folder.join(class), count, allow_empty)?;
    }
    if listing.is_empty() {
        return Err(FolderError::NoImages(folder));
    }
    entries.leave_out(Path::new(name), &mut listing.left_out);
    Ok(listing)
}

/// Lists the pictures in `folder` of `root`, whose classes are in file `labels`.
fn list_flat(
    root: &Path,
    folder: &Path,
    labels: &Path,
    label_of: &HashMap<&str, u32>,
) -> Result<Listing, FolderError> {
    let entries = Entries::read(&root.join(folder))?;
    if entries.images.is_empty() {
        return Err(FolderError::NoImages(root.join(folder)));
    }
    let text = read_text(labels).map_err(read_error(labels))?;
    let label_of_name = parse_labels(&text, labels, label_of)?;
    let mut listing = Listing::default();
    for image in &entries.images {
        let path = folder.join(image);
        let names = [Some(&**image), path.file_stem()];
        let label = names.into_iter().flatten().find_map(|name| label_of_name.get(name.to_str()?));
        let label = *label
            .ok_or_else(|| FolderError::Unlabelled { labels: labels.into(), image: root.join(&path) })?;
        listing.push(path, label);
    }
    for other in &entries.others {
        listing.left_out.add(folder.join(other));
    }
    Ok(listing)
}

/// The label of each name in the text of label file `path`.
fn parse_labels<'a>(
    text: &'a str,
    path: &Path,
    label_of: &HashMap<&str, u32>,
) -> Result<HashMap<&'a str, u32>, FolderError> {
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
            place: format!("`{name}` in line {line} of `{}`", shown(path)),
            class: class.to_string(),
        })?;
        if labels.insert(name, label).is_some_and(|before| before != label) {
            return Err(wrong(format!("`{name}` has two classes")));
        }
    }
    Ok(labels)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(MAX_LABELS).read_to_string(&mut text)? as u64 == MAX_LABELS {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too long for a list of labels"));
    }
    Ok(text)
}

/// What is in a folder, sorted by name. Hidden things are not.
struct Entries {
    folders: Vec<OsString>,
    /// Which of `folders` are links.
    links: HashSet<OsString>,
    images: Vec<OsString>,
    others: Vec<OsString>,
}

impl Entries {
    fn read(path: &Path) -> Result<Self, FolderError> {
        let mut entries =
            Self { folders: Vec::new(), links: HashSet::new(), images: Vec::new(), others: Vec::new() };
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
                    if kind.is_symlink() {
                        entries.links.insert(name.clone());
                    }
                    entries.folders.push(name);
                } else if is_image(&name) {
                    entries.images.push(name);
                } else {
                    entries.others.push(name);
                }
            }
            Ok(())
        };
        list().map_err(read_error(path))?;
        entries.folders.sort();
        entries.images.sort();
        entries.others.sort();
        Ok(entries)
    }

    /// Counts the files of a folder of classes, which are not listed. `folder` is the path to show.
    fn leave_out(&self, folder: &Path, left_out: &mut LeftOut) {
        for image in &self.images {
            left_out.unclassed.add(folder.join(image));
        }
        for other in &self.others {
            left_out.add(folder.join(other));
        }
    }
}

fn is_image(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
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
        ImageFolder::open(tree(files).path(), false).unwrap_err()
    }

    const TRAIN: [&str; 3] = ["train/b/1.JPEG", "train/a/2.jpg", "train/a/10.png"];

    fn with_train<'a>(files: &[&'a str]) -> Vec<&'a str> {
        [&TRAIN, files].concat()
    }

    #[test]
    fn lists_in_order() {
        let dir = tree(&with_train(&["val/b/x.Jpg", "val/a/y.jpeg", "train/a/notes.txt", "train/a/._2.jpg"]));
        let folder = ImageFolder::open(dir.path(), false).unwrap();
        assert_eq!(folder.class_names, ["a", "b"]);
        let paths = ["train/a/10.png", "train/a/2.jpg", "train/b/1.JPEG"].map(PathBuf::from);
        assert_eq!(folder.train.paths, paths);
        assert_eq!(folder.train.labels, [0, 0, 1]);
        assert_eq!(folder.train.class_counts(2), [2, 1]);
        assert_eq!(folder.test.labels, [0, 1]);
        assert_eq!(
            folder.train.left_out.to_string(),
            "left out 1 file that is no picture: 1 .txt (train/a/notes.txt)"
        );
        assert_eq!(folder.train.left_out.kinds[".txt"].names, [Path::new("train/a/notes.txt")]);
        assert!(folder.test.left_out.is_empty());
        assert_eq!(folder.test_folder, "val");
    }

    #[test]
    fn every_extension_in_any_case() {
        let files = EXTENSIONS.map(|extension| format!("train/a/x.{}", extension.to_uppercase()));
        let dir = tree(&[&files.each_ref().map(String::as_str)[..], &["val/a/x.gif"]].concat());
        let folder = ImageFolder::open(dir.path(), false).unwrap();
        assert_eq!(folder.train.len(), 10);
        assert!(folder.train.left_out.is_empty());
    }

    /// The order is that of torchvision's `ImageFolder` for these files.
    #[test]
    fn folders_below_a_class_count() {
        let below = ["train/a/s/3.png", "train/a/s-t/1.png", "train/a/s/u/v/2.png", "train/a/z.png"];
        let dir = tree(&with_train(&[&below[..], &["val/a/1/x.png", "val/b/2/3/y.png"]].concat()));
        let folder = ImageFolder::open(dir.path(), false).unwrap();
        let paths = [
            "train/a/10.png",
            "train/a/2.jpg",
            "train/a/z.png",
            "train/a/s/3.png",
            "train/a/s-t/1.png",
            "train/a/s/u/v/2.png",
            "train/b/1.JPEG",
        ];
        assert_eq!(folder.train.paths, paths.map(PathBuf::from));
        assert_eq!(folder.test.labels, [0, 1]);
    }

    #[test]
    fn what_is_left_out_is_counted_and_named() {
        let others = [
            "train/a/1.txt",
            "train/a/s/2.TXT",
            "train/b/README",
            "train/b/x.svg",
            "train/loose.png",
            "train/index.html",
            "val/a/1.png",
            "val/b/1.png",
            "val/list",
        ];
        let mut folder = ImageFolder::open(tree(&with_train(&others)).path(), false).unwrap();
        assert_eq!(
            folder.train.left_out.to_string(),
            "left out 5 files that are no pictures: 2 .txt (train/a/1.txt, train/a/s/2.TXT), 1 without extension \
             (train/b/README), 1 .html (train/index.html), 1 .svg (train/b/x.svg) and 1 picture outside the folders \
             of classes (train/loose.png)"
        );
        assert_eq!(
            folder.test.left_out.to_string(),
            "left out 1 file that is no picture: 1 without extension (val/list)"
        );
        let left_out = &mut folder.test.left_out;
        for index in 0..10 {
            left_out.add(format!("x.{index}").into());
            left_out.add("y.\u{1b}".into());
        }
        assert_eq!(left_out.kinds[".\u{1b}"].names.len(), Counted::NAMED);
        let text = left_out.to_string();
        assert!(text.contains(": 10 .\\u{1b} (y.\\u{1b}, y.\\u{1b}, y.\\u{1b}, …), 1 without"), "{text}");
        assert!(text.ends_with(" 1 .3 (x.3), 6 others"), "{text}");
        assert_eq!(LeftOut::default().to_string(), "left out nothing");
    }

    #[test]
    fn classes_without_pictures_must_be_allowed() {
        for files in [&["train/c/x.txt", "val/a/1.png", "val/b/1.png", "val/c/1.png"][..], &["val/b/1.png"]] {
            let dir = tree(&with_train(files));
            let error = ImageFolder::open(dir.path(), false).unwrap_err();
            assert!(matches!(error, FolderError::EmptyClass(_)), "{error}");
            assert!(error.to_string().contains("--allow-empty"), "{error}");
            let folder = ImageFolder::open(dir.path(), true).unwrap();
            assert_eq!(folder.train.labels, [0, 0, 1]);
        }
        for files in [&["train/c/x.txt"][..], &["train/c/1.png", "val/c/x.txt"]] {
            let error = ImageFolder::open(tree(files).path(), true).unwrap_err();
            assert!(matches!(error, FolderError::NoImages(_)), "{error}");
        }
    }

    #[test]
    fn tiny_imagenet() {
        let dir = tree(&[
            "train/n02/images/n02_0.JPEG",
            "train/n02/n02_boxes.txt",
            "train/n01/images/n01_0.JPEG",
            "train/n01/images/n01_1.JPEG",
            "train/n01/n01_boxes.txt",
            "val/images/val_0.JPEG",
            "val/images/val_1.JPEG",
            "val/val_annotations.txt=val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n",
            "test/images/test_0.JPEG",
            "words.txt=n01 thing",
        ]);
        let folder = ImageFolder::open(dir.path(), false).unwrap();
        assert_eq!(folder.class_names, ["n01", "n02"]);
        assert_eq!(folder.train.labels, [0, 0, 1]);
        assert_eq!(folder.train.left_out.count(), 2, "{}", folder.train.left_out);
        assert_eq!(folder.test.paths, ["val/images/val_0.JPEG", "val/images/val_1.JPEG"].map(PathBuf::from));
        assert_eq!(folder.test.labels, [1, 0]);
        assert!(folder.test.left_out.is_empty());
    }

    #[test]
    fn other_names_of_val() {
        let mut files = TRAIN.to_vec();
        for name in ["test", "validation", "valid", "val"] {
            let pictures = ["a", "b"].map(|class| format!("{name}/{class}/1.png"));
            files.extend(pictures.iter().map(|picture| &*picture.clone().leak()));
            let folder = ImageFolder::open(tree(&files).path(), false).unwrap();
            assert_eq!(folder.test_folder, name);
            assert_eq!(folder.test.paths[1], Path::new(name).join("b/1.png"));
        }
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
            let folder = ImageFolder::open(dir.path(), false).unwrap();
            assert_eq!(folder.test.paths, ["val/x_1.JPEG", "val/x_2.JPEG"].map(PathBuf::from), "{labels}");
            assert_eq!(folder.test.labels, [1, 0], "{labels}");
        }
    }

    #[test]
    fn what_can_be_wrong() {
        let cases: [(&[&str], &str); 13] = [
            (&["val/a/x.png"], "train`"),
            (&["train/x.png", "val/a/x.png"], "train` has no folders"),
            (&TRAIN, "val` (No such"),
            (&with_train(&["train/c/x.txt"]), "train/c` has no pictures"),
            (&with_train(&["val/a/x.txt"]), "val/a` has no pictures"),
            (&with_train(&["val/c/x.png"]), "val/c` is of class `c`"),
            (&with_train(&["val/x.txt"]), "val` has no pictures"),
            (&with_train(&["val/c\u{1b}[31m/x.png"]), "val/c\\u{1b}[31m` is of class `c\\u{1b}[31m`"),
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
        let dir = tree(&with_train(&["val/a/1.png", "val/b/1.png", "val/c/1.png", "elsewhere/3.png"]));
        let root = dir.path();
        symlink(root.join("elsewhere"), root.join("train/c")).unwrap();
        symlink(root.join("elsewhere/3.png"), root.join("train/a/4.png")).unwrap();
        symlink(root.join("train"), root.join("train/b/loop")).unwrap();
        symlink("/no/such/file", root.join("train/b/gone.png")).unwrap();
        let folder = ImageFolder::open(root, false).unwrap();
        assert_eq!(folder.class_names, ["a", "b", "c"]);
        assert_eq!(folder.train.labels, [0, 0, 0, 1, 1, 2]);
    }
    #[cfg(unix)]
    #[test]
    fn links_in_circles_and_to_the_same_place() {
        use std::os::unix::fs::symlink;
        let dir =
            tree(&with_train(&["val/a/1.png", "val/b/2.png", "far/3.png", "far/deep/4.png", "off/5.png"]));
        let root = dir.path();
        for (target, link) in [
            ("far", "train/a/far"),
            ("train/a", "far/deep/back"), // in a circle by a way around
            ("", "far/deep/top"),
            ("off", "train/b/once"),
            ("off", "train/b/twice"),
        ] {
            symlink(root.join(target), root.join(link)).unwrap();
        }
        let folder = ImageFolder::open(root, false).unwrap();
        let names: Vec<_> =
            folder.train.paths.iter().map(|path| path.strip_prefix("train").unwrap()).collect();
        let expected = ["a/10.png", "a/2.jpg", "a/far/3.png", "a/far/deep/4.png", "b/1.JPEG", "b/once/5.png"]
            .map(Path::new);
        assert_eq!(names, expected);
    }
}
