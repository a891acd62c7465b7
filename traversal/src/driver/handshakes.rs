//! Handshakes with peers, and what becomes of them.

use std::{future::Future, sync::Arc, time::Duration};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};
use traversal_net::{quic, tls};
use traversal_proto::{
    peer::{PeerKey, Role},
    wire::{
        PeerId,
        peer::{PEER_ALPN, PUNCH_ALPN},
    },
};

use super::{
    Command, Driver, Established, IDLE_TIMEOUT,
    peers::{Current, Handshake, SEND_WINDOW, Stage},
    policies::Taker,
};
use crate::{
    ConnectError, Connection,
    builder::StreamLimits,
    congestion::Epoch,
    connection::{Inner, Paths},
    node::Life,
    peer_stream,
    routes::virtual_address,
};

/// A peer's handshakes at the same time: one for a connection, the others for punches. More are taken when one is over: QUIC
/// repeats its first packet.
pub(super) const MAX_ANSWERING: usize = 8;
/// A peer's handshake that takes longer has perhaps hung: who waits for a connection then calls, and still has time for it.
/// On a bad path it may be merely slow, and still comes first.
pub(super) const SLOW: Duration = Duration::from_secs(5);
/// One that takes longer is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Keeps a connection from timing out; the path agent looks after NAT mappings.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The largest packet: what fits an Ethernet frame over IPv4 with the relay's header before it.
const MAX_MTU: u16 = 1447;

/// How QUIC works between peers.
pub(super) fn transport(epoch: Epoch, streams: StreamLimits) -> Arc<TransportConfig> {
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
    // One is the peers' own.
    config.max_concurrent_bidi_streams(VarInt::from_u32(streams.open.saturating_add(1)));
    if let Some(bytes) = streams.unread {
        config.receive_window(VarInt::from_u32(bytes));
    }
    Arc::new(config)
}

impl Driver {
    /// Begins a handshake with a peer that there is a channel to.
    pub(super) fn call(&mut self, key: PeerKey) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let (peer, epoch, streams) = (slot.peer, slot.epoch.clone(), self.streams);
        let attempt = self.next_attempt();
        let (endpoint, identity) = (self.endpoint.clone(), self.shown.clone());
        let handshake = async move {
            let failed = |reason: String| ConnectError::Handshake { peer, reason };
            let config = quic::client(&identity, Some(peer), &[PEER_ALPN], transport(epoch, streams))
                .map_err(|error| failed(error.to_string()))?;
            let connecting = endpoint
                .connect_with(config, virtual_address(key), tls::SERVER_NAME)
                .map_err(|error| failed(error.to_string()))?;
            let connection = connecting.await.map_err(|error| refused(peer, error))?;
            let stream = connection.open_bi().await.map_err(|error| refused(peer, error))?;
            Ok(Established { connection, stream: Some(stream) })
        };
        let (task, since) = (self.shake_hands(key, attempt, Role::Initiator, handshake), self.now());
        if let Some(slot) = self.peers.get_mut(key) {
            slot.stage = Stage::Idle;
            slot.calling = Some(Handshake { attempt, since, task });
        }
    }

    /// Takes the peer's handshake.
    pub(super) fn answer(&mut self, key: PeerKey, incoming: quinn::Incoming) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let (peer, epoch, streams) = (slot.peer, slot.epoch.clone(), self.streams);
        let attempt = self.next_attempt();
        let identity = self.shown.clone();
        let protocols: &[&[u8]] = if self.punches { &[PEER_ALPN, PUNCH_ALPN] } else { &[PEER_ALPN] };
        let handshake = async move {
            let failed = |reason: String| ConnectError::Handshake { peer, reason };
            let mut config = quic::server(&identity, protocols, transport(epoch, streams))
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
        let handshake = async move {
            let result = tokio::time::timeout(ANSWER_WITHIN, handshake).await;
            result.unwrap_or_else(|_| Err(ConnectError::Handshake { peer, reason: "it hangs".to_owned() }))
        };
        let (task, since) = (self.shake_hands(key, attempt, Role::Acceptor, handshake), self.now());
        if let Some(slot) = self.peers.get_mut(key) {
            slot.stage = Stage::Idle;
            slot.answering.push(Handshake { attempt, since, task });
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
    pub(super) fn install(
        &mut self,
        key: PeerKey,
        (role, attempt): (Role, u64),
        established: Established,
        life: Arc<Life>,
    ) {
        let Established { connection: quic, stream } = established;
        self.forget_parting(key);
        let Some(slot) = self.peers.get_mut(key) else { return };
        if let Some(old) = slot.current.take() {
            old.quic.close(VarInt::from_u32(0), b"replaced by a newer connection");
        }
        slot.generation += 1;
        (slot.stage, slot.calling, slot.relay_told) = (Stage::Idle, None, None);
        // What the peer has begun since is a punch, or a newer connection.
        slot.answering.retain(|handshake| handshake.attempt > attempt);
        let (generation, peer, settled) = (slot.generation, slot.peer, slot.settled);
        let (messages, waiting) = mpsc::channel(peer_stream::MAX_WAITING);
        let (taken, control_taken) = watch::channel(role == Role::Initiator);
        let paths = Arc::new(Paths::default());
        let inner = Inner {
            quic: quic.clone(),
            peer,
            key,
            routes: Arc::clone(&self.routes),
            paths: Arc::clone(&paths),
            control_taken,
            _life: life,
        };
        let connection = Connection(Arc::new(inner));
        let handle = Arc::downgrade(&connection.0);
        slot.current = Some(Current { quic: quic.clone(), handle, messages, paths, was_direct: false });
        let mut callers = std::mem::take(&mut slot.waiting);
        callers.retain(|caller| !caller.reply.is_closed());

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
        if role == Role::Acceptor && callers.is_empty() {
            self.hand_over(key, connection, settled, Taker::Acceptor);
            return;
        }
        for caller in callers {
            let policy = caller.policy.unwrap_or(settled);
            self.hand_over(key, connection.clone(), policy, Taker::Caller(caller.reply));
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
