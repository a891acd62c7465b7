//! The engine and its surroundings: one lock, one clock, one way out.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::Instant};
use traversal_net::{Transmit as Outgoing, socket::DatagramSocket};
use traversal_proto::{
    SocketId, Time, Transmit, UnixTime,
    supernode::{ConnectionId, Event, Outgoing as ToConnection, Query, Supernode as Engine, Target, Verdict},
    wire::PeerId,
};

use crate::{
    counters::{ShellCounters, add},
    outbox::Outbox,
};

/// What all tasks of a supernode share.
pub(crate) struct Shared {
    pub(crate) core: Arc<Mutex<Core>>,
    started: Instant,
    /// By listen address; several of one address.
    pub(crate) sockets: Vec<Vec<Arc<dyn DatagramSocket>>>,
    pub(crate) counters: Arc<ShellCounters>,
    /// The next deadline has become an earlier one.
    rearm: Notify,
    /// Somebody has left while draining.
    left: Notify,
    connections: AtomicU64,
}

/// What the lock guards.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    outboxes: HashMap<ConnectionId, Arc<Outbox>>,
    /// What the timer task waits for.
    armed: Time,
}

/// A datagram of the engine's own, and the address of ours that it is to come from, where that is known.
type Answer = (Transmit, Option<IpAddr>);

/// What is done when the lock is no longer held: datagrams of the engine's own are sent, and what happened is logged.
#[derive(Default)]
pub(crate) struct Aftermath {
    answers: Vec<Answer>,
    events: Vec<Event>,
}

impl Shared {
    pub(crate) fn new(
        engine: Engine,
        started: Instant,
        sockets: Vec<Vec<Arc<dyn DatagramSocket>>>,
    ) -> Shared {
        Shared {
            core: Arc::new(Mutex::new(Core { engine, outboxes: HashMap::new(), armed: Time::ZERO })),
            started,
            sockets,
            counters: Arc::default(),
            rearm: Notify::new(),
            left: Notify::new(),
            connections: AtomicU64::new(0),
        }
    }

    /// The engine's clock: time since the start.
    pub(crate) fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Whether a QUIC handshake from an address that has proved nothing may be answered.
    pub(crate) fn may_answer(&self, to: SocketAddr) -> bool {
        self.lock().engine.may_answer(to, self.now())
    }

