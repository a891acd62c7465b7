//! QUIC is spoken by the caller. What it says to addresses that have proved nothing comes out of the same budget as our
//! own answers.

use std::net::SocketAddr;

use super::{DropReason, Supernode, Verdict, unproven};
use crate::{
    Time,
    address::{can_answer, canonical},
};

/// QUIC's version 1 (RFC 9000 §15): the one that is spoken.
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
/// Headers that carry a version have both upper bits (RFC 9000 §17.2; the lower of the two is never greased here).
const LONG_HEADER: u8 = 0xc0;

impl Supernode {
    /// Whether the caller may answer a QUIC handshake from this address, which has proved nothing. How much it answers is
    /// bounded by QUIC itself: three times what came in (RFC 9000 §8.1).
    pub fn may_answer(&mut self, to: SocketAddr, now: Time) -> bool {
        let (now, to) = (self.at(now), canonical(to));
        self.unproven.allows(to, 1, 1, unproven::OWN, now)
    }

    /// A datagram of QUIC's. Any with an unknown version may be answered by QUIC, with the versions that it knows.
    pub(super) fn quic(&mut self, from: SocketAddr, datagram: &[u8], now: Time) -> Verdict {
        if !can_answer(from) {
            return self.drop(DropReason::BadSource);
        }
        let is_known = match datagram {
            [first, version @ ..] if *first >= LONG_HEADER => version.starts_with(&VERSION_1),
            _ => true,
        };
        if !is_known && !self.may_answer(from, now) {
            return self.drop(DropReason::Unproven);
        }
        Verdict::NotOurs
    }
}
