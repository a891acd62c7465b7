//! The jitter buffer: packets come when they come, frames go out when they must.
//!
//! # How it works
//!
//! Each packet tells when it was spoken (its timestamp) and is seen to arrive; the difference is its **transit**, by two
//! clocks that have nothing to do with each other. The least transit of the last five seconds is the **base**: the way
//! without queues. A packet whose transit is 30 ms above the base has been held up for 30 ms, and is in time if frames are
//! played at least 30 ms after they could have been played at the earliest. This time is the **delay**, and the buffer's
//! whole business:
//!
//! ```text
//!   target   what would have been enough for 99 % of the last packets, and a little more
//!   delay    of the frame that is played now
//!   delay < target   this frame is to be played a little slower, so that the next one is later
//!   delay > target   a little faster; much too late: frames are left out at once
//! ```
//!
//! As the base follows the clocks, a clock that drifts is nothing special: the delay moves away, and is brought back. After
//! a switch to another path the window holds both paths' transits: the target covers both, and falls when the old one has
//! gone.
//!
//! A frame that is not there at its time is rebuilt from the next packet, if that is there, or concealed. When nothing is
//! there at all, nobody can know whether the frame is lost or late: it is concealed, and goes on being waited for. If a
//! later one comes first, the concealed time stands for the missing ones; if it comes itself, it is played, and everything
//! is so much later.
//!
//! Pure: packets and the time go in, decisions come out. It never gives a frame twice, or an earlier one after a later one;
//! it holds [`MAX_FRAMES`] at the most.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::Serialize;

use crate::packet::Packet;

#[cfg(test)]
mod tests;

/// A frame's length in microseconds. All times in here are: they can be negative, and a timestamp's unit is 20.8 of them.
const FRAME: i64 = 20_000;
/// Packets that wait: 1.28 s, more than the largest delay, with room for what a stalled path delivers at once.
pub(crate) const MAX_FRAMES: i64 = 64;
/// Transits that are remembered: 5 s of packets. A longer memory adapts later, a shorter one forgets rare spikes.
const WINDOW: usize = 256;
/// What the target is between. Above the most a conversation is no conversation any more (ITU-T G.114: 400 ms).
const TARGET: std::ops::RangeInclusive<i64> = 10_000..=400_000;
/// Until something has been measured.
const FIRST_TARGET: i64 = 40_000;
/// What the target has above the measured: the player asks for whole frames, packets come in between.
const SLACK: i64 = 5_000;
/// A delay this much above the target is left alone: a cut takes up to 13 ms, and must not be followed by a stretch.
const TOLERANCE: i64 = 16_000;
/// Below the target, the same.
const SHORTAGE: i64 = 3_000;
/// From this far off on, every second frame is changed and not every fifth.
const FAR: i64 = 50_000;
/// Too late by this much: leaving frames out is the lesser evil.
const SKIP: i64 = 150_000;
/// Of the last 128 packets, so many lost make it worth waiting a frame longer for the copies in the next packets.
const WORTH_COPIES: u32 = 3;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It waits for its time.
    Kept,
    /// It was there already.
    Duplicate,
    /// Its time is over.
    Late,
}

/// What is to be played next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Nothing yet: the call has not begun.
    Silence,
    /// This packet's frame.
    Play {
        /// The packet's number, unwrapped; the first packet has the number that it bears.
        sequence: i64,
        payload: Vec<u8>,
        /// The speaker hangs up.
        last: bool,
        /// How much later the frame is played than it could have been at the earliest.
        delay: Duration,
        pace: Pace,
    },
    /// Frame `sequence`, which is not there, from the copy in the packet after it. That packet is played next.
    Recover { sequence: i64, following: Vec<u8> },
    /// Something that hides that there is nothing.
    Conceal,
}

/// How fast a frame is to be played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Even,
    Faster,
    Slower,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Different packets that have arrived.
    pub(crate) received: u64,
    /// Packets that arrived again.
    pub(crate) duplicates: u64,
    /// Of those received, too late to be played.
    pub(crate) late: u64,
    /// Packets that did not arrive, as far as later ones tell.
    pub(crate) lost: u64,
    /// Frames played.
    pub(crate) played: u64,
    /// Frames rebuilt from the next packet.
    pub(crate) recovered: u64,
    /// Frames concealed.
    pub(crate) concealed: u64,
    /// Frames that had arrived, and were left out to catch up.
    pub(crate) skipped: u64,
}

