//! Which external endpoints a new mapping may get. Where chance decides, the engine's choice has to be one of them; where
//! nothing is left to chance, it has to be the one.

use super::model::{Flow, Model};
use natbox_core::{
    Behavior, Endpoint,
    Protocol::{self, Icmp},
    behavior::{Pooling, PortAssignment, PortClass},
};
use std::net::IpAddr;

/// A range of ports, or every other port of it.
#[derive(Clone, Copy)]
struct Ports {
    first: u16,
    last: u16,
    spacing: u16,
}

impl Ports {
    /// Those of a range that an inside port may become.
    fn new(behavior: &Behavior, protocol: Protocol, (low, high): (u16, u16), wanted: u16) -> Ports {
        let (from, to) = match (behavior.port_class, wanted) {
            _ if protocol == Icmp => (1, u16::MAX),
            (PortClass::Off, _) => (1, u16::MAX),
            (PortClass::WellKnown, ..1024) => (1, 1023),
            (PortClass::Linux, ..512) => (1, 511),
            (PortClass::Linux, ..1024) => (512, 1023),
            _ => (1024, u16::MAX),
        };
        // A class without a port in the range is given up.
        let (mut first, last) = match (low.max(from), high.min(to)) {
            (first, last) if first <= last => (first, last),
            _ => (low, high),
        };
        if behavior.port_parity && (first ^ wanted) % 2 == 1 && first < last {
            first += 1;
        }
        Ports { first, last, spacing: if behavior.port_parity { 2 } else { 1 } }
    }

    fn all(self) -> impl Iterator<Item = u16> {
        (self.first..=self.last).step_by(self.spacing.into())
    }

    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port) && (port - self.first).is_multiple_of(self.spacing)
    }
}

/// What a new mapping may get on one address.
enum Pick {
    One(u16),
    AnyOf(Vec<Ports>),
}

impl Model {
    /// The engine has chosen `got` for a mapping towards `remote` (anybody, for one that is made by name): is that right?
    pub fn choose(
        &self,
        protocol: Protocol,
        inside: Endpoint,
        remote: Option<Endpoint>,
        got: Option<Endpoint>,
    ) -> Option<Endpoint> {
        let free = |endpoint| self.is_free(protocol, endpoint, remote);
        let is_right = |order: &Vec<IpAddr>| {
            let mut picks = order.iter().map(|addr| (*addr, self.pick(protocol, inside, *addr, &free)));
            match picks.find_map(|(addr, pick)| Some((addr, pick?))) {
                None => got.is_none(),
                Some((addr, Pick::One(port))) => got == Some(Endpoint::new(addr, port)),
                Some((addr, Pick::AnyOf(ports))) => got.is_some_and(|got| {
                    got.addr == addr && ports.iter().any(|ports| ports.contains(got.port)) && free(got)
                }),
            }
        };
        let orders = self.addresses_of(inside, remote.is_none());
        assert!(orders.iter().any(is_right), "{got:?} for a mapping of {protocol} {inside} → {remote:?}");
        got
    }

    /// The orders in which the external addresses may be asked.
    fn addresses_of(&self, inside: Endpoint, by_name: bool) -> Vec<Vec<IpAddr>> {
        let others = |first: IpAddr| {
            [vec![first], self.addresses.iter().copied().filter(|a| *a != first).collect()].concat()
        };
        let home = self.blocks.iter().rev().find(|block| block.owner == self.subscriber(inside));
        match (self.behavior.pooling, home) {
            (Pooling::Paired, _) => vec![vec![self.paired[&inside.addr]]],
            _ if by_name => vec![vec![self.paired[&inside.addr]]],
            (Pooling::Arbitrary, Some(block)) => vec![others(block.addr)],
            (Pooling::Arbitrary, None) => self.addresses.iter().copied().map(others).collect(),
        }
    }

