//! The supernode as a program: the pure engine [`traversal_proto::supernode`] on real sockets.
//!
//! # Theory of operation
//!
//! ```text
//!                     one listen address, UDP and TCP
//!   UDP ──▶ datapath ──▶ engine ──▶ relayed: sent on from the same buffer
//!             │ QUIC        ▲  └───▶ STUN, Bind: answered
//!             ▼             │
//!          quinn ──▶ connections ◀── TLS ◀── TCP
//!                           │
//!                        outboxes, bounded
//! ```
//!
//! Each listen address has one UDP port for everything and a TCP port of the same number. What comes by UDP is taken in
//! batches; the engine sees each datagram and says what it is. A relayed one is renumbered in its buffer and sent from
//! there, neighbours with one destination in one system call; a QUIC one goes on to quinn; the rest is answered by the
//! engine. QUIC and TLS connections carry the same frames; each has a reader that hands frames to the engine and a
//! writer that empties its outbox.
//!
//! The engine is one value behind one lock, held for one batch at a time and never while something is received or sent, a
//! signature is verified or a line is logged: most of a relayed packet's cost is the kernel's, and that part runs on all
//! cores, with several sockets on one address (`SO_REUSEPORT`) of which each has a thread of its own, beside the runtime.
//! What the engine decides happens under the lock, what follows from it after: so each turn is *receive, decide, send*, and
//! a turn is bounded: while full batches are waiting it takes in more of them before it sends, and what goes to one
//! destination goes as one train. Sockets that are not the kernel's are received on in tasks, one batch a turn.
//!
//! Whoever reads slowly hurts itself only: relayed packets are dropped when its outbox is fairly full, and it is
//! disconnected when messages no longer fit.
//!
//! Strangers are bounded thrice: the gate bounds how many handshakes go on, the engine how many of them are answered for
//! each network, and the ledger how much QUIC sends to an address that has not proved itself.
//!
//! # Example
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use supernode::{Config, Supernode};
//! use traversal_proto::wire::Identity;
//!
//! let mut config = Config::new(Identity::from_secret(&[7; 32]));
//! config.listen = vec!["127.0.0.1:0".parse()?];
//! let supernode = Supernode::bind(config).await?;
//! println!("peers reach it at {}", supernode.connect_string());
//! supernode.shutdown().await;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod accept;
mod admin;
mod config;
mod connection;
mod core;
mod counters;
mod datapath;
mod error;
mod gate;
mod gather;
mod ledger;
mod listen;
mod outbox;
mod outgoing;
mod reach;
pub mod settings;
mod supernode;
mod tasks;

pub use config::{Config, Listener};
pub use counters::ShellCounters;
pub use error::StartError;
pub use reach::external as external_address;
pub use supernode::{Status, Supernode, check};
