//! How much a file of PyTorch would take to read, before it is read.

use srigl_tensors::memory;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use zip::ZipArchive;

/// The most instructions that pickles of weights may have: a tensor takes about 40, so this is for 100 000 tensors.
const MAX_INSTRUCTIONS: u64 = 1 << 22;

/// Bytes that an instruction of a single byte can take when it has been read, about.
const BYTES_EACH: u64 = 128;

/// Pickles at the start of a file of PyTorch before 1.6: a number, the version, the system, the object, names of storages.
const LEGACY_PICKLES: usize = 5;

/// Checks that the pickles in a file of `torch.save` are not out of all proportion: a few kilobytes can hold a hundred million
/// values.
///
/// # Errors
/// If they are; what else is wrong is for the reader to find.
pub fn check(mut file: File, zipped: bool) -> Result<(), String> {
    let mut left = MAX_INSTRUCTIONS.min(memory::limit() / BYTES_EACH);
    let result = if zipped {
        let Ok(mut archive) = ZipArchive::new(&mut file) else { return Ok(()) };
        let entries = archive.len();
        (0..entries).try_for_each(|index| match archive.by_index(index) {
            Ok(entry) if entry.name().is_ok_and(|name| name.ends_with("data.pkl")) => {
                count(&mut BufReader::new(entry), &mut left)
            }
            _ => Ok(()),
        })
    } else {
        let mut from = BufReader::new(file);
        (0..LEGACY_PICKLES).try_for_each(|_| count(&mut from, &mut left))
    };
    match result {
        Err(Count::TooMany) => {
            Err(format!("its pickle holds more than {MAX_INSTRUCTIONS} values; save a state_dict alone"))
        }
        Err(Count::Unreadable) | Ok(()) => Ok(()),
    }
}

enum Count {
    TooMany,
    Unreadable,
}

impl From<io::Error> for Count {
    fn from(_: io::Error) -> Self {
        Self::Unreadable
    }
}

/// Takes the instructions of a pickle, up to its end, off `left`; so many bytes of texts as an instruction takes count as one.
fn count(from: &mut impl BufRead, left: &mut u64) -> Result<(), Count> {
    loop {
        let mut opcode = [0];
        from.read_exact(&mut opcode)?;
        *left = left.checked_sub(1).ok_or(Count::TooMany)?;
        match opcode[0] {
            b'.' => return Ok(()),
            // Numbers and references of fixed size.
            b'K' | b'h' | b'q' | 0x80 | 0x82 => skip(from, 1)?,
            b'M' | 0x83 => skip(from, 2)?,
            b'J' | b'j' | b'r' | 0x84 => skip(from, 4)?,
            b'G' | 0x95 => skip(from, 8)?,
            // Texts, bytes and long numbers after their lengths.
            b'U' | b'C' | 0x8a | 0x8c => skip_counted::<1>(from, left)?,
            b'T' | b'X' | b'B' | 0x8b => skip_counted::<4>(from, left)?,
            0x8d | 0x8e | 0x96 => skip_counted::<8>(from, left)?,
            // Lines.
            b'I' | b'F' | b'L' | b'S' | b'V' | b'g' | b'p' | b'P' => skip_line(from, left)?,
            b'c' | b'i' => {
                skip_line(from, left)?;
                skip_line(from, left)?;
            }
            _ => {}
        }
    }
}

/// Passes over so many bytes, or those that there are: whoever reads on finds out.
fn skip(from: &mut impl BufRead, bytes: u64) -> Result<(), Count> {
    io::copy(&mut from.take(bytes), &mut io::sink())?;
    Ok(())
}

/// Passes over bytes after their number, which has `N` bytes itself.
fn skip_counted<const N: usize>(from: &mut impl BufRead, left: &mut u64) -> Result<(), Count> {
    let mut length = [0; 8];
    from.read_exact(&mut length[..N])?;
    let length = u64::from_le_bytes(length);
    *left = left.checked_sub(length / BYTES_EACH).ok_or(Count::TooMany)?;
    skip(from, length)
}

