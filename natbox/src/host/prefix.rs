//! Arithmetic on IPv4 networks: an address and a prefix length.

use std::net::Ipv4Addr;

/// The netmask of a prefix length; lengths above 32 count as 32.
pub(crate) fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

/// The network that `addr` is in: its host bits cleared.
pub(crate) fn network(addr: Ipv4Addr, len: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(addr) & mask(len))
}

/// Whether `addr` is in the network of `net`.
pub(crate) fn contains((net, len): (Ipv4Addr, u8), addr: Ipv4Addr) -> bool {
    network(net, len) == network(addr, len)
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: (Ipv4Addr, u8), b: (Ipv4Addr, u8)) -> bool {
    let shorter = a.1.min(b.1);
    network(a.0, shorter) == network(b.0, shorter)
}

/// The first address of the network that a host may have and that is not `addr` itself: natbox's own address beside
/// a host's. `None` where the network has room for one address only.
///
/// A /31 has no network address (RFC 3021): both of its addresses are hosts'.
pub(crate) fn first_other((addr, len): (Ipv4Addr, u8)) -> Option<Ipv4Addr> {
    let base = u32::from(network(addr, len));
    let first = if len >= 31 { base } else { base + 1 };
    let last = (base | !mask(len)) - u32::from(len < 31);
    (first..=last).map(Ipv4Addr::from).find(|candidate| *candidate != addr)
}

/// Whether `addr` is the network or broadcast address of `net`, which no host may have.
pub(crate) fn is_reserved((net, len): (Ipv4Addr, u8), addr: Ipv4Addr) -> bool {
    let base = u32::from(network(net, len));
    len < 31 && contains((net, len), addr) && [base, base | !mask(len)].contains(&u32::from(addr))
}

/// How many addresses a network has.
pub(crate) fn size(len: u8) -> u64 {
    1 << (32 - u32::from(len.min(32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_of_every_length() {
        assert_eq!((mask(0), mask(24), mask(32)), (0, 0xffff_ff00, u32::MAX));
        assert_eq!(network(ip("10.64.3.9"), 24), ip("10.64.3.0"));
        assert!(overlap((ip("10.0.0.0"), 8), (ip("10.64.1.0"), 24)));
        assert!(overlap((ip("10.64.1.0"), 24), (ip("10.0.0.0"), 8)));
        assert!(!overlap((ip("10.64.1.0"), 24), (ip("10.64.2.0"), 24)));
        assert_eq!((size(32), size(30), size(0)), (1, 4, 1 << 32));
    }

    #[test]
    fn the_gateway_is_the_first_other_host() {
        assert_eq!(first_other((ip("10.64.0.2"), 24)), Some(ip("10.64.0.1")));
        assert_eq!(first_other((ip("10.64.0.1"), 24)), Some(ip("10.64.0.2")));
        assert_eq!(first_other((ip("10.64.0.1"), 30)), Some(ip("10.64.0.2")));
        assert_eq!(first_other((ip("10.64.0.1"), 31)), Some(ip("10.64.0.0")));
        assert_eq!(first_other((ip("10.64.0.1"), 32)), None);
        assert!(is_reserved((ip("10.64.0.9"), 24), ip("10.64.0.255")));
        assert!(is_reserved((ip("10.64.0.9"), 24), ip("10.64.0.0")));
        assert!(!is_reserved((ip("10.64.0.0"), 31), ip("10.64.0.0")));
    }
}
