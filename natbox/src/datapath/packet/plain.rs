//! Receiving without a ring, with a virtio-net header or without one.

use std::{
    io,
    mem::{size_of, zeroed},
    ptr,
};

use libc::{TP_STATUS_CSUM_VALID, TP_STATUS_CSUMNOTREADY, tpacket_auxdata};
use natbox_core::packet::{Checksum, Gso, GsoKind, HEADROOM, Offload};
use nix::errno::Errno;

use super::{
    super::{BATCH_LEN, Batch, ETHERNET_LEN, ETHERTYPE_IPV4, PortStats, SLOT_LEN, batch::Frame, virtio},
    socket::Socket,
};

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;

/// Room for one `tpacket_auxdata` control message, aligned as the kernel wants it.
type Control = [u64; 6];

#[derive(Debug)]
pub(super) struct Plain {
    pool: Option<Batch>,
    /// Whether the socket puts a virtio-net header in front of each frame.
    offload: bool,
    /// IP packets longer than this are super-frames.
    mtu: usize,
}

impl Plain {
    /// A pool for `socket`, which has or has not been told to speak virtio-net.
    pub(super) fn new(socket: &Socket, offload: bool, mtu: u16) -> io::Result<Plain> {
        socket.enlarge_receive_buffer();
        if !offload {
            // Without it a partial checksum could not be told from a wrong one.
            socket.enable_auxiliary_data()?;
        }
        Ok(Plain { pool: Some(Batch::new()?), offload, mtu: mtu.into() })
    }

    pub(super) fn offload(&self) -> bool {
        self.offload
    }

    /// Bytes that the kernel writes in front of the network header.
    fn front(&self) -> usize {
        ETHERNET_LEN + if self.offload { virtio::LEN } else { 0 }
    }

    /// The frames that have arrived, up to `budget`.
    pub(super) fn receive(
        &mut self,
        socket: &Socket,
        budget: usize,
        stats: &mut PortStats,
    ) -> io::Result<Batch> {
        let Some(mut batch) = self.pool.take() else { return Batch::new() };
        let front = self.front();
        let count = budget.min(BATCH_LEN);
        let mut control = [Control::default(); BATCH_LEN];
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH_LEN];
        // SAFETY: all zeros is a valid mmsghdr.
        let mut messages: [libc::mmsghdr; BATCH_LEN] = unsafe { zeroed() };
        for i in 0..count {
            let buffer = batch.memory.bytes_mut(i * SLOT_LEN + HEADROOM - front, front + MAX_PACKET);
            vectors[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut messages[i].msg_hdr;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            if !self.offload {
                header.msg_control = (&raw mut control[i]).cast();
                header.msg_controllen = size_of::<Control>() as _;
            }
        }
        // SAFETY: every pointer leads to memory that outlives the call, and every buffer is ours and writable.
        let received = unsafe {
            libc::recvmmsg(
                socket.raw(),
                messages.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let received = match Errno::result(received) {
            Ok(received) => received as usize,
            // Down: nothing comes until it is up again. Removed: `check` finds out.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN | Errno::ENODEV | Errno::ENXIO) => 0,
            Err(error) => {
                self.pool = Some(batch);
                return Err(error.into());
            }
        };
        for (i, message) in messages[..received].iter().enumerate() {
            self.accept(&mut batch, i * SLOT_LEN, message, stats);
        }
        Ok(batch)
    }

    /// Makes a frame of a message received into the slot at `slot`.
    fn accept(&self, batch: &mut Batch, slot: usize, message: &libc::mmsghdr, stats: &mut PortStats) {
        let front = self.front();
        let len = message.msg_len as usize;
        if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || len <= front {
            return stats.dropped_truncated += 1;
        }
        let head = slot + HEADROOM;
        let ethernet = batch.memory.bytes(head - ETHERNET_LEN, ETHERNET_LEN);
        let protocol = u16::from_be_bytes([ethernet[12], ethernet[13]]);
        let mut source = [0; 6];
        source.copy_from_slice(&ethernet[6..12]);
        let len = len - front;
        let offload = if self.offload {
            let mut header = [0; virtio::LEN];
            header.copy_from_slice(batch.memory.bytes(head - front, virtio::LEN));
            virtio::parse(header, ETHERNET_LEN).ok()
        } else if protocol == ETHERTYPE_IPV4 {
            guess(batch.memory.bytes(head, len), status(&message.msg_hdr), self.mtu)
        } else {
            Some(Offload::default())
        };
        let Some(offload) = offload else { return stats.dropped_offload += 1 };
        stats.received(len, offload.gso.is_some());
        batch.frames.push(Frame { slot, end: slot + SLOT_LEN, head, len, offload, protocol, source });
    }

    pub(super) fn release(&mut self, mut batch: Batch) {
        batch.clear();
        self.pool = Some(batch);
    }
}

/// The kernel's word on a frame that came without a virtio-net header: the status bits of `PACKET_AUXDATA`.
fn status(message: &libc::msghdr) -> u32 {
    // SAFETY: the kernel has filled in the control buffer and its length.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: not null, so it points to a complete header inside the control buffer.
        let (level, kind) = unsafe { ((*control).cmsg_level, (*control).cmsg_type) };
        if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: this kind of message carries a tpacket_auxdata, perhaps unaligned.
            return unsafe { libc::CMSG_DATA(control).cast::<tpacket_auxdata>().read_unaligned() }.tp_status;
        }
        // SAFETY: both come from the same message.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    0
}

/// What is owed to an IPv4 packet that came without metadata. A TCP super-frame may be cut anywhere; the boundaries of
/// a UDP one are lost, and so is the packet (`None`).
fn guess(packet: &[u8], status: u32, mtu: usize) -> Option<Offload> {
    let complete = Offload {
        checksum: if status & TP_STATUS_CSUM_VALID != 0 { Checksum::Verified } else { Checksum::Unverified },
        gso: None,
    };
    // Shorter than a header, or a fragment: nothing was joined, and the engine sees to it.
    if packet.len() < 20 || packet[6] & 0x3f != 0 || packet[7] != 0 {
        return Some(complete);
    }
    let start = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let offset = match packet[9] {
        6 => 16,
        17 => 6,
        _ => return Some(complete),
    };
    let checksum = if status & TP_STATUS_CSUMNOTREADY != 0 {
        Checksum::Partial { start: start as u16, offset }
    } else {
        complete.checksum
    };
    if total <= mtu {
        return Some(Offload { checksum, gso: None });
    }
    let headers = match packet[9] {
        6 => start + usize::from(packet.get(start + 12)? >> 4) * 4,
        _ => return None,
    };
    let segment = u16::try_from(mtu.checked_sub(headers)?).ok().filter(|segment| *segment > 0)?;
    let gso = Gso { kind: GsoKind::TcpV4, segment, header_len: headers as u16, ecn: false };
    Some(Offload { checksum, gso: Some(gso) })
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn tcp(len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64).tcp(1, 2, 3, 4);
        builder.write(&mut packet, &vec![0; len]).unwrap();
        packet
    }

