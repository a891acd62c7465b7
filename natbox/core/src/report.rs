//! What the engine tells its caller: counters, events, and ports taken or given back.

use std::collections::VecDeque;

use crate::{Claim, Counters, DropReason, Event, Side, Verdict};

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

    /// Counts a packet from inside.
    #[inline(always)]
    pub(crate) fn count_outbound(&mut self, verdict: Verdict, length: usize) {
        match verdict {
            Verdict::Forward(Side::Outside) => {
                self.counters.outbound_packets += 1;
                self.counters.outbound_bytes += length as u64;
            }
            Verdict::Forward(Side::Inside(_)) => self.counters.routed_packets += 1,
            other => self.count(other),
        }
    }

    /// Counts a packet from outside.
    #[inline(always)]
    pub(crate) fn count_inbound(&mut self, verdict: Verdict, length: usize) {
        match verdict {
            Verdict::Forward(_) => {
                self.counters.inbound_packets += 1;
                self.counters.inbound_bytes += length as u64;
            }
            other => self.count(other),
        }
    }

    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Drop(reason) => self.drop(reason),
            Verdict::Hairpin(_) => self.counters.hairpin_packets += 1,
            Verdict::Reply => self.counters.replies += 1,
            Verdict::Local => self.counters.local_packets += 1,
            // What is held is counted when it is known what becomes of it.
            Verdict::Forward(_) | Verdict::Held => {}
        }
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.counters.dropped[reason as usize] += 1;
    }

    pub(crate) fn drop_many(&mut self, reason: DropReason, count: usize) {
        self.counters.dropped[reason as usize] += count as u64;
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
