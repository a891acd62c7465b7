//! Random behaviours and packets for property tests.

use natbox_core::{
    Allowed, Behavior, Endpoint, PortRange, Protocol,
    behavior::*,
    packet::{Checksum, Gso, GsoKind, Offload},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{ACK, FIN, RST, Raw, SYN, echo, secs, tcp, udp};

/// Any behaviour; its ports are few enough to run out.
pub fn behavior() -> impl Strategy<Value = Behavior> {
    let who = (select(Mapping::ALL), select(Filtering::ALL), select(FilterScope::ALL), select(Hairpin::ALL));
    let ports = (select(PortAssignment::ALL), 1u16..65_000, 1u16..60, any::<bool>(), select(PortClass::ALL));
    let more = (any::<bool>(), select(Pooling::ALL), select(Refresh::ALL), 1u16..=1024);
    let tcp = (
        (select(UnsolicitedSyn::ALL), select(StrayTcp::ALL), select(Unsolicited::ALL)),
        (select(TcpReset::ALL), select(Pressure::ALL), select(FilterProtocol::ALL)),
        (select(Fragments::ALL), select(Identification::ALL)),
    );
    let times = (vec(1u64..400, 7), option::of(1u64..600));
    (who, ports, more, tcp, times, carrier()).prop_map(
        |(who, ports, more, tcp, (times, lifetime), carrier)| Behavior {
            mapping: who.0,
            filtering: who.1,
            filter_scope: who.2,
            hairpin: who.3,
            ports: ports.0,
            port_range: PortRange::new(ports.1, ports.1 + ports.2).unwrap(),
            port_parity: ports.3,
            port_class: ports.4,
            overloading: more.0,
            pooling: more.1,
            refresh: more.2,
            port_step: more.3,
            unsolicited_syn: tcp.0.0,
            stray_tcp: tcp.0.1,
            unsolicited: tcp.0.2,
            tcp_reset: tcp.1.0,
            pressure: tcp.1.1,
            filter_protocol: tcp.1.2,
            fragments: tcp.2.0,
            identification: tcp.2.1,
            udp_timeout: secs(times[0]),
            udp_replied_timeout: secs(times[1]),
            tcp_opening_timeout: secs(times[2]),
            tcp_established_timeout: secs(times[3]),
            tcp_closing_timeout: secs(times[4]),
            tcp_reset_timeout: secs(times[5]),
            icmp_timeout: secs(times[6]),
            mapping_lifetime: lifetime.map(secs),
            allow_udp: Allowed::All,
            allow_tcp: Allowed::All,
            ..carrier
        },
    )
}

/// What carriers set, over what the RFCs ask for.
fn carrier() -> impl Strategy<Value = Behavior> {
    let rate = || option::of((1u32..5, 1u32..20).prop_map(|(rate, burst)| Rate::new(rate, burst).unwrap()));
    let limits = (select(&[32u8, 31, 24, 1][..]), option::of(1u32..20), option::of(1u32..20), rate(), rate());
    let told = (select(Exhaustion::ALL), select(IcmpErrors::ALL));
    let ports = (option::of(1u64..300), 1u32..20, option::of(16u16..40), 1u16..5);
    let tcp = (option::of(select(Mapping::ALL)), option::of(select(Filtering::ALL)), 1u64..90, any::<bool>());
    (option::of(limits), told, ports, tcp).prop_map(|(limits, (exhaustion, icmp_errors), ports, tcp)| {
        let (prefix, mappings, sessions, mapping_rate, session_rate) =
            limits.unwrap_or((32, None, None, None, None));
        Behavior {
            subscriber_prefix: prefix,
            subscriber_mappings: mappings,
            subscriber_sessions: sessions,
            subscriber_mapping_rate: mapping_rate,
            subscriber_session_rate: session_rate,
            exhaustion,
            icmp_errors,
            port_quarantine: ports.0.map(secs),
            quarantine_ports: ports.1,
            port_block: ports.2,
            subscriber_blocks: ports.3,
            tcp_mapping: tcp.0.map_or(ForTcp::Same, ForTcp::Own),
            tcp_filtering: tcp.1.map_or(ForTcp::Same, ForTcp::Own),
            udp_port_timeouts: match tcp.3 {
                true => PortTimeouts::new(&[(53, secs(tcp.2)), (100, secs(90))]).unwrap(),
                false => PortTimeouts::NONE,
            },
            ..Behavior::RFC
        }
    })
}

/// TCP's control bits, sensible and not.
pub fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![select(&[SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK][..]), 0u8..64]
        .prop_map(|flags| flags & (FIN | SYN | RST | ACK))
}

/// A packet of this protocol; its transport checksum may be partial, or absent.
pub fn packet(protocol: Protocol, from: Endpoint, to: Endpoint) -> impl Strategy<Value = Raw> {
    let size = prop_oneof![0usize..64, 0usize..1400, Just(60_000)];
    let shape = (size, any::<u8>(), 0u8..4, any::<bool>(), 500u16..1400);
    let header = (2u8.., any::<u16>(), 0u8..64, any::<bool>());
    (shape, header).prop_map(move |((size, byte, checksum, options, segment), (ttl, id, dscp, df))| {
        let payload: Vec<u8> = (0..size).map(|i| byte.wrapping_mul(i as u8 | 1)).collect();
        let mut raw = match protocol {
            Protocol::Udp => udp(from, to, &payload),
            Protocol::Tcp => tcp(from, to, ACK, &payload),
            Protocol::Icmp => echo(from, to, &payload[..size.min(1400)]),
        };
        raw = raw.ip(|header| {
            header.time_to_live = ttl;
            header.identification = id;
            header.dscp = dscp.try_into().unwrap();
            header.dont_fragment = df;
        });
        if options {
            raw = raw.with_options();
        }
        match (protocol, checksum) {
            (Protocol::Icmp, _) => raw,
            _ if size > 1400 => raw.gso(segment),
            (Protocol::Udp, 1) => raw.without_checksum(),
            (_, 2) => raw.partial(),
            _ => raw,
        }
    })
}

/// Metadata as a confused datapath might give it.
pub fn offload() -> impl Strategy<Value = Offload> {
    let checksum = prop_oneof![
        Just(Checksum::Unverified),
        Just(Checksum::Verified),
        (any::<u16>(), any::<u16>()).prop_map(|(start, offset)| Checksum::Partial { start, offset }),
        Just(Checksum::Partial { start: 20, offset: 6 }),
    ];
    let kind = select(&[GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp][..]);
    let gso = (kind, any::<u16>(), any::<u16>(), any::<bool>())
        .prop_map(|(kind, segment, header_len, ecn)| Gso { kind, segment, header_len, ecn });
    (checksum, option::of(gso)).prop_map(|(checksum, gso)| Offload { checksum, gso })
}
