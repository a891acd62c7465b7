//! Identification numbers of packets that leave (RFC 7857 §10): two hosts behind one address choose theirs without knowing
//! of each other, and fragments of theirs would be taken for each other's.
//!
//! What may be or become fragments gets a number of the NAT's own: consecutive ones for each destination and protocol, as
//! from one host, so that none comes again before 65,535 others have. Packets that are whole and may not be fragmented
//! keep theirs, which means nothing (RFC 6864 §4.1).
//!
//! An ICMP error quotes the number that went out. The latest ones are remembered together with what the host had chosen,
//! so that the host gets that back; of an older packet the number stays.

use std::net::Ipv4Addr;

use crate::{
    Nat, Packet, Side, Verdict,
    behavior::Identification,
    index::Hasher,
    packet::{ipv4, udp},
};

/// Counters; destinations that share one never meet a number earlier for it.
const COUNTERS: usize = 1024;
/// Numbers that are remembered: those of the last tenth of a second at ten thousand a second.
const RECENT: usize = 1024;

#[derive(Clone, Copy, Default)]
struct Recent {
    flow: u32,
    number: u16,
    original: u16,
}

struct Numbers {
    next: [u16; COUNTERS],
    recent: [Recent; RECENT],
}

pub(crate) struct Identifications {
    hasher: Hasher,
    /// None before the first packet that needs one.
    numbers: Option<Box<Numbers>>,
}

impl Identifications {
    pub(crate) fn new(hasher: Hasher) -> Identifications {
        Identifications { hasher, numbers: None }
    }

    /// Whose numbers must not meet (RFC 6864 §4.2): those with the same source, destination and protocol.
    fn flow(&self, (source, destination): (Ipv4Addr, Ipv4Addr), protocol: u8) -> u32 {
        let ends = u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
        self.hasher.hash(ends, protocol.into())
    }

    /// The first of `count` consecutive numbers for packets whose host has numbered them from `original` on.
    fn take(&mut self, ends: (Ipv4Addr, Ipv4Addr), protocol: u8, original: u16, count: u16) -> u16 {
        let (flow, hasher) = (self.flow(ends, protocol), self.hasher);
        let numbers = self.numbers.get_or_insert_with(|| {
            let next = std::array::from_fn(|counter| hasher.hash(counter as u64, u64::MAX) as u16);
            Box::new(Numbers { next, recent: [Recent::default(); RECENT] })
        });
        let next = &mut numbers.next[flow as usize % COUNTERS];
        let first = *next;
        *next = first.wrapping_add(count);
        for i in 0..count {
            let (number, original) = (first.wrapping_add(i), original.wrapping_add(i));
            numbers.recent[place(flow, number)] = Recent { flow, number, original };
        }
        first
    }

    /// The number that the host had chosen for a packet that went out with `number`, if that is remembered.
    pub(crate) fn original(&self, ends: (Ipv4Addr, Ipv4Addr), protocol: u8, number: u16) -> Option<u16> {
        let flow = self.flow(ends, protocol);
        let recent = self.numbers.as_ref()?.recent[place(flow, number)];
        (recent.flow == flow && recent.number == number).then_some(recent.original)
    }
}

fn place(flow: u32, number: u16) -> usize {
    (flow.rotate_left(16).wrapping_add(number.into())) as usize % RECENT
}

impl Nat {
    /// Gives a packet that has been translated a number of its own, if it comes from one of the NAT's addresses and the
    /// number means something.
    #[cold]
    #[inline(never)]
    pub(crate) fn identify(&mut self, verdict: Verdict, packet: &mut Packet<'_>) {
        let leaves =
            matches!(verdict, Verdict::Forward(Side::Outside) | Verdict::Hairpin(_) | Verdict::Reply);
        let Ok(header) = ipv4::read(packet.bytes()) else { return };
        if !leaves
            || self.behavior.identification == Identification::Keep
            || ipv4::is_atomic(packet.bytes())
            || !self.table.is_external(header.source)
        {
            return;
        }
        // Whoever cuts a super-frame numbers the segments from this one on.
        let payload =
            header.total_len - header.header_len - udp::HEADER.min(header.total_len - header.header_len);
        let segment = packet.offload.gso.map_or(0, |gso| usize::from(gso.segment));
        let count = if segment == 0 { 1 } else { payload.div_ceil(segment).max(1) };
        let original = ipv4::identification(packet.bytes());
        let ends = (header.source, header.destination);
        let number = self.identifications.take(ends, header.protocol, original, count.min(RECENT) as u16);
        ipv4::set_identification(packet.bytes_mut(), number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const S: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

    #[test]
    fn numbers_come_again_only_after_all_others() {
        let mut ids = Identifications::new(Hasher::new(3, 5));
        let mut seen = [false; 1 << 16];
        for i in 0..1u32 << 16 {
            let number = ids.take((N, S), ipv4::UDP, (i % 3) as u16, 1);
            assert!(!std::mem::replace(&mut seen[usize::from(number)], true));
            assert_eq!(ids.original((N, S), ipv4::UDP, number), Some((i % 3) as u16));
            assert_eq!(ids.original((N, S), ipv4::TCP, number), None);
        }
    }

    #[test]
    fn a_super_frame_takes_a_number_for_each_segment() {
        let mut ids = Identifications::new(Hasher::new(3, 5));
        let first = ids.take((N, S), ipv4::TCP, 65_530, 44);
        assert_eq!(ids.take((N, S), ipv4::TCP, 9, 1), first.wrapping_add(44));
        assert_eq!(ids.original((N, S), ipv4::TCP, first.wrapping_add(10)), Some(4));
    }
}
