//! Paths that have worked: checked often enough to be left in time, and no oftener.

use std::time::Duration;

use super::{
    Event, Hop, Why,
    pair::{Life, Pair, PairKey, SUSPECT},
    shared::Shared,
    state::{Peer, Search},
};
use crate::Time;

/// Paths that are kept ready, the one in use among them. Each costs a packet every few seconds, here and in every NAT.
const KEPT: usize = 3;
/// Data sent lately makes a path busy.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// Between two checks of the paths that work while a round goes on: the peer may not have heard any of them.
const ROUND_INTERVAL: Duration = Duration::from_millis(200);
/// Sending for so long, and for a few round trips, without hearing anything is a reason to check at once. QUIC
/// acknowledges within 25 ms.
const SILENCE: Duration = Duration::from_millis(100);

/// Packets that came one after another before their pauses say when the next one is due.
const REGULAR: u8 = 16;
/// A pause that is longer than this ends what was regular.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Where packets come regularly, two that do not come are a reason to doubt the path; but no time shorter than this is:
/// networks hold packets up for so long.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(40);

/// How regularly packets come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beat {
    last: Time,
    pause: Duration,
    count: u8,
}

impl Beat {
    fn handle_packet(&mut self, now: Time) {
        let pause = now.since(self.last);
        *self = match self.count {
            0 => Beat { last: now, pause: LONGEST_PAUSE, count: 1 },
            _ if pause > LONGEST_PAUSE => Beat { last: now, pause: LONGEST_PAUSE, count: 1 },
            1 => Beat { last: now, pause, count: 2 },
            count => {
                Beat { last: now, pause: self.pause * 7 / 8 + pause / 8, count: count.saturating_add(1) }
            }
        };
    }

    /// When a packet should have come; `None`: they do not come regularly.
    fn due(&self) -> Option<Time> {
        let patience = (self.pause * 5 / 2).clamp(SHORTEST_PATIENCE, SILENCE);
        (self.count >= REGULAR).then(|| self.last + patience)
    }
}

