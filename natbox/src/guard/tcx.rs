//! The guard as a tcx program: it sees a packet after the packet sockets and before the host's stack.
//!
//! Which ports are claimed stands in a bitmap that the program and natbox share, so that a claim takes effect with a
//! plain store: [`BITMAP`] bytes for each shared address, the first half for TCP, the second for UDP.

use std::{
    io,
    net::Ipv4Addr,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
};

use natbox_core::Protocol;

use super::Rules;
use crate::{
    bpf::{Assembler, Helper, Hook, Kind, Label, Lookup, Reg, SharedBytes, Width, attach, load},
    host::{mask, network},
};

/// A set of addresses.
type KeySet = Lookup<4, 1>;

/// One bit for each port of each transport.
const BITMAP: usize = 2 * UDP_OFFSET;
const UDP_OFFSET: usize = 65_536 / 8;
/// Addresses of this host at the most. Beyond, a LAN guard would drop what is the host's own.
const HOST_ADDRESSES: u32 = 4096;

/// Owned addresses beside the prefixes of the start: twice what one line on the control socket can name, for the new
/// ones come before the old ones go.
const OWNED_ADDRESSES: u32 = 16_384;

/// Offsets in `struct __sk_buff`, the program's context.
const SKB_PACKET_TYPE: i16 = 4;
const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
/// The frame is for this interface's own Ethernet address.
const PACKET_HOST: u32 = 0;
const ETHERNET_HEADER: i32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const IPV4_HEADER: i16 = 20;

/// Other programs go on with the packet, and then the host.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Where things are on the program's stack, below the frame pointer.
const HEADER: i16 = -24;
const PORT: i16 = -32;
const KEY: i16 = -40;

/// Attached programs and what they look things up in.
#[derive(Debug)]
pub(super) struct Tcx {
    shared: Vec<Ipv4Addr>,
    claimed: SharedBytes,
    host: KeySet,
    host_addresses: Vec<Ipv4Addr>,
    owned: KeySet,
    owned_addresses: Vec<Ipv4Addr>,
    _links: Vec<OwnedFd>,
}

impl Tcx {
    pub(super) fn attach(rules: &Rules) -> io::Result<Tcx> {
        let bytes = NonZeroUsize::new(BITMAP * rules.shared.len().max(1)).unwrap_or(NonZeroUsize::MIN);
        let mut tcx = Tcx {
            shared: rules.shared.clone(),
            claimed: SharedBytes::new(bytes)?,
            host: KeySet::new(HOST_ADDRESSES)?,
            host_addresses: Vec::new(),
            owned: KeySet::new(OWNED_ADDRESSES)?,
            owned_addresses: Vec::new(),
            _links: Vec::new(),
        };
        tcx.set_host_addresses(&rules.host)?;
        let interfaces =
            [(rules.outside, false)].into_iter().chain(rules.lans.iter().map(|lan| (*lan, true)));
        for (interface, is_lan) in interfaces {
            let program = load(Kind::Classifier, &tcx.program(rules, is_lan))?;
            tcx._links.push(attach(program.as_fd(), interface, Hook::Ingress)?);
        }
        Ok(tcx)
    }

