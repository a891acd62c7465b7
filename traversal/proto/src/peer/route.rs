//! Which path packets take.

use super::{
    Event, Hop, Policy, Route, Why,
    live::Beat,
    pair::{Pair, PairKey},
    shared::Shared,
    state::Peer,
};
use crate::{
    Time,
    address::{self, Scope},
    path::score::Score,
};

/// A path that works is not left for one that is merely quicker sooner than this after the last switch.
const DWELL: std::time::Duration = std::time::Duration::from_secs(5);

impl Peer {
    pub(super) fn score(&self, key: &PairKey, pair: &Pair) -> Score {
        let is_local = address::scope(key.remote.ip()) != Scope::Global;
        Score::new(pair.works(), true, is_local, pair.life.map(|life| life.rtt()))
    }

    fn score_of(&self, hop: Hop) -> Option<Score> {
        match hop {
            Hop::Relay => self.relay.is_up.then(|| Score::new(true, false, false, self.relay.rtt)),
            Hop::Direct { socket, to } => {
                let key = PairKey { socket, remote: to };
                let pair = self.pairs.get(&key).filter(|pair| pair.life.is_some())?;
                Some(self.score(&key, pair))
            }
        }
    }

    /// Whether the last checks of a direct path were not answered.
    fn is_asked(&self, hop: Hop) -> bool {
        let Hop::Direct { socket, to } = hop else { return false };
        let life = self.pairs.get(&PairKey { socket, remote: to }).and_then(|pair| pair.life);
        life.is_some_and(|life| life.unanswered > 0)
    }

    /// The best hop of those that may be taken; with equal scores the one that comes first.
    fn best(&self, may_be: impl Fn(Hop) -> bool) -> Option<(Score, Hop)> {
        let lives = self.pairs.iter().filter(|(_, pair)| pair.life.is_some());
        let direct = lives.map(|(key, pair)| (self.score(key, pair), key.hop()));
        let relay = self.score_of(Hop::Relay).map(|score| (score, Hop::Relay));
        direct
            .chain(relay)
            .filter(|(_, hop)| may_be(*hop))
            .reduce(|best, next| if next.0 > best.0 { next } else { best })
    }

    /// Decides anew where packets go: away from what is dead or gone at once, to what is of a better class at once, to
    /// what is merely quicker if it is much quicker and the last switch is a while ago. A peer that has moved is
    /// followed to `found`.
    pub(super) fn reselect(&mut self, why: Why, found: Option<PairKey>, shared: &mut Shared, now: Time) {
        let current = self.route.map(|route| route.primary);
        let current_score = current.and_then(|hop| self.score_of(hop));
        let best = match found.filter(|_| why == Why::Moved).map(PairKey::hop) {
            Some(hop) => self.score_of(hop).map(|score| (score, hop)),
            None => self.best(|_| true),
        };
        let next = match (best, current_score) {
            (Some((score, hop)), Some(current_score)) => {
                let has_dwelt = now.since(self.switched) >= DWELL || score.is_of_better_class(current_score);
                let is_worth = why == Why::Moved || has_dwelt && score.is_worth_leaving(current_score);
                if is_worth { Some(hop) } else { current }
            }
            (best, None) => best.map(|(_, hop)| hop),
            (None, Some(_)) => current,
        };
        let why = match (current, next, current_score) {
            (Some(Hop::Direct { .. }), Some(Hop::Direct { .. }), Some(score))
                if score.works && why == Why::Dead =>
            {
                Why::Better
            }
            (Some(Hop::Relay) | None, Some(Hop::Direct { .. }), _) => Why::FoundDirect,
            _ => why,
        };
        if next != current {
            self.switch(next, why, shared, now);
        }
        self.set_also();
    }

    fn switch(&mut self, to: Option<Hop>, why: Why, shared: &mut Shared, now: Time) {
        let from = self.route.map(|route| route.primary);
        self.epoch = self.epoch.wrapping_add(1);
        self.route = to.map(|primary| Route { primary, also: None, epoch: self.epoch });
        self.selected = match to {
            Some(Hop::Direct { socket, to }) => Some(PairKey { socket, remote: to }),
            Some(Hop::Relay) | None => None,
        };
        (self.switched, self.silent_since, self.beat) = (now, None, Beat::default());
        let rtt = match to {
            Some(Hop::Relay) => self.relay.rtt,
            _ => self.selected.and_then(|key| Some(self.pairs.get(&key)?.life?.rtt())),
        };
        shared.counters.switches += 1;
        shared.event(Event::Switched { peer: self.id, from, to, why, rtt });
        self.schedule(shared, now);
    }

    /// While the path in use is suspect, or dead with no better one known, packets go by the next best as well.
    pub(super) fn set_also(&mut self) {
        let Some(primary) = self.route.map(|route| route.primary) else { return };
        let is_doubtful = match self.selected.and_then(|key| self.pairs.get(&key)?.life) {
            Some(life) => life.is_suspect() || !life.works,
            None => false,
        };
        // Another pair that is being asked too has most likely died with this one, behind the same NAT.
        let other = match is_doubtful {
            true => self.best(|hop| hop != primary && !self.is_asked(hop)),
            false => None,
        };
        let other = other.or_else(|| self.best(|hop| hop != primary).filter(|_| is_doubtful));
        let other =
            other.map(|(_, hop)| hop).filter(|hop| self.policy != Policy::DirectOnly || *hop != Hop::Relay);
        if let Some(route) = &mut self.route {
            route.also = other;
        }
    }
}
