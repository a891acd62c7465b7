//! The internet, and who is on it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use natbox_sim::{Behavior, BuildError, Conditions, HostId, Input, NatConfig, NatId, Net, NetworkId, Time};
use supernode::{Listener, Supernode};
use tokio::sync::Notify;
use traversal::{Builder, Identity, Network, Node};
use traversal_net::socket::Inbound;
use traversal_proto::UnixTime;

use crate::SimNetwork;

/// Where wall clocks begin, in milliseconds since 1970: in 2027.
const WALL: u64 = 1_800_000_000_000;
/// A supernode's ports; the second one only where it has two addresses.
const PORTS: [u16; 2] = [3478, 3479];

/// An internet, driven by a task of its own. Clones are the same one.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    started: tokio::time::Instant,
    /// The time in nanoseconds while somebody with a clock of his own looks at it; [`LIVE`] otherwise.
    frozen: AtomicU64,
    changed: Notify,
}

/// The time is the running runtime's.
const LIVE: u64 = u64::MAX;

pub(crate) struct State {
    net: Net,
    /// By host and what they are bound to; the net itself knows ports only.
    pub(crate) sockets: HashMap<(HostId, SocketAddr), Inbound>,
    pub(crate) supernodes: HashMap<SocketAddr, Arc<Supernode>>,
    udp_blocked: HashSet<HostId>,
    pub(crate) names: HashMap<String, SocketAddr>,
    offline: HashSet<HostId>,
    seed: u64,
}

impl World {
    /// An empty internet in the running runtime, whose clock must be paused.
    pub fn new(seed: u64) -> World {
        let state = State {
            net: Net::new(seed),
            sockets: HashMap::new(),
            supernodes: HashMap::new(),
            udp_blocked: HashSet::new(),
            names: HashMap::new(),
            offline: HashSet::new(),
            seed,
        };
        let shared = Shared {
            state: Mutex::new(state),
            started: tokio::time::Instant::now(),
            frozen: AtomicU64::new(LIVE),
            changed: Notify::new(),
        };
        let world = World(Arc::new(shared));
        tokio::spawn(world.clone().run());
        world
    }

    /// The time since the world was made.
    pub fn now(&self) -> Time {
        match self.0.frozen.load(Ordering::Relaxed) {
            LIVE => Time::from_nanos(self.0.started.elapsed().as_nanos() as u64),
            frozen => Time::from_nanos(frozen),
        }
    }

