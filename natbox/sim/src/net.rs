//! The net's face: what it is built from, the packets that go in and come out, and its clock.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
};

use natbox_core::{Time, packet::ipv4};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::{
    Attachment, BuildError, Captured, Datagram, Direction, HostId, Input, LinkConditions, LinkId, NatConfig,
    NatId, NetworkId, Point, RouterId, SendError, Tap, TapId,
    agenda::{Agenda, Pool, What},
    digest::Digest,
    host::{Host, Interface, Ports},
    link::{Link, Owner},
    nat::NatState,
    network::{Gateway, Network, Routes, WordMap, check_network, check_overlap},
    packet,
    slab::{Key, Slab},
    tap::Capture,
};

/// The internet's own network: where addresses are taken from when none is asked for.
const INTERNET: (Ipv4Addr, u8) = (Ipv4Addr::new(11, 0, 0, 1), 8);

/// What has happened in the whole net so far, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent by hosts.
    pub sent: u64,
    /// Reached a host and were handed over, or wait for it.
    pub delivered: u64,
    /// To an address that nobody has.
    pub no_route: u64,
    /// To a host or by a link that was removed meanwhile.
    pub gone: u64,
    /// Ran out of hops at a router; NATs count their own.
    pub ttl_exceeded: u64,
    /// Swallowed by a path that is blocked, or lossy.
    pub blocked: u64,
    /// To a port that a strict host has not bound.
    pub port_closed: u64,
    /// For a NAT's own address, with nothing there to take them.
    pub for_gateway: u64,
    /// Not forwarded by a NAT; its own counters say why.
    pub refused_by_nat: u64,
    /// With a wrong checksum at their destination.
    pub damaged: u64,
    /// Dropped because four million packets were on their way already.
    pub overflow: u64,
    /// Echo requests that hosts answered.
    pub echoes: u64,
}

/// An internet in memory. [The crate's page](crate) tells how it works.
///
/// Put packets in with [`send`](Net::send); call [`handle_timeout`](Net::handle_timeout) when the time of
/// [`poll_timeout`](Net::poll_timeout) has come; after either, take what reached hosts from
/// [`poll_deliver`](Net::poll_deliver) until there is nothing left.
pub struct Net {
    pub(crate) now: Time,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) networks: Slab<Network>,
    pub(crate) hosts: Slab<Host>,
    pub(crate) links: Slab<Link>,
    pub(crate) routes: Routes,
    pub(crate) ports: Ports,
    /// Pairs of addresses between which the internet loses packets, by direction, and how many: 1 for all.
    pub(crate) blocks: WordMap<f64>,
    pub(crate) agenda: Agenda,
    pub(crate) packets: Pool,
    /// What has reached hosts and waits to be taken.
    pub(crate) ready: VecDeque<(Key, u32)>,
    /// The packet that the last `poll_deliver` lent out.
    lent: Option<u32>,
    pub(crate) counters: Counters,
    pub(crate) digest: Digest,
    captures: Vec<Capture>,
    seed: u64,
}

impl Net {
    /// An internet with nothing in it. `seed` decides everything that is random: loss, jitter, ports, NATs' choices.
    pub fn new(seed: u64) -> Net {
        let mut networks = Slab::new();
        networks.insert(Network::new(Gateway::None, (Key::FIRST, Key::FIRST), INTERNET));
        Net {
            now: Time::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            networks,
            hosts: Slab::new(),
            links: Slab::new(),
            routes: Routes::default(),
            ports: Ports::default(),
            blocks: WordMap::default(),
            agenda: Agenda::new(),
            packets: Pool::new(),
            ready: VecDeque::new(),
            lent: None,
            counters: Counters::default(),
            digest: Digest::new(),
            captures: Vec::new(),
            seed,
        }
    }

    /// The seed that this net was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A seed for something else that is part of the same run, such as a node: drawn from the net's own, so that one
    /// seed decides everything.
    pub fn next_seed(&mut self) -> u64 {
        self.rng.next_u64()
    }

    // ---- Building ----

    /// Adds a host.
    pub fn add_host(
        &mut self,
        at: impl Into<NetworkId>,
        attachment: impl Into<Attachment>,
    ) -> Result<HostId, BuildError> {
        if !self.hosts.has_room() {
            return Err(BuildError::Full);
        }
        let host = self.hosts.insert(Host { interfaces: Vec::new(), is_raw: false, is_strict: false });
        match self.attach(host, at.into(), attachment.into()) {
            Ok(interface) => {
                if let Some(record) = self.hosts.get_mut(host) {
                    record.interfaces = vec![interface];
                }
                Ok(HostId(host))
            }
            Err(error) => {
                self.hosts.remove(host);
                Err(error)
            }
        }
    }

    /// Gives a host another address with a link of its own, there or in another network; returns the address.
    pub fn add_interface(
        &mut self,
        host: HostId,
        at: impl Into<NetworkId>,
        attachment: impl Into<Attachment>,
    ) -> Result<Ipv4Addr, BuildError> {
        if self.hosts.get(host.0).is_none() {
            return Err(BuildError::NoSuchHost(host));
        }
        let interface = self.attach(host.0, at.into(), attachment.into())?;
        if let Some(record) = self.hosts.get_mut(host.0) {
            record.interfaces.push(interface);
        }
        Ok(interface.address)
    }

