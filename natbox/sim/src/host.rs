//! Hosts: their addresses and sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand_core::Rng;

use crate::{BindError, Conditions, HostId, LinkConditions, Net, SendError, network::WordMap, slab::Key};

/// Ports that a bind to port 0 chooses from (RFC 6335 §6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// How often a random ephemeral port is tried before the first free one after it is taken.
const RANDOM_TRIES: usize = 16;

/// How a host attaches to a network. From [`Conditions`] or [`LinkConditions`], with any address.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attachment {
    /// The address it gets; `None` for the next free one.
    pub address: Option<Ipv4Addr>,
    /// Its link to the network.
    pub link: LinkConditions,
}

impl Attachment {
    /// This address, on a perfect link.
    pub fn at(address: Ipv4Addr) -> Attachment {
        Attachment { address: Some(address), link: LinkConditions::default() }
    }
}

impl From<LinkConditions> for Attachment {
    fn from(link: LinkConditions) -> Attachment {
        Attachment { address: None, link }
    }
}

impl From<Conditions> for Attachment {
    fn from(both: Conditions) -> Attachment {
        LinkConditions::from(both).into()
    }
}

/// An address of a host, and the link it is reached by.
#[derive(Clone, Copy)]
pub(crate) struct Interface {
    pub(crate) address: Ipv4Addr,
    pub(crate) network: Key,
    pub(crate) link: Key,
}

pub(crate) struct Host {
    /// Never empty.
    pub(crate) interfaces: Vec<Interface>,
    /// Gets every packet as it is, and answers none by itself.
    pub(crate) is_raw: bool,
    /// Has said which ports it listens on: the others are closed.
    pub(crate) is_strict: bool,
}

impl Host {
    /// The interface for packets from `addr`; unspecified means the first.
    pub(crate) fn interface(&self, addr: Ipv4Addr) -> Option<Interface> {
        let is_it = |interface: &&Interface| addr.is_unspecified() || interface.address == addr;
        self.interfaces.iter().find(is_it).copied()
    }
}

/// Which ports are bound on hosts that bind, and to which address (unspecified for any).
#[derive(Default)]
pub(crate) struct Ports(WordMap<Ipv4Addr>);

impl Ports {
    pub(crate) fn bound(&self, host: Key, port: u16) -> Option<Ipv4Addr> {
        self.0.get(&word(host, port)).copied()
    }

    pub(crate) fn forget_host(&mut self, host: Key) {
        self.0.retain(|word, _| *word >> 16 != u64::from(host.slot));
    }
}

fn word(host: Key, port: u16) -> u64 {
    u64::from(host.slot) << 16 | u64::from(port)
}

impl Net {
    /// Binds a UDP socket. From the first bind on, a host is strict: what comes to other ports meets ICMP port
    /// unreachable, and nothing is sent from them. A host that never binds gets everything.
    ///
    /// An unspecified address stands for all of the host's; port 0 for a random ephemeral one. Returns what was bound.
    pub fn bind(&mut self, host: HostId, at: SocketAddr) -> Result<SocketAddr, BindError> {
        let record = self.hosts.get_mut(host.0).ok_or(BindError::NoSuchHost(host))?;
        let IpAddr::V4(addr) = at.ip() else { return Err(BindError::NotOurs(at.ip())) };
        if record.interface(addr).is_none() {
            return Err(BindError::NotOurs(at.ip()));
        }
        record.is_strict = true;
        let port = match at.port() {
            0 => self.ephemeral_port(host.0).ok_or(BindError::Exhausted)?,
            port if self.ports.bound(host.0, port).is_some() => return Err(BindError::InUse(port)),
            port => port,
        };
        self.ports.0.insert(word(host.0, port), addr);
        Ok(SocketAddr::from((addr, port)))
    }

    /// Closes a socket; true if there was one. The host stays strict.
    pub fn close(&mut self, host: HostId, port: u16) -> bool {
        self.hosts.get(host.0).is_some() && self.ports.0.remove(&word(host.0, port)).is_some()
    }

    fn ephemeral_port(&mut self, host: Key) -> Option<u16> {
        let count = u32::from(EPHEMERAL.end() - EPHEMERAL.start()) + 1;
        let mut port = 0;
        for _ in 0..RANDOM_TRIES {
            port = EPHEMERAL.start() + (self.rng.next_u32() % count) as u16;
            if self.ports.bound(host, port).is_none() {
                return Some(port);
            }
        }
        (port..=*EPHEMERAL.end())
            .chain(*EPHEMERAL.start()..port)
            .find(|port| self.ports.bound(host, *port).is_none())
    }

    /// Whether a datagram to this socket finds one open.
    pub(crate) fn is_open(&self, host: Key, to: SocketAddr) -> bool {
        match self.ports.bound(host, to.port()) {
            Some(addr) => addr.is_unspecified() || IpAddr::V4(addr) == to.ip(),
            None => false,
        }
    }

    /// The interface that a datagram from `from` leaves by.
    pub(crate) fn outlet(&self, host: HostId, from: SocketAddr) -> Result<Interface, SendError> {
        let record = self.hosts.get(host.0).ok_or(SendError::NoSuchHost(host))?;
        let IpAddr::V4(addr) = from.ip() else { return Err(SendError::NotV4(from)) };
        let interface = record.interface(addr).ok_or(SendError::NotOurs(from.ip()))?;
        if record.is_strict && !record.is_raw {
            let bound = self.ports.bound(host.0, from.port()).ok_or(SendError::NotBound(from.port()))?;
            if !bound.is_unspecified() {
                // A socket with an address of its own keeps to it, also after the host has moved away from it.
                if !addr.is_unspecified() && addr != bound {
                    return Err(SendError::NotOurs(from.ip()));
                }
                return record.interface(bound).ok_or(SendError::NotOurs(bound.into()));
            }
        }
        Ok(interface)
    }
}
