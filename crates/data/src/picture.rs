//! Files of pictures to pixels: JPEG, PNG, BMP, GIF, PNM (PPM, PGM, PBM), TIFF and WebP, told apart by their
//! first bytes, whatever they are called.
//!
//! As in torchvision, everything becomes RGB: grey is repeated, palettes are looked up, CMYK is mixed,
//! transparency is dropped, orientation tags are ignored, and of an animation the first frame is taken. Of
//! 16-bit samples the upper byte is kept, where Pillow makes nearly all of them white.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use gif::{ColorOutput, MemoryLimit};
use image::codecs::{bmp::BmpDecoder, pnm::PnmDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageResult, Limits};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::palette_tiff;
use super::printable::shown;
use srigl_tensors::memory::{self, TooLarge};
use srigl_tensors::printable;

/// The largest picture that is decoded, in pixels; ImageNet's largest has 72 million.
pub const MAX_PIXELS: usize = 1 << 27;

/// The largest file that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 28;

/// The most memory that a decoder may take for itself beside the pixels, in bytes.
const MAX_EXTRA: u64 = 1 << 28;

/// What can be wrong with a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be opened or read.
    #[error("cannot read `{}` ({source}); check that it is there and readable", shown(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a folder, pipe or device in its place, which is not opened.
    #[error("`{}` is no regular file but a folder, pipe or device; remove it", shown(.0))]
    NoFile(PathBuf),
    /// It would take more memory than there is for a picture while so many are read at once.
    #[error(
        "`{}` is too large ({source}); lower --workers, raise --max-memory, or make it smaller",
        shown(path)
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it would take.
        source: TooLarge,
    },
    /// It is no picture, or a broken one.
    #[error("`{}` is broken ({}); get it again, or remove it", shown(path), printable(what))]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Why bytes are no picture.
#[derive(Debug)]
pub(crate) enum Flaw {
    TooLarge(TooLarge),
    Broken(String),
}

impl From<String> for Flaw {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

impl From<&str> for Flaw {
    fn from(what: &str) -> Self {
        Self::Broken(what.to_string())
    }
}

impl From<TooLarge> for Flaw {
    fn from(source: TooLarge) -> Self {
        Self::TooLarge(source)
    }
}

impl PictureError {
    fn new(path: &Path, flaw: Flaw) -> Self {
        let path = path.into();
        match flaw {
            Flaw::TooLarge(source) => Self::TooLarge { path, source },
            Flaw::Broken(what) => Self::Broken { path, what },
        }
    }
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
/// from call to call. Decoding takes `budget` bytes at most.
///
/// # Errors
/// Any [`PictureError`].
pub fn read(
    path: &Path,
    bytes: &mut Vec<u8>,
    picture: &mut Picture,
    budget: u64,
) -> Result<(), PictureError> {
    let read_error = |source| PictureError::Read { path: path.into(), source };
    // A pipe would keep its reader waiting, and a device may act when it is opened.
    let metadata = fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(PictureError::NoFile(path.into()));
    }
    let length = match metadata.len() {
        ..=MAX_BYTES => within(Some(metadata.len()), budget),
        bytes => Err(format!("it has {bytes} bytes").into()),
    };
    length.map_err(|flaw| PictureError::new(path, flaw))?;
    bytes.clear();
    // It may have grown since.
    let file = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(bytes));
    file.map_err(read_error)?;
    decode(bytes, picture, budget).map_err(|flaw| PictureError::new(path, flaw))
}

/// Decodes a file. If its decoder panics, the picture is broken; the program goes on.
fn decode(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    guarded(picture, |picture| decode_any(bytes, picture, budget))
}

thread_local! {
    /// Whether this thread is in a decoder whose panics are caught.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Has panics of decoders, which make a picture a broken one, print nothing of their own, as they would otherwise. For
/// programs, not libraries: the panic hook is one for all.
pub fn hush_decoders() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !DECODING.get() {
            usual(panic);
        }
    }));
}

