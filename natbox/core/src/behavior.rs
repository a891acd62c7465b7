//! Everything that makes one NAT differ from another, in one struct.
//!
//! The words are those of RFC 4787, RFC 5382 and RFC 5508. The engine reads only this struct; presets
//! ([`crate::preset`]) are names for values of it. Each field is an [`Axis`]: a name, a grammar and a sentence that
//! flags, configuration files, `natbox set` and printed tables all share.

mod axes;
mod carrier;
mod destinations;
mod words;

use std::time::Duration;

pub use self::{axes::*, carrier::*, destinations::*, words::*};
use crate::{
    Protocol,
    value::{Allowed, PortRange, ValueError},
};

/// One NAT's behaviour. [`Behavior::default`] follows the RFCs wherever they recommend something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behavior {
    /// When an external endpoint is reused for another destination.
    pub mapping: Mapping,
    /// Who may send inwards.
    pub filtering: Filtering,
    /// What the filter's permissions belong to.
    pub filter_scope: FilterScope,
    /// Whether they are for one transport; they are wherever TCP is filtered otherwise than UDP.
    pub filter_protocol: FilterProtocol,
    /// How external ports are chosen.
    pub ports: PortAssignment,
    /// The ports to choose from; a port outside is never preserved.
    pub port_range: PortRange,
    /// Distance between neighbours under [`PortAssignment::Sequential`]; 1 to 1,024.
    pub port_step: u16,
    /// Odd inside ports get odd external ports, even ones even (RFC 4787 REQ-4).
    pub port_parity: bool,
    /// Boundaries that ports keep to.
    pub port_class: PortClass,
    /// Two mappings may share an external endpoint as long as their remote endpoints differ (RFC 4787 REQ-3 forbids
    /// it, RFC 7857 §3 allows it).
    pub overloading: bool,
    /// How a pool of external addresses is shared out.
    pub pooling: Pooling,
    /// Traffic between two hosts behind this NAT.
    pub hairpin: Hairpin,
    /// Directions that keep a UDP mapping alive.
    pub refresh: Refresh,
    /// Idle lifetime of a UDP session that has not been answered.
    pub udp_timeout: Duration,
    /// Idle lifetime of a UDP session that has seen packets both ways.
    pub udp_replied_timeout: Duration,
    /// Idle lifetime of a TCP connection before its handshake is complete.
    pub tcp_opening_timeout: Duration,
    /// Idle lifetime of an established TCP connection.
    pub tcp_established_timeout: Duration,
    /// Idle lifetime of a TCP connection that one side or both have closed.
    pub tcp_closing_timeout: Duration,
    /// What a reset does to its connection's state.
    pub tcp_reset: TcpReset,
    /// How long state is kept after a reset, where it is.
    pub tcp_reset_timeout: Duration,
    /// Idle lifetime of an ICMP query session.
    pub icmp_timeout: Duration,
    /// A mapping dies at this age, however busy it is.
    pub mapping_lifetime: Option<Duration>,
    /// What an unsolicited inbound SYN meets.
    pub unsolicited_syn: UnsolicitedSyn,
    /// What a packet from outside that nothing admits leaves behind. It matters where each destination has a mapping of
    /// its own.
    pub unsolicited: Unsolicited,
    /// What an outbound segment of no known connection meets.
    pub stray_tcp: StrayTcp,
    /// Which fragments pass.
    pub fragments: Fragments,
    /// The identification of packets that leave.
    pub identification: Identification,
    /// What a new flow meets when the tables are full.
    pub pressure: Pressure,
    /// UDP destination ports that may be reached from inside.
    pub allow_udp: Allowed,
    /// TCP destination ports that may be reached from inside.
    pub allow_tcp: Allowed,
    /// Inside addresses that agree in so many leading bits are one subscriber; 1 to 32.
    pub subscriber_prefix: u8,
    /// Mappings that a subscriber may have at once (RFC 6888 REQ-4).
    pub subscriber_mappings: Option<u32>,
    /// Sessions that a subscriber may have at once (RFC 6888 REQ-5).
    pub subscriber_sessions: Option<u32>,
    /// How often a subscriber may make a mapping (RFC 6888 REQ-4c).
    pub subscriber_mapping_rate: Option<Rate>,
    /// How often a subscriber may begin a session (RFC 6888 REQ-5b).
    pub subscriber_session_rate: Option<Rate>,
    /// What a host is told for whose new flow there is no room.
    pub exhaustion: Exhaustion,
    /// How long an external port rests after its last mapping, unless it need not: under a filter that asks who sends,
    /// for TCP, which is tracked, and after a static forward (RFC 6888 REQ-8).
    pub port_quarantine: Option<Duration>,
    /// Ports that may rest at once; beyond, the one that has rested longest is free.
    pub quarantine_ports: u32,
    /// A subscriber's external ports come from blocks of so many, which are its own; 16 to 32,768 (RFC 6888 REQ-14).
    pub port_block: Option<u16>,
    /// Blocks that a subscriber may have at once.
    pub subscriber_blocks: u16,
    /// Destinations that are routed, not translated; what they send to inside networks is as well (RFC 6888 REQ-6).
    pub untranslated: Destinations,
    /// Idle lifetimes of UDP sessions with certain well-known ports (RFC 4787 REQ-5a).
    pub udp_port_timeouts: PortTimeouts,
    /// [`Behavior::mapping`] for TCP, where it is another.
    pub tcp_mapping: ForTcp<Mapping>,
    /// [`Behavior::filtering`] for TCP, where it is another (RFC 5382 REQ-3b).
    pub tcp_filtering: ForTcp<Filtering>,
    /// Towards which sides the NAT sends ICMP errors of its own (RFC 5508 REQ-9).
    pub icmp_errors: IcmpErrors,
}

