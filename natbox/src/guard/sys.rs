//! The bpf(2) system call: maps, programs, links.

use std::{
    ffi::c_int,
    io,
    mem::size_of,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const MAP_CREATE: c_int = 0;
const MAP_UPDATE_ELEM: c_int = 2;
const MAP_DELETE_ELEM: c_int = 3;
const PROG_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// The values may be mapped into memory.
const MMAPABLE: u32 = 1 << 10;
/// Attach in front of the programs that are there.
const BEFORE: u32 = 1 << 3;
const NAME: [u8; 16] = *b"natbox_guard\0\0\0\0";
/// Enough for the verifier's last words.
const LOG: usize = 64 << 10;

#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkAttributes {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// # Safety
/// `attributes` must be what `command` takes, and every address in it must be valid for what the kernel does with it.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}

/// # Safety
/// As for [`bpf`], and `command` must return a new descriptor.
unsafe fn bpf_fd<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: promised by the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the descriptor is new and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes that a program and this process share: the only value of an array map.
#[derive(Debug)]
pub(super) struct SharedBytes {
    map: OwnedFd,
    memory: NonNull<AtomicU8>,
    len: NonZeroUsize,
}

// SAFETY: the memory belongs to this value alone in this process and is only touched atomically.
unsafe impl Send for SharedBytes {}

impl SharedBytes {
    /// Zeros; `len` is a multiple of the page size.
    pub(super) fn new(len: NonZeroUsize) -> io::Result<SharedBytes> {
        let value_size = u32::try_from(len.get()).map_err(io::Error::other)?;
        let attributes = MapAttributes {
            kind: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            flags: MMAPABLE,
            name: NAME,
            ..MapAttributes::default()
        };
        // SAFETY: no addresses in it; the command returns a descriptor.
        let map = unsafe { bpf_fd(MAP_CREATE, &attributes) }?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of the size of the map's value.
        let memory = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &map, 0) }?;
        Ok(SharedBytes { map, memory: memory.cast(), len })
    }

    /// Sets or clears one bit; programs on every processor see it with their next packet.
    pub(super) fn set_bit(&self, bit: usize, value: bool) {
        let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
        if byte >= self.len.get() {
            return;
        }
        // SAFETY: within the mapping, which lives as long as `self`.
        let byte = unsafe { self.memory.add(byte).as_ref() };
        if value {
            byte.fetch_or(mask, Ordering::SeqCst);
        } else {
            byte.fetch_and(!mask, Ordering::SeqCst);
        }
    }
}

impl AsFd for SharedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference into it outlives `self`. It cannot fail for a
        // mapping that exists.
        let _ = unsafe { munmap(self.memory.cast(), self.len.get()) };
    }
}

/// A set of four-byte keys.
#[derive(Debug)]
pub(super) struct KeySet {
    map: OwnedFd,
}

impl KeySet {
    /// Empty, for up to `limit` keys.
    pub(super) fn new(limit: u32) -> io::Result<KeySet> {
        let attributes = MapAttributes {
            kind: MAP_TYPE_HASH,
            key_size: 4,
            value_size: 1,
            max_entries: limit,
            name: NAME,
            ..MapAttributes::default()
        };
        // SAFETY: no addresses in it; the command returns a descriptor.
        Ok(KeySet { map: unsafe { bpf_fd(MAP_CREATE, &attributes) }? })
    }

    /// Adds a key, or takes it out.
    pub(super) fn change(&self, key: [u8; 4], present: bool) -> io::Result<()> {
        let value = 1u8;
        let attributes = ElementAttributes {
            map: self.map.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: if present { &raw const value as u64 } else { 0 },
            flags: 0,
        };
        let command = if present { MAP_UPDATE_ELEM } else { MAP_DELETE_ELEM };
        // SAFETY: key and value live until the call returns and have the sizes that the map was made with.
        unsafe { bpf(command, &attributes) }?;
        Ok(())
    }
}

impl AsFd for KeySet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Loads a traffic classifier. Its licence is natbox's own, so it may not use helpers reserved for the GPL.
pub(super) fn load(program: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = |log: &mut [u8]| ProgramAttributes {
        kind: PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name: NAME,
        interface: 0,
        attach_type: TCX_INGRESS,
    };
    // SAFETY: program and licence live until the call returns; the command returns a descriptor.
    let error = match unsafe { bpf_fd(PROG_LOAD, &attributes(&mut [])) } {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => error,
        result => return result,
    };
    // The verifier refused it: ask again for its reasons.
    let mut log = vec![0; LOG];
    // SAFETY: as above, and so does the log.
    if let Ok(program) = unsafe { bpf_fd(PROG_LOAD, &attributes(&mut log)) } {
        return Ok(program);
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let last = text.lines().rev().find(|line| !line.is_empty() && !line.starts_with("processed"));
    Err(io::Error::new(error.kind(), format!("{error} ({})", last.unwrap_or("the verifier gave no reason"))))
}

/// Attaches a classifier in front of all others where packets of an interface come in; detached with the descriptor.
pub(super) fn attach(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let attributes = LinkAttributes {
        program: program.as_raw_fd() as u32,
        interface,
        attach_type: TCX_INGRESS,
        flags: BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: no addresses in it; the command returns a descriptor.
    unsafe { bpf_fd(LINK_CREATE, &attributes) }
}
