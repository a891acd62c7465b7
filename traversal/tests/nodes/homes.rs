//! Several supernodes: some shared, some not, some full, some that send their peers elsewhere.

use std::{net::SocketAddr, time::Duration};

use crate::common::{
    call::{Call, for_each_seed},
    scene::*,
    until, within,
};
use natbox_sim::{HostId, NetworkId};
use traversal::Node;
use traversal_proto::{
    supernode::Limits,
    wire::{List, message::Supernode as Other},
};

const SOON: Duration = Duration::from_secs(20);

/// How others name the supernode that is going to run on this host.
fn named(scene: &Scene, host: HostId, secret: u8) -> Other {
    let at = SocketAddr::from((scene.world.address(host), 3478));
    Other { id: crate::common::id(secret), addresses: List::first_of([at]) }
}

fn is_registered(node: &Node, at: &str) -> bool {
    let at = at.rsplit('@').next().unwrap();
    node.supernodes().iter().any(|home| home.address == at && home.registered)
}

/// Three supernodes, of which two peers have one in common. It dies: whoever is direct does not notice, and whoever is
/// relayed goes on when it is back.
#[test]
fn one_supernode_in_common() {
    for (name, nat) in [("direct", port_restricted()), ("relayed", symmetric())] {
        for_each_seed(0..3, async |seed| {
            let scene = Scene::new(seed).await;
            let others = [scene.world.public_host(10 * MS), scene.world.public_host(10 * MS)];
            let mut nodes = Vec::new();
            for (at, delay) in [15 * MS, 20 * MS].into_iter().enumerate() {
                let own = scene.world.supernode(others[at], 5 + at as u8).await;
                let nat = scene.nat(NetworkId::INTERNET, home(nat.clone(), delay));
                let host = scene.host(nat);
                // Their own one is the preferred one.
                let builder =
                    scene.world.builder(host, 20 + at as u8).supernode(&own).supernode(&scene.address);
                nodes.push(builder.start().await.unwrap());
            }
            tokio::time::sleep(2 * SECOND).await;
            let call = Call::new(&nodes[0], &nodes[1]).await;
            if name == "direct" {
                call.is_direct(SOON).await;
            }
            tokio::time::sleep(5 * SECOND).await;
            call.forget();
            scene.world.kill_supernode(scene.supernode);
            tokio::time::sleep(10 * SECOND).await;
            let _ = scene.world.supernode(scene.supernode, 1).await;
            tokio::time::sleep(15 * SECOND).await;
            call.goes_on().await;
            println!("{name}: {}", call.silence());
            let most = if name == "direct" { 200 * MS } else { 20 * SECOND };
            assert!(call.silence().datagrams <= most, "{name}: {}", call.silence());
        });
    }
}

/// A supernode that is full names another one: there its peers register, and meet whoever else does.
#[test]
fn a_full_supernode_names_another() {
    let registrations = Limits { registrations: 1, ..Limits::default() };
    let connections = Limits { connections: 1, ..Limits::default() };
    for (name, limits) in [("registrations", registrations), ("connections", connections)] {
        for_each_seed(0..3, async |seed| {
            let scene = Scene::new(seed).await;
            let full = scene.world.public_host(10 * MS);
            let alternative = named(&scene, scene.supernode, 1);
            let address = scene
                .world
                .supernode_with(full, 7, |config| {
                    config.limits = limits;
                    config.alternatives = vec![alternative];
                })
                .await;
            let mut nodes = Vec::new();
            for secret in [30, 31, 32] {
                let nat = scene.nat(NetworkId::INTERNET, home(port_restricted(), 15 * MS));
                let builder = scene.world.builder(scene.host(nat), secret).supernode(&address);
                nodes.push(builder.start().await.unwrap_or_else(|error| panic!("{name}: {error}")));
            }
            assert!(is_registered(&nodes[0], &address));
            for node in &nodes[1..] {
                assert!(is_registered(node, &scene.address), "{name}: {:?}", node.supernodes());
            }
            Call::new(&nodes[1], &nodes[2]).await.goes_on().await;
        });
    }
}

