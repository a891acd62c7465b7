//! The kernel's sockets for a configuration.

use std::{io, net::SocketAddr, sync::Arc};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpListener;
use traversal_net::{
    socket::DatagramSocket,
    udp::{Bind, KernelSocket},
};

use crate::{
    config::{Config, Listener},
    error::StartError,
    reach,
};

/// Connections that the kernel keeps until we take them: after a restart all peers come back at once.
const BACKLOG: i32 = 1024;
/// How often a port of the system's choice is tried for both UDP and TCP.
const TRIES: usize = 16;

/// Opens everything that `config` listens on.
pub(crate) fn open(config: &Config) -> Result<Vec<Listener>, StartError> {
    let (listen, external) = (&config.listen, &config.external);
    if external.len() > listen.len() {
        return Err(StartError::TooManyExternal { external: external.len(), listen: listen.len() });
    }
    let shards = match config.shards {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let mut listeners = Vec::new();
    for (at, address) in listen.iter().enumerate() {
        let shares = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
        let only_v6 = address.is_ipv6() && address.port() != 0 && listen.iter().any(shares);
        let (udp, tcp) = open_both(Bind { only_v6, ..Bind::new(*address) }, shards, config.tcp)?;
        let external = reach::external(local(&udp, *address)?, external.get(at).copied());
        if !address.ip().is_loopback() && reach::doubtful(external) {
            tracing::warn!(
                listen = %address, %external,
                "peers will be told an address that the internet does not reach; if something translates addresses \
                 in front of this machine, name the outer one with --external"
            );
        }
        let udp = udp.into_iter().map(|socket| Arc::new(socket) as Arc<dyn DatagramSocket>).collect();
        listeners.push(Listener { external, udp, tcp });
    }
    Ok(listeners)
}

/// A TCP listener at `address`, for whatever `protocol` is spoken there.
pub(crate) fn open_tcp(address: SocketAddr, protocol: &'static str) -> Result<TcpListener, StartError> {
    listen_tcp(address, false).map_err(|source| StartError::Listen { address, protocol, source })
}

fn open_both(
    bind: Bind,
    shards: usize,
    tcp: bool,
) -> Result<(Vec<KernelSocket>, Option<TcpListener>), StartError> {
    let failed = |protocol, source| StartError::Listen { address: bind.address, protocol, source };
    let mut tries = if bind.address.port() == 0 { TRIES } else { 1 };
    loop {
        tries -= 1;
        let udp = KernelSocket::bind_shards(bind, shards).map_err(|source| failed("UDP", source))?;
        if !tcp {
            return Ok((udp, None));
        }
        let address = SocketAddr::new(bind.address.ip(), local(&udp, bind.address)?.port());
        match listen_tcp(address, bind.only_v6) {
            Ok(listener) => return Ok((udp, Some(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(source) => return Err(failed("TCP", source)),
        }
    }
}

fn local(udp: &[KernelSocket], address: SocketAddr) -> Result<SocketAddr, StartError> {
    let first = udp.first().ok_or(StartError::NoSocket)?;
    first.local_addr().map_err(|source| StartError::Listen { address, protocol: "UDP", source })
}

fn listen_tcp(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Connections of the last run that are still dying must not keep a new one from starting.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
