//! Charts as SVG, for the page of runs and for files of their own.
//!
//! [`Chart`] draws lines over numbers or named places, [`bars`] groups of bars. Both leave drawing to `plotters`.

use crate::html;
use maud::{Markup, PreEscaped, html};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use std::fmt::Write as _;
use std::ops::Range;

/// Red, green and blue.
pub type Colour = [u8; 3];

/// Text, and what belongs to no single run or method.
pub const INK: Colour = [51, 51, 51];
/// What has less weight than [`INK`].
pub const GREY: Colour = [140, 140, 140];
/// Hues of Okabe and Ito that people with colour-blindness can tell apart; a little darker than theirs, for lines.
pub const HUES: [Colour; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 143, 104], [194, 98, 154], [74, 163, 219], [201, 137, 0]];
/// Their tones on a dark page.
const ON_DARK: [Colour; 6] =
    [[88, 174, 230], [245, 138, 75], [60, 194, 155], [225, 148, 194], [155, 211, 245], [233, 178, 63]];
const GRID: Colour = [226, 226, 226];

/// Points of a line; more are not seen.
const POINTS: usize = 500;
/// Points of a line that tell their value when pointed at.
const SPOTS: usize = 40;
/// Points of a line that are marked; more would be a band.
const DOTS: usize = 12;
/// Entries of a legend; more would hide the lines.
pub const LEGEND: usize = 12;

/// Size of a chart in its own units, which are pixels of a file.
const SIZE: (u32, u32) = (640, 440);
const FONT: &str = "Helvetica, Arial, sans-serif";
const DRAWN: &str = "drawing into a string cannot fail";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Cartesian<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// A chart of lines.
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis.
    pub x: String,
    /// Name of the vertical axis; may be empty.
    pub y: String,
    /// Named places of the horizontal axis, with half a place of room on both sides; round numbers if there are none.
    pub places: Vec<(f64, String)>,
    /// How values of the vertical axis are shown.
    pub show: fn(f64) -> String,
    /// The lines.
    pub lines: Vec<Line>,
}

/// A line of a chart.
#[derive(Clone, Default)]
pub struct Line {
    /// What it stands for.
    pub name: String,
    /// How it looks.
    pub style: Style,
    /// From left to right.
    pub points: Vec<Point>,
    /// Whether the points are joined.
    pub joined: bool,
    /// Whether they are marked by dots, if they are few.
    pub marked: bool,
    /// Whether a legend in the chart names it.
    pub in_legend: bool,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Its colour.
    pub colour: Colour,
    /// Length of dashes and of the gaps between them in the chart's units; none is a line without gaps.
    pub dash: Option<(i32, i32)>,
}

/// A point of a line.
#[derive(Clone, Copy, Default)]
pub struct Point {
    /// Place.
    pub x: f64,
    /// Value; without one, the line has a gap.
    pub y: Option<f64>,
    /// Lower and upper end of what `y` stands for.
    pub span: Option<(f64, f64)>,
}

const DASHES: [Option<(i32, i32)>; 6] =
    [None, Some((12, 7)), Some((3, 5)), Some((24, 7)), Some((3, 12)), Some((12, 18))];

impl Style {
    /// The `i`-th of many lines: a colour, and once all colours are used, dashes.
    pub fn of_run(i: usize) -> Self {
        Self { colour: HUES[i % HUES.len()], dash: DASHES[i / HUES.len() % DASHES.len()] }
    }

    /// The `i`-th of a few lines that stand for several runs each: dashes only.
    pub fn of_group(i: usize) -> Self {
        Self { colour: INK, dash: DASHES[i % DASHES.len()] }
    }

    /// A line without gaps.
    pub fn solid(colour: Colour) -> Self {
        Self { colour, dash: None }
    }

    /// A line at one height across the chart.
    pub fn level(colour: Colour) -> Self {
        Self { colour, dash: Some((6, 4)) }
    }

    /// The `i`-th of `count` lines that have an order: colours from blue over green to yellow.
    pub fn in_order(i: usize, count: usize) -> Self {
        let place = if count > 1 { i as f64 / (count - 1) as f64 } else { 0.0 };
        let (r, g, b) = HSLColor(0.66 - 0.54 * place, 0.75, 0.42).rgb();
        Self::solid([r, g, b])
    }

