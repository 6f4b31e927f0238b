//! Python's pickle format, as far as the files of CIFAR need it: dictionaries, lists, numbers, texts, and numpy
//! arrays of bytes.
//!
//! A pickle is a program for a machine with a stack. Nothing it names is called: the few functions that numpy's
//! arrays need are known here by name, any other is an error, as is any other instruction. Values are numbered and
//! refer to each other by number, so none is copied, and there are [`MAX_VALUES`] at most; texts and arrays are
//! parts of the file. So what a file takes is bounded by its size and that number.

use std::borrow::Cow;
use std::collections::HashMap;

use srigl_tensors::printable;

/// The most values that a file may hold; CIFAR-100 has 150 000.
pub const MAX_VALUES: usize = 1 << 20;

/// What can be wrong with a pickle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It ends before it is complete.
    #[error("it is cut short")]
    Ends,
    /// It has an instruction that numbers, texts and arrays do not need.
    #[error("byte {at} is instruction {opcode:#04x}, which is not read")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Where it is.
        at: usize,
    },
    /// It calls what is no known part of an array.
    #[error("byte {at} calls `{}`, which is not read", printable(name))]
    Call {
        /// Module and name.
        name: String,
        /// Where it is.
        at: usize,
    },
    /// An instruction finds something else than it needs.
    #[error("instruction {opcode:#04x} at byte {at} does not fit what is before it")]
    Operands {
        /// The instruction.
        opcode: u8,
        /// Where it is.
        at: usize,
    },
    /// It holds too many values.
    #[error("it holds more than {MAX_VALUES} values")]
    TooMany,
    /// It holds something else than a dictionary.
    #[error("it holds no dictionary")]
    NoDictionary,
    /// It has no entry of this name and kind.
    #[error("it has no `{name}` that is {kind}")]
    Entry {
        /// The name.
        name: &'static str,
        /// What it should be.
        kind: &'static str,
    },
    /// An array is not of bytes in rows and columns.
    #[error("its `{name}` is no array of bytes in rows and columns")]
    Array {
        /// The name.
        name: &'static str,
    },
}

/// The number of a value.
type Id = usize;

#[derive(Debug)]
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Text or bytes; Python 2 does not tell them apart.
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Module and name.
    Global(&'a [u8], &'a [u8]),
    /// numpy's type of numbers, by name.
    Dtype(Id),
    /// numpy's array: its shape, type, whether its columns come first, and bytes; none before they are given.
    Array(Option<[Id; 4]>),
}

/// An array of bytes `[rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Array<'a> {
    pub rows: usize,
    pub columns: usize,
    /// Whether it is stored column by column.
    pub is_fortran: bool,
    /// `[rows * columns]`.
    pub bytes: &'a [u8],
}

/// What a file holds: a dictionary.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    entries: Vec<(Id, Id)>,
}

impl<'a> Pickle<'a> {
    /// Reads a file.
    pub fn read(file: &'a [u8]) -> Result<Self, PickleError> {
        let mut machine = Machine { file, ..Machine::default() };
        let root = machine.run()?;
        let mut values = machine.values;
        match &mut values[root] {
            Value::Dict(entries) => {
                let entries = std::mem::take(entries);
                Ok(Self { values, entries })
            }
            _ => Err(PickleError::NoDictionary),
        }
    }

