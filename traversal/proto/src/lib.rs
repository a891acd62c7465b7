//! The engines of peer-to-peer traversal, pure: packets, a clock reading and a seed in; data out.
//!
//! # Theory of operation
//!
//! Two peers behind two NATs get connected in three steps. Each keeps a control connection to a **supernode**, a node
//! with a public address, and registers there under its key. One asks its supernode for the other, and both get an end
//! of a **relay channel**: usable at once, whatever the NATs. Over it the peers make an encrypted connection of their
//! own, tell each other in it at which addresses they might be reached, and **check** pairs of them until one works;
//! then they need the supernode no more, but for the day on which that path dies.
//!
//! What decides any of this is here, and nothing else is: no socket, no clock, no thread, no randomness from the
//! operating system. The caller moves bytes. So the same engines run on a real network, in a test, in a fuzzer, and a
//! million times over in a simulator, and the same seed and input give the same output everywhere.
//!
//! - [`wire`]: every byte that travels; codecs without state.
//! - [`supernode`]: registry, signalling, presence, reflector, relay.
//! - [`client`]: a node's session with one supernode.
//! - [`path`]: candidates, NAT profiles and their discovery, what to expect of a pair of NATs, which path is best.
//! - [`peer`]: the paths to all of a node's peers: checks, choice, liveness, looking again.
//! - [`address`]: what an address is, whatever form it hides in.
//!
//! [`supernode`] imports [`wire`]; both know [`Time`], [`SocketId`] and [`address`], and nothing more of each other.
//! [`peer`] imports [`path`] and [`wire`], [`path`] imports [`wire`]; neither knows [`supernode`].
//!
//! All engines are used alike: `handle_*` takes what has happened, with the time; `poll_*` gives what is to be done.
//!
//! # Example
//!
//! A peer registers at a supernode, in memory.
//!
//! ```
//! use traversal_proto::{
//!     SocketId, Time, UnixTime,
//!     supernode::{Config, ConnectionId, Listen, Outgoing, Supernode},
//!     wire::{Identity, Record, SignedRecord, message::{FromSupernode, ToSupernode}},
//! };
//!
//! let us = Identity::from_secret(&[1; 32]).peer_id();
//! let listen = Listen { socket: SocketId(0), address: "203.0.113.10:3478".parse()? };
//! let wall = UnixTime(1_800_000_000);
//! let mut supernode = Supernode::new(Config::new(us, listen), [7; 32], Time::ZERO, wall)?;
//!
//! // A connection whose peer has proved its key, and a record that the peer has signed.
//! let peer = Identity::from_secret(&[2; 32]);
//! let connection = ConnectionId(1);
//! supernode.handle_connected(connection, peer.peer_id(), "198.51.100.7:40000".parse()?, Time::ZERO);
//! let record = Record { peer: peer.peer_id(), supernode: us, sequence: 1, expires: UnixTime(wall.0 + 300) };
//! let record = SignedRecord::sign(record, &peer);
//! let register = ToSupernode::Register { record, accepting: true, resume: false };
//! supernode.handle_message(connection, register, Time::ZERO);
//!
//! assert!(matches!(supernode.poll_message(), Some(Outgoing::Message(_, FromSupernode::Hello(_)))));
//! assert!(matches!(supernode.poll_message(), Some(Outgoing::Message(_, FromSupernode::Registered { .. }))));
//! assert_eq!(supernode.gauges().registrations, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod path;
pub mod peer;
mod rate;
mod socket;
pub mod supernode;
mod time;
pub mod wire;

pub use rate::Rate;
pub use socket::{SocketId, Transmit};
pub use time::{Time, UnixTime};
pub use wire::PeerId;
