//! Bad peers, strangers, and too many of them.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use proptest::prelude::*;
use traversal_proto::{
    Rate, SocketId, Time,
    peer::{Agent, Config, Hop, Interface, PeerKey, Policy, Role},
    wire::{
        List,
        peer::{Candidate, CandidateKind, Candidates, NatProfile, PeerMessage, Transport},
        stun::{Check, CheckKey, TransactionId},
    },
};

const MAIN: SocketId = SocketId(0);
const PEER: PeerKey = PeerKey(1);
const KEY: [u8; 32] = [5; 32];

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn agent() -> Agent {
    let mut agent = Agent::new(Config { discover: false, ..Config::default() }, [7; 32], Time::ZERO);
    agent.handle_socket_opened(MAIN, "10.1.1.2:4000".parse().unwrap(), None, Time::ZERO);
    agent.handle_local_addresses(
        &[Interface { address: "10.1.1.2".parse().unwrap(), prefix_len: 24 }],
        Time::ZERO,
    );
    agent.handle_observed(MAIN, "198.51.100.9:4000".parse().unwrap(), Time::ZERO);
    agent
}

fn connect(agent: &mut Agent, peer: PeerKey, now: Time) -> u32 {
    agent.handle_peer(peer, Role::Initiator, CheckKey::new(&KEY), Policy::PreferDirect, now);
    let mut tag = 0;
    while let Some((to, message)) = agent.poll_message() {
        if let PeerMessage::Candidates(candidates) = message
            && to == peer
        {
            tag = candidates.tag;
        }
    }
    tag
}

fn told(addresses: &[&str]) -> PeerMessage {
    let candidate = |address: &&str| Candidate {
        kind: CandidateKind::Host,
        transport: Transport::Udp,
        address: address.parse().unwrap(),
        foundation: 0,
    };
    let list = List::first_of(addresses.iter().map(candidate));
    PeerMessage::Candidates(Candidates {
        generation: 1,
        seen: 0,
        tag: 77,
        profile: NatProfile::default(),
        list,
    })
}

/// Everything that goes out until `until`, drained at its time.
fn run(agent: &mut Agent, until: Time) -> Vec<(Time, SocketAddr, Vec<u8>)> {
    let mut sent = Vec::new();
    let mut now = Time::ZERO;
    loop {
        while let Some(transmit) = agent.poll_transmit() {
            sent.push((now, transmit.to, transmit.bytes));
        }
        while agent.poll_message().is_some() || agent.poll_event().is_some() || agent.poll_socket().is_some()
        {
        }
        match agent.poll_timeout().filter(|due| *due <= until) {
            Some(due) => {
                now = now.max(due);
                agent.handle_timeout(now);
            }
            None => return sent,
        }
    }
}

fn request(tag: u32, random: u64, key: &[u8; 32]) -> Vec<u8> {
    let id = TransactionId::tagged(tag, random);
    Check::Request { id, nominate: false }.encode(&CheckKey::new(key))
}

#[test]
fn forbidden_candidates_are_never_probed() {
    let forbidden = [
        "127.0.0.1:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "[2002:7f00:1::]:22",
        "[64:ff9b::7f00:1]:22",
        "169.254.10.1:80",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[2002:a9fe:a9fe::]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "224.0.0.251:5353",
        "[ff02::fb]:5353",
        "[::ffff:224.0.0.1]:9",
        "255.255.255.255:9",
        "0.0.0.0:9",
        "[::]:9",
        "[fe80::1]:9",
        "192.168.1.1:80",
        "[64:ff9b::c0a8:101]:80",
        "[fd12::1]:80",
        "10.1.1.2:4000",
        "203.0.113.9:0",
    ];
    let mut agent = agent();
    connect(&mut agent, PEER, Time::ZERO);
    agent.handle_message(PEER, told(&forbidden), Time::ZERO);
    assert!(run(&mut agent, at(120_000)).is_empty());
    assert_eq!(agent.counters().candidates_refused, forbidden.len() as u64);
    // And neither if its checks seem to come from there.
    let tag = connect(&mut agent, PEER, at(120_000));
    agent.handle_message(PEER, told(&forbidden), at(120_000));
    for (random, from) in forbidden.iter().enumerate() {
        let from: SocketAddr = from.parse().unwrap();
        // Private networks are where peers are; the rest is nobody's source.
        if !matches!(from.to_string().as_str(), "192.168.1.1:80" | "[64:ff9b::c0a8:101]:80" | "[fd12::1]:80")
            && from != "10.1.1.2:4000".parse().unwrap()
        {
            agent.handle_datagram(MAIN, from, &request(tag, random as u64, &KEY), at(120_001));
        }
    }
    assert!(run(&mut agent, at(240_000)).is_empty());
    assert_eq!(agent.counters().bad_source, 20);
}

