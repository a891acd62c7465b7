//! Deadlines: a hierarchical timing wheel over slot numbers.
//!
//! A busy flow does not touch the wheel. A session's deadline moves on with every packet by a plain store in the session;
//! the wheel knows an older, earlier deadline, and when that one comes the owner looks at the session and puts it back
//! for what is left. (The owner moves the rare deadline that becomes earlier.) So a busy session costs one visit for each idle period, whatever its packet rate.
//!
//! Five levels of 64 places: a tick is 2²⁰ ns (about a millisecond), a level covers 64 times the one below, the whole
//! wheel 13 days; what is further away waits in the top level and is looked at again. Deadlines are rounded up to the
//! next tick, so nothing fires early. Links lie where their owner keeps them ([`Links`]), and only this module reads them.
//! A level takes memory from its first deadline on.

use crate::{Time, index::NONE, slab::Sparse};

const TICK_SHIFT: u32 = 20;
const LEVELS: usize = 5;
const PLACES: usize = 64;
const PLACE_BITS: u32 = 6;
/// In `previous`: the slot is the first of the place that the other bits number. Slot numbers do not reach it.
const FIRST_OF: u32 = 1 << 31;

/// A slot's neighbours in its place.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// A slot, [`FIRST_OF`] a place, or [`NONE`] for a slot that has no deadline.
    previous: u32,
    next: u32,
}

impl Link {
    /// No deadline.
    pub(crate) const IDLE: Link = Link { previous: NONE, next: NONE };
}

/// Where the links of numbered slots are kept.
pub(crate) trait Links {
    /// The link of `slot`; [`Link::IDLE`] when it never had a deadline.
    fn link(&self, slot: u32) -> Link;
    /// The same, to be changed.
    fn link_mut(&mut self, slot: u32) -> &mut Link;
}

/// Links of their own, for slots of which few ever have a deadline.
impl Links for Sparse<Link> {
    fn link(&self, slot: u32) -> Link {
        self.get(slot)
    }

    fn link_mut(&mut self, slot: u32) -> &mut Link {
        self.get_mut(slot)
    }
}

/// Deadlines of numbered slots; each slot has one at the most.
pub(crate) struct Wheel {
    /// The first slot of each place.
    levels: [Option<Box<[u32; PLACES]>>; LEVELS],
    /// One bit for each place that is not empty.
    occupied: [u64; LEVELS],
    /// Everything before this tick has fired.
    tick: u64,
    /// Nothing is due before this tick.
    quiet: u64,
}

impl Wheel {
    pub(crate) fn new() -> Wheel {
        Wheel { levels: [const { None }; LEVELS], occupied: [0; LEVELS], tick: 0, quiet: u64::MAX }
    }

    /// Sets the deadline of a slot that has none.
    pub(crate) fn insert(&mut self, links: &mut impl Links, slot: u32, deadline: Time) {
        debug_assert_eq!(links.link(slot).previous, NONE);
        let (place, due) = self.place_of((deadline.as_nanos() >> TICK_SHIFT) + 1);
        self.quiet = self.quiet.min(due);
        let heads = self.levels[place / PLACES].get_or_insert_with(|| Box::new([NONE; PLACES]));
        let next = std::mem::replace(&mut heads[place % PLACES], slot);
        *links.link_mut(slot) = Link { previous: FIRST_OF | place as u32, next };
        if next != NONE {
            links.link_mut(next).previous = slot;
        }
        self.occupied[place / PLACES] |= 1 << (place % PLACES);
    }

    /// Forgets the deadline of `slot`, if it has one.
    pub(crate) fn remove(&mut self, links: &mut impl Links, slot: u32) {
        let Link { previous, next } = links.link(slot);
        if previous == NONE {
            return;
        }
        *links.link_mut(slot) = Link::IDLE;
        if next != NONE {
            links.link_mut(next).previous = previous;
        }
        if previous & FIRST_OF == 0 {
            links.link_mut(previous).next = next;
            return;
        }
        let place = (previous & !FIRST_OF) as usize;
        if let Some(heads) = &mut self.levels[place / PLACES] {
            heads[place % PLACES] = next;
        }
        if next == NONE {
            self.occupied[place / PLACES] &= !(1 << (place % PLACES));
        }
    }

    /// Takes one slot whose deadline may have come; `None` when there is none. The owner looks at the real deadline and
    /// inserts the slot again if it lies ahead: a higher level gives its slots up when the first tick that it covers
    /// comes, and so they move down.
    pub(crate) fn pop(&mut self, links: &mut impl Links, now: Time) -> Option<u32> {
        let target = now.as_nanos() >> TICK_SHIFT;
        if self.quiet > target {
            self.tick = self.tick.max(target);
            return None;
        }
        let first = self.first();
        self.quiet = first.map_or(u64::MAX, |(_, tick)| tick);
        let Some((place, tick)) = first.filter(|(_, tick)| *tick <= target) else {
            self.tick = self.tick.max(target);
            return None;
        };
        self.tick = self.tick.max(tick);
        let slot = self.levels[place / PLACES].as_ref()?[place % PLACES];
        self.remove(links, slot);
        Some(slot)
    }

