//! The one task that owns a node: its sockets, its engines, and who is connected.
//!
//! ```text
//!              commands (API, handshakes, streams)
//!                    │
//!  strays ──▶ receive ──▶ STUN ───────▶ agent ──▶ routes (which way a peer's packets go)
//!     ▲              ├──▶ relay frames ─▶ homes ─┐
//!     │              └──▶ QUIC ──────────────────┴▶ inbound
//!     │                                                │
//!  intake ◀── main socket                              ▼
//!     └────────────── of known peers ──────────▶ QUIC's own tasks ──▶ routes ──▶ sockets
//! ```
//!
//! The driver tells the intake who is known where, and hears from it who was heard.
//!
//! A turn handles, in this order and within a budget for each: commands, datagrams, deadlines. After each input the
//! engines are drained.

mod alternatives;
mod connecting;
mod doctor;
mod handshakes;
mod homes;
mod parting;
mod paths;
mod peers;
mod policies;
mod punching;
mod receive;
mod sockets;
mod start;
mod timers;

use std::{
    future::poll_fn,
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};
use traversal_net::{quic, socket::DatagramSocket, udp::RecvBatch};
use traversal_proto::{
    SocketId, Time,
    peer::{Agent, PeerKey, Role},
    wire::{Identity, PeerId, peer::PEER_ALPN, peer::PeerMessage},
};

pub(crate) use start::start;

use crate::{
    Builder, ConnectError, Counters, DoctorError, DoctorOptions, Policy, Punched, Report, StartError,
    SupernodeStatus,
    backlog::Filler,
    builder::{Admission, StreamLimits},
    control::{Dialer, News},
    counters::Counts,
    intake::Intake,
    network::Network,
    node::Life,
    routes::Routes,
};
use homes::Home;
use peers::Peers;
use sockets::Sockets;
use timers::{Timer, Timers};

/// A connection over which nothing has come for so long is over.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The node's own socket.
pub(crate) const MAIN: SocketId = SocketId(0);
/// Commands handled in one turn.
const COMMANDS_PER_TURN: usize = 64;
/// Between two looks at the machine's addresses, and its clocks.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// The wall clock is ahead of the other one by as much more than before: the machine has slept, and NATs may have forgotten
/// it. If somebody has set the clock instead, paths are checked in vain.
const SLEPT: Duration = Duration::from_secs(3);

/// What a driver is told.
pub(crate) enum Command {
    /// A connection is wanted.
    Connect { peer: PeerId, policy: Option<Policy>, reply: peers::Reply },
    /// A connection that was to become direct is, or is not in time.
    Tried(Box<policies::Trial>),
    /// A socket is to be punched for somebody else.
    Punch { peer: PeerId, within: Duration, reply: oneshot::Sender<Result<Punched, ConnectError>> },
    /// Somebody begins a handshake.
    Incoming(Box<quinn::Incoming>),
    /// A handshake is over.
    Handshake { peer: PeerKey, attempt: u64, role: Role, result: Result<Established, ConnectError> },
    /// A peer says something.
    PeerMessage { peer: PeerKey, generation: u64, message: PeerMessage },
    /// A connection is over.
    Closed { peer: PeerKey, generation: u64 },
    /// News of a control connection.
    Control { home: usize, attempt: u64, news: News },
    /// What was counted is asked for.
    Counters { reply: oneshot::Sender<Counters> },
    /// Find out about the NAT.
    Doctor { options: DoctorOptions, reply: oneshot::Sender<Result<Report, DoctorError>> },
    /// The application says that the network has changed.
    NetworkChanged,
    /// End.
    Close { reply: oneshot::Sender<()> },
}

/// A connection whose keys are proved.
pub(crate) struct Established {
    pub(crate) connection: quinn::Connection,
    /// The peers' own stream, opened; the acceptor's is accepted later.
    pub(crate) stream: Option<(quinn::SendStream, quinn::RecvStream)>,
}

pub(crate) struct Driver {
    started: tokio::time::Instant,
    id: PeerId,
    identity: Identity,
    network: Arc<dyn Network>,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    life: oneshot::Receiver<()>,
    held: std::sync::Weak<Life>,
    sockets: Sockets,
    batch: Option<RecvBatch>,
    intake: Arc<Intake>,
    /// Whom the intake knows: of this generation.
    owners: u64,
    counts: Arc<Counts>,
    endpoint: quinn::Endpoint,
    dialer: Dialer,
    routes: Arc<Routes>,
    agent: Agent,
    homes: Vec<Home>,
    home_defaults: homes::HomeDefaults,
    statuses: watch::Sender<Vec<SupernodeStatus>>,
    peers: Peers,
    admission: Admission,
    /// What is shown to peers in place of the node's own key.
    shown: Identity,
    policy: Policy,
    streams: StreamLimits,
    connect_timeout: Duration,
    unaccepted: Filler,
    punched: mpsc::Sender<Punched>,
    /// Held by every punch of ours that is under way, too.
    punching: Arc<()>,
    /// Others may punch to us.
    punches: bool,
    agent_config: traversal_proto::peer::Config,
    /// Numbers handshakes and dials, so that news of an earlier one is known as such.
    attempts: u64,
    doctor: Option<doctor::Examination>,
    interfaces: Vec<traversal_proto::peer::Interface>,
    /// How far the wall clock is ahead of the node's own.
    ahead: Duration,
    /// Whom something was sent to since the last look at who is quiet.
    sent_lately: Vec<PeerKey>,
    timers: Timers,
    sleep: Pin<Box<tokio::time::Sleep>>,
    seeds: Seeds,
}

