//! The paper's figures on the topology, from the runs of any recipe: γ_sal, active neurons, fan-in, ITOP rate.

use super::TableName;
use super::grid::{self, Options, Run, select, sparsity_label, summary};
use crate::panel::{self, Line, Panel, Point, Series};
use crate::recipe::{Grid, Method, Recipe};
use crate::report::{Chart, Report, Table};
use anyhow::{Result, ensure};
use serde_json::json;
use srigl_run::{LayerResult, RunFolder, RunResult};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Accuracy against γ_sal.
    GammaSweep,
    /// Share of active neurons per layer against sparsity.
    ActiveNeurons,
    /// Fan-in per layer.
    FanIn,
    /// ITOP rate during training.
    Itop,
}

/// The values of γ_sal that are tried.
const GAMMAS: [f64; 5] = [0.1, 0.3, 0.5, 0.7, 0.9];

/// Ticks on the axis of steps.
const STEP_TICKS: usize = 8;

impl Figure {
    fn title(self) -> &'static str {
        match self {
            Self::GammaSweep => "Accuracy against γ_sal",
            Self::ActiveNeurons => "Active neurons per layer",
            Self::FanIn => "Fan-in per layer",
            Self::Itop => "Share of positions that have been active (ITOP rate)",
        }
    }

    /// What the numbers are.
    fn fact(self) -> &'static str {
        match self {
            Self::GammaSweep => {
                "test accuracy in percent after the last epoch; ±: 95 % confidence interval of the mean over seeds"
            }
            Self::ActiveNeurons => {
                "neurons with at least one active weight at the end, in percent; mean over seeds"
            }
            Self::FanIn => {
                "weights of an active neuron at the end, in percent of the dense fan-in: mean over neurons and seeds, \
                 and the smallest and largest"
            }
            Self::Itop => {
                "positions of all sparse layers that have been active at least once, in percent; mean over seeds"
            }
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::GammaSweep => "gamma-sweep.svg",
            Self::ActiveNeurons => "active-neurons.svg",
            Self::FanIn => "fan-in.svg",
            Self::Itop => "itop.svg",
        }
    }

    /// Names of the methods it shows.
    fn methods(self) -> &'static [&'static str] {
        match self {
            Self::GammaSweep => &["rigl", "srigl-no-ablation"],
            Self::ActiveNeurons | Self::FanIn => &["rigl", "srigl"],
            Self::Itop => &["set", "rigl", "srigl-no-ablation", "srigl"],
        }
    }
}

/// Runs what is missing of the recipe `recipe` of the table `trained` and draws the figure.
///
/// # Errors
/// As [`grid::run`], or if a run has written no topology log.
pub fn reproduce(figure: Figure, trained: TableName, recipe: Recipe, options: &Options) -> Result<Report> {
    let mut grids = recipe.grids;
    for grid in &mut grids {
        grid.methods.retain(|method| figure.methods().contains(&&*method.name()));
        ensure!(
            !grid.methods.is_empty(),
            "grid `{}` of `{trained}` trains no method of this figure",
            grid.name
        );
    }
    let swept: Vec<Grid> = match figure {
        Figure::GammaSweep => {
            let srigl = Method::named("srigl")?;
            grids.iter().flat_map(|grid| GAMMAS.map(|gamma| with_gamma(grid, srigl, gamma))).collect()
        }
        _ => Vec::new(),
    };
    let all: Vec<Grid> = grids.iter().chain(&swept).cloned().collect();
    let (runs, mut problems) = grid::run(&all, options)?;

    let (mut facts, mut panels) =
        (vec![format!("`{}`", command(figure, trained, options)), figure.fact().into()], vec![]);
    for grid in &grids {
        let own: Vec<&Run> = runs.iter().filter(|run| run.cell.grid == grid.name).collect();
        let data = grid::data_used(grid, &own, &mut problems);
        let mut shown = grid.clone();
        if figure == Figure::GammaSweep {
            shown.set("gamma-sal", toml::Value::Boolean(false));
        }
        facts.push(format!("{}: {}", grid.name, grid::setting(&shown, data)));
        panels.extend(match figure {
            Figure::GammaSweep => gamma_sweep(grid, &own, &swept, &runs),
            Figure::ActiveNeurons => active_neurons(grid, &own),
            Figure::FanIn => fan_in(grid, &own),
            Figure::Itop => itop(grid, &own, &options.runs)?,
        });
    }
    let name = name(figure);
    Ok(Report {
        title: grid::title(&name, figure.title(), &runs),
        facts,
        tables: panels.iter().map(table).collect(),
        json: json!({ "figure": name, "command": command(figure, trained, options), "panels": panels }),
        chart: (!panels.is_empty()).then(|| Chart {
            file: figure.file(),
            alt: figure.title(),
            svg: panel::svg(&panels),
        }),
        problems,
    })
}

