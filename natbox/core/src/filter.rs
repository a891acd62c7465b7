//! Inbound admission: who may send to a mapping (RFC 4787 §5).
//!
//! Under address-and-port-dependent filtering the sessions are the permissions: a packet from an endpoint that was sent
//! to finds its session and needs no filter. Two cases need more. Under address-dependent filtering a permission holds
//! for every port of an address; with the scope [`FilterScope::Endpoint`] it holds for every mapping of the inside
//! endpoint. (A filter that ignores the protocol is a third.) Each session that has carried an outbound packet holds one
//! of those permissions; the sessions that hold the same one are linked to each other, and the index knows the first. So
//! a permission takes no record of its own. Where permissions are a mapping's own, its only session is not in the index
//! either: it is asked itself.
//!
//! A filter can ignore the protocol only where it is the same for UDP and TCP: with a TCP filter of its own, each
//! transport keeps to its permissions.

use crate::{
    Behavior, Protocol,
    behavior::{FilterProtocol, FilterScope, Filtering},
    index::{Hasher, Index, NONE},
    packed::{Inner, Outer},
    slab::Slab,
    table::{Peers, Session},
};

/// Who may send to whom.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Permission {
    /// The inside endpoint, the slot of the mapping, or the external endpoint that it is for: one filter knows only one of
    /// them.
    holder: u64,
    /// The sender; port 0 stands for all of its ports.
    remote: Outer,
}

impl Permission {
    fn hash(&self, hasher: &Hasher) -> u32 {
        hasher.hash(self.holder, self.remote.word())
    }
}

/// Where a packet from outside wants to go.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) inner: Inner,
    pub(crate) external: Outer,
    /// The slot of the mapping.
    pub(crate) mapping: u32,
}

/// Every permission that holds.
pub(crate) struct Permissions {
    /// By protocol.
    filtering: [Filtering; Protocol::ALL.len()],
    scope: FilterScope,
    /// A permission is for every transport.
    any_transport: bool,
    index: Index,
}

impl Permissions {
    pub(crate) fn new(behavior: &Behavior) -> Permissions {
        let Behavior { filter_scope: scope, filter_protocol, .. } = *behavior;
        let filtering = Protocol::ALL.map(|protocol| behavior.filtering_of(protocol));
        let is_one = behavior.filtering_of(Protocol::Tcp) == behavior.filtering_of(Protocol::Udp);
        let any_transport = is_one && filter_protocol == FilterProtocol::Any;
        Permissions { filtering, scope, any_transport, index: Index::new() }
    }

    /// Whether the filter lets everybody in.
    pub(crate) fn is_open(&self, protocol: Protocol) -> bool {
        self.filtering[protocol as usize] == Filtering::EndpointIndependent
    }

    /// The permission that lets `remote` send to `place`; `None` where sessions decide alone, or where nothing needs a
    /// permission.
    fn needed(&self, place: Place, remote: Outer) -> Option<Permission> {
        let any_protocol = self.any_transport && remote.protocol() != Protocol::Icmp;
        let remote = match (self.filtering[remote.protocol() as usize], self.scope) {
            (Filtering::EndpointIndependent, _) => return None,
            (Filtering::AddressAndPortDependent, FilterScope::Mapping) if !any_protocol => return None,
            (Filtering::AddressAndPortDependent, _) => remote,
            (Filtering::AddressDependent, _) => remote.any_port(),
        };
        let holder = match self.scope {
            FilterScope::Endpoint => place.inner.word(),
            // Mappings of two transports are two; what they have in common is the external port.
            FilterScope::Mapping if any_protocol => place.external.as_udp().word(),
            FilterScope::Mapping => place.mapping.into(),
        };
        Some(Permission { holder, remote: if any_protocol { remote.as_udp() } else { remote } })
    }

    /// Whether a permission is for one mapping: others are not to be asked for it.
    pub(crate) fn are_of_mappings(&self, protocol: Protocol) -> bool {
        self.scope == FilterScope::Mapping && !(self.any_transport && protocol != Protocol::Icmp)
    }

    /// Whether a session, which has carried an outbound packet, holds the permission for `remote` to send to its own
    /// mapping.
    pub(crate) fn holds(&self, session: &Session, remote: Outer) -> bool {
        let Session { inner, external, mapping, .. } = *session;
        let needed = self.needed(Place { inner, external, mapping }, remote);
        needed.is_some() && needed == self.needed_by(session)
    }

    fn needed_by(&self, session: &Session) -> Option<Permission> {
        let Session { inner, external, mapping, .. } = *session;
        self.needed(Place { inner, external, mapping }, session.remote)
    }

    /// Whether the filter lets a remote send to a mapping of an inside endpoint, of which it is no session.
    pub(crate) fn admits(
        &self,
        place: Place,
        remote: Outer,
        sessions: &Slab<Session>,
        hasher: &Hasher,
    ) -> bool {
        match self.needed(place, remote) {
            Some(permission) => self.find(&permission, sessions, hasher).is_some(),
            None => self.is_open(remote.protocol()),
        }
    }

    /// The session in `slot` has carried an outbound packet.
    #[inline(never)]
    pub(crate) fn grant(&mut self, slot: u32, sessions: &mut Slab<Session>, hasher: &Hasher) {
        sessions[slot].granted = true;
        let Some(permission) = self.needed_by(&sessions[slot]) else { return };
        sessions[slot].peers = Peers::NONE;
        let Some(first) = self.find(&permission, sessions, hasher) else {
            self.index.insert(permission.hash(hasher), slot);
            return;
        };
        let next = std::mem::replace(&mut sessions[first].peers.next, slot);
        sessions[slot].peers = Peers { previous: first, next };
        if next != NONE {
            sessions[next].peers.previous = slot;
        }
    }

    /// The session in `slot`, which was granted a permission, ends.
    pub(crate) fn revoke(&mut self, slot: u32, sessions: &mut Slab<Session>, hasher: &Hasher) {
        let Some(permission) = self.needed_by(&sessions[slot]) else { return };
        let Peers { previous, next } = sessions[slot].peers;
        if next != NONE {
            sessions[next].peers.previous = previous;
        }
        match (previous, next) {
            (NONE, NONE) => self.index.remove(permission.hash(hasher), slot),
            (NONE, next) => self.index.replace(permission.hash(hasher), slot, next),
            (previous, next) => sessions[previous].peers.next = next,
        }
    }

    /// The first of the sessions that hold a permission.
    fn find(&self, permission: &Permission, sessions: &Slab<Session>, hasher: &Hasher) -> Option<u32> {
        let is_it = |slot| self.needed_by(&sessions[slot]).as_ref() == Some(permission);
        self.index.find(permission.hash(hasher), is_it)
    }
}
