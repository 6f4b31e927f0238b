//! The results as tables, figure and JSON.

use super::case::{Case, Engine, Measured, PAPER_LAYER, SEED, TARGETS, Target, percent, threads_label};
use super::{Options, TOLERANCE};
use crate::published::LayerTimings;
use crate::report::{Chart, Report, Table};
use serde_json::{Value, json};
use srigl_report::chart::{self, Bars};

/// The report of all cases, in the order of [`super::case::cases`].
pub fn report(
    options: &Options,
    published: &LayerTimings,
    measured: &[Measured],
    skipped: Vec<String>,
    problems: Vec<String>,
) -> Report {
    let mut command = "`cargo xtask reproduce timings".to_string();
    for (given, option) in [(options.peers, " --peers"), (options.quick, " --quick")] {
        command.push_str(if given { option } else { "" });
    }
    let mut facts = vec![
        command + "`",
        format!("{}, {} available", cpu_name(), cores_label(options.cores)),
        format!("random masks of constant fan-in, float32, with bias, seed {SEED}"),
        format!("medians of {} samples; the engines take turns, a sample for each", options.rounds()),
    ];
    if options.peers {
        facts.push(format!(
            "all engines run the same weights and inputs on as many threads; each result is within {TOLERANCE:.0e} \
             of the dense one"
        ));
        facts.extend(what_ran(measured));
    }
    facts.extend(skipped.iter().cloned());

    let mut tables = Vec::new();
    for group in
        measured.chunk_by(|a, b| (a.case.subject, a.case.threads) == (b.case.subject, b.case.threads))
    {
        tables.push(times_table(group));
        tables.push(speedup_table(group, published));
    }
    let targets: Vec<(&Target, Option<f64>)> =
        TARGETS.iter().map(|target| (target, reached(target, measured))).collect();
    if options.peers {
        tables.push(target_table(&targets));
    }
    let mut json = json!({
        "table": "timings",
        "quick": options.quick,
        "cpu": cpu_name(),
        "cores": options.cores,
        "rounds": options.rounds(),
        "cases": measured.iter().map(|case| case_json(case, published)).collect::<Vec<_>>(),
        "skipped": skipped,
    });
    if options.peers {
        json["targets"] = targets.iter().map(|(target, ours)| target_json(target, *ours)).collect();
    }
    Report {
        title: "On the CPU: dense, CSR and condensed".into(),
        facts,
        tables,
        json,
        chart: figure(measured),
        problems,
    }
}

/// Version and call of every other engine, once.
fn what_ran(measured: &[Measured]) -> Vec<String> {
    let mut ran = Vec::new();
    for engine in Engine::ALL {
        let results = measured.iter().flat_map(|case| &case.results);
        for result in results.filter(|result| result.engine == engine && engine > Engine::Condensed) {
            let line = format!("{}: {}", engine.label(), result.how);
            if !ran.contains(&line) {
                ran.push(line);
            }
        }
    }
    ran
}

/// The engines that were timed in any of the cases, in the order of the columns.
fn engines(group: &[Measured]) -> Vec<Engine> {
    Engine::ALL.into_iter().filter(|&engine| group.iter().any(|case| case.ms(engine).is_some())).collect()
}

/// `linear 3072 → 768, 1 thread`: what the cases of a group have in common.
fn group_label(group: &[Measured]) -> String {
    let case = &group[0].case;
    format!("{}, {}", case.subject.label(), threads_label(case.threads))
}

fn times_table(group: &[Measured]) -> Table {
    let engines = engines(group);
    let mut table = Table { caption: format!("Milliseconds, {}", group_label(group)), ..Table::default() };
    table.header.extend(["sparsity".into(), "batch".into()]);
    table.header.extend(engines.iter().map(|engine| engine.label().to_string()));
    for case in group {
        let mut row = vec![percent(case.case.sparsity), case.case.batch.to_string()];
        if case.results.is_empty() {
            row.extend(engines.iter().map(|_| "failed".to_string()));
        } else {
            row.extend(engines.iter().map(|&engine| case.ms(engine).map_or(String::new(), milliseconds)));
        }
        table.rows.push(row);
    }
    table
}

