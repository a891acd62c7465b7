use std::{net::Ipv4Addr, time::Duration};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::{
    Allowed, Behavior, Config, Endpoint, Inside, InsidePort, Limits, MappingRequest, PortRange, Selection,
    behavior::*,
    packet::{Gso, GsoKind, Offload},
};

const EXTERNAL: [u8; 4] = [198, 51, 100, 1];
const GATEWAY: [u8; 4] = [10, 0, 0, 1];
const OTHER_GATEWAY: [u8; 4] = [10, 1, 0, 1];
/// Where hosts inside send to: hosts outside, the NAT's own addresses, and what is behind another inside port.
const OUTSIDE: [[u8; 4]; 12] = [
    [203, 0, 113, 5],
    [203, 0, 113, 5],
    [203, 0, 113, 5],
    [203, 0, 113, 6],
    [203, 0, 113, 6],
    EXTERNAL,
    GATEWAY,
    OTHER_GATEWAY,
    [10, 1, 0, 2],
    [10, 1, 0, 255],
    [10, 0, 0, 255],
    [224, 0, 0, 5],
];
const INSIDE: [[u8; 4]; 8] = [
    [10, 0, 0, 2],
    [10, 0, 0, 2],
    [10, 0, 0, 3],
    [10, 0, 0, 3],
    [10, 0, 0, 4],
    GATEWAY,
    [10, 0, 0, 255],
    [127, 0, 0, 1],
];

/// What is otherwise from now on.
#[derive(Clone, Debug)]
enum Change {
    Behavior(Box<Behavior>),
    /// A bit for each of three addresses.
    External(u8),
    Forward {
        host: u8,
        port: u16,
        until: u64,
    },
    Flush(bool),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => behavior().prop_map(|behavior| Change::Behavior(Box::new(behavior))),
        1 => (1u8..8).prop_map(Change::External),
        2 => (0u8..8, prop_oneof![Just(0u16), 4000u16..4008], 1u64..200)
            .prop_map(|(host, port, until)| Change::Forward { host, port, until }),
        1 => any::<bool>().prop_map(Change::Flush),
    ]
}

impl Change {
    fn apply(&self, nat: &mut Nat, port: InsideId, now: Time) -> String {
        match self {
            Change::Behavior(behavior) => nat.set_behavior(Behavior::clone(behavior)),
            Change::External(bits) => {
                let bits = (0..3).filter(|bit| bits >> bit & 1 == 1);
                let addresses = bits.map(|bit| Ipv4Addr::from_bits(u32::from_be_bytes(EXTERNAL) + 2 * bit));
                nat.set_external(addresses.map(Into::into).collect(), now).unwrap();
            }
            Change::Forward { host, port: external, until } => {
                let addr = Ipv4Addr::from(INSIDE[usize::from(*host) % INSIDE.len()]);
                let inside = Inside { port, endpoint: Endpoint::v4(addr, 4000 + u16::from(*host) % 2) };
                let protocol = if until % 2 == 0 { Protocol::Udp } else { Protocol::Tcp };
                let until = now + Duration::from_secs(*until);
                let request = MappingRequest { protocol, inside, address: None, port: *external, until };
                return format!("{:?}", nat.add_mapping(request, now));
            }
            Change::Flush(statics) => {
                let tcp = Some(Protocol::Tcp);
                nat.flush(&Selection { protocol: tcp, statics: *statics, ..Selection::default() }, now);
            }
        }
        String::new()
    }
}

/// A packet and what is wrong with it.
#[derive(Clone, Debug)]
struct Sent {
    outward: bool,
    /// Numbers that choose among few ends, so that flows meet again.
    ends: (u8, u8),
    flags: Option<u8>,
    ttl: u8,
    dont_fragment: bool,
    payload: usize,
    offload: (bool, Option<u16>),
    /// A byte that is changed, and what is added to it.
    damage: Option<(usize, u8)>,
    /// Bytes behind the packet, or, when negative, bytes that it lacks.
    excess: i8,
    later: u64,
}

