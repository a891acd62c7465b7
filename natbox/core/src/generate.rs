//! Packets of the NAT's own making: ICMP errors and TCP resets, rate-limited (RFC 1812 §4.3.2.8).

use std::{collections::VecDeque, net::Ipv4Addr};

use etherparse::PacketBuilder;

use crate::{
    Counters, Side, Time, Transmit,
    packet::{icmp, ipv4, tcp},
};

/// An ICMP error is at most this long, so that it crosses every IPv4 link whole (RFC 1812 §4.3.2.3).
const LONGEST_ERROR: usize = 576;
/// Packets that wait to be taken; they are taken after every batch, so more would be a burst nobody needs.
const MOST_QUEUED: usize = 256;
/// Sustained packets a second, and how many may come at once: enough for many traceroutes, too few to be of use to a
/// reflector attack.
const RATE: u64 = 1_000;
const BURST: u64 = 256;
const NANOS: u64 = 1_000_000_000;

/// The ICMP errors that a NAT sends.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    TimeExceeded,
    FragmentationNeeded { mtu: u16 },
    HostUnreachable,
    PortUnreachable,
    Prohibited,
}

/// The queue of generated packets with its rate limit.
pub(crate) struct Generator {
    queue: VecDeque<Transmit>,
    /// Nanoseconds' worth of tokens.
    credit: u64,
    last: Time,
}

impl Generator {
    pub(crate) fn new() -> Generator {
        Generator { queue: VecDeque::new(), credit: BURST * NANOS / RATE, last: Time::ZERO }
    }

    pub(crate) fn poll(&mut self) -> Option<Transmit> {
        self.queue.pop_front()
    }

    /// An ICMP error from `source` about `original`, which may be cut short behind its first 8 bytes of payload. None is
    /// sent about an ICMP error, a later fragment, or a packet that was not sent by one host to another (RFC 1812
    /// §4.3.2.7).
    pub(crate) fn icmp_error(
        &mut self,
        to: Side,
        source: Ipv4Addr,
        error: Error,
        original: &[u8],
        now: Time,
        counters: &mut Counters,
    ) {
        let Ok(header) = ipv4::read(original) else { return };
        let from = header.source;
        let query = matches!(icmp::parse(&original[header.header_len..]), Some(icmp::Kind::Query { .. }));
        if header.protocol == ipv4::ICMP && !query
            || header.fragment_offset > 0
            || !ipv4::is_host(from)
            || header.destination.is_multicast()
            || header.destination.is_broadcast()
            || !self.spend(now, counters)
        {
            return;
        }
        let (kind, code, word) = match error {
            Error::TimeExceeded => (icmp::TIME_EXCEEDED, 0, 0),
            Error::FragmentationNeeded { mtu } => (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu),
            Error::HostUnreachable => (icmp::UNREACHABLE, icmp::CODE_HOST, 0),
            Error::PortUnreachable => (icmp::UNREACHABLE, icmp::CODE_PORT, 0),
            Error::Prohibited => (icmp::UNREACHABLE, icmp::CODE_PROHIBITED, 0),
        };
        let [high, low] = word.to_be_bytes();
        let builder = PacketBuilder::ipv4(source.octets(), from.octets(), ipv4::FRESH_TTL).icmpv4_raw(
            kind,
            code,
            [0, 0, high, low],
        );
        let quoted =
            original.len().min(header.total_len).min(LONGEST_ERROR - ipv4::MIN_HEADER - icmp::HEADER);
        self.push(to, |packet| builder.write(packet, &original[..quoted]).is_ok());
    }

    /// A reset that answers the segment in `original`, as the far end would send it (RFC 9293 §3.10.7.1).
    pub(crate) fn reset(&mut self, to: Side, original: &[u8], now: Time, counters: &mut Counters) {
        let Ok(header) = ipv4::read(original) else { return };
        let Some(segment) = tcp::parse(&original[header.header_len..]) else { return };
        if segment.flags.rst() || !ipv4::is_host(header.source) || !self.spend(now, counters) {
            return;
        }
        let payload = header.total_len - (header.header_len + segment.header_len).min(header.total_len);
        let taken = payload as u32 + u32::from(segment.flags.syn()) + u32::from(segment.flags.fin());
        let sequence = if segment.flags.ack() { segment.acknowledgement } else { 0 };
        let builder =
            PacketBuilder::ipv4(header.destination.octets(), header.source.octets(), ipv4::FRESH_TTL)
                .tcp(segment.destination, segment.source, sequence, 0)
                .rst();
        let builder =
            if segment.flags.ack() { builder } else { builder.ack(segment.sequence.wrapping_add(taken)) };
        self.push(to, |packet| builder.write(packet, &[]).is_ok());
    }

    fn push(&mut self, to: Side, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        let mut packet = Vec::new();
        if write(&mut packet) {
            self.queue.push_back(Transmit { to, packet: packet.into() });
        }
    }

    fn spend(&mut self, now: Time, counters: &mut Counters) -> bool {
        let earned = u64::try_from((now - self.last).as_nanos()).unwrap_or(u64::MAX);
        self.last = self.last.max(now);
        self.credit = self.credit.saturating_add(earned).min(BURST * NANOS / RATE);
        if self.credit < NANOS / RATE || self.queue.len() >= MOST_QUEUED {
            counters.generated_suppressed += 1;
            return false;
        }
        self.credit -= NANOS / RATE;
        counters.generated_packets += 1;
        true
    }
}
