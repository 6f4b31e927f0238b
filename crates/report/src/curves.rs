//! Losses, accuracies and learning rates against epochs: one line per run.

use crate::chart::{Chart, Line, Point, Style, legend};
use crate::html;
use maud::{Markup, html};
use srigl_run::{Epoch, Run};

/// The section of the page.
pub fn section(runs: &[Run]) -> Markup {
    if runs.iter().all(|run| run.epochs.is_empty()) {
        return html! { p.note { "No run has finished an epoch yet." } };
    }
    let names: Vec<_> =
        runs.iter().enumerate().map(|(i, run)| (run.name.clone(), Style::of_run(i))).collect();
    html! {
        (legend(&names))
        div.figures {
            (chart(runs, "Training loss", |epoch| epoch.train_loss, html::number))
            (chart(runs, "Test accuracy", |epoch| epoch.test_accuracy, html::percent))
            (chart(runs, "Learning rate", |epoch| epoch.lr, html::number))
        }
    }
}

fn chart(runs: &[Run], title: &str, value: fn(&Epoch) -> Option<f64>, show: fn(f64) -> String) -> Markup {
    let point = |epoch: &Epoch| Point { x: epoch.epoch as f64, y: value(epoch), span: None };
    by_epoch(title, show, runs.iter().map(|run| (&*run.name, run.epochs.iter().map(point).collect())))
}

/// A figure of some runs, by their names, against epochs.
pub fn by_epoch<'a>(
    title: &str,
    show: fn(f64) -> String,
    runs: impl Iterator<Item = (&'a str, Vec<Point>)>,
) -> Markup {
    let line = |(i, (name, points)): (usize, (&str, Vec<Point>))| Line {
        name: name.into(),
        style: Style::of_run(i),
        points,
        joined: true,
        marked: true,
        in_legend: true,
    };
    let lines = runs.enumerate().map(line).collect();
    let title = title.to_string();
    Chart { y: title.clone(), title, x: "epoch".into(), places: vec![], show, lines }.figure()
}
