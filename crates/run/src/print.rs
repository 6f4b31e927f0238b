//! What programs print of runs: lines and tables on standard output.

use comfy_table::{CellAlignment, Table, presets};
use std::io::{self, Write};

/// Prints one line. Unlike `println!`, which panics, it returns an error.
///
/// # Errors
/// If standard output cannot be written, for example because it is closed.
pub fn line(text: &str) -> Result<(), io::Error> {
    let mut stdout = io::stdout().lock();
    let cannot = |error| io::Error::other(format!("cannot write to standard output: {error}"));
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(cannot)
}

/// A table in Markdown whose columns from the third on are numbers.
pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Dimensions for people, such as `10 x 100`.
pub fn shape(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// Says what was guessed, on standard error, so that it is not taken for a result.
pub fn notes(notes: &[String]) {
    notes.iter().for_each(|note| eprintln!("note: {note}"));
}
