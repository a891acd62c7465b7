//! Joining datagrams of one flow into a super-frame, between translation and sending: a packet then costs the kernel a
//! fraction of what it costs by itself.
//!
//! Only datagrams that happen to be in the same batch are joined, so nothing waits for it. Cutting the super-frame
//! gives back the datagrams, byte for byte but for identification numbers that mean nothing (RFC 6864 §4.1): only
//! datagrams that differ in nothing else than payload, length and checksum are joined, all of one length but the last.
//! Their checksums must be known to be right or not be computed yet, as a super-frame's are always computed anew: a
//! damaged datagram would come out whole.
//!
//! Datagrams of other flows may lie between those that are joined; the order within a flow is kept.

use natbox_core::packet::{Checksum, Gso, GsoKind, Offload, checksum};

use super::{Batch, Mac, Outgoing, segment::pseudo_header_sum};

/// IPv4 header without options, and UDP header.
const HEADERS: usize = 28;

/// Datagrams in a super-frame at the most: what kernels have always taken (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;

/// Flows that are joined at a time: a batch of 64 frames has little to gain from more.
const MOST_FLOWS: usize = 8;

/// A super-frame in the making.
#[derive(Clone, Copy, Debug)]
struct Open {
    frame: usize,
    to: Mac,
    /// Payload of each datagram but the last.
    segment: usize,
    segments: usize,
}

/// Joins what can be joined among the frames that `list` names, and takes those that went into another one off the
/// list. Returns how many did.
pub fn coalesce(batch: &mut Batch, list: &mut Vec<Outgoing>) -> u64 {
    let mut open: [Option<Open>; MOST_FLOWS] = [None; MOST_FLOWS];
    let mut oldest = 0;
    let mut kept = 0;
    for i in 0..list.len() {
        let Outgoing { frame, to } = list[i];
        if !joins(batch, &mut open, frame, to, &mut oldest) {
            list[kept] = list[i];
            kept += 1;
        }
    }
    for open in open.into_iter().flatten() {
        finish(batch, open);
    }
    let joined = list.len() - kept;
    list.truncate(kept);
    joined as u64
}

/// Adds `frame` to a super-frame if there is one for it; otherwise one may begin with it.
fn joins(
    batch: &mut Batch,
    open: &mut [Option<Open>; MOST_FLOWS],
    frame: usize,
    to: Mac,
    oldest: &mut usize,
) -> bool {
    let same_flow = |open: &Option<Open>| {
        open.is_some_and(|open| open.to == to && flow(batch.bytes(open.frame)) == flow(batch.bytes(frame)))
    };
    let slot = open.iter().position(same_flow);
    let candidate = is_candidate(batch, frame);
    if let Some(slot) = slot
        && let Some(super_frame) = &mut open[slot]
    {
        if candidate && append(batch, super_frame, frame) {
            // A shorter datagram can only be the last.
            if batch.frame(frame).len < HEADERS + super_frame.segment || super_frame.segments == MOST_SEGMENTS
            {
                finish(batch, *super_frame);
                open[slot] = None;
            }
            return true;
        }
        finish(batch, *super_frame);
        open[slot] = None;
    }
    if candidate {
        let slot = slot.or_else(|| open.iter().position(Option::is_none)).unwrap_or_else(|| {
            *oldest = (*oldest + 1) % MOST_FLOWS;
            *oldest
        });
        let segment = batch.frame(frame).len - HEADERS;
        let replaced = open[slot].replace(Open { frame, to, segment, segments: 1 });
        if let Some(replaced) = replaced {
            finish(batch, replaced);
        }
    }
    false
}

/// What makes a flow: protocol, addresses, ports. A fragment that is not the first has no ports and belongs to no flow
/// here; the first one, which comes before it, ends the super-frame.
fn flow(packet: &[u8]) -> Option<(u8, &[u8])> {
    Some((*packet.get(9)?, packet.get(12..24)?))
}

/// Whether a frame is a datagram that a super-frame can be made of.
fn is_candidate(batch: &Batch, frame: usize) -> bool {
    let Offload { checksum, gso: None } = batch.frame(frame).offload else { return false };
    let packet = batch.bytes(frame);
    // No options, UDP, and whole: of the fragment field only "don't fragment" may be set.
    if packet.len() <= HEADERS
        || packet[0] != 0x45
        || packet[9] != 17
        || packet[6] & 0xbf != 0
        || packet[7] != 0
    {
        return false;
    }
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let has_right_checksum = match checksum {
        Checksum::Partial { start, offset } => (start, offset) == (20, 6),
        Checksum::Verified => field(26) != 0,
        Checksum::Unverified => false,
    };
    has_right_checksum && field(2) == packet.len() && field(24) == packet.len() - 20
}

