//! What a supernode is made from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use crate::{
    SocketId,
    rate::Rate,
    wire::{PeerId, message::Supernode as Other},
};

/// How a [`Supernode`](super::Supernode) is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its own key: records must be made for it.
    pub id: PeerId,
    /// Its UDP sockets, the one for everything first. The others are for the reflector: for RFC 5780 there should be two
    /// addresses with the same two ports, and two ports on one address are of use as well.
    pub listen: Vec<Listen>,
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
    pub alternatives: Vec<Other>,
    /// There is a directory that knows about other supernodes: put questions to it, and tell it who is here.
    pub directory: bool,
    /// Keep [`Event`](super::Event)s for `poll_event`; whoever asks for them must take them.
    pub report_events: bool,
}

impl Config {
    /// A supernode for everybody with one socket, no directory and the default limits.
    pub fn new(id: PeerId, listen: Listen) -> Config {
        Config {
            id,
            listen: vec![listen],
            admission: Admission::Everybody,
            relay: RelayPolicy::Full,
            quotas: Quotas::default(),
            limits: Limits::default(),
            rates: Rates::default(),
            timing: Timing::default(),
            alternatives: Vec::new(),
            directory: false,
            report_events: false,
        }
    }
}

/// One of the supernode's UDP sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Its number.
    pub socket: SocketId,
    /// The address that peers reach it at: not the local one where something in between translates.
    pub address: SocketAddr,
}

/// Whom a supernode serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Every peer, within the limits.
    Everybody,
    /// These peers only.
    Only(BTreeSet<PeerId>),
}

/// Whether a supernode relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayPolicy {
    /// Within the quotas.
    Full,
    /// What [`Quotas::signalling`] allows: a handshake and the search for a direct path.
    SignallingOnly,
}

/// How much is relayed. What is relayed is charged to the peer that sends it, in bytes of relay frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// For each peer.
    pub per_peer: Quota,
    /// For these peers instead.
    pub exceptions: BTreeMap<PeerId, Quota>,
    /// For all together.
    pub total: Quota,
    /// What each peer may send in any case, even where nothing is relayed or its volume is used up: enough for
    /// handshakes and for finding a direct path. In bytes.
    pub signalling: Rate,
    /// After what time the volumes start afresh, counted from 1970.
    pub period: Duration,
}

/// `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes per second; the burst at least 4096.
    pub bytes: Option<Rate>,
    /// Packets per second.
    pub packets: Option<Rate>,
    /// Bytes per period; after that, signalling only.
    pub volume: Option<u64>,
}

impl Default for Quotas {
    /// 100 Mbit/s and 20,000 packets/s for each peer, 1 Gbit/s for all, no volume; signalling 256 KiB at once and
    /// 4 KiB/s: some fifteen handshakes, then one every few seconds.
    fn default() -> Quotas {
        Quotas {
            per_peer: Quota {
                bytes: Some(Rate { per_second: 12_500_000, burst: 1 << 20 }),
                packets: Some(Rate { per_second: 20_000, burst: 4_000 }),
                volume: None,
            },
            exceptions: BTreeMap::new(),
            total: Quota {
                bytes: Some(Rate { per_second: 125_000_000, burst: 16 << 20 }),
                packets: None,
                volume: None,
            },
            signalling: Rate { per_second: 4 << 10, burst: 256 << 10 },
            period: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Bounds on memory; what would go beyond is refused and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Control connections. Each takes some 300 bytes here and far more in the transport.
    pub connections: usize,
    /// Registered peers. Each takes some 1,200 bytes with its connection, its account and a channel.
    pub registrations: usize,
    /// Channels; 150 bytes each.
    pub channels: usize,
    /// Channels of one peer: a peer that serves many others needs many.
    pub channels_per_registration: usize,
    /// Watches, 120 bytes each.
    pub watches: usize,
    /// Watches of one peer.
    pub watches_per_registration: usize,
    /// Peers that watch the same peer: so many messages cost its coming and going.
    pub watchers_per_peer: usize,
    /// Questions that the directory has not answered yet.
    pub queries: usize,
    /// Accounts. More than registrations: a peer's usage is remembered while it is away, so that nobody gets a new quota
    /// by coming back. 200 bytes each.
    pub accounts: usize,
    /// Connections from one network (/24, /56). Many peers share a carrier's NAT.
    pub connections_per_network: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1 << 16,
            registrations: 1 << 16,
            channels: 1 << 17,
            channels_per_registration: 1 << 10,
            watches: 1 << 19,
            watches_per_registration: 64,
            watchers_per_peer: 1 << 10,
            queries: 1 << 12,
            accounts: 1 << 18,
            connections_per_network: 1 << 10,
        }
    }
}

/// Bounds on effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Requests of one connection.
    pub requests: Rate,
    /// Registrations of one connection: each costs the check of a signature, 50 µs.
    pub registrations: Rate,
    /// Channels that others open to one peer.
    pub incoming: Rate,
    /// Answers to one network (/24, /56) of addresses that have proved nothing.
    pub unproven_per_network: Rate,
    /// Answers to all addresses that have proved nothing.
    pub unproven: Rate,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates {
            requests: Rate { per_second: 100, burst: 1_000 },
            registrations: Rate { per_second: 1, burst: 10 },
            incoming: Rate { per_second: 50, burst: 500 },
            unproven_per_network: Rate { per_second: 200, burst: 400 },
            unproven: Rate { per_second: 50_000, burst: 50_000 },
        }
    }
}

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A connection that has no registration for so long is closed.
    pub register_within: Duration,
    /// The longest lifetime of a registration.
    pub lifetime: Duration,
    /// How far a record's expiry may lie beyond that, for clocks that differ.
    pub clock_skew: Duration,
    /// A bound address has to be confirmed by a Bind in this time: an address may belong to somebody else by then.
    pub binding: Duration,
    /// How long the directory has for an answer.
    pub query: Duration,
    /// A peer is told at most so often that its packets exceed its rate.
    pub warn_every: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            register_within: Duration::from_secs(10),
            lifetime: Duration::from_secs(600),
            clock_skew: Duration::from_secs(60),
            binding: Duration::from_secs(60),
            query: Duration::from_secs(2),
            warn_every: Duration::from_secs(10),
        }
    }
}
