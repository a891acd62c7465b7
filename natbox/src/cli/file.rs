//! The configuration file: TOML whose keys are the names of the flags. Axes stand at the top or in a `[nat]` table,
//! where `preset` names the preset.

use std::{fs, ops::Range, path::Path};

use natbox_core::behavior::AXES;
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    layer::{KEYS, Layer},
    nearest::hint,
};

/// Reads a configuration file; every error is one line that names file, line and key.
pub(crate) fn read(path: &Path) -> Result<Layer, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|Problem { at, message }| {
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        format!("{}:{line}: {message}", path.display())
    })
}

struct Problem {
    /// Offset in bytes.
    at: usize,
    message: String,
}

impl Problem {
    fn new(span: &Range<usize>, message: impl Into<String>) -> Problem {
        Problem { at: span.start, message: message.into() }
    }
}

fn parse(text: &str) -> Result<Layer, Problem> {
    let table = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        Problem::new(&span, error.message().lines().collect::<Vec<_>>().join(", "))
    })?;
    let mut layer = Layer::default();
    let mut axes_at_top = Vec::new();
    for (key, value) in in_order(table.get_ref()) {
        let name: &str = key.get_ref();
        match value.get_ref() {
            DeValue::Table(nat) if name == "nat" => {
                for (key, value) in in_order(nat) {
                    let name: &str = key.get_ref();
                    if axes_at_top.contains(&name) {
                        return Err(Problem::new(
                            &key.span(),
                            format!("{name} is set twice, at the top and in [nat]"),
                        ));
                    }
                    let known = AXES.iter().map(|axis| axis.name).chain(["preset"]);
                    take(&mut layer, if name == "preset" { "nat" } else { name }, known, key, value)?;
                }
            }
            DeValue::Table(_) => {
                let message = format!("unknown table [{name}]: there is only [nat]");
                return Err(Problem::new(&key.span(), message));
            }
            _ => {
                axes_at_top.push(name);
                let known = KEYS.into_iter().chain(AXES.iter().map(|axis| axis.name));
                take(&mut layer, name, known, key, value)?;
            }
        }
    }
    Ok(layer)
}

type Pair<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// In the order of the file, so that the first mistake is the first reported, and [nat] comes after the top.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Pair<'a, 'i>> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, value)| (value.get_ref().is_table(), key.span().start));
    pairs
}

fn take(
    layer: &mut Layer,
    name: &str,
    known: impl Iterator<Item = &'static str> + Clone,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(), Problem> {
    let written: &str = key.get_ref();
    if !known.clone().any(|known| known == written) {
        let elsewhere = if KEYS.contains(&written) { "; it belongs above [nat]" } else { "" };
        let message = format!("unknown key {written:?}{elsewhere}{}", hint(written, known));
        return Err(Problem::new(&key.span(), message));
    }
    let values = match value.get_ref() {
        DeValue::Array(items) => {
            items.iter().map(|item| scalar(written, item)).collect::<Result<Vec<_>, _>>()?
        }
        _ => vec![scalar(written, value)?],
    };
    layer.put(name, &values).map_err(|message| Problem::new(&value.span(), message))
}

