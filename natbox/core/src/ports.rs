//! External ports: who holds which, and which one a new mapping gets.

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use crate::{
    behavior::{Behavior, PortAssignment, PortClass},
    index::NONE,
    value::PortRange,
};

/// How often a random port is tried before the first free one after it is taken.
const RANDOM_TRIES: usize = 16;
/// How many steps a sequential allocator takes before it takes any free port.
const SEQUENTIAL_TRIES: usize = 64;

/// A set may list this many ports; beyond, a bit for each of the 65,536 costs less than to keep the list in order.
const MOST_LISTED: usize = 256;

/// A set of ports: small while it holds few, 8 KB from then on.
pub(crate) enum PortSet {
    /// Sorted.
    Few(Vec<u16>),
    /// One bit for each port.
    Many(Box<[u64; 1024]>),
}

impl PortSet {
    pub(crate) fn new() -> PortSet {
        PortSet::Few(Vec::new())
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        match self {
            PortSet::Few(ports) => ports.binary_search(&port).is_ok(),
            PortSet::Many(bits) => bits[usize::from(port >> 6)] >> (port & 63) & 1 == 1,
        }
    }

    pub(crate) fn insert(&mut self, port: u16) {
        match self {
            PortSet::Few(ports) => {
                let Err(at) = ports.binary_search(&port) else { return };
                if ports.len() < MOST_LISTED {
                    ports.insert(at, port);
                    return;
                }
                let mut bits = Box::new([0; 1024]);
                for listed in ports.iter().chain([&port]) {
                    bits[usize::from(listed >> 6)] |= 1 << (listed & 63);
                }
                *self = PortSet::Many(bits);
            }
            PortSet::Many(bits) => bits[usize::from(port >> 6)] |= 1 << (port & 63),
        }
    }

    pub(crate) fn remove(&mut self, port: u16) {
        match self {
            PortSet::Few(ports) => {
                if let Ok(at) = ports.binary_search(&port) {
                    ports.remove(at);
                }
            }
            PortSet::Many(bits) => bits[usize::from(port >> 6)] &= !(1 << (port & 63)),
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = PortSet::new();
    }
}

/// What stands in the place of each port: a word that is not [`NONE`] where somebody has it. A list while few are held;
/// beyond, leaves of neighbouring ports, of which there are those that somebody has a port of.
pub(crate) enum Holders {
    /// Sorted.
    Few(Vec<(u16, u32)>),
    Many(Box<Leaves>),
}

/// With more, a search takes longer than a leaf.
const MOST_HELD: usize = 32;
const LEAF_BITS: u32 = 6;
const LEAF: usize = 1 << LEAF_BITS;
const LEAVES: usize = 1 << (u16::BITS - LEAF_BITS);

pub(crate) struct Leaves {
    leaves: [Option<Box<Leaf>>; LEAVES],
    /// How many there are.
    len: usize,
}

struct Leaf {
    words: [u32; LEAF],
    held: usize,
}

impl Leaves {
    fn new() -> Box<Leaves> {
        Box::new(Leaves { leaves: [const { None }; LEAVES], len: 0 })
    }

    #[inline(always)]
    fn get(&self, port: u16) -> u32 {
        let leaf = &self.leaves[usize::from(port >> LEAF_BITS)];
        leaf.as_ref().map_or(NONE, |leaf| leaf.words[usize::from(port) % LEAF])
    }

    #[inline]
    fn set(&mut self, port: u16, holder: u32) {
        let place = &mut self.leaves[usize::from(port >> LEAF_BITS)];
        let leaf = match place {
            Some(leaf) => leaf,
            None if holder == NONE => return,
            None => {
                self.len += 1;
                place.insert(Box::new(Leaf { words: [NONE; LEAF], held: 0 }))
            }
        };
        let was = std::mem::replace(&mut leaf.words[usize::from(port) % LEAF], holder);
        leaf.held += usize::from(was == NONE);
        leaf.held -= usize::from(holder == NONE);
        if leaf.held == 0 {
            *place = None;
            self.len -= 1;
        }
    }
}

impl Holders {
    pub(crate) fn new() -> Holders {
        Holders::Few(Vec::new())
    }