    pub(super) fn claim(&self, protocol: Protocol, address: Ipv4Addr, port: u16, held: bool) {
        let Some(index) = self.shared.iter().position(|shared| *shared == address) else { return };
        let half = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => UDP_OFFSET,
            Protocol::Icmp => return,
        };
        self.claimed.set_bit((index * BITMAP + half) * 8 + usize::from(port), held);
    }

    /// What is the host's own on a LAN from now on.
    pub(super) fn set_host_addresses(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        replace(&self.host, &mut self.host_addresses, addresses)
    }

    /// What natbox owns from now on, beside the prefixes of the start.
    pub(super) fn set_owned_addresses(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        replace(&self.owned, &mut self.owned_addresses, addresses)
    }

    /// The program for one interface. In words:
    ///
    /// ```text
    /// unless the frame is for this interface, untagged, and IPv4:     next
    /// if its destination is in a prefix that natbox owns, or is one
    ///   of the addresses that it owns since:                          drop
    /// on a LAN, if its destination is not an address of the host:     drop
    /// unless its destination is an address shared with the host:      next
    /// unless it is TCP or UDP, and its ports are in it:               next
    /// if its destination port is claimed:                             drop
    /// next
    /// ```
    fn program(&self, rules: &Rules, is_lan: bool) -> Vec<[u8; 8]> {
        use Reg::{Frame, R0, R1, R2, R6, R7};
        let mut asm = Assembler::default();
        let (next, drop) = (asm.label(), asm.label());
        asm.copy(R6, R1);
        asm.load(Width::Word, R0, R6, SKB_PACKET_TYPE);
        asm.jump_unless_32(R0, PACKET_HOST, next);
        asm.load(Width::Word, R0, R6, SKB_VLAN_PRESENT);
        asm.jump_unless_32(R0, 0, next);
        asm.load(Width::Word, R0, R6, SKB_PROTOCOL);
        asm.jump_unless_32(R0, u16::to_be(ETHERTYPE_IPV4).into(), next);

        asm.set(R2, ETHERNET_HEADER);
        load_packet(&mut asm, HEADER, IPV4_HEADER.into(), next);
        // From here on r7 is the destination, as it stands in the packet.
        asm.load(Width::Word, R7, Frame, HEADER + 16);
        for (address, len) in &rules.owned {
            asm.copy_32(R0, R7);
            asm.and_32(R0, in_packet(mask(*len).into()));
            asm.jump_if_32(R0, in_packet(network(*address, *len)), drop);
        }
        if !rules.owned.is_empty() {
            look_up_destination(&mut asm, &self.owned);
            asm.jump_unless(R0, 0, drop);
        }
        if is_lan {
            look_up_destination(&mut asm, &self.host);
            asm.jump_if(R0, 0, drop);
        }
        if !rules.shared.is_empty() {
            self.claimed_ports(&mut asm, next);
            asm.jump(drop);
        }
        asm.place(next);
        asm.exit_with(TCX_NEXT);
        if !rules.shared.is_empty() || !rules.owned.is_empty() || is_lan {
            asm.place(drop);
            asm.exit_with(TCX_DROP);
        }
        asm.finish()
    }

    /// Goes on if the destination, in r7, and its port are claimed, else to `next`.
    fn claimed_ports(&self, asm: &mut Assembler, next: Label) {
        use Reg::{Frame, R0, R1, R2, R7, R8};
        let (ports, udp, tcp) = (asm.label(), asm.label(), asm.label());
        // r8 is where the bitmap of the destination begins.
        for (index, address) in self.shared.iter().enumerate() {
            asm.set(R8, (index * BITMAP) as i32);
            asm.jump_if_32(R7, in_packet(*address), ports);
        }
        asm.jump(next);

        asm.place(ports);
        asm.load(Width::Byte, R0, Frame, HEADER + 9);
        asm.jump_if_32(R0, libc::IPPROTO_TCP as u32, tcp);
        asm.jump_if_32(R0, libc::IPPROTO_UDP as u32, udp);
        asm.jump(next);
        asm.place(udp);
        asm.add_value(R8, UDP_OFFSET as i32);
        asm.place(tcp);
        // A later fragment has no ports. Without the first one, dropped here, the host can make nothing of it.
        asm.load(Width::Half, R0, Frame, HEADER + 6);
        asm.and_32(R0, u16::to_be(0x1fff).into());
        asm.jump_unless_32(R0, 0, next);
        // The destination port is 2 bytes behind the header, whose length is in 4-byte words.
        asm.load(Width::Byte, R2, Frame, HEADER);
        asm.and_32(R2, 0x0f);
        asm.shift_left(R2, 2);
        asm.add_value(R2, ETHERNET_HEADER + 2);
        load_packet(asm, PORT, 2, next);
        asm.load(Width::Half, R0, Frame, PORT);
        asm.network_to_host_16(R0);
        asm.and_32(R0, 0xffff);
        asm.copy_32(R1, R0);
        asm.shift_right(R1, 3);
        asm.add(R8, R1);
        asm.map_value(R2, self.claimed.as_fd());
        asm.add(R2, R8);
        asm.load(Width::Byte, R1, R2, 0);
        asm.and_32(R0, 7);
        asm.shift_right_by_32(R1, R0);
        asm.and_32(R1, 1);
        asm.jump_if_32(R1, 0, next);
    }
}

/// Leaves in r0 where the set has the destination, in r7, or 0.
fn look_up_destination(asm: &mut Assembler, set: &KeySet) {
    asm.store(Width::Word, Reg::Frame, KEY, Reg::R7);
    asm.map(Reg::R1, set.as_fd());
    asm.copy(Reg::R2, Reg::Frame);
    asm.add_value(Reg::R2, KEY.into());
    asm.call(Helper::MapLookup);
}

/// Makes `set`, which holds `present`, hold `wanted`.
fn replace(set: &KeySet, present: &mut Vec<Ipv4Addr>, wanted: &[Ipv4Addr]) -> io::Result<()> {
    for new in wanted.iter().filter(|address| !present.contains(address)) {
        set.insert(new.octets(), [1])?;
    }
    for gone in present.iter().filter(|address| !wanted.contains(address)) {
        set.remove(gone.octets())?;
    }
    *present = wanted.to_vec();
    Ok(())
}

/// Copies `len` bytes of the frame from the offset in r2 to the stack, or gives up on a frame that is too short.
fn load_packet(asm: &mut Assembler, to: i16, len: i32, too_short: Label) {
    asm.copy(Reg::R1, Reg::R6);
    asm.copy(Reg::R3, Reg::Frame);
    asm.add_value(Reg::R3, to.into());
    asm.set(Reg::R4, len);
    asm.call(Helper::LoadBytes);
    asm.jump_unless(Reg::R0, 0, too_short);
}

/// An address as a load from the packet gives it.
fn in_packet(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}
