//! Losses, accuracies and learning rates against epochs: one line per run.

use crate::chart::{Chart, Line, Point, legend, style};
use crate::html;
use srigl_run::{Epoch, Run};

/// The section of the page.
pub fn section(runs: &[Run]) -> String {
    let drawn = [
        chart(runs, "Training loss", |epoch| epoch.train_loss, html::number),
        chart(runs, "Test accuracy", |epoch| epoch.test_accuracy, html::percent),
        chart(runs, "Learning rate", |epoch| epoch.lr, html::number),
    ]
    .concat();
    if drawn.is_empty() {
        return "<p class=note>No run has finished an epoch yet.</p>".to_string();
    }
    let names: Vec<_> = runs.iter().enumerate().map(|(i, run)| (run.name.clone(), style(i))).collect();
    format!("{}<div class=figures>{drawn}</div>\n", legend(&names))
}

fn chart(runs: &[Run], title: &str, value: fn(&Epoch) -> Option<f64>, show: fn(f64) -> String) -> String {
    let point = |epoch: &Epoch| Point { x: epoch.epoch as f64, y: value(epoch), span: None };
    let line = |(i, run): (usize, &Run)| Line {
        name: run.name.clone(),
        style: style(i),
        points: run.epochs.iter().map(point).collect(),
        joined: true,
    };
    let lines = runs.iter().enumerate().map(line).collect();
    Chart { title: title.to_string(), x: "epoch", x_ticks: vec![], show, lines }.draw()
}
