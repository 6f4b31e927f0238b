//! TIFF files with a palette, which the `image` crate does not read: it is told that they are grey.

/// Tags of a TIFF file.
const BITS_PER_SAMPLE: u16 = 258;
const PHOTOMETRIC: u16 = 262;
const COLOUR_MAP: u16 = 320;

/// The type of numbers of two bytes.
const SHORT: u16 = 3;

/// Values of [`PHOTOMETRIC`].
const GREY: u16 = 1;
const PALETTE: u16 = 3;

/// If the first picture of TIFF file `bytes` has a palette of 256 colours: the file with a grey picture of the
/// indices in its place, and the palette.
pub(crate) fn split(bytes: &[u8]) -> Option<(Vec<u8>, Vec<[u8; 3]>)> {
    let is_little = bytes.starts_with(b"II");
    let number = |at: usize| -> Option<u16> {
        let two = *bytes.get(at..)?.first_chunk()?;
        Some(if is_little { u16::from_le_bytes(two) } else { u16::from_be_bytes(two) })
    };
    let offset = |at: usize| -> Option<usize> {
        let four = *bytes.get(at..)?.first_chunk()?;
        Some(if is_little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) } as usize)
    };
    // The 64-bit variant has another layout, and hardly ever a palette.
    if number(2)? != 42 {
        return None;
    }
    // Each entry of the directory has a tag, a type, a count, and a value or where its values are.
    let directory = offset(4)?;
    let entries = (0..usize::from(number(directory)?)).map(|entry| directory + 2 + 12 * entry);
    let find = |tag, count| {
        let mut entries = entries.clone();
        entries.find(|&at| {
            number(at) == Some(tag) && number(at + 2) == Some(SHORT) && offset(at + 4) == Some(count)
        })
    };
    let photometric = find(PHOTOMETRIC, 1)? + 8;
    if number(photometric)? != PALETTE || number(find(BITS_PER_SAMPLE, 1)? + 8)? != 8 {
        return None;
    }
    // All reds, then all greens, then all blues, of 16 bits each.
    let map = offset(find(COLOUR_MAP, 3 * 256)? + 8)?;
    let level = |channel: usize, index: usize| Some((number(map + 2 * (256 * channel + index))? >> 8) as u8);
    let colour = |index| Some([level(0, index)?, level(1, index)?, level(2, index)?]);
    let palette = (0..256).map(colour).collect::<Option<Vec<_>>>()?;

    let mut grey = bytes.to_vec();
    let value = if is_little { GREY.to_le_bytes() } else { GREY.to_be_bytes() };
    grey[photometric..photometric + 2].copy_from_slice(&value);
    Some((grey, palette))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of just these entries.
    fn file(entries: &[(u16, u16, u32, u16)], behind: &[u8]) -> Vec<u8> {
        let mut bytes = b"MM\0\x2a\0\0\0\x08".to_vec();
        bytes.extend((entries.len() as u16).to_be_bytes());
        for &(tag, kind, count, value) in entries {
            bytes.extend(tag.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(count.to_be_bytes());
            match count {
                1 => bytes.extend([value.to_be_bytes(), [0, 0]].concat()),
                _ => bytes.extend(u32::from(value).to_be_bytes()),
            }
        }
        bytes.extend(behind);
        bytes
    }

    #[test]
    fn finds_the_palette() {
        let map: Vec<u8> = (0..3 * 256_u16).flat_map(|level| [(level % 251) as u8, 0]).collect();
        let entries =
            [(BITS_PER_SAMPLE, SHORT, 1, 8), (PHOTOMETRIC, SHORT, 1, 3), (COLOUR_MAP, SHORT, 768, 46)];
        let bytes = file(&entries, &map);
        let (grey, palette) = split(&bytes).unwrap();
        assert_eq!(palette[2], [2, 7, 12]);
        let changed: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != grey[at]).collect();
        assert_eq!((changed, grey[31]), (vec![31], 1));
        // A palette that is cut short, or not where it is said to be, or of another size.
        assert!(split(&bytes[..bytes.len() - 1]).is_none());
        assert!(split(&file(&[entries[0], entries[1], (COLOUR_MAP, SHORT, 768, u16::MAX)], &map)).is_none());
        assert!(split(&file(&[entries[0], entries[1], (COLOUR_MAP, SHORT, 48, 46)], &map)).is_none());
        // No palette.
        assert!(split(&file(&[entries[0], (PHOTOMETRIC, SHORT, 1, 2), entries[2]], &map)).is_none());
        for length in 0..46 {
            assert!(split(&bytes[..length]).is_none());
        }
    }
}