    /// The entry of this name, the last if there are several.
    fn entry(&self, name: &str) -> Option<&Value<'a>> {
        let is_named = |key: Id| match &self.values[key] {
            Value::Bytes(bytes) => **bytes == *name.as_bytes(),
            _ => false,
        };
        let entry = self.entries.iter().rev().find(|&&(key, _)| is_named(key));
        entry.map(|&(_, value)| &self.values[value])
    }

    /// The list of whole numbers of this name.
    pub fn ints(&self, name: &'static str) -> Result<Vec<i64>, PickleError> {
        let error = PickleError::Entry { name, kind: "a list of numbers" };
        let Some(Value::List(items)) = self.entry(name) else { return Err(error) };
        let int = |&item: &Id| match self.values[item] {
            Value::Int(int) => Some(int),
            _ => None,
        };
        items.iter().map(int).collect::<Option<_>>().ok_or(error)
    }

    /// The list of texts of this name.
    pub fn texts(&self, name: &'static str) -> Result<Vec<String>, PickleError> {
        let error = PickleError::Entry { name, kind: "a list of texts" };
        let Some(Value::List(items)) = self.entry(name) else { return Err(error) };
        // A text may be referred to again and again; copying it each time would take more than the file has.
        let mut left = MAX_VALUES;
        let mut text = |&item: &Id| match &self.values[item] {
            Value::Bytes(bytes) => {
                left = left.checked_sub(bytes.len())?;
                Some(String::from_utf8_lossy(bytes).into_owned())
            }
            _ => None,
        };
        items.iter().map(&mut text).collect::<Option<_>>().ok_or(error)
    }

    /// The array of this name.
    pub fn array(&self, name: &'static str) -> Result<Array<'_>, PickleError> {
        let array = match self.entry(name) {
            Some(Value::Array(Some(parts))) => self.array_of(*parts),
            _ => None,
        };
        array.ok_or(PickleError::Array { name })
    }

    fn array_of(&self, [shape, dtype, order, bytes]: [Id; 4]) -> Option<Array<'_>> {
        let Value::Tuple(shape) = &self.values[shape] else { return None };
        let [rows, columns] = shape[..] else { return None };
        let Value::Dtype(dtype) = self.values[dtype] else { return None };
        let (Value::Bytes(dtype), Value::Bytes(bytes)) = (&self.values[dtype], &self.values[bytes]) else {
            return None;
        };
        if ![&b"u1"[..], b"|u1", b"uint8", b"B"].contains(&&**dtype) {
            return None;
        }
        let is_fortran = match &self.values[order] {
            Value::Bool(is_fortran) => *is_fortran,
            Value::Int(is_fortran) => *is_fortran != 0,
            Value::Bytes(order) => match &**order {
                b"C" => false,
                b"F" => true,
                _ => return None,
            },
            _ => return None,
        };
        let size = |id: Id| match self.values[id] {
            Value::Int(size) => usize::try_from(size).ok(),
            _ => None,
        };
        let (rows, columns) = (size(rows)?, size(columns)?);
        (rows.checked_mul(columns)? == bytes.len()).then_some(Array { rows, columns, is_fortran, bytes })
    }
}

/// The machine that a pickle is a program for.
#[derive(Default)]
struct Machine<'a> {
    file: &'a [u8],
    /// Where the next byte is read.
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How many items were put into lists, tuples and dictionaries.
    items: usize,
    /// The length of all texts that were decoded.
    decoded: usize,
    /// The instruction that is carried out, and where it is.
    opcode: u8,
    opcode_at: usize,
}

