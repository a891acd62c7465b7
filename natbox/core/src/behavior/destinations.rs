//! What differs by destination: those that are not translated, and those with timers of their own.

use std::{fmt, net::Ipv4Addr, time::Duration};

use crate::value::Value;

/// How many of each may be named.
const MOST: usize = 8;

/// A network, and one port of it or all: written `ADDR[/LEN][:PORT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Its host bits are zero.
    network: Ipv4Addr,
    prefix_len: u8,
    /// 0 stands for every port.
    port: u16,
}

impl Destination {
    /// The network that `addr` is in; port 0 for all of its ports. `None` when the prefix is longer than an address.
    pub const fn new(addr: Ipv4Addr, prefix_len: u8, port: u16) -> Option<Destination> {
        if prefix_len > 32 {
            return None;
        }
        let network = Ipv4Addr::from_bits(addr.to_bits() & mask(prefix_len));
        Some(Destination { network, prefix_len, port })
    }

    fn holds(self, addr: Ipv4Addr, port: u16) -> bool {
        (addr.to_bits() ^ self.network.to_bits()) & mask(self.prefix_len) == 0
            && (self.port == 0 || self.port == port)
    }
}

const fn mask(prefix_len: u8) -> u32 {
    if prefix_len == 0 { 0 } else { u32::MAX << (32 - prefix_len) }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)?;
        if self.port == 0 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl Value for Destination {
    fn read(text: &str) -> Option<Self> {
        let (net, port) = match text.trim().split_once(':') {
            Some((net, port)) => (net, port.parse().ok().filter(|port| *port != 0)?),
            None => (text.trim(), 0),
        };
        let (addr, len) = net.split_once('/').unwrap_or((net, "32"));
        Destination::new(addr.parse().ok()?, len.parse().ok()?, port)
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

/// Up to eight destinations, written with commas between them; `none` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destinations([Option<Destination>; MOST]);

impl Destinations {
    /// No destination.
    pub const NONE: Destinations = Destinations([None; MOST]);

    /// These; `None` when they are more than eight.
    pub fn new(destinations: &[Destination]) -> Option<Destinations> {
        let mut all = Destinations::NONE;
        for (i, destination) in destinations.iter().enumerate() {
            *all.0.get_mut(i)? = Some(*destination);
        }
        Some(all)
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    /// Whether a packet to this port of this address is for one of them; port 0 is that of what has no ports.
    pub fn holds(&self, addr: Ipv4Addr, port: u16) -> bool {
        self.0.iter().flatten().any(|destination| destination.holds(addr, port))
    }
}

impl Value for Destinations {
    fn read(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Destinations::NONE);
        }
        let all: Option<Vec<_>> = text.split(',').map(Destination::read).collect();
        Destinations::new(&all?)
    }
    fn write(&self) -> String {
        let all: Vec<_> = self.0.iter().flatten().map(Destination::to_string).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(",") }
    }
}

/// Lifetimes of their own for up to eight well-known destination ports, written `PORT=TIME` with commas between them;
/// `none` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortTimeouts([(u16, u32); MOST]);

impl PortTimeouts {
    /// Every port has the common lifetime.
    pub const NONE: PortTimeouts = PortTimeouts([(0, 0); MOST]);
    /// The last of the well-known ports (RFC 6335 §6); RFC 4787 REQ-5a allows no other.
    pub const LAST: u16 = 1023;

    /// These ports, from 1 to [`PortTimeouts::LAST`], have these lifetimes, from a millisecond to seven weeks, in whole
    /// milliseconds; `None` when something is beyond that, or when they are more than eight.
    pub fn new(timeouts: &[(u16, Duration)]) -> Option<PortTimeouts> {
        let mut all = PortTimeouts::NONE;
        for (i, (port, timeout)) in timeouts.iter().enumerate() {
            let millis = u32::try_from(timeout.as_millis()).ok().filter(|millis| *millis > 0)?;
            *all.0.get_mut(i)? = (Some(*port).filter(|port| (1..=Self::LAST).contains(port))?, millis);
        }
        Some(all)
    }

    /// The lifetime of a session with this remote port, if it has one of its own.
    #[inline]
    pub fn get(&self, port: u16) -> Option<Duration> {
        if self.0[0].0 == 0 || port > Self::LAST {
            return None;
        }
        let (_, millis) = self.0.iter().find(|(own, _)| *own == port && port != 0)?;
        Some(Duration::from_millis((*millis).into()))
    }
}

impl Value for PortTimeouts {
    fn read(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(PortTimeouts::NONE);
        }
        let one = |text: &str| {
            let (port, timeout) = text.split_once('=')?;
            Some((port.trim().parse().ok()?, Duration::read(timeout.trim())?))
        };
        let all: Option<Vec<_>> = text.split(',').map(one).collect();
        PortTimeouts::new(&all?)
    }
    fn write(&self) -> String {
        let named = self.0.iter().filter(|(port, _)| *port != 0);
        let all: Vec<_> = named
            .map(|(port, millis)| format!("{port}={}", Duration::from_millis((*millis).into()).write()))
            .collect();
        if all.is_empty() { "none".to_owned() } else { all.join(",") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_read_and_write() {
        for (text, written) in [
            ("none", "none"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("10.0.0.0/8, 0.0.0.0/0:25", "10.0.0.0/8,0.0.0.0/0:25"),
        ] {
            assert_eq!(Destinations::read(text).map(|all| all.write()).as_deref(), Some(written));
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.1:0", "10.0.0.1:x", "::1", "10.0.0.1,"] {
            assert_eq!(Destinations::read(bad), None, "{bad}");
        }
        let nine = ["10.0.0.1"; 9].join(",");
        assert_eq!(Destinations::read(&nine), None, "eight at the most");
    }

    #[test]
    fn destinations_hold_what_is_in_them() {
        let all = Destinations::read("192.0.2.0/30,198.51.100.7:53,0.0.0.0/0:25").unwrap();
        for (addr, port, holds) in [
            ([192, 0, 2, 3], 80, true),
            ([192, 0, 2, 4], 80, false),
            ([198, 51, 100, 7], 53, true),
            ([198, 51, 100, 7], 0, false),
            ([8, 8, 8, 8], 25, true),
            ([192, 0, 2, 1], 0, true),
        ] {
            assert_eq!(all.holds(addr.into(), port), holds, "{addr:?}:{port}");
        }
    }

    #[test]
    fn port_timeouts_read_and_write() {
        let all = PortTimeouts::read("53=10s, 123=1m").unwrap();
        assert_eq!(all.write(), "53=10s,123=1m");
        assert_eq!(
            (all.get(53), all.get(123)),
            (Some(Duration::from_secs(10)), Some(Duration::from_secs(60)))
        );
        assert_eq!((all.get(54), all.get(0), PortTimeouts::NONE.get(53)), (None, None, None));
        for bad in ["", "53", "53=", "0=5s", "1024=5s", "53=0s", "53=60d", "=5s"] {
            assert_eq!(PortTimeouts::read(bad), None, "{bad}");
        }
    }
}
