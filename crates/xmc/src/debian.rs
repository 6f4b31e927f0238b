//! A real data set of any Debian machine: the words of a package's description tell which packages it depends on.

use crate::Error;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufWriter, Write};

/// Packages that a word must have to be a feature.
const WORD: usize = 3;
/// Packages that must depend on a package for that to be a label.
const LABEL: usize = 2;
/// The longest word.
const LONGEST: usize = 31;

/// Packages as points.
///
/// Features are the words of name, description, section and tags that three packages have, weighted by tf-idf,
/// `(1 + ln n) ln(N / df)`, with norm 1; labels are the direct dependencies, all alternatives, that two packages have.
///
/// ```
/// let index = "Package: a\nDepends: libc6, x\nDescription: tool words\n\nPackage: b\nDepends: libc6 (>= 2) | y\n\
///              Description: tool\n long words\n\nPackage: c\nDepends: libc6\nDescription: tool\n";
/// let debian = srigl_xmc::debian::Debian::parse(index)?;
/// // The word `tool`, and the label `libc6`.
/// assert_eq!((debian.packages(), debian.features(), debian.labels()), (3, 1, 1));
/// # Ok::<(), srigl_xmc::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Debian {
    /// Their lines of a file of points.
    lines: Vec<String>,
    features: usize,
    labels: usize,
}

/// A package: its words and its dependencies.
type Package = (Vec<String>, Vec<String>);

impl Debian {
    /// Reads a package index, such as `apt-cache dumpavail` prints. Of several versions of a package the first counts.
    ///
    /// # Errors
    /// [`Error::Packages`] if there are not two packages that have features and labels.
    pub fn parse(index: &str) -> Result<Self, Error> {
        let mut seen = HashSet::new();
        let mut packages: Vec<Package> = index
            .split("\n\n")
            .filter_map(|stanza| {
                let fields = fields(stanza);
                let (name, depends) = (fields.get("Package")?, fields.get("Depends")?);
                seen.insert(name.clone()).then(|| (words(&fields, name), dependencies(depends)))
            })
            .collect();
        // The order of an index tells who depends on whom: it is lost here.
        packages.sort();
        let vocabulary = numbered(packages.iter().map(|(words, _)| words.iter().collect()), WORD);
        let labels = numbered(packages.iter().map(|(_, labels)| labels.iter().collect()), LABEL);
        let count = packages.len() as f64;
        let lines = packages.iter().filter_map(|package| line(package, &vocabulary, &labels, count));
        let lines: Vec<String> = lines.collect();
        match lines.len() {
            0 | 1 => Err(Error::Packages(packages.len())),
            _ => Ok(Self { lines, features: vocabulary.len(), labels: labels.len() }),
        }
    }

    /// Packages that have features and labels.
    pub fn packages(&self) -> usize {
        self.lines.len()
    }

    /// Words.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Packages that others depend on.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Writes four fifths of the packages, in an order that depends on the seed alone, to `train` and the rest to `test`, in the
    /// format of the extreme classification repository.
    ///
    /// # Errors
    /// What `train` and `test` say.
    pub fn write(&self, seed: u64, train: &mut dyn Write, test: &mut dyn Write) -> io::Result<()> {
        let mut lines: Vec<&String> = self.lines.iter().collect();
        lines.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let (first, rest) = lines.split_at((lines.len() * 4 / 5).max(1));
        let write = |lines: &[&String], to: &mut dyn Write| {
            let mut to = BufWriter::new(to);
            writeln!(to, "{} {} {}", lines.len(), self.features, self.labels)?;
            lines.iter().try_for_each(|line| writeln!(to, "{line}"))?;
            to.flush()
        };
        write(first, train)?;
        write(rest, test)
    }
}

/// The fields of a stanza; lines that begin with a space belong to the field before.
fn fields(stanza: &str) -> HashMap<&str, String> {
    let mut fields: HashMap<&str, String> = HashMap::new();
    let mut last = None;
    for line in stanza.lines() {
        match (line.starts_with([' ', '\t']), line.split_once(':')) {
            (true, _) => {
                let Some(field) = last.and_then(|last| fields.get_mut(last)) else { continue };
                field.push(' ');
                field.push_str(line.trim());
            }
            (false, Some((name, value))) => {
                fields.insert(name, value.trim().into());
                last = Some(name);
            }
            (false, None) => {}
        }
    }
    fields
}

/// All words of a package, small; parts of its name are words.
fn words(fields: &HashMap<&str, String>, name: &str) -> Vec<String> {
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let text = [
        &name.replace('-', " "),
        field("Description"),
        field("Description-en"),
        field("Section"),
        &field("Tag").replace(',', " "),
    ];
    let (text, mut words) = (text.join(" ").to_lowercase(), Vec::new());
    let mut rest = text.as_bytes();
    while let Some(start) = rest.iter().position(u8::is_ascii_lowercase) {
        rest = &rest[start..];
        let is_inside =
            |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+.-".contains(byte);
        let length = rest.iter().take(LONGEST).take_while(|byte| is_inside(byte)).count();
        if length > 1 {
            words.push(String::from_utf8_lossy(&rest[..length]).into_owned());
        }
        rest = &rest[length..];
    }
    words
}

/// The packages of a field `a (>= 1), b | c [amd64]`, in the order of their names.
fn dependencies(field: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim();
        let end = text.find(|c: char| c.is_whitespace() || "([:<".contains(c));
        text[..end.unwrap_or(text.len())].to_string()
    };
    let names: BTreeSet<String> = field.split([',', '|']).map(name).filter(|name| !name.is_empty()).collect();
    names.into_iter().collect()
}

/// Those that as many packages have, and how many, numbered in their order.
fn numbered<'a>(
    of_packages: impl Iterator<Item = BTreeSet<&'a String>>,
    least: usize,
) -> BTreeMap<&'a str, (usize, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for names in of_packages {
        names.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    }
    let often = counts.into_iter().filter(|(_, count)| *count >= least);
    often.enumerate().map(|(number, (name, count))| (name, (number, count))).collect()
}

/// A package's line; `None` if it has no feature or no label.
fn line(
    (words, depends): &Package,
    vocabulary: &BTreeMap<&str, (usize, usize)>,
    labels: &BTreeMap<&str, (usize, usize)>,
    packages: f64,
) -> Option<String> {
    let labels: Vec<String> =
        depends.iter().filter_map(|name| Some(labels.get(&name[..])?.0.to_string())).collect();
    let mut counts: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (number, packages) in words.iter().filter_map(|word| vocabulary.get(&word[..])) {
        counts.entry(*number).or_insert((0, *packages)).0 += 1;
    }
    if labels.is_empty() || counts.is_empty() {
        return None;
    }
    let weights = counts.into_iter().map(|(number, (count, with_it))| {
        (number, (1.0 + (count as f64).ln()) * (packages / with_it as f64).ln())
    });
    let weights: Vec<(usize, f64)> = weights.collect();
    let norm = weights.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
    let norm = if norm > 0.0 { norm } else { 1.0 };
    let words: Vec<String> =
        weights.iter().map(|(number, weight)| format!("{number}:{:.5}", weight / norm)).collect();
    Some(format!("{} {}", labels.join(","), words.join(" ")))
}
