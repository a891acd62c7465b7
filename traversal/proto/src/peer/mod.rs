//! The paths to all of a node's peers: finding them, keeping them, leaving them.
//!
//! # Theory of operation
//!
//! Above the agent is QUIC, which knows one address for each peer and never hears of paths. Below it are sockets. For
//! every packet to a peer the caller asks the agent for the [`route`](Agent::route), and for every packet from somewhere
//! [whose](Agent::peer_of) it is; packets themselves the agent does not see. What it sees and sends are **checks**: STUN
//! requests under a key that only the two peers have.
//!
//! ```text
//!            peers' QUIC connection             PeerMessage: candidates, NAT profile, "start"
//!                │ packets      ▲                    │ handle_message   ▲ poll_message
//!                ▼ route        │ peer_of            ▼                  │
//!            ┌──────────────────────────────────────────────────────────────┐
//!            │ Agent:   pairs ─▶ checks ─▶ paths ─▶ score ─▶ route           │
//!            └──────────────────────────────────────────────────────────────┘
//!                │ relay, sockets ▲                  ▲ handle_datagram  │ poll_transmit (STUN)
//! ```
//!
//! **Candidates.** Each node collects the addresses at which its sockets might be reached, from its interfaces and from
//! reflectors, and tells them to each peer. What a peer tells goes through [`safety`](crate::path::safety) first.
//!
//! **Rounds.** Both begin at about the same time: a check that comes too early is dropped by the other's NAT, or worse.
//! Whoever hears of candidates answers with its own and begins half a round trip later; whoever is answered begins at
//! once. Each of our sockets checks each candidate, paced, a few times, with growing pauses. A valid request from an
//! address that nobody named is a peer-reflexive candidate and is checked at once. A response counts from wherever it
//! comes: it says that *our packets arrive*, and the way back may be another pair. So two peers whose NATs leave only a
//! pair of one-way paths are connected too.
//!
//! **Choice.** Each side chooses for itself by which pair it sends, by [`Score`](crate::path::score::Score). A direct
//! path is preferred to the relay, one within a network to one through NATs, a much quicker one to a slow one.
//!
//! **Liveness.** The path in use is checked twice a second while data flows, rarely while none does; two more are kept
//! ready. A check that is not answered is repeated at once; after two such the path is *suspect*, and data takes the
//! next best path too; after five it is *dead*, and data takes that path only. Without an answer for 30 s nothing is sent
//! there at all (RFC 7675).
//!
//! **Search goes on.** While a peer is only relayed, rounds are repeated with growing pauses; at once when a path has
//! died, an address has changed, or a peer shows up somewhere else.
//!
//! **Budget.** Checks of what has proved nothing come out of one budget for all peers, because each may cost a NAT a
//! mapping. Everything else is bounded for each peer: pairs, addresses, answers in a time.
//!
//! # Using it
//!
//! After every `handle_*` call but [`handle_sent`](Agent::handle_sent) and [`handle_received`](Agent::handle_received)
//! drain, in this order: [`poll_transmit`](Agent::poll_transmit), [`poll_message`](Agent::poll_message),
//! [`poll_socket`](Agent::poll_socket), [`poll_route`](Agent::poll_route), [`poll_event`](Agent::poll_event); then ask
//! [`poll_timeout`](Agent::poll_timeout).

mod check;
mod config;
mod counters;
mod deadlines;
mod discover;
mod live;
mod local;
mod network;
mod output;
mod pair;
mod route;
mod search;
mod shared;
mod state;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use rand_core::Rng;

pub use config::Config;
pub use counters::Counters;
pub use output::{Event, Hop, Path, PeerKey, Policy, Role, Route, Why};

pub use crate::path::{OpenId, Purpose, SocketRequest, safety::Interface};

use crate::{
    Rate, SocketId, Time, Transmit, address,
    path::{Candidate, NatProfile, safety::is_source},
    rate::{Bucket, Meter},
    wire::{
        peer::PeerMessage,
        stun::{CheckKey, Class, peek},
    },
};
use deadlines::{Deadline, Deadlines};
use discover::Discovering;
use pair::{Life, PairKey};
use shared::Shared;
use state::Peer;

/// Packets from unknown sources that are looked into: one for each rebinding of a peer would do.
const UNKNOWN: Rate = Rate { per_second: 20, burst: 20 };
/// Bytes sent to such a source for each that came from there; as with QUIC (RFC 9000 §8.1).
const REFLECTED: usize = 3;

/// The budget is looked at no oftener than this: several probes may go at once then.
const SHORTEST_WAIT: Duration = Duration::from_millis(2);

