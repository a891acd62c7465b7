//! What a packet costs: in a known flow (hot, among a thousand, among a million in random order), as the first of a new
//! flow, and when its mapping is given back.
//!
//! Every figure is for one packet or one mapping (criterion's times for known flows are for a batch, its throughput for
//! packets). Packets are handed over in batches of 32 from one side, as the datapath does, with and without
//! [`Nat::prefetch`]; each is restored from its original headers first, which is part of the figure and costs a copy of
//! 28 bytes.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use natbox_core::{
    Behavior, Config, InsideId, InsidePort, Limits, Nat, Packet, Side, Time, Verdict, behavior::*,
};

const BATCH: usize = 32;
const HEADERS: usize = 28;
const REMOTE: [u8; 4] = [203, 0, 113, 5];

/// A NAT with a pool that is large enough for `flows` mappings.
fn nat(flows: usize) -> (Nat, InsideId) {
    nat_with(flows, Behavior::RFC)
}

/// The same that behaves otherwise.
fn nat_with(flows: usize, behavior: Behavior) -> (Nat, InsideId) {
    let external = (0..flows.div_ceil(50_000)).map(|i| [198, 51, 100, 1 + i as u8].into()).collect();
    let limits = Limits { mappings: 1 << 21, sessions: 1 << 21 };
    let behavior = Behavior { pooling: Pooling::Arbitrary, port_class: PortClass::Off, ..behavior };
    let config = Config { external, behavior, limits, ..Config::new([198, 51, 100, 1].into()) };
    let mut nat = Nat::new(config, 1).unwrap();
    let gateway = Ipv4Addr::new(10, 0, 0, 1).into();
    let inside = nat.add_inside(InsidePort { gateway, prefix_len: 8, mtu: 1500, shared: false }).unwrap();
    (nat, inside)
}

/// The headers of the packet of flow `i`: a thousand ports on each host, all towards one remote endpoint.
fn outward(i: usize) -> [u8; HEADERS] {
    leaving(i / 1000, i % 1000, REMOTE)
}

/// The same where all flows are of a thousand ports, of which each has many remotes.
fn outward_to_many(i: usize) -> [u8; HEADERS] {
    leaving(0, i % 1000, (u32::from_be_bytes(REMOTE) + (i / 1000) as u32).to_be_bytes())
}

fn leaving(host: usize, port: usize, remote: [u8; 4]) -> [u8; HEADERS] {
    let host = Ipv4Addr::from_bits(0x0a01_0000 + host as u32);
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(host.octets(), remote, 64)
        .udp(1024 + port as u16, 53)
        .write(&mut bytes, b"")
        .unwrap();
    bytes.try_into().unwrap()
}

/// The answer to a translated packet.
fn inward(translated: &[u8; HEADERS]) -> [u8; HEADERS] {
    let word = |at: usize| u16::from_be_bytes([translated[at], translated[at + 1]]);
    let addr = |at: usize| [translated[at], translated[at + 1], translated[at + 2], translated[at + 3]];
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(addr(16), addr(12), 64).udp(word(22), word(20)).write(&mut bytes, b"").unwrap();
    bytes.try_into().unwrap()
}

/// The packets of a NAT's flows, in random order.
struct Flows {
    nat: Nat,
    inside: InsideId,
    out: Vec<[u8; HEADERS]>,
    inward: Vec<[u8; HEADERS]>,
}

/// Sets `flows` flows up, whose packets leave like these.
fn flows(flows: usize, outward: fn(usize) -> [u8; HEADERS]) -> Flows {
    let (mut nat, inside) = nat(flows);
    let (mut out, mut answers) = (Vec::with_capacity(flows), Vec::with_capacity(flows));
    for i in 0..flows {
        let original = outward(i);
        let mut bytes = original;
        let verdict = nat.outbound(inside, &mut Packet::plain(&mut bytes), Time::ZERO);
        assert_eq!(verdict, Verdict::Forward(Side::Outside), "flow {i}");
        out.push(original);
        answers.push(inward(&bytes));
    }
    // A shuffle that needs no crate: a linear congruential generator of full period picks the partners.
    let mut state = 1u64;
    for packets in [&mut out, &mut answers] {
        for i in (1..packets.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            packets.swap(i, (state >> 33) as usize % (i + 1));
        }
    }
    Flows { nat, inside, out, inward: answers }
}

