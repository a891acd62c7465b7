//! The programs that pass packets on along a wire.

use super::{
    program::{INTO_INTERFACE, SKB_PROTOCOL, TCX_DROP},
    words::redirect,
};
use crate::{
    bpf::{Assembler, Helper, Reg, Width},
    datapath::ETHERTYPE_IPV4,
};
use Reg::{R0, R1};

/// How a wire passes a packet on.
#[derive(Clone, Copy)]
pub(super) enum Onward {
    /// It goes out by this interface.
    Out(u32),
    /// It comes out of the other end of the cable that this interface is an end of.
    Across(u32),
    /// It is received by this TUN.
    IntoTun(u32),
}

/// Passes every IPv4 packet on; there is nothing else.
pub(super) fn onward(to: Onward) -> Vec<[u8; 8]> {
    let mut asm = Assembler::default();
    let drop = asm.label();
    asm.load(Width::Word, R0, R1, SKB_PROTOCOL);
    asm.jump_unless_32(R0, u16::to_be(ETHERTYPE_IPV4).into(), drop);
    let (interface, helper, flags) = match to {
        Onward::Out(interface) => (interface, Helper::Redirect, 0),
        Onward::Across(interface) => (interface, Helper::RedirectPeer, 0),
        Onward::IntoTun(interface) => (interface, Helper::Redirect, INTO_INTERFACE),
    };
    asm.set(R1, interface.cast_signed());
    redirect(&mut asm, helper, flags);
    asm.place(drop);
    asm.exit_with(TCX_DROP);
    asm.finish()
}
