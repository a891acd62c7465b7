//! What is to happen when, and the buffers of the packets on their way.

use std::{cmp::Ordering, collections::BinaryHeap};

use natbox_core::Time;

use crate::{Direction, slab::Key};

/// Packets on their way at once: beyond it a runaway sender would take the machine's memory (at 1,500 bytes a packet,
/// this is 6 GB), not tell anything about a protocol.
const MOST_PACKETS: usize = 1 << 22;

/// Something that happens later.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A packet comes out of a link.
    Arrive { link: Key, direction: Direction, packet: u32 },
    /// The NAT in front of this network wants to look at its timers.
    NatTimer { network: Key },
}

#[derive(PartialEq, Eq)]
struct Event {
    at: Time,
    /// What was scheduled first happens first.
    number: u64,
    what: What,
}

impl Ord for Event {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Event) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Events in the order of their times.
pub(crate) struct Agenda {
    events: BinaryHeap<Event>,
    scheduled: u64,
}

impl Agenda {
    pub(crate) fn new() -> Agenda {
        Agenda { events: BinaryHeap::new(), scheduled: 0 }
    }

    pub(crate) fn add(&mut self, at: Time, what: What) {
        self.events.push(Event { at, number: self.scheduled, what });
        self.scheduled += 1;
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.events.peek().map(|event| event.at)
    }

    /// Takes the first event that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<(Time, What)> {
        if self.next()? > now {
            return None;
        }
        self.events.pop().map(|event| (event.at, event.what))
    }
}

/// The buffers of packets, used again and again.
pub(crate) struct Pool {
    buffers: Vec<Vec<u8>>,
    free: Vec<u32>,
}

impl Pool {
    pub(crate) fn new() -> Pool {
        Pool { buffers: Vec::new(), free: Vec::new() }
    }

    /// An empty buffer; `None` when too many packets are on their way.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.buffers.len() >= MOST_PACKETS {
            return None;
        }
        self.buffers.push(Vec::new());
        Some((self.buffers.len() - 1) as u32)
    }

    /// A second packet of the same bytes.
    pub(crate) fn copy(&mut self, slot: u32) -> Option<u32> {
        let copy = self.take()?;
        let mut buffer = std::mem::take(&mut self.buffers[copy as usize]);
        buffer.extend_from_slice(&self.buffers[slot as usize]);
        self.buffers[copy as usize] = buffer;
        Some(copy)
    }

    pub(crate) fn give(&mut self, slot: u32) {
        self.buffers[slot as usize].clear();
        self.free.push(slot);
    }

    pub(crate) fn bytes(&self, slot: u32) -> &[u8] {
        &self.buffers[slot as usize]
    }

    pub(crate) fn buffer(&mut self, slot: u32) -> &mut Vec<u8> {
        &mut self.buffers[slot as usize]
    }

    /// How many packets are on their way.
    pub(crate) fn in_use(&self) -> usize {
        self.buffers.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_ties_as_scheduled() {
        let mut agenda = Agenda::new();
        let what = |slot| What::NatTimer { network: Key { slot, generation: 0 } };
        for (slot, at) in [(0, 5), (1, 3), (2, 5), (3, 1)] {
            agenda.add(Time::from_nanos(at), what(slot));
        }
        assert!(agenda.pop(Time::ZERO).is_none());
        let all: Vec<_> = std::iter::from_fn(|| agenda.pop(Time::from_nanos(9))).collect();
        let expected = [(1, 3), (3, 1), (5, 0), (5, 2)].map(|(at, slot)| (Time::from_nanos(at), what(slot)));
        assert!(all == expected);
    }

    #[test]
    fn buffers_are_used_again() {
        let mut pool = Pool::new();
        let a = pool.take().unwrap();
        pool.buffer(a).extend_from_slice(b"abc");
        let b = pool.copy(a).unwrap();
        assert_eq!((pool.bytes(b), pool.in_use()), (&b"abc"[..], 2));
        pool.give(a);
        assert_eq!(pool.take(), Some(a));
        assert!(pool.bytes(a).is_empty());
    }
}
