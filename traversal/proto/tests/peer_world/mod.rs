//! Peers with their agents on a simulated internet, and a hub that reflects and relays, with real delays.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part of this")]

mod call;
mod hub;
mod node;

use std::{net::SocketAddr, time::Duration};

use natbox_sim::{
    Attachment, Behavior, Conditions, HostId, NatConfig, NatId, NetworkId, Node, Sim, Time as SimTime,
};
use traversal_proto::{
    Time,
    peer::{Config, Event, Hop, PeerKey, Policy, Role},
    wire::stun::CheckKey,
};

pub use hub::Hub;
pub use node::Peer;

pub const INTERNET: NetworkId = NetworkId::INTERNET;
pub const HUB_PORTS: [u16; 2] = [3478, 3479];

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn behavior(axes: &str) -> Behavior {
    let mut behavior = Behavior::RFC;
    for axis in axes.split_whitespace() {
        let (name, value) = axis.split_once('=').unwrap();
        behavior.set(name, value).unwrap();
    }
    behavior
}

/// What runs on a host of the world.
pub enum Host {
    Hub(Hub),
    Peer(Box<Peer>),
}

impl Node for Host {
    fn handle_input(&mut self, input: natbox_sim::Input<'_>, now: SimTime) {
        let natbox_sim::Input::Datagram(datagram) = input else { return };
        match self {
            Host::Hub(hub) => hub.handle(datagram),
            Host::Peer(peer) => peer.handle(datagram, Time::from_nanos(now.as_nanos())),
        }
    }

    fn handle_timeout(&mut self, now: SimTime) {
        if let Host::Peer(peer) = self {
            peer.handle_timeout(Time::from_nanos(now.as_nanos()));
        }
    }

    fn poll_transmit(&mut self, _now: SimTime) -> Option<natbox_sim::Transmit> {
        match self {
            Host::Hub(hub) => hub.out.pop_front(),
            Host::Peer(peer) => peer.out.pop_front(),
        }
    }

    fn poll_timeout(&self) -> Option<SimTime> {
        match self {
            Host::Hub(_) => None,
            Host::Peer(peer) => peer.deadline().map(|due| SimTime::from_nanos(due.as_nanos())),
        }
    }
}

pub struct World {
    pub sim: Sim<Host>,
    pub hub: HostId,
    pub reflectors: Vec<SocketAddr>,
    pub peers: Vec<HostId>,
}

impl World {
    /// A hub with two addresses of two ports each, at the end of this link.
    pub fn new(seed: u64, link: Conditions) -> World {
        let mut sim = Sim::new(seed);
        let hub = sim.net.add_host(INTERNET, link).unwrap();
        sim.net.add_interface(hub, INTERNET, link).unwrap();
        let addresses: Vec<_> = sim.net.addresses(hub).collect();
        let reflectors: Vec<SocketAddr> =
            addresses.iter().flat_map(|ip| HUB_PORTS.map(|port| (*ip, port).into())).collect();
        sim.add_node(hub, Host::Hub(Hub::new(addresses)));
        World { sim, hub, reflectors, peers: Vec::new() }
    }

    /// Two peers behind a NAT each; the link is the NATs'.
    pub fn pair(
        seed: u64,
        behaviors: [&Behavior; 2],
        link: Conditions,
        config: &Config,
    ) -> (World, [NatId; 2]) {
        let mut world = World::new(seed, Conditions::PERFECT);
        let nats = behaviors.map(|behavior| {
            let nat = NatConfig { link: link.into(), ..NatConfig::new(behavior.clone()) };
            let nat = world.sim.net.add_nat(INTERNET, nat).unwrap();
            world.add_peer(nat, Conditions::PERFECT, config);
            nat
        });
        (world, nats)
    }

    pub fn add_peer(
        &mut self,
        at: impl Into<NetworkId>,
        link: impl Into<Attachment>,
        config: &Config,
    ) -> usize {
        self.add_peer_with(at, link, config, 1)
    }

    pub fn add_peer_with(
        &mut self,
        at: impl Into<NetworkId>,
        link: impl Into<Attachment>,
        config: &Config,
        sockets: u16,
    ) -> usize {
        let index = self.peers.len();
        let host = self.start_peer(index, at, link, config, sockets);
        self.peers.push(host);
        index
    }

    /// Starts the peer of this index on a host of its own.
    pub fn start_peer(
        &mut self,
        index: usize,
        at: impl Into<NetworkId>,
        link: impl Into<Attachment>,
        config: &Config,
        sockets: u16,
    ) -> HostId {
        let host = self.sim.net.add_host(at, link).unwrap();
        let ip = self.sim.net.address(host).unwrap();
        let seed = self.sim.net.next_seed();
        let now = self.now();
        let peer = Peer::new(index as u8, ip, &self.reflectors, config.clone(), seed, sockets, now);
        self.sim.add_node(host, Host::Peer(Box::new(peer)));
        host
    }

    pub fn now(&self) -> Time {
        Time::from_nanos(self.sim.now().as_nanos())
    }

    pub fn peer(&self, index: usize) -> &Peer {
        peer(&self.sim, self.peers[index])
    }

    pub fn with<R>(&mut self, index: usize, call: impl FnOnce(&mut Peer, Time) -> R) -> R {
        self.with_host(self.peers[index], call)
    }