fn skip_line(from: &mut impl BufRead, left: &mut u64) -> Result<(), Count> {
    loop {
        let part = from.fill_buf()?;
        if part.is_empty() {
            return Err(Count::Unreadable);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(part.len(), |end| end + 1);
        *left = left.checked_sub(taken as u64 / BYTES_EACH).ok_or(Count::TooMany)?;
        from.consume(taken);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn instructions(pickle: &[u8]) -> Option<u64> {
        let mut left = 100;
        count(&mut &pickle[..], &mut left).ok().map(|()| 100 - left)
    }

    #[test]
    fn instructions_are_counted_and_what_belongs_to_them_is_not() {
        // {'.': (1, 2.5), 300: b'..', 'x': None} as Python's protocols 0 and 4 write it, counted by its `pickletools`.
        let text = b"(dp0\nV.\np1\n(I1\nF2.5\ntp2\nsI300\nc_codecs\nencode\np3\n(V..\np4\nVlatin1\np5\ntp6\nRp7\nsVx\np8\nNs.";
        assert_eq!(instructions(text), Some(29));
        let framed = b"\x80\x04\x95#\0\0\0\0\0\0\0}\x94(\x8c\x01.\x94K\x01G@\x04\0\0\0\0\0\0\x86\x94M,\x01C\x02..\x94\x8c\x01x\x94Nu.";
        assert_eq!(instructions(framed), Some(19));
        assert_eq!(instructions(b"\x80\x04X\xff\xff\xff\xff."), None, "a text that is not there");
        assert_eq!(instructions(&[b'N'; 200]), None, "too many");
    }

    #[test]
    fn what_follows_each_instruction_of_a_number_or_a_text_is_passed_over() {
        // Full stops end a pickle, unless they belong to something.
        let fixed: [(&[u8], usize); 5] =
            [(b"Khq\x80\x82", 1), (b"M\x83", 2), (b"Jjr\x84", 4), (b"G\x95", 8), (b"N", 0)];
        for (opcodes, bytes) in fixed {
            for opcode in opcodes {
                let pickle = [&[*opcode], &b"........"[..bytes], b"N."].concat();
                assert_eq!(instructions(&pickle), Some(3), "{opcode:#x}");
            }
        }
        let counted: [(&[u8], usize); 3] = [(b"UC\x8a\x8c", 1), (b"TXB\x8b", 4), (b"\x8d\x8e\x96", 8)];
        for (opcodes, bytes) in counted {
            for opcode in opcodes {
                let pickle = [&[*opcode], &[3, 0, 0, 0, 0, 0, 0, 0][..bytes], b"...N."].concat();
                assert_eq!(instructions(&pickle), Some(3), "{opcode:#x}");
            }
        }
        for opcode in b"IFLSVgpP" {
            assert_eq!(instructions(&[&[*opcode], &b"...\nN."[..]].concat()), Some(3), "{opcode:#x}");
        }
        for opcode in b"ci" {
            assert_eq!(instructions(&[&[*opcode], &b"...\n..\nN."[..]].concat()), Some(3), "{opcode:#x}");
        }
    }

    /// A file with these bytes, at its start.
    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn an_archive_is_judged_by_its_pickle_alone() {
        let zip = |name: &str, content: &[u8]| {
            let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
            file(zip.finish().unwrap().get_ref())
        };
        let many = vec![b'N'; 1 + MAX_INSTRUCTIONS as usize];
        assert!(check(zip("weights/data.pkl", &many), true).unwrap_err().contains("4194304 values"));
        check(zip("weights/data.pkl", b"N."), true).unwrap();
        check(zip("weights/data/0", &many), true).unwrap();
        // What is no archive is for the reader to find.
        check(file(b"PK"), true).unwrap();
    }

    #[test]
    fn all_pickles_at_the_start_of_an_older_file_count_together() {
        let (each, last) = (MAX_INSTRUCTIONS as usize / 5, vec![b'N'; MAX_INSTRUCTIONS as usize / 5 + 1]);
        let pickle = |instructions: usize| [vec![b'N'; instructions - 1], vec![b'.']].concat();
        let mut pickles = pickle(each).repeat(4);
        check(file(&[pickles.clone(), pickle(each)].concat()), false).unwrap();
        pickles.extend(last);
        assert!(check(file(&[pickles, vec![b'N'; 4]].concat()), false).is_err());
    }
}