/// The jitter buffer; see the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct JitterBuffer {
    /// By sequence number, unwrapped; none is below `next`.
    waiting: BTreeMap<i64, Packet>,
    /// The frame whose turn it is.
    next: i64,
    /// Frames have been played.
    started: bool,
    /// Frames concealed since a frame was there, for which `next` has not moved.
    concealed_waiting: i64,
    newest: Option<Newest>,
    /// The last transits.
    transits: VecDeque<i64>,
    /// The least of them.
    base: i64,
    target: i64,
    waits_for_copies: bool,
    /// Frames played since one was played faster or slower.
    since_change: u32,
    counts: Counts,
}

/// The packet with the highest sequence number so far.
#[derive(Clone, Copy, Debug)]
struct Newest {
    sequence: i64,
    timestamp: i64,
    /// The first of all.
    first: i64,
    /// Bit `n`: the packet `n` before it has arrived.
    seen: u128,
}

impl JitterBuffer {
    /// Takes a packet that arrived at `now`, the time since any moment that is the same for all calls.
    pub(crate) fn handle_packet(&mut self, packet: Packet, now: Duration) -> Arrival {
        let Some(newest) = self.newest else {
            let (sequence, timestamp) = (i64::from(packet.sequence), i64::from(packet.timestamp));
            self.newest = Some(Newest { sequence, timestamp, first: sequence, seen: 1 });
            self.next = sequence;
            return self.keep(sequence, timestamp, packet, now);
        };
        let ahead = packet.sequence.wrapping_sub(newest.sequence as u16) as i16;
        let sequence = newest.sequence + i64::from(ahead);
        let timestamp =
            newest.timestamp + i64::from(packet.timestamp.wrapping_sub(newest.timestamp as u32) as i32);
        if !self.note(newest, sequence, timestamp) {
            self.counts.duplicates += 1;
            return Arrival::Duplicate;
        }
        self.keep(sequence, timestamp, packet, now)
    }

    /// What is to be played from `now` on. To be asked when all that was given before has been played.
    pub(crate) fn poll_frame(&mut self, now: Duration) -> Frame {
        if let Some((&first, _)) = self.waiting.first_key_value()
            && first - self.next <= self.concealed_waiting
        {
            (self.next, self.concealed_waiting) = (first, 0);
        }
        let Some(delay) = self.delay_at(now) else { return Frame::Silence };
        if !self.started && delay < self.target {
            return Frame::Silence;
        }
        self.started = true;
        let delay = self.catch_up(delay);
        let Some(first) = self.waiting.first_entry() else {
            self.concealed_waiting += 1;
            self.counts.concealed += 1;
            return Frame::Conceal;
        };
        if *first.key() == self.next {
            let (sequence, packet) = first.remove_entry();
            self.next += 1;
            self.counts.played += 1;
            let pace = self.pace(delay.saturating_sub(self.target));
            let delay = Duration::from_micros(delay.max(0).unsigned_abs());
            return Frame::Play { sequence, payload: packet.payload, last: packet.last, delay, pace };
        }
        self.next += self.concealed_waiting + 1;
        self.concealed_waiting = 0;
        if self.next == *first.key() {
            self.counts.recovered += 1;
            return Frame::Recover { sequence: self.next - 1, following: first.get().payload.clone() };
        }
        self.counts.concealed += 1;
        Frame::Conceal
    }

    /// The delay that is wanted.
    pub(crate) fn target(&self) -> Duration {
        Duration::from_micros(self.target.unsigned_abs())
    }

    /// Frames that wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What has happened so far.
    pub(crate) fn counts(&self) -> Counts {
        let expected = self.newest.map_or(0, |newest| (newest.sequence - newest.first + 1).unsigned_abs());
        Counts { lost: expected.saturating_sub(self.counts.received), ..self.counts }
    }

    // ---- Arrivals ----

