//! The safetensors format: the length of a header (8 bytes, little-endian), the header (JSON), the data.
//!
//! Read here rather than by the crate `safetensors`: that takes the last of two tensors with one name, and adds offsets
//! before it has compared them with the size of the file. Written here, since that holds all data in memory twice and
//! orders the metadata differently on each run.
//!
//! ```
//! use srigl_tensors::{Dtype, RawTensor, TensorFile};
//!
//! let mut file = TensorFile::default();
//! let data = 1.5_f32.to_le_bytes().to_vec();
//! file.tensors.insert("x".into(), RawTensor { dtype: Dtype::F32, shape: vec![1], data: data.into() });
//! let mut bytes = Vec::new();
//! file.write(1 << 20, &mut bytes)?;
//! assert_eq!(TensorFile::parse(&bytes, 1 << 20), Ok(file));
//! assert!(TensorFile::parse(&bytes[..9], 1 << 20).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod atomic;
pub mod memory;
pub mod regular;

use memory::TooLarge;
pub use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;

/// Bytes that hold the length of the header, at the start of a file.
const LENGTH_BYTES: usize = 8;

/// One tensor: the bytes of the file, or bytes of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor<'a> {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its numbers, little-endian.
    pub data: Cow<'a, [u8]>,
}

/// What a file consists of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile<'a> {
    /// `__metadata__`, if there is one.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, RawTensor<'a>>,
}

/// Where the tensors of a file lie: its header alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    /// `__metadata__`, if there is one.
    pub metadata: Option<BTreeMap<String, String>>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Place>,
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file.
    pub bytes: Range<usize>,
}

/// Why a file was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// What is wrong with it, in words without control characters.
    Damaged(String),
    /// It may be whole, but there is no memory for its header.
    TooLarge(TooLarge),
    /// It may be whole, but cannot be read.
    Unreadable(io::ErrorKind),
}

impl From<TooLarge> for Refused {
    fn from(cause: TooLarge) -> Self {
        Self::TooLarge(cause)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what) => f.write_str(what),
            Self::TooLarge(cause) => cause.fmt(f),
            Self::Unreadable(cause) => cause.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

impl Index {
    /// Reads the header of a file of `size` bytes, and checks that the tensors fill its rest one after the other. Nothing
    /// is allocated for a header longer than `max_header` bytes, or than the file.
    ///
    /// # Errors
    /// [`Refused::Damaged`] with what is wrong with the file, [`Refused::TooLarge`] if there is no memory for its header,
    /// [`Refused::Unreadable`] if `from` fails.
    pub fn read(mut from: impl Read, size: usize, max_header: usize) -> Result<Self, Refused> {
        let mut length = [0; LENGTH_BYTES];
        let damaged = |what| Err(Refused::Damaged(what));
        let unread = |cause: io::Error| match cause.kind() {
            io::ErrorKind::UnexpectedEof => Refused::Damaged("it ends within its header".into()),
            kind => Refused::Unreadable(kind),
        };
        let Some(rest) = size.checked_sub(LENGTH_BYTES) else {
            return damaged("it has less than 8 bytes".into());
        };
        from.read_exact(&mut length).map_err(unread)?;
        let length = u64::from_le_bytes(length);
        if length > max_header as u64 {
            return damaged(format!("a header of {length} bytes, more than {max_header}"));
        }
        if length > rest as u64 {
            return damaged(format!("a header of {length} bytes, but only {rest} follow"));
        }
        let (length, data) = (length as usize, rest - length as usize);
        let mut header = memory::filled(0, length)?;
        from.read_exact(&mut header).map_err(unread)?;
        let header: Header = serde_json::from_slice(&header).map_err(|e| Refused::Damaged(printable(&e)))?;

        let mut ordered: Vec<(String, TensorInfo)> = header.tensors.into_iter().collect();
        ordered.sort_by_key(|(_, info)| info.data_offsets);
        let (mut tensors, mut at) = (BTreeMap::new(), 0);
        for (name, info) in ordered {
            let (start, end) = info.data_offsets;
            let wrong = |what: String| damaged(printable(&format!("tensor `{name}` {what}")));
            if start != at {
                return wrong(format!("starts at {start}, but the one before ends at {at}"));
            }
            if end < start || end > data {
                return wrong(format!("lies at {start} to {end}, but the data has {data} bytes"));
            }
            let count = info.shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
            let bits = count.and_then(|count| count.checked_mul(info.dtype.bitsize()));
            if bits.is_none_or(|bits| (end - start).checked_mul(8) != Some(bits)) {
                return wrong(format!("has {} bytes for {} {:?}", end - start, info.dtype, info.shape));
            }
            at = end;
            let first = LENGTH_BYTES + length;
            let bytes = first + start..first + end;
            tensors.insert(name, Place { dtype: info.dtype, shape: info.shape, bytes });
        }
        if at != data {
            return damaged(format!("{} bytes follow the last tensor", data - at));
        }
        Ok(Self { metadata: header.metadata, tensors })
    }
}

impl<'a> TensorFile<'a> {
    /// Reads a whole file, as [`Index::read`] does its header.
    ///
    /// # Errors
    /// As [`Index::read`].
    pub fn parse(bytes: &'a [u8], max_header: usize) -> Result<Self, Refused> {
        let index = Index::read(bytes, bytes.len(), max_header)?;
        let tensor = |(name, place): (String, Place)| {
            let data = Cow::Borrowed(&bytes[place.bytes]);
            (name, RawTensor { dtype: place.dtype, shape: place.shape, data })
        };
        let tensors = index.tensors.into_iter().map(tensor).collect();
        Ok(Self { metadata: index.metadata, tensors })
    }

