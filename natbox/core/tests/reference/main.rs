//! A million random operations on the engine and on a NAT that is slow and obviously right: lists without an index, written
//! from the RFCs' words. UDP, TCP and ICMP queries, forwards, flushes, expiry and full tables, the axes of
//! [`Behavior`], and other ones and other addresses while it runs; both must agree on every packet, on every packet of the NAT's own making, and on what they remember.
//! `NATBOX_MODEL_SEED=N` plays one run again.
//!
//! Axes that are not drawn: `fragments` and `identification` say nothing about whole packets (tests/fragments.rs). Where
//! chance decides (a random port, a random block), the reference checks that the
//! engine's choice is one of those that are right, and goes on with it; so `port-step`, which says only which of them
//! comes next, is not drawn (tests/ports.rs), and `quarantine-ports`, which cuts the rest of the oldest port short, is 0 or
//! more than there are (tests/carrier.rs), for ports that are given back at one time have no order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "a test is replayed by a variable of the environment")]
#![allow(unreachable_pub, reason = "the reference is in several files")]

mod axes;
mod carrier;
#[path = "../common/mod.rs"]
mod common;
mod enter;
mod leave;
mod model;
mod ports;
mod run;
mod tcp;

use common::*;
use run::Run;

const RUNS: u64 = 2500;
const OPERATIONS: usize = 400;
const REPLAY: &str = "NATBOX_MODEL_SEED";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// How often what the axes are about has happened: a run in which it does not compares nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Mappings on an external endpoint that another has.
    shared: u64,
    /// Flows that went for others.
    displaced: u64,
    occupied: u64,
    /// Connections that a reset ended, and those that were picked up in the middle.
    reset: u64,
    picked_up: u64,
    /// Packets of the NAT's own, and those that its rate limit kept back.
    told: u64,
    suppressed: u64,
    rested: u64,
    blocks: u64,
    over_quota: u64,
    no_port: u64,
    untranslated: u64,
    prohibited: u64,
    /// Mappings that were made static, and those that shared a port and went for a static one.
    held: u64,
    replaced: u64,
}

impl Tally {
    /// All but what must be rare.
    fn counts(&self) -> Vec<u64> {
        let Tally { shared, displaced, occupied, reset, picked_up, told, .. } = *self;
        let Tally { rested, blocks, over_quota, no_port, untranslated, prohibited, held, .. } = *self;
        vec![
            shared,
            displaced,
            occupied,
            reset,
            picked_up,
            told,
            rested,
            blocks,
            over_quota,
            no_port,
            untranslated,
            prohibited,
            held,
        ]
    }
}

#[test]
fn a_million_operations_agree_with_the_reference() {
    let replayed = std::env::var(REPLAY).ok().map(|seed| seed.parse::<u64>().unwrap());
    let mut tally = Tally::default();
    for seed in replayed.map_or(0..RUNS, |seed| seed..seed + 1) {
        let mut run = Run::new(seed, tally);
        for operation in 0..OPERATIONS {
            let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step()));
            if step.is_err() {
                panic!("operation {operation} of {REPLAY}={seed} under {:?}", run.behavior());
            }
        }
        tally = run.finish();
    }
    if replayed.is_none() {
        assert!(tally.counts().iter().all(|count| *count >= 500), "{tally:?}");
        assert!(tally.suppressed * 100 < tally.told, "{tally:?}");
    }
    println!("{tally:?}");
}
