//! What the figures show: values over named places, such as accuracy against sparsity, as numbers for `results.json`
//! and as charts of [`srigl_report::chart`].

use crate::recipe::Method;
use crate::stats::Summary;
use serde::Serialize;
use srigl_report::chart::{self, Chart, GREY, HUES, INK, LEGEND, ROOM, Style};

/// One pair of axes.
#[derive(Serialize)]
pub struct Panel {
    /// Heading.
    pub title: String,
    /// What lies along the x axis.
    pub x: &'static str,
    /// What lies along the y axis.
    pub y: &'static str,
    /// Names of the places on the x axis, evenly spaced from left to right.
    pub ticks: Vec<String>,
    /// Dashed lines across the panel, such as the accuracy of the dense network.
    pub levels: Vec<(Line, f64)>,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Serialize)]
pub struct Series {
    /// What it is of.
    #[serde(flatten)]
    pub line: Line,
    /// At each tick; `None` leaves a gap.
    pub points: Vec<Option<Point>>,
}

/// Name and looks of a line.
#[derive(Clone, Serialize)]
pub struct Line {
    /// For the legend.
    pub name: String,
    #[serde(skip)]
    style: Style,
}

/// A value and the interval around it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<Summary> for Point {
    /// The mean and its confidence interval.
    fn from(summary: Summary) -> Self {
        let half = summary.ci95.unwrap_or(0.0);
        Self { value: summary.mean, low: summary.mean - half, high: summary.mean + half }
    }
}

impl From<Method> for Line {
    fn from(method: Method) -> Self {
        Self { name: method.label(), style: style(method) }
    }
}

impl Line {
    /// The line of number `index` of `count` that have an order.
    pub fn in_order(name: String, index: usize, count: usize) -> Self {
        Self { name, style: Style::in_order(index, count) }
    }
}

/// The same looks in all figures: those of the method's place in the table of methods. Once all colours are used, and with a pattern,
/// lines are dashed. Groups of 2 to 16 have colours in their order.
fn style(method: Method) -> Style {
    match (method.place, method.group.ilog2() as usize) {
        (0, _) => Style::solid(INK),
        (1, 0) if !method.nm => Style::solid(GREY),
        (place, 0) => {
            let hue = (place + HUES.len() - 3) % HUES.len();
            let round = (place.max(3) - 3) / HUES.len() + usize::from(method.nm);
            Style::of_run(hue + round * HUES.len())
        }
        (_, groups) => Style::in_order((groups - 1).min(3), 4),
    }
}

/// Draws the panels, two in a row, and returns the SVG.
pub fn svg(panels: &[Panel]) -> String {
    chart::file(&panels.iter().map(Panel::chart).collect::<Vec<_>>())
}

impl Panel {
    fn chart(&self) -> Chart {
        let last = self.ticks.len() as f64 - 1.0;
        let level = |(line, level): &(Line, f64)| chart::Line {
            name: line.name.clone(),
            style: Style::level(line.style.colour),
            points: [-ROOM, last + ROOM].map(|end| at(end, *level, None)).to_vec(),
            joined: true,
            marked: false,
            in_legend: true,
        };
        let count = self.series.len() as f64;
        // Side by side, so that the intervals of one tick do not hide each other.
        let aside = |index: usize| {
            if count > LEGEND as f64 { 0.0 } else { (index as f64 - (count - 1.0) / 2.0) * 0.03 }
        };
        let line = |(index, series): (usize, &Series)| chart::Line {
            name: series.line.name.clone(),
            style: series.line.style,
            points: (0..self.ticks.len())
                .map(|tick| {
                    let x = tick as f64 + aside(index);
                    match series.points.get(tick).copied().flatten() {
                        None => chart::Point { x, y: None, span: None },
                        Some(Point { value, low, high }) => at(x, value, (high > low).then_some((low, high))),
                    }
                })
                .collect(),
            joined: true,
            marked: true,
            in_legend: count <= LEGEND as f64,
        };
        Chart {
            title: self.title.clone(),
            x: self.x.into(),
            y: self.y.into(),
            places: self.ticks.iter().enumerate().map(|(i, tick)| (i as f64, tick.clone())).collect(),
            show: |value| format!("{}", (value * 1e4).round() / 1e4),
            lines: self.levels.iter().map(level).chain(self.series.iter().enumerate().map(line)).collect(),
        }
    }
}

fn at(x: f64, value: f64, span: Option<(f64, f64)>) -> chart::Point {
    chart::Point { x, y: Some(value), span }
}
