//! Which of a peer's candidates may be probed at all.
//!
//! A peer is authenticated, and may lie all the same: candidates are a list of addresses to which it wants packets sent
//! from here. They never go to this host, to a link's own addresses, to a group or to a metadata service, in whatever
//! form the address hides; and to a private network only where the peer is likely to be in it.

use std::net::{IpAddr, SocketAddr};

use super::{Candidate, CandidateKind, Transport};
use crate::address::{self, Scope};

/// One address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix_len: u8,
}

impl Interface {
    /// Whether `ip` is in this interface's network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shared = |a: u128, b: u128, width: u32| {
            let host = width.saturating_sub(self.prefix_len.into());
            host >= width || (a ^ b) >> host == 0
        };
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Most private addresses of one peer that are probed: a shared network is told apart from a scan by their number.
pub const MOST_PRIVATE: usize = 4;

/// What this node knows that bears on which addresses may be probed.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// This machine's addresses.
    pub interfaces: &'a [Interface],
    /// This node's own sockets, as the outside and as its networks see them.
    pub own: &'a [SocketAddr],
    /// This node's server-reflexive addresses.
    pub reflexive: &'a [SocketAddr],
    /// Whether loopback addresses may be probed: for programs that try themselves out on one machine.
    pub loopback: bool,
}

/// Why a candidate is not probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// Loopback, link-local, metadata, a group, nowhere: in any form.
    #[error("addresses of this kind are never probed")]
    Forbidden,
    /// A private address, and nothing says that the peer shares a network with this node.
    #[error("a private address without evidence of a shared network")]
    NoSharedNetwork,
    /// One of this node's own sockets.
    #[error("an address of this node's own")]
    Own,
    /// More private addresses than are probed.
    #[error("more than {MOST_PRIVATE} private addresses")]
    TooManyPrivate,
    /// Port 0, or a transport that is not spoken here.
    #[error("port 0, or not UDP")]
    Unusable,
}

/// Goes through a peer's candidates, in canonical form and without doubles: those that may be probed, and why the others
/// may not.
pub fn sift(candidates: &[Candidate], evidence: &Evidence<'_>) -> (Vec<Candidate>, Vec<Refusal>) {
    let theirs: Vec<IpAddr> = candidates
        .iter()
        .map(|candidate| address::canonical(candidate.address).ip())
        .filter(|ip| address::scope(*ip) == Scope::Global)
        .collect();
    let shares_nat = evidence.reflexive.iter().any(|own| theirs.contains(&own.ip()));
    let (mut usable, mut refused, mut private) = (Vec::<Candidate>::new(), Vec::new(), 0);
    for candidate in candidates.iter().map(|candidate| candidate.canonical()) {
        if usable.iter().any(|other| other.address == candidate.address) {
            continue;
        }
        match check(&candidate, shares_nat, evidence) {
            Ok(Scope::Private | Scope::Shared) if private == MOST_PRIVATE => {
                refused.push(Refusal::TooManyPrivate)
            }
            Ok(scope) => {
                private += usize::from(matches!(scope, Scope::Private | Scope::Shared));
                usable.push(candidate);
            }
            Err(refusal) => refused.push(refusal),
        }
    }
    (usable, refused)
}

/// Whether a private address is most likely a stranger's who has numbered his network alike: both nodes know their NAT,
/// and it is not the same one.
pub fn is_doubtful(candidate: &Candidate, all: &[Candidate], evidence: &Evidence<'_>) -> bool {
    let is_private = matches!(address::scope(candidate.address.ip()), Scope::Private | Scope::Shared);
    let reflexive = || all.iter().filter(|other| other.kind == CandidateKind::ServerReflexive);
    let is_shared =
        reflexive().any(|theirs| evidence.reflexive.iter().any(|own| own.ip() == theirs.address.ip()));
    is_private && !is_shared && !evidence.reflexive.is_empty() && reflexive().next().is_some()
}

fn check(candidate: &Candidate, shares_nat: bool, evidence: &Evidence<'_>) -> Result<Scope, Refusal> {
    let to = candidate.address;
    if to.port() == 0 || candidate.transport != Transport::Udp {
        return Err(Refusal::Unusable);
    }
    if evidence.own.contains(&to) {
        return Err(Refusal::Own);
    }
    let scope = address::scope(to.ip());
    match scope {
        Scope::Global => Ok(scope),
        Scope::Private | Scope::Shared => {
            // An address that hides a private one is nobody's interface.
            let is_plain = !matches!(to.ip(), IpAddr::V6(v6) if address::embedded_v4(v6).is_some());
            let is_near = evidence
                .interfaces
                .iter()
                .any(|interface| address::scope(interface.address) == scope && interface.contains(to.ip()));
            if is_plain && (shares_nat || is_near) { Ok(scope) } else { Err(Refusal::NoSharedNetwork) }
        }
        Scope::Loopback if evidence.loopback && to.ip().is_loopback() => Ok(scope),
        _ => Err(Refusal::Forbidden),
    }
}

