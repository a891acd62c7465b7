//! What is known of one peer.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use super::{
    Hop, PeerKey, Policy, Role, Route,
    live::Beat,
    pair::{Pair, PairKey},
    shared::{Owner, Shared},
};
use crate::{
    Rate, SocketId, Time,
    path::{Candidate, NatProfile},
    rate::{Bucket, Meter},
    wire::stun::{CheckKey, TransactionId},
};

/// Addresses of one peer that packets are known by: several paths, each with the addresses that a NAT gave it lately.
const MOST_OWNED: usize = 8;
/// Requests that are remembered, so that a copy from elsewhere is known for what it is.
const REMEMBERED: usize = 32;
/// Requests of one peer that are answered: all pairs of a round at once, and then a steady trickle.
const REQUESTS: Rate = Rate { per_second: 200, burst: 400 };

/// Where the search for a direct path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// The peer has told no candidates, or none are wanted.
    Idle,
    /// Both begin when they know that the other does: with its answer, or then. No checks are sent before.
    Waiting { start: Time },
    /// Pairs are checked, at least until `until`.
    Running { until: Time, found: Option<Time> },
    /// A direct path works. Only it and its backups are checked, and what the peer's checks trigger.
    Settled,
    /// Nothing was found; what the peer's checks trigger is checked.
    Resting { until: Time },
}

pub(super) struct Relay {
    pub(super) is_up: bool,
    pub(super) rtt: Option<Duration>,
}

pub(super) struct Peer {
    pub(super) id: PeerKey,
    pub(super) role: Role,
    pub(super) key: CheckKey,
    pub(super) policy: Policy,
    /// What the peer writes into its checks.
    pub(super) tag: u32,
    pub(super) their_tag: Option<u32>,
    pub(super) their_list: Vec<Candidate>,
    pub(super) their_profile: NatProfile,
    pub(super) their_generation: u32,
    /// The generation of our candidates that the peer has last said to know.
    pub(super) seen_by_them: u32,
    /// The generation of our candidates that the peer was told last.
    pub(super) announced: u32,
    pub(super) relay: Relay,
    pub(super) pairs: BTreeMap<PairKey, Pair>,
    pub(super) search: Search,
    /// Until the next round, if this one finds nothing.
    pub(super) pause: Duration,
    pub(super) round: u32,
    /// When the peer was told last to begin one.
    pub(super) started: Option<Time>,
    /// The checks so far have used up the pace until then.
    pub(super) paced: Time,
    /// Waits for the budget.
    pub(super) is_queued: bool,
    pub(super) selected: Option<PairKey>,
    /// `None`: no way at all.
    pub(super) route: Option<Route>,
    pub(super) epoch: u32,
    pub(super) switched: Time,
    pub(super) sent: Time,
    /// Since when something was sent and nothing came.
    pub(super) silent_since: Option<Time>,
    /// Of the packets on the path in use.
    pub(super) beat: Beat,
    owned: VecDeque<(SocketId, SocketAddr)>,
    requests: (Meter, Bucket),
    remembered: VecDeque<(TransactionId, SocketId, SocketAddr)>,
    /// For when a deadline is set.
    pub(super) armed: Time,
}

impl Peer {
    pub(super) fn new(
        id: PeerKey,
        role: Role,
        key: CheckKey,
        policy: Policy,
        tag: u32,
        pause: Duration,
    ) -> Peer {
        Peer {
            id,
            role,
            key,
            policy,
            tag,
            their_tag: None,
            their_list: Vec::new(),
            their_profile: NatProfile::default(),
            their_generation: 0,
            seen_by_them: 0,
            announced: 0,
            relay: Relay { is_up: true, rtt: None },
            pairs: BTreeMap::new(),
            search: Search::Idle,
            pause,
            round: 0,
            started: None,
            paced: Time::ZERO,
            is_queued: false,
            selected: None,
            route: Some(Route { primary: Hop::Relay, also: None, epoch: 0 }),
            epoch: 0,
            switched: Time::ZERO,
            sent: Time::ZERO,
            silent_since: None,
            beat: Beat::default(),
            owned: VecDeque::new(),
            requests: (Meter::new(Some(REQUESTS)), Bucket::default()),
            remembered: VecDeque::new(),
            armed: Time::NEVER,
        }
    }

