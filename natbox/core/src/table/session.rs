//! Sessions: found by either end, timed, and counted as permissions.

use super::{Mapping, Peers, Session, Table};
use crate::{
    Behavior, Ended, Time,
    filter::{Permissions, Place},
    index::NONE,
    packed::{Inner, Outer},
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
    /// The live session of a packet from inside.
    #[inline(always)]
    pub(crate) fn find_out(
        &mut self,
        inner: Inner,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let slot = self.lookup_out(inner, remote)?;
        self.alive(slot, now, reports)
    }

    /// The same, or one that has expired.
    #[inline(always)]
    pub(crate) fn lookup_out(&self, inner: Inner, remote: Outer) -> Option<u32> {
        let hash = self.hasher.hash(inner.word(), remote.word());
        self.flows_out.find(hash, |slot| {
            let session = &self.sessions[slot];
            session.inner == inner && session.remote == remote
        })
    }

    /// The live session of a packet from outside.
    #[inline(always)]
    pub(crate) fn find_in(
        &mut self,
        external: Outer,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let slot = self.lookup_in(external, remote)?;
        self.alive(slot, now, reports)
    }

    /// The same, or one that has expired.
    #[inline(always)]
    pub(crate) fn lookup_in(&self, external: Outer, remote: Outer) -> Option<u32> {
        let hash = self.hasher.hash(external.word(), remote.word());
        self.flows_in.find(hash, |slot| {
            let session = &self.sessions[slot];
            session.external == external && session.remote == remote
        })
    }

    #[inline(always)]
    fn alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> Option<u32> {
        if self.is_live(slot, now) {
            return Some(slot);
        }
        self.end_session(slot, now, reports);
        None
    }

    /// Whether a session has not expired.
    #[inline(always)]
    pub(crate) fn is_live(&self, slot: u32, now: Time) -> bool {
        self.sessions[slot].expires > now
    }

    /// Whether there is no room for another session.
    pub(crate) fn is_full(&self) -> bool {
        self.sessions.len() >= self.limits.sessions
    }

    /// Adds a session to a mapping; `None` when the table is full. There must be none for this remote yet.
    pub(crate) fn insert_session(
        &mut self,
        mapping_slot: u32,
        remote: Outer,
        state: State,
        expires: Time,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full() {
            return None;
        }
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
        if mapping.session_count == 1 {
            self.mapping_wheel.remove(&mut self.mapping_timers, mapping_slot);
        }
        let is_second = mapping.session_count == 2;
        if next != NONE {
            self.sessions[next].previous = slot;
        }
        if is_second && self.sessions[next].permitted && !self.sessions[next].granted {
            self.permissions.grant(next, &mut self.sessions, &self.hasher);
        }
        self.flows_out.insert(self.hasher.hash(inner.word(), remote.word()), slot);
        self.flows_in.insert(self.hasher.hash(external.word(), remote.word()), slot);
        self.session_wheel.insert(&mut self.sessions, slot, expires);
        self.subscribers.session_made(subscriber, state != State::SynIn, now);
        reports.counters.sessions_created += 1;
        Some(slot)
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
        let mapping_slot = self.unlink_session(slot, reports);
        let mapping = &self.mappings[mapping_slot];
        if mapping.session_count > 0 {
            return;
        }
        if mapping.expires <= now {
            self.end_mapping(mapping_slot, Ended::Expired, now, reports);
        } else if mapping.expires != Time::NEVER {
            self.mapping_wheel.insert(&mut self.mapping_timers, mapping_slot, mapping.expires);
        }
    }

    /// Takes a session out of every index; returns its mapping.
    pub(super) fn unlink_session(&mut self, slot: u32, reports: &mut Reports) -> u32 {
        let Session { inner, external, remote, mapping: mapping_slot, previous, next, granted, .. } =
            self.sessions[slot];
        self.exports.recall(slot);
        if granted {
            self.permissions.revoke(slot, &mut self.sessions, &self.hasher);
        }
        let mapping = &mut self.mappings[mapping_slot];
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
        self.flows_out.remove(self.hasher.hash(inner.word(), remote.word()), slot);
        self.flows_in.remove(self.hasher.hash(external.word(), remote.word()), slot);
        self.session_wheel.remove(&mut self.sessions, slot);
        self.sessions.remove(slot);
        reports.counters.sessions_ended += 1;
        mapping_slot
    }
}
