//! docs/rfc-compliance.md is true: every requirement has its row, every test and every place in the code that a row names
//! is there, and every switch is an axis with which the row's test runs violated. docs/field.md is true as well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use natbox_core::{Behavior, behavior::Axis, preset::PRESETS};

const PAGE: &str = include_str!("../../../docs/rfc-compliance.md");
const FIELD: &str = include_str!("../../../docs/field.md");

/// What each RFC asks for, by its own numbers. A star: real NATs are known to fail there, so there must be a switch.
const REQUIREMENTS: [(&str, &str); 5] = [
    (
        "RFC 4787",
        "REQ-1* REQ-2* REQ-3* REQ-3a REQ-4* REQ-5* REQ-5a REQ-5b REQ-5c REQ-6* REQ-6a REQ-7 REQ-8* REQ-8a REQ-9* \
         REQ-9a* REQ-10 REQ-10a REQ-11* REQ-12 REQ-12a REQ-12b REQ-13 REQ-13a REQ-14* REQ-14a",
    ),
    (
        "RFC 5382",
        "REQ-1* REQ-2* REQ-2a* REQ-3 REQ-3a REQ-3b REQ-4* REQ-4a REQ-5* REQ-5a REQ-6 REQ-7* REQ-8* REQ-8a* REQ-9 \
         REQ-10",
    ),
    (
        "RFC 5508",
        "REQ-1 REQ-1a REQ-2* REQ-2a REQ-3 REQ-3a REQ-3b REQ-3c REQ-3d REQ-4 REQ-5 REQ-6 REQ-7 REQ-7a REQ-8 REQ-9 \
         REQ-10 REQ-11",
    ),
    ("RFC 7857", "§2 §2.1 §2.2* §3 §4 §5 §6 §7 §7.1 §8 §9* §10 §11 §12"),
    (
        "RFC 6888",
        "REQ-1* REQ-2 REQ-3 REQ-4 REQ-4b REQ-4c REQ-5 REQ-5b REQ-6 REQ-7* REQ-8 REQ-9* REQ-10 REQ-11* REQ-11b REQ-11c \
         REQ-12 REQ-13 REQ-14 REQ-15",
    ),
];

/// What may stay open: the other requirements are to be kept, and where real NATs fail there is a switch.
const OPEN: [&str; 1] = ["RFC 6888 REQ-9"];

/// The test files whose every test belongs to a requirement.
const REQUIREMENT_TESTS: [&str; 5] = ["rfc4787.rs", "rfc5382.rs", "rfc5508.rs", "rfc7857.rs", "rfc6888.rs"];

/// A row of a table of the page.
#[derive(Debug)]
struct Row {
    rfc: &'static str,
    id: &'static str,
    /// The page says that real NATs are known to fail here.
    starred: bool,
    asks: &'static str,
    status: &'static str,
    code: &'static str,
    tests: &'static str,
    field: &'static str,
}

impl Row {
    fn name(&self) -> String {
        format!("{} {}", self.rfc, self.id)
    }

    /// The switches that violate the requirement, as axis and value.
    fn switches(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        quoted(self.status).filter_map(|word| word.split_once('='))
    }

    /// The tests, as file and function.
    fn tests(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let name = self.name();
        quoted(self.tests).map(move |test| {
            test.split_once("::").unwrap_or_else(|| panic!("{name}: a test is FILE::NAME, not {test}"))
        })
    }
}

/// What stands between backticks.
fn quoted(cell: &'static str) -> impl Iterator<Item = &'static str> {
    cell.split('`').skip(1).step_by(2)
}

fn rows() -> Vec<Row> {
    let (mut rows, mut rfc) = (Vec::new(), "");
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            rfc = heading.split_once(':').map_or(heading, |(rfc, _)| rfc);
        }
        if !line.starts_with("| REQ-") && !line.starts_with("| §") {
            continue;
        }
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, asks, status, code, tests, field] = cells[..] else { panic!("six cells, please: {line}") };
        let (id, starred) = id.strip_suffix(" ⚙").map_or((id, false), |id| (id, true));
        rows.push(Row { rfc, id, starred, asks, status, code, tests, field });
    }
    rows
}

/// A file of this repository; `folder` is where a bare name lies.
fn file(folder: &str, path: &str) -> Option<String> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let inside = root.join(folder).join(path);
    fs::read_to_string(if inside.exists() { inside } else { root.join(path) }).ok()
}

/// The tests of a file, by name, each with its source.
fn tests_of(source: &str) -> BTreeMap<&str, String> {
    let (mut tests, mut marked, mut lines) = (BTreeMap::new(), false, source.lines());
    while let Some(line) = lines.next() {
        let code = line.trim_start();
        // One that is ignored shows nothing.
        let ends = code.is_empty() || code.starts_with("#[ignore");
        marked = code.starts_with("#[test]") || marked && !ends;
        let Some((name, _)) = code.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) else {
            continue;
        };
        if std::mem::take(&mut marked) {
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != end).collect();
            tests.insert(name, body.join("\n"));
        }
    }
    tests
}

/// Whether a test gives this field the value that it has in `behavior`.
fn sets(body: &str, field: &str, behavior: &Behavior) -> bool {
    let printed = format!("{behavior:?}");
    let (_, value) = printed.split_once(&format!(" {field}: ")).unwrap();
    let value = value.split([',', ' ']).next().unwrap();
    let assignment = format!("behavior.{field} = ");
    let written = body.split(&assignment).skip(1).filter_map(|rest| rest.split([',', ';']).next());
    written.map(|word| word.rsplit("::").next().unwrap_or(word)).any(|word| {
        match word.strip_prefix("secs(") {
            Some(seconds) => seconds.replace(')', "s") == value,
            None => word == value,
        }
    })
}

