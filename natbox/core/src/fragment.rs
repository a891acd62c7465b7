//! The way of a fragment, and of a packet that must become fragments (RFC 4787 §11).
//!
//! Only the first fragment of a datagram has ports. It goes the way of every packet: session, mapping, filter; what became
//! of it is remembered, and the others, known by source, destination, protocol and identification, get the same addresses
//! and go the same way. So nothing is reassembled and a datagram is on its way before it is there. Those that come before
//! their first wait for it ([`Verdict::Held`]) and leave behind it, in order, by `poll_transmit`.
//!
//! A fragment is no way around the filter. A first one must hold the whole transport header, and no later one may reach
//! into that (RFC 1858, RFC 3128), so what the filter has seen is what the receiver reads. A further first fragment is
//! judged by itself, and decides from then on.
//!
//! A packet that is too big for its next link and may be fragmented goes the way of whole ones, and is cut here when it has
//! been translated: its first part stays in place, the others follow by `poll_transmit`, in order (REQ-13a).

use std::collections::VecDeque;

use crate::{
    DropReason, Nat, Packet, Protocol, Side, Time, Transmit, Verdict,
    behavior::Fragments as Policy,
    fragments::{Fate, Full, Key},
    packet::{
        Checksum, Offload,
        checksum::{add, fold},
        fragment::{Piece, cut},
        icmp,
        ipv4::{self, Header, put_u16},
        tcp, udp,
    },
    transport::{Parsed, Transport, invalid, protocol_of},
};

/// Bytes of fragments that wait to be taken: a whole batch of the longest packets, and as much again. They are taken after
/// every batch.
const MOST_READY: usize = 8 << 20;

/// Fragments that are to be sent.
#[derive(Default)]
pub(crate) struct Ready {
    queue: VecDeque<Transmit>,
    bytes: usize,
}

impl Ready {
    pub(crate) fn poll(&mut self) -> Option<Transmit> {
        let transmit = self.queue.pop_front()?;
        self.bytes -= transmit.packet.len();
        Some(transmit)
    }

    fn push(&mut self, to: Side, packet: Box<[u8]>) {
        self.bytes += packet.len();
        self.queue.push_back(Transmit { to, packet });
    }

    fn check_room(&self, len: usize) -> Result<(), DropReason> {
        if self.bytes + len > MOST_READY { Err(DropReason::FragmentsFull) } else { Ok(()) }
    }
}

impl Nat {
    /// A packet that the way of whole ones has no answer for: a fragment.
    #[cold]
    #[inline(never)]
    pub(crate) fn fragmented(&mut self, from: Side, packet: &mut Packet<'_>, now: Time) -> Verdict {
        let result = self.by_pieces(from, packet, now);
        let hosts = from == Side::Outside && self.shared;
        result.unwrap_or_else(|reason| match reason {
            // On a shared address what the NAT does not understand is the host's.
            DropReason::Malformed | DropReason::Protocol | DropReason::IcmpType if hosts => Verdict::Local,
            DropReason::Fragment | DropReason::FragmentHeader if hosts => Verdict::Local,
            reason => Verdict::Drop(reason),
        })
    }

    /// How many fragments wait for the first one of their datagram.
    pub fn fragments_held(&self) -> usize {
        self.fragments.held()
    }

    fn by_pieces(&mut self, from: Side, packet: &mut Packet<'_>, now: Time) -> Result<Verdict, DropReason> {
        let header = ipv4::parse(packet.bytes()).map_err(invalid)?;
        packet.truncate(header.total_len);
        let piece = Piece::of(packet.bytes(), &header).ok_or(DropReason::Fragment)?;
        let protocol = protocol_of(header.protocol).ok_or(DropReason::Protocol)?;
        if !self.behavior.fragments.passes(protocol) {
            return Err(DropReason::Fragment);
        }
        // What is owed to it could only be paid to the whole.
        let owed =
            packet.offload.gso.is_some() || matches!(packet.offload.checksum, Checksum::Partial { .. });
        if owed || !piece.is_possible(header.header_len) {
            return Err(DropReason::Malformed);
        }
        let key = Key::new(from, &header, piece);
        if piece.offset == 0 {
            self.first_fragment(from, packet, (key, piece), now)
        } else {
            self.later_fragment(from, packet, protocol, (key, piece), now)
        }
    }

