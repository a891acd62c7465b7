//! What a flow from inside begins with: its session, a mapping that stands or a new one, and room for both.

use crate::{
    DropReason, Ended, Event, Nat, Protocol, Remote, Time,
    behavior::{Mapping, StrayTcp},
    packed::{Inner, Outer},
    table::NewMapping,
    tcp::State,
    translate::Flow,
    transport::{Parsed, Transport},
};

impl Nat {
    /// A new session leaves, by a mapping that stands or by a new one.
    pub(crate) fn leave_new(
        &mut self,
        inner: Inner,
        parsed: &Parsed,
        flow: Flow,
        now: Time,
    ) -> Result<Outer, DropReason> {
        let (state, timeout) = match parsed.transport {
            Transport::Udp => match self.behavior.udp_port_timeouts.get(parsed.destination.port) {
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
        let mapping = room.and_then(|()| self.mapping_for(inner, flow, now));
        let result = mapping.and_then(|mapping| {
            let external = self.table.mapping(mapping).external;
            let expires = now + timeout;
            let session =
                self.table.insert_session(mapping, flow.remote, state, expires, now, &mut self.reports);
            let session = session.ok_or(DropReason::TableFull)?;
            self.table.permit(session);
            if flow.protocol == Protocol::Tcp {
                self.pending.cancel(external, flow.remote);
            }
            Ok(external)
        });
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

    /// The mapping that a new session of `inside` towards `flow.remote` goes by (RFC 4787 §4.1).
    fn mapping_for(&mut self, inner: Inner, flow: Flow, now: Time) -> Result<u32, DropReason> {
        let Flow { remote, .. } = flow;
        let (key, found) = self.standing_mapping(inner, flow, now);
        if let Some(slot) = found {
            // Where overloading is on, or was, another mapping on this endpoint may have this remote already.
            let external = self.table.mapping(slot).external;
            if self.table.find_in(external, remote, now, &mut self.reports).is_none() {
                return Ok(slot);
            }
            if self.table.is_in_use(slot) {
                return Err(DropReason::PortsExhausted);
            }
            // Nobody would miss the old one.
            self.table.end_mapping(slot, Ended::Expired, now, &mut self.reports);
        }
        self.table.may_map(inner, now)?;
        if self.table.is_full_of_mappings() && !self.make_room(true, now) {
            return Err(DropReason::TableFull);
        }
        let chosen = self.choose_external(inner, remote);
        let external = chosen.ok_or_else(|| self.table.why_no_port(inner))?;
        self.table.touch_external(external, remote);
        let limit = self.behavior.mapping_lifetime.map_or(Time::NEVER, |lifetime| now + lifetime);
        // It lives by its sessions, of which the first follows at once.
        let new = NewMapping { inner, external, remote: key, is_static: false, expires: now, limit };
        self.table.insert_mapping(new, now, &mut self.reports).ok_or(DropReason::TableFull)
    }

    /// What a mapping for `flow` is for, and the one that there is.
    fn standing_mapping(&mut self, inner: Inner, flow: Flow, now: Time) -> (Outer, Option<u32>) {
        let Flow { protocol, remote, .. } = flow;
        let anybody = Outer::anybody(protocol);
        let key = match self.behavior.mapping_of(protocol) {
            Mapping::EndpointIndependent => anybody,
            Mapping::AddressDependent => remote.any_port(),
            Mapping::AddressAndPortDependent => remote,
        };
        let mut found = self.table.find_mapping(inner, key, now, &mut self.reports);
        if found.is_none() && key != anybody && self.table.statics > 0 {
            let static_one = self.table.find_mapping(inner, anybody, now, &mut self.reports);
            found = static_one.filter(|slot| self.table.mapping(*slot).is_static);
        }
        (key, found)
    }

    // ---- Room ----

    /// Makes room in a full table for a session of `inner`, where that is the behaviour. Nobody has to go for a mapping
    /// that its subscriber may not have.
    #[cold]
    fn make_room_for(&mut self, inner: Inner, flow: Flow, now: Time) -> Result<(), DropReason> {
        let (_, standing) = self.standing_mapping(inner, flow, now);
        if standing.is_none() {
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
