//! What to expect of a pair of NATs.
//!
//! The table is brute-forced: natbox-sim's `tests/matrix.rs` derives it from the NAT engine itself, and the agent's own
//! scenarios are held to it. It takes ports to be random, one public address for each NAT, and filter state for each
//! mapping; a pair that is connected by a pair of one-way paths counts as plain, since here it is.

use std::fmt;

use super::{Filtering, Mapping, NatProfile, PortAssignment};

/// What it takes to connect two peers directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expectation {
    /// Checks alone find a path.
    Plain,
    /// One port of one side must be found.
    OneSide,
    /// A port of both sides must be found.
    BothSides,
    /// Too little is known of the NATs.
    Unknown,
}

/// How a direct path may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Technique {
    /// Checks from both sides at once, with peer-reflexive learning.
    Punch,
    /// Checks to the ports that the NAT will choose next.
    PredictPort,
    /// Checks from many sockets on one side to many ports on the other, until two meet.
    Birthday,
    /// None is worth its packets: both ports are random.
    RelayOnly,
}

use Expectation::{BothSides as B, OneSide as O, Plain as P};

/// By mapping × filtering, both in the order endpoint-independent, address-dependent, address-and-port-dependent.
const TABLE: [&[Expectation]; 9] = [
    &[P],                         // EIM/EIF
    &[P, P],                      // EIM/ADF
    &[P, P, P],                   // EIM/APDF
    &[P, P, O, P],                // ADM/EIF
    &[P, P, O, P, O],             // ADM/ADF
    &[P, P, O, O, O, B],          // ADM/APDF
    &[P, P, O, P, P, O, P],       // APDM/EIF
    &[P, P, O, P, O, B, P, B],    // APDM/ADF
    &[P, P, O, O, O, B, B, B, B], // APDM/APDF
];

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

/// What to expect of two peers behind these NATs; the same whichever comes first. What is unknown of one is left out of
/// account where it makes no difference.
pub fn expect(one: &NatProfile, other: &NatProfile) -> Expectation {
    let mut all = kinds(one).flat_map(|a| kinds(other).map(move |b| TABLE[a.max(b)][a.min(b)]));
    let first = all.next().unwrap_or(Expectation::Unknown);
    if all.all(|next| next == first) { first } else { Expectation::Unknown }
}

/// The rows of the table that a NAT may be in.
fn kinds(profile: &NatProfile) -> impl Iterator<Item = usize> + Clone + use<> {
    let mapping = match (profile.translated, profile.mapping, profile.ports) {
        (Some(false), ..) => Some(Mapping::EndpointIndependent),
        // A NAT that preserves ports most likely does so towards every destination.
        (_, None, Some(PortAssignment::Preserve)) => Some(Mapping::EndpointIndependent),
        (_, mapping, _) => mapping,
    };
    let filtering = profile.filtering;
    (0..9).filter(move |row| {
        mapping.is_none_or(|mapping| MAPPINGS[row / 3] == mapping)
            && filtering.is_none_or(|filtering| FILTERINGS[row % 3] == filtering)
    })
}

/// The technique to try on a pair of NATs.
pub fn technique(one: &NatProfile, other: &NatProfile) -> Technique {
    let is_predictable = |profile: &NatProfile| matches!(profile.ports, Some(PortAssignment::Sequential(_)));
    let is_hard = |profile: &NatProfile| profile.mapping != Some(Mapping::EndpointIndependent);
    match expect(one, other) {
        Expectation::Plain | Expectation::Unknown => Technique::Punch,
        Expectation::OneSide if [one, other].iter().any(|p| is_hard(p) && is_predictable(p)) => {
            Technique::PredictPort
        }
        Expectation::OneSide => Technique::Birthday,
        Expectation::BothSides if is_predictable(one) && is_predictable(other) => Technique::PredictPort,
        Expectation::BothSides if is_predictable(one) || is_predictable(other) => Technique::Birthday,
        Expectation::BothSides => Technique::RelayOnly,
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expectation::Plain => "these two NATs let peers through to each other",
            Expectation::OneSide => {
                "one of the two NATs gives every destination another port, which must be found"
            }
            Expectation::BothSides => "both NATs give every destination another port, and both must be found",
            Expectation::Unknown => "too little is known of the NATs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = NatProfile> + Clone {
        (0..9).map(|row: usize| NatProfile {
            translated: Some(true),
            mapping: Some(MAPPINGS[row / 3]),
            filtering: Some(FILTERINGS[row % 3]),
            ports: Some(PortAssignment::Random),
            hairpin: None,
        })
    }

    #[test]
    fn twenty_five_plain_thirteen_one_sided_seven_two_sided() {
        let profiles: Vec<_> = all().collect();
        let mut counts = [0; 3];
        for (i, a) in profiles.iter().enumerate() {
            for b in &profiles[..=i] {
                assert_eq!(expect(a, b), expect(b, a));
                counts[expect(a, b) as usize] += 1;
            }
        }
        assert_eq!(counts, [25, 13, 7]);
    }

    #[test]
    fn what_is_unknown_counts_only_where_it_matters() {
        let unknown = NatProfile::default();
        assert_eq!(expect(&unknown, &unknown), Expectation::Unknown);
        assert_eq!(expect(&NatProfile::OPEN, &unknown), Expectation::Plain);
        let strict = NatProfile {
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ..unknown
        };
        assert_eq!(expect(&strict, &strict), Expectation::BothSides);
        assert_eq!(expect(&strict, &unknown), Expectation::Unknown);
    }

    #[test]
    fn preserved_ports_count_where_the_mapping_is_not_known() {
        let preserving = NatProfile { ports: Some(PortAssignment::Preserve), ..NatProfile::default() };
        assert_eq!(expect(&preserving, &preserving), Expectation::Plain);
        let all_others = NatProfile { mapping: Some(Mapping::AddressAndPortDependent), ..preserving };
        assert_eq!(expect(&all_others, &all_others), Expectation::Unknown);
    }

    #[test]
    fn techniques() {
        let nat = |mapping, filtering, ports| NatProfile {
            translated: Some(true),
            mapping: Some(MAPPINGS[mapping]),
            filtering: Some(FILTERINGS[filtering]),
            ports: Some(ports),
            hairpin: None,
        };
        let (random, sequential) = (PortAssignment::Random, PortAssignment::Sequential(1));
        let easy = nat(0, 2, random);
        assert_eq!(technique(&easy, &easy), Technique::Punch);
        assert_eq!(technique(&easy, &nat(2, 2, random)), Technique::Birthday);
        assert_eq!(technique(&easy, &nat(2, 2, sequential)), Technique::PredictPort);
        assert_eq!(technique(&nat(2, 2, random), &nat(2, 2, random)), Technique::RelayOnly);
        assert_eq!(technique(&nat(2, 2, sequential), &nat(2, 2, sequential)), Technique::PredictPort);
    }
}
