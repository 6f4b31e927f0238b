//! Runs cells as child processes of `srigl train`, several at a time, and picks up where it was interrupted.
//!
//! Each cell has a run folder `RUNS/CELL`, which belongs to `srigl` alone. Beside it lie `RUNS/CELL.log`, its
//! error output, and `RUNS/CELL.cell.json`, the flags, written before the run starts. Whether a run folder can
//! be reused is decided by comparing those flags with the ones wanted now. A run of others is never removed unasked.

use crate::recipe::Cell;
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use srigl_run::{Error, RunFolder, RunResult, atomic, print};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How to run cells.
pub struct Runner {
    /// The `srigl` binary.
    pub srigl: PathBuf,
    /// Folder of the run folders.
    pub runs: PathBuf,
    /// Cells at the same time, at least 1.
    pub jobs: usize,
    /// Threads of each child. Results do not depend on it.
    pub threads: usize,
    /// Remove runs of other flags that are in the way.
    pub fresh: bool,
}

/// A cell without a result.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Name of the cell.
    pub cell: String,
    /// What went wrong: the cause, the command and the end of its error output, over several lines.
    pub message: String,
}

/// What to do with a cell, given its folder.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is a result of exactly these flags.
    Reuse,
    /// The same, but of images in another place: `srigl train --resume` refuses it if they are others.
    Check,
    /// Nothing yet, or an interrupted run of exactly these flags: `srigl train --resume` does the right thing.
    Run,
    /// A run is in the way that is not of these flags; says what differs.
    Refuse(String),
}

/// Flags that say where and how fast a run is made. What it comes to does not depend on them, or says so itself.
const WHERE: [&str; 4] = ["--data", "--device", "--storage", "--workers"];

/// The contents of `CELL.cell.json`.
#[derive(Serialize, Deserialize)]
struct CellFile {
    args: Vec<String>,
}

impl Runner {
    /// Checks that no run of other flags is in the way, unless they are to be removed.
    ///
    /// # Errors
    /// Names the first that is, and what differs.
    pub fn check(&self, cells: &[Cell]) -> Result<()> {
        let mut refused = Vec::new();
        for cell in cells.iter().filter(|_| !self.fresh) {
            let folder = self.runs.join(cell.to_string());
            if let Step::Refuse(what) = next_step(&folder, cell)? {
                refused.push(format!("{} {what}", folder.display()));
            }
        }
        let Some(first) = refused.first() else { return Ok(()) };
        let more = match refused.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        bail!("{first}{more}: add --fresh to remove such runs and train them again, or choose another --out")
    }

