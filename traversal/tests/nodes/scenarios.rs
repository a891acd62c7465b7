//! What befalls two nodes in the middle of a call: NATs of every shape, paths that die, networks that change.
//!
//! Both ends send a datagram and a piece of a stream every 20 ms in both directions; what is measured is the longest time
//! in which nothing came. Everything follows from a seed, which a failure names: `SEED=7 cargo test -p traversal --test
//! scenarios NAME` plays it again.

use std::{net::IpAddr, time::Duration};

use crate::common::{
    call::{Call, Silence, for_each_seed},
    scene::*,
};
use natbox_sim::{Behavior, Conditions, LinkConditions, NatConfig, NetworkId, Rebind};
use traversal::{PathEvent, PathKind};

const SOON: Duration = Duration::from_secs(20);

/// Prints the worst of what was measured.
fn worst(what: &str, silences: Vec<Silence>) -> Silence {
    let worst = Silence::worst(silences);
    println!("{what}: {worst}");
    worst
}

// ---- Shapes ----

/// Two hosts of one network reach each other within it, whatever their NAT hairpins.
#[test]
fn behind_the_same_nat() {
    for hairpin in hairpins() {
        for nat in [port_restricted(), symmetric()] {
            let nat = Behavior { hairpin, ..nat };
            for_each_seed(0..3, async |seed| {
                let scene = Scene::new(seed).await;
                let nat = scene.nat(NetworkId::INTERNET, home(nat.clone(), 15 * MS));
                let hosts = [scene.host(nat), scene.host(nat)];
                let (a, b) = (scene.node(hosts[0]).await, scene.node(hosts[1]).await);
                let call = Call::new(&a, &b).await;
                call.is_direct(SOON).await;
                let there = IpAddr::V4(scene.world.address(hosts[1]));
                assert_eq!(call.ends[0].path().remote.unwrap().ip(), there, "{hairpin:?}");
                tokio::time::sleep(3 * SECOND).await;
                assert!(call.ends[0].path().rtt.unwrap() < 10 * MS);
                call.goes_on().await;
            });
        }
    }
}

/// A home behind a carrier's NAT, and one or two such homes, of different carriers.
#[test]
fn double_nat() {
    for both in [false, true] {
        let silences = for_each_seed(0..6, async |seed| {
            let scene = Scene::new(seed).await;
            let mut nodes = Vec::new();
            for nested in [true, both] {
                let at = match nested {
                    true => scene.nat(NetworkId::INTERNET, carrier(port_restricted(), 10 * MS)).into(),
                    false => NetworkId::INTERNET,
                };
                let nat = scene.nat(at, home(port_restricted(), 5 * MS));
                nodes.push(scene.node(scene.host(nat)).await);
            }
            let call = Call::new(&nodes[0], &nodes[1]).await;
            call.is_direct(5 * SECOND).await;
            tokio::time::sleep(3 * SECOND).await;
            call.goes_on().await;
            call.silence()
        });
        let worst = worst(&format!("double NAT, both: {both}"), silences);
        assert!(worst.datagrams <= 300 * MS, "{worst}");
    }
}

/// Two homes of one carrier see each other only where the carrier's NAT hairpins as RFC 4787 REQ-9 asks; both may number
/// their networks alike. Elsewhere the relay carries them.
#[test]
fn two_homes_of_one_carrier() {
    for hairpin in hairpins() {
        let expected = hairpin == natbox_sim::natbox_core::behavior::Hairpin::External;
        for_each_seed(0..4, async |seed| {
            let scene = Scene::new(seed).await;
            let above = carrier(Behavior { hairpin, ..port_restricted() }, 10 * MS);
            let above = scene.nat(NetworkId::INTERNET, above);
            let nodes = [(); 2].map(|()| scene.host(scene.nat(above, home(port_restricted(), 5 * MS))));
            let (a, b) = (scene.node(nodes[0]).await, scene.node(nodes[1]).await);
            let call = Call::new(&a, &b).await;
            let direct = call.ends[0].wait_direct(5 * SECOND).await;
            assert_eq!(direct.is_ok(), expected, "{hairpin:?}");
            if let Ok(path) = direct {
                let external = scene.world.with(|net, _| IpAddr::V4(net.external(above)[0]));
                assert_eq!(path.remote.unwrap().ip(), external);
            }
            tokio::time::sleep(3 * SECOND).await;
            call.goes_on().await;
            assert_eq!(call.ends[0].path().kind == PathKind::Direct, expected);
        });
    }
}

