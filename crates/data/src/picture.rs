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