    /// Adds a NAT; hosts, and further NATs, attach to what it returns.
    pub fn add_nat(&mut self, at: impl Into<NetworkId>, config: NatConfig) -> Result<NatId, BuildError> {
        let at = at.into();
        check_network(config.gateway, config.prefix_len)?;
        config.check()?;
        let external = match config.external.len() {
            0 => (0..config.pool.max(1)).map(|_| self.free_address(at)).collect::<Result<Vec<_>, _>>()?,
            _ => config.external.clone(),
        };
        check_overlap(&external, (config.gateway, config.prefix_len))?;
        external.iter().try_for_each(|addr| self.check_address(at, *addr))?;
        let state = NatState::new(&config, external.clone(), self.rng.next_u64());
        let gateway = Gateway::Nat(Box::new(state));
        let network = self.add_gateway(at, gateway, (config.gateway, config.prefix_len), config.link)?;
        if let Err(error) = self.set_routes(network, &external) {
            self.remove_gateway(network);
            return Err(error);
        }
        Ok(NatId(network))
    }

    /// Adds a router with a network of public addresses behind it, `gateway`/`prefix_len`, of which `gateway` is its
    /// own: a site whose hosts share one link.
    pub fn add_router(
        &mut self,
        at: impl Into<NetworkId>,
        (gateway, prefix_len): (Ipv4Addr, u8),
        link: impl Into<LinkConditions>,
    ) -> Result<RouterId, BuildError> {
        check_network(gateway, prefix_len)?;
        self.add_gateway(at.into(), Gateway::Router, (gateway, prefix_len), link.into()).map(RouterId)
    }

    fn add_gateway(
        &mut self,
        at: NetworkId,
        gateway: Gateway,
        address: (Ipv4Addr, u8),
        link: LinkConditions,
    ) -> Result<Key, BuildError> {
        link.check()?;
        let parent = self.networks.get_mut(at.0).ok_or(BuildError::NoSuchNetwork(at))?;
        if !self.links.has_room() {
            return Err(BuildError::Full);
        }
        parent.members += 1;
        let network = self.networks.insert(Network::new(gateway, (at.0, Key::FIRST), address));
        let uplink = self.links.insert(Link::new(Owner::Gateway(network), at.0, link));
        if let Some(record) = self.networks.get_mut(network) {
            record.uplink = uplink;
        }
        Ok(network)
    }

    pub(crate) fn attach(
        &mut self,
        host: Key,
        at: NetworkId,
        attachment: Attachment,
    ) -> Result<Interface, BuildError> {
        attachment.link.check()?;
        let address = match attachment.address {
            Some(addr) => addr,
            None => self.free_address(at)?,
        };
        self.check_address(at, address)?;
        if !self.links.has_room() {
            return Err(BuildError::Full);
        }
        let link = self.links.insert(Link::new(Owner::Host(host), at.0, attachment.link));
        if let Err(error) = self.add_route(at.0, address, link) {
            self.links.remove(link);
            return Err(error);
        }
        if let Some(network) = self.networks.get_mut(at.0) {
            network.members += 1;
        }
        Ok(Interface { address, network: at.0, link })
    }

    // ---- Packets and time ----

    /// Sends a datagram from a host, as a socket call would.
    pub fn send(&mut self, host: HostId, datagram: Datagram<'_>, now: Time) -> Result<(), SendError> {
        let interface = self.outlet(host, datagram.from)?;
        let IpAddr::V4(to) = datagram.to.ip() else { return Err(SendError::NotV4(datagram.to)) };
        let mtu = self.links.get(interface.link).map_or(0, |link| link.pipe(Direction::Up).conditions.mtu);
        let len = packet::UDP_HEADERS + datagram.payload.len();
        if len > mtu.into() {
            return Err(SendError::TooBig { len, mtu });
        }
        let (from, to) = ((interface.address, datagram.from.port()), (to, datagram.to.port()));
        self.emit(host, interface, now, |buffer| {
            packet::write_udp(buffer, from, to, datagram.ttl, datagram.payload);
        });
        Ok(())
    }

    /// Sends a whole IPv4 packet from a host. Its source decides on the interface where it is one of the host's;
    /// anything else leaves by the first: hosts can forge.
    pub fn send_packet(&mut self, host: HostId, bytes: &[u8], now: Time) -> Result<(), SendError> {
        let record = self.hosts.get(host.0).ok_or(SendError::NoSuchHost(host))?;
        let header = ipv4::parse(bytes).map_err(|_| SendError::Malformed)?;
        let interface = record.interface(header.source).or_else(|| record.interface(Ipv4Addr::UNSPECIFIED));
        let interface = interface.ok_or(SendError::NoSuchHost(host))?;
        let mtu = self.links.get(interface.link).map_or(0, |link| link.pipe(Direction::Up).conditions.mtu);
        if header.total_len > mtu.into() {
            return Err(SendError::TooBig { len: header.total_len, mtu });
        }
        self.emit(host, interface, now, |buffer| buffer.extend_from_slice(&bytes[..header.total_len]));
        Ok(())
    }

