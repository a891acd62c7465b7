//! A running supernode.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quinn::Endpoint;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use traversal_net::{
    key,
    quic::{self, EndpointOptions, QuicError},
    socket::{Inbound, VirtualSocket},
    tls,
};
use traversal_proto::{
    SocketId, Time,
    supernode::{Config as EngineConfig, Counters, Gauges, Listen, Supernode as Engine},
    wire::{ALPN, PeerId, message::Code},
};

use crate::{
    accept, admin,
    config::{Config, Listener},
    core::{Core, Shared, lock, wall_clock},
    counters::ShellCounters,
    datapath::Path,
    error::StartError,
    gate::Gate,
    ledger::{Bounded, Ledger},
    listen, reach,
    tasks::Tasks,
};

/// What waits for QUIC on one listen address: a burst of a thousand handshakes.
const QUIC_QUEUE: usize = 2 << 20;
/// How long connections have for their last bytes.
const GRACE: Duration = Duration::from_secs(2);
/// How much longer than announced a drain may take, for a peer that is being written to.
const OVERTIME: Duration = Duration::from_secs(1);

/// A running supernode. Dropped, it ends at once; [`drain`](Self::drain) it to let peers move first.
pub struct Supernode {
    shared: Arc<Shared>,
    status: Status,
    local: Vec<SocketAddr>,
    external: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    endpoints: Vec<Endpoint>,
    tasks: Arc<Tasks>,
    gate: Gate,
    acceptor: TlsAcceptor,
}

/// How a supernode is doing: a handle that may outlive it.
#[derive(Clone)]
pub struct Status {
    id: PeerId,
    core: Arc<Mutex<Core>>,
    shell: Arc<ShellCounters>,
    draining: Arc<AtomicBool>,
    started: Instant,
}

impl Supernode {
    /// Starts a supernode on the kernel's sockets, in the running tokio runtime.
    ///
    /// # Errors
    /// An address that cannot be had, a configuration that cannot work.
    pub async fn bind(config: Config) -> Result<Supernode, StartError> {
        let listeners = listen::open(&config)?;
        Supernode::on_sockets(config, listeners).await
    }

    /// Starts a supernode on these sockets, in the running tokio runtime: the kernel's, or any others. Of `config`,
    /// `listen`, `external`, `tcp` and `shards` are not looked at.
    ///
    /// # Errors
    /// A configuration that cannot work; [`StartError::NoSocket`] for a listener without one.
    pub async fn on_sockets(config: Config, listeners: Vec<Listener>) -> Result<Supernode, StartError> {
        if listeners.iter().any(|listener| listener.udp.is_empty()) {
            return Err(StartError::NoSocket);
        }
        let admin = config.admin.map(|address| listen::open_tcp(address, "admin")).transpose()?;
        let engine = engine(&config, &listeners)?;
        let sockets = listeners.iter().map(|listener| listener.udp.clone()).collect();
        let started = Instant::now();
        let shared = Arc::new(Shared::new(engine, started, sockets));
        let tls = tls::server(&config.identity, &[ALPN]).map_err(QuicError::from)?;
        let mut supernode = Supernode {
            status: Status {
                id: config.identity.peer_id(),
                core: Arc::clone(&shared.core),
                shell: Arc::clone(&shared.counters),
                draining: Arc::default(),
                started,
            },
            shared,
            local: Vec::new(),
            external: listeners.iter().map(|listener| listener.external).collect(),
            admin: admin.as_ref().and_then(|listener| listener.local_addr().ok()),
            endpoints: Vec::new(),
            tasks: Arc::new(Tasks::new().map_err(StartError::Threads)?),
            gate: Gate::default(),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
        };
        supernode.spawn_timers(config.wall_clock.is_none());
        for (at, listener) in listeners.into_iter().enumerate() {
            supernode.spawn_listener(&config, at, listener)?;
        }
        if let Some(listener) = admin {
            supernode.tasks.spawn_loop(admin::serve(listener, supernode.status()));
        }
        Ok(supernode)
    }

    /// Its key.
    pub fn id(&self) -> PeerId {
        self.status.id
    }

