//! Nothing to do: without a build script, cargo has no use for the features of build dependencies.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
