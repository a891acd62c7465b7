//! NATs in words.

use traversal_proto::path::{Filtering, Mapping, NatProfile, PortAssignment};

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

/// What can be expected of a pair of NATs, without finding out a port (docs: nat-behaviours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Chance {
    /// Direct.
    Direct,
    /// Direct only if the external port of one side is found out.
    OnePort,
    /// Direct only if the ports of both sides are found out.
    BothPorts,
    /// Not enough is known.
    Unknown,
}

/// How a socket behaves towards others, on both axes.
pub(crate) type Kind = (Mapping, Filtering);

fn kind(profile: &NatProfile) -> Option<Kind> {
    if profile.translated == Some(false) {
        let filtering = profile.filtering.unwrap_or(Filtering::AddressAndPortDependent);
        return Some((Mapping::EndpointIndependent, filtering));
    }
    let mapping = match (profile.mapping?, profile.ports) {
        // Whoever keeps the port has one external endpoint towards everybody.
        (_, Some(PortAssignment::Preserve)) => Mapping::EndpointIndependent,
        (mapping, _) => mapping,
    };
    Some((mapping, profile.filtering.unwrap_or(Filtering::AddressAndPortDependent)))
}

/// What to expect between two NATs.
pub(crate) fn chance(ours: &NatProfile, theirs: &NatProfile) -> Chance {
    match (kind(ours), kind(theirs)) {
        (Some(ours), Some(theirs)) => chance_of(ours, theirs),
        _ => Chance::Unknown,
    }
}

/// The rule behind the matrix: a side reaches the other if it knows, or learns from a packet that gets through, where to
/// send. One public address on each side is assumed, and paths that differ by direction are allowed.
pub(crate) fn chance_of(a: Kind, b: Kind) -> Chance {
    use Filtering as F;
    use Mapping as M;
    let (a, b) = if rank(a) <= rank(b) { (a, b) } else { (b, a) };
    match (a, b) {
        ((M::EndpointIndependent, _), (M::EndpointIndependent, _)) => Chance::Direct,
        ((M::EndpointIndependent, F::AddressAndPortDependent), _) => Chance::OnePort,
        ((M::EndpointIndependent, _), _) => Chance::Direct,
        (
            (M::AddressDependent, F::EndpointIndependent),
            (M::AddressDependent | M::AddressAndPortDependent, f),
        ) if f != F::AddressAndPortDependent => Chance::Direct,
        (
            (M::AddressDependent, F::AddressDependent),
            (M::AddressAndPortDependent, F::EndpointIndependent),
        ) => Chance::Direct,
        (
            (M::AddressDependent, F::AddressAndPortDependent),
            (M::AddressAndPortDependent, F::EndpointIndependent),
        ) => Chance::OnePort,
        ((M::AddressDependent, F::AddressAndPortDependent), _) => Chance::BothPorts,
        ((M::AddressDependent, _), _) => Chance::OnePort,
        (
            (M::AddressAndPortDependent, F::EndpointIndependent),
            (M::AddressAndPortDependent, F::EndpointIndependent | F::AddressDependent),
        ) => Chance::Direct,
        ((M::AddressAndPortDependent, _), _) => Chance::BothPorts,
    }
}

fn rank((mapping, filtering): Kind) -> (u8, u8) {
    (mapping as u8, filtering as u8)
}

/// Why two NATs have no direct path between them, and what would help.
pub(crate) fn pair(ours: &NatProfile, theirs: Option<&NatProfile>) -> String {
    let Some(theirs) = theirs else {
        return format!("we are behind {}; the peer has not told what it is behind", nat(ours));
    };
    let between = format!("we are behind {}, the peer behind {}", nat(ours), nat(theirs));
    let what = match chance(ours, theirs) {
        Chance::Direct => "this pair should work: a firewall that drops UDP between the two is likely",
        Chance::OnePort => {
            "one side's external port cannot be known beforehand: port mapping (UPnP, PCP) or a forwarded port on either \
             side would help"
        }
        Chance::BothPorts => {
            "neither side's external port can be known beforehand: port mapping (UPnP, PCP) or a forwarded port on both \
             sides, or a NAT with endpoint-independent mapping on one, would help"
        }
        Chance::Unknown => "not enough is known of the two yet",
    };
    format!("{between}; {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPINGS: [Mapping; 3] =
        [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
    const FILTERINGS: [Filtering; 3] =
        [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

    /// The 45 unordered pairs: 25 direct (two of them by different paths for each direction), 13 with one port to be found,
    /// 7 with two.
    #[test]
    fn the_matrix() {
        let kinds: Vec<Kind> = MAPPINGS.iter().flat_map(|m| FILTERINGS.iter().map(|f| (*m, *f))).collect();
        let mut count = [0; 3];
        for (at, a) in kinds.iter().enumerate() {
            for b in &kinds[at..] {
                assert_eq!(chance_of(*a, *b), chance_of(*b, *a));
                count[chance_of(*a, *b) as usize] += 1;
            }
        }
        assert_eq!(count, [25, 13, 7]);
    }

    #[test]
    fn words_name_both_and_what_helps() {
        let symmetric = NatProfile {
            translated: Some(true),
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Some(PortAssignment::Random),
            hairpin: None,
        };
        let text = pair(&symmetric, Some(&symmetric));
        assert!(text.contains("symmetric") && text.contains("would help"), "{text}");
    }
}
