//! The figures: accuracy against sparsity, one line per method; times of a layer, one bar per engine.

use crate::recipe::Method;
use crate::stats::Summary;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// One pair of axes.
pub struct Panel {
    /// Heading.
    pub title: String,
    /// Names of the sparsities, evenly spaced from left to right.
    pub ticks: Vec<String>,
    /// Accuracy of the dense network in percent: a dashed line.
    pub dense: Option<Summary>,
    /// The methods.
    pub series: Vec<Series>,
}

/// One line.
pub struct Series {
    /// Decides name and colour.
    pub method: Method,
    /// Accuracy in percent at each tick; `None` leaves a gap.
    pub points: Vec<Option<Summary>>,
}

/// Size of a panel in pixels.
const PANEL: (u32, u32) = (640, 440);
/// Room left and right of the outer ticks, in distances between ticks.
const SIDE: f64 = 0.35;
const FONT: &str = "Helvetica, Arial, sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(226, 226, 226);

/// Colours of Okabe and Ito, which people with colour-blindness can tell apart.
fn colour(method: Method) -> RGBColor {
    match method {
        Method::Dense => INK,
        Method::Static => RGBColor(140, 140, 140),
        Method::Set => RGBColor(230, 159, 0),
        Method::Rigl => RGBColor(0, 114, 178),
        Method::SriglNoAblation => RGBColor(0, 158, 115),
        Method::Srigl => RGBColor(213, 94, 0),
    }
}

/// Draws the panels side by side and returns the SVG.
///
/// # Panics
/// Never in practice: drawing into a string cannot fail.
pub fn accuracy(panels: &[Panel]) -> String {
    let mut svg = String::new();
    let size = (PANEL.0 * panels.len() as u32, PANEL.1);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).expect(DRAWN);
        for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len()))) {
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
            .x_desc("sparsity")
            .y_desc("test accuracy, %")
            .y_label_formatter(&|y| format!("{y}"))
            .y_labels(8)
            .draw()
            .expect(DRAWN);

        if let Some(dense) = self.dense {
            let line = [(-SIDE, dense.mean), (last + SIDE, dense.mean)];
            let style = INK.stroke_width(2);
            chart
                .draw_series(DashedLineSeries::new(line, 6, 4, style))
                .expect(DRAWN)
                .label(Method::Dense.label())
                .legend(move |(x, y)| {
                    // Two dashes and a half of the line.
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (6, 0)], style)
                        + PathElement::new([(10, 0), (16, 0)], style)
                        + PathElement::new([(20, 0), (24, 0)], style)
                });
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = colour(series.method);
            // Side by side, so that the intervals of one sparsity do not hide each other.
            let shift = (index as f64 - (self.series.len() as f64 - 1.0) / 2.0) * 0.03;
            let x = |tick: usize| tick as f64 + shift;
            let points: Vec<Option<(f64, Summary)>> = (0..self.ticks.len())
                .map(|tick| series.points.get(tick).copied().flatten().map(|point| (x(tick), point)))
                .collect();
            // A missing point interrupts the line instead of being bridged.
            let lines = points.split(Option::is_none).filter(|part| part.len() > 1).map(|part| {
                let path: Vec<(f64, f64)> =
                    part.iter().flatten().map(|(x, point)| (*x, point.mean)).collect();
                PathElement::new(path, colour.stroke_width(2))
            });
            chart.draw_series(lines).expect(DRAWN);
            let intervals = points.iter().flatten().filter_map(|(x, point)| {
                let half = point.ci95?;
                let ends = vec![(*x, point.mean - half), (*x, point.mean + half)];
                Some(PathElement::new(ends, colour.stroke_width(2)))
            });
            chart.draw_series(intervals).expect(DRAWN);
            let dots =
                points.iter().flatten().map(|(x, point)| Circle::new((*x, point.mean), 4, colour.filled()));
            chart.draw_series(dots).expect(DRAWN).label(series.method.label()).legend(move |(x, y)| {
                EmptyElement::at((x, y))
                    + PathElement::new([(0, 0), (24, 0)], colour.stroke_width(2))
                    + Circle::new((12, 0), 4, colour.filled())
            });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .margin(14)
            .legend_area_size(34)
            .label_font(text(14))
            .background_style(WHITE.mix(0.85))
            .draw()
            .expect(DRAWN);
    }

    /// Lowest and highest accuracy to show: means and intervals with a margin of 5 %, within 0 to 100.
    fn range(&self) -> (f64, f64) {
        let all = self.series.iter().flat_map(|series| series.points.iter().flatten()).chain(&self.dense);
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| {
            let half = point.ci95.unwrap_or(0.0);
            (low.min(point.mean - half), high.max(point.mean + half))
        });
        // At least half a point high, so that equal accuracies still make an axis.
        let margin = (0.05 * (high - low)).max(0.25);
        ((low - margin).max(0.0), (high + margin).min(100.0))
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