    /// Calls something that has a clock of its own: the world's stands still meanwhile.
    pub fn frozen<T>(&self, now: Time, call: impl FnOnce() -> T) -> T {
        self.0.frozen.store(now.as_nanos(), Ordering::Relaxed);
        let result = call();
        self.0.frozen.store(LIVE, Ordering::Relaxed);
        result
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers what is due, for ever.
    async fn run(self) {
        loop {
            let next = {
                let now = self.now();
                let mut state = self.state();
                let State { net, sockets, udp_blocked, offline, .. } = &mut *state;
                net.handle_timeout(now);
                while let Some((host, input)) = net.poll_deliver(now) {
                    let Input::Datagram(datagram) = input else { continue };
                    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, datagram.to.port()));
                    let inbound =
                        sockets.get(&(host, datagram.to)).or_else(|| sockets.get(&(host, everywhere)));
                    let is_mute = udp_blocked.contains(&host) || offline.contains(&host);
                    if let Some(inbound) = inbound.filter(|_| !is_mute) {
                        inbound.push_slice(datagram.from, datagram.payload);
                    }
                }
                net.poll_timeout()
            };
            let next = next.map(|at| self.0.started + Duration::from_nanos(at.as_nanos()));
            let changed = self.0.changed.notified();
            match next {
                Some(next) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Lets this host's network swallow all UDP, or carry it again.
    pub fn block_udp(&self, host: HostId, is_blocked: bool) {
        let blocked = &mut self.state().udp_blocked;
        if is_blocked {
            blocked.insert(host)
        } else {
            blocked.remove(&host)
        };
    }

    /// Lets a name lead to this host's address; the one before it is forgotten.
    pub fn name(&self, name: &str, host: HostId, port: u16) {
        let at = SocketAddr::from((self.address(host), port));
        self.state().names.insert(format!("{name}:{port}"), at);
    }

    /// Pulls this host's cable, or plugs it in again: nothing comes or goes, by UDP or by TCP.
    pub fn set_offline(&self, host: HostId, is_offline: bool) {
        let offline = &mut self.state().offline;
        if is_offline {
            offline.insert(host)
        } else {
            offline.remove(&host)
        };
    }

    pub(crate) fn is_offline(&self, host: HostId) -> bool {
        self.state().offline.contains(&host)
    }

    /// Whether nothing comes to this host by UDP, or goes.
    pub(crate) fn is_mute(&self, host: HostId) -> bool {
        let state = self.state();
        state.udp_blocked.contains(&host) || state.offline.contains(&host)
    }

    /// Looks at the net, or changes it: links, loss, what a NAT does.
    pub fn with<T>(&self, change: impl FnOnce(&mut Net, Time) -> T) -> T {
        let now = self.now();
        let result = change(&mut self.state().net, now);
        self.0.changed.notify_one();
        result
    }

    /// A host on the internet, this far from its middle.
    pub fn public_host(&self, delay: Duration) -> HostId {
        let added = self.with(|net, _| net.add_host(NetworkId::INTERNET, Conditions::delayed(delay)));
        added.expect("the internet has room for a host")
    }

    /// A host on the internet with two addresses, as a supernode has that tells people all about their NATs.
    pub fn server(&self, delay: Duration) -> HostId {
        let host = self.public_host(delay);
        let second = Conditions::delayed(delay);
        let added = self.with(|net, _| net.add_interface(host, NetworkId::INTERNET, second).map(drop));
        added.expect("the internet has room for an address");
        host
    }

    /// A host behind a NAT of its own, this far from it.
    pub fn nat_host(&self, behavior: Behavior, delay: Duration) -> (NatId, HostId) {
        let added = self.with(|net, _| {
            let nat = net.add_nat(NetworkId::INTERNET, NatConfig::new(behavior))?;
            Ok::<_, BuildError>((nat, net.add_host(nat, Conditions::delayed(delay))?))
        });
        added.expect("the internet has room for a NAT and a host behind it")
    }

    /// The host's first address.
    pub fn address(&self, host: HostId) -> Ipv4Addr {
        self.with(|net, _| net.address(host)).expect("the host is of this world")
    }

    /// Starts a supernode with the key of this number, and tells how nodes connect to it. On a host with two addresses
    /// ([`server`](Self::server)) its reflector is complete.
    pub async fn supernode(&self, host: HostId, key: u8) -> String {
        self.supernode_with(host, key, |_| {}).await
    }

    /// The same, set up in another way. A supernode on a host is replaced by the next one there.
    pub async fn supernode_with(
        &self,
        host: HostId,
        key: u8,
        change: impl FnOnce(&mut supernode::Config),
    ) -> String {
        let mut config = supernode::Config::new(identity(key));
        config.seed = Some([key; 32]);
        config.wall_clock = Some(UnixTime(self.wall() / 1000));
        change(&mut config);
        let addresses: Vec<Ipv4Addr> = self.with(|net, _| net.addresses(host).collect());
        let mut listeners = Vec::new();
        for address in &addresses {
            for port in &PORTS[..addresses.len().min(PORTS.len())] {
                let external = SocketAddr::from((*address, *port));
                let udp = self.network(host).bind(external).expect("the supernode's port is free");
                listeners.push(Listener { external, udp: vec![udp], tcp: None });
            }
        }
        let started = Supernode::on_sockets(config, listeners).await;
        let supernode = started.unwrap_or_else(|error| panic!("the supernode does not start: {error}"));
        let text = supernode.connect_string();
        let at = supernode.addresses()[0];
        self.state().supernodes.insert(at, Arc::new(supernode));
        text
    }

    /// Ends the supernode at once, as a kill would: nobody is told.
    pub fn kill_supernode(&self, host: HostId) {
        let address = self.address(host);
        let mut state = self.state();
        state.supernodes.retain(|at, _| at.ip() != IpAddr::V4(address));
        state.sockets.retain(|(owner, _), _| *owner != host);
    }

    /// How many are registered at this host's supernode.
    pub fn registrations(&self, host: HostId) -> usize {
        let address = IpAddr::V4(self.address(host));
        let state = self.state();
        let here = state.supernodes.iter().filter(|(at, _)| at.ip() == address);
        here.map(|(_, supernode)| supernode.status().gauges().registrations).sum()
    }

    /// Asks everybody to leave the supernode, as before an update.
    pub async fn drain_supernode(&self, host: HostId, within: Duration) {
        let address = IpAddr::V4(self.address(host));
        let find = |state: MutexGuard<'_, State>| {
            state.supernodes.iter().find(|(at, _)| at.ip() == address).map(|(_, found)| Arc::clone(found))
        };
        let found = find(self.state());
        found.expect("a supernode is on this host").drain(within).await;
    }

    /// Milliseconds since 1970, by a clock that is right.
    pub fn wall(&self) -> u64 {
        WALL + self.now().as_nanos() / 1_000_000
    }

    /// The host's network, as a node wants it.
    pub fn network(&self, host: HostId) -> Arc<SimNetwork> {
        Arc::new(SimNetwork::new(self, host))
    }

    /// A node that is set up for this host, with the key of this number.
    pub fn builder(&self, host: HostId, key: u8) -> Builder {
        let mut seed = [key; 32];
        seed[..8].copy_from_slice(&self.state().seed.to_le_bytes());
        Node::builder().identity(identity(key)).network(self.network(host)).seed(seed).wall_clock(self.wall())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.now()).finish_non_exhaustive()
    }
}

fn identity(key: u8) -> Identity {
    Identity::from_secret(&[key; 32])
}
