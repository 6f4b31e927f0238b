//! Recipes: what is swept and with which flags, as data. See `recipes/*.toml`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use toml::Value;

/// A training method, as the recipes and published tables spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// No sparsity.
    Dense,
    /// The initial unstructured mask forever.
    Static,
    /// Random growth.
    Set,
    /// Unstructured gradient growth.
    Rigl,
    /// Constant fan-in, no neuron ablated.
    SriglNoAblation,
    /// Constant fan-in with neuron ablation: the paper's method.
    Srigl,
}

impl Method {
    /// The name for tables and legends.
    pub fn label(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Static => "static",
            Self::Set => "SET",
            Self::Rigl => "RigL",
            Self::SriglNoAblation => "SRigL without ablation",
            Self::Srigl => "SRigL with ablation",
        }
    }

    /// The flags of `srigl train` that select it.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Dense => &["--method", "dense"],
            Self::Static => &["--method", "static"],
            Self::Set => &["--method", "set"],
            Self::Rigl => &["--method", "rigl"],
            Self::SriglNoAblation => &["--method", "srigl", "--no-ablation"],
            Self::Srigl => &["--method", "srigl"],
        }
    }

    /// The name for folders.
    fn slug(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Static => "static",
            Self::Set => "set",
            Self::Rigl => "rigl",
            Self::SriglNoAblation => "srigl-no-ablation",
            Self::Srigl => "srigl",
        }
    }
}

/// A recipe file: common flags and one or more grids.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// What the table shows.
    pub title: String,
    /// Flags of every run.
    #[serde(default)]
    train: toml::Table,
    /// The sweeps, in the order of the report.
    #[serde(rename = "grid")]
    pub grids: Vec<Grid>,
}

/// One sweep: methods × sparsities × seeds of one model on one data set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grid {
    /// Short name, unique in the recipe; starts the names of its cells.
    pub name: String,
    /// Methods, in the order of the columns.
    pub methods: Vec<Method>,
    /// Global sparsities in `(0, 1)`, in the order of the rows.
    pub sparsities: Vec<f64>,
    /// Runs per method and sparsity, with seeds 0, 1, ….
    pub seeds: u64,
    /// Names of the published tables to show beside it.
    #[serde(default)]
    pub published: Vec<String>,
    /// Flags of this grid; they win over those of the recipe.
    #[serde(default)]
    pub train: toml::Table,
    /// What `--full` changes.
    /// Flags of single sparsities, which replace those of `train`: `[grid.at."0.99"]`.
    #[serde(default)]
    at: BTreeMap<String, toml::Table>,
    #[serde(default)]
    full: Full,
}

/// The `--full` part of a grid.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Full {
    seeds: Option<u64>,
    #[serde(default)]
    train: toml::Table,
}

/// Flags that this program sets itself.
const RESERVED: [&str; 11] = [
    "method",
    "no-ablation",
    "sparsity",
    "seed",
    "data",
    "device",
    "threads",
    "out",
    "resume",
    "quiet",
    "json",
];

impl Recipe {
    /// Reads a recipe and settles `--full`, `--seeds` and the precedence of flags: afterwards `grid.seeds`
    /// is final and `grid.train` holds all flags of its runs, in kebab case.
    ///
    /// # Errors
    /// If the file is not a recipe, or sets a flag that is swept or set by this program.
    pub fn parse(text: &str, full: bool, seeds: Option<u64>) -> Result<Self> {
        let mut recipe: Self = toml::from_str(text).context("the recipe cannot be read")?;
        for grid in &mut recipe.grids {
            let mut flags = kebab_case(&recipe.train);
            flags.extend(kebab_case(&grid.train));
            if full {
                flags.extend(kebab_case(&grid.full.train));
                grid.seeds = grid.full.seeds.unwrap_or(grid.seeds);
            }
            grid.seeds = seeds.unwrap_or(grid.seeds);
            grid.train = flags;
            grid.check()?;
        }
        Ok(recipe)
    }
}

