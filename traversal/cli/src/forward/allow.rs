//! What a peer may reach from here, and where it may listen here. Nothing, unless it is listed.
//!
//! An address is looked up among addresses, a name among names, and neither stands for the other: what is checked is what
//! is connected to. Only `localhost` is known without asking anybody. A listed name is resolved once for each connection,
//! and what comes of it is used only if it is no address of this machine's own, or one that is listed as such.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use super::{
    address::{Name, Target, port, transport},
    wire::{Host, Transport},
};

/// What is allowed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    pub(crate) targets: Vec<Entry>,
    pub(crate) listeners: Vec<Entry>,
}

/// Hosts and ports: `[udp:]HOST:PORTS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    transport: Transport,
    hosts: Hosts,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Any,
    /// The addresses whose first so many bits are these.
    Net(IpAddr, u8),
    Name(Name),
}

/// What an allowed target leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// Here: any of these.
    To(Vec<IpAddr>),
    /// Where the name leads, so far as [`Allowed::resolved`] says.
    Name(Name),
}

impl Allowed {
    /// Where a connection to `target` may go; `None`: nowhere.
    pub(crate) fn leads(&self, transport: Transport, target: &Target) -> Option<Leads> {
        let listed = |address: &IpAddr| self.has_address(transport, *address, target.port);
        match &target.host {
            Host::Address(address) => {
                let address = address.to_canonical();
                (is_somebody(address) && listed(&address)).then(|| Leads::To(vec![address]))
            }
            Host::Name(name) if name.is_localhost() => {
                let itself = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                let found: Vec<_> = itself.into_iter().filter(listed).collect();
                (!found.is_empty()).then_some(Leads::To(found))
            }
            Host::Name(name) => {
                let is_it = |entry: &&Entry| match &entry.hosts {
                    Hosts::Any => true,
                    Hosts::Name(known) => known == name,
                    Hosts::Net(..) => false,
                };
                let fits = |entry: &Entry| entry.transport == transport && entry.ports.contains(&target.port);
                self.targets.iter().filter(is_it).any(fits).then(|| Leads::Name(name.clone()))
            }
        }
    }

    /// Whether a listed name may lead to this address: its owner can point it anywhere, also at this machine.
    pub(crate) fn resolved(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        let is_local = address.is_loopback() || is_link_local(address);
        is_somebody(address) && (!is_local || self.has_address(transport, address, port))
    }

    fn has_address(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        self.targets.iter().any(|entry| entry.has_address(transport, address, port))
    }

    /// Whether a peer may listen at this address here.
    pub(crate) fn may_listen(&self, transport: Transport, at: SocketAddr) -> bool {
        let address = at.ip().to_canonical();
        at.port() != 0 && self.listeners.iter().any(|entry| entry.has_address(transport, address, at.port()))
    }
}

impl Entry {
    fn has_address(&self, transport: Transport, address: IpAddr, port: u16) -> bool {
        let is_in = match &self.hosts {
            Hosts::Any => true,
            Hosts::Net(base, bits) => same_bits(*base, address, *bits),
            Hosts::Name(_) => false,
        };
        is_in && self.transport == transport && self.ports.contains(&port)
    }
}

/// Whether there can be somebody to connect to: not everybody, and not "any address", by which a kernel means itself.
fn is_somebody(address: IpAddr) -> bool {
    let is_everybody = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_everybody
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn same_bits(base: IpAddr, address: IpAddr, bits: u8) -> bool {
    let (difference, width) = match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (u128::from(base.to_bits() ^ address.to_bits()), 32),
        (IpAddr::V6(base), IpAddr::V6(address)) => (base.to_bits() ^ address.to_bits(), 128),
        _ => return false,
    };
    difference.checked_shr(width - u32::from(bits)).unwrap_or(0) == 0
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Entry, String> {
        let (transport, rest) = transport(text);
        let (hosts, ports) = match rest.rsplit_once(':') {
            Some((hosts, ports)) => (hosts.parse()?, ports),
            None => (Hosts::Net(Ipv4Addr::LOCALHOST.into(), 32), rest),
        };
        Ok(Entry { transport: transport.unwrap_or(Transport::Tcp), hosts, ports: range(ports)? })
    }
}

