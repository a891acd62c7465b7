//! Changing NATs while they run: behaviour, mappings, external endpoints.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use natbox_core::{
    Behavior, External, InsideId, MappingRequest, Nat, Packet, PortRange, Protocol, Selection, SessionInfo,
    Time, behavior::PortClass,
};

use crate::{
    BuildError, ControlError, NatId, Net, NetworkId,
    nat::{self, NatState},
    network::{Gateway, Network, check_overlap},
    packet,
    slab::Key,
};

/// What of its external endpoints a NAT changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebind {
    /// The ports: every mapping ends, and its external port is not used again before the next rebinding.
    Ports,
    /// The addresses: the provider has given out new ones, and UDP mappings keep their ports there. Their timers start
    /// afresh. TCP connections and queries end.
    Addresses,
    /// Both.
    Both,
}

impl Net {
    /// The engine of a NAT, to look at its mappings, sessions and counters; `None` when there is no such NAT, or when
    /// no packet has come to it yet.
    pub fn nat(&self, nat: NatId) -> Option<&Nat> {
        self.nat_state(nat.0)?.existing()
    }

    /// How a NAT behaves.
    pub fn behavior(&self, nat: NatId) -> Option<&Behavior> {
        self.nat_state(nat.0).map(|state| state.behavior.as_ref())
    }

    /// The external addresses of a NAT.
    pub fn external(&self, nat: NatId) -> &[Ipv4Addr] {
        self.nat_state(nat.0).map_or(&[], |state| &state.external)
    }

    /// Lets a NAT behave otherwise from now on. Mappings and sessions stay, as in [`Nat::set_behavior`].
    pub fn set_behavior(
        &mut self,
        nat: NatId,
        behavior: impl Into<Arc<Behavior>>,
        now: Time,
    ) -> Result<(), BuildError> {
        self.advance(now);
        let state = self.nat_state_mut(nat)?;
        state.behavior = behavior.into();
        let behavior = Behavior::clone(&state.behavior);
        if let Some(engine) = state.existing_mut() {
            engine.set_behavior(behavior);
        }
        Ok(())
    }

    /// Removes mappings of a NAT; returns how many.
    pub fn flush(&mut self, nat: NatId, selection: &Selection, now: Time) -> Result<usize, BuildError> {
        self.advance(now);
        let now = self.now;
        let engine = self.nat_state_mut(nat)?.existing_mut();
        Ok(engine.map_or(0, |engine| engine.flush(selection, now)))
    }

    /// Makes a mapping by name, as in [`Nat::add_mapping`]; the inside port is `InsideId(0)`.
    pub fn add_mapping(
        &mut self,
        nat: NatId,
        request: MappingRequest,
        now: Time,
    ) -> Result<External, ControlError> {
        self.advance(now);
        let now = self.now;
        let engine = nat::engine(&mut self.networks, &self.links, nat.0);
        let engine = engine.ok_or(BuildError::NoSuchNat(nat))?.map_err(BuildError::Nat)?;
        let made = engine.add_mapping(request, now)?;
        self.drain_nat(nat.0);
        Ok(made)
    }

    /// Gives a NAT other external endpoints; new addresses are free ones of the network above it. Returns the addresses
    /// that it has then.
    pub fn rebind(&mut self, nat: NatId, what: Rebind, now: Time) -> Result<Vec<Ipv4Addr>, BuildError> {
        self.advance(now);
        if what != Rebind::Addresses {
            self.drop_ports(nat)?;
        }
        if what == Rebind::Ports {
            return Ok(self.external(nat).to_vec());
        }
        let above = self.networks.get(nat.0).map(|record| record.parent).ok_or(BuildError::NoSuchNat(nat))?;
        let count = self.external(nat).len();
        let new: Vec<_> =
            (0..count).map(|_| self.free_address(NetworkId(above))).collect::<Result<_, _>>()?;
        self.set_external(nat, new.clone(), now)?;
        Ok(new)
    }