fn guarded(picture: &mut Picture, decode: impl FnOnce(&mut Picture) -> Result<(), Flaw>) -> Result<(), Flaw> {
    DECODING.set(true);
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(picture)));
    DECODING.set(false);
    decoded.unwrap_or_else(|_| {
        *picture = Picture::default(); // it may be half done
        Err("its decoder stumbled over it".into())
    })
}

/// Decodes a file of any of the formats, or says what is wrong with it.
pub(crate) fn decode_any(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    let reader = Cursor::new(bytes);
    match bytes {
        [0xff, 0xd8, ..] => decode_jpeg(bytes, picture, budget),
        [0x89, b'P', b'N', b'G', ..] => decode_png(bytes, picture, budget),
        [b'G', b'I', b'F', b'8', ..] => decode_gif(bytes, picture, budget),
        [b'B', b'M', ..] => decode_by(BmpDecoder::new(reader), picture, budget),
        [b'P', b'1'..=b'6', b'\t' | b'\n' | b'\r' | b' ' | b'#', ..] => {
            decode_by(PnmDecoder::new(reader), picture, budget)
        }
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => decode_tiff(bytes, picture, budget),
        [b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'E', b'B', b'P', ..] => {
            if bytes.len() - 8 < u32::from_le_bytes([*a, *b, *c, *d]) as usize {
                return Err("it is cut short".into());
            }
            decode_by(WebPDecoder::new(reader), picture, budget)
        }
        [] => Err("it is empty".into()),
        _ => Err("it is no JPEG, PNG, BMP, GIF, PNM, TIFF or WebP file".into()),
    }
}

/// Bytes of a pixel of the picture that comes out.
const RGB: usize = 3;

/// Whether a picture may have this size, with so many bytes for each pixel while it is decoded.
fn check_size(height: usize, width: usize, pixel_bytes: usize, budget: u64) -> Result<(), Flaw> {
    match height.checked_mul(width) {
        Some(pixels @ 1..=MAX_PIXELS) => within(memory::product(&[pixels, pixel_bytes]), budget),
        _ => Err(format!("it claims {height}x{width} pixels").into()),
    }
}

fn within(bytes: Option<u64>, limit: u64) -> Result<(), Flaw> {
    match bytes {
        Some(bytes) if bytes <= limit => Ok(()),
        bytes => Err(TooLarge { bytes, limit }.into()),
    }
}

fn decode_jpeg(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    // What is missing would be decoded as grey without a word.
    if !is_complete_jpeg(bytes) {
        return Err("it is cut short".into());
    }
    // Being strict, the decoder fails where it would make up what it cannot decode.
    let mut options =
        DecoderOptions::new_fast().jpeg_set_out_colorspace(ColorSpace::RGB).set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    if decoder.decode_headers().is_err() {
        // Stray bytes between the headers are common and harmless.
        options = options.set_strict_mode(false);
        decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(|error| error.to_string())?;
    }
    let info = decoder.info().ok_or("it has no header")?;
    // As in Pillow; the decoder panics at some of the others.
    let components = usize::from(info.components);
    if ![1, 3, 4].contains(&components) {
        return Err(format!("it has {components} colour components, not 1, 3 or 4").into());
    }
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    // Progressive ones are held as coefficients of two bytes until their last scan.
    check_size(height, width, RGB + 2 * components, budget)?;
    // Each block of 8x8 pixels takes a bit at least; what is missing would be decoded as grey.
    if height * width / 64 > 8 * bytes.len() {
        return Err(format!("it claims {height}x{width} pixels, for which it is too short").into());
    }
    picture.reshape(height, width, RGB);
    // At a scan that begins in the middle of another the decoder stops, and calls it done: the end would show the picture
    // that was here before. A mark there may be what is decoded by chance, but not a second one as well.
    for mark in [[0x5a, 0xc3, 0x96], [0xa5, 0x3c, 0x69]] {
        let start = picture.pixels.len() - RGB;
        picture.pixels[start..].copy_from_slice(&mark);
        decoder.decode_into(&mut picture.pixels).map_err(|error| error.to_string())?;
        if !picture.pixels.ends_with(&mark) {
            return Ok(());
        }
        decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    }
    Err("it has a scan in the middle of another".into())
}

