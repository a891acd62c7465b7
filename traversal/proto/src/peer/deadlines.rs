//! What is due when.

use std::collections::BTreeSet;

use super::PeerKey;
use crate::Time;

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    /// Reflectors are to be asked, or asked again.
    Gather,
    /// The discovery of the NAT goes on.
    Discovery,
    /// The budget has room again for those who wait for it.
    Budget,
    /// Something of a peer's: its nearest.
    Peer(PeerKey),
}

/// Deadlines in the order in which they come; one for each peer and three.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Time, Deadline)>);

impl Deadlines {
    /// Moves a deadline from `armed` to `at`; [`Time::NEVER`] stands for none.
    pub(super) fn arm(&mut self, what: Deadline, armed: &mut Time, at: Time) {
        if *armed == at {
            return;
        }
        self.0.remove(&(*armed, what));
        if at < Time::NEVER {
            self.0.insert((at, what));
        }
        *armed = at;
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| *at)
    }

    /// All that are due, in order. They stay until they are armed anew.
    pub(super) fn due(&self, now: Time) -> Vec<Deadline> {
        self.0.iter().take_while(|(at, _)| *at <= now).map(|(_, what)| *what).collect()
    }
}
