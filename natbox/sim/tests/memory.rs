//! What the net costs: no allocation for a packet, and little memory for a host and NAT that nobody has used.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::SocketAddr,
};

use common::{INTERNET, behavior, ms, socket};
use natbox_sim::{Conditions, Datagram, HostId, Input, NatConfig, Net};

thread_local! {
    /// Allocations and live bytes of this thread: the test runner's own are not ours.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: i64) {
    COUNT.with(|count| count.set(count.get() + u64::from(bytes > 0)));
    LIVE.with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches only thread-local integers,
// which need neither an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps to the contract of `alloc`, and `System` has the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set(live.get() - layout.size() as i64));
        // SAFETY: `pointer` came from `alloc` above, so from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn homes(net: &mut Net, count: usize) -> Vec<HostId> {
    let config = NatConfig::new(behavior("mapping=apdm filtering=apdf ports=random"));
    (0..count)
        .map(|_| {
            let nat = net.add_nat(INTERNET, config.clone()).unwrap();
            net.add_host(nat, Conditions::delayed(ms(10))).unwrap()
        })
        .collect()
}

/// Every host asks, the server answers.
fn round(net: &mut Net, hosts: &[HostId], server: (HostId, SocketAddr)) {
    for host in hosts {
        let now = net.now();
        net.send(*host, Datagram::new(socket(net, *host, 4000), server.1, &[1; 1000]), now).unwrap();
    }
    let mut answers = 0;
    let until = net.now() + ms(100);
    while let Some(now) = net.poll_timeout().filter(|now| *now < until) {
        let mut asked = None;
        if let Some((host, Input::Datagram(datagram))) = net.poll_deliver(now) {
            if host == server.0 {
                asked = Some(datagram.from);
            } else {
                answers += 1;
            }
        }
        if let Some(to) = asked {
            net.send(server.0, Datagram::new(server.1, to, &[2; 500]), now).unwrap();
        }
    }
    assert_eq!(answers, hosts.len());
}

#[test]
fn a_packet_allocates_nothing() {
    let mut net = Net::new(1);
    let hosts = homes(&mut net, 50);
    let server = net.add_host(INTERNET, Conditions { jitter: ms(5), ..Conditions::PERFECT }).unwrap();
    let server = (server, socket(&net, server, 1));
    for _ in 0..10 {
        round(&mut net, &hosts, server);
    }
    let before = COUNT.with(Cell::get);
    for _ in 0..1000 {
        round(&mut net, &hosts, server);
    }
    assert_eq!(COUNT.with(Cell::get) - before, 0, "in 100,000 packets through NATs");
}

#[test]
fn a_host_and_nat_are_small_until_they_are_used() {
    const PAIRS: usize = 10_000;
    // The tables grow by doubling: the measure is what is in use when they are full.
    let per_pair = |live: i64| live as usize / PAIRS;
    let before = LIVE.with(Cell::get);
    let mut net = Net::new(1);
    let hosts = homes(&mut net, PAIRS);
    let idle = per_pair(LIVE.with(Cell::get) - before);
    assert!(idle < 2048, "{idle} bytes");

    let server = net.add_host(INTERNET, Conditions::PERFECT).unwrap();
    let server = (server, socket(&net, server, 1));
    round(&mut net, &hosts[..1000], server);
    let used = (LIVE.with(Cell::get) - before) as usize - idle * PAIRS;
    println!("a host with its NAT takes {idle} bytes idle, {} more once used", used / 1000);
}
