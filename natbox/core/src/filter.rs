//! Inbound admission: who may send to a mapping (RFC 4787 §5).
//!
//! Under address-and-port-dependent filtering the sessions are the permissions: a packet from an endpoint that was sent
//! to finds its session and needs no filter. Two cases need more. Under address-dependent filtering a permission holds
//! for every port of an address; with the scope [`FilterScope::Endpoint`] it holds for every mapping of the inside
//! endpoint. Those permissions are counted: each session that has carried an outbound packet holds one.

use std::net::Ipv4Addr;

use crate::{
    Endpoint, Inside, Protocol,
    behavior::{FilterScope, Filtering},
    index::{Hasher, Index, NONE},
    slab::Slab,
};

/// Who may send to whom.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permission {
    protocol: Protocol,
    inside: Inside,
    /// The mapping that it is for, or [`NONE`] when it is for all of the inside endpoint's.
    mapping: u32,
    /// The sender; port 0 stands for all of its ports.
    remote: Endpoint,
}

impl Permission {
    fn hash(&self, hasher: &Hasher) -> u32 {
        let salt = u32::from(self.inside.port.0) ^ self.mapping.rotate_left(12);
        let inside = if self.mapping == NONE {
            self.inside.endpoint
        } else {
            Endpoint::v4(Ipv4Addr::from_bits(self.mapping), 0)
        };
        hasher.hash(self.protocol, salt & 0x00ff_ffff, inside, self.remote)
    }
}

/// Every permission that holds, with the number of sessions that hold it.
pub(crate) struct Permissions {
    filtering: Filtering,
    scope: FilterScope,
    records: Slab<(Permission, u32)>,
    index: Index,
}

impl Permissions {
    pub(crate) fn new(filtering: Filtering, scope: FilterScope) -> Permissions {
        Permissions { filtering, scope, records: Slab::new(), index: Index::new() }
    }

    /// The permission that lets `remote` send to `mapping` of `inside`; `None` where sessions decide alone, or where
    /// nothing needs a permission.
    pub(crate) fn needed(
        &self,
        protocol: Protocol,
        inside: Inside,
        mapping: u32,
        remote: Endpoint,
    ) -> Option<Permission> {
        let remote = match (self.filtering, self.scope) {
            (Filtering::EndpointIndependent, _) => return None,
            (Filtering::AddressAndPortDependent, FilterScope::Mapping) => return None,
            (Filtering::AddressAndPortDependent, FilterScope::Endpoint) => remote,
            (Filtering::AddressDependent, _) => Endpoint::new(remote.addr, 0),
        };
        let mapping = if self.scope == FilterScope::Endpoint { NONE } else { mapping };
        Some(Permission { protocol, inside, mapping, remote })
    }

    /// Whether the filter lets `remote` send to `mapping` of `inside`, of which it is no session.
    pub(crate) fn admits(
        &self,
        protocol: Protocol,
        inside: Inside,
        mapping: u32,
        remote: Endpoint,
        hasher: &Hasher,
    ) -> bool {
        match self.needed(protocol, inside, mapping, remote) {
            Some(permission) => self.find(&permission, hasher).is_some(),
            None => self.filtering == Filtering::EndpointIndependent,
        }
    }

    pub(crate) fn grant(&mut self, permission: Permission, hasher: &Hasher) {
        if let Some(slot) = self.find(&permission, hasher) {
            self.records[slot].1 += 1;
            return;
        }
        let slot = self.records.insert((permission, 1));
        self.index.insert(permission.hash(hasher), slot);
    }

    pub(crate) fn revoke(&mut self, permission: &Permission, hasher: &Hasher) {
        let Some(slot) = self.find(permission, hasher) else { return };
        self.records[slot].1 -= 1;
        if self.records[slot].1 == 0 {
            self.index.remove(permission.hash(hasher), slot);
            self.records.remove(slot);
        }
    }

    fn find(&self, permission: &Permission, hasher: &Hasher) -> Option<u32> {
        self.index.find(permission.hash(hasher), |slot| self.records[slot].0 == *permission)
    }
}
