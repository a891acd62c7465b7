//! What is remembered of fragments: of a datagram whose first fragment has come, what became of that one; of a datagram
//! whose first has not, the fragments themselves.
//!
//! Nothing here is asked for. Whoever sends fragments costs memory, and may send any number of them from any address, so
//! everything is bounded and nobody can use up what is another's: each source has a **place**, with limits of its own, and
//! the oldest in a place makes room for the newest. Sources are spread over the places by a secret hash; those that share
//! one share its limits. Datagrams whose first fragment was let through and datagrams that wait have limits of their own,
//! too, so that a flood of fragments without a first one never disturbs fragments in order.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    DropReason, Side, Time, Verdict,
    index::Hasher,
    packet::{fragment::Piece, ipv4::Header},
};

/// How long a fragment waits for its first one, and how long that is remembered (RFC 791 §3.2: 15 seconds).
const LIFETIME: Duration = Duration::from_secs(15);
/// Places. Two sources share one with this probability, and then what is below.
const PLACES: usize = 128;
/// Datagrams of a place that are on their way: those with a fragment missing stay until they are the oldest.
const MOST_KNOWN: usize = 64;
/// Datagrams of a place that wait for their first fragment: more than reordering makes.
const MOST_WAITING: usize = 16;
/// Bytes that may wait in a place, among them [`OVERHEAD`] for each fragment: room for the longest datagram in its last
/// order, and as much again. All places full are 16 MiB.
const MOST_BYTES: usize = 128 << 10;
/// What a fragment costs beside its bytes.
const OVERHEAD: usize = 64;
/// What waits is looked through at most this often; it is gone for every lookup at its deadline.
const SWEEP: Duration = Duration::from_millis(500);

/// What the fragments of one datagram have in common (RFC 791 §3.2), and the side that they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    ends: u64,
    source: u64,
    rest: u32,
}

impl Key {
    pub(crate) fn new(from: Side, header: &Header, piece: Piece) -> Key {
        let side = match from {
            Side::Outside => 0,
            Side::Inside(id) => 1 + u64::from(id.0),
        };
        let source = u64::from(header.source.to_bits());
        Key {
            ends: source << 32 | u64::from(header.destination.to_bits()),
            source: side << 32 | source,
            rest: u32::from(header.protocol) << 16 | u32::from(piece.identification),
        }
    }
}

/// What became of the first fragment of a datagram, and so becomes of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It went on, with this header.
    Passed { verdict: Verdict, source: Ipv4Addr, destination: Ipv4Addr, identification: u16 },
    /// It was dropped.
    Dropped(DropReason),
}

struct Known {
    key: Key,
    over: Time,
    fate: Fate,
    seen: Coverage,
}

struct Waiting {
    key: Key,
    over: Time,
    charged: usize,
    fragments: Vec<(Piece, Box<[u8]>)>,
}

/// Both from the oldest to the newest.
#[derive(Default)]
struct Place {
    known: Vec<Known>,
    waiting: Vec<Waiting>,
    charged: usize,
}

impl Place {
    /// Forgets a datagram that waits; returns its fragments.
    fn give_up(&mut self, index: usize) -> Vec<(Piece, Box<[u8]>)> {
        let gone = self.waiting.remove(index);
        self.charged -= gone.charged;
        gone.fragments
    }
}

/// There is no room for another fragment of this datagram.
pub(crate) struct Full;

pub(crate) struct Fragments {
    hasher: Hasher,
    /// None before the first fragment.
    places: Box<[Place]>,
    /// Fragments that wait.
    held: usize,
    /// None of those is over before.
    first_over: Time,
}

impl Fragments {
    pub(crate) fn new(hasher: Hasher) -> Fragments {
        Fragments { hasher, places: Box::default(), held: 0, first_over: Time::NEVER }
    }

