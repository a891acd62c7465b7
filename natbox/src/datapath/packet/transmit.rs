//! Sending, many frames with one system call.

use std::{io, mem::zeroed, ptr};

use nix::errno::Errno;

use super::{
    super::{
        BATCH_LEN, Batch, ETHERNET_LEN, Mac, Outgoing, PortStats, SuperFrames,
        segment::{Segments, finish_checksum, is_owed, is_udp_super_frame},
        virtio,
    },
    socket::Socket,
};

#[derive(Debug)]
pub(super) struct Transmitter {
    socket: Socket,
    mac: Mac,
    /// Whether a virtio-net header goes in front of each frame, and so super-frames and partial checksums may be sent.
    offload: bool,
    /// Whether that includes UDP super-frames (Linux 6.2); found out by the first one that is refused.
    udp_offload: bool,
    /// Where segments are put that the kernel does not cut.
    segments: Option<Batch>,
}

impl Transmitter {
    /// Sends by `socket`, which is bound and has or has not been told to speak virtio-net, as `mac`.
    pub(super) fn new(socket: Socket, mac: Mac, offload: bool) -> io::Result<Transmitter> {
        Ok(Transmitter { socket, mac, offload, udp_offload: offload, segments: Some(Batch::new()?) })
    }

    pub(super) fn takes(&self) -> SuperFrames {
        SuperFrames { tcp: self.offload, udp: self.udp_offload }
    }

    /// Sends the frames that `list` names, in that order.
    pub(super) fn send(&mut self, batch: &mut Batch, list: &[Outgoing], stats: &mut PortStats) {
        // What the kernel takes as it is goes in runs, each with one system call.
        let mut run = 0;
        for (i, outgoing) in list.iter().enumerate() {
            let offload = batch.frame(outgoing.frame).offload;
            let takes = if is_udp_super_frame(&offload) { self.udp_offload } else { self.offload };
            if takes || !is_owed(&offload) {
                continue;
            }
            if offload.gso.is_some() {
                self.send_run(batch, &list[run..i], stats);
                self.send_segments(batch, outgoing, stats);
                run = i + 1;
            } else {
                let mut offload = offload;
                if finish_checksum(batch.bytes_mut(outgoing.frame), &mut offload).is_ok() {
                    batch.frames[outgoing.frame].offload = offload;
                } else {
                    self.send_run(batch, &list[run..i], stats);
                    stats.dropped_offload += 1;
                    run = i + 1;
                }
            }
        }
        self.send_run(batch, &list[run..], stats);
    }

    fn send_run(&mut self, batch: &mut Batch, mut list: &[Outgoing], stats: &mut PortStats) {
        while !list.is_empty() {
            let count = list.len().min(BATCH_LEN);
            match self.transmit(batch, &list[..count]) {
                Ok(sent) => {
                    for outgoing in &list[..sent] {
                        let frame = batch.frame(outgoing.frame);
                        stats.sent(frame.len, frame.offload.gso.is_some());
                    }
                    list = &list[sent..];
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    let first = list[0];
                    list = &list[1..];
                    if error == Errno::EINVAL && is_udp_super_frame(&batch.frame(first.frame).offload) {
                        self.udp_offload = false;
                        self.send_segments(batch, &first, stats);
                    } else {
                        stats.refused(error);
                    }
                }
            }
        }
    }

    /// One system call for up to [`BATCH_LEN`] frames: how many the kernel took, at least one, or why it did not take
    /// the first.
    fn transmit(&self, batch: &mut Batch, list: &[Outgoing]) -> nix::Result<usize> {
        let vnet = if self.offload { virtio::LEN } else { 0 };
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH_LEN];
        // SAFETY: all zeros is a valid mmsghdr.
        let mut messages: [libc::mmsghdr; BATCH_LEN] = unsafe { zeroed() };
        for (i, outgoing) in list.iter().enumerate() {
            let frame = *batch.frame(outgoing.frame);
            let buffer = batch.with_front(outgoing.frame, ETHERNET_LEN + vnet);
            if self.offload {
                let header = virtio::header(&frame.offload, ETHERNET_LEN, frame.len);
                buffer[..vnet].copy_from_slice(&header);
            }
            let ethernet = &mut buffer[vnet..vnet + ETHERNET_LEN];
            ethernet[..6].copy_from_slice(&outgoing.to);
            ethernet[6..12].copy_from_slice(&self.mac);
            ethernet[12..].copy_from_slice(&frame.protocol.to_be_bytes());
            vectors[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            messages[i].msg_hdr.msg_iov = &raw mut vectors[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every pointer leads to memory that outlives the call, and the kernel only reads the frames.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.raw(),
                messages.as_mut_ptr(),
                list.len() as u32,
                libc::MSG_DONTWAIT as _,
            )
        };
        Errno::result(sent).map(|sent| sent as usize)
    }

    fn send_segments(&mut self, batch: &Batch, outgoing: &Outgoing, stats: &mut PortStats) {
        let frame = batch.frame(outgoing.frame);
        let Ok(mut segments) = Segments::new(batch.bytes(outgoing.frame), &frame.offload) else {
            return stats.dropped_offload += 1;
        };
        // Segments are no super-frames, so this is not entered again while `out` is away.
        let Some(mut out) = self.segments.take() else { return };
        loop {
            out.clear();
            let count = segments.fill(&mut out, frame.protocol);
            if count == 0 {
                break;
            }
            stats.segmented += count as u64;
            let mut list = [Outgoing { frame: 0, to: outgoing.to }; BATCH_LEN];
            for (i, outgoing) in list.iter_mut().enumerate() {
                outgoing.frame = i;
            }
            self.send_run(&mut out, &list[..count], stats);
        }
        self.segments = Some(out);
    }
}