impl Grid {
    fn check(&self) -> Result<()> {
        for key in self.train.keys() {
            ensure!(
                !RESERVED.contains(&key.as_str()),
                "grid `{}`: `{key}` is set by xtask; take it out of [train]",
                self.name
            );
        }
        for at in self.at.keys() {
            ensure!(
                at.parse().is_ok_and(|at: f64| self.sparsities.contains(&at)),
                "grid `{}`: [grid.at.\"{at}\"] is none of its sparsities {:?}",
                self.name,
                self.sparsities
            );
        }
        for sparsity in &self.sparsities {
            ensure!(
                *sparsity > 0.0 && *sparsity < 1.0,
                "grid `{}`: sparsity {sparsity} is not in (0, 1); list the method `dense` for 0",
                self.name
            );
        }
        Ok(())
    }

    /// All cells, seed by seed, so that an interrupted sweep leaves whole tables of the first seeds.
    ///
    /// `common` are flags for every cell, e.g. the data folder.
    ///
    /// # Errors
    /// If a value of `[train]` is neither text, number nor boolean.
    pub fn cells(&self, common: &[String]) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for seed in 0..self.seeds {
            for &method in &self.methods {
                let sparsities: Vec<Option<f64>> = match method {
                    Method::Dense => vec![None],
                    _ => self.sparsities.iter().copied().map(Some).collect(),
                };
                for sparsity in sparsities {
                    let mut args: Vec<String> = method.flags().iter().map(ToString::to_string).collect();
                    if let Some(sparsity) = sparsity {
                        args.extend(["--sparsity".into(), sparsity.to_string()]);
                    }
                    args.extend(self.flags_at(sparsity).with_context(|| format!("grid `{}`", self.name))?);
                    args.extend(["--seed".into(), seed.to_string()]);
                    args.extend(common.iter().cloned());
                    cells.push(Cell { grid: self.name.clone(), method, sparsity, seed, args });
                }
            }
        }
        Ok(cells)
    }

    /// Flags of `srigl train` at one sparsity.
    fn flags_at(&self, sparsity: Option<f64>) -> Result<Vec<String>> {
        let mut train = self.train.clone();
        for (_, table) in self.exceptions().filter(|(at, _)| Some(*at) == sparsity) {
            train.extend(kebab_case(table));
        }
        flags(&train)
    }

    /// Sparsities with flags of their own.
    fn exceptions(&self) -> impl Iterator<Item = (f64, &toml::Table)> {
        self.at.iter().filter_map(|(at, table)| Some((at.parse().ok()?, table)))
    }

    /// The value of a flag in words, with the sparsities where it differs: `0.3 (0.9 at 99 %)`.
    pub fn describe_flag(&self, name: &str) -> Option<String> {
        let exception = |(at, table): (f64, &toml::Table)| {
            Some(format!("{} at {} %", kebab_case(table).get(name)?, percent(at)))
        };
        let exceptions: Vec<String> = self.exceptions().filter_map(exception).collect();
        let value = self.flag(name)?;
        Some(if exceptions.is_empty() { value } else { format!("{value} ({})", exceptions.join(", ")) })
    }

    /// A flag of `[train]` as text, for headers; `None` if it is not set.
    pub fn flag(&self, name: &str) -> Option<String> {
        match self.train.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Boolean(false) => None,
            other => Some(other.to_string()),
        }
    }
}

/// One run of `srigl train`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of its grid.
    pub grid: String,
    /// Method.
    pub method: Method,
    /// Global sparsity; `None` for dense.
    pub sparsity: Option<f64>,
    /// Seed.
    pub seed: u64,
    /// Every flag that decides the result: not the output folder, the number of threads or the verbosity.
    pub args: Vec<String>,
}

impl fmt::Display for Cell {
    /// Also the name of its run folder, e.g. `mlp-srigl-90-seed0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.grid, self.method.slug())?;
        if let Some(sparsity) = self.sparsity {
            write!(f, "-{}", percent(sparsity))?;
        }
        write!(f, "-seed{}", self.seed)
    }
}

/// A share as percent without trailing zeros: 0.9375 → `93.75`.
pub fn percent(share: f64) -> String {
    ((share * 1e6).round() / 1e4).to_string()
}

/// Keys with dashes, so that `lr_schedule` and `lr-schedule` are one flag.
fn kebab_case(table: &toml::Table) -> toml::Table {
    table.iter().map(|(key, value)| (key.replace('_', "-"), value.clone())).collect()
}