/// The path agent of one node. See the [module](self) for how it works and how to drain it.
pub struct Agent {
    shared: Shared,
    peers: BTreeMap<PeerKey, Peer>,
    /// Whose requests carry which tag.
    tags: BTreeMap<u32, PeerKey>,
    /// Sockets asked for, and for what: those of discovery by its own number.
    opening: BTreeMap<OpenId, Purpose>,
    next_open: u32,
    discovering: Discovering,
    unknown: (Meter, Bucket),
    deadlines: Deadlines,
    gather_armed: Time,
    discovery_armed: Time,
    budget_armed: Time,
    /// The latest time seen; the clock never goes back for the engine.
    now: Time,
}

impl Agent {
    /// An agent at `now`. All that is secret or random comes from `seed`: 32 bytes that nobody can guess, or anything in
    /// a test.
    pub fn new(config: Config, seed: [u8; 32], now: Time) -> Agent {
        let mut agent = Agent {
            opening: BTreeMap::new(),
            next_open: 0,
            discovering: Discovering::default(),
            peers: BTreeMap::new(),
            tags: BTreeMap::new(),
            unknown: (Meter::new(Some(UNKNOWN)), Bucket::default()),
            deadlines: Deadlines::default(),
            gather_armed: Time::NEVER,
            discovery_armed: Time::NEVER,
            budget_armed: Time::NEVER,
            shared: Shared::new(config, seed),
            now,
        };
        for _ in 0..agent.shared.config.extra_sockets {
            agent.open(Purpose::Path);
        }
        agent
    }

    // ---- Peers ----

    /// The QUIC connection with a peer stands, and `key` was exported from it. A peer that is known already begins anew.
    /// Its route is the relay, until [`handle_relay`](Self::handle_relay) says that there is none.
    pub fn handle_peer(&mut self, peer: PeerKey, role: Role, key: CheckKey, policy: Policy, now: Time) {
        let now = self.at(now);
        self.remove(peer);
        let mut tag = self.shared.rng.next_u32();
        while self.tags.contains_key(&tag) {
            tag = self.shared.rng.next_u32();
        }
        self.tags.insert(tag, peer);
        let mut state = Peer::new(peer, role, key, policy, tag, self.shared.config.repunch.0);
        state.switched = now;
        self.peers.insert(peer, state);
        self.with(peer, |state, shared| state.announce(shared));
    }

    /// The peers' QUIC handshake went by this path, and took this long: it works.
    pub fn handle_direct(
        &mut self,
        peer: PeerKey,
        socket: SocketId,
        to: SocketAddr,
        rtt: Duration,
        now: Time,
    ) {
        let now = self.at(now);
        let key = PairKey { socket, remote: address::canonical(to) };
        self.with(peer, |peer, shared| {
            if peer.policy == Policy::RelayOnly {
                return;
            }
            let Some(pair) = peer.reflexive_pair(key, shared) else { return };
            pair.life = Some(Life::new(rtt, now));
            pair.due = now;
            peer.claim(socket, key.remote, true, shared);
            peer.handle_found(now);
            shared.counters.paths_up += 1;
            shared.event(Event::PathUp { peer: peer.id, hop: key.hop(), rtt });
            peer.reselect(Why::FoundDirect, None, shared, now);
        });
    }

    /// Uses other paths from now on.
    pub fn set_policy(&mut self, peer: PeerKey, policy: Policy, now: Time) {
        let now = self.at(now);
        self.with(peer, |peer, shared| {
            if peer.policy == policy {
                return;
            }
            peer.policy = policy;
            peer.announced = 0;
            peer.announce(shared);
            if policy == Policy::RelayOnly {
                peer.dissolve(shared);
                peer.search = state::Search::Idle;
            } else {
                peer.make_pairs(shared, now);
                peer.search_again(shared, now);
            }
            peer.reselect(Why::Relay, None, shared, now);
        });
    }

    /// The connection with a peer is over.
    pub fn handle_peer_closed(&mut self, peer: PeerKey, now: Time) {
        self.at(now);
        self.remove(peer);
    }

    /// The peer says something.
    pub fn handle_message(&mut self, peer: PeerKey, message: PeerMessage, now: Time) {
        let now = self.at(now);
        if !self.peers.contains_key(&peer) {
            self.shared.counters.messages_ignored += 1;
        }
        self.with(peer, |peer, shared| {
            peer.handle_message(message, shared, now);
            peer.probe(shared, now);
        });
    }

