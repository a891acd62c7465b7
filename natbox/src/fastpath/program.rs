//! The programs: for each side one that moves packets, and for its packet sockets one that keeps moved packets from them.
//!
//! Both decide by the same code, so that what one takes the other leaves alone. A packet is moved when the rule of its
//! flow covers it ([`FlowRule`](natbox_core::FlowRule)) and when the engine would find nothing wrong with it:
//!
//! ```text
//! on Ethernet: for this interface's own address, untagged
//! IPv4, no options, the header's checksum right, not a fragment, TTL above 1, no longer than the frame; a super-frame as long
//! UDP with a length that fits, or TCP without SYN, FIN, RST
//! its flow is known, open in this direction, and has not expired
//! it with its padding, or each of its segments, is no longer than the next link's MTU
//! DF is set, where the rule asks for it
//! ```
//!
//! Registers: r6 the packet, r7 the record, r8 the way, r9 the length of the IP packet.

use std::os::fd::BorrowedFd;

use super::record;
use super::record::{
    ADDR, BYTES, DELTA, EXPIRES, FLAGS, INTERFACE, INTO_TUN, INTO_WIRE, LIMIT, MACS, MTU, NEEDS_DF, OPEN,
    PACKETS, PORT, REFRESH, REFRESHES, TRANSPORT_DELTA, WAY_LEN, WAYS,
};
use super::words::{fold, load_number, load_packet, look_up, redirect, store_packet};
use crate::{
    bpf::{Assembler, Helper, Label, Reg, Width},
    datapath::{ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4},
};
use Reg::{Frame, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};

/// Offsets in `struct __sk_buff`, the program's context.
const SKB_LEN: i16 = 0;
const SKB_PACKET_TYPE: i16 = 4;
pub(super) const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_GSO_SIZE: i16 = 176;

const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: i32 = 1;

/// Other programs go on with the packet, and then the host.
pub(super) const TCX_NEXT: i32 = -1;
pub(super) const TCX_DROP: i32 = 2;

/// Flags of helpers.
const PSEUDO_HEADER: i32 = 0x10;
const ZERO_IS_NONE: i32 = 0x20;
pub(super) const INTO_INTERFACE: i32 = 1;

/// An IPv4 header without options, and ports and checksum of UDP.
const HEADERS_LEN: i32 = 28;
const IP_HEADER: i32 = 20;
const UDP: u32 = libc::IPPROTO_UDP as u32;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const SYN_FIN_RST: i32 = 7;
/// MF and the offset; DF.
const FRAGMENT: i32 = 0x3fff;
const DONT_FRAGMENT: i32 = 0x4000;

/// Where things are on the program's stack, below the frame pointer.
const HEADERS: i16 = -32;
const KEY: i16 = -48;
const INDEX: i16 = -56;
const WIRE_LEN: i16 = -64;
const TCP_WORD: i16 = -72;
pub(super) const ETHERNET: i16 = -88;
const TRANSPORT_SUM: i16 = -96;

/// Offsets within the headers.
const TOTAL_LEN: i16 = HEADERS + 2;
const FRAGMENT_WORD: i16 = HEADERS + 6;
const TTL: i16 = HEADERS + 8;
const PROTOCOL: i16 = HEADERS + 9;
const CHECKSUM: i16 = HEADERS + 10;
const SOURCE: i16 = HEADERS + 12;
const DESTINATION: i16 = HEADERS + 16;
const PORTS: i16 = HEADERS + 20;
const UDP_LEN: i16 = HEADERS + 24;

/// Length of a [`key`].
pub(super) const KEY_LEN: usize = 16;

/// What packets come in by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    /// On their way out of the host's stack.
    Tun,
    /// This end of a wire, on which there are packets to be moved and nothing else.
    Wire,
}

/// A side of the NAT, as its programs see it.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// 0 outside, then the inside ports.
    pub(super) number: u16,
    pub(super) link: Link,
    /// From keys to indexes.
    pub(super) flows: BorrowedFd<'a>,
    /// From indexes to records.
    pub(super) records: BorrowedFd<'a>,
}

