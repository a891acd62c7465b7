//! What the engine tells its caller: counters, events, and ports taken or given back.

use std::collections::VecDeque;

use crate::{Claim, Counters, DropReason, Event};

/// Events that are kept for a caller who is slow to take them.
const MOST_EVENTS: usize = 65_536;

pub(crate) struct Reports {
    pub(crate) counters: Counters,
    events: Option<VecDeque<Event>>,
    claims: Option<VecDeque<Claim>>,
}

impl Reports {
    pub(crate) fn new(events: bool, claims: bool) -> Reports {
        Reports {
            counters: Counters::default(),
            events: events.then(VecDeque::new),
            claims: claims.then(VecDeque::new),
        }
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.counters.dropped[reason as usize] += 1;
    }

    pub(crate) fn event(&mut self, event: impl FnOnce() -> Event) {
        match &mut self.events {
            Some(events) if events.len() < MOST_EVENTS => events.push_back(event()),
            Some(_) => self.counters.events_lost += 1,
            None => {}
        }
    }

    /// A claim is never lost: there are at most as many as packets and expiries since the last `poll_claim`.
    pub(crate) fn claim(&mut self, claim: impl FnOnce() -> Claim) {
        if let Some(claims) = &mut self.claims {
            claims.push_back(claim());
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.as_mut()?.pop_front()
    }

    pub(crate) fn poll_claim(&mut self) -> Option<Claim> {
        self.claims.as_mut()?.pop_front()
    }
}
