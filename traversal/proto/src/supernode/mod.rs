//! The supernode as a pure engine: registry, signalling, presence, reflector, relay.
//!
//! # Theory of operation
//!
//! A supernode has two faces. On **control connections**, which the caller has already encrypted and authenticated by
//! key, peers register, look each other up and ask for channels. On **UDP sockets**, where anybody can send anything
//! from any address, it reflects (STUN) and relays.
//!
//! ```text
//!   control connections                                      UDP sockets
//!   handle_connected ─┐                                  ┌─ handle_datagram ─▶ Relay { to }: send it there, in place
//!   handle_frame ─────┼─▶ registry ◀─▶ channels ◀─▶ relay ◀┤
//!   handle_disconnected┘     │  ▲                        └─ STUN ─▶ reflector
//!                 poll_query ▼  │ handle_answer
//!                        directory             poll_message, poll_transmit, poll_event, poll_timeout
//! ```
//!
//! **Registering** makes a *session*: a peer shows a [record](crate::wire::Record) that it has signed for this supernode, newer
//! than any before, and gets a session number and a secret token. **Binding** ties the session to a UDP address: the
//! peer sends a Bind, gets a cookie that only this address can have received, and sends a Bind again with the cookie and
//! a proof made with the token. Nothing is remembered before that proof, so half-open sessions do not exist. **Connecting**
//! makes a *channel* with two ends, each with a number of its own; a Data frame that names one end is renumbered in place
//! and sent to the address that the other end's session is bound to. There is no other destination: relaying goes
//! between registered keys, never to an address that somebody names.
//!
//! What a supernode tells an **unproven** address is bounded twice: no more bytes than came in (three times for STUN),
//! and so many answers for each network in a time.
//!
//! What is relayed is charged to the account of the peer that sends it. Whoever has used up its volume, and everybody
//! where the policy says so, is **signalling only**: a trickle that carries the peers' own handshake and their
//! candidates, so that a supernode which relays nothing still connects them.
//!
//! Three rules hold everywhere:
//!
//! - **Everything is bounded**, by [`Limits`] and [`Rates`]; what would go beyond is refused with a code, and counted.
//! - **What a peer has goes with its connection**: session, channels, watches. Only its account stays, so that nobody
//!   gets a fresh quota by coming back.
//! - **A relayed packet allocates nothing**, hashes nothing, and touches two ends, two sessions and one account.
//!
//! # Using it
//!
//! After every `handle_*` call drain, in this order: [`poll_transmit`](Supernode::poll_transmit),
//! [`poll_message`](Supernode::poll_message), [`poll_query`](Supernode::poll_query),
//! [`poll_event`](Supernode::poll_event), and then ask [`poll_timeout`](Supernode::poll_timeout) when to call
//! [`handle_timeout`](Supernode::handle_timeout). Relayed packets may be handled in batches before draining. A frame may
//! want a signature verified ([`Verdict::Verify`]): that is left to the caller, who may share the supernode behind a lock.

mod account;
mod check;
mod config;
mod connection;
mod cookie;
mod counters;
mod deadlines;
mod directory;
mod load;
mod output;
mod presence;
mod quic;
mod reflector;
mod registry;
mod relay;
mod signal;
mod slots;
mod unproven;

use std::{collections::BTreeMap, collections::HashMap, time::Duration};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

pub use check::ConfigError;
pub use config::{Admission, Config, Limits, Listen, Quota, Quotas, Rates, RelayPolicy, Timing};
pub use connection::ConnectionId;
pub use counters::{Counters, DropReason, Event, Gauges};
pub use directory::{Location, Query, QueryId};
pub use output::Outgoing;
pub use registry::{Unverified, Verified};
pub use relay::{Target, Verdict};

pub use crate::rate::Rate;

use crate::{Time, Transmit, UnixTime, address::Prefix, wire::PeerId};
use account::Accounts;
use connection::Connection;
use cookie::Cookies;
use deadlines::{Deadline, Deadlines};
use directory::Pending;
use output::Outputs;
use presence::Presence;
use registry::Session;
use relay::End;
use slots::{Keyed, Slots};
use unproven::Unproven;

