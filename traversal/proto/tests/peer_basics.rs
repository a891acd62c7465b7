//! Two agents on a simulated internet: how fast, how many sockets, which policy.

mod peer_world;

use natbox_sim::Conditions;
use peer_world::*;
use traversal_proto::peer::{Config, Event, PeerKey, Policy};

fn link() -> Conditions {
    Conditions::delayed(ms(10))
}

#[test]
fn two_plain_nats_are_direct_within_two_and_a_half_round_trips() {
    for seed in 0..20 {
        let nat = behavior("mapping=eim filtering=apdf ports=random");
        let (mut world, _) = World::pair(seed, [&nat, &nat], link(), &Config::default());
        world.sim.run_for(ms(3000));
        let start = world.now();
        world.connect(0, 1, ms(40));
        assert!(world.run_until_direct(0, 1, ms(3000)), "{:?}", world.peer(0).agent.counters());
        // One and a half until both know that the other has their candidates, one for the checks.
        assert!(world.now().since(start) <= ms(110), "{:?}{}", world.now().since(start), world.story());
    }
}

/// A gateway that takes strays itself would give the tuple away: no check is sent before the peer has opened its gateway,
/// however far the relay is thought to be; and what opens a gateway does not reach the peer's.
#[test]
fn no_check_comes_before_the_opener() {
    for seed in 0..50 {
        let nat = behavior("mapping=eim filtering=apdf ports=random");
        let (mut world, nats) = World::pair(seed, [&nat, &nat], link(), &Config::default());
        world.sim.run_for(ms(1000 + seed * 50));
        world.connect(0, 1, ms(40));
        for at in 0..2 {
            world.with(at, |peer, now| {
                peer.agent.handle_relay(PeerKey(1 - at as u32), true, Some(ms(1)), now)
            });
        }
        assert!(world.run_until_direct(0, 1, ms(3000)));
        let gateways = nats.map(|nat| world.sim.net.external(nat)[0]);
        let first = |from: usize, is_wanted: fn(Option<u8>) -> bool| {
            let sent = world.peer(from).transmits.iter();
            let mut times = sent.filter(|(_, to, hops)| to.ip() == gateways[1 - from] && is_wanted(*hops));
            times.next().map(|(time, ..)| *time)
        };
        for (ours, theirs) in [(0, 1), (1, 0)] {
            let (opened, checked) = (first(theirs, |_| true), first(ours, |hops| hops.is_none()));
            assert!(opened.unwrap() <= checked.unwrap(), "seed {seed}{}", world.story());
        }
        assert!([0, 1].iter().any(|at| first(*at, |hops| hops == Some(2)).is_some()));
    }
}

/// Two gateways whose own stacks take strays: a check that came too early would have another port given to the peer's.
#[test]
fn gateways_that_take_strays() {
    for (link, name) in [(Conditions::PERFECT, "at once"), (link(), "10 ms")] {
        for seed in 0..50 {
            let nat = behavior(
                "mapping=apdm filtering=apdf ports=preserve-or-random overloading=on unsolicited=occupy",
            );
            let (mut world, _) = World::pair(seed, [&nat, &nat], link, &Config::default());
            world.sim.run_for(ms(500 + seed * 50));
            world.connect(0, 1, ms(40));
            assert!(world.run_until_direct(0, 1, ms(500)), "seed {seed}, {name}{}", world.story());
        }
    }
}

/// Candidates that are known late are told late, and it works all the same.
#[test]
fn connecting_at_once() {
    for seed in 0..20 {
        let nat = behavior("mapping=eim filtering=apdf ports=random");
        let (mut world, _) = World::pair(seed, [&nat, &nat], link(), &Config::default());
        world.connect(0, 1, ms(40));
        assert!(world.run_until_direct(0, 1, ms(2000)), "seed {seed}");
    }
}

