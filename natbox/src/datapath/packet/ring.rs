//! Receiving through a ring that the kernel writes into (`TPACKET_V2`).
//!
//! Each frame of the ring begins with a status word. While it is `TP_STATUS_KERNEL` the frame is the kernel's; once it
//! has the bit `TP_STATUS_USER` the frame is ours, and stays so until we write `TP_STATUS_KERNEL` back. Version 3 is
//! not used: it holds frames back for up to a millisecond.

use std::{
    mem::size_of,
    sync::atomic::{AtomicU32, Ordering},
};

use libc::{TP_STATUS_KERNEL, TP_STATUS_USER, TPACKET2_HDRLEN, tpacket_req, tpacket_versions, tpacket2_hdr};
use natbox_core::packet::HEADROOM;

use super::{
    super::{
        BATCH_BYTES, BATCH_LEN, Batch, ETHERNET_LEN, PortStats, SLOT_LEN,
        batch::{Frame, Region},
        virtio,
    },
    socket::Socket,
};

/// A block is what the kernel allocates in one piece.
const BLOCK_LEN: usize = 1 << 20;
const FRAMES_IN_BLOCK: usize = BLOCK_LEN / SLOT_LEN;

/// Blocks to ask for, best first. 8 hold 120 frames: enough for the bursts that a loop of 64 frames a turn leaves
/// waiting. More made no difference, and are further from the cache.
const BLOCKS: [usize; 3] = [8, 4, 2];

/// Free bytes in front of each frame, beside those that the ring has anyway: the network header then lies 160 bytes
/// into the frame, aligned, with more than [`HEADROOM`] free before it.
const RESERVE: i32 = 70;
const NETWORK_OFFSET: usize = 160;
const _: () = assert!(NETWORK_OFFSET - TPACKET2_HDRLEN >= HEADROOM && SLOT_LEN >= NETWORK_OFFSET + 65_536);

#[derive(Debug)]
pub(super) struct Ring {
    /// The ring's memory and what of it is ours; `None` while somebody works on it.
    batch: Option<Batch>,
    frames: usize,
    /// The first frame that has not been given out.
    next: usize,
    /// Frames before `next` that are given out.
    taken: usize,
}

impl Ring {
    /// Gives `socket`, which is not bound yet, a ring; `None` when the kernel has none to give.
    pub(super) fn new(socket: &Socket) -> Option<Ring> {
        let version = tpacket_versions::TPACKET_V2 as i32;
        socket.set(libc::SOL_PACKET, libc::PACKET_VERSION, &version).ok()?;
        socket.set(libc::SOL_PACKET, libc::PACKET_RESERVE, &RESERVE).ok()?;
        let ask = |blocks: usize| {
            // No block takes the ring away again, and then nothing may have a length.
            let len = |len: usize| if blocks == 0 { 0 } else { len as u32 };
            let request = tpacket_req {
                tp_block_size: len(BLOCK_LEN),
                tp_block_nr: blocks as u32,
                tp_frame_size: len(SLOT_LEN),
                tp_frame_nr: (blocks * FRAMES_IN_BLOCK) as u32,
            };
            socket.set(libc::SOL_PACKET, libc::PACKET_RX_RING, &request).is_ok()
        };
        let blocks = BLOCKS.into_iter().find(|blocks| ask(*blocks))?;
        let Ok(memory) = Region::ring(socket, blocks * BLOCK_LEN) else {
            // A ring that nobody can read would swallow everything.
            ask(0);
            return None;
        };
        let batch = Batch { memory, frames: Vec::with_capacity(BATCH_LEN) };
        Some(Ring { batch: Some(batch), frames: blocks * FRAMES_IN_BLOCK, next: 0, taken: 0 })
    }

    /// The frames that are ours now, up to `budget`.
    pub(super) fn receive(&mut self, budget: usize, stats: &mut PortStats) -> std::io::Result<Batch> {
        let Some(mut batch) = self.batch.take() else { return Batch::new() };
        let mut bytes = 0;
        while self.taken < budget.min(BATCH_LEN) && bytes < BATCH_BYTES {
            let at = offset(self.next);
            if status(&batch.memory, at).load(Ordering::Acquire) & TP_STATUS_USER == 0 {
                break;
            }
            if let Some(frame) = read(&batch.memory, at, stats) {
                stats.received(frame.len, frame.offload.gso.is_some());
                bytes += frame.len;
                batch.frames.push(frame);
            }
            self.next = (self.next + 1) % self.frames;
            self.taken += 1;
        }
        Ok(batch)
    }

    /// Gives the frames of the last batch back to the kernel.
    pub(super) fn release(&mut self, mut batch: Batch) {
        if self.batch.is_some() || batch.memory.len() != self.frames / FRAMES_IN_BLOCK * BLOCK_LEN {
            // Not the one that was given out.
            return;
        }
        batch.clear();
        for back in (1..=self.taken).rev() {
            let at = offset((self.next + self.frames - back) % self.frames);
            status(&batch.memory, at).store(TP_STATUS_KERNEL, Ordering::Release);
        }
        self.taken = 0;
        self.batch = Some(batch);
    }
}

/// Where frame `index` of the ring begins.
fn offset(index: usize) -> usize {
    index / FRAMES_IN_BLOCK * BLOCK_LEN + index % FRAMES_IN_BLOCK * SLOT_LEN
}

/// The status word of the frame at `at`, which the kernel reads and writes too.
fn status(memory: &Region, at: usize) -> &AtomicU32 {
    debug_assert_eq!(at % 16, 0);
    // SAFETY: the first field of the frame's header, aligned to 16 bytes, inside the mapping; both sides access it
    // atomically only.
    unsafe { AtomicU32::from_ptr(memory.address(at).cast()) }
}

/// What the kernel says about the frame at `at`, which is ours; `None` when it is of no use.
fn read(memory: &Region, at: usize, stats: &mut PortStats) -> Option<Frame> {
    // SAFETY: the header lies at the start of the frame, and is ours to read once the status says so.
    let header =
        unsafe { memory.bytes(at, size_of::<tpacket2_hdr>()).as_ptr().cast::<tpacket2_hdr>().read() };
    let (mac, net, len) =
        (usize::from(header.tp_mac), usize::from(header.tp_net), header.tp_snaplen as usize);
    if header.tp_len > header.tp_snaplen || mac + len > SLOT_LEN {
        stats.dropped_truncated += 1;
        return None;
    }
    if net != mac + ETHERNET_LEN || net < TPACKET2_HDRLEN + HEADROOM || len <= ETHERNET_LEN {
        stats.dropped_offload += 1;
        return None;
    }
    let ethernet = memory.bytes(at + mac, ETHERNET_LEN);
    let mut vnet = [0; virtio::LEN];
    vnet.copy_from_slice(memory.bytes(at + mac - virtio::LEN, virtio::LEN));
    let Ok(offload) = virtio::parse(vnet, ETHERNET_LEN) else {
        stats.dropped_offload += 1;
        return None;
    };
    let mut source = [0; 6];
    source.copy_from_slice(&ethernet[6..12]);
    Some(Frame {
        slot: at + TPACKET2_HDRLEN,
        end: at + SLOT_LEN,
        head: at + net,
        len: len - ETHERNET_LEN,
        offload,
        protocol: u16::from_be_bytes([ethernet[12], ethernet[13]]),
        source,
    })
}
