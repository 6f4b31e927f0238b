//! `srigl report`.

use anyhow::Result;
use clap::Args;
use srigl_run::print;
use std::path::PathBuf;

/// Arguments of `srigl report`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Run folders of `srigl train`, finished or not.
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
    let runs = srigl_report::read(&args.runs)?;
    srigl_report::write(&runs, &args.output)?;
    Ok(print::line(&format!("wrote `{}`", args.output.display()))?)
}