/// Hands `BATCH` packets over, as one port's batch of the datapath.
fn batch(nat: &mut Nat, from: Side, buffers: &mut [[u8; HEADERS]; BATCH], prefetch: bool) {
    if prefetch {
        nat.prefetch(from, buffers.iter().map(|bytes| &bytes[..]));
    }
    for bytes in &mut *buffers {
        let packet = &mut Packet::plain(bytes);
        let verdict = match from {
            Side::Inside(id) => nat.outbound(id, packet, Time::ZERO),
            Side::Outside => nat.inbound(packet, Time::ZERO),
        };
        assert!(matches!(verdict, Verdict::Forward(_)));
    }
}

fn known(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("known flow");
    group.throughput(Throughput::Elements(BATCH as u64));
    let kinds: [(_, _, fn(usize) -> _); 4] = [
        ("hot", 1, outward),
        ("among 1e3", 1_000, outward),
        ("among 1e6", 1_000_000, outward),
        ("among 1e6 of 1e3 mappings", 1_000_000, outward_to_many),
    ];
    for (name, count, outward) in kinds {
        let mut made = None;
        for prefetch in [false, true] {
            let name = if prefetch { format!("{name}, prefetched") } else { name.to_owned() };
            let (mut at, mut leaves) = (0, false);
            let mut buffers = [[0; HEADERS]; BATCH];
            group.bench_function(name, |bencher| {
                // Made when it is needed: a filter on the command line may leave it out.
                let Flows { nat, inside, out, inward } = made.get_or_insert_with(|| flows(count, outward));
                bencher.iter(|| {
                    leaves = !leaves;
                    let (from, packets) =
                        if leaves { (Side::Inside(*inside), &*out) } else { (Side::Outside, &*inward) };
                    for buffer in &mut buffers {
                        *buffer = packets[at];
                        at = if at + 1 == packets.len() { 0 } else { at + 1 };
                    }
                    batch(nat, from, &mut buffers, prefetch);
                    black_box(&buffers);
                });
            });
        }
    }
    group.finish();
}

const SETUPS: usize = 50_016;

/// Hands the first packets of new flows over in batches.
fn set_up(nat: &mut Nat, inside: InsideId, packets: &mut [[u8; HEADERS]], prefetch: bool) {
    for buffers in packets.chunks_exact_mut(BATCH) {
        batch(nat, Side::Inside(inside), buffers.try_into().unwrap(), prefetch);
    }
    assert_eq!(nat.mapping_count(), SETUPS);
}

/// Gives back all that the NAT holds.
fn expire(nat: &mut Nat) {
    let late = nat.poll_timeout().unwrap() + Duration::from_secs(1000);
    while nat.poll_timeout().is_some() {
        nat.handle_timeout(late);
    }
    assert_eq!(nat.mapping_count(), 0);
}