#[test]
fn every_requirement_has_exactly_one_row() {
    let wanted: BTreeMap<_, _> = REQUIREMENTS
        .iter()
        .flat_map(|(rfc, ids)| ids.split_whitespace().map(move |id| (*rfc, id)))
        .map(|(rfc, id)| (format!("{rfc} {}", id.trim_end_matches('*')), id.ends_with('*')))
        .collect();
    let mut found = BTreeMap::new();
    for row in rows() {
        assert!(wanted.contains_key(&row.name()), "there is no {}", row.name());
        assert_eq!(found.insert(row.name(), row.starred), None, "{} has two rows", row.name());
    }
    for (name, starred) in &wanted {
        assert!(found.contains_key(name), "{name} has no row");
        assert_eq!(found[name], *starred, "{name}: known to fail in the field (⚙)?");
    }
}

#[test]
fn every_row_says_how_things_stand() {
    for row in rows() {
        let (name, status) = (row.name(), row.status);
        for (what, cell) in [("asks", row.asks), ("real NATs", row.field)] {
            assert!(!cell.is_empty(), "{name}: {what}");
        }
        if status.starts_with("kept") {
            assert!(row.tests().count() > 0, "{name} is kept: which test shows it?");
            assert!(quoted(row.code).count() > 0, "{name} is kept: where?");
            continue;
        }
        assert!(!status.starts_with("not yet") || OPEN.contains(&&*name), "{name} is not kept");
        let reason = ["not yet: ", "not applicable: "].iter().find_map(|word| status.strip_prefix(word));
        assert!(reason.is_some_and(|reason| reason.len() > 10), "{name}: {status:?} says nothing");
    }
}

#[test]
fn every_named_test_exists() {
    for row in rows() {
        for (path, test) in row.tests() {
            let source = file("natbox/core/tests", path);
            let source = source.unwrap_or_else(|| panic!("{} names {path}, which is not there", row.name()));
            assert!(
                tests_of(&source).contains_key(test),
                "{} names {path}::{test}, which is not there",
                row.name()
            );
        }
    }
}

/// The page forgets no test of a requirement.
#[test]
fn every_test_of_a_requirement_is_named() {
    let rows = rows();
    for path in REQUIREMENT_TESTS {
        let source = file("natbox/core/tests", path).unwrap();
        let tests = tests_of(&source);
        assert!(!tests.is_empty(), "{path}");
        for test in tests.keys() {
            let named = rows.iter().any(|row| row.tests().any(|named| named == (path, *test)));
            assert!(named, "no row names {path}::{test}");
        }
    }
}

#[test]
fn every_named_place_in_the_code_exists() {
    for row in rows() {
        for place in quoted(row.code) {
            let (path, item) = place.split_once("::").unwrap_or((place, ""));
            let source = file("natbox/core/src", path);
            let source = source.unwrap_or_else(|| panic!("{} names {path}, which is not there", row.name()));
            assert!(source.contains(item), "{} names {place}, which is not there", row.name());
        }
    }
}

/// A switch is a value of an axis, other than what the RFCs ask for, and a test of the row runs its body with it.
#[test]
fn every_switch_violates_its_requirement_in_a_test() {
    for row in rows() {
        let name = row.name();
        assert!(
            !row.starred || OPEN.contains(&&*name) || row.switches().next().is_some(),
            "{name} fails in the field: which switch violates it?"
        );
        let sources: Vec<_> =
            row.tests().filter_map(|(path, test)| Some((file("natbox/core/tests", path)?, test))).collect();
        for (axis, value) in row.switches() {
            let known = Axis::by_name(axis).unwrap_or_else(|| panic!("{name}: there is no axis {axis}"));
            let mut behavior = Behavior::RFC;
            known.set(&mut behavior, value).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_ne!(behavior, Behavior::RFC, "{name}: {axis}={value} is what the RFCs ask for");

            let field = axis.replace('-', "_");
            let runs = sources.iter().any(|(source, test)| {
                let tests = tests_of(source);
                tests
                    .get(test)
                    .is_some_and(|body| body.contains("violated(") && sets(body, &field, &behavior))
            });
            assert!(runs, "{name}: no test of it runs with {axis}={value}");
        }
    }
}

/// Each quirk of docs/field.md is a value of an axis, with a report and a test, and just the presets named have it.
#[test]
fn every_quirk_is_a_switch_with_a_report_and_a_test() {
    let rows = FIELD.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [quirk, switch, presets, report, tests] = cells[..] else { panic!("five cells, please: {row}") };
        assert!(report.len() > 10, "{quirk}: where is it known from?");
        let (name, value) = quoted(switch).next().unwrap().split_once('=').unwrap();
        let axis = Axis::by_name(name).unwrap_or_else(|| panic!("{quirk}: there is no axis {name}"));
        let mut behavior = Behavior::RFC;
        axis.set(&mut behavior, value).unwrap();
        assert_ne!(behavior, Behavior::RFC, "{quirk}: {switch} is what the RFCs ask for");
        let having = PRESETS.iter().filter(|preset| axis.get(&preset.behavior()) == axis.get(&behavior));
        let having: Vec<_> = having.map(|preset| preset.name).collect();
        let named: Vec<_> = quoted(presets).collect();
        assert_eq!(named, having, "{quirk}: the presets that have it");
        for test in quoted(tests) {
            let (path, test) = test.split_once("::").unwrap();
            let source = file("natbox/core/tests", path);
            let source = source.unwrap_or_else(|| panic!("{quirk} names {path}, which is not there"));
            assert!(tests_of(&source).contains_key(test), "{quirk} names {path}::{test}, which is not there");
        }
    }
}
