use etherparse::{IpFragOffset, Ipv4Header, PacketBuilder, TcpHeader, TcpOptionElement};

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

const BOTH: SuperFrames = SuperFrames { tcp: true, udp: true };
const VERIFIED: Offload = Offload { checksum: Checksum::Verified, gso: None };

/// Joins the packets, then cuts what came of it.
fn round_trip(packets: &[(Vec<u8>, Offload)]) -> (usize, Vec<Vec<u8>>) {
    let mut batch = Batch::new().unwrap();
    for (packet, offload) in packets {
        assert!(batch.push(packet, *offload, ETHERTYPE_IPV4));
    }
    let mut list: Vec<_> = (0..packets.len()).map(|frame| Outgoing { frame, to: [1; 6] }).collect();
    let joined = coalesce(&mut batch, &mut list, BOTH);
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
fn what_nobody_vouches_for_is_summed_up() {
    for good in [plain(7, &[1; 64]), segment(0, &[1; 64])] {
        let good = || (good.clone(), Offload::default());
        let mut damaged = good();
        damaged.0[50] ^= 1;
        assert_eq!(round_trip(&[damaged.clone(), damaged.clone(), damaged.clone()]).0, 3);
        assert_eq!(round_trip(&[damaged, good()]).0, 2, "not even as the first");
    }
    let packets = vec![(plain(7, &[1; 64]), Offload::default()); 3];
    assert_eq!(round_trip(&packets).0, 1);
    let mut damaged = packets;
    damaged[1].0[40] ^= 1;
    let (frames, cut) = round_trip(&damaged);
    assert_eq!((frames, &cut[1]), (3, &damaged[1].0), "it goes on as it came");
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut without = plain(7, &[1; 64]);
    without[26..28].fill(0);
    assert_eq!(round_trip(&verified(vec![without; 3])).0, 3);
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
    assert_eq!(coalesce(&mut batch, &mut list, BOTH), 0, "two neighbours");
}

/// A segment whose data begins at this sequence number, with a timestamp as usual.
fn segment(sequence: u32, payload: &[u8]) -> Vec<u8> {
    changed(sequence, payload, |_| {})
}

fn changed(sequence: u32, payload: &[u8], change: impl Fn(&mut TcpHeader)) -> Vec<u8> {
    let mut tcp = TcpHeader::new(443, 4242, sequence, 512);
    (tcp.ack, tcp.acknowledgment_number) = (true, 99);
    tcp.set_options(&[TcpOptionElement::Timestamp(7, 9)]).unwrap();
    change(&mut tcp);
    let mut ip = header(64, true, 0);
    ip.protocol = 6.into();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
    builder.tcp_header(tcp).write(&mut packet, payload).unwrap();
    packet
}

/// Segments of these lengths, one after the other; the sequence number begins anew on the way.
fn stream(lens: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = u32::MAX - 1000;
    let next = |(i, len): (usize, &usize)| {
        let packet = segment(sequence, &vec![i as u8; *len]);
        sequence = sequence.wrapping_add(*len as u32);
        packet
    };
    lens.iter().enumerate().map(next).collect()
}

#[test]
fn cutting_what_was_joined_gives_the_segments_back() {
    for lens in [&[1448; 40][..], &[100, 100, 40], &[1; 64], &[700, 700]] {
        let packets = stream(lens);
        for offload in [VERIFIED, Offload::default()] {
            let given: Vec<_> = packets.iter().map(|packet| (packet.clone(), offload)).collect();
            let (frames, cut) = round_trip(&given);
            assert_eq!(without_id(cut), without_id(packets.clone()), "{lens:?}");
            assert_eq!(frames, 1, "{lens:?}");
        }
    }
}

#[test]
fn a_push_is_the_last_of_its_super_frame() {
    let push = |tcp: &mut TcpHeader| tcp.psh = true;
    let packets = vec![
        segment(0, &[0; 50]),
        segment(50, &[1; 50]),
        changed(100, &[2; 50], push),
        segment(150, &[3; 50]),
        segment(200, &[4; 50]),
        changed(250, &[5; 50], push),
        changed(300, &[6; 50], push),
    ];
    let (frames, cut) = round_trip(&verified(packets.clone()));
    assert_eq!((frames, without_id(cut)), (3, without_id(packets)));
}

#[test]
fn segments_that_say_anything_else_are_kept_apart() {
    type Change = fn(&mut TcpHeader);
    let changes: [(&str, Change); 14] = [
        ("a gap", |tcp| tcp.sequence_number += 1),
        ("the same again", |tcp| tcp.sequence_number = 0),
        ("another acknowledgement", |tcp| tcp.acknowledgment_number += 1),
        ("none", |tcp| tcp.ack = false),
        ("another window", |tcp| tcp.window_size -= 1),
        ("FIN", |tcp| tcp.fin = true),
        ("SYN", |tcp| tcp.syn = true),
        ("RST", |tcp| tcp.rst = true),
        ("URG", |tcp| tcp.urg = true),
        ("an urgent pointer", |tcp| tcp.urgent_pointer = 1),
        ("ECE", |tcp| tcp.ece = true),
        ("CWR", |tcp| tcp.cwr = true),
        ("another timestamp", |tcp| tcp.set_options(&[TcpOptionElement::Timestamp(8, 9)]).unwrap()),
        ("no options", |tcp| tcp.set_options(&[]).unwrap()),
    ];
    for (what, change) in changes {
        let packets = vec![segment(0, &[0; 50]), changed(50, &[1; 50], change), segment(100, &[2; 50])];
        let (frames, cut) = round_trip(&verified(packets.clone()));
        assert_eq!((frames, cut), (3, packets), "{what}: order is kept");
    }
    let ece = |tcp: &mut TcpHeader| tcp.ece = true;
    let packets = vec![changed(0, &[0; 50], ece), changed(50, &[1; 50], ece)];
    let (frames, cut) = round_trip(&verified(packets.clone()));
    assert_eq!((frames, without_id(cut)), (1, without_id(packets)), "the same in all of them");
}

#[test]
fn an_acknowledgement_keeps_its_place() {
    let packets =
        vec![segment(0, &[0; 50]), segment(50, &[1; 50]), segment(100, &[]), segment(100, &[2; 50])];
    let (frames, cut) = round_trip(&verified(packets.clone()));
    assert_eq!((frames, without_id(cut)), (3, without_id(packets)));
}

#[test]
fn only_what_the_port_takes_is_joined() {
    let packets = [segment(0, &[0; 50]), segment(50, &[1; 50]), plain(7, &[2; 50]), plain(7, &[3; 50])];
    for (tcp, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut batch = Batch::new().unwrap();
        for packet in &packets {
            batch.push(packet, VERIFIED, ETHERTYPE_IPV4);
        }
        let mut list: Vec<_> = (0..4).map(|frame| Outgoing { frame, to: [1; 6] }).collect();
        let joined = coalesce(&mut batch, &mut list, SuperFrames { tcp, udp });
        assert_eq!(joined, u64::from(tcp) + u64::from(udp));
    }
}
