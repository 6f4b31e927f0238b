//! The data set of Debian's package index.

use srigl_xmc::Points;
use srigl_xmc::debian::Debian;

const INDEX: &str = "\
Package: git-tool
Version: 2
Depends: libc6 (>= 2.3), perl:any | perl-base, shared [amd64]
Description: fast C++ tool
 for the x-words
Tag: role::program, works

Package: other-tool
Depends: libc6, shared
Description-en: the fast thing
Section: devel

Package: git-tool
Depends: old
Description: an older version

Package: nothing
Description: fast and the tool, depends on nothing

Package: third
Depends: libc6 (= 1),perl-base
Description: the fast thing
 the fast tool
Section: devel
";

#[test]
fn packages_are_points() {
    let debian = Debian::parse(INDEX).unwrap();
    // Of `fast`, `the` and `tool`, which all three have: `thing` and `devel` are words of two. Labels: libc6, perl-base, shared.
    assert_eq!((debian.packages(), debian.features(), debian.labels()), (3, 3, 3));
    let write = |seed| {
        let (mut train, mut test) = (Vec::new(), Vec::new());
        debian.write(seed, &mut train, &mut test).unwrap();
        (String::from_utf8(train).unwrap(), String::from_utf8(test).unwrap())
    };
    let (train, test) = write(0);
    assert!(train.starts_with("2 3 3\n") && test.starts_with("1 3 3\n"));
    let mut lines: Vec<&str> = train.lines().skip(1).chain(test.lines().skip(1)).collect();
    lines.sort_unstable();
    // Words that all have tell nothing: ln 1 = 0.
    let of_labels: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(of_labels, ["0,1", "0,1,2", "0,2"]);
    assert!(lines.iter().all(|line| line.ends_with(" 0:0.00000 1:0.00000 2:0.00000")), "{lines:?}");
    assert_eq!(write(0), write(0));
    assert!((1..9).any(|seed| write(seed) != write(0)));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), train).unwrap();
    assert_eq!(Points::read(file.path(), |_| {}).unwrap().len(), 2);
}

#[test]
fn weights_are_tf_idf() {
    let package =
        |name: &str, words: &str| format!("Package: {name}\nDepends: x, y\nDescription: {words}\n\n");
    let index = [
        package("p1", "alpha alpha beta"),
        package("p2", "alpha beta"),
        package("p3", "alpha beta"),
        package("p4", "alpha gamma"),
    ];
    let debian = Debian::parse(&index.concat()).unwrap();
    let mut lines = Vec::new();
    debian.write(0, &mut lines, &mut std::io::sink()).unwrap();
    let text = String::from_utf8(lines).unwrap();
    // alpha is in all four, beta in three: only the latter tells something.
    assert!(
        text.lines().skip(1).all(|line| ["0,1 0:0.00000 1:1.00000", "0,1 0:0.00000"].contains(&line)),
        "{text}"
    );
}

#[test]
fn other_text_is_no_index() {
    for text in [
        "",
        "a line",
        "Package: a\nDepends: b\n",
        "Package: a\n b\n:\n\n x\n\nDepends: c",
        "\u{0}\u{ff}é: ü\n é",
    ] {
        let error = Debian::parse(text).unwrap_err().to_string();
        assert!(error.contains("a package index of "), "{error}");
    }
}
