//! Who stands behind the mappings, and what each of them holds: `natbox show --subscribers`.
//!
//! The loop copies what is needed, some bytes for each mapping; it is summed up on the thread that serves the client. So
//! subscribers are shown also where no axis counts them, and what they were refused only where one does.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use natbox_core::{InsideId, Nat, PortBlock, SubscriberInfo, Time};
use serde::{Deserialize, Serialize};

/// A subscriber: an inside address, or a network of them (`subscriber-prefix`), behind one inside port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// `ADDR/LEN`.
    pub subscriber: String,
    /// Which inside interface it is behind, by its number.
    pub inside_port: u16,
    /// How many mappings it has, static forwards among them.
    pub mappings: u64,
    /// How many sessions these have.
    pub sessions: u64,
    /// The external addresses of its mappings and port blocks, sorted.
    pub external: Vec<IpAddr>,
    /// Its port blocks, `ADDR:FIRST-LAST`, sorted.
    pub blocks: Vec<String>,
    /// New flows that it was refused because it has had its share, since it last held nothing; absent where no axis
    /// limits subscribers.
    pub refused: Option<u64>,
}

/// One mapping, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Held {
    inside: InsideId,
    addr: Ipv4Addr,
    external: Ipv4Addr,
    sessions: u32,
}

/// A copy of what subscribers hold.
#[derive(Clone, Debug)]
pub struct Holdings {
    prefix_len: u8,
    /// Only this host's subscriber.
    host: Option<Ipv4Addr>,
    held: Vec<Held>,
    blocks: Vec<PortBlock>,
    counted: Vec<SubscriberInfo>,
    counts: bool,
}

/// An inside port and the first address behind it that is the subscriber's.
type Key = (InsideId, Ipv4Addr);

impl Holdings {
    /// What is held at `now`, by everybody or by the subscriber that has this `host`.
    pub fn new(nat: &Nat, host: Option<IpAddr>, now: Time) -> Holdings {
        let live = nat.mappings().filter(|mapping| mapping.expires > now);
        let held = live.filter_map(|mapping| {
            Some(Held {
                inside: mapping.inside.port,
                addr: v4(mapping.inside.endpoint.addr)?,
                external: v4(mapping.external.0.addr)?,
                sessions: mapping.sessions,
            })
        });
        Holdings {
            prefix_len: nat.behavior().subscriber_prefix,
            host: host.and_then(v4),
            held: held.collect(),
            blocks: nat.blocks().collect(),
            counted: nat.subscribers().collect(),
            counts: nat.counts_subscribers(),
        }
    }

    /// Sums it up: who has most mappings comes first, then who has most sessions, then by address.
    pub(super) fn by_use(self) -> Vec<Subscriber> {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
        let first = |addr: Ipv4Addr| Ipv4Addr::from_bits(addr.to_bits() & mask);
        let wanted = |(_, addr): Key| self.host.is_none_or(|host| first(host) == addr);
        let mut all: BTreeMap<Key, Sum> = BTreeMap::new();
        for Held { inside, addr, external, sessions } in &self.held {
            let key = (*inside, first(*addr));
            if wanted(key) {
                let sum = all.entry(key).or_default();
                sum.mappings += 1;
                sum.sessions += u64::from(*sessions);
                sum.external.insert(*external);
            }
        }
        for block in &self.blocks {
            let (Some(addr), Some(external)) = (v4(block.subscriber), v4(block.address)) else { continue };
            if wanted((block.inside, addr)) {
                let sum = all.entry((block.inside, addr)).or_default();
                sum.external.insert(external);
                sum.blocks.insert((external, block.ports.first(), block.ports.last()));
            }
        }
        for counted in &self.counted {
            let Some(addr) = v4(counted.subscriber) else { continue };
            if wanted((counted.inside, addr)) {
                all.entry((counted.inside, addr)).or_default().refused = counted.refused;
            }
        }
        let mut all: Vec<(Key, Sum)> = all.into_iter().collect();
        all.sort_by_key(|(_, sum)| Reverse((sum.mappings, sum.sessions)));
        all.into_iter().map(|(key, sum)| sum.shown(key, self.prefix_len, self.counts)).collect()
    }
}

#[derive(Default)]
struct Sum {
    mappings: u64,
    sessions: u64,
    external: BTreeSet<Ipv4Addr>,
    blocks: BTreeSet<(Ipv4Addr, u16, u16)>,
    refused: u64,
}

impl Sum {
    fn shown(self, (inside, addr): Key, prefix_len: u8, counts: bool) -> Subscriber {
        let block = |(addr, first, last)| format!("{addr}:{first}-{last}");
        Subscriber {
            subscriber: format!("{addr}/{prefix_len}"),
            inside_port: inside.0,
            mappings: self.mappings,
            sessions: self.sessions,
            external: self.external.into_iter().map(IpAddr::V4).collect(),
            blocks: self.blocks.into_iter().map(block).collect(),
            refused: counts.then_some(self.refused),
        }
    }
}

fn v4(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    }
}
