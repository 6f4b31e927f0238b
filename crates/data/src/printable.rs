//! Text from files as it may be printed.

use std::borrow::Cow;
use std::path::Path;

/// `text` with control characters written as escapes, such as `\u{1b}`, and with those that change the
/// direction of writing likewise: what a file or a name holds must not command a terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_odd(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// A path as [`printable`] text.
pub(crate) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_odd_characters_are_escaped() {
        assert!(matches!(printable("C:\\Köln '日本'.png"), Cow::Borrowed("C:\\Köln '日本'.png")));
        assert_eq!(printable("a\u{1b}[31mb\u{9b}\n\u{202e}c"), "a\\u{1b}[31mb\\u{9b}\\n\\u{202e}c");
        assert_eq!(shown(Path::new("a/\x07")), "a/\\u{7}");
    }
}
