//! The tables, one module per kind.

pub mod figures;
pub mod flops;
pub mod grid;
pub mod timings;
pub mod variance;
pub mod xmc;

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
    /// All methods on Fashion-MNIST, N:M patterns and neurons that share their inputs among them; two hours.
    Methods,
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
    /// Extreme classification: Debian's packages, and 670 091 labels; with --peers beside PyTorch and napkinxc; 20 minutes.
    Xmc,
}

impl TableName {
    /// The recipe of a table of trained networks; `None` for others.
    pub fn recipe(self) -> Option<&'static str> {
        match self {
            Self::Quick => Some(include_str!("../../recipes/quick.toml")),
            Self::FashionMnist => Some(include_str!("../../recipes/fashion-mnist.toml")),
            Self::FashionMnistAblation => Some(include_str!("../../recipes/fashion-mnist-ablation.toml")),
            Self::Methods => Some(include_str!("../../recipes/methods.toml")),
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
            let flags = ["epochs", "lr-milestones", "gamma-sal", "batch-size", "lr", "delta-t"];
            flags.map(|flag| recipe.grids[0].flag(flag).unwrap())
        };
        assert_eq!(longer(1), ["103", "30,70,90", "0.3", "512", "0.2", "800"]);
        assert_eq!(longer(2), ["206", "60,140,180", "0.3", "512", "0.2", "800"]);
        // Not five times the recipe, but as the authors ran it.
        assert_eq!(longer(5), ["513", "150,350,450", "0.01", "4096", "1.6", "100"]);
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        config: srigl_run::Config,
    }

    /// The settings of the first run of a table.
    fn config(table: TableName) -> srigl_run::Config {
        let recipe = Recipe::parse(table.recipe().unwrap(), table.model(), &Changes::default()).unwrap();
        let cells = recipe.grids[0].cells(&[]).unwrap();
        let words = std::iter::once("srigl".to_string()).chain(cells[0].args.clone());
        <Cli as clap::Parser>::parse_from(words).config
    }

    #[test]
    fn every_run_is_one_that_srigl_takes() {
        for table in TableName::value_variants().iter().filter(|table| table.recipe().is_some()) {
            let recipe = Recipe::parse(table.recipe().unwrap(), table.model(), &Changes::default()).unwrap();
            for cell in recipe.grids.iter().flat_map(|grid| grid.cells(&[]).unwrap()) {
                let words = std::iter::once("srigl".to_string()).chain(cell.args.clone());
                let parsed = <Cli as clap::Parser>::try_parse_from(words);
                let config = parsed.unwrap_or_else(|error| panic!("{table}: {error}")).config;
                config.validate().unwrap_or_else(|error| panic!("{table}: {error}"));
            }
        }
    }

    /// What the authors' code does beside the table of recipes in the paper.
    #[test]
    fn recipes_are_the_authors() {
        use srigl_data::{AutoAugment, PadMode};
        let cifar = config(TableName::Cifar10);
        assert!(cifar.nesterov && cifar.no_normalise && cifar.drop_last);
        assert_eq!((cifar.pad_mode, cifar.grad_accumulation), (PadMode::Reflect, 1));
        let resnet = config(TableName::Imagenet);
        assert!(resnet.nesterov && resnet.drop_last && !resnet.no_normalise);
        assert_eq!((resnet.resize_from, resnet.grad_accumulation), (Some([256, 480]), 8));
        let vit = config(TableName::Vit);
        assert_eq!((vit.auto_augment, vit.grad_accumulation), (Some(AutoAugment::Rand), 8));
        assert_eq!((vit.mixup_alpha, vit.cutmix_alpha, vit.clip_norm), (Some(0.2), Some(1.0), Some(1.0)));
        assert_eq!(vit.betas, [0.9, 0.999]);
        let mobilenet = config(TableName::Mobilenet);
        assert_eq!(
            (mobilenet.auto_augment, mobilenet.random_erase),
            (Some(AutoAugment::Imagenet), Some(0.2))
        );
        assert_eq!((mobilenet.model.dropout, mobilenet.grad_accumulation), (Some(0.0), 2));
    }

    #[test]
    fn quick_has_21_runs() {
        let recipe = Recipe::parse(TableName::Quick.recipe().unwrap(), None, &Changes::default()).unwrap();
        assert_eq!(recipe.grids[0].cells(&[]).unwrap().len(), 21);
    }
}