    /// Everything that is due of this peer's, at the time for which [`deadline`](Self::deadline) asked.
    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, now: Time) {
        self.begin_if_due(shared, now);
        self.listen(now);
        self.watch(shared, now);
        self.probe(shared, now);
        self.end_round_if_due(shared, now);
    }

    pub(super) fn deadline(&self, pace: Duration) -> Time {
        let next_probe = self.next_probe(pace);
        let search = match self.search {
            Search::Waiting { start } => start,
            Search::Resting { until } => until,
            Search::Running { until, .. } => self.round_ends(until),
            Search::Idle | Search::Settled => Time::NEVER,
        };
        let pair = |pair: &Pair| match pair.life {
            Some(_) => pair.due,
            None if pair.due == Time::NEVER || self.their_tag.is_none() || self.is_queued => Time::NEVER,
            None => pair.due.max(next_probe),
        };
        self.pairs.values().map(pair).fold(search.min(self.beat_due()), Time::min)
    }

    /// Packets from this address are the peer's.
    pub(super) fn claim(&mut self, socket: SocketId, from: SocketAddr, is_proved: bool, shared: &mut Shared) {
        let at = (socket, from);
        match shared.owners.get_mut(&at) {
            Some(owner) if owner.peer == self.id => owner.is_proved |= is_proved,
            // A source can be forged; an answer to what was sent there cannot.
            Some(_) if !is_proved => {
                shared.counters.claims_refused += 1;
                return;
            }
            _ => {
                shared.owners_generation += 1;
                shared.owners.insert(at, Owner { peer: self.id, is_proved });
            }
        }
        if self.owned.back() == Some(&at) {
            return;
        }
        self.owned.retain(|other| *other != at);
        self.owned.push_back(at);
        if self.owned.len() > MOST_OWNED {
            let selected = self.selected.map(|pair| (pair.socket, pair.remote));
            let oldest = self.owned.iter().position(|owned| Some(*owned) != selected);
            let oldest = oldest.and_then(|at| self.owned.remove(at));
            self.disown(oldest, shared);
        }
    }

    fn disown(&self, at: Option<(SocketId, SocketAddr)>, shared: &mut Shared) {
        if let Some(at) = at
            && shared.owners.get(&at).is_some_and(|owner| owner.peer == self.id)
        {
            shared.owners_generation += 1;
            shared.owners.remove(&at);
        }
    }

    /// Whether one more request of the peer's may be answered.
    pub(super) fn may_ask(&mut self, now: Time) -> bool {
        let (meter, bucket) = &mut self.requests;
        bucket.take(meter, 1, now)
    }

    /// Whether this request has come before from another address.
    pub(super) fn is_replay(&mut self, id: TransactionId, socket: SocketId, from: SocketAddr) -> bool {
        if let Some((_, at, source)) = self.remembered.iter().find(|(other, ..)| *other == id) {
            return (*at, *source) != (socket, from);
        }
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back((id, socket, from));
        false
    }

    pub(super) fn forget_pair(&mut self, key: PairKey, shared: &mut Shared) -> Option<Pair> {
        let pair = self.pairs.remove(&key)?;
        for id in pair.in_flight() {
            shared.asked.remove(&id);
        }
        Some(pair)
    }

    /// Lets go of everything that others hold for this peer.
    pub(super) fn dissolve(&mut self, shared: &mut Shared) {
        while let Some((key, _)) = self.pairs.first_key_value() {
            self.forget_pair(*key, shared);
        }
        while let Some(at) = self.owned.pop_front() {
            self.disown(Some(at), shared);
        }
        self.selected = None;
    }

    /// A socket is gone.
    pub(super) fn forget_socket(&mut self, socket: SocketId, shared: &mut Shared) {
        let gone: Vec<_> = self.pairs.keys().filter(|key| key.socket == socket).copied().collect();
        for key in gone {
            self.forget_pair(key, shared);
        }
        let (gone, kept): (VecDeque<_>, _) =
            std::mem::take(&mut self.owned).into_iter().partition(|(other, _)| *other == socket);
        self.owned = kept;
        gone.into_iter().for_each(|at| self.disown(Some(at), shared));
    }
}
