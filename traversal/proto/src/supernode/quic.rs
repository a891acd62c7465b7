//! QUIC is spoken by the caller. What it says to addresses that have proved nothing comes out of the same budget as our
//! own answers.

use std::net::SocketAddr;

use super::{DropReason, Supernode, Verdict, unproven};
use crate::{
    Time,
    address::{can_answer, canonical},
};

impl Supernode {
    /// Whether the caller may answer a QUIC packet from this address, which has proved nothing: begin a handshake, ask for
    /// the proof (Retry), name the versions that it speaks, refuse. How much it answers is bounded by QUIC itself: three
    /// times what came in (RFC 9000 §8.1).
    pub fn may_answer(&mut self, to: SocketAddr, now: Time) -> bool {
        let (now, to) = (self.at(now), canonical(to));
        self.unproven.allows(to, 1, 1, unproven::OWN, now)
    }

    /// A datagram of QUIC's.
    pub(super) fn quic(&mut self, from: SocketAddr) -> Verdict {
        match can_answer(from) {
            true => Verdict::NotOurs,
            false => self.drop(DropReason::BadSource),
        }
    }
}
