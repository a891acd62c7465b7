//! Looking for a direct path: candidates exchanged, pairs made, rounds of checks.

use std::time::Duration;

use super::{
    Event, PeerKey, Policy, Role,
    pair::{Pair, PairKey},
    shared::Shared,
    state::{Peer, Search},
};
use crate::{
    SocketId, Time,
    path::{Candidate, CandidateKind, Transport, candidate::Rank, safety},
    wire::{
        peer::{Candidates, PeerMessage},
        stun::{Check, TransactionId},
    },
};
use rand_core::Rng;

/// Pairs of one peer: three sockets with all of its candidates. A round checks each a few times, so this also bounds what
/// a round costs.
const MOST_PAIRS: usize = 96;
/// Pairs of those that were learned from checks: a NAT shows another address for each of ours, and a peer that forges
/// sources shows as many as it likes.
const MOST_REFLEXIVE: usize = 16;
/// Checks of one pair in one round; with the pauses between them a little over three seconds.
pub(super) const TRIES: u8 = 7;
/// Checks of a pair after the peer's own check has come by it.
pub(super) const TRIGGERED_TRIES: u8 = 4;
/// What these come to: a request is 64 bytes long unless it nominates.
pub(super) const TRIGGERED_BYTES: usize = TRIGGERED_TRIES as usize * 64;
/// Between the first two checks of a pair: half a round trip or so; then twice as long each time.
const FIRST_RETRY: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(250));
const LAST_RETRY: Duration = Duration::from_millis(800);
/// Checks that need not wait for each other's pace: the peer's addresses are few, and so the answer to its own first check
/// does not wait for ours.
const AT_ONCE: u32 = 3;
/// A round is not given up sooner: candidates may still be told.
const SHORTEST_ROUND: Duration = Duration::from_secs(2);
/// How long a round goes on once a path is found: a better one may answer, and the peer may not have heard yet.
const AFTER_FOUND: Duration = Duration::from_secs(1);
/// A round trip is taken to be so long where the relay's is not known.
const UNKNOWN_TRIP: Duration = Duration::from_millis(100);
/// Routers that see an opener: the gateway, which makes a mapping for it, and the one behind it, which drops it.
const OPENER_HOPS: u8 = 2;
/// Openers at a time: a peer has an address or two in front of its NATs.
const MOST_OPENERS: usize = 8;
/// An answer of the peer's may take so long beyond the round trip.
const ANSWER_SLACK: Duration = Duration::from_millis(200);
/// A Start that comes sooner after one of ours is the answer to it.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);
/// What was found and lasted so long was worth the search: the next one begins without a longer pause.
const LASTING: Duration = Duration::from_secs(10);

impl Peer {
    // ---- Candidates ----

    /// Tells the peer our candidates, if it has not been told them.
    pub(super) fn announce(&mut self, shared: &mut Shared) {
        if self.announced != shared.local.generation() {
            self.tell(shared);
        }
    }

    fn tell(&mut self, shared: &mut Shared) {
        self.announced = shared.local.generation();
        let list = match self.policy {
            Policy::RelayOnly => Default::default(),
            Policy::PreferDirect | Policy::DirectOnly => shared.local.candidates().clone(),
        };
        let candidates = Candidates {
            generation: self.announced,
            seen: self.their_generation,
            tag: self.tag,
            profile: shared.local.profile(),
            list,
        };
        shared.message(self.id, PeerMessage::Candidates(candidates));
    }

    pub(super) fn handle_message(&mut self, message: PeerMessage, shared: &mut Shared, now: Time) {
        match message {
            PeerMessage::Candidates(candidates) => self.learn(candidates, shared, now),
            PeerMessage::Start { .. } if self.policy == Policy::RelayOnly => shared.counters.not_wanted += 1,
            PeerMessage::Start { .. } => match self.search {
                Search::Idle => shared.counters.messages_ignored += 1,
                Search::Running { .. } => {}
                Search::Waiting { .. } | Search::Settled | Search::Resting { .. } => {
                    self.open_all(shared, now);
                    self.begin(shared, now);
                    // Its sender waits for it, unless this is an answer itself.
                    if self.started.is_none_or(|at| now.since(at) >= LONGEST_ANSWER) {
                        self.say_start(shared, now);
                    }
                }
            },
        }
    }

