//! Bytes of any kind as a picture, with little memory, so that whoever asks for more by a word of the file is found. The
//! first byte chooses how the file begins: few bytes at random begin as any format does.

#![no_main]

use libfuzzer_sys::fuzz_target;
use srigl_data::fuzzing;
use std::sync::Once;

/// The most bytes for a picture.
const BUDGET: u64 = 1 << 20;

const STARTS: [&[u8]; 9] = [
    b"",
    b"\xff\xd8",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"P6\n",
    b"II*\0",
    b"MM\0*",
    b"RIFF\x20\0\0\0WEBPVP8",
];

/// A decoder's panic is a broken picture, as for everybody; the fuzzer's own hook would end the process.
static HUSHED: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HUSHED.call_once(srigl_data::picture::hush_decoders);
    srigl_tensors::memory::set_limit(BUDGET);
    if let [start, bytes @ ..] = bytes {
        let start = STARTS[usize::from(*start) % STARTS.len()];
        let whole = [start, bytes].concat();
        fuzzing::picture(&whole, BUDGET);
    }
});