    /// A piece of the line, for legends of the page.
    pub(crate) fn swatch(self) -> Markup {
        let dash = self.dash.map(|(on, off)| format!("{} {}", f64::from(on) * 0.6, f64::from(off) * 0.6));
        html! {
            svg.swatch viewBox="0 0 28 10" aria-hidden="true" {
                path stroke=(hex(self.colour)) stroke-width="2" fill="none" stroke-dasharray=[dash] d="M1 5H27" {}
            }
        }
    }

    /// The page shows a chart at about half its size.
    fn stroke(self, in_file: bool) -> ShapeStyle {
        rgb(self.colour).stroke_width(if in_file { 2 } else { 3 })
    }
}

impl Chart {
    /// The chart as a figure of the page, which names the lines beside it; nothing if there is nothing to draw.
    pub(crate) fn figure(&self) -> Markup {
        let Some(axes) = self.axes() else { return html! {} };
        let mut overlay = String::new();
        let drawing = canvas(SIZE, |root| overlay = self.draw(root, axes, Look::Page));
        let svg = html! { g.chart { (drawing) (PreEscaped(overlay)) } };
        figure(&self.title, (f64::from(SIZE.0), f64::from(SIZE.1)), &svg)
    }

    fn axes(&self) -> Option<(Axis, Axis)> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (low, high) = range(points().filter_map(|point| point.y))?;
        let mut widths: Vec<f64> =
            points().filter_map(|point| point.span).map(|(low, high)| high - low).collect();
        widths.sort_by(f64::total_cmp);
        // Some spans may be many times as wide as most: what is far out is cut off.
        let room = widths.get(widths.len() / 2).map_or(0.0, |middle| middle.max((high - low) / 2.0));
        let spans = points().filter_map(|point| point.span).flat_map(<[f64; 2]>::from);
        let spans = spans.map(|end| end.clamp(low - room, high + room));
        let y = Axis::round(points().filter_map(|point| point.y).chain(spans), true, self.show)?;
        let x = match (self.places.first(), self.places.last()) {
            (Some((first, _)), Some((last, _))) => {
                Axis { range: first - ROOM..last + ROOM, marks: self.places.clone() }
            }
            _ => {
                let places = points().filter(|point| point.y.is_some()).map(|point| point.x);
                Axis::round(places, false, html::number)?
            }
        };
        Some((x, y))
    }

    /// Draws into an area; returns what lies over it in the page: dashed lines, and spots that tell their values.
    fn draw(&self, area: &Area, (x, y): (Axis, Axis), look: Look) -> String {
        let (left, right) = (x.range.start, x.range.end);
        let (low, high) = (y.range.start, y.range.end);
        let in_file = look == Look::File;
        let font = if in_file { 14 } else { 19 };
        let mut builder = ChartBuilder::on(area);
        if in_file {
            builder.margin(16).caption(html::clean(&self.title), text(17));
        } else {
            builder.margin_right(16).margin_top(12);
        }
        builder.x_label_area_size(3 * font).y_label_area_size(if in_file { 58 } else { 76 });
        let mut chart = builder.build_cartesian_2d(x, y).expect(DRAWN);
        mesh(&mut chart, font, &self.x, if in_file { &self.y } else { "" }, None);

        let mut overlay = String::new();
        for line in &self.lines {
            line.draw(&mut chart, in_file, (low, high), &mut overlay);
            line.spots(&chart, self, &mut overlay);
        }
        if in_file {
            let corner = self.empty_corner((left, right), (low, high));
            chart
                .configure_series_labels()
                .position(corner)
                .margin(14)
                .legend_area_size(34)
                .label_font(text(font))
                .background_style(WHITE.mix(0.85))
                .draw()
                .expect(DRAWN);
        }
        overlay
    }

    /// The corner with the fewest points and levels, where a legend hides least.
    fn empty_corner(&self, (left, right): (f64, f64), (bottom, top): (f64, f64)) -> SeriesLabelPosition {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let ends = |point: &Point| [point.span.map(|s| s.0), point.y, point.span.map(|s| s.1)];
        let all: Vec<(f64, f64)> =
            points.flat_map(|point| ends(point).into_iter().flatten().map(|y| (point.x, y))).collect();
        let hidden = |in_left: bool, in_lower: bool| {
            let inside = |(x, y): &&(f64, f64)| {
                let (along, up) = ((x - left) / (right - left), (y - bottom) / (top - bottom));
                (if in_left { along < 0.5 } else { along > 0.5 })
                    && (if in_lower { up < 0.4 } else { up > 0.6 })
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
}

/// Draws charts into one file, two in a row, and returns the SVG; those with nothing to draw stay empty.
pub fn file(charts: &[Chart]) -> String {
    let (columns, rows) = (charts.len().clamp(1, 2), charts.len().div_ceil(2).max(1));
    let size = (SIZE.0 * columns as u32, SIZE.1 * rows as u32);
    standalone(size, |root| {
        for (chart, area) in charts.iter().zip(root.split_evenly((rows, columns))) {
            if let Some(axes) = chart.axes() {
                chart.draw(&area, axes, Look::File);
            }
        }
    })
}

/// Where a chart stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// In the page, which writes title and legend and knows the colours of the night.
    Page,
    /// In a file that explains itself.
    File,
}

impl Line {
    fn draw<'a, 'b: 'a>(
        &self,
        chart: &mut Cartesian<'a, 'b>,
        in_file: bool,
        (bottom, top): (f64, f64),
        overlay: &mut String,
    ) {
        let style = self.style.stroke(in_file);
        let shown: Vec<&Point> = thinned(&self.points, POINTS).collect();
        let parts: Vec<Vec<(f64, f64)>> = shown
            .split(|point| point.y.is_none())
            .map(|part| part.iter().filter_map(|point| Some((point.x, point.y?))).collect())
            .collect();
        if self.joined {
            for part in parts.iter().filter(|part| part.len() > 1) {
                let part = part.iter().copied();
                match self.style.dash {
                    None => _ = chart.draw_series(LineSeries::new(part, style)).expect(DRAWN),
                    Some((on, off)) if in_file => {
                        chart.draw_series(DashedLineSeries::new(part, on, off, style)).expect(DRAWN);
                    }
                    // A tag for each dash would make a large page.
                    Some((on, off)) => {
                        let points: Vec<String> = part
                            .map(|at| chart.backend_coord(&at))
                            .map(|(x, y)| format!("{x},{y}"))
                            .collect();
                        let line = html! {
                            polyline fill="none" stroke=(hex(self.style.colour)) stroke-width=(style.stroke_width)
                                stroke-dasharray={ (on) " " (off) } points=(points.join(" ")) {}
                        };
                        overlay.push_str(&line.into_string());
                    }
                }
            }
        }
        let valued: Vec<&Point> = self.points.iter().filter(|point| point.y.is_some()).collect();
        let spans = valued.iter().filter_map(|point| Some((point.x, point.span?)));
        let spans = spans.map(|(x, (low, high))| {
            let ends = [low, high].map(|end| (x, end.clamp(bottom, top)));
            PathElement::new(ends, style)
        });
        chart.draw_series(spans).expect(DRAWN);
        // A part of one point is not seen otherwise.
        let alone = parts.iter().filter(|part| part.len() == 1).flatten().copied();
        let all = self.marked && valued.len() <= DOTS;
        let dots: Vec<(f64, f64)> = if all || !self.joined { parts.concat() } else { alone.collect() };
        let dots = dots.into_iter().map(|at| Circle::new(at, 4, rgb(self.style.colour).filled()));
        let drawn = chart.draw_series(dots).expect(DRAWN);
        if in_file && self.in_legend {
            let entry = drawn.label(html::name(&self.name));
            let colour = rgb(self.style.colour);
            if self.style.dash.is_some() {
                entry.legend(move |(x, y)| {
                    // Two dashes and a half of the line.
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (6, 0)], style)
                        + PathElement::new([(10, 0), (16, 0)], style)
                        + PathElement::new([(20, 0), (24, 0)], style)
                });
            } else {
                entry.legend(move |(x, y)| {
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (24, 0)], style)
                        + Circle::new((12, 0), 4, colour.filled())
                });
            }
        }
    }

    /// Invisible circles that tell the values of points.
    fn spots(&self, chart: &Cartesian, of: &Chart, svg: &mut String) {
        let valued: Vec<&Point> = self.points.iter().filter(|point| point.y.is_some()).collect();
        for point in thinned(&valued, SPOTS) {
            let value = point.y.unwrap_or_default();
            let place = of.places.iter().find(|(place, _)| (place - point.x).abs() < 0.5);
            let place = place.map_or_else(|| html::number(point.x), |(_, label)| html::clean(label));
            let mut title = format!("{}, {} {place}: {}", html::name(&self.name), of.x, (of.show)(value));
            if let Some((low, high)) = point.span {
                _ = write!(title, " ({} to {})", (of.show)(low), (of.show)(high));
            }
            let (x, y) = chart.backend_coord(&(point.x, value));
            let spot = html! {
                circle.spot fill=(hex(self.style.colour)) cx=(x) cy=(y) r="7" { title { (title) } }
            };
            svg.push_str(&spot.into_string());
        }
    }
}

