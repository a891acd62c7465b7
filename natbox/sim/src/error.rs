//! What cannot be done, one type for each kind of call.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use natbox_core::{ConfigError, MappingError};

use crate::{HostId, LinkId, NatId, NetworkId};

/// Conditions that no link can have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ConditionsError {
    /// Not between 0 and 1.
    #[error("{what} is a probability between 0 and 1, not {value}")]
    NotAProbability {
        /// The field.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A link that carries nothing is cut, not slow.
    #[error("a rate of 0 bit/s carries nothing: cut the link instead, or leave the rate out for no limit")]
    NoRate,
    /// Smaller than IPv4 allows (RFC 791).
    #[error("an MTU of {0} bytes is too small: IPv4 needs 68")]
    MtuTooSmall(u16),
}

/// Why something cannot be added to the net, or moved in it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// The network to attach to is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchNetwork(NetworkId),
    /// The host is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchHost(HostId),
    /// The NAT is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchNat(NatId),
    /// Somebody has the address already.
    #[error("{addr} is taken in {network}")]
    AddressTaken {
        /// The address asked for.
        addr: Ipv4Addr,
        /// Where.
        network: NetworkId,
    },
    /// No packet could be routed there.
    #[error(
        "{addr} does not belong to {network}, which is {gateway}/{prefix_len} with the gateway on that address"
    )]
    AddressOutside {
        /// The address asked for.
        addr: Ipv4Addr,
        /// Where.
        network: NetworkId,
        /// The gateway's own address.
        gateway: Ipv4Addr,
        /// Prefix length of the network.
        prefix_len: u8,
    },
    /// Every address of the network is taken.
    #[error("{0} has no free address left")]
    AddressesExhausted(NetworkId),
    /// A gateway address or prefix length that leaves no room for a host.
    #[error(
        "{gateway}/{prefix_len} cannot be a network: hosts need a prefix of 1 to 30 bits and the gateway a host address"
    )]
    BadNetwork {
        /// The gateway's own address.
        gateway: Ipv4Addr,
        /// Prefix length.
        prefix_len: u8,
    },
    /// An address outside that hosts inside could have as well: no packet to it would ever leave.
    #[error(
        "the external address {addr} lies in the network inside, {gateway}/{prefix_len}: choose another gateway"
    )]
    Overlap {
        /// The external address.
        addr: Ipv4Addr,
        /// The gateway's own address.
        gateway: Ipv4Addr,
        /// Prefix length of the network inside.
        prefix_len: u8,
    },
    /// Something is still attached behind it.
    #[error("{0} still has hosts, NATs or routers attached: remove these first")]
    InUse(NetworkId),
    /// More than ids can tell apart.
    #[error("the net is full")]
    Full,
    /// The link cannot be like that.
    #[error(transparent)]
    Conditions(#[from] ConditionsError),
    /// The NAT cannot be like that.
    #[error(transparent)]
    Nat(#[from] ConfigError),
}

/// Why a running net cannot be changed like that.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// The link is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchLink(LinkId),
    /// The NAT has no such mapping to give.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// Something else stands in the way.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl From<ConditionsError> for ControlError {
    fn from(error: ConditionsError) -> ControlError {
        ControlError::Build(BuildError::Conditions(error))
    }
}

/// Why a host cannot send this: what the socket call would have returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The host is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchHost(HostId),
    /// The source is not an address of the host (EADDRNOTAVAIL).
    #[error("{0} is not an address of this host")]
    NotOurs(IpAddr),
    /// The source port is bound to nothing on a host whose ports are bound (EBADF).
    #[error("port {0} is not bound on this host")]
    NotBound(u16),
    /// Only IPv4 is simulated (ENETUNREACH).
    #[error("{0} cannot be reached: only IPv4 is simulated")]
    NotV4(SocketAddr),
    /// Larger than the link's MTU, and hosts here do not fragment (EMSGSIZE).
    #[error("a packet of {len} bytes does not fit the link's MTU of {mtu}")]
    TooBig {
        /// Bytes of the IP packet.
        len: usize,
        /// The link's MTU in bytes.
        mtu: u16,
    },
    /// Not a whole IPv4 packet with a right header checksum.
    #[error("these bytes are not one whole IPv4 packet")]
    Malformed,
}

/// Why a host cannot have this socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The host is gone, or of another net.
    #[error("there is no {0}")]
    NoSuchHost(HostId),
    /// Not an address of the host (EADDRNOTAVAIL).
    #[error("{0} is not an address of this host")]
    NotOurs(IpAddr),
    /// The port is bound already (EADDRINUSE).
    #[error("port {0} is bound already")]
    InUse(u16),
    /// No ephemeral port is free.
    #[error("no ephemeral port is free on this host")]
    Exhausted,
}
