//! Tables of trained networks: the cells of a recipe, run through `srigl` and summarised.

use crate::panel::{self, Panel, Point, Series};
use crate::published::{Accuracies, Measured};
use crate::recipe::{Cell, Changes, Grid, Method, PanelOf, Recipe, percent};
use crate::report::{Chart, Report, Table};
use crate::runner::{Failure, Runner, shell_line, srigl_binary};
use crate::stats::Summary;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use srigl_run::{DataUsed, RunResult};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options of the command line that concern training.
pub struct Options {
    /// Folder of the data sets, absolute.
    pub data: Option<PathBuf>,
    /// What differs from the recipe.
    pub changes: Changes,
    /// Runs at the same time.
    pub jobs: usize,
    /// Device name.
    pub device: Option<String>,
    /// Folder of the run folders.
    pub runs: PathBuf,
    /// Remove runs of other settings.
    pub fresh: bool,
}

/// A cell and what came of it.
pub struct Run {
    /// What was run.
    pub cell: Cell,
    /// Its result.
    pub outcome: Result<RunResult, Failure>,
}

/// Runs what is missing of the grids. With a message for each run that failed.
///
/// # Errors
/// If there are no cells, data is missing that cannot be made up, or `srigl` cannot be built.
pub fn run(grids: &[Grid], options: &Options) -> Result<(Vec<Run>, Vec<String>)> {
    let mut common = Vec::new();
    if let Some(data) = &options.data {
        common.extend(["--data".into(), data.display().to_string()]);
    }
    if let Some(device) = &options.device {
        common.extend(["--device".into(), device.clone()]);
    }
    let mut cells = Vec::new();
    for grid in grids {
        cells.extend(grid.cells(&common)?);
    }
    ensure!(!cells.is_empty(), "the recipe has no cells; list methods and sparsities");
    let srigl = srigl_binary(options.device.as_deref())?;
    check_data(&srigl, grids, options.data.as_deref())?;
    let runner = Runner {
        srigl,
        runs: options.runs.clone(),
        jobs: options.jobs,
        threads: (crate::available_cores() / options.jobs).max(1),
        fresh: options.fresh,
    };
    runner.check(&cells)?;
    let outcomes = runner.run_all(&cells);
    let runs: Vec<Run> =
        cells.into_iter().zip(outcomes).map(|(cell, outcome)| Run { cell, outcome }).collect();
    let failures = runs.iter().filter_map(|run| run.outcome.as_ref().err());
    let problems = failures.map(|failure| format!("cell {} failed: {}", failure.cell, failure.message));
    let problems = problems.collect();
    Ok((runs, problems))
}

/// Data sets that are neither generated nor replaced when they are missing.
const NEEDED: [&str; 3] = ["cifar10", "cifar100", "image-folder"];

