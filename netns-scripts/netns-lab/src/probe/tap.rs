//! A look at what arrives on this host's interfaces, before the kernel judges it.
//!
//! A NAT that hairpins with the internal source sends a host its own address as the source when both sockets are on
//! that host, and the kernel drops such a packet as a martian before any socket sees it. A packet socket does see it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

use super::class::Protocol;

/// Bytes read of each packet: the longest headers that are understood are well below.
const SNAP: usize = 256;

/// A packet socket on all interfaces of the namespace.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Starts to listen. Needs CAP_NET_RAW; `None` without it.
    pub(super) fn open() -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll).ok()?;
        Some(Self { fd })
    }

    /// Whether a packet with one of these pairs of source and destination has arrived from outside since the last call.
    pub(super) fn saw(&self, protocol: Protocol, pairs: &[(SocketAddr, SocketAddr)]) -> bool {
        let mut buf = [0; SNAP];
        let mut seen = false;
        // Ends with EAGAIN. An error such as ENETDOWN (an interface went away) is of no interest: what was queued
        // behind it is read by the next call at the latest.
        while let Ok((len, addr)) = recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buf) {
            let arrived = addr.is_some_and(|addr| {
                addr.pkttype() == libc::PACKET_HOST && addr.hatype() != libc::ARPHRD_LOOPBACK
            });
            seen |= arrived
                && endpoints(&buf[..len])
                    .is_some_and(|(what, from, to)| what == protocol && pairs.contains(&(from, to)));
        }
        seen
    }
}

/// Protocol, source and destination of an IP packet that carries UDP or TCP right behind its header and is no later
/// fragment.
fn endpoints(packet: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (number, from, to, payload): (u8, IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = packet.get(..usize::from(packet[0] & 15) * 4).filter(|header| header.len() >= 20)?;
            let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
            let at = |i: usize| Ipv4Addr::new(header[i], header[i + 1], header[i + 2], header[i + 3]);
            (offset == 0).then_some((header[9], at(12).into(), at(16).into(), &packet[header.len()..]))?
        }
        6 => {
            let header = packet.get(..40)?;
            let at = |i: usize| <[u8; 16]>::try_from(&header[i..i + 16]).map(Ipv6Addr::from).ok();
            (header[6], at(8)?.into(), at(24)?.into(), &packet[40..])
        }
        _ => return None,
    };
    let protocol = match number {
        17 => Protocol::Udp,
        6 => Protocol::Tcp,
        _ => return None,
    };
    let port = |i: usize| Some(u16::from_be_bytes([*payload.get(i)?, *payload.get(i + 1)?]));
    Some((protocol, SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_another_library_builds() {
        let cases = [("10.0.0.2:7", "10.0.0.3:9"), ("[2001:db8::1]:7", "[2001:db8::2]:65535")];
        for (from, to) in cases.map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap())) {
            let ip = |hops| match (from, to) {
                (SocketAddr::V4(a), SocketAddr::V4(b)) => {
                    etherparse::PacketBuilder::ipv4(a.ip().octets(), b.ip().octets(), hops)
                }
                (SocketAddr::V6(a), SocketAddr::V6(b)) => {
                    etherparse::PacketBuilder::ipv6(a.ip().octets(), b.ip().octets(), hops)
                }
                _ => unreachable!(),
            };
            let mut udp = Vec::new();
            ip(64).udp(from.port(), to.port()).write(&mut udp, b"payload").unwrap();
            assert_eq!(endpoints(&udp), Some((Protocol::Udp, from, to)));
            let mut tcp = Vec::new();
            ip(64).tcp(from.port(), to.port(), 1, 1024).write(&mut tcp, b"").unwrap();
            assert_eq!(endpoints(&tcp), Some((Protocol::Tcp, from, to)));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), four: bool) {
            let _ = endpoints(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = if four { 0x40 | (*first & 15) } else { 0x60 };
            }
            let _ = endpoints(&bytes);
        }
    }
}
