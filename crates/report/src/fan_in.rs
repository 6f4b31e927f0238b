//! Histograms of fan-ins at the end of a run, one small figure per layer.

use crate::html;
use maud::{Markup, html};
use srigl_run::{Layer, MaskLine};
use std::fmt::Write as _;

const WIDTH: f64 = 160.0;
const HEIGHT: f64 = 56.0;
/// Bars of a histogram.
const BARS: u64 = 32;

/// The figures of a run; empty without snapshots.
pub fn section(layers: &[Layer]) -> Markup {
    let last = |layer: &Layer| layer.snapshots.last().map(|snapshot| histogram(&layer.name, snapshot));
    let figures: Vec<Markup> = layers.iter().filter_map(last).collect();
    if figures.is_empty() {
        return html! {};
    }
    html! {
        h3 { "Fan-in at the end" }
        p.note {
            "Neurons by number of active weights. One bar: all neurons have the same fan-in. Grey: neurons without any."
        }
        div.small { @for figure in figures { (figure) } }
    }
}

fn histogram(layer: &str, snapshot: &MaskLine) -> Markup {
    let fan_ins = &snapshot.fan_in;
    let most = fan_ins.iter().map(|(fan_in, _)| *fan_in).max().unwrap_or(0);
    let least = fan_ins.iter().map(|(fan_in, _)| *fan_in).find(|fan_in| *fan_in > 0).unwrap_or(0);
    // A quarter more than needed, if there are as many inputs, so that a single bar does not stand at the edge.
    let end = most.saturating_add(most / 4).min(snapshot.dense_fan_in).max(4);
    let per_bar = (end / BARS).saturating_add(1);
    let mut counts = vec![0u64; (end / per_bar + 1) as usize];
    for (fan_in, count) in fan_ins.iter().filter(|(fan_in, _)| *fan_in > 0) {
        counts[(fan_in / per_bar) as usize] += count;
    }
    let ablated = snapshot.ablated();
    let tallest = counts.iter().copied().max().unwrap_or(0).max(ablated).max(1) as f64;
    let width = WIDTH / counts.len() as f64;
    let bar = |i: usize, count: u64| {
        let height = (HEIGHT * count as f64 / tallest).max(1.0);
        format!(
            "M{:.1} {HEIGHT}v-{height:.1}h{:.1}v{height:.1}",
            i as f64 * width,
            (width - 0.5).clamp(0.5, 12.0)
        )
    };
    let bars: String =
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(i, count)| bar(i, *count)).collect();
    let none = if ablated > 0 { bar(0, ablated) } else { String::new() };

    let spread = match (least, most) {
        (_, 0) => "no active neuron".to_string(),
        (least, most) if least == most => format!("fan-in {most}"),
        (least, most) => format!("fan-in {least} to {most}"),
    };
    let mut words = format!("{spread} of {}, {} neurons", snapshot.dense_fan_in, snapshot.neurons);
    if ablated > 0 {
        _ = write!(words, ", {ablated} ablated");
    }
    let name = html::name(layer);
    html! {
        figure {
            figcaption { (name) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT + 14.0) } role="img" aria-label={ (name) ": " (words) } {
                title { (words) }
                path.none d=(none) {}
                path.bar d=(bars) {}
                path.axis d={ "M0 " (HEIGHT) "H" (WIDTH) } {}
                text x="0" y=(HEIGHT + 12.0) { "0" }
                text.end x=(WIDTH) y=(HEIGHT + 12.0) { (end) }
            }
            p { (words) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use srigl_run::Picture;

    fn draw(fan_in: &[(u64, u64)], dense_fan_in: u64) -> String {
        let picture = Picture { height: 1, width: 1, density: vec![9] };
        let neurons = fan_in.iter().map(|(_, count)| count).sum();
        histogram(
            "<l>",
            &MaskLine {
                step: 0,
                layer: "fc".into(),
                neurons,
                dense_fan_in,
                picture,
                fan_in: fan_in.to_vec(),
            },
        )
        .into_string()
    }

    #[test]
    fn words() {
        assert!(draw(&[(0, 4), (9, 60)], 576).contains("<p>fan-in 9 of 576, 64 neurons, 4 ablated</p>"));
        assert!(draw(&[(3, 4), (9, 60)], 576).contains("<p>fan-in 3 to 9 of 576, 64 neurons</p>"));
        assert!(draw(&[(0, 4)], 576).contains("no active neuron of 576"));
        assert!(draw(&[(1, 1)], 1).contains("&lt;l&gt;"));
    }

    #[test]
    fn a_bar_per_fan_in_up_to_a_limit() {
        let bars = |svg: String| {
            svg.split("class=\"bar\"").nth(1).unwrap().split('>').next().unwrap().matches('M').count()
        };
        assert_eq!(bars(draw(&[(9, 60)], 576)), 1);
        assert_eq!(bars(draw(&[(1, 1), (2, 1), (3, 1)], 9)), 3);
        assert!(bars(draw(&(1..500).map(|i| (i, 1)).collect::<Vec<_>>(), 576)) <= BARS as usize + 1);
        assert_eq!(bars(draw(&[(u64::MAX, 1)], u64::MAX)), 1);
    }
}
