//! Bringing what a batch of packets will need into the cache.
//!
//! A packet of a known flow costs two cache misses in a large table, one after the other: the place where its session
//! stands, then the session. Taken packet by packet they cannot overlap, because each packet's work lies between. Here
//! the places of a whole batch are read first, then the sessions, by loops so short that a core has many reads under way
//! at once; for what is of no session, the place that its mapping would have. What is read is not used: the packets look
//! everything up again, in the cache.

use std::net::Ipv4Addr;

use crate::{
    InsideId, Nat, Protocol, Side,
    packed::{Inner, Outer, Spot},
    packet::ipv4,
    table::TOGETHER,
};

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
        let ends = packets.into_iter().filter_map(Ends::read);
        match from {
            Side::Inside(id) => {
                together(ends.map(|ends| ends.outbound(id)), |flows| self.table.touch_outbound(flows));
            }
            Side::Outside => together(ends.map(Ends::inbound), |flows| self.table.touch_inbound(flows)),
        }
    }
}

/// Takes flows in batches.
#[inline(always)]
fn together<T: Copy>(mut flows: impl Iterator<Item = T>, touch: impl Fn(&[T])) {
    while let Some(first) = flows.next() {
        let (mut batch, mut count) = ([first; TOGETHER], 1);
        for flow in flows.by_ref().take(TOGETHER - 1) {
            batch[count] = flow;
            count += 1;
        }
        touch(&batch[..count]);
    }
}

/// The endpoints in a packet.
struct Ends {
    protocol: Protocol,
    source: Spot,
    destination: Spot,
}

impl Ends {
    #[inline(always)]
    fn read(packet: &[u8]) -> Option<Ends> {
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
        Some(Ends {
            protocol,
            source: spot(ipv4::SOURCE, [ports[0], ports[1]]),
            destination: spot(ipv4::DESTINATION, [ports[2], ports[3]]),
        })
    }

    #[inline(always)]
    fn outbound(self, from: InsideId) -> (Inner, Outer) {
        (Inner::new(from, self.source), Outer::new(self.protocol, self.destination))
    }

    #[inline(always)]
    fn inbound(self) -> (Outer, Outer) {
        (Outer::new(self.protocol, self.destination), Outer::new(self.protocol, self.source))
    }
}

/// With fewer sessions than this, everything is in the cache of a core anyway.
const SMALL: usize = 1 << 12;