    fn udp(len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .udp(1, 2)
            .write(&mut packet, &vec![0; len])
            .unwrap();
        packet
    }

    #[test]
    fn a_checksum_that_is_not_ready_is_partial() {
        let partial = |offset| Checksum::Partial { start: 20, offset };
        assert_eq!(guess(&tcp(9), TP_STATUS_CSUMNOTREADY, 1500).unwrap().checksum, partial(16));
        assert_eq!(guess(&udp(9), TP_STATUS_CSUMNOTREADY, 1500).unwrap().checksum, partial(6));
        assert_eq!(guess(&udp(9), TP_STATUS_CSUM_VALID, 1500).unwrap().checksum, Checksum::Verified);
        assert_eq!(guess(&udp(9), 0, 1500).unwrap().checksum, Checksum::Unverified);
    }

    #[test]
    fn a_tcp_packet_beyond_the_mtu_is_a_super_frame() {
        assert_eq!(guess(&tcp(1460), TP_STATUS_CSUMNOTREADY, 1500).unwrap().gso, None);
        let gso = guess(&tcp(1461), TP_STATUS_CSUMNOTREADY, 1500).unwrap().gso.unwrap();
        assert_eq!((gso.kind, gso.segment, gso.header_len), (GsoKind::TcpV4, 1460, 40));
        assert_eq!(guess(&tcp(100), 0, 30), None, "an MTU without room for the headers");
    }

    #[test]
    fn a_udp_packet_beyond_the_mtu_has_lost_its_boundaries() {
        assert!(guess(&udp(1472), TP_STATUS_CSUMNOTREADY, 1500).is_some());
        assert_eq!(guess(&udp(1473), TP_STATUS_CSUMNOTREADY, 1500), None);
    }

    #[test]
    fn short_and_strange_packets_are_left_to_the_engine() {
        let packet = tcp(2000);
        for len in 0..33 {
            let _ = guess(&packet[..len], TP_STATUS_CSUMNOTREADY, 1500);
        }
        let mut fragment = udp(1400);
        fragment[6] = 0x20;
        assert_eq!(guess(&fragment, TP_STATUS_CSUMNOTREADY, 1500), Some(Offload::default()));
    }
}
