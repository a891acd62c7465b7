//! Several tasks that wait for the same thing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

/// Wakers of all tasks that wait for one socket to become writable. Each task is in it once, so their number is bounded
/// by that of the tasks; all leave together when they are woken.
#[derive(Debug, Default)]
pub struct Wakers(Mutex<Vec<Waker>>);

impl Wakers {
    /// Remembers a task, unless it is here already.
    pub fn register(&self, waker: &Waker) {
        let mut wakers = self.lock();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Wakes and forgets everybody.
    pub fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.lock());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A waker that wakes everybody.
    pub fn shared(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}
