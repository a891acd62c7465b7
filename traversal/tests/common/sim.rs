//! The simulated internet behind the seams of the crate: under a paused clock, one seed decides everything but keys.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use natbox_sim::{Behavior, Conditions, Datagram, HostId, Input, NatConfig, NatId, Net, NetworkId, Time};
use supernode::{Listener, Supernode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf},
    sync::Notify,
};
use traversal::{Builder, ByteStream, Network, Node};
use traversal_net::{
    Transmit,
    socket::{DatagramSocket, Inbound, Sink, VirtualSocket},
};
use traversal_proto::{UnixTime, peer::Interface};

use super::identity;

pub const WALL: u64 = 1_800_000_000;

/// An internet, driven by a task of its own.
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

struct State {
    net: Net,
    /// By host and what they are bound to; the net itself knows ports only.
    sockets: HashMap<(HostId, SocketAddr), Inbound>,
    supernodes: HashMap<SocketAddr, Arc<Supernode>>,
    udp_blocked: HashSet<HostId>,
    names: HashMap<String, SocketAddr>,
    offline: HashSet<HostId>,
    seed: u64,
}

impl World {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
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
                    let is_deaf = udp_blocked.contains(&host) || offline.contains(&host);
                    if let Some(inbound) = inbound.filter(|_| !is_deaf) {
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

    fn is_offline(&self, host: HostId) -> bool {
        self.state().offline.contains(&host)
    }

    /// Looks at the net, or changes it.
    pub fn with<T>(&self, change: impl FnOnce(&mut Net, Time) -> T) -> T {
        let now = self.now();
        let result = change(&mut self.state().net, now);
        self.0.changed.notify_one();
        result
    }

    /// A host on the internet, this far from its middle.
    pub fn public_host(&self, delay: Duration) -> HostId {
        self.with(|net, _| net.add_host(NetworkId::INTERNET, Conditions::delayed(delay)).unwrap())
    }

    /// A host behind a NAT of its own.
    pub fn nat_host(&self, behavior: Behavior, delay: Duration) -> (NatId, HostId) {
        self.with(|net, _| {
            let nat = net.add_nat(NetworkId::INTERNET, NatConfig::new(behavior)).unwrap();
            (nat, net.add_host(nat, Conditions::delayed(delay)).unwrap())
        })
    }

    pub fn address(&self, host: HostId) -> Ipv4Addr {
        self.with(|net, _| net.address(host).unwrap())
    }

    /// Starts a supernode on a host that has two addresses, so that its reflector is complete.
    pub async fn supernode(&self, host: HostId, secret: u8) -> String {
        self.supernode_with(host, secret, |_| {}).await
    }

    /// The same, set up in another way.
    pub async fn supernode_with(
        &self,
        host: HostId,
        secret: u8,
        change: impl FnOnce(&mut supernode::Config),
    ) -> String {
        let mut config = supernode::Config::new(identity(secret));
        config.seed = Some([secret; 32]);
        config.wall_clock = Some(UnixTime(self.wall() / 1000));
        change(&mut config);
        let addresses: Vec<Ipv4Addr> = self.with(|net, _| net.addresses(host).collect());
        let mut listeners = Vec::new();
        for address in &addresses {
            for port in if addresses.len() > 1 { &[3478, 3479][..] } else { &[3478] } {
                let external = SocketAddr::from((*address, *port));
                listeners.push(Listener {
                    external,
                    udp: vec![self.bind(host, external).unwrap()],
                    tcp: None,
                });
            }
        }
        let supernode = Supernode::on_sockets(config, listeners).await.unwrap();
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
        found.unwrap().drain(within).await;
    }

    /// Milliseconds since 1970, by a clock that is right.
    pub fn wall(&self) -> u64 {
        WALL * 1000 + self.now().as_nanos() / 1_000_000
    }

    pub fn network(&self, host: HostId) -> Arc<SimNetwork> {
        Arc::new(SimNetwork { world: self.clone(), host })
    }

    /// A node that is set up for this host.
    pub fn builder(&self, host: HostId, secret: u8) -> Builder {
        let mut seed = [secret; 32];
        seed[..8].copy_from_slice(&self.state().seed.to_le_bytes());
        Node::builder()
            .identity(identity(secret))
            .network(self.network(host))
            .seed(seed)
            .wall_clock(self.wall())
    }

    /// Waits until the host's cable is plugged in.
    async fn online(&self, host: HostId) {
        while self.is_offline(host) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A byte stream from a host to a supernode's: it stands still while the host is offline.
    async fn carry(self, host: HostId, near: DuplexStream, far: DuplexStream) {
        let ((near_read, near_write), (far_read, far_write)) =
            (tokio::io::split(near), tokio::io::split(far));
        let up = self.pump(host, near_read, far_write);
        let down = self.pump(host, far_read, near_write);
        // Either end closes both directions: TLS needs no half.
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    }

    async fn pump(&self, host: HostId, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            self.online(host).await;
            if to.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
    }

    fn bind(&self, host: HostId, at: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
        if at.is_ipv6() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = match self.with(|net, _| net.bind(host, everywhere)) {
            Ok(bound) => bound.port(),
            // Another address of the same port, or a process that is gone: the net keeps the binding.
            Err(_) if at.port() != 0 && !self.state().sockets.contains_key(&(host, at)) => at.port(),
            Err(error) => return Err(io::Error::other(error)),
        };
        let bound = SocketAddr::new(at.ip(), port);
        let inbound = Inbound::new(1 << 20);
        self.state().sockets.insert((host, bound), inbound.clone());
        let port = Port { world: self.clone(), host, bound };
        Ok(Arc::new(VirtualSocket::new(bound, inbound, Arc::new(port))))
    }
}

/// A host's network, for a node.
pub struct SimNetwork {
    world: World,
    host: HostId,
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Network for SimNetwork {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        self.world.bind(self.host, address)
    }

    fn connect(&self, to: SocketAddr) -> traversal::Connecting {
        let (world, host) = (self.world.clone(), self.host);
        Box::pin(async move {
            world.online(host).await;
            let supernode = world.state().supernodes.get(&to).cloned();
            let supernode = supernode.ok_or(io::ErrorKind::ConnectionRefused)?;
            let from = SocketAddr::from((world.address(host), 50_000));
            let (ours, near) = tokio::io::duplex(1 << 16);
            let (far, theirs) = tokio::io::duplex(1 << 16);
            supernode.serve_stream(theirs, from);
            tokio::spawn(world.carry(host, near, far));
            Ok(Box::new(ours) as Box<dyn ByteStream>)
        })
    }

    fn resolve(&self, name: &str) -> traversal::Resolving {
        let found = self.world.state().names.get(name).copied();
        Box::pin(async move { Ok(vec![found.ok_or(io::ErrorKind::NotFound)?]) })
    }

    fn interfaces(&self) -> Vec<Interface> {
        let addresses: Vec<_> = self.world.with(|net, _| net.addresses(self.host).collect());
        addresses.into_iter().map(|address| Interface { address: address.into(), prefix_len: 24 }).collect()
    }
}

/// One socket's way out.
struct Port {
    world: World,
    host: HostId,
    bound: SocketAddr,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Port {
    fn send(&self, transmit: &Transmit<'_>, ttl: u8) {
        let is_mute = {
            let state = self.world.state();
            state.udp_blocked.contains(&self.host) || state.offline.contains(&self.host)
        };
        if is_mute {
            return;
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        self.world.with(|net, now| {
            for payload in transmit.contents.chunks(size) {
                // What does not fit the link is lost, as with the kernel.
                let datagram = Datagram { ttl, ..Datagram::new(self.bound, transmit.destination, payload) };
                let _ = net.send(self.host, datagram, now);
            }
        });
    }
}

impl Sink for Port {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(transmit, 64);
        Ok(())
    }

    fn try_send_near(&self, transmit: &Transmit<'_>, hops: u8) -> io::Result<()> {
        self.send(transmit, hops);
        Ok(())
    }

    fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
