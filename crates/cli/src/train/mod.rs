//! `srigl train`.

mod batches;
mod checkpoint;
mod config;
mod folder;
mod masks;
mod session;

pub use batches::evaluate;
pub use checkpoint::Checkpoint;
pub use config::TrainConfig;
pub use folder::{LayerResult, RunFolder};

use crate::data;
use crate::device;
use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use folder::RunResult;
use std::path::PathBuf;

/// Arguments of `srigl train`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    #[command(flatten)]
    config: TrainConfig,

    /// Folder with the data set's files; without it the Debian package's place, then a download.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Threads that read and augment images ahead; results do not depend on it [default: all cores for colour
    /// images, none for others].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    /// Run folder to write: config, metrics, topology log, checkpoint, model.
    #[arg(long, value_name = "RUN")]
    out: PathBuf,

    /// Continue the run in --out from its last checkpoint (or start it, if there is none).
    #[arg(long)]
    resume: bool,

    /// flex, ndarray, cuda or cuda:N.
    #[arg(long, default_value = "flex")]
    device: String,

    /// Threads to use; results do not depend on it. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,

    /// No progress bar and no table at the end.
    #[arg(long)]
    quiet: bool,

    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  srigl train --model mlp --method srigl --sparsity 0.95 --gamma-sal 0.9 --epochs 4 --out runs/srigl95
  srigl train --model mnist-cnn --method rigl --sparsity 0.99 --train-limit 10000 --out runs/rigl99
  srigl train --model mlp --method dense --out runs/dense
  srigl train … --out runs/srigl95 --resume        (after an interruption: continues bit for bit)";

/// Trains, or continues a training.
pub fn run(args: TrainArgs) -> Result<()> {
    args.config.validate()?;
    #[cfg(all(feature = "cuda", unix))]
    device::default_to_cpu()?;
    if let Some(threads) = args.threads {
        ensure!(threads > 0, "--threads must be at least 1");
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("cannot start threads")?;
    }
    let device = device::parse(&args.device)?;
    let folder = RunFolder::open(&args.out, &args.config, args.resume)?;
    let result = match folder.result()? {
        Some(finished) => {
            eprintln!("{} is finished already", args.out.display());
            finished
        }
        None => {
            let source = data::open(args.config.dataset, args.data.as_deref())?;
            let workers = args.workers.unwrap_or_else(|| data_workers(&source));
            let loader = args.config.loader(source, workers)?;
            session::train(&args.config, &folder, &loader, &args.device, &device, args.quiet)?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else if !args.quiet {
        print_summary(&args.config, &result);
    }
    Ok(())
}

/// Grey images in memory are only copied, which is not worth a thread.
pub fn data_workers(source: &data::Source) -> usize {
    match source {
        data::Source::Memory(images) if images.channels == 1 => 0,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn print_summary(config: &TrainConfig, result: &RunResult) {
    println!("{}", layer_table(&result.layers));
    println!(
        "{} on {}: test accuracy {:.2} % (best {:.2} %), sparsity {:.2} %, {} epochs in {:.1} s",
        config.title(),
        result.data.describe(),
        100.0 * result.test_accuracy,
        100.0 * result.best_test_accuracy,
        100.0 * result.sparsity,
        result.epochs,
        result.seconds
    );
}

/// One row per sparse layer.
pub fn layer_table(layers: &[LayerResult]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["layer", "neurons", "active", "fan-in", "weights", "of", "sparsity %", "ITOP %"]);
    for layer in layers {
        let stats = &layer.stats;
        let fan_in = match stats.fan_in {
            Some(fan_in) => fan_in.to_string(),
            None => format!("{}–{}", stats.fan_in_min, stats.fan_in_max),
        };
        table.add_row([
            layer.name.clone(),
            stats.neurons.to_string(),
            stats.active.to_string(),
            fan_in,
            stats.nnz.to_string(),
            layer.weights.to_string(),
            format!("{:.2}", 100.0 * stats.sparsity),
            format!("{:.2}", 100.0 * layer.itop),
        ]);
    }
    table
}