#[test]
fn one_who_may_be_probed_is() {
    let mut agent = agent();
    connect(&mut agent, PEER, Time::ZERO);
    agent.handle_message(PEER, told(&["203.0.113.5:4000", "10.1.1.77:4000"]), Time::ZERO);
    let to: BTreeSet<_> = run(&mut agent, at(5000)).into_iter().map(|(_, to, _)| to.to_string()).collect();
    assert_eq!(to.into_iter().collect::<Vec<_>>(), ["10.1.1.77:4000", "203.0.113.5:4000"]);
}

#[test]
fn forged_and_replayed_checks() {
    let mut agent = agent();
    let tag = connect(&mut agent, PEER, Time::ZERO);
    agent.handle_message(PEER, told(&["203.0.113.5:4000"]), Time::ZERO);
    let (peer, stranger) = ("203.0.113.5:4000".parse().unwrap(), "192.0.2.66:1".parse().unwrap());
    // Under another key; with another tag; changed on the way.
    assert!(agent.handle_datagram(MAIN, stranger, &request(tag, 1, &[6; 32]), at(1)));
    assert!(!agent.handle_datagram(MAIN, stranger, &request(tag ^ 1, 1, &KEY), at(1)));
    let mut changed = request(tag, 2, &KEY);
    changed[12] ^= 0;
    *changed.last_mut().unwrap() ^= 1;
    assert!(agent.handle_datagram(MAIN, stranger, &changed, at(1)));
    let counters = agent.counters().clone();
    assert_eq!((counters.bad_integrity, counters.unknown_tag, counters.responses), (2, 1, 0));
    assert_eq!(agent.peer_of(MAIN, stranger), None);
    // The real thing, and then a copy of it from elsewhere.
    let real = request(tag, 3, &KEY);
    assert!(agent.handle_datagram(MAIN, peer, &real, at(2)));
    assert!(agent.handle_datagram(MAIN, stranger, &real, at(3)));
    assert_eq!((agent.counters().responses, agent.counters().replayed), (1, 1));
    assert_eq!((agent.peer_of(MAIN, peer), agent.peer_of(MAIN, stranger)), (Some(PEER), None));
    // A response to nothing, and a response to the right check under the wrong key.
    let check =
        run(&mut agent, at(50)).into_iter().find(|(_, to, bytes)| *to == peer && bytes[0] == 0).unwrap().2;
    let mut id = [0; 12];
    id.copy_from_slice(&check[8..20]);
    let respond = |id, key: &[u8; 32]| Check::Response { id, mapped: peer }.encode(&CheckKey::new(key));
    agent.handle_datagram(MAIN, peer, &respond(TransactionId([9; 12]), &KEY), at(51));
    agent.handle_datagram(MAIN, peer, &respond(TransactionId(id), &[6; 32]), at(51));
    assert_eq!(agent.route(PEER).unwrap().primary, Hop::Relay);
    // The right one counts, once.
    agent.handle_datagram(MAIN, peer, &respond(TransactionId(id), &KEY), at(52));
    assert_eq!(agent.route(PEER).unwrap().primary, Hop::Direct { socket: MAIN, to: peer });
    agent.handle_datagram(MAIN, peer, &respond(TransactionId(id), &KEY), at(53));
    assert_eq!((agent.counters().answers, agent.counters().unknown_transaction), (1, 2));
}

