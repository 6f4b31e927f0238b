//! Files that are read, and files that are refused with a place.

use proptest::prelude::*;
use srigl_tensors::{Dtype, RawTensor, TensorFile};
use srigl_xmc::{Error, LineError, Points};
use std::io::Write;

fn read(bytes: &[u8]) -> Result<Points, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Points::read(file.path(), |_| {})
}

fn refused(text: &str) -> (u64, LineError) {
    match read(text.as_bytes()) {
        Err(Error::Line { line, what, .. }) => (line, what),
        other => panic!("{text:?}: {other:?}"),
    }
}

#[test]
fn points_are_read_as_they_are_written() {
    let text = "3 9 4\n3,0,3 8:1 2:0.5 2:0.25\r\n1\n2 0:-1e-3 \n\n";
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    for bytes in [text.as_bytes().to_vec(), packed.finish().unwrap()] {
        let points = read(&bytes).unwrap();
        assert_eq!((points.len(), points.features(), points.labels()), (3, 9, 4));
        assert_eq!(points.label_counts().unwrap(), [1, 1, 1, 1]);
        let batch = points.batch(&[2, 0, 1, 0]).unwrap();
        assert_eq!(batch.len(), 4);
        // What is there twice counts once, and values add up.
        for at in [1, 3] {
            assert_eq!(batch.labels(at), [0, 3]);
            assert_eq!(batch.features(at), (&[2, 8][..], &[0.75, 1.0][..]));
        }
        assert_eq!((batch.labels(2), batch.features(2)), (&[1][..], (&[][..], &[][..])));
        assert_eq!((batch.labels(0), batch.features(0)), (&[2][..], (&[0][..], &[-1e-3][..])));
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    use LineError as Wrong;
    for text in
        ["", "\n", "3 4\n", "3 4 5 6\n", "a b c\n", "3 4 -5\n", "1e3 4 5\n", "99999999999999999999 1 1\n"]
    {
        assert_eq!(refused(text), (1, Wrong::Header), "{text:?}");
    }
    assert_eq!(refused("0 4 5\n"), (1, Wrong::Empty("points")));
    assert_eq!(refused("1 4 0\n0 0:1\n"), (1, Wrong::Empty("labels")));
    assert_eq!(refused("1 5000000000 1\n0 0:1\n"), (1, Wrong::TooMany("features")));
    let point = |line: &str| {
        let (at, what) = refused(&format!("2 9 4\n0 1:1\n{line}\n"));
        assert_eq!(at, 3, "{line:?}");
        what
    };
    assert_eq!(point(" 1:1"), Wrong::NoLabels);
    assert_eq!(point("1:1"), Wrong::NoLabels);
    assert_eq!(point(""), Wrong::NoLabels);
    assert_eq!(point("1,,2 1:1"), Wrong::Label(String::new()));
    assert_eq!(point("x 1:1"), Wrong::Label("x".into()));
    assert_eq!(point("-1 1:1"), Wrong::Label("-1".into()));
    assert_eq!(point("4 1:1"), Wrong::LabelRange { label: 4, labels: 4 });
    assert_eq!(point("0 9:1"), Wrong::FeatureRange { feature: 9, features: 9 });
    for pair in ["7", "7:", ":1", "7:x", "7:1:2", "7:\u{1b}[31m", "-7:1"] {
        assert!(matches!(point(&format!("0 {pair}")), Wrong::Feature(_)), "{pair}");
    }
    for value in ["NaN", "inf", "-inf", "1e39"] {
        let what = point(&format!("0 7:{value}"));
        assert!(matches!(what, Wrong::NotFinite { feature: 7, .. }), "{value}: {what:?}");
    }
    assert!(matches!(point("0 7:3e38 7:3e38"), Wrong::NotFinite { .. }), "their sum");
    assert_eq!(refused("3 9 4\n0 1:1\n1 2:2\n"), (4, Wrong::Short { got: 2, expected: 3 }));
    assert_eq!(refused("1 9 4\n0 1:1\n\n1 2:2\n"), (4, Wrong::Long(1)));
    // Control characters stay out of messages.
    assert!(!refused("1 9 4\n\u{1b}[31m 1:1\n").1.to_string().contains('\u{1b}'));
}

#[test]
fn sizes_that_a_file_only_claims_cost_nothing() {
    let points = read(b"1 4294967295 4294967295\n7 4294967294:1\n").unwrap();
    assert_eq!(points.batch(&[0]).unwrap().features(0).0, [4294967294]);
    assert!(matches!(refused("4294967295 2 2\n0 0:1\n").1, LineError::Short { .. }));
}

#[test]
fn damaged_archives_and_folders_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Points::read(folder.path(), |_| {}), Err(Error::Read { .. })));
    assert!(matches!(Points::read(&folder.path().join("none"), |_| {}), Err(Error::Read { .. })));
    assert!(matches!(read(&[0x1f, 0x8b, 8, 0, 1, 2, 3]), Err(Error::Read { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(prop_oneof![
        Just(b' '), Just(b':'), Just(b','), Just(b'\n'), Just(b'.'), Just(b'-'), Just(b'e'), b'0'..=b'9', any::<u8>(),
    ], 0..200), begin in any::<bool>()) {
        let mut text = if begin { b"2 9 4\n".to_vec() } else { Vec::new() };
        text.extend(bytes);
        let _ = read(&text);
    }
}

#[test]
fn points_to_be_predicted_need_no_labels() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "4 9 4\n 1:1\n2:1 3:1\n0,3 4:1\n\n").unwrap();
    let points = Points::read_unlabelled(file.path(), |_| {}).unwrap();
    let batch = points.batch(&[0, 1, 2, 3]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|point| batch.labels(point)), [&[][..], &[], &[0, 3], &[]]);
    assert_eq!([0, 1, 2, 3].map(|point| batch.features(point).0), [&[1][..], &[2, 3], &[4], &[]]);
}

