//! What becomes of a folder of data: opens it, makes an epoch of its batches at 32 pixels, and says what came of it, how long
//! it took, and the most memory that was held.
//!
//! ```text
//! cargo run -p srigl-data --example hostile -- SET DIR fail|skip
//! ```

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use srigl_data::{DataSet, Loader, OnBroken, Options, Source, Transform};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [set, dir, on_broken] = &args[..] else { bail!("say SET DIR fail|skip") };
    let set = DataSet::from_str(set, false).map_err(anyhow::Error::msg)?;
    let on_broken = if on_broken == "skip" { OnBroken::Skip } else { OnBroken::Fail };
    let start = Instant::now();
    match epoch(set, Path::new(dir), on_broken) {
        Ok(said) => print!("ok     {said}"),
        Err(error) => print!("error  {error:#}"),
    }
    println!("  [{:.2} s, {}]", start.elapsed().as_secs_f64(), peak());
    Ok(())
}

fn epoch(set: DataSet, dir: &Path, on_broken: OnBroken) -> Result<String> {
    let source = srigl_data::open(set, Some(dir), false)?;
    let transform = match &source {
        Source::Folder(_) => Transform::imagenet(32, 36),
        Source::Memory(_) => Transform::standard(&source),
    };
    let loader = Loader::new(source, transform, Options { on_broken, ..Options::default() })?;
    let (mut train, mut test) = (0, 0);
    for batch in loader.train_epoch(0, 0, 4, 0) {
        train += batch?.labels.len();
    }
    for batch in loader.eval(4) {
        test += batch?.labels.len();
    }
    Ok(format!("{train} of {} and {test} of {} images", loader.train_images(), loader.test_images()))
}

/// The most memory that this process held, as Linux says it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or("unknown").trim().to_string()
}
