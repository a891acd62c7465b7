//! Everything that makes one NAT differ from another, in one struct.
//!
//! The words are those of RFC 4787, RFC 5382 and RFC 5508. The engine reads only this struct; presets
//! ([`crate::preset`]) are names for values of it. Each field is an [`Axis`]: a name, a grammar and a sentence that
//! flags, configuration files, `natbox set` and printed tables all share.

mod carrier;
mod destinations;

use std::time::Duration;

pub use self::{carrier::*, destinations::*};
use crate::{
    Protocol,
    value::{Allowed, PortRange, Value, ValueError, words},
};

words! {
    /// When two packets from one inside endpoint get the same external endpoint (RFC 4787 §4.1).
    Mapping {
        /// Always, whoever they are sent to.
        EndpointIndependent = "endpoint-independent" | "eim",
        /// When they are sent to the same address.
        AddressDependent = "address-dependent" | "adm",
        /// When they are sent to the same address and port.
        AddressAndPortDependent = "address-and-port-dependent" | "apdm",
    }
}

words! {
    /// Who may send to an external endpoint (RFC 4787 §5).
    Filtering {
        /// Anybody.
        EndpointIndependent = "endpoint-independent" | "eif",
        /// Addresses that the inside host has sent to.
        AddressDependent = "address-dependent" | "adf",
        /// Endpoints that the inside host has sent to.
        AddressAndPortDependent = "address-and-port-dependent" | "apdf",
    }
}

words! {
    /// What the filter remembers its permissions for.
    FilterScope {
        /// Each mapping on its own: what was sent through one mapping opens that mapping only.
        Mapping = "mapping",
        /// The inside endpoint: what it sent through any of its mappings opens all of them.
        Endpoint = "endpoint",
    }
}

words! {
    /// How the external port of a new mapping is chosen (RFC 4787 §4.2).
    PortAssignment {
        /// The inside port; when it is taken, the next free one above it.
        Preserve = "preserve",
        /// The inside port; when it is taken, a random one.
        PreserveOrRandom = "preserve-or-random",
        /// One step above the port of the previous mapping.
        Sequential = "sequential",
        /// A random free port (RFC 7857 §9).
        Random = "random",
        /// The port of the inside endpoint's newest mapping; when that is taken towards this destination, or there is
        /// none, the inside port; when that is taken, a random one: as Linux's masquerade does.
        Linux = "linux",
    }
}

words! {
    /// Which boundaries a port keeps to: an inside port of one class never gets an external port of another
    /// (RFC 4787 §4.2.1).
    PortClass {
        /// None.
        Off = "off",
        /// 1–1023 and 1024–65535 (REQ-3a).
        WellKnown = "well-known",
        /// 1–511, 512–1023 and 1024–65535, as Linux does.
        Linux = "linux",
    }
}

words! {
    /// Which external address of a pool an inside host gets (RFC 4787 REQ-2).
    Pooling {
        /// Always the same one.
        Paired = "paired",
        /// Any, for each mapping anew.
        Arbitrary = "arbitrary",
    }
}

words! {
    /// What happens to a packet from inside to one of the NAT's own external endpoints (RFC 4787 §6).
    Hairpin {
        /// It is dropped.
        Off = "off",
        /// It is delivered, and seems to come from the sender's inside endpoint.
        Internal = "internal",
        /// It is delivered, and seems to come from the sender's external endpoint (REQ-9a).
        External = "external",
    }
}

words! {
    /// Which packets keep a UDP mapping alive (RFC 4787 REQ-6).
    Refresh {
        /// Packets from inside.
        Outbound = "outbound",
        /// Packets from outside that pass the filter.
        Inbound = "inbound",
        /// Both.
        Both = "both",
    }
}

words! {
    /// What an inbound SYN meets that no filter admits (RFC 5382 §7.1).
    UnsolicitedSyn {
        /// Silence for six seconds, then ICMP port unreachable, unless a SYN went out meanwhile (REQ-4).
        Wait = "wait",
        /// Silence for ever.
        Drop = "drop",
        /// A reset at once.
        Reset = "reset",
    }
}

words! {
    /// What a UDP packet or a SYN from outside leaves behind that nothing admits.
    Unsolicited {
        /// Nothing.
        Forget = "forget",
        /// Its tuple is taken, as by a connection of the gateway's own: the next mapping towards its sender gets another
        /// port.
        Occupy = "occupy",
    }
}

