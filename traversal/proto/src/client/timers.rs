//! What is due when.

use crate::Time;

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Timer {
    /// The control connection is tried again.
    Dial,
    /// The registration is renewed, or tried again after a refusal.
    Register,
    /// A Bind is sent, for the first time or again.
    Bind,
    /// Some channel is asked for again, or its answer is waited for no more.
    Channels,
    /// A Ping is sent.
    Ping,
    /// Its answer is waited for no more.
    Pong,
}

const ALL: [Timer; 6] =
    [Timer::Dial, Timer::Register, Timer::Bind, Timer::Channels, Timer::Ping, Timer::Pong];

/// One deadline for each [`Timer`].
pub(super) struct Timers([Time; ALL.len()]);

impl Default for Timers {
    fn default() -> Timers {
        Timers([Time::NEVER; ALL.len()])
    }
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        self.0[timer as usize] = at;
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.set(timer, Time::NEVER);
    }

    pub(super) fn clear_all(&mut self) {
        *self = Timers::default();
    }

    pub(super) fn get(&self, timer: Timer) -> Time {
        self.0[timer as usize]
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.into_iter().min().filter(|at| *at != Time::NEVER)
    }

    /// The earliest that is due, which is then cleared.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        let timer = ALL.into_iter().min_by_key(|timer| self.get(*timer))?;
        let at = self.get(timer);
        if at == Time::NEVER || at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}
