//! The driver's own deadlines.

use std::collections::{BTreeMap, BTreeSet};

use traversal_proto::{Time, peer::PeerKey};

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The machine's addresses are looked at.
    LookAround,
    /// An attempt to connect has taken too long.
    Connect(PeerKey),
    /// The peer's own handshake takes long.
    Slow(PeerKey),
    /// A closed connection's last packets have been sent.
    Linger(PeerKey),
    /// A peer may not know yet that its connection was closed.
    Parting(PeerKey),
    /// A connection that may only be direct has been without a direct path for too long.
    DirectLost(PeerKey),
    /// Peers that are sent to count as quiet, until the next packet.
    Quiet,
    /// A supernode that is reached by TCP is tried by QUIC.
    RetryQuic(usize),
    /// Messages to a supernode waited for room.
    Unwritten(usize),
}

/// Deadlines in the order in which they come: at most one of a kind for each peer and supernode.
#[derive(Default)]
pub(super) struct Timers {
    order: BTreeSet<(Time, Timer)>,
    set: BTreeMap<Timer, Time>,
}

impl Timers {
    /// Sets the deadline, in place of one that was set before.
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.clear(timer);
        self.order.insert((at, timer));
        self.set.insert(timer, at);
    }

    /// Sets the deadline if there is none.
    pub(super) fn set_first(&mut self, at: Time, timer: Timer) {
        if !self.set.contains_key(&timer) {
            self.set(at, timer);
        }
    }

    /// Takes the deadline back.
    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.set.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.order.first().map(|(at, _)| *at)
    }

    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.order.pop_first()?;
        self.set.remove(&timer);
        Some(timer)
    }
}
