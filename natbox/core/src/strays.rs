//! What packets from outside leave behind that nothing admitted: on a gateway whose own stack takes them, a tuple that is
//! no longer free.

use std::collections::BTreeMap;

use crate::{Time, packed::Outer};

/// Tuples at a time; a stray beyond leaves nothing behind. Whoever sends from many ports costs no more than this.
const MOST: usize = 4096;

/// Tuples that strays have taken.
#[derive(Default)]
pub(crate) struct Strays {
    /// By external and remote endpoint: until when.
    taken: BTreeMap<(u64, u64), Time>,
    /// None of them is over before.
    first_over: Time,
}

impl Strays {
    /// A packet has come from `remote` to `external`. False: there is no room.
    pub(crate) fn take(&mut self, external: Outer, remote: Outer, until: Time, now: Time) -> bool {
        let tuple = (external.word(), remote.word());
        if self.taken.len() >= MOST && !self.taken.contains_key(&tuple) {
            if self.first_over > now {
                return false;
            }
            self.taken.retain(|_, until| *until > now);
            self.first_over = self.taken.values().min().copied().unwrap_or(Time::NEVER);
            if self.taken.len() >= MOST {
                return false;
            }
        }
        self.first_over = if self.taken.is_empty() { until } else { self.first_over.min(until) };
        self.taken.insert(tuple, until);
        true
    }

    pub(crate) fn clear(&mut self) {
        self.taken.clear();
    }

    /// Whether a mapping from `external` to `remote` would meet one.
    #[inline]
    pub(crate) fn holds(&self, external: Outer, remote: Outer, now: Time) -> bool {
        if self.taken.is_empty() {
            return false;
        }
        self.taken.get(&(external.word(), remote.word())).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Protocol, packed::Spot};

    #[test]
    fn a_flood_takes_no_more_than_its_room() {
        let at = |port: u16| Outer::new(Protocol::Udp, Spot { addr: [192, 0, 2, 1].into(), port });
        let mut strays = Strays::default();
        let end = Time::ZERO + Duration::from_secs(30);
        let taken = (1..=5000).filter(|port| strays.take(at(1), at(*port), end, Time::ZERO)).count();
        assert_eq!((taken, strays.taken.len()), (MOST, MOST));
        assert!(strays.take(at(1), at(7), end + Duration::from_secs(1), Time::ZERO), "one of them again");
        assert!(strays.holds(at(1), at(8), Time::ZERO) && !strays.holds(at(1), at(8), end));
        assert!(strays.take(at(1), at(5000), end + Duration::from_secs(30), end), "the old ones make room");
        assert_eq!(strays.taken.len(), 2);
    }
}
