//! Shares per layer over time, as lines or, for many layers, as a heat map.

use crate::chart::{Chart, Line, Point, WIDTH, figure, legend, style, thinned};
use crate::html;
use srigl_run::{Layer, Run};
use std::fmt::Write as _;

/// Layers that lines can show.
const LINES: usize = 8;
const LABELS: f64 = 120.0;
const ROW: f64 = 14.0;

/// One value of one layer over time.
struct Series {
    layer: String,
    /// Pairs (step, share), by step.
    values: Vec<(u64, f64)>,
}

/// The two figures of a run. `columns` is the number of steps a heat map may show.
pub fn section(run: &Run, columns: usize) -> String {
    let active = series(run, |layer| {
        // Before the first update, and of layers that have none, only snapshots know.
        let first = layer.updates.first().map_or(u64::MAX, |update| update.step);
        let snapshots = layer.snapshots.iter().map(|snapshot| (snapshot.step, snapshot.active()));
        let updates = layer.updates.iter().map(|update| (update.step, update.active()));
        snapshots.filter(|(step, _)| *step < first).chain(updates).collect()
    });
    let itop = series(run, |layer| layer.updates.iter().map(|update| (update.step, update.itop)).collect());
    if run.layers.iter().all(|layer| layer.updates.is_empty()) {
        return String::new();
    }
    let figures = [("Active neurons", &active), ("ITOP rate (weights active at least once)", &itop)];
    if run.layers.len() > LINES {
        let maps: String = figures.map(|(title, series)| heat_map(title, series, columns)).concat();
        return format!("<h3>Layers over time</h3>\n<div class=figures>{maps}</div>\n");
    }
    let charts: String = figures.map(|(title, series)| lines(title, series)).concat();
    let names: Vec<_> =
        run.layers.iter().enumerate().map(|(i, layer)| (layer.name.clone(), style(i))).collect();
    format!("<h3>Layers over time</h3>\n{}<div class=figures>{charts}</div>\n", legend(&names))
}

fn series(run: &Run, values: impl Fn(&Layer) -> Vec<(u64, f64)>) -> Vec<Series> {
    run.layers.iter().map(|layer| Series { layer: layer.name.clone(), values: values(layer) }).collect()
}

fn lines(title: &str, series: &[Series]) -> String {
    let point = |(step, share): &(u64, f64)| Point { x: *step as f64, y: Some(*share), span: None };
    let line = |(i, series): (usize, &Series)| Line {
        name: series.layer.clone(),
        style: style(i),
        points: series.values.iter().map(point).collect(),
        joined: true,
    };
    let lines = series.iter().enumerate().map(line).collect();
    Chart { title: title.to_string(), x: "step", x_ticks: vec![], show: html::percent, lines }.draw()
}

/// Rows are layers, columns steps, opacity is the share. Neighbours of the same share are one rectangle.
fn heat_map(title: &str, series: &[Series], columns: usize) -> String {
    let mut steps: Vec<u64> = series.iter().flat_map(|s| s.values.iter().map(|(step, _)| *step)).collect();
    steps.sort_unstable();
    steps.dedup();
    let steps: Vec<u64> = thinned(&steps, columns).copied().collect();
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return String::new() };
    let shares = || series.iter().flat_map(|s| s.values.iter().map(|(_, share)| *share));
    let least = (10.0 * shares().fold(1.0, f64::min) - 1e-9).floor().max(0.0) / 10.0;
    let most = ((10.0 * shares().fold(0.0, f64::max)).ceil() / 10.0).max(least + 0.1);
    let opacity = |share: f64| 0.08 + 0.92 * ((share - least) / (most - least)).clamp(0.0, 1.0);

    let width = (WIDTH - LABELS) / steps.len() as f64;
    let mut svg = String::new();
    for (row, series) in series.iter().enumerate() {
        let y = row as f64 * ROW;
        let name = html::name_of_length(&series.layer, 21);
        _ = write!(svg, "<text x={:.0} y={:.0} class=end>{name}</text>", LABELS - 6.0, y + 10.5);
        for run in same_shares(&steps, &series.values) {
            let Some(share) = run.percent else { continue };
            let (from, to) = (steps[run.columns.0], steps[run.columns.1]);
            let when = if from == to { format!("step {from}") } else { format!("steps {from} to {to}") };
            _ = write!(
                svg,
                "<rect x={:.1} y={y:.0} width={:.1} height={:.0} fill-opacity={:.2}><title>{name}, {when}: {share} \
                 %</title></rect>",
                LABELS + run.columns.0 as f64 * width,
                (run.columns.1 + 1 - run.columns.0) as f64 * width,
                ROW - 1.0,
                opacity(share as f64 / 100.0)
            );
        }
    }
    let bottom = series.len() as f64 * ROW + 11.0;
    _ = write!(
        svg,
        "<text x={LABELS} y={bottom:.0}>step {first}</text><text x={WIDTH} y={bottom:.0} class=end>{last}</text>"
    );
    let y = bottom + 10.0;
    for i in 0..5 {
        let opacity = 0.08 + 0.92 * f64::from(i) / 4.0;
        let x = LABELS + 40.0 + 14.0 * f64::from(i);
        _ = write!(svg, "<rect x={x:.0} y={y:.0} width=14 height=9 fill-opacity={opacity:.2} />");
    }
    _ = write!(
        svg,
        "<text x={:.0} y={:.0} class=end>{}</text><text x={:.0} y={:.0}>{}</text>",
        LABELS + 35.0,
        y + 8.5,
        html::percent(least),
        LABELS + 115.0,
        y + 8.5,
        html::percent(most)
    );
    figure(title, y + 12.0, &format!("<g class=heat>{svg}</g>"))
}

/// Columns with the same share in whole percent, or with none.
#[derive(Debug, PartialEq)]
struct SameShare {
    /// First and last column.
    columns: (usize, usize),
    percent: Option<u64>,
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
        let svg = heat_map("Active", &[series], 10);
        assert!(
            svg.contains("&lt;b&gt;, step 1: 50 %") && !svg.contains("<b>") && !svg.contains("NaN"),
            "{svg}"
        );
    }
}
