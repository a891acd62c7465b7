//! Whether everything is found in exactly its places.

use super::{Peers, Table, lookup::Entry};
use crate::index::NONE;

impl Table {
    /// Panics where a mapping or a session is not in its places, or something else stands in one.
    pub(crate) fn check(&self) {
        let (mut own, mut listed, mut ports, mut statics) = (0, 0, 0, 0);
        for (slot, mapping) in self.mappings.iter() {
            let entry = self.entry_of(slot);
            let hash = self.hash_of(mapping.inner, mapping.remote);
            assert!(self.by_inside.find(hash, |word| Entry::of(word) == entry).is_some());
            statics += usize::from(mapping.is_static);
            // The first mapping on an external endpoint stands there, the others behind it.
            let Peers { previous, next } = self.neighbours.get(slot);
            assert!(mapping.shares || (previous, next) == (NONE, NONE));
            match previous {
                NONE => {
                    ports += 1;
                    assert!(self.entry_at(mapping.external) == Some(entry));
                }
                previous => {
                    assert_eq!(self.neighbours.get(previous).next, slot);
                    assert!(self.mappings[previous].external == mapping.external);
                }
            }
            assert!(next == NONE || self.neighbours.get(next).previous == slot);
            let (mut session, mut previous, mut count) = (mapping.sessions, NONE, 0);
            while session != NONE {
                let it = &self.sessions[session];
                assert!((it.mapping, it.previous) == (slot, previous));
                assert!(it.inner == mapping.inner && it.external == mapping.external);
                assert!(self.lookup_out(it.inner, it.remote) == Some(session));
                assert!(self.lookup_in(it.external, it.remote) == Some(session));
                own += u32::from(!mapping.is_lone);
                (count, previous, session) = (count + 1, session, it.next);
            }
            assert_eq!(mapping.session_count, count);
            listed += count as usize;
            if mapping.is_lone {
                let remote = self.sessions[mapping.sessions].remote;
                assert!(self.may_be_lone(mapping, remote) && entry == Entry::session(mapping.sessions));
            }
        }
        assert_eq!(listed, self.sessions.len());
        assert_eq!(statics, self.statics);
        assert_eq!(self.by_inside.len as usize, self.mappings.len());
        assert_eq!((self.flows_out.len, self.flows_in.len), (own, own));
        let held: usize = self.pools.iter().flatten().map(|pool| pool.holders.count()).sum();
        assert_eq!(held, ports);
        assert_eq!(self.pools.len(), self.addresses.len());
        for (number, addr) in self.addresses.iter().enumerate() {
            assert_eq!(self.number_of(*addr), Some(number));
        }
    }
}
