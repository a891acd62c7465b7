//! Which pairs of NATs can be connected by simultaneous probing, and what the others take: every unordered pair of
//! mapping and filtering, against reviewed tables. `NATBOX_SIM_UPDATE=1 cargo test -p natbox-sim --test matrix` writes
//! the tables anew.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::fmt::Write;

use common::{
    behavior,
    punch::{Scene, Verdict},
};

const KINDS: [&str; 9] =
    ["eim/eif", "eim/adf", "eim/apdf", "adm/eif", "adm/adf", "adm/apdf", "apdm/eif", "apdm/adf", "apdm/apdf"];
const SEEDS: u64 = 5;

/// The table for NATs that have `axes` in common, and how many pairs got each verdict.
fn table(axes: &str) -> (String, [usize; 4]) {
    let behaviors = KINDS.map(|kind| {
        let (mapping, filtering) = kind.split_once('/').unwrap();
        behavior(&format!("mapping={mapping} filtering={filtering} {axes}"))
    });
    let mut text = format!("{axes}\n\n{:10}", "");
    KINDS.iter().for_each(|kind| write!(text, " {kind:>9}").unwrap());
    text.push('\n');
    let mut counts = [0; 4];
    for (row, a) in behaviors.iter().enumerate() {
        write!(text, "{:10}", KINDS[row]).unwrap();
        for b in &behaviors[..=row] {
            let verdicts: Vec<_> = (0..SEEDS).map(|seed| Scene::verdict(seed, [a, b])).collect();
            let same = verdicts.iter().all(|verdict| *verdict == verdicts[0]);
            assert!(same, "{} towards {b:?} depends on the seed: {verdicts:?}", KINDS[row]);
            counts[verdicts[0] as usize] += 1;
            let word = match verdicts[0] {
                Verdict::Plain => "plain",
                Verdict::TwoPaths => "two-paths",
                Verdict::OneSide => "one-side",
                Verdict::BothSides => "both",
            };
            write!(text, " {word:>9}").unwrap();
        }
        text.push('\n');
    }
    let [plain, two_paths, one_side, both] = counts;
    write!(text, "\nplain {plain}, two-paths {two_paths}, one-side {one_side}, both {both}\n").unwrap();
    (text, counts)
}

#[expect(clippy::disallowed_methods, reason = "a test may write its snapshot")]
fn compare(name: &str, reviewed: &str, actual: &str) {
    if std::env::var("NATBOX_SIM_UPDATE").is_ok() {
        let path = format!("{}/tests/snapshots/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, actual).unwrap();
        return;
    }
    assert_eq!(actual, reviewed, "tests/snapshots/{name}.txt differs:\n{actual}");
}

/// 23 plain, 13 one-sided, 9 two-sided, of which two are direct for whoever can use a pair of paths: 25.
#[test]
fn random_ports() {
    let (text, counts) = table("ports=random");
    compare("matrix-random", include_str!("snapshots/matrix-random.txt"), &text);
    assert_eq!(counts, [23, 2, 13, 7]);
}

/// A filter that opens all mappings of an endpoint at once lets two more pairs through. It also spares one side of
/// ADM/APDF × APDM/ADF, which hears the other on its old mapping: two-sided no more.
#[test]
fn filter_state_per_endpoint() {
    let (text, counts) = table("ports=random filter-scope=endpoint");
    compare("matrix-endpoint-scope", include_str!("snapshots/matrix-endpoint-scope.txt"), &text);
    assert_eq!(counts, [25, 3, 12, 5]);
}

/// Where a port is preserved and shared among destinations, every mapping behaves as endpoint-independent.
#[test]
fn preserved_ports() {
    let (text, counts) = table("ports=preserve overloading=on");
    compare("matrix-preserve", include_str!("snapshots/matrix-preserve.txt"), &text);
    assert_eq!(counts, [45, 0, 0, 0]);
}