/// `80`, `8000-8100`, or `*`.
fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    if text == "*" {
        return Ok(1..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(format!("{text:?}: the first port is above the last")) } else { Ok(range) }
}

impl FromStr for Hosts {
    type Err = String;

    /// `*`, `192.0.2.1`, `192.0.2.0/24`, `[2001:db8::1]`, `[2001:db8::/32]`, or a name.
    fn from_str(text: &str) -> Result<Hosts, String> {
        if text == "*" {
            return Ok(Hosts::Any);
        }
        let is_bracketed = text.starts_with('[');
        let inner = if is_bracketed { text.trim_matches(['[', ']']) } else { text };
        let Some((base, bits)) = inner.split_once('/') else {
            return match text.parse()? {
                Host::Name(name) => Ok(Hosts::Name(name)),
                Host::Address(address) => {
                    let address = address.to_canonical();
                    Ok(Hosts::Net(address, if address.is_ipv4() { 32 } else { 128 }))
                }
            };
        };
        let wrong =
            || format!("{text:?} is no range of addresses: write it as 192.0.2.0/24 or [2001:db8::]/32");
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().map_err(|_| wrong())?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        if bits > width || base.is_ipv6() != is_bracketed || base.to_canonical() != base {
            return Err(wrong());
        }
        Ok(Hosts::Net(base, bits))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.transport == Transport::Udp {
            f.write_str("udp:")?;
        }
        match &self.hosts {
            Hosts::Any => f.write_str("*:")?,
            Hosts::Net(IpAddr::V4(base), 32) => write!(f, "{base}:")?,
            Hosts::Net(IpAddr::V4(base), bits) => write!(f, "{base}/{bits}:")?,
            Hosts::Net(IpAddr::V6(base), 128) => write!(f, "[{base}]:")?,
            Hosts::Net(IpAddr::V6(base), bits) => write!(f, "[{base}/{bits}]:")?,
            Hosts::Name(name) => write!(f, "{name}:")?,
        }
        match (*self.ports.start(), *self.ports.end()) {
            (1, u16::MAX) => f.write_str("*"),
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allowed(entries: &[&str]) -> Allowed {
        let entries: Vec<Entry> = entries.iter().map(|text| text.parse().unwrap()).collect();
        Allowed { targets: entries.clone(), listeners: entries }
    }

    /// Whether this is allowed, as typed by the one who asks.
    fn leads(allowed: &Allowed, text: &str) -> Option<Leads> {
        let (udp, target) = transport(text);
        allowed.leads(udp.unwrap_or(Transport::Tcp), &target.parse().unwrap())
    }

    fn to(address: &str) -> Option<Leads> {
        Some(Leads::To(vec![address.parse().unwrap()]))
    }

    #[test]
    fn nothing_by_default() {
        let nothing = Allowed::default();
        for text in ["127.0.0.1:80", "localhost:80", "example.org:80", "udp:[::1]:53"] {
            assert_eq!(leads(&nothing, text), None, "{text}");
        }
        assert!(!nothing.may_listen(Transport::Tcp, "127.0.0.1:8080".parse().unwrap()));
    }

    #[test]
    fn addresses_ranges_and_ports() {
        let list = allowed(&["127.0.0.1:80", "10.1.0.0/16:8000-8100", "udp:[2001:db8::/32]:53", "5432"]);
        assert_eq!(leads(&list, "127.0.0.1:80"), to("127.0.0.1"));
        assert_eq!(leads(&list, "10.1.255.7:8100"), to("10.1.255.7"));
        assert_eq!(leads(&list, "udp:[2001:db8::9]:53"), to("2001:db8::9"));
        assert_eq!(leads(&list, "5432"), to("127.0.0.1"));
        for text in [
            "127.0.0.1:81",
            "127.0.0.2:80",
            "udp:127.0.0.1:80",
            "10.2.0.1:8000",
            "10.1.0.1:7999",
            "10.1.0.1:8101",
            "[2001:db8::9]:53",
            "udp:[2001:db9::9]:53",
            "[::1]:80",
            "[::127.0.0.1]:80",
        ] {
            assert_eq!(leads(&list, text), None, "{text}");
        }
    }

    #[test]
    fn another_way_to_write_an_address_is_no_other_address() {
        let list = allowed(&["127.0.0.1:80", "10.0.0.0/8:22"]);
        assert_eq!(leads(&list, "[::ffff:127.0.0.1]:80"), to("127.0.0.1"));
        assert_eq!(leads(&list, "[::ffff:127.0.0.1]:22"), None);
        assert_eq!(leads(&list, "[::ffff:192.0.2.1]:22"), None);
        let mapped = allowed(&["[::ffff:10.0.0.1]:22", "[::/0]:80"]);
        assert_eq!(leads(&mapped, "10.0.0.1:22"), to("10.0.0.1"));
        // All of IPv6 is not all of IPv4 in other words.
        assert_eq!(leads(&mapped, "[::ffff:127.0.0.1]:80"), None);
        // "Any address" is this machine to its kernel, and nobody's target.
        let all = allowed(&["*:*", "0.0.0.0/0:*"]);
        for text in [
            "0.0.0.0:80",
            "[::]:80",
            "[::ffff:0.0.0.0]:80",
            "255.255.255.255:9",
            "224.0.0.1:9",
            "[ff02::1]:9",
        ] {
            assert_eq!(leads(&all, text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_no_address() {
        let list = allowed(&["192.0.2.1:80", "nas.lan:22", "127.0.0.1:8080"]);
        assert_eq!(leads(&list, "NAS.lan.:22"), Some(Leads::Name("nas.lan".parse().unwrap())));
        // Whatever they lead to: the peer may own them.
        for text in ["evil.example:80", "nas.lan:80", "x.nas.lan:22", "nas:22", "udp:nas.lan:22"] {
            assert_eq!(leads(&list, text), None, "{text}");
        }
        assert_eq!(leads(&list, "localhost:8080"), to("127.0.0.1"));
        assert_eq!(leads(&list, "localhost:22"), None);
        // And a listed one may have been pointed elsewhere.
        let resolved = |address: &str, port| list.resolved(Transport::Tcp, address.parse().unwrap(), port);
        assert!(resolved("10.0.0.9", 22) && resolved("2001:db8::1", 22));
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
        ] {
            assert!(!resolved(address, 22), "{address}");
        }
        assert!(resolved("127.0.0.1", 8080), "listed by its address");
    }

    #[test]
    fn listeners_are_exact() {
        let list = allowed(&["8080-8090", "udp:0.0.0.0:53"]);
        let may = |transport, at: &str| list.may_listen(transport, at.parse().unwrap());
        assert!(may(Transport::Tcp, "127.0.0.1:8085") && may(Transport::Udp, "0.0.0.0:53"));
        for at in ["0.0.0.0:8085", "[::]:8085", "127.0.0.1:8091", "[::1]:8085", "0.0.0.0:53"] {
            assert!(!may(Transport::Tcp, at), "{at}");
        }
        assert!(!may(Transport::Udp, "[::]:53"));
        assert!(!allowed(&["*:*"]).may_listen(Transport::Tcp, "127.0.0.1:0".parse().unwrap()));
    }

    #[test]
    fn entries_are_read_and_shown() {
        for text in ["*:*", "127.0.0.1:80", "udp:10.0.0.0/8:1-9", "[::1]:*", "udp:[fd00::/8]:5", "nas.lan:22"]
        {
            assert_eq!(text.parse::<Entry>().map(|entry| entry.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "x",
            "*",
            "10.0.0.0/33:1",
            "10.0.0.0/-1:1",
            "::1:80",
            "fd00::/8:1",
            "h/8:1",
            "h:2-1",
            "h:0",
            "[::ffff:10.0.0.0/104]:1",
        ] {
            // "*" by itself would be all ports of this machine: that is to be written out.
            let entry = text.parse::<Entry>();
            assert!(entry.is_err() || text == "*", "{text}: {entry:?}");
        }
    }

    proptest! {
        #[test]
        fn ranges_are_as_calculated(base: u32, address: u32, bits in 0..=32u8) {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            let is_in = same_bits(Ipv4Addr::from_bits(base).into(), Ipv4Addr::from_bits(address).into(), bits);
            prop_assert_eq!(is_in, base & mask == address & mask);
        }

        #[test]
        fn any_text_is_an_entry_or_an_error(text in ".{0,40}") {
            if let Ok(entry) = text.parse::<Entry>() {
                prop_assert_eq!(entry.to_string().parse(), Ok(entry));
            }
        }
    }
}
