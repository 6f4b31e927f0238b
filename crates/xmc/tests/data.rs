//! Files that are read, and files that are refused with a place.

use proptest::prelude::*;
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
