//! From observations to classes. Pure.

use std::net::{IpAddr, SocketAddr};

use super::ProbeError;
use super::class::{Classification, Evidence, Filtering, Hairpin, Mapping, PortAssignment, Protocol};
use super::endpoints::{Outcome, Source};

/// Distances beyond this are no sequence: a busy NAT gives some ports to others between two of ours, not dozens.
const NEAR: i32 = 64;

/// Everything that was seen, before it is judged.
pub(super) struct Observed {
    pub(super) protocol: Protocol,
    pub(super) local: SocketAddr,
    /// `local` as seen by each of [`Source::ALL`].
    pub(super) mapped: [SocketAddr; 4],
    pub(super) foreign: [(Source, Outcome); 3],
    /// Fresh local ports and the external endpoints they got, in order.
    pub(super) samples: Vec<(u16, SocketAddr)>,
}

/// A classification that lacks only the hairpin, which is asked last because what it can show depends on the rest.
pub(super) fn classify(seen: Observed) -> Result<Classification, ProbeError> {
    let Observed { protocol, local, mapped, foreign, samples } = seen;
    let ports: Vec<_> = samples.iter().map(|&(local, external)| (local, external.port())).collect();
    let mut external: Vec<IpAddr> =
        mapped.iter().chain(samples.iter().map(|(_, external)| external)).map(SocketAddr::ip).collect();
    external.sort();
    external.dedup();
    let translated = mapped.iter().any(|m| *m != local)
        || samples.iter().any(|(l, e)| (local.ip(), *l) != (e.ip(), e.port()));
    Ok(Classification {
        protocol,
        local: local.ip(),
        translated,
        mapping: mapping(protocol, &mapped)?,
        filtering: filtering(protocol, &foreign)?,
        ports: port_assignment(&ports),
        parity_kept: ports.iter().all(|(local, external)| local % 2 == external % 2),
        hairpin: Hairpin::Unobservable,
        external,
        evidence: Evidence { mapped, foreign, ports },
    })
}

/// Whether a hairpinned packet could get past mapping and filtering, once both sides have sent to each other's external
/// endpoint: either no filter, or the mapping that was announced is the one whose filter was opened.
pub(super) fn hairpin_observable(class: &Classification) -> bool {
    class.translated
        && (class.mapping == Mapping::EndpointIndependent
            || class.filtering == Filtering::EndpointIndependent)
}

fn mapping(protocol: Protocol, mapped: &[SocketAddr; 4]) -> Result<Mapping, ProbeError> {
    let [same, port, addr, both] = *mapped;
    let (first_kept, second_kept) = (same == port, addr == both);
    match (first_kept, second_kept) {
        (true, true) if same == addr => Ok(Mapping::EndpointIndependent),
        (true, true) => Ok(Mapping::AddressDependent),
        (false, false) => Ok(Mapping::AddressAndPortDependent),
        _ => Err(ProbeError::Inconsistent {
            protocol,
            what: "mapping",
            seen: format!("one local port became {mapped:?}"),
        }),
    }
}

fn filtering(protocol: Protocol, foreign: &[(Source, Outcome); 3]) -> Result<Filtering, ProbeError> {
    match foreign.map(|(_, outcome)| outcome == Outcome::Accepted) {
        [true, true, true] => Ok(Filtering::EndpointIndependent),
        [true, false, false] => Ok(Filtering::AddressDependent),
        [false, false, false] => Ok(Filtering::AddressAndPortDependent),
        _ => Err(ProbeError::Inconsistent { protocol, what: "filtering", seen: format!("{foreign:?}") }),
    }
}

