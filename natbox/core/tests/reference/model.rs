//! The reference: what it remembers, and the way of a packet.

use super::{
    carrier::{Block, Debt, Often, Resting},
    common::{ACK, RST, SYN, TUN},
    tcp::Seen,
};
use natbox_core::{
    Behavior, DropReason, Endpoint, Limits,
    Protocol::{self, Tcp},
    Side, Time,
    behavior::*,
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// A protocol, the inside endpoint, and the remote one.
pub type Flow = (Protocol, Endpoint, Endpoint);
/// A protocol, the external endpoint, and the remote one.
pub type Way = (Protocol, Endpoint, Endpoint);

/// Mappings on one external endpoint that a packet is offered to, the newest first.
const OFFERED: usize = 16;

#[derive(Clone, Copy)]
pub struct Mapped {
    pub number: u64,
    pub protocol: Protocol,
    pub inside: Endpoint,
    pub external: Endpoint,
    /// Which remotes it is for, by the mapping behaviour.
    pub key: Option<(IpAddr, Option<u16>)>,
    pub is_static: bool,
    pub expires: Time,
    pub limit: Time,
}

#[derive(Clone, Copy)]
pub struct Exchange {
    /// The number of its mapping.
    pub mapping: u64,
    pub protocol: Protocol,
    pub inside: Endpoint,
    pub external: Endpoint,
    pub remote: Endpoint,
    pub replied: bool,
    /// The remote port has a lifetime of its own.
    pub brief: bool,
    /// Something has gone out: the remote may answer.
    pub sent: bool,
    pub seen: Seen,
    pub expires: Time,
}

impl Exchange {
    /// Only one side has spoken, or a reset has.
    pub fn is_unanswered(&self) -> bool {
        match self.protocol {
            Tcp => self.seen.is_unanswered() || self.seen.reset,
            _ => !self.replied && !self.brief,
        }
    }
}

/// A tuple that a packet has taken which nothing admitted.
pub struct Stray {
    pub protocol: Protocol,
    pub external: Endpoint,
    pub remote: Endpoint,
    pub until: Time,
}

/// A SYN that nothing admitted, and that is to be answered.
pub struct Waiting {
    pub due: Time,
    pub external: Endpoint,
    pub remote: Endpoint,
}

/// A packet of the NAT's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Reset,
    /// ICMP, its type and code.
    Error(u8, u8),
}

/// What the engine chose where chance decides.
pub struct Chosen<'a> {
    /// The external endpoint of the new flow, if it has got one.
    pub external: Option<Endpoint>,
    /// Whether it still has a session.
    pub has: &'a dyn Fn(&Exchange) -> bool,
}

pub struct Model {
    pub behavior: Behavior,
    pub limits: Limits,
    pub addresses: Vec<IpAddr>,
    /// The address that a host keeps where addresses are paired.
    pub paired: BTreeMap<IpAddr, IpAddr>,
    /// How often a subscriber may make a mapping, and begin a session.
    pub rates: [Option<Often>; 2],
    pub debts: BTreeMap<u32, [Debt; 2]>,
    /// In the order of their making.
    pub mappings: Vec<Mapped>,
    pub sessions: Vec<Exchange>,
    pub strays: Vec<Stray>,
    pub resting: Vec<Resting>,
    /// In the order of their giving.
    pub blocks: Vec<Block>,
    pub waiting: Vec<Waiting>,
    pub told: Vec<(Side, IpAddr, Told)>,
    /// Flows that went for others; mappings that were made.
    pub displaced: u64,
    pub made: u64,
    /// Mappings that shared an external endpoint; connections that a reset ended or that were picked up; ports that rested.
    pub shared: u64,
    pub reset: u64,
    pub picked_up: u64,
    pub rested: u64,
}

