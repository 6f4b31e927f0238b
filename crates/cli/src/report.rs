//! `srigl report`.

use anyhow::{Result, ensure};
use clap::Args;
use srigl_run::print;
use srigl_xmc::LoggedRun;
use std::path::PathBuf;

/// Arguments of `srigl report`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Run folders of `srigl train`, or of `srigl xmc train`, finished or not.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// Page to write; it is replaced if it exists.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

const EXAMPLES: &str = "Examples:
  srigl report runs/first -o report.html
  srigl report runs/* -o report.html";

/// Draws the runs as one HTML page that needs no other file.
pub fn run(args: ReportArgs) -> Result<()> {
    for run in &args.runs {
        ensure!(run.exists(), "`{}`: there is no such folder", run.display());
    }
    let xmc = args.runs.iter().filter(|run| LoggedRun::is_in(run)).count();
    ensure!(
        [0, args.runs.len()].contains(&xmc),
        "runs of `srigl train` and of `srigl xmc train` have nothing to compare: draw a page of each"
    );
    match xmc {
        0 => srigl_report::write(&srigl_report::read(&args.runs)?, &args.output)?,
        _ => srigl_report::xmc::write(&args.runs, &args.output)?,
    }
    Ok(print::line(&format!("wrote `{}`", args.output.display()))?)
}
