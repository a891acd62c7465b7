//! The population program's engine, in small: every attempt ends as its NATs allow, and threads change nothing.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

#[path = "../examples/population/engine/mod.rs"]
mod engine;

use engine::{
    Run, attempt,
    ideal::Expected,
    mix::{BUILT_IN, Mix},
    table,
    tally::Tally,
};

fn run(mix: &Mix, expected: &Expected, attempts: u64, threads: usize) -> Tally {
    Run { mix, expected, seed: 7, attempts, threads }.run(|_| true)
}

#[test]
fn every_attempt_ends_as_its_nats_allow() {
    for (name, text) in BUILT_IN {
        let mix = Mix::parse(text).unwrap();
        let expected = Expected::new(&mix).unwrap();
        let tally = run(&mix, &expected, 300, 2);
        assert_eq!(tally.all.total(), 300);
        assert_eq!(tally.all.not_connected, 0, "{name}:\n{}", table::text(&mix, &tally));
        assert!(tally.surprises.is_empty(), "{name}:\n{}", table::text(&mix, &tally));
        assert!(tally.all.direct > 0 && tally.direct.quantile(0.5) >= Some(1.0));
    }
}

#[test]
fn threads_change_nothing() {
    let mix = Mix::load("measured").unwrap();
    let expected = Expected::new(&mix).unwrap();
    let one = run(&mix, &expected, 300, 1);
    let two = run(&mix, &expected, 300, 2);
    assert_eq!(one, two);
    assert_eq!(table::text(&mix, &one), table::text(&mix, &two));
    assert_ne!(one, Run { mix: &mix, expected: &expected, seed: 8, attempts: 300, threads: 1 }.run(|_| true));
}

#[test]
fn an_attempt_plays_again() {
    let mix = Mix::load("measured").unwrap();
    let expected = Expected::new(&mix).unwrap();
    let seed = engine::attempt_seed(7, 3);
    let first = attempt::run(&mix, &expected, seed);
    let (again, story) = attempt::replay(&mix, &expected, seed).unwrap();
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
    assert!(story.contains("peer 0") && story.contains("peer 1"), "{story}");
}

/// The ideal peers are the judges: for the 45 pairs of the matrix they say what docs/matrix.md says.
#[test]
fn ideal_peers_agree_with_the_matrix() {
    let kinds: String = ["eim", "adm", "apdm"]
        .iter()
        .flat_map(|mapping| ["eif", "adf", "apdf"].map(|filtering| (mapping, filtering)))
        .map(|(mapping, filtering)| {
            format!(
                "[[kind]]\nname = \"{mapping}/{filtering}\"\nshare = 1\n\
                 nats = [\"mapping={mapping} filtering={filtering} ports=random\"]\n"
            )
        })
        .collect();
    let mix = Mix::parse(&format!("{HEAD}{kinds}")).unwrap();
    let expected = Expected::new(&mix).unwrap();
    let (mut direct, apart) = (0, engine::topology::Relation::Apart);
    for a in 0..9 {
        for b in 0..=a {
            assert_eq!(expected.is_direct([a, b], apart), expected.is_direct([b, a], apart));
            direct += u32::from(expected.is_direct([a, b], apart));
        }
    }
    assert_eq!(direct, 25);
}

const HEAD: &str = "about = \"a test\"\n\
    access = { delay = [1, 2, 3, 4], jitter = [0, 0, 0, 0], loss = [0, 0, 0, 0] }\n\
    supernode-delay = [1, 1, 1, 1]\nsame-nat = 0\nsame-carrier = 0\nfresh = 0\n";

#[test]
fn mistakes_in_a_mix_are_told() {
    let kind = |nat: &str, share: &str| {
        format!("{HEAD}[[kind]]\nname = \"mine\"\nshare = {share}\nnats = [\"{nat}\"]\n")
    };
    let told = |text: &str| match Mix::parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => format!("{error:#}"),
    };
    assert!(told(&kind("round", "1")).contains("kind mine: \"round\" in \"round\": a preset (rfc, linux"));
    assert!(told(&kind("mapping=round", "1")).contains("round"));
    assert!(told(&kind("linux", "-1")).contains("shares must not be negative"));
    assert!(told(HEAD).contains("kind"));
    assert!(told(&kind("linux", "1").replace("[1, 2, 3, 4]", "[2, 1, 3, 4]")).contains("delay = [2.0, 1.0"));
    assert!(told(&kind("linux", "1").replace("fresh = 0", "fresh = 2")).contains("fresh = 2"));
    assert!(told(&kind("linux", "1").replace("fresh", "frsh")).contains("frsh"));
}
