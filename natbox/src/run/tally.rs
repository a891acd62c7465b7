//! What a worker's port has counted, for others to read at any time.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::datapath::PortStats;

/// A copy of a port's counters, brought up to date by its worker after everything that it sends.
#[derive(Debug)]
pub(super) struct Tally([AtomicU64; PortStats::COUNT]);

impl Tally {
    pub(super) fn new() -> Tally {
        Tally(array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(super) fn set(&self, stats: &PortStats) {
        for (counter, value) in self.0.iter().zip(stats.values()) {
            counter.store(value, Relaxed);
        }
    }

    /// The counters, without the port's name.
    pub(super) fn stats(&self) -> PortStats {
        PortStats::from_values(array::from_fn(|index| self.0[index].load(Relaxed)))
    }
}
