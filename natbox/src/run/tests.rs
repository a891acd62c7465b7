use std::net::IpAddr;

use etherparse::PacketBuilder;
use natbox_core::{Claim, Config, InsidePort, Nat, packet::Offload};

use super::{
    state::{Loss, OUTSIDE},
    *,
};
use crate::{
    datapath::{
        BROADCAST, Delivered, ETHERTYPE_ARP, ETHERTYPE_IPV4, Link, Mac, MemoryWire, Port, PortError,
        memory_port,
    },
    host::Route,
    neighbor::{NeighborConfig, Neighbors},
};

const OUR_MAC: Mac = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: Mac = [2, 0, 0, 0, 0, 0xfe];
const EXTERNAL: [u8; 4] = [198, 51, 100, 7];
const GATEWAY: [u8; 4] = [198, 51, 100, 254];
const REMOTE: [u8; 4] = [203, 0, 113, 9];
const HOST: [u8; 4] = [10, 64, 0, 2];

/// Notes in which order ports are claimed and made to take effect, and how many packets had left by then.
struct Ledger {
    entries: Vec<(u16, usize)>,
    pending: Vec<Claim>,
    outside: Vec<MemoryWire>,
    /// What becomes of it instead when ports are claimed.
    mishap: Option<fn() -> std::io::Error>,
}

impl Claims for Ledger {
    fn apply(&mut self, claim: Claim) {
        self.pending.push(claim);
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if let Some(mishap) = self.mishap.filter(|_| !self.pending.is_empty()) {
            return Err(mishap());
        }
        for claim in self.pending.drain(..) {
            let left = self.outside.iter().map(MemoryWire::len).sum();
            self.entries.push((claim.external.0.port, left));
        }
        Ok(())
    }
}

/// Two TUNs and an Ethernet outside, all in memory, and so many workers.
struct Bench {
    shared: Arc<Shared<Ledger>>,
    forwarders: Vec<Forwarder<Ledger>>,
    /// What the first worker has.
    outside: MemoryWire,
    inside: [MemoryWire; 2],
    /// What each worker has.
    wires: Vec<[MemoryWire; 3]>,
    tallies: Vec<Vec<Arc<Tally>>>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_workers(1)
    }

    fn with_workers(workers: usize) -> Bench {
        let mut nat =
            Nat::new(Config { report_claims: true, ..Config::new(IpAddr::from(EXTERNAL)) }, 1).unwrap();
        for i in [0, 1] {
            let gateway = IpAddr::from([10, 64, i, 1]);
            nat.add_inside(InsidePort { gateway, prefix_len: 24, mtu: 1500, shared: false }).unwrap();
        }
        let routes = vec![
            Route { destination: ([0; 4].into(), 0), gateway: Some(GATEWAY.into()), metric: 0 },
            Route { destination: ([198, 51, 100, 0].into(), 24), gateway: None, metric: 0 },
        ];
        let neighbors = Neighbors::new(NeighborConfig {
            mac: OUR_MAC,
            speak_as: vec![(EXTERNAL.into(), 24)],
            owned: Vec::new(),
            routes,
        });
        let ports = |_| {
            [("eth0", Link::Ethernet(OUR_MAC)), ("tun0", Link::Ip), ("tun1", Link::Ip)]
                .map(|(name, link)| memory_port(name, link).unwrap())
        };
        let ports: Vec<_> = (0..workers).map(ports).collect();
        let wires: Vec<_> = ports.iter().map(|of| of.each_ref().map(|(_, wire)| wire.clone())).collect();
        let outside = wires.iter().map(|of| of[OUTSIDE].clone()).collect();
        let ledger = Ledger { entries: Vec::new(), pending: Vec::new(), outside, mishap: None };
        let shared = Shared::new(State::new(nat, vec![Some(neighbors), None, None], ledger, None)).unwrap();
        let (shared, mut tallies) = (Arc::new(shared), Vec::new());
        let forwarder = |ports: [_; 3]| {
            let counted: Vec<_> = (0..3).map(|_| Arc::new(Tally::new())).collect();
            tallies.push(counted.clone());
            let ports = ports.map(|(port, _)| Box::new(port) as Box<dyn Port + Send>);
            Forwarder::new(shared.clone(), ports.into(), &counted).unwrap()
        };
        let forwarders = ports.into_iter().map(forwarder).collect();
        let [outside, inside @ ..] = wires[0].clone();
        Bench { shared, forwarders, outside, inside, wires, tallies }
    }

    /// One turn; returns how many frames moved, and the ledger of claims.
    fn turn(&mut self) -> (usize, Vec<(u16, usize)>) {
        self.turn_at(Time::ZERO)
    }

    fn turn_at(&mut self, now: Time) -> (usize, Vec<(u16, usize)>) {
        let mut moved = 0;
        for forwarder in &mut self.forwarders {
            for side in 0..forwarder.sides() {
                moved += forwarder.pump(side, BUDGET, now).unwrap();
            }
        }
        (moved, std::mem::take(&mut self.shared.lock().claims.entries))
    }

    /// The gateway's answer, which comes to this worker.
    fn resolve_gateway_at(&mut self, worker: usize) {
        let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2];
        for part in [&GATEWAY_MAC[..], &GATEWAY, &OUR_MAC, &EXTERNAL] {
            reply.extend_from_slice(part);
        }
        let protocol = ETHERTYPE_ARP;
        self.wires[worker][OUTSIDE].push(Delivered {
            packet: reply,
            offload: Offload::default(),
            protocol,
            peer: GATEWAY_MAC,
        });
        self.turn();
    }

    fn resolve_gateway(&mut self) {
        self.resolve_gateway_at(0);
    }
}

fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.0, to.0, 64).udp(from.1, to.1).write(&mut packet, payload).unwrap();
    packet
}

fn source(packet: &[u8]) -> ([u8; 4], u16) {
    (packet[12..16].try_into().unwrap(), u16::from_be_bytes([packet[20], packet[21]]))
}

#[test]
fn a_packet_waits_for_arp_goes_out_translated_and_its_answer_comes_back() {
    let mut bench = Bench::new();
    let packet = udp((HOST, 4242), (REMOTE, 53), b"where is it?");
    bench.inside[0].push(Delivered::ipv4(&packet, [0; 6]));
    let (moved, ledger) = bench.turn();
    assert_eq!(moved, 1);
    let arp = bench.outside.take().unwrap();
    assert_eq!((arp.protocol, arp.peer, bench.outside.take()), (ETHERTYPE_ARP, BROADCAST, None));

    bench.resolve_gateway();
    let sent = bench.outside.take().unwrap();
    assert_eq!((sent.protocol, sent.peer), (ETHERTYPE_IPV4, GATEWAY_MAC));
    let (address, port) = source(&sent.packet);
    assert_eq!(address, EXTERNAL);
    assert_eq!(ledger, [(port, 0)], "claimed before anything left");

    let answer = udp((REMOTE, 53), (EXTERNAL, port), b"here");
    bench.outside.push(Delivered::ipv4(&answer, GATEWAY_MAC));
    bench.turn();
    let delivered = bench.inside[0].take().unwrap();
    assert_eq!(delivered.packet[16..20], HOST);
    assert_eq!(source(&delivered.packet), (REMOTE, 53));
    assert_eq!(bench.inside[1].take(), None);
}

#[test]
fn claims_take_effect_before_the_batch_leaves() {
    let mut bench = Bench::new();
    bench.inside[0].push(Delivered::ipv4(&udp((HOST, 1), (REMOTE, 1), b""), [0; 6]));
    bench.turn();
    bench.resolve_gateway();
    while bench.outside.take().is_some() {}
    for port in 100..110 {
        bench.inside[0].push(Delivered::ipv4(&udp((HOST, port), (REMOTE, 53), b"x"), [0; 6]));
    }
    let (moved, ledger) = bench.turn();
    assert_eq!((moved, ledger.len(), bench.outside.len()), (10, 10, 10));
    assert!(ledger.iter().all(|(_, left)| *left == 0));
}