/// Three sockets each: three times the mappings, one connection, and a path that outlives the loss of its mapping.
#[test]
fn three_sockets_each() {
    let silences = for_each_seed(0..6, async |seed| {
        let scene = Scene::new(seed).await;
        let mut nodes = Vec::new();
        for delay in [15 * MS, 20 * MS] {
            let nat = scene.nat(NetworkId::INTERNET, home(port_restricted(), delay));
            let host = scene.host(nat);
            let config = traversal::PathConfig { extra_sockets: 2, ..traversal::PathConfig::default() };
            nodes.push((nat, scene.builder(host).paths(config).start().await.unwrap()));
        }
        let call = Call::new(&nodes[0].1, &nodes[1].1).await;
        call.is_direct(SOON).await;
        tokio::time::sleep(30 * SECOND).await;
        call.forget();
        scene.world.with(|net, now| net.rebind(nodes[0].0, Rebind::Ports, now).unwrap());
        tokio::time::sleep(10 * SECOND).await;
        call.is_direct(SOON).await;
        call.goes_on().await;
        call.silence()
    });
    let worst = worst("three sockets, ports change", silences);
    assert!(worst.datagrams <= 600 * MS, "{worst}");
}

// ---- NATs that change ----

/// A NAT gives out other ports, another address, or both, under a call.
#[test]
fn rebinding() {
    for what in [Rebind::Ports, Rebind::Addresses, Rebind::Both] {
        for (name, nat) in [("direct", port_restricted()), ("relayed", symmetric())] {
            let silences = for_each_seed(0..5, async |seed| {
                let scene = Scene::new(seed).await;
                let [(nat_a, _, a), (nat_b, _, b)] = scene.pair([nat.clone(), nat.clone()]).await;
                let call = Call::new(&a, &b).await;
                if name == "direct" {
                    call.is_direct(SOON).await;
                }
                let mut all = Vec::new();
                for changed in [nat_a, nat_b] {
                    tokio::time::sleep(15 * SECOND + seed as u32 * 370 * MS).await;
                    call.goes_on().await;
                    call.forget();
                    scene.world.with(|net, now| net.rebind(changed, what, now).unwrap());
                    tokio::time::sleep(12 * SECOND).await;
                    if name == "direct" {
                        call.is_direct(SOON).await;
                    }
                    call.goes_on().await;
                    all.push(call.silence());
                }
                Silence::worst(all)
            });
            let worst = worst(&format!("rebinding, {what:?}, {name}"), silences);
            assert!(worst.datagrams <= 500 * MS, "{worst}");
        }
    }
}

/// Both NATs change at the same moment: every address is another one, and so is the relay's.
#[test]
fn both_rebind_at_once() {
    let silences = for_each_seed(0..5, async |seed| {
        let scene = Scene::new(seed).await;
        let [(nat_a, _, a), (nat_b, _, b)] = scene.pair([port_restricted(), port_restricted()]).await;
        let call = Call::new(&a, &b).await;
        call.is_direct(SOON).await;
        tokio::time::sleep(15 * SECOND).await;
        call.forget();
        scene.world.with(|net, now| {
            net.rebind(nat_a, Rebind::Both, now).unwrap();
            net.rebind(nat_b, Rebind::Both, now).unwrap();
        });
        tokio::time::sleep(15 * SECOND).await;
        call.is_direct(SOON).await;
        call.goes_on().await;
        call.silence()
    });
    let worst = worst("both rebind at once", silences);
    assert!(worst.datagrams <= 500 * MS, "{worst}");
}

/// Mappings end a minute after they were made, however busy they are: ten minutes of a call.
#[test]
fn mappings_that_last_a_minute() {
    let short = |nat| Behavior { mapping_lifetime: Some(60 * SECOND), ..nat };
    for (name, nat) in [("direct", short(port_restricted())), ("relayed", short(symmetric()))] {
        let silences = for_each_seed(0..2, async |seed| {
            let scene = Scene::new(seed).await;
            let [(.., a), (.., b)] = scene.pair([nat.clone(), nat.clone()]).await;
            let call = Call::new(&a, &b).await;
            tokio::time::sleep(600 * SECOND).await;
            call.goes_on().await;
            let mut share = 100;
            for (sent, came) in call.counts() {
                share = share.min(came * 100 / sent);
            }
            assert!(share >= 90, "{share} % came");
            call.silence()
        });
        let worst = worst(&format!("mappings of a minute, {name}"), silences);
        // A path is doubted after a few round trips without a packet, and the relay may have to be bound anew.
        assert!(worst.datagrams <= 900 * MS, "{worst}");
    }
}