fn name(figure: Figure) -> String {
    figure.file().trim_end_matches(".svg").to_string()
}

fn command(figure: Figure, trained: TableName, options: &Options) -> String {
    let recipe = if trained == TableName::Quick { String::new() } else { format!(" --recipe {trained}") };
    grid::command(&format!("{}{recipe}", name(figure)), options)
}

/// The name of the grid that sweeps at one γ_sal.
fn gamma_name(grid: &Grid, gamma: f64) -> String {
    format!("{}-gamma{gamma}", grid.name)
}

/// SRigL with one γ_sal at all sparsities.
fn with_gamma(grid: &Grid, srigl: Method, gamma: f64) -> Grid {
    let mut swept = grid.clone();
    swept.name = gamma_name(grid, gamma);
    swept.methods = vec![srigl];
    swept.set("gamma-sal", toml::Value::Float(gamma));
    swept
}

/// A panel per sparsity; RigL and SRigL without ablation, which have no γ_sal, are levels.
fn gamma_sweep(grid: &Grid, own: &[&Run], swept: &[Grid], runs: &[Run]) -> Vec<Panel> {
    let panel = |&sparsity: &f64| {
        let point = |gamma: f64| {
            let name = gamma_name(grid, gamma);
            debug_assert!(swept.iter().any(|grid| grid.name == name));
            let here = |run: &&Run| run.cell.grid == name && run.cell.sparsity == Some(sparsity);
            let runs: Vec<&Run> = runs.iter().filter(here).collect();
            summary(&runs).ok().map(Point::from)
        };
        let level = |method: &Method| {
            let summary = summary(&select(own, *method, Some(sparsity))).ok()?;
            Some((Line::from(*method), summary.mean))
        };
        Panel {
            title: format!("{}, {}", grid.name, sparsity_label(Some(sparsity))),
            x: "γ_sal",
            y: "test accuracy, %",
            ticks: GAMMAS.iter().map(f64::to_string).collect(),
            levels: grid.methods.iter().filter_map(level).collect(),
            series: swept
                .first()
                .map(|swept| Series { line: swept.methods[0].into(), points: GAMMAS.map(point).to_vec() })
                .into_iter()
                .collect(),
        }
    };
    grid.sparsities.iter().map(panel).collect()
}

/// A panel per method, a line per layer.
fn active_neurons(grid: &Grid, own: &[&Run]) -> Vec<Panel> {
    let panel = |&method: &Method| {
        let at = |sparsity: f64| results(own, method, sparsity);
        let layers = layer_names(grid.sparsities.iter().flat_map(|&sparsity| at(sparsity)));
        let series = layers.iter().enumerate().map(|(index, layer)| Series {
            line: Line::in_order(layer.clone(), index, layers.len()),
            points: grid
                .sparsities
                .iter()
                .map(|&sparsity| {
                    let share = |result: &&RunResult| {
                        result
                            .layers
                            .get(index)
                            .map(|layer| 100.0 * layer.stats.active as f64 / layer.stats.neurons as f64)
                    };
                    mean(at(sparsity).iter().filter_map(share)).map(exactly)
                })
                .collect(),
        });
        Panel {
            title: format!("{}, {}", grid.name, method.label()),
            x: "sparsity",
            y: "active neurons, %",
            ticks: grid.sparsities.iter().map(|&sparsity| sparsity_label(Some(sparsity))).collect(),
            levels: vec![],
            series: series.collect(),
        }
    };
    grid.methods.iter().map(panel).collect()
}

/// A panel per method, a line per sparsity over the layers.
fn fan_in(grid: &Grid, own: &[&Run]) -> Vec<Panel> {
    let panel = |&method: &Method| {
        let layers = layer_names(grid.sparsities.iter().flat_map(|&s| results(own, method, s)));
        let series = grid.sparsities.iter().enumerate().map(|(place, &sparsity)| {
            let results = results(own, method, sparsity);
            let point = |index: usize| {
                let of = |value: fn(&LayerResult) -> f64| {
                    let share = move |result: &&RunResult| {
                        let layer = result.layers.get(index)?;
                        Some(100.0 * value(layer) / (layer.weights as f64 / layer.stats.neurons as f64))
                    };
                    results.iter().filter_map(share)
                };
                Some(Point {
                    value: mean(of(|layer| layer.stats.nnz as f64 / layer.stats.active.max(1) as f64))?,
                    low: of(|layer| layer.stats.fan_in_min as f64).fold(f64::INFINITY, f64::min),
                    high: of(|layer| layer.stats.fan_in_max as f64).fold(0.0, f64::max),
                })
            };
            Series {
                line: Line::in_order(sparsity_label(Some(sparsity)), place, grid.sparsities.len()),
                points: (0..layers.len()).map(point).collect(),
            }
        });
        let series = series.collect();
        Panel {
            title: format!("{}, {}", grid.name, method.label()),
            x: "layer",
            y: "fan-in, % of dense",
            ticks: layers,
            levels: vec![],
            series,
        }
    };
    grid.methods.iter().map(panel).collect()
}

