//! What a supernode allocates: nothing for a relayed packet, little for a registration, the same after any number of
//! clients have come and gone. And what an agent allocates for a peer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use common::{MAIN, Net, config};
use traversal_proto::{
    SocketId, Time,
    path::{Candidate, CandidateKind, NatProfile, Transport},
    peer::{Agent, Config, PeerKey, Policy, Role},
    supernode::{Target, Verdict},
    wire::{
        List,
        frame::data_header,
        peer::{Candidates, PeerMessage},
        stun::CheckKey,
    },
};

/// Counts what this thread allocates; other tests run on threads of their own.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + usize::from(bytes > 0)));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> isize {
    LIVE.with(Cell::get)
}

#[test]
fn a_relayed_packet_allocates_nothing() {
    let mut config = config();
    config.quotas.per_peer = Default::default();
    let mut net = Net::new(config);
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, _) = net.open(&a, &s);
    let mut frame = [&data_header(near)[..], &[7; 1200]].concat();
    let calls = CALLS.with(Cell::get);
    for _ in 0..1000 {
        frame[..5].copy_from_slice(&data_header(near));
        let verdict = net.node.handle_datagram(MAIN, a.addr, &mut frame, net.now);
        let Verdict::Relay { to: Target::Datagram { to, .. }, .. } = verdict else { panic!("{verdict:?}") };
        assert_eq!(to, s.addr);
    }
    assert_eq!(CALLS.with(Cell::get), calls, "allocations for 1000 packets");
}

/// Ten thousand registered peers, each with an account, a connection, a binding and one channel.
#[test]
fn two_kilobytes_a_registration() {
    const PEERS: u32 = 10_000;
    let mut net = Net::new(config());
    let empty = live();
    let mut peers = Vec::new();
    for n in 0..PEERS {
        peers.push(net.peer(n));
        if n % 2 == 1 {
            let (a, b) = (&peers[0], &peers[1]);
            net.open(a, b);
            peers.clear();
        }
        net.now = net.now + std::time::Duration::from_millis(10);
    }
    drop((peers, net.outgoing()));
    let gauges = net.node.gauges();
    assert_eq!((gauges.registrations, gauges.channels), (PEERS as usize, PEERS as usize / 2));
    let each = (live() - empty) / PEERS as isize;
    assert!(each <= 2048, "{each} bytes a registration");
    println!("{each} bytes a registration");
}

/// Generations of clients that come and vanish leave the memory as it was.
#[test]
fn memory_does_not_grow_with_time() {
    let mut config = config();
    config.limits.registrations = 100;
    config.limits.accounts = 100;
    let mut net = Net::new(config);
    let mut after = Vec::new();
    for round in 0..20u32 {
        let peers: Vec<_> = (0..50).map(|n| net.peer(round * 50 + n)).collect();
        for pair in peers.windows(2) {
            net.open(&pair[0], &pair[1]);
        }
        for peer in peers {
            net.node.handle_disconnected(peer.connection, net.now);
        }
        net.outgoing();
        net.now = net.now + std::time::Duration::from_secs(1);
        after.push(live());
    }
    assert!(after[19] <= after[4] + 4096, "{after:?}");
}

/// Ten thousand peers of one agent, each with four candidates that are being checked and a path that works.
#[test]
fn six_kilobytes_a_peer() {
    const PEERS: u32 = 10_000;
    let now = Time::from_nanos(1);
    let mut agent = Agent::new(Config { discover: false, ..Config::default() }, [1; 32], now);
    agent.handle_socket_opened(SocketId(0), ([198, 51, 100, 1], 4000).into(), None, now);
    let candidate = |peer: u32, port: u16| Candidate {
        kind: CandidateKind::ServerReflexive,
        transport: Transport::Udp,
        address: ([203, 0, (peer >> 8) as u8, peer as u8], port).into(),
        foundation: 0,
    };
    let empty = live();
    for peer in 0..PEERS {
        let (key, now) = (PeerKey(peer), Time::from_nanos(10_000_000 * u64::from(peer)));
        agent.handle_peer(key, Role::Initiator, CheckKey::new(&[7; 32]), Policy::PreferDirect, now);
        let told = Candidates {
            generation: 1,
            seen: 2,
            tag: peer,
            profile: NatProfile::default(),
            list: List::first_of((1..=4).map(|port| candidate(peer, port))),
        };
        agent.handle_message(key, PeerMessage::Candidates(told), now);
        let path = candidate(peer, 1).address;
        agent.handle_direct(key, SocketId(0), path, std::time::Duration::from_millis(20), now);
        while agent.poll_transmit().is_some()
            || agent.poll_message().is_some()
            || agent.poll_event().is_some()
        {}
    }
    let each = (live() - empty) / PEERS as isize;
    assert!((0..PEERS).all(|peer| agent.paths(PeerKey(peer)).count() == 1));
    assert!(each <= 6 * 1024, "{each} bytes a peer");
    println!("{each} bytes a peer");
}