impl Model {
    pub fn new(behavior: Behavior, limits: Limits, rates: [Option<Often>; 2]) -> Model {
        Model {
            behavior,
            limits,
            addresses: Vec::new(),
            paired: BTreeMap::new(),
            rates,
            debts: BTreeMap::new(),
            mappings: Vec::new(),
            sessions: Vec::new(),
            strays: Vec::new(),
            resting: Vec::new(),
            blocks: Vec::new(),
            waiting: Vec::new(),
            told: Vec::new(),
            displaced: 0,
            made: 0,
            shared: 0,
            reset: 0,
            picked_up: 0,
            rested: 0,
        }
    }

    // ---- Time ----

    /// What is over by now is over.
    pub fn forget(&mut self, now: Time) {
        let end = |mapping: &Mapped| {
            let its = self.sessions.iter().filter(|session| session.mapping == mapping.number);
            its.map(|session| session.expires).fold(mapping.expires, Time::max)
        };
        let ends = self.mappings.iter().map(|mapping| (end(mapping), mapping.number));
        let mut over: Vec<(Time, u64)> = ends.filter(|(end, _)| *end <= now).collect();
        over.sort_unstable();
        over.into_iter().for_each(|(end, number)| self.end(number, end));
        self.sessions.retain(|session| session.expires > now);
        self.strays.retain(|stray| stray.until > now);
        self.resting.retain(|resting| resting.until > now);
        self.free_blocks();
        for i in (0..self.waiting.len()).rev() {
            if self.waiting[i].due <= now {
                let syn = self.waiting.remove(i);
                if !self.addresses.contains(&syn.external.addr) {
                    continue;
                }
                self.tell(Side::Outside, syn.remote.addr, Told::Error(3, 3));
            }
        }
    }

    /// A mapping ends, with its sessions.
    pub fn end(&mut self, number: u64, when: Time) {
        self.sessions.retain(|session| session.mapping != number);
        let at = self.mappings.iter().position(|mapping| mapping.number == number).unwrap();
        let mapping = self.mappings.remove(at);
        if self.holders(mapping.protocol, mapping.external).is_empty() {
            self.let_go(&mapping, when);
        }
        self.free_blocks();
    }

    /// A session ends, and with the last one the mapping, unless that lives on by itself.
    pub fn end_session(&mut self, at: usize, now: Time) {
        self.sessions.remove(at);
        self.forget(now);
    }

    /// A mapping is made static, or renewed as that.
    pub fn hold(&mut self, number: u64, until: Time) {
        let mapping = self.mappings.iter_mut().find(|mapping| mapping.number == number).unwrap();
        (mapping.is_static, mapping.expires, mapping.limit) = (true, until, until);
        let its = self.sessions.iter_mut().filter(|session| session.mapping == number);
        its.for_each(|session| session.expires = session.expires.min(until));
    }

    /// Other external addresses: what is on one that is gone ends.
    pub fn move_to(&mut self, addresses: Vec<IpAddr>, now: Time) {
        self.addresses = addresses;
        let is_gone = |mapping: &&Mapped| !self.addresses.contains(&mapping.external.addr);
        let gone: Vec<u64> = self.mappings.iter().filter(is_gone).map(|mapping| mapping.number).collect();
        gone.into_iter().for_each(|number| self.end(number, now));
        self.resting.retain(|resting| self.addresses.contains(&resting.external.addr));
        self.free_blocks();
    }

    // ---- What there is ----

    /// The mappings on an external endpoint that a packet is offered to.
    pub fn holders(&self, protocol: Protocol, external: Endpoint) -> Vec<Mapped> {
        let its = self.mappings.iter().rev().filter(|m| (m.protocol, m.external) == (protocol, external));
        its.take(OFFERED).copied().collect()
    }

    pub fn mapping(&self, number: u64) -> &Mapped {
        self.mappings.iter().find(|mapping| mapping.number == number).unwrap()
    }

    pub fn known_out(&self, flow: Flow) -> Option<usize> {
        self.sessions.iter().position(|s| (s.protocol, s.inside, s.remote) == flow)
    }

