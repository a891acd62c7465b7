//! What a packet must be like to become a part of a super-frame, and what two neighbours in one must share.

use natbox_core::packet::{Checksum, Offload};

use super::Batch;

/// An IPv4 header without options: others are not joined.
const IPV4: usize = 20;

// The flags of TCP that a part may have.
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
/// Where they are in a packet.
const FLAGS: usize = IPV4 + 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
}

impl Kind {
    /// Where the checksum is in the transport header.
    pub(super) const fn checksum_offset(self) -> u16 {
        match self {
            Kind::Tcp => 16,
            Kind::Udp => 6,
        }
    }
}

/// A packet that a super-frame can be made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// Length of IP and transport header.
    pub(super) headers: usize,
    pub(super) payload: usize,
    /// Nothing may follow it: PSH, which cutting leaves on the last segment only.
    pub(super) last: bool,
}

impl Part {
    /// `None` when this frame must go by itself.
    pub(super) fn of(batch: &Batch, frame: usize) -> Option<Part> {
        let Offload { checksum, gso: None } = batch.frame(frame).offload else { return None };
        let packet = batch.bytes(frame);
        // No options, and whole: of the fragment field only "don't fragment" may be set.
        if packet.len() < IPV4 + 8 || packet[0] != 0x45 || packet[6] & 0xbf != 0 || packet[7] != 0 {
            return None;
        }
        let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let (kind, headers, last) = match packet[9] {
            6 if packet.len() > IPV4 + 20 => {
                // Data and nothing else: no SYN, FIN, RST, URG, and no CWR, which only the first segment would keep.
                let flags = packet[FLAGS];
                let plain = flags & ACK != 0 && flags & !(ACK | PSH | ECE) == 0;
                let headers = IPV4 + usize::from(packet[IPV4 + 12] >> 4) * 4;
                (plain && headers >= IPV4 + 20).then_some((Kind::Tcp, headers, flags & PSH != 0))?
            }
            // A datagram without a checksum would get one.
            17 if field(IPV4 + 4) == packet.len() - IPV4 && field(IPV4 + 6) != 0 => {
                (Kind::Udp, IPV4 + 8, false)
            }
            _ => return None,
        };
        let computable = match checksum {
            Checksum::Partial { start, offset } => (start, offset) == (IPV4 as u16, kind.checksum_offset()),
            Checksum::Verified | Checksum::Unverified => true,
        };
        (computable && field(2) == packet.len() && packet.len() > headers).then(|| Part {
            kind,
            headers,
            payload: packet.len() - headers,
            last,
        })
    }

    /// Whether `next`, which this is about, may be cut off the end of a super-frame that begins with `whole` (its headers,
    /// and the payload of the `segments` packets that are in it) and come out as it is.
    pub(super) fn follows(&self, whole: &[u8], next: &[u8], segments: usize) -> bool {
        // Type of service, "don't fragment" and time to live.
        if [1, 6, 8].iter().any(|at| whole[*at] != next[*at]) {
            return false;
        }
        let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        let may_be_fragmented = whole[6] & 0x40 == 0;
        if may_be_fragmented && id(next) != id(whole).wrapping_add(segments as u16) {
            return false;
        }
        self.kind == Kind::Udp || self.continues(whole, next)
    }

    /// Whether a TCP segment begins where `whole` ends, and says nothing else than it does.
    fn continues(&self, whole: &[u8], next: &[u8]) -> bool {
        let number = |packet: &[u8]| u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
        let sent = (whole.len() - self.headers) as u32;
        let same = |range: std::ops::Range<usize>| whole[range.clone()] == next[range];
        number(next) == number(whole).wrapping_add(sent)
            && same(28..FLAGS) // what is acknowledged, and how long the header is
            && whole[FLAGS] == next[FLAGS] & !PSH
            && same(FLAGS + 1..IPV4 + 16) // window
            && same(IPV4 + 18..self.headers) // urgent pointer, options
    }

    /// Writes into the headers of the super-frame what its last packet, this one, adds to them.
    pub(super) fn close(&self, whole: &mut [u8]) {
        if self.kind == Kind::Tcp && self.last {
            whole[FLAGS] |= PSH;
        }
    }
}
