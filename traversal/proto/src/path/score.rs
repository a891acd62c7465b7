//! Which of several paths is best.

use std::{cmp::Reverse, time::Duration};

/// The worth of a path; the larger the better. The order of the fields is the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score {
    /// It answers.
    pub works: bool,
    /// It does not go by a relay: nobody's bandwidth but the peers'.
    pub direct: bool,
    /// It stays within one network.
    pub local: bool,
    /// How long a round trip takes, in steps of a factor of √2 and more; an unknown time is the worst.
    pub rtt: Reverse<u8>,
}

/// Steps of the round-trip time that a path must be better by to take the place of one that works: more than jitter.
const MARGIN: u8 = 2;

impl Score {
    /// The score of a path with these properties.
    pub fn new(works: bool, direct: bool, local: bool, rtt: Option<Duration>) -> Score {
        Score { works, direct, local, rtt: Reverse(rtt.map_or(u8::MAX, step)) }
    }

    /// Whether this is so much better than the path in use that packets should move.
    pub fn is_worth_leaving(self, current: Score) -> bool {
        let class = |score: Score| (score.works, score.direct, score.local);
        class(self) > class(current)
            || class(self) == class(current) && self.rtt.0.saturating_add(MARGIN) <= current.rtt.0
    }

    /// Whether the better class of path decides, and not the round-trip time alone.
    pub fn is_of_better_class(self, current: Score) -> bool {
        (self.works, self.direct, self.local) > (current.works, current.direct, current.local)
    }
}

/// Two steps for each doubling, from a quarter of a millisecond up: below it all are alike.
fn step(rtt: Duration) -> u8 {
    let quarters = u64::try_from(rtt.as_micros() / 250).unwrap_or(u64::MAX).max(1);
    let whole = quarters.ilog2();
    // The half step is at 1.5, not at √2: near enough.
    let half = whole > 0 && quarters >> (whole - 1) & 1 == 1;
    (2 * whole + u32::from(half)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_counts_first() {
        let score = |works, direct, local, ms: u32| Score::new(works, direct, local, Some(ms * MS));
        assert!(score(true, false, false, 10) > score(false, true, true, 1));
        assert!(score(true, true, false, 300) > score(true, false, false, 10));
        assert!(score(true, true, true, 9) > score(true, true, false, 1));
        assert!(score(true, true, false, 10) > score(true, true, false, 20));
        assert!(score(true, true, false, 900) > Score::new(true, true, false, None));
    }

    #[test]
    fn a_working_path_is_not_left_for_a_trifle() {
        let score = |ms: u32| Score::new(true, true, false, Some(ms * MS));
        assert!(!score(37).is_worth_leaving(score(40)));
        assert!(!score(30).is_worth_leaving(score(40)));
        assert!(score(15).is_worth_leaving(score(40)));
        assert!(score(200).is_worth_leaving(Score::new(true, false, false, Some(MS))));
        assert!(!score(40).is_worth_leaving(score(40)));
    }

    #[test]
    fn steps_rise() {
        assert!((0..20_000).map(|us| step(Duration::from_micros(50 * us))).is_sorted());
        assert_eq!(step(Duration::ZERO), 0);
        assert_eq!(step(Duration::MAX), 127);
    }
}
