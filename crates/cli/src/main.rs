//! `srigl`: train, evaluate and mask sparse networks from the command line.

mod condense;
mod data;
mod eval;
mod export;
mod mask;
mod models;
mod predict;
mod report;
mod train;
mod xmc;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use srigl_run::{check_threads, print};
use std::io::Write;

/// Train networks that are 80–99 % sparse from the first step (SRigL, RigL, SET), and edit sparsity masks of
/// any framework's safetensors files.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Most memory that a size in a file or an option may ask for, such as 8GB [default: three quarters of what is free].
    #[arg(long, global = true, value_name = "SIZE", value_parser = size)]
    max_memory: Option<u64>,
}

/// `8GB`, `512MiB`, or bytes.
fn size(text: &str) -> Result<u64, String> {
    let size: Result<ByteSize, _> = text.parse();
    match size.map(|size| size.as_u64()) {
        Ok(bytes @ 1..) => Ok(bytes),
        _ => Err("must be a size, such as 8GB, 512MiB or a number of bytes".into()),
    }
}

const EXAMPLES: &str = "Examples:
  srigl train --model mlp --dataset fashion-mnist --method srigl --sparsity 0.95 --out runs/first
  srigl eval runs/first
  srigl condense runs/first -o first.condensed.safetensors
  srigl predict --weights first.condensed.safetensors --input x.safetensors -o y.safetensors
  srigl bench layer --in 3072 --out 768 --sparsity 0.9
  srigl report runs/first -o report.html
  srigl mask inspect runs/first/model.safetensors
  srigl models resnet50
  srigl data info fashion-mnist";

#[derive(Subcommand)]
enum Command {
    /// Train a model, dense or sparse, into a run folder.
    Train(Box<train::TrainArgs>),
    /// Evaluate the model of a run folder on the test images.
    Eval(eval::EvalArgs),
    /// Plan, make, update and inspect masks in safetensors files of any framework.
    Mask(mask::MaskArgs),
    /// Turn a sparse model into a small, fast file for CPUs.
    Condense(condense::CondenseArgs),
    /// Write a model's weights as a state_dict for PyTorch and others.
    Export(export::ExportArgs),
    /// Logits of a model, dense or condensed, for a tensor of inputs.
    Predict(predict::PredictArgs),
    /// Time dense, CSR and condensed layers and networks side by side.
    Bench(srigl_bench::BenchArgs),
    /// Show runs side by side in one HTML page.
    Report(report::ReportArgs),
    /// List the models, or the layers of one.
    Models(models::ModelsArgs),
    /// Show, download and look at data sets.
    Data(data::DataArgs),
    /// Extreme classification: hundreds of thousands of labels on one machine.
    Xmc(xmc::XmcArgs),
}

/// The command line. The names of networks come from their table, which `srigl-run` does not know.
fn parse() -> Cli {
    let about = |info: &&srigl_models::ModelInfo| PossibleValue::new(info.name).help(info.about);
    let models = || PossibleValuesParser::new(srigl_models::MODELS.iter().map(about));
    let command = Cli::command()
        .mut_subcommand("train", |train| train.mut_arg("model", |arg| arg.value_parser(models())));
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| {
        let printed = error.print().and_then(|()| std::io::stdout().flush());
        std::process::exit(if printed.is_ok() { error.exit_code() } else { 1 })
    })
}

/// Runs everything on so many threads, or as many as there are cores. This one is one of them: else each of the many short pieces
/// of work of a training step would wait for another to wake up. With one thread it is the only one, so no other thread may give
/// work to the pool and be waited for; those that read images do not.
fn use_threads(threads: Option<usize>) -> Result<()> {
    threads.map_or(Ok(()), check_threads)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).use_current_thread();
    pool.build_global().context("cannot start threads")
}

fn main() {
    condensed::training::keep_freed_memory();
    srigl_data::picture::hush_decoders();
    #[cfg(feature = "cuda")]
    srigl_train::device::explain_panics();
    let Cli { command, max_memory } = parse();
    if let Some(bytes) = max_memory {
        srigl_tensors::memory::set_limit(bytes);
    }
    let result = run(command);
    if let Err(error) = result {
        // Whatever names are in it.
        print::say(&format!("srigl: {}", print::lines(&format!("{error:#}"))));
        std::process::exit(1);
    }
}

fn run(command: Command) -> Result<()> {
    match &command {
        Command::Train(args) => use_threads(args.threads)?,
        Command::Predict(args) => use_threads(args.threads)?,
        Command::Eval(_) | Command::Bench(_) => use_threads(None)?,
        Command::Xmc(args) => xmc::threads(args).map_or(Ok(()), use_threads)?,
        // The others compute little or nothing: threads start when they are first needed.
        _ => {}
    }
    match command {
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Mask(args) => mask::run(args),
        Command::Condense(args) => condense::run(args),
        Command::Export(args) => export::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Bench(args) => srigl_bench::run(args),
        Command::Report(args) => report::run(args),
        Command::Models(args) => models::run(args),
        Command::Data(args) => data::run(args),
        Command::Xmc(args) => xmc::run(args),
    }
}
