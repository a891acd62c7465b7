//! Packets from outside, and from neighbours: whose they are, and who is let in.

use super::{
    model::{Exchange, Mapped, Model, Stray, Told, Waiting, Way, opens},
    tcp::Seen,
};
use natbox_core::{
    Behavior, DropReason, Endpoint,
    Protocol::{Icmp, Tcp, Udp},
    Side, Time,
    behavior::*,
};
use std::time::Duration;

impl Model {
    /// A packet comes from outside: to whom?
    pub fn arrive(&mut self, way: Way, flags: u8, now: Time) -> Result<Endpoint, DropReason> {
        let (protocol, external, remote) = way;
        let entered = self.enter(way, flags, now);
        let refused = matches!(entered, Err(DropReason::NoMapping | DropReason::Filtered));
        if !(refused && protocol == Tcp && opens(flags)) {
            return entered;
        }
        match self.behavior.unsolicited_syn {
            UnsolicitedSyn::Drop => {}
            UnsolicitedSyn::Reset => self.tell(Side::Outside, remote.addr, Told::Reset),
            UnsolicitedSyn::Wait => {
                if !self.waiting.iter().any(|syn| (syn.external, syn.remote) == (external, remote)) {
                    self.waiting.push(Waiting { due: now + Duration::from_secs(6), external, remote });
                }
            }
        }
        Err(DropReason::UnsolicitedSyn)
    }

    /// A packet enters, from outside or from a neighbour.
    pub fn enter(&mut self, way: Way, flags: u8, now: Time) -> Result<Endpoint, DropReason> {
        let (protocol, external, remote) = way;
        if let Some(at) = self.known_in(way) {
            let session = &mut self.sessions[at];
            let (inside, brief) = (session.inside, session.brief);
            session.replied = true;
            match protocol {
                Tcp => self.hear(at, 1, flags, now),
                Udp if self.behavior.refresh != Refresh::Outbound => {
                    let own = self.behavior.udp_port_timeouts.get(remote.port).filter(|_| brief);
                    self.refresh(at, own.unwrap_or(self.behavior.udp_replied_timeout), now);
                }
                _ => {}
            }
            return Ok(inside);
        }
        let holders = self.holders(protocol, external);
        let Some(mapping) = holders.iter().find(|mapping| self.admits(mapping, remote)).copied() else {
            self.leave_behind(way, flags, now);
            return Err(if holders.is_empty() { DropReason::NoMapping } else { DropReason::Filtered });
        };
        match protocol {
            Tcp if !opens(flags) => return Err(DropReason::StrayTcp),
            Tcp => self.enter_syn(mapping, remote, now)?,
            Udp if self.behavior.refresh != Refresh::Outbound && !mapping.is_static => {
                let until = (now + self.behavior.udp_timeout).min(mapping.limit);
                let its = self.mappings.iter_mut().filter(|other| other.number == mapping.number);
                its.for_each(|mapping| mapping.expires = mapping.expires.max(until));
            }
            _ => {}
        }
        Ok(mapping.inside)
    }

    fn enter_syn(&mut self, mapping: Mapped, remote: Endpoint, now: Time) -> Result<(), DropReason> {
        let Mapped { number, inside, external, limit, .. } = mapping;
        // One connection with a remote: another one by another mapping must be over.
        if let Some(other) = self.known_out((Tcp, inside, remote)) {
            if !self.sessions[other].seen.is_over() {
                return Err(DropReason::StrayTcp);
            }
            self.end_session(other, now);
        }
        self.has_room(inside)?;
        // An eighth of the table is kept from those outside.
        if self.sessions.len() >= self.limits.sessions - self.limits.sessions / 8 {
            return Err(DropReason::TableFull);
        }
        let seen = Seen { syn: [false, true], ..Seen::default() };
        let expires = (now + self.behavior.tcp_opening_timeout).min(limit);
        let (replied, sent, brief) = (false, false, false);
        self.sessions.push(Exchange {
            mapping: number,
            protocol: Tcp,
            inside,
            external,
            remote,
            replied,
            brief,
            sent,
            seen,
            expires,
        });
        self.is_expected(external, remote);
        Ok(())
    }

    /// Who has been sent to, as far as the filter remembers it for this mapping.
    fn admits(&self, mapping: &Mapped, remote: Endpoint) -> bool {
        let Behavior { filter_scope, filter_protocol, .. } = self.behavior;
        let filtering = self.behavior.filtering_of(mapping.protocol);
        let is_one = self.behavior.filtering_of(Tcp) == self.behavior.filtering_of(Udp);
        let any = filter_protocol == FilterProtocol::Any && is_one && mapping.protocol != Icmp;
        let counts = |s: &&Exchange| {
            let same_protocol = s.protocol == mapping.protocol || any && s.protocol != Icmp;
            let same_place = match filter_scope {
                // What mappings of two transports have in common is the external port.
                FilterScope::Mapping if any => s.external == mapping.external,
                FilterScope::Mapping => s.mapping == mapping.number,
                FilterScope::Endpoint => s.inside == mapping.inside,
            };
            s.sent && same_protocol && same_place
        };
        let mut sent_to = self.sessions.iter().filter(counts).map(|session| session.remote);
        mapping.is_static
            || match filtering {
                Filtering::EndpointIndependent => true,
                Filtering::AddressDependent => sent_to.any(|other| other.addr == remote.addr),
                Filtering::AddressAndPortDependent => sent_to.any(|other| other == remote),
            }
    }

    /// What nothing admits may take its tuple.
    fn leave_behind(&mut self, way: Way, flags: u8, now: Time) {
        let (protocol, external, remote) = way;
        let lasts = match protocol {
            _ if self.behavior.unsolicited == Unsolicited::Forget => return,
            Udp => self.behavior.udp_timeout,
            // One that is refused is over at once.
            Tcp if opens(flags) && self.behavior.unsolicited_syn != UnsolicitedSyn::Reset => {
                self.behavior.tcp_opening_timeout
            }
            _ => return,
        };
        let is_it = |s: &Stray| (s.protocol, s.external, s.remote) == way;
        self.strays.retain(|stray| !is_it(stray));
        self.strays.push(Stray { protocol, external, remote, until: now + lasts });
    }
}
