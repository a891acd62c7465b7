//! What the programs are put together from.

use std::os::fd::BorrowedFd;

use crate::bpf::{Assembler, Helper, Label, Reg, Width};
use Reg::{Frame, R0, R1, R2, R3, R4, R5, R6};

/// Adds up the two halves of each word of a sum, until it has 16 bits.
pub(super) fn fold(asm: &mut Assembler, sum: Reg, spare: Reg) {
    asm.copy(spare, sum);
    asm.shift_right(spare, 32);
    asm.shift_left(sum, 32);
    asm.shift_right(sum, 32);
    asm.add(sum, spare);
    for _ in 0..3 {
        asm.copy(spare, sum);
        asm.shift_right(spare, 16);
        asm.and_32(sum, 0xffff);
        asm.add(sum, spare);
    }
}

/// Leaves in r0 where the map has the key at this place of the stack.
pub(super) fn look_up(asm: &mut Assembler, map: BorrowedFd<'_>, key: i16, missing: Label) {
    asm.map(R1, map);
    asm.copy(R2, Frame);
    asm.add_value(R2, key.into());
    asm.call(Helper::MapLookup);
    asm.jump_if(R0, 0, missing);
}

/// Reads a number of 16 bits from the stack, where it stands in network order.
pub(super) fn load_number(asm: &mut Assembler, to: Reg, at: i16) {
    asm.load(Width::Half, to, Frame, at);
    asm.network_to_host_16(to);
}

/// Copies a part of the packet to the stack.
pub(super) fn load_packet(asm: &mut Assembler, offset: i32, to: i16, len: i32, too_short: Label) {
    asm.copy(R1, R6);
    asm.set(R2, offset);
    asm.copy(R3, Frame);
    asm.add_value(R3, to.into());
    asm.set(R4, len);
    asm.call(Helper::LoadBytes);
    asm.jump_unless(R0, 0, too_short);
}

/// Copies what r3 points to into the packet.
pub(super) fn store_packet(asm: &mut Assembler, offset: i32, len: i32, failed: Label) {
    asm.copy(R1, R6);
    asm.set(R2, offset);
    asm.set(R4, len);
    asm.set(R5, 0);
    asm.call(Helper::StoreBytes);
    asm.jump_unless(R0, 0, failed);
}

/// Ends the program: the packet goes where r1 and the flags say.
pub(super) fn redirect(asm: &mut Assembler, helper: Helper, flags: i32) {
    asm.set(R2, flags);
    asm.call(helper);
    asm.exit();
}