/// A group of bars at each place.
pub struct Bars {
    /// Heading.
    pub title: String,
    /// Names of the groups, from left to right.
    pub places: Vec<String>,
    /// For each entry of the legend the value at each place; `None` leaves a gap.
    pub series: Vec<Vec<Option<f64>>>,
}

/// Size of a panel of bars in pixels.
const BARS: (u32, u32) = (420, 340);
/// Room of one entry of the legend in pixels.
const ENTRY: (i32, i32) = (200, 24);
/// Share of the distance between places that a group of bars takes.
const GROUP: f64 = 0.66;
/// Room left and right of the outer places, in distances between places.
pub const ROOM: f64 = 0.4;

/// Draws rows of panels with bars below a common legend, each entry a name and a colour, on one logarithmic scale;
/// returns the SVG. `x` and `y` name the axes.
pub fn bars(legend: &[(&str, Colour)], x: &str, y: &str, rows: &[Vec<Bars>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1).max(1) as u32;
    let width = BARS.0 * columns;
    let per_line = (width as i32 / ENTRY.0).max(1);
    let lines = (legend.len() as i32 + per_line - 1) / per_line;
    let top = (12 + lines * ENTRY.1) as u32;
    let all = || rows.iter().flatten().flat_map(|bars| bars.series.iter().flatten().flatten());
    // Powers of ten, so that bars can be compared between panels.
    let low = 10_f64.powf(all().copied().fold(f64::INFINITY, f64::min).log10().floor());
    let high = 10_f64.powf(all().copied().fold(0.0, f64::max).log10().ceil()).max(10.0 * low);

    standalone((width, top + BARS.1 * rows.len() as u32), |root| {
        let (head, body) = root.split_vertically(top);
        for (index, (name, colour)) in legend.iter().enumerate() {
            let (x, y) = (20 + index as i32 % per_line * ENTRY.0, 12 + index as i32 / per_line * ENTRY.1);
            head.draw(&Rectangle::new([(x, y), (x + 14, y + 14)], rgb(*colour).filled())).expect(DRAWN);
            head.draw(&Text::new(*name, (x + 20, y), text(15))).expect(DRAWN);
        }
        let areas = body.split_evenly((rows.len(), columns as usize));
        for (row, areas) in rows.iter().zip(areas.chunks(columns as usize)) {
            for (bars, area) in row.iter().zip(areas) {
                bars.draw(area, legend, (x, y), low..high);
            }
        }
    })
}