/// `key = value` → `--key value`; `true` → `--key`; `false` → nothing.
fn flags(table: &toml::Table) -> Result<Vec<String>> {
    let sorted: BTreeMap<_, _> = table.iter().collect();
    let mut flags = Vec::new();
    for (key, value) in sorted {
        let text = match value {
            Value::Boolean(false) => continue,
            Value::Boolean(true) => None,
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            _ => bail!("`{key} = {value}` is not a flag; use text, a number or a boolean"),
        };
        flags.push(format!("--{key}"));
        flags.extend(text);
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        title = "t"
        [train]
        model = "mlp"
        epochs = 4
        lr_schedule = "cosine"
        weight-decay = 1e-4
        train-limit = 100
        nesterov = true
        [[grid]]
        name = "g"
        methods = ["dense", "srigl-no-ablation"]
        sparsities = [0.9, 0.9375]
        seeds = 2
        [grid.train]
        epochs = 5
        [grid.full]
        seeds = 3
        [grid.full.train]
        train_limit = false
    "#;

    #[test]
    fn keys_become_flags() {
        let recipe = Recipe::parse(RECIPE, false, None).unwrap();
        let args = flags(&recipe.grids[0].train).unwrap().join(" ");
        let expected =
            "--epochs 5 --lr-schedule cosine --model mlp --nesterov --train-limit 100 --weight-decay 0.0001";
        assert_eq!(args, expected);
    }

    #[test]
    fn a_sparsity_can_have_flags_of_its_own() {
        let recipe = RECIPE.replace("[grid.full]", "[grid.at.\"0.9375\"]\nepochs = 7\n[grid.full]");
        let grid = &Recipe::parse(&recipe, false, None).unwrap().grids[0];
        assert_eq!(grid.describe_flag("epochs").unwrap(), "5 (7 at 93.75 %)");
        let cells = grid.cells(&[]).unwrap();
        let epochs = |cell: &&Cell| cell.args.windows(2).any(|w| w == ["--epochs", "7"]);
        assert!(cells.iter().filter(epochs).all(|cell| cell.sparsity == Some(0.9375)));
        assert_eq!(cells.iter().filter(epochs).count(), 2);
        assert!(Recipe::parse(&recipe.replace("0.9375\"]", "0.5\"]"), false, None).is_err());
    }

    #[test]
    fn full_changes_and_removes_flags_and_seeds_win() {
        let full = Recipe::parse(RECIPE, true, None).unwrap();
        assert_eq!(full.grids[0].seeds, 3);
        assert_eq!(full.grids[0].flag("train-limit"), None);
        assert!(!flags(&full.grids[0].train).unwrap().contains(&"--train-limit".into()));
        assert_eq!(Recipe::parse(RECIPE, true, Some(7)).unwrap().grids[0].seeds, 7);
    }

    #[test]
    fn dense_runs_once_per_seed() {
        let cells = Recipe::parse(RECIPE, false, None).unwrap().grids[0]
            .cells(&["--data".into(), "d".into()])
            .unwrap();
        let names: Vec<String> = cells.iter().map(ToString::to_string).collect();
        assert_eq!(
            names[..3],
            ["g-dense-seed0", "g-srigl-no-ablation-90-seed0", "g-srigl-no-ablation-93.75-seed0"]
        );
        assert_eq!(names.len(), 6);
        assert!(!cells[0].args.contains(&"--sparsity".into()));
        assert_eq!(cells[2].args[..5], ["--method", "srigl", "--no-ablation", "--sparsity", "0.9375"]);
        assert_eq!(cells[5].args[cells[5].args.len() - 4..], ["--seed", "1", "--data", "d"]);
    }

    #[test]
    fn a_recipe_cannot_set_what_is_swept() {
        let error = Recipe::parse(&RECIPE.replace("nesterov", "resume"), false, None).unwrap_err();
        assert!(error.to_string().contains("`resume` is set by xtask"), "{error}");
        let error = Recipe::parse(&RECIPE.replace("0.9,", "0.0,"), false, None).unwrap_err();
        assert!(error.to_string().contains("not in (0, 1)"), "{error}");
    }
}