    /// Whether somebody has this port.
    #[inline(always)]
    pub(crate) fn hold(&self, port: u16) -> bool {
        self.get(port) != NONE
    }

    #[inline(always)]
    pub(crate) fn get(&self, port: u16) -> u32 {
        match self {
            Holders::Many(leaves) => leaves.get(port),
            Holders::Few(held) => match held.binary_search_by_key(&port, |(port, _)| *port) {
                Ok(at) => held[at].1,
                Err(_) => NONE,
            },
        }
    }

    #[inline]
    pub(crate) fn set(&mut self, port: u16, holder: u32) {
        match self {
            Holders::Many(leaves) => {
                leaves.set(port, holder);
                if leaves.len == 0 {
                    *self = Holders::new();
                }
            }
            Holders::Few(held) => match held.binary_search_by_key(&port, |(port, _)| *port) {
                Ok(at) if holder == NONE => drop(held.remove(at)),
                Ok(at) => held[at].1 = holder,
                Err(_) if holder == NONE => {}
                Err(at) if held.len() < MOST_HELD => held.insert(at, (port, holder)),
                Err(_) => {
                    let mut leaves = Leaves::new();
                    for (port, holder) in held.iter().chain([&(port, holder)]) {
                        leaves.set(*port, *holder);
                    }
                    *self = Holders::Many(leaves);
                }
            },
        }
    }

    /// How many ports are held.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        match self {
            Holders::Few(held) => held.len(),
            Holders::Many(leaves) => leaves.leaves.iter().flatten().map(|leaf| leaf.held).sum(),
        }
    }
}

/// The ports of one protocol on one external address.
pub(crate) struct Pool {
    /// Who holds which.
    pub(crate) holders: Holders,
    /// Ports that none holds and none may have yet.
    pub(crate) resting: PortSet,
    /// The last sequential port.
    pub(crate) cursor: u16,
}

impl Pool {
    /// A pool without mappings, whose sequential ports begin at a random one.
    pub(crate) fn new(rng: &mut ChaCha8Rng) -> Pool {
        Pool { holders: Holders::new(), resting: PortSet::new(), cursor: rng.next_u32() as u16 }
    }
}

/// Chooses a port for a mapping whose inside port is `wanted`, between the boundaries of `classes`; `cursor` is the last
/// sequential one. `free` decides; it knows of overloading and of the host's own ports. `None` when nothing in the range
/// will do.
pub(crate) fn choose(
    behavior: &Behavior,
    (range, classes): (PortRange, PortClass),
    wanted: u16,
    cursor: &mut u16,
    rng: &mut ChaCha8Rng,
    free: impl Fn(u16) -> bool,
) -> Option<u16> {
    let candidates = Candidates::new(behavior, (range, classes), wanted);
    match behavior.ports {
        PortAssignment::Preserve | PortAssignment::PreserveOrRandom | PortAssignment::Linux => {
            if candidates.range.contains(wanted) && free(wanted) {
                return Some(wanted);
            }
            if behavior.ports == PortAssignment::Preserve {
                return candidates.scan(wanted, free);
            }
            candidates.random(rng, free)
        }
        PortAssignment::Sequential => {
            let step = behavior.port_step;
            let mut port = *cursor;
            for _ in 0..SEQUENTIAL_TRIES {
                port = candidates.advance(port, step);
                if free(port) {
                    *cursor = port;
                    return Some(port);
                }
            }
            let port = candidates.scan(port, free)?;
            *cursor = port;
            Some(port)
        }
        PortAssignment::Random => candidates.random(rng, free),
    }
}

/// The ports that a mapping may get, in the order of their numbers: a range, or every other port of it.
struct Candidates {
    range: PortRange,
    first: u16,
    spacing: u16,
    count: u32,
}