    fn first_fragment(
        &mut self,
        from: Side,
        packet: &mut Packet<'_>,
        (key, piece): (Key, Piece),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let parsed = Parsed::first_fragment(packet.bytes()).map_err(|reason| match reason {
            DropReason::Malformed => DropReason::FragmentHeader,
            reason => reason,
        });
        let result = match parsed {
            // What an error quotes can be checked only as a whole, and no error is as long (RFC 1812 §4.3.2.3).
            Ok(parsed) if parsed.transport == Transport::Error => Err(DropReason::Fragment),
            Ok(parsed) => match from {
                Side::Inside(id) => self.leave_by(id, packet, parsed, now),
                Side::Outside => self.enter_by(packet, parsed, now),
            },
            Err(reason) => Err(reason),
        };
        let fate = match result {
            Ok(verdict) => self.passed(verdict, packet, &key, now)?,
            Err(reason) => Fate::Dropped(reason),
        };
        let waited = self.fragments.settle(key, piece, fate, now);
        let result = result.and_then(|verdict| self.cut(from, verdict, packet));
        for (piece, bytes) in waited {
            self.release(from, bytes, (key, piece), now);
        }
        result
    }

    /// What the others of a datagram get, now that its first fragment has been translated. One that came twice keeps the
    /// number that it got the first time, or neither would belong to the others.
    fn passed(
        &mut self,
        verdict: Verdict,
        packet: &mut Packet<'_>,
        key: &Key,
        now: Time,
    ) -> Result<Fate, DropReason> {
        let Header { source, destination, .. } = ipv4::read(packet.bytes()).map_err(invalid)?;
        let like = |identification| Fate::Passed { verdict, source, destination, identification };
        match self.fragments.fate(key, now) {
            Some(fate @ Fate::Passed { identification, .. }) if fate == like(identification) => {
                ipv4::set_identification(packet.bytes_mut(), identification);
            }
            _ => self.identify(verdict, packet),
        }
        Ok(like(ipv4::identification(packet.bytes())))
    }

    fn later_fragment(
        &mut self,
        from: Side,
        packet: &mut Packet<'_>,
        protocol: Protocol,
        (key, piece): (Key, Piece),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        if usize::from(piece.offset) < transport_header(protocol) {
            return Err(DropReason::FragmentHeader);
        }
        if let Some(fate) = self.fragments.follow(&key, piece, now) {
            let verdict = self.follow(packet, fate)?;
            return self.cut(from, verdict, packet);
        }
        let destination = ipv4::read(packet.bytes()).map_err(invalid)?.destination;
        if from == Side::Outside && !self.table.is_external(destination) {
            return if self.shared { Ok(Verdict::Local) } else { Err(DropReason::NoMapping) };
        }
        if self.behavior.fragments == Policy::InOrder {
            return Err(DropReason::FragmentOrphan);
        }
        let held = self.fragments.hold(key, piece, packet.bytes(), now);
        let lost = held.map_err(|Full| DropReason::FragmentsFull)?;
        self.reports.drop_many(DropReason::FragmentsFull, lost);
        self.reports.counters.fragments_delayed += 1;
        Ok(Verdict::Held)
    }

    /// A fragment goes the way of its first one. It refreshes nothing, and no error is sent about it (RFC 1812
    /// §4.3.2.7).
    fn follow(&mut self, packet: &mut Packet<'_>, fate: Fate) -> Result<Verdict, DropReason> {
        let (verdict, source, destination, identification) = match fate {
            Fate::Dropped(reason) => return Err(reason),
            Fate::Passed { verdict: Verdict::Local, .. } => return Ok(Verdict::Local),
            Fate::Passed { verdict, source, destination, identification } => {
                (verdict, source, destination, identification)
            }
        };
        let header = ipv4::read(packet.bytes()).map_err(invalid)?;
        if verdict != Verdict::Reply && header.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        if header.dont_fragment && header.total_len > self.mtu_towards(verdict) {
            return Err(DropReason::TooBig);
        }
        let bytes = packet.bytes_mut();
        ipv4::set_addr(bytes, ipv4::SOURCE, source);
        ipv4::set_addr(bytes, ipv4::DESTINATION, destination);
        ipv4::set_identification(bytes, identification);
        if verdict == Verdict::Reply {
            ipv4::set_ttl(bytes, ipv4::FRESH_TTL);
        } else {
            ipv4::decrement_ttl(bytes);
        }
        Ok(verdict)
    }

