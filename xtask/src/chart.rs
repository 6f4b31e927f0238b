//! The figure: accuracy against sparsity, one line per method.

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
