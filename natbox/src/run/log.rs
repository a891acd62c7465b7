//! What the packet log is told.

use natbox_core::{Side, Transmit, Verdict, ends};

use super::state::OUTSIDE;
use crate::output::{Direction, Flow, PacketLog};

/// A packet came in on side `from`; `before` is what it was, `packet` what has become of it.
pub(super) fn took(log: &PacketLog, from: usize, verdict: Verdict, before: Option<Flow>, packet: &[u8]) {
    let direction = match (from, verdict) {
        (OUTSIDE, _) => Direction::Inbound,
        (_, Verdict::Hairpin(_)) => Direction::Hairpin,
        _ => Direction::Outbound,
    };
    match (verdict, before, ends(packet)) {
        (Verdict::Forward(_) | Verdict::Hairpin(_), Some(before), Some(after)) => {
            log.translated(direction, before, after);
        }
        (Verdict::Forward(_) | Verdict::Hairpin(_), ..) => {}
        (Verdict::Held, before, _) => log.held(direction, before),
        (Verdict::Drop(reason), before, _) => log.dropped(direction, reason, before),
        (Verdict::Reply, before, _) => log.answered(direction, before),
        // Everything that the host itself sends and receives: not natbox's business.
        (Verdict::Local, ..) if from == OUTSIDE => {}
        (Verdict::Local, before, _) => log.delivered(direction, before),
    }
}

/// The engine has made a packet, or lets one follow another.
pub(super) fn made(log: &PacketLog, transmit: &Transmit) {
    let direction = if transmit.to == Side::Outside { Direction::Outbound } else { Direction::Inbound };
    let flow = ends(&transmit.packet);
    // Only what is forwarded is ever in fragments.
    match flow {
        Some((_, ends)) if ends.piece.is_some() => log.followed(direction, flow),
        _ => log.sent(direction, flow),
    }
}
