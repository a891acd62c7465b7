//! One of our sockets and one of the peer's addresses.

use std::{net::SocketAddr, time::Duration};

use super::Hop;
use crate::{SocketId, Time, path::candidate::Rank, wire::stun::TransactionId};

/// Checks of one pair whose answers are waited for: with the quickest retransmission that is 320 ms, and late answers to
/// older checks are no loss while newer ones are answered.
const IN_FLIGHT: usize = 6;
/// Checks in a row that go unanswered before a path is suspect, and before it is dead.
pub(super) const SUSPECT: u8 = 2;
const DEAD: u8 = 5;
/// Nor is it dead sooner than this after the first of them: a burst of losses is not a death.
const DEAD_AFTER: Duration = Duration::from_millis(450);
/// How soon a check of a path that works is repeated.
const RETRY: (Duration, Duration) = (Duration::from_millis(80), Duration::from_millis(400));
/// How often a path that has died is checked while there is still consent: it may come back.
const RETRY_DEAD: Duration = Duration::from_millis(700);

/// Which socket, and to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PairKey {
    pub(super) socket: SocketId,
    pub(super) remote: SocketAddr,
}

impl PairKey {
    pub(super) fn hop(self) -> Hop {
        Hop::Direct { socket: self.socket, to: self.remote }
    }
}

/// A pair, checked or to be checked.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) rank: Rank,
    /// The peer has named the address; otherwise it was learned from a check.
    pub(super) is_listed: bool,
    /// Checks sent in this round.
    pub(super) tries: u8,
    /// When the next check is due, if nothing else happens.
    pub(super) due: Time,
    /// The peer's own check has come by this pair: ours goes before others.
    pub(super) is_triggered: bool,
    /// When a valid request first and last came by this pair.
    pub(super) heard: Option<(Time, Time)>,
    /// Once a check was answered.
    pub(super) life: Option<Life>,
    flight: [Option<(TransactionId, Time)>; IN_FLIGHT],
    next: usize,
}

impl Pair {
    pub(super) fn new(rank: Rank, is_listed: bool, due: Time) -> Pair {
        Pair {
            rank,
            is_listed,
            tries: 0,
            due,
            is_triggered: false,
            heard: None,
            life: None,
            flight: [None; IN_FLIGHT],
            next: 0,
        }
    }

    /// A check goes out; returns the id of one that is waited for no more.
    pub(super) fn depart(&mut self, id: TransactionId, now: Time) -> Option<TransactionId> {
        let old = self.flight[self.next].replace((id, now));
        self.next = (self.next + 1) % IN_FLIGHT;
        old.map(|(id, _)| id)
    }

    /// Its answer has come; returns when the check went out.
    pub(super) fn arrive(&mut self, id: TransactionId) -> Option<Time> {
        let slot = self.flight.iter_mut().find(|slot| slot.is_some_and(|(other, _)| other == id))?;
        slot.take().map(|(_, sent)| sent)
    }

    pub(super) fn in_flight(&self) -> impl Iterator<Item = TransactionId> {
        self.flight.iter().flatten().map(|(id, _)| *id)
    }

    pub(super) fn works(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.works)
    }
}

/// A pair whose checks have been answered.
///
/// *Working*: answers come. *Suspect*: some in a row did not; data goes here and by another path too. *Dead*: too many
/// did not; data goes elsewhere, checks go on. *Expired*, 30 s after the last answer: forgotten, nothing may be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Not dead.
    pub(super) works: bool,
    /// Since when it works.
    pub(super) since: Time,
    /// The last answer.
    pub(super) answered: Time,
    /// The last check.
    pub(super) checked: Time,
    /// Checks since the last answer that have had their time.
    pub(super) unanswered: u8,
    /// The first check since the last answer.
    pub(super) waiting: Option<Time>,
    srtt: Duration,
    variation: Duration,
}

impl Life {
    pub(super) fn new(rtt: Duration, now: Time) -> Life {
        Life {
            works: true,
            since: now,
            answered: now,
            checked: now,
            unanswered: 0,
            waiting: None,
            srtt: rtt,
            variation: rtt / 2,
        }
    }

    /// A check was answered; true when the path had been dead.
    pub(super) fn handle_answer(&mut self, rtt: Duration, now: Time) -> bool {
        // RFC 6298 §2.
        self.variation = self.variation * 3 / 4 + self.srtt.abs_diff(rtt) / 4;
        self.srtt = self.srtt * 7 / 8 + rtt / 8;
        (self.answered, self.unanswered, self.waiting) = (now, 0, None);
        let is_back = !self.works;
        if is_back {
            (self.works, self.since) = (true, now);
        }
        is_back
    }

    /// A check is about to go out. True when that it was due means that the path has died.
    pub(super) fn handle_check(&mut self, now: Time) -> bool {
        match self.waiting {
            Some(_) => self.unanswered = self.unanswered.saturating_add(1),
            None => self.waiting = Some(now),
        }
        self.checked = now;
        let waited = self.waiting.map_or(Duration::ZERO, |since| now.since(since));
        let dies = self.works && self.unanswered >= DEAD && waited >= DEAD_AFTER;
        self.works &= !dies;
        dies
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.works && self.unanswered >= SUSPECT
    }

    /// How long to wait for an answer before the check is repeated.
    pub(super) fn retry(&self) -> Duration {
        match self.works {
            true => (self.srtt + 4 * self.variation).max(self.srtt * 3 / 2).clamp(RETRY.0, RETRY.1),
            false => RETRY_DEAD,
        }
    }

    pub(super) fn rtt(&self) -> Duration {
        self.srtt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// With a round trip of 40 ms a path that stops answering is suspect within 200 ms and dead within 600 ms of its
    /// first unanswered check.
    #[test]
    fn a_path_dies_quickly_but_not_at_once() {
        let mut life = Life::new(40 * MS, Time::ZERO);
        for _ in 0..50 {
            life.handle_answer(40 * MS, Time::ZERO);
        }
        let (mut now, mut suspect) = (Time::ZERO, None);
        while !life.handle_check(now) {
            if life.is_suspect() {
                suspect.get_or_insert(now);
            }
            now = now + life.retry();
        }
        let since_start = |time: Time| time.since(Time::ZERO);
        assert!(suspect.is_some_and(|at| since_start(at) <= 200 * MS), "{suspect:?}");
        assert!((400 * MS..=600 * MS).contains(&since_start(now)), "{now}");
        assert!(!life.works);
        assert!(life.handle_answer(40 * MS, now));
        assert!(life.works);
    }

    #[test]
    fn only_the_last_checks_are_waited_for() {
        let kind = crate::path::CandidateKind::Host;
        let rank = Rank { is_doubtful: false, transport: Default::default(), kind, is_v4: true };
        let mut pair = Pair::new(rank, true, Time::ZERO);
        let id = |n: u8| TransactionId([n; 12]);
        let forgotten: Vec<_> = (0..10).filter_map(|n| pair.depart(id(n), Time::ZERO)).collect();
        assert_eq!(forgotten, [0, 1, 2, 3].map(id));
        assert_eq!((pair.arrive(id(3)), pair.arrive(id(9))), (None, Some(Time::ZERO)));
        assert_eq!(pair.arrive(id(9)), None, "an answer counts once");
        assert_eq!(pair.in_flight().count(), 5);
    }
}
