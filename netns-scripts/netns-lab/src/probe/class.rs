//! The words of RFC 4787 and RFC 5382, and a whole classification.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::Serialize;

use super::endpoints::{Outcome, Source};

/// The transport protocol that was probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Protocol {
    Udp,
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// For which destinations a local endpoint keeps its external one (RFC 4787 §4.1, RFC 5382 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// For all.
    EndpointIndependent,
    /// For all ports of one address.
    AddressDependent,
    /// For one address and port only.
    AddressAndPortDependent,
}

/// From which sources a mapping lets packets in (RFC 4787 §5, RFC 5382 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// From all.
    EndpointIndependent,
    /// From the addresses that the local endpoint has sent to.
    AddressDependent,
    /// From the addresses and ports that the local endpoint has sent to.
    AddressAndPortDependent,
}

/// How the NAT chooses external ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum PortAssignment {
    /// The local port is kept (by more than half of the samples: another user may hold some of them).
    Preserve,
    /// Each mapping's port is `step` after the one before.
    Sequential {
        /// The usual distance; negative when counting down.
        step: i32,
    },
    /// None of the above.
    Random,
}

/// What happens to a packet from inside to an external endpoint of the same NAT (RFC 4787 §6, RFC 5382 §7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hairpin {
    /// It does not arrive.
    Off,
    /// It arrives with the sender's internal endpoint as its source. For TCP no connection comes of it.
    InternalSource,
    /// It arrives with the sender's external endpoint as its source.
    ExternalSource,
    /// Nothing can be concluded: there is no NAT, or mapping and filtering would hide a hairpinned packet anyway.
    Unobservable,
}

/// What a NAT is, judged from outside for one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Classification {
    /// The protocol that was probed.
    pub protocol: Protocol,
    /// The address that was probed from.
    pub local: IpAddr,
    /// The external addresses seen, sorted; more than one means pooling that is not paired.
    pub external: Vec<IpAddr>,
    /// Whether any endpoint was translated. If not, there is no NAT on the path.
    pub translated: bool,
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// Filtering behaviour.
    pub filtering: Filtering,
    /// Port assignment behaviour.
    pub ports: PortAssignment,
    /// Whether every sample kept its port's parity (RFC 4787 §4.2.2). By chance with few samples.
    pub parity_kept: bool,
    /// Hairpin behaviour.
    pub hairpin: Hairpin,
    /// What it was judged by.
    pub evidence: Evidence,
}

/// The observations behind a [`Classification`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// One local endpoint as each of the reflector's endpoints saw it, in the order of [`Source::ALL`].
    pub mapped: [SocketAddr; 4],
    /// How packets from foreign endpoints fared, in the order of [`Source::FOREIGN`].
    pub foreign: [(Source, Outcome); 3],
    /// Local and external port of fresh sockets, in the order of their creation.
    pub ports: Vec<(u16, u16)>,
}

impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let external: Vec<_> = self.external.iter().map(IpAddr::to_string).collect();
        let kept = self.evidence.ports.iter().filter(|(local, external)| local == external).count();
        let nat = if self.translated { "" } else { " (no NAT)" };
        writeln!(f, "{} from {} seen as {}{nat}", self.protocol, self.local, external.join(", "))?;
        writeln!(f, "  mapping    {}", self.mapping)?;
        write!(f, "  filtering  {}", self.filtering)?;
        let others = self.evidence.foreign.iter().filter(|(_, o)| *o != Outcome::Accepted);
        let fates: Vec<_> = others.map(|(_, outcome)| outcome.to_string()).collect();
        match (self.protocol, fates.first()) {
            (Protocol::Tcp, Some(first)) if fates.iter().all(|fate| fate == first) => {
                writeln!(f, " (others {first})")?;
            }
            (Protocol::Tcp, Some(_)) => writeln!(f, " (others {})", fates.join(", "))?,
            _ => writeln!(f)?,
        }
        writeln!(f, "  ports      {} ({kept} of {} kept)", self.ports, self.evidence.ports.len())?;
        write!(f, "  hairpin    {}", self.hairpin)
    }
}

