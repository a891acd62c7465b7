//! Rates: how much may pass in a time.

use crate::Time;

/// Units per second, with a reserve that builds up while nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units per second in the long run; 0: nothing passes at all.
    pub per_second: u64,
    /// Units that may pass at once.
    pub burst: u64,
}

/// Fractional bits of a nanosecond that a unit's cost is kept in: exact enough for 100 Gbit/s.
const FRACTION: u32 = 16;

/// A [`Rate`], ready for use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    /// 2⁻¹⁶ ns that one unit takes; 0: unlimited.
    cost: u64,
    /// Nanoseconds that the whole burst takes.
    depth: u64,
}

/// How full a bucket is: the time at which it is full again. Eight bytes, and nothing to do while it is not used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket(u64);

impl Meter {
    pub(crate) fn new(rate: Option<Rate>) -> Meter {
        match rate {
            None => Meter { cost: 0, depth: u64::MAX },
            Some(Rate { per_second: 0, .. }) => Meter { cost: u64::MAX, depth: 0 },
            Some(Rate { per_second, burst }) => {
                let cost = (1_000_000_000 << FRACTION) / per_second;
                Meter { cost, depth: scaled(cost, burst) }
            }
        }
    }

    /// The bucket after `units` have been taken from it; `None` if it does not hold as many.
    pub(crate) fn take(&self, bucket: Bucket, units: u64, now: Time) -> Option<Bucket> {
        let now = now.as_nanos();
        let full_at = bucket.0.max(now).saturating_add(scaled(self.cost, units));
        (full_at - now <= self.depth).then_some(Bucket(full_at))
    }
}

fn scaled(cost: u64, units: u64) -> u64 {
    u64::try_from((u128::from(cost) * u128::from(units)) >> FRACTION).unwrap_or(u64::MAX)
}

impl Bucket {
    /// Takes `units` if they are there.
    pub(crate) fn take(&mut self, meter: &Meter, units: u64, now: Time) -> bool {
        let after = meter.take(*self, units, now);
        *self = after.unwrap_or(*self);
        after.is_some()
    }

    /// The emptier of two.
    pub(crate) fn emptier(self, other: Bucket) -> Bucket {
        Bucket(self.0.max(other.0))
    }

    /// The fuller of two.
    pub(crate) fn fuller(self, other: Bucket) -> Bucket {
        Bucket(self.0.min(other.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Offered far more than the rate for ten seconds: burst + 10 × rate pass, whatever the size of the pieces.
    #[test]
    fn the_long_run_is_the_rate() {
        for (per_second, burst, piece) in [(1_000, 100, 1), (1_000_000, 64_000, 1_400), (7, 3, 1)] {
            let meter = Meter::new(Some(Rate { per_second, burst }));
            let (mut bucket, mut now, mut passed) = (Bucket::default(), Time::from_nanos(5_000_000_000), 0);
            for _ in 0..100_000 {
                now = now + Duration::from_micros(100);
                if bucket.take(&meter, piece, now) {
                    passed += piece;
                }
            }
            let expected = burst + 10 * per_second;
            assert!(
                passed <= expected && passed + piece + per_second / 100 >= expected,
                "{passed} of {expected}"
            );
        }
    }

    #[test]
    fn nothing_and_everything() {
        let mut bucket = Bucket::default();
        assert!(!bucket.take(&Meter::new(Some(Rate { per_second: 0, burst: 9 })), 1, Time::ZERO));
        for _ in 0..10 {
            assert!(bucket.take(&Meter::new(None), 1 << 40, Time::ZERO));
        }
    }
}
