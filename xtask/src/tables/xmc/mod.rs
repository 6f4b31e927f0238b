//! Extreme classification: Debian's packages beside dense PyTorch and a linear label tree, and 670 091 labels on this machine.
//!
//! `srigl xmc` makes the points, trains and measures; this reads what it prints.

use crate::peers::{Environment, succeed, without_paths};
use crate::report::{Report, Table};
use crate::runner::{srigl_binary, srigl_json, tail};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use srigl_run::print;
use srigl_tensors::memory::{Size, limit};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Width of all hidden layers.
const HIDDEN: usize = 768;
/// Points of all steps.
const BATCH: usize = 256;
/// Labels of the largest data set of the published work.
const LABELS: usize = 670_091;
/// Features of the points that are made up for these.
const FEATURES: usize = 20_000;
/// What a dense layer's weights, gradient and two moments take.
const DENSE_BYTES: usize = LABELS * HIDDEN * 16;
/// What PyTorch takes beside them for logits, what the loss makes of them, and gradients by them, at most.
const LOGITS_BYTES: usize = 6 * BATCH * LABELS * 4;
/// The recipe of PyTorch's network and of ours.
const LR: f64 = 1e-2;
const DROPOUT: f64 = 0.3;
const EPOCHS: usize = 6;
const LOSS: &str = "squared-hinge";

/// What to compute.
pub struct Options {
    /// PyTorch and napkinxc, too.
    pub peers: bool,
    /// One epoch on the packages, and no dense layer of all labels.
    pub quick: bool,
    /// Interpreter with PyTorch instead of an environment made here.
    pub torch_python: Option<PathBuf>,
    /// Train again what was trained before.
    pub fresh: bool,
    /// Threads, at least 1.
    pub cores: usize,
    /// Folder for points and runs.
    pub out: PathBuf,
}

/// A network that is trained on the packages.
struct Contender {
    name: &'static str,
    flags: &'static str,
}

const CONTENDERS: [Contender; 6] = [
    Contender { name: "dense", flags: "--dense" },
    Contender { name: "fan-in 32", flags: "" },
    Contender { name: "fan-in 32, growth by gradient", flags: "--growth gradient" },
    Contender { name: "fan-in 32, groups of 16", flags: "--group 16" },
    Contender { name: "fan-in 32, 500 labels dense", flags: "--dense-head 500" },
    Contender { name: "fan-in 64, 2000 labels dense", flags: "--fan-in 64 --dense-head 2000" },
];

/// What is read of a training, ours or another's.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Trained {
    #[serde(default)]
    name: String,
    p_at_1: Option<f64>,
    p_at_3: Option<f64>,
    p_at_5: Option<f64>,
    psp_at_1: Option<f64>,
    psp_at_5: Option<f64>,
    #[serde(alias = "seconds")]
    seconds_per_epoch: Option<f64>,
    seconds_per_step: Option<f64>,
    peak_rss_mb: Option<f64>,
    parameters: Option<u64>,
}

/// Trains all of it. Problems: what failed.
///
/// # Errors
/// If there is no `srigl`, or no points can be made.
pub fn reproduce(options: &Options) -> Result<Report> {
    let srigl = srigl_binary(None)?;
    let data = options.out.join("data");
    std::fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    if options.fresh {
        let runs = options.out.join("runs");
        match std::fs::remove_dir_all(&runs) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", runs.display()));
            }
            _ => {}
        }
    }
    let (mut problems, mut facts) = (Vec::new(), Vec::new());
    facts.push(format!(
        "{} threads; every network has a hidden layer of {HIDDEN}, batches of {BATCH}, Adam at a rate that falls from {LR}, dropout {DROPOUT} \
         and, on the packages, {LOSS} and {} epochs; one seed",
        options.cores,
        if options.quick { 1 } else { EPOCHS }
    ));

    let made = succeed(Command::new(&srigl).args(["xmc", "debian", "-o"]).arg(&data));
    let packages = match made {
        Ok(said) => {
            facts.push(format!(
                "real data: {}",
                said.split(" to `").next().unwrap_or_default().replace("wrote ", "")
            ));
            debian(&srigl, &data, options, &mut problems)
        }
        Err(error) => {
            problems.push(format!("Debian's packages are left out: {error:#}"));
            Vec::new()
        }
    };
    let large = large(&srigl, &data, options, &mut problems)?;
    Ok(Report {
        title: "Extreme classification".into(),
        facts,
        json: json!({ "threads": options.cores, "debian": packages, "labels_670091": large }),
        tables: vec![packages_table(&packages), large_table(&large)],
        chart: None,
        problems,
    })
}