    /// Whether there is a relayed path to the peer, and its round-trip time as QUIC measures it, if known.
    pub fn handle_relay(&mut self, peer: PeerKey, is_up: bool, rtt: Option<Duration>, now: Time) {
        let now = self.at(now);
        self.with(peer, |peer, shared| {
            peer.relay = state::Relay { is_up, rtt: rtt.or(peer.relay.rtt) };
            peer.reselect(Why::Relay, None, shared, now);
        });
    }

    fn remove(&mut self, peer: PeerKey) {
        let Some(mut state) = self.peers.remove(&peer) else { return };
        state.dissolve(&mut self.shared);
        self.tags.remove(&state.tag);
        self.shared.waiting.retain(|other| *other != peer);
        if self.shared.waiting.is_empty() {
            self.deadlines.arm(Deadline::Budget, &mut self.budget_armed, Time::NEVER);
        }
        self.deadlines.arm(Deadline::Peer(peer), &mut state.armed, Time::NEVER);
    }

    // ---- Packets ----

    /// A STUN datagram. False: it is none of the agent's.
    pub fn handle_datagram(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Time) -> bool {
        let now = self.at(now);
        let from = address::canonical(from);
        let Ok(header) = peek(bytes) else {
            self.shared.counters.malformed += 1;
            return false;
        };
        if self.discovery_datagram(socket, from, bytes, now) {
            return true;
        }
        match header.class {
            Class::Request => {
                let Some(peer) = self.tags.get(&header.id.tag()).copied() else {
                    self.shared.counters.unknown_tag += 1;
                    return false;
                };
                self.with(peer, |peer, shared| {
                    peer.handle_request((socket, from), bytes, shared, now);
                    peer.watch(shared, now);
                    peer.probe(shared, now);
                });
                true
            }
            Class::Success | Class::Error if self.shared.local.handle_reply(header.id, from, bytes) => {
                self.handle_local_change(now);
                true
            }
            Class::Success => {
                let Some((peer, key)) = self.shared.asked.get(&header.id).copied() else {
                    self.shared.counters.unknown_transaction += 1;
                    return false;
                };
                self.with(peer, |peer, shared| {
                    peer.handle_response(key, (socket, from), bytes, shared, now);
                    peer.watch(shared, now);
                });
                true
            }
            Class::Error | Class::Indication => {
                self.shared.counters.malformed += 1;
                false
            }
        }
    }

