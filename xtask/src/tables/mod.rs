//! The tables, one module per kind.

pub mod figures;
pub mod flops;
pub mod grid;
pub mod timings;
pub mod variance;

use clap::ValueEnum;
use figures::Figure;
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
    /// The paper's small convolutional network and a narrow ResNet-18 on Fashion-MNIST, five seeds, with --device cuda.
    FashionMnistGpu,
    /// ResNet-18 on CIFAR-10, five seeds; needs --data.
    Cifar10,
    /// Wide ResNet-22-2 on CIFAR-10, five seeds; needs --data.
    Cifar10Wrn,
    /// ResNet-50 on ImageNet, or with --model another network; needs --data, and days on eight GPUs.
    Imagenet,
    /// ViT-B/16 on ImageNet; needs --data.
    Vit,
    /// MobileNetV3 large on ImageNet, or with --model mobilenet-v3-small the small one; needs --data.
    Mobilenet,
    /// Figure: accuracy against γ_sal, on the recipe --recipe.
    GammaSweep,
    /// Figure: share of active neurons in each layer against sparsity, RigL and SRigL.
    ActiveNeurons,
    /// Figure: fan-in of the neurons of each layer, RigL and SRigL.
    FanIn,
    /// Figure: share of positions that have been active at least once (ITOP rate), during training.
    Itop,
    /// FLOPs and parameters of ResNet-50, counted from its shapes.
    Flops,
    /// Variance of the output norm at initialisation, formula against simulation.
    Variance,
    /// Time of one layer, dense, CSR and condensed, on this machine; with --peers beside other engines.
    Timings,
}

impl TableName {
    /// The recipe of a table of trained networks; `None` for others.
    pub fn recipe(self) -> Option<&'static str> {
        match self {
            Self::Quick => Some(include_str!("../../recipes/quick.toml")),
            Self::FashionMnist => Some(include_str!("../../recipes/fashion-mnist.toml")),
            Self::FashionMnistAblation => Some(include_str!("../../recipes/fashion-mnist-ablation.toml")),
            Self::FashionMnistGpu => Some(include_str!("../../recipes/fashion-mnist-gpu.toml")),
            Self::Cifar10 | Self::Cifar10Wrn => Some(include_str!("../../recipes/cifar10.toml")),
            Self::Imagenet | Self::Vit | Self::Mobilenet => Some(include_str!("../../recipes/imagenet.toml")),
            _ => None,
        }
    }

    /// The network of a recipe that has several, if only one belongs to this table.
    pub fn model(self) -> Option<&'static str> {
        match self {
            Self::Cifar10 => Some("resnet18-small"),
            Self::Cifar10Wrn => Some("wrn-22-2"),
            Self::Imagenet => Some("resnet50"),
            Self::Vit => Some("vit-b-16"),
            Self::Mobilenet => Some("mobilenet-v3-large"),
            _ => None,
        }
    }

    /// The figure, if it is one.
    pub fn figure(self) -> Option<Figure> {
        match self {
            Self::GammaSweep => Some(Figure::GammaSweep),
            Self::ActiveNeurons => Some(Figure::ActiveNeurons),
            Self::FanIn => Some(Figure::FanIn),
            Self::Itop => Some(Figure::Itop),
            _ => None,
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
    use crate::recipe::{Changes, Recipe};

    #[test]
    fn every_recipe_is_well_formed() {
        for table in TableName::value_variants() {
            let Some(text) = table.recipe() else { continue };
            for full in [false, true] {
                let changes = Changes { full, ..Changes::default() };
                let recipe = Recipe::parse(text, table.model(), &changes).unwrap();
                for grid in &recipe.grids {
                    assert!(!grid.cells(&[]).unwrap().is_empty());
                    for name in grid.theirs.iter().chain(&grid.published) {
                        Accuracies::named(name).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn longer_schedules_are_the_papers() {
        let longer = |times| {
            let changes = Changes { extended: Some(times), ..Changes::default() };
            let text = TableName::Imagenet.recipe().unwrap();
            let recipe = Recipe::parse(text, TableName::Imagenet.model(), &changes).unwrap();
            ["epochs", "lr-milestones", "gamma-sal"].map(|flag| recipe.grids[0].flag(flag).unwrap())
        };
        assert_eq!(longer(1), ["103", "30,70,90", "0.3"]);
        assert_eq!(longer(2), ["206", "60,140,180", "0.3"]);
        assert_eq!(longer(5), ["515", "150,350,450", "0.01"]);
    }

    #[test]
    fn quick_has_21_runs() {
        let recipe = Recipe::parse(TableName::Quick.recipe().unwrap(), None, &Changes::default()).unwrap();
        assert_eq!(recipe.grids[0].cells(&[]).unwrap().len(), 21);
    }
}
