//! Nodes behind simulated NATs, with their real QUIC, under a paused clock.

use std::time::Duration;

use crate::common::{echo_server, round_trip, until, within};
use natbox_core::behavior::{Filtering, Mapping, PortAssignment};
use natbox_sim::{Behavior, HostId, NatId, natbox_core};
use traversal::{Connection, Node, Path, PathEvent, PathKind, Policy};
use traversal_sim::World;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);

/// Two nodes behind NATs, and their supernode.
struct Pair {
    world: World,
    supernode: HostId,
    nats: [NatId; 2],
    hosts: [HostId; 2],
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
        let supernode = world.server(10 * MS);
        let address = world.supernode(supernode, 1).await;
        let [first, second] = behaviors;
        let (nat_a, host_a) = world.nat_host(first, 15 * MS);
        let (nat_b, host_b) = world.nat_host(second, 20 * MS);
        let a = world.builder(host_a, 2).supernode(&address).start().await.unwrap();
        let b = world.builder(host_b, 3).supernode(&address).start().await.unwrap();
        echo_server(&b);
        Pair { world, supernode, nats: [nat_a, nat_b], hosts: [host_a, host_b], a, b }
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
        assert!(matches!(
            within(SOON, "an event", events.next()).await,
            Some(PathEvent::PathUp { .. } | PathEvent::Switched { .. })
        ));
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

/// A network that carries no UDP: everything goes by TLS, and by UDP again when it comes back.
#[tokio::test(start_paused = true)]
async fn udp_blocked() {
    let pair = Pair::new(8, [port_restricted(), port_restricted()]).await;
    let world = &pair.world;
    let (_, host) = world.nat_host(port_restricted(), 5 * MS);
    world.block_udp(host, true);
    let address = pair.a.supernodes()[0].address.clone();
    let c = within(SOON, "start", world.builder(host, 9).supernode(&address).start()).await.unwrap();
    assert!(c.supernodes()[0].by_tcp && !c.supernodes()[0].relay_by_udp);
    let connection = within(SOON, "connect", c.connect(pair.b.id())).await.unwrap();
    round_trip(&connection, &vec![8; 100_000]).await;
    assert_eq!(connection.path().kind, PathKind::Relay);

    world.block_udp(host, false);
    within(120 * SECOND, "direct", connection.wait_direct(120 * SECOND)).await.unwrap();
    round_trip(&connection, &vec![9; 100_000]).await;
    within(120 * SECOND, "QUIC again", until(&c, |homes| !homes[0].by_tcp)).await;

    world.block_udp(host, true);
    within(60 * SECOND, "by TLS again", round_trip(&connection, &vec![1; 100_000])).await;
}

/// Two supernodes: one is killed, one asks everybody to leave; connections go on.
#[tokio::test(start_paused = true)]
async fn supernodes_come_and_go() {
    let pair = Pair::new(9, [symmetric(), symmetric()]).await;
    let world = &pair.world;
    let second = world.public_host(10 * MS);
    let addresses = [pair.a.supernodes()[0].address.clone(), world.supernode(second, 7).await];
    let mut nodes = Vec::new();
    for (host, secret) in pair.hosts.iter().zip([20, 21]) {
        let builder = world.builder(*host, secret).supernode(&addresses[0]).supernode(&addresses[1]);
        nodes.push(builder.start().await.unwrap());
    }
    let [c, d] = &nodes[..] else { panic!() };
    echo_server(d);
    tokio::time::sleep(SECOND).await;
    let connection = within(SOON, "connect", c.connect(d.id())).await.unwrap();
    round_trip(&connection, b"by the first").await;
    world.kill_supernode(pair.supernode);
    within(20 * SECOND, "by the second", round_trip(&connection, b"by the second")).await;
    assert!(connection.close_reason().is_none());
    let again = within(SOON, "connect", d.connect(c.id())).await.unwrap();
    assert_eq!(again.peer_id(), c.id());
}

#[tokio::test(start_paused = true)]
async fn direct_only_ends_with_its_path() {
    let pair = Pair::new(10, [port_restricted(), port_restricted()]).await;
    let policy = Policy::DirectOnly(5 * SECOND);
    let connection = within(SOON, "connect", pair.a.connect_with(pair.b.id(), policy)).await.unwrap();
    assert_eq!(connection.path().kind, PathKind::Direct);
    round_trip(&connection, b"direct").await;
    pair.block(true);
    within(60 * SECOND, "closed", connection.closed()).await;
}

/// What the doctor finds behind each kind of NAT is what it is.
#[tokio::test(start_paused = true)]
async fn the_doctor_knows_the_nat() {
    for mapping in [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent]
    {
        for filtering in
            [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent]
        {
            let pair = Pair::new(11, [behavior(mapping, filtering), symmetric()]).await;
            let report = within(120 * SECOND, "doctor", pair.a.doctor()).await.unwrap();
            let text = format!("{mapping:?} {filtering:?}:\n{report}");
            assert!(report.udp, "{text}");
            assert_eq!(format!("{:?}", report.nat.mapping), format!("Some({mapping:?})"), "{text}");
            assert_eq!(format!("{:?}", report.nat.filtering), format!("Some({filtering:?})"), "{text}");
            assert_eq!(report.towards.len(), 9);
        }
    }
}

/// Somebody else answers, or calls, in the peer's name: a supernode can do that, and gets nothing from it.
#[tokio::test(start_paused = true)]
async fn another_key_is_refused() {
    let pair = Pair::new(12, [port_restricted(), port_restricted()]).await;
    let address = pair.a.supernodes()[0].address.clone();
    let host = pair.world.public_host(10 * MS);
    let liar = pair.world.builder(host, 30).impersonate(crate::common::identity(31)).supernode(&address);
    let liar = liar.start().await.unwrap();
    let error = within(SOON, "the call", pair.a.connect(liar.id())).await.unwrap_err();
    let (expected, found) = (liar.id(), crate::common::id(31));
    let matches = matches!(&error, traversal::ConnectError::WrongKey { expected: e, found: f } if (*e, *f) == (expected, found));
    assert!(matches, "{error:?}");

    let accepted = tokio::spawn({
        let a = pair.a.clone();
        async move { a.accept().await }
    });
    // A server knows its client's key last: the liar may think for a moment that it is in.
    if let Ok(connection) = within(30 * SECOND, "the lie", liar.connect(pair.a.id())).await {
        within(SOON, "found out", connection.closed()).await;
    }
    assert!(!accepted.is_finished(), "nobody was let in");
}

/// The supernode's host sees neither what is sent nor where the peers are.
#[tokio::test(start_paused = true)]
async fn the_supernode_sees_ciphertext_only() {
    use natbox_sim::Tap;
    let pair = Pair::new(13, [symmetric(), symmetric()]).await;
    let tap = pair.world.with(|net, _| net.tap(Tap::Host(pair.supernode), 100_000));
    let connection = pair.connect().await;
    let secret = b"a secret that nobody in between may read".repeat(50);
    round_trip(&connection, &secret).await;
    assert!(connection.wait_direct(5 * SECOND).await.is_err());

    let std::net::IpAddr::V4(private) = std::net::IpAddr::V4(pair.world.address(pair.hosts[0])) else {
        panic!()
    };
    let octets = private.octets();
    let cookie = 0x2112_a442_u32.to_be_bytes();
    let xored: Vec<u8> = octets.iter().zip(cookie).map(|(a, b)| a ^ b).collect();
    let needles = [secret[..20].to_vec(), octets.to_vec(), xored, private.to_string().into_bytes()];
    let found = |bytes: &[u8]| {
        needles.iter().filter(|needle| bytes.windows(needle.len()).any(|w| w == &needle[..])).count()
    };

    // What the search is able to find: a candidate as the peers tell it to each other.
    let candidate = traversal_proto::path::Candidate {
        kind: traversal_proto::path::CandidateKind::Host,
        transport: traversal_proto::path::Transport::Udp,
        address: (private, 40_000).into(),
        foundation: 0,
    };
    let told = traversal_proto::wire::peer::Candidates {
        generation: 1,
        seen: 0,
        tag: 7,
        profile: traversal::NatProfile::default(),
        list: traversal_proto::wire::List::first_of([candidate]),
    };
    assert_eq!(found(&traversal_proto::wire::peer::PeerMessage::Candidates(told).encode()), 1);

    let (mut packets, mut relayed) = (0, 0);
    pair.world.with(|net, _| {
        for captured in net.captured(tap) {
            packets += 1;
            relayed += usize::from(captured.packet.get(28) == Some(&0x80));
            // From the UDP payload on: addresses in headers are the NATs'.
            assert_eq!(found(&captured.packet[28..]), 0, "packet {packets}");
        }
    });
    assert!(relayed > 20, "{relayed} of {packets} packets were relayed");
}

/// A plain socket with a hole in it, for those who have a transport of their own.
#[tokio::test(start_paused = true)]
async fn a_socket_is_punched_and_handed_over() {
    let pair = Pair::new(14, [port_restricted(), port_restricted()]).await;
    let address = pair.a.supernodes()[0].address.clone();
    let (_, host) = pair.world.nat_host(port_restricted(), 5 * MS);
    let c = pair.world.builder(host, 40).accept_punches(true).supernode(&address).start().await.unwrap();
    let (ours, theirs) =
        within(SOON, "punch", async { tokio::join!(pair.a.punch(c.id(), SOON), c.accept_punch()) }).await;
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    assert_eq!((ours.peer_id(), theirs.peer_id()), (c.id(), pair.a.id()));
    assert_eq!(ours.secret(), theirs.secret());
    pair.a.close().await;
    c.close().await;
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        let transmit = traversal_net::Transmit {
            destination: from.remote(),
            ecn: None,
            contents: b"\xffours alone",
            segment_size: None,
            src_ip: None,
        };
        from.datagram_socket().try_send(&transmit).unwrap();
        let socket = to.datagram_socket();
        let mut batch = traversal_net::udp::RecvBatch::new(&*socket, 1, 2048);
        let received = async {
            loop {
                let count = std::future::poll_fn(|cx| batch.poll_recv(&*socket, cx)).await.unwrap();
                if batch.trains(count).any(|(_, bytes)| bytes == b"\xffours alone") {
                    return;
                }
            }
        };
        within(SOON, "a datagram", received).await;
    }

