//! Who is connected, who is being connected.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};
use traversal_net::{quic, tls};
use traversal_proto::{
    Time,
    path::NatProfile,
    peer::{PeerKey, Role},
    wire::{
        PeerId,
        peer::{PEER_ALPN, PUNCH_ALPN, PeerMessage},
    },
};

use super::{Command, Driver, Established, IDLE_TIMEOUT};
use crate::{
    ConnectError, Connection, Path, PathEvent, Policy, Step,
    congestion::Epoch,
    connection::{Inner, Paths},
    node::Life,
    peer_stream,
    routes::{Entry, Way, virtual_address},
};

/// Keeps a connection from timing out; the path agent looks after NAT mappings.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// After so long without a packet of a peer's the way to it was interrupted, and what was sent meanwhile is lost: longer than
/// the slowest links' round trip.
const INTERRUPTION: Duration = Duration::from_secs(1);
/// No path takes so long. A clock that has leapt while packets were on their way makes QUIC believe it, and wait for hours.
const ABSURD_RTT: Duration = Duration::from_secs(10);
/// Bytes of streams that wait for an acknowledgement: QUIC's own default, a tenth of a second at a gigabit.
const SEND_WINDOW: u64 = 10_000_000;
/// The largest packet: what fits an Ethernet frame over IPv4 with the relay's header before it.
const MAX_MTU: u16 = 1447;

/// A peer that is connected, is being connected, or has a channel to us.
pub(super) struct Slot {
    pub(super) peer: PeerId,
    pub(super) stage: Stage,
    /// Our own handshake, if one is under way.
    pub(super) calling: Option<Handshake>,
    /// The peer's.
    pub(super) answering: Option<Handshake>,
    /// Who waits for the connection.
    pub(super) waiting: Vec<oneshot::Sender<Result<Connection, ConnectError>>>,
    pub(super) policy: Policy,
    pub(super) current: Option<Current>,
    /// Counts connections, so that news of an earlier one is known as such.
    pub(super) generation: u64,
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) epoch: Epoch,
    /// When a packet of the peer's came last.
    heard: Time,
    /// What the agent has been told of the relay.
    pub(super) relay_told: Option<bool>,
}

/// What an attempt to connect waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing: there is no attempt, or a handshake is under way.
    #[default]
    Idle,
    /// A supernode that can be asked.
    Supernode,
    /// The answer of one of these supernodes, the last one's.
    Channel(Vec<usize>),
}

pub(super) struct Handshake {
    pub(super) attempt: u64,
    task: AbortHandle,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that stands.
pub(super) struct Current {
    pub(super) quic: quinn::Connection,
    pub(super) handle: Weak<Inner>,
    messages: mpsc::Sender<PeerMessage>,
    paths: Arc<Paths>,
    /// Packets have gone directly.
    pub(super) was_direct: bool,
}

impl Slot {
    fn new(peer: PeerId, policy: Policy) -> Slot {
        Slot {
            peer,
            stage: Stage::Idle,
            calling: None,
            answering: None,
            waiting: Vec::new(),
            policy,
            current: None,
            generation: 0,
            entry: None,
            epoch: Epoch::default(),
            heard: Time::ZERO,
            relay_told: None,
        }
    }

    pub(super) fn connection(&self) -> Option<&quinn::Connection> {
        self.current.as_ref().map(|current| &current.quic)
    }

    /// There is room to send, and what QUIC waits for is perhaps lost: lets it look, and changes nothing.
    pub(super) fn wake(&self) {
        if let Some(quic) = self.connection() {
            quic.set_send_window(SEND_WINDOW);
        }
    }

    pub(super) fn has_ways(&self, (primary, also): &(Way, Option<Way>)) -> bool {
        self.entry.as_ref().is_some_and(|entry| {
            let same_also = match (&entry.also, also) {
                (None, None) => true,
                (Some(a), Some(b)) => a.is_same(b),
                _ => false,
            };
            same_also && entry.primary.is_same(primary)
        })
    }