/// The words of Debian's packages, and what these depend on.
fn debian(srigl: &Path, data: &Path, options: &Options, problems: &mut Vec<String>) -> Vec<Trained> {
    let (mut rows, epochs) = (Vec::new(), if options.quick { 1 } else { EPOCHS });
    let mut add = |name: &str, trained: Result<Trained>| match trained {
        Ok(trained) => {
            print::say(&format!("{name}: P@1 {} %", percent(trained.p_at_1)));
            rows.push(Trained { name: name.into(), ..trained });
        }
        Err(error) => problems.push(format!("{name}: {error:#}")),
    };
    let [train, test] = ["train.txt", "test.txt"].map(|name| data.join(name));
    if options.peers {
        print::say(&"dense, PyTorch: training");
        let task = json!({
            "train": train, "test": test, "hidden": HIDDEN, "epochs": epochs, "batch_size": BATCH, "lr": LR,
            "dropout": DROPOUT, "loss": LOSS, "seed": 0, "threads": options.cores,
        });
        add("dense, PyTorch", torch(options, &task));
        let task = json!({ "train": train, "test": test, "seed": 0, "threads": options.cores });
        let python = Environment::Napkinxc.python(&environments().join(Environment::Napkinxc.name()));
        let tree = python.and_then(|python| asked(&python, include_str!("napkinxc.py"), &task));
        add("linear label tree, napkinxc (time of all)", tree);
    }
    for Contender { name, flags } in CONTENDERS {
        print::say(&format!("{name}: training"));
        let flags = format!("{flags} --loss {LOSS} --epochs {epochs}");
        add(name, xmc_train(srigl, [&train, &test], &options.folder(name), &flags, options.cores));
    }
    rows
}

