//! `cargo xtask reproduce TABLE`: the paper's tables, computed here and rendered beside the published numbers.
//!
//! ```text
//! recipes/*.toml ─ recipe ─ cells ─ runner (drives `srigl train`) ─┐
//!                                        published/*.toml ─────────┼─ tables/{grid, figures} ─ report ─ files, terminal
//!           runner (asks `srigl models`) ─ tables/{flops, variance} ┤
//!  runner (`srigl bench`, `srigl xmc`), peers ─ tables/{timings, xmc}┘
//! ```
//!
//! No tensor library is linked. To add a table of trained networks, add a recipe
//! and a line in [`tables`]; to add another kind of table, write a function that returns a
//! [`report::Report`].

mod bundle;
mod panel;
mod peers;
mod published;
mod recipe;
mod report;
mod runner;
mod stats;
mod tables;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use recipe::{Changes, Recipe};
use srigl_run::print;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tables::{TableName, figures, grid, timings};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of this workspace.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compute a table and write it beside the published numbers.
    ///
    /// Training tables are made of cells, one run of `srigl train` each. A rerun keeps finished cells and
    /// resumes unfinished ones, wherever they were made. A cell of other settings is refused, or with --fresh trained
    /// again. Delete OUT/runs to start over, for instance after a change of `srigl` itself.
    Reproduce(Box<Reproduce>),
    /// Build `srigl`, the GPU tests and the GPU benchmarks for CUDA into one file for another machine.
    ///
    /// That machine is x86-64 with a system as recent as this one's, an NVIDIA driver and NVRTC. This one needs none of them,
    /// and no network beyond the package registry.
    GpuBundle(bundle::GpuBundle),
}

#[derive(Args)]
struct Reproduce {
    /// Which table.
    table: TableName,

    /// Folder of the data sets, handed to `srigl train --data`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Train only this network of the recipe.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Only these sparsities, such as 0.8,0.9.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    sparsity: Vec<f64>,

    /// Train so many times as long, with the schedule that the recipe has for it.
    #[arg(long, value_name = "TIMES")]
    extended: Option<u64>,

    /// Stop each run after so many steps, to try things out; schedules shrink with it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit_steps: Option<u64>,

    /// Change or add a flag of `srigl train` for all runs, such as micro-batch=64 or workers=16 (repeatable).
    #[arg(long, value_name = "FLAG[=VALUE]", value_parser = set_flag)]
    set: Vec<(String, Option<String>)>,

    /// Figures: the table whose runs are drawn [default: quick].
    #[arg(long, value_name = "TABLE")]
    recipe: Option<TableName>,

    /// Runs per cell instead of the recipe's number; seeds are 0, 1, ….
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,

    /// Print results.json on standard output, and nothing else there.
    #[arg(long)]
    json: bool,

    /// Folder for table.md, results.json, the figure and the runs [default: results/TABLE in the workspace].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Remove runs in OUT/runs that are of other settings, and train them again.
    #[arg(long)]
    fresh: bool,

    /// Lift the limits that keep the recipe short.
    #[arg(long)]
    full: bool,

    /// Runs at the same time [default: number of cores; 1 on a GPU].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Device handed to `srigl train --device`.
    #[arg(long, value_name = "D")]
    device: Option<String>,

    /// `timings`: time PyTorch, ONNX Runtime and DeepSparse too, `xmc`: PyTorch and napkinxc, installed by pip under target/peers.
    #[arg(long)]
    peers: bool,

    /// `timings`: fewer cases and rounds; `xmc`: one epoch.
    #[arg(long)]
    quick: bool,

    /// Interpreter that has PyTorch and ONNX Runtime, instead of an environment made for it.
    #[arg(long, value_name = "PATH", requires = "peers")]
    peers_python: Option<PathBuf>,

    /// Interpreter that has DeepSparse, instead of an environment made for it.
    #[arg(long, value_name = "PATH", requires = "peers")]
    deepsparse_python: Option<PathBuf>,
}

impl Reproduce {
    /// Tables that train nothing refuse options that would be ignored.
    fn refuse_training_options(&self) -> Result<()> {
        let given = [
            ("--data", self.data.is_some()),
            ("--seeds", self.seeds.is_some()),
            ("--full", self.full),
            ("--fresh", self.fresh && self.table != TableName::Xmc),
            ("--jobs", self.jobs.is_some()),
            ("--device", self.device.is_some()),
            ("--model", self.model.is_some()),
            ("--sparsity", !self.sparsity.is_empty()),
            ("--extended", self.extended.is_some()),
            ("--limit-steps", self.limit_steps.is_some()),
            ("--set", !self.set.is_empty()),
        ];
        for (option, given) in given {
            ensure!(!given, "table `{}` trains nothing, so {option} has no effect; leave it out", self.table);
        }
        Ok(())
    }

