//! A little assembler for BPF: as much of the instruction set as natbox needs, with labels.
//!
//! Registers: r0 is the result, r1–r5 are a helper's arguments and gone after the call, r6–r9 survive calls, r10 is
//! the frame pointer. `…32` work on the lower half and clear the upper one. Encoding: RFC 9669.

use std::os::fd::{AsRawFd, BorrowedFd};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    Frame = 10,
}

/// The width of a load or store.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// What a helper function does (`enum bpf_func_id`). Only such as are open to programs of any licence.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Helper {
    /// r1 map, r2 pointer to the key → pointer to the value, or 0.
    MapLookup = 1,
    /// → nanoseconds of the monotonic clock.
    Now = 5,
    /// r1 context, r2 offset in the frame, r3 from where, r4 length, r5 flags → 0, or an error.
    StoreBytes = 9,
    /// r1 context, r2 offset of the checksum, r3 what was there, r4 what is, r5 flags and width → 0, or an error.
    ReplaceInChecksum = 11,
    /// r1 number of the interface, r2 flags → what the program is to end with.
    Redirect = 23,
    /// r1 context, r2 offset in the frame, r3 where to, r4 length → 0, or an error.
    LoadBytes = 26,
    /// r1 context, r2 bytes to add in front, r3 flags → 0, or an error.
    AddHead = 43,
    /// r1 number of one end of a virtual cable, r2 flags → what the program is to end with.
    RedirectPeer = 155,
}

/// A place to jump to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(usize);

/// One instruction as the kernel has it: opcode, registers, offset, immediate.
const INSTRUCTION: usize = 8;

const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_IMMEDIATE: u8 = 0x62;
const ATOMIC_64: u8 = 0xdb;
const ATOMIC_ADD: i32 = 0;
const XOR_32_IMMEDIATE: u8 = 0xa4;
const ADD: u8 = 0x0f;
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_32: u8 = 0xbc;
const SHIFT_LEFT_IMMEDIATE: u8 = 0x67;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const SHIFT_RIGHT_32: u8 = 0x7c;
const AND_32_IMMEDIATE: u8 = 0x54;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP: u8 = 0x05;
const JUMP_EQUAL_IMMEDIATE: u8 = 0x15;
const JUMP_32_EQUAL_IMMEDIATE: u8 = 0x16;
const JUMP_32_UNEQUAL_IMMEDIATE: u8 = 0x56;
const JUMP_UNEQUAL_IMMEDIATE: u8 = 0x55;
const JUMP_SET_IMMEDIATE: u8 = 0x45;
const JUMP_GREATER: u8 = 0x2d;
const JUMP_LESS_IMMEDIATE: u8 = 0xa5;
const JUMP_32_UNEQUAL: u8 = 0x5e;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Takes two instructions: a 64-bit immediate.
const LOAD_64_IMMEDIATE: u8 = 0x18;
/// The immediate is a map, by its descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// The immediate is the address of the only value of an array map, by its descriptor.
const PSEUDO_MAP_VALUE: u8 = 2;

