//! What the engine takes from the allocator, counted by one that tells: nothing for a packet of a known flow, two hundred
//! bytes for a mapping with a session, a few kilobytes for a NAT with a handful of flows.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::Ipv4Addr,
};

use common::*;
use natbox_core::{
    Behavior, Config, Endpoint, InsidePort, Limits, Nat, Packet, Protocol::Udp, Side, Time, Verdict,
    behavior::*,
};

thread_local! {
    /// Allocations of this thread: the test runner's own are not ours.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread has allocated and not given back.
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

fn live(bytes: i64) {
    LIVE.with(|live| live.set(live.get() + bytes));
}

struct Counting;

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches only thread-local integers,
// which need neither an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        live(layout.size() as i64);
        // SAFETY: the caller keeps to the contract of `alloc`, and `System` has the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        live(-(layout.size() as i64));
        // SAFETY: `pointer` came from `alloc` or `realloc` above, so from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        live(size as i64 - layout.size() as i64);
        // SAFETY: as for `dealloc`; the caller keeps to the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A packet and the same in its original form, to be sent again and again.
struct Template {
    outward: bool,
    bytes: Vec<u8>,
    original: Raw,
}

impl Template {
    fn new(outward: bool, original: Raw) -> Template {
        Template { outward, bytes: original.bytes.clone(), original }
    }

    fn send(&mut self, nat: &mut Nat, now: Time) -> Verdict {
        // The headers are all that the engine changes.
        self.bytes[..64.min(self.original.bytes.len())]
            .copy_from_slice(&self.original.bytes[..64.min(self.original.bytes.len())]);
        let mut packet = Packet::new(&mut self.bytes, 0, self.original.offload);
        if self.outward { nat.outbound(TUN, &mut packet, now) } else { nat.inbound(&mut packet, now) }
    }
}

#[test]
fn known_flows_allocate_nothing() {
    const PACKETS: usize = 1_000_000;
    let behavior = rfc(|behavior| {
        behavior.filtering = Filtering::EndpointIndependent;
        behavior.udp_timeout = secs(3);
        behavior.udp_replied_timeout = secs(3);
    });
    // Without anybody who takes events and claims: those may allocate, but known flows make none.
    let mut net = Net::with(Config { behavior, ..Config::new(N.into()) });
    let payload = [7; 1200];
    let mut templates = Vec::new();
    for i in 0..200 {
        let (host, remote) = (at(A, 5000 + i), at(S, 1 + i % 3));
        let external = net.send_out(Udp, host, remote);
        templates.push(Template::new(true, udp(host, remote, &payload)));
        templates.push(Template::new(false, udp(remote, external, &payload).partial()));
        // A stranger whom the filter lets in has no session, and needs none.
        templates.push(Template::new(false, udp(at(Q, 1000 + i), external, b"stranger")));
        let external = net.connect(host, remote);
        templates.push(Template::new(true, tcp(host, remote, ACK, &payload)));
        templates.push(Template::new(false, tcp(remote, external, ACK, &payload)));
    }
    let external = net.connect(B, S);
    let neighbour = net.send_out(Udp, B, S);
    net.hairpin(&mut udp(A, neighbour, b"")).unwrap();
    templates.push(Template::new(true, udp(A, neighbour, b"hairpin")));
    templates.push(Template::new(true, tcp(B, S, ACK, &[1; 60_000]).gso(1400)));
    templates.push(Template::new(false, tcp(S, external, ACK, &[1; 60_000]).gso(1400)));
    templates.push(Template::new(true, udp(B, S, &[1; 60_000]).gso(1400)));

    let Net { mut nat, mut now, .. } = net;
    for template in &mut templates {
        template.send(&mut nat, now);
    }
    let before = COUNT.with(Cell::get);
    let mut drops = 0;
    for i in 0..PACKETS {
        let template = &mut templates[i % 1004];
        drops += usize::from(matches!(template.send(&mut nat, now), Verdict::Drop(_)));
        if i % 32 == 0 {
            // Batches 100 µs apart: three seconds in all, so that the wheel turns and puts busy sessions back.
            now = now + std::time::Duration::from_micros(100);
            nat.handle_timeout(now);
            while nat.poll_transmit().is_some() {}
        }
    }
    let allocated = COUNT.with(Cell::get) - before;
    assert_eq!((allocated, drops), (0, 0), "allocations and drops over {PACKETS} packets");
    assert_eq!(templates.len(), 1004);
    assert!(now - Time::ZERO >= secs(3), "the timers have run");
}

/// A NAT without reports on addresses enough for every flow, and how many bytes it takes with `flows` UDP flows of a
/// thousand to each inside host, all to one server.
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
fn weigh(flows: usize, behavior: Behavior) -> usize {
    let before = LIVE.with(Cell::get);
    let external = (0..flows.div_ceil(50_000).max(1)).map(|i| [198, 51, 100, 1 + i as u8].into()).collect();
    let limits = Limits { mappings: 1 << 20, sessions: 1 << 20 };
    let config = Config { behavior, external, limits, ..Config::new(N.into()) };
    let mut nat = Nat::new(config, 7).unwrap();
    nat.add_inside(InsidePort { gateway: GATEWAY.into(), prefix_len: 8, mtu: 1500, shared: false }).unwrap();
    for i in 0..flows {
        let host =
            Endpoint::v4(Ipv4Addr::from_bits(0x0a01_0000 + (i / 1000) as u32), 1024 + (i % 1000) as u16);
        let mut packet = udp(host, S, b"").bytes;
        let verdict = nat.outbound(TUN, &mut Packet::plain(&mut packet), Time::ZERO);
        assert_eq!(verdict, Verdict::Forward(Side::Outside), "flow {i}");
    }
    assert_eq!((nat.mapping_count(), nat.session_count()), (flows, flows));
    let heap = (LIVE.with(Cell::get) - before) as usize;
    drop(nat);
    assert_eq!(LIVE.with(Cell::get), before, "everything is given back");
    size_of::<Nat>() + heap
}

#[test]
fn a_mapping_with_a_session_takes_two_hundred_bytes() {
    const FLOWS: usize = 1_000_000;
    let behavior = rfc(|behavior| {
        behavior.pooling = Pooling::Arbitrary;
        behavior.port_class = PortClass::Off;
    });
    let bytes = weigh(FLOWS, behavior) as f64 / FLOWS as f64;
    println!("a mapping with one session takes {bytes:.1} bytes among {FLOWS}");
    assert!(bytes <= 200.0, "{bytes} bytes");
}

#[test]
fn a_nat_with_a_handful_of_flows_takes_little() {
    let (idle, used) = (weigh(0, Behavior::RFC), weigh(5, Behavior::RFC));
    println!("a NAT takes {idle} bytes, with five flows {used}");
    assert!(idle <= 3584 && used <= 6 * 1024, "{idle} and {used} bytes");
}
