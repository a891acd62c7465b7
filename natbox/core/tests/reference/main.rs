//! A million random operations on the engine and on a NAT that is slow and obviously right: lists without an index, written
//! from the RFCs' words. UDP, TCP and ICMP queries, every pair of mapping and filtering, forwards, flushes, expiry and full
//! tables; both must agree on every packet and on how much they remember. `NATBOX_MODEL_SEED=N` plays one run again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "a test is replayed by a variable of the environment")]

#[path = "../common/mod.rs"]
mod common;
mod run;

use common::*;
use natbox_core::{
    Behavior, Config, DropReason, Endpoint, Inside, Limits, MappingRequest,
    Protocol::{self, Icmp, Tcp, Udp},
    Selection, Time,
    behavior::*,
};

const RUNS: u64 = 2500;
const OPERATIONS: usize = 400;
const REPLAY: &str = "NATBOX_MODEL_SEED";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a connection has seen: SYNs and FINs of the inside and of the outside, and a reset.
#[derive(Clone, Copy, Default)]
struct Seen {
    syn: [bool; 2],
    fin: [bool; 2],
    reset: bool,
}

impl Seen {
    fn is_open(self) -> bool {
        self.syn == [true, true] && !self.reset
    }

    fn is_over(self) -> bool {
        self.reset || self.fin == [true, true]
    }

    /// A segment from the inside (0) or the outside (1).
    fn hear(&mut self, from: usize, flags: u8) {
        let [syn, fin, reset, ack] = [SYN, FIN, RST, ACK].map(|bit| flags & bit != 0);
        if self.is_over() && syn && !ack && !reset {
            // The same ports again.
            *self = Seen::default();
            self.syn[from] = true;
        } else if reset {
            self.reset = true;
        } else if self.reset {
            // It was forged: the inside still speaks.
            if from == 0 {
                *self = Seen { syn: [true, true], ..Seen::default() };
            }
        } else if self.is_open() {
            self.fin[from] |= fin;
        } else {
            self.syn[from] |= syn;
        }
    }
}

struct Mapped {
    protocol: Protocol,
    inside: Endpoint,
    external: Endpoint,
    /// Which remotes it is for, by the mapping behaviour.
    key: Option<(std::net::IpAddr, Option<u16>)>,
    is_static: bool,
    expires: Time,
    limit: Time,
}

struct Exchange {
    protocol: Protocol,
    inside: Endpoint,
    external: Endpoint,
    remote: Endpoint,
    replied: bool,
    /// Something has gone out: the remote may answer.
    sent: bool,
    seen: Seen,
    expires: Time,
}

struct Model {
    behavior: Behavior,
    limits: Limits,
    mappings: Vec<Mapped>,
    sessions: Vec<Exchange>,
}

impl Model {
    fn forget(&mut self, now: Time) {
        self.sessions.retain(|session| session.expires > now);
        let sessions = &self.sessions;
        let in_use = |mapping: &Mapped| {
            sessions.iter().any(|s| (s.protocol, s.external) == (mapping.protocol, mapping.external))
        };
        self.mappings.retain(|mapping| mapping.expires > now || in_use(mapping));
    }

    fn at(&self, protocol: Protocol, external: Endpoint) -> Option<usize> {
        self.mappings.iter().position(|m| (m.protocol, m.external) == (protocol, external))
    }

    fn key(&self, remote: Endpoint) -> Option<(std::net::IpAddr, Option<u16>)> {
        match self.behavior.mapping {
            Mapping::EndpointIndependent => None,
            Mapping::AddressDependent => Some((remote.addr, None)),
            Mapping::AddressAndPortDependent => Some((remote.addr, Some(remote.port))),
        }
    }

    fn tcp_timeout(&self, seen: Seen) -> std::time::Duration {
        match seen {
            Seen { reset: true, .. } => self.behavior.tcp_reset_timeout,
            seen if seen.is_over() => self.behavior.tcp_closing_timeout,
            seen if seen.is_open() => self.behavior.tcp_established_timeout,
            _ => self.behavior.tcp_opening_timeout,
        }
    }

    /// A segment of a known connection, and what it does to the timer.
    fn hear(&mut self, at: usize, from: usize, flags: u8, limit: Time, now: Time) {
        let before = self.sessions[at].seen;
        self.sessions[at].seen.hear(from, flags);
        let after = self.sessions[at].seen;
        // What is over is not kept alive by more of the same (RFC 7857 §2.2).
        let same_end = before.reset == after.reset && before.is_over() && after.is_over();
        if !same_end {
            self.sessions[at].expires = (now + self.tcp_timeout(after)).min(limit);
        }
    }