    pub fn known_in(&self, way: Way) -> Option<usize> {
        self.sessions.iter().position(|s| (s.protocol, s.external, s.remote) == way)
    }

    pub fn key(&self, protocol: Protocol, remote: Endpoint) -> Option<(IpAddr, Option<u16>)> {
        match self.behavior.mapping_of(protocol) {
            Mapping::EndpointIndependent => None,
            Mapping::AddressDependent => Some((remote.addr, None)),
            Mapping::AddressAndPortDependent => Some((remote.addr, Some(remote.port))),
        }
    }

    /// The mapping that stands for a flow.
    pub fn standing(&self, (protocol, inside, remote): Flow) -> Option<Mapped> {
        let key = self.key(protocol, remote);
        let mut its = self.mappings.iter().filter(|m| (m.protocol, m.inside) == (protocol, inside));
        let found = its.clone().find(|mapping| mapping.key == key);
        found.or_else(|| its.find(|mapping| mapping.is_static)).copied()
    }

    /// The mapping of an inside endpoint that is for every remote.
    pub fn standing_for_anybody(&self, protocol: Protocol, inside: Endpoint) -> Option<Mapped> {
        let is_it = |m: &&Mapped| (m.protocol, m.inside, m.key) == (protocol, inside, None);
        self.mappings.iter().find(is_it).copied()
    }

    /// Whether a packet from inside is of a known flow.
    pub fn knows(&self, flow: Flow) -> bool {
        self.known_out(flow).is_some()
    }

    // ---- Timers ----

    /// A segment of a known connection, and what it does to the timer.
    pub fn hear(&mut self, at: usize, from: usize, flags: u8, now: Time) {
        let before = self.sessions[at].seen;
        self.sessions[at].seen.hear(from, flags);
        let after = self.sessions[at].seen;
        // What is over is not kept alive by more of the same (RFC 7857 §2.2).
        let same_end = before.reset == after.reset && before.is_over() && after.is_over();
        if !same_end {
            self.refresh(at, after.timeout(&self.behavior), now);
        }
        if after.reset && !before.reset && before.ends_by_reset(self.behavior.tcp_reset) {
            self.reset += 1;
            self.end_session(at, now);
        }
    }

    pub fn refresh(&mut self, at: usize, timeout: Duration, now: Time) {
        let limit = self.mapping(self.sessions[at].mapping).limit;
        self.sessions[at].expires = (now + timeout).min(limit);
    }

    // ---- What senders are told ----

    pub fn tell(&mut self, side: Side, whom: IpAddr, what: Told) {
        let goes = match self.behavior.icmp_errors {
            _ if what == Told::Reset => true,
            IcmpErrors::Both => true,
            IcmpErrors::Inside => side != Side::Outside,
            IcmpErrors::Outside => side == Side::Outside,
            IcmpErrors::Off => false,
        };
        if goes {
            self.told.push((side, whom, what));
        }
    }

    /// A new flow may not leave.
    pub fn turn_away(&mut self, why: DropReason, (_, inside, _): Flow, flags: u8) {
        let what = match why {
            DropReason::Prohibited => Told::Error(3, 13),
            DropReason::StrayTcp if self.behavior.stray_tcp == StrayTcp::Reset && flags & RST == 0 => {
                Told::Reset
            }
            DropReason::StrayTcp => return,
            _ => match self.behavior.exhaustion {
                Exhaustion::Prohibited => Told::Error(3, 13),
                Exhaustion::HostUnreachable => Told::Error(3, 1),
                Exhaustion::Drop => return,
            },
        };
        self.tell(Side::Inside(TUN), inside.addr, what);
    }

    /// A connection between these has begun: a SYN that waits for its answer was a part of it.
    pub fn is_expected(&mut self, external: Endpoint, remote: Endpoint) {
        self.waiting.retain(|syn| (syn.external, syn.remote) != (external, remote));
    }
}

/// Whether a segment opens a connection.
pub fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN
}
