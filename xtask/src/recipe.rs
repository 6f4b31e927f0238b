//! Recipes: what is swept and with which flags, as data. See `recipes/*.toml`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sparsity_core::methods::{METHODS, MethodInfo, Nm, Variant};
use std::collections::BTreeMap;
use std::fmt;
use toml::Value;

/// A kind of runs, as the recipes and published tables spell it: a variant of a method in [`METHODS`], and the structure of its masks:
/// `rigl-nm` has one of M consecutive inputs, with the M that makes the sparsity; of `srigl-groups-4` four neurons share their inputs.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its method.
    info: &'static MethodInfo,
    /// Which of the method's variants.
    variant: &'static Variant,
    /// Place among all variants: the order of legends and colours.
    pub place: usize,
    /// Whether masks have a pattern 1:M.
    pub nm: bool,
    /// Neurons that share their inputs.
    pub group: usize,
}

/// What names end with.
const NM: &str = "-nm";
const GROUPS: &str = "-groups-";

impl Method {
    /// The kind of this name.
    ///
    /// # Errors
    /// If there is none, or its masks cannot have the structure.
    pub fn named(name: &str) -> Result<Self> {
        let (rest, group) = match name.split_once(GROUPS) {
            Some((rest, group)) => (rest, group.parse().with_context(|| format!("method `{name}`"))?),
            None => (name, 1),
        };
        let (base, nm) = rest.strip_suffix(NM).map_or((rest, false), |base| (base, true));
        let all = METHODS.iter().flat_map(|info| info.variants.iter().map(move |variant| (*info, variant)));
        let mut placed = all.enumerate();
        let known = || METHODS.iter().flat_map(|info| info.variants).map(|v| v.name).collect::<Vec<_>>();
        let (place, (info, variant)) = placed
            .find(|(_, (_, variant))| variant.name == base)
            .with_context(|| format!("no method `{base}`, only {}", known().join(", ")))?;
        ensure!(!nm || info.nm == Nm::Allowed, "method `{base}` has no N:M pattern, or always one");
        ensure!(group == 1 || info.takes_groups(), "neurons of method `{base}` cannot share inputs");
        Ok(Self { info, variant, place, nm: nm || info.nm == Nm::Always, group })
    }

    /// The name for tables and legends.
    pub fn label(self) -> String {
        let mut label = self.variant.label.to_string();
        if self.nm && self.info.nm == Nm::Allowed {
            label += " 1:M";
        }
        if self.group > 1 {
            label += &format!(", groups of {}", self.group);
        }
        label
    }

    /// The name for folders and recipes.
    pub fn name(self) -> String {
        let mut name = self.variant.name.to_string();
        if self.nm && self.info.nm == Nm::Allowed {
            name += NM;
        }
        if self.group > 1 {
            name += &format!("{GROUPS}{}", self.group);
        }
        name
    }

    /// Whether it has masks at all.
    pub fn is_sparse(self) -> bool {
        self.info.sparse
    }

    /// Whether neurons may end without weights: by chance where masks are unstructured, by rule with ablation.
    pub fn may_ablate(self) -> bool {
        let by_chance = self.info.sparse && !self.info.constant_fan_in;
        !self.nm && (by_chance || self.info.ablates && self.variant.flag.is_none())
    }

    /// The flags of `srigl train` that select it, with its sparsity.
    ///
    /// # Errors
    /// For a sparsity that no pattern 1:M has.
    fn flags(self, sparsity: Option<f64>) -> Result<Vec<String>> {
        let mut flags = vec!["--method".to_string(), self.info.name.to_string()];
        flags.extend(self.variant.flag.map(|flag| format!("--{}", flag.replace('_', "-"))));
        if self.group > 1 {
            flags.extend(["--group".into(), self.group.to_string()]);
        }
        if let Some(sparsity) = sparsity {
            let m = 1.0 / (1.0 - sparsity);
            match self.nm {
                true if (m - m.round()).abs() < 1e-6 => {
                    flags.extend(["--nm".into(), format!("1:{}", m.round())])
                }
                true => bail!("`{}`: no pattern 1:M has a sparsity of {} %", self.name(), percent(sparsity)),
                false => flags.extend(["--sparsity".into(), sparsity.to_string()]),
            }
        }
        Ok(flags)
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::named(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
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
#[derive(Clone, Debug, Deserialize)]
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
    /// The panels of the figure; without any, one with all methods.
    #[serde(default)]
    pub panels: Vec<PanelOf>,
    /// Names of the published tables of this very task, to compare with number by number.
    #[serde(default)]
    pub theirs: Vec<String>,
    /// Names of the published tables of other tasks to show beside it.
    #[serde(default)]
    pub published: Vec<String>,
    /// Flags of this grid; they win over those of the recipe.
    #[serde(default)]
    pub train: toml::Table,
    /// Flags of single sparsities, which replace those of `train`: `[grid.at."0.99"]`.
    #[serde(default)]
    at: BTreeMap<String, toml::Table>,
    /// What `--full` changes.
    #[serde(default)]
    full: Full,
    /// Flags of longer schedules, which replace those of `train`: `[grid.extended.5]` for `--extended 5`.
    #[serde(default)]
    extended: BTreeMap<String, toml::Table>,
}

/// Some methods of a grid, which a figure shows together.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PanelOf {
    /// What they have in common.
    pub title: String,
    /// Methods of the grid.
    pub methods: Vec<Method>,
}

/// The `--full` part of a grid.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Full {
    seeds: Option<u64>,
    #[serde(default)]
    train: toml::Table,
}

