//! What a file's tensors take together is asked before they are read.

use safetensors::tensor::Dtype;
use srigl_run::Store;

#[test]
fn tensors_that_are_too_large_together_are_refused() {
    srigl_tensors::memory::set_limit(200);
    let mut store = Store::empty("weights".as_ref());
    // In half precision; as F32 each takes 100 bytes.
    for name in ["a", "b", "c"] {
        store.insert(name, Dtype::F16, vec![5, 5], vec![0; 50]);
    }
    store.check_memory(["a", "b"]).unwrap();
    store.check_memory(["a", "b", "not there"]).unwrap();
    let error = store.check_memory(["a", "b", "c"]).unwrap_err().to_string();
    assert!(error.contains("`weights`") && error.contains("too large together"), "{error}");
}

#[test]
fn a_pickle_may_hold_fewer_values_where_there_is_little_memory() {
    srigl_tensors::memory::set_limit(200);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    // Older files start with a number of ten bytes. A value takes about 128 bytes, so there may be one.
    std::fs::write(&path, [&b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."[..], &[b'N'; 20]].concat())
        .unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(error.contains("pickle"), "{error}");
}

#[test]
fn a_tensor_counts_the_bytes_of_its_numbers() {
    srigl_tensors::memory::set_limit(200);
    let mut store = Store::empty("weights".as_ref());
    for (name, dtype, count, each) in [
        ("bytes", Dtype::U8, 200, 1),
        ("more bytes", Dtype::U8, 201, 1),
        ("halves", Dtype::F16, 100, 2),
        ("more halves", Dtype::F16, 101, 2),
        ("doubles", Dtype::F64, 25, 8),
        ("more doubles", Dtype::F64, 26, 8),
    ] {
        store.insert(name, dtype, vec![count], vec![0; count * each]);
        let bytes = store.get(name).unwrap().bytes();
        assert_eq!(bytes.is_ok(), !name.starts_with("more"), "{name}");
    }
}