words! {
    /// What an outbound TCP segment of no known connection meets, unless it is a SYN.
    StrayTcp {
        /// It is dropped.
        Drop = "drop",
        /// It is taken for an established connection that outlived the NAT's state, if it could be in the middle of one:
        /// it acknowledges, and neither opens nor closes.
        Forward = "forward",
        /// The sender gets a reset, as cloud NAT gateways do after an idle timeout.
        Reset = "reset",
    }
}

words! {
    /// Which fragments pass (RFC 4787 §11).
    Fragments {
        /// All: those that come before the first one of their datagram wait for it (REQ-14).
        AnyOrder = "any-order",
        /// Those that come behind the first one of their datagram.
        InOrder = "in-order",
        /// Those of UDP, in any order.
        UdpOnly = "udp-only",
        /// None. Packets that are too big are still cut.
        Drop = "drop",
    }
}

impl Fragments {
    /// Whether fragments of this protocol pass at all.
    pub(crate) fn passes(self, protocol: Protocol) -> bool {
        match self {
            Fragments::AnyOrder | Fragments::InOrder => true,
            Fragments::UdpOnly => protocol == Protocol::Udp,
            Fragments::Drop => false,
        }
    }
}

words! {
    /// What happens to the identification of packets that are, or may become, fragments.
    Identification {
        /// They get one of the NAT's own, so that those of two hosts never meet (RFC 7857 §10).
        Unique = "unique",
        /// They keep what their host chose.
        Keep = "keep",
    }
}

words! {
    /// What a TCP reset does to the state of its connection, beside passing.
    TcpReset {
        /// It is kept for a while, and a packet from inside revives it (RFC 7857 §2.2): the reset may be forged.
        Keep = "keep",
        /// It ends at once when only one side has spoken yet, as on Linux; else it is kept.
        EndUnanswered = "end-unanswered",
        /// It ends at once, and its port is free.
        End = "end",
    }
}

words! {
    /// What a new flow meets when the tables are full (RFC 6888 REQ-11).
    Pressure {
        /// It is refused.
        Refuse = "refuse",
        /// A flow that only one side has spoken in yet is dropped for it, if a few looks find one, as on Linux.
        DropUnanswered = "drop-unanswered",
        /// The one of a few flows that would end first is dropped for it.
        DropOldest = "drop-oldest",
    }
}

words! {
    /// Which transport a permission of the filter is for (RFC 7857 §6).
    FilterProtocol {
        /// That of the packet which earned it.
        Own = "own",
        /// Any: who was sent to by UDP may answer by TCP at the same external port, and the other way round.
        Any = "any",
    }
}

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

/// One axis of [`Behavior`]: its name, what it means, and its values in writing.
pub struct Axis {
    /// The name in flags, files and output.
    pub name: &'static str,
    /// The grammar of its values, for help and errors.
    pub values: &'static str,
    /// One sentence on what it decides.
    pub help: &'static str,
    get: fn(&Behavior) -> String,
    set: fn(&mut Behavior, &str) -> bool,
}

impl Axis {
    /// The axis of this name.
    pub fn by_name(name: &str) -> Option<&'static Axis> {
        AXES.iter().find(|axis| axis.name == name)
    }

    /// The value that `behavior` has on this axis.
    pub fn get(&self, behavior: &Behavior) -> String {
        (self.get)(behavior)
    }

    /// Sets the value; `behavior` is unchanged when `value` is not one.
    pub fn set(&self, behavior: &mut Behavior, value: &str) -> Result<(), ValueError> {
        if (self.set)(behavior, value.trim()) {
            return Ok(());
        }
        Err(ValueError {
            axis: self.name.to_owned(),
            value: value.to_owned(),
            expected: self.values.to_owned(),
        })
    }
}

macro_rules! axes {
    ($($name:literal $field:ident $values:literal $(if $valid:expr)?; $help:literal)+) => {
        /// Every axis, in the order in which they are printed.
        pub const AXES: &[Axis] = &[$(Axis {
            name: $name,
            values: $values,
            help: $help,
            get: |behavior| behavior.$field.write(),
            set: |behavior, text| match Value::read(text) {
                Some(value) $(if $valid(&value))? => {
                    behavior.$field = value;
                    true
                }
                _ => false,
            },
        }),+];
    };
}

