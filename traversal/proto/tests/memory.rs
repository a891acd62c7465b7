//! What a supernode allocates: nothing for a relayed packet, little for a registration, the same after any number of
//! clients have come and gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use common::{MAIN, Net, config};
use traversal_proto::{
    supernode::{Target, Verdict},
    wire::frame::data_header,
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
