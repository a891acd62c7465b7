//! What came of many attempts: sums that are the same in whatever order they are made.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    attempt::{Attempt, Outcome},
    topology::Relation,
};

/// Attempts that went wrong and are named; the others are counted.
const MOST_NAMED: usize = 100;

/// What should not have come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Surprise {
    /// The peers do not reach each other.
    NotConnected,
    /// No direct path, though there should be one.
    StayedRelayed,
    /// A direct path where there should be none.
    DirectAgainstOdds,
    /// Relayed rightly, but the caller takes the two NATs for a pair that lets peers through.
    Misjudged,
    /// Many times the packets that an attempt should take.
    Storm,
    /// An agent or the world panicked.
    Panicked,
}

/// What came of the attempts of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub direct: u64,
    pub relay: u64,
    pub not_connected: u64,
}

impl Cell {
    pub fn total(&self) -> u64 {
        self.direct + self.relay + self.not_connected
    }

    fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Direct => &mut self.direct,
            Outcome::Relay => &mut self.relay,
            Outcome::NotConnected => &mut self.not_connected,
        } += 1;
    }

    pub fn merge(&mut self, other: &Cell) {
        self.direct += other.direct;
        self.relay += other.relay;
        self.not_connected += other.not_connected;
    }
}

/// How often which value occurred, to within one in a hundred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: BTreeMap<u32, u64>,
    total: u64,
}

impl Histogram {
    pub fn add(&mut self, value: f64) {
        *self.counts.entry((value * 100.0).round() as u32).or_default() += 1;
        self.total += 1;
    }

    fn merge(&mut self, other: &Histogram) {
        other.counts.iter().for_each(|(value, count)| *self.counts.entry(*value).or_default() += count);
        self.total += other.total;
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The least value that this part of all does not exceed; `None` when there is nothing.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let is_it = |(_, count): &(&u32, &u64)| {
            seen += *count;
            seen >= wanted
        };
        self.counts.iter().find(is_it).map(|(value, _)| f64::from(*value) / 100.0)
    }
}

/// Sums over attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub all: Cell,
    /// By relation and the kinds of both, the smaller first.
    pub cells: BTreeMap<(Relation, usize, usize), Cell>,
    /// Round trips until the caller can send.
    pub usable: Histogram,
    /// Round trips until both send directly.
    pub direct: Histogram,
    pub probes_direct: Histogram,
    pub probes_relay: Histogram,
    /// Failed rounds before a path was found.
    pub failed_rounds: BTreeMap<u32, u64>,
    /// What callers that stayed relayed say of the pair.
    pub reasons: BTreeMap<&'static str, u64>,
    pub surprises: BTreeMap<Surprise, u64>,
    /// The first of them, by index.
    pub named: BTreeMap<u64, (u64, Surprise)>,
    pub packets: u64,
}

impl Tally {
    pub fn add(&mut self, index: u64, attempt: &Attempt) {
        self.all.add(attempt.outcome);
        let [a, b] = attempt.kinds;
        self.cells.entry((attempt.relation, a.min(b), a.max(b))).or_default().add(attempt.outcome);
        if let Some(usable) = attempt.usable {
            self.usable.add(attempt.trips(usable));
        }
        if let Some(direct) = attempt.direct {
            self.direct.add(attempt.trips(direct));
            *self.failed_rounds.entry(attempt.failed_rounds).or_default() += 1;
        }
        match attempt.outcome {
            Outcome::Direct => self.probes_direct.add(attempt.probes as f64),
            Outcome::Relay => self.probes_relay.add(attempt.probes as f64),
            Outcome::NotConnected => {}
        }
        if let Some(reason) = attempt.reason {
            *self.reasons.entry(reason).or_default() += 1;
        }
        self.packets += attempt.packets;
        if let Some(surprise) = attempt.surprise() {
            self.surprise(index, attempt.seed, surprise);
        }
    }

    pub fn surprise(&mut self, index: u64, seed: u64, what: Surprise) {
        *self.surprises.entry(what).or_default() += 1;
        self.named.insert(index, (seed, what));
        self.forget_most();
    }

    pub fn merge(&mut self, other: &Tally) {
        self.all.merge(&other.all);
        for (key, cell) in &other.cells {
            self.cells.entry(*key).or_default().merge(cell);
        }
        self.usable.merge(&other.usable);
        self.direct.merge(&other.direct);
        self.probes_direct.merge(&other.probes_direct);
        self.probes_relay.merge(&other.probes_relay);
        merge(&mut self.failed_rounds, &other.failed_rounds);
        merge(&mut self.reasons, &other.reasons);
        merge(&mut self.surprises, &other.surprises);
        self.named.extend(&other.named);
        self.forget_most();
        self.packets += other.packets;
    }

    fn forget_most(&mut self) {
        while self.named.len() > MOST_NAMED {
            self.named.pop_last();
        }
    }
}

fn merge<K: Ord + Copy>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    from.iter().for_each(|(key, count)| *into.entry(*key).or_default() += count);
}