/// A panel per sparsity, a line per method over the updates.
fn itop(grid: &Grid, own: &[&Run], folder: &Path) -> Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for &sparsity in &grid.sparsities {
        let mut of_methods: Vec<(Method, Vec<BTreeMap<u64, f64>>)> = Vec::new();
        for &method in &grid.methods {
            let mut rates = Vec::new();
            for run in select(own, method, Some(sparsity)) {
                if let Ok(result) = &run.outcome {
                    rates.push(itop_rates(&folder.join(run.cell.to_string()), result)?);
                }
            }
            of_methods.push((method, rates));
        }
        let steps: Vec<u64> = of_methods.iter().flat_map(|(_, rates)| rates).next().map_or(vec![], |rates| {
            let steps: Vec<u64> = rates.keys().copied().collect();
            let ticks = steps.len().min(STEP_TICKS);
            (1..=ticks).map(|tick| steps[tick * steps.len() / ticks - 1]).collect()
        });
        let series = of_methods.iter().map(|(method, rates)| Series {
            line: (*method).into(),
            points: steps
                .iter()
                .map(|step| mean(rates.iter().filter_map(|rates| rates.get(step).copied())).map(exactly))
                .collect(),
        });
        panels.push(Panel {
            title: format!("{}, {}", grid.name, sparsity_label(Some(sparsity))),
            x: "step",
            y: "ITOP rate, %",
            ticks: steps.iter().map(u64::to_string).collect(),
            levels: vec![],
            series: series.collect(),
        });
    }
    Ok(panels)
}

/// The ITOP rate of all layers after each update, in percent, from the log of a run.
fn itop_rates(run: &Path, result: &RunResult) -> Result<BTreeMap<u64, f64>> {
    let weights: HashMap<&str, f64> =
        result.layers.iter().map(|layer| (layer.name.as_str(), layer.weights as f64)).collect();
    let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for line in RunFolder::at(run).topology()? {
        let Some(weight) = weights.get(line.layer.as_str()) else { continue };
        let (active, all) = sums.entry(line.step).or_default();
        *active += line.itop * weight;
        *all += weight;
    }
    Ok(sums.into_iter().map(|(step, (active, all))| (step, 100.0 * active / all)).collect())
}

/// The results of a method at a sparsity; none if a run failed, as the others do not stand for all.
fn results<'a>(own: &[&'a Run], method: Method, sparsity: f64) -> Vec<&'a RunResult> {
    let runs = select(own, method, Some(sparsity));
    let results: Vec<&RunResult> = runs.iter().filter_map(|run| run.outcome.as_ref().ok()).collect();
    if results.len() < runs.len() { vec![] } else { results }
}

fn layer_names<'a>(mut results: impl Iterator<Item = &'a RunResult>) -> Vec<String> {
    results.next().map_or(vec![], |result| result.layers.iter().map(|layer| layer.name.clone()).collect())
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

/// A point without an interval.
fn exactly(value: f64) -> Point {
    Point { value, low: value, high: value }
}

/// The numbers of a panel: a row per tick, a column per line.
fn table(panel: &Panel) -> Table {
    let text = |value: f64| format!("{value:.2}");
    let mut table = Table { caption: panel.title.clone(), header: vec![panel.x.into()], ..Table::default() };
    table.header.extend(panel.levels.iter().map(|(line, _)| line.name.clone()));
    table.header.extend(panel.series.iter().map(|series| series.line.name.clone()));
    for (tick, name) in panel.ticks.iter().enumerate() {
        let levels = panel.levels.iter().map(|(_, level)| text(*level));
        let points = panel.series.iter().map(|series| match series.points.get(tick).copied().flatten() {
            Some(point) if point.high > point.low => {
                format!("{} ({} to {})", text(point.value), text(point.low), text(point.high))
            }
            Some(point) => text(point.value),
            None => String::new(),
        });
        table.rows.push([name.clone()].into_iter().chain(levels).chain(points).collect());
    }
    table.notes.push(format!("{}.", panel.y));
    table
}
