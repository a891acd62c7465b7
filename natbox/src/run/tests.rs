use std::{cell::RefCell, net::IpAddr};

use etherparse::PacketBuilder;
use natbox_core::{Claim, Config, InsidePort, Nat, packet::Offload};

use super::{
    forward::{Claims, Forwarder, Side},
    *,
};
use crate::{
    datapath::{BROADCAST, Delivered, ETHERTYPE_ARP, ETHERTYPE_IPV4, Link, Mac, MemoryWire, memory_port},
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
struct Ledger<'a> {
    entries: RefCell<Vec<(u16, usize)>>,
    pending: Vec<Claim>,
    outside: &'a MemoryWire,
}

impl Claims for Ledger<'_> {
    fn apply(&mut self, claim: Claim) {
        self.pending.push(claim);
    }

    fn flush(&mut self) -> io::Result<()> {
        for claim in self.pending.drain(..) {
            self.entries.borrow_mut().push((claim.external.0.port, self.outside.len()));
        }
        Ok(())
    }
}

/// Two TUNs and an Ethernet outside, all in memory.
struct Bench {
    forwarder: Forwarder,
    outside: MemoryWire,
    inside: [MemoryWire; 2],
}

impl Bench {
    fn new() -> Bench {
        let mut nat =
            Nat::new(Config { report_claims: true, ..Config::new(IpAddr::from(EXTERNAL)) }, 1).unwrap();
        let (port, outside) = memory_port("eth0", Link::Ethernet(OUR_MAC)).unwrap();
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
        let mut sides = vec![Side::new(port, Some(neighbors))];
        let inside = [0, 1].map(|i| {
            let gateway = IpAddr::from([10, 64, i, 1]);
            nat.add_inside(InsidePort { gateway, prefix_len: 24, mtu: 1500, shared: false }).unwrap();
            let (port, wire) = memory_port("tun", Link::Ip).unwrap();
            sides.push(Side::new(port, None));
            wire
        });
        Bench { forwarder: Forwarder::new(nat, sides, None).unwrap(), outside, inside }
    }

    /// One turn; returns how many frames moved, and the ledger of claims.
    fn turn(&mut self) -> (usize, Vec<(u16, usize)>) {
        let mut ledger =
            Ledger { entries: RefCell::default(), pending: Vec::new(), outside: &self.outside.clone() };
        let mut moved = 0;
        for side in 0..self.forwarder.sides() {
            moved += self.forwarder.pump(side, BUDGET, Time::ZERO, &mut ledger).unwrap();
        }
        (moved, ledger.entries.into_inner())
    }

    fn resolve_gateway(&mut self) {
        let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2];
        for part in [&GATEWAY_MAC[..], &GATEWAY, &OUR_MAC, &EXTERNAL] {
            reply.extend_from_slice(part);
        }
        let protocol = ETHERTYPE_ARP;
        self.outside.push(Delivered {
            packet: reply,
            offload: Offload::default(),
            protocol,
            peer: GATEWAY_MAC,
        });
        self.turn();
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
    let mut ledger =
        Ledger { entries: RefCell::default(), pending: Vec::new(), outside: &bench.outside.clone() };
    let error = bench.forwarder.pump(1, BUDGET, Time::ZERO, &mut ledger).unwrap_err();
    assert!(matches!(error, RunError::Port(PortError::Gone { .. })));
    assert!(bench.forwarder.lose(1), "the other one is served");
    assert_eq!(bench.forwarder.pump(1, BUDGET, Time::ZERO, &mut ledger).unwrap(), 0);
    assert!(!bench.forwarder.lose(2), "nobody is left");
    assert!(!bench.forwarder.lose(0), "nothing goes without an outside");
}