/// What the command line changes of a recipe.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Lift the limits that keep the recipe short.
    pub full: bool,
    /// Runs per method and sparsity.
    pub seeds: Option<u64>,
    /// Only the grid of this model.
    pub model: Option<String>,
    /// Only these sparsities.
    pub sparsities: Vec<f64>,
    /// The longer schedule of so many times the epochs.
    pub extended: Option<u64>,
    /// Flags of `srigl train`, which win over all others; without a value it is a bare flag.
    pub set: Vec<(String, Option<String>)>,
}

impl Changes {
    /// As one would type them.
    pub fn command(&self) -> String {
        let mut words = Vec::new();
        if self.full {
            words.push("--full".to_string());
        }
        words.extend(self.seeds.map(|seeds| format!("--seeds {seeds}")));
        words.extend(self.model.as_ref().map(|model| format!("--model {model}")));
        if !self.sparsities.is_empty() {
            let list: Vec<String> = self.sparsities.iter().map(f64::to_string).collect();
            words.push(format!("--sparsity {}", list.join(",")));
        }
        words.extend(self.extended.map(|times| format!("--extended {times}")));
        for (flag, value) in &self.set {
            match value {
                Some(value) => words.push(format!("--set {flag}={value}")),
                None => words.push(format!("--set {flag}")),
            }
        }
        words.join(" ")
    }
}

/// Flags that this program sets itself.
const RESERVED: [&str; 13] = [
    "method",
    "no-ablation",
    "nm",
    "group",
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
    /// Reads a recipe and settles the changes and the precedence of flags: afterwards `grid.seeds` is final and
    /// `grid.train` holds all flags of its runs, in kebab case. Without `changes.model`, `model` selects.
    ///
    /// # Errors
    /// If the file is not a recipe, sets a flag that is swept or set by this program, or has not what is asked for.
    pub fn parse(text: &str, model: Option<&str>, changes: &Changes) -> Result<Self> {
        let mut recipe: Self = toml::from_str(text).context("the recipe cannot be read")?;
        for grid in &mut recipe.grids {
            let mut flags = kebab_case(&recipe.train);
            flags.extend(kebab_case(&grid.train));
            if changes.full {
                flags.extend(kebab_case(&grid.full.train));
                grid.seeds = grid.full.seeds.unwrap_or(grid.seeds);
            }
            grid.seeds = changes.seeds.unwrap_or(grid.seeds);
            grid.train = flags;
        }
        if let Some(model) = changes.model.as_deref().or(model) {
            let names: Vec<String> = recipe.grids.iter().filter_map(|grid| grid.flag("model")).collect();
            recipe.grids.retain(|grid| grid.flag("model").as_deref() == Some(model));
            ensure!(
                !recipe.grids.is_empty(),
                "this table has no recipe for `{model}`, only for {}; `--set model={model}` trains it with the \
                 recipe of another",
                names.join(", ")
            );
        }
        for grid in &mut recipe.grids {
            if let Some(times) = changes.extended.filter(|times| *times != 1) {
                let known: Vec<&String> = grid.extended.keys().collect();
                let longer = grid.extended.get(&times.to_string()).with_context(|| {
                    format!("grid `{}` has no schedule for --extended {times}, only {known:?}", grid.name)
                })?;
                grid.train.extend(kebab_case(longer));
            }
            if !changes.sparsities.is_empty() {
                grid.sparsities.clone_from(&changes.sparsities);
                grid.at.retain(|at, _| at.parse().is_ok_and(|at: f64| grid.sparsities.contains(&at)));
            }
            for (flag, value) in &changes.set {
                grid.set(flag, value.clone().map_or(Value::Boolean(true), Value::String));
            }
            grid.check()?;
        }
        Ok(recipe)
    }
}

impl Grid {
    /// Sets a flag at all sparsities.
    pub fn set(&mut self, flag: &str, value: Value) {
        self.train.insert(flag.into(), value);
        for at in self.at.values_mut() {
            *at = kebab_case(at);
            at.remove(flag);
        }
    }

