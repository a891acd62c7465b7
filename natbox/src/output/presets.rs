//! `natbox presets`: the NATs that natbox can be.

use std::io::{self, Write};

use natbox_core::{
    Behavior,
    behavior::{AXES, Axis},
    preset::{PRESETS, Preset},
};
use serde_json::{Value, json};

use super::table::write_table;
use crate::control::written;

/// Writes the table of presets.
pub fn write_presets(to: &mut impl Write) -> io::Result<()> {
    let rows: Vec<_> = PRESETS
        .iter()
        .map(|preset| {
            let behavior = preset.behavior();
            let value = |axis: &str| Axis::by_name(axis).map_or_else(String::new, |axis| axis.get(&behavior));
            [
                preset.name.to_owned(),
                short(behavior.mapping.word(), "M"),
                short(behavior.filtering.word(), "F"),
                value("ports"),
                value("hairpin"),
                format!("{} {}", value("udp-timeout"), value("udp-replied-timeout")),
                preset.about.to_owned(),
            ]
        })
        .collect();
    write_table(to, ["NAME", "MAP", "FILTER", "PORTS", "HAIRPIN", "UDP", "WHAT IT IS"], &rows)?;
    writeln!(
        to,
        "\nMAP    when two packets from one inside endpoint share an external endpoint\n\
         FILTER who may send to it\n       \
         EI: any address; AD: the same address; APD: the same address and port (RFC 4787)\n\
         UDP    idle lifetime of a session that is unanswered, and of one that is answered\n\n\
         `natbox presets NAME` shows every axis of one. Use one with `natbox --nat NAME`, and change any axis of it\n\
         with the flag of its name."
    )
}

/// `address-and-port-dependent` is `APD`, and `APDM` as a mapping.
pub(crate) fn short(word: &str, suffix: &str) -> String {
    let initials = word.split('-').filter(|part| *part != "and").filter_map(|part| part.chars().next());
    initials.map(|initial| initial.to_ascii_uppercase()).chain(suffix.chars()).collect()
}

/// Writes every axis of one preset, with what it decides and where the values come from.
pub fn write_preset(to: &mut impl Write, preset: &Preset) -> io::Result<()> {
    writeln!(to, "{}: {}", preset.name, preset.about)?;
    writeln!(to, "observed on: {}\n", preset.observed)?;
    write_behavior(to, &preset.behavior())
}

/// Writes every axis of a behaviour with what it decides.
pub fn write_behavior(to: &mut impl Write, behavior: &Behavior) -> io::Result<()> {
    let rows: Vec<_> =
        AXES.iter().map(|axis| [axis.name.to_owned(), axis.get(behavior), axis.help.to_owned()]).collect();
    write_table(to, ["AXIS", "VALUE", "WHAT IT DECIDES"], &rows)
}

/// One preset for programs: `{"name","about","observed","behavior":{AXIS:VALUE,…}}`.
pub fn preset_json(preset: &Preset) -> Value {
    json!({
        "name": preset.name,
        "about": preset.about,
        "observed": preset.observed,
        "behavior": written(&preset.behavior()),
    })
}

/// A behaviour in one line: the preset that it started from, and what differs from that.
pub fn describe(behavior: &Behavior, preset: Option<&str>) -> String {
    let name = preset.unwrap_or("rfc");
    let base = Preset::by_name(name).map(Preset::behavior).unwrap_or_default();
    let changed: Vec<_> = AXES
        .iter()
        .filter(|axis| axis.get(&base) != axis.get(behavior))
        .map(|axis| format!("{} {}", axis.name, axis.get(behavior)))
        .collect();
    let kind = format!(
        "{} × {}, ports {}, hairpin {}",
        short(behavior.mapping.word(), "M"),
        short(behavior.filtering.word(), "F"),
        behavior.ports,
        behavior.hairpin
    );
    match changed.len() {
        0 => format!("{name} ({kind})"),
        _ => format!("{name} with {} ({kind})", changed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use natbox_core::behavior::{Filtering, Mapping};

    use super::*;

    #[test]
    fn abbreviations_are_the_words_of_the_engine() {
        let mut behavior = Behavior::default();
        for mapping in Mapping::ALL {
            behavior.set("mapping", &short(mapping.word(), "m").to_lowercase()).unwrap();
            assert_eq!(behavior.mapping, *mapping);
        }
        for filtering in Filtering::ALL {
            behavior.set("filtering", &short(filtering.word(), "f").to_lowercase()).unwrap();
            assert_eq!(behavior.filtering, *filtering);
        }
    }

    #[test]
    fn every_preset_is_in_the_table_and_every_axis_in_its_page() {
        let mut page = Vec::new();
        write_presets(&mut page).unwrap();
        let table = String::from_utf8(page).unwrap();
        for preset in PRESETS {
            assert!(
                table.lines().any(|line| line.starts_with(&format!("{} ", preset.name))),
                "{}",
                preset.name
            );
            let mut page = Vec::new();
            write_preset(&mut page, preset).unwrap();
            let page = String::from_utf8(page).unwrap();
            assert!(AXES.iter().all(|axis| page.contains(axis.help)) && page.contains(preset.observed));
        }
    }

    #[test]
    fn a_description_names_what_was_changed() {
        assert_eq!(describe(&Behavior::default(), None), "rfc (EIM × ADF, ports random, hairpin external)");
        let mut linux = Preset::by_name("linux").unwrap().behavior();
        linux.set("filtering", "eif").unwrap();
        let line = "linux with filtering endpoint-independent (APDM × EIF, ports linux, hairpin off)";
        assert_eq!(describe(&linux, Some("linux")), line);
    }
}
