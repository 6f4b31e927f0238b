//! Published numbers, as data. See `published/*.toml`.

use crate::recipe::Method;
use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Test accuracies published elsewhere, in percent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Accuracies {
    /// Who measured what; says so if it was another task.
    pub label: String,
    /// Whether model, data and recipe are those of the grid it stands beside. If not, only the order of the
    /// methods can be compared.
    pub same_task: bool,
    /// What `±` means in its rows.
    pub spread: String,
    rows: Vec<Accuracy>,
}

/// One published accuracy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accuracy {
    method: Method,
    /// Absent for dense.
    sparsity: Option<f64>,
    /// As printed, so that no digit is lost or made up.
    accuracy: String,
}

impl Accuracies {
    /// The table of that name under `published/`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn named(name: &str) -> Result<Self> {
        let text = match name {
            "cifar10" => include_str!("../published/cifar10.toml"),
            "authors-code-fashion-mnist" => include_str!("../published/authors-code-fashion-mnist.toml"),
            _ => bail!("no published table `{name}`; add it to published/ and to Accuracies::named"),
        };
        toml::from_str(text).with_context(|| format!("published/{name}.toml cannot be read"))
    }

    /// The methods it has numbers for.
    pub fn has(&self, method: Method) -> bool {
        self.rows.iter().any(|row| row.method == method)
    }

    /// The accuracy of a method at a sparsity (`None` for dense) as published, e.g. `95.40 ± 0.06`.
    pub fn text(&self, method: Method, sparsity: Option<f64>) -> Option<&str> {
        let row = self.rows.iter().find(|row| row.method == method && row.sparsity == sparsity)?;
        Some(&row.accuracy)
    }
}

/// One row of the published cost of ResNet-50.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resnet50Cost {
    /// `1 − sparsity`; 1 is dense.
    pub density: f64,
    /// FLOPs of one image at 224×224.
    pub flops: f64,
    /// Parameters, with biases and bit masks.
    pub parameters: f64,
    /// FLOPs of 100 epochs of ImageNet.
    pub training_flops: f64,
}

/// The published cost of ResNet-50, dense first.
///
/// # Errors
/// If the embedded file cannot be read.
pub fn resnet50_cost() -> Result<Vec<Resnet50Cost>> {
    #[derive(Deserialize)]
    struct File {
        rows: Vec<Resnet50Cost>,
    }
    let file: File = toml::from_str(include_str!("../published/resnet50-cost.toml"))
        .context("published/resnet50-cost.toml cannot be read")?;
    Ok(file.rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_accuracies_are_found() {
        let paper = Accuracies::named("cifar10").unwrap();
        assert_eq!(paper.text(Method::Srigl, Some(0.99)), Some("92.79 ± 0.09"));
        assert_eq!(paper.text(Method::Dense, None), Some("95.45"));
        assert_eq!(paper.text(Method::Srigl, Some(0.85)), None);
        assert!(!paper.has(Method::Set));
        let authors = Accuracies::named("authors-code-fashion-mnist").unwrap();
        assert_eq!(authors.text(Method::Rigl, Some(0.99)), Some("84.1 ± 0.2"));
        assert!(Accuracies::named("nowhere").is_err());
    }
}
