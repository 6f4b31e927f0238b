//! Numbers as texts: `serde_json` reads some of the numbers that it has written with another last bit. Earlier versions have written
//! numbers. For `#[serde(with = "srigl_run::exact")]`.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes a number as a text.
///
/// # Errors
/// What `to` says.
pub fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

/// Reads a text, or a number.
///
/// # Errors
/// If it is neither, and what `from` says.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Number(f64),
    }
    match Written::deserialize(from)? {
        Written::Text(text) => text.parse().map_err(Error::custom),
        Written::Number(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Exact(#[serde(with = "super")] f64);

    #[test]
    fn numbers_come_back_as_they_were() {
        for number in [0.1, f64::EPSILON / 3.0, f64::MIN_POSITIVE, -1e300, f64::INFINITY] {
            let text = serde_json::to_string(&Exact(number)).unwrap();
            assert!(text.starts_with('"'), "{text}");
            assert_eq!(serde_json::from_str::<Exact>(&text).unwrap(), Exact(number));
        }
        assert_eq!(serde_json::from_str::<Exact>("0.25").unwrap(), Exact(0.25), "of an earlier version");
        assert!(
            serde_json::from_str::<Exact>("\"x\"").is_err() && serde_json::from_str::<Exact>("[1]").is_err()
        );
    }
}
