//! The table as shown to people and programs.

use super::{Mapping, Table};
use crate::{External, MappingInfo, Remote, SessionInfo, index::NONE};

impl Table {
    pub(crate) fn mapping_slots(&self) -> impl Iterator<Item = (u32, MappingInfo)> + '_ {
        self.mappings.iter().map(|(slot, mapping)| (slot, self.mapping_info(mapping)))
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.sessions.iter().map(|(_, session)| SessionInfo {
            protocol: session.remote.protocol(),
            inside: session.inner.public(),
            external: External(session.external.public()),
            remote: Remote(session.remote.public()),
            state: session.state.word(),
            expires: session.expires,
        })
    }

    fn mapping_info(&self, mapping: &Mapping) -> MappingInfo {
        let mut expires = mapping.expires;
        let mut slot = mapping.sessions;
        while slot != NONE {
            expires = expires.max(self.sessions[slot].expires);
            slot = self.sessions[slot].next;
        }
        MappingInfo {
            protocol: mapping.external.protocol(),
            inside: mapping.inner.public(),
            external: External(mapping.external.public()),
            remote: (!mapping.remote.is_anybody()).then(|| Remote(mapping.remote.public())),
            is_static: mapping.is_static,
            created: mapping.created,
            expires,
            sessions: mapping.session_count,
        }
    }
}