/// A word that names no behaviour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {axis} behaviour '{word}': use {names}")]
pub struct UnknownName {
    axis: &'static str,
    word: String,
    names: &'static str,
}

macro_rules! names {
    ($type:ident, $axis:literal, $names:literal, $($variant:ident $short:literal $long:literal),+) => {
        impl $type {
            /// The usual abbreviation.
            pub fn short(self) -> &'static str {
                match self { $(Self::$variant => $short),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $long),+ })
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(word: &str) -> Result<Self, UnknownName> {
                match word.to_ascii_lowercase().as_str() {
                    $($short | $long => Ok(Self::$variant),)+
                    _ => Err(UnknownName { axis: $axis, word: word.into(), names: $names }),
                }
            }
        }
    };
}

names!(Mapping, "mapping", "eim, adm or apdm",
    EndpointIndependent "eim" "endpoint-independent",
    AddressDependent "adm" "address-dependent",
    AddressAndPortDependent "apdm" "address-and-port-dependent");

names!(Filtering, "filtering", "eif, adf or apdf",
    EndpointIndependent "eif" "endpoint-independent",
    AddressDependent "adf" "address-dependent",
    AddressAndPortDependent "apdf" "address-and-port-dependent");

impl fmt::Display for PortAssignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preserve => f.pad("preserve"),
            Self::Sequential { step } => f.pad(&format!("sequential, step {step}")),
            Self::Random => f.pad("random"),
        }
    }
}

impl fmt::Display for Hairpin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::InternalSource => "internal source",
            Self::ExternalSource => "external source",
            Self::Unobservable => "unobservable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_short_and_long() {
        assert_eq!("eim".parse(), Ok(Mapping::EndpointIndependent));
        assert_eq!("ADM".parse(), Ok(Mapping::AddressDependent));
        assert_eq!("address-and-port-dependent".parse(), Ok(Mapping::AddressAndPortDependent));
        assert_eq!("apdf".parse(), Ok(Filtering::AddressAndPortDependent));
        for mapping in ["eim", "adm", "apdm"] {
            assert_eq!(mapping.parse::<Mapping>().unwrap().short(), mapping);
        }
        let error = "eif".parse::<Mapping>().unwrap_err();
        assert_eq!(error.to_string(), "unknown mapping behaviour 'eif': use eim, adm or apdm");
    }

    #[test]
    fn names_serialize_as_in_the_rfc() {
        let text = serde_json::to_string(&Filtering::AddressAndPortDependent).unwrap();
        assert_eq!(text, "\"address-and-port-dependent\"");
    }

    #[test]
    fn a_classification_reads_as_a_table() {
        let at = |s: &str| s.parse().unwrap();
        let class = Classification {
            protocol: Protocol::Tcp,
            local: at("10.0.0.2"),
            external: vec![at("203.0.113.9")],
            translated: true,
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressDependent,
            ports: PortAssignment::Sequential { step: 1 },
            parity_kept: false,
            hairpin: Hairpin::ExternalSource,
            evidence: Evidence {
                mapped: ["203.0.113.9:61001".parse().unwrap(); 4],
                foreign: [
                    (Source::OtherPort, Outcome::Accepted),
                    (Source::OtherAddress, Outcome::Refused),
                    (Source::Both, Outcome::Refused),
                ],
                ports: vec![(4242, 61001), (4244, 61002)],
            },
        };
        let expected = "TCP from 10.0.0.2 seen as 203.0.113.9
  mapping    endpoint-independent
  filtering  address-dependent (others refused)
  ports      sequential, step 1 (0 of 2 kept)
  hairpin    external source";
        assert_eq!(class.to_string(), expected);
    }
}
