//! Every field of [`Behavior`] by its name, in writing.

use std::time::Duration;

use super::Behavior;
use crate::value::{Value, ValueError};

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