    pub fn with_host<R>(&mut self, host: HostId, call: impl FnOnce(&mut Peer, Time) -> R) -> R {
        let call = |host: &mut Host, now: SimTime| match host {
            Host::Peer(peer) => {
                let now = Time::from_nanos(now.as_nanos());
                let result = call(peer, now);
                peer.drain(now);
                result
            }
            Host::Hub(_) => panic!("a hub"),
        };
        self.sim.with(host, call).unwrap()
    }

    /// The peers' QUIC connection is made over the relay: the acceptor's end stands half a round trip later.
    pub fn connect(&mut self, a: usize, b: usize, rtt: Duration) {
        self.connect_with(a, b, rtt, [Policy::PreferDirect; 2]);
    }

    pub fn connect_with(&mut self, a: usize, b: usize, rtt: Duration, policies: [Policy; 2]) {
        let key = check_key(a as u8, b as u8);
        let ends = [(a, b, Role::Initiator), (b, a, Role::Acceptor)];
        for ((at, to, role), policy) in ends.into_iter().zip(policies) {
            let key = key.clone();
            self.with(at, |peer, now| {
                peer.agent.handle_peer(PeerKey(to as u32), role, key, policy, now);
                peer.agent.handle_relay(PeerKey(to as u32), true, Some(rtt), now);
            });
            if role == Role::Initiator {
                // The acceptor's end stands just before the first message comes.
                self.sim.run_for(rtt / 2 - ms(1));
            }
        }
    }

    /// Longest time without a new packet at each end.
    pub fn gaps(&self, a: usize, b: usize) -> [Duration; 2] {
        [self.peer(a).streams[&(b as u8)].gap, self.peer(b).streams[&(a as u8)].gap]
    }

    pub fn reset_gaps(&mut self, a: usize, b: usize) {
        self.with(a, |peer, _| peer.reset_gap(b));
        self.with(b, |peer, _| peer.reset_gap(a));
    }

    pub fn is_direct(&self, at: usize, to: usize) -> bool {
        self.peer(at).is_direct(to)
    }

    /// Runs until both send to each other directly, or for this long.
    pub fn run_until_direct(&mut self, a: usize, b: usize, most: Duration) -> bool {
        let hosts = [(self.peers[a], b), (self.peers[b], a)];
        let deadline = self.sim.now() + most;
        self.sim
            .run_until_true(deadline, |sim| hosts.iter().all(|(host, to)| peer(sim, *host).is_direct(*to)))
    }

    /// Runs until this holds for each of the first two peers towards the other, until `deadline`, or until hosts have
    /// sent `most` packets; true when it holds.
    pub fn run_until_both(
        &mut self,
        deadline: SimTime,
        most: u64,
        is_reached: impl Fn(&Peer, usize) -> bool,
    ) -> bool {
        let hosts = [(self.peers[0], 1), (self.peers[1], 0)];
        let is_so = |sim: &Sim<Host>| hosts.iter().all(|(host, other)| is_reached(peer(sim, *host), *other));
        self.sim.run_until_true(deadline, |sim| is_so(sim) || sim.net.counters().sent > most);
        is_so(&self.sim)
    }

    /// Runs until neither sends directly.
    pub fn run_until_relayed(&mut self, a: usize, b: usize, most: Duration) -> bool {
        let hosts = [(self.peers[a], b), (self.peers[b], a)];
        let deadline = self.sim.now() + most;
        self.sim
            .run_until_true(deadline, |sim| hosts.iter().all(|(host, to)| !peer(sim, *host).is_direct(*to)))
    }

    /// What the peers did, for a test that has failed.
    pub fn story(&self) -> String {
        let mut story = String::new();
        for host in &self.peers {
            let peer = peer(&self.sim, *host);
            story += &format!("\npeer {}: {:?}\n", peer.id, peer.agent.counters());
            let events = peer.events.iter().map(|(time, event)| (*time, format!("{event:?}")));
            let sent = peer.transmits.iter().map(|(time, to, hops)| {
                let way = hops.map_or(String::new(), |hops| format!(", {hops} hops"));
                (*time, format!("sends to {to}{way}"))
            });
            let mut all: Vec<_> = events.chain(sent).collect();
            all.sort_by_key(|(time, _)| *time);
            all.iter().for_each(|(time, what)| story += &format!("  {time} {what}\n"));
        }
        story
    }

    /// Both send a packet this often from now on.
    pub fn stream(&mut self, a: usize, b: usize, every: Duration) {
        for (at, to) in [(a, b), (b, a)] {
            self.with(at, |peer, now| peer.stream(to, every, now));
        }
    }
}

fn peer(sim: &Sim<Host>, host: HostId) -> &Peer {
    match sim.node(host).unwrap() {
        Host::Peer(peer) => peer,
        Host::Hub(_) => panic!("a hub"),
    }
}

/// The key of the checks of two peers, of whom the first has called.
fn check_key(initiator: u8, acceptor: u8) -> CheckKey {
    CheckKey::new(&[initiator + 16 * acceptor; 32])
}

pub fn is_direct(hop: Hop) -> bool {
    matches!(hop, Hop::Direct { .. })
}

pub fn switches(events: &[(Time, Event)]) -> impl Iterator<Item = (Time, Option<Hop>)> {
    events.iter().filter_map(|(time, event)| match event {
        Event::Switched { to, .. } => Some((*time, *to)),
        _ => None,
    })
}