    fn is_free(&self, protocol: Protocol, external: Endpoint, remote: Option<Endpoint>) -> bool {
        let mut holders = self.mappings.iter().filter(|m| (m.protocol, m.external) == (protocol, external));
        let shares = |remote| {
            let is_it = |s: &&super::model::Exchange| {
                (s.protocol, s.external, s.remote) == (protocol, external, remote)
            };
            self.behavior.overloading && !self.sessions.iter().any(|s| is_it(&s))
        };
        let is_strays = remote.is_some_and(|remote| {
            self.strays
                .iter()
                .any(|stray| (stray.protocol, stray.external, stray.remote) == (protocol, external, remote))
        });
        let rests = self.resting.iter().any(|r| (r.protocol, r.external) == (protocol, external));
        !is_strays && !rests && holders.all(|mapping| !mapping.is_static && remote.is_some_and(shares))
    }

    fn pick(
        &self,
        protocol: Protocol,
        inside: Endpoint,
        addr: IpAddr,
        free: &dyn Fn(Endpoint) -> bool,
    ) -> Option<Pick> {
        let Behavior { port_range, port_block, subscriber_blocks, ports, .. } = self.behavior;
        let range = match protocol {
            Icmp if port_block.is_none() => (1, u16::MAX),
            _ => (port_range.first(), port_range.last()),
        };
        let is_free = |port| free(Endpoint::new(addr, port));
        let among = |(first, last): (u16, u16)| {
            let (first, last) = (first.max(range.0), last.min(range.1));
            let ports =
                (first <= last).then(|| Ports::new(&self.behavior, protocol, (first, last), inside.port));
            ports.and_then(|ports| self.among(ports, inside.port, &is_free))
        };
        let who = self.subscriber(inside);
        if ports == PortAssignment::Linux
            && let Some(last) = self.newest(protocol, inside).filter(|last| last.addr == addr)
            && (range.0..=range.1).contains(&last.port)
            && is_free(last.port)
            && port_block.is_none_or(|size| {
                self.blocks.iter().any(|b| (b.addr, b.number, b.owner) == (addr, last.port / size, who))
            })
        {
            return Some(Pick::One(last.port));
        }
        let Some(size) = port_block else { return among((1, u16::MAX)) };
        let part = |number: u16| ((number * size).max(1), number * size + (size - 1));
        let own = self.blocks.iter().rev().filter(|block| block.owner == who);
        let mut own_here = own.clone().filter(|block| block.addr == addr);
        if let Some(pick) = own_here.find_map(|block| among(part(block.number))) {
            return Some(pick);
        }
        if own.count() >= subscriber_blocks.into() {
            return None;
        }
        let is_given = |number| self.blocks.iter().any(|block| (block.addr, block.number) == (addr, number));
        let new = (range.0 / size..=range.1 / size).filter(|number| !is_given(*number));
        let picks = new.filter_map(|number| among(part(number))).map(|pick| match pick {
            Pick::One(port) => vec![Ports { first: port, last: port, spacing: 1 }],
            Pick::AnyOf(ports) => ports,
        });
        let any: Vec<Ports> = picks.flatten().collect();
        (!any.is_empty()).then_some(Pick::AnyOf(any))
    }

    fn among(&self, ports: Ports, wanted: u16, is_free: &dyn Fn(u16) -> bool) -> Option<Pick> {
        let assignment = self.behavior.ports;
        let random = matches!(assignment, PortAssignment::Random | PortAssignment::Sequential);
        if !random && ports.contains(wanted) && is_free(wanted) {
            return Some(Pick::One(wanted));
        }
        if assignment == PortAssignment::Preserve {
            let next = ports.all().filter(|port| *port > wanted).find(|port| is_free(*port));
            return next.or_else(|| ports.all().find(|port| is_free(*port))).map(Pick::One);
        }
        ports.all().any(is_free).then(|| Pick::AnyOf(vec![ports]))
    }

    /// What the newest mapping of an inside endpoint got, where one of its mappings did not get its own port.
    fn newest(&self, protocol: Protocol, inside: Endpoint) -> Option<Endpoint> {
        let mut its = self.mappings.iter().filter(|m| (m.protocol, m.inside) == (protocol, inside));
        let is_strange = its.clone().any(|mapping| mapping.external.port != inside.port);
        its.next_back().filter(|_| is_strange).map(|mapping| mapping.external)
    }

    /// Why there was no port.
    pub fn has_all_blocks(&self, flow: Flow) -> bool {
        let who = self.subscriber(flow.1);
        let own = self.blocks.iter().filter(|block| block.owner == who).count();
        self.behavior.port_block.is_some() && own >= self.behavior.subscriber_blocks.into()
    }
}
