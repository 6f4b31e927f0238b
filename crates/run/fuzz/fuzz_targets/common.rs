//! Bytes as a file of tensors, read as far as any command reads one.

use srigl_run::{LayerNames, Store};
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

/// In memory, where the system has such a place.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for a file")
});

/// Little, so that whoever asks for more by a word of the file is found.
const BUDGET: u64 = 1 << 24;

pub fn read(bytes: &[u8]) {
    srigl_tensors::memory::set_limit(BUDGET);
    let path: PathBuf = FOLDER.path().join("file");
    std::fs::write(&path, bytes).expect("room for a small file");
    let Ok(file) = Store::open(&path) else { return };
    for (name, tensor) in file.tensors() {
        if tensor.size() < BUDGET {
            _ = file.finite_floats(name, tensor);
            _ = file.bytes(tensor);
        }
    }
    let Ok((layers, _)) = file.layers(&LayerNames::default()) else { return };
    for layer in &layers {
        _ = file.mask(layer);
        _ = file.weight_fan_ins(layer);
    }
}