    /// A packet of this peer's came by this path: a hint that it works. No drain needed.
    pub fn handle_received(&mut self, peer: PeerKey, socket: SocketId, from: SocketAddr, now: Time) {
        let now = self.at(now);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.handle_received(PairKey { socket, remote: from }, now);
        }
    }

    /// A packet was sent to this peer along its route. When true, something is due sooner for it: ask
    /// [`poll_timeout`](Self::poll_timeout) again.
    pub fn handle_sent(&mut self, peer: PeerKey, now: Time) -> bool {
        let now = self.at(now);
        let busy = self.shared.config.busy_interval;
        let Some(state) = self.peers.get_mut(&peer) else { return false };
        let is_sooner = state.handle_sent(busy, now);
        if is_sooner {
            self.arm(peer);
        }
        is_sooner
    }

    /// A packet of `bytes` that is not STUN came from an address that is no peer's ([`peer_of`](Self::peer_of)): perhaps a
    /// peer's NAT has given it another port. If it is at the IP address of a path to some peer, that peer is checked there.
    /// The source may be forged: what is sent there is no more than three times what came.
    pub fn handle_unknown(&mut self, socket: SocketId, from: SocketAddr, bytes: usize, now: Time) {
        let now = self.at(now);
        let from = address::canonical(from);
        let most = REFLECTED * bytes / search::TRIGGERED_BYTES;
        if most == 0
            || self.shared.owners.contains_key(&(socket, from))
            || !is_source(from, self.shared.config.loopback)
            || !self.unknown.1.take(&self.unknown.0, 1, now)
        {
            return;
        }
        let may_be = self.peers.values().filter_map(|peer| search::may_be_of(peer, socket, from));
        let peers: Vec<_> = may_be.take(most).collect();
        for peer in peers {
            self.shared.counters.unknown_sources += 1;
            self.with(peer, |peer, shared| {
                let key = PairKey { socket, remote: from };
                if let Some(pair) = peer.reflexive_pair(key, shared) {
                    // Whoever sent it may have forged the source; who answers there has not.
                    pair.heard.get_or_insert((now, now));
                    pair.tries = search::TRIES - search::TRIGGERED_TRIES;
                    peer.trigger(key, now);
                    peer.probe(shared, now);
                }
            });
        }
    }

    /// Where this peer's packets go now; `None`: nowhere, there is no such peer or no way to it.
    pub fn route(&self, peer: PeerKey) -> Option<Route> {
        self.peers.get(&peer)?.route
    }

    /// Whose packets come from this address (in canonical form): one that has answered there, or one whose checks come
    /// from there and whom nobody contradicts. It is a guess that QUIC verifies.
    pub fn peer_of(&self, socket: SocketId, from: SocketAddr) -> Option<PeerKey> {
        self.shared.owners.get(&(socket, from)).map(|owner| owner.peer)
    }

    /// Another number each time that [`peer_of`](Self::peer_of) may have changed for some address.
    pub fn owners_generation(&self) -> u64 {
        self.shared.owners_generation
    }

    // ---- What is known ----

    /// What is known of this node's NAT.
    pub fn profile(&self) -> NatProfile {
        self.shared.local.profile()
    }

    /// What a peer has told of its NAT.
    pub fn profile_of(&self, peer: PeerKey) -> Option<NatProfile> {
        self.peers.get(&peer).map(|peer| peer.their_profile)
    }

    /// This node's candidates, best first.
    pub fn candidates(&self) -> &[Candidate] {
        self.shared.local.candidates()
    }

    /// The direct paths to a peer that have worked within the last 30 s, and how they are.
    pub fn paths(&self, peer: PeerKey) -> impl Iterator<Item = Path> {
        let pairs = self.peers.get(&peer).map(|peer| (peer.selected, &peer.pairs));
        pairs.into_iter().flat_map(|(selected, pairs)| {
            pairs.iter().filter_map(move |(key, pair)| {
                let life = pair.life?;
                let is_selected = selected == Some(*key);
                Some(Path { hop: key.hop(), works: life.works, is_selected, rtt: life.rtt() })
            })
        })
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    // ---- Time and output ----

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Time) {
        let now = self.at(now);
        for due in self.deadlines.due(now) {
            match due {
                Deadline::Gather => self.gather(now),
                Deadline::Discovery => self.discovery_timeout(now),
                Deadline::Budget => self.spend(now),
                Deadline::Peer(peer) => self.with(peer, |peer, shared| peer.handle_timeout(shared, now)),
            }
        }
    }

    /// Gives what the budget holds to those who wait for it, in turn.
    fn spend(&mut self, now: Time) {
        self.deadlines.arm(Deadline::Budget, &mut self.budget_armed, Time::NEVER);
        while !self.shared.waiting.is_empty() && self.shared.take_probe(now) {
            let Some(peer) = self.shared.waiting.pop_front() else { break };
            self.with(peer, |peer, shared| peer.probe_granted(shared, now));
        }
        self.arm_budget();
    }

    fn arm_budget(&mut self) {
        let is_set = self.budget_armed < Time::NEVER;
        if !self.shared.waiting.is_empty() && !is_set && self.shared.config.probes.per_second > 0 {
            let one = Duration::from_secs(1)
                / u32::try_from(self.shared.config.probes.per_second).unwrap_or(u32::MAX);
            let at = self.now + one.max(SHORTEST_WAIT);
            self.deadlines.arm(Deadline::Budget, &mut self.budget_armed, at);
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.shared.out.transmits.pop_front()
    }

    /// The next message for a peer, to be sent inside its QUIC connection.
    pub fn poll_message(&mut self) -> Option<(PeerKey, PeerMessage)> {
        self.shared.out.messages.pop_front()
    }

    /// The next socket to open or close.
    pub fn poll_socket(&mut self) -> Option<SocketRequest> {
        self.shared.out.sockets.pop_front()
    }

    /// The next peer whose [`route`](Self::route) is another than before.
    pub fn poll_route(&mut self) -> Option<PeerKey> {
        self.shared.out.routes.pop_front()
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.out.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadlines.next()
    }

    /// The later of `now` and the latest time seen.
    fn at(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    fn with(&mut self, peer: PeerKey, call: impl FnOnce(&mut Peer, &mut Shared)) {
        if let Some(state) = self.peers.get_mut(&peer) {
            let before = state.route;
            call(state, &mut self.shared);
            if state.route != before {
                self.shared.rerouted(peer);
            }
            self.arm(peer);
            self.arm_gather();
            self.arm_budget();
        }
    }

    fn for_all(&mut self, mut call: impl FnMut(&mut Peer, &mut Shared)) {
        let all: Vec<_> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|peer| self.with(peer, &mut call));
    }

    fn arm(&mut self, peer: PeerKey) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let due = state.deadline(self.shared.config.pace);
        self.deadlines.arm(Deadline::Peer(peer), &mut state.armed, due);
    }
}
