//! Bringing what a batch of packets will need into the cache.
//!
//! A packet of a known flow costs two cache misses in a large table, one after the other: the index entry, then the
//! session that it names. Taken packet by packet they cannot overlap, because each packet's work lies between. Here
//! the entries of a whole batch are read first, then the sessions, by loops so short that a core has many reads under way
//! at once; for what is of no session, the entry at which its mapping would be. What is read is not used: the packets
//! look everything up again, in the cache.

use std::{hint::black_box, net::Ipv4Addr};

use crate::{
    Nat, Protocol, Side,
    behavior::Mapping,
    packed::{Inner, Outer, Spot},
    packet::ipv4,
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
        let mut flows = [(0, Outer::anybody(Protocol::Udp)); TOGETHER];
        let mut count = 0;
        for packet in packets {
            let Some(flow) = flow_key(from, packet) else { continue };
            flows[count] = flow;
            count += 1;
            if count == TOGETHER {
                self.touch(from, &flows);
                count = 0;
            }
        }
        self.touch(from, &flows[..count]);
    }

    /// Reads the index entries and then the sessions of these flows, given by their keys.
    fn touch(&self, from: Side, flows: &[(u64, Outer)]) {
        let (index, ends) = (self.table.flows(from), self.table.ends(from));
        let mut hashes = [0; TOGETHER];
        for (hash, (near, far)) in hashes.iter_mut().zip(flows) {
            *hash = self.table.hash(*near, far.word());
        }
        let hashes = &hashes[..flows.len().min(TOGETHER)];
        // Whatever is folded must have been read; that it is used keeps the compiler from leaving it out.
        black_box(hashes.iter().fold(0, |sum, hash| sum ^ index.peek(*hash)));
        let (mut slots, mut known, mut others) = ([0; TOGETHER], 0, 0);
        for (hash, (near, far)) in hashes.iter().zip(flows) {
            match index.guess(*hash) {
                Some(slot) => {
                    slots[known % TOGETHER] = slot;
                    known += 1;
                }
                None => others ^= ends.peek(self.table.hash(*near, self.end_key(from, *far))),
            }
        }
        black_box(others);
        black_box(slots[..known].iter().fold(0, |sum, slot| sum ^ self.table.peek_session(*slot)));
    }

    /// The second word of the key of the mapping that a flow with this remote may have.
    #[inline]
    fn end_key(&self, from: Side, remote: Outer) -> u64 {
        if from == Side::Outside {
            return 0;
        }
        match self.behavior.mapping_of(remote.protocol()) {
            Mapping::EndpointIndependent => Outer::anybody(remote.protocol()).word(),
            Mapping::AddressDependent => remote.any_port().word(),
            Mapping::AddressAndPortDependent => remote.word(),
        }
    }
}

/// The key of a packet's session: its own end and its remote.
#[inline]
fn flow_key(from: Side, packet: &[u8]) -> Option<(u64, Outer)> {
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
        Side::Inside(id) => (Inner::new(id, source).word(), Outer::new(protocol, destination)),
        Side::Outside => (Outer::new(protocol, destination).word(), Outer::new(protocol, source)),
    })
}

/// With fewer sessions than this, everything is in the cache of a core anyway.
const SMALL: usize = 1 << 12;