const DURATION: fn(&Duration) -> bool =
    |value| !value.is_zero() && *value <= Duration::from_secs(365 * 86_400);

const POSITIVE: fn(&Option<u32>) -> bool = |value| *value != Some(0);

axes! {
    "mapping" mapping "endpoint-independent (eim), address-dependent (adm) or address-and-port-dependent (apdm)";
        "When packets from one inside endpoint share an external endpoint"
    "filtering" filtering "endpoint-independent (eif), address-dependent (adf) or address-and-port-dependent (apdf)";
        "Who may send to an external endpoint"
    "filter-scope" filter_scope "mapping or endpoint";
        "Whether permissions belong to one mapping or to all of an inside endpoint's"
    "filter-protocol" filter_protocol "own or any";
        "Whether a permission is for the transport that earned it, or, where TCP is filtered as UDP is, for both at one external port"
    "ports" ports "preserve, preserve-or-random, sequential, random or linux (the last one, the same or a random one)";
        "How the external port of a new mapping is chosen"
    "port-range" port_range "FIRST-LAST, such as 1024-65535";
        "The external ports to choose from"
    "port-step" port_step "1 to 1024" if |step: &u16| (1..=1024).contains(step);
        "Distance between neighbouring sequential ports"
    "port-parity" port_parity "on or off";
        "Whether an odd inside port gets an odd external port, and an even one an even"
    "port-class" port_class "off, well-known (below and above 1024) or linux (512 and 1024)";
        "Boundaries that an external port keeps to"
    "overloading" overloading "on or off";
        "Whether mappings to different destinations may share an external endpoint"
    "pooling" pooling "paired or arbitrary";
        "Whether an inside host keeps one external address of a pool"
    "hairpin" hairpin "off, internal or external";
        "Traffic between two inside hosts by way of their external endpoints, and the source that it shows"
    "refresh" refresh "outbound, inbound or both";
        "Which directions keep a UDP mapping alive"
    "udp-timeout" udp_timeout "a duration such as 30s, 5m or 200ms" if DURATION;
        "Idle lifetime of an unanswered UDP session"
    "udp-replied-timeout" udp_replied_timeout "a duration such as 120s or 5m" if DURATION;
        "Idle lifetime of a UDP session that has seen packets both ways"
    "tcp-opening-timeout" tcp_opening_timeout "a duration such as 4m" if DURATION;
        "Idle lifetime of a TCP connection before its handshake is complete"
    "tcp-established-timeout" tcp_established_timeout "a duration such as 2h4m or 5d" if DURATION;
        "Idle lifetime of an established TCP connection"
    "tcp-closing-timeout" tcp_closing_timeout "a duration such as 4m" if DURATION;
        "Idle lifetime of a TCP connection that is being closed"
    "tcp-reset" tcp_reset "keep, end-unanswered or end";
        "Whether a reset ends the state of its connection at once"
    "tcp-reset-timeout" tcp_reset_timeout "a duration such as 4m" if DURATION;
        "How long a TCP connection's state is kept after a reset"
    "icmp-timeout" icmp_timeout "a duration such as 60s" if DURATION;
        "Idle lifetime of an ICMP query session"
    "mapping-lifetime" mapping_lifetime "none, or a duration such as 60s" if |value: &Option<Duration>| value.as_ref().is_none_or(DURATION);
        "The age at which a mapping dies however busy it is"
    "unsolicited-syn" unsolicited_syn "wait (6 s of silence, then ICMP), drop or reset";
        "What an inbound SYN that no filter admits meets"
    "unsolicited" unsolicited "forget or occupy";
        "Whether a packet from outside that nothing admits takes its tuple, so that the next one outwards is given another port"
    "stray-tcp" stray_tcp "drop, forward or reset";
        "What an outbound TCP segment of no known connection meets"
    "fragments" fragments "any-order, in-order, udp-only or drop";
        "Which fragments pass"
    "identification" identification "unique or keep";
        "Whether packets that are or may become fragments get an identification of the NAT's own"
    "pressure" pressure "refuse, drop-unanswered or drop-oldest";
        "What a new flow meets when the tables are full"
    "allow-udp" allow_udp "all, none, or up to eight ports such as 53,443";
        "UDP destination ports that may be reached from inside"
    "allow-tcp" allow_tcp "all, none, or up to eight ports such as 80,443";
        "TCP destination ports that may be reached from inside"
    "subscriber-prefix" subscriber_prefix "1 to 32" if |len: &u8| (1..=32).contains(len);
        "How many leading bits of an inside address tell one subscriber from another"
    "subscriber-mappings" subscriber_mappings "none, or a number such as 2048" if POSITIVE;
        "How many mappings a subscriber may have at once"
    "subscriber-sessions" subscriber_sessions "none, or a number such as 16384" if POSITIVE;
        "How many sessions a subscriber may have at once"
    "subscriber-mapping-rate" subscriber_mapping_rate "none, or RATE[/BURST] such as 100/1000: so many a second, and at once";
        "How often a subscriber may make a mapping"
    "subscriber-session-rate" subscriber_session_rate "none, or RATE[/BURST] such as 500/5000";
        "How often a subscriber may begin a session"
    "exhaustion" exhaustion "prohibited (ICMP code 13), host-unreachable (code 1) or drop";
        "What a host is told for whose new flow there is no room"
    "port-quarantine" port_quarantine "none, or a duration such as 120s" if |value: &Option<Duration>| value.as_ref().is_none_or(DURATION);
        "How long an external UDP port or ICMP identifier rests before another may have it, where anybody may send to it"
    "quarantine-ports" quarantine_ports "a number such as 65536" if |most: &u32| (1..=1 << 24).contains(most);
        "How many ports may rest at once"
    "port-block" port_block "none, or 16 to 32768 ports" if |value: &Option<u16>| value.is_none_or(|size| (16..=32_768).contains(&size));
        "Whether a subscriber's ports come from blocks of its own, and how large these are"
    "subscriber-blocks" subscriber_blocks "1 to 4096" if |most: &u16| (1..=4096).contains(most);
        "How many port blocks a subscriber may have at once"
    "untranslated" untranslated "none, or up to eight of ADDR[/LEN][:PORT] such as 100.64.0.0/10,192.0.2.1:53";
        "Destinations that are routed instead of translated, with what comes from them for inside networks"
    "udp-port-timeouts" udp_port_timeouts "none, or up to eight of PORT=TIME such as 53=10s, with ports below 1024";
        "Idle lifetimes of UDP sessions with certain destination ports"
    "tcp-mapping" tcp_mapping "same, or a value of mapping";
        "The mapping behaviour of TCP, where it is not that of the others"
    "tcp-filtering" tcp_filtering "same, or a value of filtering";
        "The filtering behaviour of TCP, where it is not that of the others"
    "icmp-errors" icmp_errors "both, inside, outside or off";
        "Towards which sides the NAT sends ICMP errors of its own"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_reads_what_it_writes() {
        for axis in AXES {
            let mut behavior = Behavior::default();
            let value = axis.get(&behavior);
            axis.set(&mut behavior, &value).unwrap();
            assert_eq!(behavior, Behavior::default(), "{}", axis.name);
            assert!(axis.set(&mut behavior, "nonsense!").is_err(), "{}", axis.name);
            assert_eq!(behavior, Behavior::default(), "{}", axis.name);
        }
    }

    #[test]
    fn there_is_an_axis_for_every_field() {
        let fields = format!("{:?}", Behavior::default());
        let named = AXES.iter().filter(|axis| fields.contains(&format!("{}: ", axis.name.replace('-', "_"))));
        assert_eq!(named.count(), AXES.len());
        let Behavior { .. } = Behavior::default();
        assert_eq!(AXES.len(), 45, "a new field needs its axis");
    }

    #[test]
    fn errors_name_axis_value_and_grammar() {
        let mut behavior = Behavior::default();
        let error = behavior.set("mapping", "round").unwrap_err().to_string();
        assert!(
            error.contains("\"round\" is not a value of mapping: expected endpoint-independent"),
            "{error}"
        );
        assert!(behavior.set("colour", "x").unwrap_err().to_string().contains("one of mapping, filtering"));
        assert!(behavior.set("udp-timeout", "0s").is_err());
    }
}
