//! NATs of the net: what one is made from, and its engine, which exists only from its first packet on.

use std::{net::Ipv4Addr, sync::Arc};

use natbox_core::{Behavior, Config, ConfigError, InsidePort, Limits, Nat, Time};

use crate::{
    Conditions, Direction, LinkConditions,
    link::Link,
    network::{Gateway, Network},
    slab::{Key, Slab},
};

/// Most mappings or sessions that an engine can number.
const MOST_RECORDS: usize = (1 << 31) - 1;

/// A NAT to be added.
#[derive(Clone, Debug)]
pub struct NatConfig {
    /// How it behaves. NATs of a kind can share one.
    pub behavior: Arc<Behavior>,
    /// Its external addresses; empty to get `pool` free ones of the network above it.
    pub external: Vec<Ipv4Addr>,
    /// How many external addresses it gets where `external` names none; at least 1.
    pub pool: u16,
    /// Its own address on the inside, and by that the network there.
    pub gateway: Ipv4Addr,
    /// Prefix length of the network inside, 1 to 30.
    pub prefix_len: u8,
    /// MTU inside, in bytes.
    pub inside_mtu: u16,
    /// Its link to the network above it. The MTU upwards is read when the first packet comes.
    pub link: LinkConditions,
    /// Bounds on what it remembers.
    pub limits: Limits,
}

impl NatConfig {
    /// A NAT at home: one external address, 10.0.0.0/24 inside, on a perfect link.
    pub fn new(behavior: impl Into<Arc<Behavior>>) -> NatConfig {
        NatConfig {
            behavior: behavior.into(),
            external: Vec::new(),
            pool: 1,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            prefix_len: 24,
            inside_mtu: Conditions::PERFECT.mtu,
            link: LinkConditions::default(),
            limits: Limits::default(),
        }
    }

    /// A carrier's NAT: 100.64.0.0/10 inside (RFC 6598), so that NATs at home fit behind it.
    pub fn carrier(behavior: impl Into<Arc<Behavior>>) -> NatConfig {
        NatConfig { gateway: Ipv4Addr::new(100, 64, 0, 1), prefix_len: 10, ..NatConfig::new(behavior) }
    }

    /// Refuses now what the engine would refuse at the first packet.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let in_bounds = |limit: usize| (1..=MOST_RECORDS).contains(&limit);
        if !in_bounds(self.limits.mappings) || !in_bounds(self.limits.sessions) {
            return Err(ConfigError::BadLimits);
        }
        if self.inside_mtu < 68 {
            return Err(ConfigError::MtuTooSmall(self.inside_mtu));
        }
        Ok(())
    }
}

/// A NAT. Idle ones are many, so the engine is made when it is needed.
pub(crate) struct NatState {
    pub(crate) behavior: Arc<Behavior>,
    pub(crate) external: Vec<Ipv4Addr>,
    limits: Limits,
    seed: u64,
    inside_mtu: u16,
    engine: Option<Box<Nat>>,
    /// For when a timer event is scheduled.
    pub(crate) armed: Time,
}

impl NatState {
    pub(crate) fn new(config: &NatConfig, external: Vec<Ipv4Addr>, seed: u64) -> NatState {
        NatState {
            behavior: config.behavior.clone(),
            external,
            limits: config.limits,
            seed,
            inside_mtu: config.inside_mtu,
            engine: None,
            armed: Time::NEVER,
        }
    }

    pub(crate) fn existing(&self) -> Option<&Nat> {
        self.engine.as_deref()
    }

    pub(crate) fn existing_mut(&mut self) -> Option<&mut Nat> {
        self.engine.as_deref_mut()
    }

    fn make(&self, (gateway, prefix_len): (Ipv4Addr, u8), outside_mtu: u16) -> Result<Nat, ConfigError> {
        let external = self.external.iter().map(|addr| (*addr).into()).collect();
        let config = Config {
            behavior: Behavior::clone(&self.behavior),
            external,
            outside_mtu,
            limits: self.limits,
            ..Config::new(gateway.into())
        };
        let mut engine = Nat::new(config, self.seed)?;
        engine.add_inside(InsidePort {
            gateway: gateway.into(),
            prefix_len,
            mtu: self.inside_mtu,
            shared: false,
        })?;
        Ok(engine)
    }
}

/// The engine of the NAT in front of `network`, made if need be; `None` when there is no NAT there.
pub(crate) fn engine<'a>(
    networks: &'a mut Slab<Network>,
    links: &Slab<Link>,
    network: Key,
) -> Option<Result<&'a mut Nat, ConfigError>> {
    let record = networks.get_mut(network)?;
    let Network { gateway: Gateway::Nat(state), address, prefix_len, uplink, .. } = record else {
        return None;
    };
    if state.engine.is_none() {
        let mtu = links.get(*uplink).map_or(0, |link| link.pipe(Direction::Up).conditions.mtu);
        match state.make((*address, *prefix_len), mtu) {
            Ok(engine) => state.engine = Some(Box::new(engine)),
            Err(error) => return Some(Err(error)),
        }
    }
    state.engine.as_deref_mut().map(Ok)
}