    fn say_start(&mut self, shared: &mut Shared, now: Time) {
        self.started = Some(now);
        shared.message(self.id, PeerMessage::Start { round: self.round.wrapping_add(1) });
    }

    fn learn(&mut self, told: Candidates, shared: &mut Shared, now: Time) {
        if told.generation < self.their_generation {
            shared.counters.messages_ignored += 1;
            return;
        }
        let list: Vec<_> = told.list.iter().map(|candidate| candidate.canonical()).collect();
        let is_known = |new: &Candidate| self.their_list.iter().any(|old| old.address == new.address);
        let is_new = self.their_tag != Some(told.tag) || !list.iter().all(is_known);
        (self.their_tag, self.their_generation, self.their_profile) =
            (Some(told.tag), told.generation, told.profile);
        (self.their_list, self.seen_by_them) = (list, told.seen);
        if self.announced != told.seen {
            self.tell(shared);
        }
        if is_new {
            let (usable, refused) = safety::sift(&self.their_list, &shared.local.evidence(&shared.config));
            shared.counters.candidates_refused += refused.len() as u64;
            let (told, usable) = (self.their_list.len(), usable.len());
            shared.event(Event::Candidates { peer: self.id, told, usable });
            self.pause = shared.config.repunch.0;
        }
        if self.policy == Policy::RelayOnly {
            return;
        }
        self.make_pairs(shared, now);
        let is_answer = self.has_answered(shared);
        match self.search {
            Search::Running { .. } if is_answer => {
                let untried = self.pairs.values_mut().filter(|pair| pair.is_listed && pair.tries == 0);
                untried.for_each(|pair| pair.due = pair.due.min(now));
            }
            Search::Running { .. } => {}
            Search::Idle | Search::Waiting { .. } if is_answer => self.begin(shared, now),
            _ if is_new && is_answer => self.begin(shared, now),
            Search::Waiting { .. } => {}
            _ if is_new => self.wait(now),
            Search::Idle | Search::Settled | Search::Resting { .. } => {}
        }
    }

    /// Whether the peer knows our candidates as they are: its own openers to them are on their way, then.
    fn has_answered(&self, shared: &Shared) -> bool {
        self.seen_by_them == shared.local.generation()
    }