/// Whether an end marker follows the last start of a scan. In between the bytes of either are escaped.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    const END: [u8; 2] = [0xff, 0xd9];
    const SCAN: [u8; 2] = [0xff, 0xda];
    let last = |marker| bytes.windows(2).rposition(|pair| pair == marker);
    // Nearly always the file ends with the marker, and need not be searched.
    bytes.ends_with(&END) || last(END).is_some_and(|end| last(SCAN).is_some_and(|scan| end > scan))
}

fn decode_png(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    let mut options = png::DecodeOptions::default();
    options.set_ignore_adler32(false); // the checksum of the pixels
    options.set_ignore_crc(true); // those of the chunks are checked here
    let bytes = checked_png(bytes)?;
    let mut decoder = png::Decoder::new_with_options(Cursor::new(&bytes), options);
    // Unpacking them takes time and memory, and nobody looks at them.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let (height, width) = (reader.info().height as usize, reader.info().width as usize);
    let samples = reader.output_color_type().0.samples();
    check_size(height, width, samples + RGB, budget)?;
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = memory::filled(0, size)?;
    reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    picture.reshape(height, width, RGB);
    fill_rgb(picture, pixels.chunks_exact(samples));
    Ok(())
}

/// The file, if its chunks have the right checksums, with all pixels in one chunk: of several, the decoder would not look at
/// those after the last pixel, which have the checksum of all.
fn checked_png(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Flaw> {
    const PIXELS: &[u8] = b"IDAT";
    let mut at = 8; // behind what tells the format
    let mut pixels: Vec<Range<usize>> = Vec::new();
    while let Some(&[a, b, c, d]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let body = at + 8..(at + 8).saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
        let kind = bytes.get(at + 4..at + 8).unwrap_or_default();
        let sum = bytes.get(body.end..).and_then(|rest| rest.first_chunk());
        let Some(&sum) = sum else {
            // As in Pillow, there must be no end once there are pixels.
            if kind == PIXELS || pixels.is_empty() {
                return Err("it is cut short".into());
            }
            break;
        };
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[at + 4..body.end]);
        if crc.sum() != u32::from_be_bytes(sum) {
            return Err(format!("the checksum of its {} is wrong", String::from_utf8_lossy(kind)).into());
        }
        at = body.end + 4;
        match kind {
            b"IEND" => break,
            PIXELS => pixels.push(body),
            b"PLTE" if !matches!(body.len(), 3..=768) || body.len() % 3 != 0 => {
                return Err("its palette has no whole number of colours".into());
            }
            _ => {}
        }
    }
    let [first, .., last] = &pixels[..] else { return Ok(bytes.into()) };
    if pixels.windows(2).any(|pair| pair[0].end + 12 != pair[1].start) {
        return Err("its pixels are interrupted".into());
    }
    let mut whole = memory::with_capacity(bytes.len())?;
    whole.extend_from_slice(&bytes[..first.start - 8]);
    let length: usize = pixels.iter().map(Range::len).sum(); // less than of the file
    whole.extend((length as u32).to_be_bytes());
    whole.extend(PIXELS);
    pixels.iter().for_each(|part| whole.extend_from_slice(&bytes[part.clone()]));
    whole.extend_from_slice(&bytes[last.end..]);
    Ok(whole.into())
}

