//! `--method` and the settings of methods, as flags and in `config.json`.
//!
//! Names, settings and defaults come from [`METHODS`]: a method that is added there has its flags here.

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sparsity_core::methods::{
    AnyMethod, GROUP, METHODS, MethodInfo, NM, SettingKind, Settings, Value, Variant,
};
use sparsity_core::{Error, NmPattern};
use std::collections::{BTreeMap, BTreeSet};

/// A method by name, with the settings of all methods; those of others wait in vain. `DENSE` says whether dense
/// training may be chosen.
#[derive(Clone, Debug)]
pub struct MethodArgs<const DENSE: bool = true> {
    info: &'static MethodInfo,
    settings: Settings,
    /// Flags of variants that are set, such as `no_ablation`.
    flags: BTreeSet<String>,
    nm: Option<NmPattern>,
    group: usize,
}

impl<const DENSE: bool> MethodArgs<DENSE> {
    /// What is true of the method whatever its settings.
    pub fn info(&self) -> &'static MethodInfo {
        self.info
    }

    /// The method with its settings.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn build(&self) -> Result<AnyMethod, Error> {
        let own = self.info.settings.iter().filter_map(|setting| {
            Some((setting.name.to_string(), self.settings.0.get(setting.name)?.clone()))
        });
        let mut settings = Settings(own.collect());
        for variant in self.info.variants {
            if variant.flag.is_some_and(|flag| self.flags.contains(flag)) {
                let values = variant.settings.iter().map(|(name, v)| (name.to_string(), Value::Number(*v)));
                settings.0.extend(values);
            }
        }
        if let Some(nm) = self.nm {
            settings.0.insert(NM.into(), Value::Word(nm.to_string()));
        }
        if self.group != 1 {
            settings.0.insert(GROUP.into(), Value::Number(self.group as f64));
        }
        self.info.build(&settings)
    }

    /// The pattern of its masks, given or the method's own.
    pub fn nm(&self) -> Option<NmPattern> {
        self.build().ok()?.nm()
    }

    /// The name for people, with the structure of its masks.
    pub fn label(&self) -> String {
        self.build().map_or_else(|_| self.info.variants[0].label.to_string(), |method| method.label())
    }

    /// The kind of run; the method's own where the settings are out of range.
    pub fn variant(&self) -> &'static Variant {
        self.build().map_or(&self.info.variants[0], |method| method.variant())
    }

    /// A number among the settings in force; `None` if the method has no such.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.build().ok()?.settings().0.get(name)? {
            Value::Number(number) => Some(*number),
            Value::Word(_) => None,
        }
    }

    fn offered() -> impl Iterator<Item = &'static MethodInfo> {
        METHODS.iter().copied().filter(|info| DENSE || info.sparse)
    }
}

impl<const DENSE: bool> Default for MethodArgs<DENSE> {
    fn default() -> Self {
        let info = METHODS[METHODS.len() - 1];
        Self {
            info: MethodInfo::named(DEFAULT).unwrap_or(info),
            settings: defaults(),
            flags: BTreeSet::new(),
            nm: None,
            group: 1,
        }
    }
}

impl<const DENSE: bool> PartialEq for MethodArgs<DENSE> {
    fn eq(&self, other: &Self) -> bool {
        let all =
            |args: &Self| (args.info.name, args.settings.clone(), args.flags.clone(), args.nm, args.group);
        all(self) == all(other)
    }
}

/// The method that is trained unless another is named.
const DEFAULT: &str = "srigl";

fn all_settings() -> impl Iterator<Item = (&'static MethodInfo, &'static sparsity_core::methods::Setting)> {
    METHODS.iter().flat_map(|info| info.settings.iter().map(move |setting| (*info, setting)))
}

fn flagged_variants() -> impl Iterator<Item = (&'static MethodInfo, &'static Variant, &'static str)> {
    METHODS.iter().flat_map(|info| {
        info.variants.iter().filter_map(move |variant| Some((*info, variant, variant.flag?)))
    })
}

fn defaults() -> Settings {
    Settings(all_settings().map(|(_, setting)| (setting.name.to_string(), setting.default())).collect())
}

/// `gamma_sal` → `gamma-sal`.
fn kebab(name: &'static str) -> String {
    name.replace('_', "-")
}

