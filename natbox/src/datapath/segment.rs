//! What a port owes a packet when nobody below it will pay: checksums finished and super-frames cut in software.

use std::net::Ipv4Addr;

use natbox_core::packet::{Checksum, GsoKind, Offload, checksum};

use super::Batch;

const IP_LEN: std::ops::Range<usize> = 2..4;
const IP_ID: std::ops::Range<usize> = 4..6;
const IP_CHECKSUM: std::ops::Range<usize> = 10..12;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// A packet whose metadata and bytes do not agree, or of a kind that is not cut here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinishable;

/// True when somebody still has to finish the packet before a plain link can carry it.
pub fn is_owed(offload: &Offload) -> bool {
    offload.gso.is_some() || matches!(offload.checksum, Checksum::Partial { .. })
}

/// True for a UDP super-frame, which older kernels do not take.
pub fn is_udp_super_frame(offload: &Offload) -> bool {
    offload.gso.is_some_and(|gso| gso.kind == GsoKind::Udp)
}

/// Completes a partial checksum; any other is left alone.
pub fn finish_checksum(packet: &mut [u8], offload: &mut Offload) -> Result<(), Unfinishable> {
    let Checksum::Partial { start, offset } = offload.checksum else { return Ok(()) };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if start > packet.len() || field + 2 > packet.len() {
        return Err(Unfinishable);
    }
    let checksum = complement_or_ones(checksum::add(0, &packet[start..]));
    packet[field..field + 2].copy_from_slice(&checksum);
    offload.checksum = Checksum::Verified;
    Ok(())
}