    /// Runs all cells that have no result yet. A failing cell does not stop the others.
    ///
    /// Results are in the order of `cells`. Progress goes to standard error.
    pub fn run_all(&self, cells: &[Cell]) -> Vec<Result<RunResult, Failure>> {
        let progress = Progress::new(cells.len());
        let queue = Mutex::new(cells.iter().enumerate());
        let results: Mutex<Vec<Option<Result<RunResult, Failure>>>> = Mutex::new(vec![None; cells.len()]);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(cells.len()) {
                scope.spawn(|| {
                    loop {
                        // Not a `while let`: it would hold the lock while the cell runs.
                        let next = queue.lock().expect("no worker panics").next();
                        let Some((index, cell)) = next else { break };
                        let result = self.run_or_reuse(cell, &progress);
                        results.lock().expect("no worker panics")[index] = Some(result);
                    }
                });
            }
        });
        let results = results.into_inner().expect("no worker panics");
        results.into_iter().map(|result| result.expect("every cell was taken from the queue")).collect()
    }

    fn run_or_reuse(&self, cell: &Cell, progress: &Progress) -> Result<RunResult, Failure> {
        let start = Instant::now();
        progress.started(cell);
        let outcome = self.try_cell(cell);
        let reused = matches!(outcome, Ok((_, Step::Reuse | Step::Check)));
        let result = outcome
            .map(|(result, _)| result)
            .map_err(|error| Failure { cell: cell.to_string(), message: format!("{error:#}") });
        progress.finished(cell, &result, if reused { None } else { Some(start.elapsed()) });
        result
    }

    fn try_cell(&self, cell: &Cell) -> Result<(RunResult, Step)> {
        let folder = self.runs.join(cell.to_string());
        let step = next_step(&folder, cell)?;
        if let Step::Refuse(what) = &step {
            ensure!(self.fresh, "{} {what}", folder.display());
            RunFolder::at(&folder).remove()?;
        }
        if step != Step::Reuse {
            // `srigl` makes the run folder; it refuses one with files of others in it.
            std::fs::create_dir_all(&self.runs)
                .with_context(|| format!("cannot create {}", self.runs.display()))?;
            if step == Step::Check {
                self.compare(cell, &folder)?;
            }
            let file = CellFile { args: cell.args.clone() };
            atomic::write(
                &beside(&folder, "cell.json"),
                (serde_json::to_string_pretty(&file)? + "\n").as_bytes(),
            )?;
            if step != Step::Check {
                self.train(cell, &folder)?;
            }
        }
        Ok((read_result(&folder)?, step))
    }

    fn command(&self, cell: &Cell, folder: &Path) -> Command {
        let threads = self.threads.to_string();
        let mut command = Command::new(&self.srigl);
        command
            .arg("train")
            .args(&cell.args)
            .args(["--threads", &threads, "--resume", "--quiet", "--out"])
            .arg(folder)
            .env("RAYON_NUM_THREADS", &threads)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn cannot_start(&self) -> String {
        format!("cannot start {}; build it or correct SRIGL_BIN", self.srigl.display())
    }

    /// Has `srigl train` compare the images of a finished run; the log of its training stays.
    fn compare(&self, cell: &Cell, folder: &Path) -> Result<()> {
        let mut command = self.command(cell, folder);
        let output = command.output().with_context(|| self.cannot_start())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}\n{}", shell_line(&command), tail(&said, 20));
        Ok(())
    }

    /// Runs `srigl train` to its end.
    fn train(&self, cell: &Cell, folder: &Path) -> Result<()> {
        let log = beside(folder, "log");
        let stderr =
            std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self.command(cell, folder);
        let status = command.stderr(stderr).status().with_context(|| self.cannot_start())?;
        if !status.success() {
            let log = std::fs::read(&log).map(|log| String::from_utf8_lossy(&log).into_owned());
            bail!("{status}\n  command: {}\n{}", shell_line(&command), tail(&log.unwrap_or_default(), 20));
        }
        Ok(())
    }
}

/// Decides by the flags beside the run folder and the result in it.
fn next_step(folder: &Path, cell: &Cell) -> Result<Step> {
    if !folder.exists() {
        return Ok(Step::Run);
    }
    let flags = beside(folder, "cell.json");
    // Removing a folder that somebody else made is not ours to do.
    ensure!(
        flags.exists(),
        "{} exists, but {} does not: it was not made by this command; move it away or choose another --out",
        folder.display(),
        flags.display()
    );
    let text = std::fs::read_to_string(&flags).with_context(|| format!("cannot read {}", flags.display()))?;
    let Ok(before) = serde_json::from_str::<CellFile>(&text) else {
        return Ok(Step::Refuse(format!("is of unknown flags, since {} is damaged", flags.display())));
    };
    Ok(match (identity(&before.args), identity(&cell.args)) {
        (before, now) if before != now => {
            let only = |these: &[String], those: &[String]| {
                let missing = these.iter().filter(|flag| !those.contains(flag));
                missing.cloned().collect::<Vec<_>>().join(" ")
            };
            let (before, now) = (only(&before, &now), only(&now, &before));
            let no_flag = |flags: String| if flags.is_empty() { "nothing".into() } else { flags };
            Step::Refuse(format!("was trained with {} instead of {}", no_flag(before), no_flag(now)))
        }
        _ => match (RunFolder::at(folder).result(), data_of(&cell.args)) {
            (Ok(None) | Err(Error::Remade { .. }), _) => Step::Run,
            (Err(error), _) => return Err(error.into()),
            (Ok(Some(_)), now) if now.is_some() && now != data_of(&before.args) => Step::Check,
            (Ok(Some(_)), _) => Step::Reuse,
        },
    })
}