    /// Fragments that wait for their first one.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    fn place(&mut self, key: &Key) -> &mut Place {
        if self.places.is_empty() {
            self.places = (0..PLACES).map(|_| Place::default()).collect();
        }
        &mut self.places[self.hasher.hash(key.source, 0) as usize % PLACES]
    }

    /// The first fragment of a datagram has met its fate. Returns those that waited for it, in order; they count as
    /// waiting no more.
    pub(crate) fn settle(
        &mut self,
        key: Key,
        piece: Piece,
        fate: Fate,
        now: Time,
    ) -> Vec<(Piece, Box<[u8]>)> {
        let place = self.place(&key);
        place.known.retain(|known| known.over > now && known.key != key);
        if place.known.len() == MOST_KNOWN {
            place.known.remove(0);
        }
        let mut seen = Coverage::default();
        seen.add(piece);
        place.known.push(Known { key, over: now + LIFETIME, fate, seen });
        let waits = place.waiting.iter().position(|waiting| waiting.key == key && waiting.over > now);
        let mut fragments = waits.map(|index| place.give_up(index)).unwrap_or_default();
        self.held -= fragments.len();
        fragments.sort_by_key(|(piece, _)| piece.offset);
        fragments
    }

    /// What became of the first fragment of a datagram.
    pub(crate) fn fate(&mut self, key: &Key, now: Time) -> Option<Fate> {
        if self.places.is_empty() {
            return None;
        }
        let known = self.place(key).known.iter().find(|known| known.key == *key && known.over > now)?;
        Some(known.fate)
    }

    /// A later fragment has come: the fate of its first one, if that is known. After the last fragment that was missing it
    /// is forgotten, for the identification may be used again.
    pub(crate) fn follow(&mut self, key: &Key, piece: Piece, now: Time) -> Option<Fate> {
        if self.places.is_empty() {
            return None;
        }
        let known = &mut self.place(key).known;
        let index = known.iter().rposition(|known| known.key == *key && known.over > now)?;
        let fate = known[index].fate;
        if known[index].seen.add(piece) {
            known.remove(index);
        }
        Some(fate)
    }

    /// Keeps a fragment until its first one comes. Returns how many others were lost to make room.
    pub(crate) fn hold(&mut self, key: Key, piece: Piece, bytes: &[u8], now: Time) -> Result<usize, Full> {
        let charge = bytes.len() + OVERHEAD;
        let place = self.place(&key);
        let mut lost = 0;
        let mut index = place.waiting.iter().position(|waiting| waiting.key == key && waiting.over > now);
        // A datagram that would not fit alone takes nothing from others.
        let own = index.map_or(0, |index| place.waiting[index].charged);
        if own + charge > MOST_BYTES {
            return Err(Full);
        }
        while place.charged + charge > MOST_BYTES || index.is_none() && place.waiting.len() == MOST_WAITING {
            // The datagram itself is never lost for its own sake; without the others it has room.
            let Some(oldest) = (0..place.waiting.len()).find(|oldest| Some(*oldest) != index) else { break };
            lost += place.give_up(oldest).len();
            index = index.map(|index| index - usize::from(oldest < index));
        }
        let over = now + LIFETIME;
        let index = index.unwrap_or_else(|| {
            place.waiting.push(Waiting { key, over, charged: 0, fragments: Vec::new() });
            place.waiting.len() - 1
        });
        place.waiting[index].fragments.push((piece, bytes.into()));
        place.waiting[index].charged += charge;
        place.charged += charge;
        self.held = self.held + 1 - lost;
        self.first_over = self.first_over.min(over);
        Ok(lost)
    }

    /// Forgets what has waited for too long; returns how many fragments that were.
    pub(crate) fn expire(&mut self, now: Time) -> usize {
        if self.first_over > now {
            return 0;
        }
        let mut lost = 0;
        self.first_over = Time::NEVER;
        for place in &mut self.places {
            while place.waiting.first().is_some_and(|oldest| oldest.over <= now) {
                lost += place.give_up(0).len();
            }
            let next = place.waiting.first().map_or(Time::NEVER, |oldest| oldest.over.max(now + SWEEP));
            self.first_over = self.first_over.min(next);
        }
        self.held -= lost;
        lost
    }

    /// When [`expire`](Fragments::expire) has something to do.
    pub(crate) fn next(&self) -> Option<Time> {
        (self.held > 0).then_some(self.first_over)
    }

    /// Forgets everything; returns how many fragments waited.
    pub(crate) fn clear(&mut self) -> usize {
        self.places = Box::default();
        self.first_over = Time::NEVER;
        std::mem::take(&mut self.held)
    }
}

/// Parts of a datagram that are apart at a time, at the most. With more it is never known to be complete, and forgotten
/// after its time.
const MOST_PARTS: usize = 4;

/// What has been seen of a datagram.
#[derive(Default)]
struct Coverage {
    /// First byte, and the one behind the last; empty ones are not in use.
    parts: [(u32, u32); MOST_PARTS],
    /// Its length, once the last fragment has come.
    total: Option<u32>,
    overflowed: bool,
}

