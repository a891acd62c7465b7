//! A NAT's behaviour, drawn at random.

use super::{Random, secs};
use natbox_core::{Allowed, Behavior, PortRange, behavior::*};
use std::time::Duration;

/// Ports that flows go to.
pub const REMOTE_PORTS: [u16; 3] = [100, 101, 102];
/// A remote that may be exempt from translation.
pub const EXEMPT: [u8; 4] = [203, 0, 113, 3];

/// A behaviour, and its rates as numbers.
pub fn behavior(random: &mut Random) -> (Behavior, [Option<(u32, u32)>; 2]) {
    // Off the steps of time, which are seconds and a millisecond for each operation: what hangs on a deadline may be a
    // millisecond late.
    let mut time = || secs(5 + random.below(90)) + Duration::from_millis(500);
    let times = [time(), time(), time(), time(), time(), time(), time(), time(), time()];
    let mut behavior = Behavior {
        mapping: random.of(Mapping::ALL),
        filtering: random.of(Filtering::ALL),
        filter_scope: random.of(FilterScope::ALL),
        filter_protocol: random.of(FilterProtocol::ALL),
        ports: random.of(PortAssignment::ALL),
        port_parity: random.once_in(2),
        port_class: random.of(PortClass::ALL),
        pooling: random.of(Pooling::ALL),
        hairpin: random.of(&[Hairpin::Internal, Hairpin::External, Hairpin::External, Hairpin::Off]),
        refresh: random.of(Refresh::ALL),
        udp_timeout: times[0],
        udp_replied_timeout: times[1],
        tcp_opening_timeout: times[2],
        tcp_established_timeout: times[3],
        tcp_closing_timeout: times[4],
        tcp_reset_timeout: times[5],
        icmp_timeout: times[6],
        mapping_lifetime: random.once_in(3).then_some(times[7]),
        tcp_reset: random.of(TcpReset::ALL),
        unsolicited_syn: random.of(UnsolicitedSyn::ALL),
        unsolicited: random.of(Unsolicited::ALL),
        stray_tcp: random.of(StrayTcp::ALL),
        pressure: random.of(Pressure::ALL),
        overloading: random.once_in(2),
        exhaustion: random.of(Exhaustion::ALL),
        icmp_errors: random.of(&[
            IcmpErrors::Both,
            IcmpErrors::Both,
            IcmpErrors::Inside,
            IcmpErrors::Outside,
            IcmpErrors::Off,
        ]),
        ..Behavior::RFC
    };
    if random.once_in(3) {
        behavior.tcp_mapping = ForTcp::Own(random.of(Mapping::ALL));
    }
    if random.once_in(3) {
        behavior.tcp_filtering = ForTcp::Own(random.of(Filtering::ALL));
    }
    if random.once_in(3) {
        behavior.udp_port_timeouts = PortTimeouts::new(&[(REMOTE_PORTS[1], times[8])]).unwrap();
    }
    if random.once_in(6) {
        let [first, second, _] = REMOTE_PORTS;
        behavior.allow_udp = Allowed::Only([first, second, 0, 0, 0, 0, 0, 0]);
        behavior.allow_tcp = Allowed::Only([second, 0, 0, 0, 0, 0, 0, 0]);
    }
    if random.once_in(6) {
        let port = random.of(&[0, REMOTE_PORTS[0]]);
        let exempt = Destination::new(EXEMPT.into(), 32, port).unwrap();
        behavior.untranslated = Destinations::new(&[exempt]).unwrap();
    }
    // Few ports, so that flows meet at them; or all.
    behavior.port_range = range(random.of(&[(1, u16::MAX), (1, u16::MAX), (4000, 4003), (3998, 4017)]));
    let rates = carrier(&mut behavior, random);
    (behavior, rates)
}

fn carrier(behavior: &mut Behavior, random: &mut Random) -> [Option<(u32, u32)>; 2] {
    behavior.subscriber_prefix = random.of(&[32, 32, 31, 24]);
    if random.once_in(3) {
        behavior.subscriber_mappings = Some(1 + random.below(5) as u32);
    }
    if random.once_in(3) {
        behavior.subscriber_sessions = Some(1 + random.below(8) as u32);
    }
    if random.once_in(3) {
        behavior.port_quarantine = Some(secs(2 + random.below(60)) + Duration::from_millis(450));
        behavior.quarantine_ports = random.of(&[0, 1 << 16, 1 << 16, 1 << 16]);
    }
    if random.once_in(4) {
        behavior.port_range = range(random.of(&[(4000, 4063), (4008, 4050), (1, u16::MAX)]));
        behavior.port_block = Some(16);
        behavior.subscriber_blocks = 1 + random.below(2) as u16;
    }
    let rate = |random: &mut Random| random.once_in(4).then(|| (1, 1 + random.below(6) as u32));
    let rates = [rate(random), rate(random)];
    let of = |rate: Option<(u32, u32)>| rate.and_then(|(per_second, burst)| Rate::new(per_second, burst));
    (behavior.subscriber_mapping_rate, behavior.subscriber_session_rate) = (of(rates[0]), of(rates[1]));
    rates
}

fn range((first, last): (u16, u16)) -> PortRange {
    PortRange::new(first, last).unwrap()
}