// ---- Paths that die ----

/// The direct path swallows everything, in both directions or in one only; later it is there again.
#[test]
fn black_holes() {
    for (name, ways) in [("both", [true, true]), ("from A", [true, false]), ("from B", [false, true])] {
        let silences = for_each_seed(0..5, async |seed| {
            let scene = Scene::new(seed).await;
            let [(nat_a, _, a), (nat_b, _, b)] = scene.pair([port_restricted(), port_restricted()]).await;
            let call = Call::new(&a, &b).await;
            call.is_direct(SOON).await;
            tokio::time::sleep(10 * SECOND + seed as u32 * 130 * MS).await;
            call.forget();
            for (is_dead, (from, to)) in ways.into_iter().zip([(nat_a, nat_b), (nat_b, nat_a)]) {
                scene.lose(from, to, if is_dead { 1.0 } else { 0.0 });
            }
            tokio::time::sleep(5 * SECOND).await;
            // Who cannot send directly has left. Who can may have, too: its checks arrive, their answers do not.
            for (end, is_dead) in call.ends.iter().zip(ways) {
                assert!(!is_dead || end.path().kind == PathKind::Relay, "{name}");
            }
            call.goes_on().await;
            let silence = call.silence();
            scene.lose(nat_a, nat_b, 0.0);
            scene.lose(nat_b, nat_a, 0.0);
            call.is_direct(90 * SECOND).await;
            silence
        });
        let worst = worst(&format!("black hole, {name}"), silences);
        assert!(worst.datagrams <= 600 * MS, "{worst}");
    }
}

/// A link loses a fifth of what goes up and nothing of what comes down: direct and relayed packets alike, so the direct
/// path stays, and does not flap.
#[test]
fn a_link_that_loses_one_way() {
    let (mut switches, mut silences) = (0, Vec::new());
    for outcome in for_each_seed(0..6, async |seed| {
        let scene = Scene::new(seed).await;
        let up = Conditions { loss: 0.2, ..Conditions::delayed(15 * MS) };
        let link = LinkConditions { up, down: Conditions::delayed(15 * MS) };
        let lossy = scene.nat(NetworkId::INTERNET, NatConfig { link, ..NatConfig::new(port_restricted()) });
        let a = scene.builder(scene.host(lossy)).start_timeout(60 * SECOND).start().await.unwrap();
        let (.., b) = scene.at_home(port_restricted(), 20 * MS).await;
        let call = Call::new(&a, &b).await;
        call.is_direct(SOON).await;
        let mut events = call.ends[0].path_events();
        call.forget();
        let (mut switches, mut relayed) = (0, 0);
        for _ in 0..600 {
            tokio::time::sleep(100 * MS).await;
            relayed += u32::from(call.ends[0].path().kind == PathKind::Relay);
        }
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
            switches += u32::from(matches!(event, PathEvent::Switched { .. }));
        }
        call.goes_on().await;
        let counts = call.counts();
        assert!(counts[0].1 * 100 >= counts[0].0 * 74, "{counts:?}");
        (switches, relayed, call.silence())
    }) {
        println!("{outcome:?}");
        switches += outcome.0;
        silences.push(outcome.2);
    }
    let worst = worst("a fifth lost one way", silences);
    assert!(worst.datagrams <= 700 * MS && switches <= 12, "{worst}, {switches} switches in six minutes");
}

