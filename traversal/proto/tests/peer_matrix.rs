//! Which pairs of NATs two agents get through: every unordered pair of mapping and filtering, with loss and jitter,
//! against reviewed tables and against what the strategy expects. `TRAVERSAL_UPDATE=1 cargo test -p traversal-proto
//! --test peer_matrix` writes the tables anew.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod peer_world;

use std::{fmt::Write, time::Duration};

use natbox_sim::Conditions;
use peer_world::*;
use traversal_proto::{
    path::{
        Filtering, Mapping, NatProfile,
        strategy::{Expectation, expect},
    },
    peer::{Config, PeerKey},
};

const KINDS: [&str; 9] =
    ["eim/eif", "eim/adf", "eim/apdf", "adm/eif", "adm/adf", "adm/apdf", "apdm/eif", "apdm/adf", "apdm/apdf"];
const SEEDS: u64 = 100;
const RTT: Duration = Duration::from_millis(40);

/// 20 ms each way between two peers, give or take, and one packet in fifty lost on each of the two links.
fn link() -> Conditions {
    Conditions { jitter: ms(3), loss: 0.02, ..Conditions::delayed(ms(9)) }
}

struct Outcome {
    /// Seeds after which both have a way to each other.
    connected: usize,
    direct: Vec<Duration>,
    probes: u64,
}

fn run(kinds: [&str; 2], axes: &str) -> Outcome {
    let nats = kinds.map(|kind| {
        let (mapping, filtering) = kind.split_once('/').unwrap();
        behavior(&format!("mapping={mapping} filtering={filtering} {axes}"))
    });
    let mut outcome = Outcome { connected: 0, direct: Vec::new(), probes: 0 };
    for seed in 0..SEEDS {
        let (mut world, _) = World::pair(seed, [&nats[0], &nats[1]], link(), &Config::default());
        world.sim.run_for(ms(4000));
        let start = world.now();
        world.connect(0, 1, RTT);
        if world.run_until_direct(0, 1, ms(8000)) {
            outcome.direct.push(world.now().since(start));
        }
        let has_route = |at: usize| world.peer(at).agent.route(PeerKey(1 - at as u32)).is_some();
        outcome.connected += usize::from(has_route(0) && has_route(1));
        outcome.probes += (0..2).map(|at| world.peer(at).agent.counters().probes).sum::<u64>();
    }
    outcome.direct.sort_unstable();
    outcome
}

/// The table for NATs that have `axes` in common, and whether each pair became direct.
fn table(axes: &str) -> (String, Vec<(usize, usize, bool)>) {
    let mut text = format!("{axes}; {SEEDS} seeds, round trip 40 ms, loss 2 % a link\n\n");
    text += "pair                  connected  direct  round trips: median     p95    most  probes\n";
    let mut verdicts = Vec::new();
    for (row, a) in KINDS.iter().enumerate() {
        for (column, b) in KINDS[..=row].iter().enumerate() {
            let outcome = run([a, b], axes);
            let count = outcome.direct.len();
            assert!(count == 0 || count == SEEDS as usize, "{axes}: {a} × {b} depends on the seed: {count}");
            verdicts.push((row, column, count > 0));
            let trips = |time: Option<&Duration>| {
                time.map_or("-".into(), |time| format!("{:.1}", time.as_secs_f64() / RTT.as_secs_f64()))
            };
            let (median, p95) =
                (trips(outcome.direct.get(count / 2)), trips(outcome.direct.get(count * 95 / 100)));
            let most = trips(outcome.direct.last());
            let word = if count > 0 { "direct" } else { "relay" };
            let (connected, probes) = (outcome.connected as u64 * 100 / SEEDS, outcome.probes / SEEDS);
            let pair = format!("{a} × {b}");
            writeln!(
                text,
                "{pair:23} {connected:>5} %  {word:6} {median:>20} {p95:>7} {most:>7} {probes:>7}"
            )
            .unwrap();
        }
    }
    let direct = verdicts.iter().filter(|(.., direct)| *direct).count();
    writeln!(text, "\ndirect {direct}, relay {}", verdicts.len() - direct).unwrap();
    (text, verdicts)
}

