//! What an engine wants of its caller's sockets.

use crate::SocketId;

/// The engine's number for a socket that it wants opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenId(pub u32);

/// Something to be done with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRequest {
    /// Open a fresh UDP socket on a port that the system chooses, and tell its number by `handle_socket_opened`; or that
    /// it cannot be done by `handle_socket_refused`.
    Open {
        /// For the answer.
        request: OpenId,
        /// What it is for.
        purpose: Purpose,
    },
    /// Close it; the engine has forgotten it already. Only sockets that were opened on request are closed on request.
    Close(SocketId),
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The caller's own: everything. Its addresses become candidates.
    #[default]
    Main,
    /// One more for paths to peers: its addresses become candidates too.
    Path,
    /// For finding out how the NAT behaves, and for nothing else.
    Discovery,
}
