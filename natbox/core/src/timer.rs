//! Deadlines: a hierarchical timing wheel over slot numbers.
//!
//! A busy flow does not touch the wheel. A session's deadline moves on with every packet by a plain store in the session;
//! the wheel knows an older, earlier deadline, and when that one comes the owner looks at the session and puts it back
//! for what is left. (The owner moves the rare deadline that becomes earlier.) So a busy session costs one visit for each idle period, whatever its packet rate.
//!
//! Five levels of 64 places: a tick is 2²⁰ ns (about a millisecond), a level covers 64 times the one below, the whole
//! wheel 13 days; what is further away waits in the top level and is looked at again. Deadlines are rounded up to the
//! next tick, so nothing fires early. Links lie in an array of their own, apart from the records, and only this module
//! reads them.

use crate::{Time, index::NONE};

const TICK_SHIFT: u32 = 20;
const LEVELS: usize = 5;
const PLACES: usize = 64;
const PLACE_BITS: u32 = 6;
const NOT_QUEUED: u16 = u16::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Level and place, or [`NOT_QUEUED`].
    place: u16,
}

/// Deadlines of numbered slots; each slot has one at the most.
pub(crate) struct Wheel {
    links: Vec<Link>,
    heads: [u32; LEVELS * PLACES],
    /// One bit for each place that is not empty.
    occupied: [u64; LEVELS],
    /// Everything before this tick has fired.
    tick: u64,
}

impl Wheel {
    pub(crate) fn new() -> Wheel {
        Wheel { links: Vec::new(), heads: [NONE; LEVELS * PLACES], occupied: [0; LEVELS], tick: 0 }
    }

