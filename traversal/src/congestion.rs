//! Congestion control that starts afresh when the path changes.
//!
//! QUIC does not know that its packets take another path. What the controller has learned of the old one (window, slow
//! start threshold) is void then, and what is lost or acknowledged late of the old one says nothing about the new. Nor
//! does what is still on its way there take up room on the new one (RFC 9000 §9.4): QUIC counts it as in flight until it
//! finds out that it is lost, and would wait for timeouts that double each time. The same goes for a path that does not
//! answer, while packets take another one as well: one window more is sent then.

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

/// The number of a connection's path, another one for another path; and how often a path was doubted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoch(Arc<[AtomicU32; 2]>);

impl Epoch {
    /// True: it is another path than before.
    pub(crate) fn set(&self, epoch: u32) -> bool {
        self.0[0].swap(epoch, Ordering::Relaxed) != epoch
    }

    /// The path in use has stopped to answer, and packets go by another one as well.
    pub(crate) fn doubt(&self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> (u32, u32) {
        let [epoch, doubts] = &*self.0;
        (epoch.load(Ordering::Relaxed), doubts.load(Ordering::Relaxed))
    }
}

impl ControllerFactory for Epoch {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = fresh(now, current_mtu);
        Box::new(PerPath {
            epoch: (*self).clone(),
            seen: self.get(),
            since: now,
            mtu: current_mtu,
            flying: 0,
            stale: 0,
            fresh: now,
            proof: Proof::None,
            inner,
        })
    }
}

fn fresh(now: Instant, mtu: u16) -> Box<dyn Controller> {
    Arc::new(CubicConfig::default()).build(now, mtu)
}

/// Packets that QUIC sends beyond its window, two at each timeout: their time doubles until the connection is given up.
const PROBES: u64 = 16;

/// What is known of the packets since the path changed, or was doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// None was acknowledged yet.
    None,
    /// Some are by the acknowledgement that is being handled.
    Now,
    /// Some were by an earlier one: QUIC has found out since what of the old path's is lost.
    Before,
}

struct PerPath {
    epoch: Epoch,
    seen: (u32, u32),
    /// When the path became the present one.
    since: Instant,
    mtu: u16,
    /// Bytes that QUIC may count as in flight: at least as many as it does.
    flying: u64,
    /// Those of them that went by earlier paths, or before a doubt.
    stale: u64,
    /// Since when there are none.
    fresh: Instant,
    proof: Proof,
    inner: Box<dyn Controller>,
}

impl PerPath {
    fn look(&mut self, now: Instant) {
        let seen = self.epoch.get();
        if seen == self.seen {
            return;
        }
        (self.stale, self.fresh, self.proof) = (self.left_behind(), now, Proof::None);
        if seen.0 != self.seen.0 {
            self.since = now;
            self.inner = fresh(now, self.mtu);
        }
        self.seen = seen;
    }

    /// What is on its way from before, when the path is a new one or a doubted one.
    fn left_behind(&self) -> u64 {
        let most = self.inner.window() + self.stale + PROBES * u64::from(self.mtu);
        self.flying.min(most)
    }
}

impl Controller for PerPath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.look(now);
        self.flying = self.flying.saturating_add(bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.look(now);
        if sent >= self.since {
            if self.proof == Proof::None && sent >= self.fresh {
                self.proof = Proof::Now;
            }
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.flying = in_flight;
        match self.proof {
            Proof::None => self.stale = self.stale.min(in_flight),
            Proof::Now => self.proof = Proof::Before,
            Proof::Before => self.stale = 0,
        }
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
        // What it is going to be with the next packet.
        let seen = self.epoch.get();
        match (seen == self.seen, seen.0 == self.seen.0) {
            (true, _) => self.inner.window() + self.stale,
            (_, true) => self.inner.window() + self.left_behind(),
            _ => self.inner.initial_window() + self.left_behind(),
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
            flying: self.flying,
            stale: self.stale,
            fresh: self.fresh,
            proof: self.proof,
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

    /// A full window on a path that has died leaves room for as much on the next one, until what was lost is known.
    #[test]
    fn what_is_left_behind_takes_up_no_room() {
        let (epoch, start) = (Epoch::default(), Instant::now());
        let mut controller = Arc::new(epoch.clone()).build(start, 1200);
        let initial = controller.window();
        for packet in 0..initial / 1200 {
            controller.on_sent(start, 1200, packet);
        }
        let left = initial / 1200 * 1200;
        epoch.set(1);
        assert_eq!(controller.window(), initial + left);
        let later = start + Duration::from_secs(1);
        controller.on_sent(later, 1200, 100);
        assert_eq!(controller.window(), initial + left);
        controller.on_end_acks(later, 2400, true, None);
        assert_eq!(controller.window(), initial + 2400);

        controller.on_sent(later, 1200, 101);
        epoch.doubt();
        assert_eq!(controller.window(), initial + 3600);
    }
}
