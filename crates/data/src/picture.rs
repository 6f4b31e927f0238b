//! Files of pictures to pixels: JPEG, PNG, BMP, GIF, PNM (PPM, PGM, PBM), TIFF and WebP, told apart by their
//! first bytes, whatever they are called.
//!
//! As in torchvision, everything becomes RGB: grey is repeated, palettes are looked up, CMYK is mixed,
//! transparency is dropped, orientation tags are ignored, and of an animation the first frame is taken. Of
//! 16-bit samples the upper byte is kept, where Pillow makes nearly all of them white.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
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
    /// It is no picture, or a broken one.
    #[error("`{}` is broken ({}); get it again, or remove it", shown(path), printable(what))]
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
    let read_error = |source| PictureError::Read { path: path.into(), source };
    // A pipe would keep its reader waiting, and a device may act when it is opened.
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(PictureError::NoFile(path.into()));
    }
    bytes.clear();
    let file = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(bytes));
    file.map_err(read_error)?;
    guarded(picture, |picture| decode(bytes, picture))
        .map_err(|what| PictureError::Broken { path: path.into(), what })
}

/// Has a picture decoded. If the decoder panics, the picture is broken; the program goes on.
fn guarded(
    picture: &mut Picture,
    decode: impl FnOnce(&mut Picture) -> Result<(), String>,
) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| decode(picture))).unwrap_or_else(|_| {
        *picture = Picture::default(); // it may be half done
        Err("its decoder stumbled over it".to_string())
    })
}

/// Decodes a file of any of the formats, or says what is wrong with it.
fn decode(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    let reader = Cursor::new(bytes);
    match bytes {
        [0xff, 0xd8, ..] => decode_jpeg(bytes, picture),
        [0x89, b'P', b'N', b'G', ..] => decode_png(bytes, picture),
        [b'G', b'I', b'F', b'8', ..] => decode_gif(bytes, picture),
        [b'B', b'M', ..] => decode_by(BmpDecoder::new(reader), picture),
        [b'P', b'1'..=b'6', b'\t' | b'\n' | b'\r' | b' ' | b'#', ..] => {
            decode_by(PnmDecoder::new(reader), picture)
        }
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => decode_tiff(bytes, picture),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            decode_by(WebPDecoder::new(reader), picture)
        }
        [] => Err("it is empty".to_string()),
        _ => Err("it is no JPEG, PNG, BMP, GIF, PNM, TIFF or WebP file".to_string()),
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
    // Being strict, the decoder fails where it would make up what it cannot decode.
    let options = DecoderOptions::new_fast().jpeg_set_out_colorspace(ColorSpace::RGB).set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    if decoder.decode_headers().is_err() {
        // Stray bytes between the headers are common and harmless.
        let options = options.set_strict_mode(false);
        decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers().map_err(|error| error.to_string())?;
    }
    let info = decoder.info().ok_or("it has no header")?;
    // As in Pillow; the decoder panics at some of the others.
    if ![1, 3, 4].contains(&info.components) {
        return Err(format!("it has {} colour components, not 1, 3 or 4", info.components));
    }
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    check_size(height, width)?;
    // Each block of 8x8 pixels takes a bit at least; what is missing would be decoded as grey.
    if height * width / 64 > 8 * bytes.len() {
        return Err(format!("it claims {height}x{width} pixels, for which it is too short"));
    }
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
    let mut options = png::DecodeOptions::default();
    options.set_ignore_adler32(false); // the checksum of the pixels
    let mut decoder = png::Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(|error| error.to_string())?;
    let (height, width) = (reader.info().height as usize, reader.info().width as usize);
    check_size(height, width)?;
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(|error| error.to_string())?;
    let samples = reader.output_color_type().0.samples();
    picture.reshape(height, width, 3);
    fill_rgb(picture, pixels.chunks_exact(samples));
    Ok(())
}

