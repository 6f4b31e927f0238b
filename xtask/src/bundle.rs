//! `cargo xtask gpu-bundle`: one file with all that a machine with a GPU needs.
//!
//! Kernels are compiled by NVRTC there (feature `cuda-nvrtc`), so `cubecl-llvm` is only linked, never called; a stand-in
//! (`.ci/cubecl-llvm`) takes its place and spares the download of LLVM.

use crate::runner::{Executable, executables, shell_line};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use srigl_run::print;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `cargo xtask gpu-bundle`.
#[derive(Args)]
#[command(after_help = "\
On the other machine: tar xf srigl-gpu.tar.xz && srigl-gpu/run.sh tests

Examples:
  cargo xtask gpu-bundle
  cargo xtask gpu-bundle -o /tmp/srigl-gpu.tar.xz")]
pub struct GpuBundle {
    /// File to write [default: srigl-gpu.tar.xz in the target folder].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What runs on the other machine.
const SCRIPT: &str = include_str!("../bundle/run.sh");

/// Integration tests of `srigl-burn` that use a GPU.
const TESTS: [&str; 4] = ["condensed", "gpu", "launches", "network"];

/// Name of the folder in the bundle.
const FOLDER: &str = "srigl-gpu";

/// Binaries share most of their code, which is stored once if the memory reaches back to the binary before.
const DICTIONARY: u32 = 256 << 20;

/// Builds and packs. Prints what is in the bundle.
///
/// # Errors
/// If something cannot be built, stripped or written; no output is left then.
pub fn run(args: &GpuBundle) -> Result<()> {
    let root = crate::workspace_root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let output = args.output.clone().unwrap_or_else(|| target.join("srigl-gpu.tar.xz"));
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--output {}: there is no such folder", output.display());

    let built = build(root, &target.join("cuda"))?;
    let stage = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut files = Vec::new();
    for (name, path) in built {
        let stripped = stage.path().join(name.replace('/', "-"));
        strip(&path, &stripped)?;
        files.push((name, stripped));
    }

    let packed = tempfile::Builder::new().prefix(".tmp").make_in(folder, |path| File::create_new(path))?;
    pack(packed.as_file(), &files).with_context(|| format!("cannot write {}", output.display()))?;
    packed.persist(&output).with_context(|| format!("cannot write {}", output.display()))?;
    let size = |path: &Path| path.metadata().map_or(0.0, |file| file.len() as f64 / 1e6);
    for (name, path) in &files {
        print::line(&format!("{FOLDER}/{name}: {:.1} MB", size(path)))?;
    }
    let wrote = format!("{FOLDER}/run.sh\nwrote {}: {:.1} MB", output.display(), size(&output));
    Ok(print::line(&wrote)?)
}

/// Builds `srigl` and the tests for CUDA. Paths in the bundle and here.
fn build(root: &Path, target: &Path) -> Result<Vec<(String, PathBuf)>> {
    let stand_in = root.join(".ci/cubecl-llvm");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--package", "srigl-cli", "--package", "srigl-burn", "--bin", "srigl"])
        .args(TESTS.iter().flat_map(|test| ["--test", test]))
        .args(["--features", "srigl-cli/cuda-nvrtc,srigl-burn/cuda-nvrtc"])
        .args(["--config", &format!("patch.crates-io.cubecl-llvm.path='{}'", stand_in.display())])
        .arg("--message-format=json-render-diagnostics")
        .arg("--target-dir")
        .arg(target)
        .current_dir(root)
        .stderr(Stdio::inherit());
    // The stand-in needs less, and cargo would take the rest out of the lock file.
    let lock = LockFile::keep(root.join("Cargo.lock"))?;
    let output = command.output().with_context(|| format!("cannot start {}", shell_line(&command)))?;
    lock.restore()?;
    ensure!(output.status.success(), "building for CUDA failed: {}", shell_line(&command));
    let mut files = choose(&executables(&String::from_utf8_lossy(&output.stdout)))?;
    // This very program, for the tables of training runs.
    files.push(("xtask".into(), std::env::current_exe().context("this program has no path")?));
    Ok(files)
}

/// `srigl` and the tests of `srigl-burn`, by their paths in the bundle; other packages have tests of the same names.
fn choose(built: &[Executable]) -> Result<Vec<(String, PathBuf)>> {
    let find = |name: &str, source: &str| {
        let built = built.iter().find(|built| built.name == name && built.source.ends_with(source));
        built.map(|built| built.path.clone()).with_context(|| format!("cargo built no `{name}` of {source}"))
    };
    let mut files = vec![("srigl".to_string(), find("srigl", "crates/cli/src/main.rs")?)];
    for name in TESTS {
        files.push((format!("tests/{name}"), find(name, &format!("crates/srigl-burn/tests/{name}.rs"))?));
    }
    Ok(files)
}

/// The lock file as it was, put back at the end; after a kill, `git checkout Cargo.lock` does it.
struct LockFile {
    path: PathBuf,
    text: Option<Vec<u8>>,
}

impl LockFile {
    fn keep(path: PathBuf) -> Result<Self> {
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, text: Some(text) })
    }

    fn restore(mut self) -> Result<()> {
        Ok(self.write()?)
    }

    fn write(&mut self) -> Result<(), srigl_run::Error> {
        self.text.take().map_or(Ok(()), |text| srigl_run::atomic::write(&self.path, &text))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if let Err(error) = self.write() {
            print::say(&format!("cannot restore {}: {error}", self.path.display()));
        }
    }
}

