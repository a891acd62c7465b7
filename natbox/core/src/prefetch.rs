//! Bringing what a batch of packets will need into the cache.
//!
//! A packet of a known flow costs two cache misses in a large table, one after the other: the index entry, then the
//! session that it names. Taken packet by packet they cannot overlap, because each packet's work lies between. Here the
//! entries of a whole batch are read first, then the sessions, by loops so short that a core has many reads under way at
//! once. What is read is not used: the packets look everything up again, in the cache.

use std::{hint::black_box, net::Ipv4Addr};

use crate::{
    Nat, Protocol, Side,
    index::Index,
    packed::{Inner, Outer, Spot},
    packet::ipv4,
    table::Table,
};

/// Packets that are looked at together: several times what a core can have under way at once.
const TOGETHER: usize = 32;

impl Nat {
    /// Prepares for `packets`, which are about to be handed to [`outbound`](Nat::outbound) or
    /// [`inbound`](Nat::inbound) and come from the side `from`: their sessions are brought into the cache, as many at a
    /// time as the machine can. It changes nothing, is never needed, and pays when there are more sessions than the cache
    /// holds and more than a few packets in the batch.
    ///
    /// Packets that are not of UDP or TCP, or not packets at all, are passed over.
    pub fn prefetch<'a>(&self, from: Side, packets: impl IntoIterator<Item = &'a [u8]>) {
        if self.table.session_count() < SMALL {
            return;
        }
        let mut hashes = [0; TOGETHER];
        let mut count = 0;
        for packet in packets {
            let Some((a, b)) = flow_key(from, packet) else { continue };
            hashes[count] = self.table.hash(a, b);
            count += 1;
            if count == TOGETHER {
                self.table.touch(from, &hashes);
                count = 0;
            }
        }
        self.table.touch(from, &hashes[..count]);
    }
}

/// The key of a packet's session, as two words.
#[inline]
fn flow_key(from: Side, packet: &[u8]) -> Option<(u64, u64)> {
    let header = packet.first_chunk::<{ ipv4::MIN_HEADER }>()?;
    let ports = packet.get(usize::from(header[0] & 0x0f) * 4..)?.first_chunk::<4>()?;
    let protocol = match header[ipv4::PROTOCOL] {
        ipv4::UDP => Protocol::Udp,
        ipv4::TCP => Protocol::Tcp,
        _ => return None,
    };
    let spot = |at: usize, port: [u8; 2]| Spot {
        addr: Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]),
        port: u16::from_be_bytes(port),
    };
    let source = spot(ipv4::SOURCE, [ports[0], ports[1]]);
    let destination = spot(ipv4::DESTINATION, [ports[2], ports[3]]);
    Some(match from {
        Side::Inside(id) => (Inner::new(id, source).word(), Outer::new(protocol, destination).word()),
        Side::Outside => (Outer::new(protocol, destination).word(), Outer::new(protocol, source).word()),
    })
}

/// With fewer sessions than this, everything is in the cache of a core anyway.
const SMALL: usize = 1 << 12;

impl Table {
    /// Reads the index entries and then the sessions of these flows.
    fn touch(&self, from: Side, hashes: &[u32]) {
        let index: &Index = self.flows(from);
        let entries = hashes.iter().fold(0, |sum, hash| sum ^ index.peek(*hash));
        // Whatever is folded must have been read; that it is used keeps the compiler from leaving it out.
        black_box(entries);
        let mut slots = [0; TOGETHER];
        for (slot, hash) in slots.iter_mut().zip(hashes) {
            *slot = index.find(*hash, |_| true).unwrap_or(0);
        }
        black_box(slots.iter().fold(0, |sum, slot| sum ^ self.peek_session(*slot)));
    }
}
