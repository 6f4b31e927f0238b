//! Bytes of any kind as records, as pickles and as an archive of either, with files cut to two images; what is accepted has
//! whole images and labels that are classes. The first byte chooses the set and its form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use srigl_data::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    srigl_tensors::memory::set_limit(1 << 24);
    if let [choice, bytes @ ..] = bytes {
        fuzzing::cifar(*choice, bytes);
    }
});