    /// Nothing is under way and nothing stands.
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
            && self.calling.is_none()
            && self.answering.is_none()
            && self.waiting.is_empty()
            && self.current.is_none()
    }

    /// Answers everybody who waits.
    pub(super) fn fail(&mut self, error: &ConnectError) {
        (self.stage, self.calling) = (Stage::Idle, None);
        for reply in self.waiting.drain(..) {
            // Who asked may have given up.
            let _ = reply.send(Err(error.clone()));
        }
    }

    pub(super) fn step(&self) -> Step {
        match self.stage {
            Stage::Supernode => Step::Supernode,
            Stage::Channel(_) => Step::Channel,
            Stage::Idle => Step::Handshake,
        }
    }
}

/// All peers, by number and by id.
#[derive(Default)]
pub(super) struct Peers {
    slots: BTreeMap<PeerKey, Slot>,
    keys: HashMap<PeerId, PeerKey>,
    last: u32,
    own_profile: NatProfile,
}

impl Peers {
    pub(super) fn key_of(&self, peer: &PeerId) -> Option<PeerKey> {
        self.keys.get(peer).copied()
    }

    /// The peer's slot, made now if there is none. Numbers are not used again soon, so a late packet for an earlier peer
    /// meets nobody.
    pub(super) fn key_for(&mut self, peer: PeerId, policy: Policy) -> PeerKey {
        if let Some(key) = self.key_of(&peer) {
            return key;
        }
        let key = loop {
            self.last = self.last.wrapping_add(1);
            if !self.slots.contains_key(&PeerKey(self.last)) {
                break PeerKey(self.last);
            }
        };
        self.slots.insert(key, Slot::new(peer, policy));
        self.keys.insert(peer, key);
        key
    }

    pub(super) fn get(&self, peer: PeerKey) -> Option<&Slot> {
        self.slots.get(&peer)
    }

    pub(super) fn get_mut(&mut self, peer: PeerKey) -> Option<&mut Slot> {
        self.slots.get_mut(&peer)
    }

    pub(super) fn remove(&mut self, peer: PeerKey) {
        if let Some(slot) = self.slots.remove(&peer) {
            self.keys.remove(&slot.peer);
        }
    }

    pub(super) fn keys(&self) -> Vec<PeerKey> {
        self.slots.keys().copied().collect()
    }

    /// Ends the connections that a leap of the clock has made useless: nothing else would, as their timeouts are as long.
    pub(super) fn close_absurd(&self) {
        let all = self.slots.values().filter_map(Slot::connection);
        for quic in all.filter(|quic| quic.rtt() > ABSURD_RTT) {
            quic.close(VarInt::from_u32(0), b"the clock has leapt");
        }
    }

    pub(super) fn is_current(&self, peer: PeerKey, generation: u64) -> bool {
        self.get(peer).is_some_and(|slot| slot.current.is_some() && slot.generation == generation)
    }

    /// A message for the peer; lost when the stream does not take it.
    pub(super) fn say(&self, peer: PeerKey, message: PeerMessage) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref())
            && current.messages.try_send(message).is_err()
        {
            tracing::debug!(?peer, "a message between nodes is lost: the stream does not take it");
        }
    }

    pub(super) fn tell(&self, peer: PeerKey, event: PathEvent) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref()) {
            // Nobody may be listening.
            let _ = current.paths.events.send(event);
        }
    }

    pub(super) fn set_path(&mut self, peer: PeerKey, path: Path) {
        let ours = self.own_profile;
        if let Some(current) = self.get_mut(peer).and_then(|slot| slot.current.as_mut()) {
            current.paths.state.send_modify(|state| (state.path, state.ours) = (path, ours));
        }
    }

    pub(super) fn set_profiles(&mut self, peer: PeerKey, ours: NatProfile, theirs: NatProfile) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref()) {
            current.paths.state.send_modify(|state| (state.ours, state.theirs) = (ours, Some(theirs)));
        }
    }

    pub(super) fn set_own_profile(&mut self, profile: NatProfile) {
        self.own_profile = profile;
        for current in self.slots.values().filter_map(|slot| slot.current.as_ref()) {
            current.paths.state.send_modify(|state| state.ours = profile);
        }
    }
}

