//! Candidates and their order.

use std::net::IpAddr;

use crate::address::{self, Scope};
pub use crate::wire::peer::{Candidate, CandidateKind, Transport};

/// In which order candidates are tried; the smaller the earlier. The order of the fields is the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// Last what is likely to be somebody else's: a private address, when both know that they are behind different NATs.
    pub is_doubtful: bool,
    /// UDP first: TCP needs more luck with NATs.
    pub transport: Transport,
    /// A host candidate that may be probed is on a shared network or has no NAT: it answers at once or never.
    pub kind: CandidateKind,
    /// IPv6 before IPv4: fewer NATs (RFC 8421 §4).
    pub is_v4: bool,
}

impl Candidate {
    /// This candidate with its address in canonical form.
    pub fn canonical(self) -> Candidate {
        Candidate { address: address::canonical(self.address), ..self }
    }

    /// Its place in the order of trying.
    pub fn rank(&self, is_doubtful: bool) -> Rank {
        Rank { is_doubtful, transport: self.transport, kind: self.kind, is_v4: self.address.is_ipv4() }
    }
}

/// Whether an address of this machine is worth telling to a peer.
pub fn is_tellable(ip: IpAddr, loopback: bool) -> bool {
    match address::scope(ip) {
        Scope::Global | Scope::Private | Scope::Shared => true,
        Scope::Loopback => loopback,
        Scope::LinkLocal | Scope::Metadata | Scope::Group | Scope::Nowhere => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_trying() {
        let rank = |kind, address: &str| {
            Candidate { kind, transport: Transport::Udp, address: address.parse().unwrap(), foundation: 0 }
                .rank(false)
        };
        let v6 = rank(CandidateKind::Host, "[2001:db8::1]:1");
        let v4 = rank(CandidateKind::Host, "10.0.0.1:1");
        let reflexive = rank(CandidateKind::ServerReflexive, "[2001:db8::1]:1");
        assert!(v6 < v4 && v4 < reflexive);
        assert!(reflexive < Rank { transport: Transport::Tcp, ..v6 });
        assert!(reflexive < Rank { is_doubtful: true, ..v6 });
    }
}