/// What an instruction does, or why it cannot.
type Done<T = ()> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    /// Carries out all instructions, up to the one that ends the program with a value.
    fn run(&mut self) -> Done<Id> {
        loop {
            self.opcode_at = self.at;
            self.opcode = self.byte()?;
            if self.opcode == b'.' {
                return self.pop();
            }
            self.step()?;
        }
    }

    fn step(&mut self) -> Done {
        match self.opcode {
            // What the file is: the version of the format, the length of a part.
            0x80 => drop(self.byte()?),
            0x95 => drop(self.take(8)?),
            // Values.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let int = self.number::<1>()?;
                self.push(Value::Int(int as i64))?;
            }
            b'M' => {
                let int = self.number::<2>()?;
                self.push(Value::Int(int as i64))?;
            }
            b'J' => {
                let int = self.number::<4>()? as u32 as i32;
                self.push(Value::Int(int.into()))?;
            }
            0x8a => {
                let length = self.number::<1>()?;
                self.long(length)?;
            }
            b'U' | b'C' | 0x8c => {
                let length = self.number::<1>()?;
                self.bytes(length)?;
            }
            b'T' | b'B' | b'X' => {
                let length = self.number::<4>()?;
                self.bytes(length)?;
            }
            0x8d | 0x8e | 0x96 => {
                let length = self.number::<8>()?;
                self.bytes(length)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(name), Some(module)) = (self.part_of_file(name), self.part_of_file(module)) else {
                    return Err(self.misfit());
                };
                self.push(Value::Global(module, name))?;
            }
            // Collections.
            b'(' => {
                self.count(1)?;
                self.marks.push(self.stack.len());
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple(items)?;
            }
            0x85..=0x87 => {
                let count = usize::from(self.opcode - 0x84);
                let items = self.pop_many(count)?;
                self.tuple(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(&pair)?;
            }
            b'u' => {
                let pairs = self.pop_to_mark()?;
                self.set_items(&pairs)?;
            }
            // What was kept for later.
            b'q' => {
                let key = self.number::<1>()?;
                self.keep(key as u32)?;
            }
            b'r' => {
                let key = self.number::<4>()?;
                self.keep(key as u32)?;
            }
            0x94 => self.keep(self.memo.len() as u32)?,
            b'h' => {
                let key = self.number::<1>()?;
                self.recall(key as u32)?;
            }
            b'j' => {
                let key = self.number::<4>()?;
                self.recall(key as u32)?;
            }
            // Objects.
            b'R' => self.call()?,
            b'b' => self.build()?,
            opcode => return Err(PickleError::Opcode { opcode, at: self.opcode_at }),
        }
        Ok(())
    }

    /// Carries out a call of one of the functions that make arrays.
    fn call(&mut self) -> Done {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(module, name)) =
            (&self.values[arguments], &self.values[function])
        else {
            return Err(self.misfit());
        };
        let value = match (*module, *name, &arguments[..]) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct", _) => Value::Array(None),
            (b"numpy", b"dtype", &[name, ..]) => Value::Dtype(name),
            (
                b"numpy.core.numeric" | b"numpy._core.numeric",
                b"_frombuffer",
                &[bytes, dtype, shape, order],
            ) => Value::Array(Some([shape, dtype, order, bytes])),
            // How Python 3 writes bytes for Python 2: as a text of characters up to 255.
            (b"_codecs", b"encode", &[text, _]) => match &self.values[text] {
                // Each text once: decoded again and again, one would take more than the file has.
                Value::Bytes(text) if self.decoded + text.len() <= self.file.len() => {
                    self.decoded += text.len();
                    Value::Bytes(Cow::Owned(latin1(text).ok_or(self.misfit())?))
                }
                Value::Bytes(_) => return Err(PickleError::TooMany),
                _ => return Err(self.misfit()),
            },
            (b"__builtin__" | b"builtins", b"bytes", []) => Value::Bytes(Cow::Borrowed(b"")),
            (b"__builtin__" | b"builtins", b"bytearray", &[bytes]) => {
                self.stack.push(bytes);
                return Ok(());
            }
            (module, name, _) => {
                let [module, name] = [module, name].map(String::from_utf8_lossy);
                return Err(PickleError::Call { name: format!("{module}.{name}"), at: self.opcode_at });
            }
        };
        self.push(value)
    }

    /// Gives an array its contents. A type of numbers is left as it is: bytes have no order.
    fn build(&mut self) -> Done {
        let state = self.pop()?;
        let &object = self.stack.last().ok_or(self.misfit())?;
        let parts = match &self.values[state] {
            Value::Tuple(parts) => <[Id; 5]>::try_from(&parts[..]).ok(),
            _ => None,
        };
        match (&mut self.values[object], parts) {
            (Value::Dtype(_), _) => Ok(()),
            (Value::Array(contents @ None), Some([_version, shape, dtype, order, bytes])) => {
                *contents = Some([shape, dtype, order, bytes]);
                Ok(())
            }
            _ => Err(self.misfit()),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Done {
        self.count(items.len())?;
        let &list = self.stack.last().ok_or(self.misfit())?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err(self.misfit()),
        }
        Ok(())
    }

    fn set_items(&mut self, pairs: &[Id]) -> Done {
        self.count(pairs.len())?;
        let &dict = self.stack.last().ok_or(self.misfit())?;
        let (pairs, rest) = pairs.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            _ => return Err(self.misfit()),
        }
        Ok(())
    }

    fn tuple(&mut self, items: Vec<Id>) -> Done {
        self.count(items.len())?;
        self.push(Value::Tuple(items))
    }

    fn bytes(&mut self, length: u64) -> Done {
        let length = usize::try_from(length).map_err(|_| PickleError::Ends)?;
        let bytes = self.take(length)?;
        self.push(Value::Bytes(Cow::Borrowed(bytes)))
    }

    /// A whole number of `length` bytes, up to 8.
    fn long(&mut self, length: u64) -> Done {
        let bytes = self.take(length as usize)?;
        let (Some(&last), true) = (bytes.last(), bytes.len() <= 8) else {
            // Zero has no bytes; longer ones are no labels.
            return if bytes.is_empty() { self.push(Value::Int(0)) } else { Err(self.misfit()) };
        };
        let mut whole = [if last >= 0x80 { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn push(&mut self, value: Value<'a>) -> Done {
        if self.values.len() == MAX_VALUES {
            return Err(PickleError::TooMany);
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// The value last pushed, unless it is below a mark.
    fn pop(&mut self) -> Done<Id> {
        let above_mark = self.stack.len() > self.marks.last().copied().unwrap_or(0);
        self.stack.pop().filter(|_| above_mark).ok_or(self.misfit())
    }

    fn pop_many(&mut self, count: usize) -> Done<Vec<Id>> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Done<Vec<Id>> {
        let mark = self.marks.pop().ok_or(self.misfit())?;
        Ok(self.stack.split_off(mark))
    }

    fn keep(&mut self, key: u32) -> Done {
        let &top = self.stack.last().ok_or(self.misfit())?;
        if self.memo.len() == MAX_VALUES {
            return Err(PickleError::TooMany);
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Done {
        self.count(1)?;
        let &value = self.memo.get(&key).ok_or(self.misfit())?;
        self.stack.push(value);
        Ok(())
    }

    /// Counts what takes memory beside values.
    fn count(&mut self, items: usize) -> Done {
        self.items += items;
        if self.items > 4 * MAX_VALUES { Err(PickleError::TooMany) } else { Ok(()) }
    }

    /// The text of a value that lies in the file.
    fn part_of_file(&self, id: Id) -> Option<&'a [u8]> {
        match self.values[id] {
            Value::Bytes(Cow::Borrowed(bytes)) => Some(bytes),
            _ => None,
        }
    }

    fn misfit(&self) -> PickleError {
        PickleError::Operands { opcode: self.opcode, at: self.opcode_at }
    }

    fn take(&mut self, length: usize) -> Done<&'a [u8]> {
        let rest = &self.file[self.at..];
        let bytes = rest.get(..length).ok_or(PickleError::Ends)?;
        self.at += length;
        Ok(bytes)
    }

    fn byte(&mut self) -> Done<u8> {
        Ok(self.take(1)?[0])
    }

    /// A number of `N` bytes, the lowest first.
    fn number<const N: usize>(&mut self) -> Done<u64> {
        let bytes = self.take(N)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// The bytes up to the end of the line.
    fn line(&mut self) -> Done<&'a [u8]> {
        let end = self.file[self.at..].iter().position(|&byte| byte == b'\n').ok_or(PickleError::Ends)?;
        let line = self.take(end)?;
        self.at += 1;
        Ok(line)
    }
}

/// The bytes whose numbers are the characters of a text.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of `tests/fixtures/pickle-*`, made by `tests/record_pictures.py`.
    fn fixture(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/");
        std::fs::read(format!("{folder}pickle-{name}")).unwrap()
    }

    const FIXTURES: [&str; 8] =
        ["python2", "protocol2", "protocol3", "protocol4", "protocol5", "fortran", "fortran5", "encoded"];

    #[test]
    fn reads_what_python_writes() {
        for name in FIXTURES {
            let file = fixture(name);
            let pickle = Pickle::read(&file).unwrap();
            assert_eq!(pickle.ints("labels").unwrap(), [3, 0, 300, -2, 70_000], "{name}");
            assert_eq!(pickle.texts("names").unwrap(), ["cat", "cat", "Ñandú"], "{name}");
            let array = pickle.array("data").unwrap();
            assert_eq!((array.rows, array.columns), (2, 130), "{name}");
            assert_eq!(array.is_fortran, name.starts_with("fortran"), "{name}");
            let at = |row: usize, column: usize| match array.is_fortran {
                true => array.bytes[2 * column + row],
                false => array.bytes[130 * row + column],
            };
            assert!((0..130).all(|i| at(0, i) == i as u8 && at(1, i) == 255 - i as u8), "{name}");

            assert_eq!(
                pickle.ints("names"),
                Err(PickleError::Entry { name: "names", kind: "a list of numbers" })
            );
            assert_eq!(pickle.array("labels"), Err(PickleError::Array { name: "labels" }));
            assert_eq!(pickle.array("none"), Err(PickleError::Array { name: "none" }));
            assert_eq!(pickle.array("floats"), Err(PickleError::Array { name: "floats" }), "{name}");
        }
    }

    #[test]
    fn nothing_is_carried_out() {
        let error = Pickle::read(b"cos\nsystem\n(U\x04lsb.tR.").unwrap_err();
        assert_eq!(error, PickleError::Call { name: "os.system".to_string(), at: 19 });
        assert_eq!(
            Pickle::read(b"\x80\x02}q\0P1\n.").unwrap_err(),
            PickleError::Opcode { opcode: b'P', at: 5 }
        );
        let error = Pickle::read(b"c\x1b[31m\nx\n)R.").unwrap_err().to_string();
        assert!(error.contains("`\\u{1b}[31m.x`"), "{error}");
    }

    #[test]
    fn programs_that_fail() {
        use PickleError::*;
        let operands = |opcode, at| Operands { opcode, at };
        let cases: [(&[u8], PickleError); 15] = [
            (b"", Ends),
            (b"}", Ends),
            (b".", operands(b'.', 0)),
            (b"}0.", Opcode { opcode: b'0', at: 1 }),
            (b"N.", NoDictionary),
            (b"h\0.", operands(b'h', 0)),
            (b"q\0.", operands(b'q', 0)),
            (b"N(.", operands(b'.', 2)),
            (b"Ne.", operands(b'e', 1)),
            (b"}(Nu.", operands(b'u', 3)),
            (b"]Ns.", operands(b's', 2)),
            (b"U\x05abc", Ends),
            (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", Ends),
            (b"NNR.", operands(b'R', 2)),
            (b"}Nb.", operands(b'b', 2)),
        ];
        for (file, error) in cases {
            assert_eq!(Pickle::read(file).unwrap_err(), error, "{file:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        for filler in [&b"N"[..], b"(", b"]", b"h\0"] {
            let file = [b"}q\0", &filler.repeat(5 * MAX_VALUES)[..]].concat();
            assert_eq!(Pickle::read(&file).unwrap_err(), PickleError::TooMany);
        }
        // A long text, many times decoded, or in a list.
        let text = [b"}c_codecs\nencode\nX\0\0\x10\0", &vec![b'a'; 1 << 20][..], b"N\x86q\0R"].concat();
        let file = [text, b"c_codecs\nencode\nh\0R".repeat(1000)].concat();
        assert_eq!(Pickle::read(&file).unwrap_err(), PickleError::TooMany);
        let text = [b"}U\x01x](X\0\0\x01\0".to_vec(), vec![b'a'; 1 << 16], b"q\0".to_vec()].concat();
        let file = [text, b"h\0".repeat(1 << 16), b"es.".to_vec()].concat();
        assert!(Pickle::read(&file).unwrap().texts("x").is_err());
    }

    /// Whatever the bytes, reading returns.
    #[test]
    fn damaged_files_do_no_harm() {
        let mut random = 1_u32;
        for name in FIXTURES {
            let good = fixture(name);
            for length in 0..good.len() {
                assert!(Pickle::read(&good[..length]).is_err(), "{name}: {length}");
            }
            for _ in 0..2000 {
                let mut bytes = good.clone();
                for _ in 0..3 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    bytes[(random as usize >> 8) % good.len()] = (random >> 4) as u8;
                }
                if let Ok(pickle) = Pickle::read(&bytes) {
                    let _ = (pickle.array("data"), pickle.ints("labels"), pickle.texts("names"));
                }
            }
        }
    }
}
