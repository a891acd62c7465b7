//! What befalls two peers that are connected: shared and nested NATs, rebinding, black holes, short-lived mappings.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod peer_world;

use std::{net::Ipv4Addr, time::Duration};

use natbox_sim::{Conditions, NatConfig, Rebind};
use peer_world::*;
use traversal_proto::peer::{Config, Event, Hop, PeerKey, Why};

const RTT: Duration = Duration::from_millis(40);
const EASY: &str = "mapping=eim filtering=apdf ports=random";

fn link() -> Conditions {
    Conditions::delayed(ms(10))
}

fn direct_pair(seed: u64, axes: &str) -> (World, [natbox_sim::NatId; 2]) {
    let nat = behavior(axes);
    let (mut world, nats) = World::pair(seed, [&nat, &nat], link(), &Config::default());
    world.sim.run_for(ms(4000));
    world.connect(0, 1, RTT);
    assert!(world.run_until_direct(0, 1, ms(3000)), "seed {seed}{}", world.story());
    world.stream(0, 1, ms(20));
    world.sim.run_for(ms(3000));
    (world, nats)
}

/// Two hosts of one network need no hairpinning: they reach each other within it.
#[test]
fn behind_one_nat() {
    for hairpin in ["off", "internal", "external"] {
        let mut world = World::new(1, Conditions::PERFECT);
        let nat = behavior(&format!("{EASY} hairpin={hairpin}"));
        let nat = NatConfig { link: link().into(), ..NatConfig::new(nat) };
        let nat = world.sim.net.add_nat(INTERNET, nat).unwrap();
        for _ in 0..2 {
            world.add_peer(nat, Conditions::PERFECT, &Config::default());
        }
        world.sim.run_for(ms(4000));
        world.connect(0, 1, ms(20));
        assert!(world.run_until_direct(0, 1, ms(2000)), "hairpin={hairpin}");
        world.sim.run_for(ms(1000));
        let Hop::Direct { to, .. } = world.peer(0).agent.route(PeerKey(1)).unwrap().primary else { panic!() };
        assert!(matches!(to.ip(), std::net::IpAddr::V4(ip) if ip.is_private()), "{to}, hairpin={hairpin}");
    }
}

/// Two homes of one carrier see each other only if the carrier's NAT hairpins.
#[test]
fn two_homes_behind_one_carrier() {
    for (hairpin, expected) in [("off", false), ("internal", false), ("external", true)] {
        let mut world = World::new(2, Conditions::PERFECT);
        let carrier = behavior(&format!("mapping=eim filtering=apdf ports=random hairpin={hairpin}"));
        let carrier = NatConfig { link: link().into(), ..NatConfig::carrier(carrier) };
        let carrier = world.sim.net.add_nat(INTERNET, carrier).unwrap();
        for _ in 0..2 {
            let home = world.sim.net.add_nat(carrier, NatConfig::new(behavior(EASY))).unwrap();
            world.add_peer(home, Conditions::PERFECT, &Config::default());
        }
        world.sim.run_for(ms(4000));
        world.connect(0, 1, ms(20));
        assert_eq!(world.run_until_direct(0, 1, ms(5000)), expected, "hairpin={hairpin}");
        let gave_up = |event: &Event| match event {
            Event::GaveUp { same_nat, .. } => Some(*same_nat),
            _ => None,
        };
        let told = world.peer(0).events.iter().find_map(|(_, event)| gave_up(event));
        assert_eq!(told, (!expected).then_some(true), "hairpin={hairpin}");
    }
}

/// A home behind a carrier, and a home of another provider's.
#[test]
fn double_nat() {
    for seed in 0..20 {
        let mut world = World::new(seed, Conditions::PERFECT);
        let carrier = NatConfig { link: link().into(), ..NatConfig::carrier(behavior(EASY)) };
        let carrier = world.sim.net.add_nat(INTERNET, carrier).unwrap();
        let nested = world.sim.net.add_nat(carrier, NatConfig::new(behavior(EASY))).unwrap();
        let plain = NatConfig { link: link().into(), ..NatConfig::new(behavior(EASY)) };
        let plain = world.sim.net.add_nat(INTERNET, plain).unwrap();
        world.add_peer(nested, Conditions::PERFECT, &Config::default());
        world.add_peer(plain, Conditions::PERFECT, &Config::default());
        world.sim.run_for(ms(4000));
        world.connect(0, 1, RTT);
        assert!(world.run_until_direct(0, 1, ms(3000)), "seed {seed}");
    }
}