fn speedup_table(group: &[Measured], published: &LayerTimings) -> Table {
    let others: Vec<Engine> =
        engines(group).into_iter().filter(|&engine| engine != Engine::Condensed).collect();
    let caption = format!("How many times faster the condensed form is, {}", group_label(group));
    let mut table = Table { caption, ..Table::default() };
    table.header.extend(["sparsity".into(), "batch".into()]);
    table.header.extend(others.iter().map(|engine| format!("than {}", engine.label())));
    let beside = group[0].case.subject == PAPER_LAYER;
    if beside {
        table.header.extend(["† than dense", "† than CSR"].map(String::from));
        table.notes.push(format!("† {}.", published.label));
    }
    for case in group {
        let mut row = vec![percent(case.case.sparsity), case.case.batch.to_string()];
        row.extend(others.iter().map(|&engine| case.speedup_over(engine).map_or(String::new(), ratio)));
        if beside {
            let paper = published.at(case.case.sparsity, case.case.batch);
            row.extend([
                paper.map_or(String::new(), |paper| ratio(paper.over_dense)),
                paper.map_or(String::new(), |paper| ratio(paper.over_csr)),
            ]);
        }
        table.rows.push(row);
    }
    table
}

/// The ratio a target is about; `None` if it was not measured.
fn reached(target: &Target, measured: &[Measured]) -> Option<f64> {
    let case = target.case();
    measured.iter().find(|measured| measured.case == case)?.speedup_over(target.over)
}

fn target_table(targets: &[(&Target, Option<f64>)]) -> Table {
    Table {
        caption: "Targets: how many times faster the condensed form is".into(),
        header: ["what", "sparsity", "batch", "threads", "than", "target", "ours", ""]
            .map(String::from)
            .to_vec(),
        rows: targets
            .iter()
            .map(|(target, ours)| {
                vec![
                    target.subject.label(),
                    percent(target.sparsity),
                    target.batch.to_string(),
                    target.threads.to_string(),
                    target.over.label().into(),
                    format!("≥ {}", target.at_least),
                    ours.map_or("not measured".into(), ratio),
                    ours.map_or("", |ours| if ours >= target.at_least { "met" } else { "missed" }).into(),
                ]
            })
            .collect(),
        notes: Vec::new(),
    }
}

fn target_json(target: &Target, ours: Option<f64>) -> Value {
    json!({
        "what": target.subject.label(), "sparsity": target.sparsity, "batch": target.batch,
        "threads": target.threads, "over": target.over, "at_least": target.at_least, "ours": ours,
        "met": ours.map(|ours| ours >= target.at_least),
    })
}

fn case_json(measured: &Measured, published: &LayerTimings) -> Value {
    let case = &measured.case;
    let results = measured.results.iter().map(|result| {
        let mut value = json!(result.timing);
        value["name"] = json!(result.engine);
        value["engine"] = json!(result.how);
        value["condensed_is_faster_by"] = json!(measured.speedup_over(result.engine));
        value["relative_error"] = json!(result.relative_error);
        value
    });
    let mut value = json!({
        "what": case.subject.label(), "sparsity": case.sparsity, "batch": case.batch, "threads": case.threads,
        "results": results.collect::<Vec<_>>(),
    });
    if measured.results.is_empty() {
        value["failed"] = json!(true);
    }
    if case.subject == PAPER_LAYER
        && let Some(paper) = published.at(case.sparsity, case.batch)
    {
        value["published"] = json!(paper);
    }
    value
}