impl<const DENSE: bool> Args for MethodArgs<DENSE> {
    fn augment_args(mut command: Command) -> Command {
        let names = Self::offered().map(|info| PossibleValue::new(info.name).help(info.about));
        command = command.arg(
            Arg::new("method")
                .long("method")
                .help("Training method")
                .value_name("METHOD")
                .default_value(DEFAULT)
                .value_parser(PossibleValuesParser::new(names)),
        );
        command = command.arg(
            Arg::new(NM)
                .long(NM)
                .value_name("N:M")
                .help(
                    "Of M consecutive inputs a neuron reads at most N, as 2:4; the sparsity follows from it. sr-ste always has one \
                     [default: none; sr-ste: 2:4]",
                )
                .value_parser(|text: &str| text.parse::<NmPattern>()),
        );
        command = command.arg(
            Arg::new(GROUP)
                .long(GROUP)
                .value_name("G")
                .help("Methods with constant fan-in: so many neurons in a row share their inputs")
                .value_parser(clap::value_parser!(u32).range(1..=65536))
                .default_value("1"),
        );
        for (info, variant, flag) in flagged_variants() {
            let settings = variant.settings.iter().map(|(name, v)| format!("--{} {v}", kebab(name)));
            let same = settings.collect::<Vec<_>>().join(" ");
            let help = format!("{}: {} (the same as {same})", info.name, variant.label);
            command = command.arg(Arg::new(flag).long(kebab(flag)).action(ArgAction::SetTrue).help(help));
        }
        for (info, setting) in all_settings() {
            let arg = Arg::new(setting.name)
                .long(kebab(setting.name))
                .help(format!("{}: {}", info.name, setting.about));
            command = command.arg(match setting.kind {
                SettingKind::Number(default) => arg
                    .value_name("NUMBER")
                    .value_parser(clap::value_parser!(f64))
                    .allow_negative_numbers(true)
                    .default_value(default.to_string()),
                SettingKind::Word(words) => {
                    let arg = arg.value_name(setting.name.to_uppercase());
                    arg.value_parser(PossibleValuesParser::new(words)).default_value(words[0])
                }
            });
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const DENSE: bool> FromArgMatches for MethodArgs<DENSE> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let name = matches.get_one::<String>("method").map_or(DEFAULT, String::as_str);
        self.info = MethodInfo::named(name)
            .map_err(|error| clap::Error::raw(clap::error::ErrorKind::InvalidValue, error))?;
        for (_, setting) in all_settings() {
            let value = match setting.kind {
                SettingKind::Number(_) => matches.get_one(setting.name).copied().map(Value::Number),
                SettingKind::Word(_) => matches.get_one::<String>(setting.name).cloned().map(Value::Word),
            };
            self.settings.0.extend(value.map(|value| (setting.name.to_string(), value)));
        }
        self.flags = flagged_variants()
            .filter(|(.., flag)| matches.get_flag(flag))
            .map(|(.., flag)| flag.to_string())
            .collect();
        self.nm = matches.get_one(NM).copied();
        self.group = matches.get_one::<u32>(GROUP).map_or(1, |group| *group as usize);
        Ok(())
    }
}

/// In `config.json`: `method`, each flag as a boolean, and each setting, whatever the method; the structure of masks if there is one.
impl<const DENSE: bool> Serialize for MethodArgs<DENSE> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("method", self.info.name)?;
        for (.., flag) in flagged_variants() {
            map.serialize_entry(flag, &self.flags.contains(flag))?;
        }
        for (name, value) in &self.settings.0 {
            map.serialize_entry(name, value)?;
        }
        if let Some(nm) = self.nm {
            map.serialize_entry(NM, &nm.to_string())?;
        }
        if self.group != 1 {
            map.serialize_entry(GROUP, &self.group)?;
        }
        map.end()
    }
}

