use crate::Error;
use half::{bf16, f16};
use sha2::{Digest, Sha256};
use srigl_tensors::{Dtype, Index, Place, hex, memory, regular};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes that a header has at most.
const HEADER: usize = 1 << 20;
/// Name of the tensor, if there are several.
const NAME: &str = "features";

/// Dense features `[points, columns]` in a safetensors file that stays open: rows are read when they are needed.
#[derive(Debug)]
pub(crate) struct Dense {
    path: PathBuf,
    file: Mutex<File>,
    dtype: Dtype,
    /// Where the numbers begin.
    start: u64,
    pub rows: usize,
    pub columns: usize,
    /// Of all numbers.
    pub sha256: String,
}

impl Dense {
    /// Opens a file and checks all numbers. `progress` is told how many bytes have been read.
    pub fn open(path: &Path, mut progress: impl FnMut(u64)) -> Result<Self, Error> {
        let wrong = |what: String| Error::Model { path: path.into(), what };
        let failed = |cause| Error::Read { path: path.into(), cause };
        let (file, size) = regular::open(path).map_err(failed)?;
        let index = Index::read(BufReader::new(&file), usize::try_from(size).unwrap_or(usize::MAX), HEADER);
        let index = index.map_err(|refused| wrong(refused.to_string()))?;
        let place = match (index.tensors.get(NAME), index.tensors.len()) {
            (Some(place), _) => place.clone(),
            (None, 1) => index.tensors.into_values().next().expect("one"),
            (None, count) => return Err(wrong(format!("{count} tensors, of which none is called `{NAME}`"))),
        };
        let Place { dtype, shape, bytes } = place;
        let &[rows, columns] = &shape[..] else {
            return Err(wrong(format!("features of the shape {shape:?}, not [points, features]")));
        };
        if rows == 0 || columns == 0 || rows > u32::MAX as usize || columns > u32::MAX as usize {
            return Err(wrong(format!(
                "features of the shape {shape:?}: there must be some, and at most 2^32 - 1"
            )));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(wrong(format!("features of the type {dtype}, not F32, F16 or BF16")));
        }
        let (path, start) = (path.to_path_buf(), bytes.start as u64);
        let mut from = BufReader::new(file.try_clone().map_err(failed)?);
        let mut dense = Self { path, file: file.into(), dtype, start, rows, columns, sha256: String::new() };
        let (mut sha, mut row, mut numbers) = (Sha256::new(), dense.row()?, Vec::new());
        sha.update((columns as u64).to_le_bytes());
        from.seek(SeekFrom::Start(start)).map_err(failed)?;
        for number in 0..rows {
            from.read_exact(&mut row).map_err(failed)?;
            sha.update(&row);
            numbers.clear();
            dense.numbers(&row, &mut numbers);
            if let Some(column) = numbers.iter().position(|value| !value.is_finite()) {
                return Err(wrong(format!(
                    "row {number}, column {column} has the value {}",
                    numbers[column]
                )));
            }
            if number % 1000 == 0 {
                progress((number * row.len()) as u64);
            }
        }
        dense.sha256 = hex(&sha.finalize());
        Ok(dense)
    }

    /// Room for the bytes of a row.
    fn row(&self) -> Result<Vec<u8>, Error> {
        let room = memory::filled(0, self.columns.saturating_mul(self.dtype.bitsize() / 8));
        room.map_err(|cause| Error::Memory { what: "the features of a point", cause })
    }

    /// Appends the numbers of a row.
    fn numbers(&self, row: &[u8], to: &mut Vec<f32>) {
        match self.dtype {
            Dtype::F32 => to.extend(row.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Dtype::F16 => {
                to.extend(row.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()))
            }
            _ => to.extend(row.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
        }
    }

    /// Appends the features of some points, one after the other.
    pub fn read(&self, points: &[usize], to: &mut Vec<f32>) -> Result<(), Error> {
        let mut row = self.row()?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for point in points {
            let at = self.start + *point as u64 * row.len() as u64;
            let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut row));
            read.map_err(|cause| Error::Read { path: self.path.clone(), cause })?;
            self.numbers(&row, to);
        }
        Ok(())
    }
}
