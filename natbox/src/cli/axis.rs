//! One flag for each axis of the behaviour, and `--nat`, made from the engine's own tables.

use std::{collections::BTreeMap, ffi::OsStr};

use clap::{
    Arg, ArgMatches, Command,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use natbox_core::{
    Behavior, ValueError,
    behavior::{AXES, Axis},
    preset::{PRESETS, Preset},
};

use super::nearest::hint;

const HEADING: &str = "Behaviour of the NAT";

/// Adds `--nat` and the axes to a command.
pub(crate) fn augment(command: Command) -> Command {
    let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
    let nat = Arg::new("nat")
        .long("nat")
        .value_name("PRESET")
        .help("Behave as this NAT does; `natbox presets` shows each one")
        .value_parser(Hinted { hints: names, check: |name: &str| preset(name).map(|_| ()) });
    let axes = AXES.iter().map(|axis| {
        Arg::new(axis.name)
            .long(axis.name)
            .value_name("VALUE")
            .help(format!("{}: {}", axis.help, axis.values))
            .value_parser(Hinted { hints: words(axis), check: move |value: &str| value_of(axis, value) })
    });
    command.args(
        std::iter::once(nat).chain(axes).map(|arg| arg.hide_possible_values(true).help_heading(HEADING)),
    )
}

/// What `--nat` and the axes were given: a preset, and values by axis.
pub(crate) fn given(matches: &ArgMatches) -> (Option<String>, BTreeMap<String, String>) {
    let value = |name: &str| matches.get_one::<String>(name).cloned();
    let axes = AXES.iter().filter_map(|axis| value(axis.name).map(|value| (axis.name.to_owned(), value)));
    (value("nat"), axes.collect())
}

/// The preset of this name, or a line that says which might have been meant.
pub(crate) fn preset(name: &str) -> Result<&'static Preset, String> {
    Preset::by_name(name).ok_or_else(|| {
        let names = PRESETS.iter().map(|preset| preset.name);
        let hint = hint(name, names.clone());
        let rest = if hint.is_empty() {
            format!(": there are {}", names.collect::<Vec<_>>().join(", "))
        } else {
            format!("{hint} (`natbox presets` lists them all)")
        };
        format!("there is no preset {name:?}{rest}")
    })
}

/// Checks a value of an axis.
pub(crate) fn value_of(axis: &Axis, value: &str) -> Result<(), String> {
    axis.set(&mut Behavior::default(), value).map_err(|error| explain(axis, &error))
}

fn explain(axis: &Axis, error: &ValueError) -> String {
    format!("{error}{}", hint(&error.value, words(axis)).replacen(": d", "; d", 1))
}

/// The words among an axis's values: what a shell can complete and a misspelling can be near to.
fn words(axis: &Axis) -> Vec<&'static str> {
    axis.values
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter(|word| axis.set(&mut Behavior::default(), word).is_ok())
        .collect()
}

/// Takes what `check` lets through, and tells shells the words that it is usually given.
#[derive(Clone)]
struct Hinted<F> {
    hints: Vec<&'static str>,
    check: F,
}

impl<F> TypedValueParser for Hinted<F>
where
    F: Fn(&str) -> Result<(), String> + Clone + Send + Sync + 'static,
{
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let check = self.check.clone();
        StringValueParser::new()
            .try_map(move |value| check(&value).map(|()| value))
            .parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.hints.iter().map(PossibleValue::new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_axis_come_from_its_grammar() {
        let axis = |name| Axis::by_name(name).unwrap();
        let mapping =
            ["endpoint-independent", "eim", "address-dependent", "adm", "address-and-port-dependent", "apdm"];
        assert_eq!(words(axis("mapping")), mapping);
        assert_eq!(words(axis("hairpin")), ["off", "internal", "external"]);
        assert!(words(axis("udp-timeout")).is_empty());
    }

    #[test]
    fn a_misspelling_is_met_with_a_guess() {
        let error = value_of(Axis::by_name("filtering").unwrap(), "adress-dependent").unwrap_err();
        assert!(error.ends_with("; did you mean \"address-dependent\"?"), "{error}");
        let error = preset("symetric").err().unwrap();
        assert_eq!(
            error,
            "there is no preset \"symetric\": did you mean \"symmetric\"? (`natbox presets` lists them all)"
        );
    }
}
