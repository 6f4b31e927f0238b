//! Shares per layer over time, as lines or, for many layers, as a heat map.

use crate::chart::{Chart, Line, Point, Style, figure, legend, thinned};
use crate::html;
use maud::{Markup, html};
use srigl_run::{Layer, Run};

/// Layers that lines can show.
const LINES: usize = 8;
/// Width of a heat map in its own units; the page shows them at about this many pixels.
const WIDTH: f64 = 360.0;
const LABELS: f64 = 120.0;
const ROW: f64 = 14.0;

/// One value of one layer over time.
struct Series {
    layer: String,
    /// Pairs (step, share), by step.
    values: Vec<(u64, f64)>,
}

/// The two figures of a run. `columns` is the number of steps a heat map may show.
pub fn section(run: &Run, columns: usize) -> Markup {
    let active = series(run, |layer| {
        // Before the first update, and of layers that have none, only snapshots know.
        let first = layer.updates.first().map_or(u64::MAX, |update| update.step);
        let snapshots = layer.snapshots.iter().map(|snapshot| (snapshot.step, snapshot.active()));
        let updates = layer.updates.iter().map(|update| (update.step, update.active()));
        snapshots.filter(|(step, _)| *step < first).chain(updates).collect()
    });
    let itop = series(run, |layer| layer.updates.iter().map(|update| (update.step, update.itop)).collect());
    if run.layers.iter().all(|layer| layer.updates.is_empty()) {
        return html! {};
    }
    let figures = [("Active neurons", &active), ("ITOP rate (weights active at least once)", &itop)];
    let as_lines = run.layers.len() <= LINES;
    let name = |(i, layer): (usize, &Layer)| (layer.name.clone(), Style::of_run(i));
    html! {
        h3 { "Layers over time" }
        @if as_lines { (legend(&run.layers.iter().enumerate().map(name).collect::<Vec<_>>())) }
        div.figures {
            @for (title, series) in figures {
                @if as_lines { (lines(title, series)) } @else { (heat_map(title, series, columns)) }
            }
        }
    }
}

fn series(run: &Run, values: impl Fn(&Layer) -> Vec<(u64, f64)>) -> Vec<Series> {
    run.layers.iter().map(|layer| Series { layer: layer.name.clone(), values: values(layer) }).collect()
}

fn lines(title: &str, series: &[Series]) -> Markup {
    let point = |(step, share): &(u64, f64)| Point { x: *step as f64, y: Some(*share), span: None };
    let line = |(i, series): (usize, &Series)| Line {
        name: series.layer.clone(),
        style: Style::of_run(i),
        points: series.values.iter().map(point).collect(),
        joined: true,
        marked: true,
        in_legend: true,
    };
    let lines = series.iter().enumerate().map(line).collect();
    let title = title.to_string();
    Chart { y: title.clone(), title, x: "step".into(), places: vec![], show: html::percent, lines }.figure()
}

/// Rows are layers, columns steps, opacity is the share. Neighbours of the same share are one rectangle.
fn heat_map(title: &str, series: &[Series], columns: usize) -> Markup {
    let mut steps: Vec<u64> = series.iter().flat_map(|s| s.values.iter().map(|(step, _)| *step)).collect();
    steps.sort_unstable();
    steps.dedup();
    let steps: Vec<u64> = thinned(&steps, columns).copied().collect();
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return html! {} };
    let shares = || series.iter().flat_map(|s| s.values.iter().map(|(_, share)| *share));
    let least = (10.0 * shares().fold(1.0, f64::min) - 1e-9).floor().max(0.0) / 10.0;
    let most = ((10.0 * shares().fold(0.0, f64::max)).ceil() / 10.0).max(least + 0.1);
    let opacity = |share: f64| 0.08 + 0.92 * ((share - least) / (most - least)).clamp(0.0, 1.0);

    let width = (WIDTH - LABELS) / steps.len() as f64;
    let bottom = series.len() as f64 * ROW + 11.0;
    let scale = bottom + 10.0;
    let svg = html! {
        g.heat {
            @for (row, series) in series.iter().enumerate() {
                @let y = row as f64 * ROW;
                @let name = html::name_of_length(&series.layer, 21);
                text.end x=(LABELS - 6.0) y=(y + 10.5) { (name) }
                @for cells in same_shares(&steps, &series.values) {
                    @if let Some(percent) = cells.percent {
                        (rect(LABELS + cells.columns.0 as f64 * width, y, (cells.width() * width, ROW - 1.0),
                            opacity(percent as f64 / 100.0),
                            &format!("{name}, {}: {percent} %", cells.steps(&steps))))
                    }
                }
            }
            text x=(LABELS) y=(bottom) { "step " (first) }
            text.end x=(WIDTH) y=(bottom) { (last) }
            @for i in 0..5 {
                @let share = f64::from(i) / 4.0;
                (rect(LABELS + 40.0 + 56.0 * share, scale, (14.0, 9.0), 0.08 + 0.92 * share, ""))
            }
            text.end x=(LABELS + 35.0) y=(scale + 8.5) { (html::percent(least)) }
            text x=(LABELS + 115.0) y=(scale + 8.5) { (html::percent(most)) }
        }
    };
    figure(title, (WIDTH, scale + 12.0), &svg)
}

fn rect(x: f64, y: f64, (width, height): (f64, f64), opacity: f64, title: &str) -> Markup {
    html! {
        rect x=(tenths(x)) y=(tenths(y)) width=(tenths(width)) height=(height) fill-opacity=(format!("{opacity:.2}")) {
            @if !title.is_empty() { title { (title) } }
        }
    }
}

fn tenths(value: f64) -> f64 {
    (10.0 * value).round() / 10.0
}

/// Columns with the same share in whole percent, or with none.
#[derive(Debug, PartialEq)]
struct SameShare {
    /// First and last column.
    columns: (usize, usize),
    percent: Option<u64>,
}

impl SameShare {
    fn width(&self) -> f64 {
        (self.columns.1 + 1 - self.columns.0) as f64
    }

    fn steps(&self, steps: &[u64]) -> String {
        match (steps[self.columns.0], steps[self.columns.1]) {
            (from, to) if from == to => format!("step {from}"),
            (from, to) => format!("steps {from} to {to}"),
        }
    }
}

fn same_shares(steps: &[u64], values: &[(u64, f64)]) -> Vec<SameShare> {
    let mut list: Vec<SameShare> = Vec::new();
    for (column, step) in steps.iter().enumerate() {
        // What held at the step is what the last line before it says.
        let known = values.partition_point(|(s, _)| s <= step);
        let percent = known.checked_sub(1).map(|i| (100.0 * values[i].1).round() as u64);
        match list.last_mut() {
            Some(last) if last.percent == percent => last.columns.1 = column,
            _ => list.push(SameShare { columns: (column, column), percent }),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_are_one_rectangle() {
        let values = [(10, 1.0), (20, 0.999), (30, 0.5)];
        let same = |from, to, percent| SameShare { columns: (from, to), percent };
        assert_eq!(
            same_shares(&[0, 10, 20, 30, 40], &values),
            [same(0, 0, None), same(1, 2, Some(100)), same(3, 4, Some(50))]
        );
    }

    #[test]
    fn names_are_escaped() {
        let series = Series { layer: "<b>".into(), values: vec![(1, 0.5)] };
        let svg = heat_map("Active", &[series], 10).into_string();
        assert!(
            svg.contains("&lt;b&gt;, step 1: 50 %") && !svg.contains("<b>") && !svg.contains("NaN"),
            "{svg}"
        );
    }
}
