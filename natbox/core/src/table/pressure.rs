//! Flows that are dropped for new ones, where a NAT does so under pressure ([`Pressure`]). It looks at a few, and never
//! searches: a full table must not make every new flow slow.

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use super::{Session, Table};
use crate::{Ended, Time, behavior::Pressure, index::NONE, report::Reports, tcp::State};

/// Flows that are looked at for one victim; Linux looks at eight chains of its hash table.
const LOOKS: u32 = 16;

impl Table {
    /// Whether there is no room for another mapping.
    pub(crate) fn is_full_of_mappings(&self) -> bool {
        self.mappings.len() >= self.limits.mappings
    }

    /// A session to be dropped for a new one, or for a new mapping if it has one to give. Mappings made by name are never
    /// dropped, nor are their sessions.
    pub(crate) fn victim(&self, pressure: Pressure, for_mapping: bool, rng: &mut ChaCha8Rng) -> Option<u32> {
        if pressure == Pressure::Refuse {
            return None;
        }
        let may_go = |session: &Session| {
            session.mapping != NONE && {
                let mapping = &self.mappings[session.mapping];
                let alone = !for_mapping || mapping.session_count == 1;
                let unanswered = session.state.is_unanswered() || session.state == State::Reset;
                !mapping.is_static && (pressure == Pressure::DropOldest || unanswered && alone)
            }
        };
        let slots = self.sessions.slots();
        let first = (u64::from(rng.next_u32()) * u64::from(slots)) >> 32;
        (0..LOOKS.min(slots))
            .map(|i| (first as u32 + i) % slots)
            .filter(|slot| may_go(&self.sessions[*slot]))
            // What is exported is quick, and lives longer than is known here.
            .min_by_key(|slot| (self.exports.holds_any(*slot), self.sessions[*slot].expires))
    }

    /// Drops a session to make room, and its mapping too if it was the last one or the mapping is what is wanted.
    pub(crate) fn displace(&mut self, slot: u32, with_mapping: bool, now: Time, reports: &mut Reports) {
        reports.counters.displaced += 1;
        let mapping = self.sessions[slot].mapping;
        if with_mapping || self.mappings[mapping].session_count == 1 {
            self.end_mapping(mapping, Ended::Displaced, now, reports);
        } else {
            self.unlink_session(slot, reports);
        }
    }
}
