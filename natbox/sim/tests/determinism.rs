//! One seed decides everything, and nothing else does.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::time::Duration;

use common::{at, behavior, ms, punch::Scene};
use natbox_sim::{Captured, Conditions, Rebind, Tap, Time, for_each_seed};

const WILD: Conditions = Conditions {
    delay: Duration::from_millis(15),
    jitter: Duration::from_millis(10),
    loss: 0.05,
    duplicate: 0.02,
    reorder: 0.05,
    rate: Some(1_000_000),
    ..Conditions::PERFECT
};

/// A run with everything random in it; its digest and its trace in words.
fn run(seed: u64, step: impl Fn(&mut Scene, Time)) -> (u64, Vec<String>) {
    let nat = behavior("mapping=apdm filtering=adf ports=random");
    let mut scene = Scene::new(seed, [&nat, &nat], WILD);
    let tap = scene.sim.net.tap(Tap::Everything, 100_000);
    scene.probe();
    scene.sim.net.rebind(scene.nats[0], Rebind::Both, scene.sim.now()).unwrap();
    step(&mut scene, at(5_000));
    assert_eq!(scene.sim.net.forgotten(tap), 0);
    for host in scene.hosts {
        scene.sim.remove_node(host);
    }
    scene.sim.run_until(Time::NEVER);
    assert_eq!(scene.sim.net.in_flight(), 0, "every packet's buffer is given back");
    let trace = scene.sim.net.captured(tap).map(|captured: Captured<'_>| captured.to_string()).collect();
    (scene.sim.net.digest(), trace)
}

fn straight(seed: u64) -> (u64, Vec<String>) {
    run(seed, |scene, until| scene.sim.run_until(until))
}

#[test]
fn the_same_seed_is_the_same_run() {
    for_each_seed(0..10, |seed| {
        let (first, second) = (straight(seed), straight(seed));
        assert!(first.1.len() > 500, "something happens: {} lines", first.1.len());
        assert_eq!(first, second);
    });
}

#[test]
fn another_seed_is_another_run() {
    let mut digests: Vec<u64> = (0..50).map(|seed| straight(seed).0).collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 50);
}

/// How often somebody looks changes nothing.
#[test]
fn the_length_of_steps_does_not_matter() {
    let once = straight(1);
    let often = run(1, |scene, until| {
        while scene.sim.now() < until {
            scene.sim.run_for(ms(1));
            scene.sim.run_until_true(until.min(scene.sim.now() + ms(7)), |_| false);
        }
    });
    assert_eq!(once, often);
}

/// A tap only listens.
#[test]
fn taps_do_not_disturb() {
    let untapped = {
        let nat = behavior("mapping=apdm filtering=adf ports=random");
        let mut scene = Scene::new(1, [&nat, &nat], WILD);
        scene.probe();
        scene.sim.net.rebind(scene.nats[0], Rebind::Both, scene.sim.now()).unwrap();
        scene.sim.run_until(at(5_000));
        for host in scene.hosts {
            scene.sim.remove_node(host);
        }
        scene.sim.run_until(Time::NEVER);
        scene.sim.net.digest()
    };
    assert_eq!(straight(1).0, untapped);
}
