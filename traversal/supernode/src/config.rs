//! What a running supernode is made from.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use traversal_net::socket::DatagramSocket;
use traversal_proto::{
    UnixTime,
    supernode::{Admission, Limits, Quotas, Rates, RelayPolicy, Timing},
    wire::{Identity, message},
};

/// How a [`Supernode`](crate::Supernode) is set up. Every field has a default that works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its key.
    pub identity: Identity,
    /// Where it listens, UDP and TCP; at most eight, the first is the one for everything. Port 0: the system chooses.
    /// Two addresses with the same two ports make the reflector complete (RFC 5780).
    pub listen: Vec<SocketAddr>,
    /// Under which address peers reach the listen address in the same place; port 0 stands for the port that is listened
    /// on. Where there is none it is found out, which works where nothing translates addresses in between.
    pub external: Vec<SocketAddr>,
    /// Whether TCP is listened on as well, for peers whose network blocks UDP.
    pub tcp: bool,
    /// Where metrics and health are served, if they are.
    pub admin: Option<SocketAddr>,
    /// Threads that receive on each UDP address; 0: one for each core.
    pub shards: usize,
    /// Whom it serves.
    pub admission: Admission,
    /// Whether it relays.
    pub relay: RelayPolicy,
    /// How much it relays.
    pub quotas: Quotas,
    /// Bounds on memory.
    pub limits: Limits,
    /// Bounds on effort.
    pub rates: Rates,
    /// How long things last.
    pub timing: Timing,
    /// Other supernodes, for peers that have to go elsewhere.
    pub alternatives: Vec<message::Supernode>,
    /// Seeds all that the engine draws, and QUIC's own choices, for a simulation; `None`: the system's randomness.
    pub seed: Option<[u8; 32]>,
    /// What the clock of the world says at the start, for a simulation; `None`: ask it, again and again.
    pub wall_clock: Option<UnixTime>,
}

impl Config {
    /// Where a supernode listens by default: STUN's port (RFC 8489 §13).
    pub const PORT: u16 = 3478;

    /// A supernode for everybody, on all IPv4 addresses of the machine, with the default limits.
    pub fn new(identity: Identity) -> Config {
        Config {
            identity,
            listen: vec![SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), Config::PORT)],
            external: Vec::new(),
            tcp: true,
            admin: None,
            shards: 0,
            admission: Admission::Everybody,
            relay: RelayPolicy::Full,
            quotas: Quotas::default(),
            limits: Limits::default(),
            rates: Rates::default(),
            timing: Timing::default(),
            alternatives: Vec::new(),
            seed: None,
            wall_clock: None,
        }
    }
}

/// Sockets that a supernode runs on: the kernel's, or any others.
#[derive(Debug)]
pub struct Listener {
    /// The address that peers reach it at.
    pub external: SocketAddr,
    /// Sockets of one address, each received on by a thread of its own (by a task, where it is not the kernel's); at least
    /// one.
    pub udp: Vec<Arc<dyn DatagramSocket>>,
    /// The TCP port of the same number.
    pub tcp: Option<tokio::net::TcpListener>,
}

/// How long a handshake may take: several round trips of the slowest link, with losses.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// After so long without a packet a QUIC control connection is over; peers keep it alive.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
