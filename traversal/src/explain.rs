//! NATs in words.

use traversal_proto::path::{
    Filtering, Mapping, NatProfile, PortAssignment,
    strategy::{Expectation, expect},
};

/// What one NAT is like.
pub(crate) fn nat(profile: &NatProfile) -> String {
    if profile.translated == Some(false) {
        return match profile.filtering {
            Some(Filtering::EndpointIndependent) => "no NAT".to_owned(),
            Some(_) => "no NAT, but a firewall".to_owned(),
            None => "no NAT (a firewall perhaps)".to_owned(),
        };
    }
    let mapping = match profile.mapping {
        Some(Mapping::EndpointIndependent) => "a NAT with endpoint-independent mapping",
        Some(Mapping::AddressDependent) => "a NAT with address-dependent mapping",
        Some(Mapping::AddressAndPortDependent) => {
            "a NAT with address- and port-dependent mapping (symmetric)"
        }
        None => "a NAT of unknown mapping",
    };
    let filtering = match profile.filtering {
        Some(Filtering::EndpointIndependent) => ", open to everybody",
        Some(Filtering::AddressDependent) => ", filtering by address",
        Some(Filtering::AddressAndPortDependent) => ", filtering by address and port",
        None => "",
    };
    let ports = match profile.ports {
        Some(PortAssignment::Preserve) => ", ports preserved".to_owned(),
        Some(PortAssignment::Sequential(step)) => format!(", ports in steps of {step}"),
        Some(PortAssignment::Random) => ", ports at random".to_owned(),
        None => String::new(),
    };
    format!("{mapping}{filtering}{ports}")
}

/// What to expect between two NATs, without finding out a port. A filter that is not known is taken to be the strictest.
pub(crate) fn chance(ours: &NatProfile, theirs: &NatProfile) -> Expectation {
    let strict = |profile: &NatProfile| NatProfile {
        filtering: profile.filtering.or(Some(Filtering::AddressAndPortDependent)),
        ..*profile
    };
    expect(&strict(ours), &strict(theirs))
}

/// Why two NATs have no direct path between them, and what would help. `same`: they are one NAT, as seen from outside.
pub(crate) fn pair(ours: &NatProfile, theirs: Option<&NatProfile>, same: bool) -> String {
    if same && ours.hairpin != Some(true) {
        return format!(
            "both are behind one NAT, {}, and it does not take packets from its own side to its own address (hairpinning); \
             only within one network would they reach each other",
            nat(ours)
        );
    }
    let Some(theirs) = theirs else {
        return format!("we are behind {}; the peer has not told what it is behind", nat(ours));
    };
    let between = format!("we are behind {}, the peer behind {}", nat(ours), nat(theirs));
    let what = match chance(ours, theirs) {
        Expectation::Plain => "this pair should work: a firewall that drops UDP between the two is likely",
        Expectation::OneSide => {
            "one side's external port cannot be known beforehand: port mapping (UPnP, PCP) or a forwarded port on either \
             side would help"
        }
        Expectation::BothSides => {
            "neither side's external port can be known beforehand: port mapping (UPnP, PCP) or a forwarded port on both \
             sides, or a NAT with endpoint-independent mapping on one, would help"
        }
        Expectation::Unknown => "not enough is known of the two yet",
    };
    format!("{between}; {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_both_and_what_helps() {
        let symmetric = NatProfile {
            translated: Some(true),
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Some(PortAssignment::Random),
            hairpin: None,
        };
        let text = pair(&symmetric, Some(&symmetric), false);
        assert!(text.contains("symmetric") && text.contains("would help"), "{text}");
        let text = pair(&symmetric, Some(&symmetric), true);
        assert!(text.contains("one NAT") && text.contains("hairpinning"), "{text}");
    }

    #[test]
    fn an_unknown_filter_is_taken_to_be_strict() {
        let cone = NatProfile { mapping: Some(Mapping::EndpointIndependent), ..NatProfile::default() };
        let symmetric = NatProfile { mapping: Some(Mapping::AddressAndPortDependent), ..cone };
        assert_eq!(chance(&cone, &symmetric), Expectation::OneSide);
        assert_eq!(chance(&cone, &NatProfile::default()), Expectation::Unknown);
    }
}