    /// Gives a NAT these external addresses. UDP mappings on addresses that are gone move to the new ones and keep
    /// their ports; other mappings there end.
    pub fn set_external(&mut self, nat: NatId, new: Vec<Ipv4Addr>, now: Time) -> Result<(), BuildError> {
        self.advance(now);
        let now = self.now;
        let old = self.nat_state_mut(nat)?.external.clone();
        if new.is_empty() {
            return Err(BuildError::Nat(natbox_core::ConfigError::NoExternal));
        }
        if let Some(Network { address, prefix_len, .. }) = self.networks.get(nat.0) {
            check_overlap(&new, (*address, *prefix_len))?;
        }
        self.remove_routes(nat.0, &old);
        if let Err(error) = self.set_routes(nat.0, &new) {
            self.set_routes(nat.0, &old)?;
            return Err(error);
        }
        let state = self.nat_state_mut(nat)?;
        state.external = new.clone();
        let Some(engine) = state.existing_mut() else { return Ok(()) };
        let gone: Vec<IpAddr> =
            old.iter().filter(|addr| !new.contains(addr)).map(|addr| (*addr).into()).collect();
        let sessions: Vec<SessionInfo> = engine
            .sessions()
            .filter(|s| {
                s.protocol == Protocol::Udp
                    && gone.contains(&s.external.0.addr)
                    && !gone.contains(&s.remote.0.addr)
            })
            .collect();
        engine.set_external(new.into_iter().map(IpAddr::V4).collect(), now)?;
        replay(engine, &sessions, now);
        self.drain_nat(nat.0);
        Ok(())
    }

    /// Ends every mapping, and keeps the NAT from using those ports again.
    fn drop_ports(&mut self, nat: NatId) -> Result<(), BuildError> {
        let now = self.now;
        let Some(engine) = self.nat_state_mut(nat)?.existing_mut() else { return Ok(()) };
        for protocol in Protocol::ALL {
            let ports: Vec<u16> = engine
                .mappings()
                .filter(|mapping| mapping.protocol == protocol && !mapping.is_static)
                .map(|mapping| mapping.external.0.port)
                .collect();
            engine.set_reserved(protocol, &ports);
        }
        engine.flush(&Selection::default(), now);
        Ok(())
    }

    pub(crate) fn nat_state(&self, network: Key) -> Option<&NatState> {
        match &self.networks.get(network)?.gateway {
            Gateway::Nat(state) => Some(state),
            _ => None,
        }
    }

    pub(crate) fn nat_mut(&mut self, network: Key) -> Option<&mut Nat> {
        match &mut self.networks.get_mut(network)?.gateway {
            Gateway::Nat(state) => state.existing_mut(),
            _ => None,
        }
    }

    fn nat_state_mut(&mut self, nat: NatId) -> Result<&mut NatState, BuildError> {
        match self.networks.get_mut(nat.0) {
            Some(Network { gateway: Gateway::Nat(state), .. }) => Ok(state),
            _ => Err(BuildError::NoSuchNat(nat)),
        }
    }
}

/// Makes the UDP mappings of these sessions anew, with their ports, by sending the packets that would have made them:
/// the engine has no other way to be told.
fn replay(engine: &mut Nat, sessions: &[SessionInfo], now: Time) {
    let behavior = engine.behavior().clone();
    let mut bytes = Vec::with_capacity(packet::UDP_HEADERS);
    for session in sessions {
        let port = session.external.0.port;
        let (IpAddr::V4(inside), IpAddr::V4(remote)) = (session.inside.endpoint.addr, session.remote.0.addr)
        else {
            continue;
        };
        let Some(port_range) = PortRange::new(port, port) else { continue };
        engine.set_behavior(Behavior { port_range, port_class: PortClass::Off, ..behavior.clone() });
        let (inside, remote) = ((inside, session.inside.endpoint.port), (remote, session.remote.0.port));
        bytes.clear();
        packet::write_udp(&mut bytes, inside, remote, 64, &[]);
        engine.outbound(InsideId(0), &mut Packet::plain(&mut bytes), now);
        if session.state == "replied" {
            let (external, port) = (packet::source(&bytes), port);
            bytes.clear();
            packet::write_udp(&mut bytes, remote, (external, port), 64, &[]);
            engine.inbound(&mut Packet::plain(&mut bytes), now);
        }
    }
    engine.set_behavior(behavior);
}
