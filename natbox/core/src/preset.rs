//! Names for values of [`Behavior`]: NATs that were observed in the field, and the words of RFC 3489.
//!
//! A preset sets every field. Where no source says what a field should be, the preset's source says "assumed".

use std::time::Duration;

use crate::{
    behavior::*,
    value::{Allowed, PortRange},
};

/// A named behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it stands for, in one line.
    pub about: &'static str,
    /// Where its values were observed or written down.
    pub observed: &'static str,
    behavior: fn() -> Behavior,
}

impl Preset {
    /// The preset of this name.
    pub fn by_name(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The behaviour that it stands for.
    pub fn behavior(&self) -> Behavior {
        (self.behavior)()
    }
}

/// Every preset, in the order in which they are printed.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "rfc",
        about: "what RFC 4787, 5382, 5508 and 7857 ask for",
        observed: "RFC 4787, RFC 5382, RFC 5508, RFC 7857",
        behavior: || Behavior::RFC,
    },
    Preset {
        name: "linux",
        about: "netfilter masquerade: the router at home",
        observed: "Linux nf_nat and nf_conntrack defaults; natbox/tests/kernel compares it with the kernel",
        behavior: linux,
    },
    Preset {
        name: "home",
        about: "another name for linux",
        observed: "Linux nf_nat and nf_conntrack defaults; natbox/tests/kernel compares it with the kernel",
        behavior: linux,
    },
    Preset {
        name: "linux-open",
        about: "netfilter masquerade without an input filter: a stray packet takes the port that it came to",
        observed: "Linux nf_nat and nf_conntrack defaults; natbox/tests/kernel compares it with the kernel",
        behavior: || Behavior {
            unsolicited: Unsolicited::Occupy,
            unsolicited_syn: UnsolicitedSyn::Reset,
            ..linux()
        },
    },
    Preset {
        name: "full-cone",
        about: "one external port for everything, open to everybody",
        observed: "RFC 3489 §5; timers of RFC 4787 and RFC 5382",
        behavior: || cone(Filtering::EndpointIndependent),
    },
    Preset {
        name: "restricted-cone",
        about: "one external port for everything, open to addresses that were sent to",
        observed: "RFC 3489 §5; timers of RFC 4787 and RFC 5382",
        behavior: || cone(Filtering::AddressDependent),
    },
    Preset {
        name: "port-restricted",
        about: "one external port for everything, open to endpoints that were sent to",
        observed: "RFC 3489 §5; timers of RFC 4787 and RFC 5382",
        behavior: || cone(Filtering::AddressAndPortDependent),
    },
    Preset {
        name: "symmetric",
        about: "a random external port for each destination",
        observed: "RFC 3489 §5; random ports RFC 7857 §9; timers of RFC 4787 and RFC 5382",
        behavior: || symmetric(PortAssignment::Random),
    },
    Preset {
        name: "symmetric-sequential",
        about: "the next external port for each destination",
        observed: "RFC 3489 §5; step 1; timers of RFC 4787 and RFC 5382",
        behavior: || symmetric(PortAssignment::Sequential),
    },
    Preset {
        name: "aws",
        about: "Amazon VPC NAT gateway",
        observed: "Amazon VPC user guide, NAT gateways: idle 350 s then RST, 55,000 connections to each destination, \
                   fragments of UDP only; UDP and ICMP timers, port choice and hairpin assumed",
        behavior: aws,
    },
    Preset {
        name: "azure",
        about: "Azure NAT gateway",
        observed: "Azure NAT Gateway documentation: 64,512 ports at random, reused towards other destinations, TCP idle \
                   4 min, UDP 4 min, RST for unknown flows, no fragments; transitory TCP timers and ICMP assumed",
        behavior: azure,
    },
    Preset {
        name: "gcp",
        about: "Google Cloud NAT with dynamic port allocation",
        observed: "Google Cloud NAT documentation: UDP 30 s, TCP transitory 30 s, established 1,200 s, TIME_WAIT 120 s, \
                   ICMP 30 s, silent on expiry; endpoint-independent mapping off; port order assumed",
        behavior: gcp,
    },
    Preset {
        name: "cgnat",
        about: "a carrier-grade NAT that keeps to RFC 6888",
        observed: "RFC 6888; Richter et al., IMC 2016, for the short UDP timer; random port order and the numbers of a \
                   subscriber's limits assumed",
        behavior: cgnat,
    },
    Preset {
        name: "cgnat-blocks",
        about: "the same with ports in blocks: a short log, and ports that are easier to guess",
        observed: "as cgnat; Richter et al., IMC 2016, for carriers that assign ports by chunk; RFC 7422; sizes assumed",
        behavior: || Behavior { port_block: Some(512), subscriber_blocks: 4, ..cgnat() },
    },
    Preset {
        name: "mobile",
        about: "a mobile carrier: symmetric, and no mapping gets older than a minute",
        observed: "iroh issue 4424 (mappings dropped 50 to 75 s after creation); the rest as symmetric, assumed",
        behavior: mobile,
    },
    Preset {
        name: "corporate",
        about: "a firewall that lets out DNS and the web",
        observed: "symmetric with strict filtering; UDP 53, TCP 80 and 443 open; timers assumed",
        behavior: corporate,
    },
];