fn sent() -> impl Strategy<Value = Sent> {
    let damage = prop_oneof![6 => Just(None), 1 => (0usize..44, 1u8..).prop_map(Some)];
    let excess = prop_oneof![6 => Just(0), 1 => -30i8..30];
    let ttl = prop_oneof![6 => Just(64u8), 1 => 0u8..3];
    let payload = prop_oneof![6 => 0usize..40, 1 => 1400usize..1600];
    let gso = prop_oneof![4 => Just(None), 1 => (100u16..1600).prop_map(Some)];
    let flags = prop_oneof![1 => Just(None), 1 => (0u8..32).prop_map(Some), 1 => Just(Some(Flags::ACK))];
    let later = prop_oneof![3 => 0u64..20, 1 => 0u64..400];
    let what = ((any::<bool>(), 0u8..8, 0u8..24), flags, ttl, any::<bool>(), payload);
    (what, (any::<bool>(), gso), damage, excess, later).prop_map(
        |(((outward, near, far), flags, ttl, dont_fragment, payload), offload, damage, excess, later)| {
            let ends = (near, far);
            Sent { outward, ends, flags, ttl, dont_fragment, payload, offload, damage, excess, later }
        },
    )
}

impl Sent {
    /// Among the addresses are the NAT's own.
    fn bytes(&self) -> Vec<u8> {
        let (near, far) = self.ends;
        let inside = INSIDE[usize::from(near) % INSIDE.len()];
        let outside = OUTSIDE[usize::from(far) % OUTSIDE.len()];
        let ports = (
            4000 + u16::from(near) % if self.outward { 2 } else { 8 },
            if usize::from(far) < OUTSIDE.len() { 80 } else { 53 },
        );
        let ((source, from), (destination, to)) = match self.outward {
            true => ((inside, ports.0), (outside, ports.1)),
            false => ((outside, ports.1), (EXTERNAL, ports.0)),
        };
        let mut ip =
            etherparse::Ipv4Header::new(0, self.ttl, etherparse::IpNumber::UDP, source, destination).unwrap();
        ip.dont_fragment = self.dont_fragment;
        let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
        let (mut bytes, payload) = (Vec::new(), vec![7; self.payload]);
        match self.flags {
            None => builder.udp(from, to).write(&mut bytes, &payload).unwrap(),
            Some(flags) => {
                builder.tcp(from, to, 1, 512).write(&mut bytes, &payload).unwrap();
                bytes[MIN_HEADER + 13] = flags;
            }
        }
        if let Some((at, what)) = self.damage
            && let Some(byte) = bytes.get_mut(at)
        {
            *byte = byte.wrapping_add(what);
            if what % 2 == 0 {
                // What it says of itself is wrong, and its checksum is right.
                bytes[10..12].fill(0);
                let field = crate::packet::checksum::checksum(&bytes[..MIN_HEADER]);
                put_u16(&mut bytes, ipv4::CHECKSUM, field);
            }
        }
        bytes.resize(bytes.len().saturating_add_signed(self.excess.into()), 0);
        bytes
    }

    fn offload(&self) -> Offload {
        let (partial, segment) = self.offload;
        let kind = if self.flags.is_some() { GsoKind::TcpV4 } else { GsoKind::Udp };
        Offload {
            checksum: if partial { Checksum::Partial { start: 20, offset: 6 } } else { Checksum::Verified },
            gso: segment.map(|segment| Gso { kind, segment, header_len: 0, ecn: false }),
        }
    }
}

