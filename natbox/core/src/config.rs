//! What a NAT is made from.

use std::net::IpAddr;

use crate::{
    Behavior, Endpoint, External, Inside, InsideId, PortRange, Protocol, Remote, Time,
    packet::fragment::Piece,
};

/// How a [`Nat`](crate::Nat) is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// How it behaves.
    pub behavior: Behavior,
    /// The external addresses to translate to: at least one, each once.
    pub external: Vec<IpAddr>,
    /// The external addresses belong to the host as well: what no mapping claims is [`Verdict::Local`], not dropped,
    /// and the NAT answers no echo request to them.
    ///
    /// [`Verdict::Local`]: crate::Verdict::Local
    pub shared: bool,
    /// Largest IP packet that the outside link carries, in bytes; 68 to 65,535.
    pub outside_mtu: u16,
    /// The external ports that may be used at all; [`Behavior::port_range`] chooses among them.
    pub ports: PortRange,
    /// Bounds on what the NAT remembers.
    pub limits: Limits,
    /// Keep [`Claim`](crate::Claim)s for `poll_claim`; whoever asks for them must take them after every batch.
    pub report_claims: bool,
    /// Keep [`Event`](crate::Event)s for `poll_event`.
    pub report_events: bool,
}

impl Config {
    /// The RFCs' behaviour on one external address of the NAT's own.
    pub fn new(external: IpAddr) -> Config {
        Config {
            behavior: Behavior::default(),
            external: vec![external],
            shared: false,
            outside_mtu: 1500,
            ports: PortRange::ALL,
            limits: Limits::default(),
            report_claims: false,
            report_events: false,
        }
    }
}

/// Bounds on memory; whatever would go beyond is refused and counted, and nothing is deleted to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mappings. 2²⁰ with one session each take some 160 MB.
    pub mappings: usize,
    /// Sessions. More than mappings: an endpoint-independent mapping has one for each remote endpoint.
    pub sessions: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { mappings: 1 << 20, sessions: 1 << 21 }
    }
}

/// A side of the NAT that hosts are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsidePort {
    /// The NAT's own address there: the hosts' gateway, and the source of the ICMP errors that they get.
    pub gateway: IpAddr,
    /// Prefix length of the network there: packets from another inside port to it are routed, not translated.
    pub prefix_len: u8,
    /// Largest IP packet that the link carries, in bytes; 68 to 65,535.
    pub mtu: u16,
    /// The host has `gateway` as well and gets every packet that hosts there send to it, so it is the host that answers.
    pub shared: bool,
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nothing to translate to.
    #[error("a NAT needs at least one external address")]
    NoExternal,
    /// Only IPv4 is translated.
    #[error("{0} is not an IPv4 address: only IPv4 is translated")]
    NotV4(IpAddr),
    /// An external address that no packet could come from.
    #[error("{0} cannot be an external address: it is unspecified, loopback, multicast or broadcast")]
    BadExternal(IpAddr),
    /// The same external address twice.
    #[error("the external address {0} is given twice")]
    DuplicateExternal(IpAddr),
    /// An external address that the NAT has on an inside network.
    #[error("{0} cannot be an external address: it is the gateway of an inside network")]
    ExternalGateway(IpAddr),
    /// Smaller than IPv4 allows (RFC 791).
    #[error("an MTU of {0} bytes is too small: IPv4 needs 68")]
    MtuTooSmall(u16),
    /// A prefix length that IPv4 does not have.
    #[error("/{0} is not an IPv4 prefix length: it is 0 to 32")]
    BadPrefix(u8),
    /// A NAT has 65,536 inside ports at the most.
    #[error("a NAT has at most 65,536 inside ports")]
    TooManyInsidePorts,
    /// A table that could hold nothing, or more than an index can number.
    #[error("the limits must be between 1 and 2^31 - 1")]
    BadLimits,
}

/// A mapping asked for by name: a static forward, or what a port-mapping protocol wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingRequest {
    /// The transport.
    pub protocol: Protocol,
    /// Who is to be reached.
    pub inside: Inside,
    /// The external endpoint wanted: address `None` for any, port 0 for any.
    pub address: Option<IpAddr>,
    /// The external port wanted; 0 for any.
    pub port: u16,
    /// When it ends; [`Time::NEVER`] for a static forward.
    pub until: Time,
}

