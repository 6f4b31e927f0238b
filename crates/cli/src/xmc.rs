//! `srigl xmc`.

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use condensed::training::LabelLoss;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use srigl_run::{atomic, named_parser, print};
use srigl_tensors::memory::{Size, of_process};
use srigl_tensors::regular;
use srigl_xmc::{Network, NetworkConfig, Points, Rankings, Training, TrainingConfig, synth::Plan};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Best labels that are ranked.
const RANKED: usize = 5;
/// Points that are ranked at once.
const CHUNK: usize = 512;
/// The files of `--out`.
const NETWORK: &str = "network.safetensors";
const RESULT: &str = "result.json";

/// Arguments of `srigl xmc`.
#[derive(Args)]
pub struct XmcArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a network whose labels read a few hidden features each.
    Train(TrainArgs),
    /// Measure a trained network on other points.
    Eval(EvalArgs),
    /// The best labels of points.
    Predict(PredictArgs),
    /// Make up a data set of any size.
    Synth(SynthArgs),
}

/// Arguments of `srigl xmc train`.
#[derive(Args)]
#[command(after_help = "\
Files are in the format of the extreme classification repository, also packed with gzip: a line `points features labels`, then \
`label,label feature:value feature:value …` for each point. RUN gets network.safetensors and result.json.

Not there yet: resuming, dense features, groups of labels that share inputs, a dense head.

Examples:
  srigl xmc synth --points 100000 --labels 50000 --seed 1 -o train.txt
  srigl xmc synth --points 10000 --labels 50000 --seed 2 -o test.txt
  srigl xmc train --train train.txt --test test.txt --hidden 512 --fan-in 32 --out runs/xmc")]
struct TrainArgs {
    /// Points to train on
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Points to measure on after each epoch
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Folder for the network and its result, new or empty
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Width of the hidden layer
    #[arg(long, default_value_t = 768)]
    hidden: usize,
    /// Hidden features that each label reads
    #[arg(long, default_value_t = 32)]
    fan_in: usize,
    /// Times that all points pass
    #[arg(long, default_value_t = TrainingConfig::default().epochs)]
    epochs: usize,
    /// Points of a step
    #[arg(long, default_value_t = TrainingConfig::default().batch_size)]
    batch_size: usize,
    /// Learning rate of Adam at the start; it falls to 0 in a straight line
    #[arg(long, default_value_t = TrainingConfig::default().learning_rate)]
    lr: f64,
    /// Share of the hidden layer that is dropped in training
    #[arg(long, default_value_t = TrainingConfig::default().dropout)]
    dropout: f64,
    /// Loss, summed over all labels
    #[arg(long, value_parser = named_parser(&LabelLoss::NAMES), default_value = "squared-hinge")]
    loss: LabelLoss,
    /// Steps between updates of which features labels read, in the first two thirds of training; 0 for none
    #[arg(long, default_value_t = TrainingConfig::default().delta_t)]
    delta_t: u64,
    /// Share of each label's weights that an update replaces
    #[arg(long, default_value_t = TrainingConfig::default().drop_fraction)]
    drop_fraction: f64,
    /// Of weights, batches, dropout and updates
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to use; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// No progress bar and no table at the end
    #[arg(long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `srigl xmc eval`.
#[derive(Args)]
#[command(after_help = "Example:\n  srigl xmc eval runs/xmc --test test.txt")]
struct EvalArgs {
    /// Folder of `srigl xmc train`
    run: PathBuf,
    /// Points to measure on
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `srigl xmc predict`.
#[derive(Args)]
#[command(after_help = "\
The points may have labels or none: a line begins with a space or with its first feature then. The output has a line \
`label:logit label:logit …` for each point, best first.

Example:
  srigl xmc predict runs/xmc --input test.txt --top 5 -o best.txt")]
struct PredictArgs {
    /// Folder of `srigl xmc train`
    run: PathBuf,
    /// Points whose labels are asked for
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Labels of each point
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    top: u64,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Arguments of `srigl xmc synth`.
#[derive(Args)]
#[command(after_help = "\
Labels are drawn by a power law, and each has features that tell of it; others are noise. Files with the same --structure and sizes \
belong together, and another --seed makes other points: one to train on, one to test on.

Example:
  srigl xmc synth --points 100000 --features 50000 --labels 670091 --seed 1 -o train.txt")]
struct SynthArgs {
    /// Points
    #[arg(long, default_value_t = Plan::default().points)]
    points: usize,
    /// Features that points may have
    #[arg(long, default_value_t = Plan::default().features)]
    features: usize,
    /// Labels that points may have
    #[arg(long, default_value_t = Plan::default().labels)]
    labels: usize,
    /// Of which features tell of which labels
    #[arg(long, default_value_t = 0)]
    structure: u64,
    /// Of the points
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// What `train` and `eval` print and `result.json` holds.
#[derive(Serialize)]
struct Measured {
    p_at_1: f64,
    p_at_3: f64,
    p_at_5: f64,
    ndcg_at_1: f64,
    ndcg_at_3: f64,
    ndcg_at_5: f64,
    psp_at_1: f64,
    psp_at_3: f64,
    psp_at_5: f64,
}

impl Measured {
    fn new(rankings: &Rankings) -> Self {
        let (p, n, s) = (rankings.precision(), rankings.ndcg(), rankings.propensity_scored());
        Self {
            p_at_1: p[0],
            p_at_3: p[2],
            p_at_5: p[4],
            ndcg_at_1: n[0],
            ndcg_at_3: n[2],
            ndcg_at_5: n[4],
            psp_at_1: s[0],
            psp_at_3: s[2],
            psp_at_5: s[4],
        }
    }

