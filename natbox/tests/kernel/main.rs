//! Linux itself is the judge of the preset `linux`: a router with masquerade in a namespace and the engine get the same
//! random packets (UDP, TCP, ICMP queries and errors), a thousand sequences of them, and what comes out must be the same. So for
//! `linux-open` with a router that has no firewall. Hosts also send to the router's external address, and timers run out:
//! not by waiting, but by setting them to nothing while a flow's last packet passes.
//!
//! External ports that are chosen at random may differ: they are compared by name. Everything else in a packet must agree,
//! checksums included. `NATBOX_KERNEL_SEED=N` plays one sequence, the one that a failure names.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the packets and the checker are those of the engine's own tests"
)]

#[path = "../../core/tests/common/check.rs"]
mod check;
mod compare;
mod conntrack;
mod expiry;
#[path = "../host_space/mod.rs"]
mod host_space;
#[path = "../../core/tests/common/packets.rs"]
mod packets;
mod router;
mod script;

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
};

use check::look;
use compare::{Outcome, Pair};
use conntrack::Tracked;
use host_space::trial;
use libtest_mimic::Arguments;
use natbox_core::{Config, Endpoint, InsideId, InsidePort, Nat, Protocol, Time, preset::Preset};
use packets::{ACK, FIN, FIN_ACK, RST, Raw, SYN, SYN_ACK, echo, echo_reply, error, udp};
use router::Router;
use script::{Cast, Flow, Inward, Numbers, Random, Segment};

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const INSIDE: InsideId = InsideId(0);
const SEQUENCES: u32 = 1000;
/// Beyond the numbers of the first casts.
const AGAIN: u32 = 4096;
const REPLAY: &str = "NATBOX_KERNEL_SEED";

