//! What is known of the NAT in front of a node.

use std::fmt;

pub use crate::wire::peer::{Filtering, Mapping, NatProfile, PortAssignment};

impl NatProfile {
    /// No NAT, nothing filtered.
    pub const OPEN: NatProfile = NatProfile {
        translated: Some(false),
        mapping: Some(Mapping::EndpointIndependent),
        filtering: Some(Filtering::EndpointIndependent),
        ports: Some(PortAssignment::Preserve),
        hairpin: None,
    };

    /// The profile with what `newer` knows; what it does not know stays.
    pub fn updated(self, newer: NatProfile) -> NatProfile {
        NatProfile {
            translated: newer.translated.or(self.translated),
            mapping: newer.mapping.or(self.mapping),
            filtering: newer.filtering.or(self.filtering),
            ports: newer.ports.or(self.ports),
            hairpin: newer.hairpin.or(self.hairpin),
        }
    }
}

impl fmt::Display for NatProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.translated == Some(false) {
            f.write_str("no NAT, ")?;
        }
        let mapping = match self.mapping {
            None => "unknown",
            Some(Mapping::EndpointIndependent) => "endpoint-independent",
            Some(Mapping::AddressDependent) => "address-dependent",
            Some(Mapping::AddressAndPortDependent) => "address-and-port-dependent",
        };
        let filtering = match self.filtering {
            None => "unknown",
            Some(Filtering::EndpointIndependent) => "endpoint-independent",
            Some(Filtering::AddressDependent) => "address-dependent",
            Some(Filtering::AddressAndPortDependent) => "address-and-port-dependent",
        };
        write!(f, "{mapping} mapping, {filtering} filtering, ")?;
        match self.ports {
            None => f.write_str("unknown ports"),
            Some(PortAssignment::Preserve) => f.write_str("preserved ports"),
            Some(PortAssignment::Sequential(step)) => write!(f, "sequential ports (step {step})"),
            Some(PortAssignment::Random) => f.write_str("random ports"),
        }
    }
}