impl Candidates {
    fn new(behavior: &Behavior, (range, classes): (PortRange, PortClass), wanted: u16) -> Candidates {
        let class = class(classes, wanted);
        // A class without a port in the range is given up: keeping to it is only recommended (RFC 4787 REQ-3a).
        let range = range.intersect(class).unwrap_or(range);
        let first =
            if behavior.port_parity && (range.first() ^ wanted) & 1 == 1 && range.first() < range.last() {
                range.first() + 1
            } else {
                range.first()
            };
        let spacing = if behavior.port_parity { 2 } else { 1 };
        let count = (u32::from(range.last() - first) >> (spacing - 1)) + 1;
        Candidates { range, first, spacing, count }
    }

    fn port(&self, number: u32) -> u16 {
        // Nearly always there is nothing to be divided.
        let number = if number < self.count { number } else { number % self.count };
        self.first + number as u16 * self.spacing
    }

    /// The number of the first candidate from `port` on.
    fn number_from(&self, port: u16) -> u32 {
        if port < self.first || port > self.range.last() {
            return 0;
        }
        u32::from(port - self.first).div_ceil(u32::from(self.spacing))
    }

    /// The candidate one step above `port`, beginning anew at the end of the range.
    fn advance(&self, port: u16, step: u16) -> u16 {
        if port < self.first || port > self.range.last() {
            return self.first;
        }
        let numbers = u32::from(step).div_ceil(u32::from(self.spacing));
        self.port(u32::from(port - self.first) / u32::from(self.spacing) + numbers)
    }

    /// The first free candidate from `port` on, around the whole range.
    fn scan(&self, port: u16, free: impl Fn(u16) -> bool) -> Option<u16> {
        let start = self.number_from(port);
        (0..self.count).map(|i| self.port(start + i)).find(|port| free(*port))
    }

    fn random(&self, rng: &mut ChaCha8Rng, free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..RANDOM_TRIES {
            let port = self.port(self.draw(rng));
            if free(port) {
                return Some(port);
            }
        }
        self.scan(self.port(self.draw(rng)), free)
    }

    /// A number below `count`; the bias of 2⁻¹⁶ at the most is nothing to a port number.
    fn draw(&self, rng: &mut ChaCha8Rng) -> u32 {
        ((u64::from(rng.next_u32()) * u64::from(self.count)) >> 32) as u32
    }
}