    /// Writes the file. The same tensors give the same bytes, wide types first, so that every tensor is aligned.
    ///
    /// # Errors
    /// If `to` cannot be written, or the header would be longer than `max_header` bytes.
    pub fn write(&self, max_header: usize, to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let tensors = self.tensors.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice()));
        let order = write_header(self.metadata.as_ref(), tensors, max_header, to)?;
        order.iter().try_for_each(|name| to.write_all(&self.tensors[*name].data))
    }
}

/// Writes the start of a file with these tensors (name, type, dimensions), and returns their names in the order in which
/// their data must follow: wide types first, so that every tensor is aligned.
///
/// # Errors
/// If `to` cannot be written, the header would be longer than `max_header` bytes, or a size more than a number holds.
pub fn write_header<'t>(
    metadata: Option<&BTreeMap<String, String>>,
    tensors: impl IntoIterator<Item = (&'t str, Dtype, &'t [usize])>,
    max_header: usize,
    to: &mut (impl Write + ?Sized),
) -> io::Result<Vec<&'t str>> {
    let mut ordered: Vec<_> = tensors.into_iter().collect();
    ordered.sort_by_key(|(name, dtype, _)| (Reverse(*dtype), *name));
    let (mut infos, mut end) = (BTreeMap::new(), 0);
    for (name, dtype, shape) in &ordered {
        let start = end;
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &dim| bits.checked_mul(dim));
        let too_large = || io::Error::other(format!("tensor `{}` is too large", printable(name)));
        end = bits.and_then(|bits| (bits / 8).checked_add(start)).ok_or_else(too_large)?;
        let info = TensorInfo { dtype: *dtype, shape: shape.to_vec(), data_offsets: (start, end) };
        infos.insert(name.to_string(), info);
    }
    let mut header = serde_json::to_vec(&Header { metadata: metadata.cloned(), tensors: infos })?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    if header.len() > max_header {
        let long = format!("its header would have {} bytes, more than {max_header}", header.len());
        return Err(io::Error::other(long));
    }
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    Ok(ordered.into_iter().map(|(name, ..)| name).collect())
}

/// Text whose control characters, and those that change the direction of writing, are escapes such as `\u{1b}`: nothing that
/// a file or a name says may steer the terminal.
///
/// ```
/// assert_eq!(srigl_tensors::printable(&"a\u{1b}[31m\u{202e}ä"), "a\\u{1b}[31m\\u{202e}ä");
/// ```
pub fn printable(text: &dyn fmt::Display) -> String {
    let is_odd = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        c.is_control() || turns
    };
    let mut shown = String::new();
    for c in text.to_string().chars() {
        match is_odd(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Says something on standard error. Nobody needs to be there to read it: unlike `eprintln!`, it does not panic then.
pub fn say(text: &dyn fmt::Display) {
    _ = writeln!(io::stderr(), "{text}");
}

/// Bytes as hexadecimal digits, two each.
///
/// ```
/// assert_eq!(srigl_tensors::hex(&[0, 0x1f, 255]), "001fff");
/// ```
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The JSON at the start of a file.
#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads a header that names nothing twice. Most readers take the last one silently.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut metadata, mut tensors) = (None, BTreeMap::new());
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == "__metadata__" {
                metadata.replace(map.next_value::<Distinct>()?.0).is_some()
            } else {
                tensors.insert(name.clone(), map.next_value()?).is_some()
            };
            if twice {
                return Err(de::Error::custom(format!("tensor `{name}` is there twice")));
            }
        }
        Ok(Header { metadata, tensors })
    }
}

/// Texts by distinct keys.
struct Distinct(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("metadata: texts by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.insert(key.clone(), value).is_some() {
                        return Err(de::Error::custom(format!("metadata `{key}` is there twice")));
                    }
                }
                Ok(Distinct(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
