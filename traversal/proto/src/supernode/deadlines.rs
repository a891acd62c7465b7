//! What is due when. Only the control plane has deadlines; a relayed packet touches none.

use std::collections::BTreeSet;

use crate::Time;

/// What a deadline is about; the numbers are handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// A connection that has not registered is closed.
    Silent(u64),
    /// A registration that was not renewed ends.
    Expiry(u32),
    /// A directory's answer is no longer waited for.
    Query(u32),
    /// Whoever is still here after a drain is disconnected.
    DrainEnd,
}

/// Deadlines in the order in which they come; at most one for each record, so bounded by the tables.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Time, Deadline)>);

impl Deadlines {
    pub(super) fn set(&mut self, at: Time, what: Deadline) {
        self.0.insert((at, what));
    }

    /// Takes back what was set for `at`.
    pub(super) fn clear(&mut self, at: Time, what: Deadline) {
        self.0.remove(&(at, what));
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The next that is due.
    pub(super) fn pop(&mut self, now: Time) -> Option<Deadline> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, what)| what)
    }
}
