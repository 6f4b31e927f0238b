//! One tensor of a file. Its numbers stay there until they are asked for.

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use srigl_tensors::memory;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, mpsc};

/// The types that hold weights and gradients. They are computed with as F32, and written back as they were.
pub(crate) const FLOATS: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];

/// Bytes of a file that are looked at at a time; a multiple of every type's size.
const CHUNK: usize = 1 << 22;

/// Type, dimensions and, when they are asked for, numbers of a tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    pub(crate) data: Data,
}

/// Where the numbers are.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// In memory, little-endian.
    Bytes(Vec<u8>),
    /// In a part of a file.
    File { file: Arc<Mutex<File>>, bytes: Range<usize> },
    /// In a file of PyTorch's.
    PyTorch(Arc<pytorch_reader::Tensor>),
    /// Those of a tensor where a mask of the same shape is not 0, else 0.
    Masked { values: Box<Tensor>, mask: Box<Tensor> },
    /// A byte each for the numbers of a mask of any type.
    Bits(Box<Tensor>),
}

impl Tensor {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the numbers are floating-point numbers that weights may be.
    pub fn is_float(&self) -> bool {
        FLOATS.contains(&self.dtype)
    }

    /// How many bytes the numbers take.
    pub fn size(&self) -> u64 {
        self.len() as u64 * self.dtype.bitsize() as u64 / 8
    }

    /// The numbers, little-endian.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter, or the numbers take more memory than the [budget](memory).
    pub fn bytes(&self) -> io::Result<Cow<'_, [u8]>> {
        memory::check(Some(self.size())).map_err(io::Error::other)?;
        Ok(match &self.data {
            Data::Bytes(bytes) => Cow::Borrowed(bytes),
            Data::File { bytes, .. } => {
                let mut all = memory::with_capacity(bytes.len()).map_err(io::Error::other)?;
                self.chunks(&mut |chunk| {
                    all.extend_from_slice(chunk);
                    Ok(())
                })?;
                Cow::Owned(all)
            }
            Data::PyTorch(tensor) => Cow::Owned(tensor.read()?),
            Data::Masked { values, mask } => {
                let mut bytes = values.bytes()?.into_owned();
                zero_inactive(&mut bytes, values.dtype, &mask.zeros_and_ones()?);
                Cow::Owned(bytes)
            }
            Data::Bits(tensor) => Cow::Owned(tensor.zeros_and_ones()?),
        })
    }

    /// Hands over the numbers piece by piece, so that memory does not grow with the tensor where they lie in a file. The
    /// next pieces are read meanwhile.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), or what `each` returns.
    pub fn chunks(&self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Data::File { file, bytes } = &self.data else { return each(&self.bytes()?) };
        let read = |start: usize| {
            let mut chunk = vec![0; CHUNK.min(bytes.end - start)];
            let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            file.seek(SeekFrom::Start(start as u64))?;
            file.read_exact(&mut chunk)?;
            Ok(chunk)
        };
        if bytes.len() <= CHUNK {
            return if bytes.is_empty() { Ok(()) } else { each(&read(bytes.start)?) };
        }
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::sync_channel::<io::Result<Vec<u8>>>(2);
            scope.spawn(move || {
                // Nobody receives any more once something has failed.
                bytes.clone().step_by(CHUNK).map(read).try_for_each(|chunk| send.send(chunk)).ok();
            });
            receive.into_iter().try_for_each(|chunk| each(&chunk?))
        })
    }

    /// The numbers as F32; `None` if they are no floats.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn floats(&self) -> io::Result<Option<Vec<f32>>> {
        if !self.is_float() {
            return Ok(None);
        }
        let bytes = self.bytes()?;
        memory::check(memory::product(&[self.len(), size_of::<f32>()])).map_err(io::Error::other)?;
        Ok(match self.dtype {
            Dtype::F32 => Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Some(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => {
                Some(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect())
            }
            Dtype::F64 => Some(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
            _ => None,
        })
    }

    /// The numbers of a mask, whatever their type, as bytes 0 and 1.
    fn zeros_and_ones(&self) -> io::Result<Vec<u8>> {
        let numbers = match self.floats()? {
            Some(floats) => floats,
            None if matches!(self.dtype, Dtype::U8 | Dtype::BOOL) => {
                self.bytes()?.iter().map(|byte| f32::from(*byte)).collect()
            }
            None => return Err(invalid(format!("a mask is {}, but must be U8, BOOL or floats", self.dtype))),
        };
        match numbers.iter().position(|number| *number != 0.0 && *number != 1.0) {
            Some(i) => {
                Err(invalid(format!("a mask has {} at position {i}; only 0 and 1 may be", numbers[i])))
            }
            None => Ok(numbers.into_iter().map(|number| number as u8).collect()),
        }
    }
}

/// Makes the numbers 0 that a mask of as many bytes has 0 for.
pub(crate) fn zero_inactive(bytes: &mut [u8], dtype: Dtype, active: &[u8]) {
    let size = (dtype.bitsize() / 8).max(1);
    let inactive = bytes.chunks_exact_mut(size).zip(active).filter(|(_, active)| **active == 0);
    inactive.for_each(|(number, _)| number.fill(0));
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// F32 numbers as bytes of another of the [`FLOATS`], rounded to the nearest.
pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
