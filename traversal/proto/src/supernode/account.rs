//! Who has used how much. An account outlives its peer's registrations, so nobody gets a fresh quota by coming back.

use std::collections::{BTreeSet, HashMap};

use super::{
    DropReason,
    config::{Config, Quota, RelayPolicy},
    slots::{Keyed, Slots},
};
use crate::{
    Time,
    rate::{Bucket, Meter, Rate},
    wire::{PeerId, message::Resource},
};

struct Account {
    peer: PeerId,
    /// Index into the quotas: 0 is everybody's, the others are the exceptions'.
    quota: u32,
    /// Registrations that use it; 0: its peer is away, and it may be forgotten.
    users: u32,
    /// The highest sequence number of a record seen; nothing at or below it is believed again.
    sequence: u64,
    /// The period that `volume` belongs to.
    period: u64,
    volume: u64,
    bytes: Bucket,
    packets: Bucket,
    signalling: Bucket,
    warned_at: Option<Time>,
    idle_since: Time,
}

/// What one quota means, ready for use.
struct Meters {
    bytes: Meter,
    packets: Meter,
    volume: u64,
    quota: Quota,
}

impl Meters {
    fn new(quota: Quota) -> Meters {
        let (bytes, packets) = (Meter::new(quota.bytes), Meter::new(quota.packets));
        Meters { bytes, packets, volume: quota.volume.unwrap_or(u64::MAX), quota }
    }
}

/// What a peer is to be told about its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Warning {
    pub(super) resource: Resource,
    pub(super) used: u64,
    pub(super) limit: u64,
}

/// The answer to a charge.
pub(super) struct Charged {
    pub(super) result: Result<(), DropReason>,
    pub(super) warning: Option<Warning>,
}

pub(super) struct Accounts {
    accounts: Slots<Account>,
    by_peer: HashMap<PeerId, u32, Keyed>,
    /// Those that may be forgotten, the longest unused first.
    idle: BTreeSet<(Time, u32)>,
    limit: usize,
    quotas: Vec<Meters>,
    exceptions: HashMap<PeerId, u32, Keyed>,
    signalling: Meter,
    signalling_only: bool,
    total: Meters,
    total_bytes: Bucket,
    total_packets: Bucket,
    total_volume: u64,
    period: u64,
    pub(super) evicted: u64,
}