const DYNAMIC: PortRange = match PortRange::new(1024, u16::MAX) {
    Some(range) => range,
    None => PortRange::ALL,
};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// nf_nat keeps one mapping per 5-tuple and prefers the inside port, so it looks endpoint-independent until two inside
/// hosts use the same port towards the same destination.
fn linux() -> Behavior {
    Behavior {
        mapping: Mapping::AddressAndPortDependent,
        filtering: Filtering::AddressAndPortDependent,
        filter_scope: FilterScope::Mapping,
        filter_protocol: FilterProtocol::Own,
        ports: PortAssignment::Linux,
        port_range: PortRange::ALL,
        port_step: 1,
        port_parity: false,
        port_class: PortClass::Linux,
        overloading: true,
        pooling: Pooling::Paired,
        hairpin: Hairpin::Off,
        refresh: Refresh::Both,
        udp_timeout: secs(30),
        udp_replied_timeout: secs(120),
        tcp_opening_timeout: secs(120),
        tcp_established_timeout: secs(432_000),
        tcp_closing_timeout: secs(120),
        tcp_reset: TcpReset::EndUnanswered,
        tcp_reset_timeout: secs(10),
        icmp_timeout: secs(30),
        mapping_lifetime: None,
        unsolicited_syn: UnsolicitedSyn::Drop,
        unsolicited: Unsolicited::Forget,
        stray_tcp: StrayTcp::Forward,
        fragments: Fragments::AnyOrder,
        identification: Identification::Keep,
        pressure: Pressure::DropUnanswered,
        allow_udp: Allowed::All,
        allow_tcp: Allowed::All,
        // What carriers set besides is off.
        ..Behavior::RFC
    }
}

/// The cones of RFC 3489, with the RFCs' timers; the port is preserved as home routers do.
fn cone(filtering: Filtering) -> Behavior {
    Behavior {
        mapping: Mapping::EndpointIndependent,
        filtering,
        filter_scope: FilterScope::Mapping,
        filter_protocol: FilterProtocol::Own,
        ports: PortAssignment::PreserveOrRandom,
        port_range: PortRange::ALL,
        port_step: 1,
        port_parity: false,
        port_class: PortClass::WellKnown,
        overloading: false,
        pooling: Pooling::Paired,
        hairpin: Hairpin::External,
        refresh: Refresh::Both,
        udp_timeout: secs(300),
        udp_replied_timeout: secs(300),
        tcp_opening_timeout: secs(240),
        tcp_established_timeout: secs(7440),
        tcp_closing_timeout: secs(240),
        tcp_reset: TcpReset::Keep,
        tcp_reset_timeout: secs(240),
        icmp_timeout: secs(60),
        mapping_lifetime: None,
        unsolicited_syn: UnsolicitedSyn::Wait,
        unsolicited: Unsolicited::Forget,
        stray_tcp: StrayTcp::Drop,
        fragments: Fragments::AnyOrder,
        identification: Identification::Keep,
        pressure: Pressure::Refuse,
        allow_udp: Allowed::All,
        allow_tcp: Allowed::All,
        // What carriers set besides is off.
        ..Behavior::RFC
    }
}

