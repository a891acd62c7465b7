//! Sockets as the engines know them: numbers.

use std::net::SocketAddr;

/// A UDP socket of the caller's: its number is the caller's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u16);

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket.
    pub socket: SocketId,
    /// To where. An IPv4 address is always in its own form: a caller with a dual-stack IPv6 socket maps it.
    pub to: SocketAddr,
    /// The payload.
    pub bytes: Vec<u8>,
    /// How many routers may see it (IPv4's time to live); `None`: as many as the system allows. Where that cannot be had
    /// it must not be sent at all.
    pub hops: Option<u8>,
}
