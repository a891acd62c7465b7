//! Random packets of a few hosts and remotes, as symbols: an external port is named by the flow that it was given to, for
//! two NATs may choose two numbers where they choose at random.

use natbox_core::{Endpoint, Protocol};

/// SplitMix64: the same sequence from the same seed, anywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ word >> 31) % bound as u64) as usize
    }

    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inward {
    Outbound,
    Inbound,
}

/// A flow, as its host knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) inside: Endpoint,
    pub(crate) remote: Endpoint,
}

/// Who takes part in a sequence: nobody of any other's.
pub(crate) struct Cast {
    hosts: [Endpoint; 3],
    remotes: [Endpoint; 2],
}

impl Cast {
    pub(crate) fn new(number: u32) -> Cast {
        let [_, _, high, low] = number.to_be_bytes();
        let host = |last| Endpoint::v4([10, high.wrapping_add(1), low, last].into(), 0);
        let remote = |last| Endpoint::v4([11, high, low, last].into(), 0);
        Cast { hosts: [host(2), host(3), host(4)], remotes: [remote(5), remote(9)] }
    }

    /// A flow of this cast. Ports are few, so that hosts want the same ones; one is below 1024 and one below 512.
    pub(crate) fn flow(&self, random: &mut Random) -> Flow {
        let protocol = random.choose(&Protocol::ALL);
        let host = random.choose(&self.hosts);
        let remote = random.choose(&self.remotes);
        let port = random.choose(&[4000, 4000, 4001, 700, 300]);
        let to = if protocol == Protocol::Icmp { 0 } else { random.choose(&[53, 53, 8080]) };
        Flow { protocol, inside: Endpoint::new(host.addr, port), remote: Endpoint::new(remote.addr, to) }
    }

    /// A remote of this cast, with a port that flows know or do not.
    pub(crate) fn stranger(&self, random: &mut Random, protocol: Protocol) -> Endpoint {
        let port = if protocol == Protocol::Icmp { 0 } else { random.choose(&[53, 8080, 9]) };
        Endpoint::new(random.choose(&self.remotes).addr, port)
    }
}

/// Both ends' sequence numbers of one TCP connection.
#[derive(Clone, Copy, Default)]
pub(crate) struct Numbers {
    /// Next to be sent, by the host and by the remote.
    next: [u32; 2],
    /// Next to be heard from the other, by the host and by the remote.
    heard: [u32; 2],
}

/// A TCP segment, but for its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) length: usize,
}

impl Numbers {
    pub(crate) fn new(random: &mut Random) -> Numbers {
        let next = [random.below(1 << 30) as u32, random.below(1 << 30) as u32];
        Numbers { next, heard: [next[1], next[0]] }
    }

    /// A segment that continues the connection.
    pub(crate) fn segment(&self, way: Inward, flags: u8, length: usize) -> Segment {
        let from = way as usize;
        let acknowledgement = if flags & super::ACK != 0 { self.heard[from] } else { 0 };
        Segment { flags, sequence: self.next[from], acknowledgement, length }
    }

    /// It arrived: what did not will be sent again under the same number.
    pub(crate) fn arrived(&mut self, way: Inward, segment: &Segment) {
        let from = way as usize;
        let controls =
            u32::from(segment.flags & super::SYN != 0) + u32::from(segment.flags & super::FIN != 0);
        self.next[from] = segment.sequence.wrapping_add(segment.length as u32 + controls);
        self.heard[1 - from] = self.next[from];
    }
}