impl Accounts {
    pub(super) fn new(config: &Config, hash: Keyed) -> Accounts {
        let mut quotas = vec![Meters::new(config.quotas.per_peer)];
        let mut exceptions = HashMap::with_hasher(hash);
        for (peer, quota) in &config.quotas.exceptions {
            exceptions.insert(*peer, quotas.len() as u32);
            quotas.push(Meters::new(*quota));
        }
        Accounts {
            accounts: Slots::new(),
            by_peer: HashMap::with_hasher(hash),
            idle: BTreeSet::new(),
            limit: config.limits.accounts,
            quotas,
            exceptions,
            signalling: Meter::new(Some(config.quotas.signalling)),
            signalling_only: config.relay == RelayPolicy::SignallingOnly,
            total: Meters::new(config.quotas.total),
            total_bytes: Bucket::default(),
            total_packets: Bucket::default(),
            total_volume: 0,
            period: 0,
            evicted: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// The sequence number of the newest record seen from `peer`.
    pub(super) fn sequence(&self, peer: &PeerId) -> Option<u64> {
        Some(self.accounts.get(*self.by_peer.get(peer)?)?.sequence)
    }

    pub(super) fn set_sequence(&mut self, account: u32, sequence: u64) {
        if let Some(account) = self.accounts.get_mut(account) {
            account.sequence = sequence;
        }
    }

    /// The account of `peer`, for one more user; `None` when there is no room.
    pub(super) fn acquire(&mut self, peer: PeerId, random: u32) -> Option<u32> {
        if let Some(&handle) = self.by_peer.get(&peer) {
            let account = self.accounts.get_mut(handle)?;
            account.users += 1;
            self.idle.remove(&(account.idle_since, handle));
            return Some(handle);
        }
        if self.accounts.len() >= self.limit {
            let (_, oldest) = self.idle.pop_first()?;
            let forgotten = self.accounts.remove(oldest)?;
            self.by_peer.remove(&forgotten.peer);
            self.evicted += 1;
        }
        let handle = self.accounts.insert(
            random,
            Account {
                peer,
                quota: self.exceptions.get(&peer).copied().unwrap_or(0),
                users: 1,
                sequence: 0,
                period: self.period,
                volume: 0,
                bytes: Bucket::default(),
                packets: Bucket::default(),
                signalling: Bucket::default(),
                warned_at: None,
                idle_since: Time::ZERO,
            },
        );
        self.by_peer.insert(peer, handle);
        Some(handle)
    }

    /// One user less.
    pub(super) fn release(&mut self, handle: u32, now: Time) {
        let Some(account) = self.accounts.get_mut(handle) else { return };
        account.users -= 1;
        if account.users == 0 {
            account.idle_since = now;
            self.idle.insert((now, handle));
        }
    }

    /// From now on usage belongs to this period.
    pub(super) fn enter_period(&mut self, period: u64) {
        if period != self.period {
            self.period = period;
            self.total_volume = 0;
        }
    }

    /// Whether this account's traffic is relayed beyond signalling.
    pub(super) fn relays(&self, handle: u32) -> bool {
        let Some(account) = self.accounts.get(handle) else { return false };
        let volume = if account.period == self.period { account.volume } else { 0 };
        !self.signalling_only
            && volume < self.quotas[account.quota as usize].volume
            && self.total_volume < self.total.volume
    }

    /// What all have sent in this period.
    pub(super) fn total_volume(&self) -> u64 {
        self.total_volume
    }

    /// Puts usage back that was saved before a restart.
    pub(super) fn restore(&mut self, peer: PeerId, volume: u64, random: u32, now: Time) {
        if let Some(handle) = self.acquire(peer, random) {
            if let Some(account) = self.accounts.get_mut(handle) {
                account.period = self.period;
                account.volume = account.volume.saturating_add(volume);
            }
            self.total_volume = self.total_volume.saturating_add(volume);
            self.release(handle, now);
        }
    }

    /// Everybody who has sent something in this period, with how much, in the order of the slots.
    pub(super) fn usage(&self) -> impl Iterator<Item = (PeerId, u64)> {
        let used =
            self.accounts.iter().filter(|(_, account)| account.period == self.period && account.volume > 0);
        used.map(|(_, account)| (account.peer, account.volume))
    }

    /// Charges one packet of `bytes` to `handle`: everything that limits it agrees, or nothing is taken.
    pub(super) fn charge(
        &mut self,
        handle: u32,
        bytes: u64,
        now: Time,
        warn_every: std::time::Duration,
    ) -> Charged {
        let refused = |reason, warning| Charged { result: Err(reason), warning };
        let relays = self.relays(handle);
        let Some(account) = self.accounts.get_mut(handle) else {
            return refused(DropReason::NoSession, None);
        };
        if account.period != self.period {
            (account.period, account.volume) = (self.period, 0);
        }
        let quota = &self.quotas[account.quota as usize];
        let mut too_fast = |resource, rate: Option<Rate>| {
            if account.warned_at.is_some_and(|at| now.since(at) < warn_every) {
                return None;
            }
            account.warned_at = Some(now);
            let limit = rate.map_or(0, |rate| rate.per_second);
            Some(Warning { resource, used: limit, limit })
        };
        let Some(own_bytes) = quota.bytes.take(account.bytes, bytes, now) else {
            return refused(DropReason::ByteRate, too_fast(Resource::Bytes, quota.quota.bytes));
        };
        let Some(own_packets) = quota.packets.take(account.packets, 1, now) else {
            return refused(DropReason::PacketRate, too_fast(Resource::Packets, quota.quota.packets));
        };
        let total_bytes = self.total.bytes.take(self.total_bytes, bytes, now);
        let total_packets = self.total.packets.take(self.total_packets, 1, now);
        let (Some(total_bytes), Some(total_packets)) = (total_bytes, total_packets) else {
            return refused(DropReason::TotalRate, None);
        };
        if !relays && !account.signalling.take(&self.signalling, bytes, now) {
            return refused(DropReason::SignallingOnly, None);
        }
        (account.bytes, account.packets) = (own_bytes, own_packets);
        (self.total_bytes, self.total_packets) = (total_bytes, total_packets);
        let before = account.volume;
        account.volume = before.saturating_add(bytes);
        self.total_volume = self.total_volume.saturating_add(bytes);
        let crossed = |mark: u64| before < mark && account.volume >= mark;
        let warning = (quota.volume != u64::MAX && (crossed(quota.volume) || crossed(quota.volume / 5 * 4)))
            .then_some(Warning { resource: Resource::Volume, used: account.volume, limit: quota.volume });
        Charged { result: Ok(()), warning }
    }
}
