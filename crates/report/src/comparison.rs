//! Accuracy against sparsity: for each network and data set, one line per method.

use crate::chart::{Chart, Line, Point, Style, legend};
use crate::html;
use maud::{Markup, html};
use serde_json::{Map, Value};
use srigl_run::Run;

/// Settings that make no other method of a run.
const NOT_COMPARED: [&str; 7] =
    ["model", "dataset", "method", "no_ablation", "sparsity", "seed", "checkpoint_every"];
/// Settings that dense training ignores.
const OF_SPARSE_RUNS: [&str; 8] = [
    "distribution",
    "keep_dense",
    "gamma_sal",
    "delta_t",
    "drop_fraction",
    "drop_schedule",
    "end_fraction",
    "grad_accumulation",
];

/// Finished runs that differ in sparsity and seed only.
struct Group<'a> {
    method: String,
    settings: Map<String, Value>,
    /// With their places among all runs.
    runs: Vec<(usize, &'a Run)>,
}

/// The section of the page; empty if there are fewer than two finished sparse runs of one network and data set.
pub fn section(runs: &[Run]) -> Markup {
    let mut sets: Vec<(&str, &str, bool)> = Vec::new();
    for run in runs {
        let set = (&*run.config.model.name, run.data(), run.is_synthetic());
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    let mut figures = Vec::new();
    for (model, data, synthetic) in sets {
        let same =
            |run: &Run| (&*run.config.model.name, run.data(), run.is_synthetic()) == (model, data, synthetic);
        let finished: Vec<_> =
            runs.iter().enumerate().filter(|(_, run)| run.outcome.is_some() && same(run)).collect();
        if finished.iter().filter(|(_, run)| run.config.method.info().sparse).count() > 1 {
            let mark = if synthetic { " (SYNTHETIC)" } else { "" };
            let short = |raw: &str| raw.chars().take(40).collect::<String>();
            figures.push(draw(format!("{} on {}{mark}", short(model), short(data)), &finished));
        }
    }
    if figures.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Accuracy against sparsity" }
        p.note {
            "Test accuracy after the last epoch of finished runs. Lines join the means over seeds, bars reach from the \
             worst to the best seed, dots are single runs in their colours. Runs whose other settings differ have \
             lines of their own."
        }
        div.figures { @for figure in figures { (figure) } }
    }
}

fn draw(title: String, finished: &[(usize, &Run)]) -> Markup {
    let mut groups: Vec<Group> = Vec::new();
    for (i, run) in finished {
        let (method, settings) = (name_of(run), compared(run));
        match groups.iter_mut().find(|group| group.method == method && group.settings == settings) {
            Some(group) => group.runs.push((*i, run)),
            None => groups.push(Group { method, settings, runs: vec![(*i, run)] }),
        }
    }
    let sparse = finished.iter().filter(|(_, run)| run.config.method.info().sparse);
    let mut sparsities: Vec<f64> = sparse.map(|(_, run)| run.config.sparsity).collect();
    sparsities.sort_by(f64::total_cmp);
    sparsities.dedup();
    let place = |sparsity: f64| sparsities.iter().position(|s| *s == sparsity).unwrap_or(0) as f64;

    let (mut lines, mut dots, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (g, group) in groups.iter().enumerate() {
        let name = group.name(&groups);
        let style = Style::of_group(g);
        // Side by side, so that the bars of one method do not hide another's.
        let aside = (0.06 * (g as f64 - (groups.len() - 1) as f64 / 2.0)).clamp(-0.3, 0.3);
        let points = if group.is_dense() {
            let (y, span) = group.summary(None);
            [-0.35, sparsities.len() as f64 - 0.65].map(|x| Point { x, y, span }).to_vec()
        } else {
            for (i, run) in &group.runs {
                let point = Point { x: place(run.config.sparsity) + aside, y: run.accuracy(), span: None };
                dots.push(Line {
                    name: run.name.clone(),
                    style: Style::of_run(*i),
                    points: vec![point],
                    joined: false,
                    marked: true,
                    in_legend: false,
                });
            }
            let point = |sparsity: &f64| {
                let (y, span) = group.summary(Some(*sparsity));
                Point { x: place(*sparsity) + aside, y, span }
            };
            sparsities.iter().map(point).filter(|point| point.y.is_some()).collect()
        };
        entries.push((name.clone(), style));
        lines.push(Line { name, style, points, joined: true, marked: false, in_legend: true });
    }
    lines.append(&mut dots);
    let places = sparsities.iter().enumerate().map(|(i, s)| (i as f64, html::percent(*s))).collect();
    let chart =
        Chart { title, x: "sparsity".into(), y: "test accuracy".into(), places, show: html::percent, lines };
    html! { div { (chart.figure()) (legend(&entries)) } }
}

/// The method. Patterns with as many inputs are one line: they are other sparsities.
fn name_of(run: &Run) -> String {
    let method = &run.config.method;
    let pattern = method.nm().map(|nm| format!(" {}:M", nm.n())).unwrap_or_default();
    format!("{}{pattern}", method.variant().label)
}

fn compared(run: &Run) -> Map<String, Value> {
    let mut settings = run.config.own_settings();
    let ignored = if !run.config.method.info().sparse { &OF_SPARSE_RUNS[..] } else { &[] };
    settings.retain(|key, _| !NOT_COMPARED.contains(&&**key) && !ignored.contains(&&**key));
    settings.remove("nm");
    // Of two ways to ask for no ablation, and of methods without it.
    if run.config.method.number("gamma_sal").is_none_or(|gamma_sal| gamma_sal == 0.0) {
        settings.remove("gamma_sal");
    }
    settings
}

impl Group<'_> {
    fn is_dense(&self) -> bool {
        self.runs.iter().all(|(_, run)| !run.config.method.info().sparse)
    }

    /// Mean, least and largest accuracy, of all runs or those of one sparsity.
    fn summary(&self, sparsity: Option<f64>) -> (Option<f64>, Option<(f64, f64)>) {
        let at = |run: &Run| sparsity.is_none_or(|sparsity| run.config.sparsity == sparsity);
        let values: Vec<f64> =
            self.runs.iter().filter(|(_, run)| at(run)).filter_map(|(_, run)| run.accuracy()).collect();
        if values.is_empty() {
            return (None, None);
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let least = values.iter().copied().fold(mean, f64::min);
        let largest = values.iter().copied().fold(mean, f64::max);
        (Some(mean), (values.len() > 1).then_some((least, largest)))
    }

    /// The method, and the settings that set this group apart from others of its method.
    fn name(&self, groups: &[Group]) -> String {
        let others: Vec<_> = groups.iter().filter(|other| other.method == self.method).collect();
        let differs =
            |key: &str| others.iter().any(|other| other.settings.get(key) != self.settings.get(key));
        let differing: Vec<String> = self
            .settings
            .iter()
            .filter(|(key, _)| differs(key))
            .map(|(key, value)| format!("{} {value}", key.replace('_', "-")))
            .collect();
        if differing.is_empty() {
            self.method.to_string()
        } else {
            format!("{}, {}", self.method, differing.join(", "))
        }
    }
}