/// Seeds for the engines and QUIC, all from one.
struct Seeds {
    first: [u8; 32],
    next: u64,
    /// Nothing may come from the operating system.
    fixed: bool,
}

impl Seeds {
    fn take(&mut self) -> [u8; 32] {
        self.next += 1;
        let mut seed = self.first;
        for (byte, number) in seed.iter_mut().zip(self.next.to_le_bytes()) {
            *byte ^= number;
        }
        seed
    }
}

impl Driver {
    fn new(
        builder: Builder,
        identity: Identity,
        main: Arc<dyn DatagramSocket>,
        mut seeds: Seeds,
        (sender, commands): (mpsc::Sender<Command>, mpsc::Receiver<Command>),
        (unaccepted, punched, life): (Filler, mpsc::Sender<Punched>, oneshot::Receiver<()>),
    ) -> Result<Driver, StartError> {
        let counts = Arc::new(Counts::default());
        let routes = Arc::new(Routes::new(Arc::clone(&main), Arc::clone(&counts)));
        let sockets = Sockets::new(Arc::clone(&main));
        let local = sockets.local(MAIN);
        let virtual_local = SocketAddr::from((Ipv6Addr::UNSPECIFIED, local.port()));
        let intake = Arc::new(Intake::new(virtual_local, Arc::clone(&main), Arc::clone(&routes)));
        let server = quic::server(
            &identity,
            &[PEER_ALPN],
            handshakes::transport(Default::default(), builder.streams),
        )?;
        let options = quic::EndpointOptions {
            rng_seed: seeds.fixed.then(|| seeds.take()),
            ..quic::EndpointOptions::default()
        };
        let endpoint = quic::endpoint(Arc::clone(&intake) as _, Some(server), &options)?;
        let dialer = Dialer {
            endpoint: endpoint.clone(),
            network: Arc::clone(&builder.network),
            identity: identity.clone(),
            commands: sender.clone(),
        };
        let now = Time::ZERO;
        let mut agent = Agent::new(builder.agent.clone(), seeds.take(), now);
        agent.handle_socket_opened(MAIN, local, None, now);
        let mut timers = Timers::default();
        timers.set(now, Timer::LookAround);
        let ahead = builder.network.wall_clock();
        let mut driver = Driver {
            started: tokio::time::Instant::now(),
            id: identity.peer_id(),
            network: builder.network,
            commands,
            sender,
            life,
            held: std::sync::Weak::new(),
            batch: Some(RecvBatch::new(&*main, 8, 2048)),
            sockets,
            intake,
            owners: 0,
            counts,
            endpoint,
            dialer,
            routes,
            agent,
            homes: Vec::new(),
            home_defaults: homes::HomeDefaults::default(),
            statuses: watch::Sender::new(Vec::new()),
            peers: Peers::default(),
            admission: builder.admission,
            shown: builder.shown.unwrap_or_else(|| identity.clone()),
            identity,
            policy: builder.policy,
            streams: builder.streams,
            connect_timeout: builder.connect_timeout,
            unaccepted,
            punched,
            punching: Arc::default(),
            punches: builder.punches,
            agent_config: builder.agent,
            attempts: 0,
            doctor: None,
            interfaces: Vec::new(),
            ahead,
            sent_lately: Vec::new(),
            timers,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            seeds,
        };
        driver.set_home_defaults(&builder.wall_clock, builder.accepting);
        Ok(driver)
    }

    fn now(&self) -> Time {
        let nanos = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Time::from_nanos(nanos)
    }

    fn next_attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    fn counters(&self) -> Counters {
        Counters {
            received_dropped: self.intake.inbound().dropped() + self.intake.strays().dropped(),
            connections_not_accepted: self.unaccepted.0.refused(),
            paths: self.agent.counters().clone(),
            ..self.counts.read()
        }
    }

    async fn run(mut self) {
        let replies = poll_fn(|cx| self.turn(cx)).await;
        self.say_goodbye().await;
        for reply in replies {
            // Who asked may have given up.
            let _ = reply.send(());
        }
    }