/// A program in the making.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    code: Vec<[u8; INSTRUCTION]>,
    /// Where each label is, once it is placed.
    labels: Vec<Option<usize>>,
    /// Which instructions jump to which label.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label that is placed later.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label before the next instruction.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `to = *(from + offset)`, zero-extended.
    pub(crate) fn load(&mut self, width: Width, to: Reg, from: Reg, offset: i16) {
        self.emit(LOAD | width as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) = from`.
    pub(crate) fn store(&mut self, width: Width, to: Reg, offset: i16, from: Reg) {
        self.emit(STORE | width as u8, to, from as u8, offset, 0);
    }

    /// `*(to + offset) = value`.
    pub(crate) fn store_value(&mut self, width: Width, to: Reg, offset: i16, value: i32) {
        self.emit(STORE_IMMEDIATE | width as u8, to, 0, offset, value);
    }

    /// `*(to + offset) += from`, 64 bits, also when several processors do so at once.
    pub(crate) fn add_in_memory(&mut self, to: Reg, offset: i16, from: Reg) {
        self.emit(ATOMIC_64, to, from as u8, offset, ATOMIC_ADD);
    }

    /// `to = from`.
    pub(crate) fn copy(&mut self, to: Reg, from: Reg) {
        self.emit(MOVE, to, from as u8, 0, 0);
    }

    /// `to = from`, the lower half of it.
    pub(crate) fn copy_32(&mut self, to: Reg, from: Reg) {
        self.emit(MOVE_32, to, from as u8, 0, 0);
    }

    /// `to = value`.
    pub(crate) fn set(&mut self, to: Reg, value: i32) {
        self.emit(MOVE_IMMEDIATE, to, 0, 0, value);
    }

    /// `to += from`.
    pub(crate) fn add(&mut self, to: Reg, from: Reg) {
        self.emit(ADD, to, from as u8, 0, 0);
    }

    /// `to += value`.
    pub(crate) fn add_value(&mut self, to: Reg, value: i32) {
        self.emit(ADD_IMMEDIATE, to, 0, 0, value);
    }

    /// `to ^= value`, the lower half of it.
    pub(crate) fn xor_32(&mut self, to: Reg, value: u32) {
        self.emit(XOR_32_IMMEDIATE, to, 0, 0, value.cast_signed());
    }

    /// `to &= value`, the lower half of it.
    pub(crate) fn and_32(&mut self, to: Reg, value: u32) {
        self.emit(AND_32_IMMEDIATE, to, 0, 0, value.cast_signed());
    }

    /// `to <<= bits`.
    pub(crate) fn shift_left(&mut self, to: Reg, bits: i32) {
        self.emit(SHIFT_LEFT_IMMEDIATE, to, 0, 0, bits);
    }

    /// `to >>= bits`.
    pub(crate) fn shift_right(&mut self, to: Reg, bits: i32) {
        self.emit(SHIFT_RIGHT_IMMEDIATE, to, 0, 0, bits);
    }

    /// `to >>= by`, the lower half of it.
    pub(crate) fn shift_right_by_32(&mut self, to: Reg, by: Reg) {
        self.emit(SHIFT_RIGHT_32, to, by as u8, 0, 0);
    }

    /// 16 bits in network order become a number, the rest is cleared.
    pub(crate) fn network_to_host_16(&mut self, reg: Reg) {
        self.emit(TO_BIG_ENDIAN, reg, 0, 0, 16);
    }

    /// Jumps.
    pub(crate) fn jump(&mut self, label: Label) {
        self.emit_jump(JUMP, Reg::R0, 0, label);
    }

    /// Jumps if `reg == value`, all 64 bits of it; also for pointers.
    pub(crate) fn jump_if(&mut self, reg: Reg, value: i32, label: Label) {
        self.emit_jump(JUMP_EQUAL_IMMEDIATE, reg, value, label);
    }

    /// Jumps if `reg != value`, all 64 bits of it.
    pub(crate) fn jump_unless(&mut self, reg: Reg, value: i32, label: Label) {
        self.emit_jump(JUMP_UNEQUAL_IMMEDIATE, reg, value, label);
    }

    /// Jumps if the lower half of `reg` is `value`.
    pub(crate) fn jump_if_32(&mut self, reg: Reg, value: u32, label: Label) {
        self.emit_jump(JUMP_32_EQUAL_IMMEDIATE, reg, value.cast_signed(), label);
    }

    /// Jumps unless the lower half of `reg` is `value`.
    pub(crate) fn jump_unless_32(&mut self, reg: Reg, value: u32, label: Label) {
        self.emit_jump(JUMP_32_UNEQUAL_IMMEDIATE, reg, value.cast_signed(), label);
    }

    /// Jumps if any of these bits of `reg` is set.
    pub(crate) fn jump_if_any(&mut self, reg: Reg, bits: i32, label: Label) {
        self.emit_jump(JUMP_SET_IMMEDIATE, reg, bits, label);
    }

    /// Jumps if `reg < value`, unsigned.
    pub(crate) fn jump_if_less(&mut self, reg: Reg, value: i32, label: Label) {
        self.emit_jump(JUMP_LESS_IMMEDIATE, reg, value, label);
    }

    /// Jumps unless the lower halves of both are the same.
    pub(crate) fn jump_unless_same_32(&mut self, one: Reg, other: Reg, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP_32_UNEQUAL, one, other as u8, 0, 0);
    }

    /// Jumps if `reg > than`, unsigned.
    pub(crate) fn jump_if_greater(&mut self, reg: Reg, than: Reg, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(JUMP_GREATER, reg, than as u8, 0, 0);
    }

    /// Calls a helper.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(CALL, Reg::R0, 0, 0, helper as i32);
    }

    /// `to = map`, for a helper.
    pub(crate) fn map(&mut self, to: Reg, map: BorrowedFd<'_>) {
        self.emit(LOAD_64_IMMEDIATE, to, PSEUDO_MAP_FD, 0, map.as_raw_fd());
        self.code.push([0; INSTRUCTION]);
    }

    /// `to =` the address of the only value of an array map.
    pub(crate) fn map_value(&mut self, to: Reg, map: BorrowedFd<'_>) {
        self.emit(LOAD_64_IMMEDIATE, to, PSEUDO_MAP_VALUE, 0, map.as_raw_fd());
        self.code.push([0; INSTRUCTION]);
    }

    /// Ends the program with this result.
    pub(crate) fn exit_with(&mut self, result: i32) {
        self.set(Reg::R0, result);
        self.exit();
    }

    /// Ends the program with what is in r0.
    pub(crate) fn exit(&mut self) {
        self.emit(EXIT, Reg::R0, 0, 0, 0);
    }

    /// The program, its jumps resolved. A jump without a placed label stays where it is, and the kernel's verifier
    /// refuses it as an endless loop.
    pub(crate) fn finish(mut self) -> Vec<[u8; INSTRUCTION]> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0].unwrap_or(*at);
            let offset = target as i64 - *at as i64 - 1;
            let offset = i16::try_from(offset).unwrap_or(-1);
            self.code[*at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        self.code
    }

    fn emit_jump(&mut self, opcode: u8, reg: Reg, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(opcode, reg, 0, 0, value);
    }

    fn emit(&mut self, opcode: u8, to: Reg, from: u8, offset: i16, value: i32) {
        let registers =
            if cfg!(target_endian = "little") { to as u8 | from << 4 } else { (to as u8) << 4 | from };
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        self.code.push([opcode, registers, o0, o1, v0, v1, v2, v3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn instructions_are_encoded_as_rfc_9669_says() {
        let mut asm = Assembler::default();
        let end = asm.label();
        let start = asm.label();
        asm.place(start);
        asm.copy(Reg::R6, Reg::R1);
        asm.load(Width::Half, Reg::R2, Reg::Frame, -4);
        asm.jump_unless_32(Reg::R2, 0xffff_fffe, end);
        asm.jump(start);
        asm.place(end);
        asm.exit_with(-1);
        assert_eq!(
            asm.finish(),
            [
                [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
                [0x69, 0xa2, 0xfc, 0xff, 0, 0, 0, 0],
                [0x56, 0x02, 1, 0, 0xfe, 0xff, 0xff, 0xff],
                [0x05, 0, 0xfc, 0xff, 0, 0, 0, 0],
                [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }
}
