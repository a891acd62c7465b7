//! The engine's face: configuration, time, and everything that comes out of it. The way of a packet is in
//! `translate.rs`.

use std::net::{IpAddr, Ipv4Addr};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::{
    Behavior, Claim, Config, ConfigError, Counters, DropReason, Ended, Event, External, InsideId, InsidePort,
    MappingError, MappingInfo, MappingRequest, PortBlock, PortRange, Protocol, Selection, SessionInfo, Side,
    SubscriberInfo, Time, Transmit,
    behavior::{Pooling, Unsolicited},
    fragment::Ready,
    fragments::Fragments,
    generate::{Error, Generator},
    identification::Identifications,
    index::Hasher,
    packed::{Inner, Outer, Spot},
    packet::ipv4,
    remapped::Remapped,
    report::Reports,
    subscribers::key,
    table::{NewMapping, Table},
    tcp::PendingSyns,
};

/// Smallest MTU that IPv4 allows (RFC 791 §3.2).
const MIN_MTU: u16 = 68;
/// Most mappings or sessions: slot numbers are 32 bits wide, with room for a mark.
const MOST_RECORDS: usize = (1 << 31) - 1;

/// The network behind an inside port.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    pub(crate) gateway: Ipv4Addr,
    /// Bits that all addresses there have in common; none of a network of everybody.
    pub(crate) mask: u32,
    pub(crate) mtu: u16,
    /// The host has the gateway's address as well.
    pub(crate) shared: bool,
}

/// A NAT: packets in, verdicts out.
///
/// Hand every packet to [`outbound`](Nat::outbound) or [`inbound`](Nat::inbound) and carry out the verdict; call
/// [`handle_timeout`](Nat::handle_timeout) when the time of [`poll_timeout`](Nat::poll_timeout) has come. After each of
/// these three, or after a batch of them, drain in this order: [`poll_claim`](Nat::poll_claim), where flows are
/// [exported](Nat::export) [`poll_recall`](Nat::poll_recall), then
/// [`poll_transmit`](Nat::poll_transmit), [`poll_event`](Nat::poll_event).
pub struct Nat {
    pub(crate) behavior: Behavior,
    pub(crate) shared: bool,
    pub(crate) outside_mtu: u16,
    /// The ports that may be used at all.
    ports: PortRange,
    pub(crate) inside: Vec<Network>,
    pub(crate) table: Table,
    pub(crate) reports: Reports,
    pub(crate) generator: Generator,
    pub(crate) pending: PendingSyns,
    pub(crate) fragments: Fragments,
    pub(crate) identifications: Identifications,
    /// Fragments that are to be sent.
    pub(crate) ready: Ready,
    pub(crate) rng: ChaCha8Rng,
    /// The latest time seen: a clock that goes back stands still here.
    now: Time,
    more_to_expire: bool,
}