/// What is missing is the default: older runs know fewer settings.
impl<'de, const DENSE: bool> Deserialize<'de> for MethodArgs<DENSE> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
        let mut args = Self::default();
        let name = values.remove("method").ok_or_else(|| D::Error::missing_field("method"))?;
        let name: String = serde_json::from_value(name).map_err(D::Error::custom)?;
        args.info = MethodInfo::named(&name).map_err(D::Error::custom)?;
        for (_, setting) in all_settings() {
            if let Some(value) = values.remove(setting.name) {
                let read = serde_json::from_value(value.clone()).ok().filter(|value| setting.takes(value));
                let value =
                    read.ok_or_else(|| D::Error::custom(format!("{} cannot be {value}", setting.name)))?;
                args.settings.0.insert(setting.name.to_string(), value);
            }
        }
        for (.., flag) in flagged_variants() {
            let value = values.remove(flag).map(serde_json::from_value::<bool>);
            if value.transpose().map_err(|error| D::Error::custom(format!("{flag}: {error}")))? == Some(true)
            {
                args.flags.insert(flag.to_string());
            }
        }
        if let Some(nm) = values.remove(NM) {
            let text: String =
                serde_json::from_value(nm).map_err(|error| D::Error::custom(format!("{NM}: {error}")))?;
            args.nm = Some(text.parse().map_err(D::Error::custom)?);
        }
        if let Some(group) = values.remove(GROUP) {
            args.group = serde_json::from_value(group)
                .map_err(|error| D::Error::custom(format!("{GROUP}: {error}")))?;
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        method: MethodArgs,
    }

    fn parse(flags: &str) -> Result<MethodArgs, clap::Error> {
        Cli::try_parse_from(["x"].into_iter().chain(flags.split_whitespace())).map(|cli| cli.method)
    }

    #[test]
    fn flags_choose_the_method_and_its_settings() {
        assert_eq!(parse("").unwrap(), MethodArgs::default());
        let srigl = parse("--gamma-sal 0.9 --threshold-base dense-fan-in").unwrap();
        assert_eq!((srigl.number("gamma_sal"), srigl.variant().name), (Some(0.9), "srigl"));
        for flags in ["--no-ablation", "--gamma-sal 0", "--no-ablation --gamma-sal 0.5"] {
            assert_eq!(parse(flags).unwrap().variant().name, "srigl-no-ablation", "{flags}");
        }
        let rigl = parse("--method rigl --gamma-sal 0.9").unwrap();
        assert_eq!((rigl.info().name, rigl.number("gamma_sal")), ("rigl", None));
        assert!(parse("--gamma-sal -1").unwrap().build().is_err());
        assert!(parse("--method magic").is_err());
    }

    #[test]
    fn the_structure_of_masks_is_part_of_the_method() {
        let both = parse("--method structured-set --nm 1:4 --group 8").unwrap();
        assert_eq!(both.build().unwrap().label(), "structured SET 1:4, groups of 8");
        assert_eq!(
            (both.label(), both.nm()),
            ("structured SET 1:4, groups of 8".into(), NmPattern::new(1, 4).ok())
        );
        let json = serde_json::to_value(&both).unwrap();
        assert_eq!((&json["nm"], &json["group"]), (&"1:4".into(), &8.into()));
        assert_eq!(serde_json::from_value::<MethodArgs>(json).unwrap(), both);
        let plain = serde_json::to_value(parse("").unwrap()).unwrap();
        assert!(plain.get("nm").is_none() && plain.get("group").is_none());
        assert_eq!(parse("--method sr-ste").unwrap().nm(), Some(NmPattern::TWO_OF_FOUR));
        assert_eq!(parse("--method sr-ste --nm 1:8").unwrap().nm(), NmPattern::new(1, 8).ok());
        for wrong in ["--nm 4:4", "--nm 2", "--nm 0:4", "--group 0", "--group -1", "--group 65537"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["--method snfs --nm 2:4", "--method rigl --group 4", "--method dense --nm 2:4"] {
            assert!(matches!(parse(wrong).unwrap().build(), Err(Error::Structure { .. })), "{wrong}");
        }
        for wrong in [
            r#"{"method":"rigl","nm":"4:2"}"#,
            r#"{"method":"srigl","group":-1}"#,
            r#"{"method":"rigl","nm":4}"#,
        ] {
            assert!(serde_json::from_str::<MethodArgs>(wrong).is_err(), "{wrong}");
        }
        let none = serde_json::from_str::<MethodArgs>(r#"{"method":"srigl","group":0}"#).unwrap();
        assert!(matches!(none.build(), Err(Error::Setting { .. })));
    }

    #[test]
    fn runs_of_earlier_versions_are_read() {
        let old = r#"{"method":"srigl","no_ablation":true,"gamma_sal":0.3,"sparsity":0.9}"#;
        let args: MethodArgs = serde_json::from_str(old).unwrap();
        assert_eq!(args, parse("--no-ablation").unwrap());
        let json = serde_json::to_value(&args).unwrap();
        assert_eq!(json["threshold_base"], "sparse-fan-in");
        assert_eq!(serde_json::from_value::<MethodArgs>(json).unwrap(), args);
        assert!(serde_json::from_str::<MethodArgs>(r#"{"method":"magic"}"#).is_err());
    }

    #[test]
    fn dense_training_is_offered_unless_a_sparsity_is_needed() {
        #[derive(Debug, Parser)]
        struct Sparse {
            #[command(flatten)]
            method: MethodArgs<false>,
        }
        assert_eq!(parse("--method dense").unwrap().info().name, "dense");
        assert!(Sparse::try_parse_from(["x", "--method", "dense"]).is_err());
        let rigl = Sparse::try_parse_from(["x", "--method", "rigl"]).unwrap();
        assert_eq!(rigl.method.info().name, "rigl");
    }

    #[test]
    fn methods_are_the_same_if_names_settings_and_flags_are() {
        let all =
            ["", "--method rigl", "--gamma-sal 0.5", "--no-ablation"].map(|flags| parse(flags).unwrap());
        for (i, one) in all.iter().enumerate() {
            for (j, other) in all.iter().enumerate() {
                assert_eq!(one == other, i == j, "{one:?} and {other:?}");
            }
        }
    }

    #[test]
    fn flags_given_later_change_the_method() {
        let command = MethodArgs::<true>::augment_args_for_update(Command::new("x"));
        let mut args = parse("--no-ablation").unwrap();
        args.update_from_arg_matches(&command.get_matches_from(["x", "--method", "rigl"])).unwrap();
        assert_eq!(args, parse("--method rigl").unwrap());
    }

    #[test]
    fn settings_of_a_wrong_type_are_refused_in_files() {
        for (setting, part) in [
            (r#""gamma_sal":"much""#, "gamma_sal cannot be"),
            (r#""threshold_base":"x""#, "threshold_base cannot be"),
            (r#""no_ablation":1"#, "no_ablation: "),
        ] {
            let json = format!(r#"{{"method":"srigl",{setting}}}"#);
            let error = serde_json::from_str::<MethodArgs>(&json).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let off = r#"{"method":"srigl","no_ablation":false}"#;
        assert_eq!(serde_json::from_str::<MethodArgs>(off).unwrap(), MethodArgs::default());
    }
}