/// The first frame. What it leaves blank has its transparent colour, or else the first one, as in Pillow.
fn decode_gif(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes((MAX_PIXELS as u64).try_into().expect("is not 0")));
    let mut decoder = options.read_info(bytes).map_err(|error| error.to_string())?;
    let screen = [decoder.height(), decoder.width()].map(usize::from);
    let frame = decoder.next_frame_info().map_err(|error| error.to_string())?.ok_or("it has no frame")?;
    let [top, left, rows, columns] = [frame.top, frame.left, frame.height, frame.width].map(usize::from);
    let (height, width) = (screen[0].max(top + rows), screen[1].max(left + columns));
    check_size(height, width)?;
    check_size(rows, columns)?;
    let blank = frame.transparent.unwrap_or(0);
    // A colour that the palette lacks is grey, as in Pillow.
    let mut colours: [[u8; 3]; 256] = std::array::from_fn(|grey| [grey as u8; 3]);
    let palette = decoder.palette().map_err(|error| error.to_string())?;
    for (colour, rgb) in colours.iter_mut().zip(palette.chunks_exact(3)) {
        colour.copy_from_slice(rgb);
    }
    let mut indices = vec![0; rows * columns];
    decoder.read_into_buffer(&mut indices).map_err(|error| error.to_string())?;

    picture.reshape(height, width, 3);
    let pixels = picture.pixels.as_chunks_mut::<3>().0;
    pixels.fill(colours[usize::from(blank)]);
    for (to, from) in pixels.chunks_exact_mut(width).skip(top).zip(indices.chunks_exact(columns)) {
        for (to, &index) in to[left..].iter_mut().zip(from) {
            *to = colours[usize::from(index)];
        }
    }
    Ok(())
}

fn decode_tiff(bytes: &[u8], picture: &mut Picture) -> Result<(), String> {
    let Some((indices, palette)) = palette_tiff::split(bytes) else {
        return decode_by(TiffDecoder::new(Cursor::new(bytes)), picture);
    };
    decode_by(TiffDecoder::new(Cursor::new(&indices)), picture)?;
    for pixel in picture.pixels.as_chunks_mut::<3>().0 {
        *pixel = palette[usize::from(pixel[0])];
    }
    Ok(())
}

/// Decodes with a decoder of the `image` crate, or says why it could not begin.
fn decode_by(decoder: ImageResult<impl ImageDecoder>, picture: &mut Picture) -> Result<(), String> {
    let mut decoder = decoder.map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    let (height, width) = (height as usize, width as usize);
    check_size(height, width)?;
    let (samples, sample_bytes) = match decoder.color_type() {
        ColorType::L8 => (1, 1),
        ColorType::La8 => (2, 1),
        ColorType::Rgb8 => (3, 1),
        ColorType::Rgba8 => (4, 1),
        ColorType::L16 => (1, 2),
        ColorType::La16 => (2, 2),
        ColorType::Rgb16 => (3, 2),
        ColorType::Rgba16 => (4, 2),
        other => return Err(format!("its pixels are of kind {other:?}, which is not read")),
    };
    let size = height * width * samples * sample_bytes;
    let mut limits = Limits::default();
    limits.max_alloc = Some(size as u64 + MAX_EXTRA);
    decoder.set_limits(limits).map_err(|error| error.to_string())?;
    let mut pixels = vec![0; size];
    decoder.read_image(&mut pixels).map_err(|error| error.to_string())?;
    if sample_bytes == 2 {
        for at in 0..size / 2 {
            let sample = u16::from_ne_bytes([pixels[2 * at], pixels[2 * at + 1]]);
            pixels[at] = (sample >> 8) as u8;
        }
        pixels.truncate(size / 2);
    }
    picture.reshape(height, width, 3);
    fill_rgb(picture, pixels.chunks_exact(samples));
    Ok(())
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
            read(&path, &mut Vec::new(), &mut picture).unwrap();
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
            let error = decode(bytes, &mut Picture::default()).unwrap_err();
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

    #[test]
    fn other_formats_cut_short() {
        // Of an animation, the first half holds the first frame.
        for (path, name) in formats().into_iter().filter(|(_, name)| !name.contains("frames")) {
            let good = fs::read(&path).unwrap();
            for length in 2..good.len() / 2 {
                assert!(decode(&good[..length], &mut Picture::default()).is_err(), "{name}: {length}");
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
        let error = decode(&two_components(), &mut Picture::default()).unwrap_err();
        assert!(error.contains("2 colour components"), "{error}");
    }

    #[test]
    fn a_panic_means_a_broken_picture() {
        let mut picture = fixture("wide.png");
        let error = guarded(&mut picture, |_| panic!("at a damaged header")).unwrap_err();
        assert!(error.contains("stumbled"), "{error}");
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
            let error = read(&path, &mut Vec::new(), &mut Picture::default()).unwrap_err();
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
                let _ = decode(&bytes, &mut Picture::default());
            }
        }
    }

    #[test]
    fn errors_name_the_file() {
        let read = |path: &str| read(Path::new(path), &mut Vec::new(), &mut Picture::default());
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