fn port_assignment(ports: &[(u16, u16)]) -> PortAssignment {
    let kept = ports.iter().filter(|(local, external)| local == external).count();
    if kept * 2 > ports.len() {
        return PortAssignment::Preserve;
    }
    let steps: Vec<i32> = ports.windows(2).map(|w| i32::from(w[1].1) - i32::from(w[0].1)).collect();
    let near = |step: i32| step != 0 && step.abs() <= NEAR;
    let usual = steps
        .iter()
        .copied()
        .filter(|&s| near(s))
        .max_by_key(|&s| (steps.iter().filter(|&&other| other == s).count(), -s.abs()));
    let Some(step) = usual else { return PortAssignment::Random };
    // A wrap at the end of the range, and other users' ports, break a sequence here and there.
    let repeated = steps.iter().filter(|&&s| s == step).count() * 5 >= steps.len() * 3;
    let one_way = steps.iter().all(|&s| near(s) && s.signum() == step.signum());
    if repeated || one_way { PortAssignment::Sequential { step } } else { PortAssignment::Random }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(ports: [(u8, u16); 4]) -> [SocketAddr; 4] {
        ports.map(|(host, port)| SocketAddr::from(([203, 0, 113, host], port)))
    }

    #[test]
    fn mapping_by_what_four_endpoints_saw() {
        let of = |ports| mapping(Protocol::Udp, &mapped(ports)).ok();
        assert_eq!(of([(1, 7), (1, 7), (1, 7), (1, 7)]), Some(Mapping::EndpointIndependent));
        assert_eq!(of([(1, 7), (1, 7), (1, 8), (1, 8)]), Some(Mapping::AddressDependent));
        assert_eq!(of([(1, 7), (1, 7), (2, 7), (2, 7)]), Some(Mapping::AddressDependent));
        assert_eq!(of([(1, 7), (1, 8), (1, 9), (1, 10)]), Some(Mapping::AddressAndPortDependent));
        // Overloading: one external port for two destinations, still a mapping for each.
        assert_eq!(of([(1, 7), (1, 8), (1, 7), (1, 8)]), Some(Mapping::AddressAndPortDependent));
        assert_eq!(of([(1, 7), (1, 7), (1, 7), (1, 8)]), None);
    }

    #[test]
    fn filtering_by_who_got_through() {
        let of = |passed: [bool; 3]| {
            let mut foreign = Source::FOREIGN.map(|source| (source, Outcome::Dropped));
            for (entry, passed) in foreign.iter_mut().zip(passed) {
                if passed {
                    entry.1 = Outcome::Accepted;
                }
            }
            filtering(Protocol::Tcp, &foreign).ok()
        };
        assert_eq!(of([true, true, true]), Some(Filtering::EndpointIndependent));
        assert_eq!(of([true, false, false]), Some(Filtering::AddressDependent));
        assert_eq!(of([false, false, false]), Some(Filtering::AddressAndPortDependent));
        for odd in [[false, true, true], [false, false, true], [true, true, false], [false, true, false]] {
            assert_eq!(of(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn ports_by_how_they_follow_each_other() {
        let of = |external: &[u16]| {
            let local = [40_001, 51_010, 33_333, 60_000, 47_112, 35_008, 59_999, 42_424];
            port_assignment(&local.iter().copied().zip(external.iter().copied()).collect::<Vec<_>>())
        };
        assert_eq!(
            of(&[40_001, 51_010, 33_333, 60_000, 47_112, 35_008, 59_999, 42_424]),
            PortAssignment::Preserve
        );
        assert_eq!(of(&[40_001, 51_010, 9, 60_000, 47_112, 77, 59_999, 42_424]), PortAssignment::Preserve);
        assert_eq!(of(&[1, 2, 3, 4, 5, 6, 7, 8]), PortAssignment::Sequential { step: 1 });
        assert_eq!(
            of(&[65_531, 65_533, 65_535, 1025, 1027, 1029, 1031, 1033]),
            PortAssignment::Sequential { step: 2 }
        );
        assert_eq!(of(&[10, 11, 12, 20, 21, 29, 30, 44]), PortAssignment::Sequential { step: 1 });
        assert_eq!(of(&[80, 79, 78, 77, 76, 75, 74, 73]), PortAssignment::Sequential { step: -1 });
        assert_eq!(of(&[9000, 14, 50_000, 2313, 40_444, 3, 999, 61_000]), PortAssignment::Random);
        // Random within a small block.
        assert_eq!(of(&[1030, 1024, 1060, 1051, 1039, 1041, 1027, 1058]), PortAssignment::Random);
        assert_eq!(of(&[7, 7, 7, 7, 7, 7, 7, 7]), PortAssignment::Random);
    }
}
