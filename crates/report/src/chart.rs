//! Line charts as SVG. Colours come from the page's style sheet, so that they follow light and dark.

use crate::html;
use std::fmt::Write as _;

/// Width of every figure in its own units; the page shows them at about this many pixels.
pub const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;
/// Points of a line; more are not seen.
const POINTS: usize = 500;
/// Points of a line that tell their value when pointed at.
const SPOTS: usize = 40;

/// Hues that people with colour-blindness can tell apart; each in a light and a dark tone in the style sheet.
const COLOURS: [[u8; 3]; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 143, 104], [194, 98, 154], [201, 137, 0], [74, 163, 219]];

/// Style of the `i`-th line: a colour, and once all colours are used, dashes.
pub fn style(i: usize) -> String {
    format!("c{} d{}", i % COLOURS.len(), i / COLOURS.len() % 4)
}

/// Colour of the `i`-th line.
pub fn colour(i: usize) -> [u8; 3] {
    COLOURS[i % COLOURS.len()]
}

/// A chart.
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis.
    pub x: &'static str,
    /// Marks of the horizontal axis; round numbers if there are none.
    pub x_ticks: Vec<(f64, String)>,
    /// How values of the vertical axis are shown.
    pub show: fn(f64) -> String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A line of a chart.
#[derive(Default)]
pub struct Line {
    /// What it stands for; raw text.
    pub name: String,
    /// Classes of the style sheet.
    pub style: String,
    /// From left to right.
    pub points: Vec<Point>,
    /// Whether the points are joined.
    pub joined: bool,
}

/// A point of a line.
#[derive(Clone, Copy, Default)]
pub struct Point {
    /// Place.
    pub x: f64,
    /// Value; without one, the line has a gap.
    pub y: Option<f64>,
    /// Least and largest value that `y` is a mean of.
    pub span: Option<(f64, f64)>,
}

impl Chart {
    /// The figure, or nothing if there is nothing to draw.
    pub fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let values = points().flat_map(|point| [point.y, point.span.map(|s| s.0), point.span.map(|s| s.1)]);
        let Some((y_low, y_high)) = range(values.flatten()) else { return String::new() };
        let places = points().filter(|point| point.y.is_some()).map(|point| point.x);
        let ends = self.x_ticks.iter().map(|(x, _)| *x);
        let Some((x_low, x_high)) = range(places.chain(ends)) else { return String::new() };
        let step = round_step(y_low, y_high);
        let (y_low, y_high) = ((y_low / step + 1e-9).floor() * step, (y_high / step - 1e-9).ceil() * step);
        let y = Axis::new((y_low, y_high), (HEIGHT - BOTTOM, TOP));
        let x = Axis::new((x_low, x_high), (LEFT, WIDTH - RIGHT));

        let mut svg = String::new();
        for value in ticks(y_low, y_high, step) {
            let (at, label) = (y.at(value), html::text(&(self.show)(value)));
            _ = write!(
                svg,
                "<path class=grid d='M{LEFT} {at:.1}H{:.0}'/><text x={:.0} y={:.1} class=end>{label}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 3.5
            );
        }
        let step = round_step(x_low, x_high).max(1.0);
        let x_ticks = match &self.x_ticks[..] {
            [] => ticks(x_low, x_high, step).into_iter().map(|value| (value, html::number(value))).collect(),
            ticks => ticks.to_vec(),
        };
        for (value, label) in x_ticks {
            let (at, label) = (x.at(value), html::text(&label));
            _ = write!(svg, "<text x={at:.1} y={:.0} class=mid>{label}</text>", HEIGHT - BOTTOM + 15.0);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        _ = write!(svg, "<text x={middle:.0} y={:.0} class='mid name'>{}</text>", HEIGHT - 5.0, self.x);
        for line in &self.lines {
            line.draw(&mut svg, &x, &y, self);
        }
        figure(&self.title, HEIGHT, &svg)
    }
}

impl Line {
    fn draw(&self, svg: &mut String, x: &Axis, y: &Axis, chart: &Chart) {
        let name = html::name(&self.name);
        _ = write!(svg, "<g class='{}'>", self.style);
        let mut path = String::new();
        let mut pen = 'M';
        for point in thinned(&self.points, POINTS) {
            let Some(value) = point.y else {
                pen = 'M';
                continue;
            };
            _ = write!(path, "{pen}{:.1} {:.1}", x.at(point.x), y.at(value));
            pen = 'L';
        }
        if self.joined {
            _ = write!(svg, "<path class=line d='{path}'/>");
        }
        let valued: Vec<Point> = self.points.iter().copied().filter(|point| point.y.is_some()).collect();
        for point in thinned(&valued, SPOTS) {
            let value = point.y.unwrap_or_default();
            let place = chart.x_ticks.iter().find(|(tick, _)| (tick - point.x).abs() < 0.5);
            let place = place.map_or_else(
                || format!("{} {}", chart.x, html::number(point.x)),
                |(_, label)| format!("{} {}", chart.x, html::text(label)),
            );
            let mut title = format!("{name}, {place}: {}", (chart.show)(value));
            if let Some((low, high)) = point.span {
                _ = write!(title, " ({} to {})", (chart.show)(low), (chart.show)(high));
                _ = write!(
                    svg,
                    "<path class=span d='M{:.1} {:.1}V{:.1}'/>",
                    x.at(point.x),
                    y.at(low),
                    y.at(high)
                );
            }
            // A line of one point is not seen otherwise.
            let class = if self.joined && path.contains('L') { "spot" } else { "dot" };
            let (x, y) = (x.at(point.x), y.at(value));
            _ = write!(svg, "<circle class={class} cx={x:.1} cy={y:.1} r=4><title>{title}</title></circle>");
        }
        svg.push_str("</g>");
    }
}