fn set_up_and_expiry(criterion: &mut Criterion) {
    let packets: Vec<_> = (0..SETUPS).map(outward).collect();
    let mut group = criterion.benchmark_group("mapping");
    group.throughput(Throughput::Elements(SETUPS as u64)).sample_size(10);
    let limited = Behavior {
        subscriber_mappings: Some(2000),
        subscriber_sessions: Some(2000),
        subscriber_mapping_rate: Rate::new(Rate::MOST, Rate::MOST),
        ..Behavior::RFC
    };
    let blocks = Behavior { port_block: Some(512), ..limited.clone() };
    let kinds = [
        ("set-up", Behavior::RFC, false, false),
        ("set-up, prefetched", Behavior::RFC, true, false),
        // The memory is there, and in no order.
        ("set-up in a used table, prefetched", Behavior::RFC, true, true),
        ("set-up, subscribers limited", limited, true, false),
        ("set-up, in port blocks", blocks, true, false),
    ];
    for (name, behavior, prefetch, used) in kinds {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let (mut nat, inside) = nat_with(SETUPS, behavior.clone());
                    if used {
                        set_up(&mut nat, inside, &mut packets.clone(), prefetch);
                        expire(&mut nat);
                    }
                    (nat, inside, packets.clone())
                },
                |(mut nat, inside, mut packets)| {
                    set_up(&mut nat, inside, &mut packets, prefetch);
                    nat
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.bench_function("expiry", |bencher| {
        bencher.iter_batched(
            || flows(SETUPS, outward).nat,
            |mut nat| {
                expire(&mut nat);
                nat
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

const MANY: usize = 1_000_000;
const RUNS: usize = 3;

/// How long each call takes. Every run makes the same calls and takes the same steps. What the machine does besides
/// (interrupts, other processes) hits other calls in each, so the least of each call's times is its own.
#[derive(Default)]
struct Calls {
    least: Vec<Duration>,
    count: usize,
}

impl Calls {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures the machine that it runs on")]
    fn time(&mut self, call: impl FnOnce()) {
        let begun = Instant::now();
        call();
        let took = begun.elapsed();
        match self.least.get_mut(self.count) {
            Some(least) => *least = took.min(*least),
            None => self.least.push(took),
        }
        self.count += 1;
    }

    fn end_run(&mut self) {
        assert_eq!(self.least.len(), self.count, "every run is the same");
        self.count = 0;
    }

    /// Prints the distribution; returns the longest.
    fn sum_up(mut self, what: &str) -> Duration {
        self.least.sort_unstable();
        let (count, at) = (self.least.len(), |share: f64| (self.least.len() as f64 * share) as usize);
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| self.least[at(share)]);
        let longest = self.least[count - 1];
        println!("{what}: {count} calls, p50 {p50:?}, p99 {p99:?}, p99.9 {p999:?}, longest {longest:?}");
        longest
    }
}

/// A million mappings are made, by a table that begins with nothing; then all are due at the same moment, and calls of
/// `handle_timeout` and first packets of new flows take turns, each of which gives a share of them back. Returns the
/// longest call while they are made, and while they end.
fn longest_stalls() -> [Duration; 2] {
    let (mut making, mut ending) = (Calls::default(), Calls::default());
    for _ in 0..RUNS {
        let (mut nat, inside) = nat(MANY + MANY / 10);
        let begin = |nat: &mut Nat, calls: &mut Calls, flow, now| {
            let mut bytes = outward(flow);
            calls.time(|| {
                nat.outbound(inside, &mut Packet::plain(&mut bytes), now);
            });
        };
        (0..MANY).for_each(|i| begin(&mut nat, &mut making, i, Time::ZERO));
        assert_eq!(nat.mapping_count(), MANY);
        let late = Time::ZERO + Duration::from_secs(1000);
        let mut begun = 0;
        while nat.poll_timeout().is_some_and(|due| due <= late) {
            ending.time(|| nat.handle_timeout(late));
            begin(&mut nat, &mut ending, MANY + begun, late);
            begun += 1;
        }
        assert_eq!(nat.mapping_count(), begun, "only the new ones are left");
        making.end_run();
        ending.end_run();
    }
    [making.sum_up("making 1e6 mappings"), ending.sum_up("ending 1e6 mappings")]
}

fn stalls(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mapping");
    let mut longest = None;
    for (number, name) in
        ["longest stall while 1e6 are made", "longest stall while 1e6 expire"].iter().enumerate()
    {
        // It is its own statistics, and costs seconds: measured once.
        group.sample_size(10).bench_function(*name, |bencher| {
            bencher.iter_custom(|iterations| {
                longest.get_or_insert_with(longest_stalls)[number] * iterations as u32
            });
        });
    }
    group.finish();
}

/// Large blocks come from the kernel as zeros, as natbox has it for itself: glibc would clear what it keeps of tables that were
/// given back.
fn map_large_blocks(_: &mut Criterion) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a parameter of the allocator, of which every value is valid.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

criterion_group!(benches, map_large_blocks, known, set_up_and_expiry, stalls);
criterion_main!(benches);
