//! What all workers share, behind the one lock of the datapath.
//!
//! A worker holds the lock while it translates one batch, and while nothing is received or sent: packets are copied in and
//! out at the same time by all, translated in turn. The exception is the guard, which must know of a port before a packet
//! that uses it leaves, and is told by a system call where it is an nf_tables table.
//!
//! It cannot be waited for in a circle: who holds it waits for no other lock, and has the state itself, from which no way
//! leads back to this one. And it cannot be left poisoned: when a worker panics every other one ends after its batch, and the
//! process with them.

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use natbox_core::Time;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::state::{Claims, State};

/// The state, and how workers tell each other of it.
pub(super) struct Shared<C: Claims> {
    state: Mutex<State<C>>,
    /// When the state has something to do by itself: what [`State::poll_timeout`] said last.
    due: AtomicU64,
    /// Until when the first worker, who does it, means to sleep; zero while it is awake.
    asleep_until: AtomicU64,
    /// Wakes the first worker.
    bell: EventFd,
    is_ending: AtomicBool,
    /// Readable from the moment that a worker has ended.
    end: EventFd,
}

impl<C: Claims> Shared<C> {
    pub(super) fn new(state: State<C>) -> nix::Result<Shared<C>> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Shared {
            due: nanos(state.poll_timeout()).into(),
            state: Mutex::new(state),
            asleep_until: AtomicU64::new(0),
            bell: eventfd()?,
            is_ending: AtomicBool::new(false),
            end: eventfd()?,
        })
    }

    /// Waits for whoever has the state; never to be called by somebody who has it.
    pub(super) fn lock(&self) -> Locked<'_, C> {
        Locked { state: self.state.lock().unwrap_or_else(PoisonError::into_inner), shared: self }
    }

    // ---- Timers: the first worker's ----

    /// When [`State::handle_timeout`] is due.
    pub(super) fn due(&self) -> Time {
        Time::from_nanos(self.due.load(SeqCst))
    }

    /// The first worker is about to sleep until `deadline`: returns until when it may.
    pub(super) fn fall_asleep(&self, deadline: Time) -> Time {
        // First this, then the look: whoever moves the time forward after the look sees it, and rings.
        self.asleep_until.store(deadline.as_nanos(), SeqCst);
        deadline.min(self.due())
    }

    pub(super) fn wake_up(&self) {
        self.asleep_until.store(0, SeqCst);
    }

    /// Readable when the first worker's sleep has become too long.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn quieten(&self) {
        // Fails only when it has not rung.
        let _ = self.bell.read();
    }

    fn set_due(&self, due: Option<Time>) {
        let due = nanos(due);
        if due < self.due.swap(due, SeqCst) && due < self.asleep_until.load(SeqCst) {
            // A counter that is full is readable as well.
            let _ = self.bell.write(1);
        }
    }

    // ---- The end: everybody's ----

    /// Lets every worker end after its batch.
    pub(super) fn finish(&self) {
        self.is_ending.store(true, SeqCst);
        let _ = self.end.write(1);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(SeqCst)
    }

    /// Readable from [`finish`](Shared::finish) on.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

fn nanos(due: Option<Time>) -> u64 {
    due.unwrap_or(Time::NEVER).as_nanos()
}

/// The state in the hands of one worker.
pub(super) struct Locked<'a, C: Claims> {
    state: MutexGuard<'a, State<C>>,
    shared: &'a Shared<C>,
}

impl<C: Claims> Deref for Locked<'_, C> {
    type Target = State<C>;

    fn deref(&self) -> &State<C> {
        &self.state
    }
}

impl<C: Claims> DerefMut for Locked<'_, C> {
    fn deref_mut(&mut self) -> &mut State<C> {
        &mut self.state
    }
}

impl<C: Claims> Drop for Locked<'_, C> {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.shared.set_due(self.state.poll_timeout());
        }
    }
}
