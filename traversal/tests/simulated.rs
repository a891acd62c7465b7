//! Nodes behind simulated NATs, with their real QUIC, under a paused clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{
    echo_server, round_trip,
    sim::World,
    within,
};
use natbox_sim::{Behavior, HostId, NatId, natbox_core};
use natbox_core::{Filtering, Mapping, PortAssignment};
use traversal::{Connection, Node, Path, PathEvent, PathKind, Policy};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);

/// Two nodes behind NATs, and their supernode.
struct Pair {
    world: World,
    supernode: HostId,
    nats: [NatId; 2],
    a: Node,
    b: Node,
}

fn symmetric() -> Behavior {
    behavior(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
}

fn port_restricted() -> Behavior {
    behavior(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)
}

fn behavior(mapping: Mapping, filtering: Filtering) -> Behavior {
    Behavior { mapping, filtering, ports: PortAssignment::Random, ..Behavior::RFC }
}

impl Pair {
    async fn new(seed: u64, behaviors: [Behavior; 2]) -> Pair {
        let world = World::new(seed);
        let supernode = world.public_host(10 * MS);
        world.with(|net, _| {
            let near = natbox_sim::Conditions::delayed(10 * MS);
            net.add_interface(supernode, natbox_sim::NetworkId::INTERNET, near).unwrap();
        });
        let address = world.supernode(supernode, 1).await;
        let [first, second] = behaviors;
        let (nat_a, host_a) = world.nat_host(first, 15 * MS);
        let (nat_b, host_b) = world.nat_host(second, 20 * MS);
        let a = world.builder(host_a, 2).supernode(&address).start().await.unwrap();
        let b = world.builder(host_b, 3).supernode(&address).start().await.unwrap();
        echo_server(&b);
        Pair { world, supernode, nats: [nat_a, nat_b], a, b }
    }

    async fn connect(&self) -> Connection {
        within(SOON, "connect", self.a.connect(self.b.id())).await.unwrap()
    }

    /// The internet swallows everything between the two NATs, or carries it again.
    fn block(&self, is_blocked: bool) {
        self.world.with(|net, now| {
            let [a, b] = self.nats.map(|nat| net.external(nat)[0]);
            net.set_blocked(a, b, is_blocked, now);
            net.set_blocked(b, a, is_blocked, now);
        });
    }
}

async fn is_direct(connection: &Connection) -> Path {
    connection.wait_direct(SOON).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(start_paused = true)]
async fn usable_at_once() {
    let pair = Pair::new(1, [port_restricted(), port_restricted()]).await;
    let start = tokio::time::Instant::now();
    let connection = pair.connect().await;
    let connected = start.elapsed();
    round_trip(&connection, b"hello").await;
    let (a_p, a_p_b) = (2 * 25 * MS, 2 * (25 + 30) * MS);
    assert!(connected <= a_p + a_p_b + 10 * MS, "connected after {connected:?}");
    assert!(start.elapsed() <= a_p + 2 * a_p_b + 10 * MS, "first byte after {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn holes_are_punched() {
    for seed in 0..10 {
        let pair = Pair::new(seed, [port_restricted(), port_restricted()]).await;
        let connection = pair.connect().await;
        let mut events = connection.path_events();
        let path = is_direct(&connection).await;
        let expected = pair.world.with(|net, _| net.external(pair.nats[1])[0]);
        assert_eq!(path.remote.unwrap().ip(), std::net::IpAddr::V4(expected));
        round_trip(&connection, &vec![3; 300_000]).await;
        assert!(matches!(within(SOON, "an event", events.next()).await, Some(PathEvent::PathUp { .. } | PathEvent::Switched { .. })));
        let rtt = connection.path().rtt.unwrap();
        assert!(rtt < 90 * MS, "{rtt:?} on a path of 70 ms");
    }
}

#[tokio::test(start_paused = true)]
async fn two_symmetric_nats_stay_relayed_and_say_why() {
    let pair = Pair::new(5, [symmetric(), symmetric()]).await;
    let connection = pair.connect().await;
    let error = connection.wait_direct(10 * SECOND).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("symmetric") && text.contains("would help"), "{text}");
    assert_eq!(connection.path().kind, PathKind::Relay);
    round_trip(&connection, &vec![4; 300_000]).await;

    let error = pair.a.connect_with(pair.b.id(), Policy::DirectOnly(5 * SECOND)).await.unwrap_err();
    assert_eq!(error.code(), "connect.not-direct");
}

#[tokio::test(start_paused = true)]
async fn relay_only_stays_on_the_relay() {
    let pair = Pair::new(6, [port_restricted(), port_restricted()]).await;
    let connection = pair.a.connect_with(pair.b.id(), Policy::RelayOnly).await.unwrap();
    assert!(connection.wait_direct(30 * SECOND).await.is_err());
    round_trip(&connection, b"relayed").await;
}

/// A transfer goes on while the direct path dies, and goes direct again when it is back.
#[tokio::test(start_paused = true)]
async fn data_flows_through_the_death_of_a_path() {
    for seed in 0..10 {
        let pair = Pair::new(seed, [port_restricted(), port_restricted()]).await;
        let connection = pair.connect().await;
        is_direct(&connection).await;
        let transfer = tokio::spawn({
            let connection = connection.clone();
            async move {
                for round in 0..40u8 {
                    round_trip(&connection, &vec![round; 50_000]).await;
                    tokio::time::sleep(250 * MS).await;
                }
            }
        });
        tokio::time::sleep(SECOND).await;
        pair.block(true);
        let mut events = connection.path_events();
        let gap = tokio::time::Instant::now();
        loop {
            match within(SOON, "a switch", events.next()).await.unwrap() {
                PathEvent::Switched { to, .. } if to.kind == PathKind::Relay => break,
                _ => {}
            }
        }
        assert!(gap.elapsed() < 5 * SECOND, "{:?} until the relay was used", gap.elapsed());
        within(60 * SECOND, "the transfer", transfer).await.unwrap();
        pair.block(false);
        within(120 * SECOND, "direct again", connection.wait_direct(120 * SECOND)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_supernode_restarts() {
    for relayed in [true, false] {
        let kind = if relayed { symmetric() } else { port_restricted() };
        let pair = Pair::new(7, [kind.clone(), kind]).await;
        let connection = pair.connect().await;
        if !relayed {
            is_direct(&connection).await;
        }
        round_trip(&connection, b"before").await;
        pair.world.kill_supernode(pair.supernode);
        tokio::time::sleep(5 * SECOND).await;
        if !relayed {
            within(SOON, "direct", round_trip(&connection, b"without a supernode")).await;
        }
        let _ = pair.world.supernode(pair.supernode, 1).await;
        within(60 * SECOND, "after the restart", round_trip(&connection, b"after")).await;
        // And others can be called again.
        let again = within(60 * SECOND, "connect", pair.b.connect(pair.a.id())).await.unwrap();
        assert_eq!(again.peer_id(), pair.a.id());
    }
}