/// What a peer said before is not taken for what it says now; and whom it does not know, it is not told to check.
#[test]
fn old_messages() {
    let mut agent = agent();
    connect(&mut agent, PEER, Time::ZERO);
    agent.handle_message(PEER, PeerMessage::Start { round: 1 }, Time::ZERO);
    agent.handle_message(PeerKey(9), told(&["203.0.113.6:4000"]), Time::ZERO);
    assert!(run(&mut agent, at(5_000)).is_empty(), "nobody has named an address");
    assert_eq!(agent.counters().messages_ignored, 2);
    let PeerMessage::Candidates(mut new) = told(&["203.0.113.5:4000"]) else { panic!() };
    new.generation = 7;
    agent.handle_message(PEER, PeerMessage::Candidates(new), at(5_000));
    agent.handle_message(PEER, told(&["203.0.113.66:4000"]), at(5_000));
    assert_eq!(agent.counters().messages_ignored, 3);
    let to: BTreeSet<_> = run(&mut agent, at(20_000)).into_iter().map(|(_, to, _)| to.to_string()).collect();
    assert_eq!(to.into_iter().collect::<Vec<_>>(), ["203.0.113.5:4000"]);
}

/// Whoever forges the source of his checks does not get another's packets.
#[test]
fn an_address_that_has_answered_is_not_taken_away() {
    let mut agent = agent();
    let victim: SocketAddr = "203.0.113.5:4000".parse().unwrap();
    agent.handle_peer(PEER, Role::Initiator, CheckKey::new(&KEY), Policy::PreferDirect, Time::ZERO);
    agent.handle_direct(PEER, MAIN, victim, Duration::from_millis(20), Time::ZERO);
    let evil = PeerKey(2);
    let tag = connect(&mut agent, evil, Time::ZERO);
    assert!(agent.handle_datagram(MAIN, victim, &request(tag, 1, &KEY), at(1)));
    assert_eq!(agent.peer_of(MAIN, victim), Some(PEER));
    assert_eq!(agent.counters().claims_refused, 1);
}

/// Packets of no known peer, from the host of a path that works: they make us send no more than three times as much.
#[test]
fn unknown_sources_are_checked_within_bounds() {
    let mut agent = agent();
    for peer in 0..20 {
        let to = SocketAddr::from(([203, 0, 113, 5], 4000 + peer));
        agent.handle_peer(
            PeerKey(peer.into()),
            Role::Initiator,
            CheckKey::new(&KEY),
            Policy::PreferDirect,
            Time::ZERO,
        );
        agent.handle_message(PeerKey(peer.into()), told(&["203.0.113.5:4000"]), Time::ZERO);
        agent.handle_direct(PeerKey(peer.into()), MAIN, to, Duration::from_millis(20), Time::ZERO);
    }
    run(&mut agent, at(20_000));
    for (port, bytes) in [(1, 0), (2, 1), (3, 85), (4, 86), (5, 300), (6, 1200)] {
        let from = SocketAddr::from(([203, 0, 113, 5], port));
        agent.handle_unknown(MAIN, from, bytes, at(20_000));
        let sent = run(&mut agent, at(30_000)).into_iter().filter(|(_, to, _)| *to == from);
        let sent: usize = sent.map(|(_, _, bytes)| bytes.len()).sum();
        assert!(sent <= 3 * bytes, "{sent} bytes for {bytes}");
        assert_eq!(sent > 0, bytes >= 86, "{sent} bytes for {bytes}");
    }
    agent.handle_unknown(MAIN, "203.0.113.6:9".parse().unwrap(), 1200, at(20_000));
    assert_eq!(agent.counters().unknown_sources, 1 + 3 + 14, "nobody has a path to that host");
}

/// A peer that asks too much is answered at its rate, and what it makes us remember and probe is bounded.
#[test]
fn a_flood_of_valid_checks() {
    let mut agent = agent();
    let tag = connect(&mut agent, PEER, Time::ZERO);
    agent.handle_message(PEER, told(&["203.0.113.5:4000"]), Time::ZERO);
    let mut random = 0;
    for millis in 0..10_000 {
        for _ in 0..3 {
            random += 1;
            let from = SocketAddr::from(([203, 0, (random / 250) as u8, (random % 250) as u8], 9));
            agent.handle_datagram(MAIN, from, &request(tag, random, &KEY), at(millis));
            while agent.poll_transmit().is_some() {}
        }
        agent.handle_timeout(at(millis));
        while agent.poll_transmit().is_some() {}
    }
    let counters = agent.counters();
    assert!(counters.responses <= 2400, "{counters:?}");
    assert!(counters.requests_too_fast >= 27_000, "{counters:?}");
    assert!(counters.probes <= 2100, "{counters:?}");
}

