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
    let line = |(i, run): (usize, &Run)| Line {
        name: run.name.clone(),
        style: Style::of_run(i),
        points: run.epochs.iter().map(point).collect(),
        joined: true,
        marked: true,
        in_legend: true,
    };
    let lines = runs.iter().enumerate().map(line).collect();
    let title = title.to_string();
    Chart { y: title.clone(), title, x: "epoch".into(), places: vec![], show, lines }.figure()
}