    /// Where it listens: the addresses of its sockets.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.local
    }

    /// Where peers reach it, in the same order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.external
    }

    /// Where metrics and health are served, if they are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What a peer has to be told to connect here: the id, an `@`, and the first address.
    pub fn connect_string(&self) -> String {
        self.external.first().map_or_else(|| self.id().to_string(), |first| format!("{}@{first}", self.id()))
    }

    /// How it is doing.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Serves the control protocol, in TLS, on any byte stream from `remote`: for networks that carry no datagrams, and
    /// for simulations.
    pub fn serve_stream<S>(&self, stream: S, remote: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        accept::tcp_stream(&self.shared, &self.tasks, &self.gate, stream, remote, &self.acceptor);
    }

    /// Takes nobody in any more, asks all peers to move, each at a time of its own within `within`, and comes back when
    /// nobody is left or the time is up. Then [`shutdown`](Self::shutdown).
    pub async fn drain(&self, within: Duration) {
        self.status.draining.store(true, Ordering::Relaxed);
        self.shared.with_engine(|core, now| core.engine.drain(within, now));
        let _ = timeout(within + OVERTIME, self.shared.drained()).await;
    }

    /// Ends it: connections get a moment for their last bytes, then everything is closed.
    pub async fn shutdown(self) {
        self.status.draining.store(true, Ordering::Relaxed);
        // Whoever is still here is told; the engine closes what a drain of no time has left.
        self.shared.with_engine(|core, now| {
            core.engine.drain(Duration::ZERO, now);
            core.engine.handle_timeout(now);
        });
        self.tasks.end(GRACE).await;
        let (code, reason) = (u32::from(u16::from(Code::Draining)), Code::Draining.to_string());
        for endpoint in &self.endpoints {
            endpoint.close(code.into(), reason.as_bytes());
            let _ = timeout(GRACE, endpoint.wait_idle()).await;
        }
    }

    fn spawn_timers(&self, follow_wall_clock: bool) {
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn_loop(async move { shared.run_timers().await });
        if follow_wall_clock {
            let shared = Arc::clone(&self.shared);
            self.tasks.spawn_loop(async move { shared.follow_wall_clock().await });
        }
    }

    /// Everything that serves one listen address.
    fn spawn_listener(&mut self, config: &Config, at: usize, listener: Listener) -> Result<(), StartError> {
        let (shared, tasks) = (&self.shared, &self.tasks);
        let id = SocketId(at as u16);
        let first = listener.udp.first().ok_or(StartError::NoSocket)?;
        let local = first.local_addr().unwrap_or(listener.external);
        let (quic, ledger) = (Inbound::new(QUIC_QUEUE), Ledger::default());
        let sink = Bounded { shared: Arc::downgrade(shared), socket: id, ledger: ledger.clone() };
        let socket = VirtualSocket::new(local, quic.clone(), Arc::new(sink));
        let options = EndpointOptions {
            rng_seed: config.seed,
            lasting: Some((config.identity.clone(), local.to_string())),
            ..EndpointOptions::default()
        };
        let server = accept::quic_server(&config.identity)?;
        let endpoint = quic::endpoint(Arc::new(socket), Some(server), &options)?;
        tasks.spawn_loop(accept::quic(
            Arc::clone(shared),
            Arc::clone(tasks),
            self.gate.clone(),
            ledger.clone(),
            endpoint.clone(),
        ));
        for (shard, socket) in listener.udp.into_iter().enumerate() {
            let (shared, quic, ledger) = (Arc::clone(shared), quic.clone(), ledger.clone());
            let path = Path { shared, id, shard, socket, quic, ledger };
            match path.socket.kernel() {
                Some(_) => tasks.spawn_thread(|stop| path.spawn(stop)).map_err(StartError::Threads)?,
                None => tasks.spawn_loop(path.run()),
            }
        }
        if let Some(tcp) = listener.tcp {
            let (gate, acceptor) = (self.gate.clone(), self.acceptor.clone());
            tasks.spawn_loop(accept::tcp(Arc::clone(shared), Arc::clone(tasks), gate, tcp, acceptor));
        }
        self.endpoints.push(endpoint);
        self.local.push(local);
        Ok(())
    }
}

impl Drop for Supernode {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

impl Status {
    /// Whose.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// What the engine has counted.
    pub fn counters(&self) -> Counters {
        lock(&self.core).engine.counters()
    }

    /// What the shell has counted.
    pub fn shell(&self) -> &ShellCounters {
        &self.shell
    }

    /// How much there is now.
    pub fn gauges(&self) -> Gauges {
        lock(&self.core).engine.gauges()
    }

    /// Bytes relayed for all peers in this period.
    pub fn volume(&self) -> u64 {
        lock(&self.core).engine.volume()
    }

    /// Whether it is going away.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// All of it as text for Prometheus.
    pub fn metrics(&self) -> String {
        admin::metrics(self)
    }
}

/// Whether `config` can work, as far as can be said without opening anything.
///
/// # Errors
/// As for [`Supernode::bind`].
pub fn check(config: &Config) -> Result<(), StartError> {
    let (external, listen) = (config.external.len(), config.listen.len());
    if external > listen {
        return Err(StartError::TooManyExternal { external, listen });
    }
    let listeners = config.listen.iter().enumerate().map(|(at, address)| Listener {
        external: reach::external(*address, config.external.get(at).copied()),
        udp: Vec::new(),
        tcp: None,
    });
    engine(config, &listeners.collect::<Vec<_>>()).map(drop)
}

fn engine(config: &Config, listeners: &[Listener]) -> Result<Engine, StartError> {
    let listen = |(at, listener): (usize, &Listener)| Listen {
        socket: SocketId(at as u16),
        address: listener.external,
    };
    let first = listeners.iter().enumerate().map(listen).next().ok_or(StartError::NoSocket)?;
    let mut settings = EngineConfig::new(config.identity.peer_id(), first);
    settings.listen = listeners.iter().enumerate().map(listen).collect();
    settings.admission = config.admission.clone();
    settings.relay = config.relay;
    settings.quotas = config.quotas.clone();
    settings.limits = config.limits;
    settings.rates = config.rates;
    settings.timing = config.timing;
    settings.alternatives = config.alternatives.clone();
    settings.report_events = true;
    let seed = match config.seed {
        Some(seed) => seed,
        None => key::random()?,
    };
    let wall = config.wall_clock.unwrap_or_else(wall_clock);
    Ok(Engine::new(settings, seed, Time::ZERO, wall)?)
}
