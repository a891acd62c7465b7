//! The driver's own deadlines.

use std::collections::BTreeSet;

use traversal_proto::{Time, peer::PeerKey};

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The machine's addresses are looked at.
    LookAround,
    /// An attempt to connect has taken too long.
    Connect(PeerKey),
    /// A closed connection's last packets have been sent.
    Linger(PeerKey),
    /// A connection that may only be direct has been without a direct path for too long.
    DirectLost(PeerKey),
    /// Peers that are sent to count as quiet, until the next packet.
    Quiet,
    /// A supernode that is reached by TCP is tried by QUIC.
    RetryQuic(usize),
}

/// Deadlines in the order in which they come: a few for each peer and supernode.
#[derive(Default)]
pub(super) struct Timers(BTreeSet<(Time, Timer)>);

impl Timers {
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.0.insert((at, timer));
    }

    /// Takes back what was set for this.
    pub(super) fn clear(&mut self, timer: Timer) {
        self.0.retain(|(_, set)| *set != timer);
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }
}
