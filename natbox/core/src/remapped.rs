//! Inside endpoints that could not keep their port, and what they got instead: what Linux's masquerade gives them again for
//! the next destination ([`PortAssignment::Linux`]).
//!
//! An endpoint whose mappings all have its own port is not here: the newest of them would say nothing new. So the list is
//! short, and empty for every other kind of assignment.

use std::collections::BTreeMap;

use crate::{
    Protocol,
    behavior::PortAssignment,
    packed::{Inner, Outer},
};

#[derive(Default)]
pub(crate) struct Remapped {
    is_on: bool,
    /// By inside endpoint and protocol: its mappings since the first that did not get its port, oldest first. Each is in
    /// the table of mappings, whose limit holds for these too.
    mappings: BTreeMap<(u64, Protocol), Vec<(u32, Outer)>>,
}

impl Remapped {
    pub(crate) fn new(ports: PortAssignment) -> Remapped {
        Remapped { is_on: ports == PortAssignment::Linux, mappings: BTreeMap::new() }
    }

    /// A mapping is made.
    pub(crate) fn add(&mut self, slot: u32, inner: Inner, external: Outer) {
        if !self.is_on {
            return;
        }
        let key = (inner.word(), external.protocol());
        let kept = inner.spot().port == external.spot().port;
        if !kept || self.mappings.contains_key(&key) {
            self.mappings.entry(key).or_default().push((slot, external));
        }
    }

    /// A mapping ends.
    pub(crate) fn remove(&mut self, slot: u32, inner: Inner, external: Outer) {
        if self.mappings.is_empty() {
            return;
        }
        let key = (inner.word(), external.protocol());
        if let Some(mappings) = self.mappings.get_mut(&key) {
            mappings.retain(|(other, _)| *other != slot);
            if mappings.iter().all(|(_, external)| external.spot().port == inner.spot().port) {
                self.mappings.remove(&key);
            }
        }
    }

    /// What the newest mapping of an inside endpoint got, if one of its mappings did not get its own port.
    pub(crate) fn newest(&self, inner: Inner, protocol: Protocol) -> Option<Outer> {
        let mappings = self.mappings.get(&(inner.word(), protocol))?;
        mappings.last().map(|(_, external)| *external)
    }
}