/// The first frame. What it leaves blank has its transparent colour, or else the first one, as in Pillow.
fn decode_gif(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes(
        budget.min(MAX_PIXELS as u64).max(1).try_into().expect("is not 0"),
    ));
    let mut decoder = options.read_info(bytes).map_err(|error| error.to_string())?;
    let screen = [decoder.height(), decoder.width()].map(usize::from);
    let frame = decoder.next_frame_info().map_err(|error| error.to_string())?.ok_or("it has no frame")?;
    let [top, left, rows, columns] = [frame.top, frame.left, frame.height, frame.width].map(usize::from);
    let (height, width) = (screen[0].max(top + rows), screen[1].max(left + columns));
    check_size(height, width, 1 + RGB, budget)?;
    check_size(rows, columns, 1, budget)?;
    let blank = frame.transparent.unwrap_or(0);
    // A colour that the palette lacks is grey, as in Pillow.
    let mut colours: [[u8; 3]; 256] = std::array::from_fn(|grey| [grey as u8; 3]);
    let palette = decoder.palette().map_err(|error| error.to_string())?;
    for (colour, rgb) in colours.iter_mut().zip(palette.chunks_exact(3)) {
        colour.copy_from_slice(rgb);
    }
    let mut indices = memory::filled(0, rows * columns)?;
    decoder.read_into_buffer(&mut indices).map_err(|error| error.to_string())?;

    picture.reshape(height, width, RGB);
    let pixels = picture.pixels.as_chunks_mut::<3>().0;
    pixels.fill(colours[usize::from(blank)]);
    for (to, from) in pixels.chunks_exact_mut(width).skip(top).zip(indices.chunks_exact(columns)) {
        for (to, &index) in to[left..].iter_mut().zip(from) {
            *to = colours[usize::from(index)];
        }
    }
    Ok(())
}

fn decode_tiff(bytes: &[u8], picture: &mut Picture, budget: u64) -> Result<(), Flaw> {
    let Some((indices, palette)) = palette_tiff::split(bytes) else {
        return decode_by(TiffDecoder::new(Cursor::new(bytes)), picture, budget);
    };
    decode_by(TiffDecoder::new(Cursor::new(&indices)), picture, budget)?;
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        *pixel = palette[usize::from(pixel[0])];
    }
    Ok(())
}

/// Decodes with a decoder of the `image` crate, or says why it could not begin.
fn decode_by(
    decoder: ImageResult<impl ImageDecoder>,
    picture: &mut Picture,
    budget: u64,
) -> Result<(), Flaw> {
    let mut decoder = decoder.map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    let (height, width) = (height as usize, width as usize);
    let (samples, sample_bytes) = match decoder.color_type() {
        ColorType::L8 => (1, 1),
        ColorType::La8 => (2, 1),
        ColorType::Rgb8 => (3, 1),
        ColorType::Rgba8 => (4, 1),
        ColorType::L16 => (1, 2),
        ColorType::La16 => (2, 2),
        ColorType::Rgb16 => (3, 2),
        ColorType::Rgba16 => (4, 2),
        other => return Err(format!("its pixels are of kind {other:?}, which is not read").into()),
    };
    check_size(height, width, samples * sample_bytes + RGB, budget)?;
    let size = height * width * samples * sample_bytes;
    let mut limits = Limits::default();
    limits.max_alloc = Some(size as u64 + MAX_EXTRA.min(budget));
    decoder.set_limits(limits).map_err(|error| error.to_string())?;
    let mut pixels = memory::filled(0, size)?;
    decoder.read_image(&mut pixels).map_err(|error| error.to_string())?;
    if sample_bytes == 2 {
        for at in 0..size / 2 {
            let sample = u16::from_ne_bytes([pixels[2 * at], pixels[2 * at + 1]]);
            pixels[at] = (sample >> 8) as u8;
        }
        pixels.truncate(size / 2);
    }
    picture.reshape(height, width, RGB);
    fill_rgb(picture, pixels.chunks_exact(samples));
    Ok(())
}

/// Decodes `bytes` with `budget`, for the fuzz target, which is to see what panics.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8], budget: u64) {
    let mut picture = Picture::default();
    if decode(bytes, &mut picture, budget).is_ok() {
        assert_eq!(picture.pixels.len(), picture.height * picture.width * RGB);
        assert!((picture.pixels.len() as u64) <= budget);
    }
}