    /// What differs from the recipe.
    fn changes(&self) -> Changes {
        let mut set = self.set.clone();
        set.extend(self.limit_steps.map(|steps| ("limit-steps".to_string(), Some(steps.to_string()))));
        let (full, seeds, extended) = (self.full, self.seeds, self.extended);
        Changes { full, seeds, model: self.model.clone(), sparsities: self.sparsity.clone(), extended, set }
    }

    /// What `srigl train` is told, with runs in the folder of `recipe` unless --out says otherwise.
    fn options(&self, recipe: TableName) -> Result<grid::Options> {
        let data = self.data.as_ref().map(|data| {
            data.canonicalize().with_context(|| format!("--data {}: no such folder", data.display()))
        });
        let on_gpu = self.device.as_ref().is_some_and(|device| device.starts_with("cuda"));
        let jobs = if on_gpu { 1 } else { available_cores() };
        Ok(grid::Options {
            data: data.transpose()?,
            changes: self.changes(),
            jobs: self.jobs.map_or(jobs, usize::from),
            device: self.device.clone(),
            runs: self.folder(recipe)?.join("runs"),
            fresh: self.fresh,
        })
    }

    /// --out, or the folder of `table`.
    fn folder(&self, table: TableName) -> Result<PathBuf> {
        match &self.out {
            Some(out) => std::path::absolute(out).with_context(|| format!("--out {}", out.display())),
            None => Ok(workspace_root().join("results").join(table.to_string())),
        }
    }

    /// Only `timings` and `xmc` take these.
    fn refuse_timing_options(&self) -> Result<()> {
        for (option, given) in [("--peers", self.peers), ("--quick", self.quick)] {
            let table = self.table;
            ensure!(
                !given,
                "{option} belongs to the tables `timings` and `xmc`, not to `{table}`; leave it out"
            );
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    condensed::training::keep_freed_memory();
    let done = match Cli::parse().command {
        Command::Reproduce(args) => reproduce(&args),
        Command::GpuBundle(args) => bundle::run(&args).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Computes, writes and prints one table. `false` if it is incomplete or wrong.
fn reproduce(args: &Reproduce) -> Result<bool> {
    let out = args.folder(args.table)?;
    if !matches!(args.table, TableName::Timings | TableName::Xmc) {
        args.refuse_timing_options()?;
    }
    ensure!(
        args.recipe.is_none() || args.table.figure().is_some(),
        "--recipe belongs to figures; `{}` has its own",
        args.table
    );
    let trained =
        if args.table.figure().is_some() { args.recipe.unwrap_or(TableName::Quick) } else { args.table };
    let report = match trained.recipe() {
        Some(recipe) => {
            let options = args.options(trained)?;
            let recipe = Recipe::parse(recipe, trained.model(), &options.changes)?;
            match args.table.figure() {
                Some(figure) => figures::reproduce(figure, trained, recipe, &options)?,
                None => grid::reproduce(&trained.to_string(), &recipe, &options)?,
            }
        }
        None if args.table.figure().is_some() => bail!("--recipe {trained}: it trains nothing"),
        None => {
            args.refuse_training_options()?;
            match args.table {
                TableName::Flops => tables::flops::reproduce()?,
                TableName::Timings => timings::reproduce(&timings::Options {
                    peers: args.peers,
                    quick: args.quick,
                    torch_python: args.peers_python.clone(),
                    deepsparse_python: args.deepsparse_python.clone(),
                    cores: available_cores(),
                })?,
                TableName::Xmc => tables::xmc::reproduce(&tables::xmc::Options {
                    peers: args.peers,
                    quick: args.quick,
                    torch_python: args.peers_python.clone(),
                    fresh: args.fresh,
                    cores: available_cores(),
                    out: out.clone(),
                })?,
                _ => tables::variance::reproduce(),
            }
        }
    };

    report.write(&out)?;
    if args.json {
        print::line(&report.json_text())?;
    } else {
        print::line(&report.terminal())?;
    }
    print::say(&format!("written to {}", out.display()));
    for problem in &report.problems {
        print::say(&format!("error: {problem}"));
    }
    Ok(report.problems.is_empty())
}

/// `flag=value` or a bare `flag` of `srigl train`.
fn set_flag(text: &str) -> Result<(String, Option<String>), String> {
    let (flag, value) = match text.split_once('=') {
        Some((flag, value)) => (flag, Some(value.to_string())),
        None => (text, None),
    };
    let flag = flag.trim_start_matches("--").replace('_', "-");
    let plain =
        !flag.is_empty() && flag.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if plain { Ok((flag, value)) } else { Err(format!("`{text}` is not FLAG=VALUE, such as micro-batch=64")) }
}

/// The workspace root: the folder above this crate.
fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a workspace")
}

fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
