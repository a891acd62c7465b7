//! What a node has found out about its network.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::Serialize;
use traversal_proto::path::{Filtering, Mapping, NatProfile, discovery, strategy::Expectation};

use crate::{SupernodeStatus, explain};

/// How thorough an examination is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DoctorOptions {
    /// How long to look for the lifetime of an idle mapping at the most; zero: not at all. Some minutes find most.
    pub lifetime: Duration,
}

impl DoctorOptions {
    /// Looks for the lifetime of an idle mapping, for so long at the most.
    pub fn with_lifetime(lifetime: Duration) -> DoctorOptions {
        DoctorOptions { lifetime }
    }
}

/// What a node is behind, and what that means. As text it is a page for people; as data it is stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Where the node's own socket is.
    pub local: SocketAddr,
    /// How it stands with its supernodes.
    pub supernodes: Vec<SupernodeStatus>,
    /// UDP gets out and back.
    pub udp: bool,
    /// The NAT, as far as it could be found out.
    pub nat: NatProfile,
    /// The external addresses that were seen.
    pub mapped: Vec<SocketAddr>,
    /// The reflector has one address only: some questions had to stay open.
    pub one_address: bool,
    /// In seconds: an idle mapping lives at least so long, and at most so long, if that is known.
    pub lifetime: Option<(f64, Option<f64>)>,
    /// In one sentence.
    pub verdict: String,
    /// What to expect towards each kind of NAT.
    pub towards: Vec<Towards>,
}

/// What to expect towards peers behind one kind of NAT.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Towards {
    /// Their NAT's mapping.
    pub mapping: Mapping,
    /// Their NAT's filtering.
    pub filtering: Filtering,
    /// `direct`, `one_port` and `both_ports` (direct only if as many external ports are found out), or `unknown`.
    pub expect: &'static str,
}

const MAPPINGS: [(Mapping, &str); 3] = [
    (Mapping::EndpointIndependent, "endpoint-independent"),
    (Mapping::AddressDependent, "address-dependent"),
    (Mapping::AddressAndPortDependent, "address- and port-dependent"),
];
const FILTERINGS: [(Filtering, &str); 3] = [
    (Filtering::EndpointIndependent, "none"),
    (Filtering::AddressDependent, "by address"),
    (Filtering::AddressAndPortDependent, "by address and port"),
];

impl Report {
    pub(crate) fn new(
        local: SocketAddr,
        supernodes: Vec<SupernodeStatus>,
        found: &discovery::Report,
    ) -> Report {
        let seconds = |time: Duration| time.as_secs_f64();
        let towards = MAPPINGS.iter().flat_map(|(mapping, _)| {
            FILTERINGS.iter().map(|(filtering, _)| towards(&found.profile, *mapping, *filtering))
        });
        Report {
            local,
            supernodes,
            udp: !found.no_answer,
            nat: found.profile,
            mapped: found.mapped.clone(),
            one_address: found.one_address,
            lifetime: found.lifetime.map(|(least, most)| (seconds(least), most.map(seconds))),
            verdict: verdict(found),
            towards: towards.collect(),
        }
    }
}

fn towards(ours: &NatProfile, mapping: Mapping, filtering: Filtering) -> Towards {
    let theirs = NatProfile {
        translated: Some(true),
        mapping: Some(mapping),
        filtering: Some(filtering),
        ..NatProfile::default()
    };
    let expect = match explain::chance(ours, &theirs) {
        Expectation::Plain => "direct",
        Expectation::OneSide => "one_port",
        Expectation::BothSides => "both_ports",
        Expectation::Unknown => "unknown",
    };
    Towards { mapping, filtering, expect }
}

fn verdict(found: &discovery::Report) -> String {
    if found.no_answer {
        return "UDP does not get through: connections go over the supernode by TLS".to_owned();
    }
    let what = explain::nat(&found.profile);
    let kinds = MAPPINGS.iter().flat_map(|(m, _)| FILTERINGS.iter().map(|(f, _)| (*m, *f)));
    let direct = kinds.filter(|(m, f)| towards(&found.profile, *m, *f).expect == "direct").count();
    match (found.profile.mapping, direct) {
        (None, _) if found.profile.translated != Some(false) => format!("behind {what}"),
        (_, 9) => format!("behind {what}: direct with everybody"),
        (_, 0) => format!("behind {what}: direct with nobody, unless ports can be found out"),
        (_, n) => format!("behind {what}: direct with {n} of 9 kinds of NAT"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict)?;
        writeln!(f)?;
        for supernode in &self.supernodes {
            let state = match (supernode.registered, supernode.by_tcp, supernode.relay_by_udp) {
                (false, ..) => "not registered",
                (true, false, true) => "registered, by QUIC, relay by UDP",
                (true, false, false) => "registered, by QUIC, relay by the control connection",
                (true, true, true) => "registered, by TLS, relay by UDP",
                (true, true, false) => "registered, by TLS, relay by the control connection",
            };
            write!(f, "supernode   {}: {state}", supernode.address)?;
            match &supernode.problem {
                Some(problem) if !supernode.registered => writeln!(f, " ({problem})")?,
                _ => writeln!(f)?,
            }
        }
        writeln!(f, "local       {}", self.local)?;
        let mut mapped = self.mapped.clone();
        mapped.dedup();
        let seen: Vec<String> = mapped.iter().take(6).map(SocketAddr::to_string).collect();
        writeln!(
            f,
            "seen as     {}",
            if seen.is_empty() { "(no answer)".to_owned() } else { seen.join(", ") }
        )?;
        writeln!(f, "NAT         {}", explain::nat(&self.nat))?;
        let hairpin = match self.nat.hairpin {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        writeln!(f, "hairpin     {hairpin}")?;
        match self.lifetime {
            Some((least, Some(most))) => {
                writeln!(f, "lifetime    an idle mapping lives {least:.0} to {most:.0} s")?
            }
            Some((least, None)) => writeln!(f, "lifetime    an idle mapping lives {least:.0} s or longer")?,
            None => {}
        }
        if self.one_address {
            writeln!(f, "note        the supernode has one address only: some questions stay open")?;
        }
        writeln!(f)?;
        writeln!(f, "towards a peer whose NAT")?;
        write!(f, "  {:<30}", "maps \\ filters")?;
        FILTERINGS.iter().try_for_each(|(_, name)| write!(f, "{name:<22}"))?;
        writeln!(f)?;
        for (row, (_, name)) in self.towards.chunks(FILTERINGS.len()).zip(MAPPINGS) {
            write!(f, "  {name:<30}")?;
            for cell in row {
                let words = match cell.expect {
                    "direct" => "direct",
                    "one_port" => "if a port is found",
                    "both_ports" => "if two ports are found",
                    _ => "?",
                };
                write!(f, "{words:<22}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_well() {
        let profile = NatProfile {
            translated: Some(true),
            mapping: Some(Mapping::EndpointIndependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ..NatProfile::default()
        };
        let found = discovery::Report {
            profile,
            mapped: vec!["198.51.100.7:40000".parse().unwrap()],
            ..discovery::Report::default()
        };
        let report = Report::new("0.0.0.0:40000".parse().unwrap(), Vec::new(), &found);
        assert!(report.verdict.ends_with("direct with 3 of 9 kinds of NAT"), "{}", report.verdict);
        assert_eq!(report.towards.len(), 9);
        let text = report.to_string();
        assert!(text.lines().all(|line| line.len() < 120) && text.contains("endpoint-independent"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains("\"expect\":\"one_port\""), "{json}");
    }
}