#[test]
fn between_two_inside_ports_packets_are_routed() {
    let mut bench = Bench::new();
    bench.inside[0].push(Delivered::ipv4(&udp((HOST, 7), ([10, 64, 1, 2], 8), b"hello"), [0; 6]));
    bench.turn();
    let delivered = bench.inside[1].take().unwrap();
    assert_eq!(source(&delivered.packet), (HOST, 7));
    assert_eq!(bench.outside.take(), None);
}

#[test]
fn an_echo_request_is_answered_the_way_it_came() {
    let mut bench = Bench::new();
    let echo = |to: [u8; 4]| {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(REMOTE, to, 64).icmpv4_echo_request(1, 1).write(&mut packet, b"ping").unwrap();
        packet
    };
    let router = [2, 0, 0, 0, 0, 0x77];
    bench.outside.push(Delivered::ipv4(&echo(EXTERNAL), router));
    bench.turn();
    let reply = bench.outside.take().unwrap();
    assert_eq!((reply.peer, &reply.packet[12..16]), (router, &EXTERNAL[..]));
    bench.inside[1].push(Delivered::ipv4(&echo([10, 64, 1, 1]), [0; 6]));
    bench.turn();
    assert_eq!(bench.inside[1].take().unwrap().packet[12..16], [10, 64, 1, 1]);
}

#[test]
fn an_expired_ttl_is_told_to_the_inside_host() {
    let mut bench = Bench::new();
    let mut packet = Vec::new();
    PacketBuilder::ipv4(HOST, REMOTE, 1).udp(9, 33_434).write(&mut packet, b"trace").unwrap();
    bench.inside[0].push(Delivered::ipv4(&packet, [0; 6]));
    bench.turn();
    let error = bench.inside[0].take().unwrap();
    assert_eq!((error.packet[9], error.packet[20], &error.packet[12..16]), (1, 11, &[10, 64, 0, 1][..]));
}

#[test]
fn many_frames_take_several_turns_and_keep_their_order() {
    let mut bench = Bench::new();
    bench.inside[0].push(Delivered::ipv4(&udp((HOST, 1), (REMOTE, 1), b""), [0; 6]));
    bench.turn();
    bench.resolve_gateway();
    while bench.outside.take().is_some() {}
    for n in 0..200u8 {
        bench.inside[0].push(Delivered::ipv4(&udp((HOST, 1), (REMOTE, 1), &[n]), [0; 6]));
    }
    let turns: Vec<usize> = std::iter::from_fn(|| Some(bench.turn().0).filter(|moved| *moved > 0)).collect();
    assert_eq!(turns, [64, 64, 64, 8]);
    let seen: Vec<u8> = std::iter::from_fn(|| bench.outside.take()).map(|frame| frame.packet[28]).collect();
    assert_eq!(seen, (0..200).collect::<Vec<u8>>());
}

#[test]
fn a_removed_inside_device_cuts_off_its_own_hosts_only() {
    let mut bench = Bench::new();
    bench.inside[0].remove();
    let error = bench.forwarders[0].pump(1, BUDGET, Time::ZERO).unwrap_err();
    assert!(matches!(error, RunError::Port(PortError::Gone { .. })));
    bench.forwarders[0].forget(1);
    assert_eq!(bench.shared.lock().lose(1, Time::ZERO), Loss::Others, "the other one is served");
    assert_eq!(bench.shared.lock().lose(1, Time::ZERO), Loss::Known, "it is told once");
    assert_eq!(bench.forwarders[0].pump(1, BUDGET, Time::ZERO).unwrap(), 0);
    assert_eq!(bench.shared.lock().lose(2, Time::ZERO), Loss::All, "nobody is left");
    assert_eq!(Bench::new().shared.lock().lose(0, Time::ZERO), Loss::All, "nothing goes without an outside");
}

mod express;
mod workers;
