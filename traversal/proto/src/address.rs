//! What an address is, whatever form it comes in.
//!
//! An IPv4 address can hide in an IPv6 one: mapped (`::ffff:127.0.0.1`), as 6to4 (`2002:7f00:1::`) or behind NAT64
//! (`64:ff9b::7f00:1`). Every check here looks through all of these forms, so no list has to be written twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The address with an IPv4-mapped one turned into IPv4, and without a scope or flow label: two spellings of one
/// endpoint compare equal. What a dual-stack socket reports must go through here first.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The IPv4 address that packets to `ip` end at, if there is one: mapped, compatible, 6to4 (RFC 3056) and the
/// well-known NAT64 prefixes (RFC 6052, RFC 8215).
pub fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 1, .., high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => None,
    }
}

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The public internet, as far as the address itself tells.
    Global,
    /// A private network (RFC 1918, RFC 4193).
    Private,
    /// Between a provider's customers and its NAT (RFC 6598).
    Shared,
    /// One link (RFC 3927, RFC 4291).
    LinkLocal,
    /// This host.
    Loopback,
    /// A cloud's metadata service: credentials lie there.
    Metadata,
    /// A group or everybody: multicast, broadcast.
    Group,
    /// No host at all: unspecified, "this network" (RFC 1122), reserved.
    Nowhere,
}

/// How far `ip` reaches, with any IPv4 address hidden in it taken for what it is.
pub fn scope(ip: IpAddr) -> Scope {
    match ip {
        IpAddr::V4(v4) => scope_v4(v4),
        IpAddr::V6(v6) => embedded_v4(v6).map_or_else(|| scope_v6(v6), scope_v4),
    }
}

fn scope_v4(ip: Ipv4Addr) -> Scope {
    match ip.octets() {
        [169, 254, 169, 254] | [100, 100, 100, 200] => Scope::Metadata,
        [127, ..] => Scope::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Scope::Private,
        [100, 64..=127, ..] => Scope::Shared,
        [169, 254, ..] => Scope::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => Scope::Group,
        [0, ..] | [240..=255, ..] => Scope::Nowhere,
        _ => Scope::Global,
    }
}

fn scope_v6(ip: Ipv6Addr) -> Scope {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Scope::Loopback,
        [0, 0, 0, 0, 0, 0, ..] => Scope::Nowhere,
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Scope::Metadata,
        [0xfc00..=0xfdff, ..] => Scope::Private,
        [0xfe80..=0xfeff, ..] => Scope::LinkLocal,
        [0xff00..=0xffff, ..] => Scope::Group,
        _ => Scope::Global,
    }
}

/// Whether a datagram that claims to come from `addr` may be answered at all: no host sends from a group, from nowhere
/// or from port 0.
pub fn can_answer(addr: SocketAddr) -> bool {
    addr.port() != 0 && !matches!(scope(addr.ip()), Scope::Group | Scope::Nowhere)
}

/// The network that an address is accounted to: an IPv4 /24 or an IPv6 /56. One subscriber commonly holds that much of
/// IPv6, and one sender can often spoof within that much of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(u64);

impl Prefix {
    /// The prefix of `ip`; of the hidden IPv4 address if there is one.
    pub fn of(ip: IpAddr) -> Prefix {
        let v4 = |v4: Ipv4Addr| Prefix(u64::from(v4.to_bits() >> 8) | 1 << 63);
        match ip {
            IpAddr::V4(ip) => v4(ip),
            IpAddr::V6(ip) => embedded_v4(ip).map_or_else(|| Prefix((ip.to_bits() >> 72) as u64), v4),
        }
    }

    /// The prefix as a number; different for different prefixes.
    pub const fn to_bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope_of(text: &str) -> Scope {
        scope(text.parse().unwrap())
    }

    #[test]
    fn hidden_forms_are_seen_through() {
        for hidden in
            ["::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"]
        {
            assert_eq!(scope_of(hidden), Scope::Loopback, "{hidden}");
        }
        for hidden in ["::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe"] {
            assert_eq!(scope_of(hidden), Scope::Metadata, "{hidden}");
        }
        assert_eq!(scope_of("::ffff:224.0.0.1"), Scope::Group);
        assert_eq!(scope_of("64:ff9b::a00:1"), Scope::Private);
    }

    #[test]
    fn plain_forms() {
        for (text, expected) in [
            ("203.0.113.1", Scope::Global),
            ("2001:db8::1", Scope::Global),
            ("100.64.0.1", Scope::Shared),
            ("100.128.0.1", Scope::Global),
            ("100.100.100.200", Scope::Metadata),
            ("172.31.255.255", Scope::Private),
            ("172.32.0.1", Scope::Global),
            ("255.255.255.255", Scope::Group),
            ("250.0.0.1", Scope::Nowhere),
            ("0.0.0.0", Scope::Nowhere),
            ("::", Scope::Nowhere),
            ("::1", Scope::Loopback),
            ("fe80::1", Scope::LinkLocal),
            ("fd00:ec2::254", Scope::Metadata),
            ("fd12::1", Scope::Private),
            ("ff02::1", Scope::Group),
        ] {
            assert_eq!(scope_of(text), expected, "{text}");
        }
    }

    #[test]
    fn one_prefix_whatever_the_form() {
        let prefix = |text: &str| Prefix::of(text.parse().unwrap());
        assert_eq!(prefix("192.0.2.1"), prefix("192.0.2.254"));
        assert_eq!(prefix("192.0.2.1"), prefix("::ffff:192.0.2.9"));
        assert_eq!(prefix("192.0.2.1"), prefix("2002:c000:201::5"));
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.3.1"));
        assert_eq!(prefix("2001:db8:0:1100::1"), prefix("2001:db8:0:11ff::2"));
        assert_ne!(prefix("2001:db8:0:1100::1"), prefix("2001:db8:0:1200::1"));
    }

    #[test]
    fn canonical_drops_what_does_not_count() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.1:9".parse().unwrap());
    }
}