/// A copy of a binary without symbols.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("strip");
    command.arg("-o").arg(to).arg(from);
    let status = command.status().with_context(|| {
        format!("cannot start {}; install binutils, which has `strip`", shell_line(&command))
    })?;
    if !status.success() {
        bail!("{}: {status}", shell_line(&command));
    }
    Ok(())
}

/// A tar archive of executables, compressed.
fn pack(output: impl Write, files: &[(String, PathBuf)]) -> Result<()> {
    let total = files.iter().map(|(_, path)| path.metadata().map_or(0, |file| file.len())).sum();
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template("packing {bar:40} {bytes}/{total_bytes} {eta}")?);
    let mut options = LzmaOptions::new_preset(3)?;
    options.dict_size(DICTIONARY);
    let mut filters = Filters::new();
    // Not `x86`: it makes code that is the same at two places differ.
    filters.lzma2(&options);
    let stream = Stream::new_stream_encoder(&filters, Check::Crc64)?;
    let mut archive = tar::Builder::new(XzEncoder::new_stream(BufWriter::new(output), stream));
    let mut append = |name: &str, size: u64, data: &mut dyn std::io::Read| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o755);
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), data)?;
        Ok(())
    };
    append("run.sh", SCRIPT.len() as u64, &mut SCRIPT.as_bytes())?;
    for (name, path) in files {
        let file = File::open(path)?;
        append(name, file.metadata()?.len(), &mut bar.wrap_read(file))?;
    }
    archive.into_inner()?.finish()?.flush()?;
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn tests_of_other_packages_are_left_out() {
        let executable = |name: &str, source: &str| Executable {
            name: name.into(),
            source: format!("/w/crates/{source}").into(),
            path: format!("/t/{source}").into(),
        };
        let mut built: Vec<Executable> =
            TESTS.map(|name| executable(name, &format!("srigl-burn/tests/{name}.rs"))).into();
        built.push(executable("condensed", "cli/tests/condensed.rs"));
        assert!(choose(&built).unwrap_err().to_string().contains("no `srigl`"));
        built.push(executable("srigl", "cli/src/main.rs"));
        let files = choose(&built).unwrap();
        assert_eq!(files.len(), 1 + TESTS.len());
        let condensed = files.iter().find(|(name, _)| name == "tests/condensed").unwrap();
        assert_eq!(condensed.1, Path::new("/t/srigl-burn/tests/condensed.rs"));
    }

    /// What comes out of the archive is what went in, ready to be run; and the script says how it is used.
    #[test]
    fn a_bundle_unpacks_into_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        let bytes: Vec<u8> = (0..100_000u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
        std::fs::write(&program, &bytes).unwrap();
        let packed = folder.path().join("bundle.tar.xz");
        pack(File::create(&packed).unwrap(), &[("tests/gpu".into(), program)]).unwrap();

        let archive = liblzma::read::XzDecoder::new(File::open(&packed).unwrap());
        tar::Archive::new(archive).unpack(folder.path()).unwrap();
        let unpacked = folder.path().join(FOLDER);
        assert_eq!(std::fs::read(unpacked.join("tests/gpu")).unwrap(), bytes);
        let mode = unpacked.join("tests/gpu").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);

        let script = format!("{FOLDER}/run.sh");
        let usage = Command::new("sh").arg(script).current_dir(folder.path()).output().unwrap();
        assert_eq!(usage.status.code(), Some(2));
        let usage = String::from_utf8(usage.stdout).unwrap();
        assert!(
            usage.starts_with("Tests and benchmarks") && usage.contains("run.sh bench [PYTHON]"),
            "{usage}"
        );
    }

    /// A failing test does not stop the others, and the exit code tells. Paths are those of the caller's folder.
    #[test]
    fn the_script_runs_all_tests_and_tells() {
        let folder = tempfile::tempdir().unwrap();
        let executable = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        executable("b/run.sh", SCRIPT);
        executable("b/tests/gpu", "#!/bin/sh\necho no device; exit 3\n");
        executable("b/tests/network", "#!/bin/sh\necho fine\n");
        executable("b/srigl", "#!/bin/sh\necho srigl $*\n");
        executable("b/xtask", "#!/bin/sh\necho xtask $*; test -e \"$8/here\"\n");
        executable("data/here", "");
        let script = || {
            let mut command = Command::new("b/run.sh");
            command.current_dir(folder.path()).env("RESULTS", "out").env("CUDA_PATH", "/cuda");
            command
        };
        let output = script().arg("tests").env("DEVICE", "cuda:1").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "failed: test-gpu\n");
        let result = |name: &str| std::fs::read_to_string(folder.path().join("out").join(name)).unwrap();
        assert_eq!(result("test-gpu.txt"), "no device\nexit code 3\n");
        assert!(result("eval.txt").contains("--device cuda:1"));

        executable("b/tests/gpu", "#!/bin/sh\n");
        let output = script().args(["all", "./my python", "data"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(result("linear-0.9-256.txt").contains("--device cuda --torch ./my python"));
        assert!(result("fashion-mnist.txt").contains("--data data --out out/fashion-mnist-gpu"));
    }
}