#[expect(clippy::disallowed_methods, reason = "a test may write its snapshot")]
fn compare(name: &str, actual: &str) {
    let path = format!("{}/tests/snapshots/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var("TRAVERSAL_UPDATE").is_ok() {
        std::fs::write(path, actual).unwrap();
        return;
    }
    let reviewed = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(actual, reviewed, "tests/snapshots/{name}.txt differs:\n{actual}");
}

/// docs/matrix.md shows the verdicts beside those of the lab, in the same form; `MATRIX_UPDATE=1` writes them anew.
#[expect(clippy::disallowed_methods, reason = "a test may read and write a page of the documentation")]
fn compare_page(verdicts: &[(usize, usize, bool)]) {
    let mut text = format!("{:10}", "");
    KINDS.iter().for_each(|kind| write!(text, " {kind:>9}").unwrap());
    for (row, column, direct) in verdicts {
        if *column == 0 {
            write!(text, "\n{:10}", KINDS[*row]).unwrap();
        }
        write!(text, " {:>9}", if *direct { "direct" } else { "relay" }).unwrap();
    }
    let direct = verdicts.iter().filter(|(.., direct)| *direct).count();
    let new = format!("```\n{text}\n\ndirect {direct}, relay {}\n```\n", verdicts.len() - direct);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/matrix.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once("<!-- simulator: begin -->\n").unwrap();
    let (old, after) = rest.split_once("<!-- simulator: end -->\n").unwrap();
    if std::env::var("MATRIX_UPDATE").is_ok() {
        let page = format!("{before}<!-- simulator: begin -->\n{new}<!-- simulator: end -->\n{after}");
        std::fs::write(path, page).unwrap();
        return;
    }
    assert_eq!(old, new, "docs/matrix.md says otherwise");
    let lab = after.split_once("<!-- lab: begin -->\n").unwrap().1.split_once("<!-- lab: end -->").unwrap().0;
    assert_eq!(new, lab, "docs/matrix.md: simulator and lab differ");
}

fn profile(row: usize) -> NatProfile {
    let mapping =
        [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent][row / 3];
    let filtering =
        [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent]
            [row % 3];
    NatProfile { mapping: Some(mapping), filtering: Some(filtering), ..NatProfile::default() }
}

/// Direct exactly where no port has to be found: 25 of 45.
#[test]
fn random_ports() {
    let (text, verdicts) = table("ports=random");
    compare("peer-matrix-random", &text);
    compare_page(&verdicts);
    for (row, column, direct) in &verdicts {
        let expected = expect(&profile(*row), &profile(*column));
        assert_eq!(*direct, expected == Expectation::Plain, "{} × {}", KINDS[*row], KINDS[*column]);
    }
    assert_eq!(verdicts.iter().filter(|(.., direct)| *direct).count(), 25);
}

/// Without prediction sequential ports are as good as random ones.
#[test]
fn sequential_ports() {
    let (text, verdicts) = table("ports=sequential");
    compare("peer-matrix-sequential", &text);
    assert_eq!(verdicts.iter().filter(|(.., direct)| *direct).count(), 25);
}

/// A port that is preserved and shared among destinations makes every mapping endpoint-independent.
#[test]
fn preserved_ports() {
    let (text, verdicts) = table("ports=preserve overloading=on");
    compare("peer-matrix-preserve", &text);
    assert!(verdicts.iter().all(|(.., direct)| *direct));
}

/// What each agent finds out about its own NAT, with fresh sockets, is what the NAT is.
#[test]
fn profiles_are_found_out() {
    for (row, kind) in KINDS.iter().enumerate() {
        let (mapping, filtering) = kind.split_once('/').unwrap();
        let nat = behavior(&format!("mapping={mapping} filtering={filtering} ports=random"));
        for seed in 0..SEEDS / 5 {
            let (mut world, _) = World::pair(seed, [&nat, &nat], link(), &Config::default());
            world.sim.run_for(ms(8000));
            let found = world.peer(0).agent.profile();
            let expected = profile(row);
            assert_eq!(
                (found.mapping, found.filtering),
                (expected.mapping, expected.filtering),
                "{kind}, seed {seed}"
            );
            assert_eq!(found.translated, Some(true));
        }
    }
}
