//! The page: what all runs share, then one section per run.

use crate::chart::{style, swatch};
use crate::html::{self, or_dash};
use crate::{comparison, curves, fan_in, layers, masks};
use srigl_run::Run;
use std::fmt::Write as _;

/// Rectangles of all heat maps of a page, which bound its size.
const HEAT_CELLS: usize = 20_000;
/// Steps that a heat map shows at least and at most.
const HEAT_COLUMNS: (usize, usize) = (12, 60);

/// Draws the page of some runs. The same runs give the same bytes.
pub fn page(runs: &[Run]) -> String {
    let mut body = format!("<header><h1>Sparse training</h1><p>{}</p></header>\n", subtitle(runs));
    body += &format!("<h2>Runs</h2>\n{}<h2>Curves</h2>\n{}", table(runs), curves::section(runs));
    body += &comparison::section(runs);
    body += "<h2>Each run</h2>\n";
    let rows: usize = runs.iter().map(|run| 2 * run.layers.len()).sum();
    let columns = (HEAT_CELLS / rows.max(1)).clamp(HEAT_COLUMNS.0, HEAT_COLUMNS.1);
    let open = runs.iter().position(|run| !run.layers.is_empty()).unwrap_or(0);
    for (i, (run, masks)) in runs.iter().zip(masks::sections(runs)).enumerate() {
        body += &details(i, run, i == open, columns, &masks);
    }
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
         <meta name=viewport content='width=device-width, initial-scale=1'>\n\
         <meta name=color-scheme content='light dark'>\n\
         <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n\
         <title>Sparse training: {}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <script>\n{}</script>\n</body>\n</html>\n",
        html::count(runs.len(), "run"),
        include_str!("page.css"),
        include_str!("page.js")
    )
}

fn subtitle(runs: &[Run]) -> String {
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
    let mut text = format!(
        "{} of {} on {}",
        html::count(runs.len(), "run"),
        distinct(|run| &run.config.model.name),
        distinct(|run| run.data())
    );
    if runs.iter().any(Run::is_synthetic) {
        _ = write!(text, " {SYNTHETIC}");
    }
    text
}

const SYNTHETIC: &str = "<strong class=synthetic>SYNTHETIC</strong>";

fn synthetic(run: &Run) -> &'static str {
    if run.is_synthetic() { SYNTHETIC } else { "" }
}

const COLUMNS: [&str; 12] = [
    "Run",
    "Model",
    "Data",
    "Method",
    "Sparsity",
    "reached",
    "γ<sub>sal</sub>",
    "Seed",
    "Epochs",
    "Test accuracy",
    "best",
    "Time",
];

fn table(runs: &[Run]) -> String {
    let mut rows = String::new();
    for (i, run) in runs.iter().enumerate() {
        let config = &run.config;
        let asked = (config.method.info().needs.sparsity).then_some(config.sparsity);
        let epochs = match run.outcome {
            Some(_) => config.epochs.to_string(),
            None => format!("{} of {}, unfinished", done(run), config.epochs),
        };
        let cells = [
            format!("{}&nbsp;{}", html::name(run.data()), synthetic(run)),
            config.method.variant().label.to_string(),
            or_dash(asked, html::percent),
            or_dash(run.sparsity(), html::exact_percent),
            or_dash(config.method.number("gamma_sal"), html::number),
            config.seed.to_string(),
            epochs,
            or_dash(run.accuracy(), html::exact_percent),
            or_dash(run.best_accuracy(), html::exact_percent),
            html::duration(run.seconds()),
        ];
        _ = write!(
            rows,
            "<tr><th scope=row>{}<a href='#run{i}'>{}</a></th><td>{}</td>",
            swatch(&style(i)),
            html::name(&run.name),
            html::name(&config.model.name)
        );
        rows.extend(cells.map(|cell| format!("<td>{cell}</td>")));
        rows += "</tr>\n";
    }
    let head: String = COLUMNS.map(|column| format!("<th scope=col>{column}</th>")).concat();
    format!(
        "<div class=scroll tabindex=0 role=region aria-label='All runs'>\
         <table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn done(run: &Run) -> usize {
    run.epochs.last().map_or(0, |epoch| epoch.epoch)
}

fn details(i: usize, run: &Run, open: bool, columns: usize, masks: &str) -> String {
    let config = &run.config;
    let open = if open { " open" } else { "" };
    let mut facts = vec![config.method.variant().label.to_string()];
    if config.method.info().needs.sparsity {
        facts.push(format!("sparsity {}", html::percent(config.sparsity)));
    }
    if let Some(accuracy) = run.accuracy() {
        facts.push(format!("test accuracy {}", html::exact_percent(accuracy)));
    }
    if run.outcome.is_none() {
        facts.push(format!("unfinished: {} of {} done", done(run), html::count(config.epochs, "epoch")));
    }
    format!(
        "<details id=run{i} class='{}'{open}><summary>{}<b>{}</b> <span>{} {}</span></summary>\n{}{}{}{}</details>\n",
        style(i),
        swatch(&style(i)),
        html::name(&run.name),
        facts.join(", "),
        synthetic(run),
        missing(run),
        layers::section(run, columns),
        fan_in::section(&run.layers),
        masks
    )
}

/// What cannot be shown of a run, and why.
fn missing(run: &Run) -> String {
    let updated = run.layers.iter().any(|layer| !layer.updates.is_empty());
    let mut text = String::new();
    let needs = run.config.method.info().needs;
    if !needs.sparsity {
        text += "Dense: no masks to show.";
    } else if !needs.updates {
        text += "The masks of this run never change.";
    } else if !updated {
        text += "No topology update has been logged.";
    }
    if run.config.method.info().needs.sparsity && !run.has_masks {
        text += " Without <code>masks.jsonl</code>, which older versions of <code>srigl train</code> did not \
                 write, there are no fan-ins and no mask pictures.";
    }
    if text.is_empty() { text } else { format!("<p class=note>{}</p>\n", text.trim_start()) }
}