fn symmetric(ports: PortAssignment) -> Behavior {
    Behavior {
        mapping: Mapping::AddressAndPortDependent,
        ports,
        port_range: DYNAMIC,
        port_class: PortClass::Off,
        hairpin: Hairpin::Off,
        unsolicited_syn: UnsolicitedSyn::Drop,
        ..cone(Filtering::AddressAndPortDependent)
    }
}

fn aws() -> Behavior {
    Behavior {
        overloading: true,
        port_range: DYNAMIC,
        refresh: Refresh::Both,
        udp_timeout: secs(350),
        udp_replied_timeout: secs(350),
        tcp_opening_timeout: secs(350),
        tcp_established_timeout: secs(350),
        tcp_closing_timeout: secs(350),
        tcp_reset_timeout: secs(350),
        icmp_timeout: secs(350),
        stray_tcp: StrayTcp::Reset,
        fragments: Fragments::UdpOnly,
        ..symmetric(PortAssignment::Random)
    }
}

fn azure() -> Behavior {
    Behavior {
        overloading: true,
        udp_timeout: secs(240),
        udp_replied_timeout: secs(240),
        tcp_opening_timeout: secs(240),
        tcp_established_timeout: secs(240),
        tcp_closing_timeout: secs(65),
        tcp_reset_timeout: secs(16),
        icmp_timeout: secs(60),
        stray_tcp: StrayTcp::Reset,
        fragments: Fragments::Drop,
        ..symmetric(PortAssignment::Random)
    }
}

fn gcp() -> Behavior {
    Behavior {
        overloading: true,
        udp_timeout: secs(30),
        udp_replied_timeout: secs(30),
        tcp_opening_timeout: secs(30),
        tcp_established_timeout: secs(1200),
        tcp_closing_timeout: secs(120),
        tcp_reset_timeout: secs(30),
        icmp_timeout: secs(30),
        ..symmetric(PortAssignment::Random)
    }
}

fn cgnat() -> Behavior {
    Behavior {
        ports: PortAssignment::Random,
        port_range: DYNAMIC,
        udp_timeout: secs(120),
        udp_replied_timeout: secs(300),
        subscriber_mappings: Some(2048),
        subscriber_sessions: Some(16_384),
        subscriber_mapping_rate: Rate::new(200, 2000),
        exhaustion: Exhaustion::HostUnreachable,
        port_quarantine: Some(secs(120)),
        identification: Identification::Unique,
        ..cone(Filtering::EndpointIndependent)
    }
}

fn mobile() -> Behavior {
    Behavior { mapping_lifetime: Some(secs(60)), ..symmetric(PortAssignment::Random) }
}

fn corporate() -> Behavior {
    Behavior {
        udp_timeout: secs(30),
        udp_replied_timeout: secs(60),
        tcp_established_timeout: secs(3600),
        allow_udp: Allowed::Only([53, 0, 0, 0, 0, 0, 0, 0]),
        allow_tcp: Allowed::Only([80, 443, 0, 0, 0, 0, 0, 0]),
        ..symmetric(PortAssignment::Random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sourced() {
        for (i, preset) in PRESETS.iter().enumerate() {
            assert!(!preset.about.is_empty() && !preset.observed.is_empty());
            assert!(PRESETS[..i].iter().all(|other| other.name != preset.name), "{}", preset.name);
            assert!(Preset::by_name(preset.name).is_some());
        }
    }

    /// Every value of a preset can be written down and read back: nothing in it is beyond the axes.
    #[test]
    fn presets_are_what_their_axes_say() {
        for preset in PRESETS {
            let mut copy = Behavior::RFC;
            for axis in AXES {
                axis.set(&mut copy, &axis.get(&preset.behavior())).unwrap();
            }
            assert_eq!(copy, preset.behavior(), "{}", preset.name);
        }
    }
}
