//! What a carrier sets: how much a subscriber may have, its blocks of ports, and ports at rest.

use super::model::{Mapped, Model};
use natbox_core::{
    DropReason, Endpoint,
    Protocol::{self, Tcp},
    Time,
    behavior::Filtering,
};
use std::{net::IpAddr, time::Duration};

/// So many a second, and so many at once.
pub type Often = (u32, u32);

/// What has been spent of a rate and not been earned again.
#[derive(Clone, Copy, Default)]
pub struct Debt {
    time: Duration,
    since: Time,
}

impl Debt {
    fn at(self, now: Time) -> Duration {
        self.time.saturating_sub(now - self.since)
    }

    fn may(self, (per_second, burst): Often, now: Time) -> bool {
        self.at(now) <= Duration::from_secs(1) / per_second * (burst - 1)
    }

    fn spend(&mut self, (per_second, _): Often, now: Time) {
        *self = Debt { time: self.at(now) + Duration::from_secs(1) / per_second, since: now };
    }
}

/// Ports of one address that are one subscriber's.
pub struct Block {
    pub owner: u32,
    pub addr: IpAddr,
    pub number: u16,
}

/// A port that nobody may have yet.
pub struct Resting {
    pub protocol: Protocol,
    pub external: Endpoint,
    pub until: Time,
}

impl Model {
    pub fn subscriber(&self, inside: Endpoint) -> u32 {
        let IpAddr::V4(addr) = inside.addr else { unreachable!() };
        addr.to_bits() >> (32 - self.behavior.subscriber_prefix)
    }

    fn debts(&mut self, inside: Endpoint) -> &mut [Debt; 2] {
        let who = self.subscriber(inside);
        self.debts.entry(who).or_default()
    }

    pub fn may_begin(&mut self, inside: Endpoint, now: Time) -> Result<(), DropReason> {
        self.has_room(inside)?;
        let rate = self.rates[1];
        match rate {
            Some(rate) if !self.debts(inside)[1].may(rate, now) => Err(DropReason::SubscriberRate),
            _ => Ok(()),
        }
    }

    pub fn has_room(&self, inside: Endpoint) -> Result<(), DropReason> {
        let who = self.subscriber(inside);
        let count = self.sessions.iter().filter(|s| self.subscriber(s.inside) == who).count();
        match self.behavior.subscriber_sessions {
            Some(most) if count >= most as usize => Err(DropReason::SubscriberSessions),
            _ => Ok(()),
        }
    }

    pub fn may_map(&mut self, inside: Endpoint, now: Time) -> Result<(), DropReason> {
        let who = self.subscriber(inside);
        let count = self.mappings.iter().filter(|m| self.subscriber(m.inside) == who).count();
        if self.behavior.subscriber_mappings.is_some_and(|most| count >= most as usize) {
            return Err(DropReason::SubscriberMappings);
        }
        let rate = self.rates[0];
        match rate {
            Some(rate) if !self.debts(inside)[0].may(rate, now) => Err(DropReason::SubscriberRate),
            _ => Ok(()),
        }
    }

    /// A mapping (0) or a session (1) is made from inside.
    pub fn spend(&mut self, which: usize, inside: Endpoint, now: Time) {
        if let Some(rate) = self.rates[which] {
            self.debts(inside)[which].spend(rate, now);
        }
    }

    /// A port has its first mapping: whose block is it in?
    pub fn take_block(&mut self, inside: Endpoint, external: Endpoint) {
        let Some(size) = self.behavior.port_block else { return };
        let (owner, addr, number) = (self.subscriber(inside), external.addr, external.port / size);
        match self.blocks.iter().find(|block| (block.addr, block.number) == (addr, number)) {
            Some(block) => assert_eq!(block.owner, owner, "{external} is in another's block"),
            None => self.blocks.push(Block { owner, addr, number }),
        }
    }

    /// The last mapping on a port has ended.
    pub fn let_go(&mut self, mapping: &Mapped, when: Time) {
        let Mapped { protocol, external, is_static, .. } = *mapping;
        let is_open = self.behavior.filtering_of(protocol) == Filtering::EndpointIndependent;
        if let Some(rest) = self.behavior.port_quarantine
            && self.behavior.quarantine_ports > 0
            && protocol != Tcp
            && !is_static
            && is_open
        {
            self.rested += 1;
            self.resting.push(Resting { protocol, external, until: when + rest });
        }
    }

    /// Blocks are given back with their last port.
    pub fn free_blocks(&mut self) {
        let Some(size) = self.behavior.port_block else { return };
        let held = self.mappings.iter().map(|mapping| mapping.external);
        let held: Vec<Endpoint> = held.chain(self.resting.iter().map(|resting| resting.external)).collect();
        self.blocks.retain(|block| {
            held.iter().any(|external| (external.addr, external.port / size) == (block.addr, block.number))
        });
    }
}