/// Fills an RGB picture with pixels of grey or RGB, with or without transparency.
fn fill_rgb<'a>(picture: &mut Picture, pixels: impl Iterator<Item = &'a [u8]>) {
    for (to, from) in picture.pixels.chunks_exact_mut(3).zip(pixels) {
        match from {
            [grey] | [grey, _] => to.fill(*grey),
            rgb => to.copy_from_slice(&rgb[..3]),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// A picture of `tests/fixtures`, made by `tests/record_fixtures.py` or `tests/record_pictures.py`.
    pub(crate) fn fixture(name: &str) -> Picture {
        let mut picture = Picture::default();
        read(&fixture_path(name), &mut Vec::new(), &mut picture, u64::MAX).unwrap();
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

    /// Decodes bytes; if that does not go, says why.
    fn try_decode(bytes: &[u8]) -> Result<(), String> {
        decode_any(bytes, &mut Picture::default(), u64::MAX).map_err(|flaw| match flaw {
            Flaw::Broken(what) => what,
            Flaw::TooLarge(source) => source.to_string(),
        })
    }

    #[test]
    fn jpegs_are_decoded_as_by_pil() {
        let names = ["420", "422", "444", "progressive", "restarts", "grey", "cmyk", "ycck", "rotated"];
        for name in names {
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

    /// The files of a format and kind of pixels in `tests/fixtures`, and the names of what Pillow makes of them.
    fn formats() -> Vec<(PathBuf, String)> {
        let files = fs::read_dir(fixture_path("")).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_string();
        let mut formats: Vec<_> = files
            .filter(|path| name(path).starts_with("format-") && path.extension().unwrap() != "png")
            .map(|path| (path.clone(), name(&path)))
            .collect();
        formats.sort();
        formats
    }

    #[test]
    fn other_formats_are_decoded_as_by_pil() {
        let formats = formats();
        assert_eq!(formats.len(), 27);
        for (path, name) in formats {
            let mut picture = Picture::default();
            read(&path, &mut Vec::new(), &mut picture, u64::MAX).unwrap();
            let (most, mean) = difference(&picture, &fixture(&format!("{name}.png")));
            let is_close = match name.contains("lossy") || name.contains("cmyk") {
                true => most <= 2 && mean < 0.1,
                false => most == 0,
            };
            assert!(is_close, "{name}: at most {most}, on average {mean}");
        }
    }

    #[test]
    fn of_16_bits_the_upper_byte_is_kept() {
        for name in ["deep.tif", "deep.pgm"] {
            let grey: Vec<u8> = fixture(name).pixels.chunks_exact(3).map(|pixel| pixel[0]).collect();
            assert_eq!(grey, [0, 36, 73, 109, 146, 182, 219, 255], "{name}");
        }
    }

    #[test]
    fn broken_files() {
        let fails = |bytes: &[u8], part: &str| {
            let error = try_decode(bytes).unwrap_err();
            assert!(error.contains(part), "{error} lacks {part}");
        };
        fails(b"", "empty");
        fails(b"<html>", "it is no JPEG");
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
        try_decode(&[&jpeg[..], &[0; 9], b"\xff\xda rubbish"].concat()).unwrap_err();
        try_decode(&[&jpeg[..], &[0; 9]].concat()).unwrap();
        // A header that claims a size that is not there.
        let start = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let mut huge = jpeg.clone();
        huge[start + 5..][..4].fill(0xff);
        fails(&huge, "");
        let mut huge = png.clone();
        huge[16..24].fill(0x7f);
        fails(&huge, "");
        let mut large = jpeg.clone();
        large[start + 5..][..4].copy_from_slice(&2000_u16.to_be_bytes().repeat(2));
        fails(&large, "2000x2000");
        // A checksum that is not that of the pixels; the checksum of the chunk is made anew.
        let start = png.windows(4).position(|name| name == b"IDAT").unwrap();
        let length = u32::from_be_bytes(*png[start - 4..].first_chunk().unwrap()) as usize;
        let end = start + 4 + length;
        let mut wrong = png.clone();
        wrong[end - 1] ^= 1;
        let mut crc = flate2::Crc::new();
        crc.update(&wrong[start..end]);
        wrong[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        fails(&wrong, "");
    }

    /// Every byte of a PNG file is under a checksum, up to its last chunk.
    #[test]
    fn every_damaged_bit_of_a_png_is_found() {
        let good = small_png();
        try_decode(&good).unwrap();
        for at in 0..good.len() - 12 {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                assert!(try_decode(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    /// Of any size, in one chunk or several, the checksum of the pixels is looked at.
    #[test]
    fn the_checksum_of_the_pixels_counts() {
        for side in (1..64).chain([100, 300, 500]) {
            let rows: Vec<u8> = (0_u32..side * (3 * side + 1))
                .map(|i| if i % (3 * side + 1) == 0 { 0 } else { (i.wrapping_mul(i) >> 3) as u8 })
                .collect();
            for level in
                [flate2::Compression::none(), flate2::Compression::fast(), flate2::Compression::best()]
            {
                let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), level);
                io::Write::write_all(&mut packed, &rows).unwrap();
                let mut packed = packed.finish().unwrap();
                for part in [packed.len(), 4, 1000] {
                    try_decode(&png_of(side, &packed, part)).unwrap();
                }
                *packed.last_mut().unwrap() ^= 1;
                for part in [packed.len(), 4, 1000] {
                    assert!(try_decode(&png_of(side, &packed, part)).is_err(), "{side} {level:?} {part}");
                }
            }
        }
    }

    /// A square of RGB, its pixels `packed` in chunks of `part` bytes.
    fn png_of(side: u32, packed: &[u8], part: usize) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut chunk = |kind: &[u8], body: &[u8]| {
            let (mut crc, named) = (flate2::Crc::new(), [kind, body].concat());
            crc.update(&named);
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(named);
            bytes.extend(crc.sum().to_be_bytes());
        };
        let [a, b, c, d] = side.to_be_bytes();
        chunk(b"IHDR", &[a, b, c, d, a, b, c, d, 8, 2, 0, 0, 0]);
        packed.chunks(part).for_each(|part| chunk(b"IDAT", part));
        chunk(b"IEND", b"");
        bytes
    }

    /// The decoder leaves off, and the picture before would show.
    #[test]
    fn a_scan_in_the_middle_of_another_is_broken() {
        let jpeg = fs::read(fixture_path("jpeg-420.jpg")).unwrap();
        let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
        let (head, body) = jpeg.split_at(scan + 14);
        let bytes = [head, &body[..200], &jpeg[scan..]].concat();
        let error = try_decode(&bytes).unwrap_err();
        assert!(error.contains("in the middle"), "{error}");
    }

    /// With a palette, a gamma value, and pixels in several chunks.
    fn small_png() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 7, 5);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette((0..96).collect::<Vec<u8>>());
        encoder.set_source_gamma(png::ScaledFloat::new(0.45));
        let mut writer = encoder.write_header().unwrap();
        let mut stream = writer.stream_writer_with_size(8).unwrap();
        io::Write::write_all(&mut stream, &std::array::from_fn::<u8, 35, _>(|i| i as u8 * 7 % 32)).unwrap();
        stream.finish().unwrap();
        writer.finish().unwrap();
        assert!(bytes.windows(4).filter(|name| name == b"IDAT").count() > 1);
        bytes
    }

    #[test]
    fn memory_is_asked_for_within_the_budget() {
        // 47 x 61 pixels.
        for name in ["wide.png", "format-gif.gif", "format-ppm.ppm", "format-tiff-rgb.tif", "jpeg-420.jpg"] {
            let path = fixture_path(name);
            let read = |budget| read(&path, &mut Vec::new(), &mut Picture::default(), budget);
            let length = fs::metadata(&path).unwrap().len();
            read(1 << 20).unwrap();
            for budget in [0, length - 1, length.max(1000)] {
                let error = read(budget).unwrap_err();
                assert!(matches!(error, PictureError::TooLarge { .. }), "{name}: {error}");
                assert!(error.to_string().contains("it would take"), "{error}");
            }
        }
        // A file of holes is not read.
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("x.png");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = read(&path, &mut Vec::new(), &mut Picture::default(), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("it has 1099511627776 bytes"), "{error}");
    }

    #[test]
    fn other_formats_cut_short() {
        // Of an animation, the first half holds the first frame.
        for (path, name) in formats().into_iter().filter(|(_, name)| !name.contains("frames")) {
            let good = fs::read(&path).unwrap();
            for length in 2..good.len() / 2 {
                assert!(try_decode(&good[..length]).is_err(), "{name}: {length}");
            }
        }
    }

    /// Progressive, of two components, said to be YCCK: at this, the decoder panics.
    fn two_components() -> Vec<u8> {
        let mut jpeg = b"\xff\xd8".to_vec();
        let mut segment = |marker: u8, body: &[u8]| {
            jpeg.extend([0xff, marker]);
            jpeg.extend((body.len() as u16 + 2).to_be_bytes());
            jpeg.extend(body);
        };
        segment(0xee, b"Adobe\0\x64\0\0\0\0\x02");
        segment(0xdb, &[&[0][..], &[1; 64]].concat());
        segment(0xc2, &[8, 0, 8, 0, 8, 2, 1, 0x11, 0, 2, 0x11, 0]);
        let lengths = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
        segment(0xc4, &[&[0][..], &lengths, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]].concat());
        segment(0xda, &[2, 1, 0, 2, 0, 0, 0, 0]);
        jpeg.extend(b"\x0f\xff\xd9");
        jpeg
    }

    #[test]
    fn two_components_are_broken() {
        let error = try_decode(&two_components()).unwrap_err();
        assert!(error.contains("2 colour components"), "{error}");
    }

    #[test]
    fn a_panic_means_a_broken_picture() {
        let mut picture = fixture("wide.png");
        let error = guarded(&mut picture, |_| panic!("at a damaged header")).unwrap_err();
        assert!(matches!(&error, Flaw::Broken(what) if what.contains("stumbled")), "{error:?}");
        assert_eq!(picture, Picture::default());
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened() {
        use std::os::unix::net::UnixListener;
        let dir = tempfile::TempDir::new().unwrap();
        let (folder, socket, link) =
            (dir.path().join("x.png"), dir.path().join("s.png"), dir.path().join("l"));
        fs::create_dir(&folder).unwrap();
        let _socket = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [folder, socket, link] {
            let error = read(&path, &mut Vec::new(), &mut Picture::default(), u64::MAX).unwrap_err();
            assert!(matches!(error, PictureError::NoFile(_)), "{error}");
        }
    }

    /// Whatever the bytes, the decoders return.
    #[test]
    fn damaged_files_do_no_harm() {
        let mut random = 1_u32;
        let names = ["jpeg-420.jpg", "jpeg-progressive.jpg", "jpeg-cmyk.jpg", "png-palette.png"];
        let others = formats().into_iter().map(|(path, _)| path);
        for path in names.map(fixture_path).into_iter().chain(others) {
            let good = fs::read(path).unwrap();
            for _ in 0..300 {
                let mut bytes = good.clone();
                for _ in 0..4 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = random as usize >> 8;
                    bytes[at % good.len()] ^= 1 << (random & 7);
                }
                let _ = try_decode(&bytes);
            }
        }
    }

    #[test]
    fn errors_name_the_file() {
        let read = |path: &str| read(Path::new(path), &mut Vec::new(), &mut Picture::default(), u64::MAX);
        let error = read("/no/such.jpg").unwrap_err().to_string();
        assert!(error.contains("/no/such.jpg"), "{error}");
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("\u{1b}[31m.png");
        fs::write(&path, "").unwrap();
        let error = read(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("/\\u{1b}[31m.png` is broken"), "{error}");
        let error = read(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap_err().to_string();
        assert!(error.contains("Cargo.toml` is broken"), "{error}");
    }
}