/// Looks for the data before the first run, so that its absence is one error.
fn check_data(srigl: &Path, grids: &[Grid], data: Option<&Path>) -> Result<()> {
    let mut sets: Vec<String> = grids.iter().filter_map(|grid| grid.flag("dataset")).collect();
    sets.sort();
    sets.dedup();
    for set in sets.iter().filter(|set| NEEDED.contains(&set.as_str())) {
        ensure!(
            data.is_some() || set != "image-folder",
            "ImageNet (ILSVRC-2012) must be downloaded by hand, from https://image-net.org after registration. Unpack \
             it to DIR/train/SYNSET/*.JPEG and DIR/val/SYNSET/*.JPEG and give --data DIR"
        );
        let mut command = Command::new(srigl);
        command.args(["data", "info", set]);
        if let Some(data) = data {
            command.arg("--data").arg(data);
        }
        let output = command.output().with_context(|| format!("cannot start {}", srigl.display()))?;
        ensure!(
            output.status.success(),
            "the images are not usable; `{}` says\n{}",
            shell_line(&command),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}

/// Runs what is missing of a recipe and renders all of it. Problems: failed cells, and cells of one grid that
/// were trained on different data.
///
/// # Errors
/// If the recipe is malformed, a published table is missing, or as [`run`].
pub fn reproduce(name: &str, recipe: &Recipe, options: &Options) -> Result<Report> {
    let (runs, problems) = run(&recipe.grids, options)?;
    let mut report = Report {
        title: title(name, &recipe.title, &runs),
        facts: vec![
            format!("`{}`", command(name, options)),
            "test accuracy in percent after the last epoch, unless a table says that it is of the best epoch"
                .into(),
            "±: 95 % confidence interval of the mean over seeds, Student's t; one seed has none".into(),
        ],
        tables: Vec::new(),
        json: serde_json::Value::Null,
        chart: None,
        problems,
    };
    if !options.changes.set.is_empty() {
        let changed = "changed by --set; only the recipe as it stands can be compared with published numbers";
        report.facts.push(changed.into());
    }
    if let Some((_, Some(steps))) = options.changes.set.iter().find(|(flag, _)| flag == "limit-steps") {
        report.facts.push(format!(
            "cut short after {steps} steps: schedules and ΔT shrink with them, and the accuracies mean nothing"
        ));
    }
    let mut panels = Vec::new();
    let mut grids = Vec::new();
    for grid in &recipe.grids {
        let runs: Vec<&Run> = runs.iter().filter(|run| run.cell.grid == grid.name).collect();
        let data = data_used(grid, &runs, &mut report.problems);
        let synthetic = data.is_some_and(|data| data.synthetic);
        let named = |names: &[String]| -> Result<Vec<_>> {
            let names = if synthetic { &[] } else { names };
            names.iter().map(|name| Accuracies::named(name)).collect()
        };
        let (theirs, published) = (named(&grid.theirs)?, named(&grid.published)?);
        if synthetic {
            report.facts.push(format!(
                "{}: published numbers are left out: SYNTHETIC data cannot be compared",
                grid.name
            ));
        }
        let setting = setting(grid, data);
        report.facts.push(format!("{}: {setting}", grid.name));
        report.tables.push(accuracy_table(grid, &runs, &published));
        report.tables.push(best_table(grid, &runs));
        report.tables.extend(same_task_tables(grid, &runs, &theirs));
        report.tables.extend(active_neurons_table(grid, &runs));
        panels.extend(accuracy_panels(grid, &runs, data));
        grids.push(grid_json(grid, &runs));
    }
    report.json = json!({ "table": name, "command": command(name, options), "grids": grids });
    report.chart = (!panels.is_empty()).then(|| Chart {
        file: "accuracy.svg",
        alt: "accuracy against sparsity",
        svg: panel::svg(&panels),
    });
    Ok(report)
}

/// The command that makes this report, without what only concerns this machine.
pub fn command(name: &str, options: &Options) -> String {
    let mut command = format!("cargo xtask reproduce {name} {}", options.changes.command());
    command.truncate(command.trim_end().len());
    if options.data.is_some() {
        command.push_str(" --data DIR");
    }
    if let Some(device) = &options.device {
        command.push_str(&format!(" --device {device}"));
    }
    command
}

pub fn title(name: &str, title: &str, runs: &[Run]) -> String {
    let synthetic =
        runs.iter().filter_map(|run| run.outcome.as_ref().ok()).any(|result| result.data.synthetic);
    let warning = if synthetic { "SYNTHETIC DATA, not the real images: " } else { "" };
    format!("{warning}{name}: {title}")
}

/// The data set that the runs report; a problem if they disagree.
pub fn data_used<'a>(grid: &Grid, runs: &[&'a Run], problems: &mut Vec<String>) -> Option<&'a DataUsed> {
    let mut results = runs.iter().filter_map(|run| Some((&run.cell, &run.outcome.as_ref().ok()?.data)));
    let (first, data) = results.next()?;
    if let Some((other, different)) = results.find(|(_, other)| *other != data) {
        problems.push(format!(
            "grid `{}` mixes data sets: {first} used {} ({}), {other} used {} ({}); delete the runs made with the \
             wrong one and run again",
            grid.name, data.name, data.source, different.name, different.source
        ));
    }
    Some(data)
}

/// Model, data, epochs, seeds and γ_sal of a grid in one line.
pub fn setting(grid: &Grid, data: Option<&DataUsed>) -> String {
    let flag = |name: &str| grid.flag(name);
    let mut parts = vec![format!("model `{}`", flag("model").unwrap_or("default".into()))];
    match data {
        Some(data) => {
            parts.push(format!("data {} (source: {})", data_name(data), data.public_source()));
            parts.push(format!("{} training and {} test images", data.train_images, data.test_images));
        }
        None => parts.push("data unknown, as no run finished".into()),
    }
    parts.extend(flag("epochs").map(|epochs| format!("{epochs} epochs")));
    parts.push(if grid.seeds == 1 { "1 seed".into() } else { format!("{} seeds", grid.seeds) });
    parts.extend(grid.describe_flag("delta-t").map(|value| format!("ΔT {value}")));
    parts.extend(grid.describe_flag("gamma-sal").map(|value| format!("γ_sal {value}")));
    parts.join(", ")
}