/// Supernodes are taken out of service one after the other, each for a while, under a call that needs them.
#[test]
fn supernodes_are_updated_in_turn() {
    for_each_seed(0..3, async |seed| {
        let scene = Scene::new(seed).await;
        let second = scene.world.public_host(10 * MS);
        let other = scene.world.supernode(second, 7).await;
        let mut nodes = Vec::new();
        for (secret, delay) in [(20, 15 * MS), (21, 20 * MS)] {
            let nat = scene.nat(NetworkId::INTERNET, home(symmetric(), delay));
            let builder = scene.world.builder(scene.host(nat), secret);
            nodes.push(builder.supernode(&scene.address).supernode(&other).start().await.unwrap());
        }
        tokio::time::sleep(2 * SECOND).await;
        let call = Call::new(&nodes[0], &nodes[1]).await;
        for (host, secret) in [(scene.supernode, 1), (second, 7), (scene.supernode, 1), (second, 7)] {
            tokio::time::sleep(10 * SECOND).await;
            call.forget();
            scene.world.drain_supernode(host, 5 * SECOND).await;
            scene.world.kill_supernode(host);
            tokio::time::sleep(5 * SECOND).await;
            let _ = scene.world.supernode(host, secret).await;
            tokio::time::sleep(20 * SECOND).await;
            call.goes_on().await;
            println!("drained and replaced: {}", call.silence());
            assert!(call.silence().datagrams <= 5 * SECOND, "{}", call.silence());
        }
    });
}

/// The name of a supernode leads to another address: it is reached there by QUIC, as before.
#[test]
fn a_supernode_moves() {
    for_each_seed(0..3, async |seed| {
        let scene = Scene::new(seed).await;
        let hosts = [(); 2].map(|()| scene.world.public_host(10 * MS));
        let mut node = None;
        for host in hosts {
            let _ = scene.world.supernode(host, 7).await;
            scene.world.name("relay.example", host, 3478);
            if node.is_none() {
                let nat = scene.nat(NetworkId::INTERNET, home(port_restricted(), 15 * MS));
                let builder = scene.world.builder(scene.host(nat), 20).supernode("relay.example:3478");
                node = Some(builder.start().await.unwrap());
            } else {
                scene.world.kill_supernode(hosts[0]);
            }
            let node = node.as_ref().unwrap();
            let there = async {
                while scene.world.registrations(host) == 0 || !node.supernodes()[0].registered {
                    tokio::time::sleep(10 * MS).await;
                }
            };
            within(60 * SECOND, "registered", there).await;
            assert!(!node.supernodes()[0].by_tcp, "QUIC from the new address is heard");
        }
    });
}

/// Supernodes that others have named, and that are of no use, make room for those that are.
#[test]
fn useless_supernodes_make_room() {
    for_each_seed(0..2, async |seed| {
        let scene = Scene::new(seed).await;
        let host = scene.world.public_host(10 * MS);
        let dead = (40..48).map(|secret| named(&scene, scene.world.public_host(10 * MS), secret)).collect();
        let address = scene.world.supernode_with(host, 7, |config| config.alternatives = dead).await;
        let nat = scene.nat(NetworkId::INTERNET, home(port_restricted(), 15 * MS));
        let node = scene.world.builder(scene.host(nat), 20).supernode(&address).start().await.unwrap();
        scene.world.drain_supernode(host, SECOND).await;
        tokio::time::sleep(90 * SECOND).await;
        assert_eq!(node.supernodes().len(), 8);
        assert!(node.counters().await.unwrap().supernodes_not_added > 0);

        scene.world.kill_supernode(host);
        let live = vec![named(&scene, scene.supernode, 1)];
        let _ = scene.world.supernode_with(host, 7, |config| config.alternatives = live).await;
        within(60 * SECOND, "the first again", until(&node, |_| is_registered(&node, &address))).await;
        scene.world.drain_supernode(host, SECOND).await;
        within(60 * SECOND, "the other", until(&node, |_| is_registered(&node, &scene.address))).await;
        assert_eq!(node.supernodes().len(), 8);
        assert_eq!(node.supernodes()[0].address, address.rsplit('@').next().unwrap());
    });
}

/// More calls wait for a supernode than its control connection takes at once: none is forgotten.
#[test]
fn many_calls_wait_for_a_supernode() {
    for_each_seed(0..2, async |seed| {
        let scene = Scene::new(seed).await;
        let nat = scene.nat(NetworkId::INTERNET, home(port_restricted(), 15 * MS));
        let host = scene.host(nat);
        let node = scene.node(host).await;
        scene.world.kill_supernode(scene.supernode);
        within(60 * SECOND, "gone", until(&node, |homes| !homes[0].registered)).await;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..400u32 {
            let (node, peer) = (node.clone(), crate::common::numbered(number));
            calls.spawn(async move { node.connect(peer).await.unwrap_err().code() });
        }
        tokio::time::sleep(MS).await;
        let _ = scene.world.supernode(scene.supernode, 1).await;
        let codes = within(60 * SECOND, "the answers", calls.join_all()).await;
        let known = codes.iter().filter(|code| **code == "connect.peer-offline").count();
        assert_eq!(known, 400);
        let counters = node.counters().await.unwrap();
        assert!(counters.supernode_messages_held > 0, "{counters:?}");
        let json = serde_json::to_value(&counters).unwrap();
        assert!(json["paths"]["reflections"].is_u64() && json["send_errors"] == 0, "{json}");
        node.close().await;
        assert_eq!(node.counters().await, None);
    });
}
