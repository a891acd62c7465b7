//! Ports at rest: nobody holds them any more, and nobody may have them yet (RFC 6888 REQ-8). A packet for who had one
//! before must not reach who has it next.
//!
//! All rest for the same time, so they lie in the order in which they are over. There is room for so many; beyond, the
//! one that has rested longest is free before its time, and counted.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use crate::{Behavior, Time, packed::Outer};

/// Every port at rest.
pub(crate) struct Quarantine {
    /// `None`: ports are free at once.
    lasts: Option<Duration>,
    most: usize,
    resting: VecDeque<(Time, Outer)>,
}

impl Quarantine {
    pub(crate) fn new(behavior: &Behavior) -> Quarantine {
        let mut quarantine = Quarantine { lasts: None, most: 0, resting: VecDeque::new() };
        quarantine.set(behavior);
        quarantine
    }

    /// Takes another time and another bound; what is beyond them now is over.
    pub(crate) fn set(&mut self, behavior: &Behavior) {
        self.lasts = behavior.port_quarantine;
        self.most = behavior.quarantine_ports as usize;
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lasts.is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.resting.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Outer> + '_ {
        self.resting.iter().map(|(_, external)| *external)
    }

    /// A port rests from now on. Returns the one that has to make room for it, if one has.
    pub(crate) fn add(&mut self, external: Outer, now: Time) -> Option<Outer> {
        self.resting.push_back((now, external));
        if self.resting.len() <= self.most {
            return None;
        }
        self.resting.pop_front().map(|(_, oldest)| oldest)
    }

    /// A port that has rested for long enough.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Outer> {
        if self.next_expiry()? > now && self.resting.len() <= self.most {
            return None;
        }
        self.resting.pop_front().map(|(_, external)| external)
    }

    /// When the next one has.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        let (since, _) = self.resting.front()?;
        Some(*since + self.lasts.unwrap_or_default())
    }

    /// Somebody has been given a resting port by name.
    pub(crate) fn forget(&mut self, external: Outer) {
        self.resting.retain(|(_, resting)| *resting != external);
    }

    /// An address is gone.
    pub(crate) fn forget_address(&mut self, addr: Ipv4Addr) {
        self.resting.retain(|(_, resting)| resting.spot().addr != addr);
    }
}