/// The linear layer: a row of panels per number of threads, a panel per batch size.
fn figure(measured: &[Measured]) -> Option<Chart> {
    let linear: Vec<&Measured> =
        measured.iter().filter(|case| case.case.subject == PAPER_LAYER && !case.results.is_empty()).collect();
    let distinct = |value: fn(&Case) -> usize| {
        let mut values: Vec<usize> = linear.iter().map(|case| value(&case.case)).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    let mut sparsities: Vec<f64> = linear.iter().map(|case| case.case.sparsity).collect();
    sparsities.sort_by(f64::total_cmp);
    sparsities.dedup();
    let engines: Vec<Engine> = Engine::ALL
        .into_iter()
        .filter(|&engine| linear.iter().any(|case| case.ms(engine).is_some()))
        .collect();
    let bars = |batch: usize, threads: usize| {
        let ms = |engine: Engine, sparsity: f64| {
            let wanted = Case { subject: PAPER_LAYER, sparsity, batch, threads };
            linear.iter().find(|case| case.case == wanted)?.ms(engine)
        };
        Bars {
            title: format!("batch {batch}, {}", threads_label(threads)),
            places: sparsities.iter().map(|&sparsity| percent(sparsity)).collect(),
            series: engines
                .iter()
                .map(|&engine| sparsities.iter().map(|&sparsity| ms(engine, sparsity)).collect())
                .collect(),
        }
    };
    let batches = distinct(|case| case.batch);
    let rows: Vec<Vec<Bars>> = distinct(|case| case.threads)
        .into_iter()
        .map(|threads| batches.iter().map(|&batch| bars(batch, threads)).collect())
        .collect();
    let legend: Vec<_> = engines.iter().map(|engine| (engine.label(), engine.colour())).collect();
    (!linear.is_empty()).then(|| Chart {
        file: "timings.svg",
        alt: "milliseconds of the layer by sparsity, batch and engine",
        svg: chart::bars(&legend, "sparsity", "milliseconds", &rows),
    })
}

/// Three significant digits.
pub fn milliseconds(ms: f64) -> String {
    let decimals = (2 - ms.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{ms:.decimals$}")
}

fn ratio(ratio: f64) -> String {
    let decimals = if ratio < 10.0 { 2 } else { 1 };
    format!("{ratio:.decimals$}×")
}

fn cores_label(cores: usize) -> String {
    if cores == 1 { "1 core".into() } else { format!("{cores} cores") }
}

/// The processor, as Linux names it.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("a processor whose name is not known".into(), |(_, name)| name.trim().into())
}

#[cfg(test)]
mod tests {
    use super::super::case::Measurement;
    use super::super::case::Timing;
    use super::*;

    const QUICK: Options =
        Options { peers: true, quick: true, torch_python: None, deepsparse_python: None, cores: 2 };

    fn timing(ms: f64) -> Timing {
        Timing { median_ms: ms, p10_ms: ms / 2.0, p90_ms: ms * 2.0, samples: 10 }
    }

    fn case(sparsity: f64, batch: usize) -> Case {
        Case { subject: PAPER_LAYER, sparsity, batch, threads: 1 }
    }

    fn measured(sparsity: f64, batch: usize, times: &[(Engine, f64)]) -> Measured {
        let results = times.iter().map(|&(engine, ms)| Measurement {
            engine,
            how: "PyTorch 2".into(),
            relative_error: 1e-7,
            timing: timing(ms),
        });
        Measured { case: case(sparsity, batch), results: results.collect() }
    }

    #[test]
    fn tables_and_targets() {
        use Engine::{Condensed, Csr, Dense, TorchCsrLinear, TorchDense};
        let all = [
            measured(
                0.9,
                1,
                &[(Dense, 1.0), (Csr, 0.5), (Condensed, 0.25), (TorchDense, 0.75), (TorchCsrLinear, 1.5)],
            ),
            measured(0.9, 256, &[]),
            measured(0.99, 1, &[(Dense, 1.0), (Condensed, 0.0125), (TorchDense, 0.75)]),
        ];
        let published = LayerTimings::read().unwrap();
        let report = report(&QUICK, &published, &all, vec!["x is skipped: why".into()], vec![]);
        let text = report.markdown();
        let expected = [
            "| sparsity | batch | dense | CSR | condensed | PyTorch dense | PyTorch CSR, F.linear |",
            "| 90 % | 1 | 1.00 | 0.500 | 0.250 | 0.750 | 1.50 |",
            "| 90 % | 256 | failed | failed | failed | failed | failed |",
            "| 99 % | 1 | 1.00 |  | 0.0125 | 0.750 |  |",
            "| 90 % | 1 | 4.00× | 2.00× | 3.00× | 6.00× | 3.40× | 2.50× |",
            "| linear 3072 → 768 | 90 % | 1 | 1 | PyTorch dense | ≥ 3.4 | 3.00× | missed |",
            "| linear 3072 → 768 | 90 % | 1 | 1 | PyTorch CSR, F.linear | ≥ 4 | 6.00× | met |",
            "| linear 3072 → 768 | 90 % | 256 | 1 | PyTorch dense | ≥ 6 | not measured |  |",
            "| linear 3072 → 768 | 99 % | 1 | 1 | PyTorch dense | ≥ 20 | 60.0× | met |",
            "- PyTorch dense: PyTorch 2\n",
            "- x is skipped: why\n",
        ];
        for line in expected {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(report.json["targets"][0]["met"], false);
        assert_eq!(report.json["targets"][3]["met"], Value::Null);
        assert_eq!(report.json["cases"][1]["failed"], true);
        assert_eq!(report.json["cases"][0]["published"]["over_csr"], 2.5);
        assert_eq!(report.json["cases"][0]["results"][4]["condensed_is_faster_by"], 6.0);
        assert!(report.chart.unwrap().svg.contains("batch 1, 1 thread"));
    }

    #[test]
    fn digits() {
        assert_eq!(["0.0123", "0.500", "12.3", "1234"], [0.012_34, 0.5, 12.345, 1234.4].map(milliseconds));
        assert_eq!([ratio(3.4), ratio(12.34)], ["3.40×", "12.3×"]);
        assert_eq!(percent(0.99), "99 %");
    }
}
