//! Looking again before sleeping: a wake-up costs more than a packet.
//!
//! While packets come close upon each other the loop goes on asking for a moment instead of waiting, but only as long
//! as that pays off: it must find something often enough, and nobody else must want the core.

use std::{mem::zeroed, time::Duration};

use natbox_core::Time;

/// How long to go on asking: an answer from a nearby host takes less, a wake-up costs a good part of it.
const LONGEST: Duration = Duration::from_micros(50);

/// How long not to, after somebody else wanted the core.
const BUSY: Duration = Duration::from_millis(20);

/// How often to ask whether somebody does.
const CHECK: Duration = Duration::from_micros(500);

/// What a success adds to the score, and a failure takes from it: one success in three keeps it up.
const HIT: u16 = 4;
const MISS: u16 = 2;
const BEST: u16 = 64;

/// With a score of nothing, every so manieth time is tried all the same.
const TRIAL: u16 = 64;

/// Whether to wait or to ask again.
#[derive(Debug, Default)]
pub(super) struct Spinner {
    /// When the asking began that is going on.
    since: Option<Time>,
    score: u16,
    /// Times that the loop went to sleep at once, since the last trial.
    passed: u16,
    not_before: Time,
    next_check: Time,
    preemptions: i64,
}

impl Spinner {
    /// There was work.
    pub(super) fn worked(&mut self) {
        if self.since.take().is_some() {
            self.score = (self.score + HIT).min(BEST);
        }
    }

    /// There was none: true to ask again, false to wait.
    pub(super) fn again(&mut self, now: Time) -> bool {
        let Some(since) = self.since else { return self.begin(now) };
        let wanted = self.is_core_wanted(now);
        if wanted {
            self.not_before = now + BUSY;
        }
        if wanted || now.since(since) >= LONGEST {
            self.since = None;
            self.score = self.score.saturating_sub(MISS);
            return false;
        }
        // Whoever wants the core gets it now rather than at the end of our time slice, and we learn of it.
        std::thread::yield_now();
        true
    }

    fn begin(&mut self, now: Time) -> bool {
        self.passed = self.passed.saturating_add(1);
        if now < self.not_before || (self.score == 0 && self.passed < TRIAL) {
            return false;
        }
        (self.passed, self.since) = (0, Some(now));
        true
    }

    /// Whether this thread had to give up its core to another one since the last time.
    fn is_core_wanted(&mut self, now: Time) -> bool {
        if now < self.next_check {
            return false;
        }
        self.next_check = now + CHECK;
        let before = std::mem::replace(&mut self.preemptions, preemptions());
        self.preemptions != before
    }
}

/// How often this thread was taken off its core, or yielded it to another.
fn preemptions() -> i64 {
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: the kernel fills in a structure that outlives the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    /// A spinner that asks no kernel.
    fn spinner(score: u16) -> Spinner {
        Spinner { score, next_check: Time::NEVER, ..Spinner::default() }
    }

    #[test]
    fn asking_ends_after_a_moment() {
        let mut spinner = spinner(BEST);
        assert!(spinner.again(at(0)) && spinner.again(at(49)));
        assert!(!spinner.again(at(50)));
        assert_eq!(spinner.score, BEST - MISS);
    }

    #[test]
    fn what_does_not_pay_is_given_up_and_tried_again_now_and_then() {
        let mut spinner = spinner(2);
        assert!(spinner.again(at(0)) && !spinner.again(at(100)));
        let tried = (1..=640).filter(|i| spinner.again(at(i * 1000)) && !spinner.again(at(i * 1000 + 100)));
        assert_eq!(tried.count(), 10);
    }

    #[test]
    fn one_success_in_three_is_enough() {
        let mut spinner = spinner(6);
        for round in 0..100 {
            assert!(spinner.again(at(round * 1000)), "{round}");
            if round % 3 == 0 {
                spinner.worked();
            } else {
                assert!(!spinner.again(at(round * 1000 + 60)));
            }
        }
    }
}