/// 500 peers at once keep to one budget for probes, and all of them get their turn.
#[test]
fn one_budget_for_all() {
    let probes = Rate { per_second: 200, burst: 50 };
    let mut agent = Agent::new(Config { discover: false, probes, ..Config::default() }, [7; 32], Time::ZERO);
    agent.handle_socket_opened(MAIN, "10.1.1.2:4000".parse().unwrap(), None, Time::ZERO);
    for peer in 0..500 {
        connect(&mut agent, PeerKey(peer), Time::ZERO);
        let addresses = [9, 10, 11].map(|port| format!("203.0.{}.{}:{port}", peer / 250, peer % 250));
        agent.handle_message(PeerKey(peer), told(&addresses.each_ref().map(String::as_str)), Time::ZERO);
    }
    let sent = run(&mut agent, at(20_000));
    for second in 0..20 {
        let within = |time: &Time| (at(second * 1000)..at(second * 1000 + 1000)).contains(time);
        let count = sent.iter().filter(|(time, ..)| within(time)).count();
        assert!(count <= 251, "{count} probes in second {second}");
    }
    assert!(sent.len() >= 3900, "{} probes: the budget is used", sent.len());
    assert!(agent.counters().probes_deferred > 0);
    let reached: BTreeSet<_> = sent.iter().map(|(_, to, _)| to.ip()).collect();
    assert_eq!(reached.len(), 500, "everybody gets a turn");
}

/// What a peer leaves behind when it goes: nothing.
#[test]
fn peers_come_and_go() {
    let mut agent = agent();
    for round in 0..1000 {
        let tag = connect(&mut agent, PEER, at(round));
        agent.handle_message(PEER, told(&["203.0.113.5:4000"]), at(round));
        agent.handle_datagram(
            MAIN,
            "203.0.113.5:4000".parse().unwrap(),
            &request(tag, round, &KEY),
            at(round),
        );
        agent.handle_peer_closed(PEER, at(round));
        assert_eq!(agent.route(PEER), None);
        assert_eq!(agent.peer_of(MAIN, "203.0.113.5:4000".parse().unwrap()), None);
        while agent.poll_transmit().is_some() {}
    }
    assert_eq!(agent.poll_timeout(), None);
}

/// The bytes in docs/protocol.md.
#[test]
fn examples_of_the_protocol_page() {
    assert_eq!(PeerMessage::Start { round: 3 }.encode(), [1, 3]);
    let PeerMessage::Candidates(mut candidates) = told(&["10.0.0.2:4000"]) else { panic!() };
    candidates.tag = 77;
    let bytes = [0, 1, 0, 0x4d, 0, 0, 0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 2, 0xa0, 0x1f, 0];
    let message = PeerMessage::Candidates(candidates);
    assert_eq!(message.encode(), bytes);
    assert_eq!(PeerMessage::decode(&bytes), Ok(message));
}

proptest! {
    #[test]
    fn any_datagram(bytes in prop::collection::vec(any::<u8>(), 0..200), stun: bool) {
        let mut agent = agent();
        let tag = connect(&mut agent, PEER, Time::ZERO);
        let mut bytes = bytes;
        if stun && bytes.len() >= 20 {
            let length = (bytes.len() - 20) / 4 * 4;
            bytes.truncate(20 + length);
            bytes[..8].copy_from_slice(&[0, 1, 0, length as u8, 0x21, 0x12, 0xa4, 0x42]);
            bytes[8..12].copy_from_slice(&tag.to_be_bytes());
        }
        agent.handle_datagram(MAIN, "192.0.2.1:9".parse().unwrap(), &bytes, at(1));
        prop_assert!(agent.poll_transmit().is_none());
    }

    #[test]
    fn any_message(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = PeerMessage::decode(&bytes) {
            prop_assert_eq!(PeerMessage::decode(&message.encode()), Ok(message.clone()));
            let mut agent = agent();
            connect(&mut agent, PEER, Time::ZERO);
            agent.handle_message(PEER, message, at(1));
            run(&mut agent, at(10_000));
        }
    }
}
