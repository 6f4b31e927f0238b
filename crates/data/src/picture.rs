//! JPEG and PNG files to pixels, told apart by their first bytes, whatever they are called.
//!
//! As in torchvision, everything becomes RGB: grey is repeated, CMYK is mixed, transparency is dropped, and
//! orientation tags are ignored.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// The largest picture that is decoded, in pixels; ImageNet's largest has 72 million.
pub const MAX_PIXELS: usize = 1 << 27;

/// The largest file that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 28;

/// What can be wrong with a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be opened or read.
    #[error("cannot read `{path}` ({source}); check that it is there and readable")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no picture, or a broken one.
    #[error("`{path}` is broken ({what}); get it again, or remove it")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A picture in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
    /// 1 for grey, 3 for RGB; what [`read`] gives is RGB.
    pub channels: usize,
    /// 0 black to 255 full: `[height, width, channels]`.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Gives the picture another shape. What its pixels are then is not said, but they are there.
    pub fn reshape(&mut self, height: usize, width: usize, channels: usize) {
        (self.height, self.width, self.channels) = (height, width, channels);
        self.pixels.resize(height * width * channels, 0);
    }
}

/// Reads the picture in file `path` into `picture`, with `bytes` to hold the file; both keep their memory
/// from call to call.
///
/// # Errors
/// Any [`PictureError`].
pub fn read(path: &Path, bytes: &mut Vec<u8>, picture: &mut Picture) -> Result<(), PictureError> {
    bytes.clear();
    let file = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(bytes));
    file.map_err(|source| PictureError::Read { path: path.into(), source })?;
    decode(bytes, picture).map_err(|what| PictureError::Broken { path: path.into(), what })
}

/// Decodes a JPEG or PNG file, or says what is wrong with it.
fn decode(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    match bytes {
        [0xff, 0xd8, ..] => decode_jpeg(bytes, picture),
        [0x89, b'P', b'N', b'G', ..] => decode_png(bytes, picture),
        [] => Err("it is empty".to_string()),
        _ => Err("it is neither a JPEG nor a PNG file".to_string()),
    }
}

fn check_size(height: usize, width: usize) -> Result<(), String> {
    match height.checked_mul(width) {
        Some(1..=MAX_PIXELS) => Ok(()),
        _ => Err(format!("it claims {height}x{width} pixels")),
    }
}

fn decode_jpeg(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    // What is missing would be decoded as grey without a word.
    if !is_complete_jpeg(bytes) {
        return Err("it is cut short".to_string());
    }
    let options = DecoderOptions::new_fast().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| error.to_string())?;
    let info = decoder.info().ok_or("it has no header")?;
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    check_size(height, width)?;
    picture.reshape(height, width, 3);
    decoder.decode_into(&mut picture.pixels).map_err(|error| error.to_string())
}

/// Whether an end marker follows the last start of a scan. In between the bytes of either are escaped.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    const END: [u8; 2] = [0xff, 0xd9];
    const SCAN: [u8; 2] = [0xff, 0xda];
    let last = |marker| bytes.windows(2).rposition(|pair| pair == marker);
    // Nearly always the file ends with the marker, and need not be searched.
    bytes.ends_with(&END) || last(END).is_some_and(|end| last(SCAN).is_some_and(|scan| end > scan))
}

fn decode_png(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let (height, width) = (reader.info().height as usize, reader.info().width as usize);
    check_size(height, width)?;
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    let samples = reader.output_color_type().0.samples();
    picture.reshape(height, width, 3);
    for (to, from) in picture.pixels.chunks_exact_mut(3).zip(pixels.chunks_exact(samples)) {
        match from {
            [grey] | [grey, _] => to.fill(*grey),
            rgb => to.copy_from_slice(&rgb[..3]),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// A picture of `tests/fixtures`, made by `tests/record_fixtures.py`.
    pub(crate) fn fixture(name: &str) -> Picture {
        let mut picture = Picture::default();
        read(&fixture_path(name), &mut Vec::new(), &mut picture).unwrap();
        picture
    }

    fn fixture_path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    /// The largest and the mean difference of two pictures of the same shape.
    pub(crate) fn difference(a: &Picture, b: &Picture) -> (u8, f64) {
        assert_eq!((a.height, a.width, a.channels), (b.height, b.width, b.channels));
        let differences = || a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b));
        let sum: f64 = differences().map(f64::from).sum();
        (differences().max().unwrap(), sum / a.pixels.len() as f64)
    }

    #[test]
    fn jpegs_are_decoded_as_by_pil() {
        for name in ["420", "422", "444", "progressive", "restarts", "grey", "cmyk", "rotated"] {
            let (most, mean) =
                difference(&fixture(&format!("jpeg-{name}.jpg")), &fixture(&format!("jpeg-{name}.png")));
            assert!(most <= 6 && mean < 0.5, "{name}: at most {most}, on average {mean}");
        }
    }

    #[test]
    fn pngs_become_rgb() {
        let wide = fixture("wide.png");
        assert_eq!((wide.height, wide.width, wide.channels), (47, 61, 3));
        assert_eq!(fixture("png-alpha.png"), wide);
        assert_eq!(fixture("png-palette.png"), fixture("png-palette-rgb.png"));
        let grey = fixture("png-grey.png");
        assert!(grey.pixels.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    }

    #[test]
    fn broken_files() {
        let fails = |bytes: &[u8], part: &str| {
            let error = decode(bytes, &mut Picture::default()).unwrap_err();
            assert!(error.contains(part), "{error} lacks {part}");
        };
        fails(b"", "empty");
        fails(b"<html>", "neither");
        let jpeg = fs::read(fixture_path("jpeg-420.jpg")).unwrap();
        let png = fs::read(fixture_path("wide.png")).unwrap();
        for file in [jpeg.clone(), fs::read(fixture_path("jpeg-progressive.jpg")).unwrap()] {
            for length in 2..file.len() {
                fails(&file[..length], "cut short");
            }
        }
        for length in 4..png.len() - 20 {
            fails(&png[..length], "");
        }
        // Rubbish after the end is common and harmless.
        decode(&[&jpeg[..], &[0; 9], b"\xff\xda rubbish"].concat(), &mut Picture::default()).unwrap_err();
        decode(&[&jpeg[..], &[0; 9]].concat(), &mut Picture::default()).unwrap();
        // A header that claims a size that is not there.
        let start = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let mut huge = jpeg.clone();
        huge[start + 5..][..4].fill(0xff);
        fails(&huge, "");
        let mut huge = png.clone();
        huge[16..24].fill(0x7f);
        fails(&huge, "");
    }

    /// Whatever the bytes, the decoders return.
    #[test]
    fn damaged_files_do_no_harm() {
        let mut random = 1_u32;
        for name in ["jpeg-420.jpg", "jpeg-progressive.jpg", "jpeg-cmyk.jpg", "png-palette.png"] {
            let good = fs::read(fixture_path(name)).unwrap();
            for _ in 0..300 {
                let mut bytes = good.clone();
                for _ in 0..4 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = random as usize >> 8;
                    bytes[at % good.len()] ^= 1 << (random & 7);
                }
                let _ = decode(&bytes, &mut Picture::default());
            }
        }
    }

    #[test]
    fn errors_name_the_file() {
        let read = |path: &str| read(Path::new(path), &mut Vec::new(), &mut Picture::default());
        let error = read("/no/such.jpg").unwrap_err().to_string();
        assert!(error.contains("/no/such.jpg"), "{error}");
        let error = read(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap_err().to_string();
        assert!(error.contains("Cargo.toml` is broken"), "{error}");
    }
}