impl Behavior {
    /// What the RFCs ask for: the behaviour that every [`preset`](crate::preset) starts from in reading, and
    /// [`Behavior::default`].
    pub const RFC: Behavior = Behavior {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressDependent,
        filter_scope: FilterScope::Mapping,
        filter_protocol: FilterProtocol::Own,
        ports: PortAssignment::Random,
        port_range: match PortRange::new(1, u16::MAX) {
            Some(range) => range,
            None => PortRange::ALL,
        },
        port_step: 1,
        port_parity: true,
        port_class: PortClass::WellKnown,
        overloading: false,
        pooling: Pooling::Paired,
        hairpin: Hairpin::External,
        refresh: Refresh::Outbound,
        udp_timeout: Duration::from_secs(300),
        udp_replied_timeout: Duration::from_secs(300),
        tcp_opening_timeout: Duration::from_secs(240),
        tcp_established_timeout: Duration::from_secs(7440),
        tcp_closing_timeout: Duration::from_secs(240),
        tcp_reset: TcpReset::Keep,
        tcp_reset_timeout: Duration::from_secs(240),
        icmp_timeout: Duration::from_secs(60),
        mapping_lifetime: None,
        unsolicited_syn: UnsolicitedSyn::Wait,
        unsolicited: Unsolicited::Forget,
        stray_tcp: StrayTcp::Drop,
        fragments: Fragments::AnyOrder,
        identification: Identification::Unique,
        pressure: Pressure::Refuse,
        allow_udp: Allowed::All,
        allow_tcp: Allowed::All,
        subscriber_prefix: 32,
        subscriber_mappings: None,
        subscriber_sessions: None,
        subscriber_mapping_rate: None,
        subscriber_session_rate: None,
        exhaustion: Exhaustion::Prohibited,
        port_quarantine: None,
        quarantine_ports: 1 << 16,
        port_block: None,
        subscriber_blocks: 4,
        untranslated: Destinations::NONE,
        udp_port_timeouts: PortTimeouts::NONE,
        tcp_mapping: ForTcp::Same,
        tcp_filtering: ForTcp::Same,
        icmp_errors: IcmpErrors::Both,
    };

    /// When packets of this protocol share an external endpoint.
    #[inline]
    pub fn mapping_of(&self, protocol: Protocol) -> Mapping {
        if protocol == Protocol::Tcp { self.tcp_mapping.or(self.mapping) } else { self.mapping }
    }

    /// Who may send packets of this protocol inwards.
    #[inline]
    pub fn filtering_of(&self, protocol: Protocol) -> Filtering {
        if protocol == Protocol::Tcp { self.tcp_filtering.or(self.filtering) } else { self.filtering }
    }

    /// Sets one axis by its name, as flags, files and `natbox set` do.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ValueError> {
        let Some(axis) = Axis::by_name(name) else {
            let names: Vec<_> = AXES.iter().map(|axis| axis.name).collect();
            return Err(ValueError {
                axis: "a NAT behaviour".to_owned(),
                value: name.to_owned(),
                expected: format!("one of {}", names.join(", ")),
            });
        };
        axis.set(self, value)
    }
}

impl Default for Behavior {
    fn default() -> Behavior {
        Behavior::RFC
    }
}
