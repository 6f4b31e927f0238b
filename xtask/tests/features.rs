//! Third-party crates get the same features whatever is built, so Burn is built once (`crates/features`).

use std::collections::BTreeSet;
use std::process::Command;

/// Packages that are built with `of`, one a line with version and features; without the workspace's own.
fn packages(of: &[&str]) -> BTreeSet<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
            "--format",
            "{p} [{f}]",
        ])
        .args(of)
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    // The workspace's own have a path behind the version.
    lines
        .lines()
        .map(|line| line.trim_end_matches(" (*)").to_string())
        .filter(|line| !line.contains(" (/"))
        .collect()
}

#[test]
fn one_build_of_burn() {
    let whole = packages(&["--workspace"]);
    let has_burn =
        |packages: &BTreeSet<String>| packages.iter().any(|package| package.starts_with("burn-core "));
    assert!(has_burn(&whole));
    for package in ["srigl-burn", "srigl-models", "srigl-train", "srigl-bench", "srigl-cli"] {
        let alone = packages(&["--package", package]);
        assert!(has_burn(&alone), "{package}");
        let others: Vec<_> = alone.difference(&whole).collect();
        assert!(
            others.is_empty(),
            "`cargo test -p {package}` would build anew, with other features: {others:#?}"
        );
    }
    for package in
        ["sparsity-core", "srigl-tensors", "condensed", "srigl-data", "srigl-run", "srigl-report", "xtask"]
    {
        assert!(!has_burn(&packages(&["--package", package])), "{package} builds Burn");
    }
}