/// What a flow is found by: addresses and ports as they stand in its packets that come in by this side.
pub(super) fn key(side: u16, protocol: u32, (source, destination): (Spot, Spot)) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[..4].copy_from_slice(&source.0);
    key[4..8].copy_from_slice(&destination.0);
    key[8..10].copy_from_slice(&source.1.to_be_bytes());
    key[10..12].copy_from_slice(&destination.1.to_be_bytes());
    key[12..].copy_from_slice(&tag(side, protocol).to_ne_bytes());
    key
}

/// An address and a port.
pub(super) type Spot = ([u8; 4], u16);

fn tag(side: u16, protocol: u32) -> u32 {
    u32::from(side) << 8 | protocol
}

impl Side<'_> {
    fn is_outside(self) -> bool {
        self.number == 0
    }

    /// Where the IP header begins.
    fn ip(self) -> i32 {
        if self.link == Link::Tun { 0 } else { ETHERNET_LEN as i32 }
    }

    /// Moves the packets of known flows, and lets everything else pass, if there may be anything else.
    pub(super) fn mover(self) -> Vec<[u8; 8]> {
        let mut asm = Assembler::default();
        let (next, drop) = (asm.label(), asm.label());
        asm.copy(R6, R1);
        self.decide(&mut asm, next);
        self.account(&mut asm);
        self.rewrite(&mut asm, drop);
        self.send(&mut asm, drop);
        asm.place(next);
        asm.exit_with(if self.link == Link::Wire { TCX_DROP } else { TCX_NEXT });
        asm.place(drop);
        asm.exit_with(TCX_DROP);
        asm.finish()
    }

    /// Lets a packet socket have what natbox listens to and the mover leaves alone: IPv4 sent to this interface, ARP sent
    /// to it or to everybody, neither inside a VLAN.
    pub(super) fn filter(self) -> Vec<[u8; 8]> {
        let mut asm = Assembler::default();
        let (ipv4, accept, drop) = (asm.label(), asm.label(), asm.label());
        asm.copy(R6, R1);
        asm.load(Width::Word, R0, R6, SKB_VLAN_PRESENT);
        asm.jump_unless_32(R0, 0, drop);
        asm.load(Width::Word, R1, R6, SKB_PACKET_TYPE);
        asm.load(Width::Word, R0, R6, SKB_PROTOCOL);
        asm.jump_if_32(R0, u16::to_be(ETHERTYPE_IPV4).into(), ipv4);
        asm.jump_unless_32(R0, u16::to_be(ETHERTYPE_ARP).into(), drop);
        asm.jump_if_less(R1, PACKET_BROADCAST + 1, accept);
        asm.jump(drop);
        asm.place(ipv4);
        asm.jump_unless_32(R1, PACKET_HOST, drop);
        self.decide(&mut asm, accept);
        asm.place(drop);
        asm.exit_with(0);
        asm.place(accept);
        asm.exit_with(i32::MAX);
        asm.finish()
    }

    /// Goes on with a packet that is to be moved: the time in r0, r7 to r9 as above, its headers on the stack. Else to
    /// `leave`.
    pub(super) fn decide(self, asm: &mut Assembler, leave: Label) {
        if self.link != Link::Tun {
            if self.link == Link::Ethernet {
                asm.load(Width::Word, R0, R6, SKB_PACKET_TYPE);
                asm.jump_unless_32(R0, PACKET_HOST, leave);
            }
            asm.load(Width::Word, R0, R6, SKB_VLAN_PRESENT);
            asm.jump_unless_32(R0, 0, leave);
        }
        asm.load(Width::Word, R0, R6, SKB_PROTOCOL);
        asm.jump_unless_32(R0, u16::to_be(ETHERTYPE_IPV4).into(), leave);
        load_packet(asm, self.ip(), HEADERS, HEADERS_LEN, leave);
        internet_header(asm, leave);

        // r9 is the length, which the frame must hold.
        load_number(asm, R9, TOTAL_LEN);
        asm.load(Width::Word, R0, R6, SKB_LEN);
        asm.add_value(R0, -self.ip());
        asm.jump_if_greater(R9, R0, leave);
        asm.jump_if_less(R9, HEADERS_LEN, leave);
        self.transport_header(asm, leave);
        self.wire_len(asm, leave);
        self.look_up(asm, leave);

        asm.load(Width::Half, R1, R8, FLAGS);
        let (any, fits) = (asm.label(), asm.label());
        asm.jump_if_any(R1, OPEN.into(), any);
        asm.jump(leave);
        asm.place(any);
        asm.and_32(R1, NEEDS_DF.into());
        asm.jump_if(R1, 0, fits);
        load_number(asm, R1, FRAGMENT_WORD);
        asm.and_32(R1, DONT_FRAGMENT as u32);
        asm.jump_if(R1, 0, leave);
        asm.place(fits);
        asm.load(Width::Double, R1, Frame, WIRE_LEN);
        asm.load(Width::Half, R2, R8, MTU);
        asm.jump_if_greater(R1, R2, leave);
        asm.call(Helper::Now);
        let alive = asm.label();
        asm.load(Width::Double, R1, R7, EXPIRES);
        asm.jump_if_greater(R1, R0, alive);
        asm.jump(leave);
        asm.place(alive);
    }

    /// Leaves the length of the transport's header in r5; r9 is the length of the IP packet.
    fn transport_header(self, asm: &mut Assembler, leave: Label) {
        let (udp, known) = (asm.label(), asm.label());
        asm.copy(R7, R9);
        asm.add_value(R7, -IP_HEADER);
        asm.load(Width::Byte, R0, Frame, PROTOCOL);
        asm.jump_if_32(R0, UDP, udp);
        asm.jump_unless_32(R0, TCP, leave);
        // Data offset and flags.
        load_packet(asm, self.ip() + IP_HEADER + 12, TCP_WORD, 2, leave);
        asm.load(Width::Byte, R0, Frame, TCP_WORD + 1);
        asm.jump_if_any(R0, SYN_FIN_RST, leave);
        asm.load(Width::Byte, R5, Frame, TCP_WORD);
        asm.shift_right(R5, 4);
        asm.shift_left(R5, 2);
        asm.jump_if_less(R5, 20, leave);
        asm.jump_if_greater(R5, R7, leave);
        asm.jump(known);
        asm.place(udp);
        load_number(asm, R0, UDP_LEN);
        asm.jump_if_less(R0, 8, leave);
        asm.jump_if_greater(R0, R7, leave);
        asm.set(R5, 8);
        asm.place(known);
    }

    /// Leaves the length that the frame's packet, or its longest segment, will have on the wire on the stack; r5 is the
    /// length of the transport's header.
    fn wire_len(self, asm: &mut Assembler, leave: Label) {
        let (whole, known) = (asm.label(), asm.label());
        asm.load(Width::Word, R2, R6, SKB_LEN);
        asm.add_value(R2, -self.ip());
        asm.load(Width::Word, R1, R6, SKB_GSO_SIZE);
        asm.jump_if(R1, 0, whole);
        // What lies behind it would become part of a segment.
        asm.jump_if_greater(R2, R9, leave);
        asm.add(R1, R5);
        asm.add_value(R1, IP_HEADER);
        asm.jump_if_greater(R9, R1, known);
        asm.place(whole);
        asm.copy(R1, R2);
        asm.place(known);
        asm.store(Width::Double, Frame, WIRE_LEN, R1);
    }

    /// Leaves the record in r7 and the way in r8.
    fn look_up(self, asm: &mut Assembler, leave: Label) {
        asm.load(Width::Word, R0, Frame, SOURCE);
        asm.store(Width::Word, Frame, KEY, R0);
        asm.load(Width::Word, R0, Frame, DESTINATION);
        asm.store(Width::Word, Frame, KEY + 4, R0);
        asm.load(Width::Word, R0, Frame, PORTS);
        asm.store(Width::Word, Frame, KEY + 8, R0);
        asm.load(Width::Byte, R0, Frame, PROTOCOL);
        asm.add_value(R0, tag(self.number, 0).cast_signed());
        asm.store(Width::Word, Frame, KEY + 12, R0);
        look_up(asm, self.flows, KEY, leave);
        asm.load(Width::Word, R0, R0, 0);
        asm.store(Width::Word, Frame, INDEX, R0);
        look_up(asm, self.records, INDEX, leave);
        asm.copy(R7, R0);
        asm.copy(R8, R0);
        asm.add_value(R8, (WAYS + if self.is_outside() { WAY_LEN } else { 0 }).into());
        // The kernel may give a key's place to another one while it is being read.
        for word in 0..4 {
            asm.load(Width::Word, R1, R8, record::KEY + 4 * word);
            asm.load(Width::Word, R2, Frame, KEY + 4 * word);
            asm.jump_unless_same_32(R1, R2, leave);
        }
    }

    /// Moves the deadline, by the time in r0, and counts.
    fn account(self, asm: &mut Assembler) {
        let (counts, within) = (asm.label(), asm.label());
        asm.load(Width::Half, R1, R8, FLAGS);
        asm.and_32(R1, REFRESHES.into());
        asm.jump_if(R1, 0, counts);
        asm.load(Width::Double, R1, R8, REFRESH);
        asm.add(R1, R0);
        asm.load(Width::Double, R2, R7, LIMIT);
        asm.jump_if_greater(R2, R1, within);
        asm.copy(R1, R2);
        asm.place(within);
        asm.store(Width::Double, R7, EXPIRES, R1);
        asm.place(counts);
        asm.set(R1, 1);
        asm.add_in_memory(R8, PACKETS, R1);
        asm.add_in_memory(R8, BYTES, R9);
    }

    /// Gives the packet its other source or destination.
    fn rewrite(self, asm: &mut Assembler, drop: Label) {
        let (addr, port) = if self.is_outside() { (DESTINATION, PORTS + 2) } else { (SOURCE, PORTS) };
        let (udp, done) = (asm.label(), asm.label());
        asm.load(Width::Byte, R0, Frame, PROTOCOL);
        asm.jump_if_32(R0, UDP, udp);
        self.mend(asm, (16, 0), (addr, port), drop);
        asm.jump(done);
        asm.place(udp);
        self.mend(asm, (6, ZERO_IS_NONE), (addr, port), drop);
        asm.place(done);

        asm.load(Width::Half, R1, Frame, CHECKSUM);
        asm.xor_32(R1, 0xffff);
        asm.load(Width::Half, R2, R8, DELTA);
        asm.add(R1, R2);
        fold(asm, R1, R2);
        asm.xor_32(R1, 0xffff);
        asm.store(Width::Half, Frame, CHECKSUM, R1);
        asm.load(Width::Byte, R1, Frame, TTL);
        asm.add_value(R1, -1);
        asm.store(Width::Byte, Frame, TTL, R1);
        asm.load(Width::Word, R1, R8, ADDR);
        asm.store(Width::Word, Frame, addr, R1);
        asm.load(Width::Half, R1, R8, PORT);
        asm.store(Width::Half, Frame, port, R1);
        // From the TTL to the ports.
        asm.copy(R3, Frame);
        asm.add_value(R3, TTL.into());
        store_packet(asm, self.ip() + 8, 16, drop);
    }

    /// Mends the transport's checksum, at this offset in its header.
    ///
    /// The kernel's helper takes it for the sum of the pseudo-header alone whenever the packet's is left to a device. That
    /// may be the one of a packet inside this one, of a tunnel, while this one is complete: so which it is, is looked at.
    fn mend(self, asm: &mut Assembler, (at, flags): (i32, i32), (addr, port): (i16, i16), drop: Label) {
        let (offset, done) = (self.ip() + IP_HEADER + at, asm.label());
        load_packet(asm, offset, TRANSPORT_SUM, 2, drop);
        for (width, old, new, flags) in
            [(Width::Word, addr, ADDR, flags | PSEUDO_HEADER | 4), (Width::Half, port, PORT, flags | 2)]
        {
            asm.copy(R1, R6);
            asm.set(R2, offset);
            asm.load(width, R3, Frame, old);
            asm.load(width, R4, R8, new);
            asm.set(R5, flags);
            asm.call(Helper::ReplaceInChecksum);
            asm.jump_unless(R0, 0, drop);
        }

        asm.load(Width::Half, R5, Frame, TRANSPORT_SUM);
        if flags & ZERO_IS_NONE != 0 {
            asm.jump_if(R5, 0, done);
        }
        pseudo_header(asm, if flags & ZERO_IS_NONE != 0 { UDP } else { TCP });
        // r0 - r5
        asm.xor_32(R5, 0xffff);
        asm.add(R0, R5);
        asm.jump_if(R0, 0xffff, done);
        asm.load(Width::Half, R2, R8, TRANSPORT_DELTA);
        asm.add(R5, R2);
        fold(asm, R5, R2);
        asm.xor_32(R5, 0xffff);
        if flags & ZERO_IS_NONE != 0 {
            let some = asm.label();
            asm.jump_unless(R5, 0, some);
            asm.set(R5, 0xffff);
            asm.place(some);
        }
        asm.store(Width::Half, Frame, TRANSPORT_SUM, R5);
        asm.copy(R3, Frame);
        asm.add_value(R3, TRANSPORT_SUM.into());
        store_packet(asm, offset, 2, drop);
        asm.place(done);
    }

    /// Sends it on.
    fn send(self, asm: &mut Assembler, drop: Label) {
        if self.is_outside() {
            for (flag, helper, flags) in
                [(INTO_TUN, Helper::Redirect, INTO_INTERFACE), (INTO_WIRE, Helper::RedirectPeer, 0)]
            {
                let other = asm.label();
                asm.load(Width::Half, R1, R8, FLAGS);
                asm.and_32(R1, flag.into());
                asm.jump_if(R1, 0, other);
                asm.load(Width::Word, R1, R8, INTERFACE);
                redirect(asm, helper, flags);
                asm.place(other);
            }
        }
        if self.link != Link::Tun {
            asm.copy(R3, R8);
            asm.add_value(R3, MACS.into());
            store_packet(asm, 0, 12, drop);
        } else {
            for word in 0..3 {
                asm.load(Width::Word, R1, R8, MACS + 4 * word);
                asm.store(Width::Word, Frame, ETHERNET + 4 * word, R1);
            }
            add_ethernet_header(asm, drop);
        }
        asm.load(Width::Word, R1, R8, INTERFACE);
        redirect(asm, Helper::Redirect, 0);
    }
}