/// The flags, each with its values.
fn flags(args: &[String]) -> Vec<String> {
    let mut flags: Vec<String> = Vec::new();
    for word in args {
        match flags.last_mut() {
            Some(flag) if !word.starts_with("--") => {
                flag.push(' ');
                flag.push_str(word);
            }
            _ => flags.push(word.clone()),
        }
    }
    flags
}

/// The folder of the images, if the flags name one.
fn data_of(args: &[String]) -> Option<String> {
    let value = |flag: String| Some(flag.strip_prefix("--data")?.strip_prefix([' ', '='])?.to_string());
    flags(args).into_iter().find_map(value)
}

/// The flags but for those that say [`WHERE`].
fn identity(args: &[String]) -> Vec<String> {
    let mut flags = flags(args);
    let name = |flag: &String| flag.split([' ', '=']).next().unwrap_or_default().to_string();
    flags.retain(|flag| !WHERE.contains(&name(flag).as_str()));
    flags.sort();
    flags
}

/// `RUNS/CELL` → `RUNS/CELL.extension`. Not `Path::with_extension`: names of cells may have dots (93.75).
fn beside(folder: &Path, extension: &str) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    path.into()
}

fn read_result(folder: &Path) -> Result<RunResult> {
    let fix = || format!("delete {} to run again", folder.display());
    RunFolder::at(folder).result().with_context(fix)?.with_context(fix)
}

/// Builds `srigl`, or takes the binary that the environment variable `SRIGL_BIN` names.
///
/// # Errors
/// If the build fails, or `SRIGL_BIN` is no file.
pub fn srigl_binary(device: Option<&str>) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SRIGL_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "SRIGL_BIN is {}, which is no file; correct or unset it", path.display());
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // The message format makes cargo say where the binary is, whatever the target directory.
    command
        .args([
            "build",
            // Only what runs, but with the features that all members ask for: `workspace-features` is one of them, so
            // that `cargo test` finds Burn built.
            "--bin",
            "srigl",
            "--message-format=json-render-diagnostics",
        ])
        .current_dir(crate::workspace_root())
        .stderr(Stdio::inherit());
    if device.is_some_and(|device| device.starts_with("cuda")) {
        command.args(["--features", "cuda"]);
    }
    let output = command.output().with_context(|| format!("cannot start {}", shell_line(&command)))?;
    ensure!(output.status.success(), "building srigl failed: {}", shell_line(&command));
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    let srigl = built.into_iter().find(|built| built.name == "srigl");
    srigl.map(|built| built.path).context("cargo built srigl, but named no executable")
}

/// An executable that cargo has built.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Of the binary or test.
    pub name: String,
    /// The file that it is made from: two packages may have tests of one name.
    pub source: PathBuf,
    /// The executable.
    pub path: PathBuf,
}

/// The executables among cargo's JSON messages: binaries, and tests in files of their own.
pub fn executables(messages: &str) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = |message: serde_json::Value| {
        let target = &message["target"];
        // Not the unit tests of a binary, which have its name.
        if message["profile"]["test"] == true && target["kind"][0] != "test" {
            return None;
        }
        Some(Executable {
            name: target["name"].as_str()?.to_string(),
            source: target["src_path"].as_str()?.into(),
            path: message["executable"].as_str()?.into(),
        })
    };
    messages.filter_map(executable).collect()
}

/// Runs `srigl bench` with these arguments and reads the JSON object that it prints.
///
/// # Errors
/// If it fails, with the end of its error output, or prints something else.
pub fn bench<T: DeserializeOwned>(srigl: &Path, args: &[String], threads: usize) -> Result<T> {
    let mut command = Command::new(srigl);
    command.arg("bench").args(args).arg("--json").env("RAYON_NUM_THREADS", threads.to_string());
    srigl_json(&mut command)
}