impl Nat {
    /// A NAT without inside ports. `seed` keys the hashes and decides every random choice: the same seed, configuration
    /// and packets give the same results. On a real network it must be secret.
    pub fn new(config: Config, seed: u64) -> Result<Nat, ConfigError> {
        let Config { behavior, external, shared, outside_mtu, ports, limits, report_claims, report_events } =
            config;
        let external = checked_external(&external)?;
        check_mtu(outside_mtu)?;
        let in_bounds = |limit: usize| (1..=MOST_RECORDS).contains(&limit);
        if !in_bounds(limits.mappings) || !in_bounds(limits.sessions) {
            return Err(ConfigError::BadLimits);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hasher = Hasher::new(rng.next_u64(), rng.next_u64());
        let mut table = Table::new(hasher, limits, &behavior);
        external.into_iter().for_each(|addr| table.add_address(addr, &mut rng));
        Ok(Nat {
            behavior,
            shared,
            outside_mtu,
            ports,
            inside: Vec::new(),
            table,
            reports: Reports::new(report_events, report_claims),
            generator: Generator::new(),
            pending: PendingSyns::new(),
            fragments: Fragments::new(hasher),
            identifications: Identifications::new(hasher),
            ready: Ready::default(),
            rng,
            now: Time::ZERO,
            more_to_expire: false,
        })
    }

    /// Adds a side with hosts.
    pub fn add_inside(&mut self, port: InsidePort) -> Result<InsideId, ConfigError> {
        check_mtu(port.mtu)?;
        let IpAddr::V4(gateway) = port.gateway else { return Err(ConfigError::NotV4(port.gateway)) };
        if port.prefix_len > 32 {
            return Err(ConfigError::BadPrefix(port.prefix_len));
        }
        if self.table.is_external(gateway) {
            return Err(ConfigError::ExternalGateway(port.gateway));
        }
        let id = u16::try_from(self.inside.len()).map_err(|_| ConfigError::TooManyInsidePorts)?;
        self.inside.push(Network {
            gateway,
            mask: u32::MAX.checked_shl(32 - u32::from(port.prefix_len)).unwrap_or(0),
            mtu: port.mtu,
            shared: port.shared,
        });
        Ok(InsideId(id))
    }

    // ---- Time ----

    #[inline]
    pub(crate) fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    /// Does what is due: expiry, and answers to SYNs that nobody asked for. One call does a bounded amount of work;
    /// [`poll_timeout`](Nat::poll_timeout) says when it wants the next.
    pub fn handle_timeout(&mut self, now: Time) {
        let now = self.advance(now);
        self.more_to_expire = self.table.expire(now, &mut self.reports);
        let waited = self.fragments.expire(now);
        self.reports.drop_many(DropReason::FragmentOrphan, waited);
        while let Some(syn) = self.pending.pop(now) {
            let source = syn.external.spot().addr;
            if !self.table.is_external(source) {
                continue;
            }
            self.send_error((Side::Outside, source), Error::PortUnreachable, syn.quote(), now);
        }
    }

    /// When [`handle_timeout`](Nat::handle_timeout) wants to be called; `None` when nothing is pending.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.more_to_expire {
            return Some(self.now);
        }
        [self.table.next_expiry(), self.pending.next(), self.fragments.next()].into_iter().flatten().min()
    }

    // ---- What comes out ----

    /// A port taken or given back, for a guard; to be drained before packets leave. Empty unless the configuration
    /// asks for claims.
    pub fn poll_claim(&mut self) -> Option<Claim> {
        self.reports.poll_claim()
    }

    /// A packet of the NAT's own making, or a fragment that is to follow another.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.generator.poll().or_else(|| self.ready.poll())
    }

    /// Forgets what is known of fragments; those that wait are lost.
    fn forget_fragments(&mut self) {
        let waited = self.fragments.clear();
        self.reports.drop_many(DropReason::FragmentOrphan, waited);
    }

    /// Something that happened to the NAT's state. Empty unless the configuration asks for events; beyond 65,536 that
    /// nobody takes, events are lost and counted.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.reports.poll_event()
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.reports.counters
    }

    // ---- Mappings by name ----

    /// Makes a mapping that lets everybody in: a static forward, or what a port-mapping protocol asks for. It never
    /// shares its external endpoint. A second request for what already stands renews its lifetime and leaves its
    /// sessions alone; one for another external endpoint is refused. A mapping that the inside endpoint has by itself
    /// is replaced. When it fails nothing has changed.
    pub fn add_mapping(&mut self, request: MappingRequest, now: Time) -> Result<External, MappingError> {
        let now = self.advance(now);
        let MappingRequest { protocol, inside, address, port, until } = request;
        if self.inside.len() <= inside.port.0.into() {
            return Err(MappingError::NoSuchInside(inside.port));
        }
        let Some(inner) = Inner::from_public(inside) else {
            return Err(MappingError::NotV4(inside.endpoint.addr));
        };
        let Spot { addr: host, .. } = inner.spot();
        if !ipv4::is_host(host) || self.is_broadcast(inside.port, host) {
            return Err(MappingError::NotAHost(host.into()));
        }
        if self.is_own(host) {
            return Err(MappingError::OwnAddress(host.into()));
        }
        let anybody = Outer::anybody(protocol);
        let standing = self.table.find_mapping(inner, anybody, now, &mut self.reports);
        if let Some(slot) = standing {
            let external = self.table.mapping(slot).external;
            let Spot { addr: own, port: held } = external.spot();
            let is_same = address.is_none_or(|addr| addr == own) && (port == 0 || port == held);
            let (_, holders) = self.table.find_external(external, now, &mut self.reports);
            if is_same && holders == 1 {
                self.table.hold_until(slot, until);
                return Ok(External(external.public()));
            }
        }
        let number = match address {
            Some(addr) => {
                let is_it = |own: &Ipv4Addr| IpAddr::V4(*own) == addr;
                self.table.addresses().iter().position(is_it).ok_or(MappingError::NotOurs(addr))?
            }
            None => self.paired_address(inner),
        };
        let external = if port == 0 {
            let exclusive = Behavior { overloading: false, ..self.behavior.clone() };
            let range = self.range();
            self.table
                .choose_external(&exclusive, (inner, anybody), (number, range), &mut self.rng, now)
                .ok_or(MappingError::PortsExhausted)?
        } else {
            Outer::new(protocol, Spot { addr: self.table.addresses()[number], port })
        };
        if self.table.is_reserved(protocol, external.spot().port) {
            return Err(MappingError::Reserved(external.spot().port));
        }
        let (holders, count) = self.table.find_external(external, now, &mut self.reports);
        if count > 0 {
            return Err(MappingError::Taken(self.table.mapping(holders[0]).inner.public()));
        }
        if let Some(slot) = standing {
            let mapping = self.table.mapping(slot);
            if mapping.is_static {
                return Err(MappingError::Forwarded(External(mapping.external.public())));
            }
            self.table.end_mapping(slot, Ended::Removed, now, &mut self.reports);
        }
        let new =
            NewMapping { inner, external, remote: anybody, is_static: true, expires: until, limit: until };
        self.table.insert_mapping(new, now, &mut self.reports).ok_or(MappingError::TableFull)?;
        Ok(External(external.public()))
    }

    /// Removes the mappings that `selection` selects, with their sessions; returns how many.
    pub fn flush(&mut self, selection: &Selection, now: Time) -> usize {
        let now = self.advance(now);
        let slots: Vec<u32> = self
            .table
            .mapping_slots()
            .filter(|(_, mapping)| selection.selects(mapping))
            .map(|(slot, _)| slot)
            .collect();
        for slot in &slots {
            self.table.end_mapping(*slot, Ended::Removed, now, &mut self.reports);
        }
        if (selection.protocol, selection.host, selection.external_port) == (None, None, None) {
            self.table.strays.clear();
        }
        self.forget_fragments();
        slots.len()
    }

    /// Every mapping, in no particular order; expired ones that have not been given back yet are left out.
    pub fn mappings(&self) -> impl Iterator<Item = MappingInfo> + '_ {
        self.table.mapping_slots().map(|(_, mapping)| mapping).filter(|mapping| mapping.expires > self.now)
    }

    /// Every session, in no particular order; expired ones that have not been given back yet are left out.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.table.sessions().filter(|session| session.expires > self.now)
    }

    /// How many mappings the table holds.
    pub fn mapping_count(&self) -> usize {
        self.table.mapping_count()
    }

    /// How many sessions the table holds.
    pub fn session_count(&self) -> usize {
        self.table.session_count()
    }

    /// How many external ports rest before another mapping may have them.
    pub fn resting_count(&self) -> usize {
        self.table.resting_count()
    }

    /// How many port blocks subscribers have.
    pub fn block_count(&self) -> usize {
        self.table.block_count()
    }

    /// The port blocks that subscribers have, in no particular order.
    pub fn blocks(&self) -> impl Iterator<Item = PortBlock> + '_ {
        self.table.blocks()
    }

    /// How many subscribers hold mappings, or have too lately to be forgotten; 0 while no axis limits them.
    pub fn subscriber_count(&self) -> usize {
        self.table.subscriber_count()
    }

    /// Whether an axis asks for subscribers to be counted.
    pub fn counts_subscribers(&self) -> bool {
        self.table.counts_subscribers()
    }

    /// The subscribers that are counted, in no particular order.
    pub fn subscribers(&self) -> impl Iterator<Item = SubscriberInfo> + '_ {
        self.table.subscribers()
    }

    // ---- Changes while it runs ----

    /// How the NAT behaves now.
    pub fn behavior(&self) -> &Behavior {
        &self.behavior
    }

    /// Behaves otherwise from now on. Mappings and sessions stay; timers that are running keep their deadlines.
    pub fn set_behavior(&mut self, behavior: Behavior) {
        let filter = |of: &Behavior| (of.filtering, of.tcp_filtering, of.filter_scope, of.filter_protocol);
        if filter(&behavior) != filter(&self.behavior) {
            self.table.set_filter(&behavior);
        }
        if behavior.ports != self.behavior.ports {
            // It begins with the mappings that are made from now on.
            self.table.remapped = Remapped::new(behavior.ports);
        }
        if behavior.unsolicited == Unsolicited::Forget {
            self.table.strays.clear();
        }
        if behavior.fragments != self.behavior.fragments {
            self.forget_fragments();
        }
        self.table.exports.replace_all();
        self.table.set_mapping(&behavior);
        self.table.set_carrier(&behavior, self.now, &mut self.reports);
        self.behavior = behavior;
    }

    /// The external addresses, sorted.
    pub fn external(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.table.addresses().iter().map(|addr| IpAddr::V4(*addr))
    }

    /// Uses these external addresses from now on; mappings on addresses that are gone end.
    pub fn set_external(&mut self, external: Vec<IpAddr>, now: Time) -> Result<(), ConfigError> {
        let external = checked_external(&external)?;
        if let Some(network) = self.inside.iter().find(|network| external.contains(&network.gateway)) {
            return Err(ConfigError::ExternalGateway(network.gateway.into()));
        }
        let now = self.advance(now);
        let is_gone = |addr: &Ipv4Addr| !external.contains(addr);
        let gone: Vec<Ipv4Addr> = self.table.addresses().iter().copied().filter(is_gone).collect();
        for addr in gone {
            self.table.remove_address(addr, now, &mut self.reports);
        }
        self.forget_fragments();
        // What has gone to a remote may be a hairpin from now on.
        self.table.exports.replace_all();
        external.into_iter().for_each(|addr| self.table.add_address(addr, &mut self.rng));
        Ok(())
    }

    /// Names the ports that the host holds itself on a shared address: no mapping gets them from now on. Replaces what
    /// was said before.
    pub fn set_reserved(&mut self, protocol: Protocol, ports: &[u16]) {
        self.table.set_reserved(protocol, ports);
    }

    // ---- External endpoints ----

    /// An external endpoint for a new mapping (RFC 4787 REQ-2, REQ-3). ICMP identifiers have no range to keep to, unless
    /// they come from blocks.
    pub(crate) fn choose_external(&mut self, inner: Inner, remote: Outer) -> Option<Outer> {
        let has_blocks = self.table.has_blocks();
        let is_free = remote.protocol() == Protocol::Icmp && !has_blocks;
        let range = if is_free { PortRange::ALL } else { self.range() };
        let count = self.table.addresses().len();
        let (first, tries) = match self.behavior.pooling {
            Pooling::Paired => (self.paired_address(inner), 1),
            Pooling::Arbitrary => {
                let any = ((u64::from(self.rng.next_u32()) * count as u64) >> 32) as usize;
                // Where it has a block already, so that it does not get one on every address.
                let home = if has_blocks { self.table.block_address(inner) } else { None };
                (home.unwrap_or(any), count)
            }
        };
        for i in 0..tries {
            let number = if first + i < count { first + i } else { first + i - count };
            let (wanted, place) = ((inner, remote), (number, range));
            let chosen = self.table.choose_external(&self.behavior, wanted, place, &mut self.rng, self.now);
            if chosen.is_some() {
                return chosen;
            }
        }
        None
    }

    /// The external ports that may be used at all; the behaviour's range chooses among them.
    pub fn ports(&self) -> PortRange {
        self.ports
    }

    fn range(&self) -> PortRange {
        self.behavior.port_range.intersect(self.ports).unwrap_or(self.ports)
    }

    /// The number of the address that a subscriber keeps: subscribers are spread over the pool by their own addresses,
    /// so that no state is needed and the pairing outlives a restart.
    fn paired_address(&self, inner: Inner) -> usize {
        let subscriber = key(inner, self.behavior.subscriber_prefix);
        let host = (subscriber >> 32) as u32 ^ (subscriber as u32) << 16;
        let spread = u64::from(host).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> 32) as usize % self.table.addresses().len()
    }
}

impl std::fmt::Debug for Nat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nat")
            .field("mappings", &self.mapping_count())
            .field("sessions", &self.session_count())
            .finish_non_exhaustive()
    }
}

fn check_mtu(mtu: u16) -> Result<(), ConfigError> {
    if mtu < MIN_MTU { Err(ConfigError::MtuTooSmall(mtu)) } else { Ok(()) }
}

fn checked_external(external: &[IpAddr]) -> Result<Vec<Ipv4Addr>, ConfigError> {
    if external.is_empty() {
        return Err(ConfigError::NoExternal);
    }
    let mut checked = Vec::with_capacity(external.len());
    for addr in external {
        let IpAddr::V4(v4) = addr else { return Err(ConfigError::NotV4(*addr)) };
        if v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast() {
            return Err(ConfigError::BadExternal(*addr));
        }
        if checked.contains(v4) {
            return Err(ConfigError::DuplicateExternal(*addr));
        }
        checked.push(*v4);
    }
    Ok(checked)
}