    /// When the next slot may be due; never later than its deadline's tick. `None` when that lies behind the end of time.
    pub(crate) fn next(&self) -> Option<Time> {
        self.first().and_then(|(_, tick)| tick.checked_mul(1 << TICK_SHIFT)).map(Time::from_nanos)
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
            let due = self.due(place);
            if earliest.is_none_or(|(_, tick)| due < tick) {
                earliest = Some((place, due));
            }
        }
        earliest
    }

    /// The tick at which what is put into a place is due.
    fn due(&self, place: usize) -> u64 {
        let level = place / PLACES;
        let shift = PLACE_BITS * level as u32;
        let distance = (place as u64).wrapping_sub(self.tick >> shift) % PLACES as u64;
        (((self.tick >> shift) + distance) << shift).max(self.tick)
    }

    /// Where what is due at this tick is put, and when that place is due.
    #[inline(always)]
    fn place_of(&self, tick: u64) -> (usize, u64) {
        let tick = tick.max(self.tick);
        let differing = 63 - ((tick ^ self.tick) | 1).leading_zeros();
        let level = differing / PLACE_BITS;
        if (level as usize) < LEVELS {
            let ticks = tick >> (PLACE_BITS * level);
            let place = level as usize * PLACES + ticks as usize % PLACES;
            return (place, (ticks << (PLACE_BITS * level)).max(self.tick));
        }
        // Beyond the wheel: the place of the top level that comes last.
        let top = (self.tick >> (PLACE_BITS * (LEVELS as u32 - 1))) as usize;
        let place = (LEVELS - 1) * PLACES + (top + PLACES - 1) % PLACES;
        (place, self.due(place))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    /// Runs the wheel as an owner does, and returns what truly fired until `now`.
    fn drain(
        (wheel, links): (&mut Wheel, &mut Sparse<Link>),
        deadlines: &BTreeMap<u32, Time>,
        now: Time,
    ) -> Vec<u32> {
        let mut fired = Vec::new();
        while let Some(slot) = wheel.pop(links, now) {
            match deadlines[&slot] {
                deadline if deadline <= now => fired.push(slot),
                deadline => wheel.insert(links, slot, deadline),
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
            let (mut wheel, mut links) = (Wheel::new(), Sparse::new(Link::IDLE));
            let mut deadlines = BTreeMap::new();
            for (slot, gap) in gaps.iter().enumerate() {
                deadlines.insert(slot as u32, Time::from_nanos(*gap));
                wheel.insert(&mut links, slot as u32, Time::from_nanos(*gap));
            }
            let mut now = Time::ZERO;
            for step in steps {
                now = now + Duration::from_nanos(step);
                for slot in drain((&mut wheel, &mut links), &deadlines, now) {
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
        let (mut wheel, mut links) = (Wheel::new(), Sparse::new(Link::IDLE));
        for slot in 0..10 {
            wheel.insert(&mut links, slot, Time::from_nanos(5));
        }
        for slot in [0, 9, 4, 4] {
            wheel.remove(&mut links, slot);
        }
        wheel.remove(&mut links, 77);
        let mut fired: Vec<_> =
            std::iter::from_fn(|| wheel.pop(&mut links, Time::from_nanos(1 << 30))).collect();
        fired.sort_unstable();
        assert_eq!(fired, [1, 2, 3, 5, 6, 7, 8]);
        assert_eq!(wheel.next(), None);
    }

    /// Behind the end of time there are ticks, but no times: what is due there is never due, and not at once.
    #[test]
    fn nothing_is_due_behind_the_end_of_time() {
        let (mut wheel, mut links) = (Wheel::new(), Sparse::new(Link::IDLE));
        let now = Time::from_nanos(u64::MAX - 300_000_000_000_000);
        assert_eq!(wheel.pop(&mut links, now), None);
        wheel.insert(&mut links, 0, Time::NEVER);
        assert_eq!(wheel.pop(&mut links, now), None);
        assert_eq!(wheel.next(), None);
    }

    /// Two thousand seconds of visits to one slot that is always refreshed: few visits, whatever the traffic.
    #[test]
    fn far_deadlines_cost_few_visits() {
        let (mut wheel, mut links) = (Wheel::new(), Sparse::new(Link::IDLE));
        let deadline = Time::from_nanos(432_000_000_000_000);
        wheel.insert(&mut links, 0, deadline);
        let mut visits = 0;
        for second in 1..=432_001u64 {
            while wheel.pop(&mut links, Time::from_nanos(second * 1_000_000_000)).is_some() {
                visits += 1;
                if second <= 432_000 {
                    wheel.insert(&mut links, 0, deadline);
                }
            }
        }
        assert!((1..=6).contains(&visits), "{visits}");
    }
}