impl Peer {
    /// Checks the paths whose time has come.
    pub(super) fn watch(&mut self, shared: &mut Shared, now: Time) {
        let due: Vec<_> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.life.is_some() && pair.due <= now)
            .map(|(key, _)| *key)
            .collect();
        if due.is_empty() {
            return;
        }
        let kept = self.kept();
        self.doubt_backups(&due, &kept, now);
        let mut lost = None;
        for key in due {
            let Some(pair) = self.pairs.get_mut(&key) else { continue };
            let Some(life) = &mut pair.life else { continue };
            let lasted = now.since(life.since);
            if now.since(life.answered) >= shared.config.consent {
                // RFC 7675 §5.1: no answer, no consent.
                // One that was not kept ready was not asked either: it is let go without a word.
                let did_work = life.works && kept.contains(&key);
                pair.life = None;
                (pair.due, pair.tries) = (Time::NEVER, 0);
                if did_work {
                    self.report_loss(key, shared);
                }
                lost = Some(lasted);
                continue;
            }
            if !kept.contains(&key) && life.works {
                pair.due = life.answered + shared.config.consent;
                continue;
            }
            let dies = life.handle_check(now);
            pair.due = now + life.retry();
            shared.counters.liveness_checks += 1;
            self.check(key, shared, now);
            if dies {
                self.report_loss(key, shared);
                lost = Some(lasted);
            }
        }
        self.reselect(Why::Dead, None, shared, now);
        if let Some(lasted) = lost
            && !self.pairs.values().any(Pair::works)
        {
            self.handle_loss(lasted, shared, now);
        }
    }

    /// The path in use has not answered: those that are kept ready are asked, too, before they are needed. What has ended one
    /// mapping of a NAT has often ended all.
    fn doubt_backups(&mut self, due: &[PairKey], kept: &[PairKey], now: Time) {
        let Some(selected) = self.selected.filter(|selected| due.contains(selected)) else { return };
        let life = self.pairs.get(&selected).and_then(|pair| pair.life);
        if !life.is_some_and(|life| life.works && life.waiting.is_some() && life.unanswered <= SUSPECT) {
            return;
        }
        for key in kept.iter().filter(|key| **key != selected) {
            if let Some(pair) = self.pairs.get_mut(key)
                && pair.life.is_some_and(|life| life.waiting.is_none())
            {
                pair.due = now;
            }
        }
    }

    fn report_loss(&mut self, key: PairKey, shared: &mut Shared) {
        shared.counters.paths_lost += 1;
        shared.event(Event::PathLost { peer: self.id, hop: key.hop() });
    }

    /// The paths that are kept ready: the one in use, then the best ones, those from other sockets first, because a NAT
    /// that forgets one mapping may keep another.
    fn kept(&self) -> Vec<PairKey> {
        let mut kept: Vec<PairKey> = self.selected.into_iter().collect();
        let mut others: Vec<_> = self
            .pairs
            .iter()
            .filter(|(key, pair)| pair.life.is_some() && Some(**key) != self.selected)
            .map(|(key, pair)| (self.score(key, pair), *key))
            .collect();
        while kept.len() < KEPT {
            let is_fresh = |key: &PairKey| kept.iter().all(|other| other.socket != key.socket);
            let best = others
                .iter()
                .enumerate()
                .max_by_key(|(_, (score, key))| (score.works, is_fresh(key), *score, std::cmp::Reverse(*key)))
                .map(|(at, _)| at);
            let Some(best) = best else { break };
            kept.push(others.swap_remove(best).1);
        }
        kept
    }

    /// Sets when each path is checked next; after an answer, a switch, or a change of pace.
    pub(super) fn schedule(&mut self, shared: &mut Shared, now: Time) {
        let (kept, is_busy) = (self.kept(), self.is_busy(now));
        let in_round = matches!(self.search, Search::Running { .. } | Search::Waiting { .. });
        let config = &shared.config;
        let backup = config.backup_interval;
        for (key, pair) in &mut self.pairs {
            // What is doubted has its time already.
            let is_quiet = |life: &Life| life.waiting.is_none() && life.unanswered == 0;
            let Some(life) = pair.life.filter(is_quiet) else { continue };
            let interval = match (self.selected == Some(*key), kept.contains(key)) {
                (_, true) if in_round => ROUND_INTERVAL.min(config.busy_interval),
                (true, _) if is_busy => config.busy_interval,
                (true, _) => config.idle_interval,
                (false, true) => backup,
                (false, false) => {
                    pair.due = life.answered + config.consent;
                    continue;
                }
            };
            pair.due = life.checked + interval;
        }
    }

    fn is_busy(&self, now: Time) -> bool {
        self.sent > Time::ZERO && now.since(self.sent) < BUSY_FOR
    }

    /// A packet went out along the route. True when something is due sooner for it.
    pub(super) fn handle_sent(&mut self, busy_interval: Duration, now: Time) -> bool {
        let was_busy = self.is_busy(now);
        self.sent = now;
        let silent = now.since(*self.silent_since.get_or_insert(now));
        let Some(Hop::Direct { .. }) = self.route.map(|route| route.primary) else { return false };
        let Some(pair) = self.selected.and_then(|key| self.pairs.get_mut(&key)) else { return false };
        let Some(life) = pair.life.filter(|life| life.waiting.is_none()) else { return false };
        let due = if silent > SILENCE + 3 * life.rtt() {
            // Not more often than this either way: the other side may have nothing to say.
            self.silent_since = Some(now);
            now
        } else if !was_busy {
            (life.checked + busy_interval).max(now)
        } else {
            return false;
        };
        let is_sooner = due < pair.due;
        pair.due = pair.due.min(due);
        is_sooner
    }

    /// When to look whether packets that come regularly have ceased: while there is something to send.
    pub(super) fn beat_due(&self) -> Time {
        self.beat.due().filter(|due| *due < self.sent + BUSY_FOR).unwrap_or(Time::NEVER)
    }

    /// Doubts the path in use when packets that came regularly have ceased; once, until they are regular again.
    pub(super) fn listen(&mut self, now: Time) {
        if self.beat_due() > now {
            return;
        }
        self.beat = Beat::default();
        if let Some(pair) = self.selected.and_then(|key| self.pairs.get_mut(&key))
            && let Some(life) = pair.life.as_mut().filter(|life| life.unanswered < SUSPECT)
        {
            life.unanswered = SUSPECT;
            pair.due = now;
        }
    }

    /// A packet of the peer's came by this pair, or by the relay.
    pub(super) fn handle_received(&mut self, key: PairKey, now: Time) {
        self.silent_since = None;
        if self.selected == Some(key) {
            self.beat.handle_packet(now);
        }
        if let Some(heard) = self.pairs.get_mut(&key).and_then(|pair| pair.heard.as_mut()) {
            heard.1 = now;
        }
    }

    /// Nothing that was known of the paths holds any more: all are doubted until they answer.
    pub(super) fn doubt_all(&mut self, shared: &mut Shared, now: Time) {
        for pair in self.pairs.values_mut() {
            if let Some(life) = &mut pair.life {
                (life.unanswered, life.waiting) = (life.unanswered.max(SUSPECT), Some(now));
                pair.due = now;
            }
        }
        self.pause = shared.config.repunch.0;
        self.reselect(Why::NetworkChanged, None, shared, now);
    }
}