/// The direct path loses a fifth, or more than half, of what goes one way, and the relay nothing: data comes all the same,
/// since a path that does not answer for a moment is doubled by the relay; the other direction does not suffer.
#[test]
fn a_direct_path_that_loses_more_than_the_relay() {
    for (loss, least, most) in [(0.2, 74, 900 * MS), (0.6, 42, 5 * SECOND)] {
        let silences = for_each_seed(0..6, async |seed| {
            let scene = Scene::new(seed).await;
            let [(nat_a, _, a), (nat_b, _, b)] = scene.pair([port_restricted(), port_restricted()]).await;
            let call = Call::new(&a, &b).await;
            call.is_direct(SOON).await;
            tokio::time::sleep(5 * SECOND).await;
            scene.lose(nat_a, nat_b, loss);
            let before = call.counts();
            call.forget();
            let mut relayed = 0;
            for _ in 0..600 {
                tokio::time::sleep(100 * MS).await;
                relayed += u32::from(call.ends[0].path().kind == PathKind::Relay);
            }
            call.goes_on().await;
            let after = call.counts();
            let [a_to_b, b_to_a] =
                [0, 1].map(|at| (after[at].1 - before[at].1) * 100 / (after[at].0 - before[at].0));
            println!("loss {loss}: {a_to_b} %, {b_to_a} %, relayed {relayed} of 600");
            assert!(b_to_a >= 98, "{b_to_a} % came by the sound direction");
            assert!(a_to_b >= least, "{a_to_b} % came with a loss of {loss}");
            call.silence()
        });
        let worst = worst(&format!("direct path loses {loss} one way"), silences);
        assert!(worst.datagrams <= most, "{worst}");
    }
}

// ---- The supernode ----

/// The supernode dies and comes back with nothing in its memory.
#[test]
fn the_supernode_restarts() {
    for away in [SECOND, 10 * SECOND] {
        for (name, nat) in [("direct", port_restricted()), ("relayed", symmetric())] {
            let silences = for_each_seed(0..4, async |seed| {
                let scene = Scene::new(seed).await;
                let [(.., a), (.., b)] = scene.pair([nat.clone(), nat.clone()]).await;
                let call = Call::new(&a, &b).await;
                if name == "direct" {
                    call.is_direct(SOON).await;
                }
                tokio::time::sleep(7 * SECOND + seed as u32 * 900 * MS).await;
                call.forget();
                scene.world.kill_supernode(scene.supernode);
                tokio::time::sleep(away).await;
                let _ = scene.world.supernode(scene.supernode, 1).await;
                tokio::time::sleep(20 * SECOND).await;
                call.goes_on().await;
                let (silence, status) = (call.silence(), a.supernodes());
                assert!(status[0].registered, "{status:?}");
                drop(call);
                tokio::time::sleep(7 * SECOND).await;
                Call::new(&b, &a).await.goes_on().await;
                silence
            });
            let worst = worst(&format!("supernode away for {away:?}, {name}"), silences);
            let most = if name == "direct" { 300 * MS } else { away + 4 * SECOND };
            assert!(worst.datagrams <= most, "{worst}");
        }
    }
}

// ---- Roaming ----

/// A host goes from one network to another under a call: told of it, or finding out by itself; with both at once; to the
/// peer's own network and away again.
#[test]
fn roaming() {
    for told in [true, false] {
        for both in [false, true] {
            let silences = for_each_seed(0..6, async |seed| {
                let scene = Scene::new(seed).await;
                let [(_, host_a, a), (_, host_b, b)] =
                    scene.pair([port_restricted(), port_restricted()]).await;
                let elsewhere =
                    NatConfig { gateway: [192, 168, 7, 1].into(), ..home(port_restricted(), 30 * MS) };
                let elsewhere = scene.nat(NetworkId::INTERNET, elsewhere);
                let call = Call::new(&a, &b).await;
                call.is_direct(SOON).await;
                tokio::time::sleep(10 * SECOND + seed as u32 * 700 * MS).await;
                call.forget();
                let movers = if both { vec![(host_a, &a), (host_b, &b)] } else { vec![(host_a, &a)] };
                for (host, node) in movers {
                    scene.world.with(|net, now| {
                        net.move_host(host, elsewhere, Conditions::delayed(MS), now).unwrap()
                    });
                    if told {
                        node.network_changed().await;
                    }
                }
                tokio::time::sleep(15 * SECOND).await;
                call.is_direct(SOON).await;
                call.goes_on().await;
                let there = IpAddr::V4(scene.world.address(host_a));
                let seen = scene.world.with(|net, _| IpAddr::V4(net.external(elsewhere)[0]));
                let expected = if both { there } else { seen };
                assert_eq!(call.ends[1].path().remote.unwrap().ip(), expected);
                call.silence()
            });
            let worst = worst(&format!("roaming, told: {told}, both: {both}"), silences);
            let most = 500 * MS;
            assert!(worst.datagrams <= most, "{worst}");
        }
    }
}