impl Bars {
    fn draw(&self, area: &Area, legend: &[(&str, Colour)], (x, y): (&str, &str), range: Range<f64>) {
        let low = range.start;
        let places = Axis {
            range: -ROOM..self.places.len() as f64 - 1.0 + ROOM,
            marks: self.places.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect(),
        };
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .caption(&self.title, text(16))
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d(places, range.log_scale())
            .expect(DRAWN);
        mesh(&mut chart, 13, x, y, Some(&|value| value.to_string()));
        let width = GROUP / legend.len() as f64;
        for (index, (series, (_, colour))) in self.series.iter().zip(legend).enumerate() {
            let bars = series.iter().enumerate().filter_map(|(place, value)| {
                let left = place as f64 - GROUP / 2.0 + index as f64 * width;
                Some(Rectangle::new([(left, low), (left + 0.9 * width, (*value)?)], rgb(*colour).filled()))
            });
            chart.draw_series(bars).expect(DRAWN);
        }
    }
}

/// Axes, and lines at the marks of the vertical one.
fn mesh<Y>(
    chart: &mut ChartContext<SVGBackend, Cartesian2d<Axis, Y>>,
    font: u32,
    x: &str,
    y: &str,
    show: Option<&dyn Fn(&f64) -> String>,
) where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(rgb(GRID))
        .axis_style(rgb(GREY))
        .label_style(text(font))
        .axis_desc_style(text(font))
        .x_desc(x);
    if !y.is_empty() {
        mesh.y_desc(y);
    }
    if let Some(show) = show {
        mesh.y_label_formatter(show);
    }
    mesh.draw().expect(DRAWN);
}