    /// One turn; ready when the node is to end, with those who wait for it.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Vec<oneshot::Sender<()>>> {
        let mut busy = false;
        for at in 0..=COMMANDS_PER_TURN {
            busy = at == COMMANDS_PER_TURN;
            if busy {
                break;
            }
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(Command::Close { reply })) => return Poll::Ready(vec![reply]),
                Poll::Ready(Some(command)) => {
                    let now = self.now();
                    self.handle_command(command, now);
                    self.settle(now);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if Pin::new(&mut self.life).poll(cx).is_ready() {
            return Poll::Ready(Vec::new());
        }
        busy |= self.poll_sockets(cx);
        self.notice_heard(cx);
        self.notice_sent(cx);
        busy |= self.poll_deadlines(cx);
        if busy {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn handle_command(&mut self, command: Command, now: Time) {
        match command {
            Command::Connect { peer, policy, reply } => self.connect(peer, policy, reply, now),
            Command::Tried(trial) => self.tried(*trial, now),
            Command::Punch { peer, within, reply } => self.punch(peer, within, reply),
            Command::Incoming(incoming) => self.incoming(*incoming, now),
            Command::Handshake { peer, attempt, role, result } => {
                self.handshake_over(peer, attempt, role, result, now);
            }
            Command::PeerMessage { peer, generation, message } => {
                if self.peers.is_current(peer, generation) {
                    self.agent.handle_message(peer, message, now);
                }
            }
            Command::Closed { peer, generation } => self.connection_over(peer, generation, now),
            Command::Control { home, attempt, news } => self.control_news(home, attempt, news, now),
            Command::Counters { reply } => {
                // Who asked may have given up.
                let _ = reply.send(self.counters());
            }
            Command::Doctor { options, reply } => self.examine(options, reply, now),
            Command::NetworkChanged => {
                self.look_around(now);
                self.network_changed(now);
            }
            Command::Close { .. } => {}
        }
    }

    /// Drains the engines until nothing is left.
    fn settle(&mut self, now: Time) {
        let mut relays = false;
        loop {
            let homes = self.drain_homes(now);
            let moved = homes | self.drain_agent(now) | self.drain_doctor(now);
            relays |= homes;
            if !moved {
                break;
            }
        }
        let owners = std::mem::replace(&mut self.owners, self.agent.owners_generation());
        if relays || owners != self.owners {
            self.intake.forget();
        }
    }

    /// Does what is due, and waits for what is next. True: there is more to do at once.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> bool {
        let now = self.now();
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::LookAround => {
                    self.look_around(now);
                    self.peers.close_absurd();
                    self.timers.set(now + LOOK_AROUND, Timer::LookAround);
                }
                Timer::Connect(peer) => self.connect_timed_out(peer, now),
                Timer::Slow(peer) => self.advance(peer, now),
                Timer::Linger(peer) => self.linger_over(peer, now),
                Timer::Quiet => self.rearm_sent(now),
                Timer::Parting(peer) => self.part_again(peer, now),
                Timer::DirectLost(peer) => self.direct_lost(peer),
                Timer::RetryQuic(home) => self.retry_quic(home),
                // They are moved in any case.
                Timer::Unwritten(_) => {}
            }
            self.settle(now);
        }
        if self.agent.poll_timeout().is_some_and(|at| at <= now) {
            self.agent.handle_timeout(now);
        }
        self.homes_due(now);
        self.doctor_due(now);
        self.settle(now);
        let next = [self.timers.next(), self.agent.poll_timeout(), self.homes_next(), self.doctor_next()];
        let Some(next) = next.into_iter().flatten().min() else { return false };
        // Never before it is due: tokio's timers are exact to a millisecond, and round up.
        self.sleep.as_mut().reset(self.started + next.since(Time::ZERO));
        self.sleep.as_mut().poll(cx).is_ready()
    }

    fn look_around(&mut self, now: Time) {
        let ahead = self.network.wall_clock().saturating_sub(now.since(Time::ZERO));
        let slept = ahead.saturating_sub(std::mem::replace(&mut self.ahead, ahead));
        if slept >= SLEPT {
            tracing::debug!(?slept, "the machine has slept");
            self.network_changed(now);
        }
        let interfaces = self.network.interfaces();
        if interfaces != self.interfaces {
            let first = self.interfaces.is_empty();
            self.agent.handle_local_addresses(&interfaces, now);
            self.interfaces = interfaces;
            if !first {
                self.network_changed(now);
            }
        }
    }

    fn network_changed(&mut self, now: Time) {
        self.agent.handle_network_changed(now);
        self.rebind_homes(now);
    }

    /// What QUIC says goes out by itself; what it hears, some of it over a control connection, still has to be handed to it.
    async fn hear_until(&mut self, end: impl Future) {
        let mut end = std::pin::pin!(end);
        poll_fn(|cx| {
            while self.poll_sockets(cx) {}
            while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
                // Whoever wants something else hears that the node is closed.
                if let Command::Control { home, attempt, news } = command {
                    let now = self.now();
                    self.control_news(home, attempt, news, now);
                    self.settle(now);
                }
            }
            end.as_mut().poll(cx).map(drop)
        })
        .await;
    }
}
