//! Any sequence of well-formed packets, waits, forwards, flushes and changes of behaviour: nothing panics, the limits hold,
//! what goes out by a mapping comes back by it, and in the end everything expires.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use natbox_core::{
    Behavior, Config, Endpoint, Inside, InsideId, InsidePort, Limits, MappingRequest, Nat, Packet, Protocol,
    Selection, Side, Time, Verdict, behavior::AXES, ends, preset::PRESETS,
};

const EXTERNAL: [u8; 4] = [198, 51, 100, 1];
const TUN: InsideId = InsideId(0);

fuzz_target!(|data: &[u8]| {
    let [preset, operations @ ..] = data else { return };
    let behavior = PRESETS[usize::from(*preset) % PRESETS.len()].behavior();
    let limits = Limits { mappings: 6, sessions: 9 };
    let config = Config { behavior, limits, report_events: true, ..Config::new(EXTERNAL.into()) };
    let mut nat = Nat::new(config, 7).expect("a good configuration");
    let inside = InsidePort { gateway: [10, 0, 0, 1].into(), prefix_len: 24, mtu: 1500, shared: false };
    nat.add_inside(inside).expect("an inside port");
    let (mut now, mut last) = (Time::ZERO, 4000);
    for operation in operations.chunks_exact(3) {
        let [kind, a, b] = [operation[0], operation[1], operation[2]];
        let protocol = Protocol::ALL[usize::from(a >> 6) % 3];
        let host = ([10, 0, 0, 2 + (a & 3)], 4000 + u16::from(a >> 2 & 3));
        let remote = ([203, 0, 113, 1 + (b & 1)], 53 + u16::from(b >> 1 & 3));
        let flags = b >> 3;
        match kind % 8 {
            0..3 => {
                let mut bytes = packet(protocol, true, host, remote, flags);
                let verdict = nat.outbound(TUN, &mut Packet::plain(&mut bytes), now);
                if verdict == Verdict::Forward(Side::Outside) {
                    last = answered(&mut nat, protocol, &bytes, (host, remote), now);
                }
            }
            3 => {
                let mut bytes = packet(protocol, false, remote, (EXTERNAL, last), flags);
                let verdict = nat.inbound(&mut Packet::plain(&mut bytes), now);
                assert!(matches!(
                    verdict,
                    Verdict::Forward(Side::Inside(_)) | Verdict::Drop(_) | Verdict::Local | Verdict::Reply
                ));
            }
            4 => {
                let mut bytes = packet(protocol, true, host, (EXTERNAL, last), flags);
                nat.outbound(TUN, &mut Packet::plain(&mut bytes), now);
            }
            5 => {
                now = now + Duration::from_millis(u64::from(a) * u64::from(b) * 20);
                nat.handle_timeout(now);
            }
            6 => administer(&mut nat, (protocol, host), (a, b), now),
            _ => {
                let axis = &AXES[usize::from(a) % AXES.len()];
                let mut behavior: Behavior = nat.behavior().clone();
                let from = PRESETS[usize::from(b) % PRESETS.len()].behavior();
                axis.set(&mut behavior, &axis.get(&from)).expect("a value of a preset");
                nat.set_behavior(behavior);
            }
        }
        while nat.poll_transmit().is_some() {}
        while nat.poll_event().is_some() {}
        assert!(nat.mapping_count() <= limits.mappings && nat.session_count() <= limits.sessions);
    }
    nat.flush(&Selection { statics: true, ..Selection::default() }, now);
    assert_eq!((nat.mapping_count(), nat.session_count()), (0, 0));
});

/// The answer to a packet that went out finds its way back to the host. The external port.
fn answered(
    nat: &mut Nat,
    protocol: Protocol,
    sent: &[u8],
    (host, remote): (([u8; 4], u16), ([u8; 4], u16)),
    now: Time,
) -> u16 {
    let (_, ends_of) = ends(sent).expect("it was well-formed");
    let external = ends_of.from.port;
    // A reset may have ended it.
    let lives = nat.sessions().any(|session| {
        session.protocol == protocol
            && session.inside.endpoint == Endpoint::v4(host.0.into(), host.1)
            && session.external.0.port == external
            && session.remote.0 == ends_of.to
    });
    if lives {
        let mut bytes = packet(protocol, false, remote, (EXTERNAL, external), 16);
        let verdict = nat.inbound(&mut Packet::plain(&mut bytes), now);
        assert_eq!(verdict, Verdict::Forward(Side::Inside(TUN)), "{protocol} by port {external}");
        assert_eq!(ends(&bytes).expect("it was well-formed").1.to, Endpoint::v4(host.0.into(), host.1));
    }
    external
}

fn administer(nat: &mut Nat, (protocol, host): (Protocol, ([u8; 4], u16)), (a, b): (u8, u8), now: Time) {
    if a & 1 == 0 {
        let host = (b & 1 == 0).then(|| host.0.into());
        nat.flush(&Selection { host, statics: b & 2 == 0, ..Selection::default() }, now);
        return;
    }
    let inside = Inside { port: TUN, endpoint: Endpoint::v4(host.0.into(), host.1) };
    let until = if b & 1 == 0 { Time::NEVER } else { now + Duration::from_secs(u64::from(b)) };
    let port = if b & 2 == 0 { 0 } else { 4000 + u16::from(b >> 2 & 3) };
    let _ = nat.add_mapping(MappingRequest { protocol, inside, address: None, port, until }, now);
}

fn packet(
    protocol: Protocol,
    outbound: bool,
    (from, from_port): ([u8; 4], u16),
    (to, to_port): ([u8; 4], u16),
    flags: u8,
) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv4(from, to, 64);
    let mut bytes = Vec::new();
    let written = match protocol {
        Protocol::Udp => builder.udp(from_port, to_port).write(&mut bytes, b"fuzz"),
        Protocol::Tcp => {
            let mut header = etherparse::TcpHeader::new(from_port, to_port, 1, 1000);
            (header.fin, header.syn) = (flags & 1 != 0, flags & 2 != 0);
            (header.rst, header.ack) = (flags & 4 != 0, flags & 16 != 0);
            builder.tcp_header(header).write(&mut bytes, b"")
        }
        Protocol::Icmp if outbound => builder.icmpv4_echo_request(from_port, 1).write(&mut bytes, b"fuzz"),
        Protocol::Icmp => builder.icmpv4_echo_reply(to_port, 1).write(&mut bytes, b"fuzz"),
    };
    written.expect("a packet that can be written");
    bytes
}