/// Whatever keeps a flow from leaving, or sends it another way.
fn behavior() -> impl Strategy<Value = Behavior> {
    use proptest::{option, sample::select};
    let allowed = || select(vec![Allowed::All, Allowed::All, Allowed::Only([80, 0, 0, 0, 0, 0, 0, 0])]);
    let exempt = |prefix_len, port| Destination::new([203, 0, 113, 6].into(), prefix_len, port);
    let exempt = [exempt(32, 0), exempt(32, 80), exempt(24, 53)];
    let exempt = exempt.map(|exempt| Destinations::new(&[exempt.unwrap()]).unwrap());
    let exempt = prop_oneof![2 => Just(Destinations::NONE), 1 => select(exempt.to_vec())];
    let few = PortRange::new(4000, 4003).unwrap();
    let ports = (select(vec![PortRange::ALL, few]), select(PortAssignment::ALL), any::<bool>());
    let sorts = (select(Mapping::ALL), select(Filtering::ALL), select(Hairpin::ALL), select(Pressure::ALL));
    let answers = (select(StrayTcp::ALL), select(Exhaustion::ALL), select(Identification::ALL));
    let share = (option::of(1u32..4), option::of(1u32..4));
    (allowed(), allowed(), exempt, ports, sorts, answers, share).prop_map(
        |(allow_udp, allow_tcp, untranslated, ports, sorts, answers, share)| Behavior {
            allow_udp,
            allow_tcp,
            untranslated,
            port_range: ports.0,
            ports: ports.1,
            overloading: ports.2,
            mapping: sorts.0,
            filtering: sorts.1,
            hairpin: sorts.2,
            pressure: sorts.3,
            stray_tcp: answers.0,
            exhaustion: answers.1,
            identification: answers.2,
            subscriber_mappings: share.0,
            subscriber_sessions: share.1,
            ..Behavior::RFC
        },
    )
}

fn nat(behavior: &Behavior, limit: usize, shared: bool) -> (Nat, InsideId) {
    let limits = Limits { mappings: limit, sessions: limit + 1 };
    let config = Config {
        behavior: behavior.clone(),
        limits,
        shared,
        report_events: true,
        ..Config::new(EXTERNAL.into())
    };
    let mut nat = Nat::new(config, 7).unwrap();
    let inside =
        InsidePort { gateway: Ipv4Addr::from(GATEWAY).into(), prefix_len: 24, mtu: 1450, shared: false };
    let id = nat.add_inside(inside).unwrap();
    let gateway = Ipv4Addr::from(OTHER_GATEWAY).into();
    nat.add_inside(InsidePort { gateway, ..inside }).unwrap();
    (nat, id)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, and whatever is otherwise meanwhile, the short way and the long way make the same of it; and
    /// all is found where it belongs.
    #[test]
    fn both_ways_lead_to_the_same(
        steps in proptest::collection::vec((sent(), proptest::option::weighted(0.1, change())), 1..80),
        behavior in behavior(),
        limit in prop_oneof![2usize..8, Just(100)],
        shared in any::<bool>(),
    ) {
        let ((mut short, inside), (mut long, _)) = (nat(&behavior, limit, shared), nat(&behavior, limit, shared));
        let mut now = Time::ZERO;
        for (sent, change) in steps {
            now = now + Duration::from_secs(sent.later);
            if let Some(change) = change {
                let (ours, theirs) = (change.apply(&mut short, inside, now), change.apply(&mut long, inside, now));
                prop_assert_eq!(ours, theirs);
                short.table.check();
            }
            let (mut first, mut second) = (sent.bytes(), sent.bytes());
            let mut packet = Packet::new(&mut first, 0, sent.offload());
            let mut other = Packet::new(&mut second, 0, sent.offload());
            long.advance(now);
            let verdicts = match sent.outward {
                true => (short.outbound(inside, &mut packet, now), long.outbound_of_any_kind(inside, &mut other, now)),
                false => (short.inbound(&mut packet, now), long.inbound_of_any_kind(&mut other, now)),
            };
            prop_assert_eq!(verdicts.0, verdicts.1, "{:?}", sent);
            prop_assert_eq!(packet.bytes(), other.bytes());
            prop_assert_eq!(short.counters(), long.counters());
            prop_assert_eq!(packet.offload, other.offload);
            prop_assert_eq!(short.poll_timeout(), long.poll_timeout());
            loop {
                let (ours, theirs) = (short.poll_event(), long.poll_event());
                prop_assert_eq!(&ours, &theirs);
                let sent = (short.poll_transmit(), long.poll_transmit());
                let nothing = ours.is_none() && sent.0.is_none();
                prop_assert_eq!(sent.0, sent.1);
                if nothing {
                    break;
                }
            }
            prop_assert!(short.sessions().eq(long.sessions()));
            short.table.check();
        }
    }
}
