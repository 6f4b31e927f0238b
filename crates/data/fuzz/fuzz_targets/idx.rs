//! Bytes of any kind as a file of images and of labels, plain and compressed; what is accepted has whole images and labels
//! that are classes. The first byte chooses the set.

#![no_main]

use libfuzzer_sys::fuzz_target;
use srigl_data::{DataSet, fuzzing};

const SETS: [DataSet; 2] = [DataSet::Mnist, DataSet::EmnistLetters];

fuzz_target!(|bytes: &[u8]| {
    srigl_tensors::memory::set_limit(1 << 16);
    if let [set, bytes @ ..] = bytes {
        fuzzing::idx(SETS[usize::from(*set) % SETS.len()], bytes);
    }
});