pub fn data_name(data: &DataUsed) -> String {
    if data.synthetic { format!("{} SYNTHETIC", data.name) } else { data.name.clone() }
}

/// The runs of a method at a sparsity (`None` for dense).
pub fn select<'a>(runs: &[&'a Run], method: Method, sparsity: Option<f64>) -> Vec<&'a Run> {
    runs.iter().filter(|run| run.cell.method == method && run.cell.sparsity == sparsity).copied().collect()
}

/// Mean accuracy in percent after the last epoch; an error text if any of the runs failed, so that a mean over the
/// survivors is never taken for the mean.
pub fn summary(runs: &[&Run]) -> Result<Summary, String> {
    summary_of(runs, Measured::Last)
}

/// The same after the last or the best epoch.
fn summary_of(runs: &[&Run], measured: Measured) -> Result<Summary, String> {
    let accuracy = |result: &RunResult| match measured {
        Measured::Last => result.test_accuracy,
        Measured::Best => result.best_test_accuracy,
    };
    let accuracies: Vec<f64> =
        runs.iter().filter_map(|run| run.outcome.as_ref().ok()).map(|r| 100.0 * accuracy(r)).collect();
    if accuracies.len() < runs.len() {
        return Err(failed_text(runs));
    }
    Summary::of(&accuracies).ok_or_else(String::new)
}

fn failed_text(runs: &[&Run]) -> String {
    let failed = runs.iter().filter(|run| run.outcome.is_err()).count();
    format!("failed ({failed} of {})", runs.len())
}

pub fn summary_text(runs: &[&Run]) -> String {
    summary_text_of(runs, Measured::Last)
}

fn summary_text_of(runs: &[&Run], measured: Measured) -> String {
    match summary_of(runs, measured) {
        Ok(Summary { mean, ci95: Some(ci95), .. }) => format!("{mean:.2} ± {ci95:.2}"),
        Ok(Summary { mean, .. }) => format!("{mean:.2}"),
        Err(text) => text,
    }
}

/// Rows of a grid: dense first, if it is run.
fn row_sparsities(grid: &Grid) -> Vec<Option<f64>> {
    let dense = grid.methods.iter().any(|method| !method.is_sparse()).then_some(None);
    dense.into_iter().chain(grid.sparsities.iter().copied().map(Some)).collect()
}

pub fn sparsity_label(sparsity: Option<f64>) -> String {
    sparsity.map_or("0 %".into(), |sparsity| format!("{} %", percent(sparsity)))
}

/// More methods than this are rows of a table, not columns.
const COLUMNS: usize = 8;

