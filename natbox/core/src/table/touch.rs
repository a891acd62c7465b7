//! Reading what will be needed soon, so that it is in the cache by then: several misses at once instead of one after the
//! other.

use std::hint::black_box;

use super::{Session, Table};
use crate::{Side, index::Index, packed::Outer};

impl Table {
    /// The index of the flows whose packets come from this side.
    #[inline]
    pub(crate) fn flows(&self, from: Side) -> &Index {
        if from == Side::Outside { &self.flows_in } else { &self.flows_out }
    }

    /// The index of the mappings that a new flow's packets from this side look for.
    #[inline]
    pub(crate) fn ends(&self, from: Side) -> &Index {
        if from == Side::Outside { &self.by_external } else { &self.by_inside }
    }

    /// Something of the session in `slot`; 0 when there is none.
    #[inline]
    pub(crate) fn peek_session(&self, slot: u32) -> u64 {
        self.sessions.peek(slot).map_or(0, |session| session.expires.as_nanos())
    }

    /// Brings what a new flow will write into the cache, while there is other work to do: the free records.
    #[inline]
    pub(crate) fn touch_free(&self) {
        black_box(self.mappings.peek_free() ^ self.sessions.peek_free());
    }

    /// The same, once its external endpoint is known: where the indexes of the outside will hold it.
    #[inline]
    pub(crate) fn touch_external(&self, external: Outer, remote: Outer) {
        let mapping = self.by_external.peek(self.hasher.hash(external.word(), 0));
        black_box(mapping ^ self.flows_in.peek(self.hasher.hash(external.word(), remote.word())));
    }

    /// The same for a session that ends, and the mapping that may end with it.
    #[inline]
    pub(super) fn touch_ending(&self, slot: u32) {
        let Session { inner, external, remote, mapping, .. } = self.sessions[slot];
        let out = self.flows_out.peek(self.hasher.hash(inner.word(), remote.word()));
        self.touch_external(external, remote);
        black_box(
            out ^ self.by_inside.peek(self.hasher.hash(inner.word(), self.mappings[mapping].remote.word())),
        );
    }
}
