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