    /// Makes a pair of each of our sockets with each candidate that may be probed, and lets go of those whose candidate
    /// is no longer named, unless they work.
    pub(super) fn make_pairs(&mut self, shared: &mut Shared, now: Time) {
        let evidence = shared.local.evidence(&shared.config);
        let (mut usable, _) = safety::sift(&self.their_list, &evidence);
        let rank = |candidate: &Candidate| {
            candidate.rank(safety::is_doubtful(candidate, &self.their_list, &evidence))
        };
        usable.sort_by_cached_key(rank);
        let ranks: Vec<Rank> = usable.iter().map(rank).collect();
        let is_usable = |key: &PairKey| usable.iter().any(|candidate| candidate.address == key.remote);
        let gone: Vec<_> = self
            .pairs
            .iter()
            .filter(|(key, pair)| pair.is_listed && pair.life.is_none() && !is_usable(key))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.forget_pair(key, shared);
        }
        let is_running = matches!(self.search, Search::Running { .. });
        let answer = if self.has_answered(shared) { now } else { self.answer_by(now) };
        let mut closed = Vec::new();
        for (candidate, rank) in usable.iter().zip(ranks) {
            for socket in shared.local.path_sockets(candidate.address.is_ipv4()) {
                let key = PairKey { socket, remote: candidate.address };
                if let Some(pair) = self.pairs.get_mut(&key) {
                    (pair.is_listed, pair.rank) = (true, rank);
                } else if self.pairs.len() < MOST_PAIRS {
                    let is_behind_nat = candidate.kind == CandidateKind::ServerReflexive;
                    let first = if is_behind_nat { answer } else { now };
                    let due = if is_running { first } else { Time::NEVER };
                    self.pairs.insert(key, Pair::new(rank, true, due));
                    if due > now {
                        closed.push(key);
                    }
                } else {
                    shared.counters.pairs_dropped += 1;
                }
            }
        }
        self.open(closed, shared, now);
    }

    /// Opens our gateway for all that has not proved itself.
    fn open_all(&mut self, shared: &mut Shared, now: Time) {
        let unproved = self.pairs.iter().filter(|(_, pair)| pair.is_listed && pair.life.is_none());
        self.open(unproved.map(|(key, _)| *key).collect(), shared, now);
    }

    /// Opens our gateway for what will come by these pairs, with a packet that no other gateway sees. A gateway that takes
    /// stray packets itself gives the tuple of the first packet away: ours must have left before the peer's own reaches it.
    /// The peer does the same before it answers our candidates, and checks begin with that answer.
    fn open(&mut self, keys: Vec<PairKey>, shared: &mut Shared, now: Time) {
        let Some(tag) = self.their_tag.filter(|_| shared.local.profile().translated != Some(false)) else {
            return;
        };
        let is_ours = |ip| shared.local.candidates().iter().any(|ours| ours.address.ip() == ip);
        let is_behind_another = |key: &PairKey| {
            let kind = self.pairs.get(key).map(|pair| pair.rank.kind);
            key.remote.is_ipv4() && kind == Some(CandidateKind::ServerReflexive) && !is_ours(key.remote.ip())
        };
        let mut closed: Vec<_> = keys.into_iter().filter(is_behind_another).collect();
        shared.counters.openers_withheld += closed.len().saturating_sub(MOST_OPENERS) as u64;
        closed.truncate(MOST_OPENERS);
        for key in closed {
            if !shared.waiting.is_empty() || !shared.take_probe(now) {
                shared.counters.openers_withheld += 1;
                continue;
            }
            self.paced = self.paced.max(now) + shared.config.pace;
            shared.counters.openers += 1;
            let id = TransactionId::tagged(tag, shared.rng.next_u64());
            let bytes = Check::Request { id, nominate: false }.encode(&self.key);
            shared.transmit_near(key.socket, key.remote, bytes, OPENER_HOPS);
        }
    }

    /// The pair by which something authentic came, made if it is new and there is room.
    pub(super) fn reflexive_pair(&mut self, key: PairKey, shared: &mut Shared) -> Option<&mut Pair> {
        if !self.pairs.contains_key(&key) {
            let is_spare = |pair: &Pair| !pair.is_listed && pair.life.is_none();
            if self.pairs.values().filter(|pair| !pair.is_listed).count() >= MOST_REFLEXIVE {
                let spare = self.pairs.iter().filter(|(_, pair)| is_spare(pair));
                let oldest =
                    spare.min_by_key(|(_, pair)| pair.heard.map(|(_, last)| last)).map(|(key, _)| *key);
                shared.counters.pairs_dropped += 1;
                self.forget_pair(oldest?, shared)?;
            }
            let kind = CandidateKind::PeerReflexive;
            let is_v4 = key.remote.is_ipv4();
            let rank = Rank { is_doubtful: false, transport: Transport::Udp, kind, is_v4 };
            self.pairs.insert(key, Pair::new(rank, false, Time::NEVER));
        }
        self.pairs.get_mut(&key)
    }

    /// Checks a pair as soon as possible, whatever stage the search is in.
    pub(super) fn trigger(&mut self, key: PairKey, now: Time) {
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.tries = pair.tries.min(TRIES - TRIGGERED_TRIES);
            (pair.due, pair.is_triggered) = (now, true);
        }
    }

    // ---- Rounds ----

    /// When the peer must have answered what is told it now.
    fn answer_by(&self, now: Time) -> Time {
        now + self.relay.rtt.unwrap_or(UNKNOWN_TRIP) + ANSWER_SLACK
    }

    /// Begins when the peer, which is told at the same time, answers.
    fn wait(&mut self, now: Time) {
        self.search = Search::Waiting { start: self.answer_by(now) };
    }

    /// Begins another round, and tells the peer to.
    pub(super) fn search_again(&mut self, shared: &mut Shared, now: Time) {
        if self.policy == Policy::RelayOnly || self.their_tag.is_none() {
            return;
        }
        self.open_all(shared, now);
        self.say_start(shared, now);
        self.wait(now);
    }

    /// The only direct path is gone.
    pub(super) fn handle_loss(&mut self, lasted: Duration, shared: &mut Shared, now: Time) {
        if lasted >= LASTING {
            self.pause = shared.config.repunch.0;
        }
        shared.local.refresh(now);
        if matches!(self.search, Search::Settled | Search::Running { .. }) {
            self.search_again(shared, now);
        }
    }

    pub(super) fn begin_if_due(&mut self, shared: &mut Shared, now: Time) {
        match self.search {
            Search::Waiting { start } if start <= now => self.begin(shared, now),
            Search::Resting { until } if until <= now => self.search_again(shared, now),
            _ => {}
        }
    }

    fn begin(&mut self, shared: &mut Shared, now: Time) {
        self.round = self.round.wrapping_add(1);
        shared.counters.rounds += 1;
        let found = self.pairs.values().any(Pair::works).then_some(now);
        self.search = Search::Running { until: now + SHORTEST_ROUND, found };
        self.make_pairs(shared, now);
        for pair in self.pairs.values_mut().filter(|pair| !pair.works()) {
            (pair.tries, pair.due) = (0, now);
        }
    }

    /// A check was answered.
    pub(super) fn handle_found(&mut self, now: Time) {
        match &mut self.search {
            Search::Running { found, .. } => {
                found.get_or_insert(now);
            }
            Search::Idle | Search::Settled => {}
            Search::Waiting { .. } | Search::Resting { .. } => self.search = Search::Settled,
        }
    }

    /// When a round is to be looked at again; a pair's last check has its time until then.
    pub(super) fn round_ends(&self, until: Time) -> Time {
        match self.search {
            Search::Running { found: Some(found), .. } => found + AFTER_FOUND,
            _ if self.unproved().any(|pair| pair.due < Time::NEVER) => Time::NEVER,
            _ => until,
        }
    }

    fn unproved(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.values().filter(|pair| pair.life.is_none())
    }

    pub(super) fn end_round_if_due(&mut self, shared: &mut Shared, now: Time) {
        let Search::Running { until, .. } = self.search else { return };
        if self.round_ends(until) > now {
            return;
        }
        for pair in self.pairs.values_mut().filter(|pair| pair.life.is_none() && !pair.is_triggered) {
            pair.due = Time::NEVER;
        }
        if self.pairs.values().any(Pair::works) {
            self.search = Search::Settled;
            return;
        }
        // The initiator's turn comes first; the acceptor's only if the initiator's never does.
        let turn = if self.role == Role::Initiator { 1 } else { 2 };
        let retry_in = shared.jittered(self.pause) * turn;
        self.pause = (self.pause * 2).min(shared.config.repunch.1);
        self.search = Search::Resting { until: now + retry_in };
        let (ours, theirs) = (shared.local.profile(), self.their_profile);
        let same_nat = self.is_behind_our_nat(shared);
        shared.event(Event::GaveUp { peer: self.id, ours, theirs, same_nat, retry_in });
    }

    /// Whether both are seen at one address from outside.
    fn is_behind_our_nat(&self, shared: &Shared) -> bool {
        let is_seen = |candidate: &&Candidate| candidate.kind == CandidateKind::ServerReflexive;
        let mut theirs = self.their_list.iter().filter(is_seen);
        theirs.any(|theirs| {
            let mut ours = shared.local.candidates().iter().filter(is_seen);
            ours.any(|ours| ours.address.ip() == theirs.address.ip())
        })
    }

    // ---- Checks of what has proved nothing ----

    /// Sends what is due, at this peer's pace and within the budget of all.
    pub(super) fn probe(&mut self, shared: &mut Shared, now: Time) {
        while !self.is_queued
            && self.next_probe(shared.config.pace) <= now
            && let Some(key) = self.next_pair(now)
        {
            if !shared.waiting.is_empty() || !shared.take_probe(now) {
                shared.counters.probes_deferred += 1;
                shared.waiting.push_back(self.id);
                self.is_queued = true;
                return;
            }
            self.probe_pair(key, shared, now);
        }
    }

    /// The budget has one probe for this peer, which has waited for it.
    pub(super) fn probe_granted(&mut self, shared: &mut Shared, now: Time) {
        self.is_queued = false;
        if let Some(key) = self.next_pair(now) {
            self.probe_pair(key, shared, now);
        }
        self.probe(shared, now);
    }

    /// The pair to check first of those that are due: what the peer's own checks have triggered, then what was tried
    /// least.
    fn next_pair(&mut self, now: Time) -> Option<PairKey> {
        self.their_tag?;
        loop {
            let due = self.pairs.iter().filter(|(_, pair)| pair.life.is_none() && pair.due <= now);
            let next = due.min_by_key(|(_, pair)| (!pair.is_triggered, pair.tries, pair.rank, pair.due));
            let key = next.map(|(key, _)| *key)?;
            if !self.has_had_all_tries(key) {
                return Some(key);
            }
        }
    }

    fn probe_pair(&mut self, key: PairKey, shared: &mut Shared, now: Time) {
        let retry = self.relay.rtt.unwrap_or(UNKNOWN_TRIP).clamp(FIRST_RETRY.0, FIRST_RETRY.1);
        if let Some(pair) = self.pairs.get_mut(&key) {
            pair.due = now + (retry * (1 << pair.tries.min(6))).min(LAST_RETRY);
            pair.tries += 1;
            pair.is_triggered = false;
        }
        self.paced = self.paced.max(now) + shared.config.pace;
        shared.counters.probes += 1;
        self.check(key, shared, now);
    }

    /// No new check before.
    pub(super) fn next_probe(&self, pace: Duration) -> Time {
        let ahead = pace * (AT_ONCE - 1);
        Time::ZERO + self.paced.since(Time::ZERO + ahead)
    }

    fn has_had_all_tries(&mut self, key: PairKey) -> bool {
        let Some(pair) = self.pairs.get_mut(&key).filter(|pair| pair.tries >= TRIES) else { return false };
        (pair.due, pair.is_triggered) = (Time::NEVER, false);
        true
    }

    /// Sends one check.
    pub(super) fn check(&mut self, key: PairKey, shared: &mut Shared, now: Time) {
        let (Some(tag), Some(pair)) = (self.their_tag, self.pairs.get_mut(&key)) else { return };
        let id = TransactionId::tagged(tag, shared.rng.next_u64());
        let nominate = self.selected == Some(key);
        if let Some(forgotten) = pair.depart(id, now) {
            shared.asked.remove(&forgotten);
        }
        shared.asked.insert(id, (self.id, key));
        let bytes = Check::Request { id, nominate }.encode(&self.key);
        shared.transmit(key.socket, key.remote, bytes);
    }
}

/// One of our sockets and an address to look at: a packet of no known peer came from there.
pub(super) fn may_be_of(peer: &Peer, socket: SocketId, from: std::net::SocketAddr) -> Option<PeerKey> {
    let is_same_host = |key: &PairKey| key.remote.ip() == from.ip();
    let has_worked = peer.pairs.iter().any(|(key, pair)| pair.life.is_some() && is_same_host(key));
    let is_new = !peer.pairs.contains_key(&PairKey { socket, remote: from });
    (has_worked && is_new).then_some(peer.id)
}