/// Appends the payload of `frame`, if it fits.
fn append(batch: &mut Batch, open: &mut Open, frame: usize) -> bool {
    let into = batch.frame(open.frame).len;
    let payload = batch.frame(frame).len - HEADERS;
    let len = into + payload;
    let (room, from) = batch.pair(open.frame, frame);
    if payload > open.segment || len > usize::from(u16::MAX) || len > room.len() {
        return false;
    }
    // Type of service, "don't fragment" and time to live.
    if room[1] != from[1] || room[6] != from[6] || room[8] != from[8] {
        return false;
    }
    let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    let may_be_fragmented = room[6] & 0x40 == 0;
    if may_be_fragmented && id(from) != id(room).wrapping_add(open.segments as u16) {
        return false;
    }
    room[into..len].copy_from_slice(&from[HEADERS..]);
    batch.frames[open.frame].len = len;
    open.segments += 1;
    true
}

/// Writes the headers of a super-frame, if more than one datagram is in it.
fn finish(batch: &mut Batch, open: Open) {
    if open.segments == 1 {
        return;
    }
    let packet = batch.bytes_mut(open.frame);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let header = checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    let partial = checksum::fold(pseudo_header_sum(packet, packet.len() - 20));
    packet[26..28].copy_from_slice(&partial.to_be_bytes());
    batch.frames[open.frame].offload = Offload {
        checksum: Checksum::Partial { start: 20, offset: 6 },
        gso: Some(Gso {
            kind: GsoKind::Udp,
            segment: open.segment as u16,
            header_len: HEADERS as u16,
            ecn: false,
        }),
    };
}

#[cfg(test)]
mod tests {
    use etherparse::{IpFragOffset, Ipv4Header, PacketBuilder};

    use super::*;
    use crate::datapath::{ETHERTYPE_IPV4, segment::Segments};

    fn header(ttl: u8, dont_fragment: bool, id: u16) -> Ipv4Header {
        let mut header = Ipv4Header::new(0, ttl, 17.into(), [10, 0, 0, 2], [192, 0, 2, 1]).unwrap();
        (header.dont_fragment, header.identification) = (dont_fragment, id);
        header
    }

    fn datagram(header: Ipv4Header, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
        builder.udp(port, 53).write(&mut packet, payload).unwrap();
        packet
    }

    fn plain(port: u16, payload: &[u8]) -> Vec<u8> {
        datagram(header(64, true, 0), port, payload)
    }

    const VERIFIED: Offload = Offload { checksum: Checksum::Verified, gso: None };

    /// Joins the packets, then cuts what came of it.
    fn round_trip(packets: &[(Vec<u8>, Offload)]) -> (usize, Vec<Vec<u8>>) {
        let mut batch = Batch::new().unwrap();
        for (packet, offload) in packets {
            assert!(batch.push(packet, *offload, ETHERTYPE_IPV4));
        }
        let mut list: Vec<_> = (0..packets.len()).map(|frame| Outgoing { frame, to: [1; 6] }).collect();
        let joined = coalesce(&mut batch, &mut list);
        assert_eq!(joined as usize + list.len(), packets.len());
        let mut all = Vec::new();
        let mut out = Batch::new().unwrap();
        for outgoing in &list {
            let offload = batch.frame(outgoing.frame).offload;
            if offload.gso.is_none() {
                all.push(batch.bytes(outgoing.frame).to_vec());
                continue;
            }
            out.clear();
            let count = Segments::new(batch.bytes(outgoing.frame), &offload).unwrap().fill(&mut out, 0);
            all.extend((0..count).map(|i| out.bytes(i).to_vec()));
        }
        (list.len(), all)
    }

    fn verified(packets: Vec<Vec<u8>>) -> Vec<(Vec<u8>, Offload)> {
        packets.into_iter().map(|packet| (packet, VERIFIED)).collect()
    }

    fn without_id(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        packets.iter_mut().for_each(|packet| {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        });
        packets
    }

    #[test]
    fn cutting_what_was_joined_gives_the_datagrams_back() {
        for lens in [vec![100; 30], vec![1; 64], vec![100, 100, 40], vec![1400; 50], vec![9, 9, 9, 9, 2]] {
            let packets: Vec<_> =
                lens.iter().enumerate().map(|(i, len)| plain(7, &vec![i as u8; *len])).collect();
            let (frames, cut) = round_trip(&verified(packets.clone()));
            assert_eq!(without_id(cut), without_id(packets), "{lens:?}");
            assert!(frames <= 2, "{lens:?}: {frames}");
        }
    }