    /// Sets the deadline of a slot that has none.
    pub(crate) fn insert(&mut self, slot: u32, deadline: Time) {
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { previous: NONE, next: NONE, place: NOT_QUEUED });
        }
        debug_assert_eq!(self.links[index].place, NOT_QUEUED);
        let place = self.place_of((deadline.as_nanos() >> TICK_SHIFT) + 1);
        let next = std::mem::replace(&mut self.heads[place], slot);
        self.links[index] = Link { previous: NONE, next, place: place as u16 };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.occupied[place / PLACES] |= 1 << (place % PLACES);
    }

    /// Forgets the deadline of `slot`, if it has one.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(link) = self.links.get_mut(slot as usize) else { return };
        let Link { previous, next, place } = *link;
        if place == NOT_QUEUED {
            return;
        }
        link.place = NOT_QUEUED;
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous != NONE {
            self.links[previous as usize].next = next;
            return;
        }
        let place = usize::from(place);
        self.heads[place] = next;
        if next == NONE {
            self.occupied[place / PLACES] &= !(1 << (place % PLACES));
        }
    }

    /// Takes one slot whose deadline may have come; `None` when there is none. The owner looks at the real deadline and
    /// inserts the slot again if it lies ahead: a higher level gives its slots up when the first tick that it covers
    /// comes, and so they move down.
    pub(crate) fn pop(&mut self, now: Time) -> Option<u32> {
        let target = now.as_nanos() >> TICK_SHIFT;
        let Some((place, tick)) = self.first().filter(|(_, tick)| *tick <= target) else {
            self.tick = self.tick.max(target);
            return None;
        };
        self.tick = self.tick.max(tick);
        let slot = self.heads[place];
        self.remove(slot);
        Some(slot)
    }

    /// When the next slot may be due; never later than its deadline's tick.
    pub(crate) fn next(&self) -> Option<Time> {
        self.first().map(|(_, tick)| Time::from_nanos(tick << TICK_SHIFT))
    }

    /// The first occupied place and the tick at which it is due.
    fn first(&self) -> Option<(usize, u64)> {
        let mut earliest: Option<(usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = PLACE_BITS * level as u32;
            let here = (self.tick >> shift) as u32 & (PLACES as u32 - 1);
            let distance = self.occupied[level].rotate_right(here).trailing_zeros();
            let place = level * PLACES + ((here + distance) as usize & (PLACES - 1));
            let due = (((self.tick >> shift) + u64::from(distance)) << shift).max(self.tick);
            if earliest.is_none_or(|(_, tick)| due < tick) {
                earliest = Some((place, due));
            }
        }
        earliest
    }

    fn place_of(&self, tick: u64) -> usize {
        let tick = tick.max(self.tick);
        let differing = 63 - ((tick ^ self.tick) | 1).leading_zeros();
        let level = (differing / PLACE_BITS) as usize;
        if level < LEVELS {
            return level * PLACES + (tick >> (PLACE_BITS * level as u32)) as usize % PLACES;
        }
        // Beyond the wheel: the place of the top level that comes last.
        let top = (self.tick >> (PLACE_BITS * (LEVELS as u32 - 1))) as usize;
        (LEVELS - 1) * PLACES + (top + PLACES - 1) % PLACES
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    /// Runs the wheel as an owner does, and returns what truly fired until `now`.
    fn drain(wheel: &mut Wheel, deadlines: &BTreeMap<u32, Time>, now: Time) -> Vec<u32> {
        let mut fired = Vec::new();
        while let Some(slot) = wheel.pop(now) {
            match deadlines[&slot] {
                deadline if deadline <= now => fired.push(slot),
                deadline => wheel.insert(slot, deadline),
            }
        }
        fired
    }

    proptest! {
        /// Nothing fires early, nothing later than a tick, and `next` never promises too much.
        #[test]
        fn fires_on_time(
            gaps in proptest::collection::vec(0u64..40_000_000_000_000, 1..40),
            steps in proptest::collection::vec(1u64..2_000_000_000_000, 1..60),
        ) {
            let mut wheel = Wheel::new();
            let mut deadlines = BTreeMap::new();
            for (slot, gap) in gaps.iter().enumerate() {
                deadlines.insert(slot as u32, Time::from_nanos(*gap));
                wheel.insert(slot as u32, Time::from_nanos(*gap));
            }
            let mut now = Time::ZERO;
            for step in steps {
                now = now + Duration::from_nanos(step);
                for slot in drain(&mut wheel, &deadlines, now) {
                    deadlines.remove(&slot);
                }
                let tick = Duration::from_nanos(1 << TICK_SHIFT);
                prop_assert!(deadlines.values().all(|deadline| *deadline + tick > now));
                match deadlines.values().min() {
                    Some(first) => prop_assert!(wheel.next().unwrap() <= *first + tick),
                    None => prop_assert_eq!(wheel.next(), None),
                }
            }
        }
    }

    #[test]
    fn removed_slots_do_not_fire() {
        let mut wheel = Wheel::new();
        for slot in 0..10 {
            wheel.insert(slot, Time::from_nanos(5));
        }
        for slot in [0, 9, 4, 4] {
            wheel.remove(slot);
        }
        wheel.remove(77);
        let mut fired: Vec<_> = std::iter::from_fn(|| wheel.pop(Time::from_nanos(1 << 30))).collect();
        fired.sort_unstable();
        assert_eq!(fired, [1, 2, 3, 5, 6, 7, 8]);
        assert_eq!(wheel.next(), None);
    }

    /// Two thousand seconds of visits to one slot that is always refreshed: few visits, whatever the traffic.
    #[test]
    fn far_deadlines_cost_few_visits() {
        let mut wheel = Wheel::new();
        let deadline = Time::from_nanos(432_000_000_000_000);
        wheel.insert(0, deadline);
        let mut visits = 0;
        for second in 1..=432_001u64 {
            while wheel.pop(Time::from_nanos(second * 1_000_000_000)).is_some() {
                visits += 1;
                if second <= 432_000 {
                    wheel.insert(0, deadline);
                }
            }
        }
        assert!((1..=6).contains(&visits), "{visits}");
    }
}
