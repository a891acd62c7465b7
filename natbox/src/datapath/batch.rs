//! Frames where they were received, and the memory that they lie in.

use std::{io, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

use natbox_core::{
    Packet,
    packet::{HEADROOM, Offload},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::{BATCH_LEN, ETHERTYPE_IPV4, Mac};

/// Bytes that one frame may take, headroom included. Room for 64 KB, and deliberately not a power of two: then the
/// headers of neighbouring frames fall into different cache sets.
pub const SLOT_LEN: usize = 69_904;

/// A mapping of memory: our own, or a ring that the kernel writes into.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Region {}

impl Region {
    /// `len` bytes of our own, zeroed and not yet backed by memory.
    pub(super) fn anonymous(len: usize) -> io::Result<Region> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        Ok(Region { base: base.cast(), len })
    }

    /// The ring of a packet socket.
    pub(super) fn ring(socket: impl AsFd, len: usize) -> io::Result<Region> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours; what the kernel writes
        // there is read only as the ring's protocol allows.
        let base =
            unsafe { mmap(None, size, access, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE, socket, 0) }?;
        Ok(Region { base: base.cast(), len })
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `at`. In a ring, only bytes of frames that the kernel has handed over may be asked for.
    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the mapping, which lives as long as `self`; initialised, as mappings are.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }

    /// The same, writable.
    pub(super) fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) }
    }

    /// Where the byte at `at` is, for system calls and for the ring's status words.
    pub(super) fn address(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(at) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more. A failure leaves it mapped: harmless.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// A packet in its place, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where the slot begins; everything from here to `head` is free.
    pub(super) slot: usize,
    /// Where the slot ends.
    pub(super) end: usize,
    /// Where the network header begins.
    pub(super) head: usize,
    /// Length of the packet from there.
    pub(super) len: usize,
    /// What is owed to the packet.
    pub offload: Offload,
    /// Its EtherType.
    pub protocol: u16,
    /// The Ethernet address that it came from; zero on a TUN.
    pub source: Mac,
}

impl Frame {
    /// Length of the packet in bytes, from its network header on.
    pub fn packet_len(&self) -> usize {
        self.len
    }
}

/// Frames that belong to us for the moment.
#[derive(Debug)]
pub struct Batch {
    pub(super) memory: Region,
    pub(super) frames: Vec<Frame>,
}

impl Batch {
    /// A batch of our own memory with room for [`BATCH_LEN`] frames of 64 KB; memory is used as frames need it.
    ///
    /// # Errors
    /// When the kernel gives no memory.
    pub fn new() -> io::Result<Batch> {
        Ok(Batch { memory: Region::anonymous(BATCH_LEN * SLOT_LEN)?, frames: Vec::with_capacity(BATCH_LEN) })
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// True when there is no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// True when no further frame has room.
    pub fn is_full(&self) -> bool {
        self.frames.len() == BATCH_LEN
    }

    /// What is known about frame `index`. Panics, as all below, when there is no such frame.
    pub fn frame(&self, index: usize) -> &Frame {
        &self.frames[index]
    }

    /// The packet of frame `index`, from its network header on.
    pub fn bytes(&self, index: usize) -> &[u8] {
        let frame = &self.frames[index];
        self.memory.bytes(frame.head, frame.len)
    }

    /// The same, writable.
    pub fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        let frame = &self.frames[index];
        self.memory.bytes_mut(frame.head, frame.len)
    }

