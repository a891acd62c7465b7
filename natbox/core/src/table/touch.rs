//! Reading what will be needed soon, so that it is in the cache by then: several misses at once instead of one after the
//! other.

use std::hint::black_box;

use super::{Session, Table, lookup::Entry};
use crate::{
    index::NONE,
    packed::{Inner, Outer},
};

/// Flows that are looked at together: several times what a core can have under way at once.
pub(crate) const TOGETHER: usize = 32;

/// A place for each of some flows; only the first `len` mean something.
struct Batch<T> {
    items: [T; TOGETHER],
    len: usize,
}

impl<T: Copy> Batch<T> {
    fn of(nothing: T) -> Batch<T> {
        Batch { items: [nothing; TOGETHER], len: 0 }
    }

    #[inline(always)]
    fn push(&mut self, item: T) {
        self.items[self.len % TOGETHER] = item;
        self.len += 1;
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = T> {
        self.items[..self.len.min(TOGETHER)].iter().copied()
    }
}

impl Table {
    /// Reads the places of the flows whose packets leave, then their sessions.
    pub(crate) fn touch_outbound(&self, flows: &[(Inner, Outer)]) {
        let (mut firsts, mut seconds, mut slots) = (Batch::of(0), Batch::of(0), Batch::of(0));
        for (inner, remote) in flows {
            firsts.push(self.hash_of(*inner, self.key_of(*remote)));
        }
        // Whatever is folded must have been read; that it is used keeps the compiler from leaving it out.
        black_box(firsts.iter().fold(0, |sum, hash| sum ^ self.by_inside.peek(hash)));
        for (hash, (inner, remote)) in firsts.iter().zip(flows) {
            match self.by_inside.guess(hash) {
                NONE if self.flows_out.is_empty() => {}
                entry => match Entry::of(entry).lone() {
                    Some(slot) if entry != NONE => slots.push(slot),
                    _ => seconds.push(self.hash_of(*inner, *remote)),
                },
            }
        }
        black_box(seconds.iter().fold(0, |sum, hash| sum ^ self.flows_out.peek(hash)));
        seconds.iter().for_each(|hash| slots.push(self.flows_out.guess(hash)));
        self.touch_sessions(&slots);
    }

    /// The same for packets that enter.
    pub(crate) fn touch_inbound(&self, flows: &[(Outer, Outer)]) {
        let (mut entries, mut hashes, mut slots) = (Batch::of(None), Batch::of(0), Batch::of(0));
        for (external, _) in flows {
            entries.push(self.entry_at(*external));
        }
        for (entry, (external, remote)) in entries.iter().zip(flows) {
            match entry.map(Entry::lone) {
                Some(Some(slot)) => slots.push(slot),
                Some(None) => hashes.push(self.hasher.hash(external.word(), remote.word())),
                None => {}
            }
        }
        black_box(hashes.iter().fold(0, |sum, hash| sum ^ self.flows_in.peek(hash)));
        hashes.iter().for_each(|hash| slots.push(self.flows_in.guess(hash)));
        self.touch_sessions(&slots);
    }

    #[inline(always)]
    fn touch_sessions(&self, slots: &Batch<u32>) {
        let something = |slot| self.sessions.peek(slot).map_or(0, |session| session.expires.as_nanos());
        black_box(slots.iter().fold(0, |sum, slot| sum ^ something(slot)));
    }

    /// Brings what a new flow will write into the cache, while there is other work to do: the free records.
    #[inline]
    pub(crate) fn touch_free(&self) {
        black_box(self.mappings.peek_free() ^ self.sessions.peek_free());
    }

    /// The same for the places of a session that ends, and of its mapping, which may end with it.
    #[inline]
    pub(super) fn touch_ending(&self, slot: u32) {
        let Session { inner, external, remote, mapping, .. } = self.sessions[slot];
        let mapping = &self.mappings[mapping];
        black_box(self.by_inside.peek(self.hash_of(inner, mapping.remote)));
        black_box(self.entry_at(external));
        if !mapping.is_lone {
            let out = self.flows_out.peek(self.hash_of(inner, remote));
            black_box(out ^ self.flows_in.peek(self.hasher.hash(external.word(), remote.word())));
        }
    }
}
