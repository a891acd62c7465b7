//! The inside: a TUN device with a virtio-net header.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{errno::Errno, unistd};

use super::{
    BATCH_BYTES, BATCH_LEN, Batch, Link, Outgoing, Port, PortError, PortStats, SuperFrames,
    batch::ethertype,
    segment::{Segments, finish_checksum, is_owed, is_udp_super_frame},
    virtio,
};

/// The longest packet that is asked for in one read: what a 16-bit length can name.
const MAX_PACKET: usize = 65_535;

/// A TUN device. It goes on working when it is moved to another namespace, taken down or given other addresses.
#[derive(Debug)]
pub struct TunPort {
    fd: OwnedFd,
    pool: Option<Batch>,
    /// Where segments are put that the kernel does not cut.
    segments: Batch,
    /// Whether super-frames and partial checksums go to the kernel as they are.
    offload: bool,
    /// Whether that includes UDP super-frames (Linux 6.2); found out by the first one that is refused.
    udp_offload: bool,
    stats: PortStats,
}

impl TunPort {
    /// A port on `fd`, which is non-blocking and attached to the TUN device `name` with `IFF_VNET_HDR`. Without
    /// `offload` it sends only packets that are complete and fit the MTU.
    ///
    /// # Errors
    /// When `fd` is not such a device, or there is no memory.
    pub fn new(name: &str, fd: OwnedFd, offload: bool) -> Result<TunPort, PortError> {
        let flags = flags(fd.as_fd()).map_err(|error| PortError::io(name, "ask for its flags", error))?;
        if flags & libc::IFF_VNET_HDR == 0 {
            return Err(PortError::NoVnetHeader { name: name.to_owned() });
        }
        let memory = || Batch::new().map_err(|error| PortError::io(name, "get memory", error));
        Ok(TunPort {
            fd,
            pool: Some(memory()?),
            segments: memory()?,
            offload,
            udp_offload: offload,
            stats: PortStats::new(name),
        })
    }

    /// Reads one frame into `batch`: its length, or `None` when there is none.
    fn read(&mut self, batch: &mut Batch) -> Result<Option<usize>, PortError> {
        let Some(at) = batch.next_head() else { return Ok(None) };
        let buffer = batch.memory.bytes_mut(at - virtio::LEN, virtio::LEN + MAX_PACKET);
        let len = match unistd::read(&self.fd, buffer) {
            Ok(len) if len > virtio::LEN => len - virtio::LEN,
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            // Down: nothing comes until it is up again.
            Err(Errno::EIO | Errno::ENETDOWN) => return Ok(None),
            // The file is no longer attached to a device.
            Err(Errno::EBADFD) => return Err(PortError::Gone { name: self.stats.name.clone() }),
            Err(error) => return Err(PortError::io(&self.stats.name, "read", error)),
        };
        let mut header = [0; virtio::LEN];
        header.copy_from_slice(&buffer[..virtio::LEN]);
        match (virtio::parse(header, 0), ethertype(&buffer[virtio::LEN..])) {
            (Ok(offload), Some(protocol)) => {
                self.stats.received(len, offload.gso.is_some());
                batch.commit(len, offload, protocol);
            }
            _ => self.stats.dropped_offload += 1,
        }
        Ok(Some(len))
    }

    /// Writes one frame, by itself or, where the kernel does not take it so, in pieces.
    fn write(&mut self, batch: &mut Batch, index: usize) {
        let offload = batch.frame(index).offload;
        let as_is = if is_udp_super_frame(&offload) { self.udp_offload } else { self.offload };
        if as_is || !is_owed(&offload) {
            match write_frame(&self.fd, batch, index) {
                Ok(len) => return self.stats.sent(len, offload.gso.is_some()),
                Err(Errno::EINVAL) if is_udp_super_frame(&offload) => self.udp_offload = false,
                Err(error) => return self.stats.refused(error),
            }
        }
        if offload.gso.is_some() {
            self.write_segments(batch, index)
        } else {
            self.write_finished(batch, index)
        }
    }

    fn write_finished(&mut self, batch: &mut Batch, index: usize) {
        let mut offload = batch.frame(index).offload;
        if finish_checksum(batch.bytes_mut(index), &mut offload).is_err() {
            return self.stats.dropped_offload += 1;
        }
        batch.frames[index].offload = offload;
        match write_frame(&self.fd, batch, index) {
            Ok(len) => self.stats.sent(len, false),
            Err(error) => self.stats.refused(error),
        }
    }

    fn write_segments(&mut self, batch: &Batch, index: usize) {
        let frame = batch.frame(index);
        let Ok(mut segments) = Segments::new(batch.bytes(index), &frame.offload) else {
            return self.stats.dropped_offload += 1;
        };
        loop {
            self.segments.clear();
            let count = segments.fill(&mut self.segments, frame.protocol);
            if count == 0 {
                return;
            }
            self.stats.segmented += count as u64;
            for i in 0..count {
                match write_frame(&self.fd, &mut self.segments, i) {
                    Ok(len) => self.stats.sent(len, false),
                    Err(error) => self.stats.refused(error),
                }
            }
        }
    }
}

/// Writes a frame with the header that says what is owed to it; returns the packet's length.
fn write_frame(fd: &OwnedFd, batch: &mut Batch, index: usize) -> nix::Result<usize> {
    let frame = *batch.frame(index);
    let buffer = batch.with_front(index, virtio::LEN);
    buffer[..virtio::LEN].copy_from_slice(&virtio::header(&frame.offload, 0, frame.len));
    unistd::write(fd, buffer)?;
    Ok(frame.len)
}

impl Port for TunPort {
    fn name(&self) -> &str {
        &self.stats.name
    }

    fn link(&self) -> Link {
        Link::Ip
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn receive(&mut self, budget: usize) -> Result<Batch, PortError> {
        let Some(mut batch) = self.pool.take() else {
            return Batch::new().map_err(|error| PortError::io(&self.stats.name, "get memory", error));
        };
        let mut bytes = 0;
        for _ in 0..budget.min(BATCH_LEN) {
            if bytes >= BATCH_BYTES {
                break;
            }
            match self.read(&mut batch) {
                Ok(Some(len)) => bytes += len,
                Ok(None) => break,
                Err(error) => {
                    self.release(batch);
                    return Err(error);
                }
            }
        }
        Ok(batch)
    }

    fn release(&mut self, mut batch: Batch) {
        batch.clear();
        self.pool = Some(batch);
    }

    fn send(&mut self, batch: &mut Batch, list: &[Outgoing]) {
        for outgoing in list {
            self.write(batch, outgoing.frame);
        }
    }

    fn takes(&self) -> SuperFrames {
        SuperFrames { tcp: self.offload, udp: self.udp_offload }
    }

    fn check(&mut self) -> Result<(), PortError> {
        match flags(self.fd.as_fd()) {
            Ok(_) => Ok(()),
            Err(_) => Err(PortError::Gone { name: self.stats.name.clone() }),
        }
    }

    fn stats(&self) -> &PortStats {
        &self.stats
    }

    fn stats_mut(&mut self) -> &mut PortStats {
        &mut self.stats
    }
}

/// The flags of the device that `fd` is attached to; an error when there is none.
fn flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in the ifreq, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after TUNGETIFF the flags are set.
    Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
}
