//! Sessions: timed, and counted as permissions.

use super::{Mapping, NewSession, Peers, Session, Table};
use crate::{
    Behavior, Ended, Time,
    filter::{Permissions, Place},
    index::NONE,
    packed::Outer,
    report::Reports,
    tcp::State,
    timer::Link,
};

impl Session {
    pub(crate) fn expires(&self) -> Time {
        self.expires
    }
}

impl Table {
    /// Whether a session has not expired.
    #[inline(always)]
    pub(crate) fn is_live(&self, slot: u32, now: Time) -> bool {
        self.sessions[slot].expires > now
    }

    /// Whether there is no room for another session.
    pub(crate) fn is_full(&self) -> bool {
        self.sessions.len() >= self.limits.sessions
    }

    /// Adds a session to a mapping that stands; `None` when the table is full. There must be none for this remote yet.
    pub(crate) fn insert_session(
        &mut self,
        mapping: u32,
        new: NewSession,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        self.part(mapping);
        let slot = self.make_session(mapping, new, now, reports);
        match self.mappings[mapping].session_count {
            1 => self.mapping_wheel.remove(&mut self.mapping_timers, mapping),
            2 => {
                let first = self.sessions[slot].next;
                if self.sessions[first].permitted && !self.sessions[first].granted {
                    self.permissions.grant(first, &mut self.sessions, &self.hasher);
                }
            }
            _ => {}
        }
        self.place_another(mapping, slot);
        Some(slot)
    }

    /// A session, the first in its mapping's list, in no place yet.
    #[inline]
    pub(super) fn make_session(
        &mut self,
        mapping_slot: u32,
        new: NewSession,
        now: Time,
        reports: &mut Reports,
    ) -> u32 {
        let NewSession { remote, state, expires } = new;
        let mapping = &mut self.mappings[mapping_slot];
        let expires = expires.min(mapping.limit);
        let Mapping { inner, external, sessions: next, subscriber, .. } = *mapping;
        let slot = self.sessions.insert(Session {
            inner,
            external,
            remote,
            expires,
            mapping: mapping_slot,
            previous: NONE,
            next,
            timer: Link::IDLE,
            peers: Peers::NONE,
            state,
            permitted: false,
            granted: false,
            limited: mapping.limit != Time::NEVER,
        });
        mapping.sessions = slot;
        mapping.session_count += 1;
        if next != NONE {
            self.sessions[next].previous = slot;
        }
        self.session_wheel.insert(&mut self.sessions, slot, expires);
        self.subscribers.session_made(subscriber, state != State::SynIn, now);
        reports.counters.sessions_created += 1;
        slot
    }

    /// A session that has neither ended nor expired.
    pub(crate) fn live_session(&self, slot: u32, now: Time) -> Option<&Session> {
        let session = (slot < self.sessions.slots()).then(|| &self.sessions[slot])?;
        (session.mapping != NONE && session.expires > now).then_some(session)
    }

    /// What a session's deadline is never put beyond.
    pub(crate) fn limit(&self, session: &Session) -> Time {
        if session.limited { self.mappings[session.mapping].limit } else { Time::NEVER }
    }

    /// Whether the session has carried a packet from inside.
    pub(crate) fn is_permitted(&self, slot: u32) -> bool {
        self.sessions[slot].permitted
    }

    /// Packets that went another way have put a session's deadline there.
    pub(crate) fn renew(&mut self, slot: u32, expires: Time) {
        if expires > self.sessions[slot].expires {
            self.refresh(slot, expires);
        }
    }

    /// Puts a session's deadline `expires` away, or as far as its mapping's limit allows.
    #[inline(always)]
    pub(crate) fn refresh(&mut self, slot: u32, expires: Time) {
        let session = &self.sessions[slot];
        let limited = session.limited;
        let expires = if limited { expires.min(self.mappings[session.mapping].limit) } else { expires };
        self.set_deadline(slot, expires);
    }