/// 670 091 labels, made up.
fn large(srigl: &Path, data: &Path, options: &Options, problems: &mut Vec<String>) -> Result<Vec<Trained>> {
    let synth = |points: usize, seed: u64, file: &Path| {
        let [points, seed] = [points.to_string(), seed.to_string()];
        let mut command = Command::new(srigl);
        command.args(["xmc", "synth", "--points", &points, "--seed", &seed]);
        command.args(["--features", &FEATURES.to_string(), "--labels", &LABELS.to_string(), "-o"]);
        succeed(command.arg(file)).map(drop)
    };
    let [train, test] = ["large.txt", "large-test.txt"].map(|name| data.join(name));
    synth(10 * BATCH, 1, &train)?;
    synth(BATCH, 2, &test)?;
    let mut rows = Vec::new();
    let mut add = |name: &str, trained: Result<Trained>| match trained {
        Ok(trained) => {
            let seconds =
                trained.seconds_per_step.or(trained.seconds_per_epoch.map(|seconds| seconds / 10.0));
            print::say(&format!("{LABELS} labels, {name}: {:.2} s per step", seconds.unwrap_or_default()));
            // Points are made up: only time and memory tell something.
            let Trained { peak_rss_mb, parameters, .. } = trained;
            let none = Trained::default();
            rows.push(Trained {
                name: name.into(),
                seconds_per_step: seconds,
                peak_rss_mb,
                parameters,
                ..none
            });
        }
        Err(error) => problems.push(format!("{LABELS} labels, {name}: {error:#}")),
    };
    for (name, flags) in [
        ("fan-in 32, squared hinge", "--loss squared-hinge"),
        ("fan-in 32, groups of 16, squared hinge", "--loss squared-hinge --group 16"),
        ("fan-in 32, binary cross-entropy", "--loss bce"),
        ("fan-in 32, groups of 16, binary cross-entropy", "--loss bce --group 16"),
    ] {
        let flags = format!("{flags} --epochs 2 --delta-t 5");
        let run = options.folder(&format!("large {name}"));
        add(name, xmc_train(srigl, [&train, &test], &run, &flags, options.cores));
    }
    if options.peers && !options.quick && limit() > (DENSE_BYTES + LOGITS_BYTES) as u64 {
        for (name, loss) in [("squared hinge", "squared-hinge"), ("binary cross-entropy", "bce")] {
            let task = json!({
                "train": train, "hidden": HIDDEN, "steps": 4, "batch_size": BATCH, "lr": LR, "dropout": DROPOUT, "loss": loss,
                "seed": 0, "threads": options.cores,
            });
            add(&format!("dense, PyTorch, {name}"), torch(options, &task));
        }
    }
    let name = "dense, counted: weights, gradient and two moments of Adam".into();
    let (mb, parameters) = (DENSE_BYTES as f64 / 1e6, (LABELS + FEATURES) * HIDDEN + LABELS + HIDDEN);
    rows.push(Trained {
        name,
        peak_rss_mb: Some(mb),
        parameters: Some(parameters as u64),
        ..Trained::default()
    });
    Ok(rows)
}

impl Options {
    /// The folder of a run. Times are of so many threads.
    fn folder(&self, name: &str) -> PathBuf {
        let (threads, quick) = (self.cores, if self.quick { " quick" } else { "" });
        self.out.join("runs").join(format!("{name} {threads} threads{quick}").replace([' ', ','], "-"))
    }
}

/// A finished run is kept, with its times.
fn xmc_train(srigl: &Path, files: [&Path; 2], run: &Path, flags: &str, threads: usize) -> Result<Trained> {
    let [train, test] = files;
    let mut command = Command::new(srigl);
    command.args(["xmc", "train", "--resume", "--quiet", "--json", "--threads", &threads.to_string()]);
    command.arg("--train").arg(train).arg("--test").arg(test).arg("--out").arg(run);
    command.args(["--hidden", &HIDDEN.to_string(), "--batch-size", &BATCH.to_string()]);
    command.args(["--lr", &LR.to_string(), "--dropout", &DROPOUT.to_string()]);
    srigl_json(command.args(flags.split_whitespace()))
}

fn environments() -> PathBuf {
    crate::workspace_root().join("target/peers")
}

fn torch(options: &Options, task: &Value) -> Result<Trained> {
    let made = || Environment::Torch.python(&environments().join(Environment::Torch.name()));
    let python = options.torch_python.clone().map_or_else(made, Ok)?;
    asked(&python, include_str!("dense.py"), task)
}

/// What a script prints about a task.
fn asked(python: &Path, script: &str, task: &Value) -> Result<Trained> {
    let mut command = Command::new(python);
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", python.display()))?;
    let mut input = child.stdin.take().context("no standard input")?;
    // One that has ended early says why on its standard error.
    match input.write_all(task.to_string().as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error).context("it reads no task"),
        _ => drop(input),
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{}", output.status, without_paths(&tail(&said, 5)));
    serde_json::from_slice(&output.stdout).context("it printed something else")
}

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1}", 100.0 * share))
}

fn memory(megabytes: Option<f64>) -> String {
    megabytes.map_or("–".into(), |mb| Size((mb * 1e6) as u64).to_string())
}

