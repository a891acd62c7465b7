//! Inside endpoints that could not keep their port, and what they got instead: what Linux's masquerade gives them again for
//! the next destination ([`PortAssignment::Linux`]).
//!
//! An endpoint whose mappings all have its own port is not looked for here: the newest of them would say nothing new. So
//! nothing is remembered of most, and of nobody with any other kind of assignment.

use std::collections::BTreeMap;

use crate::{
    Protocol,
    behavior::PortAssignment,
    packed::{Inner, Outer},
};

/// An inside endpoint and a protocol.
type Key = (u64, Protocol);

#[derive(Default)]
pub(crate) struct Remapped {
    is_on: bool,
    /// How many mappings of an endpoint did not get its port, where any did not.
    strange: BTreeMap<Key, u32>,
    /// The mappings that such an endpoint has made since the first of those, in the order of their numbers. Some may
    /// outlive the last of those: they are older than whatever counts next. Each is in the table of mappings, whose limit
    /// holds for these too.
    mappings: BTreeMap<(Key, u64), Outer>,
    /// The numbers, by the mapping's slot.
    numbers: BTreeMap<u32, u64>,
    last: u64,
}

impl Remapped {
    pub(crate) fn new(ports: PortAssignment) -> Remapped {
        Remapped { is_on: ports == PortAssignment::Linux, ..Remapped::default() }
    }

    /// A mapping is made.
    pub(crate) fn add(&mut self, slot: u32, inner: Inner, external: Outer) {
        if !self.is_on {
            return;
        }
        let key = (inner.word(), external.protocol());
        if is_strange(inner, external) {
            *self.strange.entry(key).or_default() += 1;
        } else if !self.strange.contains_key(&key) {
            return;
        }
        self.last += 1;
        self.mappings.insert((key, self.last), external);
        self.numbers.insert(slot, self.last);
    }

    /// A mapping ends.
    pub(crate) fn remove(&mut self, slot: u32, inner: Inner, external: Outer) {
        if self.numbers.is_empty() {
            return;
        }
        let Some(number) = self.numbers.remove(&slot) else { return };
        let key = (inner.word(), external.protocol());
        self.mappings.remove(&(key, number));
        if is_strange(inner, external)
            && let Some(count) = self.strange.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.strange.remove(&key);
            }
        }
    }

    /// What the newest mapping of an inside endpoint got, if one of its mappings did not get its own port.
    pub(crate) fn newest(&self, inner: Inner, protocol: Protocol) -> Option<Outer> {
        let key = (inner.word(), protocol);
        self.strange.get(&key)?;
        let mut its = self.mappings.range((key, 0)..=(key, u64::MAX));
        its.next_back().map(|(_, external)| *external)
    }
}

fn is_strange(inner: Inner, external: Outer) -> bool {
    inner.spot().port != external.spot().port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InsideId, packed::Spot};

    /// What is remembered, as a list that is searched from one end to the other.
    #[derive(Default)]
    struct Model(Vec<(u32, Inner, Outer)>);

    impl Model {
        fn its(&self, inner: Inner) -> impl Iterator<Item = Outer> + '_ {
            let its = self.0.iter().filter(move |(_, other, _)| *other == inner);
            its.map(|(_, _, external)| *external).skip_while(move |external| !is_strange(inner, *external))
        }

        fn add(&mut self, slot: u32, inner: Inner, external: Outer) {
            self.0.push((slot, inner, external));
        }
    }

    #[test]
    fn the_newest_since_the_first_that_got_another_port() {
        let spot = |port| Spot { addr: [10, 0, 0, 2].into(), port };
        let inners = [1u16, 2].map(|port| Inner::new(InsideId(0), spot(port)));
        let (mut remapped, mut model) = (Remapped::new(PortAssignment::Linux), Model::default());
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        let mut found = 0;
        for slot in 0..4000 {
            let inner = inners[random(2) as usize];
            let external = Outer::new(Protocol::Udp, spot(1 + random(3) as u16));
            remapped.add(slot, inner, external);
            model.add(slot, inner, external);
            while model.0.len() > 3 + random(5) as usize {
                let (slot, inner, external) = model.0.remove(random(model.0.len() as u32) as usize);
                remapped.remove(slot, inner, external);
            }
            for inner in inners {
                let newest = model.its(inner).last();
                assert!(remapped.newest(inner, Protocol::Udp) == newest, "after {slot}");
                found += usize::from(newest.is_some());
            }
        }
        assert!((1000..8000).contains(&found), "{found}");
        for (slot, inner, external) in model.0 {
            remapped.remove(slot, inner, external);
        }
        assert!(remapped.mappings.is_empty() && remapped.strange.is_empty() && remapped.numbers.is_empty());
    }

    #[test]
    fn other_assignments_remember_nothing() {
        let mut remapped = Remapped::new(PortAssignment::Random);
        let spot = |port| Spot { addr: [10, 0, 0, 2].into(), port };
        let inner = Inner::new(InsideId(0), spot(1));
        remapped.add(7, inner, Outer::new(Protocol::Udp, spot(2)));
        assert!(remapped.newest(inner, Protocol::Udp).is_none());
    }
}
