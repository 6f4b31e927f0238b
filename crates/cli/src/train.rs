//! `srigl train`.

use anyhow::{Result, ensure};
use clap::Args;
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use indicatif::{ProgressBar, ProgressStyle};
use srigl_data::Source;
use srigl_run::{Config, Epoch, Error, Inputs, LayerResult, RunFolder, RunResult, file, print};
use srigl_train::{Checkpoint, Observer, Session, Standing, device};
use std::path::PathBuf;

/// Arguments of `srigl train`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    #[command(flatten)]
    config: Config,

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

    /// Train the run in --out so many epochs in all, instead of its --epochs. Schedules stretch over them from its last
    /// checkpoint on.
    #[arg(long, value_name = "EPOCHS", requires = "resume")]
    extend_to: Option<usize>,

    /// flex, ndarray, cuda or cuda:N.
    #[arg(long, default_value = "flex")]
    device: String,

    /// Threads to use; results do not depend on it. Default: all cores.
    #[arg(long)]
    pub threads: Option<usize>,

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
  srigl train --model mlp --method sr-ste --nm 2:4 --out runs/ste
  srigl train --model mnist-cnn --method srigl --sparsity 0.95 --group 4 --out runs/groups
  srigl train --model mlp --weights runs/dense/model.safetensors --sparsity 0.9 --out runs/pruned
  srigl train --model resnet18 --dataset image-folder --data DIR --weights resnet18.pth --new-head --out runs/tuned
  srigl train … --out runs/srigl95 --resume        (after an interruption: continues bit for bit)
  srigl train … --out runs/srigl95 --resume --extend-to 20                             (more epochs)";

/// Trains, or continues a training.
///
/// # Errors
/// Settings or data that do not fit, files that cannot be read or written, and training that has diverged.
pub fn run(mut args: TrainArgs) -> Result<()> {
    args.config.settle()?;
    args.config.validate()?;
    #[cfg(all(feature = "cuda", unix))]
    device::default_to_cpu()?;
    device::parse(&args.device)?;
    let (folder, config) = RunFolder::open(&args.out, &args.config, args.resume)?;
    // A run that has been extended so far is only to be resumed.
    let extend_to = args.extend_to.filter(|epochs| config.extended.is_empty() || *epochs != config.epochs);
    let finished = match extend_to {
        None => finished(&folder)?,
        Some(_) => None,
    };
    let open = || srigl_data::open(config.dataset, args.data.as_deref(), config.allow_empty);
    let result = match finished {
        Some(finished) => {
            if args.data.is_some() {
                let inputs = Inputs::new(&config.loader(open()?, 0)?, config.weights.as_deref())?;
                // Checkpoints know them, too, but are large.
                let known = folder
                    .inputs()?
                    .or_else(|| Checkpoint::latest(&folder).ok().flatten()?.checkpoint.progress.inputs);
                folder.check_inputs(&inputs, known.as_ref())?;
            }
            folder.clear_lock();
            print::note(&format!("{} is finished already", args.out.display()));
            finished
        }
        None => {
            let source = open()?;
            if let Source::Folder(images) = &source {
                for (split, listing) in [("train", &images.train), ("test", &images.test)] {
                    if !listing.left_out.is_empty() && !args.quiet {
                        print::note(&format!("{split}: {}", listing.left_out));
                    }
                }
            }
            let workers = args.workers.unwrap_or_else(|| data_workers(&source));
            let loader = config.loader(source, workers)?;
            let device = &args.device;
            let session = Session { config: &config, folder: &folder, loader: &loader, device, extend_to };
            match args.quiet {
                true => session.train(&mut Quiet)?,
                false => {
                    session.train(&mut Progress { bar: None, epochs: extend_to.unwrap_or(config.epochs) })?
                }
            }
        }
    };
    if args.json {
        print::json(&result)?;
    } else if !args.quiet {
        print_summary(&config, &result)?;
    }
    Ok(())
}

/// The result of a finished run. If that or the model is gone or damaged, there is none, and training on from the last
/// checkpoint makes it again.
fn finished(folder: &RunFolder) -> Result<Option<RunResult>> {
    let can_be_remade = || Ok::<_, anyhow::Error>(Checkpoint::latest(folder)?.is_some());
    let result = match folder.result() {
        Err(damaged @ Error::Remade { .. }) => {
            ensure!(can_be_remade()?, "{damaged} from the last checkpoint, but there is none");
            print::note(&damaged.to_string());
            return Ok(None);
        }
        result => result?,
    };
    if result.is_none() || !folder.has_lost_model()? {
        return Ok(result);
    }
    let model = folder.file(file::MODEL);
    if can_be_remade()? {
        print::note(&format!(
            "{} is gone or damaged: it is made again from the last checkpoint",
            model.display()
        ));
        return Ok(None);
    }
    print::note(&format!(
        "{} is gone or damaged, and there is no checkpoint to make it from",
        model.display()
    ));
    Ok(result)
}

/// Threads that make batches ahead, unless told otherwise. Grey images in memory are only copied, which is not worth one.
pub fn data_workers(source: &Source) -> usize {
    match source {
        Source::Memory(images) if images.channels == 1 => 0,
        _ => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Nothing but what should not go unnoticed.
struct Quiet;

impl Observer for Quiet {
    fn note(&mut self, text: &str) {
        print::note(text);
    }
}

/// A bar for all steps and a line for each epoch, on standard error.
struct Progress {
    bar: Option<ProgressBar>,
    epochs: usize,
}

impl Observer for Progress {
    fn note(&mut self, text: &str) {
        print::note(text);
    }

    fn started(&mut self, step: u64, steps: u64) {
        let style =
            ProgressStyle::with_template("{bar:24} {pos}/{len} steps, {msg}, {eta} left").expect("valid");
        self.bar = Some(ProgressBar::new(steps).with_style(style).with_position(step));
    }

    fn stepped(&mut self, standing: &Standing) {
        let Some(bar) = &self.bar else { return };
        bar.set_position(standing.step);
        bar.set_message(format!(
            "loss {:.3}, accuracy {:.1} %, sparsity {:.1} %, {:.0} images/s",
            standing.loss,
            100.0 * standing.accuracy,
            100.0 * standing.sparsity,
            standing.images_per_second
        ));
    }

    fn epoch(&mut self, epoch: &Epoch) {
        let text = format!(
            "epoch {}/{}: train loss {:.4}, test accuracy {:.2} %, {:.0} images/s",
            epoch.epoch,
            self.epochs,
            epoch.train_loss.unwrap_or(f64::NAN),
            100.0 * epoch.test_accuracy.unwrap_or(f64::NAN),
            epoch.images_per_second.unwrap_or(f64::NAN)
        );
        match &self.bar {
            Some(bar) => bar.suspend(|| print::say(&text)),
            None => print::say(&text),
        }
    }

    fn finished(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn print_summary(config: &Config, result: &RunResult) -> Result<()> {
    print::line(&layer_table(&result.layers).to_string())?;
    print::line(&format!(
        "{} on {}: test accuracy {:.2} % (best {:.2} %{}), sparsity {:.2} %, {} epochs in {:.1} s",
        config.title(),
        result.data.describe(),
        100.0 * result.test_accuracy,
        100.0 * result.best_test_accuracy,
        result.test_top5.map_or(String::new(), |top5| format!(", top 5: {:.2} %", 100.0 * top5)),
        100.0 * result.sparsity,
        result.epochs,
        result.seconds
    ))?;
    Ok(())
}

/// One row per sparse layer.
fn layer_table(layers: &[LayerResult]) -> Table {
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