    let error = pair.b.punch(pair.a.id(), SOON).await.unwrap_err();
    assert!(matches!(error.code(), "connect.peer-offline" | "connect.handshake"), "{error}");
}

/// A supernode is taken out of service: its peers go where it tells them, without losing a connection.
#[tokio::test(start_paused = true)]
async fn a_drained_supernode_is_left_in_time() {
    let world = World::new(15);
    let (first, second) = (world.public_host(10 * MS), world.public_host(10 * MS));
    let _ = world.supernode(second, 7).await;
    let there = std::net::SocketAddr::from((world.address(second), 3478));
    let alternative = traversal_proto::wire::message::Supernode {
        id: crate::common::id(7),
        addresses: traversal_proto::wire::List::first_of([there]),
    };
    let address = world.supernode_with(first, 1, |config| config.alternatives = vec![alternative]).await;
    let mut nodes = Vec::new();
    for secret in [2, 3] {
        let (_, host) = world.nat_host(symmetric(), 10 * MS);
        nodes.push(world.builder(host, secret).supernode(&address).start().await.unwrap());
    }
    let [a, b] = &nodes[..] else { panic!() };
    echo_server(b);
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    round_trip(&connection, b"before").await;
    world.drain_supernode(first, 10 * SECOND).await;
    world.kill_supernode(first);
    within(20 * SECOND, "after", round_trip(&connection, b"after")).await;
    let again = within(SOON, "connect", b.connect(a.id())).await.unwrap();
    assert_eq!(again.peer_id(), a.id());
}

