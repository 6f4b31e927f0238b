//! Run folders of `srigl xmc train` as a page: results and curves.

use crate::Error;
use crate::chart::{Point, Style, legend};
use crate::curves::by_epoch;
use crate::html::{self, or_dash};
use crate::page::document;
use maud::{Markup, html};
use srigl_run::atomic;
use srigl_xmc::{Epoch, LoggedRun};
use std::path::{Path, PathBuf};

/// Draws runs as one HTML page that needs no other file, and writes it so that readers see the old or the new one.
///
/// # Errors
/// If a folder does not hold such a run, or the page cannot be written.
pub fn write(folders: &[PathBuf], path: &Path) -> Result<(), Error> {
    let runs: Result<Vec<LoggedRun>, srigl_run::Error> =
        folders.iter().map(|folder| LoggedRun::read(folder)).collect();
    Ok(atomic::write(path, page(&runs?).as_bytes())?)
}

/// Draws the page. The same runs give the same bytes.
pub fn page(runs: &[LoggedRun]) -> String {
    let names: Vec<_> =
        runs.iter().enumerate().map(|(i, run)| (run.name.clone(), Style::of_run(i))).collect();
    let subtitle = html! { (html::count(runs.len(), "run")) " of srigl xmc train" };
    let content = html! {
        h2 { "Runs" }
        (table(runs))
        h2 { "Curves" }
        @if runs.iter().all(|run| run.epochs.is_empty()) {
            p.note { "No run has finished an epoch yet." }
        } @else {
            (legend(&names))
            div.figures {
                (chart(runs, "Training loss", |epoch| finite(epoch.train_loss), html::number))
                (chart(runs, "P@1", |epoch| share(epoch.measured.p_at_1), html::percent))
                (chart(runs, "P@5", |epoch| share(epoch.measured.p_at_5), html::percent))
                (chart(runs, "PSP@1", |epoch| share(epoch.measured.psp_at_1), html::percent))
                (chart(runs, "Seconds", |epoch| finite(epoch.seconds), html::number))
            }
        }
    };
    document("Extreme classification", runs.len(), &subtitle, &content)
}

/// Numbers of a file that can be drawn.
fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

fn share(number: f64) -> Option<f64> {
    (0.0..=1.0).contains(&number).then_some(number)
}

fn chart(
    runs: &[LoggedRun],
    title: &str,
    value: fn(&Epoch) -> Option<f64>,
    show: fn(f64) -> String,
) -> Markup {
    let point = |epoch: &Epoch| Point { x: epoch.epoch as f64, y: value(epoch), span: None };
    by_epoch(title, show, runs.iter().map(|run| (&*run.name, run.epochs.iter().map(point).collect())))
}

fn table(runs: &[LoggedRun]) -> Markup {
    let names = [
        "Run",
        "Points",
        "Features",
        "Labels",
        "Hidden",
        "Fan-in",
        "Group",
        "Dense labels",
        "Loss",
        "Epochs",
        "P@1",
        "P@3",
        "P@5",
        "nDCG@5",
        "PSP@1",
        "PSP@5",
        "Time per epoch",
        "Memory",
    ];
    html! {
        div.scroll tabindex="0" role="region" aria-label="All runs" {
            table {
                thead { tr { @for name in names { th scope="col" { (name) } } } }
                tbody { @for (i, run) in runs.iter().enumerate() { (row(i, run)) } }
            }
        }
    }
}

fn row(i: usize, run: &LoggedRun) -> Markup {
    let (network, training, train) = (&run.settings.network, &run.settings.training, &run.settings.train);
    let last = run.epochs.last();
    let measured = last.map(|epoch| epoch.measured);
    let epochs = match run.result {
        Some(_) => training.epochs.to_string(),
        None => format!("{} of {}, unfinished", last.map_or(0, |epoch| epoch.epoch), training.epochs),
    };
    let is_dense = network.dense_head >= train.labels;
    let fan_in = if is_dense { network.hidden } else { network.fan_in };
    let memory = run.result.as_ref().and_then(|result| result.peak_rss_mb);
    html! {
        tr {
            th scope="row" { (Style::of_run(i).swatch()) (html::name(&run.name)) }
            td { (train.points) }
            td { (train.features) }
            td { (train.labels) }
            td { (network.hidden) }
            td { (fan_in) }
            td { (if is_dense { 1 } else { network.group }) }
            td { (network.dense_head.min(train.labels)) }
            td { (training.loss.name()) }
            td { (epochs) }
            @for share in [
                measured.and_then(|m| share(m.p_at_1)),
                measured.and_then(|m| share(m.p_at_3)),
                measured.and_then(|m| share(m.p_at_5)),
                measured.and_then(|m| share(m.ndcg_at_5)),
                measured.and_then(|m| share(m.psp_at_1)),
                measured.and_then(|m| share(m.psp_at_5)),
            ] {
                td { (or_dash(share, html::exact_percent)) }
            }
            td { (or_dash(run.seconds_per_epoch(), html::duration)) }
            td { (or_dash(memory, |mb| format!("{mb:.0}\u{a0}MB"))) }
        }
    }
}