fn main() -> ExitCode {
    let tests = vec![
        trial("the engine and the kernel agree on random packets", || agree_on_random_packets("linux")),
        trial("they agree where the gateway has no firewall", || agree_on_random_packets("linux-open")),
        trial("the preset's timers are the kernel's", timers_are_the_kernels),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn v4(endpoint: Endpoint) -> Ipv4Addr {
    let IpAddr::V4(addr) = endpoint.addr else { panic!("{endpoint} is IPv6") };
    addr
}

fn agree_on_random_packets(preset: &'static str) {
    let open = preset == "linux-open";
    let mut router = Router::new(GATEWAY, EXTERNAL, open);
    router.set_timers(expiry::STOPPED.as_secs());
    let mut tally = Tally::default();
    let replayed = std::env::var(REPLAY).ok().map(|seed| seed.parse::<u32>().unwrap());
    let seeds = replayed.map_or(0..SEQUENCES, |seed| seed..seed + 1);
    let mut failed = Vec::new();
    for seed in seeds {
        // A port that the kernel chose at random may happen to be another flow's own: what differs twice, differs.
        if Sequence::new(seed, seed, preset, &mut router).play(&mut tally).is_err()
            && let Err(story) = Sequence::new(seed, seed + AGAIN, preset, &mut router).play(&mut tally)
        {
            failed.push(format!("{REPLAY}={seed}\n{story}"));
        }
    }
    println!("{tally:?}");
    assert!(
        failed.is_empty(),
        "{} sequences differ, the first of them:\n{}",
        failed.len(),
        failed.iter().min_by_key(|s| s.len()).unwrap()
    );
    if replayed.is_none() {
        assert!(tally.forwarded > 5_000 && tally.delivered > 2_000 && tally.dropped > 2_000, "{tally:?}");
        assert!(tally.errors > 300 && tally.remapped > 100, "{tally:?}");
        assert!(tally.invalid < 300, "{tally:?}");
        assert!(tally.expired > 500 && tally.hairpins > 500, "{tally:?}");
        // Without a firewall the stack gets what nobody else takes.
        assert_eq!(tally.leaked > 0, open, "{tally:?}");
        assert!(tally.refused > if open { 1_000 } else { 300 }, "{tally:?}");
    }
}

/// What the sequences met: a test that compares nothing must not pass.
#[derive(Debug, Default)]
struct Tally {
    forwarded: usize,
    delivered: usize,
    dropped: usize,
    errors: usize,
    remapped: usize,
    /// Segments that connection tracking called invalid and the engine let through.
    invalid: usize,
    /// Flows whose timer ran out.
    expired: usize,
    /// Packets from inside to the gateway's external address.
    hairpins: usize,
    /// Packets that the gateway's own stack refused, and those that left untranslated.
    refused: usize,
    leaked: usize,
}

struct Sequence<'a> {
    random: Random,
    cast: Cast,
    router: &'a mut Router,
    nat: Nat,
    /// The external ports that flows were given, by the engine and by the kernel.
    externals: BTreeMap<Flow, (u16, u16)>,
    connections: BTreeMap<Flow, (Numbers, Tracked)>,
    /// Flows that a reset has ended, once it has passed.
    ended: Vec<Flow>,
    /// The last packets that came through, and which way they went.
    passed: Vec<(Inward, Pair)>,
    story: String,
    /// The gateway has no firewall.
    open: bool,
    now: Time,
    /// There is nothing more to compare.
    done: bool,
}

impl<'a> Sequence<'a> {
    /// The packets of `seed`, between hosts and remotes of the cast with this number, whom the kernel does not know yet.
    fn new(seed: u32, cast: u32, preset: &str, router: &'a mut Router) -> Sequence<'a> {
        let behavior = expiry::timers(Preset::by_name(preset).unwrap().behavior(), expiry::STOPPED);
        let mut nat = Nat::new(Config { behavior, ..Config::new(EXTERNAL.into()) }, seed.into()).unwrap();
        let inside = InsidePort { gateway: GATEWAY.into(), prefix_len: 8, mtu: 1500, shared: false };
        nat.add_inside(inside).unwrap();
        Sequence {
            random: Random(seed.into()),
            cast: Cast::new(cast),
            router,
            nat,
            externals: BTreeMap::new(),
            connections: BTreeMap::new(),
            ended: Vec::new(),
            passed: Vec::new(),
            story: String::new(),
            open: preset == "linux-open",
            now: Time::ZERO,
            done: false,
        }
    }

    /// Plays it to its end, or to the first difference.
    fn play(mut self, tally: &mut Tally) -> Result<(), String> {
        for _ in 0..10 + self.random.below(44) {
            let step = match self.random.below(24) {
                0..11 => self.outbound(tally),
                11..20 => self.inbound(tally),
                20..22 => self.icmp_error(tally),
                22 => self.hairpin(tally),
                _ => self.last_packet(tally),
            };
            if let Err(difference) = step {
                return Err(format!("{}{difference}", self.story));
            }
            for flow in self.ended.drain(..) {
                self.externals.remove(&flow);
            }
            if self.done {
                break;
            }
        }
        Ok(())
    }

    fn outbound(&mut self, tally: &mut Tally) -> Result<(), String> {
        // Half of the packets go on with what has begun.
        let known = self.random.below(2) == 0 && !self.externals.is_empty();
        let flow = if known { self.known_flow() } else { self.cast.flow(&mut self.random) };
        if self.is_over(&flow) {
            return Ok(());
        }
        self.outbound_of(flow, tally).map(drop)
    }

    /// The next packet of a flow leaves; whether it came through.
    fn outbound_of(&mut self, flow: Flow, tally: &mut Tally) -> Result<bool, String> {
        let (packet, segment) = self.packet(Inward::Outbound, flow, flow.inside, flow.remote);
        let pair = Pair { engine: packet.clone(), kernel: packet };
        let invalid = self.is_invalid(Inward::Outbound, flow, segment);
        let came = match self.compare(Inward::Outbound, &pair, Some(flow), tally)? {
            Outcome::KernelDrops if invalid => {
                tally.invalid += 1;
                return Ok(false);
            }
            other => other.agreed()?,
        };
        let passes = came.is_some();
        match came {
            Some(pair) => {
                tally.forwarded += 1;
                let ports = (look(&pair.engine).from.port, look(&pair.kernel).from.port);
                tally.remapped += usize::from(ports.0 != flow.inside.port);
                self.arrived(Inward::Outbound, flow, segment);
                self.passed.push((Inward::Outbound, pair));
            }
            None => tally.dropped += 1,
        }
        Ok(passes)
    }

    fn inbound(&mut self, tally: &mut Tally) -> Result<(), String> {
        let target = if self.externals.is_empty() { None } else { Some(self.known_flow()) };
        let mut flow = target.unwrap_or_else(|| self.cast.flow(&mut self.random));
        let mut ports = self.externals.get(&flow).copied().unwrap_or((7777, 7777));
        match self.random.below(8) {
            0 => flow.remote = self.cast.stranger(&mut self.random, flow.protocol),
            1 => ports = (7000, 7000),
            _ => {}
        }
        // It may be another's: whoever has this port towards this remote.
        let theirs = |(other, had): &(&Flow, &(u16, u16))| {
            (other.protocol, other.remote) == (flow.protocol, flow.remote) && **had == ports
        };
        flow = self.externals.iter().find(theirs).map_or(flow, |(other, _)| *other);
        if self.is_over(&flow) {
            return Ok(());
        }
        let to = |port| Endpoint::v4(EXTERNAL, port);
        let before = (self.random.0, self.connections.get(&flow).copied());
        let (engine, segment) = self.packet(Inward::Inbound, flow, flow.remote, to(ports.0));
        self.random.0 = before.0;
        match before.1 {
            Some(connection) => drop(self.connections.insert(flow, connection)),
            None => drop(self.connections.remove(&flow)),
        }
        let (kernel, _) = self.packet(Inward::Inbound, flow, flow.remote, to(ports.1));
        let known = self.externals.get(&flow) == Some(&ports);
        let invalid = known && self.is_invalid(Inward::Inbound, flow, segment);
        let came = match self.compare(Inward::Inbound, &Pair { engine, kernel }, None, tally)? {
            Outcome::KernelDrops if invalid => {
                tally.invalid += 1;
                return Ok(());
            }
            other => other.agreed()?,
        };
        match came {
            Some(pair) => {
                tally.delivered += 1;
                self.arrived(Inward::Inbound, flow, segment);
                self.passed.push((Inward::Inbound, pair));
            }
            None => tally.dropped += 1,
        }
        Ok(())
    }

    /// Whoever got a packet complains about it, or a router on the way does.
    fn icmp_error(&mut self, tally: &mut Tally) -> Result<(), String> {
        if self.passed.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.passed.len());
        let kind = self.random.choose(&[(3, 0), (3, 1), (3, 3), (3, 13), (11, 0)]);
        let length = self.random.choose(&[28, 1500]);
        let by_router = self.random.below(3) == 0;
        let (way, passed) = &self.passed[at];
        let complaint = |about: &Raw| {
            let view = look(about);
            let from = match way {
                Inward::Outbound if by_router => Endpoint::v4([11, 255, 0, 1].into(), 0),
                _ => view.to,
            };
            error(from, view.from, kind, about, length)
        };
        let pair = Pair { engine: complaint(&passed.engine), kernel: complaint(&passed.kernel) };
        let back = if *way == Inward::Outbound { Inward::Inbound } else { Inward::Outbound };
        let came = self.compare(back, &pair, None, tally)?.agreed()?;
        tally.errors += usize::from(came.is_some());
        Ok(())
    }

    fn known_flow(&mut self) -> Flow {
        let at = self.random.below(self.externals.len());
        *self.externals.keys().nth(at).unwrap()
    }

    /// The next packet of a flow, and its segment if it is TCP.
    fn packet(&mut self, way: Inward, flow: Flow, from: Endpoint, to: Endpoint) -> (Raw, Option<Segment>) {
        let length = self.random.below(40);
        let payload = vec![0x5a; length];
        match (flow.protocol, way) {
            (Protocol::Udp, _) => (udp(from, to, &payload), None),
            (Protocol::Icmp, Inward::Outbound) => (echo(from, to, &payload), None),
            (Protocol::Icmp, Inward::Inbound) => (echo_reply(from, to, &payload), None),
            (Protocol::Tcp, _) => {
                let random = &mut self.random;
                let fresh = |random: &mut Random| (Numbers::new(random), Tracked::new());
                let (numbers, tracked) = self.connections.entry(flow).or_insert_with(|| fresh(random));
                let any: &[u8] = &[SYN, SYN_ACK, ACK, FIN_ACK, RST];
                let sane = random.below(8) > 0;
                let flags = random.choose(if sane { tracked.plausible(way) } else { any });
                let segment = numbers.segment(way, flags, if flags == ACK { length } else { 0 });
                (tcp(from, to, &segment), Some(segment))
            }
        }
    }

    fn arrived(&mut self, way: Inward, flow: Flow, segment: Option<Segment>) {
        if let (Some((numbers, _)), Some(segment)) = (self.connections.get_mut(&flow), segment) {
            numbers.arrived(way, &segment);
        }
    }

    /// Whether the kernel will call a segment invalid that reaches its connection.
    fn is_invalid(&mut self, way: Inward, flow: Flow, segment: Option<Segment>) -> bool {
        let (Some((_, tracked)), Some(segment)) = (self.connections.get_mut(&flow), segment) else {
            return false;
        };
        let valid = tracked.segment(way, segment.flags);
        if segment.flags & RST != 0 && tracked.is_gone() {
            self.ended.push(flow);
        }
        !valid
    }

    fn is_over(&self, flow: &Flow) -> bool {
        self.connections.get(flow).is_some_and(|(_, tracked)| tracked.is_over())
    }
}

fn tcp(from: Endpoint, to: Endpoint, segment: &Segment) -> Raw {
    let mut header = etherparse::TcpHeader::new(from.port, to.port, segment.sequence, 8_192);
    (header.fin, header.syn) = (segment.flags & FIN != 0, segment.flags & SYN != 0);
    (header.rst, header.ack) = (segment.flags & RST != 0, segment.flags & ACK != 0);
    header.acknowledgment_number = segment.acknowledgement;
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ipv4(v4(from).octets(), v4(to).octets(), 64)
        .tcp_header(header)
        .write(&mut bytes, &vec![0x5a; segment.length])
        .unwrap();
    Raw::new(bytes)
}

/// A packet in one line, for people.
fn line(raw: &Raw) -> String {
    let view = look(raw);
    let mut text = format!("{} {} → {}", view.protocol, view.from, view.to);
    if view.protocol == Protocol::Tcp {
        let names = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (ACK, '.')];
        let flags: String =
            names.iter().filter(|(bit, _)| view.flags & bit != 0).map(|(_, name)| *name).collect();
        let _ =
            write!(text, " [{flags}] {} ack {} +{}", view.sequence, view.acknowledgement, view.payload.len());
    }
    if let (Some(quote), Some(icmp)) = (&view.quote, view.icmp) {
        let _ = write!(text, " {icmp:?} about {} {} → {}", quote.protocol, quote.from, quote.to);
    }
    text
}

/// What Linux would wait, if nobody set it otherwise.
fn timers_are_the_kernels() {
    let router = Router::new(GATEWAY, EXTERNAL, false);
    let linux = Preset::by_name("linux").unwrap().behavior();
    for (name, preset) in [
        ("udp_timeout", linux.udp_timeout),
        ("udp_timeout_stream", linux.udp_replied_timeout),
        ("icmp_timeout", linux.icmp_timeout),
        ("tcp_timeout_syn_sent", linux.tcp_opening_timeout),
        ("tcp_timeout_established", linux.tcp_established_timeout),
        ("tcp_timeout_time_wait", linux.tcp_closing_timeout),
        ("tcp_timeout_close", linux.tcp_reset_timeout),
    ] {
        assert_eq!(router.timer(name), preset.as_secs(), "{name}");
    }
}
