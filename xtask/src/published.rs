//! Published numbers, as data. See `published/*.toml`.

use crate::recipe::Method;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Test accuracies published elsewhere, in percent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Accuracies {
    /// Who measured what; says so if it was another task.
    pub label: String,
    /// What `±` means in its rows.
    pub spread: String,
    /// After which epoch they were measured.
    pub epoch: Measured,
    rows: Vec<Accuracy>,
}

/// After which epoch an accuracy is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// The last.
    Last,
    /// The one with the best accuracy on the test images.
    Best,
}

impl Measured {
    /// In a few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Last => "last epoch",
            Self::Best => "best epoch",
        }
    }
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
            "resnet50" => include_str!("../published/resnet50.toml"),
            "vit" => include_str!("../published/vit.toml"),
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

/// Published timings of the layer 3072 → 768.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LayerTimings {
    /// Who measured, and on what.
    pub label: String,
    rows: Vec<LayerTiming>,
}

/// How many times faster the condensed form was, in one case.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all(deserialize = "kebab-case"))]
pub struct LayerTiming {
    sparsity: f64,
    batch: usize,
    /// Time of the dense form over the time of the condensed one.
    pub over_dense: f64,
    /// Time of the CSR form over the time of the condensed one.
    pub over_csr: f64,
}

impl LayerTimings {
    /// The embedded file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read() -> Result<Self> {
        toml::from_str(include_str!("../published/timings.toml"))
            .context("published/timings.toml cannot be read")
    }

    /// The published ratios at a sparsity and batch size, if there are any.
    pub fn at(&self, sparsity: f64, batch: usize) -> Option<LayerTiming> {
        self.rows.iter().copied().find(|row| row.sparsity == sparsity && row.batch == batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_timings_are_found() {
        let paper = LayerTimings::read().unwrap();
        let row = paper.at(0.9, 1).unwrap();
        assert_eq!((row.over_dense, row.over_csr), (3.4, 2.5));
        assert_eq!(paper.at(0.9, 16), None);
    }

    #[test]
    fn published_accuracies_are_found() {
        let paper = Accuracies::named("cifar10").unwrap();
        assert_eq!(paper.text(Method::named("srigl").unwrap(), Some(0.99)), Some("92.79 ± 0.09"));
        assert_eq!(paper.text(Method::named("dense").unwrap(), None), Some("95.45"));
        assert_eq!(paper.text(Method::named("srigl").unwrap(), Some(0.85)), None);
        assert!(!paper.has(Method::named("set").unwrap()));
        let authors = Accuracies::named("authors-code-fashion-mnist").unwrap();
        assert_eq!((paper.epoch, authors.epoch), (Measured::Best, Measured::Last));
        assert_eq!(authors.text(Method::named("rigl").unwrap(), Some(0.99)), Some("84.1 ± 0.2"));
        assert!(Accuracies::named("nowhere").is_err());
    }
}