/// A NAT forgets its mappings, or gets another address, in the middle of a transfer: the connection goes on, and goes direct
/// again.
#[tokio::test(start_paused = true)]
async fn nats_rebind_in_mid_transfer() {
    use natbox_sim::Rebind;
    for what in [Rebind::Ports, Rebind::Addresses, Rebind::Both] {
        let pair = Pair::new(16, [port_restricted(), port_restricted()]).await;
        let connection = pair.connect().await;
        is_direct(&connection).await;
        for _ in 0..3 {
            pair.world.with(|net, now| net.rebind(pair.nats[0], what, now).unwrap());
            within(60 * SECOND, "through the change", round_trip(&connection, &vec![2; 100_000])).await;
            within(120 * SECOND, "direct again", connection.wait_direct(120 * SECOND)).await.unwrap();
            round_trip(&connection, &vec![2; 100_000]).await;
            tokio::time::sleep(20 * SECOND).await;
        }
    }
}

/// Mappings that end a minute after they began, however busy they are: ten minutes of a call.
#[tokio::test(start_paused = true)]
async fn mappings_that_last_a_minute() {
    let short = Behavior { mapping_lifetime: Some(60 * SECOND), ..port_restricted() };
    let pair = Pair::new(17, [short.clone(), short]).await;
    let connection = pair.connect().await;
    let start = tokio::time::Instant::now();
    let mut longest = Duration::ZERO;
    while start.elapsed() < 600 * SECOND {
        let sent = tokio::time::Instant::now();
        within(30 * SECOND, "a round trip", round_trip(&connection, b"still there?")).await;
        longest = longest.max(sent.elapsed());
        tokio::time::sleep(200 * MS).await;
    }
    assert!(longest < 5 * SECOND, "a gap of {longest:?}");
    println!("the longest round trip in ten minutes: {longest:?}");
}

/// Two nodes behind one NAT reach each other by their own addresses.
#[tokio::test(start_paused = true)]
async fn behind_the_same_nat() {
    let pair = Pair::new(18, [symmetric(), symmetric()]).await;
    let address = pair.a.supernodes()[0].address.clone();
    let host =
        pair.world.with(|net, _| net.add_host(pair.nats[0], natbox_sim::Conditions::delayed(MS)).unwrap());
    let c = pair.world.builder(host, 50).supernode(&address).start().await.unwrap();
    echo_server(&c);
    let connection = within(SOON, "connect", pair.a.connect(c.id())).await.unwrap();
    let path = is_direct(&connection).await;
    assert_eq!(path.remote.unwrap().ip(), std::net::IpAddr::V4(pair.world.address(host)));
    round_trip(&connection, b"neighbour").await;
}