/// The IPv4 packets that a super-frame stands for, each with its checksums complete.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    kind: Transport,
    /// Length of the IP header.
    transport: usize,
    /// Length of IP and transport header.
    headers: usize,
    /// Payload bytes of each segment but the last.
    segment: usize,
    /// Payload bytes that are already in segments.
    done: usize,
    /// Segments made.
    index: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl<'a> Segments<'a> {
    /// The segments of `packet`.
    ///
    /// # Errors
    /// [`Unfinishable`] when it is no super-frame of TCP or UDP over IPv4, or shorter than its headers say.
    pub fn new(packet: &'a [u8], offload: &Offload) -> Result<Segments<'a>, Unfinishable> {
        let gso = offload.gso.ok_or(Unfinishable)?;
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return Err(Unfinishable);
        }
        let transport = usize::from(packet[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let packet = packet.get(..total).ok_or(Unfinishable)?;
        let (kind, headers) = match (gso.kind, packet[9]) {
            (GsoKind::TcpV4, 6) => {
                let offset = packet.get(transport + 12).ok_or(Unfinishable)?;
                (Transport::Tcp, transport + usize::from(offset >> 4) * 4)
            }
            (GsoKind::Udp, 17) => (Transport::Udp, transport + 8),
            _ => return Err(Unfinishable),
        };
        let shortest = transport + if kind == Transport::Tcp { 20 } else { 8 };
        if transport < 20 || headers < shortest || headers > packet.len() || gso.segment == 0 {
            return Err(Unfinishable);
        }
        Ok(Segments { packet, kind, transport, headers, segment: gso.segment.into(), done: 0, index: 0 })
    }

    /// Puts as many further segments into `out`, a batch of our own, as it has room for; 0 when all are done.
    pub fn fill(&mut self, out: &mut Batch, protocol: u16) -> usize {
        let before = out.len();
        while self.done < self.packet.len() - self.headers {
            let payload = self.segment.min(self.packet.len() - self.headers - self.done);
            let Some(room) = out.room(self.headers + payload) else { break };
            self.write(room, payload);
            let offload = Offload { checksum: Checksum::Verified, gso: None };
            out.commit(self.headers + payload, offload, protocol);
            self.done += payload;
            self.index = self.index.wrapping_add(1);
        }
        out.len() - before
    }

    fn write(&self, out: &mut [u8], payload: usize) {
        let from = self.headers + self.done;
        let (headers, body) = out.split_at_mut(self.headers);
        headers.copy_from_slice(&self.packet[..self.headers]);
        body.copy_from_slice(&self.packet[from..from + payload]);

        let total = (self.headers + payload) as u16;
        headers[IP_LEN].copy_from_slice(&total.to_be_bytes());
        let id = u16::from_be_bytes([headers[4], headers[5]]).wrapping_add(self.index);
        headers[IP_ID].copy_from_slice(&id.to_be_bytes());
        headers[IP_CHECKSUM].fill(0);
        let checksum = checksum::checksum(&headers[..self.transport]);
        headers[IP_CHECKSUM].copy_from_slice(&checksum.to_be_bytes());

        let is_last = from + payload == self.packet.len();
        let transport = &mut headers[self.transport..];
        let field = match self.kind {
            Transport::Tcp => {
                let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                transport[4..8].copy_from_slice(&sequence.wrapping_add(self.done as u32).to_be_bytes());
                if !is_last {
                    transport[TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
                }
                if self.index > 0 {
                    transport[TCP_FLAGS] &= !TCP_CWR;
                }
                16
            }
            Transport::Udp => {
                transport[4..6].copy_from_slice(&(total - self.transport as u16).to_be_bytes());
                6
            }
        };
        let field = self.transport + field;
        out[field..field + 2].fill(0);
        let pseudo = pseudo_header_sum(out, out.len() - self.transport);
        let checksum = complement_or_ones(checksum::add(pseudo, &out[self.transport..]));
        out[field..field + 2].copy_from_slice(&checksum);
    }
}

/// The sum of the pseudo header of the IPv4 packet that begins with `ip`, for `len` bytes of transport.
pub(super) fn pseudo_header_sum(ip: &[u8], len: usize) -> u32 {
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    checksum::pseudo_header(address(12), address(16), ip[9], len as u16)
}

/// The checksum of a sum, never 0: that would tell UDP that there is none, and 0xFFFF is the same number.
fn complement_or_ones(sum: u32) -> [u8; 2] {
    match !checksum::fold(sum) {
        0 => [0xff, 0xff],
        other => other.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use natbox_core::packet::Gso;

    use super::*;
    use crate::datapath::ETHERTYPE_IPV4;

    const SEGMENT: usize = 1448;

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn tcp(len: usize) -> Vec<u8> {
        let options = [etherparse::TcpOptionElement::Timestamp(7, 9)];
        let builder = PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .tcp(4242, 80, u32::MAX - 2000, 512)
            .ack(99)
            .psh()
            .fin()
            .options(&options)
            .unwrap();
        let mut packet = Vec::new();
        builder.write(&mut packet, &payload(len)).unwrap();
        packet
    }

    fn udp(len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .udp(4242, 53)
            .write(&mut packet, &payload(len))
            .unwrap();
        packet
    }

    /// The packet as its sender's kernel would hand it over: only the pseudo header summed up.
    fn owing(mut packet: Vec<u8>, gso: Option<(GsoKind, u16)>) -> (Vec<u8>, Offload) {
        let offset = if packet[9] == 6 { 16 } else { 6 };
        let partial = checksum::fold(pseudo_header_sum(&packet, packet.len() - 20));
        packet[20 + offset..22 + offset].copy_from_slice(&partial.to_be_bytes());
        let gso = gso.map(|(kind, segment)| Gso { kind, segment, header_len: 0, ecn: false });
        (packet, Offload { checksum: Checksum::Partial { start: 20, offset: offset as u16 }, gso })
    }

    fn assert_checksums(packet: &[u8]) {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let ip = sliced.net.as_ref().unwrap().ipv4_ref().unwrap().header();
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        assert_eq!(usize::from(ip.total_len()), packet.len());
        match sliced.transport.as_ref().unwrap() {
            TransportSlice::Tcp(tcp) => {
                let expected = tcp.calc_checksum_ipv4(ip.source(), ip.destination()).unwrap();
                assert_eq!(tcp.checksum(), expected);
            }
            TransportSlice::Udp(udp) => {
                let expected = udp.to_header().calc_checksum_ipv4(&ip.to_header(), udp.payload()).unwrap();
                assert_eq!(udp.checksum(), expected);
                assert_eq!(usize::from(udp.length()), packet.len() - 20);
            }
            other => panic!("{other:?}"),
        }
    }

    fn cut(packet: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
        let mut segments = Segments::new(packet, offload).unwrap();
        let (mut out, mut all) = (Batch::new().unwrap(), Vec::new());
        loop {
            out.clear();
            let count = segments.fill(&mut out, ETHERTYPE_IPV4);
            if count == 0 {
                return all;
            }
            all.extend((0..count).map(|i| out.bytes(i).to_vec()));
        }
    }

    #[test]
    fn a_partial_checksum_is_finished_as_etherparse_would_write_it() {
        for whole in [tcp(0), tcp(1), tcp(1000), udp(0), udp(33), udp(1472)] {
            let (mut packet, mut offload) = owing(whole.clone(), None);
            finish_checksum(&mut packet, &mut offload).unwrap();
            assert_eq!(packet, whole);
            assert_eq!(offload.checksum, Checksum::Verified);
            assert!(!is_owed(&offload));
        }
    }

    #[test]
    fn a_checksum_outside_the_packet_is_refused() {
        let mut packet = udp(8);
        for (start, offset) in [(20, 60_000), (65_535, 65_535), (27, 8), (37, 0)] {
            let mut offload = Offload { checksum: Checksum::Partial { start, offset }, gso: None };
            assert_eq!(finish_checksum(&mut packet, &mut offload), Err(Unfinishable));
        }
    }

    #[test]
    fn tcp_is_cut_into_segments_that_continue_each_other() {
        for len in [1, SEGMENT, SEGMENT + 1, 10_000, 64_000] {
            let (packet, offload) = owing(tcp(len), Some((GsoKind::TcpV4, SEGMENT as u16)));
            let segments = cut(&packet, &offload);
            assert_eq!(segments.len(), len.div_ceil(SEGMENT));
            let (mut joined, mut expected_sequence) = (Vec::new(), u32::MAX - 2000);
            for (i, segment) in segments.iter().enumerate() {
                assert_checksums(segment);
                let sliced = SlicedPacket::from_ip(segment).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!() };
                assert_eq!(tcp.sequence_number(), expected_sequence);
                assert_eq!((tcp.fin(), tcp.psh()), (i + 1 == segments.len(), i + 1 == segments.len()));
                let ip = sliced.net.as_ref().unwrap().ipv4_ref().unwrap().header();
                assert_eq!(usize::from(ip.identification()), i);
                expected_sequence = expected_sequence.wrapping_add(tcp.payload().len() as u32);
                joined.extend_from_slice(tcp.payload());
            }
            assert_eq!(joined, payload(len));
        }
    }

    #[test]
    fn udp_is_cut_into_the_datagrams_that_were_sent() {
        let (packet, offload) = owing(udp(100 * 64 + 30), Some((GsoKind::Udp, 100)));
        let segments = cut(&packet, &offload);
        assert_eq!(segments.len(), 65);
        let mut joined = Vec::new();
        for segment in &segments {
            assert_checksums(segment);
            joined.extend_from_slice(&segment[28..]);
        }
        assert_eq!(joined, payload(100 * 64 + 30));
    }

    #[test]
    fn congestion_reduced_is_told_once() {
        let (mut packet, offload) = owing(tcp(5000), Some((GsoKind::TcpV4, 1000)));
        packet[20 + TCP_FLAGS] |= TCP_CWR;
        let told =
            cut(&packet, &offload).iter().map(|s| s[20 + TCP_FLAGS] & TCP_CWR != 0).collect::<Vec<_>>();
        assert_eq!(told, [true, false, false, false, false]);
    }

    #[test]
    fn damaged_super_frames_are_refused() {
        let (packet, offload) = owing(tcp(3000), Some((GsoKind::TcpV4, 1000)));
        for len in 0..packet.len() {
            assert!(Segments::new(&packet[..len], &offload).is_err(), "{len}");
        }
        let udp = Offload { gso: Some(Gso { kind: GsoKind::Udp, ..offload.gso.unwrap() }), ..offload };
        assert!(Segments::new(&packet, &udp).is_err());
        let mut short_header = packet.clone();
        short_header[32] = 0x10;
        assert!(Segments::new(&short_header, &offload).is_err());
    }
}