/// A range and its marks.
struct Axis {
    range: Range<f64>,
    marks: Vec<(f64, String)>,
}

impl Axis {
    /// Round marks over the values, of which there must be one; a `whole` axis ends at marks.
    fn round(values: impl Iterator<Item = f64>, whole: bool, show: fn(f64) -> String) -> Option<Self> {
        let (low, high) = range(values)?;
        let step = round_step(low, high);
        // Epochs and steps have no fractions.
        let step = if whole { step } else { step.max(1.0) };
        let range = if whole {
            (low / step + 1e-9).floor() * step..(high / step - 1e-9).ceil() * step
        } else {
            low..high
        };
        let marks = ticks(range.start, range.end, step).into_iter().map(|value| (value, show(value)));
        Some(Self { marks: marks.collect(), range })
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        // Not a number becomes the start.
        left + (share.clamp(0.0, 1.0) * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let mark = self.marks.iter().find(|(at, _)| at == value);
        mark.map(|(_, label)| html::clean(label)).unwrap_or_default()
    }
}

/// A figure of the page with its caption; `size` is the width and height of what is drawn.
pub(crate) fn figure(title: &str, (width, height): (f64, f64), svg: &Markup) -> Markup {
    let title = html::clean(title);
    html! {
        figure {
            figcaption { (title) }
            svg viewBox={ "0 0 " (width) " " (height.round()) } role="img" aria-label=(title) { (svg) }
        }
    }
}

/// What the lines of charts of the page stand for.
pub(crate) fn legend(entries: &[(String, Style)]) -> Markup {
    html! {
        ul.legend {
            @for (name, style) in entries {
                li { (style.swatch()) (html::name(name)) }
            }
        }
    }
}

/// At most `most` of the items, evenly chosen, with the first and the last.
pub(crate) fn thinned<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let count = items.len().min(most);
    (0..count).map(move |i| &items[if count < 2 { 0 } else { i * (items.len() - 1) / (count - 1) }])
}

/// Rules of the page's style sheet: drawings name the colours of the day, at night others are seen.
pub(crate) fn theme() -> String {
    let rule = |colour: Colour, name: &str| {
        let hex = hex(colour);
        format!("[stroke='{hex}']{{stroke:var(--{name})}}[fill='{hex}']{{fill:var(--{name})}}\n")
    };
    let mut rules = [rule(INK, "ink"), rule(GREY, "soft"), rule(GRID, "rule")].concat();
    let (mut day, mut night) = (String::new(), String::new());
    for (i, (light, dark)) in HUES.into_iter().zip(ON_DARK).enumerate() {
        rules += &rule(light, &format!("c{i}"));
        _ = write!(day, "--c{i}:{};", hex(light));
        _ = write!(night, "--c{i}:{};", hex(dark));
        _ = writeln!(rules, ".c{i}{{--c:var(--c{i})}}");
    }
    format!(":root{{{day}}}\n@media(prefers-color-scheme:dark){{:root{{{night}}}}}\n{rules}")
}

/// A drawing with white ground as a whole SVG document.
fn standalone(size: (u32, u32), draw: impl FnOnce(&Area)) -> String {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).expect(DRAWN);
        draw(&root);
        root.present().expect(DRAWN);
    }
    svg
}

