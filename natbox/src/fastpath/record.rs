//! What programs and natbox both know of a flow: one record, in memory that they share.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use natbox_core::Moved;

use crate::datapath::Mac;

/// A flow. Programs read it, move the deadline and count; natbox does the rest, and reads what they have done.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Record {
    /// The deadline, by the monotonic clock in nanoseconds: from then on programs leave the flow alone.
    pub(super) expires: AtomicU64,
    /// What the deadline is never put beyond.
    pub(super) limit: AtomicU64,
    /// Packets from inside, packets from outside.
    pub(super) ways: [Way; 2],
}

/// What becomes of a flow's packets in one direction.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Way {
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// The key that it is found under: what is found otherwise was another flow's when it was looked for.
    pub(super) key: [AtomicU32; 4],
    /// How far from now a packet puts the deadline.
    pub(super) refresh: AtomicU64,
    /// The new source or destination, as it stands in a packet.
    pub(super) addr: AtomicU32,
    pub(super) port: AtomicU16,
    pub(super) mtu: AtomicU16,
    /// What the IP header's checksum changes by: address and TTL.
    pub(super) delta: AtomicU16,
    pub(super) flags: AtomicU16,
    /// The interface that it leaves by.
    pub(super) interface: AtomicU32,
    /// Destination and source on Ethernet.
    pub(super) macs: [AtomicU8; 12],
    /// What the transport's checksum changes by: address and port.
    pub(super) transport_delta: AtomicU16,
    pub(super) unused: AtomicU16,
}

/// Offsets of these fields, for programs.
pub(super) const EXPIRES: i16 = 0;
pub(super) const LIMIT: i16 = 8;
pub(super) const WAYS: i16 = 16;
pub(super) const WAY_LEN: i16 = 72;
pub(super) const PACKETS: i16 = 0;
pub(super) const BYTES: i16 = 8;
pub(super) const KEY: i16 = 16;
pub(super) const REFRESH: i16 = 32;
pub(super) const ADDR: i16 = 40;
pub(super) const PORT: i16 = 44;
pub(super) const MTU: i16 = 46;
pub(super) const DELTA: i16 = 48;
pub(super) const FLAGS: i16 = 50;
pub(super) const INTERFACE: i16 = 52;
pub(super) const MACS: i16 = 56;
pub(super) const TRANSPORT_DELTA: i16 = 68;

const _: () = assert!(size_of::<Way>() == WAY_LEN as usize);
const _: () = assert!(size_of::<Record>() == WAYS as usize + 2 * WAY_LEN as usize);

/// The way is in use.
pub(super) const OPEN: u16 = 1;
/// Packets move the deadline.
pub(super) const REFRESHES: u16 = 2;
/// Only packets with DF.
pub(super) const NEEDS_DF: u16 = 4;
/// The interface is a TUN: packets are received by it, as if natbox had written them.
pub(super) const INTO_TUN: u16 = 8;
/// The interface is this end of a wire: packets come out of the other one.
pub(super) const INTO_WIRE: u16 = 16;

/// What a [`Way`] is made from.
pub(super) struct NewWay {
    pub(super) key: [u8; 16],
    pub(super) old: (Ipv4Addr, u16),
    pub(super) new: (Ipv4Addr, u16),
    pub(super) refresh: u64,
    pub(super) mtu: u16,
    pub(super) flags: u16,
    pub(super) interface: u32,
    pub(super) to: Mac,
    pub(super) from: Mac,
}

impl Way {
    pub(super) fn close(&self) {
        self.flags.store(0, Relaxed);
    }

    pub(super) fn set(&self, new: &NewWay) {
        for (to, from) in self.key.iter().zip(new.key.as_chunks().0) {
            to.store(u32::from_ne_bytes(*from), Relaxed);
        }
        self.refresh.store(new.refresh, Relaxed);
        self.addr.store(u32::from_ne_bytes(new.new.0.octets()), Relaxed);
        self.port.store(new.new.1.to_be(), Relaxed);
        self.mtu.store(new.mtu, Relaxed);
        let hop = u16::from_ne_bytes([1, 0]);
        self.delta.store(delta(new.old.0, new.new.0, (hop, 0)), Relaxed);
        let ports = (new.old.1.to_be(), new.new.1.to_be());
        self.transport_delta.store(delta(new.old.0, new.new.0, ports), Relaxed);
        self.interface.store(new.interface, Relaxed);
        for (to, from) in self.macs.iter().zip(new.to.iter().chain(&new.from)) {
            to.store(*from, Relaxed);
        }
        self.flags.store(OPEN | new.flags, Relaxed);
    }

    pub(super) fn moved(&self) -> Moved {
        Moved { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }
}

/// What a sum changes by when one address replaces another, and one word another (RFC 1624).
fn delta(old: Ipv4Addr, new: Ipv4Addr, (old_word, new_word): (u16, u16)) -> u16 {
    let words = |addr: Ipv4Addr| {
        let [a, b, c, d] = addr.octets();
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
    };
    let minus = words(old).into_iter().chain([old_word]).map(|word| u32::from(!word));
    let plus = words(new).into_iter().chain([new_word]).map(u32::from);
    let mut sum: u32 = minus.chain(plus).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
