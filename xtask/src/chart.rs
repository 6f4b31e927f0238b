//! The figures: lines over named places, such as accuracy against sparsity; times of a layer, one bar per engine.

use crate::recipe::Method;
use crate::stats::Summary;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use serde::Serialize;
use std::ops::Range;

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

/// Name and colour of a line.
#[derive(Clone, Serialize)]
pub struct Line {
    /// For the legend.
    pub name: String,
    #[serde(skip)]
    colour: RGBColor,
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
        Self { name: method.label().into(), colour: colour(method) }
    }
}

impl Line {
    /// The line of number `index` of `count` that have an order: colours from blue over green to yellow.
    pub fn in_order(name: String, index: usize, count: usize) -> Self {
        let place = if count > 1 { index as f64 / (count - 1) as f64 } else { 0.0 };
        let (r, g, b) = HSLColor(0.66 - 0.54 * place, 0.75, 0.42).rgb();
        Self { name, colour: RGBColor(r, g, b) }
    }
}

/// Size of a panel in pixels.
const PANEL: (u32, u32) = (640, 440);
/// Room left and right of the outer ticks, in distances between ticks.
const SIDE: f64 = 0.35;
const FONT: &str = "Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(226, 226, 226);

/// Colours of Okabe and Ito, which people with colour-blindness can tell apart, in the order of the table of methods.
const COLOURS: [RGBColor; 9] = [
    INK,
    RGBColor(140, 140, 140),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(170, 150, 0),
];

fn colour(method: Method) -> RGBColor {
    COLOURS[method.place % COLOURS.len()]
}

/// Draws the panels, two in a row, and returns the SVG.
///
/// # Panics
/// Never in practice: drawing into a string cannot fail.
pub fn lines(panels: &[Panel]) -> String {
    let mut svg = String::new();
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(2);
    {
        let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).expect(DRAWN);
        for (panel, area) in panels.iter().zip(root.split_evenly((rows, columns))) {
            panel.draw(&area);
        }
        root.present().expect(DRAWN);
    }
    svg
}

/// Times of one batch size: a group of bars at each tick.
pub struct Bars {
    /// Heading.
    pub title: String,
    /// Names of the groups, from left to right.
    pub ticks: Vec<String>,
    /// For each entry of the legend the milliseconds at each tick; `None` leaves a gap.
    pub series: Vec<Vec<Option<f64>>>,
}

/// Size of a panel of bars in pixels.
const BARS: (u32, u32) = (420, 340);
/// Room of one entry of the legend in pixels.
const ENTRY: (i32, i32) = (200, 24);
/// Share of the distance between ticks that a group of bars takes.
const GROUP: f64 = 0.66;

/// Draws rows of panels below a common legend, each entry a name and a colour, on one logarithmic scale.
///
/// # Panics
/// Never in practice: drawing into a string cannot fail.
pub fn times(legend: &[(&str, RGBColor)], rows: &[Vec<Bars>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1).max(1) as u32;
    let width = BARS.0 * columns;
    let per_line = (width as i32 / ENTRY.0).max(1);
    let lines = (legend.len() as i32 + per_line - 1) / per_line;
    let top = (12 + lines * ENTRY.1) as u32;
    let all = || rows.iter().flatten().flat_map(|bars| bars.series.iter().flatten().flatten());
    // Powers of ten, so that bars can be compared between panels.
    let low = 10_f64.powf(all().copied().fold(f64::INFINITY, f64::min).log10().floor());
    let high = 10_f64.powf(all().copied().fold(0.0, f64::max).log10().ceil()).max(10.0 * low);

    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (width, top + BARS.1 * rows.len() as u32)).into_drawing_area();
        root.fill(&WHITE).expect(DRAWN);
        let (head, body) = root.split_vertically(top);
        for (index, (name, colour)) in legend.iter().enumerate() {
            let (x, y) = (20 + index as i32 % per_line * ENTRY.0, 12 + index as i32 / per_line * ENTRY.1);
            head.draw(&Rectangle::new([(x, y), (x + 14, y + 14)], colour.filled())).expect(DRAWN);
            let style = (FONT, 15).into_font().color(&INK);
            head.draw(&Text::new(*name, (x + 20, y), style)).expect(DRAWN);
        }
        let areas = body.split_evenly((rows.len(), columns as usize));
        for (row, areas) in rows.iter().zip(areas.chunks(columns as usize)) {
            for (bars, area) in row.iter().zip(areas) {
                bars.draw(area, legend, low..high);
            }
        }
        root.present().expect(DRAWN);
    }
    svg
}