    fn check(&self) -> Result<()> {
        for key in self.train.keys() {
            ensure!(
                !RESERVED.contains(&key.as_str()),
                "grid `{}`: `{key}` is set by xtask; take it out of [train]",
                self.name
            );
        }
        for panel in &self.panels {
            for method in &panel.methods {
                ensure!(
                    self.methods.contains(method),
                    "grid `{}`: panel `{}` shows `{}`, which is not run",
                    self.name,
                    panel.title,
                    method.name()
                );
            }
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
                let sparsities: Vec<Option<f64>> = match method.is_sparse() {
                    false => vec![None],
                    true => self.sparsities.iter().copied().map(Some).collect(),
                };
                for sparsity in sparsities {
                    let mut args = method.flags(sparsity).with_context(|| format!("grid `{}`", self.name))?;
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
        write!(f, "{}-{}", self.grid, self.method.name())?;
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

    fn full() -> Changes {
        Changes { full: true, ..Changes::default() }
    }

    #[test]
    fn the_command_line_changes_a_recipe() {
        let recipe = RECIPE.replace(
            "[grid.full]",
            "[grid.at.\"0.9\"]\nepochs = 7\n[grid.extended.5]\nepochs = 25\n[grid.full]",
        );
        let parse = |changes: &Changes| Recipe::parse(&recipe, Some("mlp"), changes);
        let changes = Changes { extended: Some(5), sparsities: vec![0.5], ..Changes::default() };
        let grid = &parse(&changes).unwrap().grids[0];
        assert_eq!(
            (grid.sparsities.as_slice(), grid.describe_flag("epochs").unwrap().as_str()),
            (&[0.5][..], "25")
        );
        assert_eq!(changes.command(), "--sparsity 0.5 --extended 5");
        // What is set wins over everything.
        let set = vec![("epochs".to_string(), Some("1".to_string())), ("quiet-data".to_string(), None)];
        let changes = Changes { set, ..Changes::default() };
        let grid = &parse(&changes).unwrap().grids[0];
        assert_eq!(grid.describe_flag("epochs").unwrap(), "1");
        assert!(flags(&grid.train).unwrap().join(" ").contains("--quiet-data --"));
        assert_eq!(changes.command(), "--set epochs=1 --set quiet-data");
        for wrong in [
            Changes { extended: Some(3), ..Changes::default() },
            Changes { model: Some("vit".into()), ..Changes::default() },
            Changes { sparsities: vec![1.5], ..Changes::default() },
            Changes { set: vec![("seed".into(), Some("1".into()))], ..Changes::default() },
        ] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn keys_become_flags() {
        let recipe = Recipe::parse(RECIPE, None, &Changes::default()).unwrap();
        let args = flags(&recipe.grids[0].train).unwrap().join(" ");
        let expected =
            "--epochs 5 --lr-schedule cosine --model mlp --nesterov --train-limit 100 --weight-decay 0.0001";
        assert_eq!(args, expected);
    }

    #[test]
    fn a_sparsity_can_have_flags_of_its_own() {
        let recipe = RECIPE.replace("[grid.full]", "[grid.at.\"0.9375\"]\nepochs = 7\n[grid.full]");
        let grid = &Recipe::parse(&recipe, None, &Changes::default()).unwrap().grids[0];
        assert_eq!(grid.describe_flag("epochs").unwrap(), "5 (7 at 93.75 %)");
        let cells = grid.cells(&[]).unwrap();
        let epochs = |cell: &&Cell| cell.args.windows(2).any(|w| w == ["--epochs", "7"]);
        assert!(cells.iter().filter(epochs).all(|cell| cell.sparsity == Some(0.9375)));
        assert_eq!(cells.iter().filter(epochs).count(), 2);
        assert!(Recipe::parse(&recipe.replace("0.9375\"]", "0.5\"]"), None, &Changes::default()).is_err());
    }

    #[test]
    fn full_changes_and_removes_flags_and_seeds_win() {
        let lifted = Recipe::parse(RECIPE, None, &full()).unwrap();
        assert_eq!(lifted.grids[0].seeds, 3);
        assert_eq!(lifted.grids[0].flag("train-limit"), None);
        assert!(!flags(&lifted.grids[0].train).unwrap().contains(&"--train-limit".into()));
        assert_eq!(
            Recipe::parse(RECIPE, None, &Changes { seeds: Some(7), ..full() }).unwrap().grids[0].seeds,
            7
        );
    }

    #[test]
    fn dense_runs_once_per_seed() {
        let cells = Recipe::parse(RECIPE, None, &Changes::default()).unwrap().grids[0]
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
        let error =
            Recipe::parse(&RECIPE.replace("nesterov", "resume"), None, &Changes::default()).unwrap_err();
        assert!(error.to_string().contains("`resume` is set by xtask"), "{error}");
        let error = Recipe::parse(&RECIPE.replace("0.9,", "0.0,"), None, &Changes::default()).unwrap_err();
        assert!(error.to_string().contains("not in (0, 1)"), "{error}");
    }
}
