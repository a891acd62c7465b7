//! Connection attempts between peers of a sampled population: the agents and a relay, on natbox-sim, as fast as it goes.
//!
//! An attempt is a world of its own, made from one seed: two peers drawn from a [`mix`], their NATs and links, a hub that
//! reflects and relays. It runs until both send directly or have given up for now. So one seed plays an attempt again,
//! and a million of them give the same table in any order, on any number of threads.
//!
//! What each pair of NATs should come to is worked out beforehand by [`ideal`] peers, who probe without end on links
//! without loss, and share no code with the agents. An attempt that ends otherwise is a [`Surprise`].

#![allow(dead_code, unreachable_pub, reason = "the program and its test each use a part of this")]

pub mod attempt;
pub mod ideal;
pub mod mix;
#[path = "../../../tests/peer_world/mod.rs"]
mod peer_world;
pub mod table;
pub mod tally;
pub mod topology;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

use ideal::Expected;
use mix::Mix;
use tally::{Surprise, Tally};

/// Attempts that a thread takes at once: so few that nobody waits for the last, so many that nothing is spent on it.
const CHUNK: u64 = 64;

/// What to run.
pub struct Run<'a> {
    pub mix: &'a Mix,
    pub expected: &'a Expected,
    /// Decides everything.
    pub seed: u64,
    pub attempts: u64,
    pub threads: usize,
}

impl Run<'_> {
    /// Runs all attempts; `progress` sees the sum so far from time to time, and ends the run by `false`.
    pub fn run(&self, mut progress: impl FnMut(&Tally) -> bool) -> Tally {
        let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let mut total = Tally::default();
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                let (sender, next, is_over) = (sender.clone(), &next, &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                        if first >= self.attempts {
                            break;
                        }
                        let chunk = first..(first + CHUNK).min(self.attempts);
                        if sender.send(self.chunk(chunk)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for part in receiver {
                total.merge(&part);
                if !progress(&total) {
                    is_over.store(true, Ordering::Relaxed);
                }
            }
        });
        total
    }

    fn chunk(&self, indices: Range<u64>) -> Tally {
        let mut tally = Tally::default();
        for index in indices {
            let seed = attempt_seed(self.seed, index);
            match catch_unwind(AssertUnwindSafe(|| attempt::run(self.mix, self.expected, seed))) {
                Ok(attempt) => tally.add(index, &attempt),
                Err(_) => tally.surprise(index, seed, Surprise::Panicked),
            }
        }
        tally
    }
}

/// The seed of one attempt of a run (SplitMix64).
pub fn attempt_seed(seed: u64, index: u64) -> u64 {
    let mut word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