    #[test]
    fn partial_checksums_are_as_good_as_verified_ones() {
        let mut packet = plain(7, &[1; 64]);
        let partial = checksum::fold(pseudo_header_sum(&packet, packet.len() - 20));
        packet[26..28].copy_from_slice(&partial.to_be_bytes());
        let offload = Offload { checksum: Checksum::Partial { start: 20, offset: 6 }, gso: None };
        let (frames, cut) = round_trip(&[(packet.clone(), offload), (packet, offload)]);
        assert_eq!((frames, &without_id(cut)[1]), (1, &without_id(vec![plain(7, &[1; 64])])[0]));
    }

    #[test]
    fn unverified_checksums_are_left_alone() {
        let packets = vec![(plain(7, &[1; 64]), Offload::default()); 3];
        assert_eq!(round_trip(&packets).0, 3);
        let mut without = plain(7, &[1; 64]);
        without[26..28].fill(0);
        assert_eq!(round_trip(&verified(vec![without; 3])).0, 3, "no checksum at all");
    }

    #[test]
    fn interleaved_flows_are_each_joined_in_order() {
        let packets: Vec<_> = (0..60u8).map(|i| plain(u16::from(i % 3), &[i; 32])).collect();
        let (frames, cut) = round_trip(&verified(packets.clone()));
        assert_eq!(frames, 3);
        let mut by_flow = packets;
        by_flow.sort_by_key(|packet| packet[21]);
        assert_eq!(without_id(cut), without_id(by_flow));
        // More flows than are followed: nothing is lost, nothing is out of order within a flow.
        let packets: Vec<_> = (0..60u8).map(|i| plain(u16::from(i % 20), &[i; 32])).collect();
        let mut cut = round_trip(&verified(packets.clone())).1;
        cut.sort_by_key(|packet| packet[21]);
        let mut expected = packets;
        expected.sort_by_key(|packet| packet[21]);
        assert_eq!(without_id(cut), without_id(expected));
    }

    #[test]
    fn whatever_differs_is_kept_apart() {
        let base = || datagram(header(64, true, 0), 7, &[1; 50]);
        let others = [
            datagram(header(63, true, 0), 7, &[1; 50]),
            datagram(header(64, false, 1), 7, &[1; 50]),
            datagram(Ipv4Header { dscp: 1.try_into().unwrap(), ..header(64, true, 0) }, 7, &[1; 50]),
            datagram(Ipv4Header { more_fragments: true, ..header(64, false, 0) }, 7, &[1; 50]),
            datagram(
                Ipv4Header { fragment_offset: IpFragOffset::try_new(1).unwrap(), ..header(64, false, 0) },
                7,
                &[1; 50],
            ),
            datagram(header(64, true, 0), 7, &[]),
        ];
        for other in others {
            let (frames, cut) = round_trip(&verified(vec![base(), other.clone(), base()]));
            assert_eq!((frames, &cut[1]), (3, &other), "between two that match each other, order is kept");
        }
        let longer = datagram(header(64, true, 0), 7, &[1; 51]);
        let (frames, cut) = round_trip(&verified(vec![base(), longer.clone(), base()]));
        assert_eq!(
            (frames, without_id(cut)),
            (2, without_id(vec![base(), longer, base()])),
            "the last one is the shorter end of the second"
        );
    }

    #[test]
    fn identification_is_kept_where_it_means_something() {
        let fragmentable = |id: u16| datagram(header(64, false, id), 7, &[1; 50]);
        let consecutive = vec![fragmentable(9), fragmentable(10), fragmentable(11)];
        assert_eq!(round_trip(&verified(consecutive.clone())), (1, consecutive));
        assert_eq!(round_trip(&verified(vec![fragmentable(9), fragmentable(9)])).0, 2);
    }

    #[test]
    fn a_super_frame_has_its_limits() {
        let (frames, cut) = round_trip(&verified(vec![plain(7, &[1; 1400]); 60]));
        assert_eq!((frames, cut.len()), (2, 60), "64 KB");
        let mut batch = Batch::new().unwrap();
        for _ in 0..2 {
            batch.push(&plain(7, &[1; 10]), VERIFIED, ETHERTYPE_IPV4);
        }
        let mut list = vec![Outgoing { frame: 0, to: [1; 6] }, Outgoing { frame: 1, to: [2; 6] }];
        assert_eq!(coalesce(&mut batch, &mut list), 0, "two neighbours");
    }
}