/// A value in the words of the command line.
fn scalar(key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Problem> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        _ => {
            let message = format!("{key} takes a string, a number, true or false, or a list of those");
            Err(Problem::new(&value.span(), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use natbox::settings::Settings;
    use natbox_core::{Behavior, behavior::*, preset::Preset};

    use super::*;
    use crate::cli::{
        args, axis,
        layer::{self, Layer},
    };

    fn merged(file: &str, flags: &[&str]) -> Result<Settings, String> {
        let file = parse(file).map_err(|problem| problem.message)?;
        let args = ["natbox"].iter().chain(flags).map(Into::into);
        let (cli, matches) = args::parse(args).map_err(|error| error.to_string())?;
        let flags = Layer::of_flags(cli.run, axis::given(&matches));
        layer::settings(flags, file, Vec::new()).map(|asked| asked.settings)
    }

    fn refused(file: &str) -> (usize, String) {
        let problem = parse(file).err().unwrap();
        (file[..problem.at].matches('\n').count() + 1, problem.message)
    }

    const WIRED: &str = "outside = 'eth0'\ninside = ['tun0']\n";

    #[test]
    fn a_file_says_what_flags_say() {
        let file = r#"
            outside = "eth0"
            inside = ["tun0", "tun1@lab=10.7.0.2/24"]
            external = "198.51.100.7"
            forward = ["tcp:8080=10.7.0.2:80"]
            mtu = 1400
            workers = 2
            no-offload = true
            mapping = "adm"
            udp-timeout = 30
            port-parity = false
            allow-tcp = [80, 443]
            untranslated = ["100.64.0.0/10", "192.0.2.1:53"]
            subscriber-mappings = 2048
        "#;
        let flags = [
            "--outside",
            "eth0",
            "--inside",
            "tun0",
            "--inside",
            "tun1@lab=10.7.0.2/24",
            "--external",
            "198.51.100.7",
            "--forward",
            "tcp:8080=10.7.0.2:80",
            "--mtu",
            "1400",
            "--workers",
            "2",
            "--no-offload",
            "--mapping",
            "adm",
            "--udp-timeout",
            "30s",
            "--port-parity",
            "off",
            "--allow-tcp",
            "80,443",
            "--untranslated",
            "100.64.0.0/10,192.0.2.1:53",
            "--subscriber-mappings",
            "2048",
        ];
        let (from_file, from_flags) = (merged(file, &["--json"]).unwrap(), merged("", &flags).unwrap());
        assert_eq!(format!("{:?}", Settings { json: false, ..from_file }), format!("{from_flags:?}"));
    }

    #[test]
    fn flags_override_the_file_and_the_file_its_preset() {
        let behavior =
            |file: &str, flags: &[&str]| merged(&format!("{WIRED}{file}"), flags).unwrap().behavior;
        let symmetric = Preset::by_name("symmetric").unwrap().behavior();
        assert_eq!(behavior("", &["--json"]), Behavior::default());
        assert_eq!(behavior("nat = 'symmetric'", &["--json"]), symmetric);
        let file = "[nat]\npreset = 'symmetric'\nhairpin = 'internal'\nrefresh = 'inbound'";
        let expected =
            Behavior { hairpin: Hairpin::Internal, refresh: Refresh::Inbound, ..symmetric.clone() };
        assert_eq!(behavior(file, &["--json"]), expected);
        let expected = Behavior { hairpin: Hairpin::External, ..expected };
        assert_eq!(behavior(file, &["--hairpin", "external"]), expected);
        let linux = Preset::by_name("linux").unwrap().behavior();
        assert_eq!(behavior(file, &["--nat", "linux"]), linux, "a preset sets every axis");
        let expected = Behavior { mapping: Mapping::AddressDependent, ..linux };
        assert_eq!(behavior(file, &["--nat", "linux", "--mapping", "adm"]), expected);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (file, line, message) in [
            ("outside = 'eth0'\nmaping = 'adm'", 2, "unknown key \"maping\": did you mean \"mapping\"?"),
            ("[nat]\n\nhairpins = 'off'", 3, "unknown key \"hairpins\": did you mean \"hairpin\"?"),
            ("[nat]\noutside = 'eth0'", 2, "unknown key \"outside\"; it belongs above [nat]"),
            ("[nta]\nmapping = 'adm'", 1, "unknown table [nta]: there is only [nat]"),
            ("colour = 'red'", 1, "unknown key \"colour\""),
            ("mtu = 12", 1, "mtu is a number of bytes from 68 to 65535, not \"12\""),
            ("workers = 99", 1, "\"99\" is not a number of workers: write 1 to 16, or auto"),
            ("outside = ['a', 'b']", 1, "outside takes one value, not a list"),
            ("mapping = 1.5", 1, "mapping takes a string, a number, true or false, or a list of those"),
            ("mapping = 'adm'\n[nat]\nmapping = 'eim'", 3, "mapping is set twice, at the top and in [nat]"),
        ] {
            assert_eq!(refused(file), (line, message.to_owned()), "{file}");
        }
        assert!(refused("nat = 'symetric'").1.contains("did you mean \"symmetric\"?"));
        assert!(refused("\nudp-timeout = 'soon'").1.contains("is not a value of udp-timeout"));
        let (line, message) = refused("mtu = 1400\nouts ide = 3");
        assert!(line == 2 && !message.contains('\n'), "{line}: {message}");
    }

    #[test]
    fn every_flag_is_a_key() {
        let command = args::command();
        let flags = command.get_arguments().filter_map(|arg| arg.get_long());
        let mut flags: Vec<_> = flags.filter(|flag| !["config", "help", "version"].contains(flag)).collect();
        let mut keys: Vec<_> = KEYS.into_iter().chain(AXES.iter().map(|axis| axis.name)).collect();
        flags.sort_unstable();
        keys.sort_unstable();
        assert_eq!(flags, keys);
    }

    #[test]
    fn parts_that_cannot_go_together_are_refused() {
        for (file, message) in [
            ("outside = 'eth0'", "nothing is behind the NAT"),
            ("inside = 'tun0'", "which interface leads to the public network?"),
            ("outside = 'eth0'\nlan = 'eth0'", "eth0 cannot be both --lan and --outside"),
            ("outside = 'eth0'\ninside = ['tun0', 'tun0']", "--inside tun0 is given twice"),
        ] {
            let error = merged(file, &["--json"]).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
