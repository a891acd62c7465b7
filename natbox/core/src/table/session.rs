//! Sessions: found by either end, timed, and counted as permissions.

use super::{FLOWS_IN, Mapping, Session, Table, flow_hashes, flows_out_salt};
use crate::{
    Ended, Endpoint, Inside, Protocol, Time,
    behavior::{FilterScope, Filtering},
    filter::{Permission, Permissions},
    index::NONE,
    report::Reports,
    slab::Slab,
    tcp::State,
};

impl Table {
    /// The live session of a packet from inside.
    pub(crate) fn find_out(
        &mut self,
        protocol: Protocol,
        inside: Inside,
        remote: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(protocol, flows_out_salt(inside), inside.endpoint, remote);
        let slot = self.flows_out.find(hash, |slot| {
            let session = &self.sessions[slot];
            let mapping = &self.mappings[session.mapping];
            session.remote == remote && mapping.inside == inside && mapping.protocol == protocol
        })?;
        self.alive(slot, now, reports)
    }

    /// The live session of a packet from outside.
    pub(crate) fn find_in(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        remote: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(protocol, FLOWS_IN, external, remote);
        let slot = self.flows_in.find(hash, |slot| {
            let session = &self.sessions[slot];
            let mapping = &self.mappings[session.mapping];
            session.remote == remote && mapping.external == external && mapping.protocol == protocol
        })?;
        self.alive(slot, now, reports)
    }

    fn alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> Option<u32> {
        if self.sessions[slot].expires > now {
            return Some(slot);
        }
        self.end_session(slot, now, reports);
        None
    }

    /// Whether there is no room for another session.
    pub(crate) fn is_full(&self) -> bool {
        self.sessions.len() >= self.limits.sessions
    }

    /// Adds a session to a mapping; `None` when the table is full. There must be none for this remote yet.
    pub(crate) fn insert_session(
        &mut self,
        mapping_slot: u32,
        remote: Endpoint,
        state: State,
        expires: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let mapping = &mut self.mappings[mapping_slot];
        let expires = expires.min(mapping.limit);
        let next = mapping.sessions;
        let (out, inward) = flow_hashes(&self.hasher, mapping, remote);
        let session =
            Session { mapping: mapping_slot, remote, state, permitted: false, expires, previous: NONE, next };
        let slot = self.sessions.insert(session);
        mapping.sessions = slot;
        mapping.session_count += 1;
        if mapping.session_count == 1 {
            self.mapping_wheel.remove(mapping_slot);
        }
        if next != NONE {
            self.sessions[next].previous = slot;
        }
        self.flows_out.insert(out, slot);
        self.flows_in.insert(inward, slot);
        self.session_wheel.insert(slot, expires);
        reports.counters.sessions_created += 1;
        Some(slot)
    }

    /// Moves a session's deadline. A later one is news to the wheel only when the old one comes; an earlier one (a
    /// connection closes, a timer was set shorter) is told at once, or what is dead would be kept until then.
    pub(crate) fn set_deadline(&mut self, slot: u32, expires: Time) {
        let session = &mut self.sessions[slot];
        if std::mem::replace(&mut session.expires, expires) > expires {
            self.session_wheel.remove(slot);
            self.session_wheel.insert(slot, expires);
        }
    }

    /// Lets the session's remote in through the filter: it has been sent to.
    pub(crate) fn permit(&mut self, slot: u32) {
        let session = &mut self.sessions[slot];
        if std::mem::replace(&mut session.permitted, true) {
            return;
        }
        if let Some(permission) = permission_of(&self.permissions, &self.sessions[slot], &self.mappings) {
            self.permissions.grant(permission, &self.hasher);
        }
    }

    /// Filters by another rule from now on; what has been sent to stays permitted.
    pub(crate) fn set_filter(&mut self, filtering: Filtering, scope: FilterScope) {
        let mut permissions = Permissions::new(filtering, scope);
        for (_, session) in self.sessions.iter().filter(|(_, session)| session.permitted) {
            if let Some(permission) = permission_of(&permissions, session, &self.mappings) {
                permissions.grant(permission, &self.hasher);
            }
        }
        self.permissions = permissions;
    }

    /// Whether the filter lets `remote` send to a mapping that has no session with it.
    pub(crate) fn admits(&self, slot: u32, remote: Endpoint) -> bool {
        let Mapping { protocol, inside, is_static, .. } = self.mappings[slot];
        is_static || self.permissions.admits(protocol, inside, slot, remote, &self.hasher)
    }

    pub(crate) fn end_session(&mut self, slot: u32, now: Time, reports: &mut Reports) {
        let mapping_slot = self.unlink_session(slot, reports);
        let mapping = &self.mappings[mapping_slot];
        if mapping.session_count > 0 {
            return;
        }
        if mapping.expires <= now {
            self.end_mapping(mapping_slot, Ended::Expired, reports);
        } else if mapping.expires != Time::NEVER {
            self.mapping_wheel.insert(mapping_slot, mapping.expires);
        }
    }

    /// Takes a session out of every index; returns its mapping.
    pub(super) fn unlink_session(&mut self, slot: u32, reports: &mut Reports) -> u32 {
        let session = &self.sessions[slot];
        let Session { mapping: mapping_slot, remote, previous, next, permitted, .. } = *session;
        if permitted && let Some(permission) = permission_of(&self.permissions, session, &self.mappings) {
            self.permissions.revoke(&permission, &self.hasher);
        }
        let mapping = &mut self.mappings[mapping_slot];
        let (out, inward) = flow_hashes(&self.hasher, mapping, remote);
        mapping.session_count -= 1;
        if previous == NONE {
            mapping.sessions = next;
        } else {
            self.sessions[previous].next = next;
        }
        if next != NONE {
            self.sessions[next].previous = previous;
        }
        self.flows_out.remove(out, slot);
        self.flows_in.remove(inward, slot);
        self.session_wheel.remove(slot);
        self.sessions.remove(slot);
        reports.counters.sessions_ended += 1;
        mapping_slot
    }
}

fn permission_of(rule: &Permissions, session: &Session, mappings: &Slab<Mapping>) -> Option<Permission> {
    let mapping = &mappings[session.mapping];
    rule.needed(mapping.protocol, mapping.inside, session.mapping, session.remote)
}
