//! Under which address a listen address is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use traversal_proto::address::{Scope, canonical, scope};

/// The address that peers reach `local` at. `named` is what the operator says (port 0: that of `local`); without, a
/// wildcard address is replaced by the one that this machine would send from. No packet is sent to find out.
pub fn external(local: SocketAddr, named: Option<SocketAddr>) -> SocketAddr {
    if let Some(named) = named {
        let port = if named.port() == 0 { local.port() } else { named.port() };
        return SocketAddr::new(named.ip(), port);
    }
    let local = canonical(local);
    if !local.ip().is_unspecified() {
        return local;
    }
    let found = match local.ip() {
        IpAddr::V4(_) => source_towards(Ipv4Addr::UNSPECIFIED.into(), FAR_V4),
        IpAddr::V6(_) => source_towards(Ipv6Addr::UNSPECIFIED.into(), FAR_V6),
    };
    let loopback: IpAddr = match local.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(found.unwrap_or(loopback), local.port())
}

/// Whether an address that was found out may not be the one that the internet sees.
pub(crate) fn doubtful(external: SocketAddr) -> bool {
    scope(external.ip()) != Scope::Global
}

/// Addresses for documentation (RFC 5737, RFC 3849): far away, and nobody's.
const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Connecting a UDP socket makes the kernel choose a route and a source address, and nothing more.
fn source_towards(any: IpAddr, far: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(far, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}
