//! `srigl xmc`.

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use condensed::training::LabelLoss;
use indicatif::{ProgressBar, ProgressStyle};
use srigl_run::{RunFolder, atomic, file, named_parser, print};
use srigl_tensors::memory::Size;
use srigl_tensors::regular;
use srigl_xmc::{
    DataSet, Epoch, Growth, Measured, Network, NetworkConfig, Observer, Points, Run, RunResult, Settings,
    TrainingConfig, debian::Debian, synth::Plan,
};
use std::path::{Path, PathBuf};

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
    /// Make a real data set of Debian's package index: descriptions and what packages depend on.
    Debian(DebianArgs),
}

/// Arguments of `srigl xmc train`.
#[derive(Args)]
#[command(after_help = "\
Files are in the format of the extreme classification repository, also packed with gzip: a line `points features labels`, then \
`label,label feature:value feature:value …` for each point. RUN gets config.json, metrics.jsonl, a checkpoint after each epoch, and at \
the end model.safetensors and result.json.

Examples:
  srigl xmc synth --points 100000 --labels 50000 --seed 1 -o train.txt
  srigl xmc synth --points 10000 --labels 50000 --seed 2 -o test.txt
  srigl xmc train --train train.txt --test test.txt --hidden 512 --fan-in 32 --out runs/xmc
  srigl xmc train --train train.txt --test test.txt --dense-head 500 --out runs/head
  srigl xmc train --train train.txt --test test.txt --dense-head 500 --out runs/head --resume     (after an interruption)
  srigl report runs/xmc runs/head -o report.html")]
