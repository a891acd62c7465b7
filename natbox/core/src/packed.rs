//! Endpoints as the tables hold them: one word each, so that a key is compared with one instruction and hashed with one
//! multiplication.
//!
//! A word is the address, the port and sixteen bits that complete the key: which inside port a host is behind, or which
//! protocol a public endpoint speaks. The two are different types, and so are never mixed up. Only IPv4 endpoints fit;
//! what is public ([`Endpoint`], [`Inside`]) knows both families, and is converted at the engine's edge.

use std::net::{IpAddr, Ipv4Addr};

use crate::{Endpoint, Inside, InsideId, Protocol, behavior::Mapping};

/// An address and a port, as they are written into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) addr: Ipv4Addr,
    pub(crate) port: u16,
}

/// The endpoint of an inside host, with the inside port that it is behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inner(u64);

/// A public endpoint with its protocol: an external one of ours, or a remote.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outer(u64);

/// What two remote endpoints have in common whose packets go by the same mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u64);

impl Mask {
    pub(crate) fn new(mapping: Mapping) -> Mask {
        Mask(match mapping {
            Mapping::EndpointIndependent => PROTOCOL_MASK,
            Mapping::AddressDependent => !PORT_MASK,
            Mapping::AddressAndPortDependent => u64::MAX,
        })
    }
}

const PORT_SHIFT: u32 = 16;
const PROTOCOL_MASK: u64 = 0xffff;
const PORT_MASK: u64 = 0xffff << PORT_SHIFT;

#[inline]
fn pack(addr: Ipv4Addr, port: u16, tag: u16) -> u64 {
    u64::from(addr.to_bits()) << 32 | u64::from(port) << PORT_SHIFT | u64::from(tag)
}

#[inline]
fn spot(word: u64) -> Spot {
    Spot { addr: Ipv4Addr::from_bits((word >> 32) as u32), port: (word >> PORT_SHIFT) as u16 }
}

impl Inner {
    pub(crate) const NOBODY: Inner = Inner(0);

    #[inline]
    pub(crate) fn new(port: InsideId, spot: Spot) -> Inner {
        Inner(pack(spot.addr, spot.port, port.0))
    }

    /// `None` for what is not IPv4.
    pub(crate) fn from_public(inside: Inside) -> Option<Inner> {
        let IpAddr::V4(addr) = inside.endpoint.addr else { return None };
        Some(Inner::new(inside.port, Spot { addr, port: inside.endpoint.port }))
    }

    #[inline]
    pub(crate) fn spot(self) -> Spot {
        spot(self.0)
    }

    #[inline]
    pub(crate) fn inside_port(self) -> InsideId {
        InsideId(self.0 as u16)
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    pub(crate) fn public(self) -> Inside {
        let Spot { addr, port } = self.spot();
        Inside { port: self.inside_port(), endpoint: Endpoint::v4(addr, port) }
    }
}

impl Outer {
    #[inline]
    pub(crate) fn new(protocol: Protocol, spot: Spot) -> Outer {
        Outer(pack(spot.addr, spot.port, protocol as u16))
    }

    /// The remote of a mapping that is for every remote.
    #[inline]
    pub(crate) fn anybody(protocol: Protocol) -> Outer {
        Outer(u64::from(protocol as u16))
    }

    #[inline]
    pub(crate) fn is_anybody(self) -> bool {
        self.0 >> PORT_SHIFT == 0
    }

    /// The same address with port 0, which stands for all of its ports.
    #[inline]
    pub(crate) fn any_port(self) -> Outer {
        Outer(self.0 & !PORT_MASK)
    }

    /// What of a remote endpoint is left in the key of a mapping.
    #[inline]
    pub(crate) fn masked(self, mask: Mask) -> Outer {
        Outer(self.0 & mask.0)
    }

    /// The same endpoint, for whoever does not care for the protocol.
    pub(crate) fn as_udp(self) -> Outer {
        Outer::new(Protocol::Udp, self.spot())
    }

    #[inline]
    pub(crate) fn spot(self) -> Spot {
        spot(self.0)
    }

    #[inline]
    pub(crate) fn protocol(self) -> Protocol {
        match self.0 as u8 {
            tag if tag == Protocol::Udp as u8 => Protocol::Udp,
            tag if tag == Protocol::Tcp as u8 => Protocol::Tcp,
            _ => Protocol::Icmp,
        }
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        self.0
    }

    pub(crate) fn public(self) -> Endpoint {
        let Spot { addr, port } = self.spot();
        Endpoint::v4(addr, port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_lost(addr in any::<u32>(), port in any::<u16>(), id in any::<u16>(), protocol in 0usize..3) {
            let (spot, protocol) = (Spot { addr: Ipv4Addr::from_bits(addr), port }, Protocol::ALL[protocol]);
            let outer = Outer::new(protocol, spot);
            prop_assert_eq!((outer.spot(), outer.protocol()), (spot, protocol));
            prop_assert_eq!(outer.any_port().spot(), Spot { port: 0, ..spot });
            prop_assert_eq!(outer.is_anybody(), (addr, port) == (0, 0));
            prop_assert!(outer.masked(Mask::new(Mapping::EndpointIndependent)) == Outer::anybody(protocol));
            prop_assert!(outer.masked(Mask::new(Mapping::AddressDependent)) == outer.any_port());
            prop_assert!(outer.masked(Mask::new(Mapping::AddressAndPortDependent)) == outer);
            let inner = Inner::new(InsideId(id), spot);
            prop_assert_eq!((inner.spot(), inner.inside_port()), (spot, InsideId(id)));
            prop_assert!(Inner::from_public(inner.public()) == Some(inner));
        }
    }
}