/// A figure with its caption; `title` is raw text.
pub fn figure(title: &str, height: f64, svg: &str) -> String {
    let title = html::text(title);
    format!(
        "<figure><figcaption>{title}</figcaption>\
         <svg viewBox='0 0 {WIDTH} {height:.0}' role=img aria-label='{title}'>{svg}</svg></figure>\n"
    )
}

/// What the lines of charts stand for; pairs (raw name, style).
pub fn legend(entries: &[(String, String)]) -> String {
    let mut list = String::from("<ul class=legend>");
    for (name, style) in entries {
        _ = write!(list, "<li>{}{}</li>", swatch(style), html::name(name));
    }
    list + "</ul>\n"
}

/// A piece of a line.
pub fn swatch(style: &str) -> String {
    format!(
        "<svg class='swatch {style}' viewBox='0 0 28 10' aria-hidden=true><path class=line d='M1 5H27'/></svg>"
    )
}

/// At most `most` of the items, evenly chosen, with the first and the last.
pub fn thinned<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let count = items.len().min(most);
    (0..count).map(move |i| &items[if count < 2 { 0 } else { i * (items.len() - 1) / (count - 1) }])
}

struct Axis {
    low: f64,
    from: f64,
    scale: f64,
}

impl Axis {
    fn new((low, high): (f64, f64), (from, to): (f64, f64)) -> Self {
        Self { low, from, scale: (to - from) / (high - low) }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) * self.scale
    }
}

/// Least and largest value, at least a bit apart.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return None;
    }
    let size = high.abs().max(low.abs());
    if high - low > (1e-9 * size).max(1e-100) {
        return Some((low, high));
    }
    // Room on the side of zero: a share of 1 has no more above it.
    let room = 0.05 * size.max(0.1);
    Some(if high > 0.0 { (low - room, high) } else { (low, high + room) })
}

/// Distance of three to six round numbers in a range.
fn round_step(low: f64, high: f64) -> f64 {
    let rough = (high - low) / 4.0;
    let unit = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|s| s * unit).into_iter().find(|s| *s >= rough).unwrap_or(rough)
}

/// Multiples of `step` within a range.
fn ticks(low: f64, high: f64, step: f64) -> Vec<f64> {
    let first = (low / step - 1e-9).ceil();
    let count = ((high / step + 1e-9).floor() - first).clamp(0.0, 9.0) as usize;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, Option<f64>)]) -> Chart {
        let points = points.iter().map(|&(x, y)| Point { x, y, span: None }).collect();
        let line = Line { name: "<run>".into(), style: style(0), points, joined: true };
        Chart { title: "<t>".into(), x: "epoch", x_ticks: vec![], show: html::number, lines: vec![line] }
    }

    #[test]
    fn gaps_break_the_line() {
        let svg =
            chart(&[(1.0, Some(1.0)), (2.0, Some(2.0)), (3.0, None), (4.0, Some(0.0)), (5.0, Some(1.0))]);
        let svg = svg.draw();
        let path = svg.split("class=line d='").nth(1).unwrap().split('\'').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 2));
        assert!(
            svg.contains("<title>&lt;run&gt;, epoch 4: 0</title>") && svg.contains("aria-label='&lt;t&gt;'")
        );
    }

    #[test]
    fn odd_values_draw_nothing_odd() {
        for points in [
            vec![],
            vec![(1.0, None)],
            vec![(1.0, Some(5.0))],
            vec![(1.0, Some(0.0)), (1.0, Some(0.0))],
            vec![(0.0, Some(-9e99)), (1e19, Some(9e99))],
            vec![(0.0, Some(1e-320)), (1.0, Some(2e-320))],
        ] {
            let svg = chart(&points).draw();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
    }

    #[test]
    fn ticks_are_round() {
        let round = |low, high| ticks(low, high, round_step(low, high));
        assert_eq!(round(0.0, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(round(1.0, 10.0), [5.0, 10.0]);
        assert_eq!(round(0.0, 300.0), [0.0, 100.0, 200.0, 300.0]);
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let many: Vec<usize> = (0..10_000).collect();
        let few: Vec<_> = thinned(&many, 500).copied().collect();
        assert_eq!((few.len(), few[0], few[499]), (500, 0, 9999));
        assert_eq!(thinned(&many[..3], 500).count(), 3);
        assert_eq!(thinned(&many[..0], 500).count(), 0);
    }
}