struct TrainArgs {
    /// Points to train on
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Points to measure on after each epoch
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    /// Dense features of the points to train on: a safetensors file with a tensor [points, features]; the lines of --train have labels
    /// alone then
    #[arg(long, value_name = "FILE", requires = "test_features")]
    train_features: Option<PathBuf>,
    /// The same of the points to measure on
    #[arg(long, value_name = "FILE", requires = "train_features")]
    test_features: Option<PathBuf>,
    /// Folder of the run, new or empty
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    /// Go on with the run in --out, from its last checkpoint; a new one starts where there is none
    #[arg(long)]
    resume: bool,
    /// Width of the hidden layer
    #[arg(long, default_value_t = NetworkConfig::default().hidden)]
    hidden: usize,
    /// Hidden features that each label reads
    #[arg(long, default_value_t = NetworkConfig::default().fan_in)]
    fan_in: usize,
    /// Labels that read the same features, with weights of their own: those that points have together; at most 256
    #[arg(long, value_name = "G", default_value_t = NetworkConfig::default().group)]
    group: usize,
    /// The most frequent labels that read all features
    #[arg(long, value_name = "N", default_value_t = NetworkConfig::default().dense_head)]
    dense_head: usize,
    /// All labels read all features
    #[arg(long, conflicts_with_all = ["fan_in", "group", "dense_head"])]
    dense: bool,
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
    /// What comes in their place
    #[arg(long, value_parser = named_parser(&Growth::NAMES), default_value = "random")]
    growth: Growth,
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
    /// Their dense features, as in training
    #[arg(long, value_name = "FILE")]
    test_features: Option<PathBuf>,
    /// Threads to use; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
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
    /// Points whose labels are asked for; dense features are a safetensors file
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Labels of each point
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    top: u64,
    /// Threads to use; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
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

/// Arguments of `srigl xmc debian`.
#[derive(Args)]
#[command(after_help = "\
Features are the words of name, description, section and tags, labels the packages that a package depends on. Four fifths of the packages \
become DIR/train.txt, the others DIR/test.txt.

Examples:
  srigl xmc debian -o debian                                  (on Debian or Ubuntu: asks `apt-cache dumpavail`)
  xz -dc Packages.xz > Packages; srigl xmc debian --index Packages -o debian")]
struct DebianArgs {
    /// Package index to read, instead of asking apt-cache
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
    /// Of the order of the packages
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for train.txt and test.txt, which is made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

/// A row for each metric.
fn table(measured: &Measured) -> String {
    let row = |name: &str, at: [f64; 3]| {
        let shares = at.map(|share| format!("{:.2}", 100.0 * share));
        [name.into(), String::new()].into_iter().chain(shares).collect()
    };
    let rows = [
        row("precision", [measured.p_at_1, measured.p_at_3, measured.p_at_5]),
        row("nDCG", [measured.ndcg_at_1, measured.ndcg_at_3, measured.ndcg_at_5]),
        row("propensity-scored precision", [measured.psp_at_1, measured.psp_at_3, measured.psp_at_5]),
    ];
    print::table(&["metric", "%", "at 1", "at 3", "at 5"], rows.into_iter()).to_string()
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
        Command::Debian(args) => debian(&args),
    }
}

/// Threads that were asked for; commands that compute little start theirs when they need them.
pub fn threads(args: &XmcArgs) -> Option<Option<usize>> {
    match &args.command {
        Command::Train(args) => Some(args.threads),
        Command::Eval(args) => Some(args.threads),
        Command::Predict(args) => Some(args.threads),
        Command::Synth(_) | Command::Debian(_) => None,
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let training = config(args)?;
    let train = labelled(&args.train, args.train_features.as_deref(), args.quiet)?;
    let test = labelled(&args.test, args.test_features.as_deref(), args.quiet)?;
    let dense_head = if args.dense { train.labels() } else { args.dense_head };
    let fan_in = if args.dense { args.hidden } else { args.fan_in };
    let (hidden, group, seed) = (args.hidden, args.group, args.seed);
    let network = NetworkConfig { hidden, fan_in, group, dense_head, seed };
    let (of_train, of_test) = (DataSet::from(&train), DataSet::from(&test));
    let settings = Settings { network, training, train: of_train, test: of_test };
    let run = Run::open(&args.out, settings, args.resume).map_err(|error| match error {
        error @ srigl_xmc::Error::Sizes { .. } => {
            anyhow::Error::from(error).context(format!("`{}`", args.test.display()))
        }
        error => error.into(),
    })?;
    let result = match run.result()? {
        Some(result) => {
            print::note(&format!("{} is finished already", args.out.display()));
            result
        }
        None => {
            let mut progress =
                Progress { bar: ProgressBar::hidden(), epochs: args.epochs, quiet: args.quiet };
            let trained = run.train(&train, &test, &mut progress);
            progress.bar.finish_and_clear();
            trained?
        }
    };
    if args.json {
        print::json(&result)?;
    } else if !args.quiet {
        summarise(&result, &args.out)?;
    }
    Ok(())
}

fn summarise(result: &RunResult, out: &Path) -> Result<()> {
    let memory = result.peak_rss_mb.map_or("unknown".into(), |mb| Size((mb * 1e6) as u64).to_string());
    print::line(&table(&result.measured))?;
    print::line(&format!(
        "{} parameters, {:.1} s per epoch, at most {memory} of memory; wrote `{}`",
        result.parameters,
        result.seconds_per_epoch,
        out.join(file::MODEL).display()
    ))?;
    Ok(())
}

/// A bar for all steps and a line for each epoch, on standard error.
struct Progress {
    bar: ProgressBar,
    epochs: usize,
    quiet: bool,
}

impl Observer for Progress {
    fn note(&mut self, text: &str) {
        self.bar.suspend(|| print::note(text));
    }

    fn started(&mut self, step: u64, steps: u64) {
        self.bar = bar(steps, "steps", self.quiet).with_position(step);
    }

    fn stepped(&mut self, step: u64, loss: f64) {
        self.bar.set_position(step);
        self.bar.set_message(format!("loss {loss:.3}"));
    }

    fn epoch(&mut self, epoch: &Epoch) {
        let text = format!(
            "epoch {}/{}: train loss {:.3}, test P@1 {:.2} %, P@5 {:.2} %, {:.1} s",
            epoch.epoch,
            self.epochs,
            epoch.train_loss,
            100.0 * epoch.measured.p_at_1,
            100.0 * epoch.measured.p_at_5,
            epoch.seconds
        );
        if !self.quiet {
            self.bar.suspend(|| print::say(&text));
        }
    }
}

/// The settings, if they are in range.
fn config(args: &TrainArgs) -> Result<TrainingConfig> {
    ensure!(args.hidden > 0 && args.hidden <= 1 << 16, "--hidden must be from 1 to 65536");
    ensure!(
        args.dense || (args.fan_in > 0 && args.fan_in <= args.hidden),
        "--fan-in must be from 1 to --hidden, {}, not {}",
        args.hidden,
        args.fan_in
    );
    ensure!(args.group > 0 && args.group <= 256, "--group must be from 1 to 256, not {}", args.group);
    let config = TrainingConfig {
        epochs: args.epochs,
        batch_size: args.batch_size,
        learning_rate: args.lr,
        dropout: args.dropout,
        loss: args.loss,
        delta_t: args.delta_t,
        drop_fraction: args.drop_fraction,
        growth: args.growth,
        seed: args.seed,
    };
    config.check()?;
    Ok(config)
}

/// The network of a finished run.
fn network(run: &Path) -> Result<Network> {
    let path = RunFolder::at(run).file(file::MODEL);
    ensure!(
        path.exists(),
        "`{}` has no {}: it is no run of `srigl xmc train`, or one to be finished with --resume",
        run.display(),
        file::MODEL
    );
    Ok(Network::read(&path)?)
}

fn eval(args: &EvalArgs) -> Result<()> {
    let network = network(&args.run)?;
    let test = labelled(&args.test, args.test_features.as_deref(), false)?;
    let bar = bar(test.len() as u64, "points", false);
    let rankings =
        network.evaluate(&test, Measured::RANKED, Measured::CHUNK, |done| bar.set_position(done as u64));
    let rankings = rankings.with_context(|| format!("`{}`", args.test.display()))?;
    bar.finish_and_clear();
    print::either(args.json, &Measured::new(&rankings), table)?;
    Ok(())
}

fn predict(args: &PredictArgs) -> Result<()> {
    let is_input = args
        .output
        .canonicalize()
        .is_ok_and(|output| args.input.canonicalize().is_ok_and(|input| input == output));
    ensure!(!is_input, "-o `{}` is the input; take another name", args.output.display());
    let network = network(&args.run)?;
    let input = match network.is_dense() {
        true => points(&args.input, false, Points::read_unlabelled_dense)?,
        false => points(&args.input, false, Points::read_unlabelled)?,
    };
    network.check(&input).with_context(|| format!("`{}`", args.input.display()))?;
    let bar = bar(input.len() as u64, "points", false);
    let mut failed = None;
    let staged = atomic::stage(&args.output, |to| {
        for first in (0..input.len()).step_by(Measured::CHUNK) {
            let chunk: Vec<usize> = (first..input.len().min(first + Measured::CHUNK)).collect();
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

fn debian(args: &DebianArgs) -> Result<()> {
    let index = match &args.index {
        Some(path) => regular::read(path).with_context(|| format!("cannot read `{}`", path.display()))?,
        None => {
            let asked = std::process::Command::new("apt-cache").arg("dumpavail").output();
            let asked =
                asked.context("cannot start `apt-cache`; --index names a package index on other systems")?;
            ensure!(
                asked.status.success(),
                "`apt-cache dumpavail` failed: {}",
                String::from_utf8_lossy(&asked.stderr).trim()
            );
            asked.stdout
        }
    };
    let debian = Debian::parse(&String::from_utf8_lossy(&index)).with_context(|| match &args.index {
        Some(path) => format!("`{}`", path.display()),
        None => "there may be no index yet, which `apt-get update` fetches".into(),
    })?;
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder `{}`", args.output.display()))?;
    let [train, test] = ["train.txt", "test.txt"].map(|name| args.output.join(name));
    let mut of_test = Vec::new();
    let staged = atomic::stage(&train, |to| debian.write(args.seed, &mut &mut *to, &mut of_test))?;
    atomic::write(&test, &of_test)?;
    staged.commit()?;
    print::line(&format!(
        "wrote {} packages with {} words and {} packages that they depend on to `{}` and `{}`",
        debian.packages(),
        debian.features(),
        debian.labels(),
        train.display(),
        test.display()
    ))?;
    Ok(())
}

/// Points with labels, and with their dense features if there is a file of these.
fn labelled(path: &Path, features: Option<&Path>, quiet: bool) -> Result<Points> {
    match features {
        Some(features) => {
            points(features, quiet, |features, progress| Points::read_dense(path, features, progress))
        }
        None => points(path, quiet, Points::read),
    }
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