impl Bars {
    fn draw(&self, area: &Area, legend: &[(&str, RGBColor)], range: Range<f64>) {
        let low = range.start;
        let text = |size: u32| (FONT, size).into_font().color(&INK);
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .caption(&self.title, text(16))
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(Ticks(self.ticks.clone()), range.log_scale())
            .expect(DRAWN);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK.mix(0.5))
            .label_style(text(13))
            .axis_desc_style(text(13))
            .x_desc("sparsity")
            .y_desc("milliseconds")
            .y_label_formatter(&|y| format!("{y}"))
            .draw()
            .expect(DRAWN);
        let width = GROUP / legend.len() as f64;
        for (index, (series, (_, colour))) in self.series.iter().zip(legend).enumerate() {
            let bars = series.iter().enumerate().filter_map(|(tick, ms)| {
                let left = tick as f64 - GROUP / 2.0 + index as f64 * width;
                Some(Rectangle::new([(left, low), (left + 0.9 * width, (*ms)?)], colour.filled()))
            });
            chart.draw_series(bars).expect(DRAWN);
        }
    }
}

const DRAWN: &str = "drawing into a string cannot fail";

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The x axis: tick `i` at position `i`, with its name.
struct Ticks(Vec<String>);

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        left + ((value - start) / (end - start) * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.0.len()).map(|tick| tick as f64).collect()
    }

    fn range(&self) -> Range<f64> {
        -SIDE..self.0.len() as f64 - 1.0 + SIDE
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, value: &f64) -> String {
        self.0[*value as usize].clone()
    }
}

impl Panel {
    fn draw(&self, area: &Area) {
        let (bottom, top) = self.range();
        let last = self.ticks.len() as f64 - 1.0;
        let mut chart = ChartBuilder::on(area)
            .margin(16)
            .caption(&self.title, (FONT, 17).into_font().color(&INK))
            .x_label_area_size(46)
            .y_label_area_size(58)
            .build_cartesian_2d(Ticks(self.ticks.clone()), bottom..top)
            .expect(DRAWN);
        let text = |size: u32| (FONT, size).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK.mix(0.5))
            .label_style(text(14))
            .axis_desc_style(text(14))
            .x_desc(self.x)
            .y_desc(self.y)
            .y_label_formatter(&|y| format!("{}", (y * 1e4).round() / 1e4))
            .y_labels(8)
            .draw()
            .expect(DRAWN);