/// What a drawing consists of, without the tag around it.
fn canvas(size: (u32, u32), draw: impl FnOnce(&Area)) -> Markup {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&root);
        root.present().expect(DRAWN);
    }
    let inside = svg.find('>').map_or(0, |end| end + 1)..svg.rfind("</svg>").unwrap_or(svg.len());
    PreEscaped(svg[inside].to_string())
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&rgb(INK))
}

fn rgb([r, g, b]: Colour) -> RGBColor {
    RGBColor(r, g, b)
}

fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
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
        let line = Line {
            name: "<run>".into(),
            style: Style::of_run(0),
            points,
            joined: true,
            marked: true,
            in_legend: true,
        };
        Chart {
            title: "<t>".into(),
            x: "epoch".into(),
            y: "loss".into(),
            places: vec![],
            show: html::number,
            lines: vec![line],
        }
    }

    /// Tags of that name and colour, as often as they are drawn.
    fn count(svg: &str, tag: &str, colour: Colour) -> usize {
        let colour = format!("\"{}\"", hex(colour));
        svg.split('<').filter(|part| part.starts_with(tag) && part.contains(&colour)).count()
    }

    #[test]
    fn gaps_break_the_line() {
        let chart =
            chart(&[(1.0, Some(1.0)), (2.0, Some(2.0)), (3.0, None), (4.0, Some(0.0)), (5.0, Some(1.0))]);
        let svg = chart.figure().into_string();
        assert_eq!(count(&svg, "polyline", HUES[0]), 2, "{svg}");
        // A dot at each value and a spot that tells it.
        assert_eq!(count(&svg, "circle", HUES[0]), 8, "{svg}");
        assert!(svg.contains("<title>&lt;run&gt;, epoch 4: 0</title>") && svg.contains("\"&lt;t&gt;\""));
        // The page says what a file must say itself.
        let file = file(&[chart]);
        assert!(!svg.contains("\nloss\n") && file.contains("\nloss\n") && file.contains("\n&lt;run&gt;\n"));
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
            let chart = chart(&points);
            for svg in [chart.figure().into_string(), file(&[chart])] {
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
                for place in ["cx=\"", "cy=\"", "x1=\"", "y1=\""] {
                    let places = svg.split(place).skip(1).map(|rest| rest.split('"').next().unwrap());
                    for place in places {
                        assert!((0.0..=640.0).contains(&place.parse::<f64>().unwrap()), "{points:?}: {svg}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_wide_span_does_not_stretch_the_axis() {
        let mut chart = chart(&[(1.0, Some(80.0)), (2.0, Some(84.0)), (3.0, Some(82.0))]);
        let high = |chart: &Chart| chart.axes().unwrap().1.range.end;
        let spans = [(79.0, 81.0), (83.0, 85.0), (-40.0, 204.0)];
        chart.lines[0].points.iter_mut().zip(spans).for_each(|(point, span)| point.span = Some(span));
        assert!((85.0..90.0).contains(&high(&chart)), "{}", high(&chart));
        // What most are like is shown whole.
        chart.lines[0].points.iter_mut().for_each(|point| point.span = Some((40.0, 120.0)));
        assert_eq!(high(&chart), 120.0);
    }

    #[test]
    fn dashes_do_not_make_a_large_page() {
        let zigzag: Vec<_> = (0..100_000).map(|i| (f64::from(i), Some(f64::from(i % 2)))).collect();
        let mut chart = chart(&zigzag);
        chart.lines[0].style = Style::of_run(HUES.len());
        let svg = chart.figure().into_string();
        assert!(svg.contains("stroke-dasharray=\"12 7\"") && svg.len() < 20_000, "{} bytes", svg.len());
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

    #[test]
    fn every_value_has_a_bar_and_every_series_an_entry() {
        let places = vec!["80 %".into(), "90 %".into()];
        let series = vec![vec![Some(1.0), Some(0.5)], vec![Some(2.0), None]];
        let row = vec![Bars { title: "batch 1".into(), places, series }];
        let svg = bars(&[("dense", INK), ("condensed", HUES[1])], "sparsity", "milliseconds", &[row]);
        // One bar per value and a square in the legend.
        assert_eq!((count(&svg, "rect", INK), count(&svg, "rect", HUES[1])), (3, 2), "{svg}");
        assert!(svg.contains("condensed") && svg.contains("batch 1") && svg.contains("90 %"), "{svg}");
    }
}
