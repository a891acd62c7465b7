//! Why a supernode does not start.

use std::{io, net::SocketAddr};

use traversal_net::{key::KeyError, quic::QuicError};
use traversal_proto::supernode::ConfigError;

/// Why a supernode does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address cannot be had.
    #[error("cannot listen on {address} ({protocol}): {}", advice(source, *address))]
    Listen {
        /// Which.
        address: SocketAddr,
        /// UDP, TCP, or what serves the metrics.
        protocol: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// More external addresses than listen addresses.
    #[error(
        "{external} external addresses for {listen} listen addresses: each belongs to the one in its place"
    )]
    TooManyExternal {
        /// How many there are.
        external: usize,
        /// How many may be.
        listen: usize,
    },
    /// No listener, or one without a UDP socket.
    #[error("no UDP socket: listen must name at least one address")]
    NoSocket,
    /// No threads, or no file descriptors for them.
    #[error("cannot start the threads that receive: {0}")]
    Threads(#[source] io::Error),
    /// QUIC or TLS cannot be set up.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// No randomness.
    #[error(transparent)]
    Key(#[from] KeyError),
}

fn advice(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the address is in use; stop what runs there or choose another port".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "no interface of this machine has {}; behind a translated address listen on 0.0.0.0 and name it with --external",
                address.ip()
            )
        }
        io::ErrorKind::PermissionDenied if address.port() != 0 && address.port() < 1024 => {
            "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".into()
        }
        io::ErrorKind::PermissionDenied => "not permitted".into(),
        _ => error.to_string(),
    }
}
