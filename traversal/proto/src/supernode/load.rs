//! Sending peers elsewhere: some of them under load, all of them before a shutdown. Never all at once: a crowd that
//! moves together runs over whoever takes it in.

use std::time::Duration;

use super::{ConnectionId, Supernode, deadlines::Deadline};
use crate::{
    Time,
    wire::{
        List,
        message::{Code, FromSupernode, MAX_NAMED, Supernode as Other},
    },
};

/// Whether newcomers are taken, and whether this is the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    closed: bool,
    drain_until: Option<Time>,
}

impl Load {
    pub(super) fn admits(self) -> bool {
        !self.closed && self.drain_until.is_none()
    }
}

impl Supernode {
    /// Whether new connections are taken; if not, they are redirected to the alternatives. Whoever is here stays.
    pub fn set_admitting(&mut self, admitting: bool) {
        self.load.closed = !admitting;
    }

    /// Asks `permille` of the registered peers, chosen at random, to move within `within`. They are asked, not thrown out.
    pub fn shed(&mut self, permille: u16, within: Duration, now: Time) {
        self.at(now);
        let connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for connection in connections {
            if self.random() % 1000 < u32::from(permille) {
                self.ask_to_leave(connection, within);
            }
        }
    }

    /// Takes no one in any more, asks everybody to move at a time of their own within `within`, and closes what is left
    /// after that. [`is_drained`](Self::is_drained) tells when nobody is left.
    pub fn drain(&mut self, within: Duration, now: Time) {
        let now = self.at(now);
        if let Some(previous) = self.load.drain_until.replace(now + within) {
            self.deadlines.clear(previous, Deadline::DrainEnd);
        }
        self.deadlines.set(now + within, Deadline::DrainEnd);
        self.shed(1000, within, now);
    }

    /// Whether a drain has left nobody.
    pub fn is_drained(&self) -> bool {
        self.load.drain_until.is_some() && self.connections.is_empty()
    }

    pub(super) fn drain_ended(&mut self, now: Time) {
        let connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for connection in connections {
            self.end(connection, Code::Draining, now);
        }
    }

    /// The other supernodes, beginning with any of them: not everybody goes to the first.
    pub(super) fn alternatives(&mut self) -> List<Other, MAX_NAMED> {
        let count = self.config.alternatives.len();
        let first = if count > 1 { self.random() as usize % count } else { 0 };
        List::first_of(self.config.alternatives.iter().cycle().skip(first).take(count).cloned())
    }

    /// The last tenth of the time is left for moving.
    fn ask_to_leave(&mut self, connection: ConnectionId, within: Duration) {
        let millis = u32::try_from(within.as_millis() * 9 / 10).unwrap_or(u32::MAX);
        let leave_in = if millis > 0 { self.random() % millis } else { 0 };
        let alternatives = self.alternatives();
        self.send(connection, FromSupernode::Drain { leave_in, alternatives });
    }
}
