//! When it pays to let datagrams gather before they are received.

use std::{
    thread,
    time::{Duration, Instant},
};

/// A wake-up that follows a turn within this time is one of a burst. A pair that plays ping-pong takes longer to answer.
const AT_ONCE: Duration = Duration::from_micros(20);
/// How long such a burst may gather: as much later is its first datagram sent on, at the most.
const GATHERING: Duration = Duration::from_micros(50);

/// Puts a thread's turn off for a moment while datagrams come faster than one by one: several are then received, decided
/// and sent together, for a fraction of the wake-ups, the locks and the calls.
pub(crate) struct Gather {
    served: Instant,
}

impl Gather {
    /// For the thread that calls.
    pub(crate) fn new() -> Gather {
        // Sleeps of this thread end when they should, not up to 50 µs later; without it they are longer, no more.
        #[cfg(target_os = "linux")]
        let _ = nix::sys::prctl::set_timerslack(1);
        Gather { served: Instant::now() }
    }

    /// Before a turn: there is something to receive.
    pub(crate) fn wait(&self) {
        let pause = pause(self.served.elapsed());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }

    /// After it.
    pub(crate) fn served(&mut self) {
        self.served = Instant::now();
    }
}

/// How long to wait when something came this long after the last turn.
fn pause(since: Duration) -> Duration {
    if since < AT_ONCE { GATHERING } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bursts_gather() {
        assert_eq!(pause(Duration::from_micros(3)), GATHERING);
        assert_eq!(pause(Duration::from_micros(60)), Duration::ZERO, "the answer of a lone pair");
    }
}