/// Why a mapping that was asked for cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// The wanted external endpoint is in use.
    #[error("the external endpoint is in use by {0:?}")]
    Taken(Inside),
    /// The inside endpoint has a static mapping from another external endpoint: one at a time.
    #[error("{} is forwarded to this inside endpoint already: remove that forward first", .0.0)]
    Forwarded(External),
    /// The host itself uses the wanted port.
    #[error("the host itself uses port {0}")]
    Reserved(u16),
    /// The inside endpoint is nobody's: whatever came to it would go to everybody inside, or nowhere.
    #[error("{0} is no host's address: it is unspecified, loopback, multicast or broadcast")]
    NotAHost(IpAddr),
    /// The inside endpoint is on an address of the NAT's own, external or inside: no host behind it has that.
    #[error("{0} is this NAT's own address: name a host behind it")]
    OwnAddress(IpAddr),
    /// Not an external address of this NAT.
    #[error("{0} is not an external address of this NAT")]
    NotOurs(IpAddr),
    /// No inside port has this id.
    #[error("there is no inside port {0:?}")]
    NoSuchInside(InsideId),
    /// Only IPv4 is translated.
    #[error("{0} cannot be mapped: only IPv4 is translated")]
    NotV4(IpAddr),
    /// No external port is free.
    #[error("no external port is free")]
    PortsExhausted,
    /// The table is full.
    #[error("the table of mappings is full")]
    TableFull,
}

/// A mapping, as shown to people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The transport.
    pub protocol: Protocol,
    /// The private side.
    pub inside: Inside,
    /// The public side.
    pub external: External,
    /// The destination it is for: under address-dependent mapping with port 0, under endpoint-independent mapping
    /// `None`.
    pub remote: Option<Remote>,
    /// Made by `add_mapping`.
    pub is_static: bool,
    /// When it was made.
    pub created: Time,
    /// When it ends if nothing more happens; `Time::NEVER` for a static forward.
    pub expires: Time,
    /// How many sessions it has.
    pub sessions: u32,
}

/// A session of a mapping: one remote endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The transport.
    pub protocol: Protocol,
    /// The private side.
    pub inside: Inside,
    /// The public side.
    pub external: External,
    /// The far end.
    pub remote: Remote,
    /// `new`, `replied`, `brief` (with a timer of its remote port's own), or the state of the TCP connection.
    pub state: &'static str,
    /// When it ends if nothing more happens.
    pub expires: Time,
}

/// External ports that belong to one subscriber (RFC 6888 REQ-14): those of one address, over all protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortBlock {
    /// The inside port that the subscriber is behind.
    pub inside: InsideId,
    /// The subscriber: an inside address, or the first of a network.
    pub subscriber: IpAddr,
    /// The length of that network's prefix; 32 for a single address.
    pub prefix_len: u8,
    /// The external address.
    pub address: IpAddr,
    /// The ports of the block.
    pub ports: PortRange,
    /// Ports in use or at rest, each counted once for a protocol.
    pub held: u32,
}

/// A subscriber that is counted: because it holds something, or has too lately to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberInfo {
    /// The inside port that it is behind.
    pub inside: InsideId,
    /// An inside address, or the first of a network.
    pub subscriber: IpAddr,
    /// The length of that network's prefix; 32 for a single address.
    pub prefix_len: u8,
    /// Mappings that it has.
    pub mappings: u32,
    /// Sessions that these have.
    pub sessions: u32,
    /// Port blocks that it has.
    pub blocks: u32,
    /// New flows, from inside or from outside, that were refused because it had its share.
    pub refused: u64,
}

/// Which mappings a flush removes; every given criterion must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of this transport.
    pub protocol: Option<Protocol>,
    /// Of the host with this address.
    pub host: Option<IpAddr>,
    /// With this external port.
    pub external_port: Option<u16>,
    /// Static forwards too.
    pub statics: bool,
}

impl Selection {
    /// Whether `mapping` is selected.
    pub fn selects(&self, mapping: &MappingInfo) -> bool {
        self.protocol.is_none_or(|protocol| protocol == mapping.protocol)
            && self.host.is_none_or(|host| host == mapping.inside.endpoint.addr)
            && self.external_port.is_none_or(|port| port == mapping.external.0.port)
            && (self.statics || !mapping.is_static)
    }
}

/// The two endpoints of a translated packet, before and after: what `--log-packets` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// From whom.
    pub from: Endpoint,
    /// To whom.
    pub to: Endpoint,
    /// Which part of its datagram a fragment is; `None` for a whole packet.
    pub piece: Option<Piece>,
}