        for (line, level) in &self.levels {
            let ends = [(-SIDE, *level), (last + SIDE, *level)];
            let style = line.colour.stroke_width(2);
            chart
                .draw_series(DashedLineSeries::new(ends, 6, 4, style))
                .expect(DRAWN)
                .label(&line.name)
                .legend(move |(x, y)| {
                    // Two dashes and a half of the line.
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (6, 0)], style)
                        + PathElement::new([(10, 0), (16, 0)], style)
                        + PathElement::new([(20, 0), (24, 0)], style)
                });
        }
        // A legend of more lines would hide them.
        const MAX_LEGEND: usize = 12;
        let has_legend = self.series.len() <= MAX_LEGEND;
        for (index, series) in self.series.iter().enumerate() {
            let colour = series.line.colour;
            // Side by side, so that the intervals of one tick do not hide each other.
            let shift = (index as f64 - (self.series.len() as f64 - 1.0) / 2.0) * 0.03;
            let shift = if has_legend { shift } else { 0.0 };
            let x = |tick: usize| tick as f64 + shift;
            let points: Vec<Option<(f64, Point)>> = (0..self.ticks.len())
                .map(|tick| series.points.get(tick).copied().flatten().map(|point| (x(tick), point)))
                .collect();
            // A missing point interrupts the line instead of being bridged.
            let lines = points.split(Option::is_none).filter(|part| part.len() > 1).map(|part| {
                let path: Vec<(f64, f64)> =
                    part.iter().flatten().map(|(x, point)| (*x, point.value)).collect();
                PathElement::new(path, colour.stroke_width(2))
            });
            chart.draw_series(lines).expect(DRAWN);
            let intervals = points.iter().flatten().filter(|(_, point)| point.high > point.low);
            let intervals = intervals.map(|(x, point)| {
                PathElement::new(vec![(*x, point.low), (*x, point.high)], colour.stroke_width(2))
            });
            chart.draw_series(intervals).expect(DRAWN);
            let dots =
                points.iter().flatten().map(|(x, point)| Circle::new((*x, point.value), 4, colour.filled()));
            let drawn = chart.draw_series(dots).expect(DRAWN);
            if has_legend {
                drawn.label(&series.line.name).legend(move |(x, y)| {
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (24, 0)], colour.stroke_width(2))
                        + Circle::new((12, 0), 4, colour.filled())
                });
            }
        }
        chart
            .configure_series_labels()
            .position(self.empty_corner())
            .margin(14)
            .legend_area_size(34)
            .label_font(text(14))
            .background_style(WHITE.mix(0.85))
            .draw()
            .expect(DRAWN);
    }

    /// The corner with the fewest points and levels, where a legend hides least.
    fn empty_corner(&self) -> SeriesLabelPosition {
        let (bottom, top) = self.range();
        let middle = (self.ticks.len() as f64 - 1.0) / 2.0;
        let points = |series: &Series| -> Vec<(f64, f64)> {
            let points = series.points.iter().enumerate();
            let ends = |point: &Point| [point.low, point.value, point.high];
            points
                .flat_map(|(x, point)| {
                    point.iter().flat_map(ends).map(move |y| (x as f64, y)).collect::<Vec<_>>()
                })
                .collect()
        };
        let level = |(_, level): &(Line, f64)| [(-1.0, *level), (2.0 * middle + 1.0, *level)];
        let all: Vec<(f64, f64)> =
            self.series.iter().flat_map(points).chain(self.levels.iter().flat_map(level)).collect();
        let hidden = |left: bool, lower: bool| {
            let inside = |(x, y): &&(f64, f64)| {
                let share = (y - bottom) / (top - bottom);
                (if left { *x < middle } else { *x > middle })
                    && (if lower { share < 0.4 } else { share > 0.6 })
            };
            all.iter().filter(inside).count()
        };
        let corners = [
            (SeriesLabelPosition::LowerLeft, hidden(true, true)),
            (SeriesLabelPosition::LowerRight, hidden(false, true)),
            (SeriesLabelPosition::UpperLeft, hidden(true, false)),
            (SeriesLabelPosition::UpperRight, hidden(false, false)),
        ];
        corners.into_iter().min_by_key(|(_, hidden)| *hidden).map(|(corner, _)| corner).expect("four corners")
    }

    /// Lowest and highest value to show: values and intervals with a margin of 5 %, not below 0 nor above 100 percent.
    fn range(&self) -> (f64, f64) {
        let points = self.series.iter().flat_map(|series| series.points.iter().flatten());
        let ends = points.flat_map(|point| [point.low, point.value, point.high]);
        let all = ends.chain(self.levels.iter().map(|(_, level)| *level));
        let (low, high) =
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
        // At least half a unit high, so that equal values still make an axis.
        let margin = (0.05 * (high - low)).max(0.25);
        ((low - margin).max(0.0), (high + margin).min(if self.y.contains('%') { 100.5 } else { f64::MAX }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bar_and_every_engine_an_entry() {
        let bars =
            |series| Bars { title: "batch 1".into(), ticks: vec!["80 %".into(), "90 %".into()], series };
        let row = vec![bars(vec![vec![Some(1.0), Some(0.5)], vec![Some(2.0), None]])];
        let svg = times(&[("dense", INK), ("condensed", RGBColor(213, 94, 0))], &[row]);
        let filled = |colour: &str| {
            svg.lines()
                .filter(|line| line.starts_with("<rect") && line.contains(&format!("fill=\"{colour}\"")))
                .count()
        };
        // One bar per time and a square in the legend.
        assert_eq!((filled("#333333"), filled("#D55E00")), (3, 2), "{svg}");
        assert!(svg.contains("condensed") && svg.contains("batch 1") && svg.contains("90 %"), "{svg}");
    }
}