    fn emit(&mut self, host: HostId, from: Interface, now: Time, write: impl FnOnce(&mut Vec<u8>)) {
        self.advance(now);
        let Some(packet) = self.packets.take() else {
            self.counters.overflow += 1;
            return;
        };
        write(self.packets.buffer(packet));
        self.counters.sent += 1;
        self.digest.word(self.now.as_nanos());
        self.digest.bytes(self.packets.bytes(packet));
        self.see(Point::Sent(host), packet);
        self.transmit(from.link, Direction::Up, packet);
    }

    /// The next thing that reached a host until `now`; after `None` there is nothing more before
    /// [`poll_timeout`](Net::poll_timeout). What it lends is taken back at the next call.
    pub fn poll_deliver(&mut self, now: Time) -> Option<(HostId, Input<'_>)> {
        if let Some(packet) = self.lent.take() {
            self.packets.give(packet);
        }
        self.advance(now);
        let (host, packet) = loop {
            let (host, packet) = self.ready.pop_front()?;
            if self.hosts.get(host).is_some() {
                break (host, packet);
            }
            self.counters.gone += 1;
            self.packets.give(packet);
        };
        self.lent = Some(packet);
        let is_raw = self.hosts.get(host).is_some_and(|host| host.is_raw);
        let bytes = self.packets.bytes(packet);
        // It was read when it came, so it reads now.
        Some((HostId(host), packet::read(bytes, is_raw).unwrap_or(Input::Packet(bytes))))
    }

    /// When something happens next; `None` when nothing is on its way.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.ready.is_empty() { self.agenda.next() } else { Some(self.now) }
    }

    /// Lets everything happen that is due until `now`, each at its own time: it makes no difference how often this is
    /// called. A clock that goes back stands still here. [`Time::NEVER`] stands for whatever is still to happen.
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
    }

    pub(crate) fn advance(&mut self, now: Time) {
        while let Some((at, what)) = self.agenda.pop(now) {
            self.now = self.now.max(at);
            match what {
                What::Arrive { link, direction, packet } => self.arrive(link, direction, packet),
                What::NatTimer { network } => self.nat_timer(network, at),
            }
        }
        if now != Time::NEVER {
            self.now = self.now.max(now);
        }
    }

    // ---- What is there ----

    /// The time that the net has reached.
    pub fn now(&self) -> Time {
        self.now
    }

    /// The host's first address.
    pub fn address(&self, host: HostId) -> Option<Ipv4Addr> {
        Some(self.hosts.get(host.0)?.interfaces.first()?.address)
    }

    /// All of the host's addresses.
    pub fn addresses(&self, host: HostId) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.hosts.get(host.0).into_iter().flat_map(|host| host.interfaces.iter()).map(|i| i.address)
    }

    /// The link of one of the host's addresses; an unspecified address stands for the first.
    pub fn host_link(&self, host: HostId, addr: Ipv4Addr) -> Option<LinkId> {
        self.hosts.get(host.0)?.interface(addr).map(|interface| LinkId(interface.link))
    }

    /// The link of a NAT or router to the network above it; the internet has none.
    pub fn uplink(&self, gateway: impl Into<NetworkId>) -> Option<LinkId> {
        let network = self.networks.get(gateway.into().0)?;
        (!matches!(network.gateway, Gateway::None)).then_some(LinkId(network.uplink))
    }

    /// What has happened in the whole net.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many packets are on their way or wait to be taken.
    pub fn in_flight(&self) -> usize {
        self.packets.in_use()
    }

    /// A fingerprint of every packet sent and of what became of it, where and when: two runs with the same were the
    /// same run.
    pub fn digest(&self) -> u64 {
        self.digest.value()
    }

    // ---- Taps ----

    /// Listens at a place from now on, and keeps the last `capacity` packets.
    pub fn tap(&mut self, tap: Tap, capacity: usize) -> TapId {
        self.captures.push(Capture::new(tap, capacity));
        TapId(self.captures.len() - 1)
    }

    /// What a tap has kept, the oldest first.
    pub fn captured(&self, tap: TapId) -> impl Iterator<Item = Captured<'_>> {
        self.captures.get(tap.0).into_iter().flat_map(Capture::iter)
    }

    /// How many packets a tap has seen and keeps no more, because newer ones took their place.
    pub fn forgotten(&self, tap: TapId) -> u64 {
        self.captures.get(tap.0).map_or(0, |capture| capture.forgotten)
    }

    pub(crate) fn see(&mut self, at: Point, packet: u32) {
        for capture in &mut self.captures {
            capture.see(self.now, at, self.packets.bytes(packet));
        }
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("seed", &self.seed).field("now", &self.now).finish_non_exhaustive()
    }
}