/// How QUIC works between peers.
pub(super) fn transport(epoch: Epoch) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_MTU);
    let mut config = TransportConfig::default();
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .send_window(SEND_WINDOW)
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(epoch));
    Arc::new(config)
}

impl Driver {
    /// A packet of the peer's has come. After an interruption QUIC would wait for a timeout that has doubled many times.
    pub(super) fn heard(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        if now.since(std::mem::replace(&mut slot.heard, now)) >= INTERRUPTION {
            slot.epoch.doubt();
            slot.wake();
        }
    }

    /// Begins a handshake with a peer that there is a channel to.
    pub(super) fn call(&mut self, key: PeerKey) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let (peer, epoch) = (slot.peer, slot.epoch.clone());
        self.handshakes += 1;
        let attempt = self.handshakes;
        let (endpoint, identity) = (self.endpoint.clone(), self.shown.clone());
        let handshake = async move {
            let failed = |reason: String| ConnectError::Handshake { peer, reason };
            let config = quic::client(&identity, Some(peer), &[PEER_ALPN], transport(epoch))
                .map_err(|error| failed(error.to_string()))?;
            let connecting = endpoint
                .connect_with(config, virtual_address(key), tls::SERVER_NAME)
                .map_err(|error| failed(error.to_string()))?;
            let connection = connecting.await.map_err(|error| refused(peer, error))?;
            let stream = connection.open_bi().await.map_err(|error| refused(peer, error))?;
            Ok(Established { connection, stream: Some(stream) })
        };
        let task = self.shake_hands(key, attempt, Role::Initiator, handshake);
        if let Some(slot) = self.peers.get_mut(key) {
            slot.stage = Stage::Idle;
            slot.calling = Some(Handshake { attempt, task });
        }
    }

    /// Takes the peer's handshake.
    pub(super) fn answer(&mut self, key: PeerKey, incoming: quinn::Incoming) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let (peer, epoch) = (slot.peer, slot.epoch.clone());
        self.handshakes += 1;
        let attempt = self.handshakes;
        let identity = self.shown.clone();
        let protocols: &[&[u8]] = if self.punches { &[PEER_ALPN, PUNCH_ALPN] } else { &[PEER_ALPN] };
        let handshake = async move {
            let failed = |reason: String| ConnectError::Handshake { peer, reason };
            let mut config = quic::server(&identity, protocols, transport(epoch))
                .map_err(|error| failed(error.to_string()))?;
            // A peer has one virtual address, whatever path its packets take: any other is somebody else's.
            config.migration(false);
            let connecting =
                incoming.accept_with(Arc::new(config)).map_err(|error| failed(error.to_string()))?;
            let connection = connecting.await.map_err(|error| refused(peer, error))?;
            let found = quic::peer_id(&connection).map_err(|error| failed(error.to_string()))?;
            if found != peer {
                connection.close(VarInt::from_u32(0), b"another key than the supernode said");
                return Err(ConnectError::WrongKey { expected: peer, found });
            }
            Ok(Established { connection, stream: None })
        };
        let task = self.shake_hands(key, attempt, Role::Acceptor, handshake);
        if let Some(slot) = self.peers.get_mut(key) {
            slot.stage = Stage::Idle;
            slot.answering = Some(Handshake { attempt, task });
        }
    }

    fn shake_hands(
        &self,
        peer: PeerKey,
        attempt: u64,
        role: Role,
        handshake: impl Future<Output = Result<Established, ConnectError>> + Send + 'static,
    ) -> AbortHandle {
        let commands = self.sender.clone();
        let task = tokio::spawn(async move {
            let result = handshake.await;
            // The driver may have ended: then nobody waits.
            let _ = commands.send(Command::Handshake { peer, attempt, role, result }).await;
        });
        task.abort_handle()
    }

    /// Makes a proved connection the peer's one, and gives it out.
    pub(super) fn install(&mut self, key: PeerKey, role: Role, established: Established, life: Arc<Life>) {
        let Established { connection: quic, stream } = established;
        let Some(slot) = self.peers.get_mut(key) else { return };
        if let Some(old) = slot.current.take() {
            old.quic.close(VarInt::from_u32(0), b"replaced by a newer connection");
        }
        slot.generation += 1;
        (slot.calling, slot.answering, slot.relay_told) = (None, None, None);
        let (generation, peer, policy) = (slot.generation, slot.peer, slot.policy);
        let (messages, waiting) = mpsc::channel(peer_stream::MAX_WAITING);
        let (taken, control_taken) = watch::channel(role == Role::Initiator);
        let paths = Arc::new(Paths::default());
        let inner = Inner { quic: quic.clone(), peer, paths: Arc::clone(&paths), control_taken, _life: life };
        let connection = Connection(Arc::new(inner));
        let handle = Arc::downgrade(&connection.0);
        slot.current = Some(Current { quic: quic.clone(), handle, messages, paths, was_direct: false });
        let mut replies = std::mem::take(&mut slot.waiting);
        replies.retain(|reply| !reply.is_closed());

        let commands = self.sender.clone();
        let (watched, closed) = (quic.clone(), commands.clone());
        tokio::spawn(async move {
            watched.closed().await;
            // The driver may have ended: then nobody cares.
            let _ = closed.send(Command::Closed { peer: key, generation }).await;
        });
        tokio::spawn(async move {
            let stream = match stream {
                Some(stream) => stream,
                None => {
                    let Ok(stream) = quic.accept_bi().await else { return };
                    taken.send_replace(true);
                    stream
                }
            };
            peer_stream::run(key, generation, stream, waiting, commands).await;
            drop(taken);
        });
        match role {
            Role::Acceptor if replies.is_empty() => self.deliver(connection, policy),
            _ => replies.into_iter().for_each(|reply| {
                // Who asked may have given up; the connection ends when nobody holds it.
                let _ = reply.send(Ok(connection.clone()));
            }),
        }
    }

    /// Hands a connection to whoever accepts; when it may only be direct, once it is.
    fn deliver(&self, connection: Connection, policy: Policy) {
        let unaccepted = self.unaccepted.clone();
        let hand_over = move |connection: Connection| {
            if let Err(error) = unaccepted.try_send(connection) {
                let (mpsc::error::TrySendError::Full(connection)
                | mpsc::error::TrySendError::Closed(connection)) = error;
                connection.close(0, b"too many connections wait to be accepted");
            }
        };
        match policy {
            Policy::DirectOnly(deadline) => {
                tokio::spawn(async move {
                    match connection.wait_direct(deadline).await {
                        Ok(_) => hand_over(connection),
                        Err(_) => connection.close(0, b"no direct path"),
                    }
                });
            }
            _ => hand_over(connection),
        }
    }
}

/// A failed handshake in our words.
fn refused(peer: PeerId, error: quinn::ConnectionError) -> ConnectError {
    if let Some(wrong) = tls::wrong_peer(&error) {
        return ConnectError::WrongKey { expected: wrong.expected, found: wrong.found };
    }
    match error {
        quinn::ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn_proto::TransportErrorCode::CONNECTION_REFUSED =>
        {
            ConnectError::NotAdmitted { peer }
        }
        other => ConnectError::Handshake { peer, reason: other.to_string() },
    }
}

use std::future::Future;