    /// A row for each metric.
    fn table(&self) -> String {
        let row = |name: &str, at: [f64; 3]| {
            [name.into(), String::new()]
                .into_iter()
                .chain(at.map(|share| format!("{:.2}", 100.0 * share)))
                .collect()
        };
        let rows = [
            row("precision", [self.p_at_1, self.p_at_3, self.p_at_5]),
            row("nDCG", [self.ndcg_at_1, self.ndcg_at_3, self.ndcg_at_5]),
            row("propensity-scored precision", [self.psp_at_1, self.psp_at_3, self.psp_at_5]),
        ];
        print::table(&["metric", "%", "at 1", "at 3", "at 5"], rows.into_iter()).to_string()
    }
}

/// What a training leaves in `result.json`.
#[derive(Serialize)]
struct TrainResult {
    #[serde(flatten)]
    measured: Measured,
    hidden: usize,
    fan_in: usize,
    #[serde(flatten)]
    training: TrainingConfig,
    points: usize,
    features: usize,
    labels: usize,
    parameters: usize,
    /// Of training alone.
    seconds_per_epoch: f64,
    /// The process's most memory, in units of 10⁶ bytes; `None` where the system does not tell.
    peak_rss_mb: Option<f64>,
    train_loss: f64,
}

/// Runs a subcommand.
///
/// # Errors
/// For data that is damaged or does not fit, settings out of range, training that diverges, and files that cannot be written.
pub fn run(args: XmcArgs) -> Result<()> {
    match args.command {
        Command::Train(args) => train(&args),
        Command::Eval(args) => eval(&args),
        Command::Predict(args) => predict(&args),
        Command::Synth(args) => synth(&args),
    }
}

/// Threads that were asked for; commands that compute little start theirs when they need them.
pub fn threads(args: &XmcArgs) -> Option<Option<usize>> {
    match &args.command {
        Command::Train(args) => Some(args.threads),
        Command::Eval(_) | Command::Predict(_) => Some(None),
        Command::Synth(_) => None,
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let config = config(args)?;
    let train = points(&args.train, args.quiet, Points::read)?;
    let test = points(&args.test, args.quiet, Points::read)?;
    let network =
        NetworkConfig { hidden: args.hidden, fan_in: args.fan_in, seed: args.seed }.build(&train)?;
    network.check(&test).with_context(|| format!("`{}`", args.test.display()))?;
    let mut training = Training::new(network, config, train.len())?;
    let folder = NewFolder::take(&args.out)?;
    let bar = bar(training.steps(), "steps", args.quiet);
    let (mut sum, mut seconds, mut rankings) = (0.0, 0.0, None);
    while let Some(batch) = training.next() {
        let start = Instant::now();
        let loss = training.step(&train.batch(&batch)?)?;
        seconds += start.elapsed().as_secs_f64();
        sum += loss;
        bar.inc(1);
        bar.set_message(format!("loss {loss:.3}"));
        if training.steps_taken().is_multiple_of(training.steps_per_epoch()) {
            let epoch = training.steps_taken() / training.steps_per_epoch();
            let now = training.network().evaluate(&test, RANKED, CHUNK, |_| {})?;
            let loss = sum / training.steps_per_epoch() as f64;
            let precision = now.precision();
            let text = format!(
                "epoch {epoch}/{}: train loss {loss:.3}, test P@1 {:.2} %, P@5 {:.2} %, {:.1} s",
                args.epochs,
                100.0 * precision[0],
                100.0 * precision[4],
                seconds / epoch as f64
            );
            if !args.quiet {
                bar.suspend(|| print::say(&text));
            }
            rankings = Some((now, loss));
            sum = 0.0;
        }
    }
    bar.finish_and_clear();
    let (rankings, train_loss) = rankings.context("no epoch was trained")?;
    let (parameters, epochs) = (training.network().parameters(), args.epochs as f64);
    let network = training.finish()?;
    let staged = atomic::stage(&args.out.join(NETWORK), |to| network.write(to))?;
    let result = TrainResult {
        measured: Measured::new(&rankings),
        hidden: args.hidden,
        fan_in: args.fan_in,
        training: config,
        points: train.len(),
        features: train.features(),
        labels: train.labels(),
        parameters,
        seconds_per_epoch: seconds / epochs,
        peak_rss_mb: of_process("VmHWM").map(|bytes| bytes as f64 / 1e6),
        train_loss,
    };
    staged.commit()?;
    atomic::write(&args.out.join(RESULT), &serde_json::to_vec_pretty(&result)?)?;
    folder.keep();
    if args.json {
        print::json(&result)?;
    } else if !args.quiet {
        let memory = result.peak_rss_mb.map_or("unknown".into(), |mb| Size((mb * 1e6) as u64).to_string());
        print::line(&result.measured.table())?;
        print::line(&format!(
            "{} parameters, {:.1} s per epoch, at most {memory} of memory; wrote `{}`",
            result.parameters,
            result.seconds_per_epoch,
            args.out.join(NETWORK).display()
        ))?;
    }
    Ok(())
}

/// The settings, if they are in range.
fn config(args: &TrainArgs) -> Result<TrainingConfig> {
    ensure!(args.hidden > 0 && args.hidden <= 1 << 16, "--hidden must be from 1 to 65536");
    ensure!(
        args.fan_in > 0 && args.fan_in <= args.hidden,
        "--fan-in must be from 1 to --hidden, {}, not {}",
        args.hidden,
        args.fan_in
    );
    let config = TrainingConfig {
        epochs: args.epochs,
        batch_size: args.batch_size,
        learning_rate: args.lr,
        dropout: args.dropout,
        loss: args.loss,
        delta_t: args.delta_t,
        drop_fraction: args.drop_fraction,
        seed: args.seed,
    };
    config.check()?;
    Ok(config)
}

/// A folder that is new or empty, and can be written. What was made for it is gone again if nothing comes of it.
struct NewFolder {
    /// Innermost first.
    made: Vec<PathBuf>,
}

impl NewFolder {
    fn take(path: &Path) -> Result<Self> {
        let there = |path: &&Path| !path.as_os_str().is_empty() && path.symlink_metadata().is_err();
        let folder = Self { made: path.ancestors().take_while(there).map(Path::to_path_buf).collect() };
        fs::create_dir_all(path).with_context(|| format!("cannot make the folder `{}`", path.display()))?;
        let mut entries = fs::read_dir(path).with_context(|| format!("--out `{}`", path.display()))?;
        ensure!(entries.next().is_none(), "`{}` is not empty; take another folder for --out", path.display());
        // A file that goes again: better now than after training.
        atomic::stage(&path.join(NETWORK), |_| Ok(()))?;
        Ok(folder)
    }

    fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Those that are not empty stay.
        self.made.iter().for_each(|folder| _ = fs::remove_dir(folder));
    }
}

fn eval(args: &EvalArgs) -> Result<()> {
    let network = Network::read(&args.run.join(NETWORK))?;
    let test = points(&args.test, false, Points::read)?;
    let bar = bar(test.len() as u64, "points", false);
    let rankings = network.evaluate(&test, RANKED, CHUNK, |done| bar.set_position(done as u64));
    let rankings = rankings.with_context(|| format!("`{}`", args.test.display()))?;
    bar.finish_and_clear();
    print::either(args.json, &Measured::new(&rankings), Measured::table)?;
    Ok(())
}

fn predict(args: &PredictArgs) -> Result<()> {
    let network = Network::read(&args.run.join(NETWORK))?;
    let input = points(&args.input, false, Points::read_unlabelled)?;
    network.check(&input).with_context(|| format!("`{}`", args.input.display()))?;
    let bar = bar(input.len() as u64, "points", false);
    let mut failed = None;
    let staged = atomic::stage(&args.output, |to| {
        for first in (0..input.len()).step_by(CHUNK) {
            let chunk: Vec<usize> = (first..input.len().min(first + CHUNK)).collect();
            let best = input.batch(&chunk).and_then(|batch| network.top(args.top as usize, &batch));
            let best = match best {
                Ok(best) => best,
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("no labels to write"));
                }
            };
            for labels in best {
                let labels: Vec<String> =
                    labels.into_iter().map(|(label, logit)| format!("{label}:{logit}")).collect();
                writeln!(to, "{}", labels.join(" "))?;
            }
            bar.inc(chunk.len() as u64);
        }
        Ok(())
    });
    bar.finish_and_clear();
    if let Some(error) = failed {
        return Err(error.into());
    }
    staged?.commit()?;
    print::line(&format!(
        "wrote the {} best labels of {} points to `{}`",
        network.output().labels().min(args.top as usize),
        input.len(),
        args.output.display()
    ))?;
    Ok(())
}

fn synth(args: &SynthArgs) -> Result<()> {
    let sizes = [("--points", args.points), ("--features", args.features), ("--labels", args.labels)];
    for (flag, size) in sizes {
        ensure!(size > 0 && size <= u32::MAX as usize, "{flag} must be from 1 to 4294967295");
    }
    let plan = Plan {
        points: args.points,
        features: args.features,
        labels: args.labels,
        structure: args.structure,
        ..Plan::default()
    };
    atomic::stage(&args.output, |to| plan.write(args.seed, &mut &mut *to))?.commit()?;
    print::line(&format!(
        "wrote {} made-up points of {} features and {} labels to `{}`",
        plan.points,
        plan.features,
        plan.labels,
        args.output.display()
    ))?;
    Ok(())
}

/// Reads points with a progress bar of bytes.
fn points(
    path: &Path,
    quiet: bool,
    read: impl FnOnce(&Path, Box<dyn FnMut(u64)>) -> Result<Points, srigl_xmc::Error>,
) -> Result<Points> {
    let size = regular::open(path).map_or(0, |(_, size)| size);
    let bar = bar(size, "bytes", quiet);
    let of_bar = bar.clone();
    let points = read(path, Box::new(move |bytes| of_bar.set_position(bytes)));
    bar.finish_and_clear();
    Ok(points?)
}

/// A progress bar on standard error.
fn bar(length: u64, unit: &str, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(&format!("{{bar:24}} {{pos}}/{{len}} {unit} {{msg}}, {{eta}} left"));
    ProgressBar::new(length).with_style(style.expect("valid"))
}
