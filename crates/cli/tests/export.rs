//! `srigl export`, and the files of other frameworks that it and others read.

use safetensors::SafeTensors;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn export(source: &Path, output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_srigl"));
    command.arg("export").arg(source).arg("-o").arg(output).output().unwrap()
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn floats(file: &SafeTensors, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.tensor(name).unwrap();
    let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor.shape().to_vec(), values)
}

#[test]
fn pytorch_files_become_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.safetensors");
    for name in ["state.pt", "checkpoint.pt", "legacy.pt"] {
        let result = export(&fixture(name), &output);
        assert!(result.status.success(), "{name}: {}", String::from_utf8_lossy(&result.stderr));
        let bytes = fs::read(&output).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort();
        assert_eq!(names, ["bn.num_batches_tracked", "fc.bias", "fc.weight", "turned.weight"], "{name}");
        assert_eq!(floats(&file, "fc.weight"), (vec![2, 3], vec![0.0, 0.25, 0.5, 0.75, 1.0, 1.25]), "{name}");
        assert_eq!(floats(&file, "fc.bias"), (vec![2], vec![1.0, -1.0]), "{name}");
        assert_eq!(
            floats(&file, "turned.weight"),
            (vec![3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
            "{name}"
        );
        assert_eq!(file.tensor("bn.num_batches_tracked").unwrap().data(), 7_i64.to_le_bytes(), "{name}");
    }
}

/// Wherever the file ends and whichever byte is wrong: an error that names it, or tensors, but no panic.
#[test]
fn damaged_pytorch_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("damaged.pt"), dir.path().join("out.safetensors"));
    for name in ["state.pt", "legacy.pt"] {
        let good = fs::read(fixture(name)).unwrap();
        let step = good.len() / 24;
        let cut = (1..24).map(|i| good[..i * step].to_vec());
        let changed = (1..24).map(|i| {
            let mut bytes = good.clone();
            bytes[i * step] ^= 0xff;
            bytes
        });
        for bytes in cut.clone().chain(changed) {
            fs::write(&source, &bytes).unwrap();
            fs::remove_file(&output).ok();
            let result = export(&source, &output);
            let error = String::from_utf8_lossy(&result.stderr);
            assert!(!error.contains("panicked"), "{name}: {error}");
            assert_eq!(result.status.success(), output.exists(), "{name}: {error}");
            assert!(result.status.success() || error.contains("damaged.pt"), "{name}: {error}");
        }
        for bytes in cut {
            fs::write(&source, &bytes).unwrap();
            assert!(!export(&source, &output).status.success(), "{name}, cut to {} bytes", bytes.len());
        }
    }
}

#[test]
fn masks_stay_behind_and_headers_of_any_length_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    // 0x280 bytes: the length starts with the two bytes that a pickle starts with.
    let mut header = br#"{"a.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"a.mask":{"dtype":"U8","shape":[1,1],"data_offsets":[4,5]}}"#.to_vec();
    header.resize(0x280, b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&header);
    bytes.extend([0, 0, 128, 63, 0]);
    fs::write(&source, &bytes).unwrap();
    let result = export(&source, &output);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let bytes = fs::read(&output).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.names(), ["a.weight"]);
    assert_eq!(floats(&file, "a.weight"), (vec![1, 1], vec![0.0]), "what is outside the mask is 0");
}
