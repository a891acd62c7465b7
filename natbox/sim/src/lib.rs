//! An internet in memory: hosts that exchange IP packets over links and through NATs, under a virtual clock.
//!
//! # Theory of operation
//!
//! A [`Net`] is a tree of networks. At its root is the internet; below it are the networks behind NATs and routers, and
//! below these others again: a home behind a carrier. Hosts attach to any of them. What attaches a host, a NAT or a
//! router to its network is a **link**, with its own [`Conditions`] in each direction: delay, jitter, loss,
//! duplication, reordering, rate and queue, MTU.
//!
//! ```text
//!                 ┌───────────── internet ─────────────┐
//!               link              link               link
//!             host (public)        NAT                NAT (carrier)
//!                              ┌────┴────┐         ┌────┴────┐
//!                            link      link      link      link
//!                            host      host      NAT       host
//!                                                link
//!                                                host
//! ```
//!
//! What crosses a link is a real IPv4 packet, and a NAT is [`natbox_core::Nat`], the engine that natbox itself runs: what
//! is simulated is what runs. A packet is routed as it would be: within its network directly, up through NATs and
//! routers that rewrite it and take a hop off its TTL, hairpinned where it must, down again. Its checksum is verified
//! where it ends. Routers and NATs answer with ICMP errors, which reach the sending host as [`Input::Error`].
//!
//! **One seed decides everything.** Nothing here reads a clock, draws randomness of its own or depends on the order of
//! a hash table. Two runs from the same seed with the same calls are the same run, packet by packet, and
//! [`Net::digest`] proves it. [`for_each_seed`] runs a scenario under many seeds and names the one that failed.
//!
//! Nothing happens between two events, so virtual time costs nothing: ten minutes of keepalives take as long as their
//! packets. A packet costs one event a link and no allocation. A NAT's engine is made at its first packet, so that a
//! net of a million idle NATs fits into a machine.
//!
//! # Testing a protocol
//!
//! Whatever implements [`Node`] runs on a [`Sim`]: a state machine that takes packets and the time, and says what to
//! send and when to call it again. Here two peers learn of each other at a rendezvous, and punch holes through their
//! NATs by sending to each other at once:
//!
//! ```
//! use std::{collections::VecDeque, net::SocketAddr, time::Duration};
//! use natbox_sim::{Behavior, Conditions, Input, NatConfig, NetworkId, Node, Sim, Time, Transmit};
//!
//! #[derive(Default)]
//! struct Peer { out: VecDeque<Transmit>, met: Vec<SocketAddr>, far: Option<SocketAddr>, next: Option<Time>, heard: bool }
//!
//! impl Node for Peer {
//!     fn handle_input(&mut self, input: Input<'_>, now: Time) {
//!         let Input::Datagram(datagram) = input else { return };
//!         match datagram.payload {
//!             b"hello" => self.met.push(datagram.from), // at the rendezvous
//!             b"punch" => self.heard = true,
//!             address => { // from the rendezvous: where the other peer is
//!                 self.far = std::str::from_utf8(address).ok().and_then(|text| text.parse().ok());
//!                 self.next = Some(now);
//!             }
//!         }
//!         if let [a, b] = self.met[..] {
//!             self.out.extend([(a, b), (b, a)].map(|(to, other)| Transmit::datagram(3478, to, other.to_string())));
//!         }
//!     }
//!     fn handle_timeout(&mut self, now: Time) {
//!         self.out.extend(self.far.map(|far| Transmit::datagram(4000, far, "punch")));
//!         self.next = Some(now + Duration::from_millis(100));
//!     }
//!     fn poll_transmit(&mut self, _now: Time) -> Option<Transmit> { self.out.pop_front() }
//!     fn poll_timeout(&self) -> Option<Time> { self.next }
//! }
//!
//! natbox_sim::for_each_seed(0..20, |seed| {
//!     let mut sim = Sim::new(seed);
//!     let server = sim.net.add_host(NetworkId::INTERNET, Conditions::PERFECT).unwrap();
//!     let rendezvous = SocketAddr::from((sim.net.address(server).unwrap(), 3478));
//!     sim.add_node(server, Peer::default());
//!     let peers = [Behavior::RFC, Behavior::RFC].map(|behavior| {
//!         let nat = sim.net.add_nat(NetworkId::INTERNET, NatConfig::new(behavior)).unwrap();
//!         let host = sim.net.add_host(nat, Conditions::delayed(Duration::from_millis(20))).unwrap();
//!         sim.add_node(host, Peer { out: [Transmit::datagram(4000, rendezvous, "hello")].into(), ..Peer::default() });
//!         host
//!     });
//!     let is_through = |sim: &Sim<Peer>| peers.iter().all(|peer| sim.node(*peer).is_some_and(|node| node.heard));
//!     assert!(sim.run_until_true(Time::ZERO + Duration::from_secs(2), is_through));
//! });
//! ```
//!
//! Live control (cutting a link, changing its conditions, rebinding a NAT, moving a host) goes through [`Sim::net`]
//! between two runs, at the time of [`Sim::now`].
//!
//! # Driving it from outside
//!
//! A program with its own event loop (an async runtime under a paused clock) owns the [`Net`] and drives it by hand: its
//! sockets' in-memory twins call [`Net::bind`] and [`Net::send`], and one task waits for the net's next deadline.
//!
//! ```
//! use std::time::Duration;
//! use natbox_sim::{Conditions, Datagram, Input, Net, NetworkId, Time};
//!
//! let mut net = Net::new(1);
//! let link = Conditions::delayed(Duration::from_millis(10));
//! let (a, b) = (net.add_host(NetworkId::INTERNET, link)?, net.add_host(NetworkId::INTERNET, link)?);
//! let socket = net.bind(a, "0.0.0.0:0".parse()?)?;
//! let to = (net.address(b).ok_or("no such host")?, 7).into();
//! net.send(a, Datagram::new(socket, to, b"hello"), Time::ZERO)?;
//!
//! while let Some(now) = net.poll_timeout() {
//!     // Here the driver sleeps until `now`.
//!     while let Some((host, input)) = net.poll_deliver(now) {
//!         let Input::Datagram(datagram) = input else { continue };
//!         assert_eq!((host, datagram.payload, now), (b, &b"hello"[..], Time::ZERO + Duration::from_millis(20)));
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is not simulated
//!
//! IPv6; fragmentation on links and by hosts (packets that do not fit meet ICMP Fragmentation Needed, as with DF set; NATs
//! pass and make fragments, and hosts get them as raw packets); the routes inside the internet, which is one router hop with no delay of its own: the distance to a host is its link's. TCP and other
//! transports cross as raw packets ([`Net::send_packet`], [`Net::set_raw`]) for nodes that bring their own stack.

#![forbid(unsafe_code)]

mod agenda;
mod conditions;
mod control;
mod digest;
mod error;
mod forward;
mod host;
mod id;
mod link;
mod nat;
mod net;
mod network;
mod node;
mod packet;
mod rebind;
mod seeds;
mod sim;
mod slab;
mod tap;
mod topology;

pub use conditions::{Conditions, Direction, LinkConditions};
pub use error::{BindError, BuildError, ConditionsError, ControlError, SendError};
pub use host::Attachment;
pub use id::{HostId, LinkId, NatId, NetworkId, RouterId};
pub use link::{LinkCounters, LinkDrop};
pub use nat::NatConfig;
/// What a NAT here is made of, and the clock that all engines share.
pub use natbox_core::{self, Behavior, Time};
pub use net::{Counters, Net};
pub use node::Node;
pub use packet::{Datagram, IcmpError, IcmpErrorKind, Input, Transmit};
pub use rebind::Rebind;
pub use seeds::for_each_seed;
pub use sim::{ClockJump, Sim};
pub use tap::{Captured, Point, Tap, TapId};
