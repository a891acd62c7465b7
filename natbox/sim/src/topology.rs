//! Changing what is there: addresses and routes, moving, removing.

use std::net::Ipv4Addr;

use natbox_core::Time;

use crate::{
    Attachment, BuildError, HostId, NatId, Net, NetworkId, RouterId,
    host::Interface,
    network::{Gateway, Network},
    slab::Key,
};

impl Net {
    /// A free address of a network: what the next host or NAT there would get.
    pub fn free_address(&mut self, at: impl Into<NetworkId>) -> Result<Ipv4Addr, BuildError> {
        let at = at.into();
        let routes = &self.routes;
        let network = self.networks.get_mut(at.0).ok_or(BuildError::NoSuchNetwork(at))?;
        network
            .free_address(|addr| routes.get(at.0, addr).is_some())
            .ok_or(BuildError::AddressesExhausted(at))
    }

    /// Moves a host to another network: the one interface that it has then gets a new address and link, and the old
    /// ones are gone. Packets on their way to it there are lost. Sockets that were bound to an old address stay bound,
    /// to nothing. Returns the new address.
    pub fn move_host(
        &mut self,
        host: HostId,
        to: impl Into<NetworkId>,
        attachment: impl Into<Attachment>,
        now: Time,
    ) -> Result<Ipv4Addr, BuildError> {
        self.advance(now);
        if self.hosts.get(host.0).is_none() {
            return Err(BuildError::NoSuchHost(host));
        }
        let new = self.attach(host.0, to.into(), attachment.into())?;
        let Some(record) = self.hosts.get_mut(host.0) else { return Err(BuildError::NoSuchHost(host)) };
        let old = std::mem::replace(&mut record.interfaces, vec![new]);
        old.into_iter().for_each(|interface| self.detach(interface));
        Ok(new.address)
    }

    /// Removes a host; false when there is none.
    pub fn remove_host(&mut self, host: HostId, now: Time) -> bool {
        self.advance(now);
        let Some(record) = self.hosts.remove(host.0) else { return false };
        record.interfaces.into_iter().for_each(|interface| self.detach(interface));
        if record.is_strict {
            self.ports.forget_host(host.0);
        }
        true
    }

    /// Removes a NAT behind which there is nothing any more.
    pub fn remove_nat(&mut self, nat: NatId, now: Time) -> Result<(), BuildError> {
        self.check_removable(nat.into(), now)?;
        self.remove_gateway(nat.0);
        Ok(())
    }

    /// Removes a router behind which there is nothing any more.
    pub fn remove_router(&mut self, router: RouterId, now: Time) -> Result<(), BuildError> {
        self.check_removable(router.into(), now)?;
        self.remove_gateway(router.0);
        Ok(())
    }

    fn check_removable(&mut self, network: NetworkId, now: Time) -> Result<(), BuildError> {
        self.advance(now);
        match self.networks.get(network.0) {
            None => Err(BuildError::NoSuchNetwork(network)),
            Some(record) if record.members > 0 => Err(BuildError::InUse(network)),
            Some(_) => Ok(()),
        }
    }

    /// Hands a host every packet as it is, and lets it answer for itself: no echo reply, no port unreachable, no
    /// reading of UDP. For nodes with an IP stack of their own. False when there is no such host.
    pub fn set_raw(&mut self, host: HostId, is_raw: bool) -> bool {
        match self.hosts.get_mut(host.0) {
            Some(record) => {
                record.is_raw = is_raw;
                true
            }
            None => false,
        }
    }

    // ---- Addresses and routes ----

    /// An address can be had in this network.
    pub(crate) fn check_address(&self, at: NetworkId, addr: Ipv4Addr) -> Result<(), BuildError> {
        let network = self.networks.get(at.0).ok_or(BuildError::NoSuchNetwork(at))?;
        if !network.holds(addr) {
            let Network { address: gateway, prefix_len, .. } = *network;
            return Err(BuildError::AddressOutside { addr, network: at, gateway, prefix_len });
        }
        for (network, _) in self.known_in(at.0, Key::FIRST) {
            if self.routes.get(network, addr).is_some() {
                return Err(BuildError::AddressTaken { addr, network: NetworkId(network) });
            }
        }
        Ok(())
    }

    /// Makes an address known in its network and in those above it that hear of it.
    pub(crate) fn add_route(&mut self, network: Key, addr: Ipv4Addr, link: Key) -> Result<(), BuildError> {
        self.check_address(NetworkId(network), addr)?;
        for (network, link) in self.known_in(network, link) {
            self.routes.insert(network, addr, link)?;
        }
        Ok(())
    }

    fn remove_route(&mut self, network: Key, addr: Ipv4Addr) {
        for (network, _) in self.known_in(network, Key::FIRST) {
            self.routes.remove(network, addr);
        }
    }

    /// The networks that know an address of `network`, which is behind `link` there, each with the link that it is
    /// behind as they see it.
    fn known_in(&self, mut network: Key, mut link: Key) -> Vec<(Key, Key)> {
        let mut known = vec![(network, link)];
        while let Some(Network { gateway: Gateway::Router, parent, uplink, .. }) = self.networks.get(network)
        {
            (network, link) = (*parent, *uplink);
            known.push((network, link));
        }
        known
    }

    /// Routes these addresses to the gateway of `network`, all or none.
    pub(crate) fn set_routes(&mut self, network: Key, external: &[Ipv4Addr]) -> Result<(), BuildError> {
        let Some(Network { parent, uplink, .. }) = self.networks.get(network) else {
            return Err(BuildError::NoSuchNetwork(NetworkId(network)));
        };
        let (parent, uplink) = (*parent, *uplink);
        for (done, addr) in external.iter().enumerate() {
            if let Err(error) = self.add_route(parent, *addr, uplink) {
                external[..done].iter().for_each(|addr| self.remove_route(parent, *addr));
                return Err(error);
            }
        }
        Ok(())
    }

    pub(crate) fn remove_routes(&mut self, network: Key, external: &[Ipv4Addr]) {
        let Some(parent) = self.networks.get(network).map(|record| record.parent) else { return };
        external.iter().for_each(|addr| self.remove_route(parent, *addr));
    }

    fn detach(&mut self, interface: Interface) {
        self.remove_route(interface.network, interface.address);
        self.links.remove(interface.link);
        if let Some(network) = self.networks.get_mut(interface.network) {
            network.members -= 1;
        }
    }

    pub(crate) fn remove_gateway(&mut self, network: Key) {
        let Some(record) = self.networks.get_mut(network) else { return };
        let external = match &mut record.gateway {
            Gateway::Nat(state) => std::mem::take(&mut state.external),
            _ => Vec::new(),
        };
        self.remove_routes(network, &external);
        let Some(record) = self.networks.remove(network) else { return };
        self.links.remove(record.uplink);
        if let Some(parent) = self.networks.get_mut(record.parent) {
            parent.members -= 1;
        }
    }
}