    /// A connection is up.
    pub(crate) fn connected(&self, peer: PeerId, remote: SocketAddr) -> (ConnectionId, Arc<Outbox>) {
        let id = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed));
        let outbox = Arc::new(Outbox::default());
        self.with_engine(|core, now| {
            core.outboxes.insert(id, Arc::clone(&outbox));
            core.engine.handle_connected(id, peer, remote, now);
        });
        (id, outbox)
    }

    /// A connection is gone, whoever has ended it.
    pub(crate) fn disconnected(&self, id: ConnectionId) {
        self.with_engine(|core, now| {
            core.outboxes.remove(&id);
            core.engine.handle_disconnected(id, now);
        });
        self.left.notify_waiters();
    }

    /// One frame of a connection.
    pub(crate) fn frame(&self, id: ConnectionId, body: &mut [u8]) {
        let verdict = self.with_engine(|core, now| {
            let verdict = core.engine.handle_frame(id, body, now);
            if let Verdict::Relay { to: Target::Stream(to), range } = &verdict {
                core.relay(*to, &body[range.clone()], &self.counters);
            }
            verdict
        });
        match verdict {
            Verdict::Relay { to: Target::Datagram { socket, to }, range } => {
                let contents = &body[range];
                let transmit =
                    Outgoing { destination: to, ecn: None, contents, segment_size: None, src_ip: None };
                self.send(socket, 0, &transmit);
            }
            Verdict::Verify(registration) => {
                let verified = registration.verify();
                self.with_engine(|core, now| core.engine.handle_verified(verified, now));
            }
            _ => {}
        }
    }

    /// Does something with the engine, and then everything that follows from it.
    pub(crate) fn with_engine<R>(&self, act: impl FnOnce(&mut Core, Time) -> R) -> R {
        let mut aftermath = Aftermath::default();
        let mut core = self.lock();
        let now = self.now();
        let result = act(&mut core, now);
        self.settle(&mut core, &mut aftermath, None);
        drop(core);
        self.finish(&mut aftermath, 0);
        result
    }

    /// Takes out of the engine all that it has to say. Messages go to their outboxes; the rest is left for
    /// [`finish`](Self::finish), datagrams to be sent from `source` where they leave by the socket that it belongs to.
    pub(crate) fn settle(
        &self,
        core: &mut Core,
        aftermath: &mut Aftermath,
        source: Option<(SocketId, IpAddr)>,
    ) {
        while let Some(transmit) = core.engine.poll_transmit() {
            let from = source.filter(|(socket, _)| *socket == transmit.socket).map(|(_, ip)| ip);
            aftermath.answers.push((transmit, from));
        }
        while let Some(outgoing) = core.engine.poll_message() {
            match outgoing {
                ToConnection::Message(id, message) => {
                    if let Some(outbox) = core.outboxes.get(&id) {
                        outbox.message(&message);
                    }
                }
                ToConnection::Close(id, code) => {
                    if let Some(outbox) = core.outboxes.remove(&id) {
                        outbox.close(code);
                    }
                }
            }
        }
        // There is no directory beside this supernode: nobody else knows anybody.
        while let Some(query) = core.engine.poll_query() {
            if let Query::Locate { id, .. } = query {
                let now = self.now();
                core.engine.handle_answer(id, None, now);
            }
        }
        aftermath.events.extend(std::iter::from_fn(|| core.engine.poll_event()));
        let next = core.engine.poll_timeout().unwrap_or(Time::NEVER);
        if next < core.armed {
            core.armed = next;
            self.rearm.notify_one();
        }
    }

    /// Sends what the engine answered, and tells what has happened.
    pub(crate) fn finish(&self, aftermath: &mut Aftermath, shard: usize) {
        for (Transmit { socket, to, bytes, .. }, src_ip) in aftermath.answers.drain(..) {
            let (destination, contents) = (to, bytes.as_slice());
            let transmit = Outgoing { destination, ecn: None, contents, segment_size: None, src_ip };
            self.send(socket, shard, &transmit);
        }
        aftermath.events.drain(..).for_each(log);
    }

    /// Sends from a socket of this address. What does not go out at once is dropped and counted, as a router would: the
    /// kernel's buffer is the queue.
    pub(crate) fn send(&self, socket: SocketId, shard: usize, transmit: &Outgoing<'_>) {
        let Some(via) = self.socket(socket, shard) else { return };
        let packets = transmit.segment_size.map_or(1, |size| transmit.contents.len().div_ceil(size)) as u64;
        add(&self.counters.udp_send_calls, 1);
        match via.try_send(transmit) {
            Ok(()) => add(&self.counters.udp_sent_packets, packets),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                add(&self.counters.udp_send_blocked, packets);
            }
            Err(_) => add(&self.counters.udp_send_errors, packets),
        }
    }

    /// The same for many. Where it blocks, the rest is dropped.
    pub(crate) fn send_many(&self, socket: SocketId, shard: usize, transmits: &[Outgoing<'_>]) {
        let Some(via) = self.socket(socket, shard) else { return };
        let sent = via.try_send_many(transmits);
        let counters = &self.counters;
        add(&counters.udp_send_calls, sent.calls);
        add(&counters.udp_sent_packets, sent.packets);
        if sent.blocked + sent.refused > 0 {
            add(&counters.udp_send_blocked, sent.blocked);
            add(&counters.udp_send_errors, sent.refused);
        }
    }

    pub(crate) fn socket(&self, socket: SocketId, shard: usize) -> Option<&Arc<dyn DatagramSocket>> {
        let shards = self.sockets.get(usize::from(socket.0))?;
        shards.get(shard % shards.len().max(1))
    }

    /// How many datagrams one call sends from there.
    pub(crate) fn segments(&self, socket: SocketId, shard: usize) -> usize {
        self.socket(socket, shard).map_or(1, |via| via.max_transmit_segments())
    }

    /// Does what is due, for ever.
    pub(crate) async fn run_timers(&self) {
        loop {
            let next = self.with_engine(|core, now| {
                core.engine.handle_timeout(now);
                core.armed = core.engine.poll_timeout().unwrap_or(Time::NEVER);
                core.armed
            });
            let wait = Instant::now() + next.since(self.now()).min(LONG);
            tokio::select! {
                () = tokio::time::sleep_until(wait) => {}
                () = self.rearm.notified() => {}
            }
        }
    }

    /// Tells the engine what the clock of the world says, again and again: somebody may set it.
    pub(crate) async fn follow_wall_clock(&self) {
        loop {
            tokio::time::sleep(WALL_CLOCK).await;
            let wall = wall_clock();
            self.with_engine(|core, now| core.engine.set_wall_clock(wall, now));
        }
    }

    /// Until a drain has left nobody.
    pub(crate) async fn drained(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // Enabled before looking, so that nobody leaves unnoticed in between.
            left.as_mut().enable();
            if self.lock().engine.is_drained() {
                return;
            }
            left.await;
        }
    }
}

/// A timer is set no further ahead than this.
const LONG: Duration = Duration::from_secs(3600);
/// A clock that was set is noticed after this.
const WALL_CLOCK: Duration = Duration::from_secs(60);

impl Core {
    /// A relayed packet for a connection.
    pub(crate) fn relay(&self, to: ConnectionId, frame: &[u8], counters: &ShellCounters) {
        if !self.outboxes.get(&to).is_some_and(|outbox| outbox.data(frame)) {
            add(&counters.stream_dropped, 1);
        }
    }
}

/// The engine. Should a thread have died in it, the others go on: it is never left half-changed by what panics here.
pub(crate) fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970, by the system's clock.
pub(crate) fn wall_clock() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

fn log(event: Event) {
    match event {
        Event::Registered(peer) => tracing::debug!(%peer, "registered"),
        Event::Released(peer, code) => tracing::debug!(%peer, reason = %code, "released"),
        Event::ChannelOpened { from, to } => tracing::debug!(%from, %to, "channel opened"),
        Event::VolumeExhausted(peer) => {
            tracing::info!(%peer, "volume used up: from now on its traffic is signalling only");
        }
    }
}