/// Rows and columns in each other's place.
fn turned(table: Table) -> Table {
    let lines: Vec<Vec<String>> = std::iter::once(table.header).chain(table.rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let line =
        |column: usize| lines.iter().map(|line| line.get(column).cloned().unwrap_or_default()).collect();
    let mut turned: Vec<Vec<String>> = (0..columns).map(line).collect();
    let mut header = turned.remove(0);
    header[0] = "method".into();
    Table { header, rows: turned, ..table }
}

/// Accuracy by sparsity and method, and beside it published numbers of other tasks, marked with †.
fn accuracy_table(grid: &Grid, runs: &[&Run], published: &[Accuracies]) -> Table {
    let mut table = Table { caption: format!("Accuracy, {}", grid.name), ..Table::default() };
    table.header.push("sparsity".into());
    table.header.extend(grid.methods.iter().map(|method| method.label()));
    for (index, published) in published.iter().enumerate() {
        let mark = "†".repeat(index + 1);
        let methods = grid.methods.iter().filter(|method| published.has(**method));
        table.header.extend(methods.map(|method| format!("{mark} {}", method.label())));
        table.notes.push(format!(
            "{mark} Another task: {}, {} (± {}). Compare the order of the methods, not the numbers.",
            published.label,
            published.epoch.words(),
            published.spread
        ));
    }
    for sparsity in row_sparsities(grid) {
        let mut row = vec![sparsity_label(sparsity)];
        row.extend(grid.methods.iter().map(|&method| summary_text(&select(runs, method, sparsity))));
        for published in published {
            for &method in grid.methods.iter().filter(|method| published.has(**method)) {
                row.push(published.text(method, sparsity).unwrap_or_default().into());
            }
        }
        table.rows.push(row);
    }
    table.notes.extend(achieved_sparsity(runs));
    if grid.methods.len() > COLUMNS { turned(table) } else { table }
}

/// Accuracy of the best epoch by sparsity and method.
fn best_table(grid: &Grid, runs: &[&Run]) -> Table {
    let mut table =
        Table { caption: format!("Accuracy of the best epoch, {}", grid.name), ..Table::default() };
    table.header.push("sparsity".into());
    table.header.extend(grid.methods.iter().map(|method| method.label()));
    for sparsity in row_sparsities(grid) {
        let mut row = vec![sparsity_label(sparsity)];
        let text = |method| summary_text_of(&select(runs, method, sparsity), Measured::Best);
        row.extend(grid.methods.iter().map(|&method| text(method)));
        table.rows.push(row);
    }
    table
        .notes
        .push("The best epoch is chosen by the test images themselves, so its accuracy is too high.".into());
    if grid.methods.len() > COLUMNS { turned(table) } else { table }
}

/// How far the sparsity of the final masks is from the one asked for.
fn achieved_sparsity(runs: &[&Run]) -> Option<String> {
    let sparse = runs.iter().filter_map(|run| {
        let achieved = run.outcome.as_ref().ok()?.sparsity;
        Some((&run.cell, achieved, (achieved - run.cell.sparsity?).abs()))
    });
    let (cell, achieved, _) = sparse.max_by(|a, b| a.2.total_cmp(&b.2))?;
    Some(format!(
        "Sparsity of the final masks furthest from the one asked for: {} % ({cell}).",
        percent((achieved * 1e5).round() / 1e5)
    ))
}

/// For each published table of this task: method by method, ours beside theirs.
fn same_task_tables(grid: &Grid, runs: &[&Run], theirs: &[Accuracies]) -> Vec<Table> {
    let mut tables = Vec::new();
    for published in theirs {
        let mut table = Table {
            caption: format!("Beside the {}", published.label),
            header: ["sparsity", "method", "ours, last epoch", "ours, best epoch", "theirs"]
                .map(String::from)
                .to_vec(),
            rows: Vec::new(),
            notes: vec![format!(
                "Theirs are of the {}, so compare with ours of the {}. ± of theirs: {}.",
                published.epoch.words(),
                published.epoch.words(),
                published.spread
            )],
        };
        for sparsity in row_sparsities(grid) {
            for &method in &grid.methods {
                let Some(theirs) = published.text(method, sparsity) else { continue };
                let runs = select(runs, method, sparsity);
                let ours = [Measured::Last, Measured::Best].map(|measured| summary_text_of(&runs, measured));
                let mut row = vec![sparsity_label(sparsity), method.label()];
                row.extend(ours);
                row.push(theirs.into());
                table.rows.push(row);
            }
        }
        tables.push(table);
    }
    tables
}

/// Active neurons per layer, mean over seeds, of the methods that may ablate some: RigL by chance, SRigL by
/// rule. `None` without results.
fn active_neurons_table(grid: &Grid, runs: &[&Run]) -> Option<Table> {
    let mut table = Table {
        caption: format!("Active neurons, {}", grid.name),
        header: vec!["method".into(), "sparsity".into(), "all layers".into()],
        rows: Vec::new(),
        notes: vec!["Neurons with at least one active weight, of the sparse layers; mean over seeds.".into()],
    };
    for &method in grid.methods.iter().filter(|method| method.may_ablate()) {
        for &sparsity in &grid.sparsities {
            let runs = select(runs, method, Some(sparsity));
            let mut row = vec![method.label(), sparsity_label(Some(sparsity))];
            let results: Vec<&RunResult> = runs.iter().filter_map(|run| run.outcome.as_ref().ok()).collect();
            // As with accuracies, the surviving runs do not stand for all.
            if results.len() < runs.len() {
                row.push(failed_text(&runs));
                table.rows.push(row);
                continue;
            }
            let Some(first) = results.first().filter(|first| !first.layers.is_empty()) else { continue };
            if table.header.len() == 3 {
                table.header.extend(first.layers.iter().map(|layer| layer.name.clone()));
            }
            let mean = |active: &dyn Fn(&RunResult) -> f64| {
                results.iter().map(|result| active(result)).sum::<f64>() / results.len() as f64
            };
            let neurons: usize = first.layers.iter().map(|layer| layer.stats.neurons).sum();
            let active = mean(&|result| result.layers.iter().map(|layer| layer.stats.active as f64).sum());
            row.push(format!("{:.1} %", 100.0 * active / neurons as f64));
            for (index, layer) in first.layers.iter().enumerate() {
                let active = mean(&|result| {
                    result.layers.get(index).map_or(f64::NAN, |layer| layer.stats.active as f64)
                });
                row.push(format!("{} of {}", (10.0 * active).round() / 10.0, layer.stats.neurons));
            }
            table.rows.push(row);
        }
    }
    // A failed row ends early.
    for row in &mut table.rows {
        row.resize(table.header.len(), String::new());
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The panels of the figure. None if nothing succeeded.
fn accuracy_panels(grid: &Grid, runs: &[&Run], data: Option<&DataUsed>) -> Vec<Panel> {
    let model = grid.flag("model").unwrap_or_default();
    let title = format!("{model} on {}", data.map(data_name).unwrap_or_default());
    if grid.panels.is_empty() {
        return accuracy_panel(grid, &grid.methods, runs, title).into_iter().collect();
    }
    let panel =
        |panel: &PanelOf| accuracy_panel(grid, &panel.methods, runs, format!("{title}: {}", panel.title));
    grid.panels.iter().filter_map(panel).collect()
}

/// One with these methods, and dense training.
fn accuracy_panel(grid: &Grid, methods: &[Method], runs: &[&Run], title: String) -> Option<Panel> {
    let sparse = methods.iter().filter(|method| method.is_sparse());
    // Student's interval of two runs may be wider than all accuracies that there are.
    let point = |summary: Summary| {
        let Point { value, low, high } = summary.into();
        Point { value, low: low.max(0.0), high: high.min(100.0) }
    };
    let series: Vec<Series> = sparse
        .map(|&method| Series {
            line: method.into(),
            points: grid
                .sparsities
                .iter()
                .map(|&sparsity| summary(&select(runs, method, Some(sparsity))).ok().map(point))
                .collect(),
        })
        .collect();
    let dense = grid.methods.iter().copied().find(|method| !method.is_sparse());
    let dense = dense.and_then(|dense| Some((dense, summary(&select(runs, dense, None)).ok()?)));
    let any = dense.is_some() || series.iter().any(|series| series.points.iter().any(Option::is_some));
    any.then(|| Panel {
        title,
        x: "sparsity",
        y: "test accuracy, %",
        ticks: grid.sparsities.iter().map(|&sparsity| sparsity_label(Some(sparsity))).collect(),
        levels: dense.map(|(method, dense)| (method.into(), dense.mean)).into_iter().collect(),
        series,
    })
}

/// The numbers of a grid: what was asked for, each run, and the summaries.
fn grid_json(grid: &Grid, runs: &[&Run]) -> serde_json::Value {
    let run_json = |run: &&Run| {
        let mut value = json!({
            "cell": run.cell.to_string(), "method": run.cell.method,
            "sparsity": run.cell.sparsity.unwrap_or(0.0), "seed": run.cell.seed,
        });
        match &run.outcome {
            Ok(result) => {
                value["result"] = json!(result);
                value["result"]["data"]["source"] = json!(result.data.public_source());
            }
            // The message names folders of this machine; it is on standard error.
            Err(_) => value["failed"] = json!(true),
        }
        value
    };
    let mut summaries = Vec::new();
    for sparsity in row_sparsities(grid) {
        for &method in &grid.methods {
            if let Ok(summary) = summary(&select(runs, method, sparsity)) {
                summaries.push(json!({
                    "method": method, "sparsity": sparsity.unwrap_or(0.0), "test_accuracy_percent": summary,
                }));
            }
        }
    }
    json!({
        "grid": grid.name,
        "train": grid.train,
        "seeds": grid.seeds,
        "summary": summaries,
        "runs": runs.iter().map(run_json).collect::<Vec<_>>(),
    })
}
