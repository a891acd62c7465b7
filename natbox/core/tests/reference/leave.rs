//! Packets from inside: the session, the mapping that it goes by, and room for both.

use super::{
    common::{ACK, FIN, RST, SYN},
    model::{Chosen, Exchange, Flow, Mapped, Model, opens},
    tcp::Seen,
};
use natbox_core::{
    DropReason, Endpoint,
    Protocol::{Icmp, Tcp, Udp},
    Time,
    behavior::*,
};

impl Model {
    /// A packet leaves; returns the endpoint that it seems to come from.
    pub fn leave(
        &mut self,
        flow: Flow,
        flags: u8,
        chosen: &Chosen<'_>,
        now: Time,
    ) -> Result<Endpoint, DropReason> {
        if let Some(at) = self.known_out(flow) {
            return Ok(self.leave_known(at, flags, now));
        }
        let left = self.leave_new(flow, flags, chosen, now);
        left.inspect_err(|why| self.turn_away(*why, flow, flags))
    }

    fn leave_known(&mut self, at: usize, flags: u8, now: Time) -> Endpoint {
        let (Exchange { external, protocol, replied, brief, remote, .. }, behavior) =
            (self.sessions[at], &self.behavior);
        let timeout = match protocol {
            Tcp => None,
            Icmp => Some(behavior.icmp_timeout),
            Udp if behavior.refresh == Refresh::Inbound => None,
            Udp if brief => behavior.udp_port_timeouts.get(remote.port),
            Udp if replied => Some(behavior.udp_replied_timeout),
            Udp => Some(behavior.udp_timeout),
        };
        self.sessions[at].sent = true;
        match timeout {
            Some(timeout) => self.refresh(at, timeout, now),
            None if protocol == Tcp => self.hear(at, 0, flags, now),
            None => {}
        }
        external
    }

    fn leave_new(
        &mut self,
        flow: Flow,
        flags: u8,
        chosen: &Chosen<'_>,
        now: Time,
    ) -> Result<Endpoint, DropReason> {
        let (protocol, inside, remote) = flow;
        let own = self.behavior.udp_port_timeouts.get(remote.port).filter(|_| protocol == Udp);
        let mut seen = Seen::default();
        let timeout = match protocol {
            Udp => own.unwrap_or(self.behavior.udp_timeout),
            Icmp => self.behavior.icmp_timeout,
            Tcp if opens(flags) => {
                seen.syn[0] = true;
                self.behavior.tcp_opening_timeout
            }
            Tcp if self.behavior.stray_tcp == StrayTcp::Forward && flags & (SYN | ACK | FIN | RST) == ACK => {
                seen.picked_up = true;
                self.behavior.tcp_opening_timeout
            }
            Tcp => return Err(DropReason::StrayTcp),
        };
        self.may_begin(inside, now)?;
        if self.sessions.len() >= self.limits.sessions {
            if self.standing(flow).is_none() {
                self.may_map(inside, now)?;
            }
            self.make_room(false, chosen, now)?;
        }
        let mapping = self.mapping_for(flow, chosen, now)?;
        let Mapped { number, external, limit, .. } = mapping;
        let expires = (now + timeout).min(limit);
        let (replied, sent, brief) = (false, true, own.is_some());
        self.sessions.push(Exchange {
            mapping: number,
            protocol,
            inside,
            external,
            remote,
            replied,
            brief,
            sent,
            seen,
            expires,
        });
        self.spend(1, inside, now);
        self.picked_up += u64::from(seen.picked_up);
        if protocol == Tcp {
            self.is_expected(external, remote);
        }
        Ok(external)
    }

    fn mapping_for(&mut self, flow: Flow, chosen: &Chosen<'_>, now: Time) -> Result<Mapped, DropReason> {
        let (protocol, inside, remote) = flow;
        if let Some(mapping) = self.standing(flow) {
            if self.known_in((protocol, mapping.external, remote)).is_none() {
                return Ok(mapping);
            }
            // Another one's flow has this external port towards this remote.
            if mapping.is_static || self.sessions.iter().any(|session| session.mapping == mapping.number) {
                return Err(DropReason::PortsExhausted);
            }
            self.end(mapping.number, now);
        }
        self.may_map(inside, now)?;
        if self.mappings.len() >= self.limits.mappings {
            self.make_room(true, chosen, now)?;
        }
        let external = self.choose(protocol, inside, Some(remote), chosen.external);
        let external = external.ok_or(match self.has_all_blocks(flow) {
            true => DropReason::SubscriberMappings,
            false => DropReason::PortsExhausted,
        })?;
        let key = self.key(protocol, remote);
        self.spend(0, inside, now);
        let limit = self.behavior.mapping_lifetime.map_or(Time::NEVER, |lifetime| now + lifetime);
        Ok(self.add(Mapped {
            number: 0,
            protocol,
            inside,
            external,
            key,
            is_static: false,
            expires: now,
            limit,
        }))
    }

    pub fn add(&mut self, mapping: Mapped) -> Mapped {
        self.made += 1;
        self.shared += u64::from(!self.holders(mapping.protocol, mapping.external).is_empty());
        let mapping = Mapped { number: self.made, ..mapping };
        self.mappings.push(mapping);
        self.take_block(mapping.inside, mapping.external);
        mapping
    }

    /// In a full table, one flow goes for another where that is the behaviour.
    fn make_room(&mut self, for_mapping: bool, chosen: &Chosen<'_>, now: Time) -> Result<(), DropReason> {
        let count = |number| self.sessions.iter().filter(|session| session.mapping == number).count();
        let may_go = |session: &&Exchange| {
            !self.mapping(session.mapping).is_static
                && match self.behavior.pressure {
                    Pressure::Refuse => false,
                    Pressure::DropUnanswered => {
                        session.is_unanswered() && (!for_mapping || count(session.mapping) == 1)
                    }
                    Pressure::DropOldest => true,
                }
        };
        let who: Vec<&Exchange> = self.sessions.iter().filter(may_go).collect();
        let oldest = who.iter().map(|session| session.expires).min().ok_or(DropReason::TableFull)?;
        // Of one mapping's that end with it any may be the one. Of two of one age that have gone, the first to go left its
        // mapping in the way of the second.
        let has_gone = |session: &&Exchange| !(chosen.has)(session);
        let is_over = |number| self.sessions.iter().filter(|s| s.mapping == number).all(|s| has_gone(&s));
        let gone = who.into_iter().filter(|session| session.expires == oldest && has_gone(session));
        let victim = gone.min_by_key(|session| is_over(session.mapping) != for_mapping);
        let victim = victim.expect("one of them has gone");
        let (Exchange { mapping, protocol, inside, remote, .. }, is_last) =
            (*victim, count(victim.mapping) == 1);
        self.displaced += 1;
        if for_mapping || is_last {
            self.end(mapping, now);
        } else {
            self.sessions.remove(self.known_out((protocol, inside, remote)).unwrap());
        }
        Ok(())
    }
}