/// Each socket of each is tried with each of the other's, the best pairs are kept, and a socket that breaks costs no
/// more than its own path.
#[test]
fn three_sockets_each() {
    let nat = behavior("mapping=eim filtering=apdf ports=random");
    let (mut world, _) =
        World::pair(3, [&nat, &nat], link(), &Config { extra_sockets: 2, ..Config::default() });
    world.sim.run_for(ms(3000));
    assert_eq!(world.peer(0).agent.candidates().len(), 6, "{:?}", world.peer(0).agent.candidates());
    world.connect(0, 1, ms(40));
    assert!(world.run_until_direct(0, 1, ms(3000)));
    world.sim.run_for(ms(5000));
    let paths: Vec<_> = world.peer(0).agent.paths(traversal_proto::peer::PeerKey(1)).collect();
    assert!(paths.iter().filter(|path| path.works).count() >= 3, "{paths:?}");
    let selected = paths.iter().find(|path| path.is_selected).unwrap().hop;
    let traversal_proto::peer::Hop::Direct { socket, .. } = selected else { panic!("{selected:?}") };
    world.with(0, |peer, now| peer.agent.handle_socket_closed(socket, now));
    assert!(world.is_direct(0, 1), "another socket takes over at once");
}

#[test]
fn relay_only_tells_and_probes_nothing() {
    let nat = behavior("mapping=eim filtering=eif");
    let (mut world, _) = World::pair(4, [&nat, &nat], link(), &Config::default());
    world.sim.run_for(ms(3000));
    world.connect_with(0, 1, ms(40), [Policy::RelayOnly, Policy::PreferDirect]);
    world.sim.run_for(ms(10_000));
    assert!(!world.is_direct(0, 1) && !world.is_direct(1, 0));
    assert_eq!((world.peer(0).agent.counters().probes, world.peer(1).agent.counters().probes), (0, 0));
    let told = |(_, event): &(_, Event)| matches!(event, Event::Candidates { told: 0, .. });
    assert!(world.peer(1).events.iter().any(told));
    // It changes its mind.
    world.with(0, |peer, now| {
        peer.agent.set_policy(traversal_proto::peer::PeerKey(1), Policy::PreferDirect, now);
    });
    assert!(world.run_until_direct(0, 1, ms(2000)));
}

/// A pair that needs a port to be found is given up for now, with both NATs in the explanation, and tried again later
/// and later.
#[test]
fn giving_up_for_now() {
    let nat = behavior("mapping=apdm filtering=apdf ports=random");
    let (mut world, _) = World::pair(5, [&nat, &nat], link(), &Config::default());
    world.sim.run_for(ms(4000));
    world.connect(0, 1, ms(40));
    world.sim.run_for(ms(400_000));
    let mut pauses = Vec::new();
    for (_, event) in &world.peer(0).events {
        if let Event::GaveUp { ours, theirs, retry_in, .. } = event {
            assert_eq!(ours.mapping, theirs.mapping);
            assert!(ours.mapping.is_some());
            pauses.push(*retry_in);
        }
    }
    assert!((6..=14).contains(&pauses.len()), "{pauses:?}");
    assert!(pauses.iter().all(|pause| (ms(700)..=ms(75_000)).contains(pause)), "{pauses:?}");
    assert!(pauses.last() > pauses.first());
    let rounds = world.peer(1).agent.counters().rounds;
    assert!(rounds.abs_diff(world.peer(0).agent.counters().rounds) <= 1, "both search at the same time");
}

/// Once direct and idle, next to nothing is sent.
#[test]
fn idle_paths_are_quiet() {
    let nat = behavior("mapping=eim filtering=apdf ports=random");
    let (mut world, _) = World::pair(6, [&nat, &nat], link(), &Config::default());
    world.sim.run_for(ms(3000));
    world.connect(0, 1, ms(40));
    assert!(world.run_until_direct(0, 1, ms(2000)));
    world.sim.run_for(ms(10_000));
    let before = world.peer(0).transmits.len();
    world.sim.run_for(ms(600_000));
    let sent = world.peer(0).transmits.len() - before;
    // In ten minutes: 120 checks and as many answers, and 24 questions to each of two reflectors.
    assert!((150..=420).contains(&sent), "{sent}");
    assert!(world.is_direct(0, 1) && world.peer(0).agent.counters().paths_lost == 0);
}
