//! Which ports the host's own sockets hold, asked of the kernel by sock_diag, as `ss` does.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::nlmsg::{self, Builder, NLMSG_DONE, Socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP_INTR: u16 = 0x10;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// Bytes of `struct inet_diag_msg`; attributes follow.
const DIAG_MESSAGE: usize = 72;
/// A dump that a change of the tables interrupted may have missed sockets; a busy host may interrupt every one, and
/// then the last is good enough.
const TRIES: usize = 3;

/// The TCP and UDP ports that sockets of this host hold on shared addresses: listeners, connections and bound
/// sockets, IPv4 and dual-stack IPv6, on one of the addresses or on any.
#[derive(Debug)]
pub struct HostPorts {
    socket: Socket,
    addresses: Vec<Ipv4Addr>,
    tcp: Vec<u16>,
    udp: Vec<u16>,
}

impl HostPorts {
    /// Asks the kernel for the first time. Belongs to the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel said: `ENOENT` when it was built without `inet_diag`.
    pub fn new(addresses: Vec<Ipv4Addr>) -> io::Result<HostPorts> {
        let socket = Socket::open(libc::NETLINK_SOCK_DIAG)?;
        let mut ports = HostPorts { socket, addresses, tcp: Vec::new(), udp: Vec::new() };
        ports.refresh()?;
        Ok(ports)
    }

    /// Asks again; true when the answer has changed. Costs microseconds on a quiet host, and some 10 ms at 50,000
    /// sockets.
    ///
    /// # Errors
    /// What the kernel said; the former answer stays.
    pub fn refresh(&mut self) -> io::Result<bool> {
        let tcp = self.ask(libc::IPPROTO_TCP)?;
        let udp = self.ask(libc::IPPROTO_UDP)?;
        let changed = tcp != self.tcp || udp != self.udp;
        (self.tcp, self.udp) = (tcp, udp);
        Ok(changed)
    }

    /// TCP ports in use, ascending, each once.
    pub fn tcp(&self) -> &[u16] {
        &self.tcp
    }

    /// UDP ports in use, ascending, each once.
    pub fn udp(&self) -> &[u16] {
        &self.udp
    }

    fn ask(&mut self, protocol: libc::c_int) -> io::Result<Vec<u16>> {
        let mut ports = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for _ in 0..TRIES {
                if self.dump(family as u8, protocol as u8, &mut ports)? {
                    break;
                }
            }
        }
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }

    /// True when the dump was not interrupted.
    fn dump(&mut self, family: u8, protocol: u8, ports: &mut Vec<u16>) -> io::Result<bool> {
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states (all), and an empty socket id.
        let mut request = [0; 56];
        (request[0], request[1]) = (family, protocol);
        request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let mut builder = Builder::default();
        builder.message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &request, |_| ());
        self.socket.send(builder.bytes())?;
        let mut whole = true;
        loop {
            for message in nlmsg::messages(self.socket.receive()?) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                if let Some(error) = message.error() {
                    // A kernel without IPv6 has no sockets of that family.
                    let no_ipv6 =
                        family == libc::AF_INET6 as u8 && error.raw_os_error() == Some(libc::ENOENT);
                    return if no_ipv6 { Ok(true) } else { Err(error) };
                }
                match message.kind {
                    NLMSG_DONE => return Ok(whole),
                    SOCK_DIAG_BY_FAMILY => ports.extend(held(message.payload, &self.addresses)),
                    _ => {}
                }
            }
        }
    }
}

/// The local port of the socket that a `struct inet_diag_msg` describes, if it holds it on one of `addresses`.
fn held(message: &[u8], addresses: &[Ipv4Addr]) -> Option<u16> {
    let (message, attributes) = message.split_at_checked(DIAG_MESSAGE)?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let source: &[u8; 16] = message[8..].first_chunk()?;
    let local = if i32::from(message[0]) == libc::AF_INET {
        Some(Ipv4Addr::new(source[0], source[1], source[2], source[3]))
    } else {
        let v6_only = nlmsg::attributes(attributes).any(|attr| attr == (INET_DIAG_SKV6ONLY, &[1]));
        match Ipv6Addr::from(*source) {
            Ipv6Addr::UNSPECIFIED => (!v6_only).then_some(Ipv4Addr::UNSPECIFIED),
            address => address.to_ipv4_mapped(),
        }
    };
    let here = local.is_some_and(|local| local.is_unspecified() || addresses.contains(&local));
    (here && port != 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: libc::c_int, port: u16, source: &[u8], v6_only: Option<u8>) -> Vec<u8> {
        let mut bytes = vec![0; DIAG_MESSAGE];
        bytes[0] = family as u8;
        bytes[4..6].copy_from_slice(&port.to_be_bytes());
        bytes[8..8 + source.len()].copy_from_slice(source);
        if let Some(v6_only) = v6_only {
            bytes.extend([5, 0, INET_DIAG_SKV6ONLY as u8, 0, v6_only, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn a_socket_counts_where_it_would_be_reached() {
        let ours = [Ipv4Addr::new(192, 0, 2, 1)];
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        let v6 = |source: &[u8], only| held(&message(libc::AF_INET6, 22, source, only), &ours);
        assert_eq!(held(&message(libc::AF_INET, 22, &[0; 4], None), &ours), Some(22));
        assert_eq!(held(&message(libc::AF_INET, 22, &[192, 0, 2, 1], None), &ours), Some(22));
        assert_eq!(held(&message(libc::AF_INET, 22, &[127, 0, 0, 1], None), &ours), None);
        assert_eq!(held(&message(libc::AF_INET, 0, &[0; 4], None), &ours), None);
        assert_eq!(v6(&[0; 16], Some(0)), Some(22));
        assert_eq!(v6(&[0; 16], Some(1)), None);
        assert_eq!(v6(&mapped, None), Some(22));
        assert_eq!(v6(&[0x20; 16], None), None);
        assert_eq!(held(&[0; 10], &ours), None);
    }
}