/// What a command of `srigl` prints, as JSON.
///
/// # Errors
/// If it fails or prints something else.
pub fn srigl_json<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let srigl = PathBuf::from(command.get_program());
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}; build it or correct SRIGL_BIN", srigl.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}\n  command: {}\n{}", output.status, shell_line(command), tail(&stderr, 20));
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cannot read what {} prints", shell_line(command)))
}

/// A command as one could type it.
pub fn shell_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./=+:,".contains(c));
        if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The last `count` lines, indented.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(count)..];
    last.iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// One bar for all cells, and a line for each one finished. Without a terminal, the lines alone.
struct Progress {
    bar: ProgressBar,
    state: Mutex<ProgressState>,
}

struct ProgressState {
    cells: usize,
    finished: usize,
    /// Cells finished by running, not by reuse: the only ones that tell how long the rest will take.
    ran: u32,
    start: Instant,
    current: Vec<String>,
}

impl Progress {
    fn new(cells: usize) -> Self {
        let bar = ProgressBar::new(cells as u64);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} cells, {elapsed}{msg}");
        bar.set_style(style.expect("the template is well-formed"));
        bar.enable_steady_tick(Duration::from_millis(500));
        let state = ProgressState { cells, finished: 0, ran: 0, start: Instant::now(), current: Vec::new() };
        Self { bar, state: Mutex::new(state) }
    }

    fn started(&self, cell: &Cell) {
        let mut state = self.state.lock().expect("no worker panics");
        state.current.push(cell.to_string());
        self.bar.set_message(state.message());
    }

    fn finished(&self, cell: &Cell, result: &Result<RunResult, Failure>, took: Option<Duration>) {
        let mut state = self.state.lock().expect("no worker panics");
        state.finished += 1;
        state.ran += u32::from(took.is_some());
        let name = cell.to_string();
        state.current.retain(|current| *current != name);
        let outcome = match result {
            Ok(result) => format!("{:.2} %", 100.0 * result.test_accuracy),
            Err(_) => "failed".into(),
        };
        let took = took.map_or("kept from before".into(), |took| format!("{:.1} s", took.as_secs_f64()));
        let line = format!("[{:>3}/{}] {name}: {outcome}, {took}", state.finished, state.cells);
        self.bar.set_position(state.finished as u64);
        self.bar.set_message(state.message());
        // `println` of the bar prints nothing where the bar itself is hidden.
        if self.bar.is_hidden() {
            print::say(&format!("{line}{}", state.time_left()));
        } else {
            self.bar.println(line);
        }
        if state.finished == state.cells {
            self.bar.finish_and_clear();
        }
    }
}

impl ProgressState {
    /// `, about 95 s left` once a cell has run to its end.
    fn time_left(&self) -> String {
        if self.ran == 0 || self.finished == self.cells {
            return String::new();
        }
        let per_cell = self.start.elapsed() / self.ran;
        let left = per_cell * (self.cells - self.finished) as u32;
        format!(", about {} left", indicatif::HumanDuration(left))
    }

