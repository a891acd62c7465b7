//! The programs along a wire, which pass packets on between a TUN in another namespace and natbox's end of it.
//!
//! ```text
//!   TUN at egress ──▶ there ═══ outwards ──▶ homewards ═══ here ──▶ mover
//!   TUN ◀── there ═══ outwards ◀────────────── homewards ═══ here ◀── mover of the outside
//! ```

use std::os::fd::OwnedFd;

use super::{
    program::{ETHERNET, INTO_INTERFACE, Link, SKB_PROTOCOL, Side, TCX_DROP, TCX_NEXT, add_ethernet_header},
    put,
    words::redirect,
};
use crate::{
    bpf::{Assembler, Helper, Hook, Reg, Width},
    datapath::ETHERTYPE_IPV4,
    host::{HostError, Wire, failed},
};

/// Attaches what passes packets on between a TUN and this end of its wire.
pub(super) fn attach(wire: &Wire, side: Side<'_>) -> Result<Vec<OwnedFd>, HostError> {
    let Wire { far, between, tun, there, middle: [outwards, homewards], .. } = wire;
    let tun_side = Side { link: Link::Tun, ..side };
    let all = |programs: [(Vec<[u8; 8]>, u32, Hook); 2]| {
        let attached = programs.iter().map(|(program, interface, hook)| put(program, *interface, *hook));
        attached.collect::<Result<Vec<_>, _>>().map_err(failed("attach programs to a wire"))
    };
    let mut links = far.run(|| {
        all([
            (onward(Helper::Redirect, *tun, INTO_INTERFACE), *there, Hook::Ingress),
            (lifter(tun_side, *there), *tun, Hook::Egress),
        ])
    })?;
    links.extend(between.run(|| {
        all([
            (onward(Helper::Redirect, *homewards, 0), *outwards, Hook::Ingress),
            (onward(Helper::RedirectPeer, *outwards, 0), *homewards, Hook::Ingress),
        ])
    })?);
    Ok(links)
}

/// Sends packets of a TUN that are to be moved to the end of its wire, and lets everything else pass.
fn lifter(tun: Side<'_>, end: u32) -> Vec<[u8; 8]> {
    let mut asm = Assembler::default();
    let (next, drop) = (asm.label(), asm.label());
    asm.copy(Reg::R6, Reg::R1);
    tun.decide(&mut asm, next);
    for word in 0..3 {
        asm.store_value(Width::Word, Reg::Frame, ETHERNET + 4 * word, 0);
    }
    add_ethernet_header(&mut asm, drop);
    asm.set(Reg::R1, end.cast_signed());
    redirect(&mut asm, Helper::Redirect, 0);
    asm.place(next);
    asm.exit_with(TCX_NEXT);
    asm.place(drop);
    asm.exit_with(TCX_DROP);
    asm.finish()
}

/// Passes every IPv4 packet on, out of an interface, across the cable that it is an end of, or into it; there is nothing
/// else.
fn onward(helper: Helper, interface: u32, flags: i32) -> Vec<[u8; 8]> {
    let mut asm = Assembler::default();
    let drop = asm.label();
    asm.load(Width::Word, Reg::R0, Reg::R1, SKB_PROTOCOL);
    asm.jump_unless_32(Reg::R0, u16::to_be(ETHERTYPE_IPV4).into(), drop);
    asm.set(Reg::R1, interface.cast_signed());
    redirect(&mut asm, helper, flags);
    asm.place(drop);
    asm.exit_with(TCX_DROP);
    asm.finish()
}
