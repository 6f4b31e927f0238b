//! The tables, one module per kind.

pub mod flops;
pub mod grid;
pub mod timings;
pub mod variance;

use clap::ValueEnum;
use std::fmt;

/// The tables that can be reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableName {
    /// Accuracy of every method on Fashion-MNIST, one seed; minutes.
    Quick,
    /// The same with five seeds and confidence intervals, and a small convolutional network; about an hour.
    FashionMnist,
    /// A small ResNet-18 and a small vision transformer on Fashion-MNIST, with and without ablation; an hour.
    FashionMnistAblation,
    /// FLOPs and parameters of ResNet-50, counted from its shapes.
    Flops,
    /// Variance of the output norm at initialisation, formula against simulation.
    Variance,
    /// Time of one layer, dense, CSR and condensed, on this machine; with --peers beside other engines.
    Timings,
}

impl TableName {
    /// The recipe of a table of trained networks; `None` for tables that train nothing.
    pub fn recipe(self) -> Option<&'static str> {
        match self {
            Self::Quick => Some(include_str!("../../recipes/quick.toml")),
            Self::FashionMnist => Some(include_str!("../../recipes/fashion-mnist.toml")),
            Self::FashionMnistAblation => Some(include_str!("../../recipes/fashion-mnist-ablation.toml")),
            Self::Flops | Self::Variance | Self::Timings => None,
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no table is hidden");
        f.write_str(value.get_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::Accuracies;
    use crate::recipe::Recipe;

    #[test]
    fn every_recipe_is_well_formed() {
        for table in TableName::value_variants() {
            let Some(text) = table.recipe() else { continue };
            for full in [false, true] {
                let recipe = Recipe::parse(text, full, None).unwrap();
                for grid in &recipe.grids {
                    assert!(!grid.cells(&[]).unwrap().is_empty());
                    for name in &grid.published {
                        Accuracies::named(name).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn quick_has_21_runs() {
        let recipe = Recipe::parse(TableName::Quick.recipe().unwrap(), false, None).unwrap();
        assert_eq!(recipe.grids[0].cells(&[]).unwrap().len(), 21);
    }
}
