//! A finished table: written to a folder as Markdown, JSON and SVG, and printed to the terminal.

use anyhow::{Context, Result};
use serde_json::Value;
use srigl_run::atomic;
use std::fmt::Write as _;
use std::path::Path;

/// What every `reproduce` table returns. Holds no date and no path of this machine, so that documents can
/// include it.
pub struct Report {
    /// First line; says SYNTHETIC if the data is.
    pub title: String,
    /// How the numbers were made, one statement each.
    pub facts: Vec<String>,
    /// The tables.
    pub tables: Vec<Table>,
    /// Contents of `results.json`.
    pub json: Value,
    /// The figure, if there is anything to draw.
    pub chart: Option<Chart>,
    /// What is missing or wrong, with cause and fix. Not empty means exit code ≠ 0.
    pub problems: Vec<String>,
}

/// A figure, written beside the tables.
pub struct Chart {
    /// File name.
    pub file: &'static str,
    /// What it shows, in words.
    pub alt: &'static str,
    /// Contents of the file.
    pub svg: String,
}

/// One table of text cells.
#[derive(Default)]
pub struct Table {
    /// Heading.
    pub caption: String,
    /// Column names.
    pub header: Vec<String>,
    /// Cells, as many per row as columns.
    pub rows: Vec<Vec<String>>,
    /// Footnotes.
    pub notes: Vec<String>,
}

impl Report {
    /// Writes `table.md`, `results.json` and, if there is one, the figure into the folder `out`.
    ///
    /// # Errors
    /// If the folder cannot be made or a file not written.
    pub fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        atomic::write(&out.join("table.md"), self.markdown().as_bytes())?;
        atomic::write(&out.join("results.json"), (self.json_text() + "\n").as_bytes())?;
        if let Some(chart) = &self.chart {
            atomic::write(&out.join(chart.file), chart.svg.as_bytes())?;
        }
        Ok(())
    }

    /// The JSON, indented.
    pub fn json_text(&self) -> String {
        serde_json::to_string_pretty(&self.json).expect("a JSON value can be printed")
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.title);
        for fact in &self.facts {
            _ = writeln!(text, "- {fact}");
        }
        if let Some(chart) = &self.chart {
            _ = write!(text, "\n![{}]({})\n", chart.alt, chart.file);
        }
        for table in &self.tables {
            _ = write!(text, "\n## {}\n\n{}", table.caption, table.markdown());
        }
        text
    }

    /// The report for a terminal.
    pub fn terminal(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for fact in &self.facts {
            _ = writeln!(text, "  {fact}");
        }
        for table in &self.tables {
            _ = write!(text, "\n{}\n{}\n", table.caption, table.terminal());
            for note in &table.notes {
                _ = writeln!(text, "{note}");
            }
        }
        text
    }
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
        let mut text = line(&self.header);
        text.push_str(&"|---".repeat(self.header.len()));
        text.push_str("|\n");
        text.extend(self.rows.iter().map(|row| line(row)));
        for note in &self.notes {
            _ = write!(text, "\n{note}\n");
        }
        text
    }

    fn terminal(&self) -> comfy_table::Table {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::UTF8_FULL_CONDENSED)
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic)
            .set_header(&self.header)
            .add_rows(&self.rows);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            title: "Title".into(),
            facts: vec!["made by hand".into()],
            tables: vec![Table {
                caption: "Caption".into(),
                header: vec!["sparsity".into(), "SET".into()],
                rows: vec![vec!["90 %".into(), "1.00 ± 0.10".into()], vec!["99 %".into(), "failed".into()]],
                notes: vec!["A note.".into()],
            }],
            json: serde_json::json!({ "a": 1 }),
            chart: Some(Chart {
                file: "accuracy.svg",
                alt: "accuracy against sparsity",
                svg: "<svg/>".into(),
            }),
            problems: vec![],
        }
    }

    #[test]
    fn markdown() {
        let expected = "\
# Title

- made by hand

![accuracy against sparsity](accuracy.svg)

## Caption

| sparsity | SET |
|---|---|
| 90 % | 1.00 ± 0.10 |
| 99 % | failed |

A note.
";
        assert_eq!(report().markdown(), expected);
    }

    #[test]
    fn terminal() {
        let expected = "\
Title
  made by hand

Caption
┌──────────┬─────────────┐
│ sparsity ┆ SET         │
╞══════════╪═════════════╡
│ 90 %     ┆ 1.00 ± 0.10 │
│ 99 %     ┆ failed      │
└──────────┴─────────────┘
A note.
";
        assert_eq!(report().terminal(), expected);
    }

    #[test]
    fn files() {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("new/folder");
        report().write(&folder).unwrap();
        report().write(&folder).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["accuracy.svg", "results.json", "table.md"]);
        assert_eq!(std::fs::read_to_string(folder.join("results.json")).unwrap(), "{\n  \"a\": 1\n}\n");
    }
}