/// Each side has a path to send by, not the same pair, and data flows directly both ways.
#[test]
fn a_pair_of_one_way_paths() {
    for kinds in [["apdm/eif", "apdm/adf"], ["apdm/eif", "apdm/eif"]] {
        let nats = kinds.map(|kind| {
            let (mapping, filtering) = kind.split_once('/').unwrap();
            behavior(&format!("mapping={mapping} filtering={filtering} ports=random"))
        });
        let (mut world, _) = World::pair(7, [&nats[0], &nats[1]], link(), &Config::default());
        world.sim.run_for(ms(4000));
        world.connect(0, 1, RTT);
        assert!(world.run_until_direct(0, 1, ms(3000)), "{kinds:?}");
        world.stream(0, 1, ms(20));
        world.sim.run_for(ms(60_000));
        for (at, from) in [(0, 1), (1, 0)] {
            let stream = &world.peer(at).streams[&from];
            let unknown = world.peer(at).unknown;
            assert!(
                stream.direct >= 2990 && stream.relayed == 0 && unknown == 0,
                "{kinds:?}: direct {}, relayed {}, unknown {unknown}{}",
                stream.direct,
                stream.relayed,
                world.story()
            );
        }
        assert_eq!(world.peer(0).agent.counters().paths_lost, 0);
    }
}

/// A path that swallows everything is doubted after three packets that do not come: the next ones go by the relay as
/// well. It is left within a second, and taken again once it is open.
#[test]
fn black_hole() {
    let mut worst = Duration::ZERO;
    for seed in 0..30 {
        let (mut world, nats) = direct_pair(seed, EASY);
        let ends = nats.map(|nat| world.sim.net.external(nat)[0]);
        let start = world.now();
        let block = |world: &mut World, is_blocked| {
            let now = world.sim.now();
            world.sim.net.set_blocked(ends[0], ends[1], is_blocked, now);
            world.sim.net.set_blocked(ends[1], ends[0], is_blocked, now);
        };
        block(&mut world, true);
        assert!(world.run_until_relayed(0, 1, ms(3000)), "seed {seed}{}", world.story());
        let left = world.now().since(start);
        assert!(left <= ms(1100), "seed {seed}: left after {left:?}");
        world.sim.run_for(ms(5000));
        worst = worst.max(*world.gaps(0, 1).iter().max().unwrap());
        block(&mut world, false);
        assert!(world.run_until_direct(0, 1, ms(30_000)), "seed {seed}: never direct again{}", world.story());
    }
    println!("black_hole {worst:?}");
    assert!(worst <= ms(120), "{worst:?} without data");
}

/// One direction dies, at any time between two checks of the path, which are half a second apart: only who sends that way
/// leaves.
#[test]
fn one_way_black_hole() {
    let mut worst = Duration::ZERO;
    for phase in 0..25 {
        let (mut world, nats) = direct_pair(3, EASY);
        let ends = nats.map(|nat| world.sim.net.external(nat)[0]);
        world.sim.run_for(ms(20) * phase);
        let now = world.sim.now();
        world.sim.net.set_blocked(ends[0], ends[1], true, now);
        world.sim.run_for(ms(5000));
        assert!(!world.is_direct(0, 1));
        worst = worst.max(*world.gaps(0, 1).iter().max().unwrap());
    }
    println!("one_way_black_hole {worst:?}");
    assert!(worst <= ms(620), "{worst:?}");
}

/// The NAT forgets its ports, or gets another address, in mid-stream.
#[test]
fn rebinding() {
    for what in [Rebind::Ports, Rebind::Addresses, Rebind::Both] {
        let (mut worst_gap, mut worst_return) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..30 {
            let (mut world, nats) = direct_pair(seed, EASY);
            let now = world.sim.now();
            world.sim.net.rebind(nats[0], what, now).unwrap();
            let start = world.now();
            world.sim.run_for(ms(700));
            assert!(world.run_until_direct(0, 1, ms(20_000)), "{what:?}, seed {seed}{}", world.story());
            worst_return = worst_return.max(world.now().since(start));
            world.sim.run_for(ms(3000));
            assert!(world.is_direct(0, 1) && world.is_direct(1, 0), "{what:?}, seed {seed}");
            worst_gap = worst_gap.max(*world.gaps(0, 1).iter().max().unwrap());
        }
        println!("{what:?}: gap {worst_gap:?}, direct again after {worst_return:?}");
        assert!(worst_gap <= ms(700), "{what:?}: {worst_gap:?} without data");
        assert!(worst_return <= ms(5000), "{what:?}: {worst_return:?} until direct");
    }
}

