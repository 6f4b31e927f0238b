//! Text and numbers of the page.

/// Longest name shown.
const LONGEST: usize = 60;

/// Text without characters that change what stands around them: control characters, and marks that turn the direction
/// of writing. Templates and charts escape the rest.
pub fn clean(raw: &str) -> String {
    let odd = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    raw.chars().map(|c| if odd(c) { '\u{fffd}' } else { c }).collect()
}

/// A name of at most [`LONGEST`] characters, [`clean`]. The end of a module path tells most.
pub fn name(raw: &str) -> String {
    name_of_length(raw, LONGEST)
}

/// A name of at most `longest` characters, [`clean`].
pub fn name_of_length(raw: &str, longest: usize) -> String {
    let count = raw.chars().count();
    if count <= longest {
        return clean(raw);
    }
    clean(&format!("…{}", raw.chars().skip(count + 1 - longest).collect::<String>()))
}

/// A share in percent with two digits, as columns want them: `93.40 %`.
pub fn exact_percent(share: f64) -> String {
    format!("{:.2}\u{a0}%", 100.0 * share)
}

/// A share in percent: `93.4 %`.
pub fn percent(share: f64) -> String {
    format!("{}\u{a0}%", trimmed(100.0 * share, 2))
}

/// What is shown for a value, or a dash.
pub fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_string(), show)
}

/// A number with about four significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        size if !(1e-3..1e6).contains(&size) => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", without_zeros(digits))
        }
        size => trimmed(value, (3 - size.log10().floor() as i32).clamp(0, 6) as usize),
    }
}

/// Seconds in the two largest units: `3 min 20 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// `1 layer`, `2 layers`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number with `digits` digits after the point, less zeros at the end.
fn trimmed(value: f64, digits: usize) -> String {
    without_zeros(&format!("{value:.digits$}")).to_string()
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reorders_the_text() {
        assert_eq!(clean("a\0b\nc\u{202e}d"), "a\u{fffd}b\u{fffd}c\u{fffd}d");
        assert_eq!(clean("γ_sal ≥ 1"), "γ_sal ≥ 1");
    }

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(name_of_length("blocks.0.fc1", 6), "…0.fc1");
        assert_eq!(name(&"x".repeat(1_000_000)).chars().count(), LONGEST);
        assert_eq!(name_of_length("<<", 2), "<<");
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 0.1, 12345.0, 0.05050, 2.7654, 1e-6, 2.5e8, -1.5].map(number),
            ["0", "0.1", "12345", "0.0505", "2.765", "1e-6", "2.5e8", "-1.5"]
        );
        assert_eq!([0.9342, 1.0, 0.5].map(percent), ["93.42\u{a0}%", "100\u{a0}%", "50\u{a0}%"]);
        assert_eq!([3.84, 12.0, 200.0, 7500.0].map(duration), ["3.8 s", "12 s", "3 min 20 s", "2 h 5 min"]);
        assert_eq!(number(f64::MAX), "1.8e308");
        assert_eq!([count(1, "run"), count(2, "run")], ["1 run", "2 runs"]);
    }
}
