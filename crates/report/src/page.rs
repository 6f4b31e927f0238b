//! The page: what all runs share, then one section per run.

use crate::chart::{self, Style};
use crate::html::{self, or_dash};
use crate::{comparison, curves, fan_in, layers, masks};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use srigl_run::Run;

/// Rectangles of all heat maps of a page, which bound its size.
const HEAT_CELLS: usize = 20_000;
/// Steps that a heat map shows at least and at most.
const HEAT_COLUMNS: (usize, usize) = (12, 60);
/// Who may do what on the page: nothing is loaded.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// Draws the page of some runs. The same runs give the same bytes.
pub fn page(runs: &[Run]) -> String {
    let rows: usize = runs.iter().map(|run| 2 * run.layers.len()).sum();
    let columns = (HEAT_CELLS / rows.max(1)).clamp(HEAT_COLUMNS.0, HEAT_COLUMNS.1);
    let open = runs.iter().position(|run| !run.layers.is_empty()).unwrap_or(0);
    let content = html! {
        h2 { "Runs" }
        (table(runs))
        h2 { "Curves" }
        (curves::section(runs))
        (comparison::section(runs))
        h2 { "Each run" }
        @for (i, (run, masks)) in runs.iter().zip(masks::sections(runs)).enumerate() {
            (details(i, run, i == open, columns, &masks))
        }
    };
    document("Sparse training", runs.len(), &subtitle(runs), &content)
}

/// A page of so many runs that loads nothing.
pub fn document(title: &str, runs: usize, subtitle: &Markup, content: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) ": " (html::count(runs, "run")) }
                style { (PreEscaped(include_str!("page.css"))) (PreEscaped(chart::theme())) }
            }
            body {
                main {
                    header { h1 { (title) } p { (subtitle) } }
                    (content)
                }
                script { (PreEscaped(include_str!("page.js"))) }
            }
        }
    }
    .into_string()
}

fn subtitle(runs: &[Run]) -> Markup {
    let distinct = |name: fn(&Run) -> &str| {
        let mut names: Vec<String> = Vec::new();
        for run in runs {
            let name = html::name(name(run));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    };
    html! {
        (html::count(runs.len(), "run")) " of " (distinct(|run| &run.config.model.name)) " on "
        (distinct(|run| run.data())) " "
        (synthetic(runs.iter().any(Run::is_synthetic)))
    }
}

fn synthetic(is: bool) -> Markup {
    html! { @if is { strong.synthetic { "SYNTHETIC" } } }
}

fn table(runs: &[Run]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="All runs" {
            table {
                thead {
                    tr {
                        @for name in ["Run", "Model", "Data", "Method", "Sparsity", "reached"] {
                            th scope="col" { (name) }
                        }
                        th scope="col" { "γ" sub { "sal" } }
                        @for name in ["Seed", "Epochs", "Test accuracy", "best", "Time"] {
                            th scope="col" { (name) }
                        }
                    }
                }
                tbody { @for (i, run) in runs.iter().enumerate() { (row(i, run)) } }
            }
        }
    }
}

fn row(i: usize, run: &Run) -> Markup {
    let config = &run.config;
    let asked = config.method.info().sparse.then_some(config.sparsity);
    let epochs = match run.outcome {
        Some(_) => config.epochs.to_string(),
        None => format!("{} of {}, unfinished", done(run), config.epochs),
    };
    html! {
        tr {
            th scope="row" {
                (Style::of_run(i).swatch())
                a href={ "#run" (i) } { (html::name(&run.name)) }
            }
            td { (html::name(&config.model.name)) }
            td { (html::name(run.data())) "\u{a0}" (synthetic(run.is_synthetic())) }
            td { (config.method.label()) }
            td { (or_dash(asked, html::percent)) }
            td { (or_dash(run.sparsity(), html::exact_percent)) }
            td { (or_dash(config.method.number("gamma_sal"), html::number)) }
            td { (config.seed) }
            td { (epochs) }
            td { (or_dash(run.accuracy(), html::exact_percent)) }
            td { (or_dash(run.best_accuracy(), html::exact_percent)) }
            td { (html::duration(run.seconds())) }
        }
    }
}

fn done(run: &Run) -> usize {
    run.epochs.last().map_or(0, |epoch| epoch.epoch)
}

fn details(i: usize, run: &Run, open: bool, columns: usize, masks: &Markup) -> Markup {
    let config = &run.config;
    let mut facts = vec![config.method.label()];
    if config.method.info().sparse {
        facts.push(format!("sparsity {}", html::percent(config.sparsity)));
    }
    if let Some(accuracy) = run.accuracy() {
        facts.push(format!("test accuracy {}", html::exact_percent(accuracy)));
    }
    if run.outcome.is_none() {
        facts.push(format!("unfinished: {} of {} done", done(run), html::count(config.epochs, "epoch")));
    }
    html! {
        details id={ "run" (i) } class={ "c" (i % chart::HUES.len()) } open[open] {
            summary {
                (Style::of_run(i).swatch())
                b { (html::name(&run.name)) }
                " "
                span { (facts.join(", ")) " " (synthetic(run.is_synthetic())) }
            }
            (missing(run))
            (layers::section(run, columns))
            (fan_in::section(&run.layers))
            (masks)
        }
    }
}

/// What cannot be shown of a run, and why.
fn missing(run: &Run) -> Markup {
    let method = run.config.method.info();
    let updated = run.layers.iter().any(|layer| !layer.updates.is_empty());
    let why = if !method.sparse {
        Some("Dense: no masks to show.")
    } else if !method.changes() {
        Some("The masks of this run never change.")
    } else {
        (!updated).then_some("No topology update has been logged.")
    };
    let without_masks = method.sparse && !run.has_masks;
    html! {
        @if why.is_some() || without_masks {
            p.note {
                @if let Some(why) = why { (why) " " }
                @if without_masks {
                    "Without " code { "masks.jsonl" } ", which older versions of " code { "srigl train" }
                    " did not write, there are no fan-ins and no mask pictures."
                }
            }
        }
    }
}
