//! Programs in the kernel, without a compiler or an object file: an assembler, and the system call.

mod asm;
mod sys;

pub(crate) use asm::{Assembler, Helper, Label, Reg, Width};
pub(crate) use sys::{Hook, Kind, Lookup, SharedArray, SharedBytes, attach, load};
