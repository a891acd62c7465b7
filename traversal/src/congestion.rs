//! Congestion control that starts afresh when the path changes.
//!
//! QUIC does not know that its packets take another path. What the controller has learned of the old one (window, slow
//! start threshold) is void then, and what is lost or acknowledged late of the old one says nothing about the new.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig},
};

/// The number of a connection's path; another one for another path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoch(Arc<AtomicU32>);

impl Epoch {
    pub(crate) fn set(&self, epoch: u32) {
        self.0.store(epoch, Ordering::Relaxed);
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl ControllerFactory for Epoch {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = fresh(now, current_mtu);
        Box::new(PerPath { epoch: (*self).clone(), seen: self.get(), since: now, mtu: current_mtu, inner })
    }
}

fn fresh(now: Instant, mtu: u16) -> Box<dyn Controller> {
    Arc::new(CubicConfig::default()).build(now, mtu)
}

struct PerPath {
    epoch: Epoch,
    seen: u32,
    /// When the path became the present one.
    since: Instant,
    mtu: u16,
    inner: Box<dyn Controller>,
}

impl PerPath {
    fn look(&mut self, now: Instant) {
        let epoch = self.epoch.get();
        if epoch != self.seen {
            (self.seen, self.since) = (epoch, now);
            self.inner = fresh(now, self.mtu);
        }
    }
}

impl Controller for PerPath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.look(now);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.look(now);
        if sent >= self.since {
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.look(now);
        if sent >= self.since {
            self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        // Before the first packet on a new path the old path's window is not to be used up at once.
        match self.epoch.get() == self.seen {
            true => self.inner.window(),
            false => self.inner.window().max(self.inner.initial_window()),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(PerPath {
            epoch: self.epoch.clone(),
            inner: self.inner.clone_box(),
            seen: self.seen,
            since: self.since,
            mtu: self.mtu,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_new_path_starts_afresh() {
        let (epoch, start) = (Epoch::default(), Instant::now());
        let mut controller = Arc::new(epoch.clone()).build(start, 1200);
        let initial = controller.window();
        controller.on_congestion_event(start, start, false, 1200);
        assert!(controller.window() < initial);

        epoch.set(1);
        let later = start + Duration::from_secs(1);
        controller.on_sent(later, 1200, 9);
        assert_eq!(controller.window(), initial);
        controller.on_congestion_event(later, start, true, 100_000);
        assert_eq!(controller.window(), initial, "losses on the old path do not count");
        controller.on_congestion_event(later, later, false, 1200);
        assert!(controller.window() < initial);
    }
}