impl Coverage {
    /// Adds a fragment; true when nothing is missing any more.
    fn add(&mut self, piece: Piece) -> bool {
        let (mut start, mut end) = (u32::from(piece.offset), piece.end());
        if !piece.more {
            self.total = Some(end);
        }
        for part in &mut self.parts {
            if part.0 < part.1 && part.0 <= end && start <= part.1 {
                (start, end) = (start.min(part.0), end.max(part.1));
                *part = (0, 0);
            }
        }
        match self.parts.iter_mut().find(|part| part.0 == part.1) {
            Some(free) => *free = (start, end),
            None => self.overflowed = true,
        }
        !self.overflowed && start == 0 && self.total.is_some_and(|total| end >= total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InsideId, packet::ipv4};

    fn piece(offset: u16, len: u16, more: bool) -> Piece {
        Piece { identification: 7, offset, len, more }
    }

    fn key(source: u32, identification: u16) -> Key {
        let mut bytes = [0; 20];
        (bytes[0], bytes[3], bytes[9]) = (0x45, 20, ipv4::UDP);
        bytes[12..16].copy_from_slice(&source.to_be_bytes());
        let header = ipv4::read(&bytes).unwrap();
        Key::new(Side::Inside(InsideId(0)), &header, Piece { identification, ..piece(0, 8, true) })
    }

    fn store() -> Fragments {
        Fragments::new(Hasher::new(3, 5))
    }

    const FATE: Fate = Fate::Dropped(DropReason::Filtered);

    #[test]
    fn a_datagram_is_complete_whatever_the_order() {
        let parts = [piece(0, 80, true), piece(80, 80, true), piece(160, 80, true), piece(240, 9, false)];
        for order in [[0, 1, 2, 3], [0, 3, 2, 1], [0, 2, 1, 3], [0, 3, 1, 2]] {
            let mut seen = Coverage::default();
            let done: Vec<_> = order.iter().map(|i| seen.add(parts[*i])).collect();
            assert_eq!(done, [false, false, false, true], "{order:?}");
        }
        let mut seen = Coverage::default();
        let twice = [0, 0, 3, 3, 1, 1].map(|i| seen.add(parts[i]));
        assert_eq!(twice, [false; 6], "what comes twice does not stand for what is missing");
        let mut apart = Coverage::default();
        assert!((1..9).all(|i| !apart.add(piece(i * 16, 8, i < 8))));
        assert!((0..9).all(|i| !apart.add(piece(i * 16, 16, i < 8))), "too many parts are not counted");
    }

    #[test]
    fn what_waits_is_given_back_in_order() {
        let mut store = store();
        for offset in [160, 80, 240] {
            assert!(store.hold(key(1, 7), piece(offset, 80, true), &[offset as u8; 100], Time::ZERO).is_ok());
        }
        assert_eq!(store.follow(&key(1, 7), piece(80, 80, true), Time::ZERO), None);
        let released = store.settle(key(1, 7), piece(0, 80, true), FATE, Time::ZERO);
        assert_eq!(released.iter().map(|(piece, _)| piece.offset).collect::<Vec<_>>(), [80, 160, 240]);
        assert_eq!((store.held(), store.next()), (0, None));
        assert_eq!(store.follow(&key(1, 7), piece(80, 80, true), Time::ZERO), Some(FATE));
        assert_eq!(store.follow(&key(1, 8), piece(80, 80, true), Time::ZERO), None);
        assert_eq!(store.follow(&key(1, 7), piece(80, 80, true), Time::ZERO + LIFETIME), None);
    }

    #[test]
    fn what_waits_too_long_is_gone() {
        let mut store = store();
        assert!(store.hold(key(1, 7), piece(80, 80, true), &[0; 100], Time::ZERO).is_ok());
        assert_eq!(store.next(), Some(Time::ZERO + LIFETIME));
        assert_eq!(store.expire(Time::ZERO + (LIFETIME - Duration::from_nanos(1))), 0);
        assert!(store.settle(key(1, 7), piece(0, 80, true), FATE, Time::ZERO + LIFETIME).is_empty());
        assert_eq!((store.expire(Time::ZERO + LIFETIME), store.held(), store.next()), (1, 0, None));
    }

    /// However many sources and datagrams: the bounds hold, and what came last is still there.
    #[test]
    fn a_flood_finds_its_bounds() {
        let mut store = store();
        let mut lost = 0;
        for i in 0..200_000u32 {
            match store.hold(key(i % 5000, (i / 5000) as u16), piece(8, 1480, true), &[0; 1500], Time::ZERO) {
                Ok(others) => lost += others,
                Err(Full) => lost += 1,
            }
        }
        assert_eq!(store.held() + lost, 200_000);
        assert!(store.held() <= PLACES * MOST_WAITING);
        let charged: usize = store.places.iter().map(|place| place.charged).sum();
        assert_eq!(charged, store.held() * (1500 + OVERHEAD));
        let last = store.settle(key(4999, 39), piece(0, 8, true), FATE, Time::ZERO);
        assert_eq!(last.len(), 1);
        assert!(store.places.iter().all(|place| place.charged <= MOST_BYTES));
    }

    #[test]
    fn one_datagram_has_no_more_than_its_place() {
        let mut store = store();
        let held =
            (0..10_000).filter(|_| store.hold(key(1, 7), piece(8, 8, true), &[0; 28], Time::ZERO).is_ok());
        assert_eq!(held.count(), MOST_BYTES / (28 + OVERHEAD));
        // Another one takes its room.
        assert!(store.hold(key(1, 8), piece(8, 8, true), &[0; 28], Time::ZERO).is_ok());
        assert_eq!(store.held(), 1);
    }

    #[test]
    fn a_source_forgets_its_oldest_first() {
        let mut store = store();
        for id in 0..=MOST_KNOWN as u16 {
            store.settle(key(1, id), piece(0, 8, true), FATE, Time::ZERO);
        }
        assert_eq!(store.follow(&key(1, 0), piece(8, 8, true), Time::ZERO), None);
        assert!(
            (1..=MOST_KNOWN as u16)
                .all(|id| store.follow(&key(1, id), piece(8, 8, true), Time::ZERO).is_some())
        );
    }
}