    /// Lets `engine` work on packet `index`, and keeps what it made of it.
    pub fn translate<R>(&mut self, index: usize, engine: impl FnOnce(&mut Packet<'_>) -> R) -> R {
        let frame = &mut self.frames[index];
        let first = frame.head - HEADROOM.min(frame.head - frame.slot);
        let buffer = self.memory.bytes_mut(first, frame.head + frame.len - first);
        let base = buffer.as_ptr() as usize;
        let mut packet = Packet::new(buffer, frame.head - first, frame.offload);
        let result = engine(&mut packet);
        let bytes = packet.bytes();
        frame.head = first + (bytes.as_ptr() as usize - base);
        frame.len = bytes.len();
        frame.offload = packet.offload;
        result
    }

    /// Forgets all frames of a batch of our own memory.
    pub fn clear(&mut self) {
        self.frames.clear();
    }

    /// Adds a copy of `packet`; false when there is no room. Only for a batch made by [`Batch::new`].
    pub fn push(&mut self, packet: &[u8], offload: Offload, protocol: u16) -> bool {
        let Some(room) = self.room(packet.len()) else { return false };
        room.copy_from_slice(packet);
        self.commit(packet.len(), offload, protocol);
        true
    }

    /// `len` bytes where the next frame's packet goes; `None` when there is no room.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > SLOT_LEN - HEADROOM {
            return None;
        }
        let at = self.next_head()?;
        Some(self.memory.bytes_mut(at, len))
    }

    /// Where the next frame's packet begins in a batch of our own memory; `None` when there is no room.
    pub(super) fn next_head(&self) -> Option<usize> {
        (!self.is_full()).then(|| self.frames.len() * SLOT_LEN + HEADROOM)
    }

    /// Makes a frame of the first `len` bytes that were written into the last [`room`](Batch::room).
    pub(super) fn commit(&mut self, len: usize, offload: Offload, protocol: u16) {
        let slot = self.frames.len() * SLOT_LEN;
        let (end, head) = (slot + SLOT_LEN, slot + HEADROOM);
        self.frames.push(Frame { slot, end, head, len, offload, protocol, source: [0; 6] });
    }

    /// The packet of frame `index` with `front` bytes of the headroom before it.
    pub(super) fn with_front(&mut self, index: usize, front: usize) -> &mut [u8] {
        let frame = &self.frames[index];
        assert!(frame.head - front >= frame.slot);
        self.memory.bytes_mut(frame.head - front, frame.len + front)
    }

    /// Splits the batch into the packet of frame `into` with all the room behind it, and the packet of `from`.
    pub(super) fn pair(&mut self, into: usize, from: usize) -> (&mut [u8], &[u8]) {
        assert_ne!(into, from);
        let (a, b) = (self.frames[into], self.frames[from]);
        assert!(a.end <= b.slot || b.end <= a.slot);
        let room = a.end - a.head;
        let source = self.memory.bytes(b.head, b.len);
        // SAFETY: the two frames lie in different slots (asserted), so the slices do not overlap; both are inside the
        // mapping (`bytes` asserts it for the one, `address` and the slot's end for the other), and `self` is borrowed.
        let source = unsafe { std::slice::from_raw_parts(source.as_ptr(), source.len()) };
        (self.memory.bytes_mut(a.head, room), source)
    }
}

/// The EtherType of an IP packet by its version; `None` when it is neither IPv4 nor IPv6.
pub(super) fn ethertype(packet: &[u8]) -> Option<u16> {
    match packet.first()? >> 4 {
        4 => Some(ETHERTYPE_IPV4),
        6 => Some(0x86dd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_does_to_a_packet_is_kept() {
        let mut batch = Batch::new().unwrap();
        assert!(batch.push(&[0x45, 1, 2, 3, 4], Offload::default(), ETHERTYPE_IPV4));
        let seen = batch.translate(0, |packet| {
            packet.bytes_mut()[1] = 9;
            packet.truncate(4);
            packet.len()
        });
        assert_eq!(seen, 4);
        assert_eq!(batch.bytes(0), [0x45, 9, 2, 3]);
        assert_eq!(batch.with_front(0, HEADROOM).len(), HEADROOM + 4);
    }

    #[test]
    fn a_batch_takes_so_many_frames_and_no_more() {
        let mut batch = Batch::new().unwrap();
        let largest = vec![7; SLOT_LEN - HEADROOM];
        for _ in 0..BATCH_LEN {
            assert!(batch.push(&largest, Offload::default(), ETHERTYPE_IPV4));
        }
        assert!(batch.is_full() && !batch.push(&[1], Offload::default(), ETHERTYPE_IPV4));
        batch.clear();
        assert!(!batch.push(&vec![0; SLOT_LEN], Offload::default(), ETHERTYPE_IPV4), "longer than a slot");
    }

    #[test]
    fn two_frames_can_be_joined() {
        let mut batch = Batch::new().unwrap();
        batch.push(&[1, 2], Offload::default(), ETHERTYPE_IPV4);
        batch.push(&[3, 4, 5], Offload::default(), ETHERTYPE_IPV4);
        let (into, from) = batch.pair(0, 1);
        into[2..5].copy_from_slice(from);
        batch.frames[0].len = 5;
        assert_eq!(batch.bytes(0), [1, 2, 3, 4, 5]);
    }
}
