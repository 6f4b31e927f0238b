//! Points of the extreme classification repository's text format.

use crate::dense::Dense;
use crate::{Error, LineError};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use srigl_tensors::{hex, memory, regular};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The longest line that is read.
const LINE: u64 = 64 << 20;

/// Points with sparse features and labels.
///
/// The format of the extreme classification repository: a line `points features labels`, then one `l1,l2 f:v f:v …` for each point;
/// labels and features count from 0. Every line is checked when it is read, and goes to a temporary file without a name, from which
/// batches are taken; in memory there are eight bytes for each point, and four for each label up to the last that is there. A file that begins as gzip's do is unpacked.
///
/// ```
/// use srigl_xmc::Points;
///
/// let file = tempfile::NamedTempFile::new()?;
/// std::fs::write(file.path(), "2 5 3\n0,2 1:0.5 4:1\n1 0:2\n")?;
/// let points = Points::read(file.path(), |_| {})?;
/// let batch = points.batch(&[1, 0])?;
/// assert_eq!((batch.labels(1), batch.features(1)), (&[0, 2][..], (&[1, 4][..], &[0.5, 1.0][..])));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Points {
    file: Mutex<File>,
    /// Where each point ends in the file.
    ends: Vec<u64>,
    features: usize,
    labels: usize,
    /// Points that have each label, up to the last that any has.
    counts: Vec<u32>,
    /// Of all of it.
    sha256: String,
    /// Features that lie elsewhere.
    dense: Option<Dense>,
}

/// Some points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    labels: Vec<u32>,
    features: Vec<u32>,
    values: Vec<f32>,
    /// Where the labels and features of each point end.
    ends: Vec<[usize; 2]>,
}

impl Points {
    /// Reads a file. `progress` is told how many bytes of it have been read, now and then.
    ///
    /// # Errors
    /// [`Error::Read`] if it is no regular file or cannot be read; [`Error::Line`] says where and what is wrong; [`Error::Spool`] if
    /// there is no place for a temporary file.
    pub fn read(path: &Path, progress: impl FnMut(u64)) -> Result<Self, Error> {
        Self::read_any(path, true, None, progress)
    }

    /// Reads points whose features are dense: the lines have labels alone, and a safetensors file has a tensor `[points, features]` of
    /// F32, F16 or BF16, its only one or that called `features`. It is checked, and stays open: batches are taken from it.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::Model`] if `features` is not such a file or one of other points.
    pub fn read_dense(path: &Path, features: &Path, mut progress: impl FnMut(u64)) -> Result<Self, Error> {
        let dense = Dense::open(features, &mut progress)?;
        let points = Self::read_any(path, true, Some(dense.columns), progress)?;
        if points.len() != dense.rows {
            let what = format!("{} rows for {} points of `{}`", dense.rows, points.len(), path.display());
            return Err(Error::Model { path: features.into(), what });
        }
        let sha256 = format!("{} {}", points.sha256, dense.sha256);
        Ok(Self { sha256: hex(&Sha256::digest(sha256)), dense: Some(dense), ..points })
    }

    /// Dense features alone, of points that are to be predicted.
    ///
    /// # Errors
    /// As [`read_dense`](Self::read_dense).
    pub fn read_unlabelled_dense(features: &Path, progress: impl FnMut(u64)) -> Result<Self, Error> {
        let dense = Dense::open(features, progress)?;
        let mut file = tempfile::tempfile().map_err(Error::Spool)?;
        let mut point = Batch::default();
        point.ends.push([0, 0]);
        let bytes = point.bytes();
        let room = memory::check(memory::product(&[dense.rows, 3, size_of::<u64>()]));
        room.map_err(|cause| Error::Memory { what: "the places of so many points", cause })?;
        // Where a point lies without labels, all do.
        file.write_all(&bytes).map_err(Error::Spool)?;
        let ends = vec![bytes.len() as u64; dense.rows];
        let (sha256, features) = (dense.sha256.clone(), dense.columns);
        Ok(Self {
            file: file.into(),
            ends,
            features,
            labels: 0,
            counts: Vec::new(),
            sha256,
            dense: Some(dense),
        })
    }