    /// A packet leaves; `got` is the endpoint that the engine has chosen, in case a new one is needed.
    fn leave(
        &mut self,
        (protocol, inside, remote): (Protocol, Endpoint, Endpoint),
        flags: u8,
        got: Option<Endpoint>,
        now: Time,
    ) -> Result<Endpoint, DropReason> {
        let is_it = |s: &Exchange| (s.protocol, s.inside, s.remote) == (protocol, inside, remote);
        if let Some(at) = self.sessions.iter().position(is_it) {
            let external = self.sessions[at].external;
            let limit = self.mappings[self.at(protocol, external).unwrap()].limit;
            let session = &mut self.sessions[at];
            session.sent = true;
            match protocol {
                Tcp => self.hear(at, 0, flags, limit, now),
                Icmp => session.expires = (now + self.behavior.icmp_timeout).min(limit),
                Udp if self.behavior.refresh == Refresh::Inbound => {}
                Udp if session.replied => {
                    session.expires = (now + self.behavior.udp_replied_timeout).min(limit);
                }
                Udp => session.expires = (now + self.behavior.udp_timeout).min(limit),
            }
            return Ok(external);
        }
        let mut seen = Seen::default();
        let timeout = match protocol {
            Udp => self.behavior.udp_timeout,
            Icmp => self.behavior.icmp_timeout,
            Tcp if flags & (SYN | ACK | RST) == SYN => {
                seen.syn[0] = true;
                self.behavior.tcp_opening_timeout
            }
            Tcp => return Err(DropReason::StrayTcp),
        };
        if self.sessions.len() >= self.limits.sessions {
            return Err(DropReason::TableFull);
        }
        let key = self.key(remote);
        let its = |m: &&Mapped| (m.protocol, m.inside) == (protocol, inside);
        let found = self.mappings.iter().filter(its).find(|m| m.key == key);
        let found = found.or_else(|| self.mappings.iter().filter(its).find(|m| m.is_static));
        let external = match found {
            Some(mapping) => mapping.external,
            None if self.mappings.len() >= self.limits.mappings => return Err(DropReason::TableFull),
            None => {
                let external = got.expect("there are ports enough");
                assert_eq!(self.at(protocol, external), None, "{external} is in use");
                let limit = self.behavior.mapping_lifetime.map_or(Time::NEVER, |lifetime| now + lifetime);
                let mapped =
                    Mapped { protocol, inside, external, key, is_static: false, expires: now, limit };
                self.mappings.push(mapped);
                external
            }
        };
        let limit = self.mappings[self.at(protocol, external).unwrap()].limit;
        let expires = (now + timeout).min(limit);
        let (replied, sent) = (false, true);
        self.sessions.push(Exchange { protocol, inside, external, remote, replied, sent, seen, expires });
        Ok(external)
    }

    /// Who has been sent to, as far as the filter remembers it for this mapping.
    fn admits(&self, mapping: &Mapped, remote: Endpoint) -> bool {
        let any = self.behavior.filter_protocol == FilterProtocol::Any && mapping.protocol != Icmp;
        let counts = |s: &&Exchange| {
            let same_protocol = s.protocol == mapping.protocol || any && s.protocol != Icmp;
            let same_place = match self.behavior.filter_scope {
                FilterScope::Mapping => s.external == mapping.external,
                FilterScope::Endpoint => s.inside == mapping.inside,
            };
            s.sent && same_protocol && same_place
        };
        let mut sent_to = self.sessions.iter().filter(counts).map(|session| session.remote);
        mapping.is_static
            || match self.behavior.filtering {
                Filtering::EndpointIndependent => true,
                Filtering::AddressDependent => sent_to.any(|other| other.addr == remote.addr),
                Filtering::AddressAndPortDependent => sent_to.any(|other| other == remote),
            }
    }

    /// A packet comes in: to whom?
    fn enter(
        &mut self,
        (protocol, external, remote): (Protocol, Endpoint, Endpoint),
        flags: u8,
        now: Time,
    ) -> Result<Endpoint, DropReason> {
        let opens = protocol == Tcp && flags & (SYN | ACK | RST) == SYN;
        let refused = |why| Err(if opens { DropReason::UnsolicitedSyn } else { why });
        let Some(at) = self.at(protocol, external) else { return refused(DropReason::NoMapping) };
        let (inside, limit) = (self.mappings[at].inside, self.mappings[at].limit);
        let is_it = |s: &Exchange| (s.protocol, s.external, s.remote) == (protocol, external, remote);
        if let Some(known) = self.sessions.iter().position(is_it) {
            if protocol == Tcp {
                self.hear(known, 1, flags, limit, now);
            } else {
                let session = &mut self.sessions[known];
                session.replied = true;
                if protocol == Udp && self.behavior.refresh != Refresh::Outbound {
                    session.expires = (now + self.behavior.udp_replied_timeout).min(limit);
                }
            }
            return Ok(inside);
        }
        if !self.admits(&self.mappings[at], remote) {
            return refused(DropReason::Filtered);
        }
        match protocol {
            Tcp if !opens => return Err(DropReason::StrayTcp),
            Tcp => {
                // One connection with a remote: another one by another mapping must be over.
                let other = self
                    .sessions
                    .iter()
                    .position(|s| (s.protocol, s.inside, s.remote) == (Tcp, inside, remote));
                if let Some(other) = other {
                    if !self.sessions[other].seen.is_over() {
                        return Err(DropReason::StrayTcp);
                    }
                    self.sessions.remove(other);
                    self.forget(now);
                }
                if self.sessions.len() >= self.limits.sessions {
                    return Err(DropReason::TableFull);
                }
                let seen = Seen { syn: [false, true], ..Seen::default() };
                let expires = (now + self.behavior.tcp_opening_timeout).min(limit);
                let (replied, sent) = (false, false);
                self.sessions.push(Exchange {
                    protocol,
                    inside,
                    external,
                    remote,
                    replied,
                    sent,
                    seen,
                    expires,
                });
            }
            Udp if self.behavior.refresh != Refresh::Outbound && !self.mappings[at].is_static => {
                let mapping = &mut self.mappings[at];
                mapping.expires = mapping.expires.max((now + self.behavior.udp_timeout).min(limit));
            }
            _ => {}
        }
        Ok(inside)
    }
}