fn class(classes: PortClass, port: u16) -> PortRange {
    let (first, last) = match (classes, port) {
        (PortClass::Off, _) => (1, u16::MAX),
        (PortClass::Linux, ..512) => (1, 511),
        (PortClass::Linux, 512..1024) => (512, 1023),
        (PortClass::WellKnown, ..1024) => (1, 1023),
        _ => (1024, u16::MAX),
    };
    PortRange::new(first, last).unwrap_or(PortRange::ALL)
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_set_is_the_same_in_both_forms() {
        let (mut set, mut model) = (PortSet::new(), std::collections::BTreeSet::new());
        let mut port = 1u16;
        for i in 0..4000u32 {
            port = port.wrapping_mul(25_173).wrapping_add(13_849);
            let port = port % 2000;
            if i % 3 == 2 {
                model.remove(&port);
                set.remove(port);
            } else {
                model.insert(port);
                set.insert(port);
            }
            assert_eq!(set.contains(port), model.contains(&port));
            assert!(model.len() <= MOST_LISTED || matches!(set, PortSet::Many(_)));
        }
        assert!(
            model.len() > MOST_LISTED && (0..2000).all(|port| set.contains(port) == model.contains(&port))
        );
        set.clear();
        assert!((0..2000).all(|port| !set.contains(port)));
    }

    #[test]
    fn holders_are_the_same_in_both_forms() {
        let (mut holders, mut model) = (Holders::new(), std::collections::BTreeMap::new());
        let mut port = 1u16;
        for i in 0..2000u32 {
            port = port.wrapping_mul(25_173).wrapping_add(13_849);
            // Few at first, then many.
            let port = if i < 1000 { port % 40 } else { port };
            if i % 3 == 2 {
                model.remove(&port);
                holders.set(port, NONE);
            } else {
                model.insert(port, i);
                holders.set(port, i);
            }
            let held = |port: u16| model.get(&port).copied().unwrap_or(NONE);
            assert!((0..40).chain([port]).all(|port| holders.get(port) == held(port)));
            assert_eq!(holders.count(), model.len());
            assert!(i > 0 || matches!(holders, Holders::Few(_)));
        }
        assert!((0..=u16::MAX).all(|port| holders.get(port) == model.get(&port).copied().unwrap_or(NONE)));
        let Holders::Many(leaves) = &holders else { panic!("{} ports are many", model.len()) };
        let needed: std::collections::BTreeSet<_> = model.keys().map(|port| port >> LEAF_BITS).collect();
        assert_eq!((leaves.len, leaves.leaves.iter().flatten().count()), (needed.len(), needed.len()));
        model.keys().for_each(|port| holders.set(*port, NONE));
        assert!(matches!(holders, Holders::Few(_)), "what is free takes no memory");
    }

    struct Setup {
        pool: Pool,
        rng: ChaCha8Rng,
        behavior: Behavior,
    }

    impl Setup {
        fn new(ports: PortAssignment) -> Setup {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let behavior =
                Behavior { ports, port_parity: false, port_class: PortClass::Off, ..Behavior::RFC };
            Setup { pool: Pool::new(&mut rng), rng, behavior }
        }

        fn take(&mut self, range: (u16, u16), wanted: u16) -> Option<u16> {
            let range = PortRange::new(range.0, range.1).unwrap();
            let Pool { holders, cursor, .. } = &mut self.pool;
            let (behavior, among) = (&self.behavior, (range, self.behavior.port_class));
            let port =
                choose(behavior, among, wanted, cursor, &mut self.rng, |port| holders.get(port) == NONE)?;
            self.pool.holders.set(port, 7);
            Some(port)
        }
    }

    #[test]
    fn preserve_takes_the_next_free_port() {
        let mut setup = Setup::new(PortAssignment::Preserve);
        let ports: Vec<_> = (0..3).map(|_| setup.take((1024, 5000), 4999)).collect();
        assert_eq!(ports, [Some(4999), Some(5000), Some(1024)]);
        assert_eq!(setup.take((1024, 5000), 80), Some(1025), "a port outside the range is not preserved");
    }

    #[test]
    fn preserve_or_random_does_not_take_the_neighbour() {
        let mut setup = Setup::new(PortAssignment::PreserveOrRandom);
        assert_eq!(setup.take((1024, 65535), 4000), Some(4000));
        let others: Vec<_> = (0..4).filter_map(|_| setup.take((1024, 65535), 4000)).collect();
        assert_eq!(others.len(), 4);
        assert!(others.iter().any(|port| port.abs_diff(4000) > 100), "{others:?}");
    }

    #[test]
    fn sequential_steps_and_wraps() {
        let mut setup = Setup::new(PortAssignment::Sequential);
        setup.behavior.port_step = 3;
        let first = setup.take((2000, 2010), 9).unwrap();
        let mut expected = first;
        for _ in 0..2 {
            expected = 2000 + (expected - 2000 + 3) % 11;
            assert_eq!(setup.take((2000, 2010), 9), Some(expected));
        }
        let rest = (0..20).filter_map(|_| setup.take((2000, 2010), 9)).count();
        assert_eq!(rest, 8, "every port of the range is found");
    }

    #[test]
    fn parity_and_class_are_kept() {
        let mut setup = Setup::new(PortAssignment::Random);
        setup.behavior.port_parity = true;
        setup.behavior.port_class = PortClass::WellKnown;
        for wanted in [5001, 5000, 443] {
            for _ in 0..50 {
                let port = setup.take((1, 65535), wanted).unwrap();
                assert_eq!(port & 1, wanted & 1);
                assert_eq!(port < 1024, wanted < 1024);
            }
        }
        assert!(setup.take((2000, 3000), 443).is_some(), "a class outside the range is given up");
    }

    #[test]
    fn random_finds_the_last_free_port() {
        let mut setup = Setup::new(PortAssignment::Random);
        let mut taken: Vec<_> = (0..101).filter_map(|_| setup.take((1000, 1100), 7)).collect();
        taken.sort_unstable();
        assert_eq!(taken, (1000..=1100).collect::<Vec<_>>());
        assert_eq!(setup.take((1000, 1100), 7), None);
    }
}