    /// Notes that a packet has arrived; `false`: it had already. One so old that nobody remembers counts as new, and is
    /// late.
    fn note(&mut self, mut newest: Newest, sequence: i64, timestamp: i64) -> bool {
        let ahead = sequence - newest.sequence;
        if ahead > 0 {
            newest.seen = newest.seen.checked_shl(ahead as u32).unwrap_or(0) | 1;
            (newest.sequence, newest.timestamp) = (sequence, timestamp);
        } else {
            let bit = 1u128.checked_shl(ahead.unsigned_abs() as u32).unwrap_or(0);
            if newest.seen & bit != 0 {
                return false;
            }
            newest.seen |= bit;
            newest.first = newest.first.min(sequence);
        }
        self.newest = Some(newest);
        true
    }

    fn keep(&mut self, sequence: i64, timestamp: i64, packet: Packet, now: Duration) -> Arrival {
        self.counts.received += 1;
        self.measure(micros(now).saturating_sub(media(timestamp)));
        if !self.started && (self.next - MAX_FRAMES..self.next).contains(&sequence) {
            self.next = sequence;
        }
        if sequence < self.next {
            self.counts.late += 1;
            return Arrival::Late;
        }
        self.waiting.insert(sequence, packet);
        if sequence - self.next >= MAX_FRAMES {
            self.advance(sequence - MAX_FRAMES + 1);
        }
        Arrival::Kept
    }

    fn measure(&mut self, transit: i64) {
        if self.transits.len() == WINDOW {
            self.transits.pop_front();
        }
        self.transits.push_back(transit);
        let mut sorted: Vec<i64> = self.transits.iter().copied().collect();
        // The longest of a hundred, the second of two hundred: one in a hundred may be late.
        let rank = sorted.len() - 1 - sorted.len() / 100;
        let (below, high, _) = sorted.select_nth_unstable(rank);
        let high = *high;
        self.base = below.iter().copied().min().unwrap_or(high);
        self.target = if self.transits.len() < WINDOW / 8 { FIRST_TARGET } else { *TARGET.start() };
        self.target = self.target.max(high.saturating_sub(self.base).saturating_add(SLACK));
        if let Some(newest) = self.newest {
            let lost = newest.seen.count_zeros().saturating_sub(newest.unborn());
            self.waits_for_copies = lost >= WORTH_COPIES || (lost > 0 && self.waits_for_copies);
        }
        self.target =
            self.target.saturating_add(if self.waits_for_copies { FRAME } else { 0 }).min(*TARGET.end());
    }

    // ---- Decisions ----

    fn delay_at(&self, now: Duration) -> Option<i64> {
        let newest = self.newest?;
        let spoken = media(newest.timestamp).saturating_sub((newest.sequence - self.next) * FRAME);
        Some(micros(now).saturating_sub(self.base).saturating_sub(spoken))
    }

    /// Leaves frames out if they come much too late, but never all; returns the delay afterwards.
    fn catch_up(&mut self, delay: i64) -> i64 {
        let Some(&last) = self.waiting.last_key_value().map(|(sequence, _)| sequence) else { return delay };
        let excess = delay.saturating_sub(self.target);
        if excess < SKIP {
            return delay;
        }
        let skip = (excess / FRAME).min(last - self.next);
        self.concealed_waiting = 0;
        self.advance(self.next + skip);
        delay - skip * FRAME
    }

    /// Moves on to frame `next`.
    fn advance(&mut self, next: i64) {
        let kept = self.waiting.split_off(&next);
        self.counts.skipped += self.waiting.len() as u64;
        self.waiting = kept;
        self.next = next;
    }

    fn pace(&mut self, excess: i64) -> Pace {
        self.since_change += 1;
        let often = if excess.abs() > FAR { 2 } else { 5 };
        let pace = match excess {
            _ if self.since_change < often => return Pace::Even,
            excess if excess > TOLERANCE => Pace::Faster,
            excess if excess < -SHORTAGE => Pace::Slower,
            _ => return Pace::Even,
        };
        self.since_change = 0;
        pace
    }
}

impl Newest {
    /// Bits of `seen` that stand for packets before the first.
    fn unborn(&self) -> u32 {
        128u32.saturating_sub((self.sequence - self.first + 1).min(128) as u32)
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// A timestamp's unit is 1/48000 s: 125/6 µs.
fn media(timestamp: i64) -> i64 {
    timestamp.saturating_mul(125) / 6
}