/// A supernode. See the [module](self) for how it works and how to drain it.
pub struct Supernode {
    config: Config,
    rng: ChaCha20Rng,
    /// The latest time seen; the clock never goes back for the engine.
    now: Time,
    /// A wall-clock time, and when it was read.
    wall: (UnixTime, Time),
    period_ends: Time,
    connections: BTreeMap<ConnectionId, Connection>,
    networks: HashMap<Prefix, u32, Keyed>,
    sessions: Slots<Session>,
    peers: HashMap<PeerId, u32, Keyed>,
    ends: Slots<End>,
    accounts: Accounts,
    presence: Presence,
    queries: Slots<Pending>,
    cookies: Cookies,
    unproven: Unproven,
    deadlines: Deadlines,
    counters: Counters,
    out: Outputs,
    load: load::Load,
}

impl Supernode {
    /// A supernode at `now`, which is `wall` on the clock of the world. All that is secret or random comes from `seed`:
    /// 32 bytes that nobody can guess, or anything in a test.
    pub fn new(config: Config, seed: [u8; 32], now: Time, wall: UnixTime) -> Result<Supernode, ConfigError> {
        config.check()?;
        let mut rng = ChaCha20Rng::from_seed(seed);
        let hash = Keyed::new(rng.next_u64(), rng.next_u64());
        let mut supernode = Supernode {
            accounts: Accounts::new(&config, hash),
            cookies: Cookies::new(&mut rng),
            unproven: Unproven::new(config.rates.unproven_per_network, config.rates.unproven, hash),
            out: Outputs::new(&config),
            rng,
            now,
            wall: (wall, now),
            period_ends: now,
            connections: BTreeMap::new(),
            networks: HashMap::with_hasher(hash),
            sessions: Slots::new(),
            peers: HashMap::with_hasher(hash),
            ends: Slots::new(),
            presence: Presence::new(hash),
            queries: Slots::new(),
            deadlines: Deadlines::default(),
            counters: Counters::default(),
            load: load::Load::default(),
            config,
        };
        supernode.enter_period(now);
        Ok(supernode)
    }

    /// The clock of the world says `wall`: after the machine has set its clock.
    pub fn set_wall_clock(&mut self, wall: UnixTime, now: Time) {
        let now = self.at(now);
        self.wall = (wall, now);
        self.enter_period(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// The next message to write to a connection, or connection to close.
    pub fn poll_message(&mut self) -> Option<Outgoing> {
        self.out.messages.pop_front()
    }

    /// The next question to the directory.
    pub fn poll_query(&mut self) -> Option<Query> {
        self.out.queries.pop_front()
    }

    /// What happened, if [`Config::report_events`] asks for it.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadlines.next()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        let now = self.at(now);
        while let Some(deadline) = self.deadlines.pop(now) {
            match deadline {
                Deadline::Silent(connection) => self.still_silent(connection, now),
                Deadline::Expiry(session) => self.expired(session, now),
                Deadline::Query(query) => self.query_timed_out(query),
                Deadline::DrainEnd => self.drain_ended(now),
            }
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        Counters { accounts_evicted: self.accounts.evicted, ..self.counters.clone() }
    }

    /// How much there is now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.connections.len(),
            registrations: self.sessions.len(),
            channels: self.ends.len() / 2,
            watches: self.presence.len(),
            queries: self.queries.len(),
            accounts: self.accounts.len(),
        }
    }

    /// Bytes relayed for all peers in this period.
    pub fn volume(&self) -> u64 {
        self.accounts.total_volume()
    }

    /// Bytes relayed for each peer in this period, for those with any: to be saved before a restart.
    pub fn usage(&self) -> impl Iterator<Item = (PeerId, u64)> {
        self.accounts.usage()
    }

    /// Puts back what [`usage`](Self::usage) told in the same period, before the restart.
    pub fn restore_usage(&mut self, peer: PeerId, volume: u64) {
        let random = self.random();
        self.accounts.restore(peer, volume, random, self.now);
    }

    /// The time to reckon with: `now`, unless the caller's clock has gone back.
    fn at(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        if self.now >= self.period_ends {
            self.enter_period(self.now);
        }
        self.now
    }

    /// The wall clock at `now`.
    fn unix_time(&self, now: Time) -> UnixTime {
        self.wall.0 + now.since(self.wall.1)
    }

    fn enter_period(&mut self, now: Time) {
        let (seconds, length) = (self.unix_time(now).0, self.config.quotas.period.as_secs());
        self.accounts.enter_period(seconds / length);
        self.period_ends = now + Duration::from_secs(length - seconds % length);
    }

    /// Seconds until volumes start afresh.
    fn period_left(&self) -> u32 {
        u32::try_from(self.period_ends.since(self.now).as_secs()).unwrap_or(u32::MAX)
    }

    fn random(&mut self) -> u32 {
        self.rng.next_u32()
    }
}