/// Behind a NAT that lets everybody in, a peer that shows up at another port is followed at once, without the relay.
#[test]
fn a_peer_that_moves_is_followed() {
    for seed in 0..10 {
        let (mut world, nats) = direct_pair(seed, "mapping=eim filtering=eif ports=random");
        let now = world.sim.now();
        world.sim.net.rebind(nats[0], Rebind::Ports, now).unwrap();
        world.sim.run_for(ms(3000));
        let moved = |(_, event): &(_, Event)| matches!(event, Event::Switched { why: Why::Moved, .. });
        assert!(world.peer(1).events.iter().any(moved), "seed {seed}{}", world.story());
        assert!(world.gaps(0, 1).iter().all(|gap| *gap <= ms(300)), "seed {seed}: {:?}", world.gaps(0, 1));
    }
}

/// A mapping lives for a minute, however busy: for ten minutes there is always a way, and nearly always a direct one.
#[test]
fn mappings_that_die_young() {
    for axes in [EASY, "mapping=eim filtering=eif ports=random"] {
        let (mut world, _) = direct_pair(9, &format!("{axes} mapping-lifetime=60s"));
        world.sim.run_for(ms(600_000));
        let gaps = world.gaps(0, 1);
        for (at, from) in [(0, 1), (1, 0)] {
            let stream = &world.peer(at).streams[&from];
            let sent = world.peer(from as usize).streams[&(at as u8)].sent as usize;
            println!(
                "{axes}: gap {gaps:?}, received {} of {sent}, direct {}",
                stream.received(),
                stream.direct
            );
            assert!(stream.received() * 100 >= sent * 97, "{} of {sent}", stream.received());
            assert!(stream.direct as usize * 100 >= sent * 90, "{} of {sent}", stream.direct);
        }
        assert!(gaps.iter().all(|gap| *gap <= ms(800)), "{gaps:?}");
    }
}

/// A few percent of loss neither break a path nor make it flap.
#[test]
fn loss_is_not_death() {
    let mut lost = 0;
    for seed in 0..20 {
        let nat = behavior(EASY);
        let link = Conditions { loss: 0.025, jitter: ms(5), ..link() };
        let (mut world, _) = World::pair(seed, [&nat, &nat], link, &Config::default());
        world.sim.run_for(ms(4000));
        world.connect(0, 1, RTT);
        assert!(world.run_until_direct(0, 1, ms(5000)), "seed {seed}");
        world.stream(0, 1, ms(20));
        world.sim.run_for(ms(120_000));
        lost += (0..2).map(|at| world.peer(at).agent.counters().switches - 1).sum::<u64>();
    }
    // 40 ends, two minutes each.
    assert!(lost <= 12, "{lost} needless switches");
}

/// A host that goes to another network has its connections back at once over the relay, and directly soon after.
#[test]
fn roaming() {
    for seed in 0..10 {
        let (mut world, _) = direct_pair(seed, EASY);
        let nat = NatConfig { link: link().into(), ..NatConfig::new(behavior(EASY)) };
        let nat = NatConfig { gateway: Ipv4Addr::new(192, 168, 7, 1), ..nat };
        let elsewhere = world.sim.net.add_nat(INTERNET, nat).unwrap();
        let (host, now) = (world.peers[0], world.sim.now());
        world.sim.net.move_host(host, elsewhere, Conditions::PERFECT, now).unwrap();
        let ip = world.sim.net.address(host).unwrap();
        world.with(0, |peer, now| peer.move_to(ip, now));
        world.sim.run_for(ms(700));
        assert!(world.run_until_direct(0, 1, ms(5000)), "seed {seed}{}", world.story());
        world.sim.run_for(ms(3000));
        assert!(world.is_direct(0, 1) && world.is_direct(1, 0), "seed {seed}");
        assert!(world.gaps(0, 1).iter().all(|gap| *gap <= ms(1000)), "seed {seed}: {:?}", world.gaps(0, 1));
    }
}
