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
