//! What programs print of runs: lines and tables on standard output.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use srigl_tensors::printable;
pub use srigl_tensors::say;
use std::fmt::Display;
use std::io::{self, Write};

/// Text whose lines are [`printable`].
pub fn lines(text: &dyn Display) -> String {
    text.to_string().split('\n').map(|line| printable(&line)).collect::<Vec<_>>().join("\n")
}

/// Prints a line, or several. Unlike `println!`, which panics, it returns an error. Nothing in it can steer the terminal.
///
/// # Errors
/// If standard output cannot be written, for example because it is closed.
pub fn line(text: &str) -> Result<(), io::Error> {
    write(&lines(&text))
}

/// Prints a value as JSON, for programs.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &impl Serialize) -> Result<(), io::Error> {
    write(&serde_json::to_string_pretty(value)?)
}

/// Prints a value as JSON, or else what `text` makes of it.
///
/// # Errors
/// As [`line()`].
pub fn either<T: Serialize>(
    as_json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), io::Error> {
    if as_json { json(value) } else { line(&text(value)) }
}

fn write(text: &str) -> Result<(), io::Error> {
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
    notes.iter().for_each(|text| note(text));
}

/// Says one thing on standard error.
pub fn note(text: &str) {
    say(&format_args!("note: {}", printable(&text)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What the test below reads. Tests run by others print nothing.
    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn prints() {
        line("a result").unwrap();
        json(&[1, 2]).unwrap();
        either(true, &3, |_| "not this".into()).unwrap();
        either(false, &3, |three| format!("three is {three}")).unwrap();
        notes(&["a guess".into(), "another".into()]);
    }

    #[test]
    fn results_go_to_standard_output_and_notes_to_standard_error() {
        let mut test = Command::new(std::env::current_exe().unwrap());
        let output =
            test.args(["--exact", "print::tests::prints", "--ignored", "--nocapture"]).output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success() && out.contains("a result\n") && !out.contains("guess"), "{out}");
        assert!(out.contains("a result\n[\n  1,\n  2\n]\n3\nthree is 3\n"), "{out}");
        assert!(err.contains("note: a guess\nnote: another\n") && !err.contains("result"), "{err}");
    }

    #[test]
    fn tables_have_their_numbers_to_the_right() {
        let rows = [["fc1", "mlp", "7"], ["a", "b", "100"]].map(|row| row.map(String::from).to_vec());
        let text = table(&["layer", "of", "weights"], rows.into_iter()).to_string();
        let expected = "| layer | of  | weights |\n|-------|-----|---------|\n\
                        | fc1   | mlp |       7 |\n| a     | b   |     100 |";
        assert_eq!(text, expected);
        assert_eq!(shape(&[10, 3, 7]), "10 x 3 x 7");
    }
}