fn packages_table(rows: &[Trained]) -> Table {
    let names = [
        "output layer",
        "P@1 %",
        "P@3 %",
        "P@5 %",
        "PSP@1 %",
        "PSP@5 %",
        "s per epoch",
        "memory",
        "parameters",
    ];
    let mut table = Table {
        caption: "Debian's packages: words of the description, packages that they depend on".into(),
        header: names.map(String::from).into(),
        ..Table::default()
    };
    let number = |number: Option<f64>| number.map_or("–".into(), |number| format!("{number:.1}"));
    for row in rows {
        table.rows.push(vec![
            row.name.clone(),
            percent(row.p_at_1),
            percent(row.p_at_3),
            percent(row.p_at_5),
            percent(row.psp_at_1),
            percent(row.psp_at_5),
            number(row.seconds_per_epoch),
            memory(row.peak_rss_mb),
            row.parameters.map_or("–".into(), |count| count.to_string()),
        ]);
    }
    table
}

fn large_table(rows: &[Trained]) -> Table {
    let names = [
        "output layer",
        "s per step",
        "memory of the process",
        "parameters",
        "memory over that of the first",
    ];
    let mut table = Table {
        caption: format!("{LABELS} labels, SYNTHETIC points: time and memory alone"),
        header: names.map(String::from).into(),
        ..Table::default()
    };
    let first = rows.first().and_then(|row| row.peak_rss_mb);
    for row in rows {
        let over = first.zip(row.peak_rss_mb).map(|(first, mb)| mb / first);
        table.rows.push(vec![
            row.name.clone(),
            row.seconds_per_step.map_or("–".into(), |seconds| format!("{seconds:.2}")),
            memory(row.peak_rss_mb),
            row.parameters.map_or("–".into(), |count| count.to_string()),
            over.map_or("–".into(), |over| format!("{over:.1}")),
        ]);
    }
    table.notes.push(
        "A step of ours has its share of updates of all inputs, every five steps of the first 13; PyTorch's is the mean without its first.".into(),
    );
    table.notes.push(
        "Published: 3.4 times less memory than dense on three million labels (Ullah et al., NeurIPS 2024), and training of 670 091 \
         labels on one commodity GPU (Schultheis & Babbar 2023)."
            .into(),
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        let ours = r#"{"p_at_1": 0.5, "p_at_3": 0.25, "p_at_5": 0.125, "psp_at_1": 0.1, "psp_at_5": 0.2, "ndcg_at_1": 0.3,
            "seconds_per_epoch": 2.0, "peak_rss_mb": 540.0, "parameters": 77, "settings": {}}"#;
        let ours = Trained { name: "ours".into(), ..serde_json::from_str(ours).unwrap() };
        let tree: Trained =
            serde_json::from_str(r#"{"p_at_1": 0.6, "p_at_3": 0.2, "p_at_5": 0.1, "seconds": 9.0}"#).unwrap();
        let rows = packages_table(&[ours, tree]).rows;
        assert_eq!(rows[0], ["ours", "50.0", "25.0", "12.5", "10.0", "20.0", "2.0", "540.0 MB", "77"]);
        assert_eq!(rows[1][1..], ["60.0", "20.0", "10.0", "–", "–", "9.0", "–", "–"]);
    }

    #[test]
    fn memory_is_set_against_the_first_row() {
        let row = |name: &str, mb| Trained { name: name.into(), peak_rss_mb: Some(mb), ..Trained::default() };
        let rows = large_table(&[row("sparse", 500.0), row("dense", 8000.0)]).rows;
        assert_eq!(rows[1], ["dense", "–", "8.0 GB", "–", "16.0"]);
    }

    #[test]
    fn a_script_that_fails_says_why() {
        let failed =
            asked(Path::new("sh"), "echo no module >&2; exit 3", &json!({})).unwrap_err().to_string();
        assert!(failed.contains("no module"), "{failed}");
    }
}
