//! Connects two applications through any pair of NATs: usable at once over a relay, direct wherever that is possible,
//! encrypted from end to end always.
//!
//! # How it works
//!
//! A [`Node`] has one UDP socket and a key; the public half of the key is its [`PeerId`], the only address that anybody
//! needs. It registers at one or more **supernodes** (public servers), and [`Node::connect`] asks them for a peer:
//!
//! ```text
//!   1. relay      A ═══▶ supernode ═══▶ B      a QUIC connection, A and B prove their keys: usable from here on
//!   2. inside it  A ◀── candidates ──▶ B       where each might be reached; the supernode sees none of it
//!   3. punch      A ◀── checks ──────▶ B       until a pair of addresses works
//!   4. direct     A ═════════════════▶ B       the same QUIC connection: streams do not notice
//! ```
//!
//! When the direct path dies the connection goes back to the relay, and when a better one is found, to that. QUIC sees one
//! address for each peer, whatever carries its packets. Where UDP is blocked everything goes over TLS to the supernode,
//! until UDP works.
//!
//! # Example
//!
//! A supernode and two nodes, here in one process; elsewhere in three, with the supernode's public address.
//!
//! ```
//! use std::time::Duration;
//! use traversal::{Identity, Node, generate_identity};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut config = supernode::Config::new(generate_identity()?);
//! # config.listen = vec!["127.0.0.1:0".parse()?];
//! # let supernode = supernode::Supernode::bind(config).await?;
//! # let supernode = supernode.connect_string();
//! let here = || Node::builder().bind(([127, 0, 0, 1], 0).into()).loopback(true); // on the internet: Node::builder()
//! let bob = here().identity(Identity::from_secret(&[7; 32])).supernode(&supernode).start().await?;
//! let alice = here().supernode(&supernode).start().await?;
//!
//! let peer = bob.id();
//! let answering = tokio::spawn(async move {
//!     let connection = bob.accept().await?;
//!     let (mut send, mut receive) = connection.accept_bi().await.ok()?;
//!     tokio::io::copy(&mut receive, &mut send).await.ok()?;
//!     send.finish().ok()?;
//!     connection.closed().await;
//!     Some(bob)
//! });
//!
//! let connection = alice.connect(peer).await?; // usable at once, over the relay
//! let (mut send, mut receive) = connection.open_bi().await?;
//! send.write_all(b"hello").await?;
//! send.finish()?;
//! assert_eq!(receive.read_to_end(1024).await?, b"hello");
//!
//! connection.wait_direct(Duration::from_secs(3)).await?; // the error tells what the two NATs have against it
//! println!("{}", connection.path()); // direct 127.0.0.1:40000 0.3 ms
//! connection.close(0, b"done");
//! # answering.await?;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//!
//! - One connection between two peers. [`Node::connect`] to a peer that is connected gives the same connection again; when
//!   both connect at once, the attempt of the peer with the lower id becomes the connection of both.
//! - A connection outlives any of its paths, and the restart of a supernode. It ends when one side closes it, or when
//!   nothing has come through for [`IDLE_TIMEOUT`].
//! - Everything here is cheap to clone and may be used from any task; a node lives as long as it, or one of its
//!   connections, is held.
//! - Nothing blocks: the crate needs tokio's timers and sockets, and no thread of its own.

#![forbid(unsafe_code)]

mod backlog;
mod builder;
mod congestion;
mod connection;
mod control;
mod counters;
mod driver;
mod error;
mod explain;
mod intake;
mod last_words;
mod network;
mod node;
mod path;
mod peer_stream;
mod punch;
mod report;
mod routes;

pub use builder::{Admission, Builder, SupernodeAddress, SupernodeAddressError};
pub use connection::{Connection, PathEvents};
pub use counters::Counters;
pub use driver::IDLE_TIMEOUT;
pub use error::{CloseReason, ConnectError, DatagramError, DoctorError, NotDirect, StartError, Step};
#[doc(hidden)]
pub use network::{ByteStream, Connecting, Network, Resolving};
pub use node::{Node, SupernodeStatus};
pub use path::{Path, PathEvent, PathKind, Policy, SwitchReason};
pub use punch::Punched;
pub use report::{DoctorOptions, Report};

/// Keeping an identity in a file.
pub use traversal_net::key;

/// Streams of a connection: quinn's, which implement tokio's `AsyncRead` and `AsyncWrite`.
pub use quinn::{RecvStream, SendStream};
/// What is known of a NAT, and the addresses at which peers look for each other.
pub use traversal_proto::path::{Filtering, Mapping, NatProfile, PortAssignment};
/// How paths are looked for and kept (see [`Builder::paths`]), and what was counted meanwhile.
pub use traversal_proto::peer::{Config as PathConfig, Counters as PathCounters};
pub use traversal_proto::wire::{Identity, PeerId};

/// A new identity, from the operating system's randomness. Keep [`Identity::secret`] to be the same peer next time.
///
/// # Errors
/// The operating system has no randomness to give.
pub fn generate_identity() -> Result<Identity, StartError> {
    Ok(Identity::from_secret(&builder::random_seed()?))
}

/// README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
