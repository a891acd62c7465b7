//! A complete NAT as a pure engine: packets, a clock reading and a seed in; verdicts out.
//!
//! # Theory of operation
//!
//! A NAT stands between hosts with private addresses and a network on which only its own addresses mean anything. When
//! an inside host sends a packet, the NAT gives the host's endpoint a stand-in, an **external endpoint**, writes it into
//! the packet as its source, and remembers the pair: a **mapping**. When a packet comes to that external endpoint, the
//! NAT asks its **filter** whether the sender may send there, and writes the inside endpoint back in as the
//! destination. How long a mapping is remembered, for which destinations it is used again, and whom the filter admits is
//! what distinguishes one NAT from another; all of it is in one struct, [`Behavior`].
//!
//! [`Nat`] is that, and nothing else: it owns no socket, reads no clock and draws no randomness of its own. The caller
//! hands it packets in place ([`Packet`]), with the time ([`Time`]); it rewrites them and returns a [`Verdict`]. So the
//! same engine runs on a real interface, in a test, in a fuzzer, and a million times over in a simulator, and the same
//! seed and input give the same output everywhere.
//!
//! ```text
//!              ┌────────────────────────── Nat ──────────────────────────┐
//!   inside ──▶ │ parse ▶ leave: session? mapping? port ▶ rewrite source  │ ──▶ outside
//!   inside ◀── │ rewrite destination ◀ enter: session? filter? ◀ parse   │ ◀── outside
//!              └─────────────────────────────────────────────────────────┘
//!                 hairpin = leave + enter        poll_transmit: ICMP errors, resets
//! ```
//!
//! A packet of a known flow costs one hash lookup that finds its **session** (the mapping together with one remote
//! endpoint, where the timer and the TCP state are kept), an incremental checksum update, and no allocation. The first
//! packet of a flow takes the longer way: mapping, port, limits.
//!
//! Three rules hold everywhere:
//!
//! - **Nothing from outside makes state**, but for a TCP SYN that the filter admits, up to seven eighths of the table. A
//!   stranger cannot fill it.
//! - **Nothing is deleted to make room.** A full table refuses what is new and counts it.
//!   (What is remembered of fragments for some seconds stands apart from the tables, with limits for each source.)
//! - **Expired is gone.** A record is dead for every lookup from the moment of its deadline, whether or not anybody has
//!   called for expiry; only what hangs on it, its port and its permission, is free or void a millisecond later.
//!
//! A dropped packet is a [`Verdict::Drop`] with its [`DropReason`] and a counter, never an error and never silent.
//!
//! # Example
//!
//! ```
//! use natbox_core::{Config, InsidePort, Nat, Packet, Side, Time, Verdict};
//!
//! let mut nat = Nat::new(Config::new([198, 51, 100, 1].into()), 7)?;
//! let inside = nat.add_inside(InsidePort { gateway: [10, 0, 0, 1].into(), prefix_len: 24, mtu: 1500, shared: false })?;
//!
//! // 10.0.0.2:4242 asks 203.0.113.5:53.
//! let mut bytes = Vec::new();
//! etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [203, 0, 113, 5], 64)
//!     .udp(4242, 53)
//!     .write(&mut bytes, b"query")?;
//! let verdict = nat.outbound(inside, &mut Packet::plain(&mut bytes), Time::ZERO);
//!
//! assert_eq!(verdict, Verdict::Forward(Side::Outside));
//! assert_eq!(bytes[12..16], [198, 51, 100, 1]); // the source is the NAT's now
//! assert_eq!(nat.mappings().count(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod begin;
pub mod behavior;
mod blocks;
mod config;
mod endpoint;
mod fastpath;
mod filter;
mod fragment;
mod fragments;
mod generate;
mod icmp;
mod identification;
mod index;
mod known;
mod nat;
mod packed;
pub mod packet;
mod ports;
mod prefetch;
pub mod preset;
mod quarantine;
mod remapped;
mod report;
mod router;
mod slab;
mod strays;
mod subscribers;
mod table;
mod tcp;
mod time;
mod timer;
mod translate;
mod transport;
mod untranslated;
mod value;
mod verdict;

pub use behavior::Behavior;
pub use config::*;
pub use endpoint::{Endpoint, External, Inside, InsideId, Protocol, Remote};
pub use fastpath::{FlowId, FlowKey, FlowRule, FlowWay, Moved};
pub use nat::Nat;
pub use packet::Packet;
pub use time::Time;
pub use transport::ends;
pub use value::{Allowed, PortRange, ValueError};
pub use verdict::{Claim, Counters, DropReason, Ended, Event, Side, Transmit, Verdict};
