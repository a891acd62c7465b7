//! What a flow from inside begins with: its session, a mapping that stands or a new one, and room for both.

use crate::{
    DropReason, Ended, Event, Nat, Protocol, Remote, Time,
    behavior::StrayTcp,
    packed::{Inner, Outer},
    table::{NewMapping, NewSession},
    tcp::State,
    translate::Flow,
    transport::Transport,
};

impl Nat {
    /// A new session leaves, by a mapping that stands or by a new one.
    pub(crate) fn leave_new(
        &mut self,
        inner: Inner,
        transport: Transport,
        flow: Flow,
        now: Time,
    ) -> Result<Outer, DropReason> {
        let (state, timeout) = match transport {
            Transport::Udp => match self.behavior.udp_port_timeouts.get(flow.remote.spot().port) {
                Some(timeout) => (State::Brief, timeout),
                None => (State::New, self.behavior.udp_timeout),
            },
            Transport::Query { request: true } => (State::New, self.behavior.icmp_timeout),
            Transport::Query { request: false } | Transport::Error => return Err(DropReason::IcmpUnrelated),
            Transport::Tcp { flags, .. } if flags.opens() => {
                (State::SynOut, self.behavior.tcp_opening_timeout)
            }
            Transport::Tcp { flags, .. }
                if self.behavior.stray_tcp != StrayTcp::Forward || !flags.is_in_the_middle() =>
            {
                return Err(DropReason::StrayTcp);
            }
            Transport::Tcp { .. } => (State::PickedUp, self.behavior.tcp_opening_timeout),
        };
        self.table.touch_free();
        // What has expired makes room first, and gives its port back.
        self.table.expire(now, &mut self.reports);
        let room = match self.table.may_begin(inner, now) {
            Err(DropReason::TableFull) => self.make_room_for(inner, flow, now),
            room => room,
        };
        let first = NewSession { remote: flow.remote, state, expires: now + timeout };
        let result = room.and_then(|()| self.begin(inner, first, flow, now));
        if let Err(why) = result {
            self.table.refused(inner, why);
            self.reports.event(|| Event::MappingRefused {
                protocol: flow.protocol,
                inside: inner.public(),
                remote: Remote(flow.remote.public()),
                why,
            });
        }
        result
    }

    /// Makes the session, and a mapping for it where none stands; returns its external endpoint.
    fn begin(&mut self, inner: Inner, first: NewSession, flow: Flow, now: Time) -> Result<Outer, DropReason> {
        let session = match self.standing_for(inner, flow, now)? {
            Some(mapping) => self.table.insert_session(mapping, first, now, &mut self.reports),
            None => {
                let new = self.new_mapping(inner, flow, now)?;
                self.table.insert_flow(new, first, now, &mut self.reports)
            }
        };
        let session = session.ok_or(DropReason::TableFull)?;
        self.table.permit(session);
        let external = self.table.session(session).external;
        if flow.protocol == Protocol::Tcp {
            self.pending.cancel(external, flow.remote);
        }
        Ok(external)
    }

    /// The mapping that stands for a new session of `inner` towards `flow.remote` (RFC 4787 §4.1), and can have it.
    fn standing_for(&mut self, inner: Inner, flow: Flow, now: Time) -> Result<Option<u32>, DropReason> {
        let Some(slot) = self.standing_mapping(inner, flow.remote, now) else { return Ok(None) };
        // Where overloading is on, or was, another mapping on this endpoint may have this remote already.
        let external = self.table.mapping(slot).external;
        if self.table.find_in(external, flow.remote, now, &mut self.reports).is_none() {
            return Ok(Some(slot));
        }
        if self.table.is_in_use(slot) {
            return Err(DropReason::PortsExhausted);
        }
        // Nobody would miss the old one.
        self.table.end_mapping(slot, Ended::Expired, now, &mut self.reports);
        Ok(None)
    }

    /// The mapping that there is for a remote: one that is for it, or one that was made by name.
    pub(crate) fn standing_mapping(&mut self, inner: Inner, remote: Outer, now: Time) -> Option<u32> {
        let (key, anybody) = (self.table.key_of(remote), Outer::anybody(remote.protocol()));
        let found = self.table.find_mapping(inner, key, now, &mut self.reports);
        if found.is_some() || key == anybody || self.table.statics == 0 {
            return found;
        }
        let by_name = self.table.find_mapping(inner, anybody, now, &mut self.reports);
        by_name.filter(|slot| self.table.mapping(*slot).is_static)
    }

    /// What a mapping for `flow` is made from, if there may be one.
    fn new_mapping(&mut self, inner: Inner, flow: Flow, now: Time) -> Result<NewMapping, DropReason> {
        self.table.may_map(inner, now)?;
        if self.table.is_full_of_mappings() && !self.make_room(true, now) {
            return Err(DropReason::TableFull);
        }
        let chosen = self.choose_external(inner, flow.remote);
        let external = chosen.ok_or_else(|| self.table.why_no_port(inner))?;
        let limit = self.behavior.mapping_lifetime.map_or(Time::NEVER, |lifetime| now + lifetime);
        // It lives by its sessions.
        let remote = self.table.key_of(flow.remote);
        Ok(NewMapping { inner, external, remote, is_static: false, expires: now, limit })
    }

    // ---- Room ----

    /// Makes room in a full table for a session of `inner`, where that is the behaviour. Nobody has to go for a mapping
    /// that its subscriber may not have.
    #[cold]
    fn make_room_for(&mut self, inner: Inner, flow: Flow, now: Time) -> Result<(), DropReason> {
        if self.standing_mapping(inner, flow.remote, now).is_none() {
            self.table.may_map(inner, now)?;
        }
        if self.make_room(false, now) { Ok(()) } else { Err(DropReason::TableFull) }
    }

    /// Drops a flow for a new one, where that is the behaviour: false when there is none to drop.
    #[cold]
    fn make_room(&mut self, for_mapping: bool, now: Time) -> bool {
        let victim = self.table.victim(self.behavior.pressure, for_mapping, &mut self.rng);
        if let Some(victim) = victim {
            self.table.displace(victim, for_mapping, now, &mut self.reports);
        }
        victim.is_some()
    }
}