/// Whether an address that a supernode or reflector names may be sent to: on the internet, or as near as the one that names
/// it. Whom this node asks is its user's choice, but not even that one sends it to its own host or network.
pub fn is_server(named: SocketAddr, by: SocketAddr) -> bool {
    let scope_of = |at: SocketAddr| address::scope(at.ip());
    named.port() != 0
        && match scope_of(named) {
            Scope::Global => true,
            Scope::Metadata | Scope::Group | Scope::Nowhere => false,
            near @ (Scope::Private | Scope::Shared | Scope::LinkLocal | Scope::Loopback) => {
                near == scope_of(by)
            }
        }
}

/// Whether an address from which an authentic check has come may be answered and checked: it may be anywhere but where
/// nothing honest comes from. The check's source can be forged by the peer.
pub fn is_source(from: SocketAddr, loopback: bool) -> bool {
    from.port() != 0
        && match address::scope(from.ip()) {
            Scope::Global | Scope::Private | Scope::Shared => true,
            Scope::Loopback => loopback,
            Scope::LinkLocal | Scope::Metadata | Scope::Group | Scope::Nowhere => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sifted(addresses: &[&str], interfaces: &[&str], reflexive: &[&str]) -> Vec<String> {
        let candidates: Vec<_> = addresses
            .iter()
            .map(|address| Candidate {
                kind: CandidateKind::Host,
                transport: Transport::Udp,
                address: address.parse().unwrap(),
                foundation: 0,
            })
            .collect();
        let interfaces: Vec<_> =
            interfaces.iter().map(|ip| Interface { address: ip.parse().unwrap(), prefix_len: 24 }).collect();
        let reflexive: Vec<SocketAddr> = reflexive.iter().map(|address| address.parse().unwrap()).collect();
        let own = ["10.1.1.2:4000".parse().unwrap()];
        let evidence =
            Evidence { interfaces: &interfaces, own: &own, reflexive: &reflexive, loopback: false };
        sift(&candidates, &evidence).0.into_iter().map(|candidate| candidate.address.to_string()).collect()
    }

    #[test]
    fn never() {
        let all = [
            "127.0.0.1:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[2002:7f00:1::]:80",
            "[64:ff9b::7f00:1]:80",
            "169.254.1.1:80",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[fd00:ec2::254]:80",
            "224.0.0.251:5353",
            "[ff02::fb]:5353",
            "255.255.255.255:9",
            "0.0.0.0:9",
            "[::]:9",
            "240.0.0.1:9",
            "[fe80::1]:9",
            "203.0.113.1:0",
        ];
        assert!(sifted(&all, &["10.1.1.2", "127.0.0.1", "169.254.1.2"], &["203.0.113.1:1"]).is_empty());
    }

    #[test]
    fn servers_are_no_nearer_than_who_names_them() {
        let is_server = |named: &str, by: &str| is_server(named.parse().unwrap(), by.parse().unwrap());
        let (public, near) = ("203.0.113.10:3478", "127.0.0.1:3478");
        for named in
            ["127.0.0.1:22", "[::ffff:127.0.0.1]:22", "192.168.1.1:53", "100.64.0.1:53", "[fe80::1]:9"]
        {
            assert!(!is_server(named, public), "{named}");
        }
        for named in
            ["169.254.169.254:80", "100.100.100.200:80", "224.0.0.1:9", "0.0.0.0:9", "203.0.113.11:0"]
        {
            assert!(!is_server(named, public) && !is_server(named, named), "{named}");
        }
        assert!(is_server("203.0.113.11:3479", public) && is_server("203.0.113.11:3479", near));
        assert!(is_server("127.0.0.2:3479", near) && is_server("192.168.1.2:1", "192.168.1.1:3478"));
    }

    #[test]
    fn private_addresses_need_evidence() {
        let private = ["10.1.1.3:5000", "192.168.7.7:5000", "100.64.3.3:5000"];
        assert!(sifted(&private, &[], &["198.51.100.1:9"]).is_empty());
        assert_eq!(sifted(&private, &["10.1.1.2"], &[]), ["10.1.1.3:5000"]);
        let same_nat = [&private[..], &["198.51.100.1:77"]].concat();
        assert_eq!(sifted(&same_nat, &[], &["198.51.100.1:9"]), same_nat);
        // A public interface is no evidence, and neither is a form that hides the address.
        assert!(sifted(&["[::ffff:10.9.9.9]:5", "[64:ff9b::a01:103]:5"], &["10.1.1.2"], &[]).is_empty());
    }

    #[test]
    fn not_oneself_nor_a_scan_nor_twice() {
        let scan: Vec<String> = (1..20).map(|host| format!("10.1.1.{host}:4000")).collect();
        let scan: Vec<&str> = scan.iter().map(String::as_str).collect();
        assert_eq!(
            sifted(&scan, &["10.1.1.2"], &[]),
            ["10.1.1.1:4000", "10.1.1.3:4000", "10.1.1.4:4000", "10.1.1.5:4000"]
        );
        assert_eq!(sifted(&["203.0.113.1:5", "[::ffff:203.0.113.1]:5"], &[], &[]), ["203.0.113.1:5"]);
    }
}