/// A safetensors file with one tensor.
fn tensor(name: &str, dtype: Dtype, shape: [usize; 2], data: Vec<u8>) -> Vec<u8> {
    let tensor = RawTensor { dtype, shape: shape.into(), data: data.into() };
    let file = TensorFile { metadata: None, tensors: [(name.to_string(), tensor)].into() };
    let mut bytes = Vec::new();
    file.write(1 << 16, &mut bytes).unwrap();
    bytes
}

fn f32s(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[test]
fn dense_features_are_those_of_a_text_with_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let numbers = [0.5, -1.0, 2.0, 0.25, 8.0, -0.125];
    std::fs::write(path("text"), "2 3 4\n0,2 0:0.5 1:-1 2:2\n3 0:0.25 1:8 2:-0.125\n").unwrap();
    std::fs::write(path("labels"), "2 3 4\n0,2\n3\n").unwrap();
    let text = Points::read(&path("text"), |_| {}).unwrap().batch(&[1, 0, 1]).unwrap();
    let half = |bits: fn(f32) -> [u8; 2]| numbers.into_iter().flat_map(bits).collect::<Vec<u8>>();
    let bf16 = |number: f32| (((number.to_bits() >> 16) & 0xffff) as u16).to_le_bytes();
    // Those of these numbers are exact.
    let f16 = |number: f32| {
        let (sign, exponent) = (number.to_bits() >> 31 << 15, (number.abs().log2() as i32 + 15) as u32);
        ((sign | exponent << 10) as u16).to_le_bytes()
    };
    for (dtype, data) in [(Dtype::F32, f32s(&numbers)), (Dtype::BF16, half(bf16)), (Dtype::F16, half(f16))] {
        std::fs::write(path("dense"), tensor("x", dtype, [2, 3], data)).unwrap();
        let points = Points::read_dense(&path("labels"), &path("dense"), |_| {}).unwrap();
        assert_eq!((points.len(), points.features(), points.labels()), (2, 3, 4));
        assert_eq!(points.batch(&[1, 0, 1]).unwrap(), text, "{dtype}");
        let alone = Points::read_unlabelled_dense(&path("dense"), |_| {}).unwrap();
        assert_eq!((alone.len(), alone.features(), alone.labels()), (2, 3, 0));
        let batch = alone.batch(&[1, 0]).unwrap();
        assert_eq!((batch.labels(0), batch.features(0)), (&[][..], text.features(0)));
        assert_eq!(batch.features(1), text.features(1));
    }
    // The same points are told from others by their digest.
    let sha = |labels: &str, numbers: &[f32]| {
        std::fs::write(path("labels"), labels).unwrap();
        std::fs::write(path("dense"), tensor("x", Dtype::F32, [2, 3], f32s(numbers))).unwrap();
        Points::read_dense(&path("labels"), &path("dense"), |_| {}).unwrap().sha256().to_string()
    };
    let first = sha("2 3 4\n0,2\n3\n", &numbers);
    assert_eq!(first, sha("2 3 4\n2,0 \n3\n", &numbers));
    assert_ne!(first, sha("2 3 4\n0,1\n3\n", &numbers));
    assert_ne!(first, sha("2 3 4\n0,2\n3\n", &[0.5, -1.0, 2.0, 0.25, 8.0, -0.25]));
}

#[test]
fn dense_features_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refused = |labels: &str, bytes: Vec<u8>| {
        std::fs::write(path("labels"), labels).unwrap();
        std::fs::write(path("dense"), bytes).unwrap();
        Points::read_dense(&path("labels"), &path("dense"), |_| {}).unwrap_err().to_string()
    };
    let good = tensor("x", Dtype::F32, [2, 3], f32s(&[1.0; 6]));
    let labels = "2 3 4\n0\n1\n";
    for (labels, bytes, says) in [
        ("2 5 4\n0\n1\n", good.clone(), "labels`, line 1: 5 features, but the file with dense ones has 3"),
        ("2 3 4\n0\n1 0:1\n", good.clone(), "labels`, line 3: a point with features, though there is a file"),
        ("1 3 4\n0\n", good.clone(), "dense`: 2 rows for 1 points of `"),
        (labels, good[..good.len() - 1].to_vec(), "dense`: tensor `x` lies at 0 to 24"),
        (labels, b"text".to_vec(), "dense`: it has less than 8 bytes"),
        (labels, tensor("x", Dtype::I32, [2, 3], f32s(&[1.0; 6])), "of the type I32, not F32"),
        (labels, tensor("x", Dtype::F32, [0, 3], Vec::new()), "there must be some"),
        (
            labels,
            tensor("x", Dtype::F32, [2, 3], f32s(&[1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0])),
            "dense`: row 1, column 1 has the value NaN",
        ),
    ] {
        let said = refused(labels, bytes);
        assert!(said.contains(says), "{said}");
    }
    let mut two = TensorFile::default();
    for name in ["a", "b"] {
        let data = f32s(&[1.0; 6]).into();
        two.tensors.insert(name.into(), RawTensor { dtype: Dtype::F32, shape: vec![2, 3], data });
    }
    let mut bytes = Vec::new();
    two.write(1 << 16, &mut bytes).unwrap();
    assert!(refused(labels, bytes).contains("2 tensors, of which none is called `features`"));
}