/// Puts an Ethernet header in front of an IPv4 packet, whose addresses are on the stack.
pub(super) fn add_ethernet_header(asm: &mut Assembler, failed: Label) {
    asm.copy(R1, R6);
    asm.set(R2, ETHERNET_LEN as i32);
    asm.set(R3, 0);
    asm.call(Helper::AddHead);
    asm.jump_unless(R0, 0, failed);
    asm.store_value(Width::Half, Frame, ETHERNET + 12, u16::to_be(ETHERTYPE_IPV4).into());
    asm.copy(R3, Frame);
    asm.add_value(R3, ETHERNET.into());
    store_packet(asm, 0, ETHERNET_LEN as i32, failed);
}

/// Goes on with an IPv4 header that is whole and right, of a packet that is no fragment and has hops left.
fn internet_header(asm: &mut Assembler, leave: Label) {
    asm.load(Width::Byte, R0, Frame, HEADERS);
    asm.jump_unless_32(R0, 0x45, leave);
    load_number(asm, R0, FRAGMENT_WORD);
    asm.jump_if_any(R0, FRAGMENT, leave);
    asm.load(Width::Byte, R0, Frame, TTL);
    asm.jump_if_less(R0, 2, leave);
    asm.load(Width::Word, R0, Frame, HEADERS);
    for word in 1..5 {
        asm.load(Width::Word, R1, Frame, HEADERS + 4 * word);
        asm.add(R0, R1);
    }
    fold(asm, R0, R1);
    asm.jump_unless_32(R0, 0xffff, leave);
}

/// Leaves the sum of the pseudo-header in r0.
fn pseudo_header(asm: &mut Assembler, protocol: u32) {
    if protocol == UDP {
        asm.load(Width::Half, R0, Frame, UDP_LEN);
    } else {
        asm.copy(R0, R9);
        asm.add_value(R0, -IP_HEADER);
        asm.network_to_host_16(R0);
    }
    asm.add_value(R0, u16::from_ne_bytes([0, protocol as u8]).into());
    for addr in [SOURCE, DESTINATION] {
        asm.load(Width::Word, R1, Frame, addr);
        asm.add(R0, R1);
    }
    fold(asm, R0, R1);
}