    fn message(&self) -> String {
        format!("{} | {}", self.time_left(), self.current.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Method;
    use serde_json::json;
    use srigl_run::file;

    fn cell(args: &[&str]) -> Cell {
        Cell {
            grid: "g".into(),
            method: Method::named("rigl").unwrap(),
            sparsity: Some(0.9),
            seed: 0,
            args: args.iter().map(ToString::to_string).collect(),
        }
    }

    fn write_cell(folder: &Path, args: &[&str]) {
        let file = CellFile { args: cell(args).args };
        std::fs::write(beside(folder, "cell.json"), serde_json::to_string(&file).unwrap()).unwrap();
    }

    #[test]
    fn a_folder_is_reused_only_for_the_same_flags() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("run");
        let wanted = cell(&["--lr", "0.1"]);
        assert_eq!(next_step(&folder, &wanted).unwrap(), Step::Run);
        std::fs::create_dir(&folder).unwrap();
        write_cell(&folder, &["--lr", "0.1"]);
        assert_eq!(next_step(&folder, &wanted).unwrap(), Step::Run);
        std::fs::write(folder.join(file::RESULT), "{}").unwrap();
        assert_eq!(next_step(&folder, &wanted).unwrap(), Step::Run, "it is damaged, and made again");
        let result = json!({
            "test_accuracy": 0.25, "best_test_accuracy": 0.5, "epochs": 3, "seconds": 2.0, "sparsity": 0.9,
            "device": "flex", "layers": [],
            "data": {"name": "d", "source": "s", "synthetic": true, "train_images": 7, "test_images": 1},
        });
        std::fs::write(folder.join(file::RESULT), result.to_string()).unwrap();
        assert_eq!(next_step(&folder, &wanted).unwrap(), Step::Reuse);
        for data in ["--data=/other", "--data /other"] {
            let words: Vec<&str> = ["--lr", "0.1"].into_iter().chain(data.split(' ')).collect();
            assert_eq!(next_step(&folder, &cell(&words)).unwrap(), Step::Check);
            write_cell(&folder, &words);
            assert_eq!(next_step(&folder, &cell(&words)).unwrap(), Step::Reuse);
            assert_eq!(next_step(&folder, &wanted).unwrap(), Step::Reuse, "nothing to compare with");
            write_cell(&folder, &["--lr", "0.1"]);
        }
        let elsewhere = cell(&["--lr", "0.1", "--data", "/other", "--device", "cuda", "--workers=3"]);
        assert_eq!(next_step(&folder, &elsewhere).unwrap(), Step::Check);
        let other_device = cell(&["--lr", "0.1", "--device", "cuda", "--workers=3"]);
        assert_eq!(next_step(&folder, &other_device).unwrap(), Step::Reuse);
        let refused = |wanted: &Cell| match next_step(&folder, wanted).unwrap() {
            Step::Refuse(what) => what,
            step => panic!("{step:?}"),
        };
        assert_eq!(refused(&cell(&["--lr", "0.2"])), "was trained with --lr 0.1 instead of --lr 0.2");
        let more = refused(&cell(&["--lr", "0.1", "--nesterov"]));
        assert_eq!(more, "was trained with nothing instead of --nesterov");
        std::fs::write(beside(&folder, "cell.json"), "{ torn").unwrap();
        assert!(refused(&wanted).contains("is damaged"));
        std::fs::remove_file(beside(&folder, "cell.json")).unwrap();
        let error = next_step(&folder, &wanted).unwrap_err().to_string();
        assert!(error.contains("not made by this command"), "{error}");
    }

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let mut command = Command::new("a b/srigl");
        command.args(["train", "--lr", "0.1", "it's"]);
        assert_eq!(shell_line(&command), r"'a b/srigl' train --lr 0.1 'it'\''s'");
    }

    #[test]
    fn the_last_lines_of_an_error_are_kept() {
        assert_eq!(tail("a\nb\nc\n", 2), "  | b\n  | c");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn cargo_names_the_executables() {
        let message = |kind: &str, name: &str, source: &str, test: bool, path: &str| {
            let target = json!({ "kind": [kind], "name": name, "src_path": source });
            json!({ "target": target, "profile": { "test": test }, "executable": path }).to_string()
        };
        let messages = [
            r#"{"target":{"kind":["lib"],"name":"x","src_path":"/x"},"profile":{"test":false},"executable":null}"#.into(),
            message("test", "gpu", "/a/gpu.rs", true, "/t/gpu"),
            message("bin", "srigl", "/b/main.rs", true, "/t/srigl-1"),
            "not JSON".into(),
            message("bin", "srigl", "/b/main.rs", false, "/t/srigl"),
        ];
        let expected = [("gpu", "/a/gpu.rs", "/t/gpu"), ("srigl", "/b/main.rs", "/t/srigl")];
        let expected = expected.map(|(name, source, path)| Executable {
            name: name.into(),
            source: source.into(),
            path: path.into(),
        });
        assert_eq!(executables(&messages.join("\n")), expected);
    }
}
