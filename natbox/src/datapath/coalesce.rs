//! Joining datagrams and TCP segments of one flow into a super-frame, between translation and sending: a packet then costs
//! the kernel a fraction of what it costs by itself.
//!
//! Only packets that happen to be in the same batch are joined, so nothing waits for it. Cutting the super-frame gives back
//! the packets, byte for byte but for identification numbers that mean nothing (RFC 6864 §4.1): only packets that differ in
//! nothing else than payload, length, checksum and TCP's sequence number and PSH are joined, all of one length but the last.
//! Their checksums must be right or not be computed yet, as a super-frame's are always computed anew: a damaged packet would
//! come out whole. Where nobody vouches for one it is summed up here.
//!
//! Packets of other flows may lie between those that are joined; the order within a flow is kept.

mod part;
#[cfg(test)]
mod tests;

use natbox_core::packet::{Checksum, Gso, GsoKind, Offload, checksum};

use super::{Batch, Mac, Outgoing, segment::pseudo_header_sum};
use part::{Kind, Part};

/// Packets in a super-frame at the most: what kernels have always taken (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;

/// Flows that are joined at a time: a batch of 64 frames has little to gain from more.
const MOST_FLOWS: usize = 8;

/// Which super-frames a port takes as they are: only those are worth making.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuperFrames {
    /// Of TCP.
    pub tcp: bool,
    /// Of UDP.
    pub udp: bool,
}

/// A super-frame in the making.
#[derive(Clone, Copy, Debug)]
struct Open {
    frame: usize,
    to: Mac,
    kind: Kind,
    /// Length of IP and transport header.
    headers: usize,
    /// Payload of each packet but the last.
    segment: usize,
    segments: usize,
}

/// Joins what can be joined among the frames that `list` names, and takes those that went into another one off the
/// list. Returns how many did.
pub fn coalesce(batch: &mut Batch, list: &mut Vec<Outgoing>, takes: SuperFrames) -> u64 {
    let mut open: [Option<Open>; MOST_FLOWS] = [None; MOST_FLOWS];
    let mut oldest = 0;
    let mut kept = 0;
    for i in 0..list.len() {
        if !joins(batch, &mut open, list[i], takes, &mut oldest) {
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

/// Adds a frame to a super-frame if there is one for it; otherwise one may begin with it.
fn joins(
    batch: &mut Batch,
    open: &mut [Option<Open>; MOST_FLOWS],
    Outgoing { frame, to }: Outgoing,
    takes: SuperFrames,
    oldest: &mut usize,
) -> bool {
    let same_flow = |open: &Option<Open>| {
        open.is_some_and(|open| open.to == to && flow(batch.bytes(open.frame)) == flow(batch.bytes(frame)))
    };
    let slot = open.iter().position(same_flow);
    let part = Part::of(batch, frame).filter(|part| match part.kind {
        Kind::Tcp => takes.tcp,
        Kind::Udp => takes.udp,
    });
    if let Some(slot) = slot
        && let Some(super_frame) = &mut open[slot]
    {
        if let Some(part) = part
            && append(batch, super_frame, frame, part)
        {
            // A shorter packet can only be the last.
            if part.last || part.payload < super_frame.segment || super_frame.segments == MOST_SEGMENTS {
                finish(batch, *super_frame);
                open[slot] = None;
            }
            return true;
        }
        finish(batch, *super_frame);
        open[slot] = None;
    }
    if let Some(Part { kind, headers, payload, last: false }) = part {
        let slot = slot.or_else(|| open.iter().position(Option::is_none)).unwrap_or_else(|| {
            *oldest = (*oldest + 1) % MOST_FLOWS;
            *oldest
        });
        let begun = Open { frame, to, kind, headers, segment: payload, segments: 1 };
        if let Some(replaced) = open[slot].replace(begun) {
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

/// Appends the payload of `frame`, if it fits.
fn append(batch: &mut Batch, open: &mut Open, frame: usize, part: Part) -> bool {
    let into = batch.frame(open.frame).len;
    let len = into + part.payload;
    let (room, from) = batch.pair(open.frame, frame);
    if (part.kind, part.headers) != (open.kind, open.headers)
        || part.payload > open.segment
        || len > usize::from(u16::MAX)
        || len > room.len()
        || !part.follows(&room[..into], from, open.segments)
    {
        return false;
    }
    if (open.segments == 1 && !is_right(batch, open.frame)) || !is_right(batch, frame) {
        return false;
    }
    let (room, from) = batch.pair(open.frame, frame);
    room[into..len].copy_from_slice(&from[part.headers..]);
    part.close(room);
    batch.frames[open.frame].len = len;
    open.segments += 1;
    true
}

/// Whether the transport's checksum is right, or will be made so: somebody vouches for it, or it is summed up.
fn is_right(batch: &mut Batch, frame: usize) -> bool {
    let Offload { checksum: Checksum::Unverified, .. } = batch.frame(frame).offload else { return true };
    let packet = batch.bytes(frame);
    let pseudo = pseudo_header_sum(packet, packet.len() - 20);
    let right = checksum::fold(checksum::add(pseudo, &packet[20..])) == u16::MAX;
    if right {
        batch.frames[frame].offload.checksum = Checksum::Verified;
    }
    right
}

/// Writes the headers of a super-frame, if more than one packet is in it.
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
    if open.kind == Kind::Udp {
        packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    }
    let offset = open.kind.checksum_offset();
    let field = 20 + usize::from(offset);
    let partial = checksum::fold(pseudo_header_sum(packet, packet.len() - 20));
    packet[field..field + 2].copy_from_slice(&partial.to_be_bytes());
    batch.frames[open.frame].offload = Offload {
        checksum: Checksum::Partial { start: 20, offset },
        gso: Some(Gso {
            kind: match open.kind {
                Kind::Tcp => GsoKind::TcpV4,
                Kind::Udp => GsoKind::Udp,
            },
            segment: open.segment as u16,
            header_len: open.headers as u16,
            ecn: false,
        }),
    };
}