    /// Moves a session's deadline. A later one is news to the wheel only when the old one comes; an earlier one (a
    /// connection closes, a timer was set shorter) is told at once, or what is dead would be kept until then.
    #[inline(always)]
    pub(super) fn set_deadline(&mut self, slot: u32, expires: Time) {
        let session = &mut self.sessions[slot];
        if std::mem::replace(&mut session.expires, expires) > expires {
            self.hasten(slot, expires);
        }
    }

    #[inline(never)]
    fn hasten(&mut self, slot: u32, expires: Time) {
        self.session_wheel.remove(&mut self.sessions, slot);
        self.session_wheel.insert(&mut self.sessions, slot, expires);
    }

    /// Lets the session's remote in through the filter: it has been sent to.
    #[inline(always)]
    pub(crate) fn permit(&mut self, slot: u32) {
        if !std::mem::replace(&mut self.sessions[slot].permitted, true) {
            self.grant(slot);
        }
    }

    #[inline(never)]
    fn grant(&mut self, slot: u32) {
        let Session { remote, mapping, .. } = self.sessions[slot];
        let is_asked_itself = self.permissions.are_of_mappings(remote.protocol());
        if !is_asked_itself || self.mappings[mapping].session_count > 1 {
            self.permissions.grant(slot, &mut self.sessions, &self.hasher);
        }
    }

    /// Filters by another rule from now on; what has been sent to stays permitted.
    pub(crate) fn set_filter(&mut self, behavior: &Behavior) {
        self.permissions = Permissions::new(behavior);
        let permitted = self.sessions.iter().filter(|(_, session)| session.permitted);
        let permitted: Vec<u32> = permitted.map(|(slot, _)| slot).collect();
        for slot in permitted {
            self.permissions.grant(slot, &mut self.sessions, &self.hasher);
        }
    }

    /// Whether the filter lets `remote` send to a mapping that has no session with it.
    pub(crate) fn admits(&self, slot: u32, remote: Outer) -> bool {
        let Mapping { inner, external, is_static, sessions, .. } = self.mappings[slot];
        let asked = sessions != NONE && {
            let session = &self.sessions[sessions];
            session.permitted && !session.granted && self.permissions.holds(session, remote)
        };
        let place = Place { inner, external, mapping: slot };
        is_static || asked || self.permissions.admits(place, remote, &self.sessions, &self.hasher)
    }

    #[inline(never)]
    pub(crate) fn end_session(&mut self, slot: u32, now: Time, reports: &mut Reports) {
        self.touch_ending(slot);
        let mapping_slot = self.sessions[slot].mapping;
        let Mapping { session_count, expires, .. } = self.mappings[mapping_slot];
        if session_count == 1 && expires <= now {
            self.end_mapping(mapping_slot, Ended::Expired, now, reports);
            return;
        }
        self.unlink_session(slot, reports);
        if session_count == 1 && expires != Time::NEVER {
            self.mapping_wheel.insert(&mut self.mapping_timers, mapping_slot, expires);
        }
    }

    /// Ends a session whose mapping stays.
    pub(super) fn unlink_session(&mut self, slot: u32, reports: &mut Reports) {
        self.unplace_session(slot);
        self.drop_session(slot, reports);
    }

    /// Gives a session back that is in no place any more.
    pub(super) fn drop_session(&mut self, slot: u32, reports: &mut Reports) {
        let Session { mapping, previous, next, granted, .. } = self.sessions[slot];
        self.exports.recall(slot);
        if granted {
            self.permissions.revoke(slot, &mut self.sessions, &self.hasher);
        }
        let mapping = &mut self.mappings[mapping];
        mapping.session_count -= 1;
        self.subscribers.session_ended(mapping.subscriber);
        if previous == NONE {
            mapping.sessions = next;
        } else {
            self.sessions[previous].next = next;
        }
        if next != NONE {
            self.sessions[next].previous = previous;
        }
        self.session_wheel.remove(&mut self.sessions, slot);
        self.sessions.remove(slot);
        reports.counters.sessions_ended += 1;
    }
}