    /// A fragment that waited leaves behind its first one, or shares its fate.
    fn release(&mut self, from: Side, mut bytes: Box<[u8]>, (key, piece): (Key, Piece), now: Time) {
        let len = bytes.len();
        let mut packet = Packet::plain(&mut bytes);
        let fate = self.fragments.follow(&key, piece, now);
        let followed = fate.ok_or(DropReason::FragmentOrphan).and_then(|fate| self.follow(&mut packet, fate));
        let sent = followed.and_then(|verdict| {
            self.ready.check_room(2 * len)?;
            let others = self.parts(from, verdict, &mut packet)?;
            self.make_ready(from, verdict, [packet.bytes().into()].into_iter().chain(others));
            Ok(verdict)
        });
        let verdict = sent.unwrap_or_else(Verdict::Drop);
        match from {
            Side::Outside => self.reports.count_inbound(verdict, packet.len()),
            Side::Inside(_) => self.reports.count_outbound(verdict, packet.len()),
        }
    }

    /// Cuts a packet that is too big for where it goes: the first part stays in place, the others are to follow.
    pub(crate) fn cut(
        &mut self,
        from: Side,
        verdict: Verdict,
        packet: &mut Packet<'_>,
    ) -> Result<Verdict, DropReason> {
        let others = self.parts(from, verdict, packet)?;
        self.make_ready(from, verdict, others);
        Ok(verdict)
    }

    /// Leaves the first part of a packet that is too big for where it goes, and returns the others. A super-frame is cut
    /// by whoever sends it.
    fn parts(
        &mut self,
        from: Side,
        verdict: Verdict,
        packet: &mut Packet<'_>,
    ) -> Result<Vec<Box<[u8]>>, DropReason> {
        let (mtu, len) = (self.mtu_towards(verdict), packet.len());
        if packet.offload.gso.is_some() || len <= mtu {
            return Ok(Vec::new());
        }
        // Every part has a header of its own.
        self.ready.check_room(2 * len)?;
        let header = ipv4::read(packet.bytes()).map_err(invalid)?;
        complete_checksum(packet, &header)?;
        let (first, others) = cut(packet.bytes_mut(), header.header_len, mtu);
        packet.truncate(first);
        packet.offload = Offload::default();
        let rest: u64 = others.iter().map(|other| other.len() as u64).sum();
        let counters = &mut self.reports.counters;
        counters.fragments_made += 1 + others.len() as u64;
        match (from, verdict) {
            (Side::Outside, Verdict::Forward(_)) => counters.inbound_bytes += rest,
            (_, Verdict::Forward(Side::Outside)) => counters.outbound_bytes += rest,
            _ => {}
        }
        Ok(others)
    }

    fn make_ready(&mut self, from: Side, verdict: Verdict, packets: impl IntoIterator<Item = Box<[u8]>>) {
        let to = match verdict {
            Verdict::Forward(to) => to,
            Verdict::Hairpin(id) => Side::Inside(id),
            Verdict::Reply => from,
            Verdict::Drop(_) | Verdict::Local | Verdict::Held => return,
        };
        packets.into_iter().for_each(|packet| self.ready.push(to, packet));
    }

    /// The longest packet that the link carries to which a verdict sends it.
    fn mtu_towards(&self, verdict: Verdict) -> usize {
        match verdict {
            Verdict::Forward(Side::Outside) => self.outside_mtu.into(),
            Verdict::Forward(Side::Inside(id)) | Verdict::Hairpin(id) => self.mtu_of(id).into(),
            _ => usize::MAX,
        }
    }
}

/// What the first fragment must hold, and no other may touch: ports, and of TCP all that connections are tracked by.
fn transport_header(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Udp => udp::HEADER,
        Protocol::Tcp => tcp::MIN_HEADER,
        Protocol::Icmp => icmp::HEADER,
    }
}

/// Does what whoever sends the packet would have done: the sum of a part is of no use.
fn complete_checksum(packet: &mut Packet<'_>, header: &Header) -> Result<(), DropReason> {
    let Checksum::Partial { start, offset } = packet.offload.checksum else { return Ok(()) };
    let payload = packet.bytes_mut().get_mut(header.header_len..).unwrap_or_default();
    let offset = usize::from(offset);
    if usize::from(start) != header.header_len || offset + 2 > payload.len() {
        return Err(DropReason::Malformed);
    }
    let field = match !fold(add(0, payload)) {
        0 if header.protocol == ipv4::UDP => u16::MAX,
        field => field,
    };
    put_u16(payload, offset, field);
    Ok(())
}
