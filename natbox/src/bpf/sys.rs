//! The bpf(2) system call: maps, programs, links.

use std::{
    ffi::{c_int, c_void},
    io,
    marker::PhantomData,
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
/// Memory is taken for an entry when there is one.
const NO_PREALLOCATION: u32 = 1;
const NO_FLAGS: u32 = 0;
/// The values may be mapped into memory.
const MMAPABLE: u32 = 1 << 10;
/// Attach in front of the programs that are there.
const BEFORE: u32 = 1 << 3;
const NAME: [u8; 16] = *b"natbox\0\0\0\0\0\0\0\0\0\0";

/// What a program is for (`enum bpf_prog_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Decides which frames a socket gets.
    SocketFilter = 1,
    /// Decides what becomes of an interface's packets.
    Classifier = 3,
}

/// Where a classifier sees packets (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    /// When they have come in, behind packet sockets and before the host's stack.
    Ingress = 46,
    /// When they are about to go out, before packet sockets.
    Egress = 47,
}
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

fn create_map(attributes: MapAttributes) -> io::Result<OwnedFd> {
    // SAFETY: no addresses in it; the command returns a descriptor.
    unsafe { bpf_fd(MAP_CREATE, &MapAttributes { name: NAME, ..attributes }) }
}

/// The values of an array map, in this process's memory.
#[derive(Debug)]
struct Mapped {
    map: OwnedFd,
    memory: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Mapped {
    /// Zeros.
    fn new(value_size: usize, count: usize) -> io::Result<Mapped> {
        let len = value_size.checked_mul(count).and_then(NonZeroUsize::new);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let map = create_map(MapAttributes {
            kind: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(value_size).map_err(io::Error::other)?,
            max_entries: u32::try_from(count).map_err(io::Error::other)?,
            flags: MMAPABLE,
            ..MapAttributes::default()
        })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of the size of the map's values.
        let memory = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &map, 0) }?;
        Ok(Mapped { map, memory, len })
    }
}

// SAFETY: the memory belongs to this value alone in this process and is only touched atomically.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference into it outlives `self`. It cannot fail for a
        // mapping that exists.
        let _ = unsafe { munmap(self.memory, self.len.get()) };
    }
}

/// Bytes that a program and this process share: the only value of an array map.
#[derive(Debug)]
pub(crate) struct SharedBytes(Mapped);

impl SharedBytes {
    /// Zeros; `len` is a multiple of the page size.
    pub(crate) fn new(len: NonZeroUsize) -> io::Result<SharedBytes> {
        Mapped::new(len.get(), 1).map(SharedBytes)
    }

    /// Sets or clears one bit; programs on every processor see it with their next packet.
    pub(crate) fn set_bit(&self, bit: usize, value: bool) {
        let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
        if byte >= self.0.len.get() {
            return;
        }
        // SAFETY: within the mapping, which lives as long as `self`.
        let byte = unsafe { self.0.memory.cast::<AtomicU8>().add(byte).as_ref() };
        if value {
            byte.fetch_or(mask, Ordering::SeqCst);
        } else {
            byte.fetch_and(!mask, Ordering::SeqCst);
        }
    }
}

impl AsFd for SharedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.map.as_fd()
    }
}

/// Values that programs and this process share: an array map.
#[derive(Debug)]
pub(crate) struct SharedArray<T> {
    mapped: Mapped,
    count: usize,
    of: PhantomData<T>,
}

impl<T> SharedArray<T> {
    /// `count` values, all bytes zero.
    ///
    /// # Safety
    /// `T` consists of atomic integers without gaps, and its size is a multiple of 8.
    pub(crate) unsafe fn new(count: usize) -> io::Result<SharedArray<T>> {
        Ok(SharedArray { mapped: Mapped::new(size_of::<T>(), count)?, count, of: PhantomData })
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        // SAFETY: within the mapping, which lives as long as `self`; of a type that any bytes are a value of, and that
        // may change at any time.
        (index < self.count).then(|| unsafe { self.mapped.memory.cast::<T>().add(index).as_ref() })
    }
}

impl<T> AsFd for SharedArray<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapped.map.as_fd()
    }
}

/// A hash map that programs look keys up in.
#[derive(Debug)]
pub(crate) struct Lookup<const KEY: usize, const VALUE: usize> {
    map: OwnedFd,
}

impl<const KEY: usize, const VALUE: usize> Lookup<KEY, VALUE> {
    /// Empty, for up to `limit` keys.
    pub(crate) fn new(limit: u32) -> io::Result<Self> {
        Self::with(limit, NO_FLAGS)
    }

    /// The same, and what is not used takes no memory.
    pub(crate) fn sparse(limit: u32) -> io::Result<Self> {
        Self::with(limit, NO_PREALLOCATION)
    }

    fn with(limit: u32, flags: u32) -> io::Result<Self> {
        let map = create_map(MapAttributes {
            kind: MAP_TYPE_HASH,
            key_size: KEY as u32,
            value_size: VALUE as u32,
            max_entries: limit,
            flags,
            ..MapAttributes::default()
        })?;
        Ok(Lookup { map })
    }

    /// Adds a key, or gives it another value.
    pub(crate) fn insert(&self, key: [u8; KEY], value: [u8; VALUE]) -> io::Result<()> {
        self.change(MAP_UPDATE_ELEM, &key, Some(&value))
    }

    /// Takes a key out.
    pub(crate) fn remove(&self, key: [u8; KEY]) -> io::Result<()> {
        self.change(MAP_DELETE_ELEM, &key, None)
    }

    fn change(&self, command: c_int, key: &[u8; KEY], value: Option<&[u8; VALUE]>) -> io::Result<()> {
        let attributes = ElementAttributes {
            map: self.map.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: value.map_or(0, |value| value.as_ptr() as u64),
            flags: 0,
        };
        // SAFETY: key and value live until the call returns and have the sizes that the map was made with.
        unsafe { bpf(command, &attributes) }.map(drop)
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for Lookup<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Loads a program. Its licence is natbox's own, so it may not use helpers reserved for the GPL.
pub(crate) fn load(kind: Kind, program: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = |log: &mut [u8]| ProgramAttributes {
        kind: kind as u32,
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
        attach_type: 0,
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

/// Attaches a classifier to an interface in front of all others; detached with the descriptor.
pub(crate) fn attach(program: BorrowedFd<'_>, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    let attributes = LinkAttributes {
        program: program.as_raw_fd() as u32,
        interface,
        attach_type: hook as u32,
        flags: BEFORE,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: no addresses in it; the command returns a descriptor.
    unsafe { bpf_fd(LINK_CREATE, &attributes) }
}
