//! What the tokio shells of traversal share: everything between an engine and the kernel that is not a decision.
//!
//! # How it fits together
//!
//! ```text
//!   QUIC connections                       control connections over TCP
//!   quic::endpoint                         tokio-rustls, tls::client / tls::server
//!         │ any DatagramSocket                     │ framing::FrameReader / FrameWriter
//!         ▼                                        ▼
//!   socket::VirtualSocket ── Inbound ◀── what the shell received and says is QUIC
//!         │ Sink
//!         ▼
//!   the shell: which path, which socket ──▶ udp::KernelSocket, or an in-memory twin
//! ```
//!
//! - [`tls`]: an Ed25519 identity as both ends of TLS 1.3 with raw public keys (RFC 7250); a client pins whom it expects.
//! - [`quic`]: quinn endpoints over any [`DatagramSocket`](socket::DatagramSocket).
//! - [`socket`]: the seam: the traits that a UDP socket has here, the queue that datagrams are pushed into, and the
//!   virtual socket made of both.
//! - [`udp`]: the kernel's UDP socket behind that seam, in batches (GRO and GSO where the system has them).
//! - [`memory`]: a network in memory behind the same seam, for tests under a paused clock.
//! - [`framing`]: the frames of a control connection over any byte stream.
//! - [`key`]: the file that an identity is kept in.
//!
//! Nothing here decides anything about the protocol, and nothing but [`udp`], [`Stop`] and [`key`] touches the operating
//! system.

#![deny(unsafe_code)]

mod batch;
pub mod framing;
pub mod key;
mod lasting;
pub mod memory;
#[cfg(target_os = "linux")]
mod mmsg;
pub mod quic;
mod readiness;
pub mod socket;
mod stop;
pub mod tls;
pub mod udp;
mod wakers;

pub use quinn_udp::{EcnCodepoint, RecvMeta, Transmit};
pub use stop::Stop;
pub use wakers::Wakers;
