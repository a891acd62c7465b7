//! What holds for every packet and every sequence of them.

mod common;

use std::collections::BTreeSet;

use common::{random::*, *};
use natbox_core::{
    Config, Endpoint, Inside, InsideId, InsidePort, Limits, MappingRequest, Nat, Protocol, Selection, Time,
    behavior::*,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

// ---- One packet ----

/// Turns a packet around: source and destination change places, a question becomes an answer and the other way round.
/// Sums of words do not depend on their order, so only ICMP's checksum has to be computed anew.
fn mirror(mut raw: Raw) -> Raw {
    let header_len = usize::from(raw.bytes[0] & 0x0f) * 4;
    let (head, payload) = raw.bytes.split_at_mut(header_len);
    let (source, destination) = head[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    if head[9] == 1 {
        payload[0] ^= 8;
        payload[2..4].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(payload).ones_complement();
        payload[2..4].copy_from_slice(&sum.to_ne_bytes());
    } else {
        let (source, destination) = payload[..4].split_at_mut(2);
        source.swap_with_slice(destination);
    }
    raw
}

fn flow() -> impl Strategy<Value = (Protocol, Endpoint, Endpoint, Raw)> {
    let remote = (1u8..=126, any::<u8>(), any::<u8>(), 1u16..);
    (select(&Protocol::ALL[..]), 2u8..255, any::<u16>(), remote).prop_flat_map(
        |(protocol, host, port, (a, b, c, to))| {
            let from = Endpoint::v4([10, 0, 0, host].into(), port);
            let to = Endpoint::v4([a, b, c, 5].into(), if protocol == Protocol::Icmp { 0 } else { to });
            packet(protocol, from, to).prop_map(move |raw| (protocol, from, to, raw))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Out, turned around, in, and turned around again is the packet that the host sent, but for two hops of TTL. On the
    /// way the checker has verified every checksum, partial ones too.
    #[test]
    fn translate_then_untranslate_is_the_identity(
        (protocol, from, to, original) in flow(),
        mut behavior in behavior(),
    ) {
        behavior.stray_tcp = StrayTcp::Drop;
        let mut net = Net::new(behavior);
        let external = net.send_out(protocol, from, to);
        if protocol == Protocol::Tcp {
            net.tcp_in(to, external, SYN_ACK).unwrap();
        }
        let mut raw = original.clone().ttl(100);
        prop_assert_eq!(net.forwarded(&mut raw), Ok(external));
        let mut raw = mirror(raw);
        prop_assert_eq!(net.delivered(&mut raw), Ok(from));
        let (ttl, id) = (original.bytes[8], u16::from_be_bytes([original.bytes[4], original.bytes[5]]));
        let back = mirror(raw).ip(|header| {
            header.time_to_live = ttl;
            // What may become fragments is numbered by the NAT.
            header.identification = if header.dont_fragment { header.identification } else { id };
        });
        prop_assert!(back == original, "{:02x?}\n{:02x?}", &back.bytes[..48.min(back.bytes.len())], &original.bytes[..48.min(original.bytes.len())]);
    }

    /// Errors about any packet, quoted to any length, are translated with every checksum right, in both directions.
    #[test]
    fn errors_about_any_packet_are_translated(
        (protocol, from, to, original) in flow(),
        kind in select(&[(3u8, 3u8), (3, 4), (11, 0), (12, 0), (3, 13)][..]),
        length in 32usize..600,
        options in any::<bool>(),
    ) {
        let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
        let external = net.send_out(protocol, from, to);
        if protocol == Protocol::Tcp {
            net.tcp_in(to, external, SYN_ACK).unwrap();
        }
        // What is quoted whole is verified, so it must be whole: no partial checksums here.
        let whole = original.offload == Default::default();
        let mut sent = if whole { original.ttl(64) } else { opener(protocol, from, to) };
        prop_assert_eq!(net.forwarded(&mut sent), Ok(external));
        let dress = |raw: Raw| if options { raw.with_options() } else { raw };
        let mut report = dress(error(at(Q, 0), external, kind, &sent, length));
        prop_assert_eq!(net.delivered(&mut report), Ok(at(from, 0)));
        let quote = look(&report).quote.unwrap();
        prop_assert_eq!((quote.from, quote.to), (from, to));
        let mut got = mirror(sent);
        prop_assert_eq!(net.delivered(&mut got), Ok(from));
        let mut report = dress(error(at(from, 0), at(to, 0), kind, &got, length));
        prop_assert_eq!(net.forwarded(&mut report), Ok(at(external, 0)));
        let quote = look(&report).quote.unwrap();
        prop_assert_eq!((quote.from, quote.to), (to, external));
    }
}

// ---- Any bytes ----

/// A valid packet with some bytes changed; with the checksums mended, so that what is behind them is reached.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((0usize..120, any::<u8>()), 0..6);
    let valid = flow().prop_flat_map(|(_, from, to, raw)| {
        let external = Endpoint::v4(N, 2000);
        let quote = udp(external, to, b"quoted");
        let (forth, back) =
            (error(from, to, (3, 3), &udp(to, from, b"x"), 36), error(to, external, (11, 0), &quote, 36));
        let inward = udp(to, external, b"inward");
        let hairpin = tcp(from, external, SYN, b"");
        select(vec![raw, inward, hairpin, forth, back])
    });
    (valid, changes, any::<bool>(), option::of(0usize..100)).prop_map(|(raw, changes, mend, cut)| {
        let mut bytes = raw.bytes;
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        let header_len = usize::from(bytes.first().unwrap_or(&0) & 0x0f) * 4;
        if mend && header_len >= 20 && bytes.len() >= header_len {
            put_sum(&mut bytes[..header_len], 10);
            if bytes[9] == 1 && bytes.len() >= header_len + 8 {
                put_sum(&mut bytes[header_len..], 2);
            }
        }
        bytes
    })
}

fn put_sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 2].fill(0);
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(bytes).ones_complement();
    bytes[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever the bytes, the metadata and the clock: no panic, every packet counted once, and what does not get
    /// through is no bigger than it was.
    #[test]
    fn arbitrary_bytes_never_panic(
        packets in vec((prop_oneof![vec(any::<u8>(), 0..100), mutated()], offload(), any::<bool>(), any::<u64>()), 1..20),
        behavior in behavior(),
        shared in any::<bool>(),
    ) {
        let mut nat = Nat::new(Config { behavior, shared, ..Config::new(N.into()) }, 3).unwrap();
        let port = InsidePort { gateway: GATEWAY.into(), prefix_len: 24, mtu: 1500, shared: false };
        let inside = nat.add_inside(port).unwrap();
        nat.add_inside(InsidePort { gateway: [10, 1, 0, 1].into(), ..port }).unwrap();
        let forward = Inside { port: inside, endpoint: A };
        let request = MappingRequest { protocol: Protocol::Udp, inside: forward, address: None, port: 2000, until: Time::NEVER };
        nat.add_mapping(request, Time::ZERO).unwrap();
        let count = packets.len() as u64;
        for (bytes, offload, outward, time) in packets {
            // Small steps, great leaps, and back again.
            let now = Time::from_nanos(if time % 3 == 0 { time } else { time % 1_000_000_000_000 });
            let mut raw = Raw { bytes, offload };
            raw.through(|packet| if outward { nat.outbound(inside, packet, now) } else { nat.inbound(packet, now) });
            nat.handle_timeout(now);
            while let Some(sent) = nat.poll_transmit() {
                let raw = Raw::new(sent.packet.into_vec());
                if is_fragment(&raw) {
                    raw.header();
                } else {
                    look_at_the_outside(&raw);
                }
            }
        }
        prop_assert_eq!(total(&nat), count);
        natbox_core::ends(&[]);
    }
}

// ---- Any sequence ----

#[derive(Clone, Debug)]
enum Step {
    Out { protocol: Protocol, host: u8, port: u8, remote: u8, flags: u8 },
    In { protocol: Protocol, remote: u8, external: usize, flags: u8 },
    Hairpin { protocol: Protocol, host: u8, external: usize, flags: u8 },
    Error { inward: bool, host: u8, remote: u8, external: usize },
    Wait(u64),
    Jump(u64),
    Back(u64),
    Forward { protocol: Protocol, host: u8, port: u16, seconds: u64 },
    Flush(Option<Protocol>),
    Behave(Box<Behavior>),
    Move(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let protocol = || select(&Protocol::ALL[..]);
    prop_oneof![
        12 => (protocol(), 0u8..6, 0u8..6, 0u8..6, flags())
            .prop_map(|(protocol, host, port, remote, flags)| Step::Out { protocol, host, port, remote, flags }),
        8 => (protocol(), 0u8..6, 0usize..64, flags())
            .prop_map(|(protocol, remote, external, flags)| Step::In { protocol, remote, external, flags }),
        4 => (protocol(), 0u8..6, 0usize..64, flags())
            .prop_map(|(protocol, host, external, flags)| Step::Hairpin { protocol, host, external, flags }),
        2 => (any::<bool>(), 0u8..6, 0u8..6, 0usize..64)
            .prop_map(|(inward, host, remote, external)| Step::Error { inward, host, remote, external }),
        4 => (0u64..200).prop_map(Step::Wait),
        1 => (0u64..2000).prop_map(Step::Jump),
        1 => (0u64..100).prop_map(Step::Back),
        2 => (protocol(), 0u8..6, 0u16..5000, 0u64..1000)
            .prop_map(|(protocol, host, port, seconds)| Step::Forward { protocol, host, port, seconds }),
        1 => option::of(protocol()).prop_map(Step::Flush),
        1 => behavior().prop_map(|behavior| Step::Behave(Box::new(behavior))),
        1 => (1u8..8).prop_map(Step::Move),
    ]
}

fn host(number: u8, port: u8) -> Endpoint {
    Endpoint::v4([10, 0, 0, 2 + number].into(), 4000 + u16::from(port))
}

/// Few addresses with few ports, so that address-dependent rules meet.
fn remote(number: u8) -> Endpoint {
    Endpoint::v4([203, 0, 113, 1 + number / 3].into(), 100 + u16::from(number % 3))
}

fn of(protocol: Protocol, from: Endpoint, to: Endpoint, flags: u8, inward: bool) -> Raw {
    match (protocol, inward) {
        (Protocol::Tcp, _) => tcp(from, to, flags, b""),
        (Protocol::Icmp, true) => echo_reply(from, to, b""),
        _ => opener(protocol, from, to),
    }
}

fn take(net: &mut Net, seen: &[Endpoint], step: Step) {
    net.latest = net.latest.max(net.now);
    let pick = |at: usize| seen.get(at % seen.len().max(1)).copied().unwrap_or(Endpoint::v4(N, 2000));
    match step {
        Step::Out { protocol, host: number, port, remote: to, flags } => {
            net.out(&mut of(protocol, host(number, port), remote(to), flags, false));
        }
        Step::In { protocol, remote: from, external, flags } => {
            net.inn(&mut of(protocol, remote(from), pick(external), flags, true));
        }
        Step::Hairpin { protocol, host: number, external, flags } => {
            net.out(&mut of(protocol, host(number, 0), pick(external), flags, false));
        }
        Step::Error { inward: true, remote: about, external, .. } => {
            let quoted = udp(pick(external), remote(about), b"quoted");
            net.inn(&mut error(Q, pick(external), (3, 3), &quoted, 36));
        }
        Step::Error { host: number, remote: about, external, .. } => {
            let about = if about == 0 { pick(external) } else { remote(about) };
            net.out(&mut error(host(number, 0), about, (3, 3), &udp(about, host(number, 0), b""), 28));
        }
        Step::Wait(seconds) => {
            net.wait(secs(seconds));
            settle(net);
        }
        Step::Jump(seconds) => net.now = net.now + secs(seconds),
        Step::Back(seconds) => {
            net.now = Time::from_nanos(net.now.as_nanos().saturating_sub(seconds * 1_000_000_000));
        }
        Step::Forward { protocol, host: number, port, seconds } => {
            let inside = Inside { port: InsideId(0), endpoint: host(number, 0) };
            let until = if seconds > 900 { Time::NEVER } else { net.now + secs(seconds) };
            let request = MappingRequest { protocol, inside, address: None, port, until };
            let before = net.nat.mappings().count();
            let result = net.nat.add_mapping(request, net.now);
            assert!(result.is_ok() || net.nat.mappings().count() <= before);
        }
        Step::Flush(protocol) => {
            net.nat.flush(&Selection { protocol, ..Selection::default() }, net.now);
        }
        Step::Behave(behavior) => net.nat.set_behavior(*behavior),
        Step::Move(bits) => {
            let addrs = (0..3).filter(|bit| bits >> bit & 1 == 1).map(|bit| [198, 51, 100, 1 + bit].into());
            net.nat.set_external(addrs.collect(), net.now).expect("good addresses");
        }
    }
}

/// Where expiry is called for in time, what is dead is given back within milliseconds.
fn settle(net: &mut Net) {
    net.now = net.now.max(net.latest); // where the engine's clock stands still
    let dead = |net: &Net| {
        let alive = (net.nat.mappings().count(), net.nat.sessions().count());
        alive != (net.nat.mapping_count(), net.nat.session_count())
    };
    for _ in 0..5 {
        net.wait(std::time::Duration::from_millis(2));
        if !dead(net) {
            return;
        }
    }
    panic!("something dead is kept: {:?}", net.nat);
}

/// What the tables promise at every moment.
fn check(net: &Net, limits: Limits, overloaded: bool) {
    let (mut externals, mut flows_in, mut flows_out) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut statics = BTreeSet::new();
    for mapping in net.nat.mappings() {
        let key = (mapping.protocol, mapping.external);
        let alone = externals.insert(key);
        assert!(alone || overloaded, "two live mappings share {key:?}");
        assert!(alone || !statics.contains(&key), "a static one is shared: {key:?}");
        if mapping.is_static {
            assert!(alone, "a static one is shared: {key:?}");
            statics.insert(key);
        }
        assert!(net.nat.external().any(|addr| addr == mapping.external.0.addr));
    }
    for session in net.nat.sessions() {
        assert!(flows_in.insert((session.protocol, session.external, session.remote)), "{session:?}");
        assert!(flows_out.insert((session.protocol, session.inside, session.remote)), "{session:?}");
    }
    let (mappings, sessions) = (net.nat.mapping_count(), net.nat.session_count());
    assert!(mappings <= limits.mappings && sessions <= limits.sessions, "limits: {mappings} {sessions}");
    let counters = net.nat.counters();
    assert_eq!(counters.mappings_created - counters.mappings_ended, mappings as u64);
    assert_eq!(counters.sessions_created - counters.sessions_ended, sessions as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Under any sequence of packets, time and changes the tables keep their promises, and in the end all is given back.
    #[test]
    fn tables_keep_their_promises(
        behavior in behavior(),
        shared in any::<bool>(),
        limits in (1usize..40, 1usize..60),
        steps in vec(step(), 1..120),
    ) {
        let limits = Limits { mappings: limits.0, sessions: limits.1 };
        // Once on, overloading leaves shared endpoints behind when it goes off.
        let mut overloaded = behavior.overloading;
        let mut net = Net::with(Config { behavior, shared, limits, ..Config::new(N.into()) });
        for step in steps {
            if let Step::Behave(behavior) = &step {
                overloaded |= behavior.overloading;
            }
            let seen: Vec<_> = net.mappings().iter().map(|mapping| mapping.external.0).collect();
            take(&mut net, &seen, step);
            check(&net, limits, overloaded);
        }
        net.nat.flush(&Selection { statics: true, protocol: Some(Protocol::Udp), ..Selection::default() }, net.now);
        net.now = net.now + secs(3000);
        net.wait(secs(1));
        net.wait(secs(300)); // ports rest from when they are given back
        check(&net, limits, overloaded);
        prop_assert!(net.nat.mappings().all(|mapping| mapping.is_static));
        prop_assert_eq!((net.nat.session_count(), net.nat.mapping_count()), (0, net.nat.mappings().count()));
        net.nat.flush(&Selection { statics: true, ..Selection::default() }, net.now);
        prop_assert_eq!((net.nat.mapping_count(), net.nat.poll_timeout()), (0, None));
    }

    /// The same seed and the same input give the same output, event by event.
    #[test]
    fn everything_is_deterministic(behavior in behavior(), steps in vec(step(), 1..60)) {
        let run = || {
            let mut net = Net::new(behavior.clone());
            for step in &steps {
                let seen: Vec<_> = net.mappings().iter().map(|mapping| mapping.external.0).collect();
                take(&mut net, &seen, step.clone());
            }
            let sessions: BTreeSet<_> = net.nat.sessions().map(|session| format!("{session:?}")).collect();
            (net.events.clone(), net.mappings(), sessions, net.nat.counters().clone(), net.take_sent())
        };
        prop_assert_eq!(run(), run());
    }
}