    /// The same for points that are to be predicted: they may have no labels, and their lines begin with a space then, or with a
    /// feature.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_unlabelled(path: &Path, progress: impl FnMut(u64)) -> Result<Self, Error> {
        Self::read_any(path, false, None, progress)
    }

    fn read_any(
        path: &Path,
        with_labels: bool,
        dense: Option<usize>,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, Error> {
        let failed = |cause| Error::Read { path: path.into(), cause };
        let (file, _) = regular::open(path).map_err(failed)?;
        let mut file = BufReader::new(file);
        let is_gzip = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        let read = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = Counted { inner: file, read: read.clone() };
        let mut lines: Box<dyn BufRead> = match is_gzip {
            true => Box::new(BufReader::new(MultiGzDecoder::new(counted))),
            false => Box::new(BufReader::new(counted)),
        };
        let mut line = Vec::new();
        let mut number = 0;
        let mut next = |line: &mut Vec<u8>, number: &mut u64| {
            line.clear();
            *number += 1;
            let length = (&mut lines).take(LINE).read_until(b'\n', line).map_err(failed)?;
            if length as u64 == LINE && line.last() != Some(&b'\n') {
                return Err(Error::Line { path: path.into(), line: *number, what: LineError::Length(LINE) });
            }
            if number.is_multiple_of(1000) {
                progress(read.get());
            }
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            Ok(length > 0)
        };
        next(&mut line, &mut number)?;
        let wrong = |line: u64, what| Error::Line { path: path.into(), line, what };
        let [count, features, labels] = header(&line).map_err(|what| wrong(number, what))?;
        if let Some(columns) = dense.filter(|columns| *columns as u64 != features) {
            return Err(wrong(number, LineError::DenseFeatures { features, columns }));
        }

        let mut points = Self {
            file: tempfile::tempfile().map_err(Error::Spool)?.into(),
            ends: Vec::new(),
            features: features as usize,
            labels: labels as usize,
            counts: Vec::new(),
            sha256: String::new(),
            dense: None,
        };
        let mut to = BufWriter::new(points.file.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut sha = Sha256::new();
        [features, labels].iter().for_each(|size| sha.update(size.to_le_bytes()));
        let (mut point, mut end) = (Batch::default(), 0);
        while next(&mut line, &mut number)? {
            // Empty lines at the end are no points.
            if line.is_empty() && points.ends.len() as u64 == count {
                continue;
            }
            if points.ends.len() as u64 == count {
                return Err(wrong(number, LineError::Long(count)));
            }
            point.clear();
            point.parse(&line, [features, labels], with_labels).map_err(|what| wrong(number, what))?;
            if dense.is_some() && !point.features.is_empty() {
                return Err(wrong(number, LineError::BothFeatures));
            }
            for label in &point.labels {
                let label = *label as usize;
                if label >= points.counts.len() {
                    let cause = memory::check(memory::product(&[label + 1, 2, size_of::<u32>()]));
                    cause.map_err(|cause| Error::Memory { what: "counts of labels", cause })?;
                    points.counts.resize(label + 1, 0);
                }
                points.counts[label] += 1;
            }
            let bytes = point.bytes();
            sha.update(&bytes);
            to.write_all(&bytes).map_err(Error::Spool)?;
            end += bytes.len() as u64;
            if points.ends.len() == points.ends.capacity() {
                // It doubles, and the order of points takes half as much again.
                let room = memory::check(memory::product(&[points.ends.len(), 3, size_of::<u64>()]));
                room.map_err(|cause| Error::Memory { what: "the places of so many points", cause })?;
            }
            points.ends.push(end);
        }
        if (points.ends.len() as u64) < count {
            let got = points.ends.len() as u64;
            return Err(wrong(number, LineError::Short { got, expected: count }));
        }
        to.flush().map_err(Error::Spool)?;
        drop(to);
        points.sha256 = hex(&sha.finalize());
        Ok(points)
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Features that points may have.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Whether every point has all features.
    pub fn is_dense(&self) -> bool {
        self.dense.is_some()
    }

    /// Labels that points may have.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// SHA-256 of sizes, labels, features and values, in hexadecimal digits: the same for the same points, packed or not.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// How many points have each label, `[labels]`.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for as many as the file says there are.
    pub fn label_counts(&self) -> Result<Vec<u32>, Error> {
        let counts = memory::filled(0, self.labels);
        let mut counts = counts.map_err(|cause| Error::Memory { what: "counts of labels", cause })?;
        counts[..self.counts.len()].copy_from_slice(&self.counts);
        Ok(counts)
    }

    /// Where a point lies in the file.
    fn place(&self, point: usize) -> Range<u64> {
        let end = self.ends[point];
        match self.labels {
            0 => 0..end,
            _ => point.checked_sub(1).map_or(0, |before| self.ends[before])..end,
        }
    }

    /// These points.
    ///
    /// # Errors
    /// [`Error::Spool`] if they cannot be read back, [`Error::Memory`] if they take more than the [budget](memory::limit).
    ///
    /// # Panics
    /// If there is no such point.
    pub fn batch(&self, points: &[usize]) -> Result<Batch, Error> {
        self.read_back(points, self.dense.as_ref())
    }

    /// These points with their labels; dense features are not read.
    pub(crate) fn labels_of(&self, points: &[usize]) -> Result<Batch, Error> {
        self.read_back(points, None)
    }

    fn read_back(&self, points: &[usize], dense: Option<&Dense>) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let (mut file, mut bytes) = (self.file.lock().unwrap_or_else(PoisonError::into_inner), Vec::new());
        // As it is here, and while it is sorted by feature and by label.
        let mut sizes = points.iter().map(|point| self.place(*point)).map(|place| place.end - place.start);
        let of_dense = dense.and_then(|dense| memory::product(&[points.len(), dense.columns, 8]));
        let room = sizes.try_fold(of_dense.unwrap_or_default(), u64::checked_add);
        memory::check(room.and_then(|room| room.checked_mul(4)))
            .map_err(|cause| Error::Memory { what: "a batch of these points; take a smaller one", cause })?;
        for point in points {
            let place = self.place(*point);
            bytes.resize((place.end - place.start) as usize, 0);
            file.seek(SeekFrom::Start(place.start)).map_err(Error::Spool)?;
            file.read_exact(&mut bytes).map_err(Error::Spool)?;
            batch.push(&bytes);
        }
        if let Some(dense) = dense {
            dense.read(points, &mut batch.values)?;
            for (point, end) in (1..).zip(&mut batch.ends) {
                batch.features.extend(0..dense.columns as u32);
                end[1] = point * dense.columns;
            }
        }
        Ok(batch)
    }
}

impl Batch {
    /// How many points there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn start(&self, point: usize) -> [usize; 2] {
        point.checked_sub(1).map_or([0, 0], |before| self.ends[before])
    }

    /// Labels of a point, ascending.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn labels(&self, point: usize) -> &[u32] {
        &self.labels[self.start(point)[0]..self.ends[point][0]]
    }

    /// Features of a point, ascending, and their values.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn features(&self, point: usize) -> (&[u32], &[f32]) {
        let here = self.start(point)[1]..self.ends[point][1];
        (&self.features[here.clone()], &self.values[here])
    }

    fn clear(&mut self) {
        self.labels.clear();
        self.features.clear();
        self.values.clear();
        self.ends.clear();
    }

    /// Adds a point that a line says. What a line says twice counts once, and values of a feature add up.
    fn parse(
        &mut self,
        line: &[u8],
        [features, labels]: [u64; 2],
        with_labels: bool,
    ) -> Result<(), LineError> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let mut words = line.split(u8::is_ascii_whitespace).peekable();
        let first = words.next_if(|word| !word.contains(&b':')).unwrap_or_default();
        if first.is_empty() && with_labels {
            return Err(LineError::NoLabels);
        }
        let mut found = Vec::new();
        for word in first.split(|byte| *byte == b',').filter(|_| !first.is_empty()) {
            let label = number(word).ok_or_else(|| LineError::Label(text(word)))?;
            if label >= labels {
                return Err(LineError::LabelRange { label, labels: labels as usize });
            }
            found.push(label as u32);
        }
        found.sort_unstable();
        found.dedup();
        let mut pairs: Vec<(u32, f32)> = Vec::new();
        for word in words.filter(|word| !word.is_empty()) {
            let wrong = || LineError::Feature(text(word));
            let colon = word.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
            let (feature, value) = (&word[..colon], std::str::from_utf8(&word[colon + 1..]).ok());
            let feature = number(feature).ok_or_else(wrong)?;
            let value: f32 = value.and_then(|value| value.parse().ok()).ok_or_else(wrong)?;
            if feature >= features {
                return Err(LineError::FeatureRange { feature, features: features as usize });
            }
            if !value.is_finite() {
                return Err(LineError::NotFinite { feature, value });
            }
            pairs.push((feature as u32, value));
        }
        pairs.sort_by_key(|(feature, _)| *feature);
        pairs.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            earlier.1 += if is_same { later.1 } else { 0.0 };
            is_same
        });
        if let Some((feature, value)) = pairs.iter().find(|(_, value)| !value.is_finite()) {
            return Err(LineError::NotFinite { feature: u64::from(*feature), value: *value });
        }
        self.labels.extend(found);
        self.features.extend(pairs.iter().map(|(feature, _)| *feature));
        self.values.extend(pairs.iter().map(|(_, value)| *value));
        self.ends.push([self.labels.len(), self.features.len()]);
        Ok(())
    }

    /// Its only point: how many labels, then labels, features and values.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 4 * self.labels.len() + 8 * self.features.len());
        let numbers = [self.labels.len() as u32].into_iter().chain(self.labels.iter().copied());
        let numbers = numbers.chain(self.features.iter().copied());
        numbers
            .chain(self.values.iter().map(|value| value.to_bits()))
            .for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }

    /// Adds a point as it was written.
    fn push(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        let mut numbers = words.iter().map(|word| u32::from_le_bytes(*word));
        let labels = numbers.next().unwrap_or_default() as usize;
        let features = (words.len() - 1 - labels) / 2;
        self.labels.extend(numbers.by_ref().take(labels));
        self.features.extend(numbers.by_ref().take(features));
        self.values.extend(numbers.map(f32::from_bits));
        self.ends.push([self.labels.len(), self.features.len()]);
    }
}

/// A whole number in digits alone.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Points, features and labels.
fn header(line: &[u8]) -> Result<[u64; 3], LineError> {
    let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let words = <[&[u8]; 3]>::try_from(words).map_err(|_| LineError::Header)?;
    let mut numbers = [0; 3];
    for ((to, word), what) in numbers.iter_mut().zip(words).zip(["points", "features", "labels"]) {
        *to = number(word).ok_or(LineError::Header)?;
        if *to == 0 {
            return Err(LineError::Empty(what));
        }
        if *to > u64::from(u32::MAX) {
            return Err(LineError::TooMany(what));
        }
    }
    Ok(numbers)
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    read: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}
